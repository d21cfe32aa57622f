#include "engine/sensitivity.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/log.h"
#include "engine/layerwise.h"
#include "engine/residual.h"
#include "engine/stream.h"
#include "model/checkpoint.h"
#include "quant/output_error.h"

#define VERDICT_MOST ((size_t)512 << 20) /* bytes of kept logits: fewer windows where a vocabulary is large */

typedef struct window {
    size_t at, rows; /* of ids */
    size_t first;    /* its first row among those that are judged */
} window;

typedef struct run {
    const nbi_sensitivity_options *o;
    nbi_stream *stream;
    nbi_verdict verdict;
    window *judged;
    size_t n_judged, judged_rows;
    nbi_residual *x;      /* [n][hidden] before the current layer */
    nbi_residual *before; /* [judged_rows][hidden] of the windows that are judged */
    float *work;          /* [ctx][hidden] */
    float *logits;        /* [ctx][vocab] */
    float *seen;          /* [ctx][widest] a batch of a layer's inputs */
    nbi_inputs in[NBI_N_PORTS];
    size_t done, total; /* measurements */
} run;

size_t nbi_sensitivity_modules(const nbi_config *c)
{
    return (size_t)c->n_layers * NBI_N_PROJ + !c->tied;
}

static void module_name(const nbi_config *c, size_t module, char out[96])
{
    if (module == (size_t)c->n_layers * NBI_N_PROJ)
        snprintf(out, 96, "lm_head");
    else
        nbi_module_name(out, (uint32_t)(module / NBI_N_PROJ), (nbi_proj)(module % NBI_N_PROJ));
}

/* ---- the plan ---- */

typedef struct plan {
    uint64_t model, layer, statistics, logits, window, stream;
} plan;

static size_t count_windows(const nbi_sensitivity_options *o)
{
    const size_t all = nbi_ceil_div(o->n, o->ctx), room = VERDICT_MOST / (o->ctx * nbi_verdict_bytes(o->m->cfg.vocab)),
                 n = o->windows < all ? o->windows : all;
    return n <= room ? n : room ? room : 1;
}

static size_t widest_input(const nbi_config *c)
{
    size_t widest = 0;
    for (int p = 0; p < NBI_N_PORTS; p++)
        widest = nbi_place_width(c, (size_t)p) > widest ? nbi_place_width(c, (size_t)p) : widest;
    return widest;
}

static void module_shape(const nbi_config *c, size_t module, size_t *n, size_t *k)
{
    *n = c->vocab;
    *k = c->hidden;
    if (module < (size_t)c->n_layers * NBI_N_PROJ)
        nbi_proj_shape(c, (nbi_proj)(module % NBI_N_PROJ), n, k);
}

/* As the CPU holds it; what is on another device is not in this memory. */
static uint64_t resident(const nbi_sensitivity_options *o, const char *module, size_t n, size_t k)
{
    static const nbi_scheme dense = {0};
    char name[128];
    snprintf(name, sizeof name, "%s.weight", module);
    const nbi_tensor *t = nbi_checkpoint_find(o->ckpt, name);
    nbi_backend *be = o->m->be;
    return strcmp(be->name, "cpu") == 0 ? be->ops->linear_plan(be, n, k, &dense, t ? t->dtype : NBI_F32, false) : 0;
}

/* The whole model is there, and of the layer that is measured what it is as codes, as the device packs them, and in fp32. */
static plan make_plan(const nbi_sensitivity_options *o)
{
    const nbi_config *c = &o->m->cfg;
    const size_t judged = count_windows(o) * o->ctx;
    plan p = {.model = resident(o, "model.embed_tokens", c->vocab, c->hidden),
              .statistics = nbi_statistics_bytes(c, o->method->needs | NBI_NEEDS_GRAM, 1),
              .logits = judged * nbi_verdict_bytes(c->vocab) + o->ctx * c->vocab * sizeof(float),
              .window =
                  o->ctx * (widest_input(c) + c->hidden) * sizeof(float) +
                  nbi_workspace_bytes(
                      o->m, &(nbi_workspace_limits){.rows = o->ctx, .seqs = 1, .logits = o->ctx, .context = o->ctx}),
              .stream = (o->n + judged) * c->hidden * sizeof(float)};
    char name[96];
    for (size_t i = 0; i < nbi_sensitivity_modules(c); i++) {
        size_t n, k;
        bool measured = false;
        module_shape(c, i, &n, &k);
        module_name(c, i, name);
        p.model += resident(o, name, n, k);
        for (size_t s = 0; s < o->n_schemes; s++)
            measured |= o->wanted[i * o->n_schemes + s];
        const uint64_t bytes = measured ? (uint64_t)n * k * (2 * sizeof(float) + 1) : 0;
        p.layer = bytes > p.layer ? bytes : p.layer;
    }
    return p;
}

static double mib(uint64_t bytes)
{
    return (double)bytes / (double)(1 << 20);
}

nb_status nbi_sensitivity_fits(const nbi_sensitivity_options *o, bool *spill)
{
    const plan p = make_plan(o);
    const uint64_t least = p.model + p.layer + p.statistics + p.logits + p.window;
    *spill = least + p.stream > nbi_calib_budget(o->memory, o->m->be);
    if (o->memory && least > o->memory)
        return nbi_fail(
            NB_ELIMIT,
            "calibration is allowed %.1f MiB of memory, and measuring layers takes %.1f MiB: the model (%.1f "
            "MiB), a layer that is quantized (%.1f), statistics (%.1f), logits (%.1f) and a window of %zu "
            "tokens (%.1f): allow at least that, or use a smaller window",
            mib(o->memory), mib(least), mib(p.model), mib(p.layer), mib(p.statistics), mib(p.logits), o->ctx,
            mib(p.window));
    return NB_OK;
}

static nb_status tell_plan(const nbi_sensitivity_options *o, bool *spill)
{
    const plan p = make_plan(o);
    nb_status st = nbi_sensitivity_fits(o, spill);
    if (st == NB_OK)
        nbi_log(
            o->callbacks, NB_LOG_INFO,
            "measuring layers: the model %.1f MiB, activations %.1f MiB %s, logits %.1f MiB, statistics %.1f MiB, a "
            "layer %.1f MiB, a window %.1f MiB",
            mib(p.model), mib(p.stream), *spill ? "in a file" : "in memory", mib(p.logits), mib(p.statistics),
            mib(p.layer), mib(p.window));
    return st;
}

/* ---- the text ---- */

static nb_status choose_windows(run *r)
{
    const nbi_sensitivity_options *o = r->o;
    const size_t all = nbi_ceil_div(o->n, o->ctx), n = count_windows(o);
    if (n < o->windows && n < all)
        nbi_log(o->callbacks, NB_LOG_INFO,
                "sensitivities are measured on %zu windows instead of %u: the vocabulary is large", n, o->windows);
    if (!(r->judged = malloc(n * sizeof *r->judged)))
        return nbi_fail_nomem("a list of windows", n * sizeof *r->judged);
    for (size_t i = 0; i < n; i++) {
        window *w = &r->judged[i];
        w->at = i * all / n * o->ctx;
        w->rows = o->n - w->at < o->ctx ? o->n - w->at : o->ctx;
        w->first = r->judged_rows;
        r->judged_rows += w->rows;
    }
    r->n_judged = n;
    return NB_OK;
}

static nb_status room_for(float **out, size_t rows, size_t k, const char *what)
{
    size_t bytes = SIZE_MAX;
    if (!nbi_mul(rows, k, &bytes) || !nbi_mul(bytes, sizeof(float), &bytes) || !(*out = malloc(bytes)))
        return nbi_fail_nomem(what, bytes);
    return NB_OK;
}

static size_t rows_at(const nbi_sensitivity_options *o, size_t at)
{
    return o->n - at < o->ctx ? o->n - at : o->ctx;
}

static nb_status prepare(run *r)
{
    const nbi_sensitivity_options *o = r->o;
    const nbi_config *c = &o->m->cfg;
    bool spill;
    nb_status st;
    NB_TRY(tell_plan(o, &spill));
    NB_TRY(choose_windows(r));
    NB_TRY(nbi_stream_create(&r->stream, o->m, o->ctx, o->m->be->default_kv));
    NB_TRY(nbi_verdict_init(&r->verdict, r->judged_rows, c->vocab));
    NB_TRY(nbi_residual_create(&r->x, o->n, c->hidden, spill ? o->folder : NULL));
    NB_TRY(nbi_residual_create(&r->before, r->judged_rows, c->hidden, spill ? o->folder : NULL));
    NB_TRY(room_for(&r->work, o->ctx, c->hidden, "a window"));
    NB_TRY(room_for(&r->logits, o->ctx, c->vocab, "the logits of a window"));
    NB_TRY(room_for(&r->seen, o->ctx, widest_input(c), "the inputs of a layer"));
    for (size_t at = 0; at < o->n; at += o->ctx) {
        NB_TRY(nbi_stream_embed(r->stream, o->ids + at, rows_at(o, at), r->work));
        NB_TRY(nbi_residual_write(r->x, at, rows_at(o, at), r->work));
    }
done:
    return st;
}

static nb_status keep_judged(run *r)
{
    nb_status st = NB_OK;
    for (size_t i = 0; i < r->n_judged; i++) {
        const window *w = &r->judged[i];
        NB_TRY(nbi_residual_read(r->x, w->at, w->rows, r->work));
        NB_TRY(nbi_residual_write(r->before, w->first, w->rows, r->work));
    }
done:
    return st;
}

/* The logits of a judged window whose stream lies before layer `first`, as the model is now. */
static nb_status finish_window(run *r, const window *w, uint32_t first)
{
    const nbi_config *c = &r->o->m->cfg;
    nb_status st;
    NB_TRY(nbi_residual_read(r->before, w->first, w->rows, r->work));
    NB_TRY(nbi_stream_layers(r->stream, first, c->n_layers, r->o->ids + w->at, w->rows, r->work, NULL, NULL));
    NB_TRY(nbi_stream_logits(r->stream, w->rows, r->work, r->logits));
done:
    return st;
}

static nb_status judge_dense(run *r)
{
    nb_status st = keep_judged(r);
    for (size_t i = 0; i < r->n_judged && st == NB_OK; i++) {
        if ((st = finish_window(r, &r->judged[i], 0)) != NB_OK)
            return st;
        nbi_verdict_set(&r->verdict, r->judged[i].first, r->judged[i].rows, r->logits, r->o->threads);
    }
    return st;
}

/* ---- one layer ---- */

static nb_status divergence(run *r, uint32_t first, double *kl)
{
    *kl = 0;
    for (size_t i = 0; i < r->n_judged; i++) {
        const window *w = &r->judged[i];
        nb_status st = finish_window(r, w, first);
        if (st != NB_OK)
            return st;
        *kl += nbi_verdict_kl(&r->verdict, w->first, w->rows, r->logits, r->o->threads);
    }
    *kl /= (double)r->judged_rows;
    return isfinite(*kl) ? NB_OK : nbi_fail(NB_EFORMAT, "the logits become NaN or infinite");
}

static nb_status check_alone(const run *r, const nbi_weight *q)
{
    if (q->scheme.rotate_in || q->scheme.rotate_out || q->scheme.outliers)
        return nbi_fail(NB_EUNSUPPORTED,
                        "the method %s changes the inputs that layers share, so that one layer alone "
                        "cannot be measured: a search takes rtn, clip, hqq, gptq, awq",
                        r->o->method->name);
    return NB_OK;
}

static nb_status quantize(const run *r, const nbi_weight *w, const nbi_scheme *s, const nbi_inputs *in,
                          const char *module, nbi_weight *q)
{
    const nbi_sensitivity_options *o = r->o;
    const nbi_method_job job = {.src = w,
                                .scheme = s,
                                .scale_dtype = o->scale_dtype,
                                .in = in,
                                .options = o->options,
                                .be = o->m->be,
                                .module = module,
                                .threads = o->threads};
    nb_status st = o->method->quantize(q, &job);
    return st == NB_OK ? check_alone(r, q) : st;
}

/* *slot is where the model keeps the layer, `first` the layer from which it has to be computed again. */
static nb_status measure(run *r, const nbi_weight *w, const nbi_scheme *s, const nbi_inputs *in, const char *module,
                         nbi_linear **slot, uint32_t first, nbi_cost *cost)
{
    nbi_backend *be = r->o->m->be;
    nbi_weight q = {0};
    nbi_linear *l = NULL, *dense = *slot;
    nbi_weight_error e;
    nb_status st;
    NB_TRY(quantize(r, w, s, in, module, &q));
    NB_TRY(nbi_weight_error_of(&e, &q, w, in->gram, r->o->threads));
    NB_TRY(be->ops->linear_create(be, &l, &q));
    *slot = l;
    st = divergence(r, first, &cost->kl);
    *slot = dense;
    cost->error = e.signal > 0 ? e.noise / e.signal : 0;
    if (st == NB_OK && !isfinite(cost->error))
        st = nbi_fail(NB_EFORMAT, "the error of its outputs is not finite");
done:
    be->ops->linear_free(be, l);
    nbi_weight_free(&q);
    return st;
}

static nb_status measure_all(run *r, size_t module, size_t n, size_t k, bool bias, const nbi_inputs *in,
                             nbi_linear **slot, uint32_t first, nbi_cost *cost)
{
    const nbi_sensitivity_options *o = r->o;
    char name[96];
    nbi_weight w = {0};
    nb_status st;
    module_name(&o->m->cfg, module, name);
    NB_TRY(nbi_read_linear(&w, o->ckpt, NULL, name, n, k, bias));
    for (size_t s = 0; s < o->n_schemes; s++) {
        const size_t at = module * o->n_schemes + s;
        if (!o->wanted[at])
            continue;
        if (nbi_progress(o->callbacks, "measure", "layers", r->done++, r->total, 0))
            NB_TRY(nbi_fail(NB_ECANCELLED, "measuring sensitivities was cancelled"));
        cost[at] = (nbi_cost){0};
        st = o->scheme[s].bits ? measure(r, &w, &o->scheme[s], in, name, slot, first, &cost[at]) : NB_OK;
        if (st != NB_OK) {
            nbi_fail_in(st, "%s at %u bits: ", name, o->scheme[s].bits);
            goto done;
        }
    }
done:
    nbi_weight_free(&w);
    return st;
}

/* ---- the walk ---- */

/* The first projection of each port stands for all of it. */
static nb_status observe(void *user, uint32_t layer, size_t p, const void *x, size_t rows, size_t k)
{
    run *r = user;
    (void)layer;
    if (p != NBI_Q && p != NBI_O && p != NBI_GATE && p != NBI_DOWN)
        return NB_OK;
    nb_status st = r->o->m->be->ops->download_act(r->o->m->be, r->seen, x, rows * k);
    return st == NB_OK ? nbi_inputs_add(&r->in[nbi_port_of((nbi_proj)p)], r->seen, rows, r->o->threads) : st;
}

static void forget_inputs(run *r)
{
    for (int p = 0; p < NBI_N_PORTS; p++)
        nbi_inputs_free(&r->in[p]);
}

/* All windows through the dense layer i, its inputs seen on the way. */
static nb_status advance(run *r, uint32_t i)
{
    static const nbi_proj first[NBI_N_PORTS] = {NBI_Q, NBI_O, NBI_GATE, NBI_DOWN};
    const nbi_sensitivity_options *o = r->o;
    nb_status st;
    forget_inputs(r);
    for (int p = 0; p < NBI_N_PORTS; p++) {
        size_t n, k;
        nbi_proj_shape(&o->m->cfg, first[p], &n, &k);
        NB_TRY(nbi_inputs_init(&r->in[p], k, o->method->needs | NBI_NEEDS_GRAM));
    }
    for (size_t at = 0; at < o->n; at += o->ctx) {
        const size_t rows = rows_at(o, at);
        NB_TRY(nbi_residual_read(r->x, at, rows, r->work));
        NB_TRY(nbi_stream_layers(r->stream, i, i + 1, o->ids + at, rows, r->work, observe, r));
        NB_TRY(nbi_residual_write(r->x, at, rows, r->work));
    }
done:
    return st == NB_OK ? st : nbi_fail_in(st, "layer %u: ", i);
}

static nb_status measure_layer(run *r, uint32_t i, nbi_cost *cost)
{
    const nbi_config *c = &r->o->m->cfg;
    nb_status st = keep_judged(r);
    if (st == NB_OK)
        st = advance(r, i);
    for (int p = 0; p < NBI_N_PROJ && st == NB_OK; p++) {
        size_t n, k;
        nbi_proj_shape(c, (nbi_proj)p, &n, &k);
        st = measure_all(r, (size_t)i * NBI_N_PROJ + (size_t)p, n, k, nbi_proj_has_bias(c, (nbi_proj)p),
                         &r->in[nbi_port_of((nbi_proj)p)], &r->o->m->layers[i].proj[p], i, cost);
    }
    return st;
}

static nb_status head_inputs(run *r)
{
    const nbi_sensitivity_options *o = r->o;
    const size_t hidden = o->m->cfg.hidden;
    float *norm = NULL;
    nb_status st;
    forget_inputs(r);
    NB_TRY(nbi_inputs_init(&r->in[0], hidden, o->method->needs | NBI_NEEDS_GRAM));
    NB_TRY(room_for(&norm, 1, hidden, "a norm"));
    NB_TRY(o->m->be->ops->download(o->m->be, norm, o->m->final_norm, hidden * sizeof *norm));
    for (size_t at = 0; at < o->n; at += o->ctx) {
        const size_t rows = rows_at(o, at);
        NB_TRY(nbi_residual_read(r->x, at, rows, r->work));
        nbi_head_inputs(r->seen, r->work, norm, o->m->cfg.norm_eps, rows, hidden);
        NB_TRY(nbi_inputs_add(&r->in[0], r->seen, rows, o->threads));
    }
done:
    free(norm);
    return st;
}

static nb_status measure_head(run *r, nbi_cost *cost)
{
    const nbi_config *c = &r->o->m->cfg;
    nb_status st = head_inputs(r);
    if (st != NB_OK)
        return nbi_fail_in(st, "lm_head: ");
    if ((st = keep_judged(r)) != NB_OK)
        return st;
    return measure_all(r, (size_t)c->n_layers * NBI_N_PROJ, c->vocab, c->hidden, false, &r->in[0], &r->o->m->head,
                       c->n_layers, cost);
}

nb_status nbi_sensitivity(nbi_cost *cost, size_t *tokens, const nbi_sensitivity_options *o)
{
    run r = {.o = o};
    nb_status st;
    for (size_t i = 0; i < nbi_sensitivity_modules(&o->m->cfg) * o->n_schemes; i++)
        r.total += o->wanted[i];
    NB_TRY(prepare(&r));
    NB_TRY(judge_dense(&r));
    for (uint32_t i = 0; i < o->m->cfg.n_layers; i++)
        NB_TRY(measure_layer(&r, i, cost));
    if (!o->m->cfg.tied)
        NB_TRY(measure_head(&r, cost));
    (void)nbi_progress(o->callbacks, "measure", "layers", r.total, r.total, 0);
    *tokens = r.judged_rows;
done:
    forget_inputs(&r);
    nbi_stream_free(r.stream);
    nbi_verdict_free(&r.verdict);
    free(r.judged);
    nbi_residual_free(r.x);
    nbi_residual_free(r.before);
    free(r.work);
    free(r.logits);
    free(r.seen);
    return st;
}
