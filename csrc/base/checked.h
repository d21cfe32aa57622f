/* Checked arithmetic: every size that comes from a file goes through these before it is used. */
#ifndef NB_BASE_CHECKED_H
#define NB_BASE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* *out = a op b; false when the true result does not fit (then *out must not be used). */
static inline bool nbi_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool nbi_add(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

/* Rounds up to a multiple of `to` (> 0); false on overflow. */
static inline bool nbi_round_up(size_t a, size_t to, size_t *out)
{
    size_t r = a % to;
    if (r == 0) {
        *out = a;
        return true;
    }
    return nbi_add(a, to - r, out);
}

static inline size_t nbi_ceil_div(size_t a, size_t b)
{
    return a / b + (a % b != 0);
}

#endif
