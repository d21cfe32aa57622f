/* gemm.cuh for weights of 4 bits, activations of 8: exact integers. */
#include "gemm.cuh"

NB_GEMM_TILE_LIST(NB_GEMM_KERNEL, nb_gemm_w4a8, NB_W_W4, int8_t, __half, f16)
NB_GEMM_TILE_LIST(NB_GEMM_KERNEL, nb_gemm_w4a8, NB_W_W4, int8_t, __nv_bfloat16, bf16)
