// What goes wrong: failures on order, exhausted memory, faults that stick, handles that are gone.
#include <fstream>
#include <functional>
#include <unistd.h>

#include "test/emu_driver_kernels.h"

namespace
{
using emu::Driver;

struct EmuFailure : testing::Test {
    void SetUp() override
    {
        if (!Driver::get().emulated())
            GTEST_SKIP() << "failures cannot be ordered from a GPU";
    }
};

struct Setting { /* an environment variable for as long as this lives */
    const char *name;
    Setting(const char *n, const std::string &value) : name(n) { setenv(name, value.c_str(), 1); }
    ~Setting() { unsetenv(name); }
};

/* Runs quietly: faults print their report. */
std::string quiet(const std::function<void()> &f)
{
    testing::internal::CaptureStderr();
    f();
    return testing::internal::GetCapturedStderr();
}

TEST_F(EmuFailure, TheNamedCallFailsOnceAndNoOther)
{
    emu::Device d("8.0", {{"NB_EMU_FAIL", "cuMemAlloc:3,cuMemsetD8:1:719,cuMemAlloc:5:999"}});
    CUdeviceptr p[6] = {};
    std::vector<CUresult> results;
    for (CUdeviceptr &one : p)
        results.push_back(CU(cuMemAlloc)(&one, 64));
    EXPECT_EQ((std::vector<CUresult>{CUDA_SUCCESS, CUDA_SUCCESS, CUDA_ERROR_OUT_OF_MEMORY, CUDA_SUCCESS,
                                     CUDA_ERROR_UNKNOWN, CUDA_SUCCESS}),
              results);
    EXPECT_EQ(0u, p[2]) << "a call that fails on order does nothing";
    EXPECT_EQ(CUDA_ERROR_LAUNCH_FAILED, CU(cuMemsetD8)(p[0], 0, 64));
    EXPECT_EQ(CUDA_SUCCESS, CU(cuMemsetD8)(p[0], 0, 64)) << "it does not stick";
}

/* A small host program; the error of the first call that fails. */
CUresult program()
{
#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        CUresult r_ = (call);                                                                                          \
        if (r_ != CUDA_SUCCESS)                                                                                        \
            return r_;                                                                                                 \
    } while (0)
    CUcontext ctx = nullptr;
    CUmodule m = nullptr;
    CUfunction f = nullptr;
    CUdeviceptr p = 0;
    uint32_t v[4] = {1, 2, 3, 4};
    TRY(CU(cuInit)(0));
    TRY(CU(cuDevicePrimaryCtxRetain)(&ctx, 0));
    TRY(CU(cuCtxSetCurrent)(ctx));
    TRY(CU(cuModuleLoadData)(&m, emu::driver_kernels()));
    TRY(CU(cuModuleGetFunction)(&f, m, "add"));
    TRY(CU(cuMemAlloc)(&p, 16));
    TRY(CU(cuMemcpyHtoD)(p, v, 16));
    TRY(emu::launch_add(f, nullptr, p, 4, 1));
    TRY(CU(cuCtxSynchronize)());
    TRY(CU(cuMemcpyDtoH)(v, p, 16));
    TRY(CU(cuMemFree)(p));
    TRY(CU(cuModuleUnload)(m));
    TRY(CU(cuDevicePrimaryCtxRelease)(0));
#undef TRY
    return v[3] == 5 ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
}

TEST_F(EmuFailure, EveryCallOfAProgramCanFailInTurn)
{
    Setting cc("NB_EMU_CC", "8.0");
    constexpr int calls = 13;
    for (int n = 1; n <= calls + 1; n++) {
        Setting fail("NB_EMU_FAIL", "*:" + std::to_string(n) + ":999");
        Driver::get().reset();
        EXPECT_EQ(n <= calls ? CUDA_ERROR_UNKNOWN : CUDA_SUCCESS, program()) << n;
    }
    Driver::get().reset();
    EXPECT_EQ(CUDA_SUCCESS, program());
}

/* Every function that the library exports, by its plain name. */
std::vector<std::string> exported()
{
    std::vector<std::string> names;
    std::string command = "nm -D --defined-only " + Driver::get().path;
    FILE *p = popen(command.c_str(), "r");
    char line[512], name[512];
    while (p && fgets(line, sizeof line, p))
        if (sscanf(line, "%*s T %500s", name) == 1 && !strncmp(name, "cu", 2))
            names.push_back(name);
    if (p)
        pclose(p);
    return names;
}

TEST_F(EmuFailure, EveryFunctionFailsWhenOrdered)
{
    std::vector<std::string> names = exported();
    if (names.empty())
        GTEST_SKIP() << "nm is not there";
    EXPECT_GT(names.size(), 150u);
    for (const std::string &symbol : names) {
        size_t version = symbol.rfind("_v");
        std::string plain = symbol.substr(0, version == std::string::npos ? symbol.size() : version);
        if (plain == "cuGetErrorName" || plain == "cuGetErrorString" || plain == "cuGetProcAddress" ||
            plain == "cuGetExportTable")
            continue;
        Setting fail("NB_EMU_FAIL", plain + ":1:911");
        Driver::get().reset();
        /* An ordered failure comes before any argument is looked at, so that any call will do. */
        using Any = CUresult (*)(void *, void *, void *, void *, void *, void *, void *, void *, void *, void *, void *,
                                 void *);
        Any f = reinterpret_cast<Any>(dlsym(Driver::get().so, symbol.c_str()));
        ASSERT_NE(nullptr, f) << symbol;
        EXPECT_EQ(CUDA_ERROR_EXTERNAL_DEVICE, f(nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
                                                nullptr, nullptr, nullptr, nullptr))
            << symbol;
    }
    Driver::get().reset();
}

TEST_F(EmuFailure, MemoryEndsWhereTheEnvironmentSays)
{
    emu::Device d("8.0", {{"NB_EMU_MEMORY", "1M"}});
    CUdeviceptr a = 0, b = 0;
    size_t free = 0, total = 0;
    ASSERT_CU(CU(cuMemAlloc)(&a, 600 << 10));
    EXPECT_EQ(CUDA_ERROR_OUT_OF_MEMORY, CU(cuMemAlloc)(&b, 600 << 10));
    ASSERT_CU(CU(cuMemGetInfo)(&free, &total));
    EXPECT_LE(free, size_t(424) << 10);
    ASSERT_CU(CU(cuMemFree)(a));
    ASSERT_CU(CU(cuMemAlloc)(&b, 600 << 10));
    ASSERT_CU(CU(cuMemFree)(b));
    std::string big(".version 8.0\n.target sm_75\n.address_size 64\n.global .align 4 .b8 g[2000000];\n"
                    ".visible .entry k()\n{\nret;\n}\n");
    emu::Module m(big, false);
    EXPECT_EQ(CUDA_ERROR_OUT_OF_MEMORY, m.result) << m.log;
}

TEST_F(EmuFailure, MemoryThatWaitsForItsReleaseIsUsedBeforeAnAllocationFails)
{
    emu::Device d("8.0", {{"NB_EMU_MEMORY", "1M"}});
    CUdeviceptr a = 0, b = 0;
    ASSERT_CU(FN(cuMemAllocAsync)(&a, 600 << 10, nullptr));
    ASSERT_CU(FN(cuMemFreeAsync)(a, nullptr));
    ASSERT_CU(FN(cuMemAllocAsync)(&b, 600 << 10, nullptr));
    ASSERT_CU(FN(cuMemFreeAsync)(b, nullptr));
    ASSERT_CU(CU(cuMemAlloc)(&a, 600 << 10));
    ASSERT_CU(CU(cuMemFree)(a));
}

TEST_F(EmuFailure, AFaultSticksUntilThePrimaryContextIsReset)
{
    emu::Device d("8.0");
    CUdeviceptr p = 0;
    ASSERT_CU(CU(cuMemAlloc)(&p, 64));
    {
        emu::Module m(emu::driver_kernels());
        CUfunction f = m.get("write_at");
        std::string said = quiet([&] {
            EXPECT_EQ(CUDA_ERROR_ILLEGAL_ADDRESS, emu::launch(f, emu::Dim(1), emu::Dim(1), 0, CUdeviceptr(p + 4096)));
        });
        EXPECT_NE(std::string::npos, said.find("write_at")) << said;
        EXPECT_EQ(said, Driver::get().last_report() + std::string("\n"));
        CUdeviceptr q = 0;
        uint32_t v = 0;
        EXPECT_EQ(CUDA_ERROR_ILLEGAL_ADDRESS, CU(cuMemAlloc)(&q, 4));
        EXPECT_EQ(CUDA_ERROR_ILLEGAL_ADDRESS, CU(cuMemcpyDtoH)(&v, p, 4));
        EXPECT_EQ(CUDA_ERROR_ILLEGAL_ADDRESS, CU(cuCtxSynchronize)());
        EXPECT_EQ(CUDA_ERROR_ILLEGAL_ADDRESS, emu::launch_add(f, nullptr, p, 1, 1));
        int n = 0;
        EXPECT_EQ(CUDA_SUCCESS, CU(cuDeviceGetCount)(&n)) << "needs no context";
    }
    ASSERT_CU(FN(cuDevicePrimaryCtxReset)(d.dev));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, CU(cuMemFree)(p)) << "the reset took it";
    emu::Module m(emu::driver_kernels());
    emu::Buffer<uint32_t> b(std::vector<uint32_t>{1});
    EXPECT_CU(emu::launch(m.get("add"), emu::Dim(1), emu::Dim(1), 0, b.p, 1u, 1u));
    EXPECT_EQ(2u, b.get()[0]);
}

TEST_F(EmuFailure, AFaultComesToLightWhereTheHostWaitsAndEndsWhatFollows)
{
    emu::Device d("8.0");
    emu::Module m(emu::driver_kernels());
    emu::Stream s;
    emu::Pinned<uint32_t> v(1);
    v[0] = 1;
    CUdeviceptr nowhere = 64;
    void *args[] = {&nowhere};
    static CUresult told;
    told = CUDA_SUCCESS;
    ASSERT_CU(CU(cuLaunchKernel)(m.get("write_at"), 1, 1, 1, 1, 1, 1, 0, s, args, nullptr));
    ASSERT_CU(emu::launch_add(m.get("add"), s, CUdeviceptr(v.p), 1, 1));
    ASSERT_CU(FN(cuStreamAddCallback)(
        s, [](CUstream, CUresult r, void *) { told = r; }, nullptr, 0));
    quiet([&] { EXPECT_EQ(CUDA_ERROR_ILLEGAL_ADDRESS, FN(cuStreamSynchronize)(s)); });
    EXPECT_EQ(1u, v[0]);
    EXPECT_EQ(CUDA_ERROR_ILLEGAL_ADDRESS, told);
}

TEST_F(EmuFailure, ReportsAreAppendedToAFile)
{
    std::string path = testing::TempDir() + "emu_report_" + std::to_string(getpid());
    {
        Setting file("NB_EMU_REPORT", path);
        for (int i = 0; i < 2; i++) {
            emu::Device d("8.0");
            emu::Module m(emu::driver_kernels());
            quiet([&] { emu::launch(m.get("write_at"), emu::Dim(1), emu::Dim(1), 0, CUdeviceptr(64)); });
        }
    }
    std::string text = emu::read_file(path);
    unlink(path.c_str());
    size_t first = text.find("write_at");
    ASSERT_NE(std::string::npos, first);
    EXPECT_NE(std::string::npos, text.find("write_at", text.find('\n', first) + 1)) << "two reports";
    Driver::get().reset();
}

TEST_F(EmuFailure, AHandleThatIsGoneIsAnErrorAndNoCrash)
{
    emu::Device d("8.0");
    CUstream s = nullptr;
    CUevent e = nullptr;
    CUmodule m = nullptr;
    CUfunction f = nullptr;
    CUgraph g = nullptr;
    CUgraphExec x = nullptr;
    CUcontext c = nullptr;
    ASSERT_CU(FN(cuStreamCreate)(&s, 0));
    ASSERT_CU(FN(cuEventCreate)(&e, 0));
    ASSERT_CU(CU(cuModuleLoadData)(&m, emu::driver_kernels()));
    ASSERT_CU(CU(cuModuleGetFunction)(&f, m, "count"));
    ASSERT_CU(FN(cuGraphCreate)(&g, 0));
    ASSERT_CU(FN(cuGraphInstantiate)(&x, g, 0));
    ASSERT_CU(FN(cuStreamDestroy)(s));
    ASSERT_CU(FN(cuEventDestroy)(e));
    ASSERT_CU(CU(cuModuleUnload)(m));
    ASSERT_CU(FN(cuGraphDestroy)(g));
    ASSERT_CU(FN(cuGraphExecDestroy)(x));
    ASSERT_CU(FN(cuCtxCreate)(&c, nullptr, 0, 0));
    ASSERT_CU(FN(cuCtxDestroy)(c));
    EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, FN(cuStreamSynchronize)(s));
    EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, FN(cuStreamDestroy)(s));
    EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, FN(cuEventRecord)(e, nullptr));
    EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, FN(cuEventDestroy)(e));
    EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, FN(cuStreamWaitEvent)(nullptr, e, 0));
    EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, CU(cuModuleUnload)(m));
    EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, CU(cuModuleGetFunction)(&f, m, "count"));
    EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, CU(cuLaunchKernel)(f, 1, 1, 1, 1, 1, 1, 0, nullptr, nullptr, nullptr));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, FN(cuGraphDestroy)(g));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, FN(cuGraphLaunch)(x, nullptr));
    EXPECT_EQ(CUDA_ERROR_INVALID_CONTEXT, CU(cuCtxSetCurrent)(c));
    EXPECT_EQ(CUDA_ERROR_INVALID_CONTEXT, FN(cuCtxDestroy)(c));
    /* one kind of handle is no other */
    EXPECT_EQ(CUDA_ERROR_INVALID_HANDLE, FN(cuStreamSynchronize)(reinterpret_cast<CUstream>(d.ctx)));
}

TEST_F(EmuFailure, TheTraceNamesCallsAndResults)
{
    Setting trace("NB_EMU_TRACE", "1");
    emu::Device d("8.0");
    std::string said = quiet([] {
        CUdeviceptr p = 0;
        CU(cuMemAlloc)(&p, 0);
        CU(cuCtxSynchronize)();
    });
    EXPECT_EQ("ptxemu: cuMemAlloc = CUDA_ERROR_INVALID_VALUE\nptxemu: cuCtxSynchronize = CUDA_SUCCESS\n", said);
    unsetenv("NB_EMU_TRACE");
    quiet([] { Driver::get().reset(); });
    EXPECT_CU(CU(cuInit)(0));
    CUcontext c;
    EXPECT_CU(CU(cuDevicePrimaryCtxRetain)(&c, 0)); /* what the fixture releases */
}
} // namespace
