/* The module: directives, functions and their formals. */
#include <algorithm>
#include <cstring>

#include "ptx/parser.h"

namespace ptxemu::ptx
{

namespace
{
constexpr unsigned DEEPEST = 200;
}

Parser::Depth::Depth(Parser &p) : parser(p)
{
    if (p.depth_ >= DEEPEST)
        error_at(p.line(), "braces or parentheses nest too deeply");
    p.depth_++;
}

bool Parser::accept(const char *punct)
{
    if (!peek().is(punct))
        return false;
    take();
    return true;
}

bool Parser::accept_dotted(const char *word)
{
    if (!peek().is_dotted(word))
        return false;
    take();
    return true;
}

void Parser::fail_here(const char *expected) const
{
    const Token &t = peek();
    if (t.kind == Token::end)
        error_at(t.line, "expected %s, found the end of the text", expected);
    int n = int(std::min<size_t>(t.text.size(), 60));
    error_at(t.line, "expected %s, found `%s%.*s`", expected, t.kind == Token::dotted ? "." : "", n, t.text.data());
}

void Parser::expect(const char *punct, const char *where)
{
    if (!accept(punct))
        fail_here(format("`%s` %s", punct, where).c_str());
}

std::string Parser::word(const char *what)
{
    if (peek().kind != Token::word)
        fail_here(what);
    return std::string(take().text);
}

Module Parser::run()
{
    version();
    target();
    while (peek().kind != Token::end)
        module_statement();
    if (!module_.sm)
        error_at(line(), "the module has no .target");
    return std::move(module_);
}

void Parser::version()
{
    if (!accept_dotted("version"))
        fail_here(".version, with which every module begins");
    const Token &t = peek();
    if (t.kind != Token::real ||
        sscanf(std::string(t.text).c_str(), "%u.%u", &module_.version_major, &module_.version_minor) != 2)
        fail_here("a version like 8.0");
    take();
}

void Parser::target()
{
    if (!accept_dotted("target"))
        fail_here(".target, the second line of every module");
    do {
        uint32_t where = line();
        std::string t = word("a target like sm_80");
        char suffix = 0;
        int used = 0;
        if (sscanf(t.c_str(), "sm_%u%n", &module_.sm, &used) == 1) {
            suffix = t[size_t(used)];
            if (suffix && ((suffix != 'a' && suffix != 'f') || t.size() != size_t(used) + 1))
                error_at(where, "`%s` is not a target that the emulator knows", t.c_str());
            module_.sm_suffix = suffix;
        } else if (t != "debug" && t != "texmode_unified" && t != "texmode_independent") {
            error_at(where, "`%s` is not a target that the emulator knows", t.c_str());
        }
    } while (accept(","));
}

void Parser::module_statement()
{
    if (accept(";"))
        return;
    if (accept_dotted("address_size")) {
        uint32_t where = line();
        if (unsigned_number("the address size") != 64)
            error_at(where, "the emulator has 64-bit addresses only");
        return;
    }
    if (accept_dotted("file"))
        return file();
    if (accept_dotted("section"))
        return section();
    if (accept_dotted("alias"))
        return alias();
    if (accept_dotted("pragma"))
        return pragma();
    if (accept_dotted("loc"))
        return loc();
    Linkage l = linkage();
    if (accept_dotted("entry"))
        return function(l, true);
    if (accept_dotted("func"))
        return function(l, false);
    global_variables(l);
}

void Parser::file()
{
    uint64_t number = unsigned_number("the number of a file");
    if (peek().kind != Token::string)
        fail_here("the name of a file in quotes");
    module_.files[uint32_t(number)] = std::string(take().text);
    for (int k = 0; k < 2 && accept(","); k++) /* time and size */
        unsigned_number("the time or size of a file");
}

/* Debug information: nothing in it changes what the code does. */
void Parser::section()
{
    uint32_t began = line();
    if (peek().kind != Token::dotted)
        fail_here("the name of a section");
    take();
    expect("{", "behind the name of a section");
    for (unsigned open = 1; open;) {
        const Token &t = take();
        if (t.kind == Token::end)
            error_at(began, "the section that begins here has no end");
        open += t.is("{");
        open -= t.is("}");
    }
}

void Parser::alias()
{
    uint32_t where = line();
    std::string name = word("the name of an alias");
    expect(",", "between an alias and what it stands for");
    std::string target = word("the name of a function");
    auto known = function_index_.find(target);
    if (known == function_index_.end() || module_.functions[known->second].is_declaration)
        error_at(where, "the alias `%s` stands for `%s`, which is not a function defined above", name.c_str(),
                 target.c_str());
    module_.aliases[name] = target;
    expect(";", "behind .alias");
}

Linkage Parser::linkage()
{
    Linkage l;
    for (;;) {
        if (accept_dotted("extern"))
            l.is_extern = true;
        else if (accept_dotted("weak"))
            l.is_weak = true;
        else if (accept_dotted("common"))
            l.is_common = true;
        else if (!accept_dotted("visible"))
            return l;
    }
}

void Parser::global_variables(const Linkage &l)
{
    static const std::pair<const char *, Space> spaces[] = {
        {"global", Space::global}, {"const", Space::constant}, {"shared", Space::shared}};
    auto s = std::find_if(std::begin(spaces), std::end(spaces), [&](auto &x) { return peek().is_dotted(x.first); });
    if (s == std::end(spaces))
        fail_here("a function, a variable or a directive");
    uint32_t where = take().line;
    if (peek().kind == Token::integer || peek().is("["))
        error_at(where, "the emulator does not know banks of constant memory");
    std::vector<Variable> found;
    variables(s->second, &found, l);
    for (Variable &v : found) {
        auto known = variable_index_.emplace(v.name, module_.variables.size());
        if (known.second) {
            if (l.is_weak || l.is_common)
                weak_.insert(v.name);
            module_.variables.push_back(std::move(v));
            continue;
        }
        Variable &old = module_.variables[known.first->second];
        if (old.is_extern && !v.is_extern)
            old = std::move(v);
        else if (!v.is_extern && !l.is_weak && !l.is_common && !weak_.count(v.name))
            error_at(where, "variable `%s` is defined twice", v.name.c_str());
    }
}

Variable Parser::formal(bool named)
{
    if (accept_dotted("reg")) {
        Variable v;
        v.space = Space::generic; /* until calls.cpp makes it a .param */
        v.line = line();
        v.type = type_token();
        if (v.type == Type::pred)
            error_at(line(), "a predicate cannot be a parameter");
        v.name = named || peek().kind == Token::word ? word("the name of a parameter") : "";
        v.bytes = v.align = type_bytes(v.type);
        return v;
    }
    if (!accept_dotted("param"))
        fail_here(".param or .reg");
    Variable v = declaration(Space::param);
    if (accept_dotted("ptr")) { /* what the pointer points at: a hint for the compiler */
        for (const char *space : {"global", "const", "shared", "local"})
            if (accept_dotted(space))
                break;
        if (accept_dotted("align"))
            unsigned_number("an alignment");
    }
    if (!named && peek().kind != Token::word) {
        v.name = "";
        return v;
    }
    std::vector<uint64_t> dims;
    name_and_shape(&v, &dims);
    return v;
}

std::vector<Variable> Parser::formals(bool named)
{
    std::vector<Variable> all;
    if (!accept("("))
        return all;
    if (accept(")"))
        return all;
    do
        all.push_back(formal(named));
    while (accept(","));
    expect(")", "behind parameters");
    return all;
}

void Parser::directive_numbers(const std::string &name, unsigned most)
{
    std::vector<uint32_t> numbers;
    do {
        uint64_t n = unsigned_number("the number of a directive");
        if (n > UINT32_MAX)
            error_at(line(), "the number behind .%s is too large", name.c_str());
        numbers.push_back(uint32_t(n));
    } while (numbers.size() < most && accept(","));
    fn_.directives[name] = numbers;
}

void Parser::directives()
{
    static const std::pair<const char *, unsigned> known[] = {
        {"maxntid", 3},           {"reqntid", 3},  {"reqnctapercluster", 3}, {"minnctapersm", 1},
        {"maxnctapersm", 1},      {"maxnreg", 1},  {"maxclusterrank", 1},    {"explicitcluster", 0},
        {"blocksareclusters", 0}, {"noreturn", 0}, {"abi_preserve", 1},      {"abi_preserve_control", 1}};
    for (;;) {
        if (accept_dotted("pragma")) {
            pragma();
            continue;
        }
        auto k = std::find_if(std::begin(known), std::end(known), [&](auto &x) { return peek().is_dotted(x.first); });
        if (k == std::end(known))
            return;
        take();
        if (k->second)
            directive_numbers(k->first, k->second);
        else
            fn_.directives[k->first] = {};
    }
}

void Parser::function(const Linkage &l, bool is_entry)
{
    fn_ = Function{};
    scopes_.clear();
    used_names_.clear();
    loc_ = Loc{};
    outer_of_.clear();
    fn_.is_entry = is_entry;
    fn_.line = line();
    if (!is_entry)
        fn_.ret = formals(true);
    fn_.name = word("the name of a function");
    fn_.params = formals(true);
    directives();
    fn_.is_declaration = accept(";");
    if (!fn_.is_declaration)
        body();
    add_function(l, std::move(fn_));
}

void Parser::add_function(const Linkage &l, Function &&f)
{
    auto known = function_index_.emplace(f.name, module_.functions.size());
    if (!known.second) {
        Function &old = module_.functions[known.first->second];
        if (f.is_declaration)
            return;
        if (!old.is_declaration) {
            if (l.is_weak || weak_.count(f.name))
                return;
            error_at(line(), "function `%s` is defined twice", f.name.c_str());
        }
        old = std::move(f);
    } else {
        module_.functions.push_back(std::move(f));
    }
    if (l.is_weak)
        weak_.insert(known.first->first);
}

Module parse(const char *text, size_t n)
{
    return Parser(text, n).run();
}

} // namespace ptxemu::ptx
