/* Grids and round to nearest, against formulas written again in double precision. */
#include "testutil.h"

#include <cfenv>
#include <cfloat>
#include <cmath>
#include <random>

extern "C" {
#include "quant/grid.h"
#include "quant/range.h"
#include "quant/rtn.h"
}

namespace
{

const nbi_dtype kScaleTypes[] = {NBI_F32, NBI_F16, NBI_BF16};

/* F16 below its normal numbers is rounded up, so that the grid still covers the range. */
float as_stored(float s, nbi_dtype t)
{
    if (t == NBI_F16 && s < 0x1p-14f)
        return float(std::ceil(double(s) * 0x1p24) * 0x1p-24);
    unsigned char b[4];
    float back;
    nbi_from_f32(b, t, &s, 1);
    nbi_to_f32(&back, b, t, 1);
    return back;
}

struct Dense {
    size_t n, k;
    std::vector<float> x;  // [n][k], what the stored type holds
    std::vector<char> raw; // [n][k] in the stored type
    nbi_weight w = {};

    Dense(size_t n_, size_t k_, std::vector<float> v, nbi_dtype t = NBI_F32)
        : n(n_), k(k_), x(std::move(v)), raw(n * k * nbi_dtype_size(t))
    {
        nbi_from_f32(raw.data(), t, x.data(), n * k);
        nbi_to_f32(x.data(), raw.data(), t, n * k);
        w.n = n;
        w.k = k;
        w.dense_dtype = t;
        w.dense = raw.data();
    }
};

std::vector<float> random_values(size_t n, unsigned seed, float sigma = 0.05f, float mean = 0)
{
    std::mt19937 rng(seed);
    std::normal_distribution<float> d(mean, sigma);
    std::vector<float> v(n);
    for (auto &x : v)
        x = d(rng);
    return v;
}

struct Quantized {
    nbi_weight w = {};
    ~Quantized() { nbi_weight_free(&w); }
    Quantized() = default;
    Quantized(const Quantized &) = delete;
    size_t groups() const { return nbi_scheme_groups(&w.scheme, w.k); }
    float scale(size_t r, size_t c) const { return w.scales[r * groups() + c / (w.k / groups())]; }
    int zero(size_t r, size_t c) const { return w.zeros ? w.zeros[r * groups() + c / (w.k / groups())] : 0; }
};

nbi_scheme scheme_of(unsigned bits, bool symmetric, nbi_strategy strategy, uint32_t group = 0)
{
    nbi_scheme s = {};
    s.bits = uint8_t(bits);
    s.symmetric = symmetric;
    s.strategy = strategy;
    s.group = group;
    return s;
}

/* Nearest integer, ties to even, without the rounding mode of the machine. */
double nearest_even(double v)
{
    double f = std::floor(v), d = v - f;
    if (d > 0.5 || (d == 0.5 && std::fmod(f, 2) != 0))
        f += 1;
    return f;
}

} // namespace

TEST(Grid, the_worked_example_of_an_asymmetric_range)
{
    nbi_grid g = nbi_grid_make(-2.5f, 3.0f, 8, false, NBI_F32);
    EXPECT_EQ(g.scale, 5.5f / 255.0f);
    EXPECT_NEAR(g.scale, 0.0216, 0.00005);
    EXPECT_EQ(g.zero, -12);
    EXPECT_EQ(nbi_grid_code(&g, 0.0f), -12);
    EXPECT_EQ(nbi_grid_code(&g, 0.0f) - g.qmin, 116); /* counted from the bottom of the range */
    EXPECT_EQ(nbi_grid_code(&g, 3.0f), 127);
    EXPECT_EQ(nbi_grid_code(&g, -2.5f), -128);
    EXPECT_EQ(nbi_grid_value(&g, -12), 0.0f);
}

TEST(Grid, symmetric_scales_use_the_level_below_zero)
{
    nbi_grid g = nbi_grid_make(-7.5f, 2.0f, 4, true, NBI_F32);
    EXPECT_EQ(g.scale, 1.0f);
    EXPECT_EQ(g.zero, 0);
    EXPECT_EQ(nbi_grid_code(&g, -7.5f), -8); /* a tie: the even neighbour is the level below zero */
    EXPECT_EQ(nbi_grid_code(&g, 7.5f), 7);   /* its mirror image is beyond the grid */
    g = nbi_grid_make(-0.25f, 3.0f, 8, true, NBI_F32);
    EXPECT_EQ(g.scale, 3.0f / 127.5f);
}

TEST(Grid, rounding_is_to_nearest_even_and_saturates)
{
    nbi_grid g = {0.5f, 0, -8, 7};
    const struct {
        float x;
        int q;
    } cases[] = {{0.25f, 0}, {0.75f, 2},   {1.25f, 2},  {-0.25f, 0},   {-0.75f, -2},    {3.25f, 6}, {3.5f, 7},
                 {1e30f, 7}, {-1e30f, -8}, {-4.0f, -8}, {INFINITY, 7}, {-INFINITY, -8}, {NAN, -8},  {-0.0f, 0}};
    for (auto c : cases)
        EXPECT_EQ(nbi_grid_code(&g, c.x), c.q) << c.x;
}

/* The formulas of the header once more: exact rational arithmetic is close enough in double, since the fp32 quotient is
 * the rounding of the double one (24 + 24 + 2 <= 53 bits: no double rounding). */
TEST(Grid, agrees_with_the_formulas_in_double)
{
    std::mt19937 rng(11);
    std::uniform_real_distribution<double> exponent(-20, 20), part(-0.3, 1);
    for (int i = 0; i < 20000; i++) {
        float hi = float(std::exp2(exponent(rng)) * part(rng)), lo = -float(std::exp2(exponent(rng)) * part(rng));
        unsigned bits = i % 2 ? 8 : 4;
        for (nbi_dtype t : kScaleTypes) {
            float a = std::min(lo, 0.0f), b = std::max(hi, 0.0f);
            int qmin = -(1 << (bits - 1)), qmax = -qmin - 1;
            float sym = float(double(std::max(-a, b)) / (bits == 8 ? 127.5 : 7.5));
            float asym = float(double(b - a) / (bits == 8 ? 255 : 15));
            for (bool symmetric : {true, false}) {
                nbi_grid g = nbi_grid_make(lo, hi, bits, symmetric, t);
                float s = symmetric ? sym : asym;
                if (a == b) {
                    EXPECT_EQ(g.scale, 1.0f);
                    continue;
                }
                if (t != NBI_F16 || s < 65504) {
                    ASSERT_EQ(g.scale, as_stored(s, t)) << lo << " " << hi;
                }
                int z = symmetric
                            ? 0
                            : int(std::clamp<double>(qmin - nearest_even(float(double(a) / g.scale)), qmin, qmax));
                ASSERT_EQ(g.zero, z) << lo << " " << hi;
                for (float x : {lo, hi, lo / 3, hi / 7, (lo + hi) / 2, 0.0f}) {
                    int q = int(std::clamp<double>(nearest_even(float(double(x) / g.scale)) + z, qmin, qmax));
                    ASSERT_EQ(nbi_grid_code(&g, x), q) << x;
                }
            }
        }
    }
}

TEST(Grid, ranges_of_zero_and_denormals_get_the_scale_one)
{
    for (nbi_dtype t : kScaleTypes)
        for (float top : {0.0f, 1e-45f, 1e-39f})
            for (bool symmetric : {true, false}) {
                nbi_grid g = nbi_grid_make(-top, top, 8, symmetric, t);
                EXPECT_EQ(g.scale, 1.0f);
                EXPECT_EQ(g.zero, symmetric ? 0 : -128);
                EXPECT_EQ(nbi_grid_value(&g, nbi_grid_code(&g, top)), 0.0f);
            }
}

TEST(Grid, small_ranges_stay_covered_with_f16_scales)
{
    for (int e = -44; e <= -6; e++)
        for (float m : {1.0f, 1.1f, 1.5f, 1.97f}) {
            float top = std::ldexp(m, e);
            nbi_grid g = nbi_grid_make(-top, top, 8, true, NBI_F16);
            ASSERT_EQ(g.scale, as_stored(g.scale, NBI_F16));
            ASSERT_GT(g.scale, 0.0f);
            /* half a step, or for +top the distance to code 127: (127.5 * (1 + 2^-11) - 127) steps */
            ASSERT_LE(std::fabs(top - nbi_grid_value(&g, nbi_grid_code(&g, top))), 0.57 * g.scale) << top;
            ASSERT_LE(std::fabs(-top - nbi_grid_value(&g, nbi_grid_code(&g, -top))), 0.57 * g.scale) << top;
            if (g.scale > 0x1p-24f) {
                ASSERT_LE(g.scale, top / 127.5f * (1 + 0x1p-10f) + 0x1p-24f);
            }
        }
}

TEST(Grid, huge_ranges_give_finite_values)
{
    for (nbi_dtype t : kScaleTypes)
        for (bool symmetric : {true, false})
            for (float lo : {-FLT_MAX, -1e30f, 0.0f}) {
                nbi_grid g = nbi_grid_make(lo, FLT_MAX, 8, symmetric, t);
                ASSERT_TRUE(std::isfinite(g.scale));
                if (t == NBI_F16) {
                    EXPECT_EQ(g.scale, 65504.0f);
                }
                for (int q = -128; q < 128; q++)
                    ASSERT_TRUE(std::isfinite(nbi_grid_value(&g, int8_t(q))));
            }
}

TEST(Range, finds_extremes_and_what_is_not_finite)
{
    for (size_t n : {1u, 2u, 7u, 64u, 1001u}) {
        auto v = random_values(n, unsigned(n));
        float lo, hi;
        ASSERT_TRUE(nbi_range_of(v.data(), n, &lo, &hi));
        EXPECT_EQ(lo, *std::min_element(v.begin(), v.end()));
        EXPECT_EQ(hi, *std::max_element(v.begin(), v.end()));
        for (float bad : {NAN, -NAN, INFINITY, -INFINITY})
            for (size_t at : {size_t(0), n / 2, n - 1}) {
                float keep = v[at];
                v[at] = bad;
                EXPECT_FALSE(nbi_range_of(v.data(), n, &lo, &hi)) << n << " " << bad << " " << at;
                v[at] = keep;
            }
        v[n / 2] = FLT_MAX;
        v[0] = -FLT_MAX;
        ASSERT_TRUE(nbi_range_of(v.data(), n, &lo, &hi));
        EXPECT_EQ(lo, -FLT_MAX);
    }
}

/* ---- round to nearest ------------------------------------------------------------------------------------------- */

struct RtnCase {
    size_t n, k;
    unsigned bits;
    bool symmetric;
    nbi_strategy strategy;
    uint32_t group;
};
std::ostream &operator<<(std::ostream &o, const RtnCase &c)
{
    return o << c.n << "x" << c.k << " W" << c.bits << (c.symmetric ? " sym" : " asym") << " strategy " << c.strategy
             << " g" << c.group;
}

class Rtn : public ::testing::TestWithParam<RtnCase>
{
};

std::vector<RtnCase> rtn_cases()
{
    std::vector<RtnCase> v;
    for (unsigned bits : {4u, 8u})
        for (bool symmetric : {true, false}) {
            for (auto [n, k] : {std::pair<size_t, size_t>{1, 1}, {3, 5}, {7, 129}, {33, 640}, {5, 1}})
                for (auto s : {NBI_PER_TENSOR, NBI_PER_CHANNEL})
                    v.push_back({n, k, bits, symmetric, s, 0});
            v.push_back({1, 8, bits, symmetric, NBI_PER_GROUP, 8});
            v.push_back({5, 72, bits, symmetric, NBI_PER_GROUP, 24});
            v.push_back({9, 256, bits, symmetric, NBI_PER_GROUP, 128});
            v.push_back({4, 384, bits, symmetric, NBI_PER_GROUP, 32});
            v.push_back({2, 128, bits, symmetric, NBI_PER_GROUP, 128});
        }
    return v;
}
INSTANTIATE_TEST_SUITE_P(Shapes, Rtn, ::testing::ValuesIn(rtn_cases()));

TEST_P(Rtn, agrees_with_a_slow_reference)
{
    const RtnCase c = GetParam();
    int qmin = -(1 << (c.bits - 1)), qmax = -qmin - 1;
    for (nbi_dtype in : {NBI_F32, NBI_F16, NBI_BF16})
        for (nbi_dtype t : kScaleTypes) {
            Dense d(c.n, c.k, random_values(c.n * c.k, unsigned(c.n * 31 + c.k), 0.05f, 0.01f), in);
            nbi_scheme s = scheme_of(c.bits, c.symmetric, c.strategy, c.group);
            Quantized q;
            ASSERT_NB_OK(nbi_rtn(&q.w, &d.w, &s, t, 1));
            ASSERT_EQ(q.w.n, c.n);
            ASSERT_EQ(q.w.k, c.k);
            ASSERT_EQ(q.w.zeros == nullptr, c.symmetric);
            size_t len = c.strategy == NBI_PER_GROUP ? c.group : c.k, rows = c.strategy == NBI_PER_TENSOR ? c.n : 1;
            for (size_t r = 0; r < c.n; r++)
                for (size_t g = 0; g < c.k / len; g++) {
                    double lo = 0, hi = 0;
                    for (size_t y = rows == 1 ? r : 0; y < (rows == 1 ? r + 1 : c.n); y++)
                        for (size_t i = g * len; i < (g + 1) * len; i++) {
                            lo = std::min(lo, double(d.x[y * c.k + i]));
                            hi = std::max(hi, double(d.x[y * c.k + i]));
                        }
                    float span = float(hi) - float(lo); /* the one fp32 step before the division */
                    double ideal = c.symmetric ? std::max(-lo, hi) / ((qmax - qmin) / 2.0) : span / double(qmax - qmin);
                    float scale = as_stored(float(ideal), t);
                    int zero =
                        c.symmetric ? 0 : int(std::clamp<double>(qmin - nearest_even(float(lo / scale)), qmin, qmax));
                    ASSERT_EQ(q.scale(r, g * len), scale);
                    ASSERT_EQ(q.zero(r, g * len), zero);
                    for (size_t i = g * len; i < (g + 1) * len; i++) {
                        double want = nearest_even(float(double(d.x[r * c.k + i]) / scale)) + zero;
                        ASSERT_EQ(q.w.codes[r * c.k + i], int(std::clamp<double>(want, qmin, qmax))) << r << "," << i;
                    }
                }
        }
}

TEST_P(Rtn, values_are_within_half_a_step_or_at_the_end_of_the_grid)
{
    const RtnCase c = GetParam();
    Dense d(c.n, c.k, random_values(c.n * c.k, 5, 0.02f, -0.003f));
    nbi_scheme s = scheme_of(c.bits, c.symmetric, c.strategy, c.group);
    int qmin = -(1 << (c.bits - 1)), qmax = -qmin - 1;
    for (nbi_dtype t : kScaleTypes) {
        Quantized q;
        ASSERT_NB_OK(nbi_rtn(&q.w, &d.w, &s, t, 1));
        /* x/s is rounded once in fp32: |x/s| <= 2^bits has half an ulp of 2^(bits-24).  At the ends x/s may exceed the
         * last code by 0.5 and by what rounding the scale down does to 2^bits steps; an asymmetric grid's zero point is
         * rounded as well, which moves its ends by another half. */
        double slack = std::ldexp(1.0, int(c.bits) - 24);
        double scale_error = t == NBI_F32 ? 0x1p-23 : t == NBI_F16 ? 0x1p-11 : 0x1p-8;
        double end = 0.5 + (c.symmetric ? 0 : 0.5) + std::ldexp(1.0, int(c.bits)) * scale_error * 1.01 + slack;
        std::vector<float> row(c.k);
        for (size_t r = 0; r < c.n; r++) {
            nbi_weight_row(&q.w, r, row.data());
            for (size_t i = 0; i < c.k; i++) {
                double x = d.x[r * c.k + i], step = q.scale(r, i);
                int code = q.w.codes[r * c.k + i];
                ASSERT_GE(code, qmin);
                ASSERT_LE(code, qmax);
                double limit = code == qmin || code == qmax ? end : 0.5 + slack;
                ASSERT_LE(std::fabs(x - row[i]), limit * step + std::fabs(row[i]) * 0x1p-24) << r << "," << i;
            }
        }
    }
}

TEST_P(Rtn, zero_is_exact)
{
    const RtnCase c = GetParam();
    auto v = random_values(c.n * c.k, 8, 0.1f, 0.3f); /* mostly on one side */
    for (size_t i = 0; i < v.size(); i += 3)
        v[i] = 0;
    Dense d(c.n, c.k, v);
    nbi_scheme s = scheme_of(c.bits, c.symmetric, c.strategy, c.group);
    Quantized q;
    ASSERT_NB_OK(nbi_rtn(&q.w, &d.w, &s, NBI_BF16, 1));
    std::vector<float> row(c.k);
    for (size_t r = 0; r < c.n; r++) {
        nbi_weight_row(&q.w, r, row.data());
        for (size_t i = 0; i < c.k; i++)
            if (v[r * c.k + i] == 0) {
                ASSERT_EQ(row[i], 0.0f);
            }
    }
}

TEST_P(Rtn, threads_do_not_change_the_result)
{
    const RtnCase c = GetParam();
    Dense d(c.n, c.k, random_values(c.n * c.k, 21));
    nbi_scheme s = scheme_of(c.bits, c.symmetric, c.strategy, c.group);
    Quantized one;
    ASSERT_NB_OK(nbi_rtn(&one.w, &d.w, &s, NBI_F16, 1));
    for (int threads : {0, 2, 5}) {
        Quantized q;
        ASSERT_NB_OK(nbi_rtn(&q.w, &d.w, &s, NBI_F16, threads));
        EXPECT_EQ(0, memcmp(one.w.codes, q.w.codes, c.n * c.k));
        EXPECT_EQ(0, memcmp(one.w.scales, q.w.scales, c.n * one.groups() * sizeof(float)));
        if (!c.symmetric) {
            EXPECT_EQ(0, memcmp(one.w.zeros, q.w.zeros, c.n * one.groups()));
        }
    }
}

TEST_P(Rtn, the_codes_of_the_negated_weight_are_negated)
{
    const RtnCase c = GetParam();
    if (!c.symmetric)
        return;
    auto v = random_values(c.n * c.k, 33);
    Dense d(c.n, c.k, v);
    for (auto &x : v)
        x = -x;
    Dense minus(c.n, c.k, v);
    nbi_scheme s = scheme_of(c.bits, true, c.strategy, c.group);
    Quantized a, b;
    ASSERT_NB_OK(nbi_rtn(&a.w, &d.w, &s, NBI_F32, 1));
    ASSERT_NB_OK(nbi_rtn(&b.w, &minus.w, &s, NBI_F32, 1));
    int top = (1 << (c.bits - 1)) - 1;
    for (size_t i = 0; i < c.n * c.k; i++)
        if (std::abs(a.w.codes[i]) <= top && std::abs(b.w.codes[i]) <= top) {
            ASSERT_EQ(a.w.codes[i], -b.w.codes[i]);
        } else { /* only the code below zero has no mirror image */
            ASSERT_EQ(std::min(a.w.codes[i], b.w.codes[i]), -top - 1);
            ASSERT_EQ(std::max(a.w.codes[i], b.w.codes[i]), top);
        }
}

TEST(RtnCheck, one_scale_for_all_equals_one_for_each_row_when_rows_share_their_absmax)
{
    const size_t n = 6, k = 70;
    auto v = random_values(n * k, 4);
    for (size_t r = 0; r < n; r++)
        v[r * k + r * 3] = r % 2 ? 0.7f : -0.7f;
    Dense d(n, k, v);
    for (unsigned bits : {4u, 8u}) {
        nbi_scheme t = scheme_of(bits, true, NBI_PER_TENSOR), c = scheme_of(bits, true, NBI_PER_CHANNEL);
        Quantized a, b;
        ASSERT_NB_OK(nbi_rtn(&a.w, &d.w, &t, NBI_BF16, 2));
        ASSERT_NB_OK(nbi_rtn(&b.w, &d.w, &c, NBI_BF16, 2));
        EXPECT_EQ(0, memcmp(a.w.codes, b.w.codes, n * k));
        EXPECT_EQ(0, memcmp(a.w.scales, b.w.scales, n * sizeof(float)));
    }
}

TEST(RtnCheck, what_is_not_finite_is_named_with_row_and_column)
{
    const size_t n = 40, k = 96;
    for (auto [strategy, group] :
         {std::pair<nbi_strategy, uint32_t>{NBI_PER_TENSOR, 0}, {NBI_PER_CHANNEL, 0}, {NBI_PER_GROUP, 32}})
        for (nbi_dtype in : {NBI_F32, NBI_F16, NBI_BF16})
            for (int threads : {1, 4}) {
                auto v = random_values(n * k, 3);
                v[31 * k + 2] = INFINITY; /* the first row is the one to name, whichever thread finds it */
                v[17 * k + 64] = NAN;
                v[17 * k + 95] = -INFINITY;
                Dense d(n, k, v, in);
                nbi_scheme s = scheme_of(4, true, strategy, group);
                nbi_weight q = {};
                EXPECT_FAILS(NB_EFORMAT, "row 17, column 64 is NaN", nbi_rtn(&q, &d.w, &s, NBI_F32, threads));
                EXPECT_EQ(q.codes, nullptr);
            }
}

TEST(RtnCheck, weights_beyond_the_scale_dtype_are_refused)
{
    std::vector<float> v(64, 1.0f);
    v[40] = 1e8f; /* 1e8 / 127.5 > 65504 */
    Dense d(2, 32, v);
    for (auto strategy : {NBI_PER_TENSOR, NBI_PER_CHANNEL}) {
        nbi_scheme s = scheme_of(8, true, strategy);
        Quantized q, bad;
        EXPECT_FAILS(NB_EFORMAT, "F16", nbi_rtn(&bad.w, &d.w, &s, NBI_F16, 1));
        EXPECT_NB_OK(nbi_rtn(&q.w, &d.w, &s, NBI_BF16, 1));
    }
    v[40] = FLT_MAX;
    Dense huge(2, 32, v);
    nbi_scheme s = scheme_of(8, true, NBI_PER_CHANNEL);
    Quantized q;
    EXPECT_FAILS(NB_EFORMAT, "row 1", nbi_rtn(&q.w, &huge.w, &s, NBI_F32, 1));
}

TEST(RtnCheck, requests_that_make_no_sense_are_refused)
{
    Dense d(2, 48, random_values(96, 1));
    nbi_weight q = {};
    nbi_scheme s = scheme_of(4, true, NBI_PER_GROUP, 32);
    EXPECT_FAILS(NB_EINVAL, "48 weights cannot be cut into groups of 32", nbi_rtn(&q, &d.w, &s, NBI_F32, 1));
    s.group = 0;
    EXPECT_FAILS(NB_EINVAL, "groups of 0", nbi_rtn(&q, &d.w, &s, NBI_F32, 1));
    s = scheme_of(5, true, NBI_PER_CHANNEL);
    EXPECT_FAILS(NB_EINVAL, "5 bits", nbi_rtn(&q, &d.w, &s, NBI_F32, 1));
    s.bits = 8;
    EXPECT_FAILS(NB_EINVAL, "scales as I8", nbi_rtn(&q, &d.w, &s, NBI_I8, 1));
    d.w.scheme.bits = 8;
    EXPECT_FAILS(NB_EINVAL, "already", nbi_rtn(&q, &d.w, &s, NBI_F32, 1));
    d.w.scheme.bits = 0;
    d.w.dense_dtype = NBI_I32;
    EXPECT_FAILS(NB_EINVAL, "I32", nbi_rtn(&q, &d.w, &s, NBI_F32, 1));
}

TEST(RtnCheck, rows_of_zeros_stay_zeros)
{
    std::vector<float> v(3 * 16, 0.0f);
    v[20] = 1;
    Dense d(3, 16, v);
    for (bool symmetric : {true, false})
        for (auto [strategy, group] : {std::pair<nbi_strategy, uint32_t>{NBI_PER_CHANNEL, 0}, {NBI_PER_GROUP, 8}}) {
            nbi_scheme s = scheme_of(4, symmetric, strategy, group);
            Quantized q;
            ASSERT_NB_OK(nbi_rtn(&q.w, &d.w, &s, NBI_F16, 1));
            EXPECT_EQ(q.w.scales[0], 1.0f);
            float row[16];
            nbi_weight_row(&q.w, 0, row);
            for (float x : row)
                EXPECT_EQ(x, 0.0f);
        }
}

TEST(RtnCheck, the_bias_travels_along)
{
    Dense d(3, 8, random_values(24, 1));
    float bias[3] = {1, -2, 3.5f};
    d.w.bias = bias;
    nbi_scheme s = scheme_of(8, true, NBI_PER_CHANNEL);
    Quantized q;
    ASSERT_NB_OK(nbi_rtn(&q.w, &d.w, &s, NBI_F32, 1));
    ASSERT_NE(q.w.bias, nullptr);
    EXPECT_NE(q.w.bias, bias);
    EXPECT_EQ(0, memcmp(q.w.bias, bias, sizeof bias));
}

/* ---- error report ------------------------------------------------------------------------------------------------ */

TEST(QuantError, agrees_with_a_direct_sum)
{
    for (auto [n, k, group] :
         {std::tuple<size_t, size_t, uint32_t>{3, 7, 0}, {5, 600, 0}, {4, 600, 200}, {2, 1024, 512}, {6, 72, 8}}) {
        Dense d(n, k, random_values(n * k, unsigned(k)), NBI_BF16);
        nbi_scheme s = scheme_of(4, false, group ? NBI_PER_GROUP : NBI_PER_CHANNEL, group);
        Quantized q;
        ASSERT_NB_OK(nbi_rtn(&q.w, &d.w, &s, NBI_BF16, 1));
        double e2 = 0, w2 = 0, top = 0;
        std::vector<float> row(k);
        for (size_t r = 0; r < n; r++) {
            nbi_weight_row(&q.w, r, row.data());
            for (size_t i = 0; i < k; i++) {
                double w = d.x[r * k + i], e = row[i] - w;
                e2 += e * e;
                w2 += w * w;
                top = std::max(top, std::fabs(e));
            }
        }
        nbi_quant_error e;
        nbi_quant_error_of(&e, &q.w, &d.w);
        double many = double(n * k) * 0x1p-52; /* two orders of the same n*k additions */
        EXPECT_NEAR(e.mse, e2 / double(n * k), e.mse * many);
        EXPECT_NEAR(e.sqnr_db, 10 * std::log10(w2 / e2), 10 * many);
        EXPECT_EQ(e.max_abs, top);
    }
}

TEST(QuantError, an_exact_copy_has_infinite_sqnr)
{
    Dense d(2, 10, random_values(20, 1));
    nbi_quant_error e;
    nbi_quant_error_of(&e, &d.w, &d.w);
    EXPECT_EQ(e.mse, 0);
    EXPECT_EQ(e.max_abs, 0);
    EXPECT_TRUE(std::isinf(e.sqnr_db) && e.sqnr_db > 0);
}

TEST(QuantError, more_bits_and_smaller_groups_are_closer)
{
    Dense d(16, 512, random_values(16 * 512, 2));
    auto sqnr = [&](nbi_scheme s) {
        Quantized q;
        EXPECT_NB_OK(nbi_rtn(&q.w, &d.w, &s, NBI_BF16, 1));
        nbi_quant_error e;
        nbi_quant_error_of(&e, &q.w, &d.w);
        return e.sqnr_db;
    };
    double channel = sqnr(scheme_of(4, true, NBI_PER_CHANNEL)), g128 = sqnr(scheme_of(4, true, NBI_PER_GROUP, 128)),
           g32 = sqnr(scheme_of(4, true, NBI_PER_GROUP, 32)), int8 = sqnr(scheme_of(8, true, NBI_PER_CHANNEL));
    EXPECT_LT(channel, g128);
    EXPECT_LT(g128, g32);
    EXPECT_LT(g32, int8);
    EXPECT_NEAR(int8 - channel, 20 * std::log10(255 / 15.0), 1.0); /* the steps differ by 17 */
}
