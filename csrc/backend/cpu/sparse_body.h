/* y += S x after a linear layer: single numbers by rows, or whole columns.  Included after linear_body.h.
 *
 * Order: fused multiply-adds in ascending columns from 0, then one addition to what y holds. */
#include "backend/cpu/cpu.h"

#define SPARSE_ROWS 8 /* rows of x that pass over an output's numbers together */

V16_INLINE void sparse_tile(const nbi_cpu_job *j, size_t n, size_t row, int M)
{
    const nbi_sparse *s = &j->l->sparse;
    const float *x = j->given + row * j->l->k;
    float acc[SPARSE_ROWS] = {0};
    for (size_t i = s->row[n]; i < s->row[n + 1]; i++)
        for (int m = 0; m < M; m++)
            acc[m] = __builtin_fmaf(s->value[i], x[(size_t)m * j->l->k + s->col[i]], acc[m]);
    for (int m = 0; m < M; m++)
        j->y[(row + (size_t)m) * j->ldy + n] += acc[m];
}

static void sparse_rows(const nbi_cpu_job *j, size_t n0, size_t n1, size_t r0, size_t r1)
{
    for (size_t n = n0; n < n1; n++) {
        size_t r = r0;
        if (j->l->sparse.row[n] == j->l->sparse.row[n + 1])
            continue;
        for (; r1 - r >= SPARSE_ROWS; r += SPARSE_ROWS)
            sparse_tile(j, n, r, SPARSE_ROWS);
        for (; r < r1; r++)
            sparse_tile(j, n, r, 1);
    }
}

V16_INLINE void outlier_tile(const nbi_cpu_job *j, size_t panel, size_t row, int M)
{
    const nbi_linear *l = j->l;
    const size_t n0 = panel * NBI_PANEL, n = l->n - n0 < NBI_PANEL ? l->n - n0 : NBI_PANEL;
    const float *value = l->sparse.value + panel * l->n_outliers * NBI_PANEL, *x = j->given + row * l->k;
    v16 acc[4];
    for (int m = 0; m < M; m++)
        acc[m] = v16_set1(0);
    for (size_t i = 0; i < l->n_outliers; i++) {
        const v16 w = v16_load(value + i * NBI_PANEL);
        UNROLL for (int m = 0; m < M; m++) acc[m] =
            v16_fma(w, v16_set1(x[(size_t)m * l->k + l->sparse.col[i]]), acc[m]);
    }
    for (int m = 0; m < M; m++) {
        float *y = j->y + (row + (size_t)m) * j->ldy + n0;
        v16_store_n(y, v16_add(v16_load_n(y, n), acc[m]), n);
    }
}

static void outlier_columns(const nbi_cpu_job *j, size_t p0, size_t p1, size_t r0, size_t r1)
{
    for (size_t p = p0; p < p1; p++) {
        size_t r = r0;
        for (; r1 - r >= 4; r += 4)
            outlier_tile(j, p, r, 4);
        for (; r < r1; r++)
            outlier_tile(j, p, r, 1);
    }
}
