/* The decode form of linear layers (cuda/gemv.cuh): every kind, type, destination and number of rows against double
 * precision, and against the large form bit for bit; any cut of the work gives the same bits. */
#include "cuda_linear_util.h"

#include "gemv_plan.h"

namespace
{

/* ---- launches ---- */

nb_kernel kernel_of(const Kind &kind, nbi_dtype t)
{
    return of_type(nbi_cuda_kinds[kind.packed].kernels[kind.integer].gemv, t);
}

/* How the work is cut; 0: as nb_gemv_plan() says. */
struct Cut {
    uint32_t panels, round, grid;
};

std::vector<float> run(const std::vector<const OnDevice *> &layers, const Kind &kind, const Acts &a, uint32_t dst,
                       const std::vector<float> &before, Cut cut = {0, 0, 0})
{
    const Input in(kind, a, layers[0]->p.group_len);
    const Output y(dst, a.t, before);
    nb_gemv_args args = {};
    args.g = in.args(layers, y, before.size() / a.rows);
    const uint32_t x_size = kind.integer ? 1 : 2;
    nb_gemv_launch l = nb_gemv_plan(&args, x_size, (uint32_t)device()->n_sm, (uint32_t)device()->max_shared);
    EXPECT_GT(l.grid, 0u);
    if (cut.panels) {
        args.panels = cut.panels;
        args.round = std::min(cut.round, args.tasks);
        l.shared = nb_gemv_lay_out(&args, x_size);
        l.grid = nb_gemv_tiles(&args);
    }
    if (cut.grid)
        l.grid = cut.grid;
    EXPECT_TRUE(launch(kernel_of(kind, a.t), {l.grid, 1, 1}, l.shared, args)) << kind.name;
    return y.get();
}

class Gemv : public ::testing::TestWithParam<std::tuple<Kind, nbi_dtype>>
{
  protected:
    Kind kind() const { return std::get<0>(GetParam()); }
    nbi_dtype t() const { return std::get<1>(GetParam()); }
};

struct Shape {
    size_t rows, n, k, group; /* group 0: K */
    bool bias;
};

/* Odd numbers of columns, K that no unit divides, groups that begin inside a unit, segments that do. */
const Shape shapes[] = {{1, 16, 64, 0, false},    {2, 48, 80, 0, true},     {3, 80, 192, 64, false},
                        {4, 1000, 96, 32, true},  {5, 64, 1040, 0, false},  {6, 144, 1024, 128, true},
                        {7, 32, 96, 96, true},    {8, 16, 1600, 800, true}, {8, 33, 4608, 0, false},
                        {1, 40, 2112, 352, true}, {2, 16, 4160, 32, false}, {8, 32, 704, 64, true}};
/* Only float activations: groups of 16. */
const Shape float_shapes[] = {{5, 33, 48, 16, true},
                              {6, 96, 240, 48, true},
                              {2, 16, 16, 16, false},
                              {8, 8, 112, 112, true},
                              {3, 24, 1056, 48, true}};

TEST_P(Gemv, has_the_bits_of_the_large_form_and_they_are_right)
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
        const std::vector<float> y = run({&d}, kind(), a, dst, before);
        for (size_t r = 0; r < s.rows; r++) {
            ASSERT_TRUE(row_is_right(l, a, r, 0, dst, before, y)) << "destination " << dst;
            ASSERT_TRUE(same_bits(&y[r * ldy + s.n], &before[r * ldy + s.n], ldy - s.n)) << "beyond the columns";
        }
        ASSERT_TRUE(same_bits(run_gemm({&d}, kind(), a, gemm_tiles[0], dst, before).data(), y.data(), y.size()));
        dst = (dst + 1) % 3;
        seed += 1000;
    }
}

TEST_P(Gemv, any_cut_gives_the_same_bits)
{
    uint64_t seed = 1;
    for (const Shape &s :
         {Shape{8, 136, 3104, 0, true}, Shape{3, 136, 1280, 64, true}, Shape{1, 136, 1056, 352, false}}) {
        const Layer l = make_layer(kind(), t(), s.n, s.k, s.group ? s.group : s.k, s.bias, seed);
        const Acts a = make_acts(s.rows, s.k, t(), seed + 1);
        const OnDevice d(l);
        const std::vector<float> before = noise(s.rows * s.n, seed + 2),
                                 y = run({&d}, kind(), a, NB_DST_RESIDUAL, before);
        ASSERT_TRUE(row_is_right(l, a, s.rows - 1, 0, NB_DST_RESIDUAL, before, y));
        for (Cut cut : {Cut{1, 1, 0}, Cut{1, 99, 2}, Cut{2, 2, 1}, Cut{3, 3, 2}, Cut{8, 1, 0}, Cut{8, 1, 1}})
            ASSERT_TRUE(same_bits(run({&d}, kind(), a, NB_DST_RESIDUAL, before, cut).data(), y.data(), y.size()))
                << s.rows << " rows of " << s.k << ", " << cut.panels << " panels, rounds of " << cut.round << ", "
                << cut.grid << " blocks";
        seed += 10;
    }
}

TEST_P(Gemv, a_row_has_the_bits_it_has_alone)
{
    const size_t n = 32, k = 1184;
    const Layer l = make_layer(kind(), t(), n, k, 32, true, 7);
    const OnDevice d(l);
    const Acts a = make_acts(8, k, t(), 8);
    const std::vector<float> y = run({&d}, kind(), a, NB_DST_F32, std::vector<float>(8 * n));
    for (size_t r = 0; r < 8; r++)
        ASSERT_TRUE(same_bits(run({&d}, kind(), a.row(r), NB_DST_F32, std::vector<float>(n)).data(), &y[r * n], n))
            << "row " << r;
}

TEST_P(Gemv, three_layers_of_one_launch_are_three_launches)
{
    for (Cut cut : {Cut{0, 0, 0}, Cut{4, 1, 2}})
        check_parts(kind(), t(), 640, 3, [&](const auto &layers, const Acts &x, uint32_t dst, const auto &before) {
            return run(layers, kind(), x, dst, before, cut);
        });
}

TEST_P(Gemv, a_wrong_weight_is_noticed)
{
    check_wrong_weight(kind(), t(), [&](const auto &layers, const Acts &x, uint32_t dst, const auto &before) {
        return run(layers, kind(), x, dst, before);
    });
}

INSTANTIATE_TEST_SUITE_P(Kinds, Gemv, ::testing::Combine(::testing::ValuesIn(kinds), ::testing::ValuesIn(types())),
                         linear_name);

/* ---- what is not a number stays in its row ---- */

TEST(GemvSpecial, a_scale_that_is_not_a_number_makes_its_row_so)
{
    const Kind kind = kinds[5];
    const Layer l = make_layer(kind, NBI_F16, 16, 64, 64, true, 1);
    Acts a = make_acts(3, 64, NBI_F16, 2);
    a.scale[1] = NAN;
    const OnDevice d(l);
    const std::vector<float> y = run({&d}, kind, a, NB_DST_ACT, std::vector<float>(48));
    for (size_t i = 0; i < 48; i++)
        EXPECT_EQ(i / 16 == 1, std::isnan(y[i])) << i;
}

TEST(GemvSpecial, an_input_that_is_not_a_number_stays_in_its_row)
{
    for (const Kind &kind : {kinds[0], kinds[1], kinds[3], kinds[12], kinds[16]}) {
        const Layer l = make_layer(kind, NBI_F16, 16, 96, 96, true, 1);
        Acts a = make_acts(4, 96, NBI_F16, 2);
        a.x[2 * 96 + 50] = NAN;
        a.x[3 * 96 + 95] = INFINITY;
        const OnDevice d(l);
        const std::vector<float> y = run({&d}, kind, a, NB_DST_ACT, std::vector<float>(64));
        for (size_t i = 0; i < 48; i++)
            EXPECT_EQ(i / 16 == 2, std::isnan(y[i])) << kind.name << i;
        for (size_t i = 48; i < 64; i++)
            EXPECT_FALSE(std::isfinite(y[i]) && l.weight(i - 48, 95) != 0) << kind.name << i;
    }
}

TEST(GemvSpecial, the_largest_integers_do_not_overflow)
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
    const std::vector<float> before(32), y = run({&d}, kind, a, NB_DST_F32, before);
    EXPECT_TRUE(row_is_right(l, a, 0, 0, NB_DST_F32, before, y));
}

/* ---- the plan ---- */

/* Shapes of real models on real devices: it fits, fills the device where there is work, and leaves no tile out. */
TEST(GemvPlan, fits_every_device)
{
    const struct {
        uint32_t n_sm, shared;
    } devices[] = {{40, 64 * 1024}, {108, 163 * 1024}, {128, 99 * 1024}, {132, 227 * 1024}};
    const struct {
        uint32_t n, k;
    } layers[] = {{6144, 4096}, {4096, 14336}, {128256, 8192}, {1000, 1040}, {16, 16}, {8192, 28672}, {5120, 53248}};
    for (const auto &dev : devices)
        for (const auto &l : layers)
            for (uint32_t rows = 1; rows <= NB_GEMV_ROWS; rows++)
                for (uint32_t kind : {NB_W_DENSE, NB_W_W8, NB_W_W4, NB_W_W2, NB_W_W3})
                    for (uint32_t group : {0, 16, 32, 128})
                        for (uint32_t x_size : {1, 2}) {
                            if (group && l.k % group)
                                continue;
                            nb_gemv_args a = {};
                            a.g.n_parts = 2;
                            a.g.rows = rows;
                            a.g.k = l.k;
                            for (nb_packed &p : a.g.part) {
                                p.kind = kind;
                                p.n = l.n;
                                p.k = l.k;
                                p.group_len = group && kind != NB_W_DENSE ? group : l.k;
                                p.groups = l.k / p.group_len;
                            }
                            const nb_gemv_launch p = nb_gemv_plan(&a, x_size, dev.n_sm, dev.shared);
                            SCOPED_TRACE(::testing::Message() << l.n << " x " << l.k << ", " << rows << " rows, kind "
                                                              << kind << ", groups of " << group << ", " << dev.n_sm);
                            ASSERT_GT(p.grid, 0u);
                            ASSERT_LE(p.shared, std::min(dev.shared, NB_GEMV_MAX_SHARED));
                            ASSERT_LE(p.grid, 2 * dev.n_sm);
                            ASSERT_LE(a.panels, NB_GEMV_MAX_PANELS);
                            ASSERT_GE((uint64_t)a.round * a.rounds, a.tasks);
                            ASSERT_LT((uint64_t)a.round * (a.rounds - 1), a.tasks);
                            ASSERT_GE((uint64_t)a.g.n_tiles * a.panels * 16, 2 * (uint64_t)l.n);
                            ASSERT_EQ(a.g.first_tile[2], a.g.n_tiles);
                        }
}

} // namespace
