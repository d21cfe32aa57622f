// sm: 75 90a
#include <stdio.h>
#include <assert.h>
#include <mma.h>
#include <cuda_runtime.h>
#include <alloca.h>
#include "corpus.cuh"
struct Big {
    int a[40];
    double d;
};
struct alignas(16) Par {
    const unsigned *p;
    int k[5];
    char c;
    short s;
    float4 f;
};
// statics with relocations
__device__ int table[8] = {1, 2, 3, 4, 5, 6, 7, 8};
__device__ int *ptrs[3] = {table + 1, &table[5], table + 7};
__constant__ struct {
    int n;
    int *const *q;
    const char *s;
    float f[4];
} cst = {7, ptrs, "hello", {1, 2, 3, 4}};
typedef int (*Fn)(int);
__device__ __noinline__ int f1(int x)
{
    return x * 3;
}
__device__ __noinline__ int f2(int x)
{
    return x + 11;
}
__device__ __noinline__ int f3(int x)
{
    return x < 2 ? x : f3(x - 1) + f3(x - 2);
}
__device__ Fn fns[3] = {f1, f2, f3};
__constant__ Fn cfn = f2;

extern "C" __global__ void t_statics(unsigned *out, const unsigned *in)
{
    unsigned i = in[threadIdx.x] % 3;
    same(out, *cst.q[i], i == 0 ? 2 : i == 1 ? 6 : 8);
    same(out, cst.s[4], 'o');
    same(out, cst.f[in[threadIdx.x] & 3], 1.f + (in[threadIdx.x] & 3));
    int x = in[threadIdx.x] % 9;
    same(out, fns[i](x), i == 0 ? x * 3 : i == 1 ? x + 11 : f3(x));
    same(out, cfn(x), x + 11);
}
struct A {
    int v;
    __device__ A(int v) : v(v) {}
    __device__ virtual int g(int x) const { return x + v; }
    __device__ virtual ~A() {}
};
struct B : A {
    __device__ B(int v) : A(v) {}
    __device__ int g(int x) const override { return x * v; }
};
struct M {
    __device__ virtual int h() const { return 4; }
};
struct C : B, virtual M {
    __device__ C(int v) : B(v) {}
    __device__ int g(int x) const override { return x - v + h(); }
    __device__ int h() const override { return 9; }
};

extern "C" __global__ void t_virtual(unsigned *out, const unsigned *in)
{
    A a(3);
    B b(4);
    C c(5);
    const A *p[3] = {&a, &b, &c};
    unsigned i = in[threadIdx.x] % 3;
    int x = in[threadIdx.x] & 255;
    same(out, p[i]->g(x), i == 0 ? x + 3 : i == 1 ? x * 4 : x - 5 + 9);
    A *n = i == 1 ? new B(7) : new A(8);
    same(out, n->g(x), i == 1 ? x * 7 : x + 8);
    delete n;
    const M *m = &c;
    same(out, m->h(), 9);
}

extern "C" __global__ void t_malloc(unsigned *out, const unsigned *in)
{
    int n = in[threadIdx.x] & 63;
    int *p = (int *)malloc((n + 1) * 4);
    same(out, p != nullptr, true);
    for (int i = 0; i <= n; i++)
        p[i] = i;
    int s = 0;
    for (int i = 0; i <= n; i++)
        s += p[i];
    same(out, s, n * (n + 1) / 2);
    free(p);
}

extern "C" __global__ void t_alloca(unsigned *out, const unsigned *in)
{
    int n = (in[threadIdx.x] & 31) + 1;
    int s = 0;
    for (int r = 0; r < 3; r++) {
        int *p = (int *)alloca(n * 4);
        for (int i = 0; i < n; i++)
            p[i] = i * r;
        for (int i = 0; i < n; i++)
            s += p[n - 1 - i];
    }
    same(out, s, 3 * n * (n - 1) / 2);
}
__device__ __noinline__ int vla(int n)
{
    int *p = (int *)__builtin_alloca(n * sizeof(int));
    p[0] = 1;
    for (int i = 1; i < n; i++)
        p[i] = p[i - 1] * 3;
    int r = p[n - 1];
    if (n > 1)
        r += vla(n - 1);
    return r;
}

extern "C" __global__ void t_alloca2(unsigned *out, const unsigned *in)
{
    int n = (in[threadIdx.x] & 7) + 1;
    int e = 0, q = 1;
    for (int i = 0; i < n; i++) {
        e += q;
        q *= 3;
    }
    same(out, vla(n), e);
}
__device__ __noinline__ Big mk(int k)
{
    Big b;
    for (int i = 0; i < 40; i++)
        b.a[i] = k + i;
    b.d = k * .5;
    return b;
}
__device__ __noinline__ int use(Big b, int i)
{
    return b.a[i] + int(b.d * 2);
}

extern "C" __global__ void t_struct_call(unsigned *out, const unsigned *in)
{
    int k = in[threadIdx.x] & 1023;
    int i = in[threadIdx.x] % 40;
    same(out, use(mk(k), i), k + i + k);
}

extern "C" __global__ void t_local(unsigned *out, const unsigned *in)
{
    int a[300];
    for (int i = 0; i < 300; i++)
        a[i] = in[i] ^ threadIdx.x;
    int j = in[threadIdx.x] % 300;
    for (int i = 0; i < 20; i++)
        j = unsigned(a[j]) % 300;
    int e = in[threadIdx.x] % 300;
    for (int i = 0; i < 20; i++)
        e = (in[e] ^ threadIdx.x) % 300;
    same(out, j, e);
}
__device__ int sw(unsigned x)
{
    switch (x) {
    case 0:
        return 5;
    case 1:
        return 9;
    case 2:
        return -3;
    case 3:
        return 77;
    case 4:
        return 12;
    case 7:
        return 100;
    case 9:
        return 33;
    case 12:
        return 1;
    default:
        return 0;
    }
}
__device__ __noinline__ int sw2(unsigned x, unsigned *o)
{
    switch (x % 16) {
    case 0:
        atomicAdd(o, 1);
        break;
    case 1:
        atomicSub(o, 2);
        break;
    case 2:
        atomicXor(o, 3);
        return 1;
    case 3:
        atomicMax(o, 9);
    case 4:
        atomicMin(o, 8);
        break;
    case 5:
        return 3;
    case 6:
        atomicExch(o, 2);
        break;
    case 11:
        return 7;
    default:
        return 2;
    }
    return x;
}

extern "C" __global__ void t_switch(unsigned *out, const unsigned *in)
{
    unsigned x = in[threadIdx.x] % 14;
    int tab[14] = {5, 9, -3, 77, 12, 0, 0, 100, 0, 33, 0, 0, 1, 0};
    same(out, sw(x), tab[x]);
    x = in[threadIdx.x];
    int r = sw2(x, out + 700);
    int y = x % 16;
    same(out, r, (int)(y == 2 ? 1 : y == 5 ? 3 : y == 11 ? 7 : (y <= 4 || y == 6) ? x : 2));
}

extern "C" __global__ void t_printf_b32(unsigned *out, const unsigned *in)
{
    if (threadIdx.x == 3) {
        int r = printf("%d %u %x %5.2f %s %c %lld %llu %p %e %g %% %08x %-5d| %+d %hd %hhd %zu %i %o %X %#x %.3s\n", -1,
                       2u, 255, 3.14159, "str", 'c', -5ll, 7ull, (void *)0x10, 1e10, 1e-5, 0xabc, 42, 3, (short)5,
                       (char)6, sizeof(int), 9, 8, 0xbeef, 17, "abcdef");
        same(out, r, 22);
        same(out, printf("x\n"), 0);
    }
    assert(in[threadIdx.x] == in[threadIdx.x]);
    assert(threadIdx.x < 32 && "small");
}

extern "C" __global__ void t_clock(unsigned *out, const unsigned *in)
{
    long long a = clock64();
    __nanosleep(100);
    long long b = clock64();
    same(out, b > a, true);
    unsigned c = clock();
    same(out, clock() - c < 1000000u, true);
}
__device__ int lock;
__device__ int guarded;

extern "C" __global__ void t_spin_g8_b64(unsigned *out, const unsigned *in)
{
    for (int i = 0; i < 2; i++) {
        bool done = false;
        while (!done) {
            if (atomicCAS(&lock, 0, 1) == 0) {
                __threadfence();
                volatile int *g = &guarded;
                *g = *g + 1;
                __threadfence();
                atomicExch(&lock, 0);
                done = true;
            }
        }
    }
    same(out, 1, 1);
}

extern "C" __global__ void t_spin2_g4_b32(unsigned *out, const unsigned *in)
{
    volatile unsigned *f = out + 900;
    if (threadIdx.x == 0) {
        while (f[0] != blockIdx.x)
            ;
        __threadfence();
        f[1] = f[1] + blockIdx.x;
        __threadfence();
        f[0] = blockIdx.x + 1;
    }
    __syncwarp();
    same(out, f[0] > blockIdx.x, true);
}
__device__ unsigned cnt;
__device__ float partial[16];

extern "C" __global__ void t_lastblock_g8(unsigned *out, const unsigned *in)
{
    __shared__ bool last;
    __shared__ float s[128];
    s[threadIdx.x] = in[blockIdx.x * 128 + threadIdx.x] & 255;
    __syncthreads();
    for (int k = 64; k; k /= 2) {
        if (threadIdx.x < k)
            s[threadIdx.x] += s[threadIdx.x + k];
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = s[0];
        __threadfence();
        last = atomicInc(&cnt, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    same(out, 1, 1);
    if (last && threadIdx.x == 0) {
        float v = 0, e = 0;
        for (int i = 0; i < 8; i++)
            v += ((volatile float *)partial)[i];
        for (int i = 0; i < 1024; i++)
            e += in[i] & 255;
        same(out, v, e);
    }
}

extern "C" __global__ void t_named_b128(unsigned *out, const unsigned *in)
{
    __shared__ unsigned s[128];
    if (threadIdx.x < 64) {
        s[threadIdx.x] = in[threadIdx.x];
        asm volatile("bar.arrive 1, 128;" ::: "memory");
        asm volatile("bar.sync 2, 64;" ::: "memory");
        same(out, s[63 - threadIdx.x], in[63 - threadIdx.x]);
    } else {
        asm volatile("bar.sync 1, 128;" ::: "memory");
        same(out, s[threadIdx.x - 64], in[threadIdx.x - 64]);
        asm volatile("barrier.cta.sync.aligned 3, 64;" ::: "memory");
    }
    same(out, __syncthreads_count(threadIdx.x & 1), 64);
    same(out, __syncthreads_and(1), 1);
    same(out, __syncthreads_or(threadIdx.x == 5), 1);
}

extern "C" __global__ void t_loads(unsigned *out, const unsigned *in)
{
    same(out, __ldg(in + threadIdx.x), in[threadIdx.x]);
    same(out, __ldcs(in + threadIdx.x), in[threadIdx.x]);
    same(out, __ldca(in + threadIdx.x), in[threadIdx.x]);
    same(out, __ldcg(in + threadIdx.x), in[threadIdx.x]);
    same(out, __ldlu(in + threadIdx.x), in[threadIdx.x]);
    same(out, __ldcv(in + threadIdx.x), in[threadIdx.x]);
    uint4 v = __ldg((const uint4 *)in + threadIdx.x);
    same(out, v.z, in[threadIdx.x * 4 + 2]);
    double2 d = __ldcs((const double2 *)in + threadIdx.x);
    same(out, __double2hiint(d.y), (int)in[threadIdx.x * 4 + 3]);
    same(out, __ldg((const char *)in + threadIdx.x), ((const char *)in)[threadIdx.x]);
    same(out, (int)__ldg((const short4 *)in + threadIdx.x).w, (int)((const short *)in)[threadIdx.x * 4 + 3]);
    __stwt(out + 200 + threadIdx.x, 1u);
    __stcg(out + 400 + threadIdx.x, 2u);
    __stcs(out + 600 + threadIdx.x, 3u);
    __stwb((uint2 *)(out + 800) + threadIdx.x % 8, make_uint2(1, 2));
    same(out, out[200 + threadIdx.x] + out[400 + threadIdx.x] + out[600 + threadIdx.x], 6u);
    asm volatile("prefetch.global.L2 [%0];" ::"l"(in));
    asm volatile("prefetchu.L1 [%0];" ::"l"(in));
    asm volatile("prefetch.L1 [%0];" ::"l"(in));
    __builtin_assume(threadIdx.x < 128);
    unsigned a, b, c, e;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(e)
                 : "l"(in + threadIdx.x * 4));
    same(out, b, in[threadIdx.x * 4 + 1]);
    same(out, c, in[threadIdx.x * 4 + 2]);
    same(out, e, in[threadIdx.x * 4 + 3]);
    same(out, __isGlobal(in), 1u);
    __shared__ int q;
    same(out, __isShared(&q), 1u);
    same(out, __isLocal(&a), 1u);
    same(out, __isConstant(&cst), 1u);
    same(out, __cvta_generic_to_shared(&q) < 1000, true);
}
// What a function of signed (x, y) and unsigned (ux, uy) bytes says of each of the four.
template <class F>
__device__ unsigned lanes4(unsigned a, unsigned b, F f)
{
    unsigned r = 0;
    for (int i = 0; i < 32; i += 8)
        r |= (unsigned(f((signed char)(a >> i), (signed char)(b >> i), int(a >> i & 255), int(b >> i & 255))) & 255u)
             << i;
    return r;
}

extern "C" __global__ void t_int(unsigned *out, const unsigned *in)
{
    unsigned a = in[threadIdx.x * 4], b = in[threadIdx.x * 4 + 1], c = in[threadIdx.x * 4 + 2];
    long long l = (long long)a << 32 | b, m = (long long)c << 20 | a;
    same(out, __popcll(l), __popc(a) + __popc(b));
    same(out, __ffs(a), a ? __popc(a ^ (a - 1)) : 0);
    same(out, __ffsll(l), l ? __popcll(l ^ (l - 1)) : 0);
    same(out, __clzll(l), a ? __clz(a) : 32 + __clz(b));
    same(out, __brevll(l), (unsigned long long)__brev(b) << 32 | __brev(a));
    same(out, __mul24(a, b), (int)((int)(a << 8) >> 8) * ((int)(b << 8) >> 8));
    same(out, __umul24(a, b), (a & 0xffffff) * (b & 0xffffff));
    same(out, __mul64hi(l, m), (long long)(((__int128)l * m) >> 64));
    same(out, __hadd((int)a, (int)b), (int)(((long long)(int)a + (int)b) >> 1));
    same(out, __rhadd((int)a, (int)b), (int)(((long long)(int)a + (int)b + 1) >> 1));
    same(out, __uhadd(a, b), (unsigned)(((unsigned long long)a + b) >> 1));
    same(out, __usad(a, b, c), (a > b ? a - b : b - a) + c);
    same(out, __fns(a, 0, 3), [&] {
        int n = 0;
        for (unsigned i = 0; i < 32; i++)
            if (a >> i & 1)
                if (++n == 3)
                    return i;
        return ~0u;
    }());
    same(out, __dp2a_lo((int)a, (int)b, (int)c),
         (int)((short)a * (signed char)b + (short)(a >> 16) * (signed char)(b >> 8) + c));
    same(out, __dp2a_hi(a, b, c), (a & 0xffff) * (b >> 16 & 255) + (a >> 16) * (b >> 24) + c);
    same(out, __dp4a(a, b, c),
         (a & 255) * (b & 255) + (a >> 8 & 255) * (b >> 8 & 255) + (a >> 16 & 255) * (b >> 16 & 255) +
             (a >> 24) * (b >> 24) + c);
    same(out, __vadd4(a, b), lanes4(a, b, [](int x, int y, int ux, int uy) { return x + y; }));
    same(out, __vsub4(a, b), lanes4(a, b, [](int x, int y, int ux, int uy) { return x - y; }));
    same(out, __vabs4(a), lanes4(a, b, [](int x, int y, int ux, int uy) { return abs(x); }));
    same(out, __vabsdiffu4(a, b), lanes4(a, b, [](int x, int y, int ux, int uy) { return abs((int)ux - (int)uy); }));
    same(out, __vavgu4(a, b), lanes4(a, b, [](int x, int y, int ux, int uy) { return (ux + uy + 1) / 2; }));
    same(out, __vmaxs4(a, b), lanes4(a, b, [](int x, int y, int ux, int uy) { return max(x, y); }));
    same(out, __vminu4(a, b), lanes4(a, b, [](int x, int y, int ux, int uy) { return min(ux, uy); }));
    same(out, __vcmpeq4(a, b), lanes4(a, b, [](int x, int y, int ux, int uy) { return x == y ? 255 : 0; }));
    same(out, __vsetgts4(a, b), lanes4(a, b, [](int x, int y, int ux, int uy) { return x > y; }));
    same(out, __vaddss4(a, b), lanes4(a, b, [](int x, int y, int ux, int uy) { return max(-128, min(127, x + y)); }));
    same(out, __vsubus4(a, b), lanes4(a, b, [](int x, int y, int ux, int uy) { return ux > uy ? ux - uy : 0; }));
    same(out, __vneg4(a), lanes4(a, b, [](int x, int y, int ux, int uy) { return -x; }));
    same(out, __vhaddu4(a, b), lanes4(a, b, [](int x, int y, int ux, int uy) { return (ux + uy) / 2; }));
    same(out, __vcmpgts4(a, b), lanes4(a, b, [](int x, int y, int ux, int uy) { return x > y ? 255 : 0; }));
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        int x = (signed char)(a >> 8 * i), y = (signed char)(b >> 8 * i);
        r += abs(x - y);
    }
    same(out, __vsads4(a, b), r);
    same(out, __viaddmax_s32(a, b, c), max((int)(a + b), (int)c));
    same(out, __vimax3_s32(a, b, c), max(max((int)a, (int)b), (int)c));
    same(out, __vimin3_u32(a, b, c), min(min(a, b), c));
    bool p;
    same(out, __vibmax_s32(a, b, &p), max((int)a, (int)b));
    same(out, p, (int)a >= (int)b);
    same(out, __vimax_s16x2_relu(a, b) & 0xffff, (unsigned)max(0, max((int)(short)a, (int)(short)b)));
    same(out, l / (m | 1) * (m | 1) + l % (m | 1), l);
}

extern "C" __global__ void t_atomics(unsigned *out, const unsigned *in)
{
    unsigned long long *p = (unsigned long long *)(out + 500);
    double *d = (double *)(out + 600);
    if (threadIdx.x == 0) {
        *p = 0;
        *d = 0;
        p[1] = ~0ull;
        p[2] = 5;
        p[3] = 0;
    }
    __syncthreads();
    atomicAdd(p, 1ull << 33);
    atomicAdd(d, .5);
    atomicMin(p + 1, (unsigned long long)in[threadIdx.x]);
    atomicMax((long long *)p + 3, (long long)in[threadIdx.x]);
    atomicXor(p + 2, 1ull << threadIdx.x % 64);
    unsigned o = atomicInc(out + 700, 9);
    same(out, o < 10, true);
    o = atomicDec(out + 701, 20);
    same(out, o <= 20, true);
    __syncthreads();
    same(out, *p, 128ull << 33);
    same(out, *d, 64.);
    same(out, p[2], 5ull);
    unsigned mn = ~0u, mx = 0;
    for (int i = 0; i < 128; i++) {
        mn = min(mn, in[i]);
        mx = max(mx, in[i]);
    }
    same(out, p[1], (unsigned long long)mn);
    same(out, p[3], (unsigned long long)mx);
    atomicAdd_block(out + 702, 2);
    atomicAdd_system(out + 702, 1);
    atomicCAS((unsigned short *)(out + 703), (unsigned short)0, (unsigned short)5);
    __syncthreads();
    same(out, out[702], 384u);
    same(out, out[703], 5u);
    same(out, out[700], 128u % 10);
#if __CUDA_ARCH__ >= 900
    float4 *f4 = (float4 *)(out + 720);
    atomicAdd(f4, make_float4(1, 2, 3, 4));
    __syncthreads();
    same(out, f4->w, 512.f);
#endif
}

extern "C" __global__ void t_warp(unsigned *out, const unsigned *in)
{
    unsigned l = threadIdx.x % 32;
    same(out, __match_any_sync(~0u, in[threadIdx.x] & 3) >> l & 1, 1u);
    int pr;
    __match_all_sync(~0u, 7, &pr);
    same(out, pr, 1);
    same(out, __shfl_up_sync(~0u, in[threadIdx.x], 2), l < 2 ? in[threadIdx.x] : in[threadIdx.x - 2]);
    double d = __shfl_sync(~0u, (double)in[threadIdx.x], 31);
    same(out, d, (double)in[threadIdx.x | 31]);
    long long q = __shfl_xor_sync(~0u, (long long)in[threadIdx.x] << 20, 7);
    same(out, q, (long long)in[threadIdx.x ^ 7] << 20);
    unsigned r;
    asm("mov.u32 %0, %%lanemask_lt;" : "=r"(r));
    same(out, r, (1u << l) - 1);
    if (l < 20) {
        same(out, __activemask() & 0xfffff, 0xfffffu);
        same(out, __ballot_sync(0xfffff, 1), 0xfffffu);
        __syncwarp(0xfffff);
        same(out, __any_sync(0xfffff, l == 3), 1);
        same(out, __all_sync(0xfffff, l < 20), 1);
    }
}
#if __CUDA_ARCH__ >= 800

extern "C" __global__ void t_redux(unsigned *out, const unsigned *in)
{
    unsigned w = threadIdx.x / 32 * 32;
    unsigned s = 0, x = 0;
    int mn = 0x7fffffff;
    for (int i = 0; i < 32; i++) {
        s += in[w + i];
        x ^= in[w + i];
        mn = min(mn, (int)in[w + i]);
    }
    same(out, __reduce_add_sync(~0u, in[threadIdx.x]), s);
    same(out, __reduce_xor_sync(~0u, in[threadIdx.x]), x);
    same(out, __reduce_min_sync(~0u, (int)in[threadIdx.x]), mn);
}
#endif
#if __CUDA_ARCH__ >= 900

extern "C" __global__ void t_pdl(unsigned *out, const unsigned *in)
{
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
    same(out, 1, 1);
}

extern "C" __global__ void t_nreg_b256(unsigned *out, const unsigned *in)
{
    if (threadIdx.x < 128)
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    else
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    same(out, 1, 1);
}
#endif
