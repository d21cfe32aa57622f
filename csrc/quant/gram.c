#include "backend/cpu/v16_scalar.h"

enum { TILE_I = 1 };
#define NBI_GRAM_TRIANGLE nbi_gram_triangle
#include "quant/gram_body.h"

#include <stdlib.h>

#include "base/checked.h"

#define PANEL NBI_GRAM_PANEL

typedef void (*triangle_fn)(float *h, const float *packed, size_t n, size_t k, size_t i0, size_t i1);

static triangle_fn best_triangle(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return nbi_gram_triangle_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return nbi_gram_triangle_avx2;
#endif
    return nbi_gram_triangle;
}

/* Columns from j0 on, zeros beyond k. */
static void pack(float *panel, const float *x, size_t n, size_t k, size_t j0)
{
    const size_t nj = k - j0 < PANEL ? k - j0 : PANEL;
    for (size_t r = 0; r < n; r++) {
        memcpy(panel + r * PANEL, x + r * k + j0, nj * sizeof *x);
        memset(panel + r * PANEL + nj, 0, (PANEL - nj) * sizeof *x);
    }
}

/* The part of columns [i0, i0 + PANEL) above the diagonal, from the rows below it: block by block, for the caches. */
static void mirror(float *h, size_t k, size_t i0)
{
    const size_t i1 = k - i0 < PANEL ? k : i0 + PANEL;
    for (size_t j0 = 0; j0 < i1; j0 += PANEL)
        for (size_t i = i0; i < i1; i++)
            for (size_t j = j0; j < i && j < j0 + PANEL; j++)
                h[j * k + i] = h[i * k + j];
}

nb_status nbi_gram_add(float *h, const float *x, size_t rows, size_t k, int threads)
{
    const triangle_fn triangle = best_triangle();
    const size_t panels = nbi_ceil_div(k, PANEL), most = rows < NBI_GRAM_ROWS ? rows : NBI_GRAM_ROWS;
    size_t bytes;
    float *packed = NULL;
    threads = threads > 0 ? threads : 1;
    if (!rows || !k)
        return NB_OK;
    if (!nbi_mul(panels, most * PANEL * sizeof *packed, &bytes) || !(packed = aligned_alloc(64, bytes)))
        return nbi_fail_nomem("rows of a Gram matrix", bytes);
#pragma omp parallel num_threads(threads)
    for (size_t at = 0; at < rows; at += NBI_GRAM_ROWS) {
        const size_t n = rows - at < NBI_GRAM_ROWS ? rows - at : NBI_GRAM_ROWS;
#pragma omp for schedule(static)
        for (size_t p = 0; p < panels; p++)
            pack(packed + p * n * PANEL, x + at * k, n, k, p * PANEL);
            /* late strips are longer: the longest first, and threads take the next one as they come free */
#pragma omp for schedule(dynamic, 1)
        for (size_t p = 0; p < panels; p++) {
            const size_t i0 = (panels - 1 - p) * PANEL;
            triangle(h, packed, n, k, i0, k - i0 < PANEL ? k : i0 + PANEL);
        }
    }
    free(packed);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (size_t i0 = 0; i0 < k; i0 += PANEL)
        mirror(h, k, i0);
    return NB_OK;
}
