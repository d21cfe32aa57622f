/* What the checks of memory accesses find, each beside a twin that is right and must pass. */
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "test/ptx_text.h"

namespace
{
constexpr unsigned THREADS = 64;
constexpr size_t BYTES = 256; /* of %a and %b: a word for each thread */

struct Case {
    const char *what;
    std::string wrong, right;
    CUresult result;
    std::vector<std::string> report; /* must be in it */
    std::string variables = "", locals = "";
    unsigned shared = 0;
    bool fill_a = true;
    unsigned threads = THREADS;
};

const CUresult ADDRESS = CUDA_ERROR_ILLEGAL_ADDRESS, ALIGNMENT = CUDA_ERROR_MISALIGNED_ADDRESS,
               SPACE = CUDA_ERROR_INVALID_ADDRESS_SPACE, OTHER = CUDA_ERROR_LAUNCH_FAILED;

CUresult run(const Case &c, const std::string &body, const char *check = "1")
{
    emu::Device device("9.0", {{"NB_EMU_CHECK", check}});
    CUdeviceptr a = 0, b = 0;
    EXPECT_CU(CU(cuMemAlloc)(&a, BYTES));
    EXPECT_CU(CU(cuMemAlloc)(&b, BYTES));
    if (c.fill_a)
        EXPECT_CU(CU(cuMemsetD8)(a, 1, BYTES));
    emu::Text t{body, c.variables, c.locals};
    return emu::run(t, c.threads, a, b, 0, c.shared);
}

void expect(const std::vector<Case> &cases)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "a GPU does not check";
    for (const Case &c : cases) {
        SCOPED_TRACE(c.what);
        EXPECT_EQ(c.result, run(c, c.wrong)) << emu::report();
        const std::string report = emu::report();
        for (const std::string &part : c.report)
            EXPECT_NE(std::string::npos, report.find(part)) << "`" << part << "` is not in:\n" << report;
        EXPECT_EQ(CUDA_SUCCESS, run(c, c.right)) << emu::report();
        EXPECT_EQ("", emu::report());
    }
}

/* Thread's word of %a and %b. */
const std::string OWN = "mad.lo.u64 %d0, %t, 4, %a;\nmad.lo.u64 %d1, %t, 4, %b;\n";
const std::string SHARED = ".shared .align 16 .b8 buffer[256];\n";
const std::string LOCAL = ".local .align 16 .b8 mine[16];\n";
const std::string SHARED_OWN = "shl.b32 %r1, %i, 2;\nmov.u32 %r2, buffer;\nadd.u32 %r1, %r1, %r2;\n";
const std::string TABLE = ".const .align 4 .u32 table[4] = {1, 2, 3, 4};\n";
} // namespace

TEST(AccessCheck, GlobalMemoryEndsWhereItsAllocationEnds)
{
    expect({
        {"one word too far",
         OWN + "ld.global.u32 %r0, [%d0+4];",
         OWN + "ld.global.u32 %r0, [%d0];",
         ADDRESS,
         {"out-of-bounds access", "reads 4 bytes of global memory at 0x",
          "right past the end of the 256-byte allocation #1 (cuMemAlloc)", "thread (63,0,0)"}},
        {"a store one word too far",
         OWN + "st.global.u32 [%d0+4], 0;",
         OWN + "st.global.u32 [%d0], 0;",
         ADDRESS,
         {"writes 4 bytes of global memory", "right past the end of the 256-byte allocation #1"}},
        {"before the start",
         OWN + "ld.global.u32 %r0, [%d0+-8];",
         OWN + "ld.global.u32 %r0, [%d0+0];",
         ADDRESS,
         {"8 bytes before the start of the 256-byte allocation #1", "thread (0,0,0)"}},
        {"between two allocations",
         "add.u64 %d0, %a, %b;\nshr.u64 %d0, %d0, 1;\nand.b64 %d0, %d0, -16;\nld.u32 %r0, [%d0];",
         "ld.u32 %r0, [%a];",
         ADDRESS,
         {"out-of-bounds access"}},
        {"half inside",
         "ld.global.v4.u32 {%r0,%r1,%r2,%r3}, [%a+256];",
         "ld.global.v4.u32 {%r0,%r1,%r2,%r3}, [%a+240];",
         ADDRESS,
         {"reads 16 bytes"}},
        {"null", "ld.global.u32 %r0, [%c];", "ld.global.u32 %r0, [%a];", ADDRESS, {"a null pointer"}},
        {"null, with an offset", "ld.u32 %r0, [%c+64];", "ld.u32 %r0, [%a+64];", ADDRESS, {"a null pointer"}},
        {"nowhere",
         "mov.u64 %d0, 0x400000000000;\nld.u32 %r0, [%d0];",
         "ld.u32 %r0, [%a+64];",
         ADDRESS,
         {"with no allocation near it"}},
        {"an atomic",
         OWN + "atom.global.add.u32 %r0, [%d0+4], 1;",
         OWN + "atom.global.add.u32 %r0, [%d0], 1;",
         ADDRESS,
         {"updates 4 bytes"}},
        {"one lane of many",
         OWN + "setp.eq.u32 %p0, %i, 37;\nselp.b64 %d2, 1024, 0, %p0;\nadd.u64 %d0, %d0, %d2;\n"
               "ld.global.u32 %r0, [%d0];",
         OWN + "ld.global.u32 %r0, [%d0];",
         ADDRESS,
         {"thread (37,0,0)"}},
        {"a module's variable",
         "ld.global.u32 %r0, [numbers+12];",
         "ld.global.u32 %r0, [numbers+8];",
         ADDRESS,
         {"right past the end of the 12-byte variable", "(numbers)"},
         ".global .align 4 .u32 numbers[3] = {1, 2, 3};\n"},
    });
}

TEST(AccessCheck, BoundsAreCheckedEvenWithoutTheChecks)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "a GPU does not check";
    const Case c{"", "", "", ADDRESS, {}, "", SHARED};
    EXPECT_EQ(ADDRESS, run(c, OWN + "ld.global.u32 %r0, [%d0+4];", "0"));
    EXPECT_EQ(ADDRESS, run(c, "ld.shared.u32 %r0, [buffer+256];", "0"));
    EXPECT_EQ(ALIGNMENT, run(c, "ld.global.u32 %r0, [%a+2];", "0"));
    EXPECT_EQ(CUDA_SUCCESS, run(c, "ld.global.u32 %r0, [%b];", "0")) << "never written";
    EXPECT_EQ(CUDA_SUCCESS, run(c, OWN + "ld.global.u32 %r0, [%d0];\nst.global.u32 [%d1], %r0;", "0"));
}

TEST(AccessCheck, FreedMemoryIsNamed)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "a GPU does not check";
    for (bool wrong : {true, false}) {
        emu::Device device;
        CUdeviceptr a = 0, other = 0;
        ASSERT_CU(CU(cuMemAlloc)(&a, 1000));
        ASSERT_CU(CU(cuMemsetD8)(a, 1, 1000));
        emu::Module m(emu::Text{"ld.global.u32 %r0, [%a+16];"}.str());
        ASSERT_CU(emu::launch(m.get("k"), 1, 32, 0, a, a, a));
        if (wrong)
            ASSERT_CU(CU(cuMemFree)(a));
        ASSERT_CU(CU(cuMemAlloc)(&other, 1000));
        EXPECT_EQ(wrong ? ADDRESS : CUDA_SUCCESS, emu::launch(m.get("k"), 1, 32, 0, a, a, a));
        if (wrong) {
            EXPECT_NE(std::string::npos, emu::report().find("use after free")) << emu::report();
            EXPECT_NE(std::string::npos, emu::report().find("16 bytes into the 1000-byte allocation #1"))
                << emu::report();
        }
    }
}

TEST(AccessCheck, EveryWidthHasToBeAligned)
{
    std::vector<Case> cases;
    struct Width {
        const char *type, *regs;
        unsigned bytes;
    };
    static const Width widths[] = {{"u16", "%h0", 2},           {"u32", "%r0", 4},
                                   {"f32", "%f0", 4},           {"u64", "%d0", 8},
                                   {"v2.u8", "{%h0,%h1}", 2},   {"v4.u8", "{%h0,%h1,%h2,%h3}", 4},
                                   {"v2.u32", "{%r0,%r1}", 8},  {"v4.u32", "{%r0,%r1,%r2,%r3}", 16},
                                   {"v2.u64", "{%d0,%d1}", 16}, {"v4.f32", "{%f0,%f1,%f2,%f3}", 16}};
    for (const Width &w : widths)
        for (const char *space : {".global", ".shared", ".local"})
            for (unsigned off : {1u, w.bytes / 2}) {
                const std::string base = space[1] == 'g' ? "%a" : space[1] == 's' ? "buffer" : "mine";
                const std::string fill = space[1] == 's' ? "st.shared.v4.u32 [buffer], {0,0,0,0};\nbar.warp.sync -1;\n"
                                                           "st.shared.v4.u32 [buffer+16], {0,0,0,0};\n"
                                         : space[1] == 'l' ? "st.local.v4.u32 [mine], {0,0,0,0};\n"
                                                           : "";
                const std::string load = std::string("ld") + space + "." + w.type + " " + w.regs + ", [" + base;
                cases.push_back({w.type,
                                 fill + load + "+" + std::to_string(off) + "];",
                                 fill + load + "];",
                                 ALIGNMENT,
                                 {"misaligned access", "no multiple of " + std::to_string(w.bytes)},
                                 "",
                                 SHARED + ".local .align 16 .b8 mine[32];\n"});
                cases.back().threads = 1;
            }
    expect(cases);
}

TEST(AccessCheck, MemoryThatNobodyWroteIsNotRead)
{
    expect({
        {"global",
         OWN + "ld.global.u32 %r0, [%d1];",
         OWN + "st.global.u32 [%d1], 1;\nld.global.u32 %r0, [%d1];",
         OTHER,
         {"read of never-written memory", "0 bytes into the 256-byte allocation #2"}},
        {"global, one byte",
         "st.global.u16 [%b], 1;\nst.global.u8 [%b+3], 1;\nld.global.u32 %r0, [%b];",
         "st.global.u16 [%b], 1;\nst.global.u16 [%b+2], 1;\nld.global.u32 %r0, [%b];",
         OTHER,
         {"read of never-written memory"},
         "",
         "",
         0,
         true,
         1},
        {"global, by an atomic",
         "red.global.add.u32 [%b], 1;",
         "red.global.add.u32 [%a], 1;",
         OTHER,
         {"read of never-written memory"}},
        {"global, the last lane",
         OWN + "setp.ne.u32 %p0, %i, 63;\n@%p0 st.global.u32 [%d1], 1;\nld.global.u32 %r0, [%d1];",
         OWN + "st.global.u32 [%d1], 1;\nld.global.u32 %r0, [%d1];",
         OTHER,
         {"thread (63,0,0)"}},
        {"global, discarded",
         "discard.global.L2 [%a], 128;\nld.global.u32 %r0, [%a];",
         "discard.global.L2 [%a], 128;\nst.global.u32 [%a], 1;\nld.global.u32 %r0, [%a];",
         OTHER,
         {"read of never-written memory"},
         "",
         "",
         0,
         true,
         1},
        {"shared",
         SHARED_OWN + "ld.shared.u32 %r0, [%r1];",
         SHARED_OWN + "st.shared.u32 [%r1], 1;\nld.shared.u32 %r0, [%r1];",
         OTHER,
         {"read of never-written memory", "shared"},
         "",
         SHARED},
        {"shared, one byte of 16",
         "st.shared.v2.u32 [buffer], {1, 1};\nst.shared.u32 [buffer+8], 1;\nst.shared.u16 [buffer+12], 1;\n"
         "st.shared.u8 [buffer+15], 1;\nld.shared.v4.u32 {%r0,%r1,%r2,%r3}, [buffer];",
         "st.shared.v2.u32 [buffer], {1, 1};\nst.shared.u32 [buffer+8], 1;\nst.shared.u16 [buffer+12], 1;\n"
         "st.shared.u16 [buffer+14], 1;\nld.shared.v4.u32 {%r0,%r1,%r2,%r3}, [buffer];",
         OTHER,
         {"read of never-written memory"},
         "",
         SHARED,
         0,
         true,
         1},
        {"local: the register counts as never written",
         "ld.local.u32 %r0, [mine];\nadd.u32 %r1, %r0, 1;",
         "st.local.u32 [mine], 1;\nld.local.u32 %r0, [mine];\nadd.u32 %r1, %r0, 1;",
         OTHER,
         {"use of a never-written register"},
         "",
         LOCAL},
        {"local: one element of a vector",
         "st.local.u32 [mine], 1;\nst.local.u32 [mine+8], 1;\nld.local.v4.u32 {%r0,%r1,%r2,%r3}, [mine];\nadd.u32 %r4, "
         "%r0, %r1;",
         "st.local.u32 [mine], 1;\nst.local.u32 [mine+8], 1;\nld.local.v4.u32 {%r0,%r1,%r2,%r3}, [mine];\nadd.u32 %r4, "
         "%r0, %r2;",
         OTHER,
         {"use of a never-written register"},
         "",
         LOCAL},
        {"a register that was never written passes through memory",
         "st.global.u32 [%b], %r0;\nld.global.u32 %r1, [%b];",
         "st.global.u32 [%b], %r0;\nst.global.u32 [%b], 1;\nld.global.u32 %r1, [%b];",
         OTHER,
         {"read of never-written memory"},
         "",
         "",
         0,
         true,
         1},
        {"an element of a stored vector",
         "st.global.v2.u32 [%b], {1, %r0};\nld.global.u32 %r1, [%b+4];",
         "st.global.v2.u32 [%b], {1, %r0};\nld.global.u32 %r1, [%b];",
         OTHER,
         {"read of never-written memory"},
         "",
         "",
         0,
         true,
         1},
        {"an address that was never computed",
         "ld.global.u32 %r1, [%d5];",
         "mov.u64 %d5, %a;\nld.global.u32 %r1, [%d5];",
         OTHER,
         {"use of a never-written register"}},
    });
}

TEST(AccessCheck, SharedMemoryEndsWhereTheBlocksEnds)
{
    expect({
        {"static",
         SHARED_OWN + "st.shared.u32 [%r1+4], 0;",
         SHARED_OWN + "st.shared.u32 [%r1], 0;",
         ADDRESS,
         {"writes 4 bytes of shared memory", "256 bytes of shared memory"},
         "",
         SHARED},
        {"dynamic",
         SHARED_OWN + "st.shared.u32 [%r1+4], 0;",
         SHARED_OWN + "st.shared.u32 [%r1], 0;",
         ADDRESS,
         {"256 bytes of shared memory"},
         ".extern .shared .align 16 .b8 buffer[];\n",
         "",
         256},
        {"through a generic address",
         SHARED_OWN + "cvt.u64.u32 %d0, %r1;\ncvta.shared.u64 %d0, %d0;\nst.u32 [%d0+4], 0;",
         SHARED_OWN + "cvt.u64.u32 %d0, %r1;\ncvta.shared.u64 %d0, %d0;\nst.u32 [%d0], 0;",
         ADDRESS,
         {"256 bytes of shared memory", "thread (63,0,0)"},
         "",
         SHARED},
        {"below zero, 32 bits",
         "mov.u32 %r1, buffer;\nld.shared.u32 %r0, [%r1+-4];",
         "st.shared.u32 [buffer], 0;\nmov.u32 %r1, buffer;\nld.shared.u32 %r0, [%r1];",
         ADDRESS,
         {"4 bytes before the start of shared memory"},
         "",
         SHARED,
         0,
         true,
         1},
        {"below zero",
         "ld.shared.u32 %r0, [buffer+-4];",
         "st.shared.u32 [buffer], 0;\nld.shared.u32 %r0, [buffer+0];",
         ADDRESS,
         {"out-of-bounds access", "4 bytes before the start of shared memory"},
         "",
         SHARED,
         0,
         true,
         1},
    });
}

TEST(AccessCheck, LocalMemoryAndParametersEnd)
{
    expect({
        {"local",
         "mov.u64 %d0, mine;\nadd.u64 %d0, %d0, %c;\nst.local.u32 [%d0+16], 1;",
         "mov.u64 %d0, mine;\nadd.u64 %d0, %d0, %c;\nst.local.u32 [%d0+12], 1;",
         ADDRESS,
         {"writes 4 bytes of local memory", "16 bytes of local memory"},
         "",
         LOCAL},
        {"parameters",
         "mov.b64 %d0, pa;\nld.param.u64 %d1, [%d0+24];",
         "mov.b64 %d0, pa;\nld.param.u64 %d1, [%d0+16];",
         ADDRESS,
         {"param memory"}},
        {"a store to a parameter",
         "cvta.param.u64 %d0, pa;\nst.u64 [%d0], 1;",
         "cvta.param.u64 %d0, pa;\nld.u64 %d1, [%d0];",
         SPACE,
         {"read-only"}},
    });
}

TEST(AccessCheck, ConstantMemoryEndsWhereItsVariableEnds)
{
    const std::string at =
        "shr.u32 %r1, %i, 4;\nmul.wide.u32 %d0, %r1, 4;\nmov.u64 %d1, table;\nadd.u64 %d0, %d0, %d1;\n";
    expect({
        {"behind the table",
         at + "ld.const.u32 %r0, [%d0+4];",
         at + "ld.const.u32 %r0, [%d0];",
         ADDRESS,
         {"reads 4 bytes of const memory", "right past the end of the 16-byte variable", "(table)"},
         TABLE},
        {"a store",
         at + "cvta.const.u64 %d0, %d0;\nst.u32 [%d0], 1;",
         at + "cvta.const.u64 %d0, %d0;\nld.u32 %r0, [%d0];",
         SPACE,
         {"lies in constant memory"},
         TABLE},
    });
}

TEST(AccessCheck, AnAddressBelongsToItsSpace)
{
    const std::string generic = "mov.u64 %d0, buffer;\ncvta.shared.u64 %d0, %d0;\n";
    expect({
        {"a generic address for .shared",
         generic + "st.shared.u32 [%d0], 1;",
         generic + "st.u32 [%d0], 1;",
         SPACE,
         {"address of another state space", "generic address of shared memory"},
         "",
         SHARED,
         0,
         true,
         1},
        {"a global address for .shared",
         "st.shared.u32 [%a], 1;",
         "st.global.u32 [%a], 1;",
         SPACE,
         {"no address of shared memory"},
         "",
         SHARED},
        {"a shared address for .global",
         generic + "st.global.u32 [%d0], 1;",
         generic + "st.u32 [%d0], 1;",
         SPACE,
         {"generic address of shared memory"},
         "",
         SHARED,
         0,
         true,
         1},
        {"a local address for .global",
         "mov.u64 %d0, mine;\ncvta.local.u64 %d0, %d0;\nst.global.u32 [%d0], 1;",
         "mov.u64 %d0, mine;\ncvta.local.u64 %d0, %d0;\nst.u32 [%d0], 1;",
         SPACE,
         {"generic address of local memory"},
         "",
         LOCAL},
        {"a constant address for .global",
         "mov.u64 %d0, table;\nld.global.u32 %r0, [%d0];",
         "mov.u64 %d0, table;\nld.const.u32 %r0, [%d0];",
         SPACE,
         {"lies in constant memory"},
         TABLE},
        {"a global address for .const",
         "ld.const.u32 %r0, [%a];",
         "ld.global.u32 %r0, [%a];",
         SPACE,
         {"lies in global memory"}},
        {"a parameter's address for .global",
         "cvta.param.u64 %d0, pa;\nld.global.u64 %d1, [%d0];",
         "cvta.param.u64 %d0, pa;\nld.u64 %d1, [%d0];",
         SPACE,
         {"generic address of param memory"}},
        {"a shared address that was not made generic",
         "mov.u64 %d0, buffer;\nst.u32 [%d0+16], 1;",
         "mov.u64 %d0, buffer;\nst.shared.u32 [%d0+16], 1;",
         ADDRESS,
         {"not made generic"},
         "",
         SHARED,
         0,
         true,
         1},
    });
}

TEST(AccessCheck, MemoryOfAnotherDeviceNeedsPeerAccess)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "one GPU is not enough";
    for (bool enabled : {false, true}) {
        emu::Device device("9.0", {{"NB_EMU_DEVICES", "2"}});
        CUdevice second = 0;
        CUcontext other = nullptr;
        CUdeviceptr there = 0;
        ASSERT_CU(CU(cuDeviceGet)(&second, 1));
        ASSERT_CU(CU(cuDevicePrimaryCtxRetain)(&other, second));
        ASSERT_CU(CU(cuCtxSetCurrent)(other));
        ASSERT_CU(CU(cuMemAlloc)(&there, 64));
        ASSERT_CU(CU(cuMemsetD8)(there, 1, 64));
        ASSERT_CU(CU(cuCtxSynchronize)());
        ASSERT_CU(CU(cuCtxSetCurrent)(device.ctx));
        if (enabled)
            ASSERT_CU(emu::Driver::get().find<decltype(&cuCtxEnablePeerAccess)>("cuCtxEnablePeerAccess")(other, 0));
        EXPECT_EQ(enabled ? CUDA_SUCCESS : ADDRESS, emu::run({"ld.global.u32 %r0, [%a];"}, 32, there)) << emu::report();
        if (!enabled) {
            EXPECT_NE(std::string::npos, emu::report().find("belongs to device 1")) << emu::report();
        }
        CU(cuDevicePrimaryCtxRelease)(second);
    }
}
