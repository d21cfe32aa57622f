#include "backend/backend.h"

#include <string.h>

#include "backend/cpu/cpu.h"
#ifdef NIBBLE_HAS_CUDA
nb_status nbi_cublaslt_use(nbi_backend *b, char note[200]); /* cuda/cublaslt.h */
#endif

nb_status nbi_backend_create(nbi_backend **out, const char *device, int threads)
{
    *out = NULL;
    if (!device || strcmp(device, "auto") == 0 || strcmp(device, "cpu") == 0)
        return nbi_cpu_create(out, threads);
    return nbi_fail(NB_ENODEVICE, "device \"%s\" does not exist here: this build knows \"auto\" and \"cpu\"", device);
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
