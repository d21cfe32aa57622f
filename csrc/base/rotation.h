/* The orthogonal matrix that spreads a vector over all of its places, so that no place sticks out: with K = h * 2^p, h odd,
 *
 *     T_K = (C_h (x) H_2^p) / sqrt(K)      H the Hadamard matrix of Sylvester, C_h[i][j] = cos(t) + sin(t), t = 2 pi i j / h
 *
 * (x) is the Kronecker product: element i * 2^p + j of a vector is element j of its i-th part.  T is symmetric and its own
 * inverse.  Where K is a power of two it is the Hadamard matrix of QuaRot (arXiv 2404.00456) and QuIP# (arXiv 2402.04396); the
 * discrete Hartley matrix C_h takes the place of the tables of Hadamard matrices of other orders that those keep.
 *
 * Order of operations, the same on every device: first, for each of the h parts, p stages of butterflies, len = 1, 2, 4 ..:
 * (a, b) at distance len become (a + b, a - b); then, where h > 1, for each j the sums over i' ascending of C[i][i'] * x[i'][j]
 * by fused multiply-add from 0; then one multiplication by (float)(1 / sqrt((double)K)).  All in fp32. */
#ifndef NB_BASE_ROTATION_H
#define NB_BASE_ROTATION_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* h, and *p.  1, 0 for K = 1. */
size_t nbi_rotation_parts(size_t k, unsigned *p);
/* C_h as fp32, c [h][h]: each element rounded once from double. */
void nbi_rotation_hartley(float *c, size_t h);
/* One vector in place; tmp [k]; hartley as above (may be NULL where h is 1). */
void nbi_rotate(float *x, size_t k, const float *hartley, float *tmp);

/* w [n][k]:  W := diag(after_n) W' ... for rows: each row becomes  after * T (before * row);  for columns the same for each
 * column (T of order n).  before, after: signs, NULL for none. */
nb_status nbi_rotate_rows(float *w, size_t n, size_t k, const int8_t *before, const int8_t *after, int threads);
nb_status nbi_rotate_columns(float *w, size_t n, size_t k, const int8_t *before, const int8_t *after, int threads);

#endif
