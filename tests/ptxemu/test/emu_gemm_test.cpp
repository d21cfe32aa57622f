/* Tensor-core matrix products as an engine writes them, compiled by nvcc (kernels/gemm_*.cu), against plain C. */
#include "test/emu.h"

#include <random>

namespace
{

constexpr unsigned ROW_ALIGN = 16;

/* Rows of `k` elements of which each begins at a multiple of 16 bytes; what is between them is a value that must not
 * count. */
template <class T>
struct Matrix {
    int rows, k, pitch; /* elements */
    std::vector<T> data;

    Matrix(int r, int kk, T between)
        : rows(r), k(kk), pitch(int((size_t(kk) * sizeof(T) + ROW_ALIGN - 1) / ROW_ALIGN * ROW_ALIGN / sizeof(T))),
          data(size_t(r) * size_t(pitch), between)
    {
    }
    T &at(int row, int col) { return data[size_t(row) * size_t(pitch) + size_t(col)]; }
    const T &at(int row, int col) const { return data[size_t(row) * size_t(pitch) + size_t(col)]; }
    int row_bytes() const { return pitch * int(sizeof(T)); }
};

/* Whole numbers up to 15 as f16. */
uint16_t f16_of(int x)
{
    if (x == 0)
        return 0;
    int magnitude = x < 0 ? -x : x, exponent = 31 - __builtin_clz(unsigned(magnitude));
    return uint16_t((x < 0 ? 0x8000 : 0) | (exponent + 15) << 10 | (magnitude << (10 - exponent) & 0x3ff));
}
int whole(uint16_t h)
{
    int exponent = (h >> 10 & 31) - 15;
    int magnitude = h & 0x7fff ? (0x400 | (h & 0x3ff)) >> (10 - exponent) : 0;
    return h & 0x8000 ? -magnitude : magnitude;
}
int whole(int8_t x)
{
    return x;
}

Matrix<int8_t> random_s8(int rows, int k, uint32_t seed)
{
    std::mt19937 r(seed);
    Matrix<int8_t> m(rows, k, 77);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < k; j++)
            m.at(i, j) = int8_t(r());
    return m;
}

Matrix<uint16_t> random_f16(int rows, int k, uint32_t seed)
{
    std::mt19937 r(seed);
    Matrix<uint16_t> m(rows, k, 0x7e00);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < k; j++)
            m.at(i, j) = f16_of(int(r() % 31) - 15);
    return m;
}

template <class T, class C>
void expect_product(const Matrix<T> &a, const Matrix<T> &b, const std::vector<C> &c)
{
    for (int i = 0; i < a.rows; i++)
        for (int j = 0; j < b.rows; j++) {
            int64_t sum = 0;
            for (int k = 0; k < a.k; k++)
                sum += whole(a.at(i, k)) * whole(b.at(j, k));
            ASSERT_EQ(C(sum), c[size_t(i) * size_t(b.rows) + size_t(j)]) << "row " << i << " column " << j;
        }
}

struct Shape {
    int m, n, k;
};
std::ostream &operator<<(std::ostream &s, const Shape &x)
{
    return s << x.m << "x" << x.n << "x" << x.k;
}
const Shape shapes[] = {{1, 1, 1},     {16, 8, 32},     {64, 64, 64}, {65, 63, 48}, {7, 130, 200},
                        {100, 33, 17}, {128, 128, 256}, {3, 65, 511}, {70, 5, 1000}};

class Gemm : public testing::TestWithParam<Shape>
{
  protected:
    unsigned blocks(int n, int tile) { return unsigned((n + tile - 1) / tile); }

    template <class C, class T>
    void run(const char *name, const char *arch, int tile, const Matrix<T> &a, const Matrix<T> &b)
    {
        emu::Module module(emu::kernel_ptx(name, arch));
        emu::Buffer<T> da(a.data), db(b.data);
        emu::Buffer<C> dc(size_t(a.rows) * size_t(b.rows));
        ASSERT_EQ(CUDA_SUCCESS, emu::launch(module.get(name), {blocks(b.rows, tile), blocks(a.rows, tile)}, 128, 0,
                                            da.p, db.p, dc.p, a.rows, b.rows, a.k, a.row_bytes()))
            << emu::report();
        expect_product(a, b, dc.get());
    }
};

TEST_P(Gemm, S8OfTuringIsTheMatrixProduct)
{
    const Shape &s = GetParam();
    emu::Device device("7.5");
    run<int>("gemm_s8_turing", "75", 32, random_s8(s.m, s.k, 1), random_s8(s.n, s.k, 2));
}

TEST_P(Gemm, S8IsTheMatrixProduct)
{
    const Shape &s = GetParam();
    emu::Device device("8.0");
    run<int>("gemm_s8", "80", 64, random_s8(s.m, s.k, 1), random_s8(s.n, s.k, 2));
}

TEST_P(Gemm, F16IsTheMatrixProduct)
{
    const Shape &s = GetParam();
    emu::Device device("8.6");
    run<float>("gemm_f16", "80", 64, random_f16(s.m, s.k, 1), random_f16(s.n, s.k, 2));
}

/* ---- Hopper ---- */

CUtensorMap tensor_map(CUdeviceptr p, const Matrix<int8_t> &m, unsigned box_rows)
{
    auto encode = emu::Driver::get().find<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
    CUtensorMap map = {};
    cuuint64_t dims[] = {cuuint64_t(m.k), cuuint64_t(m.rows)}, strides[] = {cuuint64_t(m.row_bytes())};
    cuuint32_t box[] = {128, box_rows}, ones[] = {1, 1};
    EXPECT_CU(encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, reinterpret_cast<void *>(p), dims, strides, box, ones,
                     CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                     CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
    return map;
}

TEST_P(Gemm, S8OfHopperIsTheMatrixProduct)
{
    const Shape &s = GetParam();
    emu::Device device("9.0");
    if (device.sm != 90)
        GTEST_SKIP() << "wgmma needs sm_90a";
    Matrix<int8_t> a = random_s8(s.m, s.k, 1), b = random_s8(s.n, s.k, 2);
    emu::Module module(emu::kernel_ptx("gemm_wgmma", "90a"));
    emu::Buffer<int8_t> da(a.data), db(b.data);
    emu::Buffer<int> dc(size_t(s.m) * size_t(s.n));
    const unsigned shared = 4 * 2 * 64 * 128 + 2 * 4 * 8;
    CUfunction f = module.get("gemm_wgmma");
    ASSERT_CU(CU(cuFuncSetAttribute)(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, int(shared)));
    ASSERT_EQ(CUDA_SUCCESS, emu::launch(f, {blocks(s.n, 64), blocks(s.m, 64)}, 160, shared, tensor_map(da.p, a, 64),
                                        tensor_map(db.p, b, 64), dc.p, s.m, s.n, s.k))
        << emu::report();
    expect_product(a, b, dc.get());
}

INSTANTIATE_TEST_SUITE_P(Shapes, Gemm, testing::ValuesIn(shapes), [](const auto &info) {
    std::ostringstream s;
    s << info.param;
    return s.str();
});

/* ---- what the profiler says of them ---- */

/* The number behind the first "name": of the profile. */
double profile_number(const std::string &profile, const std::string &name)
{
    size_t at = profile.find("\"" + name + "\":");
    EXPECT_NE(std::string::npos, at) << name << " in " << profile;
    return at == std::string::npos ? -1 : atof(profile.c_str() + at + name.size() + 3);
}

struct Profiled {
    const char *kernel, *arch, *cc;
    int tile;
};
class GemmProfile : public testing::TestWithParam<Profiled>
{
};

TEST_P(GemmProfile, HasNoBankConflictsAndTheTensorOperationsOfItsTiles)
{
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "only the emulator counts";
    const Profiled &t = GetParam();
    const std::string path = testing::TempDir() + "/emu_gemm_profile_" + t.kernel + ".json";
    emu::Device device(t.cc, {{"NB_EMU_PROFILE", path.c_str()}});
    const int m = 100, n = 100, k = 256;
    Matrix<int8_t> a = random_s8(m, k, 1), b = random_s8(n, k, 2);
    emu::Module module(emu::kernel_ptx(t.kernel, t.arch));
    emu::Buffer<int8_t> da(a.data), db(b.data);
    emu::Buffer<int> dc(size_t(m) * size_t(n));
    unsigned tiles = unsigned((m + t.tile - 1) / t.tile);
    ASSERT_EQ(CUDA_SUCCESS,
              emu::launch(module.get(t.kernel), {tiles, tiles}, 128, 0, da.p, db.p, dc.p, m, n, k, a.row_bytes()));
    auto write = emu::Driver::get().find<int (*)(const char *)>("ptxemu_write_profile");
    ASSERT_EQ(0, write(path.c_str()));
    const std::string profile = emu::read_file(path);
    EXPECT_EQ(0, profile_number(profile, "conflicts"));
    EXPECT_LT(0, profile_number(profile, "ideal_wavefronts"));
    EXPECT_EQ(2.0 * tiles * t.tile * tiles * t.tile * k, profile_number(profile, "tensor_ops"));
    remove(path.c_str());
}

INSTANTIATE_TEST_SUITE_P(Kernels, GemmProfile,
                         testing::Values(Profiled{"gemm_s8", "80", "8.0", 64},
                                         Profiled{"gemm_s8_turing", "75", "7.5", 32}),
                         [](const auto &info) { return std::string(info.param.kernel); });

} // namespace
