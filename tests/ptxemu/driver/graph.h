/* Graphs, and the capture of streams into them. */
#ifndef PTXEMU_DRIVER_GRAPH_H
#define PTXEMU_DRIVER_GRAPH_H

#include <list>

#include "driver/call.h"

namespace ptxemu::driver
{

struct GraphNode {
    CUgraphNode handle = nullptr;
    Graph *graph = nullptr;
    CUgraphNodeType type = CU_GRAPH_NODE_TYPE_EMPTY;
    Work work;
    std::vector<GraphNode *> after; /* dependencies */
    std::shared_ptr<Context> context;
    std::vector<void *> param_pointers; /* what cuGraphKernelNodeGetParams gave out */
};

struct Graph {
    CUgraph handle = nullptr;
    std::list<std::shared_ptr<GraphNode>> nodes; /* in order of creation */
};

struct GraphExec {
    struct Node {
        CUgraphNode origin; /* the node of the graph it was made from: what cuGraphExec...SetParams names */
        CUgraphNodeType type;
        Work work;
        std::vector<size_t> after;
        std::shared_ptr<Context> context;
        bool enabled = true;
    };
    CUgraphExec handle = nullptr;
    std::vector<Node> nodes;
    uint64_t flags = 0;
    std::shared_ptr<Op> last; /* of the last launch: launches of one executable graph do not overlap */
};

/* A capture sequence: begun on one stream, and drawn into others by events. */
struct Capture {
    uint64_t id = 0;
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
    std::thread::id thread;
    Stream *origin = nullptr;
    std::shared_ptr<Graph> graph;
    bool invalid = false;
    bool ended = false;
};

/* ---- graph.cpp ---- */
GraphNode *add_node(State &s, const std::shared_ptr<Graph> &graph, Work work, std::vector<GraphNode *> after,
                    std::shared_ptr<Context> context);
void discard_nodes(State &s, Graph &graph); /* their handles, too */
/* The nodes of these handles, if all belong to the graph. */
bool find_nodes(State &s, const Graph &graph, const CUgraphNode *handles, size_t n, std::vector<GraphNode *> *out);

/* A node's kernel; *work is what it was before, if it was anything. */
CUresult make_kernel(Call &c, const CUDA_KERNEL_NODE_PARAMS &p, KernelWork *work, std::shared_ptr<Context> *context);
CUresult make_fill(const State &s, const CUDA_MEMSET_NODE_PARAMS &p, FillWork *w);

/* ---- capture.cpp ---- */
/* Whether a call that could disturb a capture is allowed now.  If not, the captures that forbid it are invalid from
 * then on. */
CUresult unsafe_in_capture(State &s);
/* Work in the legacy stream would depend on a blocking stream that captures: not allowed, and invalidates. */
CUresult implicit_in_capture(State &s, Stream &stream);
bool blocked_by_capture(State &s, const Stream &stream);
/* cuCtxSynchronize while a stream of the context captures. */
CUresult synchronize_in_capture(State &s, Context &context);
/* Records a piece of work as a node of the capture that `stream` is in. */
CUresult record(Call &c, Stream &stream, Work work);
void invalidate(Capture &capture);
/* cuStreamWaitEvent, if the stream captures or the event was recorded in a capture. */
CUresult wait_captured(Call &c, Stream &stream, Event &event);
/* The host asks for the state of an event that a capture recorded. */
CUresult captured_event(Event &event);

/* ---- event.cpp ---- */
CUresult record_event(Call &c, CUevent event, CUstream stream);

} // namespace ptxemu::driver

#endif
