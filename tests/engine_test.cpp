/* The engine's promises, over the made-up model of fake_model.h: its logits tell when anything about a sequence is wrong. */
#include "fake_model.h"

namespace
{

/* ---- the promise: the same bytes whatever else happens ---- */

TEST(Engine, a_request_gives_the_same_alone_in_a_batch_and_through_preemptions)
{
    std::mt19937 rng(1);
    std::vector<Request> requests;
    std::vector<Result> want;
    for (int i = 0; i < 64; i++) {
        Request r;
        r.prompt = random_prompt(rng, 1 + rng() % 60);
        r.max_tokens = 40;
        r.ignore_eos = i % 3 == 0;
        r.sampling.temperature = i % 2 ? 1.1f : 0;
        r.sampling.seed = rng();
        requests.push_back(r);
        want.push_back(alone(r, 128));
    }
    struct Config {
        uint32_t batch, chunk, pages;
        bool preempts;
    };
    for (Config c :
         {Config{1, 256, 8, false}, Config{64, 256, 512, false}, Config{64, 64, 60, true}, Config{64, 1, 8, true},
          Config{64, 7, 8, true}, Config{5, 3, 16, true}, Config{33, 1000, 100, true}}) {
        Model m;
        Engine e(m, options(c.batch, 128, c.chunk, c.pages));
        std::vector<uint64_t> ids(requests.size());
        for (size_t i = 0; i < requests.size(); i++)
            ASSERT_NB_OK(e.submit(requests[i], &ids[i]));
        e.run();
        EXPECT_EQ("", seen.wrong);
        for (size_t i = 0; i < requests.size(); i++)
            ASSERT_EQ(want[i], e.results[ids[i]])
                << "batch " << c.batch << " chunk " << c.chunk << " pages " << c.pages;
        EXPECT_EQ(c.preempts, e.stats().preemptions > 0) << "batch " << c.batch << " pages " << c.pages;
        EXPECT_EQ(0u, e.stats().kv_pages_used);
        if (c.batch == 64 && c.pages == 512) {
            EXPECT_GE(seen.most_seqs, 56u); /* a few end before the last one is read */
        }
    }
}

TEST(Engine, any_mix_of_requests_arrivals_and_cancels_gives_what_each_gives_alone)
{
    uint64_t preemptions = 0;
    size_t on_device = 0, on_host = 0;
    std::map<int, int> finishes;
    for (unsigned seed = 0; seed < 150; seed++) {
        std::mt19937 rng(seed);
        draws_on_device = seed % 2;
        const uint32_t pages = 1 + rng() % 14, context = 2 + rng() % 200;
        const size_t room = std::min<size_t>(context, pages * NBI_PAGE_TOKENS);
        Model m;
        nb_engine_options o = options(1 + rng() % 10, context, 1 + rng() % 80, pages);
        o.kv_dtype = rng() % 2 ? "f32" : "f16";
        Engine e(m, o);
        std::map<uint64_t, Result> want;
        std::set<uint64_t> cancelled;
        std::vector<uint64_t> ids;
        int to_come = 24;
        for (int step = 0; step < 100000 && (to_come > 0 || !e.idle()); step++) {
            while (to_come > 0 && rng() % 3 == 0) {
                Request r = random_request(rng, room);
                uint64_t id;
                ASSERT_NB_OK(e.submit(r, &id));
                want[id] = alone(r, room);
                ids.push_back(id);
                to_come--;
            }
            if (!ids.empty() && rng() % 30 == 0) {
                uint64_t id = ids[rng() % ids.size()];
                if (e.results[id].finish < 0)
                    cancelled.insert(id);
                nb_engine_cancel(e.e, id);
            }
            e.step();
            ASSERT_EQ("", seen.wrong) << "seed " << seed;
        }
        ASSERT_TRUE(e.idle());
        ASSERT_EQ(24u, ids.size());
        EXPECT_EQ(0u, e.stats().kv_pages_used);
        for (uint64_t id : ids) {
            const Result &got = e.results[id], &w = want[id];
            finishes[got.finish]++;
            if (cancelled.count(id)) { /* a part of it, as far as it came */
                ASSERT_EQ(NB_FINISH_CANCELLED, got.finish);
                ASSERT_LE(got.tokens.size(), w.tokens.size());
                ASSERT_TRUE(std::equal(got.tokens.begin(), got.tokens.end(), w.tokens.begin()));
                std::string text = text_of(got.tokens, true);
                cut(text, {});
                ASSERT_EQ(text, got.text) << "seed " << seed;
            } else if (w.finish < 100)
                ASSERT_EQ(w, got) << "seed " << seed << " request " << id;
            else { /* what was held back for a stop string stays back */
                ASSERT_EQ(w.finish, got.finish);
                ASSERT_EQ(w.tokens, got.tokens);
                ASSERT_EQ(0u, w.text.compare(0, got.text.size(), got.text));
            }
        }
        preemptions += e.stats().preemptions;
        if (draws_on_device) {
            on_device += seen.drawn;
            on_host += e.stats().output_tokens - std::min<uint64_t>(seen.drawn, e.stats().output_tokens);
        }
    }
    draws_on_device = false;
    EXPECT_GT(on_device, 1000u);
    EXPECT_GT(on_host, 1000u) << "of the same requests, where one with penalties travels along";
    EXPECT_GT(preemptions, 200u);
    EXPECT_GT(finishes[NB_FINISH_STOP], 200);
    EXPECT_GT(finishes[NB_FINISH_LENGTH], 200);
    EXPECT_GT(finishes[NB_FINISH_CANCELLED], 50);
    EXPECT_GT(finishes[100 + NB_EINTERNAL], 20);
}

/* ---- text, EOS, log-probabilities ---- */

/* A prompt whose greedy continuation fulfils a condition. */
template <class Condition>
Request find_request(Condition ok, uint32_t max_tokens = 40)
{
    for (unsigned seed = 0; seed < 20000; seed++) {
        std::mt19937 rng(seed);
        Request r;
        r.prompt = random_prompt(rng, 3);
        r.max_tokens = max_tokens;
        if (ok(alone(r, 512)))
            return r;
    }
    ADD_FAILURE() << "no such prompt";
    return Request();
}

TEST(Engine, eos_ends_the_text_and_is_not_counted)
{
    Model m;
    Engine e(m, options(4, 512, 64, 64));
    Request r = find_request([](const Result &w) { return w.finish == NB_FINISH_STOP && w.tokens.size() == 9; });
    uint64_t id, on;
    ASSERT_NB_OK(e.submit(r, &id));
    r.ignore_eos = true;
    ASSERT_NB_OK(e.submit(r, &on));
    e.run();
    EXPECT_EQ(9u, e.results[id].tokens.size());
    EXPECT_EQ(NB_FINISH_STOP, e.results[id].finish);
    EXPECT_EQ(40u, e.results[on].tokens.size());
    EXPECT_EQ(EOS, e.results[on].tokens[9]);
    EXPECT_EQ(NB_FINISH_LENGTH, e.results[on].finish);
    EXPECT_EQ(49u, e.stats().output_tokens);
}

TEST(Engine, eos_of_the_config_counts_without_a_tokenizer)
{
    Model m(false);
    m.m.cfg.eos[0] = 7;
    m.m.cfg.eos[1] = EOS;
    Engine e(m, options(4, 512, 64, 64));
    Request r = find_request([](const Result &w) { return w.finish == NB_FINISH_STOP && w.tokens.size() == 9; });
    Result want = alone(r, 512);
    bool has7 = std::count(want.tokens.begin(), want.tokens.end(), 7);
    uint64_t id;
    ASSERT_NB_OK(e.submit(r, &id));
    e.run();
    EXPECT_EQ(has7 ? size_t(std::find(want.tokens.begin(), want.tokens.end(), 7) - want.tokens.begin()) : 9u,
              e.results[id].tokens.size());
    EXPECT_EQ("", e.results[id].text);
    r.stop = {"x"};
    EXPECT_FAILS(NB_EINVAL, "stop strings need a tokenizer", e.submit(r));
}

TEST(Engine, a_stop_string_ends_the_text_before_it)
{
    Model m;
    Engine e(m, options(4, 512, 64, 64));
    Request r = find_request([](const Result &w) { return w.finish == NB_FINISH_LENGTH && w.text.size() > 20; });
    Result plain = alone(r, 512);
    r.stop = {"no such text", plain.text.substr(6, 4)};
    size_t at = plain.text.find(r.stop[1]);
    uint64_t id;
    ASSERT_NB_OK(e.submit(r, &id));
    e.run();
    EXPECT_EQ(plain.text.substr(0, at), e.results[id].text);
    EXPECT_EQ(NB_FINISH_STOP, e.results[id].finish);
    EXPECT_LT(e.results[id].tokens.size(), 40u);
}

TEST(Engine, text_that_may_become_a_stop_string_comes_with_the_last_event)
{
    Model m;
    Engine e(m, options(4, 512, 64, 64));
    Request r = find_request(
        [](const Result &w) { return w.finish == NB_FINISH_LENGTH && !strpbrk(w.text.c_str(), "\xc3\xef"); }, 12);
    Result plain = alone(r, 512);
    r.stop = {plain.text.substr(plain.text.size() - 3) + "zzz"};
    uint64_t id;
    ASSERT_NB_OK(e.submit(r, &id));
    std::string with_tokens, with_end;
    while (!e.idle()) {
        const nb_event *ev;
        size_t n;
        ASSERT_NB_OK(nb_engine_step(e.e, &ev, &n));
        for (size_t i = 0; i < n; i++)
            (ev[i].type == NB_EVENT_TOKEN ? with_tokens : with_end) += ev[i].text;
    }
    EXPECT_EQ(plain.text.substr(0, plain.text.size() - 3), with_tokens);
    EXPECT_EQ(plain.text.substr(plain.text.size() - 3), with_end);
}

static const std::string REPLACEMENT = "\xef\xbf\xbd"; /* what half a character becomes */

TEST(Engine, half_a_character_at_the_end_may_complete_a_stop_string)
{
    Model m;
    Engine e(m, options(4, 512, 64, 64));
    Request r = find_request(
        [](const Result &w) {
            return w.finish == NB_FINISH_LENGTH && w.tokens.back() == HALF1 &&
                   w.text.find(REPLACEMENT) == w.text.size() - 3;
        },
        10);
    Result plain = alone(r, 512);
    r.stop = {REPLACEMENT};
    uint64_t id;
    ASSERT_NB_OK(e.submit(r, &id));
    e.run();
    EXPECT_EQ(plain.text.substr(0, plain.text.size() - 3), e.results[id].text);
    EXPECT_EQ(NB_FINISH_STOP, e.results[id].finish);
    EXPECT_EQ(10u, e.results[id].tokens.size());
}

TEST(Engine, nothing_follows_a_stop_string)
{
    Model m;
    Engine e(m, options(4, 512, 64, 64));
    /* Two first halves: the second makes the first final, and is itself half a character when the text stops. */
    const int32_t twice[] = {HALF1, HALF1};
    auto at = [&](const Result &w) { return std::search(w.tokens.begin(), w.tokens.end(), twice, twice + 2); };
    Request r = find_request([&](const Result &w) {
        return at(w) != w.tokens.end() &&
               text_of({w.tokens.begin(), at(w) + 1}, false).find_first_of("\xc3\xef") == std::string::npos &&
               at(w) > w.tokens.begin() + 2;
    });
    Result plain = alone(r, 512);
    const std::vector<int32_t> tokens(plain.tokens.cbegin(), at(plain) + 1);
    std::string before = text_of(tokens, false);
    r.stop = {before.back() + REPLACEMENT};
    before.pop_back();
    uint64_t id;
    ASSERT_NB_OK(e.submit(r, &id));
    e.run();
    EXPECT_EQ(before, e.results[id].text);
    EXPECT_EQ(NB_FINISH_STOP, e.results[id].finish);
}

TEST(Engine, token_and_last_event_come_in_the_same_step_in_order)
{
    Model m;
    Engine e(m, options(2, 512, 64, 64));
    Request r;
    r.prompt = {5};
    r.max_tokens = 1;
    r.ignore_eos = true;
    r.logprobs = 3;
    int user = 0;
    uint64_t id;
    ASSERT_NB_OK(e.submit(r, &id, &user));
    const nb_event *ev;
    size_t n;
    ASSERT_NB_OK(nb_engine_step(e.e, &ev, &n));
    ASSERT_EQ(2u, n);
    EXPECT_EQ(NB_EVENT_TOKEN, ev[0].type);
    EXPECT_EQ(&user, ev[0].user);
    EXPECT_EQ(id, ev[0].id);
    ASSERT_EQ(3u, ev[0].n_top);
    EXPECT_EQ(ev[0].token, ev[0].top[0].token);
    EXPECT_EQ(ev[0].logprob, ev[0].top[0].logprob);
    EXPECT_EQ(NB_EVENT_FINISHED, ev[1].type);
    EXPECT_EQ(NB_FINISH_LENGTH, ev[1].finish);
    EXPECT_EQ(1u, ev[1].n_output);
    ASSERT_NB_OK(nb_engine_step(e.e, &ev, &n));
    EXPECT_EQ(0u, n);
}

/* ---- failures ---- */

class NanRow : public ::testing::TestWithParam<bool>
{
  protected:
    void SetUp() override { draws_on_device = GetParam(); }
    void TearDown() override { draws_on_device = false; }
};
INSTANTIATE_TEST_SUITE_P(Engine, NanRow, ::testing::Bool(), [](const auto &i) { return i.param ? "device" : "host"; });

TEST_P(NanRow, fails_its_request_only)
{
    Model m;
    Engine e(m, options(8, 128, 16, 64));
    std::mt19937 rng(2);
    uint64_t bad, good;
    Request r;
    r.max_tokens = 50;
    r.ignore_eos = true;
    r.prompt = {1, 2, 3};
    Result want = alone(r, 128);
    ASSERT_NB_OK(e.submit(r, &good));
    r.prompt = {4, POISON, 3};
    ASSERT_NB_OK(e.submit(r, &bad));
    e.run();
    EXPECT_EQ(want, e.results[good]);
    EXPECT_EQ(100 + NB_EINTERNAL, e.results[bad].finish);
    EXPECT_EQ(NAN_LENGTH - 3, e.results[bad].tokens.size());
    EXPECT_NE(std::string::npos, e.errors[bad].find("NaN")) << e.errors[bad];
    EXPECT_EQ(0u, e.stats().kv_pages_used);
}

TEST(Engine, a_failing_device_is_the_status_of_the_step)
{
    Model m;
    Engine e(m, options(8, 128, 5, 64));
    Request r;
    r.prompt = {1, 2, 3, 4, 5, 6, 7, 8};
    r.ignore_eos = true;
    uint64_t id, one;
    ASSERT_NB_OK(e.submit(r, &id));
    Request s = r;
    s.prompt = {9};
    ASSERT_NB_OK(e.submit(s, &one));
    for (int i = 0; i < 12; i++) {
        seen.fail_in = 1;
        e.step(NB_EIO);
        EXPECT_STREQ("the device is gone", nb_last_error());
        e.step();
    }
    e.run();
    EXPECT_EQ(alone(r, 128), e.results[id]) << "nothing was half done";
    EXPECT_EQ(alone(s, 128), e.results[one]);
}

TEST(Submit, what_is_wrong_or_never_fits_is_refused_with_the_numbers)
{
    Model m;
    Engine e(m, options(2, 100, 16, 64)), tight(m, options(2, 100, 16, 3));
    Request r;
    EXPECT_FAILS(NB_EINVAL, "the prompt is empty", e.submit(r));
    r.prompt = {1, 2, 96};
    EXPECT_FAILS(NB_EINVAL, "prompt token 2 is 96, expected 0 to 95", e.submit(r));
    r.prompt = {-1};
    EXPECT_FAILS(NB_EINVAL, "prompt token 0 is -1", e.submit(r));
    r.prompt.assign(100, 1);
    EXPECT_FAILS(NB_ELIMIT, "the prompt has 100 tokens, but the context holds 100", e.submit(r));
    r.prompt.assign(90, 1);
    r.max_tokens = 11;
    EXPECT_FAILS(NB_ELIMIT, "together 101, but the context holds 100", e.submit(r));
    r.max_tokens = UINT32_MAX;
    EXPECT_FAILS(NB_ELIMIT, "4294967385", e.submit(r));
    r.max_tokens = 10;
    EXPECT_NB_OK(e.submit(r));
    EXPECT_FAILS(NB_ELIMIT, "the prompt has 90 tokens, but the KV cache holds 48", tight.submit(r));
    r.prompt.assign(40, 1);
    EXPECT_FAILS(NB_ELIMIT, "together 50, but the KV cache holds 48", tight.submit(r));
    r.max_tokens = 0;
    r.ignore_eos = true;
    uint64_t id;
    EXPECT_NB_OK(tight.submit(r, &id));
    tight.run();
    EXPECT_EQ(8u, tight.results[id].tokens.size());
    r.logprobs = 21;
    EXPECT_FAILS(NB_EINVAL, "logprobs is 21", e.submit(r));
    r.logprobs = -2;
    EXPECT_FAILS(NB_EINVAL, "logprobs is -2", e.submit(r));
    r.logprobs = -1;
    r.sampling.top_p = 0;
    EXPECT_FAILS(NB_EINVAL, "top_p", e.submit(r));
    r.sampling.top_p = 1;
    r.stop = {""};
    EXPECT_FAILS(NB_EINVAL, "stop string 1 is empty", e.submit(r));
    r.stop.assign(17, "x");
    EXPECT_FAILS(NB_EINVAL, "at most 16", e.submit(r));
    nb_request raw = {};
    EXPECT_FAILS(NB_EINVAL, "nb_request_init", nb_engine_submit(e.e, &raw, nullptr, nullptr));
    nb_request_init(&raw);
    raw.n_prompt = 5;
    EXPECT_FAILS(NB_EINVAL, "the prompt is empty", nb_engine_submit(e.e, &raw, nullptr, nullptr));
    EXPECT_FAILS(NB_EINVAL, "NULL", nb_engine_submit(e.e, nullptr, nullptr, nullptr));
    e.run();
    EXPECT_EQ(1u, e.results.size());
}

TEST(Submit, the_queue_is_bounded)
{
    Model m;
    nb_engine_options o = options(2, 100, 16, 64);
    o.max_queue = 3;
    Engine e(m, o);
    Request r;
    r.prompt = {1};
    r.ignore_eos = true;
    for (int i = 0; i < 3; i++)
        EXPECT_NB_OK(e.submit(r));
    EXPECT_FAILS(NB_ELIMIT, "3 requests are waiting, and max_queue is 3", e.submit(r));
    e.step(); /* two of them run now */
    EXPECT_EQ(2u, e.stats().running);
    EXPECT_EQ(1u, e.stats().waiting);
    EXPECT_NB_OK(e.submit(r));
    EXPECT_NB_OK(e.submit(r));
    EXPECT_FAILS(NB_ELIMIT, "max_queue", e.submit(r));
    e.run();
    EXPECT_EQ(5u, e.results.size());
}

/* ---- cancelling ---- */

TEST(Cancel, waiting_running_and_unknown_requests)
{
    Model m;
    Engine e(m, options(1, 100, 16, 64));
    Request r;
    r.prompt = {1, 2};
    r.ignore_eos = true;
    uint64_t running, waiting, fresh, last;
    ASSERT_NB_OK(e.submit(r, &running));
    ASSERT_NB_OK(e.submit(r, &waiting));
    e.step();
    e.step();
    nb_engine_cancel(e.e, running);
    nb_engine_cancel(e.e, running);
    nb_engine_cancel(e.e, waiting);
    nb_engine_cancel(e.e, 999);
    nb_engine_cancel(e.e, 0);
    ASSERT_NB_OK(e.submit(r, &fresh));
    nb_engine_cancel(e.e, fresh);
    ASSERT_NB_OK(e.submit(r, &last));
    EXPECT_EQ(0u, e.results[waiting].tokens.size());
    e.step();
    for (uint64_t id : {running, waiting, fresh})
        EXPECT_EQ(NB_FINISH_CANCELLED, e.results[id].finish);
    EXPECT_EQ(2u, e.results[running].tokens.size());
    nb_engine_cancel(e.e, running); /* long gone */
    nb_engine_cancel(nullptr, 1);
    e.run();
    EXPECT_EQ(alone(r, 100), e.results[last]);
}

TEST(Cancel, thousands_at_once_all_get_their_event)
{
    Model m;
    Engine e(m, options(4, 100, 16, 64));
    Request r;
    r.prompt = {1, 2};
    std::vector<uint64_t> ids(3000);
    for (auto &id : ids)
        ASSERT_NB_OK(e.submit(r, &id));
    e.step();
    for (uint64_t id : ids)
        nb_engine_cancel(e.e, id);
    for (int i = 0; i < 100 && !e.idle(); i++)
        e.step();
    for (uint64_t id : ids)
        ASSERT_EQ(NB_FINISH_CANCELLED, e.results[id].finish);
    EXPECT_TRUE(e.idle());
}

TEST(Engine, freeing_it_with_requests_in_every_state_frees_all)
{
    Model m;
    Request r;
    r.prompt.assign(20, 3);
    r.stop = {"never"};
    for (int steps = 0; steps < 20; steps++) {
        Engine e(m, options(3, 100, 16, 5));
        for (int i = 0; i < 6; i++)
            ASSERT_NB_OK(e.submit(r));
        for (int i = 0; i < steps; i++)
            e.step();
        ASSERT_NB_OK(e.submit(r));
        nb_engine_cancel(e.e, 2);
    }
    nb_engine_free(nullptr);
}

/* ---- sizes ---- */

TEST(Create, the_cache_has_room_for_the_batch_within_the_limit)
{
    Model m; /* 4 MiB free, 4096 bytes a page: a quarter is 256 pages */
    struct Case {
        uint32_t batch, context;
        uint64_t bytes;
        const char *dtype;
        uint32_t want;
    };
    for (Case c : {Case{2, 100, 0, nullptr, 14}, Case{32, 512, 0, nullptr, 256}, Case{32, 512, 0, "f16", 512},
                   Case{0, 0, 0, "f32", 256}, Case{4, 512, 64 * 4096, "f32", 64}, Case{1, 512, 1 << 30, "f32", 32}}) {
        nb_engine_options o = options(c.batch, c.context, 0, 0);
        o.kv_bytes = c.bytes;
        o.kv_dtype = c.dtype;
        Engine e(m, o);
        EXPECT_EQ(c.want, e.stats().kv_pages_total);
        EXPECT_EQ(uint32_t(NBI_PAGE_TOKENS), e.stats().page_tokens);
    }
    Engine defaults(m, options(0, 0, 0, 0));
    nb_engine *e = nullptr;
    ASSERT_NB_OK(nb_engine_create(&e, &m.m, nullptr));
    nb_engine_free(e);
}

/* Left open, the context is what fits; the limits of submit follow. */
TEST(Create, an_open_context_shrinks_to_the_cache)
{
    Model m;
    nb_engine_options o = options(4, 0, 16, 0);
    o.kv_bytes = 5 * 4096; /* 80 tokens */
    Engine e(m, o);
    EXPECT_EQ(5u, e.stats().kv_pages_total);
    std::vector<int32_t> prompt(81, 1);
    nb_request r;
    nb_request_init(&r);
    r.prompt = prompt.data();
    r.n_prompt = prompt.size();
    r.max_tokens = 1;
    uint64_t id;
    EXPECT_FAILS(NB_ELIMIT, "80", nb_engine_submit(e.e, &r, nullptr, &id));
    r.n_prompt = 79;
    EXPECT_NB_OK(nb_engine_submit(e.e, &r, nullptr, &id));
}

/* A program built when the struct ended earlier: what it does not have has its default. */
TEST(Abi, a_shorter_request_keeps_working_and_a_longer_one_is_refused)
{
    Model m;
    Engine e(m, options(4, 0, 16, 0));
    const int32_t prompt[] = {1, 2, 3};
    nb_request r;
    nb_request_init(&r);
    r.prompt = prompt;
    r.n_prompt = 3;
    r.max_tokens = 1;
    r.logprobs = 99; /* beyond the end of the shorter struct: must not be read */
    r.struct_size = offsetof(nb_request, logprobs);
    EXPECT_NB_OK(nb_engine_submit(e.e, &r, nullptr, nullptr));
    r.struct_size = sizeof r;
    EXPECT_FAILS(NB_EINVAL, "logprobs is 99", nb_engine_submit(e.e, &r, nullptr, nullptr));
    r.logprobs = -1;
    r.struct_size = sizeof r + 8;
    EXPECT_FAILS(NB_EINVAL, "struct_size", nb_engine_submit(e.e, &r, nullptr, nullptr));
    r.struct_size = 0;
    EXPECT_FAILS(NB_EINVAL, "nb_request_init", nb_engine_submit(e.e, &r, nullptr, nullptr));
}

TEST(Create, options_that_cannot_work_are_refused_with_the_numbers)
{
    Model m;
    nb_engine *e = nullptr;
    auto create = [&](const nb_engine_options &o) { return nb_engine_create(&e, &m.m, &o); };
    nb_engine_options o = options(4, 512, 16, 0);
    o.kv_bytes = 31 * 4096;
    EXPECT_FAILS(NB_ELIMIT, "a context of 512 tokens needs 131072 bytes of KV cache, but kv_bytes allows 126976",
                 create(o));
    o.max_context = 0;
    o.kv_bytes = 4095; /* not a page */
    EXPECT_FAILS(NB_ELIMIT, "needs 131072 bytes", create(o));
    o = options(4, 512, 16, 0);
    o.kv_bytes = 31 * 4096;
    o.kv_pages = 32;
    EXPECT_FAILS(NB_ELIMIT, "kv_pages 32 of 4096 bytes each is more than kv_bytes 126976", create(o));
    EXPECT_FAILS(NB_ELIMIT, "max_context is 513, expected at most 512", create(options(4, 513, 16, 0)));
    EXPECT_FAILS(NB_ELIMIT, "max_batch is 4097", create(options(4097, 512, 16, 0)));
    EXPECT_FAILS(NB_ELIMIT, "prefill_chunk is 65537", create(options(4, 512, 65537, 0)));
    EXPECT_FAILS(NB_ELIMIT, "kv_pages is 2147483648", create(options(4, 512, 16, 1u << 31)));
    o = options(4, 512, 16, 32);
    o.kv_dtype = "int7";
    EXPECT_FAILS(NB_EINVAL, "kv_dtype: \"int7\" is not a type of the KV cache: expected f32, f16, int8 or int4",
                 create(o));
    o = nb_engine_options{};
    EXPECT_FAILS(NB_EINVAL, "nb_engine_options_init", create(o));
    EXPECT_FAILS(NB_EINVAL, "NULL", nb_engine_create(&e, nullptr, nullptr));
    EXPECT_EQ(nullptr, e);
}

TEST(Stats, count_what_was_computed)
{
    Model m;
    Engine e(m, options(4, 512, 7, 64));
    Request r;
    r.prompt.assign(20, 5);
    r.max_tokens = 10;
    r.ignore_eos = true;
    for (int i = 0; i < 3; i++)
        ASSERT_NB_OK(e.submit(r));
    e.run();
    EXPECT_EQ(60u, e.stats().prompt_tokens);
    EXPECT_EQ(30u, e.stats().output_tokens);
    EXPECT_EQ(60u + 3 * 9, seen.rows) << "the last token of a request is not computed";

    Engine tight(m, options(4, 512, 7, 4)); /* recomputed tokens count again */
    seen.rows = 0;
    r.prompt.assign(14, 5);
    r.max_tokens = 30;
    for (int i = 0; i < 3; i++)
        ASSERT_NB_OK(tight.submit(r));
    tight.run();
    ASSERT_GT(tight.stats().preemptions, 0u);
    EXPECT_EQ(90u, tight.stats().output_tokens);
    EXPECT_EQ(seen.rows, tight.stats().prompt_tokens + 3 * 29);
}

/* ---- speed and threads ---- */

TEST(Engine, a_step_allocates_nothing)
{
    if (!COUNTS_ALLOCATIONS)
        GTEST_SKIP() << "a sanitizer brings its own allocator";
    Model m;
    Engine e(m, options(8, 256, 32, 24));
    std::mt19937 rng(4);
    for (int i = 0; i < 100; i++) {
        Request r = random_request(rng, 256);
        ASSERT_NB_OK(e.submit(r));
    }
    const size_t before = allocations;
    EXPECT_GT(before, 40u) << "the counter works";
    const nb_event *ev;
    size_t n, events = 0;
    while (!e.idle() && allocations == before) {
        ASSERT_NB_OK(nb_engine_step(e.e, &ev, &n));
        events += n;
    }
    EXPECT_EQ(before, allocations) << "after " << events << " events";
    EXPECT_GT(events, 1000u);
    EXPECT_GT(e.stats().preemptions, 0u);
}

TEST(Threads, submit_and_cancel_come_from_any_thread)
{
    Model m;
    nb_engine_options o = options(6, 128, 24, 12);
    o.max_queue = 40;
    nb_engine *e = nullptr;
    ASSERT_NB_OK(nb_engine_create(&e, &m.m, &o));
    const int n_threads = 4, each = 60;
    std::atomic<int> accepted{0}, refused{0};
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (int t = 0; t < n_threads; t++)
        threads.emplace_back([&, t] {
            std::mt19937 rng{unsigned(t)};
            std::vector<uint64_t> mine;
            for (int i = 0; i < each;) {
                Request r = random_request(rng, 128);
                nb_request q;
                nb_request_init(&q);
                q.prompt = r.prompt.data();
                q.n_prompt = r.prompt.size();
                q.max_tokens = r.max_tokens;
                q.sampling = r.sampling;
                uint64_t id;
                nb_status st = nb_engine_submit(e, &q, nullptr, &id);
                if (st == NB_OK) {
                    mine.push_back(id);
                    accepted++;
                    i++;
                } else {
                    EXPECT_EQ(NB_ELIMIT, st);
                    refused++;
                    std::this_thread::yield();
                }
                if (!mine.empty() && rng() % 4 == 0)
                    nb_engine_cancel(e, mine[rng() % mine.size()]);
                nb_engine_stats s;
                s.struct_size = sizeof s;
                EXPECT_EQ(NB_OK, nb_engine_get_stats(e, &s));
                EXPECT_LE(s.waiting, 1000u);
            }
        });
    std::thread waiter([&] {
        for (auto &t : threads)
            t.join();
        stop = true;
    });
    std::map<uint64_t, int> ends;
    for (;;) {
        const bool done = stop;
        const nb_event *ev;
        size_t n;
        if (nb_engine_step(e, &ev, &n) != NB_OK) {
            ADD_FAILURE() << nb_last_error();
            break;
        }
        for (size_t i = 0; i < n; i++)
            if (ev[i].type != NB_EVENT_TOKEN)
                ends[ev[i].id]++;
        nb_engine_stats s;
        s.struct_size = sizeof s;
        nb_engine_get_stats(e, &s);
        if (done && s.running + s.waiting == 0)
            break;
    }
    waiter.join();
    EXPECT_EQ(n_threads * each, accepted);
    EXPECT_EQ(size_t(n_threads * each), ends.size());
    for (auto &[id, count] : ends)
        EXPECT_EQ(1, count) << id;
    EXPECT_EQ("", seen.wrong);
    nb_engine_free(e);
}

} // namespace
