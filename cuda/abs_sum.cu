/* sums [k] += sum over rows of |x|, x [rows][k] (csrc/quant/inputs.c, which gives the same bits): what AWQ asks of activations.
 *
 *   x       F32, F16 or BF16, any rows and k; sums fp64
 *   launch  grid ceil(k/256), block 256: a thread has a column, so that a warp reads 32 neighbours of a row
 *   order   fp64, ascending rows: the host adds them so, and cuts streams where it likes
 *   traffic size(x), 16 bytes a column
 */
#include "quantize.cuh"

template <int dtype, int V>
static __device__ __forceinline__ void add(const nb_abs_sum_args &a)
{
    const uint32_t column = blockIdx.x * NB_QUANT_THREADS + threadIdx.x;
    if (column >= a.k)
        return;
    double sum = a.sums[column];
#pragma unroll 8
    for (uint32_t row = 0; row < a.rows; row++)
        sum += (double)fabsf(nb_element<dtype>(a.x, (uint64_t)row * a.k + column));
    a.sums[column] = sum;
}

extern "C" __global__ void __launch_bounds__(NB_QUANT_THREADS) nb_abs_sum(const __grid_constant__ nb_abs_sum_args a)
{
    NB_BY_TYPE(add, 1, a);
}
