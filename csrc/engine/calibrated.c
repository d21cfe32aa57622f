#include "engine/calibrated.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "engine/calibrate.h"
#include "engine/quantize_layer.h"
#include "model/checkpoint.h"
#include "text/tokenizer.h"

struct nbi_calibrated {
    nbi_calibrated_options o;
    nb_model *shell;
    nbi_layerwise *walk;
    int32_t *ids;
    size_t n;
    uint32_t next;
    nbi_inputs in[NBI_N_PORTS]; /* of the layer that was told last */
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

static nb_status read_text(nbi_calibrated *c)
{
    nb_status st;
    nb_tokenizer *tok = NULL;
    char *text = NULL;
    size_t bytes;
    NB_TRY(nb_tokenizer_load(&tok, c->o.path));
    NB_TRY(nbi_load_text(&text, &bytes, c->o.text));
    NB_TRY(nb_tokenize(tok, text, bytes, NB_TOKENIZE_SPECIAL, &c->ids, &c->n));
    if (c->n < 2)
        NB_TRY(nbi_fail(NB_EFORMAT, "%s: has %zu tokens, expected text to calibrate on", c->o.text, c->n));
    for (size_t i = 0; i < c->n; i++)
        if (c->ids[i] < 0 || (uint32_t)c->ids[i] >= c->o.cfg->vocab)
            NB_TRY(nbi_fail(NB_EFORMAT, "%s: its tokenizer gives the id %d, and the model has %u", c->o.path, c->ids[i],
                            c->o.cfg->vocab));
    if (c->n > c->o.tokens)
        c->n = c->o.tokens;
done:
    free(text);
    nb_tokenizer_free(tok);
    return st;
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
    NB_TRY(read_text(c));
    nb_model_options_init(&mo);
    mo.device = o->device;
    mo.threads = o->threads;
    NB_TRY(nbi_model_new(&c->shell, &mo, &cb));
    c->shell->cfg = *o->cfg;
    NB_TRY(nbi_model_build_shell(c->shell, &(nbi_source){.linear = read_linear, .self = c}));
    size_t ctx = o->ctx < o->cfg->max_context ? o->ctx : o->cfg->max_context;
    NB_TRY(
        nbi_layerwise_create(&c->walk, c->shell, c->ids, c->n, ctx < c->n ? ctx : c->n, o->method->needs, o->threads));
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
    nbi_layerwise_free(c->walk);
    nb_model_free(c->shell);
    free(c->ids);
    free(c);
}

const nbi_inputs *nbi_calibrated_inputs(const nbi_calibrated *c, nbi_proj p)
{
    return &c->in[nbi_port_of(p)];
}

size_t nbi_calibrated_tokens(const nbi_calibrated *c)
{
    return c->n;
}

const char *nbi_calibrated_device(const nbi_calibrated *c)
{
    return c->shell->be->description;
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
                         .threads = c->o.threads};
    nb_status st;
    forget_inputs(c);
    *quantized = (nbi_host_layer){0};
    *dense = (nbi_host_layer){0};
    for (int p = 0; p < NBI_N_PROJ; p++)
        job.scheme[p] = c->o.scheme[i * NBI_N_PROJ + (uint32_t)p];
    NB_TRY(read_layer(c, i, dense, job.norm_dtype));
    NB_TRY(nbi_layerwise_observe(c->walk, i, dense, c->in));
    NB_TRY(nbi_rotation_inputs(&c->in[NBI_PORT_DOWN], dense->w[NBI_DOWN].in_signs, c->o.threads));
    NB_TRY(nbi_balance_layer(&job, dense, c->in));
    NB_TRY(nbi_round_layer(&job, dense, c->in, quantized));
    if (i + 1 < c->o.cfg->n_layers)
        NB_TRY(nbi_layerwise_advance(c->walk, i, quantized));
    c->next++;
done:
    if (st != NB_OK) {
        nbi_host_layer_free(dense);
        nbi_host_layer_free(quantized);
    }
    return st;
}
