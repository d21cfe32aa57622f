/* An embedding in codes: what a model looks up, and a head that is tied to it. */
#include "cpu_model.h"

#include <cmath>

extern "C" {
#include "engine/stream.h"
}

namespace
{

const std::string DEMO = repo_file("configs/demo/model");

struct Model : CpuModel {
    using CpuModel::CpuModel;
    /* All rows of the table, as the model looks them up. */
    std::vector<float> table() const
    {
        const size_t rows = 64, vocab = m->cfg.vocab, hidden = m->cfg.hidden;
        std::vector<float> x(vocab * hidden);
        nbi_stream *s = nullptr;
        EXPECT_NB_OK(nbi_stream_create(&s, m, rows, NBI_KV_F32));
        for (size_t at = 0; at < vocab; at += rows) {
            std::vector<int32_t> ids;
            for (size_t i = at; i < vocab && i < at + rows; i++)
                ids.push_back((int32_t)i);
            EXPECT_NB_OK(nbi_stream_embed(s, ids.data(), ids.size(), &x[at * hidden]));
        }
        nbi_stream_free(s);
        return x;
    }
    std::vector<float> logits(const std::vector<int32_t> &ids) const
    {
        std::vector<float> y(ids.size() * m->cfg.vocab);
        EXPECT_NB_OK(nb_model_logits(m, ids.data(), ids.size(), y.data()));
        return y;
    }
};

void quantize(const std::string &from, const std::string &to, const std::string &recipe)
{
    nb_quantize_options o;
    nb_quantize_options_init(&o);
    o.recipe = recipe.c_str();
    o.device = "cpu";
    o.threads = 2;
    ASSERT_NB_OK(nb_quantize(from.c_str(), to.c_str(), &o, nullptr));
}

/* Rounding to the nearest of steps of s leaves errors that are even in +-s/2: their square is s^2 / 12 on average. */
void expect_rounded(const Model &dense, const Model &q, double levels, size_t group)
{
    const std::vector<float> a = dense.table(), b = q.table();
    double square = 0, expected = 0;
    for (size_t at = 0; at < a.size(); at += group) {
        double most = 0;
        for (size_t i = at; i < at + group; i++)
            most = std::max(most, std::fabs((double)a[i]));
        const double step = 2 * most / levels;
        expected += step * step / 12 * (double)group;
        for (size_t i = at; i < at + group; i++) {
            const double d = (double)a[i] - (double)b[i];
            square += d * d;
            /* half a step, a whole one where the scale's own rounding clips the largest */
            ASSERT_LE(std::fabs(d), step * (1 + 0x1p-7)) << i;
        }
    }
    EXPECT_GT(square, 0.8 * expected);
    EXPECT_LT(square, 1.2 * expected);
}

TEST(Embedding, is_rounded_where_the_recipe_names_it)
{
    TempDir d;
    const Model dense(DEMO);
    quantize(DEMO, d / "q8", repo_file("configs/recipes/w8a8.json"));
    expect_rounded(dense, Model(d / "q8"), 255, dense.m->cfg.hidden);
    write_text(d / "r.json", R"({"weights": null, "overrides": [{"match": "model.embed_tokens",
                                 "weights": {"bits": 4, "group_size": 32}}]})");
    quantize(DEMO, d / "q4", d / "r.json");
    expect_rounded(dense, Model(d / "q4"), 15, 32);
    quantize(DEMO, d / "none", repo_file("configs/recipes/w8a8-dynamic.json"));
    EXPECT_EQ(dense.table(), Model(d / "none").table());
}

TEST(Embedding, a_tied_head_multiplies_by_the_same_codes)
{
    TempDir d;
    write_text(d / "r.json",
               R"({"weights": null, "overrides": [{"match": "model.embed_tokens", "weights": {"bits": 8}}]})");
    quantize(DEMO, d / "q", d / "r.json");
    const Model dense(DEMO), q(d / "q");
    ASSERT_TRUE(dense.m->cfg.tied);
    const std::vector<int32_t> ids = {1, 2, 3, 5, 8, 13, 21, 34};
    const std::vector<float> a = dense.logits(ids), b = q.logits(ids);
    double square = 0, error = 0;
    for (size_t i = 0; i < a.size(); i++) {
        square += (double)a[i] * a[i];
        error += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    }
    EXPECT_GT(error, 0);
    EXPECT_LT(error, 1e-3 * square); /* steps of a 127th of the largest, in the table and in the head */
    EXPECT_LT(q.m->weight_bytes, dense.m->weight_bytes - q.m->cfg.vocab * q.m->cfg.hidden / 2);
}

} // namespace
