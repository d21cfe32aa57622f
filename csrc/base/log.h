#ifndef NB_BASE_LOG_H
#define NB_BASE_LOG_H

#include <stdbool.h>
#include "nibble.h"

/* Formats a line and hands it to the callback; nothing happens without one. */
void nbi_log(const nb_callbacks *cb, nb_log_level level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Calls the progress callback; true means: cancel. */
bool nbi_progress(const nb_callbacks *cb, const char *stage, const char *unit, uint64_t done, uint64_t total,
                  double rate);
double nbi_now(void); /* monotonic seconds */

#endif
