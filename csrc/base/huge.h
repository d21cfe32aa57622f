/* Memory in huge pages: one entry of the TLB instead of 512, one page fault instead of 512. */
#ifndef NB_BASE_HUGE_H
#define NB_BASE_HUGE_H

#include <stdbool.h>
#include <stddef.h>

#define NBI_HUGE_PAGE ((size_t)2 << 20)

/* Zeroed memory that begins at a multiple of a huge page; where the system has none of them, of small ones.  munmap() it.
 * NULL: there is no memory. */
void *nbi_huge_map(size_t bytes);
/* Brings all pages of a map of a file into memory.  True: most of it is mapped by huge pages. */
bool nbi_huge_populate(const void *map, size_t bytes, int threads);

#endif
