/* compressed-tensors as one of the formats of quantized.h. */
#include "format/compressed_tensors.h"
#include "format/ct_layout.h"

bool nbi_ct_can_say(const nbi_scheme *s)
{
    return s->kind == NBI_KIND_INT && nbi_ct_has_bits(s->bits) && s->act != NBI_ACT_SIGN && !s->act_order &&
           !s->rotate_in && !s->rotate_out && !s->outliers && !s->sparse && !s->nested && !s->zero_frac;
}

static nb_status parse(void **config, nbi_quant_model *model, const json_t *q, const char *where)
{
    (void)model; /* a quantized KV cache is refused */
    return nbi_ct_config_parse((nbi_ct_config **)config, q, where);
}

static void free_config(void *config)
{
    nbi_ct_config_free(config);
}

static nb_status scheme(const void *config, const nbi_checkpoint *c, const char *module, const char *cls,
                        nbi_scheme *out)
{
    (void)c;
    return nbi_ct_scheme(config, module, cls, out);
}

static nb_status read(nbi_weight *w, const void *config, const nbi_checkpoint *c, const char *module)
{
    (void)config;
    return nbi_ct_read_codes(w, c, module);
}

static bool can_write(const nbi_quant_entry *e, size_t n, const nbi_quant_model *model)
{
    for (size_t i = 0; i < n; i++)
        if (e[i].scheme.bits && !nbi_ct_can_say(&e[i].scheme))
            return false;
    return !model->rotate_keys && !model->channel_keys && !model->kv_dtype[0];
}

static nb_status build(json_t **out, const nbi_quant_entry *e, size_t n, const nbi_quant_model *model)
{
    (void)model;
    return nbi_ct_config_build(out, e, n);
}

static size_t bytes(size_t n, size_t k, const nbi_scheme *s, nbi_dtype scale, const nbi_weight *weight)
{
    (void)weight;
    return nbi_ct_bytes(n, k, s, scale);
}

static const char *const parts[] = {
    "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "input_scale", "input_zero_point", NULL};

const nbi_quant_format nbi_ct_format = {
    .name = "compressed-tensors",
    .parts = parts,
    .parse = parse,
    .free = free_config,
    .scheme = scheme,
    .read = read,
    .can_write = can_write,
    .build = build,
    .declare = nbi_ct_declare,
    .write = nbi_ct_write,
    .bytes = bytes,
};
