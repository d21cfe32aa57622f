/* SpQR (Dettmers et al., arXiv 2306.03078): small groups whose scales and zero points are quantized themselves, and the few weights
 * that they cannot hold as single numbers beside them. */
#ifndef NB_QUANT_SPQR_H
#define NB_QUANT_SPQR_H

#include "base/weight.h"

enum { NBI_SPQR_BITS = 3, NBI_SPQR_ROWS = 16 }; /* of scales and zero points; rows that share a grid of them */

typedef struct nbi_spqr_options {
    bool
        act_order; /* groups in descending order of the sum of their H_ii, and the columns of each, instead of 0, 1, ... */
    float threshold; /* a weight stays out whose squared error is above this times the mean of var(W_j) / U_jj^2 */
    float damp;      /* lambda = damp * mean of H_ii */
    uint32_t block;
} nbi_spqr_options;

nbi_spqr_options nbi_spqr_defaults(void); /* act-order, 0.2, 1.0, 128 */

/* Quantizes `src` by `scheme`, which nbi_spqr_scheme() made: 2 to 4 bits, asymmetric groups.  h [K][K] fp32 = X^T X of its inputs,
 * any positive multiple of it; not changed. */
nb_status nbi_spqr(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, const float *h,
                   const nbi_spqr_options *o, int threads);
/* nbi_method.scheme */
nb_status nbi_spqr_scheme(nbi_scheme *s, const char *where);

#endif
