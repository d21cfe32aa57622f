/* The only door to compute: the operations that a device must offer.
 *
 * `void *` below are device pointers of the backend (host pointers on the CPU).  There are three kinds of rows:
 *   residual     fp32 everywhere: [rows][hidden]
 *   activations  what linear layers read and write: fp32 on the CPU, half or bfloat16 on a GPU, with room behind them for
 *                the same rows as INT8 codes (act_bytes() tells how much); opaque to the layers above
 *   logits       fp32 everywhere
 * Operations are asynchronous where the device is; download waits.  A backend is immutable after creation but for its
 * device state; several threads may use one.  What must not mix with the work of others (a step) is put between lock() and
 * unlock() where the backend has them; memory operations may come from any thread at any time.
 *
 * Canonical order (docs/numerics.md): every output element is computed by the same sequence of fp32 operations
 * whatever the number of rows, the threads, or the instruction set.  A float dot product over K accumulates with fused
 * multiply-add in ascending k inside chunks of NBI_K_CHUNK (cut at group boundaries too), chunks are added in order.
 * INT8 products are summed exactly in int32.
 */
#ifndef NB_BACKEND_BACKEND_H
#define NB_BACKEND_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/weight.h"

#define NBI_K_CHUNK      512 /* elements of K summed before a partial sum is added */
#define NBI_ATTN_CHUNK   128 /* keys of one softmax chunk; chunks are merged in index order */
#define NBI_PAGE_TOKENS  16  /* tokens in a page of the KV cache; divides NBI_ATTN_CHUNK */
#define NBI_MAX_HEAD_DIM 256
#define NBI_MAX_FUSED    3 /* linear layers that one call computes: q, k, v */
#define NBI_MAX_EXPERTS  512

typedef struct nbi_backend nbi_backend;
typedef struct nbi_linear nbi_linear;       /* a weight packed for this backend */
typedef struct nbi_step nbi_step;           /* the device's copy of what a batch is: see step_begin() */
typedef struct nbi_transform nbi_transform; /* what is done to activations before or after linear layers */

/* ---- the KV cache ---- */

/* What a key or value is stored as.  A block is the part of a page that belongs to one kv head: NBI_PAGE_TOKENS tokens.
 *   F32, F16  [16][head_dim]
 *   INT8      codes [16][head_dim], then one fp32 scale a token [16]:  x ~ q * s,  s = absmax/127, q = clamp(rne(x/s),
 *             -127, 127); an s that would be zero or subnormal is 1 (its codes are 0)
 *   INT4      codes [16][head_dim/2] (low nibble first), then for each token and each run of 32 elements two fp16 {s, m}:
 *             [16][ceil(head_dim/32)][2]:  x ~ fma(q, s, m),  m = fp16(min) (+0 for -0), s = fp16((max - m)/15),
 *             q = clamp(rne((x - m)/s), 0, 15); an s of zero is 1 (its codes are 0)
 * Every operation is one fp32 operation.  Numbers that cannot be stored show: a token (INT8) or run (INT4) that holds a
 * NaN or an infinity, or whose m or s leaves the range of fp16, has codes 0 and NaN for s (and m); attention carries it
 * on. */
typedef enum nbi_kv_type { NBI_KV_F32, NBI_KV_F16, NBI_KV_INT8, NBI_KV_INT4, NBI_N_KV_TYPES } nbi_kv_type;
#define NBI_KV4_RUN 32

/* Bytes of a block, a multiple of 16.  head_dim is even. */
size_t nbi_kv_block_bytes(nbi_kv_type type, uint32_t head_dim);
const char *nbi_kv_type_name(nbi_kv_type type);                  /* "f32" "f16" "int8" "int4" */
nb_status nbi_kv_type_parse(nbi_kv_type *out, const char *name); /* NB_EINVAL names the choices */

/* The KV cache of one layer: k and v each [n_pages][n_kv_heads] blocks. */
typedef struct nbi_kv_layer {
    void *k, *v;
    nbi_kv_type type;
    uint32_t n_kv_heads, head_dim;
    bool
        rotate; /* queries and keys are rotated after RoPE (base/rotation.h, order head_dim): scores stay, outliers go */
    /* Grids of keys by channel, device fp32 [n_kv_heads][head_dim], both or NULL: behind RoPE and rotation a key becomes
     * (k - shift) / scale before it is stored, a query q * scale.  Scores lose q . shift, the same for all keys, which softmax
     * does not see. */
    const float *k_shift, *k_scale;
} nbi_kv_layer;

/* ---- what is done to activations beside linear layers: nbi_weight says why ---- */

typedef struct nbi_transform_spec {
    size_t k;
    const int8_t
        *signs; /* host [k]: y = T (signs * x) for inputs, y = signs * (T x) for outputs; NULL: y = x, placed */
} nbi_transform_spec;

/* ---- a mixture of experts: many feed-forward networks, of which a row passes a few ---- */

/* Weights of layer: gate, up and down of each expert.  Host memory, as the pointers are. */
typedef struct nbi_experts {
    size_t n, top_k; /* n <= NBI_MAX_EXPERTS, 1 <= top_k <= n */
    bool normalize;  /* weights of a row's experts sum to 1; else softmax over all experts */
    size_t hidden, ffn;
    nbi_linear *const *linear; /* [n][3]; none where only sizes are asked for */
    /* Told of the activations [rows] that come to an expert's gate and up, then of those that come to its down; NULL: nobody
     * looks. */
    nb_status (*seen)(void *user, size_t expert, bool down, const void *x, size_t rows);
    void *user;
} nbi_experts;

/* ---- a batch ---- */

/* A sequence's part in a batch: rows row0 .. row0+n_rows-1 are its tokens at positions pos0 ..; its KV cache holds
 * positions 0 .. pos0+n_rows-1 once they are appended.  pages[p / NBI_PAGE_TOKENS] is the page of position p.
 * Host memory. */
typedef struct nbi_seq {
    uint32_t row0, n_rows, pos0;
    const int32_t *pages;
} nbi_seq;

/* One step: seqs cover rows 0 .. rows-1, one after the other.  Host memory, which stays as it is until the results of the
 * step are downloaded.  ids are below the vocabulary's size, logit_rows below rows (the caller has checked). */
typedef struct nbi_batch {
    size_t rows, n_seqs, n_logits;
    const int32_t *ids;         /* [rows] */
    const nbi_seq *seqs;        /* [n_seqs] */
    const uint32_t *logit_rows; /* [n_logits]: rows whose logits are wanted, ascending */
} nbi_batch;

/* The largest batch a step object must take. */
typedef struct nbi_step_limits {
    size_t rows, seqs, logits;
    size_t seq_pages; /* pages of one sequence */
    uint32_t head_dim;
    const float *inv_freq; /* host [head_dim/2]: the angle of position p in pair i is (float)p * inv_freq[i]; copied */
    uint32_t n_heads, n_kv_heads; /* most heads of a layer: room for attention's partial results, and how it is cut */
} nbi_step_limits;

/* ---- what an operation reads and writes ---- */

/* Forms of activations that a producer writes for its consumers: a set of bits. */
enum {
    NBI_FORM_FLOAT = 1, /* the activations themselves */
    NBI_FORM_INT8 = 2   /* codes and one scale a row, as dynamic quantization per token defines them */
};

typedef enum nbi_dst {
    NBI_DST_ACT,      /* y = result, activations */
    NBI_DST_RESIDUAL, /* y = y + result, fp32 */
    NBI_DST_F32       /* y = result, fp32 */
} nbi_dst;

/* A packed weight as a cache keeps it: what a canonical weight says besides its arrays, and the bytes that a backend made of
 * these. */
typedef struct nbi_packed {
    size_t n, k;
    nbi_scheme scheme;
    nbi_dtype dense; /* bits == 0 */
    nbi_dtype scale_type;
    bool bias;
    float act_scale;
    int32_t act_zero;
    size_t nnz, n_outliers;
    const void *block;
    size_t bytes;
} nbi_packed;

/* How a token is chosen from a row of logits; engine/sampler.c has the rules. */
typedef struct nbi_draw {
    float temperature, top_p, min_p; /* temperature 0: the best token */
    int32_t top_k;                   /* 0: off */
    uint32_t share;                  /* the random number u in [0, 1), times 2^24 */
    uint32_t want_sum;               /* for a log-probability */
} nbi_draw;

typedef struct nbi_drawn {
    uint64_t sum; /* of the weights of all tokens at temperature 1, in units of 2^-43 of the best one's; if wanted */
    float logit, best; /* of the token, and the largest of the row */
    int32_t token;     /* -1: the row holds a NaN or +infinity, or nothing finite */
    uint32_t unused;
} nbi_drawn;

/* A roof that could not be measured is 0. */
typedef struct nbi_roofs {
    double read; /* bytes a second, read from memory: the best of several passes over a buffer larger than the caches */
    double int8; /* additions and multiplications a second, INT8 products summed in INT32, from registers */
} nbi_roofs;

struct nbi_backend {
    const struct nbi_backend_ops *ops;
    const char *name;     /* "cpu", "cuda" */
    char description[96]; /* "cpu (avx512-vnni), 2 threads" */
    uint32_t threads;     /* CPU threads it uses */
    nbi_kv_type default_kv;
    const struct nbi_quant_ops *quant; /* what it offers for quantization (quant_ops.h), NULL: nothing */
};

typedef struct nbi_backend_ops {
    void (*destroy)(nbi_backend *b);
    void (*lock)(nbi_backend *b); /* may be nested; NULL: not needed */
    void (*unlock)(nbi_backend *b);

    /* -- memory: *out is at least 64-byte aligned and zeroed -- */
    nb_status (*alloc)(nbi_backend *b, void **out, size_t bytes, const char *what);
    void (*release)(nbi_backend *b, void *p); /* NULL is fine */
    nb_status (*upload)(nbi_backend *b, void *dst, const void *src, size_t bytes);
    nb_status (*download)(nbi_backend *b, void *dst, const void *src, size_t bytes);
    size_t (*free_bytes)(nbi_backend *b);
    size_t (*act_bytes)(nbi_backend *b, size_t rows,
                        size_t k); /* a buffer for activations [rows][k], SIZE_MAX: too large */

    /* -- weights -- */
    /* Packs a canonical weight (which the caller frees afterwards).  A scheme or shape without a kernel is
     * NB_EUNSUPPORTED with the reason. */
    nb_status (*linear_create)(nbi_backend *b, nbi_linear **out, const nbi_weight *w);
    void (*linear_free)(nbi_backend *b, nbi_linear *l);
    /* For a cache of packed weights; NULL where a device has none.  layout names the bytes of blocks: equal names, equal bytes.
     * A loaded weight reads p->block, 64-byte aligned, as long as it lives.  Of *p nothing is believed: NB_EFORMAT where
     * the block cannot be what the rest says. */
    const char *layout;
    void (*linear_save)(const nbi_linear *l, nbi_packed *out);
    nb_status (*linear_load)(nbi_backend *b, nbi_linear **out, const nbi_packed *p);
    size_t (*linear_bytes)(const nbi_linear *l);
    unsigned (*linear_form)(const nbi_linear *l); /* the form of its input that suits it best: one NBI_FORM bit */
    /* Makes room for all weights that linear_create() will be asked for, as planned; NULL where that gains nothing. */
    nb_status (*reserve)(nbi_backend *b, size_t bytes);
    /* What linear_create() will take on the device, for the plan before loading. */
    size_t (*linear_plan)(nbi_backend *b, size_t n, size_t k, const nbi_scheme *scheme, nbi_dtype dense, bool bias);
    /* Scratch that linear() needs for up to `rows` rows of up to `k` inputs. */
    size_t (*scratch_bytes)(nbi_backend *b, size_t rows, size_t k);

    /* -- transforms; NULL where a device has none -- */
    /* The spec is copied. */
    nb_status (*transform_create)(nbi_backend *b, nbi_transform **out, const nbi_transform_spec *spec);
    void (*transform_free)(nbi_backend *b, nbi_transform *t); /* NULL is fine */
    /* On the device, for the plan: signs are not read. */
    size_t (*transform_bytes)(nbi_backend *b, const nbi_transform_spec *spec);
    /* Inputs of linear layers, in place: x [rows][k] activations hold NBI_FORM_FLOAT.  The rotated rows are left in
     * `forms`. */
    nb_status (*transform_in)(nbi_backend *b, const nbi_transform *t, void *x, size_t rows, unsigned forms);
    /* Outputs of one linear layer, which it wrote as NBI_DST_F32 to x [rows][k] (destroyed): the rotated rows go to columns
     * col .. col+k-1 of y, whose rows have ldy elements.  A bias belongs behind the rotation: bias, device fp32 [k] or NULL. */
    nb_status (*transform_out)(nbi_backend *b, const nbi_transform *t, float *x, size_t rows, const float *bias,
                               void *y, size_t col, size_t ldy, nbi_dst dst);

    /* -- a batch: its description goes to the device once and all operations of the step read it there -- */
    nb_status (*step_create)(nbi_backend *b, nbi_step **out, const nbi_step_limits *limits);
    void (*step_free)(nbi_backend *b, nbi_step *s);
    size_t (*step_bytes)(nbi_backend *b, const nbi_step_limits *limits); /* on the device; NULL: none of its memory */
    nb_status (*step_begin)(nbi_backend *b, nbi_step *s, const nbi_batch *batch);
    /* Recorded steps (CUDA graphs); NULL where a device has none.  *replayed: the whole step between these two calls was
     * launched from a recording and the caller skips both it and step_end().  Else the operations up to step_end() are issued
     * as usual, for *rows rows and *n_logits rows of logits, and may be recorded: a recording has a fixed number of rows, at
     * least those of the batch and at most those of the limits; what is computed for the others means nothing.  ok: all
     * operations were issued; else the recording is dropped.  What the operations depend on besides the batch (addresses of
     * buffers and models) must be the same each time: a step object serves one caller. */
    nb_status (*step_enter)(nbi_backend *b, nbi_step *s, bool *replayed, size_t *rows, size_t *n_logits);
    nb_status (*step_end)(nbi_backend *b, nbi_step *s, bool ok);

    /* -- operations; all arrays row-major -- */
    /* x[rows][K] (residual) = row ids[r] of the table [V,K]. */
    nb_status (*embed)(nbi_backend *b, const nbi_step *s, const nbi_linear *table, float *x);
    /* y (activations, in `forms`) = x / sqrt(mean(x^2) + eps) * weight; x residual, weight fp32 [k] on the device */
    nb_status (*rmsnorm)(nbi_backend *b, const float *x, const float *weight, float eps, size_t rows, size_t k, void *y,
                         unsigned forms);
    /* For each of the n layers l, which share K: y[r][col .. col+N-1] = (the old y +) x[rows][K] W^T + bias, where col is
     * the sum of the N before it and a row of y has ldy elements.  forms: what x holds; x is quantized first where a
     * scheme asks for a form that is not there.  The residual form adds the finished dot product (bias included) to y.
     * A layer with outliers quantizes the floats of x itself, as if these columns were 0.
     * A sparse part reads the floats of x and adds its own dot product, summed by fused multiply-add in ascending columns from
     * 0, to the finished y.  Rotations are not part of it: transform_in(), transform_out().  Of a layer with rotate_out the
     * bias is left out. */
    nb_status (*linear)(nbi_backend *b, const nbi_linear *const *l, size_t n, const void *x, unsigned forms,
                        size_t rows, void *y, size_t ldy, nbi_dst dst, void *scratch);
    /* q and k of qkv [rows][n_heads + 2 n_kv_heads][head_dim], activations, in place: each head as a row of rmsnorm(), weights
     * fp32 [head_dim] on the device.  NULL where a device has none. */
    nb_status (*norm_heads)(nbi_backend *b, void *qkv, size_t rows, size_t n_heads, size_t n_kv_heads, size_t head_dim,
                            const float *q_weight, const float *k_weight, float eps);
    /* qkv [rows][n_heads + 2 n_kv_heads][head_dim], activations: rotates q and k in place, writes k and v to the cache.
     * Half-split pairs (i, i + head_dim/2). */
    nb_status (*rope_append)(nbi_backend *b, const nbi_step *s, void *qkv, size_t n_heads, const nbi_kv_layer *kv);
    /* y[rows][n_heads][head_dim] (activations, in `forms`) = causal softmax(q k^T * scale) v of the cache; query head h
     * reads kv head h / (n_heads/n_kv). */
    nb_status (*attention)(nbi_backend *b, const nbi_step *s, const void *qkv, size_t n_heads, const nbi_kv_layer *kv,
                           float scale, void *y, unsigned forms);
    /* y[r][i] (in `forms`) = silu(gate_up[r][i]) * gate_up[r][n + i], i < n; gate_up [rows][2n] activations */
    nb_status (*swiglu)(nbi_backend *b, const void *gate_up, size_t rows, size_t n, void *y, unsigned forms);
    /* Gate and up, two layers of n outputs, with swiglu() of their outputs in one: y [rows][n] activations in `produced`, which does
     * not overlap x.  gates(): whether these layers are computed so, for so many rows; else linear() and swiglu() do.  NULL, both,
     * where a device has none. */
    bool (*gates)(nbi_backend *b, const nbi_linear *const gate_up[2], size_t rows);
    nb_status (*gated)(nbi_backend *b, const nbi_linear *const gate_up[2], const void *x, unsigned forms, size_t rows,
                       void *y, unsigned produced, void *scratch);
    /* y[r] += sum of weight(e) * down_e(silu(gate_e x[r]) * up_e x[r]) over the top_k experts e with the largest logits, equal
     * ones by lower index; weight: softmax of the logits.  x activations [rows][hidden] in `forms` (NBI_FORM_FLOAT among them), logits fp32
     * [rows][n], y residual.  A row's result does not depend on the others.  NULL where a device has none.  buffer has
     * experts_bytes(), scratch what linear() needs for `rows` rows. */
    nb_status (*experts)(nbi_backend *b, const nbi_experts *e, const void *x, unsigned forms, const float *logits,
                         size_t rows, float *y, void *buffer, void *scratch);
    size_t (*experts_bytes)(nbi_backend *b, const nbi_experts *e, size_t rows); /* SIZE_MAX: too large */
    /* y[i] = x[logit_rows[i]] of the batch: residual rows of k elements */
    nb_status (*gather)(nbi_backend *b, const nbi_step *s, const float *x, size_t k, float *y);
    /* Chooses a token for each of n rows of logits; how and out are host memory, scratch has sample_bytes(n).  Waits.  NULL
     * where logits are in host memory anyway. */
    nb_status (*sample)(nbi_backend *b, const float *logits, size_t n, size_t vocab, const nbi_draw *how,
                        nbi_drawn *out, void *scratch);
    size_t (*sample_bytes)(nbi_backend *b, size_t n);
    /* Activations to fp32 on the host (the form NBI_FORM_FLOAT must be there). */
    nb_status (*download_act)(nbi_backend *b, float *dst, const void *x, size_t n);
    /* fp32 on the host to activations, rounded. */
    nb_status (*upload_act)(nbi_backend *b, void *dst, const float *src, size_t n);
    /* Measures what all its threads reach together, for benchmarks (a fifth of a second); NULL where a device has no such
     * measurement. */
    nb_status (*roofs)(nbi_backend *b, const nbi_linear *const *weights, size_t n, nbi_roofs *out);
} nbi_backend_ops;

typedef struct nbi_backend_options {
    const char *device; /* NULL or "auto": "cuda:0" where that can be used, else "cpu".  "cuda" is "cuda:0" */
    int threads;        /* on the CPU; 0: one for each core this process may use */
    const char
        *act_dtype; /* activations on a GPU: NULL or "f16", "bf16"; the CPU computes in fp32 and takes NULL only */
} nbi_backend_options;

/* NB_CPU_ISA=scalar|avx2|avx512 forces an instruction set (an error where the machine lacks it); NB_CUDA_DRIVER names a library
 * that is used in place of libcuda.so.1. */
nb_status nbi_backend_open(nbi_backend **out, const nbi_backend_options *o);
nb_status nbi_backend_create(nbi_backend **out, const char *device, int threads); /* all else by default */

/* nb_model_options.pin, before the first step. */
nb_status nbi_backend_set_pin(nbi_backend *b, const char *pin);
/* Before the first linear_create(): who multiplies matrices.  NULL or "nibble": our kernels.  "cublaslt" (CUDA only): NVIDIA's
 * library for the layers that it takes.  `note` gets a line for the log, or "". */
nb_status nbi_backend_set_gemm(nbi_backend *b, const char *gemm, char note[200]);

#endif
