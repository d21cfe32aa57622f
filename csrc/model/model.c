/* Questions to a loaded model: nb_model_get_info, nb_model_logits. */
#include "model/model.h"

#include <stdio.h>
#include <string.h>

#include "base/options.h"
#include "model/sequence.h"

const nb_tokenizer *nb_model_tokenizer(const nb_model *m)
{
    return m ? m->tok : NULL;
}

nb_status nb_model_get_info(const nb_model *m, nb_model_info *info)
{
    if (!m || !info)
        return nbi_fail(NB_EINVAL, "nb_model_get_info: model and info must not be NULL");
    const nbi_config *c = &m->cfg;
    uint64_t n = nbi_config_params(c);
    nb_model_info i = {
        .struct_size = sizeof i,
        .n_params = n,
        .weight_bytes = m->weight_bytes,
        .n_layers = c->n_layers,
        .hidden_size = c->hidden,
        .n_heads = c->n_heads,
        .n_kv_heads = c->n_kv_heads,
        .head_dim = c->head_dim,
        .vocab_size = c->vocab,
        .max_context = c->max_context,
        .kv_bytes_per_token = nbi_kv_page_bytes(c, m->be->default_kv) / NBI_PAGE_TOKENS,
    };
    if (n >= 1000000000)
        snprintf(i.name, sizeof i.name, "%s %.1fB", c->model_type, (double)n / 1e9);
    else
        snprintf(i.name, sizeof i.name, "%s %.1fM", c->model_type, (double)n / 1e6);
    snprintf(i.scheme, sizeof i.scheme, "%s", m->scheme);
    snprintf(i.device, sizeof i.device, "%.63s", m->be->description);
    return nbi_give_result(info, &i, sizeof i, "nb_model_info");
}

nb_status nbi_memory_check(const nb_model *m, uint64_t bytes, const char *what)
{
    const uint64_t room = m->be->ops->free_bytes(m->be);
    if (bytes <= room)
        return NB_OK;
    return nbi_fail(NB_ENOMEM, "%s: %.1f MiB are needed for %s, but %s has only %.1f MiB free", m->path,
                    (double)bytes / 0x1p20, what, m->be->description, (double)room / 0x1p20);
}

typedef struct copy {
    float *dst;
    size_t vocab;
} copy;

static nb_status copy_logits(void *user, size_t first, size_t rows, const float *logits)
{
    copy *c = user;
    memcpy(c->dst + first * c->vocab, logits, rows * c->vocab * sizeof *logits);
    return NB_OK;
}

nb_status nb_model_logits(const nb_model *m, const int32_t *ids, size_t n, float *logits)
{
    if (!m || !ids || !logits)
        return nbi_fail(NB_EINVAL, "nb_model_logits: model, ids and logits must not be NULL");
    if (n == 0 || n > m->cfg.max_context)
        return nbi_fail(NB_EINVAL, "nb_model_logits: %zu tokens, expected 1 to %u", n, m->cfg.max_context);
    nbi_sequence *s = NULL;
    nb_status st = nbi_sequence_create(&s, m, n, 256, m->be->default_kv);
    if (st == NB_OK)
        st = nbi_sequence_run(s, ids, n, copy_logits, &(copy){logits, m->cfg.vocab}, NULL, NULL);
    nbi_sequence_free(s);
    return st;
}
