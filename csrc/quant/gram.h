/* Gram matrices: H = sum over rows of x x^T, what second-order methods ask of activations.
 *
 * The same bits everywhere: the rows of one call are cut every NBI_GRAM_ROWS from its first; part = fma(x[r][i], x[r][j], part)
 * from 0 in ascending r; h[i][j] = h[i][j] + part, parts in order.  Feeding multiples of NBI_GRAM_ROWS makes the result
 * independent of where a stream was cut. */
#ifndef NB_QUANT_GRAM_H
#define NB_QUANT_GRAM_H

#include <stddef.h>

#include "base/status.h"

#define NBI_GRAM_ROWS  128
#define NBI_GRAM_PANEL 32

/* h [k][k] += X^T X, x [rows][k].  h is symmetric before and after.  NB_ENOMEM: no room for NBI_GRAM_ROWS rows. */
nb_status nbi_gram_add(float *h, const float *x, size_t rows, size_t k, int threads);

/* gram*.c: rows [i0, i1) of one triangle for n <= NBI_GRAM_ROWS rows of x, packed in panels [n][NBI_GRAM_PANEL] of columns;
 * i0 is a multiple of NBI_GRAM_PANEL. */
void nbi_gram_triangle(float *h, const float *packed, size_t n, size_t k, size_t i0, size_t i1);
#if defined(__x86_64__)
void nbi_gram_triangle_avx2(float *h, const float *packed, size_t n, size_t k, size_t i0, size_t i1);
void nbi_gram_triangle_avx512(float *h, const float *packed, size_t n, size_t k, size_t i0, size_t i1);
#endif

#endif
