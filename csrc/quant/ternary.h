/* Weights of three values, -s, 0 and s: codes -1, 0, 1 of 2 bits.  Data free. */
#ifndef NB_QUANT_TERNARY_H
#define NB_QUANT_TERNARY_H

#include "base/weight.h"

/* Li, Zhang, Liu, "Ternary Weight Networks", arXiv 1605.04711.  The scale that loses least for a given set of weights that are not
 * 0 is the mean of their magnitudes, and the set is {|w| > D}, D = 0.7 mean|w| being near the best for normal and uniform
 * weights.  refine: from there the two are improved in turns, D = s/2 (every weight takes its nearest value) and s = the mean
 * of what is above it, until no code changes; each turn lowers the squared error. */
nb_status nbi_twn(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype, bool refine,
                  int threads);

/* Ma et al., "The Era of 1-bit LLMs", arXiv 2402.17764: s = max(mean|w|, 1e-5), q = clamp(rne(w/s), -1, 1).  A model is
 * trained with it; an ordinary one does not survive it. */
nb_status nbi_absmean(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype,
                      int threads);

/* 2 bits are ternary, others stay on their grid.  nbi_method.scheme. */
nb_status nbi_ternary_scheme(nbi_scheme *s, const char *where);

#endif
