/* For the tests of integer instructions: values worth trying, and one call that runs an instruction over them and
 * compares every result with a formula of the host.
 *
 *   expect("add.s32", [](int32_t a, int32_t b) -> int32_t { ... });
 *
 * The lambda's signature gives the registers.  All combinations of the edge values are tried where there are one or two
 * operands, random mixtures of edge values and random numbers in any case. */
#ifndef PTXEMU_TEST_ALU_H
#define PTXEMU_TEST_ALU_H

#include <functional>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

#include "test/emu.h"

namespace alu
{

inline uint64_t random_bits(uint64_t &state) /* splitmix64 */
{
    uint64_t z = state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* Zero, the ends of the ranges of 8 to 64 bits and their neighbours, shift counts around the widths, patterns. */
template <class T>
const std::vector<T> &edges()
{
    static const std::vector<T> values = [] {
        using L = std::numeric_limits<T>;
        std::vector<T> v = {T(0),
                            T(1),
                            T(2),
                            T(-1),
                            T(-2),
                            L::min(),
                            T(L::min() + 1),
                            L::max(),
                            T(L::max() - 1),
                            T(7),
                            T(15),
                            T(16),
                            T(17),
                            T(31),
                            T(32),
                            T(33),
                            T(63),
                            T(64),
                            T(65),
                            T(127),
                            T(128),
                            T(255),
                            T(256),
                            T(0x7fff),
                            T(0x8000),
                            T(0xffff),
                            T(0x5555555555555555),
                            T(0xaaaaaaaaaaaaaaaa),
                            T(0x0123456789abcdef)};
        if (sizeof(T) > 2)
            for (uint64_t x :
                 {0x7fffffull, 0x800000ull, 0xffffffull, 0x1000000ull, 0x7fffffffull, 0x80000000ull, 0x80007fffull})
                v.push_back(T(x));
        if (sizeof(T) > 4)
            for (uint64_t x : {0xffffffffull, 0x100000000ull, 0x7fffffff00000000ull, 0x8000000080000000ull})
                v.push_back(T(x));
        return v;
    }();
    return values;
}

template <class T>
T draw(uint64_t &state)
{
    const uint64_t kind = random_bits(state) % 4, x = random_bits(state);
    if (kind < 2)
        return edges<T>()[x % edges<T>().size()];
    return T(kind == 2 ? x : x >> (x % 64)); /* small ones as well */
}

template <class T>
std::string register_type()
{
    return "b" + std::to_string(sizeof(T) * 8);
}
template <class T>
std::string literal(T v)
{
    return std::to_string(v);
}
template <class T>
std::string hex(T v)
{
    char s[32];
    snprintf(s, sizeof s, "0x%llx", static_cast<unsigned long long>(std::make_unsigned_t<T>(v)));
    return s;
}

template <class... A>
std::tuple<std::vector<A>...> inputs(unsigned seed = 1)
{
    std::tuple<std::vector<A>...> in;
    uint64_t state = seed;
    auto push = [&](A... v) { std::apply([&](auto &...vector) { (vector.push_back(v), ...); }, in); };
    if constexpr (sizeof...(A) == 1)
        (std::apply([&](auto &...v) { ((v = edges<A>()), ...); }, in));
    if constexpr (sizeof...(A) == 2) {
        using First = std::tuple_element_t<0, std::tuple<A...>>;
        using Second = std::tuple_element_t<1, std::tuple<A...>>;
        for (First a : edges<First>())
            for (Second b : edges<Second>())
                push(a, b);
    }
    for (unsigned k = 0; k < 1501; k++) /* an odd number: the last warp is not full */
        push(draw<A>(state)...);
    return in;
}

/* Runs `statement` (with %a, %b, ... and %d) over the inputs and compares with f.  untouched: where it gives true, 0x5a
 * is expected instead. */
template <class D, class... A>
void expect_statement(
    const std::string &statement, const std::function<D(A...)> &f, const std::tuple<std::vector<A>...> &in,
    const std::string &target, bool (*untouched)(size_t) = [](size_t) { return false; })
{
    const std::vector<D> got = std::apply(
        [&](const auto &...v) {
            return emu::apply<D>(statement, register_type<D>(), {register_type<A>()...}, target, v...);
        },
        in);
    const size_t n = std::get<0>(in).size();
    ASSERT_EQ(n, got.size()) << statement;
    for (size_t k = 0, wrong = 0; k < n && wrong < 3; k++) {
        const D want = untouched(k) ? D(0x5a) : std::apply([&](const auto &...v) { return f(v[k]...); }, in);
        if (got[k] == want)
            continue;
        std::string values;
        std::apply([&](const auto &...v) { ((values += " " + hex(v[k])), ...); }, in);
        ADD_FAILURE() << statement << " of" << values << ": " << hex(got[k]) << ", expected " << hex(want);
        wrong++;
    }
}

constexpr const char *names[] = {"%a", "%b", "%c", "%e"};

/* Replaces the operands of `mask` by immediates: the values of one of the inputs, everywhere. */
template <class D, class... A, size_t... K>
void expect_immediates(const std::string &op, const std::function<D(A...)> &f, std::tuple<std::vector<A>...> in,
                       unsigned mask, size_t at, const std::string &target, std::index_sequence<K...>)
{
    std::string statement = op + " %d";
    auto operand = [&](auto &v, size_t k) {
        const auto value = v[at];
        statement += std::string(", ") + (mask >> k & 1 ? literal(value) : names[k]);
        if (mask >> k & 1)
            v.assign(v.size(), value);
    };
    (operand(std::get<K>(in), K), ...);
    expect_statement(statement + ";", f, in, target);
}

/* The same under a guard that leaves some lanes of every warp out: what they hold stays. */
template <class D, class... A, size_t... K>
void expect_guarded(const std::string &op, const std::function<D(A...)> &f, const std::tuple<std::vector<A>...> &in,
                    const std::string &target, std::index_sequence<K...>)
{
    std::string statement = "{\n.reg .pred %g;\n.reg .b32 %t;\nmov.u32 %t, %tid.x;\nand.b32 %t, %t, 5;\n"
                            "setp.ne.u32 %g, %t, 0;\nmov." +
                            register_type<D>() + " %d, 0x5a;\n@%g " + op + " %d";
    ((statement += std::string(", ") + names[K]), ...);
    expect_statement(statement + ";\n}", f, in, target, [](size_t k) { return (k & 5) == 0; });
}

/* Registers everywhere, under a guard, and immediates in every combination of places. */
template <class D, class... A>
void expect_function(const std::string &op, const std::function<D(A...)> &f, const std::string &target)
{
    const auto in = inputs<A...>();
    const auto places = std::index_sequence_for<A...>();
    const size_t n = std::get<0>(in).size();
    for (unsigned mask = 0; mask < 1u << sizeof...(A); mask++)
        expect_immediates(op, f, in, mask, n - 1 - mask, target, places);
    expect_guarded(op, f, in, target, places);
}

template <class F>
void expect(const std::string &op, F f, const std::string &target = "sm_80")
{
    expect_function(op, std::function(f), target);
}

/* Instructions that take no immediates. */
template <class D, class... A>
void expect_registers_function(const std::string &op, const std::function<D(A...)> &f, const std::string &target)
{
    const auto in = inputs<A...>();
    expect_immediates(op, f, in, 0, 0, target, std::index_sequence_for<A...>());
    expect_guarded(op, f, in, target, std::index_sequence_for<A...>());
}
template <class F>
void expect_registers(const std::string &op, F f, const std::string &target = "sm_80")
{
    expect_registers_function(op, std::function(f), target);
}

} // namespace alu

#endif
