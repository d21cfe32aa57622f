// sm: 80
#include <math_constants.h>
#include "corpus.cuh"
// Inverse pairs, identities and known values of the device library.
__device__ double unit(unsigned x)
{
    return x / 4294967296.0;
}
__device__ double wide(unsigned x)
{
    return (int(x) / 2147483648.0) * 20;
}

extern "C" __global__ void t_double(unsigned *out, const unsigned *in)
{
    double x = wide(in[threadIdx.x * 2]), y = unit(in[threadIdx.x * 2 + 1]) + 1e-3;
    double s, c;
    sincos(x, &s, &c);
    close(out, s * s + c * c, 1, 4e-16 * 2);
    close(out, sin(x), s, 1e-15);
    close(out, tan(x), s / c, 4e-15);
    sincospi(y, &s, &c);
    close(out, s, sin(y * CUDART_PI), 1e-13);
    close(out, sinpi(y), s, 1e-15);
    close(out, cospi(y), c, 1e-15);
    close(out, log(exp(x)), x, 1e-13);
    close(out, exp2(log2(y)), y, 1e-14);
    close(out, exp10(log10(y)), y, 1e-14);
    close(out, log1p(expm1(y)), y, 1e-14);
    close(out, pow(y, 3.0), y * y * y, 1e-15);
    close(out, cbrt(x) * cbrt(x) * cbrt(x), x, 1e-14);
    close(out, rcbrt(y), 1 / cbrt(y), 1e-15);
    close(out, sqrt(y) * sqrt(y), y, 1e-15);
    close(out, rsqrt(y) * sqrt(y), 1, 1e-15);
    close(out, hypot(x, y), sqrt(x * x + y * y), 1e-15);
    close(out, rhypot(x, y), 1 / hypot(x, y), 1e-15);
    close(out, norm3d(x, y, x), sqrt(x * x + y * y + x * x), 1e-15);
    close(out, norm4d(x, y, x, y), sqrt(2 * x * x + 2 * y * y), 1e-15);
    close(out, asin(y / 1.1), atan2(y / 1.1, sqrt(1 - y / 1.1 * y / 1.1)), 1e-14);
    close(out, acos(cos(y)), y, 1e-11);
    close(out, tan(atan(x)), x, 1e-13);
    close(out, atan2(s, c), y * CUDART_PI < CUDART_PI ? y * CUDART_PI : y * CUDART_PI - 2 * CUDART_PI, 1e-12);
    close(out, asinh(sinh(y)), y, 1e-14);
    close(out, acosh(cosh(y + 1)), y + 1, 1e-14);
    close(out, atanh(tanh(y)), y, 1e-13);
    close(out, sinh(x), (exp(x) - exp(-x)) / 2, 1e-12);
    close(out, erf(x) + erfc(x), 1, 1e-15);
    close(out, erfinv(erf(y)), y, 1e-13);
    close(out, erfcinv(erfc(y)), y, 1e-13);
    close(out, normcdf(normcdfinv(y / 1.1)), y / 1.1, 1e-13);
    close(out, erfcx(y), exp(y * y) * erfc(y), 1e-13);
    close(out, tgamma(y + 1), y * tgamma(y), 1e-13);
    close(out, exp(lgamma(y + 2)), tgamma(y + 2), 1e-13);
    close(out, tgamma(6.0 + (in[0] & 0)), 120, 1e-15);
    close(out, j0(y) * j0(y) * 0 + j1(y) * y0(y) - j0(y) * y1(y), 2 / (CUDART_PI * y), 1e-12);
    close(out, jn(2, y), 2 / y * j1(y) - j0(y), 1e-8);
    close(out, yn(2, y), 2 / y * y1(y) - y0(y), 1e-12);
    close(out, cyl_bessel_i0(y),
          1 + y * y / 4 + y * y * y * y / 64 + pow(y, 6.) / 2304 + pow(y, 8.) / 147456 + pow(y, 10.) / 14745600, 1e-9);
    close(out, fmod(x, y), x - trunc(x / y) * y, 1e-11);
    same(out, fmod(x, y) == 0 || fabs(fmod(x, y)) < y, true);
    same(out, fabs(remainder(x, y)) <= y / 2, true);
    int q;
    double r = remquo(x, y, &q);
    same(out, r, remainder(x, y));
    same(out, q & 7, (int)(long long)rint((x - r) / y) & 7);
    double ip;
    double fr = modf(x, &ip);
    same(out, fr + ip, x);
    same(out, ip, trunc(x));
    int e;
    double m = frexp(x, &e);
    same(out, ldexp(m, e), x);
    same(out, scalbn(m, e), x);
    same(out, ilogb(x), e - 1);
    same(out, logb(x), double(e - 1));
    same(out, nextafter(nextafter(x, 100.), -100.), x);
    same(out, floor(x) <= x && ceil(x) >= x, true);
    same(out, round(x), x < 0 ? -floor(-x + .5) : floor(x + .5));
    same(out, llrint(x), (long long)rint(x));
    same(out, lround(x), (long)round(x));
    same(out, fdim(x, y), x > y ? x - y : 0.);
    same(out, fma(x, y, 1.), __fma_rn(x, y, 1.));
    same(out, copysign(x, -y), -fabs(x));
    same(out, fmax(x, CUDART_NAN), x);
    same(out, isnan(x), 0);
    same(out, isfinite(x), 1);
    same(out, signbit(x) != 0, x < 0);
    same(out, __dadd_rd(x, y) <= __dadd_ru(x, y), true);
    same(out, __dmul_rz(x, y) == __dmul_rn(x, y) || __dmul_rz(x, y) != 0, true);
    same(out, __ddiv_rd(x, y) <= __ddiv_ru(x, y), true);
    same(out, __dsqrt_rd(y) <= __dsqrt_ru(y), true);
    same(out, __drcp_rn(y), 1 / y);
    same(out, __double2int_rz(x), int(x));
    same(out, __double2uint_rn(y * 100), (unsigned)rint(y * 100));
    same(out, __double2float_rd(x) <= __double2float_ru(x), true);
    same(out, __ll2double_rn((long long)in[0] << 30), double((long long)in[0] << 30));
    same(out, __hiloint2double(__double2hiint(x), __double2loint(x)), x);
}

extern "C" __global__ void t_float(unsigned *out, const unsigned *in)
{
    float x = wide(in[threadIdx.x * 2]), y = unit(in[threadIdx.x * 2 + 1]) + 1e-3f;
    double X = x, Y = y;
    close(out, sinf(x), sin(X), 3e-7 * 2);
    close(out, cosf(x), cos(X), 6e-7);
    close(out, tanf(x), tan(X), 6e-7);
    close(out, sinf(x * 1e6f), sin(double(x * 1e6f)), 6e-7);
    float s, c;
    sincosf(x, &s, &c);
    same(out, s, sinf(x));
    same(out, c, cosf(x));
    close(out, sinpif(y), sinpi(Y), 6e-7);
    close(out, cospif(y), cospi(Y), 6e-7);
    close(out, expf(x), exp(X), 3e-7);
    close(out, exp2f(x), exp2(X), 3e-7);
    close(out, exp10f(x), exp10(X), 3e-7);
    close(out, expm1f(y), expm1(Y), 3e-7);
    close(out, logf(y), log(Y), 3e-7);
    close(out, log2f(y), log2(Y), 3e-7);
    close(out, log10f(y), log10(Y), 4e-7);
    close(out, log1pf(y), log1p(Y), 3e-7);
    close(out, powf(y, x), pow(Y, X), 2e-6);
    close(out, cbrtf(x), cbrt(X), 2e-7);
    close(out, rcbrtf(x), rcbrt(X), 3e-7);
    close(out, hypotf(x, y), hypot(X, Y), 4e-7);
    close(out, rhypotf(x, y), rhypot(X, Y), 4e-7);
    close(out, norm3df(x, y, x), norm3d(X, Y, X), 4e-7);
    close(out, asinf(y / 1.1f), asin(double(y / 1.1f)), 6e-7);
    close(out, acosf(y / 1.1f), acos(double(y / 1.1f)), 6e-7);
    close(out, atanf(x), atan(X), 4e-7);
    close(out, atan2f(x, y), atan2(X, Y), 5e-7);
    close(out, sinhf(x), sinh(X), 5e-7);
    close(out, coshf(x), cosh(X), 4e-7);
    close(out, tanhf(x), tanh(X), 3e-7);
    close(out, asinhf(x), asinh(X), 6e-7);
    close(out, acoshf(y + 1.f), acosh(double(y + 1.f)), 6e-7);
    close(out, atanhf(y / 1.1f), atanh(double(y / 1.1f)), 6e-7);
    close(out, erff(x), erf(X), 3e-7);
    close(out, erfcf(y), erfc(Y), 6e-7);
    close(out, erfinvf(y / 1.1f), erfinv(double(y / 1.1f)), 4e-7);
    close(out, erfcinvf(y), erfcinv(Y), 9e-7);
    close(out, erfcxf(y), erfcx(Y), 6e-7);
    close(out, normcdff(y), normcdf(Y), 8e-7);
    close(out, normcdfinvf(y / 1.1f), normcdfinv(double(y / 1.1f)), 2e-6);
    close(out, lgammaf(y + 3.f), lgamma(double(y + 3.f)), 8e-7);
    close(out, tgammaf(y + 1.f), tgamma(double(y + 1.f)), 8e-7);
    close(out, j0f(y), j0(Y), 1e-6);
    close(out, j1f(y), j1(Y), 1e-6);
    close(out, y0f(y * .1f), y0(double(y * .1f)), 1e-6);
    close(out, cyl_bessel_i1f(y), cyl_bessel_i1(Y), 2e-6);
    same(out, fmodf(x, y), (float)fmod(X, Y));
    same(out, remainderf(x, y), (float)remainder(X, Y));
    int e;
    float m = frexpf(x, &e);
    same(out, ldexpf(m, e), x);
    same(out, scalbnf(m, e), x);
    same(out, ilogbf(x), e - 1);
    same(out, nextafterf(nextafterf(x, 99.f), -99.f), x);
    float ip;
    same(out, modff(x, &ip) + ip, x);
    same(out, rintf(x), (float)rint(X));
    same(out, roundf(x), (float)round(X));
    same(out, lrintf(x), (long)rint(X));
    same(out, truncf(x), (float)trunc(X));
    close(out, __sinf(y), sin(Y), 1e-4);
    close(out, __cosf(y), cos(Y), 1e-4);
    close(out, __expf(x), exp(X), 1e-5);
    close(out, __logf(y + 2), log(double(y + 2)), 1e-5);
    close(out, __powf(y + 1, 2), (Y + 1) * (Y + 1), 1e-5);
    close(out, __fdividef(x, y), X / Y, 1e-6);
    close(out, __tanf(y), tan(Y), 1e-4);
    close(out, __exp10f(y), exp10(Y), 1e-5);
    close(out, __log2f(y + 2), log2(double(y + 2)), 1e-5);
    same(out, __saturatef(x), fminf(1, fmaxf(0, x)));
    same(out, __fdiv_rn(x, y), (float)(X / Y));
    same(out, __fsqrt_rn(y), (float)sqrt(Y));
    same(out, __frcp_rn(y), (float)(1 / Y));
    same(out, __fadd_rd(x, y) <= X + Y && __fadd_ru(x, y) >= X + Y, true);
    same(out, __fmul_rd(x, y) <= X * Y && __fmul_ru(x, y) >= X * Y, true);
    same(out, fabs(__fmul_rz(x, y)) <= fabs(X * Y), true);
    same(out, __fmaf_rd(x, y, 1) <= X * Y + 1, true);
    same(out, __frsqrt_rn(y) > 0, true);
    same(out, __float2int_rd(x), (int)floor(X));
    same(out, __float2ll_ru(x), (long long)ceil(X));
    same(out, __int_as_float(__float_as_int(x)), x);
    same(out, fmaf(x, y, x), __fmaf_rn(x, y, x));
    same(out, sinf(CUDART_INF_F) != sinf(CUDART_INF_F), true);
    same(out, expf(-200.f * y - 200), 0.f);
    same(out, expf(200.f), CUDART_INF_F);
    same(out, logf(0.f * y), -CUDART_INF_F);
    same(out, powf(0.f * y, 0.f), 1.f);
    same(out, sqrtf(-y) != sqrtf(-y), true);
    same(out, tanhf(100.f * y + 50), 1.f);
    same(out, fminf(x, CUDART_NAN_F), x);
    same(out, rsqrtf(0.f * y), CUDART_INF_F);
}
