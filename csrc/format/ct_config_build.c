/* compressed-tensors: the schemes of all modules -> quantization_config, in the form that the compressed-tensors
 * package, Transformers and vLLM read. */
#include "format/compressed_tensors.h"
#include "format/ct_layout.h"
#include "format/groups.h"

/* From this version on the reference packs without gaps between words; for 4 and 8 bits older ones agree. */
#define WRITTEN_AS "0.20.0"

static const char *format_of(const nbi_scheme *s)
{
    return nbi_ct_is_packed(s) ? "pack-quantized" : "int-quantized";
}

static nb_status check_scheme(const nbi_quant_entry *e)
{
    const nbi_scheme *s = &e->scheme;
    char name[48];
    if (!nbi_ct_has_bits(s->bits) || (s->strategy == NBI_PER_GROUP && !s->group))
        return nbi_fail(NB_EINVAL, "%s: %u bits in groups of %u cannot be stored as compressed-tensors", e->module,
                        s->bits, s->group);
    nbi_scheme_name(s, name);
    if (!nbi_ct_can_say(s))
        return nbi_fail(NB_EUNSUPPORTED, "%s: compressed-tensors has no words for its scheme (%s)", e->module, name);
    return NB_OK;
}

/* ---- JSON ------------------------------------------------------------------------------------------------------ */

static json_t *weight_args(const nbi_scheme *s)
{
    json_t *group = s->strategy == NBI_PER_GROUP ? json_integer(s->group) : json_null();
    return json_pack("{s:i, s:s, s:b, s:s, s:o, s:b}", "num_bits", s->bits, "type", "int", "symmetric", s->symmetric,
                     "strategy", nbi_strategy_name(s->strategy), "group_size", group, "dynamic", 0);
}

static json_t *input_args(const nbi_scheme *s)
{
    if (s->act == NBI_ACT_NONE)
        return json_null();
    bool token = s->act == NBI_ACT_TOKEN;
    return json_pack("{s:i, s:s, s:b, s:s, s:n, s:b}", "num_bits", 8, "type", "int", "symmetric", s->act_symmetric,
                     "strategy", token ? "token" : "tensor", "group_size", "dynamic", token);
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

nb_status nbi_ct_config_build(json_t **out, const nbi_quant_entry *e, size_t n)
{
    nbi_groups g;
    bool mixed = false;
    nb_status st;
    *out = NULL;
    NB_TRY(nbi_groups_create(&g, e, n));
    if (g.n == 0)
        goto done;
    for (size_t i = 0; i < n; i++)
        if (e[i].scheme.bits)
            NB_TRY(check_scheme(&e[i]));
    for (size_t i = 1; i < g.n; i++)
        mixed |= nbi_ct_is_packed(&g.schemes[i]) != nbi_ct_is_packed(&g.schemes[0]);
    *out = json_pack("{s:s, s:s, s:s, s:s, s:o, s:o, s:n, s:n}", "quant_method", "compressed-tensors", "version",
                     WRITTEN_AS, "format", mixed ? "mixed-precision" : format_of(&g.schemes[0]), "quantization_status",
                     "compressed", "config_groups", nbi_groups_json(&g, group_of, mixed), "ignore",
                     nbi_groups_ignored(&g), "kv_cache_scheme", "global_compression_ratio");
    if (!*out)
        st = nbi_fail_nomem("a quantization config", n * 64);
done:
    nbi_groups_free(&g);
    return st;
}
