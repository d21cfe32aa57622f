// Streams and events: what is ordered, what is not done until somebody waits, and what the host can ask.
#include <atomic>
#include <thread>

#include "test/emu_driver_kernels.h"

namespace
{
using emu::Driver;
bool emulated()
{
    return Driver::get().emulated();
}

struct EmuStream : testing::Test {
    emu::Device d{"8.0"};
    emu::Module m{emu::driver_kernels()};
    CUfunction add = m.get("add"), multiply = m.get("multiply");
    uint32_t read(CUdeviceptr p, CUstream stream) /* waits for this stream only */
    {
        emu::Pinned<uint32_t> v(1);
        EXPECT_CU(FN(cuMemcpyDtoHAsync)(v.p, p, 4, stream));
        EXPECT_CU(FN(cuStreamSynchronize)(stream));
        return v[0];
    }
};

TEST_F(EmuStream, WorkOfAStreamIsDoneInItsOrder)
{
    emu::Stream s;
    emu::Buffer<uint32_t> b(1);
    ASSERT_CU(FN(cuMemsetD32Async)(b.p, 1, 1, s));
    ASSERT_CU(emu::launch_add(add, s, b.p, 1, 2));
    ASSERT_CU(emu::launch_multiply(multiply, s, b.p, 10));
    ASSERT_CU(emu::launch_add(add, s, b.p, 1, 5));
    EXPECT_EQ(35u, read(b.p, s));
}

TEST_F(EmuStream, NothingHasHappenedUntilSomebodyWaits)
{
    if (!emulated())
        GTEST_SKIP();
    emu::Stream s;
    emu::Pinned<uint32_t> v(1);
    v[0] = 1;
    ASSERT_CU(emu::launch_add(add, s, CUdeviceptr(v.p), 1, 2));
    EXPECT_EQ(1u, v[0]);
    ASSERT_CU(FN(cuStreamSynchronize)(s));
    EXPECT_EQ(3u, v[0]);
}

TEST_F(EmuStream, WaitingForOneStreamLeavesTheOthersAlone)
{
    if (!emulated())
        GTEST_SKIP();
    emu::Stream a, b;
    emu::Pinned<uint32_t> v(2);
    v[0] = v[1] = 0;
    ASSERT_CU(emu::launch_add(add, a, CUdeviceptr(v.p), 1, 1));
    ASSERT_CU(emu::launch_add(add, b, CUdeviceptr(v.p + 1), 1, 1));
    ASSERT_CU(FN(cuStreamSynchronize)(b));
    EXPECT_EQ(0u, v[0]);
    EXPECT_EQ(1u, v[1]);
    ASSERT_CU(CU(cuCtxSynchronize)());
    EXPECT_EQ(1u, v[0]);
}

TEST_F(EmuStream, PageableMemoryIsReadWhenTheCopyIsCalledAndPinnedMemoryWhenItRuns)
{
    emu::Stream s;
    emu::Buffer<uint32_t> a(1), b(1);
    uint32_t pageable = 1;
    emu::Pinned<uint32_t> pinned(1);
    pinned[0] = 1;
    ASSERT_CU(FN(cuMemcpyHtoDAsync)(a.p, &pageable, 4, s));
    pageable = 2;
    EXPECT_EQ(1u, read(a.p, s));
    if (!emulated())
        return; /* on a GPU this is a race */
    ASSERT_CU(FN(cuMemcpyHtoDAsync)(b.p, pinned.p, 4, s));
    pinned[0] = 2;
    EXPECT_EQ(2u, read(b.p, s));
}

TEST_F(EmuStream, TheDefaultStreamWaitsForBlockingStreamsAndTheyForIt)
{
    emu::Stream s(CU_STREAM_DEFAULT);
    emu::Buffer<uint32_t> b(1);
    b.put({1});
    ASSERT_CU(emu::launch_add(add, s, b.p, 1, 2));
    ASSERT_CU(emu::launch_multiply(multiply, nullptr, b.p, 10));
    ASSERT_CU(emu::launch_add(add, s, b.p, 1, 5));
    EXPECT_EQ(35u, b.get()[0]);
}

TEST_F(EmuStream, TheDefaultStreamDoesNotWaitForNonBlockingStreams)
{
    if (!emulated())
        GTEST_SKIP();
    emu::Stream s(CU_STREAM_NON_BLOCKING);
    emu::Buffer<uint32_t> b(1);
    b.put({1});
    ASSERT_CU(emu::launch_add(add, s, b.p, 1, 2));
    EXPECT_EQ(1u, b.get()[0]);
    ASSERT_CU(FN(cuStreamSynchronize)(s));
    EXPECT_EQ(3u, b.get()[0]);
}

TEST_F(EmuStream, AStreamWaitsForAnEventOfAnother)
{
    emu::Stream a, b;
    emu::Event e;
    emu::Buffer<uint32_t> v(1);
    ASSERT_CU(FN(cuMemsetD32Async)(v.p, 1, 1, a));
    ASSERT_CU(emu::launch_add(add, a, v.p, 1, 2));
    ASSERT_CU(FN(cuEventRecord)(e, a));
    ASSERT_CU(FN(cuStreamWaitEvent)(b, e, 0));
    ASSERT_CU(emu::launch_multiply(multiply, b, v.p, 10));
    EXPECT_EQ(30u, read(v.p, b));
}

TEST_F(EmuStream, AnEventStandsForItsLastRecord)
{
    emu::Stream a, b;
    emu::Event e;
    emu::Buffer<uint32_t> v(1);
    ASSERT_CU(FN(cuMemsetD32Async)(v.p, 1, 1, a));
    ASSERT_CU(FN(cuEventRecord)(e, a));
    ASSERT_CU(emu::launch_add(add, a, v.p, 1, 2));
    ASSERT_CU(FN(cuEventRecord)(e, a));
    ASSERT_CU(FN(cuEventSynchronize)(e));
    EXPECT_EQ(3u, read(v.p, b));
}

TEST_F(EmuStream, AQueryFindsWorkUnfinishedAndThenDone)
{
    if (!emulated())
        GTEST_SKIP();
    emu::Stream s;
    emu::Event e;
    emu::Buffer<uint32_t> v(1);
    v.zero();
    ASSERT_CU(CU(cuCtxSynchronize)()); /* the fill is in the default stream, which s does not wait for */
    EXPECT_CU(FN(cuStreamQuery)(s));
    EXPECT_CU(FN(cuEventQuery)(e)); /* never recorded is done */
    ASSERT_CU(emu::launch_add(add, s, v.p, 1, 2));
    ASSERT_CU(FN(cuEventRecord)(e, s));
    EXPECT_EQ(CUDA_ERROR_NOT_READY, FN(cuEventQuery)(e));
    EXPECT_CU(FN(cuEventQuery)(e));
    EXPECT_CU(FN(cuStreamQuery)(s));
}

TEST_F(EmuStream, EventsMeasureTimeThatPasses)
{
    emu::Stream s;
    emu::Event a, b, c, silent(CU_EVENT_DISABLE_TIMING);
    emu::Buffer<uint32_t> v(1 << 16);
    v.zero();
    ASSERT_CU(CU(cuCtxSynchronize)()); /* the fill is in the default stream, which s does not wait for */
    float ms = -1, more = -1;
    EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, FN(cuEventElapsedTime)(&ms, a, b)) << "never recorded";
    ASSERT_CU(FN(cuEventRecord)(a, s));
    ASSERT_CU(emu::launch_add(add, s, v.p, 1 << 16, 2));
    ASSERT_CU(FN(cuEventRecord)(b, s));
    ASSERT_CU(FN(cuEventRecord)(c, s));
    ASSERT_CU(FN(cuEventRecord)(silent, s));
    if (emulated()) {
        EXPECT_EQ(CUDA_ERROR_NOT_READY, FN(cuEventElapsedTime)(&ms, a, b));
    }
    ASSERT_CU(FN(cuEventSynchronize)(c));
    ASSERT_CU(FN(cuEventElapsedTime)(&ms, a, b));
    ASSERT_CU(FN(cuEventElapsedTime)(&more, a, c));
    EXPECT_GT(ms, 0);
    EXPECT_GE(more, ms);
    EXPECT_LT(ms, 60000);
    EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, FN(cuEventElapsedTime)(&ms, a, silent));
}

TEST_F(EmuStream, HostFunctionsRunInTheirPlace)
{
    emu::Stream s;
    emu::Pinned<uint32_t> v(1);
    v[0] = 1;
    struct Seen {
        uint32_t *p, value = 0;
        CUresult status = CUDA_ERROR_UNKNOWN;
    } seen{v.p};
    ASSERT_CU(emu::launch_add(add, s, CUdeviceptr(v.p), 1, 2));
    ASSERT_CU(FN(cuLaunchHostFunc)(
        s, [](void *p) { static_cast<Seen *>(p)->value = *static_cast<Seen *>(p)->p; }, &seen));
    ASSERT_CU(FN(cuStreamAddCallback)(
        s, [](CUstream, CUresult r, void *p) { static_cast<Seen *>(p)->status = r; }, &seen, 0));
    ASSERT_CU(emu::launch_add(add, s, CUdeviceptr(v.p), 1, 2));
    ASSERT_CU(FN(cuStreamSynchronize)(s));
    EXPECT_EQ(3u, seen.value);
    EXPECT_EQ(CUDA_SUCCESS, seen.status);
    EXPECT_EQ(5u, v[0]);
}

TEST_F(EmuStream, HostFunctionsOfTwoThreadsMayWaitForEachOther)
{
    std::atomic<int> arrived{0};
    auto rank = [&] {
        EXPECT_CU(CU(cuCtxSetCurrent)(d.ctx));
        emu::Stream s;
        EXPECT_CU(FN(cuLaunchHostFunc)(
            s,
            [](void *p) {
                auto &n = *static_cast<std::atomic<int> *>(p);
                n++;
                while (n < 2)
                    std::this_thread::yield();
            },
            &arrived));
        EXPECT_CU(FN(cuStreamSynchronize)(s));
    };
    std::thread other(rank);
    rank();
    other.join();
    EXPECT_EQ(2, arrived);
}

TEST_F(EmuStream, WorkOfADestroyedStreamIsStillDone)
{
    emu::Pinned<uint32_t> v(1);
    v[0] = 1;
    {
        emu::Stream s;
        ASSERT_CU(emu::launch_add(add, s, CUdeviceptr(v.p), 1, 2));
    }
    ASSERT_CU(CU(cuCtxSynchronize)());
    EXPECT_EQ(3u, v[0]);
}

TEST_F(EmuStream, AFreeWaitsForTheDevice)
{
    emu::Stream s;
    emu::Pinned<uint32_t> out(1);
    CUdeviceptr p = 0;
    ASSERT_CU(CU(cuMemAlloc)(&p, 4));
    ASSERT_CU(FN(cuMemsetD32Async)(p, 8, 1, s));
    ASSERT_CU(FN(cuMemcpyDtoHAsync)(out.p, p, 4, s));
    ASSERT_CU(CU(cuMemFree)(p));
    EXPECT_EQ(8u, out[0]);
}

TEST_F(EmuStream, PoolMemoryGoesWhenItsTurnComes)
{
    emu::Stream s;
    CUdeviceptr p = 0;
    CUmemoryPool pool = nullptr;
    cuuint64_t used = 0;
    ASSERT_CU(FN(cuMemAllocAsync)(&p, 1024, s));
    ASSERT_CU(FN(cuMemsetD32Async)(p, 8, 256, s));
    ASSERT_CU(emu::launch_add(add, s, p, 256, 1));
    EXPECT_EQ(9u, read(p, s));
    ASSERT_CU(FN(cuDeviceGetDefaultMemPool)(&pool, d.dev));
    ASSERT_CU(FN(cuMemPoolGetAttribute)(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used));
    EXPECT_GE(used, 1024u);
    ASSERT_CU(FN(cuMemFreeAsync)(p, s));
    ASSERT_CU(FN(cuStreamSynchronize)(s));
    ASSERT_CU(FN(cuMemPoolGetAttribute)(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used));
    EXPECT_EQ(0u, used);
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, FN(cuMemFreeAsync)(p, s));
}

TEST_F(EmuStream, PrioritiesAreClampedToTheRange)
{
    int least = 1, greatest = 1, p = 1;
    ASSERT_CU(FN(cuCtxGetStreamPriorityRange)(&least, &greatest));
    EXPECT_LE(greatest, least);
    CUstream s = nullptr;
    ASSERT_CU(FN(cuStreamCreateWithPriority)(&s, CU_STREAM_NON_BLOCKING, greatest - 100));
    ASSERT_CU(FN(cuStreamGetPriority)(s, &p));
    EXPECT_EQ(greatest, p);
    unsigned flags = 0;
    ASSERT_CU(FN(cuStreamGetFlags)(s, &flags));
    EXPECT_EQ(unsigned(CU_STREAM_NON_BLOCKING), flags);
    ASSERT_CU(FN(cuStreamDestroy)(s));
}

TEST_F(EmuStream, NeverWrittenBytesStaySoWhenTheyAreCopied)
{
    if (!emulated())
        GTEST_SKIP();
    emu::Buffer<uint32_t> raw(8), copy(8);
    ASSERT_CU(CU(cuMemcpyDtoD)(copy.p, raw.p, 32));
    testing::internal::CaptureStderr();
    EXPECT_EQ(CUDA_ERROR_LAUNCH_FAILED, emu::launch(add, emu::Dim(1), emu::Dim(32), 0, copy.p, 8u, 1u));
    EXPECT_NE(std::string::npos, testing::internal::GetCapturedStderr().find("never-written"));
}

TEST_F(EmuStream, WaitingForTheDefaultStreamWaitsForBlockingStreams)
{
    emu::Stream s(CU_STREAM_DEFAULT);
    emu::Pinned<uint32_t> v(1);
    v[0] = 1;
    ASSERT_CU(emu::launch_add(add, s, CUdeviceptr(v.p), 1, 2));
    ASSERT_CU(FN(cuStreamSynchronize)(nullptr));
    EXPECT_EQ(3u, v[0]);
}

TEST_F(EmuStream, AValueIsWrittenInStreamOrder)
{
    emu::Stream s;
    emu::Buffer<uint32_t> b(std::vector<uint32_t>{1, 1});
    ASSERT_CU(FN(cuStreamWriteValue32)(s, b.p, 20, 0));
    ASSERT_CU(emu::launch_add(add, s, b.p, 1, 2));
    ASSERT_CU(FN(cuStreamWriteValue32)(s, b.p + 4, 30, 0));
    ASSERT_CU(FN(cuStreamSynchronize)(s));
    EXPECT_EQ((std::vector<uint32_t>{22, 30}), b.get());
}

TEST_F(EmuStream, ThreadsMayWorkAtTheSameTime)
{
    std::vector<std::thread> threads;
    std::vector<uint32_t> results(4);
    for (uint32_t t = 0; t < 4; t++)
        threads.emplace_back([&, t] {
            EXPECT_CU(CU(cuCtxSetCurrent)(d.ctx));
            emu::Stream s;
            emu::Buffer<uint32_t> b(std::vector<uint32_t>{t});
            for (int i = 0; i < 50; i++) {
                EXPECT_CU(emu::launch_add(add, s, b.p, 1, 1));
                if (i % 7 == 0) {
                    EXPECT_CU(FN(cuStreamSynchronize)(s));
                }
            }
            results[t] = read(b.p, s);
        });
    for (std::thread &t : threads)
        t.join();
    EXPECT_EQ((std::vector<uint32_t>{50, 51, 52, 53}), results);
}

TEST_F(EmuStream, APerThreadDefaultStreamIsAStreamOfItsOwn)
{
    if (!emulated())
        GTEST_SKIP();
    emu::Pinned<uint32_t> v(1);
    v[0] = 1;
    ASSERT_CU(emu::launch_add(add, CU_STREAM_PER_THREAD, CUdeviceptr(v.p), 1, 2));
    std::thread([&] {
        EXPECT_CU(CU(cuCtxSetCurrent)(d.ctx));
        EXPECT_CU(FN(cuStreamSynchronize)(CU_STREAM_PER_THREAD));
    }).join();
    EXPECT_EQ(1u, v[0]);
    ASSERT_CU(FN(cuStreamSynchronize)(CU_STREAM_PER_THREAD));
    EXPECT_EQ(3u, v[0]);
}
} // namespace
