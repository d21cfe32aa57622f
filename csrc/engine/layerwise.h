/* A calibration text through a model, one layer at a time: what a layer's inputs are is told before it is quantized, and what
 * the quantized layer makes of them is what the next one sees.  One layer is in memory; the residual stream of all tokens is
 * there too, or in a temporary file. */
#ifndef NB_ENGINE_LAYERWISE_H
#define NB_ENGINE_LAYERWISE_H

#include "engine/key_grid.h"
#include "model/build.h"
#include "quant/inputs.h"

const char *nbi_port_name(nbi_port p); /* "attn", "o", "ffn", "down" */
size_t nbi_port_width(const nbi_config *c, nbi_port p);

/* What statistics of a layer take, with the copy of the largest Gram matrix that a second-order method makes. */
uint64_t nbi_statistics_bytes(const nbi_config *c, unsigned needs);
/* Memory for a calibration: what was asked for; 0: half of the machine's, which is not ours alone, or what is free. */
uint64_t nbi_calib_budget(uint64_t asked, nbi_backend *be);

/* A layer on the host: dense fp32 weights that methods change, norms. */
typedef struct nbi_host_layer {
    nbi_weight w[NBI_N_PROJ];
    float *norm[2];  /* [hidden]: before attention, before the feed-forward network */
    float *key_grid; /* [2][n_kv_heads][head_dim]: shift, scale of key_grid.h; NULL: none */
} nbi_host_layer;
void nbi_host_layer_free(nbi_host_layer *l); /* the members */

typedef struct nbi_layerwise nbi_layerwise;

typedef struct nbi_layerwise_options {
    nb_model *shell;     /* of nbi_model_build_shell(), must outlive the object, which takes its embedding away */
    const int32_t *ids;  /* [n], kept */
    size_t n, ctx;       /* windows of ctx tokens; the last may be shorter */
    unsigned needs;      /* NBI_NEEDS_* */
    nbi_key_stats *keys; /* takes the moments of the layer that is looked at; NULL: nobody asks for them */
    bool rotate_keys;    /* of keys as they are behind a rotation */
    int threads;
    uint64_t memory;    /* most bytes to use, 0: what seems good.  The stream goes to a file where it does not fit */
    const char *folder; /* for that file */
    uint32_t passes;    /* of the text through a layer that are to come, for the progress bar */
    const nb_callbacks *callbacks;
} nbi_layerwise_options;

nb_status nbi_layerwise_create(nbi_layerwise **out, const nbi_layerwise_options *o);
void nbi_layerwise_free(nbi_layerwise *l);

#define NBI_ALL_PORTS ((1u << NBI_N_PORTS) - 1)

/* Feeds all windows to layer i with the weights of `layer` and leaves what its linear layers saw in in[NBI_N_PORTS]
 * (nbi_inputs_free() each); `ports`: bits of those that are looked at, the others of in[] are not touched.  move: the residual
 * stream goes past the layer; else it stays as it was before. */
nb_status nbi_layerwise_observe(nbi_layerwise *l, uint32_t i, const nbi_host_layer *layer, unsigned ports, bool move,
                                nbi_inputs *in);
/* Moves the residual stream past layer i, now with these weights (quantized or dense). */
nb_status nbi_layerwise_advance(nbi_layerwise *l, uint32_t i, const nbi_host_layer *layer);
/* Behind the last layer: what lm_head sees, x / sqrt(mean(x^2) + eps) * norm; nbi_inputs_free() it. */
nb_status nbi_layerwise_head(nbi_layerwise *l, const float *norm, nbi_inputs *in);

#endif
