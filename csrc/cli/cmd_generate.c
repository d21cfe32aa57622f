#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"

typedef struct result {
    json_t *tokens, *logprobs, *text; /* for --json; text is a list of pieces */
    nb_finish finish;
    uint32_t n_prompt, n_output;
    double first, last; /* seconds after submit: first token, end */
    bool failed;
} result;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static json_t *top_json(const nb_event *e)
{
    json_t *top = json_array();
    for (size_t i = 0; i < e->n_top; i++)
        json_array_append_new(top,
                              json_pack("{s:i, s:f}", "token", e->top[i].token, "logprob", (double)e->top[i].logprob));
    return json_pack("{s:i, s:f, s:o}", "token", e->token, "logprob", (double)e->logprob, "top", top);
}

static void take_event(const cli_command *c, const nb_event *e, result *r, bool json, bool logprobs, double start)
{
    if (e->type == NB_EVENT_FAILED) {
        cli_progress_end();
        fprintf(stderr, "nibble %s: %s\n", c->name, e->error);
        r->failed = true;
        return;
    }
    if (e->type == NB_EVENT_TOKEN) {
        if (r->first == 0)
            r->first = now() - start;
        json_array_append_new(r->tokens, json_integer(e->token));
        if (logprobs)
            json_array_append_new(r->logprobs, top_json(e));
    }
    if (json)
        json_array_append_new(r->text, json_stringn(e->text, e->text_bytes));
    else if (e->text_bytes) {
        fwrite(e->text, 1, e->text_bytes, stdout);
        fflush(stdout);
    }
    r->n_prompt = e->n_prompt;
    r->n_output = e->n_output;
    r->finish = e->finish;
    r->last = now() - start;
}

/* Steps until the request has ended; an interrupt cancels it. */
static int drive(const cli_command *c, nb_engine *e, uint64_t id, result *r, bool json, bool logprobs)
{
    double start = now();
    const nb_event *ev;
    size_t n;
    bool cancelled = false;
    while (!r->finish && !r->failed) {
        if (cli_interrupted() && !cancelled) {
            nb_engine_cancel(e, id);
            cancelled = true;
        }
        if (nb_engine_step(e, &ev, &n) != NB_OK)
            return cli_failed(c);
        for (size_t i = 0; i < n; i++)
            take_event(c, &ev[i], r, json, logprobs, start);
    }
    return r->failed || cancelled ? EXIT_WORK : EXIT_OK;
}

static void print_json(const result *r, bool logprobs)
{
    size_t i, bytes = 0;
    json_t *p;
    json_array_foreach(r->text, i, p) bytes += json_string_length(p);
    char *text = calloc(1, bytes + 1);
    if (!text)
        return;
    bytes = 0;
    json_array_foreach(r->text, i, p)
    {
        memcpy(text + bytes, json_string_value(p), json_string_length(p));
        bytes += json_string_length(p);
    }
    double gen = r->last - r->first;
    json_t *j = json_pack("{s:o, s:O, s:s, s:i, s:i, s:f, s:f}", "text", json_stringn(text, bytes), "tokens", r->tokens,
                          "finish_reason", r->finish == NB_FINISH_STOP ? "stop" : "length", "prompt_tokens",
                          (int)r->n_prompt, "completion_tokens", (int)r->n_output, "seconds_to_first_token", r->first,
                          "decode_tokens_per_second", gen > 0 && r->n_output > 1 ? (r->n_output - 1) / gen : 0.0);
    if (logprobs)
        json_object_set(j, "logprobs", r->logprobs);
    cli_print_value(j);
    free(text);
}

/* The prompt as ids: plain text with BOS, or one user message through the chat template. */
static nb_status encode(const nb_tokenizer *t, const char *prompt, bool chat, int32_t **ids, size_t *n)
{
    if (!chat)
        return nb_tokenize(t, prompt, strlen(prompt), NB_TOKENIZE_SPECIAL, ids, n);
    json_t *m = json_pack("[{s:s, s:s}]", "role", "user", "content", prompt);
    char *messages = m ? json_dumps(m, 0) : NULL, *text = NULL;
    nb_status st = nb_chat_render(t, messages ? messages : "", 1, &text);
    if (st == NB_OK)
        st = nb_tokenize(t, text, strlen(text), 0, ids, n);
    nb_free(text);
    free(messages);
    json_decref(m);
    return st;
}

static int run(const cli_command *c, int argc, char **argv)
{
    const char *model[1] = {NULL}, *prompt = NULL, *kv = NULL;
    cli_model_flags f = {0};
    cli_strings stop = {0};
    int64_t max_tokens = 128, seed = 0, top_k = 0, logprobs = -1;
    double temp = 0, top_p = 1, min_p = 0, repeat = 1, presence = 0, frequency = 0;
    bool json = false, chat = false, ignore_eos = false;
    const cli_flag flags[] = {
        {"--prompt", "-p", CLI_STRING, &prompt, "TEXT", "the prompt", 0, 0},
        {"--max-tokens", "-n", CLI_INT, &max_tokens, "N", "tokens to generate (default 128)", 1, 1 << 24},
        {"--temp", NULL, CLI_DOUBLE, &temp, "T", "temperature, 0: greedy (default 0)", 0, 100},
        {"--top-k", NULL, CLI_INT, &top_k, "K", "keep the K best, 0: all (default 0)", 0, 1 << 22},
        {"--top-p", NULL, CLI_DOUBLE, &top_p, "P", "nucleus (default 1)", 0, 1},
        {"--min-p", NULL, CLI_DOUBLE, &min_p, "P", "keep p >= P * max p (default 0)", 0, 1},
        {"--repeat-penalty", NULL, CLI_DOUBLE, &repeat, "R", "CTRL's repetition penalty (default 1)", 0, 100},
        {"--presence-penalty", NULL, CLI_DOUBLE, &presence, "X", "as OpenAI defines it (default 0)", -2, 2},
        {"--frequency-penalty", NULL, CLI_DOUBLE, &frequency, "X", "as OpenAI defines it (default 0)", -2, 2},
        {"--seed", NULL, CLI_INT, &seed, "S", "of the random numbers (default 0)", 0, 9e18},
        {"--stop", NULL, CLI_STRINGS, &stop, "TEXT", "stop before this text; may be repeated", 0, 0},
        {"--logprobs", NULL, CLI_INT, &logprobs, "K", "with --json: K alternatives a token", 0, 20},
        {"--chat", NULL, CLI_BOOL, &chat, NULL, "put the prompt through the model's chat template", 0, 0},
        {"--ignore-eos", NULL, CLI_BOOL, &ignore_eos, NULL, "go on after the end of the text", 0, 0},
        CLI_KV_FLAG(kv),
        {"--json", NULL, CLI_BOOL, &json, NULL, "print JSON", 0, 0},
        CLI_MODEL_FLAGS(f),
        {0}};
    int rc = cli_parse(c, argc, argv, flags, model, 1, 1);
    if (rc >= 0)
        return rc;
    if (!prompt)
        return cli_usage_error(c, "-p TEXT is missing");
    if (logprobs >= 0 && !json)
        return cli_usage_error(c, "--logprobs needs --json to show them");
    nb_model *m = cli_load_model(c, model[0], &f);
    if (!m)
        return EXIT_WORK;
    nb_engine *e = NULL;
    nb_engine_options eo;
    nb_request r;
    int32_t *ids = NULL;
    uint64_t id;
    result res = {.tokens = json_array(), .logprobs = json_array(), .text = json_array()};
    nb_engine_options_init(&eo);
    eo.max_batch = 1;
    eo.kv_dtype = kv;
    nb_request_init(&r);
    rc = EXIT_WORK;
    const nb_tokenizer *t = nb_model_tokenizer(m);
    if (!t) {
        fprintf(stderr, "nibble generate: %s has no tokenizer.json\n", model[0]);
        goto done;
    }
    if (encode(t, prompt, chat, &ids, &r.n_prompt) != NB_OK || nb_engine_create(&e, m, &eo) != NB_OK) {
        cli_failed(c);
        goto done;
    }
    r.prompt = ids;
    r.max_tokens = (uint32_t)max_tokens;
    r.ignore_eos = ignore_eos;
    r.sampling.temperature = (float)temp;
    r.sampling.top_k = (int32_t)top_k;
    r.sampling.top_p = (float)top_p;
    r.sampling.min_p = (float)min_p;
    r.sampling.repetition_penalty = (float)repeat;
    r.sampling.presence_penalty = (float)presence;
    r.sampling.frequency_penalty = (float)frequency;
    r.sampling.seed = (uint64_t)seed;
    r.stop = stop.v;
    r.n_stop = stop.n;
    r.logprobs = (int32_t)logprobs;
    if (nb_engine_submit(e, &r, NULL, &id) != NB_OK) {
        cli_failed(c);
        goto done;
    }
    rc = drive(c, e, id, &res, json, logprobs >= 0);
    if (json && rc == EXIT_OK)
        print_json(&res, logprobs >= 0);
    else if (!json)
        printf("\n");
done:
    json_decref(res.tokens);
    json_decref(res.logprobs);
    json_decref(res.text);
    nb_free(ids);
    nb_engine_free(e);
    nb_model_free(m);
    return rc;
}

const cli_command cli_generate = {"generate", "continue a text", "MODEL -p TEXT [flags]",
                                  "  nibble generate llama-3-8b-w4 -p \"The capital of France is\" -n 32", run};
