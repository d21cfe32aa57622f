/* The waist of the hourglass: one canonical weight matrix.  Every importer and every method produces it, every
 * exporter reads it, every backend packs it into the layout that its kernels want.
 *
 * A linear layer computes y[n] = bias[n] + sum over k of W[n][k] * x[k]; N = out features (rows), K = in features.
 */
#ifndef NB_BASE_WEIGHT_H
#define NB_BASE_WEIGHT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/status.h"

typedef enum nbi_strategy { NBI_PER_TENSOR, NBI_PER_CHANNEL, NBI_PER_GROUP } nbi_strategy;

typedef enum nbi_act {
    NBI_ACT_NONE,   /* activations stay in floating point */
    NBI_ACT_TOKEN,  /* INT8, one scale a token, measured at run time: s = absmax/127 */
    NBI_ACT_TENSOR, /* INT8, one scale for all tokens, from calibration */
    NBI_ACT_SIGN    /* one bit: x ~ sign(x) * mean|x| of the token, sign(0) = 1 */
} nbi_act;

/* What a code stands for.  Everything but INT is symmetric. */
typedef enum nbi_kind {
    NBI_KIND_INT, /* (code - zero) * scale */
    NBI_KIND_NF4, /* nbi_nf4[code + 8] * scale: base/nf4.h; 4 bits, groups */
    NBI_KIND_E8P, /* code * scale, eight codes side by side a point of QuIP#'s lattice: base/e8p.h; 2 or 4 bits, per tensor */
    NBI_KIND_BINARY /* code * scale, codes -1 and 1; 1 bit, per channel */
} nbi_kind;

/* How the numbers of one linear layer are mapped to integers.  bits 0: not quantized (then the rest is unused). */
typedef struct nbi_scheme {
    uint8_t bits; /* 0 dense; 2, 3, 4, 8, and what the kind says: bits of a code in a file */
    nbi_kind kind;
    bool symmetric;    /* no zero point */
    uint8_t zero_frac; /* bits of a zero point behind the point: 0, or 4: nbi_weight.zeros counts sixteenths */
    nbi_strategy strategy;
    uint32_t group; /* NBI_PER_GROUP: elements along K that share a scale; else 0 */
    nbi_act act;
    bool act_symmetric;
    bool act_order;             /* columns are stored in another order than the inputs': nbi_weight.perm */
    bool rotate_in, rotate_out; /* nbi_weight.in_signs, out_signs */
    bool outliers;              /* nbi_weight.outlier: columns that INT8 activations leave out; implies sparse */
    bool sparse;                /* nbi_weight.sparse */
    bool nested;                /* nbi_weight.nested */
    size_t
        nnz; /* of the sparse part, for the memory plan: who reads a file knows it from the header; no part of what a scheme is */
} nbi_scheme;

/* Single numbers beside the codes, by rows (CSR). */
typedef struct nbi_sparse {
    size_t nnz;
    uint32_t *row; /* [N+1]: row n has the entries row[n] .. row[n+1]-1 */
    uint32_t *col; /* [nnz], ascending within a row */
    float *value;  /* [nnz], numbers of fp16 */
} nbi_sparse;

/* Scales and zero points that are numbers of a grid themselves (SpQR): what a file holds, scales and zeros are made of it.
 *     scales[n][g] = fma(scale_code, step, base)     zeros[n][g] = rne(fma(zero_code, step, base)), limited to the codes' range */
typedef struct nbi_nested {
    uint8_t bits;                  /* of a code */
    uint32_t rows;                 /* rows of W that share a grid in a group of columns; the last ones may be fewer */
    uint8_t *scale_code;           /* [N,G] below 2^bits */
    uint8_t *zero_code;            /* [N,G] */
    float *scale_grid, *zero_grid; /* [ceil(N/rows)][G][2] {base, step}: numbers of fp16 */
} nbi_nested;

/* Groups in a row of K elements: 1 for per-tensor and per-channel.  K must be a multiple of the group. */
static inline size_t nbi_scheme_groups(const nbi_scheme *s, size_t k)
{
    return s->strategy == NBI_PER_GROUP ? k / s->group : 1;
}

/* What a scheme is in memory: E8P's codes are multiplied with INT8 activations as the INT8 that they are; with others they stay
 * words. */
static inline nbi_scheme nbi_scheme_packed(const nbi_scheme *s)
{
    nbi_scheme p = *s;
    if (s->bits && s->kind == NBI_KIND_E8P && s->act != NBI_ACT_NONE) {
        p.kind = NBI_KIND_INT;
        p.bits = 8;
    }
    return p;
}

/* Codes on an even grid and nothing beside them, in the order of inputs or not: what rounding to nearest makes. */
static inline bool nbi_scheme_is_plain(const nbi_scheme *s)
{
    return !s->bits || (s->kind == NBI_KIND_INT && !s->zero_frac && !s->rotate_in && !s->rotate_out && !s->outliers &&
                        !s->sparse && !s->nested);
}

/* Fractions of zero points: NB_EUNSUPPORTED where nothing computes with them.  They go with 2, 3 and 4 bits, asymmetric, and float
 * activations. */
nb_status nbi_scheme_check_zeros(const nbi_scheme *s);

/* "bf16" has no scheme; else "W8A8 channel", "W4A16 g128 asym", "W8A8-static tensor" ... */
void nbi_scheme_name(const nbi_scheme *s, char out[48]);

/* With act_order (GPTQ's desc_act) the columns stand in the order in which groups have them: column j belongs to input
 * perm[j], y[n] = bias[n] + sum over j of W[n][j] * x[perm[j]].
 *
 * With rotations, T the orthogonal, symmetric matrix of base/rotation.h:
 *     y = bias + diag(out_signs) T_N (W T_K (diag(in_signs) x))
 * where either side may be missing.  With outliers, the columns listed are 0 in W, activations are quantized as if these inputs
 * were 0, and the sparse part holds
 * these columns, whole, and nothing else.  The sparse part S adds S x, x as it came, its columns by inputs.  A rotation
 * stands alone: act_order and sparse parts, without outliers, go together.
 *
 * W[n][k] = dense[n*K + k], or (codes[n*K + k] - zeros[n*G + g]) * scales[n*G + g] with g = k / (K/G).  With zero_frac the zero
 * point is zeros / 16: code - zero is a number of sixteenths below 2^8, which half and bfloat16 hold. */
typedef struct nbi_weight {
    size_t n, k;
    nbi_scheme scheme;

    nbi_dtype dense_dtype; /* bits == 0: F32, F16 or BF16 */
    const void *dense;     /* bits == 0: [N,K]; usually a view into a mapped file */

    int8_t *codes; /* [N,K], one signed code a byte, in -2^(b-1) .. 2^(b-1)-1; with E8P whatever base/e8p.h says */
    float *scales; /* [N,G]; per-tensor: N equal values */
    int8_t *zeros; /* [N,G] in the range of the codes (zero_frac: any); NULL when symmetric */
    /* E8P: [N, K/8, bits/2], the words that the codes are made from, as in a file; else NULL */
    uint16_t *words;

    uint32_t *perm; /* [K], each below K; NULL unless scheme.act_order */
    int8_t
        *in_signs; /* [K] of 1 and -1; NULL unless scheme.rotate_in.  Layers with the same input have the same ones */
    int8_t *out_signs; /* [N]; NULL unless scheme.rotate_out */
    uint32_t *
        outlier; /* [n_outliers] ascending; NULL where there are none.  Layers with the same input have the same ones */
    size_t n_outliers;
    nbi_sparse sparse; /* nnz 0 and NULLs unless scheme.sparse */
    nbi_nested nested; /* NULLs unless scheme.nested */
    float *bias;       /* [N] or NULL */
    float act_scale;   /* NBI_ACT_TENSOR: x = (q - act_zero) * act_scale */
    int32_t act_zero;  /* in -128 .. 127; 0 when act_symmetric */

    void *owned; /* freed by nbi_weight_free() if `dense` is not a view */
} nbi_weight;

/* Zero point number `at` of zeros. */
static inline float nbi_weight_zero(const nbi_weight *w, size_t at)
{
    return w->zeros ? (float)w->zeros[at] / (float)(1 << w->scheme.zero_frac) : 0;
}

/* Allocates codes, scales, (asymmetric) zeros and (E8P) words for n, k and scheme, which must be set. */
nb_status nbi_weight_alloc(nbi_weight *w);
/* A copy with members of its own, but for `dense`, which stays a view of what w has. */
nb_status nbi_weight_copy(nbi_weight *out, const nbi_weight *w);
void nbi_weight_free(nbi_weight *w); /* frees the members, zeroes the struct */

/* What every backend asks of a weight for INT8 activations: scale and zero point are usable, and the exact sum of a group,
 * sum of (q - zx)(code - z) over group_len products, fits an int32.  Intermediate sums may wrap: they are modulo 2^32. */
nb_status nbi_weight_check_act(const nbi_weight *w, size_t group_len);

/* Room for nested.bits and .rows, which must be set; and scales and zeros made of what is there. */
nb_status nbi_weight_alloc_nested(nbi_weight *w);
void nbi_weight_unnest(nbi_weight *w);
void nbi_weight_unnest_group(nbi_weight *w, size_t row0, size_t n, size_t group); /* of rows row0 .. row0+n-1 */

/* The sparse part and the outliers go with the scheme, and stay within the weight. */
nb_status nbi_weight_check_sparse(const nbi_weight *w);

/* The order of columns goes with the scheme, and stays within K. */
nb_status nbi_weight_check_order(const nbi_weight *w);

/* Row n as fp32, by inputs: dst[K], without rotations and the sparse part. */
void nbi_weight_row(const nbi_weight *w, size_t n, float *dst);

/* All of it, dst [N][K]: rotated back, the sparse part added, so that y = dst x + bias.  The reference for what a weight means. */
nb_status nbi_weight_dense(const nbi_weight *w, float *dst, int threads);

#endif
