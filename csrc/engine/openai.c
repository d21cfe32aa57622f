/* Request bodies of /v1/completions and /v1/chat/completions.  One table says which parameters exist, of which type and
 * in which range; a parameter that would change the result and that nibble does not have is an error, never ignored. */
#include "engine/openai.h"

#include <float.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const urls[] = {[NBI_COMPLETIONS] = "/v1/completions", [NBI_CHAT] = "/v1/chat/completions"};

const char *nbi_endpoint_url(nbi_endpoint e)
{
    return urls[e];
}

bool nbi_endpoint_from_url(const char *url, nbi_endpoint *out)
{
    for (nbi_endpoint e = NBI_COMPLETIONS; e <= NBI_CHAT; e++)
        if (strcmp(url, urls[e]) == 0) {
            *out = e;
            return true;
        }
    return false;
}

/* ---- errors ------------------------------------------------------------------------------------------------------ */

/* Through nbi_fail(), so that what a request put into a message is one line of whole UTF-8 characters. */
nb_status nbi_api_fail(nbi_api_error *e, int http, const char *code, const char *param, const char *fmt, ...)
{
    char text[sizeof e->message];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    nb_status st = nbi_fail(NB_EINVAL, "%s", text);
    snprintf(e->message, sizeof e->message, "%s", nb_last_error());
    e->http = http;
    e->type = http == 404 ? "not_found_error" : http >= 500 ? "server_error" : "invalid_request_error";
    e->code = code;
    snprintf(e->param, sizeof e->param, "%s", param ? param : "");
    return st;
}

static json_t *string_or_null(const char *s)
{
    return s && *s ? json_string(s) : json_null();
}

json_t *nbi_api_error_body(const nbi_api_error *e)
{
    json_t *o = json_object(), *inner = json_object();
    /* A name that the request chose may be cut inside a character in `param`; the message still shows it. */
    json_t *param = string_or_null(e->param);
    json_t *message = json_string(e->message);
    int bad = json_object_set_new(inner, "message", message ? message : json_string("invalid request"));
    bad |= json_object_set_new(inner, "type", json_string(e->type));
    bad |= json_object_set_new(inner, "param", param ? param : json_null());
    bad |= json_object_set_new(inner, "code", string_or_null(e->code));
    bad |= json_object_set_new(o, "error", inner);
    if (bad) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static const char *type_name(const json_t *v)
{
    static const char *const names[] = {"an object", "an array", "a string", "an integer",
                                        "a number",  "true",     "false",    "null"};
    return names[json_typeof(v)];
}

static nb_status fail_type(nbi_api_error *err, const char *param, const json_t *v, const char *expected)
{
    return nbi_api_fail(err, 400, "invalid_type", param, "'%s' is %s, expected %s", param, type_name(v), expected);
}

static nb_status fail_nomem(nbi_api_error *err)
{
    nbi_api_fail(err, 500, "out_of_memory", NULL, "out of memory while reading the request");
    return NB_ENOMEM;
}

/* ---- the table of parameters ------------------------------------------------------------------------------------- */

typedef struct args {
    double temperature, top_p, min_p, presence_penalty, frequency_penalty, repetition_penalty;
    int64_t top_k, max_tokens, max_completion_tokens, seed, logprobs, top_logprobs;
    bool want_logprobs, ignore_eos;
    const json_t *prompt, *messages, *stop;
} args;

typedef enum kind { REAL, INTEGER, BOOLEAN, VALUE, STRING, ANY, ONLY } kind;

typedef struct param {
    const char *name;
    int endpoints; /* bits of nbi_endpoint */
    kind kind;
    size_t at;        /* REAL, INTEGER, BOOLEAN, VALUE: where in struct args */
    double lo, hi;    /* REAL, INTEGER */
    const char *only; /* ONLY: a JSON array of the values that mean "off"; any other is not supported */
} param;

#define BOTH  (NBI_COMPLETIONS | NBI_CHAT)
#define AT(m) offsetof(args, m)
/* null stands for "not given" everywhere, as with OpenAI. */
static const param params[] = {
    {"prompt", NBI_COMPLETIONS, VALUE, AT(prompt), 0, 0, NULL},
    {"messages", NBI_CHAT, VALUE, AT(messages), 0, 0, NULL},
    {"stop", BOTH, VALUE, AT(stop), 0, 0, NULL},
    {"max_tokens", BOTH, INTEGER, AT(max_tokens), 1, 0x7fffffff, NULL},
    {"max_completion_tokens", NBI_CHAT, INTEGER, AT(max_completion_tokens), 1, 0x7fffffff, NULL},
    {"temperature", BOTH, REAL, AT(temperature), 0, 2, NULL},
    {"top_p", BOTH, REAL, AT(top_p), 0, 1, NULL},
    {"top_k", BOTH, INTEGER, AT(top_k), -1, 0x7fffffff, NULL},
    {"min_p", BOTH, REAL, AT(min_p), 0, 1, NULL},
    {"presence_penalty", BOTH, REAL, AT(presence_penalty), -2, 2, NULL},
    {"frequency_penalty", BOTH, REAL, AT(frequency_penalty), -2, 2, NULL},
    {"repetition_penalty", BOTH, REAL, AT(repetition_penalty), 0.01, 10, NULL},
    {"seed", BOTH, INTEGER, AT(seed), -0x1p63, 0x1p63, NULL},
    {"ignore_eos", BOTH, BOOLEAN, AT(ignore_eos), 0, 0, NULL},
    {"logprobs", NBI_COMPLETIONS, INTEGER, AT(logprobs), 0, 20, NULL},
    {"logprobs", NBI_CHAT, BOOLEAN, AT(want_logprobs), 0, 0, NULL},
    {"top_logprobs", NBI_CHAT, INTEGER, AT(top_logprobs), 0, 20, NULL},
    /* no influence on the result */
    {"model", BOTH, STRING, 0, 0, 0, NULL},
    {"user", BOTH, STRING, 0, 0, 0, NULL},
    {"metadata", BOTH, ANY, 0, 0, 0, NULL},
    {"store", BOTH, ANY, 0, 0, 0, NULL},
    {"service_tier", BOTH, ANY, 0, 0, 0, NULL},
    {"safety_identifier", BOTH, ANY, 0, 0, 0, NULL},
    {"prompt_cache_key", BOTH, ANY, 0, 0, 0, NULL},
    {"prompt_cache_retention", BOTH, ANY, 0, 0, 0, NULL},
    {"prediction", NBI_CHAT, ANY, 0, 0, 0, NULL},
    {"parallel_tool_calls", NBI_CHAT, ANY, 0, 0, 0, NULL},
    /* would change the result: accepted only where they ask for what happens anyway */
    {"n", BOTH, ONLY, 0, 0, 0, "[1]"},
    {"best_of", NBI_COMPLETIONS, ONLY, 0, 0, 0, "[1]"},
    {"stream", BOTH, ONLY, 0, 0, 0, "[false]"},
    {"stream_options", BOTH, ONLY, 0, 0, 0, "[]"},
    {"echo", NBI_COMPLETIONS, ONLY, 0, 0, 0, "[false]"},
    {"suffix", NBI_COMPLETIONS, ONLY, 0, 0, 0, "[\"\"]"},
    {"logit_bias", BOTH, ONLY, 0, 0, 0, "[{}]"},
    {"tools", NBI_CHAT, ONLY, 0, 0, 0, "[[]]"},
    {"tool_choice", NBI_CHAT, ONLY, 0, 0, 0, "[\"none\",\"auto\"]"},
    {"functions", NBI_CHAT, ONLY, 0, 0, 0, "[[]]"},
    {"function_call", NBI_CHAT, ONLY, 0, 0, 0, "[\"none\",\"auto\"]"},
    {"response_format", BOTH, ONLY, 0, 0, 0, "[{\"type\":\"text\"}]"},
    {"modalities", NBI_CHAT, ONLY, 0, 0, 0, "[[\"text\"]]"},
    {"audio", NBI_CHAT, ONLY, 0, 0, 0, "[]"},
    {"reasoning_effort", NBI_CHAT, ONLY, 0, 0, 0, "[\"none\"]"},
    {"verbosity", NBI_CHAT, ONLY, 0, 0, 0, "[\"medium\"]"},
    {"web_search_options", NBI_CHAT, ONLY, 0, 0, 0, "[]"},
};

static const param *find_param(const char *name, nbi_endpoint endpoint)
{
    for (size_t i = 0; i < sizeof params / sizeof *params; i++)
        if ((params[i].endpoints & (int)endpoint) && strcmp(params[i].name, name) == 0)
            return &params[i];
    return NULL;
}

static nb_status check_number(const param *p, const json_t *v, args *a, nbi_api_error *err)
{
    bool real = p->kind == REAL;
    if (real ? !json_is_number(v) : !json_is_integer(v))
        return fail_type(err, p->name, v, real ? "a number" : "an integer");
    double x = json_number_value(v);
    if (!(x >= p->lo && x <= p->hi))
        return nbi_api_fail(err, 400, "invalid_value", p->name, "'%s' is %.10g, expected %.10g to %.10g", p->name, x,
                            p->lo, p->hi);
    if (real)
        *(double *)((char *)a + p->at) = x;
    else
        *(int64_t *)((char *)a + p->at) = json_integer_value(v);
    return NB_OK;
}

static nb_status check_only(const param *p, const json_t *v, nbi_api_error *err)
{
    json_t *allowed = json_loads(p->only, 0, NULL);
    if (!allowed)
        return fail_nomem(err);
    bool ok = false;
    size_t i;
    json_t *a;
    json_array_foreach(allowed, i, a) ok |= json_equal(a, v) != 0;
    json_decref(allowed);
    if (ok)
        return NB_OK;
    return nbi_api_fail(err, 400, "unsupported_parameter", p->name,
                        "'%s' is not supported (only its default is); leave it out", p->name);
}

static nb_status check_param(const param *p, const json_t *v, args *a, nbi_api_error *err)
{
    switch (p->kind) {
    case REAL:
    case INTEGER:
        return check_number(p, v, a, err);
    case BOOLEAN:
        if (!json_is_boolean(v))
            return fail_type(err, p->name, v, "true or false");
        *(bool *)((char *)a + p->at) = json_is_true(v);
        return NB_OK;
    case VALUE:
        *(const json_t **)((char *)a + p->at) = v;
        return NB_OK;
    case STRING:
        return json_is_string(v) ? NB_OK : fail_type(err, p->name, v, "a string");
    case ONLY:
        return check_only(p, v, err);
    case ANY:
        break;
    }
    return NB_OK;
}

static nb_status read_args(args *a, nbi_endpoint endpoint, const json_t *body, nbi_api_error *err)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)body, key, v)
    {
        const param *p = find_param(key, endpoint);
        if (!p)
            return nbi_api_fail(err, 400, "unknown_parameter", key, "'%.200s' is not a parameter of %s", key,
                                nbi_endpoint_url(endpoint));
        nb_status st = json_is_null(v) ? NB_OK : check_param(p, v, a, err);
        if (st != NB_OK)
            return st;
    }
    if (a->max_tokens && a->max_completion_tokens)
        return nbi_api_fail(err, 400, "invalid_value", "max_tokens",
                            "'max_tokens' and 'max_completion_tokens' are both set, expected one of them");
    if (a->top_logprobs >= 0 && !a->want_logprobs)
        return nbi_api_fail(err, 400, "invalid_value", "top_logprobs",
                            "'top_logprobs' is set without 'logprobs': true");
    return NB_OK;
}

/* ---- stop strings ------------------------------------------------------------------------------------------------ */

static nb_status add_stop(nbi_openai_request *r, const json_t *v, nbi_api_error *err)
{
    if (!json_is_string(v))
        return fail_type(err, "stop", v, "a string or an array of strings");
    const char *s = json_string_value(v);
    if (json_string_length(v) == 0 || strlen(s) != json_string_length(v))
        return nbi_api_fail(err, 400, "invalid_value", "stop",
                            "'stop' holds a string that is empty or contains a NUL character");
    char *copy = strdup(s);
    if (!copy)
        return fail_nomem(err);
    r->stop[r->request.n_stop++] = copy;
    return NB_OK;
}

static nb_status read_stop(nbi_openai_request *r, const json_t *v, nbi_api_error *err)
{
    if (!v)
        return NB_OK;
    if (!json_is_array(v))
        return add_stop(r, v, err);
    if (json_array_size(v) > NBI_MAX_STOP)
        return nbi_api_fail(err, 400, "invalid_value", "stop", "'stop' has %zu strings, expected at most %d",
                            json_array_size(v), NBI_MAX_STOP);
    size_t i;
    json_t *s;
    json_array_foreach(v, i, s)
    {
        nb_status st = add_stop(r, s, err);
        if (st != NB_OK)
            return st;
    }
    return NB_OK;
}

/* ---- the prompt -------------------------------------------------------------------------------------------------- */

/* A failure of the tokenizer or the template: what the request holds is at fault, unless memory or nibble is. */
static nb_status fail_text(nbi_api_error *err, nb_status st, const char *param)
{
    bool ours = st == NB_ENOMEM || st == NB_EINTERNAL || st == NB_EIO;
    char why[800];
    snprintf(why, sizeof why, "%s", nb_last_error());
    nbi_api_fail(err, ours ? 500 : 400, st == NB_EUNSUPPORTED ? "unsupported_value" : "invalid_value", param,
                 "'%s': %s", param, why);
    return st;
}

static nb_status tokenize(nbi_openai_request *r, const nbi_openai_env *env, const char *text, size_t bytes,
                          unsigned flags, const char *param, nbi_api_error *err)
{
    nb_status st = nb_tokenize(env->tok, text, bytes, flags, &r->ids, &r->request.n_prompt);
    return st == NB_OK ? NB_OK : fail_text(err, st, param);
}

static nb_status read_ids(nbi_openai_request *r, const json_t *list, const nbi_openai_env *env, nbi_api_error *err)
{
    size_t n = json_array_size(list), i;
    json_t *v;
    if (!(r->ids = malloc(n * sizeof *r->ids)))
        return fail_nomem(err);
    json_array_foreach(list, i, v)
    {
        if (!json_is_integer(v))
            return nbi_api_fail(err, 400, "invalid_type", "prompt", "'prompt[%zu]' is %s, expected a token id", i,
                                type_name(v));
        json_int_t id = json_integer_value(v);
        if (id < 0 || id >= (json_int_t)env->vocab)
            return nbi_api_fail(err, 400, "invalid_value", "prompt", "'prompt[%zu]' is %lld, expected 0 to %lld", i,
                                (long long)id, (long long)env->vocab - 1);
        r->ids[i] = (int32_t)id;
    }
    r->request.n_prompt = n;
    return NB_OK;
}

/* A string or a list of token ids; a list that holds one such prompt is taken as that prompt. */
static nb_status read_prompt(nbi_openai_request *r, const json_t *v, const nbi_openai_env *env, nbi_api_error *err)
{
    if (!v)
        return nbi_api_fail(err, 400, "missing_required_parameter", "prompt", "'prompt' is missing");
    const json_t *first = json_array_get(v, 0);
    if (json_is_string(first) || json_is_array(first)) {
        if (json_array_size(v) != 1)
            return nbi_api_fail(err, 400, "unsupported_value", "prompt",
                                "'prompt' holds %zu prompts, expected one: give each its own row", json_array_size(v));
        v = first;
    }
    if (json_is_string(v))
        return tokenize(r, env, json_string_value(v), json_string_length(v), NB_TOKENIZE_SPECIAL, "prompt", err);
    if (!json_is_array(v))
        return fail_type(err, "prompt", v, "a string or an array of token ids");
    if (json_array_size(v) == 0)
        return nbi_api_fail(err, 400, "invalid_value", "prompt", "'prompt' is empty");
    return read_ids(r, v, env, err);
}

/* The template's result is a C string: a NUL in a message would silently end the prompt. */
static bool holds_nul(const json_t *v)
{
    const char *key;
    size_t i;
    json_t *e;
    if (json_is_string(v))
        return strlen(json_string_value(v)) != json_string_length(v);
    json_array_foreach((json_t *)v, i, e) if (holds_nul(e)) return true;
    json_object_foreach((json_t *)v, key, e) if (holds_nul(e)) return true;
    return false;
}

/* Content in parts, all of them text, as the one string that templates expect: joined by newlines, as vLLM does. */
static json_t *join_parts(const json_t *parts, size_t message, nbi_api_error *err)
{
    nbi_str s = {0};
    size_t i;
    json_t *part, *joined = NULL;
    json_array_foreach(parts, i, part)
    {
        const char *type = json_string_value(json_object_get(part, "type"));
        const json_t *text = json_object_get(part, "text");
        if (!type || strcmp(type, "text") != 0 || !json_is_string(text)) {
            nbi_api_fail(err, 400, "unsupported_value", "messages",
                         "'messages[%zu].content[%zu]' is not of type text, which is all that is supported", message,
                         i);
            goto done;
        }
        if (i)
            nbi_str_puts(&s, "\n");
        nbi_str_add(&s, json_string_value(text), json_string_length(text));
    }
    if (s.failed || !(joined = json_stringn(s.data ? s.data : "", s.len)))
        fail_nomem(err);
done:
    nbi_str_free(&s);
    return joined;
}

static nb_status check_message(json_t *list, size_t i, nbi_api_error *err)
{
    const json_t *m = json_array_get(list, i);
    if (!json_is_object(m))
        return nbi_api_fail(err, 400, "invalid_type", "messages", "'messages[%zu]' is %s, expected an object", i,
                            type_name(m));
    if (!json_is_string(json_object_get(m, "role")))
        return nbi_api_fail(err, 400, "invalid_type", "messages", "'messages[%zu].role' is missing or not a string", i);
    static const char *const calls[] = {"tool_calls", "function_call", "audio"};
    for (size_t c = 0; c < sizeof calls / sizeof *calls; c++) {
        const json_t *v = json_object_get(m, calls[c]);
        if (v && !json_is_null(v) && !(json_is_array(v) && json_array_size(v) == 0))
            return nbi_api_fail(err, 400, "unsupported_value", "messages", "'messages[%zu].%s' is not supported", i,
                                calls[c]);
    }
    const json_t *content = json_object_get(m, "content");
    if (json_is_string(content))
        return NB_OK;
    if (!json_is_array(content))
        return nbi_api_fail(err, 400, "invalid_type", "messages",
                            "'messages[%zu].content' is %s, expected a string or an array of text parts", i,
                            content ? type_name(content) : "missing");
    json_t *joined = join_parts(content, i, err);
    if (!joined)
        return NB_EINVAL;
    json_t *copy = json_copy((json_t *)m); /* the body belongs to the caller */
    int bad = json_object_set_new(copy, "content", joined);
    bad |= json_array_set_new(list, i, copy);
    return bad ? fail_nomem(err) : NB_OK;
}

static nb_status read_messages(nbi_openai_request *r, const json_t *v, const nbi_openai_env *env, nbi_api_error *err)
{
    if (!v)
        return nbi_api_fail(err, 400, "missing_required_parameter", "messages", "'messages' is missing");
    if (!json_is_array(v))
        return fail_type(err, "messages", v, "an array");
    if (json_array_size(v) == 0)
        return nbi_api_fail(err, 400, "invalid_value", "messages", "'messages' is empty");
    if (holds_nul(v))
        return nbi_api_fail(err, 400, "invalid_value", "messages", "'messages' contains a NUL character");

    nb_status st = NB_OK;
    char *json = NULL, *text = NULL;
    json_t *list = json_copy((json_t *)v);
    if (!list)
        return fail_nomem(err);
    for (size_t i = 0; i < json_array_size(list); i++)
        NB_TRY(check_message(list, i, err));
    if (!(json = json_dumps(list, JSON_COMPACT))) {
        st = fail_nomem(err);
        goto done;
    }
    if ((st = nb_chat_render(env->tok, json, 1, &text)) != NB_OK) {
        fail_text(err, st, "messages");
        goto done;
    }
    st = tokenize(r, env, text, strlen(text), 0, "messages", err);
done:
    nb_free(text);
    free(json);
    json_decref(list);
    return st;
}

/* ---- all of it ---------------------------------------------------------------------------------------------------- */

static void set_request(nbi_openai_request *r, const args *a, nbi_endpoint endpoint, const nbi_openai_env *env)
{
    nb_request *q = &r->request;
    int64_t max_tokens = a->max_tokens ? a->max_tokens : a->max_completion_tokens;
    if (!max_tokens) { /* nobody asked for this many, so the end of the context is no reason to refuse */
        max_tokens = env->default_max_tokens;
        if (q->n_prompt < env->max_context && max_tokens > (int64_t)(env->max_context - q->n_prompt))
            max_tokens = (int64_t)(env->max_context - q->n_prompt);
    }
    q->prompt = r->ids;
    q->max_tokens = (uint32_t)max_tokens;
    q->ignore_eos = a->ignore_eos;
    q->stop = (const char *const *)r->stop;
    if (endpoint == NBI_COMPLETIONS)
        q->logprobs = (int32_t)a->logprobs;
    else
        q->logprobs = !a->want_logprobs ? -1 : a->top_logprobs < 0 ? 0 : (int32_t)a->top_logprobs;

    nb_sampling *s = &q->sampling;
    s->temperature = (float)a->temperature;
    s->top_k = a->top_k < 0 ? 0 : (int32_t)a->top_k; /* -1 is how vLLM spells "off" */
    /* Zero keeps the most likely token only; the smallest positive number says the same without a special case. */
    s->top_p = a->top_p > FLT_MIN ? (float)a->top_p : FLT_MIN;
    s->min_p = (float)a->min_p;
    s->presence_penalty = (float)a->presence_penalty;
    s->frequency_penalty = (float)a->frequency_penalty;
    s->repetition_penalty = (float)a->repetition_penalty;
    s->seed = (uint64_t)a->seed;
}

nb_status nbi_openai_parse(nbi_openai_request *r, nbi_endpoint endpoint, const json_t *body, const nbi_openai_env *env,
                           nbi_api_error *err)
{
    nb_status st = NB_OK;
    args a = {.temperature = 1,
              .top_p = 1,
              .repetition_penalty = 1,
              .seed = (int64_t)env->default_seed,
              .logprobs = -1,
              .top_logprobs = -1};
    *r = (nbi_openai_request){0};
    nb_request_init(&r->request);
    if (!json_is_object(body))
        return fail_type(err, "body", body, "an object");
    NB_TRY(read_args(&a, endpoint, body, err));
    NB_TRY(read_stop(r, a.stop, err));
    NB_TRY(endpoint == NBI_CHAT ? read_messages(r, a.messages, env, err) : read_prompt(r, a.prompt, env, err));
    set_request(r, &a, endpoint, env);
done:
    if (st != NB_OK)
        nbi_openai_request_free(r);
    return st;
}

void nbi_openai_request_free(nbi_openai_request *r)
{
    nb_free(r->ids);
    for (size_t i = 0; i < NBI_MAX_STOP; i++)
        free(r->stop[i]);
    *r = (nbi_openai_request){0};
}
