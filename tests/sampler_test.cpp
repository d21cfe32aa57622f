/* The sampler against a plain reference in double precision that sorts everything. */
#include "testutil.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>

extern "C" {
#include "base/rng.h"
#include "engine/sampler.h"
}

namespace
{

struct Sampler {
    nbi_sampler *s = nullptr;
    explicit Sampler(size_t vocab) { EXPECT_EQ(NB_OK, nbi_sampler_create(&s, vocab)); }
    ~Sampler() { nbi_sampler_free(s); }
    /* -1: the call failed */
    int32_t pick(std::vector<float> logits, const nb_sampling &p, const std::vector<int32_t> &history = {1},
                 size_t n_prompt = 1)
    {
        int32_t token = -1;
        nb_status st =
            nbi_sample(s, logits.data(), &p, history.data(), n_prompt, history.size(), -1, &token, nullptr, nullptr);
        return st == NB_OK ? token : -1;
    }
};

nb_sampling sampling(float temperature = 1)
{
    nb_sampling p;
    nb_sampling_init(&p);
    p.temperature = temperature;
    return p;
}

std::vector<float> penalised(std::vector<float> x, const nb_sampling &p, const std::vector<int32_t> &history,
                             size_t n_prompt)
{
    for (size_t t = 0; t < x.size(); t++) {
        auto all = std::count(history.begin(), history.end(), int32_t(t));
        auto out = std::count(history.begin() + long(n_prompt), history.end(), int32_t(t));
        if (all)
            x[t] = x[t] > 0 ? x[t] / p.repetition_penalty : x[t] * p.repetition_penalty;
        if (out)
            x[t] -= p.presence_penalty + p.frequency_penalty * float(out);
    }
    return x;
}

struct Kept {
    std::vector<double> prob; /* by token; 0: cut off */
    double slack;             /* how far a cumulated probability of the fp32 sampler may be off */
    bool unclear = false;     /* a cut that rounding may place elsewhere */
};

/* Rounding d = (x - max)/T in fp32 moves it by at most 2^-23 |d|, so a weight by that share; the exponential adds a few
 * units in the last place: (|d| + 4) 2^-23 of each weight, summed up, taken twice for numerator and sum. */
double weight_error(double d)
{
    return (std::fabs(d) + 4) * 0x1p-23;
}

Kept reference(const std::vector<float> &x, const nb_sampling &p)
{
    const size_t n = x.size();
    std::vector<size_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; });
    const double max = x[order[0]];
    auto d = [&](size_t t) { return (double(x[t]) - max) / double(p.temperature); };
    std::vector<double> w(n);
    for (size_t t = 0; t < n; t++)
        w[t] = std::exp(d(t));
    Kept k{std::vector<double>(n, 0.0), 0};
    auto error_of_sum = [&](size_t m) {
        double e = 0;
        for (size_t i = 0; i < m; i++)
            e += w[order[i]] > 0 ? w[order[i]] * weight_error(d(order[i])) : 0;
        return e;
    };
    size_t m = p.top_k > 0 ? std::min<size_t>(n, size_t(p.top_k)) : n;
    if (p.top_p < 1) {
        double z = 0, have = 0, err = 2 * error_of_sum(m);
        for (size_t i = 0; i < m; i++)
            z += w[order[i]];
        size_t i = 0;
        while (i < m && have < double(p.top_p) * z) {
            have += w[order[i++]];
            k.unclear |= std::fabs(have - double(p.top_p) * z) < err;
        }
        m = i;
    }
    double z = 0;
    k.slack = 2 * error_of_sum(m);
    for (size_t i = 0; i < m; i++) {
        size_t t = order[i];
        if (p.min_p > 0 && std::fabs(w[t] - double(p.min_p)) < weight_error(d(t)) * w[t])
            k.unclear = true;
        if (w[t] >= double(p.min_p))
            z += k.prob[t] = w[t];
    }
    for (auto &q : k.prob)
        q /= z;
    k.slack /= z;
    return k;
}

std::vector<float> random_logits(std::mt19937 &rng, size_t n)
{
    std::normal_distribution<float> normal(0, float(1 + rng() % 6));
    std::vector<float> x(n);
    const bool coarse = rng() % 3 == 0; /* many equal values */
    for (auto &v : x) {
        v = normal(rng);
        if (coarse)
            v = std::round(v);
        if (rng() % 20 == 0)
            v = -INFINITY;
    }
    x[rng() % n] = 1.5f; /* something finite */
    return x;
}

TEST(Sampling, agrees_with_the_sorting_reference_for_every_mix_of_parameters)
{
    std::mt19937 rng(11);
    int unclear = 0, trials = 0;
    for (size_t n : {1, 2, 3, 17, 64, 1000}) {
        Sampler s(n);
        for (int trial = 0; trial < (emulated_cpu() ? 800 : 4000); trial++, trials++) {
            nb_sampling p = sampling(std::vector<float>{0.05f, 0.5f, 0.7f, 1, 1.3f, 5, 100}[rng() % 7]);
            p.top_k = rng() % 2 ? int32_t(1 + rng() % (n + 2)) : 0;
            p.top_p = rng() % 2 ? std::uniform_real_distribution<float>(0.001f, 0.999f)(rng) : 1;
            p.min_p = rng() % 3 ? 0 : std::uniform_real_distribution<float>(0, 0.99f)(rng);
            p.repetition_penalty = rng() % 2 ? 1 : std::uniform_real_distribution<float>(0.5f, 2)(rng);
            p.presence_penalty = rng() % 2 ? 0 : std::uniform_real_distribution<float>(-2, 2)(rng);
            p.frequency_penalty = rng() % 2 ? 0 : std::uniform_real_distribution<float>(-2, 2)(rng);
            p.seed = rng();
            std::vector<int32_t> history(1 + rng() % 40);
            for (auto &t : history)
                t = int32_t(rng() % n);
            const size_t n_prompt = 1 + rng() % history.size();
            std::vector<float> x = random_logits(rng, n);

            Kept k = reference(penalised(x, p, history, n_prompt), p);
            int32_t got = s.pick(x, p, history, n_prompt);
            ASSERT_GE(got, 0);
            if (k.unclear) {
                unclear++;
                continue;
            }
            ASSERT_GT(k.prob[size_t(got)], 0) << "a token that was cut off";
            double before = 0, u = double(nbi_rng_uniform(p.seed, history.size()));
            for (int32_t t = 0; t < got; t++)
                before += k.prob[size_t(t)];
            ASSERT_GE(u, before - k.slack)
                << "n " << n << " T " << p.temperature << " k " << p.top_k << " p " << p.top_p;
            ASSERT_LE(u, before + k.prob[size_t(got)] + k.slack);
        }
    }
    EXPECT_LT(unclear, trials / 100);
}

TEST(Sampling, greedy_takes_the_lowest_of_the_best)
{
    Sampler s(6);
    nb_sampling p = sampling(0);
    EXPECT_EQ(2, s.pick({0, 1, 3, 3, -1, 3}, p));
    EXPECT_EQ(5, s.pick({-INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY, -5}, p));
    EXPECT_EQ(4, s.pick({-3, -3, -3, -3, -2, -3}, p));
    EXPECT_EQ(0, s.pick({0.0f, -0.0f, 0, 0, 0, 0}, p));
}

TEST(Sampling, ties_at_a_cut_keep_the_lowest_ids)
{
    Sampler s(8);
    std::vector<float> flat(8, 2.5f);
    nb_sampling by_k = sampling(), by_p = sampling();
    by_k.top_k = 3;
    by_p.top_p = 0.3f; /* 2/8 < 0.3 <= 3/8 */
    std::map<int32_t, int> k, q;
    for (uint64_t seed = 0; seed < 400; seed++) {
        by_k.seed = by_p.seed = seed;
        k[s.pick(flat, by_k)]++;
        q[s.pick(flat, by_p)]++;
    }
    for (int32_t t = -1; t < 8; t++) {
        EXPECT_EQ(t >= 0 && t<3, k[t]> 0) << t;
        EXPECT_EQ(t >= 0 && t<3, q[t]> 0) << t;
    }
}

/* Two of four equal tokens weigh exactly half, and so does one before two that are ln 2 away: no other is needed, in the same
 * interval of distances or in a later one. */
TEST(Sampling, a_head_that_weighs_what_top_p_asks_is_enough)
{
    Sampler s(4);
    nb_sampling p = sampling();
    p.top_p = 0.5f;
    for (p.seed = 0; p.seed < 100; p.seed++)
        EXPECT_LT(s.pick({1, 1, 1, 1}, p), 2);
    const float half = -0x1.62e43p-1f; /* its weight is 1/2: the error of the logarithm is less than 1 rounds away */
    Sampler three(3);
    for (p.seed = 0; p.seed < 100; p.seed++)
        EXPECT_EQ(1, three.pick({half, 0, half}, p));
}

/* What is drawn with the largest share: the last token that was kept, or one that weighs less than 2^-24 before it. */
int32_t last_drawn(const std::vector<float> &x, float top_p, float min_p)
{
    Sampler s(x.size());
    nbi_draw how = {};
    how.temperature = 1;
    how.top_p = top_p;
    how.min_p = min_p;
    how.share = 0xffffff;
    nbi_drawn drawn;
    nbi_sampler_draw(s.s, x.data(), &how, &drawn);
    return drawn.token;
}

/* Weights fall by a tenth of a nat from token to token, and each cut lies in the middle between two of them. */
TEST(Sampling, a_cut_is_where_it_was_asked_for_at_any_depth)
{
    const size_t n = 167, deepest = 120;
    std::vector<float> x(n);
    double all = 0, head = 0;
    for (size_t i = 0; i < n; i++) {
        x[i] = -0.1f * float(i);
        all += std::exp(double(x[i]));
    }
    for (size_t i = 0; i < deepest; i++) {
        const double w = std::exp(double(x[i]));
        ASSERT_EQ(int32_t(i), last_drawn(x, 1, float(std::exp(-0.1 * (double(i) + 0.5)))));
        ASSERT_EQ(int32_t(i), last_drawn(x, float((head + w / 2) / all), 0));
        head += w;
    }
}

/* 500 tokens of e^-17 weigh 350 times what 1 - 2^-24 leaves out. */
TEST(Sampling, many_unlikely_tokens_are_kept_where_top_p_asks_for_nearly_all)
{
    std::vector<float> x(501, -17.0f);
    x[0] = 0;
    EXPECT_GT(last_drawn(x, 0x1.fffffep-1f, 0), 490);
}

/* Also where sixteen or more are looked at together. */
TEST(Sampling, a_bad_logit_is_seen_wherever_it_stands)
{
    const int n = 70;
    Sampler s(n);
    for (float bad : {NAN, INFINITY})
        for (int i = 0; i < n; i++)
            for (float temperature : {0.0f, 1.0f}) {
                std::vector<float> x(n, -1);
                x[size_t(i)] = bad;
                EXPECT_EQ(-1, s.pick(x, sampling(temperature))) << bad << " at " << i;
            }
}

/* Which token a random share falls on, to the last of the 2^24 shares: the second's begin where share * all / 2^24, rounded down,
 * reaches what the first weighs.  Among all tokens, and among those that top-k leaves. */
TEST(Sampling, shares_are_those_of_the_exact_weights)
{
    Sampler s(3);
    for (int i = 0; i <= 40; i++) {
        const float x[] = {0, -0.1f * float(i), -INFINITY}, behind[] = {-INFINITY, x[0], x[1]};
        for (int top_k : {0, 2})
            for (int first : {0, 1}) {
                nbi_draw how = {};
                nbi_drawn drawn;
                how.temperature = how.top_p = 1;
                how.top_k = top_k;
                how.want_sum = true;
                auto token = [&](uint32_t share) {
                    how.share = share;
                    nbi_sampler_draw(s.s, first ? behind : x, &how, &drawn);
                    return drawn.token - first;
                };
                ASSERT_EQ(0, token(0));
                const unsigned __int128 all = drawn.sum, one = (uint64_t)1 << 43;
                const auto begin = uint32_t(((one << 24) + all - 1) / all);
                ASSERT_LT(begin, 1u << 24);
                EXPECT_EQ(0, token(begin - 1)) << i << " " << top_k;
                EXPECT_EQ(1, token(begin)) << i << " " << top_k;
                EXPECT_EQ(1, token((1u << 24) - 1)) << i << " " << top_k;
            }
    }
}

TEST(Sampling, top_k_1_and_a_tiny_top_p_are_greedy)
{
    std::mt19937 rng(3);
    Sampler s(300);
    nb_sampling greedy = sampling(0), k = sampling(2), p = sampling(2);
    k.top_k = 1;
    p.top_p = 1e-30f;
    for (int i = 0; i < 500; i++) {
        auto x = random_logits(rng, 300);
        k.seed = p.seed = rng();
        int32_t want = s.pick(x, greedy);
        EXPECT_EQ(want, s.pick(x, k));
        EXPECT_EQ(want, s.pick(x, p));
    }
}

TEST(Sampling, extreme_temperatures_and_logits_do_not_overflow)
{
    Sampler s(4);
    for (float t : {1e-45f, 1e-38f, 1e-10f, 1e-3f}) {
        nb_sampling p = sampling(t);
        for (p.seed = 0; p.seed < 50; p.seed++) {
            EXPECT_EQ(1, s.pick({-3e38f, 3e38f, 0, -INFINITY}, p));
            EXPECT_EQ(2, s.pick({1, 2, 3, -INFINITY}, p));
        }
    }
    nb_sampling p = sampling(100);
    p.top_p = 0.5f;
    EXPECT_EQ(1, s.pick({-3e38f, 3e38f, 0, -INFINITY}, p));
}

TEST(Sampling, one_hot_rows_have_one_answer)
{
    Sampler s(50);
    nb_sampling p = sampling(1.5f);
    for (int mode = 0; mode < 4; mode++) {
        p.top_k = mode == 1 ? 5 : 0;
        p.top_p = mode == 2 ? 0.9f : 1;
        p.min_p = mode == 3 ? 0.1f : 0;
        for (p.seed = 0; p.seed < 50; p.seed++) {
            std::vector<float> x(50, -INFINITY);
            x[p.seed] = -7;
            EXPECT_EQ(int32_t(p.seed), s.pick(x, p));
        }
    }
}

TEST(Sampling, a_row_without_a_meaning_is_an_error)
{
    Sampler s(3);
    for (float t : {0.0f, 1.0f}) {
        nb_sampling p = sampling(t);
        EXPECT_EQ(-1, s.pick({1, NAN, 2}, p));
        EXPECT_NE(nullptr, strstr(nb_last_error(), "NaN"));
        EXPECT_EQ(-1, s.pick({NAN, NAN, NAN}, p));
        EXPECT_EQ(-1, s.pick({1, INFINITY, 2}, p));
        EXPECT_EQ(-1, s.pick({-INFINITY, -INFINITY, -INFINITY}, p));
        EXPECT_EQ(2, s.pick({-INFINITY, -INFINITY, 5}, p)) << "and the sampler goes on";
    }
}

/* Chi-square with k - 1 degrees of freedom exceeds k + 2 sqrt(k t) + 2t with probability below e^-t (Laurent and Massart
 * 2000); t = 20 makes that 2e-9. */
double chi_square(const std::vector<int> &count, const std::vector<double> &prob, int draws, double *bound)
{
    double x = 0;
    int classes = 0;
    for (size_t i = 0; i < prob.size(); i++)
        if (prob[i] > 0) {
            double want = prob[i] * draws;
            EXPECT_GT(want, 5) << "too rare for the approximation";
            x += (count[i] - want) * (count[i] - want) / want;
            classes++;
        } else
            EXPECT_EQ(0, count[i]);
    double k = classes - 1;
    *bound = k + 2 * std::sqrt(k * 20) + 40;
    return x;
}

TEST(Sampling, draws_follow_the_distribution_over_positions_and_over_seeds)
{
    const int n = 40, draws = emulated_cpu() ? 30000 : 100000;
    Sampler s(n);
    std::vector<float> x(n);
    for (int i = 0; i < n; i++)
        x[size_t(i)] = std::sin(float(i) * 1.7f) * 2;
    for (int mode = 0; mode < 4; mode++) {
        nb_sampling p = sampling(mode == 1 ? 0.8f : 1.2f);
        p.top_k = mode == 1 ? 12 : 0;
        p.top_p = mode == 2 ? 0.75f : 1;
        p.min_p = mode == 3 ? 0.2f : 0;
        Kept k = reference(x, p);
        ASSERT_FALSE(k.unclear);
        for (bool seeds : {false, true}) {
            std::vector<int> count(n);
            std::vector<int32_t> history(300, 0);
            for (int i = 0; i < draws; i++) {
                /* positions 1 .. 300 of many seeds, or one position of very many seeds */
                p.seed = seeds ? uint64_t(i) : 1000 + uint64_t(i) / 300;
                auto row = x;
                int32_t token;
                ASSERT_NB_OK(nbi_sample(s.s, row.data(), &p, history.data(), 1, seeds ? 7 : 1 + size_t(i) % 300, -1,
                                        &token, nullptr, nullptr));
                count[size_t(token)]++;
            }
            double bound, chi = chi_square(count, k.prob, draws, &bound);
            EXPECT_LT(chi, bound) << "mode " << mode << " seeds " << seeds;
            if (mode == 0) { /* the check can fail: a distribution that is off by a tenth of a temperature */
                nb_sampling other = p;
                other.temperature *= 1.1f;
                EXPECT_GT(chi_square(count, reference(x, other).prob, draws, &bound), bound);
            }
        }
    }
}

TEST(Sampling, the_draw_depends_on_seed_and_position_only)
{
    Sampler a(100), b(100);
    std::mt19937 rng(8);
    nb_sampling p = sampling(1);
    p.seed = 42;
    int differ = 0;
    auto x = random_logits(rng, 100);
    for (int i = 0; i < 50; i++) {
        std::vector<int32_t> history(size_t(1 + i), 3), other(size_t(1 + i), 9);
        b.pick(random_logits(rng, 100), p, other); /* whatever it did before */
        EXPECT_EQ(a.pick(x, p, history), b.pick(x, p, other));
        nb_sampling q = p;
        q.seed = 43;
        differ += a.pick(x, p, history) != a.pick(x, q, history);
    }
    EXPECT_GT(differ, 25);
}

TEST(Sampling, penalties_count_what_they_should)
{
    Sampler s(5);
    nb_sampling p = sampling(0);
    p.repetition_penalty = 2; /* once a token, prompt and output */
    EXPECT_EQ(1, s.pick({3, 2, 0, 0, 0}, p, {0, 0, 0}, 3));
    EXPECT_EQ(0, s.pick({3, 1, 0, 0, 0}, p, {0, 0, 0}, 3)) << "3/2 > 1: applied once";
    EXPECT_EQ(1, s.pick({-3, -4, -9, -9, -9}, p, {0}, 1)) << "negative logits are multiplied";
    p = sampling(0);
    p.presence_penalty = 1; /* once a token, output only */
    EXPECT_EQ(0, s.pick({3, 2.5f, 0, 0, 0}, p, {0, 0, 1}, 3));
    EXPECT_EQ(1, s.pick({3, 2.5f, 0, 0, 0}, p, {1, 1, 0}, 2));
    EXPECT_EQ(0, s.pick({3, 1.9f, 0, 0, 0}, p, {1, 0, 0, 0}, 1));
    p = sampling(0);
    p.frequency_penalty = 0.5f; /* each occurrence */
    EXPECT_EQ(0, s.pick({3, 1.9f, 0, 0, 0}, p, {1, 0, 0}, 1));
    EXPECT_EQ(1, s.pick({3, 1.9f, 0, 0, 0}, p, {1, 0, 0, 0}, 1));
    p.frequency_penalty = -2; /* negative penalties attract */
    EXPECT_EQ(4, s.pick({3, 0, 0, 0, 0}, p, {1, 4, 4}, 1));
    p.repetition_penalty = 1e-40f; /* what overflows stays finite, what is impossible stays so */
    p.presence_penalty = -2;
    EXPECT_EQ(0, s.pick({1, -INFINITY, -1, -1, -1}, p, {0, 1}, 1));
    EXPECT_EQ(3, s.pick({-1, -INFINITY, -1, 1, -1}, p, {1, 1, 1}, 1));
}

TEST(Logprobs, agree_with_double_and_sum_to_one)
{
    std::mt19937 rng(21);
    const size_t n = 20;
    Sampler s(n);
    for (int trial = 0; trial < 500; trial++) {
        auto x = random_logits(rng, n);
        nb_sampling p = sampling(trial % 2 ? 0.3f : 0); /* neither temperature nor truncation changes them */
        p.top_k = trial % 3 ? 2 : 0;
        p.repetition_penalty = 1.5f;
        p.seed = rng();
        std::vector<int32_t> history = {3, 4, 5};
        auto y = penalised(x, p, history, 3);
        double max = *std::max_element(y.begin(), y.end()), sum = 0, total = 0;
        for (float v : y)
            sum += std::exp(double(v) - max);
        int32_t token;
        float logprob;
        std::vector<nb_logprob> top(n);
        ASSERT_NB_OK(nbi_sample(s.s, x.data(), &p, history.data(), 3, 3, int(n), &token, &logprob, top.data()));
        for (size_t i = 0; i < n; i++) {
            double want = double(y[size_t(top[i].token)]) - max - std::log(sum);
            if (std::isinf(want)) {
                EXPECT_EQ(-INFINITY, top[i].logprob);
                continue;
            }
            /* fp32 rounding of the result, and the error of the sum: 4 ulp and |d| 2^-24 for the rounded differences */
            EXPECT_NEAR(want, double(top[i].logprob), std::fabs(want) * 0x1p-24 + 50 * 0x1p-24);
            total += std::exp(double(top[i].logprob));
            if (i > 0) {
                EXPECT_TRUE(top[i].logprob <= top[i - 1].logprob);
            }
            if (top[i].token == token) {
                EXPECT_EQ(top[i].logprob, logprob);
            }
        }
        EXPECT_NEAR(1, total, 1e-5);
    }
}

TEST(Logprobs, alternatives_come_best_first_and_lowest_id_first)
{
    Sampler s(5);
    nb_sampling p = sampling(0);
    std::vector<float> x = {1, 7, 1, 7, 1};
    int32_t token, history = 0;
    float logprob;
    nb_logprob top[9];
    ASSERT_NB_OK(nbi_sample(s.s, x.data(), &p, &history, 1, 1, 4, &token, &logprob, top));
    for (int i = 0; i < 4; i++)
        EXPECT_EQ((std::vector<int32_t>{1, 3, 0, 2})[size_t(i)], top[i].token);
    ASSERT_NB_OK(nbi_sample(s.s, x.data(), &p, &history, 1, 1, 9, &token, &logprob, top)) << "more than there are";
    EXPECT_EQ(4, top[4].token);
    top[0].token = -7;
    ASSERT_NB_OK(nbi_sample(s.s, x.data(), &p, &history, 1, 1, 0, &token, &logprob, top));
    EXPECT_EQ(-7, top[0].token);
    EXPECT_FLOAT_EQ(-std::log(2 + 3 * std::exp(-6.f)), logprob);
}

TEST(Check, parameters_out_of_range_are_named)
{
    nb_sampling p;
    nb_sampling_init(&p);
    EXPECT_NB_OK(nbi_sampling_check(&p));
#define OFF(field, value)                                                                                              \
    do {                                                                                                               \
        nb_sampling q = p;                                                                                             \
        q.field = value;                                                                                               \
        EXPECT_FAILS(NB_EINVAL, #field, nbi_sampling_check(&q));                                                       \
    } while (0)
#define FINE(field, value)                                                                                             \
    do {                                                                                                               \
        nb_sampling q = p;                                                                                             \
        q.field = value;                                                                                               \
        EXPECT_NB_OK(nbi_sampling_check(&q));                                                                          \
    } while (0)
    OFF(temperature, -0.1f);
    OFF(temperature, NAN);
    OFF(temperature, 100.1f);
    OFF(temperature, INFINITY);
    FINE(temperature, 1e-45f);
    OFF(top_k, -1);
    FINE(top_k, INT32_MAX);
    OFF(top_p, 0);
    OFF(top_p, 1.1f);
    OFF(top_p, NAN);
    OFF(min_p, -0.1f);
    OFF(min_p, 1);
    OFF(min_p, NAN);
    OFF(repetition_penalty, 0);
    OFF(repetition_penalty, -1);
    OFF(repetition_penalty, NAN);
    OFF(repetition_penalty, INFINITY);
    OFF(presence_penalty, 2.1f);
    OFF(presence_penalty, -2.1f);
    OFF(presence_penalty, NAN);
    OFF(frequency_penalty, 2.1f);
    OFF(frequency_penalty, -2.1f);
    OFF(frequency_penalty, NAN);
    OFF(struct_size, 3);
    FINE(struct_size, sizeof p + 8);
}

} // namespace
