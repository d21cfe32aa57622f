/* Linear layers with weights of 2 bits, activations in half or bfloat16. */
#include "w2.cuh"

#include "linear.cuh"

NB_LINEAR(w2, NB_W_W2)
