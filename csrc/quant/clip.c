#include "quant/clip.h"

#include <math.h>

#include "quant/grid.h"
#include "quant/range.h"

#define LANES 32

nbi_clip_spec nbi_clip_spec_of(unsigned bits, bool symmetric, nbi_dtype scale_dtype, uint32_t candidates, float least)
{
    float step = candidates > 1 ? (1 - least) / (float)(candidates - 1) : 0;
    return (nbi_clip_spec){bits, symmetric, scale_dtype, candidates, step};
}

/* Adds d^2 of n <= LANES elements to their lanes.  Limiting comes before rounding (both ends are integers), and adding and
 * taking away 1.5 * 2^23 rounds to nearest even, so that the loop vectorises on any machine. */
static inline void add_squares(float lane[LANES], const float *x, size_t n, float s, float a, float b)
{
    for (size_t l = 0; l < n; l++) {
        float u = x[l] / s, r = u;
        r = r < a ? a : r;
        r = r > b ? b : r;
        r = (r + 0x1.8p23f) - 0x1.8p23f;
        lane[l] += (u - r) * (u - r);
    }
}

static float sum_of_squares(const float *x, size_t n, const nbi_grid *g)
{
    const float a = (float)(g->qmin - g->zero), b = (float)(g->qmax - g->zero);
    float lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        add_squares(lane, x + i, LANES, g->scale, a, b);
    add_squares(lane, x + i, n - i, g->scale, a, b);
    for (size_t o = LANES / 2; o; o /= 2)
        for (size_t l = 0; l < o; l++)
            lane[l] += lane[l + o];
    return lane[0];
}

bool nbi_clip_search(nbi_clip *out, const float *x, size_t n, const nbi_clip_spec *spec)
{
    float lo, hi, scale0 = 1;
    if (!n || !nbi_range_of(x, n, &lo, &hi))
        return false;
    lo = lo < 0 ? lo : 0;
    hi = hi > 0 ? hi : 0;
    for (uint32_t i = 0; i < spec->candidates; i++) {
        const float f = 1 - (float)i * spec->step;
        const nbi_grid g = nbi_grid_make(f * lo, f * hi, spec->bits, spec->symmetric, spec->scale_dtype);
        if (i == 0)
            scale0 = g.scale;
        const float ratio = g.scale / scale0, e = sum_of_squares(x, n, &g) * (ratio * ratio);
        if (i == 0 || e < out->error)
            *out = (nbi_clip){f * lo, f * hi, e};
    }
    return true;
}
