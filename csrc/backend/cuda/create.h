/* All that the rest of the program knows of the CUDA backend. */
#ifndef NB_BACKEND_CUDA_CREATE_H
#define NB_BACKEND_CUDA_CREATE_H

#include "backend/backend.h"

/* Opens device `index`; act, the type of activations, is NBI_F16 or NBI_BF16.  NB_ENODEVICE: there is no driver, no such device,
 * or it is too old. */
nb_status nbi_cuda_create(nbi_backend **out, int index, nbi_dtype act);

/* --gemm cublaslt, before the first linear_create().  note: a line for the log. */
nb_status nbi_cublaslt_use(nbi_backend *b, char note[200]);

#endif
