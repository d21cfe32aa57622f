/* Words of base/e8p.h as the CPU keeps them, two for eight weights of 4 bits:
 *
 *     bits 8-15  the row of the table, as in a file
 *     bit  7     1/4 is taken away, not added
 *     bits 0-6   element 1 + i has another sign than in the row; an even number of all eight has, which says so of element 0
 *
 * In rows whose sum is odd it is not element 7 that counts as negative from the start but the first 3/2: then an element of a row is
 * one of four numbers. */
#ifndef NB_BACKEND_CPU_E8P_H
#define NB_BACKEND_CPU_E8P_H

#include <stdint.h>

/* An element of a codeword is 2 n - 15 with n in 2 .. 13.  In `rows` and `low` the n of a row and what the other bits of a word change
 * lie in nibbles: element i at bit 8 i, element 4 + i at bit 8 i + 4, and n of a word is rows[word >> 8] ^ low[word & 255].
 * `classes` has two bits an element, of 1/2, 3/2, 5/2 and -3/2 the number, and `signs` has 1 where the sign turns: element i at bit 4 i,
 * element 4 + i at bit 4 i + 2. */
typedef struct nbi_cpu_e8p {
    _Alignas(64) uint16_t classes[256];
    uint16_t signs[128];
    uint32_t rows[256], low[256];
} nbi_cpu_e8p;

extern nbi_cpu_e8p nbi_cpu_e8p_tables;
void nbi_cpu_e8p_build(void); /* the tables; before a weight is packed or loaded */

#endif
