/* Libraries: modules that load themselves into whichever context uses them. */
#include "driver/library.h"

#include <fstream>
#include <sstream>

#include "driver/fatbin.h"
#include "driver/launch.h"
#include "driver/module.h"

namespace ptxemu::driver
{
namespace
{
/* The library's module in the current context. */
CUresult module_of(Call &c, Library &library, CUmodule *out)
{
    CUmodule &known = library.modules[c.context->handle];
    CUresult r = known ? CUDA_SUCCESS : load_module(c, library.image.data(), JitOptions(), &known);
    *out = known;
    return r;
}

CUresult load(Call &c, CUlibrary *out, const void *code, unsigned n_jit, CUjit_option *jit, void **jit_values,
              unsigned n_options)
{
    if (!out || !code)
        return CUDA_ERROR_INVALID_VALUE;
    if (n_options) /* host universal functions and "binary is preserved": neither is there */
        return CUDA_ERROR_NOT_SUPPORTED;
    JitOptions options;
    CUresult r = options.read(n_jit, jit, jit_values);
    if (r != CUDA_SUCCESS)
        return r;
    auto library = std::make_shared<Library>();
    const uint8_t *image = static_cast<const uint8_t *>(image_start(code));
    library->image.assign(image, image + image_bytes(image));
    /* Loaded at once, so that what is wrong with it is said here, where the log is. */
    CUmodule module = nullptr;
    r = load_module(c, library->image.data(), options, &module);
    if (r != CUDA_SUCCESS)
        return r;
    library->modules[c.context->handle] = module;
    *out = c.s.libraries.add(library);
    return CUDA_SUCCESS;
}

template <class Body>
CUresult library_call(const char *function, CUlibrary h, bool answerable, Body &&body)
{
    return call(function, CONTEXT, [&](Call &c) -> CUresult {
        std::shared_ptr<Library> library = c.s.libraries.find(h);
        if (!answerable)
            return CUDA_ERROR_INVALID_VALUE;
        CUmodule module = nullptr;
        CUresult r = library ? module_of(c, *library, &module) : CUDA_ERROR_INVALID_HANDLE;
        return r == CUDA_SUCCESS ? body(c, *library, module) : r;
    });
}
} // namespace

CUresult function_of_kernel(Call &c, CUkernel h, CUfunction *out)
{
    std::shared_ptr<Kernel> kernel = c.s.kernels.find(h);
    std::shared_ptr<Library> library = kernel ? c.s.libraries.find(kernel->library) : nullptr;
    CUmodule module = nullptr;
    CUresult r = library ? module_of(c, *library, &module) : CUDA_ERROR_INVALID_HANDLE;
    return r == CUDA_SUCCESS ? get_function(c, module, kernel->name, out) : r;
}

} // namespace ptxemu::driver

using namespace ptxemu::driver;

CUresult cuLibraryLoadData(CUlibrary *out, const void *code, CUjit_option *jit, void **jit_values, unsigned n_jit,
                           CUlibraryOption *, void **, unsigned n_options)
{
    return call(__func__, CONTEXT | UNSAFE_IN_CAPTURE,
                [&](Call &c) { return load(c, out, code, n_jit, jit, jit_values, n_options); });
}

CUresult cuLibraryLoadFromFile(CUlibrary *out, const char *path, CUjit_option *jit, void **jit_values, unsigned n_jit,
                               CUlibraryOption *, void **, unsigned n_options)
{
    return call(__func__, CONTEXT | UNSAFE_IN_CAPTURE, [&](Call &c) {
        if (!path)
            return CUDA_ERROR_INVALID_VALUE;
        std::ifstream file(path, std::ios::binary);
        std::stringstream all;
        all << file.rdbuf();
        std::string bytes = all.str();
        return file.good() && !bytes.empty() ? load(c, out, bytes.c_str(), n_jit, jit, jit_values, n_options)
                                             : CUDA_ERROR_FILE_NOT_FOUND;
    });
}

CUresult cuLibraryUnload(CUlibrary h)
{
    return call(__func__, CONTEXT | EVEN_AFTER_FAULT | UNSAFE_IN_CAPTURE, [&](Call &c) {
        std::shared_ptr<Library> library = c.s.libraries.find(h);
        if (!library)
            return CUDA_ERROR_INVALID_HANDLE;
        for (auto &m : library->modules)
            unload_module(c, m.second);
        for (auto &k : library->kernels)
            c.s.kernels.remove(k.second);
        c.s.libraries.remove(h);
        return CUDA_SUCCESS;
    });
}

CUresult cuLibraryGetKernel(CUkernel *out, CUlibrary h, const char *name)
{
    return library_call(__func__, h, out && name, [&](Call &c, Library &library, CUmodule module) {
        CUfunction f = nullptr;
        CUresult r = get_function(c, module, name, &f);
        if (r != CUDA_SUCCESS)
            return r;
        CUkernel &known = library.kernels[name];
        if (!known) {
            auto kernel = std::make_shared<Kernel>();
            kernel->library = h;
            kernel->name = name;
            known = c.s.kernels.add(kernel);
        }
        *out = known;
        return CUDA_SUCCESS;
    });
}

CUresult cuLibraryGetModule(CUmodule *out, CUlibrary h)
{
    return library_call(__func__, h, out, [&](Call &, Library &, CUmodule module) {
        *out = module;
        return CUDA_SUCCESS;
    });
}

CUresult cuLibraryGetGlobal(CUdeviceptr *address, size_t *bytes, CUlibrary h, const char *name)
{
    return library_call(__func__, h, name, [&](Call &c, Library &, CUmodule module) {
        return get_global(c, module, name, address, bytes);
    });
}

CUresult cuKernelGetFunction(CUfunction *out, CUkernel kernel)
{
    return call(__func__, CONTEXT,
                [&](Call &c) { return out ? function_of_kernel(c, kernel, out) : CUDA_ERROR_INVALID_VALUE; });
}

CUresult cuKernelGetLibrary(CUlibrary *out, CUkernel h)
{
    return call(__func__, INIT, [&](Call &c) {
        std::shared_ptr<Kernel> kernel = c.s.kernels.find(h);
        if (!out || !kernel)
            return out ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
        *out = kernel->library;
        return CUDA_SUCCESS;
    });
}

CUresult cuKernelGetName(const char **out, CUkernel h)
{
    return call(__func__, INIT, [&](Call &c) {
        std::shared_ptr<Kernel> kernel = c.s.kernels.find(h);
        if (!out || !kernel)
            return out ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
        *out = kernel->name.c_str();
        return CUDA_SUCCESS;
    });
}

namespace
{
/* The function of a kernel on one device: the current context's. */
template <class Body>
CUresult kernel_attribute(const char *name, CUkernel kernel, CUdevice dev, bool answerable, Body &&body)
{
    return call(name, CONTEXT, [&](Call &c) -> CUresult {
        if (!answerable)
            return CUDA_ERROR_INVALID_VALUE;
        if (dev != c.context->device->ordinal)
            return dev < 0 || size_t(dev) >= c.s.devices.size() ? CUDA_ERROR_INVALID_DEVICE : CUDA_ERROR_NOT_SUPPORTED;
        CUfunction h = nullptr;
        CUresult r = function_of_kernel(c, kernel, &h);
        return r == CUDA_SUCCESS ? body(*c.s.functions.find(h)) : r;
    });
}
} // namespace

CUresult cuKernelGetAttribute(int *v, CUfunction_attribute attribute, CUkernel kernel, CUdevice dev)
{
    return kernel_attribute(__func__, kernel, dev, v,
                            [&](FunctionObject &f) { return get_attribute(f, attribute, v); });
}

CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int v, CUkernel kernel, CUdevice dev)
{
    return kernel_attribute(__func__, kernel, dev, true,
                            [&](FunctionObject &f) { return set_attribute(f, attribute, v); });
}
