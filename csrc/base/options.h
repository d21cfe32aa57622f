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

/* The other way: a result of `size` bytes into the caller's struct, as far as that one reaches. */
static inline nb_status nbi_give_result(void *dst, const void *src, size_t size, const char *name)
{
    size_t wanted;
    memcpy(&wanted, dst, sizeof wanted);
    if (wanted < sizeof wanted || wanted > size)
        return nbi_fail(NB_EINVAL, "%s.struct_size is %zu, expected at most %zu: set it to sizeof(%s)", name, wanted,
                        size, name);
    memcpy((char *)dst + sizeof wanted, (const char *)src + sizeof wanted, wanted - sizeof wanted);
    return NB_OK;
}

#endif
