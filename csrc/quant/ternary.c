#include "quant/ternary.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "quant/grid.h"
#include "quant/spans.h"

#define MAX_TURNS 100

static double mean_abs(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += fabs((double)x[i]);
    return sum / (double)n;
}

/* Codes for the threshold; true when one of them changed.  *scale: the mean of what is above it, 0 if nothing is. */
static bool cut_at(double threshold, int8_t *codes, const float *x, size_t n, double *scale)
{
    double sum = 0;
    size_t kept = 0;
    bool changed = false;
    for (size_t i = 0; i < n; i++) {
        const double a = fabs((double)x[i]);
        const int8_t q = (int8_t)(a > threshold ? (x[i] > 0 ? 1 : -1) : 0);
        changed |= q != codes[i];
        codes[i] = q;
        sum += q ? a : 0;
        kept += q != 0;
    }
    *scale = kept ? sum / (double)kept : 0;
    return changed;
}

static float twn_span(int8_t *codes, const float *x, size_t len, nbi_dtype scale_dtype, bool refine)
{
    double scale;
    cut_at(0.7 * mean_abs(x, len), codes, x, len, &scale);
    for (int turn = 0; refine && turn < MAX_TURNS && scale > 0; turn++)
        if (!cut_at(scale / 2, codes, x, len, &scale))
            break;
    if (scale < (double)FLT_MIN) /* zeros, or as good as: no scale can be stored */
        memset(codes, 0, len);
    return nbi_grid_scale((float)scale, scale_dtype);
}

static float absmean_span(int8_t *codes, const float *x, size_t len, nbi_dtype scale_dtype, bool refine)
{
    const float s = nbi_grid_scale(fmaxf((float)mean_abs(x, len), 1e-5f), scale_dtype);
    (void)refine;
    for (size_t i = 0; i < len; i++) {
        const float r = rintf(x[i] / s);
        codes[i] = (int8_t)(r > 1 ? 1 : r < -1 ? -1 : r);
    }
    return s;
}

nb_status nbi_twn(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype, bool refine,
                  int threads)
{
    return nbi_quantize_spans(out, src, scheme, scale_dtype, twn_span, refine, threads);
}

nb_status nbi_absmean(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype,
                      int threads)
{
    return nbi_quantize_spans(out, src, scheme, scale_dtype, absmean_span, false, threads);
}

nb_status nbi_ternary_scheme(nbi_scheme *s, const char *where)
{
    if (s->bits == 2 && !s->symmetric)
        return nbi_fail(NB_EFORMAT, "%s: ternary weights have no zero points: expected \"symmetric\" true", where);
    return NB_OK;
}
