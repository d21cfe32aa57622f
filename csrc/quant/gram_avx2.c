#if defined(__x86_64__)
#define NBI_GRAM_TRIANGLE nbi_gram_triangle_avx2
#include "quant/gram_body.h"
#endif
