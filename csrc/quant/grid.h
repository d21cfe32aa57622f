/* The integer grids: the one place that defines what a scheme's numbers are.
 *
 *   symmetric    s = absmax / ((2^b - 1)/2)           q = clamp(rne(x/s),     -2^(b-1), 2^(b-1)-1)     x ~ q*s
 *   asymmetric   s = (max - min) / (2^b - 1)          q = clamp(rne(x/s) + z, -2^(b-1), 2^(b-1)-1)     x ~ (q - z)*s
 *                z = clamp(-2^(b-1) - rne(min/s))     with min <= 0 <= max, so that 0 is exact
 *
 * Division is a true fp32 division and rounding is to nearest even, on every backend: codes are equal bit for bit.
 * Scales are rounded to the dtype they are stored in BEFORE codes are computed, so that file and codes belong together.
 * All zero (or denormal) ranges get the scale 1 and the codes of zero. */
#ifndef NB_QUANT_GRID_H
#define NB_QUANT_GRID_H

#include "base/weight.h"

typedef struct nbi_grid {
    float scale;
    int32_t zero;       /* 0 when symmetric */
    int32_t qmin, qmax; /* -2^(b-1), 2^(b-1)-1 */
} nbi_grid;

/* From a range; lo and hi are finite.  scale_dtype F32 keeps the scale as computed. */
nbi_grid nbi_grid_make(float lo, float hi, unsigned bits, bool symmetric, nbi_dtype scale_dtype);
/* A scale >= 0 as it is stored: 1 where it is zero or subnormal. */
float nbi_grid_scale(float s, nbi_dtype scale_dtype);
int8_t nbi_grid_code(const nbi_grid *g, float x);
static inline float nbi_grid_value(const nbi_grid *g, int8_t q)
{
    return (float)(q - g->zero) * g->scale;
}

#endif
