/* One door to memory for every instruction: from the addresses of 32 lanes to host pointers, with all checks and counts on the way.
 *
 * For each active lane: the space (a generic address is resolved first), bounds, life, alignment, whether what is read was
 * ever written, and for shared memory the race check.  What is wrong is thrown as a Fault that blames the first lane. */
#ifndef PTXEMU_MEMORY_ACCESS_H
#define PTXEMU_MEMORY_ACCESS_H

#include "machine/block.h"

namespace ptxemu
{

/* f(lane) for every lane of a set, in the order of the lanes: where several lanes meet in one place, the last one wins. */
template <class F>
inline void each_lane(Lanes lanes, F f)
{
    for (; lanes; lanes &= lanes - 1)
        f(unsigned(__builtin_ctz(lanes)));
}

enum class Use : uint8_t {
    read,
    write,
    atomic,      /* reads and writes; orders itself with other atomics: no race with them */
    sync_read,   /* ld.volatile/relaxed/acquire: no race with atomics and sync_writes */
    sync_write,  /* st.volatile/relaxed/release */
    async_read,  /* source of cp.async / bulk store */
    async_write, /* destination of cp.async: pending until the copy is waited for; see check/race.h */
};

struct Access {
    Space space; /* as the instruction says; generic is resolved per lane */
    Use use;
    uint32_t bytes;      /* a lane; alignment expected: the same (16 at most), unless `align` says otherwise */
    uint32_t align = 0;  /* 0: as bytes */
    Lanes undefined = 0; /* write: lanes whose value was never written: the bytes become never-written */
    bool count = true;   /* for the profiler: false where the caller counts by itself (ldmatrix, TMA) */
    bool race = true;    /* false where the caller tells the race check itself (the copy engine) */
};

/* Fills p[l] for the lanes of `lanes`; each points at `bytes` bytes.  Returns the lanes whose bytes were partly or wholly never written,
 * for local memory only, where that is passed on to the register (elsewhere it is a Fault). */
Lanes resolve(Warp &w, const Access &a, const uint64_t address[WARP_SIZE], Lanes lanes, uint8_t *p[WARP_SIZE]);

/* One range for the whole warp (bulk copies, descriptors): address in `space`, any size. */
uint8_t *resolve_range(Warp &w, Space space, Use use, uint64_t address, size_t bytes, uint32_t align);

/* Writes that may change what a spinning block waits for call this when the value changed. */
inline void note_progress(Warp &w)
{
    w.block->progress++; /* not the grid's: that would be a contended cache line for every store */
}

/* A generic address' space and the address within that space; global for anything outside the windows. */
Space classify(uint64_t generic, uint64_t *within);

} // namespace ptxemu

#endif
