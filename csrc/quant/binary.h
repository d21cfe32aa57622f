/* Weights of one bit: Rastegari et al., "XNOR-Net", arXiv 1603.05279.  w ~ s * sign(w) with s = mean|w| of the output row, the
 * scale that loses least; sign(0) = 1.  Data free.  Activations of one bit (NBI_ACT_SIGN) are made at run time. */
#ifndef NB_QUANT_BINARY_H
#define NB_QUANT_BINARY_H

#include "base/weight.h"

nb_status nbi_binary(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype,
                     int threads);

/* 1 bit is binary, others stay on their grid.  nbi_method.scheme. */
nb_status nbi_binary_scheme(nbi_scheme *s, const char *where);

#endif
