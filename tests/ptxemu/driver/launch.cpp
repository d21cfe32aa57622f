/* Kernel launches. */
#include "driver/launch.h"

#include <algorithm>
#include <cstring>

#include "driver/graph.h"
#include "driver/module.h"

namespace ptxemu::driver
{
namespace
{
constexpr unsigned MAX_BLOCK_THREADS = 1024, PORTABLE_CLUSTER = 8, LARGEST_CLUSTER = 16;

bool same(const Dim3 &a, const Dim3 &b)
{
    return a.x == b.x && a.y == b.y && a.z == b.z;
}

CUresult check_shape(const FunctionObject &f, const LaunchRequest &r)
{
    const Dim3 &g = r.grid, &b = r.block;
    if (!g.count() || !b.count() || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535)
        return CUDA_ERROR_INVALID_VALUE;
    if (b.x > 1024 || b.y > 1024 || b.z > 64 || b.count() > MAX_BLOCK_THREADS)
        return CUDA_ERROR_INVALID_VALUE;
    if (f.code->max_threads && b.count() > f.code->max_threads)
        return CUDA_ERROR_INVALID_VALUE;
    if (f.code->has_required_block && !same(b, f.code->required_block))
        return CUDA_ERROR_INVALID_VALUE;
    return r.dynamic_shared > f.max_dynamic_shared ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult check_resources(const FunctionObject &f, const LaunchRequest &r, const Limits &limits)
{
    /* Registers are given to warps, and rounded up to 8 a thread. */
    uint64_t warps = (r.block.count() + WARP_SIZE - 1) / WARP_SIZE;
    uint64_t regs = (uint64_t(f.code->regs_for_occupancy) + 7) / 8 * 8;
    if (warps * WARP_SIZE * regs > limits.regs_per_sm)
        return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    unsigned fit = occupancy(*f.code, unsigned(r.block.count()), r.dynamic_shared, limits);
    if (!fit)
        return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    if (r.cooperative && r.grid.count() > uint64_t(fit) * limits.sm_count)
        return CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
    return CUDA_SUCCESS;
}

/* The cluster of a launch: that of the function's text, of its attributes, or of the launch, which must agree. */
CUresult choose_cluster(const FunctionObject &f, const LaunchRequest &r, const Limits &limits, Dim3 *cluster)
{
    Dim3 fixed = f.code->has_required_cluster ? f.code->required_cluster : f.required_cluster;
    if (fixed.count() && r.cluster.count() && !same(fixed, r.cluster))
        return CUDA_ERROR_INVALID_CLUSTER_SIZE;
    *cluster = r.cluster.count() ? r.cluster : fixed.count() ? fixed : Dim3();
    if (cluster->count() == 1)
        return CUDA_SUCCESS;
    if (limits.sm < 90)
        return CUDA_ERROR_NOT_SUPPORTED;
    unsigned most = f.nonportable_cluster ? LARGEST_CLUSTER : PORTABLE_CLUSTER;
    bool divides = r.grid.x % cluster->x == 0 && r.grid.y % cluster->y == 0 && r.grid.z % cluster->z == 0;
    return cluster->count() > most || !divides ? CUDA_ERROR_INVALID_CLUSTER_SIZE : CUDA_SUCCESS;
}

/* CU_LAUNCH_PARAM_BUFFER_POINTER and _SIZE, ended by CU_LAUNCH_PARAM_END. */
CUresult read_extra(void **extra, const uint8_t **buffer, size_t *bytes)
{
    *buffer = nullptr;
    *bytes = 0;
    for (; *extra != CU_LAUNCH_PARAM_END; extra += 2) {
        if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER)
            *buffer = static_cast<const uint8_t *>(extra[1]);
        else if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE)
            *bytes = *static_cast<size_t *>(extra[1]);
        else
            return CUDA_ERROR_INVALID_VALUE;
    }
    return *buffer ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult read_parameters(const Function &fn, const LaunchRequest &r, std::vector<uint8_t> *out)
{
    out->assign(fn.param_bytes, 0);
    if (fn.params.empty())
        return CUDA_SUCCESS;
    if (r.params && r.extra)
        return CUDA_ERROR_INVALID_VALUE;
    if (r.extra) {
        const uint8_t *buffer;
        size_t bytes, needed = fn.params.back().offset + fn.params.back().bytes;
        CUresult result = read_extra(r.extra, &buffer, &bytes);
        if (result != CUDA_SUCCESS || bytes < needed)
            return CUDA_ERROR_INVALID_VALUE;
        memcpy(out->data(), buffer, std::min(bytes, out->size()));
        return CUDA_SUCCESS;
    }
    for (size_t i = 0; i < fn.params.size(); i++) {
        if (!r.params || !r.params[i])
            return CUDA_ERROR_INVALID_VALUE;
        memcpy(out->data() + fn.params[i].offset, r.params[i], fn.params[i].bytes);
    }
    return CUDA_SUCCESS;
}
} // namespace

CUresult prepare_launch(Call &c, FunctionObject &f, const LaunchRequest &r, KernelWork *work)
{
    const Limits &limits = f.context->device->limits;
    Launch &l = work->launch;
    CUresult result = check_shape(f, r);
    if (result == CUDA_SUCCESS)
        result = choose_cluster(f, r, limits, &l.cluster);
    if (result == CUDA_SUCCESS)
        result = check_resources(f, r, limits);
    if (result == CUDA_SUCCESS)
        result = read_parameters(*f.code, r, &l.params);
    if (result != CUDA_SUCCESS)
        return result;
    work->module = f.module;
    work->handle = f.handle;
    l.module = f.module->code.get();
    l.fn = f.code;
    l.grid = r.grid;
    l.block = r.block;
    l.dynamic_shared = r.dynamic_shared;
    l.cooperative = r.cooperative;
    l.limits = &limits;
    l.options = c.s.settings.options;
    l.heap = &c.s.heap;
    l.device = unsigned(f.context->device->ordinal);
    return CUDA_SUCCESS;
}

void run_kernel(Context &, const KernelWork &work)
{
    const Launch &l = work.launch;
    Counters counters;
    double begin = wall_seconds();
    run_grid(l, &counters);
    if (!l.options.profile)
        return;
    State &s = State::get();
    std::lock_guard<std::mutex> guard(s.mutex);
    Profile::get().add(l.fn->name, *l.module, l.grid, l.block, l.fn->shared_bytes + l.dynamic_shared,
                       wall_seconds() - begin, counters);
}

namespace
{
/* What the attributes of cuLaunchKernelEx ask for.  Hints about scheduling and caches change no result and are
 * accepted. */
struct Attributes {
    CUevent completion = nullptr; /* recorded behind the launch */
    CUresult read(const CUlaunchConfig &config, LaunchRequest *r)
    {
        for (unsigned i = 0; i < config.numAttrs; i++) {
            CUresult result = read_one(config.attrs[i], r);
            if (result != CUDA_SUCCESS)
                return result;
        }
        return CUDA_SUCCESS;
    }

  private:
    CUresult read_one(const CUlaunchAttribute &a, LaunchRequest *r)
    {
        switch (a.id) {
        case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
            r->cluster = {a.value.clusterDim.x, a.value.clusterDim.y, a.value.clusterDim.z};
            return r->cluster.count() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
        case CU_LAUNCH_ATTRIBUTE_COOPERATIVE:
            r->cooperative = a.value.cooperative != 0;
            return CUDA_SUCCESS;
        case CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT:
            completion = a.value.launchCompletionEvent.event;
            return CUDA_SUCCESS;
        case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT:
            completion = a.value.programmaticEvent.event;
            return CUDA_SUCCESS;
        /* With it a kernel may begin before the one in front has ended; one after the other is always right. */
        case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION:
        case CU_LAUNCH_ATTRIBUTE_IGNORE:
        case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW:
        case CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
        case CU_LAUNCH_ATTRIBUTE_PRIORITY:
        case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP:
        case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN:
        case CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
            return CUDA_SUCCESS;
        default:
            return CUDA_ERROR_NOT_SUPPORTED;
        }
    }
};

CUresult launch(Call &c, CUfunction h, CUstream stream_handle, const LaunchRequest &request)
{
    std::shared_ptr<FunctionObject> f;
    CUresult r = find_function(c, h, &f);
    if (r != CUDA_SUCCESS)
        return r;
    std::shared_ptr<Stream> stream = c.stream(stream_handle);
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    if (stream->context != f->context)
        return CUDA_ERROR_INVALID_CONTEXT;
    KernelWork work;
    r = prepare_launch(c, *f, request, &work);
    return r == CUDA_SUCCESS ? c.submit(stream, std::move(work)) : r;
}
} // namespace
} // namespace ptxemu::driver

using namespace ptxemu;
using namespace ptxemu::driver;

CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream stream, void **params, void **extra)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        LaunchRequest r;
        r.grid = {gx, gy, gz};
        r.block = {bx, by, bz};
        r.dynamic_shared = shared;
        r.params = params;
        r.extra = extra;
        return launch(c, f, stream, r);
    });
}

CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                   unsigned bz, unsigned shared, CUstream stream, void **params)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        LaunchRequest r;
        r.grid = {gx, gy, gz};
        r.block = {bx, by, bz};
        r.dynamic_shared = shared;
        r.params = params;
        r.cooperative = true;
        return launch(c, f, stream, r);
    });
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction f, void **params, void **extra)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        if (!config || (config->numAttrs && !config->attrs))
            return CUDA_ERROR_INVALID_VALUE;
        LaunchRequest request;
        request.grid = {config->gridDimX, config->gridDimY, config->gridDimZ};
        request.block = {config->blockDimX, config->blockDimY, config->blockDimZ};
        request.dynamic_shared = config->sharedMemBytes;
        request.params = params;
        request.extra = extra;
        Attributes attributes;
        CUresult r = attributes.read(*config, &request);
        if (r == CUDA_SUCCESS)
            r = launch(c, f, config->hStream, request);
        if (r == CUDA_SUCCESS && attributes.completion)
            r = record_event(c, attributes.completion, config->hStream);
        return r;
    });
}
