/* Modules. */
#include "driver/module.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>

#include "driver/fatbin.h"

namespace ptxemu::driver
{
namespace
{
constexpr unsigned PTX_MAJOR = 9, PTX_MINOR = 0; /* the newest .version that we know */

/* Module-scope variables are device memory of their own: zeros, then their initialisers. */
class OnHeap : public GlobalAllocator
{
  public:
    OnHeap(Heap &heap, unsigned device, std::vector<uint64_t> *made) : heap_(heap), device_(device), made_(made) {}
    uint64_t allocate(const std::string &name, Space space, size_t bytes, size_t align) override
    {
        AllocKind kind = space == Space::constant ? AllocKind::module_const : AllocKind::module_global;
        uint64_t address = heap_.allocate(device_, std::max<size_t>(bytes, 1), align, kind, name, true);
        if (!address) {
            exhausted = true;
            return 0;
        }
        heap_.mark_written(address, bytes);
        made_->push_back(address);
        return address;
    }
    bool exhausted = false;

  private:
    Heap &heap_;
    unsigned device_;
    std::vector<uint64_t> *made_;
};

/* The .version that a module begins with, read before the rest, which may use what we cannot parse. */
bool leading_version(const char *text, unsigned *major, unsigned *minor)
{
    for (const char *p = text; *p;) {
        if (isspace(static_cast<unsigned char>(*p))) {
            p++;
        } else if (!strncmp(p, "//", 2)) {
            p += strcspn(p, "\n");
        } else if (!strncmp(p, "/*", 2)) {
            const char *end = strstr(p + 2, "*/");
            if (!end)
                return false;
            p = end + 2;
        } else {
            return sscanf(p, ".version %u.%u", major, minor) == 2;
        }
    }
    return false;
}

/* "" if a device of capability `sm` can run the module. */
std::string target_problem(const ptx::Module &m, unsigned sm)
{
    if (m.sm > sm)
        return format(".target sm_%u needs a newer device: this one is sm_%u", m.sm, sm);
    if (m.sm_suffix && m.sm != sm)
        return format(".target sm_%u%c runs on compute capability %u.%u only: this device is sm_%u", m.sm, m.sm_suffix,
                      m.sm / 10, m.sm % 10, sm);
    return "";
}

struct Failure {
    CUresult result;
    std::string why;
};

Failure load_text(Call &c, const char *text, LoadedModule *module)
{
    Device &d = *c.context->device;
    unsigned major = 0, minor = 0;
    if (leading_version(text, &major, &minor) && std::make_pair(major, minor) > std::make_pair(PTX_MAJOR, PTX_MINOR))
        return {CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
                format(".version %u.%u is newer than %u.%u", major, minor, PTX_MAJOR, PTX_MINOR)};
    OnHeap globals(c.s.heap, unsigned(d.ordinal), &module->allocations);
    try {
        ptx::Module parsed = ptx::parse(text, strlen(text));
        std::string problem = target_problem(parsed, d.limits.sm);
        if (!problem.empty())
            return {CUDA_ERROR_INVALID_PTX, problem};
        module->ptx_version = parsed.sm;
        module->code = decode(std::move(parsed), d.limits.sm, globals);
    } catch (const ptx::Error &e) {
        return {globals.exhausted ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_PTX, e.what()};
    }
    return {CUDA_SUCCESS, ""};
}

Failure load_image(Call &c, const void *image, LoadedModule *module)
{
    if (!strncmp(static_cast<const char *>(image), "\177ELF", 4))
        return {CUDA_ERROR_NO_BINARY_FOR_GPU, "the image is machine code (a cubin): the emulator executes PTX"};
    if (!is_fatbin(image))
        return load_text(c, static_cast<const char *>(image), module);
    std::string ptx, why;
    CUresult r = ptx_of_fatbin(image, c.context->device->limits.sm, &ptx, &why);
    return r == CUDA_SUCCESS ? load_text(c, ptx.c_str(), module) : Failure{r, why};
}
} // namespace

CUresult JitOptions::read(unsigned n, CUjit_option *options, void **values)
{
    if (n && (!options || !values))
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < n; i++) {
        bool error = options[i] == CU_JIT_ERROR_LOG_BUFFER || options[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES;
        switch (options[i]) {
        case CU_JIT_INFO_LOG_BUFFER:
        case CU_JIT_ERROR_LOG_BUFFER:
            log[error] = static_cast<char *>(values[i]);
            break;
        case CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES:
        case CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES:
            log_bytes[error] = unsigned(reinterpret_cast<uintptr_t>(values[i]));
            log_size_out[error] = &values[i];
            break;
        case CU_JIT_WALL_TIME:
            wall_time = &values[i];
            break;
        case CU_JIT_MAX_REGISTERS:
            max_registers = unsigned(reinterpret_cast<uintptr_t>(values[i]));
            break;
        /* Advice to a compiler that changes no result, and there is no compiler here. */
        case CU_JIT_OPTIMIZATION_LEVEL:
        case CU_JIT_TARGET_FROM_CUCONTEXT:
        case CU_JIT_FALLBACK_STRATEGY:
        case CU_JIT_GENERATE_DEBUG_INFO:
        case CU_JIT_LOG_VERBOSE:
        case CU_JIT_GENERATE_LINE_INFO:
        case CU_JIT_CACHE_MODE:
        case CU_JIT_FAST_COMPILE:
            break;
        default:
            return CUDA_ERROR_INVALID_VALUE;
        }
    }
    return CUDA_SUCCESS;
}

void JitOptions::write(bool error, const std::string &text) const
{
    size_t n = 0;
    if (log[error] && log_bytes[error]) {
        n = std::min(text.size(), log_bytes[error] - 1);
        memcpy(log[error], text.data(), n);
        log[error][n] = 0;
    } else if (error && !text.empty()) {
        fprintf(stderr, "ptxemu: module not loaded: %s\n", text.c_str()); /* nobody else would say why */
    }
    if (log_size_out[error])
        *log_size_out[error] = reinterpret_cast<void *>(n);
}

CUresult load_module(Call &c, const void *image, const JitOptions &options, CUmodule *out)
{
    if (!image || !out)
        return CUDA_ERROR_INVALID_VALUE;
    double begin = wall_seconds();
    auto module = std::make_shared<LoadedModule>();
    module->context = c.context.get();
    Failure f = load_image(c, image, module.get());
    options.write(true, f.why);
    options.write(false, "");
    if (f.result != CUDA_SUCCESS) {
        for (uint64_t address : module->allocations)
            c.s.heap.release(address);
        return f.result;
    }
    for (auto &fn : module->code->functions)
        if (options.max_registers)
            fn->regs_for_occupancy = std::min(fn->regs_for_occupancy, options.max_registers);
    if (options.wall_time) { /* milliseconds, a float in the pointer's place */
        float ms = float((wall_seconds() - begin) * 1e3);
        memcpy(options.wall_time, &ms, sizeof ms);
    }
    *out = c.s.modules.add(module);
    return CUDA_SUCCESS;
}

CUresult unload_module(Call &c, CUmodule h)
{
    std::shared_ptr<LoadedModule> module = c.s.modules.find(h);
    if (!module)
        return CUDA_ERROR_INVALID_HANDLE;
    CUresult r = c.wait_context(*module->context);
    for (auto &f : module->functions)
        c.s.functions.remove(f.second);
    for (uint64_t address : module->allocations)
        c.s.heap.release(address);
    c.s.modules.remove(h);
    return r;
}

CUresult get_function(Call &c, CUmodule h, const std::string &name, CUfunction *out)
{
    std::shared_ptr<LoadedModule> module = c.s.modules.find(h);
    if (!module)
        return CUDA_ERROR_INVALID_HANDLE;
    auto it = module->code->by_name.find(name);
    if (it == module->code->by_name.end() || !it->second->is_entry)
        return CUDA_ERROR_NOT_FOUND;
    CUfunction &known = module->functions[name];
    if (!known) {
        auto f = std::make_shared<FunctionObject>();
        f->module = module;
        f->code = it->second;
        f->context = module->context;
        unsigned limit = module->context->device->limits.max_shared_per_block;
        f->max_dynamic_shared = limit - std::min(limit, f->code->shared_bytes);
        known = c.s.functions.add(f);
    }
    *out = known;
    return CUDA_SUCCESS;
}

CUresult get_global(Call &c, CUmodule h, const char *name, CUdeviceptr *address, size_t *bytes)
{
    std::shared_ptr<LoadedModule> module = c.s.modules.find(h);
    if (!module)
        return CUDA_ERROR_INVALID_HANDLE;
    auto it = module->code->globals.find(name);
    if (it == module->code->globals.end())
        return CUDA_ERROR_NOT_FOUND;
    if (address)
        *address = it->second.address;
    if (bytes)
        *bytes = it->second.bytes;
    return CUDA_SUCCESS;
}

namespace
{
CUresult load_call(const char *function, CUmodule *out, const void *image, unsigned n, CUjit_option *options,
                   void **values)
{
    return call(function, CONTEXT | UNSAFE_IN_CAPTURE, [&](Call &c) {
        JitOptions jit;
        CUresult r = jit.read(n, options, values);
        return r == CUDA_SUCCESS ? load_module(c, image, jit, out) : r;
    });
}

bool read_file(const char *path, std::string *bytes)
{
    std::ifstream file(path, std::ios::binary);
    std::stringstream all;
    all << file.rdbuf();
    *bytes = all.str();
    return file.good() && !bytes->empty();
}
} // namespace
} // namespace ptxemu::driver

using namespace ptxemu::driver;

CUresult cuModuleLoadData(CUmodule *out, const void *image)
{
    return load_call(__func__, out, image, 0, nullptr, nullptr);
}

CUresult cuModuleLoadDataEx(CUmodule *out, const void *image, unsigned n, CUjit_option *options, void **values)
{
    return load_call(__func__, out, image, n, options, values);
}

CUresult cuModuleLoadFatBinary(CUmodule *out, const void *image)
{
    return load_call(__func__, out, image, 0, nullptr, nullptr);
}

CUresult cuModuleLoad(CUmodule *out, const char *path)
{
    return call(__func__, CONTEXT | UNSAFE_IN_CAPTURE, [&](Call &c) {
        std::string bytes;
        if (!path || !out)
            return CUDA_ERROR_INVALID_VALUE;
        return read_file(path, &bytes) ? load_module(c, bytes.c_str(), JitOptions(), out) : CUDA_ERROR_FILE_NOT_FOUND;
    });
}

CUresult cuModuleUnload(CUmodule h)
{
    return call(__func__, CONTEXT | EVEN_AFTER_FAULT | UNSAFE_IN_CAPTURE, [&](Call &c) { return unload_module(c, h); });
}

CUresult cuModuleGetFunction(CUfunction *out, CUmodule h, const char *name)
{
    return call(__func__, CONTEXT,
                [&](Call &c) { return out && name ? get_function(c, h, name, out) : CUDA_ERROR_INVALID_VALUE; });
}

CUresult cuModuleGetFunctionCount(unsigned *count, CUmodule h)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        std::shared_ptr<LoadedModule> module = c.s.modules.find(h);
        if (!count || !module)
            return count ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
        auto &all = module->code->functions;
        *count = unsigned(std::count_if(all.begin(), all.end(), [](auto &f) { return f->is_entry; }));
        return CUDA_SUCCESS;
    });
}

CUresult cuModuleEnumerateFunctions(CUfunction *out, unsigned count, CUmodule h)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        std::shared_ptr<LoadedModule> module = c.s.modules.find(h);
        if (!out || !module)
            return out ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
        unsigned n = 0;
        for (auto &f : module->code->functions)
            if (f->is_entry && n < count)
                get_function(c, h, f->name, &out[n++]);
        return CUDA_SUCCESS;
    });
}

CUresult cuModuleGetGlobal(CUdeviceptr *address, size_t *bytes, CUmodule h, const char *name)
{
    return call(__func__, CONTEXT,
                [&](Call &c) { return name ? get_global(c, h, name, address, bytes) : CUDA_ERROR_INVALID_VALUE; });
}

CUresult cuModuleGetLoadingMode(CUmoduleLoadingMode *mode)
{
    return call(__func__, NOTHING, [&](Call &) {
        if (!mode)
            return CUDA_ERROR_INVALID_VALUE;
        *mode = CU_MODULE_EAGER_LOADING;
        return CUDA_SUCCESS;
    });
}
