// sm: 90a
/* C = A * B^T of s8 on Hopper: one producer thread fills four buffers by TMA (128-byte swizzle), a warpgroup
 * multiplies 64 x 64 with wgmma and keeps one group in flight.  The tensor maps fill what lies outside of the matrices
 * with zeros. */
#include <cuda.h>

#include "ptx_helpers.cuh"

constexpr int TILE = 64, STEP = 128, STAGES = 4, CONSUMERS = 128, THREADS = CONSUMERS + 32;

struct Shared {
    int8_t a[STAGES][TILE][STEP], b[STAGES][TILE][STEP];
    uint64_t full[STAGES], empty[STAGES];
};

__device__ __forceinline__ void produce(Shared &s, const CUtensorMap &map_a, const CUtensorMap &map_b, int steps)
{
    for (int step = 0; step < steps; step++) {
        int stage = step % STAGES;
        ptx::mbarrier_wait(&s.empty[stage], (step / STAGES & 1) ^ 1); /* at first every buffer is free */
        ptx::mbarrier_arrive_expect(&s.full[stage], 2 * TILE * STEP);
        ptx::tma_load_2d(s.a[stage], &map_a, &s.full[stage], step * STEP, blockIdx.y * TILE);
        ptx::tma_load_2d(s.b[stage], &map_b, &s.full[stage], step * STEP, blockIdx.x * TILE);
    }
}

__device__ __forceinline__ void consume(Shared &s, int *c, int m, int n, int steps)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int acc[32];
    for (int i = 0; i < 32; i++)
        acc[i] = 0;
    for (int step = 0; step < steps; step++) {
        int stage = step % STAGES;
        ptx::mbarrier_wait(&s.full[stage], step / STAGES & 1);
        ptx::wgmma_fence();
        for (int k = 0; k < STEP; k += 32)
            ptx::wgmma_m64n64k32_s8(acc, ptx::descriptor_128b(&s.a[stage][0][k]),
                                    ptx::descriptor_128b(&s.b[stage][0][k]), true);
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>(); /* the group of the step before has been read: its buffer is free */
        if (step > 0)
            ptx::mbarrier_arrive(&s.empty[(step - 1) % STAGES]);
    }
    ptx::wgmma_wait<0>();
    for (int i = 0; i < 32; i++) {
        int row = blockIdx.y * TILE + warp * 16 + lane / 4 + i / 2 % 2 * 8;
        int col = blockIdx.x * TILE + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (row < m && col < n)
            c[long(row) * n + col] = acc[i];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    gemm_wgmma(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b, int *c, int m,
               int n, int k)
{
    extern __shared__ __align__(1024) uint8_t shared[];
    Shared &s = *reinterpret_cast<Shared *>(shared);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            ptx::mbarrier_init(&s.full[i], 1);
            ptx::mbarrier_init(&s.empty[i], CONSUMERS);
        }
        ptx::fence_async();
    }
    __syncthreads();
    int steps = (k + STEP - 1) / STEP;
    if (threadIdx.x >= CONSUMERS) {
        if (threadIdx.x == CONSUMERS)
            produce(s, map_a, map_b, steps);
    } else {
        consume(s, c, m, n, steps);
    }
}
