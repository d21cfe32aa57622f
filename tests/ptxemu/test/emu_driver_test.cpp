// The driver API: devices, contexts, memory, modules, functions, launches, and what they refuse.
#include "test/emu.h"

#include <set>

namespace
{
using emu::Driver;

const char *const kernels = R"(
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
.visible .entry shared_user(.param .u64 p)
{
    .reg .b32 %r<2>;
    .reg .b64 %rd<2>;
    .shared .align 4 .b8 own[1024];
    mov.u32 %r1, 5;
    st.shared.u32 [own], %r1;
    st.shared.u32 [dynamic], %r1;
    ret;
}
.visible .entry write_null()
{
    .reg .b32 %r<2>;
    .reg .b64 %rd<2>;
    mov.u64 %rd1, 64;
    mov.u32 %r1, 5;
    st.global.u32 [%rd1], %r1;
    ret;
}
)";

TEST(EmuDriver, AddsOnTheDevice)
{
    emu::Device d("8.0");
    emu::Module m(kernels);
    emu::Buffer<uint32_t> b(std::vector<uint32_t>(100, 1));
    ASSERT_CU(emu::launch(m.get("add"), emu::Dim(4), emu::Dim(32), 0, b.p, uint32_t(100), uint32_t(41)));
    EXPECT_EQ(std::vector<uint32_t>(100, 42), b.get());
}
} // namespace
