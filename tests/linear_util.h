/* Linear layers on the CPU backend: running them between pages that fault, and the order of docs/numerics.md. */
#pragma once

#include "weight_util.h"

namespace
{

/* The same with codes that were made before: what a transform without signs leaves in the form that the layer likes best. */
inline void expect_same_from_codes(Backend &b, const nbi_linear *l, size_t n, size_t k, const float *x, size_t rows,
                                   const float *old, const std::vector<float> &expected)
{
    nbi_transform_spec spec = {k, nullptr};
    nbi_transform *t = nullptr;
    Guarded<char> act((b->act_bytes(b.be, rows, k) + 63) & ~(size_t)63),
        scratch((b->scratch_bytes(b.be, rows, k) + 63) & ~(size_t)63);
    std::vector<float> y(rows * n);
    if (old)
        std::copy(old, old + rows * n, y.begin());
    memcpy(act.data(), x, rows * k * sizeof *x);
    ASSERT_NB_OK(b->transform_create(b.be, &t, &spec));
    EXPECT_NB_OK(b->transform_in(b.be, t, act.data(), rows, NBI_FORM_INT8));
    /* the floats are not read again */
    std::fill_n((float *)(void *)act.data(), rows * k, std::numeric_limits<float>::quiet_NaN());
    EXPECT_NB_OK(b->linear(b.be, &l, 1, act.data(), NBI_FORM_INT8, rows, y.data(), n,
                           old ? NBI_DST_RESIDUAL : NBI_DST_ACT, scratch.data()));
    for (size_t i = 0; i < y.size(); i++)
        if (!(std::isnan(y[i]) && std::isnan(expected[i]))) {
            EXPECT_EQ(0, memcmp(&y[i], &expected[i], 4)) << "element " << i << " from codes";
        }
    EXPECT_TRUE(act.front_intact() && scratch.front_intact());
    b->transform_free(b.be, t);
}

/* y = linear(x) on a backend; x, y and scratch end at pages that fault. */
inline std::vector<float> run_linear(Backend &b, const nbi_linear *l, size_t n, size_t k, const float *x, size_t rows,
                                     const float *old = nullptr)
{
    Guarded<float> gx(rows * k), gy(rows * n);
    Guarded<char> scratch((b->scratch_bytes(b.be, rows, k) + 63) & ~(size_t)63);
    std::copy(x, x + rows * k, gx.data());
    if (old)
        std::copy(old, old + rows * n, gy.data());
    EXPECT_NB_OK(b->linear(b.be, &l, 1, gx.data(), NBI_FORM_FLOAT, rows, gy.data(), n,
                           old ? NBI_DST_RESIDUAL : NBI_DST_ACT, scratch.data()));
    EXPECT_TRUE(gx.front_intact() && gy.front_intact() && scratch.front_intact());
    if (b->linear_form(l) == NBI_FORM_INT8)
        expect_same_from_codes(b, l, n, k, x, rows, old, gy.copy());
    return gy.copy();
}

struct Packed {
    Backend &b;
    nbi_linear *l = nullptr;
    Packed(Backend &backend, const nbi_weight &w) : b(backend) { EXPECT_NB_OK(b->linear_create(b.be, &l, &w)); }
    ~Packed() { b->linear_free(b.be, l); }
    Packed(const Packed &) = delete;
};

inline std::vector<float> linear_on(Backend &b, const nbi_weight &w, const float *x, size_t rows,
                                    const float *old = nullptr)
{
    Packed p(b, w);
    return p.l ? run_linear(b, p.l, w.n, w.k, x, rows, old) : std::vector<float>();
}

/* The order of docs/numerics.md, written down a second time: what another backend has to reproduce. */
inline float canonical(const nbi_weight &w, const float *x, size_t n)
{
    const nbi_scheme &s = w.scheme;
    const size_t groups = s.bits ? nbi_scheme_groups(&s, w.k) : 1, len = w.k / groups;
    const bool integer = s.bits && s.act != NBI_ACT_NONE;
    std::vector<float> row(w.k);
    float acc = 0, sx = w.act_scale, most = 0;
    if (!s.bits)
        nbi_weight_row(&w, n, row.data());
    for (size_t k = 0; k < w.k; k++)
        most = std::max(most, std::fabs(x[k]));
    if (s.act == NBI_ACT_TOKEN)
        sx = most / 127;
    for (size_t g = 0; g < groups; g++) {
        const float scale = s.bits ? w.scales[n * groups + g] : 1;
        const float zero = s.bits ? (float)zero_of(w, n * groups + g) : 0;
        int64_t exact = 0;
        for (size_t c = 0; c < len; c += 512) {
            float part = 0;
            for (size_t k = g * len + c; k < g * len + std::min(len, c + 512); k++)
                if (integer) {
                    float q = std::nearbyint(x[k] / sx) + (float)w.act_zero;
                    q = std::min(127.0f, std::max(s.act == NBI_ACT_TOKEN ? -127.0f : -128.0f, q));
                    exact += ((int64_t)q - w.act_zero) * (w.codes[n * w.k + k] - (int)zero);
                } else
                    part = std::fma(s.bits ? (float)w.codes[n * w.k + k] - zero : row[k], x[k], part);
            if (!s.bits)
                acc = acc + part;
            else if (!integer)
                acc = std::fma(scale, part, acc);
        }
        if (integer)
            acc = std::fma((float)(int32_t)exact, scale, acc);
    }
    volatile float y = integer ? acc * sx : acc; /* not to be fused with the bias */
    return w.bias ? y + w.bias[n] : y;
}

/* Every instruction set that is here, with one thread and with two. */
inline std::vector<std::unique_ptr<Backend>> every_backend()
{
    std::vector<std::unique_ptr<Backend>> all;
    for (const std::string &isa : isas())
        for (int threads : {1, 2})
            all.push_back(std::make_unique<Backend>(isa.c_str(), threads));
    return all;
}

/* Each backend gives the bits of canonical(), in batches of these sizes and for the last row alone; two of the sizes do for scalar code
 * and for two threads. */
inline void expect_canonical(const std::vector<std::unique_ptr<Backend>> &backends, const Weight &w, size_t n, size_t k,
                             uint64_t seed, const std::vector<size_t> &sizes, const std::vector<size_t> &few_sizes,
                             const std::string &name)
{
    const size_t most = sizes.back();
    const std::vector<float> x = noise(most * k, seed);
    std::vector<float> want;
    for (size_t j = 0; j < most * n; j++)
        want.push_back(canonical(w.w, &x[j / n * k], j % n));
    for (auto &b : backends) {
        Packed p(*b, w.w);
        const bool few = b->be->threads == 2 || strstr(b->be->description, "scalar");
        for (size_t rows : few ? few_sizes : sizes)
            ASSERT_TRUE(same_bits(run_linear(*b, p.l, n, k, x.data(), rows).data(), want.data(), rows * n))
                << name << " N=" << n << " K=" << k << " rows=" << rows << " " << b->be->description;
        const size_t last = most - 1;
        ASSERT_TRUE(same_bits(run_linear(*b, p.l, n, k, &x[last * k], 1).data(), &want[last * n], n))
            << name << ": a row depends on its batch";
    }
}

} // namespace
