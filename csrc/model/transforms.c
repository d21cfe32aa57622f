#include "model/transforms.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

void nbi_port_input_free(nbi_port_input *in)
{
    free(in->signs);
    *in = (nbi_port_input){0};
}

nb_status nbi_port_input_add(nbi_port_input *in, const nbi_weight *w, const char *module)
{
    if (in->module[0]) {
        if (in->k == w->k && !in->signs == !w->in_signs && (!in->signs || memcmp(in->signs, w->in_signs, w->k) == 0))
            return NB_OK;
        return nbi_fail(NB_EFORMAT, "%s and %s read the same input, but do not ask for the same rotation of it", module,
                        in->module);
    }
    snprintf(in->module, sizeof in->module, "%s", module);
    in->k = w->k;
    if (!w->in_signs)
        return NB_OK;
    if (!(in->signs = malloc(w->k)))
        return nbi_fail_nomem("the signs of a rotation", w->k);
    memcpy(in->signs, w->in_signs, w->k);
    return NB_OK;
}

static nb_status create(nb_model *m, nbi_transform **out, const nbi_transform_spec *spec)
{
    const nbi_backend_ops *ops = m->be->ops;
    if (!ops->transform_create)
        return nbi_fail(NB_EUNSUPPORTED, "%s has no rotations of activations", m->be->name);
    nb_status st = ops->transform_create(m->be, out, spec);
    if (st == NB_OK)
        m->weight_bytes += ops->transform_bytes(m->be, spec);
    return st;
}

nb_status nbi_port_input_create(nb_model *m, const nbi_port_input *in, nbi_transform **out)
{
    *out = NULL;
    if (!in->signs)
        return NB_OK;
    nb_status st = create(m, out, &(nbi_transform_spec){in->k, in->signs});
    return st == NB_OK ? st : nbi_fail_in(st, "%s: ", in->module);
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

size_t nbi_transforms_plan(const nb_model *m, size_t n, size_t k, const nbi_scheme *s, bool bias)
{
    static const int8_t some = 1; /* which is known when weights are read */
    const nbi_backend_ops *ops = m->be->ops;
    size_t bytes = 0;
    if (!ops->transform_bytes)
        return 0;
    if (s->rotate_in)
        bytes = ops->transform_bytes(m->be, &(nbi_transform_spec){k, &some});
    if (s->rotate_out)
        bytes += ops->transform_bytes(m->be, &(nbi_transform_spec){n, &some}) + (bias ? n * sizeof(float) : 0);
    return bytes;
}
