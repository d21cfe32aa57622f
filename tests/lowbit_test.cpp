/* Weights of 1, 2 and 3 bits on the CPU: packed at their width, and every instruction set, thread count and batch gives the bits
 * that docs/numerics.md says. */
#include "linear_util.h"

namespace
{

/* Every combination of bits, group, zero points and activations. */
std::vector<Case> lowbit_cases()
{
    std::vector<Case> v;
    for (unsigned bits : {2u, 3u})
        for (uint32_t group : {0u, 32u, 64u, 96u, 544u, 16u, 8u}) /* 16, 8: some are no whole block */
            for (bool sym : {true, false}) {
                v.push_back({scheme(bits, group, sym, NBI_ACT_NONE, true), NBI_F32});
                v.push_back({scheme(bits, group, sym, NBI_ACT_TOKEN, true), NBI_F32});
                v.push_back({scheme(bits, group, sym, NBI_ACT_TENSOR, false), NBI_F32});
            }
    for (nbi_act act : {NBI_ACT_NONE, NBI_ACT_TOKEN, NBI_ACT_TENSOR}) {
        nbi_scheme s = scheme(1, 0, true, act, act != NBI_ACT_TENSOR);
        s.kind = NBI_KIND_BINARY;
        v.push_back({s, NBI_F32});
    }
    return v;
}

/* Codes of one bit are -1 and 1. */
Weight lowbit_weight(const Case &c, size_t n, size_t k, uint64_t seed)
{
    Weight w = make_weight(c.s, NBI_F32, n, k, seed, seed % 2);
    if (c.s.bits == 1)
        for (size_t i = 0; i < n * k; i++)
            w.w.codes[i] = nbi_rng(seed, i) & 1 ? 1 : -1;
    return w;
}

size_t some_k(const Case &c, size_t i)
{
    const size_t ks[] = {1, 7, 15, 16, 17, 31, 32, 33, 63, 64, 100, 511, 512, 513, 531, 1027, 1120};
    if (!c.s.group)
        return ks[i % (sizeof ks / sizeof *ks)];
    return c.s.group * (c.s.group > 300 ? 1 + i % 2 : 1 + i % 5);
}

/* Bytes of codes in a panel of sixteen rows, as the widths say: blocks of 16 or 32 codes, else 4 bits each. */
size_t code_bytes(const nbi_scheme &s, size_t k)
{
    const size_t block = s.bits == 2 ? 16 : 32;
    if (s.group && s.group != k && s.group % block)
        return (k + 7) / 8 * 64;
    return (k + block - 1) / block * block * s.bits / 8 * 16;
}

} // namespace

TEST(Lowbit, every_isa_thread_count_and_batch_has_the_documented_order)
{
    const size_t ns[] = {1, 15, 16, 17, 33, 70};
    const auto backends = every_backend();
    size_t index = 0;
    for (const Case &c : lowbit_cases())
        for (size_t i = 0; i < (emulated_cpu() ? 1 : 4); i++) {
            const size_t n = ns[++index % 6], k = some_k(c, index * 7 + i);
            const Weight w = lowbit_weight(c, n, k, index);
            expect_canonical(backends, w, n, k, 91 + index, {1, 2, 3, 4, 5, 8, 11, 19}, {1, 19}, c.name());
        }
}

/* Each code in turn takes all its values, x is 1 there and 0 elsewhere: the output is that code, and the unpacked row too. */
TEST(Lowbit, every_code_of_a_block_comes_back)
{
    for (const std::string &isa : isas()) {
        Backend b(isa.c_str());
        for (unsigned bits : {1u, 2u, 3u})
            for (nbi_act act : {NBI_ACT_NONE, NBI_ACT_TOKEN}) {
                Case c = {scheme(bits, 0, true, act, true), NBI_F32};
                c.s.kind = bits == 1 ? NBI_KIND_BINARY : NBI_KIND_INT;
                const size_t n = 16, k = 67;
                Weight w = lowbit_weight(c, n, k, 3);
                std::fill(w.w.scales, w.w.scales + n, 1.0f);
                free(w.w.bias);
                w.w.bias = nullptr;
                Packed p(b, w.w);
                std::vector<float> x(k * k), row(k), embedded(k);
                for (size_t i = 0; i < k; i++)
                    x[i * k + i] = 127;
                const std::vector<float> y = run_linear(b, p.l, n, k, x.data(), k);
                for (size_t i = 0; i < k * n; i++)
                    ASSERT_EQ(127 * w.w.codes[i % n * k + i / n], y[i]) << c.name() << " code " << i / n << " " << isa;
                Step step(b, 1);
                for (int32_t id = 0; id < (int32_t)n; id++) {
                    nbi_batch batch = {};
                    batch.rows = 1;
                    batch.ids = &id;
                    ASSERT_NB_OK(b->embed(b.be, step.begin(batch), p.l, embedded.data()));
                    nbi_weight_row(&w.w, (size_t)id, row.data());
                    ASSERT_TRUE(same_bits(row.data(), embedded.data(), k)) << c.name();
                }
            }
    }
}

/* Sums at the ends of their range: scales of 1 and extreme codes, zero points and activations. */
TEST(Lowbit, integer_sums_are_exact)
{
    for (const std::string &isa : isas()) {
        Backend b(isa.c_str());
        for (unsigned bits : {2u, 3u})
            for (int sign : {-1, 1}) {
                const size_t n = 17, k = 20011;
                const int half = 1 << (bits - 1);
                Weight w = make_weight(scheme(bits, 0, false, NBI_ACT_TENSOR, false), NBI_F32, n, k, 5, false);
                w.w.act_scale = 1;
                w.w.act_zero = sign < 0 ? 127 : -128;
                std::fill(w.w.scales, w.w.scales + n, 1.0f);
                memset(w.w.codes, sign < 0 ? half - 1 : -half, n * k);
                memset(w.w.zeros, sign < 0 ? -half : half - 1, n);
                const std::vector<float> x(k, sign < 0 ? -1000.0f : 1000.0f), y = linear_on(b, w.w, x.data(), 1);
                const int64_t exact = (int64_t)k * 255 * (2 * half - 1);
                for (float f : y)
                    ASSERT_EQ(-(float)exact, f) << isa << " " << bits << " bits";
            }
    }
}

TEST(Lowbit, memory_is_what_the_width_says)
{
    Backend b("scalar");
    size_t index = 0;
    for (const Case &c : lowbit_cases())
        for (size_t n : {1, 16, 40}) {
            const size_t k = some_k(c, index++), groups = nbi_scheme_groups(&c.s, k), panels = (n + 15) / 16;
            Weight w = lowbit_weight(c, n, k, index);
            Packed p(b, w.w);
            const size_t codes = panels * code_bytes(c.s, k);
            const size_t beside =
                panels * 16 * (groups * (4 + (w.w.zeros ? 1 : 0) + (w.w.act_zero ? 4 : 0)) + (w.w.bias ? 4 : 0));
            const size_t bytes = b->linear_bytes(p.l);
            EXPECT_GE(bytes, codes + beside) << c.name() << " K=" << k;
            EXPECT_LE(bytes, codes + beside + 5 * 64) << c.name() << " K=" << k;
            EXPECT_EQ(bytes, b->linear_plan(b.be, n, k, &c.s, NBI_F32, w.w.bias != nullptr)) << c.name();
        }
}

TEST(Lowbit, groups_that_no_dword_holds_are_refused)
{
    Backend b("scalar");
    nbi_linear *l = nullptr;
    for (unsigned bits : {2u, 3u}) {
        Weight w = make_weight(scheme(bits, 12, true, NBI_ACT_NONE, true), NBI_F32, 2, 24, 1, false);
        EXPECT_FAILS(NB_EUNSUPPORTED, "multiple of 8", b->linear_create(b.be, &l, &w.w));
    }
}
