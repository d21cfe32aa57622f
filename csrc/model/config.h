/* config.json -> architecture, for the Llama family in both spellings of Transformers, with one feed-forward network a layer
 * or a mixture of them. */
#ifndef NB_MODEL_CONFIG_H
#define NB_MODEL_CONFIG_H

#include <jansson.h>

#include "base/dtype.h"
#include "base/status.h"

typedef enum nbi_rope_type { NBI_ROPE_DEFAULT, NBI_ROPE_LINEAR, NBI_ROPE_LLAMA3 } nbi_rope_type;

typedef enum nbi_expert_names {
    NBI_EXPERTS_MIXTRAL, /* block_sparse_moe.gate, .experts.0.w1, w3, w2 */
    NBI_EXPERTS_QWEN     /* mlp.gate, .experts.0.gate_proj, up_proj, down_proj */
} nbi_expert_names;

typedef struct nbi_config {
    char architecture[64]; /* "LlamaForCausalLM" */
    char model_type[32];   /* "llama" */
    uint32_t n_layers, hidden, n_heads, n_kv_heads, head_dim, ffn, vocab, max_context;
    uint32_t n_experts, top_k; /* 0: one FFN a layer; else experts of size ffn, of which a token uses top_k */
    bool norm_top_k;           /* the weights of a token's experts sum to 1 */
    nbi_expert_names expert_names;
    bool head_norms; /* of queries and keys, before RoPE */
    float norm_eps;
    bool tied;        /* lm_head is the embedding */
    bool rotate_keys; /* queries and keys are rotated after RoPE: nbi_kv_layer.rotate */
    bool qkv_bias, o_bias, mlp_bias;
    nbi_dtype dtype; /* of the dense weights, as the config says; what the tensors say wins */
    nbi_rope_type rope_type;
    double rope_theta, rope_factor, rope_low_freq, rope_high_freq;
    uint32_t rope_original_context;
    int32_t bos, eos[8]; /* -1: none; the list ends at -1 */
} nbi_config;

/* Sizes are bounded and cross-checked, so that nothing computed from them overflows. */
nb_status nbi_config_parse(nbi_config *c, const json_t *j, const char *where);
/* The parameters of all matrices and norms. */
uint64_t nbi_config_params(const nbi_config *c);
/* Those that one token passes: of the experts only its own. */
uint64_t nbi_config_active_params(const nbi_config *c);
/* Inverse frequencies with the scaling applied, [head_dim/2]. */
void nbi_rope_inv_freq(const nbi_config *c, float *out);

/* Every kind of linear layer, in forward order, lm_head last; the one list that loading, quantizing, calibrating and inspecting
 * share.  Where a layer has experts, GATE, UP and DOWN are there once an expert, behind the router. */
typedef enum nbi_proj {
    NBI_Q,
    NBI_K,
    NBI_V,
    NBI_O,
    NBI_GATE,
    NBI_UP,
    NBI_DOWN,
    NBI_N_PROJ,
    NBI_ROUTER =
        NBI_N_PROJ /* of models with experts: never quantized, and none of those that calibration walks through */
} nbi_proj;
const char *nbi_proj_name(nbi_proj p); /* "self_attn.q_proj" */
void nbi_proj_shape(const nbi_config *c, nbi_proj p, size_t *n, size_t *k);
bool nbi_proj_has_bias(const nbi_config *c, nbi_proj p);
void nbi_module_name(char out[96], uint32_t layer, nbi_proj p); /* "model.layers.3.mlp.down_proj"; no experts */

/* The same one by one, experts and all. */
typedef struct nbi_module {
    char name[96]; /* "model.layers.3.block_sparse_moe.experts.5.w2" */
    nbi_proj proj;
    uint32_t layer, expert; /* expert 0 where there is none */
    size_t place;           /* whose inputs it reads: nbi_layer_places() */
    size_t n, k;
    bool bias;
} nbi_module;
size_t nbi_layer_modules(const nbi_config *c);                                      /* of one layer */
void nbi_module_at(const nbi_config *c, uint32_t layer, size_t i, nbi_module *out); /* i below that, forward order */

/* What linear layers read: q, k and v see the same input, so do gate and up. */
typedef enum nbi_port { NBI_PORT_ATTN, NBI_PORT_O, NBI_PORT_FFN, NBI_PORT_DOWN, NBI_N_PORTS } nbi_port;
nbi_port nbi_port_of(nbi_proj p);

/* The places of a layer: its ports one by one.  ATTN and O; FFN and DOWN of each feed-forward network, side by side; with experts
 * one more, what the router sees.  Without experts a place is its port, and a module its nbi_proj. */
size_t nbi_layer_places(const nbi_config *c);
nbi_port nbi_place_port(size_t place); /* of the router's: FFN */
size_t nbi_place_width(const nbi_config *c, size_t place);
/* Feed-forward networks of a layer: experts, or the one. */
static inline uint32_t nbi_layer_ffns(const nbi_config *c)
{
    return c->n_experts ? c->n_experts : 1;
}
/* GATE, UP or DOWN of a feed-forward network, as nbi_module_at() counts. */
static inline size_t nbi_ffn_module(const nbi_config *c, uint32_t ffn, nbi_proj p)
{
    return (size_t)p + (c->n_experts ? 1 + 3 * (size_t)ffn : 0);
}

#endif
