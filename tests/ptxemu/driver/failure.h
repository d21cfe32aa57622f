/* Failures on order: NB_EMU_FAIL names calls that fail without doing anything, so that a test can walk every error path
 * of a host.
 *
 *   cuMemAlloc:3                 the third cuMemAlloc gives CUDA_ERROR_OUT_OF_MEMORY
 *   cuMemAlloc:3:700             the third cuMemAlloc gives CUresult 700
 *   cuMemAlloc:3,cuLaunchKernel:1:719
 *   *:17                         the seventeenth call of any function fails
 *
 * Functions are named without their version ("_v2").  Each rule strikes once.  Calls are counted from cuInit on, that
 * one included; cuGetErrorName, cuGetErrorString and cuGetProcAddress never fail by order and do not count. */
#ifndef PTXEMU_DRIVER_FAILURE_H
#define PTXEMU_DRIVER_FAILURE_H

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ptxemu::driver
{

class FailurePlan
{
  public:
    /* False: the text cannot be read; *why is a sentence. */
    bool parse(const std::string &text, std::string *why);
    /* Counts a call of `function`.  0, or the CUresult that it has to give. */
    int strike(const std::string &function);

  private:
    struct Rule {
        std::string function; /* "*": any */
        uint64_t nth;
        int result;
        uint64_t seen = 0;
    };
    std::vector<Rule> rules_;
};

} // namespace ptxemu::driver

#endif
