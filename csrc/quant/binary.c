#include "quant/binary.h"

#include <float.h>
#include <math.h>

#include "quant/grid.h"
#include "quant/spans.h"

static float binary_span(int8_t *codes, const float *x, size_t len, nbi_dtype scale_dtype, bool refine)
{
    double sum = 0;
    (void)refine;
    for (size_t i = 0; i < len; i++) {
        sum += fabs((double)x[i]);
        codes[i] = (int8_t)(x[i] >= 0 ? 1 : -1);
    }
    const float mean = (float)(sum / (double)len);
    /* no 0 among the codes: a row of zeros (or as good as) has the scale 0 */
    return mean < FLT_MIN ? 0.0f : nbi_grid_scale(mean, scale_dtype);
}

nb_status nbi_binary(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype,
                     int threads)
{
    return nbi_quantize_spans(out, src, scheme, scale_dtype, binary_span, false, threads);
}

nb_status nbi_binary_scheme(nbi_scheme *s, const char *where)
{
    if (s->bits != 1)
        return NB_OK;
    if (!s->symmetric || s->strategy != NBI_PER_CHANNEL)
        return nbi_fail(NB_EFORMAT,
                        "%s: binary weights have a scale for each row and no zero points: expected \"strategy\" "
                        "\"channel\" and \"symmetric\" true",
                        where);
    s->kind = NBI_KIND_BINARY;
    return NB_OK;
}
