/* Joins the partial results of attention's chunks: y of the rows that have them
 *   part_o, part_ml  of row r: slots row_slot[r] .. + position / 128, one a chunk; rows without (NB_NO_SLOT) are skipped
 *   y       T [rows][n_heads][head_dim], head_dim even
 *   launch  grid (rows, ceil(n_heads * head_dim / 256)), block 128: a thread has two elements
 *   order   chunks ascending: M' = max(M, m), a = 2^(M - M'), b = 2^(m - M'), L = fma(l, b, L * a), O = fma(o, b, O * a); then
 *           y = O * (1 / L): what attend.cuh does in registers
 *   traffic 4 (head_dim + 2) bytes a chunk, row and head; 2 head_dim out */
#include "attend_math.cuh"

#define AHEAD 8 /* chunks whose numbers are on the way */

template <typename T>
NB_DEVICE void attend_merge(const nb_attend_args &a)
{
    const uint32_t row = blockIdx.x, e = (blockIdx.y * 128 + threadIdx.x) * 2, D = a.kv.head_dim;
    const int32_t pos = a.step.pos[row];
    if (pos < 0 || a.row_slot[row] == NB_NO_SLOT || e >= a.n_heads * D)
        return;
    const uint32_t head = e / D, n = (uint32_t)pos / NB_ATTEND_CHUNK + 1;
    const size_t first = (size_t)a.row_slot[row] * a.n_heads;
    const float2 *o = (const float2 *)(a.part_o + first * D + e), *ml = (const float2 *)(a.part_ml) + first + head;
    const size_t o_step = (size_t)a.n_heads * D / 2;
    nb_attend_sum sum = {0, 0};
    float2 O = make_float2(0, 0), part[AHEAD], weight[AHEAD];
    for (uint32_t c0 = 0; c0 < n; c0 += AHEAD) {
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++)
            if (c0 + i < n) {
                part[i] = o[(c0 + i) * o_step];
                weight[i] = ml[(size_t)(c0 + i) * a.n_heads];
            }
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++)
            if (c0 + i < n) {
                const float2 ab = nb_attend_join(sum, weight[i].x, c0 + i == 0);
                nb_attend_add(sum, weight[i].y, ab, c0 + i == 0);
                O.x = c0 + i == 0 ? part[i].x : nb_attend_merged(O.x, part[i].x, ab);
                O.y = c0 + i == 0 ? part[i].y : nb_attend_merged(O.y, part[i].y, ab);
            }
    }
    const float by = nb_attend_by(a.kv.type, sum.L);
    *(uint32_t *)((T *)a.y + (size_t)row * a.n_heads * D + e) = nb_pack2<T>(O.x * by, O.y * by);
}

extern "C" __global__ void __launch_bounds__(128) nb_attend_merge_f16(const __grid_constant__ nb_attend_args a)
{
    attend_merge<__half>(a);
}

extern "C" __global__ void __launch_bounds__(128) nb_attend_merge_bf16(const __grid_constant__ nb_attend_args a)
{
    attend_merge<__nv_bfloat16>(a);
}
