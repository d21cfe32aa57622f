/* How the decode form cuts a layer: for the kernels (gemv.cuh), the host and the tests.  None of it changes a result.
 *
 *   segment   a run of k whose sum is one number: a group, cut again every NB_SEGMENT from its start (docs/numerics.md)
 *   task      what a warp takes at a time, for one panel: whole segments, up to NB_SEGMENT elements of k
 *   round     `round` tasks, the part of K for which x lies in shared memory
 *   tile      `panels` neighbouring panels of one layer: what a block computes at a time, round by round.  Block b
 *             takes the tiles b, b + grid, b + 2 grid, ...: any grid is right
 *
 * The parts of a launch have the same kind, k, groups and group_len; first_tile and n_tiles of nb_gemm_args count these
 * tiles.
 */
#ifndef NB_CUDA_GEMV_PLAN_H
#define NB_CUDA_GEMV_PLAN_H

#include "kernels.h"

#ifdef __CUDACC__
#define NB_BOTH static __host__ __device__ __forceinline__
#else
#define NB_BOTH static inline
#endif

#define NB_SEGMENT         512
#define NB_GEMV_MAX_PANELS 8
#define NB_GEMV_WARPS      8

/* The cut of K, the same for all panels and all parts of a launch. */
typedef struct nb_cut {
    uint32_t group_len;
    uint32_t per_group; /* segments in a group */
    uint32_t per_task;  /* segments in a task; one of the two is 1 */
    uint32_t segments, tasks;
} nb_cut;

NB_BOTH nb_cut nb_cut_of(uint32_t k, uint32_t groups, uint32_t group_len)
{
    nb_cut c;
    if (!groups) /* dense */
        groups = 1, group_len = k;
    c.group_len = group_len;
    c.per_group = (group_len + NB_SEGMENT - 1) / NB_SEGMENT;
    c.per_task = group_len < NB_SEGMENT ? NB_SEGMENT / group_len : 1;
    c.segments = groups * c.per_group;
    c.tasks = (c.segments + c.per_task - 1) / c.per_task;
    return c;
}

/* Shared memory, in bytes from its beginning; every piece is a multiple of 128:
 *   NB_GEMV_ZEROS   zeros, what stands in for rows of x that are not there
 *   x               [x_count][rows][x_stride], swizzled; 2 when there is more than one round: one is filled while the other
 *                   is read
 *   parts           [2] what tasks leave: [panels][segments of a round][pairs of rows] of 32 words (gemv.cuh)
 *   meta            [3] scales [panels][groups][16], then zero points: those of a step are fetched while the one before
 *                   computes and the one before that is joined */
#define NB_GEMV_ZEROS 1024

typedef struct nb_gemv_shared {
    uint32_t x_stride, x_bytes, x_count;
    uint32_t segments;                                   /* of a round, at most */
    uint32_t groups;                                     /* likewise, whose scales are there */
    uint32_t parts, part_bytes, meta, zeros, meta_bytes; /* zeros: from the beginning of a meta */
    uint32_t total;
} nb_gemv_shared;

NB_BOTH nb_gemv_shared nb_gemv_shared_of(const nb_cut *c, uint32_t rows, uint32_t k, uint32_t x_size, uint32_t panels,
                                         uint32_t round)
{
    nb_gemv_shared s;
    const uint32_t one = round >= c->tasks, all_groups = c->segments / c->per_group;
    /* A round may begin inside 128 bytes of x, so its window may be that much longer than its tasks. */
    const uint32_t window = one ? k : round * NB_SEGMENT + 128 / x_size;
    s.x_stride = (window * x_size + 127) / 128 * 128;
    s.x_bytes = rows * s.x_stride;
    s.x_count = one ? 1 : 2;
    s.segments = (one ? c->tasks : round) * c->per_task;
    s.groups = s.segments < all_groups ? s.segments : all_groups;
    s.part_bytes = panels * s.segments * ((rows + 1) / 2) * 128;
    s.zeros = panels * s.groups * NB_TILE_N * 4;
    s.meta_bytes = (s.zeros + panels * s.groups * NB_TILE_N + 127) / 128 * 128;
    s.parts = NB_GEMV_ZEROS + s.x_count * s.x_bytes;
    s.meta = s.parts + 2 * s.part_bytes;
    s.total = s.meta + 3 * s.meta_bytes;
    return s;
}

/* ---- the choice, on the host ---- */

typedef struct nb_gemv_launch {
    uint32_t grid, shared;
} nb_gemv_launch;

#define NB_GEMV_MAX_SHARED (99u * 1024) /* the kernels' lines in kernels.h */

/* The time of a tile of `panels` panels in rounds of `round` tasks, in units of the time in which eight warps read a
 * task each.  A step costs a quarter of that in barriers and joins (a guess); x comes from the second-level cache, again
 * for every tile when there is more than one round, at about 2.5 times the rate of weights. */
static inline float nb_gemv_tile_cost(const nb_cut *c, uint32_t panels, uint32_t round, float x_per_weight)
{
    const uint32_t rounds = (c->tasks + round - 1) / round, last = c->tasks - (rounds - 1) * round;
    float steps = (float)((rounds - 1) * ((panels * round + NB_GEMV_WARPS - 1) / NB_GEMV_WARPS) +
                          (panels * last + NB_GEMV_WARPS - 1) / NB_GEMV_WARPS);
    if (rounds > 1)
        steps += (float)c->tasks / NB_GEMV_WARPS * x_per_weight * 0.4f;
    return steps + 0.25f * (float)rounds;
}

/* Fills first_tile, n_tiles, panels and round of a launch whose other fields are set; x_size: bytes of an element of x
 * (2, or 1 for codes); max_shared: bytes that a block may have.  grid 0: it does not fit. */
static inline nb_gemv_launch nb_gemv_plan(nb_gemm_args *a, uint32_t x_size, uint32_t n_sm, uint32_t max_shared)
{
    const nb_cut cut = nb_cut_of(a->k, a->part[0].kind == NB_W_DENSE ? 0 : a->part[0].groups, a->part[0].group_len);
    const float x_per_weight = (float)(a->rows * x_size) / (float)(a->part[0].kind == NB_W_DENSE ? 32
                                                                   : a->part[0].kind == NB_W_W8  ? 16
                                                                                                 : 8);
    nb_gemv_launch best = {0, 0};
    float best_cost = 0;
    for (uint32_t per_sm = 2; per_sm >= 1; per_sm--) {
        const uint32_t room = (max_shared + 1024) / per_sm - 1024; /* the system takes 1 KiB of each block */
        const uint32_t budget = room < NB_GEMV_MAX_SHARED ? room : NB_GEMV_MAX_SHARED;
        for (uint32_t panels = 1; panels <= NB_GEMV_MAX_PANELS; panels++) {
            uint32_t round = cut.tasks;
            nb_gemv_shared s = nb_gemv_shared_of(&cut, a->rows, a->k, x_size, panels, round);
            if (s.total > budget) { /* what a task more takes is the same for each, but for the last groups */
                const uint32_t one = nb_gemv_shared_of(&cut, a->rows, a->k, x_size, panels, 1).total;
                const uint32_t more =
                    2 * (a->rows * NB_SEGMENT * x_size + panels * cut.per_task * ((a->rows + 1) / 2 * 128)) +
                    3 * panels * cut.per_task * NB_TILE_N * 5;
                if (cut.tasks < 2 || one > budget)
                    break;
                round = 1 + (budget - one) / (more + 384);
                round = round < cut.tasks ? round : cut.tasks - 1;
                s = nb_gemv_shared_of(&cut, a->rows, a->k, x_size, panels, round);
            }
            uint32_t tiles = 0;
            for (uint32_t i = 0; i < a->n_parts; i++)
                tiles += ((a->part[i].n + NB_TILE_N - 1) / NB_TILE_N + panels - 1) / panels;
            const uint32_t slots = n_sm * per_sm, grid = tiles < slots ? tiles : slots;
            /* blocks on one multiprocessor share its bandwidth; one alone waits at its barriers */
            const uint32_t resident = (grid + n_sm - 1) / n_sm, waves = (tiles + grid - 1) / grid;
            const float cost = (float)(waves * resident) * (resident == 1 ? 1.15f : 1.0f) *
                               nb_gemv_tile_cost(&cut, panels, round, x_per_weight);
            if (best.grid && cost >= best_cost)
                continue;
            best_cost = cost;
            best.grid = grid;
            best.shared = s.total;
            a->panels = panels;
            a->round = round;
            a->n_tiles = tiles;
        }
    }
    for (uint32_t i = 0, tile = 0; i < 3 && best.grid; i++) {
        a->first_tile[i] = tile;
        if (i < a->n_parts)
            tile += ((a->part[i].n + NB_TILE_N - 1) / NB_TILE_N + a->panels - 1) / a->panels;
    }
    return best;
}

#endif
