/* E8P, the codebook of QuIP# (Tseng et al., arXiv 2402.04396): 2^16 points of the lattice E8 + 1/4, one for eight weights that
 * stand side by side, which is 2 bits a weight.
 *
 * A word c is a row of a table of 256 vectors of 1/2, 3/2 and 5/2 (c >> 8) and eight bits of signs (c & 255).  Bit j turns the
 * sign of element order[j], order = 0 2 4 6 1 3 5 7; bit 0 first becomes the parity of all eight, so that the number of turned
 * signs is even.  Where a row's sum is odd its element 7 counts as negative from the start: sums are even, and these are points
 * of E8 (its half D8 + 1/2).  Last, 1/4 is added to all elements, or taken away where the parity of the eight bits was odd.
 * Rows: the 227 of norm^2 <= 10, ascending, then the first 29 of the 56 orders of (3/2)^5 (1/2)^3, ascending.  (The authors' own
 * files take another 29 of these 56.)
 *
 * All elements are odd multiples of 1/4: a codeword is eight odd int8 from -11 to 11.
 *
 * With 4 bits a second word says what the first leaves over, 3.5 times enlarged: v = v1 + v2 / 3.5.  The authors have 3.45; with
 * 3.5 the sum is an integer multiple of 1/28, 7 q1 + 2 q2, from -99 to 99.  On a normal distribution of the size that weights
 * have here the mean squared error is that of 3.45 to within 1 % (tests/e8p_test.cpp). */
#ifndef NB_BASE_E8P_H
#define NB_BASE_E8P_H

#include <stddef.h>
#include <stdint.h>

/* Words for eight weights. */
static inline size_t nbi_e8p_words(unsigned bits)
{
    return bits / 2;
}
/* A code of 1 stands for 1/4 with 2 bits, for 1/28 with 4. */
static inline int nbi_e8p_unit(unsigned bits)
{
    return bits == 2 ? 4 : 28;
}

/* words [count][bits/2] to codes [count][8].  Every word is valid. */
void nbi_e8p_decode(int8_t *codes, const uint16_t *words, size_t count, unsigned bits);

/* x [count] of eight finite numbers, `stride` elements from one to the next; the nearest codeword of each (with 4 bits the
 * nearest, and then the nearest to what it leaves over).  words may be NULL.  The same bits on every machine. */
void nbi_e8p_nearest(uint16_t *words, int8_t *codes, const float *x, size_t stride, size_t count, unsigned bits);

#endif
