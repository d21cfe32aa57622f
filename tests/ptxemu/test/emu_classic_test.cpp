/* Kernels of the textbook, compiled by nvcc, against plain C: kernels/classic.cu, on every architecture that the emulator offers. */
#include <cmath>
#include <random>

#include "test/emu.h"

namespace
{

struct Arch {
    const char *cc, *ptx;
};

class Classic : public testing::TestWithParam<Arch>
{
  protected:
    emu::Device device{GetParam().cc};
    emu::Module module{emu::kernel_ptx("classic", GetParam().ptx)};
    CUfunction get(const char *name) { return module.get(name); }
    void SetUp() override
    {
        if (!emu::Driver::get().emulated() && std::string(GetParam().ptx) != "75")
            GTEST_SKIP() << "one architecture is enough on a real device";
    }
    std::mt19937 random{42};
    std::vector<float> floats(size_t n)
    {
        std::vector<float> v(n);
        for (float &x : v)
            x = float(int(random() % 2001) - 1000) / 256;
        return v;
    }
};
INSTANTIATE_TEST_SUITE_P(Archs, Classic,
                         testing::Values(Arch{"7.5", "75"}, Arch{"8.0", "80"}, Arch{"8.6", "80"}, Arch{"8.9", "80"},
                                         Arch{"9.0", "90a"}),
                         [](const auto &info) { return "cc" + std::string(1, info.param.cc[0]) + info.param.cc[2]; });

TEST_P(Classic, reduction_adds_in_the_order_it_states)
{
    for (int n : {1, 31, 32, 1000, 4099}) {
        const int blocks = 3, threads = 128;
        auto x = floats(size_t(n));
        emu::Buffer<float> in(x), out(blocks);
        ASSERT_CU(emu::launch(get("reduce_sum"), blocks, threads, 0, out.p, in.p, n));
        std::vector<float> want(blocks);
        auto shuffled = [](std::vector<float> lane) { /* 32 lanes, xor 16 ... 1 */
                                                      for (size_t d = 16; d > 0; d >>= 1) {
                                                          auto old = lane;
                                                          for (size_t l = 0; l < 32; l++)
                                                              lane[l] = old[l] + old[l ^ d];
                                                      }
                                                      return lane[0];
        };
        for (int b = 0; b < blocks; b++) {
            std::vector<float> part(32, 0.0f);
            for (int w = 0; w < threads / 32; w++) {
                std::vector<float> lane(32, 0.0f);
                for (int l = 0; l < 32; l++)
                    for (int i = b * threads + w * 32 + l; i < n; i += blocks * threads)
                        lane[size_t(l)] += x[size_t(i)];
                part[size_t(w)] = shuffled(lane);
            }
            want[size_t(b)] = shuffled(part);
        }
        EXPECT_EQ(want, out.get()) << n;
    }
}

TEST_P(Classic, scan)
{
    for (unsigned threads : {1u, 16u, 64u, 512u}) {
        std::vector<int> x(2 * threads), want(2 * threads);
        int sum = 0;
        for (size_t i = 0; i < x.size(); i++) {
            x[i] = int(random() % 1000) - 500;
            want[i] = sum += x[i];
        }
        emu::Buffer<int> in(x), out(x.size());
        ASSERT_CU(emu::launch(get("scan_blelloch"), 1, threads, unsigned(8 * threads), out.p, in.p));
        EXPECT_EQ(want, out.get()) << threads;
    }
}

TEST_P(Classic, transpose_with_and_without_conflicts)
{
    for (auto [rows, cols] : {std::pair<int, int>{32, 32}, {33, 65}, {1, 100}, {127, 3}}) {
        auto x = floats(size_t(rows) * size_t(cols));
        std::vector<float> want(x.size());
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < cols; c++)
                want[size_t(c * rows + r)] = x[size_t(r * cols + c)];
        for (const char *name : {"transpose_conflicts", "transpose_padded"}) {
            emu::Buffer<float> in(x), out(x.size());
            ASSERT_CU(emu::launch(get(name), emu::Dim(unsigned(cols + 31) / 32, unsigned(rows + 31) / 32),
                                  emu::Dim(32, 8), 0, out.p, in.p, rows, cols));
            EXPECT_EQ(want, out.get()) << name << " " << rows << "x" << cols;
        }
        emu::Buffer<float> in(x), out(x.size());
        ASSERT_CU(emu::launch(get("transpose_naive"), emu::Dim(unsigned(cols + 31) / 32, unsigned(rows + 7) / 8),
                              emu::Dim(32, 8), 0, out.p, in.p, rows, cols));
        EXPECT_EQ(want, out.get()) << rows << "x" << cols;
    }
}

TEST_P(Classic, histogram_loses_no_count)
{
    std::vector<unsigned char> x(10007);
    std::vector<unsigned> want(256, 0);
    for (auto &v : x)
        want[v = static_cast<unsigned char>(random() % 7 ? random() % 4 : random())]++;
    emu::Buffer<unsigned char> in(x);
    emu::Buffer<unsigned> bins(256);
    bins.zero();
    ASSERT_CU(emu::launch(get("histogram"), 7, 96, 0, bins.p, in.p, int(x.size())));
    EXPECT_EQ(want, bins.get());
}

TEST_P(Classic, tiled_gemm_equals_the_sum_in_its_order)
{
    for (auto [m, n, k] : {std::tuple<int, int, int>{16, 16, 16}, {17, 33, 50}, {1, 5, 3}}) {
        auto a = floats(size_t(m) * size_t(k)), b = floats(size_t(k) * size_t(n));
        emu::Buffer<float> da(a), db(b), dc(size_t(m) * size_t(n));
        ASSERT_CU(emu::launch(get("gemm_tiled"), emu::Dim(unsigned(n + 15) / 16, unsigned(m + 15) / 16),
                              emu::Dim(16, 16), 0, dc.p, da.p, db.p, m, n, k));
        std::vector<float> want(size_t(m) * size_t(n));
        for (int r = 0; r < m; r++)
            for (int c = 0; c < n; c++) {
                float s = 0;
                for (int i = 0; i < k; i++)
                    s = fmaf(a[size_t(r * k + i)], b[size_t(i * n + c)], s);
                want[size_t(r * n + c)] = s;
            }
        EXPECT_EQ(want, dc.get()) << m << "x" << n << "x" << k;
    }
}

TEST_P(Classic, softmax_is_within_its_bound)
{
    const int rows = 5, cols = 77;
    std::vector<uint16_t> bits(rows * cols);
    std::vector<double> x(bits.size());
    for (size_t i = 0; i < bits.size(); i++) { /* halves of the form +-1.m * 2^e, exact in double */
        const unsigned e = 10 + random() % 7, m = random() % 1024, s = random() % 2;
        bits[i] = uint16_t(s << 15 | e << 10 | m);
        x[i] = (s ? -1 : 1) * std::ldexp(1 + m / 1024.0, int(e) - 15);
    }
    emu::Buffer<uint16_t> in(bits);
    emu::Buffer<float> out(bits.size());
    ASSERT_CU(emu::launch(get("softmax_rows"), 2, emu::Dim(32, 3), 0, out.p, in.p, rows, cols));
    auto got = out.get();
    for (int r = 0; r < rows; r++) {
        double top = -INFINITY, sum = 0;
        for (int c = 0; c < cols; c++)
            top = std::max(top, x[size_t(r * cols + c)]);
        for (int c = 0; c < cols; c++)
            sum += std::exp(x[size_t(r * cols + c)] - top);
        for (int c = 0; c < cols; c++) {
            /* __expf(d) = ex2(d * log2 e): the product's rounding costs |d| * log2(e) * 2^-24 * ln 2, ex2.approx 2^-22 on hardware; d itself is
             * rounded once; the sum of 77 terms and the division add less than 10 roundings: with |d| < 8, 2^-19 is enough */
            double want = std::exp(x[size_t(r * cols + c)] - top) / sum;
            EXPECT_NEAR(want, got[size_t(r * cols + c)], want * 0x1p-19) << r << "," << c;
        }
    }
}

TEST_P(Classic, stream_k_adds_every_part_once)
{
    const int m = 16, n = 24, k = 40;
    std::vector<int> a(m * k), b(k * n), want(m * n, 0);
    for (int &v : a)
        v = int(random() % 200) - 100;
    for (int &v : b)
        v = int(random() % 200) - 100;
    for (int r = 0; r < m; r++)
        for (int c = 0; c < n; c++)
            for (int i = 0; i < k; i++)
                want[size_t(r * n + c)] += a[size_t(r * k + i)] * b[size_t(i * n + c)];
    for (unsigned blocks : {1u, 2u, 7u, 30u}) {
        emu::Buffer<int> da(a), db(b), dc(want.size()), locks(6);
        locks.zero();
        ASSERT_CU(emu::launch(get("stream_k"), blocks, 64, 0, dc.p, da.p, db.p, locks.p, m, n, k));
        EXPECT_EQ(want, dc.get()) << blocks;
    }
}

TEST_P(Classic, a_block_may_wait_for_one_that_starts_later)
{
    const unsigned blocks = 6; /* all fit on any device at once */
    emu::Buffer<int> flags(blocks), out(blocks);
    flags.zero();
    out.zero();
    ASSERT_CU(emu::launch(get("waits_for_a_later_block"), blocks, 32, 0, flags.p, out.p));
    std::vector<int> want;
    for (unsigned i = 0; i < blocks; i++)
        want.push_back(int(blocks - i));
    EXPECT_EQ(want, out.get());
}

/* Whatever the number of host threads, the results are the same. */
TEST(Threads, one_and_two_give_the_same)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP();
    std::vector<std::vector<float>> results;
    for (const char *threads : {"1", "2", "3"}) {
        emu::Device d("8.0", {{"NB_EMU_THREADS", threads}});
        emu::Module m(emu::kernel_ptx("classic", "80"));
        std::vector<float> x(5000);
        for (size_t i = 0; i < x.size(); i++)
            x[i] = std::sin(float(i));
        emu::Buffer<float> in(x), out(16);
        ASSERT_CU(emu::launch(m.get("reduce_sum"), 16, 256, 0, out.p, in.p, int(x.size())));
        results.push_back(out.get());
    }
    EXPECT_EQ(results[0], results[1]);
    EXPECT_EQ(results[0], results[2]);
}

} // namespace
