/* SmoothQuant, AWQ, the clip search and HQQ against their formulas in double, written down again without looking at inner loops. */
#include "quant_problem.h"

extern "C" {
#include "quant/balance.h"
#include "quant/clipped.h"
#include "quant/hqq.h"
}

namespace
{

/* Problem with the other things that a text tells: sizes of inputs. */
struct Seen : Problem {
    nbi_inputs in = {};
    Seen(size_t n_, size_t k_, uint64_t seed) : Problem(n_, k_, seed)
    {
        EXPECT_NB_OK(nbi_inputs_init(&in, k, NBI_NEEDS_SIZES | NBI_NEEDS_GRAM));
        in.rows = 100;
        std::copy(h.begin(), h.end(), in.gram);
        for (size_t j = 0; j < k; j++) {
            in.abs_max[j] = 0.1f + 3 * std::sqrt(h[j * k + j] / 100);
            in.abs_sum[j] = 80 * std::sqrt((double)h[j * k + j] / 100);
        }
    }
    ~Seen() { nbi_inputs_free(&in); }
};

/* Q(w) of one group in double arithmetic on the engine's grid. */
double rounded(const nbi_grid &g, double w)
{
    return (double)nbi_grid_value(&g, nbi_grid_code(&g, (float)w));
}

nbi_grid full_range(const float *x, size_t n, const nbi_scheme &s, double f = 1)
{
    float lo = 0, hi = 0;
    for (size_t i = 0; i < n; i++) {
        lo = std::min(lo, x[i]);
        hi = std::max(hi, x[i]);
    }
    return nbi_grid_make((float)f * lo, (float)f * hi, s.bits, s.symmetric, NBI_F32);
}

double quadratic(const std::vector<double> &d, const std::vector<float> &h)
{
    const size_t k = d.size();
    double sum = 0;
    for (size_t i = 0; i < k; i++)
        for (size_t j = 0; j < k; j++)
            sum += d[i] * (double)h[i * k + j] * d[j];
    return sum;
}

} // namespace

TEST(SmoothQuant, scales_are_those_of_the_paper)
{
    Seen a(24, 48, 5), b(16, 48, 6);
    const nbi_scheme s = scheme(8, 0, true);
    nbi_weight *w[] = {&a.src, &b.src};
    const nbi_scheme *schemes[] = {&s, &s};
    const nbi_siblings l = {w, schemes, 2, 48};
    for (float alpha : {0.0f, 0.5f, 0.85f, 1.0f}) {
        std::vector<float> got(48);
        ASSERT_NB_OK(nbi_smooth_scales(got.data(), &l, &a.in, alpha));
        for (size_t j = 0; j < 48; j++) {
            double most = 0;
            for (size_t i = 0; i < 24; i++)
                most = std::max(most, std::fabs((double)a.w[i * 48 + j]));
            for (size_t i = 0; i < 16; i++)
                most = std::max(most, std::fabs((double)b.w[i * 48 + j]));
            const double want = std::pow((double)a.in.abs_max[j], (double)alpha) / std::pow(most, 1 - (double)alpha);
            EXPECT_NEAR(1, (double)got[j] / want, 1e-5) << j;
        }
    }
}

TEST(Awq, the_ratio_that_loses_least_wins)
{
    for (uint64_t seed : {1u, 2u, 3u}) {
        Seen p(40, 64, seed);
        const nbi_scheme s = scheme(4, 32, true);
        nbi_weight *w[] = {&p.src};
        const nbi_scheme *schemes[] = {&s};
        const nbi_siblings l = {w, schemes, 1, 64};
        std::vector<float> got(64);
        float ratio;
        ASSERT_NB_OK(nbi_awq_scales(got.data(), &l, &p.in, NBI_F32, 2, &ratio));

        std::vector<double> size(64), best(64, 1.0);
        for (size_t i = 0; i < 40; i++)
            for (size_t g = 0; g < 64; g += 32) {
                double most = 0;
                for (size_t j = g; j < g + 32; j++)
                    most = std::max(most, std::fabs((double)p.w[i * 64 + j]));
                for (size_t j = g; j < g + 32; j++)
                    size[j] += std::fabs((double)p.w[i * 64 + j]) / (most + 1e-6) / 40;
            }
        auto loss = [&](const std::vector<double> &scale) {
            double sum = 0;
            for (size_t i = 0; i < 40; i++) {
                std::vector<float> x(64);
                std::vector<double> d(64);
                for (size_t j = 0; j < 64; j++)
                    x[j] = (float)((double)p.w[i * 64 + j] * scale[j]);
                for (size_t j = 0; j < 64; j++) {
                    const nbi_grid g = full_range(&x[j / 32 * 32], 32, s);
                    d[j] = rounded(g, (double)x[j]) / scale[j] - (double)p.w[i * 64 + j];
                }
                sum += quadratic(d, p.h);
            }
            return sum;
        };
        double least = loss(best), won = 0;
        const double plain = least;
        for (int i = 0; i < 20; i++) {
            const double r = i / 20.0;
            std::vector<double> t(64);
            for (size_t j = 0; j < 64; j++)
                t[j] = std::max(1e-4, std::pow(p.in.abs_sum[j] / 100, r) / (std::pow(size[j], 1 - r) + 1e-4));
            const double norm =
                std::sqrt(*std::max_element(t.begin(), t.end()) * *std::min_element(t.begin(), t.end()));
            for (double &v : t)
                v /= norm;
            const double e = loss(t);
            if (e < least) {
                least = e;
                won = r;
                best = t;
            }
        }
        EXPECT_LT(least, 0.9 * plain); /* else the test would say little */
        EXPECT_NEAR(won, (double)ratio, 1e-6);
        for (size_t j = 0; j < 64; j++)
            EXPECT_NEAR(1, (double)got[j] / best[j], 1e-5);
        EXPECT_NEAR(1, loss(std::vector<double>(got.begin(), got.end())) / least, 0.01);
    }
}

/* The same moves in double: groups in turn, the clip among ten that lowers the whole row's error most. */
TEST(Clipped, groups_take_turns_until_nothing_moves)
{
    size_t differ = 0, all = 0;
    for (uint32_t group : {16u, 32u, 96u})
        for (bool symmetric : {true, false}) {
            const size_t n = 20, k = 96;
            Seen p(n, k, 40 + group);
            const nbi_scheme s = scheme(3, group, symmetric);
            nbi_weight q = {};
            ASSERT_NB_OK(nbi_clipped(&q, &p.src, &s, NBI_F32, &p.in, 2));
            double total = 0;
            for (size_t row = 0; row < n; row++) {
                const float *w = &p.w[row * k];
                std::vector<double> d(k);
                std::vector<nbi_grid> grid;
                auto put = [&](size_t g, const nbi_grid &with) {
                    for (size_t j = g * group; j < (g + 1) * group; j++)
                        d[j] = rounded(with, (double)w[j]) - (double)w[j];
                };
                for (size_t g = 0; g < k / group; g++) {
                    grid.push_back(full_range(w + g * group, group, s));
                    put(g, grid[g]);
                }
                for (int sweep = 0; sweep < 4; sweep++)
                    for (size_t g = 0; g < k / group; g++) {
                        nbi_grid best = grid[g];
                        double least = quadratic(d, p.h);
                        for (int i = 0; i < 10; i++) {
                            const nbi_grid t = full_range(w + g * group, group, s, (double)(1 - (float)i / 20));
                            put(g, t);
                            const double e = quadratic(d, p.h);
                            if (e < least) {
                                least = e;
                                best = t;
                            }
                        }
                        grid[g] = best;
                        put(g, best);
                    }
                total += quadratic(d, p.h);
                for (size_t g = 0; g < k / group; g++, all++)
                    differ += q.scales[row * (k / group) + g] != grid[g].scale;
            }
            EXPECT_NEAR(1, p.loss(q) / total, 0.01);
            EXPECT_LT(total, 0.9 * rtn_loss(p, s));
            nbi_weight_free(&q);
        }
    /* sums in fp32 may order two candidates of nearly equal error otherwise, and the groups after it follow */
    EXPECT_LE(differ, all / 50);
}
namespace
{

/* HQQ of a group in double, zero point and codes before the zero point is rounded. */
struct Split {
    double zero;
    std::vector<double> code;
};

Split half_quadratic(const float *w, size_t n, double s, double z, double lo, double hi)
{
    Split out = {z, {}};
    double beta = 10, least = INFINITY;
    for (int t = 0; t <= 20; t++, beta *= 1.01) {
        std::vector<double> code(n);
        double error = 0, sum = 0;
        for (size_t j = 0; j < n; j++) {
            code[j] = std::min(std::max(std::nearbyint((double)w[j] / s + z), lo), hi);
            error += std::fabs((double)w[j] - (code[j] - z) * s);
        }
        if (!(error < least))
            break;
        least = error;
        out = {z, code};
        for (size_t j = 0; j < n; j++) {
            const double e = (double)w[j] - (code[j] - z) * s, a = std::fabs(e);
            const double kept = a > 0 ? std::copysign(std::max(0.0, a - std::pow(a, -0.3) / beta), e) : 0;
            sum += code[j] - ((double)w[j] - kept) / s;
        }
        z = sum / (double)n;
    }
    return out;
}

/* The sum of |e|^0.7 of a group, whose zero point counts units. */
double objective(const float *w, const nbi_weight &q, size_t at, size_t len, double unit)
{
    double sum = 0;
    for (size_t j = 0; j < len; j++)
        sum += std::pow(
            std::fabs((double)w[at + j] - (q.codes[at + j] - q.zeros[at / len] / unit) * (double)q.scales[at / len]),
            0.7);
    return sum;
}

} // namespace

TEST(Hqq, zero_points_follow_half_quadratic_splitting_to_the_sixteenth)
{
    const size_t n = 31, k = 192, len = 64;
    for (unsigned bits : {4u, 3u, 2u})
        for (float size : {0.1f, 30.0f}) { /* small errors are all shrunk to nothing, large ones are not */
            Problem p(n, k, bits);
            for (size_t i = 0; i < n * k; i++)
                p.w[i] *= (size / 0.1f) * (size > 1 && i % 37 == 0 ? 6 : 1); /* and outliers */
            nbi_scheme s = scheme(bits, (uint32_t)len, false), f = s;
            f.zero_frac = 4;
            nbi_weight q = {}, other = {}, r = {};
            ASSERT_NB_OK(nbi_hqq(&q, &p.src, &f, NBI_BF16, 2));
            ASSERT_NB_OK(nbi_hqq(&other, &p.src, &f, NBI_BF16, 3));
            ASSERT_NB_OK(nbi_rtn(&r, &p.src, &s, NBI_BF16, 1));
            EXPECT_EQ(0, memcmp(q.codes, other.codes, n * k));
            EXPECT_EQ(0, memcmp(q.zeros, other.zeros, n * k / len));
            double ours = 0, theirs = 0, plain = 0;
            size_t fractions = 0;
            for (size_t at = 0; at < n * k; at += len) {
                const float *w = &p.w[at];
                const double step = (double)q.scales[at / len], half = 1u << (bits - 1);
                const float lo = std::min(0.0f, *std::min_element(w, w + len));
                ASSERT_EQ(r.scales[at / len], q.scales[at / len]);
                const Split want = half_quadratic(w, len, step, -half - (double)lo / step, -half, half - 1);
                const double zero = q.zeros[at / len] / 16.0;
                ASSERT_LE(std::fabs(want.zero - zero), 1 / 32.0 + 1e-9) << bits << " " << at;
                fractions += q.zeros[at / len] % 16 != 0;
                for (size_t j = 0; j < len; j++) {
                    theirs += std::pow(std::fabs((double)w[j] - (want.code[j] - want.zero) * step), 0.7);
                    ASSERT_EQ(std::min(std::max(std::nearbyint((double)w[j] / step + zero), -half), half - 1),
                              q.codes[at + j]);
                }
                ours += objective(p.w.data(), q, at, len, 16);
                plain += objective(p.w.data(), r, at, len, 1);
            }
            EXPECT_NEAR(1, ours / theirs, 0.01) << bits;
            if (size < 1) { /* no better than rounding where moves are rounded away */
                EXPECT_LT(ours, 0.99 * plain) << bits;
            }
            EXPECT_GT(fractions, n * k / len / 2);
            nbi_weight_free(&q);
            nbi_weight_free(&other);
            nbi_weight_free(&r);
        }
}

TEST(Hqq, groups_of_nothing_numbers_that_are_none_and_schemes_it_does_not_do)
{
    Problem p(3, 96, 5);
    nbi_scheme f = scheme(4, 32, false);
    f.zero_frac = 4;
    nbi_weight q = {};
    std::fill(p.w.begin(), p.w.begin() + 32, 0.0f);
    std::fill(p.w.begin() + 32, p.w.begin() + 64, 0.25f); /* one sign: 0 stays in the range */
    ASSERT_NB_OK(nbi_hqq(&q, &p.src, &f, NBI_F16, 1));
    std::vector<float> row(96);
    nbi_weight_row(&q, 0, row.data());
    for (size_t i = 0; i < 64; i++)
        EXPECT_NEAR(i < 32 ? 0 : 0.25, (double)row[i], 0.25 / 15 / 16);
    nbi_weight_free(&q);
    p.w[100] = NAN;
    EXPECT_FAILS(NB_EFORMAT, "row 1, column 4 is NaN", nbi_hqq(&q, &p.src, &f, NBI_F16, 2));
    f.group = 36;
    EXPECT_FAILS(NB_EINVAL, "cannot be cut into groups of 36", nbi_hqq(&q, &p.src, &f, NBI_F16, 2));
    f.group = 32;
    for (void (*spoil)(nbi_scheme &) :
         {+[](nbi_scheme &s) { s.zero_frac = 3; }, +[](nbi_scheme &s) { s.bits = 8; },
          +[](nbi_scheme &s) { s.symmetric = true; }, +[](nbi_scheme &s) { s.act = NBI_ACT_TOKEN; }}) {
        nbi_scheme bad = f;
        spoil(bad);
        EXPECT_FAILS(NB_EUNSUPPORTED, "HQQ moves zero points", nbi_hqq(&q, &p.src, &bad, NBI_F16, 1));
        Backend b("scalar");
        nbi_linear *l = nullptr;
        nbi_weight w = p.src;
        w.scheme = bad;
        std::vector<int8_t> zeros(9), codes(3 * 96);
        std::vector<float> scales(9, 1.0f);
        w.codes = codes.data(), w.scales = scales.data(), w.zeros = bad.symmetric ? nullptr : zeros.data();
        EXPECT_FAILS(NB_EUNSUPPORTED, "zero points in sixteenths go with", b->linear_create(b.be, &l, &w));
    }
    nbi_scheme s = scheme(3, 64, true);
    EXPECT_FAILS(NB_EFORMAT, "HQQ moves zero points", nbi_hqq_scheme(&s, "r"));
    s.symmetric = false;
    ASSERT_NB_OK(nbi_hqq_scheme(&s, "r"));
    EXPECT_EQ(4, s.zero_frac);
    s = scheme(8, 64, true);
    ASSERT_NB_OK(nbi_hqq_scheme(&s, "r"));
    EXPECT_EQ(0, s.zero_frac);
}
