/* Linear layers on a device, for the tests that run on all of them: packed from an nbi_weight, and computed. */
#pragma once

#include "device_util.h"
#include "weight_util.h"

namespace
{

struct Packed {
    const Device &d;
    nbi_linear *l = nullptr;
    Packed(const Device &device, const nbi_weight &w) : d(device) { EXPECT_NB_OK(d->linear_create(d.be, &l, &w)); }
    ~Packed() { d->linear_free(d.be, l); }
    Packed(const Packed &) = delete;
};

/* What linear() writes for a destination; `old` is what y held.  ldy is the sum of the layers' N and `gap`. */
inline std::vector<float> run(const Device &d, const std::vector<const nbi_linear *> &l, size_t n, size_t k,
                              const float *x, size_t rows, nbi_dst dst = NBI_DST_F32,
                              const std::vector<float> &old = {}, size_t gap = 0)
{
    const size_t ldy = n + gap;
    Acts ax(d, rows, k, x), acts(d, dst == NBI_DST_ACT ? rows : 1, ldy);
    Floats floats(d, dst == NBI_DST_ACT ? std::vector<float>() : old.empty() ? std::vector<float>(rows * ldy) : old);
    Memory scratch(d, d->scratch_bytes(d.be, rows, k));
    EXPECT_NB_OK(d->linear(d.be, l.data(), l.size(), ax.get(), NBI_FORM_FLOAT, rows,
                           dst == NBI_DST_ACT ? acts.get() : floats.get(), ldy, dst, scratch.get()));
    return dst == NBI_DST_ACT ? acts.take() : floats.take<float>(rows * ldy);
}

inline std::vector<float> run(const Packed &p, const nbi_weight &w, const std::vector<float> &x, size_t rows,
                              nbi_dst dst = NBI_DST_F32, const std::vector<float> &old = {})
{
    return p.l ? run(p.d, {p.l}, w.n, w.k, x.data(), rows, dst, old) : std::vector<float>(rows * w.n);
}

} // namespace
