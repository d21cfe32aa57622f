#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"

static volatile sig_atomic_t interrupted;

/* What the process draws on its terminal; commands run one at a time. */
static struct {
    double start, last;
    char stage[32];
    uint64_t base; /* units done when the stage was first seen (resume) */
    bool drawn;
} bar;

static void on_signal(int sig)
{
    (void)sig;
    interrupted = 1; /* SA_RESETHAND: the next one ends the process */
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

bool cli_interrupted(void)
{
    return interrupted;
}

void cli_progress_end(void)
{
    if (bar.drawn)
        fputs("\r\033[K", stderr);
    bar.drawn = false;
}

static void draw(const nb_progress *p, double t)
{
    char cells[21], left[32] = "", rate[32] = "";
    double part = p->total ? (double)p->done / (double)p->total : 0, elapsed = t - bar.start;
    for (int i = 0; i < 20; i++)
        cells[i] = i < (int)(part * 20) ? '#' : '.';
    cells[20] = 0;
    if (p->total && p->done > bar.base && elapsed > 0.5) {
        long s = (long)(elapsed / (double)(p->done - bar.base) * (double)(p->total - p->done) + 0.5);
        snprintf(left, sizeof left, "  %ld:%02ld left", s / 60, s % 60);
    }
    if (p->rate > 0)
        snprintf(rate, sizeof rate, "  %.1f tokens/s", p->rate);
    fprintf(stderr, "\r\033[K%-10s [%s] %llu/%llu %s%s%s", p->stage, cells, (unsigned long long)p->done,
            (unsigned long long)p->total, p->unit, rate, left);
    fflush(stderr);
    bar.drawn = true;
}

static int on_progress(void *user, const nb_progress *p)
{
    (void)user;
    double t = now();
    if (strcmp(bar.stage, p->stage) != 0) {
        snprintf(bar.stage, sizeof bar.stage, "%s", p->stage);
        bar.start = t;
        bar.last = 0;
        bar.base = p->done;
    }
    if (isatty(STDERR_FILENO) && (t - bar.last > 0.1 || p->done == p->total)) {
        bar.last = t;
        draw(p, t);
        if (p->done == p->total)
            cli_progress_end();
    }
    return interrupted;
}

static void on_log(void *user, nb_log_level level, const char *text)
{
    (void)user;
    if (level == NB_LOG_DEBUG)
        return;
    cli_progress_end();
    fprintf(stderr, "nibble: %s%s\n", level == NB_LOG_WARN ? "warning: " : "", text);
}

nb_callbacks cli_callbacks(void)
{
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
    return (nb_callbacks){.log = on_log, .progress = on_progress};
}

void cli_print_value(json_t *j)
{
    char *text = j ? json_dumps(j, JSON_INDENT(2)) : NULL;
    if (text)
        cli_print_json(text);
    free(text);
    json_decref(j);
}

void cli_print_json(const char *text)
{
    printf("%s\n", text);
}

void cli_bytes(char out[24], uint64_t bytes)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    int u = 0;
    while (v >= 1024 && u < 4) {
        v /= 1024;
        u++;
    }
    snprintf(out, 24, u ? "%.2f %s" : "%.0f %s", v, unit[u]);
}

nb_model_options cli_model_options(const cli_model_flags *f)
{
    nb_model_options o;
    nb_model_options_init(&o);
    o.device = f->device;
    o.act_dtype = f->act_dtype;
    o.threads = (int32_t)f->threads;
    o.gemm = f->gemm;
    o.pack_cache = f->pack_cache;
    o.pin = f->pin;
    o.callbacks = cli_callbacks();
    return o;
}

nb_model *cli_load_model(const cli_command *c, const char *path, const cli_model_flags *f)
{
    nb_model *m = NULL;
    nb_model_options o = cli_model_options(f);
    if (nb_model_load(&m, path, &o) != NB_OK)
        cli_failed(c);
    return m;
}
