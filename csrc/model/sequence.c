#include "model/sequence.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

struct nbi_sequence {
    const nb_model *m;
    nbi_kv kv;
    nbi_workspace *w;
    int32_t *pages;
    uint32_t *rows;
    float *logits;
    size_t max_tokens, chunk;
};

nb_status nbi_sequence_create(nbi_sequence **out, const nb_model *m, size_t max_tokens, size_t chunk, nbi_kv_type kv)
{
    nb_status st;
    size_t n_pages = nbi_ceil_div(max_tokens, NBI_PAGE_TOKENS), bytes;
    if (chunk > max_tokens)
        chunk = max_tokens;
    if (!nbi_mul(chunk, (size_t)m->cfg.vocab * sizeof(float), &bytes) || n_pages > INT32_MAX)
        return nbi_fail(NB_ELIMIT, "a sequence of %zu tokens is too long", max_tokens);
    nbi_sequence *s = calloc(1, sizeof *s);
    if (!s)
        return nbi_fail_nomem("a sequence", sizeof *s);
    s->m = m;
    s->max_tokens = max_tokens;
    s->chunk = chunk;
    s->pages = malloc(n_pages * sizeof *s->pages);
    s->rows = malloc(chunk * sizeof *s->rows);
    s->logits = malloc(bytes);
    if (!s->pages || !s->rows || !s->logits)
        NB_TRY(nbi_fail_nomem("a sequence", bytes));
    for (size_t i = 0; i < n_pages; i++)
        s->pages[i] = (int32_t)i;
    for (size_t i = 0; i < chunk; i++)
        s->rows[i] = (uint32_t)i;
    NB_TRY(nbi_kv_create(&s->kv, m, (uint32_t)n_pages, kv));
    NB_TRY(nbi_workspace_create(
        &s->w, m, &(nbi_workspace_limits){.rows = chunk, .seqs = 1, .logits = chunk, .context = max_tokens}));
    *out = s;
    s = NULL;
done:
    nbi_sequence_free(s);
    return st;
}

void nbi_sequence_free(nbi_sequence *s)
{
    if (!s)
        return;
    nbi_workspace_free(s->w);
    nbi_kv_free(&s->kv);
    free(s->pages);
    free(s->rows);
    free(s->logits);
    free(s);
}

nb_status nbi_sequence_run(nbi_sequence *s, const int32_t *ids, size_t n, nbi_logits_fn sink, void *sink_user,
                           nbi_tap_fn tap, void *tap_user)
{
    nb_status st = NB_OK;
    if (n == 0 || n > s->max_tokens)
        return nbi_fail(NB_EINVAL, "%zu tokens, expected 1 to %zu", n, s->max_tokens);
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= s->m->cfg.vocab)
            return nbi_fail(NB_EINVAL, "token id %d at position %zu, expected 0 to %u", ids[i], i, s->m->cfg.vocab - 1);
    for (size_t at = 0; at < n; at += s->chunk) {
        size_t rows = n - at < s->chunk ? n - at : s->chunk;
        nbi_seq seq = {.row0 = 0, .n_rows = (uint32_t)rows, .pos0 = (uint32_t)at, .pages = s->pages};
        nbi_batch batch = {.rows = rows,
                           .n_seqs = 1,
                           .n_logits = sink ? rows : 0,
                           .ids = ids + at,
                           .seqs = &seq,
                           .logit_rows = s->rows};
        NB_TRY(nbi_forward(s->m, &s->kv, s->w, &batch, s->logits, tap, tap_user));
        if (sink)
            NB_TRY(sink(sink_user, at, rows, s->logits));
    }
done:
    return st;
}
