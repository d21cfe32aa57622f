/* Round to nearest: codes, scales and zero points of weights x [rows][k] in groups along k (csrc/quant/rtn.c).
 *
 *   x       F32, F16 or BF16; any rows, k, group (which divides k).  16-byte aligned and group % 8 == 0: eight elements a thread,
 *           otherwise one
 *   codes   int8 [rows][k], 8-byte aligned; or packed: uint32 [rows][k/8], code + 2^(bits-1) of element j in bits 4j..4j+3
 *           (4 bits, eight elements a thread)
 *   scales  fp32 [rows][k/group], NaN for a group that holds a NaN or an infinity (its codes are zeros); zeros int8
 *   launch  grid ceil(rows * k/group / (256/team)), block 256; a team of neighbouring threads has a group
 *   order   extremes are integers, codes are element by element: nothing is summed
 *   traffic size(x) + k bytes a row (k/2 packed) + scales.  A team that holds its group in registers reads it once, a longer one
 *           twice, the second time from a cache.  By eight the sectors moved are the least possible (counted on the stand-in
 *           driver: 64 x 4096 F16 to 4 bits in groups of 128, 2.54 bytes a weight)
 */
#include "quantize.cuh"

/* Writes eight codes (or one). */
template <int V>
static __device__ __forceinline__ void put_codes(const nb_rtn_args &a, const nb_grid &g, const float v[V], uint64_t at)
{
    if (V == 1) {
        a.codes[at] = (int8_t)nb_grid_code(g, v[0]);
        return;
    }
    uint32_t word[2] = {0, 0}, nibbles = 0;
#pragma unroll
    for (int j = 0; j < V; j++) {
        const uint32_t q = (uint32_t)nb_grid_code(g, v[j]);
        word[j / 4] |= (q & 0xff) << (j % 4 * 8);
        nibbles |= ((q + 8) & 15) << (j * 4 % 32);
    }
    if (a.packed)
        a.packed[at / 8] = nibbles;
    else
        *(uint2 *)(a.codes + at) = make_uint2(word[0], word[1]);
}

/* The grid of the team's group, which every thread of it gets; v: the thread's first elements are left there. */
template <int dtype, int V>
static __device__ __forceinline__ nb_grid find_grid(const nb_rtn_args &a, uint64_t group, uint32_t lane, bool there,
                                                    float v[V])
{
    nb_extremes e = {0, 0};
    if (there) {
        const uint64_t start = group * a.group;
        for (uint32_t i = lane * V; i < a.group; i += a.team * V) {
            nb_elements<dtype, V>(v, a.x, start + i);
            nb_extend<V>(e, v);
        }
    }
    e = nb_team_extremes(e, a.team);
    if (!nb_finite(e)) {
        nb_grid bad = {__uint_as_float(0x7fc00000u), 0, 0, 0};
        return bad;
    }
    return nb_grid_make(nb_key_value(~e.lo), nb_key_value(e.hi), a.bits, a.symmetric, a.scale_dtype);
}

template <int dtype, int V>
static __device__ __forceinline__ void rtn(const nb_rtn_args &a)
{
    const uint32_t teams = NB_QUANT_THREADS / a.team, lane = threadIdx.x % a.team;
    const uint64_t group = (uint64_t)blockIdx.x * teams + threadIdx.x / a.team;
    const bool there = group < (uint64_t)a.rows * (a.k / a.group);
    const int32_t half = 1 << (a.bits - 1);
    nb_grid g = {a.scale, a.zero, -half, half - 1};
    float v[V];
    if (a.scales)
        g = find_grid<dtype, V>(a, group, lane, there, v);
    if (!there)
        return;
    if (a.scales && lane == 0) {
        a.scales[group] = g.scale;
        if (a.zeros)
            a.zeros[group] = (int8_t)g.zero;
    }
    const uint64_t start = group * a.group;
    const bool held = a.scales && a.group <= a.team * V;
    for (uint32_t i = lane * V; i < a.group; i += a.team * V) {
        if (!held)
            nb_elements<dtype, V>(v, a.x, start + i);
        put_codes<V>(a, g, v, start + i);
    }
}

extern "C" __global__ void __launch_bounds__(NB_QUANT_THREADS) nb_rtn(const __grid_constant__ nb_rtn_args a)
{
    if (nb_by_eight(a.x, a.group))
        NB_BY_TYPE(rtn, 8, a);
    else
        NB_BY_TYPE(rtn, 1, a);
}
