/* The decode form of a linear layer (1..8 rows): 4-bit weights, activations in half or bfloat16.  gemv.cuh has the
 * contract. */
#include "gemv.cuh"

NB_GEMV(nb_gemv_w4, NB_W_W4, __half, __half, f16)
NB_GEMV(nb_gemv_w4, NB_W_W4, __nv_bfloat16, __nv_bfloat16, bf16)
