/* Functions: attributes and occupancy. */
#include <algorithm>

#include "driver/launch.h"
#include "driver/library.h"
#include "driver/module.h"

namespace ptxemu::driver
{

CUresult find_function(Call &c, CUfunction h, std::shared_ptr<FunctionObject> *out)
{
    CUkernel kernel = reinterpret_cast<CUkernel>(h);
    if (c.s.kernels.find(kernel)) {
        CUresult r = function_of_kernel(c, kernel, &h);
        if (r != CUDA_SUCCESS)
            return r;
    }
    *out = c.s.functions.find(h);
    return *out ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

namespace
{
/* The largest block that the function's registers and directives allow. */
int max_threads(const FunctionObject &f)
{
    unsigned most = f.code->max_threads ? f.code->max_threads : 1024;
    unsigned regs = std::max(8u, (f.code->regs_for_occupancy + 7) / 8 * 8);
    unsigned by_regs = f.context->device->limits.regs_per_sm / regs / WARP_SIZE * WARP_SIZE;
    return int(std::min({most, by_regs, 1024u}));
}
} // namespace

CUresult get_attribute(const FunctionObject &f, CUfunction_attribute attribute, int *v)
{
    const Dim3 fixed = f.code->has_required_cluster ? f.code->required_cluster : f.required_cluster;
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        return *v = max_threads(f), CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
        return *v = int(f.code->shared_bytes), CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES:
        return *v = 0, CUDA_SUCCESS; /* of constants that the compiler placed: there are none in PTX */
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
        return *v = int(f.code->stack_bytes), CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
        return *v = int(f.code->regs_for_occupancy), CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
        return *v = int(f.module->ptx_version), CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
        return *v = int(f.context->device->model->cc), CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_CACHE_MODE_CA:
        return *v = 0, CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        return *v = int(f.max_dynamic_shared), CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
        return *v = f.carveout, CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_CLUSTER_SIZE_MUST_BE_SET:
        return *v = 0, CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH:
        return *v = int(fixed.x), CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT:
        return *v = int(fixed.y), CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH:
        return *v = int(fixed.z), CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED:
        return *v = f.nonportable_cluster, CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
        return *v = f.cluster_policy, CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

namespace
{
CUresult set_cluster_dimension(FunctionObject &f, uint32_t Dim3::*member, int v)
{
    if (f.code->has_required_cluster || v < 0)
        return CUDA_ERROR_INVALID_VALUE;
    f.required_cluster.*member = uint32_t(v);
    return CUDA_SUCCESS;
}
} // namespace

CUresult set_attribute(FunctionObject &f, CUfunction_attribute attribute, int v)
{
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        if (v < 0 || uint64_t(v) + f.code->shared_bytes > f.context->device->limits.max_shared_optin)
            return CUDA_ERROR_INVALID_VALUE;
        f.max_dynamic_shared = size_t(v);
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: /* advice: -1, or per cent */
        if (v < -1 || v > 100)
            return CUDA_ERROR_INVALID_VALUE;
        f.carveout = v;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH:
        return set_cluster_dimension(f, &Dim3::x, v);
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT:
        return set_cluster_dimension(f, &Dim3::y, v);
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH:
        return set_cluster_dimension(f, &Dim3::z, v);
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED:
        f.nonportable_cluster = v != 0;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE: /* advice */
        if (v < CU_CLUSTER_SCHEDULING_POLICY_DEFAULT || v > CU_CLUSTER_SCHEDULING_POLICY_LOAD_BALANCING)
            return CUDA_ERROR_INVALID_VALUE;
        f.cluster_policy = v;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

namespace
{
/* The usual question about a function. */
template <class Body>
CUresult function_call(const char *name, CUfunction h, bool answerable, Body &&body)
{
    return call(name, CONTEXT, [&](Call &c) -> CUresult {
        if (!answerable)
            return CUDA_ERROR_INVALID_VALUE;
        std::shared_ptr<FunctionObject> f;
        CUresult r = find_function(c, h, &f);
        return r == CUDA_SUCCESS ? body(c, *f) : r;
    });
}

int blocks_per_sm(const FunctionObject &f, int threads, size_t shared)
{
    if (threads > max_threads(f) || shared + f.code->shared_bytes > f.context->device->limits.max_shared_optin)
        return 0;
    return int(occupancy(*f.code, unsigned(threads), shared, f.context->device->limits));
}

CUresult occupancy_call(const char *name, int *blocks, CUfunction h, int threads, size_t shared, unsigned flags)
{
    bool good = blocks && threads > 0 && !(flags & ~CU_OCCUPANCY_DISABLE_CACHING_OVERRIDE);
    return function_call(name, h, good, [&](Call &, FunctionObject &f) {
        *blocks = blocks_per_sm(f, threads, shared);
        return CUDA_SUCCESS;
    });
}

/* The block size with the most threads in flight; the largest of those. */
CUresult potential_block_size(const char *name, int *grid, int *block, CUfunction h, CUoccupancyB2DSize shared_of_block,
                              size_t shared, int limit, unsigned flags)
{
    bool good = grid && block && limit >= 0 && !(flags & ~CU_OCCUPANCY_DISABLE_CACHING_OVERRIDE);
    return function_call(name, h, good, [&](Call &, FunctionObject &f) {
        int most = max_threads(f), best = 0;
        if (limit)
            most = std::min(most, limit);
        for (int threads = (most + 31) / 32 * 32; threads > 0; threads -= 32) {
            int size = std::min(threads, most);
            int blocks = blocks_per_sm(f, size, shared_of_block ? shared_of_block(size) : shared);
            if (blocks * size > best) {
                best = blocks * size;
                *block = size;
                *grid = blocks * int(f.context->device->limits.sm_count);
            }
        }
        return best ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}
} // namespace
} // namespace ptxemu::driver

using namespace ptxemu;
using namespace ptxemu::driver;

CUresult cuFuncGetAttribute(int *v, CUfunction_attribute attribute, CUfunction h)
{
    return function_call(__func__, h, v, [&](Call &, FunctionObject &f) { return get_attribute(f, attribute, v); });
}

CUresult cuFuncSetAttribute(CUfunction h, CUfunction_attribute attribute, int v)
{
    return function_call(__func__, h, true, [&](Call &, FunctionObject &f) { return set_attribute(f, attribute, v); });
}

/* A preference, on hardware as well: results do not depend on it. */
CUresult cuFuncSetCacheConfig(CUfunction h, CUfunc_cache config)
{
    return function_call(__func__, h, unsigned(config) <= CU_FUNC_CACHE_PREFER_EQUAL,
                         [](Call &, FunctionObject &) { return CUDA_SUCCESS; });
}

CUresult cuFuncGetModule(CUmodule *out, CUfunction h)
{
    return function_call(__func__, h, out, [&](Call &, FunctionObject &f) {
        *out = f.module->handle;
        return CUDA_SUCCESS;
    });
}

CUresult cuFuncGetName(const char **out, CUfunction h)
{
    return function_call(__func__, h, out, [&](Call &, FunctionObject &f) {
        *out = f.code->name.c_str();
        return CUDA_SUCCESS;
    });
}

CUresult cuFuncGetParamInfo(CUfunction h, size_t index, size_t *offset, size_t *bytes)
{
    return function_call(__func__, h, offset, [&](Call &, FunctionObject &f) {
        if (index >= f.code->params.size())
            return CUDA_ERROR_INVALID_VALUE;
        *offset = f.code->params[index].offset;
        if (bytes)
            *bytes = f.code->params[index].bytes;
        return CUDA_SUCCESS;
    });
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction h, int threads, size_t shared)
{
    return occupancy_call(__func__, blocks, h, threads, shared, 0);
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, CUfunction h, int threads, size_t shared,
                                                              unsigned flags)
{
    return occupancy_call(__func__, blocks, h, threads, shared, flags);
}

CUresult cuOccupancyMaxPotentialBlockSize(int *grid, int *block, CUfunction h, CUoccupancyB2DSize shared_of_block,
                                          size_t shared, int limit)
{
    return potential_block_size(__func__, grid, block, h, shared_of_block, shared, limit, 0);
}

CUresult cuOccupancyMaxPotentialBlockSizeWithFlags(int *grid, int *block, CUfunction h,
                                                   CUoccupancyB2DSize shared_of_block, size_t shared, int limit,
                                                   unsigned flags)
{
    return potential_block_size(__func__, grid, block, h, shared_of_block, shared, limit, flags);
}

CUresult cuOccupancyAvailableDynamicSMemPerBlock(size_t *bytes, CUfunction h, int blocks, int threads)
{
    return function_call(__func__, h, bytes && blocks > 0 && threads > 0, [&](Call &, FunctionObject &f) {
        const Limits &limits = f.context->device->limits;
        size_t reserved = f.context->device->model->reserved_shared;
        size_t most = std::min<size_t>(limits.shared_per_sm / unsigned(blocks), limits.max_shared_optin + reserved);
        size_t taken = f.code->shared_bytes + reserved;
        if (!blocks_per_sm(f, threads, 0) || most < taken)
            return CUDA_ERROR_INVALID_VALUE;
        *bytes = (most - taken) / 128 * 128;
        return CUDA_SUCCESS;
    });
}

namespace
{
bool cluster_of(const FunctionObject &f, const CUlaunchConfig &config, Dim3 *cluster)
{
    *cluster = f.code->has_required_cluster ? f.code->required_cluster : Dim3();
    for (unsigned i = 0; i < config.numAttrs; i++)
        if (config.attrs[i].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
            auto &d = config.attrs[i].value.clusterDim;
            *cluster = {d.x, d.y, d.z};
        }
    return cluster->count() != 0;
}
} // namespace

CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction h, const CUlaunchConfig *config)
{
    return function_call(__func__, h, clusters && config, [&](Call &, FunctionObject &f) {
        const Limits &limits = f.context->device->limits;
        Dim3 cluster, block{config->blockDimX, config->blockDimY, config->blockDimZ};
        if (!cluster_of(f, *config, &cluster) || !block.count() || block.count() > 1024)
            return CUDA_ERROR_INVALID_VALUE;
        if (limits.sm < 90)
            return CUDA_ERROR_NOT_SUPPORTED;
        if (cluster.count() > (f.nonportable_cluster ? 16u : 8u))
            return CUDA_ERROR_INVALID_CLUSTER_SIZE;
        int blocks = blocks_per_sm(f, int(block.count()), config->sharedMemBytes) * int(limits.sm_count);
        *clusters = blocks / int(cluster.count());
        return CUDA_SUCCESS;
    });
}

CUresult cuOccupancyMaxPotentialClusterSize(int *size, CUfunction h, const CUlaunchConfig *config)
{
    return function_call(__func__, h, size && config, [&](Call &, FunctionObject &f) {
        Dim3 block{config->blockDimX, config->blockDimY, config->blockDimZ};
        if (!block.count() || block.count() > 1024)
            return CUDA_ERROR_INVALID_VALUE;
        if (f.context->device->limits.sm < 90)
            return CUDA_ERROR_NOT_SUPPORTED;
        if (!blocks_per_sm(f, int(block.count()), config->sharedMemBytes))
            return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
        *size = f.nonportable_cluster ? 16 : 8;
        return CUDA_SUCCESS;
    });
}
