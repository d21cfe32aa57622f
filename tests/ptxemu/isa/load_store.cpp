/* ld, ldu, st: every space, width, vector and memory order.
 *
 * The handler asks memory/access.h for 32 host pointers and moves values between them and the rows; what a load widens to and what a
 * store cuts off depends on the register's width, which is looked at once a row. */
#include <cstring>
#include <type_traits>

#include "isa/memory_order.h"
#include "memory/access.h"

namespace ptxemu
{
namespace
{
struct Wide { /* b128 */
    uint64_t lo, hi;
};

/* One access of the host.  A strong one must not be torn, as another host thread may look on. */
template <class M, bool Strong>
M get(const uint8_t *p)
{
    M v;
    if constexpr (Strong && !std::is_same_v<M, Wide>) {
        v = __atomic_load_n(reinterpret_cast<const M *>(p), __ATOMIC_ACQUIRE);
    } else {
        std::unique_lock<std::mutex> lock;
        if constexpr (Strong)
            lock = std::unique_lock<std::mutex>(wide_access());
        memcpy(&v, p, sizeof v);
    }
    return v;
}

template <class M, bool Strong>
void put(uint8_t *p, M v)
{
    if constexpr (Strong && !std::is_same_v<M, Wide>) {
        __atomic_store_n(reinterpret_cast<M *>(p), v, __ATOMIC_RELEASE);
    } else {
        std::unique_lock<std::mutex> lock;
        if constexpr (Strong)
            lock = std::unique_lock<std::mutex>(wide_access());
        memcpy(p, &v, sizeof v);
    }
}

template <class M>
bool differ(M a, M b)
{
    if constexpr (std::is_same_v<M, Wide>)
        return a.lo != b.lo || a.hi != b.hi;
    else
        return a != b;
}

/* ---- loads ---- */

/* Registers may be wider than the memory type: D is sign-extended from a signed M, zero-extended from an unsigned one.  Says whether
 * some lane got another value than its register had before. */
template <class M, class D, bool Strong>
bool load_row(Lanes lanes, D *d, uint8_t *const p[WARP_SIZE], size_t at)
{
    bool news = false;
    each_lane(lanes, [&](unsigned l) {
        D v = D(get<M, Strong>(p[l] + at));
        if constexpr (Strong)
            news |= differ(v, d[l]);
        d[l] = v;
    });
    return news;
}

template <class M, bool Strong>
bool load_element(Warp &w, const Opnd &d, uint8_t *const p[WARP_SIZE], size_t at)
{
    if constexpr (std::is_same_v<M, Wide>) {
        return load_row<M, Wide, Strong>(w.active, w.out<Wide>(d), p, at);
    } else {
        switch (d.bits) {
        case 16:
            return load_row<M, uint16_t, Strong>(w.active, w.out<uint16_t>(d), p, at);
        case 32:
            return load_row<M, uint32_t, Strong>(w.active, w.out<uint32_t>(d), p, at);
        default:
            return load_row<M, uint64_t, Strong>(w.active, w.out<uint64_t>(d), p, at);
        }
    }
}

/* Local memory that nobody has written makes registers that nobody has written.  A value of which a part is known counts as known:
 * compilers copy structures with holes in them in large pieces. */
void pass_on_undefined(Warp &w, const Inst &i, Access a, const uint64_t address[WARP_SIZE], Lanes suspects,
                       size_t bytes)
{
    uint8_t *p[WARP_SIZE];
    a.bytes = a.align = 1;
    a.count = a.race = false;
    for (unsigned k = 0; k < i.vec; k++) {
        Lanes unknown = suspects;
        for (size_t b = 0; b < bytes && unknown; b++) {
            uint64_t byte[WARP_SIZE];
            each_lane(unknown, [&](unsigned l) { byte[l] = address[l] + k * bytes + b; });
            unknown &= resolve(w, a, byte, unknown, p);
        }
        w.mark_undefined(i.op[k], unknown);
    }
}

template <class M, bool Strong>
Step ld(Warp &w, const Inst &i)
{
    uint64_t address[WARP_SIZE];
    uint8_t *p[WARP_SIZE];
    addresses_of(w, i, i.op[i.vec], address);
    const Access a{i.space, Strong ? Use::sync_read : Use::read, uint32_t(sizeof(M) * i.vec)};
    const Lanes suspects = resolve(w, a, address, w.active, p);
    bool news = false;
    for (unsigned k = 0; k < i.vec; k++)
        news |= load_element<M, Strong>(w, i.op[k], p, k * sizeof(M));
    if (suspects)
        pass_on_undefined(w, i, a, address, suspects, sizeof(M));
    if constexpr (Strong) {
        if (acquires(order_of(i)))
            take_over(w, p);
        /* The register has the value already: this looks like a wait for another warp, which should have a turn. */
        if (!news)
            return Step::yield;
    }
    return Step::next;
}

/* ---- stores ---- */

template <class M, class S, bool Strong>
bool store_row(Lanes lanes, const S *s, uint8_t *const p[WARP_SIZE], size_t at)
{
    bool news = false;
    each_lane(lanes, [&](unsigned l) {
        const M v = M(s[l]);
        news |= differ(v, get<M, false>(p[l] + at));
        put<M, Strong>(p[l] + at, v);
    });
    return news;
}

template <class M, bool Strong>
bool store_element(Warp &w, const Opnd &s, uint8_t *const p[WARP_SIZE], size_t at)
{
    if constexpr (std::is_same_v<M, Wide>) {
        return store_row<M, Wide, Strong>(w.active, w.in<Wide>(s), p, at);
    } else {
        switch (s.bits) {
        case 16:
            return store_row<M, uint16_t, Strong>(w.active, w.in<uint16_t>(s), p, at);
        case 32:
            return store_row<M, uint32_t, Strong>(w.active, w.in<uint32_t>(s), p, at);
        default:
            return store_row<M, uint64_t, Strong>(w.active, w.in<uint64_t>(s), p, at);
        }
    }
}

/* Elements of a vector whose registers were never written leave their bytes never-written; the others do not. */
void store_undefined(Warp &w, const Inst &i, Access a, const uint64_t address[WARP_SIZE], size_t bytes)
{
    uint8_t *p[WARP_SIZE];
    a.bytes = uint32_t(bytes);
    a.count = a.race = false;
    for (unsigned k = 0; k < i.vec; k++) {
        uint64_t element[WARP_SIZE];
        each_lane(w.active, [&](unsigned l) { element[l] = address[l] + k * bytes; });
        a.undefined = w.undefined(i.op[k + 1]);
        resolve(w, a, element, w.active, p);
    }
}

template <class M, bool Strong>
Step st(Warp &w, const Inst &i)
{
    uint64_t address[WARP_SIZE];
    uint8_t *p[WARP_SIZE];
    addresses_of(w, i, i.op[0], address);
    Access a{i.space, Strong ? Use::sync_write : Use::write, uint32_t(sizeof(M) * i.vec)};
    Lanes undefined = 0;
    for (unsigned k = 1; k <= i.vec; k++)
        undefined |= w.undefined(i.op[k]);
    if (i.vec == 1)
        a.undefined = undefined;
    resolve(w, a, address, w.active, p);
    if (undefined && i.vec > 1)
        store_undefined(w, i, a, address, sizeof(M));
    if (Strong && releases(order_of(i)))
        publish(w, p);
    bool news = false;
    for (unsigned k = 0; k < i.vec; k++)
        news |= store_element<M, Strong>(w, i.op[k + 1], p, k * sizeof(M));
    if (news && i.space != Space::local)
        note_progress(w);
    return Step::next;
}

/* ---- decoding ---- */

enum class Direction { load, store };

template <bool Strong>
Exec load_handler(Type t)
{
    const bool sign = is_signed(t);
    switch (type_bytes(t)) {
    case 1:
        return sign ? ld<int8_t, Strong> : ld<uint8_t, Strong>;
    case 2:
        return sign ? ld<int16_t, Strong> : ld<uint16_t, Strong>;
    case 4:
        return sign ? ld<int32_t, Strong> : ld<uint32_t, Strong>;
    case 8:
        return ld<uint64_t, Strong>;
    default:
        return ld<Wide, Strong>;
    }
}

template <bool Strong>
Exec store_handler(Type t)
{
    switch (type_bytes(t)) {
    case 1:
        return st<uint8_t, Strong>;
    case 2:
        return st<uint16_t, Strong>;
    case 4:
        return st<uint32_t, Strong>;
    case 8:
        return st<uint64_t, Strong>;
    default:
        return st<Wide, Strong>;
    }
}

Order take_order(Decode &d, Direction dir)
{
    const bool load = dir == Direction::load;
    if (d.take("weak"))
        return Order::weak;
    if (d.take("volatile"))
        return Order::relaxed;
    Order o = Order::weak;
    if (d.take("relaxed"))
        o = Order::relaxed;
    else if (load && d.take("acquire"))
        o = Order::acquire;
    else if (!load && d.take("release"))
        o = Order::release;
    const bool mmio = d.take("mmio");
    if (o != Order::weak && !take_scope(d))
        d.fail("a scope (.cta, .cluster, .gpu or .sys) is missing");
    if (mmio && o == Order::weak)
        d.fail(".mmio goes with .relaxed, .acquire or .release");
    return o;
}

Class class_of(Space s, Direction dir)
{
    const bool load = dir == Direction::load;
    switch (s) {
    case Space::shared:
    case Space::shared_cluster:
        return load ? Class::load_shared : Class::store_shared;
    case Space::local:
        return Class::local;
    case Space::constant:
    case Space::param:
        return Class::constant;
    default:
        return load ? Class::load_global : Class::store_global;
    }
}

/* The modifiers behind the order, up to the type. */
struct Form {
    Space space;
    bool policy = false;
};

Form take_form(Decode &d, Inst &i, Direction dir)
{
    Form f;
    f.space = take_space(d);
    if (dir == Direction::load) {
        d.take_one_of({"ca", "cg", "cs", "lu", "cv"});
        if (d.take("nc") && f.space != Space::global)
            d.fail(".nc is for the global space");
    } else {
        d.take_one_of({"wb", "cg", "cs", "wt"});
    }
    take_cache_hints(d, &f.policy);
    const int vec = d.take_one_of({"v2", "v4", "v8"});
    i.vec = vec < 0 ? 1 : uint8_t(2u << vec);
    i.type = d.type();
    const bool plain = type_kind(i.type) != TypeKind::float_ || i.type == Type::f32 || i.type == Type::f64;
    if (!plain || type_kind(i.type) == TypeKind::pred || type_bits(i.type) < 8)
        d.fail("loads and stores have no type .%s", type_text(i.type));
    if (i.vec * type_bytes(i.type) > 16)
        d.fail("accesses of more than 16 bytes need sm_100");
    if (i.type == Type::b128)
        d.need_sm(70);
    return f;
}

/* Only what several threads can see has an order. */
void check_order(Decode &d, const Form &f, Order order)
{
    if (order != Order::weak && (f.space == Space::local || f.space == Space::constant || f.space == Space::param))
        d.fail("%s memory has no memory order", space_text(f.space));
}

/* The registers of {a, b, ...}, or the only one. */
template <class F>
void each_value(Decode &d, size_t k, unsigned vec, F f)
{
    unsigned n = 1;
    const bool braces = d.vector_width(k, &n);
    if (n != vec)
        d.fail("%u registers, but a vector of %u", n, vec);
    for (unsigned e = 0; e < vec; e++)
        f(braces ? d.operand(k).items[e] : d.operand(k));
}

void take_policy(Decode &d, const Form &f, size_t k)
{
    if (f.policy)
        d.in(k, Type::b64);
    else if (d.n() > k)
        d.fail("%zu operands, but %zu expected", d.n(), k);
}
} // namespace

void build_ld(Decode &d, Inst &i)
{
    const Order order = take_order(d, Direction::load);
    const Form f = take_form(d, i, Direction::load);
    check_order(d, f, order);
    i.flags |= uint32_t(order);
    each_value(d, 0, i.vec, [&](const ptx::Operand &o) { d.out(o, i.type, true); });
    take_address(d, i, 1, f.space);
    take_policy(d, f, 2);
    i.exec = order == Order::weak ? load_handler<false>(i.type) : load_handler<true>(i.type);
    i.cls = class_of(i.space, Direction::load);
}

/* ldu: a load whose address is the same in all lanes; a hint, and not checked by hardware either. */
void build_ldu(Decode &d, Inst &i)
{
    const Form f = take_form(d, i, Direction::load);
    if (f.space != Space::global && f.space != Space::generic)
        d.fail("ldu is for the global space");
    each_value(d, 0, i.vec, [&](const ptx::Operand &o) { d.out(o, i.type, true); });
    take_address(d, i, 1, f.space);
    take_policy(d, f, 2);
    i.exec = load_handler<false>(i.type);
    i.cls = class_of(i.space, Direction::load);
}

void build_st(Decode &d, Inst &i)
{
    const Order order = take_order(d, Direction::store);
    const Form f = take_form(d, i, Direction::store);
    if (f.space == Space::constant)
        d.fail("constant memory cannot be stored to");
    check_order(d, f, order);
    i.flags |= uint32_t(order);
    take_address(d, i, 0, f.space);
    each_value(d, 1, i.vec, [&](const ptx::Operand &o) { d.in(o, i.type, Opnd::copy, true); });
    take_policy(d, f, 2);
    i.exec = order == Order::weak ? store_handler<false>(i.type) : store_handler<true>(i.type);
    i.cls = class_of(i.space, Direction::store);
}

} // namespace ptxemu
