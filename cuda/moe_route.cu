/* nb_moe_route: which experts a token goes to, and with which weights
 *   router  fp32 [rows][experts], experts <= 512, top_k <= experts
 *   expert  [rows][top_k]: the largest logits, descending, equal ones by ascending expert; a NaN counts as -infinity
 *   weight  e^(x - max) / sum, where the sum is over the chosen ones in their order (renormalize) or over all experts:
 *           32 sums, number i of experts i, i+32, ..., joined by a butterfly.  exp.cuh.  NaN for all of a row that
 *           holds one
 *   launch  grid ceil(rows / 8), block 256: a warp a row
 *   traffic 4 experts + 8 top_k bytes a row
 *
 * nb_moe_sort: the same assignments by expert, for the grouped matrix product
 *   offset  [experts + 1], sorted [rows * top_k]: offset[e] .. offset[e+1]-1 are those of expert e, each row * top_k +
 *           slot, ascending
 *   launch  grid experts, block 256; each block reads all assignments twice, so it depends on no other
 *   order   of integers only: no atomics */
#include "act.cuh"
#include "exp.cuh"
#include "kernels.h"

#define MOST 16 /* experts of a lane */

/* Ordered as the logits, and by the lower expert where they are equal; 0: none. */
NB_DEVICE uint64_t rank_of(float x, uint32_t expert)
{
    const uint32_t bits = __float_as_uint(isnan(x) ? -INFINITY : x + 0.0f);
    return (uint64_t)(bits & 0x80000000u ? ~bits : bits | 0x80000000u) << 32 | (0xffffffffu - expert);
}

NB_DEVICE uint64_t best_of(const uint64_t rank[MOST])
{
    uint64_t best = 0;
#pragma unroll
    for (int i = 0; i < MOST; i++)
        best = max(best, rank[i]);
#pragma unroll
    for (int step = 16; step; step /= 2)
        best = max(best, (uint64_t)__shfl_xor_sync(NB_ALL_LANES, (unsigned long long)best, step));
    return best;
}

extern "C" __global__ void __launch_bounds__(256) nb_moe_route(const nb_moe_route_args a)
{
    const uint32_t row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= a.rows) /* a whole warp */
        return;
    const float *x = a.router + (size_t)row * a.experts;
    int32_t *expert = a.expert + (size_t)row * a.top_k;
    float *weight = a.weight + (size_t)row * a.top_k;
    uint64_t rank[MOST];
    float e[MOST], sum = 0;
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        const uint32_t at = lane + 32 * i;
        e[i] = at < a.experts ? x[at] : -INFINITY;
        rank[i] = at < a.experts ? rank_of(e[i], at) : 0;
    }
    const float largest = x[0xffffffffu - (uint32_t)best_of(rank)];
#pragma unroll
    for (int i = 0; i < MOST; i++)
        if (lane + 32 * i < a.experts)
            sum += nb_exp(e[i] - largest);
    sum = nb_warp_sum(sum); /* NaN where the row holds one */
    float chosen = sum - sum;
    for (uint32_t k = 0; k < a.top_k; k++) {
        const uint64_t best = best_of(rank);
        const uint32_t at = 0xffffffffu - (uint32_t)best;
        const float w = nb_exp(x[at] - largest);
        chosen += w;
#pragma unroll
        for (int i = 0; i < MOST; i++)
            rank[i] = rank[i] == best ? 0 : rank[i];
        if (lane == 0) {
            expert[k] = (int32_t)at;
            weight[k] = w;
        }
    }
    __syncwarp();
    const float total = a.renormalize ? chosen : sum;
    for (uint32_t k = lane; k < a.top_k; k += 32)
        weight[k] = weight[k] / total;
}

/* Sums of both numbers over the warps before this one, and over all. */
NB_DEVICE void over_warps(uint32_t v[2], uint32_t before[2], uint32_t all[2], uint32_t (*shared)[8])
{
#pragma unroll
    for (int j = 0; j < 2; j++) {
        if (threadIdx.x % 32 == 0)
            shared[j][threadIdx.x / 32] = v[j];
        before[j] = all[j] = 0;
    }
    __syncthreads();
    for (uint32_t w = 0; w < 8; w++)
        for (int j = 0; j < 2; j++) {
            before[j] += w < threadIdx.x / 32 ? shared[j][w] : 0;
            all[j] += shared[j][w];
        }
}

extern "C" __global__ void __launch_bounds__(256) nb_moe_sort(const nb_moe_route_args a)
{
    __shared__ uint32_t shared[2][8];
    const int32_t e = (int32_t)blockIdx.x;
    const uint32_t n = a.rows * a.top_k, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t len = (n + 255) / 256 * 32, lo = min(n, warp * len), hi = min(n, lo + len); /* of this warp */
    uint32_t count[2] = {0, 0}, before[2], all[2]; /* assignments to lower experts, and to this one */
    for (uint32_t base = lo; base < hi; base += 32) {
        const int32_t v = base + lane < hi ? a.expert[base + lane] : INT32_MAX;
        count[0] += __popc(__ballot_sync(NB_ALL_LANES, v < e));
        count[1] += __popc(__ballot_sync(NB_ALL_LANES, v == e));
    }
    over_warps(count, before, all, shared);
    if (threadIdx.x == 0) {
        a.offset[e] = (int32_t)all[0];
        if (blockIdx.x == a.experts - 1)
            a.offset[a.experts] = (int32_t)n;
    }
    uint32_t at = all[0] + before[1];
    for (uint32_t base = lo; base < hi; base += 32) {
        const bool mine = base + lane < hi && a.expert[base + lane] == e;
        const uint32_t mask = __ballot_sync(NB_ALL_LANES, mine);
        if (mine)
            a.sorted[at + __popc(mask & ((1u << lane) - 1))] = (int32_t)(base + lane);
        at += __popc(mask);
    }
}
