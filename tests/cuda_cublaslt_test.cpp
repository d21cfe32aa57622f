/* Linear layers by cuBLASLt: the library is found or named in a sentence, its products are right in every form that linear()
 * asks for, and INT8 ends with the bits of the formula in docs/numerics.md.  On the stand-in driver the library is a stand-in
 * too; on a GPU it is the real one, and the cases are left out where it is not installed. */
#include <sys/wait.h>

#include <memory>

#include "cuda_util.h"

extern "C" {
#include "backend/cuda/cublaslt.h"
}

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#define HAS_HEADER 1
#else
#define HAS_HEADER 0
#endif

namespace
{

#if HAS_HEADER
/* cublaslt.c has these numbers from the documentation; here the header itself says them. */
static_assert(CUDA_R_32F == 0 && CUDA_R_16F == 2 && CUDA_R_8I == 3 && CUDA_R_32I == 10 && CUDA_R_16BF == 14);
static_assert(CUBLAS_COMPUTE_32F == 68 && CUBLAS_COMPUTE_32I == 72 && CUBLAS_OP_T == 1);
static_assert(CUBLASLT_MATMUL_DESC_TRANSA == 3 && CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES == 1);
static_assert(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES == 5 && CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES == 6);
static_assert(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES == 7 && CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES == 8);
static_assert(sizeof(cublasLtMatmulAlgo_t) == 64 && sizeof(cublasLtMatmulHeuristicResult_t) == 96);
static_assert(offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize) == 64);
#endif

/* The library, opened for a device for the life of the object. */
class Library
{
  public:
    explicit Library(nbi_dtype act) : c_(device(act))
    {
        if (emulated())
            setenv("NB_CUBLASLT", NIBBLE_DRIVER_DIR "/libptxemu_cublaslt.so", 1);
        open_ = nbi_cublaslt_open(c_) == NB_OK;
        if (open_)
            scratch_ = std::make_unique<Buffer<char>>(nbi_cublaslt_scratch(c_, 700, 512));
    }
    ~Library() { nbi_cublaslt_close(c_); }
    bool open() const { return open_; }
    void *scratch() const { return scratch_->ptr(); }
    nbi_cuda *operator->() const { return c_; }
    operator nbi_cuda *() const { return c_; }

  private:
    nbi_cuda *c_;
    bool open_;
    std::unique_ptr<Buffer<char>> scratch_;
};
#define NEEDS_LIBRARY(name, act)                                                                                       \
    Library name(act);                                                                                                 \
    if (!name.open() && !emulated())                                                                                   \
        GTEST_SKIP() << nb_last_error();                                                                               \
    ASSERT_TRUE(name.open()) << nb_last_error()

struct Case {
    size_t rows, n, k;
};
std::string name_of(const Case &c)
{
    return std::to_string(c.rows) + " x " + std::to_string(c.n) + " x " + std::to_string(c.k);
}

/* A layer on the device, from a canonical weight. */
struct Layer {
    nbi_linear l = {};
    nbi_cuda *c;
    Layer(nbi_cuda *dev, const nbi_weight &w) : c(dev)
    {
        l.scheme = w.scheme;
        EXPECT_TRUE(nbi_cublaslt_takes(c, w.n, w.k, &w.scheme));
        EXPECT_NB_OK(nbi_cublaslt_pack(c, &l, &w)) << trouble();
        EXPECT_EQ(l.bytes, nbi_cublaslt_plan(c, w.n, w.k, &w.scheme, w.bias != nullptr));
    }
    ~Layer() { nbi_cuda_weights_free(c, l.block); }
};

std::vector<float> numbers(size_t n, uint64_t seed, float size = 1)
{
    return noise(n, seed, size);
}

const Case cases[] = {{1, 16, 16}, {3, 48, 80}, {8, 1000, 112}, {17, 64, 144}, {33, 52, 256}, {64, 128, 64}};

/* ---- dense ---- */

/* One product: exact in double; the library's sum of K terms in fp32 by any order has at most K roundings, and the result one of
 * T where it is T. */
void dense_product(const Library &lib, const Case &s, bool bias, nbi_dst dst)
{
    SCOPED_TRACE(name_of(s) + (bias ? " with bias" : "") + " to " + std::to_string(dst));
    nbi_cuda *c = lib;
    const nbi_dtype t = c->act;
    std::vector<float> w = rounded(numbers(s.n * s.k, 1), t), x = rounded(numbers(s.rows * s.k, 2), t),
                       b = numbers(s.n, 3);
    const size_t ldy = s.n + 24;
    std::vector<float> old = numbers(s.rows * ldy, 4);
    std::vector<uint16_t> stored = to_t(w, t);
    nbi_weight weight = {};
    weight.n = s.n;
    weight.k = s.k;
    weight.dense_dtype = t;
    weight.dense = stored.data();
    weight.bias = bias ? b.data() : nullptr;
    Layer layer(c, weight);
    Buffer<uint16_t> dx(to_t(x, t));
    Buffer<float> dy(old);
    Buffer<uint16_t> dy_t(to_t(old, t));
    nb_act_out in = {dx.ptr(), nullptr, nullptr};
    void *y = dst == NBI_DST_ACT ? (void *)dy_t.ptr() : dy.ptr();
    ASSERT_NB_OK(nbi_cuda_sync(device())); /* which filled the buffers, on a stream of its own */
    ASSERT_NB_OK(nbi_cublaslt_part(c, &layer.l, &in, nullptr, s.rows, y, ldy, dst, lib.scratch())) << trouble();
    ASSERT_NB_OK(nbi_cuda_sync(c)) << trouble();
    std::vector<float> got = dst == NBI_DST_ACT ? from_t(dy_t.get(), t) : dy.get();
    const std::vector<float> was = dst == NBI_DST_ACT ? rounded(old, t) : old;
    for (size_t r = 0; r < s.rows; r++)
        for (size_t n = 0; n < ldy; n++) {
            if (n >= s.n) {
                ASSERT_EQ(was[r * ldy + n], got[r * ldy + n]) << "column " << n << " is not the layer's";
                continue;
            }
            double sum = bias ? b[n] : 0, size = std::fabs(sum);
            for (size_t k = 0; k < s.k; k++) {
                sum += (double)w[n * s.k + k] * x[r * s.k + k];
                size += std::fabs((double)w[n * s.k + k] * x[r * s.k + k]);
            }
            if (dst == NBI_DST_RESIDUAL) {
                sum += was[r * ldy + n];
                size += std::fabs(was[r * ldy + n]);
            }
            /* a tensor core may truncate: 2^-23 for each of the additions */
            double bound = (double)(s.k + 3) * 0x1p-23 * size;
            if (dst == NBI_DST_ACT)
                bound += std::fabs(sum) * (t == NBI_F16 ? 0x1p-11 : 0x1p-8) + 0x1p-25;
            ASSERT_NEAR(sum, got[r * ldy + n], bound) << "row " << r << ", column " << n;
        }
}

TEST(Cublaslt, dense_products_agree_with_double)
{
    for (nbi_dtype t : types()) {
        SCOPED_TRACE(t == NBI_F16 ? "f16" : "bf16");
        NEEDS_LIBRARY(c, t);
        for (const Case &s : cases)
            for (bool bias : {false, true})
                for (nbi_dst dst : {NBI_DST_ACT, NBI_DST_RESIDUAL, NBI_DST_F32})
                    dense_product(c, s, bias, dst);
    }
}

/* ---- INT8 ---- */

/* The bytes of a row of codes as layout.h says: 4t+i of each 16 holds k = 2t, 2t+8, 2t+1, 2t+9. */
std::vector<int8_t> reordered(const std::vector<int8_t> &codes, size_t rows, size_t k)
{
    const size_t pad = (k + 63) / 64 * 64, from[4] = {0, 8, 1, 9};
    std::vector<int8_t> out(rows * pad);
    for (size_t r = 0; r < rows; r++)
        for (size_t p = 0; p < pad; p++) {
            size_t at = p / 16 * 16 + 2 * (p % 16 / 4) + from[p % 4];
            out[r * pad + p] = at < k ? codes[r * k + at] : 0;
        }
    return out;
}

struct Int8 {
    bool zeros, static_zero, bias;
};

/* Equal bits: the sum is exact, and each step after it has one rounding that IEEE defines. */
void int8_product(const Library &lib, const Case &s, const Int8 &v, nbi_dst dst)
{
    SCOPED_TRACE(name_of(s) + " to " + std::to_string(dst));
    nbi_cuda *c = lib;
    const nbi_dtype t = c->act;
    std::vector<int8_t> q(s.n * s.k), x(s.rows * s.k), z(s.n);
    for (size_t i = 0; i < q.size(); i++)
        q[i] = (int8_t)(nbi_rng(5, i) % 256);
    for (size_t i = 0; i < x.size(); i++)
        x[i] = (int8_t)(nbi_rng(6, i) % 255 - 127);
    for (size_t i = 0; i < z.size(); i++)
        z[i] = (int8_t)(nbi_rng(7, i) % 256);
    std::vector<float> scale = numbers(s.n, 8, 0.01f), sx = numbers(s.rows, 9, 0.1f), b = numbers(s.n, 10);
    const size_t ldy = s.n + 8;
    std::vector<float> old = numbers(s.rows * ldy, 11);
    const int32_t zx = v.static_zero ? -37 : 0;
    nbi_weight w = {};
    w.n = s.n;
    w.k = s.k;
    w.scheme.bits = 8;
    w.scheme.symmetric = !v.zeros;
    w.scheme.strategy = NBI_PER_CHANNEL;
    w.scheme.act = v.static_zero ? NBI_ACT_TENSOR : NBI_ACT_TOKEN;
    w.scheme.act_symmetric = !v.static_zero;
    w.codes = q.data();
    w.scales = scale.data();
    w.zeros = v.zeros ? z.data() : nullptr;
    w.bias = v.bias ? b.data() : nullptr;
    w.act_zero = zx;
    Layer layer(c, w);
    std::vector<int32_t> sums(s.rows);
    for (size_t r = 0; r < s.rows; r++)
        for (size_t k = 0; k < s.k; k++)
            sums[r] += x[r * s.k + k];
    Buffer<int8_t> dx(reordered(x, s.rows, s.k));
    Buffer<float> dsx(sx), dy(old);
    Buffer<int32_t> dsums(sums);
    Buffer<uint16_t> dy_t(to_t(old, t));
    nb_act_out in = {nullptr, dx.ptr(), dsx.ptr()};
    void *y = dst == NBI_DST_ACT ? (void *)dy_t.ptr() : dy.ptr();
    ASSERT_NB_OK(nbi_cuda_sync(device()));
    ASSERT_NB_OK(
        nbi_cublaslt_part(c, &layer.l, &in, v.zeros ? dsums.ptr() : nullptr, s.rows, y, ldy, dst, lib.scratch()))
        << trouble();
    ASSERT_NB_OK(nbi_cuda_sync(c)) << trouble();
    std::vector<float> got = dst == NBI_DST_ACT ? from_t(dy_t.get(), t) : dy.get();
    std::vector<float> want = dst == NBI_DST_ACT ? rounded(old, t) : old;
    for (size_t r = 0; r < s.rows; r++)
        for (size_t n = 0; n < s.n; n++) {
            int64_t sum = 0;
            for (size_t k = 0; k < s.k; k++)
                sum += ((int64_t)x[r * s.k + k] - zx) * (q[n * s.k + k] - (v.zeros ? z[n] : 0));
            float acc = std::fma((float)sum, scale[n], 0.0f) * sx[r];
            if (v.bias)
                acc = acc + b[n];
            float &to = want[r * ldy + n];
            to = dst == NBI_DST_RESIDUAL ? to + acc : dst == NBI_DST_ACT ? rounded({acc}, t)[0] : acc;
        }
    ASSERT_TRUE(same_bits(want.data(), got.data(), want.size()));
}

TEST(Cublaslt, int8_products_have_the_bits_of_the_formula)
{
    for (nbi_dtype t : types()) {
        SCOPED_TRACE(t == NBI_F16 ? "f16" : "bf16");
        NEEDS_LIBRARY(c, t);
        for (const Case &s : cases)
            for (Int8 v : {Int8{false, false, false}, Int8{true, false, true}, Int8{true, true, false}})
                for (nbi_dst dst : {NBI_DST_ACT, NBI_DST_RESIDUAL, NBI_DST_F32})
                    int8_product(c, s, v, dst);
    }
}

/* ---- a table of embeddings that lies row-major ---- */

TEST(Cublaslt, nb_embed_reads_its_layout)
{
    NEEDS_LIBRARY(c, NBI_F16);
    const size_t n = 40, k = 80;
    std::vector<uint16_t> dense = to_t(numbers(n * k, 12), NBI_F16);
    std::vector<int8_t> q(n * k), z(n);
    std::vector<float> scale = numbers(n, 13, 0.01f);
    for (size_t i = 0; i < q.size(); i++)
        q[i] = (int8_t)(nbi_rng(14, i) % 256);
    for (size_t i = 0; i < n; i++)
        z[i] = (int8_t)(nbi_rng(15, i) % 256);
    for (uint8_t bits : {0, 8}) {
        nbi_weight w = {};
        w.n = n;
        w.k = k;
        w.dense_dtype = NBI_F16;
        w.dense = bits ? nullptr : dense.data();
        w.scheme.bits = bits;
        w.scheme.strategy = NBI_PER_CHANNEL;
        w.scheme.act = NBI_ACT_TOKEN;
        w.scheme.act_symmetric = true;
        w.codes = bits ? q.data() : nullptr;
        w.scales = bits ? scale.data() : nullptr;
        w.zeros = bits ? z.data() : nullptr;
        Layer table(c, w);
        Buffer<int32_t> ids(std::vector<int32_t>{39, 0, 7, 7}), pos(std::vector<int32_t>{0, 3, -1, 5});
        Buffer<float> x(std::vector<float>(4 * k, -1.0f));
        nb_embed_args a = {};
        a.table = table.l.p;
        a.step.ids = ids.ptr();
        a.step.pos = pos.ptr();
        a.x = x.ptr();
        a.rows = 4;
        a.k = (uint32_t)k;
        ASSERT_TRUE(launch(NB_K_nb_embed, {4, 1, 1}, 0, a));
        std::vector<float> want(4 * k, -1.0f), got = x.get();
        for (size_t r : {0, 1, 3})
            nbi_weight_row(&w, r == 0 ? 39 : r == 1 ? 0 : 7, &want[r * k]);
        EXPECT_TRUE(same_bits(want.data(), got.data(), want.size())) << (int)bits << " bits";
    }
}

/* ---- what it keeps, and what it refuses ---- */

TEST(Cublaslt, more_shapes_than_it_keeps)
{
    NEEDS_LIBRARY(c, NBI_F16);
    for (int round = 0; round < 2; round++)
        for (size_t rows = 1; rows < 700; rows += 1 + rows / 100 * 40)
            dense_product(c, {rows, 16, 16}, false, rows % 2 ? NBI_DST_F32 : NBI_DST_ACT);
}

TEST(Cublaslt, takes_dense_and_int8_by_int8_with_one_group)
{
    NEEDS_LIBRARY(c, NBI_F16);
    nbi_scheme dense = {}, w8a8 = {};
    w8a8.bits = 8;
    w8a8.symmetric = w8a8.act_symmetric = true;
    w8a8.strategy = NBI_PER_CHANNEL;
    w8a8.act = NBI_ACT_TOKEN;
    nbi_scheme w8a16 = w8a8, grouped = w8a8, w4a8 = w8a8;
    w8a16.act = NBI_ACT_NONE;
    grouped.strategy = NBI_PER_GROUP;
    grouped.group = 128;
    w4a8.bits = 4;
    EXPECT_TRUE(nbi_cublaslt_takes(c, 1000, 512, &dense));
    EXPECT_TRUE(nbi_cublaslt_takes(c, 1000, 512, &w8a8));
    EXPECT_FALSE(nbi_cublaslt_takes(c, 1001, 512, &w8a8));
    EXPECT_FALSE(nbi_cublaslt_takes(c, 1000, 512, &w8a16));
    EXPECT_FALSE(nbi_cublaslt_takes(c, 1000, 512, &grouped));
    EXPECT_TRUE(nbi_cublaslt_takes(c, 1000, 128, &grouped)); /* one group */
    EXPECT_FALSE(nbi_cublaslt_takes(c, 1000, 512, &w4a8));
    nbi_cublaslt_close(c);
    EXPECT_FALSE(nbi_cublaslt_takes(c, 1000, 512, &dense));
    EXPECT_EQ(0u, nbi_cublaslt_scratch(c, 1, 16));
}

TEST(Cublaslt, a_weight_beyond_float16_is_a_sentence)
{
    NEEDS_LIBRARY(c, NBI_F16);
    std::vector<float> f(32 * 48, 1.0f);
    f[17 * 48 + 33] = 65536;
    f[20 * 48] = 1e6f;
    nbi_weight w = {};
    w.n = 32;
    w.k = 48;
    w.dense_dtype = NBI_F32;
    w.dense = f.data();
    nbi_linear *l = nullptr;
    EXPECT_FAILS(NB_EUNSUPPORTED, "the weight of output 17 and input 33",
                 nbi_cuda_linear_create(&((nbi_cuda *)c)->base, &l, &w));
    EXPECT_EQ(nullptr, l);
}

TEST(Cublaslt, a_library_that_is_missing_or_another_one_is_a_sentence)
{
    nbi_cuda *c = device();
    const char *was = getenv("NB_CUBLASLT");
    const std::string keep = was ? was : "";
    setenv("NB_CUBLASLT", "/nowhere/libcublasLt.so.13", 1);
    EXPECT_FAILS(NB_ENODEVICE, "/nowhere/libcublasLt.so.13", nbi_cublaslt_open(c));
    EXPECT_EQ(nullptr, c->lt);
    setenv("NB_CUBLASLT", "libm.so.6", 1);
    EXPECT_FAILS(NB_ENODEVICE, "libm.so.6 has no cublasLtGetVersion", nbi_cublaslt_open(c));
    EXPECT_EQ(nullptr, c->lt);
    if (was)
        setenv("NB_CUBLASLT", keep.c_str(), 1);
    else
        unsetenv("NB_CUBLASLT");
}

/* ---- the command ---- */

/* What `nibble generate` prints on both streams, and its exit status. */
std::string generate(const std::string &flags, int *status)
{
    const std::string command = NIBBLE_BUILD_DIR "/nibble generate '" + repo_file("configs/demo/model") +
                                "' -p 'Return the number of' -n 6 --device cuda:0 " + flags + " 2>&1";
    std::string text;
    char part[512];
    FILE *f = popen(command.c_str(), "r");
    while (f && fgets(part, sizeof part, f))
        text += part;
    *status = f ? WEXITSTATUS(pclose(f)) : -1;
    return text;
}

TEST(Cublaslt, generate_says_what_it_gives_up)
{
    { /* sets NB_CUBLASLT */
        NEEDS_LIBRARY(c, NBI_F16);
    }
    int status;
    const std::string ours = generate("", &status), theirs = generate("--gemm cublaslt", &status);
    EXPECT_EQ(0, status) << theirs;
    EXPECT_NE(std::string::npos, theirs.find("cuBLASLt")) << theirs;
    EXPECT_NE(std::string::npos, theirs.find("may give other bytes")) << theirs;
    EXPECT_EQ(std::string::npos, ours.find("cuBLASLt")) << ours;
    if (emulated() && ours.size() > 8) { /* the text comes last; near ties aside it is the same */
        EXPECT_NE(std::string::npos, theirs.find(ours.substr(ours.size() - 8))) << ours << theirs;
    }
    setenv("NB_CUBLASLT", "/nowhere/libcublasLt.so.13", 1);
    const std::string missing = generate("--gemm cublaslt", &status);
    EXPECT_EQ(1, status);
    EXPECT_NE(std::string::npos, missing.find("/nowhere/libcublasLt.so.13")) << missing;
    unsetenv("NB_CUBLASLT");
}

} // namespace
