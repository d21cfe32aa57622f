#include "quant/block_ldl.h"

#include <cblas.h>
#include <lapacke.h>

#include "quant/linalg.h"

static nb_status not_positive(void)
{
    return nbi_fail(NB_EFORMAT, "the Hessian is not positive definite");
}

/* With h = C C^T, C lower triangular: L = C times the inverses of the diagonal blocks of C.  Row-major and lower is column-major
 * and upper. */
static nb_status factor(float *h, size_t k, size_t b)
{
    const lapack_int n = (lapack_int)k;
    if (LAPACKE_spotrf_work(LAPACK_COL_MAJOR, 'U', n, h, n) != 0)
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

nb_status nbi_block_ldl(float *h, size_t k, size_t b)
{
    if (k > 46340) /* k * k is an index of 32 bits in LAPACK's common builds */
        return nbi_fail(NB_ELIMIT, "a Hessian of %zu x %zu is too large: expected at most 46340 inputs", k, k);
    const int threads = nbi_blas_alone();
    const nb_status st = factor(h, k, b);
    nbi_blas_together(threads);
    return st;
}

nb_status nbi_small_inverse(float *h, size_t k)
{
    const lapack_int n = (lapack_int)k;
    if (LAPACKE_spotrf_work(LAPACK_COL_MAJOR, 'L', n, h, n) != 0 ||
        LAPACKE_spotri_work(LAPACK_COL_MAJOR, 'L', n, h, n) != 0)
        return not_positive();
    for (size_t i = 1; i < k; i++)
        for (size_t j = 0; j < i; j++)
            h[i * k + j] = h[j * k + i];
    return NB_OK;
}
