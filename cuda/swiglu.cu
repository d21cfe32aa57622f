/* y = silu(g) * u = (g / (1 + e^-g)) * u, each operation rounded in fp32: what follows the gate and up projections
 *   gate_up T [rows][2k]: g then u of a row, 16-byte aligned; k a multiple of 16
 *   out     codes.cuh; they are made from the values as rounded to T, so that they are those of quantize_rows on y
 *   exp     exp.cuh, the CPU's bits: so are y's before they are rounded to T, for the same g and u
 *   launch  block 256; codes are not wanted: grid (rows, pieces), any number of pieces shares a row; else grid rows and
 *           NB_ROW_SHARED(k) bytes of shared memory
 *   traffic 4k + 2k and / or k_pad + 4 bytes a row; with codes, rows longer than 24576 are computed twice
 *   order   none */
#include "codes.cuh"
#include "exp.cuh"

template <typename T>
NB_DEVICE uint4 octet_of(const uint4 *gate, const uint4 *up, uint32_t octet)
{
    float g[8], u[8];
    nb_unpack8<T>(__ldg(gate + octet), g);
    nb_unpack8<T>(__ldg(up + octet), u);
#pragma unroll
    for (int i = 0; i < 8; i++)
        g[i] = g[i] / (1.0f + nb_exp(-g[i])) * u[i];
    return nb_pack8<T>(g);
}

template <typename T>
NB_DEVICE void swiglu(const nb_swiglu_args &a)
{
    const size_t row = blockIdx.x;
    const uint4 *gate = (const uint4 *)((const T *)a.gate_up + row * 2 * a.k), *up = gate + a.k / 8;
    uint4 *y = a.out.y ? (uint4 *)((T *)a.out.y + row * a.k) : NULL;
    if (!a.out.q) {
        for (uint32_t o = blockIdx.y * 256 + threadIdx.x; o < a.k / 8; o += gridDim.y * 256)
            y[o] = octet_of<T>(gate, up, o);
        return;
    }
    const uint32_t k_pad = (a.k + NB_TILE_K - 1) / NB_TILE_K * NB_TILE_K;
    const auto make = [&](uint32_t octet, bool first) {
        const uint4 words = octet_of<T>(gate, up, octet);
        if (first && y)
            y[octet] = words;
        return words;
    };
    nb_row_codes<T>(make, a.k, 0, 0, a.out.q + row * k_pad, a.out.scale + row);
}

extern "C" __global__ void __launch_bounds__(256) nb_swiglu_f16(const nb_swiglu_args a)
{
    swiglu<__half>(a);
}

extern "C" __global__ void __launch_bounds__(256) nb_swiglu_bf16(const nb_swiglu_args a)
{
    swiglu<__nv_bfloat16>(a);
}
