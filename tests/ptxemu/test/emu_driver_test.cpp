// The driver API: devices, contexts, memory, modules, functions, launches, and what they refuse.
#include <unistd.h>

#include <set>
#include <thread>

#include "test/emu_driver_kernels.h"

namespace
{
using emu::Driver;
bool emulated()
{
    return Driver::get().emulated();
}

int attribute(CUdevice_attribute a, CUdevice dev = 0)
{
    int v = -1;
    EXPECT_CU(CU(cuDeviceGetAttribute)(&v, a, dev));
    return v;
}

TEST(EmuDevice, EveryCapabilityHasTheLimitsOfItsHardware)
{
    if (!emulated())
        GTEST_SKIP();
    struct Row {
        const char *cc;
        int major, minor, sms, optin, per_sm, threads, blocks, cluster;
    };
    for (const Row &r :
         {Row{"7.5", 7, 5, 40, 65536, 65536, 1024, 16, 0}, Row{"8.0", 8, 0, 108, 166912, 167936, 2048, 32, 0},
          Row{"8.6", 8, 6, 82, 101376, 102400, 1536, 16, 0}, Row{"8.9", 8, 9, 128, 101376, 102400, 1536, 24, 0},
          Row{"9.0", 9, 0, 132, 232448, 233472, 2048, 32, 1}}) {
        emu::Device d(r.cc);
        EXPECT_EQ(r.major, attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR));
        EXPECT_EQ(r.minor, attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR));
        EXPECT_EQ(r.sms, attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT));
        EXPECT_EQ(r.optin, attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN));
        EXPECT_EQ(r.per_sm, attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR));
        EXPECT_EQ(r.threads, attribute(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR));
        EXPECT_EQ(r.blocks, attribute(CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR));
        EXPECT_EQ(r.cluster, attribute(CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH));
    }
}

TEST(EmuDevice, AttributesThatNoDeviceDiffersIn)
{
    emu::Device d;
    EXPECT_EQ(32, attribute(CU_DEVICE_ATTRIBUTE_WARP_SIZE));
    EXPECT_EQ(1024, attribute(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK));
    EXPECT_EQ(49152, attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK));
    EXPECT_EQ(65536, attribute(CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR));
    EXPECT_EQ(1, attribute(CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING));
    EXPECT_EQ(1, attribute(CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH));
    EXPECT_EQ(1, attribute(CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED));
    int v;
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuDeviceGetAttribute)(&v, CUdevice_attribute(99999), 0));
    EXPECT_EQ(CUDA_ERROR_INVALID_DEVICE, CU(cuDeviceGetAttribute)(&v, CU_DEVICE_ATTRIBUTE_WARP_SIZE, 77));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuDeviceGetAttribute)(nullptr, CU_DEVICE_ATTRIBUTE_WARP_SIZE, 0));
}

TEST(EmuDevice, TheEnvironmentSizesTheMachine)
{
    if (!emulated())
        GTEST_SKIP();
    emu::Device d("8.6", {{"NB_EMU_DEVICES", "3"}, {"NB_EMU_SMS", "5"}, {"NB_EMU_MEMORY", "64M"}});
    int n = 0;
    ASSERT_CU(CU(cuDeviceGetCount)(&n));
    EXPECT_EQ(3, n);
    EXPECT_EQ(5, attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 2));
    size_t bytes = 0, free = 0, total = 0;
    ASSERT_CU(CU(cuDeviceTotalMem)(&bytes, 1));
    EXPECT_EQ(size_t(64) << 20, bytes);
    ASSERT_CU(CU(cuMemGetInfo)(&free, &total));
    EXPECT_EQ(size_t(64) << 20, total);
    EXPECT_LE(free, total);
    std::set<std::string> ids;
    for (int i = 0; i < n; i++) {
        CUuuid u;
        char bus[32];
        CUdevice found = -1;
        ASSERT_CU(FN(cuDeviceGetUuid)(&u, i));
        ASSERT_CU(FN(cuDeviceGetPCIBusId)(bus, sizeof bus, i));
        ids.insert(std::string(u.bytes, 16) + bus);
        ASSERT_CU(FN(cuDeviceGetByPCIBusId)(&found, bus));
        EXPECT_EQ(i, found);
    }
    EXPECT_EQ(3u, ids.size());
}

TEST(EmuDevice, AValueThatCannotBeReadIsSaidByCuInit)
{
    if (!emulated())
        GTEST_SKIP();
    for (auto bad : {std::pair<const char *, const char *>{"NB_EMU_DEVICES", "0"},
                     {"NB_EMU_DEVICES", "two"},
                     {"NB_EMU_CC", "8.1"},
                     {"NB_EMU_MEMORY", "12X"},
                     {"NB_EMU_MEMORY", ""},
                     {"NB_EMU_CHECK", "yes"},
                     {"NB_EMU_FAIL", "cuMemAlloc"},
                     {"NB_EMU_FAIL", "cuMemAlloc:0"},
                     {"NB_EMU_FAIL", "cuMemAlloc:1:12345"},
                     {"NB_EMU_FAIL", "cuMemAlloc_v2:1"},
                     {"NB_EMU_THREADS", "-1"}}) {
        setenv(bad.first, bad.second, 1);
        Driver::get().reset();
        testing::internal::CaptureStderr();
        CUresult r = CU(cuInit)(0);
        std::string said = testing::internal::GetCapturedStderr();
        unsetenv(bad.first);
        Driver::get().reset();
        if (!*bad.second) { /* set, but to nothing: as if it were not set */
            EXPECT_EQ(CUDA_SUCCESS, r) << bad.first;
            continue;
        }
        EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, r) << bad.first << "=" << bad.second;
        EXPECT_NE(std::string::npos, said.find(bad.first)) << said;
    }
}

TEST(EmuDevice, NothingWorksBeforeCuInit)
{
    if (!emulated())
        GTEST_SKIP();
    Driver::get().reset();
    int n;
    CUdeviceptr p;
    EXPECT_EQ(CUDA_ERROR_NOT_INITIALIZED, CU(cuDeviceGetCount)(&n));
    EXPECT_EQ(CUDA_ERROR_NOT_INITIALIZED, CU(cuMemAlloc)(&p, 4));
    EXPECT_EQ(CUDA_SUCCESS, CU(cuDriverGetVersion)(&n));
    EXPECT_EQ(13000, n);
}

TEST(EmuError, EveryResultHasANameAndASentence)
{
    const char *s = nullptr;
    ASSERT_CU(CU(cuGetErrorName)(CUDA_ERROR_ILLEGAL_ADDRESS, &s));
    EXPECT_STREQ("CUDA_ERROR_ILLEGAL_ADDRESS", s);
    ASSERT_CU(CU(cuGetErrorString)(CUDA_ERROR_OUT_OF_MEMORY, &s));
    EXPECT_STREQ("out of memory", s);
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuGetErrorName)(CUresult(12345), &s));
    EXPECT_EQ(nullptr, s);
}

TEST(EmuContext, TheStackOfAThreadIsItsOwn)
{
    emu::Device d;
    CUcontext a = nullptr, now = nullptr;
    ASSERT_CU(FN(cuCtxCreate)(&a, nullptr, 0, d.dev));
    ASSERT_CU(CU(cuCtxGetCurrent)(&now));
    EXPECT_EQ(a, now);
    std::thread([&] {
        CUcontext other = a;
        CUdeviceptr p;
        EXPECT_CU(CU(cuCtxGetCurrent)(&other));
        EXPECT_EQ(nullptr, other);
        EXPECT_EQ(CUDA_ERROR_INVALID_CONTEXT, CU(cuMemAlloc)(&p, 4));
    }).join();
    CUcontext popped = nullptr;
    ASSERT_CU(FN(cuCtxPopCurrent)(&popped));
    EXPECT_EQ(a, popped);
    ASSERT_CU(CU(cuCtxGetCurrent)(&now));
    EXPECT_EQ(d.ctx, now);
    ASSERT_CU(FN(cuCtxPushCurrent)(a));
    ASSERT_CU(FN(cuCtxDestroy)(a));
    ASSERT_CU(CU(cuCtxGetCurrent)(&now));
    EXPECT_EQ(d.ctx, now);
}

TEST(EmuContext, ADestroyedContextTakesItsMemoryAlong)
{
    emu::Device d;
    size_t before = 0, after = 0, total = 0;
    ASSERT_CU(CU(cuMemGetInfo)(&before, &total));
    CUcontext a = nullptr;
    CUdeviceptr p = 0;
    ASSERT_CU(FN(cuCtxCreate)(&a, nullptr, 0, d.dev));
    ASSERT_CU(CU(cuMemAlloc)(&p, 1 << 20));
    ASSERT_CU(FN(cuCtxDestroy)(a));
    ASSERT_CU(CU(cuMemGetInfo)(&after, &total));
    if (emulated()) {
        EXPECT_EQ(before, after);
    }
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuMemFree)(p));
}

TEST(EmuContext, ThePrimaryContextLivesAsLongAsSomebodyHoldsIt)
{
    emu::Device d;
    unsigned flags = 0;
    int active = 0;
    CUcontext again = nullptr;
    ASSERT_CU(CU(cuDevicePrimaryCtxRetain)(&again, d.dev));
    EXPECT_EQ(d.ctx, again);
    ASSERT_CU(CU(cuDevicePrimaryCtxRelease)(d.dev));
    ASSERT_CU(FN(cuDevicePrimaryCtxGetState)(d.dev, &flags, &active));
    EXPECT_EQ(1, active);
    ASSERT_CU(CU(cuDevicePrimaryCtxRelease)(d.dev));
    ASSERT_CU(FN(cuDevicePrimaryCtxGetState)(d.dev, &flags, &active));
    EXPECT_EQ(0, active);
    EXPECT_NE(CUDA_SUCCESS, CU(cuCtxSynchronize)());
    EXPECT_EQ(CUDA_ERROR_INVALID_CONTEXT, CU(cuDevicePrimaryCtxRelease)(d.dev));
    ASSERT_CU(CU(cuDevicePrimaryCtxRetain)(&again, d.dev)); /* for the fixture's release */
}

TEST(EmuMemory, CopiesArriveInEveryDirection)
{
    emu::Device d;
    std::vector<uint32_t> in = {1, 2, 3, 4, 5, 6, 7, 8}, out(8);
    emu::Buffer<uint32_t> a(in), b(8);
    ASSERT_CU(CU(cuMemcpyDtoD)(b.p, a.p, 32));
    EXPECT_EQ(in, b.get());
    ASSERT_CU(FN(cuMemcpy)(reinterpret_cast<CUdeviceptr>(out.data()), b.p, 32));
    EXPECT_EQ(in, out);
    ASSERT_CU(FN(cuMemsetD32)(b.p + 4, 0xabcdef01, 2));
    ASSERT_CU(FN(cuMemsetD16)(b.p + 12, 0x1234, 2));
    ASSERT_CU(CU(cuMemsetD8)(b.p + 16, 0x77, 4));
    EXPECT_EQ((std::vector<uint32_t>{1, 0xabcdef01, 0xabcdef01, 0x12341234, 0x77777777, 6, 7, 8}), b.get());
}

TEST(EmuMemory, ARectangleIsCopiedRowByRow)
{
    emu::Device d;
    CUdeviceptr p = 0;
    size_t pitch = 0;
    ASSERT_CU(FN(cuMemAllocPitch)(&p, &pitch, 12, 3, 4));
    EXPECT_GE(pitch, 12u);
    EXPECT_EQ(0u, pitch % 256);
    ASSERT_CU(FN(cuMemsetD2D8)(p, pitch, 0xff, 12, 3));
    uint8_t in[3 * 5], out[3 * 12];
    for (int i = 0; i < 15; i++)
        in[i] = uint8_t(i);
    CUDA_MEMCPY2D m = {};
    m.srcMemoryType = CU_MEMORYTYPE_HOST;
    m.srcHost = in;
    m.srcPitch = 5;
    m.dstMemoryType = CU_MEMORYTYPE_DEVICE;
    m.dstDevice = p;
    m.dstPitch = pitch;
    m.dstXInBytes = 2;
    m.WidthInBytes = 5;
    m.Height = 3;
    ASSERT_CU(FN(cuMemcpy2D)(&m));
    CUDA_MEMCPY2D back = {};
    back.srcMemoryType = CU_MEMORYTYPE_DEVICE;
    back.srcDevice = p;
    back.srcPitch = pitch;
    back.dstMemoryType = CU_MEMORYTYPE_HOST;
    back.dstHost = out;
    back.dstPitch = 12;
    back.WidthInBytes = 12;
    back.Height = 3;
    ASSERT_CU(FN(cuMemcpy2D)(&back));
    for (int y = 0; y < 3; y++)
        for (int x = 0; x < 12; x++)
            EXPECT_EQ(x >= 2 && x < 7 ? y * 5 + x - 2 : 0xff, out[y * 12 + x]) << y << " " << x;
    ASSERT_CU(CU(cuMemFree)(p));
}

TEST(EmuMemory, WhatLiesOutsideOfAnAllocationIsRefused)
{
    emu::Device d;
    emu::Buffer<uint32_t> b(4);
    uint32_t host[8] = {};
    if (emulated()) { /* a GPU's allocations are larger than what was asked for */
        EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuMemcpyHtoD)(b.p, host, 20));
        EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuMemcpyDtoH)(host, b.p + 4, 16));
        EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuMemsetD8)(b.p, 0, 17));
    }
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, FN(cuMemsetD32)(b.p + 1, 0, 1));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuMemFree)(b.p + 4));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuMemAlloc)(nullptr, 4));
    CUdeviceptr p = 0;
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuMemAlloc)(&p, 0));
}

TEST(EmuMemory, FreedTwiceIsAnError)
{
    emu::Device d;
    CUdeviceptr p = 0;
    ASSERT_CU(CU(cuMemAlloc)(&p, 64));
    ASSERT_CU(CU(cuMemFree)(p));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuMemFree)(p));
}

TEST(EmuMemory, PointersKnowWhatTheyPointAt)
{
    emu::Device d;
    emu::Buffer<uint32_t> b(64);
    emu::Pinned<uint32_t> host(16);
    unsigned type = 0;
    CUcontext owner = nullptr;
    CUdeviceptr base = 0;
    size_t bytes = 0;
    ASSERT_CU(FN(cuPointerGetAttribute)(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, b.p + 100));
    EXPECT_EQ(unsigned(CU_MEMORYTYPE_DEVICE), type);
    ASSERT_CU(FN(cuPointerGetAttribute)(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CUdeviceptr(host.p)));
    EXPECT_EQ(unsigned(CU_MEMORYTYPE_HOST), type);
    ASSERT_CU(FN(cuPointerGetAttribute)(&owner, CU_POINTER_ATTRIBUTE_CONTEXT, b.p));
    EXPECT_EQ(d.ctx, owner);
    ASSERT_CU(FN(cuMemGetAddressRange)(&base, &bytes, b.p + 100));
    EXPECT_EQ(b.p, base);
    EXPECT_EQ(256u, bytes);
    uint32_t stack = 0;
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE,
              FN(cuPointerGetAttribute)(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CUdeviceptr(&stack)));
    CUpointer_attribute which[] = {CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_POINTER};
    CUdeviceptr device = 1;
    void *values[] = {&type, &device};
    type = 77;
    ASSERT_CU(FN(cuPointerGetAttributes)(2, which, values, CUdeviceptr(&stack)));
    EXPECT_EQ(0u, type);
    EXPECT_EQ(0u, device);
}

TEST(EmuMemory, HostMemoryCanBeRegisteredOnce)
{
    emu::Device d;
    std::vector<uint32_t> v(4096, 3);
    ASSERT_CU(FN(cuMemHostRegister)(v.data(), v.size() * 4, CU_MEMHOSTREGISTER_DEVICEMAP));
    EXPECT_EQ(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, FN(cuMemHostRegister)(v.data(), v.size() * 4, 0));
    CUdeviceptr p = 0;
    ASSERT_CU(FN(cuMemHostGetDevicePointer)(&p, v.data(), 0));
    emu::Module m(emu::driver_kernels());
    ASSERT_CU(emu::launch(m.get("add"), emu::Dim(1), emu::Dim(32), 0, p, uint32_t(32), uint32_t(4)));
    EXPECT_EQ(7u, v[31]);
    EXPECT_EQ(3u, v[32]);
    ASSERT_CU(FN(cuMemHostUnregister)(v.data()));
    EXPECT_EQ(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, FN(cuMemHostUnregister)(v.data()));
}

TEST(EmuMemory, ManagedMemoryIsSeenByBothSides)
{
    emu::Device d;
    CUdeviceptr p = 0;
    ASSERT_CU(FN(cuMemAllocManaged)(&p, 128, CU_MEM_ATTACH_GLOBAL));
    uint32_t *v = reinterpret_cast<uint32_t *>(p);
    for (uint32_t i = 0; i < 32; i++)
        v[i] = i;
    emu::Module m(emu::driver_kernels());
    ASSERT_CU(emu::launch(m.get("add"), emu::Dim(1), emu::Dim(32), 0, p, uint32_t(32), uint32_t(100)));
    EXPECT_EQ(131u, v[31]);
    ASSERT_CU(CU(cuMemFree)(p));
}

TEST(EmuMemory, ADeviceReachesAPeersMemoryOnlyWhenAllowed)
{
    if (!emulated())
        GTEST_SKIP();
    emu::Device d("8.0", {{"NB_EMU_DEVICES", "2"}});
    int can = 0;
    ASSERT_CU(FN(cuDeviceCanAccessPeer)(&can, 0, 1));
    EXPECT_EQ(1, can);
    CUcontext other = nullptr;
    ASSERT_CU(CU(cuDevicePrimaryCtxRetain)(&other, 1));
    ASSERT_CU(CU(cuCtxSetCurrent)(other));
    CUdeviceptr p = 0;
    ASSERT_CU(CU(cuMemAlloc)(&p, 128));
    ASSERT_CU(CU(cuMemsetD8)(p, 0, 128));
    ASSERT_CU(CU(cuCtxSynchronize)());
    ASSERT_CU(CU(cuCtxSetCurrent)(d.ctx));
    ASSERT_CU(FN(cuCtxEnablePeerAccess)(other, 0));
    EXPECT_EQ(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, FN(cuCtxEnablePeerAccess)(other, 0));
    emu::Module m(emu::driver_kernels());
    EXPECT_CU(emu::launch(m.get("add"), emu::Dim(1), emu::Dim(32), 0, p, uint32_t(32), uint32_t(5)));
    uint32_t v[32] = {};
    ASSERT_CU(CU(cuMemcpyDtoH)(v, p, 128));
    EXPECT_EQ(5u, v[31]);
    ASSERT_CU(FN(cuCtxDisablePeerAccess)(other));
    EXPECT_EQ(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, FN(cuCtxDisablePeerAccess)(other));
    testing::internal::CaptureStderr();
    EXPECT_EQ(CUDA_ERROR_ILLEGAL_ADDRESS,
              emu::launch(m.get("add"), emu::Dim(1), emu::Dim(32), 0, p, uint32_t(32), uint32_t(5)));
    testing::internal::GetCapturedStderr();
    CU(cuDevicePrimaryCtxRelease)(1);
}

TEST(EmuModule, VariablesKeepTheirValuesBetweenLaunches)
{
    emu::Device d;
    emu::Module m(emu::driver_kernels());
    CUdeviceptr p = 0;
    size_t bytes = 0;
    uint32_t v = 0;
    ASSERT_CU(CU(cuModuleGetGlobal)(&p, &bytes, m.m, "counter"));
    EXPECT_EQ(4u, bytes);
    ASSERT_CU(emu::launch(m.get("count"), emu::Dim(1), emu::Dim(1), 0));
    ASSERT_CU(emu::launch(m.get("count"), emu::Dim(1), emu::Dim(1), 0));
    ASSERT_CU(CU(cuMemcpyDtoH)(&v, p, 4));
    EXPECT_EQ(9u, v);
    uint8_t table[16];
    ASSERT_CU(CU(cuModuleGetGlobal)(&p, &bytes, m.m, "table"));
    ASSERT_CU(CU(cuMemcpyDtoH)(table, p, 16));
    EXPECT_EQ(3, table[2]);
    EXPECT_EQ(0, table[15]);
    EXPECT_EQ(CUDA_ERROR_NOT_FOUND, CU(cuModuleGetGlobal)(&p, &bytes, m.m, "nothing"));
    CUfunction f = nullptr;
    EXPECT_EQ(CUDA_ERROR_NOT_FOUND, CU(cuModuleGetFunction)(&f, m.m, "counter"));
}

TEST(EmuModule, WhatCannotBeLoadedIsExplainedInTheLog)
{
    emu::Device d("8.0");
    emu::Module broken(".version 8.0\n.target sm_75\n.address_size 64\n.visible .entry k()\n{\n.reg .b32 "
                       "%r1;\nfrobnicate.u32 %r1;\n}\n",
                       false);
    EXPECT_EQ(CUDA_ERROR_INVALID_PTX, broken.result);
    EXPECT_FALSE(broken.log.empty());
    emu::Module future(".version 99.0\n.target sm_75\n.address_size 64\n.visible .entry k()\n{\nret;\n}\n", false);
    EXPECT_EQ(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, future.result);
    emu::Module newer(".version 8.8\n.target sm_120\n.address_size 64\n.visible .entry k()\n{\nret;\n}\n", false);
    EXPECT_EQ(CUDA_ERROR_INVALID_PTX, newer.result);
    if (emulated()) {
        EXPECT_NE(std::string::npos, broken.log.find("frobnicate")) << broken.log;
        EXPECT_NE(std::string::npos, newer.log.find("sm_120")) << newer.log;
        emu::Module specific(".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k()\n{\nret;\n}\n",
                             false);
        EXPECT_EQ(CUDA_ERROR_INVALID_PTX, specific.result);
    }
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuModuleLoadData)(&broken.m, nullptr));
    EXPECT_EQ(CUDA_ERROR_FILE_NOT_FOUND, FN(cuModuleLoad)(&broken.m, "/nonexistent.ptx"));
}

TEST(EmuModule, AKernelOfALibraryRunsInTheCurrentContext)
{
    emu::Device d;
    CUlibrary library = nullptr;
    CUkernel kernel = nullptr;
    CUfunction f = nullptr;
    ASSERT_CU(FN(cuLibraryLoadData)(&library, emu::driver_kernels(), nullptr, nullptr, 0, nullptr, nullptr, 0));
    ASSERT_CU(FN(cuLibraryGetKernel)(&kernel, library, "add"));
    EXPECT_EQ(CUDA_ERROR_NOT_FOUND, FN(cuLibraryGetKernel)(&kernel, library, "sub"));
    ASSERT_CU(FN(cuKernelGetFunction)(&f, kernel));
    emu::Buffer<uint32_t> b(std::vector<uint32_t>(32, 1));
    ASSERT_CU(emu::launch_add(f, nullptr, b.p, 32, 1));
    ASSERT_CU(emu::launch_add(reinterpret_cast<CUfunction>(kernel), nullptr, b.p, 32, 1));
    EXPECT_EQ(std::vector<uint32_t>(32, 3), b.get());
    ASSERT_CU(FN(cuLibraryUnload)(library));
}

TEST(EmuFunction, SharedMemoryBeyondTheDefaultHasToBeAskedFor)
{
    emu::Device d("8.0");
    emu::Module m(emu::driver_kernels());
    CUfunction f = m.get("shared_user");
    int v = 0, optin = attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
    ASSERT_CU(CU(cuFuncGetAttribute)(&v, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, f));
    EXPECT_EQ(1024, v);
    ASSERT_CU(CU(cuFuncGetAttribute)(&v, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, f));
    EXPECT_EQ(49152 - 1024, v);
    EXPECT_CU(emu::launch(f, emu::Dim(1), emu::Dim(32), 49152 - 1024));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, emu::launch(f, emu::Dim(1), emu::Dim(32), 49152));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE,
              CU(cuFuncSetAttribute)(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, optin));
    ASSERT_CU(CU(cuFuncSetAttribute)(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, optin - 1024));
    EXPECT_CU(emu::launch(f, emu::Dim(1), emu::Dim(32), unsigned(optin - 1024)));
}

TEST(EmuFunction, OccupancyFollowsThreadsAndSharedMemory)
{
    emu::Device d("8.0");
    emu::Module m(emu::driver_kernels());
    CUfunction f = m.get("shared_user");
    int blocks = 0, grid = 0, block = 0;
    int threads = attribute(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR);
    ASSERT_CU(CU(cuOccupancyMaxActiveBlocksPerMultiprocessor)(&blocks, f, 1024, 0));
    EXPECT_EQ(threads / 1024, blocks);
    if (emulated()) {
        /* 164 KiB a multiprocessor: three blocks of 48 KiB with the reserved KiB each */
        ASSERT_CU(CU(cuOccupancyMaxActiveBlocksPerMultiprocessor)(&blocks, f, 32, 48 * 1024));
        EXPECT_EQ(3, blocks);
    }
    ASSERT_CU(FN(cuOccupancyMaxPotentialBlockSize)(&grid, &block, f, nullptr, 0, 0));
    EXPECT_EQ(0, threads % block);
    EXPECT_EQ(threads / block * attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT), grid);
}

TEST(EmuLaunch, WhatTheDeviceCannotTakeIsRefused)
{
    emu::Device d("8.0");
    emu::Module m(emu::driver_kernels());
    CUfunction count = m.get("count"), small = m.get("small"), exact = m.get("exact");
    auto go = [](CUfunction f, emu::Dim grid, emu::Dim block) { return emu::launch(f, grid, block, 0); };
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, go(count, emu::Dim(0), emu::Dim(1)));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, go(count, emu::Dim(1), emu::Dim(0)));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, go(count, emu::Dim(1), emu::Dim(1025)));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, go(count, emu::Dim(1), emu::Dim(1, 1, 65)));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, go(count, emu::Dim(1), emu::Dim(64, 32)));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, go(count, emu::Dim(1, 65536), emu::Dim(1)));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, go(small, emu::Dim(1), emu::Dim(65)));
    EXPECT_CU(go(small, emu::Dim(1), emu::Dim(64)));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, go(exact, emu::Dim(1), emu::Dim(64)));
    EXPECT_CU(go(exact, emu::Dim(1), emu::Dim(32, 2)));
    void *missing[] = {nullptr, nullptr, nullptr};
    if (emulated()) { /* a real driver reads the null pointer */
        EXPECT_EQ(CUDA_ERROR_INVALID_VALUE,
                  CU(cuLaunchKernel)(m.get("add"), 1, 1, 1, 1, 1, 1, 0, nullptr, missing, nullptr));
        EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE,
                  CU(cuLaunchKernel)(CUfunction(m.m), 1, 1, 1, 1, 1, 1, 0, nullptr, missing, nullptr));
    }
}

TEST(EmuLaunch, ParametersMayComeInABuffer)
{
    emu::Device d;
    emu::Module m(emu::driver_kernels());
    emu::Buffer<uint32_t> b(std::vector<uint32_t>(8, 1));
    struct {
        CUdeviceptr p;
        uint32_t n, v;
    } args = {b.p, 8, 9};
    size_t bytes = sizeof args;
    void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, &args, CU_LAUNCH_PARAM_BUFFER_SIZE, &bytes, CU_LAUNCH_PARAM_END};
    ASSERT_CU(CU(cuLaunchKernel)(m.get("add"), 1, 1, 1, 32, 1, 1, 0, nullptr, nullptr, extra));
    EXPECT_EQ(std::vector<uint32_t>(8, 10), b.get());
}

TEST(EmuLaunch, ACooperativeGridHasToFit)
{
    emu::Device d("8.0", {{"NB_EMU_SMS", "2"}});
    emu::Module m(emu::driver_kernels());
    CUfunction f = m.get("count");
    int blocks = 0;
    ASSERT_CU(CU(cuOccupancyMaxActiveBlocksPerMultiprocessor)(&blocks, f, 1024, 0));
    unsigned fit = unsigned(blocks * attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT));
    if (emulated()) {
        EXPECT_EQ(4u, fit);
    }
    f = m.get("shared_user");
    EXPECT_CU(CU(cuLaunchCooperativeKernel)(f, fit, 1, 1, 1024, 1, 1, 16, nullptr, nullptr));
    EXPECT_CU(CU(cuCtxSynchronize)());
    EXPECT_EQ(CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE,
              CU(cuLaunchCooperativeKernel)(f, fit + 1, 1, 1, 1024, 1, 1, 16, nullptr, nullptr));
}

TEST(EmuLaunch, ClustersNeedTheirHardwareAndDivideTheGrid)
{
    emu::Device d("9.0");
    if (d.sm < 90)
        GTEST_SKIP();
    emu::Module m(emu::driver_kernels());
    CUlaunchAttribute a = {};
    a.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    CUlaunchConfig c = {};
    c.gridDimX = 8;
    c.gridDimY = c.gridDimZ = c.blockDimY = c.blockDimZ = 1;
    c.blockDimX = 32;
    c.attrs = &a;
    c.numAttrs = 1;
    auto go = [&](unsigned x) {
        a.value.clusterDim.x = x;
        a.value.clusterDim.y = a.value.clusterDim.z = 1;
        CUresult r = CU(cuLaunchKernelEx)(&c, m.get("small"), nullptr, nullptr);
        return r == CUDA_SUCCESS ? CU(cuCtxSynchronize)() : r;
    };
    EXPECT_CU(go(4));
    EXPECT_NE(CUDA_SUCCESS, go(3));
    c.gridDimX = 16;
    EXPECT_NE(CUDA_SUCCESS, go(16)) << "16 blocks are not portable";
    ASSERT_CU(CU(cuFuncSetAttribute)(m.get("small"), CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1));
    EXPECT_CU(go(16));
    if (emulated()) {
        emu::Device older("8.0");
        emu::Module again(emu::driver_kernels());
        a.value.clusterDim.x = 2;
        EXPECT_NE(CUDA_SUCCESS, CU(cuLaunchKernelEx)(&c, again.get("small"), nullptr, nullptr));
    }
}

TEST(EmuEntry, FunctionsAreFoundByTheirPlainNames)
{
    emu::Device d;
    void *p = nullptr;
    CUdriverProcAddressQueryResult status;
    ASSERT_CU(FN(cuGetProcAddress)("cuMemAlloc", &p, 13000, 0, &status));
    EXPECT_EQ(CU_GET_PROC_ADDRESS_SUCCESS, status);
    EXPECT_EQ(reinterpret_cast<void *>(CU(cuMemAlloc)), p);
    ASSERT_CU(FN(cuGetProcAddress)("cuGraphInstantiate", &p, 13000, 0, &status));
    EXPECT_NE(nullptr, p);
    FN(cuGetProcAddress)("cuFrobnicate", &p, 13000, 0, &status);
    EXPECT_EQ(CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND, status);
    EXPECT_EQ(nullptr, p);
    FN(cuGetProcAddress)("cuStreamBeginCapture", &p, 5000, 0, &status);
    EXPECT_EQ(CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT, status);
}

TEST(EmuLeaks, WhatIsAliveIsListed)
{
    if (!emulated())
        GTEST_SKIP();
    auto leaks = Driver::get().find<const char *(*)()>("ptxemu_leaks");
    emu::Device d;
    EXPECT_STREQ("", leaks());
    {
        emu::Buffer<uint32_t> b(100);
        emu::Stream s;
        EXPECT_NE(nullptr, strstr(leaks(), "400 bytes"));
        EXPECT_NE(nullptr, strstr(leaks(), "1 stream"));
    }
    EXPECT_STREQ("", leaks());
    CUdeviceptr p = 0;
    ASSERT_CU(CU(cuMemAlloc)(&p, 12));
    CUcontext again = nullptr;
    ASSERT_CU(CU(cuDevicePrimaryCtxRelease)(d.dev));
    EXPECT_NE(nullptr, strstr(leaks(), "12 bytes")) << "the context is gone, the leak is remembered";
    ASSERT_CU(CU(cuDevicePrimaryCtxRetain)(&again, d.dev));
}

/* A process that leaves memory behind and runs a kernel, with a setting of the environment. */
void run_and_exit(const char *name, const char *value)
{
    setenv(name, value, 1);
    emu::Device d("8.0", {{"NB_EMU_PROFILE", strcmp(name, "NB_EMU_PROFILE") ? "" : value}});
    emu::Module m(emu::driver_kernels());
    CUdeviceptr p = 0;
    CU(cuMemAlloc)(&p, 124);
    CU(cuMemsetD8)(p, 0, 124);
    emu::launch(m.get("add"), emu::Dim(1), emu::Dim(32), 0, p, 31u, 1u);
    exit(0);
}

TEST(EmuLeaks, AreListedWhenTheProcessEnds)
{
    if (!emulated())
        GTEST_SKIP();
    EXPECT_EXIT(run_and_exit("NB_EMU_LEAKS", "1"), testing::ExitedWithCode(0), "leaks:\n.*124 bytes.*cuMemAlloc");
}

TEST(EmuProfile, IsWrittenWhenTheProcessEnds)
{
    if (!emulated())
        GTEST_SKIP();
    std::string path = testing::TempDir() + "emu_profile_" + std::to_string(getpid()) + ".json";
    EXPECT_EXIT(run_and_exit("NB_EMU_PROFILE", path.c_str()), testing::ExitedWithCode(0), "");
    std::string text = emu::read_file(path);
    unlink(path.c_str());
    EXPECT_NE(std::string::npos, text.find("\"kernels\""));
    EXPECT_NE(std::string::npos, text.find("add"));
}

TEST(EmuMemory, AdviceIsForManagedMemory)
{
    emu::Device d;
    CUdeviceptr p = 0;
    CUmemLocation here = {};
    here.type = CU_MEM_LOCATION_TYPE_DEVICE;
    ASSERT_CU(FN(cuMemAllocManaged)(&p, 4096, CU_MEM_ATTACH_GLOBAL));
    EXPECT_CU(FN(cuMemAdvise)(p, 4096, CU_MEM_ADVISE_SET_PREFERRED_LOCATION, here));
    EXPECT_CU(FN(cuMemPrefetchAsync)(p, 4096, here, 0, nullptr));
    ASSERT_CU(CU(cuMemFree)(p));
    if (emulated()) {
        emu::Buffer<uint32_t> b(16);
        EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, FN(cuMemPrefetchAsync)(b.p, 64, here, 0, nullptr));
    }
}
} // namespace
