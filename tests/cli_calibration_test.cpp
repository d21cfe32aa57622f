/* Calibrated quantization as a user runs it: killed and gone on with, interrupted, refused. */
#include "command_util.h"

namespace
{

namespace fs = std::filesystem;

const std::string MODEL = repo_file("configs/demo/model"), TEXT = repo_file("configs/demo/val.txt"),
                  TOKENS = kSanitized ? "260" : "600"; /* three contexts or five */

std::vector<std::string> gptq(const std::string &out, std::vector<std::string> more = {})
{
    std::vector<std::string> args = {"quantize",        MODEL,     "-o",       out,           "--recipe",
                                     "w4a16-g128-gptq", "--calib", TEXT,       "--calib-ctx", "128",
                                     "--threads",       "1",       "--device", "cpu"};
    args.insert(args.end(), more.begin(), more.end());
    return args;
}

/* Runs until layer `layer` is finished, then ends it with a signal; its exit status. */
int stopped(const std::vector<std::string> &args, const std::string &out, int layer, int sig)
{
    TempDir t;
    pid_t pid = start(args, t / "out", t / "err", [] { setenv("NB_CPU_ISA", "scalar", 1); }); /* slow */
    const std::string file = out + ".resume/layer-0000" + std::to_string(layer) + ".safetensors";
    for (int i = 0; i < 100 * 1000 && !fs::exists(file) && !fs::exists(out); i++)
        usleep(1000);
    kill(pid, sig);
    alarm_after(pid, 120);
    return wait_for(pid);
}

} // namespace

TEST(Resume, goes_on_behind_the_layers_of_a_killed_run_with_the_same_bytes)
{
    TempDir d;
    for (bool dense : {false, true}) {
        const std::string whole = d / (dense ? "whole-dense" : "whole"), out = d / (dense ? "out-dense" : "out");
        std::vector<std::string> feed{"--calib-tokens", TOKENS, dense ? "--no-sequential" : "--sequential"};
        ASSERT_EQ(0, nibble(gptq(whole, feed)).status);
        ASSERT_EQ(1000 + SIGKILL, stopped(gptq(out, feed), out, 1, SIGKILL));
        ASSERT_FALSE(fs::exists(out));
        feed.push_back("--resume");
        const Result r = nibble(gptq(out, feed));
        ASSERT_EQ(0, r.status) << r.err;
        EXPECT_NE(std::string::npos, r.err.find("going on behind ")) << r.err;
        for (const char *f : {"model.safetensors", "quant_report.json", "config.json"})
            EXPECT_EQ(read_text(whole + "/" + f), read_text(out + "/" + f)) << f;
    }
    for (const auto &e : fs::directory_iterator(d.path())) /* nothing of either run is left */
        EXPECT_EQ(std::string::npos, e.path().string().find(".part-")) << e.path();
    EXPECT_FALSE(fs::exists(d / "out.resume"));
}

TEST(Resume, of_another_job_is_refused_and_without_the_flag_all_starts_anew)
{
    TempDir d;
    const std::string out = d / "out";
    const std::vector<std::string> tokens{"--calib-tokens", TOKENS};
    ASSERT_EQ(1000 + SIGKILL, stopped(gptq(out, tokens), out, 0, SIGKILL));
    Result r = nibble(gptq(out, {"--calib-tokens", "250", "--resume"}));
    EXPECT_EQ(1, r.status);
    EXPECT_NE(std::string::npos, r.err.find("another job")) << r.err;
    EXPECT_TRUE(fs::exists(out + ".resume/layer-00000.safetensors"));
    r = nibble(gptq(out, {"--calib-tokens", "250"}));
    EXPECT_EQ(0, r.status) << r.err;
    EXPECT_EQ(std::string::npos, r.err.find("going on")) << r.err;
    EXPECT_FALSE(fs::exists(out + ".resume"));
}

TEST(Resume, a_damaged_layer_is_an_error_that_names_it)
{
    TempDir d;
    const std::string out = d / "out";
    ASSERT_EQ(1000 + SIGKILL, stopped(gptq(out, {"--calib-tokens", TOKENS}), out, 0, SIGKILL));
    const std::string file = out + ".resume/layer-00000.safetensors";
    std::string bytes = read_text(file);
    write_text(file, bytes.substr(0, bytes.size() - 100));
    const Result r = nibble(gptq(out, {"--calib-tokens", TOKENS, "--resume"}));
    EXPECT_EQ(1, r.status);
    EXPECT_NE(std::string::npos, r.err.find("layer-00000")) << r.err;
    EXPECT_FALSE(fs::exists(out));
}

TEST(Interrupt, leaves_nothing_but_what_was_asked_to_stay)
{
    TempDir d;
    const std::string out = d / "out";
    EXPECT_EQ(1, stopped(gptq(out, {"--calib-tokens", kSanitized ? TOKENS : "2000"}), out, 0, SIGINT));
    EXPECT_TRUE(fs::is_empty(d.path()));
    EXPECT_EQ(1, stopped(gptq(out, {"--calib-tokens", TOKENS, "--resume"}), out, 0, SIGINT));
    EXPECT_TRUE(fs::exists(out + ".resume/layer-00000.safetensors"));
    EXPECT_EQ(0, nibble(gptq(out, {"--calib-tokens", TOKENS, "--resume"})).status);
}

TEST(Flags, sizes_are_read_with_their_units)
{
    TempDir d;
    for (const char *bad : {"", "0", "-1GiB", "2 gigs", "GiB", "1e30"}) {
        const Result r = nibble(gptq(d / "q", {"--calib-memory", bad}));
        EXPECT_EQ(2, r.status) << bad;
        EXPECT_NE(std::string::npos, r.err.find("4GiB")) << r.err;
    }
    EXPECT_EQ(0, nibble(gptq(d / "q", {"--calib-memory", "0.5 GiB", "--calib-tokens", "300"})).status);
    EXPECT_EQ(2, nibble(gptq(d / "r", {"--sequential", "--no-sequential"})).status);
}
