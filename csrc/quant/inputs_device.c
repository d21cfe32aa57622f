#include "quant/inputs_device.h"

#include <math.h>
#include <stdlib.h>

#include "backend/quant_ops.h"
#include "base/checked.h"
#include "quant/observer.h"
#include "quant/range.h"

struct nbi_inputs_device {
    nbi_backend *be;
    nbi_inputs *in;
    float *lo, *hi, *most; /* host [k], [k], [rows] */
    float *gram;           /* device [k][k] or NULL */
    double *abs_sum;       /* device [k] */
    void *all;             /* device, an observer or NULL */
};

nb_status nbi_inputs_device_create(nbi_inputs_device **out, nbi_backend *be, nbi_inputs *in, size_t rows)
{
    nb_status st = NB_OK;
    const size_t k = in->k;
    size_t square = 0;
    nbi_inputs_device *d = calloc(1, sizeof *d);
    if (!d)
        return nbi_fail_nomem("statistics", sizeof *d);
    d->be = be;
    d->in = in;
    d->lo = malloc(k * sizeof *d->lo);
    d->hi = malloc(k * sizeof *d->hi);
    d->most = malloc(rows * sizeof *d->most);
    if (!d->lo || !d->hi || !d->most)
        NB_TRY(nbi_fail_nomem("statistics of a layer's inputs", (2 * k + rows) * sizeof(float)));
    NB_TRY(be->ops->alloc(be, (void **)&d->abs_sum, k * sizeof *d->abs_sum, "statistics"));
    if (in->gram && (!nbi_mul(k, k, &square) || !nbi_mul(square, sizeof(float), &square)))
        NB_TRY(nbi_fail_nomem("a Gram matrix", SIZE_MAX));
    if (in->gram)
        NB_TRY(be->ops->alloc(be, (void **)&d->gram, square, "a Gram matrix"));
    if (in->all)
        NB_TRY(be->ops->alloc(be, &d->all, be->quant->observer_bytes(), "an observer"));
    *out = d;
    d = NULL;
done:
    nbi_inputs_device_free(d);
    return st;
}

void nbi_inputs_device_free(nbi_inputs_device *d)
{
    if (!d)
        return;
    d->be->ops->release(d->be, d->gram);
    d->be->ops->release(d->be, d->abs_sum);
    d->be->ops->release(d->be, d->all);
    free(d->lo);
    free(d->hi);
    free(d->most);
    free(d);
}

static nb_status merge_channels(nbi_inputs_device *d, bool first)
{
    nbi_inputs *in = d->in;
    for (size_t j = 0; j < in->k; j++) {
        const float lo = d->lo[j], hi = d->hi[j], most = fmaxf(fabsf(lo), fabsf(hi));
        if (!isfinite(lo) || !isfinite(hi))
            return nbi_fail(NB_EFORMAT, "input channel %zu is NaN or infinite on the calibration text", j);
        in->lo[j] = first ? lo : nbi_lower(in->lo[j], lo);
        in->hi[j] = first ? hi : -nbi_lower(-in->hi[j], -hi);
        in->abs_max[j] = fmaxf(in->abs_max[j], most);
    }
    return NB_OK;
}

nb_status nbi_inputs_device_add(nbi_inputs_device *d, const void *x, size_t rows)
{
    const nbi_quant_ops *q = d->be->quant;
    nbi_inputs *in = d->in;
    const nbi_matrix m = {x, q->act_dtype(d->be), rows, in->k};
    nb_status st;
    if (!rows)
        return NB_OK;
    NB_TRY(q->range(d->be, &m, NBI_RANGE_COLUMN, 0, d->lo, d->hi, NULL));
    NB_TRY(merge_channels(d, in->rows == 0));
    in->rows += rows;
    NB_TRY(q->abs_sum_add(d->be, &m, d->abs_sum));
    if (d->gram)
        NB_TRY(q->gram_add(d->be, &m, d->gram));
    if (d->all) {
        NB_TRY(q->observe(d->be, d->all, &m));
        NB_TRY(q->range(d->be, &m, NBI_RANGE_GROUP, in->k, NULL, d->most, NULL));
        for (size_t r = 0; r < rows; r++)
            nbi_observer_add(in->tokens, d->most + r, 1);
    }
done:
    return st;
}

nb_status nbi_inputs_device_finish(nbi_inputs_device *d)
{
    const nbi_backend_ops *ops = d->be->ops;
    nbi_inputs *in = d->in;
    nb_status st;
    if (ops->lock)
        ops->lock(d->be);
    NB_TRY(ops->download(d->be, in->abs_sum, d->abs_sum, in->k * sizeof *d->abs_sum));
    if (d->gram)
        NB_TRY(ops->download(d->be, in->gram, d->gram, in->k * in->k * sizeof *d->gram));
    if (d->all)
        NB_TRY(d->be->quant->observer_read(d->be, d->all, in->all));
done:
    if (ops->unlock)
        ops->unlock(d->be);
    return st;
}
