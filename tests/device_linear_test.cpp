/* Linear layers and embeddings on every device: one test for all schemes, sizes, numbers of rows and destinations.
 *
 * Float activations are compared with double, integer ones with the CPU's scalar kernels, to the bit.  Everything else
 * follows from equal bits: a destination is the fp32 result rounded or added, a row does not depend on its batch,
 * layers that are computed together are the layers side by side. */
#include "device_linear_util.h"

namespace
{

std::vector<Case> cases()
{
    std::vector<Case> v = common_cases();
    v.push_back({scheme(8, 1024, true, NBI_ACT_NONE, true), NBI_F32}); /* a group longer than a chunk */
    v.push_back({scheme(4, 704, false, NBI_ACT_NONE, true), NBI_F32});
    v.push_back({scheme(4, 544, false, NBI_ACT_TOKEN, true), NBI_F32});
    return v;
}

bool integer(const nbi_scheme &s)
{
    return s.bits && s.act != NBI_ACT_NONE;
}

/* Rows of activations are read in pieces of 16; the groups here fit every tensor core. */
bool takes(const Device &d, size_t k)
{
    return d.cpu() || k % 16 == 0;
}

struct Shape {
    size_t n, k;
};

std::vector<Shape> shapes_for(const Case &c, size_t index)
{
    const size_t ns[] = {1, 15, 16, 17, 40, 100, 130}, ks[] = {32, 96, 160, 544, 1056, 48, 515, 13};
    std::vector<Shape> v;
    for (size_t i = 0; i < 4; i++) {
        size_t k = ks[(index * 3 + i) % 8];
        if (c.s.group)
            k = c.s.group * (c.s.group > 300 ? 2 : (index + i) % 4 * 2 + 1);
        v.push_back({ns[(index * 4 + i) % 7], whole(c.s, k)});
    }
    return v;
}

/* The slow truth of one output, of activations that are rounded already, and how far a device may be from it. */
struct Truth {
    double value, bound;
};
Truth truth(const Device &d, const nbi_weight &w, const float *x, size_t n)
{
    const size_t groups = w.scheme.bits ? nbi_scheme_groups(&w.scheme, w.k) : 1, len = w.k / groups;
    std::vector<float> row(w.k);
    double sum = 0, abs = 0, bias = w.bias ? (double)w.bias[n] : 0;
    if (!w.scheme.bits) { /* a device keeps dense weights in the type of its activations */
        nbi_weight_row(&w, n, row.data());
        if (!d.cpu())
            row = d.round(row);
    }
    for (size_t k = 0; k < w.k; k++) {
        double t = (double)row[k] * (double)x[k];
        if (w.scheme.bits) {
            const size_t g = n * groups + k / len;
            t = ((double)w.codes[n * w.k + k] - zero_of(w, g)) * (double)w.scales[g] * (double)x[k];
        }
        sum += t;
        abs += std::fabs(t);
    }
    return {sum + bias, d.dot_error(len, groups) * (abs + std::fabs(bias)) + std::fabs(sum + bias) * U + 0x1p-149};
}

size_t count_outside(const Device &d, const nbi_weight &w, const std::vector<float> &x, const std::vector<float> &y)
{
    size_t bad = 0;
    for (size_t i = 0; i < y.size(); i++) {
        Truth t = truth(d, w, &x[i / w.n * w.k], i % w.n);
        bad += !(std::fabs((double)y[i] - t.value) <= t.bound);
    }
    return bad;
}

/* Equal bits with the scalar kernels where sums are integers, near the truth elsewhere. */
void check(const Device &d, const Case &c, const nbi_weight &w, const std::vector<float> &x,
           const std::vector<float> &y)
{
    static Device scalar("cpu", "scalar");
    if (integer(c.s)) {
        std::vector<float> want = run(Packed(scalar, w), w, x, y.size() / w.n);
        EXPECT_TRUE(same_bits(want.data(), y.data(), y.size()))
            << c.name() << " N=" << w.n << " K=" << w.k << " " << d.name;
    } else {
        EXPECT_EQ(0u, count_outside(d, w, x, y)) << c.name() << " N=" << w.n << " K=" << w.k << " " << d.name;
    }
}

} // namespace

TEST(DeviceLinear, is_exact_in_integers_and_near_double_in_floats)
{
    for (const Device *d : devices()) {
        size_t index = 0;
        for (const Case &c : cases()) {
            index++;
            for (Shape s : shapes_for(c, index)) {
                if (!takes(*d, s.k))
                    continue;
                Weight w = make_weight(c.s, c.dtype, s.n, s.k, 5 * index, index % 3 == 0);
                Packed p(*d, w.w);
                std::vector<float> x = d->round(noise(3 * s.k, index));
                ASSERT_NO_FATAL_FAILURE(check(*d, c, w.w, x, run(p, w.w, x, 3)));
                EXPECT_GE((*d)->linear_bytes(p.l), s.n * s.k * (c.s.bits ? c.s.bits : 16) / 8);
            }
        }
    }
}

TEST(DeviceLinear, a_row_has_the_same_bits_in_any_batch)
{
    std::vector<size_t> batches = {64, 31};
    for (size_t r = 17; r > 0; r--)
        batches.push_back(r);
    for (const Device *d : devices()) {
        size_t index = 0;
        for (const Case &c : cases()) {
            if (++index % 2 && c.s.bits && c.s.act == NBI_ACT_TENSOR) /* only the codes differ from those per token */
                continue;
            const size_t rows = 129, n = 17 + index % 3 * 16,
                         k = c.s.group ? c.s.group * (c.s.group < 300 ? 3 : 1) : 608;
            Weight w = make_weight(c.s, c.dtype, n, k, index, index % 2);
            Packed p(*d, w.w);
            std::vector<float> x = d->round(noise(rows * k, 77 + index)), want = run(p, w.w, x, rows);
            for (size_t r : batches) {
                std::vector<float> got = run(p, w.w, x, r);
                ASSERT_TRUE(same_bits(got.data(), want.data(), r * n))
                    << c.name() << " N=" << n << " K=" << k << " rows=" << r << " " << d->name;
            }
            std::vector<float> last(x.end() - (ptrdiff_t)k, x.end()), got = run(p, w.w, last, 1);
            ASSERT_TRUE(same_bits(got.data(), &want[(rows - 1) * n], n)) << c.name() << " " << d->name;
        }
    }
}

TEST(DeviceLinear, wide_and_long_shapes_that_no_tile_divides)
{
    const Shape shapes[] = {{1000, 96}, {272, 1056}, {9, 4128}};
    for (const Device *d : devices())
        for (const Case &c : {Case{nbi_scheme{}, NBI_F16}, Case{scheme(8, 0, true, NBI_ACT_TOKEN, true), NBI_F32},
                              Case{scheme(8, 32, false, NBI_ACT_NONE, true), NBI_F32},
                              Case{scheme(4, 32, false, NBI_ACT_TOKEN, true), NBI_F32},
                              Case{scheme(4, 32, true, NBI_ACT_NONE, true), NBI_F32}})
            for (Shape s : shapes)
                for (size_t rows : {5u, 33u}) {
                    Weight w = make_weight(c.s, c.dtype, s.n, s.k, s.n, true);
                    Packed p(*d, w.w);
                    std::vector<float> x = d->round(noise(rows * s.k, rows));
                    ASSERT_NO_FATAL_FAILURE(check(*d, c, w.w, x, run(p, w.w, x, rows)));
                }
}

TEST(DeviceLinear, destinations_are_the_result_rounded_or_added)
{
    for (const Device *d : devices())
        for (const Case &c : cases()) {
            const size_t k = c.s.group ? c.s.group * 2 : 96, n = 37;
            Weight w = make_weight(c.s, c.dtype, n, k, 31, true);
            Packed p(*d, w.w);
            for (size_t rows : {3u, 19u}) {
                std::vector<float> x = d->round(noise(rows * k, 32)), old = noise(rows * n, 33);
                std::vector<float> plain = run(p, w.w, x, rows), sum = run(p, w.w, x, rows, NBI_DST_RESIDUAL, old);
                std::vector<float> act = run(p, w.w, x, rows, NBI_DST_ACT), want = d->round(plain);
                ASSERT_TRUE(same_bits(want.data(), act.data(), act.size())) << c.name() << " " << d->name;
                for (size_t i = 0; i < rows * n; i++)
                    ASSERT_EQ(old[i] + plain[i], sum[i]) << c.name() << " " << d->name;
            }
        }
}

TEST(DeviceLinear, layers_together_are_the_layers_side_by_side)
{
    const nbi_scheme f = scheme(4, 32, false, NBI_ACT_NONE, true), i8 = scheme(8, 0, true, NBI_ACT_TOKEN, true);
    const std::vector<std::vector<nbi_scheme>> sets = {
        {f, f, f}, {i8, i8, i8}, {i8, i8}, {{}, {}, {}}, {f, {}, i8}, {i8, scheme(8, 0, true, NBI_ACT_TENSOR, false)}};
    for (const Device *d : devices())
        for (const auto &set : sets)
            for (size_t rows : {1u, 4u, 21u})
                for (nbi_dst dst : {NBI_DST_ACT, NBI_DST_F32, NBI_DST_RESIDUAL}) {
                    const size_t k = 96, gap = 5;
                    std::vector<Weight> w;
                    std::vector<std::unique_ptr<Packed>> p;
                    std::vector<const nbi_linear *> l;
                    size_t n = 0;
                    for (size_t i = 0; i < set.size(); i++) {
                        w.push_back(make_weight(set[i], NBI_F16, 24 + 17 * i, k, 3 + i, i == 1));
                        p.push_back(std::make_unique<Packed>(*d, w[i].w));
                        l.push_back(p[i]->l);
                        n += w[i].w.n;
                    }
                    const size_t ldy = n + gap;
                    std::vector<float> x = d->round(noise(rows * k, 6)), old = d->round(noise(rows * ldy, 7));
                    std::vector<float> y = run(*d, l, n, k, x.data(), rows, dst, old, gap), part;
                    for (size_t i = 0, col = 0; i < set.size(); col += w[i++].w.n) {
                        std::vector<float> mine;
                        for (size_t r = 0; r < rows; r++)
                            mine.insert(mine.end(), &old[r * ldy + col], &old[r * ldy + col] + w[i].w.n);
                        part = run(*p[i], w[i].w, x, rows, dst, dst == NBI_DST_ACT ? std::vector<float>() : mine);
                        for (size_t r = 0; r < rows; r++)
                            ASSERT_TRUE(same_bits(&part[r * w[i].w.n], &y[r * ldy + col], w[i].w.n))
                                << d->name << " layer " << i << " row " << r << " dst " << dst;
                    }
                    for (size_t r = 0; r < rows && dst != NBI_DST_ACT; r++) /* what lies behind them stays */
                        ASSERT_TRUE(same_bits(&old[r * ldy + n], &y[r * ldy + n], gap)) << d->name;
                }
}

/* 127 * 128 * 1056, and with zero points as far apart as they go: the largest sums. */
TEST(DeviceLinear, extreme_codes_sum_exactly)
{
    for (const Device *d : devices())
        for (unsigned bits : {4u, 8u})
            for (bool sym : {true, false}) {
                const size_t n = 19, k = 1056;
                const int half = 1 << (bits - 1);
                const Case c = {scheme(bits, 0, sym, NBI_ACT_TENSOR, false), NBI_F32};
                Weight w = make_weight(c.s, NBI_F32, n, k, 21, false);
                w.w.act_scale = 1;
                w.w.act_zero = -128;
                memset(w.w.codes, -half, n * k);
                for (size_t i = 0; i < n; i++) {
                    w.w.scales[i] = 1;
                    if (!sym)
                        w.w.zeros[i] = (int8_t)(half - 1);
                }
                Packed p(*d, w.w);
                std::vector<float> y = run(p, w.w, std::vector<float>(2 * k, 255), 2);
                for (float v : y)
                    ASSERT_EQ((float)(255 * (-half - (sym ? 0 : half - 1)) * (int)k), v) << c.name() << " " << d->name;
            }
}

TEST(DeviceLinear, a_row_with_nan_or_infinity_spoils_only_itself)
{
    const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (const Device *d : devices())
        for (const Case &c : cases()) {
            const size_t k = c.s.group ? c.s.group : 96, n = 18, rows = 9;
            Weight w = make_weight(c.s, c.dtype, n, k, 41, false);
            Packed p(*d, w.w);
            std::vector<float> x = d->round(noise(rows * k, 42)), clean = run(p, w.w, x, rows);
            for (size_t i = 0; i < 4; i++)
                x[(2 * i + 1) * k + (k - 1) * (i % 2)] = bad[i];
            std::vector<float> y = run(p, w.w, x, rows);
            for (size_t i = 0; i < rows * n; i++)
                if (i / n % 2 == 0)
                    ASSERT_EQ(clean[i], y[i]) << c.name() << " " << d->name;
                else if (i / n < 4 || integer(c.s))
                    ASSERT_TRUE(std::isnan(y[i])) << c.name() << " row " << i / n << " " << d->name;
                else
                    ASSERT_FALSE(std::isfinite(y[i])) << c.name() << " row " << i / n << " " << d->name;
        }
}

TEST(DeviceLinear, one_wrong_code_is_seen)
{
    for (const Device *d : devices())
        for (const Case &c : {Case{scheme(4, 32, false, NBI_ACT_NONE, true), NBI_F32},
                              Case{scheme(8, 0, true, NBI_ACT_NONE, true), NBI_F32}}) {
            const size_t k = 96;
            Weight w = make_weight(c.s, c.dtype, 33, k, 9, false);
            std::vector<float> x = d->round(noise(k, 10));
            w.w.codes[17 * k + 5] = 7;
            x[5] = 1;
            Packed p(*d, w.w);
            std::vector<float> y = run(p, w.w, x, 1);
            ASSERT_EQ(0u, count_outside(*d, w.w, x, y));
            w.w.codes[17 * k + 5] = 6;
            EXPECT_EQ(1u, count_outside(*d, w.w, x, y)) << c.name() << " " << d->name;
        }
}

TEST(DeviceLinear, embedding_rows_mean_what_the_weight_means)
{
    const std::vector<int32_t> ids = {49, 0, 17, 17, 16, 15, 31, 32, 48};
    for (const Device *d : devices())
        for (const Case &c : cases()) {
            const size_t k = c.s.group ? c.s.group * 2 : 96, n = 50, rows = ids.size();
            Weight w = make_weight(c.s, c.dtype, n, k, 51, false);
            Packed p(*d, w.w);
            Memory x(*d, rows * k * 4);
            int32_t page = 0;
            DeviceStep step(*d, rows, 1, 1, {1.0f});
            step.begin({{0, (uint32_t)rows, 0, &page}}, ids);
            ASSERT_NB_OK((*d)->embed(d->be, step.get(), p.l, x.f32()));
            std::vector<float> got = x.take<float>(rows * k), row(k);
            for (size_t i = 0; i < rows; i++) {
                nbi_weight_row(&w.w, (size_t)ids[i], row.data());
                if (!c.s.bits && !d->cpu())
                    row = d->round(row);
                ASSERT_TRUE(same_bits(row.data(), &got[i * k], k)) << c.name() << " id " << ids[i] << " " << d->name;
            }
        }
}

TEST(DeviceLinear, what_has_no_kernel_is_refused_with_the_reason)
{
    for (const Device *d : devices()) {
        auto refuse = [&](nb_status st, const char *part, nbi_scheme s, size_t n, size_t k,
                          const std::function<void(nbi_weight &)> &f) {
            nbi_linear *l = nullptr;
            Weight w = make_weight(s, NBI_F32, n, s.group && k % s.group ? s.group : k, 1, false);
            w.w.k = k;
            f(w.w);
            EXPECT_FAILS(st, part, (*d)->linear_create(d->be, &l, &w.w));
            EXPECT_EQ(nullptr, l);
        };
        auto nothing = [](nbi_weight &) {};
        const nbi_scheme w8 = scheme(8, 0, true, NBI_ACT_NONE, true), w8a8 = scheme(8, 0, true, NBI_ACT_TENSOR, true);
        refuse(NB_EUNSUPPORTED, "5 bits", w8, 2, 32, [](nbi_weight &w) { w.scheme.bits = 5; });
        refuse(NB_EUNSUPPORTED, "32", scheme(4, 32, true, NBI_ACT_NONE, true), 2, 80, nothing);
        refuse(NB_EUNSUPPORTED, "12", scheme(4, 12, true, NBI_ACT_NONE, true), 2, 48, nothing);
        refuse(NB_EUNSUPPORTED, "6", scheme(8, 6, true, NBI_ACT_NONE, true), 2, 48, nothing);
        refuse(NB_EUNSUPPORTED, "I8", nbi_scheme{}, 2, 32, [](nbi_weight &w) { w.dense_dtype = NBI_I8; });
        refuse(NB_EINVAL, "activation scale", w8a8, 2, 32, [](nbi_weight &w) { w.act_scale = 0; });
        refuse(NB_ELIMIT, "131071", w8a8, 1, 131072, nothing);
        if (d->cpu())
            continue;
        refuse(NB_EUNSUPPORTED, "13 inputs are not a multiple of 16", w8, 2, 13, nothing);
        refuse(NB_EUNSUPPORTED, "40 inputs are not a multiple of 16", w8a8, 2, 40, nothing);
        refuse(NB_EUNSUPPORTED, "515 inputs are not a multiple of 16", nbi_scheme{}, 2, 515, nothing);
        refuse(NB_EUNSUPPORTED, "multiple of 32", scheme(4, 16, true, NBI_ACT_TOKEN, true), 2, 48, nothing);
    }
}

/* An act-ordered layer is the same layer without an order on inputs that were put into that order before: to the bit. */
TEST(DeviceLinear, act_order_takes_its_inputs_in_the_order_of_its_columns)
{
    size_t index = 0;
    for (Device *dp : devices())
        for (const Case &c : cases()) {
            if (!c.s.bits || c.s.group == 1024 || c.s.group == 704 || c.s.group == 544)
                continue;
            const Device &d = *dp;
            const size_t n = 40, k = c.s.group ? c.s.group * 3 : 160, rows = 1 + index++ % 19;
            Weight plain = make_weight(c.s, c.dtype, n, k, index, index % 2),
                   ordered = make_weight(c.s, c.dtype, n, k, index, index % 2);
            std::vector<float> x = d.round(noise(rows * k, 7 + index)), put(x.size());
            ordered.w.scheme.act_order = true;
            ordered.w.perm = (uint32_t *)malloc(k * sizeof(uint32_t));
            for (size_t j = 0; j < k; j++)
                ordered.w.perm[j] = (uint32_t)((j * 7 + 3) % k); /* 7 divides none of the k */
            for (size_t i = 0; i < x.size(); i++)
                put[i] = x[i / k * k + ordered.w.perm[i % k]];
            Packed p(d, plain.w), o(d, ordered.w);
            EXPECT_EQ(d->linear_bytes(o.l), d->linear_plan(d.be, n, k, &ordered.w.scheme, c.dtype, index % 2))
                << c.name();
            const std::vector<float> want = run(p, plain.w, put, rows), got = run(o, ordered.w, x, rows);
            ASSERT_TRUE(same_bits(want.data(), got.data(), want.size()))
                << d.name << " " << c.name() << " rows " << rows;
            /* beside layers without an order, whose codes must not be taken for its own */
            const std::vector<float> three = run(d, {p.l, o.l, p.l}, 3 * n, k, x.data(), rows),
                                     alone = run(p, plain.w, x, rows);
            for (size_t r = 0; r < rows; r++)
                for (size_t i = 0; i < 3 * n; i++)
                    ASSERT_EQ((i / n == 1 ? got : alone)[r * n + i % n], three[r * 3 * n + i]) << c.name();
        }
}

TEST(DeviceLinear, an_order_that_leaves_the_inputs_is_refused)
{
    for (Device *dp : devices()) {
        const Device &d = *dp;
        Weight w = make_weight(scheme(4, 32, true, NBI_ACT_NONE, true), NBI_F32, 16, 64, 1, false);
        nbi_linear *l = nullptr;
        w.w.scheme.act_order = true;
        EXPECT_FAILS(NB_EINVAL, "order of columns", d->linear_create(d.be, &l, &w.w));
        w.w.perm = (uint32_t *)calloc(64, sizeof(uint32_t));
        w.w.perm[63] = 64;
        EXPECT_FAILS(NB_EINVAL, "input 64", d->linear_create(d.be, &l, &w.w));
    }
}
