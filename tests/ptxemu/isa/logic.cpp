/* Bits: and or xor not cnot lop3, shifts, prmt, counting and finding bits, bit fields. */
#include <iterator>

#include "isa/bits.h"
#include "isa/lanes.h"

namespace ptxemu
{
namespace
{

/* ---- bitwise ---- */

template <class T>
T and_(T a, T b)
{
    return a & b;
}
template <class T>
T or_(T a, T b)
{
    return a | b;
}
template <class T>
T xor_(T a, T b)
{
    return a ^ b;
}
template <class T>
T not_(T a)
{
    return T(~a);
}
template <class T>
T cnot(T a)
{
    return a == 0;
}

/* Debug builds write a bit field of a structure that nobody has written yet by `and` with a mask that keeps the other bits, whatever they
 * are, and `or`: with such a mask (all but 2^k - 1, which cuts out low bits to use them) the value may be one that was never written, and the
 * result counts as known. */
template <class T>
void build_and(Decode &d, Inst &i)
{
    const ptx::Operand &mask = d.operand(2);
    const bool keeps = mask.kind == ptx::Operand::integer && (T(mask.bits) & (T(mask.bits) + 1)) != 0;
    d.out(0, ptx_type<T>());
    d.in(1, ptx_type<T>(), keeps ? Opnd::copy : Opnd::read);
    d.in(2, ptx_type<T>());
    i.exec = Elementwise<and_<T>>::exec;
    i.cls = Class::integer;
}

enum class PredOp : uint8_t { and_, or_, xor_ };

template <PredOp Op>
Step pred_binary(Warp &w, const Inst &i)
{
    const Lanes a = w.pred(i.op[1]), b = w.pred(i.op[2]);
    w.set_pred(i.op[0], Op == PredOp::and_ ? a & b : Op == PredOp::or_ ? a | b : a ^ b);
    return Step::next;
}
template <PredOp Op>
void build_pred_binary(Decode &d, Inst &i)
{
    d.pred_out(d.operand(0));
    d.pred_in(d.operand(1));
    d.pred_in(d.operand(2));
    i.exec = pred_binary<Op>;
    i.cls = Class::integer;
}

Step pred_not(Warp &w, const Inst &i)
{
    w.set_pred(i.op[0], ~w.pred(i.op[1]));
    return Step::next;
}
void build_pred_not(Decode &d, Inst &i)
{
    d.pred_out(d.operand(0));
    d.pred_in(d.operand(1));
    i.exec = pred_not;
    i.cls = Class::integer;
}

/* ---- lop3: bit k of the table is the function's value where a, b and c have the bits k >> 2, k >> 1 and k ----
 *
 * Written as a choice by a, then by b, between what c makes of the two table entries that are left: with
 * x = c ? t1 : t0 on all 32 bits at once, x = t0 ^ ((t0 ^ t1) & c).  The entries are 0 or all ones in every lane. */

struct Lop3 {
    uint32_t entry[8];
    uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const
    {
        auto choose = [](uint32_t by, uint32_t zero, uint32_t one) { return zero ^ ((zero ^ one) & by); };
        uint32_t pair[4];
        for (unsigned k = 0; k < 4; k++)
            pair[k] = choose(c, entry[2 * k], entry[2 * k + 1]);
        return choose(a, choose(b, pair[0], pair[1]), choose(b, pair[2], pair[3]));
    }
};
Lop3 lop3_of(uint64_t table)
{
    Lop3 f;
    for (unsigned k = 0; k < 8; k++)
        f.entry[k] = table >> k & 1 ? 0xffffffffu : 0;
    return f;
}

void lop3_lanes(Warp &w, const Inst &i, uint32_t *d, const Opnd *source)
{
    const uint32_t *a = w.in<uint32_t>(source[0]), *b = w.in<uint32_t>(source[1]), *c = w.in<uint32_t>(source[2]);
    const Lop3 f = lop3_of(i.imm);
    for_lanes(w.active, [=](unsigned l) { d[l] = f(a[l], b[l], c[l]); });
}
Step lop3(Warp &w, const Inst &i)
{
    lop3_lanes(w, i, w.out<uint32_t>(i.op[0]), i.op + 1);
    return Step::next;
}
template <PredOp Op> /* lop3.or.b32 d|p, a, b, c, table, q: p tells whether d has any bit, combined with q */
Step lop3_pred(Warp &w, const Inst &i)
{
    uint32_t *d = w.out<uint32_t>(i.op[0]);
    const Lanes q = w.pred(i.op[5]);
    lop3_lanes(w, i, d, i.op + 2);
    const Lanes any = lanes_where(w.active, [=](unsigned l) { return d[l] != 0; });
    w.set_pred(i.op[1], Op == PredOp::and_ ? any & q : any | q);
    return Step::next;
}

void build_lop3(Decode &d, Inst &i)
{
    const int combine = d.take_one_of({"and", "or"});
    if (!d.take("b32"))
        d.fail("lop3 works on .b32");
    const ptx::Operand &to = d.operand(0), &table = d.operand(4);
    if (table.kind != ptx::Operand::integer || table.bits > 255)
        d.fail("the table of lop3 must be a number from 0 to 255");
    if ((to.kind == ptx::Operand::pair) != (combine >= 0))
        d.fail("lop3 has a destination predicate exactly where it has .and or .or");
    if (combine >= 0) {
        d.out(to.items[0], Type::b32);
        d.pred_out(to.items[1]);
    } else {
        d.out(to, Type::b32);
    }
    for (size_t k = 1; k <= 3; k++)
        d.in(k, Type::b32);
    if (combine >= 0)
        d.pred_in(d.operand(5));
    i.imm = table.bits;
    i.exec = combine < 0 ? lop3 : combine == 0 ? lop3_pred<PredOp::and_> : lop3_pred<PredOp::or_>;
    i.cls = Class::integer;
}

/* ---- shifts ---- */

template <class T>
T shl(T a, uint32_t count)
{
    return shift_left(a, count);
}
template <class T>
T shr(T a, uint32_t count)
{
    return shift_right(a, count);
}

/* shf: the 64 bits b:a shifted; .l keeps the upper half, .r the lower.  Counts are modulo 32 (.wrap) or at most 32
 * (.clamp). */
uint32_t wrapped(uint32_t count)
{
    return count & 31;
}
uint32_t clamped(uint32_t count)
{
    return count < 32 ? count : 32;
}
template <uint32_t (*Count)(uint32_t)>
uint32_t shf_l(uint32_t a, uint32_t b, uint32_t count)
{
    return uint32_t((uint64_t(b) << 32 | a) << Count(count) >> 32);
}
template <uint32_t (*Count)(uint32_t)>
uint32_t shf_r(uint32_t a, uint32_t b, uint32_t count)
{
    return uint32_t((uint64_t(b) << 32 | a) >> Count(count));
}

/* ---- prmt: bytes 0-3 are a's, 4-7 b's ---- */

uint32_t byte_at(uint32_t a, uint32_t b, uint32_t k)
{
    return uint32_t((uint64_t(b) << 32 | a) >> (8 * (k & 7))) & 0xff;
}
uint32_t prmt(uint32_t a, uint32_t b,
              uint32_t selector) /* nibble k chooses byte k; its top bit asks for the sign only */
{
    uint32_t d = 0;
    for (unsigned k = 0; k < 4; k++) {
        const uint32_t nibble = selector >> (4 * k), byte = byte_at(a, b, nibble);
        const uint32_t sign = byte & 0x80 ? 0xff : 0;
        d |= (nibble & 8 ? sign : byte) << (8 * k);
    }
    return d;
}
/* The other modes look at two bits of the selector, which pick one of four constant selectors. */
template <uint16_t S0, uint16_t S1, uint16_t S2, uint16_t S3>
uint32_t prmt_mode(uint32_t a, uint32_t b, uint32_t selector)
{
    const uint32_t low = selector & 1 ? S1 : S0, high = selector & 1 ? S3 : S2;
    return prmt(a, b, selector & 2 ? high : low);
}

/* ---- counting and finding ---- */

uint32_t popc32(uint32_t a)
{
    return uint32_t(__builtin_popcount(a));
}
uint32_t popc64(uint64_t a)
{
    return uint32_t(__builtin_popcountll(a));
}
uint32_t clz32(uint32_t a)
{
    return a ? uint32_t(__builtin_clz(a)) : 32;
}
uint32_t clz64(uint64_t a)
{
    return a ? uint32_t(__builtin_clzll(a)) : 64;
}

template <class T> /* the highest bit that differs from the sign; all ones if there is none */
uint32_t bfind(T a)
{
    const uint64_t v = uint64_t(a < 0 ? T(~a) : a);
    return v ? 63 - clz64(v) : 0xffffffff;
}
template <class T> /* how far it is from the top */
uint32_t bfind_shiftamt(T a)
{
    const uint32_t at = bfind(a);
    return at == 0xffffffff ? at : width_of<T> - 1 - at;
}

/* The |offset|-th set bit counted from bit `base` upwards (offset > 0) or downwards (< 0); offset 0 asks for bit `base`
 * itself. */
uint32_t fns(uint32_t mask, uint32_t base, int32_t offset)
{
    if (base > 31)
        return 0xffffffff; /* PTX leaves it open */
    if (offset == 0)
        return mask >> base & 1 ? base : 0xffffffff;
    const int step = offset > 0 ? 1 : -1;
    uint32_t left = offset > 0 ? uint32_t(offset) : 0u - uint32_t(offset);
    for (int at = int(base); at >= 0 && at < 32; at += step)
        if (mask >> at & 1 && --left == 0)
            return uint32_t(at);
    return 0xffffffff;
}

template <class T>
T brev(T a)
{
    T d = 0;
    for (unsigned k = 0; k < width_of<T>; k++)
        d = T(d << 1 | (a >> k & 1));
    return d;
}

/* ---- bit fields: position and length are bytes ---- */

template <class T> /* `count` ones at the bottom */
T ones(uint32_t count)
{
    return T(~shift_left(T(~T(0)), count));
}

/* Beyond its top, `a` continues with zeros, or with its sign if T is signed; so does the field above its length, with
 * its own top bit. */
template <class T>
T bfe(T a, uint32_t position, uint32_t length)
{
    using U = std::make_unsigned_t<T>;
    position &= 0xff;
    length &= 0xff;
    if (length == 0)
        return 0;
    const T field = shift_right(a, position);
    if (length >= width_of<T>)
        return field;
    const U kept = U(U(field) & ones<U>(length));
    const bool negative = std::is_signed_v<T> && (kept >> (length - 1) & 1);
    return T(negative ? U(kept | ~ones<U>(length)) : kept);
}
template <class T>
T bfi(T a, T b, uint32_t position, uint32_t length) /* the lowest bits of a replace b's at `position` */
{
    position &= 0xff;
    const T field = shift_left(ones<T>(length & 0xff), position);
    return T((b & ~field) | (shift_left(a, position) & field));
}

uint32_t bmsk_wrap(uint32_t position, uint32_t length)
{
    return shift_left(ones<uint32_t>(length & 31), position & 31);
}
uint32_t bmsk_clamp(uint32_t position, uint32_t length)
{
    return shift_left(ones<uint32_t>(length), position);
}

template <class T> /* the lowest n bits, extended; none: 0 */
T extended(T a, uint32_t n)
{
    if (n == 0)
        return 0;
    return n >= 32 ? a : T(T(uint32_t(a) << (32 - n)) >> (32 - n));
}
template <class T>
T szext_wrap(T a, uint32_t n)
{
    return extended(a, n & 31);
}
template <class T>
T szext_clamp(T a, uint32_t n)
{
    return extended(a, n);
}

/* ---- vabsdiff2 and 4, the only video instructions that nvcc still prints (for __vsadu4 and the like): the distances
 * of two pairs of halves or four pairs of bytes, side by side or added to c ---- */

template <class Part, bool Add>
uint32_t vabsdiff(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t side_by_side = 0, sum = c;
    for (unsigned at = 0; at < 32; at += width_of<Part>) {
        const uint32_t x = Part(a >> at), y = Part(b >> at), distance = x < y ? y - x : x - y;
        side_by_side |= distance << at;
        sum += distance;
    }
    return Add ? sum : side_by_side;
}

const Opcode opcodes[] = {
    {"and.b16", build_and<uint16_t>},
    {"and.b32", build_and<uint32_t>},
    {"and.b64", build_and<uint64_t>},
    {"and.pred", build_pred_binary<PredOp::and_>},
    {"or.b16", elementwise<or_<uint16_t>>},
    {"or.b32", elementwise<or_<uint32_t>>},
    {"or.b64", elementwise<or_<uint64_t>>},
    {"or.pred", build_pred_binary<PredOp::or_>},
    {"xor.b16", elementwise<xor_<uint16_t>>},
    {"xor.b32", elementwise<xor_<uint32_t>>},
    {"xor.b64", elementwise<xor_<uint64_t>>},
    {"xor.pred", build_pred_binary<PredOp::xor_>},
    {"not.b16", elementwise<not_<uint16_t>>},
    {"not.b32", elementwise<not_<uint32_t>>},
    {"not.b64", elementwise<not_<uint64_t>>},
    {"not.pred", build_pred_not},
    {"cnot.b16", elementwise<cnot<uint16_t>>},
    {"cnot.b32", elementwise<cnot<uint32_t>>},
    {"cnot.b64", elementwise<cnot<uint64_t>>},
    {"lop3", build_lop3},

    {"shl.b16", elementwise<shl<uint16_t>>},
    {"shl.b32", elementwise<shl<uint32_t>>},
    {"shl.b64", elementwise<shl<uint64_t>>},
    {"shr.b16", elementwise<shr<uint16_t>>},
    {"shr.b32", elementwise<shr<uint32_t>>},
    {"shr.b64", elementwise<shr<uint64_t>>},
    {"shr.u16", elementwise<shr<uint16_t>>},
    {"shr.u32", elementwise<shr<uint32_t>>},
    {"shr.u64", elementwise<shr<uint64_t>>},
    {"shr.s16", elementwise<shr<int16_t>>},
    {"shr.s32", elementwise<shr<int32_t>>},
    {"shr.s64", elementwise<shr<int64_t>>},
    {"shf.l.wrap.b32", elementwise<shf_l<wrapped>>},
    {"shf.l.clamp.b32", elementwise<shf_l<clamped>>},
    {"shf.r.wrap.b32", elementwise<shf_r<wrapped>>},
    {"shf.r.clamp.b32", elementwise<shf_r<clamped>>},

    {"prmt.b32", elementwise<prmt>},
    {"prmt.b32.f4e", elementwise<prmt_mode<0x3210, 0x4321, 0x5432, 0x6543>>},  /* four bytes, forwards */
    {"prmt.b32.b4e", elementwise<prmt_mode<0x5670, 0x6701, 0x7012, 0x0123>>},  /* backwards */
    {"prmt.b32.rc8", elementwise<prmt_mode<0x0000, 0x1111, 0x2222, 0x3333>>},  /* one byte four times */
    {"prmt.b32.ecl", elementwise<prmt_mode<0x3210, 0x3211, 0x3222, 0x3333>>},  /* clamped to the left edge */
    {"prmt.b32.ecr", elementwise<prmt_mode<0x0000, 0x1110, 0x2210, 0x3210>>},  /* to the right edge */
    {"prmt.b32.rc16", elementwise<prmt_mode<0x1010, 0x3232, 0x1010, 0x3232>>}, /* one half twice */

    {"popc.b32", elementwise<popc32>},
    {"popc.b64", elementwise<popc64>},
    {"clz.b32", elementwise<clz32>},
    {"clz.b64", elementwise<clz64>},
    {"bfind.u32", elementwise<bfind<uint32_t>>},
    {"bfind.u64", elementwise<bfind<uint64_t>>},
    {"bfind.s32", elementwise<bfind<int32_t>>},
    {"bfind.s64", elementwise<bfind<int64_t>>},
    {"bfind.shiftamt.u32", elementwise<bfind_shiftamt<uint32_t>>},
    {"bfind.shiftamt.u64", elementwise<bfind_shiftamt<uint64_t>>},
    {"bfind.shiftamt.s32", elementwise<bfind_shiftamt<int32_t>>},
    {"bfind.shiftamt.s64", elementwise<bfind_shiftamt<int64_t>>},
    {"fns.b32", elementwise<fns>},
    {"brev.b32", elementwise<brev<uint32_t>>},
    {"brev.b64", elementwise<brev<uint64_t>>},

    {"bfe.u32", elementwise<bfe<uint32_t>>},
    {"bfe.u64", elementwise<bfe<uint64_t>>},
    {"bfe.s32", elementwise<bfe<int32_t>>},
    {"bfe.s64", elementwise<bfe<int64_t>>},
    {"bfi.b32", elementwise<bfi<uint32_t>>},
    {"bfi.b64", elementwise<bfi<uint64_t>>},
    {"bmsk.wrap.b32", elementwise<bmsk_wrap>},
    {"bmsk.clamp.b32", elementwise<bmsk_clamp>},
    {"szext.wrap.u32", elementwise<szext_wrap<uint32_t>>},
    {"szext.wrap.s32", elementwise<szext_wrap<int32_t>>},
    {"szext.clamp.u32", elementwise<szext_clamp<uint32_t>>},
    {"szext.clamp.s32", elementwise<szext_clamp<int32_t>>},

    {"vabsdiff2.u32.u32.u32", elementwise<vabsdiff<uint16_t, false>>},
    {"vabsdiff2.u32.u32.u32.add", elementwise<vabsdiff<uint16_t, true>>},
    {"vabsdiff4.u32.u32.u32", elementwise<vabsdiff<uint8_t, false>>},
    {"vabsdiff4.u32.u32.u32.add", elementwise<vabsdiff<uint8_t, true>>},
};

} // namespace

const Family logic_family = {opcodes, std::size(opcodes)};

} // namespace ptxemu
