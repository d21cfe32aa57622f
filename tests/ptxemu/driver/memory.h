/* What a pointer that a host hands over points at. */
#ifndef PTXEMU_DRIVER_MEMORY_H
#define PTXEMU_DRIVER_MEMORY_H

#include "driver/call.h"

namespace ptxemu::driver
{

/* The live allocation that holds the whole range; nullptr if there is none. */
const Allocation *allocation_of(const State &s, uint64_t address, size_t bytes);
/* Host memory that the driver knows nothing of. */
bool pageable(const State &s, uint64_t address);

} // namespace ptxemu::driver

#endif
