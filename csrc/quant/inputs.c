#include "quant/inputs.h"

#include <math.h>
#include <stdlib.h>

#include "base/checked.h"
#include "quant/gram.h"

nb_status nbi_inputs_init(nbi_inputs *in, size_t k, unsigned needs)
{
    size_t bytes = 0;
    *in = (nbi_inputs){.k = k};
    in->abs_max = calloc(k, sizeof *in->abs_max);
    in->abs_sum = calloc(k, sizeof *in->abs_sum);
    if ((needs & NBI_NEEDS_GRAM) && nbi_mul(k, k, &bytes) && nbi_mul(bytes, sizeof(float), &bytes))
        in->gram = calloc(1, bytes);
    if (!in->abs_max || !in->abs_sum || ((needs & NBI_NEEDS_GRAM) && !in->gram)) {
        nbi_inputs_free(in);
        return nbi_fail_nomem("statistics of a layer's inputs", bytes);
    }
    return NB_OK;
}

void nbi_inputs_free(nbi_inputs *in)
{
    free(in->abs_max);
    free(in->abs_sum);
    free(in->gram);
    *in = (nbi_inputs){0};
}

nb_status nbi_inputs_add(nbi_inputs *in, const float *x, size_t rows, int threads)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < in->k; j++) {
            const float a = fabsf(x[r * in->k + j]);
            in->abs_max[j] = a > in->abs_max[j] ? a : in->abs_max[j];
            in->abs_sum[j] += (double)a;
        }
    in->rows += rows;
    for (size_t j = 0; j < in->k; j++) /* a sum keeps a NaN or an infinity */
        if (!isfinite(in->abs_sum[j]))
            return nbi_fail(NB_EFORMAT, "input %zu of the layer is NaN or infinite on the calibration text", j);
    if (in->gram)
        nbi_gram_add(in->gram, x, rows, in->k, threads);
    return NB_OK;
}

void nbi_inputs_divide(nbi_inputs *in, const float *s)
{
    for (size_t j = 0; j < in->k; j++) {
        in->abs_max[j] /= s[j];
        in->abs_sum[j] /= (double)s[j];
    }
    for (size_t i = 0; in->gram && i < in->k; i++)
        for (size_t j = 0; j < in->k; j++)
            in->gram[i * in->k + j] = (float)((double)in->gram[i * in->k + j] / ((double)s[i] * (double)s[j]));
}
