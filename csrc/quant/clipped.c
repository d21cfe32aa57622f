#include "quant/clipped.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "quant/bias.h"
#include "quant/clip.h"
#include "quant/grid.h"
#include "quant/range.h"
#include "quant/rtn.h"

#define WEIGHT_CLIPS  80
#define OUTPUT_CLIPS  10
#define OUTPUT_SWEEPS 4

typedef struct clipped {
    const nbi_weight *src;
    nbi_weight *out;
    const nbi_inputs *in;
    nbi_dtype scale_dtype;
    size_t groups, len;
} clipped;

/* A row on its way: what it loses of the outputs is d H d^T with d = Q(x) - x, and hd = H d. */
typedef struct row {
    float *x, *d, *hd; /* [k] */
    float *trial;      /* [len] */
    nbi_grid *grid;    /* [groups] */
} row;

static float dot(const float *a, const float *b, size_t n)
{
    float lane[16] = {0}, sum = 0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t l = 0; l < 16; l++)
            lane[l] += a[i + l] * b[i + l];
    for (size_t l = 0; l < 16; l++)
        sum += lane[l];
    for (; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* How the loss changes when group g is rounded on `grid`, all others staying as they are:  t H_gg t^T + 2 t (H d)_g, t the change
 * of d. */
static double change(const clipped *c, const row *r, size_t g, const nbi_grid *grid)
{
    const size_t at = g * c->len;
    double sum = 0;
    for (size_t i = 0; i < c->len; i++)
        r->trial[i] = nbi_grid_value(grid, nbi_grid_code(grid, r->x[at + i])) - r->x[at + i] - r->d[at + i];
    for (size_t i = 0; i < c->len; i++)
        sum += (double)r->trial[i] *
               ((double)dot(c->in->gram + (at + i) * c->in->k + at, r->trial, c->len) + 2 * (double)r->hd[at + i]);
    return sum;
}

static void move_to(const clipped *c, row *r, size_t g, const nbi_grid *grid)
{
    const size_t at = g * c->len, k = c->in->k;
    for (size_t i = at; i < at + c->len; i++) {
        const float d = nbi_grid_value(grid, nbi_grid_code(grid, r->x[i])) - r->x[i], t = d - r->d[i];
        const float *h = c->in->gram + i * k;
        r->d[i] = d;
        for (size_t j = 0; j < k && t != 0; j++)
            r->hd[j] += t * h[j];
    }
    r->grid[g] = *grid;
}

static bool full_ranges(const clipped *c, row *r)
{
    const nbi_scheme *s = &c->out->scheme;
    memset(r->d, 0, c->in->k * sizeof *r->d);
    memset(r->hd, 0, c->in->k * sizeof *r->hd);
    for (size_t g = 0; g < c->groups; g++) {
        float lo, hi;
        if (!nbi_range_of(r->x + g * c->len, c->len, &lo, &hi))
            return false;
        const nbi_grid grid = nbi_grid_make(lo, hi, s->bits, s->symmetric, c->scale_dtype);
        move_to(c, r, g, &grid);
    }
    return true;
}

/* Groups take turns, until each has seen what the others chose. */
static bool best_for_outputs(const clipped *c, row *r)
{
    const nbi_scheme *s = &c->out->scheme;
    bool moved = full_ranges(c, r);
    if (!moved)
        return false;
    for (int sweep = 0; sweep < OUTPUT_SWEEPS && moved; sweep++) {
        moved = false;
        for (size_t g = 0; g < c->groups; g++) {
            nbi_grid best = r->grid[g];
            double least = 0;
            float lo, hi;
            nbi_range_of(r->x + g * c->len, c->len, &lo, &hi);
            for (int i = 0; i < OUTPUT_CLIPS; i++) {
                const float f = 1 - (float)i / (2 * OUTPUT_CLIPS);
                const nbi_grid grid = nbi_grid_make(f * lo, f * hi, s->bits, s->symmetric, c->scale_dtype);
                const double e = change(c, r, g, &grid);
                if (!isfinite(e))
                    return false;
                if (e < least) {
                    least = e;
                    best = grid;
                }
            }
            if (least < 0) {
                move_to(c, r, g, &best);
                moved = true;
            }
        }
    }
    return true;
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

static bool clip_row(const clipped *c, size_t n, row *r)
{
    const size_t k = c->src->k, size = nbi_dtype_size(c->src->dense_dtype);
    nbi_to_f32(r->x, (const char *)c->src->dense + n * k * size, c->src->dense_dtype, k);
    if (c->in && !best_for_outputs(c, r))
        return false;
    for (size_t g = 0; g < c->groups; g++) {
        if (!c->in && !best_for_weights(c, r->x + g * c->len, &r->grid[g]))
            return false;
        for (size_t i = g * c->len; i < (g + 1) * c->len; i++)
            c->out->codes[n * k + i] = nbi_grid_code(&r->grid[g], r->x[i]);
        c->out->scales[n * c->groups + g] = r->grid[g].scale;
        if (c->out->zeros)
            c->out->zeros[n * c->groups + g] = (int8_t)r->grid[g].zero;
    }
    return true;
}

static nb_status clip_rows(const clipped *c, int threads)
{
    const size_t k = c->src->k, n = c->src->n, floats = 3 * k + c->len, parts = (size_t)threads;
    bool bad = false;
    float *x = malloc(parts * floats * sizeof *x);
    nbi_grid *grids = malloc(parts * c->groups * sizeof *grids);
    if (!x || !grids) {
        free(x);
        free(grids);
        return nbi_fail_nomem("rows of a weight", parts * floats * sizeof(float));
    }
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (size_t p = 0; p < parts; p++) {
        float *own = x + p * floats;
        row r = {own, own + k, own + 2 * k, own + 3 * k, grids + p * c->groups};
        for (size_t i = n * p / parts; i < n * (p + 1) / parts; i++)
            if (!clip_row(c, i, &r)) {
#pragma omp atomic write
                bad = true;
            }
    }
    free(x);
    free(grids);
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
    NB_TRY(nbi_copy_bias(&w, src));
    *out = w;
    w = (nbi_weight){0};
done:
    nbi_weight_free(&w);
    return st;
}
