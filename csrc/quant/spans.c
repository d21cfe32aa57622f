#include "quant/spans.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "quant/bad_row.h"
#include "quant/bias.h"

typedef struct span_job {
    nbi_weight *out;
    const nbi_weight *src;
    nbi_dtype scale_dtype;
    nbi_span_fn fn;
    bool refine;
} span_job;

static void load_row(const span_job *j, size_t row, float *x)
{
    const size_t bytes = j->src->k * nbi_dtype_size(j->src->dense_dtype);
    nbi_to_f32(x, (const char *)j->src->dense + row * bytes, j->src->dense_dtype, j->src->k);
}

static bool all_finite(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return false;
    return true;
}

static bool is_stored(float scale, nbi_dtype t)
{
    return scale < (t == NBI_F16 ? 65504.0f : FLT_MAX);
}

/* `row` has a number that is not finite, or needs a scale that is too large. */
static nb_status explain(const span_job *j, size_t row, float *x)
{
    load_row(j, row, x);
    return nbi_bad_row(x, j->src->k, row, j->scale_dtype);
}

static nb_status rows(const span_job *j, int threads)
{
    nbi_weight *w = j->out;
    const size_t groups = nbi_scheme_groups(&w->scheme, w->k), len = w->k / groups;
    size_t bad = SIZE_MAX;
    float *all = malloc((size_t)threads * w->k * sizeof *all);
    if (!all)
        return nbi_fail_nomem("rows of a weight", (size_t)threads * w->k * sizeof *all);
#pragma omp parallel for num_threads(threads) schedule(static) reduction(min : bad)
    for (size_t t = 0; t < (size_t)threads; t++)
        for (size_t row = t * w->n / (size_t)threads; row < (t + 1) * w->n / (size_t)threads; row++) {
            float *x = all + t * w->k;
            load_row(j, row, x);
            bool fine = all_finite(x, w->k);
            for (size_t g = 0; g < groups && fine; g++) {
                const float s = j->fn(w->codes + row * w->k + g * len, x + g * len, len, j->scale_dtype, j->refine);
                w->scales[row * groups + g] = s;
                fine = is_stored(s, j->scale_dtype);
            }
            if (!fine && row < bad)
                bad = row;
        }
    nb_status st = bad == SIZE_MAX ? NB_OK : explain(j, bad, all);
    free(all);
    return st;
}

/* One scale for all: the matrix as one run, whose sums are added in one order. */
static nb_status whole(const span_job *j)
{
    nbi_weight *w = j->out;
    nb_status st = NB_OK;
    size_t count, bytes;
    float *x = NULL;
    if (!nbi_mul(w->n, w->k, &count) || !nbi_mul(count, sizeof *x, &bytes) || !(x = malloc(bytes)))
        return nbi_fail_nomem("a weight in fp32", w->n * w->k);
    for (size_t row = 0; row < w->n; row++) {
        load_row(j, row, x + row * w->k);
        if (!all_finite(x + row * w->k, w->k))
            NB_TRY(explain(j, row, x));
    }
    const float s = j->fn(w->codes, x, count, j->scale_dtype, j->refine);
    if (!is_stored(s, j->scale_dtype))
        NB_TRY(nbi_fail(NB_EFORMAT, "the scale of a weight is %g, beyond what %s holds", (double)s,
                        nbi_dtype_name(j->scale_dtype)));
    for (size_t row = 0; row < w->n; row++)
        w->scales[row] = s;
done:
    free(x);
    return st;
}

nb_status nbi_quantize_spans(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype,
                             nbi_span_fn fn, bool refine, int threads)
{
    nb_status st = NB_OK;
    nbi_weight w = {.n = src->n, .k = src->k, .scheme = *scheme};
    const span_job j = {&w, src, scale_dtype, fn, refine};
    if (src->scheme.bits || !scheme->symmetric || !src->n || !src->k)
        return nbi_fail(NB_EINVAL, "a weight of %zu x %zu: expected a dense one and a symmetric scheme", src->n,
                        src->k);
    if (scheme->strategy == NBI_PER_GROUP && (!scheme->group || src->k % scheme->group))
        return nbi_fail(NB_EINVAL, "rows of %zu weights cannot be cut into groups of %u", src->k, scheme->group);
    NB_TRY(nbi_weight_alloc(&w));
    NB_TRY(scheme->strategy == NBI_PER_TENSOR ? whole(&j) : rows(&j, threads > 0 ? threads : 1));
    NB_TRY(nbi_copy_bias(&w, src));
    *out = w;
    w = (nbi_weight){0};
done:
    nbi_weight_free(&w);
    return st;
}
