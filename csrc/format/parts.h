/* The tensors of one module in a checkpoint: "<module>.<suffix>".  Finding and checking them, for readers of all formats; errors name
 * file, tensor, what was found and what was expected. */
#ifndef NB_FORMAT_PARTS_H
#define NB_FORMAT_PARTS_H

#include <string.h>

#include "base/weight.h"
#include "format/safetensors.h"

/* "<module>.<suffix>"; NB_ELIMIT where it is too long. */
nb_status nbi_part_name(char out[512], const char *module, const char *suffix);

const nbi_tensor *nbi_part_find(const nbi_checkpoint *c, const char *module, const char *suffix); /* NULL: not there */
nb_status nbi_part_missing(const nbi_checkpoint *c, const char *module, const char *suffix);
nb_status nbi_part_wrong_dtype(const nbi_tensor *t, const char *expected);
nb_status nbi_part_expect_shape(const nbi_tensor *t, uint32_t n_dims, const size_t *shape);
nb_status nbi_part_expect_one(const nbi_tensor *t); /* one number: [1] or [] */
/* The tensor that must be there with this dtype and shape; every dtype of floats where dtype is F32. */
nb_status nbi_part_get(const nbi_tensor **out, const nbi_checkpoint *c, const char *module, const char *suffix,
                       nbi_dtype dtype, uint32_t n_dims, const size_t *shape);

/* Writes "<module>.<suffix>", declared with so many bytes; `put` fills them, zeroed, from w and the description of the part. */
typedef nb_status (*nbi_put_fn)(void *dst, const char *module, const nbi_weight *w, const void *part);
nb_status nbi_part_write(nbi_st_writer *out, const char *module, const char *suffix, size_t bytes, nbi_put_fn put,
                         const nbi_weight *w, const void *part);

/* A word of a tensor; views into files may be unaligned. */
static inline uint32_t nbi_part_word_at(const nbi_tensor *t, size_t i)
{
    uint32_t u;
    memcpy(&u, (const char *)t->data + 4 * i, 4);
    return u;
}

/* <module>.weight [n,k] as a view. */
nb_status nbi_part_read_dense(nbi_weight *w, const nbi_checkpoint *c, const char *module);
/* <module>.bias, where it exists. */
nb_status nbi_part_read_bias(nbi_weight *w, const nbi_checkpoint *c, const char *module);

#endif
