/* The large form of linear layers (cuda/gemm.cuh): every kind, type, destination and tile against double precision,
 * integers against docs/numerics.md bit for bit. */
#include "cuda_linear_util.h"

namespace
{

/* ---- launches ---- */

struct Tile {
    const char *name;
    int index;
    uint32_t columns, rows;
};
const Tile tiles[] = {{"r16", 0, 64, 16}, {"r32", 1, 64, 32}, {"r64", 2, 128, 64}, {"r128", 3, 64, 128}};

nb_kernel kernel_of(const Kind &kind, nbi_dtype t, const Tile &tile)
{
    nb_kernel first = kind.integer ? (kind.bits == 8 ? NB_K_nb_gemm_w8a8_r16_f16 : NB_K_nb_gemm_w4a8_r16_f16)
                                   : (kind.bits == 0   ? NB_K_nb_gemm_dense_r16_f16
                                      : kind.bits == 8 ? NB_K_nb_gemm_w8_r16_f16
                                                       : NB_K_nb_gemm_w4_r16_f16);
    return of_type((nb_kernel)(first + 2 * tile.index), t);
}

uint32_t shared_of(const Kind &kind, const Tile &tile)
{
    const uint32_t x = kind.integer ? 1 : 2, P = tile.columns / 64, R = tile.rows / 8;
    const uint32_t stage = NB_GEMM_STAGE(kind.packed, x, P, R), stages = sm() >= 80 ? NB_GEMM_STAGES(stage) : 2;
    return NB_GEMM_SHARED(stage, stages, P, R);
}

/* y [rows][ldy] on the device, of the destination's type, as floats. */
struct Output {
    uint32_t dst;
    nbi_dtype t;
    Buffer<uint8_t> y;
    Output(uint32_t dst_, nbi_dtype t_, const std::vector<float> &before)
        : dst(dst_), t(t_), y(before.size() * (dst_ == NB_DST_ACT ? 2 : 4))
    {
        std::vector<uint8_t> v(y.size());
        nbi_from_f32(v.data(), dst == NB_DST_ACT ? t : NBI_F32, before.data(), before.size());
        y.set(v);
    }
    std::vector<float> get() const
    {
        std::vector<uint8_t> v = y.get();
        std::vector<float> f(v.size() / (dst == NB_DST_ACT ? 2 : 4));
        nbi_to_f32(f.data(), v.data(), dst == NB_DST_ACT ? t : NBI_F32, f.size());
        return f;
    }
};

/* What the kernel of a tile makes of `before`. */
std::vector<float> run(const std::vector<const OnDevice *> &layers, const Kind &kind, const Acts &a, const Tile &tile,
                       uint32_t dst, const std::vector<float> &before)
{
    const nb_packed &first = layers[0]->p;
    Buffer<uint16_t> x(a.bits());
    Buffer<int8_t> q(a.codes());
    Buffer<float> scale(a.scale);
    Buffer<int32_t> sums(a.sums(first.group_len));
    Output y(dst, a.t, before);
    nb_gemm_args args = {};
    args.n_parts = (uint32_t)layers.size();
    args.x = kind.integer ? (const void *)q.ptr() : x.ptr();
    args.x_scale = kind.integer ? scale.ptr() : nullptr;
    args.x_sums = kind.integer && kind.bits == 8 && kind.asymmetric ? sums.ptr() : nullptr;
    args.y = y.y.ptr();
    args.rows = (uint32_t)a.rows;
    args.k = (uint32_t)a.k;
    args.ldy = (uint32_t)(before.size() / a.rows);
    args.dst = dst;
    for (size_t i = 0; i < layers.size(); i++) {
        args.part[i] = layers[i]->p;
        args.first_tile[i] = args.n_tiles;
        args.n_tiles += (layers[i]->p.n + tile.columns - 1) / tile.columns;
    }
    for (size_t i = layers.size(); i < 3; i++)
        args.first_tile[i] = args.n_tiles;
    EXPECT_TRUE(launch(kernel_of(kind, a.t, tile), {(args.rows + tile.rows - 1) / tile.rows, args.n_tiles, 1},
                       shared_of(kind, tile), args))
        << kind.name << " " << tile.name;
    return y.get();
}

/* ---- comparisons ---- */

/* Row r, columns from `column`, of y against what the layer computes. */
::testing::AssertionResult row_is_right(const Layer &l, const Acts &a, size_t r, size_t column, uint32_t dst,
                                        const std::vector<float> &before, const std::vector<float> &got)
{
    const size_t ldy = before.size() / a.rows;
    for (size_t n = 0; n < l.n; n++) {
        const float is = got[r * ldy + column + n], was = before[r * ldy + column + n];
        double want, bound = 0;
        if (l.kind.integer) {
            float v = exact_result(l, a, r, n);
            want = dst == NB_DST_ACT ? rounded({v}, l.t)[0] : dst == NB_DST_RESIDUAL ? was + v : v;
        } else {
            const Near v = near_result(l, a, r, n);
            want = dst == NB_DST_RESIDUAL ? was + v.value : v.value;
            bound = v.bound;
            if (dst == NB_DST_ACT)
                bound += t_rounding(std::fabs(want) + bound, l.t);
            if (dst == NB_DST_RESIDUAL)
                bound += U * (std::fabs(want) + bound);
        }
        if (!(std::fabs(is - want) <= bound))
            return ::testing::AssertionFailure() << l.kind.name << ": row " << r << ", column " << n << " of " << l.n
                                                 << ": " << is << ", expected " << want << " +- " << bound;
    }
    return ::testing::AssertionSuccess();
}

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
        const std::vector<float> y = run({&d}, kind(), a, tiles[0], dst, before);
        for (size_t r = 0; r<s.rows; r += s.rows> 40 ? 13 : 1) {
            ASSERT_TRUE(row_is_right(l, a, r, 0, dst, before, y)) << "destination " << dst;
            ASSERT_TRUE(same_bits(&y[r * ldy + s.n], &before[r * ldy + s.n], ldy - s.n)) << "beyond the columns";
        }
        for (const Tile &tile : {tiles[1], tiles[2], tiles[3]})
            ASSERT_TRUE(same_bits(run({&d}, kind(), a, tile, dst, before).data(), y.data(), y.size())) << tile.name;
        dst = (dst + 1) % 3;
        seed += 1000;
    }
}

TEST_P(Gemm, a_row_has_the_bits_it_has_alone)
{
    const size_t n = 32, k = 160;
    const Layer l = make_layer(kind(), t(), n, k, 32, true, 7);
    const Acts a = make_acts(129, k, t(), 8);
    const OnDevice d(l);
    std::vector<float> zero(129 * n);
    const std::vector<float> y = run({&d}, kind(), a, tiles[2], NB_DST_F32, zero);
    for (size_t r : {0, 1, 63, 64, 128})
        ASSERT_TRUE(
            same_bits(run({&d}, kind(), a.row(r), tiles[0], NB_DST_F32, std::vector<float>(n)).data(), &y[r * n], n))
            << "row " << r;
}

TEST_P(Gemm, three_layers_of_one_launch_are_three_launches)
{
    const size_t k = 128, rows = 18, n[3] = {80, 16, 130}, sum = 226;
    std::vector<Layer> l;
    for (size_t i = 0; i < 3; i++)
        l.push_back(make_layer(kind(), t(), n[i], k, 64, i == 1, 60 + i));
    const OnDevice a(l[0]), b(l[1]), c(l[2]);
    const Acts x = make_acts(rows, k, t(), 5);
    const std::vector<float> before = rounded(noise(rows * (sum + 2), 6), t());
    for (uint32_t dst : {NB_DST_ACT, NB_DST_RESIDUAL})
        for (size_t parts : {2, 3})
            for (const Tile &tile : {tiles[1], tiles[2]}) {
                std::vector<const OnDevice *> layers = {&a, &b, &c};
                layers.resize(parts);
                const std::vector<float> y = run(layers, kind(), x, tile, dst, before);
                size_t column = 0;
                for (size_t i = 0; i < parts; column += n[i++])
                    for (size_t r : {(size_t)0, rows - 1})
                        ASSERT_TRUE(row_is_right(l[i], x, r, column, dst, before, y))
                            << "layer " << i << " of " << parts;
                for (size_t r = 0; r < rows; r++)
                    ASSERT_TRUE(
                        same_bits(&y[r * (sum + 2) + column], &before[r * (sum + 2) + column], sum + 2 - column));
            }
}

TEST_P(Gemm, a_wrong_weight_is_noticed)
{
    const size_t n = 32, k = 192, rows = 4;
    Layer l = make_layer(kind(), t(), n, k, 64, false, 21);
    const Acts a = make_acts(rows, k, t(), 22);
    const OnDevice d(l);
    const std::vector<float> before(rows * n), y = run({&d}, kind(), a, tiles[0], NB_DST_F32, before);
    if (kind().bits)
        l.codes[5 * k + 100] = (int8_t)(l.codes[5 * k + 100] ^ 1);
    else
        l.dense[5 * k + 100] += 0.01f;
    int wrong = 0;
    for (size_t r = 0; r < rows; r++)
        wrong += !row_is_right(l, a, r, 0, NB_DST_F32, before, y);
    EXPECT_GT(wrong, 0);
}

std::string name_of(const ::testing::TestParamInfo<std::tuple<Kind, nbi_dtype>> &i)
{
    return std::string(std::get<0>(i.param).name) + (std::get<1>(i.param) == NBI_F16 ? "_f16" : "_bf16");
}

INSTANTIATE_TEST_SUITE_P(Kinds, Gemm, ::testing::Combine(::testing::ValuesIn(kinds), ::testing::ValuesIn(types())),
                         name_of);

/* ---- what is not a number stays in its row ---- */

TEST(GemmSpecial, a_scale_that_is_not_a_number_makes_its_row_so)
{
    const Kind kind = kinds[5];
    const Layer l = make_layer(kind, NBI_F16, 16, 64, 64, true, 1);
    Acts a = make_acts(3, 64, NBI_F16, 2);
    a.scale[1] = NAN;
    const OnDevice d(l);
    const std::vector<float> y = run({&d}, kind, a, tiles[0], NB_DST_ACT, std::vector<float>(48));
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
    const std::vector<float> before(32), y = run({&d}, kind, a, tiles[0], NB_DST_F32, before);
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
    const std::vector<float> y = run({&d}, kind, a, tiles[0], NB_DST_ACT, std::vector<float>(16));
    for (size_t n = 0; n < 16; n++)
        EXPECT_EQ(n == 3, std::isinf(y[n])) << n;
}

} // namespace
