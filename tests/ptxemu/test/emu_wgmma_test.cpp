/* wgmma: every type against a plain matrix product, with A from registers or shared memory, in every layout that a
 * descriptor can name.
 *
 * The host lays the matrices out in an image of shared memory, as TMA with the same swizzle would leave them there. */
#include "test/matrices.h"

#include <algorithm>
#include <random>

namespace
{

using namespace matrices;

constexpr unsigned M = 64, THREADS = 128, K_BYTES = 32;
constexpr unsigned SHARED_BYTES = 49152, B_AT = 16384; /* A lies at 0 */
using Bytes = std::vector<uint8_t>;

/* Span: bytes of K (of M or N, if mn_major) side by side, 128, 64, 32; 16 stands for no swizzle.  offset: the
 * instruction's 32 bytes of K begin so far into the span. */
struct Layout {
    unsigned span;
    bool mn_major;
    unsigned offset;
};

struct Case {
    unsigned n;
    std::string a, b, d; /* types */
    bool a_in_registers;
    Layout la, lb;
    bool accumulate = true, negate_a = false, negate_b = false;
    std::string middle = "", end = "";
    unsigned k() const { return K_BYTES * 8 / bits_of(a); }
};

std::ostream &operator<<(std::ostream &s, const Layout &l)
{
    return s << "span" << l.span << (l.mn_major ? "mn" : "k") << l.offset;
}
std::ostream &operator<<(std::ostream &s, const Case &c)
{
    s << "n" << c.n << c.middle << "." << c.d << "." << c.a << "." << c.b << c.end << "_";
    if (c.a_in_registers)
        s << "registers";
    else
        s << c.la;
    return s << "_" << c.lb << (c.accumulate ? "_add" : "") << (c.negate_a ? "_negA" : "")
             << (c.negate_b ? "_negB" : "");
}

/* ---- the image of shared memory ---- */

/* 16-byte pieces of a line of `span` bytes change places, by the number of the 128 bytes they lie in: 8 lines of 128
 * bytes, 4 of 64 in two, 2 of 32 in four. */
unsigned swizzled_piece(unsigned span, unsigned line, unsigned piece)
{
    switch (span) {
    case 128:
        return piece ^ (line & 7);
    case 64:
        return piece ^ (line >> 1 & 3);
    case 32:
        return piece ^ (line >> 2 & 1);
    }
    return piece;
}

/* Distances in bytes, as in the descriptor.  Larger than they need be, so that a mix-up is seen. */
struct Strides {
    unsigned leading, stride;
};
Strides strides_of(const Layout &l, unsigned rows)
{
    if (l.span > 16) /* eight lines are a pattern; MN-major: patterns along K first */
        return {l.mn_major ? 2 * 8 * l.span : 16, 8 * l.span};
    if (l.mn_major)
        return {rows / 8 * 128 + 256, 128};
    return {rows / 8 * 128 + 128, 128};
}

/* Where byte `kb` of K of row `row` lies; K-major. */
unsigned place_k_major(const Layout &l, const Strides &s, unsigned row, unsigned kb)
{
    if (l.span == 16)
        return row % 8 * 16 + row / 8 * s.stride + kb / 16 * s.leading + kb % 16;
    unsigned piece = swizzled_piece(l.span, row % 8, (kb + l.offset) / 16);
    return row / 8 * s.stride + row % 8 * l.span + piece * 16 + kb % 16;
}

/* The same of 16-bit elements, MN-major. */
unsigned place_mn_major(const Layout &l, const Strides &s, unsigned row, unsigned k)
{
    unsigned piece = row / 8, byte = row % 8 * 2;
    if (l.span == 16)
        return piece * s.stride + k % 8 * 16 + k / 8 * s.leading + byte;
    unsigned wide = l.span / 16;
    return piece / wide * s.leading + k / 8 * s.stride + k % 8 * l.span +
           swizzled_piece(l.span, k % 8, piece % wide) * 16 + byte;
}

/* elements[row * k_count + k] of rows of M or N. */
void lay_out(const Layout &l, unsigned rows, unsigned bits, const std::vector<uint64_t> &elements, uint8_t *image)
{
    Strides s = strides_of(l, rows);
    unsigned k_count = K_BYTES * 8 / bits;
    for (unsigned row = 0; row < rows; row++)
        for (unsigned k = 0; k < k_count; k++) {
            uint64_t x = elements[row * k_count + k];
            if (bits == 1)
                image[place_k_major(l, s, row, k / 8)] |= uint8_t(x << k % 8);
            else
                for (unsigned b = 0; b < bits / 8; b++)
                    image[l.mn_major ? place_mn_major(l, s, row, k) + b : place_k_major(l, s, row, k * bits / 8 + b)] =
                        uint8_t(x >> 8 * b);
        }
}

/* The descriptor of a matrix at offset `at` of a shared memory that begins at 0. */
uint64_t descriptor(const Layout &l, unsigned rows, unsigned at)
{
    Strides s = strides_of(l, rows);
    unsigned start = at + (l.mn_major ? 0 : l.offset);
    uint64_t mode = l.span == 128 ? 1 : l.span == 64 ? 2 : l.span == 32 ? 3 : 0;
    return start / 16 | uint64_t(s.leading / 16) << 16 | uint64_t(s.stride / 16) << 32 | mode << 62;
}

/* ---- the kernel ---- */

/* Shared memory is filled from p_image; %da, %db are the descriptors, %a0-3 and %d0... registers; `body` lies between
 * loading and storing D. */
std::string kernel(const Registers &d, const std::string &body, const std::string &target = "sm_90a")
{
    auto text = [](size_t n) { return std::to_string(n); };
    std::string s =
        ".version 8.4\n.target " + target +
        "\n.address_size 64\n.extern .shared .align 1024 .b8 image[];\n"
        ".visible .entry k(.param .u64 p_image, .param .u64 p_a, .param .u64 p_d, .param .u64 da, .param .u64 db, "
        ".param "
        ".u32 add)\n{\n.reg .b64 %p, %o, %w, %da, %db;\n.reg .b32 %t, %i, %s, %x, %add, %a<4>;\n.reg .pred %more, "
        "%sd;\n.reg ." +
        d.type + " %d<" + text(d.n) +
        ">;\nmov.u32 %t, %tid.x;\nmov.u32 %s, image;\n"
        "ld.param.u64 %p, [p_image];\nshl.b32 %i, %t, 2;\n"
        "FILL:\ncvt.u64.u32 %o, %i;\nadd.u64 %w, %p, %o;\nld.global.u32 %x, [%w];\nadd.u32 %x, %x, 0;\n"
        "{ .reg .b32 at; add.u32 at, %s, %i; st.shared.u32 [at], %x; }\nadd.u32 %i, %i, 512;\n"
        "setp.lt.u32 %more, %i, " +
        text(SHARED_BYTES) +
        ";\n@%more bra FILL;\n"
        "fence.proxy.async.shared::cta;\nbar.sync 0;\n"
        "shr.u32 %x, %s, 4;\ncvt.u64.u32 %o, %x;\nld.param.u64 %da, [da];\nld.param.u64 %db, [db];\n"
        "add.u64 %da, %da, %o;\nadd.u64 %db, %db, %o;\nld.param.u32 %add, [add];\nsetp.ne.u32 %sd, %add, 0;\n";
    s += "ld.param.u64 %p, [p_a];\nmul.wide.u32 %o, %t, 16;\nadd.u64 %w, %p, %o;\nld.global.v4.u32 {%a0, %a1, %a2, "
         "%a3}, "
         "[%w];\n";
    s += "ld.param.u64 %p, [p_d];\nmul.wide.u32 %o, %t, " + text(d.n * 4) + ";\nadd.u64 %w, %p, %o;\n";
    for (size_t i = 0; i < d.n; i++)
        s += "ld.global." + d.type + " %d" + text(i) + ", [%w+" + text(4 * i) + "];\n";
    s += body;
    for (size_t i = 0; i < d.n; i++)
        s += "st.global." + d.type + " [%w+" + text(4 * i) + "], %d" + text(i) + ";\n";
    return s + "ret;\n}\n";
}

Registers d_registers(const Case &c)
{
    return {c.d == "f32" ? "f32" : "b32", c.n * M * bits_of(c.d) / 32 / THREADS};
}

std::string mma_async(const Case &c, const std::string &scale_d = "%sd")
{
    std::string s = "wgmma.mma_async.sync.aligned.m64n" + std::to_string(c.n) + "k" + std::to_string(c.k()) + c.middle +
                    "." + c.d + "." + c.a + "." + c.b + c.end + " " + names("d", d_registers(c).n) + ", " +
                    (c.a_in_registers ? "{%a0, %a1, %a2, %a3}" : "%da") + ", %db, " + scale_d;
    if (c.d != "s32") {
        s += c.negate_a ? ", -1" : ", 1";
        s += c.negate_b ? ", -1" : ", 1";
        if (bits_of(c.a) == 16) {
            if (!c.a_in_registers)
                s += c.la.mn_major ? ", 1" : ", 0";
            s += c.lb.mn_major ? ", 1" : ", 0";
        }
    }
    return s + ";\n";
}

const char FENCE[] = "wgmma.fence.sync.aligned;\n", COMMIT[] = "wgmma.commit_group.sync.aligned;\n",
           WAIT[] = "wgmma.wait_group.sync.aligned 0;\n";

std::string one_product(const Case &c)
{
    return FENCE + mma_async(c) + COMMIT + WAIT;
}

struct Data {
    std::vector<double> a, b, d; /* a[m][k], b[n][k], d[m][n] */
};

Data random_data(const Case &c, uint32_t seed)
{
    std::mt19937 r(seed);
    Data x{std::vector<double>(M * c.k()), std::vector<double>(c.n * c.k()), std::vector<double>(M * c.n)};
    for (double &e : x.a)
        e = random_element(r, c.a);
    for (double &e : x.b)
        e = random_element(r, c.b);
    for (double &e : x.d)
        e = c.middle == ".satfinite" ? (r() % 2 ? INT32_MAX - int(r() % 99) : INT32_MIN + int(r() % 99))
                                     : int(r() % 201) - 100;
    return x;
}

Place d_place(unsigned thread, unsigned i)
{
    unsigned lane = thread % WARP;
    return {thread / WARP * 16 + (lane >> 2) + (i / 2 % 2) * 8, i / 4 * 8 + lane % 4 * 2 + i % 2};
}

CUresult launch(const std::string &ptx, const Case &c, const Data &x, Words *d, unsigned threads = THREADS)
{
    std::vector<uint64_t> a, b, dd;
    encode_all(x.a, c.a, &a);
    encode_all(x.b, c.b, &b);
    encode_all(x.d, c.d, &dd);
    Bytes image(SHARED_BYTES);
    unsigned bits = bits_of(c.a), e = 32 / bits;
    if (!c.a_in_registers)
        lay_out(c.la, M, bits, a, &image[0]);
    lay_out(c.lb, c.n, bits, b, &image[B_AT]);
    Words wa = spread(
        a, c.k(), bits,
        [&](unsigned thread, unsigned i) {
            Place p = a_place(16, e, thread % WARP, i);
            return Place{p.row + thread / WARP * 16, p.col};
        },
        THREADS);
    *d = spread(dd, c.n, bits_of(c.d), d_place, THREADS);
    emu::Module m(ptx);
    emu::Buffer<uint8_t> b_image(image);
    emu::Buffer<uint32_t> b_a(wa), b_d(*d);
    CUfunction f = m.get("k");
    EXPECT_CU(CU(cuFuncSetAttribute)(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, int(SHARED_BYTES)));
    CUresult result = emu::launch(f, 1, threads, SHARED_BYTES, b_image.p, b_a.p, b_d.p, descriptor(c.la, M, 0),
                                  descriptor(c.lb, c.n, B_AT), uint32_t(c.accumulate));
    if (result == CUDA_SUCCESS)
        *d = b_d.get();
    return result;
}

uint64_t expected(const Case &c, const Data &x, unsigned row, unsigned col, int64_t times = 1)
{
    int64_t sum = 0, sign = c.negate_a != c.negate_b ? -1 : 1;
    for (unsigned k = 0; k < c.k(); k++) {
        int64_t p = int64_t(x.a[row * c.k() + k]), q = int64_t(x.b[col * c.k() + k]);
        sum += c.a == "b1" ? p & q : sign * p * q;
    }
    sum = sum * times + (c.accumulate ? int64_t(x.d[row * c.n + col]) : 0);
    if (c.d != "s32")
        return encode(c.d, double(sum));
    if (c.middle == ".satfinite")
        sum = std::min<int64_t>(std::max<int64_t>(sum, INT32_MIN), INT32_MAX);
    return uint32_t(sum);
}

void expect_product(const Case &c, const Data &x, const Words &d, int64_t times = 1)
{
    unsigned a_thread = c.n * M / THREADS, bits = bits_of(c.d);
    for (unsigned thread = 0; thread < THREADS; thread++)
        for (unsigned i = 0; i < a_thread; i++) {
            Place p = d_place(thread, i);
            ASSERT_EQ(expected(c, x, p.row, p.col, times), get(d, (thread * a_thread + i) * bits, bits))
                << c << " row " << p.row << " col " << p.col;
        }
}

/* ---- every type and layout ---- */

std::vector<Case> cases()
{
    const Layout plain{16, false, 0}, k128{128, false, 0};
    std::vector<Case> v;
    struct Types {
        const char *a, *b, *d, *end;
    };
    const Types all[] = {{"f16", "f16", "f16", ""},       {"f16", "f16", "f32", ""},   {"bf16", "bf16", "f32", ""},
                         {"tf32", "tf32", "f32", ""},     {"e4m3", "e4m3", "f16", ""}, {"e4m3", "e5m2", "f32", ""},
                         {"e5m2", "e4m3", "f32", ""},     {"e5m2", "e5m2", "f16", ""}, {"s8", "s8", "s32", ""},
                         {"s8", "u8", "s32", ""},         {"u8", "s8", "s32", ""},     {"u8", "u8", "s32", ""},
                         {"b1", "b1", "s32", ".and.popc"}};
    for (const Types &t : all)
        for (bool registers : {false, true})
            for (unsigned span : {16, 32, 64, 128}) {
                Case c{64, t.a, t.b, t.d, registers, {span, false, 0}, {span, false, 0}};
                c.end = t.end;
                v.push_back(c);
            }
    for (unsigned n : {8, 16, 24, 32, 48, 96, 128, 144, 240, 256}) {
        v.push_back({n, "s8", "s8", "s32", false, k128, k128});
        v.push_back({n, "f16", "f16", "f32", true, k128, {64, false, 0}});
        v.push_back({n, "f16", "f16", "f16", false, plain, plain});
    }
    v.push_back({200, "bf16", "bf16", "f32", false, k128, k128}); /* no multiple of 16 times 8: floats only */
    /* later steps of K within a span */
    for (unsigned offset : {32, 64, 96})
        for (const char *type : {"s8", "f16"})
            v.push_back(
                {64, type, type, *type == 's' ? "s32" : "f32", false, {128, false, offset}, {128, false, 96 - offset}});
    v.push_back({64, "u8", "s8", "s32", false, {64, false, 32}, {64, false, 0}});
    /* M- and N-major */
    for (const char *type : {"f16", "bf16"})
        for (unsigned span : {16, 32, 64, 128}) {
            v.push_back({128, type, type, "f32", false, {span, true, 0}, {span, true, 0}});
            v.push_back({64, type, type, "f32", false, {span, true, 0}, k128});
            v.push_back({64, type, type, "f32", true, k128, {span, true, 0}});
        }
    /* signs, and D that is overwritten */
    for (bool a : {false, true})
        for (bool b : {false, true}) {
            Case c{32, "f16", "f16", "f32", a, k128, k128};
            c.negate_a = a;
            c.negate_b = b;
            c.accumulate = a;
            v.push_back(c);
        }
    for (bool accumulate : {false, true}) {
        Case c{64, "s8", "s8", "s32", false, k128, k128};
        c.accumulate = accumulate;
        c.middle = ".satfinite";
        v.push_back(c);
        c.middle = "";
        v.push_back(c);
    }
    return v;
}

class Wgmma : public testing::TestWithParam<Case>
{
};

TEST_P(Wgmma, IsTheMatrixProduct)
{
    const Case &c = GetParam();
    emu::Device device;
    if (device.sm != 90)
        GTEST_SKIP() << "wgmma needs sm_90a";
    Data x = random_data(c, c.n);
    Words d;
    ASSERT_EQ(CUDA_SUCCESS, launch(kernel(d_registers(c), one_product(c)), c, x, &d)) << c << emu::report();
    expect_product(c, x, d);
}

INSTANTIATE_TEST_SUITE_P(Variants, Wgmma, testing::ValuesIn(cases()), [](const auto &info) {
    std::ostringstream s;
    s << info.index << "_" << info.param;
    std::string name = s.str();
    for (char &ch : name)
        if (!isalnum(ch))
            ch = '_';
    return name;
});

/* ---- asynchrony ---- */

const Case S8{64, "s8", "s8", "s32", false, {128, false, 0}, {128, false, 0}};

class WgmmaOrder : public testing::Test
{
  protected:
    Data x = random_data(S8, 1);
    Words d;
    void SetUp() override
    {
        emu::Device device;
        if (device.sm != 90)
            GTEST_SKIP() << "wgmma needs sm_90a";
    }
    CUresult run(const std::string &body, unsigned threads = THREADS)
    {
        emu::Device device; /* a new one: errors of kernels stay */
        return launch(kernel(d_registers(S8), body), S8, x, &d, threads);
    }
    void expect_fault(const char *words, const std::string &body, unsigned threads = THREADS)
    {
        if (!emu::Driver::get().emulated())
            return;
        EXPECT_EQ(CUDA_ERROR_LAUNCH_FAILED, run(body, threads)) << body;
        EXPECT_NE(std::string::npos, emu::report().find(words)) << emu::report();
    }
};

TEST_F(WgmmaOrder, AccumulatorsChainWithoutWaiting)
{
    ASSERT_EQ(CUDA_SUCCESS, run(FENCE + mma_async(S8) + mma_async(S8) + COMMIT + mma_async(S8) + COMMIT +
                                "wgmma.wait_group.sync.aligned 1;\n" + WAIT))
        << emu::report();
    expect_product(S8, x, d, 3);
}

TEST_F(WgmmaOrder, ReadingAccumulatorsBeforeTheirWaitIsAFault)
{
    const std::string read = "add.s32 %x, %d3, 1;\n", two = std::string(FENCE) + mma_async(S8) + COMMIT;
    expect_fault("that has not been waited for", FENCE + mma_async(S8) + read + COMMIT + WAIT);
    expect_fault("that has not been waited for", two + read + WAIT);
    expect_fault("never-written register",
                 two + mma_async(S8) + COMMIT + "wgmma.wait_group.sync.aligned 1;\n" + read + WAIT);
    EXPECT_EQ(CUDA_SUCCESS, run(two + WAIT + read)) << emu::report();
}

TEST_F(WgmmaOrder, AddingToNeverWrittenAccumulatorsIsAFault)
{
    const Case small{8, "s8", "s8", "s32", false, {128, false, 0}, {128, false, 0}};
    auto fresh = [&](const char *scale) {
        return "{ .reg .b32 e<4>; .reg .pred on, off; setp.eq.u32 on, 0, 0; setp.ne.u32 off, 0, 0;\n" +
               std::string(FENCE) + "wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 {e0, e1, e2, e3}, %da, %db, " +
               scale + ";\n" + "wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 {e0, e1, e2, e3}, %da, %db, on;\n" +
               COMMIT + WAIT + "add.s32 %x, e0, e3; }\n";
    };
    EXPECT_EQ(CUDA_SUCCESS, run(fresh("off"))) << emu::report();
    expect_fault("scale-d", fresh("on"));
}

TEST_F(WgmmaOrder, TheFirstProductNeedsAFence)
{
    expect_fault("wgmma.fence", mma_async(S8) + COMMIT + WAIT);
}

TEST_F(WgmmaOrder, AWarpgroupHasFourWarps)
{
    const std::string body = one_product(S8);
    expect_fault("lanes missing", body, 96);
    expect_fault("lanes missing", body, 127);
}

TEST_F(WgmmaOrder, DescriptorsAreUniformInAWarp)
{
    expect_fault("descriptor", "{ .reg .b64 q; cvt.u64.u32 q, %t; add.u64 %db, %db, q; }\n" + one_product(S8));
}

TEST_F(WgmmaOrder, DescriptorsStayInsideOfSharedMemory)
{
    if (!emu::Driver::get().emulated())
        return;
    EXPECT_EQ(CUDA_ERROR_ILLEGAL_ADDRESS,
              run("add.u64 %db, %db, " + std::to_string(SHARED_BYTES / 16 - 1024) + ";\n" + one_product(S8)));
}

/* ---- what is refused ---- */

TEST(WgmmaErrors, OtherShapesTypesAndTargetsAreErrorsAtLoad)
{
    emu::Device device;
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "a GPU's driver has rules of its own";
    auto load = [](const Case &c, const std::string &body, const char *target = "sm_90a") {
        return emu::Module(kernel(d_registers(c), body, target), false).result;
    };
    auto replaced = [](std::string s, const std::string &from, const std::string &to) {
        return s.replace(s.find(from), from.size(), to);
    };
    const Case f16{64, "f16", "f16", "f32", false, {128, false, 0}, {128, false, 0}};
    const std::string s8 = one_product(S8), half = one_product(f16);
    EXPECT_EQ(CUDA_SUCCESS, load(S8, s8));
    EXPECT_EQ(CUDA_SUCCESS, load(f16, half));
    EXPECT_EQ(CUDA_ERROR_INVALID_PTX, load(S8, s8, "sm_90"));
    for (Case c : {S8, f16})
        for (unsigned n : {4, 20, 264}) {
            c.n = n;
            EXPECT_EQ(CUDA_ERROR_INVALID_PTX, load(c, one_product(c))) << c;
        }
    Case c = S8;
    c.n = 40; /* a multiple of 8 */
    EXPECT_EQ(CUDA_ERROR_INVALID_PTX, load(c, one_product(c)));
    EXPECT_EQ(CUDA_ERROR_INVALID_PTX, load(S8, replaced(s8, "k32", "k16")));
    EXPECT_EQ(CUDA_ERROR_INVALID_PTX, load(S8, replaced(s8, "m64", "m32")));
    EXPECT_EQ(CUDA_ERROR_INVALID_PTX, load(S8, replaced(s8, ".s8.s8", ".s8.f16")));
    EXPECT_EQ(CUDA_ERROR_INVALID_PTX, load(S8, replaced(s8, "mma_async", "mma_async.sp")));
    EXPECT_EQ(CUDA_ERROR_INVALID_PTX, load(f16, replaced(half, ", 1, 1, 0, 0", ", 2, 1, 0, 0")));
    EXPECT_EQ(CUDA_ERROR_INVALID_PTX, load(f16, replaced(half, ", 1, 1, 0, 0", ", 1, 1, 0, 2")));
    EXPECT_EQ(CUDA_ERROR_INVALID_PTX, load(f16, replaced(half, ", 1, 1, 0, 0", ", 1, 1")));
}

} // namespace
