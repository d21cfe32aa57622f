/* Functions by name. */
#include <dlfcn.h>

#include <cstring>

#include "driver/call.h"

namespace ptxemu::driver
{
namespace
{
/* From which CUDA version on a name means a later version of the function.  Those that are not here: from 3.2 on. */
struct Since {
    const char *symbol;
    int version;
};
const Since table[] = {
    {"cuCtxCreate_v4", 12050},
    {"cuMemHostRegister_v2", 6050},
    {"cuDevicePrimaryCtxRelease_v2", 11000},
    {"cuDevicePrimaryCtxReset_v2", 11000},
    {"cuDevicePrimaryCtxSetFlags_v2", 11000},
    {"cuDeviceGetUuid_v2", 11040},
    {"cuStreamBeginCapture_v2", 10010},
    {"cuStreamGetCaptureInfo_v3", 12030},
    {"cuStreamUpdateCaptureDependencies_v2", 12030},
    {"cuGraphInstantiateWithFlags", 11040},
    {"cuGraphExecUpdate_v2", 12000},
    {"cuGraphAddKernelNode_v2", 12000},
    {"cuGraphKernelNodeGetParams_v2", 12000},
    {"cuGraphKernelNodeSetParams_v2", 12000},
    {"cuGraphExecKernelNodeSetParams_v2", 12000},
    {"cuGraphGetEdges_v2", 12030},
    {"cuGraphNodeGetDependencies_v2", 12030},
    {"cuGraphNodeGetDependentNodes_v2", 12030},
    {"cuGraphAddDependencies_v2", 12030},
    {"cuGraphRemoveDependencies_v2", 12030},
    {"cuEventElapsedTime_v2", 12080},
    {"cuMemAdvise_v2", 12020},
    {"cuMemPrefetchAsync_v2", 12020},
    {"cuGetProcAddress_v2", 12000},
};

int since(const std::string &symbol)
{
    for (const Since &s : table)
        if (symbol == s.symbol)
            return s.version;
    return 3020;
}

/* This library, whatever it was loaded as. */
void *own_library()
{
    static void *const handle = [] {
        Dl_info info;
        return dladdr(reinterpret_cast<void *>(&cuInit), &info) ? dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD)
                                                                : nullptr;
    }();
    return handle;
}

/* The newest version of `name` that a program of CUDA `version` knows.  *too_new: there is only a later one. */
void *resolve(const std::string &name, int version, bool *too_new)
{
    *too_new = false;
    constexpr int newest = 4;
    for (int v = newest; v >= 0; v--) {
        /* From 12.0 on the plain name of this one stands for a function of another name. */
        if (v == 0 && name != "cuGraphInstantiate")
            break;
        std::string symbol = v == 0 ? "cuGraphInstantiateWithFlags" : v == 1 ? name : name + "_v" + std::to_string(v);
        void *p = dlsym(own_library(), symbol.c_str());
        if (p && version >= (v == 0 ? 12000 : since(symbol)))
            return p;
        *too_new |= p != nullptr;
    }
    return nullptr;
}
} // namespace
} // namespace ptxemu::driver

using namespace ptxemu::driver;

CUresult cuGetProcAddress(const char *name, void **out, int version, cuuint64_t flags,
                          CUdriverProcAddressQueryResult *status)
{
    if (!name || !out || strncmp(name, "cu", 2) != 0 || (flags & ~uint64_t(CU_GET_PROC_ADDRESS_LEGACY_STREAM)))
        return CUDA_ERROR_INVALID_VALUE;
    bool too_new = false;
    *out = strstr(name, "_v") ? nullptr : resolve(name, version, &too_new);
    if (status)
        *status = *out      ? CU_GET_PROC_ADDRESS_SUCCESS
                  : too_new ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
                            : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *out || status ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

CUresult cuGetExportTable(const void **, const CUuuid *)
{
    return CUDA_ERROR_NOT_FOUND; /* tables of what is not documented */
}
