/* cpu_avxvnni.c for machines with AVX-512, which encodes the same dot product of 256 bits in its own way: what the tests run where
 * there is no AVX-VNNI.  cpu.h; compiled with its instruction flags. */
#if defined(__x86_64__)
#include "backend/cpu/v16_avx2.h"

#define NBI_CPU_TABLE nbi_cpu_avxvnni_evex
#define NBI_CPU_NAME  "avx2-vnni"
#define NBI_CPU_ISA   "avxvnni"
#include "backend/cpu/kernels_body.h"
#else
typedef int nbi_cpu_avxvnni_evex_is_for_x86_64; /* a translation unit is never empty */
#endif
