/* gemm.cuh for weights of 4 bits, activations as they are. */
#include "gemm.cuh"

NB_GEMM_TILE_LIST(NB_GEMM_KERNEL, nb_gemm_w4, NB_W_W4, __half, __half, f16)
NB_GEMM_TILE_LIST(NB_GEMM_KERNEL, nb_gemm_w4, NB_W_W4, __nv_bfloat16, __nv_bfloat16, bf16)
