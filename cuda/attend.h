/* The shared memory of the attention kernels: kernel and host count it in the same way.
 *
 *   stages   tiles of K or V: `keys` rows of `pieces` pieces of 16 bytes (codes as they lie in the cache, padded with zeros to a
 *            multiple of 32 dimensions), then the scales of the tile
 *   q        half [rows][32 * blocks]      p   half [rows][128], the probabilities of a chunk
 *   max, sum fp32 [4 warps][rows]          ab  fp32 [rows][2]       pos  int32 [rows]
 *
 * Rows of 16-byte pieces are swizzled so that ldmatrix, which reads one column of eight rows, meets every bank once: piece c of
 * row r lies at r * stride + (c ^ ((r >> shift) & mask)); where the number of pieces allows no such exchange, the stride is odd. */
#ifndef NB_CUDA_ATTEND_H
#define NB_CUDA_ATTEND_H

#include <stdint.h>

enum { NB_KV_F32, NB_KV_F16, NB_KV_INT8, NB_KV_INT4 }; /* nbi_kv_type; F32 has no kernel */

#ifdef __CUDACC__
#define NB_BOTH static __host__ __device__ inline
#else
#define NB_BOTH static inline
#endif

#define NB_ATTEND_CHUNK 128 /* NBI_ATTN_CHUNK */
#define NB_ATTEND_WARPS 4
#define NB_V_SCALE      64.0f /* INT8: what the scales of V are multiplied by while they are in probabilities */

/* What a kernel is compiled for: its type of cache, head_dim up to d_max (128 or 256), its kind, and whether the architecture has
 * asynchronous copies. */
#define NB_ATTEND_KEYS(type, d_max)          ((type) == NB_KV_F16 && (d_max) == 256 ? 32 : 64) /* of a stage */
#define NB_ATTEND_M_TILES(walk, d_max, sm80) (!(walk) ? 1 : (d_max) == 256 || !(sm80) ? 2 : 4) /* 16 rows each */
#define NB_ATTEND_STAGES(type, walk, sm80)   (!(sm80) || ((walk) && (type) == NB_KV_F16) ? 2 : 4)

typedef struct nb_rows16 { /* rows of 16-byte pieces in shared memory */
    uint32_t pieces, stride, shift, mask;
} nb_rows16;

typedef struct nb_attend_shape {
    uint32_t blocks;    /* of 32 dimensions */
    nb_rows16 k, q;     /* a key or value; a query */
    uint32_t row_bytes; /* of a token in the cache */
    uint32_t words;     /* of scales (4 bytes) that a tile of K has for a key; INT8: that of K and that of V */
    uint32_t stage, q_at, p_at, max_at, sum_at, ab_at, pos_at, bytes; /* offsets in bytes; `stage`: size of one */
} nb_attend_shape;

NB_BOTH nb_rows16 nb_rows16_of(uint32_t pieces)
{
    nb_rows16 r = {pieces, pieces, 0, 0};
    if (pieces % 8 == 0)
        r.mask = 7;
    else if (pieces == 4)
        r.shift = 1, r.mask = 3;
    else if (pieces == 2)
        r.shift = 2, r.mask = 1;
    else
        r.stride |= 1;
    return r;
}

NB_BOTH nb_attend_shape nb_attend_shape_of(uint32_t type, uint32_t head_dim, uint32_t keys, uint32_t m_tiles,
                                           uint32_t stages)
{
    const uint32_t blocks = (head_dim + 31) / 32, rows = 16 * m_tiles;
    nb_attend_shape s;
    s.blocks = blocks;
    s.k = nb_rows16_of(type == NB_KV_F16 ? 4 * blocks : type == NB_KV_INT8 ? 2 * blocks : blocks);
    s.q = nb_rows16_of(4 * blocks);
    s.row_bytes = type == NB_KV_F16 ? 2 * head_dim : type == NB_KV_INT8 ? head_dim : head_dim / 2;
    s.words = type == NB_KV_F16 ? 0 : type == NB_KV_INT8 ? 2 : blocks;
    s.stage = keys * (s.k.stride * 16 + s.words * 4);
    s.q_at = stages * s.stage;
    s.p_at = s.q_at + rows * s.q.stride * 16;
    s.max_at = s.p_at + rows * NB_ATTEND_CHUNK * 2;
    s.sum_at = s.max_at + NB_ATTEND_WARPS * rows * 4;
    s.ab_at = s.sum_at + NB_ATTEND_WARPS * rows * 4;
    s.pos_at = s.ab_at + rows * 8;
    s.bytes = s.pos_at + rows * 4;
    return s;
}

#endif
