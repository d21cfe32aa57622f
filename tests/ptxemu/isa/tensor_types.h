/* The element types of tensor instructions as numbers: widening (exact) and the one rounding of a result.
 *
 * Written without branches where a loop calls them, so that the host compiler vectorises the loop. */
#ifndef PTXEMU_ISA_TENSOR_TYPES_H
#define PTXEMU_ISA_TENSOR_TYPES_H

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ptxemu
{

template <class To, class From>
inline To bits_as(From x)
{
    static_assert(sizeof(To) == sizeof(From), "a reinterpretation keeps the size");
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}

/* A small float whose exponent field is narrower than that of f32: its bits, moved to where f32 has exponent and mantissa, are a
 * number too small by a power of two, and the product with that power is exact for normal and subnormal numbers alike. */
inline float f16_value(uint16_t h)
{
    constexpr float SCALE = 0x1p112f; /* 2^(127 - 15) */
    uint32_t magnitude = uint32_t(h & 0x7fff) << 13;
    float f = bits_as<float>(magnitude) * SCALE;
    /* exponent field 31: infinity or NaN */
    uint32_t bits = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : bits_as<uint32_t>(f);
    return bits_as<float>(bits | uint32_t(h & 0x8000) << 16);
}

inline float bf16_value(uint16_t h)
{
    return bits_as<float>(uint32_t(h) << 16);
}

/* The lower 13 bits of a .tf32 operand are not looked at. */
inline float tf32_value(uint32_t r)
{
    return bits_as<float>(r & 0xffffe000u);
}

/* No infinity; 0x7f and 0xff are NaN. */
inline float e4m3_value(uint8_t x)
{
    constexpr float SCALE = 0x1p120f; /* 2^(127 - 7) */
    float f = bits_as<float>(uint32_t(x & 0x7f) << 20) * SCALE;
    uint32_t bits = (x & 0x7f) == 0x7f ? 0x7fc00000u : bits_as<uint32_t>(f);
    return bits_as<float>(bits | uint32_t(x & 0x80) << 24);
}

/* The upper byte of an f16. */
inline float e5m2_value(uint8_t x)
{
    return f16_value(uint16_t(x << 8));
}

/* To nearest, ties to even; NaN becomes the canonical 0x7fff. */
inline uint16_t f16_from(double x)
{
    uint64_t bits = bits_as<uint64_t>(x);
    uint16_t sign = uint16_t(bits >> 48 & 0x8000);
    bits &= 0x7fffffffffffffffull;
    double magnitude = bits_as<double>(bits);
    if (magnitude != magnitude)
        return 0x7fff;
    if (magnitude >= 65520.0) /* half way between the largest f16 and what would follow it */
        return sign | 0x7c00;
    if (magnitude < 0x1p-14) /* subnormal: a count of 2^-24; 1024 of them are the smallest normal number's bits */
        return sign | uint16_t(std::nearbyint(magnitude * 0x1p24));
    bits += (1ull << 41) - 1 + (bits >> 42 & 1);
    return sign | uint16_t((bits >> 42) - (uint64_t(1023 - 15) << 10));
}

/* To nearest, ties to even; NaN becomes the canonical 0x7fffffff. */
inline float f32_from(double x)
{
    return x != x ? bits_as<float>(0x7fffffffu) : float(x);
}

} // namespace ptxemu

#endif
