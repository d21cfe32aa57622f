/* A stand-in for the tokenizer and the engine: the job and the OpenAI layer are tested against their public contract
 * alone.  Since every symbol of theirs is defined here, the linker takes nothing of the real ones from the library.
 *
 * Tokens are bytes (256 is BOS, 257 a special token "<|end|>").  What a request generates is a function of its prompt and seed; the order in which
 * requests advance is scrambled.  Words in the prompt choose a fate:
 *     REFUSE  submit answers NB_ELIMIT      BADREQ  NB_EINVAL
 *     FAIL    FAILED after two tokens       DIE     the step in which it would get its third token fails
 */
#pragma once

#include <jansson.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <string>
#include <vector>

#include "testutil.h"

extern "C" {
#include "base/status.h"
#include "base/utf8.h"
#include "engine/job.h"
#include "engine/openai.h"
#include "model/model.h"
#include "text/tokenizer.h"
}

struct nb_tokenizer {
    bool template_missing = false;
};

struct FakeRequest {
    uint64_t id;
    void *user;
    std::string prompt;
    std::vector<int32_t> ids;
    nb_sampling sampling;
    std::vector<std::string> stop;
    uint32_t max_tokens;
    int32_t logprobs, ignore_eos;
    uint32_t made = 0;
    bool cancelled = false;
};

struct FakeControl {
    unsigned step_us = 0;         /* sleep in each step */
    uint64_t scramble = 1;        /* order of progress */
    size_t engines = 0, most = 0; /* engines made; most requests under way at once */
    size_t cancels = 0;
    uint32_t max_context = 64;
    std::vector<FakeRequest> seen; /* every accepted request */
    bool keep_seen = false;
};
inline FakeControl fake;

struct nb_engine {
    std::vector<FakeRequest> running;
    std::deque<std::string> texts;
    std::vector<nb_event> events;
    std::vector<nb_logprob> tops;
    uint64_t next_id = 1, steps = 0;
};

inline uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

extern "C" {
nb_status nb_tokenize(const nb_tokenizer *, const char *text, size_t bytes, unsigned flags, int32_t **ids, size_t *n)
{
    size_t bos = flags & NB_TOKENIZE_SPECIAL ? 1 : 0;
    *ids = (int32_t *)malloc((bytes + bos + 1) * sizeof(int32_t));
    if (bos)
        (*ids)[0] = 256;
    for (size_t i = 0; i < bytes; i++)
        (*ids)[bos + i] = (unsigned char)text[i];
    *n = bytes + bos;
    return NB_OK;
}

/* Like the real ones: bytes that do not form a character become U+FFFD, one for each byte. */
nb_status nb_detokenize(const nb_tokenizer *, const int32_t *ids, size_t n, unsigned, char **text, size_t *bytes)
{
    std::string raw, out;
    for (size_t i = 0; i < n; i++)
        raw += ids[i] < 256 ? std::string(1, (char)ids[i]) : std::string("<|end|>");
    for (size_t i = 0; i < raw.size();) {
        uint32_t cp;
        int len = nbi_utf8_decode(raw.data() + i, raw.size() - i, &cp);
        out += len > 0 ? raw.substr(i, (size_t)len) : "\xEF\xBF\xBD";
        i += (size_t)(len > 0 ? len : 1);
    }
    *text = (char *)malloc(out.size() + 1);
    memcpy(*text, out.c_str(), out.size() + 1);
    *bytes = out.size();
    return NB_OK;
}

const char *nbi_tokenizer_token_text(const nb_tokenizer *, int32_t id)
{
    static char text[8];
    if (id >= 256)
        return "<|end|>";
    snprintf(text, sizeof text, "<0x%02X>", id);
    return text;
}

nb_status nb_chat_render(const nb_tokenizer *tok, const char *json, int add_generation_prompt, char **text)
{
    if (tok->template_missing)
        return nbi_fail(NB_EUNSUPPORTED, "the model has no chat template");
    json_t *list = json_loads(json, 0, nullptr), *m;
    size_t i;
    std::string out;
    bool refused = false;
    json_array_foreach(list, i, m)
    {
        const char *role = json_string_value(json_object_get(m, "role"));
        out += std::string("<") + role + ">" + json_string_value(json_object_get(m, "content")) + "\n";
        refused |= strcmp(role, "pirate") == 0;
    }
    json_decref(list);
    if (refused)
        return nbi_fail(NB_EINVAL, "the template raised: unknown role pirate");
    if (add_generation_prompt)
        out += "<assistant>";
    *text = strdup(out.c_str());
    return NB_OK;
}

void nb_sampling_init(nb_sampling *s)
{
    *s = nb_sampling{};
    s->struct_size = sizeof *s;
    s->top_p = s->repetition_penalty = 1;
}
void nb_request_init(nb_request *r)
{
    *r = nb_request{};
    r->struct_size = sizeof *r;
    r->logprobs = -1;
    nb_sampling_init(&r->sampling);
}
void nb_engine_options_init(nb_engine_options *o)
{
    *o = nb_engine_options{};
    o->struct_size = sizeof *o;
}

nb_status nb_engine_create(nb_engine **out, const nb_model *, const nb_engine_options *)
{
    fake.engines++;
    *out = new nb_engine();
    return NB_OK;
}
void nb_engine_free(nb_engine *e)
{
    delete e;
}

nb_status nb_engine_submit(nb_engine *e, const nb_request *r, void *user, uint64_t *id)
{
    FakeRequest q{};
    for (size_t i = 0; i < r->n_prompt; i++)
        if (r->prompt[i] < 256)
            q.prompt += (char)r->prompt[i];
    if (r->n_prompt == 0 || q.prompt.find("BADREQ") != std::string::npos)
        return nbi_fail(NB_EINVAL, "the prompt is bad");
    if (q.prompt.find("REFUSE") != std::string::npos)
        return nbi_fail(NB_ELIMIT, "the prompt has %zu tokens, the context 7", r->n_prompt);
    q.ids.assign(r->prompt, r->prompt + r->n_prompt);
    for (size_t i = 0; i < r->n_stop; i++)
        q.stop.push_back(r->stop[i]);
    q.user = user;
    q.sampling = r->sampling;
    q.max_tokens = r->max_tokens;
    q.logprobs = r->logprobs;
    q.ignore_eos = r->ignore_eos;
    *id = q.id = e->next_id++;
    if (fake.keep_seen)
        fake.seen.push_back(q);
    e->running.push_back(q);
    fake.most = std::max(fake.most, e->running.size());
    return NB_OK;
}

void nb_engine_cancel(nb_engine *e, uint64_t id)
{
    for (auto &q : e->running)
        if (q.id == id) {
            q.cancelled = true;
            fake.cancels++;
        }
}

/* Every request advances by 0 or 1 token a step. */
nb_status nb_engine_step(nb_engine *e, const nb_event **events, size_t *n)
{
    if (fake.step_us)
        usleep(fake.step_us);
    e->events.clear();
    e->texts.clear();
    e->tops.clear();
    e->tops.reserve(e->running.size() * 20);
    e->steps++;
    for (size_t i = 0; i < e->running.size();) {
        FakeRequest &q = e->running[i];
        uint64_t chance = mix(fake.scramble * 1000003 + e->steps * 131 + q.id);
        nb_event ev{};
        ev.id = q.id;
        ev.user = q.user;
        ev.n_prompt = (uint32_t)q.ids.size();
        bool over = false;
        if (q.made == 2 && q.prompt.find("DIE") != std::string::npos)
            return nbi_fail(NB_EINTERNAL, "the device is gone");
        if (q.made == 2 && q.prompt.find("FAIL") != std::string::npos) {
            ev.type = NB_EVENT_FAILED;
            ev.status = NB_EINTERNAL;
            ev.error = "the logits are not finite";
            over = true;
        } else if (q.made == q.max_tokens || q.cancelled) {
            ev.type = NB_EVENT_FINISHED;
            ev.finish = q.cancelled ? NB_FINISH_CANCELLED : q.max_tokens % 2 ? NB_FINISH_STOP : NB_FINISH_LENGTH;
            ev.text = "!";
            ev.text_bytes = 1;
            over = true;
        } else if (chance % 3) {
            uint64_t h = nbi_hash(q.sampling.temperature > 0 ? q.sampling.seed : 0, q.prompt.data(), q.prompt.size());
            ev.type = NB_EVENT_TOKEN;
            ev.token = 'a' + (int32_t)(mix(h + q.made) % 26);
            e->texts.push_back(std::string(1, (char)ev.token));
            ev.text = e->texts.back().c_str();
            ev.text_bytes = 1;
            ev.logprob = -0.25f * (float)(q.made + 1);
            size_t from = e->tops.size();
            for (int32_t k = 0; k < q.logprobs; k++)
                e->tops.push_back({'A' + k, k ? -INFINITY : -0.5f});
            ev.top = e->tops.data() + from;
            ev.n_top = q.logprobs > 0 ? (size_t)q.logprobs : 0;
            q.made++;
        } else {
            i++;
            continue;
        }
        ev.n_output = q.made;
        e->events.push_back(ev);
        if (over)
            e->running.erase(e->running.begin() + (long)i);
        else
            i++;
    }
    *events = e->events.data();
    *n = e->events.size();
    return NB_OK;
}
}
