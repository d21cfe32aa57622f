/* What block LDLQ asks of BLAS and LAPACK.  Matrices are row-major fp32; one thread. */
#ifndef NB_QUANT_BLOCK_LDL_H
#define NB_QUANT_BLOCK_LDL_H

#include <stddef.h>

#include "base/status.h"

/* h [k][k], symmetric and positive definite (its upper triangle is not read), becomes L of the block LDL^T decomposition with
 * blocks of b, a divisor of k: h = L D L^T, L lower triangular with identities for diagonal blocks and zeros above, D block
 * diagonal.  NB_EFORMAT: h is not positive definite (h is destroyed). */
nb_status nbi_block_ldl(float *h, size_t k, size_t b);

/* h [k][k], symmetric and positive definite, becomes its inverse.  NB_EFORMAT as above.  For small k. */
nb_status nbi_small_inverse(float *h, size_t k);

#endif
