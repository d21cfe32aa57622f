/* 2^x and log2(x) of values that are narrower than f64, without a call: loops over lanes become vector instructions.  The results
 * are within a few units of f64's last place, which leaves a result rounded to f32 the nearest one but for one case in 2^26,
 * where it may be the other neighbour of a near tie. */
#ifndef PTXEMU_ISA_ELEMENTARY_H
#define PTXEMU_ISA_ELEMENTARY_H

#include <cmath>

#include "isa/softfloat.h"

namespace ptxemu
{

/* Of |x| > 200 that of 200, which is infinity or 0 in f32.  NaN gives NaN. */
inline double exp2_of_f32(double x)
{
    constexpr double round_to_integer =
        0x1.8p52; /* a sum with it has no bits for fractions, and the integer in its low bits */
    x = x > 200 ? 200 : x < -200 ? -200 : x;
    const double shifted = x + round_to_integer;
    const double y = (x - (shifted - round_to_integer)) * 0x1.62e42fefa39efp-1; /* ln 2: |y| < 0.347 */
    constexpr double inverse_factorial[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800,
                                            1.0 / 362880,     1.0 / 40320,     1.0 / 5040,     1.0 / 720,
                                            1.0 / 120,        1.0 / 24,        1.0 / 6,        1.0 / 2};
    double sum = inverse_factorial[0]; /* Taylor's series of e^y to y^13; what is left is below 2^-57 */
    for (unsigned k = 1; k < 12; k++)
        sum = sum * y + inverse_factorial[k];
    sum = (sum * y + 1) * y + 1;
    const uint64_t power = (bits_as<uint64_t>(shifted) + 1023) << 52;
    return sum * bits_as<double>(power);
}

/* x is a number that f32 has: no denormal of f64. */
inline double log2_of_f32(double x)
{
    constexpr uint64_t sqrt_half = 0x3fe6a09e667f3bcd;
    const uint64_t bits = bits_as<uint64_t>(x);
    const int64_t exponent = int64_t(bits - sqrt_half) >> 52;
    const double m = bits_as<double>(bits - (uint64_t(exponent) << 52)); /* in [sqrt(1/2), sqrt(2)) */
    const double s = (m - 1) / (m + 1);                                  /* log(m) = 2 atanh(s), |s| < 0.172 */
    const double z = s * s;
    constexpr double inverse_odd[] = {1.0 / 23, 1.0 / 21, 1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13,
                                      1.0 / 11, 1.0 / 9,  1.0 / 7,  1.0 / 5,  1.0 / 3};
    double series = inverse_odd[0];
    for (unsigned k = 1; k < 11; k++)
        series = series * z + inverse_odd[k];
    series = series * z * s + s;
    const double finite = series * (2 * 0x1.71547652b82fep0) + double(exponent);
    const double special = x == 0 ? -INFINITY : x > 0 ? x : NAN;
    return x > 0 && x < INFINITY ? finite : special;
}

} // namespace ptxemu

#endif
