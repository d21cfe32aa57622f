/* Gram matrices: H = sum over rows of x x^T, what second-order methods ask of activations.
 *
 * The same bits everywhere: the rows of one call are cut every NBI_GRAM_ROWS from its first; part = fma(x[r][i], x[r][j], part)
 * from 0 in ascending r; h[i][j] = h[i][j] + part, parts in order.  Feeding multiples of NBI_GRAM_ROWS makes the result
 * independent of where a stream was cut. */
#ifndef NB_QUANT_GRAM_H
#define NB_QUANT_GRAM_H

#include <stddef.h>

#define NBI_GRAM_ROWS 128

/* h [k][k] += X^T X, x [rows][k]. */
void nbi_gram_add(float *h, const float *x, size_t rows, size_t k);

#endif
