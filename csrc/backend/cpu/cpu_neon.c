/* The kernels for plain NEON, which every AArch64 has: see cpu.h. */
#if defined(__aarch64__)
#include "backend/cpu/v16_neon.h"

#define NBI_CPU_TABLE nbi_cpu_neon
#define NBI_CPU_NAME  "neon"
#define NBI_CPU_ISA   "neon"
#include "backend/cpu/kernels_body.h"
#else
typedef int nbi_cpu_neon_is_for_aarch64; /* a translation unit is never empty */
#endif
