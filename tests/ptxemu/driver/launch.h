/* Launches: the checks that the driver makes, and the run of a grid. */
#ifndef PTXEMU_DRIVER_LAUNCH_H
#define PTXEMU_DRIVER_LAUNCH_H

#include "driver/call.h"

namespace ptxemu::driver
{

/* Fills `work` for a launch that the device can take; else the CUresult that says why not.  `params` is an array of
 * pointers, or `extra` names a buffer, as in cuLaunchKernel. */
struct LaunchRequest {
    Dim3 grid, block, cluster{0, 0, 0}; /* cluster 0: the function's own, or none */
    unsigned dynamic_shared = 0;
    bool cooperative = false;
    void **params = nullptr, **extra = nullptr;
};
CUresult prepare_launch(Call &c, FunctionObject &f, const LaunchRequest &request, KernelWork *work);

void run_kernel(Context &context, const KernelWork &work);

/* A CUfunction, or a CUkernel in its place, in the current context. */
CUresult find_function(Call &c, CUfunction h, std::shared_ptr<FunctionObject> *out);

CUresult get_attribute(const FunctionObject &f, CUfunction_attribute attribute, int *v);
CUresult set_attribute(FunctionObject &f, CUfunction_attribute attribute, int v);

} // namespace ptxemu::driver

#endif
