/* bitsandbytes as one of the formats of quantized.h: its config, and writing. */
#include "format/bitsandbytes.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/json.h"
#include "base/nf4.h"
#include "format/parts.h"

/* ---- config ---------------------------------------------------------------------------------------------------- */

/* How the weights are stored the tensors say; the keys say how the package computes. */
static nb_status parse(void **config, nbi_quant_model *model, const json_t *q, const char *where)
{
    bool four = false, eight = false;
    nb_status st;
    (void)model;
    *config = NULL;
    NB_TRY(nbi_json_bool(q, "load_in_4bit", &four, where));
    NB_TRY(nbi_json_bool(q, "load_in_8bit", &eight, where));
    if (four == eight)
        st = nbi_fail(NB_EFORMAT, "%s: bitsandbytes with load_in_4bit %s and load_in_8bit %s, expected one of them",
                      where, four ? "true" : "false", eight ? "true" : "false");
done:
    return st;
}

static void free_config(void *config)
{
    (void)config; /* there is none */
}

static json_t *dense_modules(const nbi_quant_entry *e, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; list && i < n; i++)
        if (!e[i].scheme.bits && json_array_append_new(list, json_string(e[i].module)) != 0) {
            json_decref(list);
            list = NULL;
        }
    return list;
}

static nb_status build(json_t **out, const nbi_quant_entry *e, size_t n, const nbi_quant_model *model)
{
    bool any = false;
    (void)model;
    *out = NULL;
    for (size_t i = 0; i < n; i++)
        any |= e[i].scheme.bits != 0;
    if (!any)
        return NB_OK;
    *out = json_pack("{s:s, s:b, s:b, s:s, s:b, s:s, s:s, s:o, s:f, s:b, s:b}", "quant_method", "bitsandbytes",
                     "load_in_4bit", 1, "load_in_8bit", 0, "bnb_4bit_quant_type", "nf4", "bnb_4bit_use_double_quant", 0,
                     "bnb_4bit_quant_storage", "uint8", "bnb_4bit_compute_dtype", "bfloat16", "llm_int8_skip_modules",
                     dense_modules(e, n), "llm_int8_threshold", 6.0, "llm_int8_has_fp16_weight", 0,
                     "llm_int8_enable_fp32_cpu_offload", 0);
    return *out ? NB_OK : nbi_fail_nomem("a quantization config", n * 64);
}

/* ---- tensors --------------------------------------------------------------------------------------------------- */

static bool can_say(const nbi_quant_entry *e)
{
    const nbi_scheme *s = &e->scheme;
    return s->kind == NBI_KIND_NF4 && s->bits == 4 && s->symmetric && s->strategy == NBI_PER_GROUP &&
           nbi_bnb_has_block(s->group) && e->k % s->group == 0 && s->act == NBI_ACT_NONE && !s->act_order &&
           !s->rotate_in && !s->rotate_out && !s->outliers && !s->sparse && !s->nested && !s->zero_frac;
}

static bool can_write(const nbi_quant_entry *e, size_t n, const nbi_quant_model *model)
{
    for (size_t i = 0; i < n; i++)
        if (e[i].scheme.bits && !can_say(&e[i]))
            return false;
    return !model->rotate_keys && !model->channel_keys && !model->kv_dtype[0];
}

typedef struct part {
    const char *suffix;
    nbi_dtype dtype;
    uint32_t n_dims;
    size_t shape[2];
} part;

enum { CODES, ABSMAX, MAP, STATE, N_PARTS };

static size_t state_text(char out[256], size_t n, size_t k, const nbi_scheme *s, nbi_dtype scale)
{
    return (size_t)snprintf(
        out, 256, "{\"quant_type\": \"nf4\", \"blocksize\": %u, \"dtype\": \"%s\", \"shape\": [%zu, %zu]}", s->group,
        scale == NBI_F32   ? "float32"
        : scale == NBI_F16 ? "float16"
                           : "bfloat16",
        n, k);
}

static nb_status layout_of(part p[N_PARTS], const char *module, size_t n, size_t k, const nbi_scheme *s,
                           nbi_dtype scale)
{
    const nbi_quant_entry e = {module, *s, n, k};
    char text[256], name[48];
    size_t all;
    nbi_scheme_name(s, name);
    if (!n || !k || !can_say(&e) || !nbi_dtype_is_float(scale))
        return nbi_fail(NB_EUNSUPPORTED, "%s: bitsandbytes has no words for its scheme (%s) at %zu x %zu", module, name,
                        n, k);
    if (!nbi_mul(n, k, &all))
        return nbi_fail(NB_ELIMIT, "%s: a weight of %zu x %zu is too large", module, n, k);
    p[CODES] = (part){"weight", NBI_U8, 2, {all / 2, 1}};
    p[ABSMAX] = (part){"weight.absmax", NBI_F32, 1, {all / s->group, 1}};
    p[MAP] = (part){"weight.quant_map", NBI_F32, 1, {16, 1}};
    p[STATE] = (part){NBI_BNB_STATE, NBI_U8, 1, {state_text(text, n, k, s, scale), 1}};
    return NB_OK;
}

static size_t part_bytes(const part *p)
{
    return p->shape[0] * p->shape[1] * nbi_dtype_size(p->dtype);
}

static size_t bytes(size_t n, size_t k, const nbi_scheme *s, nbi_dtype scale, const nbi_weight *w)
{
    part p[N_PARTS];
    size_t sum = 0;
    (void)w;
    if (layout_of(p, "a weight", n, k, s, scale) != NB_OK)
        return 0;
    for (int i = 0; i < N_PARTS; i++)
        sum += part_bytes(&p[i]);
    return sum;
}

static nb_status declare(nbi_st_writer *out, const char *module, size_t n, size_t k, const nbi_scheme *s,
                         nbi_dtype scale)
{
    part p[N_PARTS];
    char full[512];
    nb_status st;
    NB_TRY(layout_of(p, module, n, k, s, scale));
    for (int i = 0; i < N_PARTS; i++) {
        NB_TRY(nbi_part_name(full, module, p[i].suffix));
        NB_TRY(nbi_st_declare(out, full, p[i].dtype, p[i].n_dims, p[i].shape));
    }
done:
    return st;
}

static nb_status put_codes(uint8_t *dst, const char *module, const nbi_weight *w)
{
    for (size_t i = 0; i < w->n * w->k; i++) {
        if (w->codes[i] < -8 || w->codes[i] > 7)
            return nbi_fail(NB_EINVAL, "%s: row %zu column %zu has the code %d, expected -8 to 7", module, i / w->k,
                            i % w->k, w->codes[i]);
        dst[i / 2] |= (uint8_t)((w->codes[i] + 8) << (i % 2 ? 0 : 4));
    }
    return NB_OK;
}

static nb_status put_part(void *dst, int i, const char *module, const nbi_weight *w, nbi_dtype scale)
{
    const size_t groups = nbi_scheme_groups(&w->scheme, w->k);
    char text[256];
    switch (i) {
    case CODES:
        return put_codes(dst, module, w);
    case ABSMAX:
        for (size_t g = 0; g < w->n * groups; g++)
            if (!(w->scales[g] >= 0) || !isfinite(w->scales[g]))
                return nbi_fail(NB_EINVAL, "%s: row %zu group %zu has the scale %.9g, expected a finite number", module,
                                g / groups, g % groups, (double)w->scales[g]);
        memcpy(dst, w->scales, w->n * groups * sizeof *w->scales);
        return NB_OK;
    case MAP:
        memcpy(dst, nbi_nf4, sizeof nbi_nf4);
        return NB_OK;
    default:
        memcpy(dst, text, state_text(text, w->n, w->k, &w->scheme, scale));
        return NB_OK;
    }
}

static nb_status write(nbi_st_writer *out, const char *module, const nbi_weight *w, nbi_dtype scale)
{
    part p[N_PARTS];
    char full[512];
    void *data = NULL;
    nb_status st;
    NB_TRY(layout_of(p, module, w->n, w->k, &w->scheme, scale));
    for (int i = 0; i < N_PARTS; i++) {
        NB_TRY(nbi_part_name(full, module, p[i].suffix));
        if (!(data = calloc(1, part_bytes(&p[i])))) {
            st = nbi_fail_nomem(full, part_bytes(&p[i]));
            goto done;
        }
        NB_TRY(put_part(data, i, module, w, scale));
        NB_TRY(nbi_st_write(out, full, data, part_bytes(&p[i])));
        free(data);
        data = NULL;
    }
done:
    free(data);
    return st;
}

static const char *const parts[] = {
    "weight.absmax", "weight.quant_map", NBI_BNB_STATE, "weight.nested_absmax", "weight.nested_quant_map",
    "SCB",           "weight_format",    NULL};

const nbi_quant_format nbi_bnb_format = {
    .name = "bitsandbytes",
    .parts = parts,
    .parse = parse,
    .free = free_config,
    .scheme = nbi_bnb_scheme,
    .read = nbi_bnb_read,
    .can_write = can_write,
    .build = build,
    .declare = declare,
    .write = write,
    .bytes = bytes,
};
