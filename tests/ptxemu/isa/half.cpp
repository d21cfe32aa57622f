/* Instructions on f16, f16x2, bf16 and bf16x2.
 *
 * A register of a pair is two 16-bit elements side by side, so that a row of pairs is a row of 64 elements.  Arithmetic is done in
 * a wider type in which products are exact: f32 for f16 (22 bits, down to 2^-48), f64 for bf16, whose products leave f32's range.
 * Sums are rounded to odd, which makes the rounding to 16 bits that follows the only one that counts (see softfloat.h).  A sum to
 * nearest would not do, not even in f64: (1 + 2^-8) + 2^-60 would become a tie of bf16. */
#include <cmath>

#include "isa/decode.h"
#include "isa/elementary.h"
#include "isa/lanes.h"
#include "isa/softfloat.h"
#include "machine/warp.h"

namespace ptxemu
{
namespace
{
/* f(element) for the elements of the lanes, `PerLane` each. */
template <unsigned PerLane, class F>
inline void for_elements(Lanes lanes, F f)
{
    if (lanes == ALL_LANES) {
        PTXEMU_INDEPENDENT_LANES
        for (unsigned e = 0; e < PerLane * WARP_SIZE; e++)
            f(e);
        return;
    }
    for_lanes(lanes, [=](unsigned l) {
        for (unsigned k = 0; k < PerLane; k++)
            f(PerLane * l + k);
    });
}

struct F16Ops {
    static constexpr uint16_t infinity = 0x7c00;
    static float value(uint16_t h) { return f16_to_f32(h); }
    static uint16_t rounded(float x) { return f32_to_f16(x); }
    static uint16_t rounded(double x) { return f32_to_f16(f32_to_odd(x)); }
};
struct BF16Ops {
    static constexpr uint16_t infinity = 0x7f80;
    static double value(uint16_t h) { return bf16_to_f32(h); }
    static uint16_t rounded(double x) { return f32_to_bf16(f32_to_odd(x)); }
};
template <class H>
inline uint16_t flush_half(uint16_t h)
{
    return (h & H::infinity) ? h : h & 0x8000;
}
template <class H>
inline bool is_nan(uint16_t h)
{
    return (h & 0x7fff) > H::infinity;
}

struct Add {
    static constexpr unsigned arity = 2;
    template <class T>
    static T apply(T a, T b)
    {
        return sum_to_odd(a, b);
    }
};
struct Sub {
    static constexpr unsigned arity = 2;
    template <class T>
    static T apply(T a, T b)
    {
        return sum_to_odd(a, -b);
    }
};
struct Mul {
    static constexpr unsigned arity = 2;
    template <class T>
    static T apply(T a, T b)
    {
        return a * b;
    }
};
struct Fma {
    static constexpr unsigned arity = 3;
    template <class T>
    static T apply(T a, T b, T c)
    {
        return sum_to_odd(a * b, c);
    }
};
/* Approximations of hardware, here the exact value to nearest. */
struct Ex2 {
    static constexpr unsigned arity = 1;
    static double apply(double a) { return exp2_of_f32(a); }
};
struct Tanh {
    static constexpr unsigned arity = 1;
    static double apply(double a) { return std::tanh(a); }
};

enum Flags : uint32_t { ftz = 1, sat = 2, relu = 4, oob = 8 };

/* .sat and .relu clamp before the rounding, which comes to the same: 0 and 1 are numbers of the formats. */
template <class Op, class H, class... A>
inline uint16_t element(uint32_t flags, A... a)
{
    const auto exact = (flags & ftz) ? Op::apply(H::value(flush_half<H>(a))...) : Op::apply(H::value(a)...);
    const auto positive = (flags & relu) && exact <= 0 ? 0 : exact;
    const uint16_t h = H::rounded((flags & sat) ? saturate(positive) : positive);
    return (flags & ftz) ? flush_half<H>(h) : h;
}

template <class Op, class H, unsigned PerLane, size_t... K>
inline void run_elements(Warp &w, const Inst &i, std::index_sequence<K...>)
{
    uint16_t *d = w.out<uint16_t>(i.op[0]);
    const uint16_t *const a[] = {w.in<uint16_t>(i.op[K + 1])...};
    const uint32_t flags = i.flags;
    if (flags) /* the loop without them is the one that should be fast */
        for_elements<PerLane>(w.active, [=](unsigned e) { d[e] = element<Op, H>(flags, a[K][e]...); });
    else
        for_elements<PerLane>(w.active, [=](unsigned e) { d[e] = element<Op, H>(0, a[K][e]...); });
}
template <class Op, class H, unsigned PerLane>
Step arithmetic(Warp &w, const Inst &i)
{
    run_elements<Op, H, PerLane>(w, i, std::make_index_sequence<Op::arity>());
    return Step::next;
}

/* fma.oob: +0 where a factor is the NaN that stands for an element out of bounds, whatever its sign. */
template <class H, unsigned PerLane>
Step fma_oob(Warp &w, const Inst &i)
{
    uint16_t *d = w.out<uint16_t>(i.op[0]);
    const uint16_t *a = w.in<uint16_t>(i.op[1]), *b = w.in<uint16_t>(i.op[2]), *c = w.in<uint16_t>(i.op[3]);
    const uint32_t flags = i.flags;
    for_elements<PerLane>(w.active, [=](unsigned e) {
        const bool outside = (a[e] & 0x7fff) == OOB_NAN_16 || (b[e] & 0x7fff) == OOB_NAN_16;
        d[e] = outside ? 0 : element<Fma, H>(flags, a[e], b[e], c[e]);
    });
    return Step::next;
}

/* Orders numbers as integers: -0 is less than +0. */
inline int16_t order(uint16_t h)
{
    return int16_t(h ^ ((int16_t(h) >> 15) & 0x7fff));
}

struct MinMaxFlags {
    uint16_t sign; /* the bits of the operands that are compared apart: 0x8000 for .xorsign.abs */
    bool max, nan, ftz;
};
/* Without short-circuits: the loop becomes vector instructions. */
template <class H>
inline uint16_t min_max_element(uint16_t a, uint16_t b, MinMaxFlags m)
{
    a = m.ftz ? flush_half<H>(a) : a;
    b = m.ftz ? flush_half<H>(b) : b;
    const uint16_t sign = (a ^ b) & m.sign;
    a &= uint16_t(~m.sign);
    b &= uint16_t(~m.sign);
    const bool a_nan = is_nan<H>(a), b_nan = is_nan<H>(b);
    const uint16_t number = (order(a) < order(b)) ^ m.max ? a : b;
    const uint16_t without_a = a_nan ? b : number; /* a NaN loses against a number */
    const uint16_t best = b_nan ? a : without_a;
    const bool result_nan = (a_nan & b_nan) | (m.nan & (a_nan | b_nan));
    return result_nan ? NAN_16 : best | sign;
}
template <class H, unsigned PerLane>
Step min_max(Warp &w, const Inst &i)
{
    uint16_t *d = w.out<uint16_t>(i.op[0]);
    const uint16_t *a = w.in<uint16_t>(i.op[1]), *b = w.in<uint16_t>(i.op[2]);
    const MinMaxFlags m = {uint16_t(i.imm), bool(i.flags & 1), bool(i.flags & 2), bool(i.flags & 4)};
    for_elements<PerLane>(w.active, [=](unsigned e) { d[e] = min_max_element<H>(a[e], b[e], m); });
    return Step::next;
}

/* neg: flips the sign; abs: clears it.  A NaN becomes the canonical one. */
template <class H, unsigned PerLane>
Step sign(Warp &w, const Inst &i)
{
    uint16_t *d = w.out<uint16_t>(i.op[0]);
    const uint16_t *a = w.in<uint16_t>(i.op[1]);
    const uint16_t keep = i.imm ? 0x7fff : 0xffff, flip = i.imm ? 0 : 0x8000;
    const bool flushes = i.flags & ftz;
    for_elements<PerLane>(w.active, [=](unsigned e) {
        const uint16_t h = flushes ? flush_half<H>(a[e]) : a[e];
        d[e] = is_nan<H>(h) ? NAN_16 : (h & keep) ^ flip;
    });
    return Step::next;
}

/* ---- builders ---- */
bool is_bf16(Type t)
{
    return t == Type::bf16 || t == Type::bf16x2;
}

/* The handler for a type, out of a family of templates over <format, elements a lane>. */
struct Handlers {
    Exec f16, f16x2, bf16, bf16x2;
    Exec of(Type t) const { return t == Type::f16 ? f16 : t == Type::f16x2 ? f16x2 : t == Type::bf16 ? bf16 : bf16x2; }
};
template <class Op>
constexpr Handlers arithmetic_handlers = {arithmetic<Op, F16Ops, 1>, arithmetic<Op, F16Ops, 2>,
                                          arithmetic<Op, BF16Ops, 1>, arithmetic<Op, BF16Ops, 2>};
constexpr Handlers fma_oob_handlers = {fma_oob<F16Ops, 1>, fma_oob<F16Ops, 2>, fma_oob<BF16Ops, 1>,
                                       fma_oob<BF16Ops, 2>};
constexpr Handlers min_max_handlers = {min_max<F16Ops, 1>, min_max<F16Ops, 2>, min_max<BF16Ops, 1>,
                                       min_max<BF16Ops, 2>};
constexpr Handlers sign_handlers = {sign<F16Ops, 1>, sign<F16Ops, 2>, sign<BF16Ops, 1>, sign<BF16Ops, 2>};

/* The type, and after it nothing; the destination and `n` sources of it. */
void finish(Decode &d, Inst &i, const Handlers &h, unsigned n, unsigned sm_f16, unsigned sm_bf16)
{
    i.type = d.type();
    d.need_sm(is_bf16(i.type) ? sm_bf16 : sm_f16);
    if (is_bf16(i.type) && (i.flags & ftz))
        d.fail(".ftz is for f16");
    if (d.n() != n + 1)
        d.fail("takes %u operands, not %zu", n + 1, d.n());
    i.exec = h.of(i.type);
    i.cls = Class::half;
    d.out(size_t(0), i.type);
    for (unsigned k = 1; k <= n; k++)
        d.in(k, i.type);
}

template <class Op>
void build_arithmetic(Decode &d, Inst &i)
{
    d.take("rn");
    i.flags = (d.take("ftz") ? ftz : 0u) | (d.take("sat") ? sat : 0u);
    finish(d, i, arithmetic_handlers<Op>, Op::arity, 53, 90);
    if (is_bf16(i.type) && i.flags)
        d.fail(".ftz and .sat are for f16");
}

void build_fma(Decode &d, Inst &i)
{
    if (!d.take("rn"))
        d.fail("the rounding modifier .rn is missing");
    i.flags = (d.take("ftz") ? ftz : 0u) | (d.take("sat") ? sat : 0u) | (d.take("relu") ? relu : 0u);
    const bool outside = d.take("oob");
    if (((i.flags & sat) && (i.flags & relu)) || (outside && (i.flags & (ftz | sat))))
        d.fail(".sat, .relu and .oob: .relu excludes .sat, .oob excludes .ftz and .sat");
    if (i.flags & relu)
        d.need_sm(80);
    if (outside)
        d.need_sm(90);
    finish(d, i, outside ? fma_oob_handlers : arithmetic_handlers<Fma>, 3, 53, 80);
    if (is_bf16(i.type) && (i.flags & sat))
        d.fail(".sat is for f16");
}

template <bool Max>
void build_min_max(Decode &d, Inst &i)
{
    const bool flushes = d.take("ftz"), nan = d.take("NaN"), xorsign = d.take("xorsign");
    if (xorsign && !d.take("abs"))
        d.fail(".xorsign goes with .abs");
    if (xorsign)
        d.need_sm(86);
    finish(d, i, min_max_handlers, 2, 80, 80);
    if (flushes && is_bf16(i.type))
        d.fail(".ftz is for f16");
    i.flags = (Max ? 1u : 0u) | (nan ? 2u : 0u) | (flushes ? 4u : 0u);
    i.imm = xorsign ? 0x8000 : 0;
}

template <bool Abs>
void build_sign(Decode &d, Inst &i)
{
    i.flags = d.take("ftz") ? ftz : 0u;
    i.imm = Abs;
    finish(d, i, sign_handlers, 1, 53, 80);
}

void build_ex2(Decode &d, Inst &i)
{
    if (!d.take("approx"))
        d.fail(".approx is missing");
    const bool flushes = d.take("ftz");
    finish(d, i, arithmetic_handlers<Ex2>, 1, 75, 90);
    if (flushes != is_bf16(i.type))
        d.fail("bf16 takes .ftz, f16 does not");
    i.flags = flushes ? ftz : 0u;
    i.cls = Class::special_function;
}

void build_tanh(Decode &d, Inst &i)
{
    if (!d.take("approx"))
        d.fail(".approx is missing");
    finish(d, i, arithmetic_handlers<Tanh>, 1, 75, 90);
    i.cls = Class::special_function;
}

constexpr Opcode opcodes[] = {
    {"add", build_arithmetic<Add>, Takes::half},
    {"sub", build_arithmetic<Sub>, Takes::half},
    {"mul", build_arithmetic<Mul>, Takes::half},
    {"fma", build_fma, Takes::half},
    {"min", build_min_max<false>, Takes::half},
    {"max", build_min_max<true>, Takes::half},
    {"neg", build_sign<false>, Takes::half},
    {"abs", build_sign<true>, Takes::half},
    {"ex2", build_ex2, Takes::half},
    {"tanh", build_tanh, Takes::half},
};
} // namespace

const Family half_family = {opcodes, sizeof(opcodes) / sizeof(*opcodes)};

} // namespace ptxemu
