/* The OpenAI completion API as data: a request body becomes an nb_request, the events of a request become a response
 * body.  No I/O and no state: the batch job and a server share it.  Every function may be used from any thread.
 *
 *     nbi_openai_request r;
 *     if (nbi_openai_parse(&r, NBI_CHAT, body, &env, &err) != NB_OK)
 *         answer(err.http, nbi_api_error_body(&err));
 *     nb_engine_submit(engine, &r.request, ...);
 *     nbi_openai_request_free(&r);
 */
#ifndef NB_ENGINE_OPENAI_H
#define NB_ENGINE_OPENAI_H

#include <jansson.h>
#include <stdbool.h>

#include "base/status.h"
#include "base/str.h"

typedef enum nbi_endpoint { NBI_COMPLETIONS = 1, NBI_CHAT = 2 } nbi_endpoint;
const char *nbi_endpoint_url(nbi_endpoint e); /* "/v1/completions", "/v1/chat/completions" */
bool nbi_endpoint_from_url(const char *url, nbi_endpoint *out);

/* Why a request was refused, in OpenAI's four fields and the HTTP status. */
typedef struct nbi_api_error {
    int http;
    const char *type, *code; /* static text */
    char param[96];          /* the parameter in question, "": none */
    char message[1024];
} nbi_api_error;
/* Fills *e and returns NB_EINVAL.  param may be NULL. */
nb_status nbi_api_fail(nbi_api_error *e, int http, const char *code, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* {"error":{message,type,param,code}}; NULL: out of memory. */
json_t *nbi_api_error_body(const nbi_api_error *e);

/* What a body is read against. */
typedef struct nbi_openai_env {
    const nb_tokenizer *tok;
    uint32_t vocab;              /* token ids in a prompt are below it */
    uint32_t max_context;        /* tokens that a sequence may hold */
    uint32_t default_max_tokens; /* where the body has none; cut to what the context leaves */
    uint64_t default_seed;
} nbi_openai_env;

#define NBI_MAX_STOP 16

/* A request that is ready for nb_engine_submit().  `request` points into the other members. */
typedef struct nbi_openai_request {
    nb_request request;
    int32_t *ids;
    char *stop[NBI_MAX_STOP];
} nbi_openai_request;

/* Checks the body against the table of parameters, renders and tokenises the prompt.  Every failure fills *err (also out
 * of memory: http 500).  After a failure nothing needs to be freed. */
nb_status nbi_openai_parse(nbi_openai_request *r, nbi_endpoint endpoint, const json_t *body, const nbi_openai_env *env,
                           nbi_api_error *err);
void nbi_openai_request_free(nbi_openai_request *r);

/* ---- the answer -------------------------------------------------------------------------------------------------- */

/* What a request has produced so far.  Start from zeroed memory with `logprobs` as in nb_request. */
typedef struct nbi_answer {
    int32_t logprobs;
    nbi_str text;
    nbi_str steps, tops; /* arrays of struct step (openai_answer.c) and nb_logprob, filled where logprobs >= 0 */
    nb_finish finish;
    uint32_t n_prompt, n_output;
} nbi_answer;
void nbi_answer_event(nbi_answer *a, const nb_event *ev); /* TOKEN and FINISHED */
void nbi_answer_free(nbi_answer *a);                      /* frees the members, zeroes the struct */

typedef struct nbi_answer_names {
    const char *id; /* without prefix: "cmpl-" or "chatcmpl-" is put before it */
    const char *model;
    int64_t created; /* seconds since 1970 */
} nbi_answer_names;
/* A text_completion or chat.completion object; NULL: out of memory, or the text is not UTF-8. */
json_t *nbi_answer_body(const nbi_answer *a, nbi_endpoint endpoint, const nbi_answer_names *names,
                        const nb_tokenizer *tok);

/* The bytes that a token stands for inside a text, also where they are only a part of a character.  false: unknown. */
bool nbi_token_bytes(const nb_tokenizer *tok, int32_t id, nbi_str *out);

#endif
