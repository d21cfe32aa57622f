/* The parser's inside: tokens to a Module by recursive descent.
 *
 * parser.cpp has the module and its directives, variables.cpp declarations, initialisers and constant expressions, statements.cpp
 * the bodies of functions. */
#ifndef PTXEMU_PTX_PARSER_H
#define PTXEMU_PTX_PARSER_H

#include <algorithm>
#include <array>
#include <unordered_map>
#include <unordered_set>

#include "ptx/lexer.h"

namespace ptxemu::ptx
{

/* The value of a constant expression. */
struct Number {
    bool is_real = false, is_single = false, is_unsigned = false;
    uint32_t single = 0;
    uint64_t bits = 0;
};

/* How a name was declared: .visible .extern ... */
struct Linkage {
    bool is_extern = false, is_weak = false, is_common = false;
};

/* What a name of a scope means. */
struct Entity {
    enum Kind : uint8_t { reg, variable, label, other } kind = other; /* other: a branch table or prototype */
    uint32_t index = 0;                                               /* reg, label */
    std::string unique;                                               /* variable, other */
};

struct RegisterRange { /* %r<94> */
    std::string prefix;
    uint32_t count = 0;
    Type type = Type::none;
};

/* A pair of braces in a function's body. */
struct Scope {
    std::unordered_map<std::string, Entity> names;
    std::vector<RegisterRange> ranges;
    std::vector<uint32_t> unresolved;        /* instructions with names that nothing above them explains */
    std::vector<uint32_t> unresolved_tables; /* branch tables with such names */
};

struct TableName { /* a label of .branchtargets */
    std::string name;
    uint32_t line;
    bool known;
};

class Parser
{
  public:
    Parser(const char *text, size_t n) : tokens_(tokenize(text, n)), text_end_(text + n) {}
    Module run();

  private:
    /* ---- tokens ---- */
    const Token &peek(size_t k = 0) const { return tokens_[std::min(at_ + k, tokens_.size() - 1)]; }
    const Token &take() { return at_ + 1 < tokens_.size() ? tokens_[at_++] : tokens_[at_]; }
    bool accept(const char *punct);
    bool accept_dotted(const char *word);
    void expect(const char *punct, const char *where);
    std::string word(const char *what);
    [[noreturn]] void fail_here(const char *expected) const; /* "expected ..., found `...`" */
    uint32_t line() const { return peek().line; }
    struct Depth { /* braces and parentheses nest so deep and no deeper: mutated text must not exhaust the stack */
        explicit Depth(Parser &p);
        ~Depth() { parser.depth_--; }
        Parser &parser;
    };

    /* ---- module: parser.cpp ---- */
    void module_statement();
    void version();
    void target();
    void file();
    void section();
    void alias();
    Linkage linkage();
    void global_variables(const Linkage &l);
    void function(const Linkage &l, bool is_entry);
    void directives();
    void directive_numbers(const std::string &name, unsigned most);
    void add_function(const Linkage &l, Function &&f);
    std::vector<Variable> formals(bool named);
    Variable formal(bool named);

    /* ---- variables.cpp ---- */
    Type type_token();
    uint64_t unsigned_number(const char *what);
    uint64_t unsigned_count(const char *what); /* a plain number: `>` ends it */
    Number expression() { return conditional(); }
    Number conditional();
    Number binary(unsigned level);
    Number unary();
    Number primary();
    Variable declaration(Space space);                             /* the part up to the name: .align 16 .v4 .b8 */
    void name_and_shape(Variable *v, std::vector<uint64_t> *dims); /* name[4][8] */
    void initializer(Variable *v, std::vector<uint64_t> dims);
    void fill(Variable *v, const std::vector<uint64_t> &dims, size_t level, uint64_t at);
    void scalar(Variable *v, uint64_t at);
    void symbol_scalar(Variable *v, uint64_t at);
    void variables(Space space, std::vector<Variable> *into, const Linkage &l);

    /* ---- calls.cpp ---- */
    struct RegisterResult { /* a result that lies in `name` for the call and in `reg` for the text */
        std::string name;
        Operand reg;
    };
    void emit(const char *opcode, Type t, Operand first, Operand second, const Instr &neighbour);
    void load_register_formals();
    void store_register_results(const Instr &ret);
    const std::vector<Variable> *formals_of(const Operand &callee, bool results) const;
    std::string variable_for(const Operand &o, const std::vector<Variable> *formals, size_t k, uint32_t line);
    std::vector<RegisterResult> pass_registers(Instr *call);
    void load_results(const std::vector<RegisterResult> &results, const Instr &call);

    /* ---- statements.cpp ---- */
    void body();
    void scope();
    void statement();
    void body_directive();
    void registers();
    void locals(Space space, const Linkage &l);
    void loc();
    void pragma();
    void label(const std::string &name);
    void branch_targets(const std::string &name);
    void call_prototype(const std::string &name);
    void call_targets(const std::string &name);
    void instruction();
    Operand operand();
    Operand plain_operand();
    Operand name_operand();
    Operand number_operand();
    Operand address();
    int64_t offset();
    Operand group(const char *close, Operand::Kind kind);
    void declare(const std::string &name, Entity e);
    const Entity *find(const std::string &name);
    const Entity *find_in(Scope &s, const std::string &name);
    uint32_t new_register(const std::string &name, Type t);
    std::string unique_name(const std::string &name);
    void close_scope();
    bool resolve(Operand *o, const Scope &s);
    void unresolved_to_symbols(const Scope &rest);

    std::vector<Token> tokens_;
    const char *text_end_;
    size_t at_ = 0;
    unsigned depth_ = 0;
    Module module_;
    std::unordered_map<std::string, size_t> variable_index_, function_index_; /* in module_ */
    std::unordered_set<std::string> weak_;                                    /* names defined weakly */

    /* of the function being parsed */
    Function fn_;
    std::vector<Scope> scopes_;
    std::unordered_set<std::string> used_names_;   /* unique names taken in this function */
    std::vector<RegisterResult> register_results_; /* .reg results of the function itself */
    Loc loc_;
    std::map<std::array<uint32_t, 3>, uint32_t>
        outer_of_; /* of this function: file, line, column -> the `outer` that .loc gave it last */
    std::vector<std::vector<TableName>> table_names_; /* beside fn_.tables */
    bool names_unresolved_ = false; /* the instruction being parsed has a name that is not known yet */
};

} // namespace ptxemu::ptx

#endif
