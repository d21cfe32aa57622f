/* "search" of a recipe: which schemes each layer may get, and how the best assignment is found.
 *
 *   "search": {"target_bits": 3.5, "by": "kl", "windows": 8, "tokens": 16384,
 *              "choices": [{"bits": 2, "symmetric": false, "group_size": 64}, ..., null]}
 * A choice is what "weights" of an override is: on top of the recipe's own weights; null: left as it is. */
#ifndef NB_QUANT_SEARCH_H
#define NB_QUANT_SEARCH_H

#include <jansson.h>

#include "base/weight.h"

#define NBI_SEARCH_CHOICES 16

typedef enum nbi_search_by {
    NBI_BY_KL,   /* divergence of the logits with only that layer quantized */
    NBI_BY_ERROR /* Hessian-weighted error of its outputs, relative to the outputs */
} nbi_search_by;

typedef struct nbi_search {
    double target_bits; /* 0: none */
    nbi_search_by by;
    uint32_t windows, tokens;
    size_t n;
    nbi_scheme scheme[NBI_SEARCH_CHOICES];
    json_t *weights[NBI_SEARCH_CHOICES]; /* as written; null for 16 bits */
} nbi_search;

/* j: the object, NULL: the defaults, which are the example above with 2, 3 and 4 bits (asymmetric, groups of 64), 8 bits per
 * channel, and null: at 3 and 4 bits zero points and small groups bring more than the bits that they take.  base: what choices are on top of. */
nb_status nbi_search_parse(nbi_search *s, const json_t *j, const nbi_scheme *base, const char *where);
void nbi_search_free(nbi_search *s); /* the members */

#endif
