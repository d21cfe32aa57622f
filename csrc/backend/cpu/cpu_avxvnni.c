/* The kernels for AVX2 with AVX-VNNI: see cpu.h.  Compiled with its instruction flags, called only where the machine has it. */
#if defined(__x86_64__)
#include "backend/cpu/v16_avx2.h"

#define NBI_CPU_TABLE nbi_cpu_avxvnni
#define NBI_CPU_NAME  "avx2-vnni"
#define NBI_CPU_ISA   "avxvnni"
#include "backend/cpu/kernels_body.h"
#else
typedef int nbi_cpu_avxvnni_is_for_x86_64; /* a translation unit is never empty */
#endif
