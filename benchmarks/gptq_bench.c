/* Seconds of one GPTQ solve with the Hessian given: build/nibble_gptq_bench [N] [K] [THREADS] [GROUP], 4096 4096 2 128. */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/log.h"
#include "base/rng.h"
#include "quant/gptq.h"
#include "quant/gram.h"

/* Inputs as a network has them: channels of different sizes that go together. */
static void fill(float *x, size_t rows, size_t k)
{
    for (size_t r = 0; r < rows; r++) {
        float shared = nbi_rng_uniform(2, r) - 0.5f;
        for (size_t j = 0; j < k; j++)
            x[r * k + j] = (nbi_rng_uniform(1, r * k + j) - 0.5f + shared * (float)(j % 7) / 7) * (float)(1 + j % 11);
    }
}

int main(int argc, char **argv)
{
    const size_t n = argc > 1 ? strtoul(argv[1], NULL, 10) : 4096, k = argc > 2 ? strtoul(argv[2], NULL, 10) : 4096;
    const int threads = argc > 3 ? atoi(argv[3]) : 2;
    const unsigned group = argc > 4 ? (unsigned)atoi(argv[4]) : 128;
    const size_t rows = 2 * k;
    float *x = malloc(rows * k * sizeof *x), *h = calloc(k * k, sizeof *h), *w = malloc(n * k * sizeof *w), damp;
    if (!n || !k || threads < 1 || !x || !h || !w) {
        fprintf(stderr, "nibble_gptq_bench: expected N, K, THREADS and GROUP above 0, and memory for them\n");
        return 1;
    }
    fill(x, rows, k);
    for (size_t i = 0; i < n * k; i++)
        w[i] = (nbi_rng_uniform(3, i) - 0.5f) * 0.05f;
    double t = nbi_now();
    nbi_gram_add(h, x, rows, k, threads);
    printf("X^T X of %zu rows: %.2f s\n", rows, nbi_now() - t);
    const nbi_weight src = {.n = n, .k = k, .dense_dtype = NBI_F32, .dense = w};
    const nbi_scheme scheme = {
        .bits = 4, .symmetric = true, .strategy = NBI_PER_GROUP, .group = group, .act_symmetric = true};
    const nbi_gptq_options o = nbi_gptq_defaults();
    nbi_weight q = {0};
    const clock_t cpu = clock();
    t = nbi_now();
    if (nbi_gptq(&q, &src, &scheme, NBI_F32, h, &o, threads, &damp) != NB_OK) {
        fprintf(stderr, "nibble_gptq_bench: %s\n", nb_last_error());
        return 1;
    }
    printf("GPTQ of %zu x %zu, 4 bits, groups of %u, %d threads: %.2f s, %.2f s of processors (damping %g)\n", n, k,
           group, threads, nbi_now() - t, (double)(clock() - cpu) / CLOCKS_PER_SEC, (double)damp);
    nbi_weight_free(&q);
    free(x);
    free(h);
    free(w);
    return 0;
}
