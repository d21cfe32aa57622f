/* Copies and fills as work. */
#ifndef PTXEMU_DRIVER_COPY_H
#define PTXEMU_DRIVER_COPY_H

#include "driver/call.h"

namespace ptxemu::driver
{

/* A described copy, checked as the copy functions check it. */
CUresult make_copy(const State &s, const CUDA_MEMCPY3D &m, CopyWork *w);
CUresult check_fill(const State &s, const FillWork &w);

} // namespace ptxemu::driver

#endif
