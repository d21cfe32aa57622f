#include "quant/linalg.h"

#include <cblas.h>
#include <lapacke.h>
#include <stddef.h>

/* The same matrix with rows and columns in reverse order: the whole array backwards. */
static void reverse(float *h, size_t n)
{
    for (size_t i = 0; i < n / 2; i++) {
        const float t = h[i];
        h[i] = h[n - 1 - i];
        h[n - 1 - i] = t;
    }
}

/* With J the reversal: J H J = L L^T gives H^-1 = U^T U for U = J L^-1 J, which is upper triangular.  One factorisation and one
 * triangular inverse, half of the work of factoring the inverse.  Row-major and lower is column-major and upper: what these
 * calls do inside, without the copies of a transposition. */
static nb_status factor(float *h, size_t k)
{
    const lapack_int n = (lapack_int)k;
    reverse(h, k * k);
    if (LAPACKE_spotrf_work(LAPACK_COL_MAJOR, 'U', n, h, n) != 0 ||
        LAPACKE_strtri_work(LAPACK_COL_MAJOR, 'U', 'N', n, h, n) != 0)
        return nbi_fail(NB_EFORMAT, "the Hessian is not positive definite");
    reverse(h, k * k);
    for (size_t i = 1; i < k; i++)
        for (size_t j = 0; j < i; j++)
            h[i * k + j] = 0;
    return NB_OK;
}

int nbi_blas_alone(void)
{
    const int threads = openblas_get_num_threads();
    openblas_set_num_threads(1);
    return threads;
}

void nbi_blas_together(int threads)
{
    openblas_set_num_threads(threads);
}

/* One thread: the same bits whatever the machine's load and --threads are, and a team that waits at a barrier for every small
 * panel loses more than it gains where cores are shared. */
nb_status nbi_inverse_cholesky(float *h, size_t k)
{
    if (k > 46340) /* k * k is an index of 32 bits in LAPACK's common builds */
        return nbi_fail(NB_ELIMIT, "a Hessian of %zu x %zu is too large: expected at most 46340 inputs", k, k);
    const int threads = nbi_blas_alone();
    const nb_status st = factor(h, k);
    nbi_blas_together(threads);
    return st;
}

void nbi_matmul_sub(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb, size_t m, size_t n,
                    size_t k)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)m, (int)n, (int)k, -1, a, (int)lda, b, (int)ldb, 1, c,
                (int)ldc);
}
