// Kernels and helpers that the tests of the driver API share.
#ifndef PTXEMU_TEST_EMU_DRIVER_KERNELS_H
#define PTXEMU_TEST_EMU_DRIVER_KERNELS_H

#include "test/emu.h"

namespace emu
{

/* A driver function by its name in cuda.h, which is a macro for most: FN(cuMemFreeAsync)(...). */
#define FN(name)                                                                                                       \
    ([] {                                                                                                              \
        static const auto f = emu::Driver::get().find<decltype(&name)>(EMU_STR(name));                                 \
        return f;                                                                                                      \
    }())

inline const char *driver_kernels()
{
    return R"(
.version 8.0
.target sm_75
.address_size 64
.global .align 4 .u32 counter = 7;
.global .align 4 .b8 table[16] = {1, 2, 3, 4};
.visible .entry add(.param .u64 p, .param .u32 n, .param .u32 v)
{
    .reg .pred %p1;
    .reg .b32 %r<8>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [p];
    ld.param.u32 %r1, [n];
    ld.param.u32 %r2, [v];
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mov.u32 %r5, %tid.x;
    mad.lo.s32 %r6, %r3, %r4, %r5;
    setp.ge.u32 %p1, %r6, %r1;
    @%p1 bra DONE;
    mul.wide.u32 %rd2, %r6, 4;
    add.s64 %rd3, %rd1, %rd2;
    ld.global.u32 %r7, [%rd3];
    add.s32 %r7, %r7, %r2;
    st.global.u32 [%rd3], %r7;
DONE:
    ret;
}
.visible .entry multiply(.param .u64 p, .param .u32 v)
{
    .reg .b32 %r<4>;
    .reg .b64 %rd<2>;
    ld.param.u64 %rd1, [p];
    ld.param.u32 %r1, [v];
    ld.global.u32 %r2, [%rd1];
    mul.lo.u32 %r2, %r2, %r1;
    st.global.u32 [%rd1], %r2;
    ret;
}
.visible .entry count()
{
    .reg .b32 %r<2>;
    ld.global.u32 %r1, [counter];
    add.u32 %r1, %r1, 1;
    st.global.u32 [counter], %r1;
    ret;
}
.visible .entry small() .maxntid 64, 1, 1
{
    ret;
}
.visible .entry exact() .reqntid 32, 2, 1
{
    ret;
}
.extern .shared .align 16 .b8 dynamic[];
.visible .entry shared_user()
{
    .reg .pred %p1;
    .reg .b32 %r<3>;
    .shared .align 4 .b8 own[1024];
    mov.u32 %r2, %tid.x;
    setp.ne.u32 %p1, %r2, 0;
    @%p1 bra DONE;
    mov.u32 %r1, 5;
    st.shared.u32 [own], %r1;
    st.shared.u32 [dynamic], %r1;
DONE:
    ret;
}
.visible .entry write_at(.param .u64 p)
{
    .reg .b32 %r<2>;
    .reg .b64 %rd<2>;
    ld.param.u64 %rd1, [p];
    mov.u32 %r1, 5;
    st.global.u32 [%rd1], %r1;
    ret;
}
)";
}

inline CUresult launch_add(CUfunction f, CUstream stream, CUdeviceptr p, uint32_t n, uint32_t v)
{
    void *args[] = {&p, &n, &v};
    return CU(cuLaunchKernel)(f, (n + 31) / 32, 1, 1, 32, 1, 1, 0, stream, args, nullptr);
}
inline CUresult launch_multiply(CUfunction f, CUstream stream, CUdeviceptr p, uint32_t v)
{
    void *args[] = {&p, &v};
    return CU(cuLaunchKernel)(f, 1, 1, 1, 1, 1, 1, 0, stream, args, nullptr);
}

struct Stream {
    CUstream s = nullptr;
    explicit Stream(unsigned flags = CU_STREAM_NON_BLOCKING) { EXPECT_CU(FN(cuStreamCreate)(&s, flags)); }
    ~Stream() { FN(cuStreamDestroy)(s); }
    Stream(const Stream &) = delete;
    operator CUstream() const { return s; }
};
struct Event {
    CUevent e = nullptr;
    explicit Event(unsigned flags = CU_EVENT_DEFAULT) { EXPECT_CU(FN(cuEventCreate)(&e, flags)); }
    ~Event() { FN(cuEventDestroy)(e); }
    Event(const Event &) = delete;
    operator CUevent() const { return e; }
};
/* Page-locked host memory. */
template <class T>
struct Pinned {
    T *p = nullptr;
    explicit Pinned(size_t n) { EXPECT_CU(FN(cuMemHostAlloc)(reinterpret_cast<void **>(&p), n * sizeof(T), 0)); }
    ~Pinned() { FN(cuMemFreeHost)(p); }
    Pinned(const Pinned &) = delete;
    T &operator[](size_t i) { return p[i]; }
};

} // namespace emu

#endif
