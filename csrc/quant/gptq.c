#include "quant/gptq.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant/bias.h"
#include "quant/clip.h"
#include "quant/descent.h"
#include "quant/grid.h"
#include "quant/hessian.h"
#include "quant/linalg.h"
#include "quant/range.h"

#define ROWS  32 /* rows of W that a thread carries through all columns together */
#define CLIPS 80 /* candidates from the full range down to a fifth of it, as the reference implementation has them */

typedef struct gptq {
    const nbi_weight *src;
    nbi_weight *out;
    nbi_gptq_options o;
    nbi_dtype scale_dtype;
    size_t n, k, groups, len;
    nbi_hessian h;
    nbi_descent descent;
    bool bad; /* some weight is not finite */
} gptq;

nbi_gptq_options nbi_gptq_defaults(void)
{
    return (nbi_gptq_options){.act_order = true, .static_groups = true, .damp = 0.01f, .block = 128};
}

/* ---- grids ---- */

static bool grid_of(const gptq *g, const float *x, size_t n, nbi_grid *grid)
{
    const nbi_scheme *s = &g->out->scheme;
    nbi_clip c;
    if (g->o.clip) {
        const nbi_clip_spec spec = nbi_clip_spec_of(s->bits, s->symmetric, g->scale_dtype, CLIPS, 0.2f);
        if (!nbi_clip_search(&c, x, n, &spec))
            return false;
    } else if (!nbi_range_of(x, n, &c.lo, &c.hi))
        return false;
    *grid = nbi_grid_make(c.lo, c.hi, s->bits, s->symmetric, g->scale_dtype);
    return grid->scale < (g->scale_dtype == NBI_F16 ? 65504.0f : FLT_MAX / 256);
}

/* The grid of a group from columns [group * len, +len) of x. */
static bool set_grid(const gptq *g, size_t row, size_t group, const float *x, nbi_grid *grid)
{
    const size_t at = row * g->groups + group;
    if (!grid_of(g, x, g->len, grid))
        return false;
    g->out->scales[at] = grid->scale;
    if (g->out->zeros)
        g->out->zeros[at] = (int8_t)grid->zero;
    return true;
}

/* ---- rounding ---- */

typedef struct rows {
    size_t row0, n;
    float *w;        /* [ROWS][k] in the order of rounding */
    float *e;        /* [ROWS][block] */
    float *plain;    /* [k] a row in its own order */
    nbi_grid *grids; /* [ROWS][groups] */
    float *g;        /* [ROWS][k] for the descent; NULL without one */
} rows;

/* Row i as it was; weights of dead inputs are 0. */
static void load_plain(const gptq *g, rows *r, size_t i)
{
    const size_t size = nbi_dtype_size(g->src->dense_dtype);
    const char *src = (const char *)g->src->dense + (r->row0 + i) * g->k * size;
    nbi_to_f32(r->plain, src, g->src->dense_dtype, g->k);
    for (size_t j = 0; j < g->k; j++)
        if (g->h.dead[j])
            r->plain[j] = isfinite(r->plain[j]) ? 0 : r->plain[j];
}

static bool load_rows(const gptq *g, rows *r)
{
    for (size_t i = 0; i < r->n; i++) {
        load_plain(g, r, i);
        for (size_t q = 0; q < g->groups && g->o.static_groups; q++)
            if (!set_grid(g, r->row0 + i, q, r->plain + q * g->len, &r->grids[i * g->groups + q]))
                return false;
        for (size_t j = 0; j < g->k; j++)
            r->w[i * g->k + j] = r->plain[g->h.order[j]];
    }
    return true;
}

/* Columns [b0, b1) of one row. */
static bool round_block(const gptq *g, rows *r, size_t i, size_t b0, size_t b1)
{
    float *w = r->w + i * g->k, *e = r->e + i * g->o.block;
    int8_t *codes = g->out->codes + (r->row0 + i) * g->k;
    for (size_t j = b0; j < b1; j++) {
        const size_t column = g->h.order[j], group = column / g->len;
        nbi_grid *grid = &r->grids[i * g->groups + group];
        /* without static groups the order is 0, 1, ...: the group's weights are as the earlier columns left them */
        if (!g->o.static_groups && column % g->len == 0 && !set_grid(g, r->row0 + i, group, w + j, grid))
            return false;
        const float *u = g->h.u + j * g->k;
        codes[column] = nbi_grid_code(grid, w[j]);
        const float err = (w[j] - nbi_grid_value(grid, codes[column])) / u[j];
        e[j - b0] = err;
        for (size_t t = j + 1; t < b1; t++)
            w[t] -= err * u[t];
    }
    return true;
}

/* What was w becomes the error of each code. */
static void descend_rows(const gptq *g, rows *r)
{
    const size_t k = g->k;
    for (size_t i = 0; i < r->n; i++) {
        const int8_t *codes = g->out->codes + (r->row0 + i) * k;
        load_plain(g, r, i);
        for (size_t j = 0; j < k; j++)
            r->w[i * k + j] = nbi_grid_value(&r->grids[i * g->groups + j / g->len], codes[j]) - r->plain[j];
    }
    memset(r->g, 0, r->n * k * sizeof *r->g);
    nbi_matmul_sub(r->g, k, r->w, k, g->descent.h, k, r->n, k, k);
    for (size_t i = 0; i < r->n; i++) {
        size_t changed = 1;
        load_plain(g, r, i);
        for (uint32_t pass = 0; pass < g->o.descent && changed; pass++)
            changed = nbi_descend(&g->descent, g->out->codes + (r->row0 + i) * k, &r->grids[i * g->groups], r->plain,
                                  r->w + i * k, r->g + i * k);
    }
}

static bool round_rows(const gptq *g, rows *r)
{
    if (!load_rows(g, r))
        return false;
    for (size_t b0 = 0; b0 < g->k; b0 += g->o.block) {
        const size_t b1 = g->k - b0 < g->o.block ? g->k : b0 + g->o.block;
        for (size_t i = 0; i < r->n; i++)
            if (!round_block(g, r, i, b0, b1))
                return false;
        if (b1 < g->k)
            nbi_matmul_sub(r->w + b1, g->k, r->e, g->o.block, g->h.u + b0 * g->k + b1, g->k, r->n, g->k - b1, b1 - b0);
    }
    if (r->g)
        descend_rows(g, r);
    return true;
}

/* One thread's share; what it needs is allocated here. */
static nb_status take_rows(gptq *g)
{
    rows r = {0};
    nb_status st = NB_OK;
    r.w = malloc(ROWS * g->k * sizeof *r.w);
    r.e = malloc(ROWS * g->o.block * sizeof *r.e);
    r.plain = malloc(g->k * sizeof *r.plain);
    r.grids = malloc(ROWS * g->groups * sizeof *r.grids);
    r.g = g->o.descent ? malloc(ROWS * g->k * sizeof *r.g) : NULL;
    const bool ready = r.w && r.e && r.plain && r.grids && (r.g || !g->o.descent);
    if (!ready)
        st = NB_ENOMEM; /* the sentence belongs to the thread that called */
#pragma omp for schedule(dynamic, 1)
    for (size_t row0 = 0; row0 < g->n; row0 += ROWS) {
        r.row0 = row0;
        r.n = g->n - row0 < ROWS ? g->n - row0 : ROWS;
        if (ready && !round_rows(g, &r)) {
#pragma omp atomic write
            g->bad = true;
        }
    }
    free(r.w);
    free(r.e);
    free(r.plain);
    free(r.grids);
    free(r.g);
    return st;
}

static nb_status round_all(gptq *g, int threads)
{
    const int before = nbi_blas_alone();
    bool no_memory = false;
#pragma omp parallel num_threads(threads)
    {
        if (take_rows(g) != NB_OK) {
#pragma omp atomic write
            no_memory = true;
        }
    }
    nbi_blas_together(before);
    if (no_memory)
        return nbi_fail_nomem("rows of a weight", ROWS * g->k * sizeof(float));
    if (g->bad)
        return nbi_fail(NB_EFORMAT, "a weight is NaN or infinite, or needs a scale beyond what %s holds",
                        nbi_dtype_name(g->scale_dtype));
    return NB_OK;
}

static nb_status check(const nbi_weight *src, const nbi_scheme *s, nbi_dtype scale_dtype, const nbi_gptq_options *o)
{
    if (src->scheme.bits || !nbi_dtype_is_float(src->dense_dtype) || !nbi_dtype_is_float(scale_dtype))
        return nbi_fail(NB_EINVAL, "GPTQ takes a dense weight of floats and scales of floats");
    if (s->bits < 2 || s->bits > 8 || s->strategy == NBI_PER_TENSOR)
        return nbi_fail(NB_EUNSUPPORTED, "GPTQ has grids of 2 to 8 bits for channels or groups, not %u bits %s",
                        s->bits, s->strategy == NBI_PER_TENSOR ? "per tensor" : "");
    if (s->strategy == NBI_PER_GROUP && (!s->group || src->k % s->group))
        return nbi_fail(NB_EINVAL, "rows of %zu weights cannot be cut into groups of %u", src->k, s->group);
    if (o->act_order && !o->static_groups && s->strategy == NBI_PER_GROUP)
        return nbi_fail(NB_EUNSUPPORTED,
                        "act-order with groups needs static groups: else each input has a group of its own");
    if (!o->block || !(o->damp >= 0 && o->damp <= 1))
        return nbi_fail(NB_EINVAL, "GPTQ with blocks of %u and damping %g: expected at least 1, and 0 to 1", o->block,
                        (double)o->damp);
    return NB_OK;
}

nb_status nbi_gptq(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype,
                   const float *h, const nbi_gptq_options *o, int threads, float *damp_used)
{
    nb_status st = NB_OK;
    nbi_weight w = {.n = src->n, .k = src->k, .scheme = *scheme};
    gptq g = {.src = src, .out = &w, .o = *o, .scale_dtype = scale_dtype, .n = src->n, .k = src->k};
    NB_TRY(check(src, scheme, scale_dtype, o));
    NB_TRY(nbi_weight_alloc(&w));
    g.groups = nbi_scheme_groups(scheme, g.k);
    g.len = g.k / g.groups;
    NB_TRY(nbi_hessian_create(&g.h, h, g.k, o->act_order ? 1 : 0, o->damp));
    g.descent = (nbi_descent){.h = h, .k = g.k, .len = g.len, .lambda = g.h.lambda};
    NB_TRY(round_all(&g, threads > 0 ? threads : 1));
    NB_TRY(nbi_copy_bias(&w, src));
    if (damp_used)
        *damp_used = g.h.damp;
    *out = w;
    w = (nbi_weight){0};
done:
    nbi_hessian_free(&g.h);
    nbi_weight_free(&w);
    return st;
}
