#include "quant/clipped.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "quant/clip.h"
#include "quant/grid.h"
#include "quant/range.h"
#include "quant/rtn.h"

#define WEIGHT_CLIPS 80
#define OUTPUT_CLIPS 10

typedef struct clipped {
    const nbi_weight *src;
    nbi_weight *out;
    const nbi_inputs *in;
    nbi_dtype scale_dtype;
    size_t groups, len;
} clipped;

/* d H d^T for the inputs at .. at+len-1. */
static double output_error(const clipped *c, const float *x, size_t at, const nbi_grid *g, float *d)
{
    double sum = 0;
    for (size_t i = 0; i < c->len; i++)
        d[i] = nbi_grid_value(g, nbi_grid_code(g, x[i])) - x[i];
    for (size_t i = 0; i < c->len; i++) {
        const float *h = c->in->gram + (at + i) * c->in->k + at;
        float dot = 0;
        for (size_t j = 0; j < c->len; j++)
            dot += h[j] * d[j];
        sum += (double)dot * (double)d[i];
    }
    return sum;
}

static bool best_for_outputs(const clipped *c, const float *x, size_t at, float *d, nbi_grid *best)
{
    const nbi_scheme *s = &c->out->scheme;
    float lo, hi;
    double least = INFINITY;
    if (!nbi_range_of(x, c->len, &lo, &hi))
        return false;
    for (int i = 0; i < OUTPUT_CLIPS; i++) {
        const float f = 1 - (float)i / (2 * OUTPUT_CLIPS);
        const nbi_grid g = nbi_grid_make(f * lo, f * hi, s->bits, s->symmetric, c->scale_dtype);
        const double e = output_error(c, x, at, &g, d);
        if (e < least) {
            least = e;
            *best = g;
        }
    }
    return least < INFINITY;
}

static bool best_for_weights(const clipped *c, const float *x, nbi_grid *best)
{
    const nbi_scheme *s = &c->out->scheme;
    const nbi_clip_spec spec = nbi_clip_spec_of(s->bits, s->symmetric, c->scale_dtype, WEIGHT_CLIPS, 0.2f);
    nbi_clip clip;
    if (!nbi_clip_search(&clip, x, c->len, &spec))
        return false;
    *best = nbi_grid_make(clip.lo, clip.hi, s->bits, s->symmetric, c->scale_dtype);
    return true;
}

static bool clip_row(const clipped *c, size_t row, float *x, float *d)
{
    const size_t k = c->src->k, size = nbi_dtype_size(c->src->dense_dtype);
    int8_t *codes = c->out->codes + row * k;
    nbi_to_f32(x, (const char *)c->src->dense + row * k * size, c->src->dense_dtype, k);
    for (size_t g = 0; g < c->groups; g++) {
        const size_t at = g * c->len;
        nbi_grid grid;
        if (!(c->in ? best_for_outputs(c, x + at, at, d, &grid) : best_for_weights(c, x + at, &grid)))
            return false;
        for (size_t i = at; i < at + c->len; i++)
            codes[i] = nbi_grid_code(&grid, x[i]);
        c->out->scales[row * c->groups + g] = grid.scale;
        if (c->out->zeros)
            c->out->zeros[row * c->groups + g] = (int8_t)grid.zero;
    }
    return true;
}

static nb_status clip_rows(const clipped *c, int threads)
{
    bool no_memory = false, bad = false;
#pragma omp parallel num_threads(threads)
    {
        float *x = malloc(2 * c->src->k * sizeof *x);
        if (!x) {
#pragma omp atomic write
            no_memory = true;
        }
#pragma omp for schedule(static)
        for (size_t row = 0; row < c->src->n; row++)
            if (x && !clip_row(c, row, x, x + c->src->k)) {
#pragma omp atomic write
                bad = true;
            }
        free(x);
    }
    if (no_memory)
        return nbi_fail_nomem("rows of a weight", 2 * c->src->k * sizeof(float));
    return bad ? nbi_fail(NB_EFORMAT, "a weight or its error is NaN or infinite, expected finite numbers") : NB_OK;
}

nb_status nbi_clipped(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype,
                      const nbi_inputs *in, int threads)
{
    nb_status st = NB_OK;
    nbi_weight w = {.n = src->n, .k = src->k, .scheme = *scheme};
    clipped c = {.src = src, .out = &w, .in = in, .scale_dtype = scale_dtype};
    if (scheme->strategy == NBI_PER_TENSOR) /* one range for all rows: nothing to choose a row at a time */
        return nbi_rtn(out, src, scheme, scale_dtype, threads);
    if (src->scheme.bits || (scheme->strategy == NBI_PER_GROUP && (!scheme->group || src->k % scheme->group)))
        return nbi_fail(NB_EINVAL, "rows of %zu weights cannot be cut into groups of %u", src->k, scheme->group);
    NB_TRY(nbi_weight_alloc(&w));
    c.groups = nbi_scheme_groups(scheme, src->k);
    c.len = src->k / c.groups;
    NB_TRY(clip_rows(&c, threads > 0 ? threads : 1));
    if (src->bias) {
        if (!(w.bias = malloc(src->n * sizeof(float))))
            NB_TRY(nbi_fail_nomem("a bias", src->n * sizeof(float)));
        memcpy(w.bias, src->bias, src->n * sizeof(float));
    }
    *out = w;
    w = (nbi_weight){0};
done:
    nbi_weight_free(&w);
    return st;
}
