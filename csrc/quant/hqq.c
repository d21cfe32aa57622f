#include "quant/hqq.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant/bias.h"
#include "quant/grid.h"
#include "quant/range.h"

#define STEPS 20
#define P     0.7f

static float shrink(float x, float beta)
{
    const float a = fabsf(x);
    if (a == 0) /* 0 to a negative power */
        return 0;
    const float y = a - powf(a, P - 1) / beta;
    return y > 0 ? copysignf(y, x) : 0;
}

/* q of all elements with the zero point z, which need not be an integer; returns the mean error. */
static double codes_for(float *q, const float *x, size_t n, const nbi_grid *g, float z)
{
    const float lo = (float)g->qmin, hi = (float)g->qmax;
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        float r = rintf(x[i] / g->scale + z);
        r = r < lo ? lo : r > hi ? hi : r;
        q[i] = r;
        sum += fabs((double)(x[i] - (r - z) * g->scale));
    }
    return sum / (double)n;
}

static void improve(nbi_grid *g, const float *x, size_t n, float *q)
{
    float z = (float)g->zero, best = z, beta = 10;
    double least = codes_for(q, x, n, g, z);
    for (int step = 0; step < STEPS; step++, beta *= 1.01f) {
        double sum = 0;
        for (size_t i = 0; i < n; i++) {
            const float e = shrink(x[i] - (q[i] - z) * g->scale, beta);
            sum += (double)(q[i] - (x[i] - e) / g->scale);
        }
        z = (float)(sum / (double)n);
        const double error = codes_for(q, x, n, g, z);
        if (!(error < least))
            break;
        least = error;
        best = z;
    }
    best = rintf(best);
    best = best < (float)g->qmin ? (float)g->qmin : best > (float)g->qmax ? (float)g->qmax : best;
    g->zero = (int32_t)best;
}

static bool hqq_row(nbi_weight *w, const nbi_weight *src, nbi_dtype scale_dtype, size_t row, float *x, float *q)
{
    const size_t groups = nbi_scheme_groups(&w->scheme, w->k), len = w->k / groups;
    nbi_to_f32(x, (const char *)src->dense + row * w->k * nbi_dtype_size(src->dense_dtype), src->dense_dtype, w->k);
    for (size_t i = 0; i < groups; i++) {
        float lo, hi;
        if (!nbi_range_of(x + i * len, len, &lo, &hi))
            return false;
        nbi_grid g = nbi_grid_make(lo, hi, w->scheme.bits, false, scale_dtype);
        improve(&g, x + i * len, len, q);
        for (size_t j = i * len; j < (i + 1) * len; j++)
            w->codes[row * w->k + j] = nbi_grid_code(&g, x[j]);
        w->scales[row * groups + i] = g.scale;
        w->zeros[row * groups + i] = (int8_t)g.zero;
    }
    return true;
}

nb_status nbi_hqq(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype, int threads)
{
    nb_status st = NB_OK;
    nbi_weight w = {.n = src->n, .k = src->k, .scheme = *scheme};
    bool no_memory = false, bad = false;
    if (scheme->symmetric || scheme->strategy == NBI_PER_TENSOR)
        return nbi_fail(
            NB_EUNSUPPORTED,
            "HQQ moves zero points of channels or groups: expected \"symmetric\" false, and not per tensor");
    if (src->scheme.bits || (scheme->strategy == NBI_PER_GROUP && (!scheme->group || src->k % scheme->group)))
        return nbi_fail(NB_EINVAL, "rows of %zu weights cannot be cut into groups of %u", src->k, scheme->group);
    NB_TRY(nbi_weight_alloc(&w));
#pragma omp parallel num_threads(threads > 0 ? threads : 1)
    {
        float *x = malloc(2 * w.k * sizeof *x);
        if (!x) {
#pragma omp atomic write
            no_memory = true;
        }
#pragma omp for schedule(static)
        for (size_t row = 0; row < w.n; row++)
            if (x && !hqq_row(&w, src, scale_dtype, row, x, x + w.k)) {
#pragma omp atomic write
                bad = true;
            }
        free(x);
    }
    if (no_memory)
        NB_TRY(nbi_fail_nomem("rows of a weight", 2 * w.k * sizeof(float)));
    if (bad)
        NB_TRY(nbi_fail(NB_EFORMAT, "a weight is NaN or infinite, expected finite numbers"));
    NB_TRY(nbi_copy_bias(&w, src));
    *out = w;
    w = (nbi_weight){0};
done:
    nbi_weight_free(&w);
    return st;
}
