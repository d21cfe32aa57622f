// sm: 75 80 90a
// What nvcc makes of C++ that is hard on a parser and a linker: nothing here is meant to be run.
#include <cassert>
#include <cstdio>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

__constant__ int squares[5] = {0, 1, 4, 9, 16};
__constant__ float halves[2][3] = {{0.5f, 1.5f, 2.5f}, {-0.5f, -1.5f, -2.5f}};
__device__ int counter = 5;
__device__ int *counter_address = &counter;
__device__ int *into_table[3] = {&counter, nullptr, &counter};
__device__ double precise = 3.25;
__device__ unsigned char text[] = "nibble";

struct Pair {
    int a;
    long long b;
    float v[3];
};
struct __align__(16) Wide {
    Pair first, second;
};

__device__ __noinline__ int triple(int x, float y)
{
    return 3 * x + int(y);
}
__device__ __noinline__ Pair swap(Pair p, int k)
{
    Pair q = p;
    q.a = int(p.b) + k;
    q.b = p.a;
    return q;
}
__device__ __noinline__ int factorial(int n)
{
    return n < 2 ? 1 : n * factorial(n - 1);
}
__device__ __noinline__ int with_shared(int i)
{
    __shared__ int memo[16];
    memo[i & 15] = i;
    __syncthreads();
    return memo[(i + 1) & 15];
}
using Operation = int (*)(int);
__device__ __noinline__ int negate(int x)
{
    return -x;
}
__device__ __noinline__ int twice(int x)
{
    return 2 * x;
}
__device__ Operation operations[2] = {negate, twice};

extern "C" __global__ void switch_table(int *p, int n)
{
    switch (n) {
    case 0:
        p[0] = 17;
        break;
    case 1:
        p[1] = triple(n, 2.5f);
        break;
    case 2:
        p[2] = squares[threadIdx.x % 5];
        break;
    case 3:
        p[3] = *counter_address;
        break;
    case 4:
        p[4] = int(halves[threadIdx.x & 1][n % 3]);
        break;
    case 5:
        p[5] = text[threadIdx.x % 7];
        break;
    case 6:
        p[6] = into_table[threadIdx.x % 3] != nullptr;
        break;
    case 7:
        p[7] = p[21] + n;
        break;
    case 8:
        p[8] = p[24] - n;
        break;
    case 9:
        p[9] = p[27] * n;
        break;
    case 10:
        p[10] = p[30] / n;
        break;
    case 11:
        p[11] = p[33] ^ n;
        break;
    case 12:
        p[12] = p[36] % n;
        break;
    case 13:
        p[13] = p[39] | n;
        break;
    case 14:
        p[14] = p[42] & n;
        break;
    case 15:
        p[15] = p[45] + n;
        break;
    case 16:
        p[16] = p[48] - n;
        break;
    case 17:
        p[17] = p[51] * n;
        break;
    case 18:
        p[18] = p[54] / n;
        break;
    default:
        p[19] = int(precise);
    }
}

extern "C" __global__ void __launch_bounds__(128, 2) local_arrays(int *p, Wide w, char c, short s)
{
    int l[16];
    for (int i = 0; i < 16; i++)
        l[i] = p[i] + c;
    Pair q = swap(w.second, s);
    p[l[threadIdx.x & 15] & 15] = q.a + int(q.v[threadIdx.x % 3]);
}

extern "C" __global__ void shared_memory(int *p)
{
    extern __shared__ int dynamic[];
    __shared__ float fixed[33];
    __shared__ long long wide[4];
    int i = threadIdx.x;
    fixed[i] = p[i];
    wide[i & 3] = i;
    dynamic[i] = p[i];
    __syncthreads();
    p[i] = dynamic[31 - i] + int(fixed[31 - i]) + int(wide[i & 3]) + with_shared(i);
}

extern "C" __global__ void calls(int *p, int n, int which)
{
    p[0] = factorial(n);
    p[1] = operations[which](n);
    p[2] = with_shared(n);
}

extern "C" __global__ void messages(const char *s, int n)
{
    assert(n > 0);
    printf("%s: %d of %f\n", s, n, 1.5 * n);
}

extern "C" __global__ void half_precision(__half2 *h, __nv_bfloat16 *b, float *f)
{
    int i = threadIdx.x;
    h[i] = __hfma2(h[i], __float2half2_rn(f[i]), __half2(1.0f, 2.0f));
    b[i] = __float2bfloat16(__bfloat162float(b[i]) + 0.1f);
    f[i] = __half2float(h[i].x) * 1.0e-3f + 2.5e10;
}

// Scopes of inline assembly: each has registers of the same names, a label of its own, and hides the outer ones.
extern "C" __global__ void inline_assembly(unsigned *p, unsigned n)
{
    unsigned r;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        asm volatile("{\n\t.reg .pred done;\n\t.reg .b32 a, b;\n\tmov.b32 a, %1;\n"
                     "AGAIN:\n\tadd.u32 a, a, 1;\n\tsetp.gt.u32 done, a, (1 << 4) + 3 * %2;\n\t@!done bra AGAIN;\n\t"
                     "{\n\t.reg .b32 a;\n\tmov.b32 a, 0x7U;\n\tmov.b32 b, a;\n\t}\n\tadd.u32 %0, a, b;\n\t}"
                     : "=r"(r)
                     : "r"(n), "n"(2));
        p[k] = r;
    }
    unsigned lanes, clock;
    asm volatile("mov.u32 %0, %%lanemask_lt; mov.u32 %1, %%clock;" : "=r"(lanes), "=r"(clock));
    asm volatile("{ .reg .pred %%p; setp.ne.b32 %%p, %1, 0; vote.sync.ballot.b32 %0, %%p, 0xffffffff; }"
                 : "=r"(r)
                 : "r"(n));
    p[4] = lanes ^ clock ^ r;
}

#if __CUDA_ARCH__ >= 900
extern "C" __global__ void __cluster_dims__(2, 1, 1) clusters(unsigned *p)
{
    unsigned rank, address;
    __shared__ unsigned mine;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(address)
                 : "r"(unsigned(__cvta_generic_to_shared(&mine))), "r"(rank ^ 1));
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(rank) : "memory");
    asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
    p[rank] = mine;
}
#endif
