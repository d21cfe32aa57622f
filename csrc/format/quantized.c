#include "format/quantized.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "format/bitnet.h"
#include "format/bitsandbytes.h"
#include "format/compressed_tensors.h"
#include "format/nibble.h"
#include "format/parts.h"

/* In the order in which they are chosen for writing. */
static const nbi_quant_format *const formats[] = {
    &nbi_ct_format,
    &nbi_bnb_format,
    &nbi_bitnet_format,
    &nbi_nibble_format,
};
#define N_FORMATS (sizeof formats / sizeof *formats)

struct nbi_quant_config {
    const nbi_quant_format *format;
    void *config;
    nbi_quant_model model;
};

/* ---- reading --------------------------------------------------------------------------------------------------- */

static nb_status unknown_method(const char *method, const char *where)
{
    char known[256] = "";
    for (size_t i = 0, at = 0; i < N_FORMATS; i++)
        at += (size_t)snprintf(known + at, sizeof known - at, "%s%s", i ? ", " : "", formats[i]->name);
    return nbi_fail(NB_EUNSUPPORTED, "%s: \"quant_method\" is \"%s\", expected one of %s, or no quantization", where,
                    method, known);
}

nb_status nbi_quant_config_parse(nbi_quant_config **out, const json_t *q, const char *where)
{
    const char *method = "";
    nb_status st;
    *out = NULL;
    if (!json_is_object(q))
        return nbi_fail(NB_EFORMAT, "%s: quantization_config is not an object", where);
    if ((st = nbi_json_string(q, "quant_method", &method, where)) != NB_OK)
        return st;
    size_t i = 0;
    while (i < N_FORMATS && strcmp(formats[i]->name, method) != 0)
        i++;
    if (i == N_FORMATS)
        return unknown_method(method, where);
    nbi_quant_config *c = calloc(1, sizeof *c);
    if (!c)
        return nbi_fail_nomem(where, sizeof *c);
    c->format = formats[i];
    if ((st = c->format->parse(&c->config, &c->model, q, where)) != NB_OK) {
        free(c);
        return st;
    }
    *out = c;
    return NB_OK;
}

void nbi_quant_config_free(nbi_quant_config *c)
{
    if (c)
        c->format->free(c->config);
    free(c);
}

const nbi_quant_format *nbi_quant_format_of(const nbi_quant_config *c)
{
    return c ? c->format : NULL;
}

nbi_quant_model nbi_quant_model_of(const nbi_quant_config *c)
{
    return c ? c->model : (nbi_quant_model){0};
}

nb_status nbi_quant_scheme(const nbi_quant_config *c, const nbi_checkpoint *ckpt, const char *module, const char *cls,
                           nbi_scheme *out)
{
    *out = (nbi_scheme){0};
    return c ? c->format->scheme(c->config, ckpt, module, cls, out) : NB_OK;
}

nb_status nbi_quant_read(nbi_weight *w, const nbi_quant_config *c, const nbi_checkpoint *ckpt, const char *module,
                         const char *cls, size_t n, size_t k)
{
    nb_status st;
    *w = (nbi_weight){.n = n, .k = k};
    NB_TRY(nbi_quant_scheme(c, ckpt, module, cls, &w->scheme));
    NB_TRY(w->scheme.bits ? c->format->read(w, c->config, ckpt, module) : nbi_part_read_dense(w, ckpt, module));
    NB_TRY(nbi_part_read_bias(w, ckpt, module));
done:
    if (st != NB_OK)
        nbi_weight_free(w);
    return st;
}

/* ---- writing --------------------------------------------------------------------------------------------------- */

const nbi_quant_format *nbi_quant_choose(const nbi_quant_entry *e, size_t n, const nbi_quant_model *model)
{
    for (size_t i = 0; i < N_FORMATS; i++)
        if (formats[i]->can_write && formats[i]->can_write(e, n, model))
            return formats[i];
    return NULL;
}

nb_status nbi_quant_config_build(json_t **out, const nbi_quant_format *f, const nbi_quant_entry *e, size_t n,
                                 const nbi_quant_model *model)
{
    return f->build(out, e, n, model);
}

nb_status nbi_quant_declare(const nbi_quant_format *f, nbi_st_writer *w, const char *module, size_t n, size_t k,
                            const nbi_scheme *s, nbi_dtype scale)
{
    return f->declare(w, module, n, k, s, scale);
}

nb_status nbi_quant_write(const nbi_quant_format *f, nbi_st_writer *w, const char *module, const nbi_weight *weight,
                          nbi_dtype scale)
{
    return f->write(w, module, weight, scale);
}

size_t nbi_quant_bytes(const nbi_quant_format *f, size_t n, size_t k, const nbi_scheme *s, nbi_dtype scale,
                       const nbi_weight *weight)
{
    return f->bytes(n, k, s, scale, weight);
}
