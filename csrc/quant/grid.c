#include "quant/grid.h"

#include <float.h>
#include <math.h>

/* The largest scale whose every (q - z) * s is finite, |q - z| <= 255. */
#define SCALE_MAX (FLT_MAX / 256)

/* The scale as its file will hold it.  BF16 has the exponents of fp32.  F16 ends at 65504: a wider range is clipped
 * there (nbi_rtn refuses such weights by name).  Below 2^-14 the steps of F16 are 2^-24 wide whatever the scale is, so
 * that rounding down could lose half of the range: there it is rounded up, and is never 0. */
static float stored_scale(float s, nbi_dtype t)
{
    if (t == NBI_BF16)
        return nbi_bf16_to_f32(nbi_f32_to_bf16(s));
    if (t != NBI_F16)
        return s;
    if (s < 0x1p-14f)
        return ceilf(s * 0x1p24f) * 0x1p-24f;
    return s < 65504.0f ? nbi_f16_to_f32(nbi_f32_to_f16(s)) : 65504.0f;
}

static float range_scale(float lo, float hi, unsigned bits, bool symmetric)
{
    float levels = (float)((1u << bits) - 1);
    if (symmetric)
        return fmaxf(-lo, hi) / (levels / 2);
    float span = hi - lo;
    return isfinite(span) ? span / levels : (float)(((double)hi - lo) / levels);
}

/* rne(x/s) limited to [a, b], both integers: then an int can hold it.  NaN gives a. */
static int32_t limited(float x, float s, int32_t a, int32_t b)
{
    float r = rintf(x / s);
    return !(r > (float)a) ? a : r < (float)b ? (int32_t)r : b;
}

float nbi_grid_scale(float s, nbi_dtype scale_dtype)
{
    return s < FLT_MIN ? 1.0f : stored_scale(s < SCALE_MAX ? s : SCALE_MAX, scale_dtype);
}

nbi_grid nbi_grid_make(float lo, float hi, unsigned bits, bool symmetric, nbi_dtype scale_dtype)
{
    nbi_grid g = {.qmin = -(1 << (bits - 1)), .qmax = (1 << (bits - 1)) - 1};
    lo = lo < 0 ? lo : 0.0f;
    hi = hi > 0 ? hi : 0.0f;
    float s = range_scale(lo, hi, bits, symmetric);
    g.scale = nbi_grid_scale(s, scale_dtype);
    if (!symmetric) /* clamp(qmin - r, qmin, qmax) = qmin - clamp(r, qmin - qmax, 0) */
        g.zero = g.qmin - limited(lo, g.scale, g.qmin - g.qmax, 0);
    return g;
}

int8_t nbi_grid_code(const nbi_grid *g, float x)
{
    /* clamp(r + z, qmin, qmax) = clamp(r, qmin - z, qmax - z) + z for integers r and z */
    return (int8_t)(limited(x, g->scale, g->qmin - g->zero, g->qmax - g->zero) + g->zero);
}
