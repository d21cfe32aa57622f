/* The CPU backend: choice of the instruction set, and the table of operations.
 *
 * Activations are fp32 in host memory, so upload and download are copies and nothing is asynchronous. */
#include "backend/cpu/cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "base/checked.h"

#define MAX_THREADS 4096

static void destroy(nbi_backend *b)
{
    nbi_cpu_free_arena(nbi_cpu_of(b));
    free(nbi_cpu_of(b)->pin);
    free(b);
}

static nb_status copy(nbi_backend *b, void *dst, const void *src, size_t bytes)
{
    (void)b;
    if (bytes)
        memcpy(dst, src, bytes);
    return NB_OK;
}

static nb_status download_act(nbi_backend *b, float *dst, const void *x, size_t n)
{
    return copy(b, dst, x, n * sizeof(float));
}

static nb_status upload_act(nbi_backend *b, void *dst, const float *src, size_t n)
{
    return copy(b, dst, src, n * sizeof(float));
}

static nb_status gather(nbi_backend *b, const nbi_step *s, const float *x, size_t k, float *y)
{
    (void)b;
    for (size_t i = 0; i < s->batch->n_logits; i++)
        memcpy(y + i * k, x + s->batch->logit_rows[i] * k, k * sizeof(float));
    return NB_OK;
}

static const nbi_backend_ops cpu_ops = {
    .destroy = destroy,
    .alloc = nbi_cpu_alloc,
    .release = nbi_cpu_release,
    .upload = copy,
    .download = copy,
    .free_bytes = nbi_cpu_free_bytes,
    .act_bytes = nbi_cpu_act_bytes,
    .linear_create = nbi_cpu_linear_create,
    .layout = NBI_CPU_LAYOUT,
    .linear_save = nbi_cpu_linear_save,
    .linear_load = nbi_cpu_linear_load,
    .linear_free = nbi_cpu_linear_free,
    .linear_bytes = nbi_cpu_linear_bytes,
    .linear_form = nbi_cpu_linear_form,
    .reserve = nbi_cpu_reserve,
    .linear_plan = nbi_cpu_linear_plan,
    .scratch_bytes = nbi_cpu_scratch_bytes,
    .transform_create = nbi_cpu_transform_create,
    .transform_free = nbi_cpu_transform_free,
    .transform_bytes = nbi_cpu_transform_bytes,
    .transform_in = nbi_cpu_transform_in,
    .transform_out = nbi_cpu_transform_out,
    .step_create = nbi_cpu_step_create,
    .step_free = nbi_cpu_step_free,
    .step_begin = nbi_cpu_step_begin,
    .embed = nbi_cpu_embed,
    .rmsnorm = nbi_cpu_rmsnorm,
    .linear = nbi_cpu_linear,
    .norm_heads = nbi_cpu_norm_heads,
    .rope_append = nbi_cpu_rope_append,
    .attention = nbi_cpu_attention_forms,
    .swiglu = nbi_cpu_swiglu,
    .gates = nbi_cpu_gates,
    .gated = nbi_cpu_gated,
    .experts = nbi_cpu_experts,
    .experts_bytes = nbi_cpu_experts_bytes,
    .gather = gather,
    .download_act = download_act,
    .upload_act = upload_act,
    .roofs = nbi_cpu_roofs,
};

/* ---- instruction sets: best first ---- */

static bool always(void)
{
    return true;
}

#if defined(__x86_64__)
static bool has_avx2(void)
{
    unsigned a, b, c = 0, d;
    /* the builtin looks at what the system saves, too; its name for F16C is not known to every compiler */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) &&
           (c & bit_F16C);
}
static bool has_avxvnni(void)
{
    unsigned a = 0, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}
/* Without VNNI the AVX2 kernels serve: a 512-bit integer kernel of its own would gain little there. */
static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}
#elif defined(__aarch64__)
static bool has_dot(void)
{
    return getauxval(AT_HWCAP) & 1ul << 20; /* HWCAP_ASIMDDP; older headers lack these names */
}
static bool has_i8mm(void)
{
    return has_dot() && getauxval(AT_HWCAP2) & 1ul << 13; /* HWCAP2_I8MM */
}
#endif

static const struct {
    const nbi_cpu_kernels *kern;
    bool (*present)(void);
} isas[] = {
#if defined(__x86_64__)
    {&nbi_cpu_avx512, has_avx512},
    {&nbi_cpu_avxvnni, has_avxvnni},
    /* its AVX-512 encoding: only ever asked for by name */
    {&nbi_cpu_avxvnni_evex, has_avx512},
    {&nbi_cpu_avx2, has_avx2},
#elif defined(__aarch64__)
    {&nbi_cpu_neon_i8mm, has_i8mm},
    {&nbi_cpu_neon_dot, has_dot},
    {&nbi_cpu_neon, always},
#endif
    {&nbi_cpu_scalar, always},
};
enum { N_ISAS = sizeof isas / sizeof *isas };

const char *nbi_cpu_isa(size_t i)
{
    return i < N_ISAS ? isas[i].kern->isa : NULL;
}

/* "scalar, avx2, avxvnni or avx512" */
static const char *isa_names(char *text, size_t size)
{
    size_t used = 0;
    for (size_t i = N_ISAS; i-- > 0;)
        if (i == 0 || strcmp(isas[i].kern->isa, isas[i - 1].kern->isa) != 0)
            used += (size_t)snprintf(text + used, size - used, "%s%s", i == N_ISAS - 1 ? "" : (i ? ", " : " or "),
                                     isas[i].kern->isa);
    return text;
}

static nb_status choose_isa(const nbi_cpu_kernels **out)
{
    const char *want = getenv("NB_CPU_ISA"), *missing = NULL;
    char names[128];
    for (size_t i = 0; i < N_ISAS; i++) {
        if (want && *want && strcmp(want, isas[i].kern->isa) != 0)
            continue;
        if (isas[i].present()) {
            *out = isas[i].kern;
            return NB_OK;
        }
        missing = isas[i].kern->name;
    }
    if (missing)
        return nbi_fail(NB_ENODEVICE, "NB_CPU_ISA is \"%s\", but this machine has no %s", want, missing);
    return nbi_fail(NB_EINVAL, "NB_CPU_ISA is \"%s\": expected %s", want, isa_names(names, sizeof names));
}

nb_status nbi_cpu_create(nbi_backend **out, int threads)
{
    const nbi_cpu_kernels *kern = NULL;
    nb_status st = choose_isa(&kern);
    if (st != NB_OK)
        return st;
    if (threads < 0 || threads > MAX_THREADS)
        return nbi_fail(NB_EINVAL, "threads is %d: expected 0 (one for each core) to %d", threads, MAX_THREADS);
    nbi_cpu *c = calloc(1, sizeof *c);
    if (!c)
        return nbi_fail_nomem("a backend", sizeof *c);
    c->kern = kern;
    c->threads = threads ? threads : nbi_cpu_available_cores();
    c->base.ops = &cpu_ops;
    c->base.name = "cpu";
    c->base.threads = (uint32_t)c->threads;
    c->base.default_kv = NBI_KV_F32;
    snprintf(c->base.description, sizeof c->base.description, "cpu (%s), %d thread%s", kern->name, c->threads,
             c->threads == 1 ? "" : "s");
    *out = &c->base;
    return NB_OK;
}
