/* A warp: 32 lanes, their registers, and where each of them is.
 *
 * Lanes that share an activation and a program counter form a path.  The warp executes one path at a time; among those that can
 * run it takes the deepest call first and then the lowest program counter, which lets lanes meet again where structured code
 * joins; a path that keeps jumping back (a spin lock) gives way to the others after a while, so that every lane makes progress, as
 * on sm_70 and newer. */
#ifndef PTXEMU_MACHINE_WARP_H
#define PTXEMU_MACHINE_WARP_H

#include <memory>
#include <vector>

#include "isa/code.h"
#include "machine/fault.h"

namespace ptxemu
{

struct Block;

/* One activation of a function by some lanes. */
struct Frame {
    const Function *fn = nullptr;
    std::vector<Row> rows;      /* fn->n_rows */
    std::vector<Lanes> preds;   /* fn->n_preds: bit l is lane l's predicate */
    std::vector<Lanes> defined; /* a row each: lanes that were written (128-bit registers: their first row) */
    std::vector<Lanes> pred_defined;
    uint32_t base = 0;           /* local memory: offset of the frame in each thread's stack */
    std::vector<uint32_t> grown; /* alloca: bytes behind the frame, a lane each; empty: none */
    unsigned depth = 0;
    std::shared_ptr<Frame> caller;
    const Inst *call = nullptr; /* the call in the caller */
};

struct Path {
    Lanes lanes = 0;
    uint32_t pc = 0;
    std::shared_ptr<Frame> frame;
    Lanes parked = 0; /* == lanes: waits at pc for somebody (barrier, missing lanes) */
    uint64_t last_turn = 0;
    unsigned backward = 0;  /* backward jumps since its turn began */
    Lanes wanted = 0;       /* lanes that have to come together here */
    bool gathering = false; /* parked until the wanted lanes are here: the warp itself moves it on, no wake() */
    bool gathered = false;  /* they are: the instruction executes for these lanes */
};

struct Warp {
    /* ---- what a handler sees ---- */
    Block *block = nullptr;
    uint32_t index = 0;  /* in the block */
    Lanes active = 0;    /* the lanes that execute the instruction: guard true; never 0 in a handler */
    Lanes exited = 0;    /* lanes that have ended, or never existed (block size no multiple of 32) */
    Row *rows = nullptr; /* of the present activation */
    Lanes *preds = nullptr;
    const Row *constants = nullptr;
    Lanes *defined = nullptr, *pred_defined = nullptr;
    Frame *frame = nullptr;

    uint32_t thread(unsigned lane) const { return index * WARP_SIZE + lane; } /* linear index in the block */

    template <class T>
    const T *in(const Opnd &o) const
    {
        return reinterpret_cast<const T *>((o.kind == Opnd::constant ? constants : rows)[o.slot].bytes);
    }
    template <class T>
    T *out(const Opnd &o)
    {
        return reinterpret_cast<T *>(rows[o.slot].bytes);
    }
    Lanes pred(const Opnd &o) const /* lanes where the (possibly negated) predicate holds */
    {
        Lanes p = o.kind == Opnd::constant ? *reinterpret_cast<const Lanes *>(constants[o.slot].bytes) : preds[o.slot];
        return o.negate ? ~p : p;
    }
    void set_pred(const Opnd &o, Lanes value) /* writes the active lanes' bits */
    {
        preds[o.slot] = (preds[o.slot] & ~active) | (value & active);
    }
    /* Lanes (of the active ones) in which a `copy` operand was never written; a handler that copies marks its result with
     * mark_undefined after the fact: the loop has marked every `write` operand as written before the handler runs. */
    Lanes undefined(const Opnd &o) const
    {
        if (o.kind == Opnd::reg)
            return active & ~defined[o.slot];
        return o.kind == Opnd::pred ? active & ~pred_defined[o.slot] : 0;
    }
    void mark_undefined(const Opnd &o, Lanes lanes)
    {
        (o.kind == Opnd::pred ? pred_defined : defined)[o.slot] &= ~lanes;
    }
    uint64_t frame_base() const; /* local address of the present frame */
    bool
    wgmma_pending(uint32_t slot) const; /* whether a wgmma that was not waited for writes this row: isa/wgmma.cpp */
    uint64_t callee_base() const;       /* where the frame of a function begins that the active lanes call */

    /* ---- control flow: for control.cpp and barrier.cpp ---- */
    void branch(Lanes taken,
                uint32_t target); /* of the active lanes, `taken` go to target, the others to the next one */
    void branch_each(const uint32_t target[WARP_SIZE]); /* every active lane to its own target (brx.idx) */
    void
    enter(const Function *fn,
          const Inst
              *call); /* the active lanes call fn; its formals have been filled in already: see call() in control.cpp */
    void leave();     /* the active lanes return; from the outermost frame: exit */
    void exit_lanes();        /* the active lanes end */
    void wake(Lanes lanes);   /* parked lanes go on behind the instruction at which they wait */
    const Inst *at = nullptr; /* the instruction being executed */

    /* ---- state of families that lives as long as the warp ---- */
    struct AsyncState;           /* cp.async groups: isa/async.cpp */
    std::shared_ptr<void> async; /* AsyncState, made on first use */
    std::shared_ptr<void> wgmma; /* pending wgmma groups: isa/wgmma.cpp */
    Lanes carry = 0;             /* each lane's carry flag (CC.CF): isa/integer.cpp */

    /* ---- scheduling: machine/warp.cpp ---- */
    std::vector<Path> paths;
    size_t current = 0;        /* index in paths */
    uint64_t instructions = 0; /* warp instructions executed */
    uint64_t turn = 0;
    uint32_t sync_epoch =
        0; /* rises at every bar.warp.sync, shuffle, vote and block barrier: orders lanes of the warp for the race check */

    enum class Run : uint8_t { ready, waiting, ended };
    Run run(uint64_t budget); /* until the budget is spent, all lanes wait, or all have ended.  Throws Fault. */
    void start(const Function *fn, Lanes lanes); /* the lanes begin at the entry; the others never existed */
    void blame_missing(); /* throws the fault of lanes that wait for warp mates that cannot come, if there are any */
    void show(const Path &p);
    bool keep = false;             /* the budget ran out: the present path goes on in the next run */
    bool spun = false;             /* the present path jumped back too often: another one has its turn */
    void complete(Fault &f) const; /* adds kernel, place and thread, where the thrower did not know them */
    bool changed = false;          /* paths were split, woken or moved to another frame: the loop has to choose anew */

    /* barrier.cluster: lanes that have arrived in the phase that is open, and lanes whose phase has completed before they waited */
    Lanes cluster_arrived = 0, cluster_released = 0;
    Lanes cluster_waiting = 0; /* parked there */
};

/* For reports: "0-3, 7"; and "`bar.sync 0;` at file:line". */
std::string lane_list(Lanes lanes);
std::string place_text(const Warp &w, const Inst &i);

} // namespace ptxemu

#endif
