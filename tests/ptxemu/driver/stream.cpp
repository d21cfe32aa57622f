/* Streams. */
#include <algorithm>

#include "driver/graph.h"

namespace ptxemu::driver
{
namespace
{
CUresult create(Call &c, CUstream *out, unsigned flags, int priority)
{
    if (!out || (flags & ~unsigned(CU_STREAM_NON_BLOCKING)))
        return CUDA_ERROR_INVALID_VALUE;
    auto stream = std::make_shared<Stream>();
    stream->context = c.context.get();
    stream->flags = flags;
    stream->priority = std::max(GREATEST_PRIORITY, std::min(LEAST_PRIORITY, priority)); /* the driver clamps */
    stream->id = c.s.next_id++;
    *out = c.s.streams.add(stream);
    return CUDA_SUCCESS;
}

/* The usual question about a stream. */
template <class Body>
CUresult stream_call(const char *function, unsigned needs, CUstream h, bool answerable, Body &&body)
{
    return call(function, needs, [&](Call &c) -> CUresult {
        std::shared_ptr<Stream> stream = c.stream(h);
        if (!stream)
            return CUDA_ERROR_INVALID_HANDLE;
        return answerable ? body(c, stream) : CUDA_ERROR_INVALID_VALUE;
    });
}

/* Asking for a stream's end, or whether it is there, while it captures. */
CUresult waiting_allowed(Call &c, Stream &stream)
{
    if (!stream.capture) {
        CUresult r = implicit_in_capture(c.s, stream);
        return r != CUDA_SUCCESS ? r : unsafe_in_capture(c.s);
    }
    if (stream.capture->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    invalidate(*stream.capture);
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}
} // namespace
} // namespace ptxemu::driver

using namespace ptxemu::driver;

CUresult cuStreamCreate(CUstream *out, unsigned flags)
{
    return call(__func__, CONTEXT, [&](Call &c) { return create(c, out, flags, 0); });
}

CUresult cuStreamCreateWithPriority(CUstream *out, unsigned flags, int priority)
{
    return call(__func__, CONTEXT, [&](Call &c) { return create(c, out, flags, priority); });
}

/* Does not wait: what is queued still runs, when somebody waits for the context or for an event in it. */
CUresult cuStreamDestroy(CUstream h)
{
    return call(__func__, CONTEXT | EVEN_AFTER_FAULT, [&](Call &c) {
        std::shared_ptr<Stream> stream = c.s.streams.find(h);
        if (!stream)
            return CUDA_ERROR_INVALID_HANDLE;
        if (stream->capture)
            invalidate(*stream->capture);
        if (stream->last && stream->last->state != Op::done)
            stream->context->orphans.push_back({stream->last, (stream->flags & CU_STREAM_NON_BLOCKING) == 0});
        c.s.streams.remove(h);
        return CUDA_SUCCESS;
    });
}

CUresult cuStreamSynchronize(CUstream h)
{
    return stream_call(__func__, CONTEXT, h, true, [](Call &c, auto &stream) {
        CUresult r = waiting_allowed(c, *stream);
        if (r == CUDA_SUCCESS && stream->legacy) /* which stands behind the blocking streams at any time */
            c.enqueue(*stream, EmptyWork{});
        return r == CUDA_SUCCESS ? c.wait_stream(*stream) : r;
    });
}

/* As cuEventQuery: the first question about unfinished work runs it and says "not ready". */
CUresult cuStreamQuery(CUstream h)
{
    return stream_call(__func__, CONTEXT, h, true, [](Call &c, auto &stream) {
        CUresult r = waiting_allowed(c, *stream);
        if (r != CUDA_SUCCESS)
            return r;
        std::vector<std::shared_ptr<Op>> open = stream->waits;
        open.push_back(stream->last);
        bool done = c.poll(open);
        if (stream->context->sticky != CUDA_SUCCESS)
            return stream->context->sticky;
        return done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
    });
}

CUresult cuStreamGetPriority(CUstream h, int *priority)
{
    return stream_call(__func__, CONTEXT, h, priority, [&](Call &, auto &stream) {
        *priority = stream->priority;
        return CUDA_SUCCESS;
    });
}

CUresult cuStreamGetFlags(CUstream h, unsigned *flags)
{
    return stream_call(__func__, CONTEXT, h, flags, [&](Call &, auto &stream) {
        *flags = stream->flags;
        return CUDA_SUCCESS;
    });
}

CUresult cuStreamGetId(CUstream h, unsigned long long *id)
{
    return stream_call(__func__, CONTEXT, h, id, [&](Call &, auto &stream) {
        *id = stream->id;
        return CUDA_SUCCESS;
    });
}

CUresult cuStreamGetCtx(CUstream h, CUcontext *context)
{
    return stream_call(__func__, CONTEXT, h, context, [&](Call &, auto &stream) {
        *context = stream->context->handle;
        return CUDA_SUCCESS;
    });
}

CUresult cuStreamGetDevice(CUstream h, CUdevice *device)
{
    return stream_call(__func__, CONTEXT, h, device, [&](Call &, auto &stream) {
        *device = stream->context->device->ordinal;
        return CUDA_SUCCESS;
    });
}

CUresult cuStreamAddCallback(CUstream h, CUstreamCallback fn, void *data, unsigned flags)
{
    return stream_call(__func__, CONTEXT, h, fn && !flags, [&](Call &c, auto &stream) {
        if (stream->capture) { /* a callback wants the stream's state, which a graph does not have */
            invalidate(*stream->capture);
            return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
        return c.submit(stream, CallbackWork{fn, data, h});
    });
}

CUresult cuLaunchHostFunc(CUstream h, CUhostFn fn, void *data)
{
    return stream_call(__func__, CONTEXT, h, fn, [&](Call &c, auto &stream) {
        return c.submit(stream, HostWork{fn, data});
    });
}

/* Managed memory is visible to every stream here, which allows more than an attachment asks for. */
CUresult cuStreamAttachMemAsync(CUstream h, CUdeviceptr address, size_t, unsigned flags)
{
    return stream_call(__func__, CONTEXT, h, flags && !(flags & (flags - 1)) && flags <= CU_MEM_ATTACH_SINGLE,
                       [&](Call &c, auto &) {
                           const ptxemu::Allocation *a = c.s.heap.find(address);
                           bool managed = a && !a->freed && a->kind == ptxemu::AllocKind::managed;
                           return managed ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
                       });
}
