/* Reading a Hugging Face folder piece by piece: what loading, quantizing and inspecting share. */
#ifndef NB_MODEL_CHECKPOINT_H
#define NB_MODEL_CHECKPOINT_H

#include <jansson.h>

#include "format/quantized.h"
#include "format/safetensors.h"
#include "model/config.h"

/* config.json of a folder; `where` becomes its path for errors.  json_decref() it. */
nb_status nbi_model_json(json_t **out, const char *path, char where[1100]);
/* quantization_config inside it: *out NULL when there is none. */
nb_status nbi_quantization_config(nbi_quant_config **out, const json_t *config, const char *where);
/* One linear layer (or "model.embed_tokens") in canonical form; `bias` says whether the architecture has one. */
nb_status nbi_read_linear(nbi_weight *w, const nbi_checkpoint *ckpt, const nbi_quant_config *q, const char *module,
                          size_t n, size_t k, bool bias);
/* NB_EFORMAT naming tensor, row and column of the first NaN or Inf in a dense weight. */
nb_status nbi_check_finite(const nbi_weight *w, const char *name);
/* Identifies a model: a hash of config.json, the tensors' names, types and shapes, and some bytes of each. */
uint64_t nbi_model_fingerprint(const nbi_checkpoint *c, const json_t *config);

#endif
