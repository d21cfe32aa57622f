/* The memory family: its table, and what is no access: address conversion, fences, hints for caches. */
#include <atomic>

#include "check/race.h"
#include "isa/memory_order.h"
#include "memory/access.h"
#include "memory/heap.h"

namespace ptxemu
{
namespace
{
Step nothing(Warp &, const Inst &)
{
    return Step::next;
}

/* ---- cvta, isspacep ---- */

uint64_t parameters_at(const Warp &w)
{
    return reinterpret_cast<uint64_t>(w.block->grid->params.data());
}

/* What to add to an address of the space to make it generic. */
uint64_t window_of(Space s)
{
    switch (s) {
    case Space::shared:
    case Space::shared_cluster:
        return SHARED_WINDOW;
    case Space::local:
        return LOCAL_WINDOW;
    default:
        return 0;
    }
}

/* The name of a kernel's parameter is an offset in the block of parameters. */
Step cvta_param_name(Warp &w, const Inst &i)
{
    uint64_t *d = w.out<uint64_t>(i.op[0]);
    each_lane(w.active, [&](unsigned l) { d[l] = parameters_at(w) + i.imm; });
    return Step::next;
}

/* An address that is not in the space's window is converted all the same, as by hardware: the access that uses it is at fault. */
template <bool To>
Step cvta(Warp &w, const Inst &i)
{
    const uint64_t *a = w.in<uint64_t>(i.op[1]);
    uint64_t *d = w.out<uint64_t>(i.op[0]), window = window_of(i.space);
    each_lane(w.active, [&](unsigned l) { d[l] = To ? a[l] - window : a[l] + window; });
    return Step::next;
}

void build_cvta(Decode &d, Inst &i)
{
    const bool to = d.take("to");
    i.space = take_space(d);
    if (i.space == Space::generic)
        d.fail("a state space is missing");
    if (d.type() != Type::u64)
        d.fail("generic addresses have 64 bits");
    i.cls = Class::integer;
    d.out(0, Type::u64);
    if (d.is_param_symbol(d.operand(1), &i.imm)) {
        i.exec = cvta_param_name;
        return;
    }
    d.in(1, Type::u64);
    i.exec = to ? cvta<true> : cvta<false>;
}

/* Parameters and constants are also part of the global window. */
bool is_in_space(const Warp &w, Space s, uint64_t address)
{
    uint64_t within;
    const Space real = classify(address, &within);
    const uint64_t rank = within >> 24;
    const Heap *heap = w.block->grid->launch.heap;
    switch (s) {
    case Space::shared:
        return real == Space::shared && (rank == 0 || rank - 1 == w.block->cluster_rank);
    case Space::param:
        return address - parameters_at(w) < w.block->grid->params.size();
    case Space::constant: {
        const Allocation *a = real == Space::global && heap ? heap->find(address) : nullptr;
        return a && a->kind == AllocKind::module_const;
    }
    case Space::shared_cluster:
        return real == Space::shared;
    default:
        return real == s;
    }
}

Step isspacep(Warp &w, const Inst &i)
{
    const uint64_t *a = w.in<uint64_t>(i.op[1]);
    Lanes in = 0;
    each_lane(w.active, [&](unsigned l) { in |= Lanes(is_in_space(w, i.space, a[l])) << l; });
    w.set_pred(i.op[0], in);
    return Step::next;
}

void build_isspacep(Decode &d, Inst &i)
{
    i.space = take_space(d);
    if (i.space == Space::generic)
        d.fail("a state space is missing");
    d.pred_out(d.operand(0));
    d.in(1, Type::u64);
    i.exec = isspacep;
    i.cls = Class::integer;
}

/* ---- fences ---- */

Step fence(Warp &w, const Inst &)
{
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (w.block->race)
        w.block->race->fence(w.index);
    return Step::next;
}

void build_membar(Decode &d, Inst &i)
{
    if (d.take_one_of({"cta", "gl", "sys"}) < 0)
        d.fail("a level (.cta, .gl or .sys) is missing");
    i.exec = fence;
    i.cls = Class::barrier;
}

/* fence{.sc, .acq_rel, .acquire, .release}.scope, the forms of sm_90 that order shared memory only included: those that ask for
 * less get more.  All memory is sequentially consistent here as far as the host's is after a full fence. */
void build_fence(Decode &d, Inst &i)
{
    const int sem = d.take_one_of({"sc", "acq_rel", "acquire", "release"});
    if (sem >= 2) {
        d.need_sm(90);
        d.take_one_of({"sync_restrict::shared::cta", "sync_restrict::shared::cluster"});
    }
    if (!take_scope(d))
        d.fail("a scope (.cta, .cluster, .gpu or .sys) is missing");
    i.exec = fence;
    i.cls = Class::barrier;
}

/* Orders mbarrier.init before what other blocks of the cluster do; nothing is late here. */
void build_fence_mbarrier_init(Decode &d, Inst &i)
{
    d.need_sm(90);
    if (!d.take("release") || !d.take("cluster"))
        d.fail("fence.mbarrier_init.release.cluster is its only form");
    i.exec = fence;
    i.cls = Class::barrier;
}

/* ---- caches ---- */

/* There are no caches to fill, and hardware ignores addresses that cannot be prefetched.  The address is decoded nevertheless. */
void build_prefetch(Decode &d, Inst &i)
{
    const Space space = take_space(d);
    if (d.take("tensormap"))
        d.need_sm(90);
    else if (d.take_one_of({"L1", "L2"}) < 0 && d.take_one_of({"L2::evict_last", "L2::evict_normal"}) < 0)
        d.fail("a cache level is missing");
    take_address(d, i, 0, space);
    i.exec = nothing;
    i.cls = Class::other;
}

void build_prefetchu(Decode &d, Inst &i)
{
    if (!d.take("L1"))
        d.fail("prefetchu.L1 is its only form");
    take_address(d, i, 0, Space::generic);
    i.exec = nothing;
    i.cls = Class::other;
}

constexpr uint32_t LINE = 128;

void line_operands(Decode &d, Inst &i, const char *what)
{
    d.need_sm(80);
    const Space space = take_space(d);
    if (!d.take(what))
        d.fail(".%s is missing", what);
    take_address(d, i, 0, space);
    if (d.operand(1).kind != ptx::Operand::integer || d.operand(1).bits != LINE)
        d.fail("the size must be %u", LINE);
    i.cls = Class::other;
}

void build_applypriority(Decode &d, Inst &i)
{
    line_operands(d, i, "L2::evict_normal");
    i.exec = nothing;
}

/* The line's content is gone: reading it before the next write is reading what nobody has written. */
Step discard(Warp &w, const Inst &i)
{
    uint64_t address[WARP_SIZE];
    uint8_t *p[WARP_SIZE];
    addresses_of(w, i, i.op[0], address);
    Access a{i.space, Use::write, LINE};
    a.undefined = w.active;
    a.count = false;
    resolve(w, a, address, w.active, p);
    return Step::next;
}

void build_discard(Decode &d, Inst &i)
{
    line_operands(d, i, "L2");
    i.exec = discard;
}

/* A policy is an opaque value that only cache hints take. */
Step createpolicy(Warp &w, const Inst &i)
{
    uint64_t *d = w.out<uint64_t>(i.op[0]);
    each_lane(w.active, [&](unsigned l) { d[l] = 0; });
    return Step::next;
}

void build_createpolicy(Decode &d, Inst &i)
{
    d.need_sm(80);
    static const char *const primary[] = {"L2::evict_last", "L2::evict_normal", "L2::evict_first",
                                          "L2::evict_unchanged"};
    const int form = d.take_one_of({"fractional", "range", "cvt"});
    if (form == 2 && !d.take("L2"))
        d.fail(".L2 is missing");
    const Space space = form == 1 ? take_space(d) : Space::generic;
    for (const char *p : primary)
        d.take(p);
    if (form < 0 || d.type() != Type::b64)
        d.fail("unknown form");
    d.out(0, Type::b64);
    if (form == 0 && d.n() > 1)
        d.in(1, Type::f32);
    if (form == 1) {
        take_address(d, i, 1, space);
        d.in(2, Type::u32);
        d.in(3, Type::u32);
    }
    if (form == 2)
        d.in(1, Type::b64);
    i.exec = createpolicy;
    i.cls = Class::other;
}

const Opcode opcodes[] = {
    {"ld", build_ld},
    {"ldu", build_ldu},
    {"st", build_st},
    {"cvta", build_cvta},
    {"isspacep", build_isspacep},
    {"membar", build_membar},
    {"fence", build_fence},
    {"fence.mbarrier_init", build_fence_mbarrier_init},
    {"prefetch", build_prefetch},
    {"prefetchu", build_prefetchu},
    {"applypriority", build_applypriority},
    {"discard", build_discard},
    {"createpolicy", build_createpolicy},
};
} // namespace

const Family memory_family = {opcodes, sizeof opcodes / sizeof *opcodes};

} // namespace ptxemu
