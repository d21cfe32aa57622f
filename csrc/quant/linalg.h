/* Dense linear algebra for calibration, on the host: what second-order methods ask of OpenBLAS and LAPACK.  Matrices are
 * row-major fp32. */
#ifndef NB_QUANT_LINALG_H
#define NB_QUANT_LINALG_H

#include <stddef.h>

#include "base/status.h"

/* h [k][k], symmetric and positive definite, becomes U, upper triangular with zeros below, such that the inverse of h is
 * U^T U.  NB_EFORMAT: h is not positive definite (h is destroyed). */
nb_status nbi_inverse_cholesky(float *h, size_t k);

/* Between these two calls the library's own threads rest, so that OpenMP's, which call it, do not come on top of them.  The first
 * returns what the second takes. */
int nbi_blas_alone(void);
void nbi_blas_together(int threads);

/* c [m][n] -= a [m][k] b [k][n], with rows of lda, ldb, ldc elements.  One thread. */
void nbi_matmul_sub(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb, size_t m, size_t n,
                    size_t k);

#endif
