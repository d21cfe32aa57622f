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

/* Rows that an expert must see for methods to learn from them: fewer say more of the text than of the expert. */
#define FEWEST_ROWS 32

struct nbi_calibrated {
    nbi_calibrated_options o;
    nb_model *shell;
    nbi_layerwise *walk; /* NULL: everything is saved */
    nbi_stats *stats;    /* or NULL */
    unsigned needs;
    int32_t *ids;
    size_t n, ctx;
    uint32_t next;
    nbi_inputs *in; /* [nbi_layer_places()] of the layer that was told last */
};

/* ---- the checkpoint as a source ---- */

static nb_status read_linear(void *self, const char *module, size_t n, size_t k, bool bias, nbi_weight *out)
{
    nbi_calibrated *c = self;
    nb_status st = nbi_read_linear(out, c->o.ckpt, NULL, module, n, k, bias);
    return st == NB_OK && c->o.rotation ? nbi_rotation_linear(c->o.rotation, module, out) : st;
}

static nb_status read_norm(const nbi_calibrated *c, const char *name, size_t n, float **out, nbi_dtype *dtype)
{
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

static nb_status read_layer(nbi_calibrated *c, uint32_t i, nbi_host_layer *l, nbi_dtype norm_dtype[NBI_N_NORMS])
{
    const nbi_config *cfg = c->o.cfg;
    char name[128];
    nb_status st;
    NB_TRY(nbi_host_layer_init(l, cfg));
    for (int k = 0; k < NBI_N_NORMS; k++) {
        snprintf(name, sizeof name, "model.layers.%u.%s.weight", i, nbi_norm_name(k));
        if (nbi_norm_width(cfg, k))
            NB_TRY(read_norm(c, name, nbi_norm_width(cfg, k), &l->norm[k], &norm_dtype[k]));
    }
    for (size_t p = 0; p < l->n; p++) {
        nbi_module at;
        nbi_module_at(cfg, i, p, &at);
        NB_TRY(read_linear(c, at.name, at.n, at.k, at.bias, &l->w[p]));
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
    for (size_t i = 0; i < o->cfg->n_layers * nbi_layer_modules(o->cfg); i++)
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
                                                         .threads = o->threads,
                                                         .memory = o->memory,
                                                         .folder = nbi_residual_folder(o->folder),
                                                         .passes = o->cfg->n_layers * (o->dense_feed          ? 1
                                                                                       : o->options->in_order ? 5
                                                                                                              : 2) -
                                                                   !(o->dense_feed || o->head),
                                                         .callbacks = o->callbacks});
}

/* Feed-forward networks whose statistics are there at a time. */
static uint32_t at_a_time(const nbi_calibrated *c)
{
    return c->walk ? nbi_layerwise_ffns(c->walk) : nbi_layer_ffns(c->o.cfg);
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
    if (!(c->in = calloc(nbi_layer_places(o->cfg), sizeof *c->in)))
        NB_TRY(nbi_fail_nomem("calibration", nbi_layer_places(o->cfg) * sizeof *c->in));
    NB_TRY(read_text(c));
    nb_model_options_init(&mo);
    mo.device = o->device;
    mo.threads = o->threads;
    NB_TRY(nbi_model_new(&c->shell, &mo, &cb));
    c->shell->cfg = *o->cfg;
    NB_TRY(open_stats(c));
    if (!is_saved(c))
        NB_TRY(open_walk(c));
    if (c->stats && !is_saved(c) && o->method->balance && at_a_time(c) < nbi_layer_ffns(o->cfg))
        NB_TRY(nbi_fail(NB_ELIMIT,
                        "%s: statistics of all experts at once do not fit in the memory of calibration, and %s changes "
                        "what later ones would see: allow more with --calib-memory, or leave out --stats",
                        o->stats, o->method->name));
    *out = c;
    c = NULL;
done:
    nbi_calibrated_free(c);
    return st;
}

static void forget_inputs(nbi_calibrated *c)
{
    for (size_t p = 0; c->in && p < nbi_layer_places(c->o.cfg); p++)
        nbi_inputs_free(&c->in[p]);
}

void nbi_calibrated_free(nbi_calibrated *c)
{
    if (!c)
        return;
    forget_inputs(c);
    nbi_stats_free(c->stats);
    nbi_layerwise_free(c->walk);
    nb_model_free(c->shell);
    nb_free(c->ids);
    free(c->in);
    free(c);
}

const nbi_inputs *nbi_calibrated_inputs(const nbi_calibrated *c, size_t module)
{
    nbi_module at;
    nbi_module_at(c->o.cfg, 0, module, &at);
    return c->in[at.place].k ? &c->in[at.place] : NULL;
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

/* What some places of layer i see; where dense layers feed the next one the walk is behind it with the last of them. */
static nb_status gather(nbi_calibrated *c, uint32_t i, const nbi_host_layer *dense, const nbi_watch *w)
{
    const bool last = w->ffn1 == nbi_layer_ffns(c->o.cfg);
    if (is_saved(c))
        return nbi_stats_read(c->stats, i, c->in);
    nb_status st = nbi_layerwise_observe(c->walk, i, dense, w, c->o.dense_feed && last, c->in);
    return st == NB_OK && c->stats ? nbi_stats_write(c->stats, i, w, c->in) : st;
}

/* The places of the feed-forward networks from ffn0 on whose turn it is, and with the first all others.  The router's, where it is
 * needed: for a balance first, else as a file of statistics has it, last. */
static nbi_watch turn_of(const nbi_calibrated *c, uint32_t ffn0)
{
    const uint32_t n = nbi_layer_ffns(c->o.cfg), left = n - ffn0, most = at_a_time(c);
    nbi_watch w = {.ports = ffn0 ? 1u << NBI_PORT_FFN | 1u << NBI_PORT_DOWN : NBI_ALL_PORTS,
                   .ffn0 = ffn0,
                   .ffn1 = ffn0 + (left < most ? left : most)};
    w.router = c->o.cfg->n_experts && (c->o.method->balance ? !ffn0 : c->stats && w.ffn1 == n);
    return w;
}

/* Experts that the text hardly reaches are rounded by their weights alone; tell: say so, once a layer. */
static void make_do(nbi_calibrated *c, const nbi_layer_job *job, const nbi_watch *w, bool tell)
{
    const size_t fewest = c->o.method->needs ? FEWEST_ROWS : 1;
    for (uint32_t e = w->ffn0; e < w->ffn1 && c->o.cfg->n_experts; e++) {
        nbi_inputs *ffn = &c->in[NBI_PORT_FFN + 2 * (size_t)e], *down = ffn + 1;
        nbi_module at;
        nbi_module_at(c->o.cfg, job->index, nbi_ffn_module(c->o.cfg, e, NBI_GATE), &at);
        if (ffn->k && ffn->rows < fewest && tell)
            nbi_log(c->o.callbacks, NB_LOG_WARN, "%.*s: %zu of %zu tokens came to this expert, fewer than %zu: %s",
                    (int)(strrchr(at.name, '.') - at.name), at.name, ffn->rows, c->n, fewest,
                    c->o.method->needs ? "it is rounded by its weights alone"
                                       : "its activations have the widest range of the other experts'");
        if (ffn->k && ffn->rows < fewest)
            nbi_inputs_forget(ffn);
        if (down->k && down->rows < fewest)
            nbi_inputs_forget(down);
    }
}

static nb_status set_activation_grids(nbi_calibrated *c, uint32_t i, const nbi_watch *w, nbi_host_layer *quantized)
{
    nbi_grid g;
    for (size_t p = 0; p < quantized->n; p++) {
        nbi_weight *q = &quantized->w[p];
        nbi_module at;
        nbi_module_at(c->o.cfg, i, p, &at);
        const nbi_observer *seen = c->in[at.place].all;
        if (!nbi_watched(c->o.cfg, w, at.place) || !q->scheme.bits || q->scheme.act != NBI_ACT_TENSOR ||
            (c->o.cfg->n_experts && !seen->count))
            continue;
        nb_status st = nbi_observer_grid(seen, c->o.observer, c->o.percentile, 8, q->scheme.act_symmetric, &g);
        if (st != NB_OK)
            return nbi_fail_in(st, "%s: ", at.name);
        q->act_scale = g.scale;
        q->act_zero = g.zero;
    }
    return NB_OK;
}

/* Experts that the text does not reach have the widest static grid of the others. */
static void borrow_grids(nbi_calibrated *c, uint32_t i, nbi_host_layer *quantized)
{
    for (size_t p = NBI_GATE; c->o.cfg->n_experts && p < quantized->n; p++) {
        nbi_weight *q = &quantized->w[p];
        nbi_module at;
        if (!q->scheme.bits || q->scheme.act != NBI_ACT_TENSOR || q->act_scale > 0)
            continue;
        nbi_module_at(c->o.cfg, i, p, &at);
        for (uint32_t e = 0; e < c->o.cfg->n_experts; e++) {
            const nbi_weight *o = &quantized->w[nbi_ffn_module(c->o.cfg, e, at.proj)];
            if (o->scheme.act == NBI_ACT_TENSOR && o->act_scale > q->act_scale) {
                q->act_scale = o->act_scale;
                q->act_zero = o->act_zero;
            }
        }
    }
}

/* GPTQ's "true sequential": what a port sees comes from the ports before it as they are quantized already. */
static nb_status look_again(nbi_calibrated *c, const nbi_layer_job *job, nbi_port port, const nbi_host_layer *dense,
                            const nbi_host_layer *quantized, const nbi_watch *turn)
{
    nbi_host_layer view = *dense; /* borrows */
    const nbi_watch again = {.ports = 1u << port, .ffn0 = turn->ffn0, .ffn1 = turn->ffn1};
    if (port == NBI_PORT_ATTN || !c->o.options->in_order || c->o.dense_feed)
        return NB_OK;
    if (!(view.w = malloc(dense->n * sizeof *view.w)))
        return nbi_fail_nomem("a layer", dense->n * sizeof *view.w);
    for (size_t p = 0; p < dense->n; p++) {
        nbi_module at;
        nbi_module_at(c->o.cfg, job->index, p, &at);
        view.w[p] = nbi_port_of(at.proj) < port && quantized->w[p].n ? quantized->w[p] : dense->w[p];
    }
    for (size_t p = 0; p < nbi_layer_places(c->o.cfg); p++)
        if (nbi_watched(c->o.cfg, &again, p))
            nbi_inputs_free(&c->in[p]);
    nb_status st = nbi_layerwise_observe(c->walk, job->index, &view, &again, false, c->in);
    free(view.w);
    if (st == NB_OK && port >= NBI_PORT_FFN)
        make_do(c, job, &again, false);
    return st;
}

static bool is_router(const nbi_calibrated *c, size_t place)
{
    return c->o.cfg->n_experts && place + 1 == nbi_layer_places(c->o.cfg);
}

/* The places of a turn, port after port. */
static nb_status round_places(nbi_calibrated *c, const nbi_layer_job *job, const nbi_host_layer *dense,
                              nbi_host_layer *quantized, const nbi_watch *turn)
{
    const nbi_config *cfg = c->o.cfg;
    nb_status st = NB_OK;
    if (!turn->ffn0) {
        NB_TRY(nbi_round_norms(job, dense, quantized));
        if (cfg->n_experts)
            NB_TRY(nbi_round_place(job, nbi_layer_places(cfg) - 1, dense, NULL, quantized));
    }
    for (int port = 0; port < NBI_N_PORTS; port++) {
        if (!(turn->ports >> port & 1))
            continue;
        NB_TRY(look_again(c, job, (nbi_port)port, dense, quantized, turn));
        if (port == NBI_PORT_DOWN)
            for (uint32_t e = turn->ffn0; e < turn->ffn1; e++)
                NB_TRY(nbi_rotation_inputs(&c->in[port + 2 * (size_t)e],
                                           dense->w[nbi_ffn_module(cfg, e, NBI_DOWN)].in_signs, c->o.threads));
        for (size_t p = 0; p < nbi_layer_places(cfg); p++)
            if (nbi_place_port(p) == (nbi_port)port && nbi_watched(cfg, turn, p) && !is_router(c, p))
                NB_TRY(nbi_round_place(job, p, dense, &c->in[p], quantized));
    }
done:
    return st;
}

static nb_status quantize_layer(nbi_calibrated *c, const nbi_layer_job *job, nbi_host_layer *dense,
                                nbi_host_layer *quantized)
{
    const uint32_t ffns = nbi_layer_ffns(c->o.cfg);
    nb_status st = NB_OK;
    nbi_watch turn;
    for (uint32_t ffn = 0; ffn < ffns; ffn = turn.ffn1) {
        turn = turn_of(c, ffn);
        NB_TRY(gather(c, job->index, dense, &turn));
        make_do(c, job, &turn, true);
        NB_TRY(nbi_balance_layer(job, dense, c->in, &turn)); /* none where the model is rotated */
        NB_TRY(round_places(c, job, dense, quantized, &turn));
        NB_TRY(set_activation_grids(c, job->index, &turn, quantized));
        for (size_t p = NBI_PORT_FFN; p < nbi_layer_places(c->o.cfg) && at_a_time(c) < ffns; p++)
            nbi_inputs_free(&c->in[p]);
    }
    borrow_grids(c, job->index, quantized);
done:
    return st;
}

nb_status nbi_calibrated_next(nbi_calibrated *c, nbi_host_layer *dense, nbi_host_layer *quantized)
{
    const uint32_t i = c->next;
    nbi_layer_job job = {.cfg = c->o.cfg,
                         .index = i,
                         .method = c->o.method,
                         .options = c->o.options,
                         .scheme = c->o.scheme + i * nbi_layer_modules(c->o.cfg),
                         .scale_dtype = c->o.scale_dtype,
                         .be = c->shell->be,
                         .threads = c->o.threads,
                         .callbacks = c->o.callbacks};
    nb_status st;
    forget_inputs(c);
    *quantized = (nbi_host_layer){0};
    *dense = (nbi_host_layer){0};
    NB_TRY(read_layer(c, i, dense, job.norm_dtype));
    NB_TRY(quantize_layer(c, &job, dense, quantized));
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

/* A layer's statistics for the file, and past it. */
static nb_status gather_all(nbi_calibrated *c, uint32_t i, const nbi_host_layer *dense)
{
    nb_status st = NB_OK;
    nbi_watch turn;
    for (uint32_t ffn = 0; ffn < nbi_layer_ffns(c->o.cfg) && st == NB_OK; ffn = turn.ffn1) {
        turn = turn_of(c, ffn);
        st = gather(c, i, dense, &turn);
        forget_inputs(c);
    }
    return st;
}

nb_status nbi_calibrated_skip(nbi_calibrated *c, const nbi_host_layer *quantized)
{
    const uint32_t i = c->next++;
    nbi_dtype norm_dtype[NBI_N_NORMS];
    nbi_host_layer dense = {0};
    nb_status st = NB_OK;
    forget_inputs(c);
    if (is_saved(c) || (!c->stats && !c->o.head && i + 1 == c->o.cfg->n_layers))
        return NB_OK;
    if (!c->o.dense_feed)
        return nbi_layerwise_advance(c->walk, i, quantized);
    NB_TRY(read_layer(c, i, &dense, norm_dtype));
    NB_TRY(c->stats ? gather_all(c, i, &dense) : nbi_layerwise_advance(c->walk, i, &dense));
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
    nb_status st = read_norm(c, "model.norm.weight", c->o.cfg->hidden, &norm, &dtype);
    if (st == NB_OK)
        st = nbi_layerwise_head(c->walk, norm, in);
    free(norm);
    return st == NB_OK ? st : nbi_fail_in(st, "lm_head: ");
}
