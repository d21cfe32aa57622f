/* Round to nearest in a narrower range, chosen for each group: what lies outside is clipped, what lies inside gets finer steps. */
#ifndef NB_QUANT_CLIPPED_H
#define NB_QUANT_CLIPPED_H

#include "base/weight.h"
#include "quant/inputs.h"

/* in NULL: the clip whose weights are off least, in squares (clip.h; 80 candidates down to a fifth of the range).
 * Else, as AWQ has it, the one whose part of the outputs is off least on the calibration text: d H d^T over the group's inputs,
 * for 1, 0.95 .. 0.55 of the range; in->gram is needed. */
nb_status nbi_clipped(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype,
                      const nbi_inputs *in, int threads);

#endif
