/* Device memory, and the way there and back.  Every function may come from any thread.
 *
 * Copies go through two pinned buffers, used in turns: while one travels the other is filled (upload) or emptied (download).
 * An event behind each copy says when its buffer is free again. */
#include "backend/cuda/cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

struct nbi_cuda_staging {
    char *host[2]; /* pinned, NBI_STAGE_BYTES each */
    CUevent done[2];
    bool busy[2]; /* a copy was issued, and nobody has waited for `done` since */
    int turn;
};

struct nbi_cuda_arena {
    CUdeviceptr base;
    size_t bytes, used, pieces;
};

static CUdeviceptr address(const void *p)
{
    return (CUdeviceptr)(uintptr_t)p;
}

nb_status nbi_cuda_memory_create(nbi_cuda *c)
{
    nb_status st = NB_OK;
    c->weights = calloc(1, sizeof *c->weights);
    struct nbi_cuda_staging *s = c->staging = calloc(1, sizeof *c->staging);
    if (!c->weights || !s)
        return nbi_fail_nomem("a backend", sizeof *c->staging);
    for (int i = 0; i < 2; i++) {
        NB_TRY(NBI_CU(c, cuMemHostAlloc((void **)&s->host[i], NBI_STAGE_BYTES, 0), "allocating a pinned buffer"));
        NB_TRY(NBI_CU(c, cuEventCreate(&s->done[i], CU_EVENT_DISABLE_TIMING), "creating an event"));
    }
done:
    return st;
}

void nbi_cuda_memory_free(nbi_cuda *c)
{
    struct nbi_cuda_staging *s = c->staging;
    for (int i = 0; s && i < 2; i++) {
        if (s->done[i])
            c->cu.cuEventDestroy_v2(s->done[i]);
        if (s->host[i])
            c->cu.cuMemFreeHost(s->host[i]);
    }
    if (c->weights && c->weights->base)
        c->cu.cuMemFree_v2(c->weights->base);
    free(c->staging);
    free(c->weights);
    c->staging = NULL;
    c->weights = NULL;
}

/* ---- allocations ---- */

static nb_status grab(nbi_cuda *c, CUdeviceptr *out, size_t bytes, const char *what)
{
    size_t room = 0, total = 0;
    if (c->capturing)
        return nbi_fail(NB_EINTERNAL, "cuda:%d: %s is allocated while a step is recorded", c->index, what);
    CUresult r = nbi_cuda_enter(c) ? c->entered : nbi_cuda_leave(c, c->cu.cuMemAlloc_v2(out, bytes ? bytes : 1));
    if (r != CUDA_ERROR_OUT_OF_MEMORY)
        return nbi_cuda_check(c, r, "allocating device memory");
    nb_status st = NBI_CU(c, cuMemGetInfo_v2(&room, &total), "asking for the free memory");
    if (st != NB_OK)
        return st;
    return nbi_fail(NB_ENOMEM, "cuda:%d: out of memory for %s: %.1f MiB wanted, %.1f MiB of %.1f MiB free", c->index,
                    what, (double)bytes / 0x1p20, (double)room / 0x1p20, (double)total / 0x1p20);
}

nb_status nbi_cuda_alloc(nbi_backend *b, void **out, size_t bytes, const char *what)
{
    nbi_cuda *c = nbi_cuda_of(b);
    CUdeviceptr p = 0;
    *out = NULL;
    nb_status st = grab(c, &p, bytes, what);
    if (st != NB_OK)
        return st;
    st = nbi_cuda_clear(c, (void *)(uintptr_t)p, bytes);
    if (st != NB_OK) {
        nbi_cuda_release(b, (void *)(uintptr_t)p);
        return st;
    }
    *out = (void *)(uintptr_t)p;
    return NB_OK;
}

/* Also on the way out of an error, whose sentence must stay: so no nbi_cuda_check().  The driver waits for whatever still uses
 * the memory. */
void nbi_cuda_release(nbi_backend *b, void *p)
{
    nbi_cuda *c = nbi_cuda_of(b);
    CUcontext old;
    if (!p || c->cu.cuCtxPushCurrent_v2(c->context) != CUDA_SUCCESS)
        return;
    c->cu.cuMemFree_v2(address(p));
    c->cu.cuCtxPopCurrent_v2(&old);
}

size_t nbi_cuda_free_bytes(nbi_backend *b)
{
    size_t room = 0, total;
    return NBI_CU(nbi_cuda_of(b), cuMemGetInfo_v2(&room, &total), "asking for the free memory") == NB_OK ? room : 0;
}

nb_status nbi_cuda_weights_reserve(nbi_cuda *c, size_t bytes)
{
    struct nbi_cuda_arena *a = c->weights;
    nb_status st;
    if (a->pieces)
        return nbi_fail(NB_EINTERNAL, "cuda:%d: the weights' memory is in use and cannot be reserved again", c->index);
    if (a->base)
        nbi_cuda_release(&c->base, (void *)(uintptr_t)a->base);
    *a = (struct nbi_cuda_arena){0};
    if ((st = grab(c, &a->base, bytes, "the weights")) == NB_OK)
        a->bytes = bytes;
    return st;
}

nb_status nbi_cuda_weights_alloc(nbi_cuda *c, void **out, size_t bytes)
{
    struct nbi_cuda_arena *a = c->weights;
    size_t room;
    *out = NULL;
    if (!nbi_round_up(bytes, 256, &room))
        return nbi_fail_nomem("a weight", bytes);
    if (room <= a->bytes - a->used) {
        *out = (void *)(uintptr_t)(a->base + a->used);
        a->used += room;
        a->pieces++;
        return NB_OK;
    }
    CUdeviceptr p = 0;
    nb_status st = grab(c, &p, room, "a weight");
    *out = st == NB_OK ? (void *)(uintptr_t)p : NULL;
    return st;
}

void nbi_cuda_weights_free(nbi_cuda *c, void *p)
{
    struct nbi_cuda_arena *a = c->weights;
    if (!p)
        return;
    if (address(p) < a->base || address(p) - a->base >= a->bytes) {
        nbi_cuda_release(&c->base, p);
        return;
    }
    if (--a->pieces == 0)
        a->used = 0;
}

/* ---- copies ---- */

nb_status nbi_cuda_sync(nbi_cuda *c)
{
    return NBI_CU(c, cuStreamSynchronize(c->stream), "waiting for the device");
}

nb_status nbi_cuda_clear(nbi_cuda *c, void *dst, size_t bytes)
{
    return bytes ? NBI_CU(c, cuMemsetD8Async(address(dst), 0, bytes, c->stream), "clearing memory") : NB_OK;
}

static nb_status wait_for(nbi_cuda *c, int i)
{
    struct nbi_cuda_staging *s = c->staging;
    if (!s->busy[i])
        return NB_OK;
    nb_status st = NBI_CU(c, cuEventSynchronize(s->done[i]), "waiting for the device");
    s->busy[i] = st != NB_OK;
    return st;
}

static nb_status mark(nbi_cuda *c, int i)
{
    c->staging->busy[i] = true;
    return NBI_CU(c, cuEventRecord(c->staging->done[i], c->stream), "recording an event");
}

nb_status nbi_cuda_stage_get(nbi_cuda *c, void **host)
{
    struct nbi_cuda_staging *s = c->staging;
    *host = s->host[s->turn];
    return wait_for(c, s->turn);
}

nb_status nbi_cuda_stage_send(nbi_cuda *c, void *dst, size_t bytes)
{
    struct nbi_cuda_staging *s = c->staging;
    nb_status st = NB_OK;
    int i = s->turn;
    if (bytes == 0)
        return NB_OK;
    NB_TRY(NBI_CU(c, cuMemcpyHtoDAsync_v2(address(dst), s->host[i], bytes, c->stream), "a copy to the device"));
    NB_TRY(mark(c, i));
    s->turn ^= 1;
done:
    return st;
}

nb_status nbi_cuda_upload(nbi_backend *b, void *dst, const void *src, size_t bytes)
{
    nbi_cuda *c = nbi_cuda_of(b);
    nb_status st = NB_OK;
    for (size_t at = 0, n; at < bytes; at += n) {
        void *host;
        n = bytes - at < NBI_STAGE_BYTES ? bytes - at : NBI_STAGE_BYTES;
        NB_TRY(nbi_cuda_stage_get(c, &host));
        memcpy(host, (const char *)src + at, n);
        NB_TRY(nbi_cuda_stage_send(c, (char *)dst + at, n));
    }
done:
    return st;
}

/* Issues the copy of one piece, then empties the buffer of the piece before it. */
nb_status nbi_cuda_download(nbi_backend *b, void *dst, const void *src, size_t bytes)
{
    nbi_cuda *c = nbi_cuda_of(b);
    struct nbi_cuda_staging *s = c->staging;
    nb_status st = NB_OK;
    size_t before_at = 0, before_n = 0;
    for (size_t at = 0, n; at < bytes || before_n; at += n) {
        int i = s->turn;
        n = bytes - at < NBI_STAGE_BYTES ? bytes - at : NBI_STAGE_BYTES;
        if (n) {
            NB_TRY(wait_for(c, i));
            NB_TRY(NBI_CU(c, cuMemcpyDtoHAsync_v2(s->host[i], address((const char *)src + at), n, c->stream),
                          "a copy from the device"));
            NB_TRY(mark(c, i));
        }
        if (before_n) {
            NB_TRY(wait_for(c, i ^ 1));
            memcpy((char *)dst + before_at, s->host[i ^ 1], before_n);
        }
        before_at = at;
        before_n = n;
        s->turn ^= 1;
    }
done:
    return st;
}
