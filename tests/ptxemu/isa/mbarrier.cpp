/* mbarrier: initialise, arrive, expect and complete bytes, wait. */
#include "isa/mbarrier.h"

#include "isa/async_state.h"

#include "check/race.h"

namespace ptxemu
{
namespace
{

using ull = unsigned long long;

template <class... A>
[[noreturn]] void misuse(const MBarrierRef &b, const char *fmt, A... a)
{
    fault_at(FaultKind::barrier_misuse, int(b.lane), Space::shared, b.offset(), "%s", format(fmt, a...).c_str());
}

/* Changes the object as one atomic step: other blocks of the cluster may be at it as well.  Returns what it was. */
template <class F>
uint64_t update(Warp &w, const MBarrierRef &b, F change)
{
    uint64_t old = __atomic_load_n(b.at, __ATOMIC_ACQUIRE), next;
    do {
        MBarrierBits bits(old);
        change(bits);
        if (bits.pending == 0 && bits.bytes == 0) { /* the phase is complete */
            bits.parity = !bits.parity;
            bits.pending = bits.expected;
        }
        next = bits.pack();
    } while (!__atomic_compare_exchange_n(b.at, &old, next, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    note_progress(w);
    return old;
}

void take_arrivals(const MBarrierRef &b, MBarrierBits &bits, uint32_t count)
{
    if (count == 0 || count > MBARRIER_MAX)
        misuse(b, "%u arrivals at once at the mbarrier at shared offset %u: the count has to be 1 to %u", count,
               b.offset(), MBARRIER_MAX);
    if (count > bits.pending)
        misuse(b, "%u more arrival%s at the mbarrier at shared offset %u, whose phase waits for %u of %u", count,
               count == 1 ? "" : "s", b.offset(), bits.pending, bits.expected);
    bits.pending -= count;
}

void add_bytes(const MBarrierRef &b, MBarrierBits &bits, int64_t n)
{
    int64_t sum = bits.bytes + n;
    if (sum > int64_t(MBARRIER_MAX) || sum < -int64_t(MBARRIER_MAX))
        misuse(b, "the mbarrier at shared offset %u would count %lld bytes: its limit is %u", b.offset(),
               (long long)sum, MBARRIER_MAX);
    bits.bytes = int32_t(sum);
}

/* Where the mbarrier lies; says nothing about what is there. */
MBarrierRef locate(Warp &w, unsigned lane, Space space, uint64_t address, Use use)
{
    if (address & 7)
        fault_at(FaultKind::barrier_misuse, int(lane), space, address,
                 "an mbarrier's address has to be a multiple of 8, but this one is 0x%llx", ull(address));
    Access a{};
    a.space = space;
    a.use = use;
    a.bytes = 8;
    a.race = false;
    a.count = false;
    uint64_t addresses[WARP_SIZE];
    uint8_t *p[WARP_SIZE];
    addresses[lane] = address;
    resolve(w, a, addresses, Lanes(1) << lane, p);
    Block *owner = owner_of_shared(w, p[lane]);
    if (!owner)
        fault_at(FaultKind::barrier_misuse, int(lane), space, address,
                 "0x%llx is no address of shared memory, where mbarriers have to lie", ull(address));
    return {owner, reinterpret_cast<uint64_t *>(p[lane]), lane};
}

} // namespace

Block *owner_of_shared(Warp &w, const uint8_t *p)
{
    auto inside = [p](const Block &b) { return p >= b.shared && p < b.shared + b.shared_bytes; };
    if (inside(*w.block))
        return w.block;
    if (w.block->cluster)
        for (Block *b : w.block->cluster->blocks)
            if (b && inside(*b))
                return b;
    return nullptr;
}

MBarrierRef find_mbarrier(Warp &w, unsigned lane, Space space, uint64_t address)
{
    const char *const none = "there is no mbarrier at 0x%llx: mbarrier.init has to come first";
    MBarrierRef b{};
    try {
        b = locate(w, lane, space, address, Use::atomic);
    } catch (const Fault &f) {
        if (f.kind != FaultKind::uninitialized_memory)
            throw;
        fault_at(FaultKind::barrier_misuse, int(lane), space, address, none, ull(address));
    }
    if (b.owner == w.block && w.block->race)
        w.block->race->touch(w, lane, b.offset(), 8);
    if (!MBarrierBits::valid(__atomic_load_n(b.at, __ATOMIC_ACQUIRE)))
        fault_at(FaultKind::barrier_misuse, int(lane), space, address, none, ull(address));
    return b;
}

uint64_t mbarrier_arrive(Warp &w, const MBarrierRef &b, uint32_t count)
{
    return update(w, b, [&](MBarrierBits &bits) { take_arrivals(b, bits, count); });
}

uint64_t mbarrier_expect_bytes(Warp &w, const MBarrierRef &b, uint32_t bytes)
{
    return update(w, b, [&](MBarrierBits &bits) { add_bytes(b, bits, bytes); });
}

uint64_t mbarrier_complete_bytes(Warp &w, const MBarrierRef &b, uint32_t bytes)
{
    return update(w, b, [&](MBarrierBits &bits) { add_bytes(b, bits, -int64_t(bytes)); });
}

uint64_t mbarrier_expect_arrival(Warp &w, const MBarrierRef &b)
{
    return update(w, b, [&](MBarrierBits &bits) {
        if (bits.pending == MBARRIER_MAX)
            misuse(b, "the mbarrier at shared offset %u would wait for more than %u arrivals", b.offset(),
                   MBARRIER_MAX);
        bits.pending++;
    });
}

uint64_t mbarrier_phase(const MBarrierRef &b, uint64_t object)
{
    return 1ull << 62 | uint64_t(MBarrierBits(object).parity) << 61 | b.offset();
}

/* Relaxed arrivals publish as well: order may come from a fence before them. */
void mbarrier_release(Warp &w, const MBarrierRef &b, uint64_t object)
{
    if (!b.owner->race)
        return;
    if (b.owner == w.block)
        b.owner->race->release(mbarrier_phase(b, object), w.index);
    else
        b.owner->race->release_foreign(mbarrier_phase(b, object));
}

AddressOpnd decode_address(Decode &d, Inst &i, const ptx::Operand &o, Space space, uint32_t op)
{
    bool frame = false;
    d.address(o, space, &frame);
    if (frame)
        d.fail("a local variable cannot be used here");
    AddressOpnd a;
    a.op = op;
    a.space = i.space;
    a.offset = i.imm;
    return a;
}

Space take_shared_space(Decode &d, bool cluster)
{
    if (cluster && d.take("shared::cluster")) {
        d.need_sm(90);
        return Space::shared_cluster;
    }
    return d.take_one_of({"shared::cta", "shared"}) >= 0 ? Space::shared : Space::generic;
}

/* ---------------------------------------------------------------- instructions */
namespace
{

enum : uint32_t { DROP = 1, NO_COMPLETE = 2, EXPECT_TX = 4, PARITY = 8, MAY_BE_REMOTE = 16 };

struct MBarrierInst {
    AddressOpnd at;
};

const AddressOpnd &address_of(const Inst &i)
{
    return static_cast<const MBarrierInst *>(i.extra)->at;
}

/* The mbarrier of one lane.  What returns or tests a state works on the block's own mbarriers only. */
MBarrierRef mbarrier_of(Warp &w, const Inst &i, unsigned lane)
{
    const AddressOpnd &a = address_of(i);
    MBarrierRef b = find_mbarrier(w, lane, a.space, a.of(w, i, lane));
    if (b.owner != w.block && !(i.flags & MAY_BE_REMOTE))
        misuse(b,
               "this instruction works on mbarriers of the own block only, but the one at shared offset %u is in block "
               "%u of "
               "the cluster",
               b.offset(), b.owner->cluster_rank);
    return b;
}

Step init(Warp &w, const Inst &i)
{
    const AddressOpnd &a = address_of(i);
    const uint32_t *count = w.in<uint32_t>(i.op[1]);
    each_lane(w.active, [&](unsigned l) {
        MBarrierRef b = locate(w, l, a.space, a.of(w, i, l), Use::write);
        if (count[l] == 0 || count[l] > MBARRIER_MAX)
            misuse(b, "an mbarrier for %u arrivals: the count has to be 1 to %u", count[l], MBARRIER_MAX);
        if (b.owner == w.block && w.block->race)
            w.block->race->write(w, l, b.offset(), 8, false);
        __atomic_store_n(b.at, MBarrierBits::fresh(count[l]).pack(), __ATOMIC_RELEASE);
    });
    note_progress(w);
    return Step::next;
}

Step inval(Warp &w, const Inst &i)
{
    each_lane(w.active, [&](unsigned l) {
        MBarrierRef b = mbarrier_of(w, i, l);
        if (w.block->race)
            w.block->race->write(w, l, b.offset(), 8, false);
        __atomic_store_n(b.at, 0, __ATOMIC_RELEASE);
    });
    note_progress(w);
    return Step::next;
}

uint64_t arrive_once(Warp &w, const Inst &i, const MBarrierRef &b, uint32_t n)
{
    const uint32_t flags = i.flags, count = flags & EXPECT_TX ? 1 : n;
    return update(w, b, [&](MBarrierBits &bits) {
        if (flags & EXPECT_TX)
            add_bytes(b, bits, n);
        take_arrivals(b, bits, count);
        if (flags & NO_COMPLETE && bits.pending == 0 && bits.bytes == 0)
            misuse(b, "an arrival with .noComplete completes the phase of the mbarrier at shared offset %u",
                   b.offset());
        if (flags & DROP)
            bits.expected -= std::min(count, bits.expected);
    });
}

Step arrive(Warp &w, const Inst &i)
{
    const uint32_t *n = w.in<uint32_t>(i.op[2]);
    uint64_t *state = w.out<uint64_t>(i.op[0]);
    MBarrierRef last{};
    uint64_t phase = 0;
    each_lane(w.active, [&](unsigned l) {
        MBarrierRef b = mbarrier_of(w, i, l);
        /* One release for all lanes that arrive in a phase. */
        uint64_t before = __atomic_load_n(b.at, __ATOMIC_ACQUIRE);
        if (b.at != last.at || mbarrier_phase(b, before) != phase)
            mbarrier_release(w, b, before);
        last = b;
        phase = mbarrier_phase(b, before);
        uint64_t old = arrive_once(w, i, b, n[l]);
        if (!(i.flags & MAY_BE_REMOTE))
            state[l] = old;
    });
    return Step::next;
}

template <uint64_t (*CHANGE)(Warp &, const MBarrierRef &, uint32_t)>
Step change_bytes(Warp &w, const Inst &i)
{
    const uint32_t *n = w.in<uint32_t>(i.op[1]);
    each_lane(w.active, [&](unsigned l) { CHANGE(w, mbarrier_of(w, i, l), n[l]); });
    return Step::next;
}

/* Whether the phase that a lane asks for is complete: then another one is open. */
Step wait(Warp &w, const Inst &i)
{
    const bool by_parity = i.flags & PARITY;
    Lanes done = 0;
    uint64_t acquired = 0;
    each_lane(w.active, [&](unsigned l) {
        MBarrierRef b = mbarrier_of(w, i, l);
        uint64_t token = by_parity ? uint64_t(w.in<uint32_t>(i.op[2])[l] & 1) << 61 : w.in<uint64_t>(i.op[2])[l];
        if (!by_parity && !MBarrierBits::valid(token))
            misuse(b, "the state 0x%llx did not come from an arrival at an mbarrier", ull(token));
        uint64_t now = __atomic_load_n(b.at, __ATOMIC_ACQUIRE);
        if (MBarrierBits(now).parity == MBarrierBits(token).parity)
            return;
        done |= 1u << l;
        uint64_t phase = mbarrier_phase(b, token);
        auto bytes = w.block->bulk_bytes.find(phase);
        if (bytes != w.block->bulk_bytes.end()) {
            count_landed(*w.block, bytes->second);
            w.block->bulk_bytes.erase(bytes);
        }
        if (w.block->race && phase != acquired)
            w.block->race->acquire(phase, w.index);
        acquired = phase;
    });
    w.set_pred(i.op[0], done);
    return done == w.active ? Step::next : Step::yield;
}

Step pending_count(Warp &w, const Inst &i)
{
    const uint64_t *state = w.in<uint64_t>(i.op[1]);
    uint32_t *count = w.out<uint32_t>(i.op[0]);
    each_lane(w.active, [&](unsigned l) {
        if (!MBarrierBits::valid(state[l]))
            fault(FaultKind::barrier_misuse, int(l), "the state 0x%llx did not come from an arrival at an mbarrier",
                  ull(state[l]));
        count[l] = MBarrierBits(state[l]).pending;
    });
    return Step::next;
}

/* ---- builders ---- */

void finish(Decode &d, Inst &i, Exec exec, const AddressOpnd &at)
{
    if (!d.take("b64"))
        d.fail("the type of an mbarrier is .b64");
    MBarrierInst *x = d.extra<MBarrierInst>();
    x->at = at;
    i.extra = x;
    i.exec = exec;
    i.cls = Class::barrier;
}

/* .release / .acquire / .relaxed and the scope, which has to follow a .relaxed. */
void take_sem(Decode &d, const char *strong)
{
    d.need_sm(80);
    if (d.take("relaxed"))
        d.need_sm(90);
    else
        d.take(strong);
    if (d.take("cluster"))
        d.need_sm(90);
    else
        d.take("cta");
}

void build_arrive(Decode &d, Inst &i, uint32_t flags)
{
    take_sem(d, "release");
    if (d.take("noComplete"))
        flags |= NO_COMPLETE;
    if (d.take("expect_tx")) {
        d.need_sm(90);
        flags |= EXPECT_TX;
    }
    Space space = take_shared_space(d, true);
    /* Only forms without a state may name mbarriers of other blocks. */
    const bool no_state = d.operand(0).kind == ptx::Operand::sink;
    if (space == Space::shared_cluster && !no_state)
        d.fail("an arrival in .shared::cluster returns no state: the destination has to be _");
    if (no_state && space != Space::shared)
        flags |= MAY_BE_REMOTE;
    d.out(0, Type::b64);
    AddressOpnd at = decode_address(d, i, d.operand(1), space, 1);
    if (d.n() > 2)
        d.in(2, Type::u32);
    else if (flags & (EXPECT_TX | NO_COMPLETE))
        d.fail("the count is missing");
    else
        d.add(d.constant(1, Type::u32));
    i.flags = flags;
    finish(d, i, arrive, at);
}

void build_wait(Decode &d, Inst &i, bool try_wait)
{
    d.need_sm(try_wait ? 90 : 80);
    take_sem(d, "acquire");
    const bool parity = d.take("parity");
    Space space = take_shared_space(d, false);
    d.pred_out(d.operand(0));
    AddressOpnd at = decode_address(d, i, d.operand(1), space, 1);
    d.in(2, parity ? Type::u32 : Type::b64);
    if (try_wait && d.n() > 3)
        d.in(3, Type::u32); /* how long to sleep at most; a failed try gives way to the other warps in any case */
    i.flags = parity ? uint32_t(PARITY) : 0;
    finish(d, i, wait, at);
}

void build_bytes(Decode &d, Inst &i, Exec exec)
{
    d.need_sm(90);
    take_sem(d, "relaxed");
    Space space = take_shared_space(d, true);
    AddressOpnd at = decode_address(d, i, d.operand(0), space, 0);
    d.in(1, Type::u32);
    i.flags = space == Space::shared ? 0 : uint32_t(MAY_BE_REMOTE);
    finish(d, i, exec, at);
}

} // namespace

void build_mbarrier_init(Decode &d, Inst &i)
{
    d.need_sm(80);
    AddressOpnd at = decode_address(d, i, d.operand(0), take_shared_space(d, false), 0);
    d.in(1, Type::u32);
    finish(d, i, init, at);
}

void build_mbarrier_inval(Decode &d, Inst &i)
{
    d.need_sm(80);
    finish(d, i, inval, decode_address(d, i, d.operand(0), take_shared_space(d, false), 0));
}

void build_mbarrier_arrive(Decode &d, Inst &i)
{
    build_arrive(d, i, 0);
}
void build_mbarrier_arrive_drop(Decode &d, Inst &i)
{
    build_arrive(d, i, DROP);
}
void build_mbarrier_expect_tx(Decode &d, Inst &i)
{
    build_bytes(d, i, change_bytes<mbarrier_expect_bytes>);
}
void build_mbarrier_complete_tx(Decode &d, Inst &i)
{
    build_bytes(d, i, change_bytes<mbarrier_complete_bytes>);
}
void build_mbarrier_test_wait(Decode &d, Inst &i)
{
    build_wait(d, i, false);
}
void build_mbarrier_try_wait(Decode &d, Inst &i)
{
    build_wait(d, i, true);
}

void build_mbarrier_pending_count(Decode &d, Inst &i)
{
    d.need_sm(80);
    d.out(0, Type::u32);
    d.in(1, Type::b64);
    finish(d, i, pending_count, AddressOpnd());
}

} // namespace ptxemu
