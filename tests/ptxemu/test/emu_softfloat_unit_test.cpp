/* The emulator's own rounding functions, from inside, where every value can be tried. */
#include "isa/elementary.h"
#include "isa/softfloat.h"
#include "test/float_values.h"

namespace
{
struct Pair {
    const char *name;
    ptxemu::FloatFormat of_emulator;
    emu::Format of_test;
};
const Pair FORMATS[] = {{"f16", ptxemu::F16, emu::f16},    {"bf16", ptxemu::BF16, emu::bf16},
                        {"tf32", ptxemu::TF32, emu::tf32}, {"f32", ptxemu::F32, emu::f32},
                        {"f64", ptxemu::F64, emu::f64},    {"e4m3", ptxemu::E4M3, emu::e4m3},
                        {"e5m2", ptxemu::E5M2, emu::e5m2}};
const std::pair<ptxemu::Round, char> ROUNDINGS[] = {{ptxemu::Round::rn, 'n'},
                                                    {ptxemu::Round::rz, 'z'},
                                                    {ptxemu::Round::rm, 'm'},
                                                    {ptxemu::Round::rp, 'p'},
                                                    {ptxemu::Round::rna, 'a'}};

TEST(EmuSoftfloat, pack_agrees_with_exact_arithmetic_in_every_format_and_mode)
{
    std::mt19937_64 r(1);
    for (const Pair &f : FORMATS)
        for (auto &round : ROUNDINGS)
            for (int i = 0; i < 20000; i++) {
                const bool negative = r() % 2, satfinite = r() % 2;
                uint64_t m = r() >> (r() % 64);
                if (r() % 3 == 0)
                    m &= ~0ull << (r() % 64); /* few bits: ties */
                const int span = f.of_test.bias() + f.of_test.mantissa_bits + 8;
                const int e = int(r() % unsigned(2 * span)) - span - 40;
                ASSERT_EQ(emu::round_to(f.of_test, {negative, m, e}, round.second, satfinite),
                          ptxemu::pack(f.of_emulator, negative, m, e, round.first, satfinite))
                    << f.name << " " << round.second << " " << m << " * 2^" << e;
            }
}

TEST(EmuSoftfloat, every_number_of_a_small_format_survives_widening_and_narrowing)
{
    for (const Pair &f : FORMATS) {
        const uint64_t n = std::min<uint64_t>(2 * f.of_emulator.sign(), 1u << 20);
        for (uint64_t b = 0; b < n; b++) {
            const double wide = ptxemu::widen(f.of_emulator, b);
            if (f.of_test.is_nan(b))
                ASSERT_TRUE(std::isnan(wide)) << f.name << " " << b;
            else
                for (auto &round : ROUNDINGS)
                    ASSERT_EQ(b, ptxemu::narrow(f.of_emulator, wide, round.first)) << f.name << " " << b;
        }
    }
}

TEST(EmuSoftfloat, the_branchless_conversions_agree_with_the_general_ones)
{
    for (uint32_t h = 0; h < 65536; h++) {
        const float of_f16 = ptxemu::f16_to_f32(uint16_t(h)), of_bf16 = ptxemu::bf16_to_f32(uint16_t(h));
        if (emu::f16.is_nan(h))
            ASSERT_TRUE(std::isnan(of_f16)) << h;
        else
            ASSERT_EQ(emu::as<uint64_t>(double(of_f16)), emu::as<uint64_t>(ptxemu::widen(ptxemu::F16, h))) << h;
        if (emu::bf16.is_nan(h))
            ASSERT_TRUE(std::isnan(of_bf16)) << h;
        else
            ASSERT_EQ(emu::as<uint64_t>(double(of_bf16)), emu::as<uint64_t>(ptxemu::widen(ptxemu::BF16, h))) << h;
    }
    auto check = [](uint32_t b) {
        const float x = emu::as<float>(b);
        ASSERT_EQ(ptxemu::narrow(ptxemu::F16, x, ptxemu::Round::rn), ptxemu::f32_to_f16(x)) << b;
        ASSERT_EQ(ptxemu::narrow(ptxemu::BF16, x, ptxemu::Round::rn), ptxemu::f32_to_bf16(x)) << b;
    };
    for (uint64_t b = 0; b < 1ull << 32;
         b += 1009) /* every exponent and, over the exponents, every pattern of low bits */
        check(uint32_t(b));
    for (uint32_t h = 0; h < 65536; h++) /* near the numbers and the midpoints of bf16, and of f16 through its f32s */
        for (uint32_t middle : {h << 16, h << 16 | 0x8000, emu::as<uint32_t>(ptxemu::f16_to_f32(uint16_t(h))),
                                emu::as<uint32_t>(ptxemu::f16_to_f32(uint16_t(h))) + 0x1000})
            for (uint32_t d : {0u, 1u, ~0u})
                check(middle + d);
}

/* Rounding to odd: the result is exact, or the one of the two neighbours whose last bit is 1. */
uint64_t odd_bits(const emu::Format &f, emu::Exact x)
{
    const uint64_t down = emu::round_to(f, x, 'z'), nearest_up = emu::round_to(f, x, x.negative ? 'm' : 'p');
    return down == nearest_up ? down : down | 1;
}

/* a * b + c of a narrow format, computed in T, whose format is `wide`. */
template <class T, class Bits>
void check_sums(const emu::Format &narrow, const emu::Format &wide, float (*value)(uint16_t))
{
    std::vector<uint16_t> a, b, c;
    emu::triples(narrow, &a, &b, &c, 100000);
    for (size_t i = 0; i < a.size(); i++) {
        if (!std::isfinite(value(a[i])) || !std::isfinite(value(b[i])) || !std::isfinite(value(c[i])))
            continue;
        const T sum = ptxemu::sum_to_odd<T>(T(value(a[i])) * T(value(b[i])), value(c[i]));
        const emu::Exact product = emu::times(emu::exact(narrow, a[i]), emu::exact(narrow, b[i]));
        const emu::Exact exact = emu::plus(product, emu::exact(narrow, c[i]), false);
        ASSERT_EQ(Bits(odd_bits(wide, exact)), emu::as<Bits>(sum)) << a[i] << " " << b[i] << " " << c[i];
    }
}

TEST(EmuSoftfloat, sums_are_rounded_to_odd)
{
    check_sums<double, uint64_t>(emu::bf16, emu::f64, ptxemu::bf16_to_f32);
    check_sums<float, uint32_t>(emu::f16, emu::f32, ptxemu::f16_to_f32);
}

TEST(EmuSoftfloat, f64_is_rounded_to_an_odd_f32)
{
    std::vector<uint64_t> v = emu::random_values<uint64_t>(emu::f64, 100000, 3);
    const std::vector<uint64_t> edges = emu::edge_values<uint64_t>(emu::f64);
    v.insert(v.end(), edges.begin(), edges.end());
    for (uint64_t x : emu::edge_values<uint64_t>(emu::f32))
        for (int d = -1; d <= 1; d++)
            v.push_back(emu::as<uint64_t>(double(emu::as<float>(uint32_t(x)))) + uint64_t(d));
    for (uint64_t x : v) {
        const float f = ptxemu::f32_to_odd(emu::as<double>(x));
        if (emu::f64.is_nan(x))
            ASSERT_TRUE(std::isnan(f)) << x;
        else if (emu::f64.is_infinity(x))
            ASSERT_EQ(double(f), emu::as<double>(x));
        else
            ASSERT_EQ(uint32_t(odd_bits(emu::f32, emu::exact(emu::f64, x))), emu::as<uint32_t>(f)) << x;
    }
}

TEST(EmuSoftfloat, exp2_and_log2_are_good_to_the_last_places_of_f64)
{
    std::mt19937_64 r(4);
    for (int i = 0; i < 200000; i++) {
        const float x = std::uniform_real_distribution<float>(-149, 128)(r);
        const long double power = exp2l(x);
        ASSERT_LE(std::fabs(ptxemu::exp2_of_f32(x) - power), 0x1p-51L * power) << x;
        const float y = std::fabs(emu::as<float>(uint32_t(r())));
        if (y == 0 || !std::isfinite(y))
            continue;
        const long double log = log2l(y);
        ASSERT_LE(std::fabs(ptxemu::log2_of_f32(y) - log), 0x1p-51L * std::fabs(log)) << y;
    }
    for (int k = 1; k < 1000; k++) { /* around 1, where the logarithm is small */
        const float y = 1 + float(k - 500) * 0x1p-23f;
        const long double log = log2l(y);
        ASSERT_LE(std::fabs(ptxemu::log2_of_f32(y) - log), 0x1p-51L * std::fabs(log)) << y;
    }
}
} // namespace
