/* Rotary embedding of q and k, in place, then k and v into the paged cache
 *   qkv     T [rows][n_heads q, n_kv_heads k, n_kv_heads v][head_dim], 4-byte aligned; head_dim even, up to 256
 *   cache   blocks as backend.h lays them out; F16, INT8 or INT4; made from k and v as rounded to T, that is, as they stand in qkv
 *           afterwards: the codes are those of nbi_kv_encode() on these numbers
 *   launch  grid (rows, any), block 128: a warp takes a head, then the one 4 * gridDim.y further; rows with position -1 are skipped
 *   maths   pair (x0, x1) = (x[i], x[i + head_dim/2]): x0 c - x1 s and x1 c + x0 s, each product and each sum rounded, then rounded
 *           to T; c, s = cosf, sinf((float)position * inv_freq[i]), at most 2 ulp off
 *           keys by channel, where the arrays are there: after that, before the rounding
 *   traffic qkv's q and k in and out, v in; the cache out */
#include "rope.cuh"

/* Rotates head h of a row, x; copy (or NULL) gets it as fp32. */
template <typename T>
NB_DEVICE void rotate(const nb_rope_append_args &a, T *x, uint32_t h, const float c[2][2], const float s[2][2],
                      float *copy)
{
    const uint32_t D = a.kv.head_dim, half = D / 2;
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
            y0[e] = by_channel(a, h, at + e, x0[e] * c[i][e] - x1[e] * s[i][e]);
            y1[e] = by_channel(a, h, half + at + e, x1[e] * c[i][e] + x0[e] * s[i][e]);
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
    angles(a.step.inv_freq, D, pos, c, s);
    for (uint32_t h = blockIdx.y * 4 + warp; h < width; h += gridDim.y * 4) {
        T *x = (T *)a.qkv + ((size_t)row * width + h) * D;
        const bool is_v = h >= a.n_heads + kv_heads;
        float v[4][2], *head = heads[warp];
        if (!is_v)
            rotate(a, x, h, c, s, h < a.n_heads ? NULL : head);
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
        put_head(a.kv, a.step, row, pos, h - a.n_heads, v);
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
