/* The decode form of a linear layer (1..8 rows): NF4 weights, activations in half or bfloat16.  gemv.cuh has the contract. */
#include "nf4.cuh"

#include "gemv.cuh"

NB_GEMV(nb_gemv_nf4, NB_W_NF4, __half, __half, f16)
NB_GEMV(nb_gemv_nf4, NB_W_NF4, __nv_bfloat16, __nv_bfloat16, bf16)
