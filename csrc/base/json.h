/* jansson with range checks and error sentences that name the file and the key. */
#ifndef NB_BASE_JSON_H
#define NB_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>

#include "base/status.h"

#define NBI_JSON_FILE_LIMIT ((size_t)256 << 20)

/* Parses a file; the top must be an object.  The sentence names file, line and column.  json_decref() it. */
nb_status nbi_json_load(json_t **out, const char *path);
/* Parses n bytes (any top value); `where` names them in errors. */
nb_status nbi_json_parse(json_t **out, const char *text, size_t n, const char *where);

/* Typed look-ups in an object.  A missing or null key leaves *out as it was (the default); a value of the wrong type
 * or out of [lo, hi] is NB_EFORMAT, "where: key is found, expected ...". */
nb_status nbi_json_int(const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t *out, const char *where);
nb_status nbi_json_double(const json_t *o, const char *key, double lo, double hi, double *out, const char *where);
nb_status nbi_json_bool(const json_t *o, const char *key, bool *out, const char *where);
nb_status nbi_json_string(const json_t *o, const char *key, const char **out, const char *where);

#endif
