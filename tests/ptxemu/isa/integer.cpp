/* Integer arithmetic: add ... mad, the 24-bit forms, sad, min, max, dot products, carry chains.  Bit fields are in
 * isa/logic.cpp.
 *
 * A row of the table names the instruction with all its modifiers: the types that floating point has as well (add, mul,
 * min, ...) are told apart by that. */
#include <iterator>

#include "isa/bits.h"
#include "isa/lanes.h"

namespace ptxemu
{
namespace
{

/* ---- sums, products ---- */

template <class T>
T add(T a, T b)
{
    return T(Wrapping<T>(a) + Wrapping<T>(b));
}
template <class T>
T sub(T a, T b)
{
    return T(Wrapping<T>(a) - Wrapping<T>(b));
}
template <class T>
T neg(T a)
{
    return T(Wrapping<T>(0) - Wrapping<T>(a));
}
template <class T>
T abs(T a) /* of the smallest number: itself */
{
    return a < 0 ? neg(a) : a;
}
template <class T>
Wide<T> mul_wide(T a, T b)
{
    return Wide<T>(Wide<T>(a) * Wide<T>(b));
}
template <class T>
T mul_lo(T a, T b)
{
    return T(Wrapping<T>(a) * Wrapping<T>(b));
}
template <class T>
T mul_hi(T a, T b)
{
    return T(mul_wide(a, b) >> width_of<T>);
}
template <class T>
T mad_lo(T a, T b, T c)
{
    return add(mul_lo(a, b), c);
}
template <class T>
T mad_hi(T a, T b, T c)
{
    return add(mul_hi(a, b), c);
}
template <class T>
Wide<T> mad_wide(T a, T b, Wide<T> c)
{
    return add(mul_wide(a, b), c);
}

/* ---- .sat: clamped to the range of s32 ---- */

int32_t saturated(int64_t v)
{
    return int32_t(v > INT32_MAX ? INT32_MAX : v < INT32_MIN ? INT32_MIN : v);
}
int32_t add_sat(int32_t a, int32_t b)
{
    return saturated(int64_t(a) + b);
}
int32_t sub_sat(int32_t a, int32_t b)
{
    return saturated(int64_t(a) - b);
}
int32_t mad_hi_sat(int32_t a, int32_t b, int32_t c)
{
    return saturated(int64_t(mul_hi(a, b)) + c);
}

/* ---- 24-bit factors: what lies above bit 23 is ignored; .lo gives bits 0-31 of the product, .hi bits 16-47 ---- */

template <class T>
Wide<T> product24(T a, T b)
{
    auto low24 = [](T v) { return T(T(uint32_t(v) << 8) >> 8); }; /* sign-extends where T is signed */
    return mul_wide(low24(a), low24(b));
}
template <class T>
T mul24_lo(T a, T b)
{
    return T(product24(a, b));
}
template <class T>
T mul24_hi(T a, T b)
{
    return T(product24(a, b) >> 16);
}
template <class T>
T mad24_lo(T a, T b, T c)
{
    return add(mul24_lo(a, b), c);
}
template <class T>
T mad24_hi(T a, T b, T c)
{
    return add(mul24_hi(a, b), c);
}
int32_t mad24_hi_sat(int32_t a, int32_t b, int32_t c)
{
    return saturated(int64_t(mul24_hi(a, b)) + c);
}

/* ---- division.  By zero PTX promises nothing; here the quotient is all ones and the remainder the dividend, as in a
 * division bit by bit.  The smallest number divided by -1 wraps to itself. ---- */

template <class T>
T div(T a, T b)
{
    if (b == 0)
        return T(-1);
    if (std::is_signed_v<T> && b == T(-1))
        return neg(a);
    return T(a / b);
}
template <class T>
T rem(T a, T b)
{
    if (b == 0)
        return a;
    if (std::is_signed_v<T> && b == T(-1))
        return 0;
    return T(a % b);
}

/* ---- order ---- */

template <class T>
T min(T a, T b)
{
    return b < a ? b : a;
}
template <class T>
T max(T a, T b)
{
    return a < b ? b : a;
}
template <class T>
T min_relu(T a, T b)
{
    return max(min(a, b), T(0));
}
template <class T>
T max_relu(T a, T b)
{
    return max(max(a, b), T(0));
}
template <class T>
T sad(T a, T b, T c) /* the sum of c and the distance of a and b, which as an unsigned number always fits */
{
    return add(c, a < b ? sub(b, a) : sub(a, b));
}

/* ---- two 16-bit numbers in a register ---- */

template <class T, T (*F)(T, T)>
uint32_t halves(uint32_t a, uint32_t b)
{
    uint32_t low = uint16_t(F(T(a), T(b)));
    uint32_t high = uint16_t(F(T(a >> 16), T(b >> 16)));
    return high << 16 | low;
}

/* ---- dot products of bytes: A and B are the types of the parts ---- */

template <class T>
int32_t byte_of(uint32_t v, unsigned k)
{
    return T(v >> (8 * k));
}
template <class A, class B>
uint32_t dp4a(uint32_t a, uint32_t b, uint32_t c)
{
    for (unsigned k = 0; k < 4; k++)
        c += uint32_t(byte_of<A>(a, k) * byte_of<B>(b, k));
    return c;
}
template <class A, class B, unsigned First> /* .lo takes bytes 0 and 1 of b, .hi bytes 2 and 3 */
uint32_t dp2a(uint32_t a, uint32_t b, uint32_t c)
{
    using A16 = std::conditional_t<std::is_signed_v<A>, int16_t, uint16_t>;
    for (unsigned k = 0; k < 2; k++)
        c += uint32_t(int32_t(A16(a >> (16 * k))) * byte_of<B>(b, First + k));
    return c;
}

/* ---- carry chains: each lane's carry flag (CC.CF) is a bit of Warp::carry; for subtractions it is the borrow ---- */

template <class T>
T add_carry(bool &carry, T a, T b)
{
    using U = std::make_unsigned_t<T>;
    U sum, result;
    bool first = __builtin_add_overflow(U(a), U(b), &sum);
    bool second = __builtin_add_overflow(sum, U(carry), &result);
    carry = first || second;
    return T(result);
}
template <class T>
T sub_carry(bool &carry, T a, T b)
{
    using U = std::make_unsigned_t<T>;
    U difference, result;
    bool first = __builtin_sub_overflow(U(a), U(b), &difference);
    bool second = __builtin_sub_overflow(difference, U(carry), &result);
    carry = first || second;
    return T(result);
}
template <class T>
T mad_lo_carry(bool &carry, T a, T b, T c)
{
    return add_carry(carry, mul_lo(a, b), c);
}
template <class T>
T mad_hi_carry(bool &carry, T a, T b, T c)
{
    return add_carry(carry, mul_hi(a, b), c);
}

enum : unsigned { SETS = 1, USES = 2 }; /* add.cc sets the flag, addc uses it, addc.cc does both */

template <auto F, unsigned Flag>
struct Chain;

template <class D, class... A, D (*F)(bool &, A...), unsigned Flag>
struct Chain<F, Flag> {
    template <size_t... K>
    static void apply(Warp &w, const Inst &i, std::index_sequence<K...>)
    {
        D *d = w.out<D>(i.op[0]);
        const std::tuple<const A *...> a(w.in<A>(i.op[K + 1])...);
        Lanes carries = lanes_where(w.active, [&](unsigned l) {
            bool carry = Flag & USES && (w.carry >> l & 1);
            d[l] = F(carry, std::get<K>(a)[l]...);
            return carry;
        });
        if (Flag & SETS)
            w.carry = (w.carry & ~w.active) | carries;
    }
    static Step exec(Warp &w, const Inst &i)
    {
        apply(w, i, std::index_sequence_for<A...>());
        return Step::next;
    }
};

template <class D, class... A>
void chain_operands(Decode &d, D (*)(bool &, A...))
{
    size_t k = 0;
    d.out(k++, ptx_type<D>());
    (d.in(k++, ptx_type<A>()), ...);
}
template <auto F, unsigned Flag>
void chain(Decode &d, Inst &i)
{
    chain_operands(d, F);
    i.exec = Chain<F, Flag>::exec;
    i.cls = Class::integer;
}

const Opcode opcodes[] = {
    {"add.u16", elementwise<add<uint16_t>>},
    {"add.u32", elementwise<add<uint32_t>>},
    {"add.u64", elementwise<add<uint64_t>>},
    {"add.s16", elementwise<add<int16_t>>},
    {"add.s32", elementwise<add<int32_t>>},
    {"add.s64", elementwise<add<int64_t>>},
    {"sub.u16", elementwise<sub<uint16_t>>},
    {"sub.u32", elementwise<sub<uint32_t>>},
    {"sub.u64", elementwise<sub<uint64_t>>},
    {"sub.s16", elementwise<sub<int16_t>>},
    {"sub.s32", elementwise<sub<int32_t>>},
    {"sub.s64", elementwise<sub<int64_t>>},
    {"neg.s16", elementwise<neg<int16_t>>},
    {"neg.s32", elementwise<neg<int32_t>>},
    {"neg.s64", elementwise<neg<int64_t>>},
    {"abs.s16", elementwise<abs<int16_t>>},
    {"abs.s32", elementwise<abs<int32_t>>},
    {"abs.s64", elementwise<abs<int64_t>>},
    {"mul.lo.u16", elementwise<mul_lo<uint16_t>>},
    {"mul.lo.u32", elementwise<mul_lo<uint32_t>>},
    {"mul.lo.u64", elementwise<mul_lo<uint64_t>>},
    {"mul.lo.s16", elementwise<mul_lo<int16_t>>},
    {"mul.lo.s32", elementwise<mul_lo<int32_t>>},
    {"mul.lo.s64", elementwise<mul_lo<int64_t>>},
    {"mul.hi.u16", elementwise<mul_hi<uint16_t>>},
    {"mul.hi.u32", elementwise<mul_hi<uint32_t>>},
    {"mul.hi.u64", elementwise<mul_hi<uint64_t>>},
    {"mul.hi.s16", elementwise<mul_hi<int16_t>>},
    {"mul.hi.s32", elementwise<mul_hi<int32_t>>},
    {"mul.hi.s64", elementwise<mul_hi<int64_t>>},
    {"mul.wide.u16", elementwise<mul_wide<uint16_t>>},
    {"mul.wide.u32", elementwise<mul_wide<uint32_t>>},
    {"mul.wide.s16", elementwise<mul_wide<int16_t>>},
    {"mul.wide.s32", elementwise<mul_wide<int32_t>>},
    {"mad.lo.u16", elementwise<mad_lo<uint16_t>>},
    {"mad.lo.u32", elementwise<mad_lo<uint32_t>>},
    {"mad.lo.u64", elementwise<mad_lo<uint64_t>>},
    {"mad.lo.s16", elementwise<mad_lo<int16_t>>},
    {"mad.lo.s32", elementwise<mad_lo<int32_t>>},
    {"mad.lo.s64", elementwise<mad_lo<int64_t>>},
    {"mad.hi.u16", elementwise<mad_hi<uint16_t>>},
    {"mad.hi.u32", elementwise<mad_hi<uint32_t>>},
    {"mad.hi.u64", elementwise<mad_hi<uint64_t>>},
    {"mad.hi.s16", elementwise<mad_hi<int16_t>>},
    {"mad.hi.s32", elementwise<mad_hi<int32_t>>},
    {"mad.hi.s64", elementwise<mad_hi<int64_t>>},
    {"mad.wide.u16", elementwise<mad_wide<uint16_t>>},
    {"mad.wide.u32", elementwise<mad_wide<uint32_t>>},
    {"mad.wide.s16", elementwise<mad_wide<int16_t>>},
    {"mad.wide.s32", elementwise<mad_wide<int32_t>>},
    {"mul24.lo.u32", elementwise<mul24_lo<uint32_t>>},
    {"mul24.lo.s32", elementwise<mul24_lo<int32_t>>},
    {"mul24.hi.u32", elementwise<mul24_hi<uint32_t>>},
    {"mul24.hi.s32", elementwise<mul24_hi<int32_t>>},
    {"mad24.lo.u32", elementwise<mad24_lo<uint32_t>>},
    {"mad24.lo.s32", elementwise<mad24_lo<int32_t>>},
    {"mad24.hi.u32", elementwise<mad24_hi<uint32_t>>},
    {"mad24.hi.s32", elementwise<mad24_hi<int32_t>>},
    {"add.sat.s32", elementwise<add_sat>},
    {"sub.sat.s32", elementwise<sub_sat>},
    {"mad.hi.sat.s32", elementwise<mad_hi_sat>},
    {"mad24.hi.sat.s32", elementwise<mad24_hi_sat>},
    {"div.u16", elementwise<div<uint16_t>>},
    {"div.u32", elementwise<div<uint32_t>>},
    {"div.u64", elementwise<div<uint64_t>>},
    {"div.s16", elementwise<div<int16_t>>},
    {"div.s32", elementwise<div<int32_t>>},
    {"div.s64", elementwise<div<int64_t>>},
    {"rem.u16", elementwise<rem<uint16_t>>},
    {"rem.u32", elementwise<rem<uint32_t>>},
    {"rem.u64", elementwise<rem<uint64_t>>},
    {"rem.s16", elementwise<rem<int16_t>>},
    {"rem.s32", elementwise<rem<int32_t>>},
    {"rem.s64", elementwise<rem<int64_t>>},
    {"min.u16", elementwise<min<uint16_t>>},
    {"min.u32", elementwise<min<uint32_t>>},
    {"min.u64", elementwise<min<uint64_t>>},
    {"min.s16", elementwise<min<int16_t>>},
    {"min.s32", elementwise<min<int32_t>>},
    {"min.s64", elementwise<min<int64_t>>},
    {"max.u16", elementwise<max<uint16_t>>},
    {"max.u32", elementwise<max<uint32_t>>},
    {"max.u64", elementwise<max<uint64_t>>},
    {"max.s16", elementwise<max<int16_t>>},
    {"max.s32", elementwise<max<int32_t>>},
    {"max.s64", elementwise<max<int64_t>>},
    {"sad.u16", elementwise<sad<uint16_t>>},
    {"sad.u32", elementwise<sad<uint32_t>>},
    {"sad.u64", elementwise<sad<uint64_t>>},
    {"sad.s16", elementwise<sad<int16_t>>},
    {"sad.s32", elementwise<sad<int32_t>>},
    {"sad.s64", elementwise<sad<int64_t>>},

    {"add.u16x2", elementwise<halves<uint16_t, add>, 90>},
    {"add.s16x2", elementwise<halves<int16_t, add>, 90>},
    {"min.u16x2", elementwise<halves<uint16_t, min>, 90>},
    {"min.s16x2", elementwise<halves<int16_t, min>, 90>},
    {"max.u16x2", elementwise<halves<uint16_t, max>, 90>},
    {"max.s16x2", elementwise<halves<int16_t, max>, 90>},
    /* nvcc prints .relu behind the type, the manual before it: both are legal */
    {"min.relu.s16x2", elementwise<halves<int16_t, min_relu>, 90>},
    {"min.s16x2.relu", elementwise<halves<int16_t, min_relu>, 90>},
    {"min.relu.s32", elementwise<min_relu<int32_t>, 90>},
    {"min.s32.relu", elementwise<min_relu<int32_t>, 90>},
    {"max.relu.s16x2", elementwise<halves<int16_t, max_relu>, 90>},
    {"max.s16x2.relu", elementwise<halves<int16_t, max_relu>, 90>},
    {"max.relu.s32", elementwise<max_relu<int32_t>, 90>},
    {"max.s32.relu", elementwise<max_relu<int32_t>, 90>},

    {"dp4a.u32.u32", elementwise<dp4a<uint8_t, uint8_t>>},
    {"dp2a.lo.u32.u32", elementwise<dp2a<uint8_t, uint8_t, 0>>},
    {"dp2a.hi.u32.u32", elementwise<dp2a<uint8_t, uint8_t, 2>>},
    {"dp4a.u32.s32", elementwise<dp4a<uint8_t, int8_t>>},
    {"dp2a.lo.u32.s32", elementwise<dp2a<uint8_t, int8_t, 0>>},
    {"dp2a.hi.u32.s32", elementwise<dp2a<uint8_t, int8_t, 2>>},
    {"dp4a.s32.u32", elementwise<dp4a<int8_t, uint8_t>>},
    {"dp2a.lo.s32.u32", elementwise<dp2a<int8_t, uint8_t, 0>>},
    {"dp2a.hi.s32.u32", elementwise<dp2a<int8_t, uint8_t, 2>>},
    {"dp4a.s32.s32", elementwise<dp4a<int8_t, int8_t>>},
    {"dp2a.lo.s32.s32", elementwise<dp2a<int8_t, int8_t, 0>>},
    {"dp2a.hi.s32.s32", elementwise<dp2a<int8_t, int8_t, 2>>},

    {"add.cc.u32", chain<add_carry<uint32_t>, SETS>},
    {"add.cc.u64", chain<add_carry<uint64_t>, SETS>},
    {"add.cc.s32", chain<add_carry<int32_t>, SETS>},
    {"add.cc.s64", chain<add_carry<int64_t>, SETS>},
    {"addc.u32", chain<add_carry<uint32_t>, USES>},
    {"addc.u64", chain<add_carry<uint64_t>, USES>},
    {"addc.s32", chain<add_carry<int32_t>, USES>},
    {"addc.s64", chain<add_carry<int64_t>, USES>},
    {"addc.cc.u32", chain<add_carry<uint32_t>, USES | SETS>},
    {"addc.cc.u64", chain<add_carry<uint64_t>, USES | SETS>},
    {"addc.cc.s32", chain<add_carry<int32_t>, USES | SETS>},
    {"addc.cc.s64", chain<add_carry<int64_t>, USES | SETS>},
    {"sub.cc.u32", chain<sub_carry<uint32_t>, SETS>},
    {"sub.cc.u64", chain<sub_carry<uint64_t>, SETS>},
    {"sub.cc.s32", chain<sub_carry<int32_t>, SETS>},
    {"sub.cc.s64", chain<sub_carry<int64_t>, SETS>},
    {"subc.u32", chain<sub_carry<uint32_t>, USES>},
    {"subc.u64", chain<sub_carry<uint64_t>, USES>},
    {"subc.s32", chain<sub_carry<int32_t>, USES>},
    {"subc.s64", chain<sub_carry<int64_t>, USES>},
    {"subc.cc.u32", chain<sub_carry<uint32_t>, USES | SETS>},
    {"subc.cc.u64", chain<sub_carry<uint64_t>, USES | SETS>},
    {"subc.cc.s32", chain<sub_carry<int32_t>, USES | SETS>},
    {"subc.cc.s64", chain<sub_carry<int64_t>, USES | SETS>},
    {"mad.lo.cc.u32", chain<mad_lo_carry<uint32_t>, SETS>},
    {"mad.lo.cc.u64", chain<mad_lo_carry<uint64_t>, SETS>},
    {"mad.lo.cc.s32", chain<mad_lo_carry<int32_t>, SETS>},
    {"mad.lo.cc.s64", chain<mad_lo_carry<int64_t>, SETS>},
    {"madc.lo.u32", chain<mad_lo_carry<uint32_t>, USES>},
    {"madc.lo.u64", chain<mad_lo_carry<uint64_t>, USES>},
    {"madc.lo.s32", chain<mad_lo_carry<int32_t>, USES>},
    {"madc.lo.s64", chain<mad_lo_carry<int64_t>, USES>},
    {"madc.lo.cc.u32", chain<mad_lo_carry<uint32_t>, USES | SETS>},
    {"madc.lo.cc.u64", chain<mad_lo_carry<uint64_t>, USES | SETS>},
    {"madc.lo.cc.s32", chain<mad_lo_carry<int32_t>, USES | SETS>},
    {"madc.lo.cc.s64", chain<mad_lo_carry<int64_t>, USES | SETS>},
    {"mad.hi.cc.u32", chain<mad_hi_carry<uint32_t>, SETS>},
    {"mad.hi.cc.u64", chain<mad_hi_carry<uint64_t>, SETS>},
    {"mad.hi.cc.s32", chain<mad_hi_carry<int32_t>, SETS>},
    {"mad.hi.cc.s64", chain<mad_hi_carry<int64_t>, SETS>},
    {"madc.hi.u32", chain<mad_hi_carry<uint32_t>, USES>},
    {"madc.hi.u64", chain<mad_hi_carry<uint64_t>, USES>},
    {"madc.hi.s32", chain<mad_hi_carry<int32_t>, USES>},
    {"madc.hi.s64", chain<mad_hi_carry<int64_t>, USES>},
    {"madc.hi.cc.u32", chain<mad_hi_carry<uint32_t>, USES | SETS>},
    {"madc.hi.cc.u64", chain<mad_hi_carry<uint64_t>, USES | SETS>},
    {"madc.hi.cc.s32", chain<mad_hi_carry<int32_t>, USES | SETS>},
    {"madc.hi.cc.s64", chain<mad_hi_carry<int64_t>, USES | SETS>},
};

} // namespace

const Family integer_family = {opcodes, std::size(opcodes)};

} // namespace ptxemu
