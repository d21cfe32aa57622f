/* Bulk copies of ranges, their groups and reductions; st.async and red.async; addresses in clusters; proxy fences. */
#include "isa/bulk.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "check/race.h"

namespace ptxemu
{

/* ---------------------------------------------------------------- what all copies share */

Delivery find_delivery(Warp &w, unsigned lane, Space space, uint64_t to, uint64_t bar, size_t bytes, uint32_t align)
{
    Delivery d;
    d.to = resolve_range(w, space, Use::async_write, to, bytes, align);
    d.owner = owner_of_shared(w, d.to);
    if (!d.owner)
        fault_at(FaultKind::wrong_space, int(lane), space, to, "the destination of a bulk copy is no shared memory");
    d.bar = find_mbarrier(w, lane, space, bar);
    if (d.bar.owner != d.owner)
        fault_at(FaultKind::barrier_misuse, int(lane), space, bar,
                 "the mbarrier of a bulk copy lies in block %u of the cluster, its destination in block %u",
                 d.bar.owner->cluster_rank, d.owner->cluster_rank);
    return d;
}

void delivered(Warp &w, const Delivery &d, size_t bytes)
{
    const uint64_t before = mbarrier_complete_bytes(w, d.bar, uint32_t(bytes));
    const uint64_t phase = mbarrier_phase(d.bar, before);
    if (RaceShadow *race = d.owner->race.get())
        race->engine_release(phase, race->engine_write(w, uint32_t(d.to - d.owner->shared), uint32_t(bytes)));
    d.owner->bulk_bytes[phase] += bytes;
    count_issued(*d.owner, bytes);
}

void reading_for_group(Warp &w, unsigned lane, const uint8_t *from, size_t bytes)
{
    Warp::AsyncState &s = Warp::AsyncState::of(w);
    uint32_t copy = 0;
    if (w.block->race)
        copy = w.block->race->engine_read(w, uint32_t(from - w.block->shared), uint32_t(bytes));
    s.bulks.push_back({lane, s.bulk_groups.open[lane], copy, bytes});
    count_issued(*w.block, bytes);
}

/* The engine moves sectors as a warp would that takes 16 bytes a lane. */
void count_engine_global(Warp &w, bool store, uint64_t address, size_t bytes)
{
    if (!w.block->grid->launch.options.profile)
        return;
    uint64_t addresses[WARP_SIZE];
    for (size_t at = 0; at < bytes; at += 16 * WARP_SIZE) {
        const size_t n = std::min<size_t>((bytes - at + 15) / 16, WARP_SIZE);
        for (size_t l = 0; l < n; l++)
            addresses[l] = address + at + 16 * l;
        count_global(w, store, addresses, n == WARP_SIZE ? ALL_LANES : (1u << n) - 1, 16);
    }
}

void take_tail(Decode &d, Operands &o, size_t k, BulkInst *x, bool multicast)
{
    const bool policy = d.take("L2::cache_hint");
    if (multicast)
        x->mask = o.in(k++, Type::b16);
    if (policy)
        o.in(k++, Type::b64);
    if (k != d.n())
        d.fail("it has %zu operands, but %zu were expected", d.n(), k);
}

namespace
{

using ull = unsigned long long;

const BulkInst &bulk_of(const Inst &i)
{
    return *static_cast<const BulkInst *>(i.extra);
}

uint32_t size_of(const Warp &w, const Inst &i, const BulkInst &x, unsigned lane)
{
    const uint32_t n = w.in<uint32_t>(i.op[x.size])[lane];
    if (n % 16)
        fault(FaultKind::misaligned, int(lane), "a bulk copy of %u bytes: the size has to be a multiple of 16", n);
    return n;
}

void move(const BulkInst &x, uint8_t *to, const uint8_t *from, size_t bytes, bool in_shared)
{
    if (x.reduce)
        x.reduce(to, from, bytes, in_shared);
    else
        memmove(to, from, bytes);
}

/* ---------------------------------------------------------------- copies */

Step load(Warp &w, const Inst &i) /* global to shared */
{
    const BulkInst &x = bulk_of(i);
    return one_by_one(w, [&](unsigned l) {
        const uint32_t n = size_of(w, i, x, l);
        if (!n)
            return;
        const uint64_t address = x.from.of(w, i, l);
        const uint8_t *from = resolve_range(w, Space::global, Use::async_read, address, n, 16);
        count_engine_global(w, false, address, n);
        each_delivery(w, i, x, l, n, 16, [&](const Delivery &d) {
            memcpy(d.to, from, n);
            delivered(w, d, n);
        });
    });
}

/* Between the shared memories of blocks.  The source is free again when the receiver says so, by means of its own. */
Step exchange(Warp &w, const Inst &i)
{
    const BulkInst &x = bulk_of(i);
    return one_by_one(w, [&](unsigned l) {
        const uint32_t n = size_of(w, i, x, l);
        if (!n)
            return;
        const uint8_t *from = resolve_range(w, Space::shared, Use::async_read, x.from.of(w, i, l), n, 16);
        if (RaceShadow *race = w.block->race.get())
            race->acquire_engine(w.index, race->engine_read(w, uint32_t(from - w.block->shared), n));
        each_delivery(w, i, x, l, n, 16, [&](const Delivery &d) {
            move(x, d.to, from, n, true);
            delivered(w, d, n);
        });
    });
}

Step store(Warp &w, const Inst &i) /* shared to global */
{
    const BulkInst &x = bulk_of(i);
    return one_by_one(w, [&](unsigned l) {
        const uint32_t n = size_of(w, i, x, l);
        if (!n)
            return;
        const uint64_t address = x.to.of(w, i, l);
        const uint8_t *from = resolve_range(w, Space::shared, Use::async_read, x.from.of(w, i, l), n, 16);
        reading_for_group(w, l, from, n);
        uint8_t *to = resolve_range(w, Space::global, x.reduce ? Use::atomic : Use::async_write, address, n, 16);
        count_engine_global(w, true, address, n);
        move(x, to, from, n, false);
        note_progress(w);
    });
}

Step prefetch(Warp &w, const Inst &i) /* there is no cache to fill; the range has to be right */
{
    const BulkInst &x = bulk_of(i);
    return one_by_one(w, [&](unsigned l) {
        const uint64_t address = x.from.of(w, i, l);
        if (size_of(w, i, x, l) && address % 16)
            fault_at(FaultKind::misaligned, int(l), Space::global, address,
                     "a bulk prefetch at 0x%llx, which is no multiple of 16", ull(address));
    });
}

/* ---------------------------------------------------------------- groups */

Step commit_group(Warp &w, const Inst &)
{
    Warp::AsyncState::of(w).bulk_groups.commit(w.active);
    return Step::next;
}

/* With .read and without: what a program may do afterwards with the source is the same, and its global bytes have arrived. */
Step wait_group(Warp &w, const Inst &i)
{
    Warp::AsyncState &s = Warp::AsyncState::of(w);
    auto waited_for = [&](const Warp::AsyncState::Bulk &b) {
        if (!(w.active >> b.lane & 1) || !s.bulk_groups.due(b.lane, b.group, uint32_t(i.imm)))
            return false;
        if (b.copy)
            w.block->race->acquire_engine(w.index, b.copy);
        count_landed(*w.block, b.bytes);
        return true;
    };
    s.bulks.erase(std::remove_if(s.bulks.begin(), s.bulks.end(), waited_for), s.bulks.end());
    return Step::next;
}

/* ---------------------------------------------------------------- st.async, red.async */

/* Lanes store or reduce a value each into the shared memory of the cluster, and their bytes are counted by an mbarrier. */
Step store_async(Warp &w, const Inst &i)
{
    const BulkInst &x = bulk_of(i);
    const uint32_t element = type_bytes(i.type), n = element * i.vec;
    return one_by_one(w, [&](unsigned l) {
        Delivery d = find_delivery(w, l, Space::shared_cluster, x.to.of(w, i, l), x.bar.of(w, i, l), n, n);
        for (unsigned k = 0; k < i.vec; k++)
            move(x, d.to + k * element, &w.in<uint8_t>(i.op[2 + k])[l * element], element, true);
        delivered(w, d, n);
    });
}

/* ---------------------------------------------------------------- addresses in a cluster */

enum : uint32_t { GENERIC = 1 };

/* The shared address that a 32- or 64-bit register holds; generic ones have to lie in the window. */
uint64_t shared_address(const Warp &w, const Inst &i, const Opnd &o, unsigned lane)
{
    const uint64_t a = o.bits == 32 ? w.in<uint32_t>(o)[lane] : w.in<uint64_t>(o)[lane];
    uint64_t within = a;
    if (i.flags & GENERIC && classify(a, &within) != Space::shared)
        fault_at(FaultKind::wrong_space, int(lane), Space::generic, a, "0x%llx is no generic address of shared memory",
                 ull(a));
    return within;
}

Step mapa(Warp &w, const Inst &i)
{
    const uint32_t *rank = w.in<uint32_t>(i.op[2]);
    const size_t blocks = w.block->cluster->blocks.size();
    each_lane(w.active, [&](unsigned l) {
        if (rank[l] >= blocks)
            fault(FaultKind::out_of_bounds, int(l), "mapa: there is no block %u in a cluster of %zu", rank[l], blocks);
        const uint64_t a = address_in_block(shared_address(w, i, i.op[1], l), rank[l]);
        if (i.op[0].bits == 32)
            w.out<uint32_t>(i.op[0])[l] = uint32_t(a);
        else
            w.out<uint64_t>(i.op[0])[l] = i.flags & GENERIC ? SHARED_WINDOW + a : a;
    });
    return Step::next;
}

Step getctarank(Warp &w, const Inst &i)
{
    each_lane(w.active, [&](unsigned l) {
        const uint32_t owner = uint32_t(shared_address(w, i, i.op[1], l) >> 24) & 0xff;
        w.out<uint32_t>(i.op[0])[l] = owner ? owner - 1 : w.block->cluster_rank;
    });
    return Step::next;
}

/* ---------------------------------------------------------------- fences */

/* Proxies are ways to memory that do not see each other's accesses in order; here all of them are the same way, and the race check
 * looks for fences that are missing before bulk stores. */
enum : uint32_t { FENCES_SHARED = 1 };

Step fence_proxy(Warp &w, const Inst &i)
{
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (w.block->race && i.flags & FENCES_SHARED)
        w.block->race->proxy_fence(w.index);
    return Step::next;
}

/* ---------------------------------------------------------------- builders */

BulkInst *begin(Decode &d, Inst &i, Exec exec)
{
    d.need_sm(90);
    BulkInst *x = d.extra<BulkInst>();
    i.extra = x;
    i.exec = exec;
    i.cls = Class::async_copy;
    return x;
}

constexpr const char *BYTES = "mbarrier::complete_tx::bytes";

void need(Decode &d, const char *mod)
{
    if (!d.take(mod))
        d.fail(".%s is missing", mod);
}

/* cp.async.bulk.TO.FROM and cp.reduce.async.bulk.TO.FROM.  Returns the handler. */
Exec take_direction(Decode &d, bool reduces)
{
    const std::vector<std::string> &mods = d.src().mods;
    const size_t at = reduces ? 3 : 2; /* behind async.bulk or reduce.async.bulk */
    const std::string to = at + 1 < mods.size() ? mods[at] : "", from = at + 1 < mods.size() ? mods[at + 1] : "";
    const bool to_shared = to == "shared::cluster" || (to == "shared::cta" && from == "global");
    const Exec exec = to == "global" && from == "shared::cta"            ? store
                      : to_shared && from == "global" && !reduces        ? load
                      : to == "shared::cluster" && from == "shared::cta" ? exchange
                                                                         : nullptr;
    if (!exec)
        d.fail("there are no such copies from .%s to .%s", from.c_str(), to.c_str());
    d.take(to.c_str());
    d.take(from.c_str());
    need(d, exec == store ? "bulk_group" : BYTES);
    return exec;
}

void take_reduction(Decode &d, BulkInst *x, bool to_global)
{
    x->op = take_red_op(d);
    const bool noftz = d.take("noftz");
    const Type t = d.type();
    const bool half = t == Type::f16 || t == Type::bf16;
    x->reduce = find_reduction(x->op, t);
    if (!x->reduce || noftz != (half && x->op == RedOp::add) || (is_float(t) && !to_global))
        d.fail("there is no such reduction of .%s", type_text(t));
}

void build_range(Decode &d, Inst &i, bool reduces)
{
    const Space to = d.has("shared::cluster") ? Space::shared_cluster : Space::shared;
    BulkInst *x = begin(d, i, take_direction(d, reduces));
    if (reduces)
        take_reduction(d, x, i.exec == store);
    Operands o(d, i);
    x->to = o.address(0, i.exec == store ? Space::global : to);
    x->from = o.address(1, i.exec == load ? Space::global : Space::shared);
    x->size = o.in(2, Type::u32);
    if (i.exec != store)
        x->bar = o.address(3, to);
    take_tail(d, o, i.exec == store ? 3 : 4, x, i.exec == load && d.take("multicast::cluster"));
}

void build_copy(Decode &d, Inst &i)
{
    build_range(d, i, false);
}
void build_reduce(Decode &d, Inst &i)
{
    build_range(d, i, true);
}

void build_prefetch(Decode &d, Inst &i)
{
    BulkInst *x = begin(d, i, prefetch);
    need(d, "L2");
    need(d, "global");
    Operands o(d, i);
    x->from = o.address(0, Space::global);
    x->size = o.in(1, Type::u32);
    take_tail(d, o, 2, x, false);
}

void build_commit_group(Decode &d, Inst &i)
{
    begin(d, i, commit_group);
}

void build_wait_group(Decode &d, Inst &i)
{
    begin(d, i, wait_group);
    d.take("read");
    if (d.operand(0).kind != ptx::Operand::integer)
        d.fail("the number of groups has to be a constant");
    i.imm = d.operand(0).bits;
}

void build_st_async(Decode &d, Inst &i)
{
    BulkInst *x = begin(d, i, store_async);
    d.take("weak");
    d.take("shared::cluster");
    need(d, BYTES);
    static const char *const widths[] = {"v2", "v4"};
    for (unsigned k = 0; k < 2; k++)
        if (d.take(widths[k]))
            i.vec = uint8_t(2u << k);
    i.type = d.type();
    if (type_bits(i.type) != 32 && type_bits(i.type) != 64)
        d.fail("st.async stores values of 32 or 64 bits");
    Operands o(d, i);
    x->to = o.address(0, Space::shared_cluster);
    x->bar = o.address(2, Space::shared_cluster);
    unsigned n = 1;
    const bool vector = d.vector_width(1, &n);
    if (n != i.vec)
        d.fail("it stores %u values, but there are %u", i.vec, n);
    for (unsigned k = 0; k < i.vec; k++)
        o.in(vector ? d.operand(1).items[k] : d.operand(1), i.type);
}

void build_red_async(Decode &d, Inst &i)
{
    BulkInst *x = begin(d, i, store_async);
    need(d, "relaxed");
    need(d, "cluster");
    d.take("shared::cluster");
    need(d, BYTES);
    x->op = take_red_op(d);
    i.type = d.type();
    x->reduce = find_reduction(x->op, i.type);
    if (!x->reduce || is_float(i.type))
        d.fail("there is no such reduction of .%s", type_text(i.type));
    Operands o(d, i);
    x->to = o.address(0, Space::shared_cluster);
    x->bar = o.address(2, Space::shared_cluster);
    o.in(1, i.type);
}

/* A variable's name stands for its address in .shared, also where a register would have to hold a generic address. */
void take_cluster_space(Decode &d, Inst &i)
{
    const ptx::Operand &o = d.operand(1);
    const bool shared = d.take("shared::cluster") || o.kind == ptx::Operand::symbol;
    i.flags = shared ? 0 : uint32_t(GENERIC);
}

void build_mapa(Decode &d, Inst &i)
{
    d.need_sm(90);
    take_cluster_space(d, i);
    i.type = d.type();
    if (i.type != Type::u32 && i.type != Type::u64)
        d.fail("the type is .u32 or .u64");
    d.out(0, i.type);
    d.in(1, i.type);
    d.in(2, Type::u32);
    i.exec = mapa;
    i.cls = Class::integer;
}

void build_getctarank(Decode &d, Inst &i)
{
    d.need_sm(90);
    take_cluster_space(d, i);
    i.type = d.type();
    d.out(0, Type::u32);
    d.in(1, i.type);
    i.exec = getctarank;
    i.cls = Class::integer;
}

void build_fence_proxy(Decode &d, Inst &i)
{
    i.exec = fence_proxy;
    i.cls = Class::barrier;
    if (d.take("alias")) {
        d.need_sm(70);
        return;
    }
    d.need_sm(90);
    if (d.take("async")) {
        i.flags = d.take_one_of({"global", "shared::cta", "shared::cluster"}) == 0 ? 0 : uint32_t(FENCES_SHARED);
        return;
    }
    const bool with_async = d.take("async::generic"), with_map = !with_async && d.take("tensormap::generic");
    if (!with_async && !with_map)
        d.fail("the kind of proxy is missing");
    const int sem = d.take_one_of({"acquire", "release"});
    if (sem < 0)
        d.fail(".acquire or .release is missing");
    i.flags = with_async ? uint32_t(FENCES_SHARED) : 0;
    if (with_async)
        d.take_one_of({"sync_restrict::shared::cluster", "sync_restrict::shared::cta"});
    if (d.take_one_of({"cta", "cluster", "gpu", "sys"}) < 0)
        d.fail("the scope is missing");
    if (with_map && sem == 0) { /* acquire names the 128 bytes of a tensor map */
        Operands o(d, i);
        o.address(0, Space::generic);
        if (d.operand(1).kind != ptx::Operand::integer || d.operand(1).bits != 128)
            d.fail("the size has to be 128");
    }
}

void refuse_tensormap_replace(Decode &d, Inst &)
{
    d.fail("the emulator does not change tensor maps on the device; make them with cuTensorMapEncodeTiled");
}

const Opcode opcodes[] = {
    {"cp.async.bulk", build_copy},
    {"cp.reduce.async.bulk", build_reduce},
    {"cp.async.bulk.prefetch", build_prefetch},
    {"cp.async.bulk.commit_group", build_commit_group},
    {"cp.async.bulk.wait_group", build_wait_group},
    {"cp.async.bulk.tensor", build_tensor_copy},
    {"cp.async.bulk.prefetch.tensor", build_tensor_prefetch},
    {"cp.reduce.async.bulk.tensor", build_tensor_reduce},
    {"st.async", build_st_async},
    {"red.async", build_red_async},
    {"mapa", build_mapa},
    {"getctarank", build_getctarank},
    {"fence.proxy", build_fence_proxy},
    {"tensormap.replace", refuse_tensormap_replace},
};

} // namespace

const Family bulk_family = {opcodes, sizeof opcodes / sizeof *opcodes};

} // namespace ptxemu
