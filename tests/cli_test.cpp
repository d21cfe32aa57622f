/* The program as a user runs it: exit statuses, one-sentence errors, nothing half-written, interruption, same bytes. */
#include "command_util.h"

#include <jansson.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <map>

namespace fs = std::filesystem;

namespace
{

const std::string MODEL = repo_file("configs/demo/model"), VAL = repo_file("configs/demo/val.txt");

/* Exit status `status`, nothing on stdout, one line on stderr that holds every one of `parts`. */
void expect_refused(int status, const std::vector<std::string> &parts, const std::vector<std::string> &args,
                    const std::function<void()> &in_child = {})
{
    Result r = nibble(args, in_child);
    std::string shown = "nibble";
    for (auto &a : args)
        shown += " " + a.substr(0, 60);
    EXPECT_EQ(status, r.status) << shown << "\n" << r.err;
    EXPECT_EQ("", r.out) << shown;
    EXPECT_EQ(1, std::count(r.err.begin(), r.err.end(), '\n')) << shown << "\n" << r.err;
    for (auto &p : parts)
        EXPECT_NE(r.err.find(p), std::string::npos) << shown << "\nlacks: " << p << "\nin:    " << r.err;
}

/* A copy of the shipped model that a test may spoil. */
struct Copy {
    TempDir d;
    std::string path = d / "model";
    Copy() { fs::copy(MODEL, path, fs::copy_options::recursive); }
    std::string file(const std::string &name) const { return path + "/" + name; }
    void replace(const std::string &name, const std::string &from, const std::string &to) const
    {
        std::string s = read_text(file(name));
        size_t at = s.find(from);
        ASSERT_NE(at, std::string::npos) << from;
        write_text(file(name), s.replace(at, from.size(), to));
    }
    /* Changes the JSON header of the safetensors file. */
    void header(const std::function<void(json_t *)> &change) const
    {
        std::string s = read_text(file("model.safetensors"));
        uint64_t n;
        memcpy(&n, s.data(), 8);
        json_t *j = json_loadb(s.data() + 8, n, 0, nullptr);
        ASSERT_NE(j, nullptr);
        change(j);
        char *text = json_dumps(j, JSON_COMPACT);
        std::string h = text;
        free(text);
        json_decref(j);
        h.resize((h.size() + 7) / 8 * 8, ' ');
        uint64_t m = h.size();
        write_text(file("model.safetensors"), std::string(reinterpret_cast<char *>(&m), 8) + h + s.substr(8 + n));
    }
    /* Writes two bytes at an element of a bf16 tensor. */
    void poke(const std::string &tensor, size_t element, uint16_t value) const
    {
        std::string s = read_text(file("model.safetensors"));
        uint64_t n;
        memcpy(&n, s.data(), 8);
        json_t *j = json_loadb(s.data() + 8, n, 0, nullptr);
        json_t *off = json_object_get(json_object_get(j, tensor.c_str()), "data_offsets");
        ASSERT_NE(off, nullptr) << tensor;
        size_t at = 8 + n + size_t(json_integer_value(json_array_get(off, 0))) + 2 * element;
        memcpy(&s[at], &value, 2);
        json_decref(j);
        write_text(file("model.safetensors"), s);
    }
};

json_t *parse(const std::string &s)
{
    json_error_t e;
    json_t *j = json_loads(s.c_str(), 0, &e);
    EXPECT_NE(nullptr, j) << e.text << " in " << s.substr(0, 300);
    return j;
}

/* custom_id -> the choices of its answer, as text. */
std::map<std::string, std::string> answers(const std::string &path)
{
    std::map<std::string, std::string> m;
    std::stringstream f(read_text(path));
    std::string line;
    while (std::getline(f, line)) {
        json_t *j = parse(line);
        char *c = json_dumps(json_object_get(json_object_get(json_object_get(j, "response"), "body"), "choices"),
                             JSON_SORT_KEYS);
        std::string id = json_string_value(json_object_get(j, "custom_id"));
        EXPECT_EQ(0u, m.count(id)) << "twice: " << id;
        m[id] = c ? c : "";
        free(c);
        json_decref(j);
    }
    return m;
}

std::string job_file(const std::string &path, int rows, int tokens)
{
    std::ofstream f(path);
    const char *prompts[] = {"Return a copy of the string", "The following functions are defined", "If the file is",
                             "Raises an exception when", "class object"};
    for (int i = 0; i < rows; i++)
        f << R"({"custom_id": "r)" << i
          << R"(", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": ")" << prompts[i % 5]
          << " " << i << R"(", "max_tokens": )" << tokens + i % 7
          << (i % 3 ? R"(, "temperature": 0)" : R"(, "temperature": 0.9, "top_p": 0.9, "seed": 7)") << "}}\n";
    return path;
}

} // namespace

TEST(CommandLine, mistakes_end_with_status_2_and_one_sentence)
{
    expect_refused(2, {"frobnicate"}, {"frobnicate"});
    expect_refused(2, {"--recipe"}, {"quantize", MODEL, "-o", "x"});
    expect_refused(2, {"-o DIR"}, {"quantize", MODEL, "--recipe", "w8a16"});
    expect_refused(2, {"--threads", "\"0\"", "1 to 1024"}, {"eval", MODEL, "-f", VAL, "--threads", "0"});
    expect_refused(2, {"--threads", "\"two\""}, {"eval", MODEL, "-f", VAL, "--threads", "two"});
    expect_refused(2, {"--no-such-flag"}, {"generate", MODEL, "-p", "x", "--no-such-flag"});
    expect_refused(2, {"--temp", "\"-1\""}, {"generate", MODEL, "-p", "x", "--temp", "-1"});
    expect_refused(2, {"--temp", "\"nan\""}, {"generate", MODEL, "-p", "x", "--temp", "nan"});
    expect_refused(2, {"needs a value"}, {"generate", MODEL, "-p"});
    expect_refused(2, {"-p TEXT"}, {"generate", MODEL});
    expect_refused(2, {"-p TEXT"}, {"tokenize", MODEL});
    expect_refused(2, {"-f FILE"}, {"eval", MODEL});
    expect_refused(2, {"too few words"}, {"inspect"});
    expect_refused(2, {"one word too many"}, {"inspect", MODEL, MODEL});
    expect_refused(2, {"--shape"}, {"bench"});
    expect_refused(2, {"--recipe goes with --shape"}, {"bench", MODEL, "--recipe", "w8a16"});
    expect_refused(2, {"--shard", "4/4"}, {"run", MODEL, "-i", "a", "-o", "b", "--shard", "4/4"});
    expect_refused(2, {"--retry-failed"}, {"run", MODEL, "-i", "a", "-o", "b", "--retry-failed"});
    for (const char *c : {"quantize", "run", "generate", "eval", "bench", "inspect", "tokenize"}) {
        Result r = nibble({c, "--help"});
        EXPECT_EQ(0, r.status);
        EXPECT_NE(r.out.find("example:\n  nibble " + std::string(c)), std::string::npos) << r.out;
        EXPECT_EQ("", r.err);
    }
}

TEST(BadModel, is_refused_with_status_1_and_one_sentence)
{
    expect_refused(1, {"no/such/model", "does not exist"}, {"eval", "no/such/model", "-f", VAL});
    expect_refused(1, {"no/such/text"}, {"eval", MODEL, "-f", "no/such/text"});
    auto eval = [](const Copy &c) { return std::vector<std::string>{"eval", c.path, "-f", VAL}; };
    {
        Copy c;
        fs::resize_file(c.file("model.safetensors"), fs::file_size(c.file("model.safetensors")) - 1);
        expect_refused(1, {"model.safetensors"}, eval(c));
    }
    {
        Copy c;
        std::string s = read_text(c.file("model.safetensors"));
        s[7] = 0x40; /* header length beyond the file */
        write_text(c.file("model.safetensors"), s);
        expect_refused(1, {"model.safetensors", "header"}, eval(c));
    }
    {
        Copy c;
        c.header([](json_t *j) {
            json_t *o = json_object_get(json_object_get(j, "model.norm.weight"), "data_offsets");
            json_array_set_new(o, 1, json_integer(json_integer_value(json_array_get(o, 1)) + 64));
        });
        expect_refused(1, {"model.norm.weight"}, eval(c));
    }
    {
        Copy c;
        c.header([](json_t *j) {
            json_object_set_new(json_object_get(j, "model.norm.weight"), "dtype", json_string("I16"));
        });
        expect_refused(1, {"model.norm.weight", "I16"}, eval(c));
    }
    {
        Copy c; /* same bytes, other shape */
        c.header([](json_t *j) {
            json_t *s = json_object_get(json_object_get(j, "model.layers.0.mlp.up_proj.weight"), "shape");
            json_int_t a = json_integer_value(json_array_get(s, 0)), b = json_integer_value(json_array_get(s, 1));
            json_array_set_new(s, 0, json_integer(b));
            json_array_set_new(s, 1, json_integer(a));
        });
        expect_refused(1, {"model.layers.0.mlp.up_proj"}, eval(c));
    }
    {
        Copy c;
        c.header([](json_t *j) {
            json_t *t = json_incref(json_object_get(j, "model.layers.0.mlp.up_proj.weight"));
            json_object_del(j, "model.layers.0.mlp.up_proj.weight");
            json_object_set_new(j, "model.layers.0.mlp.upward.weight", t);
        });
        expect_refused(1, {"model.layers.0.mlp.up_proj"}, eval(c));
        TempDir d; /* what cannot be loaded is not quantized either */
        expect_refused(1, {"lacks model.layers.0.mlp.up_proj.weight"},
                       {"quantize", c.path, "-o", d / "q", "--recipe", "w8a16"});
        EXPECT_TRUE(fs::is_empty(d.path()));
    }
    {
        Copy c;
        c.poke("model.layers.1.self_attn.q_proj.weight", 1000, 0x7fc0); /* NaN */
        expect_refused(1, {"model.layers.1.self_attn.q_proj.weight", "NaN", "row"}, eval(c));
        TempDir d;
        expect_refused(1, {"q_proj", "NaN"}, {"quantize", c.path, "-o", d / "q", "--recipe", "w8a16"});
        EXPECT_TRUE(fs::is_empty(d.path()));
    }
    {
        Copy c;
        c.poke("model.embed_tokens.weight", 5, 0x7f80); /* Inf */
        expect_refused(1, {"model.embed_tokens.weight"}, eval(c));
    }
    {
        Copy c;
        fs::rename(c.file("model.safetensors"), c.file("model-00001-of-00002.safetensors"));
        write_text(c.file("model.safetensors.index.json"),
                   R"({"metadata": {}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}})");
        expect_refused(1, {"model-00002-of-00002.safetensors"}, eval(c));
    }
    {
        Copy c;
        c.replace("config.json", "\"LlamaForCausalLM\"", "\"MambaForCausalLM\"");
        expect_refused(1, {"config.json", "MambaForCausalLM", "LlamaForCausalLM"}, eval(c));
    }
    {
        Copy c;
        c.replace("config.json", "\"vocab_size\":", "\"vocab_size\": 1000000000000, \"was\":");
        expect_refused(1, {"config.json", "vocab_size", "1000000000000"}, eval(c));
    }
    {
        Copy c;
        c.replace("config.json", "\"num_hidden_layers\":", "\"num_hidden_layers\": 900, \"was\":");
        expect_refused(1, {"model.layers."}, eval(c));
    }
    {
        Copy c;
        c.replace("tokenizer.json", "\"merges\"", "\"merge\"");
        expect_refused(1, {"tokenizer.json", "merges"}, eval(c));
    }
    {
        Copy c;
        fs::remove(c.file("config.json"));
        expect_refused(1, {"config.json"}, eval(c));
        expect_refused(1, {"config.json"}, {"inspect", c.path});
    }
    {
        Copy c;
        fs::remove(c.file("model.safetensors"));
        write_text(c.file("pytorch_model.bin"), "x");
        expect_refused(1, {"safetensors"}, eval(c));
    }
}

TEST(BadModel, absurd_sizes_do_not_allocate)
{
    Copy c;
    c.replace("config.json", "\"vocab_size\":", "\"vocab_size\": 4194304, \"was\":");
    c.replace("config.json", "\"intermediate_size\":", "\"intermediate_size\": 1048576, \"was2\":");
    expect_refused(1, {"model.embed_tokens"}, {"eval", c.path, "-f", VAL}, [] {
#if !defined(__SANITIZE_ADDRESS__)
        rlimit r{1u << 30, 1u << 30}; /* 1 GiB of address space is enough to find out */
        setrlimit(RLIMIT_AS, &r);
#endif
    });
}

TEST(BadModel, random_damage_is_an_error_or_a_result_never_a_crash)
{
    Copy c;
    std::string good = read_text(c.file("model.safetensors"));
    uint64_t n;
    memcpy(&n, good.data(), 8);
    unsigned seed = 9;
    for (int i = 0; i < 40; i++) {
        std::string s = good;
        s[rand_r(&seed) % (8 + n)] ^= char(1 << rand_r(&seed) % 8);
        write_text(c.file("model.safetensors"), s);
        Result r = nibble({"generate", c.path, "-p", "a", "-n", "1", "--threads", "1"});
        EXPECT_TRUE(r.status == 0 || r.status == 1) << r.status << r.err;
        EXPECT_EQ(r.status, std::count(r.err.begin(), r.err.end(), '\n')) << r.err;
    }
}

TEST(BadPrompt, is_refused)
{
    expect_refused(1, {"not valid UTF-8", "byte 2"}, {"generate", MODEL, "-p", "ab\xff"});
    expect_refused(1, {"not valid UTF-8", "byte 2"}, {"tokenize", MODEL, "-p", "ab\xff"});
    std::string text;
    for (int i = 0; i < 3000; i++)
        text += "word ";
    expect_refused(1, {"tokens", "1024"}, {"generate", MODEL, "-p", text});
    Result r = nibble({"generate", MODEL, "-p", "", "-n", "2", "--json"}); /* BOS alone is a prompt */
    EXPECT_EQ(0, r.status) << r.err;
    Copy c;
    c.replace("tokenizer.json", "\"post_processor\":", "\"post_processor\": null, \"was\":");
    expect_refused(1, {"empty"}, {"generate", c.path, "-p", ""});
    expect_refused(1, {"top_p"}, {"generate", MODEL, "-p", "x", "--top-p", "0", "--temp", "1"});
}

TEST(Quantize, refuses_and_leaves_nothing_behind)
{
    TempDir d;
    expect_refused(1, {"no-such-recipe"}, {"quantize", MODEL, "-o", d / "q", "--recipe", "no-such-recipe"});
    write_text(d / "r.json", R"({"name": "x", "weights": {"bits": 8, "stratagem": "channel"}})");
    expect_refused(1, {"r.json", "stratagem"}, {"quantize", MODEL, "-o", d / "q", "--recipe", d / "r.json"});
    write_text(d / "r.json", R"({"name": "x", "weights": {"bits": 4, "strategy": "group", "group_size": 160}})");
    expect_refused(1, {"160", "model.layers.0"}, {"quantize", MODEL, "-o", d / "q", "--recipe", d / "r.json"});
    fs::remove(d / "r.json");
    expect_refused(1, {"--calib"}, {"quantize", MODEL, "-o", d / "q", "--recipe", "w8a8-static"});
    expect_refused(1, {"/dev/null/q"}, {"quantize", MODEL, "-o", "/dev/null/q", "--recipe", "w8a16"});
    EXPECT_TRUE(fs::is_empty(d.path()));
    fs::create_directory(d / "q");
    expect_refused(1, {d / "q", "exists"}, {"quantize", MODEL, "-o", d / "q", "--recipe", "w8a16"});
    EXPECT_TRUE(fs::is_empty(d / "q"));
    fs::remove(d / "q");
    expect_refused(1, {"model"}, {"quantize", MODEL, "-o", d / "q", "--recipe", "w8a16"}, [] {
        signal(SIGXFSZ, SIG_IGN); /* a disk with room for 100 kB */
        rlimit r{100000, 100000};
        setrlimit(RLIMIT_FSIZE, &r);
    });
    EXPECT_TRUE(fs::is_empty(d.path()));
    ASSERT_EQ(0, nibble({"quantize", MODEL, "-o", d / "q", "--recipe", "w8a16"}).status);
    expect_refused(1, {"quantized already"}, {"quantize", d / "q", "-o", d / "q2", "--recipe", "w8a16"});
    EXPECT_EQ(1, std::distance(fs::directory_iterator(d.path()), {}));
}

/* A search that takes a second: two choices, little text. */
std::string quick_search(const TempDir &d)
{
    write_text(
        d / "quick.json",
        R"({"weights": {"bits": 4, "group_size": 64}, "method": "gptq", "calibration": {"tokens": 512, "ctx": 64},
                   "overrides": [{"match": "re:model.layers.[01].mlp", "weights": {"bits": 3}}],
                   "search": {"windows": 1, "tokens": 256, "choices": [{"bits": 2, "symmetric": false}, {"bits": 4}]}})");
    return d / "quick.json";
}

double average_bits(const json_t *report)
{
    const json_t *rows = json_object_get(report, "modules"), *row;
    double bits = 0, weights = 0;
    size_t i;
    json_array_foreach((json_t *)rows, i, row)
    {
        const json_t *shape = json_object_get(row, "shape");
        weights +=
            (double)(json_integer_value(json_array_get(shape, 0)) * json_integer_value(json_array_get(shape, 1)));
        bits += 8 * (double)json_integer_value(json_object_get(row, "bytes"));
    }
    return bits / weights;
}

TEST(Mixed, a_target_is_met_and_the_recipe_that_was_found_makes_the_same_model)
{
    TempDir d;
    const std::string recipe = quick_search(d), q = d / "q", again = d / "again";
    Result r =
        nibble({"quantize", MODEL, "-o", q, "--recipe", recipe, "--calib", VAL, "--target-bits", "3.4", "--json"});
    ASSERT_EQ(0, r.status) << r.err;
    json_t *j = parse(r.out), *search = json_object_get(j, "search");
    const double bits = average_bits(j);
    EXPECT_LE(bits, 3.4);
    EXPECT_GT(bits, 3.2) << "the budget is used";
    EXPECT_NEAR(bits, json_number_value(json_object_get(search, "bits_per_weight")), 1e-9);
    EXPECT_EQ(22u, json_array_size(json_object_get(search, "modules"))) << "28 layers, 6 of them overridden";
    json_decref(j);
    json_t *found = parse(read_text(q + "/recipe.json"));
    EXPECT_EQ(nullptr, json_object_get(found, "search"));
    EXPECT_EQ(23u, json_array_size(json_object_get(found, "overrides")));
    json_decref(found);
    r = nibble({"quantize", MODEL, "-o", again, "--recipe", q + "/recipe.json", "--calib", VAL});
    ASSERT_EQ(0, r.status) << r.err;
    EXPECT_EQ(read_text(q + "/model.safetensors"), read_text(again + "/model.safetensors"));
    EXPECT_NE(std::string::npos, read_text(q + "/quant_report.html").find("Search"));
    EXPECT_EQ(std::string::npos, read_text(again + "/quant_report.html").find("Search"));
    r = nibble({"eval", q, "-f", VAL, "--ctx", "64", "--windows", "2", "--base", MODEL, "--layer-windows", "1"});
    EXPECT_EQ(0, r.status) << r.err;
    EXPECT_NE(std::string::npos, r.out.find("layers that hurt most")) << r.out;
    r = nibble(
        {"eval", q, "-f", VAL, "--ctx", "64", "--windows", "2", "--base", MODEL, "--layer-windows", "1", "--json"});
    j = parse(r.out);
    EXPECT_EQ(6u, json_array_size(json_object_get(json_object_get(j, "by_layer"), "layers"))) << r.out;
    json_decref(j);
}

TEST(Mixed, a_size_is_that_of_the_files)
{
    TempDir d;
    const std::string recipe = quick_search(d), q = d / "q";
    Result r = nibble({"quantize", MODEL, "-o", q, "--recipe", recipe, "--calib", VAL, "--target-size", "2.7MB"});
    ASSERT_EQ(0, r.status) << r.err;
    EXPECT_LE(fs::file_size(q + "/model.safetensors"), 2700000u);
    EXPECT_GT(fs::file_size(q + "/model.safetensors"), 2500000u);
    EXPECT_NE(std::string::npos, r.out.find("bits a weight on average")) << r.out;
    r = nibble({"quantize", MODEL, "--recipe", recipe, "--calib", VAL, "--target-bits", "3", "--dry-run"});
    EXPECT_EQ(0, r.status) << r.err;
    EXPECT_NE(std::string::npos, r.out.find("layer     q")) << r.out;
}

TEST(Mixed, bad_targets_are_refused_before_anything_is_measured)
{
    TempDir d;
    const std::string recipe = quick_search(d), q = d / "q";
    const std::vector<std::string> start{"quantize", MODEL, "-o", q, "--recipe", recipe};
    auto with = [&](std::vector<std::string> more) {
        std::vector<std::string> all = start;
        all.insert(all.end(), more.begin(), more.end());
        return all;
    };
    expect_refused(1, {"--calib"}, with({"--target-bits", "3.5"}));
    expect_refused(1, {"target_bits", "--target-size"}, with({"--calib", VAL}));
    expect_refused(2, {"--target-bits", "--target-size"},
                   with({"--calib", VAL, "--target-bits", "3.5", "--target-size", "1MB"}));
    expect_refused(2, {"--target-bits"}, with({"--calib", VAL, "--target-bits", "0.5"}));
    for (const char *size : {"", "x", "-1MB", "12 parsecs", "0", "1e300GiB"})
        expect_refused(2, {"--target-size", "4GiB"}, with({"--calib", VAL, "--target-size", size}));
    /* what is told as the smallest possible can be asked for */
    Result r = nibble(with({"--calib", VAL, "--target-bits", "1.5"}));
    EXPECT_EQ(1, r.status);
    const size_t at = r.err.find("makes ");
    ASSERT_NE(std::string::npos, at) << r.err;
    r = nibble(with({"--calib", VAL, "--target-bits", std::to_string(std::stod(r.err.substr(at + 6)))}));
    EXPECT_EQ(0, r.status) << r.err;
    fs::remove_all(q);
    r = nibble(with({"--calib", VAL, "--target-size", "1MB"}));
    EXPECT_EQ(1, r.status);
    const size_t has = r.err.find("layer it has ");
    ASSERT_NE(std::string::npos, has) << r.err;
    r = nibble(with({"--calib", VAL, "--target-size", std::to_string(std::stoll(r.err.substr(has + 13)))}));
    EXPECT_EQ(0, r.status) << r.err;
    fs::remove_all(q);
    write_text(d / "one", "");
    expect_refused(1, {"one", "tokens"}, with({"--calib", d / "one", "--target-bits", "3.5"}));
    EXPECT_FALSE(fs::exists(q));
}

TEST(Mixed, searches_of_recipes_are_checked)
{
    TempDir d;
    const std::vector<std::pair<const char *, const char *>> wrong = {
        {R"({"chioces": []})", "chioces"},     {R"({"choices": []})", "choices"},
        {R"({"choices": [4]})", "choices[0]"}, {R"({"choices": [{"bits": 5}]})", "5"},
        {R"({"by": "magic"})", "magic"},       {R"({"target_bits": 99})", "99"},
        {R"({"windows": 0})", "windows"},      {R"([])", "search"},
    };
    for (auto &w : wrong) {
        write_text(d / "r.json", std::string(R"({"weights": {"bits": 4}, "search": )") + w.first + "}");
        expect_refused(1, {"r.json", w.second},
                       {"quantize", MODEL, "-o", d / "q", "--recipe", d / "r.json", "--calib", VAL});
    }
    write_text(d / "r.json",
               R"({"weights": {"bits": 4}, "search": {"target_bits": 4, "choices": [{"bits": 4, "group_size": 96}]}})");
    expect_refused(1, {"256 inputs", "no choice"},
                   {"quantize", MODEL, "-o", d / "q", "--recipe", d / "r.json", "--calib", VAL});
}

TEST(Quantize, a_dry_run_tells_the_size_of_the_real_one)
{
    TempDir d;
    for (const char *recipe : {"w8a16", "w4a16-g128", "w4a16-g32-asym", "w8a8-dynamic"}) {
        Result r = nibble({"quantize", MODEL, "--recipe", recipe, "--dry-run", "--json"});
        ASSERT_EQ(0, r.status) << r.err;
        json_t *j = parse(r.out);
        std::string q = d / recipe;
        ASSERT_EQ(0, nibble({"quantize", MODEL, "-o", q, "--recipe", recipe}).status);
        Result i = nibble({"inspect", q, "--json"});
        json_t *k = parse(i.out);
        EXPECT_EQ(json_integer_value(json_object_get(j, "bytes_after")),
                  json_integer_value(json_object_get(k, "bytes")))
            << recipe;
        json_decref(j);
        json_decref(k);
    }
}

/* A row of `nibble bench`, from its percents back to the operations and bytes that they count.  The weights have 1572864 codes
 * of 4 bits in the layers and 262144 numbers of 2 bytes in the head; a token takes 4096 bytes of the cache. */
static void expect_work(const json_t *row, double ops, double steps, double kv)
{
    const auto number = [row](const char *key) { return json_number_value(json_object_get(row, key)); };
    const double seconds = number("avg_ns") / 1e9;
    EXPECT_NEAR(ops, number("pct_int8") / 100 * number("int8_gops") * 1e9 * seconds, 1e-5 * ops);
    const double bytes = number("pct_mem") / 100 * number("mem_gbs") * 1e9 * seconds;
    EXPECT_GE(bytes, steps * (1572864 / 2 + 2 * 262144) + kv);
    EXPECT_LE(bytes, 1.1 * (steps * (1572864 / 2 + 2 * 262144) + kv)) << "scales and padding";
}

TEST(Json, is_one_document_on_stdout_and_nothing_else)
{
    const std::vector<std::vector<std::string>> commands = {
        {"eval", MODEL, "-f", VAL, "--windows", "1", "--ctx", "32", "--json"},
        {"generate", MODEL, "-p", "Return", "-n", "3", "--logprobs", "2", "--json"},
        {"bench", "--shape", repo_file("configs/shapes/tiny.json"), "--recipe", "w4a16-g128", "-p", "8", "-n", "2",
         "--repetitions", "2", "--json"},
        {"inspect", MODEL, "--json"},
        {"tokenize", MODEL, "-p", "Return a copy", "--json"},
    };
    for (auto &args : commands) {
        Result r = nibble(args);
        ASSERT_EQ(0, r.status) << args[0] << r.err;
        EXPECT_EQ("", r.err) << args[0];
        json_t *j = parse(r.out);
        if (args[0] == "eval") {
            EXPECT_GT(json_real_value(json_object_get(j, "perplexity")), 1.0);
            EXPECT_GT(json_integer_value(json_object_get(j, "tokens")), 1000);
            EXPECT_EQ(31, json_integer_value(json_object_get(j, "scored")));
        } else if (args[0] == "bench") {
            ASSERT_EQ(2u, json_array_size(j));
            EXPECT_STREQ("pp8", json_string_value(json_object_get(json_array_get(j, 0), "test")));
            EXPECT_GT(json_real_value(json_object_get(json_array_get(j, 1), "avg_ts")), 0.0);
            EXPECT_EQ(2u, json_array_size(json_object_get(json_array_get(j, 1), "samples_ts")));
            expect_work(json_array_get(j, 0), 2 * 1572864.0 * 8 + 2 * 262144.0, 1, 8 * 4096);
            expect_work(json_array_get(j, 1), 2 * (1572864.0 + 262144.0) * 2, 2, (1 + 2) * 4096);
        } else if (args[0] == "tokenize") {
            EXPECT_GT(json_array_size(json_object_get(j, "tokens")), 2u);
        }
        json_decref(j);
    }
}

/* A signal ends the command soon, with status 1, one sentence, and nothing left behind. */
TEST(Interrupt, every_long_command_stops_cleanly)
{
    TempDir d;
    std::string job = job_file(d / "in.jsonl", 2000, 200);
    const std::vector<std::vector<std::string>> commands = {
        {"eval", MODEL, "-f", VAL, "--ctx", "64", "--threads", "1", "--base", MODEL},
        {"bench", MODEL, "-p", "64", "--repetitions", "1000", "--threads", "1"},
        {"quantize", MODEL, "-o", d / "q", "--recipe", "w8a8-static", "--calib", VAL, "--calib-tokens", "1000000",
         "--threads", "1"},
        {"run", MODEL, "-i", job, "-o", d / "out.jsonl", "--threads", "1"},
        {"generate", MODEL, "-p", "x", "-n", "900", "--ignore-eos", "--threads", "1"},
    };
    for (auto &args : commands) {
        TempDir t;
        /* the reference kernels, so that nothing is finished before the signal comes */
        pid_t pid = start(args, t / "out", t / "err", [] { setenv("NB_CPU_ISA", "scalar", 1); });
        wait_until_it_catches(pid, SIGINT);
        usleep(200000);
        kill(pid, SIGINT);
        alarm_after(pid, 120); /* a step of the scalar code under a sanitizer may take long on a busy machine */
        EXPECT_EQ(1, wait_for(pid)) << args[0] << ": " << read_text(t / "err");
        EXPECT_FALSE(fs::exists(d / "q"));
        for (auto &e : fs::directory_iterator(d.path()))
            EXPECT_EQ(std::string::npos, e.path().string().find(".part-")) << e.path();
    }
}

TEST(Run, a_killed_job_is_resumed_without_loss_or_repetition)
{
    TempDir d;
    std::string job = job_file(d / "in.jsonl", 60, 12);
    ASSERT_EQ(0, nibble({"run", MODEL, "-i", job, "-o", d / "whole.jsonl", "--max-batch", "8"}).status);
    auto want = answers(d / "whole.jsonl");
    ASSERT_EQ(60u, want.size());
    std::vector<std::string> args{"run", MODEL, "-i", job, "-o", d / "out.jsonl", "--max-batch", "8", "--resume"};
    int killed = 0;
    for (int i = 0; i < 40; i++) {
        pid_t pid = start(args, d / "o", d / "e");
        usleep(useconds_t(30000 + 40000 * (i % 7)));
        kill(pid, SIGKILL);
        if (wait_for(pid) == 0)
            break;
        killed++;
    }
    EXPECT_GT(killed, 0);
    Result last = nibble(args);
    ASSERT_EQ(0, last.status) << last.err;
    EXPECT_EQ(want, answers(d / "out.jsonl"));
}

TEST(Run, shards_join_to_the_whole)
{
    TempDir d;
    std::string job = job_file(d / "in.jsonl", 17, 4);
    ASSERT_EQ(0, nibble({"run", MODEL, "-i", job, "-o", d / "whole.jsonl"}).status);
    std::map<std::string, std::string> joined;
    for (int i = 0; i < 3; i++) {
        std::string out = d / ("part" + std::to_string(i));
        ASSERT_EQ(0, nibble({"run", MODEL, "-i", job, "-o", out, "--shard", std::to_string(i) + "/3"}).status);
        for (auto &a : answers(out))
            EXPECT_TRUE(joined.insert(a).second);
    }
    EXPECT_EQ(answers(d / "whole.jsonl"), joined);
}

/* The promise: a request's bytes do not depend on the batch, the chunks, the threads, the instruction set, or on being
 * preempted. */
TEST(SameBytes, whatever_the_batch_the_threads_and_the_cache)
{
    TempDir d;
    const size_t requests = kSanitized ? 12 : 64;
    std::string job = job_file(d / "in.jsonl", int(requests), kSanitized ? 5 : 10);
    for (const char *recipe : {"", "w8a8-dynamic", "w4a16-g128"}) {
        std::string model = MODEL;
        if (*recipe) {
            model = d / recipe;
            ASSERT_EQ(0, nibble({"quantize", MODEL, "-o", model, "--recipe", recipe}).status);
        }
        auto run = [&](std::vector<std::string> more, const char *isa = nullptr) {
            std::vector<std::string> args{"run", model, "-i", job, "-o", d / "o.jsonl", "--overwrite"};
            args.insert(args.end(), more.begin(), more.end());
            Result r = nibble(args, [isa] {
                if (isa)
                    setenv("NB_CPU_ISA", isa, 1);
            });
            EXPECT_EQ(0, r.status) << r.err;
            return answers(d / "o.jsonl");
        };
        auto alone = run({"--max-batch", "1", "--threads", "1"});
        ASSERT_EQ(requests, alone.size());
        EXPECT_EQ(alone, run({"--max-batch", "64", "--threads", "2"}));
        EXPECT_EQ(alone, run({"--max-batch", "64", "--threads", "2", "--kv-pages", "9", "--prefill-chunk", "5"}));
        EXPECT_EQ(alone, run({"--max-batch", "7", "--threads", "1"}, "scalar"));
#if defined(__x86_64__)
        if (__builtin_cpu_supports("avx2")) {
            EXPECT_EQ(alone, run({"--max-batch", "64"}, "avx2"));
        }
#endif
    }
}
