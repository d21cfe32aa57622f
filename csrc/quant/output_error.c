#include "quant/output_error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "quant/linalg.h"

#define BLOCK 16 /* rows that a thread takes, and multiplies with H together */

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

typedef struct work {
    const nbi_weight *src, *q;
    const float *whole; /* of q where its rows cannot be told one by one, [N][K] */
    const float *h;
    size_t k, step;          /* every step-th row is multiplied with h */
    nbi_weight_error *block; /* [blocks]; outliers: their number */
} work;

static nb_status take_row(const work *w, size_t n, float *x, float *d)
{
    nb_status st = NB_OK;
    nbi_weight_row(w->src, n, x);
    if (w->whole)
        memcpy(d, w->whole + n * w->k, w->k * sizeof *d);
    else {
        const nbi_weight one = row_of(w->q, n);
        st = nbi_weight_dense(&one, d, 1);
    }
    for (size_t j = 0; j < w->k; j++)
        d[j] = x[j] - d[j];
    return st;
}

static void add_row(nbi_weight_error *e, const float *x, const float *d, size_t k)
{
    double sum = 0, w2 = 0, d2 = 0, top = 0;
    for (size_t j = 0; j < k; j++) {
        sum += (double)x[j];
        w2 += (double)x[j] * (double)x[j];
        d2 += (double)d[j] * (double)d[j];
        top = fmax(top, fabs((double)d[j]));
    }
    const double mean = sum / (double)k, sigma = sqrt(fmax(0, w2 / (double)k - mean * mean));
    size_t beyond = 0;
    for (size_t j = 0; j < k; j++)
        beyond += fabs((double)x[j] - mean) > 6 * sigma;
    e->w2 += w2;
    e->d2 += d2;
    e->max_abs = fmax(e->max_abs, top);
    e->outliers += (double)beyond;
}

/* a H a^T summed over rows; product [rows][K] = 0 - A H. */
static double energy(const work *w, const float *a, float *product, size_t rows)
{
    double sum = 0;
    memset(product, 0, rows * w->k * sizeof *product);
    nbi_matmul_sub(product, w->k, a, w->k, w->h, w->k, rows, w->k, w->k);
    for (size_t i = 0; i < rows * w->k; i++)
        sum -= (double)a[i] * (double)product[i];
    return sum;
}

/* Rows [first, first + BLOCK); those that are multiplied with h stand together at the front. */
static nb_status take_block(const work *w, size_t b, float *x, float *d, float *product)
{
    const size_t first = b * BLOCK, end = w->src->n - first < BLOCK ? w->src->n : first + BLOCK;
    nbi_weight_error *e = &w->block[b];
    size_t picked = 0;
    *e = (nbi_weight_error){0};
    for (size_t n = first; n < end; n++) {
        nb_status st = take_row(w, n, x + picked * w->k, d + picked * w->k);
        if (st != NB_OK)
            return st;
        add_row(e, x + picked * w->k, d + picked * w->k, w->k);
        picked += n % w->step == 0;
    }
    if (w->h && picked) {
        e->signal = energy(w, x, product, picked);
        e->noise = energy(w, d, product, picked);
    }
    return NB_OK;
}

static nb_status take_blocks(const work *w, size_t blocks, int threads)
{
    nb_status worst = NB_OK;
#pragma omp parallel num_threads(threads)
    {
        /* one row more than a block: the last one that is read need not be picked */
        const size_t rows = BLOCK + 1;
        float *x = malloc(3 * rows * w->k * sizeof *x);
#pragma omp for schedule(static)
        for (size_t b = 0; b < blocks; b++) {
            nb_status st = x ? take_block(w, b, x, x + rows * w->k, x + 2 * rows * w->k) : NB_ENOMEM;
            if (st != NB_OK) {
#pragma omp atomic write
                worst = st;
            }
        }
        free(x);
    }
    /* the sentence belongs to the thread that failed */
    return worst == NB_OK ? NB_OK : nbi_fail(worst, "the error of a weight could not be computed");
}

nb_status nbi_weight_error_of(nbi_weight_error *e, const nbi_weight *q, const nbi_weight *src, const float *h,
                              int threads)
{
    nb_status st;
    float *whole = NULL;
    size_t bytes;
    const size_t blocks = nbi_ceil_div(src->n, BLOCK);
    work w = {.src = src, .q = q, .h = h, .k = src->k, .step = nbi_ceil_div(src->n, NBI_OUTPUT_ROWS)};
    *e = (nbi_weight_error){0};
    if (!(w.block = malloc((blocks + 1) * sizeof *w.block)))
        return nbi_fail_nomem("the error of a weight", blocks * sizeof *w.block);
    if (q->scheme.bits && q->scheme.rotate_out) { /* mixes rows */
        if (!nbi_mul(q->n, q->k, &bytes) || !nbi_mul(bytes, sizeof *whole, &bytes) || !(whole = malloc(bytes)))
            NB_TRY(nbi_fail_nomem("a weight in fp32", q->n * q->k * sizeof *whole));
        NB_TRY(nbi_weight_dense(q, whole, threads));
        w.whole = whole;
    }
    NB_TRY(take_blocks(&w, blocks, threads > 0 ? threads : 1));
    for (size_t b = 0; b < blocks; b++) {
        const nbi_weight_error *part = &w.block[b];
        e->w2 += part->w2;
        e->d2 += part->d2;
        e->max_abs = fmax(e->max_abs, part->max_abs);
        e->signal += part->signal;
        e->noise += part->noise;
        e->outliers += part->outliers / ((double)src->n * (double)src->k);
    }
done:
    free(whole);
    free(w.block);
    return st;
}

double nbi_decibels(double signal, double noise)
{
    return noise > 0 ? 10 * log10(signal / noise) : INFINITY;
}
