/* Stream-ordered allocation.
 *
 * Memory is there as soon as the call returns, and goes when the queue comes to its release; memory that waits for its
 * release counts as used.  Allocations of a captured stream would be nodes of the graph, which is not supported:
 * CUDA_ERROR_NOT_SUPPORTED. */
#include <algorithm>

#include "driver/graph.h"
#include "driver/memory.h"

namespace ptxemu::driver
{
namespace
{
CUresult allocate(Call &c, CUdeviceptr *out, size_t bytes, CUmemoryPool pool_handle, CUstream h, const char *function)
{
    std::shared_ptr<Stream> stream = c.stream(h);
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    Device &device = *stream->context->device;
    std::shared_ptr<Pool> pool = c.s.pools.find(pool_handle ? pool_handle : device.current_pool);
    if (!pool || !out || !bytes)
        return CUDA_ERROR_INVALID_VALUE;
    if (stream->capture)
        return CUDA_ERROR_NOT_SUPPORTED;
    auto attempt = [&] {
        return c.s.heap.allocate(unsigned(pool->device->ordinal), bytes, 512, AllocKind::device, function);
    };
    uint64_t address = attempt();
    if (!address) { /* what waits for its release may be enough */
        c.wait_device(*pool->device);
        address = attempt();
    }
    if (!address)
        return CUDA_ERROR_OUT_OF_MEMORY;
    c.context->allocations.insert(address);
    c.s.pool_blocks[address] = {unsigned(pool->device->ordinal), pool->handle};
    pool->used += bytes;
    pool->used_high = std::max(pool->used_high, pool->used);
    *out = address;
    return CUDA_SUCCESS;
}

CUresult release(Call &c, CUdeviceptr address, CUstream h)
{
    std::shared_ptr<Stream> stream = c.stream(h);
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (!address)
        return CUDA_SUCCESS;
    const Allocation *a = c.s.heap.find(address);
    auto block = c.s.pool_blocks.find(address);
    bool ours = block != c.s.pool_blocks.end() || (a && a->kind == AllocKind::device);
    if (!a || a->freed || a->address != address || !ours || c.s.releasing.count(address))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = c.submit(stream, FreeWork{address});
    if (r == CUDA_SUCCESS)
        c.s.releasing.insert(address);
    return r;
}

template <class Body>
CUresult pool_call(const char *function, CUmemoryPool h, bool answerable, Body &&body)
{
    return call(function, INIT, [&](Call &c) -> CUresult {
        std::shared_ptr<Pool> pool = c.s.pools.find(h);
        return answerable && pool ? body(c, *pool) : CUDA_ERROR_INVALID_VALUE;
    });
}

template <class Body>
CUresult device_pool_call(const char *function, CUdevice dev, bool answerable, Body &&body)
{
    return call(function, INIT, [&](Call &c) -> CUresult {
        if (!answerable)
            return CUDA_ERROR_INVALID_VALUE;
        if (dev < 0 || size_t(dev) >= c.s.devices.size())
            return CUDA_ERROR_INVALID_DEVICE;
        return body(c, c.s.devices[size_t(dev)]);
    });
}
} // namespace
} // namespace ptxemu::driver

using namespace ptxemu::driver;

CUresult cuMemAllocAsync(CUdeviceptr *out, size_t bytes, CUstream stream)
{
    return call(__func__, CONTEXT,
                [&](Call &c) { return allocate(c, out, bytes, nullptr, stream, "cuMemAllocAsync"); });
}

CUresult cuMemAllocFromPoolAsync(CUdeviceptr *out, size_t bytes, CUmemoryPool pool, CUstream stream)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        return pool ? allocate(c, out, bytes, pool, stream, "cuMemAllocFromPoolAsync") : CUDA_ERROR_INVALID_VALUE;
    });
}

CUresult cuMemFreeAsync(CUdeviceptr address, CUstream stream)
{
    return call(__func__, CONTEXT, [&](Call &c) { return release(c, address, stream); });
}

CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *out, CUdevice dev)
{
    return device_pool_call(__func__, dev, out, [&](Call &, Device &d) {
        *out = d.default_pool;
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetMemPool(CUmemoryPool *out, CUdevice dev)
{
    return device_pool_call(__func__, dev, out, [&](Call &, Device &d) {
        *out = d.current_pool;
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceSetMemPool(CUdevice dev, CUmemoryPool pool)
{
    return device_pool_call(__func__, dev, pool, [&](Call &c, Device &d) {
        std::shared_ptr<Pool> found = c.s.pools.find(pool);
        if (!found || found->device != &d)
            return CUDA_ERROR_INVALID_VALUE;
        d.current_pool = pool;
        return CUDA_SUCCESS;
    });
}

CUresult cuMemPoolCreate(CUmemoryPool *out, const CUmemPoolProps *props)
{
    return call(__func__, INIT, [&](Call &c) {
        if (!out || !props || props->allocType != CU_MEM_ALLOCATION_TYPE_PINNED)
            return CUDA_ERROR_INVALID_VALUE;
        if (props->location.type != CU_MEM_LOCATION_TYPE_DEVICE || props->handleTypes != CU_MEM_HANDLE_TYPE_NONE ||
            props->maxSize || props->usage)
            return CUDA_ERROR_NOT_SUPPORTED;
        if (props->location.id < 0 || size_t(props->location.id) >= c.s.devices.size())
            return CUDA_ERROR_INVALID_DEVICE;
        auto pool = std::make_shared<Pool>();
        pool->device = &c.s.devices[size_t(props->location.id)];
        *out = c.s.pools.add(pool);
        return CUDA_SUCCESS;
    });
}

/* Blocks that are still in use stay until they are freed. */
CUresult cuMemPoolDestroy(CUmemoryPool h)
{
    return pool_call(__func__, h, true, [&](Call &c, Pool &pool) {
        if (pool.is_default)
            return CUDA_ERROR_INVALID_VALUE;
        if (pool.device->current_pool == h)
            pool.device->current_pool = pool.device->default_pool;
        c.s.pools.remove(h);
        return CUDA_SUCCESS;
    });
}

/* A pool keeps nothing back here, so there is nothing to trim. */
CUresult cuMemPoolTrimTo(CUmemoryPool h, size_t)
{
    return pool_call(__func__, h, true, [](Call &, Pool &) { return CUDA_SUCCESS; });
}

CUresult cuMemPoolSetAttribute(CUmemoryPool h, CUmemPool_attribute attribute, void *value)
{
    return pool_call(__func__, h, value, [&](Call &, Pool &pool) {
        switch (attribute) {
        case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
        case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
        case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
            pool.reuse[attribute] = *static_cast<int *>(value);
            return CUDA_SUCCESS;
        case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
            pool.release_threshold = *static_cast<cuuint64_t *>(value);
            return CUDA_SUCCESS;
        case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
        case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
            if (*static_cast<cuuint64_t *>(value))
                return CUDA_ERROR_INVALID_VALUE; /* a mark can only be reset */
            pool.used_high = pool.used;
            return CUDA_SUCCESS;
        default:
            return CUDA_ERROR_INVALID_VALUE;
        }
    });
}

CUresult cuMemPoolGetAttribute(CUmemoryPool h, CUmemPool_attribute attribute, void *value)
{
    return pool_call(__func__, h, value, [&](Call &, Pool &pool) {
        switch (attribute) {
        case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
        case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
        case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES: {
            auto it = pool.reuse.find(attribute);
            *static_cast<int *>(value) = it == pool.reuse.end() ? 1 : it->second;
            return CUDA_SUCCESS;
        }
        case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
            *static_cast<cuuint64_t *>(value) = pool.release_threshold;
            return CUDA_SUCCESS;
        case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
        case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
            *static_cast<cuuint64_t *>(value) = pool.used;
            return CUDA_SUCCESS;
        case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
        case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
            *static_cast<cuuint64_t *>(value) = pool.used_high;
            return CUDA_SUCCESS;
        default:
            return CUDA_ERROR_INVALID_VALUE;
        }
    });
}
