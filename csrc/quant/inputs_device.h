/* Statistics of a linear layer's inputs where the activations are: by the device's kernels, with the bits of quant/inputs.h. */
#ifndef NB_QUANT_INPUTS_DEVICE_H
#define NB_QUANT_INPUTS_DEVICE_H

#include "backend/backend.h"
#include "quant/inputs.h"

typedef struct nbi_inputs_device nbi_inputs_device;

/* For inputs of `in`, which must outlive it, in batches of up to `rows` rows.  be->quant is there. */
nb_status nbi_inputs_device_create(nbi_inputs_device **out, nbi_backend *be, nbi_inputs *in, size_t rows);
void nbi_inputs_device_free(nbi_inputs_device *d);
/* x: activations of the device, [rows][k].  Between lock() and unlock(). */
nb_status nbi_inputs_device_add(nbi_inputs_device *d, const void *x, size_t rows);
/* What the device still holds goes into `in`.  Once, at the end. */
nb_status nbi_inputs_device_finish(nbi_inputs_device *d);

#endif
