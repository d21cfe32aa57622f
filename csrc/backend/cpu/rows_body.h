/* Row operations on sixteen lanes: RMS norm, exp, SwiGLU, attention.  Included after linear_body.h.
 *
 * Sums over a row have a fixed shape: lane i takes elements i, i+16, ... in ascending order with fused multiply-adds
 * from 0, then the tree 8, 4, 2, 1 joins the lanes.  Lanes beyond the end add 0 and change nothing. */
#include "backend/cpu/cpu.h"
#include "backend/kv.h"

static void rmsnorm_row(const float *x, const float *weight, float eps, size_t k, float *y)
{
    v16 acc = v16_set1(0);
    size_t i = 0;
    for (; i + 16 <= k; i += 16)
        acc = v16_fma(v16_load(x + i), v16_load(x + i), acc);
    if (i < k) {
        v16 tail = v16_load_n(x + i, k - i);
        acc = v16_fma(tail, tail, acc);
    }
    const float r = 1.0f / __builtin_sqrtf(v16_sum(acc) / (float)k + eps);
    for (i = 0; i < k; i++)
        y[i] = x[i] * r * weight[i];
}

/* e^x.  x = n ln2 + r with n = rne(x / ln2), so |r| <= 0.3467; ln2 is split in two so that n * ln2_hi is exact.  e^r is
 * its Taylor polynomial of degree 7: the next term is below 0.3467^8/8! = 5.2e-9, a twelfth of an ulp.  2^n is two
 * factors, because n reaches 128 at the overflow and -150 in the subnormals; the last product rounds once.
 * Error: below 1 ulp for a normal result (the test takes 2 as the limit), half a subnormal step more below.
 * -inf gives 0, +inf gives +inf, a NaN stays one. */
V16_INLINE v16 v16_exp(v16 x)
{
    static const float c[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    const v16 magic = v16_set1(0x1.8p23f);
    v16 n, r, p, a, b, t;
    x = v16_max(v16_set1(-104.0f), x); /* this order of arguments keeps a NaN; e^-104 rounds to 0 */
    x = v16_min(v16_set1(89.0f), x);   /* e^89 overflows */
    t = v16_fma(x, v16_set1(0x1.715476p0f), magic);
    n = v16_sub(t, magic);
    r = v16_fma(n, v16_set1(-0x1.62e4p-1f), x); /* ln2 to 15 bits: n has 8, the product is exact */
    r = v16_fma(n, v16_set1(-0x1.7f7d1cp-20f), r);
    p = v16_set1(c[0]);
    for (int i = 1; i < 8; i++)
        p = v16_fma(p, r, v16_set1(c[i]));
    v16_pow2_halves(t, &a, &b);
    return v16_mul(v16_mul(p, a), b);
}

static void exp_n(const float *x, size_t n, float *y)
{
    for (size_t i = 0; i < n; i += 16) {
        size_t m = n - i < 16 ? n - i : 16;
        v16_store_n(y + i, v16_exp(v16_load_n(x + i, m)), m);
    }
}

/* y = (g / (1 + e^-g)) * u */
static void swiglu(const float *gate, const float *up, size_t n, float *y)
{
    const v16 one = v16_set1(1), minus = v16_set1(-1);
    for (size_t i = 0; i < n; i += 16) {
        size_t m = n - i < 16 ? n - i : 16;
        v16 g = v16_load_n(gate + i, m);
        v16 s = v16_div(g, v16_add(one, v16_exp(v16_mul(g, minus))));
        v16_store_n(y + i, v16_mul(s, v16_load_n(up + i, m)), m);
    }
}

/* ---- base/rotation.h: h parts of m = 2^p elements ---- */

/* The stages within sixteen elements, then those between sixteens; n = min(m, 16) is a power of two. */
static void butterflies(float *x, size_t m)
{
    const size_t n = m < 16 ? m : 16;
    for (size_t i = 0; i < m; i += 16) {
        v16 v = v16_load_n(x + i, n);
        if (n > 1)
            v = v16_butterfly(v, 1);
        if (n > 2)
            v = v16_butterfly(v, 2);
        if (n > 4)
            v = v16_butterfly(v, 4);
        if (n > 8)
            v = v16_butterfly(v, 8);
        v16_store_n(x + i, v, n);
    }
    for (size_t len = 16; len < m; len *= 2)
        for (size_t at = 0; at < m; at += 2 * len)
            for (size_t i = at; i < at + len; i += 16) {
                const v16 a = v16_load(x + i), b = v16_load(x + i + len);
                v16_store(x + i, v16_add(a, b));
                v16_store(x + i + len, v16_sub(a, b));
            }
}

/* Sixteen columns j at a time: their h elements are read, mixed and written before the next ones. */
static void mix_parts(float *x, size_t h, size_t m, const float *hartley)
{
    float mixed[NBI_CPU_PARTS * 16];
    const size_t n = m < 16 ? m : 16;
    for (size_t j = 0; j < m; j += 16) {
        for (size_t i = 0; i < h; i++) {
            v16 acc = v16_set1(0);
            for (size_t s = 0; s < h; s++)
                acc = v16_fma(v16_set1(hartley[i * h + s]), v16_load_n(x + s * m + j, n), acc);
            v16_store(mixed + i * 16, acc);
        }
        for (size_t i = 0; i < h; i++)
            v16_store_n(x + i * m + j, v16_load(mixed + i * 16), n);
    }
}

static void rotate_row(const nbi_cpu_rotation *r, float *x)
{
    for (size_t i = 0; i < r->h; i++)
        butterflies(x + i * r->m, r->m);
    if (r->h > 1)
        mix_parts(x, r->h, r->m, r->hartley);
    for (size_t i = 0; i < r->h * r->m; i++)
        x[i] *= r->unit;
}

/* ---- attention: one token, the query heads of one kv head ----
 *
 * For each chunk of NBI_ATTN_CHUNK keys (by absolute position): scores s = dot(q, k) * scale; m = max s; p = e^(s-m);
 * l = sum of p in the shape above, over keys; o[d] = sum of p * v[d] in ascending keys from 0.  Chunks are merged in
 * index order:  M' = max(M, m), a = e^(M-M'), b = e^(m-M'), L = l*b + L*a, O = o*b + O*a (O*a rounded, then fused).
 * y = O / L. */
#define ATT_HEADS 8 /* heads that pass over a page of keys while it is in the first-level cache */

typedef struct att_state {
    _Alignas(64) float q[ATT_HEADS][NBI_MAX_HEAD_DIM]; /* zero beyond head_dim */
    _Alignas(64) float out[ATT_HEADS][NBI_MAX_HEAD_DIM];
    _Alignas(64) float s[ATT_HEADS][NBI_ATTN_CHUNK]; /* scores, then p */
    _Alignas(64) float chunk[NBI_MAX_HEAD_DIM];
    float max[ATT_HEADS], sum[ATT_HEADS];
} att_state;

/* The block of keys (or values) of this kv head that holds position `pos`. */
V16_INLINE const char *kv_block(const nbi_cpu_attend *a, const void *cache, size_t pos)
{
    size_t page = (size_t)a->pages[pos / NBI_PAGE_TOKENS];
    return (const char *)cache + (page * a->kv->n_kv_heads + a->kv_head) * a->block_bytes;
}

/* Elements d .. d+n-1 of token `slot` of a block; d is a multiple of 16, lanes beyond n read as the code 0 does. */
V16_INLINE v16 load_kv(const char *block, size_t D, size_t slot, size_t d, size_t n, nbi_kv_type type)
{
    const size_t at = slot * D + d;
    unsigned char tail[16] = {0};
    if (type == NBI_KV_F32)
        return v16_load_n((const float *)block + at, n);
    if (type == NBI_KV_F16)
        return v16_load_f16_n((const uint16_t *)block + at, n);
    if (type == NBI_KV_INT8) {
        const int8_t *q = (const int8_t *)block + at;
        const float *s = (const float *)(block + nbi_kv_scales_at(type, (uint32_t)D)) + slot;
        if (n < 16)
            q = memcpy(tail, q, n);
        return v16_mul(v16_load_i8(q), v16_set1(*s));
    }
    const uint8_t *q = (const uint8_t *)block + at / 2;
    const uint16_t *s_m = (const uint16_t *)(block + nbi_kv_scales_at(type, (uint32_t)D)) +
                          2 * (slot * nbi_kv4_runs((uint32_t)D) + d / NBI_KV4_RUN);
    if (n < 16)
        q = memcpy(tail, q, n / 2);
    return v16_fma(v16_load_u4(q), v16_set1_f16(s_m[0]), v16_set1_f16(s_m[1]));
}

V16_INLINE void att_scores(const nbi_cpu_attend *a, att_state *st, size_t heads, size_t c0, size_t n, nbi_kv_type type)
{
    const size_t D = a->kv->head_dim, full = D & ~(size_t)15;
    for (size_t t0 = 0; t0 < n; t0 += NBI_PAGE_TOKENS) {
        const char *keys = kv_block(a, a->kv->k, c0 + t0);
        size_t nt = n - t0 < NBI_PAGE_TOKENS ? n - t0 : NBI_PAGE_TOKENS;
        for (size_t h = 0; h < heads; h++)
            for (size_t t = 0; t < nt; t++) {
                v16 acc = v16_set1(0);
                size_t d = 0;
                for (; d < full; d += 16)
                    acc = v16_fma(v16_load(st->q[h] + d), load_kv(keys, D, t, d, 16, type), acc);
                if (d < D)
                    acc = v16_fma(v16_load(st->q[h] + d), load_kv(keys, D, t, d, D - d, type), acc);
                st->s[h][t0 + t] = v16_sum(acc) * a->scale;
            }
    }
}

/* Turns the n scores at s (room for a multiple of 16) into p; gives their max and the sum of p. */
static void att_softmax(float *s, size_t n, float *max, float *sum)
{
    const size_t padded = (n + 15) & ~(size_t)15;
    float lane[16], m;
    for (size_t t = n; t < padded; t++)
        s[t] = -__builtin_inff();
    v16 most = v16_load(s), acc = v16_set1(0);
    for (size_t t = 16; t < padded; t += 16)
        most = v16_max(most, v16_load(s + t));
    v16_store(lane, most);
    m = lane[0];
    for (int i = 1; i < 16; i++)
        m = m > lane[i] ? m : lane[i];
    for (size_t t = 0; t < padded; t += 16) {
        v16 p = v16_exp(v16_sub(v16_load(s + t), v16_set1(m)));
        acc = v16_add(acc, p);
        v16_store(s + t, p);
    }
    *max = m;
    *sum = v16_sum(acc);
}

/* out[d0 ..] = sum over n keys of p * v, for B blocks of 16 (the last one `last` wide). */
V16_INLINE void att_values(const nbi_cpu_attend *a, const float *p, size_t c0, size_t n, size_t d0, int B, size_t last,
                           nbi_kv_type type, float *out)
{
    v16 o[4];
    UNROLL for (int b = 0; b < B; b++) o[b] = v16_set1(0);
    for (size_t t0 = 0; t0 < n; t0 += NBI_PAGE_TOKENS) {
        const char *values = kv_block(a, a->kv->v, c0 + t0);
        size_t nt = n - t0 < NBI_PAGE_TOKENS ? n - t0 : NBI_PAGE_TOKENS;
        for (size_t t = 0; t < nt; t++) {
            v16 pt = v16_set1(p[t0 + t]);
            UNROLL for (int b = 0; b < B; b++) o[b] = v16_fma(
                pt, load_kv(values, a->kv->head_dim, t, d0 + 16 * (size_t)b, b == B - 1 ? last : 16, type), o[b]);
        }
    }
    UNROLL for (int b = 0; b < B; b++) v16_store(out + d0 + 16 * (size_t)b, o[b]);
}

/* O and L of head h take in the chunk at st->chunk with max m and sum l. */
V16_INLINE void att_merge(att_state *st, size_t h, size_t padded, float m, float l, bool first)
{
    if (first) {
        memcpy(st->out[h], st->chunk, padded * sizeof(float));
        st->max[h] = m;
        st->sum[h] = l;
        return;
    }
    float joint = st->max[h] > m ? st->max[h] : m, d[2] = {st->max[h] - joint, m - joint};
    exp_n(d, 2, d);
    const v16 a = v16_set1(d[0]), b = v16_set1(d[1]);
    for (size_t i = 0; i < padded; i += 16)
        v16_store(st->out[h] + i, v16_fma(v16_load(st->chunk + i), b, v16_mul(v16_load(st->out[h] + i), a)));
    st->max[h] = joint;
    st->sum[h] = __builtin_fmaf(l, d[1], st->sum[h] * d[0]);
}

V16_INLINE void att_heads(const nbi_cpu_attend *a, size_t h0, size_t heads, nbi_kv_type type)
{
    const size_t D = a->kv->head_dim, padded = (D + 15) & ~(size_t)15;
    att_state st;
    for (size_t h = 0; h < heads; h++) {
        memset(st.q[h], 0, sizeof st.q[h]);
        memcpy(st.q[h], a->q + (h0 + h) * D, D * sizeof(float));
    }
    for (size_t c0 = 0; c0 < a->len; c0 += NBI_ATTN_CHUNK) {
        size_t n = a->len - c0 < NBI_ATTN_CHUNK ? a->len - c0 : NBI_ATTN_CHUNK;
        att_scores(a, &st, heads, c0, n, type);
        for (size_t h = 0; h < heads; h++) {
            float m, l;
            size_t d0 = 0;
            att_softmax(st.s[h], n, &m, &l);
            for (; D - d0 >= 64; d0 += 64)
                att_values(a, st.s[h], c0, n, d0, 4, 16, type, st.chunk);
            for (; d0 < D; d0 += 16)
                att_values(a, st.s[h], c0, n, d0, 1, D - d0 < 16 ? D - d0 : 16, type, st.chunk);
            att_merge(&st, h, padded, m, l, c0 == 0);
        }
    }
    for (size_t h = 0; h < heads; h++)
        for (size_t d = 0; d < D; d++)
            a->y[(h0 + h) * D + d] = st.out[h][d] / st.sum[h];
}

static void attend(const nbi_cpu_attend *a)
{
    for (size_t h = 0; h < a->heads; h += ATT_HEADS) {
        size_t n = a->heads - h < ATT_HEADS ? a->heads - h : ATT_HEADS;
        switch (a->kv->type) { /* four bodies, each of one type */
        case NBI_KV_F32:
            att_heads(a, h, n, NBI_KV_F32);
            break;
        case NBI_KV_F16:
            att_heads(a, h, n, NBI_KV_F16);
            break;
        case NBI_KV_INT8:
            att_heads(a, h, n, NBI_KV_INT8);
            break;
        default:
            att_heads(a, h, n, NBI_KV_INT4);
            break;
        }
    }
}
