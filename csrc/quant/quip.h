/* QuIP# (Tseng et al., arXiv 2402.04396) without fine-tuning: weights of 2 or 4 bits on a lattice, one scale for all.
 *
 * Random rotations on both sides make a weight's elements look like normal noise, W = diag(out) T_N V T_K diag(in) with random
 * signs `out` and `in`, so that one codebook in eight dimensions (base/e8p.h) fits all of V.  V is rounded eight columns at a
 * time, from the last to the first, each block making good in what follows what rounding it lost (block LDLQ), and then ten times
 * block by block again, each against what all the others lose. */
#ifndef NB_QUANT_QUIP_H
#define NB_QUANT_QUIP_H

#include "base/weight.h"

typedef struct nbi_quip_options {
    unsigned passes; /* over the finished codes: 10 */
    float size;      /* root mean square of V in units of the codebook: the authors have 1.03; 0: the best of a few */
    float damp;      /* of the Hessian's mean diagonal is added to it: 0.01; more where the Hessian asks for it */
} nbi_quip_options;

nbi_quip_options nbi_quip_defaults(void);

/* What `s` of a recipe becomes; NB_EFORMAT for what there is no codebook for. */
nb_status nbi_quip_scheme(nbi_scheme *s, const char *where);

/* out: codes, words, one scale, signs.  src: dense fp32, fp16 or bf16, with a multiple of 8 inputs.  gram [K][K]: X^T X of its
 * inputs.  Layers of one in_seed and K get the same in_signs.  NB_EFORMAT: a weight or gram is not finite. */
nb_status nbi_quip(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, const float *gram,
                   const nbi_quip_options *o, uint64_t in_seed, uint64_t out_seed, int threads);

#endif
