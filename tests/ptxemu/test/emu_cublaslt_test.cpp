/* The cuBLASLt stand-in against the definition of a matrix product: types, orders, transposes, leading dimensions, batches, epilogues.  With
 * NB_CUBLASLT and a real device the same tests run against NVIDIA's library (values are chosen so that every sum is exact). */
#include <cmath>

#include "companions/cublaslt_abi.h"
#include "test/emu.h"

namespace
{

struct Lt {
#define X(result, name, arguments) decltype(&::name) name = nullptr;
    PTXEMU_CUBLASLT_LIST(X)
#undef X
    Lt()
    {
        const char *named = getenv("NB_CUBLASLT");
        void *so = dlopen(named && *named ? named : NIBBLE_BUILD_DIR "/libptxemu_cublaslt.so", RTLD_NOW | RTLD_LOCAL);
        EXPECT_NE(nullptr, so) << dlerror();
#define X(result, n, arguments) n = reinterpret_cast<decltype(&::n)>(dlsym(so, #n));
        PTXEMU_CUBLASLT_LIST(X)
#undef X
    }
    static Lt &get()
    {
        static Lt l;
        return l;
    }
};
#define LT(name)        (Lt::get().name)
#define EXPECT_OK(call) EXPECT_EQ(CUBLAS_STATUS_SUCCESS, (call)) << #call

/* One matrix: small whole numbers, in any of the types. */
struct Mat {
    int type, order, rows, cols, ld;
    std::vector<double> v; /* row major, without the leading dimension */
    Mat(int t, int o, int r, int c, int pad, int seed) : type(t), order(o), rows(r), cols(c), v(size_t(r) * size_t(c))
    {
        ld = (order == CUBLASLT_ORDER_COL ? rows : cols) + pad;
        for (size_t i = 0; i < v.size(); i++)
            v[i] = double(int((i * 37 + size_t(seed) * 11) % 13) - 6);
    }
    size_t width() const
    {
        return type == CUDA_R_8I ? 1 : type == CUDA_R_32F || type == CUDA_R_32I ? 4 : type == CUDA_R_64F ? 8 : 2;
    }
    size_t index(int r, int c) const { return size_t(order == CUBLASLT_ORDER_COL ? r + c * ld : c + r * ld); }
    std::vector<uint8_t> bytes() const
    {
        std::vector<uint8_t> b(size_t(ld) * size_t(order == CUBLASLT_ORDER_COL ? cols : rows) * width(), 0);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < cols; c++)
                store(b.data() + index(r, c) * width(), v[size_t(r * cols + c)]);
        return b;
    }
    void store(uint8_t *p, double x) const
    {
        float f = float(x);
        int32_t i = int32_t(x);
        uint32_t u;
        memcpy(&u, &f, 4);
        /* whole numbers below 2^8 and multiples that both halves hold exactly: the upper bits of the f32 are right */
        uint16_t bf = uint16_t(u >> 16), h = f == 0
                                                 ? uint16_t(u >> 16 & 0x8000)
                                                 : uint16_t((u >> 16 & 0x8000) | ((u >> 13 & 0x3ffff) - (112 << 10)));
        switch (type) {
        case CUDA_R_32F:
            memcpy(p, &f, 4);
            break;
        case CUDA_R_64F:
            memcpy(p, &x, 8);
            break;
        case CUDA_R_16F:
            memcpy(p, &h, 2);
            break;
        case CUDA_R_16BF:
            memcpy(p, &bf, 2);
            break;
        case CUDA_R_8I:
            *p = uint8_t(i);
            break;
        default:
            memcpy(p, &i, 4);
        }
    }
    cublasLtMatrixLayout_t layout() const
    {
        cublasLtMatrixLayout_t l = nullptr;
        EXPECT_OK(LT(cublasLtMatrixLayoutCreate)(&l, type, uint64_t(rows), uint64_t(cols), ld));
        EXPECT_OK(LT(cublasLtMatrixLayoutSetAttribute)(l, CUBLASLT_MATRIX_LAYOUT_ORDER, &order, sizeof order));
        return l;
    }
};

struct Case {
    const char *name;
    int in, out, compute, scale;
};
const Case cases[] = {
    {"f32", CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F, CUDA_R_32F},
    {"f16", CUDA_R_16F, CUDA_R_16F, CUBLAS_COMPUTE_32F, CUDA_R_32F},
    {"f16_f32", CUDA_R_16F, CUDA_R_32F, CUBLAS_COMPUTE_32F, CUDA_R_32F},
    {"bf16", CUDA_R_16BF, CUDA_R_16BF, CUBLAS_COMPUTE_32F, CUDA_R_32F},
    {"s8_s32", CUDA_R_8I, CUDA_R_32I, CUBLAS_COMPUTE_32I, CUDA_R_32I},
};

class Matmul : public testing::TestWithParam<Case>
{
  protected:
    emu::Device device{"8.0"};
    cublasLtHandle_t h = nullptr;
    void SetUp() override { EXPECT_OK(LT(cublasLtCreate)(&h)); }
    void TearDown() override { EXPECT_OK(LT(cublasLtDestroy)(h)); }

    void run(const Case &c, int m, int n, int k, bool ta, bool tb, int order, int pad, bool relu, bool bias)
    {
        Mat a(c.in, order, ta ? k : m, ta ? m : k, pad, 1), b(c.in, order, tb ? n : k, tb ? k : n, pad, 2),
            d(c.out, order, m, n, pad, 0);
        /* bf16 holds whole numbers to 256: one in three factors is not zero then */
        if (c.out == CUDA_R_16BF)
            for (size_t i = 0; i < a.v.size(); i++)
                a.v[i] = i % 3 ? 0 : std::fmod(a.v[i], 2);
        std::vector<double> bias_values(static_cast<size_t>(m));
        for (int i = 0; i < m; i++)
            bias_values[size_t(i)] = i % 5 - 2;
        for (int i = 0; i < m; i++)
            for (int j = 0; j < n; j++) {
                double s = 0;
                for (int x = 0; x < k; x++)
                    s += a.v[size_t(ta ? x * m + i : i * k + x)] * b.v[size_t(tb ? j * k + x : x * n + j)];
                s = 2 * s + (bias ? bias_values[size_t(i)] : 0);
                d.v[size_t(i * n + j)] = relu && s < 0 ? 0 : s;
            }
        cublasLtMatmulDesc_t desc = nullptr;
        EXPECT_OK(LT(cublasLtMatmulDescCreate)(&desc, c.compute, c.scale));
        int32_t op_a = ta, op_b = tb;
        EXPECT_OK(LT(cublasLtMatmulDescSetAttribute)(desc, CUBLASLT_MATMUL_DESC_TRANSA, &op_a, sizeof op_a));
        EXPECT_OK(LT(cublasLtMatmulDescSetAttribute)(desc, CUBLASLT_MATMUL_DESC_TRANSB, &op_b, sizeof op_b));
        Mat bias_mat(c.out, CUBLASLT_ORDER_COL, m, 1, 0, 0);
        bias_mat.v = bias_values;
        emu::Buffer<uint8_t> da(a.bytes()), db(b.bytes()), dd(std::vector<uint8_t>(d.bytes().size(), 0)),
            dbias(bias_mat.bytes());
        uint32_t epilogue = bias && relu ? CUBLASLT_EPILOGUE_RELU_BIAS
                            : bias       ? CUBLASLT_EPILOGUE_BIAS
                            : relu       ? CUBLASLT_EPILOGUE_RELU
                                         : CUBLASLT_EPILOGUE_DEFAULT;
        EXPECT_OK(LT(cublasLtMatmulDescSetAttribute)(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
        EXPECT_OK(
            LT(cublasLtMatmulDescSetAttribute)(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &dbias.p, sizeof dbias.p));
        cublasLtMatrixLayout_t la = a.layout(), lb = b.layout(), ld = d.layout();
        float alpha = 2, beta = 0;
        int32_t ialpha = 2, ibeta = 0;
        const void *pa = c.scale == CUDA_R_32I ? static_cast<const void *>(&ialpha) : &alpha;
        const void *pb = c.scale == CUDA_R_32I ? static_cast<const void *>(&ibeta) : &beta;
        cublasLtMatmulPreference_t pref = nullptr;
        cublasLtMatmulHeuristicResult_t found;
        int n_found = 0;
        EXPECT_OK(LT(cublasLtMatmulPreferenceCreate)(&pref));
        ASSERT_EQ(CUBLAS_STATUS_SUCCESS,
                  LT(cublasLtMatmulAlgoGetHeuristic)(h, desc, la, lb, ld, ld, pref, 1, &found, &n_found));
        ASSERT_EQ(1, n_found);
        ASSERT_EQ(CUBLAS_STATUS_SUCCESS,
                  LT(cublasLtMatmul)(h, desc, pa, reinterpret_cast<void *>(da.p), la, reinterpret_cast<void *>(db.p),
                                     lb, pb, reinterpret_cast<void *>(dd.p), ld, reinterpret_cast<void *>(dd.p), ld,
                                     &found.algo, nullptr, 0, nullptr));
        EXPECT_CU(CU(cuCtxSynchronize)());
        EXPECT_EQ(d.bytes(), dd.get()) << c.name << " " << m << "x" << n << "x" << k << " " << ta << tb << " order "
                                       << order;
        LT(cublasLtMatmulPreferenceDestroy)(pref);
        for (auto l : {la, lb, ld})
            LT(cublasLtMatrixLayoutDestroy)(l);
        LT(cublasLtMatmulDescDestroy)(desc);
    }
};
INSTANTIATE_TEST_SUITE_P(Types, Matmul, testing::ValuesIn(cases), [](const auto &info) { return info.param.name; });

TEST_P(Matmul, is_the_sum_of_products)
{
    const Case &c = GetParam();
    const bool integer = c.compute == CUBLAS_COMPUTE_32I;
    run(c, 16, 8, 32, true, false, CUBLASLT_ORDER_COL, 0, false, false); /* "TN": how weights are stored */
    run(c, 8, 12, 20, false, false, CUBLASLT_ORDER_COL, 4, false, false);
    if (integer || !emu::Driver::get().emulated())
        return;
    run(c, 5, 7, 9, false, true, CUBLASLT_ORDER_COL, 3, false, false);
    run(c, 6, 3, 11, true, true, CUBLASLT_ORDER_ROW, 1, false, false);
    run(c, 1, 1, 1, false, false, CUBLASLT_ORDER_ROW, 0, true, false);
    run(c, 9, 10, 12, false, false, CUBLASLT_ORDER_COL, 0, true, true);
}

TEST(MatmulLimits, what_there_is_no_kernel_for_is_said)
{
    emu::Device device("8.0");
    cublasLtHandle_t h = nullptr;
    EXPECT_OK(LT(cublasLtCreate)(&h));
    cublasLtMatmulDesc_t desc = nullptr;
    EXPECT_OK(LT(cublasLtMatmulDescCreate)(&desc, CUBLAS_COMPUTE_32I, CUDA_R_32I));
    cublasLtMatrixLayout_t a = Mat(CUDA_R_8I, 0, 6, 5, 0, 0).layout(), b = Mat(CUDA_R_8I, 0, 5, 4, 0, 0).layout(),
                           d = Mat(CUDA_R_32I, 0, 6, 4, 0, 0).layout();
    cublasLtMatmulHeuristicResult_t r;
    int n = 7;
    EXPECT_EQ(CUBLAS_STATUS_NOT_SUPPORTED, LT(cublasLtMatmulAlgoGetHeuristic)(h, desc, a, b, d, d, nullptr, 1, &r, &n))
        << "k = 5";
    EXPECT_EQ(0, n);
    EXPECT_EQ(CUBLAS_STATUS_INVALID_VALUE, LT(cublasLtMatmulAlgoGetHeuristic)(h, desc, b, a, d, d, nullptr, 1, &r, &n))
        << "shapes";
    EXPECT_EQ(CUBLAS_STATUS_INVALID_VALUE,
              LT(cublasLtMatmulAlgoGetHeuristic)(h, nullptr, b, a, d, d, nullptr, 1, &r, &n));
    for (auto l : {a, b, d})
        LT(cublasLtMatrixLayoutDestroy)(l);
    LT(cublasLtMatmulDescDestroy)(desc);
    LT(cublasLtDestroy)(h);
}

} // namespace
