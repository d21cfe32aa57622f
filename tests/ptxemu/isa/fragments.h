/* Matrices spread over the registers of a warp.
 *
 * One idea underlies the fragments of mma, wgmma (A and D) and ldmatrix.  A matrix is cut into tiles of 8 rows by 16
 * bytes (32 bytes of f64); a tile is one register of a warp, and lane 4g+t holds bytes 4t...4t+3 of its row g.  As the
 * emulator keeps the 32 lanes of a register side by side, a register's row in memory IS the tile, row-major without
 * gaps: nothing has to be gathered lane by lane.
 *
 *   A (m x k, "row"): tiles go down the rows first, then along k: m16n8k32.s8 has a0 (rows 0-7, k 0-15), a1 (rows 8-15,
 *      k 0-15), a2 (rows 0-7, k 16-31), a3.  m8 shapes have one tile for each 16 bytes of k.
 *   B (k x n, "col"): rows of a tile are columns of B: b0 holds k 0-15 of columns 0-7, b1 k 16-31.
 *   C, D (m x n): 4-byte elements 2t, 2t+1 of row g lie in two registers: c0, c1 for rows 0-7, c2, c3 for rows 8-15.
 *      Packed pairs of f16 make tiles of 8 columns: c0 for rows 0-7, c1 for rows 8-15. */
#ifndef PTXEMU_ISA_FRAGMENTS_H
#define PTXEMU_ISA_FRAGMENTS_H

#include <cstring>

#include "isa/decode.h"
#include "isa/softfloat.h"
#include "machine/block.h"

namespace ptxemu
{

constexpr unsigned TILE_ROWS = 8;

/* ---- A and B: numbers out of tiles ---- */

/* Widens a tile into out[row * stride + element]. */
template <class T>
using Unpack = void (*)(const uint8_t *tile, T *out, unsigned stride);

/* The functions for an element type; nullptr for types that are none.  Floats become f64, in which the product of two
 * elements is exact. Integers become f32, in which all sums of an instruction's products are exact: 32 products of
 * bytes stay below 2^24, and f32 is what the host multiplies fastest. */
Unpack<float> unpack_integer(Type t);
Unpack<double> unpack_float(Type t);

/* acc[i][j] += sum of a[i][k] * b[k][j] over ascending k.  n is a multiple of 8; all matrices are row-major without
 * gaps. */
template <class T>
void multiply(const T *a, const T *b, T *acc, unsigned m, unsigned n, unsigned depth)
{
    constexpr unsigned WIDTH = 8; /* columns that stay in host registers */
    for (unsigned i = 0; i < m; i++)
        for (unsigned j = 0; j < n; j += WIDTH) {
            T sum[WIDTH];
            for (unsigned x = 0; x < WIDTH; x++)
                sum[x] = acc[i * n + j + x];
            for (unsigned k = 0; k < depth; k++) {
                T value = a[i * depth + k];
                const T *row = b + k * n + j;
                for (unsigned x = 0; x < WIDTH; x++)
                    sum[x] += value * row[x];
            }
            for (unsigned x = 0; x < WIDTH; x++)
                acc[i * n + j + x] = sum[x];
        }
}

/* in: n rows of `depth` elements; out: `depth` rows of n. */
template <class T>
void transpose(const T *in, T *out, unsigned n, unsigned depth)
{
    for (unsigned j = 0; j < n; j++)
        for (unsigned k = 0; k < depth; k++)
            out[k * n + j] = in[j * depth + k];
}

/* ---- C and D ---- */

/* Accumulators in registers; `regs` names them in order.  m is 8 or 16, n a multiple of 8; matrix[row * n + col]. */
void load_f32(const Warp &w, const Opnd *regs, double *matrix, unsigned m, unsigned n);
void load_f16(const Warp &w, const Opnd *regs, double *matrix, unsigned m, unsigned n);
void load_s32(const Warp &w, const Opnd *regs, uint32_t *matrix, unsigned m, unsigned n);
void load_f64(const Warp &w, const Opnd *regs, double *matrix, unsigned m, unsigned n);
/* Rounded once to the register's type. */
void store_f32(Warp &w, const Opnd *regs, const double *matrix, unsigned m, unsigned n);
void store_f16(Warp &w, const Opnd *regs, const double *matrix, unsigned m, unsigned n);
void store_s32(Warp &w, const Opnd *regs, const uint32_t *matrix, unsigned m, unsigned n);
void store_f64(Warp &w, const Opnd *regs, const double *matrix, unsigned m, unsigned n);

/* ---- building ---- */

/* Appends an operand that is a vector of n registers, or a single register where n is 1. */
void fragment(Decode &d, size_t operand, unsigned n, Type t, Opnd::Use use);

/* Matrix instructions are executed by whole warps.  On hardware, lanes that have exited or never existed make the
 * result undefined. */
void need_whole_warp(const Warp &w);

/* Builders of the matrix family that have files of their own. */
void build_ldmatrix(Decode &d, Inst &i);
void build_stmatrix(Decode &d, Inst &i);
void build_movmatrix(Decode &d, Inst &i);
void build_mma_sp(Decode &d, Inst &i);
void build_mma_sp_ordered(Decode &d, Inst &i);
void build_wmma_load_a(Decode &d, Inst &i);
void build_wmma_load_b(Decode &d, Inst &i);
void build_wmma_load_c(Decode &d, Inst &i);
void build_wmma_store_d(Decode &d, Inst &i);
void build_wmma_mma(Decode &d, Inst &i);

/* The addresses of [base + offset], operand `base`, in the instruction's space. */
inline void lane_addresses(const Warp &w, const Inst &i, const Opnd &base, uint64_t address[WARP_SIZE])
{
    if (base.bits == 64) {
        const uint64_t *p = w.in<uint64_t>(base);
        for (unsigned l = 0; l < WARP_SIZE; l++)
            address[l] = p[l] + i.imm;
    } else {
        const uint32_t *p = w.in<uint32_t>(base);
        for (unsigned l = 0; l < WARP_SIZE; l++)
            address[l] = p[l] + i.imm;
    }
}

} // namespace ptxemu

#endif
