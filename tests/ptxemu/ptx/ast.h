/* A PTX module as its text says it, before anything is laid out: what the parser gives and the decoder takes.
 *
 * Registers are numbered a function: nested scopes are flattened by the parser, so that two variables of one name in two scopes
 * are two.  Labels are numbered a function as well and point at statement indices.  Every other name stays text: the linker knows
 * what it means. */
#ifndef PTXEMU_PTX_AST_H
#define PTXEMU_PTX_AST_H

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "types.h"

namespace ptxemu::ptx
{

/* A sentence for the person who loads the module: "line 12: ..." (becomes CUDA_ERROR_INVALID_PTX and the JIT error log). */
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Operand {
    enum Kind : uint8_t {
        reg,     /* index in Function::regs; `negate` for !%p, -%f is not PTX */
        integer, /* bits (two's complement) */
        real,    /* bits of an f64; 0f... literals are widened exactly, but keep their NaN payload in `single` */
        special, /* name without %: "tid.x", "laneid", "clock64" */
        symbol,  /* name (+ offset): variable, function, label of another kind */
        label,   /* index in Function::labels */
        address, /* [items[0] + offset]; items[0] is reg, symbol, integer or special; items[1], if there: a vector (tensor coordinates) */
        vector,  /* {a, b, ...}; items */
        list,    /* (a, b, ...): arguments of a call */
        pair,    /* p|q: items[0], items[1] */
        sink,    /* _ */
    };
    Kind kind = sink;
    bool negate = false;    /* '!' before a predicate */
    bool is_single = false; /* real: was written 0f........ and `single` holds its bits */
    uint32_t index = 0;
    uint32_t single = 0;
    uint64_t bits = 0;
    int64_t offset = 0;
    std::string name;
    std::vector<Operand> items;
};

struct Instr {
    std::string opcode;            /* "mad", "cp", "wgmma": up to the first dot */
    std::vector<std::string> mods; /* "lo", "s32": the rest, in order, "::" kept inside one ("shared::cta") */
    std::vector<Operand> ops;
    int guard = -1; /* register index of @%p, or -1 */
    bool guard_negate = false;
    Loc loc;
    std::string text; /* as written, one line, for reports */
};

struct Register {
    std::string name;
    Type type;
};

/* An initialiser: bytes, and addresses of symbols to be written over them. */
struct Reloc {
    size_t at;      /* byte offset in the variable */
    unsigned bytes; /* of the element: 4 or 8, less with a mask */
    std::string symbol;
    int64_t addend;
    bool generic;          /* written generic(name): the generic address, else the address in the symbol's own space */
    uint64_t mask = ~0ull; /* written 0xFF00(name): the bits of the address that are wanted, shifted down to bit 0 */
    uint32_t line = 0;
};

struct Variable {
    std::string name;
    Space space; /* global, constant, shared, local, param */
    Type type;
    size_t align = 0; /* as written or natural */
    size_t bytes = 0; /* 0 for an array of unknown size (extern dynamic shared memory) */
    bool is_extern = false;
    uint32_t line = 0;         /* of the text, for messages */
    std::vector<uint8_t> init; /* empty: zeros */
    std::vector<Reloc> relocs;
};

struct Label {
    std::string name;
    uint32_t at; /* index of the instruction that follows it; body.size() at the end */
};
struct BranchTable { /* name: .branchtargets a, b, c;  (brx.idx) */
    std::string name;
    std::vector<uint32_t> labels;
};
struct Prototype { /* name: .callprototype (ret) _ (params); */
    std::string name;
    std::vector<Variable> ret, params;
};

struct Function {
    std::string name;
    bool is_entry = false;
    bool is_declaration = false; /* no body */
    uint32_t line = 0;           /* of the text, for messages */
    std::vector<Variable> ret,
        params; /* all of space param: the parser turns .reg parameters into .param ones, and loads and stores them */
    std::vector<Register> regs;
    std::vector<Variable>
        locals; /* .local, .shared, .param and .const/.global variables declared inside, names made unique */
    std::vector<Instr> body;
    std::vector<Label> labels;
    std::vector<Loc> inlined; /* the places at which functions were inlined, each in turn with its `outer` */
    std::vector<BranchTable> tables;
    std::vector<Prototype> prototypes;
    std::map<std::string, std::vector<uint32_t>>
        directives; /* "maxntid" {256,1,1}, "reqntid", "minnctapersm", "maxnreg", "reqnctapercluster", "explicitcluster", ... */
};

struct Module {
    unsigned version_major = 0, version_minor = 0;
    unsigned sm = 0;                       /* 80 for sm_80 */
    char sm_suffix = 0;                    /* 'a' for sm_90a, 'f' for family-specific */
    std::map<uint32_t, std::string> files; /* .file */
    std::vector<Variable> variables;
    std::vector<Function> functions; /* in order; a declaration may be followed by its definition */
    std::map<std::string, std::string> aliases;
};

/* Parses one module (a NUL-terminated text without its NUL, as cuModuleLoadData gets it).  Throws Error. */
Module parse(const char *text, size_t n);

} // namespace ptxemu::ptx

#endif
