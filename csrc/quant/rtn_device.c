#include "quant/rtn_device.h"

#include <stdlib.h>

#include "base/checked.h"
#include "format/compressed_tensors.h"

#define ALIGN 256

static size_t groups_of(const nbi_rtn_stream *s)
{
    return nbi_scheme_groups(&s->out->scheme, s->out->k);
}

static size_t slab_at(const nbi_rtn_stream *s, size_t row)
{
    return s->src->n - row < s->slab_rows ? s->src->n - row : s->slab_rows;
}

/* Appends `count` elements of `size` bytes to a block; false: too large. */
static bool part(size_t *block, size_t *at, size_t count, size_t size)
{
    size_t bytes;
    *at = *block;
    return nbi_mul(count, size, &bytes) && nbi_round_up(bytes, ALIGN, &bytes) && nbi_add(*block, bytes, block);
}

nb_status nbi_rtn_stream_open(nbi_rtn_stream *s, size_t slab_bytes)
{
    const nbi_weight *w = s->src;
    const bool packs = s->be->quant->packs(&s->out->scheme, w->k);
    const size_t size = nbi_dtype_size(w->dense_dtype), row = w->k ? w->k * size : 1;
    size_t rows = slab_bytes / row ? slab_bytes / row : 1, block = 0, x, codes, scales, zeros;
    nb_status st;
    rows = rows < w->n ? rows : w->n;
    s->slab_rows = rows ? rows : 1;
    if (!part(&block, &x, rows * w->k, size) || !part(&block, &codes, rows * w->k / (packs ? 8 : 1), packs ? 4 : 1) ||
        !part(&block, &scales, rows * groups_of(s), sizeof(float)) || !part(&block, &zeros, rows * groups_of(s), 1))
        return nbi_fail(NB_ELIMIT, "a weight of %zu x %zu is too large", w->n, w->k);
    if (packs && !(s->words = malloc(rows * w->k / 2 + 1)))
        return nbi_fail_nomem("packed codes", rows * w->k / 2);
    NB_TRY(s->be->ops->alloc(s->be, &s->x, block, "weights to quantize"));
    char *p = s->x;
    s->made.codes = packs ? NULL : (int8_t *)(p + codes);
    s->made.packed = packs ? (uint32_t *)(p + codes) : NULL;
    s->made.scales = (float *)(p + scales);
    s->made.zeros = s->out->scheme.symmetric ? NULL : (int8_t *)(p + zeros);
done:
    return st;
}

void nbi_rtn_stream_close(nbi_rtn_stream *s)
{
    if (s->x)
        s->be->ops->release(s->be, s->x);
    free(s->words);
    s->x = NULL;
    s->words = NULL;
}

static nb_status upload(nbi_rtn_stream *s, size_t row, nbi_matrix *m)
{
    const nbi_weight *w = s->src;
    const size_t bytes = w->k * nbi_dtype_size(w->dense_dtype);
    *m = (nbi_matrix){s->x, w->dense_dtype, slab_at(s, row), w->k};
    return s->be->ops->upload(s->be, s->x, (const char *)w->dense + row * bytes, m->rows * bytes);
}

nb_status nbi_rtn_stream_range(nbi_rtn_stream *s, float *lo, float *hi, size_t *bad_row)
{
    nb_status st = NB_OK;
    *lo = *hi = 0;
    *bad_row = SIZE_MAX;
    for (size_t row = 0; row < s->src->n && s->src->k; row += s->slab_rows) {
        nbi_matrix m;
        float a, b;
        size_t bad;
        NB_TRY(upload(s, row, &m));
        NB_TRY(s->be->quant->range(s->be, &m, NBI_RANGE_TENSOR, 0, &a, &b, &bad));
        if (bad != SIZE_MAX) {
            *bad_row = row + bad;
            return NB_OK;
        }
        *lo = a < *lo ? a : *lo;
        *hi = b > *hi ? b : *hi;
    }
done:
    return st;
}

/* k is a multiple of 8 where codes are packed, so that a slab is one run of whole words. */
static void unpack(const nbi_rtn_stream *s, int8_t *codes, size_t n)
{
    const size_t run = (size_t)1 << 16; /* a multiple of 8 */
#pragma omp parallel for num_threads(s->threads) schedule(static)
    for (size_t at = 0; at < n; at += run)
        nbi_ct_unpack(codes + at, s->words + at / 8, n - at < run ? n - at : run, 4);
}

static nb_status download_codes(nbi_rtn_stream *s, size_t row, size_t rows)
{
    int8_t *codes = s->out->codes + row * s->out->k;
    const size_t n = rows * s->out->k;
    if (!s->words)
        return s->be->ops->download(s->be, codes, s->made.codes, n);
    nb_status st = s->be->ops->download(s->be, s->words, s->made.packed, n / 2);
    if (st == NB_OK)
        unpack(s, codes, n);
    return st;
}

static nb_status download_grids(nbi_rtn_stream *s, size_t row, size_t rows)
{
    const size_t groups = groups_of(s);
    nb_status st;
    NB_TRY(s->be->ops->download(s->be, s->out->scales + row * groups, s->made.scales, rows * groups * sizeof(float)));
    if (s->made.zeros)
        NB_TRY(s->be->ops->download(s->be, s->out->zeros + row * groups, s->made.zeros, rows * groups));
done:
    return st;
}

nb_status nbi_rtn_stream_codes(nbi_rtn_stream *s, nbi_dtype scale_dtype, const nbi_fixed_grid *fixed)
{
    nb_status st = NB_OK;
    for (size_t row = 0; row < s->src->n && s->src->k; row += s->slab_rows) {
        nbi_matrix m;
        NB_TRY(upload(s, row, &m));
        NB_TRY(s->be->quant->rtn(s->be, &m, &s->out->scheme, scale_dtype, fixed, &s->made));
        NB_TRY(download_codes(s, row, m.rows));
        if (!fixed)
            NB_TRY(download_grids(s, row, m.rows));
    }
done:
    return st;
}
