/* All kernels of one instruction set, and their table.  Included once by each cpu_*.c, which has included its v16_*.h and names
 * the table NBI_CPU_TABLE, NBI_CPU_NAME for people and NBI_CPU_ISA as the environment variable says it: a kernel is one
 * line here, for all of them. */
#include "backend/cpu/linear_body.h"
#include "backend/cpu/roof_body.h"
#include "backend/cpu/rows_body.h"
#include "backend/cpu/sparse_body.h"
#include "backend/cpu/xnor_body.h"

#include "backend/cpu/append_body.h" /* these two stand on rows_body.h */
#include "backend/cpu/attention_body.h"

const nbi_cpu_kernels NBI_CPU_TABLE = {
    .name = NBI_CPU_NAME,
    .isa = NBI_CPU_ISA,
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
    .append_rows = append_rows,
    .attend = attend,
    .attend_join = attend_join,
    .rotate_row = rotate_row,
    .roof_read = roof_read,
    .roof_int8 = roof_int8,
};
