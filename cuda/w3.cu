/* Linear layers with weights of 3 bits, activations in half or bfloat16. */
#include "w3.cuh"

#include "linear.cuh"

NB_LINEAR(w3, NB_W_W3)
