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
    const nbi_scheme *const *scheme;   /* [nbi_layer_modules()]; bits 0: stays dense */
    nbi_dtype norm_dtype[NBI_N_NORMS]; /* what the norms are stored as */
    nbi_dtype scale_dtype;
    nbi_backend *be;
    int threads;
    const nb_callbacks *callbacks; /* for warnings; may be NULL */
} nbi_layer_job;

/* Changes l and in together, so that the layer computes what it computed before, up to rounding.  Norms are numbers of their
 * dtype afterwards: what rounding them changes goes into the weights behind them.  w: what in[nbi_layer_places()] holds; all that
 * norms stand before is balanced with the first feed-forward network, what is seen of others later is balanced already. */
nb_status nbi_balance_layer(const nbi_layer_job *j, nbi_host_layer *l, nbi_inputs *in, const nbi_watch *w);

/* q.w: the quantized weights, or copies where they stay dense; q.norm: copies.  nbi_host_layer_free() it.  First the norms, then
 * the layers of each place. */
nb_status nbi_round_norms(const nbi_layer_job *j, const nbi_host_layer *l, nbi_host_layer *q);
nb_status nbi_round_place(const nbi_layer_job *j, size_t place, const nbi_host_layer *l, const nbi_inputs *in,
                          nbi_host_layer *q);

#endif
