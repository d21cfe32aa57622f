/* Attention over the paged KV cache: y = causal softmax(q k^T * scale) v, on tensor cores, by one arithmetic for decode and prefill
 *
 *   qkv, y   T, 16-byte aligned; K and V blocks of pages as backend.h lays them out; head_dim even, up to 256
 *   launch   grid: any number of blocks, which take pieces (items x kv heads) in turns; block 128; shared memory: attend.h
 *   rows     the rows of the A operands are the pairs (query row, head of the kv head's group) of a piece, 16 (split) or 32 or 64
 *            (walk) at a time: heads that share K and V fill them first
 *   kinds    split: one chunk of 128 keys a piece; writes o, m, l of the chunk as fp32, attend_merge.cu joins chunks
 *            walk: all chunks of the piece's rows, in order; joins them in registers; writes y
 *   traffic  split: K and V once for each 16 rows, 4 (head_dim + 2) bytes a chunk, row and head out and in again;
 *            walk: K and V once for each 32 or 64 rows
 *
 * The arithmetic of a chunk, for one row (docs/numerics.md has the rest):
 *   s[j] = dot(q, k[j]) * c        c = scale * log2(e); INT8: c[j] = k_scale[j] * c, and the codes are what is multiplied.
 *                                  dot: mma over 32 dimensions at a time, ascending, fp32 sums from 0
 *   m = max s over the keys j <= position
 *   p[j] = 2^(s[j] - m), 0 beyond position
 *   l: warp w adds the p of tiles w, w+4, w+8, w+12 of 8 keys (a lane: keys 2t, 2t+1 of each, in order; lanes: xor 1, xor 2);
 *      ((l0 + l1) + l2) + l3
 *   o = sum of half(p[j]) v[j], mma over 16 keys at a time, ascending, fp32 sums from 0.  INT8: half(p[j] * (v_scale[j] * 64)) times
 *      the codes; 64 keeps small scales off the subnormal halves, and L is multiplied by it at the end
 *   merge, chunks in order: M' = max(M, m), a = 2^(M - M'), b = 2^(m - M'), L = fma(l, b, L * a), O = fma(o, b, O * a); y = O * (1 / L)
 * Whoever else is in the tile does not enter: masked keys are exact zeros in p, and V beyond the last position reads as zero.  (A V
 * that is not finite spoils all rows that share its tile, also those before it: 0 * infinity.  Its own row is spoilt anyway.)
 * Measured on the stand-in driver, head_dim 128: K and V move no sector more than they must; no bank conflicts (INT8, INT4: storing
 * queries in their order adds 3 to 7% of wavefronts). */
#ifndef NB_CUDA_ATTEND_CUH
#define NB_CUDA_ATTEND_CUH

#include "attend_frag.cuh"
#include "attend_math.cuh"

template <int type_, int d_max, bool walk_>
struct nb_attend_kind {
    static constexpr int type = type_;
    static constexpr bool walk = walk_;
    static constexpr int keys = NB_ATTEND_KEYS(type_, d_max); /* of a stage */
    static constexpr int m_tiles = NB_ATTEND_M_TILES(walk_, d_max, NB_HAS_SM80);
    static constexpr int stages = NB_ATTEND_STAGES(type_, walk_, NB_HAS_SM80);
    static constexpr int rows = 16 * m_tiles;
    static constexpr int parts = NB_ATTEND_CHUNK / keys; /* tiles of K, and of V, in a chunk */
    static constexpr int n_tiles = keys / 32;            /* 8 keys each: of a warp in a stage */
    static constexpr int units = d_max / NB_UNIT_DIMS(type_) / NB_ATTEND_WARPS;
    static constexpr int unit_tiles = NB_UNIT_TILES(type_);
};

/* One piece as a block sees it.  Tiles are numbered through: for each chunk its tiles of K, then those of V. */
template <typename Kind>
struct nb_attend_piece {
    const nb_attend_args &a;
    const nb_attend_shape &s;
    nb_attend_source src;
    char *memory;
    uint32_t row0, head0;     /* of A row 0: the query row, and the first head of the group */
    uint32_t group;           /* heads of a kv head */
    uint32_t m0, m_end;       /* this tile's first row among the (query row, head) pairs, and their number */
    int32_t first_pos;        /* position of A row 0; src.last is that of the last row */
    uint32_t first, last;     /* chunks */
    uint32_t last_parts;      /* tiles of K in the last one */
    uint32_t next, total;     /* tiles: the next one to load, all */
    int32_t page, page_ahead; /* lane i: page i of the chunk that is being loaded, and of the one behind it */
    float scale;
};

template <typename Kind>
NB_DEVICE int32_t pages_of(const nb_attend_piece<Kind> &w, uint32_t chunk)
{
    const uint32_t page = chunk * (NB_ATTEND_CHUNK / NB_PAGE) + threadIdx.x % 8;
    return (int32_t)(page * NB_PAGE) <= w.src.last ? w.src.pages[page] : 0;
}

/* Starts the load of the next tile, if there is one; in any case closes a group of copies. */
template <typename Kind>
NB_DEVICE void load_next(nb_attend_piece<Kind> &w)
{
    if (w.next < w.total) {
        const uint32_t full = 2 * Kind::parts, chunk = min(w.first + w.next / full, w.last);
        const uint32_t of_chunk = w.next - (chunk - w.first) * full;
        const uint32_t parts = chunk == w.last ? w.last_parts : Kind::parts;
        const int which = of_chunk >= parts;
        const uint32_t part = which ? of_chunk - parts : of_chunk;
        if (of_chunk == 0 && w.next) {
            w.page = w.page_ahead;
            w.page_ahead = pages_of(w, chunk + 1);
        }
        char *stage = w.memory + w.next % Kind::stages * w.s.stage;
        nb_load_tile<Kind::type, Kind::keys>(w.s, w.src, which, chunk * NB_ATTEND_CHUNK + part * Kind::keys, w.page,
                                             stage);
        w.next++;
    }
    nb_cp_async_commit();
}

/* Waits for tile `tile`, then lets the load of a later one begin in the stage of the tile before it, which all have left behind. */
template <typename Kind>
NB_DEVICE char *next_tile(nb_attend_piece<Kind> &w, uint32_t tile)
{
    nb_cp_async_wait<Kind::stages - 2>();
    __syncthreads();
    load_next(w);
    return w.memory + tile % Kind::stages * w.s.stage;
}

/* Queries to shared memory, and the positions of the rows: -1 for those that are none. */
template <typename Kind>
NB_DEVICE void load_rows(const nb_attend_piece<Kind> &w)
{
    const uint32_t eights = 4 * w.s.blocks, width = w.a.n_heads + 2 * w.a.kv.n_kv_heads, D = w.a.kv.head_dim;
    for (uint32_t i = threadIdx.x; i < Kind::rows * eights; i += 128) {
        const uint32_t r = i / eights, e = i % eights, m = w.m0 + r;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (m < w.m_end) {
            const size_t head = (size_t)(w.row0 + m / w.group) * width + w.head0 + m % w.group;
            v = nb_load_query((const uint16_t *)w.a.qkv + head * D, 8 * e, D, w.a.dtype);
        }
        nb_store_query<Kind::type>(w.s.q, w.memory + w.s.q_at, r, e, v);
    }
    if (threadIdx.x < Kind::rows) {
        const uint32_t m = w.m0 + threadIdx.x;
        ((int32_t *)(w.memory + w.s.pos_at))[threadIdx.x] = m < w.m_end ? w.a.step.pos[w.row0 + m / w.group] : -1;
    }
}

/* s += q k^T for the keys of one stage, then * c: x[tile][m tile] as C fragments. */
template <typename Kind>
NB_DEVICE void score_tile(const nb_attend_piece<Kind> &w, const char *stage, float x[Kind::n_tiles][Kind::m_tiles][4],
                          float v_scale[Kind::n_tiles][2])
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const nb_lane_row k = nb_key_row<Kind::type>(w.s, nb_shared_address(stage));
    const nb_lane_row q = nb_lane_row_of(w.s.q, nb_shared_address(w.memory + w.s.q_at), lane % 16);
    const uint32_t *scales = (const uint32_t *)(stage + Kind::keys * w.s.k.stride * 16);
#pragma unroll 2
    for (uint32_t block = 0; block < w.s.blocks; block++) {
        uint32_t b[Kind::n_tiles][2][2], qa[4];
        nb_key_fragments<Kind::type, Kind::n_tiles>(w.s, k, scales, block, b);
#pragma unroll
        for (int step = 0; step < 2; step++)
#pragma unroll
            for (int m = 0; m < Kind::m_tiles; m++) {
                nb_ldmatrix_x4(qa, nb_piece_at(q, 4 * block + 2 * step + lane / 16) + m * 256 * w.s.q.stride);
#pragma unroll
                for (int i = 0; i < Kind::n_tiles; i++)
                    nb_mma_f16(x[i][m], qa, b[i][step]);
            }
    }
#pragma unroll
    for (int i = 0; i < Kind::n_tiles; i++) {
        float c[2] = {w.scale, w.scale};
        if constexpr (Kind::type == NB_KV_INT8) {
            const float *k_scale = (const float *)scales + 8 * warp + 32 * i + lane % 4 * 2;
#pragma unroll
            for (int e = 0; e < 2; e++) {
                c[e] = k_scale[e] * w.scale;
                v_scale[i][e] = k_scale[Kind::keys + e] * NB_V_SCALE;
            }
        }
#pragma unroll
        for (int m = 0; m < Kind::m_tiles; m++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                x[i][m][e] *= c[e % 2];
    }
}

/* Whether every row sees key `key` of the chunk; rows that are none do not count. */
template <typename Kind>
NB_DEVICE bool all_see(const nb_attend_piece<Kind> &w, uint32_t chunk, uint32_t key)
{
    return w.first_pos >= (int32_t)(chunk * NB_ATTEND_CHUNK + key);
}

/* -infinity for keys beyond the row's position. */
template <typename Kind>
NB_DEVICE void mask(const nb_attend_piece<Kind> &w, uint32_t chunk, float x[16 / 4][Kind::m_tiles][4])
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int32_t *pos = (const int32_t *)(w.memory + w.s.pos_at);
    const int32_t key = (int32_t)(chunk * NB_ATTEND_CHUNK + 8 * warp + lane % 4 * 2);
#pragma unroll
    for (int m = 0; m < Kind::m_tiles; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int32_t beyond = pos[16 * m + 8 * h + lane / 4] - key;
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    if (32 * i + e > beyond)
                        x[i][m][2 * h + e] = -NB_INFINITY;
        }
}

/* The largest score of each row over the warps' tiles. */
template <typename Kind>
NB_DEVICE void share_maxima(const nb_attend_piece<Kind> &w, const float x[16 / 4][Kind::m_tiles][4])
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float *most = (float *)(w.memory + w.s.max_at) + warp * Kind::rows;
#pragma unroll
    for (int m = 0; m < Kind::m_tiles; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float v = -NB_INFINITY;
#pragma unroll
            for (int i = 0; i < 4; i++)
                v = fmaxf(v, fmaxf(x[i][m][2 * h], x[i][m][2 * h + 1]));
            v = nb_warp_max<4>(v);
            if (lane % 4 == 0)
                most[16 * m + 8 * h + lane / 4] = v;
        }
}

template <typename Kind>
NB_DEVICE float chunk_max(const nb_attend_piece<Kind> &w, uint32_t row)
{
    const float *most = (const float *)(w.memory + w.s.max_at) + row;
    return fmaxf(fmaxf(most[0], most[Kind::rows]), fmaxf(most[2 * Kind::rows], most[3 * Kind::rows]));
}

template <typename Kind>
NB_DEVICE float chunk_sum(const nb_attend_piece<Kind> &w, uint32_t row)
{
    const float *sum = (const float *)(w.memory + w.s.sum_at) + row;
    return sum[0] + sum[Kind::rows] + sum[2 * Kind::rows] + sum[3 * Kind::rows];
}

/* Scores become probabilities: halves in shared memory, and the warps' sums of them as fp32. */
template <typename Kind>
NB_DEVICE void share_probabilities(const nb_attend_piece<Kind> &w, const float x[16 / 4][Kind::m_tiles][4],
                                   const float v_scale[16 / 4][2])
{
    const nb_rows16 rows = {16, 16, 0, 7};
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float *sum = (float *)(w.memory + w.s.sum_at) + warp * Kind::rows;
#pragma unroll
    for (int m = 0; m < Kind::m_tiles; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t row = 16 * m + 8 * h + lane / 4;
            const float most = chunk_max(w, row);
            float l = 0;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float p[2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    p[e] = nb_ex2(x[i][m][2 * h + e] - most);
                    l += p[e];
                    if constexpr (Kind::type == NB_KV_INT8)
                        p[e] *= v_scale[i][e];
                }
                *(uint32_t *)(w.memory + w.s.p_at + nb_piece_at(rows, row, warp + 4 * i) + lane % 4 * 4) =
                    nb_pack2<__half>(p[0], p[1]);
            }
            l = nb_warp_sum<4>(l);
            if (lane % 4 == 0)
                sum[row] = l;
        }
}

/* o += p v for the keys of one stage, the `part`-th of the chunk. */
template <typename Kind>
NB_DEVICE void value_tile(const nb_attend_piece<Kind> &w, const char *stage, uint32_t part,
                          float o[Kind::units][Kind::unit_tiles][Kind::m_tiles][4])
{
    const nb_rows16 p_rows = {16, 16, 0, 7};
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const nb_lane_row v_row =
        nb_lane_row_of(w.s.k, nb_shared_address(stage), Kind::type == NB_KV_F16 ? lane % 16 : lane);
    const nb_lane_row p = nb_lane_row_of(p_rows, nb_shared_address(w.memory + w.s.p_at), lane % 16);
    const uint32_t *scales = (const uint32_t *)(stage + Kind::keys * w.s.k.stride * 16);
#pragma unroll
    for (int key = 0; key < Kind::keys; key += 32) {
        const uint32_t piece = (part * Kind::keys + key) / 8 + lane / 16;
        uint32_t pa[2][Kind::m_tiles][4], b[2];
#pragma unroll
        for (int step = 0; step < 2; step++)
#pragma unroll
            for (int m = 0; m < Kind::m_tiles; m++)
                nb_ldmatrix_x4(pa[step][m], nb_piece_at(p, piece + 2 * step) + m * 256 * p_rows.stride);
#pragma unroll
        for (int u = 0; u < Kind::units; u++) {
            const uint32_t unit = warp + NB_ATTEND_WARPS * u;
            if (unit * NB_UNIT_DIMS(Kind::type) >= w.a.kv.head_dim)
                break;
            nb_value_words<Kind::type> v;
            nb_load_values<Kind::type>(w.s, v_row, scales, key, unit, v);
#define STEP(step, tile)                                                                                               \
    if constexpr (tile < Kind::unit_tiles) {                                                                           \
        nb_value_fragment<Kind::type, step, tile>(v, b);                                                               \
        _Pragma("unroll") for (int m = 0; m < Kind::m_tiles; m++) nb_mma_f16(o[u][tile][m], pa[step][m], b);           \
    }
            STEP(0, 0)
            STEP(0, 1)
            STEP(0, 2)
            STEP(0, 3)
            STEP(1, 0)
            STEP(1, 1)
            STEP(1, 2)
            STEP(1, 3)
#undef STEP
        }
    }
}

/* Calls put(of, d, v) for each run of dimensions from d on, four or (INT4) eight, that this lane has of a row r, where of = row(r).
 * All lanes call it together. */
template <typename Kind, typename Row, typename Put>
NB_DEVICE void for_each_run(const float o[Kind::units][Kind::unit_tiles][Kind::m_tiles][4], Row row, Put put)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < Kind::m_tiles; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const auto of = row(16 * m + 8 * h + lane / 4);
#pragma unroll
            for (int u = 0; u < Kind::units; u++) {
                const uint32_t d = (warp + NB_ATTEND_WARPS * u) * NB_UNIT_DIMS(Kind::type);
                if constexpr (Kind::type ==
                              NB_KV_F16) { /* lanes t and t^1 trade pairs, so that each has four in a row */
                    const float *mine = &o[u][0][m][2 * h], *other = &o[u][1][m][2 * h];
                    const bool odd = lane % 2;
                    const float x = __shfl_xor_sync(NB_ALL_LANES, odd ? mine[0] : other[0], 1);
                    const float y = __shfl_xor_sync(NB_ALL_LANES, odd ? mine[1] : other[1], 1);
                    const float v[4] = {odd ? x : mine[0], odd ? y : mine[1], odd ? other[0] : x, odd ? other[1] : y};
                    put(of, d + (odd ? 8 : 0) + lane % 4 / 2 * 4, v);
                } else {
                    float v[2 * Kind::unit_tiles];
#pragma unroll
                    for (int i = 0; i < 2 * Kind::unit_tiles; i++)
                        v[i] = o[u][i % Kind::unit_tiles][m][2 * h + i / Kind::unit_tiles];
                    put(of, d + lane % 4 * 2 * Kind::unit_tiles, v);
                }
            }
        }
}

/* Four neighbours of a row of `width` (an even number) elements as fp32. */
NB_DEVICE void put_floats(float *to, uint32_t d, uint32_t width, const float (&v)[4])
{
    if (width % 4 == 0) {
        if (d < width)
            *(float4 *)(to + d) = make_float4(v[0], v[1], v[2], v[3]);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i += 2)
        if (d + i < width)
            *(float2 *)(to + d + i) = make_float2(v[i], v[i + 1]);
}

/* Eight: two lanes trade halves, so that a store of theirs fills a sector. */
NB_DEVICE void put_floats(float *to, uint32_t d, uint32_t width, const float (&v)[8])
{
    const bool odd = threadIdx.x % 2;
    float low[4], high[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float traded = __shfl_xor_sync(NB_ALL_LANES, odd ? v[i] : v[4 + i], 1);
        low[i] = odd ? traded : v[i];
        high[i] = odd ? v[4 + i] : traded;
    }
    put_floats(to, odd ? d - 4 : d, width, low);
    put_floats(to, odd ? d + 4 : d + 8, width, high);
}

/* ... and as T. */
NB_DEVICE uint32_t round_pair(float lo, float hi, uint32_t dtype)
{
    return dtype == NB_T_F16 ? nb_pack2<__half>(lo, hi) : nb_pack2<__nv_bfloat16>(lo, hi);
}

template <int n>
NB_DEVICE void put_t(uint16_t *to, uint32_t d, uint32_t width, const float (&v)[n], uint32_t dtype)
{
    uint32_t w[n / 2];
#pragma unroll
    for (int i = 0; i < n / 2; i++)
        w[i] = round_pair(v[2 * i], v[2 * i + 1], dtype);
    if (n == 8 && width % 8 == 0) {
        if (d < width)
            *(uint4 *)(to + d) = make_uint4(w[0], w[1], w[n / 2 - 2], w[n / 2 - 1]);
    } else if (n == 4 && width % 4 == 0) {
        if (d < width)
            *(uint2 *)(to + d) = make_uint2(w[0], w[1]);
    } else
#pragma unroll
        for (int i = 0; i < n / 2; i++)
            if (d + 2 * i < width)
                *(uint32_t *)(to + d + 2 * i) = w[i];
}

/* The state of row threadIdx.x, which one thread keeps; l of a chunk is there a barrier later than m. */
struct nb_attend_row {
    nb_attend_sum sum;
    float2 ab;
    bool sees; /* a key of the chunk */
};

/* M takes in the chunk's m; all learn a and b.  b = -1: the row sees nothing of this chunk and stays as it is. */
template <typename Kind>
NB_DEVICE void share_factors(const nb_attend_piece<Kind> &w, uint32_t chunk, nb_attend_row &row)
{
    const uint32_t r = threadIdx.x;
    if (r >= Kind::rows)
        return;
    row.sees = ((const int32_t *)(w.memory + w.s.pos_at))[r] >= (int32_t)(chunk * NB_ATTEND_CHUNK);
    row.ab = make_float2(1, -1);
    if (row.sees)
        row.ab = nb_attend_join(row.sum, chunk_max(w, r), chunk == w.first);
    ((float2 *)(w.memory + w.s.ab_at))[r] = row.ab;
}

/* Behind the barrier that follows: the sums of p are there. */
template <typename Kind>
NB_DEVICE void add_sum(const nb_attend_piece<Kind> &w, uint32_t chunk, nb_attend_row &row)
{
    if (threadIdx.x < Kind::rows && row.sees)
        nb_attend_add(row.sum, chunk_sum(w, threadIdx.x), row.ab, chunk == w.first);
}

/* O takes in the chunk's o.  some: rows whose b is -1 are left as they are. */
template <typename Kind, bool some>
NB_DEVICE void merge_values(const nb_attend_piece<Kind> &w,
                            const float o[Kind::units][Kind::unit_tiles][Kind::m_tiles][4],
                            float O[Kind::units][Kind::unit_tiles][Kind::m_tiles][4])
{
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < Kind::m_tiles; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float2 ab = ((const float2 *)(w.memory + w.s.ab_at))[16 * m + 8 * h + lane / 4];
#pragma unroll
            for (int u = 0; u < Kind::units; u++)
#pragma unroll
                for (int tile = 0; tile < Kind::unit_tiles; tile++)
#pragma unroll
                    for (int e = 2 * h; e < 2 * h + 2; e++) {
                        float &sum = O[u][tile][m][e];
                        const float joined = nb_attend_merged(sum, o[u][tile][m][e], ab);
                        sum = some && ab.y == -1 ? sum : joined;
                    }
        }
}

template <typename Kind>
NB_DEVICE void merge(const nb_attend_piece<Kind> &w, uint32_t chunk,
                     const float o[Kind::units][Kind::unit_tiles][Kind::m_tiles][4],
                     float O[Kind::units][Kind::unit_tiles][Kind::m_tiles][4])
{
    if (chunk == w.first)
        memcpy(O, o, sizeof(float) * Kind::units * Kind::unit_tiles * Kind::m_tiles * 4);
    else if (all_see(w, chunk, 0))
        merge_values<Kind, false>(w, o, O);
    else
        merge_values<Kind, true>(w, o, O);
}

/* One chunk: its scores, probabilities and values o; tile counts on. */
template <typename Kind>
NB_DEVICE void attend_chunk(nb_attend_piece<Kind> &w, uint32_t chunk, uint32_t &tile, nb_attend_row &row,
                            float o[Kind::units][Kind::unit_tiles][Kind::m_tiles][4])
{
    const uint32_t parts = chunk == w.last ? w.last_parts : Kind::parts;
    {
        float x[16 / 4][Kind::m_tiles][4], v_scale[16 / 4][2];
        memset(x, 0, sizeof x);
        memset(v_scale, 0, sizeof v_scale);
#pragma unroll
        for (int part = 0; part < Kind::parts; part++)
            if (part < parts)
                score_tile(w, next_tile(w, tile++), x + part * Kind::n_tiles, v_scale + part * Kind::n_tiles);
        if (!all_see(w, chunk, NB_ATTEND_CHUNK - 1))
            mask(w, chunk, x);
        share_maxima(w, x);
        __syncthreads();
        share_probabilities(w, x, v_scale);
        share_factors(w, chunk, row);
    }
    memset(o, 0, sizeof(float) * Kind::units * Kind::unit_tiles * Kind::m_tiles * 4);
#pragma unroll 1
    for (uint32_t part = 0; part < parts; part++) {
        const char *stage = next_tile(w, tile++);
        if (part == 0)
            add_sum(w, chunk, row);
        value_tile(w, stage, part, o);
    }
}

/* y of the rows. */
template <typename Kind>
NB_DEVICE void write_rows(const nb_attend_piece<Kind> &w, const nb_attend_row &row,
                          const float O[Kind::units][Kind::unit_tiles][Kind::m_tiles][4])
{
    struct Row {
        uint16_t *y;
        float by;
        uint32_t width; /* 0: none */
    };
    const uint32_t D = w.a.kv.head_dim;
    float *by = (float *)(w.memory + w.s.ab_at);
    __syncthreads();
    if (threadIdx.x < Kind::rows)
        by[threadIdx.x] = nb_attend_by(Kind::type, row.sum.L);
    __syncthreads();
    for_each_run<Kind>(
        O,
        [&](uint32_t r) {
            const uint32_t m = w.m0 + r;
            const size_t head = (size_t)(w.row0 + m / w.group) * w.a.n_heads + w.head0 + m % w.group;
            return Row{(uint16_t *)w.a.y + head * D, by[r], m < w.m_end ? D : 0};
        },
        [&](const Row &of, uint32_t d, const auto &v) {
            constexpr int n = sizeof v / sizeof v[0];
            float y[n];
#pragma unroll
            for (int i = 0; i < n; i++)
                y[i] = v[i] * of.by;
            put_t(of.y, d, of.width, y, w.a.dtype);
        });
}

/* o, m and l of the rows that see a key of the chunk. */
template <typename Kind>
NB_DEVICE void write_partials(const nb_attend_piece<Kind> &w, const nb_attend_row &row,
                              const float o[Kind::units][Kind::unit_tiles][Kind::m_tiles][4])
{
    struct Row {
        float *o;
        uint32_t width;
    };
    const uint32_t D = w.a.kv.head_dim;
    const int32_t *pos = (const int32_t *)(w.memory + w.s.pos_at);
    auto head_of = [&](uint32_t r) {
        const uint32_t m = w.m0 + r;
        return (size_t)(w.a.row_slot[w.row0 + m / w.group] + w.first) * w.a.n_heads + w.head0 + m % w.group;
    };
    for_each_run<Kind>(
        o,
        [&](uint32_t r) {
            const bool sees = pos[r] >= (int32_t)(w.first * NB_ATTEND_CHUNK);
            return Row{w.a.part_o + (sees ? head_of(r) * D : 0), sees ? D : 0};
        },
        [&](const Row &of, uint32_t d, const auto &v) { put_floats(of.o, d, of.width, v); });
    if (threadIdx.x < Kind::rows && row.sees)
        *(float2 *)(w.a.part_ml + head_of(threadIdx.x) * 2) = make_float2(row.sum.M, row.sum.L);
}

template <typename Kind>
NB_DEVICE void attend_rows(nb_attend_piece<Kind> &w)
{
    float o[Kind::units][Kind::unit_tiles][Kind::m_tiles][4];
    nb_attend_row row = {{0, 0}, {0, 0}, false};
    uint32_t tile = 0;
    __syncthreads(); /* the piece before this one has left shared memory */
    w.page = pages_of(w, w.first);
    w.page_ahead = pages_of(w, w.first + 1);
    w.next = 0;
#pragma unroll 1
    for (int i = 0; i < Kind::stages - 1; i++)
        load_next(w);
    load_rows(w);
    if constexpr (Kind::walk) {
        float O[Kind::units][Kind::unit_tiles][Kind::m_tiles][4];
        memset(O, 0, sizeof O);
#pragma unroll 1
        for (uint32_t chunk = w.first; chunk <= w.last; chunk++) {
            attend_chunk(w, chunk, tile, row, o);
            merge(w, chunk, o, O);
        }
        write_rows(w, row, O);
    } else {
        attend_chunk(w, w.first, tile, row, o);
        write_partials(w, row, o);
    }
    nb_cp_async_wait<0>();
}

template <typename Kind>
NB_DEVICE void attend_item(const nb_attend_args &a, const nb_attend_item &item, uint32_t kv_head, char *memory)
{
    const nb_attend_shape &s = a.shape;
    const uint32_t group = a.n_heads / a.kv.n_kv_heads;
    const uint32_t at = threadIdx.x / s.k.pieces;
    nb_attend_piece<Kind> w = {a, s};
    w.memory = memory;
    w.row0 = item.row0;
    w.head0 = kv_head * group;
    w.group = group;
    w.m_end = item.n_rows * group;
    w.scale = a.scale;
    w.src.page_bytes = a.kv.n_kv_heads * a.kv.block_bytes;
    w.src.k = (const char *)a.kv.k + (size_t)kv_head * a.kv.block_bytes;
    w.src.v = (const char *)a.kv.v + (size_t)kv_head * a.kv.block_bytes;
    w.src.pages = a.step.pages + a.step.row_pages[item.row0];
    w.src.key = at;
    w.src.piece = threadIdx.x - at * s.k.pieces;
    w.src.d_key = 128 / s.k.pieces;
    w.src.d_piece = 128 % s.k.pieces;
    const int32_t pos0 = a.step.pos[item.row0];
#pragma unroll 1
    for (w.m0 = 0; w.m0 < w.m_end; w.m0 += Kind::rows) {
        w.first_pos = pos0 + (int32_t)(w.m0 / group);
        w.src.last = pos0 + (int32_t)((min(w.m0 + Kind::rows, w.m_end) - 1) / group);
        w.first = Kind::walk ? 0 : item.chunk;
        w.last = Kind::walk ? (uint32_t)w.src.last / NB_ATTEND_CHUNK : item.chunk;
        const int32_t in_last = w.src.last - (int32_t)(w.last * NB_ATTEND_CHUNK); /* key number in the last chunk */
        if (in_last < 0)
            continue; /* these rows come before the chunk */
        w.last_parts = min((uint32_t)in_last / Kind::keys + 1, (uint32_t)Kind::parts);
        w.total = (w.last - w.first) * 2 * Kind::parts + 2 * w.last_parts;
        attend_rows(w);
    }
}

template <int type, int d_max, bool walk>
NB_DEVICE void attend(const nb_attend_args &a)
{
    typedef nb_attend_kind<type, d_max, walk> Kind;
    extern __shared__ uint4 memory[];
    const uint32_t n = *a.n_items * a.kv.n_kv_heads;
#pragma unroll 1
    for (uint32_t i = blockIdx.x; i < n; i += gridDim.x)
        attend_item<Kind>(a, a.items[i / a.kv.n_kv_heads], i % a.kv.n_kv_heads, (char *)memory);
}

#define NB_ATTEND(name, type, d_max, walk)                                                                             \
    extern "C" __global__ void __launch_bounds__(128, walk ? 2 : 4) name(const __grid_constant__ nb_attend_args a)     \
    {                                                                                                                  \
        attend<type, d_max, walk>(a);                                                                                  \
    }

#endif
