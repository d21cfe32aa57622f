#include "engine/quantize_layer.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "engine/rotate.h"
#include "quant/balance.h"

/* ---- balancing ---- */

/* Layers that share a place, and what stands before them: a norm, or a linear layer whose outputs are their inputs. */
typedef struct family {
    nbi_port port;
    nbi_proj first, last;
    int norm;        /* 0, 1, or -1 */
    nbi_proj before; /* norm -1 */
} family;

static const family families[NBI_N_PORTS] = {
    {NBI_PORT_ATTN, NBI_Q, NBI_V, 0, NBI_Q},
    {NBI_PORT_O, NBI_O, NBI_O, -1, NBI_V},
    {NBI_PORT_FFN, NBI_GATE, NBI_UP, 1, NBI_Q},
    {NBI_PORT_DOWN, NBI_DOWN, NBI_DOWN, -1, NBI_UP},
};

/* Its modules. */
typedef struct members {
    nbi_weight **w;
    const nbi_scheme **scheme;
    size_t n, quantized;
} members;

static void members_free(members *m)
{
    free(m->w);
    free(m->scheme);
}

/* Of family f in the feed-forward networks ffn0 .. ffn1-1 (attention is outside of them). */
static nb_status members_of(members *m, const nbi_layer_job *j, const family *f, nbi_host_layer *l, uint32_t ffn0,
                            uint32_t ffn1)
{
    *m = (members){calloc(l->n, sizeof(nbi_weight *)), calloc(l->n, sizeof(nbi_scheme *)), 0, 0};
    if (!m->w || !m->scheme) {
        members_free(m);
        return nbi_fail_nomem("layers of a balance", l->n * sizeof *m->w);
    }
    for (size_t i = 0; i < l->n; i++) {
        nbi_module at;
        nbi_module_at(j->cfg, j->index, i, &at);
        if (at.proj < f->first || at.proj > f->last ||
            (f->port >= NBI_PORT_FFN && (at.expert < ffn0 || at.expert >= ffn1)))
            continue;
        m->quantized += j->scheme[i]->bits != 0;
        m->scheme[m->n] = j->scheme[i];
        m->w[m->n++] = &l->w[i];
    }
    return NB_OK;
}

/* With fewer kv heads than heads an output of v is the input of several columns of o, each with a scale of its own. */
static bool applies(const nbi_layer_job *j, const family *f)
{
    if (j->method->balance == NBI_BALANCE_SMOOTH && f->norm < 0)
        return false;
    return f->port != NBI_PORT_O || j->cfg->n_heads == j->cfg->n_kv_heads;
}

/* norm /= s as it can be stored; s becomes what it was really divided by. */
static void divide_norm(float *norm, float *s, size_t n, nbi_dtype dtype)
{
    unsigned char raw[4];
    for (size_t i = 0; i < n; i++) {
        float stored, want = norm[i] / s[i];
        nbi_from_f32(raw, dtype, &want, 1);
        nbi_to_f32(&stored, raw, dtype, 1);
        s[i] = stored != 0 && norm[i] != 0 ? norm[i] / stored : 1.0f;
        norm[i] = stored != 0 ? stored : norm[i];
    }
}

/* s of some layers, which are scaled by it. */
static nb_status scale_members(const nbi_layer_job *j, const members *m, const nbi_inputs *in, float *s)
{
    const nbi_siblings siblings = {m->w, m->scheme, m->n, in->k};
    return j->method->balance == NBI_BALANCE_SMOOTH
               ? nbi_smooth_scales(s, &siblings, in, j->options->alpha)
               : nbi_awq_scales(s, &siblings, in, j->scale_dtype, j->threads, NULL);
}

/* in: of the place whose statistics decide. */
static nb_status balance_members(const nbi_layer_job *j, const family *f, const members *m, nbi_host_layer *l,
                                 uint32_t ffn, nbi_inputs *in, float *s)
{
    nb_status st = scale_members(j, m, in, s);
    if (st != NB_OK)
        return nbi_fail_in(st, "layer %u: ", j->index);
    if (f->norm >= 0)
        divide_norm(l->norm[f->norm], s, in->k, j->norm_dtype[f->norm]);
    else
        nbi_divide_rows(&l->w[f->port == NBI_PORT_DOWN ? nbi_ffn_module(j->cfg, ffn, f->before) : f->before], s);
    for (size_t i = 0; i < m->n; i++)
        nbi_scale_columns(m->w[i], s);
    nbi_inputs_divide(in, s);
    return NB_OK;
}

static nb_status balance_family(const nbi_layer_job *j, const family *f, nbi_host_layer *l, uint32_t ffn0,
                                uint32_t ffn1, nbi_inputs *in, float *s)
{
    members m;
    nb_status st = members_of(&m, j, f, l, ffn0, ffn1);
    if (st != NB_OK)
        return st;
    if (m.quantized)
        st = balance_members(j, f, &m, l, ffn0, in, s);
    else
        for (size_t i = 0; i < in->k; i++)
            s[i] = 1;
    members_free(&m);
    return st;
}

/* Experts and their router behind one norm: all that the router sees decides. */
static nb_status balance_experts(const nbi_layer_job *j, const family *f, nbi_host_layer *l, nbi_inputs *in,
                                 const nbi_watch *w, float *s)
{
    const nbi_config *c = j->cfg;
    nb_status st = balance_family(j, f, l, 0, c->n_experts, &in[nbi_layer_places(c) - 1], s);
    if (st != NB_OK)
        return st;
    nbi_scale_columns(&l->w[NBI_GATE], s); /* the router */
    for (uint32_t e = w->ffn0; e < w->ffn1; e++)
        nbi_inputs_divide(&in[NBI_PORT_FFN + 2 * (size_t)e], s);
    return NB_OK;
}

nb_status nbi_balance_layer(const nbi_layer_job *j, nbi_host_layer *l, nbi_inputs *in, const nbi_watch *w)
{
    const nbi_config *c = j->cfg;
    const size_t widest = c->hidden > c->ffn ? c->hidden : c->ffn, q = (size_t)c->n_heads * c->head_dim;
    nb_status st = NB_OK;
    if (j->method->balance == NBI_BALANCE_NONE)
        return NB_OK;
    float *s = malloc((widest > q ? widest : q) * sizeof *s);
    if (!s)
        return nbi_fail_nomem("scales of a balance", widest * sizeof *s);
    for (size_t p = 0; p < NBI_N_PORTS && st == NB_OK; p++) {
        const family *f = &families[p];
        if (!applies(j, f) || (f->port != NBI_PORT_DOWN && w->ffn0))
            continue;
        if (f->port == NBI_PORT_FFN && c->n_experts)
            st = balance_experts(j, f, l, in, w, s);
        else if (f->port == NBI_PORT_DOWN)
            for (uint32_t e = w->ffn0; e < w->ffn1 && st == NB_OK; e++)
                st = balance_family(j, f, l, e, e + 1, &in[p + 2 * (size_t)e], s);
        else
            st = balance_family(j, f, l, 0, 1, &in[p], s);
    }
    free(s);
    return st;
}

/* ---- rounding ---- */

static nb_status copy_dense(nbi_weight *out, const nbi_weight *w)
{
    const size_t bytes = w->n * w->k * nbi_dtype_size(w->dense_dtype);
    *out = *w;
    out->bias = NULL;
    out->owned = malloc(bytes);
    if (!out->owned)
        return nbi_fail_nomem("a weight", bytes);
    out->dense = memcpy(out->owned, w->dense, bytes);
    if (w->bias) {
        if (!(out->bias = malloc(w->n * sizeof *w->bias)))
            return nbi_fail_nomem("a bias", w->n * sizeof *w->bias);
        memcpy(out->bias, w->bias, w->n * sizeof *w->bias);
    }
    return NB_OK;
}

static nb_status round_one(const nbi_layer_job *j, size_t module, const nbi_weight *w, const nbi_inputs *in,
                           nbi_weight *q)
{
    nbi_module at;
    float damp = 0;
    nbi_module_at(j->cfg, j->index, module, &at);
    nbi_method_job job = {.src = w,
                          .scheme = j->scheme[module],
                          .scale_dtype = j->scale_dtype,
                          .in = in,
                          .options = j->options,
                          .be = j->be,
                          .module = strchr(at.name + strlen("model.layers."), '.') + 1,
                          .layer = j->index,
                          .port = (unsigned)at.place,
                          .threads = j->threads,
                          .damp_used = &damp};
    nb_status st = j->method->quantize(q, &job);
    if (st == NB_OK)
        st = nbi_rotation_sign(q, w);
    if (st == NB_OK && damp > j->options->gptq.damp)
        nbi_log(
            j->callbacks, NB_LOG_WARN,
            "%s: its inputs depend on each other so much that X^T X has no inverse with a damping of %g; %g was used",
            at.name, (double)j->options->gptq.damp, (double)damp);
    return st == NB_OK ? st : nbi_fail_in(st, "%s: ", at.name);
}

nb_status nbi_round_norms(const nbi_layer_job *j, const nbi_host_layer *l, nbi_host_layer *q)
{
    nb_status st = nbi_host_layer_init(q, j->cfg);
    for (int i = 0; i < NBI_N_NORMS && st == NB_OK; i++) {
        const size_t bytes = nbi_norm_width(j->cfg, i) * sizeof(float);
        if (!bytes)
            continue;
        if (!(q->norm[i] = malloc(bytes)))
            return nbi_fail_nomem("a norm", bytes);
        memcpy(q->norm[i], l->norm[i], bytes);
    }
    return st;
}

nb_status nbi_round_place(const nbi_layer_job *j, size_t place, const nbi_host_layer *l, const nbi_inputs *in,
                          nbi_host_layer *q)
{
    nb_status st = NB_OK;
    for (size_t i = 0; i < l->n && st == NB_OK; i++) {
        nbi_module at;
        nbi_module_at(j->cfg, j->index, i, &at);
        if (at.place == place)
            st = j->scheme[i]->bits ? round_one(j, i, &l->w[i], in, &q->w[i]) : copy_dense(&q->w[i], &l->w[i]);
    }
    return st;
}
