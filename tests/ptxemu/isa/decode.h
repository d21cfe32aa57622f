/* What an instruction family needs to turn the text of an instruction into an Inst, and the table of opcodes.
 *
 * A family is one file isa/NAME.cpp: handlers, builders, and one table of {opcode, builder}.  Adding an opcode is a line in that
 * table.  A builder takes every modifier that it understands; what is left over is an error at load that names the instruction. */
#ifndef PTXEMU_ISA_DECODE_H
#define PTXEMU_ISA_DECODE_H

#include <initializer_list>
#include <memory>

#include "isa/code.h"

namespace ptxemu
{

class Decode
{
  public:
    /* ---- the instruction's text ---- */
    const ptx::Instr &src() const
    {
        counts_itself_ = true;
        return *instr_;
    }
    bool take(const char *mod);                                /* consumes a modifier, if it is there */
    int take_one_of(std::initializer_list<const char *> mods); /* index of the one found, or -1 */
    bool take_type(Type *t);                                   /* consumes the first modifier left that is a type */
    Type type();                                               /* the same; an error if there is none */
    bool has(const char *mod) const;
    size_t n() const
    {
        counts_itself_ = true;
        return instr_->ops.size();
    }
    const ptx::Operand &operand(size_t k); /* an error if there are fewer */
    [[noreturn]] void fail(const char *fmt, ...) const
        __attribute__((format(printf, 2, 3)));         /* "line 12: `add.x`: ..." */
    void need_sm(unsigned sm) const;                   /* an error on devices below */
    void need_exactly(unsigned sm, char suffix) const; /* wgmma: .target sm_90a on a 9.0 device */
    void unknown() const;                              /* the error of an instruction that nobody knows */

    /* ---- operands: appended to Inst::op in the order of the calls ---- */
    /* A source: a register, or an immediate converted to `t` (integers wrap, 0f/0d to the float type).  The register must be as
     * wide as `t`, or, if `wider` is set (ld, st, cvt), at least as wide; 8-bit types use 16-bit registers or wider.  Symbols give their address
     * (of their own space), special registers are moved into a register before. */
    Opnd in(const ptx::Operand &o, Type t, Opnd::Use use = Opnd::read, bool wider = false);
    Opnd in(size_t k, Type t, Opnd::Use use = Opnd::read, bool wider = false) { return in(operand(k), t, use, wider); }
    Opnd out(const ptx::Operand &o, Type t, bool wider = false); /* `_` gives a row that nobody reads */
    Opnd out(size_t k, Type t, bool wider = false) { return out(operand(k), t, wider); }
    /* predicate, or the immediate 0/1 (a constant row of u32 lanes' mask) */
    Opnd pred_in(const ptx::Operand &o, Opnd::Use use = Opnd::read);
    Opnd pred_out(const ptx::Operand &o);
    bool is_predicate(const ptx::Operand &o) const; /* a predicate register: where an operand may be of several kinds */
    Opnd constant(uint64_t bits, Type t);           /* a constant row (not appended by itself: see add) */
    Opnd temporary(Type t);                         /* a fresh row */
    void add(Opnd o);                               /* appends by hand; in/out/pred_* have done so already */
    /* [base + offset]: appends the base as a u64 (or u32: zero-extended at access) register or constant; the offset goes to
     * Inst::imm.  Sets Inst::space: `ld.param` of a device function and .param variables become local, relative to the frame: then flag
     * *frame is set and the handler adds Warp::frame_base.  `space` is what the modifiers said (generic if they said nothing).
     *
     * What the base means in Space::param (kernel parameters): a constant is an offset in the parameter block, a register holds an
     * address as is_param_symbol's mov made it, the block's host address included. */
    void address(const ptx::Operand &o, Space space, bool *frame);
    /* Whether the operand is a kernel parameter's name; *offset: in the parameter block, the operand's own offset included.  `mov`
     * gives the parameter block's host address plus *offset.  A name for which frame_slot gives a slot is local memory: its
     * address is Warp::frame_base plus Slot::offset plus the operand's offset.  All other names are constants that `in` makes. */
    bool is_param_symbol(const ptx::Operand &o, uint64_t *offset);
    bool vector_width(size_t k, unsigned *n); /* whether operand k is {..}, and of how many */

    /* ---- names ---- */
    uint32_t label(const ptx::Operand &o);             /* code index of a label */
    const Function *function(const std::string &name); /* nullptr if there is none of that name */
    const Slot *frame_slot(const std::string &name);   /* a .param/.local variable or formal of this function */
    const ptx::BranchTable *branch_table(const std::string &name);
    uint32_t branch_target(const ptx::BranchTable &t, size_t k);
    const ptx::Prototype *prototype(const std::string &name);

    /* Memory for what does not fit into Inst; lives as long as the function. */
    template <class T>
    T *extra()
    {
        auto p = std::make_shared<T>();
        keep(p);
        return p.get();
    }

    struct State; /* of decode.cpp */
    Decode(State &s, const ptx::Instr &i);
    ~Decode();
    bool all_taken() const;
    void build(Inst *i); /* the whole instruction: what decode() calls */

  private:
    uint64_t immediate(const ptx::Operand &o, Type t) const;
    uint64_t symbol_address(const ptx::Operand &o) const;
    void symbol_base(const ptx::Operand &base, Space space, bool *frame);
    Opnd register_operand(const ptx::Operand &o, Type t, bool wider) const;
    void keep(std::shared_ptr<void> p);
    State &s_;
    const ptx::Instr *instr_;
    uint64_t taken_ = 0; /* modifiers by position */
    /* More operands than a builder has asked for are an error, unless it has looked at their number itself. */
    size_t asked_ = 0;
    mutable bool counts_itself_ = false;
};

using Build = void (*)(Decode &d, Inst &i); /* sets exec, operands, flags, cls, together */
/* Families share names like "add": the first type among an instruction's modifiers says whose it is.  An entry for that group of
 * types wins over one for all. */
enum class Takes : uint8_t { all, single, half }; /* single: f32, f32x2, f64; half: f16, f16x2, bf16, bf16x2 */
struct Opcode {
    const char *
        name; /* "mad"; a dotted name ("cp.async.bulk", "mbarrier.init") wins over a shorter one and consumes its modifiers */
    Build build;
    Takes takes = Takes::all;
};
struct Family {
    const Opcode *opcodes;
    size_t n;
};

/* One line a family.  Defined in isa/families.cpp as a table over these. */
extern const Family move_family;    /* mov, selp, special registers                       isa/move.cpp     */
extern const Family integer_family; /* add ... sad, min, max, dp4a, carry chains          isa/integer.cpp  */
extern const Family logic_family;   /* and ... lop3, shifts, prmt, bit fields             isa/logic.cpp    */
extern const Family compare_family; /* setp, set, slct                                    isa/compare.cpp  */
extern const Family float_family;   /* f32 and f64 arithmetic, testp, copysign            isa/float.cpp    */
extern const Family half_family;    /* f16, bf16 and their x2 forms                       isa/half.cpp     */
extern const Family approx_family;  /* rcp sqrt rsqrt ex2 lg2 sin cos tanh                isa/approx.cpp   */
extern const Family convert_family; /* cvt, cvt.pack                                      isa/convert.cpp  */
extern const Family alloca_family;  /* alloca stacksave stackrestore                      isa/alloca.cpp   */
extern const Family control_family; /* bra brx call ret exit trap ...                     isa/control.cpp  */
extern const Family barrier_family; /* bar barrier bar.warp nanosleep ...                 isa/barrier.cpp  */
extern const Family memory_family;  /* ld st ldu prefetch cvta isspacep fence membar ...  isa/memory.cpp   */
extern const Family atomic_family;  /* atom red                                           isa/atomic.cpp   */
extern const Family async_family;   /* cp.async, mbarrier                                 isa/async.cpp    */
extern const Family bulk_family;    /* cp.async.bulk, TMA, mapa, fence.proxy, ...         isa/bulk.cpp     */
extern const Family warp_family;    /* shfl vote match redux activemask elect             isa/warp_ops.cpp */
extern const Family matrix_family;  /* ldmatrix stmatrix movmatrix mma                    isa/mma.cpp      */
extern const Family wgmma_family;   /* wgmma                                              isa/wgmma.cpp    */

/* The opcode's builder; nullptr if nobody knows it.  *consumed: how many leading modifiers the dotted name has used up. */
Build find_opcode(const ptx::Instr &i, size_t *consumed);

} // namespace ptxemu

#endif
