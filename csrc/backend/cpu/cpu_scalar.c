/* The kernels in plain C: see cpu.h. */
#include "backend/cpu/v16_scalar.h"

#define NBI_CPU_TABLE nbi_cpu_scalar
#define NBI_CPU_NAME  "scalar"
#define NBI_CPU_ISA   "scalar"
#include "backend/cpu/kernels_body.h"
