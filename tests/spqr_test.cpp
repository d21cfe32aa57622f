/* SpQR against the paper's words in double: no blocks, no factorisation (after each column the inverse Hessian is updated
 * by Gaussian elimination), each leave-one-out fit made anew. */
#include "quant_problem.h"

extern "C" {
#include "quant/spqr.h"
}

namespace
{

nbi_scheme spqr_scheme(unsigned bits, uint32_t group)
{
    nbi_scheme s = scheme(bits, group, false);
    EXPECT_NB_OK(nbi_spqr_scheme(&s, "a test"));
    return s;
}

struct Quantized {
    nbi_weight w = {};
    Quantized(const Problem &p, const nbi_scheme &s, const nbi_spqr_options &o, int threads = 1)
    {
        EXPECT_NB_OK(nbi_spqr(&w, &p.src, &s, p.h.data(), &o, threads));
    }
    ~Quantized() { nbi_weight_free(&w); }
    Quantized(const Quantized &) = delete;
};

/* tr(D H D^T) of a whole matrix. */
double loss(const Problem &p, const std::vector<double> &q)
{
    double sum = 0;
    std::vector<double> d(p.k);
    for (size_t r = 0; r < p.n; r++) {
        for (size_t i = 0; i < p.k; i++)
            d[i] = (double)p.w[r * p.k + i] - q[r * p.k + i];
        for (size_t i = 0; i < p.k; i++)
            for (size_t j = 0; j < p.k; j++)
                sum += d[i] * (double)p.h[i * p.k + j] * d[j];
    }
    return sum;
}

double loss(const Problem &p, const nbi_weight &w)
{
    std::vector<float> dense(p.n * p.k);
    EXPECT_NB_OK(nbi_weight_dense(&w, dense.data(), 1));
    return loss(p, std::vector<double>(dense.begin(), dense.end()));
}

double f16(double x)
{
    return (double)nbi_f16_to_f32(nbi_f32_to_f16((float)x));
}

/* What the paper's method makes of a weight. */
struct Paper {
    const Problem &p;
    size_t n, k, len;
    int top; /* codes 0 .. top */
    std::vector<size_t> order;
    std::vector<double> inverse; /* of the damped Hessian, in that order */
    std::vector<double> u;       /* U_jj */
    std::vector<double> w, out;  /* [n][k] in that order; by inputs */
    std::vector<std::vector<bool>> single;
    double threshold = 0;

    Paper(const Problem &problem, const nbi_scheme &s, const nbi_spqr_options &o)
        : p(problem), n(p.n), k(p.k), len(s.group), top((1 << s.bits) - 1), order(k), inverse(k * k), u(k), w(n * k),
          out(n * k), single(n, std::vector<bool>(k))
    {
        sort_columns(o.act_order);
        invert((double)o.damp);
        for (size_t r = 0; r < n; r++)
            for (size_t i = 0; i < k; i++)
                w[r * k + i] = dead(order[i]) ? 0 : (double)p.w[r * k + order[i]];
        /* U_jj: the root of what is left of the inverse when the columns before are gone */
        std::vector<double> left = inverse;
        for (size_t i = 0; i < k; i++) {
            u[i] = std::sqrt(left[i * k + i]);
            eliminate(left, i);
        }
        for (size_t i = 0; i < k; i++) {
            double mean = 0, var = 0;
            for (size_t r = 0; r < n; r++)
                mean += w[r * k + i] / (double)n;
            for (size_t r = 0; r < n; r++)
                var += std::pow(w[r * k + i] - mean, 2) / ((double)n - 1);
            threshold += (double)o.threshold * var / (u[i] * u[i]) / (double)k;
        }
        for (size_t i = 0; i < k; i += len)
            round_columns(i);
    }

    bool dead(size_t column) const { return p.h[column * (k + 1)] == 0; }

    void sort_columns(bool by_size)
    {
        std::vector<double> sum(k / len);
        for (size_t i = 0; i < k; i++) {
            order[i] = i;
            sum[i / len] += (double)p.h[i * (k + 1)];
        }
        if (by_size)
            std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
                return a / len != b / len ? sum[a / len] > sum[b / len] : p.h[a * (k + 1)] > p.h[b * (k + 1)];
            });
    }

    void invert(double damp)
    {
        double trace = 0;
        for (size_t i = 0; i < k; i++)
            trace += dead(i) ? 1 : (double)p.h[i * (k + 1)];
        std::vector<double> a(k * 2 * k);
        for (size_t i = 0; i < k; i++)
            for (size_t j = 0; j < k; j++) {
                a[i * 2 * k + j] = (double)p.h[order[i] * k + order[j]];
                if (i == j)
                    a[i * 2 * k + j] += damp * trace / (double)k + (dead(order[i]) ? 1 : 0);
                a[i * 2 * k + k + j] = i == j;
            }
        for (size_t i = 0; i < k; i++) {
            const double d = a[i * 2 * k + i];
            for (size_t j = 0; j < 2 * k; j++)
                a[i * 2 * k + j] /= d;
            for (size_t r = 0; r < k; r++)
                if (const double f = r == i ? 0 : a[r * 2 * k + i]; f != 0)
                    for (size_t j = 0; j < 2 * k; j++)
                        a[r * 2 * k + j] -= f * a[i * 2 * k + j];
        }
        for (size_t i = 0; i < k; i++)
            for (size_t j = 0; j < k; j++)
                inverse[i * k + j] = a[i * 2 * k + k + j];
    }

    void eliminate(std::vector<double> &m, size_t i) const
    {
        for (size_t x = i + 1; x < k; x++)
            for (size_t y = i + 1; y < k; y++)
                m[x * k + y] -= m[x * k + i] * m[i * k + y] / m[i * k + i];
    }

    double nearest(double x, double s, double z) const
    {
        return (std::min((double)top, std::max(0.0, std::nearbyint(x / s) + z)) - z) * s;
    }

    /* Error of the weights x in units of U on the grid of their range, which holds 0. */
    double error(const std::vector<double> &x, const std::vector<double> &unit) const
    {
        const double lo = std::min(0.0, *std::min_element(x.begin(), x.end())),
                     hi = std::max(0.0, *std::max_element(x.begin(), x.end())), s = hi > lo ? (hi - lo) / top : 1;
        const double z = std::min((double)top, std::nearbyint(-lo / s));
        double sum = 0;
        for (size_t i = 0; i < x.size(); i++)
            sum += std::pow((x[i] - nearest(x[i], s, z)) / unit[i], 2);
        return sum;
    }

    /* {lo, hi} of a row's group without what a fit is better off without. */
    std::pair<double, double> range(size_t r, size_t i0) const
    {
        const std::vector<double> x(&w[r * k + i0], &w[r * k + i0] + len), unit(&u[i0], &u[i0] + len);
        const double all = error(x, unit);
        std::vector<double> rest;
        for (size_t j = 0; j < len; j++) {
            std::vector<double> y = x, v = unit;
            y.erase(y.begin() + (ptrdiff_t)j);
            v.erase(v.begin() + (ptrdiff_t)j);
            if (!(all - error(y, v) > threshold))
                rest.push_back(x[j]);
        }
        double lo = 0, hi = 0;
        for (double y : rest) {
            lo = std::min(lo, y);
            hi = std::max(hi, y);
        }
        return {lo, hi};
    }

    /* Numbers of 16 rows on a grid of 3 bits. */
    static void nest(std::vector<double> &v, bool whole)
    {
        const double lo = *std::min_element(v.begin(), v.end()), hi = *std::max_element(v.begin(), v.end());
        const double base = whole ? std::nearbyint(lo) : f16(lo),
                     step = f16(std::max(whole ? 1.0 : 0.0, (hi - lo) / 7));
        for (double &x : v) {
            const double code = step > 0 ? std::min(7.0, std::max(0.0, std::nearbyint((x - base) / step))) : 0;
            x = base + code * step;
            x = whole ? std::nearbyint(x) : x;
        }
    }

    void round_columns(size_t i0)
    {
        std::vector<double> scale(n), zero(n);
        for (size_t r0 = 0; r0 < n; r0 += 16) {
            const size_t rows = std::min<size_t>(16, n - r0);
            std::vector<double> s(rows), z(rows);
            for (size_t r = 0; r < rows; r++) {
                const auto [lo, hi] = range(r0 + r, i0);
                s[r] = (hi - lo) / top;
                z[r] = -lo / s[r];
            }
            nest(s, false);
            nest(z, true);
            std::copy(s.begin(), s.end(), &scale[r0]);
            std::copy(z.begin(), z.end(), &zero[r0]);
        }
        for (size_t i = i0; i < i0 + len; i++) {
            for (size_t r = 0; r < n; r++) {
                const double z = std::min((double)top, std::max(0.0, zero[r]));
                double *x = &w[r * k], q = nearest(x[i], scale[r], z);
                if (std::pow((x[i] - q) / u[i], 2) > threshold) {
                    q = f16(x[i]);
                    single[r][order[i]] = true;
                }
                out[r * k + order[i]] = q;
                const double e = (x[i] - q) / inverse[i * k + i];
                for (size_t j = i + 1; j < k; j++)
                    x[j] -= e * inverse[i * k + j];
            }
            eliminate(inverse, i);
        }
    }
};

size_t count(const std::vector<std::vector<bool>> &v)
{
    size_t n = 0;
    for (const auto &row : v)
        n += (size_t)std::count(row.begin(), row.end(), true);
    return n;
}

} // namespace

/* fp32 against double: a weight next to the middle of two codes may fall to the other side, and what follows in its row
 * with it; so may a scale on its grid, and then 16 weights move.  The objective does not notice. */
TEST(Spqr, rounds_as_the_paper_says)
{
    uint64_t seed = 0;
    for (unsigned bits : {3u, 4u})
        for (uint32_t group : {16u, 8u})
            for (bool act_order : {true, false}) {
                Problem p(37, 96, seed += 10, 5);
                for (size_t i = 0; i < 25; i++) /* a few large ones that must stay out */
                    p.w[(i * 131) % p.w.size()] *= 12;
                const nbi_scheme s = spqr_scheme(bits, group);
                nbi_spqr_options o = nbi_spqr_defaults();
                o.act_order = act_order;
                o.block = 40;
                Quantized q(p, s, o, 2);
                const Paper want(p, s, o);
                EXPECT_NEAR(1, loss(p, q.w) / loss(p, want.out), 0.01) << bits << " " << group << " " << act_order;
                size_t differ = 0, same = 0;
                std::vector<float> dense(p.n * p.k);
                ASSERT_NB_OK(nbi_weight_dense(&q.w, dense.data(), 1));
                for (size_t i = 0; i < dense.size(); i++)
                    differ += std::fabs((double)dense[i] - want.out[i]) > 1e-5 + 1e-5 * std::fabs(want.out[i]);
                EXPECT_LE(differ, dense.size() / 50);
                for (size_t r = 0; r < p.n; r++)
                    for (size_t i = q.w.sparse.row[r]; i < q.w.sparse.row[r + 1]; i++)
                        same += want.single[r][q.w.sparse.col[i]];
                EXPECT_GE(count(want.single), 10u);
                EXPECT_GE(same, q.w.sparse.nnz * 97 / 100);
                EXPECT_GE(same, count(want.single) * 97 / 100);
                ASSERT_NB_OK(nbi_weight_check_sparse(&q.w));
            }
}

TEST(Spqr, scales_and_zero_points_are_those_of_their_grids)
{
    Problem p(40, 64, 3);
    const nbi_scheme s = spqr_scheme(4, 16);
    Quantized q(p, s, nbi_spqr_defaults());
    for (size_t n = 0; n < 40; n++)
        for (size_t g = 0; g < 4; g++) {
            const float *sg = &q.w.nested.scale_grid[(n / 16 * 4 + g) * 2],
                        *zg = &q.w.nested.zero_grid[(n / 16 * 4 + g) * 2];
            ASSERT_LT(q.w.nested.scale_code[n * 4 + g], 8);
            ASSERT_LT(q.w.nested.zero_code[n * 4 + g], 8);
            EXPECT_EQ((double)std::fma((float)q.w.nested.scale_code[n * 4 + g], sg[1], sg[0]),
                      (double)q.w.scales[n * 4 + g]);
            EXPECT_EQ(std::nearbyint(std::fma((float)q.w.nested.zero_code[n * 4 + g], zg[1], zg[0])),
                      q.w.zeros[n * 4 + g]);
            for (float x : {sg[0], sg[1], zg[0], zg[1]})
                EXPECT_EQ(f16((double)x), (double)x);
        }
    for (size_t i = 0; i < q.w.sparse.nnz; i++)
        EXPECT_EQ(f16((double)q.w.sparse.value[i]), (double)q.w.sparse.value[i]);
}

TEST(Spqr, single_numbers_save_a_layer_with_large_weights)
{
    Problem p(48, 128, 9);
    for (size_t i = 0; i < 60; i++)
        p.w[(i * 257) % p.w.size()] *= 30;
    const nbi_scheme s = spqr_scheme(3, 16);
    nbi_spqr_options o = nbi_spqr_defaults(), without = o;
    without.threshold = 1e9f;
    Quantized q(p, s, o), dense(p, s, without);
    EXPECT_EQ(0u, dense.w.sparse.nnz);
    EXPECT_GT(q.w.sparse.nnz, 30u);
    EXPECT_LT(q.w.sparse.nnz, p.w.size() / 20);
    EXPECT_LT(loss(p, q.w), 0.5 * loss(p, dense.w));
}

TEST(Spqr, the_result_does_not_depend_on_threads)
{
    Problem p(70, 160, 21);
    const nbi_scheme s = spqr_scheme(4, 16);
    Quantized one(p, s, nbi_spqr_defaults(), 1), two(p, s, nbi_spqr_defaults(), 2);
    EXPECT_EQ(0, memcmp(one.w.codes, two.w.codes, 70 * 160));
    ASSERT_EQ(one.w.sparse.nnz, two.w.sparse.nnz);
    EXPECT_EQ(0, memcmp(one.w.sparse.col, two.w.sparse.col, one.w.sparse.nnz * 4));
    EXPECT_EQ(0, memcmp(one.w.scales, two.w.scales, 70 * 10 * 4));
}

/* Groups of zeros, a layer of zeros, rows that are all alike, inputs that were never there. */
TEST(Spqr, empty_groups_and_dead_inputs_stay_finite)
{
    Problem p(20, 64, 4);
    std::fill(p.w.begin(), p.w.begin() + 3 * 64, 0.0f);
    for (size_t r = 3; r < 20; r++)
        std::fill(&p.w[r * 64 + 16], &p.w[r * 64 + 32], r % 2 ? 0.25f : 0.0f);
    for (size_t i = 0; i < 64; i++)
        p.h[i * 64 + 7] = p.h[7 * 64 + i] = 0;
    const nbi_scheme s = spqr_scheme(4, 16);
    Quantized q(p, s, nbi_spqr_defaults());
    std::vector<float> dense(20 * 64);
    ASSERT_NB_OK(nbi_weight_dense(&q.w, dense.data(), 1));
    for (size_t i = 0; i < dense.size(); i++) {
        ASSERT_TRUE(std::isfinite(dense[i])) << i;
        EXPECT_TRUE(dense[i] == 0 || (i >= 3 * 64 && i % 64 != 7)) << i;
    }
    std::fill(p.w.begin(), p.w.end(), 0.0f);
    Quantized zero(p, s, nbi_spqr_defaults());
    EXPECT_EQ(0u, zero.w.sparse.nnz);
    EXPECT_EQ(0.0, loss(p, zero.w));
}

TEST(Spqr, what_it_cannot_do_is_said)
{
    Problem p(5, 32, 2);
    nbi_spqr_options o = nbi_spqr_defaults();
    nbi_weight w = {};
    nbi_scheme s = spqr_scheme(4, 16);
    auto run = [&](const nbi_scheme &how) { return nbi_spqr(&w, &p.src, &how, p.h.data(), &o, 1); };
    EXPECT_FAILS(NB_EINVAL, "groups of 24", run(spqr_scheme(4, 24)));
    EXPECT_FAILS(NB_EINVAL, "scheme of its own", run(scheme(4, 16, false)));
    p.w[33] = NAN;
    EXPECT_FAILS(NB_EFORMAT, "output 1 is NaN", run(s));
    p.w[33] = 3e6f;
    EXPECT_FAILS(NB_EFORMAT, "float16", run(s));
    p.w[33] = 0;
    p.h[0] = INFINITY;
    EXPECT_FAILS(NB_EFORMAT, "second moments", run(s));
    p.h[0] = 1;
    o.threshold = 0;
    EXPECT_FAILS(NB_EINVAL, "threshold of 0", run(s));
    for (nbi_scheme bad : {scheme(4, 16, true), scheme(4, 0, false), scheme(4, 512, false)})
        EXPECT_FAILS(NB_EFORMAT, "recipe.json: SpQR", nbi_spqr_scheme(&bad, "recipe.json"));
}
