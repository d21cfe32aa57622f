/* cp.async, mbarriers and the race check, through the driver: kernels/async.cu. */
#include "emu.h"

#include <numeric>

namespace
{

const std::string &ptx()
{
    static const std::string text = emu::kernel_ptx("async", "80");
    return text;
}

std::vector<int> numbers(size_t n)
{
    std::vector<int> v(n);
    for (size_t i = 0; i < n; i++)
        v[i] = int(i * 2654435761u >> 7);
    return v;
}

struct Async : testing::Test {
    emu::Device device{"8.0"};
    emu::Module module{ptx()};

    CUresult run(const char *name, unsigned threads, CUdeviceptr in, CUdeviceptr out)
    {
        return emu::launch(module.get(name), 1, threads, 0, in, out);
    }
    /* The kernels (in, out) of 128 threads. */
    std::vector<int> result(const char *name, const std::vector<int> &in)
    {
        emu::Buffer<int> from(in), to(128);
        EXPECT_CU(run(name, 128, from.p, to.p));
        return to.get();
    }
    /* NAME_right gives `expected`; NAME_wrong is stopped with a report that has these words. */
    void twins(const std::string &name, const std::vector<int> &in, const std::vector<int> &expected,
               std::initializer_list<const char *> words)
    {
        EXPECT_EQ(expected, result((name + "_right").c_str(), in)) << name;
        if (!emu::Driver::get().emulated())
            return;
        emu::Buffer<int> from(in), to(128);
        EXPECT_EQ(CUDA_ERROR_LAUNCH_FAILED, run((name + "_wrong").c_str(), 128, from.p, to.p)) << name;
        for (const char *w : words)
            EXPECT_NE(std::string::npos, emu::report().find(w)) << name << ": \"" << w << "\" is not in\n"
                                                                << emu::report();
    }
    std::vector<int> turned(const std::vector<int> &in, size_t by)
    {
        std::vector<int> v(128);
        for (size_t t = 0; t < 128; t++)
            v[t] = in[(t + by) % 128];
        return v;
    }
    std::vector<int> mirrored(const std::vector<int> &in, int xor_with)
    {
        std::vector<int> v(128);
        for (int t = 0; t < 128; t++)
            v[size_t(t)] = in[size_t(t ^ xor_with)];
        return v;
    }
};

/* A check ends a context for good: each of these kernels has a device of its own. */
struct Misuse : testing::Test {
    void stopped(const char *name, const char *words, int argument = 0, bool has_argument = false)
    {
        emu::Device device("8.0");
        if (!emu::Driver::get().emulated())
            return;
        emu::Module module(ptx());
        emu::Buffer<uint64_t> out(1);
        CUfunction f = module.get(name);
        CUresult r = has_argument ? emu::launch(f, 1, 1, 0, out.p, argument) : emu::launch(f, 1, 1, 0, out.p);
        EXPECT_EQ(CUDA_ERROR_LAUNCH_FAILED, r) << name;
        EXPECT_NE(std::string::npos, emu::report().find("misuse of an mbarrier")) << emu::report();
        EXPECT_NE(std::string::npos, emu::report().find(words)) << emu::report();
    }
};

TEST_F(Async, AShortSourceIsFilledUpWithZeros)
{
    std::vector<int> in = numbers(256);
    for (int n : {0, 1, 4, 7, 8, 15, 16}) {
        emu::Buffer<int> from(in), to(256);
        EXPECT_CU(emu::launch(module.get("zero_fill"), 1, 64, 0, from.p, to.p, n));
        std::vector<int> expected(in);
        for (size_t b = 0; b < 1024; b++)
            if (int(b % 16) >= n)
                reinterpret_cast<uint8_t *>(expected.data())[b] = 0;
        EXPECT_EQ(expected, to.get()) << n;
    }
}

TEST_F(Async, NothingOfASourceThatIsNotReadHasToExist)
{
    std::vector<int> in = numbers(256);
    emu::Buffer<int> from(in), to(256);
    EXPECT_CU(emu::launch(module.get("zero_fill"), 1, 64, 0, CUdeviceptr(16), to.p, 0));
    EXPECT_EQ(std::vector<int>(256, 0), to.get());
}

TEST_F(Async, ASourceCanBeIgnored)
{
    std::vector<int> in = numbers(64);
    emu::Buffer<int> from(in), to(64);
    EXPECT_CU(emu::launch(module.get("ignore_source"), 1, 64, 0, from.p, to.p, 40));
    std::fill(in.begin() + 40, in.end(), 0);
    EXPECT_EQ(in, to.get());
}

TEST_F(Async, PipelinesOfTwoAndFourStagesGiveWhatTheHostComputes)
{
    const int tiles = 11;
    std::vector<int> in = numbers(128 * tiles), expected(in.size());
    for (size_t i = 0; i < in.size(); i++)
        expected[i] = int(3u * unsigned(in[i / 128 * 128 + 127 - i % 128]));
    for (const char *name : {"pipeline2", "pipeline4"}) {
        emu::Buffer<int> from(in), to(in.size());
        EXPECT_CU(emu::launch(module.get(name), 1, 128, 0, from.p, to.p, tiles));
        EXPECT_EQ(expected, to.get()) << name;
    }
}

TEST(AsyncUnchecked, PipelinesRunWithoutChecksAndOnTwoThreads)
{
    emu::Device device("8.0", {{"NB_EMU_CHECK", "0"}, {"NB_EMU_THREADS", "2"}});
    emu::Module module(ptx());
    std::vector<int> in = numbers(128 * 5), expected(in.size());
    for (size_t i = 0; i < in.size(); i++)
        expected[i] = int(3u * unsigned(in[i / 128 * 128 + 127 - i % 128]));
    emu::Buffer<int> from(in), to(in.size());
    EXPECT_CU(emu::launch(module.get("pipeline4"), 1, 128, 0, from.p, to.p, 5));
    EXPECT_EQ(expected, to.get());
}

TEST_F(Async, AnMbarrierTellsThatCopiesAreComplete)
{
    std::vector<int> in = numbers(128), expected = mirrored(in, 127);
    EXPECT_EQ(expected, result("copies_arrive", in));
    EXPECT_EQ(expected, result("copies_arrive_besides", in));
}

TEST_F(Async, PhasesOfAnMbarrierFollowEachOther)
{
    emu::Buffer<uint32_t> out(128);
    EXPECT_CU(emu::launch(module.get("mbarrier_phases"), 1, 128, 0, out.p));
    std::vector<uint32_t> v = out.get();
    for (uint32_t t = 0; t < 128; t++)
        EXPECT_EQ(10 + 5 * ((t + 37) % 128), v[t]);
}

TEST_F(Async, StatesTellPendingCountsAndPhases)
{
    emu::Buffer<uint32_t> out(14);
    EXPECT_CU(emu::launch(module.get("mbarrier_counts"), 1, 1, 0, out.p));
    /* pending before the arrival, complete: 3 arrivals; then one drop and two arrivals; then a phase for two */
    EXPECT_EQ((std::vector<uint32_t>{3, 0, 2, 0, 1, 1, 3, 0, 1, 1, 2, 0, 1, 1}), out.get());
}

TEST_F(Async, RacesReadAfterWrite)
{
    std::vector<int> in = numbers(128);
    twins("read_after_write", in, turned(in, 96),
          {"shared-memory race", "async.cu:", "reads 4 bytes at shared offset",
           "wrote at async.cu:", "with no barrier between"});
}
TEST_F(Async, RacesWriteAfterRead)
{
    std::vector<int> in = numbers(128), expected = turned(in, 32);
    for (int &x : expected)
        x++;
    twins("write_after_read", in, expected, {"shared-memory race", "writes 4 bytes", "read at async.cu:"});
}
TEST_F(Async, RacesWriteAfterWrite)
{
    std::vector<int> in = numbers(128);
    twins("write_after_write", in, mirrored(in, 127), {"shared-memory race", "writes 4 bytes", "wrote at async.cu:"});
}
TEST_F(Async, RacesInsideAWarp)
{
    std::vector<int> in = numbers(128);
    twins("lanes_of_a_warp", in, mirrored(in, 1), {"shared-memory race", "no __syncwarp or barrier between"});
}
TEST_F(Async, RacesPastANamedBarrierOfOtherWarps)
{
    std::vector<int> in = numbers(128);
    twins("named_barrier", in, mirrored(in, 63), {"shared-memory race", "with no barrier between"});
}
TEST_F(Async, CopiesThatNobodyWaitedFor)
{
    std::vector<int> in = numbers(128);
    twins("copy_without_wait", in, mirrored(in, 127),
          {"before its wait", "the cp.async that thread", "issued at async.cu:", "has not waited for it"});
}
TEST_F(Async, CopiesWithAWaitButNoBarrier)
{
    std::vector<int> in = numbers(128);
    twins("copy_without_barrier", in, mirrored(in, 127), {"shared-memory race", "no barrier between"});
}
TEST_F(Async, CopiesOfAGroupThatIsStillOpen)
{
    std::vector<int> in = numbers(128);
    twins("copy_wrong_group", in, in, {"before its wait", "has not waited for it"});
}

TEST_F(Async, ProducersAndConsumersMeetAtMbarriers)
{
    std::vector<int> in = numbers(256), expected(128, 0);
    for (int t = 32; t < 128; t++)
        for (int k = 0; k < 8; k++)
            expected[size_t(t)] = int(unsigned(expected[size_t(t)]) + unsigned(in[size_t(k * 32 + (t + k) % 32)]));
    twins("produce_and_consume", in, expected, {"writes 4 bytes"});
}

TEST_F(Misuse, AnMbarrierHasToBeInitialised)
{
    stopped("mbarrier_never_made", "mbarrier.init has to come first");
    stopped("mbarrier_invalid_again", "mbarrier.init has to come first");
}
TEST_F(Misuse, MoreArrivalsThanAPhaseWaitsFor)
{
    stopped("mbarrier_too_many", "whose phase waits for 2 of 2");
}
TEST_F(Misuse, CountsOutOfRange)
{
    stopped("mbarrier_count_range", "the count has to be 1 to 1048575", 0, true);
    stopped("mbarrier_count_range", "the count has to be 1 to 1048575", 1 << 20, true);
}
TEST_F(Misuse, AnMbarrierIsAlignedToEightBytes)
{
    stopped("mbarrier_misaligned", "multiple of 8");
}

TEST(AsyncText, FormsThatDoNotExistAreErrorsAtLoad)
{
    emu::Device device("8.0");
    auto loads = [](const std::string &statement, const char *target = "sm_80") {
        emu::Module m(".version 8.0\n.target " + std::string(target) +
                          "\n.address_size 64\n.visible .entry k(.param .u64 p)\n{\n.shared .align 16 .b8 s[64];\n"
                          ".reg .b64 %rd;\n.reg .b32 %r;\n.reg .pred %p;\nld.param.u64 %rd, [p];\nmov.u32 %r, s;\n" +
                          statement + "\nret;\n}\n",
                      false);
        return m.result == CUDA_SUCCESS;
    };
    EXPECT_TRUE(loads("cp.async.ca.shared.global [%r], [%rd], 8;"));
    EXPECT_TRUE(loads("cp.async.cg.shared.global.L2::128B [%r], [%rd], 16;"));
    EXPECT_TRUE(loads("cp.async.ca.shared::cta.global.L2::cache_hint.L2::64B [%r+16], [%rd+16], 16, 8, %rd;"));
    if (!emu::Driver::get().emulated())
        return;
    EXPECT_FALSE(loads("cp.async.cg.shared.global [%r], [%rd], 8;"));
    EXPECT_FALSE(loads("cp.async.ca.shared.global [%r], [%rd], 12;"));
    EXPECT_FALSE(loads("cp.async.ca.shared.shared [%r], [%r], 4;"));
    EXPECT_FALSE(loads("mbarrier.try_wait.parity.shared.b64 %p, [%r], 0;")); /* sm_90 */
    EXPECT_FALSE(loads("mbarrier.init.shared.b32 [%r], 1;"));
}

} // namespace
