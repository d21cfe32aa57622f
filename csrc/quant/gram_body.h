/* One triangle of a Gram matrix by tiles of 4 x 16 sums that stay in registers over a run of rows.  Compiled for each
 * instruction set as NBI_GRAM_TRIANGLE; fused multiply-adds are written out, so all give the same bits. */
#include "quant/gram.h"

#include <math.h>

enum { TILE_I = 4, TILE_J = 16 };

/* h[i0 .. +ni)[j0 .. +nj) += x_i^T x_j over n rows; constant sizes are what lets the loops become registers */
static inline void tile(float *h, const float *x, size_t n, size_t k, size_t i0, size_t j0, size_t ni, size_t nj)
{
    float part[TILE_I][TILE_J] = {{0}};
    for (size_t r = 0; r < n; r++) {
        const float *row = x + r * k;
        for (size_t i = 0; i < ni; i++)
            for (size_t j = 0; j < nj; j++)
                part[i][j] = fmaf(row[i0 + i], row[j0 + j], part[i][j]);
    }
    for (size_t i = 0; i < ni; i++)
        for (size_t j = 0; j < nj; j++)
            h[(i0 + i) * k + j0 + j] += part[i][j];
}

/* Rows [i0, i1) of h, i0 a multiple of 4, from column 0 past the diagonal (up to the end of its tile). */
void NBI_GRAM_TRIANGLE(float *h, const float *x, size_t n, size_t k, size_t i0, size_t i1)
{
    for (; i0 < i1; i0 += TILE_I) {
        const size_t ni = k - i0 < TILE_I ? k - i0 : TILE_I, end = i0 + ni;
        for (size_t j0 = 0; j0 < end; j0 += TILE_J) {
            const size_t nj = k - j0 < TILE_J ? k - j0 : TILE_J;
            if (ni == TILE_I && nj == TILE_J)
                tile(h, x, n, k, i0, j0, TILE_I, TILE_J);
            else
                tile(h, x, n, k, i0, j0, ni, nj);
        }
    }
}
