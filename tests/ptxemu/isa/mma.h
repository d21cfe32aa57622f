/* What mma and mma.sp share: the table's types, operands, and the accumulators. */
#ifndef PTXEMU_ISA_MMA_H
#define PTXEMU_ISA_MMA_H

#include <array>

#include "isa/fragments.h"
#include "profile/counters.h"

namespace ptxemu
{

enum class Elements : uint8_t { f16, bf16, tf32, f64, bytes, nibbles, bits, fp8 };

struct MmaVariant {
    const char *shape;
    uint16_t m, k; /* n is 8 */
    Elements elements;
    uint16_t sm;
};

struct MmaTypes {
    Type d, a, b, c;
};
MmaTypes take_mma_types(Decode &d);

constexpr unsigned MMA_N = 8, MMA_MAX_M = 16;

/* What a handler needs to know besides its operands: D, A, B, C in this order. */
struct Mma {
    unsigned m, k;
    unsigned tile_k;        /* elements of k in a tile */
    unsigned n_a, n_b, n_c; /* registers */
    Unpack<float> int_a, int_b;
    Unpack<double> float_a, float_b;
    bool f16_accumulators, saturate, xor_bits;

    const Opnd *d(const Inst &i) const { return i.op; }
    const Opnd *a(const Inst &i) const { return i.op + n_c; }
    const Opnd *b(const Inst &i) const { return i.op + n_c + n_a; }
    const Opnd *c(const Inst &i) const { return i.op + n_c + n_a + n_b; }
};

/* The shape that the modifiers name, and its variant for these types; errors if there is none. */
const char *take_mma_shape(Decode &d, const MmaVariant *variants, size_t n);
const MmaVariant &find_mma_variant(Decode &d, const MmaVariant *variants, size_t n, const MmaTypes &t,
                                   const char *shape);
Mma plan_mma(const MmaVariant &v, const MmaTypes &t);
void take_saturate(Decode &d, bool saturate, const MmaVariant &v, Mma *p);
/* Appends D, A, B, C and fills in what does not depend on the kind of mma. */
void mma_operands(Decode &d, Inst &i, const Mma &p, const MmaTypes &t);

/* Tiles of A (m rows of `columns` elements) and of B as plain matrices. */
template <class T>
void load_mma_a(const Warp &w, const Inst &i, const Mma &v, Unpack<T> unpack, T *a, unsigned columns)
{
    unsigned halves = v.m / TILE_ROWS;
    for (unsigned r = 0; r < v.n_a; r++)
        unpack(w.in<uint8_t>(v.a(i)[r]), a + r % halves * TILE_ROWS * columns + r / halves * v.tile_k, columns);
}
template <unsigned MAX_K, class T>
void load_mma_b(const Warp &w, const Inst &i, const Mma &v, Unpack<T> unpack, T *b)
{
    T columns[MMA_N * MAX_K];
    for (unsigned r = 0; r < v.n_b; r++)
        unpack(w.in<uint8_t>(v.b(i)[r]), columns + r * v.tile_k, v.k);
    transpose(columns, b, MMA_N, v.k);
}

/* D = sum + C, which wraps or saturates. */
void finish_mma_integer(Warp &w, const Inst &i, const Mma &v, uint32_t *sum);

} // namespace ptxemu

#endif
