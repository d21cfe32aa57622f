/* A growing byte string.  An allocation failure makes it sticky-failed: check once at the end. */
#ifndef NB_BASE_STR_H
#define NB_BASE_STR_H

#include <stdbool.h>
#include <stddef.h>

typedef struct nbi_str {
    char *data; /* NUL-terminated once anything was added; NULL before */
    size_t len, cap;
    bool failed;
} nbi_str;

void nbi_str_add(nbi_str *s, const char *data, size_t n);
void nbi_str_puts(nbi_str *s, const char *text);
void nbi_str_printf(nbi_str *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void nbi_str_clear(nbi_str *s); /* keeps the memory */
void nbi_str_free(nbi_str *s);
/* Hands the bytes to the caller (an empty string gives ""), NULL if an allocation failed. */
char *nbi_str_take(nbi_str *s);

#endif
