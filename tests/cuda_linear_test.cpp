/* Linear layers of the CUDA backend as the model uses them: pack.c against the packer of the tests, byte for byte;
 * linear() against the CPU (integers: bit for bit) and double precision; what is refused. */
#include "cuda_linear_util.h"

namespace
{

/* ---- canonical weights ---- */

/* The layer as nbi_weight; views of it. */
struct Weight : nbi_weight {
    std::vector<uint16_t> bits;
    explicit Weight(Layer &l, bool per_tensor = false) : nbi_weight()
    {
        n = l.n;
        k = l.k;
        scheme.bits = (uint8_t)l.kind.bits;
        scheme.symmetric = !l.kind.asymmetric;
        scheme.strategy = per_tensor ? NBI_PER_TENSOR : l.groups > 1 ? NBI_PER_GROUP : NBI_PER_CHANNEL;
        scheme.group = scheme.strategy == NBI_PER_GROUP ? (uint32_t)l.group : 0;
        scheme.act = !l.kind.integer ? NBI_ACT_NONE : l.kind.zx ? NBI_ACT_TENSOR : NBI_ACT_TOKEN;
        scheme.act_symmetric = l.kind.zx == 0;
        act_scale = 0.02f;
        act_zero = l.kind.zx;
        if (l.kind.bits) {
            codes = l.codes.data();
            scales = l.scales.data();
            zeros = l.zeros.empty() ? nullptr : l.zeros.data();
        } else {
            dense_dtype = l.t;
            bits = to_t(l.dense, l.t);
            dense = bits.data();
        }
        bias = l.bias.empty() ? nullptr : l.bias.data();
    }
};

struct Linear {
    nbi_backend *b;
    nbi_linear *l = nullptr;
    explicit Linear(const nbi_weight &w, nbi_dtype t = NBI_F16) : b(&device(t)->base)
    {
        EXPECT_NB_OK(nbi_cuda_linear_create(b, &l, &w));
    }
    ~Linear() { nbi_cuda_linear_free(b, l); }
    Linear(const Linear &) = delete;
    template <typename T>
    std::vector<T> part(const void *p, size_t n) const
    {
        std::vector<T> v(p ? n : 0);
        if (p) {
            EXPECT_NB_OK(nbi_cuda_download(b, v.data(), p, n * sizeof(T)));
        }
        return v;
    }
};

/* ---- packing ---- */

class Pack : public ::testing::TestWithParam<std::tuple<Kind, nbi_dtype>>
{
};

TEST_P(Pack, bytes_are_those_that_layout_h_draws)
{
    const auto [kind, t] = GetParam();
    for (size_t n : {16, 33, 1000})
        for (auto [k, group] :
             std::vector<std::pair<size_t, size_t>>{{64, 64}, {80, 80}, {192, 32}, {192, 96}, {16, 16}}) {
            SCOPED_TRACE(::testing::Message() << n << " x " << k << ", groups of " << group);
            Layer layer = make_layer(kind, t, n, k, group, n == 33, n + k);
            const Weight w(layer);
            const Linear l(w, t);
            ASSERT_TRUE(l.l);
            const Packed want = pack(layer);
            const nb_packed &p = l.l->p;
            EXPECT_EQ(want.w, l.part<uint8_t>(p.w, want.w.size()));
            EXPECT_EQ(want.scales, l.part<float>(p.scales, want.scales.size()));
            EXPECT_EQ(want.zeros, l.part<uint8_t>(p.zeros, want.zeros.size()));
            EXPECT_EQ(want.corr, l.part<int32_t>(p.corr, want.corr.size()));
            EXPECT_EQ(want.bias, l.part<float>(p.bias, want.bias.size()));
            EXPECT_EQ(want.scales.empty(), p.scales == nullptr);
            EXPECT_EQ(want.zeros.empty(), p.zeros == nullptr);
            EXPECT_EQ(want.corr.empty(), p.corr == nullptr);
            EXPECT_EQ(want.bias.empty(), p.bias == nullptr);
            EXPECT_EQ(n, p.n);
            EXPECT_EQ(k, p.k);
            EXPECT_EQ(layer.k_tiles(), p.k_tiles);
            EXPECT_EQ(layer.groups, p.groups);
            EXPECT_EQ(layer.group, p.group_len);
            EXPECT_EQ((uint32_t)kind.packed, p.kind);
            EXPECT_EQ(nbi_cuda_linear_bytes(l.l),
                      nbi_cuda_linear_plan(l.b, n, k, &w.scheme, w.dense_dtype, w.bias != nullptr));
        }
}

INSTANTIATE_TEST_SUITE_P(Kinds, Pack, ::testing::Combine(::testing::ValuesIn(kinds), ::testing::ValuesIn(types())),
                         linear_name);

TEST(PackDense, every_type_becomes_that_of_the_activations)
{
    for (nbi_dtype t : types())
        for (nbi_dtype from : {NBI_F32, NBI_F16, NBI_BF16}) {
            Layer l = make_layer(kinds[0], t, 16, 64, 64, false, 3);
            const std::vector<float> x = rounded(noise(16 * 64, 4), from == NBI_F32 ? NBI_F16 : from);
            std::vector<uint8_t> raw(x.size() * nbi_dtype_size(from));
            nbi_from_f32(raw.data(), from, x.data(), x.size());
            Weight w(l);
            w.dense_dtype = from;
            w.dense = raw.data();
            l.dense = rounded(x, t);
            const Packed want = pack(l);
            const Linear got(w, t);
            EXPECT_EQ(want.w, got.part<uint8_t>(got.l->p.w, want.w.size())) << nbi_dtype_name(from);
        }
}

TEST(PackDense, more_than_a_staging_buffer)
{
    Layer l = make_layer(kinds[0], NBI_F16, 16, 16, 16, true, 3);
    l.n = 16 * 40000; /* 40,000 tiles of 2 KiB */
    l.k = l.group = 16;
    l.dense.resize(l.n * 16);
    for (size_t i = 0; i < l.dense.size(); i++)
        l.dense[i] = (float)(i % 2048);
    l.bias = std::vector<float>(l.n, 0.5f);
    const Weight w(l);
    const Linear got(w);
    const Packed want = pack(l);
    EXPECT_TRUE(want.w == got.part<uint8_t>(got.l->p.w, want.w.size()));
    EXPECT_TRUE(want.bias == got.part<float>(got.l->p.bias, want.bias.size()));
}

/* ---- refused ---- */

void refused(
    Layer l, nb_status st, const char *what, void (*change)(nbi_weight &) = [](nbi_weight &) {})
{
    Weight w(l);
    nbi_linear *out;
    change(w);
    EXPECT_FAILS(st, what, nbi_cuda_linear_create(&device()->base, &out, &w));
    EXPECT_EQ(nullptr, out);
}

TEST(PackRefuses, shapes_without_a_kernel)
{
    const Kind &dense = kinds[0], &w8 = kinds[1], &w4 = kinds[3], &w8a8 = kinds[5];
    refused(make_layer(dense, NBI_F16, 16, 24, 24, false, 1), NB_EUNSUPPORTED, "24 inputs are not a multiple of 16");
    refused(make_layer(w8, NBI_F16, 16, 8, 8, false, 1), NB_EUNSUPPORTED, "8 inputs are not a multiple of 16");
    refused(make_layer(w4, NBI_F16, 16, 48, 24, false, 1), NB_EUNSUPPORTED,
            "groups of 24 have no CUDA kernel: with float activations the group must be a multiple of 16");
    refused(make_layer(w8a8, NBI_F16, 16, 96, 48, false, 1), NB_EUNSUPPORTED,
            "groups of 48 have no CUDA kernel: with INT8 activations the group must be a multiple of 32");
    refused(make_layer(dense, NBI_F16, 16, 16, 16, false, 1), NB_EINVAL, "has no elements",
            [](nbi_weight &w) { w.n = 0; });
    refused(make_layer(w8, NBI_F16, 16, 16, 16, false, 1), NB_EUNSUPPORTED, "weights of 5 bits",
            [](nbi_weight &w) { w.scheme.bits = 5; });
    refused(make_layer(w8, NBI_F16, 16, 16, 16, false, 1), NB_EINVAL, "its zero points do not go with its scheme",
            [](nbi_weight &w) { w.scheme.symmetric = false; });
    refused(make_layer(w8, NBI_F16, 16, 64, 64, false, 1), NB_EUNSUPPORTED, "64 inputs do not divide into groups of 48",
            [](nbi_weight &w) { w.scheme.strategy = NBI_PER_GROUP, w.scheme.group = 48; });
    refused(make_layer(w8a8, NBI_F16, 16, 64, 64, false, 1), NB_EUNSUPPORTED, "asymmetric INT8 activations measured",
            [](nbi_weight &w) { w.scheme.act_symmetric = false; });
    refused(make_layer(kinds[7], NBI_F16, 16, 64, 64, false, 1), NB_EINVAL, "the activation scale is nan",
            [](nbi_weight &w) { w.act_scale = NAN; });
    refused(make_layer(dense, NBI_F16, 16, 16, 16, false, 1), NB_EUNSUPPORTED, "a dense weight of type I32",
            [](nbi_weight &w) { w.dense_dtype = NBI_I32; });
}

/* As many products as an int32 holds, and one group of sixteen more. */
TEST(PackRefuses, groups_whose_sums_may_overflow)
{
    const size_t longest = 33025; /* docs/numerics.md */
    for (size_t k : {longest / 16 * 16, longest / 16 * 16 + 16}) {
        Layer l = make_layer(kinds[8], NBI_F16, 1, k, k, false, 1);
        Weight w(l);
        w.act_zero = 127;
        nbi_linear *out;
        if (k <= longest) {
            EXPECT_NB_OK(nbi_cuda_linear_create(&device()->base, &out, &w));
            nbi_cuda_linear_free(&device()->base, out);
        } else
            EXPECT_FAILS(NB_ELIMIT, "more than 33025 may overflow", nbi_cuda_linear_create(&device()->base, &out, &w));
    }
}

TEST(PackRefuses, dense_weights_that_half_does_not_hold)
{
    Layer l = make_layer(kinds[0], NBI_F16, 20, 64, 64, false, 1);
    std::vector<float> f(20 * 64, 1.0f);
    Weight w(l);
    nbi_linear *out;
    w.dense = f.data();
    w.dense_dtype = NBI_F32;
    f[17 * 64 + 33] = -65504;  /* the largest */
    f[18 * 64 + 1] = INFINITY; /* is what it is */
    {
        Linear fine(w);
    }
    f[17 * 64 + 33] = 65536;
    EXPECT_FAILS(NB_EUNSUPPORTED,
                 "the weight of output 17 and input 33 is 65536, which float16 does not hold (up to 65504): use "
                 "--act-dtype bf16",
                 nbi_cuda_linear_create(&device()->base, &out, &w));
    if (sm() >= 80) {
        Linear fine(w, NBI_BF16);
    }
}

/* ---- linear() ---- */

/* Activations on the device as an operation gets them: T, and the codes behind them. */
struct Activations {
    Buffer<uint8_t> x;
    Activations(const Acts &a, unsigned forms) : x(bytes(a))
    {
        std::vector<uint8_t> v(x.size());
        const nb_act_out at = nbi_cuda_act(nullptr, a.rows, a.k);
        const std::vector<uint16_t> h = a.bits();
        const std::vector<int8_t> q = a.codes();
        if (forms & NBI_FORM_FLOAT)
            memcpy(v.data(), h.data(), h.size() * 2);
        if (forms & NBI_FORM_INT8) {
            memcpy(v.data() + (size_t)at.q, q.data(), q.size());
            memcpy(v.data() + (size_t)at.scale, a.scale.data(), a.scale.size() * 4);
        }
        x.set(v);
    }
    static size_t bytes(const Acts &a) { return (size_t)nbi_cuda_act(nullptr, a.rows, a.k).scale + a.rows * 4; }
};

/* docs/numerics.md: the codes of a row, per token or with a static scale. */
void quantize(Acts &a, float act_scale, int zx)
{
    for (size_t r = 0; r < a.rows; r++) {
        float s = act_scale;
        const float *x = &a.x[r * a.k];
        if (s == 0) {
            for (size_t j = 0; j < a.k; j++)
                s = std::max(s, std::fabs(x[j]));
            s = s / 127;
        }
        for (size_t j = 0; j < a.k; j++)
            a.q[r * a.k + j] = (int)std::min(
                127.0f, std::max(act_scale == 0 ? -127.0f : -128.0f, std::nearbyintf(x[j] / s) + (float)zx));
        a.scale[r] = s;
    }
}

std::vector<float> linear(const std::vector<const nbi_linear *> &l, const Acts &a, unsigned forms, size_t ldy,
                          nbi_dst dst, const std::vector<float> &before)
{
    nbi_cuda *c = device(a.t);
    const nbi_dtype yt = dst == NBI_DST_ACT ? a.t : NBI_F32;
    Activations x(a, forms);
    Buffer<uint8_t> scratch(nbi_cuda_scratch_bytes(&c->base, a.rows, a.k)), y(a.rows * ldy * nbi_dtype_size(yt));
    std::vector<uint8_t> raw(y.size());
    std::vector<float> f(a.rows * ldy);
    nbi_from_f32(raw.data(), yt, before.data(), f.size());
    y.set(raw);
    EXPECT_NB_OK(nbi_cuda_sync(device())); /* buffers are filled on the stream of the first device */
    EXPECT_NB_OK(
        nbi_cuda_linear(&c->base, l.data(), l.size(), x.x.ptr(), forms, a.rows, y.ptr(), ldy, dst, scratch.ptr()))
        << trouble();
    EXPECT_EQ(NB_OK, nbi_cuda_sync(c)) << trouble();
    raw = y.get();
    nbi_to_f32(f.data(), raw.data(), yt, f.size());
    return f;
}

class LinearTest : public ::testing::TestWithParam<std::tuple<Kind, nbi_dtype>>
{
  protected:
    Kind kind() const { return std::get<0>(GetParam()); }
    nbi_dtype t() const { return std::get<1>(GetParam()); }
    unsigned form() const { return kind().integer && !kind().zx ? NBI_FORM_INT8 : NBI_FORM_FLOAT; }
};
INSTANTIATE_TEST_SUITE_P(Kinds, LinearTest,
                         ::testing::Combine(::testing::ValuesIn(kinds), ::testing::ValuesIn(types())), linear_name);

/* Integers: the codes are those of docs/numerics.md, and so is every bit of the result. */
TEST_P(LinearTest, results_are_right_whichever_form_the_input_has)
{
    const size_t n = 100, k = 192;
    Layer layer = make_layer(kind(), t(), n, k, 64, true, 11);
    const Weight w(layer);
    const Linear l(w, t());
    ASSERT_TRUE(l.l);
    EXPECT_EQ(form(), nbi_cuda_linear_form(l.l));
    for (size_t rows : {1, 5, 9, 40}) {
        Acts a = make_acts(rows, k, t(), 12 + rows);
        quantize(a, kind().zx ? w.act_scale : 0, kind().zx);
        const std::vector<float> before(rows * n);
        const std::vector<float> y = linear({l.l}, a, form(), n, NBI_DST_F32, before);
        for (size_t r = 0; r < rows; r++)
            for (size_t i = 0; i < n; i++) {
                if (kind().integer) {
                    ASSERT_EQ(exact_result(layer, a, r, i), y[r * n + i])
                        << "row " << r << " of " << rows << ", column " << i;
                } else {
                    const Near v = near_result(layer, a, r, i);
                    ASSERT_NEAR(v.value, y[r * n + i], v.bound) << "row " << r << " of " << rows << ", column " << i;
                }
            }
        EXPECT_TRUE(same_bits(linear({l.l}, a, NBI_FORM_FLOAT, n, NBI_DST_F32, before).data(), y.data(), y.size()));
    }
}

TEST_P(LinearTest, a_row_has_the_same_bits_in_every_batch)
{
    const size_t n = 48, k = 1088; /* groups longer than a segment */
    Layer layer = make_layer(kind(), t(), n, k, 544, true, 31);
    const Weight w(layer);
    const Linear l(w, t());
    Acts a = make_acts(129, k, t(), 32);
    quantize(a, kind().zx ? w.act_scale : 0, kind().zx);
    const std::vector<float> y = linear({l.l}, a, form(), n, NBI_DST_F32, std::vector<float>(129 * n));
    for (size_t rows : {1, 2, 3, 7, 8, 9, 16, 17, 31, 64}) {
        Acts some = {rows,
                     k,
                     a.t,
                     {a.x.begin(), a.x.begin() + (long)(rows * k)},
                     {a.q.begin(), a.q.begin() + (long)(rows * k)},
                     {a.scale.begin(), a.scale.begin() + (long)rows}};
        EXPECT_TRUE(same_bits(linear({l.l}, some, form(), n, NBI_DST_F32, std::vector<float>(rows * n)).data(),
                              y.data(), rows * n))
            << rows << " rows";
    }
}

/* q, k and v: in one launch where they agree, else in several; the columns stand side by side. */
TEST_P(LinearTest, several_layers_write_side_by_side)
{
    const size_t k = 128, n[4] = {48, 16, 33, 16}, rows = 10;
    std::vector<Layer> layers;
    for (size_t i = 0; i < 4; i++) /* the last one has another group, where there are groups */
        layers.push_back(make_layer(kind(), t(), n[i], k, i == 3 ? 32 : 64, i == 1, 40 + i));
    Weight w0(layers[0]), w1(layers[1]), w2(layers[2]), w3(layers[3]);
    w2.act_scale = 0.03f; /* other codes, where they are static */
    const Linear a(w0, t()), b(w1, t()), c(w2, t()), d(w3, t());
    Acts x = make_acts(rows, k, t(), 50);
    quantize(x, 0, 0);
    for (nbi_dst dst : {NBI_DST_ACT, NBI_DST_RESIDUAL}) {
        const size_t ldy = 120;
        const std::vector<float> before = rounded(noise(rows * ldy, 51), t());
        const std::vector<float> y = linear({a.l, b.l, c.l, d.l}, x, form(), ldy, dst, before);
        size_t column = 0;
        for (const Linear *l : {&a, &b, &c, &d}) {
            const size_t width = l->l->p.n;
            std::vector<float> part(rows * width);
            for (size_t r = 0; r < rows; r++)
                std::copy_n(&before[r * ldy + column], width, &part[r * width]);
            const std::vector<float> alone = linear({l->l}, x, form(), width, dst, part);
            for (size_t r = 0; r < rows; r++)
                ASSERT_TRUE(same_bits(&y[r * ldy + column], &alone[r * width], width))
                    << "column " << column << ", row " << r;
            column += width;
        }
    }
}

/* The same numbers as the CPU, from the same activations. */
TEST(LinearCpu, integer_layers_have_the_bits_of_the_cpu)
{
    const size_t n = 40, k = 256, rows = 12;
    nbi_backend *cpu;
    ASSERT_NB_OK(nbi_backend_create(&cpu, "cpu", 1));
    for (const Kind &kind : kinds)
        for (nbi_dtype t : types()) {
            if (!kind.integer) /* floats are summed in another order */
                continue;
            Layer layer = make_layer(kind, t, n, k, 128, true, 71);
            const Weight w(layer);
            const Linear l(w, t);
            const Acts a = make_acts(rows, k, t, 72);
            nbi_linear *on_cpu;
            ASSERT_NB_OK(cpu->ops->linear_create(cpu, &on_cpu, &w));
            std::vector<float> scratch(cpu->ops->scratch_bytes(cpu, rows, k) / 4 + 1), want = noise(rows * n, 73),
                                                                                       y = want;
            ASSERT_NB_OK(cpu->ops->linear(cpu, (const nbi_linear *const *)&on_cpu, 1, a.x.data(), NBI_FORM_FLOAT, rows,
                                          want.data(), n, NBI_DST_RESIDUAL, scratch.data()));
            y = linear({l.l}, a, NBI_FORM_FLOAT, n, NBI_DST_RESIDUAL, y);
            EXPECT_TRUE(same_bits(y.data(), want.data(), want.size())) << kind.name;
            cpu->ops->linear_free(cpu, on_cpu);
        }
    cpu->ops->destroy(cpu);
}

TEST(LinearSpecial, no_rows_and_no_layers_are_nothing)
{
    Layer layer = make_layer(kinds[0], NBI_F16, 16, 16, 16, false, 1);
    const Linear l{Weight(layer)};
    nbi_backend *b = &device()->base;
    EXPECT_NB_OK(nbi_cuda_linear(b, (const nbi_linear *const *)&l.l, 1, nullptr, NBI_FORM_FLOAT, 0, nullptr, 16,
                                 NBI_DST_F32, nullptr));
    EXPECT_NB_OK(nbi_cuda_linear(b, nullptr, 0, nullptr, NBI_FORM_FLOAT, 4, nullptr, 16, NBI_DST_F32, nullptr));
}

TEST(LinearSpecial, a_row_with_a_nan_stays_alone)
{
    Layer layer = make_layer(kinds[5], NBI_F16, 32, 64, 64, true, 1);
    const Linear l{Weight(layer)};
    Acts a = make_acts(12, 64, NBI_F16, 2);
    a.x[3 * 64 + 5] = NAN;
    const std::vector<float> y = linear({l.l}, a, NBI_FORM_FLOAT, 32, NBI_DST_F32, std::vector<float>(12 * 32));
    for (size_t i = 0; i < y.size(); i++)
        EXPECT_EQ(i / 32 == 3, std::isnan(y[i])) << i;
}

TEST(LinearSpecial, more_scratch_than_there_is_memory_is_said)
{
    EXPECT_EQ(SIZE_MAX, nbi_cuda_scratch_bytes(&device()->base, SIZE_MAX / 2, 64));
    EXPECT_EQ(SIZE_MAX, nbi_cuda_scratch_bytes(&device()->base, 1 << 30, SIZE_MAX / 2048));
    EXPECT_EQ(SIZE_MAX, nbi_cuda_linear_plan(
                            &device()->base, SIZE_MAX, SIZE_MAX,
                            [] {
                                static nbi_scheme s;
                                return &s;
                            }(),
                            NBI_F16, false));
}

} // namespace
