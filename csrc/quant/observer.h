/* Statistics of activations and the range that a static grid takes from them.
 * A histogram of 2048 bins whose range grows by powers of two (bins are merged pairwise), so one pass over a stream of
 * unknown range is enough and the result does not depend on how the stream was cut into batches beyond the first. */
#ifndef NB_QUANT_OBSERVER_H
#define NB_QUANT_OBSERVER_H

#include "base/weight.h"
#include "quant/grid.h"

#define NBI_OBSERVER_BINS 2048

typedef enum nbi_observer_method { NBI_OBS_MINMAX, NBI_OBS_PERCENTILE, NBI_OBS_MSE, NBI_OBS_KL } nbi_observer_method;
bool nbi_observer_method_from_name(const char *s, nbi_observer_method *out); /* "minmax", "percentile", "mse", "kl" */

typedef struct nbi_observer {
    float lo, hi;                       /* exact extremes seen */
    float half_range;                   /* bins cover [-half_range, half_range); a power of two */
    uint64_t count;
    uint64_t bins[NBI_OBSERVER_BINS];
    bool bad;                           /* saw NaN or Inf */
} nbi_observer;

void nbi_observer_init(nbi_observer *o);
void nbi_observer_add(nbi_observer *o, const float *x, size_t n);
/* The grid for `bits` by `method`; percentile in (50, 100], e.g. 99.99, used by NBI_OBS_PERCENTILE alone.
 * MSE: searches the clip that minimises the expected squared error over the histogram.  KL: TensorRT's entropy
 * calibration (Migacz 2017), for symmetric on |x|, for asymmetric on both ends. */
nb_status nbi_observer_grid(const nbi_observer *o, nbi_observer_method method, double percentile, unsigned bits,
                            bool symmetric, nbi_grid *out);

#endif
