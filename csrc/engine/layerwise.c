#include "engine/layerwise.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/log.h"
#include "engine/residual.h"
#include "quant/inputs_device.h"

struct nbi_layerwise {
    nbi_layerwise_options o;
    nbi_kv kv; /* of one layer, one window */
    nbi_workspace *w;
    int32_t *pages;
    nbi_residual *x; /* before the next layer */
    float *work;     /* [ctx][hidden] a window of it */
    float *seen;     /* [ctx][widest] one batch of a layer's inputs */
    nbi_inputs *in;
    nbi_watch watch;
    nbi_inputs_device **there; /* [nbi_layer_places()]: where the device gathers, else NULL */
    uint32_t ffns;             /* whose statistics are gathered at a time */
    uint64_t done;             /* tokens through a layer */
    double seconds;            /* that took */
};

const char *nbi_port_name(nbi_port p)
{
    static const char *const names[NBI_N_PORTS] = {"attn", "o", "ffn", "down"};
    return names[p];
}

const char *nbi_norm_name(int norm)
{
    static const char *const names[NBI_N_NORMS] = {"input_layernorm", "post_attention_layernorm", "self_attn.q_norm",
                                                   "self_attn.k_norm"};
    return names[norm];
}

size_t nbi_norm_width(const nbi_config *c, int norm)
{
    return norm < 2 ? c->hidden : c->head_norms ? c->head_dim : 0;
}

nb_status nbi_host_layer_init(nbi_host_layer *l, const nbi_config *c)
{
    const size_t n = nbi_layer_modules(c);
    *l = (nbi_host_layer){.n = n, .w = calloc(n, sizeof *l->w)};
    return l->w ? NB_OK : nbi_fail_nomem("a layer", n * sizeof *l->w);
}

void nbi_host_layer_free(nbi_host_layer *l)
{
    for (size_t p = 0; l->w && p < l->n; p++)
        nbi_weight_free(&l->w[p]);
    free(l->w);
    for (int i = 0; i < NBI_N_NORMS; i++)
        free(l->norm[i]);
    *l = (nbi_host_layer){0};
}

/* ---- a host layer as a source of weights ---- */

typedef struct supply {
    const nbi_host_layer *layer;
    const nbi_config *cfg;
    uint32_t index;
} supply;

/* A view: what building frees belongs to the copy. */
static nb_status supply_linear(void *self, const char *module, size_t n, size_t k, bool bias, nbi_weight *out)
{
    const supply *s = self;
    (void)n;
    (void)k;
    (void)bias;
    for (size_t p = 0; p < s->layer->n; p++) {
        nbi_module at;
        nbi_module_at(s->cfg, s->index, p, &at);
        if (strcmp(at.name, module) == 0)
            return nbi_weight_copy(out, &s->layer->w[p]);
    }
    return nbi_fail(NB_EINTERNAL, "layer %u has no module %s", s->index, module);
}

static nb_status supply_vector(void *self, const char *name, size_t n, float *out)
{
    const supply *s = self;
    for (int i = 0; i < NBI_N_NORMS; i++)
        if (strstr(name, nbi_norm_name(i)) && s->layer->norm[i])
            memcpy(out, s->layer->norm[i], n * sizeof *out);
    return NB_OK;
}

static nb_status load(nbi_layerwise *l, uint32_t i, const nbi_host_layer *layer)
{
    supply s = {layer, &l->o.shell->cfg, i};
    nb_status st =
        nbi_layer_load(l->o.shell, &(nbi_source){.linear = supply_linear, .vector = supply_vector, .self = &s}, i);
    if (st != NB_OK)
        nbi_layer_unload(l->o.shell, i);
    return st;
}

/* ---- the plan ---- */

typedef struct plan {
    uint64_t stream, statistics, layer, window, budget;
    uint32_t ffns; /* whose statistics are there at a time */
    bool spill;
} plan;

static uint64_t times(uint64_t a, uint64_t b)
{
    return b && a > UINT64_MAX / 16 / b ? UINT64_MAX / 16 : a * b; /* so that sums of some stay in range */
}

uint64_t nbi_calib_budget(uint64_t asked, nbi_backend *be)
{
    if (asked)
        return asked;
    const long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    uint64_t half = pages > 0 && size > 0 ? (uint64_t)pages * (uint64_t)size / 2 : UINT64_MAX / 2;
    const uint64_t free = strcmp(be->name, "cpu") == 0 ? be->ops->free_bytes(be) : half;
    return free < half ? free : half;
}

static uint64_t place_bytes(const nbi_config *c, size_t place, unsigned needs)
{
    const uint64_t k = nbi_place_width(c, place);
    return times(k, sizeof(double) + 3 * sizeof(float)) +
           (needs & NBI_NEEDS_GRAM ? times(times(k, k), sizeof(float)) : 0) +
           (needs & NBI_NEEDS_RANGE ? 2 * sizeof(nbi_observer) : 0);
}

static size_t widest_place(const nbi_config *c)
{
    size_t widest = 0;
    for (size_t p = 0; p < NBI_N_PORTS; p++) {
        const size_t k = nbi_place_width(c, p);
        widest = k > widest ? k : widest;
    }
    return widest;
}

uint64_t nbi_statistics_bytes(const nbi_config *c, unsigned needs, uint32_t ffns)
{
    const uint64_t widest = widest_place(c), copy = needs & NBI_NEEDS_GRAM ? times(times(widest, widest), 4) : 0;
    return place_bytes(c, NBI_PORT_ATTN, needs) + place_bytes(c, NBI_PORT_O, needs) +
           times(ffns, place_bytes(c, NBI_PORT_FFN, needs) + place_bytes(c, NBI_PORT_DOWN, needs)) +
           (c->n_experts ? place_bytes(c, NBI_PORT_FFN, needs) : 0) + copy;
}

/* Weights of a layer are there in fp32, as the device packs them and as codes.  What does not fit goes to a file if it is the
 * stream, and takes turns if it is experts. */
static plan make_plan(const nbi_layerwise_options *o)
{
    const nbi_config *c = &o->shell->cfg;
    plan p = {.stream = times(times(o->n, c->hidden), sizeof(float)),
              .ffns = nbi_layer_ffns(c),
              .budget = nbi_calib_budget(o->memory, o->shell->be)};
    nbi_module at;
    for (size_t i = 0; i < nbi_layer_modules(c); i++) {
        nbi_module_at(c, 0, i, &at);
        p.layer += times(times(at.n, at.k), 2 * sizeof(float) + 1);
    }
    p.window = times(times(o->ctx, widest_place(c) + c->hidden), sizeof(float)) +
               nbi_workspace_bytes(o->shell,
                                   &(nbi_workspace_limits){.rows = o->ctx, .seqs = 1, .logits = 1, .context = o->ctx});
    p.statistics = nbi_statistics_bytes(c, o->needs, p.ffns);
    p.spill = p.stream + p.statistics + p.layer + p.window > p.budget;
    for (; p.ffns > 1 && p.spill && p.statistics + p.layer + p.window > p.budget; p.ffns--)
        p.statistics = nbi_statistics_bytes(c, o->needs, p.ffns - 1);
    return p;
}

static double mib(uint64_t bytes)
{
    return (double)bytes / (double)(1 << 20);
}

static nb_status tell_plan(const nbi_layerwise_options *o, const plan *p)
{
    const uint64_t least = p->statistics + p->layer + p->window;
    if (o->memory && least > o->memory)
        return nbi_fail(
            NB_ELIMIT,
            "calibration is allowed %.1f MiB of memory, and a layer (%.1f MiB), its statistics (%.1f MiB) and a "
            "window of %zu tokens (%.1f MiB) take %.1f MiB: allow at least that, or use a smaller window",
            mib(o->memory), mib(p->layer), mib(p->statistics), o->ctx, mib(p->window), mib(least));
    nbi_log(
        o->callbacks, NB_LOG_INFO,
        "calibration: %zu tokens in windows of %zu through %u layers; activations %.1f MiB %s, statistics %.1f MiB, "
        "a layer %.1f MiB, a window %.1f MiB",
        o->n, o->ctx, o->shell->cfg.n_layers, mib(p->stream), p->spill ? "in a file" : "in memory", mib(p->statistics),
        mib(p->layer), mib(p->window));
    if (p->ffns < nbi_layer_ffns(&o->shell->cfg))
        nbi_log(o->callbacks, NB_LOG_INFO, "statistics of %u of %u experts at a time, to stay within %.1f MiB", p->ffns,
                o->shell->cfg.n_experts, mib(p->budget));
    return NB_OK;
}

/* ---- windows ---- */

static nbi_batch batch_at(const nbi_layerwise *l, size_t at, nbi_seq *seq)
{
    const size_t rows = l->o.n - at < l->o.ctx ? l->o.n - at : l->o.ctx;
    *seq = (nbi_seq){.n_rows = (uint32_t)rows, .pages = l->pages};
    return (nbi_batch){.rows = rows, .n_seqs = 1, .ids = l->o.ids + at, .seqs = seq};
}

/* The table is needed once, and is the largest of all weights. */
static nb_status embed_all(nbi_layerwise *l)
{
    nb_model *m = l->o.shell;
    nb_status st = NB_OK;
    nbi_seq seq;
    for (size_t at = 0; at < l->o.n; at += l->o.ctx) {
        const nbi_batch batch = batch_at(l, at, &seq);
        NB_TRY(nbi_forward_embed(m, l->w, &batch, l->work));
        NB_TRY(nbi_residual_write(l->x, at, batch.rows, l->work));
    }
    m->be->ops->linear_free(m->be, m->embed);
    m->embed = NULL;
done:
    return st;
}

nb_status nbi_layerwise_create(nbi_layerwise **out, const nbi_layerwise_options *o)
{
    nb_status st = NB_OK;
    nb_model one = *o->shell; /* a cache for one layer */
    const nbi_config *c = &one.cfg;
    const size_t n_pages = nbi_ceil_div(o->ctx, NBI_PAGE_TOKENS);
    const plan p = make_plan(o);
    const size_t widest = widest_place(c);
    nbi_layerwise *l = calloc(1, sizeof *l);
    if (!l)
        return nbi_fail_nomem("calibration", sizeof *l);
    one.cfg.n_layers = 1;
    l->o = *o;
    l->ffns = p.ffns;
    NB_TRY(tell_plan(o, &p));
    NB_TRY(nbi_residual_create(&l->x, o->n, c->hidden, p.spill ? o->folder : NULL));
    if (!(l->work = malloc(o->ctx * c->hidden * sizeof *l->work)) ||
        !(l->seen = malloc(o->ctx * widest * sizeof *l->seen)) ||
        !(l->there = calloc(nbi_layer_places(c), sizeof(nbi_inputs_device *))) ||
        !(l->pages = malloc(n_pages * sizeof *l->pages)))
        NB_TRY(nbi_fail_nomem("a window of the calibration text", o->ctx * widest * sizeof(float)));
    for (size_t i = 0; i < n_pages; i++)
        l->pages[i] = (int32_t)i;
    NB_TRY(nbi_kv_create(&l->kv, &one, (uint32_t)n_pages, one.be->default_kv));
    NB_TRY(nbi_workspace_create(&l->w, o->shell,
                                &(nbi_workspace_limits){.rows = o->ctx, .seqs = 1, .logits = 1, .context = o->ctx}));
    NB_TRY(embed_all(l));
    *out = l;
    l = NULL;
done:
    nbi_layerwise_free(l);
    return st;
}

void nbi_layerwise_free(nbi_layerwise *l)
{
    if (!l)
        return;
    nbi_workspace_free(l->w);
    nbi_kv_free(&l->kv);
    nbi_residual_free(l->x);
    free(l->pages);
    free(l->work);
    free(l->seen);
    free(l->there);
    free(l);
}

uint32_t nbi_layerwise_ffns(const nbi_layerwise *l)
{
    return l->ffns;
}

bool nbi_watched(const nbi_config *c, const nbi_watch *w, size_t place)
{
    const nbi_port port = nbi_place_port(place);
    const size_t ffn = (place - NBI_PORT_FFN) / 2;
    if (port >= NBI_PORT_FFN && ffn == nbi_layer_ffns(c))
        return w->router;
    return (w->ports >> port & 1) && (port < NBI_PORT_FFN || (ffn >= w->ffn0 && ffn < w->ffn1));
}

/* A tap: the first module of each place stands for all of it. */
static nb_status observe(void *user, uint32_t layer, size_t module, const void *x, size_t rows, size_t k)
{
    nbi_layerwise *l = user;
    nbi_backend *be = l->o.shell->be;
    nbi_module at;
    nb_status st;
    nbi_module_at(&l->o.shell->cfg, layer, module, &at);
    if (at.proj == NBI_K || at.proj == NBI_V || at.proj == NBI_UP ||
        !nbi_watched(&l->o.shell->cfg, &l->watch, at.place))
        return NB_OK;
    if (l->there[at.place])
        st = nbi_inputs_device_add(l->there[at.place], x, rows);
    else if ((st = be->ops->download_act(be, l->seen, x, rows * k)) == NB_OK)
        st = nbi_inputs_add(&l->in[at.place], l->seen, rows, l->o.threads);
    return st == NB_OK ? st : nbi_fail_in(st, "%s: ", at.name);
}

static nb_status tick(nbi_layerwise *l, uint32_t i)
{
    char unit[64];
    const uint64_t total = (uint64_t)l->o.passes * l->o.n;
    snprintf(unit, sizeof unit, "tokens, layer %u of %u", i + 1, l->o.shell->cfg.n_layers);
    if (nbi_progress(l->o.callbacks, "calibrate", unit, l->done, total > l->done ? total : l->done,
                     l->seconds > 0 ? (double)l->done / l->seconds : 0))
        return nbi_fail(NB_ECANCELLED, "calibration was cancelled");
    return NB_OK;
}

/* All windows through layer i; keep: the stream moves on. */
static nb_status feed(nbi_layerwise *l, uint32_t i, bool keep, nbi_tap_fn tap)
{
    nb_status st = NB_OK;
    nbi_seq seq;
    for (size_t at = 0; at < l->o.n; at += l->o.ctx) {
        const nbi_batch batch = batch_at(l, at, &seq);
        const double start = nbi_now();
        NB_TRY(tick(l, i));
        NB_TRY(nbi_residual_read(l->x, at, batch.rows, l->work));
        NB_TRY(nbi_forward_layer(l->o.shell, i, &l->kv.layers[0], l->w, &batch, l->work, tap, l));
        if (keep)
            NB_TRY(nbi_residual_write(l->x, at, batch.rows, l->work));
        l->done += batch.rows;
        l->seconds += nbi_now() - start;
    }
    NB_TRY(tick(l, i));
done:
    return st;
}

static nb_status open_places(nbi_layerwise *l, const nbi_watch *watch, nbi_inputs *in)
{
    const nbi_config *c = &l->o.shell->cfg;
    nbi_backend *be = l->o.shell->be;
    nb_status st = NB_OK;
    for (size_t p = 0; p < nbi_layer_places(c); p++) {
        if (!nbi_watched(c, watch, p))
            continue;
        NB_TRY(nbi_inputs_init(&in[p], nbi_place_width(c, p), l->o.needs));
        if (be->quant)
            NB_TRY(nbi_inputs_device_create(&l->there[p], be, &in[p], l->o.ctx));
    }
    l->in = in;
    l->watch = *watch;
done:
    return st;
}

nb_status nbi_layerwise_observe(nbi_layerwise *l, uint32_t i, const nbi_host_layer *layer, const nbi_watch *watch,
                                bool move, nbi_inputs *in)
{
    const nbi_config *c = &l->o.shell->cfg;
    const size_t places = nbi_layer_places(c);
    nb_status st;
    for (size_t p = 0; p < places; p++)
        if (nbi_watched(c, watch, p))
            in[p] = (nbi_inputs){0};
    NB_TRY(open_places(l, watch, in));
    NB_TRY(load(l, i, layer));
    NB_TRY(feed(l, i, move, observe));
    for (size_t p = 0; p < places; p++)
        if (l->there[p])
            NB_TRY(nbi_inputs_device_finish(l->there[p]));
done:
    nbi_layer_unload(l->o.shell, i);
    for (size_t p = 0; p < places; p++) {
        nbi_inputs_device_free(l->there[p]);
        l->there[p] = NULL;
        if (st != NB_OK && nbi_watched(c, watch, p))
            nbi_inputs_free(&in[p]);
    }
    return st;
}

nb_status nbi_layerwise_advance(nbi_layerwise *l, uint32_t i, const nbi_host_layer *layer)
{
    nb_status st = load(l, i, layer);
    if (st == NB_OK)
        st = feed(l, i, true, NULL);
    nbi_layer_unload(l->o.shell, i);
    return st;
}

nb_status nbi_layerwise_head(nbi_layerwise *l, const float *norm, nbi_inputs *in)
{
    const nbi_config *c = &l->o.shell->cfg;
    const size_t hidden = c->hidden;
    nb_status st = nbi_inputs_init(in, hidden, l->o.needs);
    for (size_t at = 0; at < l->o.n && st == NB_OK; at += l->o.ctx) {
        const size_t rows = l->o.n - at < l->o.ctx ? l->o.n - at : l->o.ctx;
        if ((st = nbi_residual_read(l->x, at, rows, l->work)) != NB_OK)
            break;
        nbi_head_inputs(l->seen, l->work, norm, c->norm_eps, rows, hidden);
        st = nbi_inputs_add(in, l->seen, rows, l->o.threads);
    }
    if (st != NB_OK)
        nbi_inputs_free(in);
    return st;
}
