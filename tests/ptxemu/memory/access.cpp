/* From 32 addresses to 32 host pointers: see access.h.
 *
 * The common case, a full warp that stays inside one allocation, is one loop without branches over the 32 lanes; everything
 * unusual goes lane by lane, where a fault finds its words. */
#include "memory/access.h"

#include <algorithm>
#include <cstring>

#include "check/race.h"
#include "memory/heap.h"
#include "memory/written.h"

namespace ptxemu
{
namespace
{
using ull = unsigned long long;

constexpr uint64_t SHARED_OFFSET = 0x00ffffff; /* of a 32-bit shared address; above: whose */
constexpr unsigned RANK_SHIFT = 24;

bool reads(Use u)
{
    return u == Use::read || u == Use::sync_read || u == Use::async_read || u == Use::atomic;
}
bool writes(Use u)
{
    return !reads(u) || u == Use::atomic;
}

const char *verb(Use u)
{
    return u == Use::atomic ? "updates" : reads(u) ? "reads" : "writes";
}

/* "writes 4 bytes of global memory at 0x7f0000001000" */
std::string deed(const Access &a, Space space, uint64_t address)
{
    return format("%s %u byte%s of %s memory at 0x%llx", verb(a.use), a.bytes, a.bytes == 1 ? "" : "s",
                  space_text(space == Space::generic ? Space::global : space), ull(address));
}

[[noreturn]] void blame(FaultKind kind, unsigned lane, const Access &a, Space space, uint64_t address,
                        const std::string &why)
{
    fault_at(kind, int(lane), space, address, "%s%s", deed(a, space, address).c_str(), why.c_str());
}

bool checks(const Warp &w)
{
    return w.block->grid->launch.options.check;
}

bool checks_written(const Warp &w)
{
    const Options &o = w.block->grid->launch.options;
    return o.check && o.init;
}

/* ---- the written bytes ---- */

/* Does to the written bytes what the access means.  Returns the lanes that read what nobody ever wrote; then nothing is marked.
 * consecutive: all 32 lanes take part, and their bytes follow each other without gaps. */
Lanes update_written(const Access &a, Shadow s, const uint64_t *address, Lanes lanes, bool consecutive)
{
    const size_t all = size_t(a.bytes) * WARP_SIZE;
    if (reads(a.use) && !(consecutive && all_written(s.of(address[0]), all)))
        if (Lanes missing = unwritten(s, address, lanes, a.bytes))
            return missing;
    if (!writes(a.use))
        return 0;
    if (consecutive && !a.undefined)
        memset(s.of(address[0]), 1, all);
    else
        set_written(s, address, lanes, a.undefined, a.bytes);
    return 0;
}

void aligned(const Access &a, Space space, unsigned lane, uint64_t address)
{
    uint32_t align = a.align ? a.align : a.bytes;
    if (address & (align - 1))
        blame(FaultKind::misaligned, lane, a, space, address, format(", which is no multiple of %u", align));
}

/* ---- global memory ---- */

bool in_parameters(const Warp &w, uint64_t address)
{
    const std::vector<uint8_t> &params = w.block->grid->params;
    return address - reinterpret_cast<uint64_t>(params.data()) < params.size();
}

/* No allocation holds the lane's bytes: says what is there instead. */
[[noreturn]] void outside(const Warp &w, const Access &a, Space space, unsigned lane, uint64_t address)
{
    uint64_t within;
    Space real = classify(address, &within);
    if (real == Space::global && in_parameters(w, address))
        real = Space::param;
    if (real != Space::global)
        blame(FaultKind::wrong_space, lane, a, space, address,
              format(", but that is a generic address of %s memory", space_text(real)));
    const Heap &heap = *w.block->grid->launch.heap;
    const Allocation *first = heap.find(address);
    if (first && !first->freed) {
        uint64_t past = address + a.bytes - (first->address + first->bytes);
        blame(FaultKind::out_of_bounds, lane, a, space, address,
              format(", of which the last %llu lie past the end: %s", ull(past), heap.describe(address).c_str()));
    }
    std::string hint =
        address < w.block->shared_bytes ? " (it may be an address of shared memory, not made generic)" : "";
    blame(first ? FaultKind::use_after_free : FaultKind::out_of_bounds, lane, a, space, address,
          ", " + heap.describe(address) + hint);
}

/* The allocation that holds the lane's bytes, which this device may use in this way. */
const Allocation *look_up(Warp &w, const Access &a, Space space, unsigned lane, uint64_t address)
{
    const Launch &launch = w.block->grid->launch;
    const Allocation *found = launch.heap->find(address);
    if (!found || found->freed || address + a.bytes > found->address + found->bytes)
        outside(w, a, space, lane, address);
    if (found->device != launch.device && !(found->peers >> launch.device & 1))
        blame(FaultKind::out_of_bounds, lane, a, space, address,
              format(", which belongs to device %u; peer access from device %u is not enabled", found->device,
                     launch.device));
    return found;
}

const Allocation *&recent(Warp &w)
{
    RecentAllocations &r = w.block->recent;
    uint64_t now = w.block->grid->launch.heap->version();
    if (r.version != now) {
        r = RecentAllocations();
        r.version = now;
    }
    return r.found[reinterpret_cast<uintptr_t>(w.at) / sizeof(Inst) % RecentAllocations::N];
}

bool holds(const Allocation *al, uint64_t address, uint32_t bytes)
{
    return al && al->bytes >= bytes && address - al->address <= al->bytes - bytes;
}

/* What an allocation is for: constant memory is read through ld.const or generic addresses only. */
void right_kind(const Access &a, Space space, unsigned lane, uint64_t address, const Allocation &al)
{
    bool is_const = al.kind == AllocKind::module_const;
    if (space == Space::constant && !is_const)
        blame(FaultKind::wrong_space, lane, a, space, address, ", but that lies in global memory");
    if (is_const && (space == Space::global || writes(a.use)))
        blame(FaultKind::wrong_space, lane, a, space, address, ", but that lies in constant memory");
}

/* Whether all 32 lanes are inside [begin, begin + bytes) and aligned; fills p, and says whether the lanes follow each other without gaps. */
bool full_warp(const Access &a, uint64_t begin, uint64_t bytes, const uint8_t *memory, const uint64_t *address,
               uint8_t **p, bool *consecutive)
{
    if (bytes < a.bytes)
        return false;
    const uint64_t limit = bytes - a.bytes, first = address[0];
    const uint64_t align = (a.align ? a.align : a.bytes) - 1;
    const uint64_t to_host = reinterpret_cast<uint64_t>(memory) - begin; /* numbers: an address may be far outside */
    uint64_t bad = 0, gaps = 0;
    for (unsigned l = 0; l < WARP_SIZE; l++) {
        bad |= uint64_t(address[l] - begin > limit) | (address[l] & align);
        gaps |= address[l] ^ (first + uint64_t(l) * a.bytes);
        p[l] = reinterpret_cast<uint8_t *>(address[l] + to_host);
    }
    *consecutive = !gaps;
    return !bad;
}
bool full_warp(const Access &a, const Allocation &al, const uint64_t *address, uint8_t **p, bool *consecutive)
{
    return full_warp(a, al.address, al.bytes, reinterpret_cast<uint8_t *>(al.address), address, p, consecutive);
}

[[noreturn]] void never_written(const Warp &w, const Access &a, unsigned lane, uint64_t address)
{
    blame(FaultKind::uninitialized_memory, lane, a, Space::global, address,
          ", which nobody has written: " + w.block->grid->launch.heap->describe(address));
}

/* Lane by lane: each may be in another allocation, and one of them may be at fault. */
void each_in_heap(Warp &w, const Access &a, Space space, const uint64_t *address, Lanes lanes, uint8_t **p)
{
    const Allocation *&al = recent(w);
    const bool check = checks_written(w);
    each_lane(lanes, [&](unsigned l) {
        if (!holds(al, address[l], a.bytes))
            al = look_up(w, a, space, l, address[l]);
        right_kind(a, space, l, address[l], *al);
        aligned(a, space, l, address[l]);
        if (check && al->written && update_written(a, Shadow(al->written, al->address), address, 1u << l, false))
            never_written(w, a, l, address[l]);
        p[l] = reinterpret_cast<uint8_t *>(address[l]);
    });
}

void in_heap(Warp &w, const Access &a, Space space, const uint64_t *address, Lanes lanes, uint8_t **p)
{
    const Allocation *&al = recent(w);
    const unsigned first = unsigned(__builtin_ctz(lanes));
    if (!holds(al, address[first], a.bytes))
        al = look_up(w, a, space, first, address[first]);
    bool consecutive;
    if (lanes == ALL_LANES && full_warp(a, *al, address, p, &consecutive)) {
        right_kind(a, space, first, address[first], *al);
        if (al->written && checks_written(w))
            if (Lanes missing = update_written(a, Shadow(al->written, al->address), address, lanes, consecutive))
                never_written(w, a, unsigned(__builtin_ctz(missing)), address[__builtin_ctz(missing)]);
    } else {
        each_in_heap(w, a, space, address, lanes, p);
    }
    if (a.count && w.block->grid->launch.options.profile && space != Space::constant)
        count_global(w, writes(a.use), address, lanes, a.bytes);
}

/* ---- shared memory ---- */

/* The block whose shared memory a 32-bit shared address names. */
Block *owner_of(Warp &w, const Access &a, Space space, unsigned lane, uint64_t address)
{
    const int64_t before = -int64_t(address >> 32 ? address : uint64_t(int64_t(int32_t(address))));
    if (before > 0 && before < int64_t(1) << 31)
        blame(FaultKind::out_of_bounds, lane, a, space, address,
              format(", %lld bytes before the start of shared memory", static_cast<long long>(before)));
    if (address >> 32) {
        uint64_t within;
        Space real = classify(address, &within);
        blame(FaultKind::wrong_space, lane, a, space, address,
              real == Space::global ? ", but that is no address of shared memory"
                                    : format(", but that is a generic address of %s memory", space_text(real)));
    }
    uint64_t rank = address >> RANK_SHIFT;
    if (rank == 0)
        return w.block;
    const std::vector<Block *> &blocks = w.block->cluster->blocks;
    if (rank > blocks.size())
        blame(FaultKind::out_of_bounds, lane, a, space, address,
              format(", that of block %llu of a cluster of %zu", ull(rank - 1), blocks.size()));
    Block *b = blocks[rank - 1];
    if (b != w.block && space == Space::shared)
        blame(FaultKind::wrong_space, lane, a, space, address,
              format(", but that is the shared memory of block %llu of the cluster", ull(rank - 1)));
    return b;
}

uint8_t *shared_lane(Block &b, const Access &a, Space space, unsigned lane, uint64_t address)
{
    const uint64_t offset = address & SHARED_OFFSET;
    if (offset + a.bytes > b.shared_bytes)
        blame(FaultKind::out_of_bounds, lane, a, space, address,
              format(": the block has %u bytes of shared memory", b.shared_bytes));
    aligned(a, space, lane, offset);
    return b.shared + offset;
}

[[noreturn]] void never_written_shared(const Access &a, Space space, Lanes missing, const uint64_t *address)
{
    const unsigned lane = unsigned(__builtin_ctz(missing));
    blame(FaultKind::uninitialized_memory, lane, a, space, address[lane], ", which nobody has written");
}

/* What is checked of lanes whose offsets in the block's own memory are known to be good. */
void own_shared(Warp &w, const Access &a, Space space, const uint64_t *offset, Lanes lanes, bool consecutive)
{
    Block &b = *w.block;
    uint32_t narrow[WARP_SIZE];
    for (unsigned l = 0; l < WARP_SIZE; l++)
        narrow[l] = uint32_t(offset[l]);
    if (checks(w)) {
        if (b.race && a.race)
            b.race->access(w, a.use, lanes, narrow, a.bytes);
        if (!b.shared_written.empty())
            if (Lanes missing = update_written(a, Shadow(b.shared_written.data(), 0), offset, lanes, consecutive))
                never_written_shared(a, space, missing, offset);
    }
    if (a.count && w.block->grid->launch.options.profile)
        count_shared(w, narrow, lanes, a.bytes);
}

/* Races are looked for in the block's own accesses; those of the other blocks of a cluster have clocks of their own, which this
 * block's shadow knows nothing of. */
void in_shared(Warp &w, const Access &a, Space space, const uint64_t *address, Lanes lanes, uint8_t **p)
{
    bool consecutive;
    if (lanes == ALL_LANES && full_warp(a, 0, w.block->shared_bytes, w.block->shared, address, p, &consecutive))
        return own_shared(w, a, space, address, lanes, consecutive);
    Lanes mine = 0;
    uint64_t offset[WARP_SIZE] = {};
    each_lane(lanes, [&](unsigned l) {
        Block *b = owner_of(w, a, space, l, address[l]);
        p[l] = shared_lane(*b, a, space, l, address[l]);
        offset[l] = address[l] & SHARED_OFFSET;
        mine |= Lanes(b == w.block) << l;
        if (b != w.block && checks(w) && !b->shared_written.empty())
            if (Lanes missing = update_written(a, Shadow(b->shared_written.data(), 0), offset, 1u << l, false))
                never_written_shared(a, space, missing, address);
    });
    if (mine)
        own_shared(w, a, space, offset, mine, false);
}

/* ---- local memory, parameters ---- */

/* A compiler copies structures with holes in them through local memory: what was never written is no fault yet, but the
 * register that gets it counts as never written. */
Lanes in_local(Warp &w, const Access &a, const uint64_t *address, Lanes lanes, uint8_t **p)
{
    Block &b = *w.block;
    uint64_t at[WARP_SIZE];
    each_lane(lanes, [&](unsigned l) {
        if (address[l] > b.stack_bytes || address[l] + a.bytes > b.stack_bytes)
            blame(FaultKind::out_of_bounds, l, a, Space::local, address[l],
                  format(": the thread has %u bytes of local memory", b.stack_bytes));
        aligned(a, Space::local, l, address[l]);
        at[l] = uint64_t(w.thread(l)) * b.stack_bytes + address[l];
        p[l] = &b.local[at[l]];
    });
    if (!checks(w) || b.local_written.empty())
        return 0;
    return update_written(a, Shadow(b.local_written.data(), 0), at, lanes, false);
}

void in_params(Warp &w, const Access &a, const uint64_t *address, Lanes lanes, uint8_t **p)
{
    const std::vector<uint8_t> &params = w.block->grid->params;
    const uint64_t begin = reinterpret_cast<uint64_t>(params.data());
    each_lane(lanes, [&](unsigned l) {
        const uint64_t offset = address[l] - begin;
        if (writes(a.use))
            blame(FaultKind::wrong_space, l, a, Space::param, address[l], ", but a kernel's parameters are read-only");
        if (offset > params.size() || offset + a.bytes > params.size())
            blame(FaultKind::out_of_bounds, l, a, Space::param, address[l],
                  format(", %lld bytes into the kernel's %zu bytes of parameters", static_cast<long long>(offset),
                         params.size()));
        aligned(a, Space::param, l, offset);
        p[l] = reinterpret_cast<uint8_t *>(address[l]);
    });
}

/* ---- generic addresses ---- */

Lanes in_space(Warp &w, const Access &a, Space space, const uint64_t *address, Lanes lanes, uint8_t **p)
{
    switch (space) {
    case Space::generic:
    case Space::global:
    case Space::constant:
        in_heap(w, a, space, address, lanes, p);
        return 0;
    case Space::shared:
    case Space::shared_cluster:
        in_shared(w, a, space, address, lanes, p);
        return 0;
    case Space::local:
        return in_local(w, a, address, lanes, p);
    case Space::param:
        in_params(w, a, address, lanes, p);
        return 0;
    }
    return 0;
}

/* Lanes may point into different spaces: each space has its turn with its lanes. */
Lanes in_generic(Warp &w, const Access &a, const uint64_t *address, Lanes lanes, uint8_t **p)
{
    if (holds(recent(w), address[__builtin_ctz(lanes)], a.bytes) && lanes == ALL_LANES) {
        bool consecutive;
        if (full_warp(a, *recent(w), address, p, &consecutive))
            return in_space(w, a, Space::generic, address, lanes, p);
    }
    Lanes of[size_t(Space::param) + 1] = {}, unknown = 0;
    uint64_t within[WARP_SIZE];
    each_lane(lanes, [&](unsigned l) {
        Space s = classify(address[l], &within[l]);
        if (s == Space::global) {
            s = Space::generic;
            if (in_parameters(w, address[l]))
                s = Space::param;
        } else if (s == Space::shared) {
            s = Space::shared_cluster;
        }
        of[size_t(s)] |= 1u << l;
    });
    for (size_t s = 0; s <= size_t(Space::param); s++)
        if (of[s])
            unknown |= in_space(w, a, Space(s), within, of[s], p);
    return unknown;
}
} // namespace

Space classify(uint64_t generic, uint64_t *within)
{
    if (generic - SHARED_WINDOW < WINDOW_BYTES) {
        *within = generic - SHARED_WINDOW;
        return Space::shared;
    }
    if (generic - LOCAL_WINDOW < WINDOW_BYTES) {
        *within = generic - LOCAL_WINDOW;
        return Space::local;
    }
    *within = generic;
    return Space::global;
}

Lanes resolve(Warp &w, const Access &a, const uint64_t address[WARP_SIZE], Lanes lanes, uint8_t *p[WARP_SIZE])
{
    if (!lanes)
        return 0;
    w.block->polls += a.use == Use::sync_read || a.use == Use::atomic;
    return a.space == Space::generic ? in_generic(w, a, address, lanes, p) : in_space(w, a, a.space, address, lanes, p);
}

uint8_t *resolve_range(Warp &w, Space space, Use use, uint64_t address, size_t bytes, uint32_t align)
{
    /* The copy engine's accesses to shared memory have clocks of their own: bulk.cpp tells the race check of them. */
    Access a{space, use, uint32_t(bytes), align ? align : 1};
    a.race = use != Use::async_read && use != Use::async_write;
    a.count = false;
    const unsigned lane = unsigned(__builtin_ctz(w.active));
    uint64_t addresses[WARP_SIZE];
    uint8_t *p[WARP_SIZE];
    addresses[lane] = address;
    resolve(w, a, addresses, Lanes(1) << lane, p);
    return p[lane];
}

} // namespace ptxemu
