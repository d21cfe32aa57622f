/* compressed-tensors: tensors of a checkpoint become a canonical weight.  Every number that came from the file is
 * checked here, so that no later code meets a code, scale or zero point outside its range. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/checked.h"
#include "format/compressed_tensors.h"
#include "format/ct_layout.h"
#include "format/parts.h"

/* What is being read. */
typedef struct source {
    const nbi_checkpoint *c;
    const char *module;
    nbi_weight *w;
    size_t groups;
} source;

static const nbi_tensor *find(const source *s, const char *suffix)
{
    return nbi_part_find(s->c, s->module, suffix);
}

static nb_status missing(const source *s, const char *suffix)
{
    return nbi_part_missing(s->c, s->module, suffix);
}

/* The shape of scales, and of zero points that are not packed. */
static nb_status expect_groups(const source *s, const nbi_tensor *t)
{
    if (s->w->scheme.strategy == NBI_PER_TENSOR)
        return nbi_part_expect_one(t);
    return nbi_part_expect_shape(t, 2, (const size_t[]){s->w->n, s->groups});
}

/* ---- codes ----------------------------------------------------------------------------------------------------- */

static nb_status check_weight_shape(const source *s)
{
    const nbi_tensor *t = find(s, "weight_shape");
    nb_status st;
    int64_t v[2];
    if (!t)
        return missing(s, "weight_shape");
    if (t->dtype != NBI_I64 && t->dtype != NBI_I32)
        return nbi_part_wrong_dtype(t, "I64 or I32");
    if ((st = nbi_part_expect_shape(t, 1, (const size_t[]){2})) != NB_OK)
        return st;
    if (t->dtype == NBI_I64)
        memcpy(v, t->data, 16);
    else
        for (size_t i = 0; i < 2; i++)
            v[i] = (int32_t)nbi_part_word_at(t, i);
    if (v[0] != (int64_t)s->w->n || v[1] != (int64_t)s->w->k)
        return nbi_fail(NB_EFORMAT, "%s: tensor %s says %lld x %lld, expected %zu x %zu", t->file, t->name,
                        (long long)v[0], (long long)v[1], s->w->n, s->w->k);
    return NB_OK;
}

static nb_status read_packed(const source *s, const nbi_tensor *t)
{
    nbi_weight *w = s->w;
    const size_t row = nbi_ct_words(w->k, w->scheme.bits);
    nb_status st;
    if (t->dtype != NBI_I32)
        return nbi_part_wrong_dtype(t, "I32");
    if ((st = nbi_part_expect_shape(t, 2, (const size_t[]){w->n, row})) != NB_OK ||
        (st = check_weight_shape(s)) != NB_OK || (st = nbi_weight_alloc(w)) != NB_OK)
        return st;
    bool failed = false;
#pragma omp parallel reduction(|| : failed)
    {
        uint32_t *words = malloc(row * 4);
        failed = !words;
#pragma omp for schedule(static)
        for (size_t r = 0; r < w->n; r++) {
            if (failed)
                continue;
            memcpy(words, (const char *)t->data + r * row * 4, row * 4);
            nbi_ct_unpack(w->codes + r * w->k, words, w->k, w->scheme.bits);
        }
        free(words);
    }
    return failed ? nbi_fail_nomem(t->name, row * 4) : NB_OK;
}

static bool within(const int8_t *codes, size_t n, int lo, int hi)
{
    bool bad = false;
    for (size_t i = 0; i < n; i++)
        bad |= codes[i] < lo || codes[i] > hi;
    return !bad;
}

/* One code a byte; below 8 bits a byte can hold what is not a code. */
static nb_status read_unpacked(const source *s, const nbi_tensor *t)
{
    nbi_weight *w = s->w;
    const int lo = -(1 << (w->scheme.bits - 1)), hi = -lo - 1;
    nb_status st;
    if (t->dtype != NBI_I8)
        return nbi_part_wrong_dtype(t, "I8 for integer weights");
    if ((st = nbi_part_expect_shape(t, 2, (const size_t[]){w->n, w->k})) != NB_OK ||
        (st = nbi_weight_alloc(w)) != NB_OK)
        return st;
    bool bad = false;
#pragma omp parallel for schedule(static) reduction(|| : bad)
    for (size_t r = 0; r < w->n; r++) {
        int8_t *row = w->codes + r * w->k;
        memcpy(row, (const int8_t *)t->data + r * w->k, w->k);
        bad = bad || !within(row, w->k, lo, hi);
    }
    for (size_t i = 0; bad && i < t->bytes; i++)
        if (w->codes[i] < lo || w->codes[i] > hi)
            return nbi_fail(NB_EFORMAT, "%s: tensor %s: row %zu column %zu has the code %d, expected %d to %d", t->file,
                            t->name, i / w->k, i % w->k, w->codes[i], lo, hi);
    return NB_OK;
}

/* Allocates the weight once the file is known to have the data for it.  The tensors say which of the two layouts it is: naive-quantized files may hold W8A16 unpacked. */
static nb_status read_codes(const source *s)
{
    const nbi_tensor *packed = find(s, "weight_packed"), *plain = find(s, "weight"), *both;
    if (find(s, "scale_packed"))
        return nbi_fail(NB_EUNSUPPORTED, "%s: is stored in the format marlin-24, which nibble cannot read", s->module);
    if (packed && plain)
        return nbi_fail(NB_EFORMAT, "%s: module %s has both weight and weight_packed", packed->file, s->module);
    both = packed ? packed : plain;
    if (!both)
        return missing(s, nbi_ct_is_packed(&s->w->scheme) ? "weight_packed" : "weight");
    return packed ? read_packed(s, packed) : read_unpacked(s, plain);
}

/* Files of GPTQ with activation order may carry the group of each input.  The plain order is no information. */
static nb_status check_group_index(const source *s)
{
    const nbi_tensor *t = find(s, "weight_g_idx");
    nb_status st;
    if (!t)
        return NB_OK;
    if (t->dtype != NBI_I32)
        return nbi_part_wrong_dtype(t, "I32");
    if ((st = nbi_part_expect_shape(t, 1, (const size_t[]){s->w->k})) != NB_OK)
        return st;
    const size_t len = s->w->k / s->groups;
    for (size_t k = 0; k < s->w->k; k++) {
        uint32_t g = nbi_part_word_at(t, k);
        if (g != UINT32_MAX && g != k / len)
            return nbi_fail(NB_EUNSUPPORTED,
                            "%s: tensor %s puts input %zu into group %d: activation order by groups is not supported",
                            t->file, t->name, k, (int32_t)g);
    }
    return NB_OK;
}

/* ---- scales and zero points ------------------------------------------------------------------------------------ */

static nb_status read_scales(const source *s)
{
    const nbi_tensor *t = find(s, "weight_scale");
    nbi_weight *w = s->w;
    nb_status st;
    if (!t)
        return missing(s, "weight_scale");
    if (!nbi_dtype_is_float(t->dtype))
        return nbi_part_wrong_dtype(t, "F32, F16 or BF16");
    if ((st = expect_groups(s, t)) != NB_OK)
        return st;
    nbi_to_f32(w->scales, t->data, t->dtype, t->n_elements);
    for (size_t i = 0; i < t->n_elements; i++)
        if (!(w->scales[i] > 0) || !isfinite(w->scales[i]))
            return nbi_fail(NB_EFORMAT,
                            "%s: tensor %s: row %zu group %zu has the scale %g, expected a positive finite number",
                            t->file, t->name, i / s->groups, i % s->groups, (double)w->scales[i]);
    for (size_t i = t->n_elements; i < w->n; i++) /* one for the tensor */
        w->scales[i] = w->scales[0];
    return NB_OK;
}

/* Older writers store zero points of symmetric layers, too; they must say nothing. */
static nb_status expect_no_zeros(const nbi_tensor *t)
{
    const unsigned char *p = t ? t->data : NULL;
    for (size_t i = 0; t && i < t->bytes; i++)
        if (p[i])
            return nbi_fail(NB_EFORMAT, "%s: tensor %s is not zero, but the config says symmetric", t->file, t->name);
    return NB_OK;
}

static nb_status read_packed_zeros(const source *s, const nbi_tensor *t)
{
    nbi_weight *w = s->w;
    const unsigned bits = w->scheme.bits;
    const uint32_t mask = (1u << bits) - 1;
    const size_t words = nbi_ct_words(w->n, bits);
    nb_status st = nbi_part_expect_shape(t, 2, (const size_t[]){words, s->groups});
    if (st != NB_OK)
        return st;
    for (size_t r = 0; r < w->n; r++)
        for (size_t g = 0; g < s->groups; g++) {
            const size_t i = r / 32 * bits + r % 32 * bits / 32, next = i + 1 < words ? i + 1 : i;
            const uint64_t two =
                nbi_part_word_at(t, i * s->groups + g) | (uint64_t)nbi_part_word_at(t, next * s->groups + g) << 32;
            const uint32_t u = (uint32_t)(two >> (r % 32 * bits % 32)) & mask;
            w->zeros[r * s->groups + g] = (int8_t)((int)u - (1 << (bits - 1)));
        }
    return NB_OK;
}

static nb_status read_plain_zeros(const source *s, const nbi_tensor *t)
{
    nbi_weight *w = s->w;
    const int lo = -(1 << (w->scheme.bits - 1)), hi = -lo - 1;
    nb_status st = expect_groups(s, t);
    if (st != NB_OK)
        return st;
    memcpy(w->zeros, t->data, t->bytes);
    for (size_t i = 0; i < t->bytes; i++)
        if (w->zeros[i] < lo || w->zeros[i] > hi)
            return nbi_fail(NB_EFORMAT, "%s: tensor %s: row %zu group %zu has the zero point %d, expected %d to %d",
                            t->file, t->name, i / s->groups, i % s->groups, w->zeros[i], lo, hi);
    for (size_t i = t->bytes; i < w->n; i++)
        w->zeros[i] = w->zeros[0];
    return NB_OK;
}

static nb_status read_zeros(const source *s)
{
    const nbi_tensor *t = find(s, "weight_zero_point");
    if (s->w->scheme.symmetric)
        return expect_no_zeros(t);
    if (!t)
        return missing(s, "weight_zero_point");
    if (t->dtype == NBI_I8)
        return read_plain_zeros(s, t);
    /* Only I8 says that it holds one number an element; a word beside plain codes could mean either. */
    if (t->dtype == NBI_I32 && s->w->scheme.strategy != NBI_PER_TENSOR && find(s, "weight_packed"))
        return read_packed_zeros(s, t);
    return nbi_part_wrong_dtype(t, find(s, "weight_packed") ? "I32 (packed) or I8" : "I8");
}

/* ---- the rest of a layer --------------------------------------------------------------------------------------- */

static nb_status read_input(const source *s)
{
    const nbi_tensor *t = find(s, "input_scale"), *z = find(s, "input_zero_point");
    nbi_weight *w = s->w;
    nb_status st;
    if (w->scheme.act != NBI_ACT_TENSOR)
        return NB_OK;
    if (!t)
        return missing(s, "input_scale");
    if (!nbi_dtype_is_float(t->dtype))
        return nbi_part_wrong_dtype(t, "F32, F16 or BF16");
    if ((st = nbi_part_expect_one(t)) != NB_OK)
        return st;
    nbi_to_f32(&w->act_scale, t->data, t->dtype, 1);
    if (!(w->act_scale > 0) || !isfinite(w->act_scale))
        return nbi_fail(NB_EFORMAT, "%s: tensor %s is %g, expected a positive finite number", t->file, t->name,
                        (double)w->act_scale);
    if (w->scheme.act_symmetric)
        return expect_no_zeros(z);
    if (!z)
        return missing(s, "input_zero_point");
    if (z->dtype != NBI_I8)
        return nbi_part_wrong_dtype(z, "I8");
    if ((st = nbi_part_expect_one(z)) != NB_OK)
        return st;
    w->act_zero = *(const int8_t *)z->data;
    return NB_OK;
}

static nb_status read_quantized(source *s)
{
    nbi_ct_layout unused; /* for its checks of the scheme */
    nb_status st;
    if (nbi_ct_layout_of(&unused, s->module, s->w->n, s->w->k, &s->w->scheme, NBI_F32) != NB_OK)
        return nbi_fail_in(NB_EFORMAT, "the quantization config does not fit the model: ");
    s->groups = nbi_scheme_groups(&s->w->scheme, s->w->k);
    NB_TRY(read_codes(s));
    NB_TRY(check_group_index(s));
    NB_TRY(read_scales(s));
    NB_TRY(read_zeros(s));
    NB_TRY(read_input(s));
done:
    return st;
}

/* ---- for formats that store some parts in the same way ----------------------------------------------------------- */

nb_status nbi_ct_read_packed(nbi_weight *w, const nbi_checkpoint *c, const char *module)
{
    const source s = {c, module, w, nbi_scheme_groups(&w->scheme, w->k)};
    const nbi_tensor *t = find(&s, "weight_packed");
    return t ? read_packed(&s, t) : missing(&s, "weight_packed");
}

nb_status nbi_ct_check_shape(const nbi_weight *w, const nbi_checkpoint *c, const char *module)
{
    const source s = {c, module, (nbi_weight *)w, 0};
    return check_weight_shape(&s);
}

nb_status nbi_ct_read_scales(nbi_weight *w, const nbi_checkpoint *c, const char *module)
{
    const source s = {c, module, w, nbi_scheme_groups(&w->scheme, w->k)};
    return read_scales(&s);
}

nb_status nbi_ct_read_input(nbi_weight *w, const nbi_checkpoint *c, const char *module)
{
    const source s = {c, module, w, 0};
    return read_input(&s);
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */

nb_status nbi_ct_read_codes(nbi_weight *w, const nbi_checkpoint *c, const char *name)
{
    source s = {.c = c, .module = name, .w = w};
    return read_quantized(&s);
}

nb_status nbi_ct_read(nbi_weight *w, const nbi_checkpoint *c, const char *name, size_t n, size_t k,
                      const nbi_scheme *scheme)
{
    nb_status st;
    *w = (nbi_weight){.n = n, .k = k, .scheme = *scheme};
    NB_TRY(scheme->bits ? nbi_ct_read_codes(w, c, name) : nbi_part_read_dense(w, c, name));
    NB_TRY(nbi_part_read_bias(w, c, name));
done:
    if (st != NB_OK)
        nbi_weight_free(w);
    return st;
}
