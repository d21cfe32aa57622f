#define NBI_GRAM_TRIANGLE nbi_gram_triangle
#include "quant/gram_body.h"

typedef void (*triangle_fn)(float *h, const float *x, size_t n, size_t k, size_t i0, size_t i1);

static triangle_fn best_triangle(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return nbi_gram_triangle_avx2;
#endif
    return nbi_gram_triangle;
}

void nbi_gram_add(float *h, const float *x, size_t rows, size_t k, int threads)
{
    const triangle_fn triangle = best_triangle();
    const size_t strip = 32; /* rows of h that a thread takes */
    for (size_t at = 0; at < rows; at += NBI_GRAM_ROWS) {
        const size_t n = rows - at < NBI_GRAM_ROWS ? rows - at : NBI_GRAM_ROWS;
        /* late strips are longer: threads take the next one as they come free */
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (size_t i0 = 0; i0 < k; i0 += strip)
            triangle(h, x + at * k, n, k, i0, k - i0 < strip ? k : i0 + strip);
    }
    for (size_t i = 0; i < k; i++)
        for (size_t j = 0; j < i; j++)
            h[j * k + i] = h[i * k + j];
}
