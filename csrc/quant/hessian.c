#include "quant/hessian.h"

#include <math.h>
#include <stdlib.h>

#include "base/checked.h"
#include "quant/linalg.h"

#define DAMP_STEP 0.01f
#define DAMP_MOST 1.02f

typedef struct ranked {
    float value;
    uint32_t index;
} ranked;

static int descending(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->value != y->value)
        return x->value < y->value ? 1 : -1;
    return x->index < y->index ? -1 : 1; /* qsort is not stable */
}

/* Columns of a group in descending order, and groups in that of their sums. */
static nb_status set_order(nbi_hessian *q, const float *h, size_t group)
{
    const size_t n = q->k / group;
    ranked *columns = malloc(q->k * sizeof *columns), *groups = malloc(n * sizeof *groups);
    nb_status st = NB_OK;
    if (!columns || !groups)
        NB_TRY(nbi_fail_nomem("the order of columns", q->k * sizeof *columns));
    for (size_t g = 0; g < n; g++) {
        groups[g] = (ranked){0, (uint32_t)g};
        for (size_t i = g * group; i < (g + 1) * group; i++) {
            columns[i] = (ranked){h[i * q->k + i], (uint32_t)i};
            groups[g].value += columns[i].value;
        }
        qsort(columns + g * group, group, sizeof *columns, descending);
    }
    qsort(groups, n, sizeof *groups, descending);
    for (size_t i = 0; i < q->k; i++)
        q->order[i] = columns[groups[i / group].index * group + i % group].index;
done:
    free(columns);
    free(groups);
    return st;
}

static void set_damped(nbi_hessian *q, const float *h, float lambda)
{
    for (size_t i = 0; i < q->k; i++) {
        const float *row = h + (size_t)q->order[i] * q->k;
        for (size_t j = 0; j < q->k; j++)
            q->u[i * q->k + j] = row[q->order[j]];
        q->u[i * q->k + i] = (q->dead[q->order[i]] ? 1.0f : q->u[i * q->k + i]) + lambda;
    }
}

static nb_status factor(nbi_hessian *q, const float *h)
{
    double trace = 0;
    for (size_t i = 0; i < q->k; i++)
        trace += q->dead[i] ? 1.0 : (double)h[i * q->k + i];
    if (!isfinite(trace))
        return nbi_fail(NB_EFORMAT, "the second moments of its inputs are not finite");
    for (;; q->damp += DAMP_STEP) {
        q->lambda = (float)((double)q->damp * trace / (double)q->k);
        set_damped(q, h, q->lambda);
        nb_status st = nbi_inverse_cholesky(q->u, q->k);
        if (st != NB_EFORMAT || q->damp + DAMP_STEP > DAMP_MOST)
            return st;
    }
}

nb_status nbi_hessian_create(nbi_hessian *out, const float *h, size_t k, size_t group, float damp)
{
    nbi_hessian q = {.k = k, .damp = damp};
    nb_status st = NB_OK;
    size_t bytes = 0;
    q.order = malloc(k * sizeof *q.order);
    q.dead = malloc(k * sizeof *q.dead);
    if (!nbi_mul(k, k, &bytes) || !nbi_mul(bytes, sizeof *q.u, &bytes) || !(q.u = malloc(bytes)) || !q.order || !q.dead)
        NB_TRY(nbi_fail_nomem("the Hessian of a layer", bytes));
    for (size_t i = 0; i < k; i++) {
        q.order[i] = (uint32_t)i;
        q.dead[i] = h[i * k + i] == 0;
    }
    if (group)
        NB_TRY(set_order(&q, h, group));
    NB_TRY(factor(&q, h));
    *out = q;
    q = (nbi_hessian){0};
done:
    nbi_hessian_free(&q);
    return st;
}

void nbi_hessian_free(nbi_hessian *h)
{
    free(h->order);
    free(h->dead);
    free(h->u);
    *h = (nbi_hessian){0};
}
