/* Arrays and a few words about them in one safetensors file: what calibration leaves for a later run. */
#ifndef NB_ENGINE_BUNDLE_H
#define NB_ENGINE_BUNDLE_H

#include <jansson.h>

#include "format/safetensors.h"

/* Declare everything, then write everything in the same order; the file appears whole at commit, or not at all.  A failure is kept:
 * later calls do nothing, and commit returns it. */
typedef struct nbi_bundle nbi_bundle;
nb_status nbi_bundle_create(nbi_bundle **out, const char *path, const json_t *words); /* an object of strings, copied */
void nbi_bundle_declare(nbi_bundle *b, const char *name, nbi_dtype t, size_t rows,
                        size_t columns); /* rows 0: [columns] */
void nbi_bundle_write(nbi_bundle *b, const void *data, size_t bytes);
nb_status nbi_bundle_commit(nbi_bundle *b);
void nbi_bundle_free(nbi_bundle *b); /* without a commit: removes what was written */

/* Reading: the arrays, and the words (json_decref() them). */
nb_status nbi_bundle_open(nbi_checkpoint **arrays, json_t **words, const char *path);
/* Copies an array of exactly this many bytes. */
nb_status nbi_bundle_read(const nbi_checkpoint *c, const char *name, void *out, size_t bytes);

#endif
