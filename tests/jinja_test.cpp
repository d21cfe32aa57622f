#include "testutil.h"

#include <ctime>
#include <jansson.h>
#include <random>
#include <thread>

extern "C" {
#include "text/jinja.h"
}

namespace
{

struct Json {
    json_t *j;
    explicit Json(json_t *v) : j(v) {}
    explicit Json(const std::string &text) : j(json_loadb(text.data(), text.size(), JSON_ALLOW_NUL, nullptr)) {}
    Json(const Json &) = delete;
    Json &operator=(const Json &) = delete;
    ~Json() { json_decref(j); }
};

struct Result {
    nb_status status = NB_OK;
    std::string text, error;
};

Result render(const std::string &source, const json_t *context, const nbi_jinja_limits *limits = nullptr)
{
    Result r;
    nbi_jinja *t = nullptr;
    char *text = nullptr;
    size_t bytes = 0;
    r.status = nbi_jinja_compile(&t, source.data(), source.size());
    if (r.status == NB_OK)
        r.status = nbi_jinja_render(t, context, limits, &text, &bytes);
    else
        EXPECT_EQ(nullptr, t);
    if (r.status == NB_OK)
        r.text.assign(text, bytes);
    else {
        EXPECT_EQ(nullptr, text);
        r.error = nb_last_error();
    }
    free(text);
    nbi_jinja_free(t);
    return r;
}

Result render(const std::string &source, const std::string &context = "{}", const nbi_jinja_limits *limits = nullptr)
{
    Json c(context);
    return render(source, c.j, limits);
}

uint64_t fnv1a(const std::string &s)
{
    uint64_t h = 0xcbf29ce484222325;
    for (unsigned char b : s)
        h = (h ^ b) * 0x100000001b3;
    return h;
}

std::string string_at(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return std::string(json_string_value(v), json_string_length(v));
}

json_t *load(const std::string &path)
{
    std::string text = read_text(path);
    /* Some tokenizer_config.json say int(1e30) for "no limit", which jansson refuses. */
    const std::string huge = "1000000000000000019884624838656";
    for (size_t at; (at = text.find(huge)) != std::string::npos;)
        text.replace(at, huge.size(), "0");
    return json_loadb(text.data(), text.size(), JSON_ALLOW_NUL, nullptr);
}

#define EXPECT_TEXT(expected, ...)                                                                                     \
    do {                                                                                                               \
        Result r_ = render(__VA_ARGS__);                                                                               \
        EXPECT_EQ(NB_OK, r_.status) << r_.error;                                                                       \
        EXPECT_EQ(std::string(expected), r_.text);                                                                     \
    } while (0)
#define EXPECT_REFUSED(expected, part, ...)                                                                            \
    do {                                                                                                               \
        Result r_ = render(__VA_ARGS__);                                                                               \
        EXPECT_EQ(expected, r_.status) << r_.text.substr(0, 100);                                                      \
        EXPECT_NE(r_.error.find(part), std::string::npos) << r_.error;                                                 \
    } while (0)

} // namespace

/* ---- against jinja2 (tests/oracle/make_chat_vectors.py) ---------------------------------------------------------- */

TEST(JinjaOracle, small_templates_give_what_jinja2_gives)
{
    Json cases(load(repo_file("tests/data/jinja_cases.json")));
    json_t *rows = json_object_get(cases.j, "rows"), *row;
    size_t i;
    ASSERT_GT(json_array_size(rows), 300u);
    json_array_foreach(rows, i, row)
    {
        std::string source = string_at(row, "template");
        Result r = render(source, json_object_get(row, "context"));
        if (json_object_get(row, "text")) {
            EXPECT_EQ(NB_OK, r.status) << source << "\n" << r.error;
            EXPECT_EQ(string_at(row, "text"), r.text) << source;
        } else {
            EXPECT_NE(NB_OK, r.status) << source << "\ngave '" << r.text << "', jinja2: " << string_at(row, "error");
            EXPECT_FALSE(r.error.empty());
        }
    }
}

/* Name -> source and special tokens of a file in the shared folder chat-templates. */
static std::string load_template(const std::string &path, json_t *context)
{
    if (path.size() > 6 && path.substr(path.size() - 6) == ".jinja")
        return read_text(path);
    Json config(load(path));
    for (const char *key : {"bos_token", "eos_token"}) {
        json_t *v = json_object_get(config.j, key);
        if (json_is_object(v))
            v = json_object_get(v, "content");
        if (json_is_string(v))
            json_object_set(context, key, v);
    }
    return string_at(config.j, "chat_template");
}

TEST(JinjaOracle, chat_templates_of_real_models_give_what_transformers_gives)
{
    NEEDS_SHARED(folder, "chat-templates");
    Json vectors(load(repo_file("tests/data/chat_vectors.json")));
    json_t *rows = json_object_get(vectors.j, "rows"), *row;
    size_t i, failures = 0;
    ASSERT_GT(json_array_size(rows), 200u);
    json_array_foreach(rows, i, row)
    {
        Json context(json_object());
        json_object_set_new(context.j, "tools", json_null());
        json_object_set_new(context.j, "documents", json_null());
        std::string name = string_at(row, "template"), conversation = string_at(row, "conversation");
        std::string source = load_template(folder + "/" + name, context.j);
        json_object_update(context.j,
                           json_object_get(json_object_get(vectors.j, "conversations"), conversation.c_str()));
        json_object_set(context.j, "add_generation_prompt", json_object_get(row, "add_generation_prompt"));
        Result r = render(source, context.j);
        SCOPED_TRACE(name + " / " + conversation);
        if (json_object_get(row, "error")) {
            failures++;
            EXPECT_EQ(NB_EINVAL, r.status) << r.text;
            continue;
        }
        EXPECT_EQ(NB_OK, r.status) << r.error;
        EXPECT_EQ(json_integer_value(json_object_get(row, "bytes")), (json_int_t)r.text.size());
        char hash[20];
        snprintf(hash, sizeof hash, "%016llx", (unsigned long long)fnv1a(r.text));
        EXPECT_EQ(string_at(row, "fnv1a"), hash) << r.text;
    }
    EXPECT_GT(failures, 20u); /* the vectors hold conversations that must be refused */
}

/* ---- literal examples -------------------------------------------------------------------------------------------- */

TEST(Jinja, a_chatml_conversation)
{
    EXPECT_TEXT("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
                "{% for m in messages %}\n"
                "    {{- '<|im_start|>' + m.role + '\\n' + m.content | trim + '<|im_end|>\\n' }}\n"
                "{%- endfor %}\n"
                "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\n",
                R"({"messages":[{"role":"system","content":" Be brief. "},{"role":"user","content":"Hi"}],
                    "add_generation_prompt":true})");
}

TEST(Jinja, text_without_tags_comes_back_but_for_the_last_newline)
{
    EXPECT_TEXT("", "");
    EXPECT_TEXT("a\n\xc3\xa9", "a\n\xc3\xa9\n");
    EXPECT_TEXT(std::string("a\0b", 3), std::string("a\0b", 3));
}

TEST(Jinja, strings_keep_nul_bytes)
{
    EXPECT_TEXT(std::string("x\0y", 3), "{{ s }}", R"({"s":"x\u0000y"})");
    EXPECT_TEXT("3 'x\\x00y'",
                "{{ s | length }} {{ [s] | join | list | length and (s,)[0] and [s] | string | trim('[]') }}",
                R"({"s":"x\u0000y"})");
}

TEST(Jinja, do_and_append_change_a_list)
{
    EXPECT_TEXT("[1, 2]", "{% set l = [1] %}{% do l.append(2) %}{{ l }}");
    EXPECT_TEXT("[1, 2]", "{% set l = [1] %}{% set _ = l.append(2) %}{{ l }}");
    EXPECT_REFUSED(NB_EINVAL, "append", "{% do (1,).append(2) %}");
    /* A list that holds itself ends at a limit wherever it is walked. */
    const std::string knot = "{% set l = [] %}{% set m = [] %}{% do l.append(l) %}{% do m.append(m) %}";
    for (const char *use : {"{{ l }}", "{{ l | tojson }}", "{{ l == m }}", "{{ l < m }}", "{{ l | string }}"})
        EXPECT_REFUSED(NB_ELIMIT, "nested deeper", knot + use);
}

TEST(Jinja, the_caller_s_context_is_not_changed)
{
    Json c(std::string(R"({"l":[1],"d":{"a":[2]}})"));
    Json before(json_deep_copy(c.j));
    Result r = render("{% do l.append(2) %}{% do d.a.append(3) %}{{ l }}{{ d }}", c.j);
    EXPECT_EQ("[1, 2]{'a': [2, 3]}", r.text) << r.error;
    EXPECT_TRUE(json_equal(before.j, c.j));
}

TEST(Jinja, strftime_now_is_the_local_time)
{
    char want[32];
    time_t t = time(nullptr);
    struct tm tm;
    localtime_r(&t, &tm);
    strftime(want, sizeof want, "%Y", &tm);
    EXPECT_TEXT(want, "{{ strftime_now('%Y') }}");
    EXPECT_TEXT("", "{{ strftime_now('') }}");
    EXPECT_REFUSED(NB_ELIMIT, "strftime_now", "{{ strftime_now('%c' * 200) }}");
    EXPECT_REFUSED(NB_ELIMIT, "strftime_now", "{{ strftime_now('%500c%500c%500c') }}");
}

/* ---- errors ------------------------------------------------------------------------------------------------------ */

TEST(JinjaErrors, raise_exception_s_text_stands_alone)
{
    Result r = render("a\n\n{{ raise_exception('Roles must alternate: 100% of ' ~ 1) }}");
    EXPECT_EQ(NB_EINVAL, r.status);
    EXPECT_EQ("Roles must alternate: 100% of 1", r.error);
}

TEST(JinjaErrors, name_what_is_wrong_and_the_line)
{
    EXPECT_REFUSED(NB_EINVAL, "line 2: 'who' is undefined", "a\n{{ who.x }}");
    EXPECT_REFUSED(NB_EINVAL, "line 3: 'who' is undefined",
                   "{% macro m() %}\n\n{{ who + 1 }}{% endmacro %}\n{{ m() }}");
    EXPECT_REFUSED(NB_EINVAL, "'dict' has no attribute or element 'content'", "{{ m.content + 'x' }}", R"({"m":{}})");
    EXPECT_REFUSED(NB_EUNSUPPORTED, "line 2: there is no filter 'wordwrap'", "\n{{ 1 | wordwrap }}");
    EXPECT_REFUSED(NB_EUNSUPPORTED, "line 1: there is no test 'prime'", "{{ 1 is prime }}");
    EXPECT_REFUSED(NB_EUNSUPPORTED, "line 2: there is no filter 'nope'", "{% if true %}\n{{ 1 | nope }}{% endif %}");
    EXPECT_REFUSED(NB_EUNSUPPORTED, "line 2: the statement {% include %}", "\n{% include 'x' %}");
    EXPECT_REFUSED(NB_EUNSUPPORTED, "recursive", "{% for x in [] recursive %}{% endfor %}");
    EXPECT_REFUSED(NB_EUNSUPPORTED, "unpacking", "{{ dict(**x) }}");
    EXPECT_REFUSED(NB_EUNSUPPORTED, "no argument 'colour'", "{{ 'a' | trim(colour=1) }}");
    EXPECT_REFUSED(NB_EUNSUPPORTED, "\\N{...}", "{{ '\\N{DASH}' }}");
    EXPECT_REFUSED(NB_EFORMAT, "line 1: found %}", "{% if %}x{% endif %}");
    EXPECT_REFUSED(NB_EFORMAT, "line 2: the template ends where {% endfor %}", "{% for x in [] %}\n\n");
    EXPECT_REFUSED(NB_EFORMAT, "line 2: a string has no closing quote", "a\n{{ 'x }}");
    EXPECT_REFUSED(NB_EFORMAT, "not UTF-8 at byte 2", "ab\xff");
    EXPECT_REFUSED(NB_EINVAL, "not an object", "x", "[]");
}

TEST(JinjaErrors, integers_beyond_64_bits_are_an_error_and_not_another_number)
{
    for (const char *e : {"9223372036854775807 + 1", "-9223372036854775807 - 2", "9223372036854775807 * 2", "2 ** 63",
                          "(-9223372036854775807 - 1) // -1", "-(-9223372036854775807 - 1)", "9223372036854775808",
                          "3 ** 99999999999", "1e30 | int", "(-9223372036854775807 - 1) | abs"})
        EXPECT_REFUSED(NB_ELIMIT, "64 bits", std::string("{{ ") + e + " }}");
    EXPECT_TEXT("-9223372036854775808 0 4611686018427387904", "{{ -9223372036854775807 - 1 }} "
                                                              "{{ (-9223372036854775807 - 1) % -1 }} {{ 2 ** 62 }}");
    EXPECT_TEXT("-9223372036854775808 5", "{{ '-9223372036854775808' | int }} {{ '-9223372036854775809x' | int(5) }}");
}

/* ---- limits ------------------------------------------------------------------------------------------------------ */

TEST(JinjaLimits, endless_work_stops)
{
    EXPECT_REFUSED(NB_ELIMIT, "steps", "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}");
    EXPECT_REFUSED(NB_ELIMIT, "range of", "{{ range(100001) }}");
    EXPECT_REFUSED(NB_ELIMIT, "range of", "{{ range(-9223372036854775807, 9223372036854775807) }}");
    EXPECT_REFUSED(NB_ELIMIT, "repeated", "{{ 'x' * 9223372036854775807 }}");
    EXPECT_REFUSED(NB_ELIMIT, "repeated", "{{ [0] * 9223372036854775807 }}");
    EXPECT_REFUSED(NB_ELIMIT, "bytes",
                   "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}"
                   "{% set ns.s = ns.s + ns.s %}{% endfor %}");
    EXPECT_REFUSED(NB_ELIMIT, "",
                   "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}"
                   "{% set ns.s = ns.s | replace('x', ns.s) %}{% endfor %}");
    EXPECT_REFUSED(NB_ELIMIT, "",
                   "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}"
                   "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}");
    EXPECT_REFUSED(NB_ELIMIT, "",
                   "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}"
                   "{% set ns.l = ns.l + ns.l %}{% endfor %}");
    EXPECT_REFUSED(NB_EUNSUPPORTED, "", "{{ '%999999999d' % 1 }}");
    EXPECT_REFUSED(NB_ELIMIT, "", "{{ '' | indent(999999999999) }}");
    EXPECT_REFUSED(NB_ELIMIT, "", "{{ [[]] | tojson(indent=999999999) }}");
    EXPECT_REFUSED(NB_ELIMIT, "bytes", "{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}");
}

TEST(JinjaLimits, are_the_caller_s)
{
    nbi_jinja_limits steps = {}, output = {}, depth = {};
    steps.max_steps = 100;
    output.max_output = 10;
    depth.max_depth = 3;
    EXPECT_TEXT("45", "{{ range(10) | sum }}", "{}", &steps);
    EXPECT_REFUSED(NB_ELIMIT, "more than 100 steps", "{{ range(101) | sum }}", "{}", &steps);
    EXPECT_TEXT("0123456789", "{% for i in range(10) %}{{ i }}{% endfor %}", "{}", &output);
    EXPECT_REFUSED(NB_ELIMIT, "more than 10 bytes", "0123456789{{ 1 }}", "{}", &output);
    EXPECT_REFUSED(NB_ELIMIT, "more than 10 bytes", "{% set x %}01234567890{% endset %}", "{}", &output);
    const std::string macro = "{% macro m(n) %}{{ n }}{% if n > 1 %}{{ m(n - 1) }}{% endif %}{% endmacro %}";
    EXPECT_TEXT("321", macro + "{{ m(3) }}", "{}", &depth);
    EXPECT_REFUSED(NB_ELIMIT, "4 levels deep", macro + "{{ m(4) }}", "{}", &depth);
    EXPECT_TEXT("[[[]]]", "{{ x }}", R"({"x":[[[]]]})", &depth);
    EXPECT_REFUSED(NB_ELIMIT, "nested deeper than 3", "{{ x }}", R"({"x":[[[[]]]]})", &depth);
}

static std::string times(size_t n, const std::string &s)
{
    std::string r;
    for (size_t i = 0; i < n; i++)
        r += s;
    return r;
}

TEST(JinjaLimits, nesting_is_bounded_when_the_template_is_read)
{
    const size_t deep = 20000;
    for (const std::string &s : {"{{ " + times(deep, "("),
                                 "{{ " + times(deep, "["),
                                 "{{ " + times(deep, "{1:"),
                                 "{{ " + times(deep, "- ") + "1 }}",
                                 "{{ " + times(deep, "not ") + "1 }}",
                                 "{{ 1" + times(deep, " if 1 else 1") + " }}",
                                 "{{ a" + times(deep, ".b") + " }}",
                                 "{{ a" + times(deep, "|e") + " }}",
                                 "{{ 1" + times(deep, "+1") + " }}",
                                 "{{ 1" + times(deep, " and 1") + " }}",
                                 "{{ 1" + times(deep, "**1") + " }}",
                                 times(deep, "{% if 1 %}"),
                                 times(deep, "{% for x in y %}"),
                                 times(deep, "{% set x %}"),
                                 "{{ f" + times(deep, "("),
                                 "{{ f" + times(deep, "()") + " }}",
                                 "{{ a" + times(deep, "[0]") + " }}",
                                 "{% for " + times(deep, "(") + "x",
                                 times(deep, "{% macro m() %}"),
                                 "{{ 1" + times(deep, " is eq 1") + " }}",
                                 "{{ 1" + times(deep, "|f(1") + " }}"}) {
        nbi_jinja *t = nullptr;
        nb_status st = nbi_jinja_compile(&t, s.data(), s.size()); /* not left to the limits of rendering */
        EXPECT_TRUE(st == NB_ELIMIT || st == NB_EFORMAT) << s.substr(0, 40) << ": " << nb_last_error();
        nbi_jinja_free(t);
    }
    /* Long is not deep. */
    EXPECT_EQ(NB_OK, render("{{ 1" + times(300, " + 1") + " }}").status);
    EXPECT_TEXT(times(5001, "1"), "{{ 1" + times(5000, " ~ 1") + " }}");
    EXPECT_TEXT("x", "{% if 0 %}" + times(5000, "{% elif 0 %}") + "{% else %}x{% endif %}");
    EXPECT_TEXT("1", "{{ " + times(90, "(") + "1" + times(90, ")") + " }}");
}

TEST(JinjaLimits, the_deepest_allowed_recursion_fits_a_small_stack)
{
    /* 64 macro calls of an expression as high as the parser allows, on a thread with 2 MiB. */
    std::string body = "{{ 0" + times(390, " + 0") + " + m(n - 1) | int }}";
    std::string source = "{% macro m(n) %}{% if n > 0 %}" + body + "{% endif %}{% endmacro %}{{ m(60) }}";
    Result r;
    pthread_attr_t attr;
    pthread_t thread;
    struct Job {
        const std::string *source;
        Result *r;
    } job{&source, &r};
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 2 << 20);
    auto run = [](void *p) -> void * {
        Job *j = static_cast<Job *>(p);
        *j->r = render(*j->source);
        return nullptr;
    };
    ASSERT_EQ(0, pthread_create(&thread, &attr, run, &job));
    pthread_join(thread, nullptr);
    pthread_attr_destroy(&attr);
    EXPECT_TRUE(r.status == NB_OK || r.status == NB_ELIMIT) << r.error;
}

TEST(JinjaLimits, a_long_conversation_is_no_attack)
{
    /* 2000 messages of 4 KB, then one of 4 MB, through what templates do with content. */
    Json c(json_object());
    json_t *messages = json_array();
    for (int i = 0; i <= 2000; i++) {
        std::string text =
            "<think>" + std::string(i == 2000 ? 4 << 20 : 2000, 'a') + "</think>" + std::string(2000, 'b');
        json_array_append_new(messages,
                              json_pack("{s:s, s:s}", "role", i % 2 ? "assistant" : "user", "content", text.c_str()));
    }
    json_object_set_new(c.j, "messages", messages);
    Result r = render(
        "{% for m in messages %}{% set content = m.content %}"
        "{% if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\\n' + content | trim + '<|im_end|>\\n' }}{% endfor %}",
        c.j);
    EXPECT_EQ(NB_OK, r.status) << r.error;
    EXPECT_GT(r.text.size(), 2001u * 2000);
}

TEST(Jinja, one_template_renders_on_many_threads)
{
    const std::string source =
        "{% set ns = namespace(n=0) %}{% for i in range(200) %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}";
    nbi_jinja *t = nullptr;
    ASSERT_NB_OK(nbi_jinja_compile(&t, source.data(), source.size()));
    std::vector<std::thread> threads;
    std::vector<std::string> got(8);
    for (int k = 0; k < 8; k++)
        threads.emplace_back([&, k] {
            Json c("{\"x\":" + std::to_string(k) + "}");
            char *text = nullptr;
            if (nbi_jinja_render(t, c.j, nullptr, &text, nullptr) == NB_OK)
                got[k] = text;
            free(text);
        });
    for (auto &th : threads)
        th.join();
    for (int k = 0; k < 8; k++)
        EXPECT_EQ(std::to_string(200 * k), got[k]);
    nbi_jinja_free(t);
}

/* ---- damaged templates ------------------------------------------------------------------------------------------- */

/* Whatever a template holds: text or an error with a sentence, soon. */
static void survives(const std::string &source, const json_t *context)
{
    nbi_jinja_limits limits = {20000, 1 << 16, 16};
    Result r = render(source, context, &limits);
    if (r.status == NB_OK)
        EXPECT_LE(r.text.size(), limits.max_output);
    else
        EXPECT_FALSE(r.error.empty());
    EXPECT_NE(NB_EINTERNAL, r.status) << r.error << "\n" << source;
}

static std::vector<std::pair<std::string, std::string>> fuzz_seeds()
{
    std::vector<std::pair<std::string, std::string>> seeds;
    Json cases(load(repo_file("tests/data/jinja_cases.json")));
    json_t *row;
    size_t i;
    json_array_foreach(json_object_get(cases.j, "rows"), i, row)
    {
        char *context = json_dumps(json_object_get(row, "context"), 0);
        seeds.emplace_back(string_at(row, "template"), context);
        free(context);
    }
    return seeds;
}

TEST(JinjaFuzz, every_truncation_gives_text_or_an_error)
{
    for (auto &[source, context] : fuzz_seeds()) {
        Json c(context);
        for (size_t n = 0; n < source.size(); n++)
            survives(source.substr(0, n), c.j);
    }
}

TEST(JinjaFuzz, flipped_cut_and_spliced_bytes_give_text_or_an_error)
{
    auto seeds = fuzz_seeds();
    std::mt19937 rng(20);
    auto below = [&](size_t n) { return size_t(rng() % (n ? n : 1)); };
    static const char alphabet[] = "{}%#-+|.,()[]'\"\\ \n=<>!~*/:019aeinx_\x80\xff";
    for (int round = 0; round < 20000; round++) {
        auto &[source, context] = seeds[below(seeds.size())];
        const std::string &other = seeds[below(seeds.size())].first;
        std::string s = source;
        for (size_t k = 1 + below(4); k > 0; k--) {
            size_t at = below(s.size() + 1), from = below(other.size() + 1);
            switch (below(5)) {
            case 0:
                if (at < s.size())
                    s[at] = char(s[at] ^ (1 << below(8)));
                break;
            case 1:
                s.insert(at, 1, alphabet[below(sizeof alphabet - 1)]);
                break;
            case 2:
                s.erase(at, 1 + below(8));
                break;
            case 3:
                s.insert(at, other.substr(from, 1 + below(30)));
                break;
            default:
                s.insert(at, s.substr(below(s.size() + 1), 1 + below(20)));
            }
        }
        Json c(context);
        survives(s, c.j);
    }
}

TEST(JinjaFuzz, damaged_chat_templates_give_text_or_an_error)
{
    NEEDS_SHARED(folder, "chat-templates");
    Json vectors(load(repo_file("tests/data/chat_vectors.json")));
    json_t *context = json_object_get(json_object_get(vectors.j, "conversations"), "tool_rounds");
    std::mt19937 rng(7);
    for (auto &entry : std::filesystem::directory_iterator(folder)) {
        Json unused(json_object());
        std::string source = load_template(entry.path().string(), unused.j);
        for (int round = 0; round < 150 && !source.empty(); round++) {
            std::string s = source.substr(0, round % 3 ? std::string::npos : rng() % source.size());
            for (int k = 0; k < round % 5 && !s.empty(); k++)
                s[rng() % s.size()] ^= char(1 << rng() % 8);
            survives(s, context);
        }
    }
}
