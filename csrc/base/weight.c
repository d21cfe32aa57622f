#include "base/weight.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/nf4.h"
#include "base/rotation.h"

void nbi_scheme_name(const nbi_scheme *s, char out[48])
{
    static const char *const kinds[] = {"", "NF4 ", "E8P ", "binary "};
    const int act = s->act == NBI_ACT_NONE ? 16 : s->act == NBI_ACT_SIGN ? 1 : 8;
    char gran[16], name[96];
    if (!s->bits) {
        snprintf(out, 48, "dense");
        return;
    }
    if (s->strategy == NBI_PER_GROUP)
        snprintf(gran, sizeof gran, "g%u", s->group % 1000000000u);
    else
        snprintf(gran, sizeof gran, "%s", s->strategy == NBI_PER_CHANNEL ? "channel" : "tensor");
    snprintf(name, sizeof name, "%.7sW%uA%d%s %s%s%s%s", kinds[s->kind], s->bits % 100u, act % 100,
             s->act == NBI_ACT_TENSOR ? (s->act_symmetric ? "-static" : "-static-asym") : "", gran,
             s->symmetric   ? ""
             : s->zero_frac ? " asym16"
                            : " asym",
             s->rotate_in || s->rotate_out ? " rot" : "",
             s->outliers ? " outliers"
             : s->sparse ? " sparse"
                         : "");
    snprintf(out, 48, "%.47s", name);
}

nb_status nbi_scheme_check_zeros(const nbi_scheme *s)
{
    if (s->zero_frac == 0 || (s->zero_frac == 4 && s->kind == NBI_KIND_INT && s->bits >= 2 && s->bits <= 4 &&
                              !s->symmetric && !s->nested && s->act == NBI_ACT_NONE))
        return NB_OK;
    return nbi_fail(NB_EUNSUPPORTED, "zero points in sixteenths go with asymmetric weights of 2, 3 or 4 bits and float "
                                     "activations only");
}

nb_status nbi_weight_alloc(nbi_weight *w)
{
    size_t g = nbi_scheme_groups(&w->scheme, w->k), codes, groups, bytes;
    if (!nbi_mul(w->n, w->k, &codes) || !nbi_mul(w->n, g, &groups) || !nbi_mul(groups, sizeof(float), &bytes))
        return nbi_fail(NB_ELIMIT, "a weight of %zu x %zu is too large", w->n, w->k);
    w->codes = malloc(codes ? codes : 1);
    w->scales = malloc(bytes ? bytes : 1);
    if (!w->scheme.symmetric)
        w->zeros = malloc(groups ? groups : 1);
    if (w->scheme.kind == NBI_KIND_E8P)
        w->words = malloc(codes / 8 * w->scheme.bits + 1);
    if (!w->codes || !w->scales || (!w->scheme.symmetric && !w->zeros) ||
        (w->scheme.kind == NBI_KIND_E8P && !w->words)) {
        nbi_weight_free(w);
        return nbi_fail_nomem("a quantized weight", codes);
    }
    return NB_OK;
}

void nbi_weight_free(nbi_weight *w)
{
    free(w->codes);
    free(w->scales);
    free(w->zeros);
    free(w->words);
    free(w->perm);
    free(w->in_signs);
    free(w->out_signs);
    free(w->outlier);
    free(w->sparse.row);
    free(w->sparse.col);
    free(w->sparse.value);
    free(w->nested.scale_code);
    free(w->nested.zero_code);
    free(w->nested.scale_grid);
    free(w->nested.zero_grid);
    free(w->bias);
    free(w->owned);
    *w = (nbi_weight){0};
}

/* *to becomes a copy of count elements at from; true where there is nothing to copy. */
static bool copied(void *to, const void *from, size_t count, size_t size)
{
    void *p = NULL;
    if (from) {
        if (!(p = malloc(count ? count * size : 1)))
            return false;
        memcpy(p, from, count * size);
    }
    memcpy(to, &p, sizeof p);
    return true;
}

nb_status nbi_weight_copy(nbi_weight *out, const nbi_weight *w)
{
    const size_t nk = w->n * w->k, groups = w->scheme.bits ? w->n * nbi_scheme_groups(&w->scheme, w->k) : 0;
    const nbi_nested *q = &w->nested;
    const size_t grids = q->rows ? nbi_ceil_div(w->n, q->rows) * nbi_scheme_groups(&w->scheme, w->k) * 2 : 0;
    nbi_weight c = *w;
    c.owned = NULL;
    c.codes = c.zeros = c.in_signs = c.out_signs = NULL;
    c.scales = c.bias = c.sparse.value = NULL;
    c.perm = c.outlier = c.sparse.row = c.sparse.col = NULL;
    c.words = NULL;
    c.nested.scale_code = c.nested.zero_code = NULL;
    c.nested.scale_grid = c.nested.zero_grid = NULL;
    if (copied(&c.codes, w->codes, nk, 1) && copied(&c.scales, w->scales, groups, sizeof *w->scales) &&
        copied(&c.zeros, w->zeros, groups, 1) &&
        copied(&c.words, w->words, nk / 8 * (w->scheme.bits / 2), sizeof *w->words) &&
        copied(&c.perm, w->perm, w->k, sizeof *w->perm) && copied(&c.in_signs, w->in_signs, w->k, 1) &&
        copied(&c.out_signs, w->out_signs, w->n, 1) &&
        copied(&c.outlier, w->outlier, w->n_outliers, sizeof *w->outlier) &&
        copied(&c.sparse.row, w->sparse.row, w->n + 1, sizeof *w->sparse.row) &&
        copied(&c.sparse.col, w->sparse.col, w->sparse.nnz, sizeof *w->sparse.col) &&
        copied(&c.sparse.value, w->sparse.value, w->sparse.nnz, sizeof *w->sparse.value) &&
        copied(&c.nested.scale_code, q->scale_code, groups, 1) &&
        copied(&c.nested.zero_code, q->zero_code, groups, 1) &&
        copied(&c.nested.scale_grid, q->scale_grid, grids, sizeof *q->scale_grid) &&
        copied(&c.nested.zero_grid, q->zero_grid, grids, sizeof *q->zero_grid) &&
        copied(&c.bias, w->bias, w->n, sizeof *w->bias)) {
        *out = c;
        return NB_OK;
    }
    nbi_weight_free(&c);
    return nbi_fail_nomem("a copy of a weight", nk);
}

nb_status nbi_weight_alloc_nested(nbi_weight *w)
{
    nbi_nested *q = &w->nested;
    const size_t groups = nbi_scheme_groups(&w->scheme, w->k), runs = nbi_ceil_div(w->n, q->rows);
    size_t codes, grids;
    if (!nbi_mul(w->n, groups, &codes) || !nbi_mul(runs, groups * 2 * sizeof(float), &grids))
        return nbi_fail(NB_ELIMIT, "a weight of %zu x %zu is too large", w->n, w->k);
    q->scale_code = malloc(codes ? codes : 1);
    q->zero_code = malloc(codes ? codes : 1);
    q->scale_grid = malloc(grids ? grids : 1);
    q->zero_grid = malloc(grids ? grids : 1);
    if (!q->scale_code || !q->zero_code || !q->scale_grid || !q->zero_grid)
        return nbi_fail_nomem("scales of a weight", grids);
    return NB_OK;
}

void nbi_weight_unnest_group(nbi_weight *w, size_t row0, size_t n, size_t group)
{
    const nbi_nested *q = &w->nested;
    const size_t groups = nbi_scheme_groups(&w->scheme, w->k);
    const float most = (float)((1 << (w->scheme.bits - 1)) - 1);
    for (size_t r = row0; r < row0 + n; r++) {
        const size_t at = r * groups + group, run = (r / q->rows * groups + group) * 2;
        const float zero = rintf(fmaf((float)q->zero_code[at], q->zero_grid[run + 1], q->zero_grid[run]));
        w->scales[at] = fmaf((float)q->scale_code[at], q->scale_grid[run + 1], q->scale_grid[run]);
        w->zeros[at] = (int8_t)(!(zero > -most - 1) ? -most - 1 : zero < most ? zero : most);
    }
}

void nbi_weight_unnest(nbi_weight *w)
{
    const size_t groups = nbi_scheme_groups(&w->scheme, w->k);
    for (size_t g = 0; g < groups; g++)
        nbi_weight_unnest_group(w, 0, w->n, g);
}

nb_status nbi_weight_check_sparse(const nbi_weight *w)
{
    const nbi_scheme *s = &w->scheme;
    const nbi_sparse *p = &w->sparse;
    if (!s->bits || !s->sparse) {
        if ((s->bits && s->outliers) || p->nnz || w->n_outliers)
            return nbi_fail(NB_EINVAL, "single numbers beside a weight do not go with its scheme");
        return NB_OK;
    }
    if (s->rotate_in || s->rotate_out)
        return nbi_fail(NB_EUNSUPPORTED, "a rotated weight has no single numbers beside it");
    if (!p->row || (p->nnz && (!p->col || !p->value)) || p->row[0] != 0 || p->row[w->n] != p->nnz)
        return nbi_fail(NB_EINVAL, "the rows of a sparse part do not hold its %zu numbers", p->nnz);
    for (size_t n = 0; n < w->n; n++)
        if (p->row[n] > p->row[n + 1])
            return nbi_fail(NB_EINVAL, "row %zu of a sparse part ends before it begins", n);
    for (size_t n = 0; n < w->n; n++)
        for (size_t i = p->row[n]; i < p->row[n + 1]; i++)
            if (p->col[i] >= w->k || (i > p->row[n] && p->col[i] <= p->col[i - 1]))
                return nbi_fail(NB_EINVAL, "a sparse part has column %u in row %zu: expected ascending ones below %zu",
                                p->col[i], n, w->k);
    if (s->outliers && (s->act == NBI_ACT_NONE || s->act_order || (w->n_outliers && !w->outlier)))
        return nbi_fail(NB_EINVAL, "outliers do not go with the scheme of a weight: expected INT8 activations");
    for (size_t n = 0; s->outliers && n < w->n; n++)
        if (p->row[n + 1] - p->row[n] != w->n_outliers ||
            (w->n_outliers && memcmp(p->col + p->row[n], w->outlier, w->n_outliers * sizeof *p->col) != 0))
            return nbi_fail(NB_EINVAL, "row %zu of a sparse part does not hold the columns of the outliers", n);
    for (size_t i = 0; s->outliers && i < w->n_outliers; i++)
        if (w->outlier[i] >= w->k || (i && w->outlier[i] <= w->outlier[i - 1]))
            return nbi_fail(NB_EINVAL, "outlier %zu is input %u: expected ascending ones below %zu", i, w->outlier[i],
                            w->k);
    return NB_OK;
}

nb_status nbi_weight_check_order(const nbi_weight *w)
{
    if (w->scheme.act_order != (w->perm != NULL) || (w->perm && !w->scheme.bits))
        return nbi_fail(NB_EINVAL, "an order of columns does not go with the scheme of a weight");
    for (size_t j = 0; w->perm && j < w->k; j++)
        if (w->perm[j] >= w->k)
            return nbi_fail(NB_EINVAL, "column %zu of a weight belongs to input %u, expected less than %zu", j,
                            w->perm[j], w->k);
    return NB_OK;
}

nb_status nbi_weight_check_act(const nbi_weight *w, size_t group_len)
{
    const nbi_scheme *s = &w->scheme;
    uint64_t x = 127, c = s->symmetric ? 1u << (s->bits - 1) : (1u << s->bits) - 1, longest;
    if (s->act == NBI_ACT_TOKEN && !s->act_symmetric)
        return nbi_fail(NB_EUNSUPPORTED, "asymmetric INT8 activations measured for each token have no kernel: "
                                         "expected symmetric ones");
    if (s->act == NBI_ACT_TENSOR) {
        if (!(w->act_scale >= 0x1p-126f && w->act_scale <= 0x1.fffffep127f))
            return nbi_fail(NB_EINVAL, "the activation scale is %g: expected a positive, normal, finite number",
                            (double)w->act_scale);
        if (w->act_zero < -128 || w->act_zero > 127 || (s->act_symmetric && w->act_zero != 0))
            return nbi_fail(NB_EINVAL, "the activation zero point is %d: expected %s", (int)w->act_zero,
                            s->act_symmetric ? "0, as activations are symmetric" : "-128 to 127");
        x = (uint64_t)(w->act_zero >= 0 ? 128 + w->act_zero : 127 - w->act_zero);
    }
    longest = INT32_MAX / (x * c);
    if (group_len > longest)
        return nbi_fail(NB_ELIMIT,
                        "INT8 activations: %zu products share a scale, and more than %llu may overflow the "
                        "int32 that sums them",
                        group_len, (unsigned long long)longest);
    return NB_OK;
}

void nbi_weight_row(const nbi_weight *w, size_t n, float *dst)
{
    if (!w->scheme.bits) {
        size_t row = w->k * nbi_dtype_size(w->dense_dtype);
        nbi_to_f32(dst, (const char *)w->dense + n * row, w->dense_dtype, w->k);
        return;
    }
    size_t groups = nbi_scheme_groups(&w->scheme, w->k), len = w->k / groups;
    const int8_t *q = w->codes + n * w->k;
    for (size_t g = 0; g < groups; g++) {
        float s = w->scales[n * groups + g];
        const float z = nbi_weight_zero(w, n * groups + g);
        if (w->scheme.kind == NBI_KIND_NF4)
            for (size_t i = g * len; i < (g + 1) * len; i++)
                dst[i] = nbi_nf4[q[i] + 8] * s;
        else
            for (size_t i = g * len; i < (g + 1) * len; i++)
                dst[w->perm ? w->perm[i] : i] = ((float)q[i] - z) * s;
    }
}

nb_status nbi_weight_dense(const nbi_weight *w, float *dst, int threads)
{
    const nbi_scheme *s = &w->scheme;
    nb_status st = NB_OK;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (size_t n = 0; n < w->n; n++) {
        float *row = dst + n * w->k;
        nbi_weight_row(w, n, row);
        for (size_t i = w->sparse.nnz ? w->sparse.row[n] : 0; w->sparse.nnz && i < w->sparse.row[n + 1]; i++)
            row[w->sparse.col[i]] += w->sparse.value[i];
    }
    if (s->rotate_in)
        st = nbi_rotate_rows(dst, w->n, w->k, NULL, w->in_signs, threads);
    if (st == NB_OK && s->rotate_out)
        st = nbi_rotate_columns(dst, w->n, w->k, NULL, w->out_signs, threads);
    return st;
}
