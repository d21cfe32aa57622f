/* Every check of the emulator catches a kernel that is wrong in that way, blames the right line, and lets the corrected twin pass:
 * kernels/broken.cu. */
#include <dlfcn.h>

#include "test/emu.h"

namespace
{

struct Case {
    const char *name, *title; /* title: how the report begins */
    CUresult error;
    unsigned block;
    const char *least_sm; /* "75", "80", "90a" */
};

const Case cases[] = {
    {"global_past_end", "out-of-bounds access", CUDA_ERROR_ILLEGAL_ADDRESS, 32, "75"},
    {"global_before_start", "out-of-bounds access", CUDA_ERROR_ILLEGAL_ADDRESS, 32, "75"},
    {"global_misaligned", "misaligned access", CUDA_ERROR_MISALIGNED_ADDRESS, 32, "75"},
    {"shared_past_end", "out-of-bounds access", CUDA_ERROR_ILLEGAL_ADDRESS, 32, "75"},
    {"local_past_end", "out-of-bounds access", CUDA_ERROR_ILLEGAL_ADDRESS, 32, "75"},
    {"const_past_end", "out-of-bounds access", CUDA_ERROR_ILLEGAL_ADDRESS, 32, "75"},
    {"global_never_written", "read of never-written memory", CUDA_ERROR_LAUNCH_FAILED, 32, "75"},
    {"shared_never_written", "read of never-written memory", CUDA_ERROR_LAUNCH_FAILED, 32, "75"},
    {"local_never_written", "use of a never-written register", CUDA_ERROR_LAUNCH_FAILED, 32, "75"},
    {"race_read_after_write", "shared-memory race", CUDA_ERROR_LAUNCH_FAILED, 64, "75"},
    {"race_write_after_read", "shared-memory race", CUDA_ERROR_LAUNCH_FAILED, 64, "75"},
    {"race_write_after_write", "shared-memory race", CUDA_ERROR_LAUNCH_FAILED, 64, "75"},
    {"race_within_warp", "shared-memory race", CUDA_ERROR_LAUNCH_FAILED, 32, "75"},
    {"divergent_barrier", "divergent barrier", CUDA_ERROR_LAUNCH_FAILED, 32, "75"},
    {"mismatched_barrier", "mismatched barrier", CUDA_ERROR_LAUNCH_FAILED, 64, "75"},
    {"shfl_lanes_missing", "lanes missing", CUDA_ERROR_LAUNCH_FAILED, 32, "75"},
    {"mma_lanes_missing", "lanes missing", CUDA_ERROR_LAUNCH_FAILED, 32, "75"},
    {"lock_never_released", "deadlock", CUDA_ERROR_LAUNCH_TIMEOUT, 32, "75"},
    {"asserts", "assertion failed", CUDA_ERROR_ASSERT, 32, "75"},
    {"traps", "trap", CUDA_ERROR_LAUNCH_FAILED, 32, "75"},
    {"async_read_before_wait", "access to an asynchronous copy's destination", CUDA_ERROR_LAUNCH_FAILED, 8, "80"},
    {"async_wait_without_barrier", "shared-memory race", CUDA_ERROR_LAUNCH_FAILED, 64, "80"},
    {"async_waits_for_too_few", "access to an asynchronous copy's destination", CUDA_ERROR_LAUNCH_FAILED, 8, "80"},
    {"bulk_read_before_wait", "access to an asynchronous copy's destination", CUDA_ERROR_LAUNCH_FAILED, 32, "90a"},
    {"mbarrier_without_init", "misuse of an mbarrier", CUDA_ERROR_LAUNCH_FAILED, 32, "90a"},
};

const char *const archs[] = {"75", "80", "90a"};
const char *capability(const std::string &arch)
{
    return arch == "75" ? "7.5" : arch == "80" ? "8.0" : "9.0";
}

/* "broken.cu:123" of the line that is marked "blame: NAME". */
std::string blamed_line(const std::string &name)
{
    std::istringstream source(emu::read_file(NIBBLE_SOURCE_DIR "/tests/ptxemu/kernels/broken.cu"));
    std::string line, mark = "// blame: " + name;
    for (int n = 1; std::getline(source, line); n++)
        if (line.size() >= mark.size() && line.compare(line.size() - mark.size(), mark.size(), mark) == 0)
            return "broken.cu:" + std::to_string(n);
    ADD_FAILURE() << "broken.cu has no line marked " << mark;
    return "?";
}

struct Outcome {
    CUresult result;
    std::string report;
};

Outcome run(const Case &c, const std::string &arch, const char *suffix, const char *check)
{
    emu::Device d(capability(arch), {{"NB_EMU_CHECK", check}, {"NB_EMU_PATIENCE", "200000"}});
    emu::Module m(emu::kernel_ptx("broken", arch));
    std::vector<int> input(32);
    for (int i = 0; i < 32; i++)
        input[size_t(i)] = i + 1;
    emu::Buffer<int> in(input), out(64);
    CUresult r = emu::launch(m.get((std::string(c.name) + suffix).c_str()), 1, c.block, 0, out.p, in.p, 32);
    return {r, emu::report()};
}

class Broken : public testing::TestWithParam<std::tuple<Case, const char *>>
{
};

TEST_P(Broken, is_caught_at_its_line_and_its_twin_passes)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "a real device does not report these";
    const auto &[c, arch] = GetParam();
    Outcome broken = run(c, arch, "_broken", "1");
    EXPECT_EQ(c.error, broken.result) << emu::error_name(broken.result) << "\n" << broken.report;
    EXPECT_NE(std::string::npos, broken.report.find(c.title)) << broken.report;
    EXPECT_NE(std::string::npos, broken.report.find(std::string(c.name) + "_broken")) << broken.report;
    EXPECT_NE(std::string::npos, broken.report.find(blamed_line(c.name))) << blamed_line(c.name) << "\n"
                                                                          << broken.report;
    Outcome fixed = run(c, arch, "_fixed", "1");
    EXPECT_EQ(CUDA_SUCCESS, fixed.result) << emu::error_name(fixed.result) << "\n" << fixed.report;
    EXPECT_EQ("", fixed.report);
}

/* Where the checks are off, what is only a risk is let through, and what would crash the process is still an error. */
TEST_P(Broken, never_brings_the_process_down_without_checks)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP();
    const auto &[c, arch] = GetParam();
    Outcome broken = run(c, arch, "_broken", "0");
    if (c.error == CUDA_ERROR_ILLEGAL_ADDRESS || c.error == CUDA_ERROR_ASSERT) {
        EXPECT_EQ(c.error, broken.result) << broken.report;
    }
    EXPECT_EQ(CUDA_SUCCESS, run(c, arch, "_fixed", "0").result);
}

std::vector<std::tuple<Case, const char *>> all()
{
    std::vector<std::tuple<Case, const char *>> v;
    for (const Case &c : cases) {
        bool there = false;
        for (const char *arch : archs) {
            there = there || strcmp(arch, c.least_sm) == 0;
            if (there)
                v.emplace_back(c, arch);
        }
    }
    return v;
}

INSTANTIATE_TEST_SUITE_P(Checks, Broken, testing::ValuesIn(all()), [](const auto &info) {
    return std::string(std::get<0>(info.param).name) + "_sm" + std::get<1>(info.param);
});

/* Checks go by the names of compute-sanitizer's tools; what is not named is off. */
TEST(Selection, of_checks_by_name)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP();
    struct {
        const char *kernel, *needs;
    } const kernels[] = {{"shared_never_written", "initcheck"},
                         {"local_never_written", "initcheck"},
                         {"global_never_written", "initcheck"},
                         {"race_read_after_write", "racecheck"},
                         {"async_read_before_wait", "racecheck"},
                         {"divergent_barrier", "check"},
                         {"global_past_end", "check"}};
    for (const char *check : {"memcheck", "synccheck", "initcheck", "racecheck,synccheck", "initcheck,racecheck"})
        for (auto &k : kernels)
            for (const Case &c : cases)
                if (std::string(c.name) == k.kernel) {
                    const bool on = std::string(check).find(k.needs) != std::string::npos;
                    EXPECT_EQ(on ? c.error : CUDA_SUCCESS, run(c, "80", "_broken", check).result)
                        << k.kernel << " with " << check;
                    EXPECT_EQ(CUDA_SUCCESS, run(c, "80", "_fixed", check).result) << k.kernel << " with " << check;
                }
    setenv("NB_EMU_CHECK", "sanitycheck", 1);
    emu::Driver::get().reset();
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuInit)(0));
    unsetenv("NB_EMU_CHECK");
}

TEST(UseAfterFree, is_caught_and_named)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP();
    emu::Device d("8.0");
    emu::Module m(emu::kernel_ptx("broken", "80"));
    emu::Buffer<int> out(64);
    CUdeviceptr in = 0;
    ASSERT_CU(CU(cuMemAlloc)(&in, 128));
    ASSERT_CU(CU(cuMemsetD8)(in, 1, 128));
    CUfunction f = m.get("global_past_end_fixed");
    ASSERT_CU(emu::launch(f, 1, 32, 0, out.p, in, 32));
    ASSERT_CU(CU(cuMemFree)(in));
    EXPECT_EQ(CUDA_ERROR_ILLEGAL_ADDRESS, emu::launch(f, 1, 32, 0, out.p, in, 32));
    EXPECT_NE(std::string::npos, emu::report().find("use after free")) << emu::report();
    EXPECT_NE(std::string::npos, emu::report().find("128")) << emu::report();
}

TEST(Limits, of_the_architecture_are_those_of_the_launch)
{
    struct {
        const char *cc, *arch;
        unsigned shared;
    } const rows[] = {{"7.5", "75", 64 << 10},
                      {"8.0", "80", 163 << 10},
                      {"8.6", "80", 99 << 10},
                      {"8.9", "80", 99 << 10},
                      {"9.0", "90a", 227 << 10}};
    if (!emu::Driver::get().emulated())
        GTEST_SKIP();
    for (auto &row : rows) {
        SCOPED_TRACE(row.cc);
        emu::Device d(row.cc);
        emu::Module m(emu::kernel_ptx("broken", row.arch));
        CUfunction f = m.get("traps_fixed");
        emu::Buffer<int> in(std::vector<int>(1024, 1)), out(1024);
        EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, emu::launch(f, 1, 1025, 0, out.p, in.p, 31));
        EXPECT_CU(emu::launch(f, 1, 32, 48 << 10, out.p, in.p, 31));
        EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, emu::launch(f, 1, 32, (48 << 10) + 1, out.p, in.p, 31))
            << "without opting in";
        EXPECT_NE(CUDA_SUCCESS,
                  CU(cuFuncSetAttribute)(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, int(row.shared + 1)));
        EXPECT_CU(CU(cuFuncSetAttribute)(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, int(row.shared)));
        EXPECT_CU(emu::launch(f, 1, 32, row.shared, out.p, in.p, 31));
        EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, emu::launch(f, emu::Dim(1, 65536), 32, 0, out.p, in.p, 31));
        EXPECT_CU(emu::launch(f, 1, 32, 0, out.p, in.p, 31)); /* a refused launch leaves the context usable */
    }
}

} // namespace
