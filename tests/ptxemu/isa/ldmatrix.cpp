/* ldmatrix, stmatrix, movmatrix: 8 x 8 matrices of 16-bit elements between shared memory and fragments.
 *
 * A matrix is eight rows of 16 bytes; lanes 8j ... 8j+7 give the addresses of the rows of matrix j.  Its fragment is
 * one register, a tile as in isa/fragments.h: lane 4g+t holds elements 2t, 2t+1 of row g.  .trans exchanges rows and
 * columns on the way. */
#include "isa/fragments.h"
#include "memory/access.h"
#include "profile/counters.h"

namespace ptxemu
{
namespace
{

constexpr unsigned ROW_BYTES = 16, SIDE = 8;
constexpr uint32_t TRANSPOSED = 1;

void copy_transposed(const uint16_t *in, uint16_t *out)
{
    for (unsigned r = 0; r < SIDE; r++)
        for (unsigned c = 0; c < SIDE; c++)
            out[c * SIDE + r] = in[r * SIDE + c];
}

/* Host pointers to the rows of i.vec matrices. */
void resolve_rows(Warp &w, const Inst &i, const Opnd &base, Use use, Lanes undefined, uint8_t *row[WARP_SIZE])
{
    uint64_t address[WARP_SIZE];
    lane_addresses(w, i, base, address);
    unsigned rows = i.vec * SIDE;
    Lanes lanes = rows == WARP_SIZE ? ALL_LANES : (1u << rows) - 1;
    if (i.space == Space::generic)
        for (unsigned r = 0; r < rows; r++)
            if (uint64_t generic = address[r]; classify(generic, &address[r]) != Space::shared)
                fault_at(FaultKind::wrong_space, int(r), Space::generic, generic,
                         "the row of lane %u does not lie in shared memory", r);
    Access a{Space::shared, use, ROW_BYTES};
    a.undefined = undefined;
    a.count = false;
    resolve(w, a, address, lanes, row);
    uint32_t offset[WARP_SIZE];
    for (unsigned r = 0; r < rows; r++)
        offset[r] = uint32_t(row[r] - w.block->shared);
    count_matrix_rows(w, offset, rows);
}

/* op: base, then i.vec registers */
Step ldmatrix(Warp &w, const Inst &i)
{
    need_whole_warp(w);
    uint8_t *row[WARP_SIZE];
    resolve_rows(w, i, i.op[0], Use::read, 0, row);
    uint16_t matrix[4][SIDE * SIDE];
    for (unsigned r = 0; r < i.vec * SIDE; r++)
        memcpy(matrix[r / SIDE] + r % SIDE * SIDE, row[r], ROW_BYTES);
    for (unsigned j = 0; j < i.vec; j++)
        if (i.flags & TRANSPOSED)
            copy_transposed(matrix[j], w.out<uint16_t>(i.op[1 + j]));
        else
            memcpy(w.out<uint16_t>(i.op[1 + j]), matrix[j], sizeof matrix[j]);
    return Step::next;
}

/* Rows of matrix j (bits of eight lanes) of which no lane's element was ever written. */
Lanes undefined_rows(Lanes never_written, bool transposed)
{
    Lanes rows = 0;
    for (unsigned r = 0; r < SIDE; r++) {
        /* row r lies in lanes 4r ... 4r+3; transposed, in the lanes that hold column r: r/2, 4 + r/2, ... */
        Lanes holders = transposed ? 0x11111111u << r / 2 : 0xfu << 4 * r;
        rows |= Lanes((holders & never_written) == holders) << r;
    }
    return rows;
}

Step stmatrix(Warp &w, const Inst &i)
{
    need_whole_warp(w);
    bool transposed = i.flags & TRANSPOSED;
    Lanes undefined = 0;
    for (unsigned j = 0; j < i.vec; j++)
        undefined |= undefined_rows(w.undefined(i.op[1 + j]), transposed) << SIDE * j;
    uint8_t *row[WARP_SIZE];
    resolve_rows(w, i, i.op[0], Use::write, undefined, row);
    for (unsigned j = 0; j < i.vec; j++) {
        uint16_t matrix[SIDE * SIDE];
        const uint16_t *r = w.in<uint16_t>(i.op[1 + j]);
        if (transposed)
            copy_transposed(r, matrix);
        else
            memcpy(matrix, r, sizeof matrix);
        for (unsigned k = 0; k < SIDE; k++)
            memcpy(row[SIDE * j + k], matrix + k * SIDE, ROW_BYTES);
    }
    note_progress(w);
    return Step::next;
}

/* op: d, a */
Step movmatrix(Warp &w, const Inst &i)
{
    need_whole_warp(w);
    uint16_t a[SIDE * SIDE];
    memcpy(a, w.in<uint16_t>(i.op[1]), sizeof a);
    copy_transposed(a, w.out<uint16_t>(i.op[0]));
    return Step::next;
}

void common(Inst &i, Exec exec)
{
    i.exec = exec;
    i.type = Type::b16;
    i.cls = Class::matrix_move;
    i.together = Together::warp;
}

/* .m8n8.xN{.trans}{.shared}.b16, the address in `at`, the registers in the other operand */
void build_move(Decode &d, Inst &i, size_t at, Exec exec, Opnd::Use use)
{
    if (!d.take("sync") || !d.take("aligned"))
        d.fail("this instruction needs .sync.aligned");
    if (!d.take("m8n8"))
        d.fail("only the shape .m8n8 of .b16 is emulated, others need sm_100");
    int count = d.take_one_of({"x1", "x2", "x4"});
    if (count < 0)
        d.fail("this instruction moves .x1, .x2 or .x4 matrices");
    i.vec = uint8_t(1 << count);
    i.flags = d.take("trans") ? TRANSPOSED : 0;
    Space space = d.take("shared") || d.take("shared::cta") ? Space::shared : Space::generic;
    if (d.type() != Type::b16)
        d.fail("only .b16 is emulated, .b8 needs sm_100");
    bool in_frame = false;
    d.address(d.operand(at), space, &in_frame);
    if (in_frame)
        d.fail("the rows have to lie in shared memory");
    fragment(d, 1 - at, i.vec, Type::b32, use);
    common(i, exec);
}

} // namespace

void build_ldmatrix(Decode &d, Inst &i)
{
    d.need_sm(75);
    build_move(d, i, 1, ldmatrix, Opnd::write);
}

void build_stmatrix(Decode &d, Inst &i)
{
    d.need_sm(90);
    build_move(d, i, 0, stmatrix, Opnd::copy);
}

void build_movmatrix(Decode &d, Inst &i)
{
    d.need_sm(75);
    if (!d.take("sync") || !d.take("aligned") || !d.take("m8n8") || !d.take("trans") || d.type() != Type::b16)
        d.fail("movmatrix is .sync.aligned.m8n8.trans.b16");
    d.out(0, Type::b32);
    d.in(1, Type::b32);
    common(i, movmatrix);
}

} // namespace ptxemu
