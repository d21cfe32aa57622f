/* emu_run, as a person uses it: values, arrays, results, reports, exit statuses. */
#include <sys/wait.h>

#include <array>

#include "test/emu.h"

namespace
{

struct Output {
    int status;
    std::string text; /* stdout and stderr */
};

Output run(const std::string &arguments)
{
    const std::string command = "NB_EMU_CC=8.0 " NIBBLE_BUILD_DIR "/emu_run " + arguments + " 2>&1";
    FILE *p = popen(command.c_str(), "r");
    std::string text;
    std::array<char, 4096> part;
    while (size_t n = fread(part.data(), 1, part.size(), p))
        text.append(part.data(), n);
    int s = pclose(p);
    return {WIFEXITED(s) ? WEXITSTATUS(s) : -1, text};
}
const std::string classic = NIBBLE_BUILD_DIR "/ptx/classic_sm80.ptx ";
bool holds(const Output &o, const char *what)
{
    return o.text.find(what) != std::string::npos;
}

TEST(EmuRun, launches_a_kernel_and_prints_what_it_wrote)
{
    Output o = run(classic + "transpose_padded --grid 1,1 --block 32,8 out:f32:12 f32:12:iota i32=3 i32=4");
    EXPECT_EQ(0, o.status) << o.text;
    EXPECT_EQ("argument 0 (f32 x 12): 0 4 8 1 5 9 2 6 10 3 7 11\n", o.text);
    o = run(classic + "scan_blelloch --block 8 --shared 64 out:i32:16 i32:16:iota");
    EXPECT_EQ("argument 0 (i32 x 16): 0 1 3 6 10 15 21 28 36 45 55 66 78 91 105 120\n", o.text);
    o = run(classic + "histogram --block 32 out:u32:256:zero u8:5:zero i32=5");
    EXPECT_EQ("argument 0 (u32 x 256): 5 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 ...\n", o.text);
}

TEST(EmuRun, says_what_is_wrong_with_a_kernel)
{
    Output o = run(classic + "reduce_sum --block 64 f32:1 f32:100:random i32=101");
    EXPECT_EQ(1, o.status);
    EXPECT_TRUE(holds(o, "out-of-bounds access in kernel reduce_sum")) << o.text;
    EXPECT_TRUE(holds(o, "reduce_sum: CUDA_ERROR_ILLEGAL_ADDRESS")) << o.text;
    o = run(classic + "reduce_sum f32:1 f32:100 i32=100");
    EXPECT_EQ(1, o.status);
    EXPECT_TRUE(holds(o, "never-written")) << "an array without a filling is never written\n" << o.text;
}

TEST(EmuRun, refuses_bad_command_lines_with_status_2)
{
    for (const char *bad : {"", "only_a_file", "a b --grid", "a b --grid 1,2,3,4", "a b --block x", "a b --shared -1",
                            "a b --what", "a b f32", "a b f33=1", "a b f32=one", "a b f32:-1", "a b f32:1:full"}) {
        Output o = run(bad);
        EXPECT_EQ(2, o.status) << bad << "\n" << o.text;
        EXPECT_NE("", o.text) << bad;
    }
}

TEST(EmuRun, names_the_file_or_kernel_that_is_not_there)
{
    Output o = run(classic + "nothing");
    EXPECT_EQ(1, o.status);
    EXPECT_TRUE(holds(o, "kernel nothing")) << o.text;
    o = run("/nowhere.ptx k");
    EXPECT_EQ(1, o.status);
    EXPECT_EQ("emu_run: /nowhere.ptx cannot be read\n", o.text);
    o = run(NIBBLE_SOURCE_DIR "/README.md k");
    EXPECT_EQ(1, o.status);
    EXPECT_TRUE(holds(o, "line 1:")) << o.text;
    EXPECT_EQ(0, run("--help").status);
}

} // namespace
