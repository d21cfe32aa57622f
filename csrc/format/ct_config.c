/* compressed-tensors: quantization_config -> the scheme of each module.
 *
 * The rule of the whole file: what nibble would compute differently from the writer's intent is refused by its name.
 * Names in `where` follow the JSON: "config.json: config_groups.group_0.weights". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/json.h"
#include "base/regex.h"
#include "format/compressed_tensors.h"

#define LONGEST_PATTERN 4096

/* One entry of `targets` or `ignore`. */
typedef struct target {
    char *text;    /* without "re:" */
    nbi_regex *re; /* NULL: an exact module or class name */
    size_t group;  /* index into schemes */
} target;

struct nbi_ct_config {
    nbi_scheme *schemes;
    size_t n_schemes;
    target *targets; /* exact names, then patterns, each in byte order, as the reference sorts them */
    size_t n_targets;
    target *ignore;
    size_t n_ignore;
};

/* QuantizationArgs of the reference, with its defaults. */
typedef struct args {
    int64_t bits, group;
    bool symmetric, dynamic;
    const char *strategy; /* lower case name from the table, never NULL after parsing */
} args;

/* ---- small checks ---------------------------------------------------------------------------------------------- */

static nb_status only_keys(const json_t *o, const char *where, const char *const *known)
{
    const char *key;
    json_t *v;
    if (!json_is_object(o))
        return nbi_fail(NB_EFORMAT, "%s: is not an object", where);
    json_object_foreach((json_t *)o, key, v)
    {
        const char *const *k = known;
        while (*k && strcmp(*k, key) != 0)
            k++;
        if (!*k)
            return nbi_fail(NB_EUNSUPPORTED, "%s: has the unknown key \"%s\", which may change what the numbers mean",
                            where, key);
    }
    return NB_OK;
}

static bool is_set(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return v && !json_is_null(v);
}

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
        s = !is_set(o, "group_size") ? "tensor" : a->group > 0 ? "group" : "channel";
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
    NB_TRY(only_keys(o, where, known));
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

/* ---- targets --------------------------------------------------------------------------------------------------- */

static void free_targets(target *t, size_t n)
{
    for (size_t i = 0; t && i < n; i++) {
        nbi_regex_free(t[i].re);
        free(t[i].text);
    }
    free(t);
}

static nb_status compile(target *t, const char *where)
{
    size_t n = strlen(t->text);
    if (n > LONGEST_PATTERN)
        return nbi_fail(NB_ELIMIT, "%s: a pattern has %zu bytes, expected at most %d", where, n, LONGEST_PATTERN);
    return nbi_regex_create(&t->re, t->text, n, where);
}

/* Appends the strings of a list to *list. */
static nb_status add_targets(target **list, size_t *n, const json_t *names, size_t group, const char *where)
{
    if (!json_is_array(names))
        return nbi_fail(NB_EFORMAT, "%s: is not a list of names", where);
    size_t more = json_array_size(names);
    target *p = realloc(*list, (*n + more + 1) * sizeof *p); /* a JSON file of at most 256 MB: no overflow */
    if (!p)
        return nbi_fail_nomem(where, more * sizeof *p);
    *list = p;
    for (size_t i = 0; i < more; i++) {
        const json_t *v = json_array_get(names, i);
        const char *s = json_string_value(v);
        if (!s || strlen(s) != json_string_length(v))
            return nbi_fail(NB_EFORMAT, "%s: entry %zu is not a name", where, i);
        bool re = strncmp(s, "re:", 3) == 0;
        target t = {.text = strdup(re ? s + 3 : s), .group = group};
        if (!t.text)
            return nbi_fail_nomem(where, strlen(s));
        p[(*n)++] = t;
        nb_status st = re ? compile(&p[*n - 1], where) : NB_OK;
        if (st != NB_OK)
            return st;
    }
    return NB_OK;
}

/* Exact before pattern, then by text; of equal targets the later group comes first, since it wins. */
static int by_precedence(const void *a, const void *b)
{
    const target *x = a, *y = b;
    if (!x->re != !y->re)
        return x->re ? 1 : -1;
    int c = strcmp(x->text, y->text);
    return c ? c : (x->group < y->group) - (x->group > y->group);
}

/* Does it match the module's name?  Fails when the pattern is too costly. */
static nb_status match_name(bool *hit, const target *t, const char *module)
{
    *hit = false;
    if (!t->re) {
        *hit = strcmp(t->text, module) == 0;
        return NB_OK;
    }
    return nbi_regex_match_start(t->re, module, strlen(module), hit);
}

/* ---- groups ---------------------------------------------------------------------------------------------------- */

static nb_status parse_group(nbi_ct_config *c, const json_t *o, size_t i, const char *where)
{
    static const char *const known[] = {"targets", "weights", "input_activations", "output_activations",
                                        "format",  NULL};
    nbi_scheme *s = &c->schemes[i];
    char part[640];
    nb_status st;
    if (json_is_array(o))
        return nbi_fail(NB_EUNSUPPORTED, "%s: names a preset, expected the scheme itself", where);
    NB_TRY(only_keys(o, where, known));
    NB_TRY(check_format(o, where));
    if (is_set(o, "output_activations")) {
        st = nbi_fail(NB_EUNSUPPORTED, "%s: output_activations are not supported, expected null", where);
        goto done;
    }
    if (is_set(o, "weights")) {
        snprintf(part, sizeof part, "%s.weights", where);
        NB_TRY(weight_scheme(s, json_object_get(o, "weights"), part));
    }
    if (is_set(o, "input_activations")) {
        snprintf(part, sizeof part, "%s.input_activations", where);
        NB_TRY(input_scheme(s, json_object_get(o, "input_activations"), part));
        if (!s->bits) {
            st = nbi_fail(NB_EUNSUPPORTED, "%s: quantized activations with dense weights are not supported", where);
            goto done;
        }
    }
    snprintf(part, sizeof part, "%s.targets", where);
    NB_TRY(add_targets(&c->targets, &c->n_targets, json_object_get(o, "targets"), i, part));
done:
    return st;
}

static nb_status parse_groups(nbi_ct_config *c, const json_t *q, const char *where)
{
    json_t *groups = json_object_get(q, "config_groups"), *g;
    const char *name;
    char part[576];
    size_t i = 0;
    if (!json_is_object(groups))
        return nbi_fail(NB_EFORMAT, "%s: has no \"config_groups\" object", where);
    c->n_schemes = json_object_size(groups);
    if (!(c->schemes = calloc(c->n_schemes + 1, sizeof *c->schemes)))
        return nbi_fail_nomem(where, c->n_schemes * sizeof *c->schemes);
    json_object_foreach(groups, name, g)
    {
        snprintf(part, sizeof part, "%.256s: config_groups.%.256s", where, name);
        nb_status st = parse_group(c, g, i++, part);
        if (st != NB_OK)
            return st;
    }
    if (c->n_targets)
        qsort(c->targets, c->n_targets, sizeof *c->targets, by_precedence);
    return NB_OK;
}

/* Parts of a checkpoint that change its numbers, and that nibble does not compute. */
static nb_status check_extras(const json_t *q, const char *where)
{
    const json_t *sparsity = json_object_get(q, "sparsity_config"), *rotation = json_object_get(q, "transform_config");
    const char *format = json_string_value(json_object_get(sparsity, "format"));
    if (is_set(q, "kv_cache_scheme"))
        return nbi_fail(NB_EUNSUPPORTED, "%s: kv_cache_scheme (a quantized KV cache) is not supported, expected null",
                        where);
    if (is_set(q, "moe_sparsity_config"))
        return nbi_fail(NB_EUNSUPPORTED, "%s: moe_sparsity_config is not supported, expected null", where);
    /* "dense" is what older writers put down when nothing is sparse */
    if (is_set(q, "sparsity_config") && !(json_is_object(sparsity) && json_object_size(sparsity) == 0) &&
        !(format && strcmp(format, "dense") == 0))
        return nbi_fail(NB_EUNSUPPORTED, "%s: sparsity_config (format %s) is not supported, expected none", where,
                        format ? format : "unknown");
    const json_t *groups = json_object_get(rotation, "config_groups");
    size_t n = json_object_size(rotation);
    if (is_set(q, "transform_config") &&
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
    char part[320];
    nb_status st;
    *out = NULL;
    nbi_ct_config *c = calloc(1, sizeof *c);
    if (!c)
        return nbi_fail_nomem(where, sizeof *c);
    NB_TRY(check_top(q, where));
    NB_TRY(parse_groups(c, q, where));
    snprintf(part, sizeof part, "%.256s: ignore", where);
    if (is_set(q, "ignore"))
        NB_TRY(add_targets(&c->ignore, &c->n_ignore, json_object_get(q, "ignore"), 0, part));
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
    free_targets(c->targets, c->n_targets);
    free_targets(c->ignore, c->n_ignore);
    free(c->schemes);
    free(c);
}

nb_status nbi_ct_scheme(const nbi_ct_config *c, const char *module, const char *cls, nbi_scheme *out)
{
    bool hit;
    nb_status st;
    *out = (nbi_scheme){0};
    for (size_t i = 0; i < c->n_ignore; i++) {
        const target *t = &c->ignore[i];
        if ((st = match_name(&hit, t, module)) != NB_OK)
            return st;
        if (hit || (!t->re && strcmp(t->text, cls) == 0))
            return NB_OK;
    }
    for (size_t i = 0; i < c->n_targets; i++) {
        if ((st = match_name(&hit, &c->targets[i], module)) != NB_OK)
            return st;
        if (hit) {
            *out = c->schemes[c->targets[i].group];
            return NB_OK;
        }
    }
    for (size_t i = 0; i < c->n_targets; i++)
        if (!c->targets[i].re && strcmp(c->targets[i].text, cls) == 0) {
            *out = c->schemes[c->targets[i].group];
            return NB_OK;
        }
    return NB_OK;
}
