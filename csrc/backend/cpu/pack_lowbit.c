/* Codes of 1, 2 and 3 bits in the dwords of a lane, in blocks of 16 or 32 codes of a row:
 *
 *   2 bits  16 codes in a dword: bits 2i, 2i+1 of byte j are code 4i + j, so that (w >> 2i) & 0x03030303 holds codes 4i .. 4i+3, a
 *           byte each
 *           bits  0-1  2-3  4-5  6-7   8-9  10-11  ...
 *                [0  ][4  ][8  ][12 ] [1  ][5   ] ...
 *
 *   1 bit   32 codes in a dword: bit i of byte j is code 4i + j
 *
 *   3 bits  32 codes in three dwords: the lower two bits of codes 0 .. 15 as above, those of 16 .. 31, and the highest bit of all
 *           32: those of 0 .. 15 lie where they would if their dword had room, next to the lower two (the last one in bit 0), and
 *           those of 16 .. 31 one bit further
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

/* The lower bits' byte, and the position of the highest bit in the third dword. */
static size_t low3(size_t k, size_t step)
{
    return (k / 32 * 3 + k % 32 / 16) * step + k % 4;
}
static size_t position3(size_t k)
{
    return (k % 4 * 8 + bit2(k) + 2 + k % 32 / 16) % 32;
}
static size_t high3(size_t k, size_t step)
{
    return (k / 32 * 3 + 2) * step + position3(k) / 8;
}

static void pack3(unsigned char *d, size_t step, const nbi_weight *w, size_t n)
{
    const int8_t *src = w->codes + n * w->k;
    for (size_t k = 0; k < w->k; k++) {
        const unsigned u = (unsigned)(src[k] + 4) & 7;
        d[low3(k, step)] |= (unsigned char)((u & 3) << bit2(k));
        d[high3(k, step)] |= (unsigned char)(u >> 2 << position3(k) % 8);
    }
}

static unsigned code3(const unsigned char *d, size_t step, size_t k)
{
    return (d[low3(k, step)] >> bit2(k) & 3u) | (d[high3(k, step)] >> position3(k) % 8 & 1u) << 2;
}

const nbi_cpu_packing nbi_cpu_pack1 = {32, 1, 1, pack1, code1};
const nbi_cpu_packing nbi_cpu_pack2 = {16, 1, 2, pack2, code2};
const nbi_cpu_packing nbi_cpu_pack3 = {32, 3, 4, pack3, code3};
