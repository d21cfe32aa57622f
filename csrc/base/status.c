#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local char last_error[1024];

const char *nb_version(void)
{
    return NIBBLE_VERSION;
}
const char *nb_last_error(void)
{
    return last_error;
}
void nb_free(void *p)
{
    free(p);
}
const char *nb_status_text(nb_status st)
{
    switch (st) {
#define X(name, value, text)                                                                                           \
    case NB_##name:                                                                                                    \
        return text;
        NB_STATUS_LIST(X)
#undef X
    }
    return "unknown status";
}

/* One line, whole UTF-8 characters: what a terminal or a log can show whatever a file put into a name. */
static void tidy(char *s)
{
    size_t n = strlen(s);
    if (n == sizeof last_error - 1) { /* cut by snprintf, perhaps inside a character */
        size_t i = n;
        while (i > 0 && ((unsigned char)s[i - 1] & 0xC0) == 0x80)
            i--;
        if (i > 0 && (unsigned char)s[i - 1] >= 0xC0)
            s[i - 1] = 0;
    }
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f)
            *s = '?';
}

nb_status nbi_fail(nb_status st, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(last_error, sizeof last_error, fmt, ap);
    va_end(ap);
    tidy(last_error);
    return st;
}

nb_status nbi_fail_in(nb_status st, const char *fmt, ...)
{
    char text[sizeof last_error];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof text)
        snprintf(text + n, sizeof text - (size_t)n, "%s", last_error);
    memcpy(last_error, text, sizeof last_error);
    tidy(last_error);
    return st;
}

nb_status nbi_fail_nomem(const char *what, size_t bytes)
{
    return nbi_fail(NB_ENOMEM, "out of memory: %s needs %zu bytes", what, bytes);
}
