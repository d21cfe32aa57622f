#include "engine/pages.h"

#include <stdlib.h>

nb_status nbi_pages_create(nbi_pages *p, uint32_t n_pages)
{
    *p = (nbi_pages){0};
    if (n_pages == 0 || n_pages > INT32_MAX)
        return nbi_fail(NB_EINVAL, "the KV cache has %u pages, expected 1 to %d", n_pages, INT32_MAX);
    p->free = malloc(n_pages * sizeof *p->free);
    if (!p->free)
        return nbi_fail_nomem("the list of free pages", n_pages * sizeof *p->free);
    for (uint32_t i = 0; i < n_pages; i++)
        p->free[i] = (int32_t)(n_pages - 1 - i); /* page 0 leaves first */
    p->n_free = p->n_total = n_pages;
    return NB_OK;
}

void nbi_pages_free(nbi_pages *p)
{
    free(p->free);
    *p = (nbi_pages){0};
}

bool nbi_pages_grow(nbi_pages *p, nbi_table *t, size_t tokens)
{
    size_t want = nbi_pages_for(tokens);
    if (want > t->cap || (want > t->n && want - t->n > p->n_free))
        return false;
    while (t->n < want)
        t->page[t->n++] = p->free[--p->n_free];
    return true;
}

void nbi_pages_release(nbi_pages *p, nbi_table *t)
{
    while (t->n > 0)
        p->free[p->n_free++] = t->page[--t->n];
}
