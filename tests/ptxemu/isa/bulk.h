/* What the instructions of the copy engine share: bulk copies of ranges (bulk.cpp) and of tensor tiles (tma.cpp).
 *
 * Bytes move when the instruction executes; its mbarrier learns of them at once, and the race check sees to it that nobody relies
 * on that.  All active lanes execute such an instruction, one by one; usually one lane was elected. */
#ifndef PTXEMU_ISA_BULK_H
#define PTXEMU_ISA_BULK_H

#include "isa/async_state.h"
#include "isa/mbarrier.h"

namespace ptxemu
{

constexpr uint32_t NO_OPERAND = ~0u;

/* Reductions: to[k] = op(to[k], from[k]) over `bytes` bytes, an atomic step an element. */
enum class RedOp : uint8_t { add, min, max, inc, dec, and_, or_, xor_, none };
using Reduction = void (*)(uint8_t *to, const uint8_t *from, size_t bytes, bool in_shared);
Reduction find_reduction(RedOp op, Type t); /* nullptr: there is none */
RedOp take_red_op(Decode &d);               /* an error if there is none */

/* Operands of a copy, as indices in Inst::op where they are not addresses. */
struct BulkInst {
    AddressOpnd to, from, bar, map;
    uint32_t size = NO_OPERAND, mask = NO_OPERAND; /* bytes; blocks of a multicast */
    uint32_t coordinates = NO_OPERAND;             /* the first of `rank` */
    unsigned rank = 0;
    RedOp op = RedOp::none;     /* copies */
    Reduction reduce = nullptr; /* where the type is known when the module is loaded */
};

/* Calls f(lane) with that lane alone being active, so that faults blame it. */
template <class F>
Step one_by_one(Warp &w, F f)
{
    const Lanes all = w.active;
    each_lane(all, [&](unsigned l) {
        w.active = 1u << l;
        f(l);
    });
    w.active = all;
    return Step::next;
}

/* One destination of a copy into shared memory, with its mbarrier. */
struct Delivery {
    Block *owner;
    uint8_t *to;
    MBarrierRef bar;
};
/* Calls deliver(Delivery) for the block that the addresses name, or for each block of the multicast. */
template <class F>
void each_delivery(Warp &w, const Inst &i, const BulkInst &x, unsigned lane, size_t bytes, uint32_t align, F deliver);

Delivery find_delivery(Warp &w, unsigned lane, Space space, uint64_t to, uint64_t bar, size_t bytes, uint32_t align);
/* The bytes have arrived: tells the race check and the mbarrier. */
void delivered(Warp &w, const Delivery &d, size_t bytes);
/* The engine reads shared memory of the own block for a copy that a bulk group waits for. */
void reading_for_group(Warp &w, unsigned lane, const uint8_t *from, size_t bytes);
/* For the profiler: global bytes that the engine moves. */
void count_engine_global(Warp &w, bool store, uint64_t address, size_t bytes);

/* The block number `rank` of a multicast sees the same offset as its own address. */
inline uint64_t address_in_block(uint64_t address, unsigned rank)
{
    return (address & 0xffffff) | uint64_t(rank + 1) << 24;
}

template <class F>
void each_delivery(Warp &w, const Inst &i, const BulkInst &x, unsigned lane, size_t bytes, uint32_t align, F deliver)
{
    const uint64_t to = x.to.of(w, i, lane), bar = x.bar.of(w, i, lane);
    if (x.mask == NO_OPERAND)
        return deliver(find_delivery(w, lane, x.to.space, to, bar, bytes, align));
    const uint32_t mask = w.in<uint16_t>(i.op[x.mask])[lane];
    if (!mask || mask >> w.block->cluster->blocks.size())
        fault(FaultKind::out_of_bounds, int(lane), "a multicast to the blocks of mask 0x%x in a cluster of %zu", mask,
              w.block->cluster->blocks.size());
    for (unsigned rank = 0; mask >> rank; rank++)
        if (mask >> rank & 1)
            deliver(find_delivery(w, lane, Space::shared_cluster, address_in_block(to, rank),
                                  address_in_block(bar, rank), bytes, align));
}

/* ---- decoding ---- */

/* Operands are appended through this, which counts them. */
class Operands
{
  public:
    Operands(Decode &d, Inst &i) : d_(d), i_(i) {}
    AddressOpnd address(const ptx::Operand &o, Space space) { return decode_address(d_, i_, o, space, n_++); }
    AddressOpnd address(size_t k, Space space) { return address(d_.operand(k), space); }
    uint32_t in(size_t k, Type t) { return d_.in(k, t), n_++; }
    uint32_t in(const ptx::Operand &o, Type t) { return d_.in(o, t), n_++; }

  private:
    Decode &d_;
    Inst &i_;
    uint32_t n_ = 0;
};
/* The operands from number k on, in their order: the mask of a multicast, then the cache policy, which nobody looks at. */
void take_tail(Decode &d, Operands &o, size_t k, BulkInst *x, bool multicast);
/* ---- builders of tma.cpp, in bulk.cpp's table ---- */
void build_tensor_copy(Decode &d, Inst &i);
void build_tensor_prefetch(Decode &d, Inst &i);
void build_tensor_reduce(Decode &d, Inst &i);

} // namespace ptxemu

#endif
