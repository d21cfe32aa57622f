/* y[r][j] = x[r][perm[j]], 16-bit elements of any kind: the inputs of an act-ordered layer, in the order of its columns
 *   x, y [rows][k], 4-byte aligned; k even; perm [k], each below k
 *   launch  grid (rows, pieces): any number of pieces shares a row; block 256
 *   traffic 4k bytes a row and the 4k of perm, which all rows find in the second-level cache */
#include "kernels.h"
#include "ptx.cuh"

extern "C" __global__ void __launch_bounds__(256) nb_permute_columns(const nb_permute_columns_args a)
{
    const uint16_t *x = (const uint16_t *)a.x + (size_t)blockIdx.x * a.k;
    uint32_t *y = (uint32_t *)((uint16_t *)a.y + (size_t)blockIdx.x * a.k);
    for (uint32_t i = blockIdx.y * 256 + threadIdx.x; i < a.k / 2; i += gridDim.y * 256) {
        const uint2 from = ((const uint2 *)a.perm)[i];
        y[i] = x[from.x] | (uint32_t)x[from.y] << 16;
    }
}
