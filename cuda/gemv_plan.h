/* How the decode form cuts a layer and uses shared memory: for the host and the tests; gemv.cuh does as it says.
 * None of it changes a result.
 *
 *   segment   a run of k whose sum is one number: a group, cut again every 512 from its start (docs/numerics.md)
 *   task      what a warp takes at a time, for one panel: whole segments, up to 512 elements of k
 *   round     `round` tasks, the part of K for which x lies in shared memory
 *   tile      `panels` neighbouring panels of one layer: what a block computes at a time, round by round.  Block b
 *             takes the tiles b, b + grid, b + 2 grid, ...: any grid is right
 *
 * The parts of a launch have the same kind, k, groups and group_len (dense: groups 1, group_len k); first_tile and
 * n_tiles count these tiles.
 *
 * Shared memory, in bytes from its beginning; every piece is a multiple of 128:
 *   NB_GEMV_ZEROS   zeros, what stands in for rows of x that are not there
 *   x               [rows][x_stride], swizzled; two of them when there is more than one round: one is filled while the
 *                   other is read
 *   parts           [2] what tasks leave: [panels][round_segments][pairs of rows] of 32 words (gemv.cuh)
 *   meta            [3] scales [panels][round_groups][16], then zero points: those of a step are fetched while the one
 *                   before computes and the one before that is joined
 */
#ifndef NB_CUDA_GEMV_PLAN_H
#define NB_CUDA_GEMV_PLAN_H

#include "kernels.h"

#define NB_GEMV_TASK       512 /* elements of k; NB_SEGMENT of weights.cuh */
#define NB_GEMV_WARPS      8
#define NB_GEMV_MAX_PANELS 8
#define NB_GEMV_ZEROS      1024
#define NB_GEMV_MAX_SHARED (99u * 1024) /* the kernels' lines in kernels.h */

typedef struct nb_gemv_launch {
    uint32_t grid, shared;
} nb_gemv_launch;

static inline uint32_t nb_gemv_ceil(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

static inline void nb_gemv_cut_k(nb_gemv_args *a)
{
    const nb_packed *p = &a->g.part[0];
    a->group_len = p->kind == NB_W_DENSE ? a->g.k : p->group_len;
    a->groups = p->kind == NB_W_DENSE ? 1 : p->groups;
    a->per_group = nb_gemv_ceil(a->group_len, NB_GEMV_TASK);
    a->per_task = a->group_len < NB_GEMV_TASK ? NB_GEMV_TASK / a->group_len : 1;
    if (a->per_task > a->groups)
        a->per_task = a->groups;
    a->segments = a->groups * a->per_group;
    a->tasks = nb_gemv_ceil(a->segments, a->per_task);
}

/* Lays out shared memory for a->panels and a->round; returns its size.  x_size: bytes of an element of x (2; codes:
 * 1). */
static inline uint32_t nb_gemv_lay_out(nb_gemv_args *a, uint32_t x_size)
{
    const uint32_t once = a->round >= a->tasks;
    /* A round may begin inside 128 bytes of x, so its window may be that much longer than its tasks. */
    const uint32_t window = once ? a->g.k * x_size : a->round * NB_GEMV_TASK * x_size + 128;
    a->rounds = nb_gemv_ceil(a->tasks, a->round);
    a->x_stride = nb_gemv_ceil(window, 128) * 128;
    a->x_bytes = a->g.rows * a->x_stride;
    a->round_segments = (once ? a->tasks : a->round) * a->per_task;
    a->round_groups = a->round_segments < a->groups ? a->round_segments : a->groups;
    a->parts = NB_GEMV_ZEROS + (once ? 1 : 2) * a->x_bytes;
    a->part_bytes = a->panels * a->round_segments * ((a->g.rows + 1) / 2) * 128;
    a->meta = a->parts + 2 * a->part_bytes;
    a->zeros = a->panels * a->round_groups * NB_TILE_N * 4;
    a->meta_bytes = nb_gemv_ceil(a->zeros + a->panels * a->round_groups * NB_TILE_N, 128) * 128;
    return a->meta + 3 * a->meta_bytes;
}

/* Chooses the longest round that fits into `budget` bytes for a->panels panels; returns their size, 0 if none fits. */
static inline uint32_t nb_gemv_fit(nb_gemv_args *a, uint32_t x_size, uint32_t budget)
{
    uint32_t shared, least;
    a->round = a->tasks;
    if ((shared = nb_gemv_lay_out(a, x_size)) <= budget)
        return shared;
    a->round = 1;
    if (a->tasks < 2 || (least = nb_gemv_lay_out(a, x_size)) > budget)
        return 0;
    /* what one task more takes, at most */
    const uint32_t more = 2 * (a->g.rows * NB_GEMV_TASK * x_size) +
                          a->panels * a->per_task * ((a->g.rows + 1) / 2 * 256 + NB_TILE_N * 15) + 3 * 128;
    a->round = 1 + (budget - least) / more;
    if (a->round >= a->tasks)
        a->round = a->tasks - 1;
    return nb_gemv_lay_out(a, x_size);
}

static inline uint32_t nb_gemv_tiles(nb_gemv_args *a)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < 3; i++) { /* parts that are not there begin behind the last tile */
        a->g.first_tile[i] = n;
        if (i < a->g.n_parts)
            n += nb_gemv_ceil(nb_gemv_ceil(a->g.part[i].n, NB_TILE_N), a->panels);
    }
    return a->g.n_tiles = n;
}

/* The time of a tile, in units of the time in which eight warps read a task each.  A step costs a quarter of that in
 * barriers, and a sixtieth for each panel and pair of rows that it joins (guesses); x comes from the second-level
 * cache, again for every tile when there is more than one round, at about 2.5 times the rate of weights. */
static inline float nb_gemv_tile_cost(const nb_gemv_args *a, uint32_t x_size)
{
    const uint32_t last = a->tasks - (a->rounds - 1) * a->round, kind = a->g.part[0].kind;
    const float task = (float)(NB_GEMV_TASK / NB_TILE_K * NB_UNITS(kind) / NB_TILES(kind) * NB_UNIT);
    float cost = (float)((a->rounds - 1) * nb_gemv_ceil(a->panels * a->round, NB_GEMV_WARPS) +
                         nb_gemv_ceil(a->panels * last, NB_GEMV_WARPS));
    if (a->rounds > 1)
        cost += (float)(a->g.rows * x_size) * (float)a->g.k / (task * NB_GEMV_WARPS) / 2.5f;
    return cost + (float)a->rounds * (0.25f + (float)(a->panels * ((a->g.rows + 1) / 2)) / 60);
}

/* Fills all fields but a->g's own for a launch on n_sm multiprocessors whose blocks may have max_shared bytes.  grid
 * 0: it does not fit. */
static inline nb_gemv_launch nb_gemv_plan(nb_gemv_args *a, uint32_t x_size, uint32_t n_sm, uint32_t max_shared)
{
    nb_gemv_launch best = {0, 0};
    uint32_t best_panels = 0, best_round = 0;
    float best_cost = 0;
    nb_gemv_cut_k(a);
    for (uint32_t per_sm = 2; per_sm >= 1; per_sm--) {
        const uint32_t room = (max_shared + 1024) / per_sm - 1024; /* the system takes 1 KiB of each block */
        const uint32_t budget = room < NB_GEMV_MAX_SHARED ? room : NB_GEMV_MAX_SHARED;
        for (a->panels = 1; a->panels <= NB_GEMV_MAX_PANELS; a->panels++) {
            const uint32_t shared = nb_gemv_fit(a, x_size, budget);
            if (!shared)
                break;
            /* blocks on one multiprocessor share its bandwidth; one alone waits at its barriers */
            const uint32_t tiles = nb_gemv_tiles(a), grid = tiles < n_sm * per_sm ? tiles : n_sm * per_sm;
            const uint32_t work = nb_gemv_ceil(tiles, grid) * nb_gemv_ceil(grid, n_sm);
            const float cost = (float)work * (grid > n_sm ? 1.0f : 1.15f) * nb_gemv_tile_cost(a, x_size);
            if (best.grid && cost >= best_cost)
                continue;
            best.grid = grid;
            best.shared = shared;
            best_cost = cost;
            best_panels = a->panels;
            best_round = a->round;
        }
    }
    if (best.grid) {
        a->panels = best_panels;
        a->round = best_round;
        nb_gemv_lay_out(a, x_size);
        nb_gemv_tiles(a);
    }
    return best;
}

#endif
