/* UTF-8 (RFC 3629: no surrogates, no overlong forms, at most U+10FFFF). */
#ifndef NB_BASE_UTF8_H
#define NB_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Decodes one character at s (n > 0 bytes there).  Returns its length 1..4 and the code point; 0 when the bytes are
 * not valid UTF-8; -1 when they are a valid beginning that is cut off. */
int nbi_utf8_decode(const char *s, size_t n, uint32_t *cp);
/* Writes 1..4 bytes, returns how many. */
int nbi_utf8_encode(uint32_t cp, char out[4]);
/* Offset of the first invalid byte, or n when all is valid. */
size_t nbi_utf8_check(const char *s, size_t n);

#endif
