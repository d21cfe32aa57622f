/* A recipe: which scheme each linear layer gets.  JSON, see configs/recipes/ and docs/recipes.md.
 *
 *   { "name": "w8a8-static", "description": "...",
 *     "weights":     {"bits": 8, "symmetric": true, "strategy": "channel"},       strategy tensor|channel|group
 *     "activations": {"bits": 8, "symmetric": true, "strategy": "tensor"},        or null; strategy token|tensor
 *     "method":      "gptq", or {"name": "gptq", "act_order": true, ...}            how weights are rounded; "rtn" if missing
 *     "calibration": {"method": "mse", "percentile": 99.99, "tokens": 8192, "ctx": 512},
 *     "rotate": true,                                                             QuaRot: engine/rotate.h; false if missing
 *     "kv_dtype": "int4",                                                         of the KV cache, unless another is asked for
 *     "ignore": ["lm_head"],                                                      exact, or "re:..."
 *     "overrides": [{"match": "re:.*down_proj", "weights": {"bits": 8, "strategy": "channel"}}]   later ones win
 *     "search": see search.h; nibble quantize then finds what each layer gets
 *   }
 * Unknown keys are an error that names the key and lists the known ones. */
#ifndef NB_QUANT_RECIPE_H
#define NB_QUANT_RECIPE_H

#include "base/weight.h"
#include <jansson.h>

#include "quant/method.h"
#include "quant/observer.h"
#include "quant/search.h"

typedef struct nbi_recipe nbi_recipe;

/* Quantized where an override has this name; patterns pass it by. */
#define NBI_EMBEDDING "model.embed_tokens"

/* `spec`: a path, or the name of a recipe: then <dir>/<name>.json for dir in $NIBBLE_RECIPES, the installed data
 * folder, ./configs/recipes. */
nb_status nbi_recipe_load(nbi_recipe **out, const char *spec);
nb_status nbi_recipe_parse(nbi_recipe **out, const json_t *j, const char *where);
void nbi_recipe_free(nbi_recipe *r);
const char *nbi_recipe_name(const nbi_recipe *r);
/* The scheme for a module with K inputs: bits 0 for ignored ones.  K not divisible by the group: NB_EINVAL naming
 * module, K and group. */
nb_status nbi_recipe_scheme(const nbi_recipe *r, const char *module, size_t k, nbi_scheme *out);
/* What decides over a module: "ignore", an override, or neither; then a search may choose. */
typedef enum nbi_fate { NBI_FREE, NBI_IGNORED, NBI_OVERRIDDEN } nbi_fate;
nb_status nbi_recipe_fate(const nbi_recipe *r, const char *module, nbi_fate *fate);
const nbi_search *nbi_recipe_search(const nbi_recipe *r); /* NULL: the recipe has none */
/* The same, or the defaults on top of the recipe's weights; nbi_search_free() it. */
nb_status nbi_recipe_search_of(const nbi_recipe *r, nbi_search *out, const char *where);
const json_t *nbi_recipe_json(const nbi_recipe *r); /* as it was written */
/* search.c: "weights" on top of what *s holds. */
nb_status nbi_recipe_weights(const json_t *j, nbi_scheme *s, const char *where);
bool nbi_recipe_needs_calibration(const nbi_recipe *r); /* some scheme has static activations */
const nbi_method *nbi_recipe_method(const nbi_recipe *r, const nbi_method_options **options);
bool nbi_recipe_rotates(const nbi_recipe *r);
const char *nbi_recipe_kv_dtype(const nbi_recipe *r); /* "": none */
bool nbi_recipe_needs_text(const nbi_recipe *r);      /* for static activations, or for the method */
void nbi_recipe_calibration(const nbi_recipe *r, nbi_observer_method *method, double *percentile, uint32_t *tokens,
                            uint32_t *ctx);

#endif
