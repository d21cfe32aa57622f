#include "quant/hqq.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "quant/bad_row.h"
#include "quant/bias.h"
#include "quant/grid.h"
#include "quant/range.h"

#define STEPS 20
#define P     0.7
#define UNIT  16 /* parts of a zero point: zero_frac 4 */

/* At or below the threshold beta^(1/(p-2)) an error is shrunk to 0, and the power need not be worked out. */
static double shrink(double x, double beta, double threshold)
{
    const double a = fabs(x);
    if (a <= threshold)
        return 0;
    const double y = a - pow(a, P - 1) / beta;
    return y > 0 ? copysign(y, x) : 0;
}

static double code_for(double x, const nbi_grid *g, double z)
{
    const double r = rint(x / (double)g->scale + z);
    return r < g->qmin ? g->qmin : r > g->qmax ? g->qmax : r;
}

/* q of all elements with the zero point z; returns the mean error. */
static double codes_for(double *q, const float *x, size_t n, const nbi_grid *g, double z)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        q[i] = code_for((double)x[i], g, z);
        sum += fabs((double)x[i] - (q[i] - z) * (double)g->scale);
    }
    return sum / (double)n;
}

/* The zero point that the splitting ends with, from z on.  q: room for n. */
static double split(const nbi_grid *g, const float *x, size_t n, double z, double *q)
{
    const double s = (double)g->scale;
    double best = z, beta = 10, least = codes_for(q, x, n, g, z);
    for (int step = 0; step < STEPS; step++, beta *= 1.01) {
        const double threshold = pow(beta, 1 / (P - 2));
        double sum = 0;
        for (size_t i = 0; i < n; i++) {
            const double w = (double)x[i];
            sum += q[i] - (w - shrink(w - (q[i] - z) * s, beta, threshold)) / s;
        }
        z = sum / (double)n;
        const double error = codes_for(q, x, n, g, z);
        if (!(error < least))
            break;
        least = error;
        best = z;
    }
    return best;
}

/* False: a number is not finite, or the scale is not one of its type. */
static bool hqq_group(nbi_weight *w, size_t at, size_t group, nbi_dtype scale_dtype, const float *x, size_t n,
                      double *q)
{
    float lo, hi;
    if (!nbi_range_of(x, n, &lo, &hi))
        return false;
    const nbi_grid g = nbi_grid_make(lo, hi, w->scheme.bits, false, scale_dtype);
    if (g.scale >= (scale_dtype == NBI_F16 ? 65504.0f : FLT_MAX / 256))
        return false;
    double z = split(&g, x, n, g.qmin - (double)fminf(lo, 0) / (double)g.scale, q);
    z = fmin(fmax(rint(z * UNIT), INT8_MIN), INT8_MAX);
    w->scales[group] = g.scale;
    w->zeros[group] = (int8_t)z;
    for (size_t i = 0; i < n; i++)
        w->codes[at + i] = (int8_t)code_for((double)x[i], &g, z / UNIT);
    return true;
}

static bool hqq_row(nbi_weight *w, const float *x, size_t row, nbi_dtype scale_dtype, double *q)
{
    const size_t groups = nbi_scheme_groups(&w->scheme, w->k), len = w->k / groups;
    for (size_t g = 0; g < groups; g++)
        if (!hqq_group(w, row * w->k + g * len, row * groups + g, scale_dtype, x + g * len, len, q))
            return false;
    return true;
}

static void load_row(const nbi_weight *src, size_t row, float *x)
{
    nbi_to_f32(x, (const char *)src->dense + row * src->k * nbi_dtype_size(src->dense_dtype), src->dense_dtype, src->k);
}

static nb_status rows(nbi_weight *w, const nbi_weight *src, nbi_dtype scale_dtype, int threads)
{
    const size_t t_rows = (w->n + (size_t)threads - 1) / (size_t)threads,
                 room = w->k * (sizeof(double) + sizeof(float));
    size_t bad = SIZE_MAX;
    char *all = malloc((size_t)threads * room);
    if (!all)
        return nbi_fail_nomem("rows of a weight", (size_t)threads * room);
#pragma omp parallel for num_threads(threads) schedule(static) reduction(min : bad)
    for (size_t t = 0; t < (size_t)threads; t++) {
        double *q = (double *)all + t * w->k;
        float *x = (float *)((double *)all + (size_t)threads * w->k) + t * w->k;
        for (size_t row = t * t_rows; row < (t + 1) * t_rows && row < w->n; row++) {
            load_row(src, row, x);
            if (!hqq_row(w, x, row, scale_dtype, q) && row < bad)
                bad = row;
        }
    }
    nb_status st = NB_OK;
    if (bad != SIZE_MAX) {
        load_row(src, bad, (float *)all);
        st = nbi_bad_row((float *)all, w->k, bad, scale_dtype);
    }
    free(all);
    return st;
}

nb_status nbi_hqq(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype, int threads)
{
    nb_status st = NB_OK;
    nbi_weight w = {.n = src->n, .k = src->k, .scheme = *scheme};
    if (nbi_scheme_check_zeros(scheme) != NB_OK || !scheme->zero_frac || scheme->strategy == NBI_PER_TENSOR)
        return nbi_fail(NB_EUNSUPPORTED, "HQQ moves zero points of channels or groups by sixteenths");
    if (src->scheme.bits || !src->n || !src->k ||
        (scheme->strategy == NBI_PER_GROUP && (!scheme->group || src->k % scheme->group)))
        return nbi_fail(NB_EINVAL, "rows of %zu weights cannot be cut into groups of %u", src->k, scheme->group);
    NB_TRY(nbi_weight_alloc(&w));
    NB_TRY(rows(&w, src, scale_dtype, threads > 0 ? threads : 1));
    NB_TRY(nbi_copy_bias(&w, src));
    *out = w;
    w = (nbi_weight){0};
done:
    nbi_weight_free(&w);
    return st;
}

nb_status nbi_hqq_scheme(nbi_scheme *s, const char *where)
{
    if (s->bits == 8)
        return NB_OK;
    if (s->symmetric || s->strategy == NBI_PER_TENSOR || s->act != NBI_ACT_NONE)
        return nbi_fail(NB_EFORMAT,
                        "%s: HQQ moves zero points of channels or groups, and leaves activations as they are: expected "
                        "\"symmetric\" false, \"strategy\" \"group\" or \"channel\", and no \"activations\"",
                        where);
    s->zero_frac = 4;
    return NB_OK;
}
