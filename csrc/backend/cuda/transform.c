/* Rotations of activations beside linear layers: each is one launch. */
#include "backend/cuda/cuda.h"

#include <math.h>
#include <stdlib.h>

#include "base/rotation.h"

#define MOST_PARTS 1024 /* as on the CPU: their matrix has this many rows */

struct nbi_transform {
    size_t k;
    nb_rotation r;
};

/* Block: signs [k], then the Hartley matrix. */
static size_t block_bytes(size_t k, size_t h)
{
    return nbi_cuda_align(k) + (h > 1 && h < MOST_PARTS ? nbi_cuda_align(h * h * sizeof(float)) : 0);
}

size_t nbi_cuda_transform_bytes(nbi_backend *b, const nbi_transform_spec *spec)
{
    unsigned p;
    (void)b;
    return spec->signs ? block_bytes(spec->k, nbi_rotation_parts(spec->k, &p)) : 0;
}

nb_status nbi_cuda_hartley(nbi_cuda *c, void *dst, size_t h)
{
    float *host = malloc(h * h * sizeof *host);
    if (!host)
        return nbi_fail_nomem("a rotation", h * h * sizeof *host);
    nbi_rotation_hartley(host, h);
    nb_status st = nbi_cuda_upload(&c->base, dst, host, h * h * sizeof *host);
    free(host);
    return st;
}

static nb_status check(nbi_cuda *c, size_t k, size_t h)
{
    if (k == 0)
        return nbi_fail(NB_EINVAL, "a transform of 0 inputs");
    if (h >= MOST_PARTS)
        return nbi_fail(NB_EUNSUPPORTED,
                        "a rotation of %zu elements has no CUDA kernel: its odd part is %zu, expected less than %d", k,
                        h, MOST_PARTS);
    if (k % 16 || k > INT32_MAX)
        return nbi_fail(NB_EUNSUPPORTED, "cuda: a rotation of %zu elements, expected a multiple of 16", k);
    const uint32_t in = nbi_cuda_max_shared(c, NBI_K(c, nb_rotate_in)),
                   out = nbi_cuda_max_shared(c, NBI_K(c, nb_rotate_out));
    const uint32_t most = in < out ? in : out;
    if (most && NB_ROTATE_SHARED(k) > most)
        return nbi_fail(NB_EUNSUPPORTED,
                        "a rotation of %zu elements needs %zu bytes of shared memory, and cuda:%d has %u for it", k,
                        (size_t)NB_ROTATE_SHARED(k), c->index, most);
    return most ? NB_OK : NB_EUNSUPPORTED; /* with the sentence of what could not be loaded */
}

nb_status nbi_cuda_transform_create(nbi_backend *b, nbi_transform **out, const nbi_transform_spec *spec)
{
    nbi_cuda *c = nbi_cuda_of(b);
    unsigned p;
    void *block = NULL;
    const size_t k = spec->k, h = nbi_rotation_parts(k, &p);
    nb_status st;
    *out = NULL;
    NB_TRY(check(c, k, h));
    nbi_transform *t = calloc(1, sizeof *t);
    if (!t)
        return nbi_fail_nomem("a transform", sizeof *t);
    *t = (nbi_transform){.k = k, .r = {.h = (uint32_t)h, .m = 1u << p, .unit = (float)(1 / sqrt((double)k))}};
    *out = t;
    if (!spec->signs)
        return NB_OK;
    NB_TRY(nbi_cuda_alloc(b, &block, block_bytes(k, h), "a transform"));
    t->r.signs = block;
    t->r.hartley = (const float *)((char *)block + nbi_cuda_align(k));
    NB_TRY(nbi_cuda_upload(b, block, spec->signs, k));
    if (h > 1)
        NB_TRY(nbi_cuda_hartley(c, (void *)(uintptr_t)t->r.hartley, h));
done:
    if (st != NB_OK) {
        nbi_cuda_transform_free(b, *out);
        *out = NULL;
    }
    return st;
}

void nbi_cuda_transform_free(nbi_backend *b, nbi_transform *t)
{
    if (!t)
        return;
    nbi_cuda_release(b, (void *)(uintptr_t)t->r.signs);
    free(t);
}

nb_status nbi_cuda_transform_in(nbi_backend *b, const nbi_transform *t, void *x, size_t rows, unsigned forms)
{
    nbi_cuda *c = nbi_cuda_of(b);
    nb_rotate_in_args a = {
        .x = x, .out = nbi_cuda_act(x, rows, t->k), .r = t->r, .rows = (uint32_t)rows, .k = (uint32_t)t->k};
    if (rows == 0 || !t->r.signs)
        return NB_OK;
    a.out.y = NULL;
    if (!(forms & NBI_FORM_INT8)) {
        a.out.q = NULL;
        a.out.scale = NULL;
    }
    return NBI_LAUNCH(c, NBI_K(c, nb_rotate_in), rows, 1, 1, NB_ROTATE_SHARED(t->k), a);
}

nb_status nbi_cuda_transform_out(nbi_backend *b, const nbi_transform *t, float *x, size_t rows, const float *bias,
                                 void *y, size_t col, size_t ldy, nbi_dst dst)
{
    static const uint32_t dsts[] = {
        [NBI_DST_ACT] = NB_DST_ACT, [NBI_DST_RESIDUAL] = NB_DST_RESIDUAL, [NBI_DST_F32] = NB_DST_F32};
    nbi_cuda *c = nbi_cuda_of(b);
    const nb_rotate_out_args a = {.x = x,
                                  .bias = bias,
                                  .y = (char *)y + col * (dst == NBI_DST_ACT ? 2 : 4),
                                  .r = t->r,
                                  .rows = (uint32_t)rows,
                                  .k = (uint32_t)t->k,
                                  .ldy = (uint32_t)ldy,
                                  .dst = dsts[dst]};
    if (rows == 0)
        return NB_OK;
    if (col % 4 || ldy % 4 || ldy > UINT32_MAX)
        return nbi_fail(NB_EUNSUPPORTED,
                        "cuda: rotated outputs go to column %zu of rows of %zu, expected multiples of 4", col, ldy);
    return NBI_LAUNCH(c, NBI_K(c, nb_rotate_out), rows, 1, 1, NB_ROTATE_SHARED(t->k), a);
}
