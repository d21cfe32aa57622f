/* What rounding a weight costs its layer's outputs on a calibration text. */
#ifndef NB_QUANT_OUTPUT_ERROR_H
#define NB_QUANT_OUTPUT_ERROR_H

#include "base/weight.h"

#define NBI_OUTPUT_ROWS 1024

/* With X the inputs and H = X^T X [K][K]: signal = |X W^T|^2 = tr(W H W^T), noise = |X (W - Q)^T|^2 = tr(D H D^T), D = W - Q.
 * Of more than NBI_OUTPUT_ROWS rows every ceil(N / NBI_OUTPUT_ROWS)-th one stands for all: signal and noise are sums over these
 * rows.  src is dense; q is what nbi_weight_dense() says.  The same for any number of threads. */
nb_status nbi_output_error(double *signal, double *noise, const nbi_weight *q, const nbi_weight *src, const float *h,
                           int threads);

#endif
