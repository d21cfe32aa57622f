#include "engine/rotate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/rotation.h"
#include "model/checkpoint.h"

enum { RESIDUAL_SEED = 1, DOWN_SEED = 2 }; /* of the signs; any would do */

struct nbi_rotation {
    const nbi_config *cfg;
    const nbi_checkpoint *ckpt;
    const nbi_scheme *const *scheme;
    int8_t *signs;      /* [hidden] of the residual stream */
    int8_t *down_signs; /* [ffn] of the inputs of every down_proj */
    int threads;
};

static int8_t *random_signs(size_t n, uint64_t seed)
{
    int8_t *s = malloc(n);
    for (size_t i = 0; s && i < n; i++)
        s[i] = nbi_rng(seed, i) & 1 ? 1 : -1;
    return s;
}

nb_status nbi_rotation_create(nbi_rotation **out, const nbi_config *cfg, const nbi_checkpoint *ckpt,
                              const nbi_scheme *const *scheme, int threads)
{
    *out = NULL;
    nbi_rotation *r = calloc(1, sizeof *r);
    if (!r)
        return nbi_fail_nomem("a rotation", sizeof *r);
    *r = (nbi_rotation){cfg,
                        ckpt,
                        scheme,
                        random_signs(cfg->hidden, RESIDUAL_SEED),
                        random_signs(cfg->ffn, DOWN_SEED),
                        threads > 0 ? threads : 1};
    if (!r->signs || !r->down_signs) {
        nbi_rotation_free(r);
        return nbi_fail_nomem("the signs of a rotation", cfg->ffn);
    }
    *out = r;
    return NB_OK;
}

void nbi_rotation_free(nbi_rotation *r)
{
    if (!r)
        return;
    free(r->signs);
    free(r->down_signs);
    free(r);
}

/* ---- one module ---- */

static nb_status widen(nbi_weight *w)
{
    const size_t count = w->n * w->k;
    float *x = malloc((count ? count : 1) * sizeof *x);
    if (!x)
        return nbi_fail_nomem("a weight in fp32", count * sizeof *x);
    nbi_to_f32(x, w->dense, w->dense_dtype, count);
    free(w->owned);
    w->dense = w->owned = x;
    w->dense_dtype = NBI_F32;
    return NB_OK;
}

/* W diag(g): the norm before a module. */
static nb_status fold_norm(const nbi_rotation *r, const char *norm, nbi_weight *w)
{
    const nbi_tensor *t = nbi_checkpoint_find(r->ckpt, norm);
    float *g, *x = w->owned;
    if (!t || !nbi_dtype_is_float(t->dtype) || t->n_elements != w->k)
        return nbi_fail(NB_EFORMAT, "%s: %s, expected float [%zu]", norm,
                        t ? "has another shape or type" : "is missing", w->k);
    const nbi_weight row = {.n = 1, .k = w->k, .dense_dtype = t->dtype, .dense = t->data};
    nb_status st = nbi_check_finite(&row, norm);
    if (st != NB_OK)
        return st;
    if (!(g = malloc(w->k * sizeof *g)))
        return nbi_fail_nomem(norm, w->k * sizeof *g);
    nbi_to_f32(g, t->data, t->dtype, w->k);
    for (size_t i = 0; i < w->n; i++)
        for (size_t j = 0; j < w->k; j++)
            x[i * w->k + j] *= g[j];
    free(g);
    return NB_OK;
}

/* Reads the rotated residual stream behind a norm. */
static nb_status read_stream(const nbi_rotation *r, const char *norm, nbi_weight *w)
{
    nb_status st = fold_norm(r, norm, w);
    return st == NB_OK ? nbi_rotate_rows(w->owned, w->n, w->k, r->signs, NULL, r->threads) : st;
}

/* Writes it: T D (W x + b). */
static nb_status write_stream(const nbi_rotation *r, nbi_weight *w)
{
    nb_status st = nbi_rotate_columns(w->owned, w->n, w->k, r->signs, NULL, r->threads);
    if (st == NB_OK && w->bias)
        st = nbi_rotate_rows(w->bias, 1, w->n, r->signs, NULL, 1);
    return st;
}

/* Each head of W x + b. */
static nb_status rotate_values(const nbi_rotation *r, nbi_weight *w)
{
    const size_t D = r->cfg->head_dim;
    float *x = w->owned;
    nb_status st = NB_OK;
    for (size_t h = 0; h < w->n / D && st == NB_OK; h++)
        st = nbi_rotate_columns(x + h * D * w->k, D, w->k, NULL, NULL, r->threads);
    if (st == NB_OK && w->bias)
        st = nbi_rotate_rows(w->bias, w->n / D, D, NULL, NULL, 1);
    return st;
}

static nb_status sign(nbi_weight *w, const int8_t *signs)
{
    if (!(w->in_signs = malloc(w->k)))
        return nbi_fail_nomem("the signs of a rotation", w->k);
    memcpy(w->in_signs, signs, w->k);
    w->scheme.rotate_in = true;
    return NB_OK;
}

nb_status nbi_rotation_sign(nbi_weight *q, const nbi_weight *w)
{
    return w->in_signs ? sign(q, w->in_signs) : NB_OK;
}

static nb_status rotate_down(const nbi_rotation *r, uint32_t layer, nbi_weight *w)
{
    nb_status st = write_stream(r, w);
    if (st != NB_OK || (r->scheme && !r->scheme[layer * NBI_N_PROJ + NBI_DOWN]->bits))
        return st;
    if ((st = nbi_rotate_rows(w->owned, w->n, w->k, r->down_signs, NULL, r->threads)) != NB_OK)
        return st;
    return sign(w, r->down_signs);
}

static nb_status rotate_proj(const nbi_rotation *r, uint32_t layer, nbi_proj p, nbi_weight *w)
{
    char norm[96];
    nb_status st;
    snprintf(norm, sizeof norm, "model.layers.%u.%s.weight", layer,
             nbi_port_of(p) == NBI_PORT_ATTN ? "input_layernorm" : "post_attention_layernorm");
    switch (p) {
    case NBI_O: /* heads of its input are as v_proj leaves them */
        st = nbi_rotate_rows(w->owned, w->n * r->cfg->n_heads, r->cfg->head_dim, NULL, NULL, r->threads);
        return st == NB_OK ? write_stream(r, w) : st;
    case NBI_DOWN:
        return rotate_down(r, layer, w);
    case NBI_V:
        st = read_stream(r, norm, w);
        return st == NB_OK ? rotate_values(r, w) : st;
    default:
        return read_stream(r, norm, w);
    }
}

nb_status nbi_rotation_linear(const nbi_rotation *r, const char *module, nbi_weight *w)
{
    unsigned layer;
    char name[96];
    nb_status st = widen(w);
    if (st != NB_OK)
        return st;
    if (strcmp(module, "model.embed_tokens") == 0)
        return nbi_rotate_rows(w->owned, w->n, w->k, r->signs, NULL, r->threads);
    if (strcmp(module, "lm_head") == 0)
        return read_stream(r, "model.norm.weight", w);
    for (int p = 0; p < NBI_N_PROJ && sscanf(module, "model.layers.%u.", &layer) == 1; p++) {
        nbi_module_name(name, layer, (nbi_proj)p);
        if (strcmp(name, module) == 0)
            return rotate_proj(r, layer, (nbi_proj)p, w);
    }
    return nbi_fail(NB_EINTERNAL, "%s: is not a module that can be rotated", module);
}

/* ---- tensors ---- */

/* A norm's weight, which is elsewhere now. */
static nb_status ones(const nbi_tensor *t, float **out)
{
    if (!(*out = malloc(t->n_elements * sizeof **out)))
        return nbi_fail_nomem(t->name, t->n_elements * sizeof **out);
    for (size_t i = 0; i < t->n_elements; i++)
        (*out)[i] = 1;
    return NB_OK;
}

/* "model.layers.3.mlp.up_proj" and its sizes, where a tensor belongs to one. */
static bool module_of(const nbi_config *c, const char *tensor, char module[96], size_t *n, size_t *k, bool *bias)
{
    const char *end = strrchr(tensor, '.');
    const size_t len = end ? (size_t)(end - tensor) : 0;
    unsigned layer;
    if (!end || len >= 96)
        return false;
    *bias = false;
    *n = c->vocab;
    *k = c->hidden;
    snprintf(module, 96, "%.*s", (int)len, tensor);
    if (strcmp(module, "model.embed_tokens") == 0 || strcmp(module, "lm_head") == 0)
        return true;
    for (int p = 0; p < NBI_N_PROJ && sscanf(module, "model.layers.%u.", &layer) == 1; p++) {
        char name[96];
        nbi_module_name(name, layer, (nbi_proj)p);
        if (strcmp(name, module) == 0 && layer < c->n_layers) {
            nbi_proj_shape(c, (nbi_proj)p, n, k);
            *bias = nbi_proj_has_bias(c, (nbi_proj)p);
            return true;
        }
    }
    return false;
}

nb_status nbi_rotation_tensor(const nbi_rotation *r, const nbi_tensor *t, float **out)
{
    char module[96];
    size_t n, k;
    bool bias;
    nbi_weight w = {0};
    nb_status st;
    const char *part = strrchr(t->name, '.');
    *out = NULL;
    if (strstr(t->name, "layernorm.weight") || strcmp(t->name, "model.norm.weight") == 0)
        return ones(t, out);
    if (!module_of(r->cfg, t->name, module, &n, &k, &bias))
        return NB_OK;
    const bool tied = r->cfg->tied && strcmp(module, "lm_head") == 0;
    NB_TRY(nbi_read_linear(&w, r->ckpt, NULL, tied ? "model.embed_tokens" : module, n, k, bias));
    NB_TRY(nbi_rotation_linear(r, module, &w));
    if (strcmp(part, ".bias") == 0) {
        *out = w.bias;
        w.bias = NULL;
    } else {
        *out = w.owned;
        w.owned = NULL;
        w.dense = NULL;
    }
done:
    nbi_weight_free(&w);
    return st;
}

nb_status nbi_rotation_head(const nbi_rotation *r, bool *needed, nbi_tensor *t, float **out)
{
    const nbi_tensor *embed = nbi_checkpoint_find(r->ckpt, "model.embed_tokens.weight");
    *needed = r->cfg->tied && embed && !nbi_checkpoint_find(r->ckpt, "lm_head.weight");
    if (!*needed)
        return NB_OK;
    *t = *embed;
    t->name = "lm_head.weight";
    return out ? nbi_rotation_tensor(r, t, out) : NB_OK;
}

nb_status nbi_rotation_inputs(nbi_inputs *in, const int8_t *signs, int threads)
{
    if (!signs || !in->gram)
        return NB_OK;
    nb_status st = nbi_rotate_rows(in->gram, in->k, in->k, signs, NULL, threads);
    return st == NB_OK ? nbi_rotate_columns(in->gram, in->k, in->k, signs, NULL, threads) : st;
}
