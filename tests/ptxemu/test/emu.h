/* For the emulator's tests: a CUDA driver loaded by name (the emulator, or a real one), and short ways to load, launch and compare.
 *
 * NB_CUDA_DRIVER names the library; without it, it is libptxemu.so of the build folder.  Everything goes through the driver
 * API, so that the same tests run on a GPU; what only the emulator can do (reports, resets) is skipped there. */
#ifndef PTXEMU_TEST_EMU_H
#define PTXEMU_TEST_EMU_H

#include <cuda.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <initializer_list>
#include <sstream>
#include <string>
#include <vector>

namespace emu
{

#define EMU_DRIVER(X)                                                                                                  \
    X(cuInit)                                                                                                          \
    X(cuDriverGetVersion)                                                                                              \
    X(cuDeviceGetCount)                                                                                                \
    X(cuDeviceGet)                                                                                                     \
    X(cuDeviceGetAttribute)                                                                                            \
    X(cuDeviceTotalMem)                                                                                                \
    X(cuDeviceGetName)                                                                                                 \
    X(cuDevicePrimaryCtxRetain)                                                                                        \
    X(cuDevicePrimaryCtxRelease)                                                                                       \
    X(cuCtxSetCurrent)                                                                                                 \
    X(cuCtxGetCurrent)                                                                                                 \
    X(cuCtxSynchronize)                                                                                                \
    X(cuMemAlloc)                                                                                                      \
    X(cuMemFree)                                                                                                       \
    X(cuMemcpyHtoD)                                                                                                    \
    X(cuMemcpyDtoH)                                                                                                    \
    X(cuMemcpyDtoD)                                                                                                    \
    X(cuMemsetD8)                                                                                                      \
    X(cuMemGetInfo)                                                                                                    \
    X(cuModuleLoadData)                                                                                                \
    X(cuModuleLoadDataEx)                                                                                              \
    X(cuModuleUnload)                                                                                                  \
    X(cuModuleGetFunction)                                                                                             \
    X(cuModuleGetGlobal)                                                                                               \
    X(cuFuncGetAttribute)                                                                                              \
    X(cuFuncSetAttribute)                                                                                              \
    X(cuLaunchKernel)                                                                                                  \
    X(cuLaunchKernelEx)                                                                                                \
    X(cuLaunchCooperativeKernel)                                                                                       \
    X(cuOccupancyMaxActiveBlocksPerMultiprocessor)                                                                     \
    X(cuGetErrorName)                                                                                                  \
    X(cuGetErrorString)

#define EMU_STR2(x) #x
#define EMU_STR(x)  EMU_STR2(x)

struct Driver {
    void *so = nullptr;
    std::string path;
#define X(name) decltype(&name) p_##name;
    EMU_DRIVER(X)
#undef X
    const char *(*last_report)() = nullptr;
    void (*reset)() = nullptr;

    bool emulated() const
    {
        return reset != nullptr;
    }
    template <class F>
    F find(const char *name) const /* a driver function that is not in the list above */
    {
        void *p = dlsym(so, name);
        if (!p)
            ADD_FAILURE() << path << " has no " << name;
        return reinterpret_cast<F>(p);
    }
    static Driver &get()
    {
        static Driver d;
        return d;
    }

  private:
    Driver()
    {
        const char *named = getenv("NB_CUDA_DRIVER");
        path = named && *named ? named : NIBBLE_BUILD_DIR "/libptxemu.so";
        so = dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL);
        if (!so) {
            fprintf(stderr, "cannot load the CUDA driver: %s\n", dlerror());
            exit(1);
        }
#define X(name) p_##name = reinterpret_cast<decltype(&name)>(dlsym(so, EMU_STR(name)));
        EMU_DRIVER(X)
#undef X
        last_report = reinterpret_cast<const char *(*)()>(dlsym(so, "ptxemu_last_report"));
        reset = reinterpret_cast<void (*)()>(dlsym(so, "ptxemu_reset"));
    }
};

#define CU(name) (emu::Driver::get().p_##name)

inline std::string error_name(CUresult r)
{
    const char *s = nullptr;
    if (!CU(cuGetErrorName) || CU(cuGetErrorName)(r, &s) != CUDA_SUCCESS || !s)
        return "CUresult " + std::to_string(int(r));
    return s;
}
#define ASSERT_CU(call)                                                                                                \
    do {                                                                                                               \
        CUresult r_ = (call);                                                                                          \
        ASSERT_EQ(CUDA_SUCCESS, r_) << #call << ": " << emu::error_name(r_) << "\n" << emu::report();                  \
    } while (0)
#define EXPECT_CU(call)                                                                                                \
    do {                                                                                                               \
        CUresult r_ = (call);                                                                                          \
        EXPECT_EQ(CUDA_SUCCESS, r_) << #call << ": " << emu::error_name(r_) << "\n" << emu::report();                  \
    } while (0)

inline std::string report()
{
    return Driver::get().last_report ? Driver::get().last_report() : "";
}

/* A device of this compute capability ("9.0") in a fresh process state; on a real GPU: whatever there is.  Settings are NAME=value. */
struct Device {
    CUdevice dev = 0;
    CUcontext ctx = nullptr;
    int sm = 0;
    explicit Device(const char *cc = "9.0", std::initializer_list<std::pair<const char *, const char *>> settings = {})
    {
        Driver &d = Driver::get();
        if (d.emulated()) {
            for (const char *name : {"NB_EMU_DEVICES", "NB_EMU_SMS", "NB_EMU_MEMORY", "NB_EMU_FAIL", "NB_EMU_CHECK",
                                     "NB_EMU_THREADS", "NB_EMU_PROFILE", "NB_EMU_PATIENCE"})
                unsetenv(name);
            setenv("NB_EMU_CC", cc, 1);
            for (auto &s : settings)
                setenv(s.first, s.second, 1);
            d.reset();
        }
        EXPECT_CU(CU(cuInit)(0));
        EXPECT_CU(CU(cuDeviceGet)(&dev, 0));
        EXPECT_CU(CU(cuDevicePrimaryCtxRetain)(&ctx, dev));
        EXPECT_CU(CU(cuCtxSetCurrent)(ctx));
        int major = 0, minor = 0;
        EXPECT_CU(CU(cuDeviceGetAttribute)(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, dev));
        EXPECT_CU(CU(cuDeviceGetAttribute)(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, dev));
        sm = major * 10 + minor;
    }
    ~Device()
    {
        CU(cuCtxSetCurrent)(nullptr);
        CU(cuDevicePrimaryCtxRelease)(dev);
    }
    Device(const Device &) = delete;
};

template <class T>
struct Buffer {
    CUdeviceptr p = 0;
    size_t n;
    explicit Buffer(size_t count) : n(count) { EXPECT_CU(CU(cuMemAlloc)(&p, (n ? n : 1) * sizeof(T))); }
    explicit Buffer(const std::vector<T> &v) : Buffer(v.size()) { put(v); }
    ~Buffer() { CU(cuMemFree)(p); }
    Buffer(const Buffer &) = delete;
    void put(const std::vector<T> &v) { EXPECT_CU(CU(cuMemcpyHtoD)(p, v.data(), v.size() * sizeof(T))); }
    void zero()
    {
        EXPECT_CU(CU(cuMemsetD8)(p, 0, n * sizeof(T)));
        EXPECT_CU(CU(cuCtxSynchronize)()); /* a non-blocking stream would not wait for it */
    }
    std::vector<T> get() const
    {
        std::vector<T> v(n);
        EXPECT_CU(CU(cuMemcpyDtoH)(v.data(), p, n * sizeof(T)));
        return v;
    }
};

struct Module {
    CUmodule m = nullptr;
    CUresult result = CUDA_SUCCESS;
    std::string log;
    explicit Module(const std::string &image, bool must_load = true)
    {
        std::vector<char> text(65536, 0);
        CUjit_option o[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
        void *v[] = {text.data(), reinterpret_cast<void *>(text.size())};
        result = CU(cuModuleLoadDataEx)(&m, image.c_str(), 2, o, v);
        log = text.data();
        if (must_load) {
            EXPECT_EQ(CUDA_SUCCESS, result) << error_name(result) << "\n" << log;
        }
    }
    ~Module()
    {
        if (m)
            CU(cuModuleUnload)(m);
    }
    Module(const Module &) = delete;
    CUfunction get(const char *name) const
    {
        CUfunction f = nullptr;
        if (m)
            EXPECT_CU(CU(cuModuleGetFunction)(&f, m, name));
        return f;
    }
};

inline std::string read_file(const std::string &path)
{
    std::ifstream f(path, std::ios::binary);
    std::stringstream s;
    s << f.rdbuf();
    EXPECT_TRUE(f.good()) << path;
    return s.str();
}
/* The PTX of kernels/NAME.cu for sm_XX ("80", "90a"). */
inline std::string kernel_ptx(const std::string &name, const std::string &arch)
{
    return read_file(NIBBLE_BUILD_DIR "/ptx/" + name + "_sm" + arch + ".ptx");
}

struct Dim {
    unsigned x = 1, y = 1, z = 1;
    Dim(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
/* Launches and waits.  Arguments are passed as they are: their types must be those of the kernel. */
template <class... Args>
CUresult launch(CUfunction f, Dim grid, Dim block, unsigned shared, Args... args)
{
    void *p[] = {static_cast<void *>(&args)..., nullptr};
    CUresult r = CU(cuLaunchKernel)(f, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared, nullptr, p, nullptr);
    return r != CUDA_SUCCESS ? r : CU(cuCtxSynchronize)();
}

/* ---- one instruction over many values ----
 *
 * apply("add.s32 %d, %a, %b;", "b32", {"b32", "b32"}, n, {a, b}) runs the statement in one thread a value, 128 threads a block.
 * %a, %b, %c, %e are the inputs, %d is the result, in registers of the types given.  `target` and `version` head the module. */
inline std::string op_module(const std::string &statement, const std::string &d_type,
                             const std::vector<std::string> &types, const std::string &target = "sm_80")
{
    static const char *const names[] = {"%a", "%b", "%c", "%e"};
    auto bytes = [](const std::string &t) { return t.substr(1) == "8" ? 1 : std::stoi(t.substr(1)) / 8; };
    auto reg = [](const std::string &t) { return t == "b8" ? std::string("b16") : t; };
    std::string s = ".version 8.3\n.target " + target + "\n.address_size 64\n.visible .entry k(.param .u64 p_d";
    for (size_t i = 0; i < types.size(); i++)
        s += ", .param .u64 p_" + std::to_string(i);
    s += ", .param .u32 p_n)\n{\n.reg .pred %live;\n.reg .b32 %i, %n, %cta, %cn, %tx;\n.reg .b64 %p, %o;\n.reg ." +
         reg(d_type) + " %d;\n";
    for (size_t i = 0; i < types.size(); i++)
        s += ".reg ." + reg(types[i]) + " " + names[i] + ";\n";
    s += "mov.u32 %cta, %ctaid.x;\nmov.u32 %cn, %ntid.x;\nmov.u32 %tx, %tid.x;\nmad.lo.u32 %i, %cta, %cn, %tx;\n"
         "ld.param.u32 %n, [p_n];\nsetp.lt.u32 %live, %i, %n;\n@!%live bra END;\n";
    for (size_t i = 0; i < types.size(); i++)
        s += "ld.param.u64 %p, [p_" + std::to_string(i) + "];\nmul.wide.u32 %o, %i, " +
             std::to_string(bytes(types[i])) + ";\nadd.u64 %p, %p, %o;\nld.global." + types[i] + " " + names[i] +
             ", [%p];\n";
    s += statement + "\nld.param.u64 %p, [p_d];\nmul.wide.u32 %o, %i, " + std::to_string(bytes(d_type)) +
         ";\nadd.u64 %p, %p, %o;\nst.global." + d_type + " [%p], %d;\nEND:\nret;\n}\n";
    return s;
}

template <class D, class... In>
std::vector<D> apply(const std::string &statement, const std::string &d_type, const std::vector<std::string> &types,
                     const std::string &target, const std::vector<In> &...in)
{
    size_t sizes[] = {in.size()...};
    unsigned n = unsigned(sizes[0]);
    Module m(op_module(statement, d_type, types, target));
    std::vector<D> none;
    if (!m.m)
        return none;
    Buffer<D> d(n);
    auto run = [&](const auto &...b) { return launch(m.get("k"), Dim((n + 127) / 128), Dim(128), 0, d.p, b.p..., n); };
    CUresult r = run(Buffer<In>(in)...);
    EXPECT_EQ(CUDA_SUCCESS, r) << statement << ": " << error_name(r) << "\n" << report();
    return r == CUDA_SUCCESS ? d.get() : none;
}

} // namespace emu

#endif
