/* One triangle of a Gram matrix by tiles of TILE_I x 32 sums that stay in registers over a run of rows.  Compiled for each
 * instruction set as NBI_GRAM_TRIANGLE; fused multiply-adds are written out, so all give the same bits.
 *
 * x is packed first: panels of 32 columns, [n][32] each, so that a tile reads two streams of neighbours whatever k is. */
#include "quant/gram.h"

/* h[i0 .. i0+TILE_I)[j0 .. j0+32) += a^T b: a has the columns i, b the columns j, rows of NBI_GRAM_PANEL floats.  ni, nj: how many of
 * them there are. */
static inline void tile(float *h, size_t k, const float *a, const float *b, size_t n, size_t ni, size_t nj)
{
    v16 part[TILE_I][2];
    for (int i = 0; i < TILE_I; i++)
        part[i][0] = part[i][1] = v16_set1(0);
    for (size_t r = 0; r < n; r++, a += NBI_GRAM_PANEL, b += NBI_GRAM_PANEL) {
        const v16 b0 = v16_load(b), b1 = v16_load(b + 16);
        for (int i = 0; i < TILE_I; i++) {
            const v16 x = v16_set1(a[i]);
            part[i][0] = v16_fma(x, b0, part[i][0]);
            part[i][1] = v16_fma(x, b1, part[i][1]);
        }
    }
    for (size_t i = 0; i < ni; i++)
        for (size_t j = 0; j < nj; j += 16) {
            float *to = h + i * k + j;
            const size_t m = nj - j < 16 ? nj - j : 16;
            v16_store_n(to, v16_add(v16_load_n(to, m), part[i][j / 16]), m);
        }
}

/* Rows [i0, i1) of h, i0 a multiple of the panel, from column 0 past the diagonal (up to the end of its tile). */
void NBI_GRAM_TRIANGLE(float *h, const float *packed, size_t n, size_t k, size_t i0, size_t i1)
{
    const size_t panel = n * NBI_GRAM_PANEL;
    for (size_t i = i0; i < i1; i += TILE_I) {
        const size_t ni = i1 - i < TILE_I ? i1 - i : TILE_I, end = i + ni;
        const float *a = packed + i / NBI_GRAM_PANEL * panel + i % NBI_GRAM_PANEL;
        for (size_t j = 0; j < end; j += NBI_GRAM_PANEL)
            tile(h + i * k + j, k, a, packed + j / NBI_GRAM_PANEL * panel, n, ni,
                 k - j < NBI_GRAM_PANEL ? k - j : NBI_GRAM_PANEL);
    }
}
