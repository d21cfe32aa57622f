/* alloca, stacksave, stackrestore. */
#include "test/emu.h"

namespace
{

const std::string HEAD = ".version 7.3\n.target sm_52\n.address_size 64\n";

/* Thread t's result is the .u32 %r that the body leaves; %t is t. */
std::string kernel(const std::string &body, const std::string &functions = "")
{
    return HEAD + functions +
           ".visible .entry k(.param .u64 out)\n{\n.reg .b32 %t, %r, %i, %v;\n.reg .b64 %q, %o, %a, %b, %n, %s;\n"
           ".reg .b32 %a32, %n32;\n.reg .pred %p;\nmov.u32 %t, %tid.x;\nmov.u32 %r, 0;\n" +
           body +
           "\nld.param.u64 %q, [out];\nmul.wide.u32 %o, %t, 4;\nadd.u64 %q, %q, %o;\nst.global.u32 [%q], %r;\n"
           "ret;\n}\n";
}

CUresult run(const std::string &ptx, std::vector<uint32_t> *out, unsigned threads = 32)
{
    emu::Module m(ptx);
    emu::Buffer<uint32_t> d(threads);
    CUresult r = emu::launch(m.get("k"), 1, threads, 0, d.p);
    if (r == CUDA_SUCCESS)
        *out = d.get();
    return r;
}

/* Fills t + 1 words with t, t + 1, ... and adds them up from the last to the first. */
const char *const FILL_AND_ADD = "mov.u32 %i, 0;\nmov.u64 %o, %a;\n"
                                 "FILL: add.u32 %v, %i, %t;\nst.local.u32 [%o], %v;\nadd.u64 %o, %o, 4;\n"
                                 "add.u32 %i, %i, 1;\nsetp.le.u32 %p, %i, %t;\n@%p bra FILL;\n"
                                 "ADD: sub.u64 %o, %o, 4;\nld.local.u32 %v, [%o];\nadd.u32 %r, %r, %v;\n"
                                 "setp.gt.u64 %p, %o, %a;\n@%p bra ADD;\n";
uint32_t sum_of(uint32_t t)
{
    return (t + 1) * t + t * (t + 1) / 2;
}

TEST(Stack, EachThreadGetsAsMuchAsItAsksFor)
{
    emu::Device device;
    std::vector<uint32_t> out;
    const std::string size = "add.u32 %i, %t, 1;\nmul.wide.u32 %n, %i, 4;\nalloca.u64 %a, %n;\n";
    ASSERT_CU(run(kernel(size + FILL_AND_ADD), &out, 64));
    for (uint32_t t = 0; t < 64; t++)
        EXPECT_EQ(sum_of(t), out[t]) << t;
}

TEST(Stack, AllocationsOfAFunctionDoNotOverlap)
{
    emu::Device device;
    std::vector<uint32_t> out;
    ASSERT_CU(run(kernel("alloca.u64 %a, 4;\nalloca.u64 %b, 4;\nst.local.u32 [%a], 7;\nst.local.u32 [%b], %t;\n"
                         "ld.local.u32 %r, [%a];\nld.local.u32 %v, [%b];\nmad.lo.u32 %r, %r, 1000, %v;\n"),
                  &out));
    for (uint32_t t = 0; t < 32; t++)
        EXPECT_EQ(7000 + t, out[t]);
}

TEST(Stack, PointersOf32BitsWorkAsWell)
{
    emu::Device device;
    std::vector<uint32_t> out;
    ASSERT_CU(run(kernel("mov.u32 %n32, 16;\nalloca.u32 %a32, %n32, 16;\nst.local.u32 [%a32+12], %t;\n"
                         "cvt.u64.u32 %a, %a32;\ncvta.local.u64 %a, %a;\nld.u32 %r, [%a+12];\n"),
                  &out));
    for (uint32_t t = 0; t < 32; t++)
        EXPECT_EQ(t, out[t]);
}

TEST(Stack, PointersAreAligned)
{
    emu::Device device;
    for (unsigned align : {1, 8, 16, 128, 256}) {
        std::vector<uint32_t> out;
        ASSERT_CU(run(kernel("add.u32 %i, %t, 1;\ncvt.u64.u32 %n, %i;\nalloca.u64 %a, %n;\nalloca.u64 %a, %n, " +
                             std::to_string(align) + ";\ncvt.u32.u64 %r, %a;\n"),
                      &out));
        for (uint32_t t = 0; t < 32; t++)
            EXPECT_EQ(0u, out[t] % align) << align;
    }
}

TEST(Stack, RestoringFreesWhatWasAllocatedSince)
{
    emu::Device device;
    std::vector<uint32_t> out;
    /* the second allocation lies where the first one was, and the pointer is back where it was */
    ASSERT_CU(run(kernel("stacksave.u64 %s;\nalloca.u64 %a, 64;\nstackrestore.u64 %s;\nalloca.u64 %b, 64;\n"
                         "sub.u64 %n, %a, %b;\nstackrestore.u64 %s;\nstacksave.u64 %q;\nsub.u64 %q, %q, %s;\n"
                         "or.b64 %n, %n, %q;\ncvt.u32.u64 %r, %n;\n"),
                  &out));
    for (uint32_t t = 0; t < 32; t++)
        EXPECT_EQ(0u, out[t]);
}

/* Gives its argument back, by way of the last word of an allocation of so many bytes. */
const char *const ECHO_FUNCTION = ".func (.param .u32 r) echo(.param .u32 x, .param .u32 bytes)\n{\n"
                                  ".reg .b32 %x, %n32, %y;\n.reg .b64 %n, %a;\nld.param.u32 %x, [x];\n"
                                  "ld.param.u32 %n32, [bytes];\ncvt.u64.u32 %n, %n32;\nalloca.u64 %a, %n;\n"
                                  "add.u64 %a, %a, %n;\nst.local.u32 [%a+-4], %x;\nld.local.u32 %y, [%a+-4];\n"
                                  "st.param.u32 [r], %y;\nret;\n}\n";
std::string call_echo(const std::string &x, const std::string &bytes)
{
    return "{\n.param .u32 pr, px, pn;\nst.param.u32 [px], " + x + ";\nst.param.u32 [pn], " + bytes +
           ";\ncall (pr), echo, (px, pn);\nld.param.u32 %v, [pr];\n}\n";
}

TEST(Stack, ReturningFreesWhatTheFunctionAllocated)
{
    emu::Device device;
    std::vector<uint32_t> out;
    /* far more in total than a thread has; what the kernel itself has allocated stays */
    const std::string call = call_echo("%i", "512");
    ASSERT_CU(run(kernel("alloca.u64 %a, 16;\nst.local.u32 [%a], %t;\nmov.u32 %i, 0;\n"
                         "AGAIN:\n" +
                             call +
                             "add.u32 %r, %r, %v;\nadd.u32 %i, %i, 1;\nsetp.lt.u32 %p, %i, 1000;\n@%p bra AGAIN;\n"
                             "ld.local.u32 %v, [%a];\nadd.u32 %r, %r, %v;\n",
                         ECHO_FUNCTION),
                  &out));
    for (uint32_t t = 0; t < 32; t++)
        EXPECT_EQ(999 * 1000 / 2 + t, out[t]);
}

TEST(Stack, LanesInACallDoNotDisturbThoseThatStay)
{
    emu::Device device;
    std::vector<uint32_t> out;
    const std::string call = call_echo("%t", "128");
    ASSERT_CU(run(kernel("setp.lt.u32 %p, %t, 13;\n@%p bra STAY;\n" + call +
                             "STAY:\nalloca.u64 %a, 64;\nst.local.u32 [%a], %t;\nld.local.u32 %r, [%a];\n"
                             "@%p bra END;\nmad.lo.u32 %r, %v, 100, %r;\nEND:\n",
                         ECHO_FUNCTION),
                  &out));
    for (uint32_t t = 0; t < 32; t++)
        EXPECT_EQ(t < 13 ? t : t * 101, out[t]);
}

TEST(Stack, AskingForTooMuchIsAFault)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "undefined on hardware";
    for (const char *body : {"AGAIN: alloca.u64 %a, 1024;\nbra AGAIN;\n", "alloca.u64 %a, 0x7fffffffffffffff;\n"}) {
        emu::Device device;
        std::vector<uint32_t> out;
        EXPECT_EQ(CUDA_ERROR_LAUNCH_FAILED, run(kernel(body), &out));
        EXPECT_NE(std::string::npos, emu::report().find("local memory exhausted")) << emu::report();
        EXPECT_NE(std::string::npos, emu::report().find("a thread has 65536 bytes")) << emu::report();
    }
}

TEST(Stack, FreshMemoryCountsAsNeverWritten)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "undefined on hardware";
    std::vector<uint32_t> out;
    const std::string text =
        kernel("stacksave.u64 %s;\nalloca.u64 %a, 64;\nst.local.u32 [%a], 1;\nstackrestore.u64 %s;\n"
               "alloca.u64 %a, 64;\nld.local.u32 %v, [%a];\nadd.u32 %r, %r, %v;\n");
    {
        emu::Device device("9.0", {{"NB_EMU_CHECK", "memcheck"}});
        EXPECT_EQ(CUDA_SUCCESS, run(text, &out)) << emu::report();
    }
    emu::Device device;
    EXPECT_EQ(CUDA_ERROR_LAUNCH_FAILED, run(text, &out));
    EXPECT_NE(std::string::npos, emu::report().find("never-written")) << emu::report();
}

TEST(Stack, RestoringWhatWasNotSavedIsAFault)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "it corrupts the stack on hardware";
    for (const char *change : {"add.u64 %s, %s, 4096;\n", "sub.u64 %s, %s, 4096;\n"}) {
        emu::Device device;
        std::vector<uint32_t> out;
        const std::string body = "stacksave.u64 %s;\nalloca.u64 %a, 64;\n";
        EXPECT_NE(CUDA_SUCCESS, run(kernel(body + change + "stackrestore.u64 %s;\n"), &out));
        EXPECT_NE(std::string::npos, emu::report().find("which no stacksave")) << emu::report();
    }
}

TEST(Stack, WrongFormsAreErrorsAtLoad)
{
    emu::Device device;
    for (const char *text : {"alloca.u16 %a, %n;", "alloca.u64 %a, %n, 24;", "alloca.u64 %a, %n, %n;", "alloca.u64 %a;",
                             "stacksave.s32 %a32;", "stackrestore.u32 %s;"})
        EXPECT_EQ(CUDA_ERROR_INVALID_PTX,
                  emu::Module(kernel("mov.u64 %n, 8;\n" + std::string(text) + "\n"), false).result)
            << text;
}

} // namespace
