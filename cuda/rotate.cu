/* Rotations of rows beside linear layers: T of base/rotation.h, K = h * m, h odd and m = 2^p, in its order of operations
 *
 * nb_rotate_in: x = T (signs * x)
 *   x       T [rows][k], 16-byte aligned, in place; k a multiple of 16
 *   out     codes.cuh: q and scale, or NULL; they are made from the values as rounded to T
 * nb_rotate_out: y = (the old y +) signs * (T x) + bias, or x + bias where signs is NULL
 *   x       fp32 [rows][k], 16-byte aligned, k a multiple of 16; bias fp32 [k] or NULL
 *   y       T or fp32 by dst; columns 0 .. k-1 of rows of ldy elements, ldy and the address for whole pieces of 4
 *
 *   launch  grid rows, block 256, NB_ROTATE_SHARED(k) bytes of shared memory: a row in fp32
 *   order   p stages of butterflies, sixteen elements a thread and four stages at a time: which stages are in registers together
 *           changes no bit; where h > 1 sums over the parts in ascending order by fma from 0; one product with unit
 *   traffic in: 2k in and out, and k_pad + 4 (the row is read back for its codes); out: 4k in, 2k or 4k (8k where y is added to)
 *           hartley: h * h * 4 from the second-level cache a row.  k (p + h) operations a row: little beside a layer's k n */
#include "codes.cuh"

extern __shared__ __align__(16) float held[];

/* Where element i is held: pieces of four stay together, and a warp's accesses spread over the banks, whether its lanes are
 * neighbours or sixteen apart. */
NB_DEVICE uint32_t place(uint32_t i)
{
    return i ^ (i >> 3 & 0x1c);
}

/* Stages of butterflies at distance 1, 2, 4 .. n/2. */
template <int n>
NB_DEVICE void butterflies(float v[n])
{
#pragma unroll
    for (int len = 1; len < n; len *= 2)
#pragma unroll
        for (int i = 0; i < n; i++)
            if (!(i & len)) {
                const float a = v[i], b = v[i + len];
                v[i] = a + b;
                v[i + len] = a - b;
            }
}

/* Elements 16 o .. 16 o + 15, as they come from memory. */
NB_DEVICE void begin(uint32_t o, float v[16])
{
    butterflies<16>(v);
#pragma unroll
    for (int i = 0; i < 16; i += 4)
        *(float4 *)(held + place(16 * o + i)) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
}

/* The stages at distance len .. len * R / 2. */
template <int R>
NB_DEVICE void stages(uint32_t k, uint32_t len)
{
    __syncthreads();
    for (uint32_t t = threadIdx.x; t < k / R; t += 256) {
        const uint32_t at = (t & ~(len - 1)) * R + (t & (len - 1));
        float v[R];
#pragma unroll
        for (int i = 0; i < R; i++)
            v[i] = held[place(at + i * len)];
        butterflies<R>(v);
#pragma unroll
        for (int i = 0; i < R; i++)
            held[place(at + i * len)] = v[i];
    }
}

/* Four parts of four columns: elements (i0 + r) * m + 4 quad + e. */
NB_DEVICE void mix(const nb_rotation &r, uint32_t i0, uint32_t quad, float sum[4][4])
{
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            sum[i][e] = 0;
    for (uint32_t s = 0; s < r.h; s++) {
        const float4 x = *(const float4 *)(held + place(s * r.m + 4 * quad));
        const float v[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float c = __ldg(r.hartley + min(i0 + i, r.h - 1) * r.h + s);
#pragma unroll
            for (int e = 0; e < 4; e++)
                sum[i][e] = fmaf(c, v[e], sum[i][e]);
        }
    }
}

/* emit(quad, v): elements 4 quad .. 4 quad + 3 of T of what begin() was given. */
template <typename Emit>
NB_DEVICE void finish(const nb_rotation &r, uint32_t k, Emit emit)
{
    for (uint32_t len = 16; len < r.m; len *= 16) {
        if (r.m / len >= 16)
            stages<16>(k, len);
        else if (r.m / len == 8)
            stages<8>(k, len);
        else if (r.m / len == 4)
            stages<4>(k, len);
        else
            stages<2>(k, len);
    }
    __syncthreads();
    const uint32_t quads = r.m / 4;
    for (uint32_t t = threadIdx.x; t < quads * ((r.h + 3) / 4); t += 256) {
        const uint32_t quad = t % quads, i0 = t / quads * 4;
        float v[4][4];
        if (r.h == 1) {
            const float4 x = *(const float4 *)(held + place(4 * quad));
            v[0][0] = x.x, v[0][1] = x.y, v[0][2] = x.z, v[0][3] = x.w;
        } else
            mix(r, i0, quad, v);
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (i0 + i < r.h) {
#pragma unroll
                for (int e = 0; e < 4; e++)
                    v[i][e] *= r.unit;
                emit((i0 + i) * quads + quad, v[i]);
            }
    }
}

NB_DEVICE float signed_as(float x, int8_t sign)
{
    return sign < 0 ? -x : x;
}

template <typename T>
NB_DEVICE void rotate_in(const nb_rotate_in_args &a)
{
    T *row = (T *)a.x + (size_t)blockIdx.x * a.k;
    const uint32_t octets = a.k / 8, padded = (a.k + NB_TILE_K - 1) / NB_TILE_K * (NB_TILE_K / 8);
    const uint32_t lane = threadIdx.x % 32;
    uint32_t most = 0;
    for (uint32_t o = threadIdx.x; o < a.k / 16; o += 256) {
        const int4 signs = __ldg((const int4 *)a.r.signs + o);
        float v[16];
        nb_unpack8<T>(((const uint4 *)row)[2 * o], v);
        nb_unpack8<T>(((const uint4 *)row)[2 * o + 1], v + 8);
        const int8_t *s = (const int8_t *)&signs;
#pragma unroll
        for (int i = 0; i < 16; i++)
            v[i] = signed_as(v[i], s[i]);
        begin(o, v);
    }
    finish(a.r, a.k, [&](uint32_t quad, float v[4]) {
        const uint2 words = nb_pack4<T>(v);
        ((uint2 *)row)[quad] = words;
        nb_unpack4<T>(words, v);
#pragma unroll
        for (int i = 0; i < 4; i++)
            most = max(most, nb_abs_bits(v[i]));
    });
    if (!a.out.q)
        return;
    __syncthreads(); /* what is held has been read */
    const nb_code_grid g = nb_grid_of(nb_block_max<8>(most, (uint32_t *)held), 0, 0);
    int8_t *q = a.out.q + (size_t)blockIdx.x * padded * 8;
    if (threadIdx.x == 0)
        a.out.scale[blockIdx.x] = nb_stored_scale(g);
    for (uint32_t o = threadIdx.x; o - lane < padded; o += 256) /* whole warps walk together, for the trade of words */
        nb_codes_of_octet<T>(q, o, octets, padded, o < octets ? ((const uint4 *)row)[o] : make_uint4(0, 0, 0, 0), g);
}

template <typename T>
NB_DEVICE void rotate_out(const nb_rotate_out_args &a)
{
    const float *row = a.x + (size_t)blockIdx.x * a.k;
    const size_t y0 = (size_t)blockIdx.x * a.ldy;
    const auto put = [&](uint32_t quad, float v[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[i] = a.r.signs ? signed_as(v[i], a.r.signs[4 * quad + i]) : v[i];
            v[i] = a.bias ? v[i] + a.bias[4 * quad + i] : v[i];
        }
        if (a.dst == NB_DST_ACT) {
            *(uint2 *)((T *)a.y + y0 + 4 * quad) = nb_pack4<T>(v);
            return;
        }
        float4 *y = (float4 *)((float *)a.y + y0 + 4 * quad);
        if (a.dst == NB_DST_RESIDUAL) {
            const float4 old = *y;
            v[0] = old.x + v[0], v[1] = old.y + v[1], v[2] = old.z + v[2], v[3] = old.w + v[3];
        }
        *y = make_float4(v[0], v[1], v[2], v[3]);
    };
    if (!a.r.signs) {
        for (uint32_t q = threadIdx.x; q < a.k / 4; q += 256) {
            const float4 x = __ldg((const float4 *)row + q);
            float v[4] = {x.x, x.y, x.z, x.w};
            put(q, v);
        }
        return;
    }
    for (uint32_t o = threadIdx.x; o < a.k / 16; o += 256) {
        float v[16];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float4 x = __ldg((const float4 *)row + 4 * o + i);
            v[4 * i] = x.x, v[4 * i + 1] = x.y, v[4 * i + 2] = x.z, v[4 * i + 3] = x.w;
        }
        begin(o, v);
    }
    finish(a.r, a.k, put);
}

extern "C" __global__ void __launch_bounds__(256) nb_rotate_in_f16(const nb_rotate_in_args a)
{
    rotate_in<__half>(a);
}

extern "C" __global__ void __launch_bounds__(256) nb_rotate_in_bf16(const nb_rotate_in_args a)
{
    rotate_in<__nv_bfloat16>(a);
}

extern "C" __global__ void __launch_bounds__(256) nb_rotate_out_f16(const nb_rotate_out_args a)
{
    rotate_out<__half>(a);
}

extern "C" __global__ void __launch_bounds__(256) nb_rotate_out_bf16(const nb_rotate_out_args a)
{
    rotate_out<__nv_bfloat16>(a);
}
