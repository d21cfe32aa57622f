/* Round to nearest: the baseline of every comparison.  Data free. */
#ifndef NB_QUANT_RTN_H
#define NB_QUANT_RTN_H

#include "backend/backend.h"

/* Quantizes a dense weight by `scheme` (weights part).  NaN or Inf in `src` is NB_EFORMAT naming row and column; K not
 * divisible by the group is NB_EINVAL.  `threads` OpenMP threads; the result does not depend on them. */
nb_status nbi_rtn(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype, int threads);

/* The same on a device, with the same bits: be NULL, without quant_ops or without a kernel for the scheme computes on the host.
 * *on_device (may be NULL) says which it was. */
nb_status nbi_rtn_on(nbi_backend *be, nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme,
                     nbi_dtype scale_dtype, int threads, bool *on_device);

/* Error of a quantized weight against its dense source, for the report. */
typedef struct nbi_quant_error {
    double mse;     /* mean squared error */
    double sqnr_db; /* 10 log10(sum w^2 / sum e^2); +inf when exact */
    double max_abs;
} nbi_quant_error;
void nbi_quant_error_of(nbi_quant_error *e, const nbi_weight *q, const nbi_weight *src);

#endif
