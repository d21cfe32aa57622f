/* The experts' layers of a mixture for many rows each: gemm.cuh's tile of 64 columns and 32 rows, whose rows are
 * those of one
 * expert.  The contract is at nb_moe_gemm_args; the sums are gemm.cuh's. */
#include "gemm.cuh"
#include "moe.cuh"

template <int kind, typename X, typename T>
NB_DEVICE void nb_moe_gemm(const nb_moe_gemm_args &m)
{
    const nb_moe_piece piece = nb_moe_find(m.offset, m.n_experts, NB_MOE_ROWS, blockIdx.x);
    if (!piece.rows)
        return;
    nb_gemm_args g = m.v.g;
    nb_moe_layer(g, m.experts[piece.expert], piece.rows);
    nb_gemm<kind, X, T, 1, 4>(g, blockIdx.y, 0, nb_moe_rows{m.sorted, m.top_k, piece.first});
}

#define NB_MOE_GEMM(name, kind, X, T, suffix)                                                                          \
    extern "C" __global__ void __launch_bounds__(128, 5) name##_##suffix(const __grid_constant__ nb_moe_gemm_args m)   \
    {                                                                                                                  \
        NB_IF_##suffix((nb_moe_gemm<kind, X, T>(m));)                                                                  \
    }

NB_MOE_GEMM(nb_moe_gemm_dense, NB_W_DENSE, __half, __half, f16)
NB_MOE_GEMM(nb_moe_gemm_dense, NB_W_DENSE, __nv_bfloat16, __nv_bfloat16, bf16)
NB_MOE_GEMM(nb_moe_gemm_w8, NB_W_W8, __half, __half, f16)
NB_MOE_GEMM(nb_moe_gemm_w8, NB_W_W8, __nv_bfloat16, __nv_bfloat16, bf16)
NB_MOE_GEMM(nb_moe_gemm_w4, NB_W_W4, __half, __half, f16)
NB_MOE_GEMM(nb_moe_gemm_w4, NB_W_W4, __nv_bfloat16, __nv_bfloat16, bf16)
NB_MOE_GEMM(nb_moe_gemm_w8a8, NB_W_W8, int8_t, __half, f16)
NB_MOE_GEMM(nb_moe_gemm_w8a8, NB_W_W8, int8_t, __nv_bfloat16, bf16)
