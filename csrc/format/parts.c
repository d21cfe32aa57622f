#include "format/parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

nb_status nbi_part_name(char out[512], const char *module, const char *suffix)
{
    if ((size_t)snprintf(out, 512, "%s.%s", module, suffix) >= 512)
        return nbi_fail(NB_ELIMIT, "%s: the name of the module is too long", module);
    return NB_OK;
}

const nbi_tensor *nbi_part_find(const nbi_checkpoint *c, const char *module, const char *suffix)
{
    char full[512];
    if ((size_t)snprintf(full, sizeof full, "%s.%s", module, suffix) >= sizeof full)
        return NULL;
    return nbi_checkpoint_find(c, full);
}

nb_status nbi_part_missing(const nbi_checkpoint *c, const char *module, const char *suffix)
{
    const nbi_tensor *first = nbi_checkpoint_at(c, 0);
    return nbi_fail(NB_EFORMAT, "%s: the checkpoint has no tensor %s.%s", first ? first->file : "checkpoint", module,
                    suffix);
}

static const char *shape_text(char out[96], uint32_t n_dims, const size_t *shape)
{
    size_t at = (size_t)snprintf(out, 96, "[");
    for (uint32_t i = 0; i < n_dims; i++)
        at += (size_t)snprintf(out + at, 96 - at, i ? ", %zu" : "%zu", shape[i]);
    snprintf(out + at, 96 - at, "]");
    return out;
}

nb_status nbi_part_wrong_dtype(const nbi_tensor *t, const char *expected)
{
    return nbi_fail(NB_EFORMAT, "%s: tensor %s has the dtype %s, expected %s", t->file, t->name,
                    nbi_dtype_name(t->dtype), expected);
}

nb_status nbi_part_expect_shape(const nbi_tensor *t, uint32_t n_dims, const size_t *shape)
{
    char found[96], want[96];
    if (t->n_dims == n_dims && memcmp(t->shape, shape, n_dims * sizeof *shape) == 0)
        return NB_OK;
    return nbi_fail(NB_EFORMAT, "%s: tensor %s has the shape %s, expected %s", t->file, t->name,
                    shape_text(found, t->n_dims, t->shape), shape_text(want, n_dims, shape));
}

nb_status nbi_part_expect_one(const nbi_tensor *t)
{
    return t->n_dims == 0 ? NB_OK : nbi_part_expect_shape(t, 1, (const size_t[]){1});
}

nb_status nbi_part_get(const nbi_tensor **out, const nbi_checkpoint *c, const char *module, const char *suffix,
                       nbi_dtype dtype, uint32_t n_dims, const size_t *shape)
{
    const nbi_tensor *t = *out = nbi_part_find(c, module, suffix);
    if (!t)
        return nbi_part_missing(c, module, suffix);
    if (dtype == NBI_F32 ? !nbi_dtype_is_float(t->dtype) : t->dtype != dtype)
        return nbi_part_wrong_dtype(t, dtype == NBI_F32 ? "F32, F16 or BF16" : nbi_dtype_name(dtype));
    return nbi_part_expect_shape(t, n_dims, shape);
}

nb_status nbi_part_read_dense(nbi_weight *w, const nbi_checkpoint *c, const char *module)
{
    const nbi_tensor *t = nbi_part_find(c, module, "weight"), *packed = nbi_part_find(c, module, "weight_packed");
    nb_status st;
    if (!t && packed)
        return nbi_fail(NB_EFORMAT, "%s: module %s is quantized, but the config does not say how", packed->file,
                        module);
    if (!t)
        return nbi_part_missing(c, module, "weight");
    if (!nbi_dtype_is_float(t->dtype))
        return nbi_part_wrong_dtype(t, "F32, F16 or BF16 for a layer that is not quantized");
    if ((st = nbi_part_expect_shape(t, 2, (const size_t[]){w->n, w->k})) != NB_OK)
        return st;
    w->dense_dtype = t->dtype;
    w->dense = t->data;
    return NB_OK;
}

nb_status nbi_part_read_bias(nbi_weight *w, const nbi_checkpoint *c, const char *module)
{
    const nbi_tensor *t = nbi_part_find(c, module, "bias");
    nb_status st;
    if (!t)
        return NB_OK;
    if (!nbi_dtype_is_float(t->dtype))
        return nbi_part_wrong_dtype(t, "F32, F16 or BF16");
    if ((st = nbi_part_expect_shape(t, 1, &w->n)) != NB_OK)
        return st;
    if (!(w->bias = malloc(w->n * sizeof *w->bias)))
        return nbi_fail_nomem(t->name, w->n * sizeof *w->bias);
    nbi_to_f32(w->bias, t->data, t->dtype, w->n);
    for (size_t i = 0; i < w->n; i++)
        if (!isfinite(w->bias[i]))
            return nbi_fail(NB_EFORMAT, "%s: tensor %s: element %zu is not finite", t->file, t->name, i);
    return NB_OK;
}

nb_status nbi_part_write(nbi_st_writer *out, const char *module, const char *suffix, size_t bytes, nbi_put_fn put,
                         const nbi_weight *w, const void *part)
{
    char full[512];
    void *data = NULL;
    nb_status st;
    NB_TRY(nbi_part_name(full, module, suffix));
    if (!(data = calloc(1, bytes ? bytes : 1)))
        NB_TRY(nbi_fail_nomem(full, bytes));
    NB_TRY(put(data, module, w, part));
    NB_TRY(nbi_st_write(out, full, data, bytes));
done:
    free(data);
    return st;
}
