/* Rotary embedding, and attention over the paged cache.
 *
 * How a batch is cut is worked out once a step.  Rows of a sequence that has few of them (decode) are split over the chunks of
 * their keys, so that one long context keeps the whole device busy; the partial results are joined by a second kernel.  Rows of
 * a sequence that has many (prefill), and whatever finds no room for partial results, walk along the chunks.  Both give the
 * same bits (cuda/attend.cuh), so the choice is one of speed only.
 *
 * What the device reads is one block, at addresses that never change:
 *     n_split, n_walk   row_slot [rows]   walk items [rows]   split items [slots]
 * A recorded launch serves every batch of its bucket: it has as many blocks as fill the device, which take items in turns. */
#include "backend/cuda/cuda.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/kv.h"
#include "base/checked.h"
#include "base/rotation.h"

#define PARTIALS_BYTES ((size_t)64 << 20) /* at most, for partial results: what exceeds them walks */
#define SPLIT_PAIRS    32 /* pairs of row and head that share K and V, up to which a sequence is split */
#define GRID_PER_SM    4  /* blocks of a recorded launch */

_Static_assert(NB_ATTEND_CHUNK == NBI_ATTN_CHUNK, "one chunk everywhere");
_Static_assert((int)NB_KV_F16 == (int)NBI_KV_F16 && (int)NB_KV_INT8 == (int)NBI_KV_INT8 &&
                   (int)NB_KV_INT4 == (int)NBI_KV_INT4,
               "one numbering of cache types");

struct nbi_attend_plan {
    nbi_step_limits limits;
    size_t max_chunks, slots;              /* of a sequence; room for partial results of so many rows and chunks */
    size_t split_rows, walk_rows;          /* rows of an item */
    size_t row_slot_at, walk_at, split_at; /* in the block */
    char *host, *device;                   /* the block */
    float *part_o, *part_ml;
    uint32_t n_split, n_walk; /* items of the step under way */
};

/* ---- life ---- */

static size_t heads_of_group(const nbi_step_limits *l)
{
    return l->n_kv_heads && l->n_heads > l->n_kv_heads ? l->n_heads / l->n_kv_heads : 1;
}

static uint32_t d_max_of(uint32_t head_dim)
{
    return head_dim <= 128 ? 128 : 256;
}

static size_t at_least_one(size_t n)
{
    return n ? n : 1;
}

/* Bytes of the partial results of one row and chunk. */
static size_t slot_bytes(const nbi_step_limits *l)
{
    return (size_t)l->n_heads * (l->head_dim + 2) * sizeof(float);
}

static void lay_out(nbi_cuda *c, struct nbi_attend_plan *p)
{
    const nbi_step_limits *l = &p->limits;
    const size_t group = heads_of_group(l);
    p->max_chunks = nbi_ceil_div(l->seq_pages, NBI_ATTN_CHUNK / NBI_PAGE_TOKENS);
    p->slots = slot_bytes(l) && p->max_chunks ? PARTIALS_BYTES / slot_bytes(l) : 0;
    if (p->slots && p->slots / p->max_chunks >= l->rows)
        p->slots = l->rows * p->max_chunks;
    p->split_rows = at_least_one(16 / group);
    p->walk_rows = at_least_one(16u * NB_ATTEND_M_TILES(true, d_max_of(l->head_dim), c->sm >= 80) / group);
    p->row_slot_at = 16;
    p->walk_at = p->row_slot_at + l->rows * sizeof(uint32_t);
    p->split_at = p->walk_at + l->rows * sizeof(nb_attend_item);
}

nb_status nbi_cuda_attend_plan_create(nbi_cuda *c, struct nbi_attend_plan **out, const nbi_step_limits *limits)
{
    nb_status st = NB_OK;
    void *device = NULL, *o = NULL, *ml = NULL;
    struct nbi_attend_plan *p = calloc(1, sizeof *p);
    if (!p)
        return nbi_fail_nomem("a step", sizeof *p);
    p->limits = *limits;
    lay_out(c, p);
    const size_t bytes = p->split_at + p->slots * sizeof(nb_attend_item);
    p->host = calloc(1, bytes);
    if (!p->host)
        NB_TRY(nbi_fail_nomem("a step", bytes));
    NB_TRY(nbi_cuda_alloc(&c->base, &device, bytes, "a step"));
    p->device = device;
    NB_TRY(nbi_cuda_alloc(&c->base, &o, p->slots * limits->n_heads * limits->head_dim * sizeof(float),
                          "partial results of attention"));
    p->part_o = o;
    NB_TRY(
        nbi_cuda_alloc(&c->base, &ml, p->slots * limits->n_heads * 2 * sizeof(float), "partial results of attention"));
    p->part_ml = ml;
    *out = p;
    p = NULL;
done:
    nbi_cuda_attend_plan_free(c, p);
    return st;
}

size_t nbi_cuda_attend_plan_bytes(nbi_cuda *c, const nbi_step_limits *limits)
{
    struct nbi_attend_plan p = {.limits = *limits};
    lay_out(c, &p);
    return p.split_at + p.slots * (sizeof(nb_attend_item) + slot_bytes(limits));
}

void nbi_cuda_attend_plan_free(nbi_cuda *c, struct nbi_attend_plan *p)
{
    if (!p)
        return;
    nbi_cuda_release(&c->base, p->device);
    nbi_cuda_release(&c->base, p->part_o);
    nbi_cuda_release(&c->base, p->part_ml);
    free(p->host);
    free(p);
}

/* ---- how a batch is cut ---- */

/* Chunks that the row at `pos` sees. */
static size_t chunks_of(size_t pos)
{
    return pos / NBI_ATTN_CHUNK + 1;
}

/* Slots of all rows of a sequence. */
static size_t slots_of(const nbi_seq *q)
{
    size_t n = 0;
    for (size_t t = 0; t < q->n_rows; t++)
        n += chunks_of(q->pos0 + t);
    return n;
}

static void split(struct nbi_attend_plan *p, const nbi_seq *q, size_t slot)
{
    uint32_t *row_slot = (uint32_t *)(p->host + p->row_slot_at);
    nb_attend_item *items = (nb_attend_item *)(p->host + p->split_at);
    for (uint32_t t = 0; t < q->n_rows; t++) {
        row_slot[q->row0 + t] = (uint32_t)slot;
        slot += chunks_of((size_t)q->pos0 + t);
    }
    for (size_t t = 0; t < q->n_rows; t += p->split_rows) {
        const size_t n = q->n_rows - t < p->split_rows ? q->n_rows - t : p->split_rows;
        for (size_t chunk = 0; chunk < chunks_of(q->pos0 + t + n - 1); chunk++)
            items[p->n_split++] = (nb_attend_item){(uint32_t)(q->row0 + t), (uint32_t)n, (uint32_t)chunk};
    }
}

/* The last rows first: they have the longest way. */
static void walk(struct nbi_attend_plan *p, const nbi_seq *q)
{
    uint32_t *row_slot = (uint32_t *)(p->host + p->row_slot_at);
    nb_attend_item *items = (nb_attend_item *)(p->host + p->walk_at);
    for (size_t end = q->n_rows; end;) {
        const size_t t = (end - 1) / p->walk_rows * p->walk_rows;
        items[p->n_walk++] = (nb_attend_item){(uint32_t)(q->row0 + t), (uint32_t)(end - t), 0};
        end = t;
    }
    for (uint32_t t = 0; t < q->n_rows; t++)
        row_slot[q->row0 + t] = NB_NO_SLOT;
}

nb_status nbi_cuda_attend_plan_set(nbi_cuda *c, struct nbi_attend_plan *p, nbi_step *s)
{
    const nbi_batch *b = s->batch;
    const size_t rows = s->bucket > b->rows ? s->bucket : b->rows, group = heads_of_group(&p->limits);
    size_t slots = 0;
    p->n_split = p->n_walk = 0;
    for (size_t i = 0; i < b->n_seqs; i++) {
        const nbi_seq *q = &b->seqs[i];
        const size_t n = slots_of(q);
        if ((q->n_rows == 1 || q->n_rows * group <= SPLIT_PAIRS) && n <= p->slots - slots) {
            split(p, q, slots);
            slots += n;
        } else
            walk(p, q);
    }
    for (size_t r = b->rows; r < rows; r++)
        ((uint32_t *)(p->host + p->row_slot_at))[r] = NB_NO_SLOT;
    ((uint32_t *)p->host)[0] = p->n_split;
    ((uint32_t *)p->host)[1] = p->n_walk;
    return nbi_cuda_upload(&c->base, p->device, p->host, p->split_at + p->n_split * sizeof(nb_attend_item));
}

/* ---- operations ---- */

static nb_status check(const nbi_step *s, size_t n_heads, const nbi_kv_layer *kv)
{
    const uint32_t D = kv->head_dim;
    if (kv->type != NBI_KV_F16 && kv->type != NBI_KV_INT8 && kv->type != NBI_KV_INT4)
        return nbi_fail(NB_EUNSUPPORTED, "a KV cache of type %s has no CUDA kernel: expected f16, int8 or int4",
                        (unsigned)kv->type < NBI_N_KV_TYPES ? nbi_kv_type_name(kv->type) : "unknown");
    if (!D || D % 2 || D > NBI_MAX_HEAD_DIM)
        return nbi_fail(NB_EUNSUPPORTED, "a head dimension of %u has no CUDA kernel: expected an even number up to %d",
                        D, NBI_MAX_HEAD_DIM);
    if (!kv->n_kv_heads || !n_heads || n_heads % kv->n_kv_heads)
        return nbi_fail(NB_EUNSUPPORTED, "%zu query heads do not divide among %u kv heads", n_heads, kv->n_kv_heads);
    if (n_heads + 2 * (size_t)kv->n_kv_heads > UINT16_MAX)
        return nbi_fail(NB_EUNSUPPORTED,
                        "%zu query heads have no CUDA kernel: expected at most %d with those of k and v", n_heads,
                        UINT16_MAX);
    if (D > s->limits.head_dim)
        return nbi_fail(NB_EINVAL, "a head dimension of %u in a step that was made for %u", D, s->limits.head_dim);
    return NB_OK;
}

static nb_kv_args kv_args(const nbi_kv_layer *kv)
{
    return (nb_kv_args){.k = kv->k,
                        .v = kv->v,
                        .type = kv->type,
                        .n_kv_heads = kv->n_kv_heads,
                        .head_dim = kv->head_dim,
                        .block_bytes = (uint32_t)nbi_kv_block_bytes(kv->type, kv->head_dim)};
}

nb_status nbi_cuda_rope_append(nbi_backend *b, const nbi_step *s, void *qkv, size_t n_heads, const nbi_kv_layer *kv)
{
    nbi_cuda *c = nbi_cuda_of(b);
    nb_status st = check(s, n_heads, kv);
    if (st != NB_OK || s->rows == 0)
        return st;
    const nb_rope_append_args a = {.qkv = qkv,
                                   .kv = kv_args(kv),
                                   .step = s->args,
                                   .rows = (uint32_t)s->rows,
                                   .n_heads = (uint32_t)n_heads,
                                   .k_shift = kv->k_shift,
                                   .k_scale = kv->k_scale};
    /* A warp works out the angles of its row once: few rows give each head a warp, many let one take several. */
    const size_t wide = nbi_ceil_div(n_heads + 2 * (size_t)kv->n_kv_heads, 4);
    const size_t enough = nbi_ceil_div((size_t)c->n_sm * 16, s->rows);
    const size_t blocks = wide < enough ? wide : enough;
    if (kv->rotate) {
        unsigned p;
        const nb_rope_rotate_args r = {.rope = a,
                                       .hartley = s->hartley,
                                       .h = (uint32_t)nbi_rotation_parts(kv->head_dim, &p),
                                       .unit = (float)(1 / sqrt((double)kv->head_dim))};
        if (kv->head_dim != s->limits.head_dim)
            return nbi_fail(NB_EINTERNAL, "cuda: heads of %u elements are rotated in a step for %u", kv->head_dim,
                            s->limits.head_dim);
        return NBI_LAUNCH(c, NBI_K(c, nb_rope_rotate), s->rows, blocks, 1, 0, r);
    }
    return NBI_LAUNCH(c, NBI_K(c, nb_rope_append), s->rows, blocks, 1, 0, a);
}

/* One launch of kernel k for `items` items that n blocks work on. */
static nb_status launch(nbi_cuda *c, nb_attend_args *a, bool walk, size_t blocks)
{
    static const enum nb_kernel kernels[][2][2] = {
        [NB_KV_F16] = {{NB_K_nb_attend_split_kv16_d128, NB_K_nb_attend_split_kv16_d256},
                       {NB_K_nb_attend_walk_kv16_d128, NB_K_nb_attend_walk_kv16_d256}},
        [NB_KV_INT8] = {{NB_K_nb_attend_split_kv8_d128, NB_K_nb_attend_split_kv8_d256},
                        {NB_K_nb_attend_walk_kv8_d128, NB_K_nb_attend_walk_kv8_d256}},
        [NB_KV_INT4] = {{NB_K_nb_attend_split_kv4_d128, NB_K_nb_attend_split_kv4_d256},
                        {NB_K_nb_attend_walk_kv4_d128, NB_K_nb_attend_walk_kv4_d256}},
    };
    const uint32_t type = a->kv.type, D = a->kv.head_dim, d_max = d_max_of(D);
    const bool sm80 = c->sm >= 80;
    a->shape = nb_attend_shape_of(type, D, NB_ATTEND_KEYS(type, d_max), NB_ATTEND_M_TILES(walk, d_max, sm80),
                                  NB_ATTEND_STAGES(type, walk, sm80));
    return NBI_LAUNCH(c, kernels[type][walk][d_max == 256], blocks, 1, 1, a->shape.bytes, *a);
}

/* Blocks of a launch: one for each item and kv head, or, where they are not known, what fills the device. */
static size_t blocks_of(const nbi_cuda *c, const nbi_step *s, uint32_t items, size_t most_items, uint32_t n_kv_heads)
{
    const size_t full = (size_t)c->n_sm * GRID_PER_SM;
    if (!s->recorded)
        return (size_t)items * n_kv_heads;
    return most_items < full / n_kv_heads ? most_items * n_kv_heads : full;
}

static nb_status attend(nbi_cuda *c, const nbi_step *s, nb_attend_args *a)
{
    const struct nbi_attend_plan *p = s->attend;
    const uint32_t G = a->kv.n_kv_heads;
    const char *device = p->device;
    nb_status st = NB_OK;
    const bool all_split = s->rows * p->max_chunks <= p->slots; /* a recording is of rows that each have a sequence */
    const size_t walks = blocks_of(c, s, p->n_walk, all_split ? 0 : s->rows, G);
    const size_t splits =
        blocks_of(c, s, p->n_split, p->slots < s->rows * p->max_chunks ? p->slots : s->rows * p->max_chunks, G);
    if (walks) {
        a->items = (const nb_attend_item *)(device + p->walk_at);
        a->n_items = (const uint32_t *)device + 1;
        NB_TRY(launch(c, a, true, walks));
    }
    if (splits) {
        a->items = (const nb_attend_item *)(device + p->split_at);
        a->n_items = (const uint32_t *)device;
        NB_TRY(launch(c, a, false, splits));
        NB_TRY(NBI_LAUNCH(c, NBI_K(c, nb_attend_merge), s->rows, nbi_ceil_div((size_t)a->n_heads * a->kv.head_dim, 256),
                          1, 0, *a));
    }
done:
    return st;
}

nb_status nbi_cuda_attention(nbi_backend *b, const nbi_step *s, const void *qkv, size_t n_heads, const nbi_kv_layer *kv,
                             float scale, void *y, unsigned forms)
{
    nbi_cuda *c = nbi_cuda_of(b);
    const struct nbi_attend_plan *p = s->attend;
    const size_t width = n_heads * kv->head_dim;
    nb_status st = check(s, n_heads, kv);
    if (st != NB_OK || s->rows == 0)
        return st;
    if (p->slots && (n_heads > p->limits.n_heads || width > (size_t)p->limits.n_heads * p->limits.head_dim))
        return nbi_fail(NB_EINVAL, "%zu query heads of %u dimensions in a step that was made for %u of %u", n_heads,
                        kv->head_dim, p->limits.n_heads, p->limits.head_dim);
    nb_attend_args a = {.qkv = qkv,
                        .y = y,
                        .kv = kv_args(kv),
                        .step = s->args,
                        .row_slot = (const uint32_t *)(p->device + p->row_slot_at),
                        .part_o = p->part_o,
                        .part_ml = p->part_ml,
                        .scale = (float)(scale * 1.4426950408889634), /* log2(e) */
                        .rows = (uint32_t)s->rows,
                        .n_heads = (uint32_t)n_heads,
                        .dtype = c->act == NBI_F16 ? NB_T_F16 : NB_T_BF16};
    NB_TRY(attend(c, s, &a));
    if (forms & NBI_FORM_INT8) {
        const nb_act_out out = nbi_cuda_act(y, s->rows, width);
        NB_TRY(nbi_cuda_quantize_rows(c, y, s->rows, width, 0, 0, &out));
    }
done:
    return st;
}
