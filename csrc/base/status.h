/* Errors go up by return value; the sentence is written where the facts are known. */
#ifndef NB_BASE_STATUS_H
#define NB_BASE_STATUS_H

#include "nibble.h"

/* Stores the sentence as this thread's nb_last_error() and returns `st`.  Longer texts are cut at 1023 bytes, on a
 * UTF-8 boundary; control characters in it (file names, JSON) are shown as '?', so that an error is one line. */
nb_status nbi_fail(nb_status st, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Puts a prefix ("model/config.json: ") before the sentence that is already there; returns `st`. */
nb_status nbi_fail_in(nb_status st, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Out of memory, saying for what and how much. */
nb_status nbi_fail_nomem(const char *what, size_t bytes);

/* In a function with `nb_status st` and a label `done`. */
#define NB_TRY(call)                                                                                                   \
    do {                                                                                                               \
        if ((st = (call)) != NB_OK)                                                                                    \
            goto done;                                                                                                 \
    } while (0)

#endif
