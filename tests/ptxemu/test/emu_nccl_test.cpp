/* The NCCL stand-in: every collective against its definition, with ranks as threads, as one thread in a group, and as processes. */
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <thread>

#include "companions/nccl_abi.h"
#include "test/emu.h"

namespace
{

struct Nccl {
#define X(result, name, arguments) decltype(&::name) name = nullptr;
    PTXEMU_NCCL_LIST(X)
#undef X
    Nccl()
    {
        const char *named = getenv("NB_NCCL");
        void *so = dlopen(named && *named ? named : NIBBLE_BUILD_DIR "/libptxemu_nccl.so", RTLD_NOW | RTLD_LOCAL);
        EXPECT_NE(nullptr, so) << dlerror();
#define X(result, n, arguments) n = reinterpret_cast<decltype(&::n)>(dlsym(so, #n));
        PTXEMU_NCCL_LIST(X)
#undef X
    }
    static Nccl &get()
    {
        static Nccl n;
        return n;
    }
};
#define NCCL(name) (Nccl::get().name)
#define ASSERT_NCCL(call)                                                                                              \
    do {                                                                                                               \
        ncclResult_t r_ = (call);                                                                                      \
        ASSERT_EQ(ncclSuccess, r_) << #call << ": " << NCCL(ncclGetLastError)(nullptr);                                \
    } while (0)

/* A rank's device, stream and buffers. */
struct Rank {
    CUcontext ctx = nullptr;
    CUstream stream = nullptr;
    ncclComm_t comm = nullptr;
    int rank;
    explicit Rank(int r) : rank(r)
    {
        EXPECT_CU(CU(cuDevicePrimaryCtxRetain)(&ctx, r));
        use();
        EXPECT_CU(
            emu::Driver::get().find<decltype(&cuStreamCreate)>("cuStreamCreate")(&stream, CU_STREAM_NON_BLOCKING));
    }
    void use() { EXPECT_CU(CU(cuCtxSetCurrent)(ctx)); }
    void wait()
    {
        use();
        EXPECT_CU(emu::Driver::get().find<decltype(&cuStreamSynchronize)>("cuStreamSynchronize")(stream));
    }
};

float value(int rank, size_t i)
{
    return float(int((i * 7 + size_t(rank) * 13) % 41) - 20) / 4;
}
std::vector<float> contribution(int rank, size_t n)
{
    std::vector<float> v(n);
    for (size_t i = 0; i < n; i++)
        v[i] = value(rank, i);
    return v;
}

/* Everything that one rank does; run by all ranks at the same time. */
void all_collectives(Rank &me, int ranks)
{
    const size_t n = 37;
    int count = 0, rank = -1, device = -1;
    ASSERT_NCCL(NCCL(ncclCommCount)(me.comm, &count));
    ASSERT_NCCL(NCCL(ncclCommUserRank)(me.comm, &rank));
    ASSERT_NCCL(NCCL(ncclCommCuDevice)(me.comm, &device));
    EXPECT_EQ(ranks, count);
    EXPECT_EQ(me.rank, rank);
    me.use();
    emu::Buffer<float> own(contribution(me.rank, n * size_t(ranks))), out(n * size_t(ranks));
    auto in = [&](size_t at = 0) { return reinterpret_cast<const void *>(own.p + at * 4); };
    auto to = [&](size_t at = 0) { return reinterpret_cast<void *>(out.p + at * 4); };
    auto head = [&](size_t k) {
        me.wait();
        auto v = out.get();
        v.resize(k);
        return v;
    };
    std::vector<float> sum(n * size_t(ranks), 0), top(n, -1e9f);
    for (int r = 0; r < ranks; r++)
        for (size_t i = 0; i < sum.size(); i++) {
            sum[i] += value(r, i); /* quarters: exact in any order */
            if (i < n)
                top[i] = std::max(top[i], value(r, i));
        }
    out.zero();
    ASSERT_NCCL(NCCL(ncclAllReduce)(in(), to(), n, ncclFloat32, ncclSum, me.comm, me.stream));
    EXPECT_EQ(std::vector<float>(sum.begin(), sum.begin() + long(n)), head(n));
    ASSERT_NCCL(NCCL(ncclAllReduce)(in(), to(), n, ncclFloat32, ncclMax, me.comm, me.stream));
    EXPECT_EQ(top, head(n));
    ASSERT_NCCL(NCCL(ncclReduceScatter)(in(), to(), n, ncclFloat32, ncclSum, me.comm, me.stream));
    EXPECT_EQ(std::vector<float>(sum.begin() + long(n) * me.rank, sum.begin() + long(n) * (me.rank + 1)), head(n));
    const int root = ranks - 1;
    ASSERT_NCCL(NCCL(ncclBroadcast)(in(), to(), n, ncclFloat32, root, me.comm, me.stream));
    EXPECT_EQ(contribution(root, n), head(n));
    ASSERT_NCCL(NCCL(ncclAllGather)(in(), to(), n, ncclFloat32, me.comm, me.stream));
    std::vector<float> gathered, exchanged;
    for (int r = 0; r < ranks; r++) {
        auto c = contribution(r, n * size_t(ranks));
        gathered.insert(gathered.end(), c.begin(), c.begin() + long(n));
        exchanged.insert(exchanged.end(), c.begin() + long(n) * me.rank, c.begin() + long(n) * (me.rank + 1));
    }
    EXPECT_EQ(gathered, head(gathered.size()));
    ASSERT_NCCL(NCCL(ncclAlltoAll)(in(), to(), n, ncclFloat32, me.comm, me.stream));
    EXPECT_EQ(exchanged, head(exchanged.size()));
    me.use();
    out.zero();
    ASSERT_NCCL(NCCL(ncclReduce)(in(), to(), n, ncclFloat32, ncclSum, root, me.comm, me.stream));
    EXPECT_EQ(me.rank == root ? std::vector<float>(sum.begin(), sum.begin() + long(n)) : std::vector<float>(n, 0.0f),
              head(n));
    /* a ring: everybody sends to the right and receives from the left, at once */
    ASSERT_NCCL(NCCL(ncclGroupStart)());
    ASSERT_NCCL(NCCL(ncclSend)(in(), n, ncclFloat32, (me.rank + 1) % ranks, me.comm, me.stream));
    ASSERT_NCCL(NCCL(ncclRecv)(to(), n, ncclFloat32, (me.rank + ranks - 1) % ranks, me.comm, me.stream));
    ASSERT_NCCL(NCCL(ncclGroupEnd)());
    EXPECT_EQ(contribution((me.rank + ranks - 1) % ranks, n), head(n));
    me.use();
}

class Ranks : public testing::Test
{
  protected:
    emu::Device device{"8.0", {{"NB_EMU_DEVICES", "4"}}};
    void SetUp() override
    {
        int n = 0;
        CU(cuDeviceGetCount)(&n);
        if (n < 4)
            GTEST_SKIP() << "needs four devices";
    }
};

TEST_F(Ranks, as_threads)
{
    ncclUniqueId id;
    ASSERT_NCCL(NCCL(ncclGetUniqueId)(&id));
    std::vector<std::thread> threads;
    for (int r = 0; r < 4; r++)
        threads.emplace_back([&id, r] {
            Rank me(r);
            ASSERT_NCCL(NCCL(ncclCommInitRank)(&me.comm, 4, id, r));
            all_collectives(me, 4);
            ASSERT_NCCL(NCCL(ncclCommDestroy)(me.comm));
        });
    for (auto &t : threads)
        t.join();
    EXPECT_NE(0, access(id.internal, F_OK)) << "the communicator's folder is left behind";
}

TEST_F(Ranks, as_one_thread_that_groups)
{
    std::vector<Rank> ranks;
    for (int r = 0; r < 4; r++)
        ranks.emplace_back(r);
    ncclComm_t comms[4];
    ASSERT_NCCL(NCCL(ncclCommInitAll)(comms, 4, nullptr));
    std::vector<std::unique_ptr<emu::Buffer<int64_t>>> buffers;
    ASSERT_NCCL(NCCL(ncclGroupStart)());
    for (int r = 0; r < 4; r++) {
        ranks[size_t(r)].use();
        buffers.emplace_back(new emu::Buffer<int64_t>(std::vector<int64_t>{r, -(1ll << 60), INT64_MAX}));
        void *p = reinterpret_cast<void *>(buffers.back()->p);
        ASSERT_NCCL(NCCL(ncclAllReduce)(p, p, 3, ncclInt64, ncclMin, comms[r], ranks[size_t(r)].stream));
    }
    ASSERT_NCCL(NCCL(ncclGroupEnd)());
    for (int r = 0; r < 4; r++) {
        ranks[size_t(r)].wait();
        EXPECT_EQ((std::vector<int64_t>{0, -(1ll << 60), INT64_MAX}), buffers[size_t(r)]->get());
        ASSERT_NCCL(NCCL(ncclCommDestroy)(comms[r]));
    }
}

TEST_F(Ranks, that_call_different_collectives_are_told_so)
{
    ncclComm_t comms[2];
    const int devices[] = {0, 1};
    ASSERT_NCCL(NCCL(ncclCommInitAll)(comms, 2, devices));
    Rank a(0), b(1);
    a.use();
    emu::Buffer<float> x(std::vector<float>(8, 1.0f));
    b.use();
    emu::Buffer<float> y(std::vector<float>(8, 1.0f));
    void *px = reinterpret_cast<void *>(x.p), *py = reinterpret_cast<void *>(y.p);
    ASSERT_NCCL(NCCL(ncclGroupStart)());
    ASSERT_NCCL(NCCL(ncclAllReduce)(px, px, 8, ncclFloat32, ncclSum, comms[0], a.stream));
    ASSERT_NCCL(NCCL(ncclAllReduce)(py, py, 4, ncclFloat32, ncclSum, comms[1], b.stream));
    ASSERT_NCCL(NCCL(ncclGroupEnd)());
    a.use();
    EXPECT_NE(CUDA_SUCCESS, emu::Driver::get().find<decltype(&cuStreamSynchronize)>("cuStreamSynchronize")(a.stream));
    ncclResult_t error = ncclSuccess;
    ASSERT_NCCL(NCCL(ncclCommGetAsyncError)(comms[0], &error));
    EXPECT_EQ(ncclInvalidUsage, error);
    EXPECT_EQ(ncclInvalidUsage, NCCL(ncclAllReduce)(px, px, 8, ncclFloat32, ncclSum, comms[0], a.stream));
    NCCL(ncclCommAbort)(comms[0]);
    NCCL(ncclCommAbort)(comms[1]);
}

/* Halves are added in double and rounded once, in rank order: the same bytes on every rank. */
TEST_F(Ranks, add_halves_with_one_rounding)
{
    std::vector<Rank> ranks;
    std::vector<std::unique_ptr<emu::Buffer<uint16_t>>> buffers;
    ncclComm_t comms[3];
    const int devices[] = {0, 1, 2};
    ASSERT_NCCL(NCCL(ncclCommInitAll)(comms, 3, devices));
    const uint16_t f16[] = {0x6800, 0x3c00, 0x3c00};  /* 2048 + 1 + 1 = 2050: two roundings would give 2048 */
    const uint16_t bf16[] = {0x4380, 0x3f80, 0x3f80}; /* 256 + 1 + 1 = 258 */
    for (int r = 0; r < 3; r++)
        ranks.emplace_back(r);
    ASSERT_NCCL(NCCL(ncclGroupStart)());
    for (size_t r = 0; r < 3; r++) {
        ranks[r].use();
        buffers.emplace_back(new emu::Buffer<uint16_t>(std::vector<uint16_t>{f16[r]}));
        buffers.emplace_back(new emu::Buffer<uint16_t>(std::vector<uint16_t>{bf16[r]}));
        void *p = reinterpret_cast<void *>(buffers[2 * r]->p), *q = reinterpret_cast<void *>(buffers[2 * r + 1]->p);
        ASSERT_NCCL(NCCL(ncclAllReduce)(p, p, 1, ncclFloat16, ncclSum, comms[r], ranks[r].stream));
        ASSERT_NCCL(NCCL(ncclAllReduce)(q, q, 1, ncclBfloat16, ncclSum, comms[r], ranks[r].stream));
    }
    ASSERT_NCCL(NCCL(ncclGroupEnd)());
    for (size_t r = 0; r < 3; r++) {
        ranks[r].wait();
        EXPECT_EQ(0x6801, buffers[2 * r]->get()[0]);
        EXPECT_EQ(0x4381, buffers[2 * r + 1]->get()[0]);
        NCCL(ncclCommDestroy)(comms[r]);
    }
}

/* Run in a process of its own by as_processes. */
TEST(Process, DISABLED_rank)
{
    const int rank = atoi(getenv("EMU_RANK")), ranks = atoi(getenv("EMU_RANKS"));
    emu::Device device("8.0", {{"NB_EMU_DEVICES", getenv("EMU_RANKS")}});
    ncclUniqueId id = {};
    strncpy(id.internal, getenv("EMU_ID"), sizeof id.internal - 1);
    Rank me(rank);
    ASSERT_NCCL(NCCL(ncclCommInitRank)(&me.comm, ranks, id, rank));
    all_collectives(me, ranks);
    ASSERT_NCCL(NCCL(ncclCommDestroy)(me.comm));
}

TEST_F(Ranks, as_processes)
{
    ncclUniqueId id;
    ASSERT_NCCL(NCCL(ncclGetUniqueId)(&id));
    std::vector<pid_t> children;
    for (int r = 0; r < 3; r++) {
        pid_t pid = fork();
        if (pid == 0) {
            setenv("EMU_RANK", std::to_string(r).c_str(), 1);
            setenv("EMU_RANKS", "3", 1);
            setenv("EMU_ID", id.internal, 1);
            unsetenv("GTEST_OUTPUT");
            execl("/proc/self/exe", "emu_nccl_test", "--gtest_filter=Process.DISABLED_rank",
                  "--gtest_also_run_disabled_tests", "--gtest_brief=1", nullptr);
            _exit(127);
        }
        children.push_back(pid);
    }
    for (pid_t pid : children) {
        int status = -1;
        waitpid(pid, &status, 0);
        EXPECT_EQ(0, status);
    }
}

TEST_F(Ranks, refuse_nonsense_with_a_sentence)
{
    ncclUniqueId id = {};
    ncclComm_t comm = nullptr;
    EXPECT_EQ(ncclInvalidArgument, NCCL(ncclCommInitRank)(&comm, 1, id, 0));
    ASSERT_NCCL(NCCL(ncclGetUniqueId)(&id));
    EXPECT_EQ(ncclInvalidArgument, NCCL(ncclCommInitRank)(&comm, 1, id, 1));
    ASSERT_NCCL(NCCL(ncclCommInitRank)(&comm, 1, id, 0));
    ncclComm_t again = nullptr;
    EXPECT_EQ(ncclInvalidUsage, NCCL(ncclCommInitRank)(&again, 1, id, 0));
    EXPECT_NE(std::string::npos, std::string(NCCL(ncclGetLastError)(nullptr)).find("has joined already"));
    EXPECT_EQ(ncclInvalidArgument,
              NCCL(ncclAllReduce)(nullptr, nullptr, 1, ncclDataType_t(77), ncclSum, comm, nullptr));
    EXPECT_EQ(ncclInvalidArgument, NCCL(ncclBroadcast)(nullptr, nullptr, 1, ncclInt8, 5, comm, nullptr));
    EXPECT_EQ(ncclInvalidUsage, NCCL(ncclGroupEnd)());
    ASSERT_NCCL(NCCL(ncclCommDestroy)(comm));
}

} // namespace
