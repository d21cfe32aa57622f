/* What a stream does: pieces of work, and the operations that order them.
 *
 * Nothing runs when it is submitted.  An operation knows the earlier ones that it has to come after; it runs when
 * somebody waits for it (a synchronise call, a synchronous copy, a free, a query), after all of those, and work that
 * nobody waits for yet stays undone.  So host code that forgets to wait reads old data, every time.
 *
 * Of host memory in asynchronous copies: a pageable source is copied aside while the call lasts, as the real driver
 * stages it; a pinned source is read when the copy runs; a target, pinned or pageable, is written when the copy runs
 * (the real driver may wait for copies to pageable memory, and promises nothing).  Fills and copies within the device
 * are never waited for, also those without "Async" in their name: they are work of the default stream. */
#ifndef PTXEMU_DRIVER_WORK_H
#define PTXEMU_DRIVER_WORK_H

#include <memory>
#include <variant>
#include <vector>

#include "driver/api.h"
#include "machine/block.h"

namespace ptxemu::driver
{

struct Context;
struct Event;
struct LoadedModule;
struct FunctionObject;

struct KernelWork {
    std::shared_ptr<LoadedModule> module; /* keeps the code alive */
    CUfunction handle = nullptr;
    Launch launch;
};
/* A rectangle of `height` rows, or with `depth` > 1 a box; one row for plain copies.  The addresses are host or device
 * addresses alike. */
struct CopyWork {
    uint64_t dst = 0, src = 0;
    size_t width = 0, height = 1, depth = 1;
    size_t dst_pitch = 0, src_pitch = 0, dst_slice = 0, src_slice = 0;
    std::shared_ptr<std::vector<uint8_t>> snapshot; /* of pageable source memory; `src` points into it */
};
struct FillWork {
    uint64_t dst = 0;
    uint32_t value = 0;
    unsigned element = 1; /* bytes */
    size_t width = 0, height = 1, pitch = 0;
};
struct HostWork {
    CUhostFn fn = nullptr;
    void *data = nullptr;
};
struct CallbackWork { /* cuStreamAddCallback */
    CUstreamCallback fn = nullptr;
    void *data = nullptr;
    CUstream stream = nullptr;
};
struct RecordWork {
    std::shared_ptr<Event> event;
};
struct WaitWork { /* of a graph: an event that is looked at when the graph is launched */
    std::shared_ptr<Event> event;
};
struct FreeWork {
    uint64_t address = 0;
};
struct External { /* ptxemu_enqueue: an operation of another library, which may have to be attempted many times */
    int (*attempt)(void *user) = nullptr;
    void *user = nullptr;
    void (*drop)(void *user) = nullptr;
    External() = default;
    External(const External &) = delete;
    ~External()
    {
        if (drop)
            drop(user);
    }
};
struct ExternalWork {
    std::shared_ptr<External> operation;
};
struct EmptyWork {
};
using Work = std::variant<EmptyWork, KernelWork, CopyWork, FillWork, HostWork, CallbackWork, RecordWork, WaitWork,
                          FreeWork, ExternalWork>;

struct Op {
    enum State : uint8_t { pending, running, done };
    State state = pending;
    uint64_t serial = 0; /* later operations have higher ones */
    double finished = 0; /* seconds, when done */
    std::shared_ptr<Context> context;
    std::vector<std::shared_ptr<Op>> after;
    Work work;
};

/* Executes one piece of work on behalf of a context, without any lock held.  Throws Fault. */
void execute(Context &context, const Work &work);

double wall_seconds(); /* monotonic */

} // namespace ptxemu::driver

#endif
