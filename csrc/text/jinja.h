/* The subset of Jinja2 that chat templates use, interpreted with limits on steps, depth and output; no file or network
 * access, no attribute access beyond the given values. */
#ifndef NB_TEXT_JINJA_H
#define NB_TEXT_JINJA_H

#include <jansson.h>
#include <stdbool.h>
#include "base/status.h"

typedef struct nbi_jinja nbi_jinja;

/* Statements: if, for (with if and else), set (also of a block and of namespace attributes), macro, break, continue, do,
 * raw, generation (transparent).  Filters, tests, methods and functions: the tables of jinja/ filters.c, seq.c,
 * tests.c, methods.c and globals.c.  White space as Transformers sets it: trim_blocks, lstrip_blocks.
 * Malformed source is NB_EFORMAT, something that this subset lacks NB_EUNSUPPORTED; both name it and its line.  Known
 * differences to Jinja: generators are computed at once; integers have 64 bits (more is an error); |safe and |escape
 * give Markup that only + heeds. */
nb_status nbi_jinja_compile(nbi_jinja **out, const char *source, size_t bytes);
void nbi_jinja_free(nbi_jinja *t);

/* Does the template walk something called `name`: {% for part in message.content %}, m['content'] or content?  Tells
 * whether it takes message content in parts or as a string. */
bool nbi_jinja_loops_over(const nbi_jinja *t, const char *name);

typedef struct nbi_jinja_limits {
    size_t max_steps, max_output, max_depth; /* 0: defaults 1e6, 16 MiB, 64 */
} nbi_jinja_limits;

/* `context`: a JSON object, its keys are the template's variables.  *text is malloc'ed, NUL-terminated.
 * raise_exception('...') in the template is NB_EINVAL with that message; a value that the template cannot work with is
 * NB_EINVAL, work beyond the limits NB_ELIMIT, both with the line.  Thread safe. */
nb_status nbi_jinja_render(const nbi_jinja *t, const json_t *context, const nbi_jinja_limits *limits, char **text,
                           size_t *bytes);

#endif
