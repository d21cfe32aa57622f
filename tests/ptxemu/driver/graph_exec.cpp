/* Executable graphs: instantiation, launch, update. */
#include <algorithm>

#include "driver/copy.h"
#include "driver/graph.h"
#include "driver/memory.h"

namespace ptxemu::driver
{
namespace
{
/* The graph's nodes in an order in which each comes behind what it waits for; false: there is a cycle. */
bool lay_out(const Graph &graph, std::vector<GraphExec::Node> *out)
{
    std::map<const GraphNode *, size_t> place;
    std::vector<const GraphNode *> left;
    for (auto &node : graph.nodes)
        left.push_back(node.get());
    out->clear();
    while (!left.empty()) {
        std::vector<const GraphNode *> later;
        for (const GraphNode *node : left) {
            bool ready = std::all_of(node->after.begin(), node->after.end(),
                                     [&](const GraphNode *before) { return place.count(before); });
            if (!ready) {
                later.push_back(node);
                continue;
            }
            GraphExec::Node n{node->handle, node->type, node->work, {}, node->context};
            for (const GraphNode *before : node->after)
                n.after.push_back(place[before]);
            std::sort(n.after.begin(), n.after.end());
            place[node] = out->size();
            out->push_back(std::move(n));
        }
        if (later.size() == left.size())
            return false;
        left = std::move(later);
    }
    return true;
}

constexpr uint64_t KNOWN_FLAGS = CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH | CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD |
                                 CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;

CUresult instantiate(Call &c, CUgraphExec *out, CUgraph h, uint64_t flags)
{
    std::shared_ptr<Graph> graph = c.s.graphs.find(h);
    if (!out || !graph)
        return CUDA_ERROR_INVALID_VALUE;
    if (flags & ~KNOWN_FLAGS) /* launches from the device */
        return flags & CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
    auto exec = std::make_shared<GraphExec>();
    exec->flags = flags;
    if (!lay_out(*graph, &exec->nodes))
        return CUDA_ERROR_INVALID_VALUE;
    *out = c.s.graph_execs.add(exec);
    return CUDA_SUCCESS;
}

/* An operation for every node, between one that begins and one that ends the launch in its stream. */
void launch_now(Call &c, Stream &stream, GraphExec &exec)
{
    std::shared_ptr<Op> begin = c.enqueue(stream, EmptyWork{});
    if (exec.last && exec.last->state != Op::done)
        begin->after.push_back(exec.last);
    std::vector<std::shared_ptr<Op>> ops;
    for (const GraphExec::Node &node : exec.nodes) {
        std::shared_ptr<Op> op = c.make_op(node.context, node.enabled ? node.work : Work(EmptyWork{}));
        op->after.push_back(begin);
        for (size_t before : node.after)
            op->after.push_back(ops[before]);
        if (const WaitWork *wait = std::get_if<WaitWork>(&op->work); wait && wait->event->op)
            op->after.push_back(wait->event->op);
        if (const RecordWork *record = std::get_if<RecordWork>(&op->work)) {
            std::shared_ptr<Event> event = record->event;
            op->work = EmptyWork{};
            event->op = op;
            event->capture.reset();
        }
        ops.push_back(op);
    }
    exec.last = c.enqueue(stream, EmptyWork{});
    for (const std::shared_ptr<Op> &op : ops)
        exec.last->after.push_back(op);
}

/* A launch into a stream that captures becomes part of the new graph, node by node. */
CUresult launch_captured(Call &c, Stream &stream, const GraphExec &exec)
{
    Capture &capture = *stream.capture;
    if (capture.invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    std::vector<GraphNode *> made, ends;
    for (const GraphExec::Node &node : exec.nodes) {
        std::vector<GraphNode *> after;
        for (size_t before : node.after) {
            after.push_back(made[before]);
            ends.erase(std::remove(ends.begin(), ends.end(), made[before]), ends.end());
        }
        made.push_back(add_node(c.s, capture.graph, node.enabled ? node.work : Work(EmptyWork{}),
                                after.empty() ? stream.capture_after : after, node.context));
        ends.push_back(made.back());
    }
    if (!ends.empty())
        stream.capture_after = ends;
    return CUDA_SUCCESS;
}

CUresult launch(Call &c, CUgraphExec h, CUstream stream_handle)
{
    std::shared_ptr<GraphExec> exec = c.s.graph_execs.find(h);
    std::shared_ptr<Stream> stream = c.stream(stream_handle);
    if (!exec)
        return CUDA_ERROR_INVALID_VALUE;
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture)
        return launch_captured(c, *stream, *exec);
    CUresult r = implicit_in_capture(c.s, *stream);
    if (r == CUDA_SUCCESS)
        launch_now(c, *stream, *exec);
    return r;
}

/* What may change in an instantiated node: everything of a kernel but its context; of a copy not the kind of memory at
 * its ends. */
struct Change {
    const State &s;
    template <class A, class B>
    CUgraphExecUpdateResult operator()(const A &, const B &) const
    {
        return std::is_same_v<A, B> ? CU_GRAPH_EXEC_UPDATE_SUCCESS : CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED;
    }
    CUgraphExecUpdateResult operator()(const KernelWork &a, const KernelWork &b) const
    {
        return a.launch.device == b.launch.device ? CU_GRAPH_EXEC_UPDATE_SUCCESS
                                                  : CU_GRAPH_EXEC_UPDATE_ERROR_UNSUPPORTED_FUNCTION_CHANGE;
    }
    CUgraphExecUpdateResult operator()(const CopyWork &a, const CopyWork &b) const
    {
        return kind(a.dst) == kind(b.dst) && kind(a.src) == kind(b.src) ? CU_GRAPH_EXEC_UPDATE_SUCCESS
                                                                        : CU_GRAPH_EXEC_UPDATE_ERROR_PARAMETERS_CHANGED;
    }
    int kind(uint64_t address) const
    {
        const Allocation *a = s.heap.find(address);
        return a ? int(a->kind) : -1;
    }
};

CUgraphExecUpdateResult compare(const State &s, const GraphExec &exec, const std::vector<GraphExec::Node> &with,
                                CUgraphNode *culprit)
{
    *culprit = nullptr;
    if (exec.nodes.size() != with.size())
        return CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
    for (size_t i = 0; i < with.size(); i++) {
        *culprit = with[i].origin;
        if (exec.nodes[i].type != with[i].type)
            return CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED;
        if (exec.nodes[i].after != with[i].after)
            return CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
        CUgraphExecUpdateResult r = std::visit(Change{s}, exec.nodes[i].work, with[i].work);
        if (r != CU_GRAPH_EXEC_UPDATE_SUCCESS)
            return r;
    }
    *culprit = nullptr;
    return CU_GRAPH_EXEC_UPDATE_SUCCESS;
}

CUresult update(Call &c, CUgraphExec h, CUgraph graph_handle, CUgraphExecUpdateResultInfo *info)
{
    std::shared_ptr<GraphExec> exec = c.s.graph_execs.find(h);
    std::shared_ptr<Graph> graph = c.s.graphs.find(graph_handle);
    std::vector<GraphExec::Node> nodes;
    if (!exec || !graph || !info || !lay_out(*graph, &nodes))
        return CUDA_ERROR_INVALID_VALUE;
    *info = {};
    info->result = compare(c.s, *exec, nodes, &info->errorNode);
    if (info->result != CU_GRAPH_EXEC_UPDATE_SUCCESS)
        return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
    exec->nodes = std::move(nodes);
    return CUDA_SUCCESS;
}

/* A node of an executable graph, named by the node of the graph that it was made from, and its work if that is a W. */
template <class W, class Make>
CUresult set_call(const char *function, CUgraphExec h, CUgraphNode origin, const void *params, Make &&make)
{
    return call(function, CONTEXT, [&](Call &c) -> CUresult {
        std::shared_ptr<GraphExec> exec = c.s.graph_execs.find(h);
        if (!exec || !params)
            return CUDA_ERROR_INVALID_VALUE;
        for (GraphExec::Node &node : exec->nodes) {
            if (node.origin != origin || !std::holds_alternative<W>(node.work))
                continue;
            W changed = std::get<W>(node.work);
            std::shared_ptr<Context> context = node.context;
            CUresult r = make(c, &changed, &context);
            if (r != CUDA_SUCCESS)
                return r;
            if (context != node.context || Change{c.s}(std::get<W>(node.work), changed) != CU_GRAPH_EXEC_UPDATE_SUCCESS)
                return CUDA_ERROR_INVALID_VALUE;
            node.work = std::move(changed);
            return CUDA_SUCCESS;
        }
        return CUDA_ERROR_INVALID_VALUE;
    });
}

template <class Body>
CUresult exec_call(const char *function, CUgraphExec h, const void *out, Body &&body)
{
    return call(function, INIT, [&](Call &c) -> CUresult {
        std::shared_ptr<GraphExec> exec = c.s.graph_execs.find(h);
        return exec && out ? body(c, *exec) : CUDA_ERROR_INVALID_VALUE;
    });
}

GraphExec::Node *switchable(GraphExec &exec, CUgraphNode origin)
{
    for (GraphExec::Node &node : exec.nodes)
        if (node.origin == origin && (node.type == CU_GRAPH_NODE_TYPE_KERNEL ||
                                      node.type == CU_GRAPH_NODE_TYPE_MEMCPY || node.type == CU_GRAPH_NODE_TYPE_MEMSET))
            return &node;
    return nullptr;
}
} // namespace
} // namespace ptxemu::driver

using namespace ptxemu::driver;

CUresult cuGraphInstantiate(CUgraphExec *out, CUgraph graph, unsigned long long flags)
{
    return call(__func__, INIT, [&](Call &c) { return instantiate(c, out, graph, flags); });
}

CUresult cuGraphInstantiateWithParams(CUgraphExec *out, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS *p)
{
    return call(__func__, INIT, [&](Call &c) {
        CUresult r = p ? instantiate(c, out, graph, p->flags) : CUDA_ERROR_INVALID_VALUE;
        if (p) {
            p->hErrNode_out = nullptr;
            p->result_out = r == CUDA_SUCCESS ? CUDA_GRAPH_INSTANTIATE_SUCCESS : CUDA_GRAPH_INSTANTIATE_ERROR;
        }
        return r;
    });
}

CUresult cuGraphExecDestroy(CUgraphExec h)
{
    return call(__func__, INIT,
                [&](Call &c) { return c.s.graph_execs.remove(h) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; });
}

CUresult cuGraphExecGetFlags(CUgraphExec h, cuuint64_t *flags)
{
    return exec_call(__func__, h, flags, [&](Call &, GraphExec &exec) {
        *flags = exec.flags;
        return CUDA_SUCCESS;
    });
}

/* There is nothing to move to the device ahead of a launch. */
CUresult cuGraphUpload(CUgraphExec h, CUstream stream)
{
    return call(__func__, CONTEXT, [&](Call &c) {
        if (!c.s.graph_execs.find(h))
            return CUDA_ERROR_INVALID_VALUE;
        return c.stream(stream) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
    });
}

CUresult cuGraphLaunch(CUgraphExec h, CUstream stream)
{
    return call(__func__, CONTEXT, [&](Call &c) { return launch(c, h, stream); });
}

CUresult cuGraphExecUpdate(CUgraphExec h, CUgraph graph, CUgraphExecUpdateResultInfo *info)
{
    return call(__func__, CONTEXT, [&](Call &c) { return update(c, h, graph, info); });
}

CUresult cuGraphExecKernelNodeSetParams(CUgraphExec h, CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS *p)
{
    return set_call<KernelWork>(__func__, h, node, p, [&](Call &c, KernelWork *w, std::shared_ptr<Context> *context) {
        return make_kernel(c, *p, w, context);
    });
}

CUresult cuGraphExecMemcpyNodeSetParams(CUgraphExec h, CUgraphNode node, const CUDA_MEMCPY3D *p, CUcontext owner)
{
    return set_call<CopyWork>(__func__, h, node, p, [&](Call &c, CopyWork *w, std::shared_ptr<Context> *context) {
        *context = owner ? c.s.contexts.find(owner) : c.context;
        return make_copy(c.s, *p, w);
    });
}

CUresult cuGraphExecMemsetNodeSetParams(CUgraphExec h, CUgraphNode node, const CUDA_MEMSET_NODE_PARAMS *p,
                                        CUcontext owner)
{
    return set_call<FillWork>(__func__, h, node, p, [&](Call &c, FillWork *w, std::shared_ptr<Context> *context) {
        *context = owner ? c.s.contexts.find(owner) : c.context;
        return make_fill(c.s, *p, w);
    });
}

CUresult cuGraphExecHostNodeSetParams(CUgraphExec h, CUgraphNode node, const CUDA_HOST_NODE_PARAMS *p)
{
    return set_call<HostWork>(__func__, h, node, p, [&](Call &, HostWork *w, std::shared_ptr<Context> *) {
        *w = {p->fn, p->userData};
        return p->fn ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}

CUresult cuGraphNodeSetEnabled(CUgraphExec h, CUgraphNode origin, unsigned enabled)
{
    return exec_call(__func__, h, h, [&](Call &, GraphExec &exec) {
        GraphExec::Node *node = switchable(exec, origin);
        if (!node)
            return CUDA_ERROR_INVALID_VALUE;
        node->enabled = enabled != 0;
        return CUDA_SUCCESS;
    });
}

CUresult cuGraphNodeGetEnabled(CUgraphExec h, CUgraphNode origin, unsigned *enabled)
{
    return exec_call(__func__, h, enabled, [&](Call &, GraphExec &exec) {
        GraphExec::Node *node = switchable(exec, origin);
        if (!node)
            return CUDA_ERROR_INVALID_VALUE;
        *enabled = node->enabled;
        return CUDA_SUCCESS;
    });
}
