#include "quant/inputs.h"

#include <math.h>
#include <stdlib.h>

#include "base/checked.h"
#include "quant/gram.h"
#include "quant/observer.h"
#include "quant/range.h"

nb_status nbi_inputs_init(nbi_inputs *in, size_t k, unsigned needs)
{
    size_t bytes = 0;
    *in = (nbi_inputs){.k = k};
    in->lo = calloc(k, sizeof *in->lo);
    in->hi = calloc(k, sizeof *in->hi);
    in->abs_max = calloc(k, sizeof *in->abs_max);
    in->abs_sum = calloc(k, sizeof *in->abs_sum);
    if ((needs & NBI_NEEDS_GRAM) && nbi_mul(k, k, &bytes) && nbi_mul(bytes, sizeof(float), &bytes))
        in->gram = calloc(1, bytes);
    if (needs & NBI_NEEDS_RANGE) {
        in->all = calloc(1, sizeof *in->all);
        in->tokens = calloc(1, sizeof *in->tokens);
    }
    if (in->lo && in->hi && in->abs_max && in->abs_sum && (!(needs & NBI_NEEDS_GRAM) || in->gram) &&
        (!(needs & NBI_NEEDS_RANGE) || (in->all && in->tokens)))
        return NB_OK;
    nbi_inputs_free(in);
    return nbi_fail_nomem("statistics of a layer's inputs", bytes);
}

void nbi_inputs_free(nbi_inputs *in)
{
    free(in->lo);
    free(in->hi);
    free(in->abs_max);
    free(in->abs_sum);
    free(in->gram);
    free(in->all);
    free(in->tokens);
    *in = (nbi_inputs){0};
}

/* Channels [j0, j1), rows in order: the same sums whoever computes them. */
static void add_channels(nbi_inputs *in, const float *x, size_t rows, size_t j0, size_t j1)
{
    for (size_t j = j0; j < j1 && rows && in->rows == 0; j++)
        in->lo[j] = in->hi[j] = x[j];
    for (size_t r = 0; r < rows; r++)
        for (size_t j = j0; j < j1; j++) {
            const float v = x[r * in->k + j], a = fabsf(v);
            in->lo[j] = nbi_lower(in->lo[j], v);
            in->hi[j] = -nbi_lower(-in->hi[j], -v);
            in->abs_max[j] = a > in->abs_max[j] ? a : in->abs_max[j];
            in->abs_sum[j] += (double)a;
        }
}

static void add_tokens(nbi_inputs *in, const float *x, size_t rows)
{
    for (size_t r = 0; r < rows; r++) {
        float most = 0;
        for (size_t j = 0; j < in->k; j++)
            most = fmaxf(most, fabsf(x[r * in->k + j]));
        nbi_observer_add(in->tokens, &most, 1);
    }
}

nb_status nbi_inputs_add(nbi_inputs *in, const float *x, size_t rows, int threads)
{
    const size_t strip = 256;
#pragma omp parallel for num_threads(threads > 0 ? threads : 1)
    for (size_t j0 = 0; j0 < in->k; j0 += strip)
        add_channels(in, x, rows, j0, in->k - j0 < strip ? in->k : j0 + strip);
    in->rows += rows;
    for (size_t j = 0; j < in->k; j++) /* a sum keeps a NaN or an infinity */
        if (!isfinite(in->abs_sum[j]))
            return nbi_fail(NB_EFORMAT, "input channel %zu is NaN or infinite on the calibration text", j);
    nb_status st = in->gram ? nbi_gram_add(in->gram, x, rows, in->k, threads) : NB_OK;
    if (in->all) {
        nbi_observer_add(in->all, x, rows * in->k);
        add_tokens(in, x, rows);
    }
    return st;
}

void nbi_inputs_divide(nbi_inputs *in, const float *s)
{
    for (size_t j = 0; j < in->k; j++) {
        const float lo = in->lo[j] / s[j], hi = in->hi[j] / s[j];
        in->lo[j] = s[j] < 0 ? hi : lo;
        in->hi[j] = s[j] < 0 ? lo : hi;
        in->abs_max[j] = fabsf(in->abs_max[j] / s[j]);
        in->abs_sum[j] = fabs(in->abs_sum[j] / (double)s[j]);
    }
    for (size_t i = 0; in->gram && i < in->k; i++)
        for (size_t j = 0; j < in->k; j++)
            in->gram[i * in->k + j] = (float)((double)in->gram[i * in->k + j] / ((double)s[i] * (double)s[j]));
}

void nbi_inputs_forget(nbi_inputs *in)
{
    in->rows = 1;
    for (size_t j = 0; j < in->k; j++) {
        in->lo[j] = -1;
        in->hi[j] = in->abs_max[j] = 1;
        in->abs_sum[j] = 1;
    }
    for (size_t i = 0; in->gram && i < in->k * in->k; i++)
        in->gram[i] = i % (in->k + 1) == 0;
}

void nbi_head_inputs(float *y, const float *x, const float *norm, float eps, size_t rows, size_t k)
{
    for (size_t r = 0; r < rows; r++, x += k, y += k) {
        double sum = 0;
        for (size_t j = 0; j < k; j++)
            sum += (double)x[j] * (double)x[j];
        const float scale = (float)(1 / sqrt(sum / (double)k + (double)eps));
        for (size_t j = 0; j < k; j++)
            y[j] = x[j] * scale * norm[j];
    }
}
