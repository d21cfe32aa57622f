// sm: 80
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#include "corpus.cuh"
// Four-bit weights in an order that lop3 unpacks two at a time, a pipeline of cp.async stages, ldmatrix, mma, and stream-K with locks:
// the shape of Marlin's and llama.cpp's kernels.
__device__ __forceinline__ unsigned lop3_ea(unsigned a)
{
    unsigned r;
    asm("lop3.b32 %0,%1,%2,%3,0xea;" : "=r"(r) : "r"(a), "n"(0x000f000f), "n"(0x64006400));
    return r;
}
__device__ __forceinline__ unsigned lop3_hi(unsigned a)
{
    unsigned r;
    asm("lop3.b32 %0,%1,%2,%3,0xea;" : "=r"(r) : "r"(a), "n"(0x00f000f0), "n"(0x64006400));
    return r;
}

extern "C" __global__ void t_dequant(unsigned *out, const unsigned *in)
{
    unsigned q = in[threadIdx.x];
    unsigned lo = lop3_ea(q), hi = lop3_hi(q), lo2 = lop3_ea(q >> 8), hi2 = lop3_hi(q >> 8);
    __half2 a = __hsub2(*(__half2 *)&lo, __float2half2_rn(1032.f));
    __half2 b = __hfma2(*(__half2 *)&hi, __float2half2_rn(1 / 16.f), __float2half2_rn(-72.f));
    __half2 c = __hsub2(*(__half2 *)&lo2, __float2half2_rn(1032.f));
    __half2 d = __hfma2(*(__half2 *)&hi2, __float2half2_rn(1 / 16.f), __float2half2_rn(-72.f));
    auto n = [&](int k) { return float(int(q >> 4 * k & 15) - 8); };
    same(out, __low2float(a), n(0));
    same(out, __high2float(a), n(4));
    same(out, __low2float(b), n(1));
    same(out, __high2float(b), n(5));
    same(out, __low2float(c), n(2));
    same(out, __high2float(c), n(6));
    same(out, __low2float(d), n(3));
    same(out, __high2float(d), n(7));
    unsigned p;
    asm("prmt.b32 %0,%1,%2,0x5140;" : "=r"(p) : "r"(q), "r"(0x64646464u));
    same(out, p, (q & 255) | 0x6400 | ((q >> 8 & 255) << 16) | 0x64000000u);
    __half2 e = __hsub2(*(__half2 *)&p, __float2half2_rn(1024.f));
    same(out, __low2float(e), float(q & 255));
    int s = __dp4a((int)(q & 0x0f0f0f0f), (int)in[threadIdx.x + 1], 0), w = 0;
    for (int i = 0; i < 4; i++)
        w += int(q >> 8 * i & 15) * (signed char)(in[threadIdx.x + 1] >> 8 * i);
    same(out, s, w);
}
constexpr int KT = 32, STAGES = 3;
struct alignas(16) Smem {
    __half a[STAGES][16][KT + 8];
    unsigned b[STAGES][KT / 8 * 8];
};
__device__ unsigned pack(const unsigned *in, int k8, int n)
{
    return in[4096 + k8 * 8 + n];
}
// c[16][8] = a[16][K] * dequant(b[K][8]); K split over the blocks, which add in turn through a lock
__device__ float cglob[128];
__device__ int lock;

extern "C" __global__ void t_marlin_g4_b32(unsigned *out, const unsigned *in)
{
    constexpr int K_ = 256;
    int per = K_ / KT / 4, first = blockIdx.x * per;
    __shared__ Smem s;
    const int lane = threadIdx.x;
    float acc[4] = {0, 0, 0, 0};
    auto stage = [&](int t) {
        int sl = t % STAGES;
        for (int i = lane; i < 16 * KT / 8; i += 32) {
            int r = i / (KT / 8), c = i % (KT / 8);
            unsigned d = __cvta_generic_to_shared(&s.a[sl][r][c * 8]);
            asm volatile("{.reg .pred p; setp.ne.b32 p,%0,0; @p cp.async.cg.shared.global [%1],[%2],16;}" ::"r"(1),
                         "r"(d), "l"((const char *)(in + 8192) + ((r * K_ + (first + t) * KT + c * 8) * 2))
                         : "memory");
        }
        if (lane < KT / 8 * 8 / 4) {
            unsigned d = __cvta_generic_to_shared(&s.b[sl][lane * 4]);
            asm volatile("cp.async.cg.shared.global.L2::128B [%0],[%1],16;" ::"r"(d),
                         "l"(in + 4096 + ((first + t) * KT / 8) * 8 + lane * 4)
                         : "memory");
        }
    };
    for (int t = 0; t < STAGES - 1; t++) {
        if (t < per)
            stage(t);
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    for (int t = 0; t < per; t++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads();
        int sl = t % STAGES;
        for (int k = 0; k < KT; k += 16) {
            unsigned a[4];
            unsigned ad = __cvta_generic_to_shared(&s.a[sl][lane % 16][k + lane / 16 * 8]);
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                         : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                         : "r"(ad));
            // the words of the inputs are arbitrary halves: keep sign and mantissa, force the exponent to [1,2)
            for (int i = 0; i < 4; i++)
                a[i] = (a[i] & 0x83ff83ffu) | 0x3c003c00u;
            unsigned b[2];
            for (int h = 0; h < 2; h++) {
                int kk = k + h * 8 + lane % 4 * 2;
                unsigned w = s.b[sl][kk / 8 * 8 + lane / 4];
                int i = kk % 8;
                __half2 v = __halves2half2(__int2half_rn(int(w >> 4 * i & 15) - 8),
                                           __int2half_rn(int(w >> 4 * (i + 1) & 15) - 8));
                b[h] = *(unsigned *)&v;
            }
            asm volatile(
                "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
        }
        if (t + STAGES - 1 < per)
            stage(t + STAGES - 1);
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    if (lane == 0) {
        int st = -1;
        do
            asm volatile("ld.global.acquire.gpu.b32 %0,[%1];" : "=r"(st) : "l"(&lock));
        while (st != (int)blockIdx.x);
    }
    __syncthreads();
    for (int i = 0; i < 4; i++) {
        int r = lane / 4 + i / 2 * 8, c = lane % 4 * 2 + i % 2;
        float o = blockIdx.x ? cglob[r * 8 + c] : 0;
        cglob[r * 8 + c] = o + acc[i];
    }
    __syncthreads();
    if (lane == 0) {
        int v = 1;
        asm volatile("fence.acq_rel.gpu;\n" ::: "memory");
        asm volatile("red.relaxed.gpu.global.add.s32 [%0],%1;" ::"l"(&lock), "r"(v) : "memory");
    }
    if (blockIdx.x == 3) {
        __syncthreads();
        for (int i = lane; i < 128; i += 32) {
            double w = 0;
            for (int k = 0; k < K_; k++) {
                unsigned short h = ((const unsigned short *)(in + 8192))[i / 8 * K_ + k];
                h = (h & 0x83ff) | 0x3c00;
                w += double(__half2float(__ushort_as_half(h))) *
                     (int(in[4096 + k / 8 * 8 + i % 8] >> 4 * (k % 8) & 15) - 8);
            }
            close(out, cglob[i] + 1e4, w + 1e4, 1e-6);
        }
    } else
        same(out, 1, 1);
}

extern "C" __global__ void t_pipeline_prim(unsigned *out, const unsigned *in)
{
    __shared__ uint4 s[2][128];
    for (int k = 0; k < 2; k++) {
        __pipeline_memcpy_async(&s[k][threadIdx.x], (const uint4 *)in + k * 128 + threadIdx.x, 16);
        __pipeline_commit();
    }
    __pipeline_wait_prior(1);
    __syncthreads();
    same(out, s[0][127 - threadIdx.x].y, in[(127 - threadIdx.x) * 4 + 1]);
    __pipeline_wait_prior(0);
    __syncthreads();
    same(out, s[1][127 - threadIdx.x].w, in[512 + (127 - threadIdx.x) * 4 + 3]);
    __syncthreads();
    __pipeline_memcpy_async(&s[0][threadIdx.x], (const uint4 *)in + threadIdx.x, 16, 8);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    same(out, s[0][threadIdx.x].z, 0u);
    same(out, s[0][threadIdx.x].y, in[threadIdx.x * 4 + 1]);
}
__device__ float warpsum(float v)
{
    for (int o = 16; o; o >>= 1)
        v += __shfl_xor_sync(~0u, v, o);
    return v;
}

extern "C" __global__ void t_rms_norm_b256(unsigned *out, const unsigned *in)
{
    __shared__ float s[8];
    float v = int(in[threadIdx.x] & 1023) / 512.f;
    float q = warpsum(v * v);
    if (threadIdx.x % 32 == 0)
        s[threadIdx.x / 32] = q;
    __syncthreads();
    q = threadIdx.x % 32 < 8 ? s[threadIdx.x % 32] : 0;
    q = warpsum(q);
    double e = 0;
    for (int i = 0; i < 256; i++)
        e += double(in[i] & 1023) / 512 * (in[i] & 1023) / 512;
    close(out, q, e, 1e-5);
    float r = v * rsqrtf(q / 256 + 1e-5f);
    close(out, r, v / sqrt(e / 256 + 1e-5), 1e-5);
}

extern "C" __global__ void t_online_softmax_b32(unsigned *out, const unsigned *in)
{
    float m = -INFINITY, l = 0;
    for (int i = threadIdx.x; i < 512; i += 32) {
        float x = (in[i] & 1023) / 64.f;
        float n = fmaxf(m, x);
        l = l * __expf(m - n) + __expf(x - n);
        m = n;
    }
    for (int o = 16; o; o >>= 1) {
        float m2 = __shfl_xor_sync(~0u, m, o), l2 = __shfl_xor_sync(~0u, l, o);
        float n = fmaxf(m, m2);
        l = l * __expf(m - n) + l2 * __expf(m2 - n);
        m = n;
    }
    double e = 0;
    for (int i = 0; i < 512; i++)
        e += exp((in[i] & 1023) / 64. - m);
    close(out, l, e, 1e-4);
}
