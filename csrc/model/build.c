#include "model/build.h"

#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/log.h"
#include "base/options.h"
#include "model/transforms.h"
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

/* The weight of a module: from the cache, and then *out is it, packed; else from the source, and *out is NULL. */
static nb_status read_weight(nb_model *m, const nbi_source *src, const char *module, size_t n, size_t k, bool bias,
                             nbi_weight *w, nbi_linear **out)
{
    nbi_packed want = {.n = n, .k = k, .bias = bias};
    *out = NULL;
    if (m->pack) {
        nb_status st = src->scheme(src->self, module, n, k, &want.scheme, &want.dense);
        if (st != NB_OK)
            return st;
        if (nbi_pack_take(m->pack, m->be, module, &want, w, out))
            return NB_OK;
    }
    return src->linear(src->self, module, n, k, bias, w);
}

static nb_status pack(nb_model *m, const nbi_weight *w, const char *module, nbi_linear **out)
{
    nb_status st = *out ? NB_OK : m->be->ops->linear_create(m->be, out, w);
    if (st != NB_OK)
        return nbi_fail_in(st, "%s: ", module);
    m->weight_bytes += m->be->ops->linear_bytes(*out);
    return NB_OK;
}

/* For the cache: w is as the source gave it. */
static nb_status note(nb_model *m, const nbi_source *src, const char *module, const nbi_weight *w, const nbi_linear *l)
{
    nbi_packed want = {.n = w->n, .k = w->k};
    nb_status st = m->pack ? src->scheme(src->self, module, w->n, w->k, &want.scheme, &want.dense) : NB_OK;
    if (m->pack && st == NB_OK)
        nbi_pack_note(m->pack, m->be, module, &want, w, l);
    return st;
}

/* The embedding, or lm_head where `in` collects what it asks of its input. */
static nb_status load_table(nb_model *m, const nbi_source *src, const char *module, nbi_linear **out,
                            nbi_port_input *in)
{
    nbi_weight w = {0};
    nb_status st;
    NB_TRY(read_weight(m, src, module, m->cfg.vocab, m->cfg.hidden, false, &w, out));
    if (w.out_signs || (!in && w.in_signs))
        NB_TRY(nbi_fail(NB_EUNSUPPORTED, "%s: is rotated, which only %s be", module,
                        in ? "its inputs may" : "linear layers may"));
    if (in)
        NB_TRY(nbi_port_input_add(in, &w, module));
    NB_TRY(pack(m, &w, module, out));
    NB_TRY(note(m, src, module, &w, *out));
done:
    nbi_weight_free(&w);
    return st;
}

static nb_status load_head(nb_model *m, const nbi_source *src)
{
    nbi_port_input in = {0};
    nb_status st;
    NB_TRY(load_table(m, src, "lm_head", &m->head, &in));
    NB_TRY(nbi_port_input_create(m, &in, &m->head_in));
done:
    nbi_port_input_free(&in);
    return st;
}

static nb_status load_proj(nb_model *m, const nbi_source *src, uint32_t layer, nbi_proj p, nbi_port_input *in,
                           census *seen)
{
    nbi_layer *l = &m->layers[layer];
    nbi_weight w = {0};
    float *behind = NULL; /* the bias, where it belongs behind a rotation */
    size_t n, k;
    char module[96];
    nb_status st;
    nbi_proj_shape(&m->cfg, p, &n, &k);
    nbi_module_name(module, layer, p);
    NB_TRY(read_weight(m, src, module, n, k, nbi_proj_has_bias(&m->cfg, p), &w, &l->proj[p]));
    if (seen)
        count_scheme(seen, &w);
    NB_TRY(nbi_port_input_add(in, &w, module));
    if (w.out_signs) {
        if ((st = nbi_output_create(m, n, w.out_signs, w.bias, &l->out[p], &l->out_bias[p])) != NB_OK) {
            nbi_fail_in(st, "%s: ", module);
            goto done;
        }
        behind = w.bias;
        w.bias = NULL;
    }
    st = pack(m, &w, module, &l->proj[p]);
    if (behind)
        w.bias = behind;
    if (st == NB_OK)
        st = note(m, src, module, &w, l->proj[p]);
done:
    nbi_weight_free(&w);
    return st;
}

/* The layers first .. first+n-1, which read one input. */
static nb_status load_port(nb_model *m, const nbi_source *src, uint32_t layer, nbi_proj first, size_t n, census *seen)
{
    nbi_layer *l = &m->layers[layer];
    nbi_port_input in = {0};
    bool rotated = false;
    nb_status st = NB_OK;
    for (size_t p = first; p < first + n; p++) {
        NB_TRY(load_proj(m, src, layer, (nbi_proj)p, &in, seen));
        rotated = rotated || l->out[p];
    }
    /* outputs stand side by side: where one is placed by its transform, all are */
    for (size_t p = first; p < first + n && rotated; p++) {
        size_t rows, k;
        nbi_proj_shape(&m->cfg, (nbi_proj)p, &rows, &k);
        if (!l->out[p])
            NB_TRY(nbi_output_create(m, rows, NULL, NULL, &l->out[p], &l->out_bias[p]));
    }
    NB_TRY(nbi_port_input_create(m, &in, &l->in[nbi_port_of(first)]));
done:
    nbi_port_input_free(&in);
    return st;
}

/* The router and the experts' layers, which read what a norm left and nothing else. */
static nb_status load_expert(nb_model *m, const nbi_source *src, const nbi_module *at, nbi_linear **out, census *seen)
{
    nbi_weight w = {0};
    nb_status st;
    NB_TRY(read_weight(m, src, at->name, at->n, at->k, at->bias, &w, out));
    if (w.scheme.rotate_in || w.scheme.rotate_out)
        NB_TRY(nbi_fail(NB_EUNSUPPORTED, "%s: is rotated, which experts and their routers cannot be", at->name));
    if (seen && at->proj != NBI_ROUTER)
        count_scheme(seen, &w);
    NB_TRY(pack(m, &w, at->name, out));
    NB_TRY(note(m, src, at->name, &w, *out));
done:
    nbi_weight_free(&w);
    return st;
}

static nb_status load_experts(nb_model *m, const nbi_source *src, uint32_t layer, census *seen)
{
    nbi_layer *l = &m->layers[layer];
    nb_status st = NB_OK;
    if (!(l->expert = calloc(3 * (size_t)m->cfg.n_experts, sizeof(nbi_linear *))))
        return nbi_fail_nomem("the experts", 3 * m->cfg.n_experts * sizeof(nbi_linear *));
    for (size_t i = NBI_GATE; i < nbi_layer_modules(&m->cfg); i++) {
        nbi_module at;
        nbi_module_at(&m->cfg, layer, i, &at);
        nbi_linear **out = at.proj == NBI_ROUTER ? &l->router : &l->expert[3 * at.expert + at.proj - NBI_GATE];
        NB_TRY(load_expert(m, src, &at, out, seen));
    }
done:
    return st;
}

static nb_status load_vector(nb_model *m, const nbi_source *src, const char *name, size_t n, float least, float **out)
{
    nb_status st;
    float *host = malloc(n * sizeof *host);
    if (!host)
        return nbi_fail_nomem(name, n * sizeof *host);
    NB_TRY(src->vector(src->self, name, n, host));
    for (size_t i = 0; i < n; i++)
        if (host[i] < least)
            NB_TRY(nbi_fail(NB_EFORMAT, "%s: element %zu is %g, expected a positive, normal number", name, i,
                            (double)host[i]));
    NB_TRY(m->be->ops->alloc(m->be, (void **)out, n * sizeof *host, name));
    NB_TRY(m->be->ops->upload(m->be, *out, host, n * sizeof *host));
    m->weight_bytes += n * sizeof *host;
done:
    free(host);
    return st;
}

static nb_status load_norm(nb_model *m, const nbi_source *src, const char *name, size_t n, float **out)
{
    return load_vector(m, src, name, n, -FLT_MAX, out);
}

static nb_status load_key_grid(nb_model *m, const nbi_source *src, uint32_t i)
{
    const size_t n = (size_t)m->cfg.n_kv_heads * m->cfg.head_dim;
    char name[96];
    nb_status st = NB_OK;
    if (!m->cfg.channel_keys)
        return NB_OK;
    nbi_key_grid_name(name, i, false);
    NB_TRY(load_vector(m, src, name, n, -FLT_MAX, &m->layers[i].k_shift));
    nbi_key_grid_name(name, i, true);
    NB_TRY(load_vector(m, src, name, n, FLT_MIN, &m->layers[i].k_scale));
done:
    return st;
}

static nb_status load_layer(nb_model *m, const nbi_source *src, uint32_t i, census *seen)
{
    nb_status st;
    nbi_layer *l = &m->layers[i];
    const struct {
        const char *name;
        size_t n;
        float **out;
    } norms[] = {{"input_layernorm", m->cfg.hidden, &l->attn_norm},
                 {"post_attention_layernorm", m->cfg.hidden, &l->ffn_norm},
                 {"self_attn.q_norm", m->cfg.head_dim, &l->q_norm},
                 {"self_attn.k_norm", m->cfg.head_dim, &l->k_norm}};
    for (int k = 0; k < (m->cfg.head_norms ? 4 : 2); k++) {
        char name[96];
        snprintf(name, sizeof name, "model.layers.%u.%s.weight", i, norms[k].name);
        NB_TRY(load_norm(m, src, name, norms[k].n, norms[k].out));
    }
    NB_TRY(load_key_grid(m, src, i));
    NB_TRY(load_port(m, src, i, NBI_Q, 3, seen));
    NB_TRY(load_port(m, src, i, NBI_O, 1, seen));
    if (m->cfg.n_experts)
        return load_experts(m, src, i, seen);
    NB_TRY(load_port(m, src, i, NBI_GATE, 2, seen));
    NB_TRY(load_port(m, src, i, NBI_DOWN, 1, seen));
done:
    return st;
}

/* ---- the memory plan: what all of it will take on the device, before any of it is read ---- */

#define PLAN_ALIGN 256 /* where a weight may begin */

/* linears: what reserve() makes room for; others: beside them. */
typedef struct plan {
    size_t linears, others;
} plan;

static nb_status plan_linear(const nb_model *m, const nbi_source *src, const char *module, size_t n, size_t k,
                             bool bias, plan *total)
{
    nbi_scheme scheme;
    nbi_dtype dense;
    size_t bytes;
    nb_status st = src->scheme(src->self, module, n, k, &scheme, &dense);
    if (st != NB_OK)
        return st;
    bytes = m->be->ops->linear_plan(m->be, n, k, &scheme, dense, bias);
    if (!nbi_round_up(bytes, PLAN_ALIGN, &bytes) || !nbi_add(total->linears, bytes, &total->linears) ||
        !nbi_add(total->others, nbi_transforms_plan(m, n, k, &scheme, bias), &total->others))
        return nbi_fail(NB_ELIMIT, "%s: a weight of %zu x %zu is too large", module, n, k);
    return NB_OK;
}

static nb_status plan_linears(const nb_model *m, const nbi_source *src, plan *total)
{
    const nbi_config *c = &m->cfg;
    nb_status st;
    const size_t norms = c->n_layers * (2 * (size_t)c->hidden + (c->head_norms ? 2 * c->head_dim : 0)) + c->hidden;
    *total = (plan){.others = norms * sizeof(float)};
    if (c->channel_keys)
        total->others += 2 * (size_t)c->n_layers * c->n_kv_heads * c->head_dim * sizeof(float);
    NB_TRY(plan_linear(m, src, "model.embed_tokens", c->vocab, c->hidden, false, total));
    for (uint32_t i = 0; i < c->n_layers; i++)
        for (size_t j = 0; j < nbi_layer_modules(c); j++) {
            nbi_module at;
            nbi_module_at(c, i, j, &at);
            NB_TRY(plan_linear(m, src, at.name, at.n, at.k, at.bias, total));
        }
    if (!c->tied)
        NB_TRY(plan_linear(m, src, "lm_head", c->vocab, c->hidden, false, total));
done:
    return st;
}

static nb_status make_room(nb_model *m, const nbi_source *src)
{
    plan p;
    size_t all;
    nb_status st;
    NB_TRY(plan_linears(m, src, &p));
    NB_TRY(nbi_memory_check(m, nbi_add(p.linears, p.others, &all) ? all : SIZE_MAX, "the weights"));
    if (m->be->ops->reserve)
        NB_TRY(m->be->ops->reserve(m->be, p.linears));
done:
    return st;
}

/* What every layer needs around it. */
static nb_status build_frame(nb_model *m)
{
    const nbi_config *c = &m->cfg;
    if (c->n_experts && !m->be->ops->experts)
        return nbi_fail(NB_EUNSUPPORTED, "%s: is a mixture of experts, which %s cannot run yet: use the CPU", m->path,
                        m->be->description);
    if (c->head_norms && !m->be->ops->norm_heads)
        return nbi_fail(NB_EUNSUPPORTED, "%s: has norms of queries and keys, which %s cannot compute yet: use the CPU",
                        m->path, m->be->description);
    m->layers = calloc(c->n_layers, sizeof *m->layers);
    m->inv_freq = malloc(c->head_dim / 2 * sizeof *m->inv_freq);
    if (!m->layers || !m->inv_freq)
        return nbi_fail_nomem("the model", c->n_layers * sizeof *m->layers);
    nbi_rope_inv_freq(c, m->inv_freq);
    return NB_OK;
}

nb_status nbi_model_build(nb_model *m, const nbi_source *src, const nb_callbacks *cb)
{
    const nbi_config *c = &m->cfg;
    nb_status st = NB_OK;
    census seen = {0};
    NB_TRY(build_frame(m));
    NB_TRY(make_room(m, src));
    /* the tables first: while one is packed it is in memory twice, and the rest is not there yet */
    NB_TRY(load_table(m, src, "model.embed_tokens", &m->embed, NULL));
    if (c->tied)
        m->head = m->embed;
    else
        NB_TRY(load_head(m, src));
    for (uint32_t i = 0; i < c->n_layers; i++) {
        if (nbi_progress(cb, "load", "layers", i, c->n_layers, 0)) {
            st = nbi_fail(NB_ECANCELLED, "loading was cancelled");
            goto done;
        }
        NB_TRY(load_layer(m, src, i, &seen));
    }
    NB_TRY(load_norm(m, src, "model.norm.weight", c->hidden, &m->final_norm));
    describe(&seen, m->scheme);
    if (m->pack)
        nbi_pack_save(m->pack, cb);
    (void)nbi_progress(cb, "load", "layers", c->n_layers, c->n_layers, 0);
done:
    return st;
}

nb_status nbi_model_build_shell(nb_model *m, const nbi_source *src)
{
    nb_status st = build_frame(m);
    /* which layers will come is not known here */
    for (int p = 0; p < NBI_N_PROJ && st == NB_OK; p++) {
        size_t n, k;
        nbi_proj_shape(&m->cfg, (nbi_proj)p, &n, &k);
        m->out_width = n > m->out_width ? n : m->out_width;
    }
    return st == NB_OK ? load_table(m, src, "model.embed_tokens", &m->embed, NULL) : st;
}

nb_status nbi_layer_load(nb_model *m, const nbi_source *src, uint32_t i)
{
    return load_layer(m, src, i, NULL);
}

void nbi_layer_unload(nb_model *m, uint32_t i)
{
    const nbi_backend_ops *ops = m->be->ops;
    nbi_layer *l = &m->layers[i];
    ops->release(m->be, l->attn_norm);
    ops->release(m->be, l->ffn_norm);
    ops->release(m->be, l->q_norm);
    ops->release(m->be, l->k_norm);
    ops->release(m->be, l->k_shift);
    ops->release(m->be, l->k_scale);
    for (int p = 0; p < NBI_N_PROJ; p++) {
        ops->linear_free(m->be, l->proj[p]);
        ops->release(m->be, l->out_bias[p]);
        if (l->out[p])
            ops->transform_free(m->be, l->out[p]);
    }
    for (int p = 0; p < NBI_N_PORTS; p++)
        if (l->in[p])
            ops->transform_free(m->be, l->in[p]);
    ops->linear_free(m->be, l->router);
    for (size_t i = 0; l->expert && i < 3 * (size_t)m->cfg.n_experts; i++)
        ops->linear_free(m->be, l->expert[i]);
    free(l->expert);
    *l = (nbi_layer){0};
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
    if (st == NB_OK)
        st = nbi_backend_set_pin(m->be, opt.pin);
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
    for (uint32_t i = 0; m->layers && i < m->cfg.n_layers; i++)
        nbi_layer_unload(m, i);
    ops->release(m->be, m->final_norm);
    if (m->head != m->embed)
        ops->linear_free(m->be, m->head);
    ops->linear_free(m->be, m->embed);
    if (m->head_in)
        ops->transform_free(m->be, m->head_in);
    nbi_pack_close(m->pack);
    free(m->layers);
    free(m->inv_freq);
    nb_tokenizer_free(m->tok);
    ops->destroy(m->be);
    free(m);
}
