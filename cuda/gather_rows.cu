/* y[i] = x[rows[i]], fp32: the rows of the residual stream that become logits
 *   x [..][k], y [n][k], 16-byte aligned; k a multiple of 4
 *   launch  grid (n, pieces): any number of pieces shares a row; block 256
 *   traffic 8k bytes a row */
#include "kernels.h"
#include "ptx.cuh"

extern "C" __global__ void __launch_bounds__(256) nb_gather_rows(const nb_gather_rows_args a)
{
    const float4 *x = (const float4 *)(a.x + (size_t)a.rows[blockIdx.x] * a.k);
    float4 *y = (float4 *)(a.y + (size_t)blockIdx.x * a.k);
    for (uint32_t i = blockIdx.y * 256 + threadIdx.x; i < a.k / 4; i += gridDim.y * 256)
        y[i] = x[i];
}
