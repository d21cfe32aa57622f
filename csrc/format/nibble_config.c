/* nibble's own container: quantization_config. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "format/groups.h"
#include "format/nibble.h"

#define VERSION 1

/* In the order of nbi_kind. */
static const char *const kinds[] = {"int", "nf4", "e8p", "binary"};
#define N_KINDS (sizeof kinds / sizeof *kinds)

nb_status nbi_nibble_check(const nbi_scheme *s, const char *where)
{
    static const char *const expected[] = {"2, 3, 4 or 8 bits", "4 bits, symmetric, in groups",
                                           "2 or 4 bits, symmetric, with one scale a tensor",
                                           "1 bit, symmetric, with one scale a channel"};
    const bool symmetric = s->symmetric && !s->nested, rotated = s->rotate_in || s->rotate_out;
    const bool grouped = s->strategy == NBI_PER_GROUP && s->group;
    const bool fits[] = {nbi_ct_has_bits(s->bits) && (grouped || s->strategy != NBI_PER_GROUP),
                         s->bits == 4 && symmetric && grouped,
                         (s->bits == 2 || s->bits == 4) && symmetric && s->strategy == NBI_PER_TENSOR,
                         s->bits == 1 && symmetric && s->strategy == NBI_PER_CHANNEL};
    if ((unsigned)s->kind >= N_KINDS || !fits[s->kind])
        return nbi_fail(NB_EUNSUPPORTED, "%s: %s weights of %u bits, %s, by %s; expected %s", where,
                        (unsigned)s->kind < N_KINDS ? kinds[s->kind] : "unknown", s->bits,
                        s->symmetric ? "symmetric" : "asymmetric", nbi_strategy_name(s->strategy),
                        (unsigned)s->kind < N_KINDS ? expected[s->kind] : "another kind");
    if (nbi_scheme_check_zeros(s) != NB_OK)
        return nbi_fail_in(NB_EUNSUPPORTED, "%s: ", where);
    if (s->zero_frac && s->strategy == NBI_PER_TENSOR)
        return nbi_fail(NB_EUNSUPPORTED, "%s: zero points in sixteenths are of channels or groups", where);
    if (s->nested && (s->symmetric || !grouped))
        return nbi_fail(NB_EUNSUPPORTED, "%s: nested scales need asymmetric weights in groups", where);
    if (s->act == NBI_ACT_TOKEN && !s->act_symmetric)
        return nbi_fail(NB_EUNSUPPORTED, "%s: asymmetric activations measured for each token are not supported", where);
    if (s->outliers && (!s->sparse || s->act == NBI_ACT_NONE || s->act == NBI_ACT_SIGN || s->act_order))
        return nbi_fail(NB_EUNSUPPORTED, "%s: outliers go with INT8 activations, a sparse part and the order of inputs",
                        where);
    if (rotated && (s->sparse || s->act_order))
        return nbi_fail(NB_EUNSUPPORTED, "%s: a rotation goes neither with act_order nor with a sparse part", where);
    return NB_OK;
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

static nb_status parse_strategy(nbi_scheme *s, const json_t *o, const char *where)
{
    const char *name = "";
    int64_t group = 0;
    nb_status st;
    NB_TRY(nbi_json_string(o, "strategy", &name, where));
    NB_TRY(nbi_json_int(o, "group_size", 1, UINT32_MAX, &group, where));
    s->strategy = NBI_PER_TENSOR;
    while (s->strategy < NBI_PER_GROUP && strcmp(name, nbi_strategy_name(s->strategy)) != 0)
        s->strategy++;
    if (strcmp(name, nbi_strategy_name(s->strategy)) != 0)
        return nbi_fail(NB_EFORMAT, "%s: the strategy is \"%s\", expected tensor, channel or group", where, name);
    if ((s->strategy == NBI_PER_GROUP) != (group > 0))
        return nbi_fail(NB_EFORMAT, "%s: a group_size goes with the strategy \"group\" and with no other", where);
    s->group = (uint32_t)group;
done:
    return st;
}

static nb_status parse_weights(nbi_scheme *s, const json_t *o, const char *where)
{
    static const char *const known[] = {
        "kind", "num_bits", "symmetric", "strategy", "group_size", "zero_point_fraction", NULL};
    const char *kind = "";
    int64_t bits = 0, fraction = 0;
    nb_status st;
    NB_TRY(nbi_only_keys(o, where, known));
    NB_TRY(nbi_json_string(o, "kind", &kind, where));
    NB_TRY(nbi_json_int(o, "num_bits", 1, 8, &bits, where));
    NB_TRY(nbi_json_bool(o, "symmetric", &s->symmetric, where));
    NB_TRY(nbi_json_int(o, "zero_point_fraction", 0, 8, &fraction, where));
    NB_TRY(parse_strategy(s, o, where));
    unsigned k = 0;
    while (k < N_KINDS && strcmp(kind, kinds[k]) != 0)
        k++;
    if (k == N_KINDS)
        return nbi_fail(NB_EUNSUPPORTED, "%s: weights are of the kind \"%s\", expected int, nf4, e8p or binary", where,
                        kind);
    s->kind = (nbi_kind)k;
    s->bits = (uint8_t)bits;
    s->zero_frac = (uint8_t)fraction;
done:
    return st;
}

static nb_status parse_activations(nbi_scheme *s, const json_t *o, const char *where)
{
    static const char *const known[] = {"num_bits", "symmetric", "strategy", NULL};
    const char *strategy = "";
    int64_t bits = 0;
    nb_status st;
    s->act_symmetric = true;
    NB_TRY(nbi_only_keys(o, where, known));
    NB_TRY(nbi_json_int(o, "num_bits", 1, 16, &bits, where));
    NB_TRY(nbi_json_bool(o, "symmetric", &s->act_symmetric, where));
    NB_TRY(nbi_json_string(o, "strategy", &strategy, where));
    const bool token = strcmp(strategy, "token") == 0, tensor = strcmp(strategy, "tensor") == 0;
    if ((bits != 8 && bits != 1) || !(token || (tensor && bits == 8)) || (!tensor && !s->act_symmetric))
        return nbi_fail(NB_EUNSUPPORTED,
                        "%s: %s activations of %lld bits by \"%s\", expected 8 bits by tensor, or symmetric ones of 8 "
                        "or 1 bits by token",
                        where, s->act_symmetric ? "symmetric" : "asymmetric", (long long)bits, strategy);
    s->act = bits == 1 ? NBI_ACT_SIGN : token ? NBI_ACT_TOKEN : NBI_ACT_TENSOR;
    s->act_symmetric &= s->act != NBI_ACT_SIGN; /* not used */
done:
    return st;
}

static nb_status parse_nested(nbi_scheme *s, const json_t *o, const char *where)
{
    static const char *const known[] = {"num_bits", "rows", NULL};
    int64_t bits = 0, rows = 0;
    nb_status st;
    NB_TRY(nbi_only_keys(o, where, known));
    NB_TRY(nbi_json_int(o, "num_bits", 0, INT32_MAX, &bits, where));
    NB_TRY(nbi_json_int(o, "rows", 0, INT32_MAX, &rows, where));
    if (bits != NBI_NESTED_BITS || rows != NBI_NESTED_ROWS)
        return nbi_fail(NB_EUNSUPPORTED, "%s: grids of %lld bits for %lld rows, expected %d bits for %d rows", where,
                        (long long)bits, (long long)rows, NBI_NESTED_BITS, NBI_NESTED_ROWS);
    s->nested = true;
done:
    return st;
}

static nb_status parse_group(nbi_scheme *s, const json_t *o, const char *where)
{
    static const char *const known[] = {
        "targets", "weights", "input_activations", "act_order", "rotate_inputs", "rotate_outputs", "outliers", "sparse",
        "nested",  NULL};
    char part[640];
    nb_status st;
    NB_TRY(nbi_only_keys(o, where, known));
    snprintf(part, sizeof part, "%s.weights", where);
    NB_TRY(parse_weights(s, json_object_get(o, "weights"), part));
    if (nbi_json_is_set(o, "input_activations")) {
        snprintf(part, sizeof part, "%s.input_activations", where);
        NB_TRY(parse_activations(s, json_object_get(o, "input_activations"), part));
    }
    if (nbi_json_is_set(o, "nested")) {
        snprintf(part, sizeof part, "%s.nested", where);
        NB_TRY(parse_nested(s, json_object_get(o, "nested"), part));
    }
    NB_TRY(nbi_json_bool(o, "act_order", &s->act_order, where));
    NB_TRY(nbi_json_bool(o, "rotate_inputs", &s->rotate_in, where));
    NB_TRY(nbi_json_bool(o, "rotate_outputs", &s->rotate_out, where));
    NB_TRY(nbi_json_bool(o, "outliers", &s->outliers, where));
    NB_TRY(nbi_json_bool(o, "sparse", &s->sparse, where));
    NB_TRY(nbi_nibble_check(s, where));
done:
    return st;
}

static nb_status parse_model(nbi_quant_model *model, const json_t *q, const char *where)
{
    static const char *const known[] = {"rotate_keys", "keys", "dtype", NULL};
    const char *dtype = "", *keys = "token";
    char part[320];
    nb_status st = NB_OK;
    snprintf(part, sizeof part, "%.256s: kv_cache", where);
    if (nbi_json_is_set(q, "kv_cache")) {
        NB_TRY(nbi_only_keys(json_object_get(q, "kv_cache"), part, known));
        NB_TRY(nbi_json_bool(json_object_get(q, "kv_cache"), "rotate_keys", &model->rotate_keys, part));
        NB_TRY(nbi_json_string(json_object_get(q, "kv_cache"), "keys", &keys, part));
        model->channel_keys = strcmp(keys, "channel") == 0;
        if (!model->channel_keys && strcmp(keys, "token") != 0)
            NB_TRY(nbi_fail(NB_EUNSUPPORTED, "%s: \"keys\" is \"%s\", expected token or channel", part, keys));
        NB_TRY(nbi_json_string(json_object_get(q, "kv_cache"), "dtype", &dtype, part));
        snprintf(model->kv_dtype, sizeof model->kv_dtype, "%s",
                 dtype); /* one that is cut is no name of a type either */
    }
done:
    return st;
}

nb_status nbi_nibble_parse(void **config, nbi_quant_model *model, const json_t *q, const char *where)
{
    static const char *const known[] = {"quant_method", "version", "config_groups", "ignore", "kv_cache", NULL};
    nbi_nibble_config *c = calloc(1, sizeof *c);
    int64_t version = 0;
    nb_status st;
    *config = NULL;
    if (!c)
        return nbi_fail_nomem(where, sizeof *c);
    NB_TRY(nbi_json_int(q, "version", 0, INT32_MAX, &version, where));
    if (version != VERSION)
        NB_TRY(nbi_fail(NB_EUNSUPPORTED, "%s: is version %lld of nibble's container, expected %d", where,
                        (long long)version, VERSION));
    NB_TRY(nbi_only_keys(q, where, known));
    NB_TRY(nbi_groups_parse(&c->schemes, &c->targets, q, parse_group, where));
    NB_TRY(parse_model(model, q, where));
    *config = c;
    c = NULL;
done:
    nbi_nibble_free(c);
    return st;
}

void nbi_nibble_free(void *config)
{
    nbi_nibble_config *c = config;
    if (!c)
        return;
    nbi_targets_free(c->targets);
    free(c->schemes);
    free(c);
}

/* ---- writing --------------------------------------------------------------------------------------------------- */

static json_t *activations(const nbi_scheme *s)
{
    if (s->act == NBI_ACT_NONE)
        return json_null();
    const bool sign = s->act == NBI_ACT_SIGN;
    return json_pack("{s:i, s:b, s:s}", "num_bits", sign ? 1 : 8, "symmetric", sign || s->act_symmetric, "strategy",
                     s->act == NBI_ACT_TENSOR ? "tensor" : "token");
}

static json_t *group_of(const nbi_scheme *s, json_t *targets, bool unused)
{
    (void)unused;
    json_t *g = json_pack("{s:o, s:{s:s, s:i, s:b, s:s}, s:o}", "targets", targets, "weights", "kind", kinds[s->kind],
                          "num_bits", s->bits, "symmetric", s->symmetric, "strategy", nbi_strategy_name(s->strategy),
                          "input_activations", activations(s));
    const struct {
        const char *key;
        bool set;
    } flags[] = {{"act_order", s->act_order},
                 {"rotate_inputs", s->rotate_in},
                 {"rotate_outputs", s->rotate_out},
                 {"outliers", s->outliers},
                 {"sparse", s->sparse}};
    bool ok = g != NULL;
    if (s->strategy == NBI_PER_GROUP)
        ok = ok && json_object_set_new(json_object_get(g, "weights"), "group_size", json_integer(s->group)) == 0;
    if (s->zero_frac)
        ok = ok &&
             json_object_set_new(json_object_get(g, "weights"), "zero_point_fraction", json_integer(s->zero_frac)) == 0;
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (flags[i].set)
            ok = ok && json_object_set_new(g, flags[i].key, json_true()) == 0;
    if (s->nested)
        ok = ok && json_object_set_new(
                       g, "nested", json_pack("{s:i, s:i}", "num_bits", NBI_NESTED_BITS, "rows", NBI_NESTED_ROWS)) == 0;
    if (!ok) {
        json_decref(g);
        g = NULL;
    }
    return g;
}

static int set_kv_cache(json_t *out, const nbi_quant_model *model)
{
    if (!model->rotate_keys && !model->channel_keys && !model->kv_dtype[0])
        return 0;
    json_t *kv = json_pack("{s:b}", "rotate_keys", model->rotate_keys);
    if (kv && ((model->kv_dtype[0] && json_object_set_new(kv, "dtype", json_string(model->kv_dtype)) != 0) ||
               (model->channel_keys && json_object_set_new(kv, "keys", json_string("channel")) != 0))) {
        json_decref(kv);
        return -1;
    }
    return json_object_set_new(out, "kv_cache", kv);
}

nb_status nbi_nibble_build(json_t **out, const nbi_quant_entry *e, size_t n, const nbi_quant_model *model)
{
    nbi_groups g;
    nb_status st;
    *out = NULL;
    NB_TRY(nbi_groups_create(&g, e, n));
    for (size_t i = 0; i < n; i++)
        if (e[i].scheme.bits)
            NB_TRY(nbi_nibble_check(&e[i].scheme, e[i].module));
    if (g.n == 0 && !model->rotate_keys && !model->channel_keys && !model->kv_dtype[0])
        goto done;
    *out = json_pack("{s:s, s:i, s:o, s:o}", "quant_method", "nibble", "version", VERSION, "config_groups",
                     nbi_groups_json(&g, group_of, false), "ignore", nbi_groups_ignored(&g));
    if (!*out || set_kv_cache(*out, model) != 0) {
        json_decref(*out);
        *out = NULL;
        st = nbi_fail_nomem("a quantization config", n * 64);
    }
done:
    nbi_groups_free(&g);
    return st;
}
