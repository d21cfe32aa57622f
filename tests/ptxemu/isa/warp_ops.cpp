/* Instructions by which the lanes of a warp exchange values: shfl, vote, match, redux, activemask, elect.
 *
 * Lanes of one path may name different masks: the halves of a warp that work as two tiles of 16 threads name 0xffff and
 * 0xffff0000.  Each mask is an instruction of its own then, executed by the lanes that name it; groups() does that split. */
#include <algorithm>

#include "isa/decode.h"
#include "machine/block.h"

namespace ptxemu
{
namespace
{

bool checks(const Warp &w)
{
    return w.block->grid->launch.options.check;
}

/* Calls f(lanes, mask) for every mask that the active lanes name.  A lane that names a mask without itself is a fault: on
 * hardware its result is undefined, and mostly the sign of a mask computed for other lanes. */
template <class F>
void groups(const Warp &w, const Opnd &mask_operand, F f)
{
    const uint32_t *mask = w.in<uint32_t>(mask_operand);
    for (Lanes left = w.active; left;) {
        uint32_t m = mask[__builtin_ctz(left)];
        Lanes same = 0;
        for (unsigned l = 0; l < WARP_SIZE; l++)
            same |= Lanes(mask[l] == m) << l;
        same &= left;
        if (same & ~m) {
            int lane = __builtin_ctz(same & ~m);
            fault(FaultKind::missing_lanes, lane, "lane %d executes this with the mask 0x%08x, which does not name it",
                  lane, m);
        }
        f(same, m);
        left &= ~same;
    }
}

void write_masked(uint32_t *d, Lanes lanes, uint32_t value)
{
    for (unsigned l = 0; l < WARP_SIZE; l++)
        if (lanes >> l & 1)
            d[l] = value;
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
enum class Shuffle : uint32_t { up, down, bfly, idx };

struct Source {
    unsigned lane;
    bool in_range; /* the predicate result: false where the lane keeps its own value */
};

/* The formulas of the PTX ISA.  c holds the clamp in bits 0-4 and, in bits 8-12, the bits of the lane number that tell segments. */
Source shuffle_source(Shuffle mode, unsigned lane, uint32_t b, uint32_t c)
{
    unsigned bval = b & 31, cval = c & 31, segment = c >> 8 & 31;
    unsigned max = (lane & segment) | (cval & ~segment), min = lane & segment;
    int j = 0;
    bool in_range = false;
    switch (mode) {
    case Shuffle::up:
        j = int(lane) - int(bval);
        in_range = j >= int(max);
        break;
    case Shuffle::down:
        j = int(lane + bval);
        in_range = j <= int(max);
        break;
    case Shuffle::bfly:
        j = int(lane ^ bval);
        in_range = j <= int(max);
        break;
    case Shuffle::idx:
        j = int(min | (bval & ~segment));
        in_range = j <= int(max);
        break;
    }
    return {in_range ? unsigned(j) : lane, in_range};
}

/* op: d, a, b, c, mask, and the predicate if flag HAS_PRED is set. */
constexpr uint32_t SHFL_MODE = 3, HAS_PRED = 4;

Step shfl(Warp &w, const Inst &i)
{
    uint32_t a[WARP_SIZE];
    std::copy_n(w.in<uint32_t>(i.op[1]), WARP_SIZE, a);
    const uint32_t *b = w.in<uint32_t>(i.op[2]), *c = w.in<uint32_t>(i.op[3]);
    Source from[WARP_SIZE];
    Lanes in_range = 0;
    for (unsigned l = 0; l < WARP_SIZE; l++) {
        from[l] = shuffle_source(Shuffle(i.flags & SHFL_MODE), l, b[l], c[l]);
        in_range |= Lanes(from[l].in_range) << l;
    }
    Lanes never_written = w.undefined(i.op[1]), undefined = 0;
    bool check = checks(w);
    uint32_t *d = w.out<uint32_t>(i.op[0]);
    groups(w, i.op[4], [&](Lanes lanes, uint32_t mask) {
        for (unsigned l = 0; l < WARP_SIZE; l++) {
            if (!(lanes >> l & 1))
                continue;
            unsigned s = from[l].lane;
            /* hardware gives an undefined value; without checks it is what the source lane's register holds */
            if (check && !(lanes >> s & 1))
                fault(FaultKind::missing_lanes, int(l), "lane %u reads the value of lane %u, which %s", l, s,
                      mask >> s & 1 ? "does not execute this instruction" : "the mask does not name");
            d[l] = a[s];
            undefined |= Lanes(never_written >> s & 1) << l;
        }
    });
    if (undefined)
        w.mark_undefined(i.op[0], undefined);
    if (i.flags & HAS_PRED)
        w.set_pred(i.op[5], in_range);
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
    i.flags = uint32_t(mode);
    member_mask(d, i, 4, 4);
    if (is_pair(dst)) {
        d.pred_out(dst.items[1]);
        i.flags |= HAS_PRED;
    }
    i.exec = shfl;
}

/* ---- vote ---- */
/* op: p, a, mask */
template <class F>
Step vote_pred(Warp &w, const Inst &i, F holds)
{
    Lanes a = w.pred(i.op[1]), result = 0;
    groups(w, i.op[2], [&](Lanes lanes, uint32_t) {
        if (holds(a & lanes, lanes))
            result |= lanes;
    });
    w.set_pred(i.op[0], result);
    return Step::next;
}

Step vote_all(Warp &w, const Inst &i)
{
    return vote_pred(w, i, [](Lanes a, Lanes lanes) { return a == lanes; });
}

Step vote_any(Warp &w, const Inst &i)
{
    return vote_pred(w, i, [](Lanes a, Lanes) { return a != 0; });
}

Step vote_uni(Warp &w, const Inst &i)
{
    return vote_pred(w, i, [](Lanes a, Lanes lanes) { return a == 0 || a == lanes; });
}

Step vote_ballot(Warp &w, const Inst &i)
{
    Lanes a = w.pred(i.op[1]);
    groups(w, i.op[2], [&](Lanes lanes, uint32_t) { write_masked(w.out<uint32_t>(i.op[0]), lanes, a & lanes); });
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
    groups(w, i.op[2], [&](Lanes lanes, uint32_t) {
        for (Lanes left = lanes; left;) {
            T value = a[__builtin_ctz(left)];
            Lanes same = 0;
            for (unsigned l = 0; l < WARP_SIZE; l++)
                same |= Lanes(a[l] == value) << l;
            same &= lanes;
            write_masked(d, same, same);
            left &= ~same;
        }
    });
    return Step::next;
}

/* op: d, a, mask, and the predicate if flag HAS_PRED is set.  d is the executing lanes where all values are equal, else 0. */
template <class T>
Step match_all(Warp &w, const Inst &i)
{
    T a[WARP_SIZE];
    std::copy_n(w.in<T>(i.op[1]), WARP_SIZE, a);
    uint32_t *d = w.out<uint32_t>(i.op[0]);
    Lanes all_equal = 0;
    groups(w, i.op[2], [&](Lanes lanes, uint32_t) {
        T first = a[__builtin_ctz(lanes)];
        Lanes same = 0;
        for (unsigned l = 0; l < WARP_SIZE; l++)
            same |= Lanes(a[l] == first) << l;
        bool equal = (same & lanes) == lanes;
        write_masked(d, lanes, equal ? lanes : 0);
        all_equal |= equal ? lanes : 0;
    });
    if (i.flags & HAS_PRED)
        w.set_pred(i.op[3], all_equal);
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
    T a[WARP_SIZE];
    std::copy_n(w.in<T>(i.op[1]), WARP_SIZE, a);
    groups(w, i.op[2], [&](Lanes lanes, uint32_t) {
        T r = a[__builtin_ctz(lanes)];
        for (Lanes left = lanes & (lanes - 1); left; left &= left - 1)
            r = Op::of(r, a[__builtin_ctz(left)]);
        write_masked(w.out<uint32_t>(i.op[0]), lanes, uint32_t(r));
    });
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
    write_masked(w.out<uint32_t>(i.op[0]), w.active, w.active);
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

/* op: d, p, mask.  The PTX ISA lets any lane of the mask be elected, as long as it is always the same; GPUs take the lowest. */
Step elect(Warp &w, const Inst &i)
{
    Lanes elected = 0;
    groups(w, i.op[2], [&](Lanes lanes, uint32_t) {
        unsigned leader = unsigned(__builtin_ctz(lanes));
        write_masked(w.out<uint32_t>(i.op[0]), lanes, leader);
        elected |= 1u << leader;
    });
    w.set_pred(i.op[1], elected);
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
