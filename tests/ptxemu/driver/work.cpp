/* The execution of a piece of work. */
#include "driver/work.h"

#include <cstring>

#include "driver/launch.h"
#include "driver/state.h"

namespace ptxemu::driver
{
namespace
{
/* A copy takes the marks of never-written bytes along. */
void copy_row(Heap &heap, uint64_t dst, uint64_t src, size_t bytes)
{
    const Allocation *to = heap.find(dst), *from = heap.find(src);
    memmove(reinterpret_cast<void *>(dst), reinterpret_cast<const void *>(src), bytes);
    if (!to || !to->written)
        return;
    if (from && from->written)
        memmove(to->written + (dst - to->address), from->written + (src - from->address), bytes);
    else
        heap.mark_written(dst, bytes);
}

struct Executor {
    Context &context;
    Heap &heap;

    void operator()(const EmptyWork &) {}
    void operator()(const KernelWork &k) { run_kernel(context, k); }
    void operator()(const CopyWork &c)
    {
        for (size_t z = 0; z < c.depth; z++)
            for (size_t y = 0; y < c.height; y++)
                copy_row(heap, c.dst + z * c.dst_slice + y * c.dst_pitch, c.src + z * c.src_slice + y * c.src_pitch,
                         c.width);
    }
    void operator()(const FillWork &f)
    {
        for (size_t y = 0; y < f.height; y++) {
            uint64_t row = f.dst + y * f.pitch;
            for (size_t x = 0; x < f.width; x++)
                memcpy(reinterpret_cast<uint8_t *>(row) + x * f.element, &f.value, f.element);
            heap.mark_written(row, f.width * f.element);
        }
    }
    void operator()(const HostWork &h) { h.fn(h.data); }
    void operator()(const CallbackWork &c) { c.fn(c.stream, CUDA_SUCCESS, c.data); }
    void operator()(const RecordWork &) {}   /* the operation's own time is the event's */
    void operator()(const WaitWork &) {}     /* ordering is the queue's */
    void operator()(const ExternalWork &) {} /* attempted by the queue */
    void operator()(const FreeWork &f)
    {
        State &s = State::get();
        std::lock_guard<std::mutex> guard(s.mutex);
        s.release_allocation(f.address);
    }
};
} // namespace

void execute(Context &context, const Work &work)
{
    std::visit(Executor{context, State::get().heap}, work);
}

} // namespace ptxemu::driver
