/* GPTQ: Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
 * Transformers", arXiv 2210.17323.
 *
 * Columns of W are rounded one after the other; what a rounding loses is made good by the columns that are not rounded yet,
 * as the inputs' second moments H = X^T X tell:
 *     U^T U = (H + lambda I)^-1, U upper triangular;  e = (w_i - Q(w_i)) / U_ii;  w_j -= e U_ij for j > i
 * in blocks of columns, the columns after a block at its end.  The objective is |X (W - Q)^T|^2, a row of W at a time. */
#ifndef NB_QUANT_GPTQ_H
#define NB_QUANT_GPTQ_H

#include "base/weight.h"

typedef struct nbi_gptq_options {
    bool act_order;     /* columns in descending order of H_ii instead of 0, 1, ... */
    bool static_groups; /* grids from the weights as they were; needed for act_order with groups */
    bool clip;          /* grids by the search of quant/clip.h instead of the full range */
    float damp;         /* lambda = damp * mean of H_ii */
    uint32_t block;
    uint32_t descent; /* passes of coordinate descent over the codes, at most: quant/descent.h */
} nbi_gptq_options;

nbi_gptq_options nbi_gptq_defaults(void); /* act-order, static groups, no clip, 0.01, 128, no descent */

/* Quantizes `src` by `scheme` (per channel or groups; weights part).  h [K][K] fp32 = X^T X of its inputs, any positive
 * multiple of it; not changed.  Where h + lambda I has no factorisation lambda is raised in steps, and *damp_used (may be
 * NULL) says where it ended.  Inputs that were always 0 get the code of 0. */
nb_status nbi_gptq(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype,
                   const float *h, const nbi_gptq_options *o, int threads, float *damp_used);

#endif
