/* The CPU's kernels beside the CUDA backend.  Each backend has an nbi_linear and an nbi_step of its own; here those of the CPU go
 * by other names, since C++ wants one definition of a name in a program. */
#pragma once

extern "C" {
#include "backend/backend.h"
#define nbi_linear nbi_cpu_packed
#define nbi_step   nbi_cpu_batch
#include "backend/cpu/cpu.h"
#undef nbi_linear
#undef nbi_step
}
