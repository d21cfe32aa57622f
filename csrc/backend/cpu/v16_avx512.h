/* Sixteen lanes as one 512-bit register: AVX-512 F, BW, VL, DQ and VNNI.  The names are explained in v16_scalar.h. */
#ifndef NB_BACKEND_CPU_V16_H
#define NB_BACKEND_CPU_V16_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "backend/cpu/e8p.h"
#include "base/nf4.h"

#define V16_INLINE static inline __attribute__((always_inline))

/* 32 registers: 24 sums, 4 of weights, the rest for unpacking and zero points.  A tile takes all four panels of a slab,
 * whose lines follow each other. */
#define V16_PANELS_1     4
#define V16_PANELS_2     4
#define V16_PANELS_4     4
#define V16_PANELS_6     4
#define V16_PANELS_8     0
#define V16_INT_PANELS_1 4
#define V16_INT_PANELS_2 4
#define V16_INT_PANELS_4 4
#define V16_INT_PANELS_6 4
#define V16_INT_PANELS_8 0
#define V16_INT_SUMS     12

#define V16_ATT_SUMS 16 /* attention_body.h */

typedef __m512 v16;
typedef __m512i v16u;

V16_INLINE __mmask16 v16_first(size_t n)
{
    return (__mmask16)((1u << n) - 1);
} /* n <= 16 */

V16_INLINE v16 v16_set1(float x)
{
    return _mm512_set1_ps(x);
}
V16_INLINE v16 v16_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
V16_INLINE v16 v16_load_n(const float *p, size_t n)
{
    return _mm512_maskz_loadu_ps(v16_first(n), p);
}
V16_INLINE v16 v16_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
V16_INLINE v16 v16_load_f16_n(const uint16_t *p, size_t n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(v16_first(n), p));
}
V16_INLINE v16 v16_load_bf16(const uint16_t *p)
{
    __m512i u = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
}
V16_INLINE v16 v16_load_u8(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
V16_INLINE v16 v16_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
V16_INLINE v16 v16_load_u4(const uint8_t *p) /* eight bytes, the low nibble first */
{
    __m128i b = _mm_loadl_epi64((const __m128i *)p), mask = _mm_set1_epi8(15);
    b = _mm_unpacklo_epi8(_mm_and_si128(b, mask), _mm_and_si128(_mm_srli_epi16(b, 4), mask));
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(b));
}
V16_INLINE v16 v16_set1_f16(uint16_t h)
{
    return v16_set1(_cvtsh_ss(h));
}
V16_INLINE void v16_store(float *p, v16 a)
{
    _mm512_storeu_ps(p, a);
}
V16_INLINE void v16_store_n(float *p, v16 a, size_t n)
{
    _mm512_mask_storeu_ps(p, v16_first(n), a);
}
/* Masks of narrow elements cost much, even if all are in it. */
V16_INLINE void v16_store_f16_n(uint16_t *p, v16 a, size_t n)
{
    const __m256i h = _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    if (n == 16)
        _mm256_storeu_si256((__m256i *)p, h);
    else
        _mm256_mask_storeu_epi16(p, v16_first(n), h);
}
V16_INLINE void v16_store_i8_n(int8_t *p, v16 a, size_t n)
{
    const __m128i b = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a));
    if (n == 16)
        _mm_storeu_si128((__m128i *)p, b);
    else
        _mm_mask_storeu_epi8(p, v16_first(n), b);
}

V16_INLINE v16 v16_add(v16 a, v16 b)
{
    return _mm512_add_ps(a, b);
}
V16_INLINE v16 v16_sub(v16 a, v16 b)
{
    return _mm512_sub_ps(a, b);
}
V16_INLINE v16 v16_mul(v16 a, v16 b)
{
    return _mm512_mul_ps(a, b);
}
V16_INLINE v16 v16_div(v16 a, v16 b)
{
    return _mm512_div_ps(a, b);
}
V16_INLINE v16 v16_max(v16 a, v16 b)
{
    return _mm512_max_ps(a, b);
}
V16_INLINE v16 v16_butterfly(v16 x, int len)
{
    const v16 other = len == 1   ? _mm512_permute_ps(x, 0xb1)
                      : len == 2 ? _mm512_permute_ps(x, 0x4e)
                      : len == 4 ? _mm512_shuffle_f32x4(x, x, 0xb1)
                                 : _mm512_shuffle_f32x4(x, x, 0x4e);
    const __mmask16 upper = len == 1 ? 0xaaaa : len == 2 ? 0xcccc : len == 4 ? 0xf0f0 : 0xff00;
    return _mm512_mask_sub_ps(_mm512_add_ps(x, other), upper, other, x);
}
V16_INLINE v16 v16_min(v16 a, v16 b)
{
    return _mm512_min_ps(a, b);
}
V16_INLINE v16 v16_fma(v16 a, v16 b, v16 c)
{
    return _mm512_fmadd_ps(a, b, c);
}
V16_INLINE float v16_most(v16 a)
{
    return _mm512_reduce_max_ps(a);
}
V16_INLINE float v16_sum(v16 a)
{
    __m256 e = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
V16_INLINE void v16_pow2_halves(v16 t, v16 *a, v16 *b)
{
    const __m512i bias = _mm512_set1_epi32(127);
    __m512i n = _mm512_sub_epi32(_mm512_castps_si512(t), _mm512_set1_epi32(0x4b400000));
    __m512i n1 = _mm512_srai_epi32(n, 1), n2 = _mm512_sub_epi32(n, n1);
    *a = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n1, bias), 23));
    *b = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n2, bias), 23));
}

/* -- packed codes --
 * 0x4b000000 is 2^23 as fp32 and its last bit is worth 1: a code u in its low byte gives 2^23 + u, and subtracting
 * 2^23 + zero leaves u - zero exactly, since all three are integers below 2^24.  One byte shuffle puts it there.
 * vpermps looks only at the low 4 bits of an index, so a nibble needs a shift but no mask. */
/* Written as C, since the intrinsic takes a shift that is constant only after unrolling. */
typedef uint32_t v16_dwords __attribute__((vector_size(64)));
V16_INLINE v16u v16u_shift(v16u w, int right)
{
    return (v16u)(right < 0 ? (v16_dwords)w << (uint32_t)-right : (v16_dwords)w >> (uint32_t)right);
}
V16_INLINE v16u v16u_and(v16u w, uint32_t mask)
{
    return _mm512_and_si512(w, _mm512_set1_epi32((int)mask));
}
V16_INLINE v16u v16u_merge(v16u a, v16u b, uint32_t mask)
{
    return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi32((int)mask),
                                     0xe4); /* a is overwritten: no copy of the mask */
}
V16_INLINE v16u v16u_load(const void *p)
{
    return _mm512_load_si512(p);
}
V16_INLINE void v16u_store(void *p, v16u a)
{
    _mm512_store_si512(p, a);
}
V16_INLINE v16 v16_nibble(v16u w, int shift, float offset)
{
    const v16 table =
        _mm512_add_ps(_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_ps(offset));
    return _mm512_permutexvar_ps(v16u_shift(w, shift), table);
}
V16_INLINE v16 v16_zero_points(v16 zero, int bits)
{
    return bits == 8 ? _mm512_add_ps(zero, _mm512_set1_ps(0x1p23f)) : zero;
}
V16_INLINE v16 v16_code8(v16u w, int j, v16 zero)
{
    const __m512i pick = _mm512_set4_epi32(12 + j, 8 + j, 4 + j, j);
    __m512i u = _mm512_mask_shuffle_epi8(_mm512_set1_epi32(0x4b000000), 0x1111111111111111u, w, pick);
    return _mm512_sub_ps(_mm512_castsi512_ps(u), zero);
}
V16_INLINE v16 v16_code4z(v16u w, int shift, v16 zero)
{
    return _mm512_sub_ps(v16_nibble(w, shift, 0), zero);
}
V16_INLINE v16 v16_code4(v16u w, int shift)
{
    return v16_nibble(w, shift, -8);
}
V16_INLINE v16 v16_table(const float t[8])
{
    return _mm512_broadcast_f32x8(_mm256_loadu_ps(t));
}
V16_INLINE v16 v16_pick4(v16u index, v16 table)
{
    return _mm512_permutevar_ps(table, index);
}
V16_INLINE v16 v16_pick8(v16u index, v16 table)
{
    return _mm512_permutexvar_ps(index, table);
}
V16_INLINE v16 v16_nf4(v16u w, int shift)
{
    return _mm512_permutexvar_ps(v16u_shift(w, shift), _mm512_loadu_ps(nbi_nf4));
}

/* -- E8P: cpu/e8p.h --
 * A table of 256 words is looked up in pieces of 64, two registers, by the lower six bits of each word; a word's upper two bits
 * choose. */
#define V16_E8P
V16_INLINE v16u v16_e8p_look_up(const uint16_t *table, v16u index)
{
    return _mm512_permutex2var_epi16(_mm512_load_si512(table), index, _mm512_load_si512(table + 32));
}
/* Element i of both words of a lane: four bits of line[i / 4] from bit 4 (i % 4) on, of the upper word from 16 bits above.  The
 * lower two are the class, then the sign and whether 1/4 is taken away. */
V16_INLINE void v16_e8p(const nbi_cpu_e8p *t, v16u w, v16u line[2])
{
    const __m512i row = _mm512_srli_epi16(w, 8);
    const __mmask32 second = _mm512_test_epi16_mask(w, _mm512_set1_epi16(0x4000));
    const __m512i c = _mm512_mask_blend_epi16(
        _mm512_movepi16_mask(w),
        _mm512_mask_blend_epi16(second, v16_e8p_look_up(t->classes, row), v16_e8p_look_up(t->classes + 64, row)),
        _mm512_mask_blend_epi16(second, v16_e8p_look_up(t->classes + 128, row),
                                v16_e8p_look_up(t->classes + 192, row)));
    __m512i s = _mm512_mask_blend_epi16(_mm512_test_epi16_mask(w, _mm512_set1_epi16(0x40)),
                                        v16_e8p_look_up(t->signs, w), v16_e8p_look_up(t->signs + 64, w));
    s = _mm512_mask_blend_epi16(_mm512_test_epi16_mask(w, _mm512_set1_epi16(0x80)), s,
                                _mm512_or_si512(s, _mm512_set1_epi16((short)0xaaaa)));
    line[0] = v16u_merge(c, _mm512_slli_epi16(s, 2), 0x33333333u);
    line[1] = v16u_merge(_mm512_srli_epi16(c, 2), s, 0x33333333u);
}
/* What these four bits stand for. */
V16_INLINE v16 v16_e8p_number(v16u line, int shift)
{
    const v16 table = _mm512_setr_ps(3, 7, 11, -5, -1, -5, -9, 7, 1, 5, 9, -7, -3, -7, -11, 5);
    return _mm512_permutexvar_ps(v16u_shift(line, shift), table);
}
/* Of two words for eight weights: codes, and 135 more, in bytes. */
V16_INLINE v16u v16_e8p_bytes(v16u first, v16u second, int shift)
{
    static const uint8_t seven[16] = {126, 154, 182, 70, 98, 70, 42, 154, 112, 140, 168, 56, 84, 56, 28, 140};
    static const uint8_t two[16] = {36, 44, 52, 20, 28, 20, 12, 44, 32, 40, 48, 16, 24, 16, 8, 40};
    const __m512i a = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)seven)),
                  b = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)two));
    return _mm512_add_epi8(_mm512_shuffle_epi8(a, v16u_and(v16u_shift(first, shift), 0x0f0f0f0fu)),
                           _mm512_shuffle_epi8(b, v16u_and(v16u_shift(second, shift), 0x0f0f0f0fu)));
}

/* Byte i as a number.  Without a shift where it can be: bit 8 of 2^15 as fp32 is worth 1. */
V16_INLINE v16 v16_e8p_byte(v16u w, int i)
{
    const int at = i % 2 * 8;
    const v16u bits = _mm512_ternarylogic_epi32(v16u_shift(w, i / 2 * 16), _mm512_set1_epi32(255 << at),
                                                _mm512_set1_epi32(0x4b000000 - (at << 23)), 0xea);
    return _mm512_sub_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps((float)((1 << (23 - at)) + 135)));
}

/* -- integer dot products: vpdpbusd adds four products of an unsigned and a signed byte to a lane -- */
typedef int8_t nbi_qx;
typedef __m512i v16q;
typedef __m512i v16d;
typedef __m512i v16x;

V16_INLINE v16q v16q_from8(v16u w)
{
    return w;
}
V16_INLINE v16q v16q_bytes(v16u w)
{
    return w;
}
V16_INLINE v16q v16q_from4(v16u w, int high)
{
    return _mm512_and_si512(v16u_shift(w, 4 * high), _mm512_set1_epi8(15));
}
V16_INLINE v16x v16x_load(const nbi_qx *x)
{
    int four;
    memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
}
V16_INLINE v16d v16d_zero(void)
{
    return _mm512_setzero_si512();
}
V16_INLINE v16d v16d_add(v16d acc, v16q w, v16x x)
{
    /* in place: from the intrinsic GCC 12 makes a copy of every sum in every step */
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
    return acc;
}
/* This target multiplies bytes without a sign and has registers for the sums of all positions: plane_group(). */
#define V16_PLANES
/* acc + plane / 2^shift, which leaves no rest */
V16_INLINE v16d v16d_fold(v16d acc, v16d plane, int shift)
{
    return _mm512_add_epi32(acc, _mm512_srai_epi32(plane, (unsigned)shift));
}
/* Sixteen sums begin with what all lanes subtract, which is then free; v16d_finish() subtracts the zero points that differ. */
V16_INLINE v16d v16d_begin(uint32_t zero, int32_t xsum)
{
    return _mm512_set1_epi32((int)(0 - zero * (uint32_t)xsum));
}
V16_INLINE v16 v16d_finish(v16d acc, const int32_t *corr, const uint8_t *zeros, uint32_t zero, int32_t xsum)
{
    (void)zero;
    if (zeros)
        acc = _mm512_sub_epi32(acc, _mm512_mullo_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)zeros)),
                                                       _mm512_set1_epi32(xsum)));
    if (corr)
        acc = _mm512_add_epi32(acc, _mm512_loadu_si512(corr));
    return _mm512_cvtepi32_ps(acc);
}

#endif
