/* bitsandbytes: tensors of a checkpoint become a canonical weight.  Whether a module is quantized, and how, its tensors say. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/json.h"
#include "base/nf4.h"
#include "format/bitsandbytes.h"
#include "format/parts.h"

#define MAP_ERROR 1e-6f /* maps that older versions computed differ from the table in the last bits */

/* The JSON beside a 4-bit weight. */
typedef struct state {
    size_t n, k;
    size_t block, nested_block;
    float nested_offset;
    bool nested;
} state;

static nb_status parse_shape(state *s, const json_t *j, const char *where)
{
    const json_t *shape = json_object_get(j, "shape"), *n = json_array_get(shape, 0), *k = json_array_get(shape, 1);
    if (json_array_size(shape) != 2 || !json_is_integer(n) || !json_is_integer(k) || json_integer_value(n) < 1 ||
        json_integer_value(k) < 1 || json_integer_value(k) > UINT32_MAX)
        return nbi_fail(NB_EFORMAT, "%s: \"shape\" is not a pair of positive numbers", where);
    s->n = (size_t)json_integer_value(n);
    s->k = (size_t)json_integer_value(k);
    return NB_OK;
}

static nb_status parse_state(state *s, const nbi_tensor *t)
{
    json_t *j = NULL;
    const char *type = "";
    char where[700];
    int64_t block = 0, nested = 0;
    double offset = 0;
    nb_status st;
    *s = (state){0};
    snprintf(where, sizeof where, "%.400s: tensor %.256s", t->file, t->name);
    if (t->dtype != NBI_U8 || t->n_dims != 1)
        return nbi_part_wrong_dtype(t, "U8 with one dimension, which holds JSON");
    NB_TRY(nbi_json_parse(&j, t->data, t->bytes, where));
    if (!json_is_object(j))
        NB_TRY(nbi_fail(NB_EFORMAT, "%s: is not a JSON object", where));
    NB_TRY(nbi_json_string(j, "quant_type", &type, where));
    if (strcmp(type, "nf4") != 0)
        NB_TRY(nbi_fail(NB_EUNSUPPORTED, "%s: the quant_type is \"%s\", expected nf4", where, type));
    NB_TRY(nbi_json_int(j, "blocksize", 1, UINT32_MAX, &block, where));
    if (!block)
        NB_TRY(nbi_fail(NB_EFORMAT, "%s: has no \"blocksize\"", where));
    NB_TRY(parse_shape(s, j, where));
    NB_TRY(nbi_json_int(j, "nested_blocksize", 1, UINT32_MAX, &nested, where));
    NB_TRY(nbi_json_double(j, "nested_offset", -1e30, 1e30, &offset, where));
    s->block = (size_t)block;
    s->nested_block = (size_t)nested;
    s->nested_offset = (float)offset;
    s->nested = nested != 0;
done:
    json_decref(j);
    return st;
}

/* Blocks end where rows end if they divide each other; else groups shrink to what divides both. */
static size_t group_of(const state *s)
{
    size_t a = s->k, b = s->block;
    while (b) {
        const size_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

nb_status nbi_bnb_scheme(const void *config, const nbi_checkpoint *c, const char *module, const char *cls,
                         nbi_scheme *out)
{
    const nbi_tensor *nf4 = nbi_part_find(c, module, NBI_BNB_STATE);
    state s;
    nb_status st;
    (void)config;
    (void)cls;
    if (nbi_part_find(c, module, "weight.quant_state.bitsandbytes__fp4"))
        return nbi_fail(NB_EUNSUPPORTED, "%s: is FP4 of bitsandbytes, which is not supported, expected NF4", module);
    if (nf4) {
        if ((st = parse_state(&s, nf4)) != NB_OK)
            return st;
        *out = (nbi_scheme){.bits = 4,
                            .kind = NBI_KIND_NF4,
                            .symmetric = true,
                            .strategy = NBI_PER_GROUP,
                            .group = (uint32_t)group_of(&s)};
    } else if (nbi_part_find(c, module, "SCB")) {
        *out = (nbi_scheme){.bits = 8, .symmetric = true, .strategy = NBI_PER_CHANNEL};
    }
    return NB_OK;
}

/* ---- 8 bits ---------------------------------------------------------------------------------------------------- */

static nb_status check_row_major(const nbi_checkpoint *c, const char *module)
{
    const nbi_tensor *t = nbi_part_find(c, module, "weight_format");
    nb_status st;
    if (!t)
        return NB_OK;
    if (t->dtype != NBI_U8)
        return nbi_part_wrong_dtype(t, "U8");
    if ((st = nbi_part_expect_one(t)) != NB_OK)
        return st;
    if (*(const uint8_t *)t->data != 0)
        return nbi_fail(NB_EUNSUPPORTED, "%s: tensor %s is %u, expected 0 (row after row)", t->file, t->name,
                        *(const uint8_t *)t->data);
    return NB_OK;
}

static nb_status read_int8(nbi_weight *w, const nbi_checkpoint *c, const char *module)
{
    const nbi_tensor *codes, *scb;
    nb_status st;
    NB_TRY(nbi_part_get(&codes, c, module, "weight", NBI_I8, 2, (const size_t[]){w->n, w->k}));
    NB_TRY(nbi_part_get(&scb, c, module, "SCB", NBI_F32, 1, &w->n));
    NB_TRY(check_row_major(c, module));
    NB_TRY(nbi_weight_alloc(w));
    memcpy(w->codes, codes->data, codes->bytes);
    nbi_to_f32(w->scales, scb->data, scb->dtype, w->n);
    for (size_t n = 0; n < w->n; n++) {
        if (!(w->scales[n] >= 0) || !isfinite(w->scales[n])) /* 0: a row of zeros */
            return nbi_fail(NB_EFORMAT, "%s: tensor %s: row %zu has the largest magnitude %g, expected a finite number",
                            scb->file, scb->name, n, (double)w->scales[n]);
        w->scales[n] /= 127;
    }
done:
    return st;
}

/* ---- 4 bits ---------------------------------------------------------------------------------------------------- */

static nb_status check_map(const nbi_checkpoint *c, const char *module)
{
    const nbi_tensor *t;
    float map[16];
    nb_status st = nbi_part_get(&t, c, module, "weight.quant_map", NBI_F32, 1, (const size_t[]){16});
    if (st != NB_OK)
        return st;
    nbi_to_f32(map, t->data, t->dtype, 16);
    for (int i = 0; i < 16; i++)
        if (!(fabsf(map[i] - nbi_nf4[i]) <= MAP_ERROR))
            return nbi_fail(NB_EUNSUPPORTED, "%s: tensor %s: code %d stands for %.9g, expected %.9g as in NF4", t->file,
                            t->name, i, (double)map[i], (double)nbi_nf4[i]);
    return NB_OK;
}

/* absmax[i] = map[code[i]] * outer[i / block] + offset */
static nb_status read_nested(float *absmax, size_t blocks, const state *s, const nbi_checkpoint *c, const char *module)
{
    const nbi_tensor *codes, *outer, *map;
    float table[256];
    nb_status st;
    NB_TRY(nbi_part_get(&codes, c, module, "weight.absmax", NBI_U8, 1, &blocks));
    NB_TRY(nbi_part_get(&outer, c, module, "weight.nested_absmax", NBI_F32, 1,
                        (const size_t[]){nbi_ceil_div(blocks, s->nested_block)}));
    NB_TRY(nbi_part_get(&map, c, module, "weight.nested_quant_map", NBI_F32, 1, (const size_t[]){256}));
    nbi_to_f32(table, map->data, map->dtype, 256);
    const char *scale = outer->data;
    for (size_t i = 0; i < blocks; i++) {
        float f;
        nbi_to_f32(&f, scale + i / s->nested_block * nbi_dtype_size(outer->dtype), outer->dtype, 1);
        absmax[i] = table[((const uint8_t *)codes->data)[i]] * f + s->nested_offset;
    }
done:
    return st;
}

static nb_status read_absmax(float *absmax, size_t blocks, const state *s, const nbi_checkpoint *c, const char *module)
{
    const nbi_tensor *t;
    nb_status st = NB_OK;
    if (s->nested)
        NB_TRY(read_nested(absmax, blocks, s, c, module));
    else {
        NB_TRY(nbi_part_get(&t, c, module, "weight.absmax", NBI_F32, 1, &blocks));
        nbi_to_f32(absmax, t->data, t->dtype, blocks);
    }
    for (size_t i = 0; i < blocks; i++)
        if (!isfinite(absmax[i]))
            return nbi_fail(NB_EFORMAT, "%s.weight.absmax: block %zu has the scale %g, expected a finite number",
                            module, i, (double)absmax[i]);
done:
    return st;
}

/* The bytes may be stored as numbers of another type (bnb_4bit_quant_storage). */
static nb_status find_bytes(const nbi_tensor **out, const nbi_checkpoint *c, const char *module, size_t bytes)
{
    const nbi_tensor *t = *out = nbi_part_find(c, module, "weight");
    if (!t)
        return nbi_part_missing(c, module, "weight");
    if (t->bytes != bytes)
        return nbi_fail(NB_EFORMAT, "%s: tensor %s has %zu bytes, expected %zu: two weights in each", t->file, t->name,
                        t->bytes, bytes);
    return NB_OK;
}

static nb_status read_nf4(nbi_weight *w, const nbi_checkpoint *c, const char *module)
{
    const nbi_tensor *t = nbi_part_find(c, module, NBI_BNB_STATE);
    float *absmax = NULL;
    state s;
    size_t all;
    nb_status st;
    NB_TRY(parse_state(&s, t));
    if (s.n != w->n || s.k != w->k)
        NB_TRY(nbi_fail(NB_EFORMAT, "%s: tensor %s says %zu x %zu, expected %zu x %zu", t->file, t->name, s.n, s.k,
                        w->n, w->k));
    if (!nbi_mul(w->n, w->k, &all))
        NB_TRY(nbi_fail(NB_ELIMIT, "%s: a weight of %zu x %zu is too large", module, w->n, w->k));
    NB_TRY(find_bytes(&t, c, module, all / 2 + all % 2));
    NB_TRY(check_map(c, module));
    const size_t blocks = nbi_ceil_div(all, s.block), groups = nbi_scheme_groups(&w->scheme, w->k);
    if (!(absmax = malloc(blocks * sizeof *absmax)))
        NB_TRY(nbi_fail_nomem(module, blocks * sizeof *absmax));
    NB_TRY(read_absmax(absmax, blocks, &s, c, module));
    NB_TRY(nbi_weight_alloc(w));
    for (size_t i = 0; i < all; i++) {
        const unsigned byte = ((const uint8_t *)t->data)[i / 2];
        w->codes[i] = (int8_t)((int)(i % 2 ? byte & 15 : byte >> 4) - 8);
    }
    for (size_t i = 0; i < w->n * groups; i++)
        w->scales[i] = absmax[i * w->scheme.group / s.block];
done:
    free(absmax);
    return st;
}

nb_status nbi_bnb_read(nbi_weight *w, const void *config, const nbi_checkpoint *c, const char *module)
{
    (void)config;
    return w->scheme.kind == NBI_KIND_NF4 ? read_nf4(w, c, module) : read_int8(w, c, module);
}
