#include "quant/bad_row.h"

#include <math.h>

nb_status nbi_bad_row(const float *x, size_t k, size_t row, nbi_dtype scale_dtype)
{
    float top = 0;
    for (size_t i = 0; i < k; i++) {
        if (!isfinite(x[i]))
            return nbi_fail(NB_EFORMAT, "weight at row %zu, column %zu is %s, expected a finite number", row, i,
                            isnan(x[i]) ? "NaN" : "infinite");
        top = fmaxf(top, fabsf(x[i]));
    }
    return nbi_fail(NB_EFORMAT, "weights of row %zu go up to %g, which needs a scale beyond what %s holds", row,
                    (double)top, nbi_dtype_name(scale_dtype));
}
