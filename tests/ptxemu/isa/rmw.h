/* Read-modify-write operations: what atom, red and the reductions of bulk copies do to a place in memory.
 *
 * An operation is a function from the old bits and the operands to the new bits. */
#ifndef PTXEMU_ISA_RMW_H
#define PTXEMU_ISA_RMW_H

#include <cmath>
#include <type_traits>

#include "isa/softfloat.h"

namespace ptxemu::rmw
{

/* Where the place lies decides about denormals of f32. */
struct Place {
    bool in_shared;
};

/* ---- operations: T f(old, b, c, place) over the bits in memory ---- */

template <class T>
struct Add {
    using Bits = T;
    static T f(T old, T b, T, Place) { return T(old + b); }
};
template <class T> /* T signed or unsigned */
struct Min {
    using Bits = std::make_unsigned_t<T>;
    static Bits f(Bits old, Bits b, Bits, Place) { return T(b) < T(old) ? b : old; }
};
template <class T>
struct Max {
    using Bits = std::make_unsigned_t<T>;
    static Bits f(Bits old, Bits b, Bits, Place) { return T(b) > T(old) ? b : old; }
};
template <class T>
struct And {
    using Bits = T;
    static T f(T old, T b, T, Place) { return old & b; }
};
template <class T>
struct Or {
    using Bits = T;
    static T f(T old, T b, T, Place) { return old | b; }
};
template <class T>
struct Xor {
    using Bits = T;
    static T f(T old, T b, T, Place) { return old ^ b; }
};
template <class T>
struct Exch {
    using Bits = T;
    static T f(T, T b, T, Place) { return b; }
};
template <class T>
struct Cas {
    using Bits = T;
    static T f(T old, T b, T c, Place) { return old == b ? c : old; }
};
struct Inc {
    using Bits = uint32_t;
    static uint32_t f(uint32_t old, uint32_t b, uint32_t, Place) { return old >= b ? 0 : old + 1; }
};
struct Dec {
    using Bits = uint32_t;
    static uint32_t f(uint32_t old, uint32_t b, uint32_t, Place) { return old == 0 || old > b ? b : old - 1; }
};

/* In global memory the units of the L2 add, and they flush denormals to zeros of the same sign; in shared memory nothing is flushed. */
struct AddF32 {
    using Bits = uint32_t;
    static uint32_t f(uint32_t old, uint32_t b, uint32_t, Place p)
    {
        const float x = bits_as<float>(old), y = bits_as<float>(b);
        return bits_as<uint32_t>(canonical(p.in_shared ? x + y : flush(flush(x) + flush(y))));
    }
};
struct AddF64 {
    using Bits = uint64_t;
    static uint64_t f(uint64_t old, uint64_t b, uint64_t, Place)
    {
        return bits_as<uint64_t>(bits_as<double>(old) + bits_as<double>(b));
    }
};

struct Half {
    static float get(uint16_t h) { return f16_to_f32(h); }
    static uint16_t put(float x) { return f32_to_f16(x); }
};
struct Bfloat {
    static float get(uint16_t h) { return bf16_to_f32(h); }
    static uint16_t put(float x) { return f32_to_bf16(x); }
};
/* The f32 sum of two f16 or bf16 has more than twice their precision: rounding it once more gives what one rounding would. */
template <class H>
struct Add16 {
    using Bits = uint16_t;
    static uint16_t f(uint16_t old, uint16_t b, uint16_t, Place) { return H::put(H::get(old) + H::get(b)); }
};
/* The operand that is no NaN wins; -0 is less than +0. */
template <class H, bool Largest>
struct Select16 {
    using Bits = uint16_t;
    static uint16_t f(uint16_t old, uint16_t b, uint16_t, Place)
    {
        const float x = H::get(old), y = H::get(b);
        if (x != x || y != y)
            return x == x ? old : y == y ? b : NAN_16;
        const bool y_less = y < x || (y == x && std::signbit(y) && !std::signbit(x));
        const bool x_less = x < y || (y == x && std::signbit(x) && !std::signbit(y));
        return (Largest ? x_less : y_less) ? b : old;
    }
};
template <class Op>
struct Pair { /* f16x2, bf16x2 */
    using Bits = uint32_t;
    static uint32_t f(uint32_t old, uint32_t b, uint32_t, Place p)
    {
        return Op::f(uint16_t(old), uint16_t(b), 0, p) | uint32_t(Op::f(uint16_t(old >> 16), uint16_t(b >> 16), 0, p))
                                                             << 16;
    }
};

/* Applies an operation with a compare-and-swap of the host, as other blocks of the grid run on other host threads.  Returns the
 * new bits. */
template <class Op>
typename Op::Bits swap_in(uint8_t *p, typename Op::Bits b, typename Op::Bits c, Place place, typename Op::Bits *old)
{
    auto *q = reinterpret_cast<typename Op::Bits *>(p);
    *old = __atomic_load_n(q, __ATOMIC_RELAXED);
    typename Op::Bits now;
    do
        now = Op::f(*old, b, c, place);
    while (!__atomic_compare_exchange_n(q, old, now, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
    return now;
}

} // namespace ptxemu::rmw

#endif
