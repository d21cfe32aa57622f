/* One device: which there are, what it can do, its context and its stream. */
#include "backend/cuda/cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/cublaslt.h"

#define OLDEST_SM   75 /* Turing: the first with integer tensor cores */
#define OLDEST_BF16 80

static nb_status attribute(nbi_cuda *c, int *out, CUdevice_attribute which)
{
    return nbi_cuda_check(c, c->cu.cuDeviceGetAttribute(out, which, c->device), "asking what the device can do");
}

static nb_status choose(nbi_cuda *c)
{
    nb_status st;
    int n = 0;
    NB_TRY(nbi_cuda_check(c, c->cu.cuDeviceGetCount(&n), "counting devices"));
    if (n == 0)
        return nbi_fail(NB_ENODEVICE, "the CUDA driver is here (%s), but it has no device", c->cu.path);
    if (c->index < 0 || c->index >= n)
        return nbi_fail(NB_ENODEVICE, "device cuda:%d does not exist: this machine has %d, counted from cuda:0",
                        c->index, n);
    NB_TRY(nbi_cuda_check(c, c->cu.cuDeviceGet(&c->device, c->index), "opening the device"));
done:
    return st;
}

static nb_status examine(nbi_cuda *c)
{
    nb_status st;
    int major = 0, minor = 0;
    NB_TRY(
        nbi_cuda_check(c, c->cu.cuDeviceGetName(c->name, sizeof c->name, c->device), "asking for the device's name"));
    NB_TRY(attribute(c, &major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR));
    NB_TRY(attribute(c, &minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR));
    NB_TRY(attribute(c, &c->n_sm, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT));
    NB_TRY(attribute(c, &c->max_shared, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN));
    c->sm = major * 10 + minor;
    if (c->sm < OLDEST_SM)
        return nbi_fail(NB_ENODEVICE, "cuda:%d is a %s of compute capability %d.%d, expected %d.%d or newer", c->index,
                        c->name, major, minor, OLDEST_SM / 10, OLDEST_SM % 10);
    if (c->act == NBI_BF16 && c->sm < OLDEST_BF16)
        return nbi_fail(NB_EUNSUPPORTED,
                        "activations in bf16 need compute capability 8.0, but cuda:%d is a %s of %d.%d: use f16",
                        c->index, c->name, major, minor);
done:
    return st;
}

static nb_status create_lock(nbi_cuda *c)
{
    pthread_mutexattr_t recursive;
    if (pthread_mutexattr_init(&recursive) != 0)
        return nbi_fail(NB_ENOMEM, "the backend's lock cannot be created");
    c->has_lock = pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE) == 0 &&
                  pthread_mutex_init(&c->lock, &recursive) == 0;
    pthread_mutexattr_destroy(&recursive);
    return c->has_lock ? NB_OK : nbi_fail(NB_ENOMEM, "the backend's lock cannot be created");
}

nb_status nbi_cuda_open(nbi_cuda *c, int index, nbi_dtype act)
{
    nb_status st;
    c->index = index;
    c->act = act;
    NB_TRY(create_lock(c));
    NB_TRY(nbi_cuda_driver_load(&c->cu));
    NB_TRY(choose(c));
    NB_TRY(examine(c));
    NB_TRY(nbi_cuda_check(c, c->cu.cuDevicePrimaryCtxRetain(&c->context, c->device), "opening a context"));
    NB_TRY(NBI_CU(c, cuStreamCreate(&c->stream, CU_STREAM_NON_BLOCKING), "creating a stream"));
    NB_TRY(nbi_cuda_memory_create(c));
    NB_TRY(nbi_cuda_modules_create(c));
    snprintf(c->base.description, sizeof c->base.description, "cuda:%d %.48s (sm_%d), %d SMs", index, c->name, c->sm,
             c->n_sm);
    c->base.name = "cuda";
    c->base.threads = 1;
    c->base.default_kv = NBI_KV_F16;
    c->base.quant = &nbi_cuda_quant_ops;
done:
    return st;
}

void nbi_cuda_close(nbi_cuda *c)
{
    CUcontext old;
    if (c->context && c->cu.cuCtxPushCurrent_v2(c->context) == CUDA_SUCCESS) {
        /* after a lost context these calls fail, and the driver frees all of it with the context */
        if (c->stream)
            c->cu.cuStreamSynchronize(c->stream);
        nbi_cublaslt_close(c);
        nbi_cuda_modules_free(c);
        nbi_cuda_memory_free(c);
        if (c->stream)
            c->cu.cuStreamDestroy_v2(c->stream);
        c->cu.cuCtxPopCurrent_v2(&old);
    } else {
        nbi_cublaslt_close(c);
        nbi_cuda_modules_free(c);
        nbi_cuda_memory_free(c);
    }
    if (c->context)
        c->cu.cuDevicePrimaryCtxRelease_v2(c->device);
    nbi_cuda_driver_unload(&c->cu);
    if (c->has_lock)
        pthread_mutex_destroy(&c->lock);
    c->has_lock = false;
}
