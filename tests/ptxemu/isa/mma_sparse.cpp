/* mma.sp: D = A * B + C where half of A is zero and not there.
 *
 * A row of A is cut into chunks of 4 elements, 2 of which are held (tf32: 1 of 2; 4-bit elements: 2 pairs of 4 pairs).
 * So the registers of A hold a matrix of m x k/2, laid out as the dense A of that size; B, C and D are the dense ones.
 *
 * Metadata says where the held elements belong: 4 bits a chunk, two indices of 2 bits, the first one below.  An index
 * counts quarters of the chunk: elements, or pairs of 4-bit elements; a tf32 element takes two quarters, so that its
 * chunk has 0b0100 or 0b1110.  All rows together fill 1, 2 or 4 registers of each group of four lanes, and the selector
 * says which lanes of the group these are.  With T0, T1... for the lanes of group g that hold metadata:
 *
 *   elements of 16 and 32 bits: a register has 16 bits of row g in its lower half, and of row g + 8 in its upper; T0
 *      the first four chunks of the rows, T1 (f16, bf16: m16n8k32; tf32: m16n8k16) the others.
 *   of 8 and 4 bits: T0 has 32 bits of row g, T1 of row g + 8: the first eight chunks; T2 and T3 (s8, fp8: m16n8k64;
 *      s4: m16n8k128) have the others.
 *
 * mma.sp takes the two indices in any order, but they must differ; mma.sp::ordered_metadata wants them to ascend.  What
 * hardware does otherwise is undefined: here it is a fault.
 *
 * An element of B that meets none of A is not looked at: infinities and NaN there change nothing.  The sums are those
 * of isa/mma.cpp, in the order in which A's elements are held; the profile counts the operations of the dense product.
 */
#include "isa/mma.h"

namespace ptxemu
{
namespace
{

const MmaVariant variants[] = {
    {"m16n8k16", 16, 16, Elements::f16, 80},     {"m16n8k32", 16, 32, Elements::f16, 80},
    {"m16n8k16", 16, 16, Elements::bf16, 80},    {"m16n8k32", 16, 32, Elements::bf16, 80},
    {"m16n8k8", 16, 8, Elements::tf32, 80},      {"m16n8k16", 16, 16, Elements::tf32, 80},
    {"m16n8k32", 16, 32, Elements::bytes, 80},   {"m16n8k64", 16, 64, Elements::bytes, 80},
    {"m16n8k64", 16, 64, Elements::nibbles, 80}, {"m16n8k128", 16, 128, Elements::nibbles, 80},
    {"m16n8k64", 16, 64, Elements::fp8, 89},
};

constexpr unsigned M = 16, N = MMA_N, GROUP = 4;
constexpr unsigned MAX_K = 128;

struct SparseMma {
    Mma mma;
    unsigned chunk, held;    /* elements of A in a chunk; those that are there */
    unsigned chunks;         /* in a row */
    unsigned first, holders; /* lanes of each group that hold metadata */
    bool halves;             /* a register holds two rows' metadata */
    bool ordered;

    const Opnd &metadata(const Inst &i) const { return mma.c(i)[mma.n_c]; }
};

/* ---- metadata ---- */

struct ChunkPlace {
    unsigned lane, bit;
};

ChunkPlace place_of(const SparseMma &v, unsigned row, unsigned chunk)
{
    unsigned lane = row % TILE_ROWS * GROUP + v.first, upper = row / TILE_ROWS;
    if (v.halves)
        return {lane + chunk / 4, upper * 16 + chunk % 4 * 4};
    return {lane + chunk / 8 * 2 + upper, chunk % 8 * 4};
}

bool is_legal(const SparseMma &v, unsigned low, unsigned high)
{
    if (v.held == 1)
        return low % 2 == 0 && high == low + 1;
    return v.ordered ? low < high : low != high;
}

[[noreturn]] void refuse(const SparseMma &v, unsigned row, unsigned chunk, ChunkPlace p, unsigned bits)
{
    const char *wanted = v.held == 1 ? "of tf32 only 0b0100 and 0b1110 mean something"
                         : v.ordered ? "with .sp::ordered_metadata the lower index comes first"
                                     : "the indices of two elements differ";
    fault(FaultKind::invalid_metadata, int(p.lane),
          "the metadata of row %u, columns %u to %u of A (bits %u to %u of lane %u) is 0x%x, the indices %u and %u; %s",
          row, chunk * v.chunk, chunk * v.chunk + v.chunk - 1, p.bit, p.bit + 3, p.lane, bits, bits & 3, bits >> 2,
          wanted);
}

/* Lanes that hold no metadata need not have anything in their register. */
void need_metadata(const Warp &w, const SparseMma &v, const Opnd &e)
{
    Lanes holders = ((1u << v.holders) - 1) << v.first;
    holders *= 0x11111111u;
    if (Lanes undefined = w.undefined(e) & holders)
        fault(
            FaultKind::uninitialized_register, __builtin_ctz(undefined),
            "the register of the sparsity metadata was never written in lanes %s, whose metadata the selector asks for",
            lane_list(undefined).c_str());
}

/* column[row][held element]: which column of A it belongs to. */
void find_columns(const Warp &w, const Inst &i, const SparseMma &v, uint8_t *column)
{
    const uint32_t *e = w.in<uint32_t>(v.metadata(i));
    const bool check = w.block->grid->launch.options.check;
    if (check)
        need_metadata(w, v, v.metadata(i));
    for (unsigned row = 0; row < M; row++)
        for (unsigned chunk = 0; chunk < v.chunks; chunk++) {
            const ChunkPlace p = place_of(v, row, chunk);
            const unsigned bits = e[p.lane] >> p.bit & 15, index[2] = {bits & 3, bits >> 2};
            if (check && !is_legal(v, index[0], index[1]))
                refuse(v, row, chunk, p, bits);
            for (unsigned h = 0; h < v.held; h++) {
                const unsigned pair = v.held / 2; /* elements that share an index; tf32: an element has two */
                const unsigned at = pair ? index[h / pair] * pair + h % pair : index[0] / 2;
                *column++ = uint8_t(chunk * v.chunk + at);
            }
        }
}

/* ---- the product ---- */

const SparseMma &sparse_of(const Inst &i)
{
    return *static_cast<const SparseMma *>(i.extra);
}

/* sum[row][n] += A * B */
template <class T>
void multiply_sparse(const Warp &w, const Inst &i, const SparseMma &v, Unpack<T> unpack_a, Unpack<T> unpack_b, T *sum)
{
    const unsigned depth = v.mma.k / 2;
    T a[M * MAX_K / 2], b[MAX_K * N];
    uint8_t column[M * MAX_K / 2];
    load_mma_a(w, i, v.mma, unpack_a, a, depth);
    load_mma_b<MAX_K>(w, i, v.mma, unpack_b, b);
    find_columns(w, i, v, column);
    for (unsigned row = 0; row < M; row++, sum += N)
        for (unsigned x = 0; x < depth; x++) {
            const T value = a[row * depth + x];
            const T *factors = b + column[row * depth + x] * N;
            for (unsigned n = 0; n < N; n++)
                sum[n] += value * factors[n];
        }
}

Step sparse_integer(Warp &w, const Inst &i)
{
    const SparseMma &v = sparse_of(i);
    need_whole_warp(w);
    float exact[M * N] = {};
    multiply_sparse(w, i, v, v.mma.int_a, v.mma.int_b, exact);
    uint32_t sum[M * N];
    for (unsigned e = 0; e < M * N; e++)
        sum[e] = uint32_t(int32_t(exact[e]));
    finish_mma_integer(w, i, v.mma, sum);
    return Step::next;
}

Step sparse_float(Warp &w, const Inst &i)
{
    const SparseMma &v = sparse_of(i);
    need_whole_warp(w);
    double sum[M * N];
    (v.mma.f16_accumulators ? load_f16 : load_f32)(w, v.mma.c(i), sum, M, N);
    multiply_sparse(w, i, v, v.mma.float_a, v.mma.float_b, sum);
    (v.mma.f16_accumulators ? store_f16 : store_f32)(w, v.mma.d(i), sum, M, N);
    count_tensor(w, 2ull * M * N * v.mma.k);
    return Step::next;
}

/* ---- building ---- */

SparseMma plan(const MmaVariant &variant, const MmaTypes &t)
{
    SparseMma p = {};
    p.mma = plan_mma(variant, t);
    p.mma.n_a /= 2;
    p.chunk = t.a == Type::tf32 ? 2 : variant.elements == Elements::nibbles ? 8 : 4;
    p.held = p.chunk / 2;
    p.chunks = variant.k / p.chunk;
    p.holders = p.chunks * 4 / 16;
    p.halves = type_bits(t.a) >= 16;
    return p;
}

void take_selector(Decode &d, SparseMma *p)
{
    const ptx::Operand &f = d.operand(5);
    const unsigned choices = GROUP / p->holders;
    if (f.kind != ptx::Operand::integer)
        d.fail("the sparsity selector is a constant");
    if (f.bits >= choices)
        d.fail("the sparsity selector is %lld; %s", static_cast<long long>(f.bits),
               choices == 4   ? "one lane of four holds metadata: 0 to 3"
               : choices == 2 ? "two lanes of four hold metadata: 0 or 1"
                              : "all lanes hold metadata: only 0 is possible");
    p->first = unsigned(f.bits) * p->holders;
}

void build_sparse(Decode &d, Inst &i, bool ordered)
{
    constexpr size_t n = sizeof variants / sizeof *variants;
    if (!d.take("sync") || !d.take("aligned"))
        d.fail("mma.sp needs .sync.aligned");
    const char *shape = take_mma_shape(d, variants, n);
    if (!d.take("row") || !d.take("col"))
        d.fail("mma.sp is .row.col");
    const bool saturate = d.take("satfinite");
    const MmaTypes t = take_mma_types(d);
    const MmaVariant &v = find_mma_variant(d, variants, n, t, shape);
    if (v.elements == Elements::fp8 && t.c == Type::f16)
        d.fail("mma.sp of fp8 accumulates in f32");
    d.need_sm(v.sm);

    SparseMma *p = d.extra<SparseMma>();
    *p = plan(v, t);
    p->ordered = ordered;
    take_saturate(d, saturate, v, &p->mma);
    mma_operands(d, i, p->mma, t);
    d.in(4, Type::b32, Opnd::copy);
    take_selector(d, p);
    i.extra = p;
    i.exec = v.elements == Elements::bytes || v.elements == Elements::nibbles ? sparse_integer : sparse_float;
}

} // namespace

void build_mma_sp(Decode &d, Inst &i)
{
    build_sparse(d, i, false);
}

void build_mma_sp_ordered(Decode &d, Inst &i)
{
    build_sparse(d, i, true);
}

} // namespace ptxemu
