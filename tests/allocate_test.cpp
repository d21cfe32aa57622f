/* The assignment of choices under a budget against every possible one. */
#include "testutil.h"

#include <cmath>
#include <random>

extern "C" {
#include "engine/allocate.h"
}

namespace
{

struct Total {
    uint64_t size = 0;
    double cost = 0;
};

Total total(const std::vector<nbi_item> &items, const std::vector<size_t> &pick)
{
    Total t;
    for (size_t i = 0; i < items.size(); i++) {
        t.size += items[i].choice[pick[i]].size;
        t.cost += items[i].choice[pick[i]].cost;
    }
    return t;
}

/* The least cost within the budget by trying everything; infinite where nothing fits. */
double brute_force(const std::vector<nbi_item> &items, uint64_t budget)
{
    double best = INFINITY;
    std::vector<size_t> pick(items.size());
    for (;;) {
        const Total t = total(items, pick);
        if (t.size <= budget)
            best = std::min(best, t.cost);
        size_t i = 0;
        while (i < items.size() && ++pick[i] == items[i].n)
            pick[i++] = 0;
        if (i == items.size())
            return best;
    }
}

uint64_t smallest(const std::vector<nbi_item> &items)
{
    uint64_t sum = 0;
    for (const nbi_item &it : items) {
        uint64_t lo = UINT64_MAX;
        for (size_t c = 0; c < it.n; c++)
            lo = std::min(lo, it.choice[c].size);
        sum += lo;
    }
    return sum;
}

/* Sizes in steps of `step`; costs fall with the size on the whole, but not always: measurements do not either. */
std::vector<nbi_item> random_items(std::mt19937 &rng, size_t n, uint64_t step, uint64_t most)
{
    std::uniform_real_distribution<double> u(0, 1);
    std::vector<nbi_item> items(n);
    for (nbi_item &it : items) {
        it.n = 1 + rng() % 5;
        for (size_t c = 0; c < it.n; c++)
            it.choice[c] = {step * (1 + rng() % most), 0};
        for (size_t c = 0; c < it.n; c++)
            it.choice[c].cost = 100 * u(rng) / (double)it.choice[c].size * (double)step + 0.1 * u(rng);
    }
    return items;
}

TEST(Allocate, finds_the_best_of_all_assignments)
{
    std::mt19937 rng(11);
    int tight = 0;
    for (int round = 0; round < 400; round++) {
        const std::vector<nbi_item> items = random_items(rng, 1 + rng() % 7, 1 + rng() % 300, 40);
        const uint64_t least = smallest(items), budget = least + rng() % (least + 1);
        std::vector<size_t> pick(items.size(), 99);
        uint64_t told = 0;
        ASSERT_NB_OK(nbi_allocate(pick.data(), items.data(), items.size(), budget, &told));
        const Total t = total(items, pick);
        EXPECT_EQ(least, told);
        EXPECT_LE(t.size, budget);
        EXPECT_NEAR(brute_force(items, budget), t.cost, 1e-12 * (1 + t.cost)) << "round " << round;
        tight += t.cost > brute_force(items, UINT64_MAX) + 1e-9;
    }
    EXPECT_GT(tight, 100) << "the budgets of this test hardly bind";
}

/* Sizes without a common divisor and a room far beyond the table: rounded up, then the rest is given away.  A size is rounded
 * by less than a unit, and there are 7 items: the answer is at least as good as the best within a budget of 7 units less. */
TEST(Allocate, with_rounded_sizes_it_is_as_good_as_the_best_of_a_slightly_smaller_budget)
{
    std::mt19937 rng(5);
    for (int round = 0; round < 60; round++) {
        std::vector<nbi_item> items = random_items(rng, 7, 1, 400);
        for (nbi_item &it : items)
            for (size_t c = 0; c < it.n; c++)
                it.choice[c].size = it.choice[c].size * 104729000003u + rng() % 1000003;
        const uint64_t least = smallest(items), room = least / 3, budget = least + room;
        std::vector<size_t> pick(items.size());
        ASSERT_NB_OK(nbi_allocate(pick.data(), items.data(), items.size(), budget, nullptr));
        const Total t = total(items, pick);
        EXPECT_LE(t.size, budget);
        const uint64_t unit = room / (1 << 17) + 1;
        EXPECT_LE(t.cost, brute_force(items, budget - 7 * unit) + 1e-12);
        EXPECT_GE(t.cost, brute_force(items, budget) - 1e-12);
    }
}

/* Against the bound of Lagrange: for every lambda >= 0, sum of min (cost + lambda size) - lambda budget is at most the best. */
TEST(Allocate, a_thousand_layers_come_close_to_the_bound)
{
    std::mt19937 rng(3);
    std::vector<nbi_item> items(1000);
    double worst_step = 0;
    for (nbi_item &it : items) {
        const uint64_t weights = 4096 * (1 + rng() % 11);
        const double hurt = std::exp2((double)(rng() % 12));
        const double bits[] = {2.3, 3.1, 4.1, 8, 16};
        it.n = 5;
        for (size_t c = 0; c < 5; c++)
            it.choice[c] = {(uint64_t)(bits[c] * (double)weights), c == 4 ? 0 : hurt * std::exp2(-2 * bits[c])};
        worst_step = std::max(worst_step, hurt);
    }
    uint64_t weights = 0;
    for (const nbi_item &it : items)
        weights += it.choice[4].size / 16;
    const uint64_t budget = weights * 7 / 2;
    std::vector<size_t> pick(items.size());
    ASSERT_NB_OK(nbi_allocate(pick.data(), items.data(), items.size(), budget, nullptr));
    const Total t = total(items, pick);
    EXPECT_LE(t.size, budget);
    double bound = 0;
    for (double lambda = 1e-9; lambda < 1; lambda *= 1.01) {
        double sum = -lambda * (double)budget;
        for (const nbi_item &it : items) {
            double least = INFINITY;
            for (size_t c = 0; c < it.n; c++)
                least = std::min(least, it.choice[c].cost + lambda * (double)it.choice[c].size);
            sum += least;
        }
        bound = std::max(bound, sum);
    }
    EXPECT_GE(t.cost, bound - 1e-9);
    EXPECT_LE(t.cost, 1.002 * bound);
}

TEST(Allocate, among_equals_the_smaller_size)
{
    nbi_item items[2] = {};
    items[0].n = items[1].n = 2;
    items[0].choice[0] = items[1].choice[0] = {300, 1.0};
    items[0].choice[1] = items[1].choice[1] = {100, 1.0};
    size_t pick[2];
    ASSERT_NB_OK(nbi_allocate(pick, items, 2, 1000, nullptr));
    EXPECT_EQ(1u, pick[0]);
    EXPECT_EQ(1u, pick[1]);
    ASSERT_NB_OK(nbi_allocate(pick, items, 0, 0, nullptr)); /* nothing to choose */
}

TEST(Allocate, a_budget_below_the_smallest_says_so)
{
    nbi_item items[2] = {};
    items[0].n = items[1].n = 2;
    items[0].choice[0] = items[1].choice[0] = {300, 0.0};
    items[0].choice[1] = items[1].choice[1] = {100, 1.0};
    size_t pick[2];
    uint64_t least = 0;
    EXPECT_FAILS(NB_ELIMIT, "200", nbi_allocate(pick, items, 2, 199, &least));
    EXPECT_EQ(200u, least);
    ASSERT_NB_OK(nbi_allocate(pick, items, 2, 200, &least));
    EXPECT_EQ(1u, pick[0] & pick[1]);
    items[0].choice[0].size = items[0].choice[1].size = UINT64_MAX;
    EXPECT_FAILS(NB_ELIMIT, "64 bits", nbi_allocate(pick, items, 2, UINT64_MAX, nullptr));
}

} // namespace
