/* mov and selp: registers, immediates, vectors, special registers, addresses of every kind of symbol, never-written
 * values. */
#include "test/alu.h"

namespace
{

template <class D, class... A>
void expect_moved(const std::string &statements, D (*f)(A...))
{
    alu::expect_statement("{\n" + statements + "\n}", std::function<D(A...)>(f), alu::inputs<A...>(), "sm_80");
}

template <class T>
class Move : public ::testing::Test
{
};
using Types = ::testing::Types<uint16_t, uint32_t, uint64_t>;
TYPED_TEST_SUITE(Move, Types);

/* The types of mov and selp as wide as T. */
template <class T>
std::vector<std::string> types()
{
    const std::string bits = std::to_string(sizeof(T) * 8);
    std::vector<std::string> t = {"b" + bits, "u" + bits, "s" + bits};
    if (sizeof(T) > 2)
        t.push_back("f" + bits);
    return t;
}

TYPED_TEST(Move, EveryTypeCopiesAllBits)
{
    using T = TypeParam;
    emu::Device device("8.0");
    for (const std::string &type : types<T>())
        alu::expect_registers("mov." + type, [](T a) -> T { return a; });
    for (const std::string type : {"b", "u", "s"})
        alu::expect("mov." + type + std::to_string(sizeof(T) * 8), [](T a) -> T { return a; });
}

TYPED_TEST(Move, SelpPicksByThePredicate)
{
    using T = TypeParam;
    emu::Device device("8.0");
    for (const std::string &type : types<T>()) {
        const std::string test = "{\n.reg .pred %g;\nsetp.lt.s32 %g, %c, 0;\nselp." + type;
        const auto in = alu::inputs<T, T, uint32_t>();
        using F = std::function<T(T, T, uint32_t)>;
        alu::expect_statement(test + " %d, %a, %b, %g;\n}",
                              F([](T a, T b, uint32_t c) -> T { return int32_t(c) < 0 ? a : b; }), in, "sm_80");
        alu::expect_statement(test + " %d, %a, %b, !%g;\n}",
                              F([](T a, T b, uint32_t c) -> T { return int32_t(c) < 0 ? b : a; }), in, "sm_80");
        if (type[0] == 'f')
            continue;
        alu::expect_statement(test + " %d, 77, %b, %g;\n}",
                              F([](T, T b, uint32_t c) -> T { return int32_t(c) < 0 ? 77 : b; }), in, "sm_80");
        alu::expect_statement(test + " %d, %a, -1, %g;\n}",
                              F([](T a, T, uint32_t c) -> T { return int32_t(c) < 0 ? a : T(-1); }), in, "sm_80");
    }
}

TEST(Literals, OfFloatsAreMovedAsTheirBits)
{
    emu::Device device("8.0");
    expect_moved(
        "mov.f32 %d, 0fC0490FDB;", +[](uint32_t) -> uint32_t { return 0xc0490fdb; });
    expect_moved(
        "mov.b32 %d, 0f7FC12345;", +[](uint32_t) -> uint32_t { return 0x7fc12345; });
    expect_moved(
        "mov.f64 %d, 0dC00921FB54442D18;", +[](uint64_t) -> uint64_t { return 0xc00921fb54442d18; });
    expect_moved(
        "mov.f32 %d, 1.5;", +[](uint32_t) -> uint32_t { return 0x3fc00000; });
    expect_moved(
        "mov.b16 %d, 0x3C00;", +[](uint16_t) -> uint16_t { return 0x3c00; });
    expect_moved(
        ".reg .pred %g;\nsetp.eq.u32 %g, %a, 0;\nselp.f32 %d, 0f3F800000, 0f80000000, %g;",
        +[](uint32_t a) -> uint32_t { return a ? 0x80000000 : 0x3f800000; });
}

/* ---- vectors ---- */

TEST(Vectors, PackTheFirstElementLowest)
{
    emu::Device device("8.0");
    expect_moved(
        "mov.b32 %d, {%a, %b};", +[](uint16_t a, uint16_t b) -> uint32_t { return a + 65536u * b; });
    expect_moved(
        "mov.b64 %d, {%a, %b};", +[](uint32_t a, uint32_t b) -> uint64_t { return a | uint64_t(b) << 32; });
    expect_moved(
        "mov.b64 %d, {%a, %b, %c, %e};", +[](uint16_t a, uint16_t b, uint16_t c, uint16_t e) -> uint64_t {
            return a | uint64_t(b) << 16 | uint64_t(c) << 32 | uint64_t(e) << 48;
        });
    expect_moved(
        "mov.b64 %d, {%a, 5};", +[](uint32_t a) -> uint64_t { return a | 5ull << 32; });
    expect_moved(
        ".reg .b8 %x, %y;\ncvt.u8.u32 %x, %a;\ncvt.u8.u32 %y, %b;\nmov.b16 %d, {%x, %y};",
        +[](uint32_t a, uint32_t b) -> uint16_t { return uint16_t((a & 255) | (b & 255) << 8); });
    expect_moved(
        ".reg .b8 %x, %y;\ncvt.u8.u32 %x, %a;\ncvt.u8.u32 %y, %b;\nmov.b32 %d, {%x, %y, %y, %x};",
        +[](uint32_t a, uint32_t b) -> uint32_t { return (a & 255) * 0x01000001 + (b & 255) * 0x00010100; });
}

TEST(Vectors, UnpackTheFirstElementFromTheLowestBits)
{
    emu::Device device("8.0");
    expect_moved(
        ".reg .b16 %x, %y;\nmov.b32 {%x, %y}, %a;\nmov.b32 %d, {%y, %x};",
        +[](uint32_t a) -> uint32_t { return a << 16 | a >> 16; });
    expect_moved(
        ".reg .b32 %x, %y;\nmov.b64 {%x, %y}, %a;\nmov.b64 %d, {%y, %x};",
        +[](uint64_t a) -> uint64_t { return a << 32 | a >> 32; });
    expect_moved(
        ".reg .b16 %w, %x, %y, %z;\nmov.b64 {%w, %x, %y, %z}, %a;\nmov.b64 %d, {%z, %w, %x, %y};",
        +[](uint64_t a) -> uint64_t { return a << 16 | a >> 48; });
    expect_moved(
        "mov.b64 {_, %d}, %a;", +[](uint64_t a) -> uint32_t { return uint32_t(a >> 32); });
    expect_moved(
        "mov.b32 {%d, _}, %a;", +[](uint32_t a) -> uint16_t { return uint16_t(a); });
    expect_moved(
        ".reg .b8 %x, %y;\nmov.b16 {%x, %y}, %a;\nmov.b16 %d, {%y, %x};",
        +[](uint16_t a) -> uint16_t { return uint16_t(a << 8 | a >> 8); });
    expect_moved(
        ".reg .b8 %w, %x, %y, %z;\nmov.b32 {%w, %x, %y, %z}, %a;\nmov.b32 %d, {%z, %y, %x, %w};",
        +[](uint32_t a) -> uint32_t { return __builtin_bswap32(a); });
}

TEST(Vectors, RegistersOf128Bits)
{
    emu::Device device("8.0");
    expect_moved(
        ".reg .b128 %x, %y;\n.reg .b64 %u, %v;\nmov.b128 %x, {%a, %b};\nmov.b128 %y, %x;\n"
        "mov.b128 {%u, %v}, %y;\nsub.u64 %d, %u, %v;",
        +[](uint64_t a, uint64_t b) -> uint64_t { return a - b; });
    expect_moved(
        ".reg .pred %g;\n.reg .b128 %x;\n.reg .b64 %v;\nsetp.lt.s64 %g, %a, 0;\nmov.b128 %x, {%a, %b};\n"
        "@%g mov.b128 %x, {%b, %a};\nmov.b128 {%d, %v}, %x;",
        +[](uint64_t a, uint64_t b) -> uint64_t { return int64_t(a) < 0 ? b : a; });
}

/* ---- special registers ---- */

/* A module with one kernel k(out, n) that stores the 32-bit register %d of every thread at out[index of the thread]. */
std::string kernel(const std::string &body, const std::string &before = "", const std::string &target = "sm_80")
{
    return ".version 8.3\n.target " + target + "\n.address_size 64\n" + before +
           "\n.visible .entry k(.param .u64 p_out, .param .u32 p_n)\n{\n.reg .pred %p<4>;\n.reg .b16 %h<4>;\n"
           ".reg .b32 %d, %i, %r<9>;\n.reg .b64 %o, %x<9>;\n" +
           body +
           "\nmov.u32 %r6, %ctaid.x;\nmov.u32 %r7, %ntid.x;\nmov.u32 %r8, %tid.x;\nmad.lo.u32 %i, %r6, %r7, %r8;\n"
           "mul.wide.u32 %o, %i, 4;\nld.param.u64 %x8, [p_out];\nadd.u64 %o, %o, %x8;\nst.global.u32 [%o], "
           "%d;\nret;\n}\n";
}

std::vector<uint32_t> run(const std::string &ptx, unsigned blocks, unsigned threads, uint32_t n = 0)
{
    emu::Module m(ptx);
    emu::Buffer<uint32_t> out(blocks * threads);
    out.zero();
    if (m.m)
        EXPECT_CU(emu::launch(m.get("k"), emu::Dim(blocks), emu::Dim(threads), 0, out.p, n));
    return out.get();
}

TEST(SpecialRegisters, TellWhereAThreadIs)
{
    emu::Device device("8.0");
    const unsigned blocks = 3, threads = 72;
    struct Case {
        const char *statement;
        uint32_t (*f)(uint32_t block, uint32_t thread);
    };
    const Case cases[] = {
        {"mov.u32 %d, %tid.x;", [](uint32_t, uint32_t t) { return t; }},
        {"mov.b32 %d, %ctaid.x;", [](uint32_t b, uint32_t) { return b; }},
        {"mov.u32 %d, %ntid.x;", [](uint32_t, uint32_t) { return 72u; }},
        {"mov.u32 %d, %nctaid.x;", [](uint32_t, uint32_t) { return 3u; }},
        {"mov.u32 %d, %tid.z;", [](uint32_t, uint32_t) { return 0u; }},
        {"mov.u32 %d, %ntid.y;", [](uint32_t, uint32_t) { return 1u; }},
        {"mov.u32 %d, %laneid;", [](uint32_t, uint32_t t) { return t % 32; }},
        {"mov.u16 %h0, %tid.x;\ncvt.u32.u16 %d, %h0;", [](uint32_t, uint32_t t) { return t; }},
        {"mov.u32 %d, %lanemask_lt;", [](uint32_t, uint32_t t) { return (1u << t % 32) - 1; }},
        {"mov.u32 %d, %lanemask_ge;", [](uint32_t, uint32_t t) { return ~((1u << t % 32) - 1); }},
        {"mov.u32 %d, %lanemask_eq;", [](uint32_t, uint32_t t) { return 1u << t % 32; }},
        {"mov.u32 %d, WARP_SZ;", [](uint32_t, uint32_t) { return 32u; }},
        {"mov.u32 %d, 9;\nmov.u32 %r0, %laneid;\nsetp.gt.u32 %p0, %r0, 4;\n@%p0 mov.u32 %d, %tid.x;",
         [](uint32_t, uint32_t t) { return t % 32 > 4 ? t : 9; }},
    };
    for (const Case &c : cases) {
        const auto got = run(kernel(c.statement), blocks, threads);
        for (unsigned k = 0; k < got.size(); k++)
            ASSERT_EQ(c.f(k / threads, k % threads), got[k]) << c.statement << " thread " << k;
    }
}

TEST(SpecialRegisters, TheClockOf64BitsRises)
{
    emu::Device device("8.0");
    const auto got = run(kernel("mov.u64 %x0, %clock64;\nmov.b64 %x1, %clock64;\nsetp.ge.u64 %p0, %x1, %x0;\n"
                                "selp.u32 %d, 1, 0, %p0;"),
                         1, 32);
    EXPECT_EQ(std::vector<uint32_t>(32, 1), got);
}

/* ---- addresses ---- */

TEST(Addresses, OfGlobalAndConstantVariables)
{
    emu::Device device("8.0");
    const std::string variables = ".visible .global .align 4 .u32 table[4] = {10, 11, 12, 13};\n"
                                  ".const .align 4 .u32 fixed[4] = {20, 21, 22, 23};\n";
    EXPECT_EQ(std::vector<uint32_t>(4, 11 + 22),
              run(kernel("mov.u64 %x0, table;\nld.global.u32 %r0, [%x0+4];\nmov.u64 %x1, fixed+4;\n"
                         "ld.const.u32 %r1, [%x1+4];\nadd.u32 %d, %r0, %r1;",
                         variables),
                  1, 4));
}

TEST(Addresses, OfSharedVariablesFitIntoEitherWidth)
{
    emu::Device device("8.0");
    const std::string variables = ".shared .align 4 .b8 first[64];\n.shared .align 4 .b8 second[512];\n";
    const auto got =
        run(kernel("mov.u32 %r0, second;\nmov.u32 %r1, %tid.x;\nshl.b32 %r2, %r1, 2;\nadd.u32 %r0, %r0, %r2;\n"
                   "st.shared.u32 [%r0], %r1;\nmov.u64 %x0, second;\ncvt.u64.u32 %x1, %r2;\n"
                   "add.u64 %x0, %x0, %x1;\nld.shared.u32 %d, [%x0];",
                   variables),
            2, 64);
    for (unsigned k = 0; k < got.size(); k++)
        ASSERT_EQ(k % 64, got[k]);
}

TEST(Addresses, OfLocalVariablesAreEachThreadsOwn)
{
    emu::Device device("8.0");
    const auto got = run(kernel(".local .align 8 .b8 depot[32];\n.reg .b64 %SP, %SPL;\nmov.u64 %SPL, depot;\n"
                                "cvta.local.u64 %SP, %SPL;\nmov.u32 %r0, %tid.x;\nst.u32 [%SP+8], %r0;\n"
                                "mov.u64 %x0, depot+8;\nld.local.u32 %r1, [%x0];\nld.local.u32 %r2, [%SPL+8];\n"
                                "add.u32 %d, %r1, %r2;"),
                         1, 40);
    for (unsigned k = 0; k < got.size(); k++)
        ASSERT_EQ(2 * k, got[k]);
}

TEST(Addresses, OfKernelParameters)
{
    emu::Device device("8.0");
    EXPECT_EQ(std::vector<uint32_t>(32, 4711), run(kernel("mov.b64 %x0, p_n;\nld.param.u32 %d, [%x0];"), 1, 32, 4711));
    EXPECT_EQ(std::vector<uint32_t>(32, 4711),
              run(kernel("mov.b64 %x0, p_out;\nld.param.u32 %d, [%x0+8];"), 1, 32, 4711));
}

TEST(Addresses, OfFunctionsCanBeCalled)
{
    emu::Device device("8.0");
    const std::string functions =
        ".func (.param .b32 r) one(.param .b32 a)\n{\n.reg .b32 %v;\nld.param.b32 %v, [a];\nadd.u32 %v, %v, 1;\n"
        "st.param.b32 [r], %v;\nret;\n}\n"
        ".func (.param .b32 r) two(.param .b32 a)\n{\n.reg .b32 %v;\nld.param.b32 %v, [a];\nadd.u32 %v, %v, %v;\n"
        "st.param.b32 [r], %v;\nret;\n}\n";
    const auto got = run(kernel("mov.u64 %x0, one;\nmov.u64 %x1, two;\nmov.u32 %r0, %tid.x;\nand.b32 %r1, %r0, 1;\n"
                                "setp.eq.u32 %p0, %r1, 0;\nselp.b64 %x2, %x0, %x1, %p0;\n{\n.param .b32 a0;\n"
                                ".param .b32 r0;\nst.param.b32 [a0], %r0;\n"
                                "proto: .callprototype (.param .b32 _) _ (.param .b32 _);\n"
                                "call (r0), %x2, (a0), proto;\nld.param.b32 %d, [r0];\n}",
                                functions),
                         1, 64);
    for (unsigned k = 0; k < got.size(); k++)
        ASSERT_EQ(k % 2 ? 2 * k : k + 1, got[k]) << "thread " << k;
}

/* ---- never-written registers ---- */

struct Undefined : public ::testing::Test {
    emu::Device device{"8.0"};
    void SetUp() override
    {
        if (!emu::Driver::get().emulated())
            GTEST_SKIP() << "a GPU does not check its registers";
    }
    CUresult result_of(const std::string &body)
    {
        emu::Module m(kernel(body));
        emu::Buffer<uint32_t> out(32);
        return m.m ? emu::launch(m.get("k"), emu::Dim(1), emu::Dim(32), 0, out.p, 0u) : CUDA_ERROR_INVALID_PTX;
    }
};

TEST_F(Undefined, CopiesAreSilent)
{
    EXPECT_CU(result_of(
        "mov.b32 %r1, %r0;\nmov.b64 %x0, {%r1, %r0};\nmov.b64 {%r2, %r3}, %x0;\nmov.u32 %r4, 1;\n"
        "mov.pred %p1, %p2;\nsetp.eq.u32 %p0, %r4, 1;\nselp.b32 %d, %r4, %r3, %p0;\nslct.b32.s32 %d, %d, %r3, %r4;"));
}

TEST_F(Undefined, ComputingWithACopyIsReported)
{
    for (const char *copies :
         {"mov.b32 %r1, %r0;", "mov.b64 %x0, {%r0, %r0};\nmov.b64 {_, %r1}, %x0;",
          "mov.u32 %r4, 1;\nsetp.ne.u32 %p0, %r4, 1;\nselp.b32 %r1, %r4, %r0, %p0;",
          "mov.pred %p0, %p1;\nselp.b32 %r1, 1, 2, %p0;", "mov.u32 %r4, -1;\nslct.b32.s32 %r1, %r4, %r0, %r4;"}) {
        emu::Device fresh("8.0");
        EXPECT_NE(CUDA_SUCCESS, result_of(std::string(copies) + "\nadd.u32 %d, %r1, 1;")) << copies;
        EXPECT_NE(std::string::npos, emu::report().find("never-written register")) << emu::report();
    }
}

TEST_F(Undefined, LanesAreToldApart)
{
    const std::string half =
        "mov.u32 %r4, %laneid;\nsetp.lt.u32 %p0, %r4, 16;\n@%p0 mov.u32 %r0, 7;\nmov.b32 %r1, %r0;\n"
        "mov.u32 %d, 0;\n";
    EXPECT_CU(result_of(half + "@%p0 add.u32 %d, %r1, 1;"));
    EXPECT_NE(CUDA_SUCCESS, result_of(half + "@!%p0 add.u32 %d, %r1, 1;"));
}

TEST(Refused, WhatMovDoesNotHave)
{
    emu::Device device("8.0");
    for (const char *statement :
         {"mov.b8 %d, %a;", "mov.f16 %d, %a;", "mov.b32 %d, {%a, %b};", "mov.b64 %d, {%a, %b, %a};",
          "mov.u32 %d, %nothing;", "mov.u32 %d, nothing;", "mov.u32 %d, %clock64;", "selp.b32 %d, %a, %b, %a;",
          "mov.u64 %d, %a;", "mov.u32 %d, 0f3F800000;", "mov.f32 %d, 1;"}) {
        emu::Module m(emu::op_module(statement, "b32", {"b32", "b32"}), false);
        EXPECT_EQ(CUDA_ERROR_INVALID_PTX, m.result) << statement;
    }
    emu::Module label(kernel("mov.u64 %x0, HERE;\nHERE:\nmov.u32 %d, 0;"), false);
    EXPECT_EQ(CUDA_ERROR_INVALID_PTX, label.result);
}

} // namespace
