/* Clipping a group of weights: a narrower range makes finer steps for most at the price of a few.
 *
 * With lo and hi the extremes of x and 0, candidate i clips to [f lo, f hi], f = 1 - i * step, whose grid is nbi_grid_make()'s
 * with the scale s_i.  Its error is
 *     e_i = (s_i/s_0)^2 * sum of d^2,   d = x/s_i - clamp(rne(x/s_i), qmin - z_i, qmax - z_i)
 * that is the squared error in units of s_0^2.  The least error wins, the widest clip among equals.
 *
 * The same bits everywhere: all is fp32, each operation rounded; lane l of 32 adds the squares of elements l, l+32, .. from 0
 * in ascending order; lanes are joined by a tree, l with l+16, +8, +4, +2, +1. */
#ifndef NB_QUANT_CLIP_H
#define NB_QUANT_CLIP_H

#include "backend/quant_ops.h"

typedef struct nbi_clip {
    float lo, hi; /* lo <= 0 <= hi */
    float error;
} nbi_clip;

/* `candidates` clips from the full range down to `least` of it, 0 < least < 1. */
nbi_clip_spec nbi_clip_spec_of(unsigned bits, bool symmetric, nbi_dtype scale_dtype, uint32_t candidates, float least);

/* The best clip of x[0..n).  False: some value is NaN or infinite. */
bool nbi_clip_search(nbi_clip *out, const float *x, size_t n, const nbi_clip_spec *spec);

#endif
