#include "quant/nf4.h"

#include <math.h>

#include "quant/spans.h"

/* The middles between neighbours of nbi_nf4, [i] below entry i.  Most lie half way between two floats: which of them
 * bitsandbytes took decides a code now and then, so its constants are written out. */
static const float middles[16] = {
    0.0f,
    -0.8480964004993439f,
    -0.6106329262256622f,
    -0.4599952697753906f,
    -0.33967943489551544f,
    -0.23460740596055984f,
    -0.13791173323988914f,
    -0.045525018125772476f,
    0.03979014977812767f,
    0.1202552504837513f,
    0.2035212516784668f,
    0.2920137718319893f,
    0.3893125355243683f,
    0.5016634166240692f,
    0.6427869200706482f,
    0.8614784181118011f,
};

static int8_t code_of(float x)
{
    int u = 0;
    for (int step = 8; step; step /= 2)
        u += x > middles[u + step] ? step : 0;
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
