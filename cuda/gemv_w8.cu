/* The decode form of a linear layer (1..8 rows): 8-bit weights, activations in half or bfloat16.  gemv.cuh has the
 * contract. */
#include "gemv.cuh"

NB_GEMV(nb_gemv_w8, NB_W_W8, __half, __half, f16)
NB_GEMV(nb_gemv_w8, NB_W_W8, __nv_bfloat16, __nv_bfloat16, bf16)
