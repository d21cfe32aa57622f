/* The driver's library, loaded at run time, and its errors as sentences. */
#include "backend/cuda/cuda.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Machine code of one major version of CUDA is not read by drivers of the one before. */
#define NEEDED_VERSION (CUDA_VERSION / 1000 * 1000)

/* The driver's words for r. */
static void words(const nbi_cuda_driver *d, CUresult r, const char **text, const char **name)
{
    if (d->cuGetErrorString(r, text) != CUDA_SUCCESS || !*text)
        *text = "an error that the driver has no words for";
    if (d->cuGetErrorName(r, name) != CUDA_SUCCESS || !*name)
        *name = "unknown";
}

static nb_status find_functions(nbi_cuda_driver *d)
{
#define X(name, args)                                                                                                  \
    if (!(*(void **)&d->name = dlsym(d->so, #name)))                                                                   \
        return nbi_fail(NB_ENODEVICE, "%s has no " #name ": the driver is too old, expected CUDA %d.0 or newer",       \
                        d->path, NEEDED_VERSION / 1000);
    NBI_CU_LIST(X)
#undef X
    return NB_OK;
}

static nb_status check_version(nbi_cuda_driver *d)
{
    const char *text = NULL, *name = NULL;
    int version = 0;
    CUresult r = d->cuInit(0);
    if (r != CUDA_SUCCESS) {
        words(d, r, &text, &name);
        return nbi_fail(NB_ENODEVICE, "%s finds no usable GPU: %s (%s)", d->path, text, name);
    }
    r = d->cuDriverGetVersion(&version);
    if (r != CUDA_SUCCESS) {
        words(d, r, &text, &name);
        return nbi_fail(NB_ENODEVICE, "%s does not tell its version: %s (%s)", d->path, text, name);
    }
    if (version < NEEDED_VERSION)
        return nbi_fail(NB_ENODEVICE, "the CUDA driver is too old: %s is made for CUDA %d.%d, expected %d.0 or newer",
                        d->path, version / 1000, version % 1000 / 10, NEEDED_VERSION / 1000);
    return NB_OK;
}

nb_status nbi_cuda_driver_load(nbi_cuda_driver *d)
{
    const char *path = getenv("NB_CUDA_DRIVER");
    nb_status st;
    memset(d, 0, sizeof *d);
    snprintf(d->path, sizeof d->path, "%s", path && *path ? path : "libcuda.so.1");
    /* a driver that has run keeps threads and handlers: it stays in place when we are done with it */
    d->so = dlopen(d->path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!d->so)
        return nbi_fail(NB_ENODEVICE, "there is no CUDA driver on this machine: %s", dlerror());
    if ((st = find_functions(d)) != NB_OK || (st = check_version(d)) != NB_OK)
        nbi_cuda_driver_unload(d);
    return st;
}

void nbi_cuda_driver_unload(nbi_cuda_driver *d)
{
    if (d->so)
        dlclose(d->so);
    memset(d, 0, sizeof *d);
}

/* After these the context answers every call with the same error: nothing on the device can be saved. */
static bool sticky(CUresult r)
{
    switch ((int)r) {
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_NVLINK_UNCORRECTABLE:
    case CUDA_ERROR_DEVICE_UNAVAILABLE:
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_CONTEXT_IS_DESTROYED:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
    case CUDA_ERROR_UNKNOWN:
        return true;
    default:
        return false;
    }
}

static nb_status status_of(CUresult r)
{
    switch ((int)r) {
    case CUDA_ERROR_OUT_OF_MEMORY:
        return NB_ENOMEM;
    case CUDA_ERROR_NOT_SUPPORTED:
        return NB_EUNSUPPORTED;
    case CUDA_ERROR_NO_BINARY_FOR_GPU:
    case CUDA_ERROR_NO_DEVICE:
    case CUDA_ERROR_INVALID_DEVICE:
        return NB_ENODEVICE;
    default:
        return sticky(r) ? NB_ENODEVICE : NB_EINTERNAL;
    }
}

CUresult nbi_cuda_enter(nbi_cuda *c)
{
    return c->entered = c->lost ? c->lost : c->cu.cuCtxPushCurrent_v2(c->context);
}

CUresult nbi_cuda_leave(nbi_cuda *c, CUresult r)
{
    CUcontext old;
    c->cu.cuCtxPopCurrent_v2(&old); /* should that fail, what was done is done all the same */
    return r;
}

nb_status nbi_cuda_check(nbi_cuda *c, CUresult r, const char *what)
{
    const char *text = NULL, *name = NULL;
    if (r == CUDA_SUCCESS)
        return NB_OK;
    if (c->lost)
        return nbi_fail(status_of(c->lost), "%s", c->lost_text);
    words(&c->cu, r, &text, &name);
    if (sticky(r)) {
        c->lost = r;
        snprintf(c->lost_text, sizeof c->lost_text, "cuda:%d: %s failed: %s (%s)", c->index, what, text, name);
    }
    return nbi_fail(status_of(r), "cuda:%d: %s failed: %s (%s)", c->index, what, text, name);
}
