/* The extremes of an array, in a loop that compilers vectorise without -ffast-math. */
#ifndef NB_QUANT_RANGE_H
#define NB_QUANT_RANGE_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Floats as integers in the same order: positive ones are ordered as their bits are, for negative ones the 31 bits
 * below the sign run backwards.  The map is its own inverse.  NaNs lie beyond the infinities, so that one comparison
 * at the end sees them: an integer minimum is associative, which a float minimum with NaNs is not. */
static inline int32_t nbi_order_of(int32_t bits)
{
    return bits ^ ((bits >> 31) & INT32_MAX);
}

/* The lower of two in that order, which has -0 below 0. */
static inline float nbi_lower(float a, float b)
{
    return a < b || (a == b && signbit(a)) ? a : b;
}

/* *lo and *hi of x[0..n), n > 0 (for n == 0: lo > hi, both finite).  False if some value is NaN or infinite; then lo and
 * hi are not set. */
static inline bool nbi_range_of(const float *x, size_t n, float *lo, float *hi)
{
    const int32_t largest = 0x7f7fffff, lowest = nbi_order_of((int32_t)0xff7fffffu);
    int32_t a = largest, b = lowest;
    for (size_t i = 0; i < n; i++) {
        int32_t u;
        memcpy(&u, x + i, 4);
        u = nbi_order_of(u);
        a = u < a ? u : a;
        b = u > b ? u : b;
    }
    if (a < lowest || b > largest)
        return false;
    a = nbi_order_of(a);
    b = nbi_order_of(b);
    memcpy(lo, &a, 4);
    memcpy(hi, &b, 4);
    return true;
}

#endif
