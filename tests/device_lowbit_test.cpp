/* NF4, ternary and binary layers on every device, against nbi_weight_dense() in double.
 *
 * NF4: the numbers of the table are rounded to the type of activations before a GPU multiplies them, one relative error more
 * than docs/numerics.md counts for a dot product.  One-bit layers are integers with three roundings behind them, and have
 * the CPU's bits everywhere. */
#include "device_linear_util.h"

extern "C" {
#include "base/nf4.h"
}

namespace
{

nbi_scheme nf4(uint32_t group)
{
    nbi_scheme s = scheme(4, group, true, NBI_ACT_NONE, true);
    s.kind = NBI_KIND_NF4;
    return s;
}

nbi_scheme binary(nbi_act act)
{
    nbi_scheme s = scheme(1, 0, true, act, true);
    s.kind = NBI_KIND_BINARY;
    return s;
}

/* Random codes that the scheme has. */
Weight weight(nbi_scheme s, size_t n, size_t k, uint64_t seed, bool bias, bool ternary = false)
{
    Weight w = make_weight(s, NBI_F32, n, k, seed, bias);
    for (size_t i = 0; i < n * k; i++)
        if (s.kind == NBI_KIND_BINARY)
            w.w.codes[i] = nbi_rng(seed + 7, i) & 1 ? 1 : -1;
        else if (ternary)
            w.w.codes[i] = (int8_t)((int)(nbi_rng(seed + 7, i) % 3) - 1);
    return w;
}

struct Form {
    nbi_scheme s;
    bool ternary;
    bool signs() const { return s.act == NBI_ACT_SIGN; }
    bool floats() const { return s.act == NBI_ACT_NONE; }
    std::string name() const
    {
        char buf[48];
        nbi_scheme_name(&s, buf);
        return buf + std::string(ternary ? " ternary" : "");
    }
};

std::vector<Form> forms()
{
    nbi_scheme tensor = scheme(2, 0, true, NBI_ACT_NONE, true, true);
    std::vector<Form> v = {{nf4(64), false},
                           {nf4(0), false},
                           {nf4(16), false},
                           {scheme(2, 0, true, NBI_ACT_NONE, true), true},
                           {tensor, true},
                           {scheme(2, 0, true, NBI_ACT_TOKEN, true), true},
                           {binary(NBI_ACT_NONE), false},
                           {binary(NBI_ACT_TOKEN), false},
                           {binary(NBI_ACT_SIGN), false}};
    for (unsigned bits : {2u, 3u})
        for (nbi_act act : {NBI_ACT_NONE, NBI_ACT_TOKEN})
            for (uint32_t group : {0u, 32u, 64u, 128u})
                v.push_back({scheme(bits, group, group == 64, act, true), false});
    return v;
}

/* A GPU reads activations in pieces of 16. */
std::vector<size_t> lengths(const Device &d, const Form &f)
{
    if (f.s.group)
        return {f.s.group, f.s.group * 3, f.s.group * 16, f.s.group * 17};
    if (d.cpu())
        return {1, 2, 63, 64, 65, 511, 512, 513, 1000};
    return {16, 48, 64, 80, 128, 144, 1008, 1040};
}

/* What one-bit activations stand for: sign(x) * mean|x|, in double. */
std::vector<double> meaning(const Form &f, const float *x, size_t k)
{
    std::vector<double> v(x, x + k);
    double mean = 0;
    for (double e : v)
        mean += std::fabs(e) / (double)k;
    if (f.signs())
        for (double &e : v)
            e = e >= 0 ? mean : -mean;
    return v;
}

/* Of floats as docs/numerics.md counts; of one-bit products the mean of K magnitudes, two factors and the dense value;
 * NF4 on a GPU: the table's rounding. */
double relative_error(const Device &d, const Form &f, size_t k)
{
    const size_t groups = nbi_scheme_groups(&f.s, k);
    const double table = f.s.kind != NBI_KIND_NF4 || d.cpu() ? 0 : d.act == NBI_F16 ? 0x1p-11 : 0x1p-8;
    if (f.signs())
        return ((double)(k + 15) / 16 + 5 + 4) * U;
    return table * 1.01 + d.dot_error(k / groups, groups) + U;
}

size_t count_outside(const Device &d, const Form &f, const nbi_weight &w, const std::vector<float> &x,
                     const std::vector<float> &y)
{
    std::vector<float> dense(w.n * w.k);
    EXPECT_NB_OK(nbi_weight_dense(&w, dense.data(), 1));
    size_t bad = 0;
    for (size_t r = 0; r < y.size() / w.n; r++) {
        const std::vector<double> v = meaning(f, &x[r * w.k], w.k);
        for (size_t n = 0; n < w.n; n++) {
            double sum = 0, abs = 0, bias = w.bias ? (double)w.bias[n] : 0;
            for (size_t k = 0; k < w.k; k++) {
                sum += (double)dense[n * w.k + k] * v[k];
                abs += std::fabs((double)dense[n * w.k + k] * v[k]);
            }
            const double bound = relative_error(d, f, w.k) * (abs + std::fabs(bias)) + 0x1p-149;
            bad += !(std::fabs((double)y[r * w.n + n] - (sum + bias)) <= bound);
        }
    }
    return bad;
}

} // namespace

TEST(DeviceLowBit, layers_compute_what_the_weight_means)
{
    static Device scalar("cpu", "scalar");
    const size_t ns[] = {1, 15, 16, 17, 40, 130};
    for (const Device *d : devices()) {
        size_t index = 0;
        for (const Form &f : forms())
            for (size_t k : lengths(*d, f)) {
                const size_t n = ns[++index % 6], rows = index % 3 ? 3 : 11;
                Weight w = weight(f.s, n, k, index, index % 2, f.ternary);
                Packed p(*d, w.w);
                const std::vector<float> x = d->round(noise(rows * k, index)), y = run(p, w.w, x, rows);
                if (f.floats() || f.signs()) {
                    ASSERT_EQ(0u, count_outside(*d, f, w.w, x, y)) << f.name() << " K " << k << " " << d->name;
                }
                if (!f.floats()) {
                    const std::vector<float> want = run(Packed(scalar, w.w), w.w, x, rows);
                    ASSERT_TRUE(same_bits(want.data(), y.data(), y.size())) << f.name() << " K " << k << " " << d->name;
                }
                EXPECT_EQ((*d)->linear_bytes(p.l), (*d)->linear_plan(d->be, n, k, &f.s, NBI_F32, w.w.bias)) << f.name();
            }
    }
}

/* With the table as the device has it, there is no more to allow for than with any other code. */
TEST(DeviceLowBit, nf4_differs_by_the_rounding_of_its_table_only)
{
    for (const Device *d : devices())
        for (uint32_t group : {64u, 0u}) {
            const size_t n = 33, k = 576, rows = 5, groups = group ? k / group : 1, len = k / groups;
            Weight w = weight(nf4(group), n, k, 5, false);
            Packed p(*d, w.w);
            const std::vector<float> x = d->round(noise(rows * k, 6)), y = run(p, w.w, x, rows);
            for (size_t i = 0; i < rows * n; i++) {
                double sum = 0, abs = 0;
                for (size_t j = 0; j < k; j++) {
                    const double value = (double)d->round(nbi_nf4[w.w.codes[i % n * k + j] + 8]),
                                 t = value * (double)w.w.scales[i % n * groups + j / len] * (double)x[i / n * k + j];
                    sum += t;
                    abs += std::fabs(t);
                }
                ASSERT_LE(std::fabs((double)y[i] - sum), d->dot_error(len, groups) * abs) << d->name;
            }
        }
}

/* Every code in every place that a lane looks it up. */
TEST(DeviceLowBit, each_nf4_code_is_its_number)
{
    for (const Device *d : devices()) {
        const size_t n = 32, k = 64;
        Weight w = weight(nf4(64), n, k, 1, false);
        for (size_t i = 0; i < n; i++)
            w.w.scales[i] = 1;
        for (int code = -8; code < 8; code++) {
            for (size_t i = 0; i < n * k; i++)
                w.w.codes[i] = (int8_t)((i / k + i % k * 5 + (size_t)(code + 8)) % 16) - 8;
            Packed p(*d, w.w);
            std::vector<float> x(k * k);
            for (size_t i = 0; i < k; i++)
                x[i * k + i] = 1;
            const std::vector<float> y = run(p, w.w, x, k);
            for (size_t i = 0; i < k * n; i++)
                ASSERT_EQ(d->round(nbi_nf4[w.w.codes[i % n * k + i / n] + 8]), y[i]) << d->name << " code " << code;
        }
    }
}

TEST(DeviceLowBit, a_row_has_the_same_bits_in_any_batch)
{
    for (const Device *d : devices())
        for (const Form &f : forms()) {
            const size_t rows = 67, n = 49, k = 384;
            Weight w = weight(f.s, n, k, 3, true, f.ternary);
            Packed p(*d, w.w);
            const std::vector<float> x = d->round(noise(rows * k, 4)), want = run(p, w.w, x, rows);
            for (size_t r : {1u, 2u, 7u, 8u, 9u, 16u, 33u, 64u}) {
                const std::vector<float> got = run(p, w.w, x, r);
                ASSERT_TRUE(same_bits(got.data(), want.data(), r * n)) << f.name() << " rows " << r << " " << d->name;
            }
        }
}

TEST(DeviceLowBit, destinations_are_the_result_rounded_or_added)
{
    for (const Device *d : devices())
        for (const Form &f : forms())
            for (size_t rows : {3u, 19u}) {
                const size_t k = 128, n = 37;
                Weight w = weight(f.s, n, k, 31, true, f.ternary);
                Packed p(*d, w.w);
                const std::vector<float> x = d->round(noise(rows * k, 32)), old = noise(rows * n, 33);
                const std::vector<float> plain = run(p, w.w, x, rows),
                                         sum = run(p, w.w, x, rows, NBI_DST_RESIDUAL, old);
                const std::vector<float> act = run(p, w.w, x, rows, NBI_DST_ACT), want = d->round(plain);
                ASSERT_TRUE(same_bits(want.data(), act.data(), act.size())) << f.name() << " " << d->name;
                for (size_t i = 0; i < rows * n; i++)
                    ASSERT_EQ(old[i] + plain[i], sum[i]) << f.name() << " " << d->name;
            }
}

TEST(DeviceLowBit, layers_of_all_kinds_stand_side_by_side)
{
    const nbi_scheme s = binary(NBI_ACT_SIGN), i8 = scheme(8, 0, true, NBI_ACT_TOKEN, true);
    const std::vector<std::vector<nbi_scheme>> sets = {{s, s, s},
                                                       {nf4(64), nf4(64), nf4(64)},
                                                       {s, i8, nf4(64)},
                                                       {i8, s, s},
                                                       {nf4(64), s, scheme(4, 64, true, NBI_ACT_NONE, true)}};
    for (const Device *d : devices())
        for (const auto &set : sets)
            for (size_t rows : {1u, 13u}) {
                const size_t k = 384;
                std::vector<Weight> w;
                std::vector<std::unique_ptr<Packed>> p;
                std::vector<const nbi_linear *> l;
                size_t n = 0;
                for (size_t i = 0; i < 3; i++) {
                    w.push_back(weight(set[i], 24 + 17 * i, k, 3 + i, i == 1));
                    p.push_back(std::make_unique<Packed>(*d, w[i].w));
                    l.push_back(p[i]->l);
                    n += w[i].w.n;
                }
                const std::vector<float> x = d->round(noise(rows * k, 6)), y = run(*d, l, n, k, x.data(), rows);
                for (size_t i = 0, column = 0; i < 3; column += w[i++].w.n) {
                    const std::vector<float> part = run(*p[i], w[i].w, x, rows);
                    for (size_t r = 0; r < rows; r++)
                        ASSERT_TRUE(same_bits(&part[r * w[i].w.n], &y[r * n + column], w[i].w.n))
                            << d->name << " layer " << i << " row " << r;
                }
            }
}

TEST(DeviceLowBit, zeros_are_positive_signs_and_a_bad_row_spoils_only_itself)
{
    const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (const Device *d : devices()) {
        const size_t k = 80, n = 18, rows = 12;
        Weight w = weight(binary(NBI_ACT_SIGN), n, k, 41, false);
        Packed p(*d, w.w);
        std::vector<float> x(rows * k, 1.0f);
        for (size_t i = 0; i < k; i++) {
            x[i] = 0;
            x[k + i] = i % 2 ? 0.0f : -0.0f;
            x[2 * k + i] = i == 5 ? 1.0f : -0.0f;
        }
        for (size_t i = 0; i < 4; i++)
            x[(2 * i + 4) * k + i * 20] = bad[i];
        const std::vector<float> y = run(p, w.w, x, rows);
        for (size_t c = 0; c < n; c++) {
            int sum = 0;
            for (size_t i = 0; i < k; i++)
                sum += w.w.codes[c * k + i];
            ASSERT_EQ(0.0f, y[c]) << d->name;
            ASSERT_EQ(0.0f, y[n + c]) << d->name;
            ASSERT_EQ((float)sum * w.w.scales[c] * (1.0f / (float)k), y[2 * n + c]) << d->name;
            for (size_t r = 3; r < rows; r++)
                if (r >= 4 && r % 2 == 0) {
                    ASSERT_TRUE(std::isnan(y[r * n + c])) << d->name << " row " << r;
                } else {
                    ASSERT_EQ((float)sum * w.w.scales[c], y[r * n + c]) << d->name << " row " << r;
                }
        }
    }
}

TEST(DeviceLowBit, one_wrong_code_is_seen)
{
    for (const Device *d : devices())
        for (const Form &f : {Form{nf4(64), false}, Form{binary(NBI_ACT_SIGN), false}}) {
            const size_t k = 384;
            Weight w = weight(f.s, 33, k, 9, false);
            std::vector<float> x = d->round(noise(k, 10));
            w.w.codes[17 * k + 5] = f.signs() ? 1 : 7;
            x[5] = 1;
            Packed p(*d, w.w);
            const std::vector<float> y = run(p, w.w, x, 1);
            ASSERT_EQ(0u, count_outside(*d, f, w.w, x, y)) << f.name() << " " << d->name;
            w.w.codes[17 * k + 5] = f.signs() ? -1 : -8;
            EXPECT_EQ(1u, count_outside(*d, f, w.w, x, y)) << f.name() << " " << d->name;
        }
}

TEST(DeviceLowBit, tables_are_looked_up_where_they_can_be)
{
    const std::vector<int32_t> ids = {33, 0, 17, 16};
    for (const Device *d : devices())
        for (const Form &f : forms()) {
            const size_t k = 384, n = 34, rows = ids.size();
            Weight w = weight(f.s, n, k, 51, false, f.ternary);
            Packed p(*d, w.w);
            Memory x(*d, rows * k * 4);
            int32_t page = 0;
            DeviceStep step(*d, rows, 1, 1, {1.0f});
            step.begin({{0, (uint32_t)rows, 0, &page}}, ids);
            if (!d->cpu() && (f.signs() || f.s.kind == NBI_KIND_NF4)) {
                EXPECT_FAILS(NB_EUNSUPPORTED, "cannot be looked up", (*d)->embed(d->be, step.get(), p.l, x.f32()));
                continue;
            }
            ASSERT_NB_OK((*d)->embed(d->be, step.get(), p.l, x.f32()));
            const std::vector<float> got = x.take<float>(rows * k);
            std::vector<float> row(k);
            for (size_t i = 0; i < rows; i++) {
                nbi_weight_row(&w.w, (size_t)ids[i], row.data());
                ASSERT_TRUE(same_bits(row.data(), &got[i * k], k)) << f.name() << " id " << ids[i] << " " << d->name;
            }
        }
}

TEST(DeviceLowBit, what_has_no_kernel_is_refused_with_the_reason)
{
    for (const Device *d : devices()) {
        auto refuse = [&](const char *part, nbi_scheme s) {
            nbi_linear *l = nullptr;
            nbi_scheme plain = s;
            plain.act_order = false;
            Weight w = make_weight(plain, NBI_F32, 4, 64, 1, false);
            w.w.scheme = s;
            EXPECT_FAILS(NB_EUNSUPPORTED, part, (*d)->linear_create(d->be, &l, &w.w));
            EXPECT_EQ(nullptr, l);
        };
        nbi_scheme s = nf4(64);
        s.act = NBI_ACT_TOKEN;
        refuse("NF4 weights of 4 bits, with quantized activations", s);
        s = nf4(64);
        s.bits = 3;
        refuse("NF4 weights of 3 bits", s);
        s = nf4(64);
        s.act_order = true;
        refuse("in another order", s);
        refuse("activations of one bit", scheme(4, 0, true, NBI_ACT_SIGN, true));
        s = binary(NBI_ACT_SIGN);
        s.strategy = NBI_PER_TENSOR;
        refuse("activations of one bit", s);
        s = binary(NBI_ACT_NONE);
        s.kind = NBI_KIND_INT;
        refuse("weights of 1 bits", s);
    }
}
