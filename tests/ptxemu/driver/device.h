/* The emulated devices: what a card of each compute capability says about itself. */
#ifndef PTXEMU_DRIVER_DEVICE_H
#define PTXEMU_DRIVER_DEVICE_H

#include "driver/api.h"
#include "machine/block.h"

namespace ptxemu::driver
{

struct Context;
struct Settings;

struct Model { /* one line a compute capability: the values of a card that is common */
    unsigned cc;
    const char *name;
    unsigned sm_count;
    uint64_t memory;
    unsigned shared_per_block_optin, shared_per_sm; /* bytes; 48 KiB a block without opting in */
    unsigned reserved_shared;                       /* bytes a block that the system takes */
    unsigned threads_per_sm, blocks_per_sm;
    unsigned l2_bytes;
    unsigned clock_khz, memory_clock_khz, bus_bits;
};
const Model &model_of(unsigned cc);

struct Device {
    CUdevice ordinal = 0;
    const Model *model = nullptr;
    Limits limits;
    uint64_t memory = 0;
    CUcontext primary = nullptr;
    CUmemoryPool default_pool = nullptr, current_pool = nullptr;
};
void setup(Device &d, CUdevice ordinal, const Settings &s);

} // namespace ptxemu::driver

#endif
