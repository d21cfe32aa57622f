// sm: 75 80 90a
// Control flow, calls, barriers and waiting as nvcc compiles them; test/emu_machine_test.cpp runs them and knows the results.
#pragma nv_diag_suppress 114 // cooperative_groups.h declares an operator that it does not define
#include <cassert>
#include <cooperative_groups.h>
#include <cstdio>

namespace cg = cooperative_groups;

// ---- divergence ----

extern "C" __global__ void collatz(unsigned *steps, unsigned n)
{
    unsigned t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= n)
        return;
    unsigned long long v = t + 1;
    unsigned k = 0;
    while (v != 1) {
        if (v & 1)
            v = 3 * v + 1;
        else
            v >>= 1;
        k++;
    }
    steps[t] = k;
}

extern "C" __global__ void choose(unsigned *out, const unsigned *what)
{
    unsigned t = blockIdx.x * blockDim.x + threadIdx.x, v = t;
    for (int round = 0; round < 3; round++)
        switch (what[t] + round) {
        case 0:
            v += 17;
            break;
        case 1:
            v *= 5;
            break;
        case 2:
            v ^= 0x55;
            /* fall through */
        case 3:
            v -= t / 3;
            break;
        case 4:
            v = v << 3 | v >> 29;
            break;
        case 5:
            v = ~v;
            break;
        case 6:
            v = v * v + 1;
            break;
        case 7:
            continue;
        default:
            v += round;
        }
    out[t] = v;
}

// ---- calls ----

struct Shape {
    __device__ virtual unsigned area(unsigned scale) const = 0;
};
struct Square : Shape {
    unsigned a;
    __device__ explicit Square(unsigned side) : a(side) {}
    __device__ unsigned area(unsigned scale) const override { return a * a * scale; }
};
struct Box : Shape {
    unsigned a, b;
    __device__ Box(unsigned x, unsigned y) : a(x), b(y) {}
    __device__ unsigned area(unsigned scale) const override { return a * b + scale; }
};

extern "C" __global__ void areas(unsigned *out)
{
    unsigned t = threadIdx.x;
    Square s(t);
    Box b(t, 3);
    const Shape *shape = t % 3 ? static_cast<const Shape *>(&s) : &b;
    out[t] = shape->area(t + 1);
}

__device__ __noinline__ unsigned fibonacci(unsigned n)
{
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}
extern "C" __global__ void fibonaccis(unsigned *out)
{
    out[threadIdx.x] = fibonacci(threadIdx.x % 12);
}

struct Big {
    int v[5];
    double d;
    char c;
};
__device__ __noinline__ Big shifted(Big b, int by)
{
    for (int &v : b.v)
        v += by;
    b.d *= by;
    b.c++;
    return b;
}
extern "C" __global__ void structs(double *out)
{
    Big b{};
    for (int k = 0; k < 5; k++)
        b.v[k] = k * int(threadIdx.x);
    b.d = 0.5;
    b.c = 'a';
    Big r = shifted(b, int(threadIdx.x));
    out[threadIdx.x] = r.v[4] + r.d + r.c;
}

using Operation = int (*)(int, int);
__device__ int plus(int a, int b)
{
    return a + b;
}
__device__ int minus(int a, int b)
{
    return a - b;
}
__device__ int times(int a, int b)
{
    return a * b;
}
__device__ Operation operations[3] = {plus, minus, times};
extern "C" __global__ void operate(int *out)
{
    out[threadIdx.x] = operations[threadIdx.x % 3](int(threadIdx.x), 7);
}

// ---- printf, assert ----

extern "C" __global__ void prints(const char *word, long long big)
{
    unsigned t = threadIdx.x;
    if (t == 1)
        printf("[%d|%5u|%-6d|%08x|%#o|%+d]\n", -5, 42u, 7, 0xbeefu, 8, 3);
    __syncthreads();
    if (t == 2)
        printf("[%lld|%llx|%hhd|%zu]\n", big, 0x123456789abcdefull, char(-3), size_t(99));
    __syncthreads();
    if (t == 3)
        printf("[%f|%.3e|%g|%10.2f|%-8.1f|%*d]\n", 1.5, 12345.678, 0.0001, 3.14159, 2.0f, 6, 12);
    __syncthreads();
    if (t == 4)
        printf("[%s|%.2s|%c|%%|%5s]\n", word, "abcdef", 'z', "xy");
}

extern "C" __global__ void print_block()
{
    printf("block %d\n", int(blockIdx.x));
}

extern "C" __global__ void asserts(const int *v)
{
    assert(v[threadIdx.x] >= 0 && "a value is negative");
}

// ---- waiting ----

extern "C" __global__ void warp_lock(unsigned *lock, unsigned *count)
{
    bool done = false;
    while (!done) {
        if (atomicCAS(lock, 0u, 1u) == 0u) {
            __threadfence();
            unsigned v = *(volatile unsigned *)count;
            *(volatile unsigned *)count = v + 1;
            __threadfence();
            atomicExch(lock, 0u);
            done = true;
        }
    }
}

// Stream-K: each block adds to a tile that the block before it has finished.
extern "C" __global__ void in_turn(unsigned *flags, unsigned *sum)
{
    if (threadIdx.x == 0)
        while (*(volatile unsigned *)&flags[blockIdx.x] == 0)
            ;
    __syncthreads();
    __threadfence();
    if (threadIdx.x < 32)
        sum[threadIdx.x] = sum[threadIdx.x] * 3 + blockIdx.x + threadIdx.x;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        atomicExch(&flags[blockIdx.x + 1], 1u);
}

extern "C" __global__ void grid_sync(unsigned *v, unsigned *out)
{
    cg::grid_group g = cg::this_grid();
    unsigned t = unsigned(g.thread_rank()), n = unsigned(g.size());
    v[t] = t * 3;
    g.sync();
    unsigned a = v[(t + n / 2) % n];
    g.sync();
    v[t] = a + 1;
    g.sync();
    out[t] = v[(t + 1) % n];
}

extern "C" __global__ void tiles(unsigned *out)
{
    cg::thread_block b = cg::this_thread_block();
    auto half = cg::tiled_partition<16>(b);
    unsigned v = threadIdx.x;
    if (half.meta_group_rank() % 2)
        for (int k = 8; k; k >>= 1)
            v += half.shfl_xor(v, k);
    else
        for (int k = 0; k < 3; k++)
            v = half.shfl(v, (half.thread_rank() + 1) % 16);
    if (threadIdx.x & 1) {
        cg::coalesced_group odd = cg::coalesced_threads();
        v += odd.shfl(v, 0) + odd.size() * 1000;
    }
    out[threadIdx.x] = v;
}

extern "C" __global__ void divergent_shuffle(unsigned *out, unsigned lanes, unsigned mask)
{
    unsigned v = threadIdx.x;
    if (threadIdx.x < lanes)
        v = __shfl_xor_sync(mask, v, 1);
    __syncthreads();
    out[threadIdx.x] = v;
}

extern "C" __global__ void divergent_barrier(unsigned *out, unsigned from)
{
    __shared__ unsigned s;
    if (threadIdx.x >= from) {
        s = 1;
        __syncthreads();
        out[threadIdx.x] = s;
    } else {
        out[threadIdx.x] = 2;
        __syncthreads();
        out[threadIdx.x] += s;
    }
}

extern "C" __global__ void votes_of_the_block(int *out, const int *v)
{
    int yes = v[threadIdx.x];
    int count = __syncthreads_count(yes);
    int all = __syncthreads_and(yes), any = __syncthreads_or(yes);
    out[threadIdx.x] = count * 4 + (all != 0) * 2 + (any != 0);
}

extern "C" __global__ void waits_for_a_flag(const unsigned *flag)
{
    while (*(const volatile unsigned *)flag == 0)
        ;
}

#if __CUDA_ARCH__ >= 900
extern "C" __global__ void __cluster_dims__(4, 1, 1) cluster_ring(unsigned *out)
{
    __shared__ unsigned mine;
    cg::cluster_group c = cg::this_cluster();
    if (threadIdx.x == 0)
        mine = 100 * blockIdx.x;
    c.sync();
    unsigned next = (c.block_rank() + 1) % c.num_blocks();
    unsigned v = *c.map_shared_rank(&mine, next);
    c.sync();
    out[blockIdx.x * blockDim.x + threadIdx.x] = v + threadIdx.x;
}
#endif
