/* Loading modules. */
#ifndef PTXEMU_DRIVER_MODULE_H
#define PTXEMU_DRIVER_MODULE_H

#include "driver/call.h"

namespace ptxemu::driver
{

/* Options of cuModuleLoadDataEx, as far as they say anything here. */
struct JitOptions {
    char *log[2] = {nullptr, nullptr}; /* info, error */
    size_t log_bytes[2] = {0, 0};
    void **log_size_out[2] = {nullptr, nullptr};
    void **wall_time = nullptr;
    unsigned max_registers = 0;
    CUresult read(unsigned n, CUjit_option *options, void **values);
    void write(bool error, const std::string &text) const;
};

/* Loads PTX text (NUL-terminated), or a fatbin, into the current context. */
CUresult load_module(Call &c, const void *image, const JitOptions &options, CUmodule *out);
CUresult unload_module(Call &c, CUmodule h);
CUresult get_function(Call &c, CUmodule h, const std::string &name, CUfunction *out);
CUresult get_global(Call &c, CUmodule h, const char *name, CUdeviceptr *address, size_t *bytes);

} // namespace ptxemu::driver

#endif
