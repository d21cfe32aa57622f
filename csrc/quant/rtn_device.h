/* Round to nearest on a device: a weight streams through it in slabs of rows.  Private to rtn.c. */
#ifndef NB_QUANT_RTN_DEVICE_H
#define NB_QUANT_RTN_DEVICE_H

#include "backend/quant_ops.h"

typedef struct nbi_rtn_stream {
    nbi_backend *be; /* be->quant is not NULL */
    const nbi_weight *src;
    const nbi_weight *out; /* allocated for its scheme */
    int threads;
    size_t slab_rows;
    void *x; /* on the device: one slab of the source and all that is made of it */
    nbi_codes made;
    uint32_t *words; /* on the host: a slab of packed codes, or NULL */
} nbi_rtn_stream;

/* s: the members up to `threads` are set.  Takes memory for slabs of up to `slab_bytes` of the source, at least a row. */
nb_status nbi_rtn_stream_open(nbi_rtn_stream *s, size_t slab_bytes);
void nbi_rtn_stream_close(nbi_rtn_stream *s);

/* The extremes of the whole weight; *bad_row SIZE_MAX, or a row with a NaN or an infinity. */
nb_status nbi_rtn_stream_range(nbi_rtn_stream *s, float *lo, float *hi, size_t *bad_row);

/* Fills out->codes, and unless `fixed` is given out->scales (NaN where a group is not finite) and out->zeros. */
nb_status nbi_rtn_stream_codes(nbi_rtn_stream *s, nbi_dtype scale_dtype, const nbi_fixed_grid *fixed);

#endif
