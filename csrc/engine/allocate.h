/* Which choice each item gets when all of them share a budget: the multiple-choice knapsack problem. */
#ifndef NB_ENGINE_ALLOCATE_H
#define NB_ENGINE_ALLOCATE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define NBI_MOST_CHOICES 16

typedef struct nbi_choice {
    uint64_t size;
    double cost; /* finite */
} nbi_choice;

typedef struct nbi_item {
    nbi_choice choice[NBI_MOST_CHOICES];
    size_t n; /* at least 1 */
} nbi_item;

/* pick[i]: the choice of item i, such that the sizes add up to at most `budget` and the costs to as little as possible; among
 * equals the smaller size.  Exact where (budget - smallest) / gcd of the differences of sizes is below some 100,000, which
 * holds for matrices with round shapes; else sizes are rounded up to a 100,000th of that room, and what rounding left is given
 * to whoever gains most by it.  NB_ELIMIT: even the smallest choices need more; *smallest (may be NULL) is what they need. */
nb_status nbi_allocate(size_t *pick, const nbi_item *items, size_t n, uint64_t budget, uint64_t *smallest);

#endif
