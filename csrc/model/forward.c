/* One straight-line forward pass for every Llama-like model, over a batch of rows from many sequences. */
#include <math.h>
#include <stdlib.h>

#include "base/checked.h"
#include "model/model.h"

struct nbi_workspace {
    nbi_backend *be;
    size_t max_rows, max_logits;
    void *x;             /* [rows][hidden]       residual stream */
    void *h;             /* [rows][hidden]       normed input of the next linear layers */
    void *q, *k, *v;     /* [rows][heads * head_dim] */
    void *att;           /* [rows][n_heads * head_dim] */
    void *gate, *up;     /* [rows][ffn] */
    void *logits;        /* [max_logits][vocab] */
    float *cos_sin;      /* [rows][head_dim/2][2], device */
    float *cos_sin_host; /* the same on the host */
    void *scratch;
};

typedef struct part {
    void **p;
    size_t bytes;
} part;

/* Sizes of all device buffers, in one place for allocation and for the memory plan. */
static size_t parts(part out[11], nbi_workspace *w, const nb_model *m, size_t rows, size_t logits)
{
    const nbi_config *c = &m->cfg;
    size_t e = m->be->act_bytes, q = (size_t)c->n_heads * c->head_dim, kv = (size_t)c->n_kv_heads * c->head_dim;
    size_t widest = c->ffn > c->hidden ? c->ffn : c->hidden;
    const part p[11] = {
        {&w->x, rows * c->hidden * e},
        {&w->h, rows * c->hidden * e},
        {&w->q, rows * q * e},
        {&w->k, rows * kv * e},
        {&w->v, rows * kv * e},
        {&w->att, rows * q * e},
        {&w->gate, rows * c->ffn * e},
        {&w->up, rows * c->ffn * e},
        {&w->logits, logits * c->vocab * e},
        {(void **)&w->cos_sin, rows * c->head_dim * sizeof(float)},
        {&w->scratch, m->be->ops->scratch_bytes(m->be, rows, widest > q ? widest : q)},
    };
    size_t total = 0;
    for (int i = 0; i < 11; i++) {
        out[i] = p[i];
        total += p[i].bytes;
    }
    return total;
}

uint64_t nbi_workspace_bytes(const nb_model *m, size_t max_rows, size_t max_logits)
{
    nbi_workspace w;
    part p[11];
    return parts(p, &w, m, max_rows, max_logits);
}

nb_status nbi_workspace_create(nbi_workspace **out, const nb_model *m, size_t max_rows, size_t max_logits)
{
    nb_status st = NB_OK;
    part p[11];
    nbi_workspace *w = calloc(1, sizeof *w);
    if (!w)
        return nbi_fail_nomem("the workspace", sizeof *w);
    w->be = m->be;
    w->max_rows = max_rows;
    w->max_logits = max_logits;
    parts(p, w, m, max_rows, max_logits);
    for (int i = 0; i < 11; i++)
        NB_TRY(m->be->ops->alloc(m->be, p[i].p, p[i].bytes, "the workspace"));
    w->cos_sin_host = malloc(max_rows * m->cfg.head_dim * sizeof(float));
    if (!w->cos_sin_host)
        NB_TRY(nbi_fail_nomem("the workspace", max_rows * m->cfg.head_dim * sizeof(float)));
    *out = w;
    w = NULL;
done:
    nbi_workspace_free(w);
    return st;
}

void nbi_workspace_free(nbi_workspace *w)
{
    if (!w)
        return;
    void *all[11] = {w->x, w->h, w->q, w->k, w->v, w->att, w->gate, w->up, w->logits, w->cos_sin, w->scratch};
    for (int i = 0; i < 11; i++)
        w->be->ops->release(w->be, all[i]);
    free(w->cos_sin_host);
    free(w);
}

uint64_t nbi_kv_page_bytes(const nbi_config *c, nbi_dtype dtype)
{
    return 2ull * c->n_layers * c->n_kv_heads * c->head_dim * NBI_PAGE_TOKENS * nbi_dtype_size(dtype);
}

nb_status nbi_kv_create(nbi_kv *kv, const nb_model *m, uint32_t n_pages, nbi_dtype dtype)
{
    nb_status st = NB_OK;
    size_t bytes;
    *kv = (nbi_kv){.be = m->be, .n_layers = m->cfg.n_layers, .n_pages = n_pages};
    if (!nbi_mul((size_t)nbi_kv_page_bytes(&m->cfg, dtype) / (2 * m->cfg.n_layers), n_pages, &bytes))
        return nbi_fail(NB_ELIMIT, "a KV cache of %u pages is too large", n_pages);
    if (!(kv->layers = calloc(m->cfg.n_layers, sizeof *kv->layers)))
        return nbi_fail_nomem("the KV cache", m->cfg.n_layers * sizeof *kv->layers);
    for (uint32_t i = 0; i < kv->n_layers; i++) {
        nbi_kv_layer *l = &kv->layers[i];
        *l = (nbi_kv_layer){.dtype = dtype, .n_kv_heads = m->cfg.n_kv_heads, .head_dim = m->cfg.head_dim};
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

/* Angles in fp32, as Transformers computes them: position times inverse frequency, then cos and sin. */
static nb_status set_positions(const nb_model *m, nbi_workspace *w, const nbi_seq *seqs, size_t n_seqs, size_t rows)
{
    size_t half = m->cfg.head_dim / 2;
    for (size_t s = 0; s < n_seqs; s++)
        for (uint32_t r = 0; r < seqs[s].n_rows; r++) {
            float *cs = w->cos_sin_host + (size_t)(seqs[s].row0 + r) * half * 2, pos = (float)(seqs[s].pos0 + r);
            for (size_t i = 0; i < half; i++) {
                float angle = pos * m->inv_freq[i];
                cs[2 * i] = cosf(angle);
                cs[2 * i + 1] = sinf(angle);
            }
        }
    return m->be->ops->upload(m->be, w->cos_sin, w->cos_sin_host, rows * half * 2 * sizeof(float));
}

/* One batch on its way through the layers. */
typedef struct run {
    const nb_model *m;
    nbi_workspace *w;
    size_t rows;
    const nbi_seq *seqs;
    size_t n_seqs;
    nbi_tap_fn tap;
    void *tap_user;
} run;

static nb_status project(const run *r, uint32_t layer, nbi_proj p, const void *x, void *y, bool add)
{
    nbi_backend *be = r->m->be;
    if (r->tap) {
        size_t n, k;
        nbi_proj_shape(&r->m->cfg, p, &n, &k);
        nb_status st = r->tap(r->tap_user, layer, p, x, r->rows, k);
        if (st != NB_OK)
            return st;
    }
    return be->ops->linear(be, r->m->layers[layer].proj[p], x, r->rows, y, add, r->w->scratch);
}

static nb_status run_layer(const run *r, uint32_t i, const nbi_kv_layer *kv)
{
    const nbi_config *c = &r->m->cfg;
    const nbi_layer *l = &r->m->layers[i];
    nbi_workspace *w = r->w;
    nbi_backend *be = r->m->be;
    const nbi_backend_ops *ops = be->ops;
    nb_status st;
    NB_TRY(ops->rmsnorm(be, w->x, l->attn_norm, c->norm_eps, r->rows, c->hidden, w->h));
    NB_TRY(project(r, i, NBI_Q, w->h, w->q, false));
    NB_TRY(project(r, i, NBI_K, w->h, w->k, false));
    NB_TRY(project(r, i, NBI_V, w->h, w->v, false));
    NB_TRY(ops->rope_append(be, w->q, w->k, w->v, r->rows, c->n_heads, w->cos_sin, kv, r->seqs, r->n_seqs));
    NB_TRY(ops->attention(be, w->q, c->n_heads, kv, r->seqs, r->n_seqs, 1.0f / sqrtf((float)c->head_dim), w->att));
    NB_TRY(project(r, i, NBI_O, w->att, w->x, true));
    NB_TRY(ops->rmsnorm(be, w->x, l->ffn_norm, c->norm_eps, r->rows, c->hidden, w->h));
    NB_TRY(project(r, i, NBI_GATE, w->h, w->gate, false));
    NB_TRY(project(r, i, NBI_UP, w->h, w->up, false));
    NB_TRY(ops->swiglu(be, w->gate, w->up, r->rows * c->ffn, w->gate));
    NB_TRY(project(r, i, NBI_DOWN, w->gate, w->x, true));
done:
    return st;
}

nb_status nbi_forward(const nb_model *m, nbi_kv *kv, nbi_workspace *w, const int32_t *ids, size_t rows,
                      const nbi_seq *seqs, size_t n_seqs, const uint32_t *logit_rows, size_t n_logits, float *logits,
                      nbi_tap_fn tap_fn, void *tap_user)
{
    nbi_backend *be = m->be;
    const nbi_backend_ops *ops = be->ops;
    nb_status st;
    if (rows > w->max_rows || n_logits > w->max_logits)
        return nbi_fail(NB_EINTERNAL, "a batch of %zu rows and %zu logits in a workspace for %zu and %zu", rows,
                        n_logits, w->max_rows, w->max_logits);
    const run r = {m, w, rows, seqs, n_seqs, tap_fn, tap_user};
    NB_TRY(set_positions(m, w, seqs, n_seqs, rows));
    NB_TRY(ops->embed(be, m->embed, ids, rows, w->x));
    for (uint32_t i = 0; i < m->cfg.n_layers; i++)
        NB_TRY(run_layer(&r, i, &kv->layers[i]));
    if (n_logits) {
        NB_TRY(ops->gather(be, w->x, logit_rows, n_logits, m->cfg.hidden, w->h));
        NB_TRY(ops->rmsnorm(be, w->h, m->final_norm, m->cfg.norm_eps, n_logits, m->cfg.hidden, w->h));
        NB_TRY(ops->linear(be, m->head, w->h, n_logits, w->logits, false, w->scratch));
        NB_TRY(ops->download_f32(be, logits, w->logits, n_logits * m->cfg.vocab));
    }
done:
    return st;
}
