/* Layers whose weights and activations are one bit each.
 *
 * nb_sign_rows: rows of T to signs, bit k % 32 of word k / 32 is 1 for x >= 0, and the mean of their magnitudes
 *   x      T [rows][k]; k a multiple of 16
 *   out    bits [rows][NB_XNOR_WORDS(k)], 0 beyond k; scale [rows], NaN for a row with a NaN or an infinity in it, or whose
 *          sum is beyond fp32
 *   launch grid ceil(rows / 8), block 256: a warp a row
 *   order  the CPU's: lane i of sixteen adds elements i, i + 16, ... in ascending order; lanes are joined by a tree, i with
 *          i + 8, i + 4, i + 2, i + 1
 *   traffic 2k + k/8 + 4 bytes a row
 *
 * nb_xnor: y[r][n] = (k - 2 popcount(w[n] ^ x[r])) * scale[n] * x_scale[r] (+ bias[n])
 *   x      bits and scales of nb_sign_rows; w bits [n][NB_XNOR_WORDS(k)], scales [n]; up to 3 layers that share x
 *   y      [rows][ldy]: T, fp32, or fp32 to which the result is added; any alignment
 *   launch grid (ceil(rows / NB_XNOR_ROWS), n_tiles of NB_XNOR_COLUMNS), block 256: a warp counts for four columns, a lane
 *          128 bits at a time; rows are the fast axis, so that blocks that run together share their weights
 *   order  none: integers; then three fp32 operations
 *   traffic weights ceil(rows / 8) times, through the second-level cache */
#include "weights.cuh"

template <typename T>
NB_DEVICE float nb_one(const T *x, uint32_t k)
{
    const uint16_t u = ((const uint16_t *)x)[k];
    float v[2];
    nb_unpack2<T>(u, v);
    return v[0];
}

template <typename T>
NB_DEVICE void sign_rows(const nb_sign_rows_args &a)
{
    const uint32_t row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32, words = NB_XNOR_WORDS(a.k);
    if (row >= a.rows)
        return;
    const T *x = (const T *)a.x + (size_t)row * a.k;
    float sum = 0;
#pragma unroll 4
    for (uint32_t i = 0; i < words; i++) {
        const uint32_t k = i * 32 + lane;
        const float v = k < a.k ? nb_one<T>(x, k) : 0, size = fabsf(v);
        const uint32_t bits = __ballot_sync(NB_ALL_LANES, k < a.k && v >= 0);
        sum = sum + size;
        sum = sum + __shfl_down_sync(NB_ALL_LANES, size, 16); /* of lanes 0..15; the others' sums are not used */
        if (lane == 0)
            a.bits[(size_t)row * words + i] = bits;
    }
#pragma unroll
    for (uint32_t step = 8; step; step /= 2)
        sum = sum + __shfl_down_sync(NB_ALL_LANES, sum, step);
    if (lane == 0) {
        const float mean = sum / (float)a.k;
        a.scale[row] = mean <= 0x1.fffffep127f ? mean : __int_as_float(0x7fc00000);
    }
}

extern "C" __global__ void __launch_bounds__(256) nb_sign_rows_f16(const nb_sign_rows_args a)
{
    sign_rows<__half>(a);
}

extern "C" __global__ void __launch_bounds__(256) nb_sign_rows_bf16(const nb_sign_rows_args a)
{
    sign_rows<__nv_bfloat16>(a);
}

/* count[r] of all lanes added up: lane 4r and the three behind it return that of row r. */
NB_DEVICE uint32_t nb_xnor_join(uint32_t count[NB_XNOR_ROWS], uint32_t lane)
{
#pragma unroll
    for (uint32_t half = 4, bit = 16; half; half /= 2, bit /= 2)
#pragma unroll
        for (uint32_t i = 0; i < half; i++) {
            const bool upper = lane & bit;
            const uint32_t send = upper ? count[i] : count[i + half], keep = upper ? count[i + half] : count[i];
            count[i] = keep + __shfl_xor_sync(NB_ALL_LANES, send, bit);
        }
    uint32_t sum = count[0];
    sum += __shfl_xor_sync(NB_ALL_LANES, sum, 2);
    return sum + __shfl_xor_sync(NB_ALL_LANES, sum, 1);
}

template <typename T>
NB_DEVICE void xnor(const nb_gemm_args &a)
{
    __shared__ uint32_t counts[NB_XNOR_ROWS][NB_XNOR_COLUMNS];
    const nb_place at = nb_place_of(a, blockIdx.y, NB_XNOR_COLUMNS);
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, row0 = blockIdx.x * NB_XNOR_ROWS;
    const uint32_t pieces = NB_XNOR_WORDS(a.k) / 4, rows = min(a.rows - row0, NB_XNOR_ROWS);
    const uint4 *x = (const uint4 *)a.x + (size_t)row0 * pieces;
    for (uint32_t i = 0; i < NB_XNOR_COLUMNS / 8; i++) {
        const uint32_t column = warp * (NB_XNOR_COLUMNS / 8) + i, n = min(at.n0 + column, at.p.n - 1);
        const uint4 *w = (const uint4 *)at.p.w + (size_t)n * pieces;
        uint32_t count[NB_XNOR_ROWS] = {};
        for (uint32_t c = lane; c < pieces; c += 32) {
            const uint4 u = __ldg(w + c);
#pragma unroll
            for (uint32_t r = 0; r < NB_XNOR_ROWS; r++)
                if (r < rows) {
                    const uint4 v = __ldg(x + (size_t)r * pieces + c);
                    count[r] += __popc(u.x ^ v.x) + __popc(u.y ^ v.y) + __popc(u.z ^ v.z) + __popc(u.w ^ v.w);
                }
        }
        const uint32_t sum = nb_xnor_join(count, lane);
        if (lane % 4 == 0)
            counts[lane / 4][column] = sum;
    }
    __syncthreads();
    const uint32_t r = warp, n = at.n0 + lane;
    if (r >= rows || n >= at.p.n)
        return;
    const float sum = (float)((int32_t)a.k - 2 * (int32_t)counts[r][lane]);
    const float y = nb_finish<int8_t>(sum * at.p.scales[n], a.x_scale[row0 + r], at.p.bias, n);
    nb_store_1<T>(a, (size_t)(row0 + r) * a.ldy + at.column + n, y);
}

extern "C" __global__ void __launch_bounds__(256) nb_xnor_f16(const nb_gemm_args a)
{
    xnor<__half>(a);
}

extern "C" __global__ void __launch_bounds__(256) nb_xnor_bf16(const nb_gemm_args a)
{
    xnor<__nv_bfloat16>(a);
}
