/* Operations on rows, memory and activations, on every device. */
#include "device_util.h"
#include "weight_util.h"

namespace
{

const size_t kRows[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 31, 64, 129};

Device &scalar()
{
    static Device d("cpu", "scalar");
    return d;
}

std::vector<float> rmsnorm(const Device &d, const std::vector<float> &x, const std::vector<float> &weight, size_t rows)
{
    Floats gx(d, x), gw(d, weight);
    Acts y(d, rows, weight.size());
    EXPECT_NB_OK(d->rmsnorm(d.be, gx.f32(), gw.f32(), 1e-6f, rows, weight.size(), y.get(), NBI_FORM_FLOAT));
    return y.take();
}

std::vector<float> swiglu(const Device &d, const std::vector<float> &gate_up, size_t rows, size_t n)
{
    Acts x(d, rows, 2 * n, gate_up.data()), y(d, rows, n);
    EXPECT_NB_OK(d->swiglu(d.be, x.get(), rows, n, y.get(), NBI_FORM_FLOAT));
    return y.take();
}

} // namespace

TEST(DeviceRows, rmsnorm_agrees_with_double)
{
    for (const Device *d : devices())
        for (size_t k : {16u, 48u, 64u, 272u, 1008u, 4096u, 8208u, 17u}) {
            if (!d->cpu() && k % 16)
                continue;
            const size_t rows = 5;
            std::vector<float> x = noise(rows * k, k), weight = noise(k, k + 1), y = rmsnorm(*d, x, weight, rows);
            for (size_t r = 0; r < rows; r++) {
                double sum = 0;
                for (size_t i = 0; i < k; i++)
                    sum += (double)x[r * k + i] * (double)x[r * k + i];
                /* Steps of one of the parallel sums, and of the tree that joins them; mean and eps.  Half of all that
                 * passes the root; then root, division, two products, and one for the second order. */
                const double lanes = d->cpu() ? (double)((k + 15) / 16) + 4 : (double)((k + 1023) / 1024) + 10;
                const double steps = (lanes + 2) / 2 + 4 + 1, norm = std::sqrt(sum / (double)k + (double)1e-6f);
                for (size_t i = 0; i < k; i++) {
                    const double want = (double)x[r * k + i] / norm * (double)weight[i];
                    const double error = steps * U * std::fabs(want) + 0x1p-149;
                    ASSERT_NEAR(y[r * k + i], want, error + d->rounding(std::fabs(want) + error))
                        << d->name << " k=" << k << " row " << r;
                }
            }
        }
}

TEST(DeviceRows, swiglu_has_the_bits_of_the_scalar_kernels_rounded)
{
    for (const Device *d : devices())
        for (size_t n : {16u, 48u, 512u, 5008u, 33u}) {
            if (!d->cpu() && n % 16)
                continue;
            const size_t rows = 3;
            std::vector<float> x = noise(rows * 2 * n, n, 5);
            x[0] = 200;
            x[1] = -200;
            x[2] = -88.75f;
            x = d->round(x);
            std::vector<float> y = swiglu(*d, x, rows, n), want = d->round(swiglu(scalar(), x, rows, n));
            ASSERT_TRUE(same_bits(want.data(), y.data(), y.size())) << d->name << " n=" << n;
        }
}

TEST(DeviceRows, a_row_has_the_same_bits_in_any_batch)
{
    const size_t k = 176, most = 129;
    for (const Device *d : devices()) {
        std::vector<float> x = noise(most * k, 1), weight = noise(k, 2), gu = noise(most * 2 * k, 3, 3);
        std::vector<float> normed = rmsnorm(*d, x, weight, most), act = swiglu(*d, gu, most, k);
        for (size_t rows : kRows) {
            std::vector<float> some(x.begin(), x.begin() + (ptrdiff_t)(rows * k));
            std::vector<float> y = rmsnorm(*d, some, weight, rows);
            ASSERT_TRUE(same_bits(normed.data(), y.data(), y.size())) << d->name << " rows=" << rows;
            y = swiglu(*d, gu, rows, k);
            ASSERT_TRUE(same_bits(act.data(), y.data(), y.size())) << d->name << " rows=" << rows;
        }
    }
}

/* A producer may write the codes that a layer wants: the layer's result is that of the floats. */
TEST(DeviceRows, the_form_that_travels_does_not_change_a_result)
{
    const size_t k = 96, n = 40;
    for (const Device *d : devices())
        for (size_t rows : {1u, 3u, 8u, 9u, 33u}) {
            Weight w = make_weight(scheme(8, 32, false, NBI_ACT_TOKEN, true), NBI_F32, n, k, 4, true);
            nbi_linear *l = nullptr;
            ASSERT_NB_OK((*d)->linear_create(d->be, &l, &w.w));
            Floats x(*d, noise(rows * k, 5)), weight(*d, noise(k, 6));
            Acts gu(*d, rows, 2 * k, noise(rows * 2 * k, 7, 3).data());
            Memory scratch(*d, (*d)->scratch_bytes(d->be, rows, k));
            const unsigned best = (*d)->linear_form(l);
            std::vector<std::vector<float>> from_norm, from_swiglu;
            for (unsigned forms : {(unsigned)NBI_FORM_FLOAT, best, best | NBI_FORM_FLOAT})
                for (bool norm : {true, false}) {
                    Acts h(*d, rows, k);
                    Floats y(*d, std::vector<float>(rows * n));
                    if (norm)
                        ASSERT_NB_OK((*d)->rmsnorm(d->be, x.f32(), weight.f32(), 1e-5f, rows, k, h.get(), forms));
                    else
                        ASSERT_NB_OK((*d)->swiglu(d->be, gu.get(), rows, k, h.get(), forms));
                    const nbi_linear *layer = l;
                    ASSERT_NB_OK(
                        (*d)->linear(d->be, &layer, 1, h.get(), forms, rows, y.get(), n, NBI_DST_F32, scratch.get()));
                    (norm ? from_norm : from_swiglu).push_back(y.take<float>(rows * n));
                }
            for (const auto *all : {&from_norm, &from_swiglu})
                for (const auto &y : *all)
                    ASSERT_TRUE(same_bits((*all)[0].data(), y.data(), y.size())) << d->name << " rows=" << rows;
            (*d)->linear_free(d->be, l);
        }
}

TEST(DeviceRows, gather_moves_the_rows_whose_logits_are_wanted)
{
    const size_t k = 48;
    for (const Device *d : devices()) {
        const std::vector<std::vector<uint32_t>> wanted = {{0}, {5}, {0, 2, 5}, {0, 1, 2, 3, 4, 5}};
        std::vector<float> x = noise(6 * k, 1);
        int32_t page = 0;
        DeviceStep step(*d, 6, 1, 1, {1.0f});
        Floats gx(*d, x);
        for (const auto &rows : wanted) {
            step.begin({{0, 6, 0, &page}}, {}, rows);
            Memory y(*d, 6 * k * 4);
            ASSERT_NB_OK((*d)->gather(d->be, step.get(), gx.f32(), k, y.f32()));
            std::vector<float> got = y.take<float>(rows.size() * k);
            for (size_t i = 0; i < rows.size(); i++)
                ASSERT_TRUE(same_bits(&x[rows[i] * k], &got[i * k], k)) << d->name;
        }
    }
}

TEST(DeviceRows, nan_and_infinity_stay_in_their_row)
{
    const size_t k = 64, rows = 4;
    for (const Device *d : devices()) {
        std::vector<float> x = noise(rows * k, 1), weight(k, 1.0f);
        x[1 * k + 3] = NAN;
        x[2 * k + 63] = INFINITY;
        std::vector<float> y = rmsnorm(*d, x, weight, rows);
        for (size_t i = 0; i < k; i++) {
            EXPECT_TRUE(std::isfinite(y[i])) << d->name;
            EXPECT_TRUE(std::isnan(y[k + i])) << d->name;
            EXPECT_TRUE(std::isfinite(y[3 * k + i])) << d->name;
        }
        EXPECT_TRUE(std::isnan(y[2 * k + 63])) << d->name;
        std::vector<float> g = swiglu(*d, d->round(noise(rows * 2 * k, 2)), rows, k);
        for (float v : g)
            EXPECT_TRUE(std::isfinite(v));
    }
}

TEST(DeviceRows, activations_are_rounded_to_nearest_and_nothing_else)
{
    for (const Device *d : devices())
        for (size_t n : {1u, 7u, 16u, 255u, 1000u, 4096u}) {
            std::vector<float> x = noise(n, n, 3);
            const float special[] = {NAN, INFINITY, -INFINITY, 65519.9f, 65520.0f, 1e38f, 0x1p-25f, 0x1.8p-25f, -0.0f};
            for (size_t i = 0; i < n && i < 9 && n > 9; i++)
                x[i] = special[i];
            Acts a(*d, 1, n, x.data());
            std::vector<float> y = a.take(), want = d->round(x);
            ASSERT_TRUE(same_bits(want.data(), y.data(), n)) << d->name << " n=" << n;
        }
}

TEST(DeviceRows, memory_is_zeroed_aligned_and_moves_bytes)
{
    for (const Device *d : devices()) {
        for (size_t bytes : {0u, 1u, 63u, 64u, 1000u, 3000000u}) {
            Memory m(*d, bytes);
            EXPECT_EQ(0u, (uintptr_t)m.get() % 64);
            std::vector<unsigned char> v = m.take<unsigned char>(bytes);
            EXPECT_TRUE(std::all_of(v.begin(), v.end(), [](unsigned char c) { return c == 0; })) << d->name;
            for (size_t i = 0; i < bytes; i++)
                v[i] = (unsigned char)nbi_rng(1, i);
            m.put(v);
            EXPECT_EQ(v, m.take<unsigned char>(bytes)) << d->name;
        }
        (*d)->release(d->be, nullptr);
        void *p = nullptr;
        EXPECT_FAILS(NB_ENOMEM, "a test", (*d)->alloc(d->be, &p, (size_t)1 << 60, "a test"));
        EXPECT_EQ(nullptr, p);
        EXPECT_GT((*d)->free_bytes(d->be), (size_t)1 << 20);
        EXPECT_EQ(SIZE_MAX, (*d)->act_bytes(d->be, SIZE_MAX / 64, 4096)) << d->name;
        EXPECT_EQ(SIZE_MAX, (*d)->scratch_bytes(d->be, SIZE_MAX / 64, 4096)) << d->name;
        EXPECT_LE((*d)->scratch_bytes(d->be, 3, 96), (*d)->scratch_bytes(d->be, 4, 128));
    }
}

TEST(DeviceRows, shapes_without_a_kernel_are_refused_with_a_sentence)
{
    for (const Device *d : devices()) {
        if (d->cpu())
            continue;
        Floats x(*d, std::vector<float>(64)), w(*d, std::vector<float>(64));
        Acts y(*d, 2, 64);
        EXPECT_FAILS(NB_EUNSUPPORTED, "multiple of 16",
                     (*d)->rmsnorm(d->be, x.f32(), w.f32(), 1, 1, 17, y.get(), NBI_FORM_FLOAT));
        EXPECT_FAILS(NB_EUNSUPPORTED, "multiple of 16", (*d)->swiglu(d->be, y.get(), 1, 17, y.get(), NBI_FORM_FLOAT));
    }
}
