/* LLM.int8() against the paper's words in double: which inputs are outliers, vector-wise INT8 for the rest, fp16 columns
 * beside it; and what becomes of a layer's output where a few inputs are much larger than the others. */
#include "backend_util.h"

extern "C" {
#include "quant/llm_int8.h"
#include "quant/rtn.h"
}

namespace
{

constexpr size_t kTokens = 70, kN = 45, kK = 200;
constexpr float kThreshold = 6;

nbi_scheme int8_scheme()
{
    nbi_scheme s = {};
    s.bits = 8;
    s.symmetric = s.act_symmetric = true;
    s.strategy = NBI_PER_CHANNEL;
    s.act = NBI_ACT_TOKEN;
    return s;
}

/* About normal, without a large one among them. */
std::vector<float> calm(size_t n, uint64_t seed, float size)
{
    std::vector<float> v(n);
    for (size_t i = 0; i < 4 * n; i++)
        v[i / 4] += (nbi_rng_uniform(seed, i) - 0.5f) * size;
    return v;
}

double f16(float x)
{
    return (double)nbi_f16_to_f32(nbi_f32_to_f16(x));
}

struct Layer {
    std::vector<float> w = calm(kN * kK, 1, 0.05f), x = calm(kTokens * kK, 2, 1.5f);
    std::vector<bool> large = std::vector<bool>(kK);
    nbi_inputs in = {};
    nbi_weight src = {}, q = {};
    nbi_scheme s = int8_scheme();

    explicit Layer(const std::vector<size_t> &planted)
    {
        for (size_t j : planted)
            for (size_t r = 0; r < kTokens; r++)
                x[r * kK + j] = x[r * kK + j] * 60 + (r == 3 ? kThreshold : 0);
        for (size_t i = 0; i < x.size(); i++)
            if (std::fabs(x[i]) >= kThreshold)
                large[i % kK] = true;
        src.n = kN;
        src.k = kK;
        src.dense_dtype = NBI_F32;
        src.dense = w.data();
        EXPECT_NB_OK(nbi_llm_int8_scheme(&s, "a test"));
        EXPECT_NB_OK(nbi_inputs_init(&in, kK, NBI_NEEDS_SIZES));
        EXPECT_NB_OK(nbi_inputs_add(&in, x.data(), kTokens, 1));
    }
    ~Layer()
    {
        nbi_weight_free(&q);
        nbi_inputs_free(&in);
    }
    Layer(const Layer &) = delete;
    nb_status quantize(nbi_dtype scale = NBI_F32) { return nbi_llm_int8(&q, &src, &s, scale, &in, kThreshold); }

    /* Relative error of outputs that rounding makes: of independent errors, uniform within a step, in x and in w. */
    double rounding() const
    {
        std::vector<double> sx(kTokens), sw(kN);
        double ex = 0, ew = 0, xx = 0, ww = 0;
        for (size_t j = 0; j < kK; j++)
            if (!large[j]) {
                for (size_t r = 0; r < kTokens; r++) {
                    sx[r] = std::max(sx[r], std::fabs((double)x[r * kK + j]) / 127);
                    xx += std::pow((double)x[r * kK + j], 2) / kTokens;
                }
                for (size_t n = 0; n < kN; n++) {
                    sw[n] = std::max(sw[n], std::fabs((double)w[n * kK + j]) / 127);
                    ww += std::pow((double)w[n * kK + j], 2) / kN;
                }
            }
        const double inner = (double)std::count(large.begin(), large.end(), false);
        for (double s : sx)
            ex += s * s / 12 * inner / kTokens;
        for (double s : sw)
            ew += s * s / 12 * inner / kN;
        return std::sqrt(ex / xx + ew / ww);
    }

    std::vector<double> exact() const
    {
        std::vector<double> y(kTokens * kN);
        for (size_t i = 0; i < y.size(); i++)
            for (size_t j = 0; j < kK; j++)
                y[i] += (double)x[i / kN * kK + j] * (double)w[i % kN * kK + j];
        return y;
    }

    /* X_f16 W_f16 + s_x s_w (X_i8 W_i8): equation 8 of the paper */
    std::vector<double> paper() const
    {
        std::vector<double> y(kTokens * kN), sx(kTokens), sw(kN);
        for (size_t j = 0; j < kK; j++) {
            for (size_t r = 0; r < kTokens && !large[j]; r++)
                sx[r] = std::max(sx[r], std::fabs((double)x[r * kK + j]) / 127);
            for (size_t n = 0; n < kN && !large[j]; n++)
                sw[n] = std::max(sw[n], std::fabs((double)w[n * kK + j]) / 127);
        }
        for (size_t r = 0; r < kTokens; r++)
            for (size_t n = 0; n < kN; n++) {
                double sum = 0, beside = 0;
                for (size_t j = 0; j < kK; j++)
                    if (large[j])
                        beside += (double)x[r * kK + j] * f16(w[n * kK + j]);
                    else
                        sum += std::nearbyint((double)x[r * kK + j] / sx[r]) *
                               std::nearbyint((double)w[n * kK + j] / sw[n]);
                y[r * kN + n] = sum * sx[r] * sw[n] + beside;
            }
        return y;
    }
};

std::vector<double> output(const nbi_weight &w, const std::vector<float> &x)
{
    Backend b("scalar");
    nbi_linear *l = nullptr;
    std::vector<float> y(kTokens * kN), scratch(b->scratch_bytes(b.be, kTokens, kK) / 4 + 1);
    EXPECT_NB_OK(b->linear_create(b.be, &l, &w));
    EXPECT_NB_OK(b->linear(b.be, &l, 1, x.data(), NBI_FORM_FLOAT, kTokens, y.data(), kN, NBI_DST_F32, scratch.data()));
    b->linear_free(b.be, l);
    return std::vector<double>(y.begin(), y.end());
}

double error(const std::vector<double> &a, const std::vector<double> &b)
{
    double e = 0, all = 0;
    for (size_t i = 0; i < a.size(); i++) {
        e += (a[i] - b[i]) * (a[i] - b[i]);
        all += b[i] * b[i];
    }
    return std::sqrt(e / all);
}

} // namespace

TEST(LlmInt8, outliers_are_the_inputs_that_reach_the_threshold)
{
    Layer l({0, 17, 199});
    ASSERT_NB_OK(l.quantize());
    std::vector<uint32_t> want;
    for (uint32_t j = 0; j < kK; j++)
        if (l.large[j])
            want.push_back(j);
    EXPECT_EQ((std::vector<uint32_t>{0, 17, 199}), want);
    EXPECT_EQ(want, std::vector<uint32_t>(l.q.outlier, l.q.outlier + l.q.n_outliers));
    ASSERT_NB_OK(nbi_weight_check_sparse(&l.q));
    for (size_t i = 0; i < l.q.sparse.nnz; i++)
        EXPECT_EQ(f16(l.w[i / want.size() * kK + want[i % want.size()]]), (double)l.q.sparse.value[i]);
}

TEST(LlmInt8, codes_are_vector_wise)
{
    Layer l({5, 100});
    ASSERT_NB_OK(l.quantize());
    for (size_t n = 0; n < kN; n++) {
        double most = 0;
        for (size_t j = 0; j < kK; j++)
            most = std::max(most, l.large[j] ? 0 : std::fabs((double)l.w[n * kK + j]));
        EXPECT_EQ((double)((float)most / 127.0f), (double)l.q.scales[n]);
        for (size_t j = 0; j < kK; j++) {
            const double want = l.large[j] ? 0 : std::nearbyint((double)(l.w[n * kK + j] / l.q.scales[n]));
            ASSERT_EQ(want, (double)l.q.codes[n * kK + j]) << n << " " << j;
        }
    }
}

/* The whole layer as the paper computes it: nothing but roundings of fp32 between them, a code here or there that falls to
 * its neighbour.  Its error against the exact output is within 1 %. */
TEST(LlmInt8, computes_what_the_paper_computes)
{
    Layer l({0, 17, 150});
    ASSERT_NB_OK(l.quantize());
    const std::vector<double> exact = l.exact(), paper = l.paper(), got = output(l.q, l.x);
    EXPECT_LT(error(got, paper), 1e-4);
    EXPECT_NEAR(1, error(got, exact) / error(paper, exact), 0.01);
}

TEST(LlmInt8, large_inputs_do_not_take_the_others_codes)
{
    Layer l({3, 90, 120});
    ASSERT_NB_OK(l.quantize());
    nbi_weight naive = {};
    const nbi_scheme s = int8_scheme();
    ASSERT_NB_OK(nbi_rtn(&naive, &l.src, &s, NBI_F32, 1));
    /* the part of the output that the ordinary inputs make */
    std::vector<double> rest(kTokens * kN), large(kTokens * kN);
    for (size_t i = 0; i < rest.size(); i++)
        for (size_t j = 0; j < kK; j++)
            (l.large[j] ? large : rest)[i] += (double)l.x[i / kN * kK + j] * (double)l.w[i % kN * kK + j];
    const std::vector<double> exact = l.exact();
    auto share = [&](std::vector<double> y) {
        for (size_t i = 0; i < y.size(); i++)
            y[i] -= large[i];
        return error(y, rest);
    };
    const double with = share(output(l.q, l.x)), without = share(output(naive, l.x));
    EXPECT_NEAR(1, with / l.rounding(), 0.15);
    EXPECT_GT(without, 10 * with);
    nbi_weight_free(&naive);
}

TEST(LlmInt8, a_layer_without_outliers_has_none)
{
    Layer l({});
    ASSERT_NB_OK(l.quantize(NBI_BF16));
    EXPECT_EQ(0u, l.q.n_outliers);
    EXPECT_EQ(0u, l.q.sparse.nnz);
    EXPECT_NEAR(1, error(output(l.q, l.x), l.exact()) / l.rounding(), 0.15);
}

TEST(LlmInt8, what_it_cannot_do_is_said)
{
    Layer l({8});
    l.w[3 * kK + 8] = 1e6f;
    EXPECT_FAILS(NB_EFORMAT, "output 3 and input 8 is 1e+06", l.quantize());
    l.w[3 * kK + 8] = 0;
    l.w[kK] = NAN;
    EXPECT_FAILS(NB_EFORMAT, "output 1 and input 0 is NaN", l.quantize());
    nbi_scheme s = int8_scheme();
    s.strategy = NBI_PER_TENSOR;
    EXPECT_FAILS(NB_EFORMAT, "r.json: LLM.int8()", nbi_llm_int8_scheme(&s, "r.json"));
    s = int8_scheme();
    s.act = NBI_ACT_TENSOR;
    EXPECT_FAILS(NB_EFORMAT, "r.json: LLM.int8()", nbi_llm_int8_scheme(&s, "r.json"));
}
