/* The decode form of a linear layer (1..8 rows): 4-bit weights, INT8 activations.  gemv.cuh has the contract. */
#include "gemv.cuh"

NB_GEMV(nb_gemv_w4a8, NB_W_W4, int8_t, __half, f16)
NB_GEMV(nb_gemv_w4a8, NB_W_W4, int8_t, __nv_bfloat16, bf16)
