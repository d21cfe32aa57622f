/* mma.sync: every shape and type against a plain matrix product.
 *
 * The host spreads plain matrices over the registers as the tables of the PTX ISA say: which element of A, B, C thread
 * `lane` holds in which place.  Small integers make floating-point sums exact, so that hardware and emulator have to
 * agree to the bit. */
#include "test/matrices.h"

#include <algorithm>
#include <random>

namespace
{

using namespace matrices;

constexpr unsigned N = 8;

struct Case {
    unsigned m, k;
    std::string a, b, acc; /* types; acc of C and D */
    unsigned sm;
    std::string middle, end; /* modifiers: .satfinite before the types, .xor.popc behind them */
};

std::ostream &operator<<(std::ostream &s, const Case &c)
{
    return s << "m" << c.m << "n8k" << c.k << c.middle << "." << c.acc << "." << c.a << "." << c.b << c.end;
}

bool is_integer(const Case &c)
{
    return c.acc == "s32";
}

/* ---- the kernel: each lane loads its registers, one mma, each lane stores its registers ---- */

std::string kernel(const Case &c, const std::string &version = "8.7")
{
    Registers a = registers(c.a, c.m * c.k), b = registers(c.b, N * c.k), acc = registers(c.acc, c.m * N);
    std::string s = ".version " + version + "\n.target sm_" + std::to_string(c.sm) +
                    "\n.address_size 64\n.visible .entry k(.param .u64 pa, .param .u64 pb, .param .u64 pc, .param .u64 "
                    "pd)\n{\n.reg .b64 %p, %o;\n.reg .b32 %lane;\nmov.u32 %lane, %tid.x;\n";
    auto address = [&](const char *param, const Registers &r) {
        s += std::string("ld.param.u64 %p, [") + param + "];\nmul.wide.u32 %o, %lane, " +
             std::to_string(r.n * r.bytes()) + ";\nadd.u64 %p, %p, %o;\n";
    };
    auto load = [&](const char *name, const char *param, const Registers &r) {
        s += ".reg ." + r.type + " %" + name + "<" + std::to_string(r.n) + ">;\n";
        address(param, r);
        for (size_t i = 0; i < r.n; i++)
            s += "ld.global." + r.type + " %" + name + std::to_string(i) + ", [%p+" + std::to_string(i * r.bytes()) +
                 "];\n";
    };
    load("a", "pa", a);
    load("b", "pb", b);
    load("c", "pc", acc);
    s += ".reg ." + acc.type + " %d<" + std::to_string(acc.n) + ">;\n";
    s += "mma.sync.aligned.m" + std::to_string(c.m) + "n8k" + std::to_string(c.k) + ".row.col" + c.middle + "." +
         c.acc + "." + c.a + "." + c.b + "." + c.acc + c.end + " " + names("d", acc.n) + ", " + names("a", a.n) + ", " +
         names("b", b.n) + ", " + names("c", acc.n) + ";\n";
    address("pd", acc);
    for (size_t i = 0; i < acc.n; i++)
        s += "st.global." + acc.type + " [%p+" + std::to_string(i * acc.bytes()) + "], %d" + std::to_string(i) + ";\n";
    return s + "ret;\n}\n";
}

/* Bits of D, row-major, from bits of A (m x k), B (k x n), C (m x n). */
std::vector<uint64_t> run(const Case &c, const std::vector<uint64_t> &a, const std::vector<uint64_t> &b,
                          const std::vector<uint64_t> &acc)
{
    unsigned bits = bits_of(c.a), e = bits == 64 ? 1 : 32 / bits, acc_bits = bits_of(c.acc);
    Words wa = spread(a, c.k, bits, [&](unsigned lane, unsigned i) { return a_place(c.m, e, lane, i); });
    Words wb = spread(b, N, bits, [&](unsigned lane, unsigned i) { return b_place(e, lane, i); });
    Words wc = spread(acc, N, acc_bits, c_place);
    emu::Module module(kernel(c));
    emu::Buffer<uint32_t> ba(wa), bb(wb), bc(wc), bd(wc.size());
    EXPECT_EQ(CUDA_SUCCESS, emu::launch(module.get("k"), 1, WARP, 0, ba.p, bb.p, bc.p, bd.p)) << c << emu::report();
    Words wd = bd.get();
    std::vector<uint64_t> d(acc.size());
    size_t a_lane = d.size() / WARP;
    for (unsigned lane = 0; lane < WARP; lane++)
        for (unsigned i = 0; i < a_lane; i++) {
            Place p = c_place(lane, i);
            d[p.row * N + p.col] = get(wd, (lane * a_lane + i) * acc_bits, acc_bits);
        }
    return d;
}

/* ---- every variant ---- */

std::vector<Case> cases()
{
    std::vector<Case> v;
    auto add = [&](unsigned m, unsigned k, const char *a, const char *b, const char *acc, unsigned sm,
                   const char *middle = "", const char *end = "") {
        v.push_back({m, k, a, b, acc, sm, middle, end});
    };
    for (const char *acc : {"f16", "f32"}) {
        add(16, 8, "f16", "f16", acc, 75);
        add(16, 16, "f16", "f16", acc, 80);
        for (unsigned k : {16, 32})
            for (const char *a : {"e4m3", "e5m2"})
                for (const char *b : {"e4m3", "e5m2"})
                    add(16, k, a, b, acc, 89);
    }
    for (unsigned k : {8, 16})
        add(16, k, "bf16", "bf16", "f32", 80);
    for (unsigned k : {4, 8})
        add(16, k, "tf32", "tf32", "f32", 80);
    add(8, 4, "f64", "f64", "f64", 80);
    for (unsigned k : {4, 8, 16})
        add(16, k, "f64", "f64", "f64", 90);
    for (const char *middle : {"", ".satfinite"}) {
        for (const char *a : {"s8", "u8"})
            for (const char *b : {"s8", "u8"}) {
                add(8, 16, a, b, "s32", 75, middle);
                add(16, 16, a, b, "s32", 80, middle);
                add(16, 32, a, b, "s32", 80, middle);
            }
        for (const char *a : {"s4", "u4"})
            for (const char *b : {"s4", "u4"}) {
                add(8, 32, a, b, "s32", 75, middle);
                add(16, 32, a, b, "s32", 80, middle);
                add(16, 64, a, b, "s32", 80, middle);
            }
    }
    for (const char *op : {".xor.popc", ".and.popc"}) {
        add(8, 128, "b1", "b1", "s32", op[1] == 'x' ? 75 : 80, "", op);
        add(16, 128, "b1", "b1", "s32", 80, "", op);
        add(16, 256, "b1", "b1", "s32", 80, "", op);
    }
    return v;
}

/* The exact result, as an integer: all our floats are integers too. */
int64_t exact(const Case &c, const std::vector<double> &a, const std::vector<double> &b, double acc, unsigned row,
              unsigned col)
{
    int64_t sum = int64_t(acc);
    for (unsigned k = 0; k < c.k; k++) {
        int64_t x = int64_t(a[row * c.k + k]), y = int64_t(b[k * N + col]);
        sum += c.end.empty() ? x * y : c.end == ".xor.popc" ? x ^ y : x & y;
    }
    return sum;
}

uint64_t expected_bits(const Case &c, int64_t sum)
{
    if (!is_integer(c))
        return encode(c.acc, double(sum));
    if (c.middle == ".satfinite")
        sum = std::min<int64_t>(std::max<int64_t>(sum, INT32_MIN), INT32_MAX);
    return uint32_t(sum);
}

class Mma : public testing::TestWithParam<Case>
{
};

TEST_P(Mma, IsTheMatrixProduct)
{
    const Case &c = GetParam();
    emu::Device device;
    if (unsigned(device.sm) < c.sm)
        GTEST_SKIP() << "needs sm_" << c.sm;
    std::mt19937 r(c.k + c.m);
    for (int round = 0; round < 4; round++) {
        std::vector<double> a(c.m * c.k), b(c.k * N), acc(c.m * N);
        for (double &x : a)
            x = random_element(r, c.a);
        for (double &x : b)
            x = random_element(r, c.b);
        for (double &x : acc) /* integers: also where the sum leaves the range */
            x = !is_integer(c) ? int(r() % 201) - 100
                : round == 0   ? int(r() % 2001) - 1000
                : r() % 2      ? INT32_MAX - int(r() % 99)
                               : INT32_MIN + int(r() % 99);
        std::vector<uint64_t> ab, bb, cb;
        encode_all(a, c.a, &ab);
        encode_all(b, c.b, &bb);
        encode_all(acc, c.acc, &cb);
        std::vector<uint64_t> d = run(c, ab, bb, cb);
        for (unsigned row = 0; row < c.m; row++)
            for (unsigned col = 0; col < N; col++)
                ASSERT_EQ(expected_bits(c, exact(c, a, b, acc[row * N + col], row, col)), d[row * N + col])
                    << c << " round " << round << " row " << row << " col " << col;
    }
}

INSTANTIATE_TEST_SUITE_P(Variants, Mma, testing::ValuesIn(cases()), [](const auto &info) {
    std::ostringstream s;
    s << info.param;
    std::string name = s.str();
    for (char &ch : name)
        if (!isalnum(ch))
            ch = '_';
    return name;
});

/* ---- numbers that do not fit ---- */

/* All products zero but those of row 0 and column 0, whose factors are given; C is zero but there. */
std::vector<uint64_t> one_sum(const Case &c, const std::vector<double> &x, const std::vector<double> &y, double acc)
{
    std::vector<double> a(c.m * c.k), b(c.k * N), cs(c.m * N);
    for (unsigned k = 0; k < x.size(); k++) {
        a[k] = x[k];
        b[k * N] = y[k];
    }
    cs[0] = acc;
    std::vector<uint64_t> ab, bb, cb;
    encode_all(a, c.a, &ab);
    encode_all(b, c.b, &bb);
    encode_all(cs, c.acc, &cb);
    return run(c, ab, bb, cb);
}

const Case F16_F32{16, 16, "f16", "f16", "f32", 80, "", ""}, F16_F16{16, 16, "f16", "f16", "f16", 80, "", ""};

TEST(MmaNumbers, F32ResultsAreRoundedOnce)
{
    emu::Device device;
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "tensor cores truncate";
    /* 1 + 2^-24 + 2^-30: above the midpoint only if all products are added before rounding */
    EXPECT_EQ(encode("f32", 1 + 0x1p-23), one_sum(F16_F32, {0x1p-12, 0x1p-14}, {0x1p-12, 0x1p-14}, 1)[0]);
    EXPECT_EQ(encode("f32", 1), one_sum(F16_F32, {0x1p-12}, {0x1p-12}, 1)[0]); /* a tie, to even */
    EXPECT_EQ(encode("f32", 1), one_sum(F16_F32, {0x1p15, 1, -0x1p15}, {0x1p15, 1, 0x1p15}, 0)[0]);
}

TEST(MmaNumbers, F16ResultsAreRoundedAndOverflowToInfinity)
{
    emu::Device device;
    EXPECT_EQ(encode("f16", 2048), one_sum(F16_F16, {1}, {1}, 2048)[0]);       /* a tie, to even */
    EXPECT_EQ(encode("f16", 2052), one_sum(F16_F16, {1, 2}, {1, 1}, 2048)[0]); /* 2051 lies half way as well */
    EXPECT_EQ(0x7c00u, one_sum(F16_F16, {256, 256}, {128, 128}, 0)[0]);
    EXPECT_EQ(0xfc00u, one_sum(F16_F16, {-256, -256}, {128, 128}, 0)[0]);
    EXPECT_EQ(1u, one_sum(F16_F16, {0x1p-12}, {0x1p-12}, 0)[0]); /* the smallest subnormal number */
}

TEST(MmaNumbers, NotANumberIsCanonical)
{
    emu::Device device;
    std::vector<uint64_t> a(16 * 16), b(16 * N), c(16 * N);
    a[0] = 0x7c00; /* infinity times zero, in row 0 */
    a[16] = 0xfe01;
    b[0] = 0;
    std::vector<uint64_t> d = run(F16_F32, a, b, c), h = run(F16_F16, a, b, c);
    for (unsigned row = 0; row < 3; row++)
        for (unsigned col = 0; col < N; col++) {
            EXPECT_EQ(row < 2 ? 0x7fffffffu : 0, d[row * N + col]) << row << " " << col;
            EXPECT_EQ(row < 2 ? 0x7fffu : 0, h[row * N + col]) << row << " " << col;
        }
}

TEST(MmaNumbers, InfinitiesOfF8FormatsAreThoseOfTheirType)
{
    emu::Device device;
    if (device.sm < 89)
        GTEST_SKIP() << "fp8 needs sm_89";
    Case c{16, 32, "e5m2", "e4m3", "f32", 89, "", ""};
    std::vector<uint64_t> a(16 * 32), b(32 * N), acc(16 * N);
    a[0] = 0x7c;  /* e5m2: infinity */
    a[32] = 0x01; /* its smallest number, 2^-16 */
    b[0] = 0x01;  /* e4m3's smallest number, 2^-9 */
    b[1] = 0x7e;  /* its largest, 448 */
    b[2] = 0x7f;  /* NaN */
    std::vector<uint64_t> d = run(c, a, b, acc);
    EXPECT_EQ(0x7f800000u, d[0]);
    EXPECT_EQ(0x7f800000u, d[1]);
    EXPECT_EQ(0x7fffffffu, d[2]);
    EXPECT_EQ(0x7fffffffu, d[3]); /* times zero */
    EXPECT_EQ(encode("f32", 0x1p-25), d[N]);
    EXPECT_EQ(encode("f32", 448 * 0x1p-16), d[N + 1]);
}

TEST(MmaNumbers, Tf32IgnoresTheLowerBits)
{
    emu::Device device;
    Case c{16, 8, "tf32", "tf32", "f32", 80, "", ""};
    std::vector<uint64_t> a(16 * 8), b(8 * N), acc(16 * N);
    a[0] = encode("f32", 3) | 0x1fff;
    b[0] = encode("f32", -5) | 0x1000;
    EXPECT_EQ(encode("f32", -15), run(c, a, b, acc)[0]);
}

TEST(MmaNumbers, F64IsAChainOfFusedMultiplyAdds)
{
    emu::Device device;
    Case c{8, 4, "f64", "f64", "f64", 80, "", ""};
    std::vector<double> x{1 + 0x1p-30, 0x1p-40, 3, 1e300}, y{1 + 0x1p-30, 0x1p-41, 1.0 / 3, 1e-300};
    double want = -1;
    for (unsigned k = 0; k < 4; k++)
        want = std::fma(x[k], y[k], want);
    EXPECT_EQ(encode("f64", want), one_sum(c, x, y, -1)[0]);
}

/* ---- what is refused ---- */

TEST(MmaErrors, VariantsOfNewerArchitecturesAreErrorsAtLoad)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "needs devices of all kinds";
    const std::pair<const char *, unsigned> devices[] = {
        {"7.5", 75}, {"8.0", 80}, {"8.6", 86}, {"8.9", 89}, {"9.0", 90}};
    for (auto &d : devices) {
        emu::Device device(d.first);
        for (Case c : cases()) {
            bool works = c.sm <= d.second;
            c.sm = d.second;
            EXPECT_EQ(works ? CUDA_SUCCESS : CUDA_ERROR_INVALID_PTX, emu::Module(kernel(c), false).result)
                << c << " on " << d.first;
        }
    }
}

TEST(MmaErrors, UnknownVariantsNameTheInstruction)
{
    emu::Device device;
    for (const Case &c :
         {Case{16, 64, "s8", "s8", "s32", 80, "", ""}, Case{16, 8, "bf16", "bf16", "bf16", 80, "", ""},
          Case{16, 16, "f16", "bf16", "f32", 80, "", ""}, Case{16, 16, "f16", "f16", "f32", 80, ".satfinite", ""},
          Case{16, 128, "b1", "b1", "s32", 80, "", ".or.popc"}, Case{16, 128, "b1", "b1", "s32", 80, "", ""},
          Case{16, 32, "s8", "s8", "s32", 80, "", ".kind::f8f6f4"}}) {
        emu::Module m(kernel(c), false);
        EXPECT_EQ(CUDA_ERROR_INVALID_PTX, m.result) << c;
        if (emu::Driver::get().emulated()) {
            EXPECT_NE(std::string::npos, m.log.find("mma.sync")) << m.log;
        }
    }
}

TEST(MmaErrors, VoltaFormsAreErrorsAtLoad)
{
    emu::Device device;
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "a GPU executes them";
    std::string text = kernel(F16_F32), name = "mma.sync.aligned.m16n8k16", other = "mma.sync.aligned.m8n8k4";
    emu::Module m(text.replace(text.find(name), name.size(), other), false);
    EXPECT_EQ(CUDA_ERROR_INVALID_PTX, m.result);
    EXPECT_NE(std::string::npos, m.log.find(other)) << m.log;
}

TEST(MmaErrors, ExitedLanesAreAFault)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "undefined on hardware";
    emu::Device device;
    emu::Module module(kernel(F16_F32));
    emu::Buffer<uint32_t> a(WARP * 4), d(WARP * 4);
    a.zero();
    EXPECT_EQ(CUDA_ERROR_LAUNCH_FAILED, emu::launch(module.get("k"), 1, 31, 0, a.p, a.p, a.p, d.p));
    EXPECT_NE(std::string::npos, emu::report().find("lanes missing")) << emu::report();
}

} // namespace
