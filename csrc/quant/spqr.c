/* For each group of columns, in the order of rounding:
 *   1. a weight without which the group's fit loses more than T is set aside: leave one out, refit, compare the errors
 *   2. the grid of each row is fitted to the rest (those set aside are replaced by the mean of the others)
 *   3. scales and zero points of 16 rows are rounded to grids of 3 bits
 *   4. columns are rounded one by one; a weight whose squared error is still above T becomes a single number, its code that of 0;
 *      what is lost goes to the columns that follow, as in GPTQ
 * Errors are counted in units of U_jj, T = threshold * mean over j of var(W_j) / U_jj^2.
 *
 * Where this differs from the reference implementation: its act-order sorts columns and then cuts groups, here groups of
 * neighbours are sorted as wholes, so that nothing has to be put in order when the layer runs, nor an order stored; and a
 * zero point is an integer within the codes' range, since that is what kernels multiply, so its grid has no steps finer
 * than 1, and 0 is always exact: a single number stands for itself. */
#include "quant/spqr.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "quant/bias.h"
#include "quant/grid.h"
#include "quant/hessian.h"
#include "quant/linalg.h"
#include "quant/range.h"

#define ROWS       NBI_SPQR_ROWS
#define STEPS      ((1 << NBI_SPQR_BITS) - 1)
#define GROUP_MOST 256 /* columns of a group */

/* What 16 rows leave beside their codes. */
typedef struct kept {
    uint32_t count[ROWS];
    uint32_t *col; /* row after row, ascending */
    float *value;
} kept;

typedef struct spqr {
    const nbi_weight *src;
    nbi_weight *out;
    nbi_hessian h;
    size_t n, k, groups, len, block;
    float threshold; /* T */
    kept *kept;      /* [ceil(n/16)] */
    const char *bad; /* what is wrong with some weight, and its row */
    size_t bad_row;
    bool no_memory;
} spqr;

typedef struct rows {
    size_t row0, n;
    float *w;      /* [ROWS][k] in the order of rounding */
    float *e;      /* [ROWS][block] */
    float *single; /* [ROWS][k], by inputs: the number beside the codes, 0: none */
    float *plain;  /* [k] */
    nbi_grid grid[ROWS];
    size_t at; /* the one that is looked at */
} rows;

nbi_spqr_options nbi_spqr_defaults(void)
{
    return (nbi_spqr_options){.act_order = true, .threshold = 0.2f, .damp = 1.0f, .block = 128};
}

/* ---- which weights stay out of a fit ---- */

/* Squared error of the weights but `out` on the grid of their range. */
static double fit_error(const spqr *s, const float *w, const float *inverse, size_t out)
{
    float lo = 0, hi = 0;
    double sum = 0;
    for (size_t j = 0; j < s->len; j++)
        if (j != out) {
            lo = w[j] < lo ? w[j] : lo;
            hi = w[j] > hi ? w[j] : hi;
        }
    const nbi_grid g = nbi_grid_make(lo, hi, s->out->scheme.bits, false, NBI_F32);
    for (size_t j = 0; j < s->len; j++)
        if (j != out) {
            const float d = (w[j] - nbi_grid_value(&g, nbi_grid_code(&g, w[j]))) * inverse[j];
            sum += (double)(d * d);
        }
    return sum;
}

/* Range of a group without the weights that fit better alone. */
static void fit_range(const spqr *s, const float *w, const float *inverse, float *lo, float *hi)
{
    const double all = fit_error(s, w, inverse, SIZE_MAX);
    bool alone[GROUP_MOST];
    size_t rest = 0;
    double sum = 0;
    for (size_t j = 0; j < s->len; j++) {
        /* a fit cannot gain more than all that it loses */
        alone[j] = all > (double)s->threshold && all - fit_error(s, w, inverse, j) > (double)s->threshold;
        sum += alone[j] ? 0 : (double)w[j];
        rest += !alone[j];
    }
    const float mean = rest ? (float)(sum / (double)rest) : 0;
    *lo = *hi = 0;
    for (size_t j = 0; j < s->len; j++) {
        const float x = alone[j] ? mean : w[j];
        *lo = x < *lo ? x : *lo;
        *hi = x > *hi ? x : *hi;
    }
}

/* ---- scales and zero points on grids of their own ---- */

static float as_f16(float x)
{
    return nbi_f16_to_f32(nbi_f32_to_f16(x));
}

/* A grid from lo to hi, with steps of at least `least`; codes of v[0..n) limited to it.  NaN stands for any number. */
static void nest(float grid[2], uint8_t *code, size_t stride, const float *v, size_t n, float least)
{
    float lo = INFINITY, hi = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        lo = v[i] < lo ? v[i] : lo;
        hi = v[i] > hi ? v[i] : hi;
    }
    if (!(lo <= hi))
        lo = hi = 1;
    const float step = (hi - lo) / STEPS;
    grid[0] = as_f16(least > 0 ? rintf(lo) : fmaxf(lo, 0x1p-24f));
    grid[1] = as_f16(fmaxf(step, least));
    for (size_t i = 0; i < n; i++) {
        const float q = grid[1] > 0 ? rintf((v[i] - grid[0]) / grid[1]) : 0;
        code[i * stride] = (uint8_t)(!(q > 0) ? 0 : q < STEPS ? q : STEPS);
    }
}

/* The grids of a group in all rows of r. */
static bool set_grids(spqr *s, rows *r, size_t group)
{
    const size_t j0 = group * s->len;
    group = s->h.order[j0] / s->len; /* where it lies */
    const size_t at = r->row0 * s->groups + group, run = (r->row0 / ROWS * s->groups + group) * 2;
    const unsigned bits = s->out->scheme.bits;
    nbi_nested *nested = &s->out->nested;
    float scale[ROWS], zero[ROWS], inverse[GROUP_MOST];
    for (size_t j = 0; j < s->len; j++)
        inverse[j] = 1.0f / s->h.u[(j0 + j) * (s->k + 1)];
    for (size_t i = 0; i < r->n; i++) {
        float lo, hi;
        r->at = i;
        fit_range(s, r->w + i * s->k + j0, inverse, &lo, &hi);
        const float span = hi - lo;
        if (!(span / (float)((1 << bits) - 1) < 65504.0f))
            return false;
        scale[i] = span >= FLT_MIN ? span / (float)((1 << bits) - 1) : NAN;
        zero[i] = span >= FLT_MIN ? (float)(-(1 << (bits - 1))) - lo / scale[i] : NAN;
    }
    nest(nested->scale_grid + run, nested->scale_code + at, s->groups, scale, r->n, 0);
    nest(nested->zero_grid + run, nested->zero_code + at, s->groups, zero, r->n, 1);
    nbi_weight_unnest_group(s->out, r->row0, r->n, group);
    for (size_t i = 0; i < r->n; i++)
        r->grid[i] = (nbi_grid){.scale = s->out->scales[at + i * s->groups],
                                .zero = s->out->zeros[at + i * s->groups],
                                .qmin = -(1 << (bits - 1)),
                                .qmax = (1 << (bits - 1)) - 1};
    return true;
}

/* ---- rounding ---- */

static bool load_rows(const spqr *s, rows *r)
{
    const size_t size = nbi_dtype_size(s->src->dense_dtype);
    for (size_t i = 0; i < r->n; i++) {
        r->at = i;
        nbi_to_f32(r->plain, (const char *)s->src->dense + (r->row0 + i) * s->k * size, s->src->dense_dtype, s->k);
        for (size_t j = 0; j < s->k; j++) {
            const float x = r->plain[s->h.order[j]];
            if (!isfinite(x))
                return false;
            r->w[i * s->k + j] = s->h.dead[s->h.order[j]] ? 0 : x;
        }
    }
    memset(r->single, 0, r->n * s->k * sizeof *r->single);
    return true;
}

/* Columns [b0, b1) of row i within group `g`, whose grid is set. */
static bool round_group(const spqr *s, rows *r, size_t i, size_t b0, size_t b1, size_t g)
{
    float *w = r->w + i * s->k, *e = r->e + i * s->block;
    int8_t *codes = s->out->codes + (r->row0 + i) * s->k;
    const nbi_grid *grid = &r->grid[i];
    for (size_t j = g * s->len; j < (g + 1) * s->len; j++) {
        const float *u = s->h.u + j * s->k;
        const size_t column = s->h.order[j];
        codes[column] = nbi_grid_code(grid, w[j]);
        float err = (w[j] - nbi_grid_value(grid, codes[column])) / u[j];
        if (err * err > s->threshold) {
            const float stored = as_f16(w[j]);
            if (!isfinite(stored))
                return false;
            codes[column] = nbi_grid_code(grid, 0);
            r->single[i * s->k + column] = stored;
            err = (w[j] - stored) / u[j];
        }
        e[j - b0] = err;
        for (size_t t = j + 1; t < b1; t++)
            w[t] -= err * u[t];
    }
    return true;
}

static const char *round_rows(spqr *s, rows *r)
{
    if (!load_rows(s, r))
        return "is NaN or infinite";
    for (size_t b0 = 0; b0 < s->k; b0 += s->block) {
        const size_t b1 = s->k - b0 < s->block ? s->k : b0 + s->block;
        for (size_t g = b0 / s->len; g < b1 / s->len; g++) {
            if (!set_grids(s, r, g))
                return "needs a scale beyond what float16 holds";
            for (r->at = 0; r->at < r->n; r->at++)
                if (!round_group(s, r, r->at, b0, b1, g))
                    return "stays outside of its group and is beyond what float16 holds";
        }
        if (b1 < s->k)
            nbi_matmul_sub(r->w + b1, s->k, r->e, s->block, s->h.u + b0 * s->k + b1, s->k, r->n, s->k - b1, b1 - b0);
    }
    return NULL;
}

static bool keep_singles(const spqr *s, const rows *r, kept *to)
{
    size_t n = 0;
    for (size_t i = 0; i < r->n * s->k; i++)
        n += r->single[i] != 0;
    to->col = malloc((n ? n : 1) * sizeof *to->col);
    to->value = malloc((n ? n : 1) * sizeof *to->value);
    if (!to->col || !to->value)
        return false;
    n = 0;
    for (size_t i = 0; i < r->n; i++) {
        const size_t before = n;
        for (size_t j = 0; j < s->k; j++)
            if (r->single[i * s->k + j] != 0) {
                to->col[n] = (uint32_t)j;
                to->value[n++] = r->single[i * s->k + j];
            }
        to->count[i] = (uint32_t)(n - before);
    }
    return true;
}

/* One thread's share; what it needs is allocated here, sentences belong to the thread that called. */
static void take_rows(spqr *s)
{
    rows r = {0};
    r.w = malloc(ROWS * s->k * sizeof *r.w);
    r.e = malloc(ROWS * s->block * sizeof *r.e);
    r.single = malloc(ROWS * s->k * sizeof *r.single);
    r.plain = malloc(s->k * sizeof *r.plain);
    bool ready = r.w && r.e && r.single && r.plain;
#pragma omp for schedule(dynamic, 1)
    for (size_t row0 = 0; row0 < s->n; row0 += ROWS) {
        r.row0 = row0;
        r.n = s->n - row0 < ROWS ? s->n - row0 : ROWS;
        const char *bad = ready ? round_rows(s, &r) : NULL;
        ready = ready && (bad || keep_singles(s, &r, &s->kept[row0 / ROWS]));
        if (bad) {
#pragma omp critical /* without a name, which would be a symbol of the library */
            {
                s->bad = bad;
                s->bad_row = r.row0 + r.at;
            }
        }
    }
    if (!ready) {
#pragma omp atomic write
        s->no_memory = true;
    }
    free(r.w);
    free(r.e);
    free(r.single);
    free(r.plain);
}

static nb_status join_singles(spqr *s)
{
    nbi_sparse *to = &s->out->sparse;
    for (size_t row0 = 0; row0 < s->n; row0 += ROWS)
        for (size_t i = 0; i < ROWS; i++)
            to->nnz += s->kept[row0 / ROWS].count[i];
    to->row = malloc((s->n + 1) * sizeof *to->row);
    to->col = malloc((to->nnz ? to->nnz : 1) * sizeof *to->col);
    to->value = malloc((to->nnz ? to->nnz : 1) * sizeof *to->value);
    if (!to->row || !to->col || !to->value)
        return nbi_fail_nomem("the single numbers of a weight", to->nnz * 8);
    if (to->nnz > UINT32_MAX)
        return nbi_fail(NB_ELIMIT, "%zu weights of a layer stay outside of their groups: raise the threshold", to->nnz);
    to->row[0] = 0;
    for (size_t n = 0; n < s->n; n += ROWS) {
        const kept *from = &s->kept[n / ROWS];
        const size_t at = to->row[n];
        for (size_t i = 0; i < ROWS && n + i < s->n; i++)
            to->row[n + i + 1] = to->row[n + i] + from->count[i];
        const size_t end = to->row[s->n - n < ROWS ? s->n : n + ROWS];
        memcpy(to->col + at, from->col, (end - at) * sizeof *to->col);
        memcpy(to->value + at, from->value, (end - at) * sizeof *to->value);
    }
    s->out->scheme.nnz = to->nnz;
    return NB_OK;
}

/* ---- the whole ---- */

/* Mean over columns of var(W_j) / U_jj^2. */
static nb_status set_threshold(spqr *s, float relative)
{
    const size_t size = nbi_dtype_size(s->src->dense_dtype);
    double *sum = calloc(2 * s->k, sizeof *sum), *square = sum ? sum + s->k : NULL, mean = 0;
    float *row = malloc(s->k * sizeof *row);
    if (!sum || !row) {
        free(sum);
        free(row);
        return nbi_fail_nomem("variances of a weight", 2 * s->k * sizeof *sum);
    }
    for (size_t n = 0; n < s->n; n++) {
        nbi_to_f32(row, (const char *)s->src->dense + n * s->k * size, s->src->dense_dtype, s->k);
        for (size_t j = 0; j < s->k; j++) {
            sum[j] += (double)row[j];
            square[j] += (double)row[j] * (double)row[j];
        }
    }
    for (size_t i = 0; i < s->k; i++) {
        const size_t j = s->h.order[i];
        const double u = (double)s->h.u[i * (s->k + 1)], n = (double)s->n;
        const double var = n > 1 && !s->h.dead[j] ? (square[j] - sum[j] * sum[j] / n) / (n - 1) : 0;
        mean += var / (u * u) / (double)s->k;
    }
    free(sum);
    free(row);
    s->threshold = mean > 0 ? (float)((double)relative * mean) : FLT_MAX;
    return NB_OK;
}

static nb_status check(const nbi_weight *src, const nbi_scheme *s, const nbi_spqr_options *o)
{
    if (src->scheme.bits || !nbi_dtype_is_float(src->dense_dtype) || !s->nested || !s->sparse || s->symmetric ||
        s->strategy != NBI_PER_GROUP)
        return nbi_fail(NB_EINVAL, "SpQR takes a dense weight of floats and a scheme of its own");
    if (!s->group || s->group > GROUP_MOST || src->k % s->group)
        return nbi_fail(NB_EINVAL, "rows of %zu weights cannot be cut into groups of %u", src->k, s->group);
    if (!(o->threshold > 0) || !(o->damp >= 0 && o->damp <= 1))
        return nbi_fail(NB_EINVAL, "SpQR with a threshold of %g and damping %g: expected more than 0, and 0 to 1",
                        (double)o->threshold, (double)o->damp);
    return NB_OK;
}

static nb_status prepare(spqr *s, const float *h, const nbi_spqr_options *o)
{
    nb_status st;
    NB_TRY(nbi_weight_alloc(s->out));
    s->out->nested = (nbi_nested){.bits = NBI_SPQR_BITS, .rows = NBI_SPQR_ROWS};
    NB_TRY(nbi_weight_alloc_nested(s->out));
    s->groups = nbi_scheme_groups(&s->out->scheme, s->k);
    s->len = s->k / s->groups;
    s->block = o->block > s->len ? o->block / s->len * s->len : s->len;
    if (!(s->kept = calloc(nbi_ceil_div(s->n, ROWS), sizeof *s->kept)))
        NB_TRY(nbi_fail_nomem("the single numbers of a weight", s->n));
    NB_TRY(nbi_hessian_create(&s->h, h, s->k, o->act_order ? s->len : 0, o->damp));
    NB_TRY(set_threshold(s, o->threshold));
done:
    return st;
}

nb_status nbi_spqr(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, const float *h,
                   const nbi_spqr_options *o, int threads)
{
    nb_status st = NB_OK;
    nbi_weight w = {.n = src->n, .k = src->k, .scheme = *scheme};
    spqr s = {.src = src, .out = &w, .n = src->n, .k = src->k};
    NB_TRY(check(src, scheme, o));
    NB_TRY(prepare(&s, h, o));
#pragma omp parallel num_threads(threads > 0 ? threads : 1)
    take_rows(&s);
    if (s.no_memory)
        NB_TRY(nbi_fail_nomem("rows of a weight", ROWS * s.k * sizeof(float)));
    if (s.bad)
        NB_TRY(nbi_fail(NB_EFORMAT, "a weight of output %zu %s", s.bad_row, s.bad));
    NB_TRY(join_singles(&s));
    NB_TRY(nbi_copy_bias(&w, src));
    *out = w;
    w = (nbi_weight){0};
done:
    for (size_t i = 0; s.kept && i < nbi_ceil_div(s.n, ROWS); i++) {
        free(s.kept[i].col);
        free(s.kept[i].value);
    }
    free(s.kept);
    nbi_hessian_free(&s.h);
    nbi_weight_free(&w);
    return st;
}

nb_status nbi_spqr_scheme(nbi_scheme *s, const char *where)
{
    if (s->bits == 8)
        return NB_OK;
    if (s->bits < 2 || s->symmetric || s->strategy != NBI_PER_GROUP || s->group > GROUP_MOST || s->act != NBI_ACT_NONE)
        return nbi_fail(
            NB_EFORMAT,
            "%s: SpQR has codes of 2 to 4 bits in small groups with zero points, and activations as they are: "
            "expected \"symmetric\" false, a \"group_size\" of up to %d, and no \"activations\"",
            where, GROUP_MOST);
    s->nested = s->sparse = true;
    return NB_OK;
}
