/* What quantizing one linear layer alone costs a model, for every layer and every scheme that it might get.
 *
 *   kl     mean over the tokens of some windows of KL(model || model with that layer alone quantized), in nats a token
 *   error  |X (W - Q)^T|^2 / |X W^T|^2, X the inputs of the layer on the text: tr(D H D^T) / tr(W H W^T), H = X^T X
 *
 * Both are measured with the weights that the recipe's method makes, as they are what the model will have: rounding to nearest
 * misjudges layers whose inputs go together, where GPTQ makes good most of the error.  (A method that balances layers is
 * measured without its balance.)  The model goes through the text once: what the layers before a layer make of it is the same
 * for all of its schemes, and only the layers from it on are computed again. */
#ifndef NB_ENGINE_SENSITIVITY_H
#define NB_ENGINE_SENSITIVITY_H

#include "format/safetensors.h"
#include "model/model.h"
#include "quant/method.h"

typedef struct nbi_cost {
    double kl, error;
} nbi_cost;

typedef struct nbi_sensitivity_options {
    nb_model *m; /* dense; its layers are exchanged one by one, and are at the end what they were */
    const nbi_checkpoint *ckpt;
    const nbi_scheme *scheme; /* [n_schemes]; bits 0 costs nothing */
    size_t n_schemes;
    const bool *wanted; /* [modules][n_schemes] */
    const nbi_method *method;
    const nbi_method_options *options;
    nbi_dtype scale_dtype;
    const int32_t *ids; /* [n], in windows of ctx */
    size_t n, ctx;
    uint32_t windows; /* of them, evenly spread, for the KL divergence; at least 1 */
    uint64_t
        memory; /* most bytes to use, with the model; 0: what seems good.  Activations go to a file where they do not fit */
    const char *folder; /* for that file */
    int threads;
    const nb_callbacks *callbacks;
} nbi_sensitivity_options;

/* Modules: layer after layer the projections in the order of nbi_proj, then lm_head unless it is tied to the embedding. */
size_t nbi_sensitivity_modules(const nbi_config *c);
/* Before a model is loaded: m needs no more than its configuration and its backend.  NB_ELIMIT saying the smallest possible where
 * `memory` is not enough; *spill: activations will be in a file. */
nb_status nbi_sensitivity_fits(const nbi_sensitivity_options *o, bool *spill);
/* cost [modules][n_schemes]; what is not wanted stays as it is.  *tokens: that the KL divergence was measured on. */
nb_status nbi_sensitivity(nbi_cost *cost, size_t *tokens, const nbi_sensitivity_options *o);

#endif
