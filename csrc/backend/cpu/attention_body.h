/* Attention on sixteen lanes: a tile of queries that read one kv head, chunk after chunk of NBI_ATTN_CHUNK keys.  Included
 * after rows_body.h.
 *
 * For each chunk (by absolute position): s = dot(q * scale, k), one fused multiply-add a dimension in ascending order
 * from 0, times the key's scale if it is INT8; m = max s; p = e^(s-m); l = sum of p in the shape of rows_body.h, over
 * keys; o[d] = sum of p * v[d] in ascending keys from 0 (INT8: p times the value's scale, rounded, times the code).
 * Chunks are merged in index order:  M' = max(M, m), a = e^(M-M'), b = e^(m-M'), L = l*b + L*a, O = o*b + O*a (the
 * second product rounded, then fused).  y = O * (1 / L).
 *
 * Lanes are the tokens of a page for scores, dimensions for values.  A group of pages becomes fp32 once for all queries
 * of the tile; pages that are fp32 already are read where they lie. */
#include "backend/cpu/cpu.h"
#include "backend/kv.h"

#ifndef V16_ATT_SUMS
#define V16_ATT_SUMS 4 /* sums of sixteen lanes that a tile keeps in registers: 4 or 16 */
#endif

#define ATT_GROUP   4 /* most pages that are made fp32 together */
#define ATT_CHUNK   NBI_ATTN_CHUNK
#define CHUNK_PAGES (ATT_CHUNK / NBI_PAGE_TOKENS)
#define ATT_BLOCK   8 /* queries that are packed side by side: q[d][8] */

typedef struct att {
    const nbi_cpu_attend *a;
    size_t D, Dp, n; /* n queries; Dp: D rounded up to sixteen */
    size_t group;    /* pages that are made fp32 together: no more than the first-level cache has room for */
    float *q;        /* [n/8][D][8], times the scale */
    float *s;        /* [n][ATT_CHUNK] scores, then p */
    float *o, *out;  /* [n][Dp] of a chunk; of all chunks so far */
    float *m, *l, *max, *sum;
    float *pages; /* [ATT_GROUP][16 Dp] keys or values as fp32 */
} att;

/* The block of keys (or values) of this kv head in page i of the sequence. */
V16_INLINE const char *att_block(const nbi_cpu_attend *a, const void *cache, size_t i)
{
    return (const char *)cache + ((size_t)a->pages[i] * a->kv->n_kv_heads + a->kv_head) * a->block_bytes;
}

/* Keys of the query's row in a chunk. */
V16_INLINE size_t att_keys_of(const att *t, size_t c, size_t query)
{
    const size_t n = t->a->pos0 + query / t->a->heads + 1 - c * ATT_CHUNK;
    return n < ATT_CHUNK ? n : ATT_CHUNK;
}

/* Eight queries side by side; a block that is not full repeats its last one. */
static void att_pack_queries(const att *t)
{
    const nbi_cpu_attend *a = t->a;
    for (size_t i = 0; i < t->n; i += ATT_BLOCK) {
        const float *q[ATT_BLOCK];
        float *to = t->q + i * t->D;
        for (size_t j = 0; j < ATT_BLOCK; j++) {
            const size_t at = i + j < t->n ? i + j : t->n - 1;
            q[j] = a->q + at / a->heads * a->ldq + at % a->heads * t->D;
        }
        for (size_t d = 0; d < t->D; d++, to += ATT_BLOCK)
            for (size_t j = 0; j < ATT_BLOCK; j++)
                to[j] = q[j][d] * a->scale;
    }
}

/* ---- pages as fp32 ---- */

/* Keys lie transposed, [D][16]: cpu.h. */
static void att_widen_keys(const char *block, size_t D, nbi_kv_type type, float *to)
{
    if (type == NBI_KV_F16) {
        for (size_t d = 0; d < D; d++)
            v16_store(to + 16 * d, v16_load_f16((const uint16_t *)block + 16 * d));
    } else if (type == NBI_KV_INT8) {
        for (size_t d = 0; d < D; d++)
            v16_store(to + 16 * d, v16_load_i8((const int8_t *)block + 16 * d));
    } else {
        const uint16_t *s_m = (const uint16_t *)(block + nbi_kv_scales_at(type, (uint32_t)D));
        for (size_t d = 0; d < D; d += 2) {
            const v16 s = v16_load_f16(s_m + d / NBI_KV4_RUN * 32), m = v16_load_f16(s_m + d / NBI_KV4_RUN * 32 + 16);
            const uint8_t *codes = (const uint8_t *)block + 8 * d;
            uint8_t low[16], high[16];
            for (int i = 0; i < 16; i++) {
                low[i] = codes[i] & 15;
                high[i] = codes[i] >> 4;
            }
            v16_store(to + 16 * d, v16_fma(v16_load_u8(low), s, m));
            v16_store(to + 16 * d + 16, v16_fma(v16_load_u8(high), s, m));
        }
    }
}

/* Elements d .. d+n-1 of token `slot` of a block of values; d is a multiple of 16.  INT8: the codes. */
V16_INLINE v16 att_load_value(const char *block, size_t D, size_t slot, size_t d, size_t n, nbi_kv_type type)
{
    const size_t at = slot * D + d;
    unsigned char tail[16] = {0};
    if (type == NBI_KV_F32)
        return v16_load_n((const float *)block + at, n);
    if (type == NBI_KV_F16)
        return v16_load_f16_n((const uint16_t *)block + at, n);
    if (type == NBI_KV_INT8)
        return v16_load_i8(n < 16 ? memcpy(tail, block + at, n) : (const int8_t *)block + at);
    const uint8_t *q = (const uint8_t *)block + at / 2;
    const uint16_t *s_m = (const uint16_t *)(block + nbi_kv_scales_at(type, (uint32_t)D)) +
                          2 * (slot * nbi_kv4_runs((uint32_t)D) + d / NBI_KV4_RUN);
    if (n < 16)
        q = memcpy(tail, q, n / 2);
    return v16_fma(v16_load_u4(q), v16_set1_f16(s_m[0]), v16_set1_f16(s_m[1]));
}

/* [slots][D] becomes [slots][Dp]; lanes beyond D mean nothing. */
V16_INLINE void att_widen_values_of(const char *block, size_t D, nbi_kv_type type, size_t slots, float *to)
{
    const size_t full = D & ~(size_t)15, Dp = (D + 15) & ~(size_t)15;
    for (size_t slot = 0; slot < slots; slot++, to += Dp) {
        for (size_t d = 0; d < full; d += 16)
            v16_store(to + d, att_load_value(block, D, slot, d, 16, type));
        if (full < D)
            v16_store(to + full, att_load_value(block, D, slot, full, D - full, type));
    }
}

static void att_widen_values(const char *block, size_t D, nbi_kv_type type, size_t slots, float *to)
{
    switch (type) { /* four bodies, each of one type */
    case NBI_KV_F32:
        att_widen_values_of(block, D, NBI_KV_F32, slots, to);
        break;
    case NBI_KV_F16:
        att_widen_values_of(block, D, NBI_KV_F16, slots, to);
        break;
    case NBI_KV_INT8:
        att_widen_values_of(block, D, NBI_KV_INT8, slots, to);
        break;
    default:
        att_widen_values_of(block, D, NBI_KV_INT4, slots, to);
        break;
    }
}

/* Some pages of keys or values.  While their tiles are computed, the bytes of the next group are asked for: pages of one
 * head lie far apart, so that no prefetcher of the hardware knows where the next one is. */
typedef struct att_group {
    size_t n, first;               /* pages; the first one's index in its chunk */
    const float *page[ATT_GROUP];  /* fp32: keys [D][16], values [16][Dp] */
    const float *scale[ATT_GROUP]; /* INT8: [16]; else NULL */
    const char *ahead[ATT_GROUP];  /* blocks of the next group */
} att_group;

/* The group behind the one at page `at` of the keys or values of chunk c, which has n pages. */
static void att_look_ahead(const att *t, att_group *g, bool values, size_t c, size_t at, size_t n)
{
    const nbi_cpu_attend *a = t->a;
    const bool last = at + t->group >= n;
    const char *cache = values != last ? a->kv->v : a->kv->k;
    size_t from = c * CHUNK_PAGES + (last ? 0 : at + t->group), end = c * CHUNK_PAGES + n;
    if (last && values) {
        /* the next chunk has a page at least; behind the last one the next kv head begins */
        from = (c + 1 < a->c1 ? c + 1 : a->c0) * CHUNK_PAGES;
        end = from + 1;
        if (c + 1 == a->c1 && a->kv_head + 1 < a->kv->n_kv_heads)
            cache += a->block_bytes;
    }
    for (size_t i = 0; i < ATT_GROUP; i++)
        g->ahead[i] = att_block(a, cache, from + i < end ? from + i : end - 1);
}

/* Pages from page `at` of the keys or values of chunk c, which has n pages. */
static att_group att_open_group(const att *t, bool values, size_t c, size_t at, size_t n)
{
    const nbi_kv_type type = t->a->kv->type;
    att_group g = {.n = n - at < t->group ? n - at : t->group, .first = at};
    size_t keys = att_keys_of(t, c, t->n - 1) - at * NBI_PAGE_TOKENS; /* from page i on */
    for (size_t i = 0; i < g.n; i++, keys -= NBI_PAGE_TOKENS) {
        const char *block = att_block(t->a, values ? t->a->kv->v : t->a->kv->k, c * CHUNK_PAGES + at + i);
        float *to = t->pages + i * NBI_PAGE_TOKENS * t->Dp;
        g.page[i] = to;
        g.scale[i] = type == NBI_KV_INT8 ? (const float *)(block + nbi_kv_scales_at(type, (uint32_t)t->D)) : NULL;
        if (type == NBI_KV_F32 && (!values || t->D == t->Dp))
            g.page[i] = (const float *)block;
        else if (values)
            att_widen_values(block, t->D, type, keys < NBI_PAGE_TOKENS ? keys : NBI_PAGE_TOKENS, to);
        else
            att_widen_keys(block, t->D, type, to);
    }
    att_look_ahead(t, &g, values, c, at, n);
    return g;
}

/* ---- tiles of Q queries ---- */

V16_INLINE void att_ask_for(const char *p)
{
    __builtin_prefetch(p, 0, 2);
}

/* Scores of Q queries and P pages of g from page `at`; q [D][8], s [Q][ATT_CHUNK] */
V16_INLINE void att_scores(const att *t, const att_group *g, size_t at, const float *q, float *s, int Q, int P)
{
    const float *k[4];
    const char *ahead[4];
    const size_t D = t->D, step = t->a->block_bytes / D;
    v16 acc[16];
    UNROLL for (int p = 0; p < P; p++) k[p] = g->page[at + (size_t)p];
    UNROLL for (int p = 0; p < P; p++) ahead[p] = g->ahead[at + (size_t)p];
    UNROLL for (int i = 0; i < Q; i++) UNROLL for (int p = 0; p < P; p++) acc[i * P + p] = v16_set1(0);
    for (size_t d = 0; d < D; d++) {
        v16 key[4];
        UNROLL for (int p = 0; p < P; p++) att_ask_for(ahead[p] + d * step);
        UNROLL for (int p = 0; p < P; p++) key[p] = v16_load(k[p] + 16 * d);
        UNROLL for (int i = 0; i < Q; i++)
        {
            const v16 x = v16_set1(q[d * ATT_BLOCK + (size_t)i]);
            UNROLL for (int p = 0; p < P; p++) acc[i * P + p] = v16_fma(x, key[p], acc[i * P + p]);
        }
    }
    UNROLL for (int p = 0; p < P; p++)
    {
        const float *scale = g->scale[at + (size_t)p];
        if (scale)
            UNROLL for (int i = 0; i < Q; i++) acc[i * P + p] = v16_mul(acc[i * P + p], v16_load(scale));
        UNROLL for (int i = 0; i < Q; i++) v16_store(s + i * ATT_CHUNK + 16 * p, acc[i * P + p]);
    }
}

/* Some keys of a chunk, all in one group: t0 .. t1-1. */
typedef struct att_span {
    size_t t0, t1;
} att_span;

/* o [Q][Dp], B sixteens from d0, takes in these keys; p [Q][ATT_CHUNK] */
V16_INLINE void att_values(const att *t, const att_group *g, att_span k, const float *p, size_t d0, float *o, int Q,
                           int B)
{
    const size_t Dp = t->Dp, step = t->a->block_bytes / NBI_PAGE_TOKENS, part = step * 16 / Dp;
    v16 acc[16];
    o += d0;
    UNROLL for (int i = 0; i < Q; i++) UNROLL for (int b = 0; b < B; b++) acc[i * B + b] =
        k.t0 ? v16_load(o + (size_t)i * Dp + 16 * (size_t)b) : v16_set1(0);
    for (size_t at = k.t0; at < k.t1;) {
        const size_t page = at / NBI_PAGE_TOKENS, slot = at % NBI_PAGE_TOKENS, i_page = page - g->first;
        const size_t page_end = (page + 1) * NBI_PAGE_TOKENS, end = page_end < k.t1 ? page_end : k.t1;
        const float *v = g->page[i_page] + slot * Dp + d0;
        const char *ahead = g->ahead[i_page] + slot * step + d0 / 16 * part;
        for (; at < end; at++, v += Dp, ahead += step) {
            v16 value[4];
            UNROLL for (int b = 0; b < B; b++) att_ask_for(ahead + (size_t)b * part);
            UNROLL for (int b = 0; b < B; b++) value[b] = v16_load(v + 16 * b);
            UNROLL for (int i = 0; i < Q; i++)
            {
                const v16 x = v16_set1(p[(size_t)i * ATT_CHUNK + at]);
                UNROLL for (int b = 0; b < B; b++) acc[i * B + b] = v16_fma(x, value[b], acc[i * B + b]);
            }
        }
    }
    UNROLL for (int i = 0; i < Q; i++) UNROLL for (int b = 0; b < B; b++)
        v16_store(o + (size_t)i * Dp + 16 * (size_t)b, acc[i * B + b]);
}

/* As many pages, or sixteens of dimensions, as the registers hold for Q queries; then one at a time. */
#define ATT_WIDTH(Q) (V16_ATT_SUMS / (Q) > 4 ? 4 : V16_ATT_SUMS / (Q))

V16_INLINE void att_scores_of(const att *t, const att_group *g, const float *q, float *s, int Q)
{
    size_t i = 0;
    for (; g->n - i >= (size_t)ATT_WIDTH(Q); i += ATT_WIDTH(Q))
        att_scores(t, g, i, q, s + 16 * i, Q, ATT_WIDTH(Q));
    for (; ATT_WIDTH(Q) > 2 && g->n - i >= 2; i += 2)
        att_scores(t, g, i, q, s + 16 * i, Q, ATT_WIDTH(Q) > 2 ? 2 : 1);
    for (; i < g->n; i++)
        att_scores(t, g, i, q, s + 16 * i, Q, 1);
}

V16_INLINE void att_values_of(const att *t, const att_group *g, att_span k, const float *p, float *o, int Q)
{
    size_t d = 0;
    for (; t->Dp - d >= 16 * (size_t)ATT_WIDTH(Q); d += 16 * ATT_WIDTH(Q))
        att_values(t, g, k, p, d, o, Q, ATT_WIDTH(Q));
    for (; d < t->Dp; d += 16)
        att_values(t, g, k, p, d, o, Q, 1);
}

/* Queries that the next tile takes: 8 (where registers are), 4, 2 or 1, so that none crosses a block of q. */
V16_INLINE size_t att_tile(size_t left)
{
    return left >= 8 && V16_ATT_SUMS >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

static void att_scores_tile(const att *t, const att_group *g, size_t first, size_t queries)
{
    const float *q = t->q + first / ATT_BLOCK * ATT_BLOCK * t->D + first % ATT_BLOCK;
    float *s = t->s + first * ATT_CHUNK + g->first * NBI_PAGE_TOKENS;
    if (queries == 8)
        att_scores_of(t, g, q, s, V16_ATT_SUMS >= 8 ? 8 : 1);
    else if (queries == 4)
        att_scores_of(t, g, q, s, 4);
    else if (queries == 2)
        att_scores_of(t, g, q, s, 2);
    else
        att_scores_of(t, g, q, s, 1);
}

static void att_values_tile(const att *t, const att_group *g, att_span k, size_t first, size_t queries)
{
    const float *p = t->s + first * ATT_CHUNK;
    float *o = t->o + first * t->Dp;
    if (queries == 8)
        att_values_of(t, g, k, p, o, V16_ATT_SUMS >= 8 ? 8 : 1);
    else if (queries == 4)
        att_values_of(t, g, k, p, o, 4);
    else if (queries == 2)
        att_values_of(t, g, k, p, o, 2);
    else
        att_values_of(t, g, k, p, o, 1);
}

/* ---- a chunk ---- */

static void att_chunk_scores(const att *t, size_t c, size_t n_pages)
{
    for (size_t at = 0; at < n_pages; at += t->group) {
        const att_group g = att_open_group(t, false, c, at, n_pages);
        for (size_t i = 0, step; i < t->n; i += step) {
            step = att_tile(t->n - i);
            att_scores_tile(t, &g, i, step);
        }
    }
}

/* The largest of n scores; those up to the next multiple of 16 become -infinity. */
static float att_most(float *s, size_t n)
{
    const size_t padded = (n + 15) & ~(size_t)15;
    for (size_t i = n; i < padded; i++)
        s[i] = -__builtin_inff();
    v16 most = v16_load(s);
    for (size_t i = 16; i < padded; i += 16)
        most = v16_max(most, v16_load(s + i));
    return v16_most(most);
}

/* Scores become p; gives their sum. */
static float att_exp(float *s, size_t n, float most)
{
    v16 acc = v16_set1(0);
    const v16 m = v16_set1(most);
    for (size_t i = 0; i < n; i += 16) {
        const v16 p = v16_exp(v16_sub(v16_load(s + i), m));
        acc = v16_add(acc, p);
        v16_store(s + i, p);
    }
    return v16_sum(acc);
}

static void att_chunk_softmax(const att *t, size_t c)
{
    for (size_t i = 0; i < t->n; i++)
        t->m[i] = att_most(t->s + i * ATT_CHUNK, att_keys_of(t, c, i));
    for (size_t i = 0; i < t->n; i++)
        t->l[i] = att_exp(t->s + i * ATT_CHUNK, att_keys_of(t, c, i), t->m[i]);
}

/* The keys of a group for a tile whose rows end at different keys: together while all see them, then each by itself. */
static void att_tile_values(const att *t, const att_group *g, size_t c, size_t first, size_t queries)
{
    const size_t from = g->first * NBI_PAGE_TOKENS, end = from + g->n * NBI_PAGE_TOKENS;
    const size_t together = att_keys_of(t, c, first), last = att_keys_of(t, c, first + queries - 1);
    att_span k = {from, together < end ? together : end};
    if (k.t0 < k.t1) {
        att_values_tile(t, g, k, first, queries);
        k.t0 = k.t1;
    }
    for (size_t i = first; i < first + queries && k.t0 < end && together < last; i++) {
        const size_t n = att_keys_of(t, c, i);
        k.t1 = n < end ? n : end;
        if (k.t0 < k.t1)
            att_values_tile(t, g, k, i, 1);
    }
}

static void att_chunk_values(const att *t, size_t c, size_t n_pages)
{
    for (size_t at = 0; at < n_pages; at += t->group) {
        const att_group g = att_open_group(t, true, c, at, n_pages);
        for (size_t i = 0; g.scale[0] && i < t->n; i++)
            for (size_t p = 0; p < g.n; p++) {
                float *s = t->s + i * ATT_CHUNK + (at + p) * NBI_PAGE_TOKENS;
                v16_store(s, v16_mul(v16_load(s), v16_load(g.scale[p])));
            }
        for (size_t i = 0, step; i < t->n; i += step) {
            step = att_tile(t->n - i);
            att_tile_values(t, &g, c, i, step);
        }
    }
}

/* out, max and sum of n queries take in a chunk. */
static void att_merge(const att *t, const float *o, const float *m, const float *l, bool first)
{
    float a[NBI_CPU_ATT_QUERIES], b[NBI_CPU_ATT_QUERIES];
    if (first) {
        if (o == t->out) /* the only chunk: attend() */
            return;
        memcpy(t->out, o, t->n * t->Dp * sizeof *o);
        memcpy(t->max, m, t->n * sizeof *m);
        memcpy(t->sum, l, t->n * sizeof *l);
        return;
    }
    for (size_t i = 0; i < t->n; i += 16) {
        const size_t n = t->n - i < 16 ? t->n - i : 16;
        const v16 was = v16_load_n(t->max + i, n), here = v16_load_n(m + i, n), joint = v16_max(was, here),
                  x = v16_exp(v16_sub(was, joint)), y = v16_exp(v16_sub(here, joint));
        v16_store_n(a + i, x, n);
        v16_store_n(b + i, y, n);
        v16_store_n(t->max + i, joint, n);
        v16_store_n(t->sum + i, v16_fma(v16_load_n(l + i, n), y, v16_mul(v16_load_n(t->sum + i, n), x)), n);
    }
    for (size_t i = 0; i < t->n; i++) {
        const v16 x = v16_set1(a[i]), y = v16_set1(b[i]);
        float *out = t->out + i * t->Dp;
        for (size_t d = 0; d < t->Dp; d += 16)
            v16_store(out + d, v16_fma(v16_load(o + i * t->Dp + d), y, v16_mul(v16_load(out + d), x)));
    }
}

static void att_finish(const att *t)
{
    const nbi_cpu_attend *a = t->a;
    for (size_t i = 0; i < t->n; i++) {
        float *y = a->y + i / a->heads * a->ldy + i % a->heads * t->D;
        const v16 part = v16_set1(1.0f / t->sum[i]);
        for (size_t d = 0; d < t->D; d += 16)
            v16_store_n(y + d, v16_mul(v16_load(t->out + i * t->Dp + d), part), t->D - d < 16 ? t->D - d : 16);
    }
}

/* How nbi_cpu_attend_floats() is divided. */
static att att_open(const nbi_cpu_attend *a)
{
    const size_t D = a->kv->head_dim, Dp = (D + 15) & ~(size_t)15, Q = NBI_CPU_ATT_QUERIES;
    att t = {.a = a, .D = D, .Dp = Dp, .n = a->rows * a->heads, .group = ATT_GROUP};
    float *at = a->scratch;
    if (D > 64 && a->kv->type != NBI_KV_F32)
        t.group = 2;
    t.q = at;
    t.s = at += Q * Dp;
    t.o = at += Q * ATT_CHUNK;
    t.out = at += Q * Dp;
    t.pages = at += Q * Dp;
    t.m = at += ATT_GROUP * NBI_PAGE_TOKENS * Dp;
    t.l = at += Q;
    t.max = at += Q;
    t.sum = at + Q;
    return t;
}

/* A record of a->parts: what att_merge() takes. */
V16_INLINE float *att_record(const att *t, size_t c)
{
    return t->a->parts + c * nbi_cpu_attend_record(t->n, t->D);
}

/* The keys that come first, which nothing before them could ask for. */
static void att_ask_for_first(const att *t)
{
    const nbi_cpu_attend *a = t->a;
    const size_t keys = att_keys_of(t, a->c0, t->n - 1);
    for (size_t i = 0; i < t->group && i * NBI_PAGE_TOKENS < keys; i++)
        for (size_t at = 0; at < a->block_bytes; at += 64)
            att_ask_for(att_block(a, a->kv->k, a->c0 * CHUNK_PAGES + i) + at);
}

static void attend(const nbi_cpu_attend *a)
{
    att t = att_open(a);
    att_ask_for_first(&t);
    att_pack_queries(&t);
    if (a->c1 == 1 && !a->parts) { /* the only chunk: its results are those of all */
        t.out = t.o;
        t.max = t.m;
        t.sum = t.l;
    }
    for (size_t c = a->c0; c < a->c1; c++) {
        const size_t n_pages = (att_keys_of(&t, c, t.n - 1) + NBI_PAGE_TOKENS - 1) / NBI_PAGE_TOKENS;
        if (a->parts) {
            t.o = att_record(&t, c);
            t.m = t.o + t.n * t.Dp;
            t.l = t.m + t.n;
        }
        att_chunk_scores(&t, c, n_pages);
        att_chunk_softmax(&t, c);
        att_chunk_values(&t, c, n_pages);
        if (!a->parts)
            att_merge(&t, t.o, t.m, t.l, c == 0);
    }
    if (!a->parts)
        att_finish(&t);
}

static void attend_join(const nbi_cpu_attend *a)
{
    att t = att_open(a);
    for (size_t c = 0; c < a->c1; c++) {
        const float *o = att_record(&t, c), *m = o + t.n * t.Dp;
        att_merge(&t, o, m, m + t.n, c == 0);
    }
    att_finish(&t);
}
