#include "quant/gram.h"

#include <math.h>

static float part_of(const float *x, size_t rows, size_t k, size_t i, size_t j)
{
    float part = 0;
    for (size_t r = 0; r < rows; r++)
        part = fmaf(x[r * k + i], x[r * k + j], part);
    return part;
}

void nbi_gram_add(float *h, const float *x, size_t rows, size_t k)
{
    for (size_t at = 0; at < rows; at += NBI_GRAM_ROWS) {
        const size_t n = rows - at < NBI_GRAM_ROWS ? rows - at : NBI_GRAM_ROWS;
        for (size_t i = 0; i < k; i++)
            for (size_t j = 0; j <= i; j++) {
                h[i * k + j] += part_of(x + at * k, n, k, i, j);
                h[j * k + i] = h[i * k + j];
            }
    }
}
