/* Extremes of x [rows][k] of groups along k, of columns, or of everything; where a NaN or an infinity is (csrc/quant/range.h).
 *
 *   x       F32, F16 or BF16, any shape.  16-byte aligned and the run (group, k, or rows * k) a multiple of 8: eight elements a
 *           thread, otherwise one (TENSOR: eight, and a tail)
 *   lo, hi  keys (kernels.h): GROUP writes [rows][k/group], COLUMN [k] and TENSOR [1] are raised by atomic maximum
 *   launch  block 256.  GROUP: grid ceil(rows * k/group / (256/team)), a team of neighbouring threads has a group.
 *           COLUMN: grid (ceil(k/256), any) by eight, (ceil(k/32), any) by one: a warp has the columns of a block, block.y and the
 *           eight warps share the rows.  TENSOR: any grid
 *   order   maxima of integers: any order gives the same
 *   traffic size(x), by eight in the least possible sectors (counted on the stand-in driver), without bank conflicts; atomics: 2 a
 *           block (TENSOR), 2 a column and block (COLUMN)
 */
#include "quantize.cuh"

template <int dtype, int V>
static __device__ __forceinline__ void of_groups(const nb_range_args &a)
{
    const uint32_t lane = threadIdx.x % a.team, row_groups = a.k / a.group;
    const uint64_t group = (uint64_t)blockIdx.x * (NB_QUANT_THREADS / a.team) + threadIdx.x / a.team;
    const bool there = group < (uint64_t)a.rows * row_groups;
    nb_extremes e = {0, 0};
    if (there)
        for (uint32_t i = lane * V; i < a.group; i += a.team * V) {
            float v[V];
            nb_elements<dtype, V>(v, a.x, group * a.group + i);
            nb_extend<V>(e, v);
        }
    e = nb_team_extremes(e, a.team);
    if (!there || lane)
        return;
    a.lo[group] = e.lo;
    a.hi[group] = e.hi;
    if (a.bad && !nb_finite(e))
        atomicMax(a.bad, ~(uint32_t)(group / row_groups));
}

/* Extends by elements i .. i+V-1 and tells the rows of those that are not finite. */
template <int V>
static __device__ __forceinline__ void extend_checked(const nb_range_args &a, nb_extremes &e, const float v[V],
                                                      uint64_t i)
{
    nb_extremes these = {0, 0};
    nb_extend<V>(these, v);
    if (a.bad && !nb_finite(these))
        for (int j = 0; j < V; j++)
            if (!isfinite(v[j]))
                atomicMax(a.bad, ~(uint32_t)((i + j) / a.k));
    e.lo = max(e.lo, these.lo);
    e.hi = max(e.hi, these.hi);
}

template <int dtype, int V>
static __device__ __forceinline__ void of_tensor(const nb_range_args &a)
{
    const uint64_t n = (uint64_t)a.rows * a.k, threads = (uint64_t)gridDim.x * NB_QUANT_THREADS,
                   me = (uint64_t)blockIdx.x * NB_QUANT_THREADS + threadIdx.x;
    nb_extremes e = {0, 0};
    float v[V];
    for (uint64_t i = me * V; i + V <= n; i += threads * V) {
        nb_elements<dtype, V>(v, a.x, i);
        extend_checked<V>(a, e, v, i);
    }
    if (me < n % V) {
        nb_elements<dtype, 1>(v, a.x, n - 1 - me);
        extend_checked<1>(a, e, v, n - 1 - me);
    }
    e = nb_team_extremes(e, NB_QUANT_THREADS);
    if (threadIdx.x == 0) {
        atomicMax(a.lo, e.lo);
        atomicMax(a.hi, e.hi);
    }
}

/* A warp's extremes of 32 * V columns, in an order without bank conflicts for those who write (lane) and who read (column):
 * column c = 8 l + j lies at 36 j + l, which is bank 4 j + l. */
#define PITCH 36
static __shared__ uint32_t column_lo[8][8 * PITCH], column_hi[8][8 * PITCH];

template <int dtype, int V>
static __device__ __forceinline__ void of_columns(const nb_range_args &a)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = blockIdx.x * 32 * V,
                   column = first + lane * V;
    nb_extremes e[V];
#pragma unroll
    for (int j = 0; j < V; j++)
        e[j] = {0, 0};
    if (column < a.k)
        for (uint64_t row = blockIdx.y * 8 + warp; row < a.rows; row += gridDim.y * 8) {
            float v[V];
            nb_elements<dtype, V>(v, a.x, row * a.k + column);
#pragma unroll
            for (int j = 0; j < V; j++) {
                nb_extend<1>(e[j], v + j);
                if (a.bad && !isfinite(v[j]))
                    atomicMax(a.bad, ~(uint32_t)row);
            }
        }
#pragma unroll
    for (int j = 0; j < V; j++) {
        column_lo[warp][PITCH * j + lane] = e[j].lo;
        column_hi[warp][PITCH * j + lane] = e[j].hi;
    }
    __syncthreads();
    const uint32_t at = PITCH * (threadIdx.x % V) + threadIdx.x / V;
    if (threadIdx.x >= 32 * V || first + threadIdx.x >= a.k)
        return;
    nb_extremes all = {0, 0};
    for (int w = 0; w < 8; w++) {
        all.lo = max(all.lo, column_lo[w][at]);
        all.hi = max(all.hi, column_hi[w][at]);
    }
    atomicMax(a.lo + first + threadIdx.x, all.lo);
    atomicMax(a.hi + first + threadIdx.x, all.hi);
}

extern "C" __global__ void __launch_bounds__(NB_QUANT_THREADS) nb_range(const __grid_constant__ nb_range_args a)
{
    if (a.axis == NB_RANGE_TENSOR) {
        if (nb_by_eight(a.x, 8))
            NB_BY_TYPE(of_tensor, 8, a);
        else
            NB_BY_TYPE(of_tensor, 1, a);
    } else if (a.axis == NB_RANGE_COLUMN) {
        if (nb_by_eight(a.x, a.k))
            NB_BY_TYPE(of_columns, 8, a);
        else
            NB_BY_TYPE(of_columns, 1, a);
    } else {
        if (nb_by_eight(a.x, a.group))
            NB_BY_TYPE(of_groups, 8, a);
        else
            NB_BY_TYPE(of_groups, 1, a);
    }
}
