/* Ternary and binary weights against the papers' formulas, in double. */
#include "backend_util.h"

#include <jansson.h>

extern "C" {
#include "quant/binary.h"
#include "quant/recipe.h"
#include "quant/ternary.h"
}

namespace
{

nbi_scheme scheme(unsigned bits, nbi_strategy strategy, uint32_t group = 0)
{
    nbi_scheme s = {};
    s.bits = (uint8_t)bits;
    s.kind = bits == 1 ? NBI_KIND_BINARY : NBI_KIND_INT;
    s.symmetric = true;
    s.strategy = strategy;
    s.group = group;
    return s;
}

/* noise() without its outliers: as weights are. */
std::vector<float> weights(size_t n, uint64_t seed)
{
    std::vector<float> v = noise(n, seed, 0.3f);
    for (float &f : v)
        f = std::fabs(f) > 0.6f ? f / 20 : f;
    return v;
}

enum Method { TWN, REFINED, ABSMEAN, BINARY };

struct Result {
    nbi_weight q = {};
    nb_status st;
    Result(Method m, const std::vector<float> &w, size_t n, size_t k, nbi_scheme s, nbi_dtype scale = NBI_F32,
           int threads = 2)
    {
        nbi_weight src = {};
        src.n = n;
        src.k = k;
        src.dense_dtype = NBI_F32;
        src.dense = w.data();
        st = m == ABSMEAN  ? nbi_absmean(&q, &src, &s, scale, threads)
             : m == BINARY ? nbi_binary(&q, &src, &s, scale, threads)
                           : nbi_twn(&q, &src, &s, scale, m == REFINED, threads);
    }
    ~Result() { nbi_weight_free(&q); }
    Result(const Result &) = delete;
    double error(const std::vector<float> &w) const
    {
        std::vector<float> dense(w.size());
        EXPECT_NB_OK(nbi_weight_dense(&q, dense.data(), 1));
        double sum = 0;
        for (size_t i = 0; i < w.size(); i++)
            sum += ((double)w[i] - (double)dense[i]) * ((double)w[i] - (double)dense[i]);
        return sum;
    }
};

double mean_abs(const float *w, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += std::fabs((double)w[i]);
    return sum / (double)n;
}

/* The least error of any scale and any codes: of the sets of the m largest, the best. */
double least_error(const float *w, size_t n)
{
    std::vector<double> a(n);
    double all = 0, sum = 0, gain = 0;
    for (size_t i = 0; i < n; i++) {
        a[i] = std::fabs((double)w[i]);
        all += a[i] * a[i];
    }
    std::sort(a.rbegin(), a.rend());
    for (size_t m = 1; m <= n; m++) {
        sum += a[m - 1];
        gain = std::max(gain, sum * sum / (double)m);
    }
    return all - gain;
}

/* How a weight is cut into runs that share a scale. */
struct Cut {
    nbi_scheme s;
    size_t n, k, len;
};
std::vector<Cut> cuts(unsigned bits)
{
    std::vector<Cut> v;
    for (size_t k : {1u, 63u, 64u, 65u, 1000u}) {
        v.push_back({scheme(bits, NBI_PER_CHANNEL), 5, k, k});
        v.push_back({scheme(bits, NBI_PER_TENSOR), 5, k, 5 * k});
    }
    v.push_back({scheme(bits, NBI_PER_GROUP, 32), 5, 128, 32});
    return v;
}

size_t scale_at(const Cut &c, size_t run)
{
    return c.s.strategy == NBI_PER_TENSOR ? 0 : run;
}

} // namespace

TEST(Ternary, twn_is_the_papers_threshold_and_mean)
{
    size_t index = 0;
    for (const Cut &c : cuts(2)) {
        const std::vector<float> w = noise(c.n * c.k, ++index, 0.3f);
        Result r(TWN, w, c.n, c.k, c.s);
        ASSERT_NB_OK(r.st);
        for (size_t run = 0; run < w.size() / c.len; run++) {
            const float *x = &w[run * c.len];
            const double threshold = 0.7 * mean_abs(x, c.len);
            double sum = 0, kept = 0;
            for (size_t i = 0; i < c.len; i++) {
                const int want = std::fabs((double)x[i]) > threshold ? (x[i] > 0 ? 1 : -1) : 0;
                ASSERT_EQ(want, r.q.codes[run * c.len + i]);
                sum += want ? std::fabs((double)x[i]) : 0;
                kept += want != 0;
            }
            ASSERT_NEAR(sum / kept, (double)r.q.scales[scale_at(c, run)], sum / kept * 0x1p-23);
        }
    }
}

/* Every code is the nearest value, the scale is the mean of what is kept, and nothing is worse than before. */
TEST(Ternary, refined_is_a_fixed_point_below_twn)
{
    size_t index = 0, better = 0;
    for (const Cut &c : cuts(2)) {
        const std::vector<float> w = weights(c.n * c.k, ++index);
        Result first(TWN, w, c.n, c.k, c.s), r(REFINED, w, c.n, c.k, c.s);
        ASSERT_NB_OK(r.st);
        double least = 0;
        for (size_t run = 0; run < w.size() / c.len; run++) {
            const double s = (double)r.q.scales[scale_at(c, run)];
            double sum = 0, kept = 0;
            for (size_t i = run * c.len; i < (run + 1) * c.len; i++) {
                const double a = std::fabs((double)w[i]);
                const int want = a > s / 2 ? (w[i] > 0 ? 1 : -1) : 0;
                ASSERT_EQ(want, r.q.codes[i]);
                sum += want ? a : 0;
                kept += want != 0;
            }
            ASSERT_NEAR(sum / kept, s, s * 0x1p-23);
            least += least_error(&w[run * c.len], c.len);
        }
        const double before = first.error(w), after = r.error(w);
        EXPECT_LE(after, before * (1 + 1e-6) + 1e-9);
        EXPECT_GE(after, least * (1 - 1e-6) - 1e-9);
        if (c.len >= 1000) {
            EXPECT_LE(after, least * 1.01); /* within 1 % of the best there is */
        }
        better += after < before;
    }
    EXPECT_GE(better, 4u);
}

TEST(Ternary, absmean_is_bitnets_rule)
{
    size_t index = 0;
    for (const Cut &c : cuts(2)) {
        const std::vector<float> w = noise(c.n * c.k, ++index, 0.3f);
        Result r(ABSMEAN, w, c.n, c.k, c.s);
        ASSERT_NB_OK(r.st);
        for (size_t i = 0; i < w.size(); i++) {
            const float s = r.q.scales[c.s.strategy == NBI_PER_TENSOR ? i / c.k : i / c.len];
            ASSERT_NEAR(mean_abs(&w[i / c.len * c.len], c.len), (double)s, (double)s * 0x1p-23);
            ASSERT_EQ(std::max(-1.0f, std::min(1.0f, std::rint(w[i] / s))), (float)r.q.codes[i]);
        }
    }
    Result zero(ABSMEAN, std::vector<float>(64), 1, 64, scheme(2, NBI_PER_TENSOR));
    ASSERT_NB_OK(zero.st);
    EXPECT_EQ(1e-5f, zero.q.scales[0]);
}

TEST(Binary, sign_and_mean_magnitude)
{
    for (size_t k : {1u, 63u, 64u, 65u, 1000u}) {
        const size_t n = 6;
        std::vector<float> w = noise(n * k, k, 0.3f);
        w[0] = 0;
        w[k] = -0.0f;
        std::fill(w.begin() + 5 * (ptrdiff_t)k, w.end(), 0.0f);
        Result r(BINARY, w, n, k, scheme(1, NBI_PER_CHANNEL));
        ASSERT_NB_OK(r.st);
        for (size_t i = 0; i < n; i++) {
            const double mean = mean_abs(&w[i * k], k);
            ASSERT_NEAR(mean, (double)r.q.scales[i], mean * 0x1p-23);
            for (size_t j = i * k; j < (i + 1) * k; j++)
                ASSERT_EQ(w[j] >= 0 ? 1 : -1, r.q.codes[j]);
        }
        /* no other scale is nearer */
        const double best = r.error(w);
        for (float factor : {0.98f, 1.02f}) {
            Result other(BINARY, w, n, k, scheme(1, NBI_PER_CHANNEL));
            for (size_t i = 0; i < n; i++)
                other.q.scales[i] *= factor;
            ASSERT_GE(other.error(w), best);
        }
    }
}

TEST(LowBits, scales_are_as_they_are_stored_and_threads_change_nothing)
{
    const size_t n = 33, k = 96;
    std::vector<float> w = noise(n * k, 8, 0.2f);
    std::fill(w.begin() + 3 * k, w.begin() + 4 * k, 0.0f);
    for (Method m : {TWN, REFINED, ABSMEAN, BINARY})
        for (nbi_dtype t : {NBI_F16, NBI_BF16}) {
            const nbi_scheme s = scheme(m == BINARY ? 1 : 2, NBI_PER_CHANNEL);
            Result one(m, w, n, k, s, t, 1), many(m, w, n, k, s, t, 50);
            ASSERT_NB_OK(one.st);
            ASSERT_NB_OK(many.st);
            EXPECT_EQ(0, memcmp(one.q.codes, many.q.codes, n * k));
            EXPECT_EQ(0, memcmp(one.q.scales, many.q.scales, n * sizeof(float)));
            for (size_t i = 0; i < n; i++) {
                uint16_t raw;
                float back;
                nbi_from_f32(&raw, t, &one.q.scales[i], 1);
                nbi_to_f32(&back, &raw, t, 1);
                /* 1e-5 lies in the subnormals of F16 and is rounded up */
                EXPECT_EQ(back, one.q.scales[i]);
            }
        }
}

TEST(LowBits, what_cannot_be_quantized_is_named)
{
    std::vector<float> w = noise(4 * 64, 1);
    w[3 * 64 + 60] = NAN;
    for (Method m : {TWN, ABSMEAN, BINARY}) {
        const unsigned bits = m == BINARY ? 1 : 2;
        EXPECT_FAILS(NB_EFORMAT, "row 3, column 60 is NaN", Result(m, w, 4, 64, scheme(bits, NBI_PER_CHANNEL)).st);
        EXPECT_FAILS(NB_EFORMAT, "row 3, column 60 is NaN", Result(m, w, 4, 64, scheme(bits, NBI_PER_TENSOR)).st);
        std::vector<float> large(64, 1e6f);
        EXPECT_FAILS(NB_EFORMAT, "beyond what F16 holds",
                     Result(m, large, 1, 64, scheme(bits, NBI_PER_CHANNEL), NBI_F16).st);
        EXPECT_FAILS(NB_EFORMAT, "beyond what F16 holds",
                     Result(m, large, 1, 64, scheme(bits, NBI_PER_TENSOR), NBI_F16).st);
    }
}

TEST(LowBits, recipes)
{
    nbi_recipe *r = nullptr;
    nbi_scheme s;
    const nbi_method_options *o = nullptr;
    ASSERT_NB_OK(nbi_recipe_load(&r, NIBBLE_SOURCE_DIR "/configs/recipes/ternary.json"));
    ASSERT_NB_OK(nbi_recipe_scheme(r, "model.layers.0.mlp.up_proj", 128, &s));
    EXPECT_EQ(2, s.bits);
    EXPECT_EQ(NBI_PER_CHANNEL, s.strategy);
    EXPECT_STREQ("twn", nbi_recipe_method(r, &o)->name);
    EXPECT_TRUE(o->refine);
    nbi_recipe_free(r);
    ASSERT_NB_OK(nbi_recipe_load(&r, NIBBLE_SOURCE_DIR "/configs/recipes/binary.json"));
    ASSERT_NB_OK(nbi_recipe_scheme(r, "model.layers.0.mlp.up_proj", 128, &s));
    EXPECT_EQ(1, s.bits);
    EXPECT_EQ(NBI_KIND_BINARY, s.kind);
    EXPECT_EQ(NBI_ACT_SIGN, s.act);
    EXPECT_FALSE(nbi_recipe_needs_text(r));
    nbi_recipe_free(r);
    const struct {
        const char *text, *says;
    } wrong[] = {
        {R"({"weights": {"bits": 1}})", "\"bits\" is 1, which is for the method binary"},
        {R"({"weights": {"bits": 4}, "activations": {"bits": 1}})", "goes with weights of 1 bit"},
        {R"({"weights": {"bits": 8}, "activations": {"bits": 1}, "method": "binary"})", "goes with weights of 1 bit"},
        {R"({"weights": {"bits": 1}, "activations": {"bits": 1, "strategy": "tensor"}, "method": "binary"})",
         "with 1 bit, expected \"token\""},
        {R"({"weights": {"bits": 1, "group_size": 64}, "method": "binary"})", "a scale for each row"},
        {R"({"weights": {"bits": 2, "symmetric": false}, "method": "twn"})", "no zero points"},
        {R"({"weights": {"bits": 2}, "method": {"name": "absmean", "refine": true}})", "no option \"refine\""},
    };
    for (const auto &w : wrong) {
        json_t *j = json_loads(w.text, 0, nullptr);
        SCOPED_TRACE(w.text);
        EXPECT_FAILS(NB_EFORMAT, w.says, nbi_recipe_parse(&r, j, "x.json"));
        json_decref(j);
    }
}
