/* Steps: what of a batch arrives on the device, and recorded steps (CUDA graphs).  The work of a step here is one gather. */
#include "cuda_util.h"
#include <memory>

namespace
{

/* A batch with the memory that it points to. */
struct Batch {
    std::vector<int32_t> ids;
    std::vector<std::vector<int32_t>> pages;
    std::vector<nbi_seq> seqs;
    std::vector<uint32_t> logit_rows;

    /* One sequence of n_rows tokens from position pos0; its pages are numbered from `page` on. */
    Batch &seq(uint32_t n_rows, uint32_t pos0, int32_t page)
    {
        uint32_t row0 = (uint32_t)ids.size(), n_pages = (pos0 + n_rows + NBI_PAGE_TOKENS - 1) / NBI_PAGE_TOKENS;
        for (uint32_t i = 0; i < n_rows; i++)
            ids.push_back((int32_t)(1000 + row0 + i));
        std::vector<int32_t> p;
        for (uint32_t i = 0; i < n_pages; i++)
            p.push_back(page + (int32_t)i);
        pages.push_back(p);
        seqs.push_back({row0, n_rows, pos0, nullptr});
        return *this;
    }
    Batch &want(std::vector<uint32_t> rows)
    {
        logit_rows = rows;
        return *this;
    }
    nbi_batch get()
    {
        for (size_t i = 0; i < seqs.size(); i++)
            seqs[i].pages = pages[i].data();
        return {ids.size(), seqs.size(), logit_rows.size(), ids.data(), seqs.data(), logit_rows.data()};
    }
};

/* n sequences with one row each, whose logits are wanted. */
Batch decode(size_t n, uint32_t pos0 = 40)
{
    Batch b;
    for (size_t i = 0; i < n; i++) {
        b.seq(1, pos0 + (uint32_t)i, (int32_t)(10 * i));
        b.logit_rows.push_back((uint32_t)i);
    }
    return b;
}

constexpr float inv_freq[4] = {1, 0.5f, 0.25f, 0.125f};

struct Step {
    nbi_step *s = nullptr;
    nbi_backend *b = &device()->base;
    explicit Step(size_t rows = 8, size_t seqs = 8, size_t logits = 8, size_t seq_pages = 9)
    {
        nbi_step_limits l = {};
        l.rows = rows;
        l.seqs = seqs;
        l.logits = logits;
        l.seq_pages = seq_pages;
        l.head_dim = 8;
        l.n_heads = 2;
        l.n_kv_heads = 1;
        l.inv_freq = inv_freq;
        EXPECT_EQ(NB_OK, nbi_cuda_step_create(b, &s, &l)) << trouble();
    }
    ~Step() { nbi_cuda_step_free(b, s); }
};

template <typename T>
std::vector<T> fetch(const T *from, size_t n)
{
    std::vector<T> v(n);
    EXPECT_EQ(NB_OK, nbi_cuda_download(&device()->base, v.data(), from, n * sizeof(T))) << trouble();
    return v;
}

TEST(CudaStep, a_batch_arrives)
{
    Step step;
    Batch b;
    b.seq(3, 30, 100).seq(1, 0, 200).seq(2, 127, 300).want({2, 3, 5});
    nbi_batch batch = b.get();
    ASSERT_NB_OK(nbi_cuda_step_begin(step.b, step.s, &batch));
    const nb_step_args &a = step.s->args;
    EXPECT_EQ(6u, step.s->rows);
    EXPECT_EQ(3u, step.s->logits);
    EXPECT_EQ(0u, step.s->bucket);
    EXPECT_EQ(b.ids, fetch(a.ids, 6));
    EXPECT_EQ((std::vector<int32_t>{30, 31, 32, 0, 127, 128}), fetch(a.pos, 6));
    EXPECT_EQ((std::vector<int32_t>{0, 0, 0, 3, 4, 4}), fetch(a.row_pages, 6));
    EXPECT_EQ((std::vector<int32_t>{100, 101, 102, 200, 300, 301, 302, 303, 304, 305, 306, 307, 308}),
              fetch(a.pages, 13));
    EXPECT_EQ(b.logit_rows, fetch(a.logit_rows, 3));
    EXPECT_EQ(std::vector<float>(inv_freq, inv_freq + 4), fetch(a.inv_freq, 4));
}

TEST(CudaStep, a_batch_over_the_limits_is_refused)
{
    Step step(4, 2, 2, 2);
    nbi_batch batch = decode(3).get();
    EXPECT_FAILS(NB_EINTERNAL, "a batch of 3 rows, 3 sequences and 3 logits, expected at most 4, 2 and 2",
                 nbi_cuda_step_begin(step.b, step.s, &batch));
    Batch longer;
    longer.seq(1, 32, 0);
    batch = longer.get();
    EXPECT_FAILS(NB_EINTERNAL, "has 3 pages", nbi_cuda_step_begin(step.b, step.s, &batch));
    nbi_step *s;
    nbi_step_limits huge = {};
    huge.rows = huge.logits = 8;
    huge.seqs = huge.seq_pages = (size_t)1 << 40;
    EXPECT_FAILS(NB_ELIMIT, "are too large", nbi_cuda_step_create(step.b, &s, &huge));
}

/* ---- recordings ---- */

constexpr size_t K = 16;

/* A step whose work is: row i of y = row logit_rows[i] of x.  `fail`: as if an operation had failed. */
struct Work {
    Step step;
    std::vector<float> host;
    Buffer<float> x, y;
    explicit Work(size_t rows = 8, size_t logits = 8)
        : step(rows, rows, logits), host(noise(rows * K, 3)), x(host), y(std::vector<float>(logits * K))
    {
    }
    nb_status run(const nbi_batch &batch, bool *replayed, bool fail = false)
    {
        size_t rows, logits;
        nb_status st = nbi_cuda_step_begin(step.b, step.s, &batch);
        if (st == NB_OK)
            st = nbi_cuda_step_enter(step.b, step.s, replayed, &rows, &logits);
        if (st != NB_OK || *replayed)
            return st;
        EXPECT_GE(rows, batch.rows);
        EXPECT_GE(logits, batch.n_logits);
        st = nbi_cuda_gather(step.b, step.s, x.ptr(), K, y.ptr());
        nb_status end = nbi_cuda_step_end(step.b, step.s, st == NB_OK && !fail);
        return st != NB_OK ? st : end;
    }
    /* Do the first rows of y hold what the batch asked for? */
    void check(const nbi_batch &batch)
    {
        std::vector<float> got = y.get();
        for (size_t i = 0; i < batch.n_logits; i++)
            EXPECT_TRUE(same_bits(&host[batch.logit_rows[i] * K], &got[i * K], K)) << "row " << i;
    }
    void change(uint64_t seed)
    {
        host = noise(host.size(), seed);
        x.set(host);
    }
};

TEST(CudaGraph, the_third_step_of_a_kind_is_a_replay_and_serves_every_batch_of_it)
{
    Work w;
    const size_t n[] = {3, 4, 3, 4, 2, 1, 7, 2, 2, 5, 8};
    const bool expected[] = {false, false, true, true, false, false, false, false, true, false, true};
    for (size_t i = 0; i < sizeof n / sizeof *n; i++) {
        Batch b = decode(n[i], (uint32_t)(10 * i));
        nbi_batch batch = b.get();
        bool replayed = false;
        w.change(i);
        ASSERT_EQ(NB_OK, w.run(batch, &replayed)) << trouble();
        EXPECT_EQ(expected[i], replayed) << "step " << i;
        w.check(batch);
    }
}

TEST(CudaGraph, rows_beyond_the_batch_have_no_position)
{
    Work w(7, 6); /* the largest recording has 6 rows */
    const size_t rows[] = {1, 2, 3, 5, 6}, bucket[] = {1, 2, 4, 6, 6};
    for (size_t i = 0; i < 5; i++) {
        Batch b = decode(rows[i]);
        nbi_batch batch = b.get();
        bool replayed;
        ASSERT_EQ(NB_OK, w.run(batch, &replayed)) << trouble();
        EXPECT_EQ(bucket[i], w.step.s->rows);
        EXPECT_EQ(bucket[i], w.step.s->logits);
        EXPECT_TRUE(w.step.s->recorded);
        std::vector<int32_t> pos = fetch(w.step.s->args.pos, bucket[i]);
        for (size_t r = 0; r < bucket[i]; r++)
            EXPECT_EQ(r < rows[i] ? 40 + (int32_t)r : -1, pos[r]);
    }
}

TEST(CudaGraph, other_batches_are_not_recorded)
{
    Work w;
    Batch prefill, partly, order;
    prefill.seq(3, 0, 0).want({2});
    partly.seq(1, 9, 0).seq(1, 9, 4).want({1});
    order.seq(2, 0, 0).want({0, 1});
    for (Batch *b : {&prefill, &partly, &order})
        for (int i = 0; i < 3; i++) {
            nbi_batch batch = b->get();
            bool replayed = false;
            ASSERT_EQ(NB_OK, w.run(batch, &replayed)) << trouble();
            EXPECT_FALSE(replayed);
            EXPECT_FALSE(w.step.s->recorded);
            EXPECT_EQ(batch.rows, w.step.s->rows);
            w.check(batch);
        }
}

TEST(CudaGraph, recordings_can_be_turned_off)
{
    setenv("NB_CUDA_GRAPHS", "0", 1);
    Work w;
    unsetenv("NB_CUDA_GRAPHS");
    for (int i = 0; i < 4; i++) {
        Batch b = decode(3);
        nbi_batch batch = b.get();
        bool replayed = false;
        ASSERT_EQ(NB_OK, w.run(batch, &replayed)) << trouble();
        EXPECT_FALSE(replayed);
        EXPECT_EQ(3u, w.step.s->rows);
        w.check(batch);
    }
}

TEST(CudaGraph, a_failed_step_is_not_kept)
{
    Work w;
    bool replayed = false;
    Batch b = decode(2);
    nbi_batch batch = b.get();
    ASSERT_EQ(NB_OK, w.run(batch, &replayed)) << trouble();
    ASSERT_EQ(NB_OK, w.run(batch, &replayed, true)) << trouble(); /* recorded and dropped */
    EXPECT_FALSE(device()->capturing);
    w.change(5);
    ASSERT_EQ(NB_OK, w.run(batch, &replayed)) << trouble(); /* recorded again */
    EXPECT_FALSE(replayed);
    w.check(batch);
    w.change(6);
    ASSERT_EQ(NB_OK, w.run(batch, &replayed)) << trouble();
    EXPECT_TRUE(replayed);
    w.check(batch);
}

TEST(CudaGraph, nothing_is_allocated_or_loaded_while_a_step_is_recorded)
{
    Work w;
    bool replayed = false;
    size_t rows, logits;
    Batch b = decode(2);
    nbi_batch batch = b.get();
    ASSERT_EQ(NB_OK, w.run(batch, &replayed)) << trouble();
    ASSERT_NB_OK(nbi_cuda_step_begin(w.step.b, w.step.s, &batch));
    ASSERT_NB_OK(nbi_cuda_step_enter(w.step.b, w.step.s, &replayed, &rows, &logits));
    void *p;
    EXPECT_FAILS(NB_EINTERNAL, "a test is allocated while a step is recorded",
                 nbi_cuda_alloc(w.step.b, &p, 16, "a test"));
    EXPECT_FAILS(NB_EINTERNAL, "kernel nb_sample is loaded while a step is recorded",
                 nbi_cuda_prepare(device(), NB_K_nb_sample));
    ASSERT_NB_OK(nbi_cuda_step_end(w.step.b, w.step.s, false));
    EXPECT_EQ(NB_OK, nbi_cuda_alloc(w.step.b, &p, 16, "a test")) << trouble();
    nbi_cuda_release(w.step.b, p);
}

/* The host fills the block of the next step while that of the last one may still travel. */
TEST(CudaStep, steps_do_not_wait_for_one_another)
{
    Work w;
    std::vector<std::unique_ptr<Buffer<float>>> y;
    std::vector<Batch> b(6);
    std::vector<nbi_batch> batch;
    for (size_t i = 0; i < b.size(); i++) {
        b[i].seq(8, 0, 0).want({(uint32_t)i, 7});
        batch.push_back(b[i].get());
        y.push_back(std::make_unique<Buffer<float>>(2 * K));
        ASSERT_NB_OK(nbi_cuda_step_begin(w.step.b, w.step.s, &batch[i]));
        ASSERT_NB_OK(nbi_cuda_gather(w.step.b, w.step.s, w.x.ptr(), K, y[i]->ptr()));
    }
    for (size_t i = 0; i < b.size(); i++) {
        std::vector<float> got = y[i]->get();
        EXPECT_TRUE(same_bits(&w.host[i * K], got.data(), K));
        EXPECT_TRUE(same_bits(&w.host[7 * K], &got[K], K));
    }
}

} // namespace
