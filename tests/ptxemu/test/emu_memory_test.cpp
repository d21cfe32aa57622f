/* Loads, stores, address conversion and cache hints: what arrives in registers and in memory. */
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "test/ptx_text.h"

namespace
{
constexpr unsigned THREADS = 64;

using Bytes = std::vector<uint8_t>;

Bytes noise(size_t n, uint32_t seed = 1)
{
    Bytes v(n);
    for (uint8_t &b : v) {
        seed = seed * 1664525 + 1013904223;
        b = uint8_t(seed >> 24);
    }
    return v;
}

/* Little-endian bits of `n` bytes at p. */
uint64_t bits_at(const uint8_t *p, unsigned n)
{
    uint64_t v = 0;
    memcpy(&v, p, n);
    return v;
}

struct MemoryType {
    const char *name;
    unsigned bytes;
    bool is_signed;
};
const MemoryType types[] = {{"u8", 1, false},  {"s8", 1, true},   {"b8", 1, false},  {"u16", 2, false},
                            {"s16", 2, true},  {"b16", 2, false}, {"u32", 4, false}, {"s32", 4, true},
                            {"b32", 4, false}, {"u64", 8, false}, {"s64", 8, true},  {"b64", 8, false},
                            {"f32", 4, false}, {"f64", 8, false}};

const char *register_of(unsigned bits)
{
    return bits == 16 ? "%h0" : bits == 32 ? "%r0" : "%d0";
}

/* Loads in: out = a[tid] at the type's width, all 64 bits of out[tid] are the register widened by zeros. */
std::string load_and_show(const std::string &load, unsigned bytes, unsigned reg_bits)
{
    std::string show = reg_bits == 64
                           ? "mov.b64 %d1, %d0;\n"
                           : "cvt.u64.u" + std::to_string(reg_bits) + " %d1, " + register_of(reg_bits) + ";\n";
    return "mad.lo.u64 %d5, %t, " + std::to_string(bytes) + ", %a;\n" + load + "\n" + show +
           "mad.lo.u64 %d6, %t, 8, %b;\nst.global.b64 [%d6], %d1;\n";
}

std::string braces(const char *letter, unsigned n, unsigned from = 0)
{
    std::string s;
    for (unsigned k = 0; k < n; k++)
        s += std::string(k ? ", " : "") + "%" + letter + std::to_string(from + k);
    return n == 1 ? s : "{" + s + "}";
}

/* Copies bytes from a to b with a load and a store of the same form; `from` and `to` hold the modifiers. */
void expect_copy(const std::string &load, const std::string &store, unsigned bytes)
{
    const std::string at = "mad.lo.u64 %d8, %t, " + std::to_string(bytes) + ", %a;\nmad.lo.u64 %d9, %t, " +
                           std::to_string(bytes) + ", %b;\n";
    const Bytes in = noise(THREADS * bytes);
    emu::Buffer<uint8_t> a(in), b(in.size());
    b.zero();
    CUresult r = emu::run({at + load + "\n" + store}, THREADS, a.p, b.p);
    ASSERT_EQ(CUDA_SUCCESS, r) << load << " " << store << emu::report();
    EXPECT_EQ(in, b.get()) << load << " " << store;
}
} // namespace

TEST(Load, WidensToTheRegisterAsTheTypeSays)
{
    emu::Device device;
    for (const MemoryType &t : types)
        for (unsigned reg_bits : {16u, 32u, 64u}) {
            if (reg_bits < t.bytes * 8)
                continue;
            const Bytes in = noise(THREADS * t.bytes, reg_bits);
            emu::Buffer<uint8_t> a(in);
            emu::Buffer<uint64_t> b(THREADS);
            const std::string load = std::string("ld.global.") + t.name + " " + register_of(reg_bits) + ", [%d5];";
            ASSERT_CU(emu::run({load_and_show(load, t.bytes, reg_bits)}, THREADS, a.p, b.p));
            const std::vector<uint64_t> out = b.get();
            for (unsigned k = 0; k < THREADS; k++) {
                uint64_t v = bits_at(&in[k * t.bytes], t.bytes);
                const unsigned width = t.bytes * 8;
                if (t.is_signed && (v >> (width - 1) & 1) && width < 64)
                    v |= ~uint64_t(0) << width;
                if (reg_bits < 64)
                    v &= (uint64_t(1) << reg_bits) - 1;
                ASSERT_EQ(v, out[k]) << load << " of element " << k;
            }
        }
}

TEST(Store, KeepsTheLowBitsOfTheRegister)
{
    emu::Device device;
    for (const MemoryType &t : types)
        for (unsigned reg_bits : {16u, 32u, 64u}) {
            if (reg_bits < t.bytes * 8)
                continue;
            const unsigned bytes = reg_bits / 8;
            const Bytes in = noise(THREADS * bytes, t.bytes);
            emu::Buffer<uint8_t> a(in), b(THREADS * 16);
            b.put(Bytes(THREADS * 16, 0x77));
            const std::string store = std::string("st.global.") + t.name + " [%d6], " + register_of(reg_bits) + ";";
            ASSERT_CU(emu::run({"mad.lo.u64 %d5, %t, " + std::to_string(bytes) + ", %a;\nld.global.b" +
                                std::to_string(reg_bits) + " " + register_of(reg_bits) +
                                ", [%d5];\nmad.lo.u64 %d6, %t, 16, %b;\n" + store},
                               THREADS, a.p, b.p));
            const Bytes out = b.get();
            for (unsigned k = 0; k < THREADS; k++) {
                ASSERT_EQ(bits_at(&in[k * bytes], t.bytes), bits_at(&out[k * 16], t.bytes)) << store;
                ASSERT_EQ(0x77, out[k * 16 + t.bytes]) << store << " wrote too much";
            }
        }
}

TEST(Store, TakesImmediates)
{
    emu::Device device;
    emu::Buffer<uint32_t> b(4);
    ASSERT_CU(emu::run({"st.global.v4.u32 [%b], {1, 0xfffffffe, 3, -4};"}, 1, 0, b.p));
    EXPECT_EQ((std::vector<uint32_t>{1, 0xfffffffe, 3, 0xfffffffc}), b.get());
    b.zero();
    ASSERT_CU(emu::run({"st.global.f32 [%b], 0f3f800000; st.global.u8 [%b+4], 255; st.global.v2.u8 [%b+6], {-1, 2};\n"
                        "st.global.f64 [%b+8], 0d3ff0000000000000;"},
                       1, 0, b.p));
    EXPECT_EQ((std::vector<uint32_t>{0x3f800000, 0x02ff00ff, 0, 0x3ff00000}), b.get());
}

TEST(LoadStore, VectorsKeepTheOrderOfTheirElements)
{
    emu::Device device;
    for (const MemoryType &t : types)
        for (unsigned n : {2u, 4u}) {
            if (t.bytes * n > 16)
                continue;
            const char *letter = t.bytes <= 2 ? "h" : t.bytes == 4 ? "r" : "d";
            const std::string form = ".global.v" + std::to_string(n) + "." + t.name + " ";
            const std::string regs = braces(letter, n);
            expect_copy("ld" + form + regs + ", [%d8];", "st" + form + "[%d9], " + regs + ";", t.bytes * n);
        }
    expect_copy("ld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%d8];",
                "st.global.v2.f32 [%d9], {%f0, %f1};\nst.global.v2.f32 [%d9+8], {%f2, %f3};", 16);
    expect_copy("ld.global.v2.b64 {%d0, %d1}, [%d8];", "st.global.v2.f64 [%d9], {%d0, %d1};", 16);
}

TEST(LoadStore, SixteenBytesInOneRegister)
{
    emu::Device device;
    emu::Text t{"mad.lo.u64 %d8, %t, 16, %a;\nmad.lo.u64 %d9, %t, 16, %b;\nld.global.b128 %q, [%d8];\nst.global.b128 "
                "[%d9], %q;",
                "", ".reg .b128 %q;\n"};
    const Bytes in = noise(THREADS * 16);
    emu::Buffer<uint8_t> a(in), b(in.size());
    ASSERT_CU(emu::run(t, THREADS, a.p, b.p));
    EXPECT_EQ(in, b.get());
}

TEST(LoadStore, CacheOperatorsAndHintsChangeNothing)
{
    emu::Device device;
    for (const char *load :
         {"ld.global.ca.b32 %r0, [%d8];",
          "ld.global.cg.b32 %r0, [%d8];",
          "ld.global.cs.b32 %r0, [%d8];",
          "ld.global.lu.b32 %r0, [%d8];",
          "ld.global.cv.b32 %r0, [%d8];",
          "ld.global.nc.b32 %r0, [%d8];",
          "ld.global.ca.nc.b32 %r0, [%d8];",
          "ld.weak.global.b32 %r0, [%d8];",
          "ld.b32 %r0, [%d8];",
          "ld.global.L1::no_allocate.b32 %r0, [%d8];",
          "ld.global.L1::evict_last.L2::128B.b32 %r0, [%d8];",
          "ld.global.nc.L1::no_allocate.L2::256B.b32 %r0, [%d8];",
          "createpolicy.fractional.L2::evict_first.b64 %d0, 0.5;\nld.global.L2::cache_hint.b32 %r0, [%d8], %d0;",
          "createpolicy.fractional.L2::evict_last.L2::evict_unchanged.b64 %d0;\n"
          "ld.global.nc.L1::no_allocate.L2::cache_hint.L2::64B.b32 %r0, [%d8], %d0;",
          "ldu.global.b32 %r0, [%d8];",
          "ldu.b32 %r0, [%d8];",
          "ld.volatile.global.b32 %r0, [%d8];",
          "ld.volatile.b32 %r0, [%d8];",
          "ld.relaxed.cta.global.b32 %r0, [%d8];",
          "ld.relaxed.gpu.b32 %r0, [%d8];",
          "ld.acquire.gpu.global.b32 %r0, [%d8];",
          "ld.acquire.sys.b32 %r0, [%d8];",
          "ld.relaxed.cluster.global.b32 %r0, [%d8];",
          "ld.mmio.relaxed.sys.global.b32 %r0, [%d8];",
          "prefetch.global.L2 [%d8];\nprefetch.L1 [%d8];\nprefetchu.L1 [%d8];\nprefetch.global.L2::evict_last [%d8];\n"
          "ld.global.b32 %r0, [%d8];",
          "applypriority.global.L2::evict_normal [%a], 128;\nld.global.b32 %r0, [%d8];",
          "createpolicy.range.global.L2::evict_last.L2::evict_unchanged.b64 %d0, [%a], 128, 256;\n"
          "createpolicy.cvt.L2.b64 %d1, 0x1234;\nld.global.b32 %r0, [%d8];"})
        expect_copy(load, "st.global.b32 [%d9], %r0;", 4);
    for (const char *store :
         {"st.global.wb.b32 [%d9], %r0;", "st.global.cg.b32 [%d9], %r0;", "st.global.cs.b32 [%d9], %r0;",
          "st.global.wt.b32 [%d9], %r0;", "st.weak.global.b32 [%d9], %r0;", "st.b32 [%d9], %r0;",
          "st.global.L1::no_allocate.b32 [%d9], %r0;",
          "createpolicy.fractional.L2::evict_first.b64 %d0, 0.5;\nst.global.L2::cache_hint.b32 [%d9], %r0, %d0;",
          "st.volatile.global.b32 [%d9], %r0;", "st.relaxed.gpu.global.b32 [%d9], %r0;",
          "st.release.cta.b32 [%d9], %r0;", "st.release.sys.global.b32 [%d9], %r0;",
          "st.mmio.relaxed.sys.global.b32 [%d9], %r0;",
          "fence.sc.cta;\nfence.acq_rel.gpu;\nfence.sc.sys;\nfence.acq_rel.cluster;\nfence.gpu;\nmembar.cta;\nmembar."
          "gl;\n"
          "membar.sys;\nfence.mbarrier_init.release.cluster;\nst.global.b32 [%d9], %r0;"})
        expect_copy("ld.global.b32 %r0, [%d8];", store, 4);
}

TEST(LoadStore, StrongAccessesOfEveryWidth)
{
    emu::Device device;
    for (const char *t : {"u8", "u16", "u32", "u64", "v2.u32", "v4.u32", "v2.u64"}) {
        const std::string type = t;
        const bool vec = type[0] == 'v';
        const unsigned n = vec ? unsigned(type[1] - '0') : 1;
        const unsigned bytes = unsigned(std::stoi(type.substr(type.find('u') + 1))) / 8;
        const std::string regs = braces(bytes <= 2 ? "h" : bytes == 4 ? "r" : "d", n);
        expect_copy("ld.acquire.gpu.global." + type + " " + regs + ", [%d8];",
                    "st.release.gpu.global." + type + " [%d9], " + regs + ";", bytes * n);
        expect_copy("ld.volatile.global." + type + " " + regs + ", [%d8];",
                    "st.volatile.global." + type + " [%d9], " + regs + ";", bytes * n);
    }
}

TEST(LoadStore, InactiveLanesTouchNothing)
{
    emu::Device device;
    std::vector<uint32_t> in(THREADS), expected(THREADS);
    for (unsigned k = 0; k < THREADS; k++) {
        in[k] = k * 7 + 1;
        expected[k] = k % 3 == 1 ? in[k] : 0;
    }
    emu::Buffer<uint32_t> a(in), b(THREADS);
    b.zero();
    /* the lanes that do not take part have an address that leads nowhere */
    ASSERT_CU(emu::run({"rem.u32 %r1, %i, 3;\nsetp.eq.u32 %p0, %r1, 1;\nmad.lo.u64 %d8, %t, 4, %a;\n"
                        "mad.lo.u64 %d9, %t, 4, %b;\n@!%p0 mov.u64 %d8, 12345;\n@!%p0 mov.u64 %d9, 54321;\n"
                        "mov.u32 %r0, 9;\n@%p0 ld.global.u32 %r0, [%d8];\n@%p0 st.global.u32 [%d9], %r0;"},
                       THREADS, a.p, b.p));
    EXPECT_EQ(expected, b.get());
}

TEST(LoadStore, ARegisterMayBeAddressAndResult)
{
    emu::Device device;
    emu::Buffer<uint64_t> a(std::vector<uint64_t>(THREADS, 77)), b(THREADS);
    ASSERT_CU(emu::run({"mad.lo.u64 %d0, %t, 8, %a;\nmad.lo.u64 %d1, %t, 8, %b;\nld.global.u64 %d0, [%d0];\n"
                        "st.global.u64 [%d1], %d0;"},
                       THREADS, a.p, b.p));
    EXPECT_EQ(std::vector<uint64_t>(THREADS, 77), b.get());
}

TEST(Shared, OffsetsOf32And64BitsAndNegativeOnes)
{
    emu::Device device;
    emu::Buffer<uint32_t> b(THREADS * 2);
    emu::Text t{
        "shl.b32 %r0, %i, 2;\nmov.u32 %r1, buffer;\nadd.u32 %r1, %r1, %r0;\nst.shared.u32 [%r1], %i;\n"
        "bar.sync 0;\nxor.b32 %r2, %r0, 4;\nmov.u32 %r9, buffer;\nadd.u32 %r2, %r2, %r9;\nadd.u32 %r2, %r2, 8;\n"
        "ld.shared.u32 %r3, [%r2+-8];\ncvt.u64.u32 %d0, %r2;\nld.shared.u32 %r4, [%d0+-8];\n"
        "mad.lo.u64 %d1, %t, 8, %b;\nst.global.v2.u32 [%d1], {%r3, %r4};",
        "", ".shared .align 16 .b8 buffer[272];\n"};
    ASSERT_CU(emu::run(t, THREADS, 0, b.p));
    for (unsigned k = 0; k < THREADS; k++) {
        EXPECT_EQ(k ^ 1, b.get()[k * 2]);
        EXPECT_EQ(k ^ 1, b.get()[k * 2 + 1]);
    }
}

TEST(Shared, AddressesOf32BitsWrapAround)
{
    emu::Device device;
    emu::Buffer<uint32_t> b(1);
    emu::Text t{
        "st.shared.u32 [buffer], 7;\nmov.u32 %r1, buffer;\nsub.u32 %r1, %r1, 16;\nld.shared.u32 %r0, [%r1+16];\n"
        "st.global.u32 [%b], %r0;",
        "", ".shared .align 16 .b8 buffer[16];\n"};
    ASSERT_CU(emu::run(t, 1, 0, b.p));
    EXPECT_EQ(7u, b.get()[0]);
}

TEST(Shared, StaticAndDynamicMemoryLieBesideEachOther)
{
    emu::Device device;
    emu::Buffer<uint32_t> b(THREADS);
    emu::Text t{
        "shl.b32 %r0, %i, 2;\nmov.u32 %r9, fixed;\nadd.u32 %r1, %r0, %r9;\nmov.u32 %r9, dynamic;\nadd.u32 %r2, %r0, "
        "%r9;\nst.shared.u32 [%r1], %i;\n"
        "mul.lo.u32 %r3, %i, 100;\nst.shared.u32 [%r2], %r3;\nld.shared.u32 %r4, [%r1];\n"
        "ld.shared.u32 %r5, [%r2];\nadd.u32 %r4, %r4, %r5;\nmad.lo.u64 %d1, %t, 4, %b;\nst.global.u32 [%d1], %r4;",
        ".extern .shared .align 16 .b8 dynamic[];\n", ".shared .align 4 .b8 fixed[256];\n"};
    ASSERT_CU(emu::run(t, THREADS, 0, b.p, 0, 256));
    for (unsigned k = 0; k < THREADS; k++)
        EXPECT_EQ(k * 101, b.get()[k]);
}

TEST(Generic, AddressesReachEverySpace)
{
    emu::Device device;
    std::vector<uint32_t> in(THREADS);
    for (unsigned k = 0; k < THREADS; k++)
        in[k] = k + 1000;
    emu::Buffer<uint32_t> a(in), b(THREADS * 4);
    emu::Text t{"shl.b32 %r0, %i, 2;\n"
                /* shared, written through a generic address, read through its own */
                "mov.u64 %d0, buffer;\ncvta.shared.u64 %d0, %d0;\nmad.lo.u64 %d0, %t, 4, %d0;\nst.u32 [%d0], %i;\n"
                "cvta.to.shared.u64 %d1, %d0;\nld.shared.u32 %r1, [%d1];\n"
                /* local */
                "mov.u64 %d2, mine;\ncvta.local.u64 %d2, %d2;\nadd.u32 %r7, %i, 5;\nst.u32 [%d2+4], %r7;\n"
                "ld.local.u32 %r2, [mine+4];\n"
                /* constant */
                "mov.u64 %d3, table;\ncvta.const.u64 %d3, %d3;\nand.b32 %r6, %i, 3;\nmul.wide.u32 %d4, %r6, 4;\n"
                "add.u64 %d3, %d3, %d4;\nld.u32 %r3, [%d3];\n"
                /* global */
                "mad.lo.u64 %d5, %t, 4, %a;\nld.u32 %r4, [%d5];\n"
                "mad.lo.u64 %d6, %t, 16, %b;\nst.v4.u32 [%d6], {%r1, %r2, %r3, %r4};",
                ".const .align 4 .u32 table[4] = {11, 22, 33, 44};\n",
                ".shared .align 4 .b8 buffer[256];\n.local .align 8 .b8 mine[16];\n"};
    ASSERT_CU(emu::run(t, THREADS, a.p, b.p));
    const std::vector<uint32_t> out = b.get();
    for (unsigned k = 0; k < THREADS; k++) {
        EXPECT_EQ(k, out[k * 4]);
        EXPECT_EQ(k + 5, out[k * 4 + 1]);
        EXPECT_EQ((k % 4 + 1) * 11, out[k * 4 + 2]);
        EXPECT_EQ(k + 1000, out[k * 4 + 3]);
    }
}

TEST(Generic, LanesOfOneLoadMayPointIntoDifferentSpaces)
{
    emu::Device device;
    std::vector<uint32_t> in(THREADS);
    for (unsigned k = 0; k < THREADS; k++)
        in[k] = k + 1000;
    emu::Buffer<uint32_t> a(in), b(THREADS);
    emu::Text t{"mov.u64 %d0, buffer;\ncvta.shared.u64 %d0, %d0;\nmad.lo.u64 %d0, %t, 4, %d0;\nst.u32 [%d0], %i;\n"
                "mad.lo.u64 %d1, %t, 4, %a;\nmov.u64 %d2, mine;\ncvta.local.u64 %d2, %d2;\nadd.u32 %r0, %i, 500;\n"
                "st.u32 [%d2], %r0;\nrem.u32 %r1, %i, 3;\nsetp.eq.u32 %p0, %r1, 0;\nsetp.eq.u32 %p1, %r1, 1;\n"
                "selp.b64 %d3, %d0, %d1, %p0;\nselp.b64 %d3, %d2, %d3, %p1;\nld.u32 %r2, [%d3];\n"
                "mad.lo.u64 %d4, %t, 4, %b;\nst.u32 [%d4], %r2;",
                "", ".shared .align 4 .b8 buffer[256];\n.local .align 4 .b8 mine[4];\n"};
    ASSERT_CU(emu::run(t, THREADS, a.p, b.p));
    for (unsigned k = 0; k < THREADS; k++)
        EXPECT_EQ(k + (k % 3 == 0 ? 0u : k % 3 == 1 ? 500u : 1000u), b.get()[k]);
}

TEST(Generic, IsspacepKnowsTheSpaceOfAnAddress)
{
    emu::Device device;
    emu::Buffer<uint32_t> b(4);
    auto ask = [](const char *d, unsigned at) {
        std::string s = "mov.u32 %r0, 0;\n";
        const char *const spaces[] = {"global", "shared", "local", "shared::cta", "shared::cluster", "const"};
        for (unsigned k = 0; k < 6; k++)
            s += std::string("isspacep.") + spaces[k] + " %p0, " + d + ";\n@%p0 or.b32 %r0, %r0, " +
                 std::to_string(1 << k) + ";\n";
        return s + "st.global.u32 [%b+" + std::to_string(at * 4) + "], %r0;\n";
    };
    emu::Text t{"mov.u64 %d0, buffer;\ncvta.shared.u64 %d0, %d0;\nmov.u64 %d1, mine;\ncvta.local.u64 %d1, %d1;\n"
                "st.local.u32 [mine], 1;\nmov.u64 %d2, table;\ncvta.const.u64 %d2, %d2;\nst.shared.u32 [buffer], 1;\n" +
                    ask("%a", 0) + ask("%d0", 1) + ask("%d1", 2) + ask("%d2", 3),
                ".const .align 4 .u32 table[4] = {11, 22, 33, 44};\n",
                ".shared .align 4 .b8 buffer[4];\n.local .align 4 .b8 mine[4];\n"};
    emu::Buffer<uint32_t> a(1);
    ASSERT_CU(emu::run(t, 1, a.p, b.p));
    EXPECT_EQ(1u, b.get()[0]) << "global";
    EXPECT_EQ(2u | 8u | 16u, b.get()[1]) << "shared";
    EXPECT_EQ(4u, b.get()[2]) << "local";
    EXPECT_EQ(32u, b.get()[3] & 62u) << "constant, which may be part of the global window";
}

TEST(Param, AddressesOfKernelParameters)
{
    emu::Device device;
    emu::Buffer<uint64_t> b(4);
    emu::Text t{"mov.b64 %d0, pb;\nld.param.u64 %d1, [%d0];\nld.param.u64 %d2, [pa+8];\ncvta.param.u64 %d3, pc;\n"
                "ld.u64 %d4, [%d3];\nld.param.v2.u32 {%r0, %r1}, [pa];\nmov.b64 %d5, {%r0, %r1};\n"
                "isspacep.param %p0, %d3;\nselp.b64 %d6, 1, 0, %p0;\n"
                "st.global.v2.u64 [%d1], {%d2, %d4};\nst.global.v2.u64 [%d1+16], {%d5, %d6};"};
    ASSERT_CU(emu::run(t, 1, 0x123456789abcdef0ull, b.p, 42));
    EXPECT_EQ((std::vector<uint64_t>{b.p, 42, 0x123456789abcdef0ull, 1}), b.get());
}

TEST(Constant, TablesAreReadByEveryThreadAtItsOwnPlace)
{
    emu::Device device;
    emu::Buffer<uint32_t> b(THREADS);
    emu::Text t{"xor.b32 %r0, %i, 63;\nmul.wide.u32 %d0, %r0, 2;\nmov.u64 %d1, table;\nadd.u64 %d0, %d0, %d1;\n"
                "ld.const.s16 %r1, [%d0];\nmad.lo.u64 %d4, %t, 4, %b;\nst.global.u32 [%d4], %r1;",
                ""};
    t.variables = ".const .align 2 .b16 table[64] = {";
    for (unsigned k = 0; k < 64; k++)
        t.variables += (k ? ", " : "") + std::to_string(k * 1500);
    t.variables += "};\n";
    ASSERT_CU(emu::run(t, THREADS, 0, b.p));
    for (unsigned k = 0; k < THREADS; k++)
        EXPECT_EQ(uint32_t(int32_t(int16_t((k ^ 63) * 1500))), b.get()[k]);
}

TEST(Global, VariablesOfTheModuleBeginWithTheirInitialValue)
{
    emu::Device device;
    emu::Buffer<uint32_t> b(4);
    emu::Text t{"ld.global.u32 %r0, [counter];\nld.global.u32 %r1, [zeros+8];\nld.global.u64 %d0, [pointer];\n"
                "ld.global.u32 %r2, [%d0];\nst.global.u32 [counter], 6;\nld.global.u32 %r3, [counter];\n"
                "st.global.v4.u32 [%b], {%r0, %r1, %r2, %r3};",
                ".global .align 4 .u32 counter = 5;\n.global .align 4 .b8 zeros[12];\n"
                ".global .align 4 .u32 list[3] = {7, 8, 9};\n.global .align 8 .u64 pointer = list+4;\n"};
    ASSERT_CU(emu::run(t, 1, 0, b.p));
    EXPECT_EQ((std::vector<uint32_t>{5, 0, 8, 6}), b.get());
}

TEST(Local, EveryThreadHasItsOwn)
{
    emu::Device device;
    emu::Buffer<uint32_t> b(THREADS);
    emu::Text t{"mov.u32 %r0, 0;\nmov.u64 %d0, mine;\n"
                "FILL:\nmad.lo.u32 %r1, %r0, %i, %r0;\nmul.wide.u32 %d1, %r0, 4;\nadd.u64 %d1, %d1, %d0;\n"
                "st.local.u32 [%d1], %r1;\nadd.u32 %r0, %r0, 1;\nsetp.lt.u32 %p0, %r0, 16;\n@%p0 bra FILL;\n"
                "and.b32 %r2, %i, 15;\nmul.wide.u32 %d1, %r2, 4;\nadd.u64 %d1, %d1, %d0;\nld.local.u32 %r3, [%d1];\n"
                "mad.lo.u64 %d4, %t, 4, %b;\nst.global.u32 [%d4], %r3;",
                "", ".local .align 4 .b8 mine[64];\n"};
    ASSERT_CU(emu::run(t, THREADS, 0, b.p));
    for (unsigned k = 0; k < THREADS; k++)
        EXPECT_EQ(k % 16 * (k + 1), b.get()[k]);
}

TEST(Local, AStructureWithAHoleMayBeCopied)
{
    emu::Device device;
    emu::Buffer<uint32_t> b(2);
    /* { int a; char b; } is written by parts and copied as 8 bytes; the hole is never looked at */
    emu::Text t{
        "st.local.u32 [mine], 5;\nst.local.u8 [mine+4], 6;\nld.local.u64 %d0, [mine];\nst.local.u64 [mine+8], %d0;\n"
        "ld.local.u32 %r0, [mine+8];\nld.local.u8 %r1, [mine+12];\n"
        "ld.local.v2.u32 {%r2, %r3}, [mine+16];\nst.local.v2.u32 [mine+24], {%r2, %r3};\n"
        "st.local.u32 [mine+28], 1;\nld.local.u32 %r4, [mine+28];\nadd.u32 %r1, %r1, %r4;\n"
        "st.global.v2.u32 [%b], {%r0, %r1};",
        "", ".local .align 16 .b8 mine[32];\n"};
    ASSERT_CU(emu::run(t, 1, 0, b.p));
    EXPECT_EQ((std::vector<uint32_t>{5, 7}), b.get());
}

TEST(Load, FormsThatDoNotExistAreRefused)
{
    emu::Device device;
    for (const char *body : {"ld.global.v8.u32 {%r0,%r1,%r2,%r3,%r4,%r5,%r6,%r7}, [%a];",
                             "ld.global.v4.u64 {%d0,%d1,%d2,%d3}, [%a];",
                             "ld.global.f16 %h0, [%a];",
                             "ld.shared.nc.u32 %r0, [%r1];",
                             "ld.global.u64 %r0, [%a];",
                             "ld.global.v2.u32 %r0, [%a];",
                             "ld.global.v2.u32 {%r0,%r1,%r2}, [%a];",
                             "ld.relaxed.global.u32 %r0, [%a];",
                             "ld.release.gpu.global.u32 %r0, [%a];",
                             "ld.relaxed.gpu.local.u32 %r0, [%a];",
                             "ld.volatile.const.u32 %r0, [%a];",
                             "ld.global.u32 %p0, [%a];",
                             "ld.global.u32 %r0, [%a], %d0;",
                             "ld.global.wb.u32 %r0, [%a];",
                             "st.const.u32 [%a], %r0;",
                             "st.acquire.gpu.u32 [%a], %r0;",
                             "st.global.ca.u32 [%a], %r0;",
                             "ldu.shared.u32 %r0, [%a];",
                             "fence.release.gpu.acquire;",
                             "membar.cluster;",
                             "discard.global.L2 [%a], 64;",
                             "isspacep %p0, %a;",
                             "cvta.u64 %d0, %a;"}) {
        emu::Module m(emu::Text{body}.str(), false);
        EXPECT_NE(CUDA_SUCCESS, m.result) << body;
        EXPECT_NE("", m.log) << body;
    }
}

TEST(Load, FormsOfNewerArchitecturesAreRefusedOnOlderOnes)
{
    emu::Device device("8.0");
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "this GPU is what it is";
    for (const char *body : {"ld.shared::cluster.u32 %r0, [%r1];", "ld.relaxed.cluster.global.u32 %r0, [%a];",
                             "fence.acq_rel.cluster;", "prefetch.tensormap [%a];"}) {
        emu::Module m(emu::Text{body, "", "", "sm_80"}.str(), false);
        EXPECT_NE(CUDA_SUCCESS, m.result) << body;
        EXPECT_NE(std::string::npos, m.log.find("sm_90")) << body << ": " << m.log;
    }
}
