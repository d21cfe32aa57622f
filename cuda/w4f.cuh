/* Codes of 4 bits minus zero points in sixteenths, made into A fragments.  u - z is a number of sixteenths below 2^8 in magnitude:
 * exact in half and in bfloat16.
 *
 * Instructions for 8 codes of a lane: half 3 shift 4 lop3 4 sub 11, bfloat16 3 shift 2 prmt 4 lop3 8 fma 17 (W4: 9 and 11). */
#ifndef NB_CUDA_W4F_CUH
#define NB_CUDA_W4F_CUH

#include "weights.cuh"

/* 0x5400 is 64, its bit 4 is worth 1 and its last bit a sixteenth: 0x5400 | u << 4 is 64 + u, 0x5400 + z is 64 + z/16. */
template <>
struct nb_weight<NB_W_W4F, __half> {
    static __device__ __forceinline__ nb_zeros zeros(int g, int g8)
    {
        return {(uint32_t)(0x5400 + g) * 0x00010001u, (uint32_t)(0x5400 + g8) * 0x00010001u};
    }
    static __device__ __forceinline__ uint32_t pair(uint32_t w, uint32_t zero)
    {
        return nb_sub_f16x2(nb_lop3<NB_AND_OR>(w, 0x00f000f0u, 0x54005400u), zero);
    }
    static __device__ __forceinline__ void fragment(uint32_t a[4], const uint4 *unit, int step, nb_zeros z)
    {
        const uint32_t w = nb_word(unit[0], step);
        a[0] = pair(w << 4, z.g), a[1] = pair(w, z.g8), a[2] = pair(w >> 4, z.g), a[3] = pair(w >> 8, z.g8);
    }
};

/* bfloat16 has no room for 128 + z/16: the code comes first, then the zero point, which is below 16. */
template <>
struct nb_weight<NB_W_W4F, __nv_bfloat16> {
    static __device__ __forceinline__ nb_zeros zeros(int g, int g8)
    {
        const __nv_bfloat162 a = __float2bfloat162_rn((float)-g * 0.0625f),
                             b = __float2bfloat162_rn((float)-g8 * 0.0625f);
        /* side by side in one register: with two of them the large tile spills */
        return {__byte_perm(*(const uint32_t *)&a, *(const uint32_t *)&b, 0x5410), 0};
    }
    static __device__ __forceinline__ uint32_t pair(uint32_t w, uint32_t minus_zero)
    {
        const uint32_t code = nb_lop3<NB_AND_OR>(w, 0x000f000fu, 0x43004300u);
        return nb_add_bf16x2(nb_add_bf16x2(code, 0xc300c300u), minus_zero);
    }
    static __device__ __forceinline__ void fragment(uint32_t a[4], const uint4 *unit, int step, nb_zeros z)
    {
        const uint32_t w = nb_word(unit[0], step);
        const uint32_t g = __byte_perm(z.g, 0, 0x1010), g8 = __byte_perm(z.g, 0, 0x3232);
        a[0] = pair(w, g), a[1] = pair(w >> 4, g8), a[2] = pair(w >> 8, g), a[3] = pair(w >> 12, g8);
    }
};

#endif
