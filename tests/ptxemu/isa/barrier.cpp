/* bar, barrier, barrier.cluster, bar.warp.sync, nanosleep. */
#include "isa/decode.h"
#include "machine/block.h"

namespace ptxemu
{
namespace
{
enum Flags : uint32_t {
    has_count = 1,
    sync = 2,      /* the lanes wait; else: arrive */
    varies = 4,    /* barrier or count are in registers */
    red_shift = 4, /* a BarrierRed in bits 4-5 */
};

/* Operands: destination (red only), barrier, count (if has_count), predicate (red only).  Lanes that execute the instruction together
 * must name the same barrier and count; hardware would take lanes apart where the form is not .aligned, but no compiler makes use of
 * that. */
struct Place {
    uint32_t id, threads;
    bool operator==(const Place &o) const { return id == o.id && threads == o.threads; }
};

Place place_of(const Warp &w, const Inst &i, unsigned lane)
{
    const Opnd *o = i.op + (i.flags >> red_shift & 3 ? 1 : 0);
    return {w.in<uint32_t>(o[0])[lane], i.flags & has_count ? w.in<uint32_t>(o[1])[lane] : 0};
}

void agree_on(const Warp &w, const Inst &i, const Place &place)
{
    for (unsigned l = 0; l < WARP_SIZE; l++)
        if (w.active >> l & 1 && !(place_of(w, i, l) == place))
            fault(FaultKind::mismatched_barrier, int(l),
                  "lanes of one warp name barrier %u for %u threads and barrier %u for %u threads in one instruction",
                  place.id, place.threads, place_of(w, i, l).id, place_of(w, i, l).threads);
}

Step run_barrier(Warp &w, const Inst &i)
{
    const BarrierRed red = BarrierRed(i.flags >> red_shift & 3);
    const Lanes predicate = red == BarrierRed::none ? 0 : w.pred(i.op[i.n_op - 1]);
    const Place place = place_of(w, i, unsigned(__builtin_ctz(w.active)));
    if (i.flags & varies)
        agree_on(w, i, place);
    return barrier_arrive(w, place.id, place.threads, i.flags & sync, red, predicate);
}

void build_place(Decode &d, Inst &i, size_t k, bool count)
{
    const bool in_register = d.in(k, Type::u32).kind == Opnd::reg;
    const bool count_too = count && d.in(k + 1, Type::u32).kind == Opnd::reg;
    i.flags |= (count ? uint32_t(has_count) : 0) | (in_register || count_too ? uint32_t(varies) : 0);
}

void build_red(Decode &d, Inst &i)
{
    const int red = d.take_one_of({"popc", "and", "or"});
    const Type t = d.type();
    if (red < 0 || t != (red == 0 ? Type::u32 : Type::pred))
        d.unknown();
    i.flags |= sync | uint32_t(red + 1) << red_shift;
    if (red == 0)
        d.out(0, Type::u32);
    else
        d.pred_out(d.operand(0));
    build_place(d, i, 1, d.n() == 4);
    d.pred_in(d.operand(d.n() - 1));
}

void build_bar(Decode &d, Inst &i)
{
    d.take("cta");
    const bool bar = d.src().opcode == "bar"; /* always .aligned, as the longer name is only if it says so */
    if (d.take("aligned") || bar)
        i.together = Together::warp;
    i.cls = Class::barrier;
    i.exec = run_barrier;
    const int what = d.take_one_of({"sync", "arrive", "red"});
    if (what < 0)
        d.unknown();
    if (what == 2)
        return build_red(d, i);
    i.flags |= what == 0 ? uint32_t(sync) : 0;
    if (what == 1 && d.n() < 2)
        d.fail("an arrival needs the number of threads");
    build_place(d, i, 0, d.n() > 1);
}

/* The loop has gathered the lanes, and that is all. */
Step run_warp_sync(Warp &, const Inst &)
{
    return Step::next;
}

void build_warp_sync(Decode &d, Inst &i)
{
    d.in(0, Type::b32);
    i.mask_op = 0;
    i.together = Together::meet;
    i.cls = Class::barrier;
    i.exec = run_warp_sync;
}

Step run_cluster(Warp &w, const Inst &i)
{
    return i.flags & sync ? cluster_wait(w) : cluster_arrive(w, false);
}

void build_cluster(Decode &d, Inst &i)
{
    d.need_sm(90);
    const int what = d.take_one_of({"arrive", "wait"});
    if (what < 0)
        d.unknown();
    d.take_one_of(
        {"release", "acquire", "relaxed"}); /* memory is in order here; the race check takes the strong form */
    if (d.take("aligned"))
        i.together = Together::warp;
    i.flags = what ? uint32_t(sync) : 0;
    i.cls = Class::barrier;
    i.exec = run_cluster;
}

Step run_nanosleep(Warp &, const Inst &)
{
    return Step::yield;
}

void build_nanosleep(Decode &d, Inst &i)
{
    d.need_sm(70);
    if (d.type() != Type::u32)
        d.unknown();
    d.in(0, Type::u32);
    i.exec = run_nanosleep;
    i.cls = Class::other;
}

const Opcode opcodes[] = {
    {"bar", build_bar},
    {"barrier", build_bar},
    {"bar.warp.sync", build_warp_sync},
    {"barrier.cluster", build_cluster},
    {"nanosleep", build_nanosleep},
};
} // namespace

extern const Family barrier_family = {opcodes, sizeof opcodes / sizeof *opcodes};

} // namespace ptxemu
