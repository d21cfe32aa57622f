/* The engine: requests come in from any thread, nb_engine_step() plans (scheduler.c), computes (model.h), samples and turns
 * tokens into events.
 *
 *   submit --> inbound --> waiting --> running --> FINISHED or FAILED event
 *              (lock)      ^               |
 *                          +-- preempted --+
 *
 * The lock covers what other threads touch: inbound, the table of live requests, `cancelled` marks, the statistics.
 * Everything else belongs to the driver thread.  A step allocates nothing but, rarely, room for longer texts.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "backend/kv.h"
#include "base/options.h"
#include "base/checked.h"
#include "base/log.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/stop.h"
#include "model/model.h"
#include "text/tokenizer.h"

#define DEFAULT_BATCH 32
#define DEFAULT_CHUNK 256
#define DEFAULT_QUEUE 65536
#define MAX_BATCH     4096
#define MAX_CHUNK     65536
#define MAX_TOP       20
#define CANCEL_ROOM   256 /* requests that are cancelled in one step; more are left for the next */
#define N_BUCKETS     4096

struct nb_engine {
    const nb_model *m;
    nb_engine_options opt;
    nbi_kv kv;
    nbi_workspace *ws;
    nbi_sampler *sampler;
    nbi_sched sched;

    /* one step */
    int32_t *ids;         /* [budget] */
    nbi_seq *seqs;        /* [max_batch] */
    uint32_t *logit_rows; /* [max_batch] */
    float *logits;        /* [max_batch][vocab] */
    nbi_draw *draws;      /* [max_batch] how tokens are chosen on the device */
    nbi_drawn *drawn;     /* [max_batch] and what came of it */
    nb_logprob *top;      /* [max_batch][MAX_TOP] */
    nb_event *events;     /* [2 * max_batch + CANCEL_ROOM] */
    size_t *text_at;      /* of each event: where its text (or error) begins in `text` */
    size_t n_events;
    nbi_str text; /* all texts of the step, each with its NUL */
    uint64_t prompt_tokens, output_tokens;

    pthread_mutex_t lock;
    bool has_lock;
    nbi_list inbound;
    nbi_req *live[N_BUCKETS]; /* by id: every request from submit to its last event */
    uint64_t next_id;
    uint32_t n_live;
    bool any_cancelled;
    nb_engine_stats stats; /* .waiting is counted when asked for */
};

/* ---- options --------------------------------------------------------------------------------------------------------- */

void nb_engine_options_init(nb_engine_options *o)
{
    *o = (nb_engine_options){.struct_size = sizeof *o};
}

void nb_request_init(nb_request *r)
{
    *r = (nb_request){.struct_size = sizeof *r, .logprobs = -1};
    nb_sampling_init(&r->sampling);
}

static nb_status in_range(const char *name, uint32_t *value, uint32_t otherwise, uint32_t max)
{
    if (*value == 0)
        *value = otherwise;
    if (*value > max)
        return nbi_fail(NB_ELIMIT, "%s is %u, expected at most %u", name, *value, max);
    return NB_OK;
}

static nb_status read_options(nb_engine_options *opt, const nb_model *m, const nb_engine_options *o, nbi_kv_type *kv)
{
    nb_status st = NB_OK;
    nb_engine_options_init(opt);
    NB_TRY(nbi_take_options(opt, sizeof *opt, o, "nb_engine_options"));
    NB_TRY(in_range("max_batch", &opt->max_batch, DEFAULT_BATCH, MAX_BATCH));
    NB_TRY(in_range("max_context", &opt->max_context, m->cfg.max_context, m->cfg.max_context));
    NB_TRY(in_range("prefill_chunk", &opt->prefill_chunk, DEFAULT_CHUNK, MAX_CHUNK));
    NB_TRY(in_range("kv_pages", &opt->kv_pages, 0, INT32_MAX));
    if (opt->max_queue == 0)
        opt->max_queue = DEFAULT_QUEUE;
    NB_TRY(nbi_kv_option(kv, m->be, opt->kv_dtype));
    opt->kv_dtype = NULL; /* the caller's memory */
done:
    return st;
}

/* How many pages: as many as asked for, else as all sequences can ever hold, but within the limit of bytes.  A context that
 * the caller left open is what fits: models with a context of 131072 must run on small machines without a flag. */
static nb_status plan_pages(nb_engine_options *opt, const nb_model *m, nbi_kv_type kv, bool open_context)
{
    const uint64_t page = nbi_kv_page_bytes(&m->cfg, kv), context = nbi_pages_for(opt->max_context);
    uint64_t limit = opt->kv_bytes;
    if (opt->kv_pages > 0) {
        if (limit > 0 && opt->kv_pages > limit / page)
            return nbi_fail(NB_ELIMIT, "kv_pages %u of %llu bytes each is more than kv_bytes %llu", opt->kv_pages,
                            (unsigned long long)page, (unsigned long long)limit);
        return NB_OK;
    }
    if (limit == 0)
        limit = m->be->ops->free_bytes(m->be) / 4;
    uint64_t pages = context * opt->max_batch;
    if (pages > limit / page)
        pages = limit / page;
    if (pages > INT32_MAX)
        pages = INT32_MAX;
    if (pages < context && open_context && pages > 0) {
        opt->max_context = (uint32_t)(pages * NBI_PAGE_TOKENS);
        nbi_log(&opt->callbacks, NB_LOG_WARN, "the context is %u tokens instead of %u: more do not fit into %s",
                opt->max_context, m->cfg.max_context, opt->kv_bytes ? "kv_bytes" : "a quarter of the free memory");
    } else if (pages < context)
        return nbi_fail(NB_ELIMIT,
                        "a context of %u tokens needs %llu bytes of KV cache, but %s allows %llu: lower max_context or "
                        "raise kv_bytes",
                        opt->max_context, (unsigned long long)(context * page),
                        opt->kv_bytes ? "kv_bytes" : "a quarter of the free memory", (unsigned long long)limit);
    opt->kv_pages = (uint32_t)pages;
    return NB_OK;
}

/* ---- life of an engine ----------------------------------------------------------------------------------------------- */

static nb_status alloc_step(nb_engine *e)
{
    const size_t batch = e->opt.max_batch, budget = e->sched.budget, n_events = 2 * batch + CANCEL_ROOM;
    size_t logits;
    if (!nbi_mul(batch, e->m->cfg.vocab, &logits) || !nbi_mul(logits, sizeof(float), &logits))
        return nbi_fail(NB_ELIMIT, "max_batch %zu x %u logits are more than memory can hold", batch, e->m->cfg.vocab);
    e->ids = malloc(budget * sizeof *e->ids);
    e->seqs = malloc(batch * sizeof *e->seqs);
    e->logit_rows = malloc(batch * sizeof *e->logit_rows);
    e->logits = malloc(logits);
    e->draws = malloc(batch * sizeof *e->draws);
    e->drawn = malloc(batch * sizeof *e->drawn);
    e->top = malloc(batch * MAX_TOP * sizeof *e->top);
    e->events = malloc(n_events * sizeof *e->events);
    e->text_at = malloc(n_events * sizeof *e->text_at);
    for (size_t i = 0; i < 2 * batch + 64; i++)
        nbi_str_puts(&e->text, "                                "); /* room ahead of time */
    if (!e->ids || !e->seqs || !e->logit_rows || !e->logits || !e->draws || !e->drawn || !e->top || !e->events ||
        !e->text_at || e->text.failed)
        return nbi_fail_nomem("the engine's buffers", logits);
    return NB_OK;
}

nb_status nb_engine_create(nb_engine **out, const nb_model *m, const nb_engine_options *o)
{
    nb_status st = NB_OK;
    nbi_kv_type kv = NBI_KV_F32;
    if (!out || !m)
        return nbi_fail(NB_EINVAL, "nb_engine_create: %s is NULL", out ? "the model" : "out");
    *out = NULL;
    nb_engine *e = calloc(1, sizeof *e);
    if (!e)
        return nbi_fail_nomem("the engine", sizeof *e);
    e->m = m;
    e->next_id = 1;
    if (pthread_mutex_init(&e->lock, NULL) != 0) {
        st = nbi_fail(NB_ENOMEM, "the engine's lock cannot be created");
        goto done;
    }
    e->has_lock = true;
    NB_TRY(read_options(&e->opt, m, o, &kv));
    NB_TRY(plan_pages(&e->opt, m, kv, !o || o->max_context == 0));
    NB_TRY(nbi_sched_create(&e->sched, e->opt.max_batch, e->opt.max_context, e->opt.prefill_chunk, e->opt.kv_pages));
    NB_TRY(alloc_step(e));
    NB_TRY(nbi_sampler_create(&e->sampler, m->cfg.vocab));
    NB_TRY(nbi_workspace_create(&e->ws, m,
                                &(nbi_workspace_limits){.rows = e->sched.budget,
                                                        .seqs = e->opt.max_batch,
                                                        .logits = e->opt.max_batch,
                                                        .context = e->opt.max_context}));
    NB_TRY(nbi_kv_create(&e->kv, m, e->opt.kv_pages, kv));
    e->stats.kv_pages_total = e->opt.kv_pages;
    e->stats.page_tokens = NBI_PAGE_TOKENS;
    nbi_log(&e->opt.callbacks, NB_LOG_INFO,
            "KV cache: %u pages of %d tokens (%s), %.1f MiB; up to %u sequences of %u tokens", e->opt.kv_pages,
            NBI_PAGE_TOKENS, nbi_kv_type_name(kv),
            (double)e->opt.kv_pages * (double)nbi_kv_page_bytes(&m->cfg, kv) / (1 << 20), e->opt.max_batch,
            e->opt.max_context);
    *out = e;
    e = NULL;
done:
    nb_engine_free(e);
    return st;
}

static void req_free(nbi_req *r)
{
    if (!r)
        return;
    nb_stream_free(r->stream);
    nbi_stop_free(r->stop);
    free(r->ids);
    free(r);
}

void nb_engine_free(nb_engine *e)
{
    if (!e)
        return;
    for (size_t b = 0; b < N_BUCKETS; b++)
        for (nbi_req *r = e->live[b], *next; r; r = next) {
            next = r->hash_next;
            req_free(r);
        }
    nbi_kv_free(&e->kv);
    nbi_workspace_free(e->ws);
    nbi_sampler_free(e->sampler);
    nbi_sched_free(&e->sched);
    free(e->ids);
    free(e->seqs);
    free(e->logit_rows);
    free(e->logits);
    free(e->draws);
    free(e->drawn);
    free(e->top);
    free(e->events);
    free(e->text_at);
    nbi_str_free(&e->text);
    if (e->has_lock)
        pthread_mutex_destroy(&e->lock);
    free(e);
}

/* ---- requests, from any thread --------------------------------------------------------------------------------------- */

/* The tokens that the request may reach, prompt and output; refuses what never fits. */
static nb_status request_limit(const nb_engine *e, const nb_request *r, size_t *limit)
{
    const size_t cache = (size_t)e->opt.kv_pages * NBI_PAGE_TOKENS, context = e->opt.max_context;
    const bool by_cache = cache < context;
    const size_t room = by_cache ? cache : context;
    const char *what = by_cache ? "the KV cache" : "the context";
    if (r->n_prompt >= room)
        return nbi_fail(NB_ELIMIT, "the prompt has %zu tokens, but %s holds %zu, and one is needed for the output",
                        r->n_prompt, what, room);
    if (r->max_tokens > room - r->n_prompt)
        return nbi_fail(NB_ELIMIT, "the prompt has %zu tokens and max_tokens is %u, together %zu, but %s holds %zu",
                        r->n_prompt, r->max_tokens, r->n_prompt + r->max_tokens, what, room);
    *limit = r->max_tokens ? r->n_prompt + r->max_tokens : room;
    return NB_OK;
}

static nb_status check_request(const nb_engine *e, const nb_request *r, size_t *limit)
{
    const uint32_t vocab = e->m->cfg.vocab;
    if (r->n_prompt == 0 || !r->prompt)
        return nbi_fail(NB_EINVAL, "the prompt is empty, expected at least one token");
    if (r->logprobs < -1 || r->logprobs > MAX_TOP)
        return nbi_fail(NB_EINVAL, "logprobs is %d, expected -1 (none) to %d", r->logprobs, MAX_TOP);
    if (r->n_stop > 0 && !e->m->tok)
        return nbi_fail(NB_EINVAL, "stop strings need a tokenizer, and the model has none");
    nb_status st = nbi_sampling_check(&r->sampling);
    if (st == NB_OK)
        st = request_limit(e, r, limit);
    for (size_t i = 0; st == NB_OK && i < r->n_prompt; i++)
        if (r->prompt[i] < 0 || (uint32_t)r->prompt[i] >= vocab)
            st = nbi_fail(NB_EINVAL, "prompt token %zu is %d, expected 0 to %u", i, r->prompt[i], vocab - 1);
    return st;
}

static nb_status req_create(nbi_req **out, const nb_engine *e, const nb_request *r, void *user)
{
    nb_status st = NB_OK;
    size_t limit = 0, bytes;
    nbi_req *q = NULL;
    NB_TRY(check_request(e, r, &limit));
    bytes = limit * sizeof(int32_t); /* limit <= max_context, 32 bits */
    q = calloc(1, sizeof *q);
    if (!q || !(q->ids = malloc(bytes))) {
        st = nbi_fail_nomem("a request", bytes + sizeof *q);
        goto done;
    }
    memcpy(q->ids, r->prompt, r->n_prompt * sizeof *q->ids);
    q->n_prompt = q->n = r->n_prompt;
    q->limit = limit;
    q->user = user;
    q->sampling = r->sampling;
    q->logprobs = r->logprobs;
    q->ignore_eos = r->ignore_eos != 0;
    NB_TRY(nbi_stop_create(&q->stop, r->stop, r->n_stop));
    if (e->m->tok)
        NB_TRY(nb_stream_create(&q->stream, e->m->tok, NB_DETOKENIZE_SKIP_SPECIAL));
    *out = q;
    q = NULL;
done:
    req_free(q);
    return st;
}

nb_status nb_engine_submit(nb_engine *e, const nb_request *given, void *user, uint64_t *id)
{
    nbi_req *q = NULL;
    nb_request r;
    if (!e || !given)
        return nbi_fail(NB_EINVAL, "nb_engine_submit: %s is NULL", e ? "the request" : "the engine");
    nb_request_init(&r);
    nb_status st = nbi_take_options(&r, sizeof r, given, "nb_request");
    if (st == NB_OK)
        st = req_create(&q, e, &r, user);
    if (st != NB_OK)
        return st;
    pthread_mutex_lock(&e->lock);
    const uint32_t waiting = e->n_live - e->stats.running;
    if (waiting >= e->opt.max_queue) {
        st = nbi_fail(NB_ELIMIT, "%u requests are waiting, and max_queue is %u", waiting, e->opt.max_queue);
    } else {
        q->id = e->next_id++;
        if (id)
            *id = q->id;
        nbi_req **bucket = &e->live[q->id % N_BUCKETS];
        q->hash_next = *bucket;
        *bucket = q;
        e->n_live++;
        nbi_list_push(&e->inbound, q);
        q = NULL;
    }
    pthread_mutex_unlock(&e->lock);
    req_free(q);
    return st;
}

void nb_engine_cancel(nb_engine *e, uint64_t id)
{
    if (!e)
        return;
    pthread_mutex_lock(&e->lock);
    nbi_req *r = e->live[id % N_BUCKETS];
    while (r && r->id != id)
        r = r->hash_next;
    if (r)
        r->cancelled = e->any_cancelled = true;
    pthread_mutex_unlock(&e->lock);
}

nb_status nb_engine_get_stats(const nb_engine *e, nb_engine_stats *s)
{
    if (!e || !s)
        return nbi_fail(NB_EINVAL, "nb_engine_get_stats: %s is NULL", e ? "the result" : "the engine");
    pthread_mutex_t *lock = (pthread_mutex_t *)&e->lock; /* reading changes nothing that the caller can see */
    pthread_mutex_lock(lock);
    nb_engine_stats now = e->stats;
    now.waiting = e->n_live - e->stats.running;
    pthread_mutex_unlock(lock);
    return nbi_give_result(s, &now, sizeof now, "nb_engine_stats");
}

/* ---- events ------------------------------------------------------------------------------------------------------------ */

/* An event whose text is what e->text holds from `at` on. */
static nb_event *emit(nb_engine *e, const nbi_req *r, nb_event_type type, size_t at)
{
    nb_event *ev = &e->events[e->n_events];
    *ev = (nb_event){.type = type,
                     .id = r->id,
                     .user = r->user,
                     .token = -1,
                     .text_bytes = e->text.len - at,
                     .n_prompt = (uint32_t)r->n_prompt,
                     .n_output = (uint32_t)(r->n - r->n_prompt)};
    nbi_str_add(&e->text, "", 1);
    e->text_at[e->n_events++] = at;
    return ev;
}

/* The step is over: `text` will not move any more, so offsets become pointers. */
static nb_status publish(nb_engine *e, const nb_event **events, size_t *n)
{
    nb_status st = NB_OK;
    if (e->text.failed) {
        e->text.failed = false;
        e->n_events = 0;
        st = nbi_fail_nomem("the texts of a step", e->text.cap);
    }
    for (size_t i = 0; i < e->n_events; i++) {
        nb_event *ev = &e->events[i];
        const char *text = e->text.data + e->text_at[i];
        ev->text = ev->type == NB_EVENT_FAILED ? "" : text;
        ev->error = ev->type == NB_EVENT_FAILED ? text : NULL;
        if (ev->type == NB_EVENT_FAILED)
            ev->text_bytes = 0;
    }
    *events = e->events;
    *n = e->n_events;
    return st;
}

/* Takes a request out of the table of live ones; the lock is held. */
static void forget(nb_engine *e, nbi_req *r)
{
    nbi_req **at = &e->live[r->id % N_BUCKETS];
    while (*at != r)
        at = &(*at)->hash_next;
    *at = r->hash_next;
    nbi_sched_remove(&e->sched, r);
    e->n_live--;
    e->stats.running = e->sched.n_running;
}

static void retire(nb_engine *e, nbi_req *r)
{
    pthread_mutex_lock(&e->lock);
    forget(e, r);
    pthread_mutex_unlock(&e->lock);
    req_free(r);
}

/* The last event of a request that fails, with this thread's error sentence.  Does not take it out. */
static void emit_failure(nb_engine *e, const nbi_req *r, nb_status status)
{
    const size_t at = e->text.len;
    nbi_str_puts(&e->text, nb_last_error());
    emit(e, r, NB_EVENT_FAILED, at)->status = status;
}

/* ---- text -------------------------------------------------------------------------------------------------------------- */

/* Appends to e->text what becomes final with this token.  Ids beyond the tokenizer's are the padding of a model's
 * vocabulary: they have no text. */
static nb_status feed_text(nb_engine *e, nbi_req *r, int32_t token, bool *stopped)
{
    const char *piece;
    size_t bytes;
    *stopped = false;
    if (!r->stream || (size_t)token >= nb_tokenizer_vocab_size(e->m->tok))
        return NB_OK;
    nb_status st = nb_stream_feed(r->stream, token, &piece, &bytes);
    if (st != NB_OK)
        return st;
    *stopped = nbi_stop_feed(r->stop, piece, bytes, &e->text);
    return nbi_stop_failed(r->stop) ? nbi_fail_nomem("text that is held back", bytes) : NB_OK;
}

/* Appends what is held back when nothing follows; that too may complete a stop string. */
static nb_status flush_text(nb_engine *e, nbi_req *r, bool *stopped)
{
    const char *piece;
    size_t bytes;
    *stopped = false;
    if (!r->stream)
        return NB_OK;
    nb_status st = nb_stream_flush(r->stream, &piece, &bytes);
    if (st != NB_OK)
        return st;
    *stopped = nbi_stop_feed(r->stop, piece, bytes, &e->text);
    if (!*stopped)
        nbi_stop_flush(r->stop, &e->text);
    return nbi_stop_failed(r->stop) ? nbi_fail_nomem("text that is held back", bytes) : NB_OK;
}

/* The last event of a request.  Does not take it out. */
static void emit_finish(nb_engine *e, nbi_req *r, nb_finish why, bool flush)
{
    const size_t at = e->text.len;
    bool stopped = false;
    nb_status st = flush ? flush_text(e, r, &stopped) : NB_OK;
    if (st != NB_OK) {
        e->text.len = at;
        emit_failure(e, r, st);
        return;
    }
    if (stopped && why == NB_FINISH_LENGTH)
        why = NB_FINISH_STOP;
    emit(e, r, NB_EVENT_FINISHED, at)->finish = why;
}

/* ---- a step ------------------------------------------------------------------------------------------------------------ */

/* Moves cancelled requests of a list to `dropped`, as long as there is room for their events. */
static bool drop_cancelled(nb_engine *e, nbi_list *dropped)
{
    size_t room = CANCEL_ROOM;
    for (uint32_t i = e->sched.n_running; i-- > 0;) {
        nbi_req *r = e->sched.running[i];
        if (r->cancelled && room > 0) {
            forget(e, r);
            nbi_list_push(dropped, r);
            room--;
        }
    }
    for (nbi_req *r = e->sched.waiting.head, *next; r && room > 0; r = next) {
        next = r->next;
        if (r->cancelled) {
            forget(e, r);
            nbi_list_push(dropped, r);
            room--;
        }
    }
    return room == 0;
}

/* Takes over what other threads left: new requests, and cancelled ones, which end here. */
static void take_inbound(nb_engine *e)
{
    nbi_list dropped = {0};
    pthread_mutex_lock(&e->lock);
    while (e->inbound.head) {
        nbi_req *r = e->inbound.head;
        nbi_list_remove(&e->inbound, r);
        nbi_sched_push(&e->sched, r);
    }
    if (e->any_cancelled)
        e->any_cancelled = drop_cancelled(e, &dropped);
    pthread_mutex_unlock(&e->lock);
    while (dropped.head) {
        nbi_req *r = dropped.head;
        nbi_list_remove(&dropped, r);
        emit_finish(e, r, NB_FINISH_CANCELLED, true);
        req_free(r);
    }
}

static bool is_eos(const nb_model *m, int32_t token)
{
    for (size_t i = 0; i < sizeof m->cfg.eos / sizeof *m->cfg.eos && m->cfg.eos[i] >= 0; i++)
        if (m->cfg.eos[i] == token)
            return true;
    return m->tok && nbi_tokenizer_is_eos(m->tok, token);
}

/* The next token of a request, whose logits are row `row`: drawn on the device, or here. */
static nb_status choose(nb_engine *e, nbi_req *r, size_t row, bool on_device, int32_t *token, float *logprob)
{
    if (on_device)
        return nbi_draw_result(&e->drawn[row], r->n, token, logprob);
    return nbi_sample(e->sampler, e->logits + row * e->m->cfg.vocab, &r->sampling, r->ids, r->n_prompt, r->n,
                      r->logprobs, token, logprob, e->top + row * MAX_TOP);
}

/* Chooses the next token of a request: one TOKEN event, and FINISHED or FAILED where it is the last.  EOS is no part of the
 * output: it has no event, no text and is not counted. */
static void next_token(nb_engine *e, nbi_req *r, size_t row, bool on_device)
{
    int32_t token;
    float logprob = 0;
    bool stopped;
    nb_status st = choose(e, r, row, on_device, &token, &logprob);
    if (st != NB_OK) {
        emit_failure(e, r, st);
        retire(e, r);
        return;
    }
    if (!r->ignore_eos && is_eos(e->m, token)) {
        emit_finish(e, r, NB_FINISH_STOP, true);
        retire(e, r);
        return;
    }
    r->ids[r->n++] = token;
    e->output_tokens++;
    const size_t at = e->text.len;
    st = feed_text(e, r, token, &stopped);
    nb_event *ev = emit(e, r, NB_EVENT_TOKEN, at);
    ev->token = token;
    ev->logprob = logprob;
    ev->top = r->logprobs > 0 ? e->top + row * MAX_TOP : NULL;
    ev->n_top = r->logprobs <= 0                          ? 0
                : (uint32_t)r->logprobs < e->m->cfg.vocab ? (uint32_t)r->logprobs
                                                          : e->m->cfg.vocab;
    if (st != NB_OK)
        emit_failure(e, r, st);
    else if (stopped)
        emit_finish(e, r, NB_FINISH_STOP, false);
    else if (r->n == r->limit)
        emit_finish(e, r, NB_FINISH_LENGTH, true);
    else
        return;
    retire(e, r);
}

/* Plan -> batch: rows of all parts one after the other; returns the number of rows. */
static size_t make_batch(nb_engine *e, size_t *n_logits)
{
    size_t rows = 0;
    *n_logits = 0;
    for (uint32_t i = 0; i < e->sched.n_plan; i++) {
        const nbi_part *p = &e->sched.plan[i];
        const nbi_req *r = p->r;
        e->seqs[i] =
            (nbi_seq){.row0 = (uint32_t)rows, .n_rows = p->n_rows, .pos0 = (uint32_t)r->n_done, .pages = r->table.page};
        memcpy(e->ids + rows, r->ids + r->n_done, p->n_rows * sizeof *e->ids);
        rows += p->n_rows;
        if (r->n_done + p->n_rows == r->n)
            e->logit_rows[(*n_logits)++] = (uint32_t)rows - 1;
    }
    return rows;
}

/* Whether the device draws all tokens of this step; if so, e->draws says how.  Where one request needs more than it can, all
 * logits come to the host: the tokens are the same. */
static bool plan_draws(nb_engine *e)
{
    size_t row = 0;
    bool all = nbi_can_sample(e->m);
    for (uint32_t i = 0; all && i < e->sched.n_plan; i++) {
        const nbi_part *p = &e->sched.plan[i];
        if (p->r->n_done + p->n_rows == p->r->n)
            all = nbi_draw_for(&e->draws[row++], &p->r->sampling, p->r->n, p->r->logprobs);
    }
    return all;
}

/* Rows that are prompt, or output that a preemption made the engine forget. */
static uint64_t prefill_rows(const nbi_part *p)
{
    const nbi_req *r = p->r;
    const size_t known = r->n_high > r->n_prompt ? r->n_high : r->n_prompt, end = r->n_done + p->n_rows;
    return end <= known ? p->n_rows : known > r->n_done ? known - r->n_done : 0;
}

static nb_status compute(nb_engine *e)
{
    size_t n_logits, row = 0;
    nbi_sched_plan(&e->sched);
    if (e->sched.n_plan == 0) {
        if (e->sched.n_running > 0 || e->sched.waiting.head)
            return nbi_fail(NB_EINTERNAL, "the scheduler found nothing to compute for %u running requests",
                            e->sched.n_running);
        return NB_OK;
    }
    const size_t rows = make_batch(e, &n_logits);
    const nbi_batch batch = {.rows = rows,
                             .n_seqs = e->sched.n_plan,
                             .n_logits = n_logits,
                             .ids = e->ids,
                             .seqs = e->seqs,
                             .logit_rows = e->logit_rows};
    const bool on_device = plan_draws(e);
    nb_status st = nbi_forward(e->m, &e->kv, e->ws, &batch, on_device ? NULL : e->logits, NULL, NULL);
    if (st == NB_OK && on_device)
        st = nbi_forward_sample(e->ws, e->draws, n_logits, e->drawn);
    if (st != NB_OK)
        return st;
    for (uint32_t i = 0; i < e->sched.n_plan; i++)
        e->prompt_tokens += prefill_rows(&e->sched.plan[i]);
    nbi_sched_done(&e->sched);
    for (uint32_t i = 0; i < e->sched.n_plan; i++) {
        nbi_req *r = e->sched.plan[i].r;
        if (r->n_done < r->n)
            continue;
        next_token(e, r, row++, on_device);
    }
    return NB_OK;
}

nb_status nb_engine_step(nb_engine *e, const nb_event **events, size_t *n)
{
    if (!e || !events || !n)
        return nbi_fail(NB_EINVAL, "nb_engine_step: %s is NULL", e ? "events or n" : "the engine");
    e->n_events = 0;
    nbi_str_clear(&e->text);
    take_inbound(e);
    nb_status st = compute(e);
    pthread_mutex_lock(&e->lock);
    e->stats.running = e->sched.n_running;
    e->stats.prompt_tokens = e->prompt_tokens;
    e->stats.output_tokens = e->output_tokens;
    e->stats.preemptions = e->sched.preemptions;
    e->stats.kv_pages_used = e->sched.pages.n_total - e->sched.pages.n_free;
    pthread_mutex_unlock(&e->lock);
    nb_status published = publish(e, events, n);
    return st != NB_OK ? st : published;
}
