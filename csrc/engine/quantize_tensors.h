/* The tensors of a checkpoint one after another into the folder of a quantized one: declared first, then made and written.  Methods
 * that look at a text make them layer after layer (calibrated.h), and what they made can be taken from an earlier run (resume.h). */
#ifndef NB_ENGINE_QUANTIZE_TENSORS_H
#define NB_ENGINE_QUANTIZE_TENSORS_H

#include <jansson.h>

#include "engine/rotate.h"
#include "format/quantized.h"
#include "quant/recipe.h"

/* One linear layer of the architecture and what becomes of it. */
typedef struct nbi_tensors_module {
    char name[96];
    uint32_t layer;
    size_t index; /* in its layer, as nbi_module_at() counts */
    nbi_proj proj;
    size_t place; /* whose inputs it reads: nbi_layer_places() */
    bool outside; /* of the layers: the embedding, lm_head */
    bool is_head, bias;
    size_t n, k;
    nbi_scheme scheme;
} nbi_tensors_module;
/* Into the order that nbi_tensors_options asks for. */
void nbi_tensors_sort(nbi_tensors_module *modules, size_t n);

typedef struct nbi_tensors_options {
    const nb_quantize_options *asked; /* dry_run: nothing is written; calibration, resume, shards, callbacks */
    const char *src;                  /* the dense model */
    const char *output, *folder;      /* where the result will be; where it is until it is whole.  NULL in a dry run */
    json_t *config;                   /* config.json; an lm_head that gets a tensor of its own is said there */
    const nbi_config *cfg;
    const nbi_checkpoint *ckpt;
    const nbi_recipe *recipe;
    const nbi_method *method;
    const nbi_method_options *method_options;
    const nbi_rotation *rotation; /* the model is read through it; NULL: as it is */
    const nbi_tensors_module *modules;
    size_t n_modules;
    const nbi_scheme *const *schemes; /* [n_layers * nbi_layer_modules()], those of the modules */
    const nbi_quant_format *format;
    nbi_dtype scale_dtype;
    bool channel_keys; /* keys get a grid for each channel */
    nbi_backend *be;   /* what computes codes and scales */
    int threads;
} nbi_tensors_options;

typedef struct nbi_tensors nbi_tensors;

/* Reads the text, where there is one to read.  Keeps the pointers. */
nb_status nbi_tensors_open(nbi_tensors **out, const nbi_tensors_options *o);
nb_status nbi_tensors_write(nbi_tensors *ts);             /* all of them, once */
void nbi_tensors_free(nbi_tensors *ts, bool keep_layers); /* keep: for a run that resumes this one */

/* What was written, or would be. */
typedef struct nbi_tensors_result {
    json_t *rows; /* of the report; lives as long as the object */
    uint64_t bytes_in, bytes_out;
    size_t tokens;      /* of the text */
    const char *device; /* that computed activations; NULL: nobody looked at a text */
} nbi_tensors_result;
nbi_tensors_result nbi_tensors_result_of(const nbi_tensors *ts);

#endif
