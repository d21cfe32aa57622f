/* Round to nearest, row by row.
 *
 * A row is converted to fp32, then each of its groups (the whole row per channel) is read twice: once for its range,
 * once for its codes.  Per tensor the range of all rows comes first.  Rows are independent and extremes do not depend
 * on the order in which they are found, so neither does the result depend on the threads.  A device computes the same
 * codes and scales; what cannot be quantized is always explained here. */
#include "quant/rtn.h"

#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/nf4.h"
#include "quant/bad_row.h"
#include "quant/bias.h"
#include "quant/grid.h"
#include "quant/range.h"
#include "quant/rtn_device.h"

typedef struct rtn_job {
    nbi_weight *out;
    const nbi_weight *src;
    nbi_dtype scale_dtype;
    int threads;
    float *rows;           /* [threads][K]: a row in fp32 for each thread */
    const nbi_grid *fixed; /* per tensor: the grid of every row; else NULL */
} rtn_job;

static const float *load_row(const rtn_job *j, size_t row)
{
    size_t bytes = j->src->k * nbi_dtype_size(j->src->dense_dtype);
    float *x = j->rows + (size_t)omp_get_thread_num() * j->src->k;
    nbi_to_f32(x, (const char *)j->src->dense + row * bytes, j->src->dense_dtype, j->src->k);
    return x;
}

/* The codes of nbi_grid_code(), in a form that vectorises on any machine: limiting to integers commutes with rounding,
 * and once |r| < 2^22, adding 1.5 * 2^23 leaves no bits for a fraction, so that the addition itself rounds to nearest
 * even and the integer stands in the low bits of the sum. */
static void code_run(int8_t *restrict q, const float *restrict x, size_t n, const nbi_grid *g)
{
    const float s = g->scale, a = (float)(g->qmin - g->zero), b = (float)(g->qmax - g->zero);
    const int32_t offset = g->zero - 0x4b400000;
    for (size_t i = 0; i < n; i++) {
        float r = x[i] / s;
        r = r < a ? a : r;
        r = r > b ? b : r;
        r += 0x1.8p23f;
        int32_t u;
        memcpy(&u, &r, 4);
        q[i] = (int8_t)(u + offset);
    }
}

/* A scale at the end of what its dtype holds has been cut there: the codes would not cover the weights. */
static bool scale_was_cut(float scale, nbi_dtype t)
{
    return scale >= (t == NBI_F16 ? 65504.0f : FLT_MAX / 256);
}

/* False: the row holds something that cannot be quantized; explain_row() says what. */
static bool quantize_row(const rtn_job *j, size_t row)
{
    nbi_weight *w = j->out;
    size_t groups = nbi_scheme_groups(&w->scheme, w->k), len = groups ? w->k / groups : 0;
    const float *x = load_row(j, row);
    for (size_t i = 0; i < groups; i++) {
        nbi_grid g = {0};
        float lo, hi;
        if (j->fixed) {
            g = *j->fixed;
        } else {
            if (!nbi_range_of(x + i * len, len, &lo, &hi))
                return false;
            g = nbi_grid_make(lo, hi, w->scheme.bits, w->scheme.symmetric, j->scale_dtype);
            if (scale_was_cut(g.scale, j->scale_dtype))
                return false;
        }
        code_run(w->codes + row * w->k + i * len, x + i * len, len, &g);
        w->scales[row * groups + i] = g.scale;
        if (w->zeros)
            w->zeros[row * groups + i] = (int8_t)g.zero;
    }
    return true;
}

static nb_status explain_row(const rtn_job *j, size_t row)
{
    return nbi_bad_row(load_row(j, row), j->src->k, row, j->scale_dtype);
}

static nb_status quantize_rows(const rtn_job *j)
{
    size_t n = j->src->n, bad = SIZE_MAX;
#pragma omp parallel for num_threads(j->threads) schedule(static) reduction(min : bad)
    for (size_t row = 0; row < n; row++)
        if (!quantize_row(j, row) && row < bad)
            bad = row;
    return bad == SIZE_MAX ? NB_OK : explain_row(j, bad);
}

static nb_status tensor_grid_of(const rtn_job *j, float lo, float hi, nbi_grid *g)
{
    *g = nbi_grid_make(lo, hi, j->out->scheme.bits, j->out->scheme.symmetric, j->scale_dtype);
    if (scale_was_cut(g->scale, j->scale_dtype))
        return nbi_fail(NB_EFORMAT, "weights between %g and %g need a scale beyond what %s holds", (double)lo,
                        (double)hi, nbi_dtype_name(j->scale_dtype));
    return NB_OK;
}

static nb_status tensor_grid(const rtn_job *j, nbi_grid *g)
{
    size_t n = j->src->n, bad = SIZE_MAX;
    float lo = 0, hi = 0;
#pragma omp parallel for num_threads(j->threads) schedule(static) reduction(min : bad, lo) reduction(max : hi)
    for (size_t row = 0; row < n; row++) {
        float a, b;
        if (!nbi_range_of(load_row(j, row), j->src->k, &a, &b)) {
            bad = row < bad ? row : bad;
        } else {
            lo = a < lo ? a : lo;
            hi = b > hi ? b : hi;
        }
    }
    return bad == SIZE_MAX ? tensor_grid_of(j, lo, hi, g) : explain_row(j, bad);
}

static nb_status on_host(rtn_job *j)
{
    nbi_grid g = {0};
    if (j->out->scheme.strategy == NBI_PER_TENSOR) {
        nb_status st = tensor_grid(j, &g);
        if (st != NB_OK)
            return st;
        j->fixed = &g;
    }
    return quantize_rows(j);
}

/* ---- on a device ------------------------------------------------------------------------------------------------ */

#define SLAB_BYTES ((size_t)32 << 20)

/* Every row has the grid of the tensor. */
static void fill_grids(const rtn_job *j, const nbi_grid *g)
{
    for (size_t row = 0; row < j->out->n; row++) {
        j->out->scales[row] = g->scale;
        if (j->out->zeros)
            j->out->zeros[row] = (int8_t)g->zero;
    }
}

static nb_status check_scales(const rtn_job *j)
{
    const size_t groups = nbi_scheme_groups(&j->out->scheme, j->out->k);
    for (size_t i = 0; i < j->out->n * groups; i++)
        if (isnan(j->out->scales[i]) || scale_was_cut(j->out->scales[i], j->scale_dtype))
            return explain_row(j, i / groups);
    return NB_OK;
}

static nb_status on_device(rtn_job *j, nbi_backend *be)
{
    nb_status st;
    nbi_grid g = {0};
    nbi_rtn_stream s = {.be = be, .src = j->src, .out = j->out, .threads = j->threads};
    if (be->ops->lock)
        be->ops->lock(be);
    NB_TRY(nbi_rtn_stream_open(&s, SLAB_BYTES));
    if (j->out->scheme.strategy == NBI_PER_TENSOR) {
        float lo, hi;
        size_t bad;
        NB_TRY(nbi_rtn_stream_range(&s, &lo, &hi, &bad));
        NB_TRY(bad == SIZE_MAX ? tensor_grid_of(j, lo, hi, &g) : explain_row(j, bad));
        NB_TRY(nbi_rtn_stream_codes(&s, j->scale_dtype, &(nbi_fixed_grid){g.scale, g.zero}));
        fill_grids(j, &g);
    } else {
        NB_TRY(nbi_rtn_stream_codes(&s, j->scale_dtype, NULL));
        NB_TRY(check_scales(j));
    }
done:
    nbi_rtn_stream_close(&s);
    if (be->ops->unlock)
        be->ops->unlock(be);
    return st;
}

static nb_status check_request(const nbi_weight *src, const nbi_scheme *s, nbi_dtype scale_dtype)
{
    if (src->scheme.bits)
        return nbi_fail(NB_EINVAL, "the weight to quantize has %u bits already, expected a dense one",
                        src->scheme.bits);
    if (!nbi_dtype_is_float(src->dense_dtype))
        return nbi_fail(NB_EINVAL, "the weight to quantize is %s, expected F32, F16 or BF16",
                        nbi_dtype_name(src->dense_dtype));
    if (s->bits != 2 && s->bits != 3 && s->bits != 4 && s->bits != 8)
        return nbi_fail(NB_EINVAL, "weights of %u bits are asked for, expected 2, 3, 4 or 8", s->bits);
    if (!nbi_dtype_is_float(scale_dtype))
        return nbi_fail(NB_EINVAL, "scales as %s are asked for, expected F32, F16 or BF16",
                        nbi_dtype_name(scale_dtype));
    if (s->strategy == NBI_PER_GROUP && (!s->group || src->k % s->group))
        return nbi_fail(NB_EINVAL, "rows of %zu weights cannot be cut into groups of %u", src->k, s->group);
    return NB_OK;
}

nb_status nbi_rtn_on(nbi_backend *be, nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme,
                     nbi_dtype scale_dtype, int threads, bool *device_did)
{
    nb_status st = NB_OK;
    nbi_weight w = {.n = src->n, .k = src->k, .scheme = *scheme};
    rtn_job j = {&w, src, scale_dtype, threads > 0 ? threads : 1, NULL, NULL};
    size_t row_bytes, bytes = 0;
    bool done_there = false;
    NB_TRY(check_request(src, scheme, scale_dtype));
    NB_TRY(nbi_weight_alloc(&w));
    if (!nbi_mul(src->k, sizeof(float), &row_bytes) || !nbi_mul(row_bytes, (size_t)j.threads, &bytes) ||
        !(j.rows = malloc(bytes ? bytes : 1)))
        NB_TRY(nbi_fail_nomem("rows of a weight", bytes));
    NB_TRY(nbi_copy_bias(&w, src));
    if (be && be->quant && src->n && src->k) {
        st = on_device(&j, be);
        done_there = st != NB_EUNSUPPORTED;
    }
    NB_TRY(done_there ? st : on_host(&j));
    if (device_did)
        *device_did = done_there;
    *out = w;
    w = (nbi_weight){0};
done:
    free(j.rows);
    nbi_weight_free(&w);
    return st;
}

nb_status nbi_rtn(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype, int threads)
{
    return nbi_rtn_on(NULL, out, src, scheme, scale_dtype, threads, NULL);
}

/* ---- error report ---------------------------------------------------------------------------------------------- */

#define ERROR_RUN 256 /* weights looked at together: two runs of floats stay in the first-level cache */

/* Values [at, at + len) of row `row` as fp32; a run lies within one group. */
static void load_run(const nbi_weight *w, size_t row, size_t at, size_t len, float *dst)
{
    if (!w->scheme.bits) {
        size_t size = nbi_dtype_size(w->dense_dtype);
        nbi_to_f32(dst, (const char *)w->dense + (row * w->k + at) * size, w->dense_dtype, len);
        return;
    }
    size_t groups = nbi_scheme_groups(&w->scheme, w->k), g = row * groups + at / (w->k / groups);
    const int8_t *q = w->codes + row * w->k + at;
    const float s = w->scales[g];
    const float z = nbi_weight_zero(w, g);
    if (w->scheme.kind == NBI_KIND_NF4)
        for (size_t i = 0; i < len; i++)
            dst[i] = nbi_nf4[q[i] + 8] * s;
    else
        for (size_t i = 0; i < len; i++)
            dst[i] = ((float)q[i] - z) * s;
}

typedef struct error_sums {
    double e2[4], w2[4], top[4]; /* four lanes, so that the loop vectorises with a fixed order of additions */
} error_sums;

static void add_run(error_sums *t, const float *a, const float *b, size_t n)
{
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (size_t l = 0; l < 4; l++) {
            double w = b[i + l], e = a[i + l] - w, d = e < 0 ? -e : e;
            t->e2[l] += e * e;
            t->w2[l] += w * w;
            t->top[l] = d > t->top[l] ? d : t->top[l];
        }
    for (; i < n; i++) {
        double w = b[i], e = a[i] - w;
        t->e2[0] += e * e;
        t->w2[0] += w * w;
        t->top[0] = fmax(t->top[0], fabs(e));
    }
}

void nbi_quant_error_of(nbi_quant_error *e, const nbi_weight *q, const nbi_weight *src)
{
    size_t len = q->scheme.bits && q->scheme.strategy == NBI_PER_GROUP ? q->scheme.group : q->k;
    float a[ERROR_RUN], b[ERROR_RUN];
    error_sums t = {{0}, {0}, {0}};
    for (size_t row = 0; row < q->n; row++)
        for (size_t at = 0, n; at < q->k; at += n) {
            n = len - at % len; /* to the end of the group */
            n = n < ERROR_RUN ? n : ERROR_RUN;
            load_run(q, row, at, n, a);
            load_run(src, row, at, n, b);
            add_run(&t, a, b, n);
        }
    double e2 = (t.e2[0] + t.e2[1]) + (t.e2[2] + t.e2[3]), w2 = (t.w2[0] + t.w2[1]) + (t.w2[2] + t.w2[3]);
    size_t count = q->n * q->k;
    e->mse = count ? e2 / (double)count : 0;
    e->max_abs = fmax(fmax(t.top[0], t.top[1]), fmax(t.top[2], t.top[3]));
    e->sqnr_db = e2 > 0 ? 10 * log10(w2 / e2) : INFINITY;
}
