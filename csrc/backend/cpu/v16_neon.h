/* Sixteen lanes as four 128-bit registers: AArch64 NEON, with the dot products of dotprod or i8mm where the file that includes
 * this is compiled for them.  The names are explained in v16_scalar.h. */
#ifndef NB_BACKEND_CPU_V16_H
#define NB_BACKEND_CPU_V16_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "base/nf4.h"

#define V16_INLINE static inline __attribute__((always_inline))
#define V16_EACH   _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++)

/* 32 registers: 16 to 24 sums (a vector of sixteen lanes is four), 4 of weights, the rest for unpacking and zero points. */
#define V16_PANELS_1     4
#define V16_PANELS_2     2
#define V16_PANELS_4     1
#define V16_PANELS_6     1
#define V16_PANELS_8     0
#define V16_INT_PANELS_8 0
#if defined(__ARM_FEATURE_DOTPROD)
#define V16_INT_PANELS_1 4
#define V16_INT_PANELS_2 2
#define V16_INT_PANELS_4 1
#define V16_INT_PANELS_6 1
#define V16_INT_SUMS     6
#if defined(__ARM_FEATURE_MATMUL_INT8)
#define V16_ROW_PAIRS /* tile_i8mm.h */
#endif
#else /* a sum takes eight registers */
#define V16_INT_PANELS_1 2
#define V16_INT_PANELS_2 1
#define V16_INT_PANELS_4 0
#define V16_INT_PANELS_6 0
#define V16_INT_SUMS     2
#endif

typedef struct v16 {
    float32x4_t r[4];
} v16;
typedef struct v16u {
    uint32x4_t r[4];
} v16u;

V16_INLINE v16 v16_set1(float x)
{
    const float32x4_t f = vdupq_n_f32(x);
    return (v16){{f, f, f, f}};
}
V16_INLINE v16 v16_load(const float *p)
{
    return (v16){{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}
V16_INLINE v16 v16_load_f16(const uint16_t *p)
{
    v16 r;
    V16_EACH r.r[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
    return r;
}
V16_INLINE v16 v16_load_bf16(const uint16_t *p)
{
    v16 r;
    V16_EACH r.r[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16));
    return r;
}
V16_INLINE v16 v16_from_u8(uint8x16_t b)
{
    const uint16x8_t lo = vmovl_u8(vget_low_u8(b)), hi = vmovl_high_u8(b);
    return (v16){{vcvtq_f32_u32(vmovl_u16(vget_low_u16(lo))), vcvtq_f32_u32(vmovl_high_u16(lo)),
                  vcvtq_f32_u32(vmovl_u16(vget_low_u16(hi))), vcvtq_f32_u32(vmovl_high_u16(hi))}};
}
V16_INLINE v16 v16_load_u8(const uint8_t *p)
{
    return v16_from_u8(vld1q_u8(p));
}
V16_INLINE v16 v16_load_i8(const int8_t *p)
{
    const int8x16_t b = vld1q_s8(p);
    const int16x8_t lo = vmovl_s8(vget_low_s8(b)), hi = vmovl_high_s8(b);
    return (v16){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo))), vcvtq_f32_s32(vmovl_high_s16(lo)),
                  vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi))), vcvtq_f32_s32(vmovl_high_s16(hi))}};
}
V16_INLINE v16 v16_load_u4(const uint8_t *p) /* eight bytes, the low nibble first */
{
    const uint8x8_t b = vld1_u8(p), lo = vand_u8(b, vdup_n_u8(15)), hi = vshr_n_u8(b, 4);
    return v16_from_u8(vcombine_u8(vzip1_u8(lo, hi), vzip2_u8(lo, hi)));
}
V16_INLINE v16 v16_set1_f16(uint16_t h)
{
    const float32x4_t f = vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h)));
    return (v16){{f, f, f, f}};
}
V16_INLINE void v16_store(float *p, v16 a)
{
    V16_EACH vst1q_f32(p + 4 * i, a.r[i]);
}
V16_INLINE void v16_store_f16(uint16_t *p, v16 a)
{
    V16_EACH vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.r[i])));
}
V16_INLINE void v16_store_i8(int8_t *p, v16 a)
{
    int16x4_t w[4];
    V16_EACH w[i] = vmovn_s32(vcvtq_s32_f32(a.r[i]));
    vst1q_s8(p, vcombine_s8(vmovn_s16(vcombine_s16(w[0], w[1])), vmovn_s16(vcombine_s16(w[2], w[3]))));
}

V16_INLINE v16 v16_add(v16 a, v16 b)
{
    V16_EACH a.r[i] = vaddq_f32(a.r[i], b.r[i]);
    return a;
}
V16_INLINE v16 v16_sub(v16 a, v16 b)
{
    V16_EACH a.r[i] = vsubq_f32(a.r[i], b.r[i]);
    return a;
}
V16_INLINE v16 v16_mul(v16 a, v16 b)
{
    V16_EACH a.r[i] = vmulq_f32(a.r[i], b.r[i]);
    return a;
}
V16_INLINE v16 v16_div(v16 a, v16 b)
{
    V16_EACH a.r[i] = vdivq_f32(a.r[i], b.r[i]);
    return a;
}
V16_INLINE v16 v16_fma(v16 a, v16 b, v16 c)
{
    V16_EACH c.r[i] = vfmaq_f32(c.r[i], a.r[i], b.r[i]);
    return c;
}
/* Not fmax and fmin, which return a NaN where one of the two is one: b, as on x86. */
V16_INLINE v16 v16_max(v16 a, v16 b)
{
    V16_EACH a.r[i] = vbslq_f32(vcgtq_f32(a.r[i], b.r[i]), a.r[i], b.r[i]);
    return a;
}
V16_INLINE v16 v16_min(v16 a, v16 b)
{
    V16_EACH a.r[i] = vbslq_f32(vcltq_f32(a.r[i], b.r[i]), a.r[i], b.r[i]);
    return a;
}
V16_INLINE v16 v16_butterfly(v16 x, int len)
{
    if (len == 8)
        return (v16){{vaddq_f32(x.r[0], x.r[2]), vaddq_f32(x.r[1], x.r[3]), vsubq_f32(x.r[0], x.r[2]),
                      vsubq_f32(x.r[1], x.r[3])}};
    if (len == 4)
        return (v16){{vaddq_f32(x.r[0], x.r[1]), vsubq_f32(x.r[0], x.r[1]), vaddq_f32(x.r[2], x.r[3]),
                      vsubq_f32(x.r[2], x.r[3])}};
    /* the sign bit of the upper lanes: a - b is a + -b */
    const uint32x4_t upper = vcombine_u32(vcreate_u32(len == 1 ? 1ull << 63 : 0),
                                          vcreate_u32(len == 1 ? 1ull << 63 : 1ull << 63 | 1ull << 31));
    V16_EACH
    {
        const float32x4_t other = len == 1 ? vrev64q_f32(x.r[i]) : vextq_f32(x.r[i], x.r[i], 2);
        x.r[i] = vaddq_f32(other, vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(x.r[i]), upper)));
    }
    return x;
}
V16_INLINE float v16_most(v16 a)
{
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.r[0], a.r[1]), vmaxq_f32(a.r[2], a.r[3])));
}
V16_INLINE float v16_sum(v16 a)
{
    const float32x4_t q = vaddq_f32(vaddq_f32(a.r[0], a.r[2]), vaddq_f32(a.r[1], a.r[3]));
    const float32x2_t d = vadd_f32(vget_low_f32(q), vget_high_f32(q));
    return vget_lane_f32(d, 0) + vget_lane_f32(d, 1);
}
V16_INLINE void v16_pow2_halves(v16 t, v16 *a, v16 *b)
{
    const int32x4_t bias = vdupq_n_s32(127);
    V16_EACH
    {
        const int32x4_t n = vsubq_s32(vreinterpretq_s32_f32(t.r[i]), vdupq_n_s32(0x4b400000));
        const int32x4_t n1 = vshrq_n_s32(n, 1), n2 = vsubq_s32(n, n1);
        a->r[i] = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n1, bias), 23));
        b->r[i] = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n2, bias), 23));
    }
}

/* -- packed codes --
 * 0x4b000000 is 2^23 as fp32 and its last bit is worth 1: or-ing a code u into it gives 2^23 + u, and subtracting
 * 2^23 + zero leaves u - zero exactly, since all three are integers below 2^24. */
V16_INLINE v16u v16u_load(const void *p)
{
    const uint32_t *u = p;
    return (v16u){{vld1q_u32(u), vld1q_u32(u + 4), vld1q_u32(u + 8), vld1q_u32(u + 12)}};
}
V16_INLINE v16u v16u_shift(v16u w, int right)
{
    V16_EACH w.r[i] = right < 0 ? w.r[i] << (uint32_t)-right : w.r[i] >> (uint32_t)right;
    return w;
}
V16_INLINE v16u v16u_and(v16u w, uint32_t mask)
{
    V16_EACH w.r[i] = vandq_u32(w.r[i], vdupq_n_u32(mask));
    return w;
}
V16_INLINE v16u v16u_merge(v16u a, v16u b, uint32_t mask)
{
    V16_EACH a.r[i] = vbslq_u32(vdupq_n_u32(mask), a.r[i], b.r[i]);
    return a;
}
V16_INLINE v16 v16_table(const float t[8])
{
    return (v16){{vld1q_f32(t), vld1q_f32(t + 4), vld1q_f32(t), vld1q_f32(t + 4)}};
}
/* A number's four bytes are looked up by 4 u, 4 u + 1 ... in a table of two registers. */
V16_INLINE v16 v16_pick(v16u index, v16 table, uint32_t mask)
{
    const uint8x16x2_t t = {{vreinterpretq_u8_f32(table.r[0]), vreinterpretq_u8_f32(table.r[1])}};
    v16 r;
    V16_EACH
    {
        const uint32x4_t u = vandq_u32(index.r[i], vdupq_n_u32(mask));
        const uint32x4_t at = vmlaq_n_u32(vdupq_n_u32(0x03020100), u, 0x04040404);
        r.r[i] = vreinterpretq_f32_u8(vqtbl2q_u8(t, vreinterpretq_u8_u32(at)));
    }
    return r;
}
V16_INLINE v16 v16_pick4(v16u index, v16 table)
{
    return v16_pick(index, table, 3);
}
V16_INLINE v16 v16_pick8(v16u index, v16 table)
{
    return v16_pick(index, table, 7);
}
/* Written as C, since the intrinsic takes a shift that is constant only after unrolling. */
V16_INLINE uint32x4_t v16_bits(uint32x4_t w, int shift, uint32_t mask)
{
    return vandq_u32(w >> (uint32_t)shift, vdupq_n_u32(mask));
}
V16_INLINE v16 v16_zero_points(v16 zero, int bits)
{
    return (void)bits, v16_add(zero, v16_set1(0x1p23f));
}
V16_INLINE v16 v16_code(v16u w, int shift, uint32_t mask, v16 zero)
{
    V16_EACH
    {
        const uint32x4_t u = vorrq_u32(v16_bits(w.r[i], shift, mask), vdupq_n_u32(0x4b000000));
        zero.r[i] = vsubq_f32(vreinterpretq_f32_u32(u), zero.r[i]);
    }
    return zero;
}
V16_INLINE v16 v16_code8(v16u w, int j, v16 zero)
{
    return v16_code(w, 8 * j, 255, zero);
}
V16_INLINE v16 v16_code4z(v16u w, int shift, v16 zero)
{
    return v16_code(w, shift, 15, zero);
}
V16_INLINE v16 v16_code4(v16u w, int shift)
{
    return v16_code4z(w, shift, v16_set1(0x1p23f + 8));
}
V16_INLINE v16 v16_odd4(v16u w, int shift)
{
    return v16_code(v16u_shift(w, shift - 1), 0, 30, v16_set1(0x1p23f + 15));
}
/* The table is 64 bytes, four registers: a number's four bytes are looked up by 4 u, 4 u + 1 ... */
V16_INLINE v16 v16_nf4(v16u w, int shift)
{
    const uint8x16x4_t table = vld1q_u8_x4((const uint8_t *)nbi_nf4);
    v16 r;
    V16_EACH
    {
        const uint32x4_t at = vmlaq_n_u32(vdupq_n_u32(0x03020100), v16_bits(w.r[i], shift, 15), 0x04040404);
        r.r[i] = vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(at)));
    }
    return r;
}

/* -- integer dot products --
 * i8mm has the instruction that multiplies unsigned codes with signed activations.  The others multiply signed bytes: eight-bit
 * codes get their top bit flipped, which makes them u - 128, and the end adds 128 times the sum of the activations; four-bit
 * codes are positive either way.  Plain NEON has products of 16 bits (|.| <= 2^14) that are added in pairs to sums of 32: a
 * lane's four products land in two neighbouring sums that the end adds. */
typedef int8_t nbi_qx;
typedef v16u v16q;

V16_INLINE v16q v16q_from8(v16u w)
{
#if !defined(__ARM_FEATURE_MATMUL_INT8)
    V16_EACH w.r[i] = veorq_u32(w.r[i], vdupq_n_u32(0x80808080));
#endif
    return w;
}
V16_INLINE v16q v16q_bytes(v16u w)
{
    return w;
}
V16_INLINE v16q v16q_from4(v16u w, int high)
{
    V16_EACH w.r[i] = high ? vreinterpretq_u32_u8(vshrq_n_u8(vreinterpretq_u8_u32(w.r[i]), 4))
                           : vandq_u32(w.r[i], vdupq_n_u32(0x0f0f0f0f));
    return w;
}
#if defined(__ARM_FEATURE_DOTPROD)
typedef struct v16d {
    int32x4_t a[4];
} v16d;
typedef int8x16_t v16x;

V16_INLINE v16x v16x_load(const nbi_qx *x)
{
    int32_t four;
    memcpy(&four, x, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
V16_INLINE v16d v16d_add(v16d acc, v16q w, v16x x)
{
#if defined(__ARM_FEATURE_MATMUL_INT8)
    V16_EACH acc.a[i] = vusdotq_s32(acc.a[i], vreinterpretq_u8_u32(w.r[i]), x);
#else
    V16_EACH acc.a[i] = vdotq_s32(acc.a[i], vreinterpretq_s8_u32(w.r[i]), x);
#endif
    return acc;
}
V16_INLINE int32x4_t v16d_quarter(v16d acc, int i)
{
    return acc.a[i];
}
#else
typedef struct v16d {
    int32x4_t lo[4], hi[4]; /* lanes 4i and 4i+1, 4i+2 and 4i+3 */
} v16d;
typedef int8x8_t v16x;

V16_INLINE v16x v16x_load(const nbi_qx *x)
{
    int32_t four;
    memcpy(&four, x, 4);
    return vreinterpret_s8_s32(vdup_n_s32(four));
}
V16_INLINE v16d v16d_add(v16d acc, v16q w, v16x x)
{
    V16_EACH
    {
        const int8x16_t b = vreinterpretq_s8_u32(w.r[i]);
        acc.lo[i] = vpadalq_s16(acc.lo[i], vmull_s8(vget_low_s8(b), x));
        acc.hi[i] = vpadalq_s16(acc.hi[i], vmull_s8(vget_high_s8(b), x));
    }
    return acc;
}
V16_INLINE int32x4_t v16d_quarter(v16d acc, int i)
{
    return vpaddq_s32(acc.lo[i], acc.hi[i]);
}
#endif
V16_INLINE v16d v16d_zero(void)
{
    v16d z;
    memset(&z, 0, sizeof z);
    return z;
}
V16_INLINE v16d v16d_begin(uint32_t zero, int32_t xsum)
{
    (void)zero, (void)xsum;
    return v16d_zero();
}
V16_INLINE v16 v16d_finish(v16d acc, const int32_t *corr, const uint8_t *zeros, uint32_t zero, int32_t xsum)
{
#if defined(__ARM_FEATURE_MATMUL_INT8)
    const int32_t flipped = 0;
#else
    const int32_t flipped = zero == 128 ? 128 : 0; /* eight bits: the codes were multiplied as u - 128 */
#endif
    const int32x4_t x = vdupq_n_s32(xsum);
    v16 r;
    V16_EACH
    {
        int32x4_t z = vdupq_n_s32((int32_t)zero), s = v16d_quarter(acc, i);
        if (zeros) {
            uint32_t four;
            memcpy(&four, zeros + 4 * i, 4);
            z = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
        }
        if (corr)
            s = vaddq_s32(s, vld1q_s32(corr + 4 * i));
        r.r[i] = vcvtq_f32_s32(vmlsq_s32(s, vsubq_s32(z, vdupq_n_s32(flipped)), x));
    }
    return r;
}

#include "backend/cpu/v16_tails.h"

#endif
