/* Grids of keys by channel: moments against double, the formula, what a text may not hold, and the way of a grid from calibration
 * into a checkpoint and out of it. */
#include "ct_testutil.h"
#include "values.h"

#include <functional>

extern "C" {
#include "engine/key_grid.h"
#include "format/safetensors.h"
#include "model/config.h"
#include "nibble.h"
}

namespace fs = std::filesystem;

namespace
{

const std::string MODEL = repo_file("configs/demo/model"), TEXT = repo_file("configs/demo/val.txt");

struct Stats {
    nbi_key_stats s = {};
    Stats(uint32_t heads, uint32_t kv_heads, uint32_t D)
    {
        nbi_config c = {};
        c.n_heads = heads;
        c.n_kv_heads = kv_heads;
        c.head_dim = D;
        EXPECT_NB_OK(nbi_key_stats_create(&s, &c));
    }
    ~Stats() { nbi_key_stats_free(&s); }
};

/* A model whose weights stay and whose INT4 cache has keys by channel. */
void make(const std::string &to, const char *more = "", const std::string &stats = "")
{
    const std::string recipe = to + ".json";
    write_text(recipe, std::string(R"({"weights": null, "kv_dtype": "int4", "kv_keys": "channel")") + more + "}");
    nb_quantize_options o;
    nb_quantize_options_init(&o);
    o.recipe = recipe.c_str();
    o.calib = TEXT.c_str();
    o.calib_tokens = 600;
    o.calib_ctx = 128;
    o.device = "cpu";
    o.stats = stats.empty() ? nullptr : stats.c_str();
    ASSERT_NB_OK(nb_quantize(MODEL.c_str(), to.c_str(), &o, nullptr));
}

struct Model {
    nb_model *m = nullptr;
    nb_status st;
    explicit Model(const std::string &path)
    {
        nb_model_options o;
        nb_model_options_init(&o);
        o.device = "cpu";
        st = nb_model_load(&m, path.c_str(), &o);
    }
    ~Model() { nb_model_free(m); }
};

/* Against the model as it was. */
nb_eval_result eval(const std::string &path, const char *kv)
{
    nb_eval_options o;
    nb_eval_options_init(&o);
    o.text = TEXT.c_str();
    o.ctx = 128;
    o.max_windows = 3;
    o.kv_dtype = kv;
    nb_eval_result r = {};
    r.struct_size = sizeof r;
    Model model(path), base(MODEL);
    EXPECT_NB_OK(model.st);
    EXPECT_NB_OK(nb_eval(model.m, base.m, &o, &r));
    return r;
}

/* The tensors of a folder, changed. */
void rewrite(const std::string &from, const std::string &to, const std::function<void(std::vector<Raw> &)> &change)
{
    std::vector<Raw> raw;
    nbi_checkpoint *c = nullptr;
    fs::create_directories(to);
    for (const char *f : {"config.json", "tokenizer.json"})
        fs::copy_file(from + "/" + f, to + "/" + f);
    ASSERT_NB_OK(nbi_checkpoint_open(&c, from.c_str()));
    for (size_t i = 0; i < nbi_checkpoint_count(c); i++) {
        const nbi_tensor *t = nbi_checkpoint_at(c, i);
        raw.push_back({t->name, t->dtype, std::vector<size_t>(t->shape, t->shape + t->n_dims),
                       std::string((const char *)t->data, t->bytes)});
    }
    nbi_checkpoint_close(c);
    change(raw);
    write_raw(to, raw);
}

} // namespace

TEST(KeyGrid, is_mean_and_root_of_the_spread_of_each_channel_with_the_geometric_mean_one)
{
    const uint32_t heads = 6, kv = 3, D = 20, width = (heads + 2 * kv) * D, tokens = 56;
    std::vector<float> x = noise(tokens * width, 3);
    for (size_t t = 0; t < tokens; t++)
        for (size_t i = 0; i < width; i++) {
            float &v = x[t * width + i];
            const size_t h = i / D, d = i % D;
            if (h < heads)
                v *= 20; /* a query */
            else if (d == 7)
                v = 2.5f; /* a channel that never moves */
            else
                v = (d == 5 ? 40.0f : 0.0f) + v * (d == 4 ? 30.0f : 1.0f + (float)h);
        }
    Stats s(heads, kv, D);
    for (int again = 0; again < 2; again++) { /* the second time after clear(); queries and values are not looked at */
        ASSERT_NB_OK(nbi_key_stats_add(&s.s, x.data(), 37));
        ASSERT_NB_OK(nbi_key_stats_add(&s.s, x.data() + 37 * width, tokens - 37));
        std::vector<float> shift(kv * D), scale(kv * D);
        nbi_key_grid_make(&s.s, shift.data(), scale.data());
        for (uint32_t h = 0; h < kv; h++) {
            std::vector<double> want(D);
            double logs = 0, product = 0;
            for (uint32_t d = 0; d < D; d++) {
                double mean = 0, spread = 0;
                const auto at = [&](size_t t, size_t head) { return (double)x[t * width + head * D + d]; };
                for (size_t t = 0; t < tokens; t++)
                    mean += at(t, heads + h) / tokens;
                for (size_t t = 0; t < tokens; t++)
                    spread += std::pow(at(t, heads + h) - mean, 2) / tokens;
                want[d] = std::sqrt(std::sqrt(spread));
                EXPECT_NEAR(mean, shift[h * D + d], 1e-6 * (1 + std::fabs(mean)));
                logs += d == 7 ? 0 : std::log(want[d]) / (D - 1);
            }
            for (uint32_t d = 0; d < D; d++) {
                const double w = d == 7 ? 1 : want[d] / std::exp(logs);
                EXPECT_NEAR(w, scale[h * D + d], 1e-5 * w) << h << " " << d;
                product += std::log((double)scale[h * D + d]);
            }
            EXPECT_NEAR(0, product, 1e-4);
        }
        nbi_key_stats_clear(&s.s);
    }
}

TEST(KeyGrid, far_spreads_are_limited_and_dead_heads_stay_as_they_are)
{
    Stats s(2, 2, 4);
    std::vector<float> x(16 * 24, 1.0f);
    for (size_t t = 0; t < 16; t++)
        for (size_t d = 0; d < 8; d++)
            x[t * 24 + 8 + d] = d >= 4 ? 0.0f : (t % 2 ? 1.0f : -1.0f) * (d == 3 ? 1e6f : 1e-6f);
    ASSERT_NB_OK(nbi_key_stats_add(&s.s, x.data(), 16));
    float shift[8], scale[8];
    nbi_key_grid_make(&s.s, shift, scale);
    EXPECT_EQ(64.0f, scale[3]);
    EXPECT_EQ(1 / 64.0f, scale[0] < 1 / 64.0f ? scale[0] : 1 / 64.0f);
    for (int d = 4; d < 8; d++) {
        EXPECT_EQ(0.0f, shift[d]);
        EXPECT_EQ(1.0f, scale[d]);
    }
}

TEST(KeyGrid, a_number_that_is_none_is_named)
{
    Stats s(3, 1, 6);
    std::vector<float> x(5 * 30, 1.0f);
    x[3 * 30 + 18 + 4] = NAN;
    EXPECT_FAILS(NB_EFORMAT, "channel 4 of kv head 0 is NaN", nbi_key_stats_add(&s.s, x.data(), 5));
    x[3 * 30 + 18 + 4] = 1;
    x[2 * 30 + 18 + 5] = -INFINITY;
    EXPECT_FAILS(NB_EFORMAT, "channel 5 of kv head 0 is infinite", nbi_key_stats_add(&s.s, x.data(), 5));
    x[2 * 30 + 18 + 5] = 1;
    x[29] = x[2] = NAN; /* a value, a query: the next layer will tell */
    EXPECT_NB_OK(nbi_key_stats_add(&s.s, x.data(), 5));
}

TEST(KeysByChannel, belong_to_the_checkpoint_and_serve_integer_caches_alone)
{
    TempDir d;
    ASSERT_NO_FATAL_FAILURE(make(d / "q"));
    nbi_checkpoint *c = nullptr;
    ASSERT_NB_OK(nbi_checkpoint_open(&c, (d / "q").c_str()));
    for (uint32_t i = 0; i < 4; i++)
        for (bool scale : {false, true}) {
            char name[96];
            nbi_key_grid_name(name, i, scale);
            const nbi_tensor *t = nbi_checkpoint_find(c, name);
            ASSERT_NE(nullptr, t) << name;
            EXPECT_EQ(NBI_F32, t->dtype);
            EXPECT_EQ(128u, t->n_elements) << "4 heads of 32";
            size_t other = 0;
            for (size_t e = 0; e < 128; e++)
                other += std::fabs(((const float *)t->data)[e] - (scale ? 1.0f : 0.0f)) > 0.05f;
            EXPECT_GT(other, 32u) << name << " says little";
        }
    nbi_checkpoint_close(c);
    EXPECT_EQ(0, eval(d / "q", "f32").max_kld) << "the weights stayed, and float keys have no grid";
    const nb_eval_result own = eval(d / "q", nullptr), four = eval(d / "q", "int4"), eight = eval(d / "q", "int8");
    EXPECT_EQ(four.perplexity, own.perplexity) << "int4 is what it was made for";
    EXPECT_LT(four.mean_kld, 0.95 * eval(MODEL, "int4").mean_kld);
    EXPECT_LT(eight.mean_kld, four.mean_kld / 20);
    EXPECT_NE(eight.mean_kld, eval(MODEL, "int8").mean_kld);
    char *json = nullptr;
    ASSERT_NB_OK(nb_inspect((d / "q").c_str(), &json));
    EXPECT_NE(nullptr, strstr(json, "\"kv_keys\": \"channel\"")) << json;
    nb_free(json);
}

TEST(KeysByChannel, come_from_saved_statistics_as_from_the_text)
{
    TempDir d;
    ASSERT_NO_FATAL_FAILURE(make(d / "plain"));
    for (const char *q : {"a", "b"}) { /* writes the statistics, reads them */
        ASSERT_NO_FATAL_FAILURE(make(d / q, "", d / "stats.safetensors"));
        EXPECT_EQ(read_text(d / "plain/model.safetensors"), read_text(d / (std::string(q) + "/model.safetensors")))
            << q;
    }
}

TEST(KeysByChannel, that_are_damaged_are_refused)
{
    TempDir d;
    ASSERT_NO_FATAL_FAILURE(make(d / "q"));
    const struct {
        const char *what, *why;
        std::function<void(Raw &)> change;
    } cases[] = {
        {"k_channel_scale", "expected float [128]",
         [](Raw &r) {
             r.shape[0]--;
             r.data.resize(r.data.size() - 4);
         }},
        {"k_channel_shift", "expected float [128]",
         [](Raw &r) {
             r.shape = {4, 32};
         }},
        {"k_channel_scale", "element 5 of model.layers.2.self_attn.k_channel_scale is NaN",
         [](Raw &r) { ((float *)&r.data[0])[5] = NAN; }},
        {"k_channel_shift", "element 127 of model.layers.2.self_attn.k_channel_shift is NaN or infinite",
         [](Raw &r) { ((float *)&r.data[0])[127] = INFINITY; }},
        {"k_channel_scale", "element 3 is 0, expected a positive", [](Raw &r) { ((float *)&r.data[0])[3] = 0; }},
        {"k_channel_scale", "element 3 is -1, expected a positive", [](Raw &r) { ((float *)&r.data[0])[3] = -1; }},
        {"k_channel_scale", "k_channel_scale: is missing", [](Raw &r) { r.name += "s"; }},
        {"k_channel_shift", "k_channel_shift: is missing", [](Raw &r) { r.name += "s"; }},
        {"k_channel_shift", "expected float [128]", [](Raw &r) { r.dtype = NBI_I32; }},
    };
    int i = 0;
    for (const auto &c : cases) {
        const std::string to = d / ("bad" + std::to_string(i++));
        ASSERT_NO_FATAL_FAILURE(rewrite(d / "q", to, [&](std::vector<Raw> &raw) {
            for (Raw &r : raw)
                if (r.name == std::string("model.layers.2.self_attn.") + c.what) {
                    c.change(r);
                    break;
                }
        }));
        EXPECT_FAILS(NB_EFORMAT, c.why, Model(to).st);
    }
}
