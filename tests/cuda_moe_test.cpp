/* Routing to experts against a host loop. */
#include "cuda_util.h"
#include "cpu_kernels.h"

#include <numeric>

namespace
{

struct Case {
    uint32_t rows, experts, top_k;
};

struct Routed {
    std::vector<int32_t> expert, offset, sorted;
    std::vector<float> weight;
};

Routed route(const std::vector<float> &router, const Case &c, bool renormalize)
{
    const size_t n = (size_t)c.rows * c.top_k;
    Buffer<float> x(router), weight(n);
    Buffer<int32_t> expert(n), offset(c.experts + 1), sorted(n);
    const nb_moe_route_args a = {x.ptr(), expert.ptr(), weight.ptr(), offset.ptr(), sorted.ptr(),
                                 c.rows,  c.experts,    c.top_k,      renormalize};
    EXPECT_TRUE(launch(NB_K_nb_moe_route, {(c.rows + 7) / 8, 1, 1}, 0, a));
    EXPECT_TRUE(launch(NB_K_nb_moe_sort, {c.experts, 1, 1}, 0, a));
    return {expert.get(), offset.get(), sorted.get(), weight.get()};
}

class CudaMoe : public ::testing::TestWithParam<Case>
{
};
INSTANTIATE_TEST_SUITE_P(, CudaMoe,
                         ::testing::Values(Case{1, 8, 2}, Case{7, 8, 8}, Case{8, 1, 1}, Case{9, 33, 4}, Case{17, 64, 6},
                                           Case{129, 128, 8}, Case{31, 256, 8}, Case{3, 512, 40}, Case{300, 60, 4}),
                         [](const auto &i) {
                             return std::to_string(i.param.rows) + "_rows_" + std::to_string(i.param.experts) +
                                    "_top_" + std::to_string(i.param.top_k);
                         });

TEST_P(CudaMoe, agrees_with_a_host_loop)
{
    const Case c = GetParam();
    for (bool renormalize : {false, true}) {
        std::vector<float> x = noise((size_t)c.rows * c.experts, 21, 2);
        for (size_t i = 0; i < x.size(); i += 3)
            x[i] = std::round(x[i]); /* equal ones */
        const Routed got = route(x, c, renormalize);
        std::vector<std::vector<int32_t>> of(c.experts);
        for (uint32_t r = 0; r < c.rows; r++) {
            const float *row = &x[(size_t)r * c.experts];
            std::vector<int32_t> order(c.experts);
            std::iota(order.begin(), order.end(), 0);
            std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return row[a] > row[b]; });
            const double max = row[order[0]];
            double sum = 0;
            for (uint32_t e = 0; e < (renormalize ? c.top_k : c.experts); e++)
                sum += std::exp((double)row[order[e]] - max);
            /* The difference is rounded to half an ulp of at most 64 (noise is below 50 here), which moves an
             * exponential by 2^-19 at the most; it has 2 ulp of its own.  A sum of n has up to ceil(n/32) + 5 additions
             * (top_k in a chain), then the division. */
            const double each = 0x1p-19 + 4 * U, adds = renormalize ? c.top_k : c.experts / 32 + 6;
            for (uint32_t k = 0; k < c.top_k; k++) {
                const size_t at = (size_t)r * c.top_k + k;
                ASSERT_EQ(order[k], got.expert[at]) << "row " << r << ", slot " << k;
                const double want = std::exp((double)row[order[k]] - max) / sum;
                ASSERT_NEAR(want, got.weight[at], want * (2 * each + (adds + 2) * U)) << "row " << r << ", slot " << k;
                of[(size_t)order[k]].push_back((int32_t)at);
            }
        }
        int32_t before = 0;
        for (uint32_t e = 0; e < c.experts; e++) {
            ASSERT_EQ(before, got.offset[e]) << "expert " << e;
            for (int32_t at : of[e])
                ASSERT_EQ(at, got.sorted[(size_t)before++]) << "expert " << e;
        }
        EXPECT_EQ((int32_t)(c.rows * c.top_k), got.offset[c.experts]);
    }
}

/* The order of sums as moe_route.cu states it, with the CPU's exp: equal bits show that exp.cuh is that exp. */
TEST(CudaMoeCheck, weights_have_the_bits_of_the_cpus_exp)
{
    const Case c = {64, 200, 200};
    std::vector<float> x((size_t)c.rows * c.experts), e(c.experts);
    for (size_t i = 0; i < x.size(); i++) /* differences from 0 to beyond -104, where it ends */
        x[i] = nbi_rng_uniform(24, i) * (i / c.experts % 4 == 0 ? 120.0f : 12.0f) - 6;
    for (bool renormalize : {false, true}) {
        const Routed got = route(x, c, renormalize);
        for (size_t r = 0; r < c.rows; r++) {
            const float *row = &x[r * c.experts], largest = *std::max_element(row, row + c.experts);
            for (size_t i = 0; i < c.experts; i++)
                e[i] = row[i] - largest;
            nbi_cpu_scalar.exp(e.data(), c.experts, e.data());
            std::vector<float> lane(32, 0), next(32);
            for (size_t i = 0; i < c.experts; i++)
                lane[i % 32] += e[i];
            for (size_t step = 16; step; step /= 2, lane = next)
                for (size_t i = 0; i < 32; i++)
                    next[i] = lane[i] + lane[i ^ step];
            float total = lane[0], want[200];
            if (renormalize) {
                total = 0;
                for (size_t k = 0; k < c.top_k; k++)
                    total += e[(size_t)got.expert[r * c.top_k + k]];
            }
            for (size_t k = 0; k < c.top_k; k++)
                want[k] = e[(size_t)got.expert[r * c.top_k + k]] / total;
            ASSERT_TRUE(same_bits(want, &got.weight[r * c.top_k], c.top_k)) << "row " << r;
        }
    }
}

TEST(CudaMoeCheck, a_row_of_nan_has_weights_of_nan_and_experts_that_exist)
{
    const Case c = {4, 40, 3};
    std::vector<float> x = noise((size_t)c.rows * c.experts, 22);
    std::fill_n(&x[40], 40, NAN);
    x[2 * 40 + 39] = NAN;
    x[3 * 40 + 5] = INFINITY;
    for (bool renormalize : {false, true}) {
        const Routed got = route(x, c, renormalize);
        for (size_t i = 0; i < got.expert.size(); i++) {
            EXPECT_GE(got.expert[i], 0);
            EXPECT_LT(got.expert[i], 40);
            EXPECT_EQ(i >= 3, std::isnan(got.weight[i])) << i;
        }
        EXPECT_EQ(5, got.expert[9]);
        EXPECT_EQ((std::vector<int32_t>{0, 1, 2}), std::vector<int32_t>(&got.expert[3], &got.expert[6])) << "all equal";
        EXPECT_EQ(12, got.offset[40]);
    }
}

TEST(CudaMoeCheck, a_row_goes_the_same_way_in_any_company)
{
    const Case c = {77, 128, 8}, one = {1, 128, 8};
    const std::vector<float> x = noise((size_t)c.rows * c.experts, 23);
    const Routed all = route(x, c, true);
    for (uint32_t r : {0u, 40u, 76u}) {
        const Routed alone = route(std::vector<float>(&x[r * 128], &x[r * 128] + 128), one, true);
        EXPECT_TRUE(same_bits(&all.weight[r * 8], alone.weight.data(), 8));
        EXPECT_TRUE(std::equal(alone.expert.begin(), alone.expert.end(), &all.expert[r * 8]));
    }
}

} // namespace
