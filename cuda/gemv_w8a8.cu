/* The decode form of a linear layer (1..8 rows): 8-bit weights, INT8 activations.  gemv.cuh has the contract. */
#include "gemv.cuh"

NB_GEMV(nb_gemv_w8a8, NB_W_W8, int8_t, __half, f16)
NB_GEMV(nb_gemv_w8a8, NB_W_W8, int8_t, __nv_bfloat16, bf16)
