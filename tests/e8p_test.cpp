/* The codebook E8P against its definition, written out in whole vectors of doubles, and its search against trying all words. */
#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "testutil.h"

extern "C" {
#include "base/e8p.h"
#include "base/rng.h"
}

namespace
{

typedef std::array<double, 8> Vec;

double norm2(const Vec &v)
{
    double s = 0;
    for (double x : v)
        s += x * x;
    return s;
}

/* The rule as the reference states it. */
std::vector<Vec> absolute_rows()
{
    std::vector<Vec> all;
    for (int i = 0; i < 65536; i++) { /* entries 1/2 .. 7/2: 7/2 is too long already */
        Vec v;
        for (int j = 0; j < 8; j++)
            v[j] = 0.5 + (i >> 2 * j & 3);
        all.push_back(v);
    }
    std::sort(all.begin(), all.end());
    std::vector<Vec> rows;
    for (const Vec &v : all)
        if (norm2(v) <= 10)
            rows.push_back(v);
    EXPECT_EQ(227u, rows.size());
    size_t edge = 0;
    for (const Vec &v : all)
        if (norm2(v) == 12 && *std::max_element(v.begin(), v.end()) == 1.5 && edge++ < 29)
            rows.push_back(v);
    EXPECT_EQ(56u, edge);
    return rows;
}

std::vector<Vec> all_words()
{
    static const int place[] = {0, 2, 4, 6, 1, 3, 5, 7};
    std::vector<Vec> rows = absolute_rows(), words;
    for (unsigned c = 0; c < 65536; c++) {
        Vec v = rows[c >> 8];
        double sum = 0;
        for (double x : v)
            sum += x;
        if (std::fmod(sum, 2) != 0)
            v[7] = -v[7];
        unsigned signs = c & 255, parity = 0;
        for (int j = 0; j < 8; j++)
            parity ^= signs >> j & 1;
        signs ^= parity;
        for (int j = 0; j < 8; j++)
            if (signs >> j & 1)
                v[place[j]] = -v[place[j]];
        for (double &x : v)
            x += parity ? -0.25 : 0.25;
        words.push_back(v);
    }
    return words;
}

float normal(uint64_t seed, uint64_t i)
{
    const double u = ((double)nbi_rng_24(seed, 2 * i) + 1) / 16777217, v = nbi_rng_24(seed, 2 * i + 1) / 16777216.0;
    return (float)(std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * v));
}

double distance2(const Vec &v, const float *x)
{
    double d = 0;
    for (int j = 0; j < 8; j++)
        d += (v[j] - (double)x[j]) * (v[j] - (double)x[j]);
    return d;
}

} // namespace

TEST(E8p, every_word_is_the_vector_that_the_rule_gives)
{
    const std::vector<Vec> want = all_words();
    std::set<Vec> different(want.begin(), want.end());
    EXPECT_EQ(65536u, different.size());
    double mean = 0;
    for (unsigned c = 0; c < 65536; c++) {
        const uint16_t word = (uint16_t)c;
        int8_t q[8];
        nbi_e8p_decode(q, &word, 1, 2);
        for (int j = 0; j < 8; j++)
            ASSERT_EQ(want[c][j], q[j] / 4.0) << c << " " << j;
        mean += norm2(want[c]) / 65536;
    }
    EXPECT_NEAR(9.57, mean, 0.01); /* as the reference has it for the authors' table */
}

TEST(E8p, golden_vectors)
{
    const uint16_t words[] = {0, 1};
    int8_t q[16];
    nbi_e8p_decode(q, words, 2, 2);
    for (int j = 0; j < 8; j++) {
        EXPECT_EQ(3, q[j]);
        EXPECT_EQ(1, q[8 + j]);
    }
    nbi_e8p_decode(q, words, 1, 4); /* 3/4 + 1/4 / 3.5 in units of 1/28 */
    for (int j = 0; j < 8; j++)
        EXPECT_EQ(7 * 3 + 2 * 1, q[j]);
}

TEST(E8p, a_point_is_its_own_nearest)
{
    for (unsigned c = 0; c < 65536; c++) {
        const uint16_t word = (uint16_t)c;
        uint16_t got;
        int8_t q[8], codes[8];
        float x[8];
        nbi_e8p_decode(q, &word, 1, 2);
        for (int j = 0; j < 8; j++)
            x[j] = 0.25f * q[j] + 0.1f * (nbi_rng_uniform(c, j) - 0.5f); /* the nearest other point is sqrt(1/2) away */
        nbi_e8p_nearest(&got, codes, x, 8, 1, 2);
        ASSERT_EQ(word, got);
        ASSERT_EQ(0, memcmp(q, codes, 8));
    }
}

TEST(E8p, nearest_is_nearest_of_all_words)
{
    const std::vector<Vec> words = all_words();
    for (size_t i = 0; i < 600; i++) {
        const float sizes[] = {0.1f, 0.7f, 1, 1.3f, 2, 40};
        float x[8];
        for (int j = 0; j < 8; j++)
            x[j] = sizes[i % 6] * normal(1, i * 8 + j) * (i % 7 == 3 && j == 2 ? 9.0f : 1.0f);
        if (i % 11 == 5)
            for (float &v : x)
                v = 0.25f * (float)std::lround(4 * v); /* ties, zeros */
        double best = INFINITY;
        for (const Vec &v : words)
            best = std::min(best, distance2(v, x));
        uint16_t word;
        int8_t codes[8];
        nbi_e8p_nearest(&word, codes, x, 8, 1, 2);
        /* fp32: eight squares of up to (40 * 4 / 0.5)^2 each rounded once or twice */
        EXPECT_LE(distance2(words[word], x), best * (1 + 1e-5)) << i;
        for (int j = 0; j < 8; j++)
            EXPECT_EQ(words[word][j], codes[j] / 4.0);
    }
}

TEST(E8p, four_bits_are_the_nearest_word_and_the_nearest_to_what_is_left)
{
    const size_t stride = 11, count = 50;
    std::vector<float> x(stride * count);
    for (size_t i = 0; i < x.size(); i++)
        x[i] = normal(2, i);
    std::vector<uint16_t> words(2 * count);
    std::vector<int8_t> codes(8 * count), again(8 * count);
    nbi_e8p_nearest(words.data(), codes.data(), x.data(), stride, count, 4);
    nbi_e8p_decode(again.data(), words.data(), count, 4);
    EXPECT_EQ(codes, again);
    for (size_t i = 0; i < count; i++) {
        uint16_t first, second;
        int8_t a[8], b[8];
        float left[8];
        nbi_e8p_nearest(&first, a, &x[i * stride], 8, 1, 2);
        for (int j = 0; j < 8; j++)
            left[j] = (x[i * stride + j] - 0.25f * a[j]) * 3.5f;
        nbi_e8p_nearest(&second, b, left, 8, 1, 2);
        EXPECT_EQ(first, words[2 * i]);
        EXPECT_EQ(second, words[2 * i + 1]);
        for (int j = 0; j < 8; j++)
            EXPECT_NEAR(a[j] / 4.0 + b[j] / 4.0 / 3.5, codes[8 * i + j] / 28.0, 1e-12);
    }
    nbi_e8p_nearest(nullptr, again.data(), x.data(), stride, count, 4); /* without words */
    EXPECT_EQ(codes, again);
}

/* The scale of the second word is 3.5 here and 3.45 with the authors: what that costs. */
TEST(E8p, three_and_a_half_is_as_good_as_the_authors_scale)
{
    const size_t count = 20000;
    std::vector<float> x(8 * count), left(8 * count);
    for (size_t i = 0; i < x.size(); i++)
        x[i] = 1.03f * normal(3, i);
    std::vector<int8_t> a(8 * count), b(8 * count);
    nbi_e8p_nearest(nullptr, a.data(), x.data(), 8, count, 2);
    auto error = [&](double scale) {
        double sum = 0;
        for (size_t i = 0; i < x.size(); i++)
            left[i] = (float)(scale * ((double)x[i] - a[i] / 4.0));
        nbi_e8p_nearest(nullptr, b.data(), left.data(), 8, count, 2);
        for (size_t i = 0; i < x.size(); i++)
            sum += std::pow((double)x[i] - a[i] / 4.0 - b[i] / 4.0 / scale, 2);
        return sum / (double)x.size();
    };
    const double ours = error(3.5), theirs = error(3.45);
    RecordProperty("mse_3.5", std::to_string(ours));
    RecordProperty("mse_3.45", std::to_string(theirs));
    EXPECT_LT(ours, 1.01 * theirs);
}
