/* compressed-tensors: the schemes of all modules -> quantization_config, in the form that the compressed-tensors
 * package, Transformers and vLLM read. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/compressed_tensors.h"
#include "format/ct_layout.h"

/* From this version on the reference packs without gaps between words; for 4 and 8 bits older ones agree. */
#define WRITTEN_AS "0.20.0"

static const char *format_of(const nbi_scheme *s)
{
    return nbi_ct_is_packed(s) ? "pack-quantized" : "int-quantized";
}

/* Fields that a scheme does not use are cleared, so that equal schemes are equal bytes. */
static nbi_scheme normal(const nbi_scheme *s)
{
    nbi_scheme n;
    memset(&n, 0, sizeof n);
    n.bits = s->bits;
    if (!s->bits)
        return n;
    n.symmetric = s->symmetric;
    n.strategy = s->strategy;
    n.group = s->strategy == NBI_PER_GROUP ? s->group : 0;
    n.act = s->act;
    n.act_symmetric = s->act == NBI_ACT_TOKEN || (s->act == NBI_ACT_TENSOR && s->act_symmetric);
    return n;
}

static bool same(const nbi_scheme *a, const nbi_scheme *b)
{
    return a->bits == b->bits && a->symmetric == b->symmetric && a->strategy == b->strategy && a->group == b->group &&
           a->act == b->act && a->act_symmetric == b->act_symmetric;
}

/* The distinct schemes of the quantized entries, in order of appearance; count[i] entries have schemes[i]. */
static nb_status distinct(nbi_scheme **schemes, size_t **count, size_t *n_schemes, const nbi_quant_entry *e, size_t n)
{
    *schemes = calloc(n + 1, sizeof **schemes);
    *count = calloc(n + 1, sizeof **count);
    *n_schemes = 0;
    if (!*schemes || !*count)
        return nbi_fail_nomem("a list of schemes", n * sizeof **schemes);
    for (size_t i = 0; i < n; i++) {
        nbi_scheme s = normal(&e[i].scheme);
        size_t j = 0;
        if (!s.bits)
            continue;
        if (!nbi_ct_has_bits(s.bits) || (s.strategy == NBI_PER_GROUP && !s.group))
            return nbi_fail(NB_EINVAL, "%s: %u bits in groups of %u cannot be stored as compressed-tensors",
                            e[i].module, s.bits, s.group);
        while (j < *n_schemes && !same(&(*schemes)[j], &s))
            j++;
        if (j == *n_schemes)
            (*schemes)[(*n_schemes)++] = s;
        (*count)[j]++;
    }
    return NB_OK;
}

/* ---- JSON ------------------------------------------------------------------------------------------------------ */

static json_t *weight_args(const nbi_scheme *s)
{
    const char *strategy = s->strategy == NBI_PER_GROUP     ? "group"
                           : s->strategy == NBI_PER_CHANNEL ? "channel"
                                                            : "tensor";
    json_t *group = s->strategy == NBI_PER_GROUP ? json_integer(s->group) : json_null();
    return json_pack("{s:i, s:s, s:b, s:s, s:o, s:b}", "num_bits", s->bits, "type", "int", "symmetric", s->symmetric,
                     "strategy", strategy, "group_size", group, "dynamic", 0);
}

static json_t *input_args(const nbi_scheme *s)
{
    if (s->act == NBI_ACT_NONE)
        return json_null();
    bool token = s->act == NBI_ACT_TOKEN;
    return json_pack("{s:i, s:s, s:b, s:s, s:n, s:b}", "num_bits", 8, "type", "int", "symmetric", s->act_symmetric,
                     "strategy", token ? "token" : "tensor", "group_size", "dynamic", token);
}

/* ["Linear"], or the names of the modules that have this scheme. */
static json_t *targets_of(const nbi_scheme *s, bool everything, const nbi_quant_entry *e, size_t n)
{
    if (everything)
        return json_pack("[s]", "Linear");
    json_t *list = json_array();
    for (size_t i = 0; list && i < n; i++) {
        nbi_scheme mine = normal(&e[i].scheme);
        if (same(&mine, s) && json_array_append_new(list, json_string(e[i].module)) != 0) {
            json_decref(list);
            list = NULL;
        }
    }
    return list;
}

/* A group names its format only where formats are mixed: readers before that feature refuse the key. */
static json_t *group_of(const nbi_scheme *s, json_t *targets, bool mixed)
{
    json_t *g = json_pack("{s:o, s:o, s:o, s:n}", "targets", targets, "weights", weight_args(s), "input_activations",
                          input_args(s), "output_activations");
    if (g && mixed && json_object_set_new(g, "format", json_string(format_of(s))) != 0) {
        json_decref(g);
        g = NULL;
    }
    return g;
}

static json_t *groups_of(const nbi_scheme *schemes, const size_t *count, size_t n_schemes, bool mixed,
                         const nbi_quant_entry *e, size_t n)
{
    size_t common = 0;
    json_t *groups = json_object();
    for (size_t i = 1; i < n_schemes; i++)
        if (count[i] > count[common])
            common = i;
    for (size_t i = 0; groups && i < n_schemes; i++) {
        char name[32];
        snprintf(name, sizeof name, "group_%zu", i);
        json_t *g = group_of(&schemes[i], targets_of(&schemes[i], i == common, e, n), mixed);
        if (json_object_set_new(groups, name, g) != 0) {
            json_decref(groups);
            groups = NULL;
        }
    }
    return groups;
}

static json_t *ignored(const nbi_quant_entry *e, size_t n)
{
    const nbi_scheme dense = {0};
    return targets_of(&dense, false, e, n);
}

nb_status nbi_ct_config_build(json_t **out, const nbi_quant_entry *e, size_t n)
{
    nbi_scheme *schemes = NULL;
    size_t *count = NULL, n_schemes;
    nb_status st;
    *out = NULL;
    NB_TRY(distinct(&schemes, &count, &n_schemes, e, n));
    if (n_schemes == 0)
        goto done;
    bool mixed = false;
    for (size_t i = 1; i < n_schemes; i++)
        mixed |= nbi_ct_is_packed(&schemes[i]) != nbi_ct_is_packed(&schemes[0]);
    *out = json_pack("{s:s, s:s, s:s, s:s, s:o, s:o, s:n, s:n}", "quant_method", "compressed-tensors", "version",
                     WRITTEN_AS, "format", mixed ? "mixed-precision" : format_of(&schemes[0]), "quantization_status",
                     "compressed", "config_groups", groups_of(schemes, count, n_schemes, mixed, e, n), "ignore",
                     ignored(e, n), "kv_cache_scheme", "global_compression_ratio");
    if (!*out)
        st = nbi_fail_nomem("a quantization config", n * 64);
done:
    free(schemes);
    free(count);
    return st;
}
