/* Devices and their attributes. */
#include "driver/device.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "driver/call.h"

namespace ptxemu::driver
{
namespace
{
constexpr uint64_t GB = 1ull << 30;

const Model models[] = {
    /* cc, name, SMs, memory, shared opt-in, per SM, reserved, threads, blocks, L2, clock, memory clock, bus */
    {75, "ptxemu sm_75", 40, 15 * GB, 65536, 65536, 0, 1024, 16, 4194304, 1590000, 5001000, 256},
    {80, "ptxemu sm_80", 108, 40 * GB, 166912, 167936, 1024, 2048, 32, 41943040, 1410000, 1215000, 5120},
    {86, "ptxemu sm_86", 82, 24 * GB, 101376, 102400, 1024, 1536, 16, 6291456, 1695000, 9751000, 384},
    {89, "ptxemu sm_89", 128, 24 * GB, 101376, 102400, 1024, 1536, 24, 75497472, 2520000, 10501000, 384},
    {90, "ptxemu sm_90", 132, 80 * GB, 232448, 233472, 1024, 2048, 32, 52428800, 1980000, 2619000, 5120},
};

constexpr int FULL_RATE_F64_CC[] = {80, 90};

/* Attributes whose value is the same for every device. */
struct Fixed {
    CUdevice_attribute attribute;
    int value;
};
const Fixed fixed[] = {
    {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, 1024},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, 1024},
    {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, 64},
    {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, 2147483647},
    {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 65535},
    {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, 65535},
    {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 49152},
    {CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY, 65536},
    {CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32},
    {CU_DEVICE_ATTRIBUTE_MAX_PITCH, 2147483647},
    {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, 65536},
    {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR, 65536},
    {CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT, 512},
    {CU_DEVICE_ATTRIBUTE_TEXTURE_PITCH_ALIGNMENT, 32},
    {CU_DEVICE_ATTRIBUTE_SURFACE_ALIGNMENT, 512},
    {CU_DEVICE_ATTRIBUTE_GPU_OVERLAP, 1},
    {CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT, 0},
    {CU_DEVICE_ATTRIBUTE_INTEGRATED, 0},
    {CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY, 1},
    {CU_DEVICE_ATTRIBUTE_COMPUTE_MODE, CU_COMPUTEMODE_DEFAULT},
    {CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS, 1},
    {CU_DEVICE_ATTRIBUTE_ECC_ENABLED, 0},
    {CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID, 0},
    {CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID, 0},
    {CU_DEVICE_ATTRIBUTE_TCC_DRIVER, 0},
    {CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT, 3},
    {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
    {CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_GLOBAL_L1_CACHE_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_LOCAL_L1_CACHE_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY, 1},
    {CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS,
     0}, /* the host has to synchronise before it touches managed memory */
    {CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS, 0},
    {CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES, 0},
    {CU_DEVICE_ATTRIBUTE_DIRECT_MANAGED_MEM_ACCESS_FROM_HOST, 0},
    {CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM, 1},
    {CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED, 0},
    {CU_DEVICE_ATTRIBUTE_HOST_NATIVE_ATOMIC_SUPPORTED, 0},
    {CU_DEVICE_ATTRIBUTE_MULTI_GPU_BOARD, 0},
    {CU_DEVICE_ATTRIBUTE_MULTI_GPU_BOARD_GROUP_ID, 0},
    {CU_DEVICE_ATTRIBUTE_COMPUTE_PREEMPTION_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH, 1},
    {CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_MEMPOOL_SUPPORTED_HANDLE_TYPES, 0},
    {CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, 0},
    {CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, 0},
    {CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED, 0},
    {CU_DEVICE_ATTRIBUTE_GENERIC_COMPRESSION_SUPPORTED, 0},
    {CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED, 0},
    {CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED, 0},
    {CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED, 0},
    {CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED, 0},
    {CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED, 0},
    {CU_DEVICE_ATTRIBUTE_SPARSE_CUDA_ARRAY_SUPPORTED, 0},
    {CU_DEVICE_ATTRIBUTE_DEFERRED_MAPPING_CUDA_ARRAY_SUPPORTED, 0},
    {CU_DEVICE_ATTRIBUTE_TIMELINE_SEMAPHORE_INTEROP_SUPPORTED, 0},
    {CU_DEVICE_ATTRIBUTE_MEM_SYNC_DOMAIN_COUNT, 1},
    {CU_DEVICE_ATTRIBUTE_NUMA_CONFIG, CU_DEVICE_NUMA_CONFIG_NONE},
    {CU_DEVICE_ATTRIBUTE_NUMA_ID, -1},
    {CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID, -1},
    {CU_DEVICE_ATTRIBUTE_MPS_ENABLED, 0},
};

/* Attributes that differ from model to model.  False: unknown. */
bool model_attribute(const Device &d, CUdevice_attribute attribute, int *v)
{
    const Model &m = *d.model;
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
        return *v = int(m.cc / 10), true;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
        return *v = int(m.cc % 10), true;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
        return *v = int(d.limits.sm_count), true;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
        return *v = int(m.shared_per_block_optin), true;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
        return *v = int(m.shared_per_sm), true;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK:
        return *v = int(m.reserved_shared), true;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
        return *v = int(m.threads_per_sm), true;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR:
        return *v = int(m.blocks_per_sm), true;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
        return *v = int(m.l2_bytes), true;
    case CU_DEVICE_ATTRIBUTE_MAX_PERSISTING_L2_CACHE_SIZE:
        return *v = m.cc >= 80 ? int(m.l2_bytes / 4 * 3) : 0, true;
    case CU_DEVICE_ATTRIBUTE_MAX_ACCESS_POLICY_WINDOW_SIZE:
        return *v = m.cc >= 80 ? 128 << 20 : 0, true;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
        return *v = int(m.clock_khz), true;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
        return *v = int(m.memory_clock_khz), true;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH:
        return *v = int(m.bus_bits), true;
    case CU_DEVICE_ATTRIBUTE_SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO:
        return *v = std::count(std::begin(FULL_RATE_F64_CC), std::end(FULL_RATE_F64_CC), int(m.cc)) ? 2 : 32, true;
    case CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_TENSOR_MAP_ACCESS_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_FUNCTION_POINTERS:
        return *v = m.cc >= 90, true;
    case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID:
        return *v = int(d.ordinal) + 1, true;
    default:
        return false;
    }
}
} // namespace

const Model &model_of(unsigned cc)
{
    return *std::find_if(std::begin(models), std::end(models), [&](const Model &m) { return m.cc == cc; });
}

void setup(Device &d, CUdevice ordinal, const Settings &s)
{
    const Model &m = model_of(s.cc);
    d.ordinal = ordinal;
    d.model = &m;
    d.memory = s.memory ? s.memory : m.memory;
    d.limits.sm = m.cc;
    d.limits.sm_suffix = m.cc == 90 ? 'a' : 0;
    d.limits.sm_count = s.sms ? s.sms : m.sm_count;
    d.limits.max_shared_per_block = 49152;
    d.limits.max_shared_optin = m.shared_per_block_optin;
    d.limits.shared_per_sm = m.shared_per_sm;
    d.limits.regs_per_sm = 65536;
    d.limits.max_threads_per_sm = m.threads_per_sm;
    d.limits.max_blocks_per_sm = m.blocks_per_sm;
}

namespace
{
Device *device_of(State &s, CUdevice dev)
{
    return dev >= 0 && size_t(dev) < s.devices.size() ? &s.devices[size_t(dev)] : nullptr;
}

/* The usual device function: a valid device and a place for the answer. */
template <class Body>
CUresult device_call(const char *function, const void *out, CUdevice dev, Body &&body)
{
    return call(function, INIT, [&](Call &c) -> CUresult {
        Device *d = device_of(c.s, dev);
        if (!out)
            return CUDA_ERROR_INVALID_VALUE;
        return d ? body(*d) : CUDA_ERROR_INVALID_DEVICE;
    });
}
} // namespace

} // namespace ptxemu::driver

using namespace ptxemu;
using namespace ptxemu::driver;

CUresult cuInit(unsigned flags)
{
    return call(__func__, NOTHING, [&](Call &c) { return flags ? CUDA_ERROR_INVALID_VALUE : c.s.initialise(); });
}

CUresult cuDriverGetVersion(int *version)
{
    return call(__func__, NOTHING, [&](Call &) {
        if (!version)
            return CUDA_ERROR_INVALID_VALUE;
        *version = CUDA_VERSION;
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetCount(int *count)
{
    return call(__func__, INIT, [&](Call &c) {
        if (!count)
            return CUDA_ERROR_INVALID_VALUE;
        *count = int(c.s.devices.size());
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    return device_call(__func__, device, ordinal, [&](Device &d) {
        *device = d.ordinal;
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetName(char *name, int len, CUdevice dev)
{
    return device_call(__func__, name, dev, [&](Device &d) {
        if (len <= 0)
            return CUDA_ERROR_INVALID_VALUE;
        snprintf(name, size_t(len), "%s", d.model->name);
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice dev)
{
    return device_call(__func__, uuid, dev, [&](Device &d) {
        memset(uuid->bytes, 0, sizeof uuid->bytes);
        memcpy(uuid->bytes, "ptxemu", 6);
        uuid->bytes[14] = char(d.model->cc);
        uuid->bytes[15] = char(d.ordinal);
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceTotalMem(size_t *bytes, CUdevice dev)
{
    return device_call(__func__, bytes, dev, [&](Device &d) {
        *bytes = d.memory;
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice dev)
{
    return device_call(__func__, value, dev, [&](Device &d) {
        if (model_attribute(d, attribute, value))
            return CUDA_SUCCESS;
        for (const Fixed &f : fixed)
            if (f.attribute == attribute) {
                *value = f.value;
                return CUDA_SUCCESS;
            }
        return CUDA_ERROR_INVALID_VALUE;
    });
}

CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice dev)
{
    return device_call(__func__, major, dev, [&](Device &d) {
        if (!minor)
            return CUDA_ERROR_INVALID_VALUE;
        *major = int(d.model->cc / 10);
        *minor = int(d.model->cc % 10);
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetPCIBusId(char *id, int len, CUdevice dev)
{
    return device_call(__func__, id, dev, [&](Device &d) {
        if (len < 13) /* "0000:01:00.0" and its NUL */
            return CUDA_ERROR_INVALID_VALUE;
        snprintf(id, size_t(len), "0000:%02x:00.0", unsigned(d.ordinal) + 1);
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetByPCIBusId(CUdevice *dev, const char *id)
{
    return call(__func__, INIT, [&](Call &c) {
        unsigned domain = 0, bus = 0;
        if (!dev || !id || sscanf(id, "%x:%x:", &domain, &bus) != 2)
            return CUDA_ERROR_INVALID_VALUE;
        if (domain != 0 || bus < 1 || bus > c.s.devices.size())
            return CUDA_ERROR_INVALID_DEVICE;
        *dev = CUdevice(bus - 1);
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceCanAccessPeer(int *can, CUdevice dev, CUdevice peer)
{
    return device_call(__func__, can, dev, [&](Device &d) {
        if (!device_of(State::get(), peer))
            return CUDA_ERROR_INVALID_DEVICE;
        *can = d.ordinal != peer;
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetP2PAttribute(int *value, CUdevice_P2PAttribute attribute, CUdevice src, CUdevice dst)
{
    return device_call(__func__, value, src, [&](Device &d) {
        if (!device_of(State::get(), dst) || d.ordinal == dst)
            return CUDA_ERROR_INVALID_DEVICE;
        switch (attribute) {
        case CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK:
        case CU_DEVICE_P2P_ATTRIBUTE_CUDA_ARRAY_ACCESS_SUPPORTED:
            *value = 0;
            return CUDA_SUCCESS;
        case CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED:
        case CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED:
            *value = 1;
            return CUDA_SUCCESS;
        default:
            return CUDA_ERROR_INVALID_VALUE;
        }
    });
}

CUresult cuDeviceGetExecAffinitySupport(int *supported, CUexecAffinityType type, CUdevice dev)
{
    return device_call(__func__, supported, dev, [&](Device &) {
        *supported = 0;
        return type < CU_EXEC_AFFINITY_TYPE_MAX ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}
