/* nb_bench: prefill and decode speed, as llama-bench defines and prints them.
 *
 *   ppN    N tokens of prompt through the model at once (chunks of 512), logits of the last one
 *   tgN    N single tokens one after the other from an empty context; with B sequences: B tokens a step, all counted
 *
 * Tokens are random, sampling and tokenisation are not timed; but where a device can sample, logits stay there and the best
 * token is chosen, as the engine does it.  One warm-up, then the repetitions.
 *
 * Where the backend measures its roofs, it does so before each test, and the test is held against them by what it cannot do
 * without:
 *     bytes       a step reads the weights of all layers once, the head's where logits are wanted, and the keys and values of
 *                 its sequences up to the last position
 *     operations  2 * weights of the layers for each token, 2 * weights of the head for each row of logits
 * Of experts those count that tokens choose when all are equally likely, as they are with random tokens.
 * Embedding rows, activations, and attention's own products are not counted. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend/kv.h"
#include "base/checked.h"
#include "base/log.h"
#include "base/options.h"
#include "base/rng.h"
#include "model/model.h"

enum { PREFILL_ROWS = 512 };

void nb_bench_options_init(nb_bench_options *o)
{
    *o = (nb_bench_options){.struct_size = sizeof *o};
}

typedef struct bench {
    const nb_model *m;
    nbi_kv_type type;
    nbi_kv kv;
    nbi_workspace *w;
    int32_t *ids, *pages;
    uint32_t *logit_rows;
    nbi_seq *seqs;
    float *logits;   /* [n_seqs][vocab] */
    nbi_draw *draws; /* [n_seqs] greedy; or NULL: the device cannot sample */
    nbi_drawn *drawn;
    size_t n_prompt, n_gen, n_seqs, pages_a_seq;
} bench;

static void bench_close(bench *b)
{
    nbi_workspace_free(b->w);
    nbi_kv_free(&b->kv);
    free(b->ids);
    free(b->pages);
    free(b->logit_rows);
    free(b->seqs);
    free(b->logits);
    free(b->draws);
    free(b->drawn);
}

static nb_status bench_open(bench *b)
{
    nb_status st;
    size_t len = b->n_prompt > b->n_gen ? b->n_prompt : b->n_gen;
    size_t rows = b->n_prompt ? (b->n_prompt < PREFILL_ROWS ? b->n_prompt : PREFILL_ROWS) : b->n_seqs;
    b->pages_a_seq = nbi_ceil_div(len, NBI_PAGE_TOKENS);
    size_t pages, bytes;
    if (!nbi_mul(b->pages_a_seq, b->n_seqs, &pages) || pages > INT32_MAX ||
        !nbi_mul(b->n_seqs * sizeof(float), b->m->cfg.vocab, &bytes))
        return nbi_fail(NB_ELIMIT, "%zu sequences of %zu tokens are too many", b->n_seqs, len);
    b->ids = malloc(rows * sizeof *b->ids);
    b->pages = malloc(pages * sizeof *b->pages);
    b->logit_rows = malloc(b->n_seqs * sizeof *b->logit_rows);
    b->seqs = malloc(b->n_seqs * sizeof *b->seqs);
    if (nbi_can_sample(b->m)) {
        b->draws = calloc(b->n_seqs, sizeof *b->draws);
        b->drawn = malloc(b->n_seqs * sizeof *b->drawn);
    } else
        b->logits = malloc(bytes);
    if (!b->ids || !b->pages || !b->logit_rows || !b->seqs || !(b->logits || (b->draws && b->drawn)))
        return nbi_fail_nomem("the benchmark", bytes);
    for (size_t i = 0; i < pages; i++)
        b->pages[i] = (int32_t)i;
    NB_TRY(nbi_kv_create(&b->kv, b->m, (uint32_t)pages, b->type));
    NB_TRY(nbi_workspace_create(
        &b->w, b->m, &(nbi_workspace_limits){.rows = rows, .seqs = b->n_seqs, .logits = b->n_seqs, .context = len}));
done:
    return st;
}

static int32_t token(const bench *b, size_t i)
{
    return (int32_t)(nbi_rng(42, i) % b->m->cfg.vocab);
}

static nb_status forward(bench *b, const nbi_batch *batch)
{
    nb_status st = nbi_forward(b->m, &b->kv, b->w, batch, b->logits, NULL, NULL);
    return st == NB_OK && b->draws ? nbi_forward_sample(b->w, b->draws, batch->n_logits, b->drawn) : st;
}

static nb_status prefill(bench *b)
{
    nb_status st = NB_OK;
    for (size_t at = 0; at < b->n_prompt; at += PREFILL_ROWS) {
        size_t rows = b->n_prompt - at < PREFILL_ROWS ? b->n_prompt - at : PREFILL_ROWS;
        for (size_t r = 0; r < rows; r++)
            b->ids[r] = token(b, at + r);
        nbi_seq s = {.n_rows = (uint32_t)rows, .pos0 = (uint32_t)at, .pages = b->pages};
        uint32_t last = (uint32_t)rows - 1;
        nbi_batch batch = {.rows = rows,
                           .n_seqs = 1,
                           .n_logits = at + rows == b->n_prompt,
                           .ids = b->ids,
                           .seqs = &s,
                           .logit_rows = &last};
        NB_TRY(forward(b, &batch));
    }
done:
    return st;
}

static nb_status decode(bench *b)
{
    nb_status st = NB_OK;
    for (size_t t = 0; t < b->n_gen; t++) {
        for (size_t s = 0; s < b->n_seqs; s++) {
            b->ids[s] = token(b, t * b->n_seqs + s);
            b->seqs[s] = (nbi_seq){
                .row0 = (uint32_t)s, .n_rows = 1, .pos0 = (uint32_t)t, .pages = b->pages + s * b->pages_a_seq};
            b->logit_rows[s] = (uint32_t)s;
        }
        nbi_batch batch = {.rows = b->n_seqs,
                           .n_seqs = b->n_seqs,
                           .n_logits = b->n_seqs,
                           .ids = b->ids,
                           .seqs = b->seqs,
                           .logit_rows = b->logit_rows};
        NB_TRY(forward(b, &batch));
    }
done:
    return st;
}

/* What the steps of a test cannot do without: see above. */
typedef struct work {
    double bytes, ops;
} work;

static void add_linear(work *w, const nb_model *m, const nbi_linear *l, size_t n, size_t k, double read, double used)
{
    w->bytes += read * (double)m->be->ops->linear_bytes(l);
    w->ops += used * 2 * (double)n * (double)k;
}

/* The layers' part in a step of `rows` tokens. */
static work layers_of(const nb_model *m, double rows)
{
    const nbi_config *c = &m->cfg;
    const double share = c->n_experts ? (double)c->top_k / c->n_experts : 0; /* of the experts, for a token */
    const double read = 1 - pow(1 - share, rows);                            /* an expert is chosen at all */
    work w = {0};
    for (uint32_t i = 0; i < c->n_layers; i++) {
        const nbi_layer *l = &m->layers[i];
        for (int p = 0; p < NBI_N_PROJ; p++) {
            size_t n, k;
            nbi_proj_shape(c, (nbi_proj)p, &n, &k);
            if (l->proj[p])
                add_linear(&w, m, l->proj[p], n, k, 1, rows);
            for (uint32_t e = 0; l->expert && p >= NBI_GATE && e < c->n_experts; e++)
                add_linear(&w, m, l->expert[e * 3 + (uint32_t)(p - NBI_GATE)], n, k, read, rows * share);
        }
        if (l->router)
            add_linear(&w, m, l->router, c->n_experts, c->hidden, 1, rows);
    }
    return w;
}

static work work_of(const bench *b)
{
    const work head = {(double)b->m->be->ops->linear_bytes(b->m->head), 2.0 * b->m->cfg.vocab * b->m->cfg.hidden};
    const double kv = (double)nbi_kv_page_bytes(&b->m->cfg, b->type) / NBI_PAGE_TOKENS, seqs = (double)b->n_seqs;
    work all = {0};
    for (size_t at = 0; at < b->n_prompt; at += PREFILL_ROWS) {
        const size_t rows = b->n_prompt - at < PREFILL_ROWS ? b->n_prompt - at : PREFILL_ROWS;
        const bool last = at + rows == b->n_prompt;
        const work layers = layers_of(b->m, (double)rows);
        all.bytes += layers.bytes + (last ? head.bytes : 0) + kv * (double)(at + rows);
        all.ops += layers.ops + (last ? head.ops : 0);
    }
    const work layers = layers_of(b->m, seqs);
    for (size_t t = 0; t < b->n_gen; t++) {
        all.bytes += layers.bytes + head.bytes + kv * seqs * (double)(t + 1);
        all.ops += layers.ops + head.ops * seqs;
    }
    return all;
}

/* The roofs and the shares of them that were reached; nothing where there are none. */
static void add_roofs(json_t *row, const bench *b, const nbi_roofs *roofs, double seconds)
{
    const work w = work_of(b);
    if (roofs->read > 0) {
        json_object_set_new(row, "mem_gbs", json_real(roofs->read / 1e9));
        json_object_set_new(row, "pct_mem", json_real(100 * w.bytes / seconds / roofs->read));
    }
    if (roofs->int8 > 0) {
        json_object_set_new(row, "int8_gops", json_real(roofs->int8 / 1e9));
        json_object_set_new(row, "pct_int8", json_real(100 * w.ops / seconds / roofs->int8));
    }
}

static void mean_and_deviation(const double *x, size_t n, double *mean, double *dev)
{
    double sum = 0, sq = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i];
    *mean = sum / (double)n;
    for (size_t i = 0; i < n; i++)
        sq += (x[i] - *mean) * (x[i] - *mean);
    *dev = n > 1 ? sqrt(sq / (double)(n - 1)) : 0;
}

static json_t *row(const bench *b, const nbi_roofs *roofs, const double *seconds, size_t n)
{
    nb_model_info info = {.struct_size = sizeof info};
    char test[64], when[32];
    double ns[1024], ts[1024], avg_ns, dev_ns, avg_ts, dev_ts;
    double tokens = (double)(b->n_prompt ? b->n_prompt : b->n_gen * b->n_seqs);
    json_t *samples_ns = json_array(), *samples_ts = json_array();
    time_t now = time(NULL);
    struct tm tm;
    (void)nb_model_get_info(b->m, &info);
    for (size_t i = 0; i < n; i++) {
        ns[i] = seconds[i] * 1e9;
        ts[i] = tokens / seconds[i];
        json_array_append_new(samples_ns, json_integer((json_int_t)ns[i]));
        json_array_append_new(samples_ts, json_real(ts[i]));
    }
    mean_and_deviation(ns, n, &avg_ns, &dev_ns);
    mean_and_deviation(ts, n, &avg_ts, &dev_ts);
    if (b->n_prompt)
        snprintf(test, sizeof test, "pp%zu", b->n_prompt);
    else if (b->n_seqs == 1)
        snprintf(test, sizeof test, "tg%zu", b->n_gen);
    else
        snprintf(test, sizeof test, "tg%zu x%zu", b->n_gen, b->n_seqs);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &tm));
    json_t *j = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:s, s:I, s:I, s:I, s:s, s:I, s:I, s:f, s:f, s:o, s:o}",
                          "build_number", nb_version(), "model_filename", b->m->path, "model_type", info.name, "scheme",
                          info.scheme, "backends", info.device, "model_size", (json_int_t)info.weight_bytes,
                          "model_n_params", (json_int_t)info.n_params, "test", test, "n_prompt",
                          (json_int_t)b->n_prompt, "n_gen", (json_int_t)b->n_gen, "n_seqs", (json_int_t)b->n_seqs,
                          "test_time", when, "avg_ns", (json_int_t)avg_ns, "stddev_ns", (json_int_t)dev_ns, "avg_ts",
                          avg_ts, "stddev_ts", dev_ts, "samples_ns", samples_ns, "samples_ts", samples_ts);
    json_t *how = json_pack("{s:i, s:i, s:i, s:s, s:s, s:i}", "n_threads", (int)b->m->be->threads, "n_batch",
                            PREFILL_ROWS, "n_ubatch", PREFILL_ROWS, "type_k", nbi_kv_type_name(b->type), "type_v",
                            nbi_kv_type_name(b->type), "n_depth", 0);
    if (j && how)
        json_object_update(j, how);
    json_decref(how);
    if (j)
        add_roofs(j, b, roofs, avg_ns / 1e9);
    return j;
}

/* The roofs, memory's by reading the layers' weights. */
static nb_status measure_roofs(const nb_model *m, nbi_roofs *out)
{
    const size_t most = (size_t)m->cfg.n_layers * NBI_N_PROJ + 1;
    const nbi_linear **l = malloc(most * sizeof *l);
    size_t n = 0;
    if (!l)
        return nbi_fail_nomem("the benchmark", most * sizeof *l);
    for (uint32_t i = 0; i < m->cfg.n_layers; i++)
        for (int p = 0; p < NBI_N_PROJ; p++)
            if (m->layers[i].proj[p])
                l[n++] = m->layers[i].proj[p];
    l[n++] = m->head;
    nb_status st = m->be->ops->roofs(m->be, l, n, out);
    free((void *)l);
    return st;
}

/* One line of the table. */
static nb_status measure(const nb_model *m, nbi_kv_type kv, size_t n_prompt, size_t n_gen, size_t n_seqs, uint32_t reps,
                         json_t *out, const nb_callbacks *cb)
{
    bench b = {.m = m, .type = kv, .n_prompt = n_prompt, .n_gen = n_gen, .n_seqs = n_seqs};
    double seconds[1024];
    nbi_roofs roofs = {0};
    nb_status st;
    if (n_prompt > m->cfg.max_context || n_gen > m->cfg.max_context)
        NB_TRY(nbi_fail(NB_EINVAL, "a test of %zu tokens, expected at most the model's context of %u",
                        n_prompt > n_gen ? n_prompt : n_gen, m->cfg.max_context));
    if (m->be->ops->roofs)
        NB_TRY(measure_roofs(m, &roofs));
    NB_TRY(bench_open(&b));
    for (uint32_t i = 0; i <= reps; i++) { /* the first one is the warm-up */
        if (nbi_progress(cb, n_prompt ? "bench prefill" : "bench decode", "runs", i, reps + 1, 0))
            NB_TRY(nbi_fail(NB_ECANCELLED, "the benchmark was cancelled"));
        double start = nbi_now();
        NB_TRY(n_prompt ? prefill(&b) : decode(&b));
        if (i)
            seconds[i - 1] = nbi_now() - start;
    }
    json_t *r = row(&b, &roofs, seconds, reps);
    if (!r || json_array_append_new(out, r) != 0)
        st = nbi_fail_nomem("the benchmark", 0);
done:
    bench_close(&b);
    return st;
}

nb_status nb_bench(const nb_model *m, const nb_bench_options *options, char **json)
{
    static const uint32_t pp[] = {128}, tg[] = {32}, one[] = {1};
    nb_status st;
    json_t *out = json_array();
    nb_bench_options o;
    nbi_kv_type kv = NBI_KV_F32;
    if (!m || !json)
        return nbi_fail(NB_EINVAL, "nb_bench: model and json must not be NULL");
    *json = NULL;
    nb_bench_options_init(&o);
    NB_TRY(nbi_take_options(&o, sizeof o, options, "nb_bench_options"));
    NB_TRY(nbi_kv_option(&kv, m->be, o.kv_dtype));
    if (!o.n_prompt && !o.n_gen) {
        o.prompt = pp;
        o.gen = tg;
        o.n_prompt = o.n_gen = 1;
    }
    if (!o.n_batch) {
        o.batch = one;
        o.n_batch = 1;
    }
    if (!o.repetitions)
        o.repetitions = 5;
    if (o.repetitions > 1024)
        NB_TRY(nbi_fail(NB_EINVAL, "%u repetitions, expected 1 to 1024", o.repetitions));
    for (size_t i = 0; i < o.n_prompt; i++)
        if (o.prompt[i])
            NB_TRY(measure(m, kv, o.prompt[i], 0, 1, o.repetitions, out, &o.callbacks));
    for (size_t i = 0; i < o.n_gen; i++)
        for (size_t b = 0; o.gen[i] && b < o.n_batch; b++) {
            if (o.batch[b] < 1 || o.batch[b] > 65536)
                NB_TRY(nbi_fail(NB_EINVAL, "a batch of %u, expected 1 to 65536", o.batch[b]));
            NB_TRY(measure(m, kv, 0, o.gen[i], o.batch[b], o.repetitions, out, &o.callbacks));
        }
    if (!(*json = json_dumps(out, JSON_INDENT(2))))
        st = nbi_fail_nomem("the benchmark", 0);
done:
    json_decref(out);
    return st;
}
