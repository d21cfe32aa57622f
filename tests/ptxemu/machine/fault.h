/* What stops a launch: thrown by whoever finds it, completed with place and kernel by the machine, given to the driver, which makes a
 * sticky error and a report of it. */
#ifndef PTXEMU_MACHINE_FAULT_H
#define PTXEMU_MACHINE_FAULT_H

#include <string>
#include <vector>

#include "types.h"

namespace ptxemu
{

/* name, title of the report, CUresult */
#define PTXEMU_FAULTS(X)                                                                                               \
    X(out_of_bounds, "out-of-bounds access", 700)                                                                      \
    X(use_after_free, "use after free", 700)                                                                           \
    X(misaligned, "misaligned access", 716)                                                                            \
    X(wrong_space, "address of another state space", 717)                                                              \
    X(uninitialized_memory, "read of never-written memory", 719)                                                       \
    X(uninitialized_register, "use of a never-written register", 719)                                                  \
    X(race, "shared-memory race", 719)                                                                                 \
    X(early_async_read, "access to an asynchronous copy's destination before its wait", 719)                           \
    X(divergent_barrier, "divergent barrier", 719)                                                                     \
    X(mismatched_barrier, "mismatched barrier", 719)                                                                   \
    X(missing_lanes, "lanes missing at a warp-wide instruction", 719)                                                  \
    X(deadlock, "deadlock", 702)                                                                                       \
    X(assertion, "assertion failed", 710)                                                                              \
    X(trap, "trap", 719)                                                                                               \
    X(invalid_pc, "call or branch to nowhere", 718)                                                                    \
    X(illegal_instruction, "illegal instruction", 715)                                                                 \
    X(stack_overflow, "local memory exhausted", 719)                                                                   \
    X(missing_fence, "asynchronous operation without the fence before it", 719)                                        \
    X(barrier_misuse, "misuse of an mbarrier", 719)                                                                    \
    X(invalid_descriptor, "invalid matrix descriptor or tensor map", 719)                                              \
    X(invalid_metadata, "invalid sparsity metadata", 719)

enum class FaultKind : uint8_t {
#define X(name, title, result) name,
    PTXEMU_FAULTS(X)
#undef X
};
const char *fault_title(FaultKind k);
int fault_result(FaultKind k); /* a CUresult */

struct Fault {
    FaultKind kind;
    std::string what; /* one sentence: what was found, what was expected */
    /* filled in by the thrower where it knows, else by the machine */
    bool has_address = false;
    Space space = Space::generic;
    uint64_t address = 0;
    int lane = -1; /* the first lane to blame */
    std::string kernel, file, instruction;
    std::vector<std::string> inlined; /* "file:line" of the calls that brought the line there, innermost first */
    uint32_t line = 0, ptx_line = 0;
    Dim3 block_id{0, 0, 0}, thread_id{0, 0, 0};
    bool has_place = false; /* block_id and thread_id are set */
};

[[noreturn]] void fault(FaultKind kind, int lane, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
[[noreturn]] void fault_at(FaultKind kind, int lane, Space space, uint64_t address, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));

/* The report that people read: several lines, the first says the title and the kernel. */
std::string report_text(const Fault &f);

} // namespace ptxemu

#endif
