/* K and V in shared memory, as they lie in the cache, become B fragments of mma.m16n8k16 (ptx.cuh; lane = 4g + t).
 *
 * The order of k inside one mma is free as long as both sides agree, and so is the order of columns.  That is why no code is ever
 * moved between lanes:
 *   K  one row a key, k runs over dimensions.  ldmatrix gives a lane 4 neighbouring bytes of key g, number t of 16: dimensions 2t,
 *      2t+1 (F16), 4t..4t+3 (INT8: a whole step), 8t..8t+7 (INT4: two steps).  Queries are stored in the matching order.
 *   V  one row a key, k runs over keys.  ldmatrix.trans gives a lane the 2-byte units number g of keys 2t and 2t+1: dimension g (F16),
 *      dimensions 2g, 2g+1 (INT8), 4g..4g+3 (INT4).  So column g of tile i is dimension g * n + i, where n = 1, 2, 4.
 *
 * INT8 codes are exact as halves: byte b, with its sign bit turned over, under the byte 0x64 is the half 1024 + (b + 128), and 1152 is
 * taken off.  INT4: 0x6400 | u is 1024 + u and 0x5400 | (u << 4) is 64 + u; then fma(u, s, m), rounded once to half. */
#ifndef NB_CUDA_ATTEND_FRAG_CUH
#define NB_CUDA_ATTEND_FRAG_CUH

#include "attend_load.cuh"

NB_DEVICE uint32_t nb_half2_sub(uint32_t a, uint32_t b)
{
    const __half2 r = __hsub2(*(const __half2 *)&a, *(const __half2 *)&b);
    return *(const uint32_t *)&r;
}

NB_DEVICE uint32_t nb_half2_fma(uint32_t a, uint32_t b, uint32_t c)
{
    const __half2 r = __hfma2(*(const __half2 *)&a, *(const __half2 *)&b, *(const __half2 *)&c);
    return *(const uint32_t *)&r;
}

/* The bytes that `pick` names (0x4140: bytes 0 and 1) of four codes, turned over already, as two halves. */
template <int pick>
NB_DEVICE uint32_t nb_halves8(uint32_t turned)
{
    return nb_half2_sub(__byte_perm(turned, 0x64646464u, pick), 0x64806480u);
}

/* Nibbles i and i+4 as two halves. */
template <int i>
NB_DEVICE uint32_t nb_halves4(uint32_t word)
{
    if (i % 2)
        return nb_half2_sub(nb_lop3<NB_AND_OR>(i < 2 ? word : word >> 8, 0x00f000f0u, 0x54005400u), 0x54005400u);
    return nb_half2_sub(nb_lop3<NB_AND_OR>(i < 2 ? word : word >> 8, 0x000f000fu, 0x64006400u), 0x64006400u);
}

/* The key whose pieces this lane names to ldmatrix, of this warp's keys in a stage: tiles of 8 keys number warp and warp + 4. */
template <int type>
NB_DEVICE nb_lane_row nb_key_row(const nb_attend_shape &s, uint32_t stage)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t second = type == NB_KV_F16 ? 0 : type == NB_KV_INT8 ? lane / 16 : lane / 8 % 2;
    return nb_lane_row_of(s.k, stage, 8 * warp + lane % 8 + 32 * second);
}

/* b[tile][step]: the 32 dimensions of block `block` of the warp's keys. */
template <int type, int tiles>
NB_DEVICE void nb_key_fragments(const nb_attend_shape &s, const nb_lane_row &row, const uint32_t *scales,
                                uint32_t block, uint32_t b[tiles][2][2])
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t r[4];
    if constexpr (type == NB_KV_F16) {
#pragma unroll
        for (int i = 0; i < tiles; i++) {
            nb_ldmatrix_x4(r, nb_piece_at(row, 4 * block + lane / 8) + 32 * i * s.k.stride * 16);
            b[i][0][0] = r[0], b[i][0][1] = r[1], b[i][1][0] = r[2], b[i][1][1] = r[3];
        }
    } else if constexpr (type == NB_KV_INT8) {
        nb_ldmatrix_x4(r, nb_piece_at(row, 2 * block + lane / 8 % 2));
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t turned = r[i] ^ 0x80808080u;
            b[i / 2][i % 2][0] = nb_halves8<0x4140>(turned);
            b[i / 2][i % 2][1] = nb_halves8<0x4342>(turned);
        }
    } else {
        nb_ldmatrix_x2(r, nb_piece_at(row, block));
#pragma unroll
        for (int i = 0; i < tiles; i++) {
            const uint32_t w = scales[(8 * warp + 32 * i + lane / 4) * s.words + block];
            const uint32_t scale = __byte_perm(w, w, 0x1010), least = __byte_perm(w, w, 0x3232);
            b[i][0][0] = nb_half2_fma(nb_halves4<0>(r[i]), scale, least);
            b[i][0][1] = nb_half2_fma(nb_halves4<1>(r[i]), scale, least);
            b[i][1][0] = nb_half2_fma(nb_halves4<2>(r[i]), scale, least);
            b[i][1][1] = nb_half2_fma(nb_halves4<3>(r[i]), scale, least);
        }
    }
}

/* Dimensions of V that one ldmatrix covers for a warp, and the tiles of 8 columns that they make. */
#define NB_UNIT_DIMS(type)  ((type) == NB_KV_INT4 ? 32 : 16)
#define NB_UNIT_TILES(type) (NB_UNIT_DIMS(type) / 8)

/* What a lane needs of unit `unit` for 32 keys that begin at `key` of the stage; the codes of F16 take two loads. */
template <int type>
struct nb_value_words {
    uint32_t r[type == NB_KV_F16 ? 8 : 4];
    uint32_t scale[type == NB_KV_INT4 ? 4 : 1], least[type == NB_KV_INT4 ? 4 : 1];
};

/* row: that of key lane % 16 (F16) or lane of the stage. */
template <int type>
NB_DEVICE void nb_load_values(const nb_attend_shape &s, const nb_lane_row &row, const uint32_t *scales, uint32_t key,
                              uint32_t unit, nb_value_words<type> &v)
{
    const uint32_t lane = threadIdx.x % 32, t = lane % 4, step = s.k.stride * 16;
    if constexpr (type == NB_KV_F16) {
        nb_ldmatrix_x4_trans(v.r, nb_piece_at(row, 2 * unit + lane / 16) + key * step);
        nb_ldmatrix_x4_trans(v.r + 4, nb_piece_at(row, 2 * unit + lane / 16) + (key + 16) * step);
        return;
    }
    nb_ldmatrix_x4_trans(v.r, nb_piece_at(row, unit) + key * step);
    if (type == NB_KV_INT4)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t *w = scales + (key + 8 * i + 2 * t) * s.words + unit;
            v.scale[i] = __byte_perm(w[0], w[s.words], 0x5410);
            v.least[i] = __byte_perm(w[0], w[s.words], 0x7632);
        }
    else
#pragma unroll
        for (int i = 0; i < 4; i++)
            v.r[i] ^= 0x80808080u;
}

/* The fragment of 16 keys (step 0 or 1 of the 32) for tile `tile` of the unit. */
template <int type, int step, int tile>
NB_DEVICE void nb_value_fragment(const nb_value_words<type> &v, uint32_t b[2])
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (type == NB_KV_F16)
            b[i] = v.r[step * 4 + tile * 2 + i];
        else if (type == NB_KV_INT8)
            b[i] = nb_halves8 < tile ? 0x4341 : 0x4240 > (v.r[step * 2 + i]);
        else
            b[i] = nb_half2_fma(nb_halves4<tile>(v.r[step * 2 + i]), v.scale[step * 2 + i], v.least[step * 2 + i]);
    }
}

#endif
