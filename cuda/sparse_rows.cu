/* y += S x, after a linear layer: single numbers beside its weights, by rows (CSR)
 *   row    [n+1]: output i has the entries row[i] .. row[i+1]-1
 *   entry  [nnz]: column in the low half word, value as half in the high one; columns ascend within a row, below k <= 65536
 *   x      T [rows][k];  y [rows][ldy] in T, or fp32 (residual and result are added to alike)
 *   order  for each element of y: fused multiply-adds in ascending columns from 0 in fp32, then one addition to y, rounded as y is
 *          stored.  Both kernels give the same bits.
 *
 * nb_sparse_few: up to 8 rows.  A warp has one output: its lanes fetch 32 entries and what they multiply at once, then lane r adds
 *   up row r from shared memory.
 *   launch grid ceil(n / 8), block 256
 *   traffic 4 bytes an entry, 32 a gathered x (a sector of the second-level cache)
 *
 * nb_sparse_many: any number of rows, 8 a block.  A thread has one output.  x passes through shared memory in tiles of 2048 columns,
 *   8 rows side by side, so that one load of 16 bytes fetches what an entry multiplies.
 *   launch grid (ceil(n / 256), ceil(rows / 8)), block 256
 *   traffic 4 bytes an entry and 8 rows, 2 bytes an x and 256 outputs */
#include "act.cuh"
#include "kernels.h"

#define ROWS 8
#define TILE 2048

NB_DEVICE float entry_value(uint32_t entry)
{
    return __half2float(__ushort_as_half((unsigned short)(entry >> 16)));
}

template <typename T>
NB_DEVICE void add_to(const nb_sparse_args &a, uint32_t row, uint32_t n, float v)
{
    const size_t at = (size_t)row * a.ldy + n;
    if (a.dst == NB_DST_ACT)
        ((uint16_t *)a.y)[at] = (uint16_t)nb_pack2<T>((float)((const T *)a.y)[at] + v, 0.0f);
    else
        ((float *)a.y)[at] += v;
}

template <typename T>
NB_DEVICE void sparse_few(const nb_sparse_args &a)
{
    __shared__ float values[8][32], xs[8][ROWS][33];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, n = blockIdx.x * 8 + warp;
    const uint32_t begin = n < a.n ? a.row[n] : 0, end = n < a.n ? a.row[n + 1] : 0;
    const T *x = (const T *)a.x;
    float acc = 0;
    for (uint32_t i0 = begin; i0 < end; i0 += 32) {
        const uint32_t count = min(32u, end - i0);
        if (lane < count) {
            const uint32_t e = a.entry[i0 + lane];
            values[warp][lane] = entry_value(e);
            for (uint32_t r = 0; r < a.rows; r++)
                xs[warp][r][lane] = (float)x[(size_t)r * a.k + (e & 0xffff)];
        }
        __syncwarp();
        if (lane < a.rows)
            for (uint32_t i = 0; i < count; i++)
                acc = __fmaf_rn(values[warp][i], xs[warp][lane][i], acc);
        __syncwarp();
    }
    if (begin < end && lane < a.rows)
        add_to<T>(a, lane, n, acc);
}

template <typename T>
NB_DEVICE void sparse_many(const nb_sparse_args &a)
{
    __shared__ uint4 tile[TILE];
    const uint32_t n = blockIdx.x * 256 + threadIdx.x, row0 = blockIdx.y * ROWS,
                   rows = min((uint32_t)ROWS, a.rows - row0);
    uint32_t i = n < a.n ? a.row[n] : 0;
    const uint32_t begin = i, end = n < a.n ? a.row[n + 1] : 0;
    const uint16_t *x = (const uint16_t *)a.x + (size_t)row0 * a.k;
    float acc[ROWS] = {};
    for (uint32_t k0 = 0; k0 < a.k; k0 += TILE) {
        const uint32_t k1 = min(a.k, k0 + TILE);
        for (uint32_t k = k0 + threadIdx.x; k < k1; k += 256) {
            uint32_t v[ROWS];
#pragma unroll
            for (uint32_t r = 0; r < ROWS; r++)
                v[r] = r < rows ? x[(size_t)r * a.k + k] : 0;
            tile[k - k0] = make_uint4(v[0] | v[1] << 16, v[2] | v[3] << 16, v[4] | v[5] << 16, v[6] | v[7] << 16);
        }
        __syncthreads();
        for (; i < end; i++) {
            const uint32_t e = a.entry[i], k = e & 0xffff;
            if (k >= k1)
                break;
            float f[ROWS];
            nb_unpack8<T>(tile[k - k0], f);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                acc[r] = __fmaf_rn(entry_value(e), f[r], acc[r]);
        }
        __syncthreads();
    }
    if (begin < end)
#pragma unroll
        for (uint32_t r = 0; r < ROWS; r++)
            if (r < rows)
                add_to<T>(a, row0 + r, n, acc[r]);
}

#define KERNELS(name, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(256) nb_sparse_few_##name(const nb_sparse_args a)                     \
    {                                                                                                                  \
        sparse_few<T>(a);                                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) nb_sparse_many_##name(const nb_sparse_args a)                    \
    {                                                                                                                  \
        sparse_many<T>(a);                                                                                             \
    }
KERNELS(f16, __half)
KERNELS(bf16, __nv_bfloat16)
