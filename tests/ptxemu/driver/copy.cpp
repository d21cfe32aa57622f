/* Copies and fills. */
#include "driver/copy.h"

#include "driver/graph.h"
#include "driver/memory.h"

namespace ptxemu::driver
{
namespace
{
/* What a function's name says about an end of a copy. */
enum class End { device, host, either };

bool valid_end(const State &s, End end, uint64_t address, size_t bytes)
{
    if (!bytes)
        return true;
    if (!address)
        return false;
    if (end == End::device)
        return allocation_of(s, address, bytes) != nullptr;
    return pageable(s, address) || allocation_of(s, address, bytes) != nullptr;
}

size_t span(size_t width, size_t height, size_t pitch, size_t depth = 1, size_t slice = 0)
{
    return width && height && depth ? (depth - 1) * slice + (height - 1) * pitch + width : 0;
}

size_t source_bytes(const CopyWork &w)
{
    return span(w.width, w.height, w.src_pitch, w.depth, w.src_slice);
}
size_t target_bytes(const CopyWork &w)
{
    return span(w.width, w.height, w.dst_pitch, w.depth, w.dst_slice);
}

/* The real driver stages pageable memory while the call lasts; so the host may change it afterwards. A graph reads it
 * when it runs. */
void take_snapshot(Call &c, const Stream &stream, CopyWork *w)
{
    if (stream.capture || !pageable(c.s, w->src) || !source_bytes(*w))
        return;
    const uint8_t *from = reinterpret_cast<const uint8_t *>(w->src);
    w->snapshot = std::make_shared<std::vector<uint8_t>>(from, from + source_bytes(*w));
    w->src = reinterpret_cast<uint64_t>(w->snapshot->data());
}

/* `lasting`: the call waits for the copy, so that pageable memory cannot change under it. */
CUresult submit_copy(Call &c, CUstream h, End to, End from, CopyWork w, bool lasting)
{
    std::shared_ptr<Stream> stream = c.stream(h);
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!valid_end(c.s, to, w.dst, target_bytes(w)) || !valid_end(c.s, from, w.src, source_bytes(w)))
        return CUDA_ERROR_INVALID_VALUE;
    if (!lasting)
        take_snapshot(c, *stream, &w);
    return c.submit(stream, std::move(w));
}

CUresult copy_async(Call &c, CUstream h, End to, End from, const CopyWork &w)
{
    return submit_copy(c, h, to, from, w, false);
}

/* What the synchronous calls may not do while a stream captures. */
CUresult allowed_now(Call &c)
{
    CUresult r = implicit_in_capture(c.s, *c.context->legacy);
    return r != CUDA_SUCCESS ? r : unsafe_in_capture(c.s);
}

bool on_device(const State &s, uint64_t address)
{
    const Allocation *a = s.heap.find(address);
    return a && (a->kind == AllocKind::device || a->kind == AllocKind::module_global);
}

/* A synchronous copy is one in the legacy default stream, waited for; but those within the device are not waited for. */
CUresult copy(Call &c, End to, End from, const CopyWork &w)
{
    CUresult r = allowed_now(c);
    if (r != CUDA_SUCCESS)
        return r;
    r = submit_copy(c, CU_STREAM_LEGACY, to, from, w, true);
    if (r != CUDA_SUCCESS || (on_device(c.s, w.dst) && on_device(c.s, w.src)))
        return r;
    return c.wait(c.context->legacy->last);
}

CopyWork plain(uint64_t dst, uint64_t src, size_t bytes)
{
    CopyWork w;
    w.dst = dst;
    w.src = src;
    w.width = bytes;
    return w;
}
uint64_t address(const void *p)
{
    return reinterpret_cast<uint64_t>(p);
}

CUresult copy_call(const char *function, End to, End from, uint64_t dst, uint64_t src, size_t bytes)
{
    return call(function, CONTEXT, [&](Call &c) { return copy(c, to, from, plain(dst, src, bytes)); });
}
CUresult copy_async_call(const char *function, CUstream h, End to, End from, uint64_t dst, uint64_t src, size_t bytes)
{
    return call(function, CONTEXT, [&](Call &c) { return copy_async(c, h, to, from, plain(dst, src, bytes)); });
}

/* One end of a 2D or 3D copy: its first byte, and whether it is device memory.  Arrays are not there. */
CUresult end_of(CUmemorytype type, CUdeviceptr device, const void *host, size_t offset, End *end, uint64_t *at)
{
    switch (type) {
    case CU_MEMORYTYPE_DEVICE:
    case CU_MEMORYTYPE_UNIFIED:
        *end = type == CU_MEMORYTYPE_DEVICE ? End::device : End::either;
        *at = device + offset;
        return CUDA_SUCCESS;
    case CU_MEMORYTYPE_HOST:
        *end = End::host;
        *at = address(host) + offset;
        return CUDA_SUCCESS;
    case CU_MEMORYTYPE_ARRAY:
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_ERROR_INVALID_VALUE;
}

CUresult rectangle(const CUDA_MEMCPY2D &m, End *to, End *from, CopyWork *w)
{
    w->width = m.WidthInBytes;
    w->height = m.Height;
    w->src_pitch = m.srcPitch ? m.srcPitch : m.WidthInBytes;
    w->dst_pitch = m.dstPitch ? m.dstPitch : m.WidthInBytes;
    if (w->src_pitch < m.srcXInBytes + m.WidthInBytes || w->dst_pitch < m.dstXInBytes + m.WidthInBytes)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = end_of(m.srcMemoryType, m.srcDevice, m.srcHost, m.srcY * w->src_pitch + m.srcXInBytes, from, &w->src);
    return r ? r : end_of(m.dstMemoryType, m.dstDevice, m.dstHost, m.dstY * w->dst_pitch + m.dstXInBytes, to, &w->dst);
}

CUresult box(const CUDA_MEMCPY3D &m, End *to, End *from, CopyWork *w)
{
    if (m.srcLOD || m.dstLOD)
        return CUDA_ERROR_INVALID_VALUE;
    w->width = m.WidthInBytes;
    w->height = m.Height;
    w->depth = m.Depth;
    w->src_pitch = m.srcPitch ? m.srcPitch : m.WidthInBytes;
    w->dst_pitch = m.dstPitch ? m.dstPitch : m.WidthInBytes;
    w->src_slice = w->src_pitch * (m.srcHeight ? m.srcHeight : m.Height);
    w->dst_slice = w->dst_pitch * (m.dstHeight ? m.dstHeight : m.Height);
    if (w->src_pitch < m.srcXInBytes + m.WidthInBytes || w->dst_pitch < m.dstXInBytes + m.WidthInBytes)
        return CUDA_ERROR_INVALID_VALUE;
    size_t src_at = m.srcZ * w->src_slice + m.srcY * w->src_pitch + m.srcXInBytes;
    size_t dst_at = m.dstZ * w->dst_slice + m.dstY * w->dst_pitch + m.dstXInBytes;
    CUresult r = end_of(m.srcMemoryType, m.srcDevice, m.srcHost, src_at, from, &w->src);
    return r ? r : end_of(m.dstMemoryType, m.dstDevice, m.dstHost, dst_at, to, &w->dst);
}

/* Both shapes, synchronous or in a stream. */
template <class Shape, class Describe>
CUresult shaped_call(const char *function, const Shape *m, Describe describe, const CUstream *h)
{
    return call(function, CONTEXT, [&](Call &c) {
        End to = End::either, from = End::either;
        CopyWork w;
        CUresult r = m ? describe(*m, &to, &from, &w) : CUDA_ERROR_INVALID_VALUE;
        if (r != CUDA_SUCCESS)
            return r;
        return h ? copy_async(c, *h, to, from, w) : copy(c, to, from, w);
    });
}

/* Fills are not waited for, on hardware either, unless their target is host memory. */
CUresult fill_call(const char *function, const CUstream *h, uint64_t dst, size_t pitch, uint32_t value,
                   unsigned element, size_t width, size_t height)
{
    return call(function, CONTEXT, [&](Call &c) {
        std::shared_ptr<Stream> stream = c.stream(h ? *h : CU_STREAM_LEGACY);
        if (!stream)
            return CUDA_ERROR_INVALID_HANDLE;
        FillWork w{dst, value, element, width, height, pitch};
        CUresult r = h ? CUDA_SUCCESS : allowed_now(c);
        if (r == CUDA_SUCCESS)
            r = check_fill(c.s, w);
        if (r == CUDA_SUCCESS && width && height)
            r = c.submit(stream, w);
        return r != CUDA_SUCCESS || h || on_device(c.s, dst) ? r : c.wait(stream->last);
    });
}
} // namespace

CUresult make_copy(const State &s, const CUDA_MEMCPY3D &m, CopyWork *w)
{
    End to = End::either, from = End::either;
    CUresult r = box(m, &to, &from, w);
    if (r != CUDA_SUCCESS)
        return r;
    bool good = valid_end(s, to, w->dst, target_bytes(*w)) && valid_end(s, from, w->src, source_bytes(*w));
    return good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult check_fill(const State &s, const FillWork &w)
{
    if (w.element != 1 && w.element != 2 && w.element != 4)
        return CUDA_ERROR_INVALID_VALUE;
    if (!w.width || !w.height)
        return CUDA_SUCCESS;
    bool rows = w.height == 1 || (w.pitch % w.element == 0 && w.pitch >= w.width * w.element);
    bool good = rows && w.dst % w.element == 0 && allocation_of(s, w.dst, span(w.width * w.element, w.height, w.pitch));
    return good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
} // namespace ptxemu::driver

using namespace ptxemu;
using namespace ptxemu::driver;

CUresult cuMemcpyHtoD(CUdeviceptr dst, const void *src, size_t bytes)
{
    return copy_call(__func__, End::device, End::host, dst, address(src), bytes);
}
CUresult cuMemcpyDtoH(void *dst, CUdeviceptr src, size_t bytes)
{
    return copy_call(__func__, End::host, End::device, address(dst), src, bytes);
}
CUresult cuMemcpyDtoD(CUdeviceptr dst, CUdeviceptr src, size_t bytes)
{
    return copy_call(__func__, End::device, End::device, dst, src, bytes);
}
CUresult cuMemcpy(CUdeviceptr dst, CUdeviceptr src, size_t bytes)
{
    return copy_call(__func__, End::either, End::either, dst, src, bytes);
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr dst, const void *src, size_t bytes, CUstream stream)
{
    return copy_async_call(__func__, stream, End::device, End::host, dst, address(src), bytes);
}
CUresult cuMemcpyDtoHAsync(void *dst, CUdeviceptr src, size_t bytes, CUstream stream)
{
    return copy_async_call(__func__, stream, End::host, End::device, address(dst), src, bytes);
}
CUresult cuMemcpyDtoDAsync(CUdeviceptr dst, CUdeviceptr src, size_t bytes, CUstream stream)
{
    return copy_async_call(__func__, stream, End::device, End::device, dst, src, bytes);
}
CUresult cuMemcpyAsync(CUdeviceptr dst, CUdeviceptr src, size_t bytes, CUstream stream)
{
    return copy_async_call(__func__, stream, End::either, End::either, dst, src, bytes);
}

namespace
{
/* Copies between devices work with and without peer access: without it the driver stages them through the host. */
CUresult peer_call(const char *function, CUdeviceptr dst, CUcontext to, CUdeviceptr src, CUcontext from, size_t bytes,
                   const CUstream *h)
{
    return call(function, CONTEXT, [&](Call &c) {
        if (!c.s.contexts.find(to) || !c.s.contexts.find(from))
            return CUDA_ERROR_INVALID_CONTEXT;
        CopyWork w = plain(dst, src, bytes);
        return h ? copy_async(c, *h, End::device, End::device, w) : copy(c, End::device, End::device, w);
    });
}
} // namespace

CUresult cuMemcpyPeer(CUdeviceptr dst, CUcontext to, CUdeviceptr src, CUcontext from, size_t bytes)
{
    return peer_call(__func__, dst, to, src, from, bytes, nullptr);
}
CUresult cuMemcpyPeerAsync(CUdeviceptr dst, CUcontext to, CUdeviceptr src, CUcontext from, size_t bytes,
                           CUstream stream)
{
    return peer_call(__func__, dst, to, src, from, bytes, &stream);
}

CUresult cuMemcpy2D(const CUDA_MEMCPY2D *m)
{
    return shaped_call(__func__, m, rectangle, nullptr);
}
CUresult cuMemcpy2DUnaligned(const CUDA_MEMCPY2D *m)
{
    return shaped_call(__func__, m, rectangle, nullptr);
}
CUresult cuMemcpy2DAsync(const CUDA_MEMCPY2D *m, CUstream stream)
{
    return shaped_call(__func__, m, rectangle, &stream);
}
CUresult cuMemcpy3D(const CUDA_MEMCPY3D *m)
{
    return shaped_call(__func__, m, box, nullptr);
}
CUresult cuMemcpy3DAsync(const CUDA_MEMCPY3D *m, CUstream stream)
{
    return shaped_call(__func__, m, box, &stream);
}

CUresult cuMemsetD8(CUdeviceptr dst, unsigned char value, size_t n)
{
    return fill_call(__func__, nullptr, dst, 0, value, 1, n, 1);
}
CUresult cuMemsetD16(CUdeviceptr dst, unsigned short value, size_t n)
{
    return fill_call(__func__, nullptr, dst, 0, value, 2, n, 1);
}
CUresult cuMemsetD32(CUdeviceptr dst, unsigned value, size_t n)
{
    return fill_call(__func__, nullptr, dst, 0, value, 4, n, 1);
}
CUresult cuMemsetD8Async(CUdeviceptr dst, unsigned char value, size_t n, CUstream stream)
{
    return fill_call(__func__, &stream, dst, 0, value, 1, n, 1);
}
CUresult cuMemsetD16Async(CUdeviceptr dst, unsigned short value, size_t n, CUstream stream)
{
    return fill_call(__func__, &stream, dst, 0, value, 2, n, 1);
}
CUresult cuMemsetD32Async(CUdeviceptr dst, unsigned value, size_t n, CUstream stream)
{
    return fill_call(__func__, &stream, dst, 0, value, 4, n, 1);
}
CUresult cuMemsetD2D8(CUdeviceptr dst, size_t pitch, unsigned char value, size_t width, size_t height)
{
    return fill_call(__func__, nullptr, dst, pitch, value, 1, width, height);
}
CUresult cuMemsetD2D16(CUdeviceptr dst, size_t pitch, unsigned short value, size_t width, size_t height)
{
    return fill_call(__func__, nullptr, dst, pitch, value, 2, width, height);
}
CUresult cuMemsetD2D32(CUdeviceptr dst, size_t pitch, unsigned value, size_t width, size_t height)
{
    return fill_call(__func__, nullptr, dst, pitch, value, 4, width, height);
}
CUresult cuMemsetD2D8Async(CUdeviceptr dst, size_t pitch, unsigned char value, size_t width, size_t height,
                           CUstream stream)
{
    return fill_call(__func__, &stream, dst, pitch, value, 1, width, height);
}
CUresult cuMemsetD2D16Async(CUdeviceptr dst, size_t pitch, unsigned short value, size_t width, size_t height,
                            CUstream stream)
{
    return fill_call(__func__, &stream, dst, pitch, value, 2, width, height);
}
CUresult cuMemsetD2D32Async(CUdeviceptr dst, size_t pitch, unsigned value, size_t width, size_t height, CUstream stream)
{
    return fill_call(__func__, &stream, dst, pitch, value, 4, width, height);
}

namespace
{
/* A write in stream order, as wide as `element`. */
CUresult write_value(Call &c, CUstream h, uint64_t address, uint64_t value, unsigned element, unsigned flags)
{
    std::shared_ptr<Stream> stream = c.stream(h);
    if (!stream)
        return CUDA_ERROR_INVALID_HANDLE;
    if ((flags & ~unsigned(CU_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER)) || address % element ||
        !allocation_of(c.s, address, element))
        return CUDA_ERROR_INVALID_VALUE;
    CopyWork w;
    w.dst = address;
    w.width = element;
    const uint8_t *bytes = reinterpret_cast<const uint8_t *>(&value);
    w.snapshot = std::make_shared<std::vector<uint8_t>>(bytes, bytes + element);
    w.src = reinterpret_cast<uint64_t>(w.snapshot->data());
    return c.submit(stream, std::move(w));
}
} // namespace

CUresult cuStreamWriteValue32(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned flags)
{
    return call(__func__, CONTEXT, [&](Call &c) { return write_value(c, stream, address, value, 4, flags); });
}

CUresult cuStreamWriteValue64(CUstream stream, CUdeviceptr address, cuuint64_t value, unsigned flags)
{
    return call(__func__, CONTEXT, [&](Call &c) { return write_value(c, stream, address, value, 8, flags); });
}
