/* The experts' layers of a mixture for few rows each: gemv.cuh; blocks of one blockIdx.y have one piece of up to 8
 * rows of one
 * expert.  The contract is at nb_moe_gemm_args; the sums are gemv.cuh's. */
#include "gemv.cuh"
#include "moe.cuh"

template <int kind, typename X, typename T>
NB_DEVICE void nb_moe_gemv(const nb_moe_gemm_args &m)
{
    extern __shared__ __align__(128) unsigned char shared[];
    const nb_moe_piece piece = nb_moe_find(m.offset, m.n_experts, NB_GEMV_ROWS, blockIdx.y);
    if (!piece.rows)
        return;
    nb_gemv_args v = m.v;
    nb_moe_layer(v.g, m.experts[piece.expert], piece.rows);
    nb_gemv<kind, X, T>(v, nb_moe_rows{m.sorted, m.top_k, piece.first}, shared);
}

#define NB_MOE_GEMV(name, kind, X, T, suffix)                                                                          \
    extern "C" __global__ void __launch_bounds__(NB_GEMV_THREADS, 2)                                                   \
        name##_##suffix(const __grid_constant__ nb_moe_gemm_args m)                                                    \
    {                                                                                                                  \
        NB_IF_##suffix((nb_moe_gemv<kind, X, T>(m));)                                                                  \
    }

NB_MOE_GEMV(nb_moe_gemv_dense, NB_W_DENSE, __half, __half, f16)
NB_MOE_GEMV(nb_moe_gemv_dense, NB_W_DENSE, __nv_bfloat16, __nv_bfloat16, bf16)
NB_MOE_GEMV(nb_moe_gemv_w8, NB_W_W8, __half, __half, f16)
NB_MOE_GEMV(nb_moe_gemv_w8, NB_W_W8, __nv_bfloat16, __nv_bfloat16, bf16)
NB_MOE_GEMV(nb_moe_gemv_w4, NB_W_W4, __half, __half, f16)
NB_MOE_GEMV(nb_moe_gemv_w4, NB_W_W4, __nv_bfloat16, __nv_bfloat16, bf16)
NB_MOE_GEMV(nb_moe_gemv_w8a8, NB_W_W8, int8_t, __half, f16)
NB_MOE_GEMV(nb_moe_gemv_w8a8, NB_W_W8, int8_t, __nv_bfloat16, bf16)
