/* nibble's own container: tensors of a checkpoint become a canonical weight.  Every number is checked here. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/e8p.h"
#include "format/compressed_tensors.h"
#include "format/nibble.h"
#include "format/parts.h"

/* What is being read. */
typedef struct source {
    const nbi_checkpoint *c;
    const char *module;
    nbi_weight *w;
    size_t groups;
} source;

/* A part as the layout has it; of a late one the first dimension is what the file says. */
static nb_status get(const nbi_tensor **out, const source *s, const char *suffix, nbi_dtype t, uint32_t n_dims,
                     size_t a, size_t b, size_t third)
{
    return nbi_part_get(out, s->c, s->module, suffix, t, n_dims, (const size_t[]){a, b, third});
}

static nb_status get_late(const nbi_tensor **out, const source *s, const char *suffix, size_t most, size_t row)
{
    const nbi_tensor *t = nbi_part_find(s->c, s->module, suffix);
    nb_status st = get(out, s, suffix, NBI_U8, 2, t && t->n_dims == 2 ? t->shape[0] : 0, row, 0);
    if (st == NB_OK && (*out)->shape[0] > most)
        return nbi_fail(NB_EFORMAT, "%s: tensor %s has %zu rows, expected at most %zu", (*out)->file, (*out)->name,
                        (*out)->shape[0], most);
    return st;
}

static uint32_t number(const unsigned char *p, size_t bytes)
{
    uint32_t v = 0;
    for (size_t i = bytes; i-- > 0;)
        v = v << 8 | p[i];
    return v;
}

static nb_status half(float *out, const nbi_tensor *t, const void *p, size_t i)
{
    nbi_to_f32(out, p, NBI_F16, 1);
    if (!isfinite(*out))
        return nbi_fail(NB_EFORMAT, "%s: tensor %s: number %zu is not finite", t->file, t->name, i);
    return NB_OK;
}

/* ---- codes ----------------------------------------------------------------------------------------------------- */

/* Any byte is one. */
static nb_status read_sixteenths(const source *s)
{
    const nbi_tensor *t;
    nb_status st = get(&t, s, "weight_zero_16th", NBI_I8, 2, s->w->n, s->groups, 0);
    if (st != NB_OK)
        return st;
    if (!(s->w->zeros = malloc(t->bytes + 1)))
        return nbi_fail_nomem(t->name, t->bytes);
    memcpy(s->w->zeros, t->data, t->bytes);
    return NB_OK;
}

static nb_status read_plain(const source *s)
{
    const nbi_scheme full = s->w->scheme;
    s->w->scheme = nbi_nibble_plain(&full);
    nb_status st = full.nested ? nbi_ct_read_packed(s->w, s->c, s->module) : nbi_ct_read_codes(s->w, s->c, s->module);
    s->w->scheme = full;
    return st == NB_OK && full.zero_frac ? read_sixteenths(s) : st;
}

static nb_status read_binary(const source *s)
{
    nbi_weight *w = s->w;
    const nbi_tensor *t;
    const size_t row = nbi_ct_words(w->k, 1);
    nb_status st;
    NB_TRY(get(&t, s, "weight_packed", NBI_I32, 2, w->n, row, 0));
    NB_TRY(nbi_weight_alloc(w));
    for (size_t n = 0; n < w->n; n++) {
        for (size_t k = 0; k < w->k; k++)
            w->codes[n * w->k + k] = nbi_part_word_at(t, n * row + k / 32) >> k % 32 & 1 ? 1 : -1;
        if (w->k % 32 && nbi_part_word_at(t, n * row + row - 1) >> w->k % 32)
            return nbi_fail(NB_EFORMAT, "%s: tensor %s: row %zu has bits behind its %zu columns", t->file, t->name, n,
                            w->k);
    }
    NB_TRY(nbi_ct_check_shape(w, s->c, s->module));
    NB_TRY(nbi_ct_read_scales(w, s->c, s->module));
done:
    return st;
}

/* Each of the 2^16 words is a point of the lattice. */
static nb_status read_e8p(const source *s)
{
    nbi_weight *w = s->w;
    const nbi_tensor *t;
    const size_t row = w->k / 8 * nbi_e8p_words(w->scheme.bits);
    nb_status st;
    NB_TRY(get(&t, s, "weight_words", NBI_I16, 2, w->n, row, 0));
    NB_TRY(nbi_weight_alloc(w));
    memcpy(w->words, t->data, t->bytes);
    nbi_e8p_decode(w->codes, w->words, w->n * (w->k / 8), w->scheme.bits);
    NB_TRY(nbi_ct_check_shape(w, s->c, s->module));
    NB_TRY(nbi_ct_read_scales(w, s->c, s->module));
done:
    return st;
}

/* ---- nested scales --------------------------------------------------------------------------------------------- */

static nb_status read_small_codes(const source *s, const char *suffix, uint8_t *codes)
{
    const size_t n = s->w->n * s->groups, words = nbi_ct_words(n, NBI_NESTED_BITS);
    const nbi_tensor *t;
    nb_status st = get(&t, s, suffix, NBI_I32, 1, words, 0, 0);
    for (size_t i = 0; st == NB_OK && i < n; i++) {
        const size_t at = i / 32 * NBI_NESTED_BITS + i % 32 * NBI_NESTED_BITS / 32, next = at + 1 < words ? at + 1 : at;
        const uint64_t two = nbi_part_word_at(t, at) | (uint64_t)nbi_part_word_at(t, next) << 32;
        codes[i] = (uint8_t)(two >> (i % 32 * NBI_NESTED_BITS % 32) & ((1u << NBI_NESTED_BITS) - 1));
    }
    return st;
}

static nb_status read_grid(const source *s, const char *suffix, float *grid)
{
    const size_t runs = nbi_ceil_div(s->w->n, NBI_NESTED_ROWS);
    const nbi_tensor *t;
    nb_status st = get(&t, s, suffix, NBI_F16, 3, runs, s->groups, 2);
    for (size_t i = 0; st == NB_OK && i < runs * s->groups * 2; i++)
        st = half(&grid[i], t, (const char *)t->data + 2 * i, i);
    return st;
}

static nb_status read_nested(const source *s)
{
    nbi_weight *w = s->w;
    nb_status st;
    if (!w->scheme.nested)
        return NB_OK;
    w->nested.bits = NBI_NESTED_BITS;
    w->nested.rows = NBI_NESTED_ROWS;
    NB_TRY(nbi_weight_alloc_nested(w));
    NB_TRY(read_small_codes(s, "scale_codes", w->nested.scale_code));
    NB_TRY(read_small_codes(s, "zero_codes", w->nested.zero_code));
    NB_TRY(read_grid(s, "scale_grid", w->nested.scale_grid));
    NB_TRY(read_grid(s, "zero_grid", w->nested.zero_grid));
    nbi_weight_unnest(w);
    for (size_t i = 0; i < w->n * s->groups; i++)
        if (!(w->scales[i] > 0) || !isfinite(w->scales[i]))
            return nbi_fail(NB_EFORMAT,
                            "%s: the nested scale of row %zu group %zu is %g, expected a positive finite number",
                            s->module, i / s->groups, i % s->groups, (double)w->scales[i]);
done:
    return st;
}

/* ---- order, signs ---------------------------------------------------------------------------------------------- */

static nb_status read_order(const source *s)
{
    nbi_weight *w = s->w;
    const nbi_tensor *t;
    const size_t width = nbi_nibble_width(w->k);
    nb_status st;
    if (!w->scheme.act_order)
        return NB_OK;
    if ((st = get(&t, s, "input_order", width == 1 ? NBI_U8 : width == 2 ? NBI_U16 : NBI_I32, 1, w->k, 0, 0)) != NB_OK)
        return st;
    unsigned char *seen = calloc(w->k, 1);
    w->perm = malloc(w->k * sizeof *w->perm);
    if (!seen || !w->perm) {
        free(seen);
        return nbi_fail_nomem(t->name, w->k * sizeof *w->perm);
    }
    for (size_t j = 0; st == NB_OK && j < w->k; j++) {
        const uint32_t input = w->perm[j] = number((const unsigned char *)t->data + width * j, width);
        if (input >= w->k || seen[input])
            st = nbi_fail(NB_EFORMAT, "%s: tensor %s: column %zu belongs to input %u, expected each of 0 to %zu once",
                          t->file, t->name, j, input, w->k - 1);
        else
            seen[input] = 1;
    }
    free(seen);
    return st;
}

static nb_status read_signs(const source *s, const char *suffix, size_t n, int8_t **out)
{
    const nbi_tensor *t;
    nb_status st = get(&t, s, suffix, NBI_U8, 1, nbi_ceil_div(n, 8), 0, 0);
    if (st != NB_OK)
        return st;
    const unsigned char *bits = t->data;
    if (n % 8 && bits[n / 8] >> n % 8)
        return nbi_fail(NB_EFORMAT, "%s: tensor %s has bits behind its %zu signs", t->file, t->name, n);
    if (!(*out = malloc(n)))
        return nbi_fail_nomem(t->name, n);
    for (size_t i = 0; i < n; i++)
        (*out)[i] = bits[i / 8] >> i % 8 & 1 ? -1 : 1;
    return NB_OK;
}

/* ---- single numbers beside the codes --------------------------------------------------------------------------- */

size_t nbi_nibble_nnz(const nbi_checkpoint *c, const char *module, const nbi_scheme *s)
{
    const nbi_tensor *t = !s->sparse    ? NULL
                          : s->outliers ? nbi_part_find(c, module, "outlier_values")
                                        : nbi_part_find(c, module, "sparse_entries");
    size_t nnz = 0;
    if (t && t->n_dims == 2)
        nnz = s->outliers ? t->n_elements / 2 : t->shape[0];
    return nnz; /* a file without them is told of when it is read */
}

static nb_status alloc_sparse(nbi_weight *w, size_t nnz, const char *name)
{
    nbi_sparse *p = &w->sparse;
    if (nnz > UINT32_MAX)
        return nbi_fail(NB_ELIMIT, "%s: has %zu numbers, expected at most %u", name, nnz, UINT32_MAX);
    p->row = calloc(w->n + 1, sizeof *p->row);
    p->col = malloc((nnz + 1) * sizeof *p->col);
    p->value = malloc((nnz + 1) * sizeof *p->value);
    if (!p->row || !p->col || !p->value)
        return nbi_fail_nomem(name, nnz * 8);
    p->nnz = nnz;
    return NB_OK;
}

/* The counts of the rows, whose bytes lie in planes, add up to the entries. */
static nb_status read_counts(const source *s)
{
    nbi_sparse *p = &s->w->sparse;
    const size_t rows = s->w->n;
    const nbi_tensor *t;
    nb_status st = get_late(&t, s, "sparse_counts", sizeof(uint32_t), rows);
    if (st != NB_OK)
        return st;
    const unsigned char *bytes = t->data;
    for (size_t n = 0, at = 0; n < rows; n++) {
        size_t count = 0;
        for (size_t i = 0; i < t->shape[0]; i++)
            count |= (size_t)bytes[i * rows + n] << 8 * i;
        if (count > p->nnz - at || (n + 1 == rows && count != p->nnz - at))
            return nbi_fail(NB_EFORMAT, "%s: tensor %s: row %zu has %zu numbers, but %zu of %zu are left", t->file,
                            t->name, n, count, p->nnz - at, p->nnz);
        p->row[n + 1] = (uint32_t)(at += count);
    }
    return NB_OK;
}

/* Columns ascend within a row. */
static nb_status read_sparse(const source *s)
{
    nbi_weight *w = s->w;
    nbi_sparse *p = &w->sparse;
    const nbi_tensor *t;
    const size_t width = nbi_nibble_width(w->k);
    nb_status st;
    NB_TRY(get_late(&t, s, "sparse_entries", w->n * w->k, width + 2));
    NB_TRY(alloc_sparse(w, t->shape[0], t->name));
    NB_TRY(read_counts(s));
    for (size_t n = 0; n < w->n; n++)
        for (size_t i = p->row[n]; i < p->row[n + 1]; i++) {
            const unsigned char *e = (const unsigned char *)t->data + (width + 2) * i;
            const uint32_t col = p->col[i] = number(e, width);
            if (col >= w->k || (i > p->row[n] && col <= p->col[i - 1]))
                return nbi_fail(NB_EFORMAT, "%s: tensor %s: row %zu has column %u, expected ascending ones below %zu",
                                t->file, t->name, n, col, w->k);
            NB_TRY(half(&p->value[i], t, e + width, i));
        }
done:
    return st;
}

nb_status nbi_nibble_check_outliers(const nbi_weight *w, const char *module)
{
    const size_t groups = nbi_scheme_groups(&w->scheme, w->k), len = w->k / groups;
    for (size_t i = 0; i < w->n_outliers; i++)
        for (size_t n = 0; n < w->n; n++) {
            const size_t k = w->outlier[i];
            if (w->codes[n * w->k + k] != (w->zeros ? w->zeros[n * groups + k / len] : 0))
                return nbi_fail(NB_EFORMAT, "%s: row %zu has a code in column %zu, which is an outlier: expected zero",
                                module, n, k);
        }
    return NB_OK;
}

static nb_status read_outliers(const source *s)
{
    nbi_weight *w = s->w;
    nbi_sparse *p = &w->sparse;
    const nbi_tensor *columns, *values;
    nb_status st;
    NB_TRY(get_late(&columns, s, "outlier_columns", w->k, 4));
    NB_TRY(get(&values, s, "outlier_values", NBI_U8, 2, columns->shape[0], 2 * w->n, 0));
    const size_t count = w->n_outliers = columns->shape[0];
    if (!(w->outlier = malloc((count + 1) * sizeof *w->outlier)))
        return nbi_fail_nomem(columns->name, count * sizeof *w->outlier);
    for (size_t i = 0; i < count; i++) {
        w->outlier[i] = number((const unsigned char *)columns->data + 4 * i, 4);
        if (w->outlier[i] >= w->k || (i && w->outlier[i] <= w->outlier[i - 1]))
            return nbi_fail(NB_EFORMAT, "%s: tensor %s: number %zu is column %u, expected ascending ones below %zu",
                            columns->file, columns->name, i, w->outlier[i], w->k);
    }
    NB_TRY(alloc_sparse(w, count * w->n, values->name));
    for (size_t n = 0; n < w->n; n++) {
        for (size_t i = 0; i < count; i++) {
            const size_t from = i * w->n + n, to = n * count + i;
            p->col[to] = w->outlier[i];
            NB_TRY(half(&p->value[to], values, (const char *)values->data + 2 * from, from));
        }
        p->row[n + 1] = (uint32_t)((n + 1) * count);
    }
    st = nbi_nibble_check_outliers(w, s->module);
done:
    return st;
}

/* ---- all of it ------------------------------------------------------------------------------------------------- */

nb_status nbi_nibble_read(nbi_weight *w, const void *config, const nbi_checkpoint *c, const char *module)
{
    const nbi_scheme *const q = &w->scheme;
    const source s = {c, module, w, q->strategy == NBI_PER_GROUP && q->group ? w->k / q->group : 1};
    nbi_nibble_layout unused; /* for its checks of the scheme */
    nb_status st;
    (void)config;
    if (nbi_nibble_layout_of(&unused, module, w->n, w->k, q, NBI_F32) != NB_OK)
        return nbi_fail_in(NB_EFORMAT, "the quantization config does not fit the model: ");
    NB_TRY(q->kind == NBI_KIND_E8P ? read_e8p(&s) : q->kind == NBI_KIND_BINARY ? read_binary(&s) : read_plain(&s));
    NB_TRY(read_nested(&s));
    NB_TRY(read_order(&s));
    if (q->rotate_in)
        NB_TRY(read_signs(&s, "input_signs", w->k, &w->in_signs));
    if (q->rotate_out)
        NB_TRY(read_signs(&s, "output_signs", w->n, &w->out_signs));
    if (q->sparse)
        NB_TRY(q->outliers ? read_outliers(&s) : read_sparse(&s));
    NB_TRY(nbi_ct_read_input(w, c, module));
done:
    return st;
}
