/* What weights ask of the activations around them (rotations: base/weight.h): collected while the layers of a port are loaded,
 * then made. */
#ifndef NB_MODEL_TRANSFORMS_H
#define NB_MODEL_TRANSFORMS_H

#include "model/model.h"

/* What the weights of a port, which read the same input, ask of it. */
typedef struct nbi_port_input {
    char module[96]; /* the one that decided; "": none yet */
    size_t k;
    int8_t *signs; /* [k]; NULL: no rotation */
} nbi_port_input;

/* `module` names w.  NB_EFORMAT with both names where two weights ask for different things. */
nb_status nbi_port_input_add(nbi_port_input *in, const nbi_weight *w, const char *module);
/* *out NULL: nothing is asked. */
nb_status nbi_port_input_create(nb_model *m, const nbi_port_input *in, nbi_transform **out);
void nbi_port_input_free(nbi_port_input *in); /* the members */

/* The transform behind a layer of n outputs, and its bias on the device.  signs NULL: none but the placing that siblings need. */
nb_status nbi_output_create(nb_model *m, size_t n, const int8_t *signs, const float *bias, nbi_transform **out,
                            float **out_bias);

/* What both of a layer with this scheme take on the device, for the plan. */
size_t nbi_transforms_plan(const nb_model *m, size_t n, size_t k, const nbi_scheme *s, bool bias);

#endif
