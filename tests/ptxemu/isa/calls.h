/* What a call instruction carries, and the functions that the device's system provides. */
#ifndef PTXEMU_ISA_CALLS_H
#define PTXEMU_ISA_CALLS_H

#include <vector>

#include "isa/code.h"
#include "machine/block.h"

namespace ptxemu
{

/* An argument or a result of a call: a variable of the caller's frame, or one of the instruction's operands. */
struct Arg {
    bool in_register = false;
    unsigned op = 0;
    uint32_t offset = 0, bytes = 0; /* in the caller's frame */
};

struct CallSite {
    const Function *callee = nullptr; /* nullptr: through the last operand */
    std::vector<Arg> args, rets;
};

/* The bytes of a lane's argument; *defined, if asked for: whether they were written, a byte each in `written`. */
uint8_t *argument(Warp &w, const Inst &call, const Arg &a, unsigned lane);
template <class T>
T argument_value(Warp &w, const Inst &call, const Arg &a, unsigned lane)
{
    T v;
    __builtin_memcpy(&v, argument(w, call, a, lane), sizeof v);
    return v;
}

/* vprintf, __assertfail, malloc, free: the handler, and the sizes of parameters and result; nullptr: not one of them. */
struct SystemFunction {
    const char *name;
    Exec exec;
    std::vector<uint32_t> params;
    uint32_t ret; /* 0: none */
};
const SystemFunction *system_function(const std::string &name);

} // namespace ptxemu

#endif
