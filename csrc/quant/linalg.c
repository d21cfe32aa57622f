#include "quant/linalg.h"

#include <cblas.h>
#include <lapacke.h>

static nb_status check_size(size_t k)
{
    if (k > 46340) /* k * k is an index of 32 bits in LAPACK's common builds */
        return nbi_fail(NB_ELIMIT, "a Hessian of %zu x %zu is too large: expected at most 46340 inputs", k, k);
    return NB_OK;
}

static nb_status not_positive(void)
{
    return nbi_fail(NB_EFORMAT, "the Hessian is not positive definite");
}

nb_status nbi_inverse_cholesky(float *h, size_t k)
{
    const lapack_int n = (lapack_int)k;
    nb_status st = check_size(k);
    if (st != NB_OK)
        return st;
    /* Row-major and upper is column-major and lower: what these calls do inside, without the copies of a transposition. */
    if (LAPACKE_spotrf(LAPACK_COL_MAJOR, 'L', n, h, n) != 0 || LAPACKE_spotri(LAPACK_COL_MAJOR, 'L', n, h, n) != 0 ||
        LAPACKE_spotrf(LAPACK_COL_MAJOR, 'L', n, h, n) != 0)
        return not_positive();
    for (size_t i = 1; i < k; i++)
        for (size_t j = 0; j < i; j++)
            h[i * k + j] = 0;
    return NB_OK;
}

/* With h = C C^T, C lower triangular: L = C times the inverses of the diagonal blocks of C. */
nb_status nbi_block_ldl(float *h, size_t k, size_t b)
{
    const lapack_int n = (lapack_int)k;
    nb_status st = check_size(k);
    if (st != NB_OK)
        return st;
    /* column-major and upper is row-major and lower */
    if (LAPACKE_spotrf(LAPACK_COL_MAJOR, 'U', n, h, n) != 0)
        return not_positive();
    for (size_t at = 0; at < k; at += b) {
        float *diagonal = h + at * k + at;
        if (at + b < k)
            cblas_strsm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, (int)(k - at - b), (int)b, 1,
                        diagonal, (int)k, diagonal + b * k, (int)k);
        for (size_t i = 0; i < b; i++) {
            for (size_t j = 0; j < b; j++)
                diagonal[i * k + j] = i == j ? 1 : 0;
            for (size_t j = at + b; j < k; j++)
                h[(at + i) * k + j] = 0;
        }
    }
    return NB_OK;
}

nb_status nbi_inverse(float *h, size_t k)
{
    const lapack_int n = (lapack_int)k;
    if (LAPACKE_spotrf(LAPACK_COL_MAJOR, 'L', n, h, n) != 0 || LAPACKE_spotri(LAPACK_COL_MAJOR, 'L', n, h, n) != 0)
        return not_positive();
    for (size_t i = 1; i < k; i++)
        for (size_t j = 0; j < i; j++)
            h[i * k + j] = h[j * k + i];
    return NB_OK;
}

void nbi_matmul_sub(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb, size_t m, size_t n,
                    size_t k)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)m, (int)n, (int)k, -1, a, (int)lda, b, (int)ldb, 1, c,
                (int)ldc);
}
