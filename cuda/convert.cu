/* fp32 to T, rounded to nearest even, or T to fp32: what crosses the border between host and device in tests and taps
 *   src, dst 16-byte aligned, any n
 *   launch  any grid, block 256
 *   traffic 6 bytes an element */
#include "act.cuh"
#include "kernels.h"

template <typename T>
NB_DEVICE void convert(const nb_convert_args &a)
{
    const uint64_t stride = (uint64_t)gridDim.x * 256, first = (uint64_t)blockIdx.x * 256 + threadIdx.x;
    for (uint64_t i = first; i < a.n / 4; i += stride) {
        float v[4];
        if (a.to_float) {
            nb_unpack4<T>(((const uint2 *)a.src)[i], v);
            ((float4 *)a.dst)[i] = make_float4(v[0], v[1], v[2], v[3]);
        } else {
            const float4 f = ((const float4 *)a.src)[i];
            v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
            ((uint2 *)a.dst)[i] = nb_pack4<T>(v);
        }
    }
    const uint64_t last = a.n / 4 * 4 + first; /* up to three are left */
    if (last < a.n) {
        if (a.to_float)
            ((float *)a.dst)[last] = (float)((const T *)a.src)[last];
        else
            ((T *)a.dst)[last] = (T)((const float *)a.src)[last];
    }
}

extern "C" __global__ void __launch_bounds__(256) nb_convert_f16(const nb_convert_args a)
{
    convert<__half>(a);
}

extern "C" __global__ void __launch_bounds__(256) nb_convert_bf16(const nb_convert_args a)
{
    convert<__nv_bfloat16>(a);
}
