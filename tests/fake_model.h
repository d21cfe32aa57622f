/* A made-up model and tokenizer, defined in place of the library's: include this in one test program only.
 *
 * The model's "keys and values" are the token ids themselves: nbi_forward() stores them in the pages that the engine names
 * and reads the whole sequence back to compute its logits, a hash of all ids so far.  A wrong page table, a wrong position,
 * a token lost, repeated or left over from another request changes everything that follows.  The truth to compare with is
 * a loop of ten lines that knows no pages and no batches.
 */
#pragma once

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
    size_t calls = 0, rows = 0, most_seqs = 0, drawn = 0;
} seen;

/* Logits may stay on the made-up device, which draws from them with the host's sampler. */
static bool draws_on_device = false;
static std::vector<float> device_logits;

static void complain(const char *what)
{
    if (seen.wrong.empty())
        seen.wrong = what;
}

extern "C" {

uint64_t nbi_kv_page_bytes(const nbi_config *, nbi_kv_type type)
{
    return type == NBI_KV_F32 ? 4096 : 2048;
}

nb_status nbi_kv_create(nbi_kv *kv, const nb_model *m, uint32_t n_pages, nbi_kv_type type)
{
    *kv = nbi_kv{m->be, static_cast<nbi_kv_layer *>(calloc(1, sizeof(nbi_kv_layer))), 1, n_pages};
    kv->layers->k = calloc(n_pages, NBI_PAGE_TOKENS * sizeof(int32_t)); /* ids */
    kv->layers->v = calloc(n_pages, NBI_PAGE_TOKENS * sizeof(int32_t)); /* positions, from 1 */
    kv->layers->type = type;
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

nb_status nbi_workspace_create(nbi_workspace **out, const nb_model *, const nbi_workspace_limits *limits)
{
    *out = static_cast<nbi_workspace *>(malloc(sizeof **out));
    **out = {limits->rows, limits->logits};
    return NB_OK;
}

void nbi_workspace_free(nbi_workspace *w)
{
    free(w);
}

nb_status nbi_forward(const nb_model *m, nbi_kv *kv, nbi_workspace *w, const nbi_batch *batch, float *logits,
                      nbi_tap_fn, void *)
{
    const auto [rows, n_seqs, n_logits, ids, seqs, logit_rows] = *batch;
    device_logits.assign(logits ? 0 : n_logits * m->cfg.vocab, 0);
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
        h.logits((logits ? logits : device_logits.data()) + l * m->cfg.vocab);
    }
    return NB_OK;
}

bool nbi_can_sample(const nb_model *)
{
    return draws_on_device;
}

nb_status nbi_forward_sample(nbi_workspace *, const nbi_draw *how, size_t n, nbi_drawn *out)
{
    nbi_sampler *s = nullptr;
    if (n * VOCAB != device_logits.size())
        complain("other rows are drawn from than were computed");
    EXPECT_EQ(NB_OK, nbi_sampler_create(&s, VOCAB));
    for (size_t i = 0; i < n; i++)
        nbi_sampler_draw(s, &device_logits[i * VOCAB], &how[i], &out[i]);
    nbi_sampler_free(s);
    seen.drawn += n;
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

} // namespace
