/* Pages of the KV cache: which are free, and which a sequence holds. */
#ifndef NB_ENGINE_PAGES_H
#define NB_ENGINE_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend/backend.h"

/* A stack of free pages: taking and giving back cost O(1) a page.  One thread at a time. */
typedef struct nbi_pages {
    int32_t *free; /* [n_total], the first n_free are free */
    uint32_t n_free, n_total;
} nbi_pages;

/* A sequence's pages in the order of its positions: page[p / NBI_PAGE_TOKENS] holds position p.  The memory belongs to
 * whoever made the table. */
typedef struct nbi_table {
    int32_t *page; /* [cap] */
    uint32_t n, cap;
} nbi_table;

nb_status nbi_pages_create(nbi_pages *p, uint32_t n_pages); /* 1 .. INT32_MAX pages, all free */
void nbi_pages_free(nbi_pages *p);

static inline size_t nbi_pages_for(size_t tokens)
{
    return tokens / NBI_PAGE_TOKENS + (tokens % NBI_PAGE_TOKENS != 0);
}

/* Gives the table pages until it holds `tokens` positions: all that are missing, or none and false when the pool or the
 * table has no room for them. */
bool nbi_pages_grow(nbi_pages *p, nbi_table *t, size_t tokens);
/* Takes all pages of the table back. */
void nbi_pages_release(nbi_pages *p, nbi_table *t);

#endif
