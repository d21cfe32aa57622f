#include "base/str.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

static bool reserve(nbi_str *s, size_t more)
{
    size_t need, cap;
    if (s->failed || !nbi_add(s->len, more, &need) || !nbi_add(need, 1, &need)) {
        s->failed = true;
        return false;
    }
    if (need <= s->cap)
        return true;
    cap = s->cap ? s->cap : 64;
    while (cap < need)
        if (!nbi_mul(cap, 2, &cap)) {
            s->failed = true;
            return false;
        }
    char *p = realloc(s->data, cap);
    if (!p) {
        s->failed = true;
        return false;
    }
    s->data = p;
    s->cap = cap;
    return true;
}

void nbi_str_add(nbi_str *s, const char *data, size_t n)
{
    if (!reserve(s, n))
        return;
    if (n)
        memcpy(s->data + s->len, data, n);
    s->len += n;
    s->data[s->len] = 0;
}

void nbi_str_puts(nbi_str *s, const char *text)
{
    nbi_str_add(s, text, strlen(text));
}

void nbi_str_printf(nbi_str *s, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0 || !reserve(s, (size_t)n)) {
        s->failed = true;
        return;
    }
    va_start(ap, fmt);
    vsnprintf(s->data + s->len, (size_t)n + 1, fmt, ap);
    va_end(ap);
    s->len += (size_t)n;
}

void nbi_str_clear(nbi_str *s)
{
    s->len = 0;
    if (s->data)
        s->data[0] = 0;
}

void nbi_str_free(nbi_str *s)
{
    free(s->data);
    *s = (nbi_str){0};
}

char *nbi_str_take(nbi_str *s)
{
    nbi_str_add(s, "", 0);
    if (s->failed) {
        nbi_str_free(s);
        return NULL;
    }
    char *p = s->data;
    *s = (nbi_str){0};
    return p;
}
