/* What a block of the KV cache holds: backend.h has the layout and the formulas of nbi_kv_type.  This is their
 * reference on the host, one token of one kv head at a time; a device's kernels store the same codes and scales bit for
 * bit. */
#ifndef NB_BACKEND_KV_H
#define NB_BACKEND_KV_H

#include "backend/backend.h"

/* The option kv_dtype of the public API: a name, or NULL for the type that suits the device. */
nb_status nbi_kv_option(nbi_kv_type *out, const nbi_backend *b, const char *name);

/* Where the scales begin in a block of INT8 or INT4 (nbi_kv_block_bytes() for the other types, which have none). */
static inline size_t nbi_kv_scales_at(nbi_kv_type type, uint32_t head_dim)
{
    const size_t elements = (size_t)NBI_PAGE_TOKENS * head_dim;
    return type == NBI_KV_INT4   ? elements / 2
           : type == NBI_KV_INT8 ? elements
                                 : elements << (type == NBI_KV_F16 ? 1 : 2);
}

/* Runs of INT4 in a head. */
static inline uint32_t nbi_kv4_runs(uint32_t head_dim)
{
    return head_dim / NBI_KV4_RUN + (head_dim % NBI_KV4_RUN != 0);
}

/* x[head_dim] becomes token `slot` (below NBI_PAGE_TOKENS) of a block, which is at least 4-byte aligned. */
void nbi_kv_encode(nbi_kv_type type, void *block, uint32_t slot, uint32_t head_dim, const float *x);

/* x[head_dim] = token `slot` of a block. */
void nbi_kv_decode(nbi_kv_type type, const void *block, uint32_t slot, uint32_t head_dim, float *x);

#endif
