/* The clip of each group that loses least, of `candidates` of them (csrc/quant/clip.c, which gives the same bits).
 *
 *   x       F32, F16 or BF16 [rows][k], any rows, k, group (which divides k)
 *   lo, hi  fp32 [rows][k/group] the best clip; error its squared error in units of the widest clip's scale squared.  NaN for a
 *           group that holds a NaN or an infinity
 *   launch  grid ceil(rows * k/group / 8), block 256: a warp has a group
 *   order   lane l adds the squares of elements l, l+32, .. from 0, each product and sum rounded; lanes are joined by a tree, l with
 *           l+16, +8, +4, +2, +1.  Candidates are compared in order, the first least wins
 *   traffic size(x) from memory; a group is read candidates/8 times from a cache.  The division is what it costs
 */
#include "quantize.cuh"

#define AT_ONCE 8 /* candidates whose sums a thread holds */

struct search {
    float lo, hi, scale0, best, error; /* best: the factor of the best clip */
};

/* The sums of AT_ONCE candidates, whose grids lanes first .. first+AT_ONCE-1 hold. */
template <int dtype>
static __device__ __forceinline__ void squares(const nb_clip_search_args &a, uint64_t start, const nb_grid &mine,
                                               int first, float sum[AT_ONCE])
{
    float s[AT_ONCE], low[AT_ONCE], high[AT_ONCE];
#pragma unroll
    for (int c = 0; c < AT_ONCE; c++) {
        const int32_t zero = __shfl_sync(NB_ALL_LANES, mine.zero, first + c);
        s[c] = __shfl_sync(NB_ALL_LANES, mine.scale, first + c);
        low[c] = (float)(mine.qmin - zero);
        high[c] = (float)(mine.qmax - zero);
        sum[c] = 0;
    }
    for (uint32_t i = threadIdx.x % 32; i < a.group; i += 32) {
        const float x = nb_element<dtype>(a.x, start + i);
#pragma unroll
        for (int c = 0; c < AT_ONCE; c++) {
            const float u = x / s[c], r = fminf(fmaxf(rintf(u), low[c]), high[c]), d = u - r;
            sum[c] += d * d;
        }
    }
#pragma unroll
    for (int c = 0; c < AT_ONCE; c++)
        sum[c] = nb_warp_sum(sum[c]);
}

/* Candidates from .. from+31: each lane makes the grid of one. */
template <int dtype>
static __device__ __forceinline__ void try_candidates(const nb_clip_search_args &a, uint64_t start, uint32_t from,
                                                      search &s)
{
    const uint32_t lane = threadIdx.x % 32;
    const float f = 1.0f - (float)(from + lane) * a.step;
    const nb_grid mine = nb_grid_make(f * s.lo, f * s.hi, a.bits, a.symmetric, a.scale_dtype);
    if (from == 0)
        s.scale0 = __shfl_sync(NB_ALL_LANES, mine.scale, 0);
    for (uint32_t first = 0; first < 32 && from + first < a.candidates; first += AT_ONCE) {
        float sum[AT_ONCE];
        squares<dtype>(a, start, mine, first, sum);
#pragma unroll
        for (int c = 0; c < AT_ONCE; c++) {
            const uint32_t i = from + first + c;
            const float ratio = __shfl_sync(NB_ALL_LANES, mine.scale, first + c) / s.scale0,
                        e = sum[c] * (ratio * ratio);
            if (i < a.candidates && (i == 0 || e < s.error)) {
                s.error = e;
                s.best = 1.0f - (float)i * a.step;
            }
        }
    }
}

template <int dtype>
static __device__ __forceinline__ nb_extremes extremes(const nb_clip_search_args &a, uint64_t start)
{
    nb_extremes e = {0, 0};
    for (uint32_t i = threadIdx.x % 32; i < a.group; i += 32) {
        const float x = nb_element<dtype>(a.x, start + i);
        nb_extend<1>(e, &x);
    }
    return nb_team_extremes(e, 32);
}

template <int dtype, int V>
static __device__ __forceinline__ void clip_search(const nb_clip_search_args &a)
{
    const uint64_t group = (uint64_t)blockIdx.x * (NB_QUANT_THREADS / 32) + threadIdx.x / 32, start = group * a.group;
    if (group >= (uint64_t)a.rows * (a.k / a.group))
        return;
    const nb_extremes e = extremes<dtype>(a, start);
    const float nan = __uint_as_float(0x7fc00000u);
    search s = {nan, nan, 1.0f, 1.0f, nan};
    if (nb_finite(e)) {
        s.lo =
            fminf(nb_key_value(~e.lo), 0.0f) + 0.0f; /* never -0: a selection would become a minimum, which keeps -0 */
        s.hi = fmaxf(nb_key_value(e.hi), 0.0f);
        for (uint32_t from = 0; from < a.candidates; from += 32)
            try_candidates<dtype>(a, start, from, s);
    }
    if (threadIdx.x % 32)
        return;
    a.lo[group] = s.best * s.lo;
    a.hi[group] = s.best * s.hi;
    a.error[group] = s.error;
}

extern "C" __global__ void __launch_bounds__(NB_QUANT_THREADS)
    nb_clip_search(const __grid_constant__ nb_clip_search_args a)
{
    NB_BY_TYPE(clip_search, 1, a);
}
