// sm: 80
#include "gemm_mma.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    gemm_s8(const int8_t *a, const int8_t *b, int *c, int m, int n, int k, int row_bytes)
{
    __shared__ __align__(128) Buffer buffers[STAGES];
    gemm<int, ptx::mma_m16n8k32_s8>(buffers, reinterpret_cast<const uint8_t *>(a), reinterpret_cast<const uint8_t *>(b),
                                    c, m, n, k, row_bytes);
}
