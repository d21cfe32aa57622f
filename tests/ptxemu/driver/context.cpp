/* Contexts: primary ones, created ones, the stack of each thread, limits, peers. */
#include <algorithm>

#include "driver/call.h"
#include "driver/graph.h"

namespace ptxemu::driver
{
namespace
{
/* Waits for the context's work and takes everything it owns away. */
void tear_down(Call &c, Context &context)
{
    c.wait_context(context);
    c.s.destroy_contents(context);
}

template <class Body>
CUresult primary_call(const char *function, CUdevice dev, Body &&body)
{
    return call(function, INIT, [&](Call &c) -> CUresult {
        if (dev < 0 || size_t(dev) >= c.s.devices.size())
            return CUDA_ERROR_INVALID_DEVICE;
        return body(c, *c.s.contexts.find(c.s.devices[size_t(dev)].primary));
    });
}

void leave_primary(Call &c, Context &context)
{
    tear_down(c, context);
    context.active = false;
    context.retained = 0;
    context.peers = 0;
}

constexpr unsigned KNOWN_FLAGS = CU_CTX_SCHED_MASK | CU_CTX_MAP_HOST | CU_CTX_LMEM_RESIZE_TO_MAX | CU_CTX_SYNC_MEMOPS;

bool valid_flags(unsigned flags)
{
    unsigned sched = flags & CU_CTX_SCHED_MASK;
    return !(flags & ~KNOWN_FLAGS) && (sched == 0 || sched == CU_CTX_SCHED_SPIN || sched == CU_CTX_SCHED_YIELD ||
                                       sched == CU_CTX_SCHED_BLOCKING_SYNC);
}

bool alive(const std::shared_ptr<Context> &context)
{
    return context && (!context->primary || context->active);
}
} // namespace
} // namespace ptxemu::driver

using namespace ptxemu;
using namespace ptxemu::driver;

CUresult cuDevicePrimaryCtxRetain(CUcontext *out, CUdevice dev)
{
    return primary_call(__func__, dev, [&](Call &, Context &context) {
        if (!out)
            return CUDA_ERROR_INVALID_VALUE;
        context.active = true;
        context.retained++;
        *out = context.handle;
        return CUDA_SUCCESS;
    });
}

CUresult cuDevicePrimaryCtxRelease(CUdevice dev)
{
    return primary_call(__func__, dev, [&](Call &c, Context &context) {
        if (!context.retained)
            return CUDA_ERROR_INVALID_CONTEXT;
        if (--context.retained == 0)
            leave_primary(c, context);
        return CUDA_SUCCESS;
    });
}

CUresult cuDevicePrimaryCtxReset(CUdevice dev)
{
    return primary_call(__func__, dev, [&](Call &c, Context &context) {
        if (context.active) {
            unsigned retained = context.retained;
            leave_primary(c, context);
            context.active = true; /* those who retained it may go on with an empty context */
            context.retained = retained;
        }
        return CUDA_SUCCESS;
    });
}

CUresult cuDevicePrimaryCtxSetFlags(CUdevice dev, unsigned flags)
{
    return primary_call(__func__, dev, [&](Call &, Context &context) {
        if (!valid_flags(flags))
            return CUDA_ERROR_INVALID_VALUE;
        context.flags = flags;
        return CUDA_SUCCESS;
    });
}

CUresult cuDevicePrimaryCtxGetState(CUdevice dev, unsigned *flags, int *active)
{
    return primary_call(__func__, dev, [&](Call &, Context &context) {
        if (!flags || !active)
            return CUDA_ERROR_INVALID_VALUE;
        *flags = context.flags;
        *active = context.active;
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxCreate(CUcontext *out, CUctxCreateParams *params, unsigned flags, CUdevice dev)
{
    return call(__func__, INIT, [&](Call &c) {
        if (!out || !valid_flags(flags))
            return CUDA_ERROR_INVALID_VALUE;
        if (params && (params->numExecAffinityParams || params->cigParams))
            return CUDA_ERROR_NOT_SUPPORTED;
        if (dev < 0 || size_t(dev) >= c.s.devices.size())
            return CUDA_ERROR_INVALID_DEVICE;
        std::shared_ptr<Context> made = c.s.new_context(c.s.devices[size_t(dev)], false);
        made->flags = flags;
        current_stack(c.s).push_back(made->handle);
        *out = made->handle;
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxDestroy(CUcontext h)
{
    return call(__func__, INIT, [&](Call &c) {
        std::shared_ptr<Context> context = c.s.contexts.find(h);
        if (!context || context->primary)
            return CUDA_ERROR_INVALID_CONTEXT;
        tear_down(c, *context);
        c.s.contexts.remove(h);
        c.s.retired.push_back(context);
        std::vector<CUcontext> &stack = current_stack(c.s);
        if (!stack.empty() && stack.back() == h)
            stack.pop_back();
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxPushCurrent(CUcontext h)
{
    return call(__func__, INIT, [&](Call &c) {
        if (!c.s.contexts.find(h))
            return CUDA_ERROR_INVALID_CONTEXT;
        current_stack(c.s).push_back(h);
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxPopCurrent(CUcontext *out)
{
    return call(__func__, INIT, [&](Call &c) {
        std::vector<CUcontext> &stack = current_stack(c.s);
        if (stack.empty())
            return CUDA_ERROR_INVALID_CONTEXT;
        if (out)
            *out = stack.back();
        stack.pop_back();
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxSetCurrent(CUcontext h)
{
    return call(__func__, INIT, [&](Call &c) {
        std::vector<CUcontext> &stack = current_stack(c.s);
        if (h && !c.s.contexts.find(h))
            return CUDA_ERROR_INVALID_CONTEXT;
        if (!stack.empty())
            stack.pop_back();
        if (h)
            stack.push_back(h);
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxGetCurrent(CUcontext *out)
{
    return call(__func__, INIT, [&](Call &c) {
        if (!out)
            return CUDA_ERROR_INVALID_VALUE;
        std::vector<CUcontext> &stack = current_stack(c.s);
        *out = stack.empty() ? nullptr : stack.back();
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxGetDevice(CUdevice *out)
{
    return call(__func__, CONTEXT | EVEN_AFTER_FAULT, [&](Call &c) {
        if (!out)
            return CUDA_ERROR_INVALID_VALUE;
        *out = c.context->device->ordinal;
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxGetFlags(unsigned *flags)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        if (!flags)
            return CUDA_ERROR_INVALID_VALUE;
        *flags = c.context->flags;
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxSetFlags(unsigned flags)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        if (!valid_flags(flags))
            return CUDA_ERROR_INVALID_VALUE;
        c.context->flags = flags;
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxGetId(CUcontext h, unsigned long long *id)
{
    return call(__func__, INIT, [&](Call &c) {
        std::vector<CUcontext> &stack = current_stack(c.s);
        std::shared_ptr<Context> context = c.s.contexts.find(h || stack.empty() ? h : stack.back());
        if (!id)
            return CUDA_ERROR_INVALID_VALUE;
        if (!alive(context))
            return h ? CUDA_ERROR_CONTEXT_IS_DESTROYED : CUDA_ERROR_INVALID_CONTEXT;
        *id = context->id;
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxGetApiVersion(CUcontext h, unsigned *version)
{
    return call(__func__, INIT, [&](Call &c) {
        std::vector<CUcontext> &stack = current_stack(c.s);
        if (!version)
            return CUDA_ERROR_INVALID_VALUE;
        if (!alive(c.s.contexts.find(h || stack.empty() ? h : stack.back())))
            return CUDA_ERROR_INVALID_CONTEXT;
        *version = CUDA_VERSION;
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxSynchronize(void)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        CUresult r = synchronize_in_capture(c.s, *c.context);
        return r == CUDA_SUCCESS ? c.wait_context(*c.context) : r;
    });
}

CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
    return call(__func__, CONTEXT, [&](Call &) {
        if (least)
            *least = LEAST_PRIORITY;
        if (greatest)
            *greatest = GREATEST_PRIORITY;
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxGetLimit(size_t *value, CUlimit limit)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        if (!value)
            return CUDA_ERROR_INVALID_VALUE;
        if (unsigned(limit) > CU_LIMIT_MALLOC_HEAP_SIZE)
            return CUDA_ERROR_UNSUPPORTED_LIMIT;
        *value = c.context->limits[limit];
        return CUDA_SUCCESS;
    });
}

/* A kernel's local memory is as large as its call chain needs, so the stack size limits nothing here; it is kept for
 * those who ask. Device-side malloc is not there, and printf has no limit. */
CUresult cuCtxSetLimit(CUlimit limit, size_t value)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        if (unsigned(limit) > CU_LIMIT_MALLOC_HEAP_SIZE)
            return CUDA_ERROR_UNSUPPORTED_LIMIT;
        c.context->limits[limit] = value;
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxGetCacheConfig(CUfunc_cache *config)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        if (!config)
            return CUDA_ERROR_INVALID_VALUE;
        *config = c.context->cache_config;
        return CUDA_SUCCESS;
    });
}

/* A preference, on hardware as well: results do not depend on it. */
CUresult cuCtxSetCacheConfig(CUfunc_cache config)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        if (unsigned(config) > CU_FUNC_CACHE_PREFER_EQUAL)
            return CUDA_ERROR_INVALID_VALUE;
        c.context->cache_config = config;
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned flags)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        std::shared_ptr<Context> other = c.s.contexts.find(peer);
        if (flags)
            return CUDA_ERROR_INVALID_VALUE;
        if (!alive(other))
            return CUDA_ERROR_INVALID_CONTEXT;
        if (other->device == c.context->device)
            return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
        uint32_t bit = 1u << other->device->ordinal;
        if (c.context->peers & bit)
            return CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
        c.context->peers |= bit;
        c.s.heap.allow_peer(unsigned(other->device->ordinal), unsigned(c.context->device->ordinal), true);
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxDisablePeerAccess(CUcontext peer)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        std::shared_ptr<Context> other = c.s.contexts.find(peer);
        if (!alive(other))
            return CUDA_ERROR_INVALID_CONTEXT;
        uint32_t bit = 1u << other->device->ordinal;
        if (!(c.context->peers & bit))
            return CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
        c.wait_context(*c.context);
        c.context->peers &= ~bit;
        c.s.heap.allow_peer(unsigned(other->device->ordinal), unsigned(c.context->device->ordinal), false);
        return CUDA_SUCCESS;
    });
}
