/* Rows that linear layers read: the operations that produce them write, while a row is in the first-level cache, the codes
 * that INT8 layers want.  The floats are always there. */
#include "backend/cpu/cpu.h"

#include "base/checked.h"

bool nbi_cpu_rows_at(nbi_cpu_rows *out, const nbi_cpu *c, const void *x, size_t rows, size_t k)
{
    size_t stride, floats, q_at, codes, scale_at, end;
    if (!nbi_round_up(k, 32, &stride) || !nbi_mul(rows, k, &floats) || !nbi_mul(floats, sizeof(float), &floats) ||
        !nbi_round_up(floats, 64, &q_at) || !nbi_mul(rows, stride, &codes) ||
        !nbi_mul(codes, c->kern->q_bytes, &codes) || !nbi_add(q_at, codes, &scale_at) ||
        !nbi_mul(rows, sizeof(float), &end) || !nbi_add(scale_at, end, &end))
        return false;
    char *base = (char *)(uintptr_t)x;
    *out = (nbi_cpu_rows){.x = (float *)base, .stride = stride, .bytes = end};
    if (base) {
        out->q = (unsigned char *)base + q_at;
        out->scale = (float *)(base + scale_at);
    }
    return true;
}

size_t nbi_cpu_act_bytes(nbi_backend *b, size_t rows, size_t k)
{
    nbi_cpu_rows r;
    return nbi_cpu_rows_at(&r, nbi_cpu_of(b), NULL, rows, k) ? r.bytes : SIZE_MAX;
}

/* Static grids, other orders of columns and outliers are a layer's own business. */
unsigned nbi_cpu_linear_form(const nbi_linear *l)
{
    return nbi_cpu_is_integer(l->kind) && l->scheme.act == NBI_ACT_TOKEN && !l->perm && !l->n_outliers ? NBI_FORM_INT8
                                                                                                       : NBI_FORM_FLOAT;
}

void nbi_cpu_rows_encode(const nbi_cpu *c, const nbi_cpu_rows *r, size_t row, size_t k, unsigned forms)
{
    if (forms & NBI_FORM_INT8)
        c->kern->quantize_row(r->x + row * k, k, r->stride, NULL, r->q + row * r->stride * c->kern->q_bytes,
                              r->scale + row);
}

static nb_status rows_of(nbi_cpu_rows *r, const nbi_cpu *c, const void *y, size_t rows, size_t k)
{
    return nbi_cpu_rows_at(r, c, y, rows, k) ? NB_OK : nbi_fail(NB_EINTERNAL, "%zu rows of %zu are too large", rows, k);
}

nb_status nbi_cpu_rmsnorm(nbi_backend *b, const float *x, const float *weight, float eps, size_t rows, size_t k,
                          void *y, unsigned forms)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    nbi_cpu_rows to;
    nb_status st = rows_of(&to, c, y, rows, k);
    if (st != NB_OK)
        return st;
#pragma omp parallel for schedule(static) num_threads(nbi_cpu_threads(c, rows > 1 ? rows * k : 0))
    for (size_t r = 0; r < rows; r++) {
        c->kern->rmsnorm_row(x + r * k, weight, eps, k, to.x + r * k);
        nbi_cpu_rows_encode(c, &to, r, k, forms);
    }
    return NB_OK;
}

/* Few long rows are cut in blocks, so that they feed all threads. */
nb_status nbi_cpu_swiglu(nbi_backend *b, const void *gate_up, size_t rows, size_t n, void *y, unsigned forms)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    const int threads = nbi_cpu_threads(c, rows * n);
    const size_t block = rows < (size_t)threads ? 512 : n, blocks = nbi_ceil_div(n, block);
    nbi_cpu_rows to;
    nb_status st = rows_of(&to, c, y, rows, n);
    if (st != NB_OK)
        return st;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (size_t i = 0; i < rows * blocks; i++) {
            const size_t r = i / blocks, at = i % blocks * block;
            const float *gate = (const float *)gate_up + r * 2 * n + at;
            c->kern->swiglu(gate, gate + n, n - at < block ? n - at : block, to.x + r * n + at);
            if (blocks == 1)
                nbi_cpu_rows_encode(c, &to, r, n, forms);
        }
        if (blocks > 1) {
#pragma omp for schedule(static)
            for (size_t r = 0; r < rows; r++)
                nbi_cpu_rows_encode(c, &to, r, n, forms);
        }
    }
    return NB_OK;
}

/* A row is whole when all heads are done. */
nb_status nbi_cpu_attention_forms(nbi_backend *b, const nbi_step *s, const void *qkv, size_t n_heads,
                                  const nbi_kv_layer *kv, float scale, void *y, unsigned forms)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    const size_t rows = s->batch->rows, k = n_heads * kv->head_dim;
    nbi_cpu_rows to;
    nb_status st = rows_of(&to, c, y, rows, k);
    if (st == NB_OK)
        st = nbi_cpu_attention(b, s, qkv, n_heads, kv, scale, y, forms);
    if (st != NB_OK || !(forms & NBI_FORM_INT8))
        return st;
#pragma omp parallel for schedule(static) num_threads(nbi_cpu_threads(c, rows > 1 ? rows * k : 0))
    for (size_t r = 0; r < rows; r++)
        nbi_cpu_rows_encode(c, &to, r, k, forms);
    return NB_OK;
}
