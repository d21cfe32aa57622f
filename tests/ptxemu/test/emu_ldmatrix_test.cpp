/* ldmatrix, stmatrix, movmatrix: which element of which row comes to lie in which lane. */
#include "test/emu.h"

#include <numeric>
#include <random>

namespace
{

constexpr unsigned WARP = 32, ROW_BYTES = 16;
constexpr unsigned SHARED_BYTES = 2048;
using Words = std::vector<uint32_t>;

/* One warp.  Every lane copies words l, l + 32, ... of p_in to shared memory `s`, loads its address from p_address to
 * %a, loads %r0-3 from p_reg, executes the statement, and stores %r0-3 to p_out and the shared memory to p_shared. */
std::string kernel(const std::string &statement, const std::string &target, unsigned written = SHARED_BYTES)
{
    std::string s = ".version 8.0\n.target " + target +
                    "\n.address_size 64\n.visible .entry k(.param .u64 p_in, .param .u64 p_address, .param .u64 p_reg, "
                    ".param .u64 p_out, .param .u64 p_shared)\n{\n.shared .align 128 .b8 s[" +
                    std::to_string(SHARED_BYTES) +
                    "];\n.reg .b64 %p, %g, %o;\n.reg .b32 %a, %base, %at, %x, %lane, %r<4>;\n"
                    "mov.u32 %lane, %tid.x;\nmov.u32 %base, s;\nshl.b32 %at, %lane, 2;\nadd.u32 %at, %at, %base;\n"
                    "cvta.shared.u64 %g, 0;\nmul.wide.u32 %o, %lane, 4;\n";
    auto pointer = [&](const char *param) {
        s += std::string("ld.param.u64 %p, [") + param + "];\nadd.u64 %p, %p, %o;\n";
    };
    auto text = [](unsigned n) { return std::to_string(n); };
    pointer("p_in");
    for (unsigned b = 0; b < written; b += 128)
        s += "ld.global.u32 %x, [%p+" + text(b) + "];\nst.shared.u32 [%at+" + text(b) + "], %x;\n";
    pointer("p_address");
    s += "ld.global.u32 %a, [%p];\nadd.u32 %a, %a, %base;\n";
    pointer("p_reg");
    for (unsigned j = 0; j < 4; j++)
        s += "ld.global.u32 %r" + text(j) + ", [%p+" + text(128 * j) + "];\n";
    s += "bar.sync 0;\n" + statement + "\nbar.sync 0;\n";
    pointer("p_out");
    for (unsigned j = 0; j < 4; j++)
        s += "st.global.u32 [%p+" + text(128 * j) + "], %r" + text(j) + ";\n";
    pointer("p_shared");
    for (unsigned b = 0; b < written; b += 128)
        s += "ld.shared.u32 %x, [%at+" + text(b) + "];\nst.global.u32 [%p+" + text(b) + "], %x;\n";
    return s + "ret;\n}\n";
}

struct Outcome {
    CUresult result;
    std::vector<uint16_t> regs;   /* element h of lane l of register j: [(j * 32 + l) * 2 + h] */
    std::vector<uint16_t> shared; /* afterwards */
};

struct Start {
    std::vector<uint16_t> shared, regs;
    Words address; /* of each lane's row, in bytes */
};

Start random_start(uint32_t seed)
{
    std::mt19937 r(seed);
    Start s{std::vector<uint16_t>(SHARED_BYTES / 2), std::vector<uint16_t>(4 * WARP * 2), Words(WARP)};
    for (uint16_t &x : s.shared)
        x = uint16_t(r());
    for (uint16_t &x : s.regs)
        x = uint16_t(r());
    Words slots(SHARED_BYTES / ROW_BYTES); /* every lane a row of its own, anywhere */
    std::iota(slots.begin(), slots.end(), 0);
    std::shuffle(slots.begin(), slots.end(), r);
    for (unsigned l = 0; l < WARP; l++)
        s.address[l] = slots[l] * ROW_BYTES;
    return s;
}

Outcome run(const std::string &ptx, const Start &s)
{
    emu::Module m(ptx);
    emu::Buffer<uint16_t> in(s.shared), reg(s.regs), out(s.regs.size()), shared(s.shared.size());
    shared.zero();
    emu::Buffer<uint32_t> address(s.address);
    Outcome o;
    o.result = emu::launch(m.get("k"), 1, WARP, 0, in.p, address.p, reg.p, out.p, shared.p);
    if (o.result == CUDA_SUCCESS) {
        o.regs = out.get();
        o.shared = shared.get();
    }
    return o;
}

std::string registers(unsigned n)
{
    return n == 1 ? "{%r0}" : n == 2 ? "{%r0, %r1}" : "{%r0, %r1, %r2, %r3}";
}

/* Where element (row, col) of a matrix lies among the 64 halves of its register: lane 4 * row + col / 2. */
unsigned half_of(unsigned row, unsigned col, bool trans)
{
    if (trans)
        std::swap(row, col);
    return (4 * row + col / 2) * 2 + col % 2;
}

TEST(Ldmatrix, RowsBecomeTheFragmentsOfTheirMatrix)
{
    emu::Device device;
    for (unsigned n : {1, 2, 4})
        for (bool trans : {false, true})
            for (const char *space : {".shared", ".shared::cta", ""}) {
                std::string statement = "ldmatrix.sync.aligned.m8n8.x" + std::to_string(n) + (trans ? ".trans" : "") +
                                        space + ".b16 " + registers(n) + ", [%a];";
                if (!*space)
                    statement = "{ .reg .b64 q; cvt.u64.u32 q, %a; add.u64 %g, %g, q; }\n" +
                                statement.replace(statement.find("%a"), 2, "%g");
                Start s = random_start(n);
                for (unsigned l = 8 * n; l < WARP; l++)
                    s.address[l] = 0; /* not used, but valid */
                Outcome o = run(kernel(statement, "sm_75"), s);
                ASSERT_EQ(CUDA_SUCCESS, o.result) << statement << emu::report();
                for (unsigned j = 0; j < 4; j++)
                    for (unsigned row = 0; row < 8; row++)
                        for (unsigned col = 0; col < 8; col++) {
                            unsigned at = j * 64 + half_of(row, col, trans);
                            uint16_t want = j < n ? s.shared[s.address[8 * j + row] / 2 + col] : s.regs[at];
                            ASSERT_EQ(want, o.regs[at]) << statement << j << " " << row << " " << col;
                        }
            }
}

TEST(Ldmatrix, LanesMayGiveTheSameRow)
{
    emu::Device device;
    Start s = random_start(7);
    std::fill(s.address.begin(), s.address.end(), 1024);
    Outcome o = run(kernel("ldmatrix.sync.aligned.m8n8.x4.shared.b16 " + registers(4) + ", [%a+16];", "sm_75"), s);
    ASSERT_EQ(CUDA_SUCCESS, o.result);
    for (unsigned e = 0; e < o.regs.size(); e++)
        EXPECT_EQ(s.shared[(1024 + 16) / 2 + e % 8], o.regs[e]) << e;
}

TEST(Stmatrix, FragmentsBecomeRows)
{
    emu::Device device;
    if (device.sm < 90)
        GTEST_SKIP() << "stmatrix needs sm_90";
    for (unsigned n : {1, 2, 4})
        for (bool trans : {false, true}) {
            Start s = random_start(n + 10);
            std::string statement = "stmatrix.sync.aligned.m8n8.x" + std::to_string(n) + (trans ? ".trans" : "") +
                                    ".shared.b16 [%a], " + registers(n) + ";";
            Outcome o = run(kernel(statement, "sm_90"), s);
            ASSERT_EQ(CUDA_SUCCESS, o.result) << statement << emu::report();
            std::vector<uint16_t> want = s.shared;
            for (unsigned j = 0; j < n; j++)
                for (unsigned row = 0; row < 8; row++)
                    for (unsigned col = 0; col < 8; col++)
                        want[s.address[8 * j + row] / 2 + col] = s.regs[j * 64 + half_of(row, col, trans)];
            EXPECT_EQ(want, o.shared) << statement;
        }
}

TEST(Movmatrix, Transposes)
{
    emu::Device device;
    Start s = random_start(20);
    Outcome o = run(kernel("movmatrix.sync.aligned.m8n8.trans.b16 %r0, %r0;", "sm_75"), s);
    ASSERT_EQ(CUDA_SUCCESS, o.result) << emu::report();
    for (unsigned row = 0; row < 8; row++)
        for (unsigned col = 0; col < 8; col++)
            EXPECT_EQ(s.regs[half_of(row, col, false)], o.regs[half_of(col, row, false)]);
}

TEST(Ldmatrix, NewerFormsAreErrorsAtLoad)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "needs devices of all kinds";
    emu::Device device;
    for (const char *statement :
         {"ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {%r0, %r1}, [%a];",
          "ldmatrix.sync.aligned.m8n8.x3.shared.b16 {%r0}, [%a];",
          "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r0}, [%a];", "ldmatrix.aligned.m8n8.x1.shared.b16 {%r0}, [%a];",
          "ldmatrix.sync.aligned.m8n8.x1.shared.b8 {%r0}, [%a];",
          "stmatrix.sync.aligned.m16n8.x1.trans.shared.b8 [%a], {%r0};"})
        EXPECT_EQ(CUDA_ERROR_INVALID_PTX, emu::Module(kernel(statement, "sm_90"), false).result) << statement;
    emu::Device ampere("8.0");
    EXPECT_EQ(CUDA_ERROR_INVALID_PTX,
              emu::Module(kernel("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%a], {%r0};", "sm_80"), false).result);
}

class LdmatrixFault : public testing::Test
{
  protected:
    void SetUp() override
    {
        if (!emu::Driver::get().emulated())
            GTEST_SKIP() << "only the emulator tells these apart";
    }
    void expect(CUresult result, const char *words, const Start &s, unsigned written = SHARED_BYTES)
    {
        emu::Device device;
        Outcome o =
            run(kernel("ldmatrix.sync.aligned.m8n8.x4.shared.b16 " + registers(4) + ", [%a];", "sm_75", written), s);
        EXPECT_EQ(result, o.result);
        EXPECT_NE(std::string::npos, emu::report().find(words)) << emu::report();
    }
};

TEST_F(LdmatrixFault, ARowThatIsNotAMultipleOf16)
{
    Start s = random_start(1);
    s.address[9] += 8;
    expect(CUDA_ERROR_MISALIGNED_ADDRESS, "lane 9", s);
}

TEST_F(LdmatrixFault, ARowOutsideOfSharedMemory)
{
    Start s = random_start(1);
    s.address[31] = SHARED_BYTES;
    expect(CUDA_ERROR_ILLEGAL_ADDRESS, "lane 31", s);
}

TEST_F(LdmatrixFault, ARowThatNobodyHasWritten)
{
    Start s = random_start(1);
    for (uint32_t &a : s.address)
        a = a % 512;
    s.address[17] = 1024;
    expect(CUDA_ERROR_LAUNCH_FAILED, "nobody has written", s, 1024);
}

TEST_F(LdmatrixFault, AGenericAddressOutsideOfSharedMemory)
{
    emu::Device device;
    Outcome o = run(kernel("ldmatrix.sync.aligned.m8n8.x1.b16 {%r0}, [%p];", "sm_75"), random_start(1));
    EXPECT_EQ(CUDA_ERROR_INVALID_ADDRESS_SPACE, o.result);
}

} // namespace
