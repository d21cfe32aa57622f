/* nibble's own container: which tensors a weight becomes, and their data. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "format/nibble.h"
#include "format/parts.h"

/* ---- layout ---------------------------------------------------------------------------------------------------- */

nbi_scheme nbi_nibble_plain(const nbi_scheme *s)
{
    return (nbi_scheme){
        .bits = s->bits, .symmetric = s->symmetric || s->zero_frac, .strategy = s->strategy, .group = s->group};
}

static void add(nbi_nibble_layout *l, const char *suffix, nbi_dtype t, uint32_t n_dims, size_t a, size_t b)
{
    l->part[l->n_parts++] = (nbi_nibble_part){.t = {suffix, t, n_dims, {a, b}}};
}

static void add_late(nbi_nibble_layout *l, const char *suffix, size_t most, size_t row)
{
    add(l, suffix, NBI_U8, 2, most, row);
    l->part[l->n_parts - 1].late = true;
}

/* Codes, and the scales and zero points that are stored as they are. */
static nb_status add_codes(nbi_nibble_layout *l, const char *module, size_t n, size_t k, const nbi_scheme *s,
                           nbi_dtype scale)
{
    const nbi_scheme plain = nbi_nibble_plain(s);
    nbi_ct_layout ct;
    nb_status st;
    if (s->kind == NBI_KIND_NF4 || s->kind == NBI_KIND_E8P) /* their methods do not round it */
        scale = NBI_F32;
    if (s->kind == NBI_KIND_E8P || s->kind == NBI_KIND_BINARY) {
        const bool e8p = s->kind == NBI_KIND_E8P;
        if (e8p)
            add(l, "weight_words", NBI_I16, 2, n, k / 8 * (s->bits / 2u));
        else
            add(l, "weight_packed", NBI_I32, 2, n, nbi_ct_words(k, 1));
        add(l, "weight_scale", scale, e8p ? 1 : 2, e8p ? 1 : n, 1);
        add(l, "weight_shape", NBI_I64, 1, 2, 0);
        return NB_OK;
    }
    if ((st = nbi_ct_layout_of(&ct, module, n, k, &plain, scale)) != NB_OK)
        return st;
    for (size_t i = 0; i < ct.n_parts; i++)
        if (!s->nested ||
            (strcmp(ct.part[i].suffix, "weight_scale") != 0 && strcmp(ct.part[i].suffix, "weight_zero_point") != 0))
            l->part[l->n_parts++].t = ct.part[i];
    if (s->zero_frac)
        add(l, "weight_zero_16th", NBI_I8, 2, n, nbi_scheme_groups(s, k));
    return NB_OK;
}

static void add_nested(nbi_nibble_layout *l, size_t n, size_t groups)
{
    static const char *const grids[] = {"scale_grid", "zero_grid"};
    const size_t words = nbi_ct_words(n * groups, NBI_NESTED_BITS);
    add(l, "scale_codes", NBI_I32, 1, words, 0);
    add(l, "zero_codes", NBI_I32, 1, words, 0);
    for (int i = 0; i < 2; i++) {
        add(l, grids[i], NBI_F16, 3, nbi_ceil_div(n, NBI_NESTED_ROWS), groups);
        l->part[l->n_parts - 1].third = 2;
    }
}

nb_status nbi_nibble_layout_of(nbi_nibble_layout *l, const char *module, size_t n, size_t k, const nbi_scheme *s,
                               nbi_dtype scale)
{
    size_t all, bytes;
    nb_status st = nbi_nibble_check(s, module);
    *l = (nbi_nibble_layout){0};
    if (st != NB_OK)
        return st;
    if (!n || !k || (s->strategy == NBI_PER_GROUP && k % s->group) || (s->kind == NBI_KIND_E8P && k % 8))
        return nbi_fail(NB_EINVAL,
                        "%s: has the shape %zu x %zu, expected at least 1 x 1 with inputs that %s of %u divide", module,
                        n, k, s->kind == NBI_KIND_E8P ? "words" : "groups", s->kind == NBI_KIND_E8P ? 8 : s->group);
    if (!nbi_mul(n, k, &all) || !nbi_mul(all, 8, &bytes) || k > UINT32_MAX || !nbi_dtype_is_float(scale))
        return nbi_fail(NB_ELIMIT, "%s: a weight of %zu x %zu with scales of %s cannot be stored", module, n, k,
                        nbi_dtype_name(scale));
    if ((st = add_codes(l, module, n, k, s, scale)) != NB_OK)
        return st;
    if (s->nested)
        add_nested(l, n, nbi_scheme_groups(s, k));
    if (s->act_order)
        add(l, "input_order",
            nbi_nibble_width(k) == 1   ? NBI_U8
            : nbi_nibble_width(k) == 2 ? NBI_U16
                                       : NBI_I32,
            1, k, 0);
    if (s->rotate_in)
        add(l, "input_signs", NBI_U8, 1, nbi_ceil_div(k, 8), 0);
    if (s->rotate_out)
        add(l, "output_signs", NBI_U8, 1, nbi_ceil_div(n, 8), 0);
    if (s->act == NBI_ACT_TENSOR)
        add(l, "input_scale", NBI_F32, 1, 1, 0);
    if (s->act == NBI_ACT_TENSOR && !s->act_symmetric)
        add(l, "input_zero_point", NBI_I8, 1, 1, 0);
    if (s->outliers) {
        add_late(l, "outlier_columns", k, 4);
        add_late(l, "outlier_values", k, 2 * n);
    } else if (s->sparse) {
        add_late(l, "sparse_counts", sizeof(uint32_t), n);
        add_late(l, "sparse_entries", all, nbi_nibble_width(k) + 2);
    }
    return NB_OK;
}

/* Bytes that the largest count of a row needs. */
static size_t planes_of(const nbi_weight *w)
{
    uint32_t most = 0;
    size_t planes = 0;
    for (size_t n = 0; w->sparse.row && n < w->n; n++)
        most |= w->sparse.row[n + 1] - w->sparse.row[n];
    for (; most; most >>= 8)
        planes++;
    return planes;
}

/* Rows of a late part. */
static size_t rows_of(const nbi_nibble_part *p, const nbi_weight *w)
{
    if (strcmp(p->t.suffix, "sparse_counts") == 0)
        return planes_of(w);
    return strcmp(p->t.suffix, "sparse_entries") == 0 ? w->sparse.nnz : w->n_outliers;
}

/* With a weight, else without late parts. */
static bool bytes_of(const nbi_nibble_part *p, const nbi_weight *w, size_t *bytes)
{
    nbi_ct_part t = p->t;
    if (t.n_dims == 3)
        t.n_dims = 2;
    if (p->late)
        t.shape[0] = w ? rows_of(p, w) : 0;
    return nbi_ct_part_bytes(&t, bytes) && nbi_mul(*bytes, p->third ? p->third : 1, bytes);
}

size_t nbi_nibble_bytes(size_t n, size_t k, const nbi_scheme *s, nbi_dtype scale, const nbi_weight *w)
{
    nbi_nibble_layout l;
    size_t sum = 0, bytes;
    if (nbi_nibble_layout_of(&l, "a weight", n, k, s, scale) != NB_OK)
        return 0;
    for (size_t i = 0; i < l.n_parts; i++)
        if (!bytes_of(&l.part[i], w, &bytes) || !nbi_add(sum, bytes, &sum))
            return SIZE_MAX;
    return sum;
}

nb_status nbi_nibble_declare(nbi_st_writer *out, const char *module, size_t n, size_t k, const nbi_scheme *s,
                             nbi_dtype scale)
{
    nbi_nibble_layout l;
    char full[512];
    nb_status st;
    NB_TRY(nbi_nibble_layout_of(&l, module, n, k, s, scale));
    for (size_t i = 0; i < l.n_parts; i++) {
        const nbi_nibble_part *p = &l.part[i];
        const size_t shape[3] = {p->t.shape[0], p->t.shape[1], p->third};
        NB_TRY(nbi_part_name(full, module, p->t.suffix));
        NB_TRY(p->late ? nbi_st_declare_late(out, full, p->t.dtype, p->t.n_dims, shape)
                       : nbi_st_declare(out, full, p->t.dtype, p->t.n_dims, shape));
    }
done:
    return st;
}

/* ---- data of one part: dst has the bytes of the part, zeroed ------------------------------------------------------ */

static nb_status put_binary(void *dst, const char *module, const nbi_weight *w)
{
    const size_t row = nbi_ct_words(w->k, 1);
    for (size_t n = 0; n < w->n; n++)
        for (size_t k = 0; k < w->k; k++) {
            const int c = w->codes[n * w->k + k];
            if (c != 1 && c != -1)
                return nbi_fail(NB_EINVAL, "%s: row %zu column %zu has the code %d, expected -1 or 1", module, n, k, c);
            nbi_ct_put((uint32_t *)dst + n * row, 1, k, 1, c > 0);
        }
    return NB_OK;
}

static nb_status put_signs(uint8_t *dst, const char *module, const int8_t *signs, size_t n, const char *which)
{
    for (size_t i = 0; i < n; i++) {
        if (!signs || (signs[i] != 1 && signs[i] != -1))
            return nbi_fail(NB_EINVAL, "%s: sign %zu of its %s is %d, expected 1 or -1", module, i, which,
                            signs ? signs[i] : 0);
        dst[i / 8] |= (uint8_t)((signs[i] < 0) << i % 8);
    }
    return NB_OK;
}

static void put_u32(unsigned char *dst, uint32_t v, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        dst[i] = (unsigned char)(v >> 8 * i);
}

static nb_status put_order(unsigned char *dst, const char *module, const nbi_weight *w)
{
    const size_t width = nbi_nibble_width(w->k);
    nb_status st = nbi_weight_check_order(w);
    if (st != NB_OK)
        return nbi_fail_in(st, "%s: ", module);
    for (size_t j = 0; j < w->k; j++)
        put_u32(dst + width * j, w->perm[j], width);
    return NB_OK;
}

/* A value that fp16 does not hold is not rounded here: whoever made it knows what else depends on it. */
static nb_status put_half(void *dst, const char *module, const char *what, size_t i, float x)
{
    const uint16_t h = nbi_f32_to_f16(x);
    if (!isfinite(x) || nbi_f16_to_f32(h) != x)
        return nbi_fail(NB_EINVAL, "%s: number %zu of its %s is %.9g, expected a finite number of fp16", module, i,
                        what, (double)x);
    memcpy(dst, &h, 2);
    return NB_OK;
}

static nb_status put_grid(void *dst, const char *module, const nbi_weight *w, const char *suffix)
{
    const float *grid = suffix[0] == 's' ? w->nested.scale_grid : w->nested.zero_grid;
    const size_t n = nbi_ceil_div(w->n, NBI_NESTED_ROWS) * nbi_scheme_groups(&w->scheme, w->k) * 2;
    nb_status st = NB_OK;
    for (size_t i = 0; st == NB_OK && i < n; i++)
        st = put_half((char *)dst + 2 * i, module, suffix, i, grid[i]);
    return st;
}

static nb_status put_nested(void *dst, const char *module, const nbi_weight *w, const char *suffix)
{
    const uint8_t *codes = suffix[0] == 's' ? w->nested.scale_code : w->nested.zero_code;
    const size_t n = w->n * nbi_scheme_groups(&w->scheme, w->k);
    if (w->nested.bits != NBI_NESTED_BITS || w->nested.rows != NBI_NESTED_ROWS || !codes)
        return nbi_fail(NB_EUNSUPPORTED, "%s: has grids of %u bits for %u rows, expected %d bits for %d rows", module,
                        w->nested.bits, w->nested.rows, NBI_NESTED_BITS, NBI_NESTED_ROWS);
    for (size_t i = 0; i < n; i++) {
        if (codes[i] >> NBI_NESTED_BITS)
            return nbi_fail(NB_EINVAL, "%s: number %zu of its %s is %u, expected less than %d", module, i, suffix,
                            codes[i], 1 << NBI_NESTED_BITS);
        nbi_ct_put(dst, 1, i, NBI_NESTED_BITS, codes[i]);
    }
    return NB_OK;
}

static nb_status put_counts(unsigned char *dst, const nbi_weight *w)
{
    const size_t planes = planes_of(w);
    for (size_t n = 0; n < w->n; n++)
        for (size_t i = 0; i < planes; i++)
            dst[i * w->n + n] = (unsigned char)((w->sparse.row[n + 1] - w->sparse.row[n]) >> 8 * i);
    return NB_OK;
}

static nb_status put_entries(unsigned char *dst, const char *module, const nbi_weight *w, size_t entry)
{
    nb_status st = NB_OK;
    for (size_t i = 0; st == NB_OK && i < w->sparse.nnz; i++, dst += entry) {
        put_u32(dst, w->sparse.col[i], entry - 2);
        st = put_half(dst + entry - 2, module, "sparse part", i, w->sparse.value[i]);
    }
    return st;
}

/* The sparse part is the outlier columns, row after row (nbi_weight_check_sparse()); the file has it column after column. */
static nb_status put_outliers(unsigned char *dst, const char *module, const nbi_weight *w, bool values)
{
    const size_t count = w->n_outliers;
    nb_status st = NB_OK;
    for (size_t i = 0; !values && i < count; i++)
        put_u32(dst + 4 * i, w->outlier[i], 4);
    for (size_t i = 0; values && st == NB_OK && i < w->sparse.nnz; i++)
        st = put_half(dst + 2 * (i % count * w->n + i / count), module, "outliers", i, w->sparse.value[i]);
    return st;
}

static nb_status put_part(void *dst, const char *module, const nbi_weight *w, const void *part)
{
    const nbi_nibble_part *p = part;
    const char *suffix = p->t.suffix;
    nbi_weight plain = *w; /* a view for the code of compressed-tensors */
    plain.scheme = nbi_nibble_plain(&w->scheme);
    if (strcmp(suffix, "weight_words") == 0) {
        memcpy(dst, w->words, w->n * (w->k / 8) * (w->scheme.bits / 2u) * 2);
        return NB_OK;
    }
    if (strcmp(suffix, "weight_zero_16th") == 0) {
        memcpy(dst, w->zeros, w->n * nbi_scheme_groups(&w->scheme, w->k));
        return NB_OK;
    }
    if (strcmp(suffix, "weight_packed") == 0 && w->scheme.kind == NBI_KIND_BINARY)
        return put_binary(dst, module, w);
    if (strcmp(suffix, "scale_codes") == 0 || strcmp(suffix, "zero_codes") == 0)
        return put_nested(dst, module, w, suffix);
    if (strcmp(suffix, "scale_grid") == 0 || strcmp(suffix, "zero_grid") == 0)
        return put_grid(dst, module, w, suffix);
    if (strcmp(suffix, "input_order") == 0)
        return put_order(dst, module, w);
    if (strcmp(suffix, "input_signs") == 0)
        return put_signs(dst, module, w->in_signs, w->k, "inputs");
    if (strcmp(suffix, "output_signs") == 0)
        return put_signs(dst, module, w->out_signs, w->n, "outputs");
    if (strcmp(suffix, "sparse_counts") == 0)
        return put_counts(dst, w);
    if (strcmp(suffix, "sparse_entries") == 0)
        return put_entries(dst, module, w, p->t.shape[1]);
    if (p->late)
        return put_outliers(dst, module, w, strcmp(suffix, "outlier_values") == 0);
    return nbi_ct_put_part(dst, module, &plain, &p->t);
}

nb_status nbi_nibble_write(nbi_st_writer *out, const char *module, const nbi_weight *w, nbi_dtype scale)
{
    nbi_nibble_layout l;
    nb_status st;
    NB_TRY(nbi_nibble_layout_of(&l, module, w->n, w->k, &w->scheme, scale));
    if ((st = nbi_weight_check_sparse(w)) != NB_OK)
        return nbi_fail_in(st, "%s: ", module);
    NB_TRY(nbi_nibble_check_outliers(w, module));
    for (size_t i = 0; i < l.n_parts; i++) {
        size_t bytes;
        if (!bytes_of(&l.part[i], w, &bytes))
            bytes = SIZE_MAX; /* no room for that */
        NB_TRY(nbi_part_write(out, module, l.part[i].t.suffix, bytes, put_part, w, &l.part[i]));
    }
done:
    return st;
}
