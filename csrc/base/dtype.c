#include "base/dtype.h"

static const struct {
    const char *name;
    size_t size;
} table[NBI_N_DTYPES] = {
    [NBI_F32] = {"F32", 4},   [NBI_F16] = {"F16", 2},         [NBI_BF16] = {"BF16", 2},       [NBI_F64] = {"F64", 8},
    [NBI_I8] = {"I8", 1},     [NBI_U8] = {"U8", 1},           [NBI_I16] = {"I16", 2},         [NBI_U16] = {"U16", 2},
    [NBI_I32] = {"I32", 4},   [NBI_U32] = {"U32", 4},         [NBI_I64] = {"I64", 8},         [NBI_U64] = {"U64", 8},
    [NBI_BOOL] = {"BOOL", 1}, [NBI_F8_E4M3] = {"F8_E4M3", 1}, [NBI_F8_E5M2] = {"F8_E5M2", 1},
};

size_t nbi_dtype_size(nbi_dtype t)
{
    return table[t].size;
}
const char *nbi_dtype_name(nbi_dtype t)
{
    return table[t].name;
}

bool nbi_dtype_from_name(const char *s, nbi_dtype *out)
{
    for (int i = 0; i < NBI_N_DTYPES; i++)
        if (strcmp(s, table[i].name) == 0) {
            *out = (nbi_dtype)i;
            return true;
        }
    return false;
}

float nbi_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = (h >> 10) & 31, man = h & 0x3ff, u;
    if (exp == 31)
        u = sign | 0x7f800000u | (man << 13);
    else if (exp)
        u = sign | ((exp + 112) << 23) | (man << 13);
    else { /* subnormal: man * 2^-24, exact in fp32 */
        float f = (float)man * 0x1p-24f;
        memcpy(&u, &f, 4);
        u |= sign;
    }
    float f;
    memcpy(&f, &u, 4);
    return f;
}

uint16_t nbi_f32_to_f16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    uint16_t sign = (uint16_t)((u >> 16) & 0x8000);
    u &= 0x7fffffffu;
    if (u > 0x7f800000u)
        return sign | 0x7e00;
    if (u >= 0x477ff000u) /* 65520 and above round to infinity */
        return sign | 0x7c00;
    if (u < 0x38800000u) { /* below 2^-14: adding 0.5 aligns the last bit at 2^-24 and rounds to nearest even */
        float a;
        memcpy(&a, &u, 4);
        a += 0.5f;
        memcpy(&u, &a, 4);
        return sign | (uint16_t)(u - 0x3f000000u);
    }
    u += 0xfffu + ((u >> 13) & 1);
    return sign | (uint16_t)((u - 0x38000000u) >> 13);
}

void nbi_to_f32(float *dst, const void *src, nbi_dtype t, size_t n)
{
    const unsigned char *s = src;
    if (t == NBI_F32) {
        memcpy(dst, src, n * 4);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, s + 2 * i, 2);
        dst[i] = t == NBI_F16 ? nbi_f16_to_f32(h) : nbi_bf16_to_f32(h);
    }
}

void nbi_from_f32(void *dst, nbi_dtype t, const float *src, size_t n)
{
    unsigned char *d = dst;
    if (t == NBI_F32) {
        memcpy(dst, src, n * 4);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        uint16_t h = t == NBI_F16 ? nbi_f32_to_f16(src[i]) : nbi_f32_to_bf16(src[i]);
        memcpy(d + 2 * i, &h, 2);
    }
}
