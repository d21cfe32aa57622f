/* Layers whose weights and activations are one bit each: of K products of signs, those that differ are counted by XOR and
 * popcount, and  sum = K - 2 * count.  Bits beyond K are 0 on both sides.  Sums are integers: every machine has the same.
 *
 * Rows of weights and of activations are l->bit_words 64-bit words, whole blocks of 512 bits; bit k % 64 of word k / 64 is 1
 * for a positive sign.  Included after linear_body.h. */
#include "backend/cpu/cpu.h"

#define XNOR_BLOCK 8 /* words: 512 bits */

#if defined(__AVX512BW__)
/* Bits that differ between a and each of four rows of weights, `words` words apart. */
#define XNOR_COUNT(name, target, popcount64)                                                                           \
    target static void name(const uint64_t *a, const uint64_t *w, size_t words, uint32_t count[4])                     \
    {                                                                                                                  \
        __m512i sum[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),                      \
                          _mm512_setzero_si512()};                                                                     \
        for (size_t i = 0; i < words; i += XNOR_BLOCK) {                                                               \
            const __m512i x = _mm512_loadu_si512(a + i);                                                               \
            for (size_t r = 0; r < 4; r++)                                                                             \
                sum[r] =                                                                                               \
                    _mm512_add_epi64(sum[r], popcount64(_mm512_xor_si512(x, _mm512_loadu_si512(w + r * words + i))));  \
        }                                                                                                              \
        for (size_t r = 0; r < 4; r++)                                                                                 \
            count[r] = (uint32_t)_mm512_reduce_add_epi64(sum[r]);                                                      \
    }
/* Without an instruction of its own: a table of nibbles, and sums of eight bytes. */
V16_INLINE __m512i xnor_popcount64(__m512i v)
{
    const __m512i mask = _mm512_set1_epi8(15),
                  table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m512i low = _mm512_shuffle_epi8(table, _mm512_and_si512(v, mask));
    const __m512i high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(v, 4), mask));
    return _mm512_sad_epu8(_mm512_add_epi8(low, high), _mm512_setzero_si512());
}
XNOR_COUNT(xnor_count_table, , xnor_popcount64)
XNOR_COUNT(xnor_count_vpopcnt, __attribute__((target("avx512vpopcntdq"))), _mm512_popcnt_epi64)

static void xnor_count(const uint64_t *a, const uint64_t *w, size_t words, uint32_t count[4])
{
    if (__builtin_cpu_supports("avx512vpopcntdq"))
        xnor_count_vpopcnt(a, w, words, count);
    else
        xnor_count_table(a, w, words, count);
}
#elif defined(__AVX2__)
static void xnor_count(const uint64_t *a, const uint64_t *w, size_t words, uint32_t count[4])
{
    const __m256i mask = _mm256_set1_epi8(15),
                  table = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (size_t i = 0; i < words; i += 4) {
        const __m256i x = _mm256_loadu_si256((const __m256i *)(a + i));
        for (size_t r = 0; r < 4; r++) {
            const __m256i v = _mm256_xor_si256(x, _mm256_loadu_si256((const __m256i *)(w + r * words + i)));
            const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(v, mask));
            const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), mask));
            sum[r] = _mm256_add_epi64(sum[r], _mm256_sad_epu8(_mm256_add_epi8(low, high), _mm256_setzero_si256()));
        }
    }
    for (size_t r = 0; r < 4; r++) {
        const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(sum[r]), _mm256_extracti128_si256(sum[r], 1));
        count[r] = (uint32_t)_mm_cvtsi128_si32(_mm_add_epi64(two, _mm_srli_si128(two, 8)));
    }
}
#else
static void xnor_count(const uint64_t *a, const uint64_t *w, size_t words, uint32_t count[4])
{
    for (size_t r = 0; r < 4; r++) {
        count[r] = 0;
        for (size_t i = 0; i < words; i++)
            count[r] += (uint32_t)__builtin_popcountll(a[i] ^ w[r * words + i]);
    }
}
#endif

/* y = (float)sum * scale of the row of weights * scale of the row of x, then the epilogue. */
static void linear_xnor(const nbi_cpu_job *j, size_t p0, size_t p1, size_t r0, size_t r1)
{
    const nbi_linear *l = j->l;
    for (size_t p = p0; p < p1; p++)
        for (size_t r = r0; r < r1; r++) {
            const uint64_t *w = (const uint64_t *)(l->w + p * l->panel_bytes);
            const uint64_t *x = (const uint64_t *)j->q + r * l->bit_words;
            uint32_t count[NBI_PANEL];
            float sum[NBI_PANEL];
            v16 s[MAX_P];
            for (size_t i = 0; i < NBI_PANEL; i += 4)
                xnor_count(x, w + i * l->bit_words, l->bit_words, count + i);
            for (size_t i = 0; i < NBI_PANEL; i++)
                sum[i] = (float)((int32_t)l->k - 2 * (int32_t)count[i]);
            load_scales(l, p * NBI_PANEL, 1, s);
            finish(j, p, r, v16_mul(v16_mul(v16_load(sum), s[0]), v16_set1(j->q_scale[r])));
        }
}

/* Signs of a row, and the mean of its magnitudes: sixteen lanes by plain addition, joined by the tree (rows_body.h), divided
 * by K.  NaN for a row with a NaN or an infinity in it, or whose sum is beyond fp32. */
static void sign_row(const nbi_cpu_job *j, size_t row)
{
    const size_t k = j->l->k;
    const float *x = j->x + row * k;
    uint64_t *bits = (uint64_t *)j->q + row * j->l->bit_words;
    float lane[16] = {0};
    memset(bits, 0, j->l->bit_words * sizeof *bits);
    for (size_t i = 0; i < k; i++) {
        lane[i % 16] = lane[i % 16] + __builtin_fabsf(x[i]);
        bits[i / 64] |= (uint64_t)(x[i] >= 0) << i % 64;
    }
    const float mean = v16_sum(v16_load(lane)) / (float)k;
    j->q_scale[row] = mean <= 0x1.fffffep127f ? mean : __builtin_nanf("");
}
