/* A loaded model: architecture, packed weights, the forward pass over a paged KV cache. */
#ifndef NB_MODEL_MODEL_H
#define NB_MODEL_MODEL_H

#include "backend/backend.h"
#include "model/config.h"
#include "model/pack_cache.h"

typedef struct nbi_layer {
    float *attn_norm, *ffn_norm;    /* device fp32 [hidden] */
    float *q_norm, *k_norm;         /* device fp32 [head_dim]; NULL: none */
    nbi_linear *proj[NBI_N_PROJ];   /* of a layer with experts up to O */
    nbi_linear *router, **expert;   /* expert [n_experts][3]: gate, up, down; NULL: one FFN */
    nbi_transform *in[NBI_N_PORTS]; /* of what the layers of a port read; NULL: none */
    nbi_transform *out[NBI_N_PROJ]; /* of what a layer computes; NULL: none */
    float *out_bias[NBI_N_PROJ];    /* device fp32: its bias, which comes behind that; NULL: none */
} nbi_layer;

struct nb_model {
    nbi_config cfg;
    nbi_backend *be;
    nb_tokenizer *tok;      /* NULL: none */
    nbi_layer *layers;      /* [n_layers] */
    float *final_norm;      /* device */
    nbi_linear *embed;      /* [vocab, hidden] */
    nbi_linear *head;       /* == embed when tied */
    nbi_transform *head_in; /* of what lm_head reads; NULL: none */
    size_t out_width;       /* outputs of the widest layer with a transform behind it; 0: there is none */
    float *inv_freq;        /* host [head_dim/2] */
    nbi_pack_cache *pack;   /* packed weights in a file; NULL: none */
    uint64_t weight_bytes;
    char path[1024];
    char scheme[64];
    uint64_t hash; /* of config.json and the safetensors headers and sizes: identifies the checkpoint */
};

/* NB_ENOMEM with both numbers if the device has less than `bytes` free: asked before anything of it is taken. */
nb_status nbi_memory_check(const nb_model *m, uint64_t bytes, const char *what);

/* The experts of a layer; NULL: only their sizes. */
nbi_experts nbi_experts_of(const nbi_config *c, const nbi_layer *l);

/* The KV cache of all layers, shared by the sequences of an engine. */
typedef struct nbi_kv {
    nbi_backend *be;
    nbi_kv_layer *layers;
    uint32_t n_layers, n_pages;
} nbi_kv;
nb_status nbi_kv_create(nbi_kv *kv, const nb_model *m, uint32_t n_pages, nbi_kv_type type);
void nbi_kv_free(nbi_kv *kv);
uint64_t nbi_kv_page_bytes(const nbi_config *c, nbi_kv_type type); /* all layers, k and v */

/* Buffers for batches up to these limits. */
typedef struct nbi_workspace_limits {
    size_t rows, seqs, logits;
    size_t context; /* tokens of one sequence */
} nbi_workspace_limits;
typedef struct nbi_workspace nbi_workspace;
nb_status nbi_workspace_create(nbi_workspace **out, const nb_model *m, const nbi_workspace_limits *limits);
void nbi_workspace_free(nbi_workspace *w);
uint64_t nbi_workspace_bytes(const nb_model *m, const nbi_workspace_limits *limits);

/* Sees the input of every linear layer, before it is quantized: rows x k activations on the device; an expert's are the rows
 * that chose it.  module: as nbi_module_at() counts. */
typedef nb_status (*nbi_tap_fn)(void *user, uint32_t layer, size_t module, const void *x, size_t rows, size_t k);

/* One batch through the model; the logits of its logit_rows go to `logits` [n_logits][vocab], fp32 on the host; NULL: they
 * stay on the device.  No allocation.  tap may be NULL. */
nb_status nbi_forward(const nb_model *m, nbi_kv *kv, nbi_workspace *w, const nbi_batch *batch, float *logits,
                      nbi_tap_fn tap, void *tap_user);

/* Chooses a token from each row of logits that the last batch left on the device, where nbi_can_sample(). */
bool nbi_can_sample(const nb_model *m);
nb_status nbi_forward_sample(nbi_workspace *w, const nbi_draw *how, size_t n, nbi_drawn *out);

/* The same a layer at a time, for calibration: x [rows][hidden] fp32 on the host, changed in place by a layer. */
nb_status nbi_forward_embed(const nb_model *m, nbi_workspace *w, const nbi_batch *batch, float *x);
nb_status nbi_forward_layer(const nb_model *m, uint32_t layer, const nbi_kv_layer *kv, nbi_workspace *w,
                            const nbi_batch *batch, float *x, nbi_tap_fn tap, void *tap_user);
/* logits [rows][vocab] of what the last layer left. */
nb_status nbi_forward_logits(const nb_model *m, nbi_workspace *w, size_t rows, const float *x, float *logits);

#endif
