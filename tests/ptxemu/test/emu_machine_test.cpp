/* Control flow, calls, barriers, waiting and printf, in kernels that nvcc compiled (kernels/machine.cu).  The same on a GPU. */
#include "test/emu.h"

namespace
{
using emu::Buffer;
using emu::Dim;
using emu::launch;

/* compute capability and the name of the PTX file for it */
struct Arch {
    const char *cc, *sm;
};
struct Machine : testing::TestWithParam<Arch> {
    emu::Device device{GetParam().cc};
    emu::Module module{emu::kernel_ptx("machine", ptx_for(device.sm))};

    static std::string ptx_for(int sm) { return sm >= 90 ? "90a" : sm >= 80 ? "80" : "75"; }
    CUfunction kernel(const char *name) const { return module.get(name); }
    /* After a fault a GPU's context is lost, and with it the rest of the test. */
    void expect_fault(CUresult r, CUresult expected, const char *text) const
    {
        EXPECT_EQ(expected, r) << emu::error_name(r);
        if (emu::Driver::get().emulated()) {
            EXPECT_NE(std::string::npos, emu::report().find(text)) << "expected \"" << text << "\" in\n"
                                                                   << emu::report();
        }
    }
};
INSTANTIATE_TEST_SUITE_P(Arch, Machine, testing::Values(Arch{"7.5", "75"}, Arch{"8.0", "80"}, Arch{"9.0", "90a"}),
                         [](const testing::TestParamInfo<Arch> &i) { return std::string("sm_") + i.param.sm; });

TEST_P(Machine, LoopsEndForEveryLaneAfterItsOwnNumberOfRounds)
{
    const unsigned n = 1000;
    Buffer<unsigned> out(n);
    ASSERT_CU(launch(kernel("collatz"), 8, 128, 0, out.p, n));
    const auto steps = out.get();
    for (unsigned t = 0; t < n; t++) {
        unsigned k = 0;
        for (unsigned long long v = t + 1; v != 1; k++)
            v = v % 2 ? 3 * v + 1 : v / 2;
        ASSERT_EQ(k, steps[t]) << t;
    }
}

unsigned choose(unsigned t, unsigned what)
{
    unsigned v = t;
    for (unsigned round = 0; round < 3; round++) {
        const unsigned c = what + round;
        if (c == 0)
            v += 17;
        else if (c == 1)
            v *= 5;
        else if (c == 2)
            v = (v ^ 0x55) - t / 3;
        else if (c == 3)
            v -= t / 3;
        else if (c == 4)
            v = v << 3 | v >> 29;
        else if (c == 5)
            v = ~v;
        else if (c == 6)
            v = v * v + 1;
        else if (c != 7)
            v += round;
    }
    return v;
}

TEST_P(Machine, SwitchInALoopTakesEveryLaneItsOwnWay)
{
    std::vector<unsigned> what(256);
    for (unsigned t = 0; t < 256; t++)
        what[t] = t * 7 % 11;
    Buffer<unsigned> in(what), out(256);
    ASSERT_CU(launch(kernel("choose"), 2, 128, 0, out.p, in.p));
    const auto v = out.get();
    for (unsigned t = 0; t < 256; t++)
        ASSERT_EQ(choose(t, what[t]), v[t]) << t;
}

TEST_P(Machine, VirtualFunctionsGoWhereEachObjectSays)
{
    Buffer<unsigned> out(64);
    ASSERT_CU(launch(kernel("areas"), 1, 64, 0, out.p));
    const auto v = out.get();
    for (unsigned t = 0; t < 64; t++)
        ASSERT_EQ(t % 3 ? t * t * (t + 1) : t * 3 + t + 1, v[t]) << t;
}

TEST_P(Machine, RecursionReturnsToEachLanesCaller)
{
    Buffer<unsigned> out(64);
    ASSERT_CU(launch(kernel("fibonaccis"), 1, 64, 0, out.p));
    const auto v = out.get();
    const unsigned f[] = {0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89};
    for (unsigned t = 0; t < 64; t++)
        ASSERT_EQ(f[t % 12], v[t]) << t;
}

TEST_P(Machine, StructsArePassedByValue)
{
    Buffer<double> out(32);
    ASSERT_CU(launch(kernel("structs"), 1, 32, 0, out.p));
    const auto v = out.get();
    for (unsigned t = 0; t < 32; t++)
        ASSERT_EQ(4 * t + t + 0.5 * t + 'b', v[t]) << t;
}

TEST_P(Machine, TableOfFunctionPointersIsCalledThrough)
{
    Buffer<int> out(64);
    ASSERT_CU(launch(kernel("operate"), 1, 64, 0, out.p));
    const auto v = out.get();
    for (int t = 0; t < 64; t++)
        ASSERT_EQ(t % 3 == 0 ? t + 7 : t % 3 == 1 ? t - 7 : t * 7, v[size_t(t)]) << t;
}

TEST_P(Machine, PrintfFormatsAsTheHostDoes)
{
    Buffer<char> word(std::vector<char>{'n', 'i', 'b', 'b', 'l', 'e', 0});
    testing::internal::CaptureStdout();
    CUresult r = launch(kernel("prints"), 1, 32, 0, word.p, -1234567890123ll);
    fflush(stdout);
    const std::string text = testing::internal::GetCapturedStdout();
    ASSERT_CU(r);
    char expected[512];
    int n = snprintf(expected, sizeof expected, "[%d|%5u|%-6d|%08x|%#o|%+d]\n", -5, 42u, 7, 0xbeefu, 8, 3);
    n += snprintf(expected + n, sizeof expected - size_t(n), "[%lld|%llx|%d|%d]\n", -1234567890123ll,
                  0x123456789abcdefull, -3, 99);
    n += snprintf(expected + n, sizeof expected - size_t(n), "[%f|%.3e|%g|%10.2f|%-8.1f|%*d]\n", 1.5, 12345.678, 0.0001,
                  3.14159, 2.0, 6, 12);
    snprintf(expected + n, sizeof expected - size_t(n), "[%s|%s|%c|%%|%5s]\n", "nibble", "ab", 'z', "xy");
    EXPECT_EQ(expected, text);
}

TEST_P(Machine, PrintfOfBlocksComesInTheirOrder)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "a GPU does not promise this";
    testing::internal::CaptureStdout();
    CUresult r = launch(kernel("print_block"), 5, 2, 0);
    const std::string text = testing::internal::GetCapturedStdout();
    ASSERT_CU(r);
    EXPECT_EQ("block 0\nblock 0\nblock 1\nblock 1\nblock 2\nblock 2\nblock 3\nblock 3\nblock 4\nblock 4\n", text);
}

TEST_P(Machine, FailedAssertionStopsTheLaunchAndSaysWhere)
{
    std::vector<int> v(64, 1);
    Buffer<int> in(v);
    ASSERT_CU(launch(kernel("asserts"), 1, 64, 0, in.p));
    v[33] = -1;
    in.put(v);
    testing::internal::CaptureStderr();
    CUresult r = launch(kernel("asserts"), 1, 64, 0, in.p);
    const std::string text = testing::internal::GetCapturedStderr();
    expect_fault(r, CUDA_ERROR_ASSERT, "a value is negative");
    EXPECT_NE(std::string::npos,
              text.find("thread: [33,0,0] Assertion `v[threadIdx.x] >= 0 && \"a value is negative\"` failed."))
        << text;
}

TEST_P(Machine, LanesOfAWarpTakeALockInTurn)
{
    Buffer<unsigned> v(2);
    v.zero();
    ASSERT_CU(launch(kernel("warp_lock"), 3, 64, 0, v.p, v.p + 4));
    EXPECT_EQ(192u, v.get()[1]);
}

TEST_P(Machine, BlocksWaitForEarlierOnes)
{
    const unsigned blocks = 24;
    std::vector<unsigned> start(blocks + 1, 0), expected(32, 0);
    start[0] = 1;
    Buffer<unsigned> flags(start), sum(32);
    sum.zero();
    ASSERT_CU(launch(kernel("in_turn"), blocks, 64, 0, flags.p, sum.p));
    for (unsigned b = 0; b < blocks; b++)
        for (unsigned t = 0; t < 32; t++)
            expected[t] = expected[t] * 3 + b + t;
    EXPECT_EQ(expected, sum.get());
}

TEST_P(Machine, CooperativeGridMeetsAtItsBarrier)
{
    const unsigned n = 4 * 96;
    Buffer<unsigned> v(n), out(n);
    void *p[] = {&v.p, &out.p};
    ASSERT_CU(CU(cuLaunchCooperativeKernel)(kernel("grid_sync"), 4, 1, 1, 96, 1, 1, 0, nullptr, p));
    ASSERT_CU(CU(cuCtxSynchronize)());
    const auto got = out.get();
    for (unsigned t = 0; t < n; t++)
        ASSERT_EQ(((t + 1) % n + n / 2) % n * 3 + 1, got[t]) << t;
}

TEST_P(Machine, TilesAndCoalescedThreadsShuffleAmongThemselves)
{
    Buffer<unsigned> out(64);
    ASSERT_CU(launch(kernel("tiles"), 1, 64, 0, out.p));
    const auto got = out.get();
    std::vector<unsigned> v(64);
    for (unsigned t = 0; t < 64; t++)
        v[t] = t / 16 % 2 ? t / 16 * 16 * 16 + 120 : t / 16 * 16 + (t + 3) % 16;
    for (unsigned t = 0; t < 64; t++)
        ASSERT_EQ(t % 2 ? v[t] + v[t / 32 * 32 + 1] + 16000 : v[t], got[t]) << t;
}

TEST_P(Machine, ShuffleOfAPartOfTheWarpWithItsOwnMaskIsRight)
{
    Buffer<unsigned> out(32);
    ASSERT_CU(launch(kernel("divergent_shuffle"), 1, 32, 0, out.p, 16u, 0xffffu));
    const auto v = out.get();
    for (unsigned t = 0; t < 32; t++)
        ASSERT_EQ(t < 16 ? t ^ 1 : t, v[t]);
}

TEST_P(Machine, ShuffleWithLanesMissingIsReported)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "a GPU waits or gives what it likes";
    Buffer<unsigned> out(32);
    expect_fault(launch(kernel("divergent_shuffle"), 1, 32, 0, out.p, 16u, 0xffffffffu), CUDA_ERROR_LAUNCH_FAILED,
                 "lanes missing at a warp-wide instruction");
    EXPECT_NE(std::string::npos, emu::report().find("machine.cu:")) << emu::report();
}

TEST_P(Machine, DivergentBarrierIsReportedAndAUniformOnePasses)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "a GPU does not notice";
    Buffer<unsigned> out(64);
    ASSERT_CU(launch(kernel("divergent_barrier"), 1, 64, 0, out.p, 32u));
    expect_fault(launch(kernel("divergent_barrier"), 1, 64, 0, out.p, 16u), CUDA_ERROR_LAUNCH_FAILED,
                 "divergent barrier");
}

TEST_P(Machine, VotesOfTheBlockReachEveryThread)
{
    std::vector<int> v(96, 0), out;
    Buffer<int> in(v), result(96);
    auto vote = [&] {
        in.put(v);
        EXPECT_CU(launch(kernel("votes_of_the_block"), 1, 96, 0, result.p, in.p));
        return result.get();
    };
    EXPECT_EQ(std::vector<int>(96, 0), vote());
    v[40] = v[3] = 1;
    EXPECT_EQ(std::vector<int>(96, 2 * 4 + 1), vote());
    v.assign(96, 5);
    EXPECT_EQ(std::vector<int>(96, 96 * 4 + 3), vote());
}

TEST_P(Machine, WaitingForAFlagThatNobodySetsIsADeadlock)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "a GPU waits forever";
    emu::Device impatient(GetParam().cc, {{"NB_EMU_PATIENCE", "100000"}});
    emu::Module m(emu::kernel_ptx("machine", ptx_for(impatient.sm)));
    Buffer<unsigned> flag(1);
    flag.zero();
    expect_fault(launch(m.get("waits_for_a_flag"), 8, 32, 0, flag.p), CUDA_ERROR_LAUNCH_TIMEOUT, "deadlock");
    EXPECT_NE(std::string::npos, emu::report().find("machine.cu:")) << emu::report();
}

TEST_P(Machine, ClusterReadsTheSharedMemoryOfItsBlocks)
{
    if (device.sm < 90)
        GTEST_SKIP() << "clusters begin with sm_90";
    Buffer<unsigned> out(8 * 32);
    ASSERT_CU(launch(kernel("cluster_ring"), 8, 32, 0, out.p));
    const auto v = out.get();
    for (unsigned b = 0; b < 8; b++)
        for (unsigned t = 0; t < 32; t++)
            ASSERT_EQ(100 * (b / 4 * 4 + (b + 1) % 4) + t, v[b * 32 + t]) << b << " " << t;
}
} // namespace
