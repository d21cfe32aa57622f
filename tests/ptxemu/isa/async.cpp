/* cp.async: copies from global to shared memory that a thread waits for in groups.
 *
 * The bytes are copied when the instruction executes.  That they are not there yet, as far as the program may know, is the race
 * check's business: the destination is `pending` until the copying lane has waited. */
#include "isa/async_state.h"

#include <algorithm>
#include <cstring>

#include "check/race.h"
#include "isa/mbarrier.h"

namespace ptxemu
{
namespace
{

struct CopyInst {
    AddressOpnd to, from;
    uint32_t bytes = 0;
};
enum : uint32_t { HAS_SIZE = 1, HAS_IGNORE = 2 };
enum : uint32_t { OP_TO = 0, OP_FROM = 1, OP_EXTRA = 2 };

/* ---------------------------------------------------------------- copies */

/* Which bytes of the source a lane reads: the rest of the destination becomes zero. */
uint32_t source_bytes(const Warp &w, const Inst &i, const CopyInst &x, unsigned lane)
{
    if (i.flags & HAS_SIZE) {
        uint32_t n = w.in<uint32_t>(i.op[OP_EXTRA])[lane];
        if (n > x.bytes)
            fault(FaultKind::illegal_instruction, int(lane),
                  "cp.async copies %u bytes of %u: the source is larger than the copy", n, x.bytes);
        return n;
    }
    return i.flags & HAS_IGNORE && w.pred(i.op[OP_EXTRA]) >> lane & 1 ? 0 : x.bytes;
}

/* Source pointers, lanes of one size at a time; lanes that read nothing get nullptr, whatever their address is. */
void find_sources(Warp &w, const Inst &i, const CopyInst &x, uint32_t n[WARP_SIZE], uint8_t *from[WARP_SIZE])
{
    uint64_t address[WARP_SIZE];
    Lanes left = 0;
    each_lane(w.active, [&](unsigned l) {
        address[l] = x.from.of(w, i, l);
        if (address[l] & (x.bytes - 1))
            fault_at(FaultKind::misaligned, int(l), Space::global, address[l],
                     "cp.async reads %u bytes at 0x%llx, which is no multiple of %u", x.bytes,
                     (unsigned long long)address[l], x.bytes);
        from[l] = nullptr;
        n[l] = source_bytes(w, i, x, l);
        left |= Lanes(n[l] != 0) << l;
    });
    while (left) {
        const uint32_t size = n[__builtin_ctz(left)];
        Lanes same = 0;
        each_lane(left, [&](unsigned l) { same |= Lanes(n[l] == size) << l; });
        Access a{};
        a.space = x.from.space;
        a.use = Use::async_read;
        a.bytes = size;
        a.align = 1; /* checked above: a short source is aligned as a whole one */
        resolve(w, a, address, same, from);
        left &= ~same;
    }
}

void remember(Warp &w, uint32_t bytes, uint8_t *const to[WARP_SIZE])
{
    Warp::AsyncState &s = Warp::AsyncState::of(w);
    for (Lanes left = w.active; left;) {
        Warp::AsyncState::Copy c{0, s.groups.open[__builtin_ctz(left)], bytes, {}};
        each_lane(left, [&](unsigned l) {
            if (s.groups.open[l] != c.group)
                return;
            c.lanes |= 1u << l;
            c.offset[l] = uint32_t(to[l] - w.block->shared);
        });
        left &= ~c.lanes;
        s.copies.push_back(c);
    }
    count_issued(*w.block, uint64_t(bytes) * unsigned(__builtin_popcount(w.active)));
}

/* Known sizes become one move each. */
void copy_whole(uint8_t *to, const uint8_t *from, uint32_t bytes)
{
    if (bytes == 16)
        memcpy(to, from, 16);
    else if (bytes == 8)
        memcpy(to, from, 8);
    else
        memcpy(to, from, 4);
}

Step copy(Warp &w, const Inst &i)
{
    const CopyInst &x = *static_cast<const CopyInst *>(i.extra);
    uint32_t n[WARP_SIZE];
    uint8_t *from[WARP_SIZE], *to[WARP_SIZE];
    uint64_t address[WARP_SIZE];
    find_sources(w, i, x, n, from);
    each_lane(w.active, [&](unsigned l) { address[l] = x.to.of(w, i, l); });
    Access a{};
    a.space = x.to.space;
    a.use = Use::async_write;
    a.bytes = x.bytes;
    resolve(w, a, address, w.active, to);
    each_lane(w.active, [&](unsigned l) {
        if (n[l] == x.bytes) {
            copy_whole(to[l], from[l], x.bytes);
            return;
        }
        if (n[l])
            memcpy(to[l], from[l], n[l]);
        memset(to[l] + n[l], 0, x.bytes - n[l]);
    });
    remember(w, x.bytes, to);
    return Step::next;
}

/* ---------------------------------------------------------------- groups */

/* The copies for which due(lane, group) says so are complete. */
template <class F>
void land(Warp &w, F due)
{
    Warp::AsyncState &s = Warp::AsyncState::of(w);
    for (Warp::AsyncState::Copy &c : s.copies) {
        Lanes landed = 0;
        each_lane(c.lanes & w.active, [&](unsigned l) {
            if (!due(l, c.group))
                return;
            landed |= 1u << l;
            if (w.block->race)
                w.block->race->landed(w, l, c.offset[l], c.bytes);
        });
        c.lanes &= ~landed;
        count_landed(*w.block, uint64_t(c.bytes) * unsigned(__builtin_popcount(landed)));
    }
    s.copies.erase(std::remove_if(s.copies.begin(), s.copies.end(), [](auto &c) { return !c.lanes; }), s.copies.end());
}

Step commit_group(Warp &w, const Inst &)
{
    Warp::AsyncState::of(w).groups.commit(w.active);
    return Step::next;
}

/* All but the last imm groups; copies that were not committed are not waited for. */
Step wait_group(Warp &w, const Inst &i)
{
    const LaneGroups &groups = Warp::AsyncState::of(w).groups;
    land(w, [&](unsigned l, uint32_t group) { return groups.due(l, group, uint32_t(i.imm)); });
    return Step::next;
}

Step wait_all(Warp &w, const Inst &)
{
    Warp::AsyncState::of(w).groups.commit(w.active);
    land(w, [](unsigned, uint32_t) { return true; });
    return Step::next;
}

/* An arrival that takes place when the lane's copies are complete.  They are, so it takes place at once; what the lane itself must
 * not do until it has waited for the mbarrier is not checked any more.  Without .noinc the mbarrier expects one arrival more. */
Step arrive(Warp &w, const Inst &i)
{
    const CopyInst &x = *static_cast<const CopyInst *>(i.extra);
    land(w, [](unsigned, uint32_t) { return true; });
    each_lane(w.active, [&](unsigned l) {
        MBarrierRef b = find_mbarrier(w, l, x.to.space, x.to.of(w, i, l));
        if (i.imm)
            mbarrier_expect_arrival(w, b);
        mbarrier_release(w, b, __atomic_load_n(b.at, __ATOMIC_ACQUIRE));
        mbarrier_arrive(w, b, 1);
    });
    return Step::next;
}

/* ---------------------------------------------------------------- builders */

uint32_t copy_size(Decode &d, bool bypass_l1)
{
    const ptx::Operand &o = d.operand(2);
    const uint64_t n = o.bits;
    if (o.kind != ptx::Operand::integer || (n != 4 && n != 8 && n != 16))
        d.fail("the size of a copy is 4, 8 or 16");
    if (bypass_l1 && n != 16)
        d.fail("a copy with .cg has 16 bytes");
    return uint32_t(n);
}

void build_copy(Decode &d, Inst &i)
{
    d.need_sm(80);
    const int cache = d.take_one_of({"ca", "cg"});
    if (cache < 0)
        d.fail(".ca or .cg is missing");
    if (take_shared_space(d, false) == Space::generic || !d.take("global"))
        d.fail("copies go from .global to .shared");
    const bool policy = d.take("L2::cache_hint");
    d.take_one_of({"L2::64B", "L2::128B", "L2::256B"});
    CopyInst *x = d.extra<CopyInst>();
    x->bytes = copy_size(d, cache == 1);
    x->to = decode_address(d, i, d.operand(0), Space::shared, OP_TO);
    x->from = decode_address(d, i, d.operand(1), Space::global, OP_FROM);
    const size_t n = d.n() - policy;
    if (n > 4)
        d.fail("there are %zu operands too many", n - 4);
    i.flags = 0;
    if (n == 4 && d.is_predicate(d.operand(3))) {
        d.pred_in(d.operand(3));
        i.flags = HAS_IGNORE;
    } else if (n == 4) {
        d.in(3, Type::u32);
        i.flags = HAS_SIZE;
    }
    if (policy)
        d.in(n, Type::b64); /* which lines a cache should keep: there is no cache */
    i.extra = x;
    i.exec = copy;
    i.cls = Class::async_copy;
}

template <Exec EXEC>
void build_plain(Decode &d, Inst &i)
{
    d.need_sm(80);
    i.exec = EXEC;
    i.cls = Class::async_copy;
}

void build_wait_group(Decode &d, Inst &i)
{
    d.need_sm(80);
    if (d.operand(0).kind != ptx::Operand::integer)
        d.fail("the number of groups has to be a constant");
    i.imm = d.operand(0).bits;
    i.exec = wait_group;
    i.cls = Class::async_copy;
}

void build_arrive(Decode &d, Inst &i)
{
    d.need_sm(80);
    const bool more = !d.take("noinc");
    CopyInst *x = d.extra<CopyInst>();
    x->to = decode_address(d, i, d.operand(0), take_shared_space(d, false), OP_TO);
    if (!d.take("b64"))
        d.fail("the type of an mbarrier is .b64");
    i.extra = x;
    i.imm = more;
    i.exec = arrive;
    i.cls = Class::async_copy;
}

const Opcode opcodes[] = {
    {"cp.async", build_copy},
    {"cp.async.commit_group", build_plain<commit_group>},
    {"cp.async.wait_group", build_wait_group},
    {"cp.async.wait_all", build_plain<wait_all>},
    {"cp.async.mbarrier.arrive", build_arrive},
    {"mbarrier.init", build_mbarrier_init},
    {"mbarrier.inval", build_mbarrier_inval},
    {"mbarrier.arrive", build_mbarrier_arrive},
    {"mbarrier.arrive_drop", build_mbarrier_arrive_drop},
    {"mbarrier.expect_tx", build_mbarrier_expect_tx},
    {"mbarrier.complete_tx", build_mbarrier_complete_tx},
    {"mbarrier.test_wait", build_mbarrier_test_wait},
    {"mbarrier.try_wait", build_mbarrier_try_wait},
    {"mbarrier.pending_count", build_mbarrier_pending_count},
};

} // namespace

const Family async_family = {opcodes, sizeof opcodes / sizeof *opcodes};

} // namespace ptxemu
