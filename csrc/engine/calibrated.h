/* Layers quantized by methods that look at what the model does with a text: layer after layer, each fed by the quantized ones
 * before it. */
#ifndef NB_ENGINE_CALIBRATED_H
#define NB_ENGINE_CALIBRATED_H

#include "engine/layerwise.h"
#include "engine/rotate.h"
#include "format/safetensors.h"
#include "quant/method.h"
#include "quant/observer.h"

typedef struct nbi_calibrated nbi_calibrated;

typedef struct nbi_calibrated_options {
    const char *path; /* of the model: its tokenizer */
    const nbi_config *cfg;
    const nbi_checkpoint *ckpt;      /* dense */
    const nbi_rotation *rotation;    /* the model is read through it; NULL: as it is */
    const nbi_scheme *const *scheme; /* [n_layers * nbi_layer_modules()]; bits 0: stays dense */
    const nbi_method *method;
    const nbi_method_options *options;
    nbi_dtype scale_dtype;
    const char *text; /* file */
    size_t tokens, ctx;
    const char *device;
    int threads;
    const nb_callbacks *callbacks;
    /* static activations: how their grids follow from what was seen */
    nbi_observer_method observer;
    double percentile;
    bool head;          /* nbi_calibrated_head() will be asked for */
    bool dense_feed;    /* dense layers feed the next one, instead of the quantized ones */
    uint64_t memory;    /* bytes, 0: what seems good */
    const char *folder; /* for activations that do not fit; NULL: where temporary files go */
    const char *stats;  /* file of saved statistics, or NULL; with dense_feed */
    uint64_t model;     /* nbi_model_fingerprint(), for stats */
} nbi_calibrated_options;

/* Keeps the pointers. */
nb_status nbi_calibrated_create(nbi_calibrated **out, const nbi_calibrated_options *o);
void nbi_calibrated_free(nbi_calibrated *c);
size_t nbi_calibrated_tokens(const nbi_calibrated *c);
size_t nbi_calibrated_ctx(const nbi_calibrated *c);
uint64_t nbi_calibrated_text(const nbi_calibrated *c);      /* a hash of the tokens */
const char *nbi_calibrated_device(const nbi_calibrated *c); /* what computed the activations: "cpu", "cuda" */

/* The next layer, from 0: as it was (dense fp32, but balanced), and quantized.  nbi_host_layer_free() both. */
nb_status nbi_calibrated_next(nbi_calibrated *c, nbi_host_layer *dense, nbi_host_layer *quantized);
/* Past the next layer, which is quantized already. */
nb_status nbi_calibrated_skip(nbi_calibrated *c, const nbi_host_layer *quantized);
/* What a module of the layer that came last saw of the text; NULL behind a skipped one, and for experts that took turns. */
const nbi_inputs *nbi_calibrated_inputs(const nbi_calibrated *c, size_t module);
/* Behind the last layer: what lm_head sees of the text.  *known false: statistics were saved, which have none of it.
 * nbi_inputs_free() in. */
nb_status nbi_calibrated_head(nbi_calibrated *c, nbi_inputs *in, bool *known);

#endif
