/* Rotary embedding, the KV cache, and the split of attention over threads. */
#include "backend/cpu/cpu.h"

#include <omp.h>
#include <string.h>

#include "backend/kv.h"
#include "base/checked.h"

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

nb_status nbi_cpu_rope_append(nbi_backend *b, const nbi_step *s, void *qkv, size_t n_heads, const nbi_kv_layer *kv)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    const size_t D = kv->head_dim, width = (n_heads + 2 * kv->n_kv_heads) * D, rows = s->batch->rows;
    nb_status st = check_cache(kv);
    if (st == NB_OK && kv->rotate && D != s->head_dim)
        st = nbi_fail(NB_EINTERNAL, "heads of %zu elements are rotated in a step for %zu", D, s->head_dim);
    if (st == NB_OK && D % 2)
        st = nbi_fail(NB_EUNSUPPORTED, "a head dimension of %zu cannot be rotated: expected an even number", D);
    if (st != NB_OK)
        return st;
    const nbi_cpu_append a = {.kv = kv,
                              .rotation = &s->rotation,
                              .n_heads = n_heads,
                              .block_bytes = nbi_kv_block_bytes(kv->type, kv->head_dim),
                              .qkv = qkv,
                              .cos_sin = s->cos_sin,
                              .place = s->place};
    const size_t threads = (size_t)nbi_cpu_threads(c, rows > 1 ? rows * width : 0);
#pragma omp parallel for schedule(static) num_threads((int)threads)
    for (size_t i = 0; i < threads; i++)
        c->kern->append_rows(&a, rows * i / threads, rows * (i + 1) / threads);
    return NB_OK;
}

/* ---- attention: how a batch is cut ----
 *
 * Tiles of rows are what results are made of; a tile of few rows and many keys is cut further, between chunks of keys,
 * when it would keep a thread busy after the others are done.  Its pieces leave what they found, chunk by chunk, and a
 * last pass joins that in the order of the chunks: where the cuts are does not show. */

enum { PAGES_COST = 8 }; /* a chunk costs its queries, and about that many for its way from memory */

static size_t cost_of(const nbi_cpu_tile *t, size_t share)
{
    return t->chunks * (t->rows * share + PAGES_COST);
}

/* Tiles of all sequences, and the sum of their cost. */
static size_t make_tiles(nbi_cpu_plan *p, const nbi_batch *batch, size_t share)
{
    const uint32_t most = share < NBI_CPU_ATT_QUERIES ? (uint32_t)(NBI_CPU_ATT_QUERIES / share) : 1;
    size_t cost = 0;
    p->n_tiles = 0;
    for (size_t i = 0; i < batch->n_seqs; i++) {
        const nbi_seq *s = &batch->seqs[i];
        for (uint32_t r = 0, rows; r < s->n_rows; r += rows) {
            const uint32_t pos = s->pos0 + r, left = NBI_ATTN_CHUNK - pos % NBI_ATTN_CHUNK;
            rows = s->n_rows - r < most ? s->n_rows - r : most;
            rows = rows < left ? rows : left;
            nbi_cpu_tile *t = &p->unsorted[p->n_tiles++];
            *t = (nbi_cpu_tile){
                .seq = s, .row = s->row0 + r, .rows = rows, .pos0 = pos, .chunks = pos / NBI_ATTN_CHUNK + 1};
            cost += cost_of(t, share);
        }
    }
    return cost;
}

/* The longest first, to a 64th of the longest. */
static void sort_tiles(nbi_cpu_plan *p, size_t share)
{
    enum { CLASSES = 64 };
    size_t most = 1, start[CLASSES + 1] = {0};
    for (size_t i = 0; i < p->n_tiles; i++) {
        const size_t cost = cost_of(&p->unsorted[i], share);
        most = cost > most ? cost : most;
    }
    for (size_t i = 0; i < p->n_tiles; i++)
        start[CLASSES - cost_of(&p->unsorted[i], share) * (CLASSES - 1) / most]++;
    for (size_t i = 1; i <= CLASSES; i++)
        start[i] += start[i - 1];
    for (size_t i = 0; i < p->n_tiles; i++)
        p->tiles[start[CLASSES - 1 - cost_of(&p->unsorted[i], share) * (CLASSES - 1) / most]++] = p->unsorted[i];
}

/* Sequences of about the same length, each of them one tile: no thread will wait for another. */
static bool is_even(const nbi_cpu_plan *p, size_t n_seqs)
{
    size_t least = SIZE_MAX, most = 0;
    for (size_t i = 0; i < p->n_tiles; i++) {
        const size_t cost = 64 + p->tiles[i].pos0; /* what a tile of few keys costs, too */
        least = cost < least ? cost : least;
        most = cost > most ? cost : most;
    }
    return p->n_tiles == n_seqs && most - least <= most / 8;
}

static void make_plan(const nbi_step *s, size_t n_heads, const nbi_kv_layer *kv, size_t threads)
{
    nbi_cpu_plan *p = s->plan;
    const size_t G = kv->n_kv_heads, share = n_heads / G;
    size_t used = 0;
    *p = (nbi_cpu_plan){.n_heads = n_heads, .n_kv_heads = G, .tiles = p->tiles, .unsorted = p->unsorted};
    p->work = make_tiles(p, s->batch, share) * G;
    sort_tiles(p, share);
    for (size_t i = 0; i < p->n_tiles; i++) {
        nbi_cpu_tile *t = &p->tiles[i];
        const size_t cost = cost_of(t, share), one = cost / t->chunks, size = p->work / (4 * threads) / one,
                     room = G * t->chunks * nbi_cpu_attend_record(t->rows * share, kv->head_dim);
        t->piece_size = t->chunks;
        t->item = p->n_items;
        if (threads > 1 && cost > p->work / (2 * threads) && t->chunks > 1 && room <= s->parts_cap - used) {
            t->piece_size = size > 1 ? (uint32_t)size : 1;
            t->parts = used;
            used += room;
            p->n_split++;
        }
        p->n_items += G * nbi_ceil_div(t->chunks, t->piece_size);
    }
    if (p->n_items >= 8 * threads && is_even(p, s->batch->n_seqs))
        p->n_fixed = p->n_items - p->n_items / 8;
}

/* The last tile whose items begin at `item` or before. */
static const nbi_cpu_tile *tile_of(const nbi_cpu_plan *p, size_t item)
{
    size_t lo = 0, hi = p->n_tiles;
    while (hi - lo > 1) {
        const size_t mid = (lo + hi) / 2;
        *(p->tiles[mid].item <= item ? &lo : &hi) = mid;
    }
    return &p->tiles[lo];
}

/* ---- attention ---- */

typedef struct attention {
    const nbi_cpu_kernels *kern;
    const nbi_step *step;
    nbi_cpu_attend common;
    const float *qkv;
    float *y;
    size_t share, width, y_width;
} attention;

/* Chunks [c0,c1) of a tile for one kv head, or their join.  More heads than a tile holds are taken in turns. */
static void run(const attention *a, const nbi_cpu_tile *t, size_t kv_head, size_t c0, size_t c1, bool join)
{
    nbi_cpu_attend x = a->common;
    const size_t D = x.kv->head_dim;
    x.rows = t->rows;
    x.kv_head = kv_head;
    x.pos0 = t->pos0;
    x.c0 = c0;
    x.c1 = c1;
    x.pages = t->seq->pages;
    x.scratch = a->step->scratch + (size_t)omp_get_thread_num() * nbi_cpu_attend_floats(D);
    for (size_t h = 0; h < a->share; h += x.heads) {
        const size_t at = (kv_head * a->share + h) * D;
        x.heads = a->share - h < NBI_CPU_ATT_QUERIES ? a->share - h : NBI_CPU_ATT_QUERIES;
        x.q = a->qkv + t->row * a->width + at;
        x.y = a->y + t->row * a->y_width + at;
        if (t->piece_size < t->chunks)
            x.parts =
                a->step->parts + t->parts + t->chunks * nbi_cpu_attend_record(t->rows * (kv_head * a->share + h), D);
        (join ? a->kern->attend_join : a->kern->attend)(&x);
    }
}

static void run_item(const attention *a, size_t item)
{
    const nbi_cpu_tile *t = tile_of(a->step->plan, item);
    const size_t pieces = nbi_ceil_div(t->chunks, t->piece_size), i = item - t->item;
    const size_t c0 = i % pieces * t->piece_size, end = c0 + t->piece_size;
    run(a, t, i / pieces, c0, end < t->chunks ? end : t->chunks, false);
}

nb_status nbi_cpu_attention(nbi_backend *b, const nbi_step *step, const void *qkv, size_t n_heads,
                            const nbi_kv_layer *kv, float scale, void *y, unsigned forms)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    const nbi_cpu_plan *p = step->plan;
    const size_t D = kv->head_dim, G = kv->n_kv_heads;
    nb_status st = check_cache(kv);
    (void)forms;
    if (st == NB_OK && (!G || n_heads % G))
        st = nbi_fail(NB_EUNSUPPORTED, "%zu query heads do not divide among %zu kv heads", n_heads, G);
    if (st == NB_OK && D > step->head_dim)
        st = nbi_fail(NB_EINTERNAL, "heads of %zu elements in a step for %zu", D, step->head_dim);
    if (st != NB_OK)
        return st;
    const attention a = {.kern = c->kern,
                         .step = step,
                         .common = {.kv = kv,
                                    .block_bytes = nbi_kv_block_bytes(kv->type, kv->head_dim),
                                    .scale = scale,
                                    .ldq = (n_heads + 2 * G) * D,
                                    .ldy = n_heads * D},
                         .qkv = qkv,
                         .y = y,
                         .share = n_heads / G,
                         .width = (n_heads + 2 * G) * D,
                         .y_width = n_heads * D};
    if (p->n_heads != n_heads || p->n_kv_heads != G)
        make_plan(step, n_heads, kv, (size_t)c->threads);
#pragma omp parallel num_threads(nbi_cpu_threads(c, p->work *NBI_ATTN_CHUNK *D))
    {
#pragma omp for schedule(static) nowait
        for (size_t i = 0; i < p->n_fixed; i++)
            run_item(&a, i);
#pragma omp for schedule(dynamic, 1)
        for (size_t i = p->n_fixed; i < p->n_items; i++)
            run_item(&a, i);
        if (p->n_split) {
#pragma omp for schedule(dynamic, 1)
            for (size_t i = 0; i < p->n_tiles * G; i++) {
                const nbi_cpu_tile *t = &p->tiles[i / G];
                if (t->piece_size < t->chunks)
                    run(&a, t, i % G, 0, t->chunks, true);
            }
        }
    }
    return NB_OK;
}
