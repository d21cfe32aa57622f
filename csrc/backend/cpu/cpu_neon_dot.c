/* The kernels for NEON with dotprod (SDOT): see cpu.h. */
#if defined(__aarch64__)
#include "backend/cpu/v16_neon.h"

#include "backend/cpu/linear_body.h"
#include "backend/cpu/roof_body.h"
#include "backend/cpu/rows_body.h"
#include "backend/cpu/sparse_body.h"
#include "backend/cpu/xnor_body.h"

#include "backend/cpu/attention_body.h" /* stands on rows_body.h */

const nbi_cpu_kernels nbi_cpu_neon_dot = {
    .name = "neon-dot",
    .isa = "neon-dot",
    .q_bytes = sizeof(nbi_qx),
    .linear = LINEAR_KERNELS,
    .sparse = sparse_rows,
    .outliers = outlier_columns,
    .quantize_row = quantize_row,
    .sum_row = sum_row,
    .sign_row = sign_row,
    .rmsnorm_row = rmsnorm_row,
    .swiglu = swiglu,
    .exp = exp_n,
    .attend = attend,
    .attend_join = attend_join,
    .rotate_row = rotate_row,
    .roof_read = roof_read,
    .roof_int8 = roof_int8,
};
#else
typedef int nbi_cpu_neon_dot_is_for_aarch64; /* a translation unit is never empty */
#endif
