/* Schemes, random weights and folders for the tests of compressed-tensors. */
#pragma once

#include "testutil.h"

#include <cmath>
#include <random>

extern "C" {
#include "base/json.h"
#include "format/compressed_tensors.h"
}

inline const nbi_dtype FLOATS[] = {NBI_F32, NBI_F16, NBI_BF16};

inline float rounded(float f, nbi_dtype t)
{
    char b[4];
    nbi_from_f32(b, t, &f, 1);
    nbi_to_f32(&f, b, t, 1);
    return f;
}

inline nbi_scheme scheme(int bits, bool symmetric, nbi_strategy strategy, uint32_t group, nbi_act act = NBI_ACT_NONE,
                         bool act_symmetric = false)
{
    nbi_scheme s = {};
    s.bits = uint8_t(bits);
    s.symmetric = symmetric;
    s.strategy = strategy;
    s.group = group;
    s.act = act;
    s.act_symmetric = act == NBI_ACT_TOKEN || act_symmetric;
    return s;
}

inline std::string name_of(const nbi_scheme &s)
{
    char text[48];
    nbi_scheme_name(&s, text);
    return text;
}

/* Every scheme that the format can hold. */
inline std::vector<nbi_scheme> all_schemes()
{
    std::vector<nbi_scheme> v;
    for (int bits : {2, 3, 4, 8})
        for (bool sym : {true, false})
            for (uint32_t group : {0u, 1u, 32u, 64u, 128u})
                for (int act = 0; act < 4; act++)
                    v.push_back(scheme(bits, sym,
                                       group == 0   ? NBI_PER_TENSOR
                                       : group == 1 ? NBI_PER_CHANNEL
                                                    : NBI_PER_GROUP,
                                       group > 1 ? group : 0,
                                       act == 0   ? NBI_ACT_NONE
                                       : act == 1 ? NBI_ACT_TOKEN
                                                  : NBI_ACT_TENSOR,
                                       act == 2));
    return v;
}

inline bool same_scheme(const nbi_scheme &a, const nbi_scheme &b)
{
    return a.bits == b.bits && a.symmetric == b.symmetric && a.strategy == b.strategy && a.group == b.group &&
           a.act == b.act && a.act_symmetric == b.act_symmetric;
}

/* A weight that frees itself. */
struct Weight : nbi_weight {
    Weight() : nbi_weight{} {}
    ~Weight() { nbi_weight_free(this); }
    Weight(const Weight &) = delete;
    Weight &operator=(const Weight &) = delete;
    size_t groups() const { return nbi_scheme_groups(&scheme, k); }
};

/* Any codes, any zero points, scales that the file can hold. */
inline void randomize(Weight &w, size_t n, size_t k, const nbi_scheme &s, nbi_dtype scale_dtype, unsigned seed)
{
    std::mt19937 rng(seed);
    const int lo = -(1 << (s.bits - 1)), levels = 1 << s.bits;
    w.n = n;
    w.k = k;
    w.scheme = s;
    ASSERT_NB_OK(nbi_weight_alloc(&w));
    const bool whole = s.strategy == NBI_PER_TENSOR;
    for (size_t i = 0; i < n * k; i++)
        w.codes[i] = int8_t(lo + int(rng() % levels));
    for (size_t i = 0; i < n * w.groups(); i++) {
        w.scales[i] = whole && i ? w.scales[0] : rounded(std::ldexp(1.0f + float(rng() % 1000) / 999, -6), scale_dtype);
        if (w.zeros)
            w.zeros[i] = whole && i ? w.zeros[0] : int8_t(lo + int(rng() % levels));
    }
    if (s.act == NBI_ACT_TENSOR) {
        w.act_scale = rounded(0.0371f, scale_dtype);
        w.act_zero = s.act_symmetric ? 0 : int(rng() % 256) - 128;
    }
}

inline size_t k_of(const nbi_scheme &s)
{
    return s.strategy == NBI_PER_GROUP ? 3 * s.group : 37;
}

/* A checkpoint and what is needed to make one. */
struct Folder {
    TempDir d;
    nbi_checkpoint *c = nullptr;
    ~Folder() { nbi_checkpoint_close(c); }
    void write(const Weight &w, nbi_dtype t, const char *name = "m")
    {
        nbi_st_writer *out = nullptr;
        ASSERT_NB_OK(nbi_st_writer_create(&out, d.path().c_str(), 0));
        EXPECT_NB_OK(nbi_ct_declare(out, name, w.n, w.k, &w.scheme, t));
        EXPECT_NB_OK(nbi_ct_write(out, name, &w, t));
        EXPECT_NB_OK(nbi_st_finish(out));
        nbi_st_writer_free(out);
        open();
    }
    void open()
    {
        nbi_checkpoint_close(c);
        c = nullptr;
        ASSERT_NB_OK(nbi_checkpoint_open(&c, d.path().c_str()));
    }
    const nbi_tensor *operator[](const char *name) const { return nbi_checkpoint_find(c, name); }
};

/* One tensor of a checkpoint that a test makes by hand. */
struct Raw {
    std::string name;
    nbi_dtype dtype;
    std::vector<size_t> shape;
    std::string data;
};
template <class T>
std::string bytes_of(const std::vector<T> &v)
{
    return std::string(reinterpret_cast<const char *>(v.data()), v.size() * sizeof(T));
}
inline void write_raw(const std::string &dir, const std::vector<Raw> &tensors)
{
    nbi_st_writer *out = nullptr;
    ASSERT_NB_OK(nbi_st_writer_create(&out, dir.c_str(), 0));
    for (auto &t : tensors)
        EXPECT_NB_OK(nbi_st_declare(out, t.name.c_str(), t.dtype, uint32_t(t.shape.size()), t.shape.data()));
    for (auto &t : tensors)
        EXPECT_NB_OK(nbi_st_write(out, t.name.c_str(), t.data.data(), t.data.size()));
    EXPECT_NB_OK(nbi_st_finish(out));
    nbi_st_writer_free(out);
}
