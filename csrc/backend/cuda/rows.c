/* Operations on rows: each is one launch, but for a residual stream that has none to begin with. */
#include "backend/cuda/cuda.h"

#include <stddef.h>

#include "base/checked.h"

#define THREADS 256 /* of these kernels */

/* What a kernel takes as the number of rows and their length: 32 bits, and 16-byte pieces. */
static nb_status check_rows(const char *what, size_t rows, size_t k)
{
    if (rows > INT32_MAX || k == 0 || k > INT32_MAX || k % 16 != 0)
        return nbi_fail(
            NB_EUNSUPPORTED,
            "cuda: %s of %zu rows of %zu elements, expected rows of a multiple of 16 elements, both below 2^31", what,
            rows, k);
    return NB_OK;
}

/* Blocks that share a row, so that few rows keep the device busy: `each` elements of it at least for a thread. */
static size_t pieces_of(const nbi_cuda *c, size_t rows, size_t k, size_t each)
{
    const size_t most = nbi_ceil_div(k, THREADS * each), wanted = nbi_ceil_div(4 * (size_t)c->n_sm, rows);
    return wanted < most ? wanted : most;
}

/* The forms of y that a producer writes; rows are counted as the buffer's were. */
static nb_act_out forms_out(void *y, size_t rows, size_t k, unsigned forms)
{
    nb_act_out out = nbi_cuda_act(y, rows, k);
    if (!(forms & NBI_FORM_FLOAT))
        out.y = NULL;
    if (!(forms & NBI_FORM_INT8)) {
        out.q = NULL;
        out.scale = NULL;
    }
    return out;
}

nb_status nbi_cuda_rmsnorm(nbi_backend *b, const float *x, const float *weight, float eps, size_t rows, size_t k,
                           void *y, unsigned forms)
{
    nbi_cuda *c = nbi_cuda_of(b);
    const nb_rmsnorm_args args = {.x = x,
                                  .weight = weight,
                                  .out = forms_out(y, rows, k, forms),
                                  .eps = eps,
                                  .rows = (uint32_t)rows,
                                  .k = (uint32_t)k};
    nb_status st = check_rows("rmsnorm", rows, k);
    if (st != NB_OK || rows == 0)
        return st;
    return NBI_LAUNCH(c, NBI_K(c, nb_rmsnorm), rows, 1, 1, 0, args);
}

nb_status nbi_cuda_swiglu(nbi_backend *b, const void *gate_up, size_t rows, size_t n, void *y, unsigned forms)
{
    nbi_cuda *c = nbi_cuda_of(b);
    const nb_swiglu_args args = {
        .gate_up = gate_up, .out = forms_out(y, rows, n, forms), .rows = (uint32_t)rows, .k = (uint32_t)n};
    nb_status st = check_rows("swiglu", rows, n);
    if (st != NB_OK || rows == 0)
        return st;
    if (args.out.q)
        return NBI_LAUNCH(c, NBI_K(c, nb_swiglu), rows, 1, 1, NB_ROW_SHARED(n), args);
    return NBI_LAUNCH(c, NBI_K(c, nb_swiglu), rows, pieces_of(c, rows, n, 8), 1, 0, args);
}

nb_status nbi_cuda_quantize_rows(nbi_cuda *c, const void *x, size_t rows, size_t k, float act_scale, int32_t act_zero,
                                 const nb_act_out *out)
{
    const nb_quantize_rows_args args = {
        .x = x, .out = *out, .act_scale = act_scale, .act_zero = act_zero, .rows = (uint32_t)rows, .k = (uint32_t)k};
    nb_status st = check_rows("quantize_rows", rows, k);
    if (st != NB_OK || rows == 0)
        return st;
    return NBI_LAUNCH(c, NBI_K(c, nb_quantize_rows), rows, 1, 1, NB_ROW_SHARED(k), args);
}

nb_status nbi_cuda_group_sums(nbi_cuda *c, const int8_t *q, size_t rows, size_t k, size_t groups, int32_t *sums)
{
    const size_t len = groups ? k / groups : 0;
    const nb_group_sums_args args = {.q = q,
                                     .sums = sums,
                                     .rows = (uint32_t)rows,
                                     .k = (uint32_t)k,
                                     .groups = (uint32_t)groups,
                                     .group_len = (uint32_t)len};
    nb_status st = check_rows("group_sums", rows, k);
    if (st != NB_OK || rows == 0)
        return st;
    if (len == 0 || len % 16 != 0 || len * groups != k || rows * groups > UINT32_MAX / 32)
        return nbi_fail(NB_EUNSUPPORTED,
                        "cuda: %zu rows of %zu elements in %zu groups, expected groups of a multiple of 16", rows, k,
                        groups);
    return NBI_LAUNCH(c, NB_K_nb_group_sums, nbi_ceil_div(rows * groups * NB_SUM_LANES(len), THREADS), 1, 1, 0, args);
}

nb_status nbi_cuda_gather(nbi_backend *b, const nbi_step *s, const float *x, size_t k, float *y)
{
    nbi_cuda *c = nbi_cuda_of(b);
    const nb_gather_rows_args args = {
        .x = x, .y = y, .rows = s->args.logit_rows, .n = (uint32_t)s->logits, .k = (uint32_t)k};
    nb_status st = check_rows("gather", s->logits, k);
    if (st != NB_OK || s->logits == 0)
        return st;
    return NBI_LAUNCH(c, NB_K_nb_gather_rows, s->logits, pieces_of(c, s->logits, k, 4), 1, 0, args);
}

nb_status nbi_cuda_embed(nbi_backend *b, const nbi_step *s, const nbi_linear *table, float *x)
{
    if (table->perm)
        return nbi_fail(NB_EUNSUPPORTED, "cuda: a table whose columns are in another order cannot be looked up");
    if (table->p.kind == NB_W_NF4 || table->p.kind == NB_W_XNOR)
        return nbi_fail(NB_EUNSUPPORTED, "cuda: a table of NF4 or one-bit weights cannot be looked up");
    nbi_cuda *c = nbi_cuda_of(b);
    const nb_embed_args args = {.table = table->p, .step = s->args, .x = x, .rows = (uint32_t)s->rows, .k = table->p.k};
    nb_status st = check_rows("embed", s->rows, table->p.k);
    if (st != NB_OK || s->rows == 0)
        return st;
    return NBI_LAUNCH(c, NB_K_nb_embed, s->rows, pieces_of(c, s->rows, table->p.k, 8), 1, 0, args);
}

/* ---- the end of a step ---- */

/* scratch: what was drawn [n], then how [n]. */
size_t nbi_cuda_sample_bytes(nbi_backend *b, size_t n)
{
    size_t bytes;
    (void)b;
    return nbi_mul(n, sizeof(nb_sampled) + sizeof(nb_sample_row), &bytes) ? bytes : SIZE_MAX;
}

/* Structs that the engine and the kernel call differently are copied as they are. */
#define SAME_FIELD(a, b, field)                                                                                        \
    _Static_assert(offsetof(a, field) == offsetof(b, field) && sizeof(a) == sizeof(b), "the same layout")
SAME_FIELD(nbi_draw, nb_sample_row, temperature);
SAME_FIELD(nbi_draw, nb_sample_row, top_p);
SAME_FIELD(nbi_draw, nb_sample_row, min_p);
SAME_FIELD(nbi_draw, nb_sample_row, top_k);
SAME_FIELD(nbi_draw, nb_sample_row, share);
SAME_FIELD(nbi_draw, nb_sample_row, want_sum);
SAME_FIELD(nbi_drawn, nb_sampled, sum);
SAME_FIELD(nbi_drawn, nb_sampled, logit);
SAME_FIELD(nbi_drawn, nb_sampled, best);
SAME_FIELD(nbi_drawn, nb_sampled, token);

nb_status nbi_cuda_sample(nbi_backend *b, const float *logits, size_t n, size_t vocab, const nbi_draw *how,
                          nbi_drawn *out, void *scratch)
{
    nbi_cuda *c = nbi_cuda_of(b);
    nb_sampled *drawn = scratch;
    nb_sample_row *rows = (nb_sample_row *)(drawn + n);
    const nb_sample_args args = {
        .logits = logits, .row = rows, .out = drawn, .n = (uint32_t)n, .vocab = (uint32_t)vocab};
    nb_status st = NB_OK;
    if (n > INT32_MAX || vocab == 0 || vocab > 1 << 20)
        return nbi_fail(NB_EUNSUPPORTED, "cuda: sampling from %zu rows of %zu logits, expected at most 2^20 in a row",
                        n, vocab);
    NB_TRY(nbi_cuda_upload(b, rows, how, n * sizeof *how));
    NB_TRY(NBI_LAUNCH(c, NB_K_nb_sample, n, 1, 1, 0, args));
    NB_TRY(nbi_cuda_download(b, out, drawn, n * sizeof *out));
done:
    return st;
}

/* ---- activations to the host and back: for taps and tests, so through a buffer of the moment ---- */

static nb_status convert(nbi_cuda *c, void *dst, const void *src, size_t n, bool to_float)
{
    const nb_convert_args args = {.src = src, .dst = dst, .n = n, .to_float = to_float};
    const size_t blocks = nbi_ceil_div(n, 4 * THREADS), most = 8 * (size_t)c->n_sm;
    return NBI_LAUNCH(c, NBI_K(c, nb_convert), blocks < most ? blocks : most, 1, 1, 0, args);
}

nb_status nbi_cuda_download_act(nbi_backend *b, float *dst, const void *x, size_t n)
{
    nbi_cuda *c = nbi_cuda_of(b);
    nb_status st = NB_OK;
    void *wide = NULL;
    if (n == 0)
        return NB_OK;
    if (n > SIZE_MAX / sizeof(float))
        return nbi_fail(NB_ELIMIT, "cuda: %zu activations are more than memory can hold", n);
    NB_TRY(nbi_cuda_alloc(b, &wide, n * sizeof(float), "activations on their way to the host"));
    NB_TRY(convert(c, wide, x, n, true));
    NB_TRY(nbi_cuda_download(b, dst, wide, n * sizeof(float)));
done:
    nbi_cuda_release(b, wide);
    return st;
}

nb_status nbi_cuda_upload_act(nbi_backend *b, void *dst, const float *src, size_t n)
{
    nbi_cuda *c = nbi_cuda_of(b);
    nb_status st = NB_OK;
    void *wide = NULL;
    if (n == 0)
        return NB_OK;
    if (n > SIZE_MAX / sizeof(float))
        return nbi_fail(NB_ELIMIT, "cuda: %zu activations are more than memory can hold", n);
    NB_TRY(nbi_cuda_alloc(b, &wide, n * sizeof(float), "activations on their way to the device"));
    NB_TRY(nbi_cuda_upload(b, wide, src, n * sizeof(float)));
    NB_TRY(convert(c, dst, wide, n, false));
    NB_TRY(nbi_cuda_sync(c)); /* the buffer is about to go */
done:
    nbi_cuda_release(b, wide);
    return st;
}
