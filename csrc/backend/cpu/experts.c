/* experts(): which experts each row goes to, and these experts one after another, each with all of its rows at once, so that its
 * weights are read once.
 *
 * Experts come in ascending order and add to y themselves: that is the order of a row's sum, whoever else goes where.  All
 * threads work on one expert (linear() cuts its outputs), so that unequal loads cost nothing. */
#include <math.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "base/checked.h"

/* An assignment: by rows, who holds the expert; by experts, the row. */
typedef struct pick {
    uint32_t index;
    float weight;
} pick;

typedef struct buffers {
    pick *by_row;    /* [rows][top_k], the best first */
    pick *by_expert; /* [rows * top_k], rows ascending in each */
    float *x;        /* [rows][hidden] the rows of an expert, as all that follow */
    float *gate_up;  /* [rows][2 ffn] */
    float *act;      /* [rows][ffn] */
    float *out;      /* [rows][hidden] */
} buffers;

/* Room for count * each elements of `size` bytes at the end. */
static bool reserve(size_t *total, size_t count, size_t each, size_t size, size_t *at)
{
    size_t n;
    return nbi_mul(count, each, &n) && nbi_mul(n, size, &n) && nbi_round_up(*total, 64, at) && nbi_add(*at, n, total);
}

/* Where the parts lie behind `base`; the size of all, or SIZE_MAX. */
static size_t lay_out(buffers *t, char *base, const nbi_experts *e, size_t rows)
{
    size_t total = 0, at[6];
    if (!reserve(&total, rows, e->top_k, sizeof(pick), &at[0]) ||
        !reserve(&total, rows, e->top_k, sizeof(pick), &at[1]) ||
        !reserve(&total, rows, e->hidden, sizeof(float), &at[2]) ||
        !reserve(&total, rows, 2 * e->ffn, sizeof(float), &at[3]) ||
        !reserve(&total, rows, e->ffn, sizeof(float), &at[4]) ||
        !reserve(&total, rows, e->hidden, sizeof(float), &at[5]))
        return SIZE_MAX; /* no allocation will give this */
    if (base)
        *t = (buffers){(pick *)(base + at[0]),  (pick *)(base + at[1]),  (float *)(base + at[2]),
                       (float *)(base + at[3]), (float *)(base + at[4]), (float *)(base + at[5])};
    return total;
}

size_t nbi_cpu_experts_bytes(nbi_backend *b, const nbi_experts *e, size_t rows)
{
    (void)b;
    return lay_out(NULL, NULL, e, rows);
}

/* The next expert behind `last` in the ranking by (logit descending, index ascending). */
static size_t next_best(const float *logit, size_t n, size_t last)
{
    size_t best = n;
    for (size_t i = 0; i < n; i++) {
        const bool behind = last == n || logit[i] < logit[last] || (logit[i] == logit[last] && i > last);
        if (behind && (best == n || logit[i] > logit[best]))
            best = i;
    }
    return best;
}

/* Sixteen lanes and a tree, as all sums over a row. */
static float lanes_sum(const float *x, size_t n)
{
    float lane[16] = {0};
    for (size_t i = 0; i < n; i++)
        lane[i % 16] += x[i];
    for (size_t half = 8; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            lane[i] += lane[i + half];
    return lane[0];
}

/* A row that holds a NaN chooses as if that were -infinity, and gets weights of NaN. */
static void route(const nbi_cpu *c, const nbi_experts *e, const float *given, pick *out)
{
    float logit[NBI_MAX_EXPERTS], p[NBI_MAX_EXPERTS];
    for (size_t i = 0; i < e->n; i++)
        logit[i] = isnan(given[i]) ? -INFINITY : given[i];
    for (size_t k = 0, last = e->n; k < e->top_k; k++)
        out[k].index = (uint32_t)(last = next_best(logit, e->n, last));
    for (size_t i = 0; i < e->n; i++)
        p[i] = given[i] - logit[out[0].index];
    c->kern->exp(p, e->n, p);
    const float all = lanes_sum(p, e->n);
    float chosen = all - all; /* 0, or NaN where the row holds one */
    for (size_t k = 0; k < e->top_k; k++)
        chosen += p[out[k].index];
    for (size_t k = 0; k < e->top_k; k++)
        out[k].weight = p[out[k].index] / (e->normalize ? chosen : all);
}

/* The same assignments by expert: those of expert i are begin[i] .. begin[i+1]-1. */
static void sort_by_expert(const nbi_experts *e, const buffers *t, size_t rows, size_t begin[NBI_MAX_EXPERTS + 1])
{
    const size_t n = rows * e->top_k;
    size_t at[NBI_MAX_EXPERTS];
    memset(begin, 0, (e->n + 1) * sizeof *begin);
    for (size_t i = 0; i < n; i++)
        begin[t->by_row[i].index + 1]++;
    for (size_t i = 0; i < e->n; i++)
        at[i] = begin[i + 1] += begin[i];
    for (size_t i = n; i-- > 0;) {
        const pick *p = &t->by_row[i];
        t->by_expert[--at[p->index]] = (pick){(uint32_t)(i / e->top_k), p->weight};
    }
}

/* One expert's rows: gathered, through its three layers, and added where they came from. */
static nb_status run_expert(nbi_backend *b, const nbi_experts *e, nbi_linear *const *l, const pick *row, size_t n,
                            const float *x, size_t rows, const buffers *t, float *y, void *scratch)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    const size_t hidden = e->hidden;
    const nbi_linear *gate_up[] = {l[0], l[1]}, *down[] = {l[2]};
    nb_status st;
    if (n < rows) {
#pragma omp parallel for schedule(static) num_threads(nbi_cpu_threads(c, n > 1 ? n * hidden : 0))
        for (size_t i = 0; i < n; i++)
            memcpy(t->x + i * hidden, x + row[i].index * hidden, hidden * sizeof *x);
        x = t->x;
    }
    NB_TRY(b->ops->linear(b, gate_up, 2, x, NBI_FORM_FLOAT, n, t->gate_up, 2 * e->ffn, NBI_DST_ACT, scratch));
    NB_TRY(b->ops->swiglu(b, t->gate_up, n, e->ffn, t->act, NBI_FORM_FLOAT));
    NB_TRY(b->ops->linear(b, down, 1, t->act, NBI_FORM_FLOAT, n, t->out, hidden, NBI_DST_ACT, scratch));
#pragma omp parallel for schedule(static) num_threads(nbi_cpu_threads(c, n > 1 ? n * hidden : 0))
    for (size_t i = 0; i < n; i++) {
        float *to = y + row[i].index * hidden;
        for (size_t k = 0; k < hidden; k++)
            to[k] = to[k] + row[i].weight * t->out[i * hidden + k];
    }
done:
    return st;
}

nb_status nbi_cpu_experts(nbi_backend *b, const nbi_experts *e, const void *x, const float *logits, size_t rows,
                          float *y, void *buffer, void *scratch)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    size_t begin[NBI_MAX_EXPERTS + 1];
    buffers t;
    nb_status st = NB_OK;
    lay_out(&t, buffer, e, rows);
#pragma omp parallel for schedule(static) num_threads(nbi_cpu_threads(c, rows > 1 ? rows * e->n * e->top_k : 0))
    for (size_t r = 0; r < rows; r++)
        route(c, e, logits + r * e->n, t.by_row + r * e->top_k);
    sort_by_expert(e, &t, rows, begin);
    for (size_t i = 0; i < e->n && st == NB_OK; i++)
        if (begin[i + 1] > begin[i])
            st = run_expert(b, e, e->linear + 3 * i, t.by_expert + begin[i], begin[i + 1] - begin[i], x, rows, &t, y,
                            scratch);
    return st;
}
