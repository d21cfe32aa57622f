/* Rows of T to INT8 codes and a scale each, as nb_quantize_rows does it, on rows whose outliers are 0
 *   q      as nb_quantize_rows has it, and its launch: grid rows, block 256, NB_ROW_SHARED(k) bytes of shared memory
 *   keep   [k/8]: bit j of byte i is 0 where input 8i + j is an outlier.  A NaN there does not reach the codes: the outliers' own
 *          columns carry it to every output.
 *   traffic as nb_quantize_rows, and k/8 bytes that all rows find in the second-level cache
 *   order  none: a maximum has no order */
#include "codes.cuh"

/* Words 2j and 2j+1 of eight elements, those left out as zeros. */
NB_DEVICE uint32_t kept(uint32_t word, uint32_t bits)
{
    return word & ((bits & 1 ? 0x0000ffffu : 0) | (bits & 2 ? 0xffff0000u : 0));
}

template <typename T>
NB_DEVICE void quantize_outliers(const nb_quantize_outliers_args &args)
{
    const nb_quantize_rows_args &a = args.rows;
    const size_t row = blockIdx.x;
    const uint4 *x = (const uint4 *)((const T *)a.x + row * a.k);
    const uint32_t k_pad = (a.k + NB_TILE_K - 1) / NB_TILE_K * NB_TILE_K;
    const auto octet = [&](uint32_t i, bool) {
        const uint4 v = __ldg(x + i);
        const uint32_t bits = __ldg(args.keep + i);
        return make_uint4(kept(v.x, bits), kept(v.y, bits >> 2), kept(v.z, bits >> 4), kept(v.w, bits >> 6));
    };
    nb_row_codes<T>(octet, a.k, a.act_scale, a.act_zero, a.out.q + row * k_pad, a.out.scale + row);
}

extern "C" __global__ void __launch_bounds__(256) nb_quantize_outliers_f16(const nb_quantize_outliers_args a)
{
    quantize_outliers<__half>(a);
}

extern "C" __global__ void __launch_bounds__(256) nb_quantize_outliers_bf16(const nb_quantize_outliers_args a)
{
    quantize_outliers<__nv_bfloat16>(a);
}
