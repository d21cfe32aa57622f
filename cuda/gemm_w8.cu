/* gemm.cuh for weights of 8 bits, activations as they are. */
#include "gemm.cuh"

NB_GEMM_TILE_LIST(NB_GEMM_KERNEL, nb_gemm_w8, NB_W_W8, __half, __half, f16)
NB_GEMM_TILE_LIST(NB_GEMM_KERNEL, nb_gemm_w8, NB_W_W8, __nv_bfloat16, __nv_bfloat16, bf16)
