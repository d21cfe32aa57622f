/* gated(): gate, up and SwiGLU in one, on the CPU: the bytes of linear() and swiglu(), one after the other. */
#include "linear_util.h"

namespace
{

struct Pair {
    const char *name;
    Case gate, up;
    bool sparse; /* up has numbers beside its matrix */
    bool gates;
};

Case dense(nbi_dtype t)
{
    return {nbi_scheme{}, t};
}

std::vector<Pair> pairs()
{
    const Case w8a8 = {scheme(8, 0, true, NBI_ACT_TOKEN, true), NBI_F32},
               w4a8 = {scheme(4, 32, true, NBI_ACT_TOKEN, true), NBI_F32},
               w4a8z = {scheme(4, 32, false, NBI_ACT_TOKEN, true), NBI_F32},
               w2a8 = {scheme(2, 32, true, NBI_ACT_TOKEN, true), NBI_F32},
               still = {scheme(8, 0, true, NBI_ACT_TENSOR, false), NBI_F32},
               w4 = {scheme(4, 32, true, NBI_ACT_NONE, true), NBI_F32};
    return {{"W8A8", w8a8, w8a8, false, true},
            {"W4A8", w4a8, w4a8, false, true},
            {"W4A8 with zero points and W2A8", w4a8z, w2a8, false, true},
            {"static W8A8", still, still, false, true},
            {"W4A16", w4, w4, false, true},
            {"F16 and F32", dense(NBI_F16), dense(NBI_F32), false, true},
            {"inputs that differ", w8a8, w4, false, false},
            {"a sparse part", w8a8, w8a8, true, false}};
}

/* y = swiglu(gate x, up x) with all that `produced` asks for, in the bytes that activations have. */
std::vector<char> run(Backend &b, const nbi_linear *const gate_up[2], bool at_once, const std::vector<float> &x,
                      size_t rows, size_t n, size_t k, unsigned produced)
{
    Guarded<float> gx(rows * k), room(rows * 2 * n);
    Guarded<char> y((b->act_bytes(b.be, rows, n) + 63) & ~(size_t)63),
        scratch((b->scratch_bytes(b.be, rows, std::max(n, k)) + 63) & ~(size_t)63);
    std::copy_n(x.begin(), rows * k, gx.data());
    memset(y.data(), 0, y.copy().size());
    if (at_once) {
        EXPECT_NB_OK(b->gated(b.be, gate_up, gx.data(), NBI_FORM_FLOAT, rows, y.data(), produced, scratch.data()));
    } else {
        EXPECT_NB_OK(b->linear(b.be, gate_up, 2, gx.data(), NBI_FORM_FLOAT, rows, room.data(), 2 * n, NBI_DST_ACT,
                               scratch.data()));
        EXPECT_NB_OK(b->swiglu(b.be, room.data(), rows, n, y.data(), produced));
    }
    EXPECT_TRUE(gx.front_intact() && room.front_intact() && y.front_intact() && scratch.front_intact());
    return y.copy();
}

} // namespace

TEST(Gated, has_the_bytes_of_linear_and_swiglu)
{
    const size_t shapes[][2] = {{20, 32}, {65, 64}, {200, 96}, {333, 32}, {192, 544}};
    const size_t sizes[] = {1, 7, 8, 13, 40}; /* few rows, and the first count of many */
    size_t index = 0;
    for (const std::string &isa : isas())
        for (int threads : {1, 2, 3}) {
            Backend b(isa.c_str(), threads);
            for (const Pair &p : pairs()) {
                const size_t n = shapes[++index % 5][0], k = shapes[index % 5][1];
                Weight gate = make_weight(p.gate.s, p.gate.dtype, n, k, index, true),
                       up = make_weight(p.up.s, p.up.dtype, n, k, index + 1000, false);
                if (p.sparse)
                    add_number_beside_each_row(up.w);
                Packed a(b, gate.w), c(b, up.w);
                const nbi_linear *const both[2] = {a.l, c.l};
                const std::vector<float> x = noise(40 * k, index);
                for (size_t rows : sizes) {
                    const bool gates = b->gates(b.be, both, rows);
                    EXPECT_EQ(p.gates && rows >= 8 && (rows <= 32 || (n + 15) / 16 >= (size_t)threads), gates)
                        << p.name << " N=" << n << " rows=" << rows << " threads=" << threads;
                    for (unsigned produced : {(unsigned)NBI_FORM_FLOAT, (unsigned)(NBI_FORM_FLOAT | NBI_FORM_INT8)}) {
                        const std::vector<char> want = run(b, both, false, x, rows, n, k, produced),
                                                got = run(b, both, gates, x, rows, n, k, produced);
                        const size_t at =
                            (size_t)(std::mismatch(want.begin(), want.end(), got.begin()).first - want.begin());
                        ASSERT_EQ(at, want.size())
                            << p.name << ", byte " << at << " of N=" << n << " K=" << k << " rows=" << rows
                            << ", forms " << produced << ", " << b.be->description;
                    }
                }
            }
        }
}
