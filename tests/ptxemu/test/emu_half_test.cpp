/* Instructions on f16 and bf16 and on pairs of them, against exact integer arithmetic. */
#include "test/float_values.h"

using namespace emu;

namespace
{
struct EmuHalf : ::testing::Test {
    Device device{"9.0"};
};

struct HalfType {
    const char *name; /* "f16" */
    Format format;
    bool is_bf16;
};
const HalfType HALVES[] = {{"f16", f16, false}, {"bf16", bf16, true}};

std::vector<uint16_t> all_values()
{
    std::vector<uint16_t> v(65536);
    for (size_t i = 0; i < v.size(); i++)
        v[i] = uint16_t(i);
    return v;
}

/* Elements next to each other are the two of a pair. */
std::vector<uint32_t> paired(const std::vector<uint16_t> &v)
{
    std::vector<uint32_t> p(v.size() / 2);
    for (size_t i = 0; i < p.size(); i++)
        p[i] = v[2 * i] | uint32_t(v[2 * i + 1]) << 16;
    return p;
}
std::vector<uint16_t> unpaired(const std::vector<uint32_t> &p)
{
    std::vector<uint16_t> v;
    for (uint32_t x : p) {
        v.push_back(uint16_t(x));
        v.push_back(uint16_t(x >> 16));
    }
    return v;
}

/* Runs `name`.type and `name`.typex2 over the same elements and compares both with expected(element). */
template <class F, class... In>
void check_both(const std::string &name, const HalfType &t, F expected, const std::string &target, const In &...in)
{
    static const char *const sources[] = {"", ", %a", ", %a, %b", ", %a, %b, %c"};
    const std::string tail = std::string(" %d") + sources[sizeof...(in)] + ";";
    const std::string one_name = name + "." + t.name, two_name = one_name + "x2";
    const std::vector<std::string> types16(sizeof...(in), "b16"), types32(sizeof...(in), "b32");
    auto one = apply<uint16_t>(one_name + tail, "b16", types16, target, in...);
    expect_each(one_name, one, expected, in...);
    auto two = unpaired(apply<uint32_t>(two_name + tail, "b32", types32, target, paired(in)...));
    expect_each(two_name, two, expected, in...);
}

struct Inputs {
    std::vector<uint16_t> a, b, c;
    explicit Inputs(const Format &f)
    {
        triples(f, &a, &b, &c, 20000);
        if (a.size() % 2) {
            a.pop_back();
            b.pop_back();
            c.pop_back();
        }
    }
};

TEST_F(EmuHalf, sums_differences_and_products_are_rounded_once)
{
    for (const HalfType &t : HALVES) {
        const Inputs in(t.format);
        const Format &f = t.format;
        for (const char *op : {"add", "sub", "mul"})
            for (const std::string modifiers : {"", ".rn", ".ftz", ".sat", ".rn.ftz.sat"}) {
                const bool ftz = modifiers.find("ftz") != std::string::npos;
                const bool sat = modifiers.find("sat") != std::string::npos;
                if (t.is_bf16 && (ftz || sat))
                    continue;
                auto expected = [&](size_t i) {
                    uint64_t a = ftz ? flushed(f, in.a[i]) : in.a[i], b = ftz ? flushed(f, in.b[i]) : in.b[i];
                    uint64_t negated = f.is_nan(b) ? b : b ^ f.sign();
                    uint64_t r = op[0] == 'm'   ? mul_bits(f, a, b, 'n')
                                 : op[0] == 'a' ? add_bits(f, a, b, 'n')
                                                : add_bits(f, a, negated, 'n');
                    r = ftz ? flushed(f, r) : r;
                    return sat ? saturated(f, r) : r;
                };
                check_both(op + modifiers, t, expected, "sm_90", in.a, in.b);
            }
    }
}

uint64_t relu(const Format &f, uint64_t b)
{
    return !f.is_nan(b) && (b & f.sign()) ? 0 : b;
}

TEST_F(EmuHalf, fma_rounds_once_with_sat_relu_and_ftz)
{
    for (const HalfType &t : HALVES) {
        const Inputs in(t.format);
        const Format &f = t.format;
        for (const std::string modifiers : {"", ".ftz", ".sat", ".relu", ".ftz.sat", ".ftz.relu"}) {
            const bool ftz = modifiers.find("ftz") != std::string::npos;
            const bool sat = modifiers.find("sat") != std::string::npos;
            if (t.is_bf16 && (ftz || sat))
                continue;
            auto expected = [&](size_t i) {
                auto input = [&](uint64_t x) { return ftz ? flushed(f, x) : x; };
                uint64_t r = fma_bits(f, input(in.a[i]), input(in.b[i]), input(in.c[i]), 'n');
                r = ftz ? flushed(f, r) : r;
                return sat ? saturated(f, r) : modifiers.find("relu") != std::string::npos ? relu(f, r) : r;
            };
            check_both("fma.rn" + modifiers, t, expected, "sm_80", in.a, in.b, in.c);
        }
    }
}

/* A product of bf16 can be exactly half way between two numbers, with a third operand that decides and is too small for the sum
 * to show it in f64: the case in which rounding twice goes wrong. */
TEST_F(EmuHalf, fma_of_bf16_sees_addends_far_below_a_tie)
{
    Inputs in(bf16);
    for (size_t i = 0; i < in.a.size(); i++) {
        in.a[i] = uint16_t((in.a[i] & 0x80ff) | 0x3f00);
        in.b[i] = uint16_t((in.b[i] & 0x007f) | 0x3f80);
        in.c[i] = uint16_t((in.c[i] & 0x807f) | (0x0080 << (i % 4)));
    }
    auto expected = [&](size_t i) { return fma_bits(bf16, in.a[i], in.b[i], in.c[i], 'n'); };
    check_both("fma.rn", HALVES[1], expected, "sm_80", in.a, in.b, in.c);
}

TEST_F(EmuHalf, every_f16_plus_and_times_some_others_is_exact)
{
    const std::vector<uint16_t> a = all_values();
    for (uint16_t other : {0x0001, 0x03ff, 0x0400, 0x3c01, 0x5bff, 0x7bff, 0x8000, 0xbbff}) {
        const std::vector<uint16_t> b(a.size(), other);
        check_both(
            "add", HALVES[0], [&](size_t i) { return add_bits(f16, a[i], other, 'n'); }, "sm_80", a, b);
        check_both(
            "mul", HALVES[0], [&](size_t i) { return mul_bits(f16, a[i], other, 'n'); }, "sm_80", a, b);
    }
}

TEST_F(EmuHalf, fma_oob_gives_zero_for_factors_out_of_bounds)
{
    if (!Driver::get().emulated())
        GTEST_SKIP() << "which NaN stands for out of bounds is not documented";
    for (const HalfType &t : HALVES) {
        Inputs in(t.format);
        for (size_t i = 0; i < in.a.size(); i++) {
            if (i % 3 == 0)
                in.a[i] = 0x7ff7;
            if (i % 7 == 0)
                in.b[i] = 0xfff7;
        }
        for (const char *modifiers : {"", ".relu"}) {
            auto expected = [&](size_t i) -> uint64_t {
                if (i % 3 == 0 || i % 7 == 0)
                    return 0;
                uint64_t r = fma_bits(t.format, in.a[i], in.b[i], in.c[i], 'n');
                return *modifiers ? relu(t.format, r) : r;
            };
            check_both(std::string("fma.rn.oob") + modifiers, t, expected, "sm_90", in.a, in.b, in.c);
        }
    }
}

int64_t order(const Format &f, uint64_t b)
{
    int64_t magnitude = int64_t(b & ~f.sign());
    return b & f.sign() ? -magnitude - 1 : magnitude;
}

TEST_F(EmuHalf, min_and_max_prefer_numbers_unless_nan_is_asked_for)
{
    for (const HalfType &t : HALVES) {
        const Inputs in(t.format);
        const Format &f = t.format;
        for (const char *op : {"min", "max"})
            for (const std::string modifiers : {"", ".ftz", ".NaN", ".xorsign.abs", ".NaN.xorsign.abs"}) {
                const bool ftz = modifiers == ".ftz", nan = modifiers.find("NaN") != std::string::npos;
                const bool xorsign = modifiers.find("xor") != std::string::npos;
                if (t.is_bf16 && ftz)
                    continue;
                auto expected = [&](size_t i) -> uint64_t {
                    uint64_t a = ftz ? flushed(f, in.a[i]) : in.a[i], b = ftz ? flushed(f, in.b[i]) : in.b[i];
                    const uint64_t sign = xorsign ? (a ^ b) & f.sign() : 0;
                    a &= xorsign ? ~f.sign() : ~0ull;
                    b &= xorsign ? ~f.sign() : ~0ull;
                    if (nan ? f.is_nan(a) || f.is_nan(b) : f.is_nan(a) && f.is_nan(b))
                        return f.nan();
                    if (f.is_nan(a) || f.is_nan(b))
                        return (f.is_nan(a) ? b : a) | sign;
                    return ((op[1] == 'a') == (order(f, a) > order(f, b)) ? a : b) | sign;
                };
                check_both(op + modifiers, t, expected, "sm_86", in.a, in.b);
            }
    }
}

TEST_F(EmuHalf, neg_and_abs_of_every_value_change_the_sign_of_numbers)
{
    const std::vector<uint16_t> a = all_values();
    for (const HalfType &t : HALVES)
        for (const char *op : {"neg", "abs"})
            for (const char *ftz : {"", ".ftz"}) {
                if (t.is_bf16 && *ftz)
                    continue;
                const Format &f = t.format;
                auto expected = [&](size_t i) {
                    uint64_t x = *ftz ? flushed(f, a[i]) : a[i];
                    return f.is_nan(x) ? f.nan() : op[0] == 'n' ? x ^ f.sign() : x & ~f.sign();
                };
                check_both(std::string(op) + ftz, t, expected, "sm_80", a);
            }
}

/* ---- approximations ---- */
long double value(const Format &f, uint64_t b)
{
    if (f.is_nan(b))
        return NAN;
    if (f.is_infinity(b))
        return b & f.sign() ? -INFINITY : INFINITY;
    Exact x = exact(f, b);
    long double v = std::ldexp((long double)(uint64_t(x.m)), x.e);
    return x.negative ? -v : v;
}

/* The number nearest to a value that is given with 64 bits. */
uint64_t nearest(const Format &f, long double v)
{
    if (std::isnan(v))
        return f.nan();
    Exact x;
    x.negative = std::signbit(v);
    if (std::isinf(v))
        return (x.negative ? f.sign() : 0) | f.infinity();
    int e = 0;
    long double fraction = std::frexp(std::fabs(v), &e);
    x.m = uint64_t(std::ldexp(fraction, 64));
    x.e = e - 64;
    return round_to(f, x, 'n');
}

struct Approximation {
    const char *op;
    long double (*function)(long double);
    double relative_f16, absolute_f16, relative_bf16; /* bounds of the PTX ISA */
};

TEST_F(EmuHalf, ex2_and_tanh_of_every_value_are_the_nearest)
{
    const Approximation ops[] = {{"ex2.approx", exp2l, std::exp2(-9.9), 0, std::exp2(-7)},
                                 {"tanh.approx", tanhl, 0, std::exp2(-10.987), std::exp2(-8)}};
    const std::vector<uint16_t> a = all_values();
    for (const HalfType &t : HALVES)
        for (const Approximation &op : ops) {
            const Format &f = t.format;
            const bool ftz = t.is_bf16 && op.op[0] == 'e';
            const std::string name = std::string(op.op) + (ftz ? ".ftz" : "");
            auto nearest_result = [&](size_t i) {
                uint64_t r = nearest(f, op.function(value(f, ftz ? flushed(f, a[i]) : a[i])));
                return ftz ? flushed(f, r) : r;
            };
            if (Driver::get().emulated()) {
                check_both(name, t, nearest_result, "sm_90", a);
                continue;
            }
            auto got = apply<uint16_t>(name + "." + t.name + " %d, %a;", "b16", {"b16"}, "sm_90", a);
            unsigned wrong = 0;
            for (size_t i = 0; i < got.size(); i++) {
                const long double want = value(f, nearest_result(i)), is = value(f, got[i]);
                const long double bound = (t.is_bf16 ? op.relative_bf16 : op.relative_f16) * std::fabs(want) +
                                          (t.is_bf16 ? 0 : op.absolute_f16) + value(f, 1);
                wrong += !(is == want || (std::isnan(is) && std::isnan(want)) || std::fabs(is - want) <= bound);
            }
            EXPECT_EQ(0u, wrong) << name << "." << t.name;
        }
}

TEST_F(EmuHalf, inactive_lanes_of_pairs_keep_their_values)
{
    std::vector<uint32_t> a(96);
    for (uint32_t i = 0; i < a.size(); i++)
        a[i] = 0x3c003c00 + i * 0x10001;
    auto got = apply<uint32_t>("mov.b32 %d, %a;\nsetp.gt.u32 %live, %a, 0x3c203c20;\n"
                               "@%live add.f16x2 %d, %a, %a;",
                               "b32", {"b32"}, "sm_75", a);
    auto expected = [&](size_t i) {
        auto twice = [](uint32_t h) { return uint32_t(add_bits(f16, h, h, 'n')); };
        return a[i] > 0x3c203c20 ? twice(a[i] & 0xffff) | twice(a[i] >> 16) << 16 : a[i];
    };
    expect_each("add.f16x2", got, expected, a);
}

TEST_F(EmuHalf, what_the_architecture_lacks_is_refused_with_a_reason)
{
    struct Bad {
        const char *statement, *type, *target;
    };
    for (const Bad &b :
         {Bad{"add.f32.f16 %d, %a, %a;", "b32", "sm_90"}, Bad{"add.rz.f16 %d, %a, %a;", "b16", "sm_90"},
          Bad{"fma.f16 %d, %a, %a, %a;", "b16", "sm_90"}, Bad{"fma.rn.sat.relu.f16 %d, %a, %a, %a;", "b16", "sm_90"},
          Bad{"add.sat.bf16 %d, %a, %a;", "b16", "sm_90"}, Bad{"ex2.approx.ftz.f16 %d, %a;", "b16", "sm_90"},
          Bad{"ex2.approx.bf16 %d, %a;", "b16", "sm_90"}, Bad{"tanh.f16 %d, %a;", "b16", "sm_90"},
          Bad{"mad.rn.f16 %d, %a, %a, %a;", "b16", "sm_90"}, Bad{"div.rn.f16 %d, %a, %a;", "b16", "sm_90"}}) {
        Module m(op_module(b.statement, b.type, {b.type}, b.target), false);
        EXPECT_NE(CUDA_SUCCESS, m.result) << b.statement;
    }
}

TEST(EmuHalfOldDevice, bf16_arithmetic_of_sm_90_is_refused_on_sm_80)
{
    if (!Driver::get().emulated())
        GTEST_SKIP() << "needs an emulated device of compute capability 8.0";
    Device device("8.0");
    for (const char *s : {"add.bf16 %d, %a, %a;", "mul.bf16 %d, %a, %a;", "tanh.approx.bf16 %d, %a;",
                          "fma.rn.oob.f16 %d, %a, %a, %a;", "min.xorsign.abs.f16 %d, %a, %a;"}) {
        Module m(op_module(s, "b16", {"b16"}, "sm_80"), false);
        EXPECT_NE(CUDA_SUCCESS, m.result) << s;
    }
    Module m(op_module("fma.rn.bf16 %d, %a, %a, %a;", "b16", {"b16"}, "sm_80"));
    EXPECT_EQ(CUDA_SUCCESS, m.result);
}
} // namespace
