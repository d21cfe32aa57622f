/* y[r][n] = sum over k of W[n][k] x[r][k] for 1..8 rows r: the decode form of linear layers, bound by reading W once.
 *
 * A panel of 16 outputs is the A operand of mma, the rows of x are its 8 columns; rows that are not there are
 * zeros.  A block of 8 warps takes a tile (gemv_plan.h) at a time.  Each warp takes tasks of up to 512 k of one
 * panel and streams their weights from global memory into registers, DEPTH units of 512 bytes ahead of the one that
 * it multiplies: also over the end of a task, a round and a tile, so that the stream never dries up at a barrier.
 * The sum of each segment goes to shared memory; when a round is through, one thread an output joins them in order.
 *
 *   shapes    k a multiple of 16; group_len likewise (INT8 x: 32, or one group); any n; rows 1..8
 *   x         T [rows][k], or codes [rows][k rounded up to 64] in the order of NB_K_ORDER; 16-byte aligned
 *   launch    as nb_gemv_plan() says; block 256; any grid; sm_75 and newer (bfloat16: sm_80)
 *   order     gemm.cuh's, bit for bit: a segment by mma in ascending k from 0; acc = fma(scale, segment, acc), or
 *             acc + segment when dense, in order.  INT8 x: exact sums of groups in place of segments.  It does not
 *             depend on rows, panels, rounds or the grid
 *   traffic   weights, scales and zero points once; x once a block that has one round, else once a tile
 *   counted   by the stand-in driver, k 4096: all sectors of global memory used, no bank conflicts.  Instructions of
 *             the PTX for 512 bytes of weights, moves left out, 1 row / 8 rows: dense 24 / 27, W8 52 / 58, W4 in
 *             groups of 128 92 / 151, of 32 182 / 299, W8A8 29 / 34, W4A8 70 / 79.  An H200 has 100 issue slots for
 *             them, an A100 156.  W2 and W3 need as many as W4 for each k, so more for each byte
 *
 * The sum of a segment lies in shared memory as words [pair of rows p][(2 n + (row & 1)) ^ 8 p]: lanes (g,t) store
 * the pairs of outputs n = g, g+8 of rows 2t, 2t+1, and the joining warp reads the 16 outputs of two rows, both
 * without conflicts.
 */
#ifndef NB_CUDA_GEMV_CUH
#define NB_CUDA_GEMV_CUH

#include "gemv_plan.h"
#include "weights.cuh"

#define NB_GEMV_THREADS (NB_GEMV_WARPS * 32)
#define NB_GEMV_DEPTH   8 /* units in flight a warp: 4 KiB; 64 KiB on a multiprocessor with two blocks */
#define NB_GEMV_JOINS   4 /* NB_GEMV_MAX_PANELS * 4 pairs of rows / NB_GEMV_WARPS */

/* What a warp sends for and multiplies at a time: a unit, or a whole block of tiles where that has several.  A piece of it is
 * a tile at most; segments of whole pieces need no look at every mma. */
template <int kind, typename X>
struct nb_gemv_unit {
    static const int loads = NB_TILES(kind) > 1 ? NB_UNITS(kind) : 1; /* of 512 bytes */
    static const int k = NB_TILE_K * NB_TILES(kind) * loads / NB_UNITS(kind), pieces = NB_TILES(kind);
    static const int piece_k = k / pieces;
    static const int steps = piece_k / nb_operand<X>::k, bytes = k * nb_operand<X>::bytes; /* of a piece; of x */
    static const int task = NB_GEMV_TASK / k;
    static const int depth = task < NB_GEMV_DEPTH ? task : NB_GEMV_DEPTH; /* in flight a warp */
};

/* What is the same for the whole block. */
template <typename Rows>
struct nb_gemv_block {
    const nb_gemv_args &v;
    const nb_gemm_args &a; /* v.g */
    Rows rows;
    unsigned char *shared;

    __device__ __forceinline__ uint32_t pairs() const { return (a.rows + 1) / 2; }
};

/* What a block computes between two barriers: the tasks of one round of a tile. */
struct nb_gemv_step {
    uint32_t tile, round;
};

template <typename Rows>
NB_DEVICE nb_gemv_step nb_gemv_next_step(const nb_gemv_block<Rows> &b, nb_gemv_step s)
{
    if (++s.round == b.v.rounds) {
        s.round = 0;
        s.tile += gridDim.x;
    }
    return s;
}

/* Panels of a tile (the last of a layer may have fewer), tasks of a round. */
template <typename Rows>
NB_DEVICE uint32_t nb_gemv_panels(const nb_gemv_block<Rows> &b, const nb_place &at)
{
    const uint32_t left = (at.p.n - at.n0 + NB_TILE_N - 1) / NB_TILE_N;
    return min(left, b.v.panels);
}

template <typename Rows>
NB_DEVICE uint32_t nb_gemv_tasks(const nb_gemv_block<Rows> &b, uint32_t round)
{
    return min(b.v.tasks - round * b.v.round, b.v.round);
}

/* Where segment i begins and ends; a group of one segment, or one group, needs no division. */
NB_DEVICE uint32_t nb_gemv_group(const nb_gemv_args &v, uint32_t segment)
{
    return v.per_group == 1 ? segment : v.groups == 1 ? 0 : segment / v.per_group;
}

NB_DEVICE uint32_t nb_gemv_begin(const nb_gemv_args &v, uint32_t segment)
{
    const uint32_t group = nb_gemv_group(v, segment);
    return group * v.group_len + (segment - group * v.per_group) * NB_SEGMENT;
}

NB_DEVICE uint32_t nb_gemv_end(const nb_gemv_args &v, uint32_t segment)
{
    return min(nb_gemv_begin(v, segment) + NB_SEGMENT, (nb_gemv_group(v, segment) + 1) * v.group_len);
}

/* The first segment of a round. */
NB_DEVICE uint32_t nb_gemv_first(const nb_gemv_args &v, uint32_t round)
{
    return round * v.round * v.per_task;
}

/* The first k of a round's window of x: a multiple of 128 bytes. */
template <typename X, typename Rows>
NB_DEVICE uint32_t nb_gemv_window(const nb_gemv_block<Rows> &b, uint32_t round)
{
    const uint32_t k = nb_gemv_begin(b.v, nb_gemv_first(b.v, round)), unit = 128 / nb_operand<X>::bytes;
    return k / unit * unit;
}

/* ---- to shared memory, asynchronously ---- */

template <typename X, typename Rows>
NB_DEVICE void nb_gemv_fetch_x(const nb_gemv_block<Rows> &b, nb_gemv_step s, uint32_t slot)
{
    const uint32_t k0 = nb_gemv_window<X>(b, s.round), per = 16 / nb_operand<X>::bytes;
    const uint32_t stride = nb_operand<X>::bytes == 1 ? (b.a.k + NB_TILE_K - 1) / NB_TILE_K * NB_TILE_K : b.a.k;
    unsigned char *to = b.shared + NB_GEMV_ZEROS + slot * b.v.x_bytes;
#pragma unroll 1
    for (uint32_t r = 0; r < b.a.rows; r++, to += b.v.x_stride) {
        const X *from = (const X *)b.a.x + (size_t)b.rows.x(r) * stride;
#pragma unroll 1
        for (uint32_t c = threadIdx.x; c < b.v.x_stride / 16; c += NB_GEMV_THREADS) {
            const uint32_t k = k0 + c * per;
            const bool there = k < stride;
            nb_cp_async_16(to + (c ^ r) * 16, from + (there ? k : 0), there ? 16 : 0);
        }
    }
}

template <int kind, typename Rows>
NB_DEVICE void nb_gemv_fetch_meta(const nb_gemv_block<Rows> &b, nb_gemv_step s, uint32_t slot)
{
    if (kind == NB_W_DENSE)
        return;
    const nb_place at = nb_place_of(b.a, s.tile, b.v.panels * NB_TILE_N);
    const uint32_t first = nb_gemv_group(b.v, nb_gemv_first(b.v, s.round));
    const uint32_t n = min(b.v.round_groups, at.p.groups - first), panels = nb_gemv_panels(b, at);
    unsigned char *to = b.shared + b.v.meta + slot * b.v.meta_bytes;
#pragma unroll 1
    for (uint32_t j = 0; j < panels; j++) {
        const size_t from = nb_group_at(at.p, at.n0 / NB_TILE_N + j, first, 0);
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < n * 4; i += NB_GEMV_THREADS)
            nb_cp_async_16(to + (j * b.v.round_groups * 4 + i) * 16, at.p.scales + from + i * 4, 16);
        if (at.p.zeros)
#pragma unroll 1
            for (uint32_t i = threadIdx.x; i < n; i += NB_GEMV_THREADS)
                nb_cp_async_16(to + b.v.zeros + (j * b.v.round_groups + i) * 16,
                               (const char *)at.p.zeros + from + i * 16, 16);
    }
}

/* ---- the stream of weights ---- */

struct nb_gemv_task {
    const uint4 *w;       /* this lane's words of the first unit */
    uint32_t units;       /* 0: there is none */
    uint32_t k0, k1;      /* whole segments; the first unit may begin before k0 */
    uint32_t panel, part; /* of the tile; its first segment in the round */
    nb_gemv_step step;
};

/* A warp's place in the sequence of its tasks. */
struct nb_gemv_cursor {
    nb_gemv_step step;
    uint32_t q, panel;      /* the next task, of the panel */
    uint32_t tasks, panels; /* of the step */
    const uint4 *w;         /* the tile's first panel */
    uint32_t panel_words;   /* of 16 bytes */
};

template <int kind, typename Rows>
NB_DEVICE void nb_gemv_enter(const nb_gemv_block<Rows> &b, nb_gemv_cursor &c, uint32_t warp)
{
    c.q = warp;
    c.panel = 0;
    if (c.step.tile >= b.a.n_tiles)
        return;
    const nb_place at = nb_place_of(b.a, c.step.tile, b.v.panels * NB_TILE_N);
    c.panel_words = NB_PANEL_UNITS(kind, at.p.k_tiles) * 32;
    c.tasks = nb_gemv_tasks(b, c.step.round);
    c.panels = nb_gemv_panels(b, at);
    c.w = (const uint4 *)at.p.w + (size_t)(at.n0 / NB_TILE_N) * c.panel_words;
}

/* The warp's next task; units 0 when all is done. */
template <int kind, typename X, typename Rows>
NB_DEVICE nb_gemv_task nb_gemv_take(const nb_gemv_block<Rows> &b, nb_gemv_cursor &c, uint32_t warp, uint32_t lane)
{
    typedef nb_gemv_unit<kind, X> unit;
    const uint32_t unit_k = unit::k;
    nb_gemv_task t = {c.w, 0, 0, 0, 0, 0, c.step};
    while (c.step.tile < b.a.n_tiles) {
        while (c.q >= c.tasks && c.panel < c.panels)
            c.q -= c.tasks, c.panel++;
        if (c.panel < c.panels) {
            const uint32_t first = (c.step.round * b.v.round + c.q) * b.v.per_task;
            t.k0 = nb_gemv_begin(b.v, first);
            t.k1 = nb_gemv_end(b.v, min(first + b.v.per_task, b.v.segments) - 1);
            t.units = (t.k1 + unit_k - 1) / unit_k - t.k0 / unit_k;
            t.w = c.w + (size_t)c.panel * c.panel_words + t.k0 / unit_k * unit::loads * 32 + lane;
            t.panel = c.panel;
            t.part = c.q * b.v.per_task;
            t.step = c.step;
            c.q += NB_GEMV_WARPS;
            return t;
        }
        c.step = nb_gemv_next_step(b, c.step);
        nb_gemv_enter<kind>(b, c, warp);
    }
    return t;
}

/* ---- multiplying ---- */

NB_DEVICE uint32_t nb_bits(float v)
{
    return __float_as_uint(v);
}
NB_DEVICE uint32_t nb_bits(int32_t v)
{
    return (uint32_t)v;
}

/* The sum of a segment in the making, where it goes, and the zero points of its group. */
template <int kind, typename X>
struct nb_gemv_sum {
    static const bool has_zeros =
        kind != NB_W_DENSE && kind != NB_W_NF4 && (kind != NB_W_W8 || nb_operand<X>::bytes > 1);
    typename nb_operand<X>::sum part[4];
    nb_zeros z;
    uint32_t to,
        advance; /* where this lane's pair for output g goes (that for g+8: `to ^ 64`); to the next segment's */
    uint32_t zeros, zeros_advance; /* of this segment in shared memory, and likewise */

    /* symmetric weights but W4 have no zero points: those at the beginning of shared memory serve them */
    template <typename Rows>
    __device__ __forceinline__ nb_gemv_sum(const nb_gemv_block<Rows> &b, const nb_gemv_task &t, bool stored,
                                           uint32_t slot, uint32_t meta, uint32_t lane)
    {
        const uint32_t pair = lane & 3, shared = nb_shared_address(b.shared);
        to = shared + b.v.parts + slot * b.v.part_bytes +
             ((t.panel * b.v.round_segments + t.part) * b.pairs() + pair) * 128 + ((lane >> 2) ^ pair * 4) * 8;
        advance = b.pairs() * 128;
        zeros = shared + (lane >> 2);
        zeros_advance = 0;
        if (has_zeros && (NB_IS_W4(kind) || stored)) {
            const uint32_t first = nb_gemv_first(b.v, t.step.round);
            const uint32_t group = nb_gemv_group(b.v, first + t.part) - nb_gemv_group(b.v, first);
            zeros += b.v.meta + meta * b.v.meta_bytes + b.v.zeros + (t.panel * b.v.round_groups + group) * NB_TILE_N;
            zeros_advance = NB_TILE_N;
        }
        clear();
    }

    __device__ __forceinline__ void clear()
    {
#pragma unroll
        for (int i = 0; i < 4; i++)
            part[i] = 0;
        z = has_zeros ? nb_weight<kind, X>::zeros(nb_zero_value<kind>(nb_load_shared_u8(zeros)),
                                                  nb_zero_value<kind>(nb_load_shared_u8(zeros + 8)))
                      : nb_weight<kind, X>::zeros(0, 0);
    }

    /* The segment is through; the next one of the task begins, if there is one. */
    __device__ __forceinline__ void flush(bool stores, bool last)
    {
        if (stores) {
            nb_store_shared_2(to, nb_bits(part[0]), nb_bits(part[1]));
            nb_store_shared_2(to ^ 64, nb_bits(part[2]), nb_bits(part[3]));
        }
        if (!last) {
            to += advance;
            zeros += zeros_advance;
            clear();
        }
    }
};

/* Where a lane finds the rows of x for ldmatrix: matrix m (lane / 8) is the 16 bytes at m of row r (lane % 8).
 * Chunks of 16 bytes lie at their number XOR r, so that eight rows are eight different quarters of a line; rows that
 * are not there read zeros, in the same pattern. */
struct nb_gemv_x {
    uint32_t base, mask, swizzle;
};

template <typename Rows>
NB_DEVICE nb_gemv_x nb_gemv_x_of(const nb_gemv_block<Rows> &b, uint32_t slot, uint32_t lane)
{
    const uint32_t r = lane & 7, at = nb_shared_address(b.shared);
    const bool there = r < b.a.rows;
    const uint32_t x = at + NB_GEMV_ZEROS + slot * b.v.x_bytes + r * b.v.x_stride;
    return {there ? x : at, there ? ~0u : 0x70u, r << 4};
}

/* Segments are whole pieces and tasks begin with a unit and at multiples of 128 bytes of x: then the address of a unit's
 * fragments is a constant beside one of two registers. */
template <int kind, typename X>
struct nb_gemv_whole {
    typedef nb_gemv_unit<kind, X> unit;
    uint32_t p, advance; /* of x for the first unit of the chunk; bytes of a chunk */
    uint32_t left, per;  /* pieces until the segment ends; of a segment */
    uint32_t todo;       /* pieces of the task; of units of several pieces only, whose task ends where a segment does */
    uint32_t x4[4];

    template <typename Rows>
    __device__ __forceinline__ nb_gemv_whole(const nb_gemv_block<Rows> &b, const nb_gemv_task &t, const nb_gemv_x &x,
                                             uint32_t lane)
    {
        const uint32_t from = (t.k0 - nb_gemv_window<X>(b, t.step.round)) * nb_operand<X>::bytes;
        p = x.base + (from & x.mask) + ((lane >> 3) * 16 ^ x.swizzle);
        advance = unit::depth * unit::bytes & x.mask; /* 0 for the zeros of a row that is not there */
        todo = unit::pieces == 1 ? t.units : (t.k1 - t.k0 + unit::piece_k - 1) / unit::piece_k;
        left = per = b.v.per_task == 1 ? todo : b.v.group_len / unit::piece_k;
    }

    __device__ __forceinline__ void multiply_piece(nb_gemv_sum<kind, X> &sum, const uint4 *w, int d, int piece)
    {
#pragma unroll
        for (int i = 0; i < unit::steps; i++) {
            const int step = piece * unit::steps + i;
            const int at = d * unit::bytes + step * 32; /* of 64 bytes, which one ldmatrix brings */
            if (at % 64 == 0)
                nb_ldmatrix_x4(x4, (at % 128 ? p ^ 64 : p) + at / 128 * 128);
            uint32_t a[4];
            nb_weight<kind, X>::fragment(a, w, step, sum.z);
            nb_operand<X>::mma(sum.part, a, x4 + at % 64 / 16);
        }
    }

    __device__ __forceinline__ void multiply(nb_gemv_sum<kind, X> &sum, const uint4 *w, int d, bool stores)
    {
#pragma unroll
        for (int piece = 0; piece < unit::pieces; piece++)
            if (unit::pieces == 1 || todo) {
                multiply_piece(sum, w, d, piece);
                if (unit::pieces > 1 && --left == 0) {
                    left = per;
                    todo -= per;
                    sum.flush(stores, todo == 0);
                }
            }
    }

    __device__ __forceinline__ void end_unit(nb_gemv_sum<kind, X> &sum, bool stores, bool last)
    {
        if (unit::pieces == 1 && (--left == 0 || last)) {
            left = per;
            sum.flush(stores, last);
        }
    }

    __device__ __forceinline__ void next_chunk()
    {
        p += advance;
    }
};

/* Any cut: each mma looks whether it belongs to the task and where its segment ends. */
template <int kind, typename X>
struct nb_gemv_pieces {
    typedef nb_gemv_unit<kind, X> unit;
    uint32_t base, mask, swizzle; /* of x, from k = 0 */
    uint32_t k, begin, end, segment_end, group_len;

    template <typename Rows>
    __device__ __forceinline__ nb_gemv_pieces(const nb_gemv_block<Rows> &b, const nb_gemv_task &t, const nb_gemv_x &x,
                                              uint32_t lane)
    {
        base = x.base - (nb_gemv_window<X>(b, t.step.round) * nb_operand<X>::bytes & x.mask);
        mask = x.mask;
        swizzle = (lane >> 3 & 1) * 16 ^ x.swizzle;
        begin = t.k0;
        end = t.k1;
        k = t.k0 / unit::k * unit::k;
        group_len = b.v.group_len;
        segment_end = b.v.per_task == 1 ? t.k1 : t.k0 + group_len;
    }

    __device__ __forceinline__ void multiply(nb_gemv_sum<kind, X> &sum, const uint4 *w, int, bool stores)
    {
#pragma unroll
        for (int i = 0; i < unit::pieces * unit::steps; i++, k += nb_operand<X>::k) {
            if (k < begin || k >= end)
                continue;
            uint32_t a[4], x2[2];
            nb_ldmatrix_x2(x2, base + (k * nb_operand<X>::bytes & mask ^ swizzle));
            nb_weight<kind, X>::fragment(a, w, i, sum.z);
            nb_operand<X>::mma(sum.part, a, x2);
            if (k + nb_operand<X>::k >= segment_end) {
                segment_end += group_len;
                sum.flush(stores, k + nb_operand<X>::k >= end);
            }
        }
    }

    __device__ __forceinline__ void end_unit(nb_gemv_sum<kind, X> &, bool, bool) {}
    __device__ __forceinline__ void next_chunk() {}
};

/* Multiplies the units of a chunk, those in the ring, and sends for those that come after it: `next` of them, from w.
 *
 * A unit is sent for when its place in the ring is free: the address waits for the product, and the load has a
 * branch of its own, even where it could do without.  Else the compiler sends for all units at the head of the
 * chunk, into registers that it does not have and must move at the end, which waits for memory, or all at the end.
 * nought is 0, but only we know. */
template <int kind, typename X, typename Way>
NB_DEVICE void nb_gemv_chunk(Way &way, nb_gemv_sum<kind, X> &sum, uint4 *ring, uint32_t units, const uint4 *w,
                             uint32_t next, uint32_t nought, bool stores, bool last)
{
    const int loads = Way::unit::loads;
#pragma unroll
    for (int d = 0; d < Way::unit::depth; d++) {
        if (d < units)
            way.multiply(sum, ring + d * loads, d, stores);
        w = (const uint4 *)((const char *)w + (uint64_t)nb_bits(sum.part[0]) * nought);
        if (d < next)
#pragma unroll
            for (int i = d * loads; i < (d + 1) * loads; i++)
                ring[i] = nb_load_stream(w + i * 32);
        if (d < units)
            way.end_unit(sum, stores, last && d + 1 == units);
    }
    way.next_chunk();
}

/* Multiplies task t, whose first units are in the ring (or under way), and returns the next task, likewise. */
template <int kind, typename X, typename Way, typename Rows>
NB_DEVICE nb_gemv_task nb_gemv_multiply(const nb_gemv_block<Rows> &b, const nb_gemv_task &t, nb_gemv_cursor &cursor,
                                        uint4 *ring, nb_gemv_sum<kind, X> sum, const nb_gemv_x &x, uint32_t warp,
                                        uint32_t lane)
{
    typedef nb_gemv_unit<kind, X> unit;
    Way way(b, t, x, lane);
    const bool stores = (lane & 3) < b.pairs();
    const nb_gemv_task next = nb_gemv_take<kind, X>(b, cursor, warp, lane);
    const uint4 *w = t.w;
#pragma unroll 1
    for (uint32_t left = t.units, more; left; left = more) {
        const uint32_t units = min(left, unit::depth);
        more = left - units;
        w = more ? w + unit::depth * unit::loads * 32 : next.w;
        const uint32_t coming = more ? more : next.units;
        nb_gemv_chunk(way, sum, ring, units, w, coming, b.a.first_tile[0], stores, !more);
    }
    return next;
}

/* ---- joining ---- */

/* Results under way: a thread has output n = lane % 16 of row 2 pair + lane / 16 of a panel, for up to NB_GEMV_JOINS
 * panels and pairs of rows. */
template <typename X>
struct nb_gemv_result {
    float acc[NB_GEMV_JOINS];
    int32_t sum[NB_GEMV_JOINS]; /* INT8 x: of a group so far */
};

template <int kind, typename X, typename Rows>
NB_DEVICE void nb_gemv_join_1(const nb_gemv_block<Rows> &b, nb_gemv_step s, const nb_place &at, uint32_t slot,
                              uint32_t meta, uint32_t panel, uint32_t pair, uint32_t lane, float &acc, int32_t &sum)
{
    typedef typename nb_operand<X>::sum number;
    const nb_gemv_args &c = b.v;
    const uint32_t n = lane & 15, row = pair * 2 + (lane >> 4), first = nb_gemv_first(b.v, s.round);
    const uint32_t count = min(nb_gemv_tasks(b, s.round) * c.per_task, c.segments - first);
    const number *part = (const number *)(b.shared + b.v.parts + slot * b.v.part_bytes) +
                         (panel * b.v.round_segments * b.pairs() + pair) * 32 + ((n * 2) ^ (pair * 8)) + (lane >> 4);
    const unsigned char *m = b.shared + b.v.meta + meta * b.v.meta_bytes;
    const float *scale = (const float *)m + panel * b.v.round_groups * NB_TILE_N + n;
    const uint8_t *zero = at.p.zeros ? m + b.v.zeros + panel * b.v.round_groups * NB_TILE_N + n : NULL;
    if (nb_operand<X>::bytes > 1 && (kind == NB_W_DENSE || c.per_group == 1)) { /* what is common, in fewer words */
#pragma unroll 4
        for (uint32_t i = 0; i < count; i++, part += b.pairs() * 32, scale += NB_TILE_N)
            acc = kind == NB_W_DENSE ? acc + (float)*part : fmaf(*scale, (float)*part, acc);
        return;
    }
    uint32_t group = nb_gemv_group(c, first), in_group = first - group * c.per_group;
    for (uint32_t i = 0; i < count; i++, part += b.pairs() * 32) {
        const bool ends = ++in_group == c.per_group;
        if (nb_operand<X>::bytes > 1) {
            acc = fmaf(*scale, (float)*part, acc);
        } else {
            sum = (int32_t)((uint32_t)sum + (uint32_t)*part);
            if (ends) {
                const size_t g = nb_group_at(at.p, at.n0 / NB_TILE_N + panel, group, n);
                const int32_t z = kind == NB_W_W8 && zero ? nb_zero_value<kind>(*zero) : 0;
                const int32_t x_sum = z ? b.a.x_sums[(size_t)b.rows.x(min(row, b.a.rows - 1)) * c.groups + group] : 0;
                acc = fmaf(nb_exact(sum, z, x_sum, at.p.corr ? at.p.corr[g] : 0), *scale, acc);
                sum = 0;
            }
        }
        if (ends) {
            in_group = 0;
            group++;
            scale += NB_TILE_N;
            zero = zero ? zero + NB_TILE_N : zero;
        }
    }
}

/* The segments of a step, behind those of the rounds before it; after the last round the results.  turn: which warp
 * begins, so that all of them do their share. */
template <int kind, typename X, typename T, typename Rows>
NB_DEVICE void nb_gemv_join(const nb_gemv_block<Rows> &b, nb_gemv_step s, uint32_t slot, uint32_t meta, uint32_t turn,
                            uint32_t lane, nb_gemv_result<X> &result)
{
    turn = nb_opaque(turn);
    lane = nb_opaque(lane);
    const nb_place at = nb_place_of(b.a, s.tile, b.v.panels * NB_TILE_N);
    const uint32_t work = nb_gemv_panels(b, at) * b.pairs();
#pragma unroll
    for (int i = 0; i < NB_GEMV_JOINS; i++) {
        const uint32_t u = turn + i * NB_GEMV_WARPS;
        if (u >= work)
            break;
        const uint32_t panel = u / b.pairs(), pair = u - panel * b.pairs();
        if (s.round == 0)
            result.acc[i] = 0, result.sum[i] = 0;
        nb_gemv_join_1<kind, X>(b, s, at, slot, meta, panel, pair, lane, result.acc[i], result.sum[i]);
        const uint32_t row = pair * 2 + (lane >> 4), n = at.n0 + panel * NB_TILE_N + (lane & 15);
        if (s.round + 1 == b.v.rounds && row < b.a.rows && n < at.p.n) {
            const float x_scale = nb_operand<X>::bytes == 1 ? b.a.x_scale[b.rows.x(row)] : 1;
            nb_store_1<T>(b.a, (size_t)b.rows.y(row) * b.a.ldy + at.column + n,
                          nb_finish<X>(result.acc[i], x_scale, at.p.bias, n));
        }
    }
}

/* ---- the kernel ---- */

template <int kind, typename X, typename T, typename Way, typename Rows>
NB_DEVICE void nb_gemv_run(const nb_gemv_block<Rows> &b)
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    nb_gemv_cursor cursor = {{blockIdx.x, 0}};
    nb_gemv_enter<kind>(b, cursor, warp);
    nb_gemv_task t = nb_gemv_take<kind, X>(b, cursor, warp, lane);
    typedef nb_gemv_unit<kind, X> unit;
    uint4 ring[unit::depth * unit::loads];
#pragma unroll
    for (int d = 0; d < unit::depth * unit::loads; d++)
        ring[d] = nb_load_stream_if(t.w + d * 32, d / unit::loads < t.units);

    nb_gemv_step s = {blockIdx.x, 0};
    for (uint32_t i = threadIdx.x; i < NB_GEMV_ZEROS / 4; i += NB_GEMV_THREADS)
        ((uint32_t *)b.shared)[i] = 0;
    nb_gemv_fetch_x<X>(b, s, 0);
    nb_gemv_fetch_meta<kind>(b, s, 0);
    nb_cp_async_commit();
    nb_cp_async_wait<0>();
    __syncthreads();

    nb_gemv_result<X> result;
    uint32_t slot = 0, meta = 0, turn = warp;
    while (s.tile < b.a.n_tiles) {
        const nb_gemv_step next = nb_gemv_next_step(b, s);
        const uint32_t next_meta = meta == 2 ? 0 : meta + 1;
        if (next.tile < b.a.n_tiles) {
            if (b.v.rounds > 1)
                nb_gemv_fetch_x<X>(b, next, slot ^ 1);
            nb_gemv_fetch_meta<kind>(b, next, next_meta);
        }
        nb_cp_async_commit();
        const nb_gemv_x x = nb_gemv_x_of(b, b.v.rounds > 1 ? slot : 0, lane);
        const bool zeros = nb_place_of(b.a, s.tile, b.v.panels * NB_TILE_N).p.zeros != NULL;
        while (t.units && t.step.tile == s.tile && t.step.round == s.round)
            t = nb_gemv_multiply<kind, X, Way>(b, t, cursor, ring, nb_gemv_sum<kind, X>(b, t, zeros, slot, meta, lane),
                                               x, warp, lane);
        nb_cp_async_wait<0>();
        __syncthreads(); /* all sums are there; the join before this one is over; the next step's scales have come */
        nb_gemv_join<kind, X, T>(b, s, slot, meta, turn, lane, result);
        if (next.round == 0)
            turn = (turn + 1) & (NB_GEMV_WARPS - 1);
        slot ^= 1;
        meta = next_meta;
        s = next;
    }
}

template <int kind, typename X, typename T, typename Rows>
NB_DEVICE void nb_gemv(const nb_gemv_args &v, Rows rows, unsigned char *shared)
{
    const nb_gemv_block<Rows> b = {v, v.g, rows, shared};
    typedef nb_gemv_unit<kind, X> unit;
    const uint32_t line = 128 / nb_operand<X>::bytes, begins = line > unit::k ? line : unit::k;
    if (v.groups == 1 || (v.group_len % unit::piece_k == 0 && v.per_task * v.group_len % begins == 0))
        nb_gemv_run<kind, X, T, nb_gemv_whole<kind, X>>(b);
    else
        nb_gemv_run<kind, X, T, nb_gemv_pieces<kind, X>>(b);
}

#define NB_GEMV(name, kind, X, T, suffix)                                                                              \
    extern "C" __global__ void __launch_bounds__(NB_GEMV_THREADS, 2)                                                   \
        name##_##suffix(const __grid_constant__ nb_gemv_args v)                                                        \
    {                                                                                                                  \
        extern __shared__ __align__(128) unsigned char shared[];                                                       \
        NB_IF_##suffix((nb_gemv<kind, X, T>(v, nb_all_rows(), shared));)                                               \
    }

#endif
