/* compressed-tensors: a canonical weight becomes tensors of a safetensors file. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/checked.h"
#include "format/compressed_tensors.h"
#include "format/ct_layout.h"
#include "format/parts.h"

/* ---- packing --------------------------------------------------------------------------------------------------- */

void nbi_ct_pack(uint32_t *words, const int8_t *codes, size_t n, unsigned bits)
{
    const size_t per = 32 / bits;
    const uint32_t mask = (1u << bits) - 1, offset = 1u << (bits - 1);
    if (32 % bits) { /* codes straddle words */
        memset(words, 0, nbi_ct_words(n, bits) * sizeof *words);
        for (size_t i = 0; i < n; i++)
            nbi_ct_put(words, 1, i, bits, ((uint32_t)codes[i] + offset) & mask);
        return;
    }
    for (size_t i = 0, w = 0; i < n; i += per, w++) {
        uint32_t u = 0;
        for (size_t j = 0; j < per && i + j < n; j++)
            u |= (((uint32_t)codes[i + j] + offset) & mask) << (j * bits);
        words[w] = u;
    }
}

/* Whole words; with a constant width the inner loop has a constant length and becomes a few vector instructions. */
static inline void unpack_words(int8_t *codes, const uint32_t *words, size_t n_words, const unsigned bits)
{
    const uint32_t mask = (1u << bits) - 1;
    const int offset = 1 << (bits - 1);
    for (size_t w = 0; w < n_words; w++)
        for (unsigned j = 0; j < 32 / bits; j++)
            codes[w * (32 / bits) + j] = (int8_t)((int)(words[w] >> (j * bits) & mask) - offset);
}

/* Codes that straddle words: two words seen as one hold any of them. */
static void unpack_stream(int8_t *codes, const uint32_t *words, size_t n, unsigned bits)
{
    const size_t last = nbi_ct_words(n, bits) - 1;
    for (size_t i = 0; i < n; i++) {
        const size_t w = i / 32 * bits + i % 32 * bits / 32;
        const uint64_t two = words[w] | (uint64_t)words[w < last ? w + 1 : w] << 32;
        codes[i] = (int8_t)((int)(two >> (i % 32 * bits % 32) & ((1u << bits) - 1)) - (1 << (bits - 1)));
    }
}

void nbi_ct_unpack(int8_t *codes, const uint32_t *words, size_t n, unsigned bits)
{
    const size_t per = 32 / bits, whole = n / per;
    int8_t last[16];
    if (32 % bits) {
        unpack_stream(codes, words, n, bits);
        return;
    }
    if (bits == 4)
        unpack_words(codes, words, whole, 4);
    else if (bits == 2)
        unpack_words(codes, words, whole, 2);
    else
        unpack_words(codes, words, whole, 8);
    if (n % per) {
        unpack_words(last, words + whole, 1, bits);
        memcpy(codes + whole * per, last, n % per);
    }
}

/* ---- layout ---------------------------------------------------------------------------------------------------- */

static nb_status check_scheme(const char *module, size_t n, size_t k, const nbi_scheme *s, nbi_dtype scale_dtype)
{
    if (nbi_ct_has_bits(s->bits) && !nbi_ct_can_say(s)) {
        char name[48];
        nbi_scheme_name(s, name);
        return nbi_fail(NB_EUNSUPPORTED, "%s: compressed-tensors has no words for its scheme (%s)", module, name);
    }
    if (!nbi_ct_has_bits(s->bits))
        return nbi_fail(NB_EINVAL, "%s: %u bits cannot be stored as compressed-tensors, expected 2, 3, 4 or 8", module,
                        s->bits);
    if (!n || !k)
        return nbi_fail(NB_EINVAL, "%s: has the shape %zu x %zu, expected at least 1 x 1", module, n, k);
    if (s->strategy == NBI_PER_GROUP && (!s->group || k % s->group))
        return nbi_fail(NB_EINVAL, "%s: groups of %u do not divide its %zu inputs", module, s->group, k);
    if (!nbi_dtype_is_float(scale_dtype))
        return nbi_fail(NB_EINVAL, "%s: scales cannot be stored as %s", module, nbi_dtype_name(scale_dtype));
    return NB_OK;
}

nb_status nbi_ct_layout_of(nbi_ct_layout *l, const char *module, size_t n, size_t k, const nbi_scheme *s,
                           nbi_dtype scale_dtype)
{
    nb_status st = check_scheme(module, n, k, s, scale_dtype);
    if (st != NB_OK)
        return st;
    const bool packed = nbi_ct_is_packed(s), whole = s->strategy == NBI_PER_TENSOR;
    const size_t groups = nbi_scheme_groups(s, k);
    nbi_ct_part *p = l->part;
    if (packed)
        *p++ = (nbi_ct_part){"weight_packed", NBI_I32, 2, {n, nbi_ct_words(k, s->bits)}};
    else
        *p++ = (nbi_ct_part){"weight", NBI_I8, 2, {n, k}};
    *p = (nbi_ct_part){"weight_scale", scale_dtype, whole ? 1 : 2, {n, groups}};
    if (whole)
        p->shape[0] = 1;
    const nbi_ct_part scale = *p++;
    if (packed)
        *p++ = (nbi_ct_part){"weight_shape", NBI_I64, 1, {2, 0}};
    if (!s->symmetric && packed && !whole)
        *p++ = (nbi_ct_part){"weight_zero_point", NBI_I32, 2, {nbi_ct_words(n, s->bits), groups}};
    else if (!s->symmetric)
        *p++ = (nbi_ct_part){"weight_zero_point", NBI_I8, scale.n_dims, {scale.shape[0], scale.shape[1]}};
    if (s->act == NBI_ACT_TENSOR)
        *p++ = (nbi_ct_part){"input_scale", scale_dtype, 1, {1, 0}};
    if (s->act == NBI_ACT_TENSOR && !s->act_symmetric)
        *p++ = (nbi_ct_part){"input_zero_point", NBI_I8, 1, {1, 0}};
    l->n_parts = (size_t)(p - l->part);
    return NB_OK;
}

bool nbi_ct_part_bytes(const nbi_ct_part *p, size_t *bytes)
{
    *bytes = nbi_dtype_size(p->dtype);
    for (uint32_t i = 0; i < p->n_dims; i++)
        if (!nbi_mul(*bytes, p->shape[i], bytes))
            return false;
    return true;
}

size_t nbi_ct_bytes(size_t n, size_t k, const nbi_scheme *scheme, nbi_dtype scale_dtype)
{
    nbi_ct_layout l;
    size_t sum = 0, bytes;
    if (nbi_ct_layout_of(&l, "a weight", n, k, scheme, scale_dtype) != NB_OK)
        return 0;
    for (size_t i = 0; i < l.n_parts; i++)
        if (!nbi_ct_part_bytes(&l.part[i], &bytes) || !nbi_add(sum, bytes, &sum))
            return SIZE_MAX;
    return sum;
}

nb_status nbi_ct_declare(nbi_st_writer *w, const char *name, size_t n, size_t k, const nbi_scheme *scheme,
                         nbi_dtype scale_dtype)
{
    nbi_ct_layout l;
    char full[512];
    nb_status st;
    NB_TRY(nbi_ct_layout_of(&l, name, n, k, scheme, scale_dtype));
    for (size_t i = 0; i < l.n_parts; i++) {
        NB_TRY(nbi_part_name(full, name, l.part[i].suffix));
        NB_TRY(nbi_st_declare(w, full, l.part[i].dtype, l.part[i].n_dims, l.part[i].shape));
    }
done:
    return st;
}

/* ---- data of one part: dst has the bytes of the part -------------------------------------------------------------- */

static nb_status put_codes(void *dst, const char *name, const nbi_weight *w)
{
    const unsigned bits = w->scheme.bits;
    const int lo = -(1 << (bits - 1)), hi = (1 << (bits - 1)) - 1;
    for (size_t i = 0; i < w->n * w->k; i++)
        if (w->codes[i] < lo || w->codes[i] > hi)
            return nbi_fail(NB_EINVAL, "%s: row %zu column %zu has the code %d, expected %d to %d", name, i / w->k,
                            i % w->k, w->codes[i], lo, hi);
    if (!nbi_ct_is_packed(&w->scheme)) {
        memcpy(dst, w->codes, w->n * w->k);
        return NB_OK;
    }
    uint32_t *words = dst;
    const size_t row = nbi_ct_words(w->k, bits);
    for (size_t r = 0; r < w->n; r++)
        nbi_ct_pack(words + r * row, w->codes + r * w->k, w->k, bits);
    return NB_OK;
}

/* A scale that changes when it is stored would no longer belong to its codes: whoever made the codes rounds it first. */
static nb_status put_scales(void *dst, const char *name, const nbi_weight *w, nbi_dtype t)
{
    const size_t groups = nbi_scheme_groups(&w->scheme, w->k), size = nbi_dtype_size(t);
    const bool whole = w->scheme.strategy == NBI_PER_TENSOR;
    for (size_t i = 0; i < w->n * groups; i++) {
        float s = w->scales[i], back;
        char stored[4];
        nbi_from_f32(stored, t, &s, 1);
        nbi_to_f32(&back, stored, t, 1);
        if (!(s > 0) || !isfinite(s) || back != s)
            return nbi_fail(NB_EINVAL, "%s: row %zu group %zu has the scale %.9g, expected a positive %s number", name,
                            i / groups, i % groups, (double)s, nbi_dtype_name(t));
        if (whole && s != w->scales[0])
            return nbi_fail(NB_EINVAL, "%s: row %zu has another scale than row 0 of a tensor with one scale", name, i);
        if (!whole || i == 0)
            memcpy((char *)dst + i * size, stored, size);
    }
    return NB_OK;
}

static nb_status put_zeros(void *dst, const char *name, const nbi_weight *w, const nbi_ct_part *p)
{
    const size_t groups = nbi_scheme_groups(&w->scheme, w->k);
    const int lo = -(1 << (w->scheme.bits - 1)), hi = -lo - 1;
    uint32_t *words = dst;
    for (size_t r = 0; r < w->n; r++)
        for (size_t g = 0; g < groups; g++) {
            const int z = w->zeros[r * groups + g];
            if (z < lo || z > hi)
                return nbi_fail(NB_EINVAL, "%s: row %zu group %zu has the zero point %d, expected %d to %d", name, r, g,
                                z, lo, hi);
            if (p->dtype == NBI_I32) /* along N: rows share a word, groups lie side by side */
                nbi_ct_put(words + g, groups, r, w->scheme.bits, (uint32_t)(z - lo));
            else if (p->n_dims == 2)
                ((int8_t *)dst)[r * groups + g] = (int8_t)z;
            else if (z != w->zeros[0])
                return nbi_fail(NB_EINVAL, "%s: row %zu has another zero point than row 0 of a tensor with one", name,
                                r);
            else
                *(int8_t *)dst = (int8_t)z;
        }
    return NB_OK;
}

/* Not bound to any codes, so rounding it is harmless. */
static nb_status put_input_scale(void *dst, const char *name, const nbi_weight *w, nbi_dtype t)
{
    float back;
    nbi_from_f32(dst, t, &w->act_scale, 1);
    nbi_to_f32(&back, dst, t, 1);
    if (!(back > 0) || !isfinite(back))
        return nbi_fail(NB_EINVAL, "%s: has the input scale %.9g, expected a positive %s number", name,
                        (double)w->act_scale, nbi_dtype_name(t));
    return NB_OK;
}

static nb_status put_input_zero(void *dst, const char *name, const nbi_weight *w)
{
    if (w->act_zero < -128 || w->act_zero > 127)
        return nbi_fail(NB_EINVAL, "%s: has the input zero point %d, expected -128 to 127", name, w->act_zero);
    *(int8_t *)dst = (int8_t)w->act_zero;
    return NB_OK;
}

nb_status nbi_ct_put_part(void *dst, const char *name, const nbi_weight *w, const nbi_ct_part *p)
{
    if (strcmp(p->suffix, "weight_scale") == 0)
        return put_scales(dst, name, w, p->dtype);
    if (strcmp(p->suffix, "weight_zero_point") == 0)
        return put_zeros(dst, name, w, p);
    if (strcmp(p->suffix, "input_scale") == 0)
        return put_input_scale(dst, name, w, p->dtype);
    if (strcmp(p->suffix, "input_zero_point") == 0)
        return put_input_zero(dst, name, w);
    if (strcmp(p->suffix, "weight_shape") == 0) {
        memcpy(dst, (int64_t[2]){(int64_t)w->n, (int64_t)w->k}, 16);
        return NB_OK;
    }
    return put_codes(dst, name, w);
}

static nb_status put(void *dst, const char *module, const nbi_weight *w, const void *part)
{
    return nbi_ct_put_part(dst, module, w, part);
}

nb_status nbi_ct_write(nbi_st_writer *out, const char *name, const nbi_weight *w, nbi_dtype scale_dtype)
{
    nbi_ct_layout l;
    nb_status st;
    if (w->perm)
        return nbi_fail(NB_EUNSUPPORTED,
                        "%s: its columns are in another order than its inputs (act-order), which "
                        "compressed-tensors no longer stores",
                        name);
    NB_TRY(nbi_ct_layout_of(&l, name, w->n, w->k, &w->scheme, scale_dtype));
    for (size_t i = 0; i < l.n_parts; i++) {
        size_t bytes;
        if (!nbi_ct_part_bytes(&l.part[i], &bytes))
            bytes = SIZE_MAX; /* no room for that */
        NB_TRY(nbi_part_write(out, name, l.part[i].suffix, bytes, put, w, &l.part[i]));
    }
done:
    return st;
}
