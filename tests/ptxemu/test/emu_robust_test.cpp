/* The emulator as a library that strangers load: what it exports, how it comes and goes with a process, and what becomes of
 * requests that are large, many or nonsense. */
#include <elf.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <dirent.h>
#include <random>
#include <thread>

#include "test/emu.h"

namespace
{

/* out[global thread] = global thread, and kernels that do something else besides. */
const std::string TEXT = R"(
.version 8.3
.target sm_80
.address_size 64
.visible .entry number(.param .u64 p_out)
{
    .reg .b64 %o, %a; .reg .b32 %t, %c, %n;
    ld.param.u64 %o, [p_out];
    mov.u32 %t, %tid.x; mov.u32 %c, %ctaid.x; mov.u32 %n, %ntid.x;
    mad.lo.u32 %t, %c, %n, %t;
    mul.wide.u32 %a, %t, 4;
    add.u64 %a, %o, %a;
    st.global.u32 [%a], %t;
    ret;
}
.visible .entry deep(.param .u64 p_out)
{
    .local .align 16 .b8 much[524272];
    .reg .b64 %o; .reg .b32 %t;
    ld.param.u64 %o, [p_out];
    mov.u32 %t, 1;
    st.local.u32 [much], %t;
    ld.local.u32 %t, [much];
    st.global.u32 [%o], %t;
    ret;
}
.extern .shared .align 16 .b8 dynamic[];
.visible .entry turn(.param .u64 p_out)
{
    .reg .b64 %o, %a; .reg .b32 %t, %s, %m, %v;
    ld.param.u64 %o, [p_out];
    mov.u32 %t, %tid.x;
    mov.u32 %s, dynamic;
    mad.lo.u32 %m, %t, 100, %s;
    st.shared.u32 [%m+96], %t;
    bar.sync 0;
    xor.b32 %v, %t, 1023;
    mad.lo.u32 %m, %v, 100, %s;
    ld.shared.u32 %v, [%m+96];
    mul.wide.u32 %a, %t, 4;
    add.u64 %a, %o, %a;
    st.global.u32 [%a], %v;
    ret;
}
)";

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
constexpr bool SANITIZED = true;
#else
constexpr bool SANITIZED = false;
#endif

double seconds_since(std::chrono::steady_clock::time_point start)
{
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

size_t threads_of_process()
{
    size_t n = 0;
    DIR *d = opendir("/proc/self/task");
    while (dirent *e = readdir(d))
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

class Robust : public testing::Test
{
  protected:
    void SetUp() override
    {
        if (!emu::Driver::get().emulated())
            GTEST_SKIP() << "about the emulator";
    }
};

/* ---- the library ---- */

template <class T>
const T *at(const std::string &file, size_t offset)
{
    return reinterpret_cast<const T *>(file.data() + offset);
}

/* The names that an ELF library offers. */
std::vector<std::string> exports(const std::string &path)
{
    const std::string file = emu::read_file(path);
    const auto *head = at<Elf64_Ehdr>(file, 0);
    const auto *sections = at<Elf64_Shdr>(file, head->e_shoff);
    std::vector<std::string> names;
    for (unsigned i = 0; i < head->e_shnum; i++) {
        if (sections[i].sh_type != SHT_DYNSYM)
            continue;
        const char *text = at<char>(file, sections[sections[i].sh_link].sh_offset);
        const auto *symbol = at<Elf64_Sym>(file, sections[i].sh_offset);
        for (size_t k = 0; k < sections[i].sh_size / sizeof *symbol; k++)
            if (symbol[k].st_shndx != SHN_UNDEF && ELF64_ST_BIND(symbol[k].st_info) != STB_LOCAL)
                names.push_back(text + symbol[k].st_name);
    }
    return names;
}

TEST_F(Robust, libraries_export_their_interface_and_nothing_else)
{
    struct {
        const char *file;
        std::vector<std::string> prefixes;
    } const all[] = {
        {"libptxemu.so", {"cu", "ptxemu_"}}, {"libptxemu_nccl.so", {"nccl"}}, {"libptxemu_cublaslt.so", {"cublasLt"}}};
    for (auto &library : all) {
        const std::vector<std::string> names = exports(std::string(NIBBLE_BUILD_DIR "/") + library.file);
        EXPECT_GT(names.size(), 5u) << library.file;
        for (const std::string &name : names) {
            bool known = false;
            for (const std::string &prefix : library.prefixes)
                known = known || name.compare(0, prefix.size(), prefix) == 0;
            EXPECT_TRUE(known) << library.file << " exports " << name;
        }
    }
}

TEST_F(Robust, a_closed_driver_can_be_loaded_again)
{
    for (int round = 0; round < 3; round++) {
        void *so = dlopen(emu::Driver::get().path.c_str(), RTLD_NOW | RTLD_LOCAL);
        ASSERT_TRUE(so) << dlerror();
        auto version = reinterpret_cast<decltype(&cuDriverGetVersion)>(dlsym(so, "cuDriverGetVersion"));
        int v = 0;
        EXPECT_CU(version(&v));
        EXPECT_GE(v, 12000);
        EXPECT_EQ(0, dlclose(so));
    }
}

/* ---- the process ---- */

TEST_F(Robust, a_child_of_fork_exits_cleanly_and_writes_no_profile)
{
    const std::string profile = NIBBLE_BUILD_DIR "/emu_robust_profile.json";
    unlink(profile.c_str());
    {
        emu::Device d("8.0", {{"NB_EMU_PROFILE", profile.c_str()}});
        emu::Module m(TEXT);
        emu::Buffer<uint32_t> out(32);
        ASSERT_CU(emu::launch(m.get("number"), 1, 32, 0, out.p));
        const pid_t child = fork();
        if (child == 0)
            exit(0);
        int status = -1;
        ASSERT_EQ(child, waitpid(child, &status, 0));
        EXPECT_EQ(0, status);
        EXPECT_NE(0, access(profile.c_str(), F_OK)) << "the child has written the parent's profile";
        EXPECT_EQ(31u, out.get()[31]);
    }
    emu::Device clean("8.0");
}

TEST_F(Robust, a_process_may_end_while_work_is_pending)
{
    testing::GTEST_FLAG(death_test_style) = "threadsafe";
    EXPECT_EXIT(
        {
            emu::Device d("8.0");
            emu::Module m(TEXT);
            CUdeviceptr p = 0;
            CU(cuMemAlloc)(&p, 1 << 20);
            void *arguments[] = {&p};
            for (int i = 0; i < 100; i++)
                CU(cuLaunchKernel)(m.get("number"), 100, 1, 1, 128, 1, 1, 0, nullptr, arguments, nullptr);
            exit(3);
        },
        testing::ExitedWithCode(3), "");
}

TEST_F(Robust, host_threads_share_a_context)
{
    emu::Device d("8.0", {{"NB_EMU_THREADS", "2"}});
    emu::Module m(TEXT);
    const CUfunction number = m.get("number");
    std::vector<std::thread> threads;
    std::vector<int> right(4, 0);
    for (int &r : right)
        threads.emplace_back([&] {
            CU(cuCtxSetCurrent)(d.ctx);
            for (int i = 0; i < 10; i++) {
                emu::Buffer<uint32_t> out(640);
                if (emu::launch(number, 20, 32, 0, out.p) == CUDA_SUCCESS)
                    r += out.get()[639] == 639;
            }
        });
    for (std::thread &t : threads)
        t.join();
    for (int r : right)
        EXPECT_EQ(10, r);
}

TEST_F(Robust, a_faulting_kernel_leaves_no_threads_running)
{
    emu::Device d("8.0", {{"NB_EMU_THREADS", "4"}});
    const size_t before = threads_of_process();
    emu::Module m(TEXT);
    EXPECT_EQ(CUDA_ERROR_ILLEGAL_ADDRESS, emu::launch(m.get("number"), 4096, 128, 0, CUdeviceptr(0)));
    EXPECT_EQ(before, threads_of_process());
}

/* ---- large and many ---- */

TEST_F(Robust, the_largest_grid_ends_with_the_fault_of_its_first_blocks)
{
    emu::Device d("8.0");
    emu::Module m(TEXT);
    const auto start = std::chrono::steady_clock::now();
    EXPECT_EQ(CUDA_ERROR_ILLEGAL_ADDRESS, emu::launch(m.get("number"), 0x7fffffff, 32, 0, CUdeviceptr(0)));
    EXPECT_LT(seconds_since(start), 10);
}

TEST_F(Robust, a_hundred_thousand_blocks_all_run)
{
    const uint32_t blocks = SANITIZED ? 10000 : 100000;
    emu::Device d("8.0");
    emu::Module m(TEXT);
    emu::Buffer<uint32_t> out(blocks);
    ASSERT_CU(emu::launch(m.get("number"), blocks, 1, 0, out.p));
    const std::vector<uint32_t> got = out.get();
    for (uint32_t i = 0; i < blocks; i++)
        ASSERT_EQ(i, got[i]);
}

TEST_F(Robust, a_full_block_with_100_KB_of_shared_memory_runs)
{
    emu::Device d("8.0");
    emu::Module m(TEXT);
    const CUfunction turn = m.get("turn");
    ASSERT_CU(CU(cuFuncSetAttribute)(turn, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 102400));
    emu::Buffer<uint32_t> out(1024);
    ASSERT_CU(emu::launch(turn, 1, 1024, 102400, out.p));
    const std::vector<uint32_t> got = out.get();
    for (uint32_t i = 0; i < 1024; i++)
        ASSERT_EQ(1023 - i, got[i]);
}

TEST_F(Robust, a_module_of_two_thousand_kernels_loads)
{
    std::string text = TEXT;
    for (int i = 0; i < 2000; i++)
        text += ".visible .entry k" + std::to_string(i) +
                "(.param .u64 p)\n{\n.reg .b64 %a; .reg .b32 %v;\nld.param.u64 %a, [p];\nmov.u32 %v, " +
                std::to_string(i) + ";\nst.global.u32 [%a], %v;\nret;\n}\n";
    emu::Device d("8.0");
    emu::Module m(text);
    emu::Buffer<uint32_t> out(1);
    for (int i : {0, 1000, 1999}) {
        ASSERT_CU(emu::launch(m.get(("k" + std::to_string(i)).c_str()), 1, 1, 0, out.p));
        EXPECT_EQ(uint32_t(i), out.get()[0]);
    }
}

TEST_F(Robust, a_kernel_for_which_the_host_has_no_memory_is_an_error)
{
    if (SANITIZED)
        GTEST_SKIP() << "the sanitizer ends the process when an allocation fails";
    emu::Device d("8.0");
    emu::Module m(TEXT);
    emu::Buffer<uint32_t> out(1);
    long pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    rlimit old;
    ASSERT_EQ(0, getrlimit(RLIMIT_AS, &old));
    rlimit tight = old;
    tight.rlim_cur = rlim_t(pages) * rlim_t(sysconf(_SC_PAGESIZE)) + (200 << 20); /* a block asks for 1 GB */
    ASSERT_EQ(0, setrlimit(RLIMIT_AS, &tight));
    const CUresult r = emu::launch(m.get("deep"), 64, 1024, 0, out.p);
    setrlimit(RLIMIT_AS, &old);
    EXPECT_EQ(CUDA_ERROR_OUT_OF_MEMORY, r);
    EXPECT_NE(std::string::npos, emu::report().find("host has no memory")) << emu::report();
}

/* ---- nonsense ---- */

TEST_F(Robust, a_tiny_device_runs_out_of_memory_in_order)
{
    emu::Device d("8.0", {{"NB_EMU_MEMORY", "4K"}});
    CUdeviceptr p = 0, q = 0;
    EXPECT_CU(CU(cuMemAlloc)(&p, 4096));
    EXPECT_EQ(CUDA_ERROR_OUT_OF_MEMORY, CU(cuMemAlloc)(&q, 1));
    EXPECT_CU(CU(cuMemFree)(p));
    EXPECT_CU(CU(cuMemAlloc)(&q, 1));
    EXPECT_CU(CU(cuMemFree)(q));
}

TEST_F(Robust, settings_that_make_no_sense_fail_at_cuInit)
{
    const std::pair<const char *, const char *> wrong[] = {
        {"NB_EMU_DEVICES", "0"},   {"NB_EMU_DEVICES", "many"}, {"NB_EMU_CC", "8"},
        {"NB_EMU_SMS", "-1"},      {"NB_EMU_MEMORY", "80X"},   {"NB_EMU_MEMORY", "99999T"},
        {"NB_EMU_CHECK", "yes"},   {"NB_EMU_THREADS", "1e3"},  {"NB_EMU_PATIENCE", "0"},
        {"NB_EMU_FAIL", "cuInit"}, {"NB_EMU_FAIL", "x:1:y"},   {"NB_EMU_MEMORY", "18446744073709551616"},
    };
    for (auto &w : wrong) {
        setenv(w.first, w.second, 1);
        emu::Driver::get().reset();
        EXPECT_NE(CUDA_SUCCESS, CU(cuInit)(0)) << w.first << "=" << w.second;
        unsetenv(w.first);
    }
    emu::Device fine("8.0");
}

/* Loads damaged copies of an image: every call has to come back, with a module or an error. */
void load_damaged(const std::string &image, unsigned copies, bool text)
{
    std::mt19937 random(7);
    std::vector<char> log(256);
    CUjit_option option[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
    void *value[] = {log.data(), reinterpret_cast<void *>(log.size())};
    unsigned refused = 0;
    for (unsigned k = 0; k < copies; k++) {
        std::string s = image;
        const unsigned kind = random() % 4;
        const size_t where = random() % s.size(), n = std::min<size_t>(1 + random() % 16, s.size() - where);
        if (kind == 0 && text)
            s.resize(where);
        else if (kind == 1 && text)
            s.erase(where, n);
        else if (kind == 2 && text)
            s.insert(where, s.substr(random() % s.size(), n));
        else
            for (size_t i = 0; i < (text ? 3 : 1); i++)
                s[(where + random() % 8) % s.size()] = text ? " ,;.[]{}0-9%xfsu"[random() % 16] : char(random());
        CUmodule m = nullptr;
        const CUresult r = CU(cuModuleLoadDataEx)(&m, s.c_str(), 2, option, value);
        refused += r != CUDA_SUCCESS;
        if (r == CUDA_SUCCESS)
            EXPECT_CU(CU(cuModuleUnload)(m));
    }
    EXPECT_GT(refused, 0u);
}

TEST_F(Robust, damaged_ptx_is_refused_or_loaded_but_never_a_crash)
{
    emu::Device d("9.0");
    load_damaged(TEXT, 2000, true);
    load_damaged(emu::kernel_ptx("front_end", "80"), SANITIZED ? 20 : 100, true);
    load_damaged(emu::kernel_ptx("bulk", "90a"), SANITIZED ? 20 : 100, true);
}

TEST_F(Robust, damaged_fatbins_are_refused_or_loaded_but_never_a_crash)
{
    emu::Device d("8.0");
    const std::string fatbin = emu::read_file(NIBBLE_BUILD_DIR "/ptx/fatbin.fatbin");
    /* What a caller passes has no length but the one in its header, which cannot be checked: it only gets smaller here. */
    constexpr size_t LENGTH = 8, HEADER = 16, ENTRY = 64;
    std::mt19937 random(11);
    for (int k = 0; k < 1000; k++) {
        std::string s = fatbin;
        const size_t at = random() % (HEADER + ENTRY);
        if (at >= LENGTH && at < HEADER) {
            const uint64_t shorter = random() % (s.size() - HEADER);
            memcpy(&s[LENGTH], &shorter, sizeof shorter);
        } else {
            s[at] = char(random());
        }
        CUmodule m = nullptr;
        if (CU(cuModuleLoadData)(&m, s.data()) == CUDA_SUCCESS)
            EXPECT_CU(CU(cuModuleUnload)(m));
    }
}

} // namespace
