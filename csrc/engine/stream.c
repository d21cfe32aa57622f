#include "engine/stream.h"

#include <math.h>
#include <stdlib.h>

#include "base/checked.h"

struct nbi_stream {
    const nb_model *m;
    nbi_kv kv; /* of one layer, one window */
    nbi_workspace *w;
    int32_t *pages;
};

nb_status nbi_stream_create(nbi_stream **out, const nb_model *m, size_t ctx, nbi_kv_type kv)
{
    const size_t n_pages = nbi_ceil_div(ctx, NBI_PAGE_TOKENS);
    nb_status st;
    nb_model one = *m; /* a cache for one layer */
    nbi_stream *s = calloc(1, sizeof *s);
    if (!s)
        return nbi_fail_nomem("a stream of text", sizeof *s);
    s->m = m;
    one.cfg.n_layers = 1;
    if (!(s->pages = malloc(n_pages * sizeof *s->pages)))
        NB_TRY(nbi_fail_nomem("a stream of text", n_pages * sizeof *s->pages));
    for (size_t i = 0; i < n_pages; i++)
        s->pages[i] = (int32_t)i;
    NB_TRY(nbi_kv_create(&s->kv, &one, (uint32_t)n_pages, kv));
    NB_TRY(
        nbi_workspace_create(&s->w, m, &(nbi_workspace_limits){.rows = ctx, .seqs = 1, .logits = ctx, .context = ctx}));
    *out = s;
    s = NULL;
done:
    nbi_stream_free(s);
    return st;
}

void nbi_stream_free(nbi_stream *s)
{
    if (!s)
        return;
    nbi_workspace_free(s->w);
    nbi_kv_free(&s->kv);
    free(s->pages);
    free(s);
}

nb_status nbi_stream_embed(nbi_stream *s, const int32_t *ids, size_t rows, float *x)
{
    const nbi_seq seq = {.n_rows = (uint32_t)rows, .pages = s->pages};
    const nbi_batch batch = {.rows = rows, .n_seqs = 1, .ids = ids, .seqs = &seq};
    return nbi_forward_embed(s->m, s->w, &batch, x);
}

nb_status nbi_stream_layers(nbi_stream *s, uint32_t first, uint32_t end, const int32_t *ids, size_t rows, float *x,
                            nbi_tap_fn tap, void *tap_user)
{
    const nbi_seq seq = {.n_rows = (uint32_t)rows, .pages = s->pages};
    const nbi_batch batch = {.rows = rows, .n_seqs = 1, .ids = ids, .seqs = &seq};
    nb_status st = NB_OK;
    for (uint32_t i = first; i < end && st == NB_OK; i++)
        st = nbi_forward_layer(s->m, i, &s->kv.layers[0], s->w, &batch, x, tap, tap_user);
    return st;
}

nb_status nbi_stream_logits(nbi_stream *s, size_t rows, const float *x, float *logits)
{
    return nbi_forward_logits(s->m, s->w, rows, x, logits);
}

/* ---- how far apart ---- */

size_t nbi_verdict_bytes(size_t vocab)
{
    return 2 * vocab * sizeof(float);
}

nb_status nbi_verdict_init(nbi_verdict *v, size_t rows, size_t vocab)
{
    size_t bytes = 0;
    *v = (nbi_verdict){.rows = rows, .vocab = vocab};
    if (nbi_mul(rows, vocab, &bytes) && nbi_mul(bytes, sizeof(float), &bytes)) {
        v->logits = malloc(bytes);
        v->p = malloc(bytes);
        v->z = malloc(rows * sizeof *v->z);
        v->kl = malloc(rows * sizeof *v->kl);
    }
    if (v->logits && v->p && v->z && v->kl)
        return NB_OK;
    nbi_verdict_free(v);
    return nbi_fail_nomem("the logits of a text", 2 * bytes);
}

void nbi_verdict_free(nbi_verdict *v)
{
    free(v->logits);
    free(v->p);
    free(v->z);
    free(v->kl);
    *v = (nbi_verdict){0};
}

static double log_sum_exp(const float *x, size_t n)
{
    float max = x[0];
    double sum = 0;
    for (size_t i = 1; i < n; i++)
        max = x[i] > max ? x[i] : max;
    for (size_t i = 0; i < n; i++)
        sum += (double)expf(x[i] - max);
    return (double)max + log(sum);
}

void nbi_verdict_set(nbi_verdict *v, size_t first, size_t rows, const float *logits, int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (size_t r = 0; r < rows; r++) {
        const float *x = logits + r * v->vocab;
        float *keep = v->logits + (first + r) * v->vocab, *p = v->p + (first + r) * v->vocab;
        const double z = log_sum_exp(x, v->vocab);
        for (size_t i = 0; i < v->vocab; i++) {
            keep[i] = x[i];
            p[i] = (float)exp((double)x[i] - z);
        }
        v->z[first + r] = z;
    }
}

/* Each term is p times a small difference, so that rounding p costs in proportion to the result. */
double nbi_verdict_kl(nbi_verdict *v, size_t first, size_t rows, const float *logits, int threads)
{
    double sum = 0;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (size_t r = 0; r < rows; r++) {
        const float *x = logits + r * v->vocab, *b = v->logits + (first + r) * v->vocab,
                    *p = v->p + (first + r) * v->vocab;
        const double shift = log_sum_exp(x, v->vocab) - v->z[first + r];
        double kl = 0;
        for (size_t i = 0; i < v->vocab; i++)
            kl += (double)p[i] * ((double)b[i] - (double)x[i] + shift);
        v->kl[r] = kl;
    }
    for (size_t r = 0; r < rows; r++)
        sum += v->kl[r];
    return sum;
}
