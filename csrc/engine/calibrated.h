/* Layers quantized by methods that look at what the model does with a text: layer after layer, each fed by the quantized ones
 * before it. */
#ifndef NB_ENGINE_CALIBRATED_H
#define NB_ENGINE_CALIBRATED_H

#include "engine/layerwise.h"
#include "engine/rotate.h"
#include "format/safetensors.h"
#include "quant/method.h"

typedef struct nbi_calibrated nbi_calibrated;

typedef struct nbi_calibrated_options {
    const char *path; /* of the model: its tokenizer */
    const nbi_config *cfg;
    const nbi_checkpoint *ckpt;      /* dense */
    const nbi_rotation *rotation;    /* the model is read through it; NULL: as it is */
    const nbi_scheme *const *scheme; /* [n_layers * NBI_N_PROJ]; bits 0: stays dense */
    const nbi_method *method;
    const nbi_method_options *options;
    nbi_dtype scale_dtype;
    const char *text; /* file */
    size_t tokens, ctx;
    const char *device;
    int threads;
    const nb_callbacks *callbacks;
} nbi_calibrated_options;

/* Keeps the pointers. */
nb_status nbi_calibrated_create(nbi_calibrated **out, const nbi_calibrated_options *o);
void nbi_calibrated_free(nbi_calibrated *c);
size_t nbi_calibrated_tokens(const nbi_calibrated *c);
const char *nbi_calibrated_device(const nbi_calibrated *c);

/* The next layer, from 0: as it was (dense fp32, but balanced), and quantized.  nbi_host_layer_free() both. */
nb_status nbi_calibrated_next(nbi_calibrated *c, nbi_host_layer *dense, nbi_host_layer *quantized);
/* What that layer's linear layers saw of the text (after a balance: as it is then); until the next call. */
const nbi_inputs *nbi_calibrated_inputs(const nbi_calibrated *c, nbi_proj p);

#endif
