/* Round to nearest in a narrower range, chosen for each group: what lies outside is clipped, what lies inside gets finer steps. */
#ifndef NB_QUANT_CLIPPED_H
#define NB_QUANT_CLIPPED_H

#include "base/weight.h"
#include "quant/inputs.h"

/* in NULL: the clip whose weights are off least, in squares (clip.h; 80 candidates down to a fifth of the range).
 * Else the one whose outputs are off least on the calibration text, d H d^T of the whole row, d = Q(w) - w; in->gram is needed.
 * AWQ's search (1, 0.95 .. 0.55 of the range) looks at a group's own inputs alone, as if groups did not correlate; here each group
 * is judged with the errors that the others have, and they take turns until nothing moves, four times at most. */
nb_status nbi_clipped(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype,
                      const nbi_inputs *in, int threads);

#endif
