/* The CUDA backend: its table of operations. */
#include "backend/cuda/cuda.h"
#include "backend/cuda/create.h"

#include <stdlib.h>

#include "base/checked.h"

static void destroy(nbi_backend *b)
{
    nbi_cuda_close(nbi_cuda_of(b));
    free(b);
}

static void lock(nbi_backend *b)
{
    pthread_mutex_lock(&nbi_cuda_of(b)->lock);
}

static void unlock(nbi_backend *b)
{
    pthread_mutex_unlock(&nbi_cuda_of(b)->lock);
}

/* See nbi_cuda_act(). */
static size_t act_bytes(nbi_backend *b, size_t rows, size_t k)
{
    (void)b;
    size_t padded, bytes;
    if (!nbi_round_up(k, NB_TILE_K, &padded) || !nbi_mul(rows, padded, &bytes) || bytes > SIZE_MAX / 8 ||
        rows > SIZE_MAX / 8)
        return SIZE_MAX;
    return nbi_cuda_align(rows * k * 2) + nbi_cuda_align(bytes) + nbi_cuda_align(rows * sizeof(float));
}

/* ---- what may come from any thread at any time ---- */

#define LOCKED(name, params, args)                                                                                     \
    static nb_status name params                                                                                       \
    {                                                                                                                  \
        lock(b);                                                                                                       \
        nb_status st = nbi_cuda_##name args;                                                                           \
        unlock(b);                                                                                                     \
        return st;                                                                                                     \
    }
LOCKED(alloc, (nbi_backend * b, void **out, size_t bytes, const char *what), (b, out, bytes, what))
LOCKED(upload, (nbi_backend * b, void *dst, const void *src, size_t bytes), (b, dst, src, bytes))
LOCKED(download, (nbi_backend * b, void *dst, const void *src, size_t bytes), (b, dst, src, bytes))
LOCKED(linear_create, (nbi_backend * b, nbi_linear **out, const nbi_weight *w), (b, out, w))
LOCKED(transform_create, (nbi_backend * b, nbi_transform **out, const nbi_transform_spec *spec), (b, out, spec))
LOCKED(step_create, (nbi_backend * b, nbi_step **out, const nbi_step_limits *limits), (b, out, limits))
LOCKED(download_act, (nbi_backend * b, float *dst, const void *x, size_t n), (b, dst, x, n))
LOCKED(upload_act, (nbi_backend * b, void *dst, const float *src, size_t n), (b, dst, src, n))

static nb_status reserve(nbi_backend *b, size_t bytes)
{
    lock(b);
    nb_status st = nbi_cuda_weights_reserve(nbi_cuda_of(b), bytes);
    unlock(b);
    return st;
}

static void release(nbi_backend *b, void *p)
{
    lock(b);
    nbi_cuda_release(b, p);
    unlock(b);
}

static void transform_free(nbi_backend *b, nbi_transform *t)
{
    lock(b);
    nbi_cuda_transform_free(b, t);
    unlock(b);
}

static void step_free(nbi_backend *b, nbi_step *s)
{
    lock(b);
    nbi_cuda_step_free(b, s);
    unlock(b);
}

static size_t free_bytes(nbi_backend *b)
{
    lock(b);
    size_t n = nbi_cuda_free_bytes(b);
    unlock(b);
    return n;
}

static const nbi_backend_ops cuda_ops = {
    .destroy = destroy,
    .lock = lock,
    .unlock = unlock,
    .alloc = alloc,
    .release = release,
    .upload = upload,
    .download = download,
    .free_bytes = free_bytes,
    .act_bytes = act_bytes,
    .reserve = reserve,
    .linear_create = linear_create,
    .linear_free = nbi_cuda_linear_free,
    .linear_bytes = nbi_cuda_linear_bytes,
    .linear_form = nbi_cuda_linear_form,
    .linear_plan = nbi_cuda_linear_plan,
    .scratch_bytes = nbi_cuda_scratch_bytes,
    .transform_create = transform_create,
    .transform_free = transform_free,
    .transform_bytes = nbi_cuda_transform_bytes,
    .transform_in = nbi_cuda_transform_in,
    .transform_out = nbi_cuda_transform_out,
    .step_create = step_create,
    .step_free = step_free,
    .step_bytes = nbi_cuda_step_bytes,
    .step_begin = nbi_cuda_step_begin,
    .step_enter = nbi_cuda_step_enter,
    .step_end = nbi_cuda_step_end,
    .embed = nbi_cuda_embed,
    .rmsnorm = nbi_cuda_rmsnorm,
    .linear = nbi_cuda_linear,
    .rope_append = nbi_cuda_rope_append,
    .attention = nbi_cuda_attention,
    .swiglu = nbi_cuda_swiglu,
    .gather = nbi_cuda_gather,
    .sample = nbi_cuda_sample,
    .sample_bytes = nbi_cuda_sample_bytes,
    .download_act = download_act,
    .upload_act = upload_act,
};

nb_status nbi_cuda_create(nbi_backend **out, int index, nbi_dtype act)
{
    *out = NULL;
    nbi_cuda *c = calloc(1, sizeof *c);
    if (!c)
        return nbi_fail_nomem("a backend", sizeof *c);
    c->base.ops = &cuda_ops;
    nb_status st = nbi_cuda_open(c, index, act);
    if (st != NB_OK) {
        destroy(&c->base);
        return st;
    }
    *out = &c->base;
    return NB_OK;
}
