/* E8P's words in the dwords of a lane (cpu/e8p.h says what is in them), in blocks of 16 codes of a row:
 *
 *   2 bits  a dword: the words of codes 0 .. 7 and of 8 .. 15, the first one in its lower half
 *   4 bits  two dwords: the first words of both, as above, then the second ones
 *
 * Stored is 2 n: code + 15; of 4 bits code + 135, 14 n of the first word and 4 n of the second. */
#include "backend/cpu/cpu.h"

#include <pthread.h>
#include <string.h>

#include "backend/cpu/e8p.h"
#include "base/e8p.h"

nbi_cpu_e8p nbi_cpu_e8p_tables;

static uint8_t
    from_file[256];         /* a file's lower byte as ours, in rows where element 7 counts as negative or none does */
static uint8_t turned[256]; /* what another element in its place changes */

/* Bits of a field of two, of `classes` and `signs`. */
static unsigned pair_at(unsigned element)
{
    return element % 4 * 4 + element / 4 * 2;
}

static unsigned nibble_at(unsigned element)
{
    return element % 4 * 8 + element / 4 * 4;
}

static void build_row(unsigned row)
{
    nbi_cpu_e8p *t = &nbi_cpu_e8p_tables;
    const uint16_t word = (uint16_t)(row << 8);
    int8_t q[8];
    int turn = -1;
    nbi_e8p_decode(q, &word, 1, 2); /* 2 o + 1, o odd */
    for (unsigned i = 0; i < 8; i++)
        if (turn < 0 && q[7] < 0 && (q[i] == 7 || q[i] == -5))
            turn = (int)i;
    for (unsigned i = 0; i < 8; i++) {
        const int o = (q[i] - 1) / 2, size = o < 0 ? -o : o;
        const unsigned class = (int)i == turn ? 3 : (unsigned)size / 2;
        t->classes[row] = (uint16_t)(t->classes[row] | class << pair_at(i));
        t->rows[row] |= (class == 3 ? 0xau ^ 0xeu : 8 | class << 1) << nibble_at(i);
    }
    if (turn >= 0) /* elements 7 and `turn` both have another sign now; of element 0 the others tell */
        turned[row] = (uint8_t)((1u << 7 ^ 1u << turn) >> 1);
}

static void build(void)
{
    static const uint8_t order[8] = {0, 2, 4, 6, 1, 3, 5, 7}; /* base/e8p.h: the element that bit j turns */
    nbi_cpu_e8p *t = &nbi_cpu_e8p_tables;
    for (unsigned row = 0; row < 256; row++)
        build_row(row);
    for (unsigned low = 0; low < 256; low++) {
        const unsigned parity = (unsigned)__builtin_parity(low & 127);
        unsigned signs = 0, nibbles = 0;
        for (unsigned i = 0; i < 8; i++) {
            const unsigned turn = i ? low >> (i - 1) & 1 : parity;
            signs |= turn << pair_at(i);
            nibbles |= ((turn ? 14u : 0u) | (low < 128)) << nibble_at(i);
        }
        t->low[low] = nibbles;
        t->signs[low & 127] = (uint16_t)signs;
        for (unsigned j = 1; j < 8; j++)
            from_file[low] = (uint8_t)(from_file[low] | (low >> j & 1) << (order[j] - 1));
        from_file[low] = (uint8_t)(from_file[low] | (unsigned)__builtin_parity(low) << 7);
    }
}

void nbi_cpu_e8p_build(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, build);
}

static uint32_t word_of(uint16_t file)
{
    return (file & 0xff00u) | (from_file[file & 255] ^ turned[file >> 8]);
}

static void pack(unsigned char *d, size_t step, const nbi_weight *w, size_t n)
{
    const size_t each = nbi_e8p_words(w->scheme.bits), count = w->k / 8;
    const uint16_t *src = w->words + n * count * each;
    for (size_t i = 0; i < count; i++, d += i % 2 ? 0 : each * step)
        for (size_t j = 0; j < each; j++) {
            const uint16_t word = (uint16_t)word_of(src[i * each + j]);
            memcpy(d + j * step + i % 2 * 2, &word, 2);
        }
}

/* n of code k, of the first or second word. */
static unsigned nibble_of(const unsigned char *d, size_t step, size_t k, size_t each, size_t word)
{
    const nbi_cpu_e8p *t = &nbi_cpu_e8p_tables;
    uint16_t u;
    memcpy(&u, d + (k / 16 * each + word) * step + k / 8 % 2 * 2, 2);
    return (t->rows[u >> 8] ^ t->low[u & 255]) >> nibble_at(k % 8) & 15u;
}

static unsigned code2(const unsigned char *d, size_t step, size_t k)
{
    return 2 * nibble_of(d, step, k, 1, 0);
}

static unsigned code4(const unsigned char *d, size_t step, size_t k)
{
    return 14 * nibble_of(d, step, k, 2, 0) + 4 * nibble_of(d, step, k, 2, 1);
}

const nbi_cpu_packing nbi_cpu_pack_e8p2 = {16, 1, 15, pack, code2};
const nbi_cpu_packing nbi_cpu_pack_e8p4 = {16, 2, 135, pack, code4};
