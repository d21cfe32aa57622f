#include "engine/key_grid.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"

#define MOST 64.0

nb_status nbi_key_stats_create(nbi_key_stats *s, const nbi_config *c)
{
    const size_t n = (size_t)c->n_kv_heads * c->head_dim;
    *s = (nbi_key_stats){.n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim};
    if (!(s->sum = calloc(2 * n + 1, sizeof *s->sum)))
        return nbi_fail_nomem("moments of keys", 2 * n * sizeof *s->sum);
    s->squares = s->sum + n;
    return NB_OK;
}

void nbi_key_stats_free(nbi_key_stats *s)
{
    free(s->sum);
    *s = (nbi_key_stats){0};
}

void nbi_key_stats_clear(nbi_key_stats *s)
{
    s->count = 0;
    memset(s->sum, 0, 2 * s->n_kv_heads * s->head_dim * sizeof *s->sum);
}

nb_status nbi_key_stats_add(nbi_key_stats *s, const float *heads, size_t rows)
{
    const size_t D = s->head_dim, n = s->n_kv_heads * D, width = (s->n_heads + 2 * s->n_kv_heads) * D;
    for (size_t r = 0; r < rows; r++) {
        const float *k = heads + r * width + s->n_heads * D;
        for (size_t i = 0; i < n; i++) {
            const double v = (double)k[i];
            if (!isfinite(v))
                return nbi_fail(NB_EFORMAT, "channel %zu of kv head %zu is %s in a key of the calibration text", i % D,
                                i / D, isnan(v) ? "NaN" : "infinite");
            s->sum[i] += v;
            s->squares[i] += v * v;
        }
    }
    s->count += (double)rows;
    return NB_OK;
}

static void make_head(const nbi_key_stats *s, size_t head, float *shift, float *scale)
{
    const size_t D = s->head_dim;
    double logs = 0;
    size_t live = 0;
    for (size_t d = 0; d < D; d++) {
        const double mean = s->sum[head * D + d] / s->count;
        const double spread = sqrt(fmax(s->squares[head * D + d] / s->count - mean * mean, 0));
        const bool moves = spread > 1e-6 * fabs(mean) && spread > 1e-30; /* more than rounding leaves of a constant */
        shift[d] = (float)mean;
        scale[d] = moves ? (float)sqrt(spread) : 0;
        logs += moves ? log(spread) / 2 : 0;
        live += moves;
    }
    const double unit = live ? exp(logs / (double)live) : 1;
    for (size_t d = 0; d < D; d++)
        scale[d] = scale[d] > 0 ? (float)fmin(fmax((double)scale[d] / unit, 1 / MOST), MOST) : 1.0f;
}

void nbi_key_grid_make(const nbi_key_stats *s, float *shift, float *scale)
{
    for (size_t h = 0; h < s->n_kv_heads; h++)
        make_head(s, h, shift + h * s->head_dim, scale + h * s->head_dim);
}
