/* mbarrier objects: 64 bits in shared memory.
 *
 *   bits  0-19  arrivals that the present phase still waits for
 *   bits 20-39  arrivals that each phase expects
 *   bits 40-60  bytes that asynchronous copies still owe to the phase (two's complement: a copy may be faster than its expect_tx)
 *   bit  61     parity of the present phase
 *   bits 62-63  2: there is an mbarrier (neither zeros nor the patterns of fresh memory look like that)
 *
 * A phase is complete when no arrival and no byte is missing; then the next begins.  A state (the token that arrive returns) is a
 * copy of the object as it was before the arrival. */
#ifndef PTXEMU_ISA_MBARRIER_H
#define PTXEMU_ISA_MBARRIER_H

#include "isa/decode.h"
#include "machine/block.h"
#include "memory/access.h"

namespace ptxemu
{

constexpr uint32_t MBARRIER_MAX = (1u << 20) - 1; /* of counts, and of the magnitude of the bytes owed */

struct MBarrierBits {
    uint32_t pending = 0, expected = 0;
    int32_t bytes = 0;
    bool parity = false;

    static bool valid(uint64_t v) { return v >> 62 == 2; }
    explicit MBarrierBits(uint64_t v)
        : pending(v & MBARRIER_MAX), expected(v >> 20 & MBARRIER_MAX), bytes(int32_t(int64_t(v << 3) >> 43)),
          parity(v >> 61 & 1)
    {
    }
    static MBarrierBits fresh(uint32_t count)
    {
        MBarrierBits b(0);
        b.pending = b.expected = count;
        return b;
    }
    uint64_t pack() const
    {
        return 2ull << 62 | uint64_t(parity) << 61 | (uint64_t(uint32_t(bytes)) & 0x1fffff) << 40 |
               uint64_t(expected) << 20 | pending;
    }
};

/* An mbarrier that an instruction names: which block's, and where. */
struct MBarrierRef {
    Block *owner;
    uint64_t *at;
    unsigned lane; /* to blame */
    uint32_t offset() const { return uint32_t(reinterpret_cast<uint8_t *>(at) - owner->shared); }
};

/* The mbarrier at an address; faults where there is none. */
MBarrierRef find_mbarrier(Warp &w, unsigned lane, Space space, uint64_t address);
/* Each returns the object as it was before. */
uint64_t mbarrier_arrive(Warp &w, const MBarrierRef &b, uint32_t count);
uint64_t mbarrier_expect_bytes(Warp &w, const MBarrierRef &b, uint32_t bytes);
uint64_t mbarrier_complete_bytes(Warp &w, const MBarrierRef &b, uint32_t bytes);
/* The mbarrier owes nothing for this arrival yet: one more is expected (cp.async.mbarrier.arrive without .noinc). */
uint64_t mbarrier_expect_arrival(Warp &w, const MBarrierRef &b);
/* The race check's name for the phase that was open when the object looked like this. */
uint64_t mbarrier_phase(const MBarrierRef &b, uint64_t object);
/* What the warp did until now is published to whoever waits for that phase. */
void mbarrier_release(Warp &w, const MBarrierRef &b, uint64_t object);

/* The block whose shared memory a host pointer that resolve() gave lies in. */
Block *owner_of_shared(Warp &w, const uint8_t *p);

/* Addresses of all lanes: a base operand, which may be 32 or 64 bits wide, plus an offset. */
struct AddressOpnd {
    uint32_t op = 0; /* index in Inst::op */
    Space space = Space::generic;
    uint64_t offset = 0;
    uint64_t of(const Warp &w, const Inst &i, unsigned lane) const
    {
        const Opnd &o = i.op[op];
        return o.bits == 32 ? uint32_t(w.in<uint32_t>(o)[lane] + uint32_t(offset)) : w.in<uint64_t>(o)[lane] + offset;
    }
};
/* Appends the base of [o] as operand number `op`.  Variables of a frame are no place for copies and barriers. */
AddressOpnd decode_address(Decode &d, Inst &i, const ptx::Operand &o, Space space, uint32_t op);
/* .shared, .shared::cta, and, if it may be, .shared::cluster; generic where nothing is said. */
Space take_shared_space(Decode &d, bool cluster);

/* ---- builders, in async.cpp's table ---- */
void build_mbarrier_init(Decode &d, Inst &i);
void build_mbarrier_inval(Decode &d, Inst &i);
void build_mbarrier_arrive(Decode &d, Inst &i);
void build_mbarrier_arrive_drop(Decode &d, Inst &i);
void build_mbarrier_expect_tx(Decode &d, Inst &i);
void build_mbarrier_complete_tx(Decode &d, Inst &i);
void build_mbarrier_test_wait(Decode &d, Inst &i);
void build_mbarrier_try_wait(Decode &d, Inst &i);
void build_mbarrier_pending_count(Decode &d, Inst &i);

} // namespace ptxemu

#endif
