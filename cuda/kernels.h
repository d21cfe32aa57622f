/* Every kernel that ships: its name, its file, its launch contract and its arguments.  Included by the kernels (CUDA C++) and
 * by the host (C11, C++ tests): the one place where both sides meet.
 *
 * A kernel takes one struct by value.  Activations have the type T of a suffix: _f16 (half) or _bf16 (bfloat16, sm_80 and
 * newer); one source instantiates both.  Pointers are device pointers unless they say "host".  A kernel's file opens with
 * what it computes, in which order it sums, and what it needs of shapes and alignment; docs/numerics.md has the formulas.
 */
#ifndef NB_CUDA_KERNELS_H
#define NB_CUDA_KERNELS_H

#include <stdint.h>

#include "layout.h"

/* kernel, file (cuda/FILE.cu, one module), threads of a block, most dynamic shared memory in bytes, oldest architecture,
 * argument struct.  nb_cuda_launch() checks every launch against its line, and the device's limits. */
#define NB_CUDA_KERNEL_LIST(X)                                                                                         \
    /* rows */                                                                                                         \
    X(nb_embed, embed, 128, 0, 75, nb_embed_args)                                                                      \
    X(nb_rmsnorm_f16, rmsnorm, 256, 0, 75, nb_rmsnorm_args)                                                            \
    X(nb_rmsnorm_bf16, rmsnorm, 256, 0, 80, nb_rmsnorm_args)                                                           \
    X(nb_swiglu_f16, swiglu, 256, 0, 75, nb_swiglu_args)                                                               \
    X(nb_swiglu_bf16, swiglu, 256, 0, 80, nb_swiglu_args)                                                              \
    X(nb_quantize_rows_f16, quantize_rows, 256, 0, 75, nb_quantize_rows_args)                                          \
    X(nb_quantize_rows_bf16, quantize_rows, 256, 0, 80, nb_quantize_rows_args)                                         \
    X(nb_group_sums, quantize_rows, 256, 0, 75, nb_group_sums_args)                                                    \
    X(nb_gather_rows, gather_rows, 256, 0, 75, nb_gather_rows_args)                                                    \
    X(nb_convert_f16, convert, 256, 0, 75, nb_convert_args)                                                            \
    X(nb_convert_bf16, convert, 256, 0, 80, nb_convert_args)                                                           \
    /* linear layers: gemm for many rows, gemv for up to NB_GEMV_ROWS; the same bits from both */                      \
    X(nb_gemm_dense_f16, gemm_dense, 128, 99 * 1024, 75, nb_gemm_args)                                                 \
    X(nb_gemm_dense_bf16, gemm_dense, 128, 99 * 1024, 80, nb_gemm_args)                                                \
    X(nb_gemm_w8_f16, gemm_w8, 128, 99 * 1024, 75, nb_gemm_args)                                                       \
    X(nb_gemm_w8_bf16, gemm_w8, 128, 99 * 1024, 80, nb_gemm_args)                                                      \
    X(nb_gemm_w4_f16, gemm_w4, 128, 99 * 1024, 75, nb_gemm_args)                                                       \
    X(nb_gemm_w4_bf16, gemm_w4, 128, 99 * 1024, 80, nb_gemm_args)                                                      \
    X(nb_gemm_w8a8_f16, gemm_w8a8, 128, 99 * 1024, 75, nb_gemm_args)                                                   \
    X(nb_gemm_w8a8_bf16, gemm_w8a8, 128, 99 * 1024, 80, nb_gemm_args)                                                  \
    X(nb_gemm_w4a8_f16, gemm_w4a8, 128, 99 * 1024, 75, nb_gemm_args)                                                   \
    X(nb_gemm_w4a8_bf16, gemm_w4a8, 128, 99 * 1024, 80, nb_gemm_args)                                                  \
    X(nb_gemv_dense_f16, gemv_dense, 256, 64 * 1024, 75, nb_gemm_args)                                                 \
    X(nb_gemv_dense_bf16, gemv_dense, 256, 64 * 1024, 80, nb_gemm_args)                                                \
    X(nb_gemv_w8_f16, gemv_w8, 256, 64 * 1024, 75, nb_gemm_args)                                                       \
    X(nb_gemv_w8_bf16, gemv_w8, 256, 64 * 1024, 80, nb_gemm_args)                                                      \
    X(nb_gemv_w4_f16, gemv_w4, 256, 64 * 1024, 75, nb_gemm_args)                                                       \
    X(nb_gemv_w4_bf16, gemv_w4, 256, 64 * 1024, 80, nb_gemm_args)                                                      \
    X(nb_gemv_w8a8_f16, gemv_w8a8, 256, 64 * 1024, 75, nb_gemm_args)                                                   \
    X(nb_gemv_w8a8_bf16, gemv_w8a8, 256, 64 * 1024, 80, nb_gemm_args)                                                  \
    X(nb_gemv_w4a8_f16, gemv_w4a8, 256, 64 * 1024, 75, nb_gemm_args)                                                   \
    X(nb_gemv_w4a8_bf16, gemv_w4a8, 256, 64 * 1024, 80, nb_gemm_args)                                                  \
    /* attention */                                                                                                    \
    X(nb_rope_append_f16, rope_append, 128, 0, 75, nb_rope_append_args)                                                \
    X(nb_rope_append_bf16, rope_append, 128, 0, 80, nb_rope_append_args)                                               \
    X(nb_attend_f16, attend, 128, 99 * 1024, 75, nb_attend_args)                                                       \
    X(nb_attend_bf16, attend, 128, 99 * 1024, 80, nb_attend_args)                                                      \
    X(nb_attend_merge_f16, attend_merge, 128, 0, 75, nb_attend_args)                                                   \
    X(nb_attend_merge_bf16, attend_merge, 128, 0, 80, nb_attend_args)                                                  \
    /* the end of a step */                                                                                            \
    X(nb_sample, sample, 1024, 0, 75, nb_sample_args)                                                                  \
    /* mixture of experts */                                                                                           \
    X(nb_moe_route, moe_route, 256, 0, 75, nb_moe_route_args)                                                          \
    /* calibration and quantization */                                                                                 \
    X(nb_range, range, 256, 0, 75, nb_range_args)                                                                      \
    X(nb_histogram, histogram, 256, 0, 75, nb_histogram_args)                                                          \
    X(nb_clip_search, clip_search, 256, 0, 75, nb_clip_search_args)                                                    \
    X(nb_gram, gram, 256, 0, 75, nb_gram_args)                                                                         \
    X(nb_rtn, rtn, 256, 0, 75, nb_rtn_args)

/* ---- a step: what step_begin() uploads.  Rows past the batch (a recorded step has a fixed number) have pos -1 and are
 * skipped by every kernel that reads this ---- */
typedef struct nb_step_args {
    const int32_t *ids;         /* [rows] */
    const int32_t *pos;         /* [rows] position of the row in its sequence, -1: padding */
    const int32_t *row_pages;   /* [rows] where the page table of the row's sequence begins in `pages` */
    const int32_t *pages;       /* page tables, one after the other */
    const uint32_t *logit_rows; /* [logits] */
    const float *inv_freq;      /* [head_dim/2] */
} nb_step_args;

/* ---- rows ---- */

typedef struct nb_embed_args {
    nb_packed table; /* any kind */
    nb_step_args step;
    float *x; /* [rows][k] */
    uint32_t rows, k;
} nb_embed_args;

/* Where a producer puts its rows: NULL for a form that nobody wants.  Codes are laid out as NB_K_ORDER says, rows of k_pad =
 * k rounded up to NB_TILE_K, zero beyond k. */
typedef struct nb_act_out {
    void *y;      /* T [rows][k] */
    int8_t *q;    /* [rows][k_pad] */
    float *scale; /* [rows]; NaN for a row that holds a NaN or an infinity */
} nb_act_out;

typedef struct nb_rmsnorm_args {
    const float *x;      /* [rows][k] */
    const float *weight; /* [k] */
    nb_act_out out;
    float eps;
    uint32_t rows, k;
} nb_rmsnorm_args;

typedef struct nb_swiglu_args {
    const void *gate_up; /* T [rows][2k] */
    nb_act_out out;
    uint32_t rows, k;
} nb_swiglu_args;

typedef struct nb_quantize_rows_args {
    const void *x;   /* T [rows][k] */
    nb_act_out out;  /* y is not written */
    float act_scale; /* static: > 0, with act_zero; dynamic per token: 0 */
    int32_t act_zero;
    uint32_t rows, k;
} nb_quantize_rows_args;

/* sums[row][g] = sum of the codes of group g: what weights of 8 bits with zero points need. */
typedef struct nb_group_sums_args {
    const int8_t *q; /* [rows][k_pad] */
    int32_t *sums;   /* [rows][groups] */
    uint32_t rows, k, groups, group_len;
} nb_group_sums_args;

typedef struct nb_gather_rows_args {
    const float *x; /* [..][k] */
    float *y;       /* [n][k] */
    const uint32_t *rows;
    uint32_t n, k;
} nb_gather_rows_args;

typedef struct nb_convert_args {
    const void *src; /* to_float: T, else fp32 */
    void *dst;
    uint64_t n;
    uint32_t to_float;
} nb_convert_args;

/* ---- linear layers ---- */

#define NB_GEMV_ROWS 8 /* rows that the decode form takes */

typedef struct nb_gemm_args {
    nb_packed part[3]; /* layers that share x and k; their outputs stand side by side */
    uint32_t n_parts;
    const void *x;         /* T [rows][k], or codes int8 [rows][k_pad] */
    const float *x_scale;  /* [rows]; INT8 activations */
    const int32_t *x_sums; /* [rows][groups]; INT8 activations on 8-bit weights with zero points, else NULL */
    void *y;               /* [rows][ldy] */
    uint32_t rows, k, ldy;
    uint32_t dst; /* NB_DST_* */
    uint32_t
        first_tile[3]; /* tiles of output columns: part i has tiles first_tile[i] .. first_tile[i+1]-1 of the grid */
    uint32_t n_tiles;
} nb_gemm_args;

enum { NB_DST_ACT, NB_DST_RESIDUAL, NB_DST_F32 }; /* T; fp32 y += result; fp32 */

/* ---- attention ---- */

enum { NB_KV_F32, NB_KV_F16, NB_KV_INT8, NB_KV_INT4 }; /* nbi_kv_type; F32 has no kernel */

typedef struct nb_kv_args {
    void *k, *v; /* [pages][n_kv_heads] blocks: backend.h */
    uint32_t type, n_kv_heads, head_dim, block_bytes;
} nb_kv_args;

typedef struct nb_rope_append_args {
    void *qkv; /* T [rows][n_heads + 2 n_kv_heads][head_dim] */
    nb_kv_args kv;
    nb_step_args step;
    uint32_t rows, n_heads;
} nb_rope_append_args;

/* One piece of attention: query rows row0 .. row0+n_rows-1 of one sequence against the chunk `chunk` of its keys (the rows'
 * positions are step.pos[]; every row has at least one key in the chunk, or is masked as a whole). */
typedef struct nb_attend_item {
    uint32_t row0, n_rows, chunk;
    uint32_t slot; /* where the partial results of (row0, chunk) begin, in rows of partial */
} nb_attend_item;

typedef struct nb_attend_args {
    const void *qkv; /* T, after rope_append */
    void *y;         /* T [rows][n_heads][head_dim] */
    nb_kv_args kv;
    nb_step_args step;
    const nb_attend_item *items; /* [*n_items] */
    const uint32_t *n_items;     /* in device memory: a recorded launch has more blocks than a step has items */
    const uint32_t *row_slot;    /* [rows + 1] first partial of a row; partials of a row are its chunks in order */
    float *partial;              /* o [slots][n_heads][head_dim], then m and l [slots][n_heads][2] */
    uint64_t n_slots;
    float scale;
    uint32_t rows, n_heads;
} nb_attend_args;

/* ---- sampling ---- */

typedef struct nb_sample_row {
    float temperature, top_p, min_p; /* temperature 0: greedy */
    int32_t top_k;                   /* 0: off */
    uint64_t seed, position;         /* of the random number */
} nb_sample_row;

typedef struct nb_sample_args {
    const float *logits;      /* [n][vocab] */
    const nb_sample_row *row; /* [n] */
    int32_t *token;           /* [n]; -1: the row holds a NaN */
    float *logprob;           /* [n] */
    uint32_t n, vocab;
} nb_sample_args;

/* ---- mixture of experts ---- */

typedef struct nb_moe_route_args {
    const float *router; /* [rows][experts] logits */
    int32_t *expert;     /* [rows][top_k] */
    float *weight;       /* [rows][top_k] softmax over the chosen ones if renormalize, else over all */
    int32_t *offset;     /* [experts + 1] of `sorted` */
    int32_t *sorted;     /* [rows * top_k]: row * top_k + slot, by expert, ascending in each */
    uint32_t rows, experts, top_k, renormalize;
} nb_moe_route_args;

/* ---- calibration and quantization ---- */

typedef struct nb_range_args {
    const void *x;  /* [rows][k] of dtype */
    float *lo, *hi; /* per row (axis 0), column (1) or tensor (2); of a group in a row: [rows][k/group] */
    uint32_t *bad;  /* smallest row + 1 that holds a NaN or infinity, atomically; 0: none */
    uint32_t dtype, rows, k, group, axis;
} nb_range_args;

typedef struct nb_histogram_args {
    const void *x;
    uint64_t *bins; /* added to */
    uint64_t n;
    float width; /* of a bin */
    uint32_t dtype, n_bins;
} nb_histogram_args;

typedef struct nb_clip_search_args {
    const void *x;
    const float *lo, *hi;
    float *best_lo, *best_hi;
    uint32_t dtype, rows, k, group, bits, symmetric, steps;
} nb_clip_search_args;

typedef struct nb_gram_args {
    const void *x; /* [rows][k] of dtype */
    float *h;      /* [k][k], added to */
    uint32_t dtype, rows, k;
} nb_gram_args;

typedef struct nb_rtn_args {
    const void *x; /* [rows][k] of dtype */
    const float *lo, *hi;
    int8_t *codes;
    float *scales;
    int8_t *zeros;
    uint32_t dtype, rows, k, group, bits, symmetric, scale_dtype, per_tensor;
} nb_rtn_args;

enum nb_kernel {
#define X(name, file, threads, shared, sm, args) NB_K_##name,
    NB_CUDA_KERNEL_LIST(X)
#undef X
        NB_N_KERNELS
};

#endif
