/* What the kernels of calibration and quantization share: elements of any float type, teams of threads with one group of
 * weights each, ordered keys of floats, and the integer grids of csrc/quant/grid.c, operation by operation. */
#ifndef NB_CUDA_QUANTIZE_CUH
#define NB_CUDA_QUANTIZE_CUH

#include <float.h>

#include "act.cuh"
#include "kernels.h"

#define NB_QUANT_THREADS 256

/* ---- elements ---- */

template <int dtype>
struct nb_stored {
    typedef float type;
};
template <>
struct nb_stored<NB_T_F16> {
    typedef __half type;
};
template <>
struct nb_stored<NB_T_BF16> {
    typedef __nv_bfloat16 type;
};

template <int dtype>
NB_DEVICE float nb_element(const void *x, uint64_t i)
{
    return (float)((const typename nb_stored<dtype>::type *)x)[i];
}

/* V elements from i on, 1 or 8.  Eight: i is a multiple of 8 and x is 16-byte aligned. */
template <int dtype, int V>
NB_DEVICE void nb_elements(float v[V], const void *x, uint64_t i)
{
    if constexpr (V == 1) {
        v[0] = nb_element<dtype>(x, i);
    } else if constexpr (dtype == NB_T_F32) {
        const float4 a = *(const float4 *)((const float *)x + i), b = *(const float4 *)((const float *)x + i + 4);
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
        v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    } else {
        nb_unpack8<typename nb_stored<dtype>::type>(*(const uint4 *)((const uint16_t *)x + i), v);
    }
}

/* Runs of `len` elements from x on can be read eight at a time. */
NB_DEVICE bool nb_by_eight(const void *x, uint64_t len)
{
    return len % 8 == 0 && (uintptr_t)x % 16 == 0;
}

/* body<dtype, V>(args) */
#define NB_BY_TYPE(body, V, args)                                                                                      \
    do {                                                                                                               \
        if ((args).dtype == NB_T_F32)                                                                                  \
            body<NB_T_F32, V>(args);                                                                                   \
        else if ((args).dtype == NB_T_F16)                                                                             \
            body<NB_T_F16, V>(args);                                                                                   \
        else                                                                                                           \
            body<NB_T_BF16, V>(args);                                                                                  \
    } while (0)

/* ---- ranges ---- */

NB_DEVICE uint32_t nb_key(float x)
{
    const uint32_t u = __float_as_uint(x);
    return NB_KEY_OF_BITS(u);
}

NB_DEVICE float nb_key_value(uint32_t key)
{
    return __uint_as_float(NB_BITS_OF_KEY(key));
}

/* Extremes as they grow from zero: kernels.h. */
struct nb_extremes {
    uint32_t lo, hi;
};

template <int V>
NB_DEVICE void nb_extend(nb_extremes &e, const float v[V])
{
#pragma unroll
    for (int j = 0; j < V; j++) {
        const uint32_t key = nb_key(v[j]);
        e.lo = max(e.lo, ~key);
        e.hi = max(e.hi, key);
    }
}

NB_DEVICE bool nb_finite(nb_extremes e)
{
    return NB_KEY_FINITE(~e.lo) && NB_KEY_FINITE(e.hi);
}

/* Over a team of 1, 2, 4 .. 32 neighbouring lanes, or of the whole block of 256; every thread of it gets the result.  All
 * threads of the block call it with the same team. */
NB_DEVICE nb_extremes nb_team_extremes(nb_extremes e, uint32_t team)
{
    __shared__ nb_extremes warp[NB_QUANT_THREADS / 32];
    for (uint32_t o = min(team, 32u) / 2; o; o /= 2) {
        e.lo = max(e.lo, __shfl_xor_sync(NB_ALL_LANES, e.lo, o));
        e.hi = max(e.hi, __shfl_xor_sync(NB_ALL_LANES, e.hi, o));
    }
    if (team <= 32)
        return e;
    if (threadIdx.x % 32 == 0)
        warp[threadIdx.x / 32] = e;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < NB_QUANT_THREADS / 32; i++) {
        e.lo = max(e.lo, warp[i].lo);
        e.hi = max(e.hi, warp[i].hi);
    }
    return e;
}

/* ---- grids: csrc/quant/grid.c has the reasons ---- */

struct nb_grid {
    float scale;
    int32_t zero, qmin, qmax;
};

NB_DEVICE float nb_stored_scale(float s, uint32_t dtype)
{
    if (dtype == NB_T_BF16) {
        const uint32_t u = __float_as_uint(s);
        return __uint_as_float((u + 0x7fffu + ((u >> 16) & 1)) & 0xffff0000u);
    }
    if (dtype != NB_T_F16)
        return s;
    if (s < 0x1p-14f)
        return ceilf(s * 0x1p24f) * 0x1p-24f;
    return s < 65504.0f ? __half2float(__float2half_rn(s)) : 65504.0f;
}

NB_DEVICE float nb_range_scale(float lo, float hi, uint32_t bits, bool symmetric)
{
    const float levels = (float)((1u << bits) - 1);
    if (symmetric)
        return fmaxf(-lo, hi) / (levels / 2);
    const float span = hi - lo;
    return span <= FLT_MAX ? span / levels : (float)(((double)hi - (double)lo) / (double)levels);
}

/* rne(x/s) limited to the integers a..b; NaN gives a. */
NB_DEVICE float nb_limited(float x, float s, float a, float b)
{
    const float r = rintf(x / s);
    return !(r > a) ? a : r < b ? r : b;
}

/* lo and hi are finite. */
NB_DEVICE nb_grid nb_grid_make(float lo, float hi, uint32_t bits, bool symmetric, uint32_t scale_dtype)
{
    nb_grid g;
    g.qmin = -(1 << (bits - 1));
    g.qmax = (1 << (bits - 1)) - 1;
    g.zero = 0;
    lo = lo < 0 ? lo : 0.0f;
    hi = hi > 0 ? hi : 0.0f;
    const float s = nb_range_scale(lo, hi, bits, symmetric), most = FLT_MAX / 256;
    g.scale = s < FLT_MIN ? 1.0f : nb_stored_scale(s < most ? s : most, scale_dtype);
    if (!symmetric)
        g.zero = g.qmin - (int32_t)nb_limited(lo, g.scale, (float)(g.qmin - g.qmax), 0.0f);
    return g;
}

NB_DEVICE int32_t nb_grid_code(const nb_grid &g, float x)
{
    return (int32_t)nb_limited(x, g.scale, (float)(g.qmin - g.zero), (float)(g.qmax - g.zero)) + g.zero;
}

#endif
