/* gemm.cuh for weights and activations of 8 bits: exact integers. */
#include "gemm.cuh"

NB_GEMM_TILE_LIST(NB_GEMM_KERNEL, nb_gemm_w8a8, NB_W_W8, int8_t, __half, f16)
NB_GEMM_TILE_LIST(NB_GEMM_KERNEL, nb_gemm_w8a8, NB_W_W8, int8_t, __nv_bfloat16, bf16)
