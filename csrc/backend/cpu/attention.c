/* Rotary embedding, the KV cache, and the split of attention over threads. */
#include "backend/cpu/cpu.h"

#include <string.h>

#include "backend/kv.h"

static nb_status check_cache(const nbi_kv_layer *kv)
{
    if (kv->type >= NBI_N_KV_TYPES)
        return nbi_fail(NB_EUNSUPPORTED, "a KV cache of an unknown type (%d) has no CPU kernel", (int)kv->type);
    if (kv->type == NBI_KV_INT4 && kv->head_dim % 2)
        return nbi_fail(NB_EUNSUPPORTED, "a head dimension of %u has no INT4 KV cache: expected an even number",
                        kv->head_dim);
    if (!kv->head_dim || kv->head_dim > NBI_MAX_HEAD_DIM)
        return nbi_fail(NB_EUNSUPPORTED, "a head dimension of %u has no CPU kernel: expected 1 to %d", kv->head_dim,
                        NBI_MAX_HEAD_DIM);
    return NB_OK;
}

/* x0' = x0 cos - x1 sin, x1' = x1 cos + x0 sin: each product rounded, then the sum. */
static void turn(float *x, const float *cos_sin, size_t head_dim)
{
    const size_t half = head_dim / 2;
    for (size_t i = 0; i < half; i++) {
        const float c = cos_sin[2 * i], s = cos_sin[2 * i + 1], x0 = x[i], x1 = x[i + half];
        x[i] = x0 * c - x1 * s;
        x[i + half] = x1 * c + x0 * s;
    }
}

/* A head of one token into the cache. */
static void put(const nbi_kv_layer *kv, void *cache, int32_t page, size_t slot, size_t head, const float *src)
{
    char *block = (char *)cache + ((size_t)page * kv->n_kv_heads + head) * nbi_kv_block_bytes(kv->type, kv->head_dim);
    nbi_kv_encode(kv->type, block, (uint32_t)slot, kv->head_dim, src);
}

/* One row: [q heads][k heads][v heads], each of head_dim. */
static void append_row(const nbi_cpu *c, const nbi_step *s, const nbi_kv_layer *kv, float *row, size_t n_heads,
                       const float *cos_sin, int32_t page, size_t slot)
{
    const size_t D = kv->head_dim, G = kv->n_kv_heads;
    for (size_t h = 0; h < n_heads + G; h++) {
        turn(row + h * D, cos_sin, D);
        if (kv->rotate)
            c->kern->rotate_row(&s->rotation, row + h * D);
    }
    for (size_t h = 0; h < G; h++) {
        put(kv, kv->k, page, slot, h, row + (n_heads + h) * D);
        put(kv, kv->v, page, slot, h, row + (n_heads + G + h) * D);
    }
}

nb_status nbi_cpu_rope_append(nbi_backend *b, const nbi_step *s, void *qkv, size_t n_heads, const nbi_kv_layer *kv)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    const nbi_batch *batch = s->batch;
    const size_t D = kv->head_dim, width = (n_heads + 2 * kv->n_kv_heads) * D;
    nb_status st = check_cache(kv);
    if (st == NB_OK && kv->rotate && D != s->head_dim)
        st = nbi_fail(NB_EINTERNAL, "heads of %zu elements are rotated in a step for %zu", D, s->head_dim);
    if (st == NB_OK && D % 2)
        st = nbi_fail(NB_EUNSUPPORTED, "a head dimension of %zu cannot be rotated: expected an even number", D);
    if (st != NB_OK)
        return st;
#pragma omp parallel num_threads(nbi_cpu_threads(c, batch->rows > 1 ? batch->rows * width : 0))
    for (size_t i = 0; i < batch->n_seqs; i++) {
        const nbi_seq *q = &batch->seqs[i];
#pragma omp for schedule(static) nowait
        for (uint32_t t = 0; t < q->n_rows; t++) {
            size_t row = (size_t)q->row0 + t, pos = (size_t)q->pos0 + t;
            append_row(c, s, kv, (float *)qkv + row * width, n_heads, s->cos_sin + row * D,
                       q->pages[pos / NBI_PAGE_TOKENS], pos % NBI_PAGE_TOKENS);
        }
    }
    return NB_OK;
}

/* The t-th token of a batch that is seqs one after another. */
static const nbi_seq *find_token(const nbi_seq *seqs, size_t *t)
{
    for (; *t >= seqs->n_rows; seqs++)
        *t -= seqs->n_rows;
    return seqs;
}

nb_status nbi_cpu_attention(nbi_backend *b, const nbi_step *step, const void *qkv, size_t n_heads,
                            const nbi_kv_layer *kv, float scale, void *y, unsigned forms)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    const nbi_batch *batch = step->batch;
    const size_t D = kv->head_dim, G = kv->n_kv_heads, width = (n_heads + 2 * G) * D;
    size_t tokens = 0, work = 0;
    nb_status st = check_cache(kv);
    (void)forms;
    if (st == NB_OK && (!G || n_heads % G))
        st = nbi_fail(NB_EUNSUPPORTED, "%zu query heads do not divide among %zu kv heads", n_heads, G);
    if (st != NB_OK)
        return st;
    for (size_t i = 0; i < batch->n_seqs; i++) {
        const nbi_seq *s = &batch->seqs[i];
        tokens += s->n_rows;
        work += s->n_rows * ((size_t)s->pos0 + s->n_rows) * n_heads * D;
    }
    /* Late tokens see more keys than early ones, so threads take the next piece as they come free. */
#pragma omp parallel for schedule(dynamic, 1) num_threads(nbi_cpu_threads(c, work))
    for (size_t i = 0; i < tokens * G; i++) {
        size_t t = i / G, h = i % G, share = n_heads / G;
        const nbi_seq *s = find_token(batch->seqs, &t);
        size_t row = s->row0 + t, at = h * share * D;
        nbi_cpu_attend a = {.q = (const float *)qkv + row * width + at,
                            .y = (float *)y + row * n_heads * D + at,
                            .heads = share,
                            .kv_head = h,
                            .len = s->pos0 + t + 1,
                            .kv = kv,
                            .block_bytes = nbi_kv_block_bytes(kv->type, kv->head_dim),
                            .pages = s->pages,
                            .scale = scale};
        c->kern->attend(&a);
    }
    return NB_OK;
}
