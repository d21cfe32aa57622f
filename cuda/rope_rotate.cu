/* rope_append.cu for a model whose queries and keys are rotated behind RoPE (base/rotation.h, order head_dim): scores stay as they
 * are, as T is orthogonal, and keys have no places that stick out
 *   all     as there; hartley fp32 [h][h], h the odd part of head_dim, NULL where it is 1
 *   maths   RoPE in fp32 as there, then T in fp32 in the order of operations of base/rotation.h, then one rounding to T
 *   traffic rope_append's; a stage of butterflies reads and writes the head in shared memory, log2(head_dim / h) of them */
#include "rope.cuh"

/* RoPE of a head into `to`, fp32. */
template <typename T>
NB_DEVICE void turn(const T *x, uint32_t D, const float c[2][2], const float s[2][2], float *to)
{
    const uint32_t half = D / 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t at = place(i);
        float x0[2], x1[2];
        if (at >= half)
            break;
        load_two(x, at, half, D % 4 == 0, x0);
        load_two(x + half, at, half, D % 4 == 0, x1);
#pragma unroll
        for (int e = 0; e < 2; e++)
            if (at + e < half) {
                to[at + e] = x0[e] * c[i][e] - x1[e] * s[i][e];
                to[half + at + e] = x1[e] * c[i][e] + x0[e] * s[i][e];
            }
    }
}

/* All lanes of a warp: x [D] in shared memory. */
NB_DEVICE void rotate_head(float *x, uint32_t D, uint32_t h, const float *hartley)
{
    const uint32_t lane = threadIdx.x % 32, m = D / h;
    float mixed[8];
    for (uint32_t len = 1; len < m; len *= 2) {
        __syncwarp();
        for (uint32_t b = lane; b < D / 2; b += 32) {
            const uint32_t at = b + (b & ~(len - 1)); /* twice the run that b is in, and b's place there */
            const float p = x[at], q = x[at + len];
            x[at] = p + q;
            x[at + len] = p - q;
        }
    }
    __syncwarp();
    if (h == 1)
        return;
#pragma unroll
    for (int e = 0; e < 8; e++) {
        const uint32_t at = lane + 32 * e, part = at / m, j = at % m;
        mixed[e] = 0;
        for (uint32_t s = 0; at < D && s < h; s++)
            mixed[e] = fmaf(__ldg(hartley + part * h + s), x[s * m + j], mixed[e]);
    }
    __syncwarp();
#pragma unroll
    for (int e = 0; e < 8; e++)
        if (lane + 32 * e < D)
            x[lane + 32 * e] = mixed[e];
    __syncwarp();
}

template <typename T>
NB_DEVICE void rope_rotate(const nb_rope_rotate_args &a)
{
    __shared__ float heads[4][256];
    const nb_rope_append_args &r = a.rope;
    const uint32_t row = blockIdx.x, warp = threadIdx.x / 32, D = r.kv.head_dim, kv_heads = r.kv.n_kv_heads;
    const uint32_t width = r.n_heads + 2 * kv_heads;
    const int32_t pos = r.step.pos[row];
    if (pos < 0)
        return;
    float c[2][2], s[2][2];
    angles(r.step.inv_freq, D, pos, c, s);
    for (uint32_t h = blockIdx.y * 4 + warp; h < width; h += gridDim.y * 4) {
        T *x = (T *)r.qkv + ((size_t)row * width + h) * D;
        const bool is_v = h >= r.n_heads + kv_heads;
        float v[4][2], *head = heads[warp];
        if (!is_v) {
            turn(x, D, c, s, head);
            rotate_head(head, D, a.h, a.hartley);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t at = place(i);
            v[i][0] = v[i][1] = 0;
            if (at >= D)
                continue;
            if (is_v)
                load_two(x, at, D, true, v[i]);
            else {
                v[i][0] = by_channel(r, h, at, head[at] * a.unit);
                v[i][1] = by_channel(r, h, at + 1, head[at + 1] * a.unit);
                store_two(x, at, D, true, v[i]);
            }
        }
        __syncwarp(); /* the head is read before the next one is written */
        if (h >= r.n_heads)
            put_head(r.kv, r.step, row, pos, h - r.n_heads, v);
    }
}

extern "C" __global__ void __launch_bounds__(128) nb_rope_rotate_f16(const __grid_constant__ nb_rope_rotate_args a)
{
    rope_rotate<__half>(a);
}

extern "C" __global__ void __launch_bounds__(128) nb_rope_rotate_bf16(const __grid_constant__ nb_rope_rotate_args a)
{
    rope_rotate<__nv_bfloat16>(a);
}
