/* Formats of quantized checkpoints, by the quant_method of config.json's quantization_config.  Everything above this room meets
 * them through this file; a new format is a file with a table of functions and a line in quantized.c.
 *
 *     compressed-tensors   what vLLM, llm-compressor and Transformers read: written whenever it can say every layer of a model
 *     bitsandbytes         NF4 as Transformers reads it; INT8 and nested NF4 are only read
 *     nibble               everything else: our own container, which other engines refuse
 *     bitnet               BitNet b1.58 of Transformers, only read */
#ifndef NB_FORMAT_QUANTIZED_H
#define NB_FORMAT_QUANTIZED_H

#include <jansson.h>

#include "base/weight.h"
#include "format/safetensors.h"

/* One module and its scheme (bits 0: stays dense), for writing. */
typedef struct nbi_quant_entry {
    const char *module;
    nbi_scheme scheme;
    size_t n, k; /* 0, 0: a module without tensors of its own (a tied lm_head) */
} nbi_quant_entry;

/* What a checkpoint says about the whole model. */
typedef struct nbi_quant_model {
    bool rotate_keys;  /* nbi_kv_layer.rotate */
    bool channel_keys; /* nbi_kv_layer.k_scale: every layer has the tensors of nbi_key_grid_name() */
    char kv_dtype[8];  /* "int4": what it was made for, and the default; "": the device's choice */
} nbi_quant_model;

typedef struct nbi_quant_format {
    const char *name; /* quant_method */
    /* Endings of the tensors of a quantized module, NULL at the end; "weight" and "bias" need no mention. */
    const char *const *parts;
    nb_status (*parse)(void **config, nbi_quant_model *model, const json_t *q, const char *where);
    void (*free)(void *config); /* NULL is fine */
    /* The scheme of a module of class `cls` ("Linear"); some formats ask its tensors.  Reads no weights. */
    nb_status (*scheme)(const void *config, const nbi_checkpoint *c, const char *module, const char *cls,
                        nbi_scheme *out);
    /* *w has n, k and the scheme, bits > 0.  Every number that came from the file is checked.  On failure *w is freed by the
     * caller. */
    nb_status (*read)(nbi_weight *w, const void *config, const nbi_checkpoint *c, const char *module);

    /* ---- writing; NULL in formats that are only read ---- */
    bool (*can_write)(const nbi_quant_entry *e, size_t n, const nbi_quant_model *model);
    nb_status (*build)(json_t **out, const nbi_quant_entry *e, size_t n, const nbi_quant_model *model);
    nb_status (*declare)(nbi_st_writer *w, const char *module, size_t n, size_t k, const nbi_scheme *s,
                         nbi_dtype scale);
    nb_status (*write)(nbi_st_writer *w, const char *module, const nbi_weight *weight, nbi_dtype scale);
    size_t (*bytes)(size_t n, size_t k, const nbi_scheme *s, nbi_dtype scale, const nbi_weight *weight);
} nbi_quant_format;

/* ---- reading ---- */
typedef struct nbi_quant_config nbi_quant_config;

/* The quantization_config of a model; a quant_method that is not known is refused by name. */
nb_status nbi_quant_config_parse(nbi_quant_config **out, const json_t *quantization_config, const char *where);
void nbi_quant_config_free(nbi_quant_config *c);                        /* NULL is fine */
const nbi_quant_format *nbi_quant_format_of(const nbi_quant_config *c); /* NULL for NULL: nothing is quantized */
nbi_quant_model nbi_quant_model_of(const nbi_quant_config *c);          /* for NULL: zeros */

/* The scheme of a module; bits 0 where it is dense, as everything is when c is NULL. */
nb_status nbi_quant_scheme(const nbi_quant_config *c, const nbi_checkpoint *ckpt, const char *module, const char *cls,
                           nbi_scheme *out);
/* Reads a module, N x K as the architecture expects, into a canonical weight, dense ones as views of the file; takes its bias where
 * there is one. */
nb_status nbi_quant_read(nbi_weight *w, const nbi_quant_config *c, const nbi_checkpoint *ckpt, const char *module,
                         const char *cls, size_t n, size_t k);

/* ---- writing ---- */
/* The first format that can say all of it; NULL: none can. */
const nbi_quant_format *nbi_quant_choose(const nbi_quant_entry *e, size_t n, const nbi_quant_model *model);
/* quantization_config; *out is NULL when every module is dense. */
nb_status nbi_quant_config_build(json_t **out, const nbi_quant_format *f, const nbi_quant_entry *e, size_t n,
                                 const nbi_quant_model *model);
/* The tensors of one quantized weight; declare comes before any weight is computed.  `scale`: the dtype of scales, which must be
 * numbers of it already (NB_EINVAL): rounding them here would part them from their codes.  Dense weights and biases are the caller's
 * to declare and write. */
nb_status nbi_quant_declare(const nbi_quant_format *f, nbi_st_writer *w, const char *module, size_t n, size_t k,
                            const nbi_scheme *s, nbi_dtype scale);
nb_status nbi_quant_write(const nbi_quant_format *f, nbi_st_writer *w, const char *module, const nbi_weight *weight,
                          nbi_dtype scale);
/* Bytes of those tensors; with weight NULL those that the scheme alone decides, without the numbers of a sparse part. */
size_t nbi_quant_bytes(const nbi_quant_format *f, size_t n, size_t k, const nbi_scheme *s, nbi_dtype scale,
                       const nbi_weight *weight);

#endif
