/* How a weight lies in device memory: one layout for every architecture, every kind of activation, and every number of rows.
 *
 * The 16 output rows n of a weight are the 16 rows of the A operand of mma (y^T = W x^T): a warp computes 16 outputs for 8, 16,
 * ... rows of x, whose K-contiguous rows are the B operand.  A tile is 16 (n) x 64 (k).  It is cut into units of 512 bytes: one
 * 16-byte load a lane, which gives the lane the A fragments as mma wants them, in registers, without shared memory.
 * Below 4 bits a unit is more than a tile: NB_TILES(kind) tiles are a block, whose tile j is word j (W2: words 2j, 2j+1) of each of
 * its units.
 *
 *   packed      [ceil(N/16)] panels of [ceil(K/64/NB_TILES)] blocks of NB_UNITS(kind) units of [32 lanes][16 bytes]
 *   lane        4g + t: rows g and g+8 of the panel
 *
 *   DENSE  unit u = 0..3: k16 block u.  Words: (g; 2t,2t+1)  (g+8; 2t,2t+1)  (g; 2t+8,2t+9)  (g+8; 2t+8,2t+9), two T each:
 *          a0..a3 of mma.m16n8k16, unchanged.
 *   W8     unit u = 0..1: k16 blocks 2u and 2u+1.  Words: (g; block 2u)  (g+8; 2u)  (g; 2u+1)  (g+8; 2u+1), four signed codes
 *          each in the order 2t, 2t+8, 2t+1, 2t+9 (bytes 0..3).  For INT8 activations these are a0..a3 of mma.m16n8k32.
 *   W4     one unit.  Word j: k16 block j; unsigned codes u = code + 8; nibbles 0..7 (bit 4i) =
 *          (g; 2t) (g+8; 2t) (g; 2t+8) (g+8; 2t+8)  (g; 2t+1) (g+8; 2t+1) (g; 2t+9) (g+8; 2t+9)
 *          - masks 0x000f000f, 0x00f000f0, then the same after >> 8, are the pairs of codes of a0, a1, a2, a3 of m16n8k16
 *          - 0x0f0f0f0f of word 2j, its >> 4, and the same of word 2j+1, are a0, a1, a2, a3 of m16n8k32 in the order above
 *
 *   NF4    one unit of unsigned codes as W4, but for the order: nibbles 0..7 = (g; 2t, 2t+1) (g+8; 2t, 2t+1) (g; 2t+8, 2t+9)
 *          (g+8; 2t+8, 2t+9): two of each of a0..a3, as a table gives four numbers at once (nf4.cuh)
 *   W4F    as W4, with zero points in sixteenths: u8 with the offset 128
 *   W2     one unit for two tiles.  Word j: k16 blocks 2j and 2j+1 of the eight; unsigned codes u = code + 2; bits of byte i, for k
 *          as the i-th of 2t, 2t+8, 2t+1, 2t+9:  0-1 (g; block 2j)  2-3 (g+8; 2j)  4-5 (g; 2j+1)  6-7 (g+8; 2j+1)
 *   W3     three units for four tiles.  Of a tile's three words, one from each unit, u = code + 4, the halves of word i have, the
 *          lower one for k as listed, the upper one for k + 1:
 *          bits 4-6 (g; block i, 2t)  7-9 (g+8; i, 2t)  10-12 (g; i, 2t+8)  13-15 (g+8; i, 2t+8)
 *          bits 1-3 (g; block 3, 2t) in word 0, (g; 3, 2t+8) in word 1, (g+8; 3, 2t) in word 2; bit 0: bit i of (g+8; 3, 2t+8)
 *   XNOR   no tiles: rows [N] of NB_XNOR_WORDS(K) words, bit k % 32 of word k / 32 is 1 for the code 1, 0 beyond K; scales [N]
 *
 * Hence NB_K_ORDER: INT8 activations are stored so that position 4t+i of each 16 holds k = 2t, 2t+8, 2t+1, 2t+9 (i = 0..3).
 *
 * What lies beyond N or K: codes of value zero (W4: its zero point, so that (u - zero) is 0; NF4: 7; dense: 0.0;
 * zero points in sixteenths: 0, as x is 0 there).
 * Scales [panels][groups][16] fp32, zero points [panels][groups][16] bytes: W4 u8 with the offset 8 of its codes (8 when
 * symmetric: always present), W8 signed, W2 and W3 signed sixteenths (both NULL when symmetric).  corr [panels][groups][16] int32: -zx * sum of (code - z), for
 * static asymmetric activations; NULL when zx is 0.  bias [panels*16] fp32 or NULL.
 */
#ifndef NB_CUDA_LAYOUT_H
#define NB_CUDA_LAYOUT_H

#include <stdint.h>

#define NB_TILE_N 16
#define NB_TILE_K 64
#define NB_UNIT   512 /* bytes: 32 lanes of 16 */

/* Two more kinds, only with --gemm cublaslt, lie as that library wants them: row-major, n rows of k.  PLAIN is dense; PLAIN8 has INT8
 * codes for INT8 activations, rows of k_pad (k rounded up to NB_TILE_K, zeros beyond k) in NB_K_ORDER, and one group: its
 * scales, zero points (signed), corrections and bias are [n].  Of the kernels only nb_embed and nb_finish_sums know them. */
enum {
    NB_W_DENSE,
    NB_W_W8,
    NB_W_W4,
    NB_W_PLAIN,
    NB_W_PLAIN8,
    NB_W_NF4,
    NB_W_XNOR,
    NB_W_W4F,
    NB_W_W2,
    NB_W_W3,
    NB_N_WEIGHT_KINDS
};
#define NB_TILES(kind)                ((kind) == NB_W_W3 ? 4 : (kind) == NB_W_W2 ? 2 : 1) /* of a block */
#define NB_UNITS(kind)                ((kind) == NB_W_DENSE ? 4 : (kind) == NB_W_W3 ? 3 : (kind) == NB_W_W8 ? 2 : 1) /* of a block */
#define NB_PANEL_UNITS(kind, k_tiles) (((k_tiles) + NB_TILES(kind) - 1) / NB_TILES(kind) * NB_UNITS(kind))

#define NB_XNOR_WORDS(k) (((k) + 127) / 128 * 4) /* of 32 bits: a row of signs */

/* k of position p (0..15) in a block of 16 activations in INT8, and back. */
#define NB_K_ORDER(p)    (2 * ((p) >> 2) + ((p)&1) * 8 + (((p) >> 1) & 1))
#define NB_K_POSITION(k) (4 * (((k)&7) >> 1) + ((k)&1) * 2 + ((k) >> 3))

typedef struct nb_packed {
    const void *w;
    const float *scales; /* NULL when dense */
    const void *zeros;
    const int32_t *corr;
    const float *bias;
    uint32_t n, k;
    uint32_t k_tiles; /* ceil(k/64) */
    uint32_t groups, group_len;
    uint32_t kind, dtype; /* NB_W_*; dense: NB_T_* */
} nb_packed;

enum { NB_T_F32, NB_T_F16, NB_T_BF16 }; /* of arrays that come in several types */

#endif
