/* Instructions that do the same to every lane: a C++ function of one lane's values becomes the handler and the builder.
 *
 * The function's signature says everything: `uint64_t mul_wide(uint32_t, uint32_t)` has a 64-bit destination and two
 * 32-bit sources.  So a family's table can read as PTX does:  {"mul.wide.u32", elementwise<mul_wide<uint32_t>>}. */
#ifndef PTXEMU_ISA_LANES_H
#define PTXEMU_ISA_LANES_H

#include <tuple>
#include <type_traits>
#include <utility>

#include "isa/decode.h"
#include "machine/warp.h"

namespace ptxemu
{

/* A destination row may be a source row (add %r1, %r1, %r2), but never a part of one: lane l depends on itself. */
#if defined(__clang__)
/* A loop that calls the C library stays scalar, and that is all right. */
#pragma clang diagnostic ignored "-Wpass-failed"
#define PTXEMU_INDEPENDENT_LANES _Pragma("clang loop vectorize(assume_safety)")
#else
#define PTXEMU_INDEPENDENT_LANES _Pragma("GCC ivdep")
#endif

/* f(lane) for every lane of a set.  The full warp is the common case and gets a loop that the compiler turns into
 * vector code. */
template <class F>
inline void for_lanes(Lanes lanes, F f)
{
    if (lanes == ALL_LANES) {
        PTXEMU_INDEPENDENT_LANES
        for (unsigned l = 0; l < WARP_SIZE; l++)
            f(l);
        return;
    }
    for (Lanes left = lanes; left; left &= left - 1)
        f(unsigned(__builtin_ctz(left)));
}

/* The lanes for which f(lane) holds; lanes beyond `lanes` come out as 0. */
template <class F>
inline Lanes lanes_where(Lanes lanes, F f)
{
    Lanes result = 0;
    if (lanes == ALL_LANES) {
        for (unsigned l = 0; l < WARP_SIZE; l++)
            result |= Lanes(f(l)) << l;
        return result;
    }
    for (Lanes left = lanes; left; left &= left - 1) {
        unsigned l = unsigned(__builtin_ctz(left));
        result |= Lanes(f(l)) << l;
    }
    return result;
}

/* The PTX type of a C++ type, as far as a register's width and an immediate's conversion go. */
template <class T>
constexpr Type ptx_type()
{
    if constexpr (std::is_same_v<T, float>)
        return Type::f32;
    else if constexpr (std::is_same_v<T, double>)
        return Type::f64;
    else {
        static_assert(std::is_integral_v<T> && sizeof(T) >= 2 && sizeof(T) <= 8);
        constexpr bool negative = std::is_signed_v<T>;
        return sizeof(T) == 2   ? (negative ? Type::s16 : Type::u16)
               : sizeof(T) == 4 ? (negative ? Type::s32 : Type::u32)
                                : (negative ? Type::s64 : Type::u64);
    }
}

/* D f(A, B, ...): op[0] is the destination, op[1]... the sources. */
template <auto F>
struct Elementwise;

template <class D, class... A, D (*F)(A...)>
struct Elementwise<F> {
    template <size_t... K>
    static void apply(Warp &w, const Inst &i, std::index_sequence<K...>)
    {
        D *d = w.out<D>(i.op[0]);
        const std::tuple<const A *...> a(w.in<A>(i.op[K + 1])...);
        for_lanes(w.active, [=](unsigned l) { d[l] = F(std::get<K>(a)[l]...); });
    }
    static Step exec(Warp &w, const Inst &i)
    {
        apply(w, i, std::index_sequence_for<A...>());
        return Step::next;
    }
    static void operands(Decode &d)
    {
        size_t k = 0;
        d.out(k++, ptx_type<D>());
        (d.in(k++, ptx_type<A>()), ...);
    }
};

/* The builder of an instruction whose name in the table leaves no modifier to ask for. */
template <auto F, unsigned Sm = 0, Class C = Class::integer>
void elementwise(Decode &d, Inst &i)
{
    if constexpr (Sm != 0)
        d.need_sm(Sm);
    Elementwise<F>::operands(d);
    i.exec = Elementwise<F>::exec;
    i.cls = C;
}

} // namespace ptxemu

#endif
