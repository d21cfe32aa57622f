#include "engine/layerwise.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

struct nbi_layerwise {
    nb_model *m;
    const int32_t *ids;
    size_t n, ctx;
    unsigned needs;
    int threads;
    nbi_kv kv; /* of one layer, one window */
    nbi_workspace *w;
    int32_t *pages;
    float *x;    /* [n][hidden] the residual stream before the next layer */
    float *work; /* [ctx][hidden] a window of it */
    float *seen; /* [ctx][widest] one batch of a layer's inputs */
    nbi_inputs *in;
};

nbi_port nbi_port_of(nbi_proj p)
{
    return p <= NBI_V ? NBI_PORT_ATTN : p == NBI_O ? NBI_PORT_O : p == NBI_DOWN ? NBI_PORT_DOWN : NBI_PORT_FFN;
}

void nbi_host_layer_free(nbi_host_layer *l)
{
    for (int p = 0; p < NBI_N_PROJ; p++)
        nbi_weight_free(&l->w[p]);
    free(l->norm[0]);
    free(l->norm[1]);
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
    supply s = {layer, l->m->cfg.hidden, i};
    nb_status st = nbi_layer_load(l->m, &(nbi_source){.linear = supply_linear, .vector = supply_vector, .self = &s}, i);
    if (st != NB_OK)
        nbi_layer_unload(l->m, i);
    return st;
}

/* ---- windows ---- */

nb_status nbi_layerwise_create(nbi_layerwise **out, nb_model *shell, const int32_t *ids, size_t n, size_t ctx,
                               unsigned needs, int threads)
{
    nb_status st = NB_OK;
    const nbi_config *c = &shell->cfg;
    const size_t q = (size_t)c->n_heads * c->head_dim, wide = c->ffn > c->hidden ? c->ffn : c->hidden;
    const size_t widest = wide > q ? wide : q, n_pages = nbi_ceil_div(ctx, NBI_PAGE_TOKENS);
    nb_model one = *shell; /* a cache for one layer */
    size_t bytes;
    nbi_layerwise *l = calloc(1, sizeof *l);
    if (!l)
        return nbi_fail_nomem("calibration", sizeof *l);
    one.cfg.n_layers = 1;
    l->m = shell;
    l->ids = ids;
    l->n = n;
    l->ctx = ctx;
    l->needs = needs;
    l->threads = threads;
    if (!nbi_mul(n, c->hidden * sizeof(float), &bytes) || !(l->x = malloc(bytes)) ||
        !(l->work = malloc(ctx * c->hidden * sizeof *l->work)) || !(l->seen = malloc(ctx * widest * sizeof *l->seen)) ||
        !(l->pages = malloc(n_pages * sizeof *l->pages)))
        NB_TRY(nbi_fail_nomem("the residual stream of the calibration text", n * c->hidden * sizeof(float)));
    for (size_t i = 0; i < n_pages; i++)
        l->pages[i] = (int32_t)i;
    NB_TRY(nbi_kv_create(&l->kv, &one, (uint32_t)n_pages, shell->be->default_kv));
    NB_TRY(nbi_workspace_create(&l->w, shell,
                                &(nbi_workspace_limits){.rows = ctx, .seqs = 1, .logits = 1, .context = ctx}));
    for (size_t at = 0; at < n; at += ctx) {
        const size_t rows = n - at < ctx ? n - at : ctx;
        const nbi_seq seq = {.n_rows = (uint32_t)rows, .pages = l->pages};
        const nbi_batch batch = {.rows = rows, .n_seqs = 1, .ids = ids + at, .seqs = &seq};
        NB_TRY(nbi_forward_embed(shell, l->w, &batch, l->x + at * c->hidden));
    }
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
    free(l->pages);
    free(l->x);
    free(l->work);
    free(l->seen);
    free(l);
}

/* A tap: the first projection of each port stands for all of it. */
static nb_status observe(void *user, uint32_t layer, nbi_proj p, const void *x, size_t rows, size_t k)
{
    nbi_layerwise *l = user;
    (void)layer;
    if (p != NBI_Q && p != NBI_O && p != NBI_GATE && p != NBI_DOWN)
        return NB_OK;
    nb_status st = l->m->be->ops->download_act(l->m->be, l->seen, x, rows * k);
    return st == NB_OK ? nbi_inputs_add(&l->in[nbi_port_of(p)], l->seen, rows, l->threads) : st;
}

/* All windows through layer i; keep: the stream moves on. */
static nb_status feed(nbi_layerwise *l, uint32_t i, bool keep, nbi_tap_fn tap)
{
    const size_t hidden = l->m->cfg.hidden;
    for (size_t at = 0; at < l->n; at += l->ctx) {
        const size_t rows = l->n - at < l->ctx ? l->n - at : l->ctx;
        const nbi_seq seq = {.n_rows = (uint32_t)rows, .pages = l->pages};
        const nbi_batch batch = {.rows = rows, .n_seqs = 1, .ids = l->ids + at, .seqs = &seq};
        float *x = l->x + at * hidden;
        if (!keep)
            x = memcpy(l->work, x, rows * hidden * sizeof *x);
        nb_status st = nbi_forward_layer(l->m, i, &l->kv.layers[0], l->w, &batch, x, tap, l);
        if (st != NB_OK)
            return st;
    }
    return NB_OK;
}

nb_status nbi_layerwise_observe(nbi_layerwise *l, uint32_t i, const nbi_host_layer *layer, nbi_inputs *in)
{
    static const nbi_proj first[NBI_N_PORTS] = {NBI_Q, NBI_O, NBI_GATE, NBI_DOWN};
    nb_status st = NB_OK;
    memset(in, 0, NBI_N_PORTS * sizeof *in);
    for (int p = 0; p < NBI_N_PORTS; p++)
        NB_TRY(nbi_inputs_init(&in[p], layer->w[first[p]].k, l->needs));
    NB_TRY(load(l, i, layer));
    l->in = in;
    st = feed(l, i, false, observe);
    nbi_layer_unload(l->m, i);
done:
    for (int p = 0; p < NBI_N_PORTS && st != NB_OK; p++)
        nbi_inputs_free(&in[p]);
    return st;
}

nb_status nbi_layerwise_advance(nbi_layerwise *l, uint32_t i, const nbi_host_layer *layer)
{
    nb_status st = load(l, i, layer);
    if (st == NB_OK)
        st = feed(l, i, true, NULL);
    nbi_layer_unload(l->m, i);
    return st;
}
