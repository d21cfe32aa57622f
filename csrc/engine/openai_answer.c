/* Responses in OpenAI's shapes, log-probabilities included. */
#include "engine/openai.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "text/tokenizer.h"

typedef struct step {
    nb_logprob chosen;
    size_t n_top; /* alternatives, in `tops` in the order of the steps */
} step;

void nbi_answer_event(nbi_answer *a, const nb_event *ev)
{
    if (ev->text)
        nbi_str_add(&a->text, ev->text, ev->text_bytes);
    a->n_prompt = ev->n_prompt;
    a->n_output = ev->n_output;
    if (ev->type == NB_EVENT_FINISHED)
        a->finish = ev->finish;
    if (ev->type != NB_EVENT_TOKEN || a->logprobs < 0)
        return;
    step s = {.chosen = {.token = ev->token, .logprob = ev->logprob}, .n_top = ev->n_top};
    nbi_str_add(&a->steps, (const char *)&s, sizeof s);
    nbi_str_add(&a->tops, (const char *)ev->top, ev->n_top * sizeof *ev->top);
}

void nbi_answer_free(nbi_answer *a)
{
    nbi_str_free(&a->text);
    nbi_str_free(&a->steps);
    nbi_str_free(&a->tops);
    *a = (nbi_answer){0};
}

/* ---- tokens as bytes ---------------------------------------------------------------------------------------------- */

/* GPT-2's table read backwards: bytes that print stand for themselves, the others for U+0100, U+0101 ... in order. */
static int byte_of(uint32_t cp)
{
    uint32_t next = 256;
    for (uint32_t b = 0; b < 256; b++) {
        bool prints = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        if ((prints ? b : next++) == cp)
            return (int)b;
    }
    return -1;
}

/* The bytes of a token that is a part of a character: "<0xE2>" (byte fallback), or byte-level text. */
static bool raw_bytes(const char *vocab_text, nbi_str *out)
{
    if (!vocab_text)
        return false;
    if (strlen(vocab_text) == 6 && strncmp(vocab_text, "<0x", 3) == 0 && vocab_text[5] == '>' &&
        isxdigit((unsigned char)vocab_text[3]) && isxdigit((unsigned char)vocab_text[4])) {
        char c = (char)strtoul(vocab_text + 3, NULL, 16);
        nbi_str_add(out, &c, 1);
        return true;
    }
    size_t n = strlen(vocab_text), mark = out->len;
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        int len = nbi_utf8_decode(vocab_text + i, n - i, &cp);
        int b = len > 0 ? byte_of(cp) : -1;
        if (b < 0) {
            out->len = mark;
            return false;
        }
        char c = (char)b;
        nbi_str_add(out, &c, 1);
        i += (size_t)len;
    }
    return n > 0;
}

/* Decoders treat the first token of a text differently (the space before it goes), so the token is decoded twice in a
 * row and what the second one adds is its text.  U+FFFD in there means half a character: then the vocabulary knows. */
bool nbi_token_bytes(const nb_tokenizer *tok, int32_t id, nbi_str *out)
{
    const int32_t twice[2] = {id, id};
    char *one = NULL, *two = NULL;
    size_t n1 = 0, n2 = 0;
    bool ok =
        nb_detokenize(tok, twice, 1, 0, &one, &n1) == NB_OK && nb_detokenize(tok, twice, 2, 0, &two, &n2) == NB_OK;
    if (ok) {
        bool prefix = n2 >= n1 && memcmp(one, two, n1) == 0;
        const char *piece = prefix ? two + n1 : one;
        size_t n = prefix ? n2 - n1 : n1;
        bool whole = prefix && !memmem(piece, n, "\xEF\xBF\xBD", 3);
        if (whole || !raw_bytes(nbi_tokenizer_token_text(tok, id), out)) /* or the token is U+FFFD itself */
            nbi_str_add(out, piece, n);
    }
    nb_free(one);
    nb_free(two);
    return ok && !out->failed;
}

/* ---- log-probabilities -------------------------------------------------------------------------------------------- */

static json_t *json_logprob(float lp)
{
    return json_real(lp > -9999.0f ? (double)lp : -9999.0);
}

/* A token as a JSON string; bytes that are not UTF-8 are written as \xNN after `prefix`, as OpenAI does. */
static json_t *token_string(const nbi_str *bytes, const char *prefix)
{
    if (nbi_utf8_check(bytes->data ? bytes->data : "", bytes->len) == bytes->len)
        return json_stringn(bytes->data ? bytes->data : "", bytes->len);
    nbi_str s = {0};
    nbi_str_puts(&s, prefix);
    for (size_t i = 0; i < bytes->len; i++)
        nbi_str_printf(&s, "\\x%02x", (unsigned char)bytes->data[i]);
    json_t *v = s.failed ? NULL : json_string(s.data);
    nbi_str_free(&s);
    return v;
}

/* {"token": " the", "logprob": -0.1, "bytes": [32, 116, 104, 101]} */
static json_t *chat_token(const nb_tokenizer *tok, nb_logprob lp)
{
    nbi_str bytes = {0};
    json_t *o = json_object(), *list;
    bool known = nbi_token_bytes(tok, lp.token, &bytes);
    int bad = json_object_set_new(o, "token", token_string(&bytes, ""));
    bad |= json_object_set_new(o, "logprob", json_logprob(lp.logprob));
    bad |= json_object_set_new(o, "bytes", list = known ? json_array() : json_null());
    for (size_t i = 0; known && i < bytes.len; i++)
        bad |= json_array_append_new(list, json_integer((unsigned char)bytes.data[i]));
    nbi_str_free(&bytes);
    if (bad) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static json_t *chat_logprobs(const nbi_answer *a, const nb_tokenizer *tok)
{
    json_t *o = json_object(), *content = json_array();
    const step *steps = (const step *)(const void *)a->steps.data;
    const nb_logprob *top = (const nb_logprob *)(const void *)a->tops.data;
    int bad = json_object_set_new(o, "content", content);
    bad |= json_object_set_new(o, "refusal", json_null());
    for (size_t i = 0; !bad && i < a->steps.len / sizeof *steps; i++) {
        json_t *t = chat_token(tok, steps[i].chosen), *list = json_array();
        for (size_t k = 0; k < steps[i].n_top; k++)
            bad |= json_array_append_new(list, chat_token(tok, *top++));
        bad |= json_object_set_new(t, "top_logprobs", list);
        bad |= json_array_append_new(content, t);
    }
    if (bad) {
        json_decref(o);
        return NULL;
    }
    return o;
}

/* {" the": -0.1, ...}: of two tokens with the same text the likelier one stays. */
static int add_alternative(json_t *o, const nb_tokenizer *tok, nb_logprob lp)
{
    nbi_str bytes = {0};
    nbi_token_bytes(tok, lp.token, &bytes);
    json_t *name = token_string(&bytes, "bytes:");
    int bad = !name;
    /* A key is a C string; the one token that holds NUL is left out. */
    if (name && strlen(json_string_value(name)) == json_string_length(name) &&
        !json_object_get(o, json_string_value(name)))
        bad = json_object_set_new(o, json_string_value(name), json_logprob(lp.logprob));
    json_decref(name);
    nbi_str_free(&bytes);
    return bad;
}

/* Characters before this token in the text.  A character begins at every byte that is not 10xxxxxx; a token that begins
 * inside a character belongs to that character. */
static size_t text_offset(const nbi_str *bytes, size_t *begun)
{
    bool inside = bytes->len && (bytes->data[0] & 0xC0) == 0x80 && *begun > 0;
    size_t at = *begun - inside;
    for (size_t i = 0; i < bytes->len; i++)
        *begun += (bytes->data[i] & 0xC0) != 0x80;
    return at;
}

static json_t *completion_logprobs(const nbi_answer *a, const nb_tokenizer *tok)
{
    json_t *o = json_object(), *tokens = json_array(), *lps = json_array(), *tops = json_array(), *offs = json_array();
    const step *steps = (const step *)(const void *)a->steps.data;
    const nb_logprob *top = (const nb_logprob *)(const void *)a->tops.data;
    size_t begun = 0;
    int bad = json_object_set_new(o, "tokens", tokens);
    bad |= json_object_set_new(o, "token_logprobs", lps);
    bad |= json_object_set_new(o, "top_logprobs", tops);
    bad |= json_object_set_new(o, "text_offset", offs);
    for (size_t i = 0; !bad && i < a->steps.len / sizeof *steps; i++) {
        nbi_str bytes = {0};
        nbi_token_bytes(tok, steps[i].chosen.token, &bytes);
        bad |= json_array_append_new(tokens, token_string(&bytes, "bytes:"));
        bad |= json_array_append_new(lps, json_logprob(steps[i].chosen.logprob));
        bad |= json_array_append_new(offs, json_integer((json_int_t)text_offset(&bytes, &begun)));
        nbi_str_free(&bytes);
        json_t *alternatives = json_object();
        for (size_t k = 0; k < steps[i].n_top; k++)
            bad |= add_alternative(alternatives, tok, *top++);
        bad |= add_alternative(alternatives, tok, steps[i].chosen); /* always there, as with OpenAI */
        bad |= json_array_append_new(tops, alternatives);
    }
    if (bad) {
        json_decref(o);
        return NULL;
    }
    return o;
}

/* ---- the object --------------------------------------------------------------------------------------------------- */

static json_t *usage(const nbi_answer *a)
{
    json_t *o = json_object();
    int bad = json_object_set_new(o, "prompt_tokens", json_integer(a->n_prompt));
    bad |= json_object_set_new(o, "completion_tokens", json_integer(a->n_output));
    bad |= json_object_set_new(o, "total_tokens", json_integer((json_int_t)a->n_prompt + a->n_output));
    if (bad) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static json_t *choice(const nbi_answer *a, nbi_endpoint endpoint, const nb_tokenizer *tok)
{
    json_t *o = json_object(), *text = json_stringn(a->text.data ? a->text.data : "", a->text.len), *logprobs;
    int bad = json_object_set_new(o, "index", json_integer(0));
    if (endpoint == NBI_CHAT) {
        json_t *message = json_object();
        bad |= json_object_set_new(message, "role", json_string("assistant"));
        bad |= json_object_set_new(message, "content", text);
        bad |= json_object_set_new(message, "refusal", json_null());
        bad |= json_object_set_new(o, "message", message);
    } else {
        bad |= json_object_set_new(o, "text", text);
    }
    logprobs = a->logprobs < 0        ? json_null()
               : endpoint == NBI_CHAT ? chat_logprobs(a, tok)
                                      : completion_logprobs(a, tok);
    bad |= json_object_set_new(o, "logprobs", logprobs);
    bad |= json_object_set_new(o, "finish_reason", json_string(a->finish == NB_FINISH_STOP ? "stop" : "length"));
    if (bad) {
        json_decref(o);
        return NULL;
    }
    return o;
}

json_t *nbi_answer_body(const nbi_answer *a, nbi_endpoint endpoint, const nbi_answer_names *names,
                        const nb_tokenizer *tok)
{
    if (a->text.failed || a->steps.failed || a->tops.failed)
        return NULL;
    bool chat = endpoint == NBI_CHAT;
    json_t *o = json_object(), *choices = json_array();
    int bad = json_object_set_new(o, "id", json_sprintf("%s-%s", chat ? "chatcmpl" : "cmpl", names->id));
    bad |= json_object_set_new(o, "object", json_string(chat ? "chat.completion" : "text_completion"));
    bad |= json_object_set_new(o, "created", json_integer(names->created));
    bad |= json_object_set_new(o, "model", json_string(names->model));
    bad |= json_array_append_new(choices, choice(a, endpoint, tok));
    bad |= json_object_set_new(o, "choices", choices);
    bad |= json_object_set_new(o, "usage", usage(a));
    bad |= json_object_set_new(o, "system_fingerprint", json_string("nibble-" NIBBLE_VERSION));
    if (bad) {
        json_decref(o);
        return NULL;
    }
    return o;
}
