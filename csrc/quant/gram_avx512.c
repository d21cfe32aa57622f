#if defined(__x86_64__)
#include "backend/cpu/v16_avx512.h"

enum { TILE_I = 8 }; /* 16 registers of sums, 2 of b */
#define NBI_GRAM_TRIANGLE nbi_gram_triangle_avx512
#include "quant/gram_body.h"
#endif
