/* QuIP#'s weights on the CPU: words stay words in memory, and every instruction set, thread count and batch multiplies the codes that
 * they stand for in the order of docs/numerics.md. */
#include "linear_util.h"

namespace
{

nbi_scheme e8p_scheme(unsigned bits)
{
    nbi_scheme s = scheme(bits, 0, true, NBI_ACT_NONE, true, true);
    s.kind = NBI_KIND_E8P;
    return s;
}

} // namespace

/* Words in both halves of a dword; a word is a row of two, and x picks one element after the other. */
TEST(E8pLinear, every_word_is_multiplied_and_unpacked_as_what_it_stands_for)
{
    const size_t n = 65536, k = 24;
    for (unsigned bits : {2u, 4u}) {
        Weight w = make_weight(e8p_scheme(bits), NBI_F32, n, k, 3, false);
        const size_t each = bits / 2;
        for (size_t i = 0; i < n; i++)
            for (size_t b = 0; b < 3; b++)
                for (size_t j = 0; j < each; j++) /* the second word of 4 bits is another one each time */
                    w.w.words[(i * 3 + b) * each + j] = (uint16_t)((i + b * 777) * (j ? 40503 : 1) + j);
        nbi_e8p_decode(w.w.codes, w.w.words, n * 3, bits);
        std::fill_n(w.w.scales, n, 1.0f);
        std::vector<float> x(k * k), row(k), want(k);
        for (size_t i = 0; i < k; i++)
            x[i * k + i] = 1;
        for (const std::string &isa : isas()) {
            Backend b(isa.c_str(), 2);
            Packed p(b, w.w);
            const std::vector<float> y = run_linear(b, p.l, n, k, x.data(), k);
            for (size_t i = 0; i < k * n; i++)
                ASSERT_EQ((float)w.w.codes[i % n * k + i / n], y[i]) << bits << " bits, word " << i % n << " " << isa;
            for (size_t r = 0; r < n && isa == "scalar"; r++) {
                nbi_cpu_unpack_row(p.l, r, row.data());
                nbi_weight_row(&w.w, r, want.data());
                ASSERT_EQ(want, row) << bits << " bits, row " << r;
            }
        }
    }
}

TEST(E8pLinear, every_isa_thread_count_and_batch_has_the_documented_order)
{
    const size_t ns[] = {1, 15, 16, 17, 33, 70, 130}, ks[] = {8, 16, 24, 120, 128, 136, 504, 512, 520, 640, 1024, 1160};
    const auto backends = every_backend();
    size_t index = 0;
    for (unsigned bits : {2u, 4u})
        for (size_t k : ks) {
            const size_t n = ns[++index % 7];
            const Weight w = make_weight(e8p_scheme(bits), NBI_F32, n, k, index, index % 2);
            expect_canonical(backends, w, n, k, 91 + index, {1, 2, 3, 5, 8, 23, 24, 53}, {1, 25},
                             std::to_string(bits) + " bits");
        }
}

TEST(E8pLinear, memory_is_two_or_four_bits_a_weight)
{
    Backend b("scalar");
    for (unsigned bits : {2u, 4u})
        for (size_t n : {1, 16, 40, 100})
            for (size_t k : {8, 16, 40, 1024}) {
                const nbi_scheme s = e8p_scheme(bits);
                Weight w = make_weight(s, NBI_F32, n, k, n + k, n % 3);
                Packed p(b, w.w);
                const size_t lanes = (n + 15) / 16 * 16;
                const size_t least = lanes * ((k + 15) / 16 * 16 * bits / 8 + 4 + (w.w.bias ? 4 : 0));
                EXPECT_GE(b->linear_bytes(p.l), least);
                EXPECT_LE(b->linear_bytes(p.l), least + 3 * 64);
                EXPECT_EQ(b->linear_bytes(p.l), b->linear_plan(b.be, n, k, &s, NBI_F32, w.w.bias != nullptr));
            }
}

/* The container allows it: codes are multiplied as the integers that they are. */
TEST(E8pLinear, integer_activations_multiply_the_codes)
{
    for (const std::string &isa : isas())
        for (unsigned bits : {2u, 4u}) {
            const size_t n = 37, k = 72;
            nbi_scheme s = e8p_scheme(bits);
            s.act = NBI_ACT_TOKEN;
            Weight w = make_weight(s, NBI_F32, n, k, 5, true);
            const std::vector<float> x = noise(3 * k, 7);
            Backend b(isa.c_str());
            const std::vector<float> y = linear_on(b, w.w, x.data(), 3);
            for (size_t i = 0; i < 3 * n; i++)
                ASSERT_EQ(canonical(w.w, &x[i / n * k], i % n), y[i]) << isa;
        }
}

TEST(E8pLinear, what_has_no_kernel_is_refused)
{
    Backend b("scalar");
    nbi_linear *l = nullptr;
    Weight w = make_weight(e8p_scheme(2), NBI_F32, 3, 16, 1, false);
    auto refuse = [&](const std::function<void(nbi_weight &)> &spoil) {
        nbi_weight bad = w.w;
        spoil(bad);
        EXPECT_FAILS(NB_EUNSUPPORTED, "E8P weights", b->linear_create(b.be, &l, &bad));
        EXPECT_EQ(nullptr, l);
    };
    refuse([](nbi_weight &x) { x.words = nullptr; });
    refuse([](nbi_weight &x) { x.k = 12; });
    refuse([](nbi_weight &x) { x.scheme.bits = 3; });
    refuse([](nbi_weight &x) { x.scheme.strategy = NBI_PER_CHANNEL; });
}
