/* The compact form of a module: what the machine executes.
 *
 * An instruction is a pointer to the C++ function that executes it for a warp, and its operands as indices: a register of the
 * present activation, a constant of the function, a predicate.  All register values of a warp lie in rows of 256 bytes: 32 lanes
 * side by side, each as wide as the register (2, 4 or 8 bytes; 16-byte registers take two rows).  Handlers are loops over 32 lanes
 * that the host compiler turns into vector instructions.  8-bit registers are kept as 16-bit ones. */
#ifndef PTXEMU_ISA_CODE_H
#define PTXEMU_ISA_CODE_H

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ptx/ast.h"
#include "types.h"

namespace ptxemu
{

struct Warp;
struct Inst;

struct alignas(64) Row {
    uint8_t bytes[256];
};

/* What a handler tells the warp's loop. */
enum class Step : uint8_t {
    next, /* done: all lanes that were active go to the next instruction */
    yield, /* as next, but other warps should have a turn first (nanosleep, a failed mbarrier.try_wait, a spinning load) */
    jump,   /* the handler has moved the lanes itself (bra, call, ret, exit) */
    parked, /* the lanes of `active` wait here; somebody else will move them on (bar.sync) */
};
using Exec = Step (*)(Warp &w, const Inst &i);

struct Opnd {
    enum Kind : uint8_t { none, reg, pred, constant } kind = none;
    /* How the register is used: the check of never-written registers reports `read`, while `copy` (mov, selp, st and the
     * like) passes the mark on, as handlers that read `copy` operands do with Warp::undefined(). */
    enum Use : uint8_t { read, copy, write } use = read;
    bool negate = false; /* predicates: ! */
    uint8_t bits = 0;    /* width of the register or constant in the row: 16, 32, 64, 128 */
    uint32_t slot = 0;   /* row of the activation, predicate number, or row of Function::constants */
};

/* Which lanes have to come together before the instruction executes once for all of them. */
enum class Together : uint8_t {
    no,
    warp, /* every lane of the warp that has not exited (mma, ldmatrix, wgmma, bar.sync: the .aligned forms) */
    mask, /* the lanes named by operand `mask_op` (shfl.sync, vote.sync, match, redux, elect) */
    meet, /* the same, but each lane may come from an instruction of its own (bar.warp.sync): then once for each of these */
};

/* What the profiler counts an instruction as. */
enum class Class : uint8_t {
    integer,
    floating, /* f32, f64 */
    half,     /* f16, bf16 */
    convert,
    move,
    special_function, /* ex2, rcp, ... */
    control,
    load_global,
    store_global,
    load_shared,
    store_shared,
    local,
    constant,
    atomic,
    async_copy,
    tensor,      /* mma, wgmma */
    matrix_move, /* ldmatrix, stmatrix */
    warp,        /* shfl, vote, ... */
    barrier,
    other,
    count
};
const char *class_text(Class c);

struct Inst {
    Exec exec = nullptr;
    const Opnd *op = nullptr; /* in the order that the opcode's builder chose */
    uint16_t n_op = 0;
    Type type = Type::none, type2 = Type::none; /* of the destination; of the source where that differs */
    Space space = Space::generic;
    Together together = Together::no;
    Class cls = Class::other;
    uint8_t vec = 1; /* elements of a vector access */
    uint8_t mask_op = 0;
    bool guarded = false, guard_negate = false;
    bool touches_undefined = false; /* some operand is a register: the check has something to do */
    uint32_t guard = 0;             /* predicate number */
    uint32_t flags = 0;             /* the family's own */
    uint64_t imm = 0;               /* the family's own: an offset, a table, ... */
    uint32_t target = 0;            /* branches: index in Function::code */
    const void *extra = nullptr;    /* the family's own, made by Decode::extra, lives as long as the module */
    Loc loc;
    const ptx::Instr *source = nullptr; /* text for reports */
};

/* A formal parameter, or a variable of a frame: where it lies in local memory relative to the frame, or in the parameter block. */
struct Slot {
    std::string name;
    uint32_t offset = 0, bytes = 0, align = 1;
};

struct Function {
    std::string name;
    bool is_entry = false;
    std::vector<Inst> code; /* followed by a `ret` if the text does not end in one */
    std::vector<Row> constants;
    uint32_t n_rows = 0, n_preds = 0; /* of an activation */
    uint32_t frame_bytes = 0;       /* .local variables, .param variables, formals: of an activation, 16-byte aligned */
    std::vector<Slot> params, ret;  /* entry: offsets in the parameter block; device function: in its own frame */
    uint32_t param_bytes = 0;       /* entry: size of the parameter block */
    uint32_t shared_bytes = 0;      /* static shared memory of an entry: its own and that of all it may call */
    uint32_t dynamic_shared_at = 0; /* where extern shared memory begins */
    uint32_t stack_bytes = 0;       /* local memory that the deepest call chain needs; recursion: a fixed amount */
    uint32_t regs_for_occupancy = 0; /* estimate: what cuFuncGetAttribute gives as NUM_REGS */
    uint32_t max_threads = 0;        /* maxntid product, or 0 */
    Dim3 required_block;             /* reqntid */
    bool has_required_block = false;
    Dim3 required_cluster;
    bool has_required_cluster = false;
    std::vector<uint32_t> register_slots; /* of ast.regs: a row, which several may share, or a predicate number */
    std::deque<Opnd> opnds_pool;          /* owners of what Inst points at */
    std::vector<std::unique_ptr<Opnd[]>> opnds;
    std::vector<std::shared_ptr<void>> extras;
    ptx::Function ast;
};

/* The name in the text of the register that is operand `slot` (a row or predicate) of the instruction. */
std::string register_name(const Function &fn, const Inst &i, bool pred, uint32_t slot);

struct Global { /* a module-scope variable of .global or .const, at its device address */
    std::string name;
    Space space;
    uint64_t address;
    size_t bytes;
};

/* A loaded module.  Functions keep their addresses; a function's device address (for calls through pointers) is its own. */
struct Module {
    std::vector<std::unique_ptr<Function>> functions;
    std::map<std::string, Function *> by_name;
    std::map<std::string, Global> globals;
    std::map<uint32_t, std::string> files;
    unsigned sm = 0;
    char sm_suffix = 0;
    bool group_scratch = false; /* reads %reserved_smem_offset_1: blocks need that part of the system's shared memory */
};

/* Allocates module-scope variables on a device; the driver gives one that puts them on its heap. */
struct GlobalAllocator {
    virtual ~GlobalAllocator() = default;
    virtual uint64_t allocate(const std::string &name, Space space, size_t bytes, size_t align) = 0; /* 0: no memory */
};

/* Lays a parsed module out and decodes it.  `sm` is the device's compute capability (80): an instruction that it lacks is an
 * error.  Throws ptx::Error. */
std::unique_ptr<Module> decode(ptx::Module &&m, unsigned sm, GlobalAllocator &globals);

} // namespace ptxemu

#endif
