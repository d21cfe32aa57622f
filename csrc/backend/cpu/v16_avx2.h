/* Sixteen lanes as two 256-bit registers: AVX2, FMA, F16C, and vpdpbusd where the file that includes this is compiled with it.
 * The names are explained in v16_scalar.h. */
#ifndef NB_BACKEND_CPU_V16_H
#define NB_BACKEND_CPU_V16_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "base/nf4.h"

#define V16_INLINE static inline __attribute__((always_inline))

/* 16 registers: 8 sums (a lane of sixteen is two), 2 of weights, the rest for unpacking. */
#define V16_PANELS_1     4
#define V16_PANELS_2     2
#define V16_PANELS_4     1
#define V16_PANELS_6     0
#define V16_PANELS_8     0
#define V16_INT_PANELS_8 0
#if defined(__AVXVNNI__) || defined(__AVX512VNNI__)
#define V16_VNNI
#define V16_INT_PANELS_1 4
#define V16_INT_PANELS_2 2
#define V16_INT_PANELS_4 1
#define V16_INT_PANELS_6 1
#define V16_INT_SUMS     4
#else /* a sum takes four registers */
#define V16_INT_PANELS_1 2
#define V16_INT_PANELS_2 1
#define V16_INT_PANELS_4 0
#define V16_INT_PANELS_6 0
#define V16_INT_SUMS     2
#endif

typedef struct v16 {
    __m256 lo, hi;
} v16;
typedef struct v16u {
    __m256i lo, hi;
} v16u;

V16_INLINE v16 v16_make(__m256 lo, __m256 hi)
{
    return (v16){lo, hi};
}
V16_INLINE v16 v16_set1(float x)
{
    return v16_make(_mm256_set1_ps(x), _mm256_set1_ps(x));
}
V16_INLINE v16 v16_load(const float *p)
{
    return v16_make(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
}
V16_INLINE v16 v16_load_f16(const uint16_t *p)
{
    return v16_make(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                    _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8))));
}
V16_INLINE __m256 v16_bf16_half(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
V16_INLINE v16 v16_load_bf16(const uint16_t *p)
{
    return v16_make(v16_bf16_half(p), v16_bf16_half(p + 8));
}
V16_INLINE v16 v16_from_u8(__m128i b)
{
    return v16_make(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(b)),
                    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(b, 8))));
}
V16_INLINE v16 v16_load_u8(const uint8_t *p)
{
    return v16_from_u8(_mm_loadu_si128((const __m128i *)p));
}
V16_INLINE v16 v16_load_i8(const int8_t *p)
{
    __m128i b = _mm_loadu_si128((const __m128i *)p);
    return v16_make(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)),
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(b, 8))));
}
V16_INLINE v16 v16_load_u4(const uint8_t *p) /* eight bytes, the low nibble first */
{
    __m128i b = _mm_loadl_epi64((const __m128i *)p), mask = _mm_set1_epi8(15);
    return v16_from_u8(_mm_unpacklo_epi8(_mm_and_si128(b, mask), _mm_and_si128(_mm_srli_epi16(b, 4), mask)));
}
V16_INLINE v16 v16_set1_f16(uint16_t h)
{
    return v16_set1(_cvtsh_ss(h));
}
V16_INLINE void v16_store(float *p, v16 a)
{
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
V16_INLINE void v16_store_f16(uint16_t *p, v16 a)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
V16_INLINE void v16_store_i8(int8_t *p, v16 a)
{
    /* packing works within 128 bits: lanes 0-3 8-11 4-7 12-15, of four bytes each */
    const __m256i w = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
    const __m128i b = _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
    _mm_storeu_si128((__m128i *)p, _mm_shuffle_epi32(b, 0xd8));
}

V16_INLINE v16 v16_add(v16 a, v16 b)
{
    return v16_make(_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi));
}
V16_INLINE v16 v16_sub(v16 a, v16 b)
{
    return v16_make(_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi));
}
V16_INLINE v16 v16_mul(v16 a, v16 b)
{
    return v16_make(_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi));
}
V16_INLINE v16 v16_div(v16 a, v16 b)
{
    return v16_make(_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi));
}
V16_INLINE v16 v16_max(v16 a, v16 b)
{
    return v16_make(_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi));
}
V16_INLINE __m256 v16_butterfly_half(__m256 x, int len)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    /* the sign bit of the upper lanes: a - b is a + -b */
    const __m256i upper = _mm256_slli_epi32(_mm256_and_si256(lane, _mm256_set1_epi32(len)), len == 1   ? 31
                                                                                            : len == 2 ? 30
                                                                                                       : 29);
    const __m256 other = len == 1   ? _mm256_permute_ps(x, 0xb1)
                         : len == 2 ? _mm256_permute_ps(x, 0x4e)
                                    : _mm256_permute2f128_ps(x, x, 1);
    return _mm256_add_ps(other, _mm256_xor_ps(x, _mm256_castsi256_ps(upper)));
}
V16_INLINE v16 v16_butterfly(v16 x, int len)
{
    if (len == 8)
        return v16_make(_mm256_add_ps(x.lo, x.hi), _mm256_sub_ps(x.lo, x.hi));
    return v16_make(v16_butterfly_half(x.lo, len), v16_butterfly_half(x.hi, len));
}
V16_INLINE v16 v16_min(v16 a, v16 b)
{
    return v16_make(_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi));
}
V16_INLINE v16 v16_fma(v16 a, v16 b, v16 c)
{
    return v16_make(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi));
}
V16_INLINE float v16_most(v16 a)
{
    __m256 e = _mm256_max_ps(a.lo, a.hi);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
V16_INLINE float v16_sum(v16 a)
{
    __m256 e = _mm256_add_ps(a.lo, a.hi);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
V16_INLINE void v16_pow2_half(__m256 t, __m256 *a, __m256 *b)
{
    const __m256i bias = _mm256_set1_epi32(127);
    __m256i n = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_set1_epi32(0x4b400000));
    __m256i n1 = _mm256_srai_epi32(n, 1), n2 = _mm256_sub_epi32(n, n1);
    *a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n1, bias), 23));
    *b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n2, bias), 23));
}
V16_INLINE void v16_pow2_halves(v16 t, v16 *a, v16 *b)
{
    v16_pow2_half(t.lo, &a->lo, &b->lo);
    v16_pow2_half(t.hi, &a->hi, &b->hi);
}

/* -- packed codes --
 * 0x4b000000 is 2^23 as fp32 and its last bit is worth 1: or-ing a code u into it gives 2^23 + u, and subtracting
 * 2^23 + zero leaves u - zero exactly, since all three are integers below 2^24. */
V16_INLINE v16u v16u_load(const void *p)
{
    return (v16u){_mm256_load_si256(p), _mm256_load_si256((const __m256i *)p + 1)};
}
V16_INLINE v16u v16u_shift(v16u w, int right)
{
    return right < 0 ? (v16u){_mm256_slli_epi32(w.lo, -right), _mm256_slli_epi32(w.hi, -right)}
                     : (v16u){_mm256_srli_epi32(w.lo, right), _mm256_srli_epi32(w.hi, right)};
}
V16_INLINE v16u v16u_and(v16u w, uint32_t mask)
{
    const __m256i m = _mm256_set1_epi32((int)mask);
    return (v16u){_mm256_and_si256(w.lo, m), _mm256_and_si256(w.hi, m)};
}
V16_INLINE v16u v16u_merge(v16u a, v16u b, uint32_t mask)
{
    const __m256i m = _mm256_set1_epi32((int)mask);
    return (v16u){_mm256_or_si256(_mm256_and_si256(m, a.lo), _mm256_andnot_si256(m, b.lo)),
                  _mm256_or_si256(_mm256_and_si256(m, a.hi), _mm256_andnot_si256(m, b.hi))};
}
V16_INLINE v16 v16_zero_points(v16 zero, int bits)
{
    return (void)bits, v16_add(zero, v16_set1(0x1p23f));
}
V16_INLINE __m256 v16_code_half(__m256i w, int shift, int mask, __m256 zero)
{
    __m256i u = _mm256_and_si256(_mm256_srli_epi32(w, shift), _mm256_set1_epi32(mask));
    return _mm256_sub_ps(_mm256_castsi256_ps(_mm256_or_si256(u, _mm256_set1_epi32(0x4b000000))), zero);
}
V16_INLINE v16 v16_code8(v16u w, int j, v16 zero)
{
    return v16_make(v16_code_half(w.lo, 8 * j, 255, zero.lo), v16_code_half(w.hi, 8 * j, 255, zero.hi));
}
V16_INLINE v16 v16_code4z(v16u w, int shift, v16 zero)
{
    return v16_make(v16_code_half(w.lo, shift, 15, zero.lo), v16_code_half(w.hi, shift, 15, zero.hi));
}
V16_INLINE v16 v16_code4(v16u w, int shift)
{
    return v16_code4z(w, shift, v16_set1(0x1p23f + 8));
}
V16_INLINE __m256 v16_odd4_half(__m256i w, int shift)
{
    const __m256i twice = shift ? _mm256_srli_epi32(w, shift - 1) : _mm256_slli_epi32(w, 1);
    const __m256i u = _mm256_or_si256(_mm256_and_si256(twice, _mm256_set1_epi32(30)), _mm256_set1_epi32(0x4b000000));
    return _mm256_sub_ps(_mm256_castsi256_ps(u), _mm256_set1_ps(0x1p23f + 15));
}
V16_INLINE v16 v16_odd4(v16u w, int shift)
{
    return v16_make(v16_odd4_half(w.lo, shift), v16_odd4_half(w.hi, shift));
}
V16_INLINE v16 v16_table(const float t[8])
{
    return v16_make(_mm256_loadu_ps(t), _mm256_loadu_ps(t));
}
V16_INLINE v16 v16_pick4(v16u index, v16 table)
{
    return v16_make(_mm256_permutevar_ps(table.lo, index.lo), _mm256_permutevar_ps(table.lo, index.hi));
}
V16_INLINE v16 v16_pick8(v16u index, v16 table)
{
    return v16_make(_mm256_permutevar8x32_ps(table.lo, index.lo), _mm256_permutevar8x32_ps(table.lo, index.hi));
}
/* vpermps looks at the low 3 bits of an index; bit 3, moved to the sign, chooses between two tables. */
V16_INLINE __m256 v16_nf4_half(__m256i w, int shift)
{
    const __m256i at = _mm256_srli_epi32(w, shift);
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(_mm256_loadu_ps(nbi_nf4), at),
                            _mm256_permutevar8x32_ps(_mm256_loadu_ps(nbi_nf4 + 8), at),
                            _mm256_castsi256_ps(_mm256_slli_epi32(at, 28)));
}
V16_INLINE v16 v16_nf4(v16u w, int shift)
{
    return v16_make(v16_nf4_half(w.lo, shift), v16_nf4_half(w.hi, shift));
}

/* -- integer dot products -- */
V16_INLINE __m256i v16q_nibbles(__m256i w, int high)
{
    return _mm256_and_si256(_mm256_srli_epi32(w, 4 * high), _mm256_set1_epi8(15));
}
#if defined(V16_VNNI)
/* In place: from the intrinsic GCC 12 makes a copy of every sum in every step.  One of two encodings: AVX-VNNI's, or that of
 * AVX-512 for 256 bits. */
V16_INLINE __m256i v16_dpbusd(__m256i acc, __m256i w, __m256i x)
{
#if defined(__AVXVNNI__)
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(w), "x"(x));
#else
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
#endif
    return acc;
}
typedef int8_t nbi_qx;
typedef v16u v16q;
typedef v16u v16d;
typedef __m256i v16x;

V16_INLINE v16q v16q_from8(v16u w)
{
    return w;
}
V16_INLINE v16q v16q_bytes(v16u w)
{
    return v16q_from8(w);
}
V16_INLINE v16q v16q_from4(v16u w, int high)
{
    return (v16q){v16q_nibbles(w.lo, high), v16q_nibbles(w.hi, high)};
}
V16_INLINE v16x v16x_load(const nbi_qx *x)
{
    int four;
    memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}
V16_INLINE v16d v16d_zero(void)
{
    return (v16d){_mm256_setzero_si256(), _mm256_setzero_si256()};
}
V16_INLINE v16d v16d_add(v16d acc, v16q w, v16x x)
{
    return (v16d){v16_dpbusd(acc.lo, w.lo, x), v16_dpbusd(acc.hi, w.hi, x)};
}
V16_INLINE __m256i v16d_eight(v16d acc, int high)
{
    return high ? acc.hi : acc.lo;
}
#else
/* Codes are widened to 16 bits and multiplied with pmaddwd, whose two products cannot overflow; a lane's four products
 * land in two neighbouring sums that the end adds.  (pmaddubsw would saturate at 255*127*2.) */
typedef int16_t nbi_qx;
typedef struct v16q {
    __m256i a[4]; /* lanes 4i .. 4i+3: four 16-bit codes each */
} v16q;
typedef v16q v16d;
typedef __m256i v16x;

V16_INLINE v16q v16q_widen(__m256i lo, __m256i hi)
{
    return (v16q){
        {_mm256_cvtepu8_epi16(_mm256_castsi256_si128(lo)), _mm256_cvtepu8_epi16(_mm256_extracti128_si256(lo, 1)),
         _mm256_cvtepu8_epi16(_mm256_castsi256_si128(hi)), _mm256_cvtepu8_epi16(_mm256_extracti128_si256(hi, 1))}};
}
V16_INLINE v16q v16q_from8(v16u w)
{
    return v16q_widen(w.lo, w.hi);
}
V16_INLINE v16q v16q_bytes(v16u w)
{
    return v16q_from8(w);
}
V16_INLINE v16q v16q_from4(v16u w, int high)
{
    return v16q_widen(v16q_nibbles(w.lo, high), v16q_nibbles(w.hi, high));
}
V16_INLINE v16x v16x_load(const nbi_qx *x)
{
    long long four;
    memcpy(&four, x, 8);
    return _mm256_set1_epi64x(four);
}
V16_INLINE v16d v16d_zero(void)
{
    const __m256i z = _mm256_setzero_si256();
    return (v16d){{z, z, z, z}};
}
V16_INLINE v16d v16d_add(v16d acc, v16q w, v16x x)
{
    for (int i = 0; i < 4; i++)
        acc.a[i] = _mm256_add_epi32(acc.a[i], _mm256_madd_epi16(w.a[i], x));
    return acc;
}
V16_INLINE __m256i v16d_eight(v16d acc, int high)
{
    /* hadd leaves lanes 0 1 4 5 2 3 6 7: it works within 128 bits */
    return _mm256_permute4x64_epi64(_mm256_hadd_epi32(acc.a[2 * high], acc.a[2 * high + 1]), 0xd8);
}
#endif
V16_INLINE __m256 v16d_half(__m256i s, const int32_t *corr, __m256i zero, int32_t xsum)
{
    if (corr)
        s = _mm256_add_epi32(s, _mm256_loadu_si256((const __m256i *)corr));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(s, _mm256_mullo_epi32(zero, _mm256_set1_epi32(xsum))));
}
V16_INLINE v16d v16d_begin(uint32_t zero, int32_t xsum)
{
    (void)zero, (void)xsum;
    return v16d_zero();
}
V16_INLINE v16 v16d_finish(v16d acc, const int32_t *corr, const uint8_t *zeros, uint32_t zero, int32_t xsum)
{
    __m256i zlo = _mm256_set1_epi32((int)zero), zhi = zlo;
    if (zeros) {
        __m128i b = _mm_loadu_si128((const __m128i *)zeros);
        zlo = _mm256_cvtepu8_epi32(b);
        zhi = _mm256_cvtepu8_epi32(_mm_srli_si128(b, 8));
    }
    return v16_make(v16d_half(v16d_eight(acc, 0), corr, zlo, xsum),
                    v16d_half(v16d_eight(acc, 1), corr ? corr + 8 : NULL, zhi, xsum));
}

#include "backend/cpu/v16_tails.h"

#endif
