/* Rounding to any format, bit by bit. */
#include "isa/softfloat.h"

#include <algorithm>

namespace ptxemu
{
namespace
{
/* Whether `kept`, followed by the dropped bits `rest` of which `half` is the midpoint, goes up to kept + 1. */
bool rounds_up(Round r, bool negative, uint64_t kept, uint64_t rest, uint64_t half)
{
    switch (r) {
    case Round::rn:
        return rest > half || (rest == half && (kept & 1));
    case Round::rna:
        return rest >= half;
    case Round::rz:
        return false;
    case Round::rm:
        return negative && rest;
    case Round::rp:
        return !negative && rest;
    }
    return false;
}

bool overflow_is_infinite(Round r, bool negative)
{
    return r == Round::rn || r == Round::rna || (r == Round::rm && negative) || (r == Round::rp && !negative);
}
} // namespace

uint64_t pack(const FloatFormat &f, bool negative, uint64_t mantissa, int exponent, Round r, bool satfinite)
{
    const uint64_t sign = negative ? f.sign() : 0;
    if (!mantissa)
        return sign;
    const int lowest = 1 - f.bias(); /* exponent of the smallest normal number; denormals have its spacing */
    const int leading = std::max(63 - __builtin_clzll(mantissa) + exponent, lowest);
    const int drop = leading - int(f.mantissa_bits) - exponent; /* bits of the mantissa below the result's last */

    uint64_t kept;
    if (drop <= 0) {
        kept = mantissa << -drop;
    } else if (drop > 64) { /* less than half of the smallest denormal */
        kept = rounds_up(r, negative, 0, 1, 2);
    } else {
        const uint64_t half = uint64_t(1) << (drop - 1);
        const uint64_t rest = mantissa & (half | (half - 1));
        kept = drop == 64 ? 0 : mantissa >> drop;
        kept += rounds_up(r, negative, kept, rest, half);
    }
    /* `kept` holds the hidden bit, which counts the exponent field of a normal number up by one, as does a carry. */
    const uint64_t bits = kept + (uint64_t(leading - lowest) << f.mantissa_bits);
    if (bits > f.max)
        return sign | (satfinite || !overflow_is_infinite(r, negative) ? f.max : f.infinity);
    return sign | bits;
}

uint64_t narrow(const FloatFormat &f, double x, Round r, bool satfinite)
{
    const uint64_t bits = bits_as<uint64_t>(x);
    const bool negative = bits >> 63;
    const int field = int(bits >> 52) & 0x7ff;
    const uint64_t fraction = bits & ((uint64_t(1) << 52) - 1);
    if (field == 0x7ff) {
        if (fraction)
            return f.nan;
        return (negative ? f.sign() : 0) | (satfinite ? f.max : f.infinity);
    }
    const uint64_t hidden = field ? uint64_t(1) << 52 : 0;
    return pack(f, negative, fraction | hidden, std::max(field, 1) - 1075, r, satfinite);
}

double widen(const FloatFormat &f, uint64_t bits)
{
    const bool negative = bits & f.sign();
    const uint64_t magnitude = bits & (f.sign() - 1);
    if (magnitude > f.max) {
        const uint64_t special = magnitude == f.infinity && f.infinity != f.nan ? F64.infinity : F64.nan;
        return bits_as<double>(special | (negative ? F64.sign() : 0));
    }
    const int field = int(magnitude >> f.mantissa_bits);
    const uint64_t fraction = magnitude & ((uint64_t(1) << f.mantissa_bits) - 1);
    const uint64_t hidden = field ? uint64_t(1) << f.mantissa_bits : 0;
    const int exponent = std::max(field, 1) - f.bias() - int(f.mantissa_bits);
    return bits_as<double>(pack(F64, negative, fraction | hidden, exponent, Round::rn));
}

} // namespace ptxemu
