/* Element types of tensors in files, and conversions to and from fp32. */
#ifndef NB_BASE_DTYPE_H
#define NB_BASE_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum nbi_dtype {
    NBI_F32,
    NBI_F16,
    NBI_BF16,
    NBI_F64,
    NBI_I8,
    NBI_U8,
    NBI_I16,
    NBI_U16,
    NBI_I32,
    NBI_U32,
    NBI_I64,
    NBI_U64,
    NBI_BOOL,
    NBI_F8_E4M3,
    NBI_F8_E5M2,
    NBI_N_DTYPES
} nbi_dtype;

size_t nbi_dtype_size(nbi_dtype t);      /* bytes of an element */
const char *nbi_dtype_name(nbi_dtype t); /* safetensors spelling: "BF16" */
bool nbi_dtype_from_name(const char *s, nbi_dtype *out);
static inline bool nbi_dtype_is_float(nbi_dtype t)
{
    return t == NBI_F32 || t == NBI_F16 || t == NBI_BF16;
}

static inline float nbi_bf16_to_f32(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
/* Round to nearest even; a NaN stays a (quiet) NaN. */
static inline uint16_t nbi_f32_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}
float nbi_f16_to_f32(uint16_t h);
uint16_t nbi_f32_to_f16(float f); /* round to nearest even; overflow gives infinity */

/* n elements of a float type (F32, F16, BF16) to fp32 and back.  src and dst may be unaligned. */
void nbi_to_f32(float *dst, const void *src, nbi_dtype t, size_t n);
void nbi_from_f32(void *dst, nbi_dtype t, const float *src, size_t n);

#endif
