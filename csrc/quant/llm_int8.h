/* LLM.int8() (Dettmers et al., arXiv 2208.07339): inputs that grow large keep their columns in fp16, all others are INT8
 * times INT8, a scale for each row of either side. */
#ifndef NB_QUANT_LLM_INT8_H
#define NB_QUANT_LLM_INT8_H

#include "base/weight.h"
#include "quant/inputs.h"

/* The paper looks for |x| >= 6 in each batch; here an input is an outlier that reached the threshold anywhere in the
 * calibration text, so that a result does not depend on the batch. */
nb_status nbi_llm_int8(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype,
                       const nbi_inputs *in, float threshold);
/* nbi_method.scheme */
nb_status nbi_llm_int8_scheme(nbi_scheme *s, const char *where);

#endif
