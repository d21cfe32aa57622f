/* The bias of a layer travels along, whatever is done to its weights. */
#ifndef NB_QUANT_BIAS_H
#define NB_QUANT_BIAS_H

#include "base/weight.h"

/* w->bias becomes a copy of src's, which has as many rows; NULL where src has none. */
nb_status nbi_copy_bias(nbi_weight *w, const nbi_weight *src);

#endif
