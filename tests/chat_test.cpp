/* nb_chat_render with a tokenizer that is only a template and two special tokens. */
#include "testutil.h"

extern "C" {
#include "text/jinja.h"
#include "text/tokenizer.h"

struct nb_tokenizer {
    const char *source, *bos, *eos;
};
const char *nbi_tokenizer_chat_template(const nb_tokenizer *tok)
{
    return tok->source;
}
int32_t nb_tokenizer_bos(const nb_tokenizer *tok)
{
    return tok->bos ? 1 : -1;
}
int32_t nb_tokenizer_eos(const nb_tokenizer *tok)
{
    return tok->eos ? 2 : -1;
}
const char *nbi_tokenizer_token_text(const nb_tokenizer *tok, int32_t id)
{
    return id == 1 ? tok->bos : tok->eos;
}
}

namespace
{

/* "status: sentence" where it fails, so that a test reads as one comparison. */
std::string chat(const char *source, const std::string &messages, int prompt = 0)
{
    nb_tokenizer tok = {source, "<s>", nullptr};
    char *text = nullptr;
    nb_status st = nb_chat_render(&tok, messages.c_str(), prompt, &text);
    std::string r = st == NB_OK ? std::string(text) : std::to_string(st) + ": " + nb_last_error();
    EXPECT_EQ(st == NB_OK, text != nullptr);
    nb_free(text);
    return r;
}

const char *const plain =
    "{{ bos_token }}{{ eos_token }}{% for m in messages %}[{{ m.role + ':' + m.content }}]{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}";

} // namespace

TEST(Chat, a_template_sees_what_transformers_gives_it)
{
    EXPECT_EQ("<s>[user:hi][assistant:yo]",
              chat(plain, R"([{"role":"user","content":"hi"},{"role":"assistant","content":"yo"}])"));
    EXPECT_EQ("<s>[user:hi]>", chat(plain, R"([{"role":"user","content":"hi"}])", 1));
    EXPECT_EQ("<s>", chat(plain, "[]"));
    EXPECT_EQ("True True True False False",
              chat("{{ tools is none }} {{ documents is none }} {{ bos_token is defined }} {{ eos_token is defined }} "
                   "{{ enable_thinking is defined }}",
                   "[]"));
}

TEST(Chat, parts_are_joined_for_a_template_that_wants_a_string)
{
    const char *parts = R"([{"role":"user","content":[{"type":"text","text":"one"},{"type":"text","text":"two"}]}])";
    EXPECT_EQ("<s>[user:one\ntwo]", chat(plain, parts));
    EXPECT_EQ("<s>[user:]", chat(plain, R"([{"role":"user","content":[]}])"));
    for (const char *walk : {"message.content", "message['content']", "content", "message.content | list"}) {
        std::string source =
            std::string("{% for message in messages %}{% set content = message.content %}{% for p in ") + walk +
            " %}{{ p.text if p is mapping else p }}|{% endfor %}{% endfor %}";
        EXPECT_EQ("one|two|", chat(source.c_str(), parts)) << walk;
    }
    EXPECT_EQ("a|b|", chat("{% for m in messages %}{% for p in m.content %}{{ p }}|{% endfor %}{% endfor %}",
                           R"([{"role":"user","content":"ab"}])"));
}

TEST(Chat, tool_arguments_become_an_object)
{
    const char *source = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }};"
                         "{% endfor %}{% endfor %}";
    auto call = [](const std::string &arguments) {
        return R"([{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":)" + arguments + "}}]}]";
    };
    EXPECT_EQ("{\"a\": 1};", chat(source, call(R"("{\"a\":1}")")));
    EXPECT_EQ("{\"a\": 1};", chat(source, call(R"({"a":1})")));
    EXPECT_EQ("\"{broken\";", chat(source, call(R"("{broken")")));
    EXPECT_EQ("\"[1]\";", chat(source, call(R"("[1]")")));
    EXPECT_EQ("", chat(source, R"([{"role":"assistant","content":"x","tool_calls":null}])"));
}

TEST(Chat, reasoning_is_found_under_each_of_its_names)
{
    const char *source = "{{ messages[0].reasoning_content }}/{{ messages[0].thinking }}";
    for (const char *name : {"reasoning_content", "thinking", "reasoning"})
        EXPECT_EQ("r/r", chat(source, std::string(R"([{"role":"a","content":"","reasoning_content":null,")") +
                                          (strcmp(name, "reasoning_content") ? name : "x") + R"(":"r")" +
                                          (strcmp(name, "reasoning_content") ? "" : R"(,"reasoning":"r")") + "}]"))
            << name;
    EXPECT_EQ("a/b", chat(source, R"([{"role":"a","content":"","thinking":"b","reasoning_content":"a"}])"));
    EXPECT_EQ("/", chat(source, R"([{"role":"a","content":""}])"));
}

TEST(Chat, a_bad_message_is_named_by_its_index)
{
    const std::string ok = R"([{"role":"user","content":"x"},)";
    EXPECT_EQ("1: messages[1] is a number, expected an object", chat(plain, ok + "5]"));
    EXPECT_EQ("1: messages[1].role is missing, expected a string", chat(plain, ok + R"({"content":"x"}])"));
    EXPECT_EQ("1: messages[1].role is null, expected a string", chat(plain, ok + R"({"role":null,"content":"x"}])"));
    EXPECT_EQ("1: messages[1].content is missing, expected a string, null or an array of text parts",
              chat(plain, ok + R"({"role":"user"}])"));
    EXPECT_EQ("1: messages[1].content is true, expected a string, null or an array of text parts",
              chat(plain, ok + R"({"role":"user","content":true}])"));
    EXPECT_EQ("1: messages[1].content[1].type is 'image_url', expected 'text'",
              chat(plain, ok + R"({"role":"u","content":[{"type":"text","text":""},{"type":"image_url"}]}])"));
    EXPECT_EQ("1: messages[1].content[0] is a string, expected an object",
              chat(plain, ok + R"({"role":"u","content":["x"]}])"));
    EXPECT_EQ("1: messages[1].content[0].text is missing, expected a string",
              chat(plain, ok + R"({"role":"u","content":[{"type":"text"}]}])"));
    EXPECT_EQ("1: messages is an object, expected an array", chat(plain, "{}"));
    EXPECT_EQ("1: messages", chat(plain, "[").substr(0, 11));
}

TEST(Chat, errors_of_the_template_say_so)
{
    EXPECT_EQ("1: chat template: no wizards", chat("{{ raise_exception('no wizards') }}", "[]"));
    EXPECT_EQ("21: chat template: line 2: found %}, expected an expression", chat("\n{% if %}", "[]"));
    EXPECT_EQ("1: chat template: line 1: 'x' is undefined", chat("{{ x.y }}", "[]"));
    EXPECT_EQ("1: chat template: line 1: '+' of 'str' and 'NoneType'",
              chat(plain, R"([{"role":"user","content":null}])"));
    EXPECT_EQ("30: the model has no chat template", chat(nullptr, "[]"));
    EXPECT_EQ(NB_EINVAL, nb_chat_render(nullptr, "[]", 0, nullptr));
}
