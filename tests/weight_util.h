/* Weights for the tests of linear layers, of every scheme, with random codes. */
#pragma once

#include "backend_util.h"

extern "C" {
#include "base/e8p.h"
}

namespace
{

struct Weight {
    nbi_weight w = {};
    std::vector<unsigned char> dense;
    Weight() = default;
    Weight(Weight &&o) noexcept : w(o.w), dense(std::move(o.dense)) { o.w = {}; }
    Weight(const Weight &) = delete;
    ~Weight() { nbi_weight_free(&w); }
};

inline Weight make_weight(nbi_scheme s, nbi_dtype dtype, size_t n, size_t k, uint64_t seed, bool bias)
{
    Weight out;
    nbi_weight &w = out.w;
    w.n = n;
    w.k = k;
    w.scheme = s;
    if (!s.bits) {
        w.dense_dtype = dtype;
        out.dense.resize(n * k * nbi_dtype_size(dtype));
        nbi_from_f32(out.dense.data(), dtype, noise(n * k, seed, 0.1f).data(), n * k);
        w.dense = out.dense.data();
    } else {
        EXPECT_NB_OK(nbi_weight_alloc(&w));
        size_t groups = nbi_scheme_groups(&s, k);
        int half = 1 << (s.bits - 1);
        for (size_t i = 0; i < n * k; i++)
            w.codes[i] = (int8_t)((int)(nbi_rng(seed, i) % (2u * (unsigned)half)) - half);
        if (w.words) {
            for (size_t i = 0; i < n * (k / 8) * (s.bits / 2); i++)
                w.words[i] = (uint16_t)nbi_rng(seed + 5, i);
            nbi_e8p_decode(w.codes, w.words, n * (k / 8), s.bits);
        }
        for (size_t i = 0; i < n * groups; i++) {
            w.scales[i] = 0.001f + 0.01f * nbi_rng_uniform(seed + 2, s.strategy == NBI_PER_TENSOR ? 0 : i);
            if (w.zeros)
                w.zeros[i] = (int8_t)((int)(nbi_rng(seed + 3, i) % (s.zero_frac ? 256u : 2u * (unsigned)half)) -
                                      (s.zero_frac ? 128 : half));
        }
        w.act_scale = 0.021f;
        w.act_zero = s.act == NBI_ACT_TENSOR && !s.act_symmetric ? 37 : 0;
    }
    if (bias) {
        w.bias = (float *)malloc(n * sizeof(float));
        std::vector<float> b = noise(n, seed + 4);
        std::copy(b.begin(), b.end(), w.bias);
    }
    return out;
}

/* Scales, if there are any, as a file of that type holds them. */
inline void round_scales(nbi_weight &w, nbi_dtype type)
{
    if (!w.scheme.bits)
        return;
    const size_t n = w.n * nbi_scheme_groups(&w.scheme, w.k);
    std::vector<float> stored(n);
    nbi_from_f32(stored.data(), type, w.scales, n);
    nbi_to_f32(w.scales, stored.data(), type, n);
}

/* Zero point number `at`. */
inline double zero_of(const nbi_weight &w, size_t at)
{
    return w.zeros ? w.zeros[at] / (w.scheme.zero_frac ? 16.0 : 1.0) : 0;
}

inline nbi_scheme scheme(unsigned bits, uint32_t group, bool sym, nbi_act act, bool act_sym, bool tensor = false)
{
    nbi_scheme s = {};
    s.bits = (uint8_t)bits;
    s.symmetric = sym;
    s.strategy = group ? NBI_PER_GROUP : (tensor ? NBI_PER_TENSOR : NBI_PER_CHANNEL);
    s.group = group;
    s.act = act;
    s.act_symmetric = act_sym;
    return s;
}

/* K, or the next one that a scheme has words for. */
inline size_t whole(const nbi_scheme &s, size_t k)
{
    return s.bits && s.kind == NBI_KIND_E8P ? (k + 7) / 8 * 8 : k;
}

/* A sparse part of one number a row. */
inline void add_number_beside_each_row(nbi_weight &w)
{
    const size_t n = w.n;
    w.scheme.sparse = true;
    w.scheme.nnz = n;
    w.sparse = {n, (uint32_t *)malloc((n + 1) * 4), (uint32_t *)malloc(n * 4), (float *)malloc(n * 4)};
    for (size_t i = 0; i <= n; i++)
        w.sparse.row[i] = (uint32_t)i;
    for (size_t i = 0; i < n; i++) {
        w.sparse.col[i] = (uint32_t)(i % w.k);
        w.sparse.value[i] = 0.5f;
    }
}

struct Case {
    nbi_scheme s;
    nbi_dtype dtype;
    std::string name() const
    {
        char buf[48];
        nbi_scheme_name(&s, buf);
        std::string n = s.bits ? std::string(buf) + (s.act == NBI_ACT_TOKEN ? " token" : "") : nbi_dtype_name(dtype);
        return n;
    }
};

/* Dense weights, and every combination of bits, group, symmetry and activations that all devices take. */
inline std::vector<Case> common_cases()
{
    std::vector<Case> v;
    for (nbi_dtype t : {NBI_F32, NBI_F16, NBI_BF16})
        v.push_back({nbi_scheme{}, t});
    for (unsigned bits : {8u, 4u})
        for (uint32_t group : {0u, 32u, 64u, 128u, 1u}) /* 1 stands for per-tensor */
            for (bool sym : {true, false}) {
                bool tensor = group == 1;
                uint32_t g = tensor ? 0 : group;
                v.push_back({scheme(bits, g, sym, NBI_ACT_NONE, true, tensor), NBI_F32});
                v.push_back({scheme(bits, g, sym, NBI_ACT_TOKEN, true, tensor), NBI_F32});
                v.push_back({scheme(bits, g, sym, NBI_ACT_TENSOR, true, tensor), NBI_F32});
                v.push_back({scheme(bits, g, sym, NBI_ACT_TENSOR, false, tensor), NBI_F32});
            }
    for (unsigned bits : {2u, 3u, 4u}) /* zero points in sixteenths */
        for (uint32_t group : {0u, 32u, 64u}) {
            nbi_scheme f = scheme(bits, group, false, NBI_ACT_NONE, true);
            f.zero_frac = 4;
            v.push_back({f, NBI_F32});
        }
    for (unsigned bits : {2u, 4u}) {
        nbi_scheme e8p = scheme(bits, 0, true, NBI_ACT_NONE, true, true);
        e8p.kind = NBI_KIND_E8P;
        v.push_back({e8p, NBI_F32});
    }
    return v;
}

} // namespace
