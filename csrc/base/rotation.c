#include "base/rotation.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

size_t nbi_rotation_parts(size_t k, unsigned *p)
{
    *p = 0;
    while (k > 1 && k % 2 == 0) {
        k /= 2;
        ++*p;
    }
    return k;
}

void nbi_rotation_hartley(float *c, size_t h)
{
    for (size_t i = 0; i < h; i++)
        for (size_t j = 0; j < h; j++) {
            const double t = 6.283185307179586 * (double)(i * j % h) / (double)h;
            c[i * h + j] = (float)(cos(t) + sin(t));
        }
}

static void butterflies(float *x, size_t n)
{
    for (size_t len = 1; len < n; len *= 2)
        for (size_t at = 0; at < n; at += 2 * len)
            for (size_t i = at; i < at + len; i++) {
                const float a = x[i], b = x[i + len];
                x[i] = a + b;
                x[i + len] = a - b;
            }
}

void nbi_rotate(float *x, size_t k, const float *hartley, float *tmp)
{
    unsigned p;
    const size_t h = nbi_rotation_parts(k, &p), m = (size_t)1 << p;
    const float unit = (float)(1 / sqrt((double)k));
    for (size_t i = 0; i < h; i++)
        butterflies(x + i * m, m);
    if (h > 1) {
        memset(tmp, 0, k * sizeof *tmp);
        for (size_t i = 0; i < h; i++)
            for (size_t s = 0; s < h; s++)
                for (size_t j = 0; j < m; j++)
                    tmp[i * m + j] = fmaf(hartley[i * h + s], x[s * m + j], tmp[i * m + j]);
        memcpy(x, tmp, k * sizeof *x);
    }
    for (size_t i = 0; i < k; i++)
        x[i] *= unit;
}

/* n vectors of k elements: element i of vector v is w[v * vs + i * es]. */
static nb_status rotate_all(float *w, size_t n, size_t vs, size_t k, size_t es, const int8_t *before,
                            const int8_t *after, int threads)
{
    unsigned p;
    const size_t h = nbi_rotation_parts(k, &p), t = threads > 0 ? (size_t)threads : 1;
    float *c = malloc((h * h + 2 * k * t) * sizeof *c);
    if (!c)
        return nbi_fail_nomem("a rotation", (h * h + 2 * k * t) * sizeof *c);
    nbi_rotation_hartley(c, h);
#pragma omp parallel for schedule(static) num_threads((int)t)
    for (size_t part = 0; part < t; part++) {
        float *x = c + h * h + 2 * k * part;
        for (size_t v = n * part / t; v < n * (part + 1) / t; v++) {
            float *at = w + v * vs;
            for (size_t i = 0; i < k; i++)
                x[i] = before ? at[i * es] * (float)before[i] : at[i * es];
            nbi_rotate(x, k, c, x + k);
            for (size_t i = 0; i < k; i++)
                at[i * es] = after ? x[i] * (float)after[i] : x[i];
        }
    }
    free(c);
    return NB_OK;
}

nb_status nbi_rotate_rows(float *w, size_t n, size_t k, const int8_t *before, const int8_t *after, int threads)
{
    return rotate_all(w, n, k, k, 1, before, after, threads);
}

nb_status nbi_rotate_columns(float *w, size_t n, size_t k, const int8_t *before, const int8_t *after, int threads)
{
    return rotate_all(w, k, 1, n, k, before, after, threads);
}
