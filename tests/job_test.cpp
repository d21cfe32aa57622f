/* nb_run() over a stand-in engine: rows, broken lines, resume after anything, shards, limits of memory. */
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cerrno>
#include <map>
#include <memory>
#include <random>
#include <set>

#include "fake_engine.h"

/* The job's system calls, so that a disk can be full and a row can be seen to be one write. */
static size_t n_writes;
static long disk_left = -1; /* bytes until ENOSPC; -1: endless */
extern "C" ssize_t write(int fd, const void *data, size_t n)
{
    n_writes++;
    if (fd > 2 && disk_left >= 0) {
        if (disk_left == 0) {
            errno = ENOSPC;
            return -1;
        }
        n = std::min(n, (size_t)disk_left);
        disk_left -= (long)n;
    }
    return syscall(SYS_write, fd, data, n);
}

namespace
{
using std::string;
using std::vector;

struct Model {
    nb_tokenizer tok;
    nbi_backend be{}; /* its default KV cache is f32 */
    std::unique_ptr<nb_model> m{new nb_model()};
    Model()
    {
        m->be = &be;
        m->tok = &tok;
        m->cfg.vocab = 258;
        m->cfg.max_context = 4096;
        m->hash = 0x1234;
        snprintf(m->path, sizeof m->path, "models/fake/");
    }
};

struct Json {
    json_t *j;
    explicit Json(const string &text) : j(json_loads(text.c_str(), 0, nullptr)) { EXPECT_TRUE(j) << text; }
    ~Json() { json_decref(j); }
    Json(const Json &) = delete;
    json_t *at(std::initializer_list<const char *> path) const
    {
        json_t *v = j;
        for (auto p : path)
            v = json_object_get(v, p);
        return v;
    }
    string str(std::initializer_list<const char *> path) const
    {
        const char *s = json_string_value(at(path));
        return s ? s : "(none)";
    }
    long num(std::initializer_list<const char *> path) const { return (long)json_integer_value(at(path)); }
};

vector<string> lines_of(const string &path)
{
    vector<string> out;
    std::stringstream s(read_text(path));
    for (string l; std::getline(s, l);)
        out.push_back(l);
    return out;
}
std::multiset<string> rows_of(const string &path)
{
    auto l = lines_of(path);
    return {l.begin(), l.end()};
}

string row(const string &id, const string &prompt, const string &more = "")
{
    return R"({"custom_id":")" + id + R"(","method":"POST","url":"/v1/completions","body":{"prompt":")" + prompt +
           R"(","max_tokens":5)" + more + "}}\n";
}
string many_rows(size_t n)
{
    string s;
    for (size_t i = 0; i < n; i++)
        s += row("row-" + std::to_string(i), "prompt " + std::to_string(i * 7919), i % 3 ? "" : ",\"temperature\":0");
    return s;
}

class Job : public testing::Test
{
  protected:
    TempDir dir;
    Model model;
    string in = dir / "in.jsonl", out = dir / "out.jsonl", meta = dir / "out.jsonl.meta", err = dir / "err.jsonl";
    nb_run_options o;
    nb_run_summary sum;
    std::function<int(const nb_progress &)> progress;
    vector<string> log;

    void SetUp() override
    {
        fake = FakeControl();
        disk_left = -1;
        nb_run_options_init(&o);
        o.input = in.c_str();
        o.output = out.c_str();
        o.engine.max_batch = 4;
        o.callbacks.user = this;
        o.callbacks.progress = [](void *u, const nb_progress *p) {
            auto *self = (Job *)u;
            return self->progress ? self->progress(*p) : 0;
        };
        o.callbacks.log = [](void *u, nb_log_level, const char *t) { ((Job *)u)->log.push_back(t); };
    }
    nb_status run()
    {
        sum = nb_run_summary{};
        sum.struct_size = sizeof sum;
        return nb_run(model.m.get(), &o, &sum);
    }
    nb_status run_on(const string &text)
    {
        write_text(in, text);
        return run();
    }
    /* A run that is cancelled once `rows` rows are there. */
    nb_status run_until(uint64_t rows)
    {
        progress = [rows](const nb_progress &p) { return string(p.stage) == "run" && p.done >= rows; };
        nb_status st = run();
        progress = nullptr;
        return st;
    }
    /* The rows of an uninterrupted run of the same job: same header, so the same bytes. */
    std::multiset<string> uninterrupted()
    {
        string other = dir / "other.jsonl";
        write_text(other + ".meta", read_text(meta));
        nb_run_options p = o;
        p.output = other.c_str();
        p.resume = 1;
        p.overwrite = p.retry_failed = 0;
        EXPECT_NB_OK(nb_run(model.m.get(), &p, nullptr));
        auto rows = rows_of(other);
        std::filesystem::remove(other);
        return rows;
    }
    std::map<string, string> by_id(const string &path)
    {
        std::map<string, string> m;
        for (auto &l : lines_of(path)) {
            Json j(l);
            string id = j.str({"custom_id"});
            EXPECT_EQ(0u, m.count(id)) << "twice: " << id;
            m[id] = l;
        }
        return m;
    }
};

/* ---- rows ----------------------------------------------------------------------------------------------------------- */

TEST_F(Job, every_row_is_answered_in_openais_shape)
{
    ASSERT_NB_OK(run_on(row("a", "hello") + R"({"custom_id":"b","method":"POST","url":"/v1/chat/completions","body":{)"
                                            R"("messages":[{"role":"user","content":"hi"}],"max_tokens":4}})"
                                            "\n"));
    auto rows = by_id(out);
    ASSERT_EQ(2u, rows.size());
    Json a(rows["a"]), b(rows["b"]), h(read_text(meta));
    EXPECT_EQ(200, a.num({"response", "status_code"}));
    EXPECT_TRUE(json_is_null(a.at({"error"})));
    EXPECT_EQ("text_completion", a.str({"response", "body", "object"}));
    EXPECT_EQ("chat.completion", b.str({"response", "body", "object"}));
    EXPECT_EQ("fake", b.str({"response", "body", "model"}));
    EXPECT_EQ(h.num({"created"}), a.num({"response", "body", "created"}));
    EXPECT_EQ(6, a.num({"response", "body", "usage", "prompt_tokens"}));
    EXPECT_EQ(5, a.num({"response", "body", "usage", "completion_tokens"}));
    string id = a.str({"id"});
    EXPECT_EQ(36u, id.size());
    EXPECT_EQ("batch_req_", id.substr(0, 10));
    EXPECT_EQ("0000000001", id.substr(26));
    EXPECT_EQ("req_" + id.substr(10), a.str({"response", "request_id"}));
    EXPECT_EQ("cmpl-" + id.substr(10), a.str({"response", "body", "id"}));
    EXPECT_EQ(2u, sum.total);
    EXPECT_EQ(2u, sum.completed);
    EXPECT_EQ(0u, sum.failed + sum.skipped);
    EXPECT_EQ(9u, sum.output_tokens);
    EXPECT_GT(sum.prompt_tokens, 6u);
}

TEST_F(Job, a_row_is_one_write)
{
    write_text(in, many_rows(50));
    progress = [](const nb_progress &p) {
        if (p.done == 0)
            n_writes = 0;
        return 0;
    };
    ASSERT_NB_OK(run());
    EXPECT_EQ(50u, n_writes);
}

TEST_F(Job, rows_under_way_are_bounded)
{
    ASSERT_NB_OK(run_on(many_rows(300)));
    EXPECT_EQ(8u, fake.most);
    o.overwrite = 1;
    o.engine.max_queue = 3; /* never more than the engine takes */
    fake.most = 0;
    ASSERT_NB_OK(run());
    EXPECT_EQ(3u, fake.most);
    EXPECT_EQ(300u, sum.completed);
}

TEST_F(Job, a_rerun_gives_the_same_bytes)
{
    ASSERT_NB_OK(run_on(many_rows(40)));
    auto first = uninterrupted();
    EXPECT_EQ(first, rows_of(out));
    fake.scramble = 99;
    o.engine.max_batch = 7;
    EXPECT_EQ(first, uninterrupted());
}

TEST_F(Job, the_seed_comes_from_the_custom_id)
{
    fake.keep_seen = true;
    ASSERT_NB_OK(run_on(row("a", "p") + row("b", "p") + row("c", "p", ",\"seed\":5")));
    ASSERT_EQ(3u, fake.seen.size());
    EXPECT_EQ(nbi_hash(NBI_HASH_INIT, "a", 1), fake.seen[0].sampling.seed);
    EXPECT_NE(fake.seen[0].sampling.seed, fake.seen[1].sampling.seed);
    EXPECT_EQ(5u, fake.seen[2].sampling.seed);
}

TEST_F(Job, crlf_blank_lines_bom_and_a_missing_last_newline_are_fine)
{
    string a = row("a", "x"), b = row("b", "y");
    a.insert(a.size() - 1, "\r");
    b.pop_back();
    ASSERT_NB_OK(run_on("\xEF\xBB\xBF" + a + "\n  \t\r\n" + b));
    EXPECT_EQ(2u, sum.total);
    EXPECT_EQ(2u, sum.completed);
    EXPECT_EQ("0000000004", Json(by_id(out)["b"]).str({"id"}).substr(26)); /* physical lines count */
}

TEST_F(Job, an_empty_input_is_a_job_without_rows)
{
    ASSERT_NB_OK(run_on(""));
    EXPECT_EQ(0u, sum.total);
    EXPECT_EQ(0u, fake.engines);
    EXPECT_EQ("", read_text(out));
    o.resume = 1;
    EXPECT_NB_OK(run());
}

TEST_F(Job, the_endpoint_is_told_from_url_option_or_body)
{
    string bare = R"({"custom_id":"a","body":{"prompt":"x","max_tokens":2}})"
                  "\n"
                  R"({"custom_id":"b","body":{"messages":[{"role":"user","content":"x"}],"max_tokens":2}})"
                  "\n"
                  R"({"custom_id":"c","url":"/v1/completions","body":{"prompt":"x","max_tokens":2}})"
                  "\n"
                  R"({"custom_id":"d","body":{"max_tokens":2}})"
                  "\n"
                  R"({"custom_id":"e","body":{"prompt":"x","messages":[]}})"
                  "\n";
    ASSERT_NB_OK(run_on(bare));
    auto rows = by_id(out);
    EXPECT_EQ("text_completion", Json(rows["a"]).str({"response", "body", "object"}));
    EXPECT_EQ("chat.completion", Json(rows["b"]).str({"response", "body", "object"}));
    EXPECT_EQ("url", Json(rows["d"]).str({"response", "body", "error", "param"}));
    EXPECT_EQ("url", Json(rows["e"]).str({"response", "body", "error", "param"}));
    o.overwrite = 1;
    o.endpoint = "/v1/chat/completions";
    ASSERT_NB_OK(run());
    rows = by_id(out);
    EXPECT_EQ("prompt", Json(rows["a"]).str({"response", "body", "error", "param"})); /* unknown there */
    EXPECT_EQ(200, Json(rows["b"]).num({"response", "status_code"}));
    EXPECT_EQ(200, Json(rows["c"]).num({"response", "status_code"}));
    o.endpoint = "/v1/embeddings";
    EXPECT_FAILS(NB_EINVAL, "/v1/embeddings", run());
}

TEST_F(Job, default_max_tokens_fill_in)
{
    write_text(in, R"({"custom_id":"a","body":{"prompt":"x"}})");
    o.default_max_tokens = 3;
    ASSERT_NB_OK(run());
    EXPECT_EQ(3, Json(read_text(out)).num({"response", "body", "usage", "completion_tokens"}));
}

TEST_F(Job, default_max_tokens_end_where_the_context_or_the_cache_ends)
{
    write_text(in, R"({"custom_id":"a","body":{"prompt":"x"}})");
    o.overwrite = 1;
    auto tokens = [&] {
        EXPECT_NB_OK(run());
        return Json(read_text(out)).num({"response", "body", "usage", "completion_tokens"});
    };
    o.engine.max_context = 20;
    EXPECT_EQ(18, tokens());
    o.engine.kv_pages = 2;
    EXPECT_EQ(18, tokens());
    o.engine.max_context = 0;
    EXPECT_EQ(2 * NBI_PAGE_TOKENS - 2, tokens());
}

TEST_F(Job, the_shipped_demo_runs_without_a_failed_row)
{
    write_text(in, read_text(repo_file("configs/demo.jsonl")));
    ASSERT_NB_OK(run());
    EXPECT_EQ(24u, sum.total);
    EXPECT_EQ(24u, sum.completed) << read_text(out);
}

/* ---- broken lines ---------------------------------------------------------------------------------------------------- */

struct Broken {
    const char *line;
    int http;
    const char *param, *code, *part;
};
const Broken broken[] = {
    {"{\"custom_id\":\"x\"", 400, nullptr, "invalid_json_line", "line 2: not valid JSON"},
    {"[1]", 400, nullptr, "invalid_json_line", "line 2"},
    {"5", 400, nullptr, "invalid_json_line", "line 2"},
    {"\"\xff\"", 400, nullptr, "invalid_utf8", "line 2: not valid UTF-8 at byte 2"},
    {"{}", 400, "custom_id", "missing_required_parameter", "line 2"},
    {R"({"custom_id":5,"body":{"prompt":"x"}})", 400, "custom_id", "missing_required_parameter", "line 2"},
    {R"({"custom_id":null,"body":{"prompt":"x"}})", 400, "custom_id", "missing_required_parameter", "line 2"},
    {R"({"custom_id":"x","custom_id":"y","body":{"prompt":"x"}})", 400, nullptr, "invalid_json_line", "duplicate"},
    {R"({"custom_id":"x"})", 400, "body", "missing_required_parameter", "body"},
    {R"({"custom_id":"x","body":[]})", 400, "body", "invalid_type", "body"},
    {R"({"custom_id":"x","method":"GET","body":{"prompt":"x"}})", 400, "method", "invalid_value", "GET"},
    {R"({"custom_id":"x","method":1,"body":{"prompt":"x"}})", 400, "method", "invalid_type", "method"},
    {R"({"custom_id":"x","url":1,"body":{"prompt":"x"}})", 400, "url", "invalid_type", "url"},
    {R"({"custom_id":"x","url":"/v1/embeddings","body":{"prompt":"x"}})", 404, "url", "unknown_url", "/v1/embeddings"},
    {R"({"custom_id":"x","body":{"prompt":5}})", 400, "prompt", "invalid_type", "prompt"},
    {R"({"custom_id":"x","body":{"prompt":"x","n":2}})", 400, "n", "unsupported_parameter", "'n'"},
    {R"({"custom_id":"x","body":{"prompt":"x","frobnicate":2}})", 400, "frobnicate", "unknown_parameter", "frobnicate"},
    {R"({"custom_id":"x","body":{"prompt":"x","temperature":3}})", 400, "temperature", "invalid_value", "0 to 2"},
    {R"({"custom_id":"x","body":{"prompt":"REFUSE"}})", 400, nullptr, "context_length_exceeded", "the context 7"},
    {R"({"custom_id":"x","body":{"prompt":"BADREQ"}})", 400, nullptr, "invalid_value", "bad"},
    {R"({"custom_id":"x","body":{"prompt":"FAIL"}})", 500, nullptr, "internal_error", "not finite"},
};

TEST_F(Job, a_broken_line_becomes_an_error_row_and_the_job_goes_on)
{
    o.overwrite = 1;
    for (auto &b : broken) {
        SCOPED_TRACE(b.line);
        ASSERT_NB_OK(run_on(row("before", "x") + b.line + "\n" + row("after", "y")));
        EXPECT_EQ(2u, sum.completed);
        EXPECT_EQ(1u, sum.failed);
        auto rows = lines_of(out);
        ASSERT_EQ(3u, rows.size());
        for (auto &r : rows) {
            Json j(r);
            if (j.num({"response", "status_code"}) == 200)
                continue;
            EXPECT_EQ(b.http, j.num({"response", "status_code"}));
            EXPECT_EQ("0000000002", j.str({"id"}).substr(26));
            EXPECT_TRUE(json_is_null(j.at({"error"})));
            EXPECT_EQ(b.param ? b.param : "(none)", j.str({"response", "body", "error", "param"}));
            EXPECT_EQ(b.code, j.str({"response", "body", "error", "code"}));
            EXPECT_NE(string::npos, j.str({"response", "body", "error", "message"}).find(b.part)) << r;
            bool has_id = strstr(b.line, "\"custom_id\":\"x\",\"") && !strstr(b.line, "\"y\"");
            has_id |= string(b.line) == R"({"custom_id":"x"})";
            EXPECT_EQ(has_id ? "x" : "(none)", j.str({"custom_id"}));
            EXPECT_TRUE(has_id || json_is_null(j.at({"custom_id"})));
        }
    }
}

TEST_F(Job, a_line_over_8_mb_is_an_error_row_and_one_of_8_mb_is_read)
{
    string frame = row("big", "");
    string fits = row("big", string(NBI_JOB_MAX_LINE - (frame.size() - 1), 'x'));
    ASSERT_EQ(NBI_JOB_MAX_LINE + 1, fits.size());
    string over = row("over", string(NBI_JOB_MAX_LINE * 2, 'x'));
    ASSERT_NB_OK(run_on(row("a", "x") + over + fits + row("b", "y")));
    EXPECT_EQ(3u, sum.completed);
    EXPECT_EQ(1u, sum.failed);
    for (auto &r : lines_of(out))
        if (Json(r).num({"response", "status_code"}) != 200) {
            EXPECT_EQ("line_too_long", Json(r).str({"response", "body", "error", "code"}));
            EXPECT_NE(string::npos, Json(r).str({"response", "body", "error", "message"}).find("line 2"));
        }
}

TEST_F(Job, random_damage_always_gives_one_row_for_each_line)
{
    const string good = R"({"custom_id":"row","method":"POST","url":"/v1/chat/completions","body":{"messages":)"
                        R"([{"role":"user","content":"h\u00e9llo"}],"max_tokens":3,"temperature":0.5,"stop":["a"]}})";
    std::mt19937 random(7);
    string text;
    size_t n = 0;
    for (int i = 0; i < 600; i++) {
        string s = good;
        s.replace(s.find("row"), 3, "row" + std::to_string(i)); /* mostly unique, whatever the damage */
        for (unsigned k = 0; k < 1 + i % 4u; k++) {
            size_t at = random() % s.size();
            switch (random() % 3) {
            case 0:
                s[at] = (char)(s[at] ^ (1 << random() % 8));
                break;
            case 1:
                s.erase(at, random() % 6);
                break;
            default:
                s.insert(at, 1, (char)random());
            }
        }
        std::replace(s.begin(), s.end(), '\n', ' ');
        if (s.find_first_not_of(" \t\r\v\f") == string::npos)
            continue;
        text += s + "\n";
        n++;
    }
    nb_status st = run_on(text);
    if (st != NB_OK) { /* damage may have made two ids equal */
        ASSERT_EQ(NB_EFORMAT, st) << nb_last_error();
        FAIL() << "choose another seed: " << nb_last_error();
    }
    EXPECT_EQ(n, sum.total);
    EXPECT_EQ(n, sum.completed + sum.failed);
    std::set<string> ids;
    for (auto &r : lines_of(out))
        ids.insert(Json(r).str({"id"}));
    EXPECT_EQ(n, ids.size());
    EXPECT_EQ(n, lines_of(out).size());
    EXPECT_GT(sum.completed, 30u);
    EXPECT_GT(sum.failed, 100u);
}

/* ---- the check before any model work ------------------------------------------------------------------------------------ */

TEST_F(Job, a_duplicate_custom_id_is_refused_before_anything_else)
{
    write_text(in, row("a", "1") + "\n" + row("b", "2") + "not json\n" + row("c", "3") + row("b", "4") + row("a", "5") +
                       row("b", "6"));
    EXPECT_FAILS(NB_EFORMAT, "custom_id \"b\" is on line 3 and again on line 6", run());
    EXPECT_EQ(0u, fake.engines);
    EXPECT_FALSE(std::filesystem::exists(out));
    EXPECT_FALSE(std::filesystem::exists(meta));
    o.shard_count = 7; /* the other line is in another shard: their outputs are joined later */
    o.shard_index = 2;
    EXPECT_FAILS(NB_EFORMAT, "again on line 6", run());
}

TEST_F(Job, the_same_id_in_another_spelling_is_a_duplicate)
{
    write_text(in, row("\\u0061", "1") + row("a", "2"));
    EXPECT_FAILS(NB_EFORMAT, "on line 1 and again on line 2", run());
}

TEST_F(Job, equal_hashes_of_different_ids_are_no_duplicate)
{
    const char *a = "8yn0iYCKYHlIj4-BwPqk", *b = "GReLUrM4wMqfg9yzV3KQ";
    ASSERT_EQ(nbi_hash(NBI_HASH_INIT, a, 20), nbi_hash(NBI_HASH_INIT, b, 20)) << "these two collide in FNV-1a";
    ASSERT_NB_OK(run_on(row(a, "1") + row(b, "2")));
    EXPECT_EQ(2u, sum.completed);
    o.overwrite = 1;
    write_text(in, row(a, "1") + row(b, "2") + row(a, "3"));
    EXPECT_FAILS(NB_EFORMAT, "on line 1 and again on line 3", run());
}

TEST_F(Job, options_are_checked)
{
    write_text(in, row("a", "x"));
    auto with = [&](auto change) {
        nb_run_options keep = o;
        change();
        nb_status st = run();
        o = keep;
        return st;
    };
    EXPECT_FAILS(NB_EINVAL, "--retry-failed", with([&] { o.retry_failed = 1; }));
    EXPECT_FAILS(NB_EINVAL, "--overwrite", with([&] { o.resume = o.overwrite = 1; }));
    EXPECT_FAILS(NB_EINVAL, "--shard is 3/3", with([&] { o.shard_count = o.shard_index = 3; }));
    EXPECT_FAILS(NB_EINVAL, "different files", with([&] {
                     o.output = in.c_str();
                     o.overwrite = 1;
                 }));
    EXPECT_FAILS(NB_EINVAL, "different files", with([&] { o.errors = out.c_str(); }));
    EXPECT_FAILS(NB_EINVAL, "input", with([&] { o.input = nullptr; }));
    EXPECT_FAILS(NB_EIO, "missing.jsonl", with([&] { o.input = "missing.jsonl"; }));
    EXPECT_FAILS(NB_EIO, "regular file", with([&] { o.input = "/dev/null"; }));
    EXPECT_FAILS(NB_EIO, "cannot create", with([&] { o.output = "/nowhere/out.jsonl"; }));
    EXPECT_FAILS(NB_EINVAL, "nb_run_options_init", nb_run(model.m.get(), nullptr, nullptr));
    EXPECT_FAILS(NB_EUNSUPPORTED, "tokenizer", with([&] { model.m->tok = nullptr; }));
    EXPECT_EQ(read_text(in), row("a", "x"));
}

/* ---- resume --------------------------------------------------------------------------------------------------------- */

TEST_F(Job, an_existing_output_is_only_touched_when_asked)
{
    ASSERT_NB_OK(run_on(many_rows(5)));
    string before = read_text(out);
    EXPECT_FAILS(NB_EEXIST, "--resume", run());
    EXPECT_EQ(before, read_text(out));
    o.resume = 1;
    ASSERT_NB_OK(run());
    EXPECT_EQ(5u, sum.skipped);
    EXPECT_EQ(before, read_text(out));
    o.resume = 0;
    o.overwrite = 1;
    ASSERT_NB_OK(run_on(many_rows(3)));
    EXPECT_EQ(3u, lines_of(out).size());
}

TEST_F(Job, cancel_keeps_what_is_done_and_resume_completes_it)
{
    write_text(in, many_rows(60));
    EXPECT_EQ(NB_ECANCELLED, run_until(20));
    EXPECT_NE(string::npos, string(nb_last_error()).find("resume with --resume"));
    EXPECT_GT(fake.cancels, 0u);
    size_t have = lines_of(out).size();
    EXPECT_GE(have, 20u);
    EXPECT_LT(have, 60u);
    EXPECT_EQ(have, sum.completed);
    o.resume = 1;
    ASSERT_NB_OK(run());
    EXPECT_EQ(have, sum.skipped);
    EXPECT_EQ(60u, sum.completed + sum.skipped);
    EXPECT_EQ(60u, by_id(out).size());
    EXPECT_EQ(uninterrupted(), rows_of(out));
}

TEST_F(Job, a_cancel_during_the_check_writes_nothing)
{
    write_text(in, many_rows(3000));
    progress = [](const nb_progress &p) { return string(p.stage) == "check"; };
    EXPECT_FAILS(NB_ECANCELLED, "nothing was written", run());
    EXPECT_FALSE(std::filesystem::exists(out));
    EXPECT_FALSE(std::filesystem::exists(meta));
}

TEST_F(Job, resume_of_a_job_that_never_began_begins_it)
{
    o.resume = 1;
    ASSERT_NB_OK(run_on(many_rows(5)));
    EXPECT_EQ(5u, sum.completed);
    for (bool empty_meta : {false, true}) { /* killed before the header was there */
        std::filesystem::remove(meta);
        if (empty_meta)
            write_text(meta, "");
        write_text(out, "");
        ASSERT_NB_OK(run());
        EXPECT_EQ(5u, sum.completed);
    }
    std::filesystem::remove(out); /* killed before the output was there */
    ASSERT_NB_OK(run());
    EXPECT_EQ(5u, sum.completed);
}

TEST_F(Job, resume_refuses_another_job_and_names_the_field)
{
    write_text(in, many_rows(6));
    EXPECT_EQ(NB_ECANCELLED, run_until(2));
    string before = read_text(out);
    o.resume = 1;
    auto with = [&](auto change) {
        nb_run_options keep = o;
        change();
        nb_status st = run();
        o = keep;
        return st;
    };
    EXPECT_FAILS(NB_EINVAL, "\"default_max_tokens\" is 128, but this run has 9",
                 with([&] { o.default_max_tokens = 9; }));
    EXPECT_FAILS(NB_EINVAL, "\"shard\" is \"0/1\"", with([&] { o.shard_count = 2; }));
    EXPECT_FAILS(NB_EINVAL, "\"endpoint\" is null", with([&] { o.endpoint = "/v1/completions"; }));
    EXPECT_FAILS(NB_EINVAL, "\"kv_dtype\" is \"f32\", but this run has \"int8\"",
                 with([&] { o.engine.kv_dtype = "int8"; }));
    EXPECT_FAILS(NB_EINVAL, "expected f32, f16, int8 or int4", with([&] { o.engine.kv_dtype = "fp8"; }));
    EXPECT_FAILS(NB_EINVAL, "\"max_context\"", with([&] { o.engine.max_context = 99; }));
    EXPECT_FAILS(NB_EINVAL, "\"errors_apart\"", with([&] { o.errors = err.c_str(); }));
    model.m->hash++;
    EXPECT_FAILS(NB_EINVAL, "\"model_hash\"", run());
    model.m->hash--;
    string text = read_text(in);
    text[text.find("7919")] = '8';
    write_text(in, text);
    EXPECT_FAILS(NB_EINVAL, "\"input_hash\"", run());
    write_text(in, text + "\n");
    EXPECT_FAILS(NB_EINVAL, "\"input_bytes\"", run());
    write_text(in, many_rows(6));
    string header = read_text(meta);
    write_text(meta, header.substr(0, header.size() / 2));
    EXPECT_FAILS(NB_EFORMAT, "out.jsonl.meta", run());
    std::filesystem::remove(meta);
    EXPECT_FAILS(NB_EFORMAT, "not known which job", run());
    EXPECT_EQ(before, read_text(out));
    write_text(meta, header);
    EXPECT_NB_OK(run()); /* all that was only looked at */
}

TEST_F(Job, a_moved_input_is_still_the_same_job)
{
    write_text(in, many_rows(6));
    EXPECT_EQ(NB_ECANCELLED, run_until(2));
    string moved = dir / "moved.jsonl";
    std::filesystem::rename(in, moved);
    o.input = moved.c_str();
    o.resume = 1;
    EXPECT_NB_OK(run());
    EXPECT_EQ(6u, by_id(out).size());
}

TEST_F(Job, every_truncation_of_the_output_can_be_resumed)
{
    ASSERT_NB_OK(run_on(many_rows(4) + "broken\n"));
    string whole = read_text(out);
    auto want = rows_of(out);
    o.resume = 1;
    for (size_t n = 0; n < whole.size(); n += n < 100 ? 1 : 13) {
        write_text(out, whole.substr(0, n));
        ASSERT_NB_OK(run()) << n;
        ASSERT_EQ(want, rows_of(out)) << n;
        ASSERT_EQ((uint64_t)std::count(whole.begin(), whole.begin() + (long)n, '\n'), sum.skipped) << n;
    }
}

TEST_F(Job, damaged_lines_are_computed_again)
{
    ASSERT_NB_OK(run_on(many_rows(8)));
    auto want = rows_of(out), lines = rows_of(out);
    auto l = lines_of(out);
    l[2] = string(l[2].size(), '\0'); /* a block of zeros after a power loss */
    l[5] = l[5].substr(0, l[5].size() / 2);
    string text;
    for (auto &s : l)
        text += s + "\n";
    write_text(out, text + string(100, '\0'));
    o.resume = 1;
    ASSERT_NB_OK(run());
    EXPECT_EQ(6u, sum.skipped);
    EXPECT_EQ(want, rows_of(out));
    EXPECT_EQ(3u, log.size()); /* two damaged lines, one torn */
}

TEST_F(Job, rows_that_are_not_of_this_job_are_refused)
{
    ASSERT_NB_OK(run_on(many_rows(4)));
    string good = read_text(out), first = lines_of(out)[0] + "\n";
    o.resume = 1;
    auto refused = [&](const string &text, const char *part) {
        write_text(out, text);
        EXPECT_FAILS(NB_EFORMAT, part, run());
        EXPECT_EQ(text, read_text(out));
    };
    refused(good + first, "second time");
    refused(good + "{\"id\":\"batch_req_1\"}\n", "line 5 is not a row of this job");
    refused(good + "{}\n", "line 5");
    string other = first;
    other[other.find("batch_req_") + 12] ^= 1;
    refused(other + good, "line 1");
    string beyond = first;
    beyond.replace(beyond.find("batch_req_") + 26, 10, "0000000005");
    refused(beyond, "line 1");
}

TEST_F(Job, failed_rows_stay_until_retry_is_asked_for)
{
    ASSERT_NB_OK(run_on(many_rows(6) + row("bad", "FAIL now") + "broken\n"));
    EXPECT_EQ(2u, sum.failed);
    auto want = rows_of(out);
    o.resume = 1;
    ASSERT_NB_OK(run());
    EXPECT_EQ(8u, sum.skipped);
    o.retry_failed = 1;
    ASSERT_NB_OK(run());
    EXPECT_EQ(6u, sum.skipped);
    EXPECT_EQ(2u, sum.failed);
    EXPECT_EQ(want, rows_of(out)); /* the retried row replaced the old one */
}

TEST_F(Job, errors_can_go_to_their_own_file)
{
    o.errors = err.c_str();
    write_text(in, row("bad", "FAIL now") + many_rows(30) + "broken\n" + row("worse", "REFUSE"));
    EXPECT_EQ(NB_ECANCELLED, run_until(12));
    o.resume = 1;
    ASSERT_NB_OK(run());
    EXPECT_EQ(30u, by_id(out).size());
    ASSERT_EQ(3u, lines_of(err).size());
    for (auto &r : lines_of(err))
        EXPECT_NE(200, Json(r).num({"response", "status_code"}));
    auto good = rows_of(out), bad = rows_of(err);
    ASSERT_NB_OK(run());
    EXPECT_EQ(33u, sum.skipped);
    o.retry_failed = 1;
    ASSERT_NB_OK(run());
    EXPECT_EQ(30u, sum.skipped);
    EXPECT_EQ(good, rows_of(out));
    EXPECT_EQ(bad, rows_of(err));
    o.resume = o.retry_failed = 0;
    std::filesystem::remove(out);
    EXPECT_FAILS(NB_EEXIST, "err.jsonl", run());
}

TEST_F(Job, shards_part_the_rows_and_join_to_the_whole)
{
    string text = "\n" + many_rows(25) + "\nbroken\n";
    ASSERT_NB_OK(run_on(text));
    std::map<string, string> whole;
    for (auto &r : lines_of(out))
        whole[Json(r).str({"id"}).substr(26)] = Json(r).str({"custom_id"});
    std::map<string, string> joined;
    uint64_t total = 0;
    for (uint32_t i = 0; i < 4; i++) {
        string part = dir / ("part-" + std::to_string(i));
        o.output = part.c_str();
        o.shard_index = i;
        o.shard_count = 4;
        ASSERT_NB_OK(run());
        total += sum.total;
        for (auto &r : lines_of(part)) {
            string number = Json(r).str({"id"}).substr(26);
            EXPECT_EQ(i, (std::stoul(number, nullptr, 16) - 1) % 4);
            EXPECT_EQ(0u, joined.count(number));
            joined[number] = Json(r).str({"custom_id"});
        }
    }
    EXPECT_EQ(26u, total);
    EXPECT_EQ(whole, joined);
}

TEST_F(Job, a_second_process_is_kept_out)
{
    write_text(in, many_rows(5));
    bool tried = false;
    progress = [&](const nb_progress &p) {
        if (string(p.stage) == "run" && !tried) {
            tried = true;
            nb_run_options second = o;
            second.callbacks = nb_callbacks{};
            second.resume = 1;
            EXPECT_FAILS(NB_EEXIST, "another process", nb_run(model.m.get(), &second, nullptr));
            second.resume = 0;
            second.overwrite = 1;
            EXPECT_FAILS(NB_EEXIST, "another process", nb_run(model.m.get(), &second, nullptr));
        }
        return 0;
    };
    ASSERT_NB_OK(run());
    EXPECT_TRUE(tried);
    EXPECT_EQ(5u, by_id(out).size());
}

TEST_F(Job, a_dying_engine_leaves_what_is_finished)
{
    write_text(in, many_rows(20) + row("dead", "DIE") + many_rows(0));
    EXPECT_FAILS(NB_EINTERNAL, "the device is gone", run());
    size_t have = lines_of(out).size();
    EXPECT_GT(have, 5u);
    EXPECT_EQ(have, sum.completed);
    EXPECT_EQ(have, by_id(out).size());
    o.resume = 1;
    EXPECT_FAILS(NB_EINTERNAL, "the device is gone", run());
    EXPECT_EQ(have, sum.skipped);
}

TEST_F(Job, a_full_disk_stops_the_job_and_the_rest_can_be_resumed)
{
    write_text(in, many_rows(30));
    for (long room : {0L, 1L, 500L, 1000L, 4321L}) {
        o.overwrite = 1;
        o.resume = 0;
        progress = [&](const nb_progress &p) {
            if (string(p.stage) == "run" && p.done == 0)
                disk_left = room;
            return 0;
        };
        EXPECT_FAILS(NB_EIO, "out.jsonl: cannot write", run());
        disk_left = -1;
        progress = nullptr;
        string text = read_text(out);
        EXPECT_TRUE(text.empty() || text.back() == '\n') << room; /* the torn row was cut at once */
        o.overwrite = 0;
        o.resume = 1;
        ASSERT_NB_OK(run());
        EXPECT_EQ(30u, by_id(out).size());
        EXPECT_EQ(uninterrupted(), rows_of(out));
    }
}

TEST_F(Job, an_input_that_changes_meanwhile_is_told)
{
    write_text(in, many_rows(3000));
    bool changed = false;
    progress = [&](const nb_progress &p) {
        if (string(p.stage) == "run" && p.done > 10 && !changed) {
            changed = true;
            std::ofstream(in, std::ios::app) << row("new", "x");
        }
        return 0;
    };
    EXPECT_FAILS(NB_EIO, "was changed", run());
}

TEST_F(Job, progress_counts_up_to_the_total)
{
    write_text(in, many_rows(30));
    EXPECT_EQ(NB_ECANCELLED, run_until(9));
    uint64_t last = 0;
    double rate = 0;
    progress = [&](const nb_progress &p) {
        if (string(p.stage) != "run")
            return 0;
        EXPECT_EQ(30u, p.total);
        EXPECT_STREQ("requests", p.unit);
        EXPECT_GE(p.done, last);
        EXPECT_GE(p.done, 9u);
        last = p.done;
        rate = p.rate;
        return 0;
    };
    o.resume = 1;
    ASSERT_NB_OK(run());
    EXPECT_EQ(30u, last);
    EXPECT_GT(rate, 0);
}

/* The promise of the whole file: killed at any moment, nothing is lost and nothing is done twice. */
TEST_F(Job, kill_9_at_any_moment_loses_and_repeats_nothing)
{
    write_text(in, many_rows(150) + "broken\n" + row("bad", "FAIL now"));
    o.errors = err.c_str();
    o.resume = 1;
    std::mt19937 random(11);
    int kills = 0, status = 0;
    for (int i = 0; i < 200; i++) {
        pid_t child = fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
            fake.step_us = 1500;
            fake.scramble = (uint64_t)i + 2;
            o.retry_failed = i % 7 == 3;
            _exit(nb_run(model.m.get(), &o, nullptr) == NB_OK ? 0 : 1);
        }
        if (kills < 24) { /* the last child may finish in peace */
            usleep(random() % 18000);
            kill(child, SIGKILL);
        }
        ASSERT_EQ(child, waitpid(child, &status, 0));
        if (WIFEXITED(status))
            break;
        kills++;
    }
    ASSERT_TRUE(WIFEXITED(status));
    ASSERT_EQ(0, WEXITSTATUS(status));
    EXPECT_GE(kills, 20);
    EXPECT_EQ(150u, by_id(out).size());
    EXPECT_EQ(2u, lines_of(err).size());

    auto good = rows_of(out), bad = rows_of(err);
    string header = read_text(meta);
    std::filesystem::remove(out);
    std::filesystem::remove(err);
    ASSERT_NB_OK(run()); /* the same header, uninterrupted */
    EXPECT_EQ(152u, sum.completed + sum.failed);
    EXPECT_EQ(header, read_text(meta));
    EXPECT_EQ(good, rows_of(out));
    EXPECT_EQ(bad, rows_of(err));
}
} // namespace
