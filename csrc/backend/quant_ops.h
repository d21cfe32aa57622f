/* What a device may offer for quantization: nbi_backend.quant, NULL where csrc/quant's own code on the host is all there
 * is.  Each operation has a definition there and gives the same bits: ranges quant/range.h, codes quant/grid.h and
 * quant/rtn.h, histograms quant/observer.h, clips quant/clip.h, Gram matrices quant/gram.h.
 *
 * Pointers are device memory of the backend unless they say "host".  Operations are asynchronous where the device is; those
 * with results on the host wait for them.  All belong between lock() and unlock().  A scheme without a kernel is
 * NB_EUNSUPPORTED, and the caller computes on the host. */
#ifndef NB_BACKEND_QUANT_OPS_H
#define NB_BACKEND_QUANT_OPS_H

#include "backend/backend.h"
#include "base/histogram.h"

/* Row-major [rows][k] without gaps, F32, F16 or BF16, 16-byte aligned; less than 2^31 rows and k. */
typedef struct nbi_matrix {
    const void *x;
    nbi_dtype dtype;
    size_t rows, k;
} nbi_matrix;

/* What shares an entry of a range. */
typedef enum nbi_range_axis {
    NBI_RANGE_GROUP, /* `group` neighbours of a row; group == k: a row, that is a channel of a weight, a token of activations */
    NBI_RANGE_COLUMN, /* a column: an input channel */
    NBI_RANGE_TENSOR  /* everything */
} nbi_range_axis;

/* The grid of a whole tensor. */
typedef struct nbi_fixed_grid {
    float scale;
    int32_t zero;
} nbi_fixed_grid;

/* Codes of a slab of rows as the device gives them. */
typedef struct nbi_codes {
    int8_t *codes; /* [rows][k], or NULL */
    uint32_t *
        packed; /* 4 bits: [rows][ceil(k/8)] words as compressed-tensors packs them (code + 8, low bits first), or NULL */
    float *scales; /* [rows][groups]; NaN: the group holds a NaN or an infinity */
    int8_t *zeros; /* [rows][groups]; NULL when symmetric */
} nbi_codes;

/* The clip that loses least: see quant/clip.h. */
typedef struct nbi_clip_spec {
    unsigned bits;
    bool symmetric;
    nbi_dtype scale_dtype;
    uint32_t candidates; /* > 0; candidate i is the full range times 1 - i * step */
    float step;          /* (candidates - 1) * step < 1 */
} nbi_clip_spec;

typedef struct nbi_quant_ops {
    /* The type of the backend's activations. */
    nbi_dtype (*act_dtype)(nbi_backend *b);

    /* Extremes: lo, hi host [rows * k/group], [k] or [1].  lo NULL: hi gets the largest magnitude.  *bad_row (host, may be
     * NULL): the first row that holds a NaN or an infinity, SIZE_MAX if none does; entries with such a value are NaN. */
    nb_status (*range)(nbi_backend *b, const nbi_matrix *m, nbi_range_axis axis, size_t group, float *lo, float *hi,
                       size_t *bad_row);

    /* Round to nearest: codes, scales and zero points of a weight's rows by its scheme.  fixed: the grid of every group
     * (scales and zeros are not written then), else NULL. */
    nb_status (*rtn)(nbi_backend *b, const nbi_matrix *m, const nbi_scheme *s, nbi_dtype scale_dtype,
                     const nbi_fixed_grid *fixed, const nbi_codes *out);
    /* Whether rtn() can write `packed` for this scheme. */
    bool (*packs)(const nbi_scheme *s, size_t k);

    /* An observer is observer_bytes() of zeroed device memory. */
    size_t (*observer_bytes)(void);
    nb_status (*observe)(nbi_backend *b, void *observer, const nbi_matrix *m);
    nb_status (*observer_read)(nbi_backend *b, const void *observer, nbi_observer *out);

    /* lo, hi, error: host [rows][k/group]; error may be NULL. */
    nb_status (*clip_search)(nbi_backend *b, const nbi_matrix *m, size_t group, const nbi_clip_spec *spec, float *lo,
                             float *hi, float *error);

    /* h [k][k] fp32 += X^T X. */
    nb_status (*gram_add)(nbi_backend *b, const nbi_matrix *m, float *h);

    /* sums [k] fp64 += |x| of each column, in ascending rows: quant/inputs.h. */
    nb_status (*abs_sum_add)(nbi_backend *b, const nbi_matrix *m, double *sums);
} nbi_quant_ops;

#endif
