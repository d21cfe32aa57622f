/* Codes of 1, 2 and 3 bits in the dwords of a lane, in blocks of 16 or 32 codes of a row:
 *
 *   2 bits  16 codes in a dword: bits 2i, 2i+1 of byte j are code 4i + j, so that (w >> 2i) & 0x03030303 holds codes 4i .. 4i+3, a
 *           byte each
 *           bits  0-1  2-3  4-5  6-7   8-9  10-11  ...
 *                [0  ][4  ][8  ][12 ] [1  ][5   ] ...
 *
 *   1 bit   32 codes in a dword: bit i of byte j is code 4i + j
 *
 *   3 bits  32 codes in three dwords d0, d1, d2; codes 4i .. 4i+3 lie in the four bytes at
 *           bits  0-2  3-5  6-7                       i < 6: dword i / 2
 *           d0   [i=0 ][1  ][6, its lower two bits]
 *           d1   [2   ][3  ][7, its lower two bits]
 *           d2   [4   ][5  ][bit 6: the highest of 6, bit 7: of 7]
 *
 * Stored are code + 2 and code + 4.  Codes of one bit are -1 and 1: the bit is (code + 1) / 2, and stands for 0 or 2. */
#include "backend/cpu/cpu.h"

/* Where code k lies among its bytes in a dword, and in the byte. */
static unsigned bit2(size_t k)
{
    return (unsigned)(k % 16 / 4 * 2);
}
static unsigned bit1(size_t k)
{
    return (unsigned)(k % 32 / 4);
}

static void pack1(unsigned char *d, size_t step, const nbi_weight *w, size_t n)
{
    const int8_t *src = w->codes + n * w->k;
    for (size_t k = 0; k < w->k; k++)
        d[k / 32 * step + k % 4] |= (unsigned char)((src[k] > 0) << bit1(k));
}

static unsigned code1(const unsigned char *d, size_t step, size_t k)
{
    return 2 * (d[k / 32 * step + k % 4] >> bit1(k) & 1u);
}

static void pack2(unsigned char *d, size_t step, const nbi_weight *w, size_t n)
{
    const int8_t *src = w->codes + n * w->k;
    for (size_t k = 0; k < w->k; k++)
        d[k / 16 * step + k % 4] |= (unsigned char)(((src[k] + 2) & 3) << bit2(k));
}

static unsigned code2(const unsigned char *d, size_t step, size_t k)
{
    return d[k / 16 * step + k % 4] >> bit2(k) & 3u;
}

/* Code k of 3 bits: two dwords of its block, the bit in a byte of either, and how many bits the first one has. */
typedef struct place3 {
    size_t at, rest_at;
    unsigned bit, rest_bit, bits;
} place3;

static place3 place_of(size_t step, size_t k)
{
    const size_t block = k / 32 * 3, i = k % 32 / 4;
    if (i < 6)
        return (place3){(block + i / 2) * step + k % 4, (block + i / 2) * step + k % 4, i % 2 * 3, 0, 3};
    return (place3){(block + i - 6) * step + k % 4, (block + 2) * step + k % 4, 6, (unsigned)i, 2};
}

static void pack3(unsigned char *d, size_t step, const nbi_weight *w, size_t n)
{
    const int8_t *src = w->codes + n * w->k;
    for (size_t k = 0; k < w->k; k++) {
        const unsigned u = (unsigned)(src[k] + 4) & 7;
        const place3 p = place_of(step, k);
        d[p.at] |= (unsigned char)((u & ((1u << p.bits) - 1)) << p.bit);
        d[p.rest_at] |= (unsigned char)(u >> p.bits << p.rest_bit);
    }
}

static unsigned code3(const unsigned char *d, size_t step, size_t k)
{
    const place3 p = place_of(step, k);
    const unsigned low = d[p.at] >> p.bit & ((1u << p.bits) - 1);
    return p.bits == 3 ? low : low | (d[p.rest_at] >> p.rest_bit & 1u) << 2;
}

const nbi_cpu_packing nbi_cpu_pack1 = {32, 1, 1, pack1, code1};
const nbi_cpu_packing nbi_cpu_pack2 = {16, 1, 2, pack2, code2};
const nbi_cpu_packing nbi_cpu_pack3 = {32, 3, 4, pack3, code3};
