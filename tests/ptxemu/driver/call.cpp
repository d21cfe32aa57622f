#include "driver/call.h"

#include <cstdio>
#include <cstring>

#include "driver/graph.h"

namespace ptxemu::driver
{
namespace
{
/* "cuMemAlloc_v2" -> "cuMemAlloc" */
std::string unversioned(const char *function)
{
    std::string s = function;
    size_t at = s.rfind("_v");
    return at != std::string::npos && at + 3 == s.size() ? s.substr(0, at) : s;
}
} // namespace

CUresult Call::begin(const char *function, unsigned needs)
{
    if (int ordered = s.settings.fail.strike(unversioned(function)))
        return CUresult(ordered);
    if ((needs & INIT) && !s.initialised)
        return CUDA_ERROR_NOT_INITIALIZED;
    if ((needs & CONTEXT) != CONTEXT)
        return CUDA_SUCCESS;
    std::vector<CUcontext> &stack = current_stack(s);
    if (stack.empty() || !stack.back())
        return CUDA_ERROR_INVALID_CONTEXT;
    context = s.contexts.find(stack.back());
    if (!context || (context->primary && !context->active))
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (context->sticky != CUDA_SUCCESS && !(needs & EVEN_AFTER_FAULT))
        return context->sticky;
    return needs & UNSAFE_IN_CAPTURE ? unsafe_in_capture(s) : CUDA_SUCCESS;
}

CUresult Call::end(const char *function, CUresult r)
{
    if (!s.settings.trace)
        return r;
    const char *name = nullptr;
    cuGetErrorName(r, &name);
    fprintf(stderr, "ptxemu: %s = %s\n", unversioned(function).c_str(), name ? name : format("%d", int(r)).c_str());
    return r;
}

std::shared_ptr<Stream> Call::stream(CUstream h)
{
    if (h == nullptr || h == CU_STREAM_LEGACY)
        return context->legacy;
    if (h != CU_STREAM_PER_THREAD)
        return s.streams.find(h);
    std::shared_ptr<Stream> &own = context->per_thread[std::this_thread::get_id()];
    if (!own) {
        own = std::make_shared<Stream>();
        own->context = context.get();
        own->id = s.next_id++;
    }
    return own;
}

} // namespace ptxemu::driver
