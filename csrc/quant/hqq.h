/* HQQ: Badri, Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023).  Data free.
 *
 * Scales stay those of the full range; zero points are moved so that a norm of the error that forgives outliers (|e|^0.7) gets
 * small.  Half-quadratic splitting, 20 steps for each group:
 *     W_r = (q - z) s,  E = shrink(W - W_r),  z = mean of (q - (W - E)/s),  q = clamp(rne(W/s + z))
 *     shrink(x) = sign(x) max(0, |x| - |x|^(p-1)/beta), p = 0.7, beta = 10, 1.01 times larger each step
 * until the mean |W - W_r| grows.  Zero points are integers in the end (round_zero of the reference implementation). */
#ifndef NB_QUANT_HQQ_H
#define NB_QUANT_HQQ_H

#include "base/weight.h"

/* NB_EUNSUPPORTED: the scheme is symmetric, or per tensor. */
nb_status nbi_hqq(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype, int threads);

#endif
