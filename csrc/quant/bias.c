#include "quant/bias.h"

#include <stdlib.h>
#include <string.h>

nb_status nbi_copy_bias(nbi_weight *w, const nbi_weight *src)
{
    w->bias = NULL;
    if (!src->bias)
        return NB_OK;
    if (!(w->bias = malloc(src->n * sizeof *w->bias)))
        return nbi_fail_nomem("a bias", src->n * sizeof *w->bias);
    memcpy(w->bias, src->bias, src->n * sizeof *w->bias);
    return NB_OK;
}
