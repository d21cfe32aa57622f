/* The CUDA backend inside: the driver, which is loaded at run time, one device, its memory, and the launch of kernels.
 *
 *   driver.c     libcuda.so.1 (or NB_CUDA_DRIVER) and the functions of it that we call; errors become sentences
 *   device.c     which devices there are, which one is used, what it can do
 *   memory.c     arenas, pinned staging, copies
 *   launch.c     kernels.h made into modules and functions; every launch is checked against its contract
 *   step.c       a batch on the device; recorded steps (CUDA graphs)
 *   kinds.c      the kinds of weights                  pack.c       canonical weight -> layout.h
 *   linear.c     linear()
 *   transform.c  rotations of activations
 *   sparse.c     single numbers and outliers beside a layer
 *   rows.c       embed, rmsnorm, swiglu, gather        attention.c  rope_append, attention
 *   calib.c      quantization and calibration
 *   cuda.c       the table of operations
 *
 * Everything is issued on one stream, in order; download waits for it.  A failed call of the driver is a sentence that names
 * what was being done; a sticky error (the context is lost) makes every later call fail with the same one. */
#ifndef NB_BACKEND_CUDA_CUDA_H
#define NB_BACKEND_CUDA_CUDA_H

#include <cuda.h>
#include <pthread.h>

#include "backend/backend.h"
#include "kernels.h"

/* The driver's functions: one line each.  A missing one is an error with its name. */
#define NBI_CU_LIST(X)                                                                                                 \
    X(cuInit, (unsigned))                                                                                              \
    X(cuDriverGetVersion, (int *))                                                                                     \
    X(cuGetErrorName, (CUresult, const char **))                                                                       \
    X(cuGetErrorString, (CUresult, const char **))                                                                     \
    X(cuDeviceGetCount, (int *))                                                                                       \
    X(cuDeviceGet, (CUdevice *, int))                                                                                  \
    X(cuDeviceGetName, (char *, int, CUdevice))                                                                        \
    X(cuDeviceGetAttribute, (int *, CUdevice_attribute, CUdevice))                                                     \
    X(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice))                                                               \
    X(cuDevicePrimaryCtxRelease_v2, (CUdevice))                                                                        \
    X(cuCtxPushCurrent_v2, (CUcontext))                                                                                \
    X(cuCtxPopCurrent_v2, (CUcontext *))                                                                               \
    X(cuMemGetInfo_v2, (size_t *, size_t *))                                                                           \
    X(cuMemAlloc_v2, (CUdeviceptr *, size_t))                                                                          \
    X(cuMemFree_v2, (CUdeviceptr))                                                                                     \
    X(cuMemHostAlloc, (void **, size_t, unsigned))                                                                     \
    X(cuMemFreeHost, (void *))                                                                                         \
    X(cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void *, size_t, CUstream))                                             \
    X(cuMemcpyDtoHAsync_v2, (void *, CUdeviceptr, size_t, CUstream))                                                   \
    X(cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, CUstream))                                              \
    X(cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream))                                                 \
    X(cuStreamCreate, (CUstream *, unsigned))                                                                          \
    X(cuStreamDestroy_v2, (CUstream))                                                                                  \
    X(cuStreamSynchronize, (CUstream))                                                                                 \
    X(cuStreamWaitEvent, (CUstream, CUevent, unsigned))                                                                \
    X(cuStreamBeginCapture_v2, (CUstream, CUstreamCaptureMode))                                                        \
    X(cuStreamEndCapture, (CUstream, CUgraph *))                                                                       \
    X(cuGraphInstantiateWithFlags, (CUgraphExec *, CUgraph, unsigned long long))                                       \
    X(cuGraphLaunch, (CUgraphExec, CUstream))                                                                          \
    X(cuGraphDestroy, (CUgraph))                                                                                       \
    X(cuGraphExecDestroy, (CUgraphExec))                                                                               \
    X(cuEventCreate, (CUevent *, unsigned))                                                                            \
    X(cuEventDestroy_v2, (CUevent))                                                                                    \
    X(cuEventRecord, (CUevent, CUstream))                                                                              \
    X(cuEventSynchronize, (CUevent))                                                                                   \
    X(cuEventElapsedTime, (float *, CUevent, CUevent))                                                                 \
    X(cuModuleLoadData, (CUmodule *, const void *))                                                                    \
    X(cuModuleUnload, (CUmodule))                                                                                      \
    X(cuModuleGetFunction, (CUfunction *, CUmodule, const char *))                                                     \
    X(cuFuncGetAttribute, (int *, CUfunction_attribute, CUfunction))                                                   \
    X(cuFuncSetAttribute, (CUfunction, CUfunction_attribute, int))                                                     \
    X(cuLaunchKernel,                                                                                                  \
      (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void **, void **))

typedef struct nbi_cuda_driver {
    void *so;
    char path[512];
#define X(name, args) CUresult(*name) args;
    NBI_CU_LIST(X)
#undef X
} nbi_cuda_driver;

typedef struct nbi_cuda {
    nbi_backend base;
    nbi_cuda_driver cu;
    int index;
    CUdevice device;
    CUcontext context;
    CUstream stream;
    char name[64];  /* "NVIDIA H200" */
    int sm;         /* 75, 80, 86, 89, 90 */
    int n_sm;       /* multiprocessors */
    int max_shared; /* bytes a block may have, opted in */
    nbi_dtype act;  /* NBI_F16 or NBI_BF16: the type T of activations */
    struct nbi_cuda_modules *modules;
    struct nbi_cuda_staging *staging;
    struct nbi_cuda_arena *weights;
    struct nbi_cublaslt *lt; /* cublaslt.c; NULL: our own kernels multiply */
    CUresult entered;        /* of the last nbi_cuda_enter() */
    CUresult lost;           /* a sticky error, and its sentence: what every later call fails with */
    char lost_text[256];
    pthread_mutex_t
        lock; /* recursive: threads share a model, but a stream and its staging buffers serve one at a time */
    bool has_lock;
    bool capturing; /* a graph is being recorded: what would wait, allocate or load is refused */
} nbi_cuda;

static inline nbi_cuda *nbi_cuda_of(nbi_backend *b)
{
    return (nbi_cuda *)b;
}

/* ---- driver.c ---- */
nb_status nbi_cuda_driver_load(nbi_cuda_driver *d); /* NB_ENODEVICE with the reason */
void nbi_cuda_driver_unload(nbi_cuda_driver *d);
/* NB_OK for CUDA_SUCCESS, else a status and the sentence "<device>: <what> failed: <the driver's words> (<its name>)". */
nb_status nbi_cuda_check(nbi_cuda *c, CUresult r, const char *what);
/* Our context is the thread's current one during a call, and only then: the program may use others, and any of its threads
 * may call us. */
CUresult nbi_cuda_enter(nbi_cuda *c);
CUresult nbi_cuda_leave(nbi_cuda *c, CUresult r); /* r */
#define NBI_CU(c, call, what)                                                                                          \
    nbi_cuda_check(c, nbi_cuda_enter(c) ? (c)->entered : nbi_cuda_leave(c, (c)->cu.call), what)

/* ---- device.c: opens device `index`; act: NBI_F16 or NBI_BF16 ---- */
nb_status nbi_cuda_open(nbi_cuda *c, int index, nbi_dtype act); /* c is zeroed; on failure close it */
void nbi_cuda_close(nbi_cuda *c);

/* ---- memory.c ---- */
nb_status nbi_cuda_memory_create(nbi_cuda *c);
void nbi_cuda_memory_free(nbi_cuda *c);
nb_status nbi_cuda_alloc(nbi_backend *b, void **out, size_t bytes, const char *what);
void nbi_cuda_release(nbi_backend *b, void *p);
nb_status nbi_cuda_upload(nbi_backend *b, void *dst, const void *src, size_t bytes);   /* src may be reused at once */
nb_status nbi_cuda_download(nbi_backend *b, void *dst, const void *src, size_t bytes); /* waits */
nb_status nbi_cuda_clear(nbi_cuda *c, void *dst, size_t bytes);                        /* zeros */
nb_status nbi_cuda_sync(nbi_cuda *c);
size_t nbi_cuda_free_bytes(nbi_backend *b);
/* One allocation for all weights that are to come.  Pieces of it are 256-byte aligned, uninitialised, and live until
 * nbi_cuda_weights_free() or the end of the backend; without an arena, or when it is full, a piece is its own allocation. */
nb_status nbi_cuda_weights_reserve(nbi_cuda *c, size_t bytes);
nb_status nbi_cuda_weights_alloc(nbi_cuda *c, void **out, size_t bytes);
void nbi_cuda_weights_free(nbi_cuda *c, void *p);
/* A pinned buffer of NBI_STAGE_BYTES to fill and hand to nbi_cuda_stage_send(), which copies it asynchronously; there are
 * two, so that one is filled while the other travels. */
#define NBI_STAGE_BYTES ((size_t)16 << 20)
nb_status nbi_cuda_stage_get(nbi_cuda *c, void **host);
nb_status nbi_cuda_stage_send(nbi_cuda *c, void *dst, size_t bytes);

/* ---- launch.c ---- */
typedef struct nbi_grid3 {
    uint32_t x, y, z;
} nbi_grid3;
nb_status nbi_cuda_modules_create(nbi_cuda *c);
void nbi_cuda_modules_free(nbi_cuda *c);
/* Launches kernel k; refuses what its line in kernels.h or the device does not allow.  A module is loaded when its first
 * kernel is launched (or by nbi_cuda_prepare(): recording a graph must not load modules). */
nb_status nbi_cuda_launch(nbi_cuda *c, enum nb_kernel k, nbi_grid3 grid, size_t shared, const void *args,
                          size_t args_bytes);
nb_status nbi_cuda_prepare(nbi_cuda *c, enum nb_kernel k);
/* Most dynamic shared memory that kernel k may have on this device; 0 if it cannot be loaded. */
uint32_t nbi_cuda_max_shared(nbi_cuda *c, enum nb_kernel k);
#define NBI_LAUNCH(c, k, gx, gy, gz, shared, args)                                                                     \
    nbi_cuda_launch(c, k, (nbi_grid3){(uint32_t)(gx), (uint32_t)(gy), (uint32_t)(gz)}, shared, &(args), sizeof(args))
/* NB_K_name_f16 or NB_K_name_bf16, as the backend's activations are. */
#define NBI_K(c, name) ((c)->act == NBI_F16 ? NB_K_##name##_f16 : NB_K_##name##_bf16)

/* ---- activations: T [rows][k], then codes [rows][k_pad], then scales [rows] in one buffer ---- */
static inline size_t nbi_cuda_k_pad(size_t k)
{
    return (k + NB_TILE_K - 1) / NB_TILE_K * NB_TILE_K;
}
static inline size_t nbi_cuda_align(size_t n)
{
    return (n + 255) & ~(size_t)255;
}
static inline nb_act_out nbi_cuda_act(void *base, size_t rows, size_t k)
{
    char *q = (char *)base + nbi_cuda_align(rows * k * 2), *s = q + nbi_cuda_align(rows * nbi_cuda_k_pad(k));
    return (nb_act_out){base, (int8_t *)q, (float *)s};
}

/* ---- step.c ---- */
struct nbi_step {
    nbi_cuda *c;
    nbi_step_limits limits;
    nb_step_args args;      /* device pointers, fixed for the life of the step object */
    const nbi_batch *batch; /* of the step under way */
    size_t rows, logits;    /* what kernels are launched for: those of the batch, or of its recording (`recorded`) */
    size_t bucket; /* rows (and logits) that a recording of this step has: >= those of the batch; 0: it has none */
    bool recorded; /* launches serve later batches of the same bucket, too: grids must not depend on this one */
    struct nbi_cuda_graphs *graphs;
    struct nbi_attend_plan *attend; /* attention.c */
    float *hartley;                 /* device: of rotated heads; NULL where head_dim is a power of two */
    struct nbi_step_side *sides;    /* the host's two blocks, pinned, used in turns */
    int turn;
    void *device; /* their copy */
};
nb_status nbi_cuda_step_create(nbi_backend *b, nbi_step **out, const nbi_step_limits *limits);
void nbi_cuda_step_free(nbi_backend *b, nbi_step *s);
size_t nbi_cuda_step_bytes(nbi_backend *b, const nbi_step_limits *limits);
nb_status nbi_cuda_step_begin(nbi_backend *b, nbi_step *s, const nbi_batch *batch);
nb_status nbi_cuda_step_enter(nbi_backend *b, nbi_step *s, bool *replayed, size_t *rows, size_t *n_logits);
nb_status nbi_cuda_step_end(nbi_backend *b, nbi_step *s, bool ok);

/* ---- kinds.c ---- */
typedef struct nbi_cuda_kind {
    /* 16 codes of row `row` of a panel as k16 block b of a block, whose units were zeroed; NULL: dense, or no tiles */
    void (*put)(unsigned char *units, int row, int b, const int8_t *codes);
    bool zeros_always; /* zero points are stored for symmetric weights, too */
    bool sixteenths;   /* and count sixteenths whatever the scheme says */
    int zero_offset;
    struct {
        enum nb_kernel gemm, gemv; /* in half, gemm of the first tile; that in bfloat16 is the next one */
    } kernels[2];                  /* of activations as they are; of INT8 */
} nbi_cuda_kind;
extern const nbi_cuda_kind nbi_cuda_kinds[NB_N_WEIGHT_KINDS];
unsigned nbi_cuda_kind_of(const nbi_scheme *s); /* NB_W_*, where our own kernels multiply */

/* ---- pack.c, linear.c ---- */
struct nbi_linear {
    nb_packed p; /* device pointers into `block` */
    nbi_scheme scheme;
    bool integer;    /* INT8 activations */
    float act_scale; /* static activations */
    int32_t act_zero;
    uint32_t *perm;                 /* device [k]: act-order, or NULL */
    struct nbi_cuda_sparse *sparse; /* NULL: none */
    void *block;
    size_t bytes;
};
nb_status nbi_cuda_linear_create(nbi_backend *b, nbi_linear **out, const nbi_weight *w);
void nbi_cuda_linear_free(nbi_backend *b, nbi_linear *l);
size_t nbi_cuda_linear_bytes(const nbi_linear *l);
unsigned nbi_cuda_linear_form(const nbi_linear *l);
size_t nbi_cuda_linear_plan(nbi_backend *b, size_t n, size_t k, const nbi_scheme *scheme, nbi_dtype dense, bool bias);
size_t nbi_cuda_scratch_bytes(nbi_backend *b, size_t rows, size_t k);
nb_status nbi_cuda_linear(nbi_backend *b, const nbi_linear *const *l, size_t n, const void *x, unsigned forms,
                          size_t rows, void *y, size_t ldy, nbi_dst dst, void *scratch);

/* ---- transform.c ---- */
nb_status nbi_cuda_transform_create(nbi_backend *b, nbi_transform **out, const nbi_transform_spec *spec);
void nbi_cuda_transform_free(nbi_backend *b, nbi_transform *t);
size_t nbi_cuda_transform_bytes(nbi_backend *b, const nbi_transform_spec *spec);
nb_status nbi_cuda_transform_in(nbi_backend *b, const nbi_transform *t, void *x, size_t rows, unsigned forms);
nb_status nbi_cuda_transform_out(nbi_backend *b, const nbi_transform *t, float *x, size_t rows, const float *bias,
                                 void *y, size_t col, size_t ldy, nbi_dst dst);
nb_status nbi_cuda_hartley(nbi_cuda *c, void *dst, size_t h); /* C_h to the device, fp32 [h][h] */
/* ---- sparse.c ---- */
nb_status nbi_cuda_sparse_create(nbi_cuda *c, nbi_linear *l, const nbi_weight *w); /* where w has one */
void nbi_cuda_sparse_free(nbi_cuda *c, nbi_linear *l);
size_t nbi_cuda_sparse_bytes(const nbi_scheme *s, size_t n, size_t k, size_t nnz); /* SIZE_MAX: too large */
bool nbi_cuda_has_outliers(const nbi_linear *l);
bool nbi_cuda_same_outliers(const nbi_linear *a, const nbi_linear *b); /* none on either side, too */
/* Codes of x as layer l wants them, its outliers as 0. */
nb_status nbi_cuda_quantize_outliers(nbi_cuda *c, const nbi_linear *l, const void *x, size_t rows,
                                     const nb_act_out *out);
/* y += S x of layer l, if it has an S; y its first column in rows of ldy elements. */
nb_status nbi_cuda_sparse_add(nbi_cuda *c, const nbi_linear *l, const void *x, size_t rows, void *y, size_t ldy,
                              nbi_dst dst);

/* ---- rows.c ---- */
nb_status nbi_cuda_embed(nbi_backend *b, const nbi_step *s, const nbi_linear *table, float *x);
nb_status nbi_cuda_rmsnorm(nbi_backend *b, const float *x, const float *weight, float eps, size_t rows, size_t k,
                           void *y, unsigned forms);
nb_status nbi_cuda_swiglu(nbi_backend *b, const void *gate_up, size_t rows, size_t n, void *y, unsigned forms);
nb_status nbi_cuda_gather(nbi_backend *b, const nbi_step *s, const float *x, size_t k, float *y);
/* Codes of x (activations) into out->q and out->scale: dynamic per token where act_scale is 0. */
nb_status nbi_cuda_quantize_rows(nbi_cuda *c, const void *x, size_t rows, size_t k, float act_scale, int32_t act_zero,
                                 const nb_act_out *out);
nb_status nbi_cuda_sample(nbi_backend *b, const float *logits, size_t n, size_t vocab, const nbi_draw *how,
                          nbi_drawn *out, void *scratch);
size_t nbi_cuda_sample_bytes(nbi_backend *b, size_t n);
/* sums[row][g] = sum of the codes of group g, of `groups` equal ones. */
nb_status nbi_cuda_group_sums(nbi_cuda *c, const int8_t *q, size_t rows, size_t k, size_t groups, int32_t *sums);
nb_status nbi_cuda_download_act(nbi_backend *b, float *dst, const void *x, size_t n);
nb_status nbi_cuda_upload_act(nbi_backend *b, void *dst, const float *src, size_t n);

/* ---- attention.c ---- */
nb_status nbi_cuda_attend_plan_create(nbi_cuda *c, struct nbi_attend_plan **out, const nbi_step_limits *limits);
void nbi_cuda_attend_plan_free(nbi_cuda *c, struct nbi_attend_plan *p);
size_t nbi_cuda_attend_plan_bytes(nbi_cuda *c, const nbi_step_limits *limits);
/* Called by step_begin(): works out the pieces of attention for the batch and uploads them.  Where s->bucket is not 0 what is
 * uploaded covers that many rows (those past the batch have nothing to do), and a launch with s->recorded set must serve every
 * batch of the bucket: its grid may depend on s->rows and s->limits only. */
nb_status nbi_cuda_attend_plan_set(nbi_cuda *c, struct nbi_attend_plan *p, nbi_step *s);
nb_status nbi_cuda_rope_append(nbi_backend *b, const nbi_step *s, void *qkv, size_t n_heads, const nbi_kv_layer *kv);
nb_status nbi_cuda_attention(nbi_backend *b, const nbi_step *s, const void *qkv, size_t n_heads, const nbi_kv_layer *kv,
                             float scale, void *y, unsigned forms);

/* ---- calib.c: quant_ops.h ---- */
extern const struct nbi_quant_ops nbi_cuda_quant_ops;

#endif
