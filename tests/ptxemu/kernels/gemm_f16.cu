// sm: 80
#include "gemm_mma.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    gemm_f16(const uint16_t *a, const uint16_t *b, float *c, int m, int n, int k, int row_bytes)
{
    __shared__ __align__(128) Buffer buffers[STAGES];
    gemm<float, ptx::mma_m16n8k16_f16>(buffers, reinterpret_cast<const uint8_t *>(a),
                                       reinterpret_cast<const uint8_t *>(b), c, m, n, long(k) * 2, row_bytes);
}
