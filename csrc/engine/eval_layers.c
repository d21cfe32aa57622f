/* nb_eval_layers: layers of a model exchanged one by one for those of its base. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "engine/eval.h"
#include "engine/stream.h"

#define WINDOWS 4
/* Streams this far apart behind the embedding were never meant to be the same: a rotation turns a vector by any angle, while
 * rounding an embedding to 4 bits is an error of a tenth. */
#define ROTATED 0.5

typedef struct sums {
    double diff2, base2; /* of the residual stream */
    double kl;
} sums;

typedef struct layers {
    const nb_model *m, *base;
    nbi_eval_text text;
    nbi_stream *of_m, *of_base;
    nbi_verdict verdict;  /* of the base, one window */
    float *x, *y, *other; /* [ctx][hidden]: the model's stream, the base's, one with a layer exchanged */
    float *logits;
    sums *sums; /* [n_layers + 2]: embedding, layers, head */
    size_t tokens;
    int threads;
} layers;

static size_t n_rows(const layers *l)
{
    return (size_t)l->base->cfg.n_layers + 2;
}

static nb_status prepare(layers *l)
{
    const nbi_config *c = &l->base->cfg;
    const size_t rows = l->text.ctx, bytes = rows * c->hidden * sizeof(float);
    nb_status st;
    l->x = malloc(bytes);
    l->y = malloc(bytes);
    l->other = malloc(bytes);
    l->logits = malloc(rows * c->vocab * sizeof *l->logits);
    l->sums = calloc(n_rows(l), sizeof *l->sums);
    if (!l->x || !l->y || !l->other || !l->logits || !l->sums)
        return nbi_fail_nomem("the comparison of layers", 3 * bytes + rows * c->vocab * sizeof(float));
    NB_TRY(nbi_verdict_init(&l->verdict, rows, c->vocab));
    NB_TRY(nbi_stream_create(&l->of_m, l->m, rows, l->text.kv));
    NB_TRY(nbi_stream_create(&l->of_base, l->base, rows, l->base->be->default_kv));
done:
    return st;
}

static void compare_streams(const layers *l, sums *s)
{
    const size_t n = l->text.ctx * l->base->cfg.hidden;
    for (size_t i = 0; i < n; i++) {
        const double d = (double)l->x[i] - (double)l->y[i];
        s->diff2 += d * d;
        s->base2 += (double)l->y[i] * (double)l->y[i];
    }
}

/* The rest of the base's way for l->other, from before layer `first`. */
static nb_status judge(layers *l, uint32_t first, const int32_t *ids, sums *s)
{
    const size_t rows = l->text.ctx;
    nb_status st = nbi_stream_layers(l->of_base, first, l->base->cfg.n_layers, ids, rows, l->other, NULL, NULL);
    if (st == NB_OK)
        st = nbi_stream_logits(l->of_base, rows, l->other, l->logits);
    if (st == NB_OK)
        s->kl += nbi_verdict_kl(&l->verdict, 0, rows, l->logits, l->threads);
    return st;
}

static nb_status run_base(layers *l, const int32_t *ids)
{
    const size_t rows = l->text.ctx;
    nb_status st;
    NB_TRY(nbi_stream_embed(l->of_base, ids, rows, l->y));
    NB_TRY(nbi_stream_layers(l->of_base, 0, l->base->cfg.n_layers, ids, rows, l->y, NULL, NULL));
    NB_TRY(nbi_stream_logits(l->of_base, rows, l->y, l->logits));
    nbi_verdict_set(&l->verdict, 0, rows, l->logits, l->threads);
done:
    return st;
}

/* Embeddings of both; *rotated: the comparison ends here. */
static nb_status begin(layers *l, const int32_t *ids, bool *rotated)
{
    const size_t rows = l->text.ctx, bytes = rows * l->base->cfg.hidden * sizeof(float);
    nb_status st;
    NB_TRY(nbi_stream_embed(l->of_base, ids, rows, l->y));
    NB_TRY(nbi_stream_embed(l->of_m, ids, rows, l->x));
    compare_streams(l, &l->sums[0]);
    *rotated = sqrt(l->sums[0].diff2) > ROTATED * sqrt(l->sums[0].base2);
    if (*rotated)
        return NB_OK;
    if (memcmp(l->x, l->y, bytes) != 0) { /* where they are the same the divergence is 0 */
        memcpy(l->other, l->x, bytes);
        NB_TRY(judge(l, 0, ids, &l->sums[0]));
    }
done:
    return st;
}

static nb_status one_layer(layers *l, uint32_t i, const int32_t *ids)
{
    const size_t rows = l->text.ctx, bytes = rows * l->base->cfg.hidden * sizeof(float);
    sums *s = &l->sums[i + 1];
    nb_status st;
    memcpy(l->other, l->y, bytes);
    NB_TRY(nbi_stream_layers(l->of_m, i, i + 1, ids, rows, l->other, NULL, NULL));
    NB_TRY(judge(l, i + 1, ids, s));
    NB_TRY(nbi_stream_layers(l->of_m, i, i + 1, ids, rows, l->x, NULL, NULL));
    NB_TRY(nbi_stream_layers(l->of_base, i, i + 1, ids, rows, l->y, NULL, NULL));
    compare_streams(l, s);
done:
    return st;
}

static nb_status one_window(layers *l, const int32_t *ids, bool *rotated)
{
    const uint32_t n = l->base->cfg.n_layers;
    nb_status st;
    NB_TRY(run_base(l, ids));
    NB_TRY(begin(l, ids, rotated));
    if (*rotated)
        return NB_OK;
    for (uint32_t i = 0; i < n; i++)
        NB_TRY(one_layer(l, i, ids));
    NB_TRY(nbi_stream_logits(l->of_m, l->text.ctx, l->y, l->logits));
    l->sums[n + 1].kl += nbi_verdict_kl(&l->verdict, 0, l->text.ctx, l->logits, l->threads);
    l->tokens += l->text.ctx;
done:
    return st;
}

static nb_status run(layers *l, bool *rotated)
{
    const size_t all = l->text.n / l->text.ctx, want = l->text.o.max_windows ? l->text.o.max_windows : WINDOWS,
                 n = want < all ? want : all;
    for (size_t w = 0; w < n && !*rotated; w++) {
        int32_t *ids = l->text.ids + w * all / n * l->text.ctx;
        if (nbi_progress(&l->text.o.callbacks, "compare layers", "windows", w, n, 0))
            return nbi_fail(NB_ECANCELLED, "comparing layers was cancelled");
        if (l->text.bos >= 0)
            ids[0] = l->text.bos;
        nb_status st = one_window(l, ids, rotated);
        if (st != NB_OK)
            return st;
    }
    (void)nbi_progress(&l->text.o.callbacks, "compare layers", "windows", n, n, 0);
    return NB_OK;
}

/* ---- the answer ---- */

static json_t *row_of(const layers *l, size_t i)
{
    const sums *s = &l->sums[i];
    const bool head = i == n_rows(l) - 1;
    char name[48];
    snprintf(name, sizeof name, i == 0 ? "model.embed_tokens" : head ? "lm_head" : "model.layers.%zu", i - 1);
    json_t *row = json_pack("{s:s, s:f}", "layer", name, "kl_alone", fmax(0, s->kl / (double)l->tokens));
    json_object_set_new(row, "stream_error",
                        head ? json_null() : json_real(s->base2 > 0 ? sqrt(s->diff2 / s->base2) : 0));
    return row;
}

static nb_status tell(const layers *l, const char *why, char **json)
{
    json_t *r = json_pack("{s:I, s:I}", "windows", (json_int_t)(l->text.ctx ? l->tokens / l->text.ctx : 0), "tokens",
                          (json_int_t)l->tokens),
           *rows = json_array();
    for (size_t i = 0; !why && i < n_rows(l); i++) {
        if (!isfinite(l->sums[i].kl) || !isfinite(l->sums[i].diff2)) {
            json_decref(rows);
            json_decref(r);
            return nbi_fail(NB_EINTERNAL, "layer %zu of the model gives numbers that are not finite", i ? i - 1 : 0);
        }
        json_array_append_new(rows, row_of(l, i));
    }
    json_object_set_new(r, why ? "why" : "layers", why ? json_string(why) : json_incref(rows));
    json_decref(rows);
    *json = json_dumps(r, JSON_INDENT(2));
    json_decref(r);
    return *json ? NB_OK : nbi_fail_nomem("the comparison of layers", 0);
}

nb_status nb_eval_layers(const nb_model *m, const nb_model *base, const nb_eval_options *o, char **json)
{
    layers l = {.m = m, .base = base};
    bool rotated = false;
    nb_status st;
    if (!m || !base || !o || !json)
        return nbi_fail(NB_EINVAL, "nb_eval_layers: models, options and json must not be NULL");
    *json = NULL;
    if (m->cfg.n_layers != base->cfg.n_layers || m->cfg.hidden != base->cfg.hidden)
        return tell(&l, "the models have different shapes", json);
    NB_TRY(nbi_eval_text_read(&l.text, m, base, o));
    l.threads = (int)base->be->threads > 0 ? (int)base->be->threads : 1;
    NB_TRY(prepare(&l));
    NB_TRY(run(&l, &rotated));
    NB_TRY(tell(&l, rotated ? "the residual streams differ from the embedding on: the model is rotated" : NULL, json));
done:
    nbi_eval_text_free(&l.text);
    nbi_stream_free(l.of_m);
    nbi_stream_free(l.of_base);
    nbi_verdict_free(&l.verdict);
    free(l.x);
    free(l.y);
    free(l.other);
    free(l.logits);
    free(l.sums);
    return st;
}
