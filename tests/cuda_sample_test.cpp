/* Sampling on the device against the host's sampler: every field of every answer, to the bit.  tests/sampler_test.cpp
 * has shown what the host's is worth. */
#include "cuda_util.h"

#include <random>

extern "C" {
#include "engine/sampler.h"
}

namespace
{

const float INF = INFINITY;

struct Sampler {
    nbi_sampler *s = nullptr;
    explicit Sampler(size_t vocab) { EXPECT_EQ(NB_OK, nbi_sampler_create(&s, vocab)); }
    ~Sampler() { nbi_sampler_free(s); }
};

typedef std::vector<float> Row;
enum Kind { NORMAL, COARSE, FLAT, ONE_HOT, LADDER, HUGE_VALUES, TINY_VALUES, N_KINDS };

Row random_row(std::mt19937 &rng, size_t n, int kind)
{
    std::normal_distribution<float> normal(0, float(1 + rng() % 6));
    Row x(n);
    for (size_t i = 0; i < n; i++) {
        const float v = normal(rng);
        x[i] = kind == COARSE        ? std::round(v) /* many equal ones, and zeros of both signs */
               : kind == FLAT        ? 2.5f
               : kind == ONE_HOT     ? -INF
               : kind == LADDER      ? -1e-3f * float(i) /* a cut lies anywhere */
               : kind == HUGE_VALUES ? v * 1e37f
               : kind == TINY_VALUES ? v * 1e-40f
                                     : v;
        if (rng() % 20 == 0)
            x[i] = -INF;
    }
    if (kind == LADDER)
        std::shuffle(x.begin(), x.end(), rng);
    x[rng() % n] = 1.5f; /* something finite */
    return x;
}

nbi_draw random_draw(std::mt19937 &rng, size_t n)
{
    const float temperatures[] = {0, 0.05f, 0.5f, 0.7f, 1, 1.3f, 5, 100, 1e-3f, 1e-38f, 1e-45f};
    std::uniform_real_distribution<float> share(0.001f, 0.999f);
    nbi_draw d = {};
    d.temperature = temperatures[rng() % 4 ? 3 + rng() % 3 : rng() % 11];
    d.top_k = rng() % 2 ? (int32_t)(1 + rng() % (rng() % 2 ? n + 2 : 8)) : 0;
    d.top_p = rng() % 2 ? share(rng) : rng() % 10 == 0 ? 1e-30f : 1;
    d.min_p = rng() % 3 ? 0 : share(rng);
    d.share = rng() % 8 == 0 ? 0 : rng() % 8 == 0 ? 0xffffff : rng() >> 8;
    d.want_sum = rng() % 2;
    return d;
}

std::string text(const nbi_drawn &d)
{
    return "token " + std::to_string(d.token) + " logit " + std::to_string(d.logit) + " best " +
           std::to_string(d.best) + " sum " + std::to_string(d.sum);
}

std::string text(const nbi_draw &d)
{
    return "temperature " + std::to_string(d.temperature) + " top_k " + std::to_string(d.top_k) + " top_p " +
           std::to_string(d.top_p) + " min_p " + std::to_string(d.min_p) + " share " + std::to_string(d.share);
}

std::vector<nbi_drawn> on_device(const std::vector<Row> &rows, const std::vector<nbi_draw> &how)
{
    const size_t n = rows.size(), vocab = rows[0].size();
    Row all;
    for (const Row &r : rows)
        all.insert(all.end(), r.begin(), r.end());
    nbi_backend *be = &device()->base;
    Buffer<float> logits(all);
    Buffer<unsigned char> scratch(nbi_cuda_sample_bytes(be, n));
    std::vector<nbi_drawn> out(n, nbi_drawn{1, 1, 1, 1, 1});
    EXPECT_NB_OK(nbi_cuda_sample(be, logits.ptr(), n, vocab, how.data(), out.data(), scratch.ptr())) << trouble();
    return out;
}

void expect_the_host_agrees(const std::vector<Row> &rows, const std::vector<nbi_draw> &how)
{
    const auto got = on_device(rows, how);
    Sampler s(rows[0].size());
    for (size_t i = 0; i < rows.size(); i++) {
        nbi_drawn want;
        nbi_sampler_draw(s.s, rows[i].data(), &how[i], &want);
        ASSERT_EQ(0, memcmp(&want, &got[i], sizeof want))
            << "row " << i << " of " << rows[i].size() << " logits, " << text(how[i]) << ": host " << text(want)
            << ", device " << text(got[i]);
    }
}

TEST(CudaSample, every_answer_is_the_hosts)
{
    std::mt19937 rng(1);
    struct Vocab {
        size_t n, rows;
    };
    /* around the width of a warp, of a block's pieces, of what four loads take */
    for (const Vocab &v : {Vocab{1, 3}, Vocab{2, 20}, Vocab{31, 20}, Vocab{32, 20}, Vocab{33, 20}, Vocab{127, 20},
                           Vocab{1000, 50}, Vocab{1023, 20}, Vocab{1024, 20}, Vocab{1025, 20}, Vocab{4095, 20},
                           Vocab{4097, 30}, Vocab{32000, 14}, Vocab{151936, 2}}) {
        std::vector<Row> rows;
        std::vector<nbi_draw> how;
        for (size_t i = 0; i < v.rows; i++) {
            rows.push_back(random_row(rng, v.n, i % 2 ? NORMAL : (int)(i / 2 % N_KINDS)));
            how.push_back(random_draw(rng, v.n));
        }
        expect_the_host_agrees(rows, how);
    }
}

TEST(CudaSample, the_largest_vocabulary_and_the_largest_sum)
{
    const size_t n = 1 << 20;
    std::vector<nbi_draw> how(1);
    how[0] = {1, 0.75f, 0, 0, 0xffffff, 1};
    const nbi_drawn got = on_device({Row(n, 3.25f)}, how)[0];
    EXPECT_EQ((uint64_t)1 << 63, got.sum); /* all weigh 1 */
    EXPECT_EQ((int32_t)(n / 4 * 3 - 1), got.token);
}

TEST(CudaSample, every_share_of_a_small_row_is_the_hosts)
{
    std::mt19937 rng(2);
    const Row x = random_row(rng, 40, COARSE);
    for (int mode = 0; mode < 4; mode++) {
        std::vector<nbi_draw> how;
        for (uint32_t i = 0; i < 100; i++) {
            nbi_draw d = {1.2f, mode == 2 ? 0.75f : 1, mode == 3 ? 0.2f : 0, mode == 1 ? 12 : 0, 0, 0};
            d.share = (uint32_t)((uint64_t)0xffffff * i / 99);
            how.push_back(d);
        }
        expect_the_host_agrees(std::vector<Row>(how.size(), x), how);
    }
}

TEST(CudaSample, equal_logits_are_cut_by_the_lowest_ids)
{
    for (size_t n : {8, 100, 5000})
        for (int32_t k : {1, 3, 7}) {
            std::vector<nbi_draw> how(2);
            how[0] = {1, 1, 0, k, 0xffffff, 0}; /* the last of those that are left */
            how[1] = {1, (float)k / (float)n * 0.999f, 0, 0, 0xffffff, 0};
            const auto got = on_device({Row(n, -3), Row(n, -3)}, how);
            EXPECT_EQ(k - 1, got[0].token) << n;
            EXPECT_EQ(k - 1, got[1].token) << n;
        }
}

TEST(CudaSample, greedy_takes_the_lowest_of_the_best)
{
    const std::vector<nbi_draw> greedy(1, nbi_draw{0, 1, 0, 0, 0, 1});
    EXPECT_EQ(2, on_device({{0, 1, 3, 3, -1, 3}}, greedy)[0].token);
    EXPECT_EQ(0, on_device({{-0.0f, 0, -0.0f, 0}}, greedy)[0].token);
    Row x(70000, -1);
    x[69999] = x[40000] = x[40001] = 5;
    const nbi_drawn d = on_device({x}, greedy)[0];
    EXPECT_EQ(40000, d.token);
    EXPECT_EQ(5, d.logit);
    EXPECT_EQ(5, d.best);
}

TEST(CudaSample, a_row_without_a_meaning_has_no_token)
{
    for (size_t n : {3, 5000})
        for (float t : {0.0f, 1.0f}) {
            std::vector<Row> rows(6, Row(n, 1));
            rows[0][n / 2] = NAN;
            rows[1].assign(n, NAN);
            rows[2][n - 1] = INF;
            rows[3].assign(n, -INF);
            rows[4].assign(n, -INF);
            rows[4][2] = -5;
            const auto got = on_device(rows, std::vector<nbi_draw>(6, nbi_draw{t, 1, 0, 0, 0, 1}));
            for (int i = 0; i < 4; i++)
                EXPECT_EQ(-1, got[(size_t)i].token);
            EXPECT_EQ(2, got[4].token) << "and the others go on";
            EXPECT_EQ(0, got[5].token);
        }
}

TEST(CudaSampleCheck, it_can_fail)
{
    std::mt19937 rng(3);
    Row x = random_row(rng, 1000, NORMAL), y = x;
    y[500] += 0.001f; /* one logit off by a little: the sum of all weights shows it */
    const std::vector<nbi_draw> how(1, nbi_draw{1, 1, 0, 0, 0x800000, 1});
    EXPECT_NE(on_device({x}, how)[0].sum, on_device({y}, how)[0].sum);
}

TEST(CudaSampleCheck, too_large_a_vocabulary_is_a_sentence)
{
    nbi_draw how = {};
    nbi_drawn out;
    Buffer<unsigned char> b(64);
    EXPECT_FAILS(NB_EUNSUPPORTED, "cuda: sampling from 1 rows of 1048577 logits, expected at most 2^20",
                 nbi_cuda_sample(&device()->base, (float *)b.ptr(), 1, (1 << 20) + 1, &how, &out, b.ptr()));
}

} // namespace
