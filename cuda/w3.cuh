/* Codes of 3 bits made into A fragments; zero points are signed sixteenths, and `zeros` has what is subtracted from a magic number
 * plus u = code + 4.  Three k16 blocks of a tile lie in a word each, the fourth in what these have left over (layout.h).
 *
 * Instructions for 8 codes of a lane, the mean of four k16 blocks: half 2.25 shift 4.5 lop3 4 sub 10.75; bfloat16 3.75 shift 4.5 lop3
 * 8 fma 16.25; int8 4.25 shift 4.5 lop3 2 sub 2 xor: 12.75 (W4: 9, 11, 7). */
#ifndef NB_CUDA_W3_CUH
#define NB_CUDA_W3_CUH

#include "weights.cuh"

/* The three words of the tile that step `step` of a block belongs to. */
template <typename X>
struct nb_w3_tile {
    uint32_t w[3];
    __device__ __forceinline__ nb_w3_tile(const uint4 *unit, int step)
    {
#pragma unroll
        for (int i = 0; i < 3; i++)
            w[i] = nb_word(unit[i], step / nb_operand<X>::steps);
    }
    /* Codes whose bits are the last ones of the words, at bit `at`, in `base`. */
    __device__ __forceinline__ uint32_t last(int at, uint32_t base) const
    {
        const uint32_t one = 0x00010001u << at;
        return nb_lop3<NB_AND_OR>(
            w[2] << (at + 2), one << 2,
            nb_lop3<NB_AND_OR>(w[1] << (at + 1), one << 1, nb_lop3<NB_AND_OR>(w[0] << at, one, base)));
    }
};

/* 0x5400 is 64 and its bit 4 is worth 1, 0x4800 is 8 and its bit 7 is worth 1. */
template <>
struct nb_weight<NB_W_W3, __half> {
    static __device__ __forceinline__ nb_zeros zeros(int g, int g8) /* 64 and 8, + 4 + z / 16 */
    {
        return {nb_magic_zero_f16(g, 0xc400c400u), nb_magic_zero_f16(g8, 0xd380d380u)};
    }
    static __device__ __forceinline__ uint32_t low(uint32_t w, uint32_t zero)
    {
        return nb_sub_f16x2(nb_lop3<NB_AND_OR>(w, 0x00700070u, 0x54005400u), zero);
    }
    static __device__ __forceinline__ uint32_t high(uint32_t w, uint32_t zero)
    {
        return nb_sub_f16x2(nb_lop3<NB_AND_OR>(w, 0x03800380u, 0x48004800u), zero);
    }
    static __device__ __forceinline__ void fragment(uint32_t a[4], const uint4 *unit, int step, nb_zeros z)
    {
        const nb_w3_tile<__half> t(unit, step);
        if (step % 4 < 3) {
            const uint32_t w = t.w[step % 4], v = w >> 6;
            a[0] = low(w, z.g), a[1] = high(w, z.g8), a[2] = low(v, z.g), a[3] = high(v, z.g8);
        } else {
            a[0] = low(t.w[0] << 3, z.g), a[1] = high(t.w[2] << 6, z.g8), a[2] = low(t.w[1] << 3, z.g);
            a[3] = nb_sub_f16x2(t.last(7, 0x48004800u), z.g8);
        }
    }
};

/* 0x4100 is 8 and its bit 4 is worth 1.  8 + 4 + z / 16 may be 20 - 1/16, too long a number: the code comes first. */
template <>
struct nb_weight<NB_W_W3, __nv_bfloat16> {
    static __device__ __forceinline__ nb_zeros zeros(int g, int g8) /* -(4 + z / 16), side by side as W4F's */
    {
        const __nv_bfloat162 a = __float2bfloat162_rn((float)-g * 0.0625f - 4.0f),
                             b = __float2bfloat162_rn((float)-g8 * 0.0625f - 4.0f);
        return {__byte_perm(*(const uint32_t *)&a, *(const uint32_t *)&b, 0x5410), 0};
    }
    static __device__ __forceinline__ uint32_t minus(uint32_t code, uint32_t minus_zero)
    {
        return nb_add_bf16x2(nb_add_bf16x2(code, 0xc100c100u), minus_zero);
    }
    static __device__ __forceinline__ uint32_t pair(uint32_t w, uint32_t minus_zero)
    {
        return minus(nb_lop3<NB_AND_OR>(w, 0x00700070u, 0x41004100u), minus_zero);
    }
    static __device__ __forceinline__ void fragment(uint32_t a[4], const uint4 *unit, int step, nb_zeros z)
    {
        const nb_w3_tile<__nv_bfloat16> t(unit, step);
        const uint32_t g = __byte_perm(z.g, 0, 0x1010), g8 = __byte_perm(z.g, 0, 0x3232);
        if (step % 4 < 3) {
            const uint32_t w = t.w[step % 4];
            a[0] = pair(w, g), a[1] = pair(w >> 3, g8), a[2] = pair(w >> 6, g), a[3] = pair(w >> 9, g8);
        } else {
            a[0] = pair(t.w[0] << 3, g), a[1] = pair(t.w[2] << 3, g8), a[2] = pair(t.w[1] << 3, g);
            a[3] = minus(t.last(4, 0x41004100u), g8);
        }
    }
};

template <>
struct nb_weight<NB_W_W3, int8_t> {
    static __device__ __forceinline__ nb_zeros zeros(int g, int g8)
    {
        return {(uint32_t)((g >> 4) + 4) * 0x01010101u, (uint32_t)((g8 >> 4) + 4) * 0x01010101u};
    }
    /* Codes at bits 0 of the halves of v, and at bits 8 of those of w: bytes u - z, as W4's. */
    static __device__ __forceinline__ uint32_t four(uint32_t v, uint32_t w, uint32_t zero)
    {
        const uint32_t even = nb_lop3<NB_AND_OR>(v, 0x00070007u, 0x80808080u);
        return (nb_lop3<NB_AND_OR>(w, 0x07000700u, even) - zero) ^ 0x80808080u;
    }
    static __device__ __forceinline__ void block(uint32_t a[2], uint32_t w, nb_zeros z)
    {
        a[0] = four(w >> 4, w >> 2, z.g);
        a[1] = four(w >> 7, w >> 5, z.g8);
    }
    static __device__ __forceinline__ void fragment(uint32_t a[4], const uint4 *unit, int step, nb_zeros z)
    {
        const nb_w3_tile<int8_t> t(unit, step);
        if (step % 2 == 0) {
            block(a, t.w[0], z);
            block(a + 2, t.w[1], z);
        } else {
            block(a, t.w[2], z);
            a[2] = four(t.w[0] >> 1, t.w[1] << 7, z.g);
            a[3] = four(t.w[2] >> 1, t.last(8, 0), z.g8);
        }
    }
};

#endif
