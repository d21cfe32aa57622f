/* Quantization on the device against csrc/quant on the host: every code, scale, zero point, range, bin, clip and Gram matrix has
 * the same bits.  That csrc/quant is right is for quant_test and observer_test to show. */
#include "cuda_util.h"

#include <cfloat>
#include <memory>

extern "C" {
#include "backend/quant_ops.h"
#include "format/compressed_tensors.h"
#include "quant/clip.h"
#include "quant/gram.h"
#include "quant/grid.h"
#include "quant/observer.h"
#include "quant/range.h"
#include "quant/rtn.h"
#include "quant/rtn_device.h"
}

namespace
{

/* What nbi_rtn_on() needs of a backend, also where the rest of it is not linked. */
nbi_backend *backend()
{
    static const nbi_backend_ops memory = [] {
        nbi_backend_ops o = {};
        o.alloc = nbi_cuda_alloc;
        o.release = nbi_cuda_release;
        o.upload = nbi_cuda_upload;
        o.download = nbi_cuda_download;
        return o;
    }();
    nbi_backend *b = &device()->base;
    if (!b->ops)
        b->ops = &memory;
    return b;
}

const nbi_quant_ops &ops()
{
    return *backend()->quant;
}

const nbi_dtype kTypes[] = {NBI_F32, NBI_F16, NBI_BF16};

/* An array on the host, as fp32 and as it is stored, and on the device. */
struct Array {
    size_t rows, k;
    nbi_dtype dtype;
    std::vector<float> x; /* what the stored type holds */
    std::vector<char> raw;
    std::unique_ptr<Buffer<char>> there;
    Array(size_t r, size_t c, const std::vector<float> &v, nbi_dtype t)
        : rows(r), k(c), dtype(t), x(v.size()), raw(v.size() * nbi_dtype_size(t))
    {
        nbi_from_f32(raw.data(), t, v.data(), v.size());
        nbi_to_f32(x.data(), raw.data(), t, v.size());
        there = std::make_unique<Buffer<char>>(raw);
    }
    nbi_matrix matrix() const { return {there->ptr(), dtype, rows, k}; }
    nbi_weight weight() const
    {
        nbi_weight w = {};
        w.n = rows;
        w.k = k;
        w.dense_dtype = dtype;
        w.dense = raw.data();
        return w;
    }
};

/* Inputs that break quantizers: by name, for the messages. */
struct Kind {
    const char *name;
    std::vector<float> (*make)(size_t n);
};

const Kind kKinds[] = {
    {"noise", [](size_t n) { return noise(n, 1, 0.05f); }},
    {"heavy tails",
     [](size_t n) {
         auto v = noise(n, 2, 1);
         for (size_t i = 0; i < n; i++)
             v[i] = v[i] * v[i] * v[i] * (nbi_rng(3, i) % 31 == 0 ? 100.0f : 0.01f);
         return v;
     }},
    {"positive",
     [](size_t n) {
         auto v = noise(n, 4, 1);
         for (float &f : v)
             f = std::fabs(f) + 0.25f;
         return v;
     }},
    {"ties", /* multiples of half a step: where rounding to even shows */
     [](size_t n) {
         std::vector<float> v(n);
         for (size_t i = 0; i < n; i++)
             v[i] = (float)((int)(nbi_rng(5, i) % 31) - 15) * 0.5f;
         return v;
     }},
    {"zeros", [](size_t n) { return std::vector<float>(n, 0.0f); }},
    {"signed zeros and little else",
     [](size_t n) {
         std::vector<float> v(n, -0.0f);
         for (size_t i = 0; i < n; i += 37)
             v[i] = nbi_rng(6, i) % 2 ? 1e-7f : 0.0f;
         return v;
     }},
    {"denormals",
     [](size_t n) {
         auto v = noise(n, 7, 1);
         for (float &f : v)
             f *= 0x1p-134f;
         return v;
     }},
    {"around the least normal number",
     [](size_t n) {
         auto v = noise(n, 8, 1);
         for (float &f : v)
             f *= 0x1p-119f;
         return v;
     }},
    {"small",
     [](size_t n) {
         auto v = noise(n, 9, 1);
         for (float &f : v)
             f *= 0x1p-20f;
         return v;
     }},
    {"huge",
     [](size_t n) {
         auto v = noise(n, 10, 1);
         for (float &f : v)
             f = std::fmax(-6e4f, std::fmin(6e4f, f * 1e4f));
         return v;
     }},
};

/* Codes, scales and zero points of nbi_rtn(). */
struct Quantized {
    nbi_weight w = {};
    Quantized() = default;
    Quantized(const Quantized &) = delete;
    ~Quantized() { nbi_weight_free(&w); }
};

nbi_scheme scheme_of(unsigned bits, bool symmetric, nbi_strategy strategy, uint32_t group)
{
    nbi_scheme s = {};
    s.bits = (uint8_t)bits;
    s.symmetric = symmetric;
    s.strategy = strategy;
    s.group = strategy == NBI_PER_GROUP ? group : 0;
    return s;
}

std::string text(const nbi_scheme &s, nbi_dtype scale, const Array &a, const char *kind)
{
    char name[48];
    nbi_scheme_name(&s, name);
    return std::string(name) + ", scales " + nbi_dtype_name(scale) + ", " + std::to_string(a.rows) + " x " +
           std::to_string(a.k) + " " + nbi_dtype_name(a.dtype) + ", " + kind;
}

::testing::AssertionResult same_weight(const nbi_weight &a, const nbi_weight &b)
{
    const size_t groups = nbi_scheme_groups(&a.scheme, a.k);
    for (size_t i = 0; i < a.n * a.k; i++)
        if (a.codes[i] != b.codes[i])
            return ::testing::AssertionFailure()
                   << "code " << i / a.k << "," << i % a.k << " is " << (int)a.codes[i] << " and " << (int)b.codes[i];
    if (auto r = same_bits(a.scales, b.scales, a.n * groups); !r)
        return r << " (scales)";
    if (!a.zeros != !b.zeros || (a.zeros && memcmp(a.zeros, b.zeros, a.n * groups)))
        return ::testing::AssertionFailure() << "zero points differ";
    return ::testing::AssertionSuccess();
}

/* The device and the host agree, also in what they refuse and why. */
void expect_same_rtn(const Array &a, const nbi_scheme &s, nbi_dtype scale, const char *kind)
{
    Quantized want, got;
    bool there = false;
    const nbi_weight w = a.weight();
    const nb_status st = nbi_rtn(&want.w, &w, &s, scale, 1);
    const std::string why = st == NB_OK ? "" : nb_last_error();
    ASSERT_EQ(st, nbi_rtn_on(backend(), &got.w, &w, &s, scale, 1, &there)) << trouble() << text(s, scale, a, kind);
    if (st != NB_OK) {
        EXPECT_EQ(why, nb_last_error());
        return;
    }
    EXPECT_TRUE(there) << text(s, scale, a, kind);
    EXPECT_TRUE(same_weight(want.w, got.w)) << text(s, scale, a, kind);
}

} // namespace

TEST(CudaRtn, has_the_bits_of_the_host_for_every_scheme)
{
    for (const Kind &kind : kKinds)
        for (nbi_dtype t : kTypes) {
            const Array a(5, 256, kind.make(5 * 256), t);
            const nbi_dtype scale = kTypes[(t + 2 + (&kind - kKinds)) % 3];
            for (unsigned bits : {4u, 8u})
                for (bool symmetric : {true, false}) {
                    for (uint32_t group : {32u, 64u, 128u})
                        expect_same_rtn(a, scheme_of(bits, symmetric, NBI_PER_GROUP, group), scale, kind.name);
                    expect_same_rtn(a, scheme_of(bits, symmetric, NBI_PER_CHANNEL, 0), scale, kind.name);
                    expect_same_rtn(a, scheme_of(bits, symmetric, NBI_PER_TENSOR, 0), scale, kind.name);
                }
        }
}

TEST(CudaRtn, has_the_bits_of_the_host_for_odd_shapes)
{
    const struct {
        size_t n, k;
        uint32_t group;
    } shapes[] = {{1, 1, 1},    {3, 7, 7},     {17, 24, 8},   {33, 40, 4},    {9, 63, 21},  {2, 300, 100},
                  {1, 1000, 8}, {3, 1100, 11}, {2, 4104, 72}, {3, 2051, 293}, {70, 16, 16}, {1, 4099, 4099}};
    for (const auto &s : shapes) {
        const Array a(s.n, s.k, noise(s.n * s.k, s.k), kTypes[s.k % 3]);
        for (unsigned bits : {4u, 8u})
            for (nbi_strategy strategy : {NBI_PER_GROUP, NBI_PER_CHANNEL, NBI_PER_TENSOR})
                expect_same_rtn(a, scheme_of(bits, bits == 4, strategy, s.group), NBI_BF16, "noise");
    }
}

TEST(CudaRtn, refuses_what_the_host_refuses_with_the_same_words)
{
    for (nbi_strategy strategy : {NBI_PER_GROUP, NBI_PER_CHANNEL, NBI_PER_TENSOR})
        for (float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
            const nbi_scheme s = scheme_of(4, strategy == NBI_PER_GROUP, strategy, 32);
            for (size_t at : {(size_t)0, (size_t)70, (size_t)(6 * 64 - 1)}) {
                auto v = noise(6 * 64, 1);
                v[at] = bad;
                v[6 * 64 - 1] = std::isnan(bad) ? bad : v[6 * 64 - 1];
                expect_same_rtn(Array(6, 64, v, NBI_F32), s, NBI_F16, "not finite");
            }
        }
    auto v = noise(6 * 64, 1);
    v[3 * 64 + 1] = 3e38f; /* too much for scales in F16, and just enough for F32 */
    for (nbi_dtype scale : kTypes)
        for (nbi_strategy strategy : {NBI_PER_GROUP, NBI_PER_CHANNEL, NBI_PER_TENSOR})
            for (bool symmetric : {true, false})
                expect_same_rtn(Array(6, 64, v, NBI_F32), scheme_of(8, symmetric, strategy, 32), scale, "huge");
    v[3 * 64 + 2] = -3e38f; /* a span beyond FLT_MAX */
    for (bool symmetric : {true, false})
        expect_same_rtn(Array(6, 64, v, NBI_F32), scheme_of(4, symmetric, NBI_PER_CHANNEL, 0), NBI_F32, "huge");
}

/* One step of the door by itself: more than one slab, and codes that are not packed. */
TEST(CudaRtn, packed_and_plain_codes_are_the_same)
{
    const Array a(7, 96, noise(7 * 96, 3), NBI_F16);
    const nbi_scheme s = scheme_of(4, false, NBI_PER_GROUP, 24);
    const nbi_matrix m = a.matrix();
    Buffer<int8_t> codes(7 * 96), zeros(7 * 4);
    Buffer<uint32_t> packed(7 * 12);
    Buffer<float> scales(7 * 4);
    ASSERT_TRUE(ops().packs(&s, 96));
    const nbi_codes plain = {codes.ptr(), nullptr, scales.ptr(), zeros.ptr()};
    const nbi_codes words = {nullptr, packed.ptr(), scales.ptr(), zeros.ptr()};
    ASSERT_NB_OK(ops().rtn(backend(), &m, &s, NBI_F16, nullptr, &plain)) << trouble();
    const auto scales_of_plain = scales.get();
    ASSERT_NB_OK(ops().rtn(backend(), &m, &s, NBI_F16, nullptr, &words)) << trouble();
    EXPECT_EQ(scales_of_plain, scales.get());
    std::vector<int8_t> unpacked(7 * 96);
    nbi_ct_unpack(unpacked.data(), packed.get().data(), unpacked.size(), 4);
    EXPECT_EQ(codes.get(), unpacked);
}

TEST(CudaRtn, says_what_it_cannot_do)
{
    const Array a(2, 64, noise(128, 3), NBI_F16);
    nbi_matrix m = a.matrix();
    Buffer<int8_t> codes(128);
    Buffer<float> scales(2);
    const nbi_codes out = {codes.ptr(), nullptr, scales.ptr(), nullptr};
    nbi_scheme s = scheme_of(3, true, NBI_PER_CHANNEL, 0);
    EXPECT_FAILS(NB_EUNSUPPORTED, "3 bits", ops().rtn(backend(), &m, &s, NBI_F16, nullptr, &out));
    s = scheme_of(8, true, NBI_PER_GROUP, 48);
    EXPECT_FAILS(NB_EINVAL, "groups of 48", ops().rtn(backend(), &m, &s, NBI_F16, nullptr, &out));
    m.rows = (size_t)1 << 33;
    s = scheme_of(8, true, NBI_PER_CHANNEL, 0);
    EXPECT_FAILS(NB_ELIMIT, "too large", ops().rtn(backend(), &m, &s, NBI_F16, nullptr, &out));
    m = a.matrix();
    m.dtype = NBI_I8;
    EXPECT_FAILS(NB_EINVAL, "I8", ops().rtn(backend(), &m, &s, NBI_F16, nullptr, &out));
}

/* ---- ranges ---- */

namespace
{

struct Range {
    std::vector<float> lo, hi, absmax;
    size_t bad;
};

/* By definition, element by element. */
Range range_by_hand(const Array &a, nbi_range_axis axis, size_t group)
{
    const size_t n = axis == NBI_RANGE_GROUP ? a.rows * (a.k / group) : axis == NBI_RANGE_COLUMN ? a.k : 1;
    std::vector<std::vector<float>> members(n);
    Range r = {std::vector<float>(n), std::vector<float>(n), std::vector<float>(n), SIZE_MAX};
    for (size_t i = 0; i < a.rows * a.k; i++) {
        members[axis == NBI_RANGE_GROUP ? i / group : axis == NBI_RANGE_COLUMN ? i % a.k : 0].push_back(a.x[i]);
        if (!std::isfinite(a.x[i]) && r.bad == SIZE_MAX)
            r.bad = i / a.k;
    }
    for (size_t i = 0; i < n; i++) {
        if (!nbi_range_of(members[i].data(), members[i].size(), &r.lo[i], &r.hi[i]))
            r.lo[i] = r.hi[i] = r.absmax[i] = NAN;
        else
            r.absmax[i] = std::fmax(-r.lo[i], r.hi[i]);
    }
    return r;
}

void expect_same_range(const Array &a, nbi_range_axis axis, size_t group, const char *kind)
{
    const Range want = range_by_hand(a, axis, group);
    const size_t n = want.lo.size();
    std::vector<float> lo(n), hi(n), top(n);
    size_t bad = 7;
    const nbi_matrix m = a.matrix();
    const std::string what = std::string(kind) + ", axis " + std::to_string(axis) + ", " + std::to_string(a.rows) +
                             " x " + std::to_string(a.k) + " in groups of " + std::to_string(group);
    ASSERT_NB_OK(ops().range(backend(), &m, axis, group, lo.data(), hi.data(), &bad)) << trouble() << what;
    ASSERT_NB_OK(ops().range(backend(), &m, axis, group, nullptr, top.data(), nullptr)) << trouble() << what;
    EXPECT_EQ(want.bad, bad) << what;
    EXPECT_TRUE(same_bits(want.lo.data(), lo.data(), n)) << what;
    EXPECT_TRUE(same_bits(want.hi.data(), hi.data(), n)) << what;
    for (size_t i = 0; i < n; i++) /* 0 and -0 are one magnitude */
        EXPECT_TRUE(top[i] == want.absmax[i] || (std::isnan(top[i]) && std::isnan(want.absmax[i]))) << what;
}

} // namespace

TEST(CudaRange, has_the_extremes_of_groups_columns_and_tensors)
{
    const struct {
        size_t rows, k, group;
    } shapes[] = {{1, 1, 1}, {5, 7, 7}, {33, 65, 13}, {9, 264, 24}, {40, 1000, 8}, {2, 1096, 548}, {3, 3000, 3000}};
    for (const auto &s : shapes)
        for (const Kind &kind : kKinds) {
            const Array a(s.rows, s.k, kind.make(s.rows * s.k), kTypes[(s.k + (&kind - kKinds)) % 3]);
            expect_same_range(a, NBI_RANGE_GROUP, s.group, kind.name);
            expect_same_range(a, NBI_RANGE_COLUMN, 0, kind.name);
            expect_same_range(a, NBI_RANGE_TENSOR, 0, kind.name);
        }
}

TEST(CudaRange, finds_the_first_row_that_is_not_finite)
{
    for (float bad : {NAN, -NAN, INFINITY, -INFINITY})
        for (size_t k : {(size_t)40, (size_t)37})
            for (size_t at : {(size_t)0, 11 * k + 5, 11 * k + k - 1, 30 * k - 1}) {
                auto v = noise(30 * k, 5);
                v[at] = bad;
                v[30 * k - 1] = bad;
                for (nbi_dtype t : kTypes) {
                    const Array a(30, k, v, t);
                    expect_same_range(a, NBI_RANGE_GROUP, k, "not finite");
                    expect_same_range(a, NBI_RANGE_COLUMN, 0, "not finite");
                    expect_same_range(a, NBI_RANGE_TENSOR, 0, "not finite");
                }
            }
}

/* ---- observers ---- */

namespace
{

struct Observer {
    void *p = nullptr;
    Observer() { EXPECT_NB_OK(nbi_cuda_alloc(backend(), &p, ops().observer_bytes(), "an observer")); }
    ~Observer() { nbi_cuda_release(backend(), p); }
    Observer(const Observer &) = delete;
};

::testing::AssertionResult same_observer(const nbi_observer &a, const nbi_observer &b)
{
    if (memcmp(&a.lo, &b.lo, 4) || memcmp(&a.hi, &b.hi, 4) || a.half_range != b.half_range || a.count != b.count ||
        a.bad != b.bad)
        return ::testing::AssertionFailure()
               << a.lo << ".." << a.hi << " in " << a.half_range << " (" << a.count << ", " << a.bad << ") and " << b.lo
               << ".." << b.hi << " in " << b.half_range << " (" << b.count << ", " << b.bad << ")";
    for (size_t i = 0; i < NBI_OBSERVER_BINS; i++)
        if (a.bins[i] != b.bins[i])
            return ::testing::AssertionFailure() << "bin " << i << " holds " << a.bins[i] << " and " << b.bins[i];
    return ::testing::AssertionSuccess();
}

void expect_same_observer(const std::vector<std::vector<float>> &batches, nbi_dtype t, const std::string &what)
{
    Observer there;
    auto want = std::make_unique<nbi_observer>(), got = std::make_unique<nbi_observer>();
    nbi_observer_init(want.get());
    for (const auto &v : batches) {
        const Array a(1, v.size(), v, t);
        const nbi_matrix m = a.matrix();
        nbi_observer_add(want.get(), a.x.data(), a.x.size());
        ASSERT_NB_OK(ops().observe(backend(), there.p, &m)) << trouble() << what;
    }
    ASSERT_NB_OK(ops().observer_read(backend(), there.p, got.get())) << trouble() << what;
    EXPECT_TRUE(same_observer(*want, *got)) << what;
}

std::vector<float> scaled(std::vector<float> v, float f)
{
    for (float &x : v)
        x *= f;
    return v;
}

} // namespace

TEST(CudaObserver, counts_as_the_host_counts)
{
    for (const Kind &kind : kKinds)
        for (nbi_dtype t : kTypes)
            expect_same_observer({kind.make(1003)}, t, kind.name);
}

TEST(CudaObserver, its_range_grows_as_that_of_the_host)
{
    for (nbi_dtype t : {NBI_F32, NBI_BF16}) {
        std::vector<std::vector<float>> growing, falling;
        for (int e : {-140, -101, -99, -30, -29, -10, -1, 0, 1, 3, 17, 60, 126})
            growing.push_back(scaled(noise(65, (uint64_t)(e + 200), 0.2f), std::ldexp(1.0f, e)));
        falling.assign(growing.rbegin(), growing.rend());
        expect_same_observer(growing, t, "growing");
        expect_same_observer(falling, t, "falling");
        expect_same_observer({std::vector<float>(9, 0.0f), noise(100, 1), std::vector<float>(3, -0.0f)}, t,
                             "zeros first");
        expect_same_observer({{-0.0f}, {0.0f}, {-0.0f}}, t, "zeros below zero");
        expect_same_observer({{0.0f}, {-0.0f}}, t, "zeros below zero");
        expect_same_observer({{FLT_MAX, -FLT_MAX, 1, -1e-40f}, {0x1p127f, -0x1p127f, 0x1p126f, -0x1p126f}}, t,
                             "the largest");
        /* exactly at the end of a range, which belongs to the next one, and just below it */
        expect_same_observer({{1.0f}, {-1.0f}, {2.0f, -2.0f}, {std::nextafter(4.0f, 0.0f)}, {-4.0f}, {4.0f}}, t,
                             "ends");
    }
}

TEST(CudaObserver, what_is_not_finite_is_kept_out_and_told)
{
    for (float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
        auto v = noise(300, 5);
        v[123] = bad;
        for (nbi_dtype t : kTypes)
            expect_same_observer({noise(100, 1), v, noise(100, 2)}, t, "not finite");
    }
    expect_same_observer({}, NBI_F32, "nothing");
}

/* ---- clips ---- */

TEST(CudaClip, the_search_has_the_bits_of_the_host)
{
    const struct {
        size_t rows, k, group;
    } shapes[] = {{3, 128, 128}, {2, 96, 32}, {5, 39, 13}, {2, 77, 77}};
    for (const auto &s : shapes)
        for (const Kind &kind : kKinds)
            for (unsigned bits : {4u, 8u})
                for (bool symmetric : {true, false}) {
                    const nbi_dtype scale = kTypes[(s.k + bits + symmetric) % 3];
                    const Array a(s.rows, s.k, kind.make(s.rows * s.k), kTypes[(s.k + (&kind - kKinds)) % 3]);
                    const nbi_clip_spec spec = nbi_clip_spec_of(bits, symmetric, scale, 37, 0.25f);
                    const size_t n = s.rows * (s.k / s.group);
                    std::vector<float> lo(n), hi(n), error(n), want_lo, want_hi, want_error;
                    const nbi_matrix m = a.matrix();
                    ASSERT_NB_OK(ops().clip_search(backend(), &m, s.group, &spec, lo.data(), hi.data(), error.data()))
                        << trouble();
                    for (size_t i = 0; i < n; i++) {
                        nbi_clip c;
                        ASSERT_TRUE(nbi_clip_search(&c, a.x.data() + i * s.group, s.group, &spec));
                        want_lo.push_back(c.lo);
                        want_hi.push_back(c.hi);
                        want_error.push_back(c.error);
                    }
                    const std::string what = std::string(kind.name) + ", groups of " + std::to_string(s.group);
                    EXPECT_TRUE(same_bits(want_lo.data(), lo.data(), n)) << what;
                    EXPECT_TRUE(same_bits(want_hi.data(), hi.data(), n)) << what;
                    EXPECT_TRUE(same_bits(want_error.data(), error.data(), n)) << what;
                }
}

TEST(CudaClip, what_is_not_finite_has_no_clip)
{
    std::vector<float> v = noise(96, 1), lo(3), hi(3), error(3);
    v[40] = INFINITY;
    const Array a(3, 32, v, NBI_F32);
    const nbi_matrix m = a.matrix();
    nbi_clip_spec spec = nbi_clip_spec_of(4, true, NBI_F32, 10, 0.5f);
    ASSERT_NB_OK(ops().clip_search(backend(), &m, 32, &spec, lo.data(), hi.data(), error.data())) << trouble();
    EXPECT_TRUE(std::isfinite(lo[0]) && std::isnan(lo[1]) && std::isnan(hi[1]) && std::isfinite(hi[2]));
    nbi_clip c;
    EXPECT_FALSE(nbi_clip_search(&c, v.data() + 32, 32, &spec));
    spec.candidates = 0;
    EXPECT_FAILS(NB_EINVAL, "0 clips", ops().clip_search(backend(), &m, 32, &spec, lo.data(), hi.data(), nullptr));
}

/* ---- Gram matrices ---- */

TEST(CudaGram, has_the_bits_of_the_host_and_is_near_the_truth)
{
    const struct {
        size_t rows, k;
    } shapes[] = {{1, 1}, {7, 5}, {16, 64}, {129, 65}, {300, 70}};
    for (const auto &s : shapes) {
        const Array a(s.rows, s.k, noise(s.rows * s.k, s.k), kTypes[s.rows % 3]);
        const nbi_matrix m = a.matrix();
        Buffer<float> h(std::vector<float>(s.k * s.k, 0.0f));
        std::vector<float> want(s.k * s.k, 0.0f);
        for (int call = 0; call < 2; call++) { /* twice: it adds */
            ASSERT_NB_OK(ops().gram_add(backend(), &m, h.ptr())) << trouble();
            nbi_gram_add(want.data(), a.x.data(), s.rows, s.k, 2);
        }
        const auto got = h.get();
        EXPECT_TRUE(same_bits(want.data(), got.data(), got.size())) << s.rows << " x " << s.k;
        /* Of a term: an fma for each row after it in its part, then a sum for each part of the two calls. */
        const size_t part = std::min<size_t>(s.rows, NBI_GRAM_ROWS);
        const double roundings = (double)part + 2.0 * (double)((s.rows + NBI_GRAM_ROWS - 1) / NBI_GRAM_ROWS);
        for (size_t i = 0; i < s.k; i++)
            for (size_t j = 0; j < s.k; j++) {
                double sum = 0, magnitude = 0;
                for (size_t r = 0; r < s.rows; r++) {
                    const double term = 2.0 * a.x[r * s.k + i] * (double)a.x[r * s.k + j];
                    sum += term;
                    magnitude += std::fabs(term);
                }
                ASSERT_NEAR(sum, got[i * s.k + j], roundings * U * magnitude) << i << "," << j;
            }
    }
}

/* ---- sums of magnitudes ---- */

TEST(CudaAbsSum, has_the_bits_of_the_host)
{
    const struct {
        size_t rows, k;
    } shapes[] = {{1, 1}, {7, 5}, {16, 256}, {129, 257}, {33, 1000}};
    for (const auto &s : shapes)
        for (nbi_dtype t : kTypes) {
            const Array a(s.rows, s.k, noise(s.rows * s.k, s.k), t);
            const nbi_matrix m = a.matrix();
            Buffer<double> sums(std::vector<double>(s.k, 0.0));
            std::vector<double> want(s.k, 0.0);
            for (int call = 0; call < 2; call++) { /* twice: it adds */
                ASSERT_NB_OK(ops().abs_sum_add(backend(), &m, sums.ptr())) << trouble();
                for (size_t i = 0; i < s.rows * s.k; i++)
                    want[i % s.k] += (double)std::fabs(a.x[i]);
            }
            EXPECT_EQ(want, sums.get()) << s.rows << " x " << s.k;
        }
    Array none(1, 8, std::vector<float>(8, 1.0f), NBI_F32);
    nbi_matrix m = none.matrix();
    m.rows = 0;
    Buffer<double> sums(std::vector<double>(8, 3.0));
    ASSERT_NB_OK(ops().abs_sum_add(backend(), &m, sums.ptr()));
    EXPECT_EQ(std::vector<double>(8, 3.0), sums.get());
}

/* ---- failures ---- */

namespace
{

/* While it lives, the n-th call of a function of the driver fails, as it does without memory. */
template <auto member>
struct Failing;
template <typename... A, CUresult (*nbi_cuda_driver::*member)(A...)>
struct Failing<member> {
    inline static int left;
    inline static CUresult (*real)(A...);
    static CUresult call(A... a) { return --left == 0 ? CUDA_ERROR_OUT_OF_MEMORY : real(a...); }
    explicit Failing(int n)
    {
        left = n;
        real = device()->cu.*member;
        device()->cu.*member = call;
    }
    ~Failing() { device()->cu.*member = real; }
    Failing(const Failing &) = delete;
};

std::string leaks()
{
    auto f = (const char *(*)())emulator("ptxemu_leaks");
    return f ? f() : "";
}

/* Each call of the function fails once: that is an error with a sentence, and nothing is left behind.  Then it works. */
template <auto member, typename Operation>
void fail_each(const char *name, Operation operation)
{
    ASSERT_EQ(NB_OK, operation()) << trouble(); /* modules are loaded */
    const std::string before = leaks();
    for (int n = 1; n < 50; n++) {
        nb_status st;
        {
            Failing<member> failing(n);
            st = operation();
            if (failing.left > 0) { /* it was not called that often */
                EXPECT_EQ(NB_OK, st) << name << " " << n << ": " << trouble();
                EXPECT_EQ(before, leaks()) << name;
                return;
            }
        }
        EXPECT_NE(NB_OK, st) << name << " " << n;
        EXPECT_STRNE("", nb_last_error()) << name << " " << n;
        EXPECT_EQ(before, leaks()) << name << " " << n;
    }
    FAIL() << name << " is called without end";
}

template <typename Operation>
void fail_everything(Operation operation)
{
    fail_each<&nbi_cuda_driver::cuMemAlloc_v2>("cuMemAlloc", operation);
    fail_each<&nbi_cuda_driver::cuMemsetD8Async>("cuMemsetD8Async", operation);
    fail_each<&nbi_cuda_driver::cuMemcpyHtoDAsync_v2>("cuMemcpyHtoDAsync", operation);
    fail_each<&nbi_cuda_driver::cuMemcpyDtoHAsync_v2>("cuMemcpyDtoHAsync", operation);
    fail_each<&nbi_cuda_driver::cuEventRecord>("cuEventRecord", operation);
    fail_each<&nbi_cuda_driver::cuEventSynchronize>("cuEventSynchronize", operation);
    fail_each<&nbi_cuda_driver::cuLaunchKernel>("cuLaunchKernel", operation);
}

} // namespace

TEST(CudaCalib, every_call_of_the_driver_may_fail)
{
    const Array a(6, 64, noise(384, 1), NBI_F32);
    const nbi_weight w = a.weight();
    const nbi_matrix m = a.matrix();
    for (nbi_strategy strategy : {NBI_PER_GROUP, NBI_PER_TENSOR})
        fail_everything([&] {
            Quantized q;
            const nbi_scheme s = scheme_of(4, false, strategy, 32);
            const nb_status st = nbi_rtn_on(backend(), &q.w, &w, &s, NBI_F32, 1, nullptr);
            EXPECT_EQ(st == NB_OK, q.w.codes != nullptr);
            return st;
        });
    fail_everything([&] {
        std::vector<float> lo(12), hi(12);
        return ops().range(backend(), &m, NBI_RANGE_GROUP, 32, lo.data(), hi.data(), nullptr);
    });
    fail_everything([&] {
        std::vector<float> lo(12), hi(12), error(12);
        const nbi_clip_spec spec = nbi_clip_spec_of(4, true, NBI_F32, 3, 0.5f);
        return ops().clip_search(backend(), &m, 32, &spec, lo.data(), hi.data(), error.data());
    });
    Observer o;
    auto got = std::make_unique<nbi_observer>();
    fail_everything([&] {
        const nb_status st = ops().observe(backend(), o.p, &m);
        return st == NB_OK ? ops().observer_read(backend(), o.p, got.get()) : st;
    });
}

TEST(CudaCalib, a_weight_streams_through_little_memory)
{
    const Array a(19, 48, noise(19 * 48, 1), NBI_BF16);
    const nbi_weight w = a.weight();
    for (nbi_strategy strategy : {NBI_PER_GROUP, NBI_PER_CHANNEL})
        for (unsigned bits : {4u, 8u})
            for (size_t slab : {(size_t)1, (size_t)1000, (size_t)1 << 20}) {
                Quantized want, got;
                const nbi_scheme s = scheme_of(bits, false, strategy, 16);
                ASSERT_NB_OK(nbi_rtn(&want.w, &w, &s, NBI_BF16, 1));
                got.w = {};
                got.w.n = w.n;
                got.w.k = w.k;
                got.w.scheme = s;
                ASSERT_NB_OK(nbi_weight_alloc(&got.w));
                nbi_rtn_stream stream = {};
                stream.be = backend();
                stream.src = &w;
                stream.out = &got.w;
                stream.threads = 2;
                ASSERT_NB_OK(nbi_rtn_stream_open(&stream, slab)) << trouble();
                EXPECT_NB_OK(nbi_rtn_stream_codes(&stream, NBI_BF16, nullptr)) << trouble();
                float lo, hi, first = 0, last = 0;
                size_t bad;
                EXPECT_NB_OK(nbi_rtn_stream_range(&stream, &lo, &hi, &bad)) << trouble();
                nbi_rtn_stream_close(&stream);
                for (float v : a.x) {
                    first = std::fmin(first, v);
                    last = std::fmax(last, v);
                }
                EXPECT_EQ(first, lo);
                EXPECT_EQ(last, hi);
                EXPECT_TRUE(same_weight(want.w, got.w)) << slab;
            }
}

TEST(CudaCalib, what_the_device_declines_is_computed_on_the_host)
{
    const Array a(4, 64, noise(256, 1), NBI_F32);
    const nbi_scheme s = scheme_of(4, true, NBI_PER_GROUP, 32);
    nbi_backend *b = backend();
    const nbi_quant_ops *before = b->quant;
    nbi_quant_ops declining = *before;
    declining.rtn = [](nbi_backend *, const nbi_matrix *, const nbi_scheme *, nbi_dtype, const nbi_fixed_grid *,
                       const nbi_codes *) { return nbi_fail(NB_EUNSUPPORTED, "no kernel"); };
    Quantized want, got;
    bool there = true;
    const nbi_weight w = a.weight();
    b->quant = &declining;
    ASSERT_NB_OK(nbi_rtn_on(b, &got.w, &w, &s, NBI_F32, 1, &there));
    b->quant = before;
    EXPECT_FALSE(there);
    ASSERT_NB_OK(nbi_rtn(&want.w, &w, &s, NBI_F32, 1));
    EXPECT_TRUE(same_weight(want.w, got.w));
}
