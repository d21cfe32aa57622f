/* Which registers hold a value that is still wanted, and where.
 *
 * nvcc gives every value a register of its own; a kernel has thousands.  Registers that are never wanted at the same time share a
 * row, so that the rows of a warp stay in the host's cache. */
#ifndef PTXEMU_ISA_LIVENESS_H
#define PTXEMU_ISA_LIVENESS_H

#include <cstdint>
#include <vector>

#include "ptx/ast.h"

namespace ptxemu
{

struct RegisterUse { /* of an instruction: indices in ptx::Function::regs */
    std::vector<uint32_t> reads, writes;
};

struct
    Interval { /* of instructions, both inclusive, in which a register may be wanted or is written; begin > end: nowhere */
    uint32_t begin = UINT32_MAX, end = 0;
    void include(uint32_t at)
    {
        begin = at < begin ? at : begin;
        end = at > end ? at : end;
    }
};

struct Liveness {
    std::vector<Interval> intervals; /* by register */
    uint32_t most_units = 0;         /* 32-bit units that are wanted at one place, predicates not counted */
};

/* `uses` has an entry for every instruction of f.body. */
Liveness find_liveness(const ptx::Function &f, const std::vector<RegisterUse> &uses);

/* Rows for the registers, `*n_rows` in all.  Only registers of one width share: a lane of a 16-bit row lies where another lane
 * of a 32-bit row does, and diverged lanes may use a row for different registers.  Registers that are used at one instruction
 * never share, as handlers may write a result before they have read everything.  Predicates get no row. */
std::vector<uint32_t> share_rows(const ptx::Function &f, const Liveness &l, uint32_t *n_rows);

} // namespace ptxemu

#endif
