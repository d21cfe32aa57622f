/* Threads that stay on cores of their own (nb_model_options.pin). */
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/cpu.h"

/* The cores that the process had at first: a thread that was pinned has one, and a second model must not inherit that. */
static cpu_set_t first_set;

static void ask(void)
{
    CPU_ZERO(&first_set);
    if (sched_getaffinity(0, sizeof first_set, &first_set) != 0 || !CPU_COUNT(&first_set))
        CPU_SET(0, &first_set);
}

static const cpu_set_t *allowed(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, ask);
    return &first_set;
}

int nbi_cpu_available_cores(void)
{
    return CPU_COUNT(allowed());
}

/* Whether another processor of its core, which we may use as well, comes before it. */
static bool is_second(int cpu)
{
    char path[96];
    int first = cpu;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *f = fopen(path, "re");
    if (f && fscanf(f, "%d", &first) != 1)
        first = cpu;
    if (f)
        fclose(f);
    return first >= 0 && first < cpu && first < CPU_SETSIZE && CPU_ISSET(first, allowed());
}

nb_status nbi_cpu_set_pin(nbi_backend *b, const char *how)
{
    static uint64_t last_id;
    nbi_cpu *c = nbi_cpu_of(b);
    int n = 0;
    if (!how || strcmp(how, "none") == 0)
        return NB_OK;
    if (strcmp(how, "cores") != 0)
        return nbi_fail(NB_EINVAL, "pin is \"%s\", expected none or cores", how);
    if (c->threads > nbi_cpu_available_cores())
        return nbi_fail(NB_EINVAL, "%d threads cannot each have one of %d cores", c->threads,
                        nbi_cpu_available_cores());
    if (!(c->pin = malloc((size_t)c->threads * sizeof *c->pin)))
        return nbi_fail_nomem("the list of cores", (size_t)c->threads * sizeof *c->pin);
    c->pin_id = __atomic_add_fetch(&last_id, 1, __ATOMIC_RELAXED);
    for (int second = 0; second < 2; second++) /* whole cores first, then what else they can run */
        for (int cpu = 0; cpu < CPU_SETSIZE && n < c->threads; cpu++)
            if (CPU_ISSET(cpu, allowed()) && is_second(cpu) == (second == 1))
                c->pin[n++] = cpu;
    return NB_OK;
}

/* OpenMP keeps a team of threads for each thread that calls it: that one's is pinned when it first takes a step. */
void nbi_cpu_pin(const nbi_cpu *c)
{
    static _Thread_local uint64_t pinned;
    if (!c->pin || pinned == c->pin_id)
        return;
    pinned = c->pin_id;
#pragma omp parallel num_threads(c->threads)
    {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(c->pin[omp_get_thread_num()], &one);
        (void)sched_setaffinity(0, sizeof one, &one);
    }
}
