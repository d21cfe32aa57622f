/* The engine over a made-up model and tokenizer, which this file defines in place of the library's.
 *
 * The model's "keys and values" are the token ids themselves: nbi_forward() stores them in the pages that the engine names
 * and reads the whole sequence back to compute its logits, a hash of all ids so far.  A wrong page table, a wrong position,
 * a token lost, repeated or left over from another request changes everything that follows.  The truth to compare with is
 * a loop of ten lines that knows no pages and no batches.
 */
#include "testutil.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <random>
#include <set>
#include <thread>

extern "C" {
#include "engine/sampler.h"
#include "model/model.h"
#include "text/tokenizer.h"
}

/* ---- allocations are counted, except under a sanitizer, which brings its own allocator ---- */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define COUNTS_ALLOCATIONS false
static thread_local size_t allocations;
#else
#define COUNTS_ALLOCATIONS true
static thread_local size_t allocations;
extern "C" {
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *malloc(size_t n) noexcept
{
    return allocations++, __libc_malloc(n);
}
void *calloc(size_t n, size_t m) noexcept
{
    return allocations++, __libc_calloc(n, m);
}
void *realloc(void *p, size_t n) noexcept
{
    return allocations++, __libc_realloc(p, n);
}
}
#endif

/* ---- the made-up model ---- */

static const uint32_t VOCAB = 96;
static const int32_t EOS = 95;
/* These two come from prompts only.  A sequence with POISON gets NaN at NAN_LENGTH tokens; one with CURSE may get BAD, which
 * the tokenizer refuses. */
static const int32_t POISON = 94, CURSE = 93, BAD = 72;
static const size_t NAN_LENGTH = 30;

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

struct History { /* what the logits depend on */
    uint64_t hash = 1;
    size_t n = 0;
    bool poisoned = false, cursed = false;
    void add(int32_t id)
    {
        hash = mix(hash * 31 + uint64_t(id) + 1);
        poisoned |= id == POISON;
        cursed |= id == CURSE;
        n++;
    }
    void logits(float *out) const
    {
        const bool coarse = hash % 3 == 0; /* some rows have many equal logits */
        for (uint32_t v = 0; v < VOCAB; v++) {
            float x = float(mix(hash + v) >> 40) * 0x1p-24f * 10;
            out[v] = coarse ? float(int(x)) : x;
        }
        out[POISON] = out[CURSE] = -INFINITY;
        if (!cursed)
            out[BAD] = -INFINITY;
        if (poisoned && n == NAN_LENGTH)
            out[hash % VOCAB] = NAN;
    }
};

struct nbi_workspace {
    size_t max_rows, max_logits;
};

/* What the model saw; driver thread only. */
static struct {
    std::string wrong; /* the first broken promise of the engine */
    int fail_in = 0;   /* that many calls until one fails */
    size_t calls = 0, rows = 0, most_seqs = 0;
} seen;

static void complain(const char *what)
{
    if (seen.wrong.empty())
        seen.wrong = what;
}

extern "C" {

uint64_t nbi_kv_page_bytes(const nbi_config *, nbi_dtype dtype)
{
    return dtype == NBI_F32 ? 4096 : 2048;
}

nb_status nbi_kv_create(nbi_kv *kv, const nb_model *m, uint32_t n_pages, nbi_dtype dtype)
{
    *kv = nbi_kv{m->be, static_cast<nbi_kv_layer *>(calloc(1, sizeof(nbi_kv_layer))), 1, n_pages};
    kv->layers->k = calloc(n_pages, NBI_PAGE_TOKENS * sizeof(int32_t)); /* ids */
    kv->layers->v = calloc(n_pages, NBI_PAGE_TOKENS * sizeof(int32_t)); /* positions, from 1 */
    kv->layers->dtype = dtype;
    return NB_OK;
}

void nbi_kv_free(nbi_kv *kv)
{
    if (kv->layers) {
        free(kv->layers->k);
        free(kv->layers->v);
        free(kv->layers);
    }
    *kv = nbi_kv{};
}

nb_status nbi_workspace_create(nbi_workspace **out, const nb_model *, size_t max_rows, size_t max_logits)
{
    *out = static_cast<nbi_workspace *>(malloc(sizeof **out));
    **out = {max_rows, max_logits};
    return NB_OK;
}

void nbi_workspace_free(nbi_workspace *w)
{
    free(w);
}

nb_status nbi_forward(const nb_model *m, nbi_kv *kv, nbi_workspace *w, const int32_t *ids, size_t rows,
                      const nbi_seq *seqs, size_t n_seqs, const uint32_t *logit_rows, size_t n_logits, float *logits,
                      nbi_tap_fn, void *)
{
    static uint8_t used[1 << 16];
    memset(used, 0, kv->n_pages);
    seen.calls++;
    seen.rows += rows;
    seen.most_seqs = std::max(seen.most_seqs, n_seqs);
    if (seen.fail_in > 0 && --seen.fail_in == 0)
        return nbi_fail(NB_EIO, "the device is gone");
    if (rows > w->max_rows || n_logits > w->max_logits)
        complain("the batch is larger than the workspace");
    auto *cell_id = static_cast<int32_t *>(kv->layers->k), *cell_pos = static_cast<int32_t *>(kv->layers->v);
    uint32_t row = 0;
    for (size_t s = 0; s < n_seqs; s++) {
        const nbi_seq &q = seqs[s];
        if (q.row0 != row || q.n_rows == 0)
            complain("rows are not one sequence after the other");
        for (uint32_t p = 0; p < q.pos0 + q.n_rows; p += NBI_PAGE_TOKENS) {
            int32_t page = q.pages[p / NBI_PAGE_TOKENS];
            if (page < 0 || uint32_t(page) >= kv->n_pages)
                complain("no such page");
            else if (used[page]++)
                complain("a page is held twice");
        }
        if (!seen.wrong.empty())
            return nbi_fail(NB_EINTERNAL, "%s", seen.wrong.c_str());
        for (uint32_t i = 0; i < q.n_rows; i++, row++) {
            uint32_t pos = q.pos0 + i,
                     cell = uint32_t(q.pages[pos / NBI_PAGE_TOKENS]) * NBI_PAGE_TOKENS + pos % NBI_PAGE_TOKENS;
            if (ids[row] < 0 || uint32_t(ids[row]) >= m->cfg.vocab)
                complain("an id beyond the vocabulary");
            cell_id[cell] = ids[row];
            cell_pos[cell] = int32_t(pos) + 1;
        }
    }
    if (row != rows)
        complain("rows are missing");
    for (size_t l = 0, s = 0; l < n_logits; l++) {
        while (logit_rows[l] >= seqs[s].row0 + seqs[s].n_rows)
            s++;
        uint32_t last = seqs[s].pos0 + logit_rows[l] - seqs[s].row0;
        History h;
        for (uint32_t p = 0; p <= last; p++) {
            uint32_t cell = uint32_t(seqs[s].pages[p / NBI_PAGE_TOKENS]) * NBI_PAGE_TOKENS + p % NBI_PAGE_TOKENS;
            if (cell_pos[cell] != int32_t(p) + 1)
                complain("a position was never computed");
            h.add(cell_id[cell]);
        }
        h.logits(logits + l * m->cfg.vocab);
    }
    return NB_OK;
}

/* ---- the made-up tokenizer: letters, pairs of letters, the two halves of an e with an accent, a special token ---- */

struct nb_tokenizer {
    int unused;
};
static const int32_t HALF1 = 70, HALF2 = 71;

struct nb_stream {
    bool half;
    char piece[16];
};

static const char *token_text(int32_t id)
{
    static const char *pairs[] = {"ab", "ba", "cd", "abc", "  ", "\n", "de", "ea", "bb", "ca"};
    static const char letters[] = "a\0b\0c\0d\0e";
    if (id == EOS)
        return "";
    return id >= 60 && id < 70 ? pairs[id - 60] : &letters[2 * (id % 5)];
}

static size_t next_piece(bool *half, int32_t id, char out[16])
{
    std::string::size_type n = 0;
    auto put = [&](const char *s) {
        memcpy(out + n, s, strlen(s));
        n += strlen(s);
    };
    if (id == HALF2 && *half) {
        put("\xc3\xa9");
        *half = false;
    } else {
        if (*half && id != EOS) {
            put("\xef\xbf\xbd");
            *half = false;
        }
        if (id == HALF1)
            *half = true;
        else
            put(id == HALF2 ? "\xef\xbf\xbd" : token_text(id));
    }
    out[n] = 0;
    return n;
}

nb_status nb_stream_create(nb_stream **out, const nb_tokenizer *, unsigned flags)
{
    if (flags != NB_DETOKENIZE_SKIP_SPECIAL)
        return nbi_fail(NB_EINVAL, "flags");
    *out = static_cast<nb_stream *>(calloc(1, sizeof **out));
    return NB_OK;
}
nb_status nb_stream_feed(nb_stream *s, int32_t id, const char **piece, size_t *bytes)
{
    if (id == BAD)
        return nbi_fail(NB_EINTERNAL, "a token without text");
    *bytes = next_piece(&s->half, id, s->piece);
    *piece = s->piece;
    return NB_OK;
}
nb_status nb_stream_flush(nb_stream *s, const char **piece, size_t *bytes)
{
    *piece = s->half ? "\xef\xbf\xbd" : "";
    *bytes = s->half ? 3 : 0;
    s->half = false;
    return NB_OK;
}
void nb_stream_free(nb_stream *s)
{
    free(s);
}
size_t nb_tokenizer_vocab_size(const nb_tokenizer *)
{
    return VOCAB;
}
bool nbi_tokenizer_is_eos(const nb_tokenizer *, int32_t id)
{
    return id == EOS;
}

static size_t fake_free_bytes(nbi_backend *)
{
    return 4u << 20;
}
}

namespace
{

struct Model {
    nbi_backend_ops ops{};
    nbi_backend be{};
    nb_tokenizer tok{};
    nb_model m{};
    explicit Model(bool with_tokenizer = true)
    {
        ops.free_bytes = fake_free_bytes;
        be.ops = &ops;
        m.cfg.vocab = VOCAB;
        m.cfg.max_context = 512;
        std::fill(std::begin(m.cfg.eos), std::end(m.cfg.eos), -1);
        m.be = &be;
        m.tok = with_tokenizer ? &tok : nullptr;
        seen.wrong.clear();
        seen.fail_in = 0;
        seen.calls = seen.rows = seen.most_seqs = 0;
    }
};

struct Request {
    std::vector<int32_t> prompt;
    uint32_t max_tokens = 20;
    bool ignore_eos = false;
    nb_sampling sampling;
    std::vector<std::string> stop;
    int logprobs = -1;
    Request() { nb_sampling_init(&sampling); }
};

struct Result {
    std::vector<int32_t> tokens;
    std::vector<float> logprobs; /* of each token, then its alternatives */
    std::string text;
    int finish = -1; /* nb_finish, or 100 + nb_status */
    bool operator==(const Result &o) const
    {
        return tokens == o.tokens && logprobs == o.logprobs && text == o.text && finish == o.finish;
    }
};

std::ostream &operator<<(std::ostream &o, const Result &r)
{
    o << "finish " << r.finish << " text \"" << r.text << "\" tokens";
    for (int32_t t : r.tokens)
        o << ' ' << t;
    return o;
}

std::string text_of(const std::vector<int32_t> &tokens, bool flush)
{
    std::string text;
    bool half = false;
    char piece[16];
    for (int32_t t : tokens) {
        size_t n = next_piece(&half, t, piece);
        text.append(piece, n);
    }
    return half && flush ? text + "\xef\xbf\xbd" : text;
}

/* Cuts at the stop string that is complete first. */
bool cut(std::string &text, const std::vector<std::string> &stops)
{
    for (size_t end = 1; end <= text.size(); end++) {
        size_t longest = 0;
        for (auto &s : stops)
            if (s.size() <= end && text.compare(end - s.size(), s.size(), s) == 0)
                longest = std::max(longest, s.size());
        if (longest) {
            text.resize(end - longest);
            return true;
        }
    }
    return false;
}

/* The truth: one request, no pages, no batch. */
Result alone(const Request &r, size_t room)
{
    Result out;
    std::vector<int32_t> ids = r.prompt;
    nbi_sampler *s = nullptr;
    EXPECT_EQ(NB_OK, nbi_sampler_create(&s, VOCAB));
    const size_t limit = r.max_tokens ? r.prompt.size() + r.max_tokens : room;
    while (out.finish < 0) {
        float logits[VOCAB], logprob = 0;
        nb_logprob top[20];
        int32_t token;
        History h;
        for (int32_t id : ids)
            h.add(id);
        h.logits(logits);
        if (nbi_sample(s, logits, &r.sampling, ids.data(), r.prompt.size(), ids.size(), r.logprobs, &token, &logprob,
                       top)) {
            out.finish = 100 + NB_EINTERNAL;
            out.text = text_of(out.tokens, false);
            break;
        }
        if (token == EOS && !r.ignore_eos) {
            out.finish = NB_FINISH_STOP;
            out.text = text_of(out.tokens, true);
            cut(out.text, r.stop);
            break;
        }
        ids.push_back(token);
        out.tokens.push_back(token);
        if (r.logprobs >= 0)
            out.logprobs.push_back(logprob);
        for (int i = 0; i < r.logprobs; i++) {
            out.logprobs.push_back(float(top[i].token));
            out.logprobs.push_back(top[i].logprob);
        }
        if (token == BAD) {
            out.finish = 100 + NB_EINTERNAL;
            out.text = text_of(std::vector<int32_t>(out.tokens.begin(), out.tokens.end() - 1), false);
            break;
        }
        out.text = text_of(out.tokens, false);
        if (cut(out.text, r.stop))
            out.finish = NB_FINISH_STOP;
        else if (ids.size() == limit) {
            out.text = text_of(out.tokens, true);
            out.finish = cut(out.text, r.stop) ? NB_FINISH_STOP : NB_FINISH_LENGTH;
        }
    }
    nbi_sampler_free(s);
    return out;
}

nb_engine_options options(uint32_t batch, uint32_t context, uint32_t chunk, uint32_t pages)
{
    nb_engine_options o;
    nb_engine_options_init(&o);
    o.max_batch = batch;
    o.max_context = context;
    o.prefill_chunk = chunk;
    o.kv_pages = pages;
    return o;
}

class Engine
{
  public:
    Engine(const Model &m, const nb_engine_options &o)
    {
        EXPECT_EQ(NB_OK, nb_engine_create(&e, &m.m, &o)) << nb_last_error();
    }
    ~Engine() { nb_engine_free(e); }
    nb_status submit(const Request &r, uint64_t *id = nullptr, void *user = nullptr)
    {
        nb_request q;
        nb_request_init(&q);
        std::vector<const char *> stops;
        for (auto &s : r.stop)
            stops.push_back(s.c_str());
        q.prompt = r.prompt.data();
        q.n_prompt = r.prompt.size();
        q.max_tokens = r.max_tokens;
        q.ignore_eos = r.ignore_eos;
        q.sampling = r.sampling;
        q.stop = stops.data();
        q.n_stop = stops.size();
        q.logprobs = r.logprobs;
        uint64_t got = 0;
        nb_status st = nb_engine_submit(e, &q, user, &got);
        if (st == NB_OK)
            n_prompt[got] = uint32_t(r.prompt.size());
        if (id)
            *id = got;
        return st;
    }
    /* One step; its events are checked and added to `results`. */
    size_t step(nb_status expected = NB_OK)
    {
        const nb_event *ev;
        size_t n;
        EXPECT_EQ(expected, nb_engine_step(e, &ev, &n)) << nb_last_error();
        for (size_t i = 0; i < n; i++)
            take(ev[i]);
        return n;
    }
    void run()
    {
        for (int i = 0; i < 1000000 && !idle(); i++)
            step();
        EXPECT_TRUE(idle());
    }
    bool idle() const { return stats().running + stats().waiting == 0; }
    nb_engine_stats stats() const
    {
        nb_engine_stats s;
        s.struct_size = sizeof s;
        EXPECT_EQ(NB_OK, nb_engine_get_stats(e, &s));
        return s;
    }
    nb_engine *e = nullptr;
    std::map<uint64_t, Result> results;
    std::map<uint64_t, std::string> errors;
    std::map<uint64_t, uint32_t> n_prompt;

  private:
    void take(const nb_event &ev)
    {
        Result &r = results[ev.id];
        EXPECT_EQ(-1, r.finish) << "an event after the last one";
        EXPECT_EQ(strlen(ev.text), ev.text_bytes);
        EXPECT_EQ(n_prompt[ev.id], ev.n_prompt);
        r.text += ev.text;
        if (ev.type == NB_EVENT_TOKEN) {
            r.tokens.push_back(ev.token);
            if (ev.logprob != 0 || ev.n_top > 0)
                r.logprobs.push_back(ev.logprob);
            for (size_t i = 0; i < ev.n_top; i++) {
                r.logprobs.push_back(float(ev.top[i].token));
                r.logprobs.push_back(ev.top[i].logprob);
            }
        } else if (ev.type == NB_EVENT_FINISHED) {
            r.finish = ev.finish;
        } else {
            EXPECT_EQ(NB_EVENT_FAILED, ev.type);
            r.finish = 100 + ev.status;
            errors[ev.id] = ev.error;
        }
        EXPECT_EQ(r.tokens.size(), ev.n_output);
    }
};

std::vector<int32_t> random_prompt(std::mt19937 &rng, size_t n)
{
    std::vector<int32_t> p(n);
    for (auto &t : p)
        t = int32_t(rng() % 93); /* neither POISON nor CURSE */
    return p;
}

Request random_request(std::mt19937 &rng, size_t room)
{
    Request r;
    const size_t total = 2 + rng() % (room - 1);
    r.prompt = random_prompt(rng, 1 + rng() % (total - 1));
    r.max_tokens = rng() % 10 ? uint32_t(total - r.prompt.size()) : 0;
    r.ignore_eos = rng() % 2;
    if (rng() % 20 == 0)
        r.prompt[0] = rng() % 2 ? POISON : CURSE;
    if (rng() % 2) {
        r.sampling.temperature = float(1 + rng() % 30) / 10;
        r.sampling.top_k = rng() % 3 ? 0 : int32_t(1 + rng() % 20);
        r.sampling.top_p = rng() % 3 ? 1 : 0.8f;
        r.sampling.min_p = rng() % 3 ? 0 : 0.05f;
        r.sampling.seed = rng();
    }
    if (rng() % 3 == 0)
        r.sampling.repetition_penalty = 1.3f;
    if (rng() % 3 == 0)
        r.sampling.presence_penalty = 0.5f;
    if (rng() % 3 == 0)
        r.sampling.frequency_penalty = 0.25f;
    static const char *stops[] = {"abc", "cc", "\xc3\xa9", "\xef\xbf\xbd", "dede", "eabab", "a\n"};
    if (rng() % 3 == 0)
        for (size_t i = 1 + rng() % 2; i > 0; i--)
            r.stop.push_back(stops[rng() % 7]);
    r.logprobs = rng() % 3 ? -1 : int(rng() % 5);
    return r;
}

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
    std::map<int, int> finishes;
    for (unsigned seed = 0; seed < 150; seed++) {
        std::mt19937 rng(seed);
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
    }
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

TEST(Engine, a_row_of_nan_fails_its_request_only)
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

TEST(Create, options_that_cannot_work_are_refused_with_the_numbers)
{
    Model m;
    nb_engine *e = nullptr;
    auto create = [&](const nb_engine_options &o) { return nb_engine_create(&e, &m.m, &o); };
    nb_engine_options o = options(4, 512, 16, 0);
    o.kv_bytes = 31 * 4096;
    EXPECT_FAILS(NB_ELIMIT, "a context of 512 tokens needs 131072 bytes of KV cache, but kv_bytes allows 126976",
                 create(o));
    o.kv_pages = 32;
    EXPECT_FAILS(NB_ELIMIT, "kv_pages 32 of 4096 bytes each is more than kv_bytes 126976", create(o));
    EXPECT_FAILS(NB_ELIMIT, "max_context is 513, expected at most 512", create(options(4, 513, 16, 0)));
    EXPECT_FAILS(NB_ELIMIT, "max_batch is 4097", create(options(4097, 512, 16, 0)));
    EXPECT_FAILS(NB_ELIMIT, "prefill_chunk is 65537", create(options(4, 512, 65537, 0)));
    EXPECT_FAILS(NB_ELIMIT, "kv_pages is 2147483648", create(options(4, 512, 16, 1u << 31)));
    o = options(4, 512, 16, 32);
    o.kv_dtype = "int8";
    EXPECT_FAILS(NB_EINVAL, "kv_dtype is \"int8\", expected \"f32\" or \"f16\"", create(o));
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
