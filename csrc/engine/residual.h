/* The residual stream of all tokens of a calibration text between two layers: in memory, or in a file without a name. */
#ifndef NB_ENGINE_RESIDUAL_H
#define NB_ENGINE_RESIDUAL_H

#include <stddef.h>

#include "base/status.h"

typedef struct nbi_residual nbi_residual;

/* `folder`, or where temporary files go. */
const char *nbi_residual_folder(const char *folder);
/* rows x width floats.  folder NULL: in memory; else in a file there, which has no name and goes with the process. */
nb_status nbi_residual_create(nbi_residual **out, size_t rows, size_t width, const char *folder);
void nbi_residual_free(nbi_residual *s);
nb_status nbi_residual_read(nbi_residual *s, size_t row, size_t n, float *x); /* rows [row, row + n) */
nb_status nbi_residual_write(nbi_residual *s, size_t row, size_t n, const float *x);

#endif
