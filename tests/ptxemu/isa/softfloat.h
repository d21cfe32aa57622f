/* The narrow float formats, and rounding in every mode that PTX has.
 *
 * Everything that has to be rounded in an unusual way goes through pack(): sign, integer mantissa and exponent in, bits of the
 * nearest (or next) number of a format out.  Where an exact value is wider than what a pack() or a conversion takes, it is first
 * rounded "to odd": truncated, with the last bit set if anything was lost.  Such a value lies on the same side of every number
 * and every midpoint of a format that is at least two bits narrower, so that the second rounding gives what one alone would.
 * The inline functions are free of branches: loops over lanes become vector instructions. */
#ifndef PTXEMU_ISA_SOFTFLOAT_H
#define PTXEMU_ISA_SOFTFLOAT_H

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "types.h"

namespace ptxemu
{

/* To nearest with ties to even, to zero, down, up, to nearest with ties away from zero. */
enum class Round : uint8_t { rn, rz, rm, rp, rna };

struct FloatFormat {
    unsigned exponent_bits, mantissa_bits; /* without sign and hidden bit */
    uint64_t max;                          /* the largest finite number's bits */
    uint64_t infinity;                     /* what an overflow gives; e4m3, which has none: NaN */
    uint64_t nan;                          /* the canonical NaN */
    constexpr int bias() const { return (1 << (exponent_bits - 1)) - 1; }
    constexpr uint64_t sign() const { return uint64_t(1) << (exponent_bits + mantissa_bits); }
};
constexpr FloatFormat F16{5, 10, 0x7bff, 0x7c00, 0x7fff};
constexpr FloatFormat BF16{8, 7, 0x7f7f, 0x7f80, 0x7fff};
constexpr FloatFormat TF32{8, 10, 0x3fbff, 0x3fc00, 0x3ffff}; /* the upper 19 bits of an f32 */
constexpr FloatFormat F32{8, 23, 0x7f7fffff, 0x7f800000, 0x7fffffff};
constexpr FloatFormat F64{11, 52, 0x7fefffffffffffff, 0x7ff0000000000000, 0x7fffffffffffffff};
constexpr FloatFormat E4M3{4, 3, 0x7e, 0x7f, 0x7f};
constexpr FloatFormat E5M2{5, 2, 0x7b, 0x7c, 0x7f};

/* The bits of (-1)^negative * mantissa * 2^exponent, rounded.  `satfinite`: what overflows gives the largest finite number. */
uint64_t pack(const FloatFormat &f, bool negative, uint64_t mantissa, int exponent, Round r, bool satfinite = false);

/* The same for the value of a double.  NaN becomes the canonical one; infinity stays what it is, or is the largest finite number
 * with `satfinite`. */
uint64_t narrow(const FloatFormat &f, double x, Round r, bool satfinite = false);

/* The value of a number of a format that fits into f64. */
double widen(const FloatFormat &f, uint64_t bits);

template <class To, class From>
inline To bits_as(From from)
{
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

constexpr uint32_t NAN_F32 = 0x7fffffff;
constexpr uint16_t NAN_16 = 0x7fff; /* f16 and bf16 */
/* What a tensor map with the fill mode "NaN, request zero" gives for elements out of bounds, and fma.oob looks for.  The PTX ISA
 * does not say which NaN that is; this one was seen on hardware, in 16 bits and repeated in wider elements. */
constexpr uint16_t OOB_NAN_16 = 0x7ff7;

inline float canonical(float x)
{
    return x != x ? bits_as<float>(NAN_F32) : x;
}

/* .ftz: a denormal becomes a zero of its sign. */
inline float flush(float x)
{
    uint32_t b = bits_as<uint32_t>(x);
    return bits_as<float>((b & 0x7f800000u) ? b : b & 0x80000000u);
}
inline double flush(double x)
{
    uint64_t b = bits_as<uint64_t>(x);
    return bits_as<double>((b & 0x7ff0000000000000u) ? b : b & 0x8000000000000000u);
}

/* .sat: clamped to [0, 1]; NaN and -0 become +0. */
template <class T>
inline T saturate(T x)
{
    T low = x > T(0) ? x : T(0);
    return low < T(1) ? low : T(1);
}

/* Exactly a + b, rounded to odd.  The error of the rounded sum is a T itself (Knuth's TwoSum), as long as nothing overflows or
 * falls below the denormals: the callers' operands are sums and products of narrower formats.  If it is not zero and the sum's
 * last bit is even, the odd neighbour lies towards the error. */
template <class T>
inline T sum_to_odd(T a, T b)
{
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    T s = a + b;
    T from_b = s - a;
    T error = (a - (s - from_b)) + (b - from_b);
    Bits bits = bits_as<Bits>(s);
    bool away = (error > 0) == (s > 0);
    Bits odd = away ? bits + 1 : bits - 1;
    bool inexact = (error < 0 || error > 0) && !(bits & 1); /* a NaN's or infinity's error is a NaN: unchanged */
    return bits_as<T>(inexact ? odd : bits);
}

/* An f32 rounded to odd from an f64.  Overflow gives the largest finite f32, which is odd. */
inline float f32_to_odd(double x)
{
    float f = float(x);
    double back = double(f);
    uint32_t bits = bits_as<uint32_t>(f);
    double over = x < 0 ? x - back : back - x; /* how far |f| is beyond |x| */
    uint32_t truncated = (over > 0 ? bits - 1 : bits) | 1;
    bool inexact = back < x || back > x;
    return bits_as<float>(inexact ? truncated : bits);
}

inline float f16_to_f32(uint16_t h)
{
    uint32_t magnitude = uint32_t(h & 0x7fff) << 13;
    /* The exponent field has the f32's bias now, which is 112 more; the product is exact also for denormals. */
    uint32_t scaled = bits_as<uint32_t>(bits_as<float>(magnitude) * 0x1p112f);
    uint32_t special = magnitude > 0x0f800000u ? NAN_F32 : 0x7f800000u;
    return bits_as<float>((magnitude < 0x0f800000u ? scaled : special) | uint32_t(h & 0x8000) << 16);
}

inline float bf16_to_f32(uint16_t h)
{
    return bits_as<float>(uint32_t(h) << 16);
}

/* To nearest even.  A NaN of any payload becomes the canonical one. */
inline uint16_t f32_to_f16(float x)
{
    uint32_t bits = bits_as<uint32_t>(x);
    uint32_t magnitude = bits & 0x7fffffff;
    /* Adding 0.5 shifts a number below 2^-14 so that the last bit of the sum weighs 2^-24, an f16's smallest number. */
    uint32_t small = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    uint32_t finite = magnitude < 0x38800000u ? small : normal;
    uint32_t special = magnitude > 0x7f800000u ? NAN_16 : 0x7c00u;
    uint32_t result = magnitude < 0x47800000u ? finite : special;
    return uint16_t(result | (magnitude > 0x7f800000u ? 0 : (bits >> 16) & 0x8000));
}

inline uint16_t f32_to_bf16(float x)
{
    uint32_t bits = bits_as<uint32_t>(x);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return uint16_t((bits & 0x7fffffff) > 0x7f800000u ? NAN_16 : rounded);
}

} // namespace ptxemu

#endif
