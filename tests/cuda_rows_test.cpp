/* Row kernels: floats against double precision with bounds counted from the order of sums, codes bit for bit against
 * the CPU. */
#include "cuda_util.h"
#include "cpu_kernels.h"

namespace
{

const float INF = INFINITY;

/* The one device of the program, with activations of type t from here on: one stream for everything. */
nbi_cuda *device_of(nbi_dtype t)
{
    device()->act = t;
    return device();
}

/* ---- what activations are, from the comments of cuda.h and layout.h ---- */

size_t up_to(size_t n, size_t m)
{
    return (n + m - 1) / m * m;
}

/* A buffer of activations: T [rows][k], codes [rows][k_pad], scales [rows], each aligned to 256 bytes.  Filled with
 * 0xa5, so that what nobody may write shows. */
struct Act {
    size_t rows, k, k_pad, q_at, s_at;
    Buffer<unsigned char> b;
    Act(size_t rows_, size_t k_)
        : rows(rows_), k(k_), k_pad(up_to(k, 64)), q_at(up_to(rows * k * 2, 256)),
          s_at(q_at + up_to(rows * k_pad, 256)), b(s_at + rows * 4)
    {
        b.fill(0xa5);
    }
    struct Host {
        std::vector<uint16_t> t;
        std::vector<int8_t> q;
        std::vector<float> scale;
    };
    Host get() const
    {
        const auto raw = b.get();
        Host h{std::vector<uint16_t>(rows * k), std::vector<int8_t>(rows * k_pad), std::vector<float>(rows)};
        memcpy(h.t.data(), raw.data(), rows * k * 2);
        memcpy(h.q.data(), raw.data() + q_at, rows * k_pad);
        memcpy(h.scale.data(), raw.data() + s_at, rows * 4);
        return h;
    }
    void *ptr() const { return b.ptr(); }
};

template <typename V>
bool untouched(const std::vector<V> &v)
{
    const auto *p = (const unsigned char *)v.data();
    return std::all_of(p, p + v.size() * sizeof(V), [](unsigned char c) { return c == 0xa5; });
}

/* Where element k of a row lies among its codes: position 4t+i of each 16 holds k = 2t, 2t+8, 2t+1, 2t+9 (i = 0..3). */
size_t position(size_t k)
{
    const size_t j = k % 16, t = j % 8 / 2;
    const size_t i = j == 2 * t ? 0 : j == 2 * t + 8 ? 1 : j == 2 * t + 1 ? 2 : 3;
    return k / 16 * 16 + 4 * t + i;
}

/* What the CPU's scalar kernel makes of one row. */
struct Codes {
    std::vector<int16_t> q;
    std::vector<int32_t> sums;
    float scale;
};
Codes cpu_codes(const float *x, size_t k, size_t groups = 1, float act_scale = 0, int32_t act_zero = 0)
{
    Codes c{std::vector<int16_t>(up_to(k, 64)), std::vector<int32_t>(groups), 0};
    nbi_cpu_packed l = {};
    l.k = k;
    l.groups = groups;
    l.group_len = k / groups;
    l.scheme.act = act_scale > 0 ? NBI_ACT_TENSOR : NBI_ACT_TOKEN;
    l.act_scale = act_scale;
    l.act_zero = act_zero;
    nbi_cpu_job j = {};
    j.l = &l;
    j.q = (unsigned char *)c.q.data();
    j.q_stride = c.q.size();
    j.q_sum = c.sums.data();
    nbi_cpu_scalar.quantize_row(x, k, c.q.size(), act_scale > 0 ? &l : nullptr, c.q.data(), &c.scale);
    nbi_cpu_scalar.sum_row(&j, 0);
    return c;
}

void expect_codes(const Act::Host &got, size_t row, size_t k, const Codes &want)
{
    const int8_t *q = got.q.data() + row * want.q.size();
    EXPECT_TRUE(same_bits(&got.scale[row], &want.scale, 1)) << "the scale of row " << row;
    for (size_t i = 0; i < k; i++)
        ASSERT_EQ((int)want.q[i], (int)q[position(i)]) << "element " << i << " of row " << row;
    for (size_t i = k; i < want.q.size(); i++)
        ASSERT_EQ(0, (int)q[i]) << "padding of row " << row;
}

/* Rows of every kind that needs care, then noise: zeros, a NaN, an infinity, huge, so small that its scale would be
 * subnormal, subnormal numbers, one alone. */
void spoil(std::vector<float> &x, size_t rows, size_t k)
{
    const auto scale = [&](size_t r, float f) {
        for (size_t i = 0; r < rows && i < k; i++)
            x[r * k + i] *= f;
    };
    scale(1, 0);
    if (rows > 2)
        x[2 * k + k / 2] = NAN;
    if (rows > 3)
        x[3 * k + k - 1] = -INF;
    scale(4, 3e4f);
    scale(5, 1e-37f);
    scale(6, 1e-41f);
    scale(7, 0);
    if (rows > 7)
        x[7 * k + 1] = 0.3f;
    scale(8, 1e-6f);
}

struct Shape {
    size_t rows, k;
};
std::vector<Shape> shapes()
{
    std::vector<Shape> s;
    for (size_t rows = 1; rows <= 17; rows++)
        s.push_back({rows, 16 * (1 + rows * 7 % 13)});
    for (size_t rows : {31, 64, 129})
        s.push_back({rows, 80});
    /* around the block's steps, and the limits of what registers and shared memory hold */
    for (size_t k : {1008, 1024, 1040, 4096, 8192, 8208, 11008, 24576, 24592})
        s.push_back({2, k});
    s.push_back({1, 65536});
    return s;
}

struct Case {
    Shape s;
    nbi_dtype t;
};
std::vector<Case> cases()
{
    std::vector<Case> c;
    for (const Shape &s : shapes())
        for (nbi_dtype t : types())
            c.push_back({s, t});
    return c;
}
std::string case_name(const ::testing::TestParamInfo<Case> &i)
{
    return std::to_string(i.param.s.rows) + "x" + std::to_string(i.param.s.k) +
           (i.param.t == NBI_F16 ? "_f16" : "_bf16");
}

/* Half a step of T at v, where it is rounded. */
double half_step(double v, nbi_dtype t)
{
    int e;
    std::frexp(v, &e); /* |v| in [2^(e-1), 2^e) */
    const int digits = t == NBI_F16 ? 11 : 8, lowest = t == NBI_F16 ? -24 : -133;
    return std::ldexp(0.5, std::max(e - digits, lowest));
}

class CudaRows : public ::testing::TestWithParam<Case>
{
  protected:
    size_t rows = GetParam().s.rows, k = GetParam().s.k;
    nbi_dtype t = GetParam().t;
    nbi_backend *be = &device_of(t)->base;
};
INSTANTIATE_TEST_SUITE_P(, CudaRows, ::testing::ValuesIn(cases()), case_name);

/* ---- RMS norm ---- */

TEST_P(CudaRows, rmsnorm_is_within_the_bound_of_its_order)
{
    const float eps = 1e-5f;
    std::vector<float> x = noise(rows * k, 1), w = noise(k, 2);
    for (size_t r = 1; r < rows; r += 3) /* eps counts in some */
        for (size_t i = 0; i < k; i++)
            x[r * k + i] *= r % 2 ? 3e-3f : 300.0f;
    Buffer<float> dx(x), dw(w);
    Act y(rows, k);
    ASSERT_NB_OK(nbi_cuda_rmsnorm(be, dx.ptr(), dw.ptr(), eps, rows, k, y.ptr(), NBI_FORM_FLOAT));
    const auto got = y.get();
    const auto v = from_t(got.t, t);
    EXPECT_TRUE(untouched(got.q) && untouched(got.scale));
    for (size_t r = 0; r < rows; r++) {
        double sum = 0;
        for (size_t i = 0; i < k; i++)
            sum += (double)x[r * k + i] * (double)x[r * k + i];
        const double root = std::sqrt(sum / (double)k + (double)eps);
        /* A square is rounded in the fmas of its lane and in 2 + 5 + 3 joins; the mean and eps add two; the root halves
         * all that.  Then the root, the division and two products.  One more for the second order. */
        const double relative = ((std::ceil((double)k / 1024) + 10 + 2) / 2 + 4 + 1) * U;
        for (size_t i = 0; i < k; i++) {
            const double want = (double)x[r * k + i] / root * (double)w[i], off = std::fabs(want) * relative;
            ASSERT_NEAR(v[r * k + i], want, off + half_step(std::fabs(want) + off, t))
                << "row " << r << ", element " << i;
        }
    }
}

TEST_P(CudaRows, rmsnorm_gives_the_codes_that_the_cpu_makes_of_its_floats)
{
    std::vector<float> x = noise(rows * k, 3), w = noise(k, 4, 0.5f);
    spoil(x, rows, k);
    Buffer<float> dx(x), dw(w);
    Act both(rows, k), codes(rows, k);
    ASSERT_NB_OK(nbi_cuda_rmsnorm(be, dx.ptr(), dw.ptr(), 0, rows, k, both.ptr(), NBI_FORM_FLOAT | NBI_FORM_INT8));
    ASSERT_NB_OK(nbi_cuda_rmsnorm(be, dx.ptr(), dw.ptr(), 0, rows, k, codes.ptr(), NBI_FORM_INT8));
    const auto a = both.get(), b = codes.get();
    const auto v = from_t(a.t, t);
    for (size_t r = 0; r < rows; r++)
        expect_codes(a, r, k, cpu_codes(&v[r * k], k));
    EXPECT_TRUE(untouched(b.t));
    EXPECT_EQ(a.q, b.q);
    EXPECT_TRUE(same_bits(a.scale.data(), b.scale.data(), rows));
}

TEST_P(CudaRows, a_row_is_normed_the_same_in_any_company)
{
    const size_t r = rows - 1;
    std::vector<float> x = noise(rows * k, 5), w = noise(k, 6);
    Buffer<float> dx(x), dw(w), alone(std::vector<float>(x.begin() + (long)(r * k), x.end()));
    Act all(rows, k), one(1, k);
    ASSERT_NB_OK(nbi_cuda_rmsnorm(be, dx.ptr(), dw.ptr(), 1e-6f, rows, k, all.ptr(), NBI_FORM_FLOAT));
    ASSERT_NB_OK(nbi_cuda_rmsnorm(be, alone.ptr(), dw.ptr(), 1e-6f, 1, k, one.ptr(), NBI_FORM_FLOAT));
    const auto a = all.get().t, b = one.get().t;
    EXPECT_TRUE(std::equal(b.begin(), b.end(), a.begin() + (long)(r * k)));
}

/* ---- SwiGLU ---- */

TEST_P(CudaRows, swiglu_has_the_bits_of_the_cpu)
{
    const size_t n = rows * k;
    const auto near_the_limits = [](size_t i) { /* of exp, and of what half can hold */
                                                const float v[] = {0,       -0.0f, 88.73f, -88.72f, -88.73f, -104,
                                                                   -103.9f, 1e-7f, -1e-7f, 6e4f,    -6e4f,   17.3f};
                                                return v[i % 12];
    };
    std::vector<float> g = noise(n, 7, 4), u = noise(n, 8);
    for (size_t i = 0; i < n; i += 5)
        g[i] = near_the_limits(i / 5);
    std::vector<float> packed(2 * n);
    for (size_t r = 0; r < rows; r++) {
        std::copy_n(&g[r * k], k, &packed[2 * r * k]);
        std::copy_n(&u[r * k], k, &packed[(2 * r + 1) * k]);
    }
    g = rounded(g, t);
    u = rounded(u, t);
    Buffer<uint16_t> in(to_t(packed, t));
    Act y(rows, k), both(rows, k);
    ASSERT_NB_OK(nbi_cuda_swiglu(be, in.ptr(), rows, k, y.ptr(), NBI_FORM_FLOAT));
    ASSERT_NB_OK(nbi_cuda_swiglu(be, in.ptr(), rows, k, both.ptr(), NBI_FORM_FLOAT | NBI_FORM_INT8));
    std::vector<float> want(n);
    nbi_cpu_scalar.swiglu(g.data(), u.data(), n, want.data());
    want = rounded(want, t);
    const auto a = y.get(), b = both.get();
    EXPECT_TRUE(same_bits(from_t(a.t, t).data(), want.data(), n));
    EXPECT_TRUE(same_bits(from_t(b.t, t).data(), want.data(), n));
    EXPECT_TRUE(untouched(a.q) && untouched(a.scale));
    for (size_t r = 0; r < rows; r++)
        expect_codes(b, r, k, cpu_codes(&want[r * k], k));
}

TEST_P(CudaRows, swiglu_gives_the_codes_that_the_cpu_makes_of_its_floats)
{
    std::vector<float> x = noise(rows * 2 * k, 9, 2);
    spoil(x, rows, 2 * k);
    Buffer<uint16_t> in(to_t(x, t));
    Act both(rows, k), codes(rows, k);
    ASSERT_NB_OK(nbi_cuda_swiglu(be, in.ptr(), rows, k, both.ptr(), NBI_FORM_FLOAT | NBI_FORM_INT8));
    ASSERT_NB_OK(nbi_cuda_swiglu(be, in.ptr(), rows, k, codes.ptr(), NBI_FORM_INT8));
    const auto a = both.get(), b = codes.get();
    const auto v = from_t(a.t, t);
    for (size_t r = 0; r < rows; r++)
        expect_codes(a, r, k, cpu_codes(&v[r * k], k));
    EXPECT_TRUE(untouched(b.t));
    EXPECT_EQ(a.q, b.q);
    EXPECT_TRUE(same_bits(a.scale.data(), b.scale.data(), rows));
}

/* ---- rows to codes ---- */

TEST_P(CudaRows, quantizing_gives_the_codes_of_the_cpu)
{
    struct Scheme {
        float scale;
        int32_t zero;
    };
    std::vector<float> x = noise(rows * k, 10);
    spoil(x, rows, k);
    x = rounded(x, t);
    Buffer<uint16_t> in(to_t(x, t));
    for (const Scheme &s :
         {Scheme{0, 0}, Scheme{0.02f, 0}, Scheme{0.013f, -128}, Scheme{0.5f, 127}, Scheme{1e-30f, 3}}) {
        Act y(rows, k);
        const nb_act_out out = {nullptr, (int8_t *)y.b.ptr() + y.q_at, (float *)(y.b.ptr() + y.s_at)};
        ASSERT_NB_OK(nbi_cuda_quantize_rows(device_of(t), in.ptr(), rows, k, s.scale, s.zero, &out));
        const auto got = y.get();
        EXPECT_TRUE(untouched(got.t));
        for (size_t r = 0; r < rows; r++)
            expect_codes(got, r, k, cpu_codes(&x[r * k], k, 1, s.scale, s.zero));
    }
}

TEST_P(CudaRows, rows_that_were_quantized_after_norming_are_the_same)
{
    std::vector<float> x = noise(rows * k, 11), w = noise(k, 12);
    Buffer<float> dx(x), dw(w);
    Act fused(rows, k), later(rows, k);
    ASSERT_NB_OK(nbi_cuda_rmsnorm(be, dx.ptr(), dw.ptr(), 1e-6f, rows, k, fused.ptr(), NBI_FORM_FLOAT | NBI_FORM_INT8));
    const nb_act_out out = nbi_cuda_act(later.ptr(), rows, k);
    ASSERT_NB_OK(nbi_cuda_quantize_rows(device_of(t), fused.ptr(), rows, k, 0, 0, &out));
    EXPECT_EQ(fused.get().q, later.get().q);
    EXPECT_TRUE(same_bits(fused.get().scale.data(), later.get().scale.data(), rows));
}

TEST(CudaGroupSums, are_exact)
{
    struct Sums {
        size_t rows, k, groups;
    };
    for (const Sums &s :
         {Sums{1, 16, 1}, Sums{3, 96, 6}, Sums{5, 96, 3}, Sums{17, 192, 3}, Sums{2, 1024, 8}, Sums{7, 1008, 1},
          Sums{3, 144, 3}, Sums{2, 65536, 1}, Sums{9, 4096, 128}, Sums{1, 600 * 16, 5}}) {
        const size_t k_pad = up_to(s.k, 64), len = s.k / s.groups;
        std::vector<int8_t> q(s.rows * k_pad, 0x55);
        std::vector<int32_t> want(s.rows * s.groups, 0);
        for (size_t r = 0; r < s.rows; r++)
            for (size_t i = 0; i < s.k; i++) {
                const int8_t code = s.k == 65536 ? (int8_t)-128 : (int8_t)(nbi_rng(13, r * s.k + i) >> 56);
                q[r * k_pad + position(i)] = code;
                want[r * s.groups + i / len] += code;
            }
        Buffer<int8_t> dq(q);
        Buffer<int32_t> sums(want.size());
        ASSERT_NB_OK(nbi_cuda_group_sums(device(), dq.ptr(), s.rows, s.k, s.groups, sums.ptr()));
        EXPECT_EQ(want, sums.get()) << s.rows << " x " << s.k << " in " << s.groups;
    }
}

/* ---- rows that move ---- */

TEST(CudaGather, takes_the_rows_that_are_named)
{
    for (size_t k : {16, 80, 4096}) {
        const std::vector<float> x = noise(7 * k, 14);
        const std::vector<uint32_t> rows = {0, 3, 6, 6, 2};
        Buffer<float> dx(x), y(rows.size() * k);
        Buffer<uint32_t> names(rows);
        nbi_step step = {};
        step.args.logit_rows = names.ptr();
        step.logits = rows.size();
        ASSERT_NB_OK(nbi_cuda_gather(&device()->base, &step, dx.ptr(), k, y.ptr()));
        const auto got = y.get();
        for (size_t i = 0; i < rows.size(); i++)
            EXPECT_TRUE(same_bits(&got[i * k], &x[rows[i] * k], k));
    }
}

TEST(CudaConvert, activations_come_back_rounded_to_nearest_even)
{
    for (nbi_dtype t : types())
        for (size_t n : {1, 2, 3, 4, 5, 1023, 4096, 300001}) {
            std::vector<float> x = noise(n, 15, 100);
            for (size_t i = 0; i < n; i += 7) {
                const float odd[] = {65519.9f,      65520,   -1e6f, 1e-8f, 5.9e-8f,
                                     2.9802322e-8f, 3.4e38f, -INF,  NAN,   1.00048828125f};
                x[i] = odd[i / 7 % 10];
            }
            Buffer<uint16_t> d(n);
            ASSERT_NB_OK(nbi_cuda_upload_act(&device_of(t)->base, d.ptr(), x.data(), n));
            std::vector<float> got(n);
            ASSERT_NB_OK(nbi_cuda_download_act(&device_of(t)->base, got.data(), d.ptr(), n));
            EXPECT_TRUE(same_bits(got.data(), rounded(x, t).data(), n));
        }
}

TEST(CudaRowsCheck, refused_shapes_are_a_sentence)
{
    nbi_backend *be = &device()->base;
    Buffer<unsigned char> b(4096);
    float *p = (float *)b.ptr();
    const nb_act_out out = {};
    EXPECT_FAILS(NB_EUNSUPPORTED, "cuda: rmsnorm of 1 rows of 40 elements, expected rows of a multiple of 16 elements",
                 nbi_cuda_rmsnorm(be, p, p, 1, 1, 40, p, NBI_FORM_FLOAT));
    EXPECT_FAILS(NB_EUNSUPPORTED, "cuda: swiglu of 1 rows of 0 elements",
                 nbi_cuda_swiglu(be, p, 1, 0, p, NBI_FORM_FLOAT));
    EXPECT_FAILS(NB_EUNSUPPORTED, "cuda: quantize_rows of 2147483648 rows",
                 nbi_cuda_quantize_rows(device(), p, (size_t)1 << 31, 16, 0, 0, &out));
    EXPECT_FAILS(NB_EUNSUPPORTED, "cuda: 1 rows of 64 elements in 8 groups, expected groups of a multiple of 16",
                 nbi_cuda_group_sums(device(), (int8_t *)p, 1, 64, 8, (int32_t *)p));
    EXPECT_NB_OK(nbi_cuda_rmsnorm(be, p, p, 1, 0, 16, p, NBI_FORM_FLOAT)); /* nothing to do */
}

} // namespace
