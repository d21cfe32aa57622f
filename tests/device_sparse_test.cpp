/* Single numbers and outlier columns beside a linear layer, on every device.
 *
 * The oracle is arithmetic: what the same layer gives without them (of a layer with outliers: on inputs that are 0 there), plus a
 * dot product by fused multiply-adds in ascending columns, to the bit. */
#include "device_util.h"
#include "weight_util.h"

namespace
{

float as_f16(float x)
{
    return nbi_f16_to_f32(nbi_f32_to_f16(x));
}

/* Rows of very different lengths, some empty: about `share` of the places. */
void add_sparse(nbi_weight &w, double share, uint64_t seed)
{
    std::vector<uint32_t> col;
    std::vector<float> value;
    w.scheme.sparse = true;
    w.sparse.row = (uint32_t *)calloc(w.n + 1, sizeof(uint32_t));
    for (size_t n = 0; n < w.n; n++) {
        const double here = share * (n % 7 == 2 ? 0 : n % 5 == 1 ? 8 : 1);
        for (size_t k = 0; k < w.k; k++)
            if ((double)nbi_rng_uniform(seed, n * w.k + k) < here) {
                col.push_back((uint32_t)k);
                value.push_back(as_f16(nbi_rng_uniform(seed + 1, n * w.k + k) - 0.5f));
            }
        w.sparse.row[n + 1] = (uint32_t)col.size();
    }
    w.sparse.nnz = w.scheme.nnz = col.size();
    w.sparse.col = (uint32_t *)malloc(col.size() * 4 + 1);
    w.sparse.value = (float *)malloc(col.size() * 4 + 1);
    std::copy(col.begin(), col.end(), w.sparse.col);
    std::copy(value.begin(), value.end(), w.sparse.value);
}

void add_outliers(nbi_weight &w, const std::vector<uint32_t> &list, uint64_t seed)
{
    const size_t c = list.size();
    w.scheme.sparse = w.scheme.outliers = true;
    w.outlier = (uint32_t *)malloc(c * 4 + 1);
    std::copy(list.begin(), list.end(), w.outlier);
    w.n_outliers = c;
    w.sparse.nnz = w.scheme.nnz = w.n * c;
    w.sparse.row = (uint32_t *)malloc((w.n + 1) * 4);
    w.sparse.col = (uint32_t *)malloc(w.n * c * 4 + 1);
    w.sparse.value = (float *)malloc(w.n * c * 4 + 1);
    for (size_t n = 0; n <= w.n; n++)
        w.sparse.row[n] = (uint32_t)(n * c);
    for (size_t i = 0; i < w.n * c; i++) {
        w.sparse.col[i] = list[i % c];
        w.sparse.value[i] = as_f16(nbi_rng_uniform(seed, i) - 0.5f);
        w.codes[i / c * w.k + list[i % c]] = w.zeros ? w.zeros[i / c * nbi_scheme_groups(&w.scheme, w.k)] : (int8_t)0;
    }
}

/* q, k and v of a layer with this weight, so that layers share a launch; what the first one gives. */
std::vector<float> run(const Device &d, const std::vector<const nbi_weight *> &w, const std::vector<float> &x,
                       nbi_dst dst, const std::vector<float> &old)
{
    const size_t k = w[0]->k, rows = x.size() / k;
    std::vector<nbi_linear *> l(w.size());
    size_t ldy = 0;
    for (size_t i = 0; i < w.size(); i++) {
        EXPECT_NB_OK(d->linear_create(d.be, &l[i], w[i]));
        if (!l[i])
            return std::vector<float>(old.size());
        EXPECT_EQ(d->linear_bytes(l[i]),
                  d->linear_plan(d.be, w[i]->n, k, &w[i]->scheme, NBI_F32, w[i]->bias != nullptr));
        ldy += w[i]->n;
    }
    Acts ax(d, rows, k, x.data()), acts(d, rows, ldy);
    Floats floats(d, old);
    Memory scratch(d, d->scratch_bytes(d.be, rows, k));
    EXPECT_NB_OK(d->linear(d.be, l.data(), l.size(), ax.get(), NBI_FORM_FLOAT, rows,
                           dst == NBI_DST_ACT ? acts.get() : floats.get(), ldy, dst, scratch.get()));
    for (nbi_linear *p : l)
        d->linear_free(d.be, p);
    return dst == NBI_DST_ACT ? acts.take() : floats.take<float>(rows * ldy);
}

/* What `full` must give where `plain` is it without its sparse part. */
std::vector<float> expected(const Device &d, const nbi_weight &plain, const nbi_weight &full,
                            const std::vector<float> &x, nbi_dst dst, const std::vector<float> &old)
{
    std::vector<float> masked = x;
    for (size_t i = 0; i < x.size(); i++)
        for (size_t o = 0; o < full.n_outliers; o++)
            if (full.outlier[o] == i % full.k)
                masked[i] = 0;
    std::vector<float> y = run(d, {&plain}, masked, dst, old);
    for (size_t i = 0; i < y.size(); i++) {
        const size_t r = i / full.n, n = i % full.n;
        float sum = 0;
        for (size_t e = full.sparse.row[n]; e < full.sparse.row[n + 1]; e++)
            sum = std::fma(full.sparse.value[e], x[r * full.k + full.sparse.col[e]], sum);
        if (full.sparse.row[n] < full.sparse.row[n + 1])
            y[i] = dst == NBI_DST_ACT ? d.round(y[i] + sum) : y[i] + sum;
    }
    return y;
}

std::vector<nbi_scheme> schemes()
{
    return {scheme(4, 16, false, NBI_ACT_NONE, true),  scheme(3, 16, false, NBI_ACT_NONE, true),
            scheme(4, 64, true, NBI_ACT_NONE, true),   scheme(8, 0, true, NBI_ACT_TOKEN, true),
            scheme(4, 32, false, NBI_ACT_TOKEN, true), scheme(8, 0, true, NBI_ACT_TENSOR, false)};
}

} // namespace

TEST(DeviceSparse, single_numbers_are_added_in_order)
{
    size_t index = 0;
    for (const Device *d : devices())
        for (const nbi_scheme &s : schemes())
            for (size_t rows : {1u, 5u, 8u, 9u, 37u}) {
                const size_t ns[] = {1, 17, 40, 300}, n = ns[index % 4], k = index % 3 ? 320 : 2240;
                index++;
                Weight plain = make_weight(s, NBI_F32, n, k, index, index % 2),
                       full = make_weight(s, NBI_F32, n, k, index, index % 2);
                add_sparse(full.w, 0.02, index);
                const std::vector<float> x = d->round(noise(rows * k, 3)), old = noise(rows * n, 4);
                for (nbi_dst dst : {NBI_DST_ACT, NBI_DST_RESIDUAL, NBI_DST_F32}) {
                    const std::vector<float> want = expected(*d, plain.w, full.w, x, dst, old),
                                             got = run(*d, {&full.w}, x, dst, old);
                    ASSERT_TRUE(same_bits(want.data(), got.data(), want.size()))
                        << d->name << " bits " << (int)s.bits << " rows " << rows << " N " << n << " dst " << dst;
                }
            }
}

TEST(DeviceSparse, outliers_stay_out_of_the_codes_and_are_added_as_they_are)
{
    size_t index = 0;
    for (const Device *d : devices())
        for (const nbi_scheme &s : {scheme(8, 0, true, NBI_ACT_TOKEN, true), scheme(8, 0, true, NBI_ACT_TENSOR, true),
                                    scheme(4, 32, true, NBI_ACT_TOKEN, true)})
            for (size_t rows : {1u, 7u, 19u}) {
                const size_t n = 40 + index % 3 * 57, k = 160 + index % 2 * 2080;
                index++;
                Weight plain = make_weight(s, NBI_F32, n, k, index, true),
                       full = make_weight(s, NBI_F32, n, k, index, true);
                add_outliers(full.w, {0, 7, 8, 31, 100, (uint32_t)k - 1}, index);
                memcpy(plain.w.codes, full.w.codes, n * k);
                std::vector<float> x = noise(rows * k, 3), old = noise(rows * n, 4);
                for (size_t i = 0; i < x.size(); i++)
                    for (size_t o = 0; o < full.w.n_outliers; o++)
                        if (full.w.outlier[o] == i % k)
                            x[i] *= 50;
                x = d->round(x);
                for (nbi_dst dst : {NBI_DST_ACT, NBI_DST_RESIDUAL, NBI_DST_F32}) {
                    const std::vector<float> want = expected(*d, plain.w, full.w, x, dst, old),
                                             got = run(*d, {&full.w}, x, dst, old);
                    ASSERT_TRUE(same_bits(want.data(), got.data(), want.size()))
                        << d->name << " rows " << rows << " N " << n << " K " << k << " dst " << dst;
                }
            }
}

/* Three layers that read the same input, with the same outliers and with others: each as if it were alone. */
TEST(DeviceSparse, layers_side_by_side_are_each_as_alone)
{
    for (const Device *d : devices())
        for (int same : {0, 1})
            for (size_t rows : {3u, 12u}) {
                const nbi_scheme s = scheme(8, 0, true, NBI_ACT_TOKEN, true);
                const size_t k = 320, n[3] = {48, 33, 16};
                Weight w[3];
                std::vector<const nbi_weight *> all;
                for (uint64_t i = 0; i < 3; i++) {
                    w[i].w = make_weight(s, NBI_F32, n[i], k, i, false).w;
                    w[i].w = {};
                    Weight made = make_weight(s, NBI_F32, n[i], k, i, i == 1);
                    std::swap(w[i].w, made.w);
                    if (i < 2 || same)
                        add_outliers(w[i].w, {3, same ? 90u : 90u + (uint32_t)i, 319}, i);
                    all.push_back(&w[i].w);
                }
                const std::vector<float> x = d->round(noise(rows * k, 8)), old(rows * 97);
                const std::vector<float> together = run(*d, all, x, NBI_DST_F32, old);
                for (size_t i = 0, at = 0; i < 3; at += n[i++]) {
                    const std::vector<float> alone = run(*d, {all[i]}, x, NBI_DST_F32, std::vector<float>(rows * n[i]));
                    for (size_t r = 0; r < rows; r++)
                        ASSERT_TRUE(same_bits(&alone[r * n[i]], &together[r * 97 + at], n[i])) << d->name << " " << i;
                }
            }
}

TEST(DeviceSparse, a_row_has_the_same_bits_in_any_batch)
{
    for (const Device *d : devices())
        for (int outliers : {0, 1}) {
            const nbi_scheme s =
                outliers ? scheme(8, 0, true, NBI_ACT_TOKEN, true) : scheme(4, 16, false, NBI_ACT_NONE, true);
            const size_t n = 70, k = 2240, rows = 70;
            Weight w = make_weight(s, NBI_F32, n, k, 1, true);
            outliers ? add_outliers(w.w, {1, 5, 2239}, 2) : add_sparse(w.w, 0.01, 2);
            const std::vector<float> x = d->round(noise(rows * k, 3)),
                                     all = run(*d, {&w.w}, x, NBI_DST_F32, std::vector<float>(rows * n));
            for (size_t r : {1u, 2u, 7u, 8u, 9u, 15u, 33u}) {
                const std::vector<float> some =
                    run(*d, {&w.w}, std::vector<float>(x.begin(), x.begin() + (ptrdiff_t)(r * k)), NBI_DST_F32,
                        std::vector<float>(r * n));
                ASSERT_TRUE(same_bits(all.data(), some.data(), some.size())) << d->name << " rows " << r;
            }
            Backend two("scalar", 2);
            if (d->cpu()) { /* nor does the number of threads matter */
                nbi_linear *l = nullptr;
                std::vector<float> y(rows * n), scratch(two->scratch_bytes(two.be, rows, k) / 4 + 1);
                ASSERT_NB_OK(two->linear_create(two.be, &l, &w.w));
                ASSERT_NB_OK(two->linear(two.be, &l, 1, x.data(), NBI_FORM_FLOAT, rows, y.data(), n, NBI_DST_F32,
                                         scratch.data()));
                two->linear_free(two.be, l);
                ASSERT_TRUE(same_bits(all.data(), y.data(), y.size())) << d->name;
            }
        }
}

TEST(DeviceSparse, act_order_goes_with_single_numbers)
{
    for (const Device *d : devices())
        for (size_t rows : {2u, 11u}) {
            const nbi_scheme s = scheme(4, 16, false, NBI_ACT_NONE, true);
            const size_t n = 40, k = 160;
            Weight plain = make_weight(s, NBI_F32, n, k, 1, true), full = make_weight(s, NBI_F32, n, k, 1, true);
            for (Weight *w : {&plain, &full}) {
                w->w.scheme.act_order = true;
                w->w.perm = (uint32_t *)malloc(k * 4);
                for (size_t j = 0; j < k; j++)
                    w->w.perm[j] = (uint32_t)((j * 7 + 3) % k);
            }
            add_sparse(full.w, 0.03, 5);
            const std::vector<float> x = d->round(noise(rows * k, 3)), old(rows * n);
            const std::vector<float> want = expected(*d, plain.w, full.w, x, NBI_DST_F32, old),
                                     got = run(*d, {&full.w}, x, NBI_DST_F32, old);
            ASSERT_TRUE(same_bits(want.data(), got.data(), want.size())) << d->name << " rows " << rows;
        }
}

/* A NaN among the outliers is not lost with the codes that leave it out. */
TEST(DeviceSparse, a_nan_in_an_outlier_shows)
{
    for (const Device *d : devices()) {
        const size_t n = 20, k = 64;
        Weight w = make_weight(scheme(8, 0, true, NBI_ACT_TOKEN, true), NBI_F32, n, k, 1, false);
        add_outliers(w.w, {9}, 2);
        w.w.sparse.value[3] = 0;
        std::vector<float> x = noise(2 * k, 3);
        x[k + 9] = NAN;
        const std::vector<float> y = run(*d, {&w.w}, x, NBI_DST_F32, std::vector<float>(2 * n));
        for (size_t i = 0; i < y.size(); i++)
            EXPECT_EQ(i >= n, std::isnan(y[i])) << d->name << " " << i;
    }
}

TEST(DeviceSparse, no_outliers_at_all_is_the_plain_layer)
{
    for (const Device *d : devices()) {
        const nbi_scheme s = scheme(8, 0, true, NBI_ACT_TOKEN, true);
        Weight plain = make_weight(s, NBI_F32, 20, 64, 1, false), full = make_weight(s, NBI_F32, 20, 64, 1, false);
        add_outliers(full.w, {}, 2);
        const std::vector<float> x = d->round(noise(3 * 64, 3)), old(60),
                                 want = run(*d, {&plain.w}, x, NBI_DST_F32, old),
                                 got = run(*d, {&full.w}, x, NBI_DST_F32, old);
        EXPECT_TRUE(same_bits(want.data(), got.data(), want.size())) << d->name;
    }
}

TEST(DeviceSparse, what_does_not_hold_together_is_refused)
{
    for (const Device *d : devices()) {
        nbi_linear *l = nullptr;
        const auto refused = [&](const char *words, const std::function<void(nbi_weight &)> &spoil, bool outliers) {
            Weight w = make_weight(scheme(8, 0, true, NBI_ACT_TOKEN, true), NBI_F32, 20, 64, 1, false);
            outliers ? add_outliers(w.w, {3, 9}, 1) : add_sparse(w.w, 0.1, 1);
            spoil(w.w);
            EXPECT_FAILS(NB_EINVAL, words, (*d)->linear_create(d->be, &l, &w.w));
        };
        refused(
            "do not go with its scheme", [](nbi_weight &w) { w.scheme.sparse = false; }, false);
        refused(
            "do not hold its", [](nbi_weight &w) { w.sparse.row[20]++; }, false);
        refused(
            "ends before it begins", [](nbi_weight &w) { w.sparse.row[4] = w.sparse.row[5] + 1; }, false);
        refused(
            "expected ascending", [](nbi_weight &w) { w.sparse.col[w.sparse.row[1]] = 64; }, false);
        refused(
            "the columns of the outliers", [](nbi_weight &w) { w.outlier[1] = 10; }, true);
        refused(
            "INT8 activations", [](nbi_weight &w) { w.scheme.act = NBI_ACT_NONE; }, true);
    }
}
