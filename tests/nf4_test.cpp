/* NF4 against bitsandbytes' rule, restated here from its description: x times fp32(1/absmax), the nearest entry of the map, the
 * lower one at a tie. */
#include "backend_util.h"

#include <jansson.h>

extern "C" {
#include "base/nf4.h"
#include "quant/nf4.h"
#include "quant/recipe.h"
#include "quant/rtn.h"
}

namespace
{

nbi_scheme nf4(uint32_t group)
{
    nbi_scheme s = {};
    s.bits = 4;
    s.kind = NBI_KIND_NF4;
    s.symmetric = true;
    s.strategy = group ? NBI_PER_GROUP : NBI_PER_CHANNEL;
    s.group = group;
    return s;
}

struct Result {
    nbi_weight q = {};
    nb_status st;
    Result(const std::vector<float> &w, size_t n, size_t k, nbi_scheme s, int threads = 1, float *bias = nullptr)
    {
        nbi_weight src = {};
        src.n = n;
        src.k = k;
        src.dense_dtype = NBI_F32;
        src.dense = w.data();
        src.bias = bias;
        st = nbi_nf4_quantize(&q, &src, &s, threads);
    }
    ~Result() { nbi_weight_free(&q); }
    Result(const Result &) = delete;
};

/* Index into the map, by distances in double. */
int nearest(float x)
{
    int best = 0;
    for (int i = 1; i < 16; i++)
        if (std::fabs((double)x - (double)nbi_nf4[i]) < std::fabs((double)x - (double)nbi_nf4[best]))
            best = i;
    return best;
}

} // namespace

/* formats-and-algorithms: 0f 7c 88 ..., the high nibble first, absmax 1. */
TEST(Nf4, golden_vector)
{
    std::vector<float> w(64, 0.1f);
    const float first[4] = {-1, 1, 0, 0.5f};
    std::copy(first, first + 4, w.begin());
    Result r(w, 1, 64, nf4(64));
    ASSERT_NB_OK(r.st);
    const int want[4] = {0x0, 0xf, 0x7, 0xc};
    for (size_t i = 0; i < 64; i++)
        EXPECT_EQ(i < 4 ? want[i] : 8, r.q.codes[i] + 8) << i;
    EXPECT_EQ(1.0f, r.q.scales[0]);
}

/* The thresholds that bitsandbytes compiled into its kernels. */
TEST(Nf4, middles_between_neighbours_go_down)
{
    const float middle[15] = {-0.8480964004993439f,   -0.6106329262256622f,  -0.4599952697753906f,
                              -0.33967943489551544f,  -0.23460740596055984f, -0.13791173323988914f,
                              -0.045525018125772476f, 0.03979014977812767f,  0.1202552504837513f,
                              0.2035212516784668f,    0.2920137718319893f,   0.3893125355243683f,
                              0.5016634166240692f,    0.6427869200706482f,   0.8614784181118011f};
    for (int i = 0; i < 15; i++) {
        ASSERT_NEAR(((double)nbi_nf4[i] + (double)nbi_nf4[i + 1]) / 2, (double)middle[i], 0x1p-24) << i;
        const std::vector<float> w = {1, middle[i], std::nextafterf(middle[i], 2), std::nextafterf(middle[i], -2)};
        Result r(w, 1, 4, nf4(0));
        ASSERT_NB_OK(r.st);
        EXPECT_EQ(i - 8, r.q.codes[1]) << i;
        EXPECT_EQ(i - 7, r.q.codes[2]) << i;
        EXPECT_EQ(i - 8, r.q.codes[3]) << i;
    }
}

TEST(Nf4, codes_and_scales_are_those_of_the_rule)
{
    size_t index = 0;
    for (uint32_t group : {0u, 8u, 64u})
        for (size_t k : {1u, 63u, 64u, 65u, 1000u, 1024u}) {
            if (group && k % group)
                continue;
            const size_t n = 7, len = group ? group : k;
            index++;
            std::vector<float> w = noise(n * k, index, index % 2 ? 0.02f : 30.0f);
            Result r(w, n, k, nf4(group), 3);
            ASSERT_NB_OK(r.st);
            for (size_t g = 0; g < n * k / len; g++) {
                float most = 0;
                for (size_t i = g * len; i < (g + 1) * len; i++)
                    most = std::max(most, std::fabs(w[i]));
                ASSERT_EQ(most, r.q.scales[g]);
                for (size_t i = g * len; i < (g + 1) * len; i++)
                    ASSERT_EQ(nearest(w[i] * (1.0f / most)), r.q.codes[i] + 8) << "group " << group << " k " << k;
            }
        }
}

TEST(Nf4, the_dense_weight_is_the_map_times_absmax)
{
    const size_t n = 5, k = 128;
    const std::vector<float> w = noise(n * k, 3, 0.1f);
    Result r(w, n, k, nf4(64));
    ASSERT_NB_OK(r.st);
    std::vector<float> dense(n * k);
    ASSERT_NB_OK(nbi_weight_dense(&r.q, dense.data(), 2));
    for (size_t i = 0; i < n * k; i++) {
        ASSERT_EQ(nbi_nf4[r.q.codes[i] + 8] * r.q.scales[i / 64], dense[i]);
        /* half the widest gap of the map */
        ASSERT_LE(std::fabs(dense[i] - w[i]), r.q.scales[i / 64] * 0.1520f);
    }
    nbi_weight src = {};
    src.n = n;
    src.k = k;
    src.dense_dtype = NBI_F32;
    src.dense = w.data();
    nbi_quant_error e;
    nbi_quant_error_of(&e, &r.q, &src);
    double mse = 0;
    for (size_t i = 0; i < n * k; i++)
        mse += ((double)w[i] - (double)dense[i]) * ((double)w[i] - (double)dense[i]) / (double)(n * k);
    EXPECT_NEAR(mse, e.mse, mse * 1e-6);
}

TEST(Nf4, zeros_tiny_numbers_and_threads)
{
    std::vector<float> w(3 * 64, 0.0f);
    w[64] = 0x1p-140f; /* its inverse is beyond fp32 */
    w[65] = -0x1p-141f;
    w[128] = -0.0f;
    Result r(w, 3, 64, nf4(64)), threads(w, 3, 64, nf4(64), 7);
    ASSERT_NB_OK(r.st);
    ASSERT_NB_OK(threads.st);
    EXPECT_EQ(0, memcmp(r.q.codes, threads.q.codes, w.size()));
    for (size_t i = 0; i < 64; i++) {
        EXPECT_EQ(-1, r.q.codes[i]);
        EXPECT_EQ(-1, r.q.codes[128 + i]);
    }
    EXPECT_EQ(0.0f, r.q.scales[0]);
    EXPECT_EQ(7, r.q.codes[64]);
    EXPECT_EQ(nearest(-0.5f) - 8, r.q.codes[65]);
    std::vector<float> row(64);
    nbi_weight_row(&r.q, 0, row.data());
    for (float v : row)
        EXPECT_EQ(0.0f, v);
}

TEST(Nf4, what_cannot_be_quantized_is_named)
{
    std::vector<float> w = noise(4 * 64, 1);
    w[2 * 64 + 5] = NAN;
    EXPECT_FAILS(NB_EFORMAT, "row 2, column 5 is NaN", Result(w, 4, 64, nf4(64)).st);
    w[2 * 64 + 5] = -INFINITY;
    EXPECT_FAILS(NB_EFORMAT, "row 2, column 5 is infinite", Result(w, 4, 64, nf4(64)).st);
    EXPECT_FAILS(NB_EINVAL, "groups of 48", Result(w, 4, 64, nf4(48)).st);
}

TEST(Nf4, a_bias_comes_along)
{
    float bias[2] = {3, -4};
    Result r(noise(128, 1), 2, 64, nf4(64), 1, bias);
    ASSERT_NB_OK(r.st);
    ASSERT_NE(nullptr, r.q.bias);
    EXPECT_EQ(-4.0f, r.q.bias[1]);
}

TEST(Nf4, recipe)
{
    nbi_recipe *r = nullptr;
    nbi_scheme s;
    ASSERT_NB_OK(nbi_recipe_load(&r, NIBBLE_SOURCE_DIR "/configs/recipes/nf4.json"));
    EXPECT_FALSE(nbi_recipe_needs_text(r));
    ASSERT_NB_OK(nbi_recipe_scheme(r, "model.layers.0.mlp.up_proj", 128, &s));
    EXPECT_EQ(NBI_KIND_NF4, s.kind);
    EXPECT_EQ(64u, s.group);
    ASSERT_NB_OK(nbi_recipe_scheme(r, "lm_head", 128, &s));
    EXPECT_EQ(0, s.bits);
    nbi_recipe_free(r);
    for (const char *text : {R"({"weights": {"bits": 4, "symmetric": false, "group_size": 64}, "method": "nf4"})",
                             R"({"weights": {"bits": 4, "strategy": "tensor"}, "method": "nf4"})",
                             R"({"weights": {"bits": 4}, "activations": {"bits": 8}, "method": "nf4"})"}) {
        json_t *j = json_loads(text, 0, nullptr);
        EXPECT_FAILS(NB_EFORMAT, "NF4 has no zero points", nbi_recipe_parse(&r, j, "x.json"));
        json_decref(j);
    }
    json_t *j = json_loads(R"({"weights": {"bits": 4, "group_size": 64}, "method": "nf4",
                               "overrides": [{"match": "down", "weights": {"bits": 8, "strategy": "channel"}}]})",
                           0, nullptr);
    ASSERT_NB_OK(nbi_recipe_parse(&r, j, "x.json"));
    ASSERT_NB_OK(nbi_recipe_scheme(r, "down", 128, &s));
    EXPECT_EQ(NBI_KIND_INT, s.kind);
    EXPECT_EQ(8, s.bits);
    nbi_recipe_free(r);
    json_decref(j);
}
