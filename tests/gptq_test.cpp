/* GPTQ against the algorithm as the paper states it before its reformulation: after each column the inverse Hessian is
 * updated by Gaussian elimination, in double, without blocks and without a factorisation. */
#include "quant_problem.h"

extern "C" {
#include "quant/gptq.h"
}

namespace
{

nbi_grid grid_of(const double *x, size_t n, const nbi_scheme &s)
{
    double lo = 0, hi = 0;
    for (size_t i = 0; i < n; i++) {
        lo = std::min(lo, x[i]);
        hi = std::max(hi, x[i]);
    }
    return nbi_grid_make((float)lo, (float)hi, s.bits, s.symmetric, NBI_F32);
}

std::vector<int8_t> paper(const Problem &p, const nbi_scheme &s, const nbi_gptq_options &o)
{
    const size_t k = p.k, groups = nbi_scheme_groups(&s, k), len = k / groups;
    std::vector<double> inv(k * k), a(k * 2 * k);
    std::vector<size_t> order(k);
    double trace = 0;
    for (size_t i = 0; i < k; i++) {
        order[i] = i;
        trace += p.h[i * k + i] == 0 ? 1 : (double)p.h[i * k + i];
    }
    if (o.act_order)
        std::stable_sort(order.begin(), order.end(),
                         [&](size_t x, size_t y) { return p.h[x * k + x] > p.h[y * k + y]; });
    for (size_t i = 0; i < k; i++)
        for (size_t j = 0; j < k; j++) {
            a[i * 2 * k + j] = (double)p.h[order[i] * k + order[j]];
            if (i == j)
                a[i * 2 * k + j] += (double)o.damp * trace / (double)k + (a[i * 2 * k + j] == 0 ? 1 : 0);
            a[i * 2 * k + k + j] = i == j;
        }
    for (size_t i = 0; i < k; i++) { /* Gauss and Jordan: positive definite, no pivots */
        double d = a[i * 2 * k + i];
        for (size_t j = 0; j < 2 * k; j++)
            a[i * 2 * k + j] /= d;
        for (size_t r = 0; r < k; r++)
            if (r != i) {
                double f = a[r * 2 * k + i];
                for (size_t j = 0; j < 2 * k; j++)
                    a[r * 2 * k + j] -= f * a[i * 2 * k + j];
            }
    }
    std::vector<int8_t> codes(p.n * k);
    for (size_t r = 0; r < p.n; r++) {
        for (size_t i = 0; i < k; i++)
            for (size_t j = 0; j < k; j++)
                inv[i * k + j] = a[i * 2 * k + k + j];
        std::vector<double> w(k);
        std::vector<nbi_grid> grids(groups);
        for (size_t i = 0; i < k; i++)
            w[i] = p.h[i * k + i] == 0 ? 0 : (double)p.w[r * k + i];
        for (size_t g = 0; g < groups; g++)
            grids[g] = grid_of(&w[g * len], len, s);
        for (size_t i = 0; i < k; i++) {
            const size_t c = order[i];
            if (!o.static_groups && c % len == 0)
                grids[c / len] = grid_of(&w[c], len, s);
            const nbi_grid &g = grids[c / len];
            codes[r * k + c] = nbi_grid_code(&g, (float)w[c]);
            const double err = (w[c] - (double)nbi_grid_value(&g, codes[r * k + c])) / inv[i * k + i];
            for (size_t j = i + 1; j < k; j++)
                w[order[j]] -= err * inv[i * k + j];
            for (size_t x = i + 1; x < k; x++)
                for (size_t y = i + 1; y < k; y++)
                    inv[x * k + y] -= inv[x * k + i] * inv[i * k + y] / inv[i * k + i];
        }
    }
    return codes;
}

struct Quantized {
    nbi_weight w = {};
    Quantized(const Problem &p, const nbi_scheme &s, const nbi_gptq_options &o, int threads = 1,
              const float *h = nullptr)
    {
        EXPECT_NB_OK(nbi_gptq(&w, &p.src, &s, NBI_F32, h ? h : p.h.data(), &o, threads, nullptr));
    }
    ~Quantized() { nbi_weight_free(&w); }
    Quantized(const Quantized &) = delete;
};

} // namespace

TEST(Gptq, rounds_as_the_paper_says)
{
    size_t seed = 0;
    for (unsigned bits : {4u, 8u})
        for (uint32_t group : {0u, 16u, 32u})
            for (bool symmetric : {true, false})
                for (int mode = 0; mode < 3; mode++) {
                    Problem p(19, 96, seed += 10, 5);
                    nbi_gptq_options o = nbi_gptq_defaults();
                    o.block = mode == 1 ? 40 : 128;
                    o.act_order = mode != 2;
                    o.static_groups = mode != 2;
                    const nbi_scheme s = scheme(bits, group, symmetric);
                    Quantized q(p, s, o, 2);
                    std::vector<int8_t> want = paper(p, s, o);
                    size_t differ = 0;
                    for (size_t i = 0; i < want.size(); i++)
                        differ += want[i] != q.w.codes[i];
                    /* fp32 against double: a weight next to the middle of two codes may fall to the other side, and what follows in
                     * its row with it.  Roundings are about 96 * 2^-24 of a weight of up to 2^(bits-1) steps: one in 2^9 (8 bits). */
                    EXPECT_LE(differ, want.size() / (bits == 8 ? 25 : 100)) << bits << " " << group << " " << mode;
                }
}

/* When the descent stops by itself no single code can be improved: checked in double, with the codes of both sides for a target
 * that fp32 may put beside the middle between them. */
TEST(Gptq, descent_ends_where_no_code_can_be_improved)
{
    for (uint32_t group : {0u, 32u})
        for (bool symmetric : {true, false}) {
            Problem p(37, 96, 60 + group, 5);
            nbi_gptq_options o = nbi_gptq_defaults();
            const nbi_scheme s = scheme(2, group, symmetric);
            Quantized before(p, s, o);
            o.descent = 1000;
            Quantized q(p, s, o, 2), again(p, s, o, 1);
            EXPECT_EQ(0, memcmp(q.w.codes, again.w.codes, p.n * p.k));
            const size_t k = p.k, groups = nbi_scheme_groups(&s, k), len = k / groups;
            double trace = 0;
            for (size_t i = 0; i < k; i++)
                trace += p.h[i * k + i] == 0 ? 1 : (double)p.h[i * k + i];
            const double lambda = 0.01 * trace / (double)k;
            size_t moved = 0;
            for (size_t r = 0; r < p.n; r++) {
                std::vector<double> d(k);
                auto zero = [&](size_t j) { return q.w.zeros ? q.w.zeros[r * groups + j / len] : 0; };
                auto scale = [&](size_t j) { return (double)q.w.scales[r * groups + j / len]; };
                for (size_t j = 0; j < k; j++) {
                    const double w = p.h[j * k + j] == 0 ? 0 : (double)p.w[r * k + j];
                    d[j] = (q.w.codes[r * k + j] - zero(j)) * scale(j) - w;
                    moved += q.w.codes[r * k + j] != before.w.codes[r * k + j];
                }
                for (size_t j = 0; j < k; j++) {
                    double slope = lambda * d[j];
                    for (size_t t = 0; t < k; t++)
                        slope += (double)p.h[j * k + t] * d[t];
                    if (p.h[j * k + j] == 0)
                        continue;
                    const double away =
                        slope / ((double)p.h[j * k + j] + lambda) / scale(j); /* of the best, in codes */
                    const int code = q.w.codes[r * k + j];
                    EXPECT_LT(away, code == -2 ? INFINITY : 0.501) << r << " " << j;
                    EXPECT_GT(away, code == 1 ? -INFINITY : -0.501) << r << " " << j;
                }
            }
            EXPECT_GT(moved, 0u);
            EXPECT_LT(p.loss(q.w), p.loss(before.w));
        }
}

TEST(Gptq, loses_less_than_rounding_to_nearest)
{
    for (uint32_t group : {0u, 32u}) {
        Problem p(40, 128, 7);
        const nbi_scheme s = scheme(4, group, true);
        Quantized q(p, s, nbi_gptq_defaults());
        EXPECT_LT(p.loss(q.w), 0.5 * rtn_loss(p, s));
    }
}

TEST(Gptq, without_correlation_it_is_rounding_to_nearest)
{
    Problem p(9, 64, 3);
    std::vector<float> diagonal(64 * 64);
    for (size_t i = 0; i < 64; i++)
        diagonal[i * 65] = 1 + (float)i;
    const nbi_scheme s = scheme(4, 32, true);
    Quantized q(p, s, nbi_gptq_defaults(), 1, diagonal.data());
    nbi_weight w = {};
    ASSERT_NB_OK(nbi_rtn(&w, &p.src, &s, NBI_F32, 1));
    EXPECT_EQ(0, memcmp(w.codes, q.w.codes, 9 * 64));
    nbi_weight_free(&w);
}

TEST(Gptq, the_result_does_not_depend_on_threads)
{
    Problem p(70, 160, 21);
    const nbi_scheme s = scheme(4, 32, false);
    Quantized one(p, s, nbi_gptq_defaults(), 1), two(p, s, nbi_gptq_defaults(), 2);
    EXPECT_EQ(0, memcmp(one.w.codes, two.w.codes, 70 * 160));
}

TEST(Gptq, a_singular_hessian_is_damped_until_it_works)
{
    Problem p(5, 32, 2);
    std::vector<float> ones(32 * 32, 1e6f); /* rank one */
    nbi_gptq_options o = nbi_gptq_defaults();
    o.damp = 0;
    nbi_weight w = {};
    float used = 0;
    const nbi_scheme s = scheme(4, 0, true);
    ASSERT_NB_OK(nbi_gptq(&w, &p.src, &s, NBI_F32, ones.data(), &o, 1, &used));
    EXPECT_GT(used, 0);
    nbi_weight_free(&w);
}

TEST(Gptq, what_it_cannot_do_is_said)
{
    Problem p(5, 32, 2);
    nbi_gptq_options o = nbi_gptq_defaults();
    nbi_weight w = {};
    auto run = [&](const nbi_scheme &s) { return nbi_gptq(&w, &p.src, &s, NBI_F32, p.h.data(), &o, 1, nullptr); };
    EXPECT_FAILS(NB_EINVAL, "groups of 24", run(scheme(4, 24, true)));
    o.static_groups = false;
    EXPECT_FAILS(NB_EUNSUPPORTED, "static groups", run(scheme(4, 16, true)));
    o = nbi_gptq_defaults();
    p.w[33] = NAN;
    EXPECT_FAILS(NB_EFORMAT, "NaN", run(scheme(4, 16, true)));
    p.w[33] = 0;
    p.h[0] = INFINITY;
    EXPECT_FAILS(NB_EFORMAT, "second moments", run(scheme(4, 16, true)));
}
