/* Stream capture. */
#include <algorithm>
#include <unordered_set>

#include "driver/graph.h"

namespace ptxemu::driver
{
namespace
{
thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

std::vector<std::shared_ptr<Capture>> live_captures(State &s)
{
    std::vector<std::shared_ptr<Capture>> live;
    auto &all = s.captures;
    all.erase(std::remove_if(all.begin(), all.end(),
                             [](auto &w) {
                                 std::shared_ptr<Capture> c = w.lock();
                                 return !c || c->ended;
                             }),
              all.end());
    for (auto &w : all)
        live.push_back(w.lock());
    return live;
}

/* The documented table: a relaxed capture forbids nothing, a thread-local one forbids its own thread, a global one
 * everybody; and a thread can loosen what it minds. */
bool forbids(const Capture &capture)
{
    if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED || capture.mode == CU_STREAM_CAPTURE_MODE_RELAXED)
        return false;
    if (capture.thread == std::this_thread::get_id())
        return true;
    return thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL && capture.mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
}

/* Nodes from which `from` can be reached against the arrows, those themselves included. */
std::unordered_set<const GraphNode *> ancestors(const std::vector<GraphNode *> &from)
{
    std::unordered_set<const GraphNode *> seen(from.begin(), from.end());
    std::vector<const GraphNode *> open(from.begin(), from.end());
    while (!open.empty()) {
        const GraphNode *n = open.back();
        open.pop_back();
        for (const GraphNode *before : n->after)
            if (seen.insert(before).second)
                open.push_back(before);
    }
    return seen;
}

void leave(State &s, Capture &capture)
{
    s.streams.each([&](Stream &stream) {
        if (stream.capture.get() == &capture) {
            stream.capture_after.clear();
            stream.capture.reset();
        }
    });
    capture.ended = true;
}

void add_missing(std::vector<GraphNode *> *to, const std::vector<GraphNode *> &more)
{
    for (GraphNode *n : more)
        if (std::find(to->begin(), to->end(), n) == to->end())
            to->push_back(n);
}

bool joined(State &s, const Stream &origin)
{
    std::unordered_set<const GraphNode *> reached = ancestors(origin.capture_after);
    bool all = true;
    s.streams.each([&](const Stream &stream) {
        if (stream.capture == origin.capture)
            for (const GraphNode *n : stream.capture_after)
                all = all && reached.count(n);
    });
    return all;
}

CUresult begin_capture(Call &c, CUstream h, CUstreamCaptureMode mode, std::shared_ptr<Graph> graph,
                       std::vector<GraphNode *> after)
{
    std::shared_ptr<Stream> stream = c.stream(h);
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    if (unsigned(mode) > CU_STREAM_CAPTURE_MODE_RELAXED)
        return CUDA_ERROR_INVALID_VALUE;
    if (stream->legacy)
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture)
        return CUDA_ERROR_ILLEGAL_STATE;
    auto capture = std::make_shared<Capture>();
    capture->id = c.s.next_id++;
    capture->mode = mode;
    capture->thread = std::this_thread::get_id();
    capture->origin = stream.get();
    capture->graph = graph ? graph : std::make_shared<Graph>();
    c.s.captures.push_back(capture);
    stream->capture = capture;
    stream->capture_after = std::move(after);
    return CUDA_SUCCESS;
}

CUresult end_capture(Call &c, CUstream h, CUgraph *out)
{
    std::shared_ptr<Stream> stream = c.stream(h);
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!out)
        return CUDA_ERROR_INVALID_VALUE;
    *out = nullptr;
    std::shared_ptr<Capture> capture = stream->capture;
    if (!capture)
        return CUDA_ERROR_ILLEGAL_STATE;
    if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != std::this_thread::get_id())
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    if (capture->origin != stream.get()) {
        invalidate(*capture);
        return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    }
    bool invalid = capture->invalid, together = joined(c.s, *stream);
    leave(c.s, *capture);
    stream->capture.reset(); /* a per-thread stream is in no table */
    stream->capture_after.clear();
    if (invalid || !together) {
        if (!capture->graph->handle)
            discard_nodes(c.s, *capture->graph);
        return invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    }
    *out = capture->graph->handle ? capture->graph->handle : c.s.graphs.add(capture->graph);
    return CUDA_SUCCESS;
}

/* What cuStreamGetCaptureInfo says; each answer is optional. */
CUresult capture_info(Call &c, CUstream h, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph,
                      const CUgraphNode **after, size_t *n)
{
    std::shared_ptr<Stream> stream = c.stream(h);
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!status)
        return CUDA_ERROR_INVALID_VALUE;
    if (blocked_by_capture(c.s, *stream))
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    Capture *capture = stream->capture.get();
    *status = !capture           ? CU_STREAM_CAPTURE_STATUS_NONE
              : capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                 : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    if (*status != CU_STREAM_CAPTURE_STATUS_ACTIVE)
        return CUDA_SUCCESS;
    if (id)
        *id = capture->id;
    if (graph) { /* the graph is in the making, yet nodes can be added to it */
        if (!capture->graph->handle)
            c.s.graphs.add(capture->graph);
        *graph = capture->graph->handle;
    }
    stream->capture_handles.clear();
    for (GraphNode *node : stream->capture_after)
        stream->capture_handles.push_back(node->handle);
    if (after)
        *after = stream->capture_handles.data();
    if (n)
        *n = stream->capture_handles.size();
    return CUDA_SUCCESS;
}
} // namespace

void invalidate(Capture &capture)
{
    capture.invalid = true;
}

CUresult unsafe_in_capture(State &s)
{
    CUresult r = CUDA_SUCCESS;
    for (const std::shared_ptr<Capture> &capture : live_captures(s))
        if (forbids(*capture)) {
            invalidate(*capture);
            r = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    return r;
}

bool blocked_by_capture(State &s, const Stream &stream)
{
    bool blocked = false;
    if (stream.legacy)
        s.streams.each([&](const Stream &other) {
            blocked |= other.context == stream.context && other.capture && !(other.flags & CU_STREAM_NON_BLOCKING);
        });
    return blocked;
}

CUresult implicit_in_capture(State &s, Stream &stream)
{
    if (!blocked_by_capture(s, stream))
        return CUDA_SUCCESS;
    s.streams.each([&](const Stream &other) {
        if (other.context == stream.context && other.capture && !(other.flags & CU_STREAM_NON_BLOCKING))
            invalidate(*other.capture);
    });
    return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
}

CUresult synchronize_in_capture(State &s, Context &context)
{
    CUresult r = CUDA_SUCCESS;
    s.streams.each([&](const Stream &stream) {
        if (stream.context == &context && stream.capture) {
            invalidate(*stream.capture);
            r = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    });
    return r;
}

CUresult record(Call &c, Stream &stream, Work work)
{
    Capture &capture = *stream.capture;
    if (capture.invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    GraphNode *node =
        add_node(c.s, capture.graph, std::move(work), stream.capture_after, c.s.contexts.find(stream.context->handle));
    stream.capture_after = {node};
    return CUDA_SUCCESS;
}

CUresult captured_event(Event &event)
{
    if (!event.capture->ended)
        invalidate(*event.capture);
    return CUDA_ERROR_CAPTURED_EVENT;
}

CUresult wait_captured(Call &, Stream &stream, Event &event)
{
    if (!event.capture) { /* a graph cannot depend on what ran before it was made */
        invalidate(*stream.capture);
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (event.capture->ended)
        return CUDA_ERROR_INVALID_VALUE;
    if (event.capture->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (stream.capture && stream.capture != event.capture) {
        invalidate(*stream.capture);
        invalidate(*event.capture);
        return CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
    if (stream.legacy) {
        invalidate(*event.capture);
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
    stream.capture = event.capture;
    add_missing(&stream.capture_after, event.capture_at);
    return CUDA_SUCCESS;
}
} // namespace ptxemu::driver

using namespace ptxemu::driver;

CUresult cuStreamBeginCapture(CUstream h, CUstreamCaptureMode mode)
{
    return call(__func__, CONTEXT, [&](Call &c) { return begin_capture(c, h, mode, nullptr, {}); });
}

CUresult cuStreamBeginCaptureToGraph(CUstream h, CUgraph graph_handle, const CUgraphNode *after,
                                     const CUgraphEdgeData *edges, size_t n, CUstreamCaptureMode mode)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        std::shared_ptr<Graph> graph = c.s.graphs.find(graph_handle);
        std::vector<GraphNode *> nodes;
        if (!graph || !find_nodes(c.s, *graph, after, n, &nodes))
            return CUDA_ERROR_INVALID_VALUE;
        return edges ? CUDA_ERROR_NOT_SUPPORTED : begin_capture(c, h, mode, graph, nodes);
    });
}

CUresult cuStreamEndCapture(CUstream h, CUgraph *graph)
{
    return call(__func__, CONTEXT, [&](Call &c) { return end_capture(c, h, graph); });
}

CUresult cuStreamIsCapturing(CUstream h, CUstreamCaptureStatus *status)
{
    return call(__func__, CONTEXT,
                [&](Call &c) { return capture_info(c, h, status, nullptr, nullptr, nullptr, nullptr); });
}

CUresult cuStreamGetCaptureInfo(CUstream h, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph,
                                const CUgraphNode **after, const CUgraphEdgeData **edges, size_t *n)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        if (edges)
            *edges = nullptr; /* every edge is a plain one */
        return capture_info(c, h, status, id, graph, after, n);
    });
}

CUresult cuStreamUpdateCaptureDependencies(CUstream h, CUgraphNode *after, const CUgraphEdgeData *edges, size_t n,
                                           unsigned flags)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        std::shared_ptr<Stream> stream = c.stream(h);
        std::vector<GraphNode *> nodes;
        if (!stream)
            return CUDA_ERROR_INVALID_HANDLE;
        if (!stream->capture)
            return CUDA_ERROR_ILLEGAL_STATE;
        if (flags > CU_STREAM_SET_CAPTURE_DEPENDENCIES || !find_nodes(c.s, *stream->capture->graph, after, n, &nodes))
            return CUDA_ERROR_INVALID_VALUE;
        if (edges)
            return CUDA_ERROR_NOT_SUPPORTED;
        if (flags == CU_STREAM_SET_CAPTURE_DEPENDENCIES)
            stream->capture_after.clear();
        add_missing(&stream->capture_after, nodes);
        return CUDA_SUCCESS;
    });
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode)
{
    return call(__func__, INIT, [&](Call &) {
        if (!mode || unsigned(*mode) > CU_STREAM_CAPTURE_MODE_RELAXED)
            return CUDA_ERROR_INVALID_VALUE;
        std::swap(*mode, thread_mode);
        return CUDA_SUCCESS;
    });
}
