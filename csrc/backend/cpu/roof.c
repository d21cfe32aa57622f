/* The roofs: how fast all threads together read memory, and multiply INT8 codes, at best. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/cpu/cpu.h"
#include "base/log.h"

enum { PASSES = 6 };
#define HUGE_PAGE   ((size_t)2 << 20)
#define FIELD_LEAST ((size_t)96 << 20) /* three times what today's caches of a few cores hold */

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

/* What is read: the model's weights where no cache holds them, else a buffer of its own. */
typedef struct field {
    char *p, *own;
    size_t part; /* of a thread */
} field;

static bool take_field(nbi_backend *b, field *f)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    const size_t slice = (size_t)c->threads * HUGE_PAGE, wanted = buffer_bytes(b, slice), used = c->arena.used;
    if (used >= FIELD_LEAST && used >= slice) {
        *f = (field){(char *)c->arena.base, NULL, (used < wanted ? used / slice * slice : wanted) / (size_t)c->threads};
        return true;
    }
    *f = (field){.own = aligned_alloc(HUGE_PAGE, wanted), .part = wanted / (size_t)c->threads};
    if (!(f->p = f->own))
        return false;
    (void)madvise(f->p, wanted, MADV_HUGEPAGE);
    memset(f->p, 0, wanted);
    return true;
}

static double read_roof(nbi_backend *b, float *sinks)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    double best = 0;
    field f;
    if (!take_field(b, &f))
        return 0;
    for (int pass = 0; pass < PASSES; pass++) {
        const double start = nbi_now();
#pragma omp parallel num_threads(c->threads)
        {
            const size_t t = (size_t)omp_get_thread_num();
            sinks[t] = c->kern->roof_read((const float *)(f.p + t * f.part), f.part / sizeof(float));
        }
        const double speed = (double)(f.part * (size_t)c->threads) / (nbi_now() - start);
        best = speed > best ? speed : best;
    }
    free(f.own);
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
