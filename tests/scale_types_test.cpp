/* Scales of groups in 16 bits, in the CPU's packed weights: only where nothing is lost, and then nothing changes but bytes. */
#include <limits>

#include "cpu_model.h"
#include "linear_util.h"

extern "C" {
#include "model/model.h"
}

namespace
{

const nbi_dtype TYPES[] = {NBI_F32, NBI_F16, NBI_BF16};

/* Scales by hand: n rows of k / group. */
Weight with_scales(size_t n, size_t groups, const std::vector<float> &scales)
{
    Weight w = make_weight(scheme(4, 32, true, NBI_ACT_NONE, true), NBI_F32, n, 32 * groups, 1, false);
    for (size_t i = 0; i < n * groups; i++)
        w.w.scales[i] = scales[i % scales.size()];
    return w;
}

nbi_dtype type_of(Backend &b, const Weight &w)
{
    Packed p(b, w.w);
    return p.l->scale_type;
}

TEST(ScaleTypes, SixteenBitsHoldEveryScaleExactlyOrAreNotTaken)
{
    Backend b("scalar");
    const float inf = std::numeric_limits<float>::infinity(), f11 = 1 + 0x1p-10f, f8 = 1 + 0x1p-7f;
    const struct {
        std::vector<float> scales;
        nbi_dtype type;
    } rows[] = {
        {{0}, NBI_BF16},
        {{f8, 0.5f, -0x1p-9f}, NBI_BF16},
        {{f11, 0.5f}, NBI_F16},
        {{1 + 0x1p-8f}, NBI_F16},  /* one bit more than bf16 has */
        {{1 + 0x1p-11f}, NBI_F32}, /* and than f16 has */
        {{0.01f}, NBI_F32},
        {{65504}, NBI_F16}, /* the largest of f16 */
        {{65504, 65536}, NBI_F32},
        {{65520}, NBI_F32}, /* f16 rounds it to infinity */
        {{65536, 3e38f}, NBI_F32},
        {{65536, 0x1.fep127f}, NBI_BF16}, /* the largest of bf16 */
        {{0x1p-14f * f11}, NBI_F16},      /* the smallest normal exponent of f16 */
        {{0x1p-15f * f11}, NBI_F32},      /* subnormal: one bit less */
        {{0x1p-15f * (1 + 0x1p-9f)}, NBI_F16},
        {{1023 * 0x1p-24f, 0x1p-24f}, NBI_F16},
        {{1023 * 0x1p-25f}, NBI_F32},
        {{0x1p-25f, f8}, NBI_BF16}, /* below all of f16 */
        {{0x1p-25f, f11}, NBI_F32},
        {{0x1p-133f, 0x1p-127f}, NBI_BF16}, /* subnormal there as well as in fp32 */
        {{0x1p-134f}, NBI_F32},
        {{inf, f8}, NBI_BF16},
        {{inf, f11}, NBI_F16},
    };
    for (const auto &r : rows) {
        Weight w = with_scales(3, 5, r.scales);
        EXPECT_EQ(r.type, type_of(b, w)) << r.scales[0] << " and " << r.scales.size() - 1 << " more";
        Packed p(b, w.w);
        std::vector<float> x(w.w.k), y(w.w.k);
        for (size_t n = 0; n < w.w.n; n++) {
            nbi_cpu_unpack_row(p.l, n, x.data());
            nbi_weight_row(&w.w, n, y.data());
            EXPECT_EQ(0, memcmp(x.data(), y.data(), x.size() * sizeof(float))) << r.scales[0] << " row " << n;
        }
    }
}

TEST(ScaleTypes, OneScaleDecidesWhereverItIs)
{
    Backend b("scalar", 2);
    const struct {
        size_t n, groups, step;
    } shapes[] = {{5, 2, 1}, {5, 3, 1}, {17, 130, 367}, {128, 260, 33279}}; /* the last one by two threads */
    for (const auto &s : shapes) {
        Weight w = with_scales(s.n, s.groups, {0.5f});
        for (size_t at = 0; at < s.n * s.groups; at += s.step) {
            w.w.scales[at] = 1 + 0x1p-10f;
            ASSERT_EQ(NBI_F16, type_of(b, w)) << at << " of " << s.n * s.groups;
            w.w.scales[at] = 0.01f;
            ASSERT_EQ(NBI_F32, type_of(b, w)) << at << " of " << s.n * s.groups;
            w.w.scales[at] = 0.5f;
        }
    }
}

TEST(ScaleTypes, OneScaleARowStaysFp32)
{
    Backend b("scalar");
    for (uint32_t group : {0u, 64u}) {
        Weight w = make_weight(scheme(4, group, true, NBI_ACT_NONE, true), NBI_F32, 20, 64, 1, false);
        round_scales(w.w, NBI_BF16);
        EXPECT_EQ(NBI_F32, type_of(b, w)) << group;
    }
}

/* A multiple of 64 bytes for each part; 4 bits and a group of 128: 4.125 bits each. */
TEST(ScaleTypes, BytesAreThoseOfTheType)
{
    Backend b("scalar");
    const nbi_scheme s = scheme(4, 128, true, NBI_ACT_TOKEN, true);
    for (size_t n : {64u, 33u})
        for (nbi_dtype t : TYPES) {
            const size_t k = 1024, rows = (n + 15) / 16 * 16;
            Weight w = make_weight(s, NBI_F32, n, k, 3, false);
            round_scales(w.w, t);
            Packed p(b, w.w);
            EXPECT_EQ(rows * k / 2 + rows * (k / 128) * nbi_dtype_size(t), b->linear_bytes(p.l)) << n;
            EXPECT_LE(b->linear_bytes(p.l), b->linear_plan(b.be, n, k, &s, NBI_F32, false));
            if (t == NBI_BF16 && n == 64) {
                EXPECT_EQ(4.125, 8.0 * (double)b->linear_bytes(p.l) / (double)(n * k));
            }
        }
}

std::vector<Case> grouped_cases()
{
    std::vector<Case> v;
    for (const Case &c : common_cases())
        if (c.s.bits && c.s.strategy == NBI_PER_GROUP && c.s.group < 128)
            v.push_back(c);
    for (unsigned bits : {2u, 3u})
        for (bool sym : {true, false})
            for (nbi_act act : {NBI_ACT_NONE, NBI_ACT_TOKEN})
                for (uint32_t group : {32u, 8u, 544u})
                    v.push_back({scheme(bits, group, sym, act, true), NBI_F32});
    v.push_back({scheme(4, 544, false, NBI_ACT_NONE, true), NBI_F32}); /* longer than a chunk */
    nbi_scheme nf4 = scheme(4, 32, true, NBI_ACT_NONE, true);
    nf4.kind = NBI_KIND_NF4;
    v.push_back({nf4, NBI_F32});
    return v;
}

/* The same packed weight with its scales in fp32, from the canonical ones. */
struct Wide {
    nbi_linear l;
    std::vector<float> scales;
    Wide(const nbi_linear &from, const nbi_weight &w) : l(from), scales(from.panels * NBI_PANEL * from.groups)
    {
        for (size_t n = 0; n < w.n; n++)
            for (size_t g = 0; g < l.groups; g++)
                scales[nbi_cpu_group_at(&l, n / NBI_PANEL, g) + n % NBI_PANEL] = w.scales[n * l.groups + g];
        l.scales = scales.data();
        l.scale_type = NBI_F32;
    }
};

/* Panels that are no multiple of four, and numbers of groups. */
TEST(ScaleTypes, EveryKindAndIsaGivesTheBitsOfFp32)
{
    const auto backends = every_backend();
    size_t index = 0;
    for (const Case &c : grouped_cases())
        for (nbi_dtype t : {NBI_F16, NBI_BF16}) {
            const size_t n = std::vector<size_t>{37, 70, 16, 97}[index % 4], k = c.s.group * (2 + index % 3), rows = 13;
            Weight w = make_weight(c.s, NBI_F32, n, k, index, index % 2);
            round_scales(w.w, t);
            const std::vector<float> x = noise(rows * k, ++index);
            for (const auto &b : backends) {
                if (b->be->threads > 1)
                    continue; /* threads share out panels: nothing here is of them */
                const std::string name = c.name() + " " + nbi_dtype_name(t) + " " + b->be->description;
                Packed p(*b, w.w);
                ASSERT_EQ(t, p.l->scale_type) << name;
                Wide wide(*p.l, w.w);
                for (size_t m : {size_t(1), rows}) {
                    const auto narrow = run_linear(*b, p.l, n, k, x.data(), m);
                    const auto want = run_linear(*b, &wide.l, n, k, x.data(), m);
                    ASSERT_TRUE(same_bits(narrow.data(), want.data(), m * n)) << name << " rows " << m;
                }
                std::vector<float> a(k), d(k);
                for (size_t r = 0; r < n; r++) {
                    nbi_cpu_unpack_row(p.l, r, a.data());
                    nbi_cpu_unpack_row(&wide.l, r, d.data());
                    ASSERT_TRUE(same_bits(a.data(), d.data(), k)) << name << " row " << r;
                }
            }
        }
}

/* Scales beyond what the other type has, and subnormal ones, pass through every instruction set's conversion. */
TEST(ScaleTypes, WidestAndSmallestScalesAreExact)
{
    for (const auto &b : every_backend())
        for (const std::vector<float> &s : {std::vector<float>{0x1.fep100f, 0x1p-100f, 0x1p-133f, 65536},
                                            std::vector<float>{65504, 1023 * 0x1p-24f, 0x1p-24f, 1 + 0x1p-10f}}) {
            Weight w = with_scales(21, 3, s);
            Packed p(*b, w.w);
            ASSERT_NE(NBI_F32, p.l->scale_type);
            Wide wide(*p.l, w.w);
            const std::vector<float> x = noise(2 * w.w.k, 3);
            const auto narrow = run_linear(*b, p.l, w.w.n, w.w.k, x.data(), 2);
            EXPECT_TRUE(same_bits(narrow.data(), run_linear(*b, &wide.l, w.w.n, w.w.k, x.data(), 2).data(), 2 * w.w.n))
                << b->be->description;
        }
}

/* `nibble bench --shape` shows what a checkpoint of that dtype would. */
TEST(ScaleTypes, RandomModelsHaveThoseOfCheckpoints)
{
    const std::string text = read_text(repo_file("configs/shapes/tiny.json"));
    for (const auto &[dtype, type] : std::vector<std::pair<std::string, nbi_dtype>>{
             {"bfloat16", NBI_BF16}, {"float16", NBI_F16}, {"float32", NBI_F32}}) {
        TempDir d;
        std::string shape = text;
        shape.replace(shape.find("bfloat16"), 8, dtype);
        write_text(d / "shape.json", shape);
        nb_model_options o;
        nb_model_options_init(&o);
        o.device = "cpu";
        nb_model *m = nullptr;
        ASSERT_NB_OK(nb_model_random(&m, (d / "shape.json").c_str(), "w4a16-g64", &o));
        EXPECT_EQ(type, m->layers[0].proj[0]->scale_type) << dtype;
        nb_model_free(m);
    }
}

} // namespace
