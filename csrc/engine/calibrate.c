#include "engine/calibrate.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/str.h"
#include "model/sequence.h"

/* q, k and v see the same input, so do gate and up: four observers a layer. */
enum { IN_ATTN, IN_O, IN_FFN, IN_DOWN, N_INPUTS };

static int input_of(nbi_proj p)
{
    return p <= NBI_V ? IN_ATTN : p == NBI_O ? IN_O : p == NBI_DOWN ? IN_DOWN : IN_FFN;
}

struct nbi_calibration {
    uint32_t n_layers;
    size_t tokens;
    nbi_backend *be;
    float *row; /* one batch of activations on the host */
    size_t row_elements;
    nbi_observer *obs; /* [n_layers][N_INPUTS] */
};

const nbi_observer *nbi_calibration_of(const nbi_calibration *c, uint32_t layer, nbi_proj p)
{
    return &c->obs[layer * N_INPUTS + (uint32_t)input_of(p)];
}

size_t nbi_calibration_tokens(const nbi_calibration *c)
{
    return c->tokens;
}

void nbi_calibration_free(nbi_calibration *c)
{
    if (!c)
        return;
    free(c->row);
    free(c->obs);
    free(c);
}

static nb_status observe(void *user, uint32_t layer, nbi_proj p, const void *x, size_t rows, size_t k)
{
    nbi_calibration *c = user;
    if (p != NBI_Q && p != NBI_O && p != NBI_GATE && p != NBI_DOWN)
        return NB_OK;
    nb_status st = c->be->ops->download_act(c->be, c->row, x, rows * k);
    if (st == NB_OK)
        nbi_observer_add(&c->obs[layer * N_INPUTS + (uint32_t)input_of(p)], c->row, rows * k);
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
    size_t widest = f->ffn > f->hidden ? f->ffn : f->hidden, q = (size_t)f->n_heads * f->head_dim;
    if (!(c = calloc(1, sizeof *c)))
        NB_TRY(nbi_fail_nomem("calibration", sizeof *c));
    c->be = m->be;
    c->n_layers = f->n_layers;
    c->row_elements = 256 * (widest > q ? widest : q);
    c->row = malloc(c->row_elements * sizeof *c->row);
    c->obs = calloc((size_t)f->n_layers * N_INPUTS, sizeof *c->obs);
    if (!c->row || !c->obs)
        NB_TRY(nbi_fail_nomem("calibration", c->row_elements * sizeof *c->row));
    for (size_t i = 0; i < (size_t)f->n_layers * N_INPUTS; i++)
        nbi_observer_init(&c->obs[i]);
    NB_TRY(nbi_sequence_create(&seq, m, ctx, 256, m->be->default_kv));
    double start = nbi_now();
    for (size_t at = 0; at < n; at += ctx) {
        size_t len = n - at < ctx ? n - at : ctx;
        if (nbi_progress(cb, "calibrate", "tokens", at, n, at ? (double)at / (nbi_now() - start) : 0))
            NB_TRY(nbi_fail(NB_ECANCELLED, "calibration was cancelled"));
        NB_TRY(nbi_sequence_run(seq, ids + at, len, NULL, NULL, observe, c));
        c->tokens += len;
    }
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
