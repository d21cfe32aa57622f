/* Memory: allocation, release, and questions about pointers. */
#include "driver/memory.h"

#include <algorithm>

#include "driver/graph.h"

namespace ptxemu::driver
{

const Allocation *allocation_of(const State &s, uint64_t address, size_t bytes)
{
    const Allocation *a = s.heap.find(address);
    return a && !a->freed && bytes <= a->bytes && address - a->address <= a->bytes - bytes ? a : nullptr;
}

bool pageable(const State &s, uint64_t address)
{
    return !s.heap.find(address);
}

namespace
{
constexpr size_t ALIGNMENT = 512; /* of cuMemAlloc; hardware promises 256 at least */
constexpr size_t HOST_ALIGNMENT = 4096;

bool is_host(const Allocation &a)
{
    return a.kind == AllocKind::pinned || a.kind == AllocKind::registered;
}

/* Memory that queued frees will give back counts as free: the real driver waits for them before it gives up. */
uint64_t allocate(Call &c, size_t bytes, size_t align, AllocKind kind, const char *function)
{
    Device &d = *c.context->device;
    auto attempt = [&] {
        return c.s.heap.allocate(unsigned(d.ordinal), bytes, align, kind, function, kind != AllocKind::device);
    };
    uint64_t address = attempt();
    if (!address && !c.s.pool_blocks.empty()) {
        c.wait_device(d);
        address = attempt();
    }
    if (address && kind != AllocKind::device)
        c.s.heap.mark_written(address, bytes); /* the host may write it at any time */
    return address;
}

CUresult allocate_for_context(Call &c, CUdeviceptr *out, size_t bytes, AllocKind kind, const char *function)
{
    if (!out || !bytes)
        return CUDA_ERROR_INVALID_VALUE;
    uint64_t address = allocate(c, bytes, kind == AllocKind::pinned ? HOST_ALIGNMENT : ALIGNMENT, kind, function);
    if (!address)
        return CUDA_ERROR_OUT_OF_MEMORY;
    c.context->allocations.insert(address);
    *out = address;
    return CUDA_SUCCESS;
}

constexpr unsigned HOST_FLAGS = CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED;

CUresult allocate_host(Call &c, void **out, size_t bytes, unsigned flags, const char *function)
{
    if (!out || (flags & ~HOST_FLAGS))
        return CUDA_ERROR_INVALID_VALUE;
    CUdeviceptr address = 0;
    CUresult r = allocate_for_context(c, &address, bytes, AllocKind::pinned, function);
    if (r == CUDA_SUCCESS) {
        c.s.host_flags[address] = flags;
        *out = reinterpret_cast<void *>(address);
    }
    return r;
}

/* Frees an allocation that starts at the address, if `right` says that it is of the right kind.  Waits for the device
 * first, as the real driver does. */
template <class Right>
CUresult free_if(Call &c, uint64_t address, CUresult otherwise, Right &&right)
{
    const Allocation *a = c.s.heap.find(address);
    if (!a || a->freed || a->address != address || !right(*a))
        return otherwise;
    CUresult r = c.wait_device(*c.context->device);
    c.s.release_allocation(address);
    return r;
}
} // namespace
} // namespace ptxemu::driver

using namespace ptxemu;
using namespace ptxemu::driver;

CUresult cuMemAlloc(CUdeviceptr *out, size_t bytes)
{
    return call(__func__, CONTEXT | UNSAFE_IN_CAPTURE,
                [&](Call &c) { return allocate_for_context(c, out, bytes, AllocKind::device, "cuMemAlloc"); });
}

CUresult cuMemAllocManaged(CUdeviceptr *out, size_t bytes, unsigned flags)
{
    return call(__func__, CONTEXT | UNSAFE_IN_CAPTURE, [&](Call &c) {
        if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST)
            return CUDA_ERROR_INVALID_VALUE;
        return allocate_for_context(c, out, bytes, AllocKind::managed, "cuMemAllocManaged");
    });
}

CUresult cuMemAllocPitch(CUdeviceptr *out, size_t *pitch, size_t width, size_t height, unsigned element)
{
    return call(__func__, CONTEXT | UNSAFE_IN_CAPTURE, [&](Call &c) {
        if (!pitch || (element != 4 && element != 8 && element != 16))
            return CUDA_ERROR_INVALID_VALUE;
        size_t row = (width + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        CUresult r = allocate_for_context(c, out, row * height, AllocKind::device, "cuMemAllocPitch");
        if (r == CUDA_SUCCESS)
            *pitch = row;
        return r;
    });
}

CUresult cuMemFree(CUdeviceptr address)
{
    return call(__func__, CONTEXT | UNSAFE_IN_CAPTURE, [&](Call &c) {
        if (!address)
            return CUDA_SUCCESS;
        return free_if(c, address, CUDA_ERROR_INVALID_VALUE,
                       [](const Allocation &a) { return a.kind == AllocKind::device || a.kind == AllocKind::managed; });
    });
}

CUresult cuMemAllocHost(void **out, size_t bytes)
{
    return call(__func__, CONTEXT | UNSAFE_IN_CAPTURE,
                [&](Call &c) { return allocate_host(c, out, bytes, 0, "cuMemAllocHost"); });
}

CUresult cuMemHostAlloc(void **out, size_t bytes, unsigned flags)
{
    return call(__func__, CONTEXT | UNSAFE_IN_CAPTURE,
                [&](Call &c) { return allocate_host(c, out, bytes, flags, "cuMemHostAlloc"); });
}

CUresult cuMemFreeHost(void *p)
{
    return call(__func__, CONTEXT | UNSAFE_IN_CAPTURE, [&](Call &c) {
        if (!p)
            return CUDA_SUCCESS;
        return free_if(c, reinterpret_cast<uint64_t>(p), CUDA_ERROR_INVALID_VALUE,
                       [](const Allocation &a) { return a.kind == AllocKind::pinned; });
    });
}

CUresult cuMemHostRegister(void *p, size_t bytes, unsigned flags)
{
    return call(__func__, CONTEXT | UNSAFE_IN_CAPTURE, [&](Call &c) {
        constexpr unsigned known = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP;
        uint64_t address = reinterpret_cast<uint64_t>(p);
        if (!p || !bytes || (flags & ~known))
            return flags & (CU_MEMHOSTREGISTER_IOMEMORY | CU_MEMHOSTREGISTER_READ_ONLY) ? CUDA_ERROR_NOT_SUPPORTED
                                                                                        : CUDA_ERROR_INVALID_VALUE;
        const Allocation *first = c.s.heap.find(address), *last = c.s.heap.find(address + bytes - 1);
        if ((first && !first->freed) || (last && !last->freed))
            return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
        if (!c.s.heap.add_host(address, bytes, AllocKind::registered))
            return CUDA_ERROR_INVALID_VALUE;
        c.context->allocations.insert(address);
        c.s.host_flags[address] = flags;
        return CUDA_SUCCESS;
    });
}

CUresult cuMemHostUnregister(void *p)
{
    return call(__func__, CONTEXT | UNSAFE_IN_CAPTURE, [&](Call &c) {
        return free_if(c, reinterpret_cast<uint64_t>(p), CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED,
                       [](const Allocation &a) { return a.kind == AllocKind::registered; });
    });
}

CUresult cuMemHostGetDevicePointer(CUdeviceptr *out, void *p, unsigned flags)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        const Allocation *a = allocation_of(c.s, reinterpret_cast<uint64_t>(p), 1);
        if (!out || flags || !a || !is_host(*a))
            return CUDA_ERROR_INVALID_VALUE;
        *out = reinterpret_cast<CUdeviceptr>(p); /* unified addressing: one address on both sides */
        return CUDA_SUCCESS;
    });
}

CUresult cuMemHostGetFlags(unsigned *flags, void *p)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        auto it = c.s.host_flags.find(reinterpret_cast<uint64_t>(p));
        if (!flags || it == c.s.host_flags.end())
            return CUDA_ERROR_INVALID_VALUE;
        *flags = it->second;
        return CUDA_SUCCESS;
    });
}

CUresult cuMemGetInfo(size_t *free, size_t *total)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        if (!free || !total)
            return CUDA_ERROR_INVALID_VALUE;
        *free = c.s.heap.free_bytes(unsigned(c.context->device->ordinal));
        *total = c.context->device->memory;
        return CUDA_SUCCESS;
    });
}

CUresult cuMemGetAddressRange(CUdeviceptr *base, size_t *bytes, CUdeviceptr address)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        const Allocation *a = allocation_of(c.s, address, 1);
        if (!a)
            return CUDA_ERROR_NOT_FOUND;
        if (base)
            *base = a->address;
        if (bytes)
            *bytes = a->bytes;
        return CUDA_SUCCESS;
    });
}

namespace
{
template <class T>
CUresult give(void *out, T value)
{
    *static_cast<T *>(out) = value;
    return CUDA_SUCCESS;
}

/* One attribute of a pointer; `a` is null for memory that the driver does not know. */
CUresult pointer_attribute(Call &c, void *out, CUpointer_attribute attribute, uint64_t address, const Allocation *a)
{
    if (!a)
        return CUDA_ERROR_INVALID_VALUE;
    bool managed = a->kind == AllocKind::managed;
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: {
        CUcontext owner = nullptr;
        c.s.contexts.each([&](const Context &x) { owner = x.allocations.count(a->address) ? x.handle : owner; });
        return give(out, owner);
    }
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        return give(out, unsigned(is_host(*a) ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE));
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        return give(out, CUdeviceptr(address));
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        return is_host(*a) || managed ? give(out, reinterpret_cast<void *>(address)) : CUDA_ERROR_INVALID_VALUE;
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
        return give(out, 0u);
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
        return give(out, (unsigned long long)a->serial);
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
        return give(out, unsigned(managed));
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        return give(out, int(a->device));
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        return give(out, CUdeviceptr(a->address));
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        return give(out, a->bytes);
    case CU_POINTER_ATTRIBUTE_MAPPED:
        return give(out, 1u);
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE: {
        auto it = c.s.pool_blocks.find(a->address);
        return give(out, it == c.s.pool_blocks.end() ? CUmemoryPool(nullptr) : it->second.second);
    }
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

size_t attribute_bytes(CUpointer_attribute attribute)
{
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
    case CU_POINTER_ATTRIBUTE_MAPPED:
        return 4;
    default:
        return 8;
    }
}
} // namespace

CUresult cuPointerGetAttribute(void *out, CUpointer_attribute attribute, CUdeviceptr address)
{
    return call(__func__, INIT, [&](Call &c) {
        return out ? pointer_attribute(c, out, attribute, address, allocation_of(c.s, address, 1))
                   : CUDA_ERROR_INVALID_VALUE;
    });
}

/* Unlike the single question, this one gives zeros for a pointer that the driver does not know. */
CUresult cuPointerGetAttributes(unsigned n, CUpointer_attribute *attributes, void **out, CUdeviceptr address)
{
    return call(__func__, INIT, [&](Call &c) {
        if (!n || !attributes || !out)
            return CUDA_ERROR_INVALID_VALUE;
        const Allocation *a = allocation_of(c.s, address, 1);
        for (unsigned i = 0; i < n; i++)
            if (pointer_attribute(c, out[i], attributes[i], address, a) != CUDA_SUCCESS)
                std::fill_n(static_cast<uint8_t *>(out[i]), attribute_bytes(attributes[i]), uint8_t(0));
        return CUDA_SUCCESS;
    });
}
