/* Which device computes. */
#include "backend/backend.h"

#include <stdlib.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#ifdef NIBBLE_HAS_CUDA
#include "backend/cuda/create.h"
#endif

static nb_status open_cpu(nbi_backend **out, const nbi_backend_options *o)
{
    if (o->act_dtype)
        return nbi_fail(NB_EINVAL, "act_dtype is \"%s\", but the CPU computes in fp32: it is for GPUs", o->act_dtype);
    return nbi_cpu_create(out, o->threads);
}

#ifdef NIBBLE_HAS_CUDA
static nb_status open_cuda(nbi_backend **out, const nbi_backend_options *o, int index)
{
    const char *t = o->act_dtype ? o->act_dtype : "f16";
    if (strcmp(t, "f16") != 0 && strcmp(t, "bf16") != 0)
        return nbi_fail(NB_EINVAL, "act_dtype is \"%s\", expected f16 or bf16", t);
    return nbi_cuda_create(out, index, strcmp(t, "f16") == 0 ? NBI_F16 : NBI_BF16);
}
#else
static nb_status open_cuda(nbi_backend **out, const nbi_backend_options *o, int index)
{
    (void)out;
    (void)o;
    return nbi_fail(NB_ENODEVICE, "cuda:%d cannot be used: this build has no CUDA backend (it was made without nvcc)",
                    index);
}
#endif

/* The N of "cuda" or "cuda:N"; -1: neither. */
static int cuda_index(const char *device)
{
    if (strcmp(device, "cuda") == 0)
        return 0;
    if (strncmp(device, "cuda:", 5) != 0)
        return -1;
    const size_t digits = strspn(device + 5, "0123456789");
    return digits > 0 && digits < 5 && !device[5 + digits] ? atoi(device + 5) : -1;
}

nb_status nbi_backend_open(nbi_backend **out, const nbi_backend_options *o)
{
    const char *device = o->device ? o->device : "auto";
    *out = NULL;
    if (strcmp(device, "cpu") == 0)
        return open_cpu(out, o);
    if (cuda_index(device) >= 0)
        return open_cuda(out, o, cuda_index(device));
    if (strcmp(device, "auto") != 0)
        return nbi_fail(NB_ENODEVICE, "device \"%s\" does not exist, expected auto, cpu, cuda or cuda:N", device);
    nb_status st = open_cuda(out, o, 0);
    return st == NB_ENODEVICE ? open_cpu(out, o) : st;
}

nb_status nbi_backend_create(nbi_backend **out, const char *device, int threads)
{
    return nbi_backend_open(out, &(nbi_backend_options){.device = device, .threads = threads});
}

nb_status nbi_backend_set_pin(nbi_backend *b, const char *pin)
{
    if (strcmp(b->name, "cpu") == 0)
        return nbi_cpu_set_pin(b, pin);
    return !pin || strcmp(pin, "none") == 0
               ? NB_OK
               : nbi_fail(NB_EINVAL, "pin \"%s\" is for threads of the CPU, but the device is %s", pin, b->description);
}

nb_status nbi_backend_set_gemm(nbi_backend *b, const char *gemm, char note[200])
{
    note[0] = '\0';
    if (!gemm || strcmp(gemm, "nibble") == 0)
        return NB_OK;
    if (strcmp(gemm, "cublaslt") != 0)
        return nbi_fail(NB_EINVAL, "gemm is \"%s\", expected \"nibble\" or \"cublaslt\"", gemm);
#ifdef NIBBLE_HAS_CUDA
    if (strcmp(b->name, "cuda") == 0)
        return nbi_cublaslt_use(b, note);
#endif
    return nbi_fail(NB_EINVAL, "gemm \"cublaslt\" multiplies on a GPU, but the device is %s", b->description);
}
