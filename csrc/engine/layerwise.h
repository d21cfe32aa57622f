/* A calibration text through a model, one layer at a time: what a layer's inputs are is told before it is quantized, and what
 * the quantized layer makes of them is what the next one sees.  One layer is in memory, and the residual stream of all tokens. */
#ifndef NB_ENGINE_LAYERWISE_H
#define NB_ENGINE_LAYERWISE_H

#include "model/build.h"
#include "quant/inputs.h"

/* A layer on the host: dense fp32 weights that methods change, norms. */
typedef struct nbi_host_layer {
    nbi_weight w[NBI_N_PROJ];
    float *norm[2]; /* [hidden]: before attention, before the feed-forward network */
} nbi_host_layer;
void nbi_host_layer_free(nbi_host_layer *l); /* the members */

typedef struct nbi_layerwise nbi_layerwise;

/* shell: a model of nbi_model_build_shell(), which must outlive the object.  ids [n], in windows of ctx tokens (the last may be
 * shorter); needs: NBI_NEEDS_*. */
nb_status nbi_layerwise_create(nbi_layerwise **out, nb_model *shell, const int32_t *ids, size_t n, size_t ctx,
                               unsigned needs, int threads);
void nbi_layerwise_free(nbi_layerwise *l);

/* Feeds all windows to layer i with the weights of `layer` and leaves what its linear layers saw in in[NBI_N_PORTS]
 * (nbi_inputs_free() each).  The residual stream stays as it was before the layer. */
nb_status nbi_layerwise_observe(nbi_layerwise *l, uint32_t i, const nbi_host_layer *layer, nbi_inputs *in);
/* Moves the residual stream past layer i, now with these weights (quantized or dense). */
nb_status nbi_layerwise_advance(nbi_layerwise *l, uint32_t i, const nbi_host_layer *layer);

#endif
