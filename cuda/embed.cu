/* x[r] = row ids[r] of a packed table, fp32: (q - z) * scale with one rounding, or the dense value; rows at position
 * -1 (padding of a recorded step) are left as they are.
 *
 *   table   any kind, also a row-major one; a dense one in half or bfloat16, by its dtype; k a multiple of 16
 *   x       [rows][k], 16-byte aligned
 *   launch  grid (rows, pieces): any number of pieces shares a row; block 128
 *   traffic of a row: 4k bytes written, twice its bytes read (the 16-byte pieces of two rows are interleaved)
 *
 * Lanes 4g + t of a unit (layout.h) hold rows g and g+8; a thread here is such a lane: it finds four k, 2t, 2t+1,
 * 2t+8, 2t+9, of each block of 16. */
#include "weights.cuh"

/* The two words of block b of a dense tile that belong to the row: 2t,2t+1 and 2t+8,2t+9. */
NB_DEVICE uint2 nb_embed_words(const uint4 *tile, uint32_t lane, uint32_t high, int b)
{
    const uint4 u = tile[b * 32 + lane];
    return high ? make_uint2(u.y, u.w) : make_uint2(u.x, u.z);
}

NB_DEVICE float2 nb_embed_dense(uint32_t two, uint32_t dtype)
{
    if (dtype == NB_T_BF16)
        return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u));
    return __half22float2(*(const __half2 *)&two);
}

/* The code of 3 bits at position i of block b, from the three words of a tile (layout.h). */
NB_DEVICE int nb_embed_w3(const uint32_t w[3], uint32_t high, int b, int i)
{
    const int shift = i / 2 * 16, upper = i % 2;
    if (b < 3)
        return (int)(w[b] >> (shift + 4 + 3 * (int)high + 6 * upper) & 7);
    if (!high || !upper)
        return (int)(w[high ? 2 : upper] >> (shift + 1) & 7);
    return (int)((w[0] >> shift & 1) | (w[1] >> shift & 1) << 1 | (w[2] >> shift & 1) << 2);
}

/* The codes at positions 0..3 (2t, 2t+8, 2t+1, 2t+9) of k16 block b of tile `tile` of a row, signed but for those of W4 and W4F,
 * whose zero points have the same offset. */
NB_DEVICE void nb_embed_codes(int q[4], uint32_t kind, const uint4 *block, uint32_t tile, uint32_t lane, uint32_t high,
                              int b)
{
    uint32_t w[3];
    for (int i = 0; i < 3; i++)
        w[i] = kind == NB_W_W3 ? nb_word(block[i * 32 + lane], (int)tile % 4) : 0;
    if (kind == NB_W_W8)
        w[0] = nb_word(block[b / 2 * 32 + lane], (int)high + b % 2 * 2);
    else if (kind != NB_W_W3)
        w[0] = nb_word(block[lane], kind == NB_W_W2 ? (int)tile % 2 * 2 + b / 2 : b);
    for (int i = 0; i < 4; i++)
        q[i] = kind == NB_W_W8   ? (int)(int8_t)(w[0] >> 8 * i)
               : kind == NB_W_W3 ? nb_embed_w3(w, high, b, i) - 4
               : kind == NB_W_W2 ? (int)(w[0] >> (8 * i + b % 2 * 4 + 2 * (int)high) & 3) - 2
                                 : (int)(w[0] >> (8 * i + 4 * (int)high) & 15);
}

/* A zero point as stored. */
NB_DEVICE float nb_embed_zero(uint32_t kind, uint8_t stored)
{
    if (kind == NB_W_W8)
        return (float)(int8_t)stored;
    if (kind == NB_W_W2 || kind == NB_W_W3)
        return (float)(int8_t)stored * 0.0625f;
    return (float)stored * (kind == NB_W_W4F ? 0.0625f : 1.0f);
}

/* A row-major table (--gemm cublaslt): a thread takes two neighbours. */
NB_DEVICE void nb_embed_plain(const nb_embed_args &a, uint32_t r, uint32_t id)
{
    const nb_packed &p = a.table;
    const int8_t *q = (const int8_t *)p.w + (size_t)id * p.k_tiles * NB_TILE_K;
    for (uint32_t k = (blockIdx.y * 128 + threadIdx.x) * 2; k < p.k; k += gridDim.y * 256) {
        float2 v;
        if (p.kind == NB_W_PLAIN)
            v = nb_embed_dense(((const uint32_t *)p.w)[((size_t)id * p.k + k) / 2], p.dtype);
        else {
            const int zero = p.zeros ? ((const int8_t *)p.zeros)[id] : 0;
            const int8_t *block = q + k / 16 * 16;
            v.x = (float)(block[NB_K_POSITION(k % 16)] - zero) * p.scales[id];
            v.y = (float)(block[NB_K_POSITION(k % 16 + 1)] - zero) * p.scales[id];
        }
        *(float2 *)(a.x + (size_t)r * p.k + k) = v;
    }
}

extern "C" __global__ void __launch_bounds__(128) nb_embed(const nb_embed_args a)
{
    const nb_packed &p = a.table;
    const uint32_t r = blockIdx.x, id = (uint32_t)a.step.ids[r], high = id >> 3 & 1;
    if (a.step.pos[r] < 0)
        return;
    if (p.kind == NB_W_PLAIN || p.kind == NB_W_PLAIN8) {
        nb_embed_plain(a, r, id);
        return;
    }
    const size_t panel = id / NB_TILE_N;
    const uint4 *w = (const uint4 *)p.w + panel * NB_PANEL_UNITS(p.kind, p.k_tiles) * 32;
    for (uint32_t i = blockIdx.y * 128 + threadIdx.x; i < p.k_tiles * 4; i += gridDim.y * 128) {
        const uint32_t t = i % 4, lane = (id & 7) * 4 + t;
        const uint4 *units = w + i / 4 / NB_TILES(p.kind) * NB_UNITS(p.kind) * 32;
        for (int b = 0; b < 4; b++) {
            const uint32_t k = i / 4 * NB_TILE_K + b * 16;
            if (k >= p.k)
                break;
            float2 lo, hi; /* of 2t and 2t+1; of 2t+8 and 2t+9 */
            if (p.kind == NB_W_DENSE) {
                const uint2 two = nb_embed_words(units, lane, high, b);
                lo = nb_embed_dense(two.x, p.dtype);
                hi = nb_embed_dense(two.y, p.dtype);
            } else {
                const size_t g = nb_group_at(p, (uint32_t)panel, k / p.group_len, id % NB_TILE_N);
                const float scale = p.scales[g];
                const float zero = nb_embed_zero(p.kind, p.zeros ? ((const uint8_t *)p.zeros)[g] : 0);
                int q[4];
                nb_embed_codes(q, p.kind, units, i / 4, lane, high, b);
                lo = make_float2(((float)q[0] - zero) * scale, ((float)q[2] - zero) * scale);
                hi = make_float2(((float)q[1] - zero) * scale, ((float)q[3] - zero) * scale);
            }
            float2 *x = (float2 *)(a.x + (size_t)r * p.k + k + 2 * t);
            x[0] = lo;
            x[4] = hi;
        }
    }
}
