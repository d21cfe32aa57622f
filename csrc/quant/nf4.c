#include "quant/nf4.h"

#include <math.h>

#include "base/nf4.h"
#include "quant/spans.h"

static int8_t code_of(float x)
{
    int u = 0;
    for (int step = 8; step; step /= 2) {
        const int i = u + step; /* the middle between entries i - 1 and i */
        if (x > (float)(((double)nbi_nf4[i - 1] + (double)nbi_nf4[i]) / 2))
            u = i;
    }
    return (int8_t)(u - 8);
}

static float nf4_span(int8_t *codes, const float *x, size_t len, nbi_dtype scale_dtype, bool refine)
{
    float most = 0;
    (void)scale_dtype;
    (void)refine;
    for (size_t i = 0; i < len; i++)
        most = fmaxf(most, fabsf(x[i]));
    const float inverse = 1.0f / most;
    for (size_t i = 0; i < len; i++)
        codes[i] = most == 0 ? -1 : code_of(isfinite(inverse) ? x[i] * inverse : x[i] / most);
    return most;
}

nb_status nbi_nf4_quantize(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, int threads)
{
    return nbi_quantize_spans(out, src, scheme, NBI_F32, nf4_span, false, threads);
}

nb_status nbi_nf4_scheme(nbi_scheme *s, const char *where)
{
    if (s->bits != 4)
        return NB_OK;
    if (!s->symmetric || s->strategy == NBI_PER_TENSOR || s->act != NBI_ACT_NONE)
        return nbi_fail(
            NB_EFORMAT,
            "%s: NF4 has no zero points, a scale for each group or row, and activations as they are: expected "
            "\"symmetric\" true, \"strategy\" \"group\" or \"channel\", and no \"activations\"",
            where);
    s->kind = NBI_KIND_NF4;
    return NB_OK;
}
