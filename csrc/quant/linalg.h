/* Dense linear algebra for calibration, on the host: what second-order methods ask of OpenBLAS and LAPACK.  Matrices are
 * row-major fp32. */
#ifndef NB_QUANT_LINALG_H
#define NB_QUANT_LINALG_H

#include <stddef.h>

#include "base/status.h"

/* h [k][k], symmetric and positive definite, becomes U, upper triangular with zeros below, such that the inverse of h is
 * U^T U.  NB_EFORMAT: h is not positive definite (h is destroyed). */
nb_status nbi_inverse_cholesky(float *h, size_t k);

/* h [k][k], symmetric and positive definite (its upper triangle is not read), becomes L of the block LDL^T decomposition with
 * blocks of b, a divisor of k: h = L D L^T, L lower triangular with identities for diagonal blocks and zeros above, D block
 * diagonal.  NB_EFORMAT: h is not positive definite (h is destroyed). */
nb_status nbi_block_ldl(float *h, size_t k, size_t b);

/* h [k][k], symmetric and positive definite, becomes its inverse.  NB_EFORMAT as above.  For small k. */
nb_status nbi_inverse(float *h, size_t k);

/* c [m][n] -= a [m][k] b [k][n], with rows of lda, ldb, ldc elements.  One thread. */
void nbi_matmul_sub(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb, size_t m, size_t n,
                    size_t k);

#endif
