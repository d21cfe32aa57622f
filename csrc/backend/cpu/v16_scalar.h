/* Sixteen lanes in plain C: the reference that the vector versions must equal bit for bit, and what other machines run.
 *
 * Every v16_*.h offers the same names.  Floats: v16.  Packed codes: v16u (one dword a lane).  Integer dot products:
 * v16q holds four codes a lane ready to multiply, nbi_qx is how an activation's code is stored, v16d sums. */
#ifndef NB_BACKEND_CPU_V16_H
#define NB_BACKEND_CPU_V16_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "base/dtype.h"
#include "base/nf4.h"

#if defined(NBI_CPU_SANITIZED)
#define V16_INLINE static inline /* checked code that is inlined everywhere takes minutes to compile */
#else
#define V16_INLINE static inline __attribute__((always_inline))
#endif
#define V16_EACH for (int i = 0; i < 16; i++)

/* Register tiles (linear_body.h): tiles of M rows take V16_PANELS_M panels, 0: there are none of so many rows. */
#define V16_PANELS_1     1
#define V16_PANELS_2     0
#define V16_PANELS_4     0
#define V16_PANELS_6     0
#define V16_PANELS_8     0
#define V16_INT_PANELS_1 1
#define V16_INT_PANELS_2 0
#define V16_INT_PANELS_4 0
#define V16_INT_PANELS_6 0
#define V16_INT_PANELS_8 0

typedef struct v16 {
    float f[16];
} v16;
typedef struct v16u {
    uint32_t u[16];
} v16u;

V16_INLINE v16 v16_set1(float x)
{
    v16 r;
    V16_EACH r.f[i] = x;
    return r;
}
V16_INLINE v16 v16_load(const float *p)
{
    v16 r;
    memcpy(r.f, p, sizeof r.f);
    return r;
}
/* The first n lanes from memory, the rest 0; nothing beyond p[n-1] is read. */
V16_INLINE v16 v16_load_n(const float *p, size_t n)
{
    v16 r = {{0}};
    memcpy(r.f, p, n * sizeof(float));
    return r;
}
V16_INLINE v16 v16_load_f16_n(const uint16_t *p, size_t n)
{
    v16 r = {{0}};
    for (size_t i = 0; i < n; i++)
        r.f[i] = nbi_f16_to_f32(p[i]);
    return r;
}
V16_INLINE v16 v16_load_f16(const uint16_t *p)
{
    return v16_load_f16_n(p, 16);
}
V16_INLINE v16 v16_load_bf16(const uint16_t *p)
{
    v16 r;
    V16_EACH r.f[i] = nbi_bf16_to_f32(p[i]);
    return r;
}
V16_INLINE v16 v16_load_u8(const uint8_t *p)
{
    v16 r;
    V16_EACH r.f[i] = (float)p[i];
    return r;
}
V16_INLINE v16 v16_load_i8(const int8_t *p)
{
    v16 r;
    V16_EACH r.f[i] = (float)p[i];
    return r;
}
V16_INLINE v16 v16_load_u4(const uint8_t *p) /* eight bytes, the low nibble first */
{
    v16 r;
    V16_EACH r.f[i] = (float)(p[i / 2] >> 4 * (i % 2) & 15);
    return r;
}
V16_INLINE v16 v16_set1_f16(uint16_t h)
{
    return v16_set1(nbi_f16_to_f32(h));
}
V16_INLINE void v16_store(float *p, v16 a)
{
    memcpy(p, a.f, sizeof a.f);
}
V16_INLINE void v16_store_n(float *p, v16 a, size_t n)
{
    memcpy(p, a.f, n * sizeof(float));
}

V16_INLINE void v16_store_f16_n(uint16_t *p, v16 a, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = nbi_f32_to_f16(a.f[i]);
}
V16_INLINE void v16_store_i8_n(int8_t *p, v16 a, size_t n) /* of integers -128 .. 127 */
{
    for (size_t i = 0; i < n; i++)
        p[i] = (int8_t)a.f[i];
}

/* Lanes at distance len (1, 2, 4, 8): the lower becomes a + b, the upper a - b. */
V16_INLINE v16 v16_butterfly(v16 x, int len)
{
    v16 r;
    V16_EACH r.f[i] = i & len ? x.f[i - len] - x.f[i] : x.f[i] + x.f[i + len];
    return r;
}
V16_INLINE v16 v16_add(v16 a, v16 b)
{
    V16_EACH a.f[i] = a.f[i] + b.f[i];
    return a;
}
V16_INLINE v16 v16_sub(v16 a, v16 b)
{
    V16_EACH a.f[i] = a.f[i] - b.f[i];
    return a;
}
V16_INLINE v16 v16_mul(v16 a, v16 b)
{
    V16_EACH a.f[i] = a.f[i] * b.f[i];
    return a;
}
V16_INLINE v16 v16_div(v16 a, v16 b)
{
    V16_EACH a.f[i] = a.f[i] / b.f[i];
    return a;
}
V16_INLINE v16 v16_fma(v16 a, v16 b, v16 c) /* a*b + c, rounded once */
{
    V16_EACH a.f[i] = fmaf(a.f[i], b.f[i], c.f[i]);
    return a;
}
/* As the x86 instructions: b where either is a NaN. */
V16_INLINE v16 v16_max(v16 a, v16 b)
{
    V16_EACH a.f[i] = a.f[i] > b.f[i] ? a.f[i] : b.f[i];
    return a;
}
V16_INLINE v16 v16_min(v16 a, v16 b)
{
    V16_EACH a.f[i] = a.f[i] < b.f[i] ? a.f[i] : b.f[i];
    return a;
}
V16_INLINE float v16_most(v16 a) /* the largest; where one is a NaN, anything that is one of them */
{
    for (int i = 1; i < 16; i++)
        a.f[0] = a.f[0] > a.f[i] ? a.f[0] : a.f[i];
    return a.f[0];
}
/* The tree: lane i takes lane i+8, then i+4, i+2, i+1. */
V16_INLINE float v16_sum(v16 a)
{
    for (int step = 8; step; step /= 2)
        for (int i = 0; i < step; i++)
            a.f[i] = a.f[i] + a.f[i + step];
    return a.f[0];
}
/* 2^n1 and 2^n2 with n1 + n2 = n, where t is 1.5*2^23 + n and |n| <= 252: the bits of t hold n. */
V16_INLINE void v16_pow2_halves(v16 t, v16 *a, v16 *b)
{
    V16_EACH
    {
        uint32_t u, n1, n2;
        memcpy(&u, &t.f[i], 4);
        int32_t n = (int32_t)(u - 0x4b400000u);
        n1 = (uint32_t)(n >> 1);
        n2 = (uint32_t)n - n1;
        n1 = (n1 + 127) << 23;
        n2 = (n2 + 127) << 23;
        memcpy(&a->f[i], &n1, 4);
        memcpy(&b->f[i], &n2, 4);
    }
}

/* -- packed codes -- */
V16_INLINE v16u v16u_load(const void *p)
{
    v16u r;
    memcpy(r.u, p, sizeof r.u);
    return r;
}
V16_INLINE v16u v16u_shift(v16u w, int right) /* logical; negative: to the left */
{
    V16_EACH w.u[i] = right < 0 ? w.u[i] << -right : w.u[i] >> right;
    return w;
}
V16_INLINE v16u v16u_and(v16u w, uint32_t mask)
{
    V16_EACH w.u[i] &= mask;
    return w;
}
V16_INLINE v16u v16u_merge(v16u a, v16u b, uint32_t mask) /* bits of the mask from a, others from b */
{
    V16_EACH a.u[i] = (a.u[i] & mask) | (b.u[i] & ~mask);
    return a;
}
/* Numbers to choose from by an index; for v16_pick4 the second four are the first again. */
V16_INLINE v16 v16_table(const float t[8])
{
    v16 r;
    V16_EACH r.f[i] = t[i % 8];
    return r;
}
V16_INLINE v16 v16_pick4(v16u index, v16 table) /* by the lowest two bits of a lane's index, whatever the others are */
{
    v16 r;
    V16_EACH r.f[i] = table.f[index.u[i] & 3];
    return r;
}
V16_INLINE v16 v16_pick8(v16u index, v16 table) /* by the lowest three */
{
    v16 r;
    V16_EACH r.f[i] = table.f[index.u[i] & 7];
    return r;
}
/* The zero points of a group in the form that v16_code8 (bits 8) or v16_code4z (4) takes. */
V16_INLINE v16 v16_zero_points(v16 zero, int bits)
{
    return (void)bits, zero;
}
V16_INLINE v16 v16_code8(v16u w, int j, v16 zero) /* byte j, minus the zero point */
{
    V16_EACH zero.f[i] = (float)(w.u[i] >> (8 * j) & 0xff) - zero.f[i];
    return zero;
}
V16_INLINE v16 v16_code4z(v16u w, int shift, v16 zero) /* the nibble at bit `shift`, minus the zero point */
{
    V16_EACH zero.f[i] = (float)(w.u[i] >> shift & 15) - zero.f[i];
    return zero;
}
V16_INLINE v16 v16_code4(v16u w, int shift)
{
    v16 r;
    V16_EACH r.f[i] = (float)((int)(w.u[i] >> shift & 15) - 8);
    return r;
}
V16_INLINE v16 v16_odd4(v16u w, int shift) /* twice the nibble at bit `shift`, minus 15 */
{
    v16 r;
    V16_EACH r.f[i] = (float)(2 * (int)(w.u[i] >> shift & 15) - 15);
    return r;
}
V16_INLINE v16 v16_nf4(v16u w, int shift) /* the number that the nibble at bit `shift` stands for */
{
    v16 r;
    V16_EACH r.f[i] = nbi_nf4[w.u[i] >> shift & 15];
    return r;
}

/* -- integer dot products, modulo 2^32 -- */
typedef int16_t nbi_qx;
typedef v16u v16q;
typedef v16u v16d;
typedef const nbi_qx *v16x;

V16_INLINE v16q v16q_from8(v16u w)
{
    return w;
}
V16_INLINE v16q v16q_bytes(v16u w) /* codes below 128, a byte each */
{
    return w;
}
V16_INLINE v16q v16q_from4(v16u w, int high)
{
    V16_EACH w.u[i] = w.u[i] >> (4 * high) & 0x0f0f0f0fu;
    return w;
}
V16_INLINE v16x v16x_load(const nbi_qx *x)
{
    return x;
}
V16_INLINE v16d v16d_zero(void)
{
    return (v16d){{0}};
}
V16_INLINE v16d v16d_add(v16d acc, v16q w, v16x x) /* acc + the four products of a lane */
{
    V16_EACH for (int j = 0; j < 4; j++) acc.u[i] += (uint32_t)((int32_t)(w.u[i] >> (8 * j) & 0xff) * x[j]);
    return acc;
}
/* The sums as fp32 after + corr (NULL: 0) - zero * xsum; exact, as pack.c checked that the result fits an int32. */
V16_INLINE v16d v16d_begin(uint32_t zero, int32_t xsum)
{
    (void)zero, (void)xsum;
    return v16d_zero();
}
V16_INLINE v16 v16d_finish(v16d acc, const int32_t *corr, const uint8_t *zeros, uint32_t zero, int32_t xsum)
{
    v16 r;
    V16_EACH
    {
        uint32_t s = acc.u[i] + (corr ? (uint32_t)corr[i] : 0) - (zeros ? zeros[i] : zero) * (uint32_t)xsum;
        r.f[i] = (float)(int32_t)s;
    }
    return r;
}

#endif
