/* Statistics of activations and the range that a static grid takes from them.
 * A histogram of 2048 bins on each side of zero whose range grows by powers of two (bins are merged pairwise), so one
 * pass over a stream of unknown range is enough and the result does not depend on how the stream was cut into batches.
 * One observer belongs to one thread at a time. */
#ifndef NB_QUANT_OBSERVER_H
#define NB_QUANT_OBSERVER_H

#include "base/histogram.h"
#include "base/weight.h"
#include "quant/grid.h"

typedef enum nbi_observer_method { NBI_OBS_MINMAX, NBI_OBS_PERCENTILE, NBI_OBS_MSE, NBI_OBS_KL } nbi_observer_method;
bool nbi_observer_method_from_name(const char *s, nbi_observer_method *out); /* "minmax", "percentile", "mse", "kl" */

void nbi_observer_init(nbi_observer *o);
void nbi_observer_add(nbi_observer *o, const float *x, size_t n);
/* The grid for `bits` by `method`; percentile in (50, 100], e.g. 99.99, used by NBI_OBS_PERCENTILE alone.
 * MSE: searches the clip that minimises the expected squared error over the histogram.  KL: TensorRT's entropy
 * calibration (Migacz 2017), for symmetric on |x|, for asymmetric on both ends.  The scale is fp32.
 * NB_EINVAL: nothing was seen, bits not 4 or 8, percentile out of range; NB_EFORMAT: NaN or Inf was seen. */
nb_status nbi_observer_grid(const nbi_observer *o, nbi_observer_method method, double percentile, unsigned bits,
                            bool symmetric, nbi_grid *out);

#endif
