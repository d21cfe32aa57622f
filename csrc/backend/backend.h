/* The only door to compute: the operations that a device must offer.
 *
 * `T *` below are device pointers of the backend (host pointers on the CPU); activations are `float` on the CPU and may
 * be half on a GPU, so callers above never dereference them: they go through upload/download.
 * Operations are asynchronous where the device is; download and sync wait.  A backend is immutable after creation but
 * for its device state; on the CPU several threads may use one.
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

typedef struct nbi_backend nbi_backend;
typedef struct nbi_linear nbi_linear; /* a weight packed for this backend */

/* The KV cache of one layer: k and v each [n_pages][n_kv_heads][NBI_PAGE_TOKENS][head_dim] of `dtype` (F32 or F16). */
typedef struct nbi_kv_layer {
    void *k, *v;
    nbi_dtype dtype;
    uint32_t n_kv_heads, head_dim;
} nbi_kv_layer;

/* A sequence's part in a batch: rows row0 .. row0+n_rows-1 are its tokens at positions pos0 ..; its KV cache holds
 * positions 0 .. pos0+n_rows-1 once they are appended.  pages[p / NBI_PAGE_TOKENS] is the page of position p.
 * Host memory. */
typedef struct nbi_seq {
    uint32_t row0, n_rows, pos0;
    const int32_t *pages;
} nbi_seq;

struct nbi_backend {
    const struct nbi_backend_ops *ops;
    const char *name;     /* "cpu" */
    char description[96]; /* "cpu (avx512-vnni), 2 threads" */
    size_t act_bytes;     /* bytes of one activation element */
    uint32_t threads;     /* CPU threads it uses */
};

typedef struct nbi_backend_ops {
    void (*destroy)(nbi_backend *b);

    /* -- memory: *out is at least 64-byte aligned -- */
    nb_status (*alloc)(nbi_backend *b, void **out, size_t bytes, const char *what);
    void (*release)(nbi_backend *b, void *p); /* NULL is fine */
    nb_status (*upload)(nbi_backend *b, void *dst, const void *src, size_t bytes);
    nb_status (*download)(nbi_backend *b, void *dst, const void *src, size_t bytes);
    size_t (*free_bytes)(nbi_backend *b);

    /* -- weights -- */
    /* Packs a canonical weight (which the caller frees afterwards).  A scheme or shape without a kernel is
     * NB_EUNSUPPORTED with the reason. */
    nb_status (*linear_create)(nbi_backend *b, nbi_linear **out, const nbi_weight *w);
    void (*linear_free)(nbi_backend *b, nbi_linear *l);
    size_t (*linear_bytes)(const nbi_linear *l);
    /* Scratch that linear() needs for up to `rows` rows of up to `k` inputs. */
    size_t (*scratch_bytes)(nbi_backend *b, size_t rows, size_t k);

    /* -- operations: x, y are activations, row-major -- */
    /* x[rows][K] = row ids[r] of the table [V,K].  ids: host, each < V (the caller has checked). */
    nb_status (*embed)(nbi_backend *b, const nbi_linear *table, const int32_t *ids, size_t rows, void *x);
    /* y = x / sqrt(mean(x^2) + eps) * weight; weight fp32 [k] on the device */
    nb_status (*rmsnorm)(nbi_backend *b, const void *x, const float *weight, float eps, size_t rows, size_t k, void *y);
    /* y[rows][N] = (accumulate ? y : 0) + x[rows][K] W^T + bias; quantizes x first where the scheme says so.
     * The accumulate form adds the finished dot product (bias included) to y. */
    nb_status (*linear)(nbi_backend *b, const nbi_linear *l, const void *x, size_t rows, void *y, bool accumulate,
                        void *scratch);
    /* Rotates q [rows][n_heads][head_dim] in place and k [rows][n_kv_heads][head_dim], writes k and v to the cache.
     * Half-split pairs (i, i + head_dim/2).  cos_sin: fp32 [rows][head_dim/2][2] on the device. */
    nb_status (*rope_append)(nbi_backend *b, void *q, void *k, const void *v, size_t rows, size_t n_heads,
                             const float *cos_sin, const nbi_kv_layer *kv, const nbi_seq *seqs, size_t n_seqs);
    /* y[rows][n_heads][head_dim] = causal softmax(q k^T * scale) v; query head h reads kv head h / (n_heads/n_kv). */
    nb_status (*attention)(nbi_backend *b, const void *q, size_t n_heads, const nbi_kv_layer *kv, const nbi_seq *seqs,
                           size_t n_seqs, float scale, void *y);
    /* y = silu(gate) * up, n elements */
    nb_status (*swiglu)(nbi_backend *b, const void *gate, const void *up, size_t n, void *y);
    /* y[i] = x[rows_[i]]: rows of k elements; rows_ on the host */
    nb_status (*gather)(nbi_backend *b, const void *x, const uint32_t *rows_, size_t n, size_t k, void *y);
    /* Logits leave as fp32, whatever activations are. */
    nb_status (*download_f32)(nbi_backend *b, float *dst, const void *x, size_t n);
} nbi_backend_ops;

/* `device`: NULL or "auto", "cpu".  threads 0: one for each core this process may use.  NB_CPU_ISA=scalar|avx2|avx512
 * forces an instruction set (an error where the machine lacks it). */
nb_status nbi_backend_create(nbi_backend **out, const char *device, int threads);

#endif
