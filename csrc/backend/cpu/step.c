/* A batch on the CPU: nothing travels, but what all layers need of its rows is worked out once. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "base/checked.h"

/* Floats for results of chunks: as many sequences of full length, one row each, as it takes to feed every thread twice. */
static bool parts_floats(const nbi_cpu *c, const nbi_step_limits *l, size_t *out)
{
    const size_t chunks = nbi_ceil_div(l->seq_pages, NBI_ATTN_CHUNK / NBI_PAGE_TOKENS);
    size_t seqs = l->n_kv_heads ? nbi_ceil_div(2 * (size_t)c->threads, l->n_kv_heads) : 0;
    seqs = seqs < l->seqs ? seqs : l->seqs;
    return nbi_mul(chunks, nbi_cpu_attend_record(l->n_heads, l->head_dim), out) && nbi_mul(*out, seqs, out) &&
           *out <= SIZE_MAX / sizeof(float);
}

nb_status nbi_cpu_step_create(nbi_backend *b, nbi_step **out, const nbi_step_limits *limits)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    nb_status st = NB_OK;
    const size_t half = limits->head_dim / 2, rows = limits->rows;
    size_t angles, tiles, parts;
    *out = NULL;
    if (!nbi_mul(rows, limits->head_dim * sizeof(float), &angles) || !nbi_mul(rows, sizeof(nbi_cpu_tile), &tiles))
        return nbi_fail(NB_ELIMIT, "a batch of %zu rows is too large", rows);
    if (!parts_floats(c, limits, &parts))
        return nbi_fail(NB_ELIMIT, "sequences of %zu pages are too long", limits->seq_pages);
    nbi_step *s = calloc(1, sizeof *s);
    if (!s)
        return nbi_fail_nomem("a step", sizeof *s);
    s->max_rows = rows;
    s->head_dim = limits->head_dim;
    s->parts_cap = parts;
    s->inv_freq = malloc(half * sizeof(float) + 1);
    s->cos_sin = malloc(angles + 1);
    s->place = calloc(rows + 1, sizeof *s->place);
    s->plan = calloc(1, sizeof *s->plan);
    if (!s->inv_freq || !s->cos_sin || !s->place || !s->plan)
        NB_TRY(nbi_fail_nomem("a step", angles));
    s->plan->tiles = malloc(tiles + 1);
    s->plan->unsorted = malloc(tiles + 1);
    if (!s->plan->tiles || !s->plan->unsorted)
        NB_TRY(nbi_fail_nomem("a step", tiles));
    NB_TRY(nbi_cpu_alloc(b, (void **)&s->scratch,
                         (size_t)c->threads * nbi_cpu_attend_floats(limits->head_dim) * sizeof(float), "a step"));
    NB_TRY(nbi_cpu_alloc(b, (void **)&s->parts, parts * sizeof(float), "a step"));
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
    if (!s)
        return;
    free(s->inv_freq);
    free(s->cos_sin);
    free(s->place);
    if (s->plan) {
        free(s->plan->tiles);
        free(s->plan->unsorted);
    }
    free(s->plan);
    nbi_cpu_release(b, s->scratch);
    nbi_cpu_release(b, s->parts);
    nbi_cpu_rotation_free(&s->rotation);
    free(s);
}

/* Angles in fp32, as Transformers computes them: position times inverse frequency, then cos and sin. */
static void angles_of(const nbi_step *s, uint32_t pos, float *cos_sin)
{
    const size_t half = s->head_dim / 2;
    for (size_t i = 0; i < half; i++) {
        const float angle = (float)pos * s->inv_freq[i];
        cos_sin[i] = cosf(angle);
        cos_sin[half + i] = sinf(angle);
    }
}

nb_status nbi_cpu_step_begin(nbi_backend *b, nbi_step *s, const nbi_batch *batch)
{
    if (batch->rows > s->max_rows)
        return nbi_fail(NB_EINTERNAL, "a batch of %zu rows in a step for %zu", batch->rows, s->max_rows);
    nbi_cpu_pin(nbi_cpu_of(b));
    s->batch = batch;
    s->plan->n_heads = s->plan->n_kv_heads = 0;
    for (size_t q = 0; q < batch->n_seqs; q++) {
        const nbi_seq *seq = &batch->seqs[q];
        for (uint32_t r = 0; r < seq->n_rows; r++) {
            const uint32_t pos = seq->pos0 + r;
            s->place[seq->row0 + r] = (nbi_cpu_place){seq->pages[pos / NBI_PAGE_TOKENS], pos};
        }
    }
#pragma omp parallel for schedule(static) num_threads(nbi_cpu_threads(nbi_cpu_of(b), batch->rows * s->head_dim * 32))
    for (size_t r = 0; r < batch->rows; r++)
        angles_of(s, s->place[r].pos, s->cos_sin + r * s->head_dim);
    return NB_OK;
}
