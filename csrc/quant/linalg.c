#include "quant/linalg.h"

#include <cblas.h>
#include <lapacke.h>

nb_status nbi_inverse_cholesky(float *h, size_t k)
{
    const lapack_int n = (lapack_int)k;
    if (k > 46340) /* k * k is an index of 32 bits in LAPACK's common builds */
        return nbi_fail(NB_ELIMIT, "a Hessian of %zu x %zu is too large: expected at most 46340 inputs", k, k);
    /* Row-major and upper is column-major and lower: what these calls do inside, without the copies of a transposition. */
    if (LAPACKE_spotrf(LAPACK_COL_MAJOR, 'L', n, h, n) != 0 || LAPACKE_spotri(LAPACK_COL_MAJOR, 'L', n, h, n) != 0 ||
        LAPACKE_spotrf(LAPACK_COL_MAJOR, 'L', n, h, n) != 0)
        return nbi_fail(NB_EFORMAT, "the Hessian is not positive definite");
    for (size_t i = 1; i < k; i++)
        for (size_t j = 0; j < i; j++)
            h[i * k + j] = 0;
    return NB_OK;
}

void nbi_matmul_sub(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb, size_t m, size_t n,
                    size_t k)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)m, (int)n, (int)k, -1, a, (int)lda, b, (int)ldb, 1, c,
                (int)ldc);
}
