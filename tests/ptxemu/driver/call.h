/* How every driver function begins: one line that takes the lock and does what all functions do before their own work.
 *
 *     CUresult cuMemAlloc(CUdeviceptr *p, size_t bytes)
 *     {
 *         return call(__func__, CONTEXT | UNSAFE_IN_CAPTURE, [&](Call &c) -> CUresult { ... });
 *     }
 *
 * In this order: a failure on order (failure.h), CUDA_ERROR_NOT_INITIALIZED, no current context, the context's sticky
 * error, calls that a stream capture forbids.  Then the body, then the trace. */
#ifndef PTXEMU_DRIVER_CALL_H
#define PTXEMU_DRIVER_CALL_H

#include <mutex>
#include <new>

#include "driver/state.h"

namespace ptxemu::driver
{

/* What a function needs; ored together. */
constexpr unsigned NOTHING = 0;
constexpr unsigned INIT = 1;              /* cuInit has succeeded */
constexpr unsigned CONTEXT = 3;           /* a current context without a sticky error */
constexpr unsigned EVEN_AFTER_FAULT = 4;  /* the sticky error does not matter: the destroy calls */
constexpr unsigned UNSAFE_IN_CAPTURE = 8; /* forbidden while this thread, or in global mode any, captures a stream */

class Call
{
  public:
    State &s;
    std::unique_lock<std::mutex> lock;
    std::shared_ptr<Context> context; /* with CONTEXT: the current one */

    explicit Call(State &state) : s(state), lock(state.mutex) {}
    CUresult begin(const char *function, unsigned needs);
    CUresult end(const char *function, CUresult r);

    /* ---- handles; null: there is none of that name ---- */
    std::shared_ptr<Stream> stream(CUstream h); /* null, CU_STREAM_LEGACY and CU_STREAM_PER_THREAD included */

    /* ---- queue.cpp ---- */
    /* Puts work behind everything that it must follow; while `stream` captures, records it instead. */
    CUresult submit(const std::shared_ptr<Stream> &stream, Work work);
    std::shared_ptr<Op> enqueue(Stream &stream, Work work);
    std::shared_ptr<Op> make_op(std::shared_ptr<Context> context, Work work); /* after nothing, in no stream */
    CUresult wait(std::shared_ptr<Op> op); /* runs it.  The context's sticky error. */
    CUresult wait_stream(Stream &stream);
    CUresult wait_context(Context &context);
    CUresult wait_device(Device &device);
    bool poll(const std::vector<std::shared_ptr<Op>> &ops); /* whether all are done; runs them if not */
};

template <class Body>
CUresult call(const char *function, unsigned needs, Body &&body)
{
    Call c(State::get());
    CUresult r = c.begin(function, needs);
    try {
        if (r == CUDA_SUCCESS)
            r = body(c);
    } catch (const std::bad_alloc &) {
        r = CUDA_ERROR_OUT_OF_MEMORY;
    }
    return c.end(function, r);
}

} // namespace ptxemu::driver

#endif
