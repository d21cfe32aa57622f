/* cvt and cvt.pack: every pair of types, every rounding mode, against exact integer arithmetic. */
#include <algorithm>

#include "test/float_values.h"

using namespace emu;

namespace
{
struct EmuConvert : ::testing::Test {
    Device device{"9.0"};
};
using Bits = std::vector<uint64_t>;

/* ---- running ---- */
template <class D, class A>
Bits run_as(const std::string &statement, unsigned d_bits, unsigned a_bits, const Bits &a)
{
    const std::vector<A> in(a.begin(), a.end());
    auto got = apply<D>(statement, "b" + std::to_string(d_bits), {"b" + std::to_string(a_bits)}, "sm_90", in);
    return Bits(got.begin(), got.end());
}
template <class D>
Bits run_to(const std::string &s, unsigned d_bits, unsigned a_bits, const Bits &a)
{
    return a_bits == 16   ? run_as<D, uint16_t>(s, d_bits, a_bits, a)
           : a_bits == 32 ? run_as<D, uint32_t>(s, d_bits, a_bits, a)
                          : run_as<D, uint64_t>(s, d_bits, a_bits, a);
}
/* One source in a register of a_bits, the result in one of d_bits. */
Bits run(const std::string &s, unsigned d_bits, unsigned a_bits, const Bits &a)
{
    return d_bits == 16   ? run_to<uint16_t>(s, d_bits, a_bits, a)
           : d_bits == 32 ? run_to<uint32_t>(s, d_bits, a_bits, a)
                          : run_to<uint64_t>(s, d_bits, a_bits, a);
}

/* ---- types and values ---- */
struct Integer {
    const char *name;
    unsigned bits;
    bool has_sign;
    uint64_t mask() const { return ~0ull >> (64 - bits); }
    /* As a mathematical integer; 128 bits hold them all. */
    __int128 value(uint64_t raw) const
    {
        raw &= mask();
        return has_sign && raw >> (bits - 1) ? __int128(raw) - (__int128(1) << bits) : __int128(raw);
    }
    __int128 min() const { return has_sign ? -(__int128(1) << (bits - 1)) : 0; }
    __int128 max() const { return (__int128(1) << (bits - has_sign)) - 1; }
    __int128 clamp(__int128 v) const { return v < min() ? min() : v > max() ? max() : v; }
};
const Integer INTEGERS[] = {{"u8", 8, false},   {"s8", 8, true},   {"u16", 16, false}, {"s16", 16, true},
                            {"u32", 32, false}, {"s32", 32, true}, {"u64", 64, false}, {"s64", 64, true}};
struct Float {
    const char *name;
    Format format;
    unsigned bits;
    bool is_bf16() const { return name[0] == 'b'; }
    bool is(const char *s) const { return !strcmp(name, s); }
};
const Float FLOATS[] = {{"f16", f16, 16}, {"bf16", bf16, 16}, {"f32", f32, 32}, {"f64", f64, 64}};
const std::pair<const char *, char> ROUNDINGS[] = {{".rn", 'n'}, {".rz", 'z'}, {".rm", 'm'}, {".rp", 'p'}};

std::vector<unsigned> registers_for(unsigned bits)
{
    std::vector<unsigned> r;
    for (unsigned w : {16u, 32u, 64u})
        if (w >= bits)
            r.push_back(w);
    return r;
}

/* Limits of every width and their neighbours, numbers that are ties of f16, bf16, f32 and f64, random ones of every length; the
 * bits above `bits` are random. */
Bits integer_values(unsigned bits)
{
    std::mt19937_64 r(5);
    Bits v;
    for (unsigned k = 0; k < 64; k++)
        for (int d = -2; d <= 2; d++) {
            v.push_back((1ull << k) + uint64_t(d));
            v.push_back(0 - (1ull << k) + uint64_t(d));
        }
    for (unsigned n = 12; n < 64; n++)
        for (unsigned digits : {8u, 11u, 24u, 53u})
            if (n > digits)
                for (uint64_t odd : {1ull, 3ull}) { /* digits, then exactly one half of the last */
                    uint64_t tie = 1ull << n | (odd << (n - digits)) >> 1;
                    v.insert(v.end(), {tie, tie + 1, tie - 1, 0 - tie});
                }
    for (int i = 0; i < 1000; i++)
        v.push_back(r() >> (r() % 64));
    if (bits < 64)
        for (uint64_t &x : v)
            x = (x & (~0ull >> (64 - bits))) | r() << bits;
    return v;
}

/* Of the 16-bit formats every value, unless a sanitizer makes that long. */
#ifdef __SANITIZE_ADDRESS__
constexpr unsigned EVERY = 11;
#else
constexpr unsigned EVERY = 1;
#endif

/* All 65536 of a 16-bit format; of others edges, numbers near integers, halves and the limits of integers, and random ones. */
Bits float_values(const Float &t)
{
    Bits v;
    if (t.bits == 16) {
        for (uint64_t b = 0; b < 65536; b += EVERY)
            v.push_back(b);
        const Bits edges = edge_values<uint64_t>(t.format);
        v.insert(v.end(), edges.begin(), edges.end());
        return v;
    }
    const Format &f = t.format;
    v = edge_values<uint64_t>(f);
    for (int k = -1; k <= 65; k++) /* 2^k, 2^k +- 1/2, +- 1, +- 3/2 and their neighbours */
        for (int halves = -3; halves <= 3; halves++) {
            Exact x = plus({false, 1, k}, {halves < 0, unsigned(std::abs(halves)), -1}, false);
            const uint64_t b = round_to(f, x, 'n');
            for (uint64_t y : {b, b + 1, b - 1})
                v.insert(v.end(), {y & f.nan(), y | f.sign()});
        }
    if (f.mantissa_bits > 23) /* numbers, ties and their neighbours of the narrower formats */
        for (const Format &n : {f16, bf16, f32})
            for (uint64_t b : random_values<uint64_t>(n, 300, 7)) {
                if (n.is_nan(b) || n.is_infinity(b))
                    continue;
                Exact x = exact(n, b);
                Exact tie{x.negative, x.m * 2 + 1, x.e - 1};
                const uint64_t y = round_to(f, tie, 'n');
                v.insert(v.end(), {y, y + 1, y - 1, round_to(f, x, 'n')});
            }
    else
        for (const Format &n : {f16, bf16, tf32, e4m3, e5m2})
            for (uint64_t b = 0; b<2 * n.sign(); b += n.mantissa_bits> 8 ? 13 : 1) {
                if (n.is_nan(b) || n.is_infinity(b))
                    continue;
                Exact x = exact(n, b);
                const uint64_t y = round_to(f, Exact{x.negative, x.m * 2 + 1, x.e - 1}, 'n');
                v.insert(v.end(), {y, y + 1, y - 1, round_to(f, x, 'n')});
            }
    Bits random = random_values<uint64_t>(f, 1500, 8);
    v.insert(v.end(), random.begin(), random.end());
    return v;
}

Exact exact_integer(__int128 v)
{
    return {v < 0, (unsigned __int128)(v < 0 ? -v : v), 0};
}

/* To an integer; of what is beyond 2^100, the sign is all that counts. */
__int128 rounded_integer(Exact x, char mode)
{
    if (x.e >= 0) {
        const bool huge = x.m && x.e + width(x.m) > 100;
        const __int128 m = huge ? __int128(1) << 100 : __int128(x.m << x.e);
        return x.negative ? -m : m;
    }
    const int drop = std::min(-x.e, 120);
    unsigned __int128 kept = x.m >> drop, rest = x.m - (kept << drop), half = (unsigned __int128)1 << (drop - 1);
    const bool up = mode == 'n'   ? rest > half || (rest == half && (kept & 1))
                    : mode == 'm' ? rest && x.negative
                    : mode == 'p' ? rest && !x.negative
                                  : false;
    const __int128 m = __int128(kept + up);
    return x.negative ? -m : m;
}

/* ---- integers ---- */
TEST_F(EmuConvert, integers_are_truncated_or_clamped_and_extended_to_the_register)
{
    for (const Integer &from : INTEGERS)
        for (const Integer &to : INTEGERS)
            for (unsigned a_bits : registers_for(from.bits))
                for (unsigned d_bits : registers_for(to.bits))
                    for (bool sat : {false, true}) {
                        if (sat && from.min() >= to.min() && from.max() <= to.max())
                            continue; /* nothing to clamp: .sat is not allowed */
                        const std::string name = std::string(sat ? "cvt.sat." : "cvt.") + to.name + "." + from.name;
                        const Bits a = integer_values(from.bits);
                        const Bits got = run(name + " %d, %a;", d_bits, a_bits, a);
                        auto expected = [&](size_t i) {
                            __int128 v = from.value(a[i]);
                            v = to.value(uint64_t(sat ? to.clamp(v) : v));
                            return uint64_t(v) & (~0ull >> (64 - d_bits));
                        };
                        expect_each(name + " in b" + std::to_string(d_bits), got, expected, a);
                    }
}

TEST_F(EmuConvert, integers_become_floats_rounded_in_every_direction)
{
    for (const Integer &from : INTEGERS)
        for (const Float &to : FLOATS)
            for (auto &round : ROUNDINGS)
                for (bool sat : {false, true}) {
                    if (sat && to.is_bf16())
                        continue;
                    const std::string name =
                        std::string("cvt") + round.first + (sat ? ".sat." : ".") + to.name + "." + from.name;
                    const Bits a = integer_values(from.bits);
                    /* Of bf16 an 8-bit source lies in an 8-bit register. */
                    const std::string statement = to.is_bf16() && from.bits == 8
                                                      ? "{\n.reg .b8 %q;\ncvt.u8.u16 %q, %a;\n" + name + " %d, %q;\n}"
                                                      : name + " %d, %a;";
                    const Bits got = run(statement, to.bits, std::max(from.bits, 16u), a);
                    auto expected = [&](size_t i) {
                        uint64_t r = round_to(to.format, exact_integer(from.value(a[i])), round.second);
                        return sat ? saturated(to.format, r) : r;
                    };
                    expect_each(name, got, expected, a);
                }
}

/* ---- floats to integers ---- */
uint64_t float_to_integer(const Float &from, const Integer &to, uint64_t a, char mode)
{
    const Format &f = from.format;
    if (f.is_nan(a))
        return from.bits == 64 || to.bits == 64 ? 1ull << (to.bits - 1) : 0;
    if (f.is_infinity(a))
        return uint64_t(a & f.sign() ? to.min() : to.max()) & to.mask();
    return uint64_t(to.clamp(rounded_integer(exact(f, a), mode))) & to.mask();
}

TEST_F(EmuConvert, floats_become_integers_clamped_and_rounded_in_every_direction)
{
    for (const Float &from : FLOATS) {
        const Bits a = float_values(from);
        for (const Integer &to : INTEGERS)
            for (auto &round : ROUNDINGS)
                for (bool ftz : {false, true}) {
                    if (ftz && !from.is("f32"))
                        continue;
                    const std::string name =
                        std::string("cvt") + round.first + "i" + (ftz ? ".ftz." : ".") + to.name + "." + from.name;
                    const std::string statement =
                        from.is_bf16() && to.bits == 8
                            ? "{\n.reg .b8 %q;\n" + name + " %q, %a;\ncvt." + to.name + "." + to.name + " %d, %q;\n}"
                            : name + " %d, %a;";
                    const Bits got = run(statement, std::max(to.bits, 16u), from.bits, a);
                    auto expected = [&](size_t i) {
                        const uint64_t x = ftz ? flushed(f32, a[i]) : a[i];
                        const __int128 v = to.value(float_to_integer(from, to, x, round.second));
                        return uint64_t(v) & (~0ull >> (64 - std::max(to.bits, 16u)));
                    };
                    expect_each(name, got, expected, a);
                }
    }
}

/* ---- floats to floats ---- */
uint64_t float_to_float(const Format &from, const Format &to, uint64_t a, char mode, bool satfinite = false)
{
    const uint64_t sign = a & from.sign() ? to.sign() : 0;
    if (from.is_nan(a))
        return to.nan();
    if (from.is_infinity(a))
        return sign | (satfinite ? to.max() : to.finite ? to.nan() : to.infinity());
    return round_to(to, exact(from, a), mode, satfinite);
}
/* A NaN's payload survives in f64. */
uint64_t plain_nan(const Format &f, uint64_t b)
{
    return f.is_nan(b) ? f.nan() : b;
}
Bits plain_nans(const Float &t, Bits v)
{
    if (t.bits == 64)
        for (uint64_t &x : v)
            x = plain_nan(t.format, x);
    return v;
}

bool needs_rounding(const Float &from, const Float &to)
{
    return to.format.mantissa_bits < from.format.mantissa_bits || (from.is("bf16") && to.is("f16"));
}

TEST_F(EmuConvert, floats_become_other_floats_rounded_in_every_direction)
{
    for (const Float &from : FLOATS)
        for (const Float &to : FLOATS) {
            const Bits a = float_values(from);
            for (auto &round : ROUNDINGS)
                for (const std::string modifiers : {"", ".ftz", ".sat", ".ftz.sat"}) {
                    const bool ftz = modifiers.find("ftz") != std::string::npos;
                    const bool sat = modifiers.find("sat") != std::string::npos;
                    const bool rounds = needs_rounding(from, to);
                    if (from.name == to.name || (!rounds && round.second != 'n') ||
                        (ftz && !from.is("f32") && !to.is("f32")) || (sat && (from.is_bf16() || to.is_bf16())))
                        continue;
                    const std::string name =
                        std::string("cvt") + (rounds ? round.first : "") + modifiers + "." + to.name + "." + from.name;
                    const Bits got = plain_nans(to, run(name + " %d, %a;", to.bits, from.bits, a));
                    auto expected = [&](size_t i) {
                        const uint64_t x = ftz && from.is("f32") ? flushed(f32, a[i]) : a[i];
                        uint64_t r = float_to_float(from.format, to.format, x, round.second);
                        r = ftz && to.is("f32") ? flushed(f32, r) : r;
                        return sat ? saturated(to.format, r) : r;
                    };
                    expect_each(name, got, expected, a);
                }
        }
}

TEST_F(EmuConvert, floats_are_rounded_to_integers_of_their_own_type)
{
    for (const Float &t : FLOATS) {
        const Bits a = float_values(t);
        for (auto &round : ROUNDINGS)
            for (const std::string modifiers : {"", ".ftz", ".sat"}) {
                const bool ftz = modifiers == ".ftz", sat = modifiers == ".sat";
                if ((ftz && !t.is("f32")) || (sat && t.is_bf16()))
                    continue;
                const std::string name =
                    std::string("cvt") + round.first + "i" + modifiers + "." + t.name + "." + t.name;
                const Bits got = plain_nans(t, run(name + " %d, %a;", t.bits, t.bits, a));
                auto expected = [&](size_t i) {
                    const Format &f = t.format;
                    const uint64_t x = ftz ? flushed(f, a[i]) : a[i];
                    uint64_t r = plain_nan(f, x);
                    if (!f.is_nan(x) && !f.is_infinity(x) &&
                        int(x >> f.mantissa_bits & (f.nan() >> f.mantissa_bits)) < f.bias() + f.mantissa_bits) {
                        Exact integer = exact_integer(rounded_integer(exact(f, x), round.second));
                        integer.negative = x & f.sign(); /* of a zero, too */
                        r = round_to(f, integer, 'n');
                    }
                    return sat ? saturated(f, r) : r;
                };
                expect_each(name, got, expected, a);
            }
    }
}

TEST_F(EmuConvert, sat_of_one_type_clamps_to_the_unit_interval)
{
    for (const Float &t : FLOATS) {
        if (t.is_bf16())
            continue;
        const Bits a = float_values(t);
        const std::string name = std::string("cvt.sat.") + t.name + "." + t.name;
        const Bits got = run(name + " %d, %a;", t.bits, t.bits, a);
        expect_each(
            name, got, [&](size_t i) { return saturated(t.format, a[i]); }, a);
    }
}

uint64_t relu(const Format &f, uint64_t b)
{
    return !f.is_nan(b) && (b & f.sign()) ? 0 : b;
}

TEST_F(EmuConvert, relu_and_satfinite_clamp_narrow_results)
{
    const Bits a = float_values(FLOATS[2]);
    for (const Float &to : {FLOATS[0], FLOATS[1]})
        for (const char *round : {".rn", ".rz"})
            for (const std::string modifiers : {".relu", ".satfinite", ".relu.satfinite"}) {
                const bool clamps = modifiers.find("relu") != std::string::npos;
                const bool finite = modifiers.find("satfinite") != std::string::npos;
                const std::string name = std::string("cvt") + round + modifiers + "." + to.name + ".f32";
                const Bits got = run(name + " %d, %a;", 16, 32, a);
                auto expected = [&](size_t i) {
                    const uint64_t r = float_to_float(f32, to.format, a[i], round[2], finite);
                    return clamps ? relu(to.format, r) : r;
                };
                expect_each(name, got, expected, a);
            }
}

TEST_F(EmuConvert, tf32_has_ten_bits_after_the_point)
{
    const Bits a = float_values(FLOATS[2]);
    for (const std::string modifiers : {"rna", "rna.satfinite", "rn", "rz", "rn.relu", "rz.relu"}) {
        const bool finite = modifiers.find("satfinite") != std::string::npos;
        const bool clamps = modifiers.find("relu") != std::string::npos;
        const char mode = modifiers.substr(0, 3) == "rna" ? 'a' : modifiers[1];
        const std::string name = "cvt." + modifiers + ".tf32.f32";
        Bits got = run(name + " %d, %a;", 32, 32, a);
        for (uint64_t &x : got) /* the lower 13 bits count as nothing: of a NaN they may be anything */
            x = x >> 13 << 13;
        auto expected = [&](size_t i) {
            const uint64_t r = float_to_float(f32, tf32, a[i], mode, finite);
            return (clamps ? relu(tf32, r) : r) << 13;
        };
        expect_each(name, got, expected, a);
    }
}

/* ---- pairs ---- */
std::vector<uint32_t> words(const Bits &v)
{
    return std::vector<uint32_t>(v.begin(), v.end());
}

TEST_F(EmuConvert, pairs_take_the_upper_half_from_the_first_source)
{
    struct Pair {
        const char *name;
        Format format;
        unsigned bits;
    };
    const std::vector<uint32_t> a = words(float_values(FLOATS[2]));
    std::vector<uint32_t> b = a;
    std::shuffle(b.begin(), b.end(), std::mt19937(9));
    for (const Pair &to :
         {Pair{"f16x2", f16, 16}, Pair{"bf16x2", bf16, 16}, Pair{"e4m3x2", e4m3, 8}, Pair{"e5m2x2", e5m2, 8}})
        for (const char *round : {".rn", ".rz"})
            for (const std::string modifiers : {"", ".relu", ".satfinite", ".satfinite.relu"}) {
                const bool clamps = modifiers.find("relu") != std::string::npos;
                const bool finite = modifiers.find("satfinite") != std::string::npos;
                if (to.bits == 8 && (!finite || round[2] == 'z'))
                    continue;
                const std::string name = std::string("cvt") + round + modifiers + "." + to.name + ".f32";
                auto element = [&](uint64_t x) {
                    const uint64_t r = float_to_float(f32, to.format, x, round[2], finite);
                    return clamps ? relu(to.format, r) : r;
                };
                auto expected = [&](size_t i) { return element(a[i]) << to.bits | element(b[i]); };
                const std::string s = name + " %d, %a, %b;";
                if (to.bits == 8)
                    expect_each(name, apply<uint16_t>(s, "b16", {"b32", "b32"}, "sm_90", a, b), expected, a, b);
                else
                    expect_each(name, apply<uint32_t>(s, "b32", {"b32", "b32"}, "sm_90", a, b), expected, a, b);
            }
}

TEST_F(EmuConvert, eight_bit_floats_and_f16_pairs_convert_both_ways)
{
    std::vector<uint16_t> every(65536);
    std::vector<uint32_t> halves(65536);
    for (uint32_t i = 0; i < 65536; i++) {
        every[i] = uint16_t(i);
        halves[i] = i | (i * 40503u + 77) << 16;
    }
    for (const auto &t : {std::make_pair("e4m3x2", e4m3), std::make_pair("e5m2x2", e5m2)})
        for (const char *modifier : {"", ".relu"}) {
            const Format &f = t.second;
            auto up = [&](uint64_t x) {
                const uint64_t r = float_to_float(f, f16, x, 'n');
                return *modifier ? relu(f16, r) : r;
            };
            std::string name = std::string("cvt.rn") + modifier + ".f16x2." + t.first;
            auto got = apply<uint32_t>(name + " %d, %a;", "b32", {"b16"}, "sm_90", every);
            expect_each(
                name, got, [&](size_t i) { return up(every[i] >> 8) << 16 | up(every[i] & 255); }, every);

            auto down = [&](uint64_t x) {
                const uint64_t r = float_to_float(f16, f, x, 'n', true);
                return *modifier ? relu(f, r) : r;
            };
            name = std::string("cvt.rn.satfinite") + modifier + "." + t.first + ".f16x2";
            auto narrow = apply<uint16_t>(name + " %d, %a;", "b16", {"b32"}, "sm_90", halves);
            auto expected = [&](size_t i) { return down(halves[i] >> 16) << 8 | down(halves[i] & 0xffff); };
            expect_each(name, narrow, expected, halves);
        }
}

TEST_F(EmuConvert, pack_clamps_two_integers_and_shifts_the_third)
{
    const std::vector<uint32_t> a = words(integer_values(32));
    std::vector<uint32_t> b = a, c = a;
    std::shuffle(b.begin(), b.end(), std::mt19937(1));
    std::shuffle(c.begin(), c.end(), std::mt19937(2));
    const Integer source = INTEGERS[5];
    for (const Integer &to :
         {Integer{"u16", 16, false}, Integer{"s16", 16, true}, Integer{"u8", 8, false}, Integer{"s8", 8, true},
          Integer{"u4", 4, false}, Integer{"s4", 4, true}, Integer{"u2", 2, false}, Integer{"s2", 2, true}}) {
        auto clamped = [&](uint32_t x) { return uint64_t(to.clamp(source.value(x))) & to.mask(); };
        auto expected = [&](size_t i) {
            const uint64_t pair = clamped(a[i]) << to.bits | clamped(b[i]);
            return uint32_t(to.bits == 16 ? pair : pair | uint64_t(c[i]) << (2 * to.bits));
        };
        const std::string name = std::string("cvt.pack.sat.") + to.name + ".s32";
        if (to.bits == 16)
            expect_each(name, apply<uint32_t>(name + " %d, %a, %b;", "b32", {"b32", "b32"}, "sm_90", a, b), expected, a,
                        b);
        else
            expect_each(name,
                        apply<uint32_t>(name + ".b32 %d, %a, %b, %c;", "b32", {"b32", "b32", "b32"}, "sm_90", a, b, c),
                        expected, a, b, c);
    }
}

/* ---- the rest ---- */
TEST_F(EmuConvert, sources_may_be_immediates_and_inactive_lanes_keep_their_values)
{
    const std::vector<uint32_t> a = words(integer_values(32));
    auto got = apply<uint32_t>("mov.b32 %d, %a;\nsetp.gt.s32 %live, %a, 7;\n@%live cvt.rn.f32.s32 %d, 7;", "b32",
                               {"b32"}, "sm_75", a);
    expect_each(
        "cvt.rn.f32.s32", got, [&](size_t i) { return int32_t(a[i]) > 7 ? as<uint32_t>(7.0f) : a[i]; }, a);
    got = apply<uint32_t>("cvt.u32.u8 %d, %a;\ncvt.rn.f32.u32 %d, %d;\ncvt.rzi.s32.f32 %d, %d;", "b32", {"b32"},
                          "sm_75", a);
    expect_each(
        "cvt in place", got, [&](size_t i) { return a[i] & 255; }, a);
}

TEST_F(EmuConvert, what_cvt_cannot_do_is_refused_with_a_reason)
{
    struct Bad {
        const char *statement, *d_type, *a_type;
    };
    for (const Bad &b :
         {Bad{"cvt.f32.s32 %d, %a;", "b32", "b32"},           Bad{"cvt.s32.f32 %d, %a;", "b32", "b32"},
          Bad{"cvt.rn.f32.f32 %d, %a;", "b32", "b32"},        Bad{"cvt.f16.f32 %d, %a;", "b16", "b32"},
          Bad{"cvt.rn.f32.f16 %d, %a;", "b32", "b16"},        Bad{"cvt.rzi.f32.f16 %d, %a;", "b32", "b16"},
          Bad{"cvt.rna.f16.f32 %d, %a;", "b16", "b32"},       Bad{"cvt.rn.sat.bf16.f32 %d, %a;", "b16", "b32"},
          Bad{"cvt.rn.e4m3x2.f32 %d, %a, %a;", "b16", "b32"}, Bad{"cvt.rs.f16x2.f32 %d, %a, %a, %a;", "b32", "b32"},
          Bad{"cvt.rm.f16x2.f32 %d, %a, %a;", "b32", "b32"},  Bad{"cvt.b32.u16 %d, %a;", "b32", "b16"},
          Bad{"cvt.rn.relu.f32.s32 %d, %a;", "b32", "b32"},   Bad{"cvt.u32.u32 %d, %a, %a;", "b32", "b32"},
          Bad{"cvt.rn.bf16x2.bf16x2 %d, %a;", "b32", "b32"},  Bad{"cvt.u64.u64 %d, %a;", "b32", "b64"},
          Bad{"cvt.rn.bf16.u16 %d, %a;", "b16", "b32"},       Bad{"cvt.u64.u64 %d, %a;", "b64", "b32"},
          Bad{"cvt.pack.s16.s32 %d, %a, %a;", "b32", "b32"},  Bad{"cvt.pack.sat.s8.s32 %d, %a, %a;", "b32", "b32"}}) {
        Module m(op_module(b.statement, b.d_type, {b.a_type}, "sm_90"), false);
        EXPECT_NE(CUDA_SUCCESS, m.result) << b.statement;
    }
}

TEST(EmuConvertOldDevice, conversions_of_newer_architectures_are_refused)
{
    if (!Driver::get().emulated())
        GTEST_SKIP() << "needs an emulated device of compute capability 8.0";
    Device device("8.0");
    for (const char *s : {"cvt.rn.bf16.s32 %d, %a;", "cvt.rn.satfinite.e4m3x2.f32 %d, %a, %a;"}) {
        Module m(op_module(s, "b16", {"b32"}, "sm_80"), false);
        EXPECT_NE(CUDA_SUCCESS, m.result) << s;
    }
    Module tf32(op_module("cvt.rn.tf32.f32 %d, %a;", "b32", {"b32"}, "sm_80"), false);
    EXPECT_NE(CUDA_SUCCESS, tf32.result);
    Module bf16(op_module("cvt.rn.bf16.f32 %d, %a;", "b16", {"b32"}, "sm_80"));
    EXPECT_EQ(CUDA_SUCCESS, bf16.result);
}
} // namespace
