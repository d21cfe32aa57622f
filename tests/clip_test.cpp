/* The clip search and the Gram matrix of csrc/quant against slow ones in double precision. */
#include "testutil.h"
#include "values.h"

extern "C" {
#include "quant/clip.h"
#include "quant/gram.h"
#include "quant/grid.h"
}

namespace
{

const nbi_dtype kScaleTypes[] = {NBI_F32, NBI_F16, NBI_BF16};

/* The squared error of x on the grid of [lo, hi]. */
double squared_error(const std::vector<float> &x, float lo, float hi, const nbi_clip_spec &s)
{
    const nbi_grid g = nbi_grid_make(lo, hi, s.bits, s.symmetric, s.scale_dtype);
    double sum = 0;
    for (float v : x) {
        const double e = v - double(nbi_grid_code(&g, v) - g.zero) * double(g.scale);
        sum += e * e;
    }
    return sum;
}

float scale_of(float lo, float hi, const nbi_clip_spec &s)
{
    return nbi_grid_make(lo, hi, s.bits, s.symmetric, s.scale_dtype).scale;
}

} // namespace

/* d = u - r with u = x/s rounded: an error of 2^-24 |u| in u is one of at most that in d (2^7 levels: 2^-17), a second rounding
 * for d itself; so d^2 is off by less than 2 |d| (|u| 2^-23) + small.  The sum has n/32 + 5 roundings, the ratio and its square
 * three more. */
TEST(Clip, its_error_is_the_squared_error_of_the_clip)
{
    for (unsigned bits : {4u, 8u})
        for (bool symmetric : {true, false})
            for (size_t n : {(size_t)1, (size_t)31, (size_t)32, (size_t)100, (size_t)1000}) {
                const std::vector<float> x = noise(n, n + bits, 0.1f);
                const nbi_clip_spec spec = nbi_clip_spec_of(bits, symmetric, kScaleTypes[n % 3], 40, 0.3f);
                nbi_clip c;
                ASSERT_TRUE(nbi_clip_search(&c, x.data(), n, &spec));
                float lo = 0, hi = 0;
                for (float v : x) {
                    lo = std::fmin(lo, v);
                    hi = std::fmax(hi, v);
                }
                const double unit = double(scale_of(lo, hi, spec)) * scale_of(lo, hi, spec);
                const double want = squared_error(x, c.lo, c.hi, spec);
                const double step = scale_of(c.lo, c.hi, spec);
                double slack = double(n / 32 + 10) * U * want;
                for (float v : x) { /* |d| is at most half a step, or what the clip cuts off */
                    const double d = 0.5 + std::fmax(0, std::fmax(v - c.hi, c.lo - v)) / step,
                                 du = 2 * U * std::fabs(v) / step;
                    slack += (2 * d * du + du * du) * step * step;
                }
                EXPECT_NEAR(want, c.error * unit, slack) << bits << " bits, " << n << " elements";
                EXPECT_LE(lo, c.lo);
                EXPECT_GE(hi, c.hi);
            }
}

/* No candidate is better by more than what rounding can hide: u is at most 128 with an error of 2^-17, twice that in d with its own
 * rounding, where the root mean square of d is 0.29: 2 * 2^-16 / 0.29 = 1.1e-4 for a sum, twice that for a comparison. */
TEST(Clip, it_is_the_best_of_the_candidates)
{
    for (unsigned bits : {4u, 8u})
        for (uint64_t seed = 0; seed < 20; seed++) {
            const std::vector<float> x = noise(128, seed);
            const nbi_clip_spec spec = nbi_clip_spec_of(bits, seed % 2, NBI_F32, 50, 0.2f);
            nbi_clip c;
            ASSERT_TRUE(nbi_clip_search(&c, x.data(), x.size(), &spec));
            float lo = 0, hi = 0;
            for (float v : x) {
                lo = std::fmin(lo, v);
                hi = std::fmax(hi, v);
            }
            const double best = squared_error(x, c.lo, c.hi, spec);
            for (uint32_t i = 0; i < spec.candidates; i++) {
                const float f = 1 - (float)i * spec.step;
                EXPECT_GE(squared_error(x, f * lo, f * hi, spec), best * (1 - 3e-4)) << i;
            }
        }
}

TEST(Clip, an_outlier_is_cut_off_where_that_pays)
{
    std::vector<float> x(256); /* evenly spread: no clip pays */
    for (size_t i = 0; i < x.size(); i++)
        x[i] = 0.2f * (float(i) / 127.5f - 1);
    const nbi_clip_spec spec = nbi_clip_spec_of(4, true, NBI_F32, 64, 0.1f);
    nbi_clip even, one;
    ASSERT_TRUE(nbi_clip_search(&even, x.data(), x.size(), &spec));
    EXPECT_GT(even.hi, 0.18f);
    x[17] = 0.6f;
    ASSERT_TRUE(nbi_clip_search(&one, x.data(), x.size(), &spec));
    EXPECT_LT(one.hi, 0.59f);
    EXPECT_LT(squared_error(x, one.lo, one.hi, spec), squared_error(x, -0.6f, 0.6f, spec));
}

TEST(Clip, the_full_range_wins_among_equals)
{
    const nbi_clip_spec spec = nbi_clip_spec_of(8, true, NBI_F32, 10, 0.5f);
    for (float v : {0.0f, 1e-42f}) {
        const std::vector<float> x(40, v);
        nbi_clip c;
        ASSERT_TRUE(nbi_clip_search(&c, x.data(), x.size(), &spec));
        EXPECT_EQ(v, c.hi);
        EXPECT_EQ(0.0f, c.lo);
    }
    nbi_clip c;
    const float bad[] = {1, NAN};
    EXPECT_FALSE(nbi_clip_search(&c, bad, 2, &spec));
    EXPECT_FALSE(nbi_clip_search(&c, bad, 0, &spec));
}

/* A term is rounded once in each fma after it (at most NBI_GRAM_ROWS), and once for each part. */
TEST(Gram, is_the_sum_of_products)
{
    for (size_t rows : {(size_t)1, (size_t)128, (size_t)129, (size_t)500}) {
        const size_t k = 17;
        const std::vector<float> x = noise(rows * k, rows);
        std::vector<float> h(k * k, 0.0f);
        nbi_gram_add(h.data(), x.data(), rows, k, 2);
        for (size_t i = 0; i < k; i++)
            for (size_t j = 0; j < k; j++) {
                double sum = 0, magnitude = 0;
                for (size_t r = 0; r < rows; r++) {
                    const double term = x[r * k + i] * (double)x[r * k + j];
                    sum += term;
                    magnitude += std::fabs(term);
                }
                EXPECT_NEAR(sum, h[i * k + j], double(NBI_GRAM_ROWS + rows / NBI_GRAM_ROWS + 1) * U * magnitude);
                EXPECT_EQ(h[i * k + j], h[j * k + i]);
            }
    }
}

TEST(Gram, a_stream_may_be_cut_at_multiples_of_its_parts)
{
    const size_t k = 9, rows = 4 * NBI_GRAM_ROWS + 5;
    const std::vector<float> x = noise(rows * k, 3);
    std::vector<float> whole(k * k, 0.0f), pieces(k * k, 0.0f);
    nbi_gram_add(whole.data(), x.data(), rows, k, 2);
    nbi_gram_add(pieces.data(), x.data(), NBI_GRAM_ROWS, k, 2);
    nbi_gram_add(pieces.data(), x.data() + NBI_GRAM_ROWS * k, rows - NBI_GRAM_ROWS, k, 2);
    EXPECT_TRUE(same_bits(whole.data(), pieces.data(), k * k));
}
