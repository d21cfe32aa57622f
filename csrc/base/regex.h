/* Regular expressions in UTF-8 (PCRE2, Unicode properties, JIT).  A compiled expression is immutable and shareable. */
#ifndef NB_BASE_REGEX_H
#define NB_BASE_REGEX_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

typedef struct nbi_regex nbi_regex;

/* `where` names the origin in errors.  The Unicode line end U+0085 counts as \s, as in Oniguruma, which the tokenizers
 * of Hugging Face use. */
nb_status nbi_regex_create(nbi_regex **out, const char *pattern, size_t bytes, const char *where);
void nbi_regex_free(nbi_regex *r);

/* *hit: does `text` match from its first byte ("^" implied, not to the end; Python's re.match)?  NB_ELIMIT as below. */
nb_status nbi_regex_match_start(const nbi_regex *r, const char *text, size_t bytes, bool *hit);

/* All matches of a valid UTF-8 text, left to right, empty ones left out; a non-zero return of `each` stops with it.
 * Patterns that backtrack beyond the limit are NB_ELIMIT. */
nb_status nbi_regex_each(const nbi_regex *r, const char *text, size_t bytes,
                         nb_status (*each)(void *user, size_t start, size_t end), void *user);

#endif
