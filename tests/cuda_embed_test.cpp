/* nb_embed: rows of every kind of table, exactly. */
#include "cuda_linear_util.h"

namespace
{

class Embed : public ::testing::TestWithParam<std::tuple<Kind, nbi_dtype>>
{
};

TEST_P(Embed, gives_the_rows_exactly)
{
    const auto [kind, t] = GetParam();
    const struct {
        size_t n, k, group;
        uint32_t pieces;
    } tables[] = {{1000, 64, 64, 1}, {33, 80, 16, 1}, {17, 16, 16, 2}, {64, 1040, 1040, 3}};
    uint64_t seed = 1;
    for (const auto &s : tables) {
        const Layer l = make_layer(kind, t, s.n, s.k, s.group, false, seed++);
        const OnDevice d(l);
        std::vector<int32_t> ids, pos;
        for (size_t i = 0; i < 9; i++) {
            ids.push_back((int32_t)(i == 0 ? s.n - 1 : nbi_rng(seed, i) % s.n));
            pos.push_back(i == 4 ? -1 : (int32_t)i); /* row 4 is padding */
        }
        const std::vector<float> before = noise(9 * s.k, seed);
        Buffer<int32_t> id(ids), at(pos);
        Buffer<float> x(before);
        nb_embed_args args = {};
        args.table = d.p;
        args.step.ids = id.ptr();
        args.step.pos = at.ptr();
        args.x = x.ptr();
        args.rows = 9;
        args.k = (uint32_t)s.k;
        ASSERT_TRUE(launch(NB_K_nb_embed, {9, s.pieces, 1}, 0, args));
        const std::vector<float> y = x.get();
        for (size_t r = 0; r < 9; r++)
            for (size_t j = 0; j < s.k; j++) {
                const size_t n = (size_t)ids[r], g = j / s.group;
                float want = before[r * s.k + j];
                if (r != 4)
                    want = kind.bits ? (float)(l.code(n, j) - l.zero(n, g)) * l.scales[n * l.groups + g]
                                     : l.dense[n * s.k + j];
                ASSERT_EQ(want, y[r * s.k + j])
                    << s.n << " x " << s.k << ": row " << r << ", id " << n << ", element " << j;
            }
    }
}

std::string name_of(const ::testing::TestParamInfo<std::tuple<Kind, nbi_dtype>> &i)
{
    return std::string(std::get<0>(i.param).name) + (std::get<1>(i.param) == NBI_F16 ? "_f16" : "_bf16");
}

/* A table's type is its own: bfloat16 tables are read on every architecture. */
INSTANTIATE_TEST_SUITE_P(Kinds, Embed,
                         ::testing::Combine(::testing::Values(kinds[0], kinds[1], kinds[2], kinds[3], kinds[4],
                                                              kinds[13], kinds[17]),
                                            ::testing::Values(NBI_F16, NBI_BF16)),
                         name_of);

} // namespace
