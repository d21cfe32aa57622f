/* compressed-tensors: quantization_config -> the scheme of each module.
 *
 * The rule of the whole file: what nibble would compute differently from the writer's intent is refused by its name.
 * Names in `where` follow the JSON: "config.json: config_groups.group_0.weights". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/json.h"
#include "format/compressed_tensors.h"
#include "format/groups.h"

struct nbi_ct_config {
    nbi_scheme *schemes;
    nbi_targets *targets;
};

/* QuantizationArgs of the reference, with its defaults. */
typedef struct args {
    int64_t bits, group;
    bool symmetric, dynamic;
    const char *strategy; /* lower case name from the table, never NULL after parsing */
} args;

/* ---- small checks ---------------------------------------------------------------------------------------------- */

static nb_status check_format(const json_t *o, const char *where)
{
    static const char *const readable[] = {"int-quantized", "pack-quantized", "naive-quantized", "mixed-precision"};
    static const char *const others[] = {
        "dense",           "float-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp6-pack-quantized",
        "mxfp8-quantized", "marlin-24",       "sparse-24-bitmask",    "sparse-bitmask"};
    const char *f = NULL;
    nb_status st = nbi_json_string(o, "format", &f, where);
    if (st != NB_OK || !f)
        return st;
    for (size_t i = 0; i < sizeof readable / sizeof *readable; i++)
        if (strcmp(f, readable[i]) == 0)
            return NB_OK;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (strcmp(f, others[i]) == 0)
            return nbi_fail(NB_EUNSUPPORTED,
                            "%s: the format %s is not supported; nibble reads int-quantized, "
                            "naive-quantized and pack-quantized integers",
                            where, f);
    return nbi_fail(NB_EUNSUPPORTED, "%s: the format \"%s\" is unknown", where, f);
}

/* ---- quantization args ----------------------------------------------------------------------------------------- */

static nb_status parse_type(const json_t *o, const char *where)
{
    const char *type = "int";
    nb_status st = nbi_json_string(o, "type", &type, where);
    if (st != NB_OK)
        return st;
    if (strcasecmp(type, "int") != 0)
        return nbi_fail(NB_EUNSUPPORTED, "%s: the type \"%s\" is not supported, expected \"int\"", where, type);
    return NB_OK;
}

static nb_status parse_strategy(args *a, const json_t *o, const char *where)
{
    static const char *const names[] = {"tensor", "channel", "group", "token", "block", "tensor_group", "attn_head"};
    const char *s = NULL;
    nb_status st = nbi_json_string(o, "strategy", &s, where);
    if (st != NB_OK)
        return st;
    if (!s)
        s = !nbi_json_is_set(o, "group_size") ? "tensor" : a->group > 0 ? "group" : "channel";
    a->strategy = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcasecmp(s, names[i]) == 0)
            a->strategy = names[i];
    if (!a->strategy)
        return nbi_fail(NB_EUNSUPPORTED, "%s: the strategy \"%s\" is unknown", where, s);
    bool grouped = strcmp(a->strategy, "group") == 0;
    if (grouped && a->group <= 0)
        return nbi_fail(NB_EFORMAT, "%s: the strategy is \"group\", but there is no positive group_size", where);
    if (!grouped && a->group > 0 && strcmp(a->strategy, "tensor_group") != 0)
        return nbi_fail(NB_EFORMAT, "%s: has a group_size of %lld, but the strategy \"%s\"", where, (long long)a->group,
                        a->strategy);
    return NB_OK;
}

/* "weight" and "static" only say how the codes were found; "group" permutes the inputs. */
static nb_status check_actorder(const json_t *o, const char *where)
{
    const json_t *v = json_object_get(o, "actorder");
    const char *s = json_string_value(v);
    if (!v || json_is_null(v) || json_is_false(v) || (s && (!strcasecmp(s, "weight") || !strcasecmp(s, "static"))))
        return NB_OK;
    if (json_is_true(v) || (s && (!strcasecmp(s, "group") || !strcasecmp(s, "dynamic"))))
        return nbi_fail(NB_EUNSUPPORTED, "%s: actorder \"%s\" is not supported, expected \"weight\" or null", where,
                        s ? s : "true");
    return nbi_fail(NB_EFORMAT, "%s: actorder is neither \"weight\", \"static\" nor null", where);
}

static nb_status parse_dynamic(args *a, const json_t *o, const char *where)
{
    const json_t *v = json_object_get(o, "dynamic");
    if (json_is_string(v))
        return nbi_fail(NB_EUNSUPPORTED, "%s: dynamic \"%s\" is not supported", where, json_string_value(v));
    return nbi_json_bool(o, "dynamic", &a->dynamic, where);
}

static nb_status parse_args(args *a, const json_t *o, const char *where)
{
    static const char *const known[] = {
        "num_bits",        "type",        "symmetric", "group_size", "strategy",        "dynamic", "actorder",
        "block_structure", "scale_dtype", "zp_dtype",  "observer",   "observer_kwargs", NULL};
    const char *dtype = NULL;
    nb_status st;
    *a = (args){.bits = 8, .group = -1, .symmetric = true};
    NB_TRY(nbi_only_keys(o, where, known));
    NB_TRY(parse_type(o, where));
    NB_TRY(nbi_json_int(o, "num_bits", 1, 64, &a->bits, where));
    NB_TRY(nbi_json_bool(o, "symmetric", &a->symmetric, where));
    NB_TRY(nbi_json_int(o, "group_size", -1, UINT32_MAX, &a->group, where));
    if (a->group == 0) {
        st = nbi_fail(NB_EFORMAT, "%s: \"group_size\" is 0, expected -1 or a positive number", where);
        goto done;
    }
    NB_TRY(parse_strategy(a, o, where));
    NB_TRY(check_actorder(o, where));
    NB_TRY(parse_dynamic(a, o, where));
    NB_TRY(nbi_json_string(o, "scale_dtype", &dtype, where)); /* what the tensors say wins */
    NB_TRY(nbi_json_string(o, "zp_dtype", &dtype, where));
done:
    return st;
}

static nb_status weight_scheme(nbi_scheme *s, const json_t *o, const char *where)
{
    args a;
    nb_status st = parse_args(&a, o, where);
    if (st != NB_OK)
        return st;
    if (a.bits != 2 && a.bits != 3 && a.bits != 4 && a.bits != 8)
        return nbi_fail(NB_EUNSUPPORTED, "%s: %lld-bit weights are not supported, expected 2, 3, 4 or 8", where,
                        (long long)a.bits);
    if (a.dynamic)
        return nbi_fail(NB_EUNSUPPORTED, "%s: dynamic weights are not supported", where);
    if (strcmp(a.strategy, "tensor") == 0)
        s->strategy = NBI_PER_TENSOR;
    else if (strcmp(a.strategy, "channel") == 0)
        s->strategy = NBI_PER_CHANNEL;
    else if (strcmp(a.strategy, "group") == 0)
        s->strategy = NBI_PER_GROUP;
    else
        return nbi_fail(NB_EUNSUPPORTED,
                        "%s: the strategy \"%s\" is not supported for weights, expected tensor, channel or group",
                        where, a.strategy);
    s->bits = (uint8_t)a.bits;
    s->symmetric = a.symmetric;
    s->group = s->strategy == NBI_PER_GROUP ? (uint32_t)a.group : 0;
    return NB_OK;
}

static nb_status input_scheme(nbi_scheme *s, const json_t *o, const char *where)
{
    args a;
    nb_status st = parse_args(&a, o, where);
    if (st != NB_OK)
        return st;
    if (a.bits != 8)
        return nbi_fail(NB_EUNSUPPORTED, "%s: %lld-bit activations are not supported, expected 8", where,
                        (long long)a.bits);
    bool token = strcmp(a.strategy, "token") == 0;
    if (!token && strcmp(a.strategy, "tensor") != 0)
        return nbi_fail(NB_EUNSUPPORTED,
                        "%s: the strategy \"%s\" is not supported for activations, expected token or tensor", where,
                        a.strategy);
    if (token && !a.dynamic)
        return nbi_fail(NB_EFORMAT, "%s: the strategy \"token\" needs \"dynamic\": true", where);
    if (!token && a.dynamic)
        return nbi_fail(NB_EUNSUPPORTED,
                        "%s: dynamic activations with one scale for all tokens are not supported, expected token",
                        where);
    if (token && !a.symmetric)
        return nbi_fail(NB_EUNSUPPORTED, "%s: asymmetric dynamic activations are not supported", where);
    s->act = token ? NBI_ACT_TOKEN : NBI_ACT_TENSOR;
    s->act_symmetric = a.symmetric;
    return NB_OK;
}

/* ---- groups ---------------------------------------------------------------------------------------------------- */

static nb_status parse_group(nbi_scheme *s, const json_t *o, const char *where)
{
    static const char *const known[] = {"targets", "weights", "input_activations", "output_activations",
                                        "format",  NULL};
    char part[640];
    nb_status st;
    if (json_is_array(o))
        return nbi_fail(NB_EUNSUPPORTED, "%s: names a preset, expected the scheme itself", where);
    NB_TRY(nbi_only_keys(o, where, known));
    NB_TRY(check_format(o, where));
    if (nbi_json_is_set(o, "output_activations")) {
        st = nbi_fail(NB_EUNSUPPORTED, "%s: output_activations are not supported, expected null", where);
        goto done;
    }
    if (nbi_json_is_set(o, "weights")) {
        snprintf(part, sizeof part, "%s.weights", where);
        NB_TRY(weight_scheme(s, json_object_get(o, "weights"), part));
    }
    if (nbi_json_is_set(o, "input_activations")) {
        snprintf(part, sizeof part, "%s.input_activations", where);
        NB_TRY(input_scheme(s, json_object_get(o, "input_activations"), part));
        if (!s->bits) {
            st = nbi_fail(NB_EUNSUPPORTED, "%s: quantized activations with dense weights are not supported", where);
            goto done;
        }
    }
done:
    return st;
}

/* Parts of a checkpoint that change its numbers, and that nibble does not compute. */
static nb_status check_extras(const json_t *q, const char *where)
{
    const json_t *sparsity = json_object_get(q, "sparsity_config"), *rotation = json_object_get(q, "transform_config");
    const char *format = json_string_value(json_object_get(sparsity, "format"));
    if (nbi_json_is_set(q, "kv_cache_scheme"))
        return nbi_fail(NB_EUNSUPPORTED, "%s: kv_cache_scheme (a quantized KV cache) is not supported, expected null",
                        where);
    if (nbi_json_is_set(q, "moe_sparsity_config"))
        return nbi_fail(NB_EUNSUPPORTED, "%s: moe_sparsity_config is not supported, expected null", where);
    /* "dense" is what older writers put down when nothing is sparse */
    if (nbi_json_is_set(q, "sparsity_config") && !(json_is_object(sparsity) && json_object_size(sparsity) == 0) &&
        !(format && strcmp(format, "dense") == 0))
        return nbi_fail(NB_EUNSUPPORTED, "%s: sparsity_config (format %s) is not supported, expected none", where,
                        format ? format : "unknown");
    const json_t *groups = json_object_get(rotation, "config_groups");
    size_t n = json_object_size(rotation);
    if (nbi_json_is_set(q, "transform_config") &&
        !(json_is_object(rotation) && (n == 0 || (n == 1 && json_is_object(groups) && json_object_size(groups) == 0))))
        return nbi_fail(NB_EUNSUPPORTED, "%s: transform_config (rotations) is not supported, expected none", where);
    return NB_OK;
}

static nb_status check_top(const json_t *q, const char *where)
{
    const char *method = "compressed-tensors", *status = "compressed";
    nb_status st;
    if (!json_is_object(q))
        return nbi_fail(NB_EFORMAT, "%s: quantization_config is not an object", where);
    NB_TRY(nbi_json_string(q, "quant_method", &method, where));
    if (strcmp(method, "compressed-tensors") != 0) {
        st = nbi_fail(NB_EUNSUPPORTED, "%s: quant_method \"%s\" is not supported, expected \"compressed-tensors\"",
                      where, method);
        goto done;
    }
    NB_TRY(nbi_json_string(q, "quantization_status", &status, where));
    if (strcmp(status, "compressed") != 0 && strcmp(status, "frozen") != 0) {
        st = nbi_fail(NB_EUNSUPPORTED, "%s: quantization_status \"%s\" is not supported, expected \"compressed\"",
                      where, status);
        goto done;
    }
    NB_TRY(check_format(q, where));
    NB_TRY(check_extras(q, where));
done:
    return st;
}

nb_status nbi_ct_config_parse(nbi_ct_config **out, const json_t *q, const char *where)
{
    nb_status st;
    *out = NULL;
    nbi_ct_config *c = calloc(1, sizeof *c);
    if (!c)
        return nbi_fail_nomem(where, sizeof *c);
    NB_TRY(check_top(q, where));
    NB_TRY(nbi_groups_parse(&c->schemes, &c->targets, q, parse_group, where));
    *out = c;
    c = NULL;
done:
    nbi_ct_config_free(c);
    return st;
}

void nbi_ct_config_free(nbi_ct_config *c)
{
    if (!c)
        return;
    nbi_targets_free(c->targets);
    free(c->schemes);
    free(c);
}

nb_status nbi_ct_scheme(const nbi_ct_config *c, const char *module, const char *cls, nbi_scheme *out)
{
    size_t group;
    nb_status st = nbi_targets_find(c->targets, module, cls, &group);
    *out = st == NB_OK && group != NBI_NO_GROUP ? c->schemes[group] : (nbi_scheme){0};
    return st;
}
