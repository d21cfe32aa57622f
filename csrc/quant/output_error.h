/* How far a quantized weight is from its source, and what that costs its layer's outputs on a calibration text. */
#ifndef NB_QUANT_OUTPUT_ERROR_H
#define NB_QUANT_OUTPUT_ERROR_H

#include "base/weight.h"

#define NBI_OUTPUT_ROWS 1024

/* D = W - Q, Q what nbi_weight_dense() says.  With X the inputs on the text and H = X^T X [K][K]:
 *     signal = |X W^T|^2 = tr(W H W^T)      noise = |X D^T|^2 = tr(D H D^T)
 * Of more than NBI_OUTPUT_ROWS rows every ceil(N / NBI_OUTPUT_ROWS)-th stands for all in these two. */
typedef struct nbi_weight_error {
    double w2, d2;        /* sums of squares of W and of D */
    double max_abs;       /* of D */
    double signal, noise; /* 0 without H */
    double outliers;      /* share of the weights that are more than 6 standard deviations of their row from its mean */
} nbi_weight_error;

/* src is dense; h may be NULL.  The same for any number of threads. */
nb_status nbi_weight_error_of(nbi_weight_error *e, const nbi_weight *q, const nbi_weight *src, const float *h,
                              int threads);

/* 10 log10(signal / noise): infinite where the noise is 0. */
double nbi_decibels(double signal, double noise);

#endif
