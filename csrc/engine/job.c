/* nb_run(): a batch job.  The input streams by, at most twice the batch is under way, every finished row is appended at
 * once.  A row can fail; only the engine, the disk or the caller can end the job, and then it can be resumed.
 *
 *     check the input -> lock and read the output -> until all rows are done: admit, step, write
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "backend/kv.h"
#include "base/options.h"
#include "base/checked.h"
#include "base/log.h"
#include "base/utf8.h"
#include "engine/job.h"
#include "model/model.h"

#define DEFAULT_BATCH      32
#define DEFAULT_QUEUE      65536
#define DEFAULT_MAX_TOKENS 128

void nb_run_options_init(nb_run_options *o)
{
    *o = (nb_run_options){.struct_size = sizeof *o};
    nb_engine_options_init(&o->engine);
}

/* A row under way.  The engine's events carry its address. */
typedef struct row {
    struct row *next_free;
    bool active;
    uint64_t number, engine_id;
    json_t *custom_id;
    nbi_endpoint endpoint;
    nbi_answer answer;
} row;

typedef struct job {
    const nb_model *m;
    nb_run_options o;
    nbi_kv_type kv;
    nbi_openai_env env;
    nbi_job_input input;
    nbi_job_log log;
    nbi_lines lines;
    bool more; /* lines left */
    nb_engine *engine;
    row *rows, *free_rows;
    size_t n_rows, n_active;
    nbi_str line; /* the output row that is being built */
    nb_run_summary sum;
    uint64_t tokens; /* generated in this run, for the rate */
    double t0;       /* of the first step */
    char model_name[256];
} job;

/* ---- options ------------------------------------------------------------------------------------------------------ */

static bool same_file(const char *a, const char *b)
{
    struct stat x, y;
    if (!a || !b)
        return false;
    if (strcmp(a, b) == 0)
        return true;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static nb_status check_options(const nb_run_options *o)
{
    nbi_endpoint e;
    if (!o->input || !*o->input || !o->output || !*o->output)
        return nbi_fail(NB_EINVAL, "run: needs an input file and an output file");
    if (same_file(o->input, o->output) || same_file(o->input, o->errors) || same_file(o->output, o->errors))
        return nbi_fail(NB_EINVAL, "%s: is named twice; input, output and errors must be different files",
                        same_file(o->output, o->errors) ? o->output : o->input);
    if (o->resume && o->overwrite)
        return nbi_fail(NB_EINVAL, "--resume and --overwrite exclude each other");
    if (o->retry_failed && !o->resume)
        return nbi_fail(NB_EINVAL, "--retry-failed works with --resume only");
    if (o->shard_count && o->shard_index >= o->shard_count)
        return nbi_fail(NB_EINVAL, "--shard is %u/%u, expected an index from 0 to %u", o->shard_index, o->shard_count,
                        o->shard_count - 1);
    if (o->endpoint && !nbi_endpoint_from_url(o->endpoint, &e))
        return nbi_fail(NB_EINVAL, "--endpoint is \"%s\", expected %s or %s", o->endpoint,
                        nbi_endpoint_url(NBI_COMPLETIONS), nbi_endpoint_url(NBI_CHAT));
    if (o->default_max_tokens > 0x7fffffff)
        return nbi_fail(NB_EINVAL, "--max-tokens is %u, expected at most %d", o->default_max_tokens, 0x7fffffff);
    struct stat s;
    if (!o->resume && !o->overwrite && stat(o->output, &s) == 0) /* again under the lock; here before the long check */
        return nbi_fail(NB_EEXIST, "%s: exists already; continue it with --resume or replace it with --overwrite",
                        o->output);
    return NB_OK;
}

static nb_status read_options(job *j, const nb_model *m, const nb_run_options *o)
{
    if (!m || !o)
        return nbi_fail(NB_EINVAL, "run: needs a model and options made by nb_run_options_init()");
    j->m = m;
    nb_run_options_init(&j->o);
    nb_status st = nbi_take_options(&j->o, sizeof j->o, o, "nb_run_options");
    if (st != NB_OK)
        return st;
    if (j->o.engine.struct_size == 0)
        nb_engine_options_init(&j->o.engine);
    if (!j->o.engine.callbacks.log) {
        j->o.engine.callbacks.log = j->o.callbacks.log;
        j->o.engine.callbacks.user = j->o.callbacks.user;
    }
    if (!j->o.engine.max_batch)
        j->o.engine.max_batch = DEFAULT_BATCH;
    if (!j->o.default_max_tokens)
        j->o.default_max_tokens = DEFAULT_MAX_TOKENS;
    if ((st = nbi_kv_option(&j->kv, m->be, j->o.engine.kv_dtype)) != NB_OK)
        return st;
    if (!m->tok)
        return nbi_fail(NB_EUNSUPPORTED, "%s: has no tokenizer.json, which a job needs", m->path);
    uint32_t context = j->o.engine.max_context;
    if (context == 0 || context > m->cfg.max_context)
        context = m->cfg.max_context;
    /* A cache that the caller made smaller than the context is what a sequence may hold. */
    if (j->o.engine.kv_pages && j->o.engine.kv_pages < nbi_ceil_div(context, NBI_PAGE_TOKENS))
        context = j->o.engine.kv_pages * NBI_PAGE_TOKENS;
    j->env = (nbi_openai_env){
        .tok = m->tok, .vocab = m->cfg.vocab, .max_context = context, .default_max_tokens = j->o.default_max_tokens};
    return check_options(&j->o);
}

/* The folder's name is the model's, as with other servers; JSON needs it to be UTF-8. */
static void name_model(job *j)
{
    const char *p = j->m->path;
    size_t n = strlen(p);
    while (n > 0 && p[n - 1] == '/')
        n--;
    size_t from = n;
    while (from > 0 && p[from - 1] != '/')
        from--;
    snprintf(j->model_name, sizeof j->model_name, "%.*s", (int)(n - from), p + from);
    size_t len = strlen(j->model_name);
    if (len == 0 || nbi_utf8_check(j->model_name, len) != len)
        snprintf(j->model_name, sizeof j->model_name, "model");
}

/* What decides the bytes of the rows.  max_batch, pages and threads do not. */
static json_t *make_header(const job *j)
{
    const nb_run_options *o = &j->o;
    json_t *h = json_object();
    int bad = json_object_set_new(h, "nibble_job", json_integer(1));
    bad |= json_object_set_new(h, "nibble", json_string(NIBBLE_VERSION));
    bad |= json_object_set_new(h, "model", json_string(j->model_name));
    bad |= json_object_set_new(h, "model_hash", json_sprintf("%016llx", (unsigned long long)j->m->hash));
    bad |= json_object_set_new(h, "input_bytes", json_integer((json_int_t)j->input.bytes));
    bad |= json_object_set_new(h, "input_hash", json_sprintf("%016llx", (unsigned long long)j->input.hash));
    bad |= json_object_set_new(h, "endpoint", o->endpoint ? json_string(o->endpoint) : json_null());
    bad |= json_object_set_new(h, "default_max_tokens", json_integer(o->default_max_tokens));
    bad |= json_object_set_new(h, "max_context", json_integer(j->env.max_context));
    bad |= json_object_set_new(h, "kv_dtype", json_string(nbi_kv_type_name(j->kv)));
    bad |= json_object_set_new(
        h, "shard", json_sprintf("%u/%u", o->shard_count ? o->shard_index : 0, o->shard_count ? o->shard_count : 1));
    bad |= json_object_set_new(h, "errors_apart", json_boolean(o->errors != NULL));
    if (bad) {
        json_decref(h);
        return NULL;
    }
    return h;
}

/* Paths may change between runs (a copied folder, another mount), the content may not. */
static json_t *make_notes(const job *j)
{
    json_t *notes = json_object(), *input = json_string(j->o.input), *path = json_string(j->m->path);
    int bad = json_object_set_new(notes, "input", input ? input : json_null());
    bad |= json_object_set_new(notes, "model_path", path ? path : json_null());
    if (bad) {
        json_decref(notes);
        return NULL;
    }
    return notes;
}

static nb_status open_log(job *j)
{
    nb_status st;
    json_t *header = make_header(j), *notes = make_notes(j);
    if (!header || !notes)
        st = nbi_fail_nomem("the job header", 0);
    else
        st = nbi_job_log_open(&j->log, &j->o, header, notes, j->input.n_lines);
    json_decref(header);
    json_decref(notes);
    return st;
}

/* ---- rows --------------------------------------------------------------------------------------------------------- */

static nb_status make_rows(job *j)
{
    /* Never more than the engine's queue, so that NB_ELIMIT from submit is about the request itself. */
    uint64_t n = (uint64_t)j->o.engine.max_batch * 2;
    uint64_t queue = j->o.engine.max_queue ? j->o.engine.max_queue : DEFAULT_QUEUE;
    j->n_rows = (size_t)(n < queue ? n : queue);
    if (!(j->rows = calloc(j->n_rows, sizeof *j->rows)))
        return nbi_fail_nomem("the rows under way", j->n_rows * sizeof *j->rows);
    for (size_t i = j->n_rows; i-- > 0;) {
        j->rows[i].next_free = j->free_rows;
        j->free_rows = &j->rows[i];
    }
    return NB_OK;
}

static void release_row(job *j, row *r)
{
    json_decref(r->custom_id);
    nbi_answer_free(&r->answer);
    *r = (row){.next_free = j->free_rows};
    j->free_rows = r;
    j->n_active--;
}

/* Appends one output row; `body` is stolen. */
static nb_status write_row(job *j, uint64_t number, const json_t *custom_id, int http, json_t *body)
{
    char id[40];
    nb_status st;
    nbi_job_log_row_id(&j->log, number, id);
    nbi_str_clear(&j->line);
    NB_TRY(nbi_row_write(&j->line, id, custom_id, http, body));
    NB_TRY(nbi_job_log_append(&j->log, j->line.data, j->line.len, http != 200));
    if (http == 200)
        j->sum.completed++;
    else
        j->sum.failed++;
done:
    return st;
}

static nb_status write_error(job *j, uint64_t number, const json_t *custom_id, const nbi_api_error *err)
{
    return write_row(j, number, custom_id, err->http, nbi_api_error_body(err));
}

static nb_status write_answer(job *j, row *r)
{
    char id[40];
    nbi_job_log_row_id(&j->log, r->number, id);
    nbi_answer_names names = {.id = id + strlen("batch_req_"), .model = j->model_name, .created = j->log.created};
    json_t *body = nbi_answer_body(&r->answer, r->endpoint, &names, j->m->tok);
    if (!body) {
        nbi_api_error err;
        nbi_api_fail(&err, 500, "internal_error", NULL,
                     "the answer cannot be written as JSON: out of memory, or not UTF-8");
        return write_error(j, r->number, r->custom_id, &err);
    }
    j->sum.prompt_tokens += r->answer.n_prompt;
    j->sum.output_tokens += r->answer.n_output;
    return write_row(j, r->number, r->custom_id, 200, body);
}

/* ---- admission ------------------------------------------------------------------------------------------------------ */

/* What the engine says of a request: its fault, or the end of the job? */
static nb_status refused(nb_status st, nbi_api_error *err)
{
    char why[900];
    if (st != NB_EINVAL && st != NB_ELIMIT && st != NB_EUNSUPPORTED)
        return st;
    snprintf(why, sizeof why, "%s", nb_last_error());
    nbi_api_fail(err, 400, st == NB_ELIMIT ? "context_length_exceeded" : "invalid_value", NULL, "%s", why);
    return NB_OK;
}

static nb_status submit(job *j, const nbi_line *line, const json_t *custom_id, nbi_endpoint endpoint,
                        const nbi_openai_request *q, nbi_api_error *err)
{
    row *r = j->free_rows;
    j->free_rows = r->next_free;
    j->n_active++;
    *r = (row){.active = true,
               .number = line->number,
               .custom_id = json_incref((json_t *)custom_id),
               .endpoint = endpoint,
               .answer = {.logprobs = q->request.logprobs}};
    nb_status st = nb_engine_submit(j->engine, &q->request, r, &r->engine_id);
    if (st == NB_OK)
        return NB_OK;
    st = refused(st, err);
    release_row(j, r);
    return st;
}

/* One line becomes a request of the engine or an error row. */
static nb_status admit_line(job *j, const nbi_line *line)
{
    nbi_api_error err = {0};
    nbi_endpoint endpoint = NBI_COMPLETIONS;
    nbi_openai_request q = {0};
    const json_t *body = NULL, *custom_id;
    nb_status st = NB_OK;
    json_t *parsed = nbi_row_parse(line, &err);
    custom_id = nbi_row_custom_id(parsed);
    nbi_openai_env env = j->env;
    if (custom_id) /* so that a rerun draws the same numbers */
        env.default_seed = nbi_hash(NBI_HASH_INIT, json_string_value(custom_id), json_string_length(custom_id));
    if (parsed && nbi_row_envelope(parsed, line->number, j->o.endpoint, &endpoint, &body, &err) == NB_OK &&
        nbi_openai_parse(&q, endpoint, body, &env, &err) == NB_OK)
        st = submit(j, line, custom_id, endpoint, &q, &err);
    if (st == NB_OK && err.http)
        st = write_error(j, line->number, custom_id, &err);
    nbi_openai_request_free(&q);
    json_decref(parsed);
    return st;
}

static nb_status report(job *j)
{
    double elapsed = nbi_now() - j->t0;
    uint64_t done = j->sum.skipped + j->sum.completed + j->sum.failed;
    if (!nbi_progress(&j->o.callbacks, "run", "requests", done, j->sum.total,
                      elapsed > 0 ? (double)j->tokens / elapsed : 0))
        return NB_OK;
    return nbi_fail(NB_ECANCELLED, "%s: stopped after %llu of %llu rows; resume with --resume", j->o.output,
                    (unsigned long long)done, (unsigned long long)j->sum.total);
}

/* The input is hashed again as it is read: rows of a file that changed meanwhile must not pass as one job. */
static nb_status check_unchanged(const job *j)
{
    if (j->lines.hash == j->input.hash && j->lines.offset == j->input.bytes)
        return NB_OK;
    return nbi_fail(NB_EIO, "%s: was changed while the job ran; the rows written so far belong to two different inputs",
                    j->o.input);
}

static nb_status admit(job *j)
{
    nbi_line line;
    nb_status st = NB_OK;
    while (j->more && j->free_rows) {
        NB_TRY(nbi_lines_next(&j->lines, &line, &j->more));
        if (!j->more) {
            NB_TRY(check_unchanged(j));
            break;
        }
        if (line.number % 256 == 0)
            NB_TRY(report(j));
        if (nbi_line_blank(&line) || !nbi_in_shard(&j->o, line.number) || line.number > j->input.n_lines ||
            nbi_job_log_done(&j->log, line.number))
            continue;
        NB_TRY(admit_line(j, &line));
    }
done:
    return st;
}

/* ---- events --------------------------------------------------------------------------------------------------------- */

static nb_status fail_row(job *j, row *r, nb_status why, const char *text)
{
    nbi_api_error err;
    bool theirs = why == NB_EINVAL || why == NB_ELIMIT || why == NB_EUNSUPPORTED;
    nbi_api_fail(&err, theirs ? 400 : 500, theirs ? "invalid_value" : "internal_error", NULL, "%s", text);
    return write_error(j, r->number, r->custom_id, &err);
}

static nb_status take_event(job *j, const nb_event *ev)
{
    row *r = ev->user;
    nb_status st;
    if (!r->active)
        return nbi_fail(NB_EINTERNAL, "run: an event for request %llu came after its last", (unsigned long long)ev->id);
    if (ev->type == NB_EVENT_FAILED) {
        st = fail_row(j, r, ev->status, ev->error ? ev->error : nb_status_text(ev->status));
    } else {
        nbi_answer_event(&r->answer, ev);
        if (ev->type == NB_EVENT_TOKEN) {
            j->tokens++;
            return NB_OK;
        }
        st = ev->finish == NB_FINISH_CANCELLED ? fail_row(j, r, NB_EINTERNAL, "the request was cancelled")
                                               : write_answer(j, r);
    }
    release_row(j, r);
    return st;
}

static nb_status step(job *j)
{
    const nb_event *events;
    size_t n;
    nb_status st = nb_engine_step(j->engine, &events, &n);
    for (size_t i = 0; st == NB_OK && i < n; i++)
        st = take_event(j, &events[i]);
    return st;
}

/* ---- the job -------------------------------------------------------------------------------------------------------- */

static nb_status run_rows(job *j)
{
    nb_status st;
    NB_TRY(make_rows(j));
    NB_TRY(nb_engine_create(&j->engine, j->m, &j->o.engine));
    NB_TRY(nbi_lines_open(&j->lines, j->o.input, 0, UINT64_MAX, NBI_JOB_MAX_LINE));
    j->more = true;
    j->t0 = nbi_now();
    NB_TRY(report(j));
    while (j->more || j->n_active) {
        NB_TRY(admit(j));
        if (j->n_active)
            NB_TRY(step(j));
        NB_TRY(nbi_job_log_sync(&j->log, false));
        NB_TRY(report(j));
    }
done:
    return st;
}

/* The first error stays the one that is told; what is finished reaches the disk in any case. */
static nb_status finish(job *j, nb_status st)
{
    char why[1024];
    snprintf(why, sizeof why, "%s", nb_last_error());
    for (size_t i = 0; j->engine && i < j->n_rows; i++)
        if (j->rows[i].active)
            nb_engine_cancel(j->engine, j->rows[i].engine_id);
    nb_status synced = nbi_job_log_sync(&j->log, true);
    if (synced != NB_OK && (st == NB_OK || st == NB_ECANCELLED))
        return synced;
    return st == NB_OK ? NB_OK : nbi_fail(st, "%s", why);
}

static void free_job(job *j)
{
    nb_engine_free(j->engine);
    while (j->n_active) { /* rows that were not finished */
        for (size_t i = 0; i < j->n_rows; i++)
            if (j->rows[i].active)
                release_row(j, &j->rows[i]);
    }
    free(j->rows);
    nbi_str_free(&j->line);
    nbi_lines_close(&j->lines);
    nbi_job_log_close(&j->log);
}

nb_status nb_run(const nb_model *m, const nb_run_options *o, nb_run_summary *summary)
{
    nb_status st;
    job j = {.lines = {.fd = -1}, .log = {.lock_fd = -1, .out = {.fd = -1}, .err = {.fd = -1}}};
    double begun = j.t0 = nbi_now();
    j.sum.struct_size = sizeof j.sum;
    if (summary) /* a wrong struct_size is told before any work */
        NB_TRY(nbi_give_result(summary, &j.sum, sizeof j.sum, "nb_run_summary"));
    NB_TRY(read_options(&j, m, o));
    name_model(&j);
    NB_TRY(nbi_job_input_check(&j.input, j.o.input, &j.o));
    NB_TRY(open_log(&j));
    j.sum.total = j.input.n_rows;
    j.sum.skipped = j.log.n_completed + j.log.n_failed;
    if (j.sum.skipped < j.sum.total)
        st = run_rows(&j);
    else
        (void)report(&j); /* nothing is left that could be cancelled */
    st = finish(&j, st);
done:
    j.sum.seconds = nbi_now() - begun;
    if (summary)
        (void)nbi_give_result(summary, &j.sum, sizeof j.sum, "nb_run_summary");
    free_job(&j);
    return st;
}
