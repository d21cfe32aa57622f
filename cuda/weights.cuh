/* What every linear kernel shares, so that the large form (gemm.cuh) and the small one (gemv.cuh) cannot differ:
 * packed weights (layout.h) made into A fragments, where a sum over k is cut, how its pieces are joined, and what
 * becomes of the result.
 *
 *   kind  NB_W_DENSE, NB_W_W8, NB_W_W4 (others: nf4.cuh, w4f.cuh, w2.cuh, w3.cuh)   X  what mma multiplies: __half, __nv_bfloat16 or int8_t
 *
 * A step is one mma: 32 bytes of a row of x, 16 k of half or bfloat16, 32 k of int8.  A tile of 64 k has
 * nb_operand<X>::steps.
 *
 * Integers become floats without a conversion instruction.  As half, 0x6400 is 1024 and its last bit is worth 1, so
 * 0x6400 | u is 1024 + u; 0x5400 is 64 and bit 4 is worth 1, so 0x5400 | u << 4 is 64 + u.  As bfloat16, 0x4300 is
 * 128 + u for u < 128. Subtracting the magic number plus the zero point leaves q - z exactly, as all of them are
 * integers that the type holds.
 *
 * Instructions for 8 codes of a lane (one k16 block of rows g and g+8; half of a k32 block of int8), mma not counted:
 *                half                                  bfloat16                                int8
 *   W8           2 shift 4 lop3 4 sub         10       2 shift 8 lop3 8 sub           18       none
 *   W4           1 shift 4 lop3 4 sub          9       3 shift 4 lop3 4 fma           11       1 shift 4 lop3 2 sub   7
 */
#ifndef NB_CUDA_WEIGHTS_CUH
#define NB_CUDA_WEIGHTS_CUH

#include "act.cuh"
#include "kernels.h"

#define NB_SEGMENT 512 /* k summed by mma before the sum is added to the result: docs/numerics.md */

/* ---- the operand ---- */

template <typename X>
struct nb_operand;

template <>
struct nb_operand<__half> {
    typedef float sum;
    static const int k = 16, steps = 4, bytes = 2;
    static __device__ __forceinline__ void mma(float d[4], const uint32_t a[4], const uint32_t b[2])
    {
        nb_mma_f16(d, a, b);
    }
};

template <>
struct nb_operand<__nv_bfloat16> {
    typedef float sum;
    static const int k = 16, steps = 4, bytes = 2;
    static __device__ __forceinline__ void mma(float d[4], const uint32_t a[4], const uint32_t b[2])
    {
        nb_mma_bf16(d, a, b);
    }
};

template <>
struct nb_operand<int8_t> {
    typedef int32_t sum;
    static const int k = 32, steps = 2, bytes = 1;
    static __device__ __forceinline__ void mma(int32_t d[4], const uint32_t a[4], const uint32_t b[2])
    {
        nb_mma_s8(d, a, b);
    }
};

/* ---- two numbers in a register ---- */

NB_DEVICE uint32_t nb_sub_f16x2(uint32_t a, uint32_t b)
{
    __half2 d = __hsub2(*(const __half2 *)&a, *(const __half2 *)&b);
    return *(uint32_t *)&d;
}

/* a + b, given as the one instruction that every architecture with bfloat16 has */
NB_DEVICE uint32_t nb_add_bf16x2(uint32_t a, uint32_t b)
{
#if NB_HAS_SM80
    const uint32_t one = 0x3f803f80u;
    __nv_bfloat162 d = __hfma2(*(const __nv_bfloat162 *)&a, *(const __nv_bfloat162 *)&one, *(const __nv_bfloat162 *)&b);
    return *(uint32_t *)&d;
#else
    return a + b; /* never run: kernels.h */
#endif
}

/* A signed zero point in sixteenths plus 72, twice, and `add`, two of half: 0x6480 + z is 1152 + z, its sixteenth 72 + z / 16; one
 * rounding, none where the result has a place for sixteenths. */
NB_DEVICE uint32_t nb_magic_zero_f16(int z, uint32_t add)
{
    const uint32_t magic = (uint32_t)(0x6480 + z) * 0x00010001u, sixteenth = 0x2c002c00u;
    __half2 d = __hfma2(*(const __half2 *)&magic, *(const __half2 *)&sixteenth, *(const __half2 *)&add);
    return *(uint32_t *)&d;
}

/* ---- the zero points of a lane's rows g and g+8 in one group, as the constants that fragment() wants (W8 and int8:
 * as they are, for nb_exact()) ---- */

struct nb_zeros {
    uint32_t g, g8;
};

#define NB_IS_W4(kind) ((kind) == NB_W_W4 || (kind) == NB_W_W4F) /* zero points are always there */

/* Zero points as stored: W4 u8 (with the offset 8; W4F sixteenths with the offset 128), else signed (W2, W3: sixteenths). */
template <int kind>
NB_DEVICE int nb_zero_value(uint8_t stored)
{
    return NB_IS_W4(kind) ? (int)stored : (int)(int8_t)stored;
}

/* ---- weights: fragment(a, units, step, zeros): the A fragment of a step, 0 .. steps-1 of the first tile, then of the next
 * one, from a lane's NB_UNITS(kind) 16-byte units of a block.  step must be a constant where it is inlined ---- */

template <int kind, typename X>
struct nb_weight;

template <typename X>
struct nb_weight<NB_W_DENSE, X> {
    static __device__ __forceinline__ nb_zeros zeros(int, int) { return {0, 0}; }
    static __device__ __forceinline__ void fragment(uint32_t a[4], const uint4 *unit, int step, nb_zeros)
    {
        a[0] = unit[step].x, a[1] = unit[step].y, a[2] = unit[step].z, a[3] = unit[step].w;
    }
};

template <>
struct nb_weight<NB_W_W8, __half> {
    static __device__ __forceinline__ nb_zeros zeros(int g, int g8)
    {
        return {(uint32_t)(0x6480 + g) * 0x00010001u, (uint32_t)(0x6480 + g8) * 0x00010001u};
    }
    /* Codes in bytes 0 and 2: & 0x00ff and ^ 0x6480 in one lop3 is 1024 + 128 + q. */
    static __device__ __forceinline__ uint32_t pair(uint32_t w, uint32_t zero)
    {
        return nb_sub_f16x2(nb_lop3<NB_AND_XOR>(w, 0x00ff00ffu, 0x64806480u), zero);
    }
    static __device__ __forceinline__ void fragment(uint32_t a[4], const uint4 *unit, int step, nb_zeros z)
    {
        const uint4 u = unit[step >> 1];
        const uint32_t g = step & 1 ? u.z : u.x, g8 = step & 1 ? u.w : u.y;
        a[0] = pair(g, z.g), a[1] = pair(g8, z.g8), a[2] = pair(g >> 8, z.g), a[3] = pair(g8 >> 8, z.g8);
    }
};

template <>
struct nb_weight<NB_W_W8, __nv_bfloat16> {
    static __device__ __forceinline__ nb_zeros zeros(int g, int g8)
    {
        const __nv_bfloat162 a = __float2bfloat162_rn((float)-g), b = __float2bfloat162_rn((float)-g8);
        return {*(const uint32_t *)&a, *(const uint32_t *)&b};
    }
    /* bfloat16 has 8 bits of precision, too few for 256 + q, so a code is split: its low seven bits give 128 + low,
     * its sign bit the last bit of the exponent: 128 or 256; q is the difference. */
    static __device__ __forceinline__ uint32_t pair(uint32_t w, uint32_t minus_zero)
    {
        const uint32_t low = nb_lop3<NB_AND_OR>(w, 0x007f007fu, 0x43004300u);
        const uint32_t minus_high = nb_lop3<NB_AND_OR>(w, 0x00800080u, 0xc300c300u);
        return nb_add_bf16x2(nb_add_bf16x2(low, minus_high), minus_zero);
    }
    static __device__ __forceinline__ void fragment(uint32_t a[4], const uint4 *unit, int step, nb_zeros z)
    {
        const uint4 u = unit[step >> 1];
        const uint32_t g = step & 1 ? u.z : u.x, g8 = step & 1 ? u.w : u.y;
        a[0] = pair(g, z.g), a[1] = pair(g8, z.g8), a[2] = pair(g >> 8, z.g), a[3] = pair(g8 >> 8, z.g8);
    }
};

template <>
struct nb_weight<NB_W_W8, int8_t> { /* zero points: in nb_exact() */
    static __device__ __forceinline__ nb_zeros zeros(int g, int g8) { return {(uint32_t)g, (uint32_t)g8}; }
    static __device__ __forceinline__ void fragment(uint32_t a[4], const uint4 *unit, int step, nb_zeros)
    {
        a[0] = unit[step].x, a[1] = unit[step].y, a[2] = unit[step].z, a[3] = unit[step].w;
    }
};

NB_DEVICE uint32_t nb_word(uint4 u, int i)
{
    return i == 0 ? u.x : i == 1 ? u.y : i == 2 ? u.z : u.w;
}

template <>
struct nb_weight<NB_W_W4, __half> {
    static __device__ __forceinline__ nb_zeros zeros(int g, int g8)
    {
        return {(uint32_t)(0x6400 + g) * 0x00010001u, (uint32_t)(0x5400 + 16 * g8) * 0x00010001u};
    }
    static __device__ __forceinline__ void fragment(uint32_t a[4], const uint4 *unit, int step, nb_zeros z)
    {
        const uint32_t w = nb_word(unit[0], step), v = w >> 8;
        a[0] = nb_sub_f16x2(nb_lop3<NB_AND_OR>(w, 0x000f000fu, 0x64006400u), z.g);
        a[1] = nb_sub_f16x2(nb_lop3<NB_AND_OR>(w, 0x00f000f0u, 0x54005400u), z.g8);
        a[2] = nb_sub_f16x2(nb_lop3<NB_AND_OR>(v, 0x000f000fu, 0x64006400u), z.g);
        a[3] = nb_sub_f16x2(nb_lop3<NB_AND_OR>(v, 0x00f000f0u, 0x54005400u), z.g8);
    }
};

template <>
struct nb_weight<NB_W_W4, __nv_bfloat16> {
    static __device__ __forceinline__ nb_zeros zeros(int g, int g8) /* -(128 + z) */
    {
        return {(uint32_t)(0xc300 + g) * 0x00010001u, (uint32_t)(0xc300 + g8) * 0x00010001u};
    }
    static __device__ __forceinline__ uint32_t pair(uint32_t w, uint32_t minus_zero)
    {
        return nb_add_bf16x2(nb_lop3<NB_AND_OR>(w, 0x000f000fu, 0x43004300u), minus_zero);
    }
    static __device__ __forceinline__ void fragment(uint32_t a[4], const uint4 *unit, int step, nb_zeros z)
    {
        const uint32_t w = nb_word(unit[0], step);
        a[0] = pair(w, z.g), a[1] = pair(w >> 4, z.g8), a[2] = pair(w >> 8, z.g), a[3] = pair(w >> 12, z.g8);
    }
};

template <>
struct nb_weight<NB_W_W4, int8_t> {
    static __device__ __forceinline__ nb_zeros zeros(int g, int g8)
    {
        return {(uint32_t)g * 0x01010101u, (uint32_t)g8 * 0x01010101u};
    }
    /* Four bytes u - z: bit 7 is set first, so that no byte borrows from the next one; its inverse is the sign. */
    static __device__ __forceinline__ uint32_t four(uint32_t w, uint32_t zero)
    {
        return (nb_lop3<NB_AND_OR>(w, 0x0f0f0f0fu, 0x80808080u) - zero) ^ 0x80808080u;
    }
    static __device__ __forceinline__ void fragment(uint32_t a[4], const uint4 *unit, int step, nb_zeros z)
    {
        const uint32_t v = step ? unit[0].z : unit[0].x, w = step ? unit[0].w : unit[0].y;
        a[0] = four(v, z.g), a[1] = four(v >> 4, z.g8), a[2] = four(w, z.g), a[3] = four(w >> 4, z.g8);
    }
};

/* ---- where a sum over k is cut: groups, and for floats again every NB_SEGMENT from the group's start.  All of these
 * are multiples of 16 (INT8: 32, but for the end of K), so an mma lies in one segment.  Dense: one group, groups 1,
 * group_len k ---- */

struct nb_segment {
    uint32_t group, begin, end; /* k */
    uint32_t group_end;
};

template <typename X>
NB_DEVICE uint32_t nb_segment_end(uint32_t begin, uint32_t group_end)
{
    if (nb_operand<X>::bytes == 1)
        return group_end;
    return group_end - begin > NB_SEGMENT ? begin + NB_SEGMENT : group_end;
}

template <typename X>
NB_DEVICE nb_segment nb_segment_first(const nb_packed &p)
{
    return {0, 0, nb_segment_end<X>(0, p.group_len), p.group_len};
}

template <typename X>
NB_DEVICE nb_segment nb_segment_next(nb_segment s, uint32_t group_len)
{
    if (s.end == s.group_end) {
        s.group++;
        s.group_end += group_len;
    }
    s.begin = s.end;
    s.end = nb_segment_end<X>(s.begin, s.group_end);
    return s;
}

/* How many there are, and the i-th of them. */
template <typename X>
NB_DEVICE uint32_t nb_segments_of_group(uint32_t group_len)
{
    return nb_operand<X>::bytes == 1 ? 1 : (group_len + NB_SEGMENT - 1) / NB_SEGMENT;
}

template <typename X>
NB_DEVICE uint32_t nb_segment_count(const nb_packed &p)
{
    return p.groups * nb_segments_of_group<X>(p.group_len);
}

template <typename X>
NB_DEVICE nb_segment nb_segment_at(const nb_packed &p, uint32_t i)
{
    const uint32_t n = nb_segments_of_group<X>(p.group_len), group = i / n;
    const uint32_t begin = group * p.group_len + (i - group * n) * NB_SEGMENT, group_end = (group + 1) * p.group_len;
    return {group, begin, nb_segment_end<X>(begin, group_end), group_end};
}

/* ---- joining segments: in order, with the scales of a lane's two rows ---- */

struct nb_scales {
    float g, g8;
};

/* Where scales, zero points and corrections of rows g, g+8 of a panel lie: [panels][groups][16]. */
NB_DEVICE size_t nb_group_at(const nb_packed &p, uint32_t panel, uint32_t group, uint32_t g)
{
    return ((size_t)panel * p.groups + group) * NB_TILE_N + g;
}

/* c0..c3 of one mma tile */
template <int kind>
NB_DEVICE void nb_join(float acc[4], const float part[4], nb_scales s)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        acc[i] = kind == NB_W_DENSE ? acc[i] + part[i] : fmaf(i < 2 ? s.g : s.g8, part[i], acc[i]);
}

/* Integers: `sum` is nb_exact() where there is something to correct. */
template <int kind>
NB_DEVICE void nb_join(float acc[4], const int32_t sum[4], nb_scales s)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        acc[i] = fmaf((float)sum[i], i < 2 ? s.g : s.g8, acc[i]);
}

/* The exact sum of (qx - zx)(q - z) over a group, modulo 2^32.  sum: what mma saw; zero: of W8 only, whose fragments
 * hold q, with x_sum, the sum of qx; corr: 0 without one. */
NB_DEVICE int32_t nb_exact(int32_t sum, uint32_t zero, int32_t x_sum, int32_t corr)
{
    return (int32_t)((uint32_t)sum - zero * (uint32_t)x_sum + (uint32_t)corr);
}

/* ---- the end: y = acc (times x_scale) (+ bias), then to its destination ---- */

template <typename X>
NB_DEVICE float nb_finished(float acc, float x_scale, bool has_bias, float bias)
{
    if (nb_operand<X>::bytes == 1)
        acc = acc * x_scale;
    return has_bias ? acc + bias : acc; /* adding 0 would turn -0 into 0 */
}

template <typename X>
NB_DEVICE float nb_finish(float acc, float x_scale, const float *bias, uint32_t n)
{
    return nb_finished<X>(acc, x_scale, bias, bias ? bias[n] : 0);
}

/* y[row][col] of y [..][ldy] */
template <typename T>
NB_DEVICE void nb_store_1(const nb_gemm_args &a, size_t at, float v)
{
    if (a.dst == NB_DST_ACT)
        ((uint16_t *)a.y)[at] = (uint16_t)nb_pack2<T>(v, 0);
    else if (a.dst == NB_DST_RESIDUAL)
        ((float *)a.y)[at] = ((const float *)a.y)[at] + v;
    else
        ((float *)a.y)[at] = v;
}

/* Whether every fourth column of every row, counted from `column`, may be written with its three neighbours at once. */
NB_DEVICE bool nb_store_aligned(const nb_gemm_args &a, uint32_t column)
{
    return a.ldy % 4 == 0 && column % 4 == 0 && (uintptr_t)a.y % 16 == 0;
}

/* Up to four neighbours, the first of them at such a column if `aligned`. */
template <typename T>
NB_DEVICE void nb_store_up_to_4(const nb_gemm_args &a, size_t at, float4 v, uint32_t count, bool aligned)
{
    if (count < 4 || !aligned) {
        const float one[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            if (i < count)
                nb_store_1<T>(a, at + i, one[i]);
        return;
    }
    if (a.dst == NB_DST_ACT) {
        /* one 64-bit number: nvcc makes two stores of a uint2 */
        *(uint64_t *)((uint16_t *)a.y + at) = nb_pack2<T>(v.x, v.y) | (uint64_t)nb_pack2<T>(v.z, v.w) << 32;
        return;
    }
    float4 *y = (float4 *)((float *)a.y + at);
    if (a.dst == NB_DST_RESIDUAL) {
        const float4 o = *y;
        v = make_float4(o.x + v.x, o.y + v.y, o.z + v.z, o.w + v.w);
    }
    *y = v;
}

/* ---- rows ---- */

/* Where row r of a launch lies in x and y: as it is.  moe.cuh has another. */
struct nb_all_rows {
    static const bool mapped = false;
    __device__ __forceinline__ uint32_t x(uint32_t r) const { return r; }
    __device__ __forceinline__ uint32_t y(uint32_t r) const { return r; }
};

/* ---- which layer a tile of output columns belongs to: its weight, its first panel, the column of y where it
 * begins.  tile_n: the columns of a tile.  first_tile of parts that are not there is n_tiles ---- */

struct nb_place {
    nb_packed p;
    uint32_t n0;     /* of this layer */
    uint32_t column; /* of y, where the layer begins */
};

NB_DEVICE nb_place nb_place_of(const nb_gemm_args &a, uint32_t tile, uint32_t tile_n)
{
    nb_place at = {a.part[0], tile * tile_n, 0};
    if (a.n_parts > 1 && tile >= a.first_tile[1])
        at = {a.part[1], (tile - a.first_tile[1]) * tile_n, a.part[0].n};
    if (a.n_parts > 2 && tile >= a.first_tile[2])
        at = {a.part[2], (tile - a.first_tile[2]) * tile_n, a.part[0].n + a.part[1].n};
    return at;
}

/* The body of a kernel for activations of type _f16 or _bf16.  bfloat16 asks for sm_80: on sm_75 the body is left out. */
#if NB_HAS_SM80 || !defined(__CUDA_ARCH__)
#define NB_IF_bf16(...) __VA_ARGS__
#else
#define NB_IF_bf16(...)
#endif
#define NB_IF_f16(...) __VA_ARGS__

#endif
