/* The kernels for avx512-vnni: see cpu.h.  Compiled with its instruction flags, called only where the machine has it. */
#if defined(__x86_64__)
#include "backend/cpu/v16_avx512.h"

#define NBI_CPU_TABLE nbi_cpu_avx512
#define NBI_CPU_NAME  "avx512-vnni"
#define NBI_CPU_ISA   "avx512"
#include "backend/cpu/kernels_body.h"
#else
typedef int nbi_cpu_avx512_is_for_x86_64; /* a translation unit is never empty */
#endif
