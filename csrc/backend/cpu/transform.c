/* Rotations of activations beside linear layers (base/rotation.h), a row a thread. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "base/rotation.h"

nb_status nbi_cpu_rotation_init(nbi_cpu_rotation *r, size_t k)
{
    unsigned p;
    const size_t h = nbi_rotation_parts(k, &p);
    *r = (nbi_cpu_rotation){.h = h, .m = (size_t)1 << p, .unit = (float)(1 / sqrt((double)k))};
    if (h >= NBI_CPU_PARTS)
        return nbi_fail(NB_EUNSUPPORTED,
                        "a rotation of %zu elements has no CPU kernel: its odd part is %zu, expected less than %d", k,
                        h, NBI_CPU_PARTS);
    if (h == 1)
        return NB_OK;
    if (!(r->hartley = malloc(h * h * sizeof(float))))
        return nbi_fail_nomem("a rotation", h * h * sizeof(float));
    nbi_rotation_hartley(r->hartley, h);
    return NB_OK;
}

void nbi_cpu_rotation_free(nbi_cpu_rotation *r)
{
    free(r->hartley);
    *r = (nbi_cpu_rotation){0};
}

size_t nbi_cpu_transform_bytes(nbi_backend *b, const nbi_transform_spec *spec)
{
    unsigned p;
    const size_t h = nbi_rotation_parts(spec->k, &p);
    (void)b;
    if (!spec->signs)
        return 0;
    return spec->k * sizeof(float) + (h > 1 && h < NBI_CPU_PARTS ? h * h * sizeof(float) : 0);
}

nb_status nbi_cpu_transform_create(nbi_backend *b, nbi_transform **out, const nbi_transform_spec *spec)
{
    nb_status st = NB_OK;
    *out = NULL;
    if (!spec->k)
        return nbi_fail(NB_EINVAL, "a transform of 0 inputs");
    nbi_transform *t = calloc(1, sizeof *t);
    if (!t)
        return nbi_fail_nomem("a transform", sizeof *t);
    t->k = spec->k;
    if (spec->signs)
        NB_TRY(nbi_cpu_rotation_init(&t->rotation, t->k));
    if (spec->signs && !(t->signs = malloc(t->k * sizeof *t->signs)))
        NB_TRY(nbi_fail_nomem("a transform", t->k * sizeof *t->signs));
    for (size_t i = 0; i < t->k && spec->signs; i++)
        t->signs[i] = spec->signs[i];
    *out = t;
    t = NULL;
done:
    nbi_cpu_transform_free(b, t);
    return st;
}

void nbi_cpu_transform_free(nbi_backend *b, nbi_transform *t)
{
    (void)b;
    if (!t)
        return;
    nbi_cpu_rotation_free(&t->rotation);
    free(t->signs);
    free(t);
}

nb_status nbi_cpu_transform_in(nbi_backend *b, const nbi_transform *t, void *x, size_t rows, unsigned forms)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    nbi_cpu_rows to;
    if (!nbi_cpu_rows_at(&to, c, x, rows, t->k))
        return nbi_fail(NB_EINTERNAL, "%zu rows of %zu are too large", rows, t->k);
#pragma omp parallel for schedule(static) num_threads(nbi_cpu_threads(c, rows > 1 ? rows * t->k : 0))
    for (size_t r = 0; r < rows; r++) {
        float *row = to.x + r * t->k;
        for (size_t i = 0; i < t->k && t->signs; i++)
            row[i] *= t->signs[i];
        if (t->signs)
            c->kern->rotate_row(&t->rotation, row);
        nbi_cpu_rows_encode(c, &to, r, t->k, forms);
    }
    return NB_OK;
}

nb_status nbi_cpu_transform_out(nbi_backend *b, const nbi_transform *t, float *x, size_t rows, const float *bias,
                                void *y, size_t col, size_t ldy, nbi_dst dst)
{
    const nbi_cpu *c = nbi_cpu_of(b);
#pragma omp parallel for schedule(static) num_threads(nbi_cpu_threads(c, rows > 1 ? rows * t->k : 0))
    for (size_t r = 0; r < rows; r++) {
        float *row = x + r * t->k, *to = (float *)y + r * ldy + col;
        if (t->signs)
            c->kern->rotate_row(&t->rotation, row);
        for (size_t i = 0; i < t->k && t->signs; i++)
            row[i] *= t->signs[i];
        for (size_t i = 0; i < t->k && bias; i++)
            row[i] += bias[i];
        for (size_t i = 0; i < t->k; i++)
            to[i] = dst == NBI_DST_RESIDUAL ? to[i] + row[i] : row[i];
    }
    return NB_OK;
}
