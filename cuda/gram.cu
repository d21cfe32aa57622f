/* h [k][k] += X^T X, x [rows][k] (csrc/quant/gram.c, which gives the same bits).  h is symmetric and stays so.
 *
 *   x       F32, F16 or BF16, any rows and k; h fp32, 16-byte aligned
 *   launch  grid T (T + 1) / 2 with T = ceil(k/64), block 256: a block has a tile of 64 x 64 on or below the diagonal, a thread
 *           4 x 4 of it, and writes it and its mirror image
 *   shared  8 KiB: 16 rows of the two runs of 64 columns
 *   order   rows are cut every NB_GRAM_ROWS; part = fma(x_i, x_j, part) from 0 in ascending rows; h = h + part, in order.
 *           A product does not care which factor comes first, so that the mirror image has the same bits
 *   traffic k/64 reads of x (from the second-level cache but for one) and two of h
 */
#include "quantize.cuh"

#define TILE 64
#define ROWS 16 /* staged at once; divides NB_GRAM_ROWS */

static __shared__ float side[2][ROWS][TILE]; /* [0] columns i of the tile, [1] columns j */

template <int dtype>
static __device__ __forceinline__ void stage(const nb_gram_args &a, uint32_t row, uint32_t i0, uint32_t j0)
{
    const uint32_t c = threadIdx.x % TILE;
#pragma unroll
    for (uint32_t r = threadIdx.x / TILE; r < ROWS; r += NB_QUANT_THREADS / TILE) {
        const bool there = row + r < a.rows; /* zeros beyond change no part (but a -0, which h + part does not see) */
        const uint64_t at = (uint64_t)(row + r) * a.k;
        side[0][r][c] = there && i0 + c < a.k ? nb_element<dtype>(a.x, at + i0 + c) : 0.0f;
        side[1][r][c] = there && j0 + c < a.k ? nb_element<dtype>(a.x, at + j0 + c) : 0.0f;
    }
}

static __device__ __forceinline__ void multiply(float part[4][4], uint32_t ti, uint32_t tj)
{
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const float4 i = *(const float4 *)&side[0][r][4 * ti], j = *(const float4 *)&side[1][r][4 * tj];
        const float x[4] = {i.x, i.y, i.z, i.w}, y[4] = {j.x, j.y, j.z, j.w};
#pragma unroll
        for (int p = 0; p < 4; p++)
#pragma unroll
            for (int q = 0; q < 4; q++)
                part[p][q] = fmaf(x[p], y[q], part[p][q]);
    }
}

/* The tile of block b in the triangle: rows of tiles have 1, 2, 3 .. of them. */
static __device__ __forceinline__ uint2 tile_of(uint32_t b)
{
    uint32_t i = (uint32_t)((sqrtf(8.0f * (float)b + 1.0f) - 1.0f) * 0.5f);
    while (i * (i + 1) / 2 > b) /* the root is rounded */
        i--;
    while ((i + 1) * (i + 2) / 2 <= b)
        i++;
    return make_uint2(i, b - i * (i + 1) / 2);
}

/* Four neighbours of a row of h: columns from..from+3, of which some may lie beyond k. */
static __device__ __forceinline__ void load4(float v[4], const nb_gram_args &a, uint32_t row, uint32_t from)
{
    const float *p = a.h + (uint64_t)row * a.k + from;
    if (row < a.k && from < a.k && a.k % 4 == 0) {
        const float4 f = *(const float4 *)p;
        v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
        return;
    }
#pragma unroll
    for (int q = 0; q < 4; q++)
        v[q] = row < a.k && from + q < a.k ? p[q] : 0.0f;
}

static __device__ __forceinline__ void store4(const nb_gram_args &a, uint32_t row, uint32_t from, float x, float y,
                                              float z, float w)
{
    float *p = a.h + (uint64_t)row * a.k + from;
    const float v[4] = {x, y, z, w};
    if (row >= a.k || from >= a.k)
        return;
    if (a.k % 4 == 0) {
        *(float4 *)p = make_float4(x, y, z, w);
        return;
    }
#pragma unroll
    for (int q = 0; q < 4; q++)
        if (from + q < a.k)
            p[q] = v[q];
}

template <int dtype, int V>
static __device__ __forceinline__ void gram(const nb_gram_args &a)
{
    const uint2 tile = tile_of(blockIdx.x);
    const uint32_t i0 = tile.x * TILE, j0 = tile.y * TILE, ti = threadIdx.x / 16, tj = threadIdx.x % 16;
    const uint32_t i = i0 + 4 * ti, j = j0 + 4 * tj;
    float h[4][4], part[4][4] = {};
#pragma unroll
    for (int p = 0; p < 4; p++)
        load4(h[p], a, i + p, j);
    for (uint32_t row = 0; row < a.rows; row += ROWS) {
        __syncthreads();
        stage<dtype>(a, row, i0, j0);
        __syncthreads();
        multiply(part, ti, tj);
        if ((row + ROWS) % NB_GRAM_ROWS && row + ROWS < a.rows)
            continue;
#pragma unroll
        for (int p = 0; p < 4; p++)
#pragma unroll
            for (int q = 0; q < 4; q++) {
                h[p][q] += part[p][q];
                part[p][q] = 0.0f;
            }
    }
#pragma unroll
    for (int p = 0; p < 4; p++) {
        store4(a, i + p, j, h[p][0], h[p][1], h[p][2], h[p][3]);
        if (i0 != j0)
            store4(a, j + p, i, h[0][p], h[1][p], h[2][p], h[3][p]);
    }
}

extern "C" __global__ void __launch_bounds__(NB_QUANT_THREADS) nb_gram(const __grid_constant__ nb_gram_args a)
{
    NB_BY_TYPE(gram, 1, a);
}
