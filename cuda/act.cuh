/* Activations: the type T (half or bfloat16) to fp32 and back, several at a time; sums and maxima over a block.
 *
 * The shape of a sum is fixed: lanes of a warp are joined by a butterfly (lane i with i^16, i^8, i^4, i^2, i^1), then
 * the warps in the same way.  Addition commutes, so every thread ends with the same bits. */
#ifndef NB_CUDA_ACT_CUH
#define NB_CUDA_ACT_CUH

#include "ptx.cuh"

#define NB_ALL_LANES 0xffffffffu

/* ---- T: two in a word, the lower one first ---- */

template <typename T>
struct nb_pair;
template <>
struct nb_pair<__half> {
    typedef __half2 type;
    NB_DEVICE type round(float lo, float hi) { return __floats2half2_rn(lo, hi); }
    NB_DEVICE float2 widen(type p) { return __half22float2(p); }
};
template <>
struct nb_pair<__nv_bfloat16> {
    typedef __nv_bfloat162 type;
    NB_DEVICE type round(float lo, float hi) { return __floats2bfloat162_rn(lo, hi); }
    NB_DEVICE float2 widen(type p) { return __bfloat1622float2(p); }
};

template <typename T>
NB_DEVICE uint32_t nb_pack2(float lo, float hi)
{
    const typename nb_pair<T>::type p = nb_pair<T>::round(lo, hi);
    return *(const uint32_t *)&p;
}

template <typename T>
NB_DEVICE void nb_unpack2(uint32_t word, float v[2])
{
    const float2 f = nb_pair<T>::widen(*(const typename nb_pair<T>::type *)&word);
    v[0] = f.x;
    v[1] = f.y;
}

template <typename T>
NB_DEVICE uint2 nb_pack4(const float v[4])
{
    return make_uint2(nb_pack2<T>(v[0], v[1]), nb_pack2<T>(v[2], v[3]));
}

template <typename T>
NB_DEVICE void nb_unpack4(uint2 words, float v[4])
{
    nb_unpack2<T>(words.x, v);
    nb_unpack2<T>(words.y, v + 2);
}

template <typename T>
NB_DEVICE uint4 nb_pack8(const float v[8])
{
    return make_uint4(nb_pack2<T>(v[0], v[1]), nb_pack2<T>(v[2], v[3]), nb_pack2<T>(v[4], v[5]),
                      nb_pack2<T>(v[6], v[7]));
}

template <typename T>
NB_DEVICE void nb_unpack8(uint4 words, float v[8])
{
    nb_unpack2<T>(words.x, v);
    nb_unpack2<T>(words.y, v + 2);
    nb_unpack2<T>(words.z, v + 4);
    nb_unpack2<T>(words.w, v + 6);
}

/* ---- over a warp and a block; every thread takes part and gets the result ---- */

/* Sum of `width` neighbouring lanes, a power of two. */
template <int width = 32>
NB_DEVICE float nb_warp_sum(float v)
{
#pragma unroll
    for (int step = width / 2; step; step /= 2)
        v += __shfl_xor_sync(NB_ALL_LANES, v, step);
    return v;
}

template <int width = 32>
NB_DEVICE float nb_warp_max(float v) /* drops NaN */
{
#pragma unroll
    for (int step = width / 2; step; step /= 2)
        v = fmaxf(v, __shfl_xor_sync(NB_ALL_LANES, v, step));
    return v;
}

template <int width = 32>
NB_DEVICE uint32_t nb_warp_max(uint32_t v)
{
#pragma unroll
    for (int step = width / 2; step; step /= 2)
        v = max(v, __shfl_xor_sync(NB_ALL_LANES, v, step));
    return v;
}

/* A block of `warps` (a power of two up to 32) in one dimension; `shared` [warps] is used by this call alone. */
template <int warps>
NB_DEVICE float nb_block_sum(float v, float *shared)
{
    v = nb_warp_sum(v);
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = v;
    __syncthreads();
    return nb_warp_sum<warps>(shared[threadIdx.x % warps]);
}

template <int warps>
NB_DEVICE uint32_t nb_block_max(uint32_t v, uint32_t *shared)
{
    v = nb_warp_max(v);
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = v;
    __syncthreads();
    return nb_warp_max<warps>(shared[threadIdx.x % warps]);
}

#endif
