/* Instructions on f32 and f64, against exact integer arithmetic. */
#include "test/float_values.h"

using namespace emu;

namespace
{
const std::pair<const char *, char> ROUNDINGS[] = {{".rn", 'n'}, {".rz", 'z'}, {".rm", 'm'}, {".rp", 'p'}};

struct EmuFloat : ::testing::Test {
    Device device{"9.0"};
};

/* Results of f64 are NaNs of any payload. */
uint64_t any_nan(const Format &f, uint64_t b)
{
    return f.is_nan(b) ? f.nan() : b;
}

template <class U>
struct Inputs {
    std::vector<U> a, b, c;
    explicit Inputs(const Format &f) { triples(f, &a, &b, &c); }
};

/* op{.round}{.ftz}{.sat} of two or three f32s. */
template <class Reference>
void check_f32(const std::string &op, unsigned arity, Reference reference)
{
    static const Inputs<uint32_t> in(f32);
    for (auto &round : ROUNDINGS)
        for (const char *modifiers : {"", ".ftz", ".sat", ".ftz.sat"}) {
            const bool ftz = strstr(modifiers, "ftz"), sat = strstr(modifiers, "sat");
            const std::string name = op + round.first + modifiers + ".f32";
            const std::string statement = name + (arity == 3 ? " %d, %a, %b, %c;" : " %d, %a, %b;");
            auto got = arity == 3 ? apply<uint32_t>(statement, "b32", {"b32", "b32", "b32"}, "sm_75", in.a, in.b, in.c)
                                  : apply<uint32_t>(statement, "b32", {"b32", "b32"}, "sm_75", in.a, in.b);
            auto expected = [&](size_t i) {
                auto input = [&](uint32_t x) { return ftz ? flushed(f32, x) : x; };
                uint64_t r = reference(input(in.a[i]), input(in.b[i]), input(in.c[i]), round.second);
                r = ftz ? flushed(f32, r) : r;
                return sat ? saturated(f32, r) : r;
            };
            expect_each(name, got, expected, in.a, in.b, in.c);
        }
}

template <class Reference>
void check_f64(const std::string &op, unsigned arity, Reference reference)
{
    static const Inputs<uint64_t> in(f64);
    for (auto &round : ROUNDINGS) {
        const std::string name = op + round.first + ".f64";
        const std::string statement = name + (arity == 3 ? " %d, %a, %b, %c;" : " %d, %a, %b;");
        auto got = arity == 3 ? apply<uint64_t>(statement, "b64", {"b64", "b64", "b64"}, "sm_75", in.a, in.b, in.c)
                              : apply<uint64_t>(statement, "b64", {"b64", "b64"}, "sm_75", in.a, in.b);
        for (uint64_t &x : got)
            x = any_nan(f64, x);
        auto expected = [&](size_t i) { return reference(in.a[i], in.b[i], in.c[i], round.second); };
        expect_each(name, got, expected, in.a, in.b, in.c);
    }
}

uint64_t minus(const Format &f, uint64_t a, uint64_t b, char mode)
{
    return add_bits(f, a, f.is_nan(b) ? b : b ^ f.sign(), mode);
}

/* The quotient by integer division: enough bits, and one that says whether something follows. */
uint64_t div_bits(const Format &f, uint64_t a, uint64_t b, char mode)
{
    const uint64_t s = f.sign(), sign = (a ^ b) & s;
    const bool a_zero = !(a & ~s), b_zero = !(b & ~s);
    if (f.is_nan(a) || f.is_nan(b) || (a_zero && b_zero) || (f.is_infinity(a) && f.is_infinity(b)))
        return f.nan();
    if (f.is_infinity(a) || b_zero)
        return sign | f.infinity();
    if (f.is_infinity(b) || a_zero)
        return sign;
    Exact x = exact(f, a), y = exact(f, b), q;
    const int up = 127 - width(x.m);
    x.m <<= up;
    q.negative = sign;
    q.m = x.m / y.m << 1 | (x.m % y.m != 0);
    q.e = x.e - up - y.e - 1;
    return round_to(f, q, mode);
}

TEST_F(EmuFloat, sums_and_differences_of_f32_round_in_every_direction)
{
    check_f32("add", 2, [](uint64_t a, uint64_t b, uint64_t, char mode) { return add_bits(f32, a, b, mode); });
    check_f32("sub", 2, [](uint64_t a, uint64_t b, uint64_t, char mode) { return minus(f32, a, b, mode); });
}

TEST_F(EmuFloat, products_of_f32_round_in_every_direction)
{
    check_f32("mul", 2, [](uint64_t a, uint64_t b, uint64_t, char mode) { return mul_bits(f32, a, b, mode); });
}

TEST_F(EmuFloat, fma_and_mad_of_f32_round_once)
{
    for (const char *op : {"fma", "mad"})
        check_f32(op, 3, [](uint64_t a, uint64_t b, uint64_t c, char mode) { return fma_bits(f32, a, b, c, mode); });
}

TEST_F(EmuFloat, sums_and_products_of_f64_round_in_every_direction)
{
    check_f64("add", 2, [](uint64_t a, uint64_t b, uint64_t, char mode) { return add_bits(f64, a, b, mode); });
    check_f64("sub", 2, [](uint64_t a, uint64_t b, uint64_t, char mode) { return minus(f64, a, b, mode); });
    check_f64("mul", 2, [](uint64_t a, uint64_t b, uint64_t, char mode) { return mul_bits(f64, a, b, mode); });
}

TEST_F(EmuFloat, fma_and_mad_of_f64_round_once)
{
    for (const char *op : {"fma", "mad"})
        check_f64(op, 3, [](uint64_t a, uint64_t b, uint64_t c, char mode) { return fma_bits(f64, a, b, c, mode); });
}

TEST_F(EmuFloat, quotients_round_in_every_direction)
{
    check_f64("div", 2, [](uint64_t a, uint64_t b, uint64_t, char mode) { return div_bits(f64, a, b, mode); });
    const Inputs<uint32_t> in(f32);
    for (auto &round : ROUNDINGS)
        for (const bool ftz : {false, true}) {
            const std::string name = std::string("div") + round.first + (ftz ? ".ftz" : "") + ".f32";
            auto got = apply<uint32_t>(name + " %d, %a, %b;", "b32", {"b32", "b32"}, "sm_75", in.a, in.b);
            auto expected = [&](size_t i) {
                uint64_t a = ftz ? flushed(f32, in.a[i]) : in.a[i], b = ftz ? flushed(f32, in.b[i]) : in.b[i];
                uint64_t r = div_bits(f32, a, b, round.second);
                return ftz ? flushed(f32, r) : r;
            };
            expect_each(name, got, expected, in.a, in.b);
        }
}

/* Units in the last place between two results of one sign; 0 for equal ones, both NaN included. */
uint64_t distance(uint32_t a, uint32_t b)
{
    if (f32.is_nan(a) || f32.is_nan(b))
        return f32.is_nan(a) && f32.is_nan(b) ? 0 : ~0ull;
    if ((a ^ b) & f32.sign())
        return (a | b) & ~f32.sign() ? ~0ull : 0;
    return a > b ? a - b : b - a;
}

TEST_F(EmuFloat, approximate_quotients_are_within_two_units)
{
    const Inputs<uint32_t> in(f32);
    for (const char *op : {"div.approx.f32", "div.approx.ftz.f32", "div.full.f32", "div.full.ftz.f32"}) {
        const bool ftz = strstr(op, "ftz"), approx = strstr(op, "approx");
        auto got = apply<uint32_t>(std::string(op) + " %d, %a, %b;", "b32", {"b32", "b32"}, "sm_75", in.a, in.b);
        ASSERT_EQ(in.a.size(), got.size());
        unsigned wrong = 0;
        for (size_t i = 0; i < got.size() && wrong < 5; i++) {
            uint64_t a = ftz ? flushed(f32, in.a[i]) : in.a[i], b = ftz ? flushed(f32, in.b[i]) : in.b[i];
            const uint32_t b_field = b >> 23 & 255;
            uint64_t want = div_bits(f32, a, b, 'n');
            /* the reciprocal of the largest b is taken as 0; 2^126 itself is not meant */
            if (approx && (b & 0x7fffffff) > 0x7e800000 && (b & 0x7fffffff) < 0x7f800000)
                want = f32.is_infinity(a) || f32.is_nan(a) ? f32.nan() : (a ^ b) & f32.sign();
            want = ftz ? flushed(f32, want) : want;
            if (!Driver::get().emulated() && (b_field == 0 || b_field >= 253 || (want & 0x7f800000) == 0))
                continue; /* outside of the range for which the PTX ISA gives a bound */
            const uint64_t bound = Driver::get().emulated() ? 0 : 2;
            if (distance(uint32_t(want), got[i]) <= bound)
                continue;
            wrong++;
            ADD_FAILURE() << op << " of " << format_hex(a) << " " << format_hex(b) << " gives " << format_hex(got[i])
                          << ", expected " << format_hex(want);
        }
    }
}

/* ---- min and max ---- */
/* Numbers of either sign in order, -0 before +0. */
int64_t order(const Format &f, uint64_t b)
{
    int64_t magnitude = int64_t(b & ~f.sign());
    return b & f.sign() ? -magnitude - 1 : magnitude;
}
uint64_t min_max_bits(const Format &f, uint64_t a, uint64_t b, bool max, bool nan, bool xorsign)
{
    const uint64_t sign = xorsign ? (a ^ b) & f.sign() : 0;
    if (xorsign) {
        a &= ~f.sign();
        b &= ~f.sign();
    }
    const bool a_nan = f.is_nan(a), b_nan = f.is_nan(b);
    if ((a_nan && b_nan) || (nan && (a_nan || b_nan)))
        return f.nan();
    if (a_nan || b_nan)
        return (a_nan ? b : a) | sign;
    return (max == (order(f, a) > order(f, b)) ? a : b) | sign;
}

TEST_F(EmuFloat, min_and_max_of_f32_prefer_numbers_unless_nan_is_asked_for)
{
    const Inputs<uint32_t> in(f32);
    for (const char *op : {"min", "max"})
        for (const char *ftz : {"", ".ftz"})
            for (const char *mods : {"", ".NaN", ".xorsign.abs", ".NaN.xorsign.abs"}) {
                const std::string name = std::string(op) + ftz + mods + ".f32";
                auto got = apply<uint32_t>(name + " %d, %a, %b;", "b32", {"b32", "b32"}, "sm_86", in.a, in.b);
                auto expected = [&](size_t i) {
                    uint64_t a = *ftz ? flushed(f32, in.a[i]) : in.a[i], b = *ftz ? flushed(f32, in.b[i]) : in.b[i];
                    return min_max_bits(f32, a, b, op[1] == 'a', strstr(mods, "NaN"), strstr(mods, "xorsign"));
                };
                expect_each(name, got, expected, in.a, in.b);
            }
}

TEST_F(EmuFloat, min_and_max_of_f64_prefer_numbers)
{
    const Inputs<uint64_t> in(f64);
    for (const char *op : {"min", "max"}) {
        const std::string name = std::string(op) + ".f64";
        auto got = apply<uint64_t>(name + " %d, %a, %b;", "b64", {"b64", "b64"}, "sm_75", in.a, in.b);
        for (uint64_t &x : got)
            x = any_nan(f64, x);
        auto expected = [&](size_t i) { return min_max_bits(f64, in.a[i], in.b[i], op[1] == 'a', false, false); };
        expect_each(name, got, expected, in.a, in.b);
    }
}

/* ---- signs and classes ---- */
TEST_F(EmuFloat, neg_and_abs_change_the_sign_of_numbers)
{
    const Inputs<uint32_t> in(f32);
    for (const char *op : {"neg", "abs"})
        for (const char *ftz : {"", ".ftz"}) {
            const std::string name = std::string(op) + ftz + ".f32";
            auto got = apply<uint32_t>(name + " %d, %a;", "b32", {"b32"}, "sm_75", in.a);
            for (uint32_t &x : got) /* a NaN's sign and payload are not specified */
                x = uint32_t(any_nan(f32, x));
            auto expected = [&](size_t i) {
                uint64_t a = *ftz ? flushed(f32, in.a[i]) : in.a[i];
                return any_nan(f32, op[0] == 'n' ? a ^ f32.sign() : a & ~f32.sign());
            };
            expect_each(name, got, expected, in.a);
        }
    const Inputs<uint64_t> wide(f64);
    for (const char *op : {"neg", "abs"}) {
        auto got = apply<uint64_t>(std::string(op) + ".f64 %d, %a;", "b64", {"b64"}, "sm_75", wide.a);
        for (uint64_t &x : got)
            x = any_nan(f64, x);
        auto expected = [&](size_t i) {
            return any_nan(f64, op[0] == 'n' ? wide.a[i] ^ f64.sign() : wide.a[i] & ~f64.sign());
        };
        expect_each(op, got, expected, wide.a);
    }
}

TEST_F(EmuFloat, copysign_takes_the_sign_of_the_first_and_the_rest_of_the_second)
{
    const Inputs<uint32_t> in(f32);
    auto got = apply<uint32_t>("copysign.f32 %d, %a, %b;", "b32", {"b32", "b32"}, "sm_75", in.a, in.b);
    auto expected = [&](size_t i) { return (in.a[i] & 0x80000000u) | (in.b[i] & 0x7fffffffu); };
    expect_each("copysign.f32", got, expected, in.a, in.b);
    const Inputs<uint64_t> wide(f64);
    auto got64 = apply<uint64_t>("copysign.f64 %d, %a, %b;", "b64", {"b64", "b64"}, "sm_75", wide.a, wide.b);
    auto expected64 = [&](size_t i) { return (wide.a[i] & f64.sign()) | (wide.b[i] & ~f64.sign()); };
    expect_each("copysign.f64", got64, expected64, wide.a, wide.b);
}

bool in_class(const Format &f, uint64_t b, const std::string &c)
{
    const uint64_t magnitude = b & ~f.sign();
    const bool subnormal = magnitude && magnitude < 1ull << f.mantissa_bits;
    if (c == "finite")
        return magnitude < f.infinity();
    if (c == "infinite")
        return magnitude == f.infinity();
    if (c == "number")
        return !f.is_nan(b);
    if (c == "notanumber")
        return f.is_nan(b);
    if (c == "subnormal")
        return subnormal;
    return magnitude < f.infinity() && !subnormal; /* normal: zeros, too */
}

TEST_F(EmuFloat, testp_tells_the_classes_of_numbers)
{
    const Inputs<uint32_t> in(f32);
    const Inputs<uint64_t> wide(f64);
    for (const std::string c : {"finite", "infinite", "number", "notanumber", "normal", "subnormal"}) {
        const std::string tail = " %live, %a;\nselp.b32 %d, 1, 0, %live;";
        auto got = apply<uint32_t>("testp." + c + ".f32" + tail, "b32", {"b32"}, "sm_75", in.a);
        expect_each(
            "testp." + c + ".f32", got, [&](size_t i) { return in_class(f32, in.a[i], c); }, in.a);
        got = apply<uint32_t>("testp." + c + ".f64" + tail, "b32", {"b64"}, "sm_75", wide.a);
        expect_each(
            "testp." + c + ".f64", got, [&](size_t i) { return in_class(f64, wide.a[i], c); }, wide.a);
    }
}

TEST_F(EmuFloat, immediate_operands_and_a_source_as_destination_work)
{
    const std::vector<float> a = {0.5f, -3.0f, 1e30f, 0.0f};
    auto got = apply<float>("mov.b32 %d, %a;\nfma.rn.f32 %d, %d, 0f40000000, %d;\nadd.f32 %d, 1.5, %d;", "b32", {"b32"},
                            "sm_75", a);
    ASSERT_EQ(a.size(), got.size());
    for (size_t i = 0; i < a.size(); i++)
        EXPECT_EQ(std::fma(a[i], 2.0f, a[i]) + 1.5f, got[i]);
}

TEST_F(EmuFloat, inactive_lanes_keep_their_values)
{
    std::vector<float> a(64);
    for (size_t i = 0; i < a.size(); i++)
        a[i] = float(i);
    auto got = apply<float>("mov.b32 %d, %a;\nsetp.gt.f32 %live, %a, 20.5;\n@%live add.rp.f32 %d, %a, 1.0;\n"
                            "@!%live mul.f32 %d, %a, 2.0;",
                            "b32", {"b32"}, "sm_75", a);
    ASSERT_EQ(a.size(), got.size());
    for (size_t i = 0; i < a.size(); i++)
        EXPECT_EQ(a[i] > 20.5f ? a[i] + 1 : 2 * a[i], got[i]) << i;
}

TEST_F(EmuFloat, what_the_architecture_lacks_is_refused_with_a_reason)
{
    struct Bad {
        const char *statement, *type;
    };
    for (const Bad &b : {Bad{"add.rn.f32x2 %d, %a, %a;", "b64"}, Bad{"fma.f32 %d, %a, %a, %a;", "b32"},
                         Bad{"div.f32 %d, %a, %a;", "b32"}, Bad{"div.approx.f64 %d, %a, %a;", "b64"},
                         Bad{"add.sat.f64 %d, %a, %a;", "b64"}, Bad{"min.rn.f32 %d, %a, %a;", "b32"},
                         Bad{"min.f32 %d, %a, %a, %a;", "b32"}, Bad{"neg.sat.f32 %d, %a;", "b32"},
                         Bad{"copysign.f16 %d, %a, %a;", "b16"}, Bad{"add.rs.f32 %d, %a, %a;", "b32"}}) {
        Module m(op_module(b.statement, b.type, {b.type}, "sm_90"), false);
        EXPECT_NE(CUDA_SUCCESS, m.result) << b.statement;
        if (Driver::get().emulated()) {
            EXPECT_NE(std::string::npos, m.log.find("line")) << b.statement << ": " << m.log;
        }
    }
}
} // namespace
