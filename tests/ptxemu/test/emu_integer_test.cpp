/* Integer arithmetic against formulas in 128 bits, for every type, with registers and immediates. */
#include "test/alu.h"

using alu::expect;
using alu::expect_registers;
using I128 = __int128;
using U128 = unsigned __int128;

namespace
{

template <class T>
const char *const type_name = "";
template <>
const char *const type_name<uint16_t> = "u16";
template <>
const char *const type_name<int16_t> = "s16";
template <>
const char *const type_name<uint32_t> = "u32";
template <>
const char *const type_name<int32_t> = "s32";
template <>
const char *const type_name<uint64_t> = "u64";
template <>
const char *const type_name<int64_t> = "s64";

template <class T>
std::string op(const char *name)
{
    return std::string(name) + "." + type_name<T>;
}

int32_t clamp32(I128 v)
{
    return v > INT32_MAX ? INT32_MAX : v < INT32_MIN ? INT32_MIN : int32_t(v);
}

/* The upper 64 bits of a 64 x 64 bit product, from four 32 x 32 bit products. */
uint64_t high64(uint64_t a, uint64_t b)
{
    const uint64_t a0 = uint32_t(a), a1 = a >> 32, b0 = uint32_t(b), b1 = b >> 32;
    const uint64_t low = a0 * b0, mid1 = a1 * b0, mid2 = a0 * b1;
    const uint64_t carry = ((low >> 32) + uint32_t(mid1) + uint32_t(mid2)) >> 32;
    return a1 * b1 + (mid1 >> 32) + (mid2 >> 32) + carry;
}
template <class T>
T high(T a, T b)
{
    if (sizeof(T) < 8)
        return T((I128(a) * I128(b)) >> (sizeof(T) * 8));
    uint64_t h = high64(uint64_t(a), uint64_t(b));
    if (std::is_signed_v<T>) { /* the sign bit counts -2^63 instead of 2^63 */
        h -= a < 0 ? uint64_t(b) : 0;
        h -= b < 0 ? uint64_t(a) : 0;
    }
    return T(h);
}

template <class T>
class Integer : public ::testing::Test
{
};
using Types = ::testing::Types<uint16_t, int16_t, uint32_t, int32_t, uint64_t, int64_t>;
TYPED_TEST_SUITE(Integer, Types);

template <class T>
class Signed : public ::testing::Test
{
};
using SignedTypes = ::testing::Types<int16_t, int32_t, int64_t>;
TYPED_TEST_SUITE(Signed, SignedTypes);

template <class T>
class Widened : public ::testing::Test
{
};
using WidenedTypes = ::testing::Types<uint16_t, int16_t, uint32_t, int32_t>;
TYPED_TEST_SUITE(Widened, WidenedTypes);

template <class T>
class Factor24 : public ::testing::Test
{
};
using Types32 = ::testing::Types<uint32_t, int32_t>;
TYPED_TEST_SUITE(Factor24, Types32);

TYPED_TEST(Integer, SumsAndDifferencesWrap)
{
    using T = TypeParam;
    emu::Device device("8.0");
    expect(op<T>("add"), [](T a, T b) -> T { return T(I128(a) + I128(b)); });
    expect(op<T>("sub"), [](T a, T b) -> T { return T(I128(a) - I128(b)); });
}

TYPED_TEST(Integer, ProductsGiveTheirLowerAndUpperHalves)
{
    using T = TypeParam;
    emu::Device device("8.0");
    expect(op<T>("mul.lo"), [](T a, T b) -> T { return T(U128(I128(a)) * U128(I128(b))); });
    expect(op<T>("mul.hi"), [](T a, T b) -> T { return high(a, b); });
    expect(op<T>("mad.lo"), [](T a, T b, T c) -> T { return T(U128(I128(a)) * U128(I128(b)) + U128(I128(c))); });
    expect(op<T>("mad.hi"), [](T a, T b, T c) -> T { return T(I128(high(a, b)) + I128(c)); });
}

template <class T>
struct Twice;
template <>
struct Twice<uint16_t> {
    using type = uint32_t;
};
template <>
struct Twice<int16_t> {
    using type = int32_t;
};
template <>
struct Twice<uint32_t> {
    using type = uint64_t;
};
template <>
struct Twice<int32_t> {
    using type = int64_t;
};

TYPED_TEST(Widened, ProductsHaveTwiceTheWidth)
{
    using T = TypeParam;
    using W = typename Twice<T>::type;
    emu::Device device("8.0");
    expect(op<T>("mul.wide"), [](T a, T b) -> W { return W(I128(a) * I128(b)); });
    expect(op<T>("mad.wide"), [](T a, T b, W c) -> W { return W(I128(a) * I128(b) + I128(c)); });
}

TYPED_TEST(Integer, QuotientsRoundTowardsZeroAndDivisionByZeroIsDefined)
{
    using T = TypeParam;
    emu::Device device("8.0");
    /* By zero PTX promises nothing; a GPU's answers for the signed types are not looked at. */
    const bool exact = emu::Driver::get().emulated();
    std::function<T(T, T)> quotient = [](T a, T b) -> T { return b == 0 ? T(-1) : T(I128(a) / I128(b)); };
    std::function<T(T, T)> remainder = [](T a, T b) -> T { return b == 0 ? a : T(I128(a) % I128(b)); };
    auto in = alu::inputs<T, T>();
    if (!exact)
        for (T &b : std::get<1>(in))
            b = b == 0 ? T(1) : b;
    alu::expect_statement(op<T>("div") + " %d, %a, %b;", quotient, in, "sm_80");
    alu::expect_statement(op<T>("rem") + " %d, %a, %b;", remainder, in, "sm_80");
}

TYPED_TEST(Integer, QuotientsTakeImmediates)
{
    using T = TypeParam;
    emu::Device device("8.0");
    const auto a = std::get<0>(alu::inputs<T>());
    for (T by : {T(1), T(7), T(-3), std::numeric_limits<T>::max()}) {
        const std::string value = std::to_string(by);
        std::function<T(T)> quotient = [by](T v) -> T { return T(I128(v) / I128(by)); };
        std::function<T(T)> remainder = [by](T v) -> T { return T(I128(v) % I128(by)); };
        alu::expect_statement(op<T>("div") + " %d, %a, " + value + ";", quotient, std::tuple(a), "sm_80");
        alu::expect_statement(op<T>("rem") + " %d, %a, " + value + ";", remainder, std::tuple(a), "sm_80");
    }
}

TYPED_TEST(Integer, TheSmallerAndTheLarger)
{
    using T = TypeParam;
    emu::Device device("8.0");
    expect(op<T>("min"), [](T a, T b) -> T { return I128(a) - I128(b) < 0 ? a : b; });
    expect(op<T>("max"), [](T a, T b) -> T { return I128(a) - I128(b) > 0 ? a : b; });
}

TYPED_TEST(Integer, SadAddsTheDistance)
{
    using T = TypeParam;
    emu::Device device("8.0");
    expect(op<T>("sad"), [](T a, T b, T c) -> T {
        const I128 d = I128(a) - I128(b);
        return T(I128(c) + (d < 0 ? -d : d));
    });
}

TYPED_TEST(Signed, NegationAndMagnitudeWrapAtTheSmallest)
{
    using T = TypeParam;
    emu::Device device("8.0");
    expect(op<T>("neg"), [](T a) -> T { return T(-I128(a)); });
    expect(op<T>("abs"), [](T a) -> T { return T(a < 0 ? -I128(a) : I128(a)); });
}

TEST(Saturation, SumsStayWithinS32)
{
    emu::Device device("8.0");
    expect("add.sat.s32", [](int32_t a, int32_t b) -> int32_t { return clamp32(I128(a) + b); });
    expect("sub.sat.s32", [](int32_t a, int32_t b) -> int32_t { return clamp32(I128(a) - b); });
    expect("mad.hi.sat.s32",
           [](int32_t a, int32_t b, int32_t c) -> int32_t { return clamp32((I128(a) * b >> 32) + c); });
}

/* The value of the lowest 24 bits, as T's kind of number. */
template <class T>
I128 low24(T v)
{
    const I128 x = uint32_t(v) & 0xffffff;
    return std::is_signed_v<T> && x >= 0x800000 ? x - 0x1000000 : x;
}

TYPED_TEST(Factor24, OnlyTheLowest24BitsCount)
{
    using T = TypeParam;
    emu::Device device("8.0");
    expect(op<T>("mul24.lo"), [](T a, T b) -> T { return T(low24(a) * low24(b)); });
    expect(op<T>("mul24.hi"), [](T a, T b) -> T { return T(low24(a) * low24(b) >> 16); });
    expect(op<T>("mad24.lo"), [](T a, T b, T c) -> T { return T(low24(a) * low24(b) + c); });
    expect(op<T>("mad24.hi"), [](T a, T b, T c) -> T { return T(I128(T(low24(a) * low24(b) >> 16)) + c); });
}

TEST(Saturation, TheUpperHalfOfA24BitProduct)
{
    emu::Device device("8.0");
    expect("mad24.hi.sat.s32", [](int32_t a, int32_t b, int32_t c) -> int32_t {
        return clamp32(I128(int32_t(low24(a) * low24(b) >> 16)) + c);
    });
}

/* ---- two 16-bit numbers in a register (sm_90) ---- */

template <class T, class F>
auto in_halves(F f)
{
    return [f](uint32_t a, uint32_t b) -> uint32_t {
        const uint32_t low = uint16_t(f(T(a & 0xffff), T(b & 0xffff))), high = uint16_t(f(T(a >> 16), T(b >> 16)));
        return low + 65536 * high;
    };
}

TEST(Halves, AddMinMaxWorkOnEachHalf)
{
    emu::Device device("9.0");
    auto sum = [](auto a, auto b) { return a + b; };
    auto smaller = [](auto a, auto b) { return int(a) < int(b) ? a : b; };
    auto larger = [](auto a, auto b) { return int(a) > int(b) ? a : b; };
    expect_registers("add.u16x2", in_halves<uint16_t>(sum), "sm_90");
    expect_registers("add.s16x2", in_halves<int16_t>(sum), "sm_90");
    expect_registers("min.u16x2", in_halves<uint16_t>(smaller), "sm_90");
    expect_registers("min.s16x2", in_halves<int16_t>(smaller), "sm_90");
    expect_registers("max.u16x2", in_halves<uint16_t>(larger), "sm_90");
    expect_registers("max.s16x2", in_halves<int16_t>(larger), "sm_90");
}

TEST(Halves, ReluReplacesNegativeResultsByZero)
{
    emu::Device device("9.0");
    auto smaller = [](int a, int b) { return std::max(std::min(a, b), 0); };
    auto larger = [](int a, int b) { return std::max(std::max(a, b), 0); };
    for (const char *spelling : {"min.relu.s16x2", "min.s16x2.relu"})
        expect_registers(spelling, in_halves<int16_t>(smaller), "sm_90");
    for (const char *spelling : {"max.relu.s16x2", "max.s16x2.relu"})
        expect_registers(spelling, in_halves<int16_t>(larger), "sm_90");
    for (const char *spelling : {"min.relu.s32", "min.s32.relu"})
        expect(
            spelling, [=](int32_t a, int32_t b) -> int32_t { return smaller(a, b); }, "sm_90");
    for (const char *spelling : {"max.relu.s32", "max.s32.relu"})
        expect(
            spelling, [=](int32_t a, int32_t b) -> int32_t { return larger(a, b); }, "sm_90");
}

TEST(Halves, OlderDevicesRefuseThem)
{
    emu::Device device("8.0");
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "needs a device of a chosen compute capability";
    for (const char *name : {"add.u16x2", "min.s16x2", "max.relu.s32"}) {
        emu::Module m(emu::op_module(std::string(name) + " %d, %a, %b;", "b32", {"b32", "b32"}, "sm_80"), false);
        EXPECT_EQ(CUDA_ERROR_INVALID_PTX, m.result) << name;
        EXPECT_NE(std::string::npos, m.log.find(name)) << m.log;
    }
}

/* ---- dot products ---- */

template <class T>
I128 part(uint32_t v, unsigned bits, unsigned k)
{
    const I128 x = v >> (bits * k) & ((1u << bits) - 1);
    return std::is_signed_v<T> && x >= (I128(1) << (bits - 1)) ? x - (I128(1) << bits) : x;
}
template <class A, class B>
void dot_products(const std::string &types)
{
    expect("dp4a." + types, [](uint32_t a, uint32_t b, uint32_t c) -> uint32_t {
        I128 sum = c;
        for (unsigned k = 0; k < 4; k++)
            sum += part<A>(a, 8, k) * part<B>(b, 8, k);
        return uint32_t(sum);
    });
    expect("dp2a.lo." + types, [](uint32_t a, uint32_t b, uint32_t c) -> uint32_t {
        return uint32_t(c + part<A>(a, 16, 0) * part<B>(b, 8, 0) + part<A>(a, 16, 1) * part<B>(b, 8, 1));
    });
    expect("dp2a.hi." + types, [](uint32_t a, uint32_t b, uint32_t c) -> uint32_t {
        return uint32_t(c + part<A>(a, 16, 0) * part<B>(b, 8, 2) + part<A>(a, 16, 1) * part<B>(b, 8, 3));
    });
}

TEST(DotProduct, OfFourBytesOrTwoHalvesOfEverySignedness)
{
    emu::Device device("8.0");
    dot_products<unsigned, unsigned>("u32.u32");
    dot_products<unsigned, int>("u32.s32");
    dot_products<int, unsigned>("s32.u32");
    dot_products<int, int>("s32.s32");
}

/* ---- carry chains ---- */

template <class D, class... A>
void expect_chain(const std::string &statements, D (*f)(A...))
{
    const std::string registers = "{\n.reg .b32 %x<4>, %y<4>, %z<6>;\n.reg .b64 %w<6>;\n";
    alu::expect_statement(registers + statements + "\n}", std::function<D(A...)>(f), alu::inputs<A...>(), "sm_80");
}
const std::string split = "mov.b64 {%x0, %x1}, %a; mov.b64 {%y0, %y1}, %b;\n";

TEST(CarryChain, ASumOfTwoWordsAndItsCarry)
{
    emu::Device device("8.0");
    for (std::string t : {"u32", "s32"}) {
        const std::string sum = split + "add.cc." + t + " %z0, %x0, %y0; addc.cc." + t + " %z1, %x1, %y1;\n";
        expect_chain(
            sum + "mov.b64 %d, {%z0, %z1};", +[](uint64_t a, uint64_t b) -> uint64_t { return a + b; });
        expect_chain(
            sum + "addc." + t + " %d, 0, 0;",
            +[](uint64_t a, uint64_t b) -> uint32_t { return (U128(a) + U128(b)) >> 64 != 0; });
    }
    for (std::string t : {"u64", "s64"})
        expect_chain(
            "add.cc." + t + " %w0, %a, %b; addc.cc." + t + " %w1, %c, %e; addc." + t + " %d, %w1, 0;",
            +[](uint64_t a, uint64_t b, uint64_t c, uint64_t e) -> uint64_t {
                const U128 low = U128(a) + b, high = U128(c) + e + (low >> 64);
                return uint64_t(high) + uint64_t(high >> 64);
            });
}

TEST(CarryChain, ADifferenceOfTwoWordsAndItsBorrow)
{
    emu::Device device("8.0");
    for (std::string t : {"u32", "s32"}) {
        const std::string difference = split + "sub.cc." + t + " %z0, %x0, %y0; subc.cc." + t + " %z1, %x1, %y1;\n";
        expect_chain(
            difference + "mov.b64 %d, {%z0, %z1};", +[](uint64_t a, uint64_t b) -> uint64_t { return a - b; });
        expect_chain(
            difference + "subc." + t + " %d, 0, 0;",
            +[](uint64_t a, uint64_t b) -> uint32_t { return a < b ? 0xffffffff : 0; });
    }
    for (std::string t : {"u64", "s64"})
        expect_chain(
            "sub.cc." + t + " %w0, %a, %b; subc.cc." + t + " %w1, %c, %e; subc." + t + " %d, %w1, 0;",
            +[](uint64_t a, uint64_t b, uint64_t c, uint64_t e) -> uint64_t {
                const I128 high = I128(c) - I128(e) - (a < b);
                return uint64_t(high) - (high < 0);
            });
}

/* A product of two 64-bit numbers from 32-bit words, the way it was written before there were 64-bit multipliers. */
TEST(CarryChain, ALongProduct)
{
    emu::Device device("8.0");
    const std::string product = split + "mul.lo.u32 %z0, %x0, %y0; mul.hi.u32 %z1, %x0, %y0;\n"
                                        "mad.lo.cc.u32 %z1, %x0, %y1, %z1; madc.hi.u32 %z2, %x0, %y1, 0;\n"
                                        "mad.lo.cc.u32 %z1, %x1, %y0, %z1; madc.hi.cc.u32 %z2, %x1, %y0, %z2;\n"
                                        "addc.u32 %z3, 0, 0;\n"
                                        "mad.lo.cc.u32 %z2, %x1, %y1, %z2; madc.hi.u32 %z3, %x1, %y1, %z3;\n";
    expect_chain(
        product + "mov.b64 %d, {%z0, %z1};", +[](uint64_t a, uint64_t b) -> uint64_t { return a * b; });
    expect_chain(
        product + "mov.b64 %d, {%z2, %z3};",
        +[](uint64_t a, uint64_t b) -> uint64_t { return uint64_t(U128(a) * b >> 64); });
}

TEST(CarryChain, EveryFormOfMultiplyAndAdd)
{
    emu::Device device("8.0");
    expect_chain(
        "mad.lo.cc.u64 %w0, %a, %b, %c; madc.hi.u64 %d, %a, %b, %e;",
        +[](uint64_t a, uint64_t b, uint64_t c, uint64_t e) -> uint64_t {
            return high64(a, b) + e + uint64_t((U128(a * b) + c) >> 64);
        });
    expect_chain(
        "mad.hi.cc.s64 %w0, %a, %b, %c; madc.lo.cc.u64 %w1, %a, %b, %e; madc.lo.s64 %d, %w0, %w0, %w1;",
        +[](uint64_t a, uint64_t b, uint64_t c, uint64_t e) -> uint64_t {
            const uint64_t upper = uint64_t(high(int64_t(a), int64_t(b)));
            const U128 w0 = U128(upper) + c, w1 = U128(a * b) + e + (w0 >> 64);
            return uint64_t(w0) * uint64_t(w0) + uint64_t(w1) + uint64_t(w1 >> 64);
        });
    expect_chain(
        "mad.hi.cc.s32 %z0, %a, %b, %c; madc.hi.cc.s32 %z1, %a, %b, %e; madc.lo.cc.s32 %z2, %a, %b, %z0;\n"
        "addc.u32 %z3, %z1, %z2; mov.b32 %d, %z3;",
        +[](int32_t a, int32_t b, uint32_t c, uint32_t e) -> uint32_t {
            const uint32_t upper = uint32_t(int64_t(a) * b >> 32), lower = uint32_t(a) * uint32_t(b);
            const uint64_t z0 = uint64_t(upper) + c, z1 = uint64_t(upper) + e + (z0 >> 32);
            const uint64_t z2 = uint64_t(lower) + uint32_t(z0) + (z1 >> 32);
            return uint32_t(z1) + uint32_t(z2) + uint32_t(z2 >> 32);
        });
}

TEST(CarryChain, EveryLaneHasAFlagOfItsOwn)
{
    emu::Device device("8.0");
    expect_chain(
        ".reg .pred %p; setp.lt.s32 %p, %a, 0; add.cc.u32 %z0, %b, %b;\n"
        "@%p sub.cc.u32 %z0, %b, %c;\n"
        "addc.u32 %d, %c, 0;",
        +[](int32_t a, uint32_t b, uint32_t c) -> uint32_t { return c + (a < 0 ? b < c : b >> 31); });
}

/* ---- operands ---- */

TEST(Operands, TheDestinationMayBeASource)
{
    emu::Device device("8.0");
    const auto in = alu::inputs<uint32_t, uint32_t>();
    alu::expect_statement("add.u32 %a, %a, %b;\nsub.u32 %b, %a, %b;\nmad.lo.u32 %a, %a, %a, %a;\nadd.u32 %d, %a, %b;",
                          std::function([](uint32_t a, uint32_t b) -> uint32_t {
                              const uint32_t sum = a + b;
                              return sum * sum + sum + a;
                          }),
                          in, "sm_80");
}

TEST(Operands, AnUnknownTypeIsRefusedByName)
{
    emu::Device device("8.0");
    for (std::string name : {"add.u8", "neg.u32", "mul.u32", "mul.wide.u64", "mad.sat.s32", "sub.u16x2", "addc.u16"}) {
        const bool unary = name == "neg.u32";
        const std::string statement = name + (unary ? " %d, %a;" : " %d, %a, %b;");
        emu::Module m(emu::op_module(statement, "b32", {"b32", "b32"}), false);
        EXPECT_EQ(CUDA_ERROR_INVALID_PTX, m.result) << name;
        if (emu::Driver::get().emulated()) {
            EXPECT_NE(std::string::npos, m.log.find(name)) << m.log;
        }
    }
}

} // namespace
