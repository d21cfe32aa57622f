/* The kernels for NEON with dotprod (SDOT): see cpu.h. */
#if defined(__aarch64__)
#include "backend/cpu/v16_neon.h"

#define NBI_CPU_TABLE nbi_cpu_neon_dot
#define NBI_CPU_NAME  "neon-dot"
#define NBI_CPU_ISA   "neon-dot"
#include "backend/cpu/kernels_body.h"
#else
typedef int nbi_cpu_neon_dot_is_for_aarch64; /* a translation unit is never empty */
#endif
