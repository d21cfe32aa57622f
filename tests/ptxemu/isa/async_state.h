/* cp.async copies that a warp has issued and not yet waited for, and its bulk copies that belong to groups. */
#ifndef PTXEMU_ISA_ASYNC_STATE_H
#define PTXEMU_ISA_ASYNC_STATE_H

#include <vector>

#include "machine/block.h"

namespace ptxemu
{

/* Groups are counted a lane: a copy belongs to the group that was open when it was issued, and is due once the lane waits for
 * that group or a later one. */
struct LaneGroups {
    uint32_t open[WARP_SIZE] = {};

    void commit(Lanes lanes)
    {
        for (unsigned l = 0; l < WARP_SIZE; l++)
            open[l] += lanes >> l & 1;
    }
    /* Whether a copy of the lane that belongs to `group` is waited for, when all but the last `but` groups are. */
    bool due(unsigned lane, uint32_t group, uint32_t but) const { return uint64_t(group) + but < open[lane]; }
};

struct Warp::AsyncState {
    struct Copy { /* of cp.async: one instruction's, those of its lanes whose group is the same */
        Lanes lanes;
        uint32_t group, bytes;
        uint32_t offset[WARP_SIZE]; /* in shared memory */
    };
    struct Bulk { /* of cp.async.bulk with .bulk_group: one lane's */
        unsigned lane;
        uint32_t group;
        uint32_t copy; /* the race check's number, 0 if it did not see it */
        uint64_t bytes;
    };
    LaneGroups groups, bulk_groups;
    std::vector<Copy> copies;
    std::vector<Bulk> bulks;

    static AsyncState &of(Warp &w)
    {
        if (!w.async)
            w.async = std::make_shared<AsyncState>();
        return *static_cast<AsyncState *>(w.async.get());
    }
};

inline void count_issued(Block &b, uint64_t bytes)
{
    Counters &c = b.counters;
    c.async_bytes += bytes;
    c.bytes_in_flight += bytes;
    c.max_bytes_in_flight = c.max_bytes_in_flight > c.bytes_in_flight ? c.max_bytes_in_flight : c.bytes_in_flight;
}

inline void count_landed(Block &b, uint64_t bytes)
{
    b.counters.bytes_in_flight -= bytes < b.counters.bytes_in_flight ? bytes : b.counters.bytes_in_flight;
}

} // namespace ptxemu

#endif
