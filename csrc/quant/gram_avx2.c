#if defined(__x86_64__)
#include "backend/cpu/v16_avx2.h"

enum { TILE_I = 2 }; /* 8 registers of sums, 4 of b */
#define NBI_GRAM_TRIANGLE nbi_gram_triangle_avx2
#include "quant/gram_body.h"
#endif
