/* compressed-tensors: the quantized Hugging Face folder that vLLM, llm-compressor and Transformers share.
 * This file maps between the canonical weight and its tensors (pack-quantized, int-quantized), and between schemes and
 * config.json's quantization_config. */
#ifndef NB_FORMAT_COMPRESSED_TENSORS_H
#define NB_FORMAT_COMPRESSED_TENSORS_H

#include <jansson.h>

#include "format/quantized.h"

extern const nbi_quant_format nbi_ct_format;

/* ---- config ---- */
typedef struct nbi_ct_config nbi_ct_config;

/* Parses config.json's quantization_config.  Unknown schemes, formats, keys inside a scheme, fp8 ... are refused by
 * name (NB_EUNSUPPORTED), never guessed. */
nb_status nbi_ct_config_parse(nbi_ct_config **out, const json_t *quantization_config, const char *where);
void nbi_ct_config_free(nbi_ct_config *c);
/* The scheme of a module ("model.layers.0.self_attn.q_proj"); bits 0 when ignored or not targeted.
 * `cls` is its class ("Linear").  Precedence: ignore, then exact name, regex, class. */
nb_status nbi_ct_scheme(const nbi_ct_config *c, const char *module, const char *cls, nbi_scheme *out);

/* Builds quantization_config: one config group per distinct scheme (the most common one targets "Linear", the others
 * name their modules), `ignore` for the dense ones.  Mixed formats use format "mixed-precision".  *out is NULL when
 * every module is dense: then the model has no quantization_config. */
nb_status nbi_ct_config_build(json_t **out, const nbi_quant_entry *e, size_t n);

/* ---- tensors ---- */
/* Reads module `name` into a canonical weight: N, K are what the architecture expects; shapes and dtypes of all parts
 * are checked, scales must be finite and > 0, zero points within the range of the codes.  scheme.bits == 0 gives a
 * view of `<name>.weight`.  Also takes `<name>.bias` when it exists. */
nb_status nbi_ct_read(nbi_weight *w, const nbi_checkpoint *c, const char *name, size_t n, size_t k,
                      const nbi_scheme *scheme);
/* The same of a quantized module, w->n, k and scheme set, without its bias; on failure the caller frees *w. */
nb_status nbi_ct_read_codes(nbi_weight *w, const nbi_checkpoint *c, const char *name);

/* Whether a scheme has a name there: integers on an even grid, and nothing beside them. */
bool nbi_ct_can_say(const nbi_scheme *s);

/* The tensors that one quantized weight becomes; declare gives names and shapes from the scheme alone, so that a
 * writer can lay out the file before any weight is computed.  `scale_dtype`: F32, F16 or BF16.  Weight scales must be
 * numbers of that dtype already (NB_EINVAL): rounding them here would part them from their codes.  Dense weights and
 * biases are the caller's to declare and write. */
nb_status nbi_ct_declare(nbi_st_writer *w, const char *name, size_t n, size_t k, const nbi_scheme *scheme,
                         nbi_dtype scale_dtype);
nb_status nbi_ct_write(nbi_st_writer *w, const char *name, const nbi_weight *weight, nbi_dtype scale_dtype);
/* Bytes of those tensors (without bias). */
size_t nbi_ct_bytes(size_t n, size_t k, const nbi_scheme *scheme, nbi_dtype scale_dtype);

/* b-bit signed codes to little-endian int32 words along a row and back: element i occupies bits i*b .. of the stream,
 * stored as code + 2^(b-1).  words: ceil(n*b/32).  For b = 4, 8. */
void nbi_ct_pack(uint32_t *words, const int8_t *codes, size_t n, unsigned bits);
void nbi_ct_unpack(int8_t *codes, const uint32_t *words, size_t n, unsigned bits);

#endif
