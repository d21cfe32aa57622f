/* y[r][n] = sum over k of w[n][k] * x[r][k] (+ bias[n]): linear layers for many rows, on tensor cores.
 *
 *   x       T [rows][k], or codes int8 [rows][k_pad] with x_scale [rows] (and x_sums [rows][groups]: weights of 8
 *           bits with zero points); 16-byte aligned; k a multiple of 16, the group of 16 too (int8: 32, if there are
 *           several)
 *   w       packed as layout.h says; up to 3 layers that share x
 *   y       [rows][ldy]: T, fp32, or fp32 to which the result is added; any alignment (four columns are stored at
 *           once where y is 16-byte aligned and ldy and the layers' columns are multiples of 4)
 *   tile    64 P columns x 8 R rows of y a block: 4 warps side by side along n, P panels each, every warp all rows
 *   launch  grid (ceil(rows / 8R), n_tiles), 128 threads, shared memory NB_GEMM_SHARED(...)
 *   order   docs/numerics.md: k is cut into segments (weights.cuh); an mma sum from 0 over a segment in ascending k,
 *           segments joined in order.  Neither the tile nor the rows that travel together change a bit of it
 *   traffic ceil(rows / 8R) times the weights, ceil(n / 64P) times x, through the second-level cache: row tiles are
 *           the fast axis of the grid, so blocks that run together share their weights
 *
 * Weights are the A operand: a lane's 16-byte unit is what it multiplies, so a lane copies to shared memory what it
 * reads back itself, and that copy is nothing but a queue that costs no registers.  x is the B operand, shared by the
 * warps: rows of 64 k in shared memory, chunks of 16 bytes swizzled so that ldmatrix has no bank conflicts (128-byte
 * rows: chunk ^ (row & 7), 64-byte rows: chunk ^ (row/2 & 3)).  Scales and zero points come with the tile in which
 * their group begins; a block of several tiles (2 and 3 bits) with the first of them.
 *
 * Counted by the stand-in driver: shared memory without a bank conflict, 99 to 100 % of the sectors that must move.
 *
 * sm_80 and newer: a ring of stages filled by cp.async, one barrier a stage.  sm_75: two stages; the next one waits
 * in registers while this one is multiplied. */
#ifndef NB_CUDA_GEMM_CUH
#define NB_CUDA_GEMM_CUH

#include "weights.cuh"

#define NB_GEMM_WARPS 4

template <int kind_, typename X_, int P_, int R_, typename Rows_>
struct nb_gemm_shape {
    typedef X_ X;
    typedef Rows_ Rows;
    typedef nb_operand<X> operand;
    typedef nb_weight<kind_, X> weight;
    static const int kind = kind_, P = P_, R = R_;
    static const int rows = 8 * R, n = NB_GEMM_WARPS * P * NB_TILE_N;
    static const int row_bytes = NB_TILE_K * operand::bytes, row_chunks = row_bytes / 16;
    static const int units = NB_UNITS(kind), tiles = NB_TILES(kind), steps = operand::steps;
    static const bool quantized = kind != NB_W_DENSE;
    /* a stage: x, then units, scales and zero points of each warp's panels */
    static const int w_at = rows * row_bytes;
    static const int scales_at = w_at + NB_GEMM_WARPS * P * units * NB_UNIT;
    static const int zeros_at = scales_at + NB_GEMM_WARPS * P * NB_TILE_GROUPS * NB_TILE_N * 4;
    static const int stage = NB_GEMM_STAGE(kind, operand::bytes, P, R);
    static const int stages = NB_HAS_SM80 ? NB_GEMM_STAGES(stage) : 2;
    /* copies of 16 bytes that a thread makes for a stage */
    static const int passes = (rows * row_chunks + 127) / 128, pass_rows = 128 / row_chunks;
    static const int copies = passes + P * units + (quantized ? 2 : 0);
    /* A block of several tiles comes with the first of them and stays until the last is multiplied: the stages' places for
     * weights are a ring of their own, of as many as are under way or read. */
    static const int w_places = (stages + 2 * tiles - 2) / tiles;
    static __device__ __forceinline__ uint32_t w_place(uint32_t k) /* of the block that k belongs to, in bytes */
    {
        return k / (tiles * NB_TILE_K) % w_places * stage;
    }
};

/* 16-byte chunk c of row r, in bytes from the beginning of x in a stage */
template <typename S>
NB_DEVICE uint32_t nb_gemm_x_at(uint32_t r, uint32_t c)
{
    const uint32_t swizzle = S::row_chunks == 8 ? r & 7 : (r >> 1) & 3;
    return r * S::row_bytes + ((c ^ swizzle) << 4);
}

/* ---- from global memory to the stages ---- */

/* What a thread copies.  Pointers move from tile to tile (and from group to group). */
template <typename S>
struct nb_gemm_source {
    const uint8_t *x, *w, *scales, *zeros;            /* the next tile's; the next group's */
    uint64_t w_panel;                                 /* bytes to the next panel */
    uint32_t x_pass;                                  /* bytes to this thread's next row of x */
    uint32_t rows_left, panels_left;                  /* beyond its first row and panel; 0: nothing to read there */
    uint32_t mapped[S::Rows::mapped ? S::passes : 1]; /* where its rows begin, in 16 bytes, if they are anywhere */
    uint32_t x_to, w_to, scales_to, zeros_to;
    uint32_t k, at, group_len, next_group; /* at, next_group: where the next tile and group begin */
    bool scale_lane, zero_lane;            /* copies a piece of the scales, of the zero points */
    bool group_there;                      /* of a panel that exists */

    __device__ __forceinline__ void init(const nb_gemm_args &a, const nb_place &place, uint32_t row0,
                                         typename S::Rows map)
    {
        const nb_packed &p = place.p;
        const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const uint32_t row = threadIdx.x / S::row_chunks, chunk = threadIdx.x % S::row_chunks;
        const uint32_t x_row = S::operand::bytes == 1 ? p.k_tiles * NB_TILE_K : a.k * 2;
        const uint32_t panels = (p.n + NB_TILE_N - 1) / NB_TILE_N, panel = place.n0 / NB_TILE_N + warp * S::P;
        k = a.k;
        at = next_group = 0;
        rows_left = row0 + row < a.rows ? a.rows - row0 - row : 0;
        x = (const uint8_t *)a.x + (uint64_t)(rows_left ? row0 + row : 0) * x_row + chunk * 16;
        x_pass = S::pass_rows * x_row;
        if (S::Rows::mapped) {
            x = (const uint8_t *)a.x + chunk * 16;
#pragma unroll
            for (int i = 0; i < S::passes; i++)
                mapped[i] = (uint32_t)(i * S::pass_rows) < rows_left
                                ? (uint32_t)((uint64_t)map.x(row0 + row + i * S::pass_rows) * x_row / 16)
                                : 0;
        }
        x_to = nb_gemm_x_at<S>(row, chunk);
        panels_left = panel < panels ? panels - panel : 0;
        w_panel = (uint64_t)NB_PANEL_UNITS(S::kind, p.k_tiles) * NB_UNIT;
        w = (const uint8_t *)p.w + (panels_left ? panel : 0) * w_panel + lane * 16;
        w_to = S::w_at + warp * S::P * S::units * NB_UNIT + lane * 16;
        if (!S::quantized)
            return;
        /* lanes 16i .. 16i+15: up to four groups of 16 scales of panel i, 4 scales each; the first four: their zero
         * points */
        const uint32_t i = lane / 16, j = lane % 16, slot = (warp * S::P + i) * NB_TILE_GROUPS;
        group_len = p.group_len;
        group_there = i < panels_left;
        scale_lane = i < S::P;
        zero_lane = scale_lane && j < NB_TILE_GROUPS && p.zeros;
        const uint64_t first = (uint64_t)(group_there ? panel + i : 0) * p.groups * NB_TILE_N;
        scales = (const uint8_t *)p.scales + first * 4 + j * 16;
        zeros = (const uint8_t *)p.zeros + first + j * 16;
        scales_to = S::scales_at + slot * NB_TILE_N * 4 + j * 16;
        zeros_to = S::zeros_at + slot * NB_TILE_N + j * 16;
    }

    __device__ __forceinline__ bool more() const
    {
        return at < k;
    }

    __device__ __forceinline__ uint32_t end() const
    {
        return min(at + NB_TILE_K, k);
    }

    __device__ __forceinline__ bool block_begins() const
    {
        return S::tiles == 1 || at / NB_TILE_K % S::tiles == 0;
    }

    /* op(i, offset in the ring, source, whether there is one; else zeros) for each of this thread's copies to a stage. */
    template <typename Op>
    __device__ __forceinline__ void each(uint32_t stage, Op op) const
    {
        const uint32_t w_stage = S::tiles == 1 ? stage : S::w_place(at);
        const bool inside = S::operand::bytes == 1 || at + threadIdx.x % S::row_chunks * 8 < k;
        const uint32_t rows = inside ? rows_left : 0;
#pragma unroll
        for (int i = 0; i < S::passes; i++)
            if (S::rows * S::row_chunks >= 128 || threadIdx.x < S::rows * S::row_chunks)
                op(i, stage + x_to + i * S::pass_rows * S::row_bytes,
                   x + (S::Rows::mapped ? (uint64_t)mapped[i] * 16 : (uint64_t)x_pass * i),
                   (uint32_t)(i * S::pass_rows) < rows);
        if (block_begins())
#pragma unroll
            for (int p = 0; p < S::P; p++)
#pragma unroll
                for (int u = 0; u < S::units; u++)
                    op(S::passes + p * S::units + u, w_stage + w_to + (p * S::units + u) * NB_UNIT,
                       w + p * w_panel + u * NB_UNIT, (uint32_t)p < panels_left);
        if (!S::quantized || next_group >= end())
            return;
        const uint32_t j = threadIdx.x % 16;
        if (scale_lane && next_group + j / 4 * group_len < end())
            op(S::copies - 2, stage + scales_to, scales, group_there);
        if (zero_lane && next_group + j * group_len < end())
            op(S::copies - 1, stage + zeros_to, zeros, group_there);
    }

    __device__ __forceinline__ void advance()
    {
        if (S::quantized)
            for (; next_group < end(); next_group += group_len) {
                scales += NB_TILE_N * 4;
                zeros += NB_TILE_N;
            }
        at += NB_TILE_K;
        x += S::row_bytes;
        if (block_begins())
            w += S::units * NB_UNIT;
    }
};

/* The stages in motion: begin() makes the next tile's stage readable for all warps and returns it; middle() when half
 * of it is multiplied; end() says that this warp has read it. */
template <typename S>
struct nb_gemm_pipe {
    nb_gemm_source<S> from;
    unsigned char *ring;
    uint32_t reading; /* where in the ring */
#if NB_HAS_SM80
    uint32_t filling;
    __device__ __forceinline__ void fetch()
    {
        if (from.more()) {
            from.each(filling, [&](int, uint32_t to, const void *source, bool there) {
                nb_cp_async_16(ring + to, source, there ? 16 : 0);
            });
            from.advance();
        }
        nb_cp_async_commit(); /* an empty group too, so that wait() may count */
        filling = next(filling);
    }
    static __device__ __forceinline__ uint32_t next(uint32_t stage)
    {
        return stage == (S::stages - 1) * S::stage ? 0 : stage + S::stage;
    }
    __device__ __forceinline__ void start()
    {
        filling = reading = 0;
#pragma unroll 1
        for (int i = 0; i < S::stages - 1; i++)
            fetch();
    }
    __device__ __forceinline__ const unsigned char *begin()
    {
        nb_cp_async_wait<S::stages - 2>();
        __syncthreads(); /* it has landed for all; and all have read the stage that is filled next */
        fetch();
        return ring + reading;
    }
    __device__ __forceinline__ void middle() {}
    __device__ __forceinline__ void end()
    {
        reading = next(reading);
    }
#else
    /* Half of the copies wait in registers while half of the tile is multiplied, then the other half. */
    static const int half = (S::copies + 1) / 2;
    uint4 waiting[half];
    template <int first>
    __device__ __forceinline__ void load()
    {
        if (from.more())
            from.each(0, [&](int i, uint32_t, const void *source, bool there) {
                if (i >= first && i < first + half)
                    waiting[i - first] = there ? __ldg((const uint4 *)source) : make_uint4(0, 0, 0, 0);
            });
    }
    template <int first>
    __device__ __forceinline__ void store()
    {
        if (from.more())
            from.each(S::stage - reading, [&](int i, uint32_t to, const void *, bool) {
                if (i >= first && i < first + half)
                    *(uint4 *)(ring + to) = waiting[i - first];
            });
    }
    __device__ __forceinline__ void start()
    {
        reading = S::stage; /* as if the tile before the first one were being read */
        load<0>();
        middle();
        end();
    }
    __device__ __forceinline__ const unsigned char *begin()
    {
        __syncthreads();
        load<0>();
        return ring + reading;
    }
    __device__ __forceinline__ void middle()
    {
        store<0>();
        load<half>();
    }
    __device__ __forceinline__ void end()
    {
        store<half>();
        from.advance();
        reading = S::stage - reading;
    }
#endif
};

/* ---- sums of a warp: P panels x R blocks of 8 rows ---- */

template <typename S>
struct nb_gemm_sums {
    typedef typename S::operand operand;
    float acc[S::P][S::R][4];
    typename operand::sum part[S::P][S::R][4];
    nb_scales scale[S::P];
    nb_zeros zero[S::P];
    nb_segment segment;
    uint32_t cut, x_lane; /* k where the next segment begins; of ldmatrix */
    typename S::Rows rows;

    __device__ __forceinline__ void init(const nb_packed &w)
    {
        const uint32_t lane = threadIdx.x % 32,
                       row = lane / 16 * 8 + lane % 8; /* of the two row blocks of an ldmatrix */
        x_lane = nb_gemm_x_at<S>(row, lane / 8 % 2);
        segment = nb_segment_first<typename S::X>(w);
        cut = 0;
#pragma unroll
        for (int i = 0; i < S::P * S::R * 4; i++)
            (&acc[0][0][0])[i] = 0;
    }

    /* Scales and zero points of the group that begins in this tile as its i-th. */
    __device__ __forceinline__ void load_group(const unsigned char *stage, uint32_t i, bool zeros)
    {
        const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4;
#pragma unroll
        for (int p = 0; p < S::P; p++) {
            const uint32_t at = ((warp * S::P + p) * NB_TILE_GROUPS + i) * NB_TILE_N + g;
            const float *s = (const float *)(stage + S::scales_at) + at;
            const uint8_t *z = stage + S::zeros_at + at;
            scale[p].g = s[0];
            scale[p].g8 = s[8];
            zero[p] =
                S::weight::zeros(zeros ? nb_zero_value<S::kind>(z[0]) : 0, zeros ? nb_zero_value<S::kind>(z[8]) : 0);
        }
    }

    /* The terms of an exact sum that mma does not see. */
    __device__ __forceinline__ void correct(const nb_gemm_args &a, const nb_place &at, uint32_t row0,
                                            int32_t (*sum)[S::R][4])
    {
        const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        const uint32_t panels = (at.p.n + NB_TILE_N - 1) / NB_TILE_N;
        int32_t corr[S::P][2] = {};
        if (at.p.corr)
#pragma unroll
            for (int p = 0; p < S::P; p++) {
                const uint32_t panel = min(at.n0 / NB_TILE_N + warp * S::P + p, panels - 1);
                const int32_t *c = at.p.corr + nb_group_at(at.p, panel, segment.group, g);
                corr[p][0] = c[0];
                corr[p][1] = c[8];
            }
#pragma unroll
        for (int r = 0; r < S::R; r++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const uint32_t row = row0 + 8 * r + 2 * t + j;
                const int32_t x = S::kind == NB_W_W8 && a.x_sums && row < a.rows
                                      ? a.x_sums[(uint64_t)rows.x(row) * at.p.groups + segment.group]
                                      : 0;
#pragma unroll
                for (int p = 0; p < S::P; p++) {
                    sum[p][r][j] = nb_exact(sum[p][r][j], zero[p].g, x, corr[p][0]);
                    sum[p][r][j + 2] = nb_exact(sum[p][r][j + 2], zero[p].g8, x, corr[p][1]);
                }
            }
    }

    __device__ __forceinline__ void join(const nb_gemm_args &a, const nb_place &at, uint32_t row0)
    {
        if constexpr (operand::bytes == 1)
            if (a.x_sums || at.p.corr)
                correct(a, at, row0, part);
#pragma unroll
        for (int p = 0; p < S::P; p++)
#pragma unroll
            for (int r = 0; r < S::R; r++)
                nb_join<S::kind>(acc[p][r], part[p][r], scale[p]);
    }

    __device__ __forceinline__ void clear()
    {
#pragma unroll
        for (int i = 0; i < S::P * S::R * 4; i++)
            (&part[0][0][0])[i] = 0;
    }

    /* Where a segment ends, the next one begins; at the beginning there is only the latter. */
    __device__ __forceinline__ void next_segment(const nb_gemm_args &a, const nb_place &at, uint32_t row0, uint32_t k,
                                                 const unsigned char *stage, uint32_t &begun)
    {
        if (k) {
            join(a, at, row0);
            segment = nb_segment_next<typename S::X>(segment, at.p.group_len);
        }
        if (S::quantized && k + at.p.group_len == segment.group_end)
            load_group(stage, begun++, at.p.zeros);
        clear();
        cut = segment.end;
    }

    /* Of a block of several tiles the words of the one from k0, where fragment() finds those of the first one.  Lanes read 4 (8)
     * bytes 16 apart: that takes as long as the whole units would, in a quarter (half) of the registers. */
    __device__ __forceinline__ void load_tile(uint4 (&unit)[S::P][S::units], const unsigned char *ring, uint32_t k0)
    {
        const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, tile = k0 / NB_TILE_K % S::tiles;
        const unsigned char *w = ring + S::w_place(k0) + S::w_at + warp * S::P * S::units * NB_UNIT + lane * 16;
#pragma unroll
        for (int i = 0; i < S::P * S::units; i++) {
            const unsigned char *from = w + i * NB_UNIT + tile * (16 / S::tiles);
            const uint2 two = S::tiles == 2 ? *(const uint2 *)from : make_uint2(*(const uint32_t *)from, 0);
            unit[i / S::units][i % S::units] = make_uint4(two.x, two.y, 0, 0);
        }
    }

    /* One tile of 64 k, from `k0`. */
    __device__ __forceinline__ void multiply(const nb_gemm_args &a, const nb_place &at, uint32_t row0, uint32_t k0,
                                             nb_gemm_pipe<S> &pipe)
    {
        const unsigned char *stage = pipe.begin();
        const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, x_at = nb_shared_address(stage) + x_lane;
        const uint4 *w = (const uint4 *)(stage + S::w_at) + warp * S::P * S::units * 32 + lane;
        const int unit_steps = S::tiles > 1 ? S::steps : S::steps / S::units;
        uint4 unit[S::P][S::units];
        uint32_t begun = 0; /* groups, in this tile */
        if (S::tiles > 1)
            load_tile(unit, pipe.ring, k0);
#pragma unroll
        for (int step = 0; step < S::steps; step++) {
            const uint32_t k = k0 + step * operand::k;
            if (step == S::steps / 2)
                pipe.middle();
            if (k >= cut) {
                if (k >= a.k) /* in the last tile only */
                    break;
                next_segment(a, at, row0, k, stage, begun);
            }
            uint32_t wf[S::P][4];
#pragma unroll
            for (int p = 0; p < S::P; p++) {
                if (S::tiles == 1 && step % unit_steps == 0)
                    unit[p][step / unit_steps] = w[(p * S::units + step / unit_steps) * 32];
                S::weight::fragment(wf[p], unit[p], step, zero[p]);
            }
#pragma unroll
            for (int r = 0; r < S::R; r += 2) {
                uint32_t xf[4];
                nb_ldmatrix_x4(xf, (x_at ^ (step * 32)) + r * 8 * S::row_bytes);
#pragma unroll
                for (int p = 0; p < S::P; p++) {
                    operand::mma(part[p][r], wf[p], xf);
                    operand::mma(part[p][r + 1], wf[p], xf + 2);
                }
            }
        }
        pipe.end();
    }
};

/* ---- from sums to y: through shared memory, [rows][16 P + 4] floats a warp, so that lanes write neighbours along
 * n.  The 4 extra keep the eight rows and four columns of an mma tile in different banks ---- */

template <typename S, typename T>
NB_DEVICE void nb_gemm_store(const nb_gemm_args &a, const nb_place &at, uint32_t row0, const nb_gemm_sums<S> &sums,
                             float *out)
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t n0 = at.n0 + warp * S::P * NB_TILE_N; /* of the warp */
    const int width = S::P * NB_TILE_N + 4;
    out += warp * S::rows * width + 2 * t * width + g;
    if (n0 >= at.p.n)
        return;
    float bias[S::P][2]; /* of rows g and g+8; there is room for those beyond n in the last panel */
#pragma unroll
    for (int p = 0; p < S::P; p++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            bias[p][h] = at.p.bias && n0 + p * NB_TILE_N < at.p.n ? at.p.bias[n0 + p * NB_TILE_N + g + 8 * h] : 0;
#pragma unroll
    for (int r = 0; r < S::R; r++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const uint32_t row = row0 + 8 * r + 2 * t + j;
            const float sx = S::operand::bytes == 1 && row < a.rows ? a.x_scale[sums.rows.x(row)] : 0;
#pragma unroll
            for (int p = 0; p < S::P; p++)
#pragma unroll
                for (int h = 0; h < 2; h++)
                    out[(8 * r + j) * width + p * NB_TILE_N + 8 * h] =
                        nb_finished<typename S::X>(sums.acc[p][r][2 * h + j], sx, at.p.bias, bias[p][h]);
        }
    out -= 2 * t * width + g;
    __syncwarp();
    /* 4 P lanes a row.  P 1: eight lanes that read together have rows 4 apart, which are 16 banks apart. */
    const uint32_t row_lane = S::P == 2 ? lane / 8 : lane / 8 + lane / 4 % 2 * 4, n = lane % (4 * S::P) * 4;
    const uint64_t y_at = (uint64_t)sums.rows.y(row0) * a.ldy + at.column + n0 + n; /* rows of y are neighbours */
    const bool aligned = nb_store_aligned(a, at.column);
#pragma unroll 2
    for (uint32_t row = row_lane; row < S::rows && row0 + row < a.rows; row += 8 / S::P) {
        const float4 v = *(const float4 *)(out + row * width + n);
        nb_store_up_to_4<T>(a, y_at + (uint64_t)row * a.ldy, v, n0 + n < at.p.n ? at.p.n - n0 - n : 0, aligned);
    }
}

/* Tile tile_n of columns, rows row0 and on. */
template <int kind, typename X, typename T, int P, int R, typename Rows>
NB_DEVICE void nb_gemm(const nb_gemm_args &a, uint32_t tile_n, uint32_t row0, Rows rows)
{
    typedef nb_gemm_shape<kind, X, P, R, Rows> S;
    extern __shared__ __align__(128) unsigned char nb_gemm_shared[];
    const nb_place at = nb_place_of(a, tile_n, S::n);
    nb_gemm_pipe<S> pipe;
    nb_gemm_sums<S> sums;
    pipe.ring = nb_gemm_shared;
    pipe.from.init(a, at, row0, rows);
    pipe.start();
    sums.rows = rows;
    sums.init(at.p);
#pragma unroll 1
    for (uint32_t k = 0; k < a.k; k += NB_TILE_K)
        sums.multiply(a, at, row0, k, pipe);
    sums.join(a, at, row0);
    nb_cp_async_wait<0>();
    __syncthreads();
    nb_gemm_store<S, T>(a, at, row0, sums, (float *)nb_gemm_shared);
}

/* The kernels of kernels.h for one kind of weight: every tile, for activations of type T multiplied as X. */

#define NB_GEMM_KERNEL(tile, P, R, name, kind, X, T, suffix)                                                           \
    extern "C" __global__ void __launch_bounds__(128) name##_##tile##_##suffix(const nb_gemm_args a)                   \
    {                                                                                                                  \
        NB_IF_##suffix((nb_gemm<kind, X, T, P, R>(a, blockIdx.y, blockIdx.x * 8 * R, nb_all_rows()));)                 \
    }

#endif
