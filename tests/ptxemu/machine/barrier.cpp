/* The 16 barriers of a block, and the barrier of a cluster.
 *
 * Hardware counts a warp's arrival as 32 threads whatever became of its other lanes.  So lanes that have exited, or never existed, count
 * as soon as all the others of their warp have come; and a barrier without a count waits for everyone who is still there. */
#include "check/race.h"
#include "machine/block.h"

namespace ptxemu
{
namespace
{
/* The cluster's barrier as a sync object of the race check: no offset in shared memory is that large. */
constexpr uint64_t CLUSTER_OBJECT = ~0ull;

Lanes come_or_gone(const Block &b, const Barrier &bar, size_t warp)
{
    return bar.came[warp] | b.warps[warp].exited;
}

uint32_t arrivals(const Block &b, const Barrier &bar)
{
    uint32_t n = 0;
    for (size_t k = 0; k < b.warps.size(); k++)
        if (bar.came[k])
            n += come_or_gone(b, bar, k) == ALL_LANES ? WARP_SIZE : uint32_t(__builtin_popcount(bar.came[k]));
    return n;
}

bool complete(const Block &b, const Barrier &bar)
{
    if (!bar.whole_block)
        return arrivals(b, bar) >= bar.expected;
    for (size_t k = 0; k < b.warps.size(); k++)
        if (come_or_gone(b, bar, k) != ALL_LANES)
            return false;
    return true;
}

void deliver(const Barrier &bar, const Barrier::Waiting &waiting)
{
    const Opnd &d = waiting.inst->op[0];
    const BarrierRed red = BarrierRed(bar.reduction);
    if (red == BarrierRed::popc) {
        uint32_t *out = reinterpret_cast<uint32_t *>(waiting.frame->rows[d.slot].bytes);
        for (unsigned l = 0; l < WARP_SIZE; l++)
            if (waiting.lanes >> l & 1)
                out[l] = bar.popc;
    } else if (red != BarrierRed::none) {
        const bool value = red == BarrierRed::or_ ? bar.popc > 0 : bar.popc == bar.reduced;
        Lanes &p = waiting.frame->preds[d.slot];
        p = value ? p | waiting.lanes : p & ~waiting.lanes;
    }
}

void open_gate(Block &b, uint32_t id)
{
    Barrier &bar = b.barriers[id];
    const std::vector<Barrier::Waiting> waiting = std::move(bar.waiting);
    for (const Barrier::Waiting &one : waiting) {
        Warp &w = b.warps[one.warp];
        deliver(bar, one);
        if (b.race)
            b.race->barrier_acquire(id, one.warp);
        w.sync_epoch++;
        w.wake(one.lanes);
    }
    bar.waiting.clear();
    bar.expected = 0;
}

const char *reduction_text(int r)
{
    static const char *const names[] = {"sync", "red.popc", "red.and", "red.or"};
    return names[r];
}

void begin_or_match(Warp &w, Barrier &bar, uint32_t id, uint32_t threads)
{
    const uint32_t all = uint32_t(w.block->warps.size()) * WARP_SIZE;
    if (threads % WARP_SIZE)
        fault(FaultKind::mismatched_barrier, -1, "barrier %u with %u threads: the count must be a multiple of 32", id,
              threads);
    if (threads > all)
        fault(FaultKind::mismatched_barrier, -1, "barrier %u waits for %u threads, but the block has %u", id, threads,
              unsigned(w.block->grid->launch.block.count()));
    const uint32_t expected = threads ? threads : all;
    if (!bar.expected) {
        bar.expected = expected;
        bar.whole_block = false;
        bar.popc = bar.reduced = 0;
        bar.came.assign(w.block->warps.size(), 0);
    }
    if (bar.expected != expected)
        fault(FaultKind::mismatched_barrier, -1, "barrier %u: this warp says %u threads, others who have come said %u",
              id, expected, bar.expected);
    bar.whole_block |= threads == 0;
}
} // namespace

Step barrier_arrive(Warp &w, uint32_t id, uint32_t threads, bool sync, BarrierRed red, Lanes predicate)
{
    Block &b = *w.block;
    if (id >= 16)
        fault(FaultKind::illegal_instruction, -1, "barrier %u: there are barriers 0 to 15", id);
    Barrier &bar = b.barriers[id];
    begin_or_match(w, bar, id, threads);
    if (sync && !bar.waiting.empty() && bar.reduction != int(red))
        fault(FaultKind::mismatched_barrier, -1,
              "barrier %u: this warp comes with bar.%s, another one waits with bar.%s", id, reduction_text(int(red)),
              reduction_text(bar.reduction));
    if (bar.came[w.index] & w.active)
        fault(FaultKind::mismatched_barrier, __builtin_ctz(bar.came[w.index] & w.active),
              "lanes %s of warp %u arrive at barrier %u a second time before the others have come",
              lane_list(bar.came[w.index] & w.active).c_str(), w.index, id);
    bar.came[w.index] |= w.active;
    b.counters.barriers++;
    if (b.race)
        b.race->barrier_release(id, w.index);
    w.sync_epoch++;
    if (sync) {
        bar.reduction = int(red);
        bar.reduced += uint32_t(__builtin_popcount(w.active));
        bar.popc += uint32_t(__builtin_popcount(w.active & predicate));
        bar.waiting.push_back({w.index, w.active, w.at, w.frame});
    }
    if (complete(b, bar)) {
        open_gate(b, id); /* this warp's lanes are not parked: for them the instruction is done */
        return Step::next;
    }
    return sync ? Step::parked : Step::next;
}

/* ---- clusters: all blocks of one run on the same host thread ---- */
namespace
{
void cluster_check(Cluster &c)
{
    for (const Block *b : c.blocks)
        for (const Warp &w : b->warps)
            if ((w.cluster_arrived | w.exited) != ALL_LANES)
                return;
    c.arrived = 0;
    c.phase++;
    for (Block *b : c.blocks)
        for (Warp &w : b->warps) {
            const Lanes waiting = w.cluster_waiting;
            w.cluster_released |= w.cluster_arrived & ~waiting;
            w.cluster_arrived = w.cluster_waiting = 0;
            if (!waiting)
                continue;
            if (b->race)
                b->race->acquire(CLUSTER_OBJECT, w.index);
            w.sync_epoch++;
            w.wake(waiting);
        }
}
} // namespace

Step cluster_arrive(Warp &w, bool wait_too)
{
    const Lanes twice = w.active & (w.cluster_arrived | w.cluster_released);
    if (twice)
        fault(FaultKind::mismatched_barrier, __builtin_ctz(twice),
              "lanes %s arrive at the cluster's barrier again without having waited", lane_list(twice).c_str());
    Cluster &c = *w.block->cluster;
    w.cluster_arrived |= w.active;
    c.arrived += uint32_t(__builtin_popcount(w.active));
    w.block->counters.barriers++;
    if (w.block->race)
        w.block->race->release(CLUSTER_OBJECT, w.index);
    w.sync_epoch++;
    cluster_check(c);
    return wait_too ? cluster_wait(w) : Step::next;
}

Step cluster_wait(Warp &w)
{
    const Lanes never = w.active & ~(w.cluster_arrived | w.cluster_released);
    if (never)
        fault(FaultKind::mismatched_barrier, __builtin_ctz(never),
              "lanes %s wait at the cluster's barrier without having arrived", lane_list(never).c_str());
    const Lanes released = w.active & w.cluster_released;
    if (released) {
        w.cluster_released &= ~released;
        if (w.block->race)
            w.block->race->acquire(CLUSTER_OBJECT, w.index);
        w.sync_epoch++;
    }
    const Lanes pending = w.active & ~released;
    if (!pending)
        return Step::next;
    w.cluster_waiting |= pending;
    w.active = pending; /* only these are parked, the others go on */
    return Step::parked;
}

void barriers_after_exit(Block &b)
{
    for (uint32_t id = 0; id < 16; id++)
        if (b.barriers[id].expected && complete(b, b.barriers[id]))
            open_gate(b, id);
    if (b.cluster->arrived)
        cluster_check(*b.cluster);
}

/* ---- when nobody can go on ---- */
namespace
{
std::string warp_list(const Block &b, const Barrier &bar)
{
    Lanes warps = 0; /* a block has at most 32 */
    for (size_t k = 0; k < b.warps.size(); k++)
        if (bar.came[k])
            warps |= 1u << k;
    return lane_list(warps);
}

std::string who_waits_where(const Block &b)
{
    std::string s;
    for (uint32_t id = 0; id < 16; id++) {
        const Barrier &bar = b.barriers[id];
        if (!bar.expected)
            continue;
        s += format("; at barrier %u, which is for %u threads%s, %u have come (warps %s)", id, bar.expected,
                    bar.whole_block ? " (the whole block)" : "", arrivals(b, bar), warp_list(b, bar).c_str());
        if (!bar.waiting.empty())
            s += ", waiting at " + place_text(b.warps[0], *bar.waiting[0].inst);
    }
    std::string cluster, gone;
    for (const Warp &w : b.warps) {
        if (w.cluster_waiting)
            cluster += (cluster.empty() ? "" : ", ") + std::to_string(w.index);
        if (w.exited == ALL_LANES)
            gone += (gone.empty() ? "" : ", ") + std::to_string(w.index);
    }
    if (!cluster.empty())
        s += "; at the cluster's barrier: warps " + cluster;
    return gone.empty() ? s : s + "; warps " + gone + " have ended";
}
} // namespace

void blame_stuck_block(Block &b)
{
    Warp *blamed = nullptr;
    FaultKind kind = FaultKind::deadlock;
    try {
        for (Warp &w : b.warps) {
            blamed = &w;
            w.blame_missing(); /* throws if it finds any */
        }
        blamed = nullptr;
        for (const Barrier &bar : b.barriers)
            if (!bar.waiting.empty() && !blamed) {
                const Barrier::Waiting &first = bar.waiting[0];
                blamed = &b.warps[first.warp];
                blamed->at = first.inst;
                blamed->frame = first.frame;
                blamed->active = first.lanes;
                kind = FaultKind::mismatched_barrier;
            }
        fault(kind, -1, "no thread of the block can go on%s", who_waits_where(b).c_str());
    } catch (Fault &f) {
        if (!blamed)
            blamed = &b.warps[0];
        if (!f.has_place)
            blamed->complete(f);
        throw;
    }
}

} // namespace ptxemu
