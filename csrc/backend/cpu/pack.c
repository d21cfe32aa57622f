/* From the canonical weight to panels, and back one row at a time.
 *
 * Sixteen output rows make a panel, one row a lane, so that a vector register holds the same k of sixteen outputs and
 * every lane sums in ascending k by itself.  Panels lie one after another: a thread reads its share as one stream.
 *
 *   dense   [N/16][K][16] elements of the dtype                 a 64-byte line of fp32 is one k
 *
 *   INT8    [N/16][K/4][16] dwords, code + 128 in each byte
 *               dword of lane 0                lane 1
 *           byte 0     1     2     3           4     5  ...     63
 *              [k    ][k+1  ][k+2  ][k+3  ]   [k    ][k+1 ] ... [k+3 of lane 15]
 *           which is what vpdpbusd multiplies with four activations
 *
 *   INT4    [N/16][K/8][16] dwords, code + 8 in each nibble
 *           bits  0-3  4-7   8-11 12-15  16-19 20-23  24-27 28-31
 *                [k  ][k+4] [k+1][k+5]  [k+2 ][k+6 ] [k+3 ][k+7 ]
 *           so that w & 0x0f0f0f0f holds k .. k+3 and (w >> 4) & 0x0f0f0f0f holds k+4 .. k+7, a byte each
 *
 *   NF4     as INT4
 *
 *   1, 2 and 3 bits: pack_lowbit.c; E8P: pack_e8p.c
 *
 *   XNOR    [N/16][16][words] of 64 bits: rows one after another, bit k % 64 of word k / 64 is 1 for the code 1; 512-bit
 *           blocks, filled up with zeros
 *
 * A group of elements with one scale begins at a whole dword (which is why its length must be a multiple of 4 or 8; codes of
 * fewer bits whose groups are no whole blocks are kept in 4); K itself is arbitrary, its last dword is filled up.  Scales, zero
 * points and corrections: [N/16][groups][16].  Scales of groups that a 16-bit type holds exactly, all of a weight's, are stored as
 * that: files mostly have such ones, and a group of 128 codes of 4 bits is 3 % shorter to read. */
#include "backend/cpu/cpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/e8p.h"
#include "base/checked.h"
#include "base/nf4.h"

/* ---- codes in the dwords of a lane, which are `step` bytes apart ---- */

static void pack_bytes(unsigned char *d, size_t step, const nbi_weight *w, size_t n)
{
    const int8_t *src = w->codes + n * w->k;
    const size_t whole = w->k / 4 * 4;
    for (size_t k = 0; k < whole; k += 4, d += step) { /* a dword at once: code + 128 flips the upper bit */
        uint32_t v;
        memcpy(&v, src + k, 4);
        v ^= 0x80808080u;
        memcpy(d, &v, 4);
    }
    for (size_t k = whole; k < w->k; k++)
        d[k % 4] = (unsigned char)(src[k] + 128);
}

static unsigned byte_at(const unsigned char *d, size_t step, size_t k)
{
    return d[k / 4 * step + k % 4];
}

static void pack_nibbles(unsigned char *d, size_t step, const nbi_weight *w, size_t n)
{
    const int8_t *src = w->codes + n * w->k;
    const size_t whole = w->k / 8 * 8;
    for (size_t k = 0; k < whole; k += 8, d += step) { /* a dword at once: modulo 16, code + 8 flips bit 3 */
        uint32_t v[2];
        memcpy(v, src + k, 8);
        v[0] = ((v[0] & 0x0f0f0f0fu) | (v[1] & 0x0f0f0f0fu) << 4) ^ 0x88888888u;
        memcpy(d, v, 4);
    }
    for (size_t k = whole; k < w->k; k++)
        d[k % 4] |= (unsigned char)(((src[k] + 8) & 15) << (k % 8 / 4 * 4));
}

static unsigned nibble_at(const unsigned char *d, size_t step, size_t k)
{
    return d[k / 8 * step + k % 4] >> (k % 8 / 4 * 4) & 15u;
}

static const nbi_cpu_packing bytes = {4, 1, 128, pack_bytes, byte_at};
static const nbi_cpu_packing nibbles = {8, 1, 8, pack_nibbles, nibble_at};

/* NULL: not made of codes in dwords. */
static const nbi_cpu_packing *const packings[NBI_CPU_N_KINDS] = {
    [NBI_CPU_W8] = &bytes,
    [NBI_CPU_W4] = &nibbles,
    [NBI_CPU_W4Z] = &nibbles,
    [NBI_CPU_W4F] = &nibbles,
    [NBI_CPU_NF4] = &nibbles,
    [NBI_CPU_Q8] = &bytes,
    [NBI_CPU_Q4] = &nibbles,
    [NBI_CPU_W2] = &nbi_cpu_pack2,
    [NBI_CPU_W2Z] = &nbi_cpu_pack2,
    [NBI_CPU_Q2] = &nbi_cpu_pack2,
    [NBI_CPU_W3] = &nbi_cpu_pack3,
    [NBI_CPU_W3Z] = &nbi_cpu_pack3,
    [NBI_CPU_Q3] = &nbi_cpu_pack3,
    [NBI_CPU_W1] = &nbi_cpu_pack1,
    [NBI_CPU_Q1] = &nbi_cpu_pack1,
    [NBI_CPU_E2] = &nbi_cpu_pack_e8p2,
    [NBI_CPU_E4] = &nbi_cpu_pack_e8p4,
};

static bool is_xnor(const nbi_scheme *s)
{
    return s->act == NBI_ACT_SIGN;
}

static size_t bit_words(size_t k)
{
    return nbi_ceil_div(k, 512) * 8;
}

/* ---- what has a kernel ---- */

static nbi_cpu_kind integer_kind(unsigned bits)
{
    return bits == 8   ? NBI_CPU_Q8
           : bits == 3 ? NBI_CPU_Q3
           : bits == 2 ? NBI_CPU_Q2
           : bits == 1 ? NBI_CPU_Q1
                       : NBI_CPU_Q4;
}

static nbi_cpu_kind float_kind(unsigned bits, bool symmetric)
{
    switch (bits) {
    case 1:
        return NBI_CPU_W1;
    case 2:
        return symmetric ? NBI_CPU_W2 : NBI_CPU_W2Z;
    case 3:
        return symmetric ? NBI_CPU_W3 : NBI_CPU_W3Z;
    case 8:
        return NBI_CPU_W8;
    default:
        return symmetric ? NBI_CPU_W4 : NBI_CPU_W4Z;
    }
}

static nbi_cpu_kind kind_of(const nbi_scheme *s, nbi_dtype dense, size_t k)
{
    if (!s->bits)
        return dense == NBI_F32 ? NBI_CPU_F32 : (dense == NBI_F16 ? NBI_CPU_F16 : NBI_CPU_BF16);
    if (is_xnor(s))
        return NBI_CPU_XNOR;
    if (s->kind == NBI_KIND_NF4)
        return NBI_CPU_NF4;
    if (s->kind == NBI_KIND_E8P)
        return s->bits == 2 ? NBI_CPU_E2 : NBI_CPU_E4;
    if (s->zero_frac)
        return NBI_CPU_W4F;
    const nbi_cpu_kind kind = s->act != NBI_ACT_NONE ? integer_kind(s->bits) : float_kind(s->bits, s->symmetric);
    const size_t group = s->strategy == NBI_PER_GROUP ? s->group : k;
    if (s->bits < 4 && group != k && group % packings[kind]->codes) /* groups that are no whole blocks: 4 bits each */
        return s->act != NBI_ACT_NONE ? integer_kind(4) : float_kind(4, s->symmetric);
    return kind;
}

static nb_status check_dense(const nbi_weight *w)
{
    if (!nbi_dtype_is_float(w->dense_dtype))
        return nbi_fail(NB_EUNSUPPORTED, "a dense weight of type %s has no CPU kernel: expected F32, F16 or BF16",
                        w->dense_dtype < NBI_N_DTYPES ? nbi_dtype_name(w->dense_dtype) : "unknown");
    if (!w->dense)
        return nbi_fail(NB_EINVAL, "a dense weight has no data");
    return NB_OK;
}

static nb_status check_quantized(const nbi_weight *w, const nbi_cpu_packing *packing)
{
    const nbi_scheme *s = &w->scheme;
    if (s->kind == NBI_KIND_E8P &&
        ((s->bits != 2 && s->bits != 4) || s->strategy != NBI_PER_TENSOR || !s->symmetric || w->k % 8 || !w->words))
        return nbi_fail(
            NB_EUNSUPPORTED,
            "E8P weights of %u bits, with groups or zero points, without words or with %zu inputs have no CPU "
            "kernel: expected 2 or 4 bits, one scale, and inputs that are a multiple of 8",
            s->bits, w->k);
    if (s->kind == NBI_KIND_NF4 && (s->bits != 4 || s->act != NBI_ACT_NONE || s->act_order))
        return nbi_fail(NB_EUNSUPPORTED,
                        "NF4 weights of %u bits, with quantized activations or in another order have no CPU kernel",
                        s->bits);
    if (is_xnor(s) && (s->bits != 1 || s->kind != NBI_KIND_BINARY || s->strategy != NBI_PER_CHANNEL || s->act_order ||
                       w->k > INT32_MAX))
        return nbi_fail(NB_EUNSUPPORTED,
                        "activations of one bit have a CPU kernel with binary weights, a scale for each "
                        "row, only");
    if (s->bits != 2 && s->bits != 3 && s->bits != 4 && s->bits != 8 && !(s->bits == 1 && s->kind == NBI_KIND_BINARY))
        return nbi_fail(NB_EUNSUPPORTED, "weights of %u bits have no CPU kernel: expected 2, 3, 4 or 8", s->bits);
    if (!w->codes || !w->scales || s->symmetric != !w->zeros)
        return nbi_fail(NB_EINVAL,
                        "a quantized weight lacks codes or scales, or its zero points do not go with its "
                        "scheme (%s)",
                        s->symmetric ? "symmetric" : "asymmetric");
    if (s->strategy == NBI_PER_GROUP) {
        if (!s->group || w->k % s->group)
            return nbi_fail(NB_EUNSUPPORTED, "%zu inputs do not divide into groups of %u", w->k, s->group);
        if (packing && s->group % packing->codes && s->group != w->k)
            return nbi_fail(NB_EUNSUPPORTED,
                            "groups of %u have no CPU kernel: with INT%u the group must be a multiple "
                            "of %zu",
                            s->group, s->bits, packing->codes);
    }
    if (nbi_scheme_check_zeros(s) != NB_OK)
        return NB_EUNSUPPORTED;
    return s->act == NBI_ACT_NONE || is_xnor(s) ? NB_OK : nbi_weight_check_act(w, w->k / nbi_scheme_groups(s, w->k));
}

/* ---- packing ---- */

static void spread(unsigned char *dst, size_t step, const unsigned char *src, size_t n, size_t size)
{
    if (size == 4)
        for (size_t k = 0; k < n; k++)
            memcpy(dst + k * step, src + k * 4, 4);
    else
        for (size_t k = 0; k < n; k++)
            memcpy(dst + k * step, src + k * 2, 2);
}

enum { RUN = 256 }; /* inputs of sixteen rows: what they fill stays in the cache */

static void pack_dense(nbi_linear *l, const nbi_weight *w, size_t panel)
{
    const size_t size = nbi_dtype_size(w->dense_dtype), n0 = panel * NBI_PANEL, step = nbi_cpu_slab(l, panel) * l->line;
    const unsigned char *src = (const unsigned char *)w->dense + n0 * l->k * size;
    unsigned char *dst = nbi_cpu_panel(l, panel);
    for (size_t k = 0; k < l->k; k += RUN)
        for (size_t lane = 0; lane < NBI_PANEL && n0 + lane < l->n; lane++)
            spread(dst + k * step + lane * size, step, src + (lane * l->k + k) * size, l->k - k < RUN ? l->k - k : RUN,
                   size);
}

/* Where the dwords of a row begin, and how far they are apart. */
static unsigned char *lane_of(const nbi_linear *l, size_t n, size_t *step)
{
    *step = nbi_cpu_slab(l, n / NBI_PANEL) * l->line;
    return nbi_cpu_panel(l, n / NBI_PANEL) + n % NBI_PANEL * 4;
}

static void pack_codes(nbi_linear *l, const nbi_weight *w, size_t panel)
{
    const size_t n0 = panel * NBI_PANEL;
    for (size_t n = n0, step; n < n0 + NBI_PANEL && n < l->n; n++) {
        unsigned char *lane = lane_of(l, n, &step);
        l->packing->pack(lane, step, w, n);
    }
}

static void pack_bits(nbi_linear *l, const nbi_weight *w, size_t panel)
{
    const size_t n0 = panel * NBI_PANEL;
    uint64_t *dst = (uint64_t *)(l->w + panel * l->panel_bytes);
    for (size_t lane = 0; lane < NBI_PANEL && n0 + lane < l->n; lane++, dst += l->bit_words)
        for (size_t k = 0; k < l->k; k++)
            dst[k / 64] |= (uint64_t)(w->codes[(n0 + lane) * l->k + k] > 0) << k % 64;
}

/* The terms of  sum (u - zero)(q - zx) = sum u q - zero * sum q + zx * (len * zero - sum u)  that do not need q. */
static int32_t correction(const nbi_linear *l, size_t n, size_t g, unsigned zero)
{
    size_t step;
    const unsigned char *lane = lane_of(l, n, &step);
    uint32_t sum = 0;
    for (size_t k = g * l->group_len; k < (g + 1) * l->group_len; k++)
        sum += l->packing->code(lane, step, k);
    return (int32_t)((uint32_t)l->act_zero * ((uint32_t)l->group_len * zero - sum));
}

static bool all_fit(const float *s, size_t n, nbi_dtype t, int threads)
{
    enum { PIECE = 256 };
    bool fit = true;
#pragma omp parallel for schedule(static) reduction(&& : fit) num_threads(threads)
    for (size_t i = 0; i < n; i += PIECE) {
        const size_t count = n - i < PIECE ? n - i : PIECE;
        uint16_t half[PIECE];
        float back[PIECE];
        if (!fit)
            continue;
        nbi_from_f32(half, t, s + i, count);
        nbi_to_f32(back, half, t, count);
        fit = memcmp(back, s + i, count * sizeof *s) == 0;
    }
    return fit;
}

static nbi_dtype scale_type_of(const nbi_linear *l, const nbi_weight *w, const nbi_cpu *c)
{
    const size_t n = l->n * l->groups;
    const int threads = nbi_cpu_threads(c, n);
    return l->groups == 1                             ? NBI_F32
           : all_fit(w->scales, n, NBI_BF16, threads) ? NBI_BF16
           : all_fit(w->scales, n, NBI_F16, threads)  ? NBI_F16
                                                      : NBI_F32;
}

static void put_scale(const nbi_linear *l, size_t at, float s)
{
    if (l->scale_type == NBI_F32)
        ((float *)l->scales)[at] = s;
    else
        ((uint16_t *)l->scales)[at] = l->scale_type == NBI_BF16 ? nbi_f32_to_bf16(s) : nbi_f32_to_f16(s);
}

static float scale_at(const nbi_linear *l, size_t at)
{
    float s;
    nbi_to_f32(&s, (const char *)l->scales + at * nbi_dtype_size(l->scale_type), l->scale_type, 1);
    return s;
}

static void pack_groups(nbi_linear *l, const nbi_weight *w, size_t panel)
{
    /* sixteenths have sixteen times the offset */
    const unsigned offset = l->packing ? l->packing->offset << l->scheme.zero_frac : 0;
    for (size_t lane = 0; lane < NBI_PANEL && panel * NBI_PANEL + lane < l->n; lane++)
        for (size_t g = 0; g < l->groups; g++) {
            size_t n = panel * NBI_PANEL + lane, from = n * l->groups + g;
            size_t at = nbi_cpu_group_at(l, panel, g) + lane;
            unsigned zero = (unsigned)((w->zeros ? w->zeros[from] : 0) + (int)offset) & 255;
            put_scale(l, at, w->scales[from]);
            if (l->zeros)
                l->zeros[at] = (uint8_t)zero;
            if (l->corr)
                l->corr[at] = correction(l, n, g, zero);
        }
}

/* Columns of a layer with outliers lie in panels, sixteen outputs side by side. */
static void pack_sparse(nbi_linear *l, const nbi_weight *w)
{
    const nbi_sparse *from = &w->sparse;
    if (l->n_outliers) {
        memcpy(l->sparse.col, w->outlier, l->n_outliers * sizeof *l->sparse.col);
        for (size_t n = 0; n < l->n; n++)
            for (size_t i = 0; i < l->n_outliers; i++)
                l->sparse.value[(n / NBI_PANEL * l->n_outliers + i) * NBI_PANEL + n % NBI_PANEL] =
                    from->value[n * l->n_outliers + i];
        return;
    }
    memcpy(l->sparse.row, from->row, (l->n + 1) * sizeof *l->sparse.row);
    memcpy(l->sparse.col, from->col, from->nnz * sizeof *l->sparse.col);
    memcpy(l->sparse.value, from->value, from->nnz * sizeof *l->sparse.value);
}

/* Room for count elements at the end of the block that is being laid out; *at is their offset. */
static bool reserve(size_t *total, size_t count, size_t size, size_t *at)
{
    size_t bytes;
    return nbi_mul(count, size, &bytes) && nbi_round_up(*total, 64, at) && nbi_add(*at, bytes, total);
}

/* Where the parts of a packed weight lie in its block; false where a size does not fit. */
typedef struct parts {
    size_t total, panel, w, scales, zeros, corr, perm, row, col, value, bias;
} parts;

static size_t line_of(const nbi_scheme *s, nbi_dtype dense)
{
    return is_xnor(s) ? 0 : NBI_PANEL * (s->bits ? 4 : nbi_dtype_size(dense));
}

static bool lay_out(parts *p, const nbi_linear *l, nbi_dtype dense, bool zeros, bool corr, bool bias)
{
    const bool quantized = l->scheme.bits != 0;
    const size_t nnz = l->sparse.nnz, outliers = l->n_outliers;
    size_t lanes, entries, values = nnz;
    bool fits = nbi_mul(l->panels, NBI_PANEL, &lanes) && (!outliers || nbi_mul(lanes, outliers, &values)) &&
                nbi_mul(lanes, quantized ? l->groups : 0, &entries);
    p->total = 0;
    if (quantized && is_xnor(&l->scheme))
        fits = fits && nbi_mul(bit_words(l->k), NBI_PANEL * sizeof(uint64_t), &p->panel);
    else if (quantized)
        fits = fits && nbi_mul(nbi_ceil_div(l->k, l->packing->codes), l->packing->dwords * 64, &p->panel);
    else
        fits = fits && nbi_mul(l->k, NBI_PANEL * nbi_dtype_size(dense), &p->panel);
    return fits && reserve(&p->total, l->panels, p->panel, &p->w) &&
           reserve(&p->total, entries, nbi_dtype_size(l->scale_type), &p->scales) &&
           reserve(&p->total, zeros ? entries : 0, 1, &p->zeros) &&
           reserve(&p->total, corr ? entries : 0, sizeof(int32_t), &p->corr) &&
           reserve(&p->total, l->scheme.act_order ? l->k : 0, sizeof(uint32_t), &p->perm) &&
           reserve(&p->total, nnz && !outliers ? l->n + 1 : 0, sizeof(uint32_t), &p->row) &&
           reserve(&p->total, outliers ? outliers : nnz, sizeof(uint32_t), &p->col) &&
           reserve(&p->total, values, sizeof(float), &p->value) &&
           reserve(&p->total, bias ? lanes : 0, sizeof(float), &p->bias);
}

/* Where the parts lie in `block`; NULL: in one of our own. */
static nb_status place(nbi_backend *b, nbi_linear *l, const nbi_weight *w, const void *block)
{
    const bool quantized = l->scheme.bits != 0, corrected = nbi_cpu_is_integer(l->kind) && l->act_zero != 0;
    parts p;
    if (!lay_out(&p, l, w->dense_dtype, w->zeros != NULL, corrected, w->bias != NULL))
        return nbi_fail(NB_ELIMIT, "a weight of %zu x %zu is too large", l->n, l->k);
    nb_status st = block ? NB_OK : nbi_cpu_alloc_weight(b, &l->block, p.total);
    if (st != NB_OK)
        return st;
    unsigned char *base = block ? (unsigned char *)block : l->block;
    l->bytes = p.total;
    l->panel_bytes = p.panel;
    l->line = line_of(&l->scheme, w->dense_dtype);
    l->bit_words = p.panel / (NBI_PANEL * sizeof(uint64_t));
    l->w = base + p.w;
    l->scales = quantized ? base + p.scales : NULL;
    l->zeros = quantized && w->zeros ? base + p.zeros : NULL;
    l->corr = corrected ? (int32_t *)(base + p.corr) : NULL;
    l->perm = w->perm ? (uint32_t *)(base + p.perm) : NULL;
    l->bias = w->bias ? (float *)(base + p.bias) : NULL;
    if (l->sparse.nnz)
        l->sparse = (nbi_sparse){l->sparse.nnz, (uint32_t *)(base + p.row), (uint32_t *)(base + p.col),
                                 (float *)(base + p.value)};
    return NB_OK;
}

/* Whether static activations have a zero point, and scales fit in 16 bits, is known when the weight is read: room for the
 * correction and for fp32 is counted. */
size_t nbi_cpu_linear_plan(nbi_backend *b, size_t n, size_t k, const nbi_scheme *scheme, nbi_dtype dense, bool bias)
{
    nbi_linear l = {.n = n, .k = k, .panels = nbi_ceil_div(n, NBI_PANEL), .scheme = nbi_scheme_packed(scheme)};
    parts p;
    (void)b;
    l.kind = kind_of(&l.scheme, dense, k);
    l.packing = packings[l.kind];
    l.groups = scheme->bits ? nbi_scheme_groups(scheme, k) : 1;
    l.sparse.nnz = scheme->bits && scheme->sparse ? scheme->nnz : 0;
    l.n_outliers = scheme->outliers && n ? l.sparse.nnz / n : 0;
    return lay_out(&p, &l, dense, scheme->bits && !scheme->symmetric,
                   scheme->act == NBI_ACT_TENSOR && !scheme->act_symmetric, bias)
               ? p.total
               : SIZE_MAX;
}

/* All that is known before the contents of any array, of which only the presence is asked. */
static nb_status describe(nbi_linear *l, const nbi_weight *w)
{
    nb_status st;
    if (!w->n || !w->k)
        return nbi_fail(NB_EINVAL, "a weight of %zu x %zu has no elements", w->n, w->k);
    l->n = w->n;
    l->k = w->k;
    l->panels = nbi_ceil_div(w->n, NBI_PANEL);
    l->scheme = w->scheme;
    l->kind = kind_of(&w->scheme, w->dense_dtype, w->k);
    l->packing = packings[l->kind];
    nbi_cpu_e8p_build();
    if (w->scheme.bits && w->scheme.act == NBI_ACT_TENSOR) {
        l->act_scale = w->act_scale;
        l->act_zero = w->act_zero;
    }
    NB_TRY(w->scheme.bits ? check_quantized(w, l->packing) : check_dense(w));
    l->groups = w->scheme.bits ? nbi_scheme_groups(&w->scheme, w->k) : 1;
    l->group_len = w->k / l->groups;
    l->sparse.nnz = w->scheme.bits ? w->sparse.nnz : 0;
    l->n_outliers = w->scheme.bits ? w->n_outliers : 0;
done:
    return st;
}

nb_status nbi_cpu_linear_create(nbi_backend *b, nbi_linear **out, const nbi_weight *weight)
{
    nbi_weight packed = *weight;
    const nbi_weight *w = &packed;
    nb_status st;
    packed.scheme = nbi_scheme_packed(&weight->scheme);
    *out = NULL;
    nbi_linear *l = calloc(1, sizeof *l);
    if (!l)
        return nbi_fail_nomem("a packed weight", sizeof *l);
    NB_TRY(describe(l, w));
    NB_TRY(nbi_weight_check_order(w));
    NB_TRY(nbi_weight_check_sparse(w));
    if (l->scheme.bits)
        l->scale_type = scale_type_of(l, w, nbi_cpu_of(b));
    NB_TRY(place(b, l, w, NULL));
    if (l->bias)
        memcpy(l->bias, w->bias, w->n * sizeof(float));
    if (l->perm)
        memcpy(l->perm, w->perm, w->k * sizeof *l->perm);
    if (l->sparse.nnz)
        pack_sparse(l, w);
#pragma omp parallel for schedule(static) num_threads(nbi_cpu_threads(nbi_cpu_of(b), l->bytes))
    for (size_t p = 0; p < l->panels; p++) {
        if (l->scheme.bits) {
            (l->kind == NBI_CPU_XNOR ? pack_bits : pack_codes)(l, w, p);
            pack_groups(l, w, p);
        } else
            pack_dense(l, w, p);
    }
    *out = l;
    l = NULL;
done:
    nbi_cpu_linear_free(b, l);
    return st;
}

/* ---- as a cache keeps it ---- */

void nbi_cpu_linear_save(const nbi_linear *l, nbi_packed *out)
{
    static const nbi_dtype dense[] = {[NBI_CPU_F32] = NBI_F32, [NBI_CPU_F16] = NBI_F16, [NBI_CPU_BF16] = NBI_BF16};
    *out = (nbi_packed){.n = l->n,
                        .k = l->k,
                        .scheme = l->scheme,
                        .dense = l->scheme.bits ? NBI_F32 : dense[l->kind],
                        .scale_type = l->scale_type,
                        .bias = l->bias != NULL,
                        .act_scale = l->act_scale,
                        .act_zero = l->act_zero,
                        .nnz = l->sparse.nnz,
                        .n_outliers = l->n_outliers,
                        .block = l->w,
                        .bytes = l->bytes};
}

/* Indices are followed without a look when the layer runs. */
static nb_status check_indices(const nbi_linear *l)
{
    const nbi_sparse *s = &l->sparse;
    bool good = true;
    for (size_t j = 0; l->perm && j < l->k; j++)
        good = good && l->perm[j] < l->k;
    for (size_t i = 0; s->nnz && i < (l->n_outliers ? l->n_outliers : s->nnz); i++)
        good = good && s->col[i] < l->k;
    if (s->nnz && !l->n_outliers) {
        good = good && s->row[0] == 0 && s->row[l->n] == s->nnz;
        for (size_t n = 0; n < l->n; n++)
            good = good && s->row[n] <= s->row[n + 1];
    }
    return good ? NB_OK : nbi_fail(NB_EFORMAT, "an index of a packed weight of %zu x %zu is out of range", l->n, l->k);
}

nb_status nbi_cpu_linear_load(nbi_backend *b, nbi_linear **out, const nbi_packed *p)
{
    static uint8_t there; /* stands for any array: describe() and place() ask for no more */
    const bool quantized = p->scheme.bits != 0;
    nbi_weight w = {.n = p->n,
                    .k = p->k,
                    .scheme = nbi_scheme_packed(&p->scheme),
                    .dense_dtype = p->dense,
                    .dense = &there,
                    .codes = (int8_t *)&there,
                    .scales = (float *)(void *)&there,
                    .words = (uint16_t *)(void *)&there,
                    .zeros = quantized && !p->scheme.symmetric ? (int8_t *)&there : NULL,
                    .perm = p->scheme.act_order ? (uint32_t *)(void *)&there : NULL,
                    .bias = p->bias ? (float *)(void *)&there : NULL,
                    .act_scale = p->act_scale,
                    .act_zero = p->act_zero,
                    .n_outliers = p->n_outliers,
                    .sparse.nnz = p->nnz};
    nb_status st;
    *out = NULL;
    nbi_linear *l = calloc(1, sizeof *l);
    if (!l)
        return nbi_fail_nomem("a packed weight", sizeof *l);
    NB_TRY(describe(l, &w));
    if ((p->nnz && !p->scheme.sparse) ||
        (p->n_outliers && (!p->scheme.outliers || p->n_outliers > l->k || p->nnz / p->n_outliers != l->n)))
        NB_TRY(nbi_fail(NB_EFORMAT, "single numbers beside a packed weight do not go with its scheme"));
    if (p->scale_type != NBI_F32 && (l->groups == 1 || !nbi_dtype_is_float(p->scale_type)))
        NB_TRY(nbi_fail(NB_EFORMAT, "scales of a packed weight are of a type that they cannot have"));
    l->scale_type = p->scale_type;
    NB_TRY(place(b, l, &w, p->block));
    if (l->bytes != p->bytes)
        NB_TRY(nbi_fail(NB_EFORMAT, "a packed weight of %zu x %zu has %zu bytes, expected %zu", l->n, l->k, p->bytes,
                        l->bytes));
    NB_TRY(check_indices(l));
    *out = l;
    l = NULL;
done:
    free(l); /* the block is the caller's */
    return st;
}

void nbi_cpu_linear_free(nbi_backend *b, nbi_linear *l)
{
    if (!l)
        return;
    nbi_cpu_release(b, l->block);
    free(l);
}

size_t nbi_cpu_linear_bytes(const nbi_linear *l)
{
    return l->bytes;
}

void nbi_cpu_unpack_row(const nbi_linear *l, size_t n, float *dst)
{
    const size_t panel = n / NBI_PANEL, lane = n % NBI_PANEL;
    size_t step = nbi_cpu_slab(l, panel) * l->line;
    if (!l->scheme.bits) {
        nbi_dtype t = l->kind == NBI_CPU_F32 ? NBI_F32 : (l->kind == NBI_CPU_F16 ? NBI_F16 : NBI_BF16);
        for (size_t k = 0; k < l->k; k++)
            nbi_to_f32(dst + k, nbi_cpu_panel(l, panel) + k * step + lane * nbi_dtype_size(t), t, 1);
        return;
    }
    if (l->kind == NBI_CPU_XNOR) {
        const uint64_t *bits = (const uint64_t *)(l->w + panel * l->panel_bytes) + lane * l->bit_words;
        for (size_t k = 0; k < l->k; k++)
            dst[k] = (float)(bits[k / 64] >> k % 64 & 1 ? 1 : -1) * scale_at(l, n);
        return;
    }
    const unsigned char *codes = lane_of(l, n, &step);
    for (size_t g = 0; g < l->groups; g++) {
        const size_t at = nbi_cpu_group_at(l, panel, g) + lane;
        const float scale = scale_at(l, at);
        if (l->kind == NBI_CPU_NF4) {
            for (size_t k = g * l->group_len; k < (g + 1) * l->group_len; k++)
                dst[k] = nbi_nf4[l->packing->code(codes, step, k)] * scale;
            continue;
        }
        const float zero =
            l->zeros ? (float)l->zeros[at] / (float)(1 << l->scheme.zero_frac) : (float)l->packing->offset;
        for (size_t k = g * l->group_len; k < (g + 1) * l->group_len; k++)
            dst[l->perm ? l->perm[k] : k] = ((float)l->packing->code(codes, step, k) - zero) * scale;
    }
}
