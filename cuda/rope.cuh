/* What the kernels that append to the KV cache share: two neighbours of a head for a lane, rotary embedding, and a head of one token
 * into its block, F16, INT8 or INT4, as nbi_kv_encode() does it. */
#ifndef NB_CUDA_ROPE_CUH
#define NB_CUDA_ROPE_CUH

#include "codes.cuh"

#define PAGE 16 /* NBI_PAGE_TOKENS */
#define RUN  32 /* NBI_KV4_RUN */

/* A lane has pairs (or elements) 2 lane + 64 i and the one behind it, i = 0, 1 (or 0 .. 3). */
NB_DEVICE uint32_t place(int i)
{
    return 64 * i + threadIdx.x % 32 * 2;
}

/* Two neighbours x[at], x[at + 1], as far as they are below end. */
template <typename T>
NB_DEVICE void load_two(const T *x, uint32_t at, uint32_t end, bool aligned, float v[2])
{
    if (aligned && at < end)
        nb_unpack2<T>(*(const uint32_t *)(x + at), v);
    else
        for (uint32_t e = 0; e < 2; e++)
            v[e] = at + e < end ? (float)x[at + e] : 0.0f;
}

/* Stores them as T; they become what T made of them. */
template <typename T>
NB_DEVICE void store_two(T *x, uint32_t at, uint32_t end, bool aligned, float v[2])
{
    const uint32_t word = nb_pack2<T>(v[0], v[1]);
    nb_unpack2<T>(word, v);
    if (aligned && at < end)
        *(uint32_t *)(x + at) = word;
    else
        for (uint32_t e = 0; e < 2; e++)
            if (at + e < end)
                x[at + e] = (T)v[e];
}

/* Sine and cosine of the pairs of a lane at a position. */
NB_DEVICE void angles(const float *inv_freq, uint32_t D, int32_t pos, float c[2][2], float s[2][2])
{
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (place(i) < D / 2) {
            const float *f = inv_freq + place(i);
            const float2 two = D % 4 == 0 ? *(const float2 *)f : make_float2(f[0], place(i) + 1 < D / 2 ? f[1] : 0);
            sincosf((float)pos * two.x, &s[i][0], &c[i][0]);
            sincosf((float)pos * two.y, &s[i][1], &c[i][1]);
        }
}

/* x, element d of head h of a row, a query's or a key's, on the grid of the keys' channels (backend.h, nbi_kv_layer). */
NB_DEVICE float by_channel(const nb_rope_append_args &a, uint32_t h, uint32_t d, float x)
{
    if (!a.k_scale || d >= a.kv.head_dim)
        return x;
    const bool key = h >= a.n_heads;
    const uint32_t at = (key ? h - a.n_heads : h * a.kv.n_kv_heads / a.n_heads) * a.kv.head_dim + d;
    const float s = __ldg(a.k_scale + at);
    return key ? (x - __ldg(a.k_shift + at)) / s : x * s;
}

/* ---- a head of one token into its block; v[i] are elements place(i) and the next; all lanes take part ---- */

NB_DEVICE void put_f16(char *block, uint32_t slot, uint32_t D, const float v[4][2])
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (place(i) < D)
            *(uint32_t *)(block + (slot * D + place(i)) * 2) = nb_pack2<__half>(v[i][0], v[i][1]);
}

NB_DEVICE void put_int8(char *block, uint32_t slot, uint32_t D, const float v[4][2])
{
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (place(i) < D)
            most = max(most, max(nb_abs_bits(v[i][0]), nb_abs_bits(v[i][1])));
    const nb_code_grid g = nb_grid_of(nb_warp_max(most), 0, 0);
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (place(i) < D) {
            const float four[4] = {v[i][0], v[i][1], 0, 0};
            *(uint16_t *)(block + slot * D + place(i)) = (uint16_t)nb_codes4(four, g);
        }
    if (threadIdx.x % 32 == 0)
        ((float *)(block + PAGE * D))[slot] = nb_stored_scale(g);
}

/* Elements 32 r .. 32 r + 31 are in 16 neighbouring lanes. */
NB_DEVICE void put_int4(char *block, uint32_t slot, uint32_t D, const float v[4][2])
{
    const uint32_t runs = (D + RUN - 1) / RUN;
    uint32_t *scales = (uint32_t *)(block + PAGE * D / 2) + slot * runs;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (64 * i >= D)
            break; /* whole warps */
        const uint32_t at = place(i), nan = 0x7e00;
        const bool inside = at < D;
        const bool bad = inside && max(nb_abs_bits(v[i][0]), nb_abs_bits(v[i][1])) >= 0x7f800000u;
        const uint32_t lanes = threadIdx.x % 32 / 16 ? 0xffff0000u : 0x0000ffffu;
        float hi = inside ? fmaxf(v[i][0], v[i][1]) : __int_as_float(0xff800000);
        float lo = inside ? fminf(v[i][0], v[i][1]) : __int_as_float(0x7f800000);
        hi = nb_warp_max<16>(hi);
        lo = -nb_warp_max<16>(-lo);
        const __half m16 = __float2half_rn(lo + 0.0f); /* no -0 */
        const float m = __half2float(m16);
        __half s16 = __float2half_rn((hi - m) / 15.0f);
        const bool none = (__ballot_sync(NB_ALL_LANES, bad) & lanes) || __hisinf(m16) || __hisinf(s16);
        if (__half2float(s16) == 0)
            s16 = __float2half_rn(1.0f);
        uint32_t code = 0;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const float q = fminf(fmaxf(rintf((v[i][e] - m) / __half2float(s16)), 0.0f), 15.0f);
            code |= (none ? 0 : (uint32_t)q) << 4 * e;
        }
        if (inside)
            block[(slot * D + at) / 2] = (char)code;
        if (inside && at % RUN == 0)
            scales[at / RUN] =
                none ? nan | nan << 16 : (uint32_t)__half_as_ushort(s16) | (uint32_t)__half_as_ushort(m16) << 16;
    }
}

/* v into the cache: head h of the row behind the queries, keys first. */
NB_DEVICE void put_head(const nb_kv_args &kv, const nb_step_args &step, uint32_t row, int32_t pos, uint32_t h,
                        const float v[4][2])
{
    const bool is_v = h >= kv.n_kv_heads;
    const int32_t page = step.pages[step.row_pages[row] + pos / PAGE];
    const uint32_t kv_head = h - (is_v ? kv.n_kv_heads : 0), slot = pos % PAGE, D = kv.head_dim;
    char *block = (char *)(is_v ? kv.v : kv.k) + ((size_t)page * kv.n_kv_heads + kv_head) * kv.block_bytes;
    if (kv.type == NB_KV_F16)
        put_f16(block, slot, D, v);
    else if (kv.type == NB_KV_INT8)
        put_int8(block, slot, D, v);
    else
        put_int4(block, slot, D, v);
}

#endif
