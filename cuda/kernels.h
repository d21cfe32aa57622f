/* Every kernel that ships: its name, its file, its launch contract and its arguments.  Included by the kernels (CUDA
 * C++) and by the host (C11, C++ tests): the one place where both sides meet.
 *
 * A kernel takes one struct by value.  Activations have the type T of a suffix: _f16 (half) or _bf16 (bfloat16, sm_80
 * and newer); one source instantiates both.  Pointers are device pointers unless they say "host".  A kernel's file
 * opens with what it computes, in which order it sums, and what it needs of shapes and alignment; docs/numerics.md
 * has the formulas.
 */
#ifndef NB_CUDA_KERNELS_H
#define NB_CUDA_KERNELS_H

#include <stdint.h>

#include "attend.h"
#include "layout.h"

/* The large form of a linear layer comes in tiles of 64 P columns x 8 R rows of y, with the same bits from each:
 * name, P, R.  A kernel for each tile and type, nb_gemm_w4_r16_f16 ..., in this order. */
#define NB_GEMM_TILE_LIST(X, ...)                                                                                      \
    X(r16, 1, 2, __VA_ARGS__) X(r32, 1, 4, __VA_ARGS__) X(r64, 2, 8, __VA_ARGS__) X(r128, 1, 16, __VA_ARGS__)
/* The experts' layers: pieces of NB_GEMV_ROWS rows, or of NB_MOE_ROWS. */
#define NB_MOE_LINES(X, kind)                                                                                          \
    X(nb_moe_gemv_##kind##_f16, moe_gemv, 256, 99 * 1024, 75, nb_moe_gemm_args)                                        \
    X(nb_moe_gemv_##kind##_bf16, moe_gemv, 256, 99 * 1024, 80, nb_moe_gemm_args)                                       \
    X(nb_moe_gemm_##kind##_f16, moe_gemm, 128, 99 * 1024, 75, nb_moe_gemm_args)                                        \
    X(nb_moe_gemm_##kind##_bf16, moe_gemm, 128, 99 * 1024, 80, nb_moe_gemm_args)
#define NB_GEMM_LINES(X, name, file)                                                                                   \
    X(name##_r16_f16, file, 128, 99 * 1024, 75, nb_gemm_args)                                                          \
    X(name##_r16_bf16, file, 128, 99 * 1024, 80, nb_gemm_args)                                                         \
    X(name##_r32_f16, file, 128, 99 * 1024, 75, nb_gemm_args)                                                          \
    X(name##_r32_bf16, file, 128, 99 * 1024, 80, nb_gemm_args)                                                         \
    X(name##_r64_f16, file, 128, 99 * 1024, 75, nb_gemm_args)                                                          \
    X(name##_r64_bf16, file, 128, 99 * 1024, 80, nb_gemm_args)                                                         \
    X(name##_r128_f16, file, 128, 99 * 1024, 75, nb_gemm_args)                                                         \
    X(name##_r128_bf16, file, 128, 99 * 1024, 80, nb_gemm_args)

/* Both forms of a kind of weights, in one file (linear.cuh). */
#define NB_LINEAR_LINES(X, kind, file)                                                                                 \
    NB_GEMM_LINES(X, nb_gemm_##kind, file)                                                                             \
    X(nb_gemv_##kind##_f16, file, 256, 99 * 1024, 75, nb_gemv_args)                                                    \
    X(nb_gemv_##kind##_bf16, file, 256, 99 * 1024, 80, nb_gemv_args)

/* kernel, file (cuda/FILE.cu, one module), threads of a block, most dynamic shared memory in bytes, oldest
 * architecture, argument struct.  nb_cuda_launch() checks every launch against its line, and the device's limits. */
#define NB_CUDA_KERNEL_LIST(X)                                                                                         \
    /* rows */                                                                                                         \
    X(nb_embed, embed, 128, 0, 75, nb_embed_args)                                                                      \
    X(nb_rmsnorm_f16, rmsnorm, 256, 0, 75, nb_rmsnorm_args)                                                            \
    X(nb_rmsnorm_bf16, rmsnorm, 256, 0, 80, nb_rmsnorm_args)                                                           \
    X(nb_swiglu_f16, swiglu, 256, 48 * 1024, 75, nb_swiglu_args)                                                       \
    X(nb_swiglu_bf16, swiglu, 256, 48 * 1024, 80, nb_swiglu_args)                                                      \
    X(nb_quantize_rows_f16, quantize_rows, 256, 48 * 1024, 75, nb_quantize_rows_args)                                  \
    X(nb_quantize_rows_bf16, quantize_rows, 256, 48 * 1024, 80, nb_quantize_rows_args)                                 \
    X(nb_group_sums, quantize_rows, 256, 0, 75, nb_group_sums_args)                                                    \
    X(nb_gather_rows, gather_rows, 256, 0, 75, nb_gather_rows_args)                                                    \
    X(nb_permute_columns, permute_columns, 256, 0, 75, nb_permute_columns_args)                                        \
    X(nb_convert_f16, convert, 256, 0, 75, nb_convert_args)                                                            \
    X(nb_convert_bf16, convert, 256, 0, 80, nb_convert_args)                                                           \
    /* linear layers: gemm for many rows, gemv for up to NB_GEMV_ROWS; the same bits from both */                      \
    NB_GEMM_LINES(X, nb_gemm_dense, gemm_dense)                                                                        \
    NB_GEMM_LINES(X, nb_gemm_w8, gemm_w8)                                                                              \
    NB_GEMM_LINES(X, nb_gemm_w4, gemm_w4)                                                                              \
    NB_GEMM_LINES(X, nb_gemm_w8a8, gemm_w8a8)                                                                          \
    NB_GEMM_LINES(X, nb_gemm_w4a8, gemm_w4a8)                                                                          \
    X(nb_gemv_dense_f16, gemv_dense, 256, 99 * 1024, 75, nb_gemv_args)                                                 \
    X(nb_gemv_dense_bf16, gemv_dense, 256, 99 * 1024, 80, nb_gemv_args)                                                \
    X(nb_gemv_w8_f16, gemv_w8, 256, 99 * 1024, 75, nb_gemv_args)                                                       \
    X(nb_gemv_w8_bf16, gemv_w8, 256, 99 * 1024, 80, nb_gemv_args)                                                      \
    X(nb_gemv_w4_f16, gemv_w4, 256, 99 * 1024, 75, nb_gemv_args)                                                       \
    X(nb_gemv_w4_bf16, gemv_w4, 256, 99 * 1024, 80, nb_gemv_args)                                                      \
    X(nb_gemv_w8a8_f16, gemv_w8a8, 256, 99 * 1024, 75, nb_gemv_args)                                                   \
    X(nb_gemv_w8a8_bf16, gemv_w8a8, 256, 99 * 1024, 80, nb_gemv_args)                                                  \
    X(nb_gemv_w4a8_f16, gemv_w4a8, 256, 99 * 1024, 75, nb_gemv_args)                                                   \
    X(nb_gemv_w4a8_bf16, gemv_w4a8, 256, 99 * 1024, 80, nb_gemv_args)                                                  \
    /* after a product of cuBLASLt: x is its sums [rows][n] of the one part, int32 (PLAIN8) or fp32 (PLAIN) */         \
    X(nb_finish_sums_f16, finish_sums, 256, 0, 75, nb_gemm_args)                                                       \
    X(nb_finish_sums_bf16, finish_sums, 256, 0, 80, nb_gemm_args)                                                      \
    /* attention */                                                                                                    \
    X(nb_rope_append_f16, rope_append, 128, 0, 75, nb_rope_append_args)                                                \
    X(nb_rope_append_bf16, rope_append, 128, 0, 80, nb_rope_append_args)                                               \
    X(nb_attend_split_kv16_d128, attend_kv16, 128, 99 * 1024, 75, nb_attend_args)                                      \
    X(nb_attend_split_kv16_d256, attend_kv16, 128, 99 * 1024, 75, nb_attend_args)                                      \
    X(nb_attend_walk_kv16_d128, attend_kv16, 128, 99 * 1024, 75, nb_attend_args)                                       \
    X(nb_attend_walk_kv16_d256, attend_kv16, 128, 99 * 1024, 75, nb_attend_args)                                       \
    X(nb_attend_split_kv8_d128, attend_kv8, 128, 99 * 1024, 75, nb_attend_args)                                        \
    X(nb_attend_split_kv8_d256, attend_kv8, 128, 99 * 1024, 75, nb_attend_args)                                        \
    X(nb_attend_walk_kv8_d128, attend_kv8, 128, 99 * 1024, 75, nb_attend_args)                                         \
    X(nb_attend_walk_kv8_d256, attend_kv8, 128, 99 * 1024, 75, nb_attend_args)                                         \
    X(nb_attend_split_kv4_d128, attend_kv4, 128, 99 * 1024, 75, nb_attend_args)                                        \
    X(nb_attend_split_kv4_d256, attend_kv4, 128, 99 * 1024, 75, nb_attend_args)                                        \
    X(nb_attend_walk_kv4_d128, attend_kv4, 128, 99 * 1024, 75, nb_attend_args)                                         \
    X(nb_attend_walk_kv4_d256, attend_kv4, 128, 99 * 1024, 75, nb_attend_args)                                         \
    X(nb_attend_merge_f16, attend_merge, 128, 0, 75, nb_attend_args)                                                   \
    X(nb_attend_merge_bf16, attend_merge, 128, 0, 80, nb_attend_args)                                                  \
    /* the end of a step */                                                                                            \
    X(nb_sample, sample, 1024, 0, 75, nb_sample_args)                                                                  \
    /* mixture of experts */                                                                                           \
    X(nb_moe_route, moe_route, 256, 0, 75, nb_moe_route_args)                                                          \
    X(nb_moe_sort, moe_route, 256, 0, 75, nb_moe_route_args)                                                           \
    NB_MOE_LINES(X, dense)                                                                                             \
    NB_MOE_LINES(X, w8)                                                                                                \
    NB_MOE_LINES(X, w4)                                                                                                \
    NB_MOE_LINES(X, w8a8)                                                                                              \
    /* calibration and quantization */                                                                                 \
    X(nb_range, range, 256, 0, 75, nb_range_args)                                                                      \
    X(nb_observer_widen, histogram, 256, 0, 75, nb_histogram_args)                                                     \
    X(nb_histogram, histogram, 256, 0, 75, nb_histogram_args)                                                          \
    X(nb_clip_search, clip_search, 256, 0, 75, nb_clip_search_args)                                                    \
    X(nb_gram, gram, 256, 0, 75, nb_gram_args)                                                                         \
    X(nb_rtn, rtn, 256, 0, 75, nb_rtn_args)                                                                            \
    /* weights that are not on an even grid */                                                                         \
    NB_GEMM_LINES(X, nb_gemm_nf4, gemm_nf4)                                                                            \
    X(nb_gemv_nf4_f16, gemv_nf4, 256, 99 * 1024, 75, nb_gemv_args)                                                     \
    X(nb_gemv_nf4_bf16, gemv_nf4, 256, 99 * 1024, 80, nb_gemv_args)                                                    \
    X(nb_sign_rows_f16, xnor, 256, 0, 75, nb_sign_rows_args)                                                           \
    X(nb_sign_rows_bf16, xnor, 256, 0, 80, nb_sign_rows_args)                                                          \
    X(nb_xnor_f16, xnor, 256, 0, 75, nb_gemm_args)                                                                     \
    X(nb_xnor_bf16, xnor, 256, 0, 80, nb_gemm_args)                                                                    \
    /* beside linear layers: single numbers, outliers */                                                               \
    X(nb_sparse_few_f16, sparse_rows, 256, 0, 75, nb_sparse_args)                                                      \
    X(nb_sparse_few_bf16, sparse_rows, 256, 0, 80, nb_sparse_args)                                                     \
    X(nb_sparse_many_f16, sparse_rows, 256, 0, 75, nb_sparse_args)                                                     \
    X(nb_sparse_many_bf16, sparse_rows, 256, 0, 80, nb_sparse_args)                                                    \
    X(nb_quantize_outliers_f16, quantize_outliers, 256, 48 * 1024, 75, nb_quantize_outliers_args)                      \
    X(nb_quantize_outliers_bf16, quantize_outliers, 256, 48 * 1024, 80, nb_quantize_outliers_args)                     \
    /* rotations */                                                                                                    \
    X(nb_rotate_in_f16, rotate, 256, 227 * 1024, 75, nb_rotate_in_args)                                                \
    X(nb_rotate_in_bf16, rotate, 256, 227 * 1024, 80, nb_rotate_in_args)                                               \
    X(nb_rotate_out_f16, rotate, 256, 227 * 1024, 75, nb_rotate_out_args)                                              \
    X(nb_rotate_out_bf16, rotate, 256, 227 * 1024, 80, nb_rotate_out_args)                                             \
    X(nb_rope_rotate_f16, rope_rotate, 128, 0, 75, nb_rope_rotate_args)                                                \
    X(nb_rope_rotate_bf16, rope_rotate, 128, 0, 80, nb_rope_rotate_args)                                               \
    /* statistics of inputs */                                                                                         \
    X(nb_abs_sum, abs_sum, 256, 0, 75, nb_abs_sum_args)                                                                \
    /* zero points in sixteenths */                                                                                    \
    NB_GEMM_LINES(X, nb_gemm_w4f, gemm_w4f)                                                                            \
    X(nb_gemv_w4f_f16, gemv_w4f, 256, 99 * 1024, 75, nb_gemv_args)                                                     \
    X(nb_gemv_w4f_bf16, gemv_w4f, 256, 99 * 1024, 80, nb_gemv_args)                                                    \
    /* 2 and 3 bits */                                                                                                 \
    NB_LINEAR_LINES(X, w2, w2)                                                                                         \
    NB_LINEAR_LINES(X, w2a8, w2a8)                                                                                     \
    NB_LINEAR_LINES(X, w3, w3)                                                                                         \
    NB_LINEAR_LINES(X, w3a8, w3a8)

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

/* Where a producer puts its rows: NULL for a form that nobody wants.  Codes are laid out as NB_K_ORDER says, rows of
 * k_pad = k rounded up to NB_TILE_K, zero beyond k. */
typedef struct nb_act_out {
    void *y;      /* T [rows][k] */
    int8_t *q;    /* [rows][k_pad] */
    float *scale; /* [rows]; NaN for a row that holds a NaN or an infinity */
} nb_act_out;

/* Shared memory that keeps a row of T while it is quantized; 0: too long. */
#define NB_ROW_SHARED(k) ((k) <= 24 * 1024 ? 2 * (k) : 0)

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
/* Lanes of a warp that share a group: a power of two, as many as it has pieces of 16. */
#define NB_SUM_LANES(len) ((len) <= 16 ? 1u : (len) <= 32 ? 2u : (len) <= 64 ? 4u : (len) <= 128 ? 8u : 32u)

/* y[r][j] = x[r][perm[j]]: the inputs of an act-ordered layer, in the order of its columns. */
typedef struct nb_permute_columns_args {
    const void *x; /* T [rows][k] */
    void *y;
    const uint32_t *perm; /* [k] */
    uint32_t rows, k;
} nb_permute_columns_args;

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

/* The decode form: how the work is cut and where it lies in shared memory; gemv_plan.h explains and fills it. */
typedef struct nb_gemv_args {
    nb_gemm_args g;
    uint32_t panels, round, rounds;                                   /* of a tile; tasks of a round; rounds */
    uint32_t group_len, groups, per_group, per_task, segments, tasks; /* of K */
    uint32_t x_stride, x_bytes, round_segments, round_groups;
    uint32_t parts, part_bytes, meta, zeros, meta_bytes;
} nb_gemv_args;

/* Dynamic shared memory of the large form: a ring of stages (x, weights, and the scales and zero points of up to
 * NB_TILE_GROUPS groups that begin in a tile), later the sums on their way to y.  x_bytes: of an element of x.  About
 * 48 KB, so that two blocks fit a multiprocessor of 99 KB, but three stages at least; sm_75 has two. */
#define NB_TILE_GROUPS 4
#define NB_GEMM_STAGE(kind, x_bytes, P, R)                                                                             \
    (8 * (R)*NB_TILE_K * (x_bytes) +                                                                                   \
     4 * (P) * (NB_UNITS(kind) * NB_UNIT + ((kind) == NB_W_DENSE ? 0 : NB_TILE_GROUPS * NB_TILE_N * 5)))
#define NB_GEMM_STAGES(stage) (48 * 1024 / (stage) < 3 ? 3 : 48 * 1024 / (stage) > 8 ? 8 : 48 * 1024 / (stage))
#define NB_GEMM_OUT(P, R)     (4 * 8 * (R) * (16 * (P) + 4) * 4)
#define NB_GEMM_SHARED(stage, stages, P, R)                                                                            \
    ((stage) * (stages) > NB_GEMM_OUT(P, R) ? (stage) * (stages) : NB_GEMM_OUT(P, R))

enum { NB_DST_ACT, NB_DST_RESIDUAL, NB_DST_F32 }; /* T; fp32 y += result; fp32 */

/* ---- attention ---- */

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

/* A piece of attention: query rows row0 .. row0+n_rows-1, which are consecutive tokens of one sequence, all heads.
 *   split  against the keys of one chunk; a partial result for each row that sees a key of it
 *   walk   against all chunks, merged as they come; no partial results (chunk is not read) */
typedef struct nb_attend_item {
    uint32_t row0, n_rows, chunk;
} nb_attend_item;

#define NB_NO_SLOT 0xffffffffu /* of a row without partial results */

typedef struct nb_attend_args {
    const void *qkv; /* T [rows][n_heads + 2 n_kv_heads][head_dim], after rope_append */
    void *y;         /* T [rows][n_heads][head_dim] */
    nb_kv_args kv;
    nb_step_args step;
    const nb_attend_item
        *items;               /* [*n_items], of the kernel's kind; blocks take item * n_kv_heads + kv head in turns */
    const uint32_t *n_items;  /* in device memory: a recorded launch does not know it */
    const uint32_t *row_slot; /* [rows] first partial result of a row, one for each chunk of its keys; NB_NO_SLOT */
    float *part_o;            /* [slots][n_heads][head_dim] */
    float *part_ml;           /* [slots][n_heads][2] */
    nb_attend_shape shape;    /* split, walk */
    float scale;              /* of scores, times log2(e): probabilities are powers of two */
    uint32_t rows, n_heads;
    uint32_t dtype; /* NB_T_* of T */
} nb_attend_args;

/* ---- sampling ---- */

typedef struct nb_sample_row {
    float temperature, top_p, min_p; /* temperature 0: the best token */
    int32_t top_k;                   /* 0: off */
    uint32_t share;                  /* the random number u in [0, 1), times 2^24 */
    uint32_t want_sum;               /* 0: `sum` of the result is not computed */
} nb_sample_row;

/* The log-probability of the token is logit - best - log(sum * 2^-NB_WEIGHT_BITS): left to the host, whose log
 * decides. */
typedef struct nb_sampled {
    uint64_t sum;
    float logit, best; /* of the token, and the largest of the row */
    int32_t token;     /* -1: the row holds a NaN or +infinity, or nothing finite */
    uint32_t unused;
} nb_sampled;

#define NB_WEIGHT_BITS 43 /* a weight e^x, x <= 0, is an integer in units of 2^-43, so that sums have no order */

typedef struct nb_sample_args {
    const float *logits;      /* [n][vocab] */
    const nb_sample_row *row; /* [n] */
    nb_sampled *out;          /* [n] */
    uint32_t n, vocab;        /* vocab <= 2^20 */
} nb_sample_args;

/* ---- mixture of experts ---- */

/* nb_moe_route writes expert and weight, nb_moe_sort then offset and sorted. */
typedef struct nb_moe_route_args {
    const float *router; /* [rows][experts] logits */
    int32_t *expert;     /* [rows][top_k] */
    float *weight;       /* [rows][top_k] softmax over the chosen ones if renormalize, else over all */
    int32_t *offset;     /* [experts + 1] of `sorted` */
    int32_t *sorted;     /* [rows * top_k]: row * top_k + slot, by expert, ascending in each */
    uint32_t rows, experts, top_k, renormalize; /* experts <= 512, top_k <= experts, rows * top_k < 2^31 */
} nb_moe_route_args;

/* y[i] = the layer of assignment i's expert on its row of x, for the assignments of a step in the order of `sorted`.
 * Experts may have any number of rows, also none; a result has the bits of the expert's layer alone.
 *   v        an expert's layer: n, k, k_tiles, groups, group_len, kind are those of every expert; x, x_scale, x_sums
 *            of all rows; y [assignments][ldy]; dst T or fp32.  gemv: nb_gemv_plan() for NB_GEMV_ROWS rows
 *   launch   pieces: NB_MOE_PIECES(assignments, experts, NB_GEMV_ROWS or NB_MOE_ROWS); blocks beyond them end
 *            gemv: grid (any, pieces), shared memory as planned
 *            gemm: grid (pieces, ceil(n / NB_MOE_COLUMNS)), shared memory NB_GEMM_SHARED for P 1, R 4 */
#define NB_MOE_ROWS    32
#define NB_MOE_COLUMNS 64
#define NB_MOE_PIECES(assignments, experts, rows)                                                                      \
    ((assignments) / (rows) + ((assignments) < (experts) ? (assignments) : (experts)))
typedef struct nb_moe_gemm_args {
    nb_gemv_args v;
    const nb_packed *experts;       /* [n_experts], in device memory */
    const int32_t *offset, *sorted; /* nb_moe_sort's */
    uint32_t n_experts;
    uint32_t top_k; /* assignment i reads row sorted[i] / top_k of x; 0: row i */
} nb_moe_gemm_args;

/* ---- calibration and quantization.  Arrays [rows][k] have the type dtype: NB_T_* ---- */

/* A float as an unsigned integer in the same order (quant/range.h, with the sign bit turned).  Extremes travel as
 * such numbers: hi is the largest key, lo the complement of the smallest, so that both grow by maximum from zeroed
 * memory.  NaNs lie beyond the infinities. */
#define NB_KEY_OF_BITS(u) ((u)&0x80000000u ? ~(u) : (u) | 0x80000000u)
#define NB_BITS_OF_KEY(k) ((k)&0x80000000u ? (k)&0x7fffffffu : ~(k))
#define NB_KEY_FINITE(k)  ((k) <= 0xff7fffffu && (k) >= 0x00800000u) /* keys of -FLT_MAX .. FLT_MAX */

enum { NB_RANGE_GROUP, NB_RANGE_COLUMN, NB_RANGE_TENSOR };

typedef struct nb_range_args {
    const void *x;
    uint32_t *lo, *hi; /* ~key and key of the extremes; GROUP: [rows][k/group], written; else [k] or [1], raised */
    uint32_t *bad;     /* raised to ~row for a row that holds a NaN or an infinity; or NULL */
    uint32_t dtype, rows, k, group, axis;
    uint32_t team; /* GROUP: threads that share a group: 1, 2, 4 .. 32 or 256 */
} nb_range_args;

/* An observer in device memory; all zeros is one that has seen nothing.  quant/observer.h says what the fields mean. */
#define NB_OBSERVER_BINS 4096
typedef struct nb_observer_state {
    float lo, hi, half_range;
    uint32_t bad;
    uint64_t count;
    uint32_t key_lo, key_hi; /* of the batch under way: nb_range fills them, nb_observer_widen takes them */
    uint64_t bins[NB_OBSERVER_BINS];
} nb_observer_state;

typedef struct nb_histogram_args {
    const void *x;
    nb_observer_state *o;
    uint64_t n;
    uint32_t dtype;
} nb_histogram_args;

typedef struct nb_clip_search_args {
    const void *x;
    float *lo, *hi; /* [rows][k/group] */
    float *error;   /* likewise */
    uint32_t dtype, rows, k, group, bits, symmetric, scale_dtype, candidates;
    float step;
} nb_clip_search_args;

#define NB_GRAM_ROWS 128 /* rows summed before a partial sum is added */
typedef struct nb_gram_args {
    const void *x;
    float *h; /* [k][k], added to */
    uint32_t dtype, rows, k;
} nb_gram_args;

typedef struct nb_rtn_args {
    const void *x;
    int8_t *codes;    /* [rows][k], or NULL */
    uint32_t *packed; /* [rows][k/8], or NULL; group a multiple of 8 */
    float *scales;    /* [rows][k/group]; NULL: every group has the grid scale, zero */
    int8_t *zeros;    /* [rows][k/group]; NULL when symmetric */
    float scale;
    int32_t zero;
    uint32_t dtype, rows, k, group, bits, symmetric, scale_dtype;
    uint32_t team; /* threads that share a group: 1, 2, 4 .. 32 or 256 */
} nb_rtn_args;

/* ---- signs on both sides: xnor.cu; nb_xnor takes nb_gemm_args, x its bits, dst as there ---- */

#define NB_XNOR_ROWS    8
#define NB_XNOR_COLUMNS 32

typedef struct nb_sign_rows_args {
    const void *x;  /* T [rows][k] */
    uint32_t *bits; /* [rows][NB_XNOR_WORDS(k)] */
    float *scale;   /* [rows] */
    uint32_t rows, k;
} nb_sign_rows_args;

/* ---- beside linear layers ---- */

typedef struct nb_sparse_args {
    const uint32_t *row;   /* [n+1] */
    const uint32_t *entry; /* [nnz]: column, and value as half << 16 */
    const void *x;         /* T [rows][k] */
    void *y;               /* [rows][ldy], added to */
    uint32_t rows, n, k, ldy;
    uint32_t dst; /* NB_DST_ACT: T, else fp32 */
} nb_sparse_args;

typedef struct nb_quantize_outliers_args {
    nb_quantize_rows_args rows;
    const uint8_t *keep; /* [k/8] */
} nb_quantize_outliers_args;

/* ---- rotations: base/rotation.h ---- */

typedef struct nb_rotation {
    const int8_t *signs;  /* [k]; NULL (of outputs alone): no rotation */
    const float *hartley; /* [h][h]; not read where h is 1 */
    uint32_t h, m;        /* k = h * m */
    float unit;
} nb_rotation;

#define NB_ROTATE_SHARED(k) (((k) + 31) / 32 * 128)

typedef struct nb_rotate_in_args {
    void *x;        /* T [rows][k], in place */
    nb_act_out out; /* codes of it; y is not written */
    nb_rotation r;
    uint32_t rows, k;
} nb_rotate_in_args;

typedef struct nb_rotate_out_args {
    const float *x;    /* [rows][k] */
    const float *bias; /* [k] or NULL */
    void *y;           /* of the first column */
    nb_rotation r;
    uint32_t rows, k, ldy;
    uint32_t dst; /* NB_DST_* */
} nb_rotate_out_args;

typedef struct nb_rope_rotate_args {
    nb_rope_append_args rope;
    const float *hartley; /* [h][h], h the odd part of head_dim; not read where it is 1 */
    uint32_t h;
    float unit;
} nb_rope_rotate_args;

typedef struct nb_abs_sum_args {
    const void *x;
    double *sums; /* [k], added to */
    uint32_t dtype, rows, k;
} nb_abs_sum_args;

enum nb_kernel {
#define X(name, file, threads, shared, sm, args) NB_K_##name,
    NB_CUDA_KERNEL_LIST(X)
#undef X
        NB_N_KERNELS
};

#endif
