#include "model/build.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/log.h"
#include "base/options.h"
#include "text/tokenizer.h"

/* Scheme names and how many layers have them, for the one-line description of a model. */
typedef struct census {
    char name[8][48];
    unsigned count[8], n;
} census;

static void count_scheme(census *c, const nbi_weight *w)
{
    char name[48];
    if (w->scheme.bits)
        nbi_scheme_name(&w->scheme, name);
    else
        snprintf(name, sizeof name, "%s",
                 w->dense_dtype == NBI_F32   ? "f32"
                 : w->dense_dtype == NBI_F16 ? "f16"
                                             : "bf16");
    unsigned i = 0;
    while (i < c->n && strcmp(c->name[i], name) != 0)
        i++;
    if (i == 8)
        return;
    if (i == c->n) {
        memcpy(c->name[i], name, sizeof name);
        c->n++;
    }
    c->count[i]++;
}

static void describe(const census *c, char out[64])
{
    unsigned best = 0;
    for (unsigned i = 1; i < c->n; i++)
        if (c->count[i] > c->count[best])
            best = i;
    snprintf(out, 64, "%s%s", c->name[best], c->n > 1 ? " mixed" : "");
}

static nb_status load_linear(nb_model *m, const nbi_source *src, const char *module, size_t n, size_t k, bool bias,
                             nbi_linear **out, census *seen)
{
    nbi_weight w = {0};
    nb_status st;
    NB_TRY(src->linear(src->self, module, n, k, bias, &w));
    if (seen)
        count_scheme(seen, &w);
    if ((st = m->be->ops->linear_create(m->be, out, &w)) != NB_OK) {
        nbi_fail_in(st, "%s: ", module);
        goto done;
    }
    m->weight_bytes += m->be->ops->linear_bytes(*out);
done:
    nbi_weight_free(&w);
    return st;
}

static nb_status load_norm(nb_model *m, const nbi_source *src, const char *name, float **out)
{
    nb_status st;
    size_t n = m->cfg.hidden;
    float *host = malloc(n * sizeof *host);
    if (!host)
        return nbi_fail_nomem(name, n * sizeof *host);
    NB_TRY(src->vector(src->self, name, n, host));
    NB_TRY(m->be->ops->alloc(m->be, (void **)out, n * sizeof *host, name));
    NB_TRY(m->be->ops->upload(m->be, *out, host, n * sizeof *host));
    m->weight_bytes += n * sizeof *host;
done:
    free(host);
    return st;
}

static nb_status load_layer(nb_model *m, const nbi_source *src, uint32_t i, census *seen)
{
    nb_status st;
    char name[96];
    snprintf(name, sizeof name, "model.layers.%u.input_layernorm.weight", i);
    NB_TRY(load_norm(m, src, name, &m->layers[i].attn_norm));
    snprintf(name, sizeof name, "model.layers.%u.post_attention_layernorm.weight", i);
    NB_TRY(load_norm(m, src, name, &m->layers[i].ffn_norm));
    for (int p = 0; p < NBI_N_PROJ; p++) {
        size_t n, k;
        nbi_proj_shape(&m->cfg, (nbi_proj)p, &n, &k);
        nbi_module_name(name, i, (nbi_proj)p);
        NB_TRY(load_linear(m, src, name, n, k, nbi_proj_has_bias(&m->cfg, (nbi_proj)p), &m->layers[i].proj[p], seen));
    }
done:
    return st;
}

/* ---- the memory plan: what all of it will take on the device, before any of it is read ---- */

#define PLAN_ALIGN 256 /* where a weight may begin */

static nb_status plan_linear(const nb_model *m, const nbi_source *src, const char *module, size_t n, size_t k,
                             bool bias, size_t *total)
{
    nbi_scheme scheme;
    nbi_dtype dense;
    size_t bytes;
    nb_status st = src->scheme(src->self, module, k, &scheme, &dense);
    if (st != NB_OK)
        return st;
    bytes = m->be->ops->linear_plan(m->be, n, k, &scheme, dense, bias);
    if (!nbi_round_up(bytes, PLAN_ALIGN, &bytes) || !nbi_add(*total, bytes, total))
        return nbi_fail(NB_ELIMIT, "%s: a weight of %zu x %zu is too large", module, n, k);
    return NB_OK;
}

static nb_status plan_linears(const nb_model *m, const nbi_source *src, size_t *total)
{
    const nbi_config *c = &m->cfg;
    nb_status st;
    *total = 0;
    NB_TRY(plan_linear(m, src, "model.embed_tokens", c->vocab, c->hidden, false, total));
    for (uint32_t i = 0; i < c->n_layers; i++)
        for (int p = 0; p < NBI_N_PROJ; p++) {
            char name[96];
            size_t n, k;
            nbi_proj_shape(c, (nbi_proj)p, &n, &k);
            nbi_module_name(name, i, (nbi_proj)p);
            NB_TRY(plan_linear(m, src, name, n, k, nbi_proj_has_bias(c, (nbi_proj)p), total));
        }
    if (!c->tied)
        NB_TRY(plan_linear(m, src, "lm_head", c->vocab, c->hidden, false, total));
done:
    return st;
}

static nb_status make_room(nb_model *m, const nbi_source *src)
{
    const size_t norms = (2 * (size_t)m->cfg.n_layers + 1) * m->cfg.hidden * sizeof(float);
    size_t linears = 0;
    nb_status st;
    NB_TRY(plan_linears(m, src, &linears));
    NB_TRY(nbi_memory_check(m, linears > SIZE_MAX - norms ? SIZE_MAX : linears + norms, "the weights"));
    if (m->be->ops->reserve)
        NB_TRY(m->be->ops->reserve(m->be, linears));
done:
    return st;
}

nb_status nbi_model_build(nb_model *m, const nbi_source *src, const nb_callbacks *cb)
{
    const nbi_config *c = &m->cfg;
    nb_status st = NB_OK;
    census seen = {0};
    m->layers = calloc(c->n_layers, sizeof *m->layers);
    m->inv_freq = malloc(c->head_dim / 2 * sizeof *m->inv_freq);
    if (!m->layers || !m->inv_freq)
        return nbi_fail_nomem("the model", c->n_layers * sizeof *m->layers);
    nbi_rope_inv_freq(c, m->inv_freq);
    NB_TRY(make_room(m, src));
    NB_TRY(load_linear(m, src, "model.embed_tokens", c->vocab, c->hidden, false, &m->embed, NULL));
    for (uint32_t i = 0; i < c->n_layers; i++) {
        if (nbi_progress(cb, "load", "layers", i, c->n_layers, 0)) {
            st = nbi_fail(NB_ECANCELLED, "loading was cancelled");
            goto done;
        }
        NB_TRY(load_layer(m, src, i, &seen));
    }
    NB_TRY(load_norm(m, src, "model.norm.weight", &m->final_norm));
    if (c->tied)
        m->head = m->embed;
    else
        NB_TRY(load_linear(m, src, "lm_head", c->vocab, c->hidden, false, &m->head, NULL));
    describe(&seen, m->scheme);
    (void)nbi_progress(cb, "load", "layers", c->n_layers, c->n_layers, 0);
done:
    return st;
}

void nb_model_options_init(nb_model_options *o)
{
    *o = (nb_model_options){.struct_size = sizeof *o};
}

nb_status nbi_model_new(nb_model **out, const nb_model_options *o, nb_callbacks *cb)
{
    nb_model_options opt;
    char note[200];
    nb_model_options_init(&opt);
    nb_status st = nbi_take_options(&opt, sizeof opt, o, "nb_model_options");
    if (st != NB_OK)
        return st;
    *cb = opt.callbacks;
    if (opt.threads < 0 || opt.threads > 1024)
        return nbi_fail(NB_EINVAL, "threads is %d, expected 0 (one for each core) to 1024", opt.threads);
    nb_model *m = calloc(1, sizeof *m);
    if (!m)
        return nbi_fail_nomem("the model", sizeof *m);
    st = nbi_backend_open(&m->be, &(nbi_backend_options){opt.device, opt.threads, opt.act_dtype});
    if (st != NB_OK) {
        free(m);
        return st;
    }
    st = nbi_backend_set_gemm(m->be, opt.gemm, note);
    if (st != NB_OK) {
        nb_model_free(m);
        return st;
    }
    if (note[0])
        nbi_log(cb, NB_LOG_WARN, "%s", note);
    *out = m;
    return NB_OK;
}

void nb_model_free(nb_model *m)
{
    if (!m)
        return;
    const nbi_backend_ops *ops = m->be->ops;
    for (uint32_t i = 0; m->layers && i < m->cfg.n_layers; i++) {
        ops->release(m->be, m->layers[i].attn_norm);
        ops->release(m->be, m->layers[i].ffn_norm);
        for (int p = 0; p < NBI_N_PROJ; p++)
            ops->linear_free(m->be, m->layers[i].proj[p]);
    }
    ops->release(m->be, m->final_norm);
    if (m->head != m->embed)
        ops->linear_free(m->be, m->head);
    ops->linear_free(m->be, m->embed);
    free(m->layers);
    free(m->inv_freq);
    nb_tokenizer_free(m->tok);
    ops->destroy(m->be);
    free(m);
}
