/* The kernels for NEON with i8mm (USMMLA for rows in pairs, USDOT for one): see cpu.h. */
#if defined(__aarch64__)
#include "backend/cpu/v16_neon.h"

#define NBI_CPU_TABLE nbi_cpu_neon_i8mm
#define NBI_CPU_NAME  "neon-i8mm"
#define NBI_CPU_ISA   "neon-i8mm"
#include "backend/cpu/kernels_body.h"
#else
typedef int nbi_cpu_neon_i8mm_is_for_aarch64; /* a translation unit is never empty */
#endif
