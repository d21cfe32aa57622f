/* From global memory to the shared memory of attention: tiles of K and V from their pages, query rows. */
#ifndef NB_CUDA_ATTEND_LOAD_CUH
#define NB_CUDA_ATTEND_LOAD_CUH

#include "act.cuh"
#include "kernels.h"

#define NB_PAGE 16 /* NBI_PAGE_TOKENS */

/* What stays the same while a block works on one piece. */
struct nb_attend_source {
    const char *k, *v;    /* of the kv head: page p's block lies at p * page_bytes */
    uint32_t page_bytes;  /* from page to page: all kv heads */
    const int32_t *pages; /* of the sequence */
    int32_t last;         /* the last position that is read; what lies behind it may be anything, and reads as zero */
    uint32_t key, piece;  /* where this thread's copies begin in a tile, and how they go on: 128 threads further */
    uint32_t d_key, d_piece;
};

NB_DEVICE uint32_t nb_piece_at(const nb_rows16 &rows, uint32_t row, uint32_t piece)
{
    return (row * rows.stride + (piece ^ ((row >> rows.shift) & rows.mask))) * 16;
}

/* A lane's row for ldmatrix: piece c of it lies at `at + ((c ^ swap) * 16)`, and that of the row 8 n further at 8 n * stride * 16 more,
 * since the exchange repeats every eight rows. */
struct nb_lane_row {
    uint32_t at, swap;
};

NB_DEVICE nb_lane_row nb_lane_row_of(const nb_rows16 &rows, uint32_t shared, uint32_t row)
{
    return {shared + row * rows.stride * 16, (row >> rows.shift) & rows.mask};
}

NB_DEVICE uint32_t nb_piece_at(const nb_lane_row &row, uint32_t piece)
{
    return row.at + (piece ^ row.swap) * 16;
}

/* Where piece `piece` of position pos lies, on page p. */
NB_DEVICE const char *nb_piece_of(const nb_attend_shape &s, const nb_attend_source &src, int which, int32_t p,
                                  uint32_t pos, uint32_t piece)
{
    return (which ? src.v : src.k) + (uint64_t)(uint32_t)p * src.page_bytes +
           (pos % NB_PAGE * s.row_bytes + piece * 16);
}

/* The codes of keys k0 .. k0 + keys - 1 into a stage, whole pieces.  page: lane i holds page i of the chunk (i < 8), 0 for those
 * behind the end: an address is made for them, too, of which nothing is read. */
template <int keys>
NB_DEVICE void nb_load_codes(const nb_attend_shape &s, const nb_attend_source &src, int which, uint32_t k0,
                             int32_t page, char *stage)
{
    uint32_t key = src.key, piece = src.piece;
    if (src.d_piece == 0 && src.d_key <= NB_PAGE) { /* a thread has one piece of each d_key-th key: the usual sizes */
        const bool inside = piece * 16 < s.row_bytes;
#pragma unroll
        for (uint32_t j = 0; j < keys / NB_PAGE; j++) {
            const int32_t p = __shfl_sync(NB_ALL_LANES, page, k0 % NB_ATTEND_CHUNK / NB_PAGE + j);
            const char *from = nb_piece_of(s, src, which, p, key, piece);
            for (uint32_t of_page = key; of_page < NB_PAGE; of_page += src.d_key) {
                const uint32_t row = j * NB_PAGE + of_page;
                nb_cp_async_16(stage + nb_piece_at(s.k, row, piece), from,
                               inside && (int32_t)(k0 + row) <= src.last ? 16 : 0);
                from += src.d_key * s.row_bytes;
            }
        }
        return;
    }
    for (uint32_t i = threadIdx.x; i < keys * s.k.pieces; i += 128) { /* whole warps: a multiple of 32 */
        const uint32_t pos = k0 + key;
        const int32_t p = __shfl_sync(NB_ALL_LANES, page, pos % NB_ATTEND_CHUNK / NB_PAGE);
        nb_cp_async_16(stage + nb_piece_at(s.k, key, piece), nb_piece_of(s, src, which, p, pos, piece),
                       (int32_t)pos <= src.last && piece * 16 < s.row_bytes ? 16 : 0);
        key += src.d_key;
        piece += src.d_piece;
        if (piece >= s.k.pieces) {
            piece -= s.k.pieces;
            key++;
        }
    }
}

/* The same where rows are not made of whole pieces, so that they begin anywhere: by words if they can, else by bytes. */
template <int keys>
NB_DEVICE void nb_load_ragged(const nb_attend_shape &s, const nb_attend_source &src, int which, uint32_t k0,
                              int32_t page, char *stage)
{
    const uint32_t words = s.k.pieces * 4, unit = s.row_bytes % 4 == 0 ? 4 : 1;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < keys * words; i += 128) {
        const uint32_t key = i / words, at = i % words * 4, pos = k0 + key;
        const int32_t p = __shfl_sync(NB_ALL_LANES, page, pos % NB_ATTEND_CHUNK / NB_PAGE);
        uint32_t w = 0;
        if ((int32_t)pos <= src.last && at < s.row_bytes) {
            const char *from = nb_piece_of(s, src, which, p, pos, 0) + at;
            if (unit == 4)
                w = *(const uint32_t *)from;
            else
#pragma unroll 1
                for (uint32_t j = 0; j < 4 && at + j < s.row_bytes; j++)
                    w |= (uint32_t)(uint8_t)from[j] << 8 * j;
        }
        *(uint32_t *)(stage + nb_piece_at(s.k, key, at / 16) + at % 16) = w;
    }
}

/* The scales of the same keys, `words` of 4 bytes each, behind each other by key.  In the last page of a sequence some lie beyond
 * its end. */
template <int keys>
NB_DEVICE void nb_load_scales(const nb_attend_shape &s, const nb_attend_source &src, int which, uint32_t words,
                              uint32_t k0, int32_t page, char *to)
{
    const uint32_t of_page = NB_PAGE / 4 * words, n = keys / 4 * words, lane = threadIdx.x % 32;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i - lane < n; i += 128) {
        const uint32_t of = min(i / of_page, (uint32_t)keys / NB_PAGE - 1), pos = k0 + of * NB_PAGE;
        const int32_t p = __shfl_sync(NB_ALL_LANES, page, pos % NB_ATTEND_CHUNK / NB_PAGE);
        if (i >= n)
            continue;
        const uint32_t j = i % of_page, first = pos + 4 * j / words, last = pos + (4 * j + 3) / words;
        const char *from = src.k;
        if ((int32_t)first <= src.last)
            from = nb_piece_of(s, src, which, p, 0, 0) + NB_PAGE * s.row_bytes + j * 16;
        if ((int32_t)last <= src.last || (int32_t)first > src.last) {
            nb_cp_async_16(to + i * 16, from, (int32_t)last <= src.last ? 16 : 0);
            continue;
        }
#pragma unroll
        for (uint32_t w = 0; w < 4; w++)
            ((uint32_t *)(to + i * 16))[w] =
                (int32_t)(pos + (4 * j + w) / words) <= src.last ? ((const uint32_t *)from)[w] : 0;
    }
}

/* A tile of K (which 0) or V (1).  INT8: the scales of V come with K, since they go into the probabilities. */
template <int type, int keys>
NB_DEVICE void nb_load_tile(const nb_attend_shape &s, const nb_attend_source &src, int which, uint32_t k0, int32_t page,
                            char *stage)
{
    char *scales = stage + keys * s.k.stride * 16;
    if (s.row_bytes % 16 == 0)
        nb_load_codes<keys>(s, src, which, k0, page, stage);
    else
        nb_load_ragged<keys>(s, src, which, k0, page, stage);
    if (type == NB_KV_INT4)
        nb_load_scales<keys>(s, src, which, s.words, k0, page, scales);
    if (type == NB_KV_INT8 && which == 0) {
        nb_load_scales<keys>(s, src, 0, 1, k0, page, scales);
        nb_load_scales<keys>(s, src, 1, 1, k0, page, scales + keys * 4);
    }
}

/* ---- queries ---- */

/* Two neighbours of T as halves: exact for half, and for bfloat16 between 2^-17 and 65504. */
NB_DEVICE uint32_t nb_as_halves(uint32_t pair, uint32_t dtype)
{
    if (dtype == NB_T_F16)
        return pair;
    return nb_pack2<__half>(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

/* Eight dimensions d .. d+7 of a query as halves, zero from head_dim on. */
NB_DEVICE uint4 nb_load_query(const uint16_t *q, uint32_t d, uint32_t head_dim, uint32_t dtype)
{
    uint32_t w[4] = {0, 0, 0, 0};
    if (head_dim % 8 == 0 && d < head_dim) {
        const uint4 v = *(const uint4 *)(q + d);
        w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
    } else
        for (uint32_t i = 0; i < 4; i++)
            if (d + 2 * i < head_dim)
                w[i] = *(const uint32_t *)(q + d + 2 * i);
    return make_uint4(nb_as_halves(w[0], dtype), nb_as_halves(w[1], dtype), nb_as_halves(w[2], dtype),
                      nb_as_halves(w[3], dtype));
}

/* Stores eight dimensions of a query, number `eight` of its row, in the order in which attend_frag.cuh makes K: F16 as they are;
 * INT8, where a lane holds dimensions 4t..4t+3 of a block of 16, as (4t, 4t+1) then (4t+2, 4t+3); INT4, where it holds 8t..8t+7
 * of 32, as (8t, 8t+4), (8t+1, 8t+5), (8t+2, 8t+6), (8t+3, 8t+7): the halves k = 2t and 2t+8 of one or two mma steps. */
template <int type>
NB_DEVICE void nb_store_query(const nb_rows16 &rows, char *q, uint32_t row, uint32_t eight, uint4 v)
{
    if (type == NB_KV_F16)
        *(uint4 *)(q + nb_piece_at(rows, row, eight)) = v;
    else if (type == NB_KV_INT8) {
        const uint32_t at = eight % 2 * 8;
        *(uint2 *)(q + nb_piece_at(rows, row, eight & ~1u) + at) = make_uint2(v.x, v.z);
        *(uint2 *)(q + nb_piece_at(rows, row, eight | 1) + at) = make_uint2(v.y, v.w);
    } else {
        const uint32_t at = eight % 4 * 4, first = eight & ~3u;
        *(uint32_t *)(q + nb_piece_at(rows, row, first) + at) = __byte_perm(v.x, v.z, 0x5410);
        *(uint32_t *)(q + nb_piece_at(rows, row, first + 1) + at) = __byte_perm(v.x, v.z, 0x7632);
        *(uint32_t *)(q + nb_piece_at(rows, row, first + 2) + at) = __byte_perm(v.y, v.w, 0x5410);
        *(uint32_t *)(q + nb_piece_at(rows, row, first + 3) + at) = __byte_perm(v.y, v.w, 0x7632);
    }
}

#endif
