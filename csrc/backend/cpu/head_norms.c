/* norm_heads(): queries and keys by themselves, before they are turned. */
#include "backend/cpu/cpu.h"

nb_status nbi_cpu_norm_heads(nbi_backend *b, void *qkv, size_t rows, size_t n_heads, size_t n_kv_heads, size_t head_dim,
                             const float *q_weight, const float *k_weight, float eps)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    const size_t heads = n_heads + n_kv_heads, stride = (heads + n_kv_heads) * head_dim;
#pragma omp parallel for schedule(static) num_threads(nbi_cpu_threads(c, rows > 1 ? rows * heads * head_dim : 0))
    for (size_t r = 0; r < rows; r++)
        for (size_t h = 0; h < heads; h++) {
            float *x = (float *)qkv + r * stride + h * head_dim;
            c->kern->rmsnorm_row(x, h < n_heads ? q_weight : k_weight, eps, head_dim, x);
        }
    return NB_OK;
}
