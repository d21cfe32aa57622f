/* Instructions by which the lanes of a warp exchange values: shfl, vote, match, redux, activemask, elect.
 *
 * The machine has brought the lanes together: a handler is called once for each mask, with the lanes that the mask
 * names and that have not exited.  The tiles of a warp, which name 0xffff and 0xffff0000, say, execute one after the
 * other. */
#include <algorithm>

#include "isa/decode.h"
#include "machine/block.h"
#include "memory/access.h"

namespace ptxemu
{
namespace
{

void write_active(Warp &w, const Opnd &d, uint32_t value)
{
    uint32_t *row = w.out<uint32_t>(d);
    each_lane(w.active, [&](unsigned l) { row[l] = value; });
}

/* Lanes whose value equals `value`. */
template <class T>
Lanes equal_lanes(const T *a, T value)
{
    Lanes same = 0;
    for (unsigned l = 0; l < WARP_SIZE; l++)
        same |= Lanes(a[l] == value) << l;
    return same;
}

/* The 32-bit membership mask, which becomes operand `at` of the instruction; the machine gathers the lanes it names. */
void member_mask(Decode &d, Inst &i, size_t operand, uint8_t at)
{
    i.mask_op = at;
    d.in(operand, Type::b32);
    i.together = Together::mask;
    i.cls = Class::warp;
}

bool is_pair(const ptx::Operand &o)
{
    return o.kind == ptx::Operand::pair;
}

/* ---- shfl ---- */
enum class Shuffle { up, down, bfly, idx };

/* The formulas of the PTX ISA.  c holds the clamp in bits 0-4 and, in bits 8-12, the bits of the lane number that tell
 * segments. *in_range becomes false where the lane keeps its own value. */
template <Shuffle MODE>
int shuffle_source(int lane, uint32_t b, uint32_t c, bool *in_range)
{
    int bval = b & 31, segment = c >> 8 & 31, min = lane & segment, max = min | (int(c & 31) & ~segment);
    int j = MODE == Shuffle::up     ? lane - bval
            : MODE == Shuffle::down ? lane + bval
            : MODE == Shuffle::bfly ? lane ^ bval
                                    : min | (bval & ~segment);
    *in_range = MODE == Shuffle::up ? j >= max : j <= max;
    return *in_range ? j : lane;
}

constexpr uint32_t HAS_PRED = 1;

/* op: d, a, b, c, mask, and the predicate if flag HAS_PRED is set.  What a lane reads from one that does not take part
 * is undefined on hardware; without checks it is what that lane's register holds. */
template <Shuffle MODE>
Step shfl(Warp &w, const Inst &i)
{
    uint32_t a[WARP_SIZE];
    std::copy_n(w.in<uint32_t>(i.op[1]), WARP_SIZE, a);
    const uint32_t *b = w.in<uint32_t>(i.op[2]), *c = w.in<uint32_t>(i.op[3]);
    const Lanes never_written = w.undefined(i.op[1]);
    const bool check = w.block->grid->launch.options.check;
    uint32_t *d = w.out<uint32_t>(i.op[0]);
    Lanes all_in_range = 0, undefined = 0;
    each_lane(w.active, [&](unsigned l) {
        bool in_range;
        unsigned from = unsigned(shuffle_source<MODE>(int(l), b[l], c[l], &in_range));
        if (check && !(w.active >> from & 1))
            fault(FaultKind::missing_lanes, int(l), "lane %u reads the value of lane %u, which does not take part", l,
                  from);
        d[l] = a[from];
        undefined |= Lanes(never_written >> from & 1) << l;
        all_in_range |= Lanes(in_range) << l;
    });
    if (undefined)
        w.mark_undefined(i.op[0], undefined);
    if (i.flags & HAS_PRED)
        w.set_pred(i.op[5], all_in_range);
    return Step::next;
}

void build_shfl(Decode &d, Inst &i)
{
    if (!d.take("sync"))
        d.fail("shfl without .sync does not exist on sm_70 and newer");
    int mode = d.take_one_of({"up", "down", "bfly", "idx"});
    if (mode < 0 || d.type() != Type::b32)
        d.fail("shfl.sync is .up, .down, .bfly or .idx, and .b32");
    const ptx::Operand &dst = d.operand(0);
    d.out(is_pair(dst) ? dst.items[0] : dst, Type::b32);
    d.in(1, Type::b32, Opnd::copy);
    d.in(2, Type::b32);
    d.in(3, Type::b32);
    member_mask(d, i, 4, 4);
    if (is_pair(dst)) {
        d.pred_out(dst.items[1]);
        i.flags = HAS_PRED;
    }
    static const Exec execs[] = {shfl<Shuffle::up>, shfl<Shuffle::down>, shfl<Shuffle::bfly>, shfl<Shuffle::idx>};
    i.exec = execs[mode];
}

/* ---- vote ---- */
/* op: p, a, mask */
Step vote_all(Warp &w, const Inst &i)
{
    w.set_pred(i.op[0], (w.pred(i.op[1]) & w.active) == w.active ? w.active : 0);
    return Step::next;
}

Step vote_any(Warp &w, const Inst &i)
{
    w.set_pred(i.op[0], w.pred(i.op[1]) & w.active ? w.active : 0);
    return Step::next;
}

Step vote_uni(Warp &w, const Inst &i)
{
    Lanes a = w.pred(i.op[1]) & w.active;
    w.set_pred(i.op[0], a == 0 || a == w.active ? w.active : 0);
    return Step::next;
}

Step vote_ballot(Warp &w, const Inst &i)
{
    write_active(w, i.op[0], w.pred(i.op[1]) & w.active);
    return Step::next;
}

void build_vote(Decode &d, Inst &i)
{
    if (!d.take("sync"))
        d.fail("vote without .sync does not exist on sm_70 and newer");
    int mode = d.take_one_of({"all", "any", "uni", "ballot"});
    static const Exec execs[] = {vote_all, vote_any, vote_uni, vote_ballot};
    Type t = d.type();
    if (mode < 0 || t != (mode == 3 ? Type::b32 : Type::pred))
        d.fail("vote.sync is .all.pred, .any.pred, .uni.pred or .ballot.b32");
    if (mode == 3)
        d.out(0, Type::b32);
    else
        d.pred_out(d.operand(0));
    d.pred_in(d.operand(1));
    member_mask(d, i, 2, 2);
    i.exec = execs[mode];
}

/* ---- match ---- */
/* op: d, a, mask */
template <class T>
Step match_any(Warp &w, const Inst &i)
{
    T a[WARP_SIZE];
    std::copy_n(w.in<T>(i.op[1]), WARP_SIZE, a);
    uint32_t *d = w.out<uint32_t>(i.op[0]);
    for (Lanes left = w.active; left;) {
        Lanes same = equal_lanes(a, a[__builtin_ctz(left)]) & w.active;
        each_lane(same, [&](unsigned l) { d[l] = same; });
        left &= ~same;
    }
    return Step::next;
}

/* op: d, a, mask, and the predicate if flag HAS_PRED is set.  d is the lanes that take part if all values are equal,
 * else 0. */
template <class T>
Step match_all(Warp &w, const Inst &i)
{
    const T *a = w.in<T>(i.op[1]);
    bool equal = !(w.active & ~equal_lanes(a, a[__builtin_ctz(w.active)]));
    write_active(w, i.op[0], equal ? w.active : 0);
    if (i.flags & HAS_PRED)
        w.set_pred(i.op[3], equal ? w.active : 0);
    return Step::next;
}

void build_match(Decode &d, Inst &i)
{
    bool any = d.take("any");
    if (!any && !d.take("all"))
        d.fail("match is .any or .all");
    if (!d.take("sync"))
        d.fail("match needs .sync");
    Type t = d.type();
    if (t != Type::b32 && t != Type::b64)
        d.fail("match compares .b32 or .b64");
    const ptx::Operand &dst = d.operand(0);
    bool pair = is_pair(dst);
    if (pair && any)
        d.fail("match.any has no predicate result");
    d.out(pair ? dst.items[0] : dst, Type::b32);
    d.in(1, t);
    member_mask(d, i, 2, 2);
    if (pair) {
        d.pred_out(dst.items[1]);
        i.flags |= HAS_PRED;
    }
    if (any)
        i.exec = t == Type::b32 ? match_any<uint32_t> : match_any<uint64_t>;
    else
        i.exec = t == Type::b32 ? match_all<uint32_t> : match_all<uint64_t>;
}

/* ---- redux ---- */
struct Add {
    template <class T>
    static T of(T a, T b)
    {
        return T(uint32_t(a) + uint32_t(b)); /* wraps, without the host's signed overflow */
    }
};
struct Min {
    template <class T>
    static T of(T a, T b)
    {
        return std::min(a, b);
    }
};
struct Max {
    template <class T>
    static T of(T a, T b)
    {
        return std::max(a, b);
    }
};
struct And {
    template <class T>
    static T of(T a, T b)
    {
        return a & b;
    }
};
struct Or {
    template <class T>
    static T of(T a, T b)
    {
        return a | b;
    }
};
struct Xor {
    template <class T>
    static T of(T a, T b)
    {
        return a ^ b;
    }
};

/* op: d, a, mask */
template <class Op, class T>
Step redux(Warp &w, const Inst &i)
{
    const T *a = w.in<T>(i.op[1]);
    T r = a[__builtin_ctz(w.active)];
    each_lane(w.active & (w.active - 1), [&](unsigned l) { r = Op::of(r, a[l]); });
    write_active(w, i.op[0], uint32_t(r));
    return Step::next;
}

void build_redux(Decode &d, Inst &i)
{
    d.need_sm(80);
    if (!d.take("sync"))
        d.fail("redux needs .sync");
    int op = d.take_one_of({"add", "min", "max", "and", "or", "xor"});
    Type t = d.type();
    if (t == Type::f32)
        d.fail("redux of .f32 needs sm_100");
    bool arithmetic = op >= 0 && op < 3;
    if (op < 0 || !(arithmetic ? t == Type::u32 || t == Type::s32 : t == Type::b32))
        d.fail("redux.sync is .add, .min, .max of .u32 or .s32, or .and, .or, .xor of .b32");
    static const Exec execs[6][2] = {{redux<Add, uint32_t>, redux<Add, int32_t>},
                                     {redux<Min, uint32_t>, redux<Min, int32_t>},
                                     {redux<Max, uint32_t>, redux<Max, int32_t>},
                                     {redux<And, uint32_t>, nullptr},
                                     {redux<Or, uint32_t>, nullptr},
                                     {redux<Xor, uint32_t>, nullptr}};
    d.out(0, t);
    d.in(1, t);
    member_mask(d, i, 2, 2);
    i.exec = execs[op][t == Type::s32];
}

/* ---- activemask, elect ---- */
Step activemask(Warp &w, const Inst &i)
{
    write_active(w, i.op[0], w.active);
    return Step::next;
}

void build_activemask(Decode &d, Inst &i)
{
    if (d.type() != Type::b32)
        d.fail("activemask is .b32");
    d.out(0, Type::b32);
    i.cls = Class::warp;
    i.exec = activemask;
}

/* op: d, p, mask.  The PTX ISA lets any lane of the mask be elected, as long as it is always the same one. */
Step elect(Warp &w, const Inst &i)
{
    unsigned leader = unsigned(__builtin_ctz(w.active));
    write_active(w, i.op[0], leader);
    w.set_pred(i.op[1], 1u << leader);
    return Step::next;
}

void build_elect(Decode &d, Inst &i)
{
    d.need_sm(90);
    if (!d.take("sync") || !is_pair(d.operand(0)))
        d.fail("elect is written elect.sync d|p, mask");
    d.out(d.operand(0).items[0], Type::b32);
    d.pred_out(d.operand(0).items[1]);
    member_mask(d, i, 1, 2);
    i.exec = elect;
}

const Opcode opcodes[] = {
    {"shfl", build_shfl},
    {"vote", build_vote},
    {"match", build_match},
    {"redux", build_redux},
    {"activemask", build_activemask},
    {"elect", build_elect},
};
} // namespace

extern const Family warp_family = {opcodes, sizeof opcodes / sizeof *opcodes};

} // namespace ptxemu
