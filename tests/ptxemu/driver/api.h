/* cuda.h, with every function that we define exported. */
#ifndef PTXEMU_DRIVER_API_H
#define PTXEMU_DRIVER_API_H

#pragma GCC visibility push(default)
#include <cuda.h>
#include <cudaProfiler.h>
#include "ptxemu.h"
#pragma GCC visibility pop

#endif
