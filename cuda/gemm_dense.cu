/* gemm.cuh for dense weights of the type of the activations. */
#include "gemm.cuh"

NB_GEMM_TILE_LIST(NB_GEMM_KERNEL, nb_gemm_dense, NB_W_DENSE, __half, __half, f16)
NB_GEMM_TILE_LIST(NB_GEMM_KERNEL, nb_gemm_dense, NB_W_DENSE, __nv_bfloat16, __nv_bfloat16, bf16)
