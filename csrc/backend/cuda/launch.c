/* Kernels: kernels.h as a table, modules from the embedded fatbins, and launches that are checked before they are made.
 *
 * A launch that breaks its contract is an internal error with a sentence; without the check it would be the driver's
 * "invalid argument", or a wrong number. */
#include "backend/cuda/cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/fatbins.h"

#define SHARED_WITHOUT_ASKING (48 * 1024)

typedef struct contract {
    const char *name, *file, *launching; /* the last: for errors */
    uint32_t threads, shared;            /* of a block; most dynamic shared memory */
    int sm;                              /* the oldest */
    size_t args;                         /* bytes */
} contract;

static const contract contracts[] = {
#define X(name, file, threads, shared, sm, args) {#name, #file, "launching " #name, threads, shared, sm, sizeof(args)},
    NB_CUDA_KERNEL_LIST(X)
#undef X
};

struct nbi_cuda_modules {
    CUfunction function[NB_N_KERNELS]; /* NULL: not asked for yet */
    uint32_t shared[NB_N_KERNELS];     /* most dynamic shared memory on this device */
    CUmodule module[];                 /* beside nbi_fatbins[] */
};

nb_status nbi_cuda_modules_create(nbi_cuda *c)
{
    size_t n = 0;
    while (nbi_fatbins[n].name)
        n++;
    c->modules = calloc(1, sizeof *c->modules + n * sizeof c->modules->module[0]);
    return c->modules ? NB_OK : nbi_fail_nomem("a backend", sizeof *c->modules);
}

void nbi_cuda_modules_free(nbi_cuda *c)
{
    for (size_t i = 0; c->modules && nbi_fatbins[i].name; i++)
        if (c->modules->module[i])
            c->cu.cuModuleUnload(c->modules->module[i]);
    free(c->modules);
    c->modules = NULL;
}

static nb_status load_module(nbi_cuda *c, const contract *k, CUmodule *out)
{
    char what[96];
    size_t i = 0;
    while (nbi_fatbins[i].name && strcmp(nbi_fatbins[i].name, k->file) != 0)
        i++;
    if (!nbi_fatbins[i].name)
        return nbi_fail(NB_EUNSUPPORTED, "this build has no cuda/%s.cu, which kernel %s is from", k->file, k->name);
    CUmodule *m = &c->modules->module[i];
    nb_status st = NB_OK;
    if (!*m) {
        snprintf(what, sizeof what, "loading the kernels of %s.cu", k->file);
        st = NBI_CU(c, cuModuleLoadData(m, nbi_fatbins[i].image), what);
    }
    *out = *m;
    return st;
}

/* What the compiled kernel can do must be what its contract says: a block of its threads, and its shared memory. */
static nb_status check_function(nbi_cuda *c, const contract *k, CUfunction f, uint32_t *shared)
{
    nb_status st;
    int threads = 0, fixed = 0;
    NB_TRY(NBI_CU(c, cuFuncGetAttribute(&threads, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, f), "examining a kernel"));
    NB_TRY(NBI_CU(c, cuFuncGetAttribute(&fixed, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, f), "examining a kernel"));
    if ((uint32_t)threads < k->threads)
        return nbi_fail(NB_EINTERNAL, "kernel %s is compiled for %d threads a block, its contract says %u", k->name,
                        threads, k->threads);
    uint32_t room = fixed < c->max_shared ? (uint32_t)(c->max_shared - fixed) : 0;
    *shared = k->shared < room ? k->shared : room;
    if (*shared + (uint32_t)fixed > SHARED_WITHOUT_ASKING)
        NB_TRY(NBI_CU(c, cuFuncSetAttribute(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)*shared),
                      "asking for shared memory"));
done:
    return st;
}

nb_status nbi_cuda_prepare(nbi_cuda *c, enum nb_kernel k)
{
    nb_status st = NB_OK;
    CUmodule module = NULL;
    CUfunction f = NULL;
    char what[96];
    const contract *kc = &contracts[k];
    if (c->modules->function[k])
        return NB_OK;
    if (c->capturing)
        return nbi_fail(NB_EINTERNAL, "kernel %s is loaded while a step is recorded", kc->name);
    if (c->sm < kc->sm)
        return nbi_fail(NB_EUNSUPPORTED, "kernel %s needs compute capability %d.%d, but cuda:%d is a %s of %d.%d",
                        kc->name, kc->sm / 10, kc->sm % 10, c->index, c->name, c->sm / 10, c->sm % 10);
    NB_TRY(load_module(c, kc, &module));
    snprintf(what, sizeof what, "looking for kernel %s", kc->name);
    NB_TRY(NBI_CU(c, cuModuleGetFunction(&f, module, kc->name), what));
    NB_TRY(check_function(c, kc, f, &c->modules->shared[k]));
    c->modules->function[k] = f;
done:
    return st;
}

uint32_t nbi_cuda_max_shared(nbi_cuda *c, enum nb_kernel k)
{
    return nbi_cuda_prepare(c, k) == NB_OK ? c->modules->shared[k] : 0;
}

static nb_status refuse(const contract *k, const char *what, unsigned long long found, unsigned long long most)
{
    return nbi_fail(NB_EINTERNAL, "kernel %s: %s is %llu, expected %llu", k->name, what, found, most);
}

nb_status nbi_cuda_launch(nbi_cuda *c, enum nb_kernel k, nbi_grid3 grid, size_t shared, const void *args,
                          size_t args_bytes)
{
    nb_status st = nbi_cuda_prepare(c, k);
    if (st != NB_OK)
        return st;
    const contract *kc = &contracts[k];
    if (args_bytes != kc->args)
        return refuse(kc, "the size of its arguments", args_bytes, kc->args);
    if (grid.x == 0 || grid.y == 0 || grid.z == 0)
        return nbi_fail(NB_EINTERNAL, "kernel %s: a grid of %u x %u x %u blocks is empty", kc->name, grid.x, grid.y,
                        grid.z);
    if (grid.x > INT32_MAX || grid.y > UINT16_MAX || grid.z > UINT16_MAX)
        return nbi_fail(NB_EUNSUPPORTED, "kernel %s: a grid of %u x %u x %u blocks, expected at most %d x %d x %d",
                        kc->name, grid.x, grid.y, grid.z, INT32_MAX, UINT16_MAX, UINT16_MAX);
    if (shared > c->modules->shared[k])
        return refuse(kc, "dynamic shared memory", shared, c->modules->shared[k]);
    void *params[] = {(void *)(uintptr_t)args};
    return NBI_CU(c,
                  cuLaunchKernel(c->modules->function[k], grid.x, grid.y, grid.z, kc->threads, 1, 1, (unsigned)shared,
                                 c->stream, params, NULL),
                  kc->launching);
}
