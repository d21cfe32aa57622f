/* y[r][n] = what our own kernels make of a sum: with INT8 ((sum - z x_sum + corr) as fp32 * scale) * x_scale, then + bias, then
 * to its destination.  cuBLASLt gives the sums.
 *
 *   x       sums [rows][n]: int32 (NB_W_PLAIN8) or fp32 (NB_W_PLAIN), part[0].n = n
 *   y       T, fp32 or fp32 added to: [rows][ldy]
 *   launch  grid (ceil(n/256), rows), block 256: a thread an element; no shared memory
 *   order   the one multiply-add of a single group, as in gemm_w8a8: the same bits
 *   traffic 4 rows n bytes in, 2 or 4 (8) rows n out */
#include "weights.cuh"

template <typename T>
NB_DEVICE void finish_sums(const nb_gemm_args &a)
{
    const nb_packed &p = a.part[0];
    const uint32_t n = blockIdx.x * 256 + threadIdx.x;
    if (n >= p.n)
        return;
    for (uint32_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
        const size_t at = (size_t)row * p.n + n;
        float v;
        if (p.kind == NB_W_PLAIN8) {
            const int32_t zero = p.zeros ? ((const int8_t *)p.zeros)[n] : 0, x_sum = p.zeros ? a.x_sums[row] : 0;
            v = nb_exact(((const int32_t *)a.x)[at], zero, x_sum, p.corr ? p.corr[n] : 0);
            v = nb_finish<int8_t>(fmaf(v, p.scales[n], 0.0f), a.x_scale[row], p.bias, n);
        } else
            v = nb_finish<T>(((const float *)a.x)[at], 1.0f, p.bias, n);
        nb_store_1<T>(a, (size_t)row * a.ldy + n, v);
    }
}

extern "C" __global__ void __launch_bounds__(256) nb_finish_sums_f16(const __grid_constant__ nb_gemm_args a)
{
    finish_sums<__half>(a);
}

extern "C" __global__ void __launch_bounds__(256) nb_finish_sums_bf16(const __grid_constant__ nb_gemm_args a)
{
    finish_sums<__nv_bfloat16>(a);
}
