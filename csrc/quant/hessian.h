/* The Hessian of a layer's error as methods with error feedback use it: columns in the order in which they are rounded, and
 * what an error of one of them does to the others. */
#ifndef NB_QUANT_HESSIAN_H
#define NB_QUANT_HESSIAN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct nbi_hessian {
    size_t k;
    uint32_t *order; /* [k]: column that is rounded i-th */
    bool *dead;      /* [k], by columns: inputs that were always 0 */
    float *u;        /* [k][k] in that order, upper triangular: the inverse of H + lambda I is U^T U */
    float damp;      /* lambda / mean of H_ii: what was asked for, or more where that has no factorisation */
    float lambda;
} nbi_hessian;

/* h [k][k] = X^T X or a multiple of it.  group 0: columns as they stand; else groups of that many, a divisor of k, in
 * descending order of the sum of their H_ii, the columns of each likewise: 1 is GPTQ's act-order.  `damp` up to 1. */
nb_status nbi_hessian_create(nbi_hessian *out, const float *h, size_t k, size_t group, float damp);
void nbi_hessian_free(nbi_hessian *h); /* the members */

#endif
