/* Mixed precision: which scheme each linear layer gets, from what each costs (sensitivity.h) under a budget (allocate.h). */
#ifndef NB_ENGINE_MIXED_H
#define NB_ENGINE_MIXED_H

#include "format/safetensors.h"
#include "model/config.h"
#include "quant/recipe.h"

typedef struct nbi_mixed_options {
    const char *path; /* of the dense model */
    const nbi_config *cfg;
    const nbi_checkpoint *ckpt;
    const nbi_recipe *recipe; /* its overrides and "ignore" stay as they are */
    nbi_dtype scale_dtype;
    /* One of them; both 0: what the recipe's search says.
     * target_bits   the average over the weights of all linear layers but ignored ones: 8 times the bytes of their tensors
     *               (codes, scales, zero points, shapes; 16 bits where one is left dense) by the number of weights
     * target_bytes  the whole model: all tensors, and the headers of the files that hold them */
    double target_bits;
    uint64_t target_bytes;
    const char *text; /* calibration */
    size_t tokens, ctx;
    uint64_t memory;    /* most bytes for measuring, 0: what seems good */
    const char *folder; /* for activations that do not fit; NULL: where temporary files go */
    const char *device;
    int threads;
    const nb_callbacks *callbacks;
} nbi_mixed_options;

/* Does the recipe, or one of the two targets, ask for a search? */
bool nbi_mixed_wanted(const nbi_recipe *r, double target_bits, uint64_t target_bytes);

/* *recipe: a recipe without a search, with an override for each layer that was chosen for.  *table: what was measured and
 * chosen.  json_decref() both. */
nb_status nbi_mixed_find(json_t **recipe, json_t **table, const nbi_mixed_options *o);

#endif
