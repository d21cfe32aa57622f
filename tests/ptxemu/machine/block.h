/* A thread block (CTA) in flight, and the grid that it belongs to. */
#ifndef PTXEMU_MACHINE_BLOCK_H
#define PTXEMU_MACHINE_BLOCK_H

#include <atomic>
#include <map>
#include <memory>
#include <vector>

#include "machine/warp.h"
#include "profile/counters.h"

namespace ptxemu
{

struct Grid;
struct Cluster;
class RaceShadow;
class Heap;
struct Allocation;

/* One of the 16 hardware barriers of a block (bar / barrier). */
struct Barrier {
    uint32_t expected = 0;    /* threads of this phase; 0: no phase has begun */
    bool whole_block = false; /* no count was given: every thread that has not exited */
    uint32_t popc = 0;        /* bar.red: lanes whose predicate held, of `reduced` */
    uint32_t reduced = 0;
    int reduction = 0;       /* which bar.red, 0 for none: all must agree */
    std::vector<Lanes> came; /* a warp each: lanes that have arrived in this phase */
    struct Waiting {
        uint32_t warp;
        Lanes lanes;
        const Inst *inst; /* bar.red: where its result goes */
        Frame *frame;
    };
    std::vector<Waiting> waiting;
};

/* The allocations that instructions met last, by the instruction's place: memory/access.cpp asks the heap only when an instruction comes to
 * another allocation, or when the heap has changed. */
struct RecentAllocations {
    static constexpr size_t N = 32;
    uint64_t version = 0; /* of the heap */
    const Allocation *found[N] = {};
};

struct Block {
    Grid *grid = nullptr;
    Cluster *cluster = nullptr; /* never null; a launch without clusters has clusters of one block */
    Dim3 id;
    uint32_t linear = 0; /* index in the grid, x fastest */
    uint32_t cluster_rank = 0;
    std::vector<Warp> warps;
    uint8_t *shared = nullptr; /* shared_bytes long */
    uint32_t shared_bytes = 0; /* static + dynamic */
    uint32_t group_scratch =
        0; /* offset of the system's part, which lies behind the kernel's: %reserved_smem_offset_1 */
    std::vector<uint8_t> shared_storage;
    /* Per thread: stack_bytes of local memory, thread t's at local + t * stack_bytes. */
    std::vector<uint8_t> local;
    uint32_t stack_bytes = 0;
    std::vector<uint8_t> local_written; /* a byte each, checks on */
    std::vector<uint8_t> shared_written;
    std::unique_ptr<RaceShadow> race; /* checks on */
    Barrier barriers[16];
    std::map<uint64_t, uint64_t>
        bulk_bytes; /* that bulk copies brought and nobody has waited for, by phase of an mbarrier */
    uint32_t live_threads = 0;
    Counters counters;
    RecentAllocations recent;
    std::string output;    /* of printf */
    uint64_t progress = 0; /* its part of Grid::progress, which the grid adds up from time to time */
    uint64_t polls = 0;    /* atomics, strong loads, waits: what a block that waits for others cannot do without */
};

/* Blocks that are guaranteed to run together and see each other's shared memory. */
struct Cluster {
    Dim3 dims;                       /* blocks in x, y, z */
    Dim3 id;                         /* of the cluster in the grid */
    std::vector<Block *> blocks;     /* by rank */
    uint32_t arrived = 0, phase = 0; /* barrier.cluster: threads */
};

/* Switches of a launch; from the environment, see README. */
struct Options {
    bool check = true;    /* NB_EMU_CHECK=0 turns everything off that costs time; bounds are always checked */
    bool init = true;     /* with check: never-written memory and registers; else everything counts as written */
    bool race = true;     /* with check: races in shared memory, and copies read before their wait */
    unsigned threads = 0; /* host threads; 0: as many as cores */
    uint64_t patience =
        50000000; /* warp instructions of a block without any progress of the grid before a deadlock is called */
    bool profile = false;
};

struct Limits { /* of the emulated device */
    unsigned sm = 80;
    char sm_suffix = 0;
    unsigned sm_count = 4;
    unsigned max_shared_per_block = 0, max_shared_optin = 0, shared_per_sm = 0, regs_per_sm = 65536,
             max_threads_per_sm = 0, max_blocks_per_sm = 0;
};

struct Launch {
    const Module *module = nullptr;
    const Function *fn = nullptr;
    Dim3 grid, block, cluster;
    uint32_t dynamic_shared = 0;
    bool cooperative = false;
    std::vector<uint8_t> params; /* fn->param_bytes */
    const Limits *limits = nullptr;
    Options options;
    Heap *heap = nullptr; /* global memory that this launch's device may access */
    unsigned device = 0;
};

struct Grid {
    Launch launch;
    uint64_t id = 0; /* %gridid */
    std::atomic<uint64_t> progress{
        0}; /* rises when something happened that a waiting block might wait for: a store that changed
                                                 memory, an atomic that changed memory, a block's end */
    std::atomic<bool> stop{false}; /* a fault was found: all blocks end */
    Dim3 cluster_grid;             /* clusters in x, y, z */
    uint64_t workspace =
        0; /* cooperative launches: where the grid's barrier lies (%envreg1, %envreg2), in global memory */
    std::vector<uint8_t> params; /* at a host address that ld.param and generic accesses to it use */
};

/* Runs a grid to its end.  Throws Fault (the first in block order when several blocks fail at once is not promised).  Adds to *counters. */
void run_grid(const Launch &launch, Counters *counters);

/* Blocks of this function that fit into an SM at once; 0: not one. */
unsigned occupancy(const Function &fn, unsigned threads, size_t dynamic_shared, const Limits &limits);

/* ---- barriers: machine/barrier.cpp, used by isa/barrier.cpp ---- */
enum class BarrierRed : int { none, popc, and_, or_ };
/* The active lanes arrive at barrier `id`, of `threads` threads (0: all of the block).  sync: and wait: the result says whether the barrier
 * completed now (then the others have been woken) or the lanes are parked.  When a reduction is complete, its result is written to
 * operand 0 of every waiting instruction (popc: a u32, and/or: a predicate). */
Step barrier_arrive(Warp &w, uint32_t id, uint32_t threads, bool sync, BarrierRed red, Lanes predicate);
void barriers_after_exit(Block &b); /* threads have ended: barriers that waited for them may be complete */
/* Nobody in the block can go on, and nothing outside of it can help: throws the fault that says who waits where. */
[[noreturn]] void blame_stuck_block(Block &b);
Step cluster_arrive(Warp &w, bool wait_too);
Step cluster_wait(Warp &w);

} // namespace ptxemu

#endif
