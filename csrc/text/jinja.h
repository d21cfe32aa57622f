/* The subset of Jinja2 that chat templates use, interpreted with limits on steps, depth and output; no file or network
 * access, no attribute access beyond the given values. */
#ifndef NB_TEXT_JINJA_H
#define NB_TEXT_JINJA_H

#include <jansson.h>
#include "base/status.h"

typedef struct nbi_jinja nbi_jinja;

nb_status nbi_jinja_compile(nbi_jinja **out, const char *source, size_t bytes);
void nbi_jinja_free(nbi_jinja *t);

typedef struct nbi_jinja_limits {
    size_t max_steps, max_output, max_depth; /* 0: defaults 1e6, 16 MiB, 64 */
} nbi_jinja_limits;

/* `context`: a JSON object, its keys are the template's variables.  *text is malloc'ed, NUL-terminated.
 * raise_exception('...') in the template is NB_EINVAL with that message.  Thread safe. */
nb_status nbi_jinja_render(const nbi_jinja *t, const json_t *context, const nbi_jinja_limits *limits, char **text,
                           size_t *bytes);

#endif
