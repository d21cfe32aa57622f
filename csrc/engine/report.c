#include "engine/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant/output_error.h"

static int ascending(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Of n numbers in order: the one at a share of the way, the nearer of two. */
static double quantile(const float *x, size_t n, double share)
{
    return (double)x[(size_t)(share * (double)(n - 1) + 0.5)];
}

/* Counts by size, in steps of half a power of two from the smallest: counts[i] scales s with
 * floor(2 log2 s) = first_half_log2 + i. */
static json_t *histogram(const float *sorted, size_t n)
{
    json_t *counts = json_array();
    if (!counts || !(sorted[0] > 0))
        return counts;
    const int first = (int)floor(2 * log2((double)sorted[0]));
    size_t at = 0;
    for (int bin = first; at < n && bin < first + 600; bin++) { /* fp32 has no more than 600 half powers */
        const size_t from = at;
        while (at < n && (int)floor(2 * log2((double)sorted[at])) <= bin)
            at++;
        json_array_append_new(counts, json_integer((json_int_t)(at - from)));
    }
    return counts;
}

static nb_status add_scales(json_t *row, const nbi_weight *q)
{
    const size_t n = q->scales ? q->n * nbi_scheme_groups(&q->scheme, q->k) : 0;
    if (n == 0)
        return NB_OK;
    float *s = malloc(n * sizeof *s);
    if (!s)
        return nbi_fail_nomem("the scales of a layer", n * sizeof *s);
    memcpy(s, q->scales, n * sizeof *s);
    qsort(s, n, sizeof *s, ascending);
    json_t *o =
        json_pack("{s:f, s:f, s:f, s:f, s:f, s:I, s:i, s:o}", "min", (double)s[0], "q1", quantile(s, n, 0.25), "median",
                  quantile(s, n, 0.5), "q3", quantile(s, n, 0.75), "max", (double)s[n - 1], "count", (json_int_t)n,
                  "first_half_log2", s[0] > 0 ? (int)floor(2 * log2((double)s[0])) : 0, "histogram", histogram(s, n));
    free(s);
    return o && json_object_set_new(row, "scales", o) == 0 ? NB_OK : nbi_fail_nomem("the report", 0);
}

/* The share of inputs whose largest magnitude on the text is more than 6 times the median of these. */
static nb_status add_inputs(json_t *row, const nbi_inputs *in)
{
    float *s = in->rows ? malloc(in->k * sizeof *s) : NULL;
    if (!in->rows)
        return NB_OK;
    if (!s)
        return nbi_fail_nomem("the inputs of a layer", in->k * sizeof *s);
    memcpy(s, in->abs_max, in->k * sizeof *s);
    qsort(s, in->k, sizeof *s, ascending);
    size_t beyond = 0;
    for (size_t j = 0; j < in->k; j++)
        beyond += (double)s[j] > 6 * (double)s[in->k / 2];
    free(s);
    json_object_set_new(row, "outlier_inputs", json_real((double)beyond / (double)in->k));
    return NB_OK;
}

/* To the fourth digit: the last ones of a product by BLAS depend on the machine, and the report should not. */
static json_t *decibels(double signal, double noise)
{
    const double db = nbi_decibels(signal, noise);
    return isfinite(db) ? json_real(round(1e4 * db) / 1e4) : json_null();
}

static nb_status add_errors(json_t *row, const nbi_report_item *it)
{
    nbi_weight_error e;
    const float *h = it->in ? it->in->gram : NULL;
    nb_status st = nbi_weight_error_of(&e, it->q, it->src, h, it->threads);
    if (st != NB_OK)
        return st;
    json_object_set_new(row, "mse", json_real(e.d2 / ((double)it->n * (double)it->k)));
    json_object_set_new(row, "max_abs_error", json_real(e.max_abs));
    json_object_set_new(row, "sqnr_db", decibels(e.w2, e.d2));
    if (h)
        json_object_set_new(row, "output_sqnr_db", decibels(e.signal, e.noise));
    json_object_set_new(row, "outlier_weights", json_real(e.outliers));
    return NB_OK;
}

nb_status nbi_report_add(json_t *rows, const nbi_report_item *it)
{
    char scheme[48];
    nb_status st = NB_OK;
    nbi_scheme_name(it->scheme, scheme);
    json_t *row =
        json_pack("{s:s, s:s, s:i, s:[I,I], s:I, s:f}", "module", it->module, "scheme", scheme, "bits",
                  it->scheme->bits ? it->scheme->bits : 16, "shape", (json_int_t)it->n, (json_int_t)it->k, "bytes",
                  (json_int_t)it->bytes, "bits_per_weight", 8.0 * (double)it->bytes / ((double)it->n * (double)it->k));
    if (!row)
        return nbi_fail_nomem("the report", 0);
    if (it->q) {
        NB_TRY(add_errors(row, it));
        NB_TRY(add_scales(row, it->q));
    }
    if (it->q && it->in)
        NB_TRY(add_inputs(row, it->in));
    if (it->q && it->scheme->act == NBI_ACT_TENSOR) {
        json_object_set_new(row, "input_scale", json_real((double)it->q->act_scale));
        json_object_set_new(row, "input_zero_point", json_integer(it->q->act_zero));
    }
    if (json_array_append(rows, row) != 0)
        NB_TRY(nbi_fail_nomem("the report", 0));
done:
    json_decref(row);
    return st;
}
