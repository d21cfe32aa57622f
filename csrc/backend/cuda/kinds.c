/* The kinds of weights that cuda/layout.h draws, a line each: where codes lie in a block, how zero points are stored, and which
 * kernels multiply.  XNOR, PLAIN and PLAIN8, which have no tiles, go ways of their own. */
#include <string.h>

#include "backend/cuda/cuda.h"

static void put_w8(unsigned char *tile, int r, int b, const int8_t *s)
{
    for (int t = 0; t < 4; t++) {
        const int8_t four[4] = {s[2 * t], s[2 * t + 8], s[2 * t + 1], s[2 * t + 9]};
        memcpy(tile + b / 2 * NB_UNIT + (r % 8 * 4 + t) * 16 + (b % 2 * 2 + r / 8) * 4, four, 4);
    }
}

static void put_w4(unsigned char *tile, int r, int b, const int8_t *s)
{
    const int shift = r / 8 * 4;
    for (int t = 0; t < 4; t++) {
        unsigned char *d = tile + (r % 8 * 4 + t) * 16 + b * 4;
        d[0] = (unsigned char)(d[0] | (unsigned)(s[2 * t] + 8) << shift);
        d[1] = (unsigned char)(d[1] | (unsigned)(s[2 * t + 8] + 8) << shift);
        d[2] = (unsigned char)(d[2] | (unsigned)(s[2 * t + 1] + 8) << shift);
        d[3] = (unsigned char)(d[3] | (unsigned)(s[2 * t + 9] + 8) << shift);
    }
}

static void put_nf4(unsigned char *tile, int r, int b, const int8_t *s)
{
    for (int t = 0; t < 4; t++) {
        unsigned char *d = tile + (r % 8 * 4 + t) * 16 + b * 4 + r / 8;
        d[0] = (unsigned char)((s[2 * t] + 8) | (s[2 * t + 1] + 8) << 4);
        d[2] = (unsigned char)((s[2 * t + 8] + 8) | (s[2 * t + 9] + 8) << 4);
    }
}

static void put_w2(unsigned char *block, int r, int b, const int8_t *s)
{
    const int shift = b % 2 * 4 + r / 8 * 2;
    for (int t = 0; t < 4; t++) {
        unsigned char *d = block + (r % 8 * 4 + t) * 16 + b / 2 * 4;
        d[0] = (unsigned char)(d[0] | (unsigned)(s[2 * t] + 2) << shift);
        d[1] = (unsigned char)(d[1] | (unsigned)(s[2 * t + 8] + 2) << shift);
        d[2] = (unsigned char)(d[2] | (unsigned)(s[2 * t + 1] + 2) << shift);
        d[3] = (unsigned char)(d[3] | (unsigned)(s[2 * t + 9] + 2) << shift);
    }
}

/* Bits of both halves of a word. */
static void or_word(unsigned char *at, unsigned low, unsigned high, int shift)
{
    uint32_t w;
    memcpy(&w, at, 4);
    w |= (low | (uint32_t)high << 16) << shift;
    memcpy(at, &w, 4);
}

static void put_w3(unsigned char *block, int r, int b, const int8_t *s)
{
    const int tile = b / 4, high = r / 8;
    for (int t = 0; t < 4; t++) {
        unsigned char *w = block + (r % 8 * 4 + t) * 16 + tile * 4;
        for (int upper = 0; upper < 2; upper++) {
            const unsigned u = (unsigned)(s[2 * t + 8 * upper] + 4), v = (unsigned)(s[2 * t + 8 * upper + 1] + 4);
            if (b % 4 < 3)
                or_word(w + b % 4 * NB_UNIT, u, v, 4 + 3 * high + 6 * upper);
            else if (!high || !upper)
                or_word(w + (high ? 2 : upper) * NB_UNIT, u, v, 1);
            else
                for (int i = 0; i < 3; i++)
                    or_word(w + i * NB_UNIT, u >> i & 1, v >> i & 1, 0);
        }
    }
}

#define FLOATS(name)                                                                                                   \
    {                                                                                                                  \
        NB_K_nb_gemm_##name##_r16_f16, NB_K_nb_gemv_##name##_f16                                                       \
    }
const nbi_cuda_kind nbi_cuda_kinds[NB_N_WEIGHT_KINDS] = {
    [NB_W_DENSE] = {.kernels = {FLOATS(dense)}},
    [NB_W_W8] = {put_w8, .kernels = {FLOATS(w8), FLOATS(w8a8)}},
    [NB_W_W4] = {put_w4, .zeros_always = true, .zero_offset = 8, .kernels = {FLOATS(w4), FLOATS(w4a8)}},
    [NB_W_W4F] = {put_w4, .zero_offset = 128, .kernels = {FLOATS(w4f)}},
    [NB_W_NF4] = {put_nf4, .kernels = {FLOATS(nf4)}},
    [NB_W_W2] = {put_w2, .sixteenths = true, .kernels = {FLOATS(w2), FLOATS(w2a8)}},
    [NB_W_W3] = {put_w3, .sixteenths = true, .kernels = {FLOATS(w3), FLOATS(w3a8)}},
};

unsigned nbi_cuda_kind_of(const nbi_scheme *s)
{
    if (!s->bits)
        return NB_W_DENSE;
    if (s->kind == NBI_KIND_NF4 || s->act == NBI_ACT_SIGN)
        return s->kind == NBI_KIND_NF4 ? NB_W_NF4 : NB_W_XNOR;
    return s->bits == 8 ? NB_W_W8 : s->bits <= 2 ? NB_W_W2 : s->bits == 3 ? NB_W_W3 : s->zero_frac ? NB_W_W4F : NB_W_W4;
}
