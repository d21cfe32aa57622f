/* From the canonical weight to what cuda/layout.h draws.
 *
 * A weight is one block of the weights' arena: tiles, scales, zero points, corrections, bias.  Each of these parts is
 * a row of items of one size (a tile; the 16 numbers of a group of a panel), so all are sent the same way: a staging
 * buffer is filled with as many items as it holds by all threads, and travels while the other buffer is filled. */
#include "backend/cuda/cuda.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/cublaslt.h"
#include "base/checked.h"

/* E8P with 2 bits and float activations is packed in 4: q, odd, is 2 (c - z) with the code c = (q - 1) / 2 and the zero point
 * z = -1/2, exactly.  Otherwise its codes are packed as the INT8 that they are. */
static bool is_halved(const nbi_scheme *s)
{
    return s->bits == 2 && s->kind == NBI_KIND_E8P && s->act == NBI_ACT_NONE;
}

static nbi_scheme packed_scheme(const nbi_scheme *s)
{
    nbi_scheme p = *s;
    if (!s->bits || s->kind != NBI_KIND_E8P)
        return p;
    p.kind = NBI_KIND_INT;
    p.bits = is_halved(s) ? 4 : 8;
    p.symmetric = !is_halved(s);
    p.zero_frac = is_halved(s) ? 4 : 0;
    return p;
}

/* Codes, scales and zero points of a weight that is_halved(), in *own; w gets a view of them. */
static nb_status halve(nbi_weight *own, nbi_weight *w)
{
    *own = (nbi_weight){.n = w->n, .k = w->k, .scheme = packed_scheme(&w->scheme)};
    nb_status st = nbi_weight_alloc(own);
    if (st != NB_OK)
        return st;
    for (size_t i = 0; i < w->n * w->k; i++)
        own->codes[i] = (int8_t)((w->codes[i] - 1) / 2);
    for (size_t n = 0; n < w->n; n++)
        own->scales[n] = 2 * w->scales[n];
    memset(own->zeros, -8, w->n);
    w->codes = own->codes;
    w->scales = own->scales;
    w->zeros = own->zeros;
    return NB_OK;
}

/* ---- what has a kernel ---- */

#define MAX_K ((size_t)1 << 26) /* kernels count the bytes of 16 rows in 32 bits */

static nb_status check_dense(const nbi_weight *w)
{
    if (!nbi_dtype_is_float(w->dense_dtype))
        return nbi_fail(NB_EUNSUPPORTED, "a dense weight of type %s has no CUDA kernel: expected F32, F16 or BF16",
                        w->dense_dtype < NBI_N_DTYPES ? nbi_dtype_name(w->dense_dtype) : "unknown");
    if (!w->dense)
        return nbi_fail(NB_EINVAL, "a dense weight has no data");
    return NB_OK;
}

static nb_status check_quantized(const nbi_weight *w)
{
    const nbi_scheme *s = &w->scheme;
    const uint32_t step = s->act == NBI_ACT_NONE ? 16 : 32;
    if (s->kind == NBI_KIND_E8P)
        return nbi_fail(NB_EUNSUPPORTED, "weights that are not on an even grid have no CUDA kernel");
    if (s->kind == NBI_KIND_NF4 && (s->bits != 4 || s->act != NBI_ACT_NONE || s->act_order))
        return nbi_fail(NB_EUNSUPPORTED,
                        "NF4 weights of %u bits, with quantized activations or in another order have no CUDA kernel",
                        s->bits);
    if (s->act == NBI_ACT_SIGN &&
        (s->bits != 1 || s->kind != NBI_KIND_BINARY || s->strategy != NBI_PER_CHANNEL || s->act_order))
        return nbi_fail(NB_EUNSUPPORTED,
                        "activations of one bit have a CUDA kernel with binary weights, a scale for each "
                        "row, only");
    if (s->bits != 2 && s->bits != 3 && s->bits != 4 && s->bits != 8 && !(s->bits == 1 && s->kind == NBI_KIND_BINARY))
        return nbi_fail(NB_EUNSUPPORTED, "weights of %u bits have no CUDA kernel: expected 2, 3, 4 or 8", s->bits);
    if (!w->codes || !w->scales || s->symmetric != !w->zeros)
        return nbi_fail(NB_EINVAL,
                        "a quantized weight lacks codes or scales, or its zero points do not go with its "
                        "scheme (%s)",
                        s->symmetric ? "symmetric" : "asymmetric");
    if (s->strategy == NBI_PER_GROUP) {
        if (!s->group || w->k % s->group)
            return nbi_fail(NB_EUNSUPPORTED, "%zu inputs do not divide into groups of %u", w->k, s->group);
        if (s->group % step && s->group != w->k)
            return nbi_fail(NB_EUNSUPPORTED,
                            "groups of %u have no CUDA kernel: with %s activations the group must be a multiple of %u",
                            s->group, s->act == NBI_ACT_NONE ? "float" : "INT8", step);
    }
    if (nbi_scheme_check_zeros(s) != NB_OK)
        return NB_EUNSUPPORTED;
    return s->act == NBI_ACT_NONE || s->act == NBI_ACT_SIGN
               ? NB_OK
               : nbi_weight_check_act(w, w->k / nbi_scheme_groups(s, w->k));
}

static nb_status check(const nbi_weight *w)
{
    if (!w->n || !w->k)
        return nbi_fail(NB_EINVAL, "a weight of %zu x %zu has no elements", w->n, w->k);
    if (w->k % 16 != 0)
        return nbi_fail(NB_EUNSUPPORTED,
                        "a weight of %zu x %zu has no CUDA kernel: %zu inputs are not a multiple of 16", w->n, w->k,
                        w->k);
    if (w->n > INT32_MAX - NB_TILE_N || w->k > MAX_K)
        return nbi_fail(NB_ELIMIT, "a weight of %zu x %zu is too large", w->n, w->k);
    return w->scheme.bits ? check_quantized(w) : check_dense(w);
}

/* ---- the parts of a block ---- */

enum { BLOCKS, SCALES, ZEROS, CORR, BIAS, N_PARTS };

typedef struct layout {
    size_t item[N_PARTS], count[N_PARTS], at[N_PARTS]; /* bytes of an item, how many, where they begin */
    size_t bytes;
} layout;

/* Of a panel. */
static size_t blocks_of(unsigned kind, size_t k)
{
    return nbi_ceil_div(k, (size_t)NB_TILES(kind) * NB_TILE_K);
}

/* Corrections have room wherever a scheme may want them, so that the plan does not depend on the zero point. */
static bool lay_out(layout *l, size_t n, size_t k, const nbi_scheme *s, bool bias)
{
    const unsigned kind = nbi_cuda_kind_of(s);
    const size_t panels = nbi_ceil_div(n, NB_TILE_N);
    size_t blocks = blocks_of(kind, k);
    const bool grouped = s->strategy == NBI_PER_GROUP && s->group;
    size_t all, groups = 0;
    *l = (layout){
        {(size_t)NB_UNITS(kind) * NB_UNIT, NB_TILE_N * 4, NB_TILE_N, NB_TILE_N * 4, NB_TILE_N * 4}, {0}, {0}, 0};
    if (kind == NB_W_XNOR) { /* 128 bits of a row */
        l->item[BLOCKS] = 16;
        blocks = NB_TILE_N * (NB_XNOR_WORDS(k) / 4);
    }
    if (!nbi_mul(panels, blocks, &all) ||
        (s->bits && !nbi_mul(panels, grouped ? nbi_ceil_div(k, s->group) : 1, &groups)))
        return false;
    l->count[BLOCKS] = all;
    l->count[SCALES] = groups;
    l->count[ZEROS] = nbi_cuda_kinds[kind].zeros_always || (s->bits && !s->symmetric) ? groups : 0;
    l->count[CORR] = s->bits && s->act == NBI_ACT_TENSOR && !s->act_symmetric ? groups : 0;
    l->count[BIAS] = bias ? panels : 0;
    for (int i = 0; i < N_PARTS; i++) {
        size_t bytes;
        l->at[i] = l->bytes;
        if (!nbi_mul(l->item[i], l->count[i], &bytes) || !nbi_add(l->bytes, bytes, &bytes) ||
            !nbi_round_up(bytes, 256, &l->bytes))
            return false;
    }
    return true;
}

/* k is at most MAX_K where it matters */
static size_t order_bytes(const nbi_scheme *s, size_t k)
{
    return s->act_order && k <= MAX_K ? nbi_cuda_align(k * sizeof(uint32_t)) : 0;
}

size_t nbi_cuda_linear_plan(nbi_backend *b, size_t n, size_t k, const nbi_scheme *scheme, nbi_dtype dense, bool bias)
{
    const nbi_scheme s = packed_scheme(scheme);
    layout l;
    (void)dense; /* becomes the type of the activations */
    const size_t beside = nbi_cuda_sparse_bytes(scheme, n, k, scheme->bits && scheme->sparse ? scheme->nnz : 0);
    size_t bytes;
    if (nbi_cublaslt_takes(nbi_cuda_of(b), n, k, &s))
        bytes = nbi_cublaslt_plan(nbi_cuda_of(b), n, k, &s, bias);
    else
        bytes = lay_out(&l, n, k, &s, bias) && nbi_add(l.bytes, order_bytes(&s, k), &l.bytes) ? l.bytes : SIZE_MAX;
    return nbi_add(bytes, beside, &bytes) ? bytes : SIZE_MAX;
}

/* ---- one item of each part ---- */

typedef struct packing {
    const nbi_weight *w;
    unsigned kind;
    size_t blocks, groups, group_len; /* of a panel; of a row */
    nbi_dtype act;
    bool overflow; /* a finite dense weight became infinite */
} packing;

/* 16 weights of a row as T. */
static bool dense_block(const packing *p, size_t n, size_t k, uint16_t out[16])
{
    const nbi_weight *w = p->w;
    const char *src = (const char *)w->dense + (n * w->k + k) * nbi_dtype_size(w->dense_dtype);
    float f[16];
    if (w->dense_dtype == p->act) {
        memcpy(out, src, 32);
        return true;
    }
    nbi_to_f32(f, src, w->dense_dtype, 16);
    nbi_from_f32(out, p->act, f, 16);
    if (p->act == NBI_F16)
        for (int i = 0; i < 16; i++)
            if ((out[i] & 0x7fff) == 0x7c00 && isfinite(f[i]))
                return false;
    return true;
}

/* Sixteen k of row r of a tile, in block b of its four: see layout.h for where they go. */
static void put_dense(unsigned char *tile, int r, int b, const uint16_t s[16])
{
    for (int t = 0; t < 4; t++) {
        unsigned char *lane = tile + b * NB_UNIT + (r % 8 * 4 + t) * 16 + r / 8 * 4;
        memcpy(lane, s + 2 * t, 4);
        memcpy(lane + 8, s + 2 * t + 8, 4);
    }
}

/* 128 signs of a row. */
static void pack_bits(const packing *p, size_t i, unsigned char *out)
{
    const nbi_weight *w = p->w;
    const size_t pieces = NB_XNOR_WORDS(w->k) / 4, n = i / pieces, k0 = i % pieces * 128;
    memset(out, 0, 16);
    for (size_t j = 0; j < 128 && n < w->n && k0 + j < w->k; j++)
        out[j / 8] = (unsigned char)(out[j / 8] | (w->codes[n * w->k + k0 + j] > 0) << j % 8);
}

/* What lies beyond the weight, where x is 0: 0, below 8 bits the zero point (of sixteenths: 0), of NF4 the code of 0. */
static int8_t padding(const packing *p, size_t n)
{
    const nbi_weight *w = p->w;
    if (w->scheme.kind == NBI_KIND_NF4)
        return -1;
    return w->scheme.bits < 8 && w->zeros && !w->scheme.zero_frac && n < w->n ? w->zeros[(n + 1) * p->groups - 1] : 0;
}

static bool pack_block(const packing *p, size_t i, unsigned char *block)
{
    const nbi_weight *w = p->w;
    const size_t n0 = i / p->blocks * NB_TILE_N, k0 = i % p->blocks * NB_TILES(p->kind) * NB_TILE_K;
    bool fits = true;
    memset(block, 0, (size_t)NB_UNITS(p->kind) * NB_UNIT);
    for (int r = 0; r < NB_TILE_N; r++)
        for (int b = 0; b < 4 * NB_TILES(p->kind); b++) {
            const size_t n = n0 + (size_t)r, k = k0 + (size_t)b * 16;
            const bool inside = n < w->n && k < w->k;
            if (w->scheme.bits == 0) {
                uint16_t s[16];
                if (inside) {
                    fits = dense_block(p, n, k, s) && fits;
                    put_dense(block, r, b, s);
                }
                continue;
            }
            int8_t fill[16];
            if (!inside)
                memset(fill, padding(p, n), 16);
            nbi_cuda_kinds[p->kind].put(block, r, b, inside ? w->codes + n * w->k + k : fill);
        }
    return fits;
}

/* corr = -zx * sum of (code - zero), modulo 2^32 */
static int32_t correction(const packing *p, size_t n, size_t g)
{
    const nbi_weight *w = p->w;
    const int8_t *code = w->codes + n * w->k + g * p->group_len;
    const int zero = w->zeros ? w->zeros[n * p->groups + g] : 0;
    int64_t sum = 0;
    for (size_t k = 0; k < p->group_len; k++)
        sum += code[k] - zero;
    return (int32_t)(uint32_t)(-sum * w->act_zero);
}

/* The 16 numbers of a group of a panel (of a panel: bias). */
static void pack_numbers(const packing *p, int part, size_t i, unsigned char *out)
{
    const nbi_weight *w = p->w;
    const size_t n0 = i / (part == BIAS ? 1 : p->groups) * NB_TILE_N, g = part == BIAS ? 0 : i % p->groups;
    for (size_t r = 0; r < NB_TILE_N; r++) {
        const size_t n = n0 + r, at = n * p->groups + g;
        const bool inside = n < w->n;
        if (part == ZEROS) {
            const nbi_cuda_kind *kind = &nbi_cuda_kinds[p->kind];
            const int zero = inside && w->zeros ? w->zeros[at] : 0;
            const int unit = kind->sixteenths && !w->scheme.zero_frac ? 16 : 1;
            out[r] = (unsigned char)(zero * unit + kind->zero_offset);
        } else if (part == CORR) {
            const int32_t c = inside ? correction(p, n, g) : 0;
            memcpy(out + r * 4, &c, 4);
        } else {
            const float f = !inside ? 0 : part == SCALES ? w->scales[at] : w->bias[n];
            memcpy(out + r * 4, &f, 4);
        }
    }
}

/* ---- all of them ---- */

static nb_status send_part(nbi_cuda *c, packing *p, const layout *l, int part, char *dst)
{
    nb_status st = NB_OK;
    const size_t item = l->item[part], most = NBI_STAGE_BYTES / item;
    for (size_t first = 0, n; first < l->count[part]; first += n) {
        unsigned char *host;
        bool fits = true;
        n = l->count[part] - first < most ? l->count[part] - first : most;
        NB_TRY(nbi_cuda_stage_get(c, (void **)&host));
#pragma omp parallel for schedule(static) reduction(&& : fits) if (n * item > 65536)
        for (size_t i = 0; i < n; i++) {
            if (part == BLOCKS && p->kind == NB_W_XNOR)
                pack_bits(p, first + i, host + i * item);
            else if (part == BLOCKS)
                fits = pack_block(p, first + i, host + i * item) && fits;
            else
                pack_numbers(p, part, first + i, host + i * item);
        }
        p->overflow = p->overflow || !fits;
        NB_TRY(nbi_cuda_stage_send(c, dst + first * item, n * item));
    }
done:
    return st;
}

/* The first weight that half cannot hold. */
static nb_status overflow(const packing *p)
{
    const nbi_weight *w = p->w;
    for (size_t n = 0; n < w->n; n++)
        for (size_t k = 0; k < w->k; k += 16) {
            uint16_t h[16];
            float f[16];
            if (dense_block(p, n, k, h))
                continue;
            nbi_to_f32(f, (const char *)w->dense + (n * w->k + k) * nbi_dtype_size(w->dense_dtype), w->dense_dtype, 16);
            for (size_t i = 0; i < 16; i++)
                if ((h[i] & 0x7fff) == 0x7c00 && isfinite(f[i]))
                    return nbi_fail(NB_EUNSUPPORTED,
                                    "the weight of output %zu and input %zu is %g, which float16 does not hold (up to "
                                    "65504): use --act-dtype bf16",
                                    n, k + i, (double)f[i]);
        }
    return nbi_fail(NB_EINTERNAL, "a dense weight changed while it was packed");
}

static void describe(nbi_linear *out, const nbi_cuda *c, const packing *p, const layout *l)
{
    const nbi_weight *w = p->w;
    char *base = out->block;
    out->bytes = l->bytes;
    out->p = (nb_packed){.w = base + l->at[BLOCKS],
                         .scales = w->scheme.bits ? (const float *)(base + l->at[SCALES]) : NULL,
                         .zeros = l->count[ZEROS] ? base + l->at[ZEROS] : NULL,
                         .corr = l->count[CORR] && w->act_zero ? (const int32_t *)(base + l->at[CORR]) : NULL,
                         .bias = w->bias ? (const float *)(base + l->at[BIAS]) : NULL,
                         .n = (uint32_t)w->n,
                         .k = (uint32_t)w->k,
                         .k_tiles = (uint32_t)nbi_ceil_div(w->k, NB_TILE_K),
                         .groups = (uint32_t)p->groups,
                         .group_len = (uint32_t)p->group_len,
                         .kind = p->kind,
                         .dtype = c->act == NBI_F16 ? NB_T_F16 : NB_T_BF16};
}

static nb_status pack(nbi_cuda *c, nbi_linear *out, const nbi_weight *w)
{
    nb_status st = NB_OK;
    layout l;
    packing p = {.w = w, .kind = nbi_cuda_kind_of(&w->scheme), .groups = 1, .act = c->act};
    p.blocks = blocks_of(p.kind, w->k);
    if (w->scheme.bits)
        p.groups = nbi_scheme_groups(&w->scheme, w->k);
    p.group_len = w->k / p.groups;
    if (!lay_out(&l, w->n, w->k, &w->scheme, w->bias != NULL))
        return nbi_fail(NB_ELIMIT, "a weight of %zu x %zu is too large", w->n, w->k);
    NB_TRY(nbi_cuda_weights_alloc(c, &out->block, l.bytes));
    describe(out, c, &p, &l);
    for (int part = 0; part < N_PARTS; part++)
        if (part != CORR || w->act_zero)
            NB_TRY(send_part(c, &p, &l, part, (char *)out->block + l.at[part]));
    if (p.overflow)
        NB_TRY(overflow(&p));
done:
    return st;
}

nb_status nbi_cuda_linear_create(nbi_backend *b, nbi_linear **out, const nbi_weight *weight)
{
    nbi_cuda *c = nbi_cuda_of(b);
    nbi_weight packed = *weight, own = {0};
    const nbi_weight *w = &packed;
    nb_status st = NB_OK;
    *out = NULL;
    nbi_linear *l = calloc(1, sizeof *l);
    if (!l)
        return nbi_fail_nomem("a packed weight", sizeof *l);
    if (is_halved(&weight->scheme) && weight->codes && weight->scales)
        NB_TRY(halve(&own, &packed));
    packed.scheme = packed_scheme(&weight->scheme);
    NB_TRY(check(w));
    l->scheme = w->scheme;
    l->integer = w->scheme.bits && w->scheme.act != NBI_ACT_NONE && w->scheme.act != NBI_ACT_SIGN;
    if (l->integer && w->scheme.act == NBI_ACT_TENSOR) {
        l->act_scale = w->act_scale;
        l->act_zero = w->act_zero;
    }
    NB_TRY(nbi_weight_check_order(w));
    NB_TRY(nbi_cublaslt_takes(c, w->n, w->k, &w->scheme) ? nbi_cublaslt_pack(c, l, w) : pack(c, l, w));
    if (w->perm) {
        NB_TRY(nbi_cuda_weights_alloc(c, (void **)&l->perm, w->k * sizeof *l->perm));
        NB_TRY(nbi_cuda_upload(b, l->perm, w->perm, w->k * sizeof *l->perm));
        l->bytes += order_bytes(&w->scheme, w->k);
    }
    NB_TRY(nbi_cuda_sparse_create(c, l, w));
    *out = l;
    l = NULL;
done:
    nbi_weight_free(&own);
    nbi_cuda_linear_free(b, l);
    return st;
}

void nbi_cuda_linear_free(nbi_backend *b, nbi_linear *l)
{
    if (!l)
        return;
    nbi_cuda_sparse_free(nbi_cuda_of(b), l);
    nbi_cuda_weights_free(nbi_cuda_of(b), l->perm);
    nbi_cuda_weights_free(nbi_cuda_of(b), l->block);
    free(l);
}

size_t nbi_cuda_linear_bytes(const nbi_linear *l)
{
    return l->bytes;
}

/* Codes with a static scale, in another order of the inputs, or without outliers are made from the activations themselves, by
 * linear().  A sparse part multiplies these, too. */
unsigned nbi_cuda_linear_form(const nbi_linear *l)
{
    if (!l->integer || l->act_scale != 0 || l->perm || nbi_cuda_has_outliers(l))
        return NBI_FORM_FLOAT;
    return NBI_FORM_INT8 | (l->sparse ? NBI_FORM_FLOAT : 0);
}
