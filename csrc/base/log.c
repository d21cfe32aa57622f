#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>

void nbi_log(const nb_callbacks *cb, nb_log_level level, const char *fmt, ...)
{
    if (!cb || !cb->log)
        return;
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    cb->log(cb->user, level, text);
}

bool nbi_progress(const nb_callbacks *cb, const char *stage, const char *unit, uint64_t done, uint64_t total,
                  double rate)
{
    if (!cb || !cb->progress)
        return false;
    nb_progress p = {.stage = stage, .unit = unit, .done = done, .total = total, .rate = rate};
    return cb->progress(cb->user, &p) != 0;
}

double nbi_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
