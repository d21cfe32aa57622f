/* Coordinate descent on the error of a layer's outputs: Behdin, Acharya, Gupta, Song, Zhu, Keerthi, Mazumder, "QuantEase:
 * Optimization-based Quantization for Language Models", arXiv 2309.01885.
 *
 * The error of a row, (w - q) (H + lambda I) (w - q)^T, is a parabola in each of its weights while the others stay:
 *     q_j  <-  the code nearest to  q_j - ((q - w) (H + lambda I))_j / (H_jj + lambda)
 * which never makes it larger.  From codes of GPTQ a few passes reach a point where no single code can be improved. */
#ifndef NB_QUANT_DESCENT_H
#define NB_QUANT_DESCENT_H

#include "quant/grid.h"

typedef struct nbi_descent {
    const float *h; /* [k][k] = X^T X or a multiple of it */
    size_t k, len;  /* columns; columns that share a grid */
    float lambda;
} nbi_descent;

/* One pass over a row's columns in ascending order; returns how many codes changed.  grids [k / len]; d [k]: q - w, and
 * g [k]: -d H, are kept up to date.  Columns with H_jj = 0 stay. */
size_t nbi_descend(const nbi_descent *o, int8_t *codes, const nbi_grid *grids, const float *w, float *d, float *g);

#endif
