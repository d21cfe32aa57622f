/* Comparisons: setp, set, slct.
 *
 * A comparison of two rows is one C++ function that gives a set of lanes; it is instantiated for every type and
 * relation, and setp and set keep a pointer to theirs.  Types are described by how they are read: a key that has an
 * order, and whether it is a NaN. */
#include <cfloat>
#include <cmath>
#include <iterator>

#include "isa/lanes.h"

namespace ptxemu
{
namespace
{

enum class Relation : uint8_t { eq, ne, lt, le, gt, ge, lo, ls, hi, hs, equ, neu, ltu, leu, gtu, geu, num, nan, count };

/* ---- how the values of a type are read ---- */

template <class T>
struct Integer {
    using Raw = T;
    static bool is_nan(T) { return false; }
    static T key(T v) { return v; }
};

template <class T, bool Ftz>
struct Real {
    using Raw = T;
    static bool is_nan(T v) { return v != v; }
    static T key(T v) { return Ftz && std::fabs(v) < T(FLT_MIN) ? T(0) : v; } /* .ftz exists for f32 */
};

/* f16 and bf16 have an order without being converted: sign and magnitude, +0 and -0 being one.  Infinity is the
 * magnitude beyond which NaNs lie, Normal the smallest that is not flushed.  Shift 16 reads the upper half of an x2
 * register. */
template <class T, unsigned Shift, uint16_t Infinity, uint16_t Normal>
struct Half {
    using Raw = T;
    static int magnitude(T v) { return v >> Shift & 0x7fff; }
    static bool is_nan(T v) { return magnitude(v) > Infinity; }
    static int key(T v)
    {
        int m = magnitude(v) < Normal ? 0 : magnitude(v);
        return v >> Shift & 0x8000 ? -m : m;
    }
};
template <class T, unsigned Shift, bool Ftz>
using F16 = Half<T, Shift, 0x7c00, Ftz ? 0x0400 : 0>;
template <class T, unsigned Shift>
using BF16 = Half<T, Shift, 0x7f80, 0>;

/* ---- relations ---- */

template <Relation R, class V>
bool holds(typename V::Raw a, typename V::Raw b)
{
    using Rel = Relation;
    const bool unordered = V::is_nan(a) || V::is_nan(b);
    const auto x = V::key(a), y = V::key(b);
    if constexpr (R == Rel::num)
        return !unordered;
    else if constexpr (R == Rel::nan)
        return unordered;
    else if constexpr (R == Rel::eq)
        return !unordered && (x == y);
    else if constexpr (R == Rel::ne)
        return !unordered && (x != y);
    else if constexpr (R == Rel::lt || R == Rel::lo)
        return !unordered && (x < y);
    else if constexpr (R == Rel::le || R == Rel::ls)
        return !unordered && (x <= y);
    else if constexpr (R == Rel::gt || R == Rel::hi)
        return !unordered && (x > y);
    else if constexpr (R == Rel::ge || R == Rel::hs)
        return !unordered && (x >= y);
    else if constexpr (R == Rel::equ) /* the ...u relations also hold for NaNs: the opposite of the opposite relation */
        return !holds<Rel::ne, V>(a, b);
    else if constexpr (R == Rel::neu)
        return !holds<Rel::eq, V>(a, b);
    else if constexpr (R == Rel::ltu)
        return !holds<Rel::ge, V>(a, b);
    else if constexpr (R == Rel::leu)
        return !holds<Rel::gt, V>(a, b);
    else if constexpr (R == Rel::gtu)
        return !holds<Rel::le, V>(a, b);
    else
        return !holds<Rel::lt, V>(a, b);
}

using Compare = Lanes (*)(const Warp &w, const Opnd &a, const Opnd &b);

template <Relation R, class V>
Lanes compare(const Warp &w, const Opnd &a, const Opnd &b)
{
    const auto *x = w.in<typename V::Raw>(a), *y = w.in<typename V::Raw>(b);
    return lanes_where(w.active, [=](unsigned l) { return holds<R, V>(x[l], y[l]); });
}

template <class V, size_t... R>
Compare pick(Relation r, std::index_sequence<R...>)
{
    static constexpr Compare all[] = {compare<Relation(R), V>...};
    return all[size_t(r)];
}
template <class V>
Compare pick(Relation r)
{
    return pick<V>(r, std::make_index_sequence<size_t(Relation::count)>());
}

template <unsigned Shift, class T>
Compare pick_half(Type t, Relation r, bool ftz)
{
    if (t == Type::bf16 || t == Type::bf16x2)
        return pick<BF16<T, Shift>>(r);
    return ftz ? pick<F16<T, Shift, true>>(r) : pick<F16<T, Shift, false>>(r);
}

Compare pick(Type t, Relation r, bool ftz)
{
    switch (t) {
    case Type::s16:
        return pick<Integer<int16_t>>(r);
    case Type::s32:
        return pick<Integer<int32_t>>(r);
    case Type::s64:
        return pick<Integer<int64_t>>(r);
    case Type::f32:
        return ftz ? pick<Real<float, true>>(r) : pick<Real<float, false>>(r);
    case Type::f64:
        return pick<Real<double, false>>(r);
    case Type::f16:
    case Type::bf16:
        return pick_half<0, uint16_t>(t, r, ftz);
    case Type::f16x2:
    case Type::bf16x2:
        return pick_half<0, uint32_t>(t, r, ftz);
    default:
        return type_bits(t) == 16   ? pick<Integer<uint16_t>>(r)
               : type_bits(t) == 32 ? pick<Integer<uint32_t>>(r)
                                    : pick<Integer<uint64_t>>(r);
    }
}

/* ---- what setp and set have in common: .CmpOp{.BoolOp}{.ftz} ... a, b{, {!}c} ---- */

enum class Combine : uint8_t { none, and_, or_, xor_ };

struct Test {
    Compare low = nullptr, high = nullptr; /* high: the upper halves of an x2 type */
    Combine combine = Combine::none;
    unsigned a = 0;                   /* operand number of a; b and c follow it */
    uint32_t if_low = 0, if_high = 0; /* set: the bits that a comparison that holds contributes */
};

const Test &test_of(const Inst &i)
{
    return *static_cast<const Test *>(i.extra);
}
Lanes compared(const Warp &w, const Inst &i, Compare c)
{
    const Opnd *a = i.op + test_of(i).a;
    return c(w, a[0], a[1]);
}
Lanes combined(const Warp &w, const Inst &i, Lanes result)
{
    const Test &t = test_of(i);
    switch (t.combine) {
    case Combine::and_:
        return result & w.pred(i.op[t.a + 2]);
    case Combine::or_:
        return result | w.pred(i.op[t.a + 2]);
    case Combine::xor_:
        return result ^ w.pred(i.op[t.a + 2]);
    default:
        return result;
    }
}

bool is_x2(Type t)
{
    return t == Type::f16x2 || t == Type::bf16x2;
}
bool is_bf16(Type t)
{
    return t == Type::bf16 || t == Type::bf16x2;
}

Relation take_relation(Decode &d)
{
    int r = d.take_one_of({"eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu",
                           "gtu", "geu", "num", "nan"});
    if (r < 0)
        d.fail("a comparison such as .lt is missing");
    return Relation(r);
}

void check_relation(Decode &d, Relation r, Type t)
{
    const bool equality = r == Relation::eq || r == Relation::ne, unsigned_ = r >= Relation::lo && r <= Relation::hs,
               unordered = r >= Relation::equ;
    const TypeKind k = type_kind(t);
    const bool packed = t == Type::u16x2 || t == Type::s16x2 || t == Type::f32x2;
    if (type_bits(t) < 16 || type_bits(t) > 64 || packed || t == Type::tf32 || t == Type::e4m3x2 || t == Type::e5m2x2)
        d.fail("values of type .%s cannot be compared", type_text(t));
    if ((k == TypeKind::bits && !equality) || (unsigned_ && k != TypeKind::unsigned_) ||
        (unordered && k != TypeKind::float_))
        d.fail("this comparison does not exist for type .%s", type_text(t));
}

Combine take_combine(Decode &d)
{
    return Combine(1 + d.take_one_of({"and", "or", "xor"})); /* -1: there is none */
}

/* After the destinations have been appended: a, b and c, which are operands `first` and on of the text. */
Test *take_test(Decode &d, Inst &i, Relation r, Combine combine, bool ftz, Type source, size_t first)
{
    check_relation(d, r, source);
    if (ftz && source != Type::f32 && source != Type::f16 && source != Type::f16x2)
        d.fail(".ftz does not exist for type .%s", type_text(source));
    if (is_bf16(source))
        d.need_sm(90);
    Test *t = d.extra<Test>();
    t->low = pick(source, r, ftz);
    if (is_x2(source))
        t->high = pick_half<16, uint32_t>(source, r, ftz);
    t->combine = combine;
    d.in(first, source);
    d.in(first + 1, source);
    if (combine != Combine::none)
        d.pred_in(d.operand(first + 2));
    i.extra = t;
    i.cls = Class::integer;
    return t;
}

/* ---- setp ---- */

Step setp(Warp &w, const Inst &i)
{
    w.set_pred(i.op[0], combined(w, i, compared(w, i, test_of(i).low)));
    return Step::next;
}
Step setp_both(Warp &w, const Inst &i) /* p|q: q is the opposite, combined with c in its turn */
{
    const Lanes result = compared(w, i, test_of(i).low);
    const Lanes p = combined(w, i, result), q = combined(w, i, ~result);
    w.set_pred(i.op[0], p);
    w.set_pred(i.op[1], q);
    return Step::next;
}
Step setp_x2(Warp &w, const Inst &i) /* p|q: of the lower and the upper halves */
{
    const Lanes p = combined(w, i, compared(w, i, test_of(i).low));
    const Lanes q = combined(w, i, compared(w, i, test_of(i).high));
    w.set_pred(i.op[0], p);
    w.set_pred(i.op[1], q);
    return Step::next;
}

void build_setp(Decode &d, Inst &i)
{
    const Relation r = take_relation(d);
    const Combine combine = take_combine(d);
    const bool ftz = d.take("ftz");
    const Type t = d.type();
    const ptx::Operand &to = d.operand(0);
    const bool both = to.kind == ptx::Operand::pair;
    if (is_x2(t) && !both)
        d.fail("two destination predicates are needed, p|q");
    if (both && (t == Type::f16 || t == Type::bf16))
        d.fail("there is one destination predicate only");
    d.pred_out(both ? to.items[0] : to);
    if (both)
        d.pred_out(to.items[1]);
    take_test(d, i, r, combine, ftz, t, 1)->a = both ? 2 : 1;
    i.exec = is_x2(t) ? setp_x2 : both ? setp_both : setp;
}

/* ---- set ---- */

template <class T>
Step set(Warp &w, const Inst &i)
{
    const Test &t = test_of(i);
    const Lanes low = combined(w, i, compared(w, i, t.low));
    const Lanes high = t.high ? combined(w, i, compared(w, i, t.high)) : 0;
    T *d = w.out<T>(i.op[0]);
    const uint32_t if_low = t.if_low, if_high = t.if_high;
    for_lanes(w.active, [=](unsigned l) { d[l] = T((low >> l & 1 ? if_low : 0) | (high >> l & 1 ? if_high : 0)); });
    return Step::next;
}

/* Which destinations a source type has: f16 and bf16 also 16-bit integers, the x2 types their own pair or a pair of
 * 0xffff in an integer; f16 and bf16 also themselves, but neither gives the other nor f32; the other scalars give
 * every float. */
bool set_exists(Type to, Type from)
{
    const bool half = from == Type::f16 || from == Type::bf16;
    switch (to) {
    case Type::u32:
    case Type::s32:
        return true;
    case Type::f32:
        return !half && !is_x2(from);
    case Type::u16:
    case Type::s16:
        return half;
    case Type::f16:
        return !is_bf16(from) && !is_x2(from);
    case Type::bf16:
        return from != Type::f16 && !is_x2(from);
    case Type::f16x2:
    case Type::bf16x2:
        return from == to;
    default:
        return false;
    }
}

uint32_t bits_of_true(Type to)
{
    switch (to) {
    case Type::f32:
        return 0x3f800000;
    case Type::f16:
    case Type::f16x2:
        return 0x3c00;
    case Type::bf16:
    case Type::bf16x2:
        return 0x3f80;
    default:
        return type_bits(to) == 16 ? 0xffff : 0xffffffff;
    }
}

void build_set(Decode &d, Inst &i)
{
    const Relation r = take_relation(d);
    const Combine combine = take_combine(d);
    const bool ftz = d.take("ftz");
    const Type to = d.type(), from = d.type();
    if (!set_exists(to, from))
        d.fail("there is no set.%s.%s", type_text(to), type_text(from));
    if (is_bf16(to))
        d.need_sm(90);
    d.out(0, to);
    Test *t = take_test(d, i, r, combine, ftz, from, 1);
    t->a = 1;
    t->if_low = bits_of_true(to);
    if (is_x2(from)) {
        t->if_low &= 0xffff;
        t->if_high = t->if_low << 16;
    }
    i.exec = type_bits(to) == 16 ? set<uint16_t> : set<uint32_t>;
}

/* ---- slct: c >= 0 ? a : b, where -0 counts as 0 and a NaN selects b ---- */

template <class T, class V>
Step slct(Warp &w, const Inst &i)
{
    const auto *c = w.in<typename V::Raw>(i.op[3]);
    const Lanes first = lanes_where(w.active, [=](unsigned l) { return holds<Relation::ge, V>(c[l], 0); });
    const Lanes undefined = (first & w.undefined(i.op[1])) | (~first & w.undefined(i.op[2]));
    const T *a = w.in<T>(i.op[1]), *b = w.in<T>(i.op[2]);
    T *d = w.out<T>(i.op[0]);
    for_lanes(w.active, [=](unsigned l) { d[l] = first >> l & 1 ? a[l] : b[l]; });
    if (undefined)
        w.mark_undefined(i.op[0], undefined);
    return Step::next;
}
template <class V>
Exec pick_slct(unsigned bits)
{
    return bits == 16 ? slct<uint16_t, V> : bits == 32 ? slct<uint32_t, V> : slct<uint64_t, V>;
}

void build_slct(Decode &d, Inst &i)
{
    const bool ftz = d.take("ftz");
    const Type t = d.type(), control = d.type();
    const unsigned bits = type_bits(t);
    const bool plain = t == Type::f32 || t == Type::f64 || (!is_float(t) && t != Type::u16x2 && t != Type::s16x2);
    if (bits < 16 || bits > 64 || !plain)
        d.fail("there is no slct of type .%s", type_text(t));
    if (!(control == Type::f32 || (control == Type::s32 && !ftz)))
        d.fail("the selector must be .s32 or {.ftz}.f32");
    d.out(0, t);
    d.in(1, t, Opnd::copy);
    d.in(2, t, Opnd::copy);
    d.in(3, control);
    i.exec = control == Type::s32 ? pick_slct<Integer<int32_t>>(bits)
             : ftz                ? pick_slct<Real<float, true>>(bits)
                                  : pick_slct<Real<float, false>>(bits);
    i.cls = Class::integer;
}

const Opcode opcodes[] = {{"setp", build_setp}, {"set", build_set}, {"slct", build_slct}};

} // namespace

const Family compare_family = {opcodes, std::size(opcodes)};

} // namespace ptxemu
