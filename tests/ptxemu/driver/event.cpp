/* Events.  An event's time is the wall time at which its operation ran. */
#include "driver/graph.h"

namespace ptxemu::driver
{

CUresult record_event(Call &c, CUevent h, CUstream stream_handle)
{
    std::shared_ptr<Event> event = c.s.events.find(h);
    std::shared_ptr<Stream> stream = c.stream(stream_handle);
    if (!event || !stream || event->context != stream->context)
        return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) {
        if (stream->capture->invalid)
            return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        event->capture = stream->capture;
        event->capture_at = stream->capture_after;
        return CUDA_SUCCESS;
    }
    CUresult r = implicit_in_capture(c.s, *stream);
    if (r != CUDA_SUCCESS)
        return r;
    event->capture.reset();
    event->capture_at.clear();
    event->op = c.enqueue(*stream, EmptyWork{});
    return CUDA_SUCCESS;
}

namespace
{
CUresult wait_event(Call &c, CUstream stream_handle, CUevent h)
{
    std::shared_ptr<Stream> stream = c.stream(stream_handle);
    std::shared_ptr<Event> event = c.s.events.find(h);
    if (!event || !stream)
        return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture || event->capture)
        return wait_captured(c, *stream, *event);
    CUresult r = implicit_in_capture(c.s, *stream);
    if (r == CUDA_SUCCESS && event->op && event->op->state != Op::done)
        stream->waits.push_back(event->op);
    return r;
}

/* The usual question about an event; one that a capture recorded has no state that the host could ask for. */
template <class Body>
CUresult event_call(const char *function, CUevent h, Body &&body)
{
    return call(function, CONTEXT | UNSAFE_IN_CAPTURE, [&](Call &c) -> CUresult {
        std::shared_ptr<Event> event = c.s.events.find(h);
        if (!event)
            return CUDA_ERROR_INVALID_HANDLE;
        return event->capture ? captured_event(*event) : body(c, *event);
    });
}

CUresult elapsed(Call &c, float *ms, CUevent from, CUevent to)
{
    std::shared_ptr<Event> a = c.s.events.find(from), b = c.s.events.find(to);
    if (!ms)
        return CUDA_ERROR_INVALID_VALUE;
    if (!a || !b || a->context != b->context || ((a->flags | b->flags) & CU_EVENT_DISABLE_TIMING))
        return CUDA_ERROR_INVALID_HANDLE;
    for (Event *e : {a.get(), b.get()})
        if (e->capture)
            return captured_event(*e);
    if (!a->op || !b->op)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!c.poll({a->op, b->op}))
        return c.context->sticky == CUDA_SUCCESS ? CUDA_ERROR_NOT_READY : c.context->sticky;
    *ms = float((b->op->finished - a->op->finished) * 1e3);
    return CUDA_SUCCESS;
}
} // namespace
} // namespace ptxemu::driver

using namespace ptxemu::driver;

CUresult cuEventCreate(CUevent *out, unsigned flags)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        constexpr unsigned known = CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;
        if (!out || (flags & ~known))
            return CUDA_ERROR_INVALID_VALUE;
        if (flags & CU_EVENT_INTERPROCESS)
            return flags & CU_EVENT_DISABLE_TIMING ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
        auto event = std::make_shared<Event>();
        event->context = c.context.get();
        event->flags = flags;
        *out = c.s.events.add(event);
        return CUDA_SUCCESS;
    });
}

CUresult cuEventDestroy(CUevent h)
{
    return call(__func__, CONTEXT | EVEN_AFTER_FAULT,
                [&](Call &c) { return c.s.events.remove(h) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; });
}

CUresult cuEventRecord(CUevent event, CUstream stream)
{
    return call(__func__, CONTEXT, [&](Call &c) { return record_event(c, event, stream); });
}

/* With CU_EVENT_RECORD_EXTERNAL a capture makes a node of it, that records the event whenever the graph runs. */
CUresult cuEventRecordWithFlags(CUevent h, CUstream stream_handle, unsigned flags)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        if (flags & ~unsigned(CU_EVENT_RECORD_EXTERNAL))
            return CUDA_ERROR_INVALID_VALUE;
        std::shared_ptr<Stream> stream = c.stream(stream_handle);
        std::shared_ptr<Event> event = c.s.events.find(h);
        if (flags && event && stream && stream->capture)
            return record(c, *stream, RecordWork{event});
        return record_event(c, h, stream_handle);
    });
}

CUresult cuStreamWaitEvent(CUstream stream_handle, CUevent h, unsigned flags)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        if (flags & ~unsigned(CU_EVENT_WAIT_EXTERNAL))
            return CUDA_ERROR_INVALID_VALUE;
        std::shared_ptr<Stream> stream = c.stream(stream_handle);
        std::shared_ptr<Event> event = c.s.events.find(h);
        if (flags && event && stream && stream->capture)
            return record(c, *stream, WaitWork{event});
        return wait_event(c, stream_handle, h);
    });
}

/* The first question about unfinished work runs it and says "not ready"; the next finds it done. */
CUresult cuEventQuery(CUevent h)
{
    return event_call(__func__, h, [](Call &c, Event &event) {
        bool done = c.poll({event.op});
        if (event.context->sticky != CUDA_SUCCESS)
            return event.context->sticky;
        return done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
    });
}

CUresult cuEventSynchronize(CUevent h)
{
    return event_call(__func__, h, [](Call &c, Event &event) { return c.wait(event.op); });
}

CUresult cuEventElapsedTime(float *ms, CUevent from, CUevent to)
{
    return call(__func__, CONTEXT, [&](Call &c) { return elapsed(c, ms, from, to); });
}
#undef cuEventElapsedTime
extern "C" __attribute__((visibility("default"))) CUresult cuEventElapsedTime(float *ms, CUevent from, CUevent to)
{
    return call(__func__, CONTEXT, [&](Call &c) { return elapsed(c, ms, from, to); });
}
