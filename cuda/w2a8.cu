/* Linear layers with weights of 2 bits, INT8 activations. */
#include "w2.cuh"

#include "linear.cuh"

NB_LINEAR_INT8(w2a8, NB_W_W2)
