/* GGUF v3: header, key-value pairs, tensor infos.  Every count and length is checked against the bytes that remain
 * before anything is allocated for it.  Here for vocabularies; tensor data is located, not decoded. */
#ifndef NB_FORMAT_GGUF_H
#define NB_FORMAT_GGUF_H

#include <stdbool.h>
#include "base/file.h"

typedef enum nbi_gguf_type {
    NBI_GGUF_U8,
    NBI_GGUF_I8,
    NBI_GGUF_U16,
    NBI_GGUF_I16,
    NBI_GGUF_U32,
    NBI_GGUF_I32,
    NBI_GGUF_F32,
    NBI_GGUF_BOOL,
    NBI_GGUF_STRING,
    NBI_GGUF_ARRAY,
    NBI_GGUF_U64,
    NBI_GGUF_I64,
    NBI_GGUF_F64,
    NBI_GGUF_N_TYPES
} nbi_gguf_type;

typedef struct nbi_gguf nbi_gguf;

nb_status nbi_gguf_open(nbi_gguf **out, const char *path);
/* The same from memory, which must outlive *out; `name` stands for the file in error sentences. */
nb_status nbi_gguf_parse(nbi_gguf **out, const void *data, size_t bytes, const char *name);
void nbi_gguf_close(nbi_gguf *g); /* NULL is fine */

/* Look-ups; a missing key leaves *out alone and gives NB_OK, a value of another type is NB_EFORMAT. */
bool nbi_gguf_has(const nbi_gguf *g, const char *key);
nb_status nbi_gguf_int(const nbi_gguf *g, const char *key, int64_t lo, int64_t hi, int64_t *out);
nb_status nbi_gguf_bool(const nbi_gguf *g, const char *key, bool *out);
/* Views into the file, not NUL-terminated. */
nb_status nbi_gguf_string(const nbi_gguf *g, const char *key, const char **text, size_t *bytes);
nb_status nbi_gguf_array(const nbi_gguf *g, const char *key, nbi_gguf_type element, size_t *n);
/* Element i of a string array: O(1) (offsets are indexed at open).  "" where there is no such array or element. */
void nbi_gguf_array_string(const nbi_gguf *g, const char *key, size_t i, const char **text, size_t *bytes);
/* The packed elements of a number array (unaligned, little-endian; bools are 0 or 1); NULL where there is none. */
const void *nbi_gguf_array_data(const nbi_gguf *g, const char *key);
size_t nbi_gguf_n_tensors(const nbi_gguf *g);
size_t nbi_gguf_n_keys(const nbi_gguf *g);

#endif
