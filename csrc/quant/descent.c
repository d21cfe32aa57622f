#include "quant/descent.h"

size_t nbi_descend(const nbi_descent *o, int8_t *codes, const nbi_grid *grids, const float *w, float *d, float *g)
{
    size_t changed = 0;
    for (size_t j = 0; j < o->k; j++) {
        const float *row = o->h + j * o->k;
        const nbi_grid *grid = &grids[j / o->len];
        if (row[j] == 0)
            continue;
        const float best = w[j] + d[j] + (g[j] - o->lambda * d[j]) / (row[j] + o->lambda);
        const int8_t code = nbi_grid_code(grid, best);
        if (code == codes[j])
            continue;
        const float step = nbi_grid_value(grid, code) - nbi_grid_value(grid, codes[j]);
        for (size_t t = 0; t < o->k; t++)
            g[t] -= step * row[t];
        d[j] += step;
        codes[j] = code;
        changed++;
    }
    return changed;
}
