/* e^x exactly as the CPU computes it (docs/numerics.md): the same bits. */
#ifndef NB_CUDA_EXP_CUH
#define NB_CUDA_EXP_CUH

#include "ptx.cuh"

/* x = n ln2 + r with n = rne(x / ln2), ln2 split in a part of 15 bits and the rest; e^r by Taylor's polynomial of
 * degree 7; 2^n as two factors, since n reaches 128 at the overflow and -150 in the subnormals.  At most 2 ulp, half a
 * subnormal step more below; 0 for x < -104, infinity for x >= 89, NaN for NaN. */
NB_DEVICE float nb_exp(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, which the low bits then hold */
    x = -104.0f > x ? -104.0f : x;   /* written so that a NaN stays */
    x = 89.0f < x ? 89.0f : x;
    const float t = fmaf(x, 0x1.715476p0f, magic), n = t - magic;
    const float r = fmaf(n, -0x1.7f7d1cp-20f, fmaf(n, -0x1.62e4p-1f, x));
    float p = fmaf(1.0f / 5040, r, 1.0f / 720);
    p = fmaf(p, r, 1.0f / 120);
    p = fmaf(p, r, 1.0f / 24);
    p = fmaf(p, r, 1.0f / 6);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    const int32_t i = __float_as_int(t) - 0x4b400000, half = i >> 1;
    return p * __int_as_float((half + 127) << 23) * __int_as_float((i - half + 127) << 23);
}

#endif
