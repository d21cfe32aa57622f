#include "quant/output_error.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "quant/linalg.h"

#define BLOCK 16 /* rows that a thread multiplies with H together */

/* Row n of a weight as a weight of one row. */
static nbi_weight row_of(const nbi_weight *w, size_t n)
{
    nbi_weight r = *w;
    const size_t groups = w->scheme.bits ? nbi_scheme_groups(&w->scheme, w->k) : 0;
    r.n = 1;
    if (!w->scheme.bits)
        r.dense = (const char *)w->dense + n * w->k * nbi_dtype_size(w->dense_dtype);
    if (w->codes) {
        r.codes += n * w->k;
        r.scales += n * groups;
    }
    if (w->zeros)
        r.zeros += n * groups;
    if (w->sparse.nnz)
        r.sparse.row += n;
    return r;
}

typedef struct sums {
    double signal, noise;
} sums;

typedef struct work {
    const nbi_weight *src, *q;
    const float *whole; /* of q where its rows cannot be told one by one, [N][K] */
    const float *h;
    size_t k, step, rows; /* rows that are looked at */
    sums *block;
} work;

/* -a H a^T summed over rows: product = 0 - A H. */
static double energy(const work *w, const float *a, float *product, size_t rows)
{
    double sum = 0;
    memset(product, 0, rows * w->k * sizeof *product);
    nbi_matmul_sub(product, w->k, a, w->k, w->h, w->k, rows, w->k, w->k);
    for (size_t i = 0; i < rows * w->k; i++)
        sum -= (double)a[i] * (double)product[i];
    return sum;
}

static nb_status take_block(const work *w, size_t b, float *a, float *d, float *product)
{
    const size_t first = b * BLOCK, rows = w->rows - first < BLOCK ? w->rows - first : BLOCK;
    for (size_t r = 0; r < rows; r++) {
        const size_t n = (first + r) * w->step;
        float *x = a + r * w->k, *y = d + r * w->k;
        nbi_weight_row(w->src, n, x);
        if (w->whole)
            memcpy(y, w->whole + n * w->k, w->k * sizeof *y);
        else {
            const nbi_weight one = row_of(w->q, n);
            nb_status st = nbi_weight_dense(&one, y, 1);
            if (st != NB_OK)
                return st;
        }
        for (size_t j = 0; j < w->k; j++)
            y[j] = x[j] - y[j];
    }
    w->block[b] = (sums){energy(w, a, product, rows), energy(w, d, product, rows)};
    return NB_OK;
}

static nb_status take_blocks(const work *w, size_t blocks, int threads)
{
    nb_status worst = NB_OK;
#pragma omp parallel num_threads(threads)
    {
        float *a = malloc(3 * BLOCK * w->k * sizeof *a);
#pragma omp for schedule(static)
        for (size_t b = 0; b < blocks; b++) {
            nb_status st = a ? take_block(w, b, a, a + BLOCK * w->k, a + 2 * BLOCK * w->k) : NB_ENOMEM;
            if (st != NB_OK) {
#pragma omp atomic write
                worst = st;
            }
        }
        free(a);
    }
    /* the sentence belongs to the thread that failed */
    return worst == NB_OK ? NB_OK : nbi_fail(worst, "the error of a layer's outputs could not be computed");
}

nb_status nbi_output_error(double *signal, double *noise, const nbi_weight *q, const nbi_weight *src, const float *h,
                           int threads)
{
    nb_status st;
    float *whole = NULL;
    size_t bytes;
    work w = {.src = src, .q = q, .h = h, .k = src->k};
    w.step = nbi_ceil_div(src->n, NBI_OUTPUT_ROWS);
    w.rows = nbi_ceil_div(src->n, w.step ? w.step : 1);
    const size_t blocks = nbi_ceil_div(w.rows, BLOCK);
    *signal = *noise = 0;
    if (!(w.block = malloc((blocks + 1) * sizeof *w.block)))
        return nbi_fail_nomem("the error of a layer's outputs", blocks * sizeof *w.block);
    if (q->scheme.bits && q->scheme.rotate_out) { /* mixes rows */
        if (!nbi_mul(q->n, q->k, &bytes) || !nbi_mul(bytes, sizeof *whole, &bytes) || !(whole = malloc(bytes)))
            NB_TRY(nbi_fail_nomem("a weight in fp32", q->n * q->k * sizeof *whole));
        NB_TRY(nbi_weight_dense(q, whole, threads));
        w.whole = whole;
    }
    NB_TRY(take_blocks(&w, blocks, threads > 0 ? threads : 1));
    for (size_t b = 0; b < blocks; b++) {
        *signal += w.block[b].signal;
        *noise += w.block[b].noise;
    }
done:
    free(whole);
    free(w.block);
    return st;
}
