/* Data-free methods that see a run of weights with one scale at a time: a group, a row, or the whole matrix. */
#ifndef NB_QUANT_SPANS_H
#define NB_QUANT_SPANS_H

#include "base/weight.h"

/* Finds the codes of x[len], finite numbers, and returns their scale as it is stored. */
typedef float (*nbi_span_fn)(int8_t *codes, const float *x, size_t len, nbi_dtype scale_dtype, bool refine);

/* Quantizes `src` (dense) by `scheme`, which is symmetric.  NaN or infinity is NB_EFORMAT naming row and column, likewise a scale
 * that scale_dtype does not hold; K not divisible by the group is NB_EINVAL.  The result does not depend on threads. */
nb_status nbi_quantize_spans(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype,
                             nbi_span_fn fn, bool refine, int threads);

#endif
