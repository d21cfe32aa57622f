/* Kernels of libraries, which belong to no context. */
#ifndef PTXEMU_DRIVER_LIBRARY_H
#define PTXEMU_DRIVER_LIBRARY_H

#include "driver/call.h"

namespace ptxemu::driver
{

CUresult function_of_kernel(Call &c, CUkernel kernel, CUfunction *out); /* in the current context */

} // namespace ptxemu::driver

#endif
