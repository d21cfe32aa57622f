/* Both forms of a linear layer for one kind of weights, as NB_LINEAR_LINES lists them: gemm.cuh and gemv.cuh have the contracts.
 *
 *   kernels   nb_gemm_NAME_<tile>_<type>, nb_gemv_NAME_<type>; INT8: of codes in place of activations */
#ifndef NB_CUDA_LINEAR_CUH
#define NB_CUDA_LINEAR_CUH

#include "gemm.cuh"
#include "gemv.cuh"

#define NB_LINEAR_OF(name, kind, X_f16, X_bf16)                                                                        \
    NB_GEMM_TILE_LIST(NB_GEMM_KERNEL, nb_gemm_##name, kind, X_f16, __half, f16)                                        \
    NB_GEMM_TILE_LIST(NB_GEMM_KERNEL, nb_gemm_##name, kind, X_bf16, __nv_bfloat16, bf16)                               \
    NB_GEMV(nb_gemv_##name, kind, X_f16, __half, f16)                                                                  \
    NB_GEMV(nb_gemv_##name, kind, X_bf16, __nv_bfloat16, bf16)
#define NB_LINEAR(name, kind)      NB_LINEAR_OF(name, kind, __half, __nv_bfloat16)
#define NB_LINEAR_INT8(name, kind) NB_LINEAR_OF(name, kind, int8_t, int8_t)

#endif
