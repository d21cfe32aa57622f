/* A calibration text through a model, one layer at a time: what a layer's inputs are is told before it is quantized, and what
 * the quantized layer makes of them is what the next one sees.  One layer is in memory; the residual stream of all tokens is
 * there too, or in a temporary file. */
#ifndef NB_ENGINE_LAYERWISE_H
#define NB_ENGINE_LAYERWISE_H

#include "model/build.h"
#include "quant/inputs.h"

const char *nbi_port_name(nbi_port p); /* "attn", "o", "ffn", "down" */

/* What statistics of a layer take, those of `ffns` of its feed-forward networks, with the copy of the largest Gram matrix that a
 * second-order method makes. */
uint64_t nbi_statistics_bytes(const nbi_config *c, unsigned needs, uint32_t ffns);
/* Memory for a calibration: what was asked for; 0: half of the machine's, which is not ours alone, or what is free. */
uint64_t nbi_calib_budget(uint64_t asked, nbi_backend *be);

/* A layer on the host: dense fp32 weights that methods change, norms. */
enum { NBI_N_NORMS = 4 };
typedef struct nbi_host_layer {
    size_t n;
    nbi_weight *w; /* [n], as nbi_module_at() counts */
    float *norm
        [NBI_N_NORMS]; /* [hidden]: before attention, before the feed-forward networks; [head_dim]: of queries, of keys, or NULL */
} nbi_host_layer;
nb_status nbi_host_layer_init(nbi_host_layer *l, const nbi_config *c); /* weights of no size, no norms */
void nbi_host_layer_free(nbi_host_layer *l);                           /* the members */
const char *nbi_norm_name(int norm);                                   /* "input_layernorm" */
size_t nbi_norm_width(const nbi_config *c, int norm);                  /* 0: the model has none */

typedef struct nbi_layerwise nbi_layerwise;

typedef struct nbi_layerwise_options {
    nb_model *shell;    /* of nbi_model_build_shell(), must outlive the object, which takes its embedding away */
    const int32_t *ids; /* [n], kept */
    size_t n, ctx;      /* windows of ctx tokens; the last may be shorter */
    unsigned needs;     /* NBI_NEEDS_* */
    int threads;
    uint64_t memory;    /* most bytes to use, 0: what seems good.  The stream goes to a file where it does not fit */
    const char *folder; /* for that file */
    uint32_t
        passes; /* of the text through a layer that are to come, for the progress bar; more where experts take turns */
    const nb_callbacks *callbacks;
} nbi_layerwise_options;

nb_status nbi_layerwise_create(nbi_layerwise **out, const nbi_layerwise_options *o);
void nbi_layerwise_free(nbi_layerwise *l);

/* The places that are looked at: those of these ports (bits), of the feed-forward networks ffn0 .. ffn1-1, and the router's. */
typedef struct nbi_watch {
    unsigned ports;
    uint32_t ffn0, ffn1;
    bool router;
} nbi_watch;
#define NBI_ALL_PORTS ((1u << NBI_N_PORTS) - 1)

/* Whether a place is among them. */
bool nbi_watched(const nbi_config *c, const nbi_watch *w, size_t place);

/* Feed-forward networks whose statistics fit in the memory that is allowed, at least 1: others take their turn behind them. */
uint32_t nbi_layerwise_ffns(const nbi_layerwise *l);

/* Feeds all windows to layer i with the weights of `layer` and leaves what its linear layers saw in in[nbi_layer_places()]
 * (those that are watched); nbi_inputs_free() each, and the others are not touched.  move: the residual stream goes past the layer; else it stays as it
 * was before. */
nb_status nbi_layerwise_observe(nbi_layerwise *l, uint32_t i, const nbi_host_layer *layer, const nbi_watch *watch,
                                bool move, nbi_inputs *in);
nb_status nbi_layerwise_advance(nbi_layerwise *l, uint32_t i, const nbi_host_layer *layer);
/* Behind the last layer: what lm_head sees, x / sqrt(mean(x^2) + eps) * norm; nbi_inputs_free() it. */
nb_status nbi_layerwise_head(nbi_layerwise *l, const float *norm, nbi_inputs *in);

#endif
