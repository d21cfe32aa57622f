// Graphs: capture, replay, update, and the calls that a capture forbids.
#include <thread>

#include "test/emu_driver_kernels.h"

namespace
{
using emu::Driver;

struct EmuGraph : testing::Test {
    emu::Device d{"8.0"};
    emu::Module m{emu::driver_kernels()};
    CUfunction add = m.get("add"), multiply = m.get("multiply");
    emu::Buffer<uint32_t> b{std::vector<uint32_t>{1, 1, 1, 1}};
    emu::Stream s;
    CUgraph graph = nullptr;
    CUgraphExec exec = nullptr;

    void begin(CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL)
    {
        ASSERT_CU(FN(cuStreamBeginCapture)(s, mode));
    }
    CUresult end() { return FN(cuStreamEndCapture)(s, &graph); }
    void instantiate() { ASSERT_CU(FN(cuGraphInstantiate)(&exec, graph, 0)); }
    void run()
    {
        ASSERT_CU(FN(cuGraphLaunch)(exec, s));
        ASSERT_CU(FN(cuStreamSynchronize)(s));
    }
    size_t nodes()
    {
        size_t n = 0;
        EXPECT_CU(FN(cuGraphGetNodes)(graph, nullptr, &n));
        return n;
    }
    CUgraphNode node(size_t i)
    {
        std::vector<CUgraphNode> all(nodes());
        size_t n = all.size();
        EXPECT_CU(FN(cuGraphGetNodes)(graph, all.data(), &n));
        return all[i];
    }
    CUDA_KERNEL_NODE_PARAMS kernel(CUfunction f, void **args)
    {
        CUDA_KERNEL_NODE_PARAMS p = {};
        p.func = f;
        p.gridDimX = p.gridDimY = p.gridDimZ = p.blockDimX = p.blockDimY = p.blockDimZ = 1;
        p.kernelParams = args;
        return p;
    }
    ~EmuGraph() override
    {
        if (exec)
            FN(cuGraphExecDestroy)(exec);
        if (graph)
            FN(cuGraphDestroy)(graph);
    }
};

TEST_F(EmuGraph, ACaptureRunsNothingAndAReplayEverything)
{
    emu::Pinned<uint32_t> out(1);
    out[0] = 0;
    begin();
    CUstreamCaptureStatus status;
    ASSERT_CU(FN(cuStreamIsCapturing)(s, &status));
    EXPECT_EQ(CU_STREAM_CAPTURE_STATUS_ACTIVE, status);
    ASSERT_CU(emu::launch_add(add, s, b.p, 1, 2));
    ASSERT_CU(emu::launch_multiply(multiply, s, b.p, 10));
    ASSERT_CU(FN(cuMemcpyDtoHAsync)(out.p, b.p, 4, s));
    ASSERT_CU(end());
    EXPECT_EQ(3u, nodes());
    ASSERT_CU(FN(cuStreamSynchronize)(s));
    EXPECT_EQ(0u, out[0]);
    EXPECT_EQ(1u, b.get()[0]);
    instantiate();
    run();
    EXPECT_EQ(30u, out[0]);
    run();
    EXPECT_EQ(320u, out[0]);
}

TEST_F(EmuGraph, OtherStreamsJoinThroughEvents)
{
    emu::Stream t;
    emu::Event fork, join;
    begin();
    ASSERT_CU(emu::launch_add(add, s, b.p, 1, 2));
    ASSERT_CU(FN(cuEventRecord)(fork, s));
    ASSERT_CU(FN(cuStreamWaitEvent)(t, fork, 0));
    ASSERT_CU(emu::launch_multiply(multiply, t, b.p, 10));
    ASSERT_CU(FN(cuEventRecord)(join, t));
    ASSERT_CU(FN(cuStreamWaitEvent)(s, join, 0));
    ASSERT_CU(emu::launch_add(add, s, b.p, 1, 5));
    ASSERT_CU(end());
    CUstreamCaptureStatus status;
    ASSERT_CU(FN(cuStreamIsCapturing)(t, &status));
    EXPECT_EQ(CU_STREAM_CAPTURE_STATUS_NONE, status);
    instantiate();
    run();
    EXPECT_EQ(35u, b.get()[0]);
    EXPECT_EQ(CUDA_ERROR_CAPTURED_EVENT, FN(cuEventQuery)(fork));
}

TEST_F(EmuGraph, AStreamThatDidNotComeBackSpoilsTheCapture)
{
    emu::Stream t;
    emu::Event fork;
    begin();
    ASSERT_CU(emu::launch_add(add, s, b.p, 1, 2));
    ASSERT_CU(FN(cuEventRecord)(fork, s));
    ASSERT_CU(FN(cuStreamWaitEvent)(t, fork, 0));
    ASSERT_CU(emu::launch_multiply(multiply, t, b.p, 10));
    EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, end());
    EXPECT_EQ(nullptr, graph);
    ASSERT_CU(FN(cuStreamSynchronize)(t));
}

TEST_F(EmuGraph, AForbiddenCallInvalidatesTheCapture)
{
    CUdeviceptr p = 0;
    begin();
    EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, CU(cuMemAlloc)(&p, 4));
    CUstreamCaptureStatus status;
    ASSERT_CU(FN(cuStreamIsCapturing)(s, &status));
    EXPECT_EQ(CU_STREAM_CAPTURE_STATUS_INVALIDATED, status);
    EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, emu::launch_add(add, s, b.p, 1, 2));
    EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, end());
    begin();
    EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, FN(cuStreamSynchronize)(s));
    EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, end());
    begin();
    EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, CU(cuCtxSynchronize)());
    EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, end());
    ASSERT_CU(CU(cuMemAlloc)(&p, 4));
    ASSERT_CU(CU(cuMemFree)(p));
}

TEST_F(EmuGraph, ARelaxedCaptureForbidsNothing)
{
    CUdeviceptr p = 0;
    begin(CU_STREAM_CAPTURE_MODE_RELAXED);
    ASSERT_CU(CU(cuMemAlloc)(&p, 4));
    ASSERT_CU(end());
    ASSERT_CU(CU(cuMemFree)(p));
}

TEST_F(EmuGraph, AThreadLocalCaptureMindsItsOwnThreadOnly)
{
    auto elsewhere = [&] {
        CUresult r = CUDA_ERROR_UNKNOWN;
        std::thread([&] {
            CUdeviceptr p = 0;
            CU(cuCtxSetCurrent)(d.ctx);
            r = CU(cuMemAlloc)(&p, 4);
        }).join();
        return r;
    };
    begin(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    EXPECT_CU(elsewhere());
    ASSERT_CU(end());
    FN(cuGraphDestroy)(graph);
    begin(CU_STREAM_CAPTURE_MODE_GLOBAL);
    EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, elsewhere());
    EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, end());
}

TEST_F(EmuGraph, TheDefaultStreamMayNotDependOnACapture)
{
    emu::Stream blocking(CU_STREAM_DEFAULT);
    ASSERT_CU(FN(cuStreamBeginCapture)(blocking, CU_STREAM_CAPTURE_MODE_GLOBAL));
    EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, emu::launch_add(add, nullptr, b.p, 1, 1));
    EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, FN(cuStreamEndCapture)(blocking, &graph));
    EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, FN(cuStreamBeginCapture)(nullptr, CU_STREAM_CAPTURE_MODE_GLOBAL));
}

TEST_F(EmuGraph, CapturesStayApart)
{
    emu::Stream t;
    emu::Event outside, inside;
    ASSERT_CU(FN(cuEventRecord)(outside, t));
    begin();
    EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, FN(cuStreamWaitEvent)(s, outside, 0));
    EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, end());
    begin();
    ASSERT_CU(FN(cuStreamBeginCapture)(t, CU_STREAM_CAPTURE_MODE_GLOBAL));
    ASSERT_CU(FN(cuEventRecord)(inside, s));
    EXPECT_EQ(CUDA_ERROR_STREAM_CAPTURE_MERGE, FN(cuStreamWaitEvent)(t, inside, 0));
    EXPECT_NE(CUDA_SUCCESS, end());
    EXPECT_NE(CUDA_SUCCESS, FN(cuStreamEndCapture)(t, &graph));
    EXPECT_EQ(CUDA_ERROR_ILLEGAL_STATE, end()) << "no capture goes on";
}

TEST_F(EmuGraph, AnUpdateTakesNewParametersOver)
{
    begin();
    ASSERT_CU(emu::launch_add(add, s, b.p, 4, 1));
    ASSERT_CU(end());
    instantiate();
    CUgraph second = nullptr;
    begin();
    ASSERT_CU(emu::launch_add(add, s, b.p, 2, 100));
    ASSERT_CU(FN(cuStreamEndCapture)(s, &second));
    CUgraphExecUpdateResultInfo info;
    ASSERT_CU(FN(cuGraphExecUpdate)(exec, second, &info));
    EXPECT_EQ(CU_GRAPH_EXEC_UPDATE_SUCCESS, info.result);
    run();
    EXPECT_EQ((std::vector<uint32_t>{101, 101, 1, 1}), b.get());
    ASSERT_CU(FN(cuGraphDestroy)(second));
    begin();
    ASSERT_CU(emu::launch_add(add, s, b.p, 2, 100));
    ASSERT_CU(emu::launch_add(add, s, b.p, 2, 100));
    ASSERT_CU(FN(cuStreamEndCapture)(s, &second));
    EXPECT_EQ(CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE, FN(cuGraphExecUpdate)(exec, second, &info));
    EXPECT_EQ(CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED, info.result);
    ASSERT_CU(FN(cuGraphDestroy)(second));
}

TEST_F(EmuGraph, TheParametersOfAnInstantiatedKernelCanBeSet)
{
    begin();
    ASSERT_CU(emu::launch_multiply(multiply, s, b.p, 3));
    ASSERT_CU(end());
    instantiate();
    CUDA_KERNEL_NODE_PARAMS p = {};
    ASSERT_CU(FN(cuGraphKernelNodeGetParams)(node(0), &p));
    EXPECT_EQ(multiply, p.func);
    EXPECT_EQ(3u, *static_cast<uint32_t *>(p.kernelParams[1]));
    uint32_t seven = 7;
    void *args[] = {&b.p, &seven};
    p.kernelParams = args;
    ASSERT_CU(FN(cuGraphExecKernelNodeSetParams)(exec, node(0), &p));
    run();
    EXPECT_EQ(7u, b.get()[0]);
}

TEST_F(EmuGraph, NodesCanBeAddedByHand)
{
    CUgraphNode fill = nullptr, first = nullptr, second = nullptr, host = nullptr, empty = nullptr;
    ASSERT_CU(FN(cuGraphCreate)(&graph, 0));
    CUDA_MEMSET_NODE_PARAMS set = {};
    set.dst = b.p;
    set.elementSize = 4;
    set.value = 2;
    set.width = set.height = 1;
    ASSERT_CU(FN(cuGraphAddMemsetNode)(&fill, graph, nullptr, 0, &set, d.ctx));
    uint32_t three = 3, ten = 10;
    void *times[] = {&b.p, &ten};
    uint32_t one = 1;
    void *plus[] = {&b.p, &one, &three};
    CUDA_KERNEL_NODE_PARAMS a = kernel(add, plus), t = kernel(multiply, times);
    ASSERT_CU(FN(cuGraphAddKernelNode)(&first, graph, &fill, 1, &a));
    ASSERT_CU(FN(cuGraphAddKernelNode)(&second, graph, &first, 1, &t));
    static int calls;
    calls = 0;
    CUDA_HOST_NODE_PARAMS h = {[](void *) { calls++; }, nullptr};
    ASSERT_CU(FN(cuGraphAddHostNode)(&host, graph, &second, 1, &h));
    ASSERT_CU(FN(cuGraphAddEmptyNode)(&empty, graph, nullptr, 0));
    CUgraphNodeType type;
    ASSERT_CU(FN(cuGraphNodeGetType)(host, &type));
    EXPECT_EQ(CU_GRAPH_NODE_TYPE_HOST, type);
    size_t roots = 0;
    ASSERT_CU(FN(cuGraphGetRootNodes)(graph, nullptr, &roots));
    EXPECT_EQ(2u, roots);
    instantiate();
    run();
    EXPECT_EQ(50u, b.get()[0]);
    EXPECT_EQ(1, calls);
    ASSERT_CU(FN(cuGraphNodeSetEnabled)(exec, second, 0));
    run();
    EXPECT_EQ(5u, b.get()[0]);
}

TEST_F(EmuGraph, ACycleCannotBeInstantiated)
{
    CUgraphNode x = nullptr, y = nullptr;
    ASSERT_CU(FN(cuGraphCreate)(&graph, 0));
    ASSERT_CU(FN(cuGraphAddEmptyNode)(&x, graph, nullptr, 0));
    ASSERT_CU(FN(cuGraphAddEmptyNode)(&y, graph, &x, 1));
    ASSERT_CU(FN(cuGraphAddDependencies)(graph, &y, &x, nullptr, 1));
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, FN(cuGraphInstantiate)(&exec, graph, 0));
    exec = nullptr;
    ASSERT_CU(FN(cuGraphRemoveDependencies)(graph, &y, &x, nullptr, 1));
    ASSERT_CU(FN(cuGraphInstantiate)(&exec, graph, 0));
}

TEST_F(EmuGraph, AnExecutableGraphOutlivesItsGraph)
{
    begin();
    ASSERT_CU(emu::launch_add(add, s, b.p, 1, 1));
    ASSERT_CU(end());
    instantiate();
    CUgraph gone = graph;
    ASSERT_CU(FN(cuGraphDestroy)(graph));
    graph = nullptr;
    run();
    EXPECT_EQ(2u, b.get()[0]);
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, FN(cuGraphDestroy)(gone));
}

TEST_F(EmuGraph, APageableSourceIsReadAtEveryLaunch)
{
    if (!Driver::get().emulated())
        GTEST_SKIP();
    static uint32_t value;
    value = 5;
    begin();
    ASSERT_CU(FN(cuMemcpyHtoDAsync)(b.p, &value, 4, s));
    ASSERT_CU(end());
    instantiate();
    run();
    EXPECT_EQ(5u, b.get()[0]);
    value = 6;
    run();
    EXPECT_EQ(6u, b.get()[0]);
}

TEST_F(EmuGraph, AGraphLaunchedIntoACaptureBecomesPartOfIt)
{
    begin();
    ASSERT_CU(emu::launch_add(add, s, b.p, 1, 2));
    ASSERT_CU(end());
    instantiate();
    CUgraph inner = graph;
    CUgraphExec inner_exec = exec;
    begin();
    ASSERT_CU(emu::launch_multiply(multiply, s, b.p, 10));
    ASSERT_CU(FN(cuGraphLaunch)(inner_exec, s));
    ASSERT_CU(emu::launch_multiply(multiply, s, b.p, 3));
    ASSERT_CU(end());
    instantiate();
    run();
    EXPECT_EQ(36u, b.get()[0]);
    FN(cuGraphExecDestroy)(inner_exec);
    FN(cuGraphDestroy)(inner);
}

TEST_F(EmuGraph, ACopyOfAGraphStandsOnItsOwn)
{
    begin();
    ASSERT_CU(emu::launch_add(add, s, b.p, 1, 2));
    ASSERT_CU(emu::launch_multiply(multiply, s, b.p, 10));
    ASSERT_CU(end());
    CUgraph copy = nullptr;
    ASSERT_CU(FN(cuGraphClone)(&copy, graph));
    ASSERT_CU(FN(cuGraphDestroy)(graph));
    graph = copy;
    size_t edges = 0;
    ASSERT_CU(FN(cuGraphGetEdges)(graph, nullptr, nullptr, nullptr, &edges));
    EXPECT_EQ(1u, edges);
    instantiate();
    run();
    EXPECT_EQ(30u, b.get()[0]);
}

TEST_F(EmuGraph, TheCaptureTellsWhatTheNextNodeDependsOn)
{
    CUstreamCaptureStatus status;
    cuuint64_t id = 0;
    CUgraph inside = nullptr;
    const CUgraphNode *after = nullptr;
    size_t n = 77;
    begin();
    ASSERT_CU(FN(cuStreamGetCaptureInfo)(s, &status, &id, &inside, &after, nullptr, &n));
    EXPECT_EQ(0u, n);
    ASSERT_CU(emu::launch_add(add, s, b.p, 1, 2));
    ASSERT_CU(FN(cuStreamGetCaptureInfo)(s, &status, &id, &inside, &after, nullptr, &n));
    ASSERT_EQ(1u, n);
    CUgraphNodeType type;
    ASSERT_CU(FN(cuGraphNodeGetType)(after[0], &type));
    EXPECT_EQ(CU_GRAPH_NODE_TYPE_KERNEL, type);
    ASSERT_CU(end());
    EXPECT_EQ(inside, graph);
}

TEST_F(EmuGraph, AnEventNodeIsRecordedByEveryLaunch)
{
    emu::Event e;
    begin();
    ASSERT_CU(emu::launch_add(add, s, b.p, 1, 2));
    ASSERT_CU(FN(cuEventRecordWithFlags)(e, s, CU_EVENT_RECORD_EXTERNAL));
    ASSERT_CU(end());
    EXPECT_CU(FN(cuEventQuery)(e));
    instantiate();
    ASSERT_CU(FN(cuGraphLaunch)(exec, s));
    if (Driver::get().emulated()) {
        EXPECT_EQ(CUDA_ERROR_NOT_READY, FN(cuEventQuery)(e));
    }
    ASSERT_CU(FN(cuEventSynchronize)(e));
    EXPECT_EQ(3u, b.get()[0]);
}
} // namespace
