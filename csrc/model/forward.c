/* One straight-line forward pass for every Llama-like model, with or without experts, over a batch of rows from many sequences. */
#include <math.h>
#include <stdlib.h>

#include "base/checked.h"
#include "model/model.h"

struct nbi_workspace {
    const nb_model *m;
    nbi_backend *be;
    size_t max_rows, max_logits;
    nbi_step *step;
    float *x;      /* [rows][hidden]  residual stream */
    void *h;       /* [rows][hidden]  normed input of the next linear layers */
    void *att;     /* [rows][n_heads][head_dim], in the place of h, which has been read when it is written */
    void *act;     /* [rows][ffn], likewise */
    void *gate_up; /* [rows][2][ffn] */
    void *qkv;     /* [rows][n_heads + 2 n_kv_heads][head_dim], in the place of gate_up */
    float *router; /* [rows][n_experts], and what experts() needs; nothing where there are none */
    void *experts;
    float *out;    /* [rows][out_width]  what a transform is about to place; nothing where no layer has one */
    float *last;   /* [max_logits][hidden]  rows of x that become logits */
    float *logits; /* [max_logits][vocab] */
    void *scratch;
    void *drawing; /* of sample() */
};

enum { N_PARTS = 10 };
typedef struct part {
    void **p;
    size_t bytes; /* SIZE_MAX: too large */
} part;

static size_t floats(size_t rows, size_t k)
{
    size_t n;
    return nbi_mul(rows, k, &n) && nbi_mul(n, sizeof(float), &n) ? n : SIZE_MAX;
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

nbi_experts nbi_experts_of(const nbi_config *c, const nbi_layer *l)
{
    return (nbi_experts){.n = c->n_experts,
                         .top_k = c->top_k,
                         .normalize = c->norm_top_k,
                         .hidden = c->hidden,
                         .ffn = c->ffn,
                         .linear = l ? l->expert : NULL};
}

static size_t experts_bytes(const nb_model *m, size_t rows)
{
    const nbi_experts e = nbi_experts_of(&m->cfg, NULL);
    return e.n && m->be->ops->experts ? m->be->ops->experts_bytes(m->be, &e, rows) : 0;
}

/* Sizes of all device buffers, in one place for allocation and for the memory plan. */
static size_t parts(part out[N_PARTS], nbi_workspace *w, const nb_model *m, size_t rows, size_t logits)
{
    const nbi_config *c = &m->cfg;
    const size_t q = (size_t)c->n_heads * c->head_dim, qkv = q + 2 * (size_t)c->n_kv_heads * c->head_dim;
    const size_t most = rows > logits ? rows : logits; /* h serves the final norm, too */
    const size_t ffn = c->n_experts ? 0 : c->ffn;      /* experts have buffers of their own */
    size_t widest = c->ffn > c->hidden ? c->ffn : c->hidden;
    size_t (*act)(nbi_backend *, size_t, size_t) = m->be->ops->act_bytes;
    const part p[N_PARTS] = {
        {(void **)&w->x, floats(rows, c->hidden)},
        {&w->h, larger(act(m->be, most, c->hidden), larger(act(m->be, rows, q), act(m->be, rows, ffn)))},
        {&w->gate_up, larger(act(m->be, rows, qkv), act(m->be, rows, 2 * ffn))},
        {(void **)&w->router, floats(rows, c->n_experts)},
        {&w->experts, experts_bytes(m, rows)},
        {(void **)&w->out, floats(rows, m->out_width)},
        {(void **)&w->last, floats(logits, c->hidden)},
        {(void **)&w->logits, floats(logits, c->vocab)},
        {&w->scratch, m->be->ops->scratch_bytes(m->be, most, widest > q ? widest : q)},
        {&w->drawing, m->be->ops->sample ? m->be->ops->sample_bytes(m->be, logits) : 0},
    };
    size_t total = 0;
    for (int i = 0; i < N_PARTS; i++) {
        out[i] = p[i];
        total = p[i].bytes > SIZE_MAX - total ? SIZE_MAX : total + p[i].bytes;
    }
    return total;
}

static nbi_step_limits step_limits(const nb_model *m, const nbi_workspace_limits *l)
{
    return (nbi_step_limits){.rows = l->rows,
                             .seqs = l->seqs,
                             .logits = l->logits,
                             .seq_pages = nbi_ceil_div(l->context, NBI_PAGE_TOKENS),
                             .head_dim = m->cfg.head_dim,
                             .inv_freq = m->inv_freq,
                             .n_heads = m->cfg.n_heads,
                             .n_kv_heads = m->cfg.n_kv_heads};
}

/* All of it: the buffers, and what a step takes. */
static size_t plan(part out[N_PARTS], nbi_workspace *w, const nb_model *m, const nbi_workspace_limits *l)
{
    const nbi_step_limits step = step_limits(m, l);
    const size_t buffers = parts(out, w, m, l->rows, l->logits),
                 more = m->be->ops->step_bytes ? m->be->ops->step_bytes(m->be, &step) : 0;
    return more > SIZE_MAX - buffers ? SIZE_MAX : buffers + more;
}

uint64_t nbi_workspace_bytes(const nb_model *m, const nbi_workspace_limits *limits)
{
    nbi_workspace w;
    part p[N_PARTS];
    return plan(p, &w, m, limits);
}

nb_status nbi_workspace_create(nbi_workspace **out, const nb_model *m, const nbi_workspace_limits *lim)
{
    nb_status st = NB_OK;
    part p[N_PARTS];
    nbi_workspace *w = calloc(1, sizeof *w);
    if (!w)
        return nbi_fail_nomem("the workspace", sizeof *w);
    w->m = m;
    w->be = m->be;
    w->max_rows = lim->rows;
    w->max_logits = lim->logits;
    NB_TRY(nbi_memory_check(m, plan(p, w, m, lim), "the buffers"));
    for (int i = 0; i < N_PARTS; i++)
        if (p[i].bytes)
            NB_TRY(m->be->ops->alloc(m->be, p[i].p, p[i].bytes, "the workspace"));
    w->att = w->act = w->h;
    w->qkv = w->gate_up;
    const nbi_step_limits step = step_limits(m, lim);
    NB_TRY(m->be->ops->step_create(m->be, &w->step, &step));
    *out = w;
    w = NULL;
done:
    nbi_workspace_free(w);
    return st;
}

const void *nbi_workspace_heads(const nbi_workspace *w)
{
    return w->qkv;
}

void nbi_workspace_free(nbi_workspace *w)
{
    if (!w)
        return;
    void *all[N_PARTS] = {w->x,   w->h,    w->gate_up, w->router,  w->experts,
                          w->out, w->last, w->logits,  w->scratch, w->drawing};
    w->be->ops->step_free(w->be, w->step);
    for (int i = 0; i < N_PARTS; i++)
        w->be->ops->release(w->be, all[i]);
    free(w);
}

uint64_t nbi_kv_page_bytes(const nbi_config *c, nbi_kv_type type)
{
    return 2ull * c->n_layers * c->n_kv_heads * nbi_kv_block_bytes(type, c->head_dim);
}

nb_status nbi_kv_create(nbi_kv *kv, const nb_model *m, uint32_t n_pages, nbi_kv_type type)
{
    nb_status st = NB_OK;
    size_t bytes;
    *kv = (nbi_kv){.be = m->be, .n_layers = m->cfg.n_layers, .n_pages = n_pages};
    if (!nbi_mul((size_t)nbi_kv_page_bytes(&m->cfg, type) / (2 * m->cfg.n_layers), n_pages, &bytes))
        return nbi_fail(NB_ELIMIT, "a KV cache of %u pages is too large", n_pages);
    if (!(kv->layers = calloc(m->cfg.n_layers, sizeof *kv->layers)))
        return nbi_fail_nomem("the KV cache", m->cfg.n_layers * sizeof *kv->layers);
    NB_TRY(nbi_memory_check(m, nbi_kv_page_bytes(&m->cfg, type) * n_pages, "the KV cache"));
    for (uint32_t i = 0; i < kv->n_layers; i++) {
        nbi_kv_layer *l = &kv->layers[i];
        *l = (nbi_kv_layer){
            .type = type, .n_kv_heads = m->cfg.n_kv_heads, .head_dim = m->cfg.head_dim, .rotate = m->cfg.rotate_keys};
        NB_TRY(m->be->ops->alloc(m->be, &l->k, bytes, "the KV cache"));
        NB_TRY(m->be->ops->alloc(m->be, &l->v, bytes, "the KV cache"));
    }
done:
    if (st != NB_OK)
        nbi_kv_free(kv);
    return st;
}

void nbi_kv_free(nbi_kv *kv)
{
    for (uint32_t i = 0; kv->layers && i < kv->n_layers; i++) {
        kv->be->ops->release(kv->be, kv->layers[i].k);
        kv->be->ops->release(kv->be, kv->layers[i].v);
    }
    free(kv->layers);
    *kv = (nbi_kv){0};
}

/* One batch on its way through the layers. */
typedef struct run {
    const nb_model *m;
    nbi_workspace *w;
    size_t rows, n_logits; /* of the batch, or more: backend.h, step_enter() */
    nbi_tap_fn tap;
    void *tap_user;
} run;

/* The layers that read one input, and how it reaches them. */
typedef struct port {
    uint32_t layer;
    nbi_proj first;
    size_t n;
    const nbi_transform *in;
    unsigned produced, forms; /* what the producer writes; what the layers find */
} port;

/* The forms in which n layers want their common input, behind its transform. */
static unsigned forms_of(const run *r, nbi_linear *const *l, size_t n, const nbi_transform *in)
{
    unsigned forms = r->tap && !in ? NBI_FORM_FLOAT : 0; /* a tap reads floats */
    for (size_t i = 0; i < n; i++)
        forms |= r->m->be->ops->linear_form(l[i]);
    return forms;
}

static port port_of(const run *r, uint32_t layer, nbi_proj first, size_t n)
{
    const nbi_layer *l = &r->m->layers[layer];
    const nbi_transform *in = l->in[nbi_port_of(first)];
    const unsigned forms = forms_of(r, &l->proj[first], n, in);
    return (port){layer, first, n, in, in ? NBI_FORM_FLOAT : forms, forms};
}

/* Layer i of a port, whose outputs are transformed on their way to column col of y. */
static nb_status project_one(const run *r, const port *p, size_t i, const void *x, void *y, size_t col, size_t width,
                             nbi_dst dst)
{
    nbi_backend *be = r->m->be;
    const nbi_layer *l = &r->m->layers[p->layer];
    const size_t at = p->first + i;
    const nbi_linear *one = l->proj[at];
    float *out = r->w->out;
    size_t n, k;
    nbi_proj_shape(&r->m->cfg, (nbi_proj)at, &n, &k);
    nb_status st = be->ops->linear(be, &one, 1, x, p->forms, r->rows, out, n, NBI_DST_F32, r->w->scratch);
    return st == NB_OK ? be->ops->transform_out(be, l->out[at], out, r->rows, l->out_bias[at], y, col, width, dst) : st;
}

/* x on its way into the layers of a port: shown to a tap, and transformed. */
static nb_status enter(const run *r, const port *p, void *x)
{
    nbi_backend *be = r->m->be;
    size_t n, k;
    nb_status st = NB_OK;
    for (size_t i = 0; r->tap && i < p->n; i++) {
        nbi_proj_shape(&r->m->cfg, (nbi_proj)(p->first + i), &n, &k);
        NB_TRY(r->tap(r->tap_user, p->layer, p->first + i, x, r->rows, k));
    }
    if (p->in)
        st = be->ops->transform_in(be, p->in, x, r->rows, p->forms);
done:
    return st;
}

/* The layers of a port side by side into y. */
static nb_status project(const run *r, const port *p, void *x, void *y, nbi_dst dst)
{
    nbi_backend *be = r->m->be;
    const nbi_layer *l = &r->m->layers[p->layer];
    size_t width = 0, col = 0, n[NBI_MAX_FUSED], k;
    nb_status st;
    for (size_t i = 0; i < p->n; i++) {
        nbi_proj_shape(&r->m->cfg, (nbi_proj)(p->first + i), &n[i], &k);
        width += n[i];
    }
    NB_TRY(enter(r, p, x));
    if (!l->out[p->first])
        return be->ops->linear(be, (const nbi_linear *const *)&l->proj[p->first], p->n, x, p->forms, r->rows, y, width,
                               dst, r->w->scratch);
    for (size_t i = 0; i < p->n; col += n[i++])
        NB_TRY(project_one(r, p, i, x, y, col, width, dst));
done:
    return st;
}

/* act = silu(gate) * up, in one operation or three; *act: where they are. */
static nb_status run_gate_up(const run *r, uint32_t i, unsigned produced, void **act)
{
    const nbi_layer *l = &r->m->layers[i];
    const nbi_linear *const *gate_up = (const nbi_linear *const *)&l->proj[NBI_GATE];
    const port ffn = port_of(r, i, NBI_GATE, 2);
    nbi_workspace *w = r->w;
    nbi_backend *be = r->m->be;
    nb_status st;
    NB_TRY(be->ops->rmsnorm(be, w->x, l->ffn_norm, r->m->cfg.norm_eps, r->rows, r->m->cfg.hidden, w->h, ffn.produced));
    if (be->ops->gates && !l->out[NBI_GATE] && be->ops->gates(be, gate_up, r->rows)) {
        *act = w->gate_up; /* w->act is w->h, which is read until the end */
        NB_TRY(enter(r, &ffn, w->h));
        NB_TRY(be->ops->gated(be, gate_up, w->h, ffn.forms, r->rows, *act, produced, w->scratch));
    } else {
        *act = w->act;
        NB_TRY(project(r, &ffn, w->h, w->gate_up, NBI_DST_ACT));
        NB_TRY(be->ops->swiglu(be, w->gate_up, r->rows, r->m->cfg.ffn, *act, produced));
    }
done:
    return st;
}

static nb_status run_ffn(const run *r, uint32_t i)
{
    const port down = port_of(r, i, NBI_DOWN, 1);
    void *act;
    nb_status st;
    NB_TRY(run_gate_up(r, i, down.produced, &act));
    NB_TRY(project(r, &down, act, r->w->x, NBI_DST_RESIDUAL));
done:
    return st;
}

/* What experts see, for a tap. */
typedef struct lookout {
    const run *r;
    uint32_t layer;
} lookout;

static nb_status look(void *user, size_t expert, bool down, const void *x, size_t rows)
{
    const lookout *l = user;
    const nbi_config *c = &l->r->m->cfg;
    nb_status st = NB_OK;
    for (nbi_proj p = down ? NBI_DOWN : NBI_GATE; p <= (down ? NBI_DOWN : NBI_UP) && st == NB_OK; p++)
        st = l->r->tap(l->r->tap_user, l->layer, nbi_ffn_module(c, (uint32_t)expert, p), x, rows,
                       down ? c->ffn : c->hidden);
    return st;
}

static nb_status run_experts(const run *r, uint32_t i)
{
    const nbi_config *c = &r->m->cfg;
    const nbi_layer *l = &r->m->layers[i];
    nbi_workspace *w = r->w;
    nbi_backend *be = r->m->be;
    const nbi_backend_ops *ops = be->ops;
    const nbi_linear *router = l->router;
    lookout out = {r, i};
    nbi_experts experts = nbi_experts_of(c, l);
    const unsigned forms = NBI_FORM_FLOAT | ops->linear_form(l->expert[0]); /* as most experts want it */
    nb_status st;
    NB_TRY(ops->rmsnorm(be, w->x, l->ffn_norm, c->norm_eps, r->rows, c->hidden, w->h, forms));
    if (r->tap) {
        experts.seen = look;
        experts.user = &out;
        NB_TRY(r->tap(r->tap_user, i, NBI_GATE, w->h, r->rows, c->hidden)); /* the router */
    }
    NB_TRY(ops->linear(be, &router, 1, w->h, NBI_FORM_FLOAT, r->rows, w->router, experts.n, NBI_DST_F32, w->scratch));
    NB_TRY(ops->experts(be, &experts, w->h, forms, w->router, r->rows, w->x, w->experts, w->scratch));
done:
    return st;
}

/* The cache of layer i, whose keys have a grid by channel where they become integers. */
static nbi_kv_layer cache_of(const run *r, uint32_t i, const nbi_kv_layer *kv)
{
    nbi_kv_layer c = *kv;
    if (kv->type == NBI_KV_INT8 || kv->type == NBI_KV_INT4) {
        c.k_shift = r->m->layers[i].k_shift;
        c.k_scale = r->m->layers[i].k_scale;
    }
    return c;
}

static nb_status run_layer(const run *r, uint32_t i, const nbi_kv_layer *kv)
{
    const nbi_config *c = &r->m->cfg;
    const nbi_layer *l = &r->m->layers[i];
    nbi_workspace *w = r->w;
    nbi_backend *be = r->m->be;
    const nbi_backend_ops *ops = be->ops;
    const size_t rows = r->rows;
    const port qkv = port_of(r, i, NBI_Q, 3), o = port_of(r, i, NBI_O, 1);
    const float scale = 1.0f / sqrtf((float)c->head_dim);
    const nbi_kv_layer cache = cache_of(r, i, kv);
    nb_status st;
    NB_TRY(ops->rmsnorm(be, w->x, l->attn_norm, c->norm_eps, rows, c->hidden, w->h, qkv.produced));
    NB_TRY(project(r, &qkv, w->h, w->qkv, NBI_DST_ACT));
    if (l->q_norm)
        NB_TRY(ops->norm_heads(be, w->qkv, rows, c->n_heads, c->n_kv_heads, c->head_dim, l->q_norm, l->k_norm,
                               c->norm_eps));
    NB_TRY(ops->rope_append(be, w->step, w->qkv, c->n_heads, &cache));
    NB_TRY(ops->attention(be, w->step, w->qkv, c->n_heads, &cache, scale, w->att, o.produced));
    NB_TRY(project(r, &o, w->att, w->x, NBI_DST_RESIDUAL));
    NB_TRY(l->expert ? run_experts(r, i) : run_ffn(r, i));
done:
    return st;
}

static nb_status run_model(const run *r, const nbi_kv *kv)
{
    const nb_model *m = r->m;
    nbi_workspace *w = r->w;
    nbi_backend *be = m->be;
    const nbi_backend_ops *ops = be->ops;
    const size_t n = r->n_logits, hidden = m->cfg.hidden;
    const nbi_linear *head = m->head;
    const unsigned form = ops->linear_form(head), produced = m->head_in ? NBI_FORM_FLOAT : form;
    nb_status st;
    NB_TRY(ops->embed(be, w->step, m->embed, w->x));
    for (uint32_t i = 0; i < m->cfg.n_layers; i++)
        NB_TRY(run_layer(r, i, &kv->layers[i]));
    if (n) {
        NB_TRY(ops->gather(be, w->step, w->x, hidden, w->last));
        NB_TRY(ops->rmsnorm(be, w->last, m->final_norm, m->cfg.norm_eps, n, hidden, w->h, produced));
        if (m->head_in)
            NB_TRY(ops->transform_in(be, m->head_in, w->h, n, form));
        NB_TRY(ops->linear(be, &head, 1, w->h, form, n, w->logits, m->cfg.vocab, NBI_DST_F32, w->scratch));
    }
done:
    return st;
}

static nb_status run_step(run *r, nbi_kv *kv, const nbi_batch *batch, float *logits)
{
    const nb_model *m = r->m;
    const nbi_backend_ops *ops = m->be->ops;
    nbi_step *step = r->w->step;
    const bool recordable = ops->step_enter && !r->tap;
    bool replayed = false;
    nb_status st;
    NB_TRY(ops->step_begin(m->be, step, batch));
    if (recordable)
        NB_TRY(ops->step_enter(m->be, step, &replayed, &r->rows, &r->n_logits));
    if (!replayed) {
        nb_status ran = run_model(r, kv), ended = NB_OK;
        if (recordable)
            ended = ops->step_end(m->be, step, ran == NB_OK);
        NB_TRY(ran != NB_OK ? ran : ended);
    }
    if (batch->n_logits && logits)
        NB_TRY(ops->download(m->be, logits, r->w->logits, batch->n_logits * m->cfg.vocab * sizeof(float)));
done:
    return st;
}

nb_status nbi_forward(const nb_model *m, nbi_kv *kv, nbi_workspace *w, const nbi_batch *batch, float *logits,
                      nbi_tap_fn tap, void *tap_user)
{
    const nbi_backend_ops *ops = m->be->ops;
    run r = {m, w, batch->rows, batch->n_logits, tap, tap_user};
    if (batch->rows > w->max_rows || batch->n_logits > w->max_logits)
        return nbi_fail(NB_EINTERNAL, "a batch of %zu rows and %zu logits in a workspace for %zu and %zu", batch->rows,
                        batch->n_logits, w->max_rows, w->max_logits);
    if (ops->lock)
        ops->lock(m->be);
    nb_status st = run_step(&r, kv, batch, logits);
    if (ops->unlock)
        ops->unlock(m->be);
    return st;
}

bool nbi_can_sample(const nb_model *m)
{
    return m->be->ops->sample != NULL;
}

nb_status nbi_forward_sample(nbi_workspace *w, const nbi_draw *how, size_t n, nbi_drawn *out)
{
    const nbi_backend_ops *ops = w->be->ops;
    if (n == 0)
        return NB_OK;
    if (ops->lock)
        ops->lock(w->be);
    nb_status st = ops->sample(w->be, w->logits, n, w->m->cfg.vocab, how, out, w->drawing);
    if (ops->unlock)
        ops->unlock(w->be);
    return st;
}

/* ---- a layer at a time: the residual stream rests on the host in between ---- */

nb_status nbi_forward_embed(const nb_model *m, nbi_workspace *w, const nbi_batch *batch, float *x)
{
    const nbi_backend_ops *ops = m->be->ops;
    nb_status st;
    if (ops->lock)
        ops->lock(m->be);
    NB_TRY(ops->step_begin(m->be, w->step, batch));
    NB_TRY(ops->embed(m->be, w->step, m->embed, w->x));
    NB_TRY(ops->download(m->be, x, w->x, batch->rows * m->cfg.hidden * sizeof *x));
done:
    if (ops->unlock)
        ops->unlock(m->be);
    return st;
}

nb_status nbi_forward_layer(const nb_model *m, uint32_t layer, const nbi_kv_layer *kv, nbi_workspace *w,
                            const nbi_batch *batch, float *x, nbi_tap_fn tap, void *tap_user)
{
    const nbi_backend_ops *ops = m->be->ops;
    const size_t bytes = batch->rows * m->cfg.hidden * sizeof *x;
    const run r = {m, w, batch->rows, 0, tap, tap_user};
    nb_status st;
    if (ops->lock)
        ops->lock(m->be);
    NB_TRY(ops->step_begin(m->be, w->step, batch));
    NB_TRY(ops->upload(m->be, w->x, x, bytes));
    NB_TRY(run_layer(&r, layer, kv));
    NB_TRY(ops->download(m->be, x, w->x, bytes));
done:
    if (ops->unlock)
        ops->unlock(m->be);
    return st;
}

/* Through a lock of its own: what stands before it has been downloaded. */
nb_status nbi_forward_logits(const nb_model *m, nbi_workspace *w, size_t rows, const float *x, float *logits)
{
    const nbi_backend_ops *ops = m->be->ops;
    const nbi_linear *head = m->head;
    const unsigned form = ops->linear_form(head), produced = m->head_in ? NBI_FORM_FLOAT : form;
    const size_t hidden = m->cfg.hidden;
    nb_status st;
    if (rows > w->max_rows || rows > w->max_logits)
        return nbi_fail(NB_EINTERNAL, "logits of %zu rows in a workspace for %zu", rows, w->max_logits);
    if (ops->lock)
        ops->lock(m->be);
    NB_TRY(ops->upload(m->be, w->last, x, rows * hidden * sizeof *x));
    NB_TRY(ops->rmsnorm(m->be, w->last, m->final_norm, m->cfg.norm_eps, rows, hidden, w->h, produced));
    if (m->head_in)
        NB_TRY(ops->transform_in(m->be, m->head_in, w->h, rows, form));
    NB_TRY(ops->linear(m->be, &head, 1, w->h, form, rows, w->logits, m->cfg.vocab, NBI_DST_F32, w->scratch));
    NB_TRY(ops->download(m->be, logits, w->logits, rows * m->cfg.vocab * sizeof *logits));
done:
    if (ops->unlock)
        ops->unlock(m->be);
    return st;
}
