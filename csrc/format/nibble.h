/* "nibble", the container for schemes that no other format has words for.  config.json:
 *
 *     "quantization_config": {
 *       "quant_method": "nibble", "version": 1,
 *       "config_groups": {"group_0": {
 *         "targets": ["Linear"],                      as in compressed-tensors
 *         "weights": {"kind": "int",                  or "nf4", "e8p", "binary"
 *                     "num_bits": 3, "symmetric": false, "strategy": "group", "group_size": 16,
 *                     "zero_point_fraction": 4},      zero points in sixteenths; missing: 0, whole ones
 *         "input_activations": null,                  or {"num_bits": 8, "symmetric": true, "strategy": "token"}, or "tensor";
 *                                                     {"num_bits": 1, "symmetric": true, "strategy": "token"}: signs
 *         "act_order": true, "rotate_inputs": true, "rotate_outputs": true, "outliers": true, "sparse": true,   missing: false
 *         "nested": {"num_bits": 3, "rows": 16}}},
 *       "ignore": ["lm_head"],
 *       "kv_cache": {"rotate_keys": true, "keys": "channel", "dtype": "int4"}}      keys: "token" where it is missing
 *
 * What a key means is said in base/weight.h.  An engine that does not know the method must refuse the folder; a version of nibble
 * that does not know a key, or the version, does.  The tensors of a module, b its bits, G its groups:
 *
 *     weight_packed      I32 [N, ceil(K*b/32)]        int, nf4, binary: code + 2^(b-1), bits side by side; binary: 1 for +1
 *     weight_words       I16 [N, K/8 * b/2]           e8p: words of base/e8p.h
 *     weight_scale       float [1] | [N,1] | [N,G]    unless nested; nf4, e8p: F32
 *     weight_shape       I64 [2]                      N, K
 *     weight_zero_point  I32 [ceil(N*b/32), G]        asymmetric, unless nested; per tensor I8 [1]
 *     weight_zero_16th   I8 [N, G]                    asymmetric with zero_point_fraction 4, instead
 *     scale_codes        I32 [ceil(N*G*3/32)]         nested: 3 bits each, rows one behind the other
 *     zero_codes         as scale_codes
 *     scale_grid         F16 [ceil(N/16), G, 2]       nested: base, step
 *     zero_grid          as scale_grid
 *     input_order        U8, U16, I32 [K]            act_order: the input that column j belongs to, in w bytes: 1 to K = 256,
 *                                                     2 to K = 65536, else 4
 *     input_signs        U8 [ceil(K/8)]               rotate_inputs: bit i % 8 of byte i / 8 is 1 where the sign is -1
 *     output_signs       U8 [ceil(N/8)]               rotate_outputs
 *     outlier_columns    U8 [n, 4]                    outliers: little-endian numbers, ascending
 *     outlier_values     U8 [n, 2 N]                  the column of each, fp16
 *     sparse_counts      U8 [p, N]                    sparse without outliers: numbers in each row, their lowest bytes, then
 *                                                     the next ones ...
 *     sparse_entries     U8 [n, w + 2]                column in w bytes and value (fp16), row after row
 *     input_scale        F32 [1]                      static activations
 *     input_zero_point   I8 [1]                       ... if asymmetric
 *
 * Of a layer, beside its modules, with "keys": "channel" (backend.h, nbi_kv_layer):
 *
 *     model.layers.I.self_attn.k_channel_shift, k_channel_scale   float [n_kv_heads * head_dim], scales positive and normal
 *
 * The four whose length the numbers decide are bytes and lie at the end of their file (safetensors.h). */
#ifndef NB_FORMAT_NIBBLE_H
#define NB_FORMAT_NIBBLE_H

#include "format/ct_layout.h"
#include "format/quantized.h"

extern const nbi_quant_format nbi_nibble_format;

/* Bytes of a number below K. */
static inline size_t nbi_nibble_width(size_t k)
{
    return k <= 256 ? 1 : k <= 65536 ? 2 : 4;
}

enum { NBI_NESTED_BITS = 3, NBI_NESTED_ROWS = 16 };

/* NB_EUNSUPPORTED for a scheme that nibble has no meaning for; `where` names it. */
nb_status nbi_nibble_check(const nbi_scheme *s, const char *where);

typedef struct nbi_nibble_config {
    nbi_scheme *schemes;
    struct nbi_targets *targets;
} nbi_nibble_config;
nb_status nbi_nibble_parse(void **config, nbi_quant_model *model, const json_t *q, const char *where);
void nbi_nibble_free(void *config);
nb_status nbi_nibble_build(json_t **out, const nbi_quant_entry *e, size_t n, const nbi_quant_model *model);

/* One tensor of a module.  late: shape[0] is the most, and the weight says how many. */
typedef struct nbi_nibble_part {
    nbi_ct_part t;
    size_t third; /* n_dims 3: shape[2] */
    bool late;
} nbi_nibble_part;
typedef struct nbi_nibble_layout {
    size_t n_parts;
    nbi_nibble_part part[12];
} nbi_nibble_layout;
nb_status nbi_nibble_layout_of(nbi_nibble_layout *l, const char *module, size_t n, size_t k, const nbi_scheme *s,
                               nbi_dtype scale);
/* The scheme of codes, scales and zero points alone, as compressed-tensors stores them. */
nbi_scheme nbi_nibble_plain(const nbi_scheme *s);

nb_status nbi_nibble_declare(nbi_st_writer *out, const char *module, size_t n, size_t k, const nbi_scheme *s,
                             nbi_dtype scale);
nb_status nbi_nibble_write(nbi_st_writer *out, const char *module, const nbi_weight *w, nbi_dtype scale);
size_t nbi_nibble_bytes(size_t n, size_t k, const nbi_scheme *s, nbi_dtype scale, const nbi_weight *w);

nb_status nbi_nibble_read(nbi_weight *w, const void *config, const nbi_checkpoint *c, const char *module);
/* Outlier columns mean nothing beside their values: their codes must be zero points. */
nb_status nbi_nibble_check_outliers(const nbi_weight *w, const char *module);
/* Numbers in the sparse part of a module, from the headers alone. */
size_t nbi_nibble_nnz(const nbi_checkpoint *c, const char *module, const nbi_scheme *s);

#endif
