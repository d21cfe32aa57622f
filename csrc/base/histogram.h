/* What an observer of activations has seen.  Filled by quant/observer.c, or by a device (backend/quant_ops.h). */
#ifndef NB_BASE_HISTOGRAM_H
#define NB_BASE_HISTOGRAM_H

#include <stdbool.h>
#include <stdint.h>

#define NBI_OBSERVER_BINS 4096

typedef struct nbi_observer {
    float lo, hi;     /* exact extremes seen */
    float half_range; /* bins cover [-half_range, half_range): the least power of two above all
                                           |x|, at least 2^-100; 0 while nothing but zeros was seen */
    uint64_t count;
    uint64_t bins[NBI_OBSERVER_BINS];
    bool bad; /* saw NaN or Inf; nothing is added from then on */
} nbi_observer;

#endif
