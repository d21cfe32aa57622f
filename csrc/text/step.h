/* The tables behind normalizers, pre-tokenizers and decoders: a kind has a name, a parser and what it does. */
#ifndef NB_TEXT_STEP_H
#define NB_TEXT_STEP_H

#include "text/impl.h"

typedef struct nbi_step_kind {
    const char *name;
    nb_status (*parse)(nbi_step *s, const json_t *j, const char *where); /* NULL: nothing to read */
    union {
        nb_status (*normalize)(const nbi_step *s, const char *text, size_t n, nbi_str *out);
        nb_status (*split)(const nbi_step *s, const char *text, size_t n, bool first, nbi_pieces *out);
        nb_status (*decode)(const nbi_step *s, const nbi_pieces *in, bool more, nbi_pieces *out);
    };
} nbi_step_kind;

/* Parses {"type": NAME, ...} or null; "Sequence" is flattened, its members are under `members`.  `what` ("normalizer")
 * is for errors. */
nb_status nbi_steps_parse(nbi_step **list, const json_t *j, const nbi_step_kind *kinds, size_t n_kinds,
                          const char *members, const char *what, const char *where);

/* {"type": "Replace", "pattern": ..., "content": ...}, which normalizers and decoders share. */
nb_status nbi_step_parse_replace(nbi_step *s, const json_t *j, const char *where);
nb_status nbi_step_replace(const nbi_step *s, const char *text, size_t n, nbi_str *out);

#endif
