/* nb_eval: perplexity by a named protocol, and how far a model is from a base model.
 *
 *   hf         the text tokenised once with its special tokens (one BOS at the start), disjoint windows of ctx tokens,
 *              the tail dropped; tokens 2..ctx of each window are scored.  GPTQ, AWQ, SmoothQuant papers.
 *   llama.cpp  one trailing newline dropped, the first token of each window replaced by BOS if the tokenizer adds one;
 *              only positions ctx/2 .. ctx-2 of each window predict a scored token.
 *
 * Log-softmax: fp32 logits, sums in double, ascending token ids.  Windows and rows are added in order, so the figure
 * does not depend on threads. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/kv.h"
#include "base/log.h"
#include "base/options.h"
#include "engine/calibrate.h"
#include "engine/eval.h"
#include "model/sequence.h"
#include "text/tokenizer.h"

void nb_eval_options_init(nb_eval_options *o)
{
    *o = (nb_eval_options){.struct_size = sizeof *o};
}

/* What one scored position contributes. */
typedef struct score {
    double nll, nll_base, kld, dp;
    bool same_top;
} score;

typedef struct eval {
    const int32_t *ids; /* of the current window */
    size_t ctx, first;  /* position p predicts ids[p+1]; scored for p in first .. ctx-2 */
    size_t vocab;
    float *base_logits; /* [ctx][vocab] of the base model, NULL without one */
    score *scores;      /* [ctx] */
} eval;

static double log_sum_exp(const float *x, size_t n)
{
    float max = x[0];
    double sum = 0;
    for (size_t i = 1; i < n; i++)
        max = x[i] > max ? x[i] : max;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)x[i] - (double)max);
    return (double)max + log(sum);
}

static size_t argmax(const float *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

/* KL(base || model) = sum p_base (log p_base - log p_model), in nats. */
static void score_row(const eval *e, size_t pos, const float *x, score *s)
{
    size_t target = (size_t)e->ids[pos + 1];
    double z = log_sum_exp(x, e->vocab);
    *s = (score){.nll = z - (double)x[target]};
    if (!e->base_logits)
        return;
    const float *b = e->base_logits + pos * e->vocab;
    double zb = log_sum_exp(b, e->vocab), kld = 0;
    for (size_t i = 0; i < e->vocab; i++) {
        double lb = (double)b[i] - zb;
        kld += exp(lb) * (lb - ((double)x[i] - z));
    }
    s->nll_base = zb - (double)b[target];
    s->kld = kld > 0 ? kld : 0; /* rounding may leave -1e-17 where both agree */
    s->dp = exp(-s->nll) - exp(-s->nll_base);
    s->same_top = argmax(x, e->vocab) == argmax(b, e->vocab);
}

static nb_status take_scores(void *user, size_t first, size_t rows, const float *logits)
{
    eval *e = user;
#pragma omp parallel for schedule(static)
    for (size_t r = 0; r < rows; r++) {
        size_t pos = first + r;
        if (pos >= e->first && pos + 1 < e->ctx)
            score_row(e, pos, logits + r * e->vocab, &e->scores[pos]);
    }
    return NB_OK;
}

static nb_status keep_logits(void *user, size_t first, size_t rows, const float *logits)
{
    eval *e = user;
    memcpy(e->base_logits + first * e->vocab, logits, rows * e->vocab * sizeof *logits);
    return NB_OK;
}

typedef struct sums {
    double nll, nll2, nll_base, kld, max_kld, dp2;
    uint64_t scored, same_top;
} sums;

static void add_window(sums *t, const eval *e)
{
    for (size_t p = e->first; p + 1 < e->ctx; p++) {
        const score *s = &e->scores[p];
        t->nll += s->nll;
        t->nll2 += s->nll * s->nll;
        t->nll_base += s->nll_base;
        t->kld += s->kld;
        t->max_kld = s->kld > t->max_kld ? s->kld : t->max_kld;
        t->dp2 += s->dp * s->dp;
        t->same_top += s->same_top;
        t->scored++;
    }
}

static void finish(nb_eval_result *r, const sums *t, bool base)
{
    double n = (double)t->scored, mean = t->nll / n, var = t->nll2 / n - mean * mean;
    r->perplexity = exp(mean);
    r->perplexity_error = t->scored > 1 && var > 0 ? r->perplexity * sqrt(var / (n - 1)) : 0;
    r->scored = t->scored;
    if (!base)
        return;
    r->base_perplexity = exp(t->nll_base / n);
    r->mean_kld = t->kld / n;
    r->max_kld = t->max_kld;
    r->same_top = (double)t->same_top / n;
    r->rms_dp = sqrt(t->dp2 / n);
}

static nb_status read_ids(const nb_model *m, const nb_eval_options *o, bool llama_cpp, int32_t **ids, size_t *n)
{
    char *text = NULL;
    size_t bytes;
    if (!m->tok)
        return nbi_fail(NB_EFORMAT, "%s: has no tokenizer.json, which eval needs", m->path);
    nb_status st = nbi_load_text(&text, &bytes, o->text);
    if (st != NB_OK)
        return st;
    if (llama_cpp && bytes && text[bytes - 1] == '\n')
        bytes--;
    st = nb_tokenize(m->tok, text, bytes, NB_TOKENIZE_SPECIAL, ids, n);
    free(text);
    return st == NB_OK ? st : nbi_fail_in(st, "%s: ", o->text);
}

static nb_status same_vocabulary(const nb_model *m, const nb_model *base, const nb_eval_options *o, bool llama_cpp,
                                 const int32_t *ids, size_t n)
{
    int32_t *other = NULL;
    size_t n_other = 0;
    if (base->cfg.vocab != m->cfg.vocab)
        return nbi_fail(NB_EINVAL, "%s: has a vocabulary of %u, the base model %s one of %u", m->path, m->cfg.vocab,
                        base->path, base->cfg.vocab);
    nb_status st = read_ids(base, o, llama_cpp, &other, &n_other);
    if (st == NB_OK && (n != n_other || memcmp(ids, other, n * sizeof *ids) != 0))
        st = nbi_fail(NB_EINVAL, "%s and %s tokenise %s differently, so their probabilities cannot be compared",
                      m->path, base->path, o->text);
    free(other);
    return st;
}

static nb_status run_windows(eval *e, sums *total, nbi_sequence *seq, nbi_sequence *base_seq, int32_t *ids,
                             size_t windows, int32_t bos, const nb_callbacks *cb)
{
    nb_status st = NB_OK;
    double start = nbi_now();
    for (size_t w = 0; w < windows; w++) {
        int32_t *win = ids + w * e->ctx;
        if (nbi_progress(cb, "eval", "tokens", w * e->ctx, windows * e->ctx,
                         w ? (double)(w * e->ctx) / (nbi_now() - start) : 0))
            NB_TRY(nbi_fail(NB_ECANCELLED, "eval was cancelled"));
        if (bos >= 0)
            win[0] = bos;
        e->ids = win;
        if (base_seq)
            NB_TRY(nbi_sequence_run(base_seq, win, e->ctx, keep_logits, e, NULL, NULL));
        NB_TRY(nbi_sequence_run(seq, win, e->ctx, take_scores, e, NULL, NULL));
        add_window(total, e);
    }
    (void)nbi_progress(cb, "eval", "tokens", windows * e->ctx, windows * e->ctx,
                       (double)(windows * e->ctx) / (nbi_now() - start));
done:
    return st;
}

nb_status nbi_eval_text_read(nbi_eval_text *t, const nb_model *m, const nb_model *base, const nb_eval_options *options)
{
    nb_status st;
    *t = (nbi_eval_text){.kv = NBI_KV_F32, .bos = -1};
    nb_eval_options_init(&t->o);
    NB_TRY(nbi_take_options(&t->o, sizeof t->o, options, "nb_eval_options"));
    const nb_eval_options *o = &t->o;
    t->llama_cpp = o->protocol && strcmp(o->protocol, "llama.cpp") == 0;
    if (o->protocol && !t->llama_cpp && strcmp(o->protocol, "hf") != 0)
        NB_TRY(nbi_fail(NB_EINVAL, "the protocol is \"%s\", expected hf or llama.cpp", o->protocol));
    NB_TRY(nbi_kv_option(&t->kv, m->be, o->kv_dtype));
    if (!o->text)
        NB_TRY(nbi_fail(NB_EINVAL, "no text was given (-f FILE)"));
    t->ctx = o->ctx ? o->ctx : 512;
    if (t->ctx < 2 || t->ctx > m->cfg.max_context || (base && t->ctx > base->cfg.max_context))
        NB_TRY(nbi_fail(NB_EINVAL, "the context is %zu, expected 2 to %u", t->ctx, m->cfg.max_context));
    NB_TRY(read_ids(m, o, t->llama_cpp, &t->ids, &t->n));
    const size_t least = (t->llama_cpp ? 2 : 1) * t->ctx;
    if (t->n < least)
        NB_TRY(nbi_fail(NB_EINVAL, "%s: has %zu tokens, expected at least %zu for windows of %zu", o->text, t->n, least,
                        t->ctx));
    if (base)
        NB_TRY(same_vocabulary(m, base, o, t->llama_cpp, t->ids, t->n));
    t->windows = t->n / t->ctx;
    if (o->max_windows && t->windows > o->max_windows)
        t->windows = o->max_windows;
    if (t->llama_cpp && nbi_tokenizer_adds_bos(m->tok))
        t->bos = nb_tokenizer_bos(m->tok);
done:
    if (st != NB_OK)
        nbi_eval_text_free(t);
    return st;
}

void nbi_eval_text_free(nbi_eval_text *t)
{
    free(t->ids);
    t->ids = NULL;
}

nb_status nb_eval(const nb_model *m, const nb_model *base, const nb_eval_options *options, nb_eval_result *r)
{
    nb_status st;
    nbi_eval_text t = {0};
    nbi_sequence *seq = NULL, *base_seq = NULL;
    eval e = {0};
    sums total = {0};
    nb_eval_result result = {.struct_size = sizeof result};
    if (!m || !options || !r)
        return nbi_fail(NB_EINVAL, "nb_eval: model, options and result must not be NULL");
    NB_TRY(
        nbi_give_result(r, &result, sizeof result, "nb_eval_result")); /* a wrong struct_size is told before the work */
    NB_TRY(nbi_eval_text_read(&t, m, base, options));
    e.ctx = t.ctx;
    e.first = t.llama_cpp ? e.ctx / 2 : 0;
    e.vocab = m->cfg.vocab;
    e.scores = calloc(e.ctx, sizeof *e.scores);
    if (base)
        e.base_logits = malloc(e.ctx * e.vocab * sizeof *e.base_logits);
    if (!e.scores || (base && !e.base_logits))
        NB_TRY(nbi_fail_nomem("eval", e.ctx * e.vocab * sizeof *e.base_logits));
    NB_TRY(nbi_sequence_create(&seq, m, e.ctx, 256, t.kv));
    if (base)
        NB_TRY(nbi_sequence_create(&base_seq, base, e.ctx, 256, base->be->default_kv));
    double start = nbi_now();
    NB_TRY(run_windows(&e, &total, seq, base_seq, t.ids, t.windows, t.bos, &t.o.callbacks));
    result.tokens = t.n;
    result.windows = t.windows;
    result.seconds = nbi_now() - start;
    finish(&result, &total, base != NULL);
    NB_TRY(nbi_give_result(r, &result, sizeof result, "nb_eval_result"));
    if (!isfinite(result.perplexity))
        st = nbi_fail(NB_EINTERNAL, "the model gives logits that are not finite on %s", t.o.text);
done:
    nbi_sequence_free(seq);
    nbi_sequence_free(base_seq);
    free(e.scores);
    free(e.base_logits);
    nbi_eval_text_free(&t);
    return st;
}
