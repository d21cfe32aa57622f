/* Which rows of which expert a block computes: the experts' rows (nb_moe_sort) are cut into pieces of `rows` rows at
 * most. */
#ifndef NB_CUDA_MOE_CUH
#define NB_CUDA_MOE_CUH

#include "weights.cuh"

struct nb_moe_piece {
    uint32_t expert, first, rows; /* assignments first .. first+rows-1; rows 0: there is no such piece */
};

/* Piece number `piece`, in the order of the experts: 32 of them at a time, a lane each.  All lanes of a warp ask
 * together. */
NB_DEVICE nb_moe_piece nb_moe_find(const int32_t *offset, uint32_t experts, uint32_t rows, uint32_t piece)
{
    const uint32_t lane = threadIdx.x % 32, all = 0xffffffffu;
    for (uint32_t base = 0; base < experts; base += 32) {
        const uint32_t e = min(base + lane, experts);
        const uint32_t begin = (uint32_t)offset[e], end = (uint32_t)offset[min(e + 1, experts)];
        const uint32_t mine = (end - begin + rows - 1) / rows;
        uint32_t until = mine; /* pieces of these experts up to this one */
#pragma unroll
        for (uint32_t step = 1; step < 32; step *= 2) {
            const uint32_t before = __shfl_up_sync(all, until, step);
            until += lane >= step ? before : 0;
        }
        const uint32_t found = __ballot_sync(all, piece < until);
        if (found) {
            const int owner = __ffs((int)found) - 1;
            const uint32_t at = begin + (piece - (until - mine)) * rows;
            const uint32_t first = __shfl_sync(all, at, owner), last = __shfl_sync(all, end, owner);
            return {base + owner, first, min(rows, last - first)};
        }
        piece -= __shfl_sync(all, until, 31);
    }
    return {0, 0, 0};
}

/* Rows of a piece: of x by what is assigned, of y in the order of the assignments. */
struct nb_moe_rows {
    static const bool mapped = true;
    const int32_t *sorted;
    uint32_t top_k, first;
    __device__ __forceinline__ uint32_t x(uint32_t r) const
    {
        return top_k ? (uint32_t)sorted[first + r] / top_k : first + r;
    }
    __device__ __forceinline__ uint32_t y(uint32_t r) const { return first + r; }
};

/* g, which is one expert's layer, for `rows` rows of this expert. */
NB_DEVICE void nb_moe_layer(nb_gemm_args &g, const nb_packed &expert, uint32_t rows)
{
    g.n_parts = 1;
    g.rows = rows;
    g.part[0].w = expert.w;
    g.part[0].scales = expert.scales;
    g.part[0].zeros = expert.zeros;
    g.part[0].corr = expert.corr;
    g.part[0].bias = expert.bias;
}

#endif
