/* Reciprocals, roots, exponentials, logarithms: rounded forms against exact integer arithmetic, approximations against long double,
 * within half a unit in the last place in the emulator and within the PTX ISA's bounds on hardware. */
#include <functional>

#include "test/float_values.h"

using namespace emu;

namespace
{
struct EmuApprox : ::testing::Test {
    Device device{"9.0"};
};
const std::pair<const char *, char> ROUNDINGS[] = {{".rn", 'n'}, {".rz", 'z'}, {".rm", 'm'}, {".rp", 'p'}};

template <class U>
std::vector<U> values(const Format &f, size_t n = 20000)
{
    std::vector<U> v = edge_values<U>(f), r = random_values<U>(f, n, 11);
    v.insert(v.end(), r.begin(), r.end());
    std::mt19937_64 g(12);
    for (size_t i = 0; i < n; i++) /* all exponents alike */
        v.push_back(U(g() & (f.sign() | f.nan())));
    return v;
}

/* ---- rounded: exact ---- */
uint64_t rcp_bits(const Format &f, uint64_t a, char mode)
{
    const uint64_t sign = a & f.sign();
    if (f.is_nan(a))
        return f.nan();
    if (f.is_infinity(a))
        return sign;
    if (!(a & ~f.sign()))
        return sign | f.infinity();
    const Exact x = exact(f, a);
    const unsigned __int128 one = (unsigned __int128)1 << 120;
    return round_to(f, {x.negative, one / x.m << 1 | (one % x.m != 0), -120 - x.e - 1}, mode);
}

/* The integer square root of 2^(2k) m, and whether something is left, digit by digit. */
uint64_t sqrt_bits(const Format &f, uint64_t a, char mode)
{
    if (f.is_nan(a) || ((a & f.sign()) && (a & ~f.sign())))
        return f.nan();
    if (f.is_infinity(a) || !(a & ~f.sign()))
        return a;
    Exact x = exact(f, a);
    while (width(x.m) < 124 || x.e % 2) {
        x.m <<= 1;
        x.e--;
    }
    unsigned __int128 root = 0;
    for (int k = 63; k >= 0; k--) {
        const unsigned __int128 next = root | (unsigned __int128)1 << k;
        if (next * next <= x.m)
            root = next;
    }
    return round_to(f, {false, root << 1 | (root * root != x.m), x.e / 2 - 1}, mode);
}

template <class U>
void check_rounded(const std::string &op, const Format &f, uint64_t (*reference)(const Format &, uint64_t, char))
{
    const std::vector<U> a = values<U>(f);
    const std::string bits = std::to_string(8 * sizeof(U));
    for (auto &round : ROUNDINGS)
        for (const bool ftz : {false, true}) {
            if (ftz && sizeof(U) == 8)
                continue;
            const std::string name = op + round.first + (ftz ? ".ftz" : "") + ".f" + bits;
            auto got = apply<U>(name + " %d, %a;", "b" + bits, {"b" + bits}, "sm_75", a);
            for (U &x : got)
                x = f.is_nan(x) ? U(f.nan()) : x;
            auto expected = [&](size_t i) {
                const uint64_t r = reference(f, ftz ? flushed(f, a[i]) : a[i], round.second);
                return ftz ? flushed(f, r) : r;
            };
            expect_each(name, got, expected, a);
        }
}

TEST_F(EmuApprox, rcp_and_sqrt_round_in_every_direction)
{
    check_rounded<uint32_t>("rcp", f32, rcp_bits);
    check_rounded<uint64_t>("rcp", f64, rcp_bits);
    check_rounded<uint32_t>("sqrt", f32, sqrt_bits);
    check_rounded<uint64_t>("sqrt", f64, sqrt_bits);
}

/* ---- approximations of f32 ---- */
struct Function {
    const char *op;
    std::function<long double(long double)> exact;
    double relative, absolute;              /* the PTX ISA's bounds */
    double from = -INFINITY, to = INFINITY; /* where they hold */
};
const Function FUNCTIONS[] = {
    {"rcp.approx", [](long double x) { return 1 / x; }, 0x1p-23, 0},
    {"sqrt.approx", [](long double x) { return sqrtl(x); }, 0x1p-23, 0},
    {"rsqrt.approx", [](long double x) { return 1 / sqrtl(x); }, std::exp2(-22.9), 0},
    {"ex2.approx", [](long double x) { return exp2l(x); }, 0x1p-22, 0},
    {"lg2.approx", [](long double x) { return log2l(x); }, 0x1p-22, 0x1p-22},
    {"sin.approx", [](long double x) { return sinl(x); }, 0, std::exp2(-20.5), -6.2831853, 6.2831853},
    {"cos.approx", [](long double x) { return cosl(x); }, 0, std::exp2(-20.5), -6.2831853, 6.2831853},
    {"tanh.approx", [](long double x) { return tanhl(x); }, 0x1p-11, 0},
};

/* One unit in the last place of the f32s around x. */
long double unit(long double x)
{
    int e = 0;
    std::frexp(x, &e);
    return std::ldexp(1.0L, std::max(e - 24, -149));
}

/* `bound` is in absolute terms. */
bool is_near(float got, long double want, long double bound)
{
    if (std::isnan(want) || std::isnan(got))
        return std::isnan(want) && std::isnan(got);
    if (std::isinf(want) || std::isinf(got))
        return got == float(want); /* an overflow is the same in f32 */
    if (std::signbit(got) != std::signbit(want) && std::fabs(want) > bound)
        return false;
    return std::fabs(got - want) <= bound;
}

void check_function(const Function &f, bool ftz, const std::vector<float> &a)
{
    const bool emulated = Driver::get().emulated();
    const std::string name = std::string(f.op) + (ftz ? ".ftz" : "") + ".f32";
    const auto got = apply<float>(name + " %d, %a;", "b32", {"b32"}, "sm_75", a);
    ASSERT_EQ(a.size(), got.size());
    unsigned wrong = 0;
    for (size_t i = 0; i < a.size() && wrong < 5; i++) {
        const float x = ftz && std::fpclassify(a[i]) == FP_SUBNORMAL ? std::copysign(0.0f, a[i]) : a[i];
        long double want = f.exact(x);
        if (ftz && std::fabs(float(want)) < 0x1p-126f)
            want = std::copysign(0.0L, want);
        /* The emulator may miss the nearest number by what a computation in f64 adds to half a unit. */
        const long double half = unit(want) * (0.5L + 0x1p-26L);
        const long double documented = std::max<long double>(f.relative * std::fabs(want) + f.absolute, unit(want));
        if (!emulated && (x < f.from || x > f.to))
            continue;
        if (is_near(got[i], want, emulated ? half : documented))
            continue;
        wrong++;
        ADD_FAILURE() << name << " of " << a[i] << " (" << format_hex(as<uint32_t>(a[i])) << ") gives " << got[i]
                      << " (" << format_hex(as<uint32_t>(got[i])) << "), expected " << float(want);
    }
}

std::vector<float> floats()
{
    std::vector<float> v;
    for (uint32_t b : values<uint32_t>(f32))
        v.push_back(as<float>(b));
    std::mt19937 r(13);
    for (int i = 0; i < 40000; i++) /* where exponentials, sines and tanh change */
        v.push_back(std::uniform_real_distribution<float>(-160, 160)(r));
    for (int i = 0; i < 40000; i++)
        v.push_back(std::uniform_real_distribution<float>(-7, 7)(r));
    for (int k = -160; k <= 160; k++)
        v.push_back(float(k));
    return v;
}

TEST_F(EmuApprox, approximations_of_f32_are_near_the_exact_value)
{
    const std::vector<float> a = floats();
    for (const Function &f : FUNCTIONS)
        for (const bool ftz : {false, true})
            if (!ftz || strcmp(f.op, "tanh.approx") != 0)
                check_function(f, ftz, a);
}

TEST_F(EmuApprox, special_values_are_those_of_the_tables)
{
    const float inf = INFINITY, nan = NAN;
    struct Row {
        const char *op;
        std::vector<float> of; /* -inf, -1, -0, +0, +inf, NaN */
    };
    const std::vector<float> a = {-inf, -1, -0.0f, 0.0f, inf, nan};
    for (const Row &row :
         {Row{"rcp.approx", {-0.0f, -1, -inf, inf, 0, nan}}, Row{"sqrt.approx", {nan, nan, -0.0f, 0, inf, nan}},
          Row{"rsqrt.approx", {nan, nan, -inf, inf, 0, nan}}, Row{"ex2.approx", {0, 0.5f, 1, 1, inf, nan}},
          Row{"lg2.approx", {nan, nan, -inf, -inf, inf, nan}}, Row{"sin.approx", {nan, sinf(-1), -0.0f, 0, nan, nan}},
          Row{"cos.approx", {nan, cosf(-1), 1, 1, nan, nan}}})
        for (const char *ftz : {".f32", ".ftz.f32"}) {
            const auto got = apply<float>(std::string(row.op) + ftz + " %d, %a;", "b32", {"b32"}, "sm_75", a);
            ASSERT_EQ(a.size(), got.size());
            for (size_t i = 0; i < a.size(); i++) {
                if (std::isnan(row.of[i]))
                    EXPECT_EQ(0x7fffffffu, as<uint32_t>(got[i])) << row.op << ftz << " of " << a[i];
                else if (a[i] == -1)
                    EXPECT_NEAR(row.of[i], got[i], 1e-6) << row.op << ftz << " of " << a[i];
                else
                    EXPECT_EQ(as<uint32_t>(row.of[i]), as<uint32_t>(got[i])) << row.op << ftz << " of " << a[i];
            }
        }
    const auto got = apply<float>("tanh.approx.f32 %d, %a;", "b32", {"b32"}, "sm_75", a);
    ASSERT_EQ(a.size(), got.size());
    EXPECT_EQ(-1, got[0]);
    EXPECT_TRUE(got[2] == 0 && std::signbit(got[2]));
    EXPECT_EQ(1, got[4]);
}

/* Every power of two that ex2 can give is exact, also the denormal ones; lg2 is the way back. */
TEST_F(EmuApprox, ex2_and_lg2_of_powers_of_two_are_exact)
{
    if (!Driver::get().emulated())
        GTEST_SKIP() << "hardware approximates";
    std::vector<float> exponents, powers;
    for (int k = -149; k <= 127; k++) {
        exponents.push_back(float(k));
        powers.push_back(std::ldexp(1.0f, k));
    }
    EXPECT_EQ(powers, apply<float>("ex2.approx.f32 %d, %a;", "b32", {"b32"}, "sm_75", exponents));
    EXPECT_EQ(exponents, apply<float>("lg2.approx.f32 %d, %a;", "b32", {"b32"}, "sm_75", powers));
}

/* ---- f64 ---- */
TEST_F(EmuApprox, rsqrt_of_f64_is_near_the_exact_value)
{
    std::vector<double> a;
    for (uint64_t b : values<uint64_t>(f64, 20000))
        a.push_back(as<double>(b));
    const auto got = apply<double>("rsqrt.approx.f64 %d, %a;", "b64", {"b64"}, "sm_75", a);
    ASSERT_EQ(a.size(), got.size());
    const double bound = Driver::get().emulated() ? 0x1p-53 : 0x1p-44;
    for (size_t i = 0; i < a.size(); i++) {
        const long double want = 1 / sqrtl(a[i]);
        if (std::isnan(want))
            EXPECT_TRUE(std::isnan(got[i])) << a[i];
        else if (std::isinf(want) || want == 0)
            EXPECT_EQ(as<uint64_t>(double(want)), as<uint64_t>(got[i])) << a[i];
        else
            EXPECT_LE(std::fabs(got[i] - want), bound * (1 + 0x1p-8) * want) << a[i];
    }
}

/* The forms with .ftz take and give the upper 32 bits. */
TEST_F(EmuApprox, gross_approximations_of_f64_have_twenty_bits)
{
    const std::vector<uint64_t> a = values<uint64_t>(f64, 20000);
    for (const char *op : {"rcp", "rsqrt"}) {
        const auto got = apply<uint64_t>(std::string(op) + ".approx.ftz.f64 %d, %a;", "b64", {"b64"}, "sm_75", a);
        ASSERT_EQ(a.size(), got.size());
        unsigned wrong = 0;
        for (size_t i = 0; i < a.size(); i++) {
            const long double x = as<double>(flushed(f64, f64.is_nan(a[i]) ? a[i] : a[i] & 0xffffffff00000000ull));
            const double want = double(op[1] == 'c' ? 1 / x : 1 / sqrtl(x)), is = as<double>(got[i]);
            const double flushed_want = as<double>(flushed(f64, as<uint64_t>(want)));
            const double bound = std::fabs(want) * (Driver::get().emulated() ? 0x1.00001p-21 : 0x1p-19);
            const bool same = (std::isnan(want) && std::isnan(is)) || is == flushed_want;
            /* At the border to denormals the upper bits decide what is flushed. */
            const bool near = std::isfinite(want) && std::fabs(is - want) <= bound;
            const bool sign = std::isnan(want) || std::signbit(is) == std::signbit(want);
            wrong += !((same || near) && sign && uint32_t(got[i]) == 0);
        }
        EXPECT_EQ(0u, wrong) << op;
    }
}

TEST_F(EmuApprox, forms_that_do_not_exist_are_refused)
{
    struct Bad {
        const char *statement, *type;
    };
    for (const Bad &b :
         {Bad{"rcp.f32 %d, %a;", "b32"}, Bad{"sqrt.f32 %d, %a;", "b32"}, Bad{"rcp.approx.f64 %d, %a;", "b64"},
          Bad{"sqrt.approx.f64 %d, %a;", "b64"}, Bad{"ex2.f32 %d, %a;", "b32"}, Bad{"ex2.approx.f64 %d, %a;", "b64"},
          Bad{"tanh.approx.ftz.f32 %d, %a;", "b32"}, Bad{"rcp.approx.rn.f32 %d, %a;", "b32"},
          Bad{"sin.f32 %d, %a;", "b32"}, Bad{"lg2.approx.sat.f32 %d, %a;", "b32"}}) {
        Module m(op_module(b.statement, b.type, {b.type}, "sm_75"), false);
        EXPECT_NE(CUDA_SUCCESS, m.result) << b.statement;
    }
}
} // namespace
