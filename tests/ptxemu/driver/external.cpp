/* For libraries that stand beside the driver: operations of theirs in our streams, and device memory from within them. */
#include <cstring>

#include "driver/call.h"

using namespace ptxemu;
using namespace ptxemu::driver;

int ptxemu_enqueue(CUstream h, int (*attempt)(void *), void *user, void (*drop)(void *))
{
    return call(__func__, CONTEXT, [&](Call &c) -> CUresult {
        std::shared_ptr<Stream> stream = c.stream(h);
        if (!stream)
            return CUDA_ERROR_INVALID_HANDLE;
        if (!attempt)
            return CUDA_ERROR_INVALID_VALUE;
        auto e = std::make_shared<External>();
        e->attempt = attempt;
        e->user = user;
        CUresult r = c.submit(stream, ExternalWork{e});
        if (r == CUDA_SUCCESS) /* a caller that was refused keeps what is its own */
            e->drop = drop;
        return r;
    });
}

namespace
{
/* The allocation that holds the whole range; null: nobody's, freed, or too short. */
const Allocation *whole(uint64_t address, uint64_t bytes)
{
    const Allocation *a = State::get().heap.find(address);
    return a && !a->freed && bytes <= a->bytes && address - a->address <= a->bytes - bytes ? a : nullptr;
}
} // namespace

int ptxemu_read(void *to, unsigned long long from, unsigned long long bytes)
{
    if (bytes == 0)
        return CUDA_SUCCESS;
    if (!whole(from, bytes))
        return CUDA_ERROR_ILLEGAL_ADDRESS;
    memcpy(to, reinterpret_cast<const void *>(from), bytes);
    return CUDA_SUCCESS;
}

int ptxemu_write(unsigned long long to, const void *from, unsigned long long bytes)
{
    if (bytes == 0)
        return CUDA_SUCCESS;
    if (!whole(to, bytes))
        return CUDA_ERROR_ILLEGAL_ADDRESS;
    memcpy(reinterpret_cast<void *>(to), from, bytes);
    State::get().heap.mark_written(to, bytes);
    return CUDA_SUCCESS;
}
