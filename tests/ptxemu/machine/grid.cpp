/* Blocks over host threads.
 *
 * A unit is a cluster: its blocks run together on one host thread.  A host thread runs its unit in slices.  As long as the unit makes
 * progress (changes memory, or computes without looking at flags), it goes on until it ends; a unit that only waits is set aside, and
 * the thread starts another one, up to the number of blocks that the device would hold at once.  So a block that waits for another one finds that it runs,
 * exactly where it would on the device, and a kernel that needs more blocks than fit deadlocks here as it does there. */
#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#include "check/race.h"
#include "machine/block.h"
#include "memory/heap.h"

namespace ptxemu
{
namespace
{
/* Warp instructions: until the next warp of the block has its turn; until a unit's progress is looked at; and the same for a unit
 * that only waited before, to see whether what it waits for has come. */
constexpr uint64_t TURN = 2048, SLICE = 16384, GLANCE = 512;
/* Slices with progress until other units have a turn all the same: a waiting loop may count its rounds in memory. */
constexpr unsigned LONG = 64;
/* How many patiences a loop has that does not even look at memory. */
constexpr unsigned ENDLESS = 20;
/* To start a host thread costs more than a small grid: the others come when the first one has been busy for this long. */
constexpr std::chrono::microseconds ALONE(100);
/* What memory holds that nobody has written: wrong programs should not work by luck. */
constexpr uint8_t PATTERN = 0xcb;

uint64_t round_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

Dim3 position(uint64_t index, const Dim3 &in)
{
    return {uint32_t(index % in.x), uint32_t(index / in.x % in.y), uint32_t(index / in.x / in.y)};
}

struct Unit {
    uint64_t index = 0;
    Cluster cluster;
    std::vector<std::unique_ptr<Block>> blocks;
    uint64_t slice = SLICE;
    uint64_t alone = 0; /* warp instructions since it last changed memory or looked for a change of it */
    uint64_t sum(uint64_t Block::*what) const
    {
        uint64_t n = 0;
        for (auto &b : blocks)
            n += b.get()->*what;
        return n;
    }
    uint64_t progress() const { return sum(&Block::progress); }
    uint64_t polls() const { return sum(&Block::polls); }
};

void give_memory(Block &b, const Launch &launch)
{
    const Function &fn = *launch.fn;
    const bool check = launch.options.check;
    b.shared_bytes = std::max(fn.shared_bytes, fn.dynamic_shared_at + launch.dynamic_shared);
    constexpr size_t ALIGN = 1024; /* swizzled tiles: nothing depends on it, but vector loads like it */
    b.shared_storage.assign(b.shared_bytes + ALIGN, PATTERN);
    const uintptr_t raw = reinterpret_cast<uintptr_t>(b.shared_storage.data());
    b.shared = b.shared_storage.data() + (round_up(raw, ALIGN) - raw);
    b.stack_bytes = uint32_t(round_up(std::max(fn.stack_bytes, fn.frame_bytes), 16));
    b.local.assign(size_t(b.stack_bytes) * launch.block.count(), PATTERN);
    if (!check)
        return;
    const uint8_t written = !launch.options.init;
    b.shared_written.assign(b.shared_bytes, written);
    b.local_written.assign(b.local.size(), written);
    if (launch.options.race)
        b.race = std::make_unique<RaceShadow>(b.shared_bytes, uint32_t(b.warps.size()));
}

std::unique_ptr<Block> make_block(Grid &g, Cluster &cluster, uint32_t rank)
{
    const Launch &launch = g.launch;
    auto b = std::make_unique<Block>();
    const Dim3 in = position(rank, cluster.dims);
    b->grid = &g;
    b->cluster = &cluster;
    b->cluster_rank = rank;
    b->id = {cluster.id.x * cluster.dims.x + in.x, cluster.id.y * cluster.dims.y + in.y,
             cluster.id.z * cluster.dims.z + in.z};
    b->linear = b->id.x + launch.grid.x * (b->id.y + launch.grid.y * b->id.z);
    const uint32_t threads = uint32_t(launch.block.count());
    b->live_threads = threads;
    b->warps.resize((threads + WARP_SIZE - 1) / WARP_SIZE);
    for (uint32_t k = 0; k < b->warps.size(); k++) {
        const uint32_t lanes = std::min(WARP_SIZE, threads - k * WARP_SIZE);
        b->warps[k].block = b.get();
        b->warps[k].index = k;
        b->warps[k].start(launch.fn, ALL_LANES >> (WARP_SIZE - lanes));
    }
    give_memory(*b, launch);
    return b;
}

std::unique_ptr<Unit> make_unit(Grid &g, uint64_t index)
{
    auto u = std::make_unique<Unit>();
    u->index = index;
    u->cluster.dims = g.launch.cluster;
    u->cluster.id = position(index, g.cluster_grid);
    const uint32_t n = uint32_t(g.launch.cluster.count());
    for (uint32_t r = 0; r < n; r++) {
        u->blocks.push_back(make_block(g, u->cluster, r));
        u->cluster.blocks.push_back(u->blocks.back().get());
    }
    return u;
}

enum class Outcome { ended, working, idle };

/* Runs all warps of the unit in turn until the slice is spent.  *spent: warp instructions. */
Outcome run_slice(Unit &u, uint64_t *spent)
{
    const uint64_t before = u.progress(), polls = u.polls();
    const uint64_t turn = std::min<uint64_t>(TURN, u.slice / u.blocks[0]->warps.size() + 1);
    *spent = 0;
    while (*spent < u.slice) {
        bool ready = false, waiting = false;
        for (auto &b : u.blocks)
            for (Warp &w : b->warps) {
                const uint64_t start = w.instructions;
                const Warp::Run r = w.run(turn);
                *spent += w.instructions - start;
                ready |= r == Warp::Run::ready || w.instructions != start;
                waiting |= r == Warp::Run::waiting;
            }
        if (ready)
            continue;
        if (!waiting)
            return Outcome::ended;
        for (auto &b : u.blocks)
            if (b->live_threads)
                blame_stuck_block(*b);
    }
    const bool changed = u.progress() != before, polled = u.polls() != polls;
    u.alone = changed || polled ? 0 : u.alone + *spent;
    u.slice = polled && !changed ? GLANCE : SLICE;
    return polled && !changed ? Outcome::idle : Outcome::working;
}

class Runner
{
  public:
    Runner(Grid &g, uint64_t units, uint64_t resident, Counters *total)
        : grid_(g), units_(units), resident_max_(resident), total_(total)
    {
    }
    void lead(uint64_t threads); /* on the calling thread and, once it is worth it, on others beside it */
    void finish();

  private:
    std::unique_ptr<Unit> begin();
    bool may_begin() const { return !failed() && next_ < units_ && resident_ < resident_max_; }
    bool failed() const { return failed_unit_ != UINT64_MAX; }
    void work(bool leads); /* a host thread's whole life */
    void call_helpers();
    void end(Unit &u, Counters *sum);
    void fail(uint64_t unit); /* with the exception that is being handled */
    void blame_deadlock(Unit &u);

    Grid &grid_;
    const uint64_t units_, resident_max_;
    Counters *total_;
    std::atomic<uint64_t> next_{0}, resident_{0};
    std::atomic<uint64_t> failed_unit_{
        UINT64_MAX}; /* the lowest; those behind it stop, those before it may still fail earlier */
    std::mutex lock_;
    std::exception_ptr failure_; /* Fault, or std::bad_alloc when the host has no memory left */
    const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
    uint64_t helpers_wanted_ = 0; /* of the leader, as is the list */
    std::vector<std::thread> helpers_;
    std::map<uint64_t, std::string> output_; /* of blocks, in their order */
};

/* The next unit, if one is left and the device has room. */
std::unique_ptr<Unit> Runner::begin()
{
    uint64_t index;
    {
        std::lock_guard<std::mutex> hold(lock_);
        if (!may_begin())
            return nullptr;
        index = next_++;
        resident_++;
    }
    try {
        return make_unit(grid_, index);
    } catch (const std::bad_alloc &) {
        resident_--;
        fail(index);
        return nullptr;
    }
}

void Runner::end(Unit &u, Counters *sum)
{
    for (auto &b : u.blocks) {
        sum->add(b->counters);
        if (b->output.empty())
            continue;
        std::lock_guard<std::mutex> hold(lock_);
        output_[b->linear] = std::move(b->output);
    }
    resident_--;
    grid_.progress++;
}

void Runner::fail(uint64_t unit)
{
    std::lock_guard<std::mutex> hold(lock_);
    if (unit >= failed_unit_)
        return;
    failure_ = std::current_exception();
    failed_unit_ = unit;
    grid_.stop = true;
}

/* All blocks that the device holds wait, and have done so for long. */
void Runner::blame_deadlock(Unit &u)
{
    for (auto &b : u.blocks)
        for (Warp &w : b->warps) {
            if (w.exited == ALL_LANES || !w.at)
                continue;
            Fault f;
            f.kind = FaultKind::deadlock;
            f.what = format(
                "no block has changed memory for more than %llu warp instructions; this one loops here. %llu of %llu "
                "blocks have begun, and the device holds %llu at once",
                (unsigned long long)grid_.launch.options.patience, (unsigned long long)next_,
                (unsigned long long)units_, (unsigned long long)resident_max_);
            w.complete(f);
            throw f;
        }
}

void Runner::call_helpers()
{
    if (!helpers_wanted_ || next_ >= units_ || std::chrono::steady_clock::now() - start_ < ALONE)
        return;
    try {
        for (; helpers_wanted_; helpers_wanted_--)
            helpers_.emplace_back([this] { work(false); });
    } catch (const std::system_error &) {
        helpers_wanted_ = 0; /* the host gives no more threads: those that are there do the work */
    }
}

void Runner::lead(uint64_t threads)
{
    helpers_wanted_ = std::min({threads, units_, resident_max_}) - 1;
    work(true);
    for (std::thread &t : helpers_)
        t.join();
}

void Runner::work(bool leads)
{
    std::vector<std::unique_ptr<Unit>> mine;
    Counters sum;
    size_t k = 0;
    uint64_t idle = 0, seen = 0;
    unsigned slices = 0;
    bool another = true;
    for (;;) {
        if (leads)
            call_helpers();
        if (another && may_begin())
            if (auto u = begin()) {
                mine.push_back(std::move(u));
                k = mine.size() - 1;
            }
        another = false;
        if (mine.empty()) {
            if (failed() || next_ >= units_)
                break;
            /* the other threads' units fill the device */
            std::this_thread::sleep_for(std::chrono::microseconds(50));
            another = true;
            continue;
        }
        Unit &u = *mine[k];
        Outcome o = Outcome::ended;
        uint64_t spent = 0;
        const uint64_t before = u.progress();
        bool dropped = u.index > failed_unit_;
        try {
            if (!dropped)
                o = run_slice(u, &spent);
            grid_.progress += u.progress() - before + (o == Outcome::working); /* computing is progress, too */
            if (grid_.progress != seen) {
                seen = grid_.progress;
                idle = 0;
            }
            idle += o == Outcome::idle ? spent : 0;
            if (u.alone / ENDLESS > grid_.launch.options.patience)
                blame_deadlock(u);
            dropped |= failed() && o == Outcome::idle; /* it may wait for the block that has failed */
            const uint64_t patience = std::max<uint64_t>(grid_.launch.options.patience, 4 * SLICE * mine.size());
            if (!dropped && o == Outcome::idle && idle > patience && !may_begin())
                blame_deadlock(*mine[0]);
        } catch (const std::bad_alloc &) {
            fail(u.index);
            dropped = true;
        } catch (const Fault &) {
            fail(u.index);
            dropped = true;
        }
        if (dropped || o == Outcome::ended) {
            end(u, &sum);
            mine.erase(mine.begin() + long(k));
            k = 0;
            slices = 0;
            another = mine.empty();
        } else if (o == Outcome::idle || ++slices == LONG) {
            k = (k + 1) % mine.size();
            slices = 0;
            another = true;
        }
    }
    std::lock_guard<std::mutex> hold(lock_);
    total_->add(sum);
}

void Runner::finish()
{
    for (auto &o : output_)
        fwrite(o.second.data(), 1, o.second.size(), stdout);
    if (!output_.empty())
        fflush(stdout);
    if (failed())
        std::rethrow_exception(failure_);
}

/* A cooperative grid's workspace: {u32 size; u32 barrier}, which the driver provides and cooperative groups use. */
class Workspace
{
  public:
    explicit Workspace(const Launch &l) : launch_(l)
    {
        if (!l.cooperative)
            return;
        constexpr uint32_t BYTES = 256;
        address =
            l.heap->allocate(l.device, BYTES, 256, AllocKind::device, "the workspace of a cooperative launch", true);
        if (!address)
            fault(FaultKind::out_of_bounds, -1, "no device memory is left for the workspace of a cooperative launch");
        memcpy(reinterpret_cast<void *>(address), &BYTES, sizeof BYTES);
        l.heap->mark_written(address, BYTES);
    }
    ~Workspace()
    {
        if (address)
            launch_.heap->release(address);
    }
    Workspace(const Workspace &) = delete;
    uint64_t address = 0;

  private:
    const Launch &launch_;
};

uint64_t next_grid_id()
{
    static std::atomic<uint64_t> n{0};
    return ++n;
}
} // namespace

void run_grid(const Launch &launch, Counters *counters)
{
    Grid g;
    g.launch = launch;
    g.id = next_grid_id();
    g.params = launch.params;
    g.params.resize(std::max<size_t>(g.params.size(), 16));
    const Workspace workspace(launch);
    g.workspace = workspace.address;
    const Dim3 &c = launch.cluster;
    g.cluster_grid = {launch.grid.x / c.x, launch.grid.y / c.y, launch.grid.z / c.z};
    const uint64_t units = g.cluster_grid.count();
    const uint64_t blocks =
        uint64_t(occupancy(*launch.fn, unsigned(launch.block.count()), launch.dynamic_shared, *launch.limits)) *
        launch.limits->sm_count;
    const uint64_t resident = launch.cooperative ? units : std::max<uint64_t>(1, blocks / c.count());
    Runner runner(g, units, resident, counters);
    static const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
    const uint64_t want = launch.options.threads ? launch.options.threads : cores;
    runner.lead(want);
    runner.finish();
}

/* The rules of the occupancy calculator: warps are allocated by fours, a warp's registers by 256, and from sm_80 on the system keeps
 * 1 KiB of shared memory a block. */
unsigned occupancy(const Function &fn, unsigned threads, size_t dynamic_shared, const Limits &limits)
{
    if (!threads || threads > 1024 || (fn.max_threads && threads > fn.max_threads))
        return 0;
    const uint64_t shared = std::max<uint64_t>(fn.shared_bytes, fn.dynamic_shared_at + dynamic_shared);
    if (shared > std::max(limits.max_shared_optin, limits.max_shared_per_block))
        return 0;
    const uint64_t warps = (threads + WARP_SIZE - 1) / WARP_SIZE;
    uint64_t n = std::min<uint64_t>(limits.max_blocks_per_sm, limits.max_threads_per_sm / WARP_SIZE / warps);
    if (fn.regs_for_occupancy) {
        const uint64_t a_warp = round_up(uint64_t(fn.regs_for_occupancy) * WARP_SIZE, 256);
        n = std::min(n, limits.regs_per_sm / a_warp / 4 * 4 / warps);
    }
    const bool reserves = limits.sm >= 80;
    const uint64_t taken = round_up(shared + (reserves ? 1024 : 0), reserves ? 128 : 256);
    if (taken)
        n = std::min(n, limits.shared_per_sm / taken);
    return unsigned(n);
}

} // namespace ptxemu
