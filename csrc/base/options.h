/* Option structs of the public API: copied into a full-size one, so that older callers (smaller structs) keep working. */
#ifndef NB_BASE_OPTIONS_H
#define NB_BASE_OPTIONS_H

#include <stddef.h>
#include <string.h>

#include "base/status.h"

/* dst holds the defaults and has `size` bytes; src starts with its own struct_size, or is NULL. */
static inline nb_status nbi_take_options(void *dst, size_t size, const void *src, const char *name)
{
    size_t given;
    if (!src)
        return NB_OK;
    memcpy(&given, src, sizeof given);
    if (given < sizeof given || given > size)
        return nbi_fail(NB_EINVAL, "%s.struct_size is %zu, expected at most %zu: call %s_init first", name, given, size,
                        name);
    memcpy(dst, src, given);
    return NB_OK;
}

#endif
