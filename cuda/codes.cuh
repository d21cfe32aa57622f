/* Rows to INT8 codes, exactly as the CPU makes them (docs/numerics.md): q = clamp(rne(x / s), lo, hi) + zero, s from
 * the largest |x| of the row unless it is given.  Codes are stored in NB_K_ORDER and padded with zeros to a multiple of
 * NB_TILE_K.
 *
 * NB_K_ORDER interleaves the lower and the upper half of each 16 elements: word j of the four holds k = 2j, 2j+8, 2j+1,
 * 2j+9.  A lane that holds 4 (or 8) consecutive elements trades words with the lane that holds the other half. */
#ifndef NB_CUDA_CODES_CUH
#define NB_CUDA_CODES_CUH

#include "act.cuh"
#include "kernels.h"

typedef struct nb_code_grid {
    float scale, lo, hi;
    int32_t zero;
    bool bad; /* the row holds a NaN or an infinity: its codes are 0 and its scale NaN */
} nb_code_grid;

NB_DEVICE uint32_t nb_abs_bits(float x)
{
    return __float_as_uint(x) & 0x7fffffffu; /* ordered as integers; NaN and infinity are the largest */
}

/* The grid of a row whose largest |x| has the bits `most`; act_scale 0: dynamic. */
NB_DEVICE nb_code_grid nb_grid_of(uint32_t most, float act_scale, int32_t act_zero)
{
    nb_code_grid g;
    g.bad = most >= 0x7f800000u;
    g.zero = act_zero;
    if (act_scale > 0) {
        g.scale = act_scale;
        g.lo = (float)(-128 - act_zero);
        g.hi = (float)(127 - act_zero);
    } else {
        g.scale = __uint_as_float(most) / 127.0f;
        if (g.scale < 0x1p-126f) /* a row of zeros, or so small that s would be subnormal: its codes are 0 */
            g.scale = 1.0f;
        g.lo = -127.0f;
        g.hi = 127.0f;
    }
    return g;
}

NB_DEVICE float nb_stored_scale(const nb_code_grid &g)
{
    return g.bad ? __int_as_float(0x7fc00000) : g.scale;
}

/* Codes of v[0..3] in the bytes of a word. */
NB_DEVICE uint32_t nb_codes4(const float v[4], const nb_code_grid &g)
{
    int32_t q[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        q[i] = __float2int_rn(fminf(fmaxf(v[i] / g.scale, g.lo), g.hi)) + g.zero;
    const uint32_t low = __byte_perm((uint32_t)q[0], (uint32_t)q[1], 0x0040),
                   high = __byte_perm((uint32_t)q[2], (uint32_t)q[3], 0x0040);
    return g.bad ? 0 : __byte_perm(low, high, 0x5410);
}

/* Lane i holds the codes of elements 4i .. 4i+3 of a row, counted from `row`: stores them.  All lanes of the warp take
 * part, those that `store` does not name trade only. */
NB_DEVICE void nb_store_quad(int8_t *row, uint32_t quad, uint32_t codes, bool store)
{
    const uint32_t other = __shfl_xor_sync(NB_ALL_LANES, codes, 2), part = quad & 3;
    const uint32_t word = part < 2 ? __byte_perm(codes, other, 0x5140) : __byte_perm(codes, other, 0x3726);
    const uint32_t at = (part & 1) * 2 + (part >> 1);
    if (store)
        *(uint32_t *)(row + (quad & ~3u) * 4 + at * 4) = word;
}

/* The same with elements 8i .. 8i+7. */
NB_DEVICE void nb_store_octet(int8_t *row, uint32_t octet, uint2 codes, bool store)
{
    const bool upper = octet & 1;
    const uint32_t other = __shfl_xor_sync(NB_ALL_LANES, upper ? codes.x : codes.y, 1);
    const uint32_t low = upper ? other : codes.x, high = upper ? codes.y : other; /* of k and of k + 8 */
    if (store)
        *(uint2 *)(row + octet * 8) = make_uint2(__byte_perm(low, high, 0x5140), __byte_perm(low, high, 0x7362));
}

/* ---- producers of rows of T, by a block of 256 threads, eight elements a thread at a time ----
 *
 * make(octet, first) gives elements 8*octet .. 8*octet+7 as T; first: it is asked for them for the first time.  Between
 * the search for the largest and the division a row stays in dynamic shared memory, NB_ROW_SHARED(k) bytes; each thread
 * reads only what it wrote.  A longer row is made twice. */
template <typename T>
NB_DEVICE uint32_t nb_most8(uint4 words, uint32_t most)
{
    float v[8];
    nb_unpack8<T>(words, v);
#pragma unroll
    for (int i = 0; i < 8; i++)
        most = max(most, nb_abs_bits(v[i]));
    return most;
}

template <typename T>
NB_DEVICE void nb_codes_of_octet(int8_t *q, uint32_t octet, uint32_t octets, uint32_t padded, uint4 words,
                                 const nb_code_grid &g)
{
    uint2 codes = make_uint2(0, 0);
    if (octet < octets) {
        float v[8];
        nb_unpack8<T>(words, v);
        codes = make_uint2(nb_codes4(v, g), nb_codes4(v + 4, g));
    }
    nb_store_octet(q, octet, codes, octet < padded);
}

template <typename T, typename Make>
NB_DEVICE void nb_row_codes(Make make, uint32_t k, float act_scale, int32_t act_zero, int8_t *q, float *scale)
{
    __shared__ uint32_t maxima[8];
    extern __shared__ uint4 keep[];
    const uint32_t octets = k / 8, padded = (k + NB_TILE_K - 1) / NB_TILE_K * (NB_TILE_K / 8), lane = threadIdx.x % 32;
    const bool held = NB_ROW_SHARED(k) > 0;
    uint32_t most = 0;
#pragma unroll 2
    for (uint32_t o = threadIdx.x; o < octets; o += 256) {
        const uint4 words = make(o, true);
        if (held)
            keep[o] = words;
        most = nb_most8<T>(words, most);
    }
    const nb_code_grid g = nb_grid_of(nb_block_max<8>(most, maxima), act_scale, act_zero);
    if (threadIdx.x == 0)
        *scale = nb_stored_scale(g);
    for (uint32_t o = threadIdx.x; o - lane < padded;
         o += 256) { /* whole warps walk together, for the trade of words */
        uint2 codes = make_uint2(0, 0);
        if (o < octets) {
            float v[8];
            nb_unpack8<T>(held ? keep[o] : make(o, false), v);
            codes = make_uint2(nb_codes4(v, g), nb_codes4(v + 4, g));
        }
        nb_store_octet(q, o, codes, o < padded);
    }
}

#endif
