/* A batch on the CPU: nothing travels, but the angles of its rows are worked out once for all layers. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "base/checked.h"

nb_status nbi_cpu_step_create(nbi_backend *b, nbi_step **out, const nbi_step_limits *limits)
{
    nb_status st = NB_OK;
    size_t bytes, half = limits->head_dim / 2;
    (void)b;
    *out = NULL;
    if (!nbi_mul(limits->rows, limits->head_dim * sizeof(float), &bytes))
        return nbi_fail(NB_ELIMIT, "a batch of %zu rows is too large", limits->rows);
    nbi_step *s = calloc(1, sizeof *s);
    if (!s)
        return nbi_fail_nomem("a step", sizeof *s);
    s->max_rows = limits->rows;
    s->head_dim = limits->head_dim;
    s->inv_freq = malloc(half * sizeof(float) + 1);
    s->cos_sin = malloc(bytes + 1);
    if (!s->inv_freq || !s->cos_sin)
        NB_TRY(nbi_fail_nomem("a step", bytes));
    memcpy(s->inv_freq, limits->inv_freq, half * sizeof(float));
    NB_TRY(nbi_cpu_rotation_init(&s->rotation, limits->head_dim));
    *out = s;
    s = NULL;
done:
    nbi_cpu_step_free(b, s);
    return st;
}

void nbi_cpu_step_free(nbi_backend *b, nbi_step *s)
{
    (void)b;
    if (!s)
        return;
    free(s->inv_freq);
    free(s->cos_sin);
    nbi_cpu_rotation_free(&s->rotation);
    free(s);
}

/* Angles in fp32, as Transformers computes them: position times inverse frequency, then cos and sin. */
nb_status nbi_cpu_step_begin(nbi_backend *b, nbi_step *s, const nbi_batch *batch)
{
    const size_t half = s->head_dim / 2;
    (void)b;
    if (batch->rows > s->max_rows)
        return nbi_fail(NB_EINTERNAL, "a batch of %zu rows in a step for %zu", batch->rows, s->max_rows);
    s->batch = batch;
    for (size_t q = 0; q < batch->n_seqs; q++)
        for (uint32_t r = 0; r < batch->seqs[q].n_rows; r++) {
            float *cs = s->cos_sin + (size_t)(batch->seqs[q].row0 + r) * half * 2,
                  pos = (float)(batch->seqs[q].pos0 + r);
            for (size_t i = 0; i < half; i++) {
                float angle = pos * s->inv_freq[i];
                cs[2 * i] = cosf(angle);
                cs[2 * i + 1] = sinf(angle);
            }
        }
    return NB_OK;
}
