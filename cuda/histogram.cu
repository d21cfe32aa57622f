/* An observer on the device (csrc/quant/observer.c): histogram of what it sees, in 4096 bins whose range grows by powers of
 * two.  Three launches add a batch x [n]:
 *
 *   nb_range           the extremes of the batch into o->key_lo, key_hi
 *   nb_observer_widen  one block: extremes, count and half_range of the observer; bins are merged if the range has grown
 *   nb_histogram       counts the batch.  Any grid
 *
 *   x       F32, F16 or BF16, any n; 16-byte aligned: eight elements a thread and a tail
 *   shared  widen 32 KiB, the bins; histogram 16 KiB, the counts of a block, which are added to o->bins where not zero
 *   order   counts are integers: any order gives the same.  A batch with a NaN or an infinity sets o->bad and is not counted,
 *           nor is anything after it
 *   traffic twice size(x) a batch
 */
#include "quantize.cuh"

#define ZERO (NB_OBSERVER_BINS / 2)

/* The least power of two above absmax, between 2^-100 and 2^127. */
static __device__ __forceinline__ float range_for(float absmax)
{
    const uint32_t exponent = min((__float_as_uint(absmax) >> 23) + 1, 254u);
    return fmaxf(__uint_as_float(exponent << 23), 0x1p-100f);
}

/* Doubling the range s times maps bin b = i - ZERO to floor(b / 2^s): an arithmetic shift. */
static __device__ __forceinline__ void merge_bins(uint64_t *bins, uint32_t shift)
{
    __shared__ unsigned long long wide[NB_OBSERVER_BINS];
    for (int i = threadIdx.x; i < NB_OBSERVER_BINS; i += NB_QUANT_THREADS)
        wide[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < NB_OBSERVER_BINS; i += NB_QUANT_THREADS)
        if (bins[i])
            atomicAdd(&wide[ZERO + ((i - ZERO) >> shift)], (unsigned long long)bins[i]);
    __syncthreads();
    for (int i = threadIdx.x; i < NB_OBSERVER_BINS; i += NB_QUANT_THREADS)
        bins[i] = wide[i];
}

extern "C" __global__ void __launch_bounds__(NB_QUANT_THREADS)
    nb_observer_widen(const __grid_constant__ nb_histogram_args a)
{
    __shared__ uint32_t shift;
    nb_observer_state *o = a.o;
    if (threadIdx.x == 0) {
        nb_extremes e = {o->key_lo, o->key_hi};
        shift = 0;
        if (!nb_finite(e)) {
            o->bad = 1;
        } else if (!o->bad) {
            const float lo = nb_key_value(~e.lo), hi = nb_key_value(e.hi), absmax = fmaxf(-lo, hi);
            if (o->count) { /* by keys: -0 is below 0 */
                e.lo = max(e.lo, ~nb_key(o->lo));
                e.hi = max(e.hi, nb_key(o->hi));
            }
            o->lo = nb_key_value(~e.lo);
            o->hi = nb_key_value(e.hi);
            o->count += a.n;
            const float before = o->half_range, range = absmax > 0 ? range_for(absmax) : 0.0f;
            if (range > before) {
                o->half_range = range;
                if (before > 0) /* from 0 there is nothing to merge: zeros are in bin ZERO whatever the width is */
                    shift = min((__float_as_uint(range) - __float_as_uint(before)) >> 23, 16u);
            }
        }
        o->key_lo = o->key_hi = 0;
    }
    __syncthreads();
    if (shift)
        merge_bins(o->bins, shift);
}

static __shared__ uint32_t bins[NB_OBSERVER_BINS]; /* of the block */

static __device__ __forceinline__ void count(float x, float per_width)
{
    float t = x * per_width;
    t = t < -ZERO ? -ZERO : t > ZERO - 1 ? ZERO - 1 : t;
    const int b = (int)t; /* towards zero: one too high for negative fractions */
    atomicAdd(&bins[ZERO + b - (t < (float)b)], 1u);
}

template <int dtype, int V>
static __device__ __forceinline__ void histogram(const nb_histogram_args &a)
{
    const uint64_t threads = (uint64_t)gridDim.x * NB_QUANT_THREADS,
                   me = (uint64_t)blockIdx.x * NB_QUANT_THREADS + threadIdx.x;
    const float per_width = a.o->half_range > 0 ? ZERO / a.o->half_range : 0.0f; /* 0: all are zeros */
    float v[V];
    for (int i = threadIdx.x; i < NB_OBSERVER_BINS; i += NB_QUANT_THREADS)
        bins[i] = 0;
    __syncthreads();
    for (uint64_t i = me * V; i + V <= a.n; i += threads * V) {
        nb_elements<dtype, V>(v, a.x, i);
#pragma unroll
        for (int j = 0; j < V; j++)
            count(v[j], per_width);
    }
    if (me < a.n % V)
        count(nb_element<dtype>(a.x, a.n - 1 - me), per_width);
    __syncthreads();
    for (int i = threadIdx.x; i < NB_OBSERVER_BINS; i += NB_QUANT_THREADS)
        if (bins[i])
            atomicAdd((unsigned long long *)&a.o->bins[i], (unsigned long long)bins[i]);
}

extern "C" __global__ void __launch_bounds__(NB_QUANT_THREADS) nb_histogram(const __grid_constant__ nb_histogram_args a)
{
    if (a.o->bad)
        return;
    if (nb_by_eight(a.x, 8))
        NB_BY_TYPE(histogram, 8, a);
    else
        NB_BY_TYPE(histogram, 1, a);
}
