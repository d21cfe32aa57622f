/* Building a model from a source of weights: a checkpoint, or random numbers. */
#ifndef NB_MODEL_BUILD_H
#define NB_MODEL_BUILD_H

#include "model/model.h"

typedef struct nbi_source {
    /* What linear() will give: the scheme (bits 0: dense) and, where it is dense, the type.  Reads no weights. */
    nb_status (*scheme)(void *self, const char *module, size_t n, size_t k, nbi_scheme *scheme, nbi_dtype *dense);
    /* The weight of a linear layer (or of the embedding, module "model.embed_tokens") as the architecture expects it; views
     * that it holds are good until the next call. */
    nb_status (*linear)(void *self, const char *module, size_t n, size_t k, bool bias, nbi_weight *out);
    /* A norm's vector as fp32, [n]. */
    nb_status (*vector)(void *self, const char *name, size_t n, float *out);
    void *self;
} nbi_source;

/* m->cfg and m->be are set; fills the rest but the tokenizer.  On failure the caller frees m. */
nb_status nbi_model_build(nb_model *m, const nbi_source *src, const nb_callbacks *cb);

/* An empty model with options applied: backend created, callbacks taken. */
nb_status nbi_model_new(nb_model **out, const nb_model_options *o, nb_callbacks *cb);

/* A model whose layers come and go: the embedding alone; then layers one at a time.  nb_model_free() takes what is there. */
nb_status nbi_model_build_shell(nb_model *m, const nbi_source *src);
nb_status nbi_layer_load(nb_model *m, const nbi_source *src, uint32_t i); /* on failure unload what came */
void nbi_layer_unload(nb_model *m, uint32_t i);                           /* nothing there is fine */

#endif
