/* The large form of linear layers (cuda/gemm.cuh): every kind, type, destination and tile against double precision,
 * integers against docs/numerics.md bit for bit. */
#include "cuda_linear_util.h"

namespace
{

class Gemm : public ::testing::TestWithParam<std::tuple<Kind, nbi_dtype>>
{
  protected:
    Kind kind() const { return std::get<0>(GetParam()); }
    nbi_dtype t() const { return std::get<1>(GetParam()); }
};

struct Shape {
    size_t rows, n, k, group; /* group 0: K */
    bool bias;
};

/* Odd numbers of rows and columns, K that no tile divides, groups that begin inside a tile, segments that do. */
const Shape shapes[] = {{1, 16, 64, 0, false},   {3, 48, 80, 0, true},     {17, 80, 192, 64, false},
                        {9, 1000, 96, 32, true}, {33, 64, 1040, 0, false}, {64, 144, 256, 128, true},
                        {129, 32, 96, 96, true}, {31, 16, 1600, 800, true}};
/* Only float activations: groups of 16. */
const Shape float_shapes[] = {
    {5, 33, 48, 16, true}, {20, 96, 240, 48, true}, {2, 16, 16, 16, false}, {8, 8, 112, 112, true}};

TEST_P(Gemm, every_tile_gives_the_same_bits_and_they_are_right)
{
    std::vector<Shape> all(std::begin(shapes), std::end(shapes));
    if (!kind().integer)
        all.insert(all.end(), std::begin(float_shapes), std::end(float_shapes));
    uint32_t dst = NB_DST_ACT;
    uint64_t seed = 100;
    for (const Shape &s : all) {
        SCOPED_TRACE(::testing::Message() << s.rows << " rows, " << s.n << " x " << s.k << ", groups of " << s.group);
        const Layer l = make_layer(kind(), t(), s.n, s.k, s.group ? s.group : s.k, s.bias, seed);
        const Acts a = make_acts(s.rows, s.k, t(), seed + 50);
        const OnDevice d(l);
        const size_t ldy = s.n + seed % 3 * 2;
        const std::vector<float> before = rounded(noise(s.rows * ldy, seed + 70), t());
        const std::vector<float> y = run_gemm({&d}, kind(), a, gemm_tiles[0], dst, before);
        const size_t every = s.rows > 40 ? 13 : 1;
        for (size_t r = 0; r < s.rows; r += every) {
            ASSERT_TRUE(row_is_right(l, a, r, 0, dst, before, y)) << "destination " << dst;
            ASSERT_TRUE(same_bits(&y[r * ldy + s.n], &before[r * ldy + s.n], ldy - s.n)) << "beyond the columns";
        }
        for (const Tile &tile : {gemm_tiles[1], gemm_tiles[2], gemm_tiles[3]})
            ASSERT_TRUE(same_bits(run_gemm({&d}, kind(), a, tile, dst, before).data(), y.data(), y.size()))
                << tile.name;
        dst = (dst + 1) % 3;
        seed += 1000;
    }
}

/* The order of docs/numerics.md, bit for bit, where it is known how an mma rounds: once, on the stand-in driver. */
float in_order(const Layer &l, const Acts &a, size_t r, size_t n)
{
    const size_t step = sm() >= 80 ? 16 : 8;
    float acc = 0;
    for (size_t begin = 0, end; begin < l.k; begin = end) {
        const size_t group = begin / l.group;
        float part = 0;
        end = std::min(begin + 512, (group + 1) * l.group);
        for (size_t j = begin; j < end; j += step) {
            long double sum = part; /* exact: the terms span less than its 64 bits */
            for (size_t i = j; i < j + step; i++)
                sum += (long double)a.x[r * l.k + i] *
                       (l.kind.bits ? (float)(l.code(n, i) - l.zero(n, group)) : l.dense[n * l.k + i]);
            part = (float)sum;
        }
        acc = l.kind.bits ? std::fmaf(l.scales[n * l.groups + group], part, acc) : acc + part;
    }
    return l.bias.empty() ? acc : acc + l.bias[n];
}

TEST_P(Gemm, sums_are_made_in_the_order_of_the_documentation)
{
    if (!emulated() || kind().integer) /* integers are compared by their bits everywhere */
        return;
    const size_t n = 16, rows = 3;
    for (auto [k, group] : std::vector<std::pair<size_t, size_t>>{{1104, 1104}, {1120, 560}, {192, 48}}) {
        const Layer l = make_layer(kind(), t(), n, k, group, true, k);
        const Acts a = make_acts(rows, k, t(), k + 1);
        const OnDevice d(l);
        const std::vector<float> y = run_gemm({&d}, kind(), a, gemm_tiles[0], NB_DST_F32, std::vector<float>(rows * n));
        for (size_t i = 0; i < rows * n; i++)
            ASSERT_EQ(in_order(l, a, i / n, i % n), y[i]) << "row " << i / n << ", column " << i % n << ", K " << k;
    }
}

TEST_P(Gemm, a_row_has_the_bits_it_has_alone)
{
    const size_t n = 32, k = 160;
    const Layer l = make_layer(kind(), t(), n, k, 32, true, 7);
    const Acts a = make_acts(129, k, t(), 8);
    const OnDevice d(l);
    std::vector<float> zero(129 * n);
    const std::vector<float> y = run_gemm({&d}, kind(), a, gemm_tiles[2], NB_DST_F32, zero);
    for (size_t r : {0, 1, 63, 64, 128})
        ASSERT_TRUE(same_bits(run_gemm({&d}, kind(), a.row(r), gemm_tiles[0], NB_DST_F32, std::vector<float>(n)).data(),
                              &y[r * n], n))
            << "row " << r;
}

TEST_P(Gemm, three_layers_of_one_launch_are_three_launches)
{
    for (const Tile &tile : {gemm_tiles[1], gemm_tiles[2]})
        check_parts(kind(), t(), 128, 18, [&](const auto &layers, const Acts &x, uint32_t dst, const auto &before) {
            return run_gemm(layers, kind(), x, tile, dst, before);
        });
}

TEST_P(Gemm, a_wrong_weight_is_noticed)
{
    check_wrong_weight(kind(), t(), [&](const auto &layers, const Acts &x, uint32_t dst, const auto &before) {
        return run_gemm(layers, kind(), x, gemm_tiles[0], dst, before);
    });
}

INSTANTIATE_TEST_SUITE_P(Kinds, Gemm, ::testing::Combine(::testing::ValuesIn(kinds), ::testing::ValuesIn(types())),
                         linear_name);

/* ---- what is not a number stays in its row ---- */

TEST(GemmSpecial, a_scale_that_is_not_a_number_makes_its_row_so)
{
    const Kind kind = kinds[5];
    const Layer l = make_layer(kind, NBI_F16, 16, 64, 64, true, 1);
    Acts a = make_acts(3, 64, NBI_F16, 2);
    a.scale[1] = NAN;
    const OnDevice d(l);
    const std::vector<float> y = run_gemm({&d}, kind, a, gemm_tiles[0], NB_DST_ACT, std::vector<float>(48));
    for (size_t i = 0; i < 48; i++)
        EXPECT_EQ(i / 16 == 1, std::isnan(y[i])) << i;
}

TEST(GemmSpecial, the_largest_integers_do_not_overflow)
{
    Kind kind = kinds[8]; /* asymmetric on both sides */
    kind.zx = 127;
    const size_t k = 33024; /* docs/numerics.md: at most 33,025 */
    Layer l = make_layer(kind, NBI_F16, 16, k, k, false, 1);
    Acts a = make_acts(2, k, NBI_F16, 2);
    for (size_t i = 0; i < 16 * k; i++)
        l.codes[i] = i / k % 2 ? -128 : 127;
    for (size_t i = 0; i < 16; i++)
        l.zeros[i] = i % 2 ? 127 : -128;
    std::fill(a.q.begin(), a.q.end(), -128);
    const OnDevice d(l);
    const std::vector<float> before(32), y = run_gemm({&d}, kind, a, gemm_tiles[0], NB_DST_F32, before);
    EXPECT_TRUE(row_is_right(l, a, 0, 0, NB_DST_F32, before, y));
}

TEST(GemmSpecial, an_infinity_shows)
{
    const Kind kind = kinds[0];
    Layer l = make_layer(kind, NBI_F16, 16, 64, 64, false, 1);
    for (size_t j = 0; j < 64; j++)
        l.dense[3 * 64 + j] = 60000;
    Acts a = make_acts(1, 64, NBI_F16, 2);
    std::fill(a.x.begin(), a.x.end(), 2.0f);
    const OnDevice d(l);
    const std::vector<float> y = run_gemm({&d}, kind, a, gemm_tiles[0], NB_DST_ACT, std::vector<float>(16));
    for (size_t n = 0; n < 16; n++)
        EXPECT_EQ(n == 3, std::isinf(y[n])) << n;
}

} // namespace
