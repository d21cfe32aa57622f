/* The decode form of a linear layer (1..8 rows): half or bfloat16 weights, unquantized.  gemv.cuh has the contract. */
#include "gemv.cuh"

NB_GEMV(nb_gemv_dense, NB_W_DENSE, __half, __half, f16)
NB_GEMV(nb_gemv_dense, NB_W_DENSE, __nv_bfloat16, __nv_bfloat16, bf16)
