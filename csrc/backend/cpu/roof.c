/* The roofs: how fast all threads together read memory, and multiply INT8 codes, at best. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/cpu/cpu.h"
#include "base/log.h"

enum { PASSES = 6 };
#define HUGE_PAGE ((size_t)2 << 20)

/* A buffer that no cache holds, within a quarter of what is free. */
static size_t buffer_bytes(nbi_backend *b, size_t slice)
{
    const long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
    size_t bytes = (size_t)256 << 20, most = b->ops->free_bytes(b) / 4;
    if (l3 > 0 && (size_t)l3 * 4 > bytes)
        bytes = (size_t)l3 * 4;
    bytes = bytes > most ? most : bytes;
    bytes = bytes > (size_t)1 << 30 ? (size_t)1 << 30 : bytes;
    return bytes < slice ? slice : bytes / slice * slice;
}

static double read_roof(nbi_backend *b, float *sinks)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    const size_t threads = (size_t)c->threads, bytes = buffer_bytes(b, threads * HUGE_PAGE), part = bytes / threads;
    char *p = aligned_alloc(HUGE_PAGE, bytes);
    double best = 0;
    if (!p)
        return 0;
    (void)madvise(p, bytes, MADV_HUGEPAGE);
    for (int pass = -1; pass < PASSES; pass++) { /* the first one touches the pages */
        const double start = nbi_now();
#pragma omp parallel num_threads(c->threads)
        {
            const size_t t = (size_t)omp_get_thread_num();
            if (pass < 0)
                memset(p + t * part, 0, part);
            else
                sinks[t] = c->kern->roof_read((const float *)(p + t * part), part / sizeof(float));
        }
        const double speed = (double)bytes / (nbi_now() - start);
        if (pass >= 0)
            best = speed > best ? speed : best;
    }
    free(p);
    return best;
}

static double int8_roof(nbi_backend *b, float *sinks)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    double best = 0;
    size_t n = 1000;
    for (int pass = 0; pass < PASSES;) {
        double ops = 0;
        const double start = nbi_now();
#pragma omp parallel num_threads(c->threads) reduction(+ : ops)
        ops += c->kern->roof_int8(n, sinks + omp_get_thread_num());
        const double seconds = nbi_now() - start;
        best = ops / seconds > best ? ops / seconds : best;
        if (seconds < 0.005)
            n *= 2;
        else
            pass++;
    }
    return best;
}

nb_status nbi_cpu_roofs(nbi_backend *b, nbi_roofs *out)
{
    const size_t bytes = (size_t)nbi_cpu_of(b)->threads * sizeof(float);
    float *sinks = malloc(bytes);
    *out = (nbi_roofs){0};
    if (!sinks)
        return nbi_fail_nomem("the roofs", bytes);
    *out = (nbi_roofs){.read = read_roof(b, sinks), .int8 = int8_roof(b, sinks)};
    free(sinks);
    return NB_OK;
}
