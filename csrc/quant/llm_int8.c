#include "quant/llm_int8.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "quant/bias.h"
#include "quant/grid.h"

static nb_status list_outliers(nbi_weight *w, const nbi_inputs *in, float threshold)
{
    for (size_t j = 0; j < w->k; j++)
        w->n_outliers += in->abs_max[j] >= threshold;
    w->outlier = malloc((w->n_outliers + 1) * sizeof *w->outlier);
    if (!w->outlier)
        return nbi_fail_nomem("a list of outliers", w->n_outliers * sizeof *w->outlier);
    for (size_t j = 0, i = 0; j < w->k; j++)
        if (in->abs_max[j] >= threshold)
            w->outlier[i++] = (uint32_t)j;
    return NB_OK;
}

static nb_status alloc_columns(nbi_weight *w)
{
    nbi_sparse *s = &w->sparse;
    if (!nbi_mul(w->n, w->n_outliers, &s->nnz) || s->nnz > UINT32_MAX)
        return nbi_fail(NB_ELIMIT, "%zu columns of %zu outliers are too many numbers", w->n_outliers, w->n);
    s->row = malloc((w->n + 1) * sizeof *s->row);
    s->col = malloc((s->nnz ? s->nnz : 1) * sizeof *s->col);
    s->value = malloc((s->nnz ? s->nnz : 1) * sizeof *s->value);
    if (!s->row || !s->col || !s->value)
        return nbi_fail_nomem("the columns of outliers", s->nnz * sizeof *s->value);
    for (size_t n = 0; n <= w->n; n++)
        s->row[n] = (uint32_t)(n * w->n_outliers);
    w->scheme.nnz = s->nnz;
    return NB_OK;
}

/* The columns of outliers leave x for the sparse part. */
static nb_status take_columns(nbi_weight *w, size_t n, float *x)
{
    for (size_t i = 0; i < w->n_outliers; i++) {
        const size_t at = n * w->n_outliers + i, j = w->outlier[i];
        w->sparse.col[at] = (uint32_t)j;
        w->sparse.value[at] = nbi_f16_to_f32(nbi_f32_to_f16(x[j]));
        if (!isfinite(w->sparse.value[at]))
            return nbi_fail(NB_EFORMAT, "the weight of output %zu and input %zu is %g, which float16 does not hold", n,
                            j, (double)x[j]);
        x[j] = 0;
    }
    return NB_OK;
}

/* s = absmax / 127, q = rne(x / s) */
static nb_status round_row(nbi_weight *w, size_t n, const float *x, nbi_dtype scale_dtype)
{
    float most = 0;
    for (size_t j = 0; j < w->k; j++) {
        if (!isfinite(x[j]))
            return nbi_fail(NB_EFORMAT, "the weight of output %zu and input %zu is NaN or infinite", n, j);
        most = fmaxf(most, fabsf(x[j]));
    }
    const nbi_grid g = {.scale = nbi_grid_scale(most / 127.0f, scale_dtype), .qmin = -127, .qmax = 127};
    w->scales[n] = g.scale;
    for (size_t j = 0; j < w->k; j++)
        w->codes[n * w->k + j] = nbi_grid_code(&g, x[j]);
    return NB_OK;
}

nb_status nbi_llm_int8(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype,
                       const nbi_inputs *in, float threshold)
{
    nb_status st;
    nbi_weight w = {.n = src->n, .k = src->k, .scheme = *scheme};
    const size_t size = nbi_dtype_size(src->dense_dtype);
    float *row = malloc(src->k * sizeof *row);
    if (src->scheme.bits || !nbi_dtype_is_float(src->dense_dtype) || !scheme->outliers || in->k != src->k)
        NB_TRY(nbi_fail(NB_EINVAL, "LLM.int8() takes a dense weight of floats and a scheme of its own"));
    if (!row)
        NB_TRY(nbi_fail_nomem("a row of weights", src->k * sizeof *row));
    NB_TRY(nbi_weight_alloc(&w));
    NB_TRY(list_outliers(&w, in, threshold));
    NB_TRY(alloc_columns(&w));
    for (size_t n = 0; n < w.n; n++) {
        nbi_to_f32(row, (const char *)src->dense + n * w.k * size, src->dense_dtype, w.k);
        NB_TRY(take_columns(&w, n, row));
        NB_TRY(round_row(&w, n, row, scale_dtype));
    }
    NB_TRY(nbi_copy_bias(&w, src));
    *out = w;
    w = (nbi_weight){0};
done:
    free(row);
    nbi_weight_free(&w);
    return st;
}

nb_status nbi_llm_int8_scheme(nbi_scheme *s, const char *where)
{
    if (s->act == NBI_ACT_NONE && s->bits != 8)
        return NB_OK;
    if (s->bits != 8 || !s->symmetric || s->strategy != NBI_PER_CHANNEL || s->act != NBI_ACT_TOKEN)
        return nbi_fail(NB_EFORMAT,
                        "%s: LLM.int8() has a scale for each row of weights and of activations: expected \"bits\" 8, "
                        "\"symmetric\" true, \"strategy\" \"channel\", and \"activations\" with \"strategy\" \"token\"",
                        where);
    s->outliers = s->sparse = true;
    return NB_OK;
}
