/* Graphs. */
#include "driver/graph.h"

#include <algorithm>

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
        if (!node || node->graph != &graph)
            return false;
        out->push_back(node.get());
    }
    return true;
}

} // namespace ptxemu::driver
