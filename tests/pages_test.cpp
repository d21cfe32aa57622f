/* Page pool and scheduler: no page is lost or held twice, the oldest request always moves on. */
#include "testutil.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <random>
#include <set>

extern "C" {
#include "engine/scheduler.h"
}

namespace
{

struct Table {
    std::vector<int32_t> memory;
    nbi_table t;
    explicit Table(uint32_t cap) : memory(cap, -1), t{memory.data(), 0, cap} {}
};

TEST(Pages, counts_round_up)
{
    EXPECT_EQ(0u, nbi_pages_for(0));
    EXPECT_EQ(1u, nbi_pages_for(1));
    EXPECT_EQ(1u, nbi_pages_for(NBI_PAGE_TOKENS));
    EXPECT_EQ(2u, nbi_pages_for(NBI_PAGE_TOKENS + 1));
    EXPECT_EQ(SIZE_MAX / NBI_PAGE_TOKENS + 1, nbi_pages_for(SIZE_MAX));
}

TEST(Pages, a_pool_of_no_or_too_many_pages_is_an_error)
{
    nbi_pages p;
    EXPECT_FAILS(NB_EINVAL, "0 pages", nbi_pages_create(&p, 0));
    EXPECT_FAILS(NB_EINVAL, "2147483648", nbi_pages_create(&p, 1u << 31));
    nbi_pages_free(&p);
}

TEST(Pages, growing_is_all_or_nothing)
{
    nbi_pages p;
    ASSERT_NB_OK(nbi_pages_create(&p, 5));
    Table a(8), b(8), small(1);
    EXPECT_TRUE(nbi_pages_grow(&p, &a.t, 3 * NBI_PAGE_TOKENS));
    EXPECT_EQ(2u, p.n_free);
    EXPECT_FALSE(nbi_pages_grow(&p, &b.t, 3 * NBI_PAGE_TOKENS));
    EXPECT_EQ(0u, b.t.n);
    EXPECT_EQ(2u, p.n_free);
    EXPECT_TRUE(nbi_pages_grow(&p, &a.t, 1)); /* holds more already */
    EXPECT_EQ(3u, a.t.n);
    EXPECT_FALSE(nbi_pages_grow(&p, &small.t, NBI_PAGE_TOKENS + 1)) << "beyond the table";
    EXPECT_TRUE(nbi_pages_grow(&p, &a.t, 5 * NBI_PAGE_TOKENS));
    EXPECT_EQ(0u, p.n_free);
    nbi_pages_release(&p, &a.t);
    EXPECT_EQ(5u, p.n_free);
    EXPECT_EQ(0u, a.t.n);
    nbi_pages_free(&p);
}

TEST(Pages, random_use_neither_leaks_nor_shares_a_page)
{
    std::mt19937 rng(1);
    nbi_pages p;
    const uint32_t total = 37;
    ASSERT_NB_OK(nbi_pages_create(&p, total));
    std::vector<std::unique_ptr<Table>> tables;
    for (int i = 0; i < 6; i++)
        tables.push_back(std::make_unique<Table>(20));
    for (int step = 0; step < 20000; step++) {
        Table &t = *tables[rng() % tables.size()];
        if (rng() % 4 == 0)
            nbi_pages_release(&p, &t.t);
        else
            nbi_pages_grow(&p, &t.t, rng() % (22 * NBI_PAGE_TOKENS));
        std::set<int32_t> seen(p.free, p.free + p.n_free);
        for (auto &u : tables)
            for (uint32_t i = 0; i < u->t.n; i++)
                ASSERT_TRUE(seen.insert(u->t.page[i]).second) << "page " << u->t.page[i] << " occurs twice";
        ASSERT_EQ(total, seen.size());
        ASSERT_EQ(0, *seen.begin());
        ASSERT_EQ(int32_t(total) - 1, *seen.rbegin());
    }
    nbi_pages_free(&p);
}

/* ---- the scheduler with made-up requests: a token is "sampled" whenever all of a request is in the cache ---- */

struct Shape {
    size_t prompt, limit;
};

class Sim
{
  public:
    Sim(uint32_t batch, uint32_t context, uint32_t chunk, uint32_t pages)
    {
        EXPECT_EQ(NB_OK, nbi_sched_create(&s, batch, context, chunk, pages));
    }
    ~Sim() { nbi_sched_free(&s); }
    nbi_req *add(Shape shape)
    {
        reqs.emplace_back();
        nbi_req *r = &reqs.back();
        *r = nbi_req{};
        r->id = reqs.size();
        r->n = r->n_prompt = shape.prompt;
        r->limit = shape.limit;
        nbi_sched_push(&s, r);
        left.insert(r);
        return r;
    }
    void remove(nbi_req *r)
    {
        nbi_sched_remove(&s, r);
        left.erase(r);
    }
    /* One step with every promise of the header checked. */
    void step()
    {
        nbi_req *oldest = left.empty() ? nullptr : *std::min_element(left.begin(), left.end(), by_id);
        nbi_sched_plan(&s);
        uint32_t rows = 0, prefill = 0;
        std::set<nbi_req *> planned;
        std::set<int32_t> pages(s.pages.free, s.pages.free + s.pages.n_free);
        ASSERT_EQ(s.pages.n_free, pages.size());
        for (uint32_t i = 0; i < s.n_running; i++) {
            nbi_req *r = s.running[i];
            for (uint32_t k = 0; k < r->table.n; k++)
                ASSERT_TRUE(pages.insert(r->table.page[k]).second) << "page held twice";
            if (i > 0) {
                ASSERT_LT(s.running[i - 1]->id, r->id);
            }
        }
        ASSERT_EQ(s.pages.n_total, pages.size()) << "a page is lost";
        for (nbi_req *r = s.waiting.head; r; r = r->next) {
            ASSERT_EQ(0u, r->table.n);
            ASSERT_EQ(0u, r->n_done);
            if (s.n_running > 0) {
                ASSERT_GT(r->id, s.running[s.n_running - 1]->id) << "someone was overtaken";
            }
            if (r->next) {
                ASSERT_LT(r->id, r->next->id);
                ASSERT_EQ(r, r->next->prev);
            } else
                ASSERT_EQ(r, s.waiting.tail);
        }
        for (uint32_t i = 0; i < s.n_plan; i++) {
            const nbi_part &p = s.plan[i];
            ASSERT_TRUE(planned.insert(p.r).second);
            ASSERT_GE(p.n_rows, 1u);
            ASSERT_LE(p.r->n_done + p.n_rows, p.r->n);
            ASSERT_GE(size_t(p.r->table.n) * NBI_PAGE_TOKENS, p.r->n_done + p.n_rows);
            rows += p.n_rows;
            if (p.r->n_done == 0 || p.n_rows > 1)
                prefill += p.n_rows;
        }
        ASSERT_LE(rows, s.budget);
        ASSERT_LE(prefill, s.chunk);
        ASSERT_LE(s.n_running, s.max_batch);
        if (oldest) {
            ASSERT_TRUE(planned.count(oldest)) << "the oldest request stands still";
        }
        most_rows = std::max(most_rows, rows);
        nbi_sched_done(&s);
        for (nbi_req *r : planned)
            if (r->n_done == r->n && ++r->n == r->limit) {
                remove(r);
                finished++;
            }
    }
    static bool by_id(const nbi_req *a, const nbi_req *b) { return a->id < b->id; }
    nbi_sched s;
    std::deque<nbi_req> reqs;
    std::set<nbi_req *> left;
    size_t finished = 0;
    uint32_t most_rows = 0;
};

TEST(Scheduler, decode_goes_first_and_prefill_fills_the_rest)
{
    Sim sim(4, 1000, 10, 200);
    sim.add({3, 100});
    sim.step();
    sim.add({25, 100});
    sim.step(); /* 1 decode row + 9 of the prompt */
    ASSERT_EQ(2u, sim.s.n_plan);
    EXPECT_EQ(1u, sim.s.plan[0].n_rows);
    EXPECT_EQ(9u, sim.s.plan[1].n_rows);
    sim.step();
    EXPECT_EQ(9u, sim.s.plan[1].n_rows);
    sim.add({50, 100});
    sim.step(); /* 1 + the last 7 + 2 of the next prompt */
    ASSERT_EQ(3u, sim.s.n_plan);
    EXPECT_EQ(7u, sim.s.plan[1].n_rows);
    EXPECT_EQ(2u, sim.s.plan[2].n_rows);
}

TEST(Scheduler, the_youngest_is_preempted_and_comes_back_first)
{
    Sim sim(4, 64, 64, 4); /* 4 pages of 16 */
    nbi_req *a = sim.add({15, 60}), *b = sim.add({15, 60}), *c = sim.add({20, 60});
    sim.step(); /* a and b take one page each, c two */
    EXPECT_EQ(3u, sim.s.n_running);
    while (sim.s.preemptions == 0)
        sim.step();
    EXPECT_EQ(2u, sim.s.n_running);
    EXPECT_EQ(c, sim.s.waiting.head);
    EXPECT_EQ(0u, c->table.n);
    while (!sim.left.empty())
        sim.step();
    EXPECT_EQ(3u, sim.finished);
    EXPECT_EQ(60u, a->n);
    EXPECT_EQ(60u, b->n);
    EXPECT_EQ(60u, c->n);
    EXPECT_EQ(4u, sim.s.pages.n_free);
}

TEST(Scheduler, admission_takes_the_page_of_the_first_output_token_too)
{
    Sim sim(4, 64, 64, 3);
    sim.add({NBI_PAGE_TOKENS, 30});
    sim.add({NBI_PAGE_TOKENS, 30}); /* one page is left, it needs two */
    sim.step();
    EXPECT_EQ(1u, sim.s.n_running);
    EXPECT_EQ(1u, sim.s.pages.n_free);
}

TEST(Scheduler, a_big_request_is_not_overtaken_by_small_ones)
{
    Sim sim(8, 160, 160, 10);
    sim.add({100, 120});
    sim.step();
    sim.add({120, 140}); /* 8 pages: must wait for the first */
    nbi_req *small = sim.add({1, 3});
    sim.step();
    EXPECT_EQ(1u, sim.s.n_running);
    EXPECT_EQ(0u, small->n_done);
    while (!sim.left.empty())
        sim.step();
    EXPECT_EQ(3u, sim.finished);
}

TEST(Scheduler, a_batch_larger_than_the_chunk_still_prefills)
{
    Sim sim(8, 64, 1, 64);
    for (int i = 0; i < 20; i++)
        sim.add({5, 20});
    for (int i = 0; i < 10000 && !sim.left.empty(); i++)
        sim.step();
    EXPECT_EQ(20u, sim.finished);
    EXPECT_GT(sim.most_rows, 1u);
}

TEST(Scheduler, every_mix_of_requests_finishes_and_gives_all_pages_back)
{
    uint64_t preemptions = 0;
    for (unsigned seed = 0; seed < 300; seed++) {
        std::mt19937 rng(seed);
        const uint32_t batch = 1 + rng() % 9, chunk = 1 + rng() % 70, pages = 1 + rng() % 12;
        const uint32_t context = 2 + rng() % 180;
        const size_t room = std::min<size_t>(context, pages * NBI_PAGE_TOKENS);
        Sim sim(batch, context, chunk, pages);
        int to_come = 30;
        for (int step = 0; step < 100000 && (to_come > 0 || !sim.left.empty()); step++) {
            while (to_come > 0 && rng() % 3 == 0) {
                size_t limit = 2 + rng() % (room - 1);
                sim.add({1 + rng() % (limit - 1), limit});
                to_come--;
            }
            if (!sim.left.empty() && rng() % 40 == 0) {
                auto it = sim.left.begin();
                std::advance(it, rng() % sim.left.size());
                sim.remove(*it);
                sim.finished++;
            }
            ASSERT_NO_FATAL_FAILURE(sim.step()) << "seed " << seed;
        }
        ASSERT_EQ(30u, sim.finished) << "seed " << seed;
        ASSERT_EQ(pages, sim.s.pages.n_free);
        ASSERT_EQ(nullptr, sim.s.waiting.head);
        preemptions += sim.s.preemptions;
    }
    EXPECT_GT(preemptions, 300u) << "the mixes are too tame to say anything";
}

} // namespace
