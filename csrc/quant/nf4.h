/* NF4: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv 2305.14314, section 3.  Each group is divided by
 * its largest magnitude and every number becomes the nearest of the sixteen in base/nf4.h, the quantiles of a normal
 * distribution.  Data free. */
#ifndef NB_QUANT_NF4_H
#define NB_QUANT_NF4_H

#include "base/weight.h"

/* Codes -8 .. 7 as nbi_weight has them; the rule of bitsandbytes, to the bit: x times fp32(1 / absmax) against the middles between
 * neighbours, the lower one at a tie.  The scale is the absmax itself in fp32, as its files hold it, whatever the dtype of
 * other scales.  A group of zeros has the scale 0 and the codes of 0. */
nb_status nbi_nf4_quantize(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, int threads);

/* What a recipe's scheme becomes: 4 bits are NF4, others stay on their grid.  nbi_method.scheme. */
nb_status nbi_nf4_scheme(nbi_scheme *s, const char *where);

#endif
