#include "engine/calibrate.h"

#include <stdlib.h>
#include <string.h>

#include "backend/quant_ops.h"
#include "base/checked.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/str.h"
#include "model/sequence.h"

#define ROWS 256 /* of a batch */

/* q, k and v see the same input, so do gate and up: four observers a layer. */
enum { IN_ATTN, IN_O, IN_FFN, IN_DOWN, N_INPUTS };

static int input_of(nbi_proj p)
{
    return p <= NBI_V ? IN_ATTN : p == NBI_O ? IN_O : p == NBI_DOWN ? IN_DOWN : IN_FFN;
}

struct nbi_calibration {
    uint32_t n_layers;
    size_t tokens;
    const char *device; /* what computed it: "cpu", "cuda" */
    nbi_backend *be;
    float *row;        /* one batch of activations on the host; NULL where the device observes by itself */
    char *on_device;   /* [n_layers][N_INPUTS] observers of the device, or NULL */
    nbi_observer *obs; /* likewise, on the host */
};

const nbi_observer *nbi_calibration_of(const nbi_calibration *c, uint32_t layer, nbi_proj p)
{
    return &c->obs[layer * N_INPUTS + (uint32_t)input_of(p)];
}

size_t nbi_calibration_tokens(const nbi_calibration *c)
{
    return c->tokens;
}

const char *nbi_calibration_device(const nbi_calibration *c)
{
    return c->device;
}

/* The device's memory goes before the model does, to which the device belongs. */
static void leave_device(nbi_calibration *c)
{
    if (c->on_device)
        c->be->ops->release(c->be, c->on_device);
    c->on_device = NULL;
    c->be = NULL;
}

void nbi_calibration_free(nbi_calibration *c)
{
    if (!c)
        return;
    leave_device(c);
    free(c->row);
    free(c->obs);
    free(c);
}

static nb_status observe(void *user, uint32_t layer, nbi_proj p, const void *x, size_t rows, size_t k)
{
    nbi_calibration *c = user;
    const nbi_quant_ops *q = c->be->quant;
    if (p != NBI_Q && p != NBI_O && p != NBI_GATE && p != NBI_DOWN)
        return NB_OK;
    const size_t i = layer * N_INPUTS + (uint32_t)input_of(p);
    if (c->on_device) {
        const nbi_matrix m = {x, q->act_dtype(c->be), rows, k};
        return q->observe(c->be, c->on_device + i * q->observer_bytes(), &m);
    }
    nb_status st = c->be->ops->download_act(c->be, c->row, x, rows * k);
    if (st == NB_OK)
        nbi_observer_add(&c->obs[i], c->row, rows * k);
    return st;
}

/* Observers, where the activations are: on a device that can, else on the host, for up to `rows` rows at once. */
static nb_status create(nbi_calibration **out, const nb_model *m, size_t rows)
{
    const nbi_config *f = &m->cfg;
    const size_t n = (size_t)f->n_layers * N_INPUTS, q = (size_t)f->n_heads * f->head_dim;
    size_t widest = f->ffn > f->hidden ? f->ffn : f->hidden, elements = 0, bytes;
    nb_status st = NB_OK;
    nbi_calibration *c = calloc(1, sizeof *c);
    if (!c)
        return nbi_fail_nomem("calibration", sizeof *c);
    c->be = m->be;
    c->n_layers = f->n_layers;
    c->device = m->be->name;
    if (!(c->obs = calloc(n, sizeof *c->obs)))
        NB_TRY(nbi_fail_nomem("calibration", n * sizeof *c->obs));
    for (size_t i = 0; i < n; i++)
        nbi_observer_init(&c->obs[i]);
    if (m->be->quant) {
        if (!nbi_mul(n, m->be->quant->observer_bytes(), &bytes))
            NB_TRY(nbi_fail_nomem("calibration", SIZE_MAX));
        NB_TRY(m->be->ops->alloc(m->be, (void **)&c->on_device, bytes, "calibration"));
    } else if (!nbi_mul(rows, widest > q ? widest : q, &elements) || !nbi_mul(elements, sizeof *c->row, &bytes) ||
               !(c->row = malloc(bytes)))
        NB_TRY(nbi_fail_nomem("calibration", elements));
    *out = c;
    c = NULL;
done:
    nbi_calibration_free(c);
    return st;
}

static nb_status read_observers(nbi_calibration *c)
{
    nb_status st = NB_OK;
    if (c->be->ops->lock)
        c->be->ops->lock(c->be);
    for (size_t i = 0; c->on_device && i < (size_t)c->n_layers * N_INPUTS; i++)
        NB_TRY(c->be->quant->observer_read(c->be, c->on_device + i * c->be->quant->observer_bytes(), &c->obs[i]));
done:
    if (c->be->ops->unlock)
        c->be->ops->unlock(c->be);
    leave_device(c);
    return st;
}

static nb_status text_of_jsonl(nbi_str *out, const char *data, size_t n, const char *path)
{
    size_t line = 1;
    for (const char *p = data, *end = data + n; p < end; line++) {
        const char *nl = memchr(p, '\n', (size_t)(end - p));
        size_t len = nl ? (size_t)(nl - p) : (size_t)(end - p);
        if (len && !(len == 1 && *p == '\r')) {
            json_t *j;
            nb_status st = nbi_json_parse(&j, p, len, path);
            if (st != NB_OK)
                return nbi_fail_in(st, "line %zu of ", line);
            const json_t *t = json_object_get(j, "text");
            if (!t)
                t = json_object_get(j, "prompt");
            if (!json_is_string(t)) {
                json_decref(j);
                return nbi_fail(NB_EFORMAT, "line %zu of %s: has no string \"text\" or \"prompt\"", line, path);
            }
            nbi_str_add(out, json_string_value(t), json_string_length(t));
            nbi_str_puts(out, "\n\n");
            json_decref(j);
        }
        p += len + 1;
    }
    return NB_OK;
}

nb_status nbi_load_text(char **out, size_t *bytes, const char *path)
{
    char *data = NULL;
    size_t n = strlen(path);
    nb_status st = nbi_read_file(&data, bytes, path, (size_t)4 << 30);
    *out = data;
    if (st != NB_OK || n < 6 || strcmp(path + n - 6, ".jsonl") != 0)
        return st;
    nbi_str s = {0};
    st = text_of_jsonl(&s, data, *bytes, path);
    free(data);
    *bytes = s.len;
    *out = st == NB_OK ? nbi_str_take(&s) : NULL;
    nbi_str_free(&s);
    return st != NB_OK || *out ? st : nbi_fail_nomem(path, *bytes);
}

nb_status nbi_calibrate(nbi_calibration **out, const nb_model *m, const char *path, size_t max_tokens, size_t ctx,
                        const nb_callbacks *cb)
{
    nb_status st;
    char *text = NULL;
    int32_t *ids = NULL;
    size_t bytes, n;
    nbi_sequence *seq = NULL;
    nbi_calibration *c = NULL;
    const nbi_config *f = &m->cfg;
    if (!m->tok)
        return nbi_fail(NB_EFORMAT, "%s: has no tokenizer.json, which calibration needs", m->path);
    if (ctx > f->max_context)
        ctx = f->max_context;
    NB_TRY(nbi_load_text(&text, &bytes, path));
    NB_TRY(nb_tokenize(m->tok, text, bytes, NB_TOKENIZE_SPECIAL, &ids, &n));
    if (n < 2)
        NB_TRY(nbi_fail(NB_EFORMAT, "%s: has %zu tokens, expected text to calibrate on", path, n));
    if (n > max_tokens)
        n = max_tokens;
    if (ctx > n)
        ctx = n;
    NB_TRY(create(&c, m, ROWS));
    NB_TRY(nbi_sequence_create(&seq, m, ctx, ROWS, m->be->default_kv));
    double start = nbi_now();
    for (size_t at = 0; at < n; at += ctx) {
        size_t len = n - at < ctx ? n - at : ctx;
        if (nbi_progress(cb, "calibrate", "tokens", at, n, at ? (double)at / (nbi_now() - start) : 0))
            NB_TRY(nbi_fail(NB_ECANCELLED, "calibration was cancelled"));
        NB_TRY(nbi_sequence_run(seq, ids + at, len, NULL, NULL, observe, c));
        c->tokens += len;
    }
    NB_TRY(read_observers(c));
    (void)nbi_progress(cb, "calibrate", "tokens", n, n, 0);
    *out = c;
    c = NULL;
done:
    nbi_sequence_free(seq);
    nbi_calibration_free(c);
    free(text);
    free(ids);
    return st;
}
