/* Integer arithmetic as PTX has it: two's complement, wrapping, shift counts that clamp.  Plain C++ leaves all of that
 * undefined. */
#ifndef PTXEMU_ISA_BITS_H
#define PTXEMU_ISA_BITS_H

#include <cstdint>
#include <type_traits>

namespace ptxemu
{

/* The unsigned type in which T's arithmetic may wrap; 16-bit values are promoted to int by C++, where a product
 * overflows. */
template <class T>
using Wrapping = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

/* The type of the same signedness and twice the width. */
template <class T>
struct DoubleWidth;
template <>
struct DoubleWidth<uint16_t> {
    using type = uint32_t;
};
template <>
struct DoubleWidth<int16_t> {
    using type = int32_t;
};
template <>
struct DoubleWidth<uint32_t> {
    using type = uint64_t;
};
template <>
struct DoubleWidth<int32_t> {
    using type = int64_t;
};
template <>
struct DoubleWidth<uint64_t> {
    using type = unsigned __int128;
};
template <>
struct DoubleWidth<int64_t> {
    using type = __int128;
};
template <class T>
using Wide = typename DoubleWidth<T>::type;

template <class T>
constexpr unsigned width_of = sizeof(T) * 8;

/* Shifts whose count may be anything: counts of the width and beyond shift everything out (signed right shifts keep the
 * sign). */
template <class T>
T shift_left(T a, uint32_t count)
{
    return count < width_of<T> ? T(Wrapping<T>(a) << count) : T(0);
}
template <class T>
T shift_right(T a, uint32_t count)
{
    if (count < width_of<T>)
        return T(a >> count);
    return a < 0 ? T(-1) : T(0);
}

} // namespace ptxemu

#endif
