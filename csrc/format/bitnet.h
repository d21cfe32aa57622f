/* BitNet b1.58 as Transformers stores it, read only:
 *
 *     weight         U8 [N/4, K]    bits 2i and 2i+1 of byte (r, k) are the code of row i * N/4 + r, plus 1
 *     weight_scale   float [1]      "bitlinear": a divisor; "autobitlinear" with "offline": a factor
 *
 * Activations are INT8, measured for each token. */
#ifndef NB_FORMAT_BITNET_H
#define NB_FORMAT_BITNET_H

#include "format/quantized.h"

extern const nbi_quant_format nbi_bitnet_format;

#endif
