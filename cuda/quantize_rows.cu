/* nb_quantize_rows: rows of T to INT8 codes and a scale each, codes.cuh
 *   x      T [rows][k], 16-byte aligned rows; k a multiple of 16
 *   out    q [rows][k_pad] in NB_K_ORDER, zero beyond k; scale [rows]
 *   scale  act_scale > 0: that one and act_zero, codes -128..127; else absmax / 127, codes -127..127
 *   launch grid rows, block 256, NB_ROW_SHARED(k) bytes of shared memory
 *   traffic 2k + k_pad + 4 bytes a row; rows longer than 24576 are read twice
 *   order  none: a maximum has no order
 *
 * nb_group_sums: the sum of the codes of each group
 *   q [rows][k_pad], sums [rows][groups]; k = groups * group_len, group_len a multiple of 16
 *   launch grid ceil(rows * groups * lanes / 256), block 256, where `lanes` of a warp share a group:
 *          NB_SUM_LANES(group_len)
 *   order  none: integers */
#include "codes.cuh"

template <typename T>
NB_DEVICE void quantize_rows(const nb_quantize_rows_args &a)
{
    const size_t row = blockIdx.x;
    const uint4 *x = (const uint4 *)((const T *)a.x + row * a.k);
    const uint32_t k_pad = (a.k + NB_TILE_K - 1) / NB_TILE_K * NB_TILE_K;
    nb_row_codes<T>([&](uint32_t octet, bool) { return __ldg(x + octet); }, a.k, a.act_scale, a.act_zero,
                    a.out.q + row * k_pad, a.out.scale + row);
}

extern "C" __global__ void __launch_bounds__(256) nb_quantize_rows_f16(const nb_quantize_rows_args a)
{
    quantize_rows<__half>(a);
}

extern "C" __global__ void __launch_bounds__(256) nb_quantize_rows_bf16(const nb_quantize_rows_args a)
{
    quantize_rows<__nv_bfloat16>(a);
}

extern "C" __global__ void __launch_bounds__(256) nb_group_sums(const nb_group_sums_args a)
{
    const uint32_t lanes = NB_SUM_LANES(a.group_len), pieces = a.group_len / 16;
    const uint32_t group = (blockIdx.x * 256 + threadIdx.x) / lanes, lane = threadIdx.x % lanes;
    const uint32_t k_pad = (a.k + NB_TILE_K - 1) / NB_TILE_K * NB_TILE_K;
    const bool inside = group < a.rows * a.groups;
    int32_t sum = 0;
    if (inside) {
        const size_t row = group / a.groups;
        const int4 *q = (const int4 *)(a.q + row * k_pad + (size_t)(group % a.groups) * a.group_len);
        for (uint32_t i = lane; i < pieces; i += lanes) {
            const int4 v = q[i];
            sum = __dp4a(v.x, 0x01010101, __dp4a(v.y, 0x01010101, sum));
            sum = __dp4a(v.z, 0x01010101, __dp4a(v.w, 0x01010101, sum));
        }
    }
    for (uint32_t step = lanes / 2; step; step /= 2)
        sum += __shfl_xor_sync(NB_ALL_LANES, sum, step);
    if (inside && lane == 0)
        a.sums[group] = sum;
}
