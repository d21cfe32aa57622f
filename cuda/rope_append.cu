/* Rotary embedding of q and k, in place, then k and v into the paged cache
 *   qkv     T [rows][n_heads q, n_kv_heads k, n_kv_heads v][head_dim], 4-byte aligned; head_dim even, up to 256
 *   cache   blocks as backend.h lays them out; F16, INT8 or INT4; made from k and v as rounded to T, that is, as they stand in qkv
 *           afterwards: the codes are those of nbi_kv_encode() on these numbers
 *   launch  grid (rows, any), block 128: a warp takes a head, then the one 4 * gridDim.y further; rows with position -1 are skipped
 *   maths   pair (x0, x1) = (x[i], x[i + head_dim/2]): x0 c - x1 s and x1 c + x0 s, each product and each sum rounded, then rounded
 *           to T; c, s = cosf, sinf((float)position * inv_freq[i]), at most 2 ulp off
 *   traffic qkv's q and k in and out, v in; the cache out */
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

/* Rotates a head; copy (or NULL) gets it as fp32. */
template <typename T>
NB_DEVICE void rotate(T *x, uint32_t D, const float c[2][2], const float s[2][2], float *copy)
{
    const uint32_t half = D / 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t at = place(i);
        const bool aligned = D % 4 == 0;
        float x0[2], x1[2], y0[2], y1[2];
        if (at >= half)
            break;
        load_two(x, at, half, aligned, x0);
        load_two(x + half, at, half, aligned, x1);
#pragma unroll
        for (int e = 0; e < 2; e++) {
            y0[e] = x0[e] * c[i][e] - x1[e] * s[i][e];
            y1[e] = x1[e] * c[i][e] + x0[e] * s[i][e];
        }
        store_two(x, at, half, aligned, y0);
        store_two(x + half, at, half, aligned, y1);
        if (copy && aligned) {
            *(float2 *)(copy + at) = make_float2(y0[0], y0[1]);
            *(float2 *)(copy + half + at) = make_float2(y1[0], y1[1]);
        } else if (copy)
            for (uint32_t e = 0; e < 2; e++)
                if (at + e < half) {
                    copy[at + e] = y0[e];
                    copy[half + at + e] = y1[e];
                }
    }
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

template <typename T>
NB_DEVICE void rope_append(const nb_rope_append_args &a)
{
    __shared__ float heads[4][256];
    const uint32_t row = blockIdx.x, warp = threadIdx.x / 32, D = a.kv.head_dim, kv_heads = a.kv.n_kv_heads;
    const uint32_t width = a.n_heads + 2 * kv_heads;
    const int32_t pos = a.step.pos[row];
    if (pos < 0)
        return;
    float c[2][2], s[2][2];
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (place(i) < D / 2) {
            const float *f = a.step.inv_freq + place(i);
            const float2 two = D % 4 == 0 ? *(const float2 *)f : make_float2(f[0], place(i) + 1 < D / 2 ? f[1] : 0);
            sincosf((float)pos * two.x, &s[i][0], &c[i][0]);
            sincosf((float)pos * two.y, &s[i][1], &c[i][1]);
        }
    for (uint32_t h = blockIdx.y * 4 + warp; h < width; h += gridDim.y * 4) {
        T *x = (T *)a.qkv + ((size_t)row * width + h) * D;
        const bool is_v = h >= a.n_heads + kv_heads;
        float v[4][2], *head = heads[warp];
        if (!is_v)
            rotate(x, D, c, s, h < a.n_heads ? NULL : head);
        if (h < a.n_heads)
            continue;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[i][0] = v[i][1] = 0;
            if (place(i) < D) {
                if (is_v)
                    load_two(x, place(i), D, true, v[i]);
                else {
                    const float2 two = *(const float2 *)(head + place(i));
                    v[i][0] = two.x, v[i][1] = two.y;
                }
            }
        }
        __syncwarp();
        const int32_t page = a.step.pages[a.step.row_pages[row] + pos / PAGE];
        const uint32_t kv_head = h - a.n_heads - (is_v ? kv_heads : 0), slot = pos % PAGE;
        char *block = (char *)(is_v ? a.kv.v : a.kv.k) + ((size_t)page * kv_heads + kv_head) * a.kv.block_bytes;
        if (a.kv.type == NB_KV_F16)
            put_f16(block, slot, D, v);
        else if (a.kv.type == NB_KV_INT8)
            put_int8(block, slot, D, v);
        else
            put_int4(block, slot, D, v);
    }
}

extern "C" __global__ void __launch_bounds__(128) nb_rope_append_f16(const __grid_constant__ nb_rope_append_args a)
{
    rope_append<__half>(a);
}

extern "C" __global__ void __launch_bounds__(128) nb_rope_append_bf16(const __grid_constant__ nb_rope_append_args a)
{
    rope_append<__nv_bfloat16>(a);
}
