/* Transforms of activations beside linear layers, and rotated heads, on every device. */
#include "device_util.h"
#include "weight_util.h"

extern "C" {
#include "base/rotation.h"
}

namespace
{

std::vector<int8_t> signs(size_t n, uint64_t seed)
{
    std::vector<int8_t> s(n);
    for (size_t i = 0; i < n; i++)
        s[i] = nbi_rng(seed, i) & 1 ? 1 : -1;
    return s;
}

/* Rows of base/rotation.h, whose order of operations every device has. */
std::vector<float> rotated(std::vector<float> x, size_t k, const int8_t *before, const int8_t *after)
{
    EXPECT_NB_OK(nbi_rotate_rows(x.data(), x.size() / k, k, before, after, 1));
    return x;
}

class Transform
{
  public:
    Transform(const Device &d, size_t k, const int8_t *s) : d_(d)
    {
        const nbi_transform_spec spec = {k, s};
        EXPECT_NB_OK(d->transform_create(d.be, &t_, &spec));
    }
    ~Transform() { d_->transform_free(d_.be, t_); }
    Transform(const Transform &) = delete;
    Transform &operator=(const Transform &) = delete;
    const nbi_transform *get() const { return t_; }

  private:
    const Device &d_;
    nbi_transform *t_ = nullptr;
};

/* A GPU takes rows of whole pieces of 16. */
std::vector<size_t> orders(const Device &d)
{
    std::vector<size_t> all = {1, 2, 3, 6, 12, 16, 48, 96, 112, 256, 688, 768, 1000, 1024, 5632}, some;
    for (size_t k : all)
        if (d.cpu() || k % 16 == 0)
            some.push_back(k);
    return some;
}

} // namespace

TEST(DeviceTransform, inputs_have_the_bits_of_the_definition)
{
    for (const Device *d : devices())
        for (size_t k : orders(*d))
            for (size_t rows : {1u, 3u, 17u}) {
                const std::vector<int8_t> s = signs(k, k);
                const std::vector<float> x = d->round(noise(rows * k, k + 1, 3));
                Transform t(*d, k, s.data());
                Acts a(*d, rows, k, x.data());
                ASSERT_NB_OK((*d)->transform_in(d->be, t.get(), a.get(), rows, NBI_FORM_FLOAT));
                const std::vector<float> got = a.take(), want = d->round(rotated(x, k, s.data(), nullptr));
                ASSERT_TRUE(same_bits(want.data(), got.data(), got.size())) << d->name << " k=" << k;
            }
}

TEST(DeviceTransform, a_nan_stays_in_its_row)
{
    const size_t k = 96, rows = 3;
    for (const Device *d : devices()) {
        std::vector<float> x = d->round(noise(rows * k, 1));
        const std::vector<int8_t> s = signs(k, 2);
        std::vector<float> want = d->round(rotated(x, k, s.data(), nullptr));
        x[k + 5] = std::numeric_limits<float>::quiet_NaN();
        Transform t(*d, k, s.data());
        Acts a(*d, rows, k, x.data());
        ASSERT_NB_OK((*d)->transform_in(d->be, t.get(), a.get(), rows, NBI_FORM_FLOAT));
        const std::vector<float> got = a.take();
        for (size_t i = 0; i < rows * k; i++)
            ASSERT_TRUE(i / k == 1 ? std::isnan(got[i]) : got[i] == want[i]) << d->name << " " << i;
    }
}

/* A layer reads what is there: floats, which it quantizes, or the codes that the transform wrote. */
TEST(DeviceTransform, codes_are_those_of_the_rotated_floats)
{
    for (const Device *d : devices())
        for (size_t k : {64u, 96u, 768u, 5632u})
            for (size_t rows : {1u, 5u}) {
                const size_t n = 32;
                const std::vector<int8_t> s = signs(k, 3);
                Weight w = make_weight(scheme(8, 0, true, NBI_ACT_TOKEN, true), NBI_F32, n, k, 4, false);
                nbi_linear *l = nullptr;
                ASSERT_NB_OK((*d)->linear_create(d->be, &l, &w.w));
                Memory scratch(*d, (*d)->scratch_bytes(d->be, rows, k));
                Transform t(*d, k, s.data());
                const unsigned best = (*d)->linear_form(l);
                std::vector<std::vector<float>> results;
                for (unsigned forms : {(unsigned)NBI_FORM_FLOAT, best, best | NBI_FORM_FLOAT}) {
                    Acts a(*d, rows, k, noise(rows * k, 5).data());
                    Floats y(*d, std::vector<float>(rows * n));
                    ASSERT_NB_OK((*d)->transform_in(d->be, t.get(), a.get(), rows, forms));
                    ASSERT_NB_OK((*d)->linear(d->be, (const nbi_linear *const *)&l, 1, a.get(), forms, rows, y.get(), n,
                                              NBI_DST_F32, scratch.get()));
                    results.push_back(y.take<float>(rows * n));
                }
                for (const auto &r : results)
                    ASSERT_TRUE(same_bits(results[0].data(), r.data(), r.size())) << d->name << " k=" << k;
                (*d)->linear_free(d->be, l);
            }
}

TEST(DeviceTransform, outputs_go_where_they_belong)
{
    for (const Device *d : devices())
        for (size_t k : orders(*d)) {
            const size_t rows = 3, col = 16, ldy = k + 48;
            const std::vector<int8_t> s = signs(k, 6);
            const std::vector<float> x = noise(rows * k, 7), bias = noise(k, 8),
                                     before = d->round(noise(rows * ldy, 9));
            for (const int8_t *sign : {s.data(), (const int8_t *)nullptr})
                for (bool biased : {true, false})
                    for (nbi_dst dst : {NBI_DST_ACT, NBI_DST_RESIDUAL, NBI_DST_F32}) {
                        std::vector<float> want = before, part = sign ? rotated(x, k, nullptr, sign) : x;
                        Transform t(*d, k, sign);
                        Floats gx(*d, x), gb(*d, bias), fy(*d, before);
                        Acts ay(*d, rows, ldy, before.data());
                        void *y = dst == NBI_DST_ACT ? ay.get() : fy.get();
                        for (size_t r = 0; r < rows; r++)
                            for (size_t i = 0; i < k; i++) {
                                float v = part[r * k + i] + (biased ? bias[i] : 0.0f), *to = &want[r * ldy + col + i];
                                *to = dst == NBI_DST_RESIDUAL ? *to + v : dst == NBI_DST_ACT ? d->round(v) : v;
                            }
                        ASSERT_NB_OK((*d)->transform_out(d->be, t.get(), gx.f32(), rows, biased ? gb.f32() : nullptr, y,
                                                         col, ldy, dst));
                        const std::vector<float> got = dst == NBI_DST_ACT ? ay.take() : fy.take<float>(rows * ldy);
                        for (size_t i = 0; i < got.size(); i++) /* -0 + 0 is 0 where a bias is left out */
                            ASSERT_EQ(got[i], want[i]) << d->name << " k=" << k << " dst " << dst << " at " << i;
                    }
        }
}

TEST(DeviceTransform, what_it_cannot_do_is_refused)
{
    for (const Device *d : devices()) {
        nbi_transform *t = nullptr;
        const std::vector<int8_t> s = signs(4112, 1);
        nbi_transform_spec spec = {4112, s.data()}; /* 257 * 16 */
        ASSERT_NB_OK((*d)->transform_create(d->be, &t, &spec));
        (*d)->transform_free(d->be, t);
        (*d)->transform_free(d->be, nullptr);
        std::vector<int8_t> many(16 * 4099, 1);
        spec = {many.size(), many.data()};
        EXPECT_FAILS(NB_EUNSUPPORTED, "odd part is 4099", (*d)->transform_create(d->be, &t, &spec));
        EXPECT_EQ(nullptr, t);
        spec = {0, s.data()};
        EXPECT_FAILS(NB_EINVAL, "0 inputs", (*d)->transform_create(d->be, &t, &spec));
    }
}

/* Queries and keys behind RoPE; the cache holds keys as they stand in qkv afterwards. */
TEST(DeviceTransform, heads_are_rotated_behind_rope)
{
    const size_t heads = 3, n_kv = 1, rows = 5, pos0 = 13;
    for (const Device *d : devices())
        for (uint32_t D : {16u, 32u, 48u, 80u, 96u, 128u, 256u})
            for (nbi_kv_type type : {NBI_KV_F16, NBI_KV_INT8, NBI_KV_INT4}) {
                const size_t width = (heads + 2 * n_kv) * D, block = nbi_kv_block_bytes(type, D);
                const std::vector<float> x = d->round(noise(rows * width, D, 3));
                const std::vector<int32_t> pages = {1, 0};
                std::vector<float> inv_freq(D / 2);
                for (size_t i = 0; i < inv_freq.size(); i++)
                    inv_freq[i] = (float)std::pow(10000.0, -2.0 * (double)i / D);
                DeviceStep step(*d, rows, 1, 2, inv_freq, heads, n_kv);
                step.begin({{0, (uint32_t)rows, (uint32_t)pos0, pages.data()}});
                Memory k(*d, 2 * block), v(*d, 2 * block);
                std::vector<std::vector<float>> turned;
                for (bool rotate : {false, true}) {
                    nbi_kv_layer kv = {k.get(), v.get(), type, n_kv, D, rotate, nullptr, nullptr};
                    Acts qkv(*d, rows, width, x.data());
                    ASSERT_NB_OK((*d)->rope_append(d->be, step.get(), qkv.get(), heads, &kv));
                    turned.push_back(qkv.take());
                }
                const std::vector<float> &plain = turned[0], &got = turned[1],
                                         all = rotated(plain, D, nullptr, nullptr);
                for (size_t r = 0; r < rows; r++)
                    for (size_t h = 0; h < heads + 2 * n_kv; h++) {
                        const size_t at = r * width + h * D;
                        double lost = 0; /* the plain ones were rounded on their way to memory, the others were not */
                        for (size_t i = 0; i < D && !d->cpu(); i++)
                            lost += d->rounding(plain[at + i]);
                        for (size_t i = at; i < at + D; i++) {
                            const float want = h < heads + n_kv ? all[i] : plain[i];
                            const double most = lost * std::sqrt(2.0 / D);
                            ASSERT_NEAR(got[i], want, h < heads + n_kv ? most + d->rounding(std::fabs(want) + most) : 0)
                                << d->name << " D=" << D << " row " << r << " head " << h;
                        }
                    }
                const std::vector<unsigned char> stored = as_reference(*d, k.take<unsigned char>(2 * block), type, D);
                std::vector<unsigned char> want(2 * block);
                for (size_t r = 0; r < rows; r++)
                    nbi_kv_encode(type, want.data() + (size_t)pages[(pos0 + r) / 16] * block, (pos0 + r) % 16, D,
                                  &got[r * width + heads * D]);
                ASSERT_EQ(want, stored) << d->name << " D=" << D << " type " << type;
            }
}

/* Scores are those of heads that are not rotated, up to what the cache and activations round. */
TEST(DeviceTransform, rotated_heads_attend_alike)
{
    const size_t heads = 2, n_kv = 1, rows = 40;
    const uint32_t D = 64;
    for (const Device *d : devices()) {
        const size_t width = (heads + 2 * n_kv) * D, block = nbi_kv_block_bytes(NBI_KV_F16, D);
        const std::vector<int32_t> pages = {2, 0, 1};
        const std::vector<float> x = d->round(noise(rows * width, 5)), inv_freq(D / 2, 0.01f);
        std::vector<std::vector<float>> y;
        for (bool rotate : {false, true}) {
            DeviceStep step(*d, rows, 1, 3, inv_freq, heads, n_kv);
            step.begin({{0, (uint32_t)rows, 0, pages.data()}});
            Memory k(*d, 3 * block), v(*d, 3 * block);
            nbi_kv_layer kv = {k.get(), v.get(), NBI_KV_F16, n_kv, D, rotate, nullptr, nullptr};
            Acts qkv(*d, rows, width, x.data()), out(*d, rows, heads * D);
            ASSERT_NB_OK((*d)->rope_append(d->be, step.get(), qkv.get(), heads, &kv));
            ASSERT_NB_OK((*d)->attention(d->be, step.get(), qkv.get(), heads, &kv, 0.125f, out.get(), NBI_FORM_FLOAT));
            y.push_back(out.take());
        }
        /* a key of |k| loses 2^-11 of it (bfloat16: 2^-8) and so does its query; a score moves by that of |q| |k| / 8, and a
         * probability by as much of itself; values are up to 20 */
        double far = 0, most = 0;
        for (size_t i = 0; i < y[0].size(); i++) {
            far = std::max(far, (double)std::fabs(y[0][i] - y[1][i]));
            most = std::max(most, (double)std::fabs(y[0][i]));
        }
        EXPECT_GT(most, 1) << d->name;
        EXPECT_LT(far, (d->act == NBI_BF16 ? 0x1p-4 : 0x1p-7) * most) << d->name;
    }
}
