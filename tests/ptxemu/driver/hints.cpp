/* Advice: functions that make a real device faster and change no result.  Their arguments are checked, that is all. */
#include "driver/graph.h"
#include "driver/memory.h"

namespace ptxemu::driver
{
namespace
{
bool valid_location(const State &s, const CUmemLocation &where)
{
    switch (where.type) {
    case CU_MEM_LOCATION_TYPE_DEVICE:
        return where.id >= 0 && size_t(where.id) < s.devices.size();
    case CU_MEM_LOCATION_TYPE_HOST:
    case CU_MEM_LOCATION_TYPE_HOST_NUMA:
    case CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT:
        return true;
    default:
        return false;
    }
}

bool is_managed(const State &s, uint64_t address, size_t bytes)
{
    const Allocation *a = allocation_of(s, address, bytes);
    return bytes && a && a->kind == AllocKind::managed;
}

/* Attributes of a stream that are advice. */
bool known_attribute(CUstreamAttrID id)
{
    return id == CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW || id == CU_LAUNCH_ATTRIBUTE_PRIORITY ||
           id == CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY || id == CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN ||
           id == CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP;
}
} // namespace
} // namespace ptxemu::driver

using namespace ptxemu::driver;

CUresult cuMemPrefetchAsync(CUdeviceptr address, size_t bytes, CUmemLocation where, unsigned flags, CUstream stream)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        if (flags || !is_managed(c.s, address, bytes) || !valid_location(c.s, where))
            return CUDA_ERROR_INVALID_VALUE;
        return c.stream(stream) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
    });
}

CUresult cuMemAdvise(CUdeviceptr address, size_t bytes, CUmem_advise advice, CUmemLocation where)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        bool known = advice >= CU_MEM_ADVISE_SET_READ_MOSTLY && advice <= CU_MEM_ADVISE_UNSET_ACCESSED_BY;
        bool placed = advice == CU_MEM_ADVISE_SET_READ_MOSTLY || advice == CU_MEM_ADVISE_UNSET_READ_MOSTLY ||
                      advice == CU_MEM_ADVISE_UNSET_PREFERRED_LOCATION || valid_location(c.s, where);
        return known && placed && is_managed(c.s, address, bytes) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}

CUresult cuCtxResetPersistingL2Cache(void)
{
    return call(__func__, CONTEXT, [](Call &) { return CUDA_SUCCESS; });
}

CUresult cuStreamSetAttribute(CUstream h, CUstreamAttrID id, const CUstreamAttrValue *value)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        std::shared_ptr<Stream> stream = c.stream(h);
        if (!stream)
            return CUDA_ERROR_INVALID_HANDLE;
        if (!value || !known_attribute(id))
            return CUDA_ERROR_INVALID_VALUE;
        stream->attributes[id] = *value;
        if (id == CU_LAUNCH_ATTRIBUTE_PRIORITY)
            stream->priority = value->priority;
        return CUDA_SUCCESS;
    });
}

CUresult cuStreamGetAttribute(CUstream h, CUstreamAttrID id, CUstreamAttrValue *value)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        std::shared_ptr<Stream> stream = c.stream(h);
        if (!stream)
            return CUDA_ERROR_INVALID_HANDLE;
        if (!value || !known_attribute(id))
            return CUDA_ERROR_INVALID_VALUE;
        auto it = stream->attributes.find(id);
        *value = it == stream->attributes.end() ? CUstreamAttrValue{} : it->second;
        if (id == CU_LAUNCH_ATTRIBUTE_PRIORITY)
            value->priority = stream->priority;
        return CUDA_SUCCESS;
    });
}

CUresult cuStreamCopyAttributes(CUstream to, CUstream from)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        std::shared_ptr<Stream> target = c.stream(to), source = c.stream(from);
        if (!target || !source)
            return CUDA_ERROR_INVALID_HANDLE;
        target->attributes = source->attributes;
        return CUDA_SUCCESS;
    });
}

/* There is no profiler beside the process; NB_EMU_PROFILE counts from the first launch to the last. */
CUresult cuProfilerStart(void)
{
    return call(__func__, CONTEXT, [](Call &) { return CUDA_SUCCESS; });
}

CUresult cuProfilerStop(void)
{
    return call(__func__, CONTEXT, [](Call &) { return CUDA_SUCCESS; });
}
