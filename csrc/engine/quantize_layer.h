/* What a method does to one layer whose inputs are known: balance its norms and weights, then round its weights. */
#ifndef NB_ENGINE_QUANTIZE_LAYER_H
#define NB_ENGINE_QUANTIZE_LAYER_H

#include "engine/layerwise.h"
#include "quant/method.h"

typedef struct nbi_layer_job {
    const nbi_config *cfg;
    uint32_t index;
    const nbi_method *method;
    const nbi_method_options *options;
    const nbi_scheme *scheme[NBI_N_PROJ]; /* bits 0: stays dense */
    nbi_dtype norm_dtype[2];              /* what the norms are stored as */
    nbi_dtype scale_dtype;
    nbi_backend *be;
    int threads;
    const nb_callbacks *callbacks; /* for warnings; may be NULL */
} nbi_layer_job;

/* Changes l and in together, so that the layer computes what it computed before, up to rounding.  Norms are numbers of their
 * dtype afterwards: what rounding them changes goes into the weights behind them. */
nb_status nbi_balance_layer(const nbi_layer_job *j, nbi_host_layer *l, nbi_inputs *in);

/* q.w: the quantized weights, or copies where they stay dense; q.norm: copies.  nbi_host_layer_free() it.  First the norms, then
 * the layers of each port. */
nb_status nbi_round_norms(const nbi_layer_job *j, const nbi_host_layer *l, nbi_host_layer *q);
nb_status nbi_round_port(const nbi_layer_job *j, nbi_port port, const nbi_host_layer *l, const nbi_inputs *in,
                         nbi_host_layer *q);

#endif
