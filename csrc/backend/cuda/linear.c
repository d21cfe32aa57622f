/* linear(): the form of x that a layer wants, the kernel that takes it, and how it is launched.
 *
 * Layers that agree in all but their outputs are one launch.  Up to NB_GEMV_ROWS rows the decode form computes them,
 * above that the tiled one: which of them, and which tile, changes no bit of a result. */
#include "backend/cuda/cuda.h"

#include "backend/cuda/cublaslt.h"
#include "base/checked.h"
#include "gemv_plan.h"

/* ---- scratch: codes, their scales, sums of groups, rows in another order, the library's ---- */

typedef struct scratch_parts {
    size_t q, scale, sums, ordered, library, bytes;
} scratch_parts;

/* A group has 32 elements at least unless it is the only one. */
static bool scratch_of(scratch_parts *s, const nbi_cuda *c, size_t rows, size_t k)
{
    const size_t library = nbi_cublaslt_scratch(c, rows, k);
    size_t q, sums;
    if (rows > SIZE_MAX / 1024 || k > SIZE_MAX / 1024 || !nbi_mul(rows, nbi_cuda_k_pad(k), &q) ||
        !nbi_mul(rows, (k / 32 + 1) * sizeof(int32_t), &sums) || q > SIZE_MAX / 4 || sums > SIZE_MAX / 4 ||
        library > SIZE_MAX / 4)
        return false;
    s->q = 0;
    s->scale = nbi_cuda_align(q);
    s->sums = s->scale + nbi_cuda_align(rows * sizeof(float));
    s->ordered = s->sums + nbi_cuda_align(sums);
    s->library = s->ordered + nbi_cuda_align(rows * k * 2);
    s->bytes = s->library + library;
    return true;
}

size_t nbi_cuda_scratch_bytes(nbi_backend *b, size_t rows, size_t k)
{
    scratch_parts s;
    return scratch_of(&s, nbi_cuda_of(b), rows, k) ? s.bytes : SIZE_MAX; /* no allocation will give this */
}

/* ---- the form of x ---- */

typedef struct input {
    const void *x; /* activations, with their codes behind them where `forms` says so */
    unsigned forms;
    size_t rows, k;
    char *scratch;
    scratch_parts at;
    const nbi_linear *quantized; /* the codes in the scratch are as this layer wants them; NULL: none */
    const nbi_linear *summed;    /* likewise the sums */
} input;

static bool takes_signs(const nbi_linear *l)
{
    return l->p.kind == NB_W_XNOR;
}

static bool same_codes(const nbi_linear *a, const nbi_linear *b)
{
    return takes_signs(a) == takes_signs(b) && a->act_scale == b->act_scale && a->act_zero == b->act_zero &&
           nbi_cuda_same_outliers(a, b);
}

static nb_status sign_rows(nbi_cuda *c, const input *in, const nb_act_out *out)
{
    const nb_sign_rows_args a = {in->x, (uint32_t *)out->q, out->scale, (uint32_t)in->rows, (uint32_t)in->k};
    return NBI_LAUNCH(c, NBI_K(c, nb_sign_rows), nbi_ceil_div(in->rows, 8), 1, 1, 0, a);
}

/* What layer l multiplies: *out is x, or codes and scales; *sums the codes' sums where it needs them. */
static nb_status input_for(nbi_cuda *c, input *in, const nbi_linear *l, nb_act_out *out, const int32_t **sums)
{
    nb_status st = NB_OK;
    const bool outliers = nbi_cuda_has_outliers(l), given = !outliers && l->act_scale == 0 && in->forms & NBI_FORM_INT8;
    *out = nbi_cuda_act((void *)in->x, in->rows, in->k);
    *sums = NULL;
    if (!(in->forms & NBI_FORM_FLOAT) && !(l->integer && given))
        return nbi_fail(NB_EINTERNAL, "cuda: a layer wants its input as floats, which nobody wrote");
    if (!l->integer && !takes_signs(l))
        return NB_OK;
    if (!given || takes_signs(l)) {
        *out = (nb_act_out){NULL, (int8_t *)(in->scratch + in->at.q), (float *)(in->scratch + in->at.scale)};
        if (!in->quantized || !same_codes(in->quantized, l)) {
            NB_TRY(takes_signs(l) ? sign_rows(c, in, out)
                   : outliers     ? nbi_cuda_quantize_outliers(c, l, in->x, in->rows, out)
                                  : nbi_cuda_quantize_rows(c, in->x, in->rows, in->k, l->act_scale, l->act_zero, out));
            in->quantized = l;
            in->summed = NULL;
        }
    }
    if (l->scheme.bits == 8 && l->p.zeros) {
        int32_t *to = (int32_t *)(in->scratch + in->at.sums);
        if (!in->summed || !same_codes(in->summed, l) || in->summed->p.groups != l->p.groups)
            NB_TRY(nbi_cuda_group_sums(c, out->q, in->rows, in->k, l->p.groups, to));
        in->summed = l;
        *sums = to;
    }
done:
    return st;
}

/* ---- which kernel ---- */

/* The tiles of the large form, as kernels.h lists them. */
typedef struct tile {
    uint32_t panels, row_blocks; /* P and R */
} tile;
#define X(name, P, R, unused) {P, R},
static const tile tiles[] = {NB_GEMM_TILE_LIST(X, 0)};
#undef X
enum { N_TILES = sizeof tiles / sizeof tiles[0] };

/* Kernels come in two types of activations each, one after the other. */
static enum nb_kernel gemm_kernel(const nbi_cuda *c, const nbi_linear *l, size_t t)
{
    return (enum nb_kernel)(nbi_cuda_kinds[l->p.kind].kernels[l->integer].gemm + 2 * t + (c->act != NBI_F16));
}

static enum nb_kernel gemv_kernel(const nbi_cuda *c, const nbi_linear *l)
{
    return (enum nb_kernel)(nbi_cuda_kinds[l->p.kind].kernels[l->integer].gemv + (c->act != NBI_F16));
}

/* Tiles of columns that the parts of a launch have. */
static uint32_t count_tiles(const nb_gemm_args *a, uint32_t columns, uint32_t first[3])
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < 3; i++) {
        first[i] = n;
        if (i < a->n_parts)
            n += (uint32_t)nbi_ceil_div(a->part[i].n, columns);
    }
    return n;
}

/* The tile with the least of: how often every multiprocessor is filled with two blocks, times what a block does for
 * 16 k, counted in mma: the products, decoding a panel (about two), and moving x and keeping the pipeline going
 * (about R / 2 + 2).  Not measured on hardware yet. */
static size_t choose_tile(const nbi_cuda *c, const nb_gemm_args *a)
{
    size_t best = 0;
    uint64_t least = UINT64_MAX;
    for (size_t t = 0; t < N_TILES; t++) {
        const uint32_t P = tiles[t].panels, R = tiles[t].row_blocks;
        uint32_t first[3];
        const uint64_t blocks = (uint64_t)count_tiles(a, 64 * P, first) * nbi_ceil_div(a->rows, 8 * R);
        const uint64_t cost = nbi_ceil_div(blocks, 2 * (size_t)c->n_sm) * (2 * P * R + 4 * P + R + 4);
        if (cost < least) {
            least = cost;
            best = t;
        }
    }
    return best;
}

static nb_status launch_gemm(nbi_cuda *c, const nbi_linear *l, nb_gemm_args *a)
{
    const size_t t = choose_tile(c, a);
    const uint32_t P = tiles[t].panels, R = tiles[t].row_blocks;
    const uint32_t stage = NB_GEMM_STAGE(a->part[0].kind, l->integer ? 1 : 2, P, R);
    const uint32_t stages = c->sm >= 80 ? NB_GEMM_STAGES(stage) : 2;
    a->n_tiles = count_tiles(a, 64 * P, a->first_tile);
    return NBI_LAUNCH(c, gemm_kernel(c, l, t), nbi_ceil_div(a->rows, 8 * R), a->n_tiles, 1,
                      NB_GEMM_SHARED(stage, stages, P, R), *a);
}

static nb_status launch_gemv(nbi_cuda *c, const nbi_linear *l, nb_gemm_args *a)
{
    nb_gemv_args v = {.g = *a};
    const nb_gemv_launch g = nb_gemv_plan(&v, l->integer ? 1 : 2, (uint32_t)c->n_sm, (uint32_t)c->max_shared);
    if (!g.grid) /* what a task needs does not fit */
        return launch_gemm(c, l, a);
    return NBI_LAUNCH(c, gemv_kernel(c, l), g.grid, 1, 1, g.shared, v);
}

static nb_status launch_xnor(nbi_cuda *c, nb_gemm_args *a)
{
    a->n_tiles = count_tiles(a, NB_XNOR_COLUMNS, a->first_tile);
    return NBI_LAUNCH(c, NBI_K(c, nb_xnor), nbi_ceil_div(a->rows, NB_XNOR_ROWS), a->n_tiles, 1, 0, *a);
}

/* ---- layers ---- */

static bool by_library(const nbi_linear *l)
{
    return l->p.kind == NB_W_PLAIN || l->p.kind == NB_W_PLAIN8;
}

static bool one_launch(const nbi_linear *a, const nbi_linear *b)
{
    return !a->perm && !b->perm && a->p.kind == b->p.kind && !by_library(a) && a->integer == b->integer &&
           a->p.groups == b->p.groups && same_codes(a, b);
}

/* The layers l[0 .. n-1] in one launch. */
static nb_status some_layers(nbi_cuda *c, const nbi_linear *const *l, size_t n, input *in, void *y, size_t ldy,
                             nbi_dst dst)
{
    static const uint32_t dsts[] = {
        [NBI_DST_ACT] = NB_DST_ACT, [NBI_DST_RESIDUAL] = NB_DST_RESIDUAL, [NBI_DST_F32] = NB_DST_F32};
    nb_status st = NB_OK;
    nb_act_out x;
    const bool coded = l[0]->integer || takes_signs(l[0]);
    const int32_t *sums = NULL, *any_sums = NULL;
    for (size_t i = 0; i < n; i++) {
        NB_TRY(input_for(c, in, l[i], &x, &sums));
        any_sums = sums ? sums : any_sums;
    }
    if (by_library(l[0])) {
        NB_TRY(nbi_cublaslt_part(c, l[0], &x, any_sums, in->rows, y, ldy, dst, in->scratch + in->at.library));
        return st;
    }
    nb_gemm_args a = {.n_parts = (uint32_t)n,
                      .x = coded ? (const void *)x.q : x.y,
                      .x_scale = coded ? x.scale : NULL,
                      .x_sums = any_sums,
                      .y = y,
                      .rows = (uint32_t)in->rows,
                      .k = (uint32_t)in->k,
                      .ldy = (uint32_t)ldy,
                      .dst = dsts[dst]};
    for (size_t i = 0; i < n; i++)
        a.part[i] = l[i]->p;
    NB_TRY(takes_signs(l[0])          ? launch_xnor(c, &a)
           : in->rows <= NB_GEMV_ROWS ? launch_gemv(c, l[0], &a)
                                      : launch_gemm(c, l[0], &a));
done:
    return st;
}

/* An act-ordered layer: alone, on rows in the order of its columns. */
static nb_status ordered_layer(nbi_cuda *c, const nbi_linear *l, const input *given, void *y, size_t ldy, nbi_dst dst)
{
    input in = {.x = given->scratch + given->at.ordered,
                .forms = NBI_FORM_FLOAT,
                .rows = given->rows,
                .k = given->k,
                .scratch = given->scratch,
                .at = given->at};
    const nb_permute_columns_args a = {given->x, given->scratch + given->at.ordered, l->perm, (uint32_t)given->rows,
                                       (uint32_t)given->k};
    if (!(given->forms & NBI_FORM_FLOAT))
        return nbi_fail(NB_EINTERNAL, "cuda: a layer wants its input as floats, which nobody wrote");
    nb_status st = NBI_LAUNCH(c, NB_K_nb_permute_columns, given->rows, nbi_ceil_div(given->k, 2048), 1, 0, a);
    return st == NB_OK ? some_layers(c, &l, 1, &in, y, ldy, dst) : st;
}

nb_status nbi_cuda_linear(nbi_backend *b, const nbi_linear *const *l, size_t n, const void *x, unsigned forms,
                          size_t rows, void *y, size_t ldy, nbi_dst dst, void *scratch)
{
    nbi_cuda *c = nbi_cuda_of(b);
    nb_status st = NB_OK;
    if (rows == 0 || n == 0)
        return NB_OK;
    input in = {.x = x, .forms = forms, .rows = rows, .k = l[0]->p.k, .scratch = scratch};
    if (rows > INT32_MAX || ldy > UINT32_MAX || !scratch_of(&in.at, c, rows, in.k))
        return nbi_fail(NB_ELIMIT, "cuda: %zu rows of %zu inputs are too many", rows, in.k);
    char *column = y;
    for (size_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && end - i < NBI_MAX_FUSED && one_launch(l[i], l[end]);)
            end++;
        if (l[i]->perm) {
            NB_TRY(ordered_layer(c, l[i], &in, column, ldy, dst));
            in.quantized = in.summed = NULL; /* its codes stand where theirs stood */
        } else
            NB_TRY(some_layers(c, l + i, end - i, &in, column, ldy, dst));
        for (size_t s = i; s < end; s++) {
            if (l[s]->sparse && !(forms & NBI_FORM_FLOAT))
                NB_TRY(nbi_fail(NB_EINTERNAL, "cuda: a layer wants its input as floats, which nobody wrote"));
            NB_TRY(nbi_cuda_sparse_add(c, l[s], x, rows, column, ldy, dst));
            column += l[s]->p.n * (dst == NBI_DST_ACT ? 2 : 4);
        }
    }
done:
    return st;
}
