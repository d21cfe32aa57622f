/* Bitwise logic, shifts, permutes and bit fields, mostly against formulas that go bit by bit. */
#include "test/alu.h"

using alu::expect;

namespace
{

template <class T>
constexpr unsigned width = sizeof(T) * 8;

template <class T>
std::string op(const char *name, const char *kind = "b")
{
    return std::string(name) + "." + kind + std::to_string(width<T>);
}
template <class T>
bool bit(T v, unsigned k)
{
    return std::make_unsigned_t<T>(v) >> k & 1;
}
/* The number whose bit k is f(k). */
template <class T, class F>
T bits(F f)
{
    using U = std::make_unsigned_t<T>;
    U v = 0;
    for (unsigned k = 0; k < width<T>; k++)
        v = U(v | U(f(k) ? 1 : 0) << k);
    return T(v);
}

template <class T>
class Bits : public ::testing::Test
{
};
using Types = ::testing::Types<uint16_t, uint32_t, uint64_t>;
TYPED_TEST_SUITE(Bits, Types);

template <class T>
class Field : public ::testing::Test
{
};
using FieldTypes = ::testing::Types<uint32_t, uint64_t>;
TYPED_TEST_SUITE(Field, FieldTypes);

TYPED_TEST(Bits, AndOrXorNot)
{
    using T = TypeParam;
    emu::Device device("8.0");
    expect(op<T>("and"), [](T a, T b) -> T { return bits<T>([=](unsigned k) { return bit(a, k) && bit(b, k); }); });
    expect(op<T>("or"), [](T a, T b) -> T { return bits<T>([=](unsigned k) { return bit(a, k) || bit(b, k); }); });
    expect(op<T>("xor"), [](T a, T b) -> T { return bits<T>([=](unsigned k) { return bit(a, k) != bit(b, k); }); });
    expect(op<T>("not"), [](T a) -> T { return bits<T>([=](unsigned k) { return !bit(a, k); }); });
    expect(op<T>("cnot"), [](T a) -> T { return a == 0 ? 1 : 0; });
}

TYPED_TEST(Bits, ShiftsOfTheWidthAndBeyondShiftEverythingOut)
{
    using T = TypeParam;
    using S = std::make_signed_t<T>;
    emu::Device device("8.0");
    expect(op<T>("shl"),
           [](T a, uint32_t n) -> T { return bits<T>([=](unsigned k) { return k >= n && bit(a, k - n); }); });
    auto right = [](T a, uint32_t n) -> T {
        return bits<T>([=](unsigned k) { return uint64_t(k) + n < width<T> && bit(a, k + n); });
    };
    expect(op<T>("shr"), right);
    expect(op<T>("shr", "u"), right);
    expect(op<T>("shr", "s"),
           [](S a, uint32_t n) -> S { /* the sign goes on for ever */
                                      return bits<S>([=](unsigned k) {
                                          return bit(a, unsigned(std::min(uint64_t(k) + n, uint64_t(width<T> - 1))));
                                      });
           });
}

TEST(FunnelShift, OfTwoRegistersWrapsOrClampsTheCount)
{
    emu::Device device("8.0");
    auto pair_bit = [](uint32_t a, uint32_t b, unsigned k) { return k < 32 ? bit(a, k) : k < 64 && bit(b, k - 32); };
    for (bool clamp : {false, true}) {
        auto count = [=](uint32_t n) { return clamp ? std::min(n, 32u) : n % 32; };
        const std::string mode = clamp ? ".clamp.b32" : ".wrap.b32";
        expect("shf.l" + mode, [=](uint32_t a, uint32_t b, uint32_t n) -> uint32_t {
            return bits<uint32_t>([=](unsigned k) { return pair_bit(a, b, 32 + k - count(n)); });
        });
        expect("shf.r" + mode, [=](uint32_t a, uint32_t b, uint32_t n) -> uint32_t {
            return bits<uint32_t>([=](unsigned k) { return pair_bit(a, b, k + count(n)); });
        });
    }
}

/* ---- lop3 ---- */

TEST(Lop3, EveryTableIsLookedUpBitByBit)
{
    emu::Device device("8.0");
    const auto in = alu::inputs<uint32_t, uint32_t, uint32_t>();
    for (unsigned table = 0; table < 256; table++)
        alu::expect_statement("lop3.b32 %d, %a, %b, %c, " + std::to_string(table) + ";",
                              std::function([=](uint32_t a, uint32_t b, uint32_t c) -> uint32_t {
                                  return bits<uint32_t>([=](unsigned k) {
                                      return table >> (4 * bit(a, k) + 2 * bit(b, k) + bit(c, k)) & 1;
                                  });
                              }),
                              in, "sm_80");
}

TEST(Lop3, SourcesMayBeImmediates)
{
    emu::Device device("8.0");
    const auto in = std::tuple(std::get<0>(alu::inputs<uint32_t>()));
    alu::expect_statement("lop3.b32 %d, %a, 0x0f0f0f0f, 0x12345678, 0xca;", /* a ? b : c */
                          std::function([](uint32_t a) -> uint32_t { return (a & 0x0f0f0f0f) | (~a & 0x12345678); }),
                          in, "sm_80");
    alu::expect_statement("lop3.b32 %d, 0xffff0000, %a, -2, 0x80;",
                          std::function([](uint32_t a) -> uint32_t { return a & 0xffff0000; }), in, "sm_80");
}

TEST(Lop3, ThePredicateTellsWhetherAnyBitIsSet)
{
    emu::Device device("8.0");
    const auto in = alu::inputs<uint32_t, uint32_t, uint32_t, uint32_t>();
    const std::string before = "{\n.reg .pred %g, %q;\n.reg .b32 %x;\nsetp.ne.u32 %q, %e, 0;\n",
                      after = "\nselp.u32 %d, 1, 0, %g;\n}";
    using F = std::function<uint32_t(uint32_t, uint32_t, uint32_t, uint32_t)>;
    auto both = [](uint32_t a, uint32_t b, uint32_t c) { return (a & b & c) != 0; };
    alu::expect_statement(before + "lop3.or.b32 %x|%g, %a, %b, %c, 0x80, %q;" + after,
                          F([=](uint32_t a, uint32_t b, uint32_t c, uint32_t e) { return both(a, b, c) || e; }), in,
                          "sm_80");
    alu::expect_statement(before + "lop3.and.b32 _|%g, %a, %b, %c, 0x80, !%q;" + after,
                          F([=](uint32_t a, uint32_t b, uint32_t c, uint32_t e) { return both(a, b, c) && !e; }), in,
                          "sm_80");
    alu::expect_statement(before + "lop3.or.b32 %d|%g, %a, %b, %c, 0x96, %q;\n}",
                          F([=](uint32_t a, uint32_t b, uint32_t c, uint32_t) { return a ^ b ^ c; }), in, "sm_80");
}

/* ---- predicates ---- */

TEST(Predicates, AndOrXorNotAndMovTakeNegatedSources)
{
    emu::Device device("8.0");
    const auto in = alu::inputs<uint32_t, uint32_t>();
    struct Case {
        const char *statement;
        bool (*f)(bool, bool);
    };
    const Case cases[] = {
        {"and.pred %r, %p1, %p2;", [](bool a, bool b) { return a && b; }},
        {"or.pred %r, %p1, %p2;", [](bool a, bool b) { return a || b; }},
        {"xor.pred %r, %p1, %p2;", [](bool a, bool b) { return a != b; }},
        {"and.pred %r, !%p1, %p2;", [](bool a, bool b) { return !a && b; }},
        {"or.pred %r, %p1, !%p2;", [](bool a, bool b) { return a || !b; }},
        {"xor.pred %r, !%p1, !%p2;", [](bool a, bool b) { return a != b; }},
        {"and.pred %r, %p1, 1;", [](bool a, bool) { return a; }},
        {"or.pred %r, 0, %p2;", [](bool, bool b) { return b; }},
        {"not.pred %r, %p1;", [](bool a, bool) { return !a; }},
        {"not.pred %r, !%p2;", [](bool, bool b) { return b; }},
        {"mov.pred %r, %p1;", [](bool a, bool) { return a; }},
        {"mov.pred %r, !%p1;", [](bool a, bool) { return !a; }},
        {"mov.pred %r, 1;", [](bool, bool) { return true; }},
        {"mov.pred %r, 0;", [](bool, bool) { return false; }},
        {"mov.pred %r, %p1;\n@%p2 not.pred %r, %r;", [](bool a, bool b) { return b ? !a : a; }},
        {"mov.pred %r, %p2;\n@!%p1 xor.pred %r, %r, 1;", [](bool a, bool b) { return a ? b : !b; }},
    };
    for (const Case &c : cases)
        alu::expect_statement(
            std::string("{\n.reg .pred %p1, %p2, %r;\nsetp.lt.s32 %p1, %a, 0;\nsetp.lt.s32 %p2, %b, 0;\n") +
                c.statement + "\nselp.b32 %d, 1, 0, %r;\n}",
            std::function([&](uint32_t a, uint32_t b) -> uint32_t { return c.f(int32_t(a) < 0, int32_t(b) < 0); }), in,
            "sm_80");
}

/* ---- prmt ---- */

uint32_t byte(uint32_t a, uint32_t b, unsigned k) /* of the eight bytes b:a */
{
    return (k < 4 ? a >> (8 * k) : b >> (8 * (k - 4))) & 0xff;
}
uint32_t from_bytes(uint32_t b3, uint32_t b2, uint32_t b1, uint32_t b0)
{
    return b3 << 24 | b2 << 16 | b1 << 8 | b0;
}

TEST(Prmt, ANibbleOfTheSelectorPicksAByteOrItsSign)
{
    emu::Device device("8.0");
    expect("prmt.b32", [](uint32_t a, uint32_t b, uint32_t s) -> uint32_t {
        uint32_t v[4];
        for (unsigned k = 0; k < 4; k++) {
            const unsigned nibble = s >> (4 * k) & 15;
            const uint32_t x = byte(a, b, nibble % 8);
            v[k] = nibble < 8 ? x : x >= 128 ? 255 : 0;
        }
        return from_bytes(v[3], v[2], v[1], v[0]);
    });
}

TEST(Prmt, TheSpecialModes)
{
    emu::Device device("8.0");
    using B = unsigned;
    auto mode = [](const char *name,
                   auto pick) { /* pick(n, k): which of the eight bytes is byte k where the selector is n */
                                expect(std::string("prmt.b32.") + name,
                                       [=](uint32_t a, uint32_t b, uint32_t s) -> uint32_t {
                                           const B n = s & 3;
                                           return from_bytes(byte(a, b, pick(n, 3)), byte(a, b, pick(n, 2)),
                                                             byte(a, b, pick(n, 1)), byte(a, b, pick(n, 0)));
                                       });
    };
    mode("f4e", [](B n, B k) { return n + k; });
    mode("b4e", [](B n, B k) { return (n + 8 - k) % 8; });
    mode("rc8", [](B n, B) { return n; });
    mode("ecl", [](B n, B k) { return std::max(n, k); });
    mode("ecr", [](B n, B k) { return std::min(n, k); });
    mode("rc16", [](B n, B k) { return 2 * (n % 2) + k % 2; });
}

/* ---- counting and finding ---- */

template <class T>
uint32_t highest(T a, bool value) /* the highest bit of that value, or all ones */
{
    for (unsigned k = width<T>; k-- > 0;)
        if (bit(a, k) == value)
            return k;
    return 0xffffffff;
}

TYPED_TEST(Field, CountingAndReversing)
{
    using T = TypeParam;
    emu::Device device("8.0");
    expect(op<T>("popc"), [](T a) -> uint32_t {
        uint32_t n = 0;
        for (unsigned k = 0; k < width<T>; k++)
            n += bit(a, k);
        return n;
    });
    expect(op<T>("clz"), [](T a) -> uint32_t { return width<T> - 1 - highest(a, true); });
    expect(op<T>("brev"), [](T a) -> T { return bits<T>([=](unsigned k) { return bit(a, width<T> - 1 - k); }); });
}

TYPED_TEST(Field, FindingTheHighestBitThatIsNotTheSign)
{
    using T = TypeParam;
    using S = std::make_signed_t<T>;
    emu::Device device("8.0");
    auto from_top = [](uint32_t at) { return at == 0xffffffff ? at : width<T> - 1 - at; };
    auto find = [](T a) -> uint32_t { return highest(a, true); };
    auto find_signed = [](S a) -> uint32_t { return highest(a, a >= 0); };
    expect(op<T>("bfind", "u"), find);
    expect(op<T>("bfind", "s"), find_signed);
    expect(op<T>("bfind.shiftamt", "u"), [=](T a) -> uint32_t { return from_top(find(a)); });
    expect(op<T>("bfind.shiftamt", "s"), [=](S a) -> uint32_t { return from_top(find_signed(a)); });
}

TEST(Fns, FindsTheNthSetBitUpwardsOrDownwards)
{
    emu::Device device("8.0");
    std::function<uint32_t(uint32_t, uint32_t, int32_t)> f = [](uint32_t mask, uint32_t base,
                                                                int32_t offset) -> uint32_t {
        std::vector<uint32_t> set; /* the set bits from `base` in the direction asked for */
        for (int at = int(base); at >= 0 && at<32; at += offset> 0 ? 1 : -1)
            if (bit(mask, unsigned(at)))
                set.push_back(uint32_t(at));
        if (offset == 0)
            return bit(mask, base) ? base : 0xffffffff;
        const uint64_t nth = uint64_t(offset > 0 ? int64_t(offset) : -int64_t(offset)) - 1;
        return nth < set.size() ? set[nth] : 0xffffffff;
    };
    auto in = alu::inputs<uint32_t, uint32_t, int32_t>();
    for (size_t k = 0; k < std::get<0>(in).size(); k++) {
        std::get<1>(in)[k] %= 32; /* beyond, nothing is promised */
        if (k % 2)
            std::get<2>(in)[k] %= 32;
    }
    alu::expect_statement("fns.b32 %d, %a, %b, %c;", f, in, "sm_80");
    const auto masks = std::tuple(std::get<0>(in));
    alu::expect_statement("fns.b32 %d, %a, 3, -2;", std::function([=](uint32_t m) { return f(m, 3, -2); }), masks,
                          "sm_80");
}

/* ---- bit fields ---- */

/* Positions and lengths from registers count modulo 256; as immediates they must be less. */
TYPED_TEST(Field, ExtractsAndExtendsAFieldThatMayRunOverTheTop)
{
    using T = TypeParam;
    using S = std::make_signed_t<T>;
    emu::Device device("8.0");
    auto field = [](T a, uint32_t position, uint32_t length) -> T {
        const unsigned at = position & 0xff, n = length & 0xff;
        return bits<T>([=](unsigned k) { return k < n && at + k < width<T> && bit(a, at + k); });
    };
    auto signed_field = [](S a, uint32_t position, uint32_t length) -> S {
        const unsigned at = position & 0xff, n = length & 0xff;
        const bool sign = n != 0 && bit(a, std::min(at + n - 1, width<T> - 1));
        return bits<S>([=](unsigned k) { return k < n && at + k < width<T> ? bit(a, at + k) : sign; });
    };
    alu::expect_registers(op<T>("bfe", "u"), field);
    alu::expect_registers(op<T>("bfe", "s"), signed_field);
    const auto a = alu::inputs<T>();
    const auto signed_a = alu::inputs<S>();
    for (auto [at, n] : {std::pair(0u, 1u), {4, 8}, {31, 1}, {31, 2}, {0, 64}, {63, 255}, {255, 255}, {5, 0}}) {
        const std::string places = " %d, %a, " + std::to_string(at) + ", " + std::to_string(n) + ";";
        alu::expect_statement(op<T>("bfe", "u") + places,
                              std::function([=, p = at, q = n](T v) -> T { return field(v, p, q); }), a, "sm_80");
        alu::expect_statement(op<T>("bfe", "s") + places,
                              std::function([=, p = at, q = n](S v) -> S { return signed_field(v, p, q); }), signed_a,
                              "sm_80");
    }
}

TYPED_TEST(Field, InsertsAFieldThatMayRunOverTheTop)
{
    using T = TypeParam;
    emu::Device device("8.0");
    auto insert = [](T a, T b, uint32_t position, uint32_t length) -> T {
        const unsigned at = position & 0xff, n = length & 0xff;
        return bits<T>([=](unsigned k) { return k >= at && k < at + n ? bit(a, k - at) : bit(b, k); });
    };
    alu::expect_registers(op<T>("bfi"), insert);
    const auto in = alu::inputs<T, T>();
    for (auto [at, n] : {std::pair(0u, 1u), {4, 8}, {31, 1}, {31, 2}, {0, 64}, {63, 255}, {255, 255}, {5, 0}})
        alu::expect_statement(op<T>("bfi") + " %d, %a, %b, " + std::to_string(at) + ", " + std::to_string(n) + ";",
                              std::function([=, p = at, q = n](T x, T y) -> T { return insert(x, y, p, q); }), in,
                              "sm_80");
}

TEST(Masks, BmskAndSzextWrapOrClampTheirCounts)
{
    emu::Device device("8.0");
    expect("bmsk.wrap.b32", [](uint32_t at, uint32_t n) -> uint32_t {
        return bits<uint32_t>([=](unsigned k) { return k >= at % 32 && k < at % 32 + n % 32; });
    });
    expect("bmsk.clamp.b32", [](uint32_t at, uint32_t n) -> uint32_t {
        return bits<uint32_t>([=](unsigned k) { return k >= at && k < uint64_t(at) + n; });
    });
    auto extend = [](uint32_t a, uint32_t n, bool sign) {
        const bool top = sign && n != 0 && bit(a, n - 1);
        return bits<uint32_t>([=](unsigned k) { return k < n ? bit(a, k) : top; });
    };
    for (bool sign : {false, true}) {
        const std::string type = sign ? "s32" : "u32";
        expect("szext.wrap." + type, [=](uint32_t a, uint32_t n) -> uint32_t { return extend(a, n % 32, sign); });
        expect("szext.clamp." + type,
               [=](uint32_t a, uint32_t n) -> uint32_t { return extend(a, std::min(n, 32u), sign); });
    }
}

TEST(Video, AbsoluteDifferencesOfBytesAndHalves)
{
    emu::Device device("8.0");
    auto distance = [](uint32_t a, uint32_t b, unsigned at, unsigned n) -> uint32_t {
        const uint32_t x = a >> at & ((1u << n) - 1), y = b >> at & ((1u << n) - 1);
        return x > y ? x - y : y - x;
    };
    for (unsigned n : {8u, 16u}) {
        const std::string name = n == 8 ? "vabsdiff4.u32.u32.u32" : "vabsdiff2.u32.u32.u32";
        alu::expect_registers(name, [=](uint32_t a, uint32_t b, uint32_t) -> uint32_t {
            uint32_t d = 0;
            for (unsigned at = 0; at < 32; at += n)
                d |= distance(a, b, at, n) << at;
            return d;
        });
        alu::expect_registers(name + ".add", [=](uint32_t a, uint32_t b, uint32_t c) -> uint32_t {
            for (unsigned at = 0; at < 32; at += n)
                c += distance(a, b, at, n);
            return c;
        });
    }
}

TEST(Refused, FormsThatDoNotExist)
{
    emu::Device device("8.0");
    for (const char *statement : {"and.u32 %d, %a, %b;", "shl.u32 %d, %a, %b;", "shf.l.b32 %d, %a, %b, %a;",
                                  "prmt.b32.f8 %d, %a, %b, %a;", "bfe.b32 %d, %a, %b, %a;", "popc.u32 %d, %a;"}) {
        emu::Module m(emu::op_module(statement, "b32", {"b32", "b32"}), false);
        EXPECT_EQ(CUDA_ERROR_INVALID_PTX, m.result) << statement;
    }
}

TEST(Refused, ALookupTableOfMoreThan8Bits)
{
    emu::Device device("8.0");
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "drivers take it, though the manual does not allow it";
    emu::Module m(emu::op_module("lop3.b32 %d, %a, %b, %a, 256;", "b32", {"b32", "b32"}), false);
    EXPECT_EQ(CUDA_ERROR_INVALID_PTX, m.result);
}

/* How debug builds write a bit field of a fresh structure; see build_and in isa/logic.cpp. */
TEST(Logic, aMaskThatKeepsUnknownBitsIsNoUseOfThem)
{
    emu::Device device;
    const std::vector<uint32_t> a{1, 200, 255};
    EXPECT_EQ(a, emu::apply<uint32_t>(
                     "{\n.reg .b32 %u, %v;\nand.b32 %v, %u, -256;\nor.b32 %v, %v, %a;\nand.b32 %d, %v, 255;\n}", "b32",
                     {"b32"}, "sm_80", a));
    if (!emu::Driver::get().emulated())
        return;
    emu::Module m(emu::op_module("{\n.reg .b32 %u;\nand.b32 %d, %u, 255;\n}", "b32", {"b32"}));
    emu::Buffer<uint32_t> in(a), out(3);
    EXPECT_EQ(CUDA_ERROR_LAUNCH_FAILED, emu::launch(m.get("k"), 1, 32, 0, out.p, in.p, 3u));
}

} // namespace
