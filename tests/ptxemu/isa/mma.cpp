/* mma.sync: D = A * B + C on the registers of one warp.
 *
 * The variants are a table: shape, operand types, the compute capability that brought them.  How fragments lie in
 * registers follows from the shape and the element width alone (isa/fragments.h).
 *
 * Integer results are exact: modulo 2^32, or clamped with .satfinite.  Floating-point results are the sum of C and the
 * k products in ascending order of k, formed in f64 (where products of f16, bf16, tf32 and fp8 elements are exact) and
 * rounded once to the type of D, to nearest even.  Tensor cores align the products and C to the largest of them, cut
 * off what falls below some bits, and may do so in steps of a few k; their last bits differ, and from one architecture
 * to the next.  f64 is a chain of fused multiply-adds. */
#include <algorithm>
#include <cmath>

#include "isa/mma.h"

namespace ptxemu
{
namespace
{

struct ElementSet {
    std::array<Type, 2> types; /* what A and B may be, each on its own */
    std::array<Type, 2> accumulators;
};
const ElementSet element_sets[] = {
    {{Type::f16, Type::f16}, {Type::f16, Type::f32}},   {{Type::bf16, Type::bf16}, {Type::f32, Type::f32}},
    {{Type::tf32, Type::tf32}, {Type::f32, Type::f32}}, {{Type::f64, Type::f64}, {Type::f64, Type::f64}},
    {{Type::s8, Type::u8}, {Type::s32, Type::s32}},     {{Type::s4, Type::u4}, {Type::s32, Type::s32}},
    {{Type::b1, Type::b1}, {Type::s32, Type::s32}},     {{Type::e4m3, Type::e5m2}, {Type::f16, Type::f32}},
};

const MmaVariant variants[] = {
    {"m16n8k8", 16, 8, Elements::f16, 75},       {"m16n8k16", 16, 16, Elements::f16, 80},
    {"m16n8k8", 16, 8, Elements::bf16, 80},      {"m16n8k16", 16, 16, Elements::bf16, 80},
    {"m16n8k4", 16, 4, Elements::tf32, 80},      {"m16n8k8", 16, 8, Elements::tf32, 80},
    {"m8n8k4", 8, 4, Elements::f64, 80},         {"m16n8k4", 16, 4, Elements::f64, 90},
    {"m16n8k8", 16, 8, Elements::f64, 90},       {"m16n8k16", 16, 16, Elements::f64, 90},
    {"m8n8k16", 8, 16, Elements::bytes, 75},     {"m16n8k16", 16, 16, Elements::bytes, 80},
    {"m16n8k32", 16, 32, Elements::bytes, 80},   {"m8n8k32", 8, 32, Elements::nibbles, 75},
    {"m16n8k32", 16, 32, Elements::nibbles, 80}, {"m16n8k64", 16, 64, Elements::nibbles, 80},
    {"m8n8k128", 8, 128, Elements::bits, 75},    {"m16n8k128", 16, 128, Elements::bits, 80},
    {"m16n8k256", 16, 256, Elements::bits, 80},  {"m16n8k16", 16, 16, Elements::fp8, 89},
    {"m16n8k32", 16, 32, Elements::fp8, 89},
};

constexpr unsigned N = MMA_N, MAX_M = MMA_MAX_M;
constexpr unsigned MAX_K = 64; /* of what is unpacked: everything but bits */

/* a[m][k] and b[k][n] as numbers. */
template <class T>
struct Factors {
    T a[MAX_M * MAX_K], b[MAX_K * N];

    Factors(const Warp &w, const Inst &i, const Mma &v, Unpack<T> unpack_a, Unpack<T> unpack_b)
    {
        load_mma_a(w, i, v, unpack_a, a, v.k);
        load_mma_b<MAX_K>(w, i, v, unpack_b, b);
    }
};

const Mma &mma_of(const Inst &i)
{
    return *static_cast<const Mma *>(i.extra);
}

bool one_of(const std::array<Type, 2> &types, Type t)
{
    return t == types[0] || t == types[1];
}

} // namespace

const char *take_mma_shape(Decode &d, const MmaVariant *variants, size_t n)
{
    for (const MmaVariant *v = variants; v < variants + n; v++)
        if (d.take(v->shape))
            return v->shape;
    d.fail("an mma of this shape is not emulated");
}

MmaTypes take_mma_types(Decode &d)
{
    MmaTypes t;
    t.d = d.type();
    t.a = d.type();
    t.b = d.type();
    t.c = d.type();
    return t;
}

const MmaVariant &find_mma_variant(Decode &d, const MmaVariant *variants, size_t n, const MmaTypes &t,
                                   const char *shape)
{
    for (const MmaVariant *v = variants; v < variants + n; v++) {
        const ElementSet &set = element_sets[size_t(v->elements)];
        if (strcmp(v->shape, shape) == 0 && one_of(set.types, t.a) && one_of(set.types, t.b) &&
            one_of(set.accumulators, t.c) && t.c == t.d)
            return *v;
    }
    d.fail("%s.%s.%s.%s.%s is none of the emulated variants", shape, type_text(t.d), type_text(t.a), type_text(t.b),
           type_text(t.c));
}

Mma plan_mma(const MmaVariant &v, const MmaTypes &t)
{
    Mma p = {};
    p.m = v.m;
    p.k = v.k;
    p.tile_k = 4 * std::max(32 / type_bits(t.a), 1u); /* four registers' worth */
    p.n_b = v.k / p.tile_k;
    p.n_a = p.n_b * v.m / TILE_ROWS;
    p.f16_accumulators = t.c == Type::f16;
    p.n_c = v.m * N / WARP_SIZE / (p.f16_accumulators ? 2 : 1);
    p.int_a = unpack_integer(t.a);
    p.int_b = unpack_integer(t.b);
    p.float_a = unpack_float(t.a);
    p.float_b = unpack_float(t.b);
    return p;
}

void take_saturate(Decode &d, bool saturate, const MmaVariant &v, Mma *p)
{
    p->saturate = saturate;
    if (saturate && v.elements != Elements::bytes && v.elements != Elements::nibbles)
        d.fail(".satfinite is for integer mma");
}

void mma_operands(Decode &d, Inst &i, const Mma &p, const MmaTypes &t)
{
    Type factor = t.a == Type::f64 ? Type::f64 : Type::b32;
    Type accumulator = t.c == Type::f16 ? Type::b32 : t.c;
    fragment(d, 0, p.n_c, accumulator, Opnd::write);
    fragment(d, 1, p.n_a, factor, Opnd::read);
    fragment(d, 2, p.n_b, factor, Opnd::read);
    fragment(d, 3, p.n_c, accumulator, Opnd::read);
    i.extra = &p;
    i.cls = Class::tensor;
    i.together = Together::warp;
    i.type = t.d;
    i.type2 = t.a;
}

void finish_mma_integer(Warp &w, const Inst &i, const Mma &v, uint32_t *sum)
{
    uint32_t c[MAX_M * N];
    load_s32(w, v.c(i), c, v.m, N);
    for (unsigned e = 0; e < v.m * N; e++)
        if (v.saturate) { /* the products of one instruction stay below 2^31 */
            int64_t exact = int64_t(int32_t(sum[e])) + int32_t(c[e]);
            sum[e] = uint32_t(std::clamp<int64_t>(exact, INT32_MIN, INT32_MAX));
        } else {
            sum[e] += c[e];
        }
    store_s32(w, v.d(i), sum, v.m, N);
    count_tensor(w, 2ull * v.m * N * v.k);
}

namespace
{

Step mma_integer(Warp &w, const Inst &i)
{
    const Mma &v = mma_of(i);
    need_whole_warp(w);
    Factors<float> f(w, i, v, v.int_a, v.int_b);
    float exact[MAX_M * N] = {};
    multiply(f.a, f.b, exact, v.m, N, v.k);
    uint32_t sum[MAX_M * N];
    for (unsigned e = 0; e < v.m * N; e++)
        sum[e] = uint32_t(int32_t(exact[e]));
    finish_mma_integer(w, i, v, sum);
    return Step::next;
}

/* The k "products" are the bits of a xor b, or a and b; their sum is a population count. */
Step mma_bits(Warp &w, const Inst &i)
{
    const Mma &v = mma_of(i);
    need_whole_warp(w);
    constexpr unsigned WORDS = 2; /* of 64 bits in a tile's row */
    uint32_t sum[MAX_M * N] = {};
    unsigned halves = v.m / TILE_ROWS;
    for (unsigned r = 0; r < v.n_a; r++) {
        const uint64_t *a = w.in<uint64_t>(v.a(i)[r]), *b = w.in<uint64_t>(v.b(i)[r / halves]);
        uint32_t *rows = sum + r % halves * TILE_ROWS * N;
        for (unsigned e = 0; e < TILE_ROWS * N; e++)
            for (unsigned x = 0; x < WORDS; x++) {
                uint64_t p = a[e / N * WORDS + x], q = b[e % N * WORDS + x];
                rows[e] += uint32_t(__builtin_popcountll(v.xor_bits ? p ^ q : p & q));
            }
    }
    finish_mma_integer(w, i, v, sum);
    return Step::next;
}

Step mma_float(Warp &w, const Inst &i)
{
    const Mma &v = mma_of(i);
    need_whole_warp(w);
    Factors<double> f(w, i, v, v.float_a, v.float_b);
    double sum[MAX_M * N];
    (v.f16_accumulators ? load_f16 : load_f32)(w, v.c(i), sum, v.m, N);
    multiply(f.a, f.b, sum, v.m, N, v.k);
    (v.f16_accumulators ? store_f16 : store_f32)(w, v.d(i), sum, v.m, N);
    count_tensor(w, 2ull * v.m * N * v.k);
    return Step::next;
}

Step mma_f64(Warp &w, const Inst &i)
{
    const Mma &v = mma_of(i);
    need_whole_warp(w);
    Factors<double> f(w, i, v, v.float_a, v.float_b);
    double sum[MAX_M * N];
    load_f64(w, v.c(i), sum, v.m, N);
    for (unsigned e = 0; e < v.m * N; e++)
        for (unsigned k = 0; k < v.k; k++)
            sum[e] = std::fma(f.a[e / N * v.k + k], f.b[k * N + e % N], sum[e]);
    store_f64(w, v.d(i), sum, v.m, N);
    count_tensor(w, 2ull * v.m * N * v.k);
    return Step::next;
}

Exec handler(Elements e)
{
    switch (e) {
    case Elements::bytes:
    case Elements::nibbles:
        return mma_integer;
    case Elements::bits:
        return mma_bits;
    case Elements::f64:
        return mma_f64;
    default:
        return mma_float;
    }
}

void take_bit_operation(Decode &d, Mma *p)
{
    p->xor_bits = d.take("xor");
    if (!p->xor_bits) {
        if (!d.take("and"))
            d.fail("mma of .b1 needs .xor.popc or .and.popc");
        d.need_sm(80);
    }
    if (!d.take("popc"))
        d.fail("mma of .b1 needs .popc");
}

void build_mma(Decode &d, Inst &i)
{
    constexpr size_t n = sizeof variants / sizeof *variants;
    if (!d.take("sync") || !d.take("aligned"))
        d.fail("mma needs .sync.aligned");
    const char *shape = take_mma_shape(d, variants, n);
    if (!d.take("row") || !d.take("col"))
        d.fail("mma of this shape is .row.col");
    bool saturate = d.take("satfinite");
    MmaTypes t = take_mma_types(d);
    const MmaVariant &v = find_mma_variant(d, variants, n, t, shape);
    d.need_sm(v.sm);

    Mma *p = d.extra<Mma>();
    *p = plan_mma(v, t);
    take_saturate(d, saturate, v, p);
    if (v.elements == Elements::bits)
        take_bit_operation(d, p);
    mma_operands(d, i, *p, t);
    i.exec = handler(v.elements);
}

const Opcode opcodes[] = {
    {"mma", build_mma},
    {"mma.sp", build_mma_sp},
    {"mma.sp::ordered_metadata", build_mma_sp_ordered},
    {"ldmatrix", build_ldmatrix},
    {"stmatrix", build_stmatrix},
    {"movmatrix", build_movmatrix},
    {"wmma.load.a", build_wmma_load_a},
    {"wmma.load.b", build_wmma_load_b},
    {"wmma.load.c", build_wmma_load_c},
    {"wmma.store.d", build_wmma_store_d},
    {"wmma.mma", build_wmma_mma},
};
} // namespace

extern const Family matrix_family = {opcodes, sizeof opcodes / sizeof *opcodes};

} // namespace ptxemu
