#include "engine/calibrated.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "engine/calibrate.h"
#include "engine/job.h"
#include "engine/quantize_layer.h"
#include "engine/residual.h"
#include "engine/stats.h"
#include "model/checkpoint.h"

struct nbi_calibrated {
    nbi_calibrated_options o;
    nb_model *shell;
    nbi_layerwise *walk; /* NULL: everything is saved */
    nbi_stats *stats;    /* or NULL */
    unsigned needs;
    int32_t *ids;
    size_t n, ctx;
    uint32_t next;
    nbi_inputs in[NBI_N_PORTS]; /* of the layer that was told last */
    nbi_key_stats keys;         /* likewise; zeros where nobody asks for them */
};

/* ---- the checkpoint as a source ---- */

static nb_status read_linear(void *self, const char *module, size_t n, size_t k, bool bias, nbi_weight *out)
{
    nbi_calibrated *c = self;
    nb_status st = nbi_read_linear(out, c->o.ckpt, NULL, module, n, k, bias);
    return st == NB_OK && c->o.rotation ? nbi_rotation_linear(c->o.rotation, module, out) : st;
}

static nb_status read_norm(const nbi_calibrated *c, const char *name, float **out, nbi_dtype *dtype)
{
    const size_t n = c->o.cfg->hidden;
    const nbi_tensor *t = nbi_checkpoint_find(c->o.ckpt, name);
    if (!t || !nbi_dtype_is_float(t->dtype) || t->n_elements != n)
        return nbi_fail(NB_EFORMAT, "%s: %s, expected float [%zu]", t ? t->file : c->o.path,
                        t ? name : "a norm is missing", n);
    if (!(*out = malloc(n * sizeof **out)))
        return nbi_fail_nomem(name, n * sizeof **out);
    nbi_to_f32(*out, t->data, t->dtype, n);
    *dtype = t->dtype;
    const nbi_weight row = {.n = 1, .k = n, .dense_dtype = t->dtype, .dense = t->data};
    for (size_t i = 0; c->o.rotation && i < n; i++)
        (*out)[i] = 1; /* it is in the layers behind it */
    return nbi_check_finite(&row, name);
}

/* fp32 that the layer owns. */
static nb_status widen(nbi_weight *w)
{
    const size_t count = w->n * w->k;
    float *x = malloc(count * sizeof *x);
    if (!x)
        return nbi_fail_nomem("a weight in fp32", count * sizeof *x);
    nbi_to_f32(x, w->dense, w->dense_dtype, count);
    free(w->owned);
    w->owned = x;
    w->dense = x;
    w->dense_dtype = NBI_F32;
    return NB_OK;
}

static nb_status read_layer(nbi_calibrated *c, uint32_t i, nbi_host_layer *l, nbi_dtype norm_dtype[2])
{
    const nbi_config *cfg = c->o.cfg;
    char name[128];
    nb_status st;
    *l = (nbi_host_layer){0};
    snprintf(name, sizeof name, "model.layers.%u.input_layernorm.weight", i);
    NB_TRY(read_norm(c, name, &l->norm[0], &norm_dtype[0]));
    snprintf(name, sizeof name, "model.layers.%u.post_attention_layernorm.weight", i);
    NB_TRY(read_norm(c, name, &l->norm[1], &norm_dtype[1]));
    for (int p = 0; p < NBI_N_PROJ; p++) {
        size_t n, k;
        nbi_proj_shape(cfg, (nbi_proj)p, &n, &k);
        nbi_module_name(name, i, (nbi_proj)p);
        NB_TRY(read_linear(c, name, n, k, nbi_proj_has_bias(cfg, (nbi_proj)p), &l->w[p]));
        NB_TRY(widen(&l->w[p]));
    }
done:
    if (st != NB_OK)
        nbi_host_layer_free(l);
    return st;
}

/* ---- life ---- */

/* What is to be gathered: for the method, and for static activations. */
static unsigned needs_of(const nbi_calibrated_options *o)
{
    unsigned needs = o->method->needs;
    for (size_t i = 0; i < (size_t)o->cfg->n_layers * NBI_N_PROJ; i++)
        if (o->scheme[i]->bits && o->scheme[i]->act == NBI_ACT_TENSOR)
            needs |= NBI_NEEDS_RANGE;
    return needs;
}

static nb_status read_text(nbi_calibrated *c)
{
    const nbi_calibrated_options *o = &c->o;
    nb_status st = nbi_calib_tokens(&c->ids, &c->n, o->text, o->path, o->cfg->vocab, o->tokens);
    if (st != NB_OK)
        return st;
    if (c->n < o->tokens)
        nbi_log(o->callbacks, NB_LOG_WARN, "%s: has %zu tokens, and %zu were asked for", o->text, c->n, o->tokens);
    if ((o->method->needs & NBI_NEEDS_GRAM) && c->n < o->cfg->hidden)
        nbi_log(o->callbacks, NB_LOG_WARN,
                "%zu tokens are fewer than the %u inputs of a layer: what they say of them together is guesswork", c->n,
                o->cfg->hidden);
    c->ctx = o->ctx < o->cfg->max_context ? o->ctx : o->cfg->max_context;
    c->ctx = c->ctx < c->n ? c->ctx : c->n;
    return NB_OK;
}

static nb_status open_stats(nbi_calibrated *c)
{
    const nbi_stats_key key = {c->o.model, nbi_calibrated_text(c), c->n, c->ctx};
    if (!c->o.stats)
        return NB_OK;
    if (!c->o.dense_feed)
        return nbi_fail(
            NB_EINVAL,
            "%s: saved statistics are those of the dense model, and %s lets each quantized layer feed the next "
            "one: expected --no-sequential with --stats",
            c->o.stats, c->o.method->name);
    if (c->o.rotation)
        return nbi_fail(
            NB_EUNSUPPORTED,
            "%s: saved statistics are those of the model as it is, and this recipe rotates it: leave out --stats",
            c->o.stats);
    nb_status st = nbi_stats_open(&c->stats, c->o.stats, &key, c->needs, c->o.cfg, c->shell->be->name);
    if (st == NB_OK)
        c->needs = nbi_stats_needs(c->stats);
    return st;
}

static bool is_saved(const nbi_calibrated *c)
{
    return c->stats && nbi_stats_saved(c->stats);
}

static nb_status open_walk(nbi_calibrated *c)
{
    const nbi_calibrated_options *o = &c->o;
    nb_status st = nbi_model_build_shell(c->shell, &(nbi_source){.linear = read_linear, .self = c});
    if (st != NB_OK)
        return st;
    return nbi_layerwise_create(&c->walk,
                                &(nbi_layerwise_options){.shell = c->shell,
                                                         .ids = c->ids,
                                                         .n = c->n,
                                                         .ctx = c->ctx,
                                                         .needs = c->needs,
                                                         .keys = c->keys.sum ? &c->keys : NULL,
                                                         .rotate_keys = o->rotation != NULL,
                                                         .threads = o->threads,
                                                         .memory = o->memory,
                                                         .folder = nbi_residual_folder(o->folder),
                                                         .passes = o->cfg->n_layers * (o->dense_feed          ? 1
                                                                                       : o->options->in_order ? 5
                                                                                                              : 2) -
                                                                   !(o->dense_feed || o->head),
                                                         .callbacks = o->callbacks});
}

nb_status nbi_calibrated_create(nbi_calibrated **out, const nbi_calibrated_options *o)
{
    nb_status st;
    nb_model_options mo;
    nb_callbacks cb;
    nbi_calibrated *c = calloc(1, sizeof *c);
    if (!c)
        return nbi_fail_nomem("calibration", sizeof *c);
    c->o = *o;
    c->needs = needs_of(o);
    NB_TRY(read_text(c));
    nb_model_options_init(&mo);
    mo.device = o->device;
    mo.threads = o->threads;
    NB_TRY(nbi_model_new(&c->shell, &mo, &cb));
    c->shell->cfg = *o->cfg;
    NB_TRY(open_stats(c));
    if (o->keys || c->stats)
        NB_TRY(nbi_key_stats_create(&c->keys, o->cfg));
    if (!is_saved(c))
        NB_TRY(open_walk(c));
    *out = c;
    c = NULL;
done:
    nbi_calibrated_free(c);
    return st;
}

static void forget_inputs(nbi_calibrated *c)
{
    for (int p = 0; p < NBI_N_PORTS; p++)
        nbi_inputs_free(&c->in[p]);
}

void nbi_calibrated_free(nbi_calibrated *c)
{
    if (!c)
        return;
    forget_inputs(c);
    nbi_key_stats_free(&c->keys);
    nbi_stats_free(c->stats);
    nbi_layerwise_free(c->walk);
    nb_model_free(c->shell);
    nb_free(c->ids);
    free(c);
}

const nbi_inputs *nbi_calibrated_inputs(const nbi_calibrated *c, nbi_proj p)
{
    const nbi_inputs *in = &c->in[nbi_port_of(p)];
    return in->k ? in : NULL;
}

size_t nbi_calibrated_tokens(const nbi_calibrated *c)
{
    return c->n;
}

size_t nbi_calibrated_ctx(const nbi_calibrated *c)
{
    return c->ctx;
}

uint64_t nbi_calibrated_text(const nbi_calibrated *c)
{
    return nbi_hash(NBI_HASH_INIT, c->ids, c->n * sizeof *c->ids);
}

const char *nbi_calibrated_device(const nbi_calibrated *c)
{
    return is_saved(c) ? nbi_stats_device(c->stats) : c->shell->be->name;
}

/* ---- layers ---- */

/* What layer i sees; where dense layers feed the next one the walk is behind it afterwards. */
static nb_status gather(nbi_calibrated *c, uint32_t i, const nbi_host_layer *dense)
{
    if (is_saved(c))
        return nbi_stats_read(c->stats, i, c->in, &c->keys);
    nb_status st = nbi_layerwise_observe(c->walk, i, dense, NBI_ALL_PORTS, c->o.dense_feed, c->in);
    return st == NB_OK && c->stats ? nbi_stats_write(c->stats, i, c->in, &c->keys) : st;
}

static nb_status set_activation_grids(nbi_calibrated *c, uint32_t i, nbi_host_layer *quantized)
{
    nbi_grid g;
    char name[96];
    for (int p = 0; p < NBI_N_PROJ; p++) {
        nbi_weight *w = &quantized->w[p];
        if (!w->scheme.bits || w->scheme.act != NBI_ACT_TENSOR)
            continue;
        nb_status st = nbi_observer_grid(c->in[nbi_port_of((nbi_proj)p)].all, c->o.observer, c->o.percentile, 8,
                                         w->scheme.act_symmetric, &g);
        nbi_module_name(name, i, (nbi_proj)p);
        if (st != NB_OK)
            return nbi_fail_in(st, "%s: ", name);
        w->act_scale = g.scale;
        w->act_zero = g.zero;
    }
    return NB_OK;
}

/* GPTQ's "true sequential": what a port sees comes from the ports before it as they are quantized already. */
static nb_status look_again(nbi_calibrated *c, uint32_t i, nbi_port port, const nbi_host_layer *dense,
                            const nbi_host_layer *quantized)
{
    nbi_host_layer view = *dense; /* borrows */
    if (port == NBI_PORT_ATTN || !c->o.options->in_order || c->o.dense_feed)
        return NB_OK;
    for (int p = 0; p < NBI_N_PROJ; p++)
        if (nbi_port_of((nbi_proj)p) < port)
            view.w[p] = quantized->w[p];
    nbi_inputs_free(&c->in[port]);
    return nbi_layerwise_observe(c->walk, i, &view, 1u << port, false, c->in);
}

static nb_status round_layer(nbi_calibrated *c, const nbi_layer_job *job, const nbi_host_layer *dense,
                             nbi_host_layer *quantized)
{
    nb_status st;
    NB_TRY(nbi_round_norms(job, dense, quantized));
    for (int p = 0; p < NBI_N_PORTS; p++) {
        NB_TRY(look_again(c, job->index, (nbi_port)p, dense, quantized));
        if (p == NBI_PORT_DOWN)
            NB_TRY(nbi_rotation_inputs(&c->in[p], dense->w[NBI_DOWN].in_signs, c->o.threads));
        NB_TRY(nbi_round_port(job, (nbi_port)p, dense, &c->in[p], quantized));
    }
done:
    return st;
}

static nb_status make_key_grid(const nbi_calibrated *c, nbi_host_layer *quantized)
{
    const size_t n = c->keys.n_kv_heads * c->keys.head_dim;
    if (!(quantized->key_grid = malloc(2 * n * sizeof *quantized->key_grid)))
        return nbi_fail_nomem("a grid of keys", 2 * n * sizeof *quantized->key_grid);
    nbi_key_grid_make(&c->keys, quantized->key_grid, quantized->key_grid + n);
    return NB_OK;
}

nb_status nbi_calibrated_next(nbi_calibrated *c, nbi_host_layer *dense, nbi_host_layer *quantized)
{
    const uint32_t i = c->next;
    nbi_layer_job job = {.cfg = c->o.cfg,
                         .index = i,
                         .method = c->o.method,
                         .options = c->o.options,
                         .scale_dtype = c->o.scale_dtype,
                         .be = c->shell->be,
                         .threads = c->o.threads,
                         .callbacks = c->o.callbacks};
    nb_status st;
    forget_inputs(c);
    *quantized = (nbi_host_layer){0};
    *dense = (nbi_host_layer){0};
    for (int p = 0; p < NBI_N_PROJ; p++)
        job.scheme[p] = c->o.scheme[i * NBI_N_PROJ + (uint32_t)p];
    NB_TRY(read_layer(c, i, dense, job.norm_dtype));
    NB_TRY(gather(c, i, dense));
    NB_TRY(nbi_balance_layer(&job, dense, c->in)); /* none where the model is rotated */
    NB_TRY(round_layer(c, &job, dense, quantized));
    NB_TRY(set_activation_grids(c, i, quantized));
    if (c->o.keys)
        NB_TRY(make_key_grid(c, quantized));
    if (!c->o.dense_feed && (c->o.head || i + 1 < c->o.cfg->n_layers))
        NB_TRY(nbi_layerwise_advance(c->walk, i, quantized));
    c->next++;
done:
    if (st != NB_OK) {
        nbi_host_layer_free(dense);
        nbi_host_layer_free(quantized);
    }
    return st;
}

nb_status nbi_calibrated_skip(nbi_calibrated *c, const nbi_host_layer *quantized)
{
    const uint32_t i = c->next++;
    nbi_dtype norm_dtype[2];
    nbi_host_layer dense = {0};
    nb_status st = NB_OK;
    forget_inputs(c);
    if (is_saved(c) || (!c->stats && !c->o.head && i + 1 == c->o.cfg->n_layers))
        return NB_OK;
    if (!c->o.dense_feed)
        return nbi_layerwise_advance(c->walk, i, quantized);
    NB_TRY(read_layer(c, i, &dense, norm_dtype));
    NB_TRY(c->stats ? gather(c, i, &dense) : nbi_layerwise_advance(c->walk, i, &dense));
    forget_inputs(c);
done:
    nbi_host_layer_free(&dense);
    return st;
}

nb_status nbi_calibrated_head(nbi_calibrated *c, nbi_inputs *in, bool *known)
{
    float *norm = NULL;
    nbi_dtype dtype;
    *in = (nbi_inputs){0};
    *known = !is_saved(c);
    if (!*known)
        return NB_OK;
    nb_status st = read_norm(c, "model.norm.weight", &norm, &dtype);
    if (st == NB_OK)
        st = nbi_layerwise_head(c->walk, norm, in);
    free(norm);
    return st == NB_OK ? st : nbi_fail_in(st, "lm_head: ");
}
