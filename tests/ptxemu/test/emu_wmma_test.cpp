/* <mma.h>: one tile of every type, shape and layout, compiled by nvcc (kernels/wmma.cu), against a plain matrix
 * product. */
#include "test/matrices.h"

#include <random>

namespace
{

using namespace matrices;
using Bytes = std::vector<uint8_t>;

struct Shape {
    unsigned m, n, k;
};

/* Elements of `bits` bits, element (i, j) at i * pitch + j, or j * pitch + i. */
Bytes lay_out(const std::vector<uint64_t> &x, unsigned rows, unsigned columns, unsigned bits, bool row_major,
              unsigned pitch)
{
    Bytes bytes(size_t(row_major ? rows : columns) * pitch * bits / 8 + 8);
    for (unsigned i = 0; i < rows; i++)
        for (unsigned j = 0; j < columns; j++) {
            size_t at = row_major ? size_t(i) * pitch + j : size_t(j) * pitch + i;
            uint64_t e = x[i * columns + j];
            if (bits < 8)
                bytes[at * bits / 8] |= uint8_t(e << at * bits % 8);
            else
                memcpy(&bytes[at * bits / 8], &e, bits / 8);
        }
    return bytes;
}

struct Tile {
    Shape s;
    std::string ab, c, d; /* types */
    bool a_is_row, b_is_row, c_is_row;
    int times; /* the kernel multiplies the result with */
    std::string bit_operation = "";
};

/* LAUNCH(a, b, c, d, lda, ldb, ldc) starts the kernel. */
template <class Launch>
void expect_product(const Tile &t, Launch launch)
{
    std::mt19937 r(t.s.m + t.s.k);
    auto random = [&](unsigned n, const std::string &type) {
        std::vector<double> x(n);
        for (double &e : x)
            e = random_element(r, type);
        return x;
    };
    auto bits = [](const std::vector<double> &x, const std::string &type) {
        std::vector<uint64_t> b;
        encode_all(x, type, &b);
        return b;
    };
    const Shape &s = t.s;
    std::vector<double> a = random(s.m * s.k, t.ab), b = random(s.k * s.n, t.ab), c(s.m * s.n);
    for (double &e : c)
        e = int(r() % 101) - 50;
    /* rows longer than they need be, still multiples of 16 bytes */
    unsigned more = 512 / bits_of(t.ab), c_more = 512 / bits_of(t.c);
    unsigned lda = (t.a_is_row ? s.k : s.m) + more, ldb = (t.b_is_row ? s.n : s.k) + more,
             ldc = (t.c_is_row ? s.n : s.m) + c_more;
    emu::Buffer<uint8_t> da(lay_out(bits(a, t.ab), s.m, s.k, bits_of(t.ab), t.a_is_row, lda));
    emu::Buffer<uint8_t> db(lay_out(bits(b, t.ab), s.k, s.n, bits_of(t.ab), t.b_is_row, ldb));
    emu::Buffer<uint8_t> dc(lay_out(bits(c, t.c), s.m, s.n, bits_of(t.c), t.c_is_row, ldc));
    std::vector<double> want(s.m * s.n);
    for (unsigned i = 0; i < s.m; i++)
        for (unsigned j = 0; j < s.n; j++) {
            int64_t sum = int64_t(c[i * s.n + j]);
            for (unsigned k = 0; k < s.k; k++) {
                int64_t p = int64_t(a[i * s.k + k]), q = int64_t(b[k * s.n + j]);
                sum += t.bit_operation.empty() ? p * q : t.bit_operation == "xor" ? p ^ q : p & q;
            }
            want[i * s.n + j] = double(sum * t.times);
        }
    Bytes expected = lay_out(bits(want, t.d), s.m, s.n, bits_of(t.d), t.c_is_row, ldc);
    emu::Buffer<uint8_t> dd(expected.size());
    dd.zero();
    ASSERT_EQ(CUDA_SUCCESS, launch(da.p, db.p, dc.p, dd.p, int(lda), int(ldb), int(ldc))) << emu::report();
    EXPECT_EQ(expected, dd.get());
}

TEST(Wmma, TilesOfEveryTypeShapeAndLayoutAreMatrixProducts)
{
    emu::Device device("8.0");
    emu::Module module(emu::kernel_ptx("wmma", "80"));
    CUfunction f = module.get("wmma_tile");
    const Shape shapes[] = {{16, 16, 16}, {32, 8, 16}, {8, 32, 16}};
    const char *const types[][3] = {{"f16", "f32", "f32"}, {"f16", "f16", "f16"}, {"bf16", "f32", "f32"},
                                    {"s8", "s32", "s32"},  {"u8", "s32", "s32"},  {"f16", "f16", "f32"}};
    for (int type = 0; type < 6; type++)
        for (int layout = 0; layout < 4; layout++)
            for (int shape = 0; shape < 3; shape++)
                for (int c_is_row = 0; c_is_row < 2; c_is_row++) {
                    SCOPED_TRACE(std::string(types[type][0]) + " layout " + std::to_string(layout) + " shape " +
                                 std::to_string(shape));
                    const char *const *t = types[type];
                    expect_product(
                        {shapes[shape], t[0], t[1], t[2], layout < 2, layout % 2 == 0, c_is_row != 0, 2},
                        [&](CUdeviceptr a, CUdeviceptr b, CUdeviceptr c, CUdeviceptr d, int lda, int ldb, int ldc) {
                            return emu::launch(f, 1, 32, 0, type, layout, shape, a, b, c, d, lda, ldb, ldc, c_is_row);
                        });
                }
}

TEST(Wmma, Tf32AndF64AreMatrixProducts)
{
    emu::Device device("8.0");
    emu::Module module(emu::kernel_ptx("wmma", "80"));
    const Tile tiles[] = {{{16, 16, 8}, "tf32", "f32", "f32", true, false, true, 2},
                          {{8, 8, 4}, "f64", "f64", "f64", true, false, true, 2}};
    for (int type = 0; type < 2; type++)
        expect_product(tiles[type],
                       [&](CUdeviceptr a, CUdeviceptr b, CUdeviceptr c, CUdeviceptr d, int lda, int ldb, int ldc) {
                           return emu::launch(module.get("wmma_wide"), 1, 32, 0, type, a, b, c, d, lda, ldb, ldc, 1);
                       });
}

TEST(Wmma, NibblesAndBitsAreMatrixProducts)
{
    emu::Device device("8.0");
    emu::Module module(emu::kernel_ptx("wmma", "80"));
    const Shape nibbles{8, 8, 32}, bits{8, 8, 128};
    const Tile tiles[] = {{nibbles, "s4", "s32", "s32", true, false, true, 1},
                          {nibbles, "u4", "s32", "s32", true, false, true, 1},
                          {bits, "b1", "s32", "s32", true, false, true, 1, "xor"},
                          {bits, "b1", "s32", "s32", true, false, true, 1, "and"}};
    for (int type = 0; type < 4; type++)
        expect_product(tiles[type],
                       [&](CUdeviceptr a, CUdeviceptr b, CUdeviceptr c, CUdeviceptr d, int lda, int ldb, int ldc) {
                           return emu::launch(module.get("wmma_narrow"), 1, 32, 0, type, a, b, c, d, lda, ldb, ldc);
                       });
}

} // namespace
