/* gemm.cuh for NF4 weights, activations as they are. */
#include "nf4.cuh"

#include "gemm.cuh"

NB_GEMM_TILE_LIST(NB_GEMM_KERNEL, nb_gemm_nf4, NB_W_NF4, __half, __half, f16)
NB_GEMM_TILE_LIST(NB_GEMM_KERNEL, nb_gemm_nf4, NB_W_NF4, __nv_bfloat16, __nv_bfloat16, bf16)
