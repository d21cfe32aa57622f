/* The roofs: how fast all threads together read memory, and multiply INT8 codes, at best. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/cpu/cpu.h"
#include "base/log.h"

enum { PASSES = 6 };
#define PASS_SECONDS 0.02 /* of INT8: a neighbour's burst on a shared core is shorter than all of them */
#define HUGE_PAGE    ((size_t)2 << 20)
#define FIELD_LEAST                                                                                                    \
    ((size_t)48 << 20) /* weights that are read instead of a buffer: more than caches of a few cores hold */

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

/* One pass of a thread over its share of each weight; gives the bytes. */
static size_t read_weights(const nbi_cpu *c, const nbi_linear *const *weights, size_t n, size_t thread, bool one,
                           float *sink)
{
    const size_t unit = 4096;
    size_t bytes = 0;
    for (size_t i = 0; i < n; i++) {
        const size_t part = weights[i]->panels * weights[i]->panel_bytes / (size_t)c->threads / unit * unit;
        if (part)
            *sink = c->kern->roof_read((const float *)(const void *)(weights[i]->w + thread * part),
                                       part / sizeof(float), one);
        bytes += part;
    }
    return bytes;
}

/* Reads the weights, where no cache holds them, else a buffer of its own. */
static double read_roof(nbi_backend *b, const nbi_linear *const *weights, size_t n, float *sinks)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    const size_t slice = (size_t)c->threads * HUGE_PAGE;
    nbi_linear own = {.panels = 1};
    const nbi_linear *one = &own;
    size_t all = 0;
    double best = 0;
    for (size_t i = 0; i < n; i++)
        all += weights[i]->panels * weights[i]->panel_bytes;
    if (all < FIELD_LEAST) {
        own.panel_bytes = buffer_bytes(b, slice);
        if (!(own.w = aligned_alloc(HUGE_PAGE, own.panel_bytes)))
            return 0;
        (void)madvise(own.w, own.panel_bytes, MADV_HUGEPAGE);
        memset(own.w, 0, own.panel_bytes);
        weights = &one;
        n = 1;
    }
    for (int pass = 0; pass < PASSES; pass++) {
        size_t bytes = 0;
        const double start = nbi_now();
#pragma omp parallel num_threads(c->threads) reduction(+ : bytes)
        bytes += read_weights(c, weights, n, (size_t)omp_get_thread_num(), pass % 2 == 0, sinks + omp_get_thread_num());
        const double speed = (double)bytes / (nbi_now() - start);
        best = speed > best ? speed : best;
    }
    free(own.w);
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
        if (seconds < PASS_SECONDS)
            n *= 2;
        else
            pass++;
    }
    return best;
}

nb_status nbi_cpu_roofs(nbi_backend *b, const nbi_linear *const *weights, size_t n, nbi_roofs *out)
{
    const size_t bytes = (size_t)nbi_cpu_of(b)->threads * sizeof(float);
    float *sinks = malloc(bytes);
    *out = (nbi_roofs){0};
    if (!sinks)
        return nbi_fail_nomem("the roofs", bytes);
    *out = (nbi_roofs){.read = read_roof(b, weights, n, sinks), .int8 = int8_roof(b, sinks)};
    free(sinks);
    return NB_OK;
}
