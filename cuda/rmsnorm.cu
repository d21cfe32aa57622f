/* y = (x * r) * weight, r = 1 / sqrt(sum of x^2 / k + eps): the residual stream into activations, T and / or INT8 codes
 *   x       fp32 [rows][k]; weight fp32 [k]; both 16-byte aligned; k a multiple of 16
 *   out     codes.cuh; they are made from the values as rounded to T, so that they are those of quantize_rows on y
 *   launch  grid rows, block 256
 *   order   1024 sums: number i adds x[i]^2, x[i+1024]^2, ... from 0 with fma.  Four neighbours are joined as (0+1) +
 *           (2+3), these 256 by the butterflies of nb_block_sum.  It does not depend on rows.  Root and division are
 *           correctly rounded.
 *   traffic 4k + 2k and / or k_pad + 4 bytes a row; rows longer than 8192 are read two or three times */
#include "codes.cuh"

#define HELD 8 /* rows of up to 1024 * HELD elements stay in registers */

/* Reads quad i of the row. */
NB_DEVICE void load_quad(const float *row, uint32_t quad, float v[4])
{
    const float4 f = __ldg((const float4 *)row + quad);
    v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
}

NB_DEVICE void add_squares(const float v[4], float sum[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        sum[i] = fmaf(v[i], v[i], sum[i]);
}

/* Norms v, rounds it to T, writes it where wanted; the rounded values replace v.  Returns their largest bits. */
template <typename T>
NB_DEVICE uint32_t finish_quad(const nb_rmsnorm_args &a, size_t row, uint32_t quad, float r, float v[4])
{
    float w[4];
    uint32_t most = 0;
    load_quad(a.weight, quad, w);
#pragma unroll
    for (int i = 0; i < 4; i++)
        v[i] = v[i] * r * w[i];
    const uint2 words = nb_pack4<T>(v);
    if (a.out.y)
        *(uint2 *)((T *)a.out.y + row * a.k + quad * 4) = words;
    nb_unpack4<T>(words, v);
#pragma unroll
    for (int i = 0; i < 4; i++)
        most = max(most, nb_abs_bits(v[i]));
    return most;
}

template <typename T>
NB_DEVICE void rmsnorm(const nb_rmsnorm_args &a)
{
    __shared__ float sums[8];
    __shared__ uint32_t maxima[8];
    const size_t row = blockIdx.x;
    const float *x = a.x + row * a.k;
    const uint32_t t = threadIdx.x, lane = t % 32, quads = a.k / 4;
    const uint32_t k_pad = (a.k + NB_TILE_K - 1) / NB_TILE_K * NB_TILE_K, padded = k_pad / 4;
    const bool held = quads <= 256 * HELD;
    float keep[HELD][4], sum[4] = {0, 0, 0, 0};

    if (held) {
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if (t + 256 * i < quads)
                load_quad(x, t + 256 * i, keep[i]);
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if (t + 256 * i < quads)
                add_squares(keep[i], sum);
    } else {
        for (uint32_t q = t; q < quads; q += 256) {
            load_quad(x, q, keep[0]);
            add_squares(keep[0], sum);
        }
    }
    const float total = nb_block_sum<8>((sum[0] + sum[1]) + (sum[2] + sum[3]), sums);
    const float r = 1.0f / sqrtf(total / (float)a.k + a.eps);

    uint32_t most = 0;
    if (held) {
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if (t + 256 * i < quads)
                most = max(most, finish_quad<T>(a, row, t + 256 * i, r, keep[i]));
    } else {
        for (uint32_t q = t; q < quads; q += 256) {
            load_quad(x, q, keep[0]);
            most = max(most, finish_quad<T>(a, row, q, r, keep[0]));
        }
    }
    if (!a.out.q)
        return;

    const nb_code_grid g = nb_grid_of(nb_block_max<8>(most, maxima), 0, 0);
    int8_t *codes = a.out.q + row * k_pad;
    if (t == 0)
        a.out.scale[row] = nb_stored_scale(g);
    /* whole warps walk together, for the trade of words */
    if (held) {
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const uint32_t q = t + 256 * i;
            if (q - lane < padded)
                nb_store_quad(codes, q, q < quads ? nb_codes4(keep[i], g) : 0, q < padded);
        }
    } else {
        for (uint32_t q = t; q - lane < padded; q += 256) {
            uint32_t word = 0;
            if (q < quads) {
                load_quad(x, q, keep[0]);
                finish_quad<T>(a, row, q, r, keep[0]);
                word = nb_codes4(keep[0], g);
            }
            nb_store_quad(codes, q, word, q < padded);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) nb_rmsnorm_f16(const nb_rmsnorm_args a)
{
    rmsnorm<__half>(a);
}

extern "C" __global__ void __launch_bounds__(256) nb_rmsnorm_bf16(const nb_rmsnorm_args a)
{
    rmsnorm<__nv_bfloat16>(a);
}
