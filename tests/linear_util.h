/* Linear layers on the CPU backend: running them between pages that fault, and the order of docs/numerics.md. */
#pragma once

#include "weight_util.h"

namespace
{

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
        const int zero = s.bits && w.zeros ? w.zeros[n * groups + g] : 0;
        int64_t exact = 0;
        for (size_t c = 0; c < len; c += 512) {
            float part = 0;
            for (size_t k = g * len + c; k < g * len + std::min(len, c + 512); k++)
                if (integer) {
                    float q = std::nearbyint(x[k] / sx) + (float)w.act_zero;
                    q = std::min(127.0f, std::max(s.act == NBI_ACT_TOKEN ? -127.0f : -128.0f, q));
                    exact += ((int64_t)q - w.act_zero) * (w.codes[n * w.k + k] - zero);
                } else
                    part = std::fma(s.bits ? (float)(w.codes[n * w.k + k] - zero) : row[k], x[k], part);
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

} // namespace
