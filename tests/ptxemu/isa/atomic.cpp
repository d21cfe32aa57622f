/* atom and red: one read-modify-write a lane, in the order of the lanes.
 *
 * An operation is a function from the old bits and the operands to the new bits.  It is applied with a compare-and-swap of the
 * host, as other blocks of the grid run on other host threads.  Lanes that hit the same place see each other's results in lane
 * order; hardware promises no order. */
#include <type_traits>

#include "isa/memory_order.h"
#include "isa/rmw.h"
#include "memory/access.h"

namespace ptxemu
{
namespace
{
using namespace rmw;

struct Wide { /* b128 */
    uint64_t lo, hi;
    bool operator==(const Wide &o) const { return lo == o.lo && hi == o.hi; }
};

/* ---- execution ---- */

constexpr uint32_t HAS_RESULT = 16;    /* atom: op[0]... are the destinations */
constexpr uint32_t HAS_NEW_VALUE = 32; /* cas: one operand more */
constexpr unsigned MAX_VECTOR = 8;

/* Returns the old bits; *changed is set if they are others now. */
template <class Op, class T>
T update(uint8_t *p, T b, T c, Place place, bool *changed)
{
    T old, now;
    if constexpr (std::is_same_v<T, Wide>) {
        std::lock_guard<std::mutex> lock(wide_access());
        memcpy(&old, p, sizeof old);
        now = Op::f(old, b, c, place);
        memcpy(p, &now, sizeof now);
    } else {
        now = swap_in<Op>(p, b, c, place, &old);
    }
    *changed |= !(old == now);
    return old;
}

bool in_shared(const Inst &i, uint64_t address)
{
    uint64_t within;
    return i.space == Space::shared || i.space == Space::shared_cluster ||
           (i.space == Space::generic && classify(address, &within) == Space::shared);
}

/* Operands: the results (atom), the address, b for each element, c (cas); a cache policy may follow, which nobody looks at. */
template <class Op>
Step atomic(Warp &w, const Inst &i)
{
    using T = typename Op::Bits;
    const bool result = i.flags & HAS_RESULT;
    const Opnd *base = i.op + (result ? i.vec : 0), *from = base + 1;
    uint64_t address[WARP_SIZE];
    uint8_t *p[WARP_SIZE];
    addresses_of(w, i, *base, address);
    resolve(w, Access{i.space, Use::atomic, uint32_t(sizeof(T) * i.vec)}, address, w.active, p);
    if (releases(order_of(i)))
        publish(w, p);
    bool changed = false;
    each_lane(w.active, [&](unsigned l) {
        const Place place{in_shared(i, address[l])};
        const T c = i.flags & HAS_NEW_VALUE ? w.in<T>(from[i.vec])[l] : T();
        T b[MAX_VECTOR]; /* all of it, before a result is written over it */
        for (unsigned k = 0; k < i.vec; k++)
            b[k] = w.in<T>(from[k])[l];
        for (unsigned k = 0; k < i.vec; k++) {
            const T old = update<Op>(p[l] + k * sizeof(T), b[k], c, place, &changed);
            if (result)
                w.out<T>(i.op[k])[l] = old;
        }
    });
    if (acquires(order_of(i)))
        take_over(w, p);
    if (changed)
        note_progress(w);
    /* A lock that was not free: its owner should have a turn. */
    return changed ? Step::next : Step::yield;
}

/* ---- decoding ---- */

template <template <class> class Op>
Exec bits_32_64(Type t)
{
    return t == Type::b32 ? atomic<Op<uint32_t>> : t == Type::b64 ? atomic<Op<uint64_t>> : nullptr;
}

template <template <class> class Op, bool Largest>
Exec min_max(Type t)
{
    switch (t) {
    case Type::u32:
        return atomic<Op<uint32_t>>;
    case Type::s32:
        return atomic<Op<int32_t>>;
    case Type::u64:
        return atomic<Op<uint64_t>>;
    case Type::s64:
        return atomic<Op<int64_t>>;
    case Type::f16:
        return atomic<Select16<Half, Largest>>;
    case Type::bf16:
        return atomic<Select16<Bfloat, Largest>>;
    case Type::f16x2:
        return atomic<Pair<Select16<Half, Largest>>>;
    case Type::bf16x2:
        return atomic<Pair<Select16<Bfloat, Largest>>>;
    default:
        return nullptr;
    }
}

Exec add(Type t)
{
    switch (t) {
    case Type::u32:
    case Type::s32:
        return atomic<Add<uint32_t>>;
    case Type::u64:
        return atomic<Add<uint64_t>>;
    case Type::f32:
        return atomic<AddF32>;
    case Type::f64:
        return atomic<AddF64>;
    case Type::f16:
        return atomic<Add16<Half>>;
    case Type::bf16:
        return atomic<Add16<Bfloat>>;
    case Type::f16x2:
        return atomic<Pair<Add16<Half>>>;
    case Type::bf16x2:
        return atomic<Pair<Add16<Bfloat>>>;
    default:
        return nullptr;
    }
}

Exec exch(Type t)
{
    return t == Type::b128 ? atomic<Exch<Wide>> : bits_32_64<Exch>(t);
}
Exec cas(Type t)
{
    return t == Type::b128 ? atomic<Cas<Wide>> : t == Type::b16 ? atomic<Cas<uint16_t>> : bits_32_64<Cas>(t);
}
Exec inc(Type t)
{
    return t == Type::u32 ? atomic<Inc> : nullptr;
}
Exec dec(Type t)
{
    return t == Type::u32 ? atomic<Dec> : nullptr;
}

struct Operation {
    const char *name;
    Exec (*handler)(Type);
    bool red; /* red has it as well */
};
const Operation operations[] = {
    {"add", add, true},
    {"min", min_max<Min, false>, true},
    {"max", min_max<Max, true>, true},
    {"and", bits_32_64<And>, true},
    {"or", bits_32_64<Or>, true},
    {"xor", bits_32_64<Xor>, true},
    {"exch", exch, false},
    {"cas", cas, false},
    {"inc", inc, true},
    {"dec", dec, true},
};

const Operation &take_operation(Decode &d, bool red)
{
    for (const Operation &o : operations)
        if ((o.red || !red) && d.take(o.name))
            return o;
    d.fail("the operation is missing");
}

/* Both take .relaxed and .release; only atom, which has a result, can acquire. */
Order take_order(Decode &d, bool red)
{
    Order o = Order::relaxed;
    if (d.take("release"))
        o = Order::release;
    else if (!red && d.take("acquire"))
        o = Order::acquire;
    else if (!red && d.take("acq_rel"))
        o = Order::acq_rel;
    else
        d.take("relaxed");
    take_scope(d); /* .gpu where it says nothing */
    return o;
}

bool is_16_bit_float(Type t)
{
    return t == Type::f16 || t == Type::bf16 || t == Type::f16x2 || t == Type::bf16x2;
}

unsigned take_vector(Decode &d)
{
    const int k = d.take_one_of({"v2", "v4", "v8"});
    return k < 0 ? 1 : 2u << k;
}

/* What the architecture has: vectors of floats in global memory since sm_90, minima of 16-bit floats in vectors only. */
void check_form(Decode &d, const Inst &i, const Operation &o, bool noftz)
{
    const bool is_16 = is_16_bit_float(i.type), is_add = o.handler == add;
    if (noftz != is_16)
        d.fail(is_16 ? ".noftz is missing" : ".noftz goes with 16-bit floats");
    if (is_16 && !is_add && i.vec == 1)
        d.fail(".%s.%s is for vectors only", o.name, type_text(i.type));
    if (i.type == Type::bf16 || i.type == Type::bf16x2 || i.type == Type::b128)
        d.need_sm(90);
    if (i.vec == 1)
        return;
    d.need_sm(90);
    if (!is_16 && i.type != Type::f32)
        d.fail("vectors are of f32 or of 16-bit floats");
    if (i.vec * type_bytes(i.type) > 16)
        d.fail("a vector has 16 bytes at most");
    if (i.space != Space::global && i.space != Space::generic)
        d.fail("vectors are for the global space");
}

void each_value(Decode &d, size_t k, unsigned vec, Type t, bool out)
{
    unsigned n = 1;
    const bool braces = d.vector_width(k, &n);
    if (n != vec)
        d.fail("%u registers, but a vector of %u", n, vec);
    for (unsigned e = 0; e < vec; e++) {
        const ptx::Operand &o = braces ? d.operand(k).items[e] : d.operand(k);
        if (out)
            d.out(o, t);
        else
            d.in(o, t);
    }
}

void build(Decode &d, Inst &i, bool red)
{
    i.flags |= uint32_t(take_order(d, red)) | (red ? 0 : HAS_RESULT);
    const Space space = take_space(d);
    const Operation &o = take_operation(d, red);
    const bool noftz = d.take("noftz"), policy = d.take("L2::cache_hint");
    i.vec = uint8_t(take_vector(d));
    i.type = d.type();
    i.exec = o.handler(i.type);
    if (!i.exec)
        d.fail(".%s has no type .%s", o.name, type_text(i.type));
    size_t k = 0;
    if (!red)
        each_value(d, k++, i.vec, i.type, true);
    take_address(d, i, k++, space);
    check_form(d, i, o, noftz);
    each_value(d, k++, i.vec, i.type, false);
    if (o.handler == cas) {
        each_value(d, k++, 1, i.type, false);
        i.flags |= HAS_NEW_VALUE;
    }
    if (policy)
        d.in(k++, Type::b64);
    if (d.n() > k)
        d.fail("%zu operands, but %zu expected", d.n(), k);
    i.cls = Class::atomic;
}

void build_atom(Decode &d, Inst &i)
{
    build(d, i, false);
}
void build_red(Decode &d, Inst &i)
{
    build(d, i, true);
}

const Opcode opcodes[] = {{"atom", build_atom}, {"red", build_red}};
} // namespace

const Family atomic_family = {opcodes, sizeof opcodes / sizeof *opcodes};

} // namespace ptxemu
