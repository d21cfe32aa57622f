/* Balancing: an input channel of some linear layers is divided by s_j and their weights are multiplied by it, which changes
 * nothing in floating point and moves the difficulty of rounding between activations and weights.
 *
 *   smooth   s_j = max|x_j|^a / max|w_j|^(1-a), at least 1e-5; the maximum of |w_j| over all rows of all layers
 *            Xiao et al., "SmoothQuant", arXiv 2211.10438
 *   AWQ      s_j = mean|x_j|^r / (w_j^(1-r) + 1e-4), w_j the mean over rows of |w| / (largest |w| of its group), at least 1e-4,
 *            divided by sqrt(max s * min s); r of 0, 0.05 .. 0.95 that loses least of the layers' outputs:
 *            sum over rows of d H d^T, d = Q(w s)/s - w, H the inputs' second moments
 *            Lin et al., "AWQ", arXiv 2306.00978 */
#ifndef NB_QUANT_BALANCE_H
#define NB_QUANT_BALANCE_H

#include "base/weight.h"
#include "quant/inputs.h"

/* Layers that share their inputs: n of them, dense fp32 [N_i][k]. */
typedef struct nbi_siblings {
    nbi_weight *const *w;
    const nbi_scheme *const *scheme; /* of each; bits 0: stays as it is and does not count */
    size_t n, k;
} nbi_siblings;

/* s [k].  alpha: 0 .. 1. */
nb_status nbi_smooth_scales(float *s, const nbi_siblings *l, const nbi_inputs *in, float alpha);
/* *ratio (may be NULL): the r that won; s is all 1 where r = 0 with equal weights, or where every r loses more than no balance. */
nb_status nbi_awq_scales(float *s, const nbi_siblings *l, const nbi_inputs *in, nbi_dtype scale_dtype, int threads,
                         float *ratio);

/* w[n][j] *= s[j] */
void nbi_scale_columns(nbi_weight *w, const float *s);
/* w[n][j] /= s[n]; bias too */
void nbi_divide_rows(nbi_weight *w, const float *s);

#endif
