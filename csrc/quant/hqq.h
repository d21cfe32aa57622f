/* HQQ: Badri, Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023).  Data free.
 *
 * Scales stay those of the full range (with 0 in it); zero points are moved so that a norm of the error that forgives outliers
 * (|e|^0.7) gets small.  Half-quadratic splitting, up to 20 steps for each group, in double:
 *     W_r = (q - z) s,  E = shrink(W - W_r),  z = mean of (q - (W - E)/s),  q = clamp(rne(W/s + z))
 *     shrink(x) = sign(x) max(0, |x| - |x|^(p-1)/beta), p = 0.7, beta = 10, 1.01 times larger each step
 * from z = qmin - min/s until the mean |W - W_r| of the group does not fall; the best z stays.  It is stored in sixteenths
 * (nbi_scheme.zero_frac), and codes are made for what is stored.  In whole numbers nothing would be left of it. */
#ifndef NB_QUANT_HQQ_H
#define NB_QUANT_HQQ_H

#include "base/weight.h"

/* The scheme is as nbi_hqq_scheme() leaves it, with zero_frac.  The result does not depend on threads. */
nb_status nbi_hqq(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, nbi_dtype scale_dtype, int threads);

/* What a recipe's scheme becomes: 2, 3 and 4 bits get zero points in sixteenths, 8 bits stay as they are.  nbi_method.scheme. */
nb_status nbi_hqq_scheme(nbi_scheme *s, const char *where);

#endif
