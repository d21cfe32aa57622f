#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

int cli_usage_error(const cli_command *c, const char *fmt, ...)
{
    va_list ap;
    cli_progress_end();
    fprintf(stderr, "nibble %s: ", c->name);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    return EXIT_USAGE;
}

int cli_failed(const cli_command *c)
{
    cli_progress_end();
    fprintf(stderr, "nibble %s: %s\n", c->name, nb_last_error());
    return EXIT_WORK;
}

static void print_help(const cli_command *c, const cli_flag *flags)
{
    printf("%s\n\nusage: nibble %s %s\n\n", c->summary, c->name, c->usage);
    for (const cli_flag *f = flags; f->name; f++) {
        char left[64];
        snprintf(left, sizeof left, "%s%s%s%s%s", f->brief ? f->brief : "", f->brief ? ", " : "", f->name,
                 f->arg ? " " : "", f->arg ? f->arg : "");
        printf("  %-26s %s\n", left, f->help);
    }
    printf("  %-26s %s\n\nexample:\n%s\n", "-h, --help", "this text", c->example);
}

static bool parse_int(const char *s, int64_t *out)
{
    char *end;
    errno = 0;
    long long v = strtoll(s, &end, 10);
    *out = v;
    return *s && !*end && !errno;
}

static bool parse_size(const char *s, uint64_t *out)
{
    static const struct {
        const char *name;
        double bytes;
    } units[] = {{"", 1},      {"B", 1},        {"kB", 1e3},     {"KB", 1e3},     {"MB", 1e6},    {"GB", 1e9},
                 {"TB", 1e12}, {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
    char *end;
    if (*s < '0' || *s > '9')
        return false;
    const double v = strtod(s, &end);
    while (*end == ' ')
        end++;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (strcmp(end, units[i].name) == 0 && v > 0 && v * units[i].bytes >= 1 && v * units[i].bytes < 0x1p60) {
            *out = (uint64_t)(v * units[i].bytes);
            return true;
        }
    return false;
}

static int parse_list(const cli_command *c, const cli_flag *f, const char *word)
{
    cli_list *l = f->value;
    char copy[256], *save = NULL;
    int64_t v;
    l->n = 0;
    snprintf(copy, sizeof copy, "%s", word);
    for (char *p = strtok_r(copy, ",", &save); p; p = strtok_r(NULL, ",", &save)) {
        if (!parse_int(p, &v) || (double)v < f->lo || (double)v > f->hi || l->n == 32)
            return cli_usage_error(c, "%s is \"%s\", expected up to 32 numbers from %.0f to %.0f like 1,8,64", f->name,
                                   word, f->lo, f->hi);
        l->v[l->n++] = (uint32_t)v;
    }
    if (!l->n)
        return cli_usage_error(c, "%s is empty, expected numbers like 1,8,64", f->name);
    return -1;
}

static int set_value(const cli_command *c, const cli_flag *f, const char *word)
{
    char *end;
    switch (f->kind) {
    case CLI_BOOL:
        *(bool *)f->value = true;
        return -1;
    case CLI_STRING:
        *(const char **)f->value = word;
        return -1;
    case CLI_STRINGS: {
        cli_strings *s = f->value;
        if (s->n == 16)
            return cli_usage_error(c, "%s was given more than 16 times", f->name);
        s->v[s->n++] = word;
        return -1;
    }
    case CLI_INT: {
        int64_t v;
        if (!parse_int(word, &v) || (double)v < f->lo || (double)v > f->hi)
            return cli_usage_error(c, "%s is \"%s\", expected a whole number from %.0f to %.0f", f->name, word, f->lo,
                                   f->hi);
        *(int64_t *)f->value = v;
        return -1;
    }
    case CLI_DOUBLE: {
        double v = strtod(word, &end);
        if (!*word || *end || !isfinite(v) || v < f->lo || v > f->hi)
            return cli_usage_error(c, "%s is \"%s\", expected a number from %g to %g", f->name, word, f->lo, f->hi);
        *(double *)f->value = v;
        return -1;
    }
    case CLI_SIZE:
        if (!parse_size(word, f->value))
            return cli_usage_error(c, "%s is \"%s\", expected a number and a unit, such as 4GiB or 700MB", f->name,
                                   word);
        return -1;
    case CLI_LIST:
        return parse_list(c, f, word);
    }
    return EXIT_USAGE;
}

static const cli_flag *find_flag(const cli_flag *flags, const char *word, size_t n)
{
    for (const cli_flag *f = flags; f->name; f++)
        if ((strlen(f->name) == n && strncmp(f->name, word, n) == 0) ||
            (f->brief && strlen(f->brief) == n && strncmp(f->brief, word, n) == 0))
            return f;
    return NULL;
}

int cli_parse(const cli_command *c, int argc, char **argv, const cli_flag *flags, const char **positional,
              int min_positional, int max_positional)
{
    int n = 0, rc;
    bool words_only = false;
    for (int i = 0; i < argc; i++) {
        const char *w = argv[i], *eq = strchr(w, '=');
        if (words_only || w[0] != '-' || !w[1]) {
            if (n == max_positional)
                return cli_usage_error(c, "\"%s\" is one word too many; usage: nibble %s %s", w, c->name, c->usage);
            positional[n++] = w;
            continue;
        }
        if (strcmp(w, "--") == 0) {
            words_only = true;
            continue;
        }
        if (strcmp(w, "--help") == 0 || strcmp(w, "-h") == 0) {
            print_help(c, flags);
            return EXIT_OK;
        }
        bool joined = w[1] == '-' && eq;
        const cli_flag *f = find_flag(flags, w, joined ? (size_t)(eq - w) : strlen(w));
        if (!f)
            return cli_usage_error(c, "there is no flag %s; nibble %s --help lists them", w, c->name);
        const char *value = joined ? eq + 1 : NULL;
        if (f->kind == CLI_BOOL && joined)
            return cli_usage_error(c, "%s takes no value", f->name);
        if (f->kind != CLI_BOOL && !value) {
            if (i + 1 == argc)
                return cli_usage_error(c, "%s needs a value (%s)", f->name, f->help);
            value = argv[++i];
        }
        if ((rc = set_value(c, f, value)) >= 0)
            return rc;
    }
    if (n < min_positional)
        return cli_usage_error(c, "too few words; usage: nibble %s %s", c->name, c->usage);
    return -1;
}
