/* mma.sp: every shape and type against a plain product with the whole A.
 *
 * The host makes up a sparse A, spreads what is held of it, B, C and the metadata over the registers of a warp as the
 * figures of the PTX ISA say, and multiplies the whole A itself.  Small integers make floating-point sums exact, so
 * that hardware and emulator have to agree to the bit. */
#include "test/matrices.h"

#include <algorithm>

namespace
{

using namespace matrices;

constexpr unsigned M = 16, N = 8, GROUP = 4;

/* ---- the tables of the PTX ISA ---- */

/* "Sparse MMA metadata layout": chunks `chunk`... of rows g (upper = 0) or g + 8 lie in lane T`lane` of group g, which
 * is counted from the first one that the selector names, from bit `bit` on, 4 bits each. */
struct Cell {
    unsigned upper, chunk, chunks, lane, bit;
};
struct Layout {
    unsigned selectors; /* 0...selectors-1 are allowed */
    std::vector<Cell> cells;
};
const Layout ONE_LANE{4, {{0, 0, 4, 0, 0}, {1, 0, 4, 0, 16}}};
const Layout PAIR_OF_HALVES{2, {{0, 0, 4, 0, 0}, {1, 0, 4, 0, 16}, {0, 4, 4, 1, 0}, {1, 4, 4, 1, 16}}};
const Layout PAIR_OF_WORDS{2, {{0, 0, 8, 0, 0}, {1, 0, 8, 1, 0}}};
const Layout ALL_LANES{1, {{0, 0, 8, 0, 0}, {1, 0, 8, 1, 0}, {0, 8, 8, 2, 0}, {1, 8, 8, 3, 0}}};

struct Case {
    unsigned k;
    std::string a, b, acc;
    unsigned sm;
    const Layout *layout;
    std::string middle; /* .satfinite */
    bool ordered;
    unsigned selector;

    std::string name() const
    {
        return std::string(ordered ? "mma.sp::ordered_metadata" : "mma.sp") + ".sync.aligned.m16n8k" +
               std::to_string(k) + ".row.col" + middle + "." + acc + "." + a + "." + b + "." + acc;
    }
    unsigned chunk() const { return a == "tf32" ? 2 : bits_of(a) == 4 ? 8 : 4; } /* columns of A */
    unsigned chunks() const { return k / chunk(); }
};

std::ostream &operator<<(std::ostream &s, const Case &c)
{
    return s << c.name() << " selector " << c.selector;
}

std::vector<Case> shapes()
{
    std::vector<Case> v;
    auto add = [&](unsigned k, const char *a, const char *b, const char *acc, const Layout &l, unsigned sm = 80,
                   const char *middle = "") {
        v.push_back({k, a, b, acc, sm, &l, middle, false, 0});
    };
    for (const char *acc : {"f16", "f32"}) {
        add(16, "f16", "f16", acc, ONE_LANE);
        add(32, "f16", "f16", acc, PAIR_OF_HALVES);
    }
    add(16, "bf16", "bf16", "f32", ONE_LANE);
    add(32, "bf16", "bf16", "f32", PAIR_OF_HALVES);
    add(8, "tf32", "tf32", "f32", ONE_LANE);
    add(16, "tf32", "tf32", "f32", PAIR_OF_HALVES);
    for (const char *middle : {"", ".satfinite"}) {
        for (const char *a : {"s8", "u8"})
            for (const char *b : {"s8", "u8"}) {
                add(32, a, b, "s32", PAIR_OF_WORDS, 80, middle);
                add(64, a, b, "s32", ALL_LANES, 80, middle);
            }
        for (const char *a : {"s4", "u4"})
            for (const char *b : {"s4", "u4"}) {
                add(64, a, b, "s32", PAIR_OF_WORDS, 80, middle);
                add(128, a, b, "s32", ALL_LANES, 80, middle);
            }
    }
    for (const char *a : {"e4m3", "e5m2"})
        for (const char *b : {"e4m3", "e5m2"})
            add(64, a, b, "f32", ALL_LANES, 89);
    return v;
}

std::vector<Case> cases()
{
    std::vector<Case> v;
    for (Case c : shapes())
        for (bool ordered : {false, true})
            for (c.selector = 0; c.selector < c.layout->selectors; c.selector++) {
                c.ordered = ordered;
                v.push_back(c);
            }
    return v;
}

/* ---- the kernel: each lane loads its registers, one mma.sp, each lane stores its registers ---- */

/* `guard` is a condition on the load of the metadata: "" or "@%p ". */
std::string kernel(const Case &c, const std::string &guard = "")
{
    Registers a = registers(c.a, M * c.k / 2), b = registers(c.b, N * c.k), acc = registers(c.acc, M * N);
    std::string s = ".version 8.7\n.target sm_" + std::to_string(c.sm) +
                    "\n.address_size 64\n.visible .entry k(.param .u64 pa, .param .u64 pb, .param .u64 pc, .param .u64 "
                    "pe, .param .u64 pd)\n{\n.reg .b64 %q, %o;\n.reg .b32 %lane, %j;\n.reg .pred %p;\n"
                    "mov.u32 %lane, %tid.x;\nand.b32 %j, %lane, 3;\nsetp.lt.u32 %p, %j, 2;\n";
    auto address = [&](const char *param, const Registers &r) {
        s += std::string("ld.param.u64 %q, [") + param + "];\nmul.wide.u32 %o, %lane, " + std::to_string(r.n * 4) +
             ";\nadd.u64 %q, %q, %o;\n";
    };
    auto load = [&](const char *name, const char *param, const Registers &r, const std::string &condition = "") {
        s += ".reg ." + r.type + " %" + name + "<" + std::to_string(r.n) + ">;\n";
        address(param, r);
        for (size_t i = 0; i < r.n; i++)
            s += condition + "ld.global." + r.type + " %" + name + std::to_string(i) + ", [%q+" +
                 std::to_string(i * 4) + "];\n";
    };
    load("a", "pa", a);
    load("b", "pb", b);
    load("c", "pc", acc);
    load("e", "pe", {"b32", 1}, guard);
    s += ".reg ." + acc.type + " %d<" + std::to_string(acc.n) + ">;\n" + c.name() + " " + names("d", acc.n) + ", " +
         names("a", a.n) + ", " + names("b", b.n) + ", " + names("c", acc.n) + ", %e0, " + std::to_string(c.selector) +
         ";\n";
    address("pd", acc);
    for (size_t i = 0; i < acc.n; i++)
        s += "st.global." + acc.type + " [%q+" + std::to_string(i * 4) + "], %d" + std::to_string(i) + ";\n";
    return s + "ret;\n}\n";
}

/* ---- a sparse matrix ---- */

struct Sparse {
    std::vector<double> held;       /* M rows of k / 2 */
    std::vector<unsigned> metadata; /* M rows of chunks, 4 bits each */
    std::vector<unsigned> column;   /* of each element held */
};

/* Where the elements held of a chunk lie in it. */
std::vector<unsigned> offsets(const Case &c, unsigned bits)
{
    unsigned i = bits & 3, j = bits >> 2;
    if (c.a == "tf32")
        return {i == 0 ? 0u : 1u};
    if (c.chunk() == 8)
        return {2 * i, 2 * i + 1, 2 * j, 2 * j + 1};
    return {i, j};
}

std::vector<unsigned> legal_metadata(const Case &c)
{
    if (c.a == "tf32")
        return {0b0100, 0b1110};
    std::vector<unsigned> v{0b0100, 0b1000, 0b1001, 0b1100, 0b1101, 0b1110};
    if (!c.ordered)
        v.insert(v.end(), {0b0001, 0b0010, 0b0110, 0b0011, 0b0111, 0b1011});
    return v;
}

Sparse random_sparse(const Case &c, std::mt19937 &r)
{
    Sparse s;
    const std::vector<unsigned> legal = legal_metadata(c);
    for (unsigned chunk = 0; chunk < M * c.chunks(); chunk++) {
        s.metadata.push_back(legal[r() % legal.size()]);
        for (unsigned offset : offsets(c, s.metadata.back())) {
            s.held.push_back(random_element(r, c.a));
            s.column.push_back(chunk % c.chunks() * c.chunk() + offset);
        }
    }
    return s;
}

/* A register a lane; the lanes that hold no metadata have what would be illegal there. */
Words spread_metadata(const Case &c, const std::vector<unsigned> &metadata)
{
    Words e(WARP, 0);
    const unsigned lanes = GROUP / c.layout->selectors;
    for (const Cell &cell : c.layout->cells)
        for (unsigned g = 0; g < 8; g++)
            for (unsigned x = 0; x < cell.chunks; x++) {
                unsigned row = g + 8 * cell.upper;
                e[GROUP * g + c.selector * lanes + cell.lane] |= metadata[row * c.chunks() + cell.chunk + x]
                                                                 << (cell.bit + 4 * x);
            }
    return e;
}

struct Operands {
    std::vector<uint64_t> a, b, c; /* bits, row-major; a: what is held */
    Words metadata;
};

CUresult launch(const Case &c, const Operands &in, std::vector<uint64_t> *d, const std::string &guard = "")
{
    unsigned e = 32 / bits_of(c.a), acc_bits = bits_of(c.acc);
    Words wa = spread(in.a, c.k / 2, bits_of(c.a), [&](unsigned lane, unsigned i) { return a_place(M, e, lane, i); });
    Words wb = spread(in.b, N, bits_of(c.b), [&](unsigned lane, unsigned i) { return b_place(e, lane, i); });
    Words wc = spread(in.c, N, acc_bits, c_place);
    emu::Module module(kernel(c, guard));
    emu::Buffer<uint32_t> ba(wa), bb(wb), bc(wc), be(in.metadata), bd(wc.size());
    CUresult result = emu::launch(module.get("k"), 1, WARP, 0, ba.p, bb.p, bc.p, be.p, bd.p);
    if (result != CUDA_SUCCESS)
        return result;
    Words wd = bd.get();
    d->resize(M * N);
    const unsigned a_lane = M * N / WARP;
    for (unsigned lane = 0; lane < WARP; lane++)
        for (unsigned i = 0; i < a_lane; i++) {
            Place p = c_place(lane, i);
            (*d)[p.row * N + p.col] = get(wd, (lane * a_lane + i) * acc_bits, acc_bits);
        }
    return result;
}

/* ---- every variant ---- */

int64_t exact(const Case &c, const Sparse &a, const std::vector<double> &b, double acc, unsigned row, unsigned col)
{
    std::vector<double> whole(c.k);
    for (unsigned x = row * c.k / 2; x < (row + 1) * c.k / 2; x++)
        whole[a.column[x]] = a.held[x];
    int64_t sum = int64_t(acc);
    for (unsigned k = 0; k < c.k; k++)
        sum += int64_t(whole[k]) * int64_t(b[k * N + col]);
    return sum;
}

uint64_t expected_bits(const Case &c, int64_t sum)
{
    if (c.acc != "s32")
        return encode(c.acc, double(sum));
    if (c.middle == ".satfinite")
        sum = std::min<int64_t>(std::max<int64_t>(sum, INT32_MIN), INT32_MAX);
    return uint32_t(sum);
}

class MmaSparse : public testing::TestWithParam<Case>
{
};

TEST_P(MmaSparse, IsTheProductWithTheWholeMatrix)
{
    const Case &c = GetParam();
    emu::Device device;
    if (unsigned(device.sm) < c.sm || device.sm >= 100)
        GTEST_SKIP() << "needs sm_" << c.sm << ", and newer devices want the metadata ordered";
    std::mt19937 r(c.k + c.selector);
    for (int round = 0; round < 3; round++) {
        const Sparse a = random_sparse(c, r);
        std::vector<double> b(c.k * N), acc(M * N);
        for (double &x : b)
            x = random_element(r, c.b);
        for (double &x : acc) /* integers: also where the sum leaves the range */
            x = c.acc != "s32" ? int(r() % 201) - 100
                : round == 0   ? int(r() % 2001) - 1000
                : r() % 2      ? INT32_MAX - int(r() % 99)
                               : INT32_MIN + int(r() % 99);
        Operands in;
        encode_all(a.held, c.a, &in.a);
        encode_all(b, c.b, &in.b);
        encode_all(acc, c.acc, &in.c);
        in.metadata = spread_metadata(c, a.metadata);
        std::vector<uint64_t> d;
        ASSERT_EQ(CUDA_SUCCESS, launch(c, in, &d)) << emu::report();
        for (unsigned row = 0; row < M; row++)
            for (unsigned col = 0; col < N; col++)
                ASSERT_EQ(expected_bits(c, exact(c, a, b, acc[row * N + col], row, col)), d[row * N + col])
                    << c << " round " << round << " row " << row << " col " << col;
    }
}

INSTANTIATE_TEST_SUITE_P(Variants, MmaSparse, testing::ValuesIn(cases()), [](const auto &info) {
    std::ostringstream s;
    s << info.param;
    std::string name = s.str();
    for (char &ch : name)
        if (!isalnum(ch))
            ch = '_';
    return name;
});

/* ---- metadata ---- */

const Case F16{16, "f16", "f16", "f32", 80, &ONE_LANE, "", false, 0};

/* Zeros, and the same metadata everywhere. */
Operands zeros(const Case &c, unsigned bits)
{
    Operands in{std::vector<uint64_t>(M * c.k / 2), std::vector<uint64_t>(c.k * N), std::vector<uint64_t>(M * N), {}};
    in.metadata = spread_metadata(c, std::vector<unsigned>(M * c.chunks(), bits));
    return in;
}

TEST(MmaSparseMetadata, ElementsOfBThatMeetNoneOfAAreNotLookedAt)
{
    emu::Device device;
    Operands in = zeros(F16, 0b1100); /* columns 0 and 3 of each chunk */
    for (unsigned k = 0; k < F16.k; k++)
        for (unsigned n = 0; n < N; n++)
            in.b[k * N + n] = k % 4 == 0 || k % 4 == 3 ? encode("f16", 2) : 0x7c00; /* infinity */
    std::fill(in.a.begin(), in.a.end(), encode("f16", 3));
    std::vector<uint64_t> d;
    ASSERT_EQ(CUDA_SUCCESS, launch(F16, in, &d)) << emu::report();
    for (uint64_t bits : d)
        EXPECT_EQ(encode("f32", 2 * 3 * 8), bits);
}

/* Metadata that is illegal in row 9, columns 8 to 11: the third chunk of lane 4's upper half (f16). */
Operands illegal_chunk(unsigned good, unsigned bad)
{
    Operands in = zeros(F16, good);
    in.metadata[4] = (in.metadata[4] & ~(15u << 24)) | bad << 24;
    return in;
}

TEST(MmaSparseMetadata, EqualIndicesAreAFault)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "undefined on hardware";
    for (bool ordered : {false, true})
        for (unsigned bad : {0b0000u, 0b0101u, 0b1010u, 0b1111u}) {
            emu::Device device;
            Case c = F16;
            c.ordered = ordered;
            std::vector<uint64_t> d;
            EXPECT_EQ(CUDA_ERROR_LAUNCH_FAILED, launch(c, illegal_chunk(0b0100, bad), &d)) << bad;
            EXPECT_NE(std::string::npos, emu::report().find("invalid sparsity metadata")) << emu::report();
            EXPECT_NE(std::string::npos, emu::report().find("row 9, columns 8 to 11 of A (bits 24 to 27 of lane 4)"))
                << emu::report();
        }
}

TEST(MmaSparseMetadata, OnlyOrderedMetadataHasToAscend)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "undefined on hardware";
    for (unsigned descending : {0b0001u, 0b0010u, 0b0110u, 0b0011u, 0b0111u, 0b1011u}) {
        emu::Device device;
        std::vector<uint64_t> d;
        Case c = F16;
        EXPECT_EQ(CUDA_SUCCESS, launch(c, illegal_chunk(0b0100, descending), &d)) << emu::report();
        c.ordered = true;
        EXPECT_EQ(CUDA_ERROR_LAUNCH_FAILED, launch(c, illegal_chunk(0b0100, descending), &d));
        EXPECT_NE(std::string::npos, emu::report().find("the lower index comes first")) << emu::report();
    }
}

TEST(MmaSparseMetadata, Tf32HasTwoValues)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "undefined on hardware";
    for (unsigned bits = 0; bits < 16; bits++) {
        emu::Device device;
        const Case c{8, "tf32", "tf32", "f32", 80, &ONE_LANE, "", false, 0};
        std::vector<uint64_t> d;
        EXPECT_EQ(bits == 0b0100 || bits == 0b1110 ? CUDA_SUCCESS : CUDA_ERROR_LAUNCH_FAILED,
                  launch(c, zeros(c, bits), &d))
            << bits << emu::report();
    }
}

TEST(MmaSparseMetadata, WithoutChecksIllegalMetadataIsNoFault)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "undefined on hardware";
    emu::Device device("9.0", {{"NB_EMU_CHECK", "0"}});
    std::vector<uint64_t> d;
    EXPECT_EQ(CUDA_SUCCESS, launch(F16, zeros(F16, 0), &d));
}

TEST(MmaSparseMetadata, LanesThatHoldNoneNeedNotWriteTheirRegister)
{
    emu::Device device;
    Case c{32, "f16", "f16", "f32", 80, &PAIR_OF_HALVES, "", false, 0};
    std::vector<uint64_t> d;
    EXPECT_EQ(CUDA_SUCCESS, launch(c, zeros(c, 0b1110), &d, "@%p ")) << emu::report(); /* lanes 0 and 1 of four */
    if (!emu::Driver::get().emulated())
        return;
    c.selector = 1;
    EXPECT_EQ(CUDA_ERROR_LAUNCH_FAILED, launch(c, zeros(c, 0b1110), &d, "@%p "));
    EXPECT_NE(std::string::npos, emu::report().find("never written in lanes 2-3, 6-7")) << emu::report();
}

/* ---- what is refused ---- */

TEST(MmaSparseErrors, SelectorsOutOfRangeAreErrorsAtLoad)
{
    emu::Device device;
    for (Case c : shapes()) {
        if (unsigned(device.sm) < c.sm)
            continue;
        c.selector = c.layout->selectors;
        emu::Module m(kernel(c), false);
        EXPECT_EQ(CUDA_ERROR_INVALID_PTX, m.result) << c;
        if (emu::Driver::get().emulated()) {
            EXPECT_NE(std::string::npos, m.log.find("the sparsity selector is " + std::to_string(c.selector))) << m.log;
        }
    }
}

TEST(MmaSparseErrors, VariantsOfNewerArchitecturesAreErrorsAtLoad)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "needs devices of all kinds";
    const std::pair<const char *, unsigned> devices[] = {{"7.5", 75}, {"8.0", 80}, {"8.9", 89}, {"9.0", 90}};
    for (auto &d : devices) {
        emu::Device device(d.first);
        for (Case c : shapes()) {
            bool works = c.sm <= d.second;
            c.sm = d.second;
            EXPECT_EQ(works ? CUDA_SUCCESS : CUDA_ERROR_INVALID_PTX, emu::Module(kernel(c), false).result)
                << c << " on " << d.first;
        }
    }
}

TEST(MmaSparseErrors, UnknownVariantsNameTheInstruction)
{
    emu::Device device;
    auto of = [](unsigned k, const char *type, const char *acc, const char *middle = "") {
        return Case{k, type, type, acc, 89, &PAIR_OF_WORDS, middle, false, 0};
    };
    for (const Case &c : {of(64, "f16", "f32"), of(16, "bf16", "bf16"), of(32, "tf32", "f32"), of(32, "e4m3", "f32"),
                          of(64, "e4m3", "f16"), of(32, "s4", "s32"), of(32, "f16", "f32", ".satfinite")}) {
        emu::Module m(kernel(c), false);
        EXPECT_EQ(CUDA_ERROR_INVALID_PTX, m.result) << c;
        if (emu::Driver::get().emulated()) {
            EXPECT_NE(std::string::npos, m.log.find("mma.sp.sync")) << m.log;
        }
    }
}

} // namespace
