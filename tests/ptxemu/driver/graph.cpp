/* Graphs: their making by hand, and questions about them. */
#include "driver/graph.h"

#include <algorithm>

#include "driver/copy.h"
#include "driver/launch.h"
#include "driver/memory.h"

namespace ptxemu::driver
{
namespace
{
struct TypeOf {
    CUgraphNodeType operator()(const EmptyWork &) { return CU_GRAPH_NODE_TYPE_EMPTY; }
    CUgraphNodeType operator()(const KernelWork &) { return CU_GRAPH_NODE_TYPE_KERNEL; }
    CUgraphNodeType operator()(const CopyWork &) { return CU_GRAPH_NODE_TYPE_MEMCPY; }
    CUgraphNodeType operator()(const FillWork &) { return CU_GRAPH_NODE_TYPE_MEMSET; }
    CUgraphNodeType operator()(const HostWork &) { return CU_GRAPH_NODE_TYPE_HOST; }
    CUgraphNodeType operator()(const CallbackWork &) { return CU_GRAPH_NODE_TYPE_HOST; }
    CUgraphNodeType operator()(const RecordWork &) { return CU_GRAPH_NODE_TYPE_EVENT_RECORD; }
    CUgraphNodeType operator()(const WaitWork &) { return CU_GRAPH_NODE_TYPE_WAIT_EVENT; }
    CUgraphNodeType operator()(const ExternalWork &) { return CU_GRAPH_NODE_TYPE_HOST; }
    CUgraphNodeType operator()(const FreeWork &) { return CU_GRAPH_NODE_TYPE_MEM_FREE; }
};

bool being_captured(const State &s, const Graph &graph)
{
    bool live = false;
    s.streams.each([&](const Stream &stream) { live |= stream.capture && stream.capture->graph.get() == &graph; });
    return live;
}
} // namespace

GraphNode *add_node(State &s, const std::shared_ptr<Graph> &graph, Work work, std::vector<GraphNode *> after,
                    std::shared_ptr<Context> context)
{
    auto node = std::make_shared<GraphNode>();
    node->graph = graph.get();
    node->type = std::visit(TypeOf{}, work);
    node->work = std::move(work);
    node->after = std::move(after);
    node->context = std::move(context);
    s.nodes.add(node);
    graph->nodes.push_back(node);
    return node.get();
}

void discard_nodes(State &s, Graph &graph)
{
    for (const std::shared_ptr<GraphNode> &node : graph.nodes)
        s.nodes.remove(node->handle);
    graph.nodes.clear();
}

bool find_nodes(State &s, const Graph &graph, const CUgraphNode *handles, size_t n, std::vector<GraphNode *> *out)
{
    out->clear();
    if (n && !handles)
        return false;
    for (size_t i = 0; i < n; i++) {
        std::shared_ptr<GraphNode> node = s.nodes.find(handles[i]);
        if (!node || node->graph != &graph || std::count(out->begin(), out->end(), node.get()))
            return false;
        out->push_back(node.get());
    }
    return true;
}

CUresult make_kernel(Call &c, const CUDA_KERNEL_NODE_PARAMS &p, KernelWork *work, std::shared_ptr<Context> *context)
{
    std::shared_ptr<FunctionObject> f;
    CUresult r = find_function(c, p.func ? p.func : reinterpret_cast<CUfunction>(p.kern), &f);
    if (r != CUDA_SUCCESS)
        return r;
    LaunchRequest request;
    request.grid = {p.gridDimX, p.gridDimY, p.gridDimZ};
    request.block = {p.blockDimX, p.blockDimY, p.blockDimZ};
    request.dynamic_shared = p.sharedMemBytes;
    request.params = p.kernelParams;
    request.extra = p.extra;
    if (work->launch.fn) { /* attributes stay with the node when its parameters change */
        request.cooperative = work->launch.cooperative;
        request.cluster = work->launch.cluster.count() == 1 ? Dim3{0, 0, 0} : work->launch.cluster;
    }
    *context = c.s.contexts.find(f->context->handle);
    return prepare_launch(c, *f, request, work);
}

CUresult make_fill(const State &s, const CUDA_MEMSET_NODE_PARAMS &p, FillWork *w)
{
    *w = {p.dst, p.value, p.elementSize, p.width, p.height, p.pitch};
    return check_fill(s, *w);
}

namespace
{
/* Adds a node; `make` gives its work and, where it is not the current one, its context. */
template <class Make>
CUresult add_call(const char *function, CUgraphNode *out, CUgraph h, const CUgraphNode *after, size_t n,
                  const void *params, Make &&make)
{
    return call(function, CONTEXT, [&](Call &c) -> CUresult {
        std::shared_ptr<Graph> graph = c.s.graphs.find(h);
        std::vector<GraphNode *> before;
        if (!out || !params || !graph || !find_nodes(c.s, *graph, after, n, &before))
            return CUDA_ERROR_INVALID_VALUE;
        Work work;
        std::shared_ptr<Context> context = c.context;
        CUresult r = make(c, &work, &context);
        if (r == CUDA_SUCCESS)
            *out = add_node(c.s, graph, std::move(work), std::move(before), std::move(context))->handle;
        return r;
    });
}

/* A question about, or a change of, a node whose work is a W. */
template <class W, class Body>
CUresult node_call(const char *function, CUgraphNode h, const void *params, Body &&body)
{
    return call(function, CONTEXT, [&](Call &c) -> CUresult {
        std::shared_ptr<GraphNode> node = c.s.nodes.find(h);
        W *work = node ? std::get_if<W>(&node->work) : nullptr;
        return work && params ? body(c, *node, *work) : CUDA_ERROR_INVALID_VALUE;
    });
}

template <class Body>
CUresult graph_call(const char *function, CUgraph h, const void *out, Body &&body)
{
    return call(function, INIT, [&](Call &c) -> CUresult {
        std::shared_ptr<Graph> graph = c.s.graphs.find(h);
        return graph && out ? body(c, *graph) : CUDA_ERROR_INVALID_VALUE;
    });
}

/* The way in which lists are given out: with no array, the number; with one, as many as fit, and null for the rest. */
CUresult give_list(const std::vector<CUgraphNode> &list, CUgraphNode *out, size_t *n)
{
    if (out)
        for (size_t i = 0; i < *n; i++)
            out[i] = i < list.size() ? list[i] : nullptr;
    *n = out ? std::min(*n, list.size()) : list.size();
    return CUDA_SUCCESS;
}

CUmemorytype memory_type(const State &s, uint64_t address)
{
    const Allocation *a = s.heap.find(address);
    bool host = !a || a->kind == AllocKind::pinned || a->kind == AllocKind::registered;
    return host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
}

CUDA_MEMCPY3D describe(const State &s, const CopyWork &w)
{
    CUDA_MEMCPY3D m = {};
    m.WidthInBytes = w.width;
    m.Height = w.height;
    m.Depth = w.depth;
    m.srcPitch = w.src_pitch;
    m.dstPitch = w.dst_pitch;
    m.srcHeight = w.src_pitch ? w.src_slice / w.src_pitch : 0;
    m.dstHeight = w.dst_pitch ? w.dst_slice / w.dst_pitch : 0;
    m.srcMemoryType = memory_type(s, w.src);
    m.dstMemoryType = memory_type(s, w.dst);
    m.srcDevice = w.src;
    m.dstDevice = w.dst;
    m.srcHost = reinterpret_cast<const void *>(w.src);
    m.dstHost = reinterpret_cast<void *>(w.dst);
    return m;
}

CUDA_KERNEL_NODE_PARAMS describe(GraphNode &node, KernelWork &w)
{
    CUDA_KERNEL_NODE_PARAMS p = {};
    p.func = w.handle;
    p.gridDimX = w.launch.grid.x;
    p.gridDimY = w.launch.grid.y;
    p.gridDimZ = w.launch.grid.z;
    p.blockDimX = w.launch.block.x;
    p.blockDimY = w.launch.block.y;
    p.blockDimZ = w.launch.block.z;
    p.sharedMemBytes = w.launch.dynamic_shared;
    node.param_pointers.clear();
    for (const Slot &slot : w.launch.fn->params)
        node.param_pointers.push_back(w.launch.params.data() + slot.offset);
    p.kernelParams = node.param_pointers.data();
    return p;
}
} // namespace
} // namespace ptxemu::driver

using namespace ptxemu::driver;

CUresult cuGraphCreate(CUgraph *out, unsigned flags)
{
    return call(__func__, INIT, [&](Call &c) {
        if (!out || flags)
            return CUDA_ERROR_INVALID_VALUE;
        *out = c.s.graphs.add(std::make_shared<Graph>());
        return CUDA_SUCCESS;
    });
}

CUresult cuGraphDestroy(CUgraph h)
{
    return graph_call(__func__, h, h, [&](Call &c, Graph &graph) {
        if (being_captured(c.s, graph))
            return CUDA_ERROR_ILLEGAL_STATE;
        discard_nodes(c.s, graph);
        c.s.graphs.remove(h);
        return CUDA_SUCCESS;
    });
}

CUresult cuGraphClone(CUgraph *out, CUgraph h)
{
    return graph_call(__func__, h, out, [&](Call &c, Graph &graph) {
        auto copy = std::make_shared<Graph>();
        std::map<const GraphNode *, GraphNode *> twin;
        for (auto &node : graph.nodes)
            twin[node.get()] = add_node(c.s, copy, node->work, {}, node->context);
        for (auto &node : graph.nodes)
            for (GraphNode *before : node->after)
                twin[node.get()]->after.push_back(twin[before]);
        *out = c.s.graphs.add(copy);
        return CUDA_SUCCESS;
    });
}

CUresult cuGraphAddKernelNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *after, size_t n,
                              const CUDA_KERNEL_NODE_PARAMS *p)
{
    return add_call(__func__, out, graph, after, n, p, [&](Call &c, Work *work, std::shared_ptr<Context> *context) {
        return make_kernel(c, *p, &work->emplace<KernelWork>(), context);
    });
}

CUresult cuGraphKernelNodeGetParams(CUgraphNode h, CUDA_KERNEL_NODE_PARAMS *p)
{
    return node_call<KernelWork>(__func__, h, p, [&](Call &, GraphNode &node, KernelWork &w) {
        *p = describe(node, w);
        return CUDA_SUCCESS;
    });
}

CUresult cuGraphKernelNodeSetParams(CUgraphNode h, const CUDA_KERNEL_NODE_PARAMS *p)
{
    return node_call<KernelWork>(__func__, h, p, [&](Call &c, GraphNode &node, KernelWork &w) {
        KernelWork changed = w;
        std::shared_ptr<Context> context;
        CUresult r = make_kernel(c, *p, &changed, &context);
        if (r == CUDA_SUCCESS) {
            w = std::move(changed);
            node.context = context;
        }
        return r;
    });
}

CUresult cuGraphAddMemcpyNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *after, size_t n,
                              const CUDA_MEMCPY3D *p, CUcontext owner)
{
    return add_call(__func__, out, graph, after, n, p, [&](Call &c, Work *work, std::shared_ptr<Context> *context) {
        *context = owner ? c.s.contexts.find(owner) : c.context;
        return *context ? make_copy(c.s, *p, &work->emplace<CopyWork>()) : CUDA_ERROR_INVALID_CONTEXT;
    });
}

CUresult cuGraphMemcpyNodeGetParams(CUgraphNode h, CUDA_MEMCPY3D *p)
{
    return node_call<CopyWork>(__func__, h, p, [&](Call &c, GraphNode &, CopyWork &w) {
        *p = describe(c.s, w);
        return CUDA_SUCCESS;
    });
}

CUresult cuGraphMemcpyNodeSetParams(CUgraphNode h, const CUDA_MEMCPY3D *p)
{
    return node_call<CopyWork>(__func__, h, p, [&](Call &c, GraphNode &, CopyWork &w) {
        CopyWork changed;
        CUresult r = make_copy(c.s, *p, &changed);
        if (r == CUDA_SUCCESS)
            w = changed;
        return r;
    });
}

CUresult cuGraphAddMemsetNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *after, size_t n,
                              const CUDA_MEMSET_NODE_PARAMS *p, CUcontext owner)
{
    return add_call(__func__, out, graph, after, n, p, [&](Call &c, Work *work, std::shared_ptr<Context> *context) {
        *context = owner ? c.s.contexts.find(owner) : c.context;
        return *context ? make_fill(c.s, *p, &work->emplace<FillWork>()) : CUDA_ERROR_INVALID_CONTEXT;
    });
}

CUresult cuGraphMemsetNodeGetParams(CUgraphNode h, CUDA_MEMSET_NODE_PARAMS *p)
{
    return node_call<FillWork>(__func__, h, p, [&](Call &, GraphNode &, FillWork &w) {
        *p = {w.dst, w.pitch, w.value, w.element, w.width, w.height};
        return CUDA_SUCCESS;
    });
}

CUresult cuGraphMemsetNodeSetParams(CUgraphNode h, const CUDA_MEMSET_NODE_PARAMS *p)
{
    return node_call<FillWork>(__func__, h, p, [&](Call &c, GraphNode &, FillWork &w) {
        FillWork changed;
        CUresult r = make_fill(c.s, *p, &changed);
        if (r == CUDA_SUCCESS)
            w = changed;
        return r;
    });
}

CUresult cuGraphAddHostNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *after, size_t n,
                            const CUDA_HOST_NODE_PARAMS *p)
{
    return add_call(__func__, out, graph, after, n, p, [&](Call &, Work *work, auto *) {
        *work = HostWork{p->fn, p->userData};
        return p->fn ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}

CUresult cuGraphHostNodeGetParams(CUgraphNode h, CUDA_HOST_NODE_PARAMS *p)
{
    return node_call<HostWork>(__func__, h, p, [&](Call &, GraphNode &, HostWork &w) {
        *p = {w.fn, w.data};
        return CUDA_SUCCESS;
    });
}

CUresult cuGraphHostNodeSetParams(CUgraphNode h, const CUDA_HOST_NODE_PARAMS *p)
{
    return node_call<HostWork>(__func__, h, p, [&](Call &, GraphNode &, HostWork &w) {
        if (!p->fn)
            return CUDA_ERROR_INVALID_VALUE;
        w = {p->fn, p->userData};
        return CUDA_SUCCESS;
    });
}

CUresult cuGraphAddEmptyNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *after, size_t n)
{
    return add_call(__func__, out, graph, after, n, out, [](Call &, Work *, auto *) { return CUDA_SUCCESS; });
}

CUresult cuGraphAddEventRecordNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *after, size_t n, CUevent event)
{
    return add_call(__func__, out, graph, after, n, event, [&](Call &c, Work *work, auto *) {
        std::shared_ptr<Event> found = c.s.events.find(event);
        *work = RecordWork{found};
        return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
    });
}

CUresult cuGraphAddEventWaitNode(CUgraphNode *out, CUgraph graph, const CUgraphNode *after, size_t n, CUevent event)
{
    return add_call(__func__, out, graph, after, n, event, [&](Call &c, Work *work, auto *) {
        std::shared_ptr<Event> found = c.s.events.find(event);
        *work = WaitWork{found};
        return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
    });
}

CUresult cuGraphDestroyNode(CUgraphNode h)
{
    return call(__func__, INIT, [&](Call &c) {
        std::shared_ptr<GraphNode> node = c.s.nodes.find(h);
        if (!node)
            return CUDA_ERROR_INVALID_VALUE;
        if (being_captured(c.s, *node->graph))
            return CUDA_ERROR_ILLEGAL_STATE;
        for (auto &other : node->graph->nodes) {
            auto &after = other->after;
            after.erase(std::remove(after.begin(), after.end(), node.get()), after.end());
        }
        node->graph->nodes.remove(node);
        c.s.nodes.remove(h);
        return CUDA_SUCCESS;
    });
}

CUresult cuGraphNodeGetType(CUgraphNode h, CUgraphNodeType *type)
{
    return call(__func__, INIT, [&](Call &c) {
        std::shared_ptr<GraphNode> node = c.s.nodes.find(h);
        if (!node || !type)
            return CUDA_ERROR_INVALID_VALUE;
        *type = node->type;
        return CUDA_SUCCESS;
    });
}

CUresult cuGraphGetNodes(CUgraph h, CUgraphNode *nodes, size_t *n)
{
    return graph_call(__func__, h, n, [&](Call &, Graph &graph) {
        std::vector<CUgraphNode> all;
        for (auto &node : graph.nodes)
            all.push_back(node->handle);
        return give_list(all, nodes, n);
    });
}

CUresult cuGraphGetRootNodes(CUgraph h, CUgraphNode *nodes, size_t *n)
{
    return graph_call(__func__, h, n, [&](Call &, Graph &graph) {
        std::vector<CUgraphNode> roots;
        for (auto &node : graph.nodes)
            if (node->after.empty())
                roots.push_back(node->handle);
        return give_list(roots, nodes, n);
    });
}

CUresult cuGraphGetEdges(CUgraph h, CUgraphNode *from, CUgraphNode *to, CUgraphEdgeData *data, size_t *n)
{
    return graph_call(__func__, h, n, [&](Call &, Graph &graph) {
        if (!from != !to)
            return CUDA_ERROR_INVALID_VALUE;
        std::vector<CUgraphNode> tails, heads;
        for (auto &node : graph.nodes)
            for (GraphNode *before : node->after) {
                tails.push_back(before->handle);
                heads.push_back(node->handle);
            }
        size_t room = *n;
        if (data && from)
            std::fill_n(data, room, CUgraphEdgeData{});
        give_list(tails, from, n);
        return give_list(heads, to, to ? &room : n);
    });
}

CUresult cuGraphNodeGetDependencies(CUgraphNode h, CUgraphNode *out, CUgraphEdgeData *data, size_t *n)
{
    return call(__func__, INIT, [&](Call &c) {
        std::shared_ptr<GraphNode> node = c.s.nodes.find(h);
        if (!node || !n)
            return CUDA_ERROR_INVALID_VALUE;
        std::vector<CUgraphNode> before;
        for (GraphNode *other : node->after)
            before.push_back(other->handle);
        if (data && out)
            std::fill_n(data, *n, CUgraphEdgeData{});
        return give_list(before, out, n);
    });
}

CUresult cuGraphNodeGetDependentNodes(CUgraphNode h, CUgraphNode *out, CUgraphEdgeData *data, size_t *n)
{
    return call(__func__, INIT, [&](Call &c) {
        std::shared_ptr<GraphNode> node = c.s.nodes.find(h);
        if (!node || !n)
            return CUDA_ERROR_INVALID_VALUE;
        std::vector<CUgraphNode> behind;
        for (auto &other : node->graph->nodes)
            if (std::count(other->after.begin(), other->after.end(), node.get()))
                behind.push_back(other->handle);
        if (data && out)
            std::fill_n(data, *n, CUgraphEdgeData{});
        return give_list(behind, out, n);
    });
}

CUresult cuGraphAddDependencies(CUgraph h, const CUgraphNode *from, const CUgraphNode *to, const CUgraphEdgeData *data,
                                size_t n)
{
    return graph_call(__func__, h, h, [&](Call &c, Graph &graph) {
        if (data)
            return CUDA_ERROR_NOT_SUPPORTED; /* programmatic edges */
        if (n && (!from || !to))
            return CUDA_ERROR_INVALID_VALUE;
        std::vector<GraphNode *> tail, head;
        for (size_t i = 0; i < n; i++)
            if (!find_nodes(c.s, graph, &from[i], 1, &tail) || !find_nodes(c.s, graph, &to[i], 1, &head) ||
                tail == head || std::count(head[0]->after.begin(), head[0]->after.end(), tail[0]))
                return CUDA_ERROR_INVALID_VALUE;
        for (size_t i = 0; i < n; i++)
            c.s.nodes.find(to[i])->after.push_back(c.s.nodes.find(from[i]).get());
        return CUDA_SUCCESS;
    });
}

CUresult cuGraphRemoveDependencies(CUgraph h, const CUgraphNode *from, const CUgraphNode *to,
                                   const CUgraphEdgeData *data, size_t n)
{
    return graph_call(__func__, h, h, [&](Call &c, Graph &graph) {
        if (data)
            return CUDA_ERROR_NOT_SUPPORTED;
        if (n && (!from || !to))
            return CUDA_ERROR_INVALID_VALUE;
        std::vector<GraphNode *> tail, head;
        for (size_t i = 0; i < n; i++) {
            if (!find_nodes(c.s, graph, &from[i], 1, &tail) || !find_nodes(c.s, graph, &to[i], 1, &head))
                return CUDA_ERROR_INVALID_VALUE;
            auto it = std::find(head[0]->after.begin(), head[0]->after.end(), tail[0]);
            if (it == head[0]->after.end())
                return CUDA_ERROR_INVALID_VALUE;
            head[0]->after.erase(it);
        }
        return CUDA_SUCCESS;
    });
}
