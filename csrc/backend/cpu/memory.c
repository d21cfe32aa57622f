/* Memory of the CPU backend: aligned zeroed blocks, in huge pages where they are large, and how much is left for us. */
#include "backend/cpu/cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/checked.h"
#include "base/huge.h"

#define ALIGN ((size_t)64) /* a cache line, an AVX-512 register */

/* What stands before each block that we hand out. */
typedef struct header {
    void *base;
    size_t mapped; /* bytes of the map at base; 0: calloc'ed */
} header;
_Static_assert(sizeof(header) <= ALIGN, "a header keeps the alignment");

static header *header_of(void *p)
{
    return (header *)((char *)p - ALIGN);
}

/*   calloc'ed or mapped   aligned to 64: what the caller gets
 *   |                     |
 *   [pad][ header         ][ bytes ...        ]
 * calloc and not aligned_alloc + memset, maps likewise: the pages of a large cache stay untouched until they are used.
 * AddressSanitizer sees the ends of calloc'ed blocks only. */
nb_status nbi_cpu_alloc(nbi_backend *b, void **out, size_t bytes, const char *what)
{
    (void)b;
    size_t total;
    unsigned char *raw = NULL, *p = NULL;
    bool mapped = false;
    *out = NULL;
#ifndef NBI_CPU_SANITIZED
    mapped = bytes >= NBI_HUGE_PAGE / 2;
#endif
    if (nbi_add(bytes, 2 * ALIGN, &total))
        raw = mapped ? nbi_huge_map(total) : calloc(1, total);
    if (!raw)
        return nbi_fail_nomem(what, bytes);
    p = raw + ALIGN;
    p += (ALIGN - (uintptr_t)p % ALIGN) % ALIGN;
    *header_of(p) = (header){raw, mapped ? total : 0};
    *out = p;
    return NB_OK;
}

void nbi_cpu_release(nbi_backend *b, void *p)
{
    if (!p || nbi_cpu_in_arena(nbi_cpu_of(b), p))
        return;
    const header h = *header_of(p);
    if (h.mapped)
        munmap(h.base, h.mapped);
    else
        free(h.base);
}

/* ---- one map for all weights of a model: small ones share huge pages ---- */

nb_status nbi_cpu_reserve(nbi_backend *b, size_t bytes)
{
    nbi_cpu *c = nbi_cpu_of(b);
#ifndef NBI_CPU_SANITIZED
    if (!c->arena.base && (c->arena.base = nbi_huge_map(bytes)))
        c->arena.size = bytes;
#else
    (void)c;
    (void)bytes;
#endif
    return NB_OK; /* without it each weight is allocated by itself */
}

nb_status nbi_cpu_alloc_weight(nbi_backend *b, void **out, size_t bytes)
{
    nbi_cpu *c = nbi_cpu_of(b);
    size_t room;
    if (c->arena.base && nbi_round_up(bytes, ALIGN, &room) && room <= c->arena.size) {
        const size_t at = __atomic_fetch_add(&c->arena.used, room, __ATOMIC_RELAXED);
        if (at <= c->arena.size - room) {
            *out = c->arena.base + at;
            return NB_OK;
        }
        __atomic_fetch_sub(&c->arena.used, room, __ATOMIC_RELAXED);
    }
    return nbi_cpu_alloc(b, out, bytes, "a packed weight");
}

bool nbi_cpu_in_arena(const nbi_cpu *c, const void *p)
{
    return (uintptr_t)p - (uintptr_t)c->arena.base < c->arena.size;
}

void nbi_cpu_free_arena(nbi_cpu *c)
{
    if (c->arena.base)
        munmap(c->arena.base, c->arena.size);
}

/* The number in a file that holds only that ("max" and other words: no limit). */
static size_t read_number(const char *path, size_t otherwise)
{
    unsigned long long v;
    FILE *f = fopen(path, "re");
    if (!f)
        return otherwise;
    if (fscanf(f, "%llu", &v) != 1)
        v = otherwise;
    fclose(f);
    return (size_t)v;
}

/* The number behind `key` in a file of "key number" lines. */
static size_t read_field(const char *path, const char *key, size_t otherwise)
{
    char line[256];
    unsigned long long v = otherwise;
    size_t len = strlen(key);
    FILE *f = fopen(path, "re");
    if (!f)
        return otherwise;
    while (fgets(line, sizeof line, f))
        if (strncmp(line, key, len) == 0 && sscanf(line + len, "%llu", &v) == 1)
            break;
    fclose(f);
    return (size_t)v;
}

/* What one control group leaves: its limit less what it uses, not counting file pages that it can drop. */
static size_t group_left(const char *dir, const char *limit_file, const char *used_file)
{
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", dir, limit_file);
    size_t limit = read_number(path, SIZE_MAX);
    snprintf(path, sizeof path, "%s/%s", dir, used_file);
    size_t used = read_number(path, 0);
    snprintf(path, sizeof path, "%s/memory.stat", dir);
    size_t cached = read_field(path, "inactive_file ", 0);
    used -= cached < used ? cached : used;
    return limit == SIZE_MAX ? SIZE_MAX : (used < limit ? limit - used : 0);
}

/* The tightest of our control group (version 2) and those above it. */
static size_t groups_left(void)
{
    char line[512], dir[600];
    size_t left = group_left("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes");
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (!f)
        return left;
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, "0::/", 4) != 0)
            continue;
        snprintf(dir, sizeof dir, "/sys/fs/cgroup%s", line + 3);
        while (strlen(dir) >= strlen("/sys/fs/cgroup")) {
            size_t here = group_left(dir, "memory.max", "memory.current");
            left = here < left ? here : left;
            *strrchr(dir, '/') = 0;
        }
    }
    fclose(f);
    return left;
}

size_t nbi_cpu_free_bytes(nbi_backend *b)
{
    (void)b;
    size_t kib = read_field("/proc/meminfo", "MemAvailable:", SIZE_MAX / 1024), left = groups_left();
    return kib * 1024 < left ? kib * 1024 : left;
}
