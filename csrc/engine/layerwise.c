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
    unsigned ports;                        /* of them that are looked at */
    nbi_inputs_device *there[NBI_N_PORTS]; /* where the device gathers, else NULL */
    uint64_t done;                         /* tokens through a layer */
    double seconds;                        /* that took */
};

const char *nbi_port_name(nbi_port p)
{
    static const char *const names[NBI_N_PORTS] = {"attn", "o", "ffn", "down"};
    return names[p];
}

size_t nbi_port_width(const nbi_config *c, nbi_port p)
{
    static const nbi_proj first[NBI_N_PORTS] = {NBI_Q, NBI_O, NBI_GATE, NBI_DOWN};
    size_t n, k;
    nbi_proj_shape(c, first[p], &n, &k);
    return k;
}

void nbi_host_layer_free(nbi_host_layer *l)
{
    for (int p = 0; p < NBI_N_PROJ; p++)
        nbi_weight_free(&l->w[p]);
    free(l->norm[0]);
    free(l->norm[1]);
    free(l->key_grid);
    *l = (nbi_host_layer){0};
}

/* ---- a host layer as a source of weights ---- */

typedef struct supply {
    const nbi_host_layer *layer;
    size_t hidden;
    uint32_t index;
} supply;

/* A view: what building frees belongs to the copy. */
static nb_status supply_linear(void *self, const char *module, size_t n, size_t k, bool bias, nbi_weight *out)
{
    const supply *s = self;
    char name[96];
    (void)n;
    (void)k;
    (void)bias;
    for (int p = 0; p < NBI_N_PROJ; p++) {
        nbi_module_name(name, s->index, (nbi_proj)p);
        if (strcmp(name, module) != 0)
            continue;
        const nbi_weight *w = &s->layer->w[p];
        return nbi_weight_copy(out, w);
    }
    return nbi_fail(NB_EINTERNAL, "layer %u has no module %s", s->index, module);
}

static nb_status supply_vector(void *self, const char *name, size_t n, float *out)
{
    const supply *s = self;
    memcpy(out, s->layer->norm[strstr(name, "post_attention") != NULL], n * sizeof *out);
    return NB_OK;
}

static nb_status load(nbi_layerwise *l, uint32_t i, const nbi_host_layer *layer)
{
    supply s = {layer, l->o.shell->cfg.hidden, i};
    nb_status st =
        nbi_layer_load(l->o.shell, &(nbi_source){.linear = supply_linear, .vector = supply_vector, .self = &s}, i);
    if (st != NB_OK)
        nbi_layer_unload(l->o.shell, i);
    return st;
}

/* ---- the plan ---- */

typedef struct plan {
    uint64_t stream, statistics, layer, window, budget;
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

uint64_t nbi_statistics_bytes(const nbi_config *c, unsigned needs)
{
    const uint64_t gram = needs & NBI_NEEDS_GRAM ? sizeof(float) : 0;
    uint64_t bytes = 0;
    size_t widest = 0;
    for (int p = 0; p < NBI_N_PORTS; p++) {
        const size_t k = nbi_port_width(c, (nbi_port)p);
        widest = k > widest ? k : widest;
        bytes += times(k, sizeof(double) + 3 * sizeof(float)) + times(times(k, k), gram);
        bytes += needs & NBI_NEEDS_RANGE ? 2 * sizeof(nbi_observer) : 0;
    }
    return bytes + times(times(widest, widest), gram);
}

static size_t heads_width(const nbi_config *c)
{
    return ((size_t)c->n_heads + 2 * c->n_kv_heads) * c->head_dim;
}

/* Of what one look at a window takes: the inputs of a port, or queries, keys and values. */
static size_t widest_of(const nbi_layerwise_options *o)
{
    const nbi_config *c = &o->shell->cfg;
    size_t widest = o->keys ? heads_width(c) : 0;
    for (int i = 0; i < NBI_N_PORTS; i++) {
        const size_t k = nbi_port_width(c, (nbi_port)i);
        widest = k > widest ? k : widest;
    }
    return widest;
}

/* Weights of a layer are there in fp32, as the device packs them and as codes. */
static plan make_plan(const nbi_layerwise_options *o)
{
    const nbi_config *c = &o->shell->cfg;
    plan p = {.stream = times(times(o->n, c->hidden), sizeof(float)),
              .statistics = nbi_statistics_bytes(c, o->needs),
              .budget = nbi_calib_budget(o->memory, o->shell->be)};
    size_t n, k;
    for (int i = 0; i < NBI_N_PROJ; i++) {
        nbi_proj_shape(c, (nbi_proj)i, &n, &k);
        p.layer += times(times(n, k), 2 * sizeof(float) + 1);
    }
    p.window = times(times(o->ctx, widest_of(o) + c->hidden), sizeof(float)) +
               nbi_workspace_bytes(o->shell,
                                   &(nbi_workspace_limits){.rows = o->ctx, .seqs = 1, .logits = 1, .context = o->ctx});
    p.spill = p.stream + p.statistics + p.layer + p.window > p.budget;
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
    const size_t widest = widest_of(o);
    nbi_layerwise *l = calloc(1, sizeof *l);
    if (!l)
        return nbi_fail_nomem("calibration", sizeof *l);
    one.cfg.n_layers = 1;
    one.cfg.rotate_keys = o->keys && o->rotate_keys;
    l->o = *o;
    NB_TRY(tell_plan(o, &p));
    NB_TRY(nbi_residual_create(&l->x, o->n, c->hidden, p.spill ? o->folder : NULL));
    if (!(l->work = malloc(o->ctx * c->hidden * sizeof *l->work)) ||
        !(l->seen = malloc(o->ctx * widest * sizeof *l->seen)) || !(l->pages = malloc(n_pages * sizeof *l->pages)))
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
    free(l);
}

/* Keys, where a layer's first port is looked at. */
static nb_status see_keys(nbi_layerwise *l, size_t rows)
{
    nbi_backend *be = l->o.shell->be;
    const nbi_config *c = &l->o.shell->cfg;
    if (!l->o.keys || !(l->ports >> NBI_PORT_ATTN & 1))
        return NB_OK;
    nb_status st = be->ops->download_act(be, l->seen, nbi_workspace_heads(l->w), rows * heads_width(c));
    return st == NB_OK ? nbi_key_stats_add(l->o.keys, l->seen, rows) : st;
}

/* A tap: the first projection of each port stands for all of it. */
static nb_status observe(void *user, uint32_t layer, nbi_proj p, const void *x, size_t rows, size_t k)
{
    nbi_layerwise *l = user;
    nbi_backend *be = l->o.shell->be;
    const nbi_port port = nbi_port_of(p);
    char name[96];
    nb_status st = NB_OK;
    if (p == NBI_O && (st = see_keys(l, rows)) != NB_OK)
        return nbi_fail_in(st, "layer %u: ", layer);
    if ((p != NBI_Q && p != NBI_O && p != NBI_GATE && p != NBI_DOWN) || !(l->ports >> port & 1))
        return NB_OK;
    if (l->there[port])
        st = nbi_inputs_device_add(l->there[port], x, rows);
    else if ((st = be->ops->download_act(be, l->seen, x, rows * k)) == NB_OK)
        st = nbi_inputs_add(&l->in[port], l->seen, rows, l->o.threads);
    nbi_module_name(name, layer, p);
    return st == NB_OK ? st : nbi_fail_in(st, "%s: ", name);
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

static nb_status open_ports(nbi_layerwise *l, unsigned ports, nbi_inputs *in)
{
    nbi_backend *be = l->o.shell->be;
    nb_status st = NB_OK;
    for (int p = 0; p < NBI_N_PORTS; p++) {
        if (!(ports >> p & 1))
            continue;
        NB_TRY(nbi_inputs_init(&in[p], nbi_port_width(&l->o.shell->cfg, (nbi_port)p), l->o.needs));
        if (be->quant)
            NB_TRY(nbi_inputs_device_create(&l->there[p], be, &in[p], l->o.ctx));
    }
    l->in = in;
    l->ports = ports;
done:
    return st;
}

nb_status nbi_layerwise_observe(nbi_layerwise *l, uint32_t i, const nbi_host_layer *layer, unsigned ports, bool move,
                                nbi_inputs *in)
{
    nb_status st;
    for (int p = 0; p < NBI_N_PORTS; p++)
        if (ports >> p & 1)
            in[p] = (nbi_inputs){0};
    if (l->o.keys && ports >> NBI_PORT_ATTN & 1)
        nbi_key_stats_clear(l->o.keys);
    NB_TRY(open_ports(l, ports, in));
    NB_TRY(load(l, i, layer));
    NB_TRY(feed(l, i, move, observe));
    for (int p = 0; p < NBI_N_PORTS; p++)
        if (l->there[p])
            NB_TRY(nbi_inputs_device_finish(l->there[p]));
done:
    nbi_layer_unload(l->o.shell, i);
    for (int p = 0; p < NBI_N_PORTS; p++) {
        nbi_inputs_device_free(l->there[p]);
        l->there[p] = NULL;
        if (st != NB_OK && ports >> p & 1)
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
