/* The parser by itself: what text means, what mistakes are called, and that no text whatever makes it crash. */
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <random>
#include <sstream>

#include "ptx/ast.h"

using namespace ptxemu;
using ptx::Operand;

namespace
{

ptx::Module parse(const std::string &text)
{
    return ptx::parse(text.data(), text.size());
}

std::string in_module(const std::string &text)
{
    return ".version 8.0\n.target sm_80\n.address_size 64\n" + text;
}

/* A kernel whose statements begin at line 5 of the text. */
std::string in_kernel(const std::string &statements)
{
    return in_module(".visible .entry k(.param .u64 p) {\n" + statements + "\n}\n");
}

ptx::Function kernel(const std::string &statements)
{
    return parse(in_kernel(statements)).functions.at(0);
}

std::string error_of(const std::string &text)
{
    try {
        parse(text);
    } catch (const ptx::Error &e) {
        return e.what();
    }
    return "no error";
}

std::vector<std::string> corpus()
{
    std::vector<std::string> texts;
    for (const char *arch : {"75", "80", "90a"}) {
        std::ifstream f(std::string(NIBBLE_BUILD_DIR "/ptx/front_end_sm") + arch + ".ptx", std::ios::binary);
        std::stringstream s;
        s << f.rdbuf();
        EXPECT_GT(s.str().size(), 10000u) << arch;
        texts.push_back(s.str());
    }
    return texts;
}

const ptx::Function &named(const ptx::Module &m, const std::string &name)
{
    for (const ptx::Function &f : m.functions)
        if (f.name == name && !f.is_declaration)
            return f;
    ADD_FAILURE() << name;
    return m.functions.at(0);
}

std::string register_name(const ptx::Function &f, const Operand &o)
{
    EXPECT_EQ(Operand::reg, o.kind);
    return f.regs.at(o.index).name;
}

uint64_t immediate(const std::string &expression)
{
    ptx::Function f = kernel(".reg .b64 %rd;\nmov.b64 %rd, " + expression + ";");
    EXPECT_EQ(Operand::integer, f.body.at(0).ops.at(1).kind) << expression;
    return f.body[0].ops[1].bits;
}

} // namespace

/* ---- heads and directives ---- */

TEST(ModuleHead, ReadsVersionTargetsAndArchitectureSuffix)
{
    ptx::Module m = parse(".version 9.0\n.target sm_90a, texmode_independent, debug\n.address_size 64\n");
    EXPECT_EQ(9u, m.version_major);
    EXPECT_EQ(0u, m.version_minor);
    EXPECT_EQ(90u, m.sm);
    EXPECT_EQ('a', m.sm_suffix);
}

TEST(ModuleHead, RefusesWhatItCannotEmulate)
{
    EXPECT_EQ("line 1: expected .version, with which every module begins, found the end of the text", error_of(""));
    EXPECT_EQ("line 2: `sm_80x` is not a target that the emulator knows", error_of(".version 8.0\n.target sm_80x"));
    EXPECT_EQ("line 3: the emulator has 64-bit addresses only",
              error_of(".version 8.0\n.target sm_80\n.address_size 32"));
    EXPECT_EQ("line 2: the module has no .target", error_of(".version 8.0\n.target debug"));
}

TEST(ModuleHead, KeepsFilesAndSkipsDebugSections)
{
    ptx::Module m = parse(in_module(".file 1 \"a/b.cu\"\n.file 3 \"c.h\", 1234, 56\n"
                                    ".section .debug_str { $L__info: .b8 95, 90; { .b32 1 } }\n.global .u32 after;\n"));
    EXPECT_EQ("a/b.cu", m.files.at(1));
    EXPECT_EQ("c.h", m.files.at(3));
    EXPECT_EQ("after", m.variables.at(0).name);
}

TEST(Function, KeepsPerformanceDirectives)
{
    ptx::Module m =
        parse(in_module(".visible .entry k() .maxntid 128, 2 .minnctapersm 3 .maxnreg 64 .reqnctapercluster "
                        "2, 1, 1 .explicitcluster .maxclusterrank 8 .pragma \"nounroll\"; { ret; }"));
    auto &d = m.functions.at(0).directives;
    EXPECT_EQ((std::vector<uint32_t>{128, 2}), d.at("maxntid"));
    EXPECT_EQ((std::vector<uint32_t>{3}), d.at("minnctapersm"));
    EXPECT_EQ((std::vector<uint32_t>{64}), d.at("maxnreg"));
    EXPECT_EQ((std::vector<uint32_t>{2, 1, 1}), d.at("reqnctapercluster"));
    EXPECT_EQ((std::vector<uint32_t>{8}), d.at("maxclusterrank"));
    EXPECT_TRUE(d.count("explicitcluster"));
}

TEST(Function, ADeclarationGivesWayToItsDefinition)
{
    ptx::Module m = parse(in_module(".func (.param .b32 r) f (.param .b32 a);\n.extern .func g;\n"
                                    ".func (.param .b32 r) f (.param .b32 a) { ret; }\n.func f2 { ret; }"));
    ASSERT_EQ(3u, m.functions.size());
    EXPECT_FALSE(m.functions[0].is_declaration);
    EXPECT_EQ(1u, m.functions[0].body.size());
    EXPECT_TRUE(m.functions[1].is_declaration);
}

TEST(Function, TheFirstWeakDefinitionWinsAndOthersCollide)
{
    ptx::Module m = parse(in_module(".weak .func f { ret; }\n.weak .func f { ret; ret; }\n"));
    ASSERT_EQ(1u, m.functions.size());
    EXPECT_EQ(1u, m.functions[0].body.size());
    EXPECT_EQ("line 5: function `f` is defined twice", error_of(in_module(".func f { ret; }\n.func f { ret; ret; }")));
    EXPECT_EQ("line 5: variable `x` is defined twice", error_of(in_module(".global .u32 x;\n.global .u32 x;")));
}

TEST(Function, ParametersHaveTheirOwnOrNaturalAlignment)
{
    ptx::Module m = parse(in_module(".entry k(.param .u8 c, .param .u64 .ptr .global .align 256 p,\n"
                                    ".param .align 16 .b8 s[24], .param .v4 .f32 v) { ret; }"));
    const auto &p = m.functions.at(0).params;
    ASSERT_EQ(4u, p.size());
    EXPECT_EQ(1u, p[0].align);
    EXPECT_EQ(8u, p[1].align);
    EXPECT_EQ(16u, p[2].align);
    EXPECT_EQ(24u, p[2].bytes);
    EXPECT_EQ(16u, p[3].align);
    EXPECT_EQ(16u, p[3].bytes);
}

/* ---- variables ---- */

TEST(Variable, InitialisersFollowTypesDimensionsAndBraces)
{
    ptx::Module m = parse(in_module(".global .align 4 .b8 bytes[6] = {1, 2, -1};\n"
                                    ".const .f32 f = 0f3FC00000;\n"
                                    ".const .f64 d[2] = {1.5, 2};\n"
                                    ".global .s16 grid[2][3] = {{1, 2}, {3, 4, 5}};\n"
                                    ".global .u32 flat[2][2] = {1, 2, 3};\n"
                                    ".global .u32 open[] = {7, 8, 9};\n"
                                    ".global .v2 .u32 pairs[2] = {{1, 2}, {3}};\n"
                                    ".global .u64 sum = (1 << 33) + 2 * 3;\n"));
    auto as = [&](size_t k, auto zero) {
        std::vector<decltype(zero)> v(m.variables.at(k).bytes / sizeof zero);
        memcpy(v.data(), m.variables[k].init.data(), m.variables[k].init.size());
        return v;
    };
    EXPECT_EQ((std::vector<uint8_t>{1, 2, 255, 0, 0, 0}), as(0, uint8_t()));
    EXPECT_EQ(4u, m.variables[0].align);
    EXPECT_EQ((std::vector<float>{1.5f}), as(1, float()));
    EXPECT_EQ((std::vector<double>{1.5, 2}), as(2, double()));
    EXPECT_EQ((std::vector<int16_t>{1, 2, 0, 3, 4, 5}), as(3, int16_t()));
    EXPECT_EQ((std::vector<uint32_t>{1, 2, 3, 0}), as(4, uint32_t()));
    EXPECT_EQ((std::vector<uint32_t>{7, 8, 9}), as(5, uint32_t()));
    EXPECT_EQ((std::vector<uint32_t>{1, 2, 3, 0}), as(6, uint32_t()));
    EXPECT_EQ((std::vector<uint64_t>{(1ull << 33) + 6}), as(7, uint64_t()));
}

TEST(Variable, InitialisersHoldAddresses)
{
    ptx::Module m = parse(in_module(".global .u32 x[4];\n.global .u64 p[3] = {x, generic(x) + 8, 5};\n"
                                    ".global .u32 q = x-4;"));
    const auto &r = m.variables.at(1).relocs;
    ASSERT_EQ(2u, r.size());
    EXPECT_EQ("x", r[0].symbol);
    EXPECT_FALSE(r[0].generic);
    EXPECT_EQ(8u, r[1].at);
    EXPECT_EQ(8, r[1].addend);
    EXPECT_TRUE(r[1].generic);
    EXPECT_EQ(4u, m.variables.at(2).relocs.at(0).bytes);
    EXPECT_EQ(-4, m.variables[2].relocs[0].addend);
}

TEST(Variable, MistakesAreNamed)
{
    EXPECT_EQ("line 4: the initialiser of `x` has more values than the variable",
              error_of(in_module(".global .u32 x[2] = {1, 2, 3};")));
    EXPECT_EQ("line 4: the initialiser of `x` has more braces than the variable has dimensions",
              error_of(in_module(".global .u32 x[2] = {{1}, 2};")));
    EXPECT_EQ("line 4: variable `x` is larger than any device's memory",
              error_of(in_module(".global .u32 x[99999999999][99999999999];")));
    EXPECT_EQ("line 4: variable `x` cannot have an initialiser: only .global and .const variables can",
              error_of(in_module(".shared .u32 x = 1;")));
    EXPECT_EQ("line 4: an alignment must be a power of two", error_of(in_module(".global .align 3 .u32 x;")));
    EXPECT_EQ("line 4: the size of `x` is not known", error_of(in_module(".global .u32 x[];")));
    EXPECT_EQ("line 4: the emulator has no textures: .texref", error_of(in_module(".global .texref t;")));
    EXPECT_EQ("line 5: a real number initialises the integer `x`", error_of(in_module("\n.global .u32 x = 1.5;")));
}

TEST(Variable, ExternGivesWayToTheDefinition)
{
    ptx::Module m =
        parse(in_module(".extern .global .u32 x[];\n.extern .shared .align 16 .b8 s[];\n.global .u32 x[3];"));
    ASSERT_EQ(2u, m.variables.size());
    EXPECT_EQ(12u, m.variables[0].bytes);
    EXPECT_FALSE(m.variables[0].is_extern);
    EXPECT_TRUE(m.variables[1].is_extern);
    EXPECT_EQ(0u, m.variables[1].bytes);
}

/* ---- constants ---- */

TEST(Constant, NumbersOfEveryBase)
{
    EXPECT_EQ(255u, immediate("0xFF"));
    EXPECT_EQ(255u, immediate("0xffU"));
    EXPECT_EQ(8u, immediate("010"));
    EXPECT_EQ(5u, immediate("0b101"));
    EXPECT_EQ(0u, immediate("0"));
    EXPECT_EQ(~0ull, immediate("18446744073709551615"));
    EXPECT_EQ(uint64_t(-7), immediate("-7"));
    EXPECT_EQ(32u, immediate("WARP_SZ"));
    EXPECT_EQ("line 6: a number does not fit into 64 bits",
              error_of(in_kernel(".reg .b64 a;\nmov.b64 a, 18446744073709551616;")));
    EXPECT_EQ("line 5: `12ab` is not a number", error_of(in_kernel("mov.b64 a, 12ab;")));
    EXPECT_EQ("line 5: `089` is not a number", error_of(in_kernel("mov.b64 a, 089;")));
    EXPECT_EQ("line 5: a literal 0f has 8 hexadecimal digits", error_of(in_kernel("mov.b64 a, 0f12;")));
}

TEST(Constant, ExpressionsHaveTheOperatorsOfC)
{
    EXPECT_EQ(14u, immediate("2 + 3 * 4"));
    EXPECT_EQ(20u, immediate("(2 + 3) * 4"));
    EXPECT_EQ(uint64_t(-5), immediate("10 - 3 * 5"));
    EXPECT_EQ(1u, immediate("8 - 4 - 3"));
    EXPECT_EQ(uint64_t(-2), immediate("-7 / 3"));
    EXPECT_EQ(uint64_t(-1), immediate("-7 % 3"));
    EXPECT_EQ(0x5555555555555553u, immediate("(.u64)(-7) / 3U"));
    EXPECT_EQ(uint64_t(-4), immediate("-7 >> 1"));
    EXPECT_EQ(0x80u, immediate("1 << 7"));
    EXPECT_EQ(0u, immediate("1 << 64"));
    EXPECT_EQ(6u, immediate("(4 | 2) & ~1"));
    EXPECT_EQ(3u, immediate("1 ^ 2"));
    EXPECT_EQ(1u, immediate("-1 < 1"));
    EXPECT_EQ(0u, immediate("-1 < 1U"));
    EXPECT_EQ(11u, immediate("3 == 3 && !0 ? 11 : 22"));
    EXPECT_EQ(1ull << 63, immediate("-9223372036854775808 / -1"));
    EXPECT_EQ("line 5: division by zero in a constant expression", error_of(in_kernel("mov.b64 a, 1 / 0;")));
}

TEST(Constant, RealsKeepTheBitsOfANan)
{
    ptx::Function f = kernel(".reg .f32 f;\n.reg .f64 d;\nmov.f32 f, 0f7FC12345;\nmov.f64 d, 0d7FF0000000000001;\n"
                             "mov.f32 f, -1.5e1;\nmov.f32 f, -0f00000000;");
    EXPECT_TRUE(f.body[0].ops[1].is_single);
    EXPECT_EQ(0x7fc12345u, f.body[0].ops[1].single);
    EXPECT_EQ(0x7ff0000000000001u, f.body[1].ops[1].bits);
    double d;
    memcpy(&d, &f.body[2].ops[1].bits, 8);
    EXPECT_EQ(-15.0, d);
    EXPECT_EQ(0x80000000u, f.body[3].ops[1].single);
}

/* ---- instructions and operands ---- */

TEST(Instruction, KeepsOpcodeModifiersGuardAndText)
{
    ptx::Function f =
        kernel(".reg .pred %p<3>;\n.reg .b32 %r<9>;\n@!%p1 ld.global.L1::evict_last.L2::cache_hint.v2.u32 "
               "{%r1,\t%r8},\n [%r2+-4]; // comment\nfence.proxy.async.shared::cta;");
    const ptx::Instr &i = f.body.at(0);
    EXPECT_EQ("ld", i.opcode);
    EXPECT_EQ((std::vector<std::string>{"global", "L1::evict_last", "L2::cache_hint", "v2", "u32"}), i.mods);
    EXPECT_EQ("%p1", f.regs.at(size_t(i.guard)).name);
    EXPECT_TRUE(i.guard_negate);
    EXPECT_EQ("@!%p1 ld.global.L1::evict_last.L2::cache_hint.v2.u32 {%r1, %r8}, [%r2+-4]", i.text);
    EXPECT_EQ(7u, i.loc.ptx_line);
    ASSERT_EQ(2u, i.ops.size());
    EXPECT_EQ(Operand::vector, i.ops[0].kind);
    EXPECT_EQ("%r8", register_name(f, i.ops[0].items.at(1)));
    EXPECT_EQ(Operand::address, i.ops[1].kind);
    EXPECT_EQ(-4, i.ops[1].offset);
    EXPECT_EQ("shared::cta", f.body.at(1).mods.back());
}

TEST(Instruction, OperandsOfEveryKind)
{
    ptx::Function f =
        kernel(".reg .pred %p<3>;\n.reg .b32 %r<9>;\n.reg .b64 %rd<4>;\n.shared .b8 s[8];\n"
               "op %p1|%p2, _|%p2, !%p1, {1, -2, _}, [s+4], [64], [%rd1, {%r1, %r2}], %tid.x, s, %clock64;");
    const auto &o = f.body.at(0).ops;
    ASSERT_EQ(10u, o.size());
    EXPECT_EQ(Operand::pair, o[0].kind);
    EXPECT_EQ("%p2", register_name(f, o[0].items.at(1)));
    EXPECT_EQ(Operand::sink, o[1].items.at(0).kind);
    EXPECT_TRUE(o[2].negate);
    EXPECT_EQ(uint64_t(-2), o[3].items.at(1).bits);
    EXPECT_EQ(Operand::sink, o[3].items.at(2).kind);
    EXPECT_EQ("s", o[4].items.at(0).name);
    EXPECT_EQ(4, o[4].offset);
    EXPECT_EQ(64u, o[5].items.at(0).bits);
    EXPECT_EQ(Operand::vector, o[6].items.at(1).kind);
    EXPECT_EQ(Operand::special, o[7].kind);
    EXPECT_EQ("tid.x", o[7].name);
    EXPECT_EQ(Operand::symbol, o[8].kind);
    EXPECT_EQ("clock64", o[9].name);
}

TEST(Instruction, AddressOffsetsAreExpressions)
{
    ptx::Function f = kernel(".reg .b64 %rd<4>;\nop [%rd1 + (4 - 2) * 8], [%rd2-8], [%rd3+-4+1], [p+4];");
    EXPECT_EQ(16, f.body[0].ops[0].offset);
    EXPECT_EQ(-8, f.body[0].ops[1].offset);
    EXPECT_EQ(-3, f.body[0].ops[2].offset);
    EXPECT_EQ(4, f.body[0].ops[3].offset);
}

TEST(Instruction, CallsOfEveryForm)
{
    ptx::Module m = parse(in_module(
        ".func (.param .b32 r) f (.param .b32 a) { ret; }\n.func g { ret; }\n"
        ".entry k() {\n.reg .b64 %rd<2>;\n.param .b32 x;\n.param .b32 y;\n"
        "call.uni (y), f, (x);\ncall (y), %rd1, (x), proto;\ncall (y), %rd1, (x), list;\ncall g;\ncall g, ();\n"
        "proto: .callprototype (.param .b32 _) _ (.param .align 8 .b8 _[16]);\nlist: .calltargets f;\n}"));
    const ptx::Function &k = named(m, "k");
    auto kinds = [&](size_t i) {
        std::vector<Operand::Kind> v;
        for (const Operand &o : k.body.at(i).ops)
            v.push_back(o.kind);
        return v;
    };
    using O = Operand;
    EXPECT_EQ((std::vector<O::Kind>{O::list, O::symbol, O::list}), kinds(0));
    EXPECT_EQ((std::vector<O::Kind>{O::list, O::reg, O::list, O::symbol}), kinds(1));
    EXPECT_EQ((std::vector<O::Kind>{O::symbol}), kinds(3));
    EXPECT_EQ((std::vector<O::Kind>{O::symbol, O::list}), kinds(4));
    EXPECT_EQ("f", k.body[0].ops[1].name);
    EXPECT_EQ("x", k.body[0].ops[2].items.at(0).name);
    ASSERT_EQ(2u, k.prototypes.size());
    EXPECT_EQ("proto", k.prototypes[0].name);
    EXPECT_EQ(16u, k.prototypes[0].params.at(0).bytes);
    EXPECT_EQ("list", k.prototypes[1].name);
    EXPECT_EQ(4u, k.prototypes[1].ret.at(0).bytes);
}

TEST(Instruction, TheInnermostSourceLineCounts)
{
    ptx::Function f =
        kernel(".loc 1 12 3\nop1;\n.loc 2 631 1, function_name $L__info_string1+4, inlined_at 1 125 5\nop2;");
    EXPECT_EQ(12u, f.body[0].loc.line);
    EXPECT_EQ(2u, f.body[1].loc.file);
    EXPECT_EQ(631u, f.body[1].loc.line);
    EXPECT_EQ(8u, f.body[1].loc.ptx_line);
}

TEST(Instruction, MistakesAreNamed)
{
    EXPECT_EQ("line 6: the guard `r` is not a predicate", error_of(in_kernel(".reg .b32 r;\n@r op;")));
    EXPECT_EQ("line 6: `!` stands before something that is not a predicate",
              error_of(in_kernel(".reg .b32 r;\nop !r;")));
    EXPECT_EQ("line 6: expected `,` between operands, found `r`", error_of(in_kernel(".reg .b32 r;\nop r r;")));
    EXPECT_EQ("line 5: expected an instruction, found `,`", error_of(in_kernel(", op;")));
    EXPECT_EQ("line 5: expected a constant, found `;`", error_of(in_kernel("op 1,;")));
    EXPECT_EQ("line 5: `#` is not a character of PTX", error_of(in_kernel("op #;")));
    EXPECT_EQ("line 6: expected `}` at the end of a function, found the end of the text",
              error_of(in_module(".entry k() {\nop;\n")));
    EXPECT_EQ("line 5: the comment that begins here has no end", error_of(in_kernel("/* op;")));
    EXPECT_EQ("line 5: `r` is declared twice", error_of(in_kernel(".reg .b32 r, r;")));
    EXPECT_EQ("line 5: braces or parentheses nest too deeply", error_of(in_kernel(std::string(1000, '{'))));
    EXPECT_EQ("line 5: braces or parentheses nest too deeply",
              error_of(in_kernel("op " + std::string(100000, '(') + "1;")));
    EXPECT_EQ("line 5: function `k` has too many registers", error_of(in_kernel(".reg .b32 %r<4000000000>;")));
}

/* ---- scopes ---- */

TEST(Scope, RangesMakeRegistersOnFirstUse)
{
    ptx::Function f = kernel(".reg .b32 %r<100>;\n.reg .b64 %rd<3>;\nop %r99, %rd2, %r99, %r0;");
    ASSERT_EQ(3u, f.regs.size());
    EXPECT_EQ("%r99", f.regs[0].name);
    EXPECT_EQ(Type::b64, f.regs[1].type);
    EXPECT_EQ(0u, f.body[0].ops[2].index);
    /* Outside of the range, and not a canonical number: names of nothing. */
    for (const char *name : {"%r100", "%r099", "%r", "%rd3"})
        EXPECT_EQ(Operand::special,
                  kernel(".reg .b32 %r<100>;\n.reg .b64 %rd<3>;\nop " + std::string(name) + ";").body[0].ops[0].kind)
            << name;
}

TEST(Scope, InnerNamesHideOuterOnes)
{
    ptx::Function f =
        kernel(".reg .b32 a;\n.shared .b8 s[4];\nop a, s;\n{\n.reg .b64 a;\n.shared .b8 s[8];\nop a, s;\n}\n"
               "{\n.param .b32 q;\n}\n{\n.param .b32 q;\nop q;\n}\nop a, s;");
    ASSERT_EQ(4u, f.body.size());
    EXPECT_NE(f.body[0].ops[0].index, f.body[1].ops[0].index);
    EXPECT_EQ(Type::b64, f.regs[f.body[1].ops[0].index].type);
    EXPECT_EQ(f.body[0].ops[0].index, f.body[3].ops[0].index);
    EXPECT_EQ("s", f.body[0].ops[1].name);
    EXPECT_NE("s", f.body[1].ops[1].name);
    EXPECT_EQ("s", f.body[3].ops[1].name);
    EXPECT_NE("q", f.body[2].ops[0].name);
    ASSERT_EQ(4u, f.locals.size());
    EXPECT_EQ(8u, f.locals[1].bytes);
    EXPECT_EQ(f.locals[1].name, f.body[1].ops[1].name);
}

TEST(Scope, ALocalVariableHidesOneOfTheModule)
{
    ptx::Module m = parse(in_module(".shared .b8 s[4];\n.entry a() { .shared .b8 s[8]; op s; }\n.entry b() { op s; }"));
    EXPECT_NE("s", m.functions[0].body[0].ops[0].name);
    EXPECT_EQ("s", m.functions[1].body[0].ops[0].name);
}

TEST(Scope, LabelsBelongToTheirBraces)
{
    ptx::Function f = kernel("bra L;\n{\nbra L;\nL: op1;\nbra OUT;\n}\nL: op2;\n{\nbra L;\n}\nOUT:");
    auto target = [&](size_t i) { return f.labels.at(f.body.at(i).ops.at(0).index).at; };
    EXPECT_EQ(4u, target(0)); /* the outer label, though the inner one comes first */
    EXPECT_EQ(2u, target(1));
    EXPECT_EQ(6u, target(3));
    EXPECT_EQ(4u, target(5));
    EXPECT_EQ(6u, f.body.size());
}

TEST(Scope, BranchTablesKnowLaterLabels)
{
    ptx::Function f = kernel("T: .branchtargets A, B, A;\nbrx.idx 1, T;\nA: op;\nB: op;");
    ASSERT_EQ(1u, f.tables.size());
    EXPECT_EQ(f.tables[0].name, f.body[0].ops[1].name);
    std::vector<uint32_t> at;
    for (uint32_t l : f.tables[0].labels)
        at.push_back(f.labels.at(l).at);
    EXPECT_EQ((std::vector<uint32_t>{1, 2, 1}), at);
    EXPECT_EQ("line 5: label `B` of .branchtargets is not declared",
              error_of(in_kernel("T: .branchtargets A, B;\nA:")));
}

TEST(Scope, NamesNobodyDeclaresAreTheModules)
{
    ptx::Function f = kernel("op elsewhere+4;");
    EXPECT_EQ(Operand::symbol, f.body[0].ops[0].kind);
    EXPECT_EQ("elsewhere", f.body[0].ops[0].name);
    EXPECT_EQ(4, f.body[0].ops[0].offset);
}

/* ---- real text ---- */

TEST(Corpus, WhatNvccPrintsParses)
{
    for (const std::string &text : corpus()) {
        ptx::Module m = parse(text);
        EXPECT_GT(named(m, "switch_table").body.size(), 50u);
        EXPECT_EQ((std::vector<uint32_t>{128, 1, 1}), named(m, "local_arrays").directives.at("maxntid"));
        EXPECT_EQ(1u, named(m, "calls").prototypes.size());
        EXPECT_EQ(m.sm >= 90, std::any_of(m.functions.begin(), m.functions.end(),
                                          [](const ptx::Function &f) { return f.name == "clusters"; }));
        /* four copies of one inline assembly: four scopes with a label AGAIN each, branched to from its own scope */
        const ptx::Function &f = named(m, "inline_assembly");
        std::vector<uint32_t> back;
        for (size_t k = 0; k < f.body.size(); k++)
            for (const Operand &o : f.body[k].ops)
                if (o.kind == Operand::label && f.labels[o.index].name == "AGAIN") {
                    EXPECT_EQ(k - 2, f.labels[o.index].at);
                    back.push_back(o.index);
                }
        EXPECT_EQ(4u, back.size());
        EXPECT_TRUE(std::adjacent_find(back.begin(), back.end()) == back.end());
    }
}

/* Parses, and accepts a refusal with a line, nothing else. */
static void survives(const std::string &text)
{
    /* a copy of exactly this size: reading beyond it is caught by the address sanitizer */
    std::vector<char> exact(text.begin(), text.end());
    try {
        ptx::parse(exact.data(), exact.size());
    } catch (const ptx::Error &e) {
        unsigned line = 0;
        EXPECT_EQ(1, sscanf(e.what(), "line %u:", &line)) << e.what();
        EXPECT_LE(line, 1u + unsigned(std::count(text.begin(), text.end(), '\n')));
    }
}

TEST(Corpus, EveryTruncationParsesOrIsRefused)
{
    std::string text = corpus().at(2);
    for (size_t n = 0; n < text.size(); n += n < 2000 ? 1 : 149)
        survives(text.substr(0, n));
}

TEST(Corpus, EveryChangedByteParsesOrIsRefused)
{
    std::string text = corpus().at(2);
    std::mt19937 random(1);
    const char interesting[] = "{}[]()<>;:,.%@!|\"/*0123456789abxUfd=+-_ \n\0\xff";
    for (int k = 0; k < 500; k++) {
        std::string changed = text;
        for (unsigned n = random() % 3 + 1; n-- > 0;)
            changed[random() % changed.size()] = interesting[random() % (sizeof interesting - 1)];
        survives(changed);
    }
}

TEST(Corpus, EveryLostOrDoubledPieceParsesOrIsRefused)
{
    std::string text = corpus().at(1);
    std::mt19937 random(2);
    for (int k = 0; k < 200; k++) {
        size_t at = random() % text.size(), n = random() % 40;
        survives(k % 2 ? text.substr(0, at) + text.substr(std::min(text.size(), at + n))
                       : text.substr(0, at) + text.substr(at, n) + text.substr(at));
    }
}
