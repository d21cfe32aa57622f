/* What loads, stores and atomics share: addresses of the 32 lanes, memory orders and scopes, and what they tell the race check. */
#ifndef PTXEMU_ISA_MEMORY_ORDER_H
#define PTXEMU_ISA_MEMORY_ORDER_H

#include <mutex>

#include "isa/decode.h"
#include "machine/block.h"

namespace ptxemu
{

/* .volatile counts as relaxed with system scope, as the PTX memory model has it; .mmio as well. */
enum class Order : uint32_t { weak, relaxed, acquire, release, acq_rel };

/* Inst::flags of ld, st, atom, red. */
constexpr uint32_t ORDER_MASK = 7;
constexpr uint32_t FRAME_RELATIVE = 8; /* the address counts from the frame's place in local memory */

inline Order order_of(const Inst &i)
{
    return Order(i.flags & ORDER_MASK);
}
inline bool acquires(Order o)
{
    return o == Order::acquire || o == Order::acq_rel;
}
inline bool releases(Order o)
{
    return o == Order::release || o == Order::acq_rel;
}

/* ---- decoding ---- */

Space take_space(Decode &d); /* generic where there is none */
/* A scope is a promise about who may see what when; here everyone sees everything at once, so that only its spelling and the architecture are checked. */
bool take_scope(Decode &d);
/* .L1::..., .L2::... : hints for caches that the emulator does not have.  *policy: an operand with a cache policy follows. */
void take_cache_hints(Decode &d, bool *policy);
/* Decode::address, with the frame flag put into Inst::flags. */
void take_address(Decode &d, Inst &i, size_t operand, Space space);

/* ---- executing ---- */

/* The lanes' addresses; those of lanes that are not active are junk. */
void addresses_of(const Warp &w, const Inst &i, const Opnd &base, uint64_t address[WARP_SIZE]);
/* Publishes, or takes over, what the warp knows about the order of things, at the objects the lanes point at. */
void publish(Warp &w, uint8_t *const p[WARP_SIZE]);
void take_over(Warp &w, uint8_t *const p[WARP_SIZE]);
/* ---- builders of the memory family that have a file of their own: isa/load_store.cpp ---- */
void build_ld(Decode &d, Inst &i);
void build_ldu(Decode &d, Inst &i);
void build_st(Decode &d, Inst &i);

/* Guards 16-byte accesses that have to be one. */
std::mutex &wide_access();

} // namespace ptxemu

#endif
