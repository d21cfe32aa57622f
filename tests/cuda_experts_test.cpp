/* The experts' layers of a mixture (cuda/moe_gemv.cu, cuda/moe_gemm.cu): each result has the bits of the expert's
 * layer alone. */
#include "cuda_linear_util.h"

#include "gemv_plan.h"

namespace
{

/* ---- who goes where ---- */

struct Routing {
    size_t rows, top_k, experts;
    std::vector<int32_t> expert;         /* [rows * top_k] */
    std::vector<int32_t> offset, sorted; /* as nb_moe_sort makes them */
};

Routing make_routing(size_t rows, size_t top_k, const std::vector<int32_t> &expert, size_t experts)
{
    Routing r = {rows, top_k, experts, expert, {0}, {}};
    for (size_t e = 0; e < experts; e++) {
        for (size_t i = 0; i < expert.size(); i++)
            if (expert[i] == (int32_t)e)
                r.sorted.push_back((int32_t)i);
        r.offset.push_back((int32_t)r.sorted.size());
    }
    return r;
}

/* ---- launches ---- */

nb_kernel kernel_of(const Kind &kind, nbi_dtype t, bool large)
{
    const nb_kernel gemv = kind.integer     ? NB_K_nb_moe_gemv_w8a8_f16
                           : kind.bits == 0 ? NB_K_nb_moe_gemv_dense_f16
                           : kind.bits == 8 ? NB_K_nb_moe_gemv_w8_f16
                                            : NB_K_nb_moe_gemv_w4_f16;
    return of_type((nb_kernel)(gemv + (large ? 2 : 0)), t);
}

/* y [assignments][n], in the order of `sorted`.  top_k 0: row i of x is that of assignment i. */
std::vector<float> run(const std::vector<nb_packed> &experts, const Kind &kind, const Acts &a, const Routing &r,
                       uint32_t top_k, bool large, uint32_t dst)
{
    const size_t n = experts[0].n, all = r.sorted.size();
    const Input in(kind, a, experts[0].group_len);
    const Output y(dst, a.t, std::vector<float>(all * n));
    Buffer<nb_packed> layers(experts);
    Buffer<int32_t> offset(r.offset), sorted(r.sorted);
    nb_moe_gemm_args m = {};
    m.v.g = in.args({}, y, n);
    m.v.g.n_parts = 1;
    m.v.g.part[0] = experts[0];
    m.v.g.part[0].w = nullptr; /* only the shape is looked at */
    m.v.g.rows = NB_GEMV_ROWS;
    m.experts = layers.ptr();
    m.offset = offset.ptr();
    m.sorted = sorted.ptr();
    m.n_experts = (uint32_t)r.experts;
    m.top_k = top_k;
    const nb_gemv_launch p =
        nb_gemv_plan(&m.v, kind.integer ? 1 : 2, (uint32_t)device()->n_sm, (uint32_t)device()->max_shared);
    const uint32_t pieces = (uint32_t)NB_MOE_PIECES(all, r.experts, large ? NB_MOE_ROWS : NB_GEMV_ROWS);
    if (large)
        EXPECT_TRUE(launch(kernel_of(kind, a.t, true), {pieces, (uint32_t)(n + NB_MOE_COLUMNS - 1) / NB_MOE_COLUMNS, 1},
                           gemm_shared(kind, gemm_tiles[1]), m));
    else
        EXPECT_TRUE(launch(kernel_of(kind, a.t, false), {p.grid, pieces, 1}, p.shared, m));
    return y.get();
}

/* Rows `which` of a. */
Acts some_rows(const Acts &a, const std::vector<size_t> &which)
{
    Acts s = {which.size(), a.k, a.t, {}, {}, {}};
    for (size_t r : which) {
        const Acts one = a.row(r);
        s.x.insert(s.x.end(), one.x.begin(), one.x.end());
        s.q.insert(s.q.end(), one.q.begin(), one.q.end());
        s.scale.push_back(one.scale[0]);
    }
    return s;
}

class Moe : public ::testing::TestWithParam<std::tuple<Kind, nbi_dtype>>
{
};

TEST_P(Moe, each_result_has_the_bits_of_its_expert_alone)
{
    const auto [kind, t] = GetParam();
    const size_t n = 72, k = 704, experts = 40;
    /* experts without rows, with one, with more than a piece: of the first 32 and of those behind them */
    std::vector<int32_t> to;
    for (size_t i = 0; i < 2 * 37; i++)
        to.push_back(i % 7 == 0 ? 3 : i % 5 == 0 ? 35 : i < 66 ? 17 : (int32_t)(20 + i - 66));
    const Routing r = make_routing(37, 2, to, experts);
    std::vector<Layer> layers;
    std::vector<std::unique_ptr<OnDevice>> device_layers;
    std::vector<nb_packed> packed(experts);
    for (size_t e = 0; e < experts; e++)
        if (r.offset[e + 1] > r.offset[e]) {
            layers.push_back(make_layer(kind, t, n, k, 352, true, 10 * e));
            device_layers.push_back(std::make_unique<OnDevice>(layers.back()));
            packed[e] = device_layers.back()->p;
        }
    packed[0] = packed[3]; /* its shape */
    const Acts a = make_acts(r.rows, k, t, 5);
    for (bool large : {false, true})
        for (uint32_t dst : {NB_DST_ACT, NB_DST_F32}) {
            const std::vector<float> y = run(packed, kind, a, r, (uint32_t)r.top_k, large, dst);
            for (size_t e = 0, used = 0; e < experts; e++) {
                const size_t first = (size_t)r.offset[e], count = (size_t)r.offset[e + 1] - first;
                std::vector<size_t> rows;
                for (size_t i = 0; i < count; i++)
                    rows.push_back((size_t)r.sorted[first + i] / r.top_k);
                if (!count)
                    continue;
                const std::vector<float> before(count * n);
                const Acts x = some_rows(a, rows);
                const std::vector<float> want =
                    run_gemm({device_layers[used].get()}, kind, x, gemm_tiles[0], dst, before);
                ASSERT_TRUE(row_is_right(layers[used], x, 0, 0, dst, before, want));
                ASSERT_TRUE(same_bits(&y[first * n], want.data(), want.size()))
                    << "expert " << e << ", " << count << " rows, " << (large ? "large form" : "decode form");
                used++;
            }
            std::vector<size_t> order;
            for (int32_t i : r.sorted)
                order.push_back((size_t)i / r.top_k);
            ASSERT_TRUE(same_bits(run(packed, kind, some_rows(a, order), r, 0, large, dst).data(), y.data(), y.size()))
                << "rows in the order of their experts";
        }
}

std::string name_of(const ::testing::TestParamInfo<std::tuple<Kind, nbi_dtype>> &i)
{
    return std::string(std::get<0>(i.param).name) + (std::get<1>(i.param) == NBI_F16 ? "_f16" : "_bf16");
}

INSTANTIATE_TEST_SUITE_P(Kinds, Moe,
                         ::testing::Combine(::testing::Values(kinds[0], kinds[1], kinds[2], kinds[3], kinds[4],
                                                              kinds[5], kinds[8]),
                                            ::testing::ValuesIn(types())),
                         name_of);

TEST(MoeSpecial, one_token)
{
    const Kind kind = kinds[3];
    const Routing r = make_routing(1, 2, {1, 0}, 2);
    const Layer l[2] = {make_layer(kind, NBI_F16, 32, 128, 64, false, 1),
                        make_layer(kind, NBI_F16, 32, 128, 64, false, 2)};
    const OnDevice d0(l[0]), d1(l[1]);
    const Acts a = make_acts(1, 128, NBI_F16, 3);
    for (bool large : {false, true}) {
        const std::vector<float> y = run({d0.p, d1.p}, kind, a, r, 2, large, NB_DST_F32), zero(32);
        for (size_t e = 0; e < 2; e++)
            EXPECT_TRUE(row_is_right(l[e], a, 0, 0, NB_DST_F32, zero, std::vector<float>(&y[e * 32], &y[e * 32] + 32)));
    }
}

} // namespace
