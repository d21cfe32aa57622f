/* atom and red: every operation and type over edge values, and many threads at one place. */
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "test/ptx_text.h"

namespace
{
template <class To, class From>
To as(From v)
{
    static_assert(sizeof(To) == sizeof(From), "");
    To t;
    memcpy(&t, &v, sizeof t);
    return t;
}

std::string text(size_t n)
{
    return std::to_string(n);
}

/* Every pair of edge values: memory holds one, the operand is the other. */
template <class T>
void pairs(const std::vector<T> &edges, std::vector<T> *a, std::vector<T> *b)
{
    for (T x : edges)
        for (T y : edges) {
            a->push_back(x);
            b->push_back(y);
        }
}

template <class T>
std::vector<T> integers()
{
    using S = std::make_signed_t<T>;
    return {0,
            1,
            2,
            7,
            T(-1),
            T(-2),
            T(std::numeric_limits<S>::max()),
            T(std::numeric_limits<S>::min()),
            T(T(0x5a5a5a5a12345678ull)),
            31};
}

const char *letter(size_t bytes)
{
    return bytes == 2 ? "h" : bytes == 4 ? "r" : "d";
}

enum class Where { global, generic, shared, generic_shared };

/* The address of the place: thread's own element of `a`, or of shared memory that a is copied to before and from after. */
std::string place(Where where, size_t bytes, bool before)
{
    const std::string n = text(bytes), bits = "b" + text(bytes * 8), l = letter(bytes);
    const bool shared = where == Where::shared || where == Where::generic_shared;
    std::string s;
    if (before) {
        s = "mad.lo.u64 %d8, %t, " + n + ", %a;\nmad.lo.u64 %d7, %t, " + n + ", %b;\nmad.lo.u64 %d6, %t, " + n +
            ", %c;\nmov.u64 %d9, %d8;\nld.global." + bits + " %" + l + "1, [%d7];\n";
        if (shared)
            s += "mov.u64 %d9, buffer;\nmad.lo.u64 %d9, %t, " + n + ", %d9;\nld.global." + bits + " %" + l +
                 "2, [%d8];\nst.shared." + bits + " [%d9], %" + l + "2;\n";
        if (where == Where::generic_shared)
            s += "cvta.shared.u64 %d9, %d9;\n";
    } else if (shared) {
        s = std::string(where == Where::shared ? "ld.shared." : "ld.") + bits + " %" + l + "2, [%d9];\nst.global." +
            bits + " [%d8], %" + l + "2;\n";
    }
    return s;
}

const char *space_of(Where where)
{
    return where == Where::global ? ".global" : where == Where::shared ? ".shared" : "";
}

/* atom OP and red OP on every pair, in every space, against a host formula.  `op` is "add.u32"; formula(old, operand) the new value. */
template <class T>
void expect_op(const std::string &op, const std::vector<T> &edges, const std::function<T(T, T)> &formula,
               bool in_shared = true, bool in_global = true)
{
    std::vector<T> a, b;
    pairs(edges, &a, &b);
    const unsigned n = unsigned(a.size());
    for (Where where : {Where::global, Where::generic, Where::shared, Where::generic_shared})
        for (bool red : {false, true}) {
            const bool shared = where == Where::shared || where == Where::generic_shared;
            if (!(shared ? in_shared : in_global) || (red && op.compare(0, 4, "exch") == 0))
                continue;
            const std::string l = letter(sizeof(T)), bits = "b" + text(sizeof(T) * 8);
            std::string s = place(where, sizeof(T), true);
            const std::string form = std::string(red ? "red" : "atom") + space_of(where) + "." + op;
            s += form + " " + (red ? "" : "%" + l + "0, ") + "[%d9], %" + l + "1;\n";
            if (!red)
                s += "st.global." + bits + " [%d6], %" + l + "0;\n";
            s += place(where, sizeof(T), false);
            emu::Buffer<T> da(a), db(b), dc(n);
            dc.zero();
            emu::Text t{s, "", ".shared .align 16 .b8 buffer[8192];\n"};
            SCOPED_TRACE(form);
            ASSERT_CU(emu::run(t, n, da.p, db.p, dc.p));
            const std::vector<T> now = da.get(), old = dc.get();
            for (unsigned k = 0; k < n; k++) {
                ASSERT_EQ(formula(a[k], b[k]), now[k])
                    << form << std::hex << ": " << uint64_t(a[k]) << ", " << uint64_t(b[k]);
                if (!red) {
                    ASSERT_EQ(a[k], old[k]) << form;
                }
            }
        }
}

const std::vector<uint32_t> floats = {0,          0x80000000, 0x3f800000, 0xbf800000, 0x00000001, 0x80000001,
                                      0x007fffff, 0x00800000, 0x80800000, 0x7f7fffff, 0xff7fffff, 0x7f800000,
                                      0xff800000, 0x7fc00000, 0xffc12345, 0x7f800001, 0x4b000001, 0x33800000};

uint32_t flushed(uint32_t x)
{
    return x & 0x7f800000 ? x : x & 0x80000000;
}
uint32_t sum_f32(uint32_t x, uint32_t y)
{
    const float s = as<float>(x) + as<float>(y);
    return s != s ? 0x7fffffff : as<uint32_t>(s);
}

/* f16 and bf16 by their definition, without the emulator's code. */
double value16(uint16_t h, bool bf)
{
    const int mantissa_bits = bf ? 7 : 10, bias = bf ? 127 : 15, top = bf ? 255 : 31;
    const int e = (h & 0x7fff) >> mantissa_bits, m = h & ((1 << mantissa_bits) - 1);
    double v = e == top ? (m ? NAN : INFINITY)
               : e      ? std::ldexp(1 + double(m) / (1 << mantissa_bits), e - bias)
                        : std::ldexp(double(m) / (1 << mantissa_bits), 1 - bias);
    return h & 0x8000 ? -v : v;
}
uint16_t nearest16(double v, bool bf)
{
    if (v != v)
        return 0x7fff;
    uint16_t best = 0;
    const uint16_t infinity = bf ? 0x7f80 : 0x7c00, sign = std::signbit(v) ? 0x8000 : 0;
    const double overflow = std::ldexp(bf ? 511.0 / 256 : 4095.0 / 2048, bf ? 127 : 15);
    v = std::fabs(v);
    if (v >= overflow)
        return sign | infinity;
    unsigned lo = 0, hi = infinity - 1u; /* the largest number that is no more than v */
    while (lo < hi) {
        unsigned mid = (lo + hi + 1) / 2;
        if (value16(uint16_t(mid), bf) <= v)
            lo = mid;
        else
            hi = mid - 1;
    }
    best = uint16_t(lo);
    const double below = value16(best, bf), above = best + 1u == infinity ? 2 * v : value16(uint16_t(best + 1), bf);
    if (v - below > above - v || (v - below == above - v && (best & 1)))
        best++;
    return sign | best;
}
uint16_t sum16(uint16_t x, uint16_t y, bool bf)
{
    return nearest16(value16(x, bf) + value16(y, bf), bf);
}
const std::vector<uint16_t> halves = {0,      0x8000, 0x3c00, 0xbc00, 0x0001, 0x8001, 0x03ff, 0x0400, 0x7bff,
                                      0xfbff, 0x7c00, 0xfc00, 0x7e00, 0xfe01, 0x3c01, 0x1400, 0x6400, 0x5bff};
const std::vector<uint16_t> bfloats = {0,      0x8000, 0x3f80, 0xbf80, 0x0001, 0x8001, 0x007f, 0x0080, 0x7f7f,
                                       0xff7f, 0x7f80, 0xff80, 0x7fc0, 0xffc1, 0x3f81, 0x3b80, 0x4380, 0x42ff};
} // namespace

TEST(Atomic, IntegerAddWrapsAround)
{
    emu::Device device;
    expect_op<uint32_t>("add.u32", integers<uint32_t>(), [](uint32_t x, uint32_t y) { return x + y; });
    expect_op<uint32_t>("add.s32", integers<uint32_t>(), [](uint32_t x, uint32_t y) { return x + y; });
    expect_op<uint64_t>("add.u64", integers<uint64_t>(), [](uint64_t x, uint64_t y) { return x + y; });
}

TEST(Atomic, MinAndMaxCompareAsTheTypeSays)
{
    emu::Device device;
    using i32 = int32_t;
    using i64 = int64_t;
    expect_op<uint32_t>("min.u32", integers<uint32_t>(), [](uint32_t x, uint32_t y) { return std::min(x, y); });
    expect_op<uint32_t>("max.u32", integers<uint32_t>(), [](uint32_t x, uint32_t y) { return std::max(x, y); });
    expect_op<uint32_t>("min.s32", integers<uint32_t>(),
                        [](uint32_t x, uint32_t y) { return uint32_t(std::min(i32(x), i32(y))); });
    expect_op<uint32_t>("max.s32", integers<uint32_t>(),
                        [](uint32_t x, uint32_t y) { return uint32_t(std::max(i32(x), i32(y))); });
    expect_op<uint64_t>("min.u64", integers<uint64_t>(), [](uint64_t x, uint64_t y) { return std::min(x, y); });
    expect_op<uint64_t>("max.u64", integers<uint64_t>(), [](uint64_t x, uint64_t y) { return std::max(x, y); });
    expect_op<uint64_t>("min.s64", integers<uint64_t>(),
                        [](uint64_t x, uint64_t y) { return uint64_t(std::min(i64(x), i64(y))); });
    expect_op<uint64_t>("max.s64", integers<uint64_t>(),
                        [](uint64_t x, uint64_t y) { return uint64_t(std::max(i64(x), i64(y))); });
}

TEST(Atomic, BitOperations)
{
    emu::Device device;
    expect_op<uint32_t>("and.b32", integers<uint32_t>(), [](uint32_t x, uint32_t y) { return x & y; });
    expect_op<uint32_t>("or.b32", integers<uint32_t>(), [](uint32_t x, uint32_t y) { return x | y; });
    expect_op<uint32_t>("xor.b32", integers<uint32_t>(), [](uint32_t x, uint32_t y) { return x ^ y; });
    expect_op<uint64_t>("and.b64", integers<uint64_t>(), [](uint64_t x, uint64_t y) { return x & y; });
    expect_op<uint64_t>("or.b64", integers<uint64_t>(), [](uint64_t x, uint64_t y) { return x | y; });
    expect_op<uint64_t>("xor.b64", integers<uint64_t>(), [](uint64_t x, uint64_t y) { return x ^ y; });
    expect_op<uint32_t>("exch.b32", integers<uint32_t>(), [](uint32_t, uint32_t y) { return y; });
    expect_op<uint64_t>("exch.b64", integers<uint64_t>(), [](uint64_t, uint64_t y) { return y; });
}

TEST(Atomic, IncAndDecWrapAtTheirOperand)
{
    emu::Device device;
    expect_op<uint32_t>("inc.u32", integers<uint32_t>(), [](uint32_t x, uint32_t y) { return x >= y ? 0 : x + 1; });
    expect_op<uint32_t>("dec.u32", integers<uint32_t>(),
                        [](uint32_t x, uint32_t y) { return x == 0 || x > y ? y : x - 1; });
}

TEST(Atomic, AddOfF32FlushesDenormalsInGlobalMemoryOnly)
{
    emu::Device device;
    expect_op<uint32_t>("add.f32", floats, sum_f32, true, false);
    expect_op<uint32_t>(
        "add.f32", floats, [](uint32_t x, uint32_t y) { return flushed(sum_f32(flushed(x), flushed(y))); }, false,
        true);
}

TEST(Atomic, AddOfF64)
{
    emu::Device device;
    std::vector<uint64_t> edges;
    for (double v : {0.0, -0.0, 1.0, -1.0, 5e-324, 1e-310, 2.2250738585072014e-308, 1.7976931348623157e308,
                     -1.7976931348623157e308, double(INFINITY), 1e-16, 3.0})
        edges.push_back(as<uint64_t>(v));
    expect_op<uint64_t>("add.f64", edges,
                        [](uint64_t x, uint64_t y) { return as<uint64_t>(as<double>(x) + as<double>(y)); });
}

TEST(Atomic, AddOf16BitFloatsRoundsOnce)
{
    emu::Device device;
    expect_op<uint16_t>("add.noftz.f16", halves, [](uint16_t x, uint16_t y) { return sum16(x, y, false); });
    expect_op<uint16_t>("add.noftz.bf16", bfloats, [](uint16_t x, uint16_t y) { return sum16(x, y, true); });
    auto twice = [](const std::vector<uint16_t> &v) {
        std::vector<uint32_t> out;
        for (size_t k = 0; k < v.size(); k++)
            out.push_back(v[k] | uint32_t(v[(k * 5 + 3) % v.size()]) << 16);
        return out;
    };
    auto both = [](bool bf) {
        return [bf](uint32_t x, uint32_t y) {
            return sum16(uint16_t(x), uint16_t(y), bf) | uint32_t(sum16(uint16_t(x >> 16), uint16_t(y >> 16), bf))
                                                             << 16;
        };
    };
    expect_op<uint32_t>("add.noftz.f16x2", twice(halves), both(false));
    expect_op<uint32_t>("add.noftz.bf16x2", twice(bfloats), both(true));
}

TEST(Atomic, CompareAndSwapChangesMemoryOnlyWhereItIsEqual)
{
    emu::Device device;
    const std::vector<uint64_t> memory = {0, 1, ~0ull, 0x123456789abcdef0ull, 0x100000000ull},
                                compare = {0, 2, ~0ull, 0x123456789abcdef0ull, 0};
    for (const char *form : {"atom.global.cas.b16 %h0, [%d8], %h1, %h2;", "atom.cas.b32 %r0, [%d8], %r1, %r2;",
                             "atom.global.cas.b64 %d0, [%d8], %d1, %d2;"}) {
        const unsigned bytes = strstr(form, "b16") ? 2 : strstr(form, "b32") ? 4 : 8;
        const uint64_t mask = bytes == 8 ? ~0ull : (1ull << bytes * 8) - 1;
        const std::string b = "b" + text(bytes * 8), l = letter(bytes);
        emu::Buffer<uint64_t> a(memory), c(compare), out(memory.size());
        out.zero();
        ASSERT_CU(emu::run({"mad.lo.u64 %d8, %t, 8, %a;\nmad.lo.u64 %d7, %t, 8, %b;\nmad.lo.u64 %d6, %t, 8, %c;\n"
                            "ld.global." +
                            b + " %" + l + "1, [%d7];\nmov." + b + " %" + l + "2, 77;\n" + form + "\nst.global." + b +
                            " [%d6], %" + l + "0;"},
                           unsigned(memory.size()), a.p, c.p, out.p));
        for (size_t k = 0; k < memory.size(); k++) {
            EXPECT_EQ(memory[k] & mask, out.get()[k]) << form;
            const bool equal = ((memory[k] ^ compare[k]) & mask) == 0;
            EXPECT_EQ(equal ? (memory[k] & ~mask) | 77 : memory[k], a.get()[k]) << form;
        }
    }
}

TEST(Atomic, SixteenBytesAtOnce)
{
    emu::Device device;
    emu::Buffer<uint64_t> a(std::vector<uint64_t>{1, 2}), b(6);
    emu::Text t{"mov.b128 %q1, {%d0, %d1};\n", "", ".reg .b128 %q<4>;\n"};
    t.body = "mov.u64 %d0, 1;\nmov.u64 %d1, 2;\nmov.u64 %d2, 3;\nmov.b128 %q1, {%d0, %d1};\nmov.b128 %q2, {%d0, %d2};\n"
             "atom.global.cas.b128 %q0, [%a], %q2, %q2;\nst.global.b128 [%b], %q0;\n"
             "atom.global.cas.b128 %q0, [%a], %q1, %q2;\nst.global.b128 [%b+16], %q0;\n"
             "atom.global.exch.b128 %q0, [%a], %q1;\nst.global.b128 [%b+32], %q0;\n";
    ASSERT_CU(emu::run(t, 1, a.p, b.p));
    EXPECT_EQ((std::vector<uint64_t>{1, 2, 1, 2, 1, 3}), b.get());
    EXPECT_EQ((std::vector<uint64_t>{1, 2}), a.get());
}

TEST(Atomic, VectorsOfFloats)
{
    emu::Device device;
    struct Case {
        const char *type;
        unsigned n, bytes;
    };
    for (const Case &c :
         {Case{"f32", 2, 4}, Case{"f32", 4, 4}, Case{"f16", 2, 2}, Case{"f16", 4, 2}, Case{"f16", 8, 2},
          Case{"bf16", 2, 2}, Case{"bf16", 8, 2}, Case{"f16x2", 2, 4}, Case{"f16x2", 4, 4}, Case{"bf16x2", 4, 4}})
        for (const char *op : {"add", "min", "max"}) {
            const bool is_f32 = c.bytes == 4 && !strchr(c.type, 'x'), bf = c.type[0] == 'b';
            if (is_f32 && op[0] != 'a')
                continue;
            const size_t n16 = c.n * c.bytes / 2;
            const std::vector<uint16_t> x = bf ? bfloats : halves;
            std::vector<uint16_t> a(n16 * 32), b(n16 * 32), expected(n16 * 32);
            for (size_t k = 0; k < a.size(); k++) {
                a[k] = x[k % x.size()];
                b[k] = x[(k / x.size() + k * 7 + 1) % x.size()];
                const double u = value16(a[k], bf), v = value16(b[k], bf);
                const bool take_b = u != u || (v == v && (op[1] == 'i' ? v < u || (v == u && std::signbit(v))
                                                                       : v > u || (v == u && !std::signbit(v))));
                expected[k] = op[0] == 'a' ? sum16(a[k], b[k], bf) : u != u && v != v ? 0x7fff : take_b ? b[k] : a[k];
            }
            if (is_f32)
                for (size_t k = 0; k < a.size(); k += 2) {
                    uint32_t u = floats[k / 2 % floats.size()], v = floats[(k / 2 * 5 + 1) % floats.size()];
                    uint32_t s = flushed(sum_f32(flushed(u), flushed(v)));
                    memcpy(&a[k], &u, 4);
                    memcpy(&b[k], &v, 4);
                    memcpy(&expected[k], &s, 4);
                }
            const std::string l = c.bytes == 2 ? "h" : "r", bits = c.bytes == 2 ? "b16" : "b32";
            auto regs = [&](const std::string &r) {
                std::string s;
                for (unsigned k = 0; k < c.n; k++)
                    s += (k ? ", %" : "%") + r + text(k);
                return "{" + s + "}";
            };
            for (bool red : {false, true}) {
                const size_t bytes = c.n * c.bytes;
                std::string s = "mad.lo.u64 %d8, %t, " + text(bytes) + ", %a;\nmad.lo.u64 %d7, %t, " + text(bytes) +
                                ", %b;\nmad.lo.u64 %d6, %t, " + text(bytes) + ", %c;\n";
                for (unsigned k = 0; k < c.n; k++)
                    s += "ld.global." + bits + " %y" + text(k) + ", [%d7+" + text(k * c.bytes) + "];\n";
                const std::string form = std::string(red ? "red" : "atom") + ".global." + op +
                                         (is_f32 ? "" : ".noftz") + ".v" + text(c.n) + "." + c.type;
                s += form + " " + (red ? "" : regs("z") + ", ") + "[%d8], " + regs("y") + ";\n";
                for (unsigned k = 0; k < c.n && !red; k++)
                    s += "st.global." + bits + " [%d6+" + text(k * c.bytes) + "], %z" + text(k) + ";\n";
                emu::Buffer<uint16_t> da(a), db(b), dc(a.size());
                dc.zero();
                emu::Text t{s, "", ".reg .b" + text(c.bytes * 8) + " %y<8>, %z<8>;\n"};
                SCOPED_TRACE(form);
                ASSERT_CU(emu::run(t, 32, da.p, db.p, dc.p));
                ASSERT_EQ(expected, da.get()) << form;
                if (!red) {
                    ASSERT_EQ(a, dc.get()) << form;
                }
            }
        }
}

TEST(Atomic, OrdersScopesAndHintsAreAccepted)
{
    emu::Device device;
    std::vector<std::string> forms;
    for (const char *scope : {".cta", ".cluster", ".gpu", ".sys"})
        for (const char *sem : {"", ".relaxed", ".acquire", ".release", ".acq_rel"})
            forms.push_back(std::string("atom") + sem + scope + ".global.add.u32 %r0, [%a], 1;");
    for (const char *sem : {"", ".relaxed", ".release"})
        forms.push_back(std::string("red") + sem + ".gpu.global.add.u32 [%a], 1;");
    forms.push_back(
        "createpolicy.fractional.L2::evict_first.b64 %d0;\natom.global.add.L2::cache_hint.u32 %r0, [%a], 1, %d0;");
    forms.push_back(
        "createpolicy.fractional.L2::evict_first.b64 %d0;\nred.global.add.L2::cache_hint.u32 [%a], 1, %d0;");
    forms.push_back("atom.add.u32 %r0, [%a], 1;");
    for (const std::string &form : forms) {
        emu::Buffer<uint32_t> a(std::vector<uint32_t>{5});
        SCOPED_TRACE(form);
        ASSERT_CU(emu::run({form}, 40, a.p));
        EXPECT_EQ(45u, a.get()[0]) << form;
    }
}

TEST(Atomic, ThreadsOfManyBlocksMeetAtOnePlace)
{
    emu::Device device;
    const unsigned blocks = 37, threads = 96, n = blocks * threads;
    emu::Buffer<uint64_t> a(8), seen(n);
    a.put({0, 0, ~0ull, 0, 0, 0, 0, 0});
    seen.zero();
    /* everyone gets a number of its own, and marks it */
    ASSERT_CU(emu::run({"mov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %ntid.x;\nmad.lo.u32 %r3, %r1, %r2, %i;\n"
                        "cvt.u64.u32 %d3, %r3;\natom.global.add.u64 %d0, [%a], 1;\nred.global.max.u64 [%a+8], %d3;\n"
                        "red.global.min.u64 [%a+16], %d3;\nred.global.xor.b64 [%a+24], %d3;\n"
                        "cvt.rn.f32.u32 %f0, %r3;\nred.global.add.f32 [%a+32], 0f3f800000;\n"
                        "atom.global.inc.u32 %r4, [%a+40], 9;\n"
                        "mad.lo.u64 %d1, %d0, 8, %b;\nred.global.add.u64 [%d1], 1;"},
                       threads, a.p, seen.p, 0, 0, blocks));
    const std::vector<uint64_t> v = a.get();
    EXPECT_EQ(n, v[0]);
    EXPECT_EQ(n - 1, v[1]);
    EXPECT_EQ(0u, v[2]);
    uint64_t parity = 0;
    for (unsigned k = 0; k < n; k++)
        parity ^= k;
    EXPECT_EQ(parity, v[3]);
    EXPECT_EQ(float(n), as<float>(uint32_t(v[4])));
    EXPECT_EQ(n % 10, v[5]);
    EXPECT_EQ(std::vector<uint64_t>(n, 1), seen.get());
}

TEST(Atomic, ALockByCompareAndSwapLetsOneThreadInAtATime)
{
    emu::Device device;
    const unsigned blocks = 8, threads = 40;
    emu::Buffer<uint32_t> a(4);
    a.zero();
    /* a spin lock around a plain load, add and store; lanes of one warp compete as well */
    emu::Text t{"SPIN:\natom.acquire.gpu.global.cas.b32 %r0, [%a], 0, 1;\nsetp.ne.u32 %p0, %r0, 0;\n@%p0 bra SPIN;\n"
                "ld.global.u32 %r1, [%a+4];\nadd.u32 %r1, %r1, 1;\nst.global.u32 [%a+4], %r1;\n"
                "atom.release.gpu.global.exch.b32 %r0, [%a], 0;"};
    ASSERT_CU(emu::run(t, threads, a.p, 0, 0, 0, blocks));
    EXPECT_EQ(blocks * threads, a.get()[1]);
}

TEST(Atomic, AWarpThatWaitsForAFlagLetsTheOthersWork)
{
    emu::Device device;
    for (const char *load : {"ld.volatile.shared.u32", "ld.acquire.cta.shared.u32", "ld.relaxed.cta.shared.u32"}) {
        emu::Buffer<uint32_t> a(1);
        a.zero();
        emu::Text t{
            "setp.ne.u32 %p0, %i, 0;\n@%p0 bra READY;\nst.shared.u32 [data], 0;\nst.relaxed.cta.shared.u32 [flag], 0;\n"
            "READY:\nbar.sync 0;\nsetp.ge.u32 %p0, %i, 32;\n@%p0 bra WRITE;\nWAIT:\n" +
                std::string(load) +
                " %r0, [flag];\nsetp.eq.u32 %p0, %r0, 0;\n@%p0 bra WAIT;\nfence.acq_rel.cta;\n"
                "ld.shared.u32 %r1, [data];\nst.global.u32 [%a], %r1;\nbra END;\n"
                "WRITE:\nsetp.ne.u32 %p0, %i, 32;\n@%p0 bra END;\nst.shared.u32 [data], 42;\nfence.acq_rel.cta;\n"
                "st.release.cta.shared.u32 [flag], 1;\nEND:",
            "", ".shared .align 4 .b32 flag, data;\n"};
        SCOPED_TRACE(load);
        ASSERT_CU(emu::run(t, 64, a.p));
        EXPECT_EQ(42u, a.get()[0]) << load;
    }
}

TEST(Atomic, LanesOfAWarpComeInTheirOrder)
{
    emu::Device device;
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "hardware promises no order";
    emu::Buffer<uint32_t> a(1), b(32);
    a.zero();
    ASSERT_CU(emu::run({"mad.lo.u64 %d1, %t, 4, %b;\nadd.u32 %r1, %i, 100;\natom.global.exch.b32 %r0, [%a], %r1;\n"
                        "st.global.u32 [%d1], %r0;"},
                       32, a.p, b.p));
    for (unsigned k = 0; k < 32; k++)
        EXPECT_EQ(k ? 99 + k : 0, b.get()[k]);
}

TEST(Atomic, FormsThatDoNotExistAreRefused)
{
    emu::Device device;
    for (const char *body :
         {"atom.add.s64 %d0, [%a], %d1;", "atom.and.u32 %r0, [%a], %r1;", "atom.exch.b16 %h0, [%a], %h1;",
          "atom.exch.f32 %f0, [%a], %f1;", "atom.cas.f32 %f0, [%a], %f1, %f2;", "atom.add.f16x2 %r0, [%a], %r1;",
          "atom.add.noftz.f32 %f0, [%a], %f1;", "atom.min.f32 %f0, [%a], %f1;", "atom.inc.u64 %d0, [%a], %d1;",
          "atom.min.noftz.f16x2 %r0, [%a], %r1;", "atom.shared.add.v2.f32 {%f0,%f1}, [%a], {%f2,%f3};",
          "atom.global.add.v2.u32 {%r0,%r1}, [%a], {%r2,%r3};", "red.exch.b32 [%a], %r0;",
          "red.cas.b32 [%a], %r0, %r1;", "red.acquire.gpu.global.add.u32 [%a], %r0;", "atom.global.u32 %r0, [%a], %r1;",
          "red.global.add.u32 [%a], %r0, %d0;", "atom.global.cas.b32 %r0, [%a], %r1;"}) {
        emu::Module m(emu::Text{body}.str(), false);
        EXPECT_NE(CUDA_SUCCESS, m.result) << body;
        EXPECT_NE("", m.log) << body;
    }
}
