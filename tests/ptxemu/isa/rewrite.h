/* Small changes to a function's text before it is decoded, so that an instruction of the text is one Inst and no family needs to
 * know of the exceptions. */
#ifndef PTXEMU_ISA_REWRITE_H
#define PTXEMU_ISA_REWRITE_H

#include "ptx/ast.h"

namespace ptxemu
{

/* Special registers in other instructions than mov are moved into a register first. */
void name_special_registers(ptx::Function *f);
/* A body whose end can be reached ends in `ret`. */
void end_in_return(ptx::Function *f);

} // namespace ptxemu

#endif
