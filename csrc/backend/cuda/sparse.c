/* Single numbers beside a linear layer: y += S x behind the main product, and INT8 codes of rows without their outliers. */
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/cuda.h"
#include "base/checked.h"

#define MAX_K 65536 /* an entry holds its column in 16 bits */

struct nbi_cuda_sparse {
    void *block; /* device: row, entry, keep */
    const uint32_t *row, *entry;
    const uint8_t *keep; /* NULL: no outliers */
    uint32_t *outlier;   /* host, to compare layers */
    size_t n_outliers, nnz;
};

typedef struct layout {
    size_t entry, keep, bytes;
} layout;

static bool lay_out(layout *l, const nbi_scheme *s, size_t n, size_t k, size_t nnz)
{
    *l = (layout){0};
    if (!nnz)
        return true;
    if (n > SIZE_MAX / 64 || nnz > SIZE_MAX / 64 || k > SIZE_MAX / 64)
        return false;
    l->entry = nbi_cuda_align((n + 1) * sizeof(uint32_t));
    l->keep = l->entry + nbi_cuda_align(nnz * sizeof(uint32_t));
    l->bytes = l->keep + (s->outliers ? nbi_cuda_align(nbi_ceil_div(k, 8)) : 0);
    return true;
}

size_t nbi_cuda_sparse_bytes(const nbi_scheme *s, size_t n, size_t k, size_t nnz)
{
    layout l;
    return lay_out(&l, s, n, k, nnz) ? l.bytes : SIZE_MAX;
}

static nb_status fill(unsigned char *to, const layout *at, const nbi_weight *w)
{
    const nbi_sparse *s = &w->sparse;
    uint32_t *entry = (uint32_t *)(to + at->entry);
    memcpy(to, s->row, (w->n + 1) * sizeof *s->row);
    for (size_t i = 0; i < s->nnz; i++) {
        const uint16_t half = nbi_f32_to_f16(s->value[i]);
        if (nbi_f16_to_f32(half) != s->value[i])
            return nbi_fail(NB_EINVAL, "number %zu of a sparse part is %g: expected one that float16 holds", i,
                            (double)s->value[i]);
        entry[i] = s->col[i] | (uint32_t)half << 16;
    }
    if (w->scheme.outliers) {
        memset(to + at->keep, 0xff, nbi_ceil_div(w->k, 8));
        for (size_t i = 0; i < w->n_outliers; i++)
            to[at->keep + w->outlier[i] / 8] &= (unsigned char)~(1u << w->outlier[i] % 8);
    }
    return NB_OK;
}

nb_status nbi_cuda_sparse_create(nbi_cuda *c, nbi_linear *l, const nbi_weight *w)
{
    nb_status st = NB_OK;
    unsigned char *host = NULL;
    layout at;
    NB_TRY(nbi_weight_check_sparse(w));
    if (!w->scheme.bits || !w->sparse.nnz)
        return NB_OK;
    if (w->k > MAX_K || !lay_out(&at, &w->scheme, w->n, w->k, w->sparse.nnz))
        return nbi_fail(NB_EUNSUPPORTED, "a sparse part of %zu inputs has no CUDA kernel: expected at most %d", w->k,
                        MAX_K);
    if (!(l->sparse = calloc(1, sizeof *l->sparse)) || !(host = calloc(1, at.bytes)))
        NB_TRY(nbi_fail_nomem("a sparse part", at.bytes));
    if (w->n_outliers) {
        if (!(l->sparse->outlier = malloc(w->n_outliers * sizeof *w->outlier)))
            NB_TRY(nbi_fail_nomem("a list of outliers", w->n_outliers * sizeof *w->outlier));
        memcpy(l->sparse->outlier, w->outlier, w->n_outliers * sizeof *w->outlier);
    }
    NB_TRY(fill(host, &at, w));
    NB_TRY(nbi_cuda_weights_alloc(c, &l->sparse->block, at.bytes));
    NB_TRY(nbi_cuda_upload(&c->base, l->sparse->block, host, at.bytes));
    const char *base = l->sparse->block;
    l->sparse->nnz = w->sparse.nnz;
    l->sparse->n_outliers = w->n_outliers;
    l->sparse->row = (const uint32_t *)base;
    l->sparse->entry = (const uint32_t *)(base + at.entry);
    l->sparse->keep = w->scheme.outliers ? (const uint8_t *)base + at.keep : NULL;
    l->bytes += at.bytes;
done:
    free(host);
    return st;
}

void nbi_cuda_sparse_free(nbi_cuda *c, nbi_linear *l)
{
    if (!l->sparse)
        return;
    nbi_cuda_weights_free(c, l->sparse->block);
    free(l->sparse->outlier);
    free(l->sparse);
    l->sparse = NULL;
}

bool nbi_cuda_has_outliers(const nbi_linear *l)
{
    return l->sparse && l->sparse->keep;
}

bool nbi_cuda_same_outliers(const nbi_linear *a, const nbi_linear *b)
{
    const struct nbi_cuda_sparse *x = a->sparse, *y = b->sparse;
    if (!nbi_cuda_has_outliers(a) || !nbi_cuda_has_outliers(b))
        return nbi_cuda_has_outliers(a) == nbi_cuda_has_outliers(b);
    return x->n_outliers == y->n_outliers && memcmp(x->outlier, y->outlier, x->n_outliers * sizeof *x->outlier) == 0;
}

nb_status nbi_cuda_quantize_outliers(nbi_cuda *c, const nbi_linear *l, const void *x, size_t rows,
                                     const nb_act_out *out)
{
    const nb_quantize_outliers_args args = {.rows = {.x = x,
                                                     .out = *out,
                                                     .act_scale = l->act_scale,
                                                     .act_zero = l->act_zero,
                                                     .rows = (uint32_t)rows,
                                                     .k = l->p.k},
                                            .keep = l->sparse->keep};
    return NBI_LAUNCH(c, NBI_K(c, nb_quantize_outliers), rows, 1, 1, NB_ROW_SHARED(l->p.k), args);
}

nb_status nbi_cuda_sparse_add(nbi_cuda *c, const nbi_linear *l, const void *x, size_t rows, void *y, size_t ldy,
                              nbi_dst dst)
{
    if (!l->sparse)
        return NB_OK;
    const nb_sparse_args args = {.row = l->sparse->row,
                                 .entry = l->sparse->entry,
                                 .x = x,
                                 .y = y,
                                 .rows = (uint32_t)rows,
                                 .n = l->p.n,
                                 .k = l->p.k,
                                 .ldy = (uint32_t)ldy,
                                 .dst = dst == NBI_DST_ACT ? NB_DST_ACT : NB_DST_RESIDUAL};
    if (rows <= NB_GEMV_ROWS)
        return NBI_LAUNCH(c, NBI_K(c, nb_sparse_few), nbi_ceil_div(l->p.n, 8), 1, 1, 0, args);
    return NBI_LAUNCH(c, NBI_K(c, nb_sparse_many), nbi_ceil_div(l->p.n, 256), nbi_ceil_div(rows, 8), 1, 0, args);
}
