/* Codes of 2 bits made into A fragments; zero points are signed sixteenths.  A constant from `zeros` is a magic number plus the zero
 * point of u = code + 2, which is 2 + z / 16, in -6 .. 10: what is subtracted, exactly.
 *
 * Instructions for 8 codes of a lane, the mean of two k16 blocks: half 1.5 shift 4 lop3 4 sub 9.5; bfloat16 4 shift 4 lop3 4 fma 12;
 * int8 1.5 shift 2 lop3 2 sub 2 xor 7.5 (W4: 9, 11, 7).  Not measured on hardware yet: where 4 bits already keep the instruction units
 * as busy as the memory (gemv.cuh counts), half the bytes are not half the time. */
#ifndef NB_CUDA_W2_CUH
#define NB_CUDA_W2_CUH

#include "weights.cuh"

/* 0x5400 is 64 and its bit 4 is worth 1, 0x4c00 is 16 and its bit 6 is worth 1. */
template <>
struct nb_weight<NB_W_W2, __half> {
    /* 64 and 16, + 2 + z / 16: 72 + z / 16 less 6 and 54 */
    static __device__ __forceinline__ nb_zeros zeros(int g, int g8)
    {
        return {nb_magic_zero_f16(g, 0xc600c600u), nb_magic_zero_f16(g8, 0xd2c0d2c0u)};
    }
    static __device__ __forceinline__ void fragment(uint32_t a[4], const uint4 *unit, int step, nb_zeros z)
    {
        const uint32_t w = nb_word(unit[0], step / 2), v = step % 2 ? w : w << 4, u = step % 2 ? w >> 8 : w >> 4;
        a[0] = nb_sub_f16x2(nb_lop3<NB_AND_OR>(v, 0x00300030u, 0x54005400u), z.g);
        a[1] = nb_sub_f16x2(nb_lop3<NB_AND_OR>(v, 0x00c000c0u, 0x4c004c00u), z.g8);
        a[2] = nb_sub_f16x2(nb_lop3<NB_AND_OR>(u, 0x00300030u, 0x54005400u), z.g);
        a[3] = nb_sub_f16x2(nb_lop3<NB_AND_OR>(u, 0x00c000c0u, 0x4c004c00u), z.g8);
    }
};

/* 0x4080 is 4 and its bit 5 is worth 1. */
template <>
struct nb_weight<NB_W_W2, __nv_bfloat16> {
    static __device__ __forceinline__ nb_zeros zeros(int g, int g8) /* -(4 + 2 + z / 16) */
    {
        const __nv_bfloat162 a = __float2bfloat162_rn((float)-g * 0.0625f - 6.0f),
                             b = __float2bfloat162_rn((float)-g8 * 0.0625f - 6.0f);
        return {*(const uint32_t *)&a, *(const uint32_t *)&b};
    }
    static __device__ __forceinline__ uint32_t pair(uint32_t w, uint32_t minus_zero)
    {
        return nb_add_bf16x2(nb_lop3<NB_AND_OR>(w, 0x00600060u, 0x40804080u), minus_zero);
    }
    static __device__ __forceinline__ void fragment(uint32_t a[4], const uint4 *unit, int step, nb_zeros z)
    {
        const uint32_t w = nb_word(unit[0], step / 2);
        if (step % 2) {
            a[0] = pair(w << 1, z.g), a[1] = pair(w >> 1, z.g8), a[2] = pair(w >> 7, z.g), a[3] = pair(w >> 9, z.g8);
        } else {
            a[0] = pair(w << 5, z.g), a[1] = pair(w << 3, z.g8), a[2] = pair(w >> 3, z.g), a[3] = pair(w >> 5, z.g8);
        }
    }
};

template <>
struct nb_weight<NB_W_W2, int8_t> {
    static __device__ __forceinline__ nb_zeros zeros(int g, int g8)
    {
        return {(uint32_t)((g >> 4) + 2) * 0x01010101u, (uint32_t)((g8 >> 4) + 2) * 0x01010101u};
    }
    static __device__ __forceinline__ uint32_t four(uint32_t w, uint32_t zero) /* as W4's */
    {
        return (nb_lop3<NB_AND_OR>(w, 0x03030303u, 0x80808080u) - zero) ^ 0x80808080u;
    }
    static __device__ __forceinline__ void fragment(uint32_t a[4], const uint4 *unit, int step, nb_zeros z)
    {
        const uint32_t w = nb_word(unit[0], step);
        a[0] = four(w, z.g), a[1] = four(w >> 2, z.g8), a[2] = four(w >> 4, z.g), a[3] = four(w >> 6, z.g8);
    }
};

#endif
