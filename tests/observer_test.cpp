/* Observers against slow references on the raw data.
 *
 * The bound that most tests use: e(x) = |x - Q(x)| is the distance to a set of points, so it changes by at most |x - y|
 * between x and y.  A histogram moves each value by less than a bin, hence the root mean squared error that it predicts
 * for a grid is within one bin width of the true one, and the best grid by histogram is within two widths of the best. */
#include "testutil.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <memory>
#include <random>

extern "C" {
#include "quant/observer.h"
}

namespace
{

using Values = std::vector<float>;

std::unique_ptr<nbi_observer> observe(const Values &x, const std::vector<size_t> &cuts = {})
{
    auto o = std::make_unique<nbi_observer>();
    nbi_observer_init(o.get());
    size_t at = 0;
    for (size_t c : cuts) {
        nbi_observer_add(o.get(), x.data() + at, c - at);
        at = c;
    }
    nbi_observer_add(o.get(), x.data() + at, x.size() - at);
    return o;
}

double width(const nbi_observer &o)
{
    return o.half_range / (NBI_OBSERVER_BINS / 2);
}

nbi_grid grid_of(const nbi_observer &o, nbi_observer_method m, bool symmetric, unsigned bits = 8,
                 double percentile = 99.9)
{
    nbi_grid g = {};
    EXPECT_NB_OK(nbi_observer_grid(&o, m, percentile, bits, symmetric, &g));
    return g;
}

double rmse(const nbi_grid &g, const Values &x)
{
    double sum = 0;
    for (float v : x) {
        double e = v - double(nbi_grid_value(&g, nbi_grid_code(&g, v)));
        sum += e * e;
    }
    return std::sqrt(sum / double(x.size()));
}
double rms(const Values &x)
{
    double sum = 0;
    for (float v : x)
        sum += double(v) * v;
    return std::sqrt(sum / double(x.size()));
}

Values gaussian(size_t n, unsigned seed, float sigma = 1)
{
    std::mt19937 rng(seed);
    std::normal_distribution<float> d(0, sigma);
    Values v(n);
    for (auto &x : v)
        x = d(rng);
    return v;
}
Values relu(Values v)
{
    for (auto &x : v)
        x = std::max(x, 0.0f);
    return v;
}
/* What large language models show: a few channels a hundred times larger than the rest. */
Values with_outliers(Values v, float size)
{
    for (size_t i = 7; i < v.size(); i += 1009)
        v[i] *= size;
    return v;
}
Values laplace(size_t n, unsigned seed)
{
    std::mt19937 rng(seed);
    std::exponential_distribution<float> d(1);
    Values v(n);
    for (auto &x : v)
        x = rng() % 2 ? d(rng) : -d(rng);
    return v;
}

struct Stream {
    const char *name;
    Values x;
};
std::vector<Stream> streams()
{
    Values skew = gaussian(20000, 5);
    for (auto &x : skew)
        x = x > 0 ? 3 * x : x * 0.4f;      /* as after SiLU: long to one side */
    Values high = gaussian(20000, 9), low; /* few outliers, all on one side */
    for (int i = 0; i < 3; i++)
        high[i] = 12.0f + i;
    for (float x : high)
        low.push_back(-x);
    Values below = laplace(20000, 10), above;
    for (auto &x : below)
        x = x > 0 ? 0.1f * x : 3 * x; /* a long tail on one side */
    for (float x : below)
        above.push_back(-x);
    return {{"long below", below},
            {"long above", above},
            {"gaussian", gaussian(20000, 1)},
            {"outliers above", high},
            {"outliers below", low},
            {"small", gaussian(5000, 2, 1e-6f)},
            {"laplace", laplace(20000, 3)},
            {"relu", relu(gaussian(20000, 4))},
            {"skewed", skew},
            {"outliers", with_outliers(gaussian(20000, 6), 20)},
            {"heavy outliers", with_outliers(gaussian(20000, 7), 100)}};
}

} // namespace

/* ---- collecting -------------------------------------------------------------------------------------------------- */

TEST(Observer, every_value_is_in_the_bin_that_its_quotient_names)
{
    for (auto &s : streams()) {
        auto o = observe(s.x);
        std::vector<uint64_t> want(NBI_OBSERVER_BINS);
        float absmax = 0;
        for (float v : s.x)
            absmax = std::max(absmax, std::fabs(v));
        EXPECT_GT(o->half_range, absmax) << s.name;
        EXPECT_LE(o->half_range, 2 * absmax) << s.name;
        EXPECT_EQ(std::log2(o->half_range), std::floor(std::log2(o->half_range)));
        for (float v : s.x)
            want[size_t(std::floor(double(v) / width(*o)) + NBI_OBSERVER_BINS / 2)]++;
        EXPECT_EQ(0, memcmp(want.data(), o->bins, sizeof o->bins)) << s.name;
        EXPECT_EQ(o->count, s.x.size());
        EXPECT_EQ(o->lo, *std::min_element(s.x.begin(), s.x.end()));
        EXPECT_EQ(o->hi, *std::max_element(s.x.begin(), s.x.end()));
    }
}

TEST(Observer, the_cuts_and_the_order_of_a_stream_do_not_matter)
{
    std::mt19937 rng(99);
    for (auto &s : streams()) {
        Values x = s.x;
        x.resize(3000);
        for (int i = 0; i < 40; i++) /* magnitudes that make the range grow by one step, by many, and from tiny */
            x[rng() % x.size()] *= std::ldexp(1.0f, int(rng() % 60) - 50);
        x[0] = 0;
        x[1] = -0.0f;
        auto whole = observe(x);
        for (int i = 0; i < 20; i++) {
            std::vector<size_t> cuts;
            for (size_t c = 0; c < x.size(); c += rng() % (i < 5 ? 3 : 900))
                cuts.push_back(c);
            auto o = observe(x, cuts);
            ASSERT_EQ(0, memcmp(whole->bins, o->bins, sizeof o->bins)) << s.name;
            ASSERT_EQ(whole->half_range, o->half_range);
            ASSERT_EQ(whole->count, o->count);
            ASSERT_EQ(whole->lo, o->lo);
            ASSERT_EQ(whole->hi, o->hi);
            std::shuffle(x.begin(), x.end(), rng);
        }
    }
}

TEST(Observer, extremes_of_fp32_are_counted)
{
    Values x = {FLT_MAX, -FLT_MAX, 1e-45f, -1e-45f, 0, 0x1p127f, 1.5f};
    auto whole = observe(x), parts = observe(x, {1, 2, 3, 4, 5, 6});
    EXPECT_EQ(0, memcmp(whole->bins, parts->bins, sizeof whole->bins));
    EXPECT_EQ(whole->bins[NBI_OBSERVER_BINS - 1], 2u);
    EXPECT_EQ(whole->bins[0], 1u);
    for (auto m : {NBI_OBS_MINMAX, NBI_OBS_PERCENTILE, NBI_OBS_MSE, NBI_OBS_KL})
        for (bool symmetric : {true, false}) {
            EXPECT_TRUE(std::isfinite(grid_of(*whole, m, symmetric).scale));
            EXPECT_GT(grid_of(*observe({1e-40f, -3e-41f}), m, symmetric).scale, 0);
            EXPECT_GT(grid_of(*observe({1e-36f, -3e-37f}), m, symmetric).scale, 0);
        }
}

TEST(Observer, refuses_what_it_cannot_answer)
{
    nbi_grid g;
    auto none = observe({});
    EXPECT_FAILS(NB_EINVAL, "no activations", nbi_observer_grid(none.get(), NBI_OBS_MINMAX, 0, 8, true, &g));
    for (float bad : {NAN, INFINITY, -INFINITY}) {
        auto o = observe({1, 2, 3, bad, 4, 5}, {2, 4});
        EXPECT_FAILS(NB_EFORMAT, "NaN or infinity", nbi_observer_grid(o.get(), NBI_OBS_MSE, 0, 8, true, &g));
    }
    auto o = observe({1, 2});
    EXPECT_FAILS(NB_EINVAL, "5 bits", nbi_observer_grid(o.get(), NBI_OBS_MINMAX, 0, 5, true, &g));
    for (double p : {50.0, 0.0, 100.01, double(NAN)})
        EXPECT_FAILS(NB_EINVAL, "percentile", nbi_observer_grid(o.get(), NBI_OBS_PERCENTILE, p, 8, true, &g));
}

TEST(Observer, method_names)
{
    nbi_observer_method m;
    EXPECT_TRUE(nbi_observer_method_from_name("minmax", &m) && m == NBI_OBS_MINMAX);
    EXPECT_TRUE(nbi_observer_method_from_name("percentile", &m) && m == NBI_OBS_PERCENTILE);
    EXPECT_TRUE(nbi_observer_method_from_name("mse", &m) && m == NBI_OBS_MSE);
    EXPECT_TRUE(nbi_observer_method_from_name("kl", &m) && m == NBI_OBS_KL);
    EXPECT_FALSE(nbi_observer_method_from_name("MSE", &m));
    EXPECT_FALSE(nbi_observer_method_from_name("", &m));
}

/* ---- grids ------------------------------------------------------------------------------------------------------- */

TEST(ObserverGrid, minmax_is_the_grid_of_the_exact_extremes)
{
    for (auto &s : streams())
        for (bool symmetric : {true, false})
            for (unsigned bits : {4u, 8u}) {
                auto o = observe(s.x);
                nbi_grid g = grid_of(*o, NBI_OBS_MINMAX, symmetric, bits);
                nbi_grid want = nbi_grid_make(o->lo, o->hi, bits, symmetric, NBI_F32);
                EXPECT_EQ(g.scale, want.scale);
                EXPECT_EQ(g.zero, want.zero);
            }
}

TEST(ObserverGrid, all_methods_keep_to_a_constant_and_to_zero)
{
    for (auto m : {NBI_OBS_MINMAX, NBI_OBS_PERCENTILE, NBI_OBS_MSE, NBI_OBS_KL})
        for (bool symmetric : {true, false}) {
            nbi_grid z = grid_of(*observe(Values(100, 0.0f)), m, symmetric);
            EXPECT_EQ(z.scale, 1.0f);
            EXPECT_EQ(nbi_grid_value(&z, nbi_grid_code(&z, 0)), 0.0f);
            for (float c : {3.7f, -3.7f, 1e-5f, -1024.0f, 1.0f}) {
                auto o = observe(Values(1000, c));
                nbi_grid g = grid_of(*o, m, symmetric);
                /* within half a step; a percentile may end a bin early (a 1024th of c) */
                EXPECT_NEAR(nbi_grid_value(&g, nbi_grid_code(&g, c)), c, 0.51 * g.scale + width(*o)) << m << " " << c;
                EXPECT_LE(g.scale, std::fabs(c) / (symmetric ? 127.5 : 255) * 1.0001) << m << " " << c;
            }
        }
}

TEST(ObserverGrid, one_sided_values_use_the_whole_asymmetric_grid)
{
    Values x = relu(gaussian(20000, 4)), minus = x;
    for (auto &v : minus)
        v = -v;
    for (auto m : {NBI_OBS_MINMAX, NBI_OBS_PERCENTILE, NBI_OBS_MSE, NBI_OBS_KL}) {
        EXPECT_EQ(grid_of(*observe(x), m, false).zero, -128) << m;
        EXPECT_EQ(grid_of(*observe(minus), m, false).zero, 127) << m;
        EXPECT_NEAR(grid_of(*observe(x), m, false).scale * 2, grid_of(*observe(x), m, true).scale,
                    0.25 * grid_of(*observe(x), m, true).scale)
            << m;
    }
}

/* The clip is where a sorted copy of the data says, to a bin. */
TEST(ObserverGrid, percentile_is_the_order_statistic)
{
    for (auto &s : streams())
        for (double p : {60.0, 90.0, 99.0, 99.9, 100.0}) {
            auto o = observe(s.x);
            Values mag = s.x, sorted = s.x;
            for (auto &v : mag)
                v = std::fabs(v);
            std::sort(mag.begin(), mag.end());
            std::sort(sorted.begin(), sorted.end());
            size_t rank = std::min(mag.size() - 1, size_t(std::ceil(p / 100 * double(mag.size()))) - 1);
            nbi_grid g = grid_of(*o, NBI_OBS_PERCENTILE, true, 8, p);
            EXPECT_NEAR(g.scale * 127.5, mag[rank], width(*o) * 1.001) << s.name << " " << p;
            g = grid_of(*o, NBI_OBS_PERCENTILE, false, 8, p);
            double lo = std::min(sorted[sorted.size() - 1 - rank], 0.0f), hi = std::max(sorted[rank], 0.0f);
            EXPECT_NEAR(g.scale * 255, hi - lo, 2 * width(*o) * 1.001) << s.name << " " << p;
        }
}

TEST(ObserverGrid, mse_is_as_good_as_a_search_on_the_raw_data)
{
    for (auto &s : streams())
        for (unsigned bits : {4u, 8u}) {
            auto o = observe(s.x);
            double absmax = std::max(-o->lo, o->hi), best = INFINITY, w = width(*o);
            for (double f = 1; f > 1 / 512.0; f *= 0.985) {
                nbi_grid g = nbi_grid_make(float(-absmax * f), float(absmax * f), bits, true, NBI_F32);
                best = std::min(best, rmse(g, s.x));
            }
            /* the last steps of the search are 2^(1/256) apart, and scaling a grid by f moves x/f by |x| (f - 1) */
            double spacing = (std::exp2(1 / 256.0) - 1) * rms(s.x);
            double found = rmse(grid_of(*o, NBI_OBS_MSE, true, bits), s.x);
            EXPECT_LE(found, best + 2 * w + spacing) << s.name;
            EXPECT_LE(found, rmse(grid_of(*o, NBI_OBS_MINMAX, true, bits), s.x) + 2 * w) << s.name;
        }
}

TEST(ObserverGrid, asymmetric_mse_searches_both_ends)
{
    for (auto &s : streams()) {
        const unsigned bits = 4; /* where clipping pays */
        auto o = observe(s.x);
        double best = INFINITY, w = width(*o);
        Values some(s.x.begin(), s.x.begin() + 4000); /* the slow search only looks at a part */
        auto part = observe(some);
        double pw = width(*part), lo0 = std::min(part->lo, 0.0f), hi0 = std::max(part->hi, 0.0f);
        for (double a = 1; a > 1 / 300.0; a *= 0.85)
            for (double b = 1; b > 1 / 300.0; b *= 0.85) {
                nbi_grid g = nbi_grid_make(float(lo0 * a), float(hi0 * b), bits, false, NBI_F32);
                best = std::min(best, rmse(g, some));
            }
        double spacing = (std::exp2(1 / 256.0) - 1) * rms(some);
        double found = rmse(grid_of(*part, NBI_OBS_MSE, false, bits), some);
        EXPECT_LE(found, best + 2 * pw + spacing) << s.name;
        if (pw < best / 10) { /* where bins are fine, the finer steps of the search must show */
            EXPECT_LE(found, 1.005 * best) << s.name;
        }
        EXPECT_LE(rmse(grid_of(*o, NBI_OBS_MSE, false, bits), s.x),
                  rmse(grid_of(*o, NBI_OBS_MINMAX, false, bits), s.x) + 2 * w);
    }
}

/* Nothing but the side on which a bin includes its end, and the rounding of the zero point, tells left from right. */
TEST(ObserverGrid, the_two_ends_are_treated_alike)
{
    for (auto &s : streams()) {
        Values minus = s.x;
        for (auto &v : minus)
            v = -v;
        auto o = observe(s.x), mirrored = observe(minus);
        for (auto m : {NBI_OBS_MINMAX, NBI_OBS_PERCENTILE, NBI_OBS_MSE})
            for (unsigned bits : {4u, 8u}) {
                nbi_grid a = grid_of(*o, m, false, bits), b = grid_of(*mirrored, m, false, bits);
                EXPECT_NEAR(rmse(a, s.x), rmse(b, minus), 0.02 * rmse(a, s.x))
                    << s.name << " method " << m << " bits " << bits;
            }
    }
}

TEST(ObserverGrid, clipping_helps_against_heavy_outliers)
{
    /* One value in 1009 is 30 times as wide: at 4 bits a grid that covers it rounds nearly all others to zero. */
    Values x = with_outliers(gaussian(40000, 8), 30);
    auto o = observe(x);
    nbi_grid all = grid_of(*o, NBI_OBS_MINMAX, true, 4);
    for (auto m : {NBI_OBS_PERCENTILE, NBI_OBS_MSE, NBI_OBS_KL})
        EXPECT_LT(grid_of(*o, m, true, 4).scale, 0.75 * all.scale) << m;
    EXPECT_LT(rmse(grid_of(*o, NBI_OBS_MSE, true, 4), x), rmse(all, x));
    for (auto m : {NBI_OBS_PERCENTILE, NBI_OBS_MSE, NBI_OBS_KL}) { /* at both ends: here they are alike */
        nbi_grid g = grid_of(*o, m, false, 4);
        EXPECT_GT((g.qmin - g.zero) * g.scale, 0.75f * o->lo) << m;
        EXPECT_LT((g.qmax - g.zero) * g.scale, 0.75f * o->hi) << m;
    }
}

/* ---- entropy, as in the published code: counts in arrays, no running sums ------------------------------------------ */

namespace
{

double slow_kl(const std::vector<double> &h, size_t a, size_t b, size_t levels)
{
    size_t n = b - a;
    std::vector<double> p(h.begin() + long(a), h.begin() + long(b)), q(n, 0), mass(levels, 0), filled(levels, 0);
    for (size_t j = 0; j < n; j++)
        if (p[j] > 0) {
            mass[j * levels / n] += p[j];
            filled[j * levels / n]++;
        }
    for (size_t j = 0; j < n; j++)
        if (p[j] > 0)
            q[j] = mass[j * levels / n] / filled[j * levels / n];
    for (size_t j = 0; j < a; j++)
        p[0] += h[j];
    for (size_t j = b; j < h.size(); j++)
        p[n - 1] += h[j];
    double sp = 0, sq = 0, d = 0;
    for (size_t j = 0; j < n; j++) {
        sp += p[j];
        sq += q[j];
    }
    for (size_t j = 0; j < n; j++)
        if (p[j] > 0)
            d += q[j] > 0 ? p[j] / sp * std::log(p[j] / sp / (q[j] / sq)) : INFINITY;
    return d;
}

} // namespace

TEST(ObserverGrid, symmetric_kl_finds_the_least_divergence)
{
    const size_t zero = NBI_OBSERVER_BINS / 2;
    for (auto &s : streams())
        for (unsigned bits : {4u, 8u}) {
            auto o = observe(s.x);
            double absmax = std::max(-o->lo, o->hi), w = width(*o);
            std::vector<double> h(size_t(absmax / w) + 1);
            for (size_t j = 0; j < h.size(); j++)
                h[j] = double(o->bins[zero + j] + o->bins[zero - 1 - j]);
            if (h[1] > 0)
                h[0] = h[1];
            size_t levels = size_t(1) << (bits - 1), best = 0;
            double least = INFINITY;
            for (size_t i = levels; i <= h.size(); i += 1) {
                double d = slow_kl(h, 0, i, levels);
                if (d <= least) {
                    least = d;
                    best = i;
                }
            }
            double clip = grid_of(*o, NBI_OBS_KL, true, bits).scale * (bits == 8 ? 127.5 : 7.5);
            /* the same window, or one that is as good to rounding */
            size_t got = std::min(h.size(), size_t(std::lround(clip / w)));
            if (clip < absmax * 0.9999) {
                EXPECT_NEAR(slow_kl(h, 0, got, levels), least, 1e-9) << s.name << " " << got << " " << best;
            } else {
                EXPECT_NEAR(slow_kl(h, 0, h.size(), levels), least, 1e-9) << s.name << " " << best;
            }
        }
}

/* The grid gives its window away: the span is exact, the lower end is known to half a step.  So the best of a few
 * windows must be no worse than every window that a coarse search of both ends looks at. */
TEST(ObserverGrid, asymmetric_kl_is_no_worse_than_a_coarse_search_of_both_ends)
{
    const long zero = NBI_OBSERVER_BINS / 2;
    for (auto &s : streams())
        for (unsigned bits : {4u, 8u}) {
            const size_t levels = size_t(1) << bits;
            auto o = observe(s.x);
            double w = width(*o), lo = std::min(o->lo, 0.0f), hi = std::max(o->hi, 0.0f);
            long from = zero + long(std::floor(lo / w)), to = zero + long(hi / w) + 1;
            std::vector<double> h(o->bins, o->bins + to);
            if (uint64_t beside = std::max(o->bins[zero + 1], o->bins[zero - 1]))
                h[size_t(zero)] = double(beside);
            nbi_grid g = grid_of(*o, NBI_OBS_KL, false, bits);
            long span = std::lround(g.scale * float(levels - 1) / w),
                 a0 = zero + std::lround((g.qmin - g.zero) * double(g.scale) / w);
            long half = long(g.scale / w / 2) + 2;
            double found = INFINITY;
            for (long a = std::max(from, a0 - half); a <= std::min(zero, a0 + half); a++)
                for (long b = std::max(zero + 1, a + span - 1); b <= std::min(to, a + span + 1); b++)
                    found = std::min(found, slow_kl(h, size_t(a), size_t(b), levels));
            for (long a = from; a <= zero; a += 96)
                for (long b = to; b > zero; b -= 96)
                    if (b - a >= long(levels)) {
                        ASSERT_LE(found, slow_kl(h, size_t(a), size_t(b), levels) + 1e-9)
                            << s.name << " [" << a << "," << b << ") of [" << from << "," << to << ")";
                    }
        }
}
