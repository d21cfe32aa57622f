#include "engine/quantize_layer.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "engine/rotate.h"
#include "quant/balance.h"

/* ---- balancing ---- */

/* Layers that share a port, and what stands before them: a norm, or a linear layer whose outputs are their inputs. */
typedef struct family {
    nbi_port port;
    nbi_proj first;
    size_t n;
    int norm;        /* 0, 1, or -1 */
    nbi_proj before; /* norm -1 */
} family;

static const family families[] = {
    {NBI_PORT_ATTN, NBI_Q, 3, 0, NBI_Q},
    {NBI_PORT_O, NBI_O, 1, -1, NBI_V},
    {NBI_PORT_FFN, NBI_GATE, 2, 1, NBI_Q},
    {NBI_PORT_DOWN, NBI_DOWN, 1, -1, NBI_UP},
};

/* With fewer kv heads than heads an output of v is the input of several columns of o, each with a scale of its own. */
static bool applies(const nbi_layer_job *j, const family *f)
{
    if (j->method->balance == NBI_BALANCE_SMOOTH && f->norm < 0)
        return false;
    if (f->port == NBI_PORT_O && j->cfg->n_heads != j->cfg->n_kv_heads)
        return false;
    for (size_t i = 0; i < f->n; i++)
        if (j->scheme[f->first + i]->bits)
            return true;
    return false;
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

static nb_status balance_family(const nbi_layer_job *j, const family *f, nbi_host_layer *l, nbi_inputs *in, float *s)
{
    nbi_weight *w[NBI_N_PROJ];
    const nbi_siblings siblings = {w, &j->scheme[f->first], f->n, in->k};
    for (size_t i = 0; i < f->n; i++)
        w[i] = &l->w[f->first + i];
    nb_status st = j->method->balance == NBI_BALANCE_SMOOTH
                       ? nbi_smooth_scales(s, &siblings, in, j->options->alpha)
                       : nbi_awq_scales(s, &siblings, in, j->scale_dtype, j->threads, NULL);
    if (st != NB_OK)
        return nbi_fail_in(st, "layer %u: ", j->index);
    if (f->norm >= 0)
        divide_norm(l->norm[f->norm], s, in->k, j->norm_dtype[f->norm]);
    else
        nbi_divide_rows(&l->w[f->before], s);
    for (size_t i = 0; i < f->n; i++)
        nbi_scale_columns(w[i], s);
    nbi_inputs_divide(in, s);
    return NB_OK;
}

nb_status nbi_balance_layer(const nbi_layer_job *j, nbi_host_layer *l, nbi_inputs *in)
{
    nb_status st = NB_OK;
    if (j->method->balance == NBI_BALANCE_NONE)
        return NB_OK;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        const family *f = &families[i];
        nbi_inputs *port = &in[f->port];
        if (!applies(j, f))
            continue;
        float *s = malloc(port->k * sizeof *s);
        if (!s)
            return nbi_fail_nomem("scales of a balance", port->k * sizeof *s);
        st = balance_family(j, f, l, port, s);
        free(s);
        if (st != NB_OK)
            return st;
    }
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

static nb_status round_one(const nbi_layer_job *j, nbi_proj p, const nbi_weight *w, const nbi_inputs *in, nbi_weight *q)
{
    char name[96];
    float damp = 0;
    nbi_method_job job = {.src = w,
                          .scheme = j->scheme[p],
                          .scale_dtype = j->scale_dtype,
                          .in = in,
                          .options = j->options,
                          .be = j->be,
                          .module = nbi_proj_name(p),
                          .layer = j->index,
                          .port = (unsigned)nbi_port_of(p),
                          .threads = j->threads,
                          .damp_used = &damp};
    nb_status st = j->method->quantize(q, &job);
    if (st == NB_OK)
        st = nbi_rotation_sign(q, w);
    nbi_module_name(name, j->index, p);
    if (st == NB_OK && damp > j->options->gptq.damp)
        nbi_log(
            j->callbacks, NB_LOG_WARN,
            "%s: its inputs depend on each other so much that X^T X has no inverse with a damping of %g; %g was used",
            name, (double)j->options->gptq.damp, (double)damp);
    return st == NB_OK ? st : nbi_fail_in(st, "%s: ", name);
}

nb_status nbi_round_norms(const nbi_layer_job *j, const nbi_host_layer *l, nbi_host_layer *q)
{
    const size_t bytes = j->cfg->hidden * sizeof(float);
    *q = (nbi_host_layer){0};
    for (int i = 0; i < 2; i++) {
        if (!(q->norm[i] = malloc(bytes)))
            return nbi_fail_nomem("a norm", bytes);
        memcpy(q->norm[i], l->norm[i], bytes);
    }
    return NB_OK;
}

nb_status nbi_round_port(const nbi_layer_job *j, nbi_port port, const nbi_host_layer *l, const nbi_inputs *in,
                         nbi_host_layer *q)
{
    nb_status st = NB_OK;
    for (int p = 0; p < NBI_N_PROJ && st == NB_OK; p++)
        if (nbi_port_of((nbi_proj)p) == port)
            st =
                j->scheme[p]->bits ? round_one(j, (nbi_proj)p, &l->w[p], in, &q->w[p]) : copy_dense(&q->w[p], &l->w[p]);
    return st;
}
