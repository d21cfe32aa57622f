/* Everything that the driver knows: devices, contexts, and what they own.  One lock guards it all; it is released while
 * work runs. */
#ifndef PTXEMU_DRIVER_STATE_H
#define PTXEMU_DRIVER_STATE_H

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <sys/types.h>

#include "driver/api.h"
#include "driver/device.h"
#include "driver/handles.h"
#include "driver/settings.h"
#include "driver/work.h"
#include "memory/heap.h"

namespace ptxemu::driver
{

struct Capture; /* graph.h */
struct Graph;
struct GraphExec;
struct GraphNode;

constexpr int LEAST_PRIORITY = 0, GREATEST_PRIORITY = -5;

struct Stream {
    CUstream handle = nullptr; /* null for the legacy default stream and the per-thread ones */
    Context *context = nullptr;
    unsigned flags = 0; /* CU_STREAM_NON_BLOCKING */
    int priority = 0;
    uint64_t id = 0;
    bool legacy = false;
    std::map<CUstreamAttrID, CUstreamAttrValue> attributes; /* advice */
    std::shared_ptr<Op> last;
    std::vector<std::shared_ptr<Op>> waits;   /* of cuStreamWaitEvent: the next operation comes after these, too */
    std::shared_ptr<Capture> capture;         /* being recorded instead of submitted */
    std::vector<GraphNode *> capture_after;   /* what the next recorded node depends on */
    std::vector<CUgraphNode> capture_handles; /* the same as cuStreamGetCaptureInfo gave it out */
};

struct Event {
    CUevent handle = nullptr;
    Context *context = nullptr;
    unsigned flags = 0;
    std::shared_ptr<Op> op; /* the last record; null: never recorded, which counts as done */
    std::shared_ptr<Capture> capture;
    std::vector<GraphNode *> capture_at; /* recorded in a capture: what a waiting stream depends on */
};

struct Context {
    CUcontext handle = nullptr;
    Device *device = nullptr;
    bool primary = false, active = false;
    unsigned retained = 0; /* primary */
    unsigned flags = 0;
    uint64_t id = 0;
    CUresult sticky = CUDA_SUCCESS;
    size_t limits[CU_LIMIT_MAX] = {};
    CUfunc_cache cache_config = CU_FUNC_CACHE_PREFER_NONE;
    uint32_t peers = 0;             /* devices whose memory this context may access */
    std::set<uint64_t> allocations; /* what goes when the context goes */
    struct Orphan {
        std::shared_ptr<Op> last;
        bool blocking;
    };
    std::vector<Orphan> orphans; /* of destroyed streams, which still have work */
    std::shared_ptr<Stream> legacy;
    std::map<std::thread::id, std::shared_ptr<Stream>> per_thread;
};

struct LoadedModule {
    CUmodule handle = nullptr;
    Context *context = nullptr;
    std::unique_ptr<Module> code;
    std::vector<uint64_t> allocations; /* its global variables */
    std::map<std::string, CUfunction> functions;
    unsigned ptx_version = 0; /* 80 for compute_80 */
};

struct FunctionObject {
    CUfunction handle = nullptr;
    std::shared_ptr<LoadedModule> module;
    const Function *code = nullptr;
    Context *context = nullptr;
    size_t max_dynamic_shared = 0;
    int carveout = -1, cluster_policy = 0;
    bool nonportable_cluster = false;
    Dim3 required_cluster{0, 0, 0}; /* set by attribute */
};

struct Library {
    CUlibrary handle = nullptr;
    std::vector<uint8_t> image;
    std::map<CUcontext, CUmodule> modules; /* loaded on first use in a context */
    std::map<std::string, CUkernel> kernels;
};
struct Kernel {
    CUkernel handle = nullptr;
    CUlibrary library = nullptr;
    std::string name;
};

struct Pool {
    CUmemoryPool handle = nullptr;
    Device *device = nullptr;
    bool is_default = false;
    uint64_t release_threshold = 0, used = 0, used_high = 0;
    std::map<int, int> reuse; /* CU_MEMPOOL_ATTR_REUSE_...: kept, and without effect on what programs see */
};

struct State {
    std::mutex mutex;
    std::condition_variable finished; /* some operation is done */
    bool initialised = false;
    pid_t process = 0; /* that called cuInit: a child of fork() has a copy of its work, and nothing to write about it */
    uint64_t generation = 0; /* rises with ptxemu_reset: threads forget their current contexts */
    Settings settings;
    Heap heap;
    std::deque<Device> devices;
    Table<CUcontext, Context> contexts;
    Table<CUstream, Stream> streams;
    Table<CUevent, Event> events;
    Table<CUmodule, LoadedModule> modules;
    Table<CUfunction, FunctionObject> functions;
    Table<CUlibrary, Library> libraries;
    Table<CUkernel, Kernel> kernels;
    Table<CUmemoryPool, Pool> pools;
    Table<CUgraph, Graph> graphs;
    Table<CUgraphNode, GraphNode> nodes;
    Table<CUgraphExec, GraphExec> graph_execs;
    std::map<uint64_t, std::pair<unsigned, CUmemoryPool>> pool_blocks; /* addresses of cuMemAllocAsync */
    std::set<uint64_t> releasing;                                      /* cuMemFreeAsync has been called */
    std::map<uint64_t, unsigned> host_flags;                           /* of pinned and registered memory */
    std::vector<std::weak_ptr<Capture>> captures;
    std::vector<std::shared_ptr<Context>> retired; /* destroyed, but streams in somebody's hands still point at them */
    uint64_t next_serial = 1, next_id = 1;
    std::string report;       /* the last fault's */
    std::string left;         /* what was alive when its context went */
    std::string leaks_given;  /* what ptxemu_leaks returned: the caller holds on to it */
    std::string report_given; /* the same for ptxemu_last_report */

    static State &get();
    State();
    CUresult initialise(); /* cuInit */
    void reset();
    std::string leaks() const;                   /* of everything */
    std::string leaks_of(const Context &) const; /* a line each */
    std::shared_ptr<Context> new_context(Device &device, bool primary);
    void release_allocation(uint64_t address); /* wherever it is written down */
    void destroy_contents(Context &context);   /* its work is done; takes everything that it owns away */
};

/* The calling thread's stack of current contexts. */
std::vector<CUcontext> &current_stack(State &s);

} // namespace ptxemu::driver

#endif
