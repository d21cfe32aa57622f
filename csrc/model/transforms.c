#include "model/transforms.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

void nbi_port_input_free(nbi_port_input *in)
{
    free(in->signs);
    free(in->outlier);
    *in = (nbi_port_input){0};
}

/* A weight whose inputs are floats does not care which of them the codes of another leave out. */
static bool wants_floats(const nbi_weight *w)
{
    return !w->in_signs && !w->n_outliers && (!w->scheme.bits || w->scheme.act == NBI_ACT_NONE);
}

static bool agrees(const nbi_port_input *in, const nbi_weight *w)
{
    const nbi_transform_spec *s = &in->spec;
    return s->k == w->k && (s->signs != NULL) == (w->in_signs != NULL) && s->n_outliers == w->n_outliers &&
           (!s->signs || memcmp(s->signs, w->in_signs, w->k) == 0) &&
           (!s->n_outliers || memcmp(s->outlier, w->outlier, w->n_outliers * sizeof *w->outlier) == 0);
}

static nb_status refuse(const char *module, const char *other, bool rotation)
{
    return nbi_fail(NB_EFORMAT, "%s and %s read the same input, but ask for different %s of it", module, other,
                    rotation ? "rotations" : "outliers");
}

nb_status nbi_port_input_add(nbi_port_input *in, const nbi_weight *w, const char *module)
{
    if (wants_floats(w)) {
        if (in->spec.signs)
            return refuse(module, in->decided, true);
        snprintf(in->floats, sizeof in->floats, "%s", module);
        return NB_OK;
    }
    if (w->in_signs && in->floats[0])
        return refuse(module, in->floats, true);
    if (in->decided[0])
        return agrees(in, w) ? NB_OK : refuse(module, in->decided, w->in_signs || in->spec.signs);
    snprintf(in->decided, sizeof in->decided, "%s", module);
    in->spec = (nbi_transform_spec){.k = w->k, .n_outliers = w->n_outliers};
    if (w->in_signs) {
        if (!(in->signs = malloc(w->k)))
            return nbi_fail_nomem("the signs of a rotation", w->k);
        in->spec.signs = memcpy(in->signs, w->in_signs, w->k);
    }
    if (w->n_outliers) {
        if (!(in->outlier = malloc(w->n_outliers * sizeof *in->outlier)))
            return nbi_fail_nomem("a list of outliers", w->n_outliers * sizeof *in->outlier);
        in->spec.outlier = memcpy(in->outlier, w->outlier, w->n_outliers * sizeof *in->outlier);
    }
    return NB_OK;
}

static nb_status create(nb_model *m, nbi_transform **out, const nbi_transform_spec *spec)
{
    const nbi_backend_ops *ops = m->be->ops;
    if (!ops->transform_create)
        return nbi_fail(NB_EUNSUPPORTED, "%s has no rotations and outliers of activations", m->be->name);
    nb_status st = ops->transform_create(m->be, out, spec);
    if (st == NB_OK)
        m->weight_bytes += ops->transform_bytes(m->be, spec);
    return st;
}

nb_status nbi_port_input_create(nb_model *m, const nbi_port_input *in, nbi_transform **out)
{
    *out = NULL;
    if (!in->spec.signs && !in->spec.n_outliers)
        return NB_OK;
    nb_status st = create(m, out, &in->spec);
    return st == NB_OK ? st : nbi_fail_in(st, "%s: ", in->decided);
}

nb_status nbi_output_create(nb_model *m, size_t n, const int8_t *signs, const float *bias, nbi_transform **out,
                            float **out_bias)
{
    nb_status st;
    NB_TRY(create(m, out, &(nbi_transform_spec){.k = n, .signs = signs}));
    if (bias) {
        NB_TRY(m->be->ops->alloc(m->be, (void **)out_bias, n * sizeof *bias, "a bias"));
        NB_TRY(m->be->ops->upload(m->be, *out_bias, bias, n * sizeof *bias));
        m->weight_bytes += n * sizeof *bias;
    }
    if (n > m->out_width)
        m->out_width = n;
done:
    return st;
}

/* Which signs and how many outliers is known when weights are read: all inputs may be outliers. */
size_t nbi_transforms_plan(const nb_model *m, size_t n, size_t k, const nbi_scheme *s, bool bias)
{
    static const int8_t some = 1;
    const nbi_backend_ops *ops = m->be->ops;
    size_t bytes = 0;
    if (!ops->transform_bytes)
        return 0;
    if (s->rotate_in)
        bytes = ops->transform_bytes(m->be, &(nbi_transform_spec){.k = k, .signs = &some});
    else if (s->outliers)
        bytes = ops->transform_bytes(m->be, &(nbi_transform_spec){.k = k, .n_outliers = k});
    if (s->rotate_out)
        bytes += ops->transform_bytes(m->be, &(nbi_transform_spec){.k = n, .signs = &some}) + (bias ? n * 4 : 0);
    return bytes;
}
