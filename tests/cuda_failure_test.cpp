/* Every call of the driver that a command makes fails once: the command ends with one sentence and status 1, and leaves no
 * partial output.  The stand-in driver fails calls on order (NB_EMU_FAIL), and tells which calls there are (NB_EMU_TRACE).
 *
 * A command makes hundreds of calls; of each function the first three, one in the middle and the last are made to fail, each with
 * one of the errors that this function may meet. */
#include "command_util.h"

#include <algorithm>
#include <map>
#include <set>

extern "C" {
#include "base/rng.h"
#include "format/safetensors.h"
}

namespace
{

namespace fs = std::filesystem;
using Env = std::map<std::string, std::string>;

/* ---- a model so small that a step takes the emulator a moment; the shipped model's tokenizer ---- */

constexpr size_t VOCAB = 3072, HIDDEN = 64, FFN = 64, LAYERS = 1;

void tensor(nbi_st_writer *w, const std::string &name, size_t n, size_t k, bool declare)
{
    const size_t shape[2] = {n, k}, count = n * (k ? k : 1);
    if (declare) {
        ASSERT_NB_OK(nbi_st_declare(w, name.c_str(), NBI_BF16, k ? 2 : 1, shape));
        return;
    }
    std::vector<uint16_t> data(count);
    for (size_t i = 0; i < count; i++)
        data[i] = nbi_f32_to_bf16(k ? 0.2f * (nbi_rng_uniform(n * k, i) - 0.5f) : 1.0f);
    ASSERT_NB_OK(nbi_st_write(w, name.c_str(), data.data(), count * 2));
}

const std::string &model()
{
    static TempDir dir;
    static const std::string path = dir / "tiny";
    if (fs::exists(path))
        return path;
    fs::create_directory(path);
    const std::string demo = repo_file("configs/demo/model");
    for (const char *f : {"tokenizer.json", "tokenizer_config.json"})
        fs::copy_file(demo + "/" + f, path + "/" + f);
    write_text(path + "/config.json",
               R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 3072, "hidden_size": 64,
"intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
"max_position_embeddings": 64, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "hidden_act": "silu",
"tie_word_embeddings": true, "torch_dtype": "bfloat16"})");
    nbi_st_writer *w = nullptr;
    EXPECT_EQ(NB_OK, nbi_st_writer_create(&w, path.c_str(), 0));
    for (bool declare : {true, false}) {
        tensor(w, "model.embed_tokens.weight", VOCAB, HIDDEN, declare);
        tensor(w, "model.norm.weight", HIDDEN, 0, declare);
        for (size_t i = 0; i < LAYERS; i++) {
            const std::string l = "model.layers." + std::to_string(i) + ".";
            tensor(w, l + "input_layernorm.weight", HIDDEN, 0, declare);
            tensor(w, l + "post_attention_layernorm.weight", HIDDEN, 0, declare);
            tensor(w, l + "self_attn.q_proj.weight", 64, HIDDEN, declare);
            tensor(w, l + "self_attn.k_proj.weight", 32, HIDDEN, declare);
            tensor(w, l + "self_attn.v_proj.weight", 32, HIDDEN, declare);
            tensor(w, l + "self_attn.o_proj.weight", HIDDEN, 64, declare);
            tensor(w, l + "mlp.gate_proj.weight", FFN, HIDDEN, declare);
            tensor(w, l + "mlp.up_proj.weight", FFN, HIDDEN, declare);
            tensor(w, l + "mlp.down_proj.weight", HIDDEN, FFN, declare);
        }
    }
    EXPECT_EQ(NB_OK, nbi_st_finish(w)) << nb_last_error();
    nbi_st_writer_free(w);
    return path;
}

/* ---- commands ---- */

Result command(std::vector<std::string> args, const Env &env)
{
    args.insert(args.end(), {"--device", "cuda:0"});
    return nibble(args, [&] {
        for (auto &[name, value] : env)
            setenv(name.c_str(), value.c_str(), 1);
    });
}

/* How often the command calls each function ("cuMemAlloc": without its version). */
std::map<std::string, int> calls_of(const std::vector<std::string> &args)
{
    std::map<std::string, int> n;
    Result r = command(args, {{"NB_EMU_TRACE", "1"}});
    EXPECT_EQ(0, r.status) << r.err;
    std::istringstream lines(r.err);
    for (std::string line; std::getline(lines, line);) {
        size_t end = line.find(" = ");
        if (line.compare(0, 10, "ptxemu: cu") == 0 && end != std::string::npos)
            n[line.substr(8, end - 8)]++;
    }
    return n;
}

std::vector<int> some_of(int n)
{
    std::set<int> s;
    for (int i : {1, 2, 3, (n + 1) / 2, n})
        if (i <= n)
            s.insert(i);
    return {s.begin(), s.end()};
}

/* With what it fails. */
std::vector<int> results_of(const std::string &function)
{
    if (function.find("Alloc") != std::string::npos)
        return {2}; /* out of memory */
    if (function == "cuLaunchKernel" || function == "cuGraphLaunch")
        return {719, 1}; /* launch failed: the context is lost; a launch that was refused */
    if (function.find("Synchronize") != std::string::npos || function.find("Memcpy") != std::string::npos)
        return {700, 214, 46}; /* a fault before it; a memory error; the device is gone */
    return {999};
}

/* What only cleans up: nobody is helped by an error there. */
bool may_fail(const std::string &function)
{
    for (const char *part : {"Free", "Destroy", "Unload", "Release", "PopCurrent", "PushCurrent"})
        if (function.find(part) != std::string::npos)
            return true;
    return function == "cuStreamSynchronize"; /* the last one waits before cleaning up */
}

/* Without the lines of the library's log ("nibble: ..."). */
std::string errors_of(const std::string &err)
{
    std::string r;
    std::istringstream lines(err);
    for (std::string line; std::getline(lines, line);)
        if (line.compare(0, 8, "nibble: ") != 0)
            r += line + "\n";
    return r;
}

/* Runs args once for each call that shall fail (which: numbers of the n calls of a function); check() after each. */
void each_failure(const std::vector<std::string> &args, const std::function<std::vector<int>(int)> &which,
                  const std::function<void(const std::string &, const Result &)> &check)
{
    auto calls = calls_of(args);
    size_t turn = 0;
    ASSERT_GT(calls.size(), 20u);
    for (auto &[function, n] : calls)
        for (int nth : which(n)) {
            const std::vector<int> results = results_of(function);
            const int result = results[turn++ % results.size()];
            const std::string fail = function + ":" + std::to_string(nth) + ":" + std::to_string(result);
            Result r = command(args, {{"NB_EMU_FAIL", fail}});
            const std::string err = errors_of(r.err);
            if (r.status != 0 || !may_fail(function)) {
                EXPECT_EQ(1, r.status) << fail << "\n" << r.err;
                EXPECT_EQ(1, std::count(err.begin(), err.end(), '\n')) << fail << "\n" << r.err;
                EXPECT_EQ(0u, err.find("nibble " + args[0] + ": ")) << fail << "\n" << r.err;
            }
            check(fail, r);
        }
}

TEST(CudaFailure, generate_ends_with_a_sentence_whatever_fails)
{
    const std::vector<std::string> args = {"generate", model(), "-p", "return the list", "-n", "6", "--temp", "0"};
    Result good = command(args, {{"NB_EMU_LEAKS", "1"}});
    EXPECT_EQ(0, good.status) << good.err;
    EXPECT_EQ("ptxemu: no leaks\n", errors_of(good.err)); /* nothing is left behind on the device */
    each_failure(args, some_of, [&](const std::string &fail, const Result &r) {
        EXPECT_EQ(0u, good.out.find(r.out.substr(0, r.out.find_last_not_of('\n') + 1))) << fail << "\n" << r.out;
    });
}

std::vector<int> first_and_last(int n)
{
    return n > 1 ? std::vector<int>{1, n} : std::vector<int>{1};
}

size_t entries(const std::string &dir)
{
    return size_t(std::distance(fs::directory_iterator(dir), fs::directory_iterator()));
}

TEST(CudaFailure, quantize_leaves_nothing_behind)
{
    TempDir dir;
    const std::string text = dir / "calib.txt", out = dir / "out";
    write_text(text, "Return a copy of the string with all the cased characters converted to lowercase.\n");
    std::vector<std::string> args = {"quantize",    model(),   "-o", out,          "--recipe",
                                     "w8a8-static", "--calib", text, "--overwrite"};
    each_failure(args, first_and_last, [&](const std::string &fail, const Result &r) {
        if (r.status == 0)
            return;
        /* the folder of the run that counted calls */
        EXPECT_EQ(2u, entries(dir.path())) << fail;
        EXPECT_TRUE(fs::exists(out + "/model.safetensors")) << fail;
    });
    fs::remove_all(out);
    Result r = command(args, {{"NB_EMU_FAIL", "cuLaunchKernel:2:719"}});
    EXPECT_EQ(1, r.status);
    EXPECT_EQ(1u, entries(dir.path()));
}

std::vector<std::string> sorted_lines(const std::string &path)
{
    std::vector<std::string> v;
    std::istringstream lines(read_text(path));
    for (std::string line; std::getline(lines, line);)
        v.push_back(line);
    std::sort(v.begin(), v.end());
    return v;
}

/* A job that loses its device is resumed, and gives what it would have given. */
TEST(CudaFailure, a_job_can_be_resumed)
{
    TempDir dir;
    const std::string in = dir / "in.jsonl", out = dir / "out.jsonl", good = dir / "good.jsonl";
    std::string rows;
    for (int i = 0; i < 3; i++)
        rows += "{\"custom_id\":\"" + std::to_string(i) +
                "\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{" + "\"prompt\":\"return " +
                std::to_string(i) + "\",\"max_tokens\":" + std::to_string(2 + 2 * i) + ",\"temperature\":0}}\n";
    write_text(in, rows);
    Result r = command({"run", model(), "-i", in, "-o", good}, {});
    ASSERT_EQ(0, r.status) << r.err;
    ASSERT_EQ(3u, sorted_lines(good).size());
    const std::vector<std::string> args = {"run", model(), "-i", in, "-o", out, "--overwrite"};
    for (const char *fail :
         {"cuMemAlloc:4:2", "cuLaunchKernel:9:719", "cuGraphLaunch:1:719", "cuEventSynchronize:6:700",
          "cuEventSynchronize:9:214", "cuGraphInstantiateWithFlags:1:2", "cuStreamEndCapture:1:901"}) {
        r = command(args, {{"NB_EMU_FAIL", fail}});
        const std::string err = errors_of(r.err);
        EXPECT_EQ(1, r.status) << fail << "\n" << r.err;
        EXPECT_EQ(1, std::count(err.begin(), err.end(), '\n')) << fail << "\n" << r.err;
        r = command({"run", model(), "-i", in, "-o", out, "--resume"}, {});
        EXPECT_EQ(0, r.status) << fail << "\n" << r.err;
        EXPECT_EQ(sorted_lines(good).size(), sorted_lines(out).size()) << fail;
    }
}

/* ---- the plan: asked before anything is read ---- */

TEST(CudaPlan, too_little_memory_is_told_before_a_weight_is_read)
{
    /* a weight that cannot be read: bfloat16 NaN where the last tensor lies */
    TempDir dir;
    const std::string path = dir / "model";
    fs::copy(model(), path, fs::copy_options::recursive);
    std::string s = read_text(path + "/model.safetensors");
    s.replace(s.size() - 2, 2, "\xff\x7f");
    write_text(path + "/model.safetensors", s);
    const std::vector<std::string> args = {"generate", path, "-p", "x", "-n", "2"};
    Result r = command(args, {});
    EXPECT_EQ(1, r.status);
    EXPECT_NE(r.err.find("NaN"), std::string::npos) << r.err;
    r = command(args, {{"NB_EMU_MEMORY", "256K"}});
    EXPECT_EQ(1, r.status);
    EXPECT_NE(r.err.find(" MiB are needed for the weights, but cuda:0 "), std::string::npos) << r.err;
    EXPECT_NE(r.err.find(" has only 0.2 MiB free"), std::string::npos) << r.err;
}

TEST(CudaPlan, buffers_and_the_cache_are_planned_too)
{
    const std::vector<std::string> args = {"generate", model(), "-p", "x", "-n", "2"};
    Result r = command(args, {{"NB_EMU_MEMORY", "512K"}});
    EXPECT_EQ(1, r.status);
    EXPECT_NE(r.err.find(" MiB are needed for the buffers, but cuda:0 "), std::string::npos) << r.err;
}

TEST(CudaPlan, a_machine_without_a_driver_says_so_and_auto_takes_the_cpu)
{
    const Env none = {{"NB_CUDA_DRIVER", "libno-such-driver.so"}};
    Result r = command({"generate", model(), "-p", "x", "-n", "2"}, none);
    EXPECT_EQ(1, r.status);
    EXPECT_NE(r.err.find("there is no CUDA driver on this machine"), std::string::npos) << r.err;
    r = nibble({"generate", model(), "-p", "x", "-n", "2", "--device", "auto"},
               [] { setenv("NB_CUDA_DRIVER", "libno.so", 1); });
    EXPECT_EQ(0, r.status) << r.err;
}

} // namespace
