/* gemm.cuh for weights of 4 bits with zero points in sixteenths, activations as they are. */
#include "w4f.cuh"

#include "gemm.cuh"

NB_GEMM_TILE_LIST(NB_GEMM_KERNEL, nb_gemm_w4f, NB_W_W4F, __half, __half, f16)
NB_GEMM_TILE_LIST(NB_GEMM_KERNEL, nb_gemm_w4f, NB_W_W4F, __nv_bfloat16, __nv_bfloat16, bf16)
