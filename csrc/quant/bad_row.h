/* Why a row of weights could not be rounded: the sentence that methods share. */
#ifndef NB_QUANT_BAD_ROW_H
#define NB_QUANT_BAD_ROW_H

#include "base/dtype.h"
#include "base/status.h"

/* x [k], row `row` of the weight, has a number that is not finite, or needs a scale that is too large.  NB_EFORMAT. */
nb_status nbi_bad_row(const float *x, size_t k, size_t row, nbi_dtype scale_dtype);

#endif
