#include "base/huge.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/checked.h"

void *nbi_huge_map(size_t bytes)
{
    size_t total;
    if (!nbi_add(bytes, NBI_HUGE_PAGE, &total))
        return NULL;
    unsigned char *raw = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED)
        return NULL;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t before = (NBI_HUGE_PAGE - (uintptr_t)raw % NBI_HUGE_PAGE) % NBI_HUGE_PAGE;
    const size_t used = before + nbi_ceil_div(bytes, page) * page;
    if (before)
        munmap(raw, before);
    if (used < total)
        munmap(raw + used, total - used);
    (void)madvise(raw + before, used - before, MADV_HUGEPAGE);
    return raw + before;
}

/* What smaps says of the map that begins at `map`: the kilobytes of it that huge pages of a file map. */
static size_t huge_kilobytes(const void *map)
{
    char line[512];
    unsigned long long begin, kb = 0;
    bool here = false;
    FILE *f = fopen("/proc/self/smaps", "re");
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "%llx-", &begin) == 1 && strchr(line, '-')) {
            if (here)
                break;
            here = begin == (uintptr_t)map;
        } else if (here && sscanf(line, "FilePmdMapped: %llu", &kb) == 1)
            break;
    }
    if (f)
        fclose(f);
    return (size_t)kb;
}

bool nbi_huge_populate(const void *map, size_t bytes, int threads)
{
    const size_t piece = 8 * NBI_HUGE_PAGE, pieces = nbi_ceil_div(bytes, piece);
    (void)madvise((void *)map, bytes, MADV_HUGEPAGE);
#ifdef MADV_POPULATE_READ /* older systems fault pages in one by one, as they are read */
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (size_t i = 0; i < pieces; i++)
        (void)madvise((char *)map + i * piece, i + 1 == pieces ? bytes - i * piece : piece, MADV_POPULATE_READ);
#else
    (void)pieces;
    (void)threads;
#endif
    return huge_kilobytes(map) > bytes / 2048;
}
