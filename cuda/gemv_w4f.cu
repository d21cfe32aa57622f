/* The decode form of a linear layer (1..8 rows): 4-bit weights with zero points in sixteenths, activations in half or bfloat16.
 * gemv.cuh has the contract. */
#include "w4f.cuh"

#include "gemv.cuh"

NB_GEMV(nb_gemv_w4f, NB_W_W4F, __half, __half, f16)
NB_GEMV(nb_gemv_w4f, NB_W_W4F, __nv_bfloat16, __nv_bfloat16, bf16)
