/* Moves: mov in all its forms (registers, vectors packed and unpacked, addresses of symbols, special registers), selp.
 *
 * A copy of a register that was never written is not an error: compilers emit such copies for values that nobody uses.
 * The copy is marked as never written in turn, and whoever computes with it is reported. */
#include <iterator>

#include "isa/lanes.h"
#include "isa/special.h"
#include "machine/block.h"

namespace ptxemu
{
namespace
{

using B128 = unsigned __int128;

/* ---- registers ---- */

template <class T>
Step copy(Warp &w, const Inst &i)
{
    const Lanes undefined = w.undefined(i.op[1]);
    const T *a = w.in<T>(i.op[1]);
    T *d = w.out<T>(i.op[0]);
    for_lanes(w.active, [=](unsigned l) { d[l] = a[l]; });
    if (undefined)
        w.mark_undefined(i.op[0], undefined);
    return Step::next;
}

Step copy_pred(Warp &w, const Inst &i)
{
    const Lanes undefined = w.undefined(i.op[1]);
    w.set_pred(i.op[0], w.pred(i.op[1]));
    if (undefined)
        w.mark_undefined(i.op[0], undefined);
    return Step::next;
}

template <class T>
Step select(Warp &w, const Inst &i)
{
    const Lanes first = w.pred(i.op[3]);
    const Lanes undefined = (first & w.undefined(i.op[1])) | (~first & w.undefined(i.op[2]));
    const T *a = w.in<T>(i.op[1]), *b = w.in<T>(i.op[2]);
    T *d = w.out<T>(i.op[0]);
    for_lanes(w.active, [=](unsigned l) { d[l] = first >> l & 1 ? a[l] : b[l]; });
    if (undefined)
        w.mark_undefined(i.op[0], undefined);
    return Step::next;
}

/* ---- {a, b, ...} <-> a register as wide as all; Bits: width of a part, Part: the type in whose rows it lies ---- */

template <class Whole, class Part, unsigned Bits>
Step pack(Warp &w, const Inst &i)
{
    constexpr unsigned n = sizeof(Whole) * 8 / Bits;
    const Part *part[n];
    Lanes undefined = w.active; /* as a whole where no part was ever written: half a value may be all that is used */
    for (unsigned k = 0; k < n; k++) {
        part[k] = w.in<Part>(i.op[1 + k]);
        undefined &= w.undefined(i.op[1 + k]);
    }
    Whole *d = w.out<Whole>(i.op[0]);
    constexpr Whole mask = Whole(~Whole(0)) >> (sizeof(Whole) * 8 - Bits);
    for_lanes(w.active, [=](unsigned l) {
        Whole v = 0;
        for (unsigned k = 0; k < n; k++)
            v |= Whole((Whole(part[k][l]) & mask) << (k * Bits));
        d[l] = v;
    });
    if (undefined)
        w.mark_undefined(i.op[0], undefined);
    return Step::next;
}

template <class Whole, class Part, unsigned Bits>
Step unpack(Warp &w, const Inst &i)
{
    constexpr unsigned n = sizeof(Whole) * 8 / Bits;
    const Whole *a = w.in<Whole>(i.op[n]);
    const Lanes undefined = w.undefined(i.op[n]);
    constexpr Whole mask = Whole(~Whole(0)) >> (sizeof(Whole) * 8 - Bits);
    for (unsigned k = 0; k < n; k++) {
        Part *d = w.out<Part>(i.op[k]);
        for_lanes(w.active, [=](unsigned l) { d[l] = Part(a[l] >> (k * Bits) & mask); });
        if (undefined)
            w.mark_undefined(i.op[k], undefined);
    }
    return Step::next;
}

struct Vector {
    unsigned bits, parts;
    Type part;
    Exec pack, unpack;
};
const Vector vectors[] = {
    {16, 2, Type::b8, pack<uint16_t, uint16_t, 8>, unpack<uint16_t, uint16_t, 8>},
    {32, 4, Type::b8, pack<uint32_t, uint16_t, 8>, unpack<uint32_t, uint16_t, 8>},
    {32, 2, Type::b16, pack<uint32_t, uint16_t, 16>, unpack<uint32_t, uint16_t, 16>},
    {64, 4, Type::b16, pack<uint64_t, uint16_t, 16>, unpack<uint64_t, uint16_t, 16>},
    {64, 2, Type::b32, pack<uint64_t, uint32_t, 32>, unpack<uint64_t, uint32_t, 32>},
    {128, 2, Type::b64, pack<B128, uint64_t, 64>, unpack<B128, uint64_t, 64>},
};

void build_vector(Decode &d, Inst &i, Type t, bool packs)
{
    const ptx::Operand &list = d.operand(packs ? 1 : 0);
    for (const Vector &v : vectors) {
        if (v.bits != type_bits(t) || v.parts != list.items.size())
            continue;
        if (packs)
            d.out(0, t);
        for (const ptx::Operand &part : list.items) {
            if (packs)
                d.in(part, v.part, Opnd::copy);
            else
                d.out(part, v.part);
        }
        if (!packs)
            d.in(1, t, Opnd::copy);
        i.exec = packs ? v.pack : v.unpack;
        return;
    }
    d.fail("a .%s register does not hold %zu values", type_text(t), list.items.size());
}

/* ---- what is in no register: addresses that only the launch or the activation knows, special registers ---- */

template <class T>
Step fill(Warp &w, const Inst &i, uint64_t value)
{
    T *d = w.out<T>(i.op[0]);
    for_lanes(w.active, [=](unsigned l) { d[l] = T(value); });
    return Step::next;
}
template <class T>
Step frame_address(Warp &w, const Inst &i)
{
    return fill<T>(w, i, w.frame_base() + i.imm);
}
template <class T>
Step param_address(Warp &w, const Inst &i)
{
    return fill<T>(w, i, reinterpret_cast<uint64_t>(w.block->grid->params.data()) + i.imm);
}

void build_address(Decode &d, Inst &i, Type t, const ptx::Operand &symbol)
{
    const bool wide = type_bits(t) == 64;
    if (type_bits(t) < 32 || type_bits(t) > 64)
        d.fail("an address does not fit into a .%s register", type_text(t));
    d.out(0, t);
    if (d.is_param_symbol(symbol, &i.imm)) {
        if (!wide)
            d.fail("the address of a kernel parameter needs 64 bits");
        i.exec = param_address<uint64_t>;
    } else if (const Slot *slot = d.frame_slot(symbol.name)) {
        i.imm = slot->offset + uint64_t(symbol.offset);
        i.exec = wide ? frame_address<uint64_t> : frame_address<uint32_t>;
    } else {
        d.in(1, t, Opnd::copy);
        i.exec = wide ? copy<uint64_t> : copy<uint32_t>;
    }
}

template <class T>
Step special(Warp &w, const Inst &i)
{
    uint64_t value[WARP_SIZE];
    read_special(w, Special(i.imm), value);
    T *d = w.out<T>(i.op[0]);
    for_lanes(w.active, [&](unsigned l) { d[l] = T(value[l]); });
    return Step::next;
}
Step special_pred(Warp &w, const Inst &i)
{
    uint64_t value[WARP_SIZE];
    read_special(w, Special(i.imm), value);
    w.set_pred(i.op[0], lanes_where(w.active, [&](unsigned l) { return value[l] != 0; }));
    return Step::next;
}

/* As wide as the register, or mov.u16 %rs1, %tid.x, which keeps the lower half. */
void build_special(Decode &d, Inst &i, Type t, const std::string &name)
{
    Special s;
    if (!special_from_name(name, &s))
        d.fail("there is no special register %%%s", name.c_str());
    const Type own = special_type(s);
    if (type_bits(t) != type_bits(own) && !(type_bits(t) == 16 && type_bits(own) == 32))
        d.fail("%%%s is a .%s register", name.c_str(), type_text(own));
    i.imm = uint64_t(s);
    if (t == Type::pred)
        d.pred_out(d.operand(0));
    else
        d.out(0, t);
    i.exec = t == Type::pred      ? special_pred
             : type_bits(t) == 16 ? special<uint16_t>
             : type_bits(t) == 32 ? special<uint32_t>
                                  : special<uint64_t>;
}

/* ---- builders ---- */

Exec pick_copy(unsigned bits)
{
    return bits == 16 ? copy<uint16_t> : bits == 32 ? copy<uint32_t> : bits == 64 ? copy<uint64_t> : copy<B128>;
}

void check_type(Decode &d, Type t) /* of mov and selp */
{
    const unsigned bits = type_bits(t);
    const bool packed = t == Type::u16x2 || t == Type::s16x2 || (is_float(t) && t != Type::f32 && t != Type::f64);
    if (bits < 16 || packed)
        d.fail("there is no %s of type .%s", d.src().opcode.c_str(), type_text(t));
}

void build_mov(Decode &d, Inst &i)
{
    using Kind = ptx::Operand::Kind;
    const Type t = d.type();
    const ptx::Operand &to = d.operand(0), &from = d.operand(1);
    i.cls = Class::move;
    if (from.kind == Kind::special)
        return build_special(d, i, t, from.name);
    if (t == Type::pred) {
        d.pred_out(to);
        d.pred_in(from, Opnd::copy);
        i.exec = copy_pred;
        return;
    }
    check_type(d, t);
    if (to.kind == Kind::vector || from.kind == Kind::vector)
        return build_vector(d, i, t, from.kind == Kind::vector);
    if (from.kind == Kind::label)
        d.fail("labels have no address");
    if (from.kind == Kind::symbol)
        return build_address(d, i, t, from);
    d.out(0, t);
    d.in(1, t, Opnd::copy);
    i.exec = pick_copy(type_bits(t));
}

void build_selp(Decode &d, Inst &i)
{
    const Type t = d.type();
    check_type(d, t);
    if (type_bits(t) > 64)
        d.fail("there is no selp of type .%s", type_text(t));
    d.out(0, t);
    d.in(1, t, Opnd::copy);
    d.in(2, t, Opnd::copy);
    d.pred_in(d.operand(3));
    i.exec = type_bits(t) == 16 ? select<uint16_t> : type_bits(t) == 32 ? select<uint32_t> : select<uint64_t>;
    i.cls = Class::move;
}

const Opcode opcodes[] = {{"mov", build_mov}, {"selp", build_selp}};

} // namespace

const Family move_family = {opcodes, std::size(opcodes)};

} // namespace ptxemu
