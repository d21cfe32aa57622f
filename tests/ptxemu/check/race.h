/* Shared-memory races by happens-before.
 *
 * Every warp of a block has a vector clock with an entry for each warp of the block; the copies of the asynchronous engine (bulk
 * copies) are known one by one, as they complete in any order.  A release (barrier arrival, mbarrier arrive, atomic or store with
 * release semantics) publishes the warp's clock, an acquire (leaving a barrier, a successful mbarrier wait, an acquiring atomic or
 * load) joins it.  Two accesses to a byte, at least one of them a write, race when neither's clock covers the other's and they are
 * not both atomic.  Lanes of one warp are ordered by Warp::sync_epoch (bar.warp.sync and anything stronger), and by program order
 * within a lane.
 *
 * A cp.async destination is `pending` for the copying lane until that lane has waited for the group: any access to it, by anyone,
 * is early_async_read; from the wait on it counts as written by that lane at that moment. */
#ifndef PTXEMU_CHECK_RACE_H
#define PTXEMU_CHECK_RACE_H

#include <cstdint>
#include <memory>

#include "machine/fault.h"
#include "types.h"

namespace ptxemu
{

struct Block;
struct Warp;
struct Inst;
enum class Use : uint8_t; /* memory/access.h */

class RaceShadow
{
  public:
    RaceShadow(uint32_t shared_bytes, uint32_t warps);
    ~RaceShadow();

    /* ---- accesses: offset in shared memory, whose bounds the caller has checked; throw Fault ---- */
    /* Of some lanes of a warp in one instruction. */
    void access(const Warp &w, Use use, Lanes lanes, const uint32_t offset[WARP_SIZE], uint32_t bytes);
    /* Of one lane. */
    void read(const Warp &w, unsigned lane, uint32_t offset, uint32_t bytes, bool sync);
    void write(const Warp &w, unsigned lane, uint32_t offset, uint32_t bytes, bool sync);
    void atomic(const Warp &w, unsigned lane, uint32_t offset, uint32_t bytes);
    /* As atomic, but by an operation on an mbarrier, which orders by release and acquire alone. */
    void touch(const Warp &w, unsigned lane, uint32_t offset, uint32_t bytes);
    void pending(const Warp &w, unsigned lane, uint32_t offset, uint32_t bytes); /* cp.async issued */
    void landed(const Warp &w, unsigned lane, uint32_t offset, uint32_t bytes);  /* that lane waited for it */
    /* The copy engine writes or reads on behalf of an instruction of `w` (bulk copies).  Returns the copy's number, to be published
     * to the mbarrier (or given to acquire_engine when a bulk group was waited for). */
    uint32_t engine_write(const Warp &w, uint32_t offset, uint32_t bytes);
    uint32_t engine_read(const Warp &w, uint32_t offset, uint32_t bytes);

    /* ---- order ---- */
    void barrier_release(uint32_t barrier, uint32_t warp); /* arrive: publish into the barrier */
    void barrier_acquire(uint32_t barrier,
                         uint32_t warp);          /* leave: join what was published in the phase that completed */
    void release(uint64_t object, uint32_t warp); /* publish into a sync object: an mbarrier's or a flag's offset */
    void acquire(uint64_t object, uint32_t warp);
    void release_foreign(uint64_t object); /* by another block of the cluster: it may know of everything done here */
    void engine_release(uint64_t object, uint32_t copy);
    void acquire_engine(uint32_t warp, uint32_t copy); /* cp.async.bulk.wait_group */
    void fence(uint32_t warp);                         /* membar/fence: synchronising accesses publish even without */
    /* fence.proxy.async: what the warp knows of as written may be read by the copy engine. */
    void proxy_fence(uint32_t warp);

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

} // namespace ptxemu

#endif
