#include "quant/balance.h"

#include <cblas.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "quant/rtn.h"

#define RATIOS 20
#define SLAB   256 /* rows whose error is looked at together */

static float *values(const nbi_weight *w)
{
    return (float *)(uintptr_t)w->dense; /* dense fp32 that the caller owns */
}

void nbi_scale_columns(nbi_weight *w, const float *s)
{
    float *x = values(w);
    for (size_t i = 0; i < w->n; i++)
        for (size_t j = 0; j < w->k; j++)
            x[i * w->k + j] *= s[j];
}

void nbi_divide_rows(nbi_weight *w, const float *s)
{
    float *x = values(w);
    for (size_t i = 0; i < w->n; i++) {
        for (size_t j = 0; j < w->k; j++)
            x[i * w->k + j] /= s[i];
        if (w->bias)
            w->bias[i] /= s[i];
    }
}

nb_status nbi_smooth_scales(float *s, const nbi_siblings *l, const nbi_inputs *in, float alpha)
{
    for (size_t j = 0; j < l->k; j++) {
        float w = 0;
        for (size_t i = 0; i < l->n; i++)
            for (size_t r = 0; r < l->w[i]->n; r++)
                w = fmaxf(w, fabsf(values(l->w[i])[r * l->k + j]));
        const float x = fmaxf(in->abs_max[j], 1e-5f);
        s[j] = fmaxf(powf(x, alpha) / powf(fmaxf(w, 1e-5f), 1 - alpha), 1e-5f);
        if (!isfinite(s[j]))
            return nbi_fail(NB_EFORMAT, "the smoothing scale of input %zu is not finite: its largest value is %g", j,
                            (double)in->abs_max[j]);
    }
    return NB_OK;
}

/* ---- AWQ ---- */

/* The mean over all rows of |w| / (largest of its group): how much a column matters to the grids. */
static void weight_sizes(double *out, const nbi_siblings *l)
{
    size_t rows = 0;
    memset(out, 0, l->k * sizeof *out);
    for (size_t i = 0; i < l->n; i++) {
        if (!l->scheme[i]->bits)
            continue;
        const size_t len = l->k / nbi_scheme_groups(l->scheme[i], l->k);
        rows += l->w[i]->n;
        for (size_t r = 0; r < l->w[i]->n; r++) {
            const float *w = values(l->w[i]) + r * l->k;
            for (size_t g = 0; g < l->k; g += len) {
                float most = 0;
                for (size_t j = g; j < g + len; j++)
                    most = fmaxf(most, fabsf(w[j]));
                for (size_t j = g; j < g + len; j++)
                    out[j] += (double)fabsf(w[j]) / ((double)most + 1e-6);
            }
        }
    }
    for (size_t j = 0; j < l->k && rows; j++)
        out[j] /= (double)rows;
}

static bool candidate(float *s, const double *w, const nbi_inputs *in, double r)
{
    double most = 0, least = INFINITY;
    for (size_t j = 0; j < in->k; j++) {
        const double x = in->abs_sum[j] / (double)in->rows;
        const double v = fmax(pow(x, r) / (pow(w[j], 1 - r) + 1e-4), 1e-4);
        s[j] = (float)v;
        most = fmax(most, v);
        least = fmin(least, v);
    }
    const double norm = sqrt(most * least);
    for (size_t j = 0; j < in->k; j++) {
        s[j] = (float)((double)s[j] / norm);
        if (!isfinite(s[j]) || !(s[j] > 0))
            return false;
    }
    return true;
}

/* d [n][k] for rows of one layer: what is left of Q(w s)/s - w. */
static nb_status slab_error(float *d, const nbi_weight *w, const nbi_scheme *scheme, size_t row0, size_t n,
                            const float *s, nbi_dtype scale_dtype, int threads)
{
    nbi_weight src = {.n = n, .k = w->k, .dense_dtype = NBI_F32, .dense = d}, q = {0};
    const float *x = values(w) + row0 * w->k;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < w->k; j++)
            d[i * w->k + j] = x[i * w->k + j] * s[j];
    nb_status st = nbi_rtn(&q, &src, scheme, scale_dtype, threads);
    if (st != NB_OK)
        return st;
    for (size_t i = 0; i < n; i++) {
        nbi_weight_row(&q, i, d + i * w->k);
        for (size_t j = 0; j < w->k; j++)
            d[i * w->k + j] = d[i * w->k + j] / s[j] - x[i * w->k + j];
    }
    nbi_weight_free(&q);
    return NB_OK;
}

typedef struct search {
    const nbi_siblings *l;
    const nbi_inputs *in;
    nbi_dtype scale_dtype;
    int threads;
    float *d, *dh; /* [SLAB][k] */
} search;

/* The squared error of the outputs of all layers. */
static nb_status loss_of(const search *f, const float *s, double *loss)
{
    const size_t k = f->l->k;
    *loss = 0;
    for (size_t i = 0; i < f->l->n; i++) {
        const nbi_weight *w = f->l->w[i];
        for (size_t row = 0; row < w->n && f->l->scheme[i]->bits; row += SLAB) {
            const size_t n = w->n - row < SLAB ? w->n - row : SLAB;
            nb_status st = slab_error(f->d, w, f->l->scheme[i], row, n, s, f->scale_dtype, f->threads);
            if (st != NB_OK)
                return st;
            cblas_ssymm(CblasRowMajor, CblasRight, CblasUpper, (int)n, (int)k, 1, f->in->gram, (int)k, f->d, (int)k, 0,
                        f->dh, (int)k);
            for (size_t e = 0; e < n * k; e++)
                *loss += (double)f->d[e] * (double)f->dh[e];
        }
    }
    return NB_OK;
}

nb_status nbi_awq_scales(float *s, const nbi_siblings *l, const nbi_inputs *in, nbi_dtype scale_dtype, int threads,
                         float *ratio)
{
    nb_status st = NB_OK;
    size_t bytes;
    search f = {l, in, scale_dtype, threads, NULL, NULL};
    double *w = malloc(l->k * sizeof *w), best, loss;
    float *try = malloc(l->k * sizeof *try);
    if (!nbi_mul(l->k, SLAB * sizeof(float), &bytes) || !w || !try || !(f.d = malloc(bytes)) || !(f.dh = malloc(bytes)))
        NB_TRY(nbi_fail_nomem("the AWQ search", l->k * sizeof *w));
    weight_sizes(w, l);
    for (size_t j = 0; j < l->k; j++)
        s[j] = 1;
    if (ratio)
        *ratio = 0;
    NB_TRY(loss_of(&f, s, &best));
    for (int i = 0; i < RATIOS; i++) {
        const double r = (double)i / RATIOS;
        if (!candidate(try, w, in, r))
            continue;
        NB_TRY(loss_of(&f, try, &loss));
        if (loss < best) {
            best = loss;
            memcpy(s, try, l->k * sizeof *s);
            if (ratio)
                *ratio = (float)r;
        }
    }
done:
    free(w);
    free(try);
    free(f.d);
    free(f.dh);
    return st;
}
