/* Stop strings in streamed text: what may still become one is held back. */
#ifndef NB_ENGINE_STOP_H
#define NB_ENGINE_STOP_H

#include <stdbool.h>

#include "base/str.h"
#include "base/status.h"

#define NBI_MAX_STOP 16

/* Bytes go in one after the other, so what is found does not depend on how the text is cut into pieces: the stop string
 * that is complete first wins, among those the one that began first.  Text in front of it is final, the rest is dropped.
 * One thread at a time. */
typedef struct nbi_stop nbi_stop;

/* Copies the strings.  n 0 gives *out NULL, which every call below takes as "nothing to look for".  More than
 * NBI_MAX_STOP strings, an empty one, or invalid UTF-8 is NB_EINVAL. */
nb_status nbi_stop_create(nbi_stop **out, const char *const *strings, size_t n);
void nbi_stop_free(nbi_stop *s);

/* Takes a piece of text and appends to `out` what became final.  True once a stop string is complete; then nothing may
 * be fed any more.  Pieces that end between characters give output that does. */
bool nbi_stop_feed(nbi_stop *s, const char *piece, size_t bytes, nbi_str *out);
/* The text ends without a stop string: appends what was held back. */
void nbi_stop_flush(nbi_stop *s, nbi_str *out);
/* Did an allocation fail?  Text is missing then. */
bool nbi_stop_failed(const nbi_stop *s);

#endif
