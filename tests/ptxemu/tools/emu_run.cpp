/* emu_run: launches one kernel of a PTX file or fatbin from the command line, on the emulator or on a real driver.
 *
 *     emu_run build/ptx/classic_sm80.ptx transpose_padded --grid 2,2 --block 32,8 out:f32:4096 f32:4096:iota i32=64 i32=64
 */
#include <cuda.h>
#include <dlfcn.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace
{

const char USAGE[] =
    "usage: emu_run FILE KERNEL [--grid X,Y,Z] [--block X,Y,Z] [--shared BYTES] ARGUMENT...\n"
    "\n"
    "ARGUMENT is a value or an array, in the order of the kernel's parameters:\n"
    "  i32=5  u32=5  i64=5  u64=5  f32=1.5  f64=1.5        a value\n"
    "  f32:1024                                            an array in device memory, never written\n"
    "  f32:1024:zero   f32:1024:iota   f32:1024:random     filled: zeros; 0, 1, 2, ...; -1 to 1 (integers: 0 to 100)\n"
    "  out:f32:1024  (and so on)                           printed after the launch\n"
    "Types of arrays: i8 u8 i32 u32 i64 u64 f32 f64.\n"
    "\n"
    "NB_CUDA_DRIVER names the driver (default: libptxemu.so beside this program); the NB_EMU_ variables set up the "
    "emulator.\n"
    "Exit status: 0 the kernel ran, 1 it failed, 2 the command line was wrong.\n";

[[noreturn]] void die(int status, const std::string &why)
{
    fprintf(stderr, "emu_run: %s\n", why.c_str());
    exit(status);
}

#define FUNCTIONS(X)                                                                                                   \
    X(cuInit)                                                                                                          \
    X(cuDeviceGet)                                                                                                     \
    X(cuDevicePrimaryCtxRetain)                                                                                        \
    X(cuCtxSetCurrent)                                                                                                 \
    X(cuCtxSynchronize)                                                                                                \
    X(cuModuleLoadDataEx)                                                                                              \
    X(cuModuleGetFunction)                                                                                             \
    X(cuMemAlloc)                                                                                                      \
    X(cuMemcpyHtoD)                                                                                                    \
    X(cuMemcpyDtoH)                                                                                                    \
    X(cuFuncSetAttribute)                                                                                              \
    X(cuLaunchKernel)                                                                                                  \
    X(cuGetErrorName)
#define STR2(x) #x
#define STR(x)  STR2(x)

struct Driver {
#define X(name) decltype(&name) p_##name;
    FUNCTIONS(X)
#undef X
    Driver()
    {
        const char *named = getenv("NB_CUDA_DRIVER");
        std::string path =
            named && *named ? named : "libptxemu.so"; /* found through the run path: beside the program */
        void *so = dlopen(path.c_str(), RTLD_NOW);
        if (!so)
            die(1, std::string("the driver cannot be loaded: ") + dlerror());
#define X(name)                                                                                                        \
    p_##name = reinterpret_cast<decltype(&name)>(dlsym(so, STR(name)));                                                \
    if (!p_##name)                                                                                                     \
        die(1, path + " has no " STR(name) ": is it a CUDA driver?");
        FUNCTIONS(X)
#undef X
    }
    void check(CUresult r, const std::string &what) const
    {
        const char *name = "an unknown error";
        if (r == CUDA_SUCCESS)
            return;
        p_cuGetErrorName(r, &name);
        die(1, what + ": " + name);
    }
};

enum class Kind { integer, floating };
struct TypeRow {
    const char *name;
    Kind kind;
    size_t bytes;
    bool is_signed;
};
const TypeRow types[] = {{"i8", Kind::integer, 1, true},   {"u8", Kind::integer, 1, false},
                         {"i32", Kind::integer, 4, true},  {"u32", Kind::integer, 4, false},
                         {"i64", Kind::integer, 8, true},  {"u64", Kind::integer, 8, false},
                         {"f32", Kind::floating, 4, true}, {"f64", Kind::floating, 8, true}};

const TypeRow &type_of(const std::string &name, const std::string &argument)
{
    for (const TypeRow &t : types)
        if (name == t.name)
            return t;
    die(2, "argument " + argument + ": " + name + " is not a type; expected i8 u8 i32 u32 i64 u64 f32 or f64");
}

void store(const TypeRow &t, void *p, double f, int64_t i)
{
    float single = float(f);
    if (t.kind == Kind::floating)
        memcpy(p, t.bytes == 4 ? static_cast<const void *>(&single) : &f, t.bytes);
    else
        memcpy(p, &i, t.bytes);
}

std::string show(const TypeRow &t, const uint8_t *p)
{
    char text[64];
    if (t.kind == Kind::floating) {
        float single;
        double f;
        memcpy(&single, p, 4);
        memcpy(&f, p, t.bytes == 8 ? 8 : 4);
        snprintf(text, sizeof text, "%.9g", t.bytes == 4 ? double(single) : f);
        return text;
    }
    uint64_t u = 0;
    memcpy(&u, p, t.bytes);
    if (t.is_signed && t.bytes < 8 && u >> (8 * t.bytes - 1))
        u |= ~uint64_t(0) << (8 * t.bytes);
    snprintf(text, sizeof text, t.is_signed ? "%lld" : "%llu", static_cast<long long>(u));
    return text;
}

struct Argument {
    std::string text;
    const TypeRow *type = nullptr;
    bool is_array = false, print = false;
    size_t n = 0;
    std::string fill;
    alignas(8) uint8_t value[8] = {}; /* what the kernel gets: the value, or the array's address */
    CUdeviceptr address = 0;
};

unsigned long long number(const std::string &s, const std::string &what)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(s.c_str(), &end, 0);
    if (s.empty() || s[0] == '-' || *end || errno)
        die(2, what + " is " + s + ", expected a number");
    return v;
}

Argument parse(const std::string &text)
{
    Argument a;
    a.text = text;
    std::string s = text;
    if (s.compare(0, 4, "out:") == 0) {
        a.print = true;
        s.erase(0, 4);
    }
    size_t equal = s.find('='), colon = s.find(':');
    if (equal != std::string::npos && !a.print) {
        a.type = &type_of(s.substr(0, equal), text);
        const std::string v = s.substr(equal + 1);
        char *end;
        double f = strtod(v.c_str(), &end);
        if (v.empty() || *end)
            die(2, "argument " + text + ": " + v + " is not a number");
        store(*a.type, a.value, f, strtoll(v.c_str(), nullptr, 0));
        return a;
    }
    if (colon == std::string::npos)
        die(2, "argument " + text + ": expected TYPE=VALUE or TYPE:COUNT[:zero|iota|random]");
    a.is_array = true;
    a.type = &type_of(s.substr(0, colon), text);
    std::string rest = s.substr(colon + 1);
    size_t second = rest.find(':');
    a.n = number(rest.substr(0, second), "the length in " + text);
    a.fill = second == std::string::npos ? "" : rest.substr(second + 1);
    if (!a.fill.empty() && a.fill != "zero" && a.fill != "iota" && a.fill != "random")
        die(2, "argument " + text + ": " + a.fill + " is not a way to fill; expected zero, iota or random");
    return a;
}

void allocate(const Driver &d, Argument *a)
{
    d.check(d.p_cuMemAlloc(&a->address, a->n ? a->n * a->type->bytes : 1), a->text);
    memcpy(a->value, &a->address, sizeof a->address);
    if (a->fill.empty() || a->n == 0)
        return;
    std::vector<uint8_t> bytes(a->n * a->type->bytes);
    uint64_t dice = 88172645463325252ull; /* xorshift: the same numbers in every run */
    for (size_t i = 0; i < a->n; i++) {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        bool random = a->fill == "random", iota = a->fill == "iota";
        store(*a->type, &bytes[i * a->type->bytes],
              random ? double(dice >> 11) * 0x1p-52 - 1
              : iota ? double(i)
                     : 0,
              random ? int64_t(dice % 101)
              : iota ? int64_t(i)
                     : 0);
    }
    d.check(d.p_cuMemcpyHtoD(a->address, bytes.data(), bytes.size()), a->text);
}

void print(const Driver &d, size_t place, const Argument &a)
{
    const size_t shown = a.n < 16 ? a.n : 16;
    std::vector<uint8_t> bytes(a.n * a.type->bytes);
    d.check(d.p_cuMemcpyDtoH(bytes.data(), a.address, bytes.size()), a.text);
    printf("argument %zu (%s x %zu):", place, a.type->name, a.n);
    for (size_t i = 0; i < shown; i++)
        printf(" %s", show(*a.type, &bytes[i * a.type->bytes]).c_str());
    printf(shown < a.n ? " ...\n" : "\n");
}

void dimensions(const std::string &text, const char *flag, unsigned out[3])
{
    std::stringstream s(text);
    std::string part;
    int k = 0;
    while (std::getline(s, part, ',')) {
        if (k == 3)
            die(2, std::string(flag) + " " + text + ": expected at most three numbers");
        out[k++] = unsigned(number(part, flag));
    }
    if (k == 0)
        die(2, std::string(flag) + ": expected one to three numbers");
}

CUfunction load(const Driver &d, const std::string &path, const std::string &kernel)
{
    std::ifstream f(path, std::ios::binary);
    if (!f)
        die(1, path + " cannot be read");
    std::stringstream text;
    text << f.rdbuf();
    const std::string image = text.str();
    std::vector<char> log(1 << 16, 0);
    CUjit_option options[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
    void *values[] = {log.data(), reinterpret_cast<void *>(log.size())};
    CUmodule m;
    CUresult r = d.p_cuModuleLoadDataEx(&m, image.c_str(), 2, options, values);
    d.check(r, path + (log[0] ? ": " + std::string(log.data()) : ""));
    CUfunction fn;
    d.check(d.p_cuModuleGetFunction(&fn, m, kernel.c_str()), "kernel " + kernel + " in " + path);
    return fn;
}

} // namespace

int main(int argc, char **argv)
{
    std::vector<std::string> words(argv + 1, argv + argc);
    unsigned grid[3] = {1, 1, 1}, block[3] = {32, 1, 1}, shared = 0;
    std::vector<std::string> names;
    std::vector<Argument> arguments;
    for (size_t i = 0; i < words.size(); i++) {
        const std::string &w = words[i];
        if (w == "--help" || w == "-h") {
            fputs(USAGE, stdout);
            return 0;
        }
        if (w == "--grid" || w == "--block" || w == "--shared") {
            if (i + 1 == words.size())
                die(2, w + " needs a value");
            const std::string &v = words[++i];
            if (w == "--shared")
                shared = unsigned(number(v, w));
            else
                dimensions(v, w.c_str(), w == "--grid" ? grid : block);
        } else if (w.compare(0, 2, "--") == 0) {
            die(2, w + " is not a flag; see --help");
        } else if (names.size() < 2) {
            names.push_back(w);
        } else {
            arguments.push_back(parse(w));
        }
    }
    if (names.size() < 2) {
        fputs(USAGE, stderr);
        return 2;
    }
    Driver d;
    CUdevice device;
    CUcontext context;
    d.check(d.p_cuInit(0), "cuInit");
    d.check(d.p_cuDeviceGet(&device, 0), "device 0");
    d.check(d.p_cuDevicePrimaryCtxRetain(&context, device), "the context of device 0");
    d.check(d.p_cuCtxSetCurrent(context), "the context of device 0");
    CUfunction fn = load(d, names[0], names[1]);
    std::vector<void *> values;
    for (Argument &a : arguments) {
        if (a.is_array)
            allocate(d, &a);
        values.push_back(a.value);
    }
    values.push_back(nullptr);
    if (shared > 48 << 10)
        d.check(d.p_cuFuncSetAttribute(fn, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, int(shared)), "--shared");
    d.check(d.p_cuLaunchKernel(fn, grid[0], grid[1], grid[2], block[0], block[1], block[2], shared, nullptr,
                               values.data(), nullptr),
            "the launch of " + names[1]);
    d.check(d.p_cuCtxSynchronize(), names[1]);
    for (size_t i = 0; i < arguments.size(); i++)
        if (arguments[i].print)
            print(d, i, arguments[i]);
    return 0;
}
