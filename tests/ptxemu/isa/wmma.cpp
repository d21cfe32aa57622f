/* wmma.load, wmma.mma, wmma.store: what nvcc makes of <mma.h>.
 *
 * The PTX ISA leaves open which thread holds which element of a wmma fragment.  Here lane l holds the P elements l*P
 * ... l*P + P - 1 of the matrix, A row by row, B column by column, C and D row by row.  So the lanes' registers, one
 * lane after the other, are the matrix.  A fragment of f16 has registers for more than P elements, as on hardware: they
 * hold the elements once more. Programs that rely on the layout of a GPU (none is promised to) see a difference.
 * Numbers are treated as by mma. */
#include <algorithm>
#include <cmath>

#include "isa/fragments.h"
#include "memory/access.h"
#include "profile/counters.h"

namespace ptxemu
{
namespace
{

struct Shape {
    const char *name;
    unsigned m, n, k;
};
constexpr Shape M16N16K16{"m16n16k16", 16, 16, 16}, M32N8K16{"m32n8k16", 32, 8, 16}, M8N32K16{"m8n32k16", 8, 32, 16};

/* Types of A and B, which are both the one or the other, and of C and D. */
struct Variant {
    Shape shape;
    Type factors[2], accumulators[2];
    unsigned sm;
};
const Variant variants[] = {
    {M16N16K16, {Type::f16, Type::f16}, {Type::f16, Type::f32}, 70},
    {M32N8K16, {Type::f16, Type::f16}, {Type::f16, Type::f32}, 70},
    {M8N32K16, {Type::f16, Type::f16}, {Type::f16, Type::f32}, 70},
    {M16N16K16, {Type::bf16, Type::bf16}, {Type::f32, Type::f32}, 80},
    {M32N8K16, {Type::bf16, Type::bf16}, {Type::f32, Type::f32}, 80},
    {M8N32K16, {Type::bf16, Type::bf16}, {Type::f32, Type::f32}, 80},
    {M16N16K16, {Type::s8, Type::u8}, {Type::s32, Type::s32}, 72},
    {M32N8K16, {Type::s8, Type::u8}, {Type::s32, Type::s32}, 72},
    {M8N32K16, {Type::s8, Type::u8}, {Type::s32, Type::s32}, 72},
    {{"m16n16k8", 16, 16, 8}, {Type::tf32, Type::tf32}, {Type::f32, Type::f32}, 80},
    {{"m8n8k4", 8, 8, 4}, {Type::f64, Type::f64}, {Type::f64, Type::f64}, 80},
    {{"m8n8k32", 8, 8, 32}, {Type::s4, Type::u4}, {Type::s32, Type::s32}, 75},
    {{"m8n8k128", 8, 8, 128}, {Type::b1, Type::b1}, {Type::s32, Type::s32}, 75},
};
constexpr unsigned MAX_FACTOR = 512, MAX_C = 256; /* elements */
constexpr unsigned MAX_LANE_BYTES = 32;           /* of a lane's registers */

bool one_of(const Type (&types)[2], Type t)
{
    return t == types[0] || t == types[1];
}

/* A matrix spread over the warp: `rows` rows that lie one behind the other. */
struct Spread {
    unsigned rows, columns;
    Type type;
    unsigned n_regs;
    unsigned bits() const { return type_bits(type); }
    unsigned reg_bytes() const { return type == Type::f64 ? 8 : 4; }
    Type reg_type() const { return type == Type::f64 || type == Type::f32 || type == Type::s32 ? type : Type::b32; }
    unsigned lane_bytes() const { return rows * columns * bits() / 8 / WARP_SIZE; } /* without repetitions */
};

Spread spread(unsigned rows, unsigned columns, Type t, bool factor)
{
    Spread s{rows, columns, t, 0};
    s.n_regs = factor && t == Type::f16 ? 8 : s.lane_bytes() / s.reg_bytes();
    return s;
}

/* The lanes' registers as one matrix, row by row. */
void gather(const Warp &w, const Spread &s, const Opnd *regs, uint8_t *matrix)
{
    unsigned bytes = s.lane_bytes(), width = s.reg_bytes();
    for (unsigned at = 0; at < bytes; at += width)
        for (unsigned l = 0; l < WARP_SIZE; l++)
            memcpy(matrix + l * bytes + at, w.in<uint8_t>(regs[at / width]) + l * width, width);
}

void scatter(Warp &w, const Spread &s, const Opnd *regs, const uint8_t *matrix)
{
    unsigned bytes = s.lane_bytes(), width = s.reg_bytes();
    for (unsigned r = 0; r < s.n_regs; r++)
        for (unsigned l = 0; l < WARP_SIZE; l++)
            memcpy(w.out<uint8_t>(regs[r]) + l * width, matrix + l * bytes + r * width % bytes, width);
}

/* ---- load and store ---- */

/* Operands: base, row pitch in elements, then the registers. */
struct Move {
    Spread spread;
    bool across; /* consecutive elements in memory go across the rows of `spread` */
};

/* Visits the warp's part of memory piece by piece: f(host pointers, offset in the lane's bytes, bytes). */
template <class F>
void each_piece(Warp &w, const Inst &i, const Move &m, Use use, F f)
{
    const Spread &s = m.spread;
    unsigned element = std::max(s.bits() / 8, 1u), bytes = s.lane_bytes(), row_bytes = s.columns * s.bits() / 8;
    unsigned piece = m.across ? element : std::min(bytes, 16u);
    uint64_t base[WARP_SIZE];
    lane_addresses(w, i, i.op[0], base);
    const uint32_t *pitch = w.in<uint32_t>(i.op[1]);
    for (unsigned at = 0; at < bytes; at += piece) {
        uint64_t address[WARP_SIZE];
        uint8_t *p[WARP_SIZE];
        for (unsigned l = 0; l < WARP_SIZE; l++) {
            unsigned row = (l * bytes + at) / row_bytes, column_bytes = (l * bytes + at) % row_bytes;
            address[l] = base[l] + (m.across ? uint64_t(column_bytes / element) * pitch[l] * element + row * element
                                             : uint64_t(row) * pitch[l] * s.bits() / 8 + column_bytes);
        }
        Access a{i.space, use, piece};
        a.align = element;
        resolve(w, a, address, ALL_LANES, p);
        f(p, at, piece);
    }
}

const Move &move_of(const Inst &i)
{
    return *static_cast<const Move *>(i.extra);
}

Step load(Warp &w, const Inst &i)
{
    const Move &m = move_of(i);
    need_whole_warp(w);
    uint8_t matrix[WARP_SIZE * MAX_LANE_BYTES];
    each_piece(w, i, m, Use::read, [&](uint8_t **p, unsigned at, unsigned bytes) {
        for (unsigned l = 0; l < WARP_SIZE; l++)
            memcpy(matrix + l * m.spread.lane_bytes() + at, p[l], bytes);
    });
    scatter(w, m.spread, i.op + 2, matrix);
    return Step::next;
}

Step store(Warp &w, const Inst &i)
{
    const Move &m = move_of(i);
    need_whole_warp(w);
    uint8_t matrix[WARP_SIZE * MAX_LANE_BYTES];
    gather(w, m.spread, i.op + 2, matrix);
    each_piece(w, i, m, Use::write, [&](uint8_t **p, unsigned at, unsigned bytes) {
        for (unsigned l = 0; l < WARP_SIZE; l++)
            memcpy(p[l], matrix + l * m.spread.lane_bytes() + at, bytes);
    });
    note_progress(w);
    return Step::next;
}

/* ---- mma ---- */

/* Operands: D, A, B, C. */
struct Mma {
    Spread d, a, b, c;
    Shape shape;
    bool saturate, xor_bits;
    const Opnd *d_regs(const Inst &i) const { return i.op; }
    const Opnd *a_regs(const Inst &i) const { return i.op + d.n_regs; }
    const Opnd *b_regs(const Inst &i) const { return i.op + d.n_regs + a.n_regs; }
    const Opnd *c_regs(const Inst &i) const { return i.op + d.n_regs + a.n_regs + b.n_regs; }
};

const Mma &mma_of(const Inst &i)
{
    return *static_cast<const Mma *>(i.extra);
}

/* Numbers out of a matrix' bytes: tiles of eight rows, whatever their length, are contiguous. */
template <class T>
void widen_all(const uint8_t *matrix, const Spread &s, Unpack<T> f, T *out)
{
    const unsigned elements = s.rows * s.columns;
    const unsigned row = 4 * std::max(32 / s.bits(), 1u), tile = TILE_ROWS * row;
    for (unsigned e = 0; e < elements; e += tile)
        f(matrix + e * s.bits() / 8, out + e, row);
}

template <class T>
void factors(const Warp &w, const Inst &i, const Mma &m, Unpack<T> (*unpack)(Type), T *a, T *b)
{
    uint8_t bytes[WARP_SIZE * MAX_LANE_BYTES];
    T columns[MAX_FACTOR];
    gather(w, m.a, m.a_regs(i), bytes);
    widen_all(bytes, m.a, unpack(m.a.type), a);
    gather(w, m.b, m.b_regs(i), bytes);
    widen_all(bytes, m.b, unpack(m.b.type), columns);
    transpose(columns, b, m.shape.n, m.shape.k);
}

void finish_integer(Warp &w, const Inst &i, const Mma &m, const int32_t *sum)
{
    int32_t c[MAX_C];
    gather(w, m.c, m.c_regs(i), reinterpret_cast<uint8_t *>(c));
    for (unsigned e = 0; e < m.shape.m * m.shape.n; e++) {
        int64_t exact = int64_t(c[e]) + sum[e];
        c[e] = int32_t(m.saturate ? std::clamp<int64_t>(exact, INT32_MIN, INT32_MAX) : exact);
    }
    scatter(w, m.d, m.d_regs(i), reinterpret_cast<const uint8_t *>(c));
    count_tensor(w, 2ull * m.shape.m * m.shape.n * m.shape.k);
}

Step mma_integer(Warp &w, const Inst &i)
{
    const Mma &m = mma_of(i);
    need_whole_warp(w);
    float a[MAX_FACTOR] = {}, b[MAX_FACTOR] = {}, exact[MAX_C] = {};
    factors(w, i, m, unpack_integer, a, b);
    multiply(a, b, exact, m.shape.m, m.shape.n, m.shape.k);
    int32_t sum[MAX_C];
    std::copy(exact, exact + m.shape.m * m.shape.n, sum);
    finish_integer(w, i, m, sum);
    return Step::next;
}

Step mma_bits(Warp &w, const Inst &i)
{
    const Mma &m = mma_of(i);
    need_whole_warp(w);
    constexpr unsigned WORDS = 2; /* of 64 bits in a row */
    uint64_t a[8][WORDS], b[8][WORDS];
    gather(w, m.a, m.a_regs(i), reinterpret_cast<uint8_t *>(a));
    gather(w, m.b, m.b_regs(i), reinterpret_cast<uint8_t *>(b));
    int32_t sum[MAX_C] = {};
    for (unsigned e = 0; e < 64; e++)
        for (unsigned x = 0; x < WORDS; x++) {
            uint64_t p = a[e / 8][x], q = b[e % 8][x];
            sum[e] += __builtin_popcountll(m.xor_bits ? p ^ q : p & q);
        }
    finish_integer(w, i, m, sum);
    return Step::next;
}

void read_accumulators(const Warp &w, const Spread &s, const Opnd *regs, double *matrix)
{
    uint8_t bytes[WARP_SIZE * MAX_LANE_BYTES];
    gather(w, s, regs, bytes);
    for (unsigned e = 0; e < s.rows * s.columns; e++)
        if (s.type == Type::f16) {
            uint16_t h;
            memcpy(&h, bytes + 2 * e, sizeof h);
            matrix[e] = f16_to_f32(h);
        } else {
            float f;
            memcpy(&f, bytes + 4 * e, sizeof f);
            matrix[e] = f;
        }
}

void write_accumulators(Warp &w, const Spread &s, const Opnd *regs, const double *matrix)
{
    uint8_t bytes[WARP_SIZE * MAX_LANE_BYTES];
    for (unsigned e = 0; e < s.rows * s.columns; e++)
        if (s.type == Type::f16) {
            uint16_t h = f32_to_f16(f32_to_odd(matrix[e]));
            memcpy(bytes + 2 * e, &h, sizeof h);
        } else {
            float f = canonical(float(matrix[e]));
            memcpy(bytes + 4 * e, &f, sizeof f);
        }
    scatter(w, s, regs, bytes);
}

Step mma_float(Warp &w, const Inst &i)
{
    const Mma &m = mma_of(i);
    need_whole_warp(w);
    double a[MAX_FACTOR] = {}, b[MAX_FACTOR] = {}, sum[MAX_C];
    factors(w, i, m, unpack_float, a, b);
    read_accumulators(w, m.c, m.c_regs(i), sum);
    multiply(a, b, sum, m.shape.m, m.shape.n, m.shape.k);
    write_accumulators(w, m.d, m.d_regs(i), sum);
    count_tensor(w, 2ull * m.shape.m * m.shape.n * m.shape.k);
    return Step::next;
}

Step mma_f64(Warp &w, const Inst &i)
{
    const Mma &m = mma_of(i);
    need_whole_warp(w);
    double a[MAX_FACTOR] = {}, b[MAX_FACTOR] = {}, sum[MAX_C];
    factors(w, i, m, unpack_float, a, b);
    gather(w, m.c, m.c_regs(i), reinterpret_cast<uint8_t *>(sum));
    const unsigned n = m.shape.n, depth = m.shape.k;
    for (unsigned e = 0; e < m.shape.m * n; e++)
        for (unsigned k = 0; k < depth; k++)
            sum[e] = std::fma(a[e / n * depth + k], b[k * n + e % n], sum[e]);
    scatter(w, m.d, m.d_regs(i), reinterpret_cast<const uint8_t *>(sum));
    count_tensor(w, 2ull * m.shape.m * n * depth);
    return Step::next;
}

/* ---- building ---- */

void need_aligned(Decode &d)
{
    if (!d.take("sync") || !d.take("aligned"))
        d.fail("wmma needs .sync.aligned");
}

const char *take_shape(Decode &d)
{
    for (const Variant &v : variants)
        if (d.take(v.shape.name))
            return v.shape.name;
    d.fail("wmma of this shape does not exist");
}

/* Whether memory is row-major; an error if the text says nothing. */
bool take_row_major(Decode &d)
{
    int layout = d.take_one_of({"row", "col"});
    if (layout < 0)
        d.fail("wmma needs .row or .col");
    return layout == 0;
}

template <class F>
const Variant &find_variant(Decode &d, const char *shape, F fits)
{
    for (const Variant &v : variants)
        if (strcmp(v.shape.name, shape) == 0 && fits(v)) {
            d.need_sm(v.sm);
            return v;
        }
    d.fail("wmma of .%s does not exist with these types", shape);
}

enum class Matrix { a, b, c };

Move plan_move(Decode &d, Matrix which)
{
    bool row_major = take_row_major(d);
    const char *shape = take_shape(d);
    Type t = d.type();
    const Variant &v = find_variant(
        d, shape, [&](const Variant &x) { return one_of(which == Matrix::c ? x.accumulators : x.factors, t); });
    Move m;
    const Shape &s = v.shape;
    if (which == Matrix::a)
        m.spread = spread(s.m, s.k, t, true);
    else if (which == Matrix::b)
        m.spread = spread(s.n, s.k, t, true);
    else
        m.spread = spread(s.m, s.n, t, false);
    m.across = row_major == (which == Matrix::b); /* B is kept column by column */
    if (m.across && type_bits(t) < 8)
        d.fail("wmma of .%s: A is .row and B is .col", type_text(t));
    return m;
}

void build_move(Decode &d, Inst &i, Matrix which, bool is_store)
{
    need_aligned(d);
    Move *m = d.extra<Move>();
    *m = plan_move(d, which);
    Space space = d.take("global")                            ? Space::global
                  : d.take("shared") || d.take("shared::cta") ? Space::shared
                                                              : Space::generic;
    size_t address = is_store ? 0 : 1;
    bool in_frame = false;
    d.address(d.operand(address), space, &in_frame);
    if (in_frame)
        d.fail("the matrix has to lie in global or shared memory");
    if (d.n() > 2)
        d.in(2, Type::u32);
    else
        d.add(d.constant(m->across ? m->spread.rows : m->spread.columns, Type::u32));
    fragment(d, 1 - address, m->spread.n_regs, m->spread.reg_type(), is_store ? Opnd::read : Opnd::write);
    i.extra = m;
    i.exec = is_store ? store : load;
    i.type = m->spread.type;
    i.cls = Class::matrix_move;
    i.together = Together::warp;
}

Exec handler(Type factor)
{
    switch (factor) {
    case Type::b1:
        return mma_bits;
    case Type::f64:
        return mma_f64;
    default:
        return is_float(factor) ? mma_float : mma_integer;
    }
}

} // namespace

void build_wmma_load_a(Decode &d, Inst &i)
{
    build_move(d, i, Matrix::a, false);
}
void build_wmma_load_b(Decode &d, Inst &i)
{
    build_move(d, i, Matrix::b, false);
}
void build_wmma_load_c(Decode &d, Inst &i)
{
    build_move(d, i, Matrix::c, false);
}
void build_wmma_store_d(Decode &d, Inst &i)
{
    build_move(d, i, Matrix::c, true);
}

/* The layouts of A and B say how their fragments were loaded; these fragments are the same for both. */
void build_wmma_mma(Decode &d, Inst &i)
{
    int bit_operation = d.take_one_of({"xor", "and"});
    if (bit_operation >= 0 && !d.take("popc"))
        d.fail("wmma of .b1 needs .xor.popc or .and.popc");
    need_aligned(d);
    take_row_major(d);
    take_row_major(d);
    const char *shape = take_shape(d);
    Type types[4] = {d.type(), d.type(), Type::none, Type::none}; /* D, C of f16; else D, A, B, C */
    bool all = d.take_type(&types[2]);
    Type dt = types[0], a = all ? types[1] : Type::f16, b = all ? types[2] : Type::f16, c = all ? d.type() : types[1];
    const Variant &v = find_variant(d, shape, [&](const Variant &x) {
        return one_of(x.factors, a) && one_of(x.factors, b) && one_of(x.accumulators, c) && one_of(x.accumulators, dt);
    });
    if ((a == Type::b1) != (bit_operation >= 0))
        d.fail(".xor.popc and .and.popc are the operations of .b1");
    if (bit_operation == 1)
        d.need_sm(80);
    Mma *m = d.extra<Mma>();
    const Shape &s = v.shape;
    *m = {spread(s.m, s.n, dt, false),
          spread(s.m, s.k, a, true),
          spread(s.n, s.k, b, true),
          spread(s.m, s.n, c, false),
          s,
          false,
          bit_operation == 0};
    if (a == Type::f64)
        d.take("rn"); /* the default; there are others, which nvcc does not emit */
    if (!is_float(a) && a != Type::b1)
        m->saturate = d.take("satfinite");
    fragment(d, 0, m->d.n_regs, m->d.reg_type(), Opnd::write);
    fragment(d, 1, m->a.n_regs, m->a.reg_type(), Opnd::read);
    fragment(d, 2, m->b.n_regs, m->b.reg_type(), Opnd::read);
    fragment(d, 3, m->c.n_regs, m->c.reg_type(), Opnd::read);
    i.extra = m;
    i.exec = handler(a);
    i.type = dt;
    i.cls = Class::tensor;
    i.together = Together::warp;
}

} // namespace ptxemu
