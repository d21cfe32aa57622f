/* The linker and the decoder: where everything of a module lies, what instructions become, and how mistakes are called. */
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <list>
#include <memory>
#include <random>
#include <sstream>

#include "isa/decode.h"
#include "isa/liveness.h"

using namespace ptxemu;

namespace
{

struct Allocator : GlobalAllocator {
    struct Made {
        std::string name;
        Space space;
        size_t bytes, align;
        std::unique_ptr<uint8_t[]> memory;
    };
    std::list<Made> made;
    bool empty = false; /* refuses everything */
    uint64_t allocate(const std::string &name, Space space, size_t bytes, size_t align) override
    {
        if (empty)
            return 0;
        made.push_back({name, space, bytes, align, std::unique_ptr<uint8_t[]>(new uint8_t[bytes + align])});
        memset(made.back().memory.get(), 0xaa, bytes + align);
        uint64_t at = reinterpret_cast<uint64_t>(made.back().memory.get());
        return (at + align - 1) / align * align;
    }
};

struct Loaded {
    Allocator memory;
    std::unique_ptr<Module> module;
    explicit Loaded(const std::string &text, unsigned sm = 80)
    {
        module = decode(ptx::parse(text.data(), text.size()), sm, memory);
    }
    const Function &operator[](const char *name) const { return *module->by_name.at(name); }
    template <class T>
    std::vector<T> global(const char *name) const
    {
        const Global &g = module->globals.at(name);
        std::vector<T> v(g.bytes / sizeof(T));
        memcpy(v.data(), reinterpret_cast<const void *>(g.address), g.bytes);
        return v;
    }
};

std::string in_module(const std::string &text, const char *target = "sm_80")
{
    return std::string(".version 8.0\n.target ") + target + "\n.address_size 64\n" + text;
}

/* A kernel whose statements begin at line 8 of the text. */
std::string in_kernel(const std::string &statements)
{
    return in_module(".visible .entry k(.param .u64 p, .param .u32 n) {\n.reg .pred %p<9>;\n"
                     ".reg .b16 %h<99>; .reg .b32 %r<999>; .reg .f32 %f<9>; .reg .b128 %q<9>;\n.reg .b64 %rd<99>;\n" +
                     statements + "\n}\n");
}

std::string error_of(const std::string &text, unsigned sm = 80, bool no_memory = false)
{
    try {
        Allocator memory;
        memory.empty = no_memory;
        decode(ptx::parse(text.data(), text.size()), sm, memory);
    } catch (const ptx::Error &e) {
        return e.what();
    }
    return "no error";
}

template <class T>
std::vector<T> lanes(const Function &f, const Opnd &o)
{
    EXPECT_EQ(Opnd::constant, o.kind);
    std::vector<T> v(WARP_SIZE);
    memcpy(v.data(), f.constants.at(o.slot).bytes, WARP_SIZE * sizeof(T));
    return v;
}

std::string corpus(const char *arch)
{
    std::ifstream f(std::string(NIBBLE_BUILD_DIR "/ptx/front_end_sm") + arch + ".ptx", std::ios::binary);
    std::stringstream s;
    s << f.rdbuf();
    return s.str();
}

} // namespace

/* ---- layout ---- */

TEST(Layout, KernelParametersAreAlignedNaturally)
{
    Loaded m(in_module(".entry k(.param .u8 a, .param .u64 b, .param .u16 c, .param .align 16 .b8 s[20], .param .u8 d)"
                       "{ ret; }"));
    std::vector<uint32_t> at;
    for (const Slot &s : m["k"].params)
        at.push_back(s.offset);
    EXPECT_EQ((std::vector<uint32_t>{0, 8, 16, 32, 52}), at);
    EXPECT_EQ(53u, m["k"].param_bytes);
    EXPECT_EQ(0u, m["k"].frame_bytes);
}

TEST(Layout, AFrameHoldsFormalsAndLocalVariables)
{
    Loaded m(in_module(".func (.param .b32 r) f (.param .b64 a, .param .b8 b)\n"
                       "{ .local .align 8 .b8 x[12]; { .param .b64 y; } { .param .b64 y; } ret; }\n"
                       ".entry k(.param .u64 p) { .local .b8 z[3]; ret; }"));
    const Function &f = m["f"];
    EXPECT_EQ(0u, f.ret.at(0).offset);
    EXPECT_EQ(8u, f.params.at(0).offset);
    EXPECT_EQ(16u, f.params.at(1).offset);
    EXPECT_EQ(64u, f.frame_bytes); /* 17, x at 24..36, the two y at 40 and 48 */
    EXPECT_EQ(0u, f.param_bytes);
    EXPECT_EQ(16u, m["k"].frame_bytes);
    EXPECT_EQ(8u, m["k"].param_bytes);
}

TEST(Layout, TheStackHoldsTheDeepestChainOfCalls)
{
    Loaded m(in_module(".func a { .local .b8 x[16]; ret; }\n"
                       ".func b { .local .b8 x[100]; call a; ret; }\n"
                       ".entry k() { .local .b8 x[32]; call a; call b; ret; }\n"
                       ".entry leaf() { ret; }\n"
                       ".func r { .local .b8 x[16]; call r; ret; }\n"
                       ".entry recursive() { call r; ret; }\n"
                       ".entry pointer() { .reg .b64 %rd1; mov.u64 %rd1, a; P: .callprototype _ (); call %rd1, P; }"));
    EXPECT_EQ(16u, m["a"].stack_bytes);
    EXPECT_EQ(128u, m["b"].stack_bytes);
    EXPECT_EQ(160u, m["k"].stack_bytes);
    EXPECT_EQ(0u, m["leaf"].stack_bytes);
    EXPECT_EQ(65536u + 16u, m["recursive"].stack_bytes);
    EXPECT_EQ(65536u, m["pointer"].stack_bytes);
}

TEST(Layout, SharedVariablesOfAKernelFollowEachOther)
{
    Loaded m(in_module(
        ".extern .shared .align 128 .b8 dynamic[];\n.shared .align 4 .b8 used[12];\n.shared .b8 unused[1000];\n"
        ".entry k() { .shared .align 8 .b8 own[10]; .reg .b32 %r<9>;\n"
        "mov.u32 %r1, used; mov.u32 %r2, own; mov.u32 %r3, own+4; mov.u32 %r4, dynamic; ret; }\n"
        ".entry other() { .shared .b8 own[40]; ret; }"));
    const Function &k = m["k"];
    EXPECT_EQ(0u, lanes<uint32_t>(k, k.code[0].op[1])[0]);
    EXPECT_EQ(16u, lanes<uint32_t>(k, k.code[1].op[1])[31]);
    EXPECT_EQ(20u, lanes<uint32_t>(k, k.code[2].op[1])[7]);
    EXPECT_EQ(128u, lanes<uint32_t>(k, k.code[3].op[1])[0]);
    EXPECT_EQ(26u, k.shared_bytes);
    EXPECT_EQ(128u, k.dynamic_shared_at);
    EXPECT_EQ(40u, m["other"].shared_bytes);
}

TEST(Layout, SharedVariablesOfACalleeCountForItsKernels)
{
    Loaded m(in_module(
        ".extern .shared .b8 dynamic[];\n"
        ".func f { .shared .align 4 .b8 memo[64]; .reg .b32 %r<2>; mov.u32 %r0, memo; mov.u32 %r1, dynamic; ret; }\n"
        ".entry a() { .shared .align 4 .b8 own[100]; .reg .b32 %r0; mov.u32 %r0, own; call f; ret; }\n"
        ".entry b() { .shared .align 4 .b8 own[200]; .reg .b32 %r0; mov.u32 %r0, own; call f; ret; }\n"
        ".entry c() { ret; }"));
    const Function &f = m["f"];
    EXPECT_EQ(0u, lanes<uint32_t>(f, f.code[0].op[1])[0]);
    EXPECT_EQ(64u, lanes<uint32_t>(m["a"], m["a"].code[0].op[1])[0]);
    EXPECT_EQ(64u, lanes<uint32_t>(m["b"], m["b"].code[0].op[1])[0]);
    EXPECT_EQ(164u, m["a"].shared_bytes);
    EXPECT_EQ(264u, m["b"].shared_bytes);
    EXPECT_EQ(0u, m["c"].shared_bytes);
    /* f knows one address of dynamic shared memory: both kernels use it */
    EXPECT_EQ(272u, m["a"].dynamic_shared_at);
    EXPECT_EQ(272u, m["b"].dynamic_shared_at);
    EXPECT_EQ(272u, lanes<uint32_t>(f, f.code[1].op[1])[0]);
    EXPECT_EQ(0u, m["c"].dynamic_shared_at);
}

TEST(Layout, GlobalVariablesAreInitialisedAndRelocated)
{
    Loaded m(
        in_module(".global .align 16 .u32 x[3] = {1, 2};\n.const .u64 p[2] = {x+4, generic(x)};\n"
                  ".shared .u32 pad[4];\n.shared .u32 s;\n.global .u64 q[2] = {s, generic(s)};\n"
                  ".func f { ret; }\n.global .u64 table[2] = {f, 0};\n"
                  ".global .b8 parts[4] = {0xFF(x), 0xFF00(x), 7, 0xFF0000(generic(x))};\n"
                  ".entry k() { .global .u32 inside = 5; .reg .b32 %r1; mov.u32 %r1, pad; mov.u32 %r1, s; ret; }"));
    uint64_t x = m.module->globals.at("x").address;
    EXPECT_EQ(0u, x % 16);
    EXPECT_EQ((std::vector<uint32_t>{1, 2, 0}), m.global<uint32_t>("x"));
    EXPECT_EQ((std::vector<uint64_t>{x + 4, x}), m.global<uint64_t>("p"));
    EXPECT_EQ((std::vector<uint64_t>{16, SHARED_WINDOW + 16}), m.global<uint64_t>("q"));
    EXPECT_EQ(reinterpret_cast<uint64_t>(&m["f"]), m.global<uint64_t>("table")[0]);
    EXPECT_EQ((std::vector<uint8_t>{uint8_t(x), uint8_t(x >> 8), 7, uint8_t(x >> 16)}), m.global<uint8_t>("parts"));
    EXPECT_EQ((std::vector<uint32_t>{5}), m.global<uint32_t>("k.inside"));
    EXPECT_EQ(Space::constant, m.module->globals.at("p").space);
}

TEST(Layout, LaunchBoundsAreRead)
{
    Loaded m(in_module(".entry a() .maxntid 64, 2, 1 .minnctapersm 2 { ret; }\n"
                       ".entry b() .reqntid 32 .reqnctapercluster 2, 2 { ret; }\n.entry c() { ret; }",
                       "sm_90"),
             90);
    EXPECT_EQ(128u, m["a"].max_threads);
    EXPECT_FALSE(m["a"].has_required_block);
    EXPECT_TRUE(m["b"].has_required_block);
    EXPECT_EQ(32u, m["b"].required_block.x);
    EXPECT_EQ(1u, m["b"].required_block.z);
    EXPECT_EQ(32u, m["b"].max_threads);
    EXPECT_TRUE(m["b"].has_required_cluster);
    EXPECT_EQ(4u, m["b"].required_cluster.count());
    EXPECT_EQ(0u, m["c"].max_threads);
}

TEST(Layout, MistakesAreNamed)
{
    EXPECT_EQ("line 4: there is no device memory for the variable `x`",
              error_of(in_module(".global .u32 x;"), 80, true));
    EXPECT_EQ("line 5: the initialiser of a variable names `y`, which is not defined",
              error_of(in_module("\n.global .u64 x = y;")));
    EXPECT_EQ("line 4: the initialiser of `x` holds an address of dynamic shared memory",
              error_of(in_module(".extern .shared .b8 s[]; .global .u64 x = s;")));
    EXPECT_EQ("line 4: the initialiser of `x` holds an address that does not fit into its element",
              error_of(in_module(".global .u32 y; .global .u32 x = y;")));
    EXPECT_EQ("line 4: the local variables of `k` are larger than a thread's local memory",
              error_of(in_module(".entry k() { .local .b8 x[999999]; ret; }")));
    EXPECT_EQ("line 4: shared variable `x` lies beyond what a shared address can reach",
              error_of(in_module(".entry k() { .shared .b8 x[99999999]; ret; }")));
    EXPECT_EQ("line 4: the alias `b` stands for `a`, which is not a function defined above",
              error_of(in_module(".alias b, a;")));
    EXPECT_EQ("line 2: the module is made for sm_90, the device is sm_80", error_of(in_module("", "sm_90")));
    EXPECT_EQ("line 2: the module is made for sm_80a, the device is sm_90", error_of(in_module("", "sm_80a"), 90));
}

/* ---- operands ---- */

TEST(Operand, EqualConstantsShareARowOfTheirWidth)
{
    Loaded m(in_kernel("add.u32 %r1, %r1, 7;\nadd.s32 %r2, %r2, 7;\nadd.u64 %rd1, %rd1, 7;\nadd.s16 %h1, %h1, -2;\n"
                       "add.f32 %f1, %f1, 0f3F800000;\nadd.f32 %f1, %f1, 1.0;\nret;"));
    const Function &k = m["k"];
    auto constant = [&](size_t i) { return k.code[i].op[2]; };
    EXPECT_EQ(std::vector<uint32_t>(32, 7), lanes<uint32_t>(k, constant(0)));
    EXPECT_EQ(constant(0).slot, constant(1).slot);
    EXPECT_EQ(std::vector<uint64_t>(32, 7), lanes<uint64_t>(k, constant(2)));
    EXPECT_NE(constant(0).slot, constant(2).slot);
    EXPECT_EQ(std::vector<int16_t>(32, -2), lanes<int16_t>(k, constant(3)));
    EXPECT_EQ(std::vector<float>(32, 1), lanes<float>(k, constant(4)));
    EXPECT_EQ(constant(4).slot, constant(5).slot);
    EXPECT_EQ(4u, k.constants.size());
}

TEST(Operand, AddressesAreBasesAndOffsets)
{
    Loaded m(in_kernel(".shared .b8 pad[16]; .shared .b8 s[16];\n"
                       "ld.param.u32 %r1, [n];\nld.shared.u32 %r1, [s+8];\nld.global.u32 %r1, [%rd1+-4];\n"
                       "ld.shared.u32 %r1, [%r2];\nret;"));
    const Function &k = m["k"];
    EXPECT_EQ(Space::param, k.code[0].space);
    EXPECT_EQ(8u, k.params.at(1).offset);
    EXPECT_EQ(Space::shared, k.code[1].space);
    EXPECT_EQ(Space::global, k.code[2].space);
    EXPECT_EQ(uint64_t(-4), k.code[2].imm);
    EXPECT_EQ(32u, k.shared_bytes);
}

TEST(Operand, WhatDoesNotFitIsNamed)
{
    auto error = [](const char *statement) { return error_of(in_kernel(statement)); };
    EXPECT_EQ("line 8: `add.u32`: register %rd1 of type .b64 does not fit type .u32", error("add.u32 %r1, %rd1, 1;"));
    EXPECT_EQ("line 8: `add.u32`: the predicate %p1 stands where a .u32 is needed", error("add.u32 %r1, %p1, 1;"));
    EXPECT_EQ("line 8: `add.u32`: a destination is not a register", error("add.u32 1, %r1, 1;"));
    EXPECT_EQ("line 8: `add.u32`: operand 3 is missing", error("add.u32 %r1, %r1;"));
    EXPECT_EQ("line 8: `add.u32`: has 4 operands, but takes 3", error("add.u32 %r1, %r1, %r2, %r3;"));
    EXPECT_EQ("line 8: `add.u32`: a real number stands where a .u32 is needed", error("add.u32 %r1, %r1, 1.5;"));
    EXPECT_EQ("line 8: `add.f32`: an integer stands where a .f32 is needed", error("add.f32 %f1, %f1, 1;"));
    EXPECT_EQ("line 8: `add.u32`: `nobody` is not declared", error("add.u32 %r1, %r1, nobody;"));
    EXPECT_EQ("line 8: `%r1000` is not declared", error("add.u32 %r1, %r1, %r1000;"));
    EXPECT_EQ("line 8: `ld.global.u32`: `s` lies in .shared, not in .global",
              error(".shared .u32 s; ld.global.u32 %r1, [s];"));
    EXPECT_EQ("line 8: `ld.global.u32`: register %h1 cannot hold an address", error("ld.global.u32 %r1, [%h1];"));
    EXPECT_EQ("line 8: `bra`: label `nowhere` is not declared", error("bra nowhere;"));
}

TEST(Instruction, UnknownOnesAndModifiersAreNamed)
{
    EXPECT_EQ("line 9: `foo.bar.u32` is not an instruction this emulator knows",
              error_of(in_kernel("\nfoo.bar.u32 %r1, %r2;")));
    EXPECT_EQ("line 8: `ld.global.sideways.u32`: the emulator does not know .sideways here",
              error_of(in_kernel("ld.global.sideways.u32 %r1, [%rd1];")));
    EXPECT_EQ("line 8: `cp.async.wait_all`: needs .target sm_80 or higher, the module has sm_75",
              error_of(in_kernel("cp.async.wait_all;").replace(21, 5, "sm_75")));
}

TEST(Instruction, AnUndefinedCalleeIsAnErrorWhereItIsCalled)
{
    std::string declared = ".extern .func f;\n";
    EXPECT_EQ("no error", error_of(in_module(declared + ".entry k() { ret; }")));
    EXPECT_EQ("line 6: `call`: function `f` is declared, but not defined in this module",
              error_of(in_module(declared + ".entry k() {\ncall f; }")));
    EXPECT_EQ("no error", error_of(in_module(".extern .func (.param .b32 r) vprintf (.param .b64 a, .param .b64 b);\n"
                                             ".entry k() { .param .b64 a; .param .b64 b; .param .b32 r;\n"
                                             "call (r), vprintf, (a, b); }")));
    EXPECT_EQ("line 5: `mov.u64`: variable `x` is declared .extern, but not defined in this module",
              error_of(in_module(".extern .global .u32 x;\n.entry k() { .reg .b64 %a; mov.u64 %a, x; }")));
}

TEST(Instruction, GuardsLabelsAndPlacesAreKept)
{
    Loaded m(in_kernel(".loc 1 77 3\n@!%p3 bra END;\nadd.u32 %r1, %r1, 1;\nEND: ret;"));
    const Function &k = m["k"];
    EXPECT_TRUE(k.code[0].guarded);
    EXPECT_TRUE(k.code[0].guard_negate);
    EXPECT_EQ(2u, k.code[0].target);
    EXPECT_EQ(77u, k.code[1].loc.line);
    EXPECT_EQ("add.u32 %r1, %r1, 1", k.code[1].source->text);
    EXPECT_EQ(&k.ast.body[1], k.code[1].source);
}

TEST(Instruction, TheEndOfTheTextIsAReturn)
{
    auto size = [](const char *text) { return Loaded(in_kernel(text))["k"].code.size(); };
    EXPECT_EQ(1u, size(""));
    EXPECT_EQ(1u, size("ret;"));
    EXPECT_EQ(2u, size("@%p1 ret;"));
    EXPECT_EQ(3u, size("bra L; ret; L:"));
}

TEST(Instruction, SpecialRegistersAreMovedIntoRegistersFirst)
{
    Loaded m(in_kernel(
        "bra L;\nadd.u32 %r1, %laneid, %tid.x;\nL: add.u64 %rd1, %rd1, %clock64;\nmov.u32 %r1, %tid.y;\nret;"));
    const Function &k = m["k"];
    EXPECT_EQ(8u, k.code.size());
    EXPECT_EQ(4u, k.code[0].target);
    EXPECT_EQ("mov", k.code[1].source->opcode);
    EXPECT_EQ("add", k.code[3].source->opcode);
    EXPECT_EQ(k.code[1].op[0].slot, k.code[3].op[1].slot);
    EXPECT_EQ(64u, k.code[4].op[0].bits);
    EXPECT_EQ("line 8: `%tid.q` is not declared", error_of(in_kernel("mov.u32 %r1, %tid.q;")));
}

TEST(Instruction, ParametersInRegistersGoThroughVariables)
{
    Loaded m(in_module(
        ".func (.reg .u32 sum, .reg .u64 wide) f (.reg .u32 a, .reg .u16 b) {\n"
        ".reg .pred %p; add.u32 sum, a, 1; @%p ret; mov.u64 wide, 2;\n}\n"
        ".entry k() { .reg .b32 %r<3>; .reg .b64 %rd1; .reg .b16 %h1; .reg .pred %p1; mov.u32 %r1, 5; mov.u16 %h1, 6;\n"
        "setp.eq.u32 %p1, %r1, 5; @%p1 call (%r2, %rd1), f, (%r1, 7); ret; }"));
    auto text = [](const Function &f) {
        std::string s;
        for (const Inst &i : f.code)
            s += i.source->opcode + (i.guarded ? "? " : " ");
        return s;
    };
    EXPECT_EQ("ld ld add st? st? ret? mov st st ret ", text(m["f"]));
    EXPECT_EQ("mov mov setp st? st? call? ld? ld? ret ", text(m["k"]));
    EXPECT_EQ(2u, m["f"].params.size());
    EXPECT_EQ("line 5: a predicate cannot be a parameter", error_of(in_module("\n.func f (.reg .pred a) { ret; }")));
}

/* ---- rows ---- */

TEST(Rows, ValuesThatAreNeverWantedTogetherShareOne)
{
    std::string chain = "mov.u32 %r1, %tid.x;\n";
    for (int k = 2; k < 200; k++)
        chain += "add.u32 %r" + std::to_string(k) + ", %r" + std::to_string(k - 1) + ", 1;\n";
    Loaded m(in_kernel(chain + "ret;"));
    EXPECT_LE(m["k"].n_rows, 3u);
    EXPECT_LE(m["k"].regs_for_occupancy, 12u);
    for (const Inst &i : m["k"].code)
        if (i.source->opcode == "add") {
            EXPECT_NE(i.op[0].slot, i.op[1].slot) << "a result must not lie on what the instruction still reads";
        }
}

TEST(Rows, ValuesThatAreWantedTogetherDoNot)
{
    std::string text;
    for (int k = 0; k < 40; k++)
        text += "mov.u32 %r" + std::to_string(k) + ", %tid.x;\n";
    for (int k = 0; k < 40; k++)
        text += "add.u32 %r99, %r99, %r" + std::to_string(k) + ";\n";
    Loaded m(in_kernel(text + "ret;"));
    std::vector<bool> seen(m["k"].n_rows);
    for (int k = 0; k < 40; k++) {
        EXPECT_FALSE(seen[m["k"].code[size_t(k)].op[0].slot]);
        seen[m["k"].code[size_t(k)].op[0].slot] = true;
    }
    EXPECT_GE(m["k"].regs_for_occupancy, 41u);
}

TEST(Rows, AValueOfALoopIsKeptForTheNextTurn)
{
    Loaded m(in_kernel("mov.u32 %r1, 0;\nmov.u32 %r2, 10;\n"
                       "L: add.u32 %r3, %r1, 1;\nadd.u32 %r4, %r3, 2;\nmov.u32 %r1, %r4;\n"
                       "setp.lt.u32 %p1, %r1, %r2;\n@%p1 bra L;\nret;"));
    const Function &k = m["k"];
    uint32_t bound = k.code[1].op[0].slot;
    for (size_t i = 2; i < 5; i++)
        EXPECT_NE(bound, k.code[i].op[0].slot);
    EXPECT_EQ(bound, k.code[5].op[2].slot);
}

TEST(Rows, AGuardedWriteLeavesTheOldValueWanted)
{
    Loaded m(in_kernel("mov.u32 %r1, 1;\nmov.u32 %r2, 2;\nst.global.u32 [%rd1], %r2;\n@%p1 mov.u32 %r1, 3;\n"
                       "st.global.u32 [%rd1], %r1;\nret;"));
    EXPECT_NE(m["k"].code[0].op[0].slot, m["k"].code[1].op[0].slot);
    EXPECT_EQ(m["k"].code[0].op[0].slot, m["k"].code[3].op[0].slot);
}

TEST(Rows, WidthsAreKeptApart)
{
    Loaded m(in_kernel(
        "mov.u32 %r1, 1;\nadd.u32 %r2, %r1, 1;\nmov.u64 %rd1, 1;\nadd.u64 %rd2, %rd1, 1;\nmov.u16 %h1, 1;\nret;"));
    std::vector<unsigned> width(m["k"].n_rows);
    for (const Inst &i : m["k"].code)
        for (unsigned n = 0; n < i.n_op; n++)
            if (i.op[n].kind == Opnd::reg) {
                unsigned &w = width[i.op[n].slot];
                EXPECT_TRUE(!w || w == i.op[n].bits);
                w = i.op[n].bits;
            }
}

TEST(Rows, ARowHasTheNameThatTheInstructionGivesIt)
{
    Loaded m(
        in_kernel("mov.u32 %r1, 1;\nadd.u32 %r2, %r1, 1;\nadd.u32 %r3, %r2, 1;\n@%p4 add.u32 %r4, %r3, %r3;\nret;"));
    const Function &k = m["k"];
    for (size_t i = 1; i < 4; i++)
        for (unsigned n = 0; n < 2; n++)
            EXPECT_EQ("%r" + std::to_string(i + 1 - n), register_name(k, k.code[i], false, k.code[i].op[n].slot));
    EXPECT_EQ("%p4", register_name(k, k.code[3], true, k.code[3].guard));
}

TEST(Rows, LaunchBoundsLimitTheRegisters)
{
    std::string text;
    for (int k = 0; k < 300; k++)
        text += "mov.u32 %r" + std::to_string(k) + ", %tid.x;\n";
    for (int k = 0; k < 300; k++)
        text += "add.u32 %r500, %r500, %r" + std::to_string(k) + ";\n";
    EXPECT_EQ(255u, Loaded(in_kernel(text + "ret;"))["k"].regs_for_occupancy);
    auto with = [&](const char *directives) {
        std::string s = in_kernel(text + "ret;");
        s.insert(s.find(" {"), directives);
        return Loaded(s)["k"].regs_for_occupancy;
    };
    EXPECT_EQ(128u, with(" .maxntid 512"));
    EXPECT_EQ(64u, with(" .maxntid 256, 2, 1 .minnctapersm 2"));
    EXPECT_EQ(40u, with(" .maxnreg 40"));
}

/* ---- real text ---- */

TEST(Corpus, WhatNvccPrintsDecodes)
{
    const std::pair<const char *, unsigned> targets[] = {{"75", 75}, {"75", 90}, {"80", 80}, {"80", 86}, {"90a", 90}};
    for (auto &t : targets) {
        SCOPED_TRACE(t.first);
        Loaded m(corpus(t.first), t.second);
        EXPECT_EQ((std::vector<int>{0, 1, 4, 9, 16}), m.global<int>("squares"));
        EXPECT_EQ((std::vector<float>{0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f}), m.global<float>("halves"));
        uint64_t counter = m.module->globals.at("counter").address;
        EXPECT_EQ((std::vector<uint64_t>{counter, 0, counter}), m.global<uint64_t>("into_table"));
        EXPECT_EQ(reinterpret_cast<uint64_t>(&m["_Z5twicei"]), m.global<uint64_t>("operations")[1]);
        EXPECT_STREQ("nibble", reinterpret_cast<const char *>(m.global<char>("text").data()));

        const Function &arrays = m["local_arrays"];
        EXPECT_EQ(128u, arrays.max_threads);
        ASSERT_EQ(4u, arrays.params.size());
        EXPECT_EQ(16u, arrays.params[1].offset);
        EXPECT_EQ(64u, arrays.params[1].bytes);
        EXPECT_EQ(82u, arrays.params[3].offset);
        EXPECT_GT(arrays.frame_bytes, 64u);

        const Function &shared = m["shared_memory"];
        EXPECT_EQ(33u * 4 + 4 + 32 + 64, shared.shared_bytes);
        EXPECT_EQ(0u, shared.dynamic_shared_at % 16);
        EXPECT_EQ(64u, m["calls"].shared_bytes);
        EXPECT_GE(m["calls"].stack_bytes, 65536u);
        for (auto &f : m.module->functions) {
            EXPECT_LE(f->n_rows, 120u) << f->name;
            EXPECT_EQ(f->code.size(), f->ast.body.size());
            for (const Inst &i : f->code)
                EXPECT_NE(nullptr, i.exec) << i.source->text;
        }
    }
}

TEST(Corpus, EveryChangedByteDecodesOrIsRefused)
{
    std::string text = corpus("80");
    std::mt19937 random(3);
    const char interesting[] = "{}[]<>;:,.%@!0123456789abxusf+-_ ";
    for (int k = 0; k < 300; k++) {
        std::string changed = text;
        for (unsigned n = random() % 3 + 1; n-- > 0;)
            changed[random() % changed.size()] = interesting[random() % (sizeof interesting - 1)];
        std::string e = error_of(changed);
        EXPECT_TRUE(e == "no error" || e.compare(0, 5, "line ") == 0) << e;
    }
}
