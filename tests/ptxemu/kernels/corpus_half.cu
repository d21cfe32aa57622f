// sm: 80
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_fp4.h>
#include <cuda_fp6.h>
#include "corpus.cuh"
__device__ float bf2f(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}
__device__ float r16(float x)
{
    return __half2float(__float2half_rn(x));
}
__device__ float rb(float x)
{
    return __bfloat162float(__float2bfloat16_rn(x));
}
__device__ float fin(unsigned v)
{
    return (int(v & 0xffff) - 32768) / 512.f;
}

extern "C" __global__ void t_half(unsigned *out, const unsigned *in)
{
    float fa = r16(fin(in[threadIdx.x * 8 + 0])), fb = r16(fin(in[threadIdx.x * 8 + 1])),
          fc = r16(fin(in[threadIdx.x * 8 + 2]));
    __half a = __float2half(fa), b = __float2half(fb), c = __float2half(fc);
    same(out, __half2float(__hadd(a, b)), r16(fa + fb));
    same(out, __half2float(__hsub(a, b)), r16(fa - fb));
    same(out, __half2float(__hmul(a, b)), r16(fa * fb));
    close(out, __half2float(__hdiv(a, b)), fa / fb, 1e-3);
    same(out, __half2float(__hfma(a, b, c)), r16(float(double(fa) * fb + fc)));
    same(out, __half2float(a + b), r16(fa + fb));
    same(out, __half2float(-a), -fa);
    same(out, __half2float(__habs(a)), fabsf(fa));
    same(out, __half2float(__hadd_sat(a, b)), fminf(1, fmaxf(0, r16(fa + fb))));
    same(out, __half2float(__hfma_relu(a, b, c)), fmaxf(0, r16(float(double(fa) * fb + fc))));
    same(out, __half2float(__hmax(a, b)), fmaxf(fa, fb));
    same(out, __half2float(__hmin(a, b)), fminf(fa, fb));
    same(out, __half2float(__hmax_nan(a, b)), fmaxf(fa, fb));
    same(out, __heq(a, b), fa == fb);
    same(out, __hlt(a, b), fa < fb);
    same(out, __hgeu(a, b), fa >= fb);
    same(out, __hisnan(a), false);
    same(out, __hisinf(a), 0);
    same(out, __half2int_rn(a), __float2int_rn(fa));
    same(out, __half2int_rz(a), __float2int_rz(fa));
    same(out, __half2uint_rd(__habs(a)), __float2uint_rd(fabsf(fa)));
    same(out, __half2short_ru(a), (short)__float2int_ru(fa));
    same(out, __half2ll_rd(a), __float2ll_rd(fa));
    same(out, __half2float(__int2half_rn(int(in[threadIdx.x * 8 + 0]) % 3000)),
         r16(int(in[threadIdx.x * 8 + 0]) % 3000));
    same(out, __half2float(__ushort2half_rz((unsigned short)(in[threadIdx.x * 8 + 0] % 2000))),
         float(in[threadIdx.x * 8 + 0] % 2000));
    same(out, __half2float(__ull2half_rn(in[threadIdx.x * 8 + 0] % 2000)), float(in[threadIdx.x * 8 + 0] % 2000));
    same(out, __half2float(__double2half(fa)), fa);
    same(out, __half_as_ushort(__float2half_rz(1.0009f)), 0x3c00);
    same(out, __half_as_ushort(__float2half_ru(1.0001f)), 0x3c01);
    same(out, __half_as_ushort(__float2half_rd(1.0009f)), 0x3c00);
    same(out, __half2float(hfloor(a)), floorf(fa));
    same(out, __half2float(hceil(a)), ceilf(fa));
    same(out, __half2float(htrunc(a)), truncf(fa));
    same(out, __half2float(hrint(a)), rintf(fa));
    __half p = __habs(a);
    float fp = fabsf(fa) + 0.01f;
    p = __float2half(fp);
    fp = __half2float(p);
    close(out, __half2float(hsqrt(p)), sqrtf(fp), 1e-3);
    close(out, __half2float(hrsqrt(p)), rsqrtf(fp), 1e-3);
    close(out, __half2float(hrcp(p)), 1 / fp, 1e-3);
    close(out, __half2float(hlog(p)), logf(fp), 2e-2);
    close(out, __half2float(hlog2(p)), log2f(fp), 2e-2);
    close(out, __half2float(hlog10(p)), log10f(fp), 2e-2);
    __half q = __float2half(fa / 16);
    float fq = __half2float(q);
    close(out, __half2float(hexp(q)), expf(fq), 2e-3);
    close(out, __half2float(hexp2(q)), exp2f(fq), 2e-3);
    close(out, __half2float(hexp10(q)), exp10f(fq), 2e-3);
    close(out, __half2float(hsin(q)), sinf(fq), 3e-3);
    close(out, __half2float(hcos(q)), cosf(fq), 3e-3);
#if __CUDA_ARCH__ >= 750
    close(out, __half2float(htanh(q)), tanhf(fq), 3e-3);
    close(out, __half2float(htanh_approx(q)), tanhf(fq), 5e-3);
#endif
}

extern "C" __global__ void t_half2(unsigned *out, const unsigned *in)
{
    float fa = r16(fin(in[threadIdx.x * 8 + 0])), fb = r16(fin(in[threadIdx.x * 8 + 1])),
          fc = r16(fin(in[threadIdx.x * 8 + 2])), fd = r16(fin(in[threadIdx.x * 8 + 3]));
    __half2 a = __floats2half2_rn(fa, fb), b = __floats2half2_rn(fc, fd);
    __half2 r = __hadd2(a, b);
    same(out, __low2float(r), r16(fa + fc));
    same(out, __high2float(r), r16(fb + fd));
    r = __hmul2(a, b);
    same(out, __low2float(r), r16(fa * fc));
    same(out, __high2float(r), r16(fb * fd));
    r = __hfma2(a, b, a);
    same(out, __high2float(r), r16(float(double(fb) * fd + fb)));
    r = __hsub2(a, b);
    same(out, __low2float(r), r16(fa - fc));
    r = __h2div(a, b);
    close(out, __low2float(r), fa / fc, 1e-3);
    close(out, __high2float(r), fb / fd, 1e-3);
    r = __hneg2(a);
    same(out, __low2float(r), -fa);
    r = __habs2(a);
    same(out, __high2float(r), fabsf(fb));
    r = __hmax2(a, b);
    same(out, __low2float(r), fmaxf(fa, fc));
    same(out, __high2float(r), fmaxf(fb, fd));
    r = __hmin2_nan(a, b);
    same(out, __low2float(r), fminf(fa, fc));
    r = __heq2(a, a);
    same(out, __low2float(r), 1.f);
    r = __hlt2(a, b);
    same(out, __high2float(r), fb < fd ? 1.f : 0.f);
    same(out, __hbeq2(a, a), true);
    same(out, __hblt2(a, b), fa < fc && fb < fd);
    same(out, __hbgtu2(a, b), fa > fc && fb > fd);
    same(out, __heq2_mask(a, a), 0xffffffffu);
    same(out, __hgt2_mask(a, b), (fa > fc ? 0xffffu : 0) | (fb > fd ? 0xffff0000u : 0));
    r = __lowhigh2highlow(a);
    same(out, __low2float(r), fb);
    r = __lows2half2(a, b);
    same(out, __high2float(r), fc);
    r = __highs2half2(a, b);
    same(out, __low2float(r), fb);
    r = __low2half2(a);
    same(out, __high2float(r), fa);
    r = __half2half2(__float2half(fa));
    same(out, __high2float(r), fa);
    r = __hfma2_relu(a, b, a);
    same(out, __low2float(r), fmaxf(0, r16(float(double(fa) * fc + fa))));
    r = __hfma2_sat(a, b, a);
    same(out, __low2float(r), fminf(1, fmaxf(0, r16(float(double(fa) * fc + fa)))));
    r = __hcmadd(a, b, a);
    r = h2sqrt(__habs2(a));
    close(out, __low2float(r), sqrtf(fabsf(fa)), 1e-3);
    r = h2exp2(__hmul2(a, __float2half2_rn(0.0625f)));
    close(out, __low2float(r), exp2f(r16(fa / 16)), 2e-3);
    r = h2rcp(b);
    close(out, __low2float(r), 1 / fc, 1e-3);
    __half2 *p = (__half2 *)(out + 700);
    if (threadIdx.x == 0)
        *p = __float2half2_rn(0);
    __syncthreads();
    atomicAdd(p, __float2half2_rn(1.f));
    atomicAdd((__half *)(out + 701) + threadIdx.x % 2, __float2half(2.f));
    __syncthreads();
    same(out, __high2float(*p), 128.f);
    same(out, __low2float(*(__half2 *)(out + 701)), 128.f);
    unsigned m = __activemask();
    r = __shfl_xor_sync(~0u, a, 1);
    unsigned t = threadIdx.x ^ 1;
    same(out, __low2float(r), r16(fin(in[t * 8])));
    __half h = __shfl_sync(~0u, __float2half(fb), 5);
    same(out, __half2float(h), r16(fin(in[(threadIdx.x / 32 * 32 + 5) * 8 + 1])));
    r = __ldg((const __half2 *)in + threadIdx.x);
    same(out, *(unsigned *)&r, in[threadIdx.x]);
    r = __ldcs((const __half2 *)in + threadIdx.x);
    same(out, *(unsigned *)&r, in[threadIdx.x]);
    __stcg((__half2 *)out + 256 + threadIdx.x, r);
}

extern "C" __global__ void t_bf16(unsigned *out, const unsigned *in)
{
    float fa = rb(fin(in[threadIdx.x * 8 + 0])), fb = rb(fin(in[threadIdx.x * 8 + 1])),
          fc = rb(fin(in[threadIdx.x * 8 + 2]));
    __nv_bfloat16 a = __float2bfloat16(fa), b = __float2bfloat16(fb), c = __float2bfloat16(fc);
    same(out, bf2f(__hadd(a, b)), rb(fa + fb));
    same(out, bf2f(__hsub(a, b)), rb(fa - fb));
    same(out, bf2f(__hmul(a, b)), rb(fa * fb));
    close(out, bf2f(__hdiv(a, b)), fa / fb, 8e-3);
    same(out, bf2f(__hfma(a, b, c)), rb(fmaf(fa, fb, fc)));
    same(out, bf2f(__hmax(a, b)), fmaxf(fa, fb));
    same(out, bf2f(__hmin(a, b)), fminf(fa, fb));
    same(out, bf2f(__hneg(a)), -fa);
    same(out, bf2f(__habs(a)), fabsf(fa));
    same(out, __hlt(a, b), fa < fb);
    same(out, bf2f(__hadd_sat(a, b)), fminf(1, fmaxf(0, rb(fa + fb))));
    same(out, bf2f(__hfma_relu(a, b, c)), fmaxf(0, rb(fmaf(fa, fb, fc))));
    same(out, __bfloat162int_rn(a), __float2int_rn(fa));
    same(out, __bfloat162uint_rz(__habs(a)), __float2uint_rz(fabsf(fa)));
    same(out, bf2f(__int2bfloat16_rn(int(in[threadIdx.x * 8 + 0]))), rb(float(int(in[threadIdx.x * 8 + 0]))));
    same(out, bf2f(__ll2bfloat16_rn((long long)(int)in[threadIdx.x * 8 + 0])), rb(float(int(in[threadIdx.x * 8 + 0]))));
    same(out, __bfloat162ll_rd(a), __float2ll_rd(fa));
    same(out, __bfloat16_as_ushort(__float2bfloat16_rz(1.0078f)), 0x3f80);
    same(out, __bfloat16_as_ushort(__float2bfloat16_ru(1.0001f)), 0x3f81);
    same(out, bf2f(__double2bfloat16(double(fa))), fa);
    float fp = rb(fabsf(fa) + .01f);
    __nv_bfloat16 p = __float2bfloat16(fp);
    close(out, bf2f(hsqrt(p)), sqrtf(fp), 8e-3);
    close(out, bf2f(hrsqrt(p)), rsqrtf(fp), 8e-3);
    close(out, bf2f(hrcp(p)), 1 / fp, 8e-3);
    close(out, bf2f(hlog(p)), logf(fp), 1.6e-2);
    close(out, bf2f(hexp(__float2bfloat16(fa / 16))), expf(rb(fa / 16)), 8e-3);
    close(out, bf2f(hsin(p)), sinf(fp), 2e-2);
    close(out, bf2f(htanh(a)), tanhf(fa), 8e-3);
    same(out, bf2f(hfloor(a)), floorf(fa));
    same(out, bf2f(hrint(a)), rintf(fa));
    __nv_bfloat162 x = __floats2bfloat162_rn(fa, fb), y = __floats2bfloat162_rn(fc, fa), r = __hadd2(x, y);
    same(out, bf2f(r.x), rb(fa + fc));
    same(out, bf2f(r.y), rb(fb + fa));
    r = __hmul2(x, y);
    same(out, bf2f(r.y), rb(fb * fa));
    r = __hfma2(x, y, x);
    same(out, bf2f(r.x), rb(fmaf(fa, fc, fa)));
    r = __hmax2(x, y);
    same(out, bf2f(r.x), fmaxf(fa, fc));
    same(out, __hbeq2(x, x), true);
    same(out, __hgt2_mask(x, y) & 0xffff, fa > fc ? 0xffffu : 0u);
    float2 f2 = __bfloat1622float2(x);
    same(out, f2.y, fb);
    r = __halves2bfloat162(b, a);
    same(out, bf2f(__high2bfloat16(r)), fa);
    __nv_bfloat162 *q = (__nv_bfloat162 *)(out + 700);
    if (threadIdx.x == 0)
        *q = __float2bfloat162_rn(0);
    __syncthreads();
    atomicAdd(q, __float2bfloat162_rn(1.f));
    atomicAdd((__nv_bfloat16 *)(out + 701), __float2bfloat16(1.f));
    __syncthreads();
    same(out, bf2f(q->x), 128.f);
    r = __shfl_down_sync(~0u, x, 3);
}

extern "C" __global__ void t_fp8(unsigned *out, const unsigned *in)
{
    float f = fin(in[threadIdx.x * 8 + 0]);
    __nv_fp8_e4m3 a(f);
    float g = float(a);
    close(out, g, f, 0.07);
    __nv_fp8_e5m2 b(f);
    close(out, float(b), f, 0.13);
    __nv_fp8x2_e4m3 c(make_float2(f, -f));
    float2 h = float2(c);
    same(out, h.x, g);
    same(out, h.y, -g);
    __nv_fp8x4_e4m3 d(make_float4(f, 1, 2, -f));
    float4 k = float4(d);
    same(out, k.x, g);
    same(out, k.z, 2.f);
    same(out, k.w, -g);
    same(out, float(__nv_fp8_e4m3(1000.f)), 448.f);
    same(out, float(__nv_fp8_e5m2(-1e9f)), -57344.f);
    __nv_fp8_storage_t s = __nv_cvt_float_to_fp8(f, __NV_SATFINITE, __NV_E4M3);
    __half_raw hr = __nv_cvt_fp8_to_halfraw(s, __NV_E4M3);
    same(out, __half2float(__half(hr)), g);
    __nv_fp8x2_storage_t s2 =
        __nv_cvt_halfraw2_to_fp8x2(__half2_raw(__floats2half2_rn(f, g)), __NV_SATFINITE, __NV_E4M3);
    same(out, s2 >> 8, s);
    __nv_bfloat16 bf = __nv_bfloat16(a);
    same(out, bf2f(bf), g);
    double dd = double(a);
    same(out, dd, double(g));
    same(out, int(a), int(g));
    __nv_fp8_e4m3 i8(int(in[threadIdx.x * 8 + 0] & 15));
    same(out, float(i8), float(in[threadIdx.x * 8 + 0] & 15));
    __nv_fp8_storage_t bits = in[threadIdx.x * 8 + 0] & 0xff;
    __nv_fp8_e4m3 v;
    v.__x = bits;
    float e = (bits & 0x78) ? ldexpf(8 + (bits & 7), (bits >> 3 & 15) - 10) : ldexpf(bits & 7, -9);
    if (bits & 128)
        e = -e;
    if ((bits & 127) != 127)
        same(out, float(v), e);
    __nv_fp4_e2m1 f4(f / 64);
    close(out, float(f4), f / 64, 1.);
    __nv_fp6_e3m2 f6(f / 8);
    close(out, float(f6), f / 8, 1.);
    __nv_fp8_e8m0 e8(fabsf(f) + 1);
    same(out, float(e8) > 0, true);
}
