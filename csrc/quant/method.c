#include "quant/method.h"

#include <stddef.h>
#include <string.h>

#include "base/json.h"
#include "base/rng.h"
#include "quant/binary.h"
#include "quant/clipped.h"
#include "quant/hqq.h"
#include "quant/llm_int8.h"
#include "quant/nf4.h"
#include "quant/quip.h"
#include "quant/rtn.h"
#include "quant/ternary.h"

static nb_status rtn(nbi_weight *out, const nbi_method_job *j)
{
    bool on_device;
    return j->be ? nbi_rtn_on(j->be, out, j->src, j->scheme, j->scale_dtype, j->threads, &on_device)
                 : nbi_rtn(out, j->src, j->scheme, j->scale_dtype, j->threads);
}

static nb_status clip(nbi_weight *out, const nbi_method_job *j)
{
    return nbi_clipped(out, j->src, j->scheme, j->scale_dtype, j->in, j->threads);
}

static nb_status clip_weights(nbi_weight *out, const nbi_method_job *j)
{
    return nbi_clipped(out, j->src, j->scheme, j->scale_dtype, NULL, j->threads);
}

static nb_status gptq(nbi_weight *out, const nbi_method_job *j)
{
    return nbi_gptq(out, j->src, j->scheme, j->scale_dtype, j->in->gram, &j->options->gptq, j->threads, j->damp_used);
}

/* After the balance: clips that lose least of the outputs.  Queries and keys are not clipped, as in the reference: softmax makes
 * errors of large scores large. */
static nb_status awq(nbi_weight *out, const nbi_method_job *j)
{
    if (strstr(j->module, "q_proj") || strstr(j->module, "k_proj"))
        return rtn(out, j);
    return nbi_clipped(out, j->src, j->scheme, j->scale_dtype, j->in, j->threads);
}

/* Layers to which an override gave other bits are rounded to nearest. */
static nb_status hqq(nbi_weight *out, const nbi_method_job *j)
{
    return j->scheme->zero_frac ? nbi_hqq(out, j->src, j->scheme, j->scale_dtype, j->threads) : rtn(out, j);
}

/* Layers to which an override gave other bits are rounded to nearest. */
static nb_status nf4(nbi_weight *out, const nbi_method_job *j)
{
    return j->scheme->kind == NBI_KIND_NF4 ? nbi_nf4_quantize(out, j->src, j->scheme, j->threads) : rtn(out, j);
}

static nb_status twn(nbi_weight *out, const nbi_method_job *j)
{
    return j->scheme->bits == 2 ? nbi_twn(out, j->src, j->scheme, j->scale_dtype, j->options->refine, j->threads)
                                : rtn(out, j);
}

static nb_status absmean(nbi_weight *out, const nbi_method_job *j)
{
    return j->scheme->bits == 2 ? nbi_absmean(out, j->src, j->scheme, j->scale_dtype, j->threads) : rtn(out, j);
}

static nb_status binary(nbi_weight *out, const nbi_method_job *j)
{
    return j->scheme->kind == NBI_KIND_BINARY ? nbi_binary(out, j->src, j->scheme, j->scale_dtype, j->threads)
                                              : rtn(out, j);
}

/* The rotations' signs are drawn anew for each layer of the model, and for each output; layers with one input share its signs. */
static nb_status quip(nbi_weight *out, const nbi_method_job *j)
{
    const nbi_quip_options o = nbi_quip_defaults();
    uint64_t name = 0;
    for (const char *c = j->module; *c; c++)
        name = nbi_rng(name, (unsigned char)*c);
    return nbi_quip(out, j->src, j->scheme, j->in->gram, &o, nbi_rng(j->layer, j->port), nbi_rng(j->layer, name),
                    j->threads);
}

/* Layers to which an override gave other bits are rounded to nearest. */
static nb_status spqr(nbi_weight *out, const nbi_method_job *j)
{
    return j->scheme->nested ? nbi_spqr(out, j->src, j->scheme, j->in->gram, &j->options->spqr, j->threads)
                             : rtn(out, j);
}

static nb_status llm_int8(nbi_weight *out, const nbi_method_job *j)
{
    return j->scheme->outliers ? nbi_llm_int8(out, j->src, j->scheme, j->scale_dtype, j->in, j->options->outliers)
                               : rtn(out, j);
}

/* ---- options ---- */

/* One line an option: how it is written, where it goes, and from what to what a number may be (defaults: nbi_method_parse()). */
struct nbi_method_key {
    const char *name;                    /* NULL: the list ends */
    enum { YES_NO, NUMBER, COUNT } type; /* bool, float, uint32_t */
    size_t at;                           /* in nbi_method_options */
    double least, most;
};

#define AT(member) offsetof(nbi_method_options, member)

static const nbi_method_key no_keys[] = {{0}};
static const nbi_method_key gptq_keys[] = {
    {"act_order", YES_NO, AT(gptq.act_order), 0, 1}, {"static_groups", YES_NO, AT(gptq.static_groups), 0, 1},
    {"clip", YES_NO, AT(gptq.clip), 0, 1},           {"damp", NUMBER, AT(gptq.damp), 0, 1},
    {"block", COUNT, AT(gptq.block), 1, 1 << 20},    {"descent", COUNT, AT(gptq.descent), 0, 1000},
    {"true_sequential", YES_NO, AT(in_order), 0, 1}, {0}};
static const nbi_method_key spqr_keys[] = {{"act_order", YES_NO, AT(spqr.act_order), 0, 1},
                                           {"threshold", NUMBER, AT(spqr.threshold), 0, 1e9},
                                           {"damp", NUMBER, AT(spqr.damp), 0, 1},
                                           {"block", COUNT, AT(spqr.block), 1, 1 << 20},
                                           {0}};
static const nbi_method_key smooth_keys[] = {{"alpha", NUMBER, AT(alpha), 0, 1}, {0}};
static const nbi_method_key twn_keys[] = {{"refine", YES_NO, AT(refine), 0, 1}, {0}};
static const nbi_method_key llm_int8_keys[] = {{"threshold", NUMBER, AT(outliers), 0, 1e9}, {0}};

static const nbi_method methods[] = {
    {"rtn", 0, NBI_BALANCE_NONE, rtn, NULL, no_keys},
    {"clip", NBI_NEEDS_GRAM, NBI_BALANCE_NONE, clip, NULL, no_keys},
    {"clip-weights", 0, NBI_BALANCE_NONE, clip_weights, NULL, no_keys},
    {"hqq", 0, NBI_BALANCE_NONE, hqq, nbi_hqq_scheme, no_keys},
    {"gptq", NBI_NEEDS_GRAM, NBI_BALANCE_NONE, gptq, NULL, gptq_keys},
    {"quip", NBI_NEEDS_GRAM, NBI_BALANCE_NONE, quip, nbi_quip_scheme, no_keys},
    {"awq", NBI_NEEDS_GRAM | NBI_NEEDS_SIZES, NBI_BALANCE_AWQ, awq, NULL, no_keys},
    {"smoothquant", NBI_NEEDS_SIZES, NBI_BALANCE_SMOOTH, rtn, NULL, smooth_keys},
    {"nf4", 0, NBI_BALANCE_NONE, nf4, nbi_nf4_scheme, no_keys},
    {"twn", 0, NBI_BALANCE_NONE, twn, nbi_ternary_scheme, twn_keys},
    {"absmean", 0, NBI_BALANCE_NONE, absmean, nbi_ternary_scheme, no_keys},
    {"binary", 0, NBI_BALANCE_NONE, binary, nbi_binary_scheme, no_keys},
    {"spqr", NBI_NEEDS_GRAM, NBI_BALANCE_NONE, spqr, nbi_spqr_scheme, spqr_keys},
    {"llm-int8", NBI_NEEDS_SIZES, NBI_BALANCE_NONE, llm_int8, nbi_llm_int8_scheme, llm_int8_keys},
};

static nb_status unknown(const char *name, const char *where)
{
    char list[256] = "";
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        strncat(list, i ? ", " : "", sizeof list - strlen(list) - 1);
        strncat(list, methods[i].name, sizeof list - strlen(list) - 1);
    }
    return nbi_fail(NB_EFORMAT, "%s: there is no method \"%s\", the known ones are %s", where, name, list);
}

static nb_status unknown_key(const nbi_method *m, const char *key, const char *where)
{
    char list[256] = "";
    for (const nbi_method_key *k = m->keys; k->name; k++) {
        strncat(list, k == m->keys ? "" : ", ", sizeof list - strlen(list) - 1);
        strncat(list, k->name, sizeof list - strlen(list) - 1);
    }
    return nbi_fail(NB_EFORMAT, "%s: method %s has no option \"%s\", %s%s", where, m->name, key,
                    m->keys->name ? "its options are " : "it has none", list);
}

static nb_status parse_key(const nbi_method_key *k, nbi_method_options *o, const json_t *j, const char *where)
{
    char *to = (char *)o + k->at;
    double number;
    int64_t count;
    nb_status st;
    switch (k->type) {
    case YES_NO:
        return nbi_json_bool(j, k->name, (bool *)(void *)to, where);
    case NUMBER:
        number = (double)*(float *)(void *)to;
        st = nbi_json_double(j, k->name, k->least, k->most, &number, where);
        *(float *)(void *)to = (float)number;
        return st;
    default:
        count = *(uint32_t *)(void *)to;
        st = nbi_json_int(j, k->name, (int64_t)k->least, (int64_t)k->most, &count, where);
        *(uint32_t *)(void *)to = (uint32_t)count;
        return st;
    }
}

static nb_status parse_options(const nbi_method *m, nbi_method_options *o, const json_t *j, const char *where)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)j, name, value)
    {
        const nbi_method_key *k = m->keys;
        while (k->name && strcmp(k->name, name) != 0)
            k++;
        if (!k->name && strcmp(name, "name") == 0)
            continue;
        nb_status st = k->name ? parse_key(k, o, j, where) : unknown_key(m, name, where);
        if (st != NB_OK)
            return st;
    }
    return NB_OK;
}

nb_status nbi_method_parse(const nbi_method **out, nbi_method_options *o, const json_t *j, const char *where)
{
    const char *name = NULL;
    *o =
        (nbi_method_options){.gptq = nbi_gptq_defaults(), .spqr = nbi_spqr_defaults(), .alpha = 0.5f, .outliers = 6.0f};
    *out = &methods[0];
    if (!j || json_is_null(j))
        return NB_OK;
    if (!json_is_string(j) && !json_is_object(j))
        return nbi_fail(NB_EFORMAT, "%s is neither a method's name nor an object with a \"name\"", where);
    name = json_is_string(j) ? json_string_value(j) : json_string_value(json_object_get(j, "name"));
    if (!name)
        return nbi_fail(NB_EFORMAT, "%s: \"name\" is missing", where);
    size_t i = 0;
    while (i < sizeof methods / sizeof *methods && strcmp(methods[i].name, name) != 0)
        i++;
    if (i == sizeof methods / sizeof *methods)
        return unknown(name, where);
    *out = &methods[i];
    return json_is_object(j) ? parse_options(*out, o, j, where) : NB_OK;
}
