/* cuBLASLt, loaded at run time.
 *
 * Its matrices are stored by columns, ours by rows: y = x W^T is computed as y^T = W x^T, where W [n][k] by rows is a k x n
 * matrix by columns that the library transposes.  This "TN" form is the only one that its INT8 kernels take.
 *
 * Everything that a call needs but the addresses (descriptors and the algorithm that the library's heuristic chose) is made at
 * the first call of a shape and kept. */
#include "backend/cuda/cublaslt.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/create.h"
#include "base/checked.h"

/* ---- the part of the library's interface that we use, with the values of its documentation (12 and 13 agree) ---- */

typedef struct lt_handle *lt_handle;
typedef struct lt_desc *lt_desc;
typedef struct lt_layout *lt_layout;
typedef struct lt_preference *lt_preference;
typedef struct lt_algo {
    uint64_t data[8];
} lt_algo;
typedef struct lt_choice {
    lt_algo algo;
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
} lt_choice;

enum { TYPE_F32 = 0, TYPE_F16 = 2, TYPE_S8 = 3, TYPE_S32 = 10, TYPE_BF16 = 14 };
enum { COMPUTE_F32 = 68, COMPUTE_S32 = 72 };
enum { DESC_TRANSPOSE_A = 3, OP_TRANSPOSE = 1 };
enum { PREFER_WORKSPACE = 1, PREFER_ALIGN_A = 5, PREFER_ALIGN_B = 6, PREFER_ALIGN_C = 7, PREFER_ALIGN_D = 8 };

#define LT_LIST(X)                                                                                                     \
    X(size_t, GetVersion, (void))                                                                                      \
    X(const char *, GetStatusString, (int))                                                                            \
    X(int, Create, (lt_handle *))                                                                                      \
    X(int, Destroy, (lt_handle))                                                                                       \
    X(int, MatmulDescCreate, (lt_desc *, int, int))                                                                    \
    X(int, MatmulDescDestroy, (lt_desc))                                                                               \
    X(int, MatmulDescSetAttribute, (lt_desc, int, const void *, size_t))                                               \
    X(int, MatrixLayoutCreate, (lt_layout *, int, uint64_t, uint64_t, int64_t))                                        \
    X(int, MatrixLayoutDestroy, (lt_layout))                                                                           \
    X(int, MatmulPreferenceCreate, (lt_preference *))                                                                  \
    X(int, MatmulPreferenceDestroy, (lt_preference))                                                                   \
    X(int, MatmulPreferenceSetAttribute, (lt_preference, int, const void *, size_t))                                   \
    X(int, MatmulAlgoGetHeuristic,                                                                                     \
      (lt_handle, lt_desc, lt_layout, lt_layout, lt_layout, lt_layout, lt_preference, int, lt_choice *, int *))        \
    X(int, Matmul,                                                                                                     \
      (lt_handle, lt_desc, const void *, const void *, lt_layout, const void *, lt_layout, const void *, const void *, \
       lt_layout, void *, lt_layout, const lt_algo *, void *, size_t, CUstream))

/* ---- what is kept ---- */

typedef struct shape {
    uint32_t n, k, rows;
    uint32_t ldy;              /* of what the library writes */
    uint16_t align_x, align_y; /* bytes, powers of two up to 256 */
    uint16_t type_in, type_out;
} shape;

typedef struct plan {
    shape s;
    bool ready;
    lt_desc desc;
    lt_layout w, x, y;
    lt_algo algo;
} plan;

#define PLANS     512                /* shapes that are kept; a power of two */
#define PROBES    8                  /* places where a shape may stand */
#define WORKSPACE ((size_t)32 << 20) /* what the library may use, as its documentation advises for recent cards */
#define SUMS      ((size_t)64 << 20) /* sums before finish_sums: rows are cut so that they fit */
#define FEW_ROWS  32                 /* its INT8 kernels refuse some smaller numbers of rows, and odd ones */

struct nbi_cublaslt {
    void *so;
#define X(result, name, args) result(*name) args;
    LT_LIST(X)
#undef X
    lt_handle handle;
    lt_preference preference;
    plan plans[PLANS];
    unsigned turn; /* which of its places a new shape takes when all are taken */
};

/* ---- opening ---- */

static nb_status load(struct nbi_cublaslt *t)
{
    const char *env = getenv("NB_CUBLASLT"), *names[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
    const char *path = env && *env ? env : names[0];
    const int how = RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE; /* recorded graphs may outlive the handle */
    t->so = dlopen(path, how);
    if (!t->so && path == names[0])
        t->so = dlopen(path = names[1], how);
    if (!t->so)
        return nbi_fail(NB_ENODEVICE,
                        "gemm is \"cublaslt\", but the library cannot be loaded: %s (NB_CUBLASLT may name it)",
                        dlerror());
#define X(result, name, args)                                                                                          \
    if (!(*(void **)&t->name = dlsym(t->so, "cublasLt" #name)))                                                        \
        return nbi_fail(NB_ENODEVICE, "%s has no cublasLt" #name ": is it cuBLASLt 12 or newer?", path);
    LT_LIST(X)
#undef X
    return NB_OK;
}

/* The library works in the calling thread's current context. */
static int enter(nbi_cuda *c, nb_status *st)
{
    *st = nbi_cuda_check(c, nbi_cuda_enter(c), "entering the context");
    return *st == NB_OK;
}
static nb_status leave(nbi_cuda *c)
{
    return nbi_cuda_check(c, nbi_cuda_leave(c, CUDA_SUCCESS), "leaving the context");
}

static nb_status check(nbi_cuda *c, int r, const char *what)
{
    return r ? nbi_fail(NB_EINTERNAL, "cuda:%d: cuBLASLt failed at %s: %s", c->index, what, c->lt->GetStatusString(r))
             : NB_OK;
}

nb_status nbi_cublaslt_open(nbi_cuda *c)
{
    nb_status st;
    struct nbi_cublaslt *t = c->lt = calloc(1, sizeof *t);
    const uint64_t workspace = WORKSPACE;
    if (!t)
        return nbi_fail_nomem("cuBLASLt", sizeof *t);
    NB_TRY(load(t));
    if (!enter(c, &st))
        goto done;
    if ((st = check(c, t->Create(&t->handle), "its start")) == NB_OK &&
        (st = check(c, t->MatmulPreferenceCreate(&t->preference), "its start")) == NB_OK)
        st = check(c, t->MatmulPreferenceSetAttribute(t->preference, PREFER_WORKSPACE, &workspace, sizeof workspace),
                   "its start");
    nb_status left = leave(c);
    st = st == NB_OK ? left : st;
done:
    if (st != NB_OK)
        nbi_cublaslt_close(c);
    return st;
}

static void drop(const struct nbi_cublaslt *t, plan *p)
{
    if (p->desc)
        t->MatmulDescDestroy(p->desc);
    for (lt_layout *l = (lt_layout[]){p->w, p->x, p->y}, *end = l + 3; l < end; l++)
        if (*l)
            t->MatrixLayoutDestroy(*l);
    memset(p, 0, sizeof *p);
}

void nbi_cublaslt_close(nbi_cuda *c)
{
    struct nbi_cublaslt *t = c->lt;
    CUcontext old;
    if (!t)
        return;
    const bool inside = c->context && c->cu.cuCtxPushCurrent_v2(c->context) == CUDA_SUCCESS;
    for (plan *p = t->plans; p < t->plans + PLANS; p++)
        drop(t, p);
    if (t->preference)
        t->MatmulPreferenceDestroy(t->preference);
    if (t->handle)
        t->Destroy(t->handle);
    if (inside)
        c->cu.cuCtxPopCurrent_v2(&old);
    if (t->so)
        dlclose(t->so);
    free(t);
    c->lt = NULL;
}

nb_status nbi_cublaslt_use(nbi_backend *b, char note[200])
{
    nbi_cuda *c = nbi_cuda_of(b);
    nb_status st = nbi_cublaslt_open(c);
    if (st != NB_OK)
        return st;
    const unsigned v = (unsigned)c->lt->GetVersion(); /* 130200: 13.2.0 */
    snprintf(
        note, 200,
        "dense and INT8 x INT8 layers are multiplied by cuBLASLt %u.%u.%u: the same request may give other bytes in "
        "another batch",
        v / 10000, v / 100 % 100, v % 100);
    return NB_OK;
}

/* ---- weights ---- */

bool nbi_cublaslt_takes(const nbi_cuda *c, size_t n, size_t k, const nbi_scheme *s)
{
    if (!c->lt)
        return false;
    if (s->bits == 0)
        return true;
    /* one sum over the whole of K; INT8 wants n and k in fours */
    return s->bits == 8 && s->act != NBI_ACT_NONE && !s->act_order && !s->outliers && nbi_scheme_groups(s, k) == 1 &&
           n % 4 == 0;
}

/* The pieces of a layer's block, one after the other: w, scales, zeros, corr, bias. */
typedef struct block {
    size_t w, scales, zeros, corr, bias, bytes;
} block;

static block cut(size_t n, size_t k, const nbi_scheme *s, bool bias)
{
    block b = {0};
    size_t at = nbi_cuda_align(s->bits ? n * nbi_cuda_k_pad(k) : n * k * 2);
    const size_t words = nbi_cuda_align(n * 4);
    b.scales = at;
    at += s->bits ? words : 0;
    b.zeros = at;
    at += s->bits && !s->symmetric ? nbi_cuda_align(n) : 0;
    b.corr = at;
    at += s->act == NBI_ACT_TENSOR && !s->act_symmetric ? words : 0;
    b.bias = at;
    b.bytes = at + (bias ? words : 0);
    return b;
}

size_t nbi_cublaslt_plan(const nbi_cuda *c, size_t n, size_t k, const nbi_scheme *s, bool bias)
{
    (void)c;
    return n && k < SIZE_MAX / 16 / n ? cut(n, k, s, bias).bytes : SIZE_MAX;
}

/* Row n of a dense weight as T; the first k whose finite number became an infinity, or K. */
static size_t dense_row(const nbi_weight *w, size_t n, nbi_dtype act, uint16_t *dst)
{
    const char *src = (const char *)w->dense + n * w->k * nbi_dtype_size(w->dense_dtype);
    float some[256];
    if (w->dense_dtype == act) {
        memcpy(dst, src, w->k * 2);
        return w->k;
    }
    for (size_t k = 0, m; k < w->k; k += m) {
        m = w->k - k < 256 ? w->k - k : 256;
        nbi_to_f32(some, src + k * nbi_dtype_size(w->dense_dtype), w->dense_dtype, m);
        nbi_from_f32(dst + k, act, some, m);
        for (size_t i = 0; act == NBI_F16 && i < m; i++)
            if ((dst[k + i] & 0x7fff) == 0x7c00 && isfinite(some[i]))
                return k + i;
    }
    return w->k;
}

/* Codes stand as the activations' codes do, whose order within 16 is the one that our kernels want: a dot product does not
 * mind. */
static void code_row(const nbi_weight *w, size_t n, int8_t *dst)
{
    const size_t pad = nbi_cuda_k_pad(w->k);
    memset(dst, 0, pad);
    for (size_t k = 0; k < w->k; k++)
        dst[k / 16 * 16 + (size_t)NB_K_POSITION(k % 16)] = w->codes[n * w->k + k];
}

static nb_status send_rows(nbi_cuda *c, const nbi_weight *w, char *dst)
{
    nb_status st = NB_OK;
    const size_t row = w->scheme.bits ? nbi_cuda_k_pad(w->k) : w->k * 2, most = NBI_STAGE_BYTES / row;
    if (most == 0)
        return nbi_fail(NB_EUNSUPPORTED, "a row of %zu inputs is longer than the %zu MiB that one copy moves", w->k,
                        NBI_STAGE_BYTES >> 20);
    for (size_t n0 = 0; n0 < w->n; n0 += most) {
        const size_t rows = w->n - n0 < most ? w->n - n0 : most;
        char *host;
        NB_TRY(nbi_cuda_stage_get(c, (void **)&host));
        size_t lost_n = w->n, lost_k = 0;
#pragma omp parallel for schedule(static)
        for (size_t i = 0; i < rows; i++) {
            size_t k = w->k;
            if (w->scheme.bits)
                code_row(w, n0 + i, (int8_t *)(host + i * row));
            else
                k = dense_row(w, n0 + i, c->act, (uint16_t *)(host + i * row));
            if (k < w->k) {
#pragma omp critical /* without a name, which would be a symbol of the library */
                if (n0 + i < lost_n) {
                    lost_n = n0 + i;
                    lost_k = k;
                }
            }
        }
        if (lost_n < w->n)
            return nbi_fail(NB_EUNSUPPORTED,
                            "the weight of output %zu and input %zu does not fit into float16 (up to 65504): use "
                            "--act-dtype bf16",
                            lost_n, lost_k);
        NB_TRY(nbi_cuda_stage_send(c, dst + n0 * row, rows * row));
    }
done:
    return st;
}

/* corr[n] = -zx * sum of (code - z) */
static nb_status send_corr(nbi_cuda *c, const nbi_weight *w, void *dst)
{
    int32_t *corr = malloc(w->n * sizeof *corr);
    if (!corr)
        return nbi_fail_nomem("a weight's corrections", w->n * sizeof *corr);
    for (size_t n = 0; n < w->n; n++) {
        int64_t sum = 0;
        for (size_t k = 0; k < w->k; k++)
            sum += w->codes[n * w->k + k] - (w->zeros ? w->zeros[n] : 0);
        corr[n] = (int32_t)(uint32_t)(-sum * w->act_zero); /* parts of a sum may wrap: numerics.md */
    }
    nb_status st = nbi_cuda_upload(&c->base, dst, corr, w->n * sizeof *corr);
    free(corr);
    return st;
}

nb_status nbi_cublaslt_pack(nbi_cuda *c, nbi_linear *l, const nbi_weight *w)
{
    nb_status st;
    const nbi_scheme *s = &w->scheme;
    const block b = cut(w->n, w->k, s, w->bias != NULL);
    const size_t words = w->n * sizeof(float);
    NB_TRY(nbi_cuda_weights_alloc(c, &l->block, b.bytes));
    char *base = l->block;
    l->bytes = b.bytes;
    l->p = (nb_packed){.w = base,
                       .n = (uint32_t)w->n,
                       .k = (uint32_t)w->k,
                       .k_tiles = (uint32_t)(nbi_cuda_k_pad(w->k) / NB_TILE_K),
                       .groups = 1,
                       .group_len = (uint32_t)w->k,
                       .kind = s->bits ? NB_W_PLAIN8 : NB_W_PLAIN,
                       .dtype = c->act == NBI_F16 ? NB_T_F16 : NB_T_BF16};
    NB_TRY(send_rows(c, w, base));
    if (s->bits) {
        l->p.scales = (float *)(base + b.scales);
        NB_TRY(nbi_cuda_upload(&c->base, base + b.scales, w->scales, words));
    }
    if (w->zeros) {
        l->p.zeros = base + b.zeros;
        NB_TRY(nbi_cuda_upload(&c->base, base + b.zeros, w->zeros, w->n));
    }
    if (s->act == NBI_ACT_TENSOR && w->act_zero != 0) {
        l->p.corr = (int32_t *)(base + b.corr);
        NB_TRY(send_corr(c, w, base + b.corr));
    }
    if (w->bias) {
        l->p.bias = (float *)(base + b.bias);
        NB_TRY(nbi_cuda_upload(&c->base, base + b.bias, w->bias, words));
    }
done:
    if (st != NB_OK) {
        nbi_cuda_weights_free(c, l->block);
        l->block = NULL;
    }
    return st;
}

/* ---- one product ---- */

static uint16_t alignment(const void *p, size_t row_bytes)
{
    uint64_t all = (uint64_t)(uintptr_t)p | row_bytes | 256;
    return (uint16_t)(all & -all);
}

static int prepare(struct nbi_cublaslt *t, plan *p, int *found)
{
    const shape *s = &p->s;
    const int in = s->type_in, out = s->type_out, transpose = OP_TRANSPOSE;
    const uint32_t align_w = 256, align_x = s->align_x, align_y = s->align_y;
    lt_choice choice;
    int r =
        t->MatmulDescCreate(&p->desc, in == TYPE_S8 ? COMPUTE_S32 : COMPUTE_F32, in == TYPE_S8 ? TYPE_S32 : TYPE_F32);
    r = r ? r : t->MatmulDescSetAttribute(p->desc, DESC_TRANSPOSE_A, &transpose, sizeof transpose);
    r = r ? r : t->MatrixLayoutCreate(&p->w, in, s->k, s->n, s->k);
    r = r ? r : t->MatrixLayoutCreate(&p->x, in, s->k, s->rows, s->k);
    r = r ? r : t->MatrixLayoutCreate(&p->y, out, s->n, s->rows, s->ldy);
    const struct {
        int what;
        const uint32_t *bytes;
    } align[] = {
        {PREFER_ALIGN_A, &align_w}, {PREFER_ALIGN_B, &align_x}, {PREFER_ALIGN_C, &align_y}, {PREFER_ALIGN_D, &align_y}};
    for (int i = 0; i < 4; i++)
        r = r ? r : t->MatmulPreferenceSetAttribute(t->preference, align[i].what, align[i].bytes, sizeof(uint32_t));
    r = r ? r : t->MatmulAlgoGetHeuristic(t->handle, p->desc, p->w, p->x, p->y, p->y, t->preference, 1, &choice, found);
    if (r == 0 && *found)
        p->algo = choice.algo;
    p->ready = r == 0 && *found;
    return r;
}

/* The plan of a shape, made if this is its first call. */
static nb_status find(nbi_cuda *c, const shape *s, plan **out)
{
    struct nbi_cublaslt *t = c->lt;
    uint32_t h = s->n * 2654435761u ^ s->k * 2246822519u ^ s->rows * 3266489917u ^ s->ldy * 668265263u ^
                 (uint32_t)(s->type_out * 31 + s->align_y + s->align_x * 7) * 374761393u;
    plan *place = NULL;
    h ^= h >> 15;
    for (unsigned i = 0; i < PROBES; i++) {
        plan *p = &t->plans[(h + i) % PLANS];
        if (p->ready && memcmp(&p->s, s, sizeof *s) == 0) {
            *out = p;
            return NB_OK;
        }
        if (!p->ready && !place)
            place = p;
    }
    if (!place)
        place = &t->plans[(h + t->turn++ % PROBES) % PLANS];
    drop(t, place);
    place->s = *s;
    int found = 0, r = prepare(t, place, &found);
    if (place->ready) {
        *out = place;
        return NB_OK;
    }
    drop(t, place);
    return nbi_fail(
        NB_EUNSUPPORTED,
        "cuda:%d: cuBLASLt has no algorithm for %u rows x %u inputs x %u outputs (%s): run without --gemm cublaslt",
        c->index, s->rows, s->k, s->n, r ? t->GetStatusString(r) : "its heuristic finds none");
}

/* y = W x^T + keep * y */
static nb_status multiply(nbi_cuda *c, const shape *s, const void *w, const void *x, void *y, bool keep,
                          void *workspace)
{
    static const int32_t int_values[] = {0, 1};
    static const float float_values[] = {0, 1};
    const bool integer = s->type_in == TYPE_S8;
    const void *one = integer ? (const void *)&int_values[1] : &float_values[1];
    const void *beta = integer ? (const void *)&int_values[keep] : &float_values[keep];
    struct nbi_cublaslt *t = c->lt;
    plan *p = NULL;
    nb_status st;
    if (!enter(c, &st))
        return st;
    if ((st = find(c, s, &p)) == NB_OK)
        st = check(c,
                   t->Matmul(t->handle, p->desc, one, w, p->w, x, p->x, beta, y, p->y, y, p->y, &p->algo, workspace,
                             WORKSPACE, c->stream),
                   "a product");
    nb_status left = leave(c);
    return st == NB_OK ? left : st;
}

static int type_of(nbi_dtype act)
{
    return act == NBI_F16 ? TYPE_F16 : TYPE_BF16;
}

static nb_status dense_direct(nbi_cuda *c, const nbi_linear *l, const void *x, size_t rows, void *y, size_t ldy,
                              nbi_dst dst, void *workspace)
{
    const bool wide = dst != NBI_DST_ACT;
    const shape s = {.n = l->p.n,
                     .k = l->p.k,
                     .rows = (uint32_t)rows,
                     .ldy = (uint32_t)ldy,
                     .align_x = alignment(x, (size_t)l->p.k * 2),
                     .align_y = alignment(y, ldy * (wide ? 4 : 2)),
                     .type_in = (uint16_t)type_of(c->act),
                     .type_out = (uint16_t)(wide ? TYPE_F32 : type_of(c->act))};
    return multiply(c, &s, l->p.w, x, y, dst == NBI_DST_RESIDUAL, workspace);
}

static nb_status finish(nbi_cuda *c, const nbi_linear *l, const void *sums, const float *x_scale, const int32_t *x_sums,
                        size_t rows, void *y, size_t ldy, nbi_dst dst)
{
    const nb_gemm_args a = {.part = {l->p},
                            .n_parts = 1,
                            .x = sums,
                            .x_scale = x_scale,
                            .x_sums = x_sums,
                            .y = y,
                            .rows = (uint32_t)rows,
                            .k = l->p.k,
                            .ldy = (uint32_t)ldy,
                            .dst = (uint32_t)dst};
    return NBI_LAUNCH(c, NBI_K(c, nb_finish_sums), nbi_ceil_div(l->p.n, 256), rows < 65535 ? rows : 65535, 1, 0, a);
}

/* The library's INT8 kernels want rows in eights and not too few: those that are added are whatever lies there, and their sums
 * are dropped. */
static size_t rows_run(size_t rows)
{
    return rows < FEW_ROWS ? FEW_ROWS : (rows + 7) / 8 * 8;
}

/* Some rows of a layer whose sums go through scratch: INT8, or dense with a bias. */
static nb_status some_rows(nbi_cuda *c, const nbi_linear *l, const void *x, const float *x_scale, const int32_t *x_sums,
                           size_t rows, void *y, size_t ldy, nbi_dst dst, char *scratch)
{
    nb_status st;
    const bool integer = l->p.kind == NB_W_PLAIN8;
    const size_t k = integer ? nbi_cuda_k_pad(l->p.k) : l->p.k, run = integer ? rows_run(rows) : rows;
    char *sums = scratch + WORKSPACE, *codes = sums + SUMS;
    if (run != rows) {
        NB_TRY(nbi_cuda_clear(c, codes + rows * k, (run - rows) * k));
        NB_TRY(NBI_CU(
            c, cuMemcpyDtoDAsync_v2((CUdeviceptr)(uintptr_t)codes, (CUdeviceptr)(uintptr_t)x, rows * k, c->stream),
            "a copy on the device"));
        x = codes;
    }
    const shape s = {.n = l->p.n,
                     .k = (uint32_t)k,
                     .rows = (uint32_t)run,
                     .ldy = l->p.n,
                     .align_x = alignment(x, k * (integer ? 1 : 2)),
                     .align_y = alignment(sums, (size_t)l->p.n * 4),
                     .type_in = (uint16_t)(integer ? TYPE_S8 : type_of(c->act)),
                     .type_out = integer ? TYPE_S32 : TYPE_F32};
    NB_TRY(multiply(c, &s, l->p.w, x, sums, false, scratch));
    NB_TRY(finish(c, l, sums, x_scale, x_sums, rows, y, ldy, dst));
done:
    return st;
}

/* ---- what linear.c calls ---- */

size_t nbi_cublaslt_scratch(const nbi_cuda *c, size_t rows, size_t k)
{
    size_t codes;
    if (!c->lt)
        return 0;
    return k > SIZE_MAX / 2 || rows > SIZE_MAX / 2 || !nbi_mul(rows_run(rows), nbi_cuda_k_pad(k), &codes) ||
                   !nbi_add(codes, WORKSPACE + SUMS, &codes)
               ? SIZE_MAX
               : codes;
}

nb_status nbi_cublaslt_part(nbi_cuda *c, const nbi_linear *l, const nb_act_out *x, const int32_t *x_sums, size_t rows,
                            void *y, size_t ldy, nbi_dst dst, void *scratch)
{
    nb_status st = NB_OK;
    const bool integer = l->p.kind == NB_W_PLAIN8;
    if (!integer && !l->p.bias)
        return dense_direct(c, l, x->y, rows, y, ldy, dst, scratch);
    const size_t k = integer ? nbi_cuda_k_pad(l->p.k) : (size_t)l->p.k * 2, width = dst == NBI_DST_ACT ? 2 : 4;
    const size_t most = SUMS / 4 / l->p.n / 8 * 8; /* whole eights, so that only the last piece has rows to add */
    if (most < FEW_ROWS)
        return nbi_fail(NB_EUNSUPPORTED, "cuda:%d: a layer of %u outputs is too large for --gemm cublaslt", c->index,
                        l->p.n);
    const char *from = integer ? (const char *)x->q : x->y;
    for (size_t r = 0, n; r < rows; r += n) {
        n = rows - r < most ? rows - r : most;
        NB_TRY(some_rows(c, l, from + r * k, integer ? x->scale + r : NULL, x_sums ? x_sums + r : NULL, n,
                         (char *)y + r * ldy * width, ldy, dst, scratch));
    }
done:
    return st;
}
