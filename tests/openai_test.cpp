/* Request bodies in, response bodies out: the table of parameters, prompts, errors, log-probabilities. */
#include <cmath>
#include <functional>

#include "fake_engine.h"

namespace
{
nb_tokenizer tokenizer;

struct Parsed {
    nb_status st;
    nbi_openai_request r{};
    nbi_api_error err{};
    Parsed(nbi_endpoint e, const std::string &body, uint32_t context = 1000)
    {
        json_error_t je;
        json_t *j = json_loadb(body.data(), body.size(), JSON_DECODE_ANY | JSON_ALLOW_NUL, &je);
        EXPECT_TRUE(j) << body << ": " << je.text;
        nbi_openai_env env = {&tokenizer, 258, context, 128, 0xfeedfacecafebeefu};
        st = nbi_openai_parse(&r, e, j, &env, &err);
        json_decref(j);
    }
    ~Parsed() { nbi_openai_request_free(&r); }
    Parsed(const Parsed &) = delete;
    std::string prompt() const
    {
        std::string s;
        for (size_t i = 0; i < r.request.n_prompt; i++)
            s += r.request.prompt[i] < 256 ? std::string(1, (char)r.request.prompt[i]) : "^";
        return s;
    }
};

std::string completion(const std::string &more)
{
    return R"({"prompt":"hi",)" + more + "}";
}
std::string chat(const std::string &more)
{
    return R"({"messages":[{"role":"user","content":"hi"}],)" + more + "}";
}

void expect_refused(nbi_endpoint e, const std::string &body, const std::string &param, const std::string &code,
                    int http = 400)
{
    Parsed p(e, body);
    EXPECT_NE(NB_OK, p.st) << body;
    EXPECT_EQ(http, p.err.http) << body;
    EXPECT_EQ(param, p.err.param) << body;
    EXPECT_STREQ(code.c_str(), p.err.code ? p.err.code : "") << body;
    EXPECT_NE(std::string(p.err.message), "") << body;
}

TEST(OpenaiParse, defaults_are_those_of_openai)
{
    Parsed p(NBI_COMPLETIONS, R"({"prompt":"hi"})");
    ASSERT_EQ(NB_OK, p.st);
    EXPECT_EQ("^hi", p.prompt()); /* with BOS */
    EXPECT_EQ(1.0f, p.r.request.sampling.temperature);
    EXPECT_EQ(1.0f, p.r.request.sampling.top_p);
    EXPECT_EQ(0, p.r.request.sampling.top_k);
    EXPECT_EQ(1.0f, p.r.request.sampling.repetition_penalty);
    EXPECT_EQ(0xfeedfacecafebeefu, p.r.request.sampling.seed);
    EXPECT_EQ(128u, p.r.request.max_tokens);
    EXPECT_EQ(-1, p.r.request.logprobs);
    EXPECT_EQ(0u, p.r.request.n_stop);
}

TEST(OpenaiParse, every_parameter_arrives)
{
    Parsed p(NBI_COMPLETIONS, completion(R"("max_tokens":7,"temperature":0.5,"top_p":0.25,"top_k":40,"min_p":0.125,
        "presence_penalty":-2,"frequency_penalty":2,"repetition_penalty":1.5,"seed":-1,"stop":["a","bc"],"logprobs":5,
        "ignore_eos":true,"model":"any","user":"me","metadata":{"a":1},"store":true,"service_tier":"auto","n":1,
        "best_of":1,"stream":false,"echo":false,"logit_bias":{},"suffix":null,"response_format":{"type":"text"})"));
    ASSERT_EQ(NB_OK, p.st) << p.err.message;
    const nb_request &q = p.r.request;
    EXPECT_EQ(7u, q.max_tokens);
    EXPECT_EQ(0.5f, q.sampling.temperature);
    EXPECT_EQ(0.25f, q.sampling.top_p);
    EXPECT_EQ(40, q.sampling.top_k);
    EXPECT_EQ(0.125f, q.sampling.min_p);
    EXPECT_EQ(-2.0f, q.sampling.presence_penalty);
    EXPECT_EQ(2.0f, q.sampling.frequency_penalty);
    EXPECT_EQ(1.5f, q.sampling.repetition_penalty);
    EXPECT_EQ(UINT64_MAX, q.sampling.seed);
    ASSERT_EQ(2u, q.n_stop);
    EXPECT_STREQ("bc", q.stop[1]);
    EXPECT_EQ(5, q.logprobs);
    EXPECT_EQ(1, q.ignore_eos);
}

TEST(OpenaiParse, null_means_not_given)
{
    for (const char *key :
         {"max_tokens", "temperature", "top_p", "seed", "stop", "n", "stream", "logprobs", "logit_bias"})
        EXPECT_EQ(NB_OK, Parsed(NBI_COMPLETIONS, completion("\"" + std::string(key) + "\":null")).st) << key;
    for (const char *key :
         {"tools", "tool_choice", "response_format", "audio", "top_logprobs", "max_completion_tokens"})
        EXPECT_EQ(NB_OK, Parsed(NBI_CHAT, chat("\"" + std::string(key) + "\":null")).st) << key;
}

TEST(OpenaiParse, numbers_are_accepted_to_their_bounds_and_refused_beyond)
{
    struct {
        const char *name, *in[2], *out[2];
    } const rows[] = {{"temperature", {"0", "2"}, {"-0.001", "2.001"}},
                      {"top_p", {"0", "1"}, {"-0.1", "1.001"}},
                      {"top_k", {"-1", "2147483647"}, {"-2", "2147483648"}},
                      {"min_p", {"0", "1"}, {"-0.1", "1.1"}},
                      {"max_tokens", {"1", "2147483647"}, {"0", "2147483648"}},
                      {"presence_penalty", {"-2", "2"}, {"-2.1", "2.1"}},
                      {"frequency_penalty", {"-2", "2"}, {"-2.1", "1e300"}},
                      {"repetition_penalty", {"0.01", "10"}, {"0", "10.1"}},
                      {"logprobs", {"0", "20"}, {"-1", "21"}}};
    for (auto &r : rows) {
        std::string key = "\"" + std::string(r.name) + "\":";
        for (auto v : r.in)
            EXPECT_EQ(NB_OK, Parsed(NBI_COMPLETIONS, completion(key + v)).st) << key << v;
        for (auto v : r.out)
            expect_refused(NBI_COMPLETIONS, completion(key + v), r.name, "invalid_value");
        for (auto v : {"\"1\"", "true", "[]", "{}"})
            expect_refused(NBI_COMPLETIONS, completion(key + v), r.name, "invalid_type");
    }
    for (auto v : {"-9223372036854775808", "9223372036854775807", "0"})
        EXPECT_EQ(NB_OK, Parsed(NBI_COMPLETIONS, completion(std::string("\"seed\":") + v)).st) << v;
    expect_refused(NBI_COMPLETIONS, completion("\"seed\":1.5"), "seed", "invalid_type");
    expect_refused(NBI_COMPLETIONS, completion("\"max_tokens\":16.0"), "max_tokens", "invalid_type");
}

TEST(OpenaiParse, top_p_zero_keeps_one_token_instead_of_none)
{
    Parsed p(NBI_COMPLETIONS, completion("\"top_p\":0"));
    EXPECT_GT(p.r.request.sampling.top_p, 0.0f);
    EXPECT_LT(p.r.request.sampling.top_p, 1e-30f);
}

TEST(OpenaiParse, what_would_change_the_result_is_refused_by_name)
{
    const char *completions[] = {"\"n\":2",
                                 "\"best_of\":3",
                                 "\"echo\":true",
                                 "\"stream\":true",
                                 "\"n\":1.0",
                                 "\"suffix\":\"x\"",
                                 "\"logit_bias\":{\"5\":1}",
                                 "\"response_format\":{\"type\":\"json_object\"}",
                                 "\"stream_options\":{}"};
    for (std::string p : completions)
        expect_refused(NBI_COMPLETIONS, completion(p), p.substr(1, p.find('"', 1) - 1), "unsupported_parameter");
    const char *chats[] = {"\"tools\":[{}]",    "\"tool_choice\":\"required\"",  "\"modalities\":[\"audio\"]",
                           "\"functions\":[1]", "\"reasoning_effort\":\"high\"", "\"web_search_options\":{}"};
    for (std::string p : chats)
        expect_refused(NBI_CHAT, chat(p), p.substr(1, p.find('"', 1) - 1), "unsupported_parameter");
}

TEST(OpenaiParse, unknown_parameters_are_refused_by_name)
{
    expect_refused(NBI_COMPLETIONS, completion("\"temprature\":0"), "temprature", "unknown_parameter");
    expect_refused(NBI_COMPLETIONS, completion("\"messages\":[]"), "messages", "unknown_parameter");
    expect_refused(NBI_COMPLETIONS, completion("\"max_completion_tokens\":4"), "max_completion_tokens",
                   "unknown_parameter");
    expect_refused(NBI_CHAT, chat("\"prompt\":\"x\""), "prompt", "unknown_parameter");
    expect_refused(NBI_CHAT, chat("\"echo\":false"), "echo", "unknown_parameter");
}

TEST(OpenaiParse, a_long_unknown_name_still_gives_a_valid_error_object)
{
    std::string name;
    for (int i = 0; i < 60; i++)
        name += "\xE2\x82\xAC"; /* 180 bytes: cut somewhere inside a character */
    Parsed p(NBI_COMPLETIONS, completion("\"" + name + "\":1"));
    json_t *o = nbi_api_error_body(&p.err);
    ASSERT_TRUE(o);
    EXPECT_TRUE(json_is_string(json_object_get(json_object_get(o, "error"), "message")));
    char *text = json_dumps(o, 0);
    EXPECT_TRUE(text);
    free(text);
    json_decref(o);
}

TEST(OpenaiParse, error_objects_have_all_four_fields)
{
    Parsed p(NBI_COMPLETIONS, completion("\"n\":2"));
    json_t *o = nbi_api_error_body(&p.err), *e = json_object_get(o, "error");
    EXPECT_STREQ("invalid_request_error", json_string_value(json_object_get(e, "type")));
    EXPECT_STREQ("n", json_string_value(json_object_get(e, "param")));
    EXPECT_STREQ("unsupported_parameter", json_string_value(json_object_get(e, "code")));
    EXPECT_NE(std::string::npos, std::string(json_string_value(json_object_get(e, "message"))).find("'n'"));
    json_decref(o);
}

TEST(OpenaiParse, stop_is_a_string_or_up_to_16_strings)
{
    std::string list;
    for (int i = 0; i < 16; i++)
        list += (i ? ",\"s" : "\"s") + std::to_string(i) + "\"";
    Parsed one(NBI_CHAT, chat("\"stop\":\"\\n\"")), many(NBI_CHAT, chat("\"stop\":[" + list + "]"));
    ASSERT_EQ(1u, one.r.request.n_stop);
    EXPECT_STREQ("\n", one.r.request.stop[0]);
    ASSERT_EQ(16u, many.r.request.n_stop);
    EXPECT_STREQ("s15", many.r.request.stop[15]);
    EXPECT_EQ(0u, Parsed(NBI_CHAT, chat("\"stop\":[]")).r.request.n_stop);
    expect_refused(NBI_CHAT, chat("\"stop\":[" + list + ",\"x\"]"), "stop", "invalid_value");
    expect_refused(NBI_CHAT, chat("\"stop\":\"\""), "stop", "invalid_value");
    expect_refused(NBI_CHAT, chat("\"stop\":[\"a\\u0000b\"]"), "stop", "invalid_value");
    expect_refused(NBI_CHAT, chat("\"stop\":5"), "stop", "invalid_type");
    expect_refused(NBI_CHAT, chat("\"stop\":[\"a\",5]"), "stop", "invalid_type");
}

TEST(OpenaiParse, prompts_come_as_text_or_as_token_ids)
{
    EXPECT_EQ(std::string("^a\0b", 4), Parsed(NBI_COMPLETIONS, R"({"prompt":"a\u0000b"})").prompt());
    EXPECT_EQ("^x", Parsed(NBI_COMPLETIONS, R"({"prompt":["x"]})").prompt());
    EXPECT_EQ("ab^", Parsed(NBI_COMPLETIONS, R"({"prompt":[97,98,257]})").prompt());
    EXPECT_EQ("ab", Parsed(NBI_COMPLETIONS, R"({"prompt":[[97,98]]})").prompt());
    expect_refused(NBI_COMPLETIONS, R"({"prompt":["x","y"]})", "prompt", "unsupported_value");
    expect_refused(NBI_COMPLETIONS, R"({"prompt":[]})", "prompt", "invalid_value");
    expect_refused(NBI_COMPLETIONS, R"({"prompt":[[]]})", "prompt", "invalid_value");
    expect_refused(NBI_COMPLETIONS, R"({"prompt":[258]})", "prompt", "invalid_value");
    expect_refused(NBI_COMPLETIONS, R"({"prompt":[-1]})", "prompt", "invalid_value");
    expect_refused(NBI_COMPLETIONS, R"({"prompt":[4294967296]})", "prompt", "invalid_value");
    expect_refused(NBI_COMPLETIONS, R"({"prompt":[97,"b"]})", "prompt", "invalid_type");
    expect_refused(NBI_COMPLETIONS, R"({"prompt":5})", "prompt", "invalid_type");
    expect_refused(NBI_COMPLETIONS, R"({"prompt":{}})", "prompt", "invalid_type");
    expect_refused(NBI_COMPLETIONS, R"({"prompt":null})", "prompt", "missing_required_parameter");
    expect_refused(NBI_COMPLETIONS, R"({})", "prompt", "missing_required_parameter");
    expect_refused(NBI_COMPLETIONS, R"([])", "body", "invalid_type");
}

TEST(OpenaiParse, messages_go_through_the_template_without_a_second_bos)
{
    Parsed p(NBI_CHAT, R"({"messages":[{"role":"system","content":"S"},
        {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]})");
    ASSERT_EQ(NB_OK, p.st) << p.err.message;
    EXPECT_EQ("<system>S\n<user>a\nb\n<assistant>", p.prompt());
}

TEST(OpenaiParse, bad_messages_are_refused)
{
    auto bad = [](const std::string &messages, const char *code) {
        expect_refused(NBI_CHAT, "{\"messages\":" + messages + "}", "messages", code);
    };
    bad("[]", "invalid_value");
    bad("5", "invalid_type");
    bad("[5]", "invalid_type");
    bad("[{}]", "invalid_type");
    bad(R"([{"role":1,"content":"x"}])", "invalid_type");
    bad(R"([{"role":"user"}])", "invalid_type");
    bad(R"([{"role":"user","content":5}])", "invalid_type");
    bad(R"([{"role":"user","content":"a\u0000b"}])", "invalid_value");
    bad(R"([{"role":"user","content":[{"type":"image_url","image_url":{}}]}])", "unsupported_value");
    bad(R"([{"role":"user","content":["x"]}])", "unsupported_value");
    bad(R"([{"role":"assistant","content":"","tool_calls":[{}]}])", "unsupported_value");
    bad(R"([{"role":"pirate","content":"x"}])", "invalid_value");
    expect_refused(NBI_CHAT, "{\"temperature\":1}", "messages", "missing_required_parameter");
    tokenizer.template_missing = true;
    bad(R"([{"role":"user","content":"x"}])", "unsupported_value");
    tokenizer.template_missing = false;
}

TEST(OpenaiParse, chat_logprobs_are_a_switch_and_a_number)
{
    EXPECT_EQ(-1, Parsed(NBI_CHAT, chat("\"logprobs\":false")).r.request.logprobs);
    EXPECT_EQ(0, Parsed(NBI_CHAT, chat("\"logprobs\":true")).r.request.logprobs);
    EXPECT_EQ(20, Parsed(NBI_CHAT, chat("\"logprobs\":true,\"top_logprobs\":20")).r.request.logprobs);
    expect_refused(NBI_CHAT, chat("\"top_logprobs\":2"), "top_logprobs", "invalid_value");
    expect_refused(NBI_CHAT, chat("\"logprobs\":true,\"top_logprobs\":21"), "top_logprobs", "invalid_value");
    expect_refused(NBI_CHAT, chat("\"logprobs\":3"), "logprobs", "invalid_type");
}

TEST(OpenaiParse, max_tokens_is_kept_and_the_default_is_cut_to_the_context)
{
    EXPECT_EQ(5000u, Parsed(NBI_COMPLETIONS, completion("\"max_tokens\":5000"), 100).r.request.max_tokens);
    EXPECT_EQ(97u, Parsed(NBI_COMPLETIONS, R"({"prompt":"hi"})", 100).r.request.max_tokens); /* 3 in the prompt */
    EXPECT_EQ(1u, Parsed(NBI_COMPLETIONS, R"({"prompt":"hi"})", 4).r.request.max_tokens);
    EXPECT_EQ(128u, Parsed(NBI_COMPLETIONS, R"({"prompt":"hi"})", 3).r.request.max_tokens); /* the engine refuses it */
    EXPECT_EQ(9u, Parsed(NBI_CHAT, chat("\"max_completion_tokens\":9")).r.request.max_tokens);
    expect_refused(NBI_CHAT, chat("\"max_tokens\":5,\"max_completion_tokens\":5"), "max_tokens", "invalid_value");
}

TEST(OpenaiParse, bit_flips_of_a_body_never_crash)
{
    const std::string good =
        chat(R"("stop":["a","b"],"temperature":0.5,"max_tokens":4,"logprobs":true,"top_logprobs":3)");
    nbi_openai_env env = {&tokenizer, 258, 100, 16, 1};
    int parsed = 0, refused = 0;
    for (size_t bit = 0; bit < good.size() * 8; bit++) {
        std::string s = good;
        s[bit / 8] = (char)(s[bit / 8] ^ (1 << bit % 8));
        json_t *j = json_loadb(s.data(), s.size(), JSON_ALLOW_NUL, nullptr);
        if (!j)
            continue;
        nbi_openai_request r;
        nbi_api_error err{};
        nb_status st = nbi_openai_parse(&r, NBI_CHAT, j, &env, &err);
        (st == NB_OK ? parsed : refused)++;
        EXPECT_EQ(st == NB_OK, err.http == 0) << s;
        nbi_openai_request_free(&r);
        json_decref(j);
    }
    EXPECT_GT(parsed, 20);
    EXPECT_GT(refused, 200);
}

/* ---- answers ------------------------------------------------------------------------------------------------------ */

struct Answer {
    nbi_answer a{};
    explicit Answer(int32_t logprobs) { a.logprobs = logprobs; }
    ~Answer() { nbi_answer_free(&a); }
    void token(int32_t id, const std::string &text, float lp, std::vector<nb_logprob> top = {})
    {
        nb_event ev{};
        ev.type = NB_EVENT_TOKEN;
        ev.token = id;
        ev.text = text.c_str();
        ev.text_bytes = text.size();
        ev.logprob = lp;
        ev.top = top.data();
        ev.n_top = top.size();
        ev.n_prompt = 4;
        ev.n_output = a.n_output + 1;
        nbi_answer_event(&a, &ev);
    }
    std::string body(nbi_endpoint e, nb_finish finish = NB_FINISH_STOP)
    {
        nb_event ev{};
        ev.type = NB_EVENT_FINISHED;
        ev.finish = finish;
        ev.n_prompt = 4;
        ev.n_output = a.n_output;
        nbi_answer_event(&a, &ev);
        nbi_answer_names names = {"7", "m", 1700000000};
        json_t *o = nbi_answer_body(&a, e, &names, &tokenizer);
        if (!o)
            return "NULL";
        char *s = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(9));
        std::string text = s;
        free(s);
        json_decref(o);
        return text;
    }
};

TEST(OpenaiAnswer, completion_has_openais_shape)
{
    Answer a(-1);
    a.token('h', "h", 0);
    a.token('i', "i", 0);
    EXPECT_EQ(R"({"id":"cmpl-7","object":"text_completion","created":1700000000,"model":"m","choices":[{"index":0,)"
              R"("text":"hi","logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":4,)"
              R"("completion_tokens":2,"total_tokens":6},"system_fingerprint":"nibble-)" NIBBLE_VERSION "\"}",
              a.body(NBI_COMPLETIONS, NB_FINISH_LENGTH));
}

TEST(OpenaiAnswer, chat_has_openais_shape)
{
    Answer a(-1);
    a.token('h', "h", 0);
    EXPECT_EQ(
        R"({"id":"chatcmpl-7","object":"chat.completion","created":1700000000,"model":"m","choices":[{"index":0,)"
        R"("message":{"role":"assistant","content":"h","refusal":null},"logprobs":null,"finish_reason":"stop"}],)"
        R"("usage":{"prompt_tokens":4,"completion_tokens":1,"total_tokens":5},"system_fingerprint":"nibble-)" NIBBLE_VERSION
        "\"}",
        a.body(NBI_CHAT));
}

std::string logprobs_of(const std::string &body)
{
    size_t from = body.find("\"logprobs\":") + 11;
    return body.substr(from, body.find(",\"finish_reason\"") - from);
}

TEST(OpenaiAnswer, chat_logprobs_carry_bytes_and_alternatives)
{
    Answer a(2);
    a.token('h', "h", -0.5f, {{'h', -0.5f}, {'x', -INFINITY}});
    EXPECT_EQ(R"({"content":[{"token":"h","logprob":-0.5,"bytes":[104],"top_logprobs":[)"
              R"({"token":"h","logprob":-0.5,"bytes":[104]},{"token":"x","logprob":-9999.0,"bytes":[120]}]}],)"
              R"("refusal":null})",
              logprobs_of(a.body(NBI_CHAT)));
}

TEST(OpenaiAnswer, parts_of_a_character_show_their_bytes)
{
    Answer a(0), b(0);
    const char *text[] = {"", "", "\xE2\x82\xAC", "!"};
    const int32_t id[] = {0xE2, 0x82, 0xAC, '!'};
    for (int i = 0; i < 4; i++) {
        a.token(id[i], text[i], -1);
        b.token(id[i], text[i], -1);
    }
    EXPECT_EQ(R"({"content":[{"token":"\\xe2","logprob":-1.0,"bytes":[226],"top_logprobs":[]},)"
              R"({"token":"\\x82","logprob":-1.0,"bytes":[130],"top_logprobs":[]},)"
              R"({"token":"\\xac","logprob":-1.0,"bytes":[172],"top_logprobs":[]},)"
              R"({"token":"!","logprob":-1.0,"bytes":[33],"top_logprobs":[]}],"refusal":null})",
              logprobs_of(a.body(NBI_CHAT)));
    EXPECT_EQ(R"({"tokens":["bytes:\\xe2","bytes:\\x82","bytes:\\xac","!"],"token_logprobs":[-1.0,-1.0,-1.0,-1.0],)"
              R"("top_logprobs":[{"bytes:\\xe2":-1.0},{"bytes:\\x82":-1.0},{"bytes:\\xac":-1.0},{"!":-1.0}],)"
              R"("text_offset":[0,0,0,1]})",
              logprobs_of(b.body(NBI_COMPLETIONS)));
}

TEST(OpenaiAnswer, completion_logprobs_always_hold_the_chosen_token)
{
    Answer a(1);
    a.token('h', "h", -2.0f, {{'x', -0.5f}});
    a.token('i', "i", NAN, {{'i', -0.25f}});
    EXPECT_EQ(R"({"tokens":["h","i"],"token_logprobs":[-2.0,-9999.0],"top_logprobs":[{"x":-0.5,"h":-2.0},{"i":-0.25}],)"
              R"("text_offset":[0,1]})",
              logprobs_of(a.body(NBI_COMPLETIONS)));
}

TEST(OpenaiAnswer, text_that_is_not_utf8_is_no_answer)
{
    Answer a(-1);
    a.token(0xE2, "\xE2", 0);
    EXPECT_EQ("NULL", a.body(NBI_CHAT));
}

TEST(OpenaiAnswer, every_byte_token_gives_its_byte)
{
    for (int32_t id = 0; id < 256; id++) {
        nbi_str s = {};
        ASSERT_TRUE(nbi_token_bytes(&tokenizer, id, &s));
        ASSERT_EQ(1u, s.len) << id;
        EXPECT_EQ(id, (unsigned char)s.data[0]);
        nbi_str_free(&s);
    }
}
} // namespace
