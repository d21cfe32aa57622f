/* Linear layers with weights of 3 bits, INT8 activations. */
#include "w3.cuh"

#include "linear.cuh"

NB_LINEAR_INT8(w3a8, NB_W_W3)
