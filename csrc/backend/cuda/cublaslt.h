/* --gemm cublaslt: dense layers and INT8 x INT8 layers by NVIDIA's library instead of our kernels.  Its order of sums is its
 * own and may change with the number of rows, so the same-bytes promise is off for floats; INT8 sums are exact, and what
 * follows them (finish_sums.cu) is the arithmetic of our own kernels, so W8A8 keeps its bits.
 *
 * A layer that it takes is not packed as layout.h draws it but stays row-major (NB_W_PLAIN, NB_W_PLAIN8), so that no weight
 * is held twice.  Other layers use our kernels. */
#ifndef NB_BACKEND_CUDA_CUBLASLT_H
#define NB_BACKEND_CUDA_CUBLASLT_H

#include "backend/cuda/cuda.h"

/* Loads NB_CUBLASLT, or libcublasLt.so.13 or .12, for this device.  Later linear_create() calls ask nbi_cublaslt_takes(). */
nb_status nbi_cublaslt_open(nbi_cuda *c);
void nbi_cublaslt_close(nbi_cuda *c); /* nothing if it is not open */

bool nbi_cublaslt_takes(const nbi_cuda *c, size_t n, size_t k, const nbi_scheme *s);

/* linear_create() and linear_plan() of a layer that it takes. */
nb_status nbi_cublaslt_pack(nbi_cuda *c, nbi_linear *l, const nbi_weight *w);
size_t nbi_cublaslt_plan(const nbi_cuda *c, size_t n, size_t k, const nbi_scheme *s, bool bias);

/* Scratch of nbi_cublaslt_part() for up to `rows` rows of up to k inputs; 0 if it is not open. */
size_t nbi_cublaslt_scratch(const nbi_cuda *c, size_t rows, size_t k);

/* y[rows][ldy] of one layer.  x: the activations (dense), or their codes and scales; x_sums [rows]: the sums of the codes, for
 * weights with zero points.  scratch: 256-byte aligned. */
nb_status nbi_cublaslt_part(nbi_cuda *c, const nbi_linear *l, const nb_act_out *x, const int32_t *x_sums, size_t rows,
                            void *y, size_t ldy, nbi_dst dst, void *scratch);

#endif
