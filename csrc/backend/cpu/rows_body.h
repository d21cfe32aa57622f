/* Row operations on sixteen lanes: RMS norm, exp, SwiGLU, rotations.  Included after linear_body.h.
 *
 * Sums over a row have a fixed shape: lane i takes elements i, i+16, ... in ascending order with fused multiply-adds
 * from 0, then the tree 8, 4, 2, 1 joins the lanes.  Lanes beyond the end add 0 and change nothing. */
#include "backend/cpu/cpu.h"

static void rmsnorm_row(const float *x, const float *weight, float eps, size_t k, float *y)
{
    v16 acc = v16_set1(0);
    size_t i = 0;
    for (; i + 16 <= k; i += 16)
        acc = v16_fma(v16_load(x + i), v16_load(x + i), acc);
    if (i < k) {
        v16 tail = v16_load_n(x + i, k - i);
        acc = v16_fma(tail, tail, acc);
    }
    const float r = 1.0f / __builtin_sqrtf(v16_sum(acc) / (float)k + eps);
    for (i = 0; i < k; i++)
        y[i] = x[i] * r * weight[i];
}

/* e^x.  x = n ln2 + r with n = rne(x / ln2), so |r| <= 0.3467; ln2 is split in two so that n * ln2_hi is exact.  e^r is
 * its Taylor polynomial of degree 7: the next term is below 0.3467^8/8! = 5.2e-9, a twelfth of an ulp.  2^n is two
 * factors, because n reaches 128 at the overflow and -150 in the subnormals; the last product rounds once.
 * Error: below 1 ulp for a normal result (the test takes 2 as the limit), half a subnormal step more below.
 * -inf gives 0, +inf gives +inf, a NaN stays one. */
V16_INLINE v16 v16_exp(v16 x)
{
    static const float c[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    const v16 magic = v16_set1(0x1.8p23f);
    v16 n, r, p, a, b, t;
    x = v16_max(v16_set1(-104.0f), x); /* this order of arguments keeps a NaN; e^-104 rounds to 0 */
    x = v16_min(v16_set1(89.0f), x);   /* e^89 overflows */
    t = v16_fma(x, v16_set1(0x1.715476p0f), magic);
    n = v16_sub(t, magic);
    r = v16_fma(n, v16_set1(-0x1.62e4p-1f), x); /* ln2 to 15 bits: n has 8, the product is exact */
    r = v16_fma(n, v16_set1(-0x1.7f7d1cp-20f), r);
    p = v16_set1(c[0]);
    for (int i = 1; i < 8; i++)
        p = v16_fma(p, r, v16_set1(c[i]));
    v16_pow2_halves(t, &a, &b);
    return v16_mul(v16_mul(p, a), b);
}

static void exp_n(const float *x, size_t n, float *y)
{
    for (size_t i = 0; i < n; i += 16) {
        size_t m = n - i < 16 ? n - i : 16;
        v16_store_n(y + i, v16_exp(v16_load_n(x + i, m)), m);
    }
}

/* y = (g / (1 + e^-g)) * u */
static void swiglu(const float *gate, const float *up, size_t n, float *y)
{
    const v16 one = v16_set1(1), minus = v16_set1(-1);
    for (size_t i = 0; i < n; i += 16) {
        size_t m = n - i < 16 ? n - i : 16;
        v16 g = v16_load_n(gate + i, m);
        v16 s = v16_div(g, v16_add(one, v16_exp(v16_mul(g, minus))));
        v16_store_n(y + i, v16_mul(s, v16_load_n(up + i, m)), m);
    }
}

/* ---- base/rotation.h: h parts of m = 2^p elements ---- */

/* The stages within sixteen elements, then those between sixteens; n = min(m, 16) is a power of two. */
static void butterflies(float *x, size_t m)
{
    const size_t n = m < 16 ? m : 16;
    for (size_t i = 0; i < m; i += 16) {
        v16 v = v16_load_n(x + i, n);
        if (n > 1)
            v = v16_butterfly(v, 1);
        if (n > 2)
            v = v16_butterfly(v, 2);
        if (n > 4)
            v = v16_butterfly(v, 4);
        if (n > 8)
            v = v16_butterfly(v, 8);
        v16_store_n(x + i, v, n);
    }
    for (size_t len = 16; len < m; len *= 2)
        for (size_t at = 0; at < m; at += 2 * len)
            for (size_t i = at; i < at + len; i += 16) {
                const v16 a = v16_load(x + i), b = v16_load(x + i + len);
                v16_store(x + i, v16_add(a, b));
                v16_store(x + i + len, v16_sub(a, b));
            }
}

/* Sixteen columns j at a time: their h elements are read, mixed and written before the next ones. */
static void mix_parts(float *x, size_t h, size_t m, const float *hartley)
{
    float mixed[NBI_CPU_PARTS * 16];
    const size_t n = m < 16 ? m : 16;
    for (size_t j = 0; j < m; j += 16) {
        for (size_t i = 0; i < h; i++) {
            v16 acc = v16_set1(0);
            for (size_t s = 0; s < h; s++)
                acc = v16_fma(v16_set1(hartley[i * h + s]), v16_load_n(x + s * m + j, n), acc);
            v16_store(mixed + i * 16, acc);
        }
        for (size_t i = 0; i < h; i++)
            v16_store_n(x + i * m + j, v16_load(mixed + i * 16), n);
    }
}

static void rotate_row(const nbi_cpu_rotation *r, float *x)
{
    for (size_t i = 0; i < r->h; i++)
        butterflies(x + i * r->m, r->m);
    if (r->h > 1)
        mix_parts(x, r->h, r->m, r->hartley);
    for (size_t i = 0; i < r->h * r->m; i++)
        x[i] *= r->unit;
}
