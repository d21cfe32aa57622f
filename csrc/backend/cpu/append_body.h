/* A row of queries, keys and values on its way to attention: rotary embedding, the rotation of heads, keys by channel, and
 * what is stored, byte for byte as kv.c has it.  Included after rows_body.h. */
#include "backend/cpu/cpu.h"
#include "backend/kv.h"
#include "base/checked.h"
#include "base/dtype.h"

V16_INLINE size_t lanes_of(size_t left)
{
    return left < 16 ? left : 16;
}

/* x0' = x0 cos - x1 sin, x1' = x1 cos + x0 sin: each product rounded, then the sum. */
static void turn(float *x, const float *cos_sin, size_t half)
{
    for (size_t i = 0; i < half; i += 16) {
        const size_t n = lanes_of(half - i);
        const v16 c = v16_load_n(cos_sin + i, n), s = v16_load_n(cos_sin + half + i, n), x0 = v16_load_n(x + i, n),
                  x1 = v16_load_n(x + half + i, n);
        v16_store_n(x + i, v16_sub(v16_mul(x0, c), v16_mul(x1, s)), n);
        v16_store_n(x + half + i, v16_add(v16_mul(x1, c), v16_mul(x0, s)), n);
    }
}

/* Head h of the row, a query's or a key's, on the grid of the keys' channels. */
static void by_channel(const nbi_kv_layer *kv, float *x, size_t h, size_t n_heads)
{
    const bool key = h >= n_heads;
    const size_t D = kv->head_dim, at = (key ? h - n_heads : h * kv->n_kv_heads / n_heads) * D;
    for (size_t d = 0; d < D; d += 16) {
        const size_t n = lanes_of(D - d);
        const v16 here = v16_load_n(x + d, n), scale = v16_load_n(kv->k_scale + at + d, n);
        const v16 y = key ? v16_div(v16_sub(here, v16_load_n(kv->k_shift + at + d, n)), scale) : v16_mul(here, scale);
        v16_store_n(x + d, y, n);
    }
}

/* ---- kv.c on sixteen lanes ---- */

/* clamp(rne(x), lo, hi) for finite x and integers lo, hi: clamped first, which changes nothing and keeps the sum in range. */
V16_INLINE v16 round_within(v16 x, float lo, float hi)
{
    const v16 magic = v16_set1(0x1.8p23f);
    x = v16_min(v16_max(x, v16_set1(lo)), v16_set1(hi));
    return v16_sub(v16_add(x, magic), magic);
}

static void encode_half(const float *x, size_t n, uint16_t *to)
{
    for (size_t i = 0; i < n; i += 16) {
        const size_t m = lanes_of(n - i);
        v16_store_f16_n(to + i, v16_load_n(x + i, m), m);
    }
}

static void encode8(const float *x, size_t n, int8_t *q, float *scale)
{
    const uint32_t most = absmax_bits(x, n);
    float s;
    if (most >= 0x7f800000u) {
        memset(q, 0, n);
        *scale = __builtin_nanf("");
        return;
    }
    memcpy(&s, &most, 4);
    s = s / 127.0f;
    if (s < 0x1p-126f)
        s = 1;
    for (size_t i = 0; i < n; i += 16) {
        const size_t m = lanes_of(n - i);
        v16_store_i8_n(q + i, round_within(v16_div(v16_load_n(x + i, m), v16_set1(s)), -127, 127), m);
    }
    *scale = s;
}

/* Sixteen codes below 16, a byte each, to eight bytes: the low nibble first. */
V16_INLINE void store_nibbles(uint8_t *q, const uint8_t code[16], size_t n)
{
    uint8_t packed[8];
    for (int i = 0; i < 8; i++)
        packed[i] = (uint8_t)(code[2 * i] | code[2 * i + 1] << 4);
    memcpy(q, packed, n / 2);
}

/* A run of n elements, n even.  A run that is not full repeats its first element. */
static void encode4(const float *x, size_t n, uint8_t *q, uint16_t *s_m)
{
    float run[NBI_KV4_RUN];
    if (n < NBI_KV4_RUN) {
        for (size_t i = 0; i < NBI_KV4_RUN; i++)
            run[i] = x[i < n ? i : 0];
        x = run;
    }
    const v16 a = v16_load(x), b = v16_load(x + 16), minus = v16_set1(-1);
    const float lo = -v16_most(v16_max(v16_mul(a, minus), v16_mul(b, minus))), hi = v16_most(v16_max(a, b));
    const float m = nbi_f16_to_f32(nbi_f32_to_f16(lo + 0.0f)); /* no -0: which zero comes first must not matter */
    float s = nbi_f16_to_f32(nbi_f32_to_f16((hi - m) / 15.0f));
    if (absmax_bits(x, NBI_KV4_RUN) >= 0x7f800000u || !__builtin_isfinite(m) || !__builtin_isfinite(s)) {
        memset(q, 0, n / 2);
        s_m[0] = s_m[1] = nbi_f32_to_f16(__builtin_nanf(""));
        return;
    }
    if (s == 0)
        s = 1;
    for (size_t i = 0; i < n; i += 16) {
        int8_t code[16];
        v16_store_i8_n(code, round_within(v16_div(v16_sub(i ? b : a, v16_set1(m)), v16_set1(s)), 0, 15), 16);
        store_nibbles(q + i / 2, (const uint8_t *)code, lanes_of(n - i));
    }
    s_m[0] = nbi_f32_to_f16(s);
    s_m[1] = nbi_f32_to_f16(m);
}

/* A token's codes, and its scales where the type has them. */
static void encode(nbi_kv_type type, const float *x, size_t D, void *codes, void *scales)
{
    if (type == NBI_KV_F32)
        memcpy(codes, x, D * sizeof *x);
    else if (type == NBI_KV_F16)
        encode_half(x, D, codes);
    else if (type == NBI_KV_INT8)
        encode8(x, D, codes, scales);
    else
        for (size_t d = 0; d < D; d += NBI_KV4_RUN)
            encode4(x + d, D - d < NBI_KV4_RUN ? D - d : NBI_KV4_RUN, (uint8_t *)codes + d / 2,
                    (uint16_t *)scales + 2 * (d / NBI_KV4_RUN));
}

/* ---- into the cache ---- */

/* n units of `size` bytes become column `slot` of [n][16]. */
V16_INLINE void put_column(char *to, const char *from, size_t n, size_t size, size_t slot)
{
    to += slot * size;
    for (size_t i = 0; i < n; i++)
        memcpy(to + NBI_PAGE_TOKENS * size * i, from + size * i, size); /* a size that the compiler knows */
}

static void put_key(nbi_kv_type type, char *block, size_t slot, size_t D, const float *x)
{
    _Alignas(64) char codes[NBI_MAX_HEAD_DIM * sizeof(uint16_t)], scales[NBI_MAX_HEAD_DIM / NBI_KV4_RUN * 4];
    char *scales_at = block + nbi_kv_scales_at(type, (uint32_t)D);
    if (type == NBI_KV_F32) {
        put_column(block, (const char *)x, D, 4, slot);
        return;
    }
    encode(type, x, D, codes, scales);
    if (type == NBI_KV_F16) {
        put_column(block, codes, D, 2, slot);
    } else if (type == NBI_KV_INT8) {
        put_column(block, codes, D, 1, slot);
        put_column(scales_at, scales, 1, 4, slot);
    } else {
        put_column(block, codes, D / 2, 1, slot);
        put_column(scales_at, scales, 2 * nbi_kv4_runs((uint32_t)D), 2, slot);
    }
}

static void put_value(nbi_kv_type type, char *block, size_t slot, size_t D, const float *x)
{
    const size_t at = nbi_kv_scales_at(type, (uint32_t)D),
                 scales = type == NBI_KV_INT8 ? sizeof(float) : 2 * sizeof(uint16_t) * nbi_kv4_runs((uint32_t)D);
    encode(type, x, D, block + slot * (at / NBI_PAGE_TOKENS), block + at + slot * scales);
}

/* The lines that a row's keys and values go to are asked for while heads of the row before are turned: a column of a key
 * touches all lines of its block, and no prefetcher knows where a page lies.  Part h of n. */
V16_INLINE void ask_for_page(const nbi_cpu_append *a, size_t row, size_t h, size_t n)
{
    const size_t bytes = a->block_bytes * a->kv->n_kv_heads, first = (size_t)a->place[row].page * bytes;
    const size_t part = nbi_ceil_div(bytes, n), end = (h + 1) * part < bytes ? (h + 1) * part : bytes;
    const size_t token = a->block_bytes / NBI_PAGE_TOKENS, slot = a->place[row].pos % NBI_PAGE_TOKENS;
    for (size_t at = h * part / 64 * 64; at < end; at += 64)
        __builtin_prefetch((const char *)a->kv->k + first + at, 1);
    if (h < a->kv->n_kv_heads)
        for (size_t at = 0; at < token; at += 64)
            __builtin_prefetch((const char *)a->kv->v + first + h * a->block_bytes + slot * token + at, 1);
}

/* Rows r0 .. r1-1: [q heads][k heads][v heads], each of head_dim. */
static void append_rows(const nbi_cpu_append *a, size_t r0, size_t r1)
{
    const nbi_kv_layer *kv = a->kv;
    const size_t D = kv->head_dim, G = kv->n_kv_heads, H = a->n_heads, bytes = a->block_bytes;
    for (size_t h = 0; r0 < r1 && h < H + G; h++)
        ask_for_page(a, r0, h, H + G);
    for (size_t r = r0; r < r1; r++) {
        float *row = a->qkv + r * (H + 2 * G) * D;
        const size_t slot = a->place[r].pos % NBI_PAGE_TOKENS, at = (size_t)a->place[r].page * G * bytes;
        for (size_t h = 0; h < H + G; h++) {
            if (r + 1 < r1 && a->place[r + 1].page != a->place[r].page)
                ask_for_page(a, r + 1, h, H + G);
            turn(row + h * D, a->cos_sin + r * D, D / 2);
            if (kv->rotate)
                rotate_row(a->rotation, row + h * D);
            if (kv->k_scale)
                by_channel(kv, row + h * D, h, H);
        }
        for (size_t g = 0; g < G; g++) {
            put_key(kv->type, (char *)kv->k + at + g * bytes, slot, D, row + (H + g) * D);
            put_value(kv->type, (char *)kv->v + at + g * bytes, slot, D, row + (H + G + g) * D);
        }
    }
}
