// Fatbins: which of the entries a device takes, and what is said when there is none.
#include "test/emu_driver_kernels.h"

namespace
{
using emu::Driver;

struct Entry {
    uint16_t kind; /* 1 PTX, 2 machine code */
    uint32_t arch;
    uint64_t flags = 0x11;
    std::string payload = {};
};
constexpr uint64_t ARCH_SPECIFIC = 0x100011, COMPRESSED = 0x8011;

template <class T>
void put(std::string *s, T v)
{
    s->append(reinterpret_cast<const char *>(&v), sizeof v);
}

/* A container as nvcc --no-compress writes it. */
std::string fatbin(const std::vector<Entry> &entries)
{
    std::string body;
    for (const Entry &e : entries) {
        std::string payload = e.payload + '\0';
        payload.resize((payload.size() + 7) / 8 * 8);
        put<uint16_t>(&body, e.kind);
        put<uint16_t>(&body, 0x101);
        put<uint32_t>(&body, 64);
        put<uint64_t>(&body, payload.size());
        put<uint32_t>(&body, 0);
        put<uint32_t>(&body, 0x40);
        put<uint16_t>(&body, 0);
        put<uint16_t>(&body, 9);
        put<uint32_t>(&body, e.arch);
        put<uint64_t>(&body, 0);
        put<uint64_t>(&body, e.flags);
        put<uint64_t>(&body, 0);
        put<uint64_t>(&body, 0);
        body += payload;
    }
    std::string head;
    put<uint32_t>(&head, 0xBA55ED50u);
    put<uint16_t>(&head, 1);
    put<uint16_t>(&head, 16);
    put<uint64_t>(&head, body.size());
    return head + body;
}

/* A kernel that writes `value`. */
Entry ptx(const std::string &target, uint32_t arch, uint32_t value, uint64_t flags = 0x11)
{
    return {1, arch, flags,
            ".version 8.0\n.target " + target +
                "\n.address_size 64\n.visible .entry k(.param .u64 p)\n{\n.reg .b64 %rd1;\n.reg .b32 %r1;\n"
                "ld.param.u64 %rd1, [p];\nmov.u32 %r1, " +
                std::to_string(value) + ";\nst.global.u32 [%rd1], %r1;\nret;\n}\n"};
}

struct Load {
    CUresult result;
    CUmodule m = nullptr;
    std::string log;
    explicit Load(const void *image)
    {
        std::vector<char> text(4096, 0);
        CUjit_option o[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
        void *v[] = {text.data(), reinterpret_cast<void *>(text.size())};
        result = CU(cuModuleLoadDataEx)(&m, image, 2, o, v);
        log = text.data();
    }
    ~Load()
    {
        if (m)
            CU(cuModuleUnload)(m);
    }
    uint32_t value()
    {
        emu::Buffer<uint32_t> b(1);
        b.zero();
        CUfunction f = nullptr;
        EXPECT_CU(CU(cuModuleGetFunction)(&f, m, "k"));
        EXPECT_CU(emu::launch(f, emu::Dim(1), emu::Dim(1), 0, b.p));
        return b.get()[0];
    }
};

std::vector<Entry> usual()
{
    return {ptx("sm_80", 80, 80), {2, 90, 0x11, "\177ELF machine code"},
            ptx("sm_75", 75, 75), ptx("sm_90a", 90, 901, ARCH_SPECIFIC),
            ptx("sm_90", 90, 90), ptx("sm_120", 120, 120)};
}

struct EmuFatbin : testing::Test {
    void SetUp() override
    {
        if (!Driver::get().emulated())
            GTEST_SKIP() << "the choice between PTX and machine code is the emulator's own";
    }
};

TEST_F(EmuFatbin, TheBestPtxThatIsNotAboveTheDeviceIsTaken)
{
    std::string image = fatbin(usual());
    for (auto want :
         {std::pair<const char *, uint32_t>{"7.5", 75}, {"8.0", 80}, {"8.6", 80}, {"8.9", 80}, {"9.0", 901}}) {
        emu::Device d(want.first);
        Load l(image.data());
        ASSERT_EQ(CUDA_SUCCESS, l.result) << l.log;
        EXPECT_EQ(want.second, l.value()) << want.first;
    }
}

TEST_F(EmuFatbin, PtxOfAnExactArchitectureSuitsNoOther)
{
    emu::Device d("9.0");
    std::string image = fatbin({ptx("sm_100a", 100, 1, ARCH_SPECIFIC), ptx("sm_80", 80, 2)});
    Load l(image.data());
    ASSERT_EQ(CUDA_SUCCESS, l.result) << l.log;
    EXPECT_EQ(2u, l.value());
}

TEST_F(EmuFatbin, TheWrapperOfTheRuntimeLeadsToTheContainer)
{
    emu::Device d("8.0");
    std::string image = fatbin(usual());
    struct {
        uint32_t magic = 0x466243b1, version = 1;
        const void *data;
        void *unused = nullptr;
    } wrapper;
    wrapper.data = image.data();
    Load l(&wrapper);
    ASSERT_EQ(CUDA_SUCCESS, l.result) << l.log;
    EXPECT_EQ(80u, l.value());
}

TEST_F(EmuFatbin, ALibraryKeepsACopyOfTheImage)
{
    emu::Device d("8.0");
    CUlibrary library = nullptr;
    CUkernel kernel = nullptr;
    CUcontext other = nullptr;
    {
        std::string image = fatbin(usual());
        ASSERT_CU(FN(cuLibraryLoadData)(&library, image.data(), nullptr, nullptr, 0, nullptr, nullptr, 0));
        std::fill(image.begin(), image.end(), '?');
    }
    ASSERT_CU(FN(cuLibraryGetKernel)(&kernel, library, "k"));
    ASSERT_CU(FN(cuCtxCreate)(&other, nullptr, 0, d.dev));
    CUfunction f = nullptr;
    EXPECT_CU(FN(cuKernelGetFunction)(&f, kernel)); /* loads it again, in the other context */
    emu::Buffer<uint32_t> b(1);
    EXPECT_CU(emu::launch(f, emu::Dim(1), emu::Dim(1), 0, b.p));
    EXPECT_EQ(80u, b.get()[0]);
    ASSERT_CU(FN(cuLibraryUnload)(library));
    ASSERT_CU(FN(cuCtxDestroy)(other));
}

TEST_F(EmuFatbin, WhenThereIsNothingForTheDeviceTheLogSaysWhatThereIs)
{
    emu::Device d("7.5");
    std::string image = fatbin({ptx("sm_80", 80, 1), {2, 75, 0x11, "\177ELF"}});
    Load l(image.data());
    EXPECT_EQ(CUDA_ERROR_NO_BINARY_FOR_GPU, l.result);
    EXPECT_NE(std::string::npos, l.log.find("sm_80")) << l.log;
    EXPECT_NE(std::string::npos, l.log.find("machine code sm_75")) << l.log;
    std::string none = fatbin({});
    Load nothing(none.data());
    EXPECT_EQ(CUDA_ERROR_NO_BINARY_FOR_GPU, nothing.result);
    Load cubin("\177ELF\2\1\1");
    EXPECT_EQ(CUDA_ERROR_NO_BINARY_FOR_GPU, cubin.result);
}

TEST_F(EmuFatbin, CompressedPtxIsNamedAndNotPassedOver)
{
    emu::Device d("8.6");
    std::string image = fatbin({ptx("sm_75", 75, 1), ptx("sm_80", 80, 2, COMPRESSED)});
    Load l(image.data());
    EXPECT_EQ(CUDA_ERROR_NO_BINARY_FOR_GPU, l.result);
    EXPECT_NE(std::string::npos, l.log.find("compress")) << l.log;
}

TEST_F(EmuFatbin, ADamagedContainerIsAnErrorAndNoCrash)
{
    emu::Device d("8.0");
    std::string image = fatbin(usual());
    for (size_t at : {size_t(6), size_t(20), size_t(24)}) {
        std::string bad = image;
        bad[at] = char(0xff);
        bad[at + 1] = char(0xff);
        Load l(bad.data());
        EXPECT_EQ(CUDA_ERROR_INVALID_IMAGE, l.result) << at;
    }
}

TEST_F(EmuFatbin, WhatNvccWritesIsUnderstood)
{
    std::string image = emu::read_file(NIBBLE_BUILD_DIR "/ptx/fatbin.fatbin");
    for (const char *cc : {"7.5", "8.0", "8.6", "9.0"}) {
        emu::Device d(cc);
        Load l(image.data());
        ASSERT_EQ(CUDA_SUCCESS, l.result) << l.log;
        EXPECT_EQ(std::string(cc) == "7.5" ? 75u : std::string(cc) == "9.0" ? 90u : 80u, l.value()) << cc;
    }
}
} // namespace
