/* A model with outliers that change nothing in floating point: a few channels behind each norm are 64 times larger, the columns
 * that read them 64 times smaller (a power of two: no bit of a product changes).  INT8 activations with one scale a token then
 * lose nearly all of the other channels; methods made for outliers must not. */
#include "testutil.h"
#include "values.h"

extern "C" {
#include "base/dtype.h"
#include "format/safetensors.h"
}

namespace
{

constexpr size_t kHidden = 256;
constexpr size_t kPlanted[] = {3, 40, 77, 101, 150, 202, 251};

bool ends_with(const std::string &s, const std::string &end)
{
    return s.size() >= end.size() && s.compare(s.size() - end.size(), end.size(), end) == 0;
}

void plant(const std::string &src, const std::string &dst)
{
    std::filesystem::create_directories(dst);
    for (const char *f : {"config.json", "tokenizer.json"})
        std::filesystem::copy_file(src + "/" + f, dst + "/" + f);
    nbi_checkpoint *c = nullptr;
    nbi_st_writer *w = nullptr;
    ASSERT_NB_OK(nbi_checkpoint_open(&c, src.c_str()));
    ASSERT_NB_OK(nbi_st_writer_create(&w, dst.c_str(), (size_t)1 << 30));
    for (size_t i = 0; i < nbi_checkpoint_count(c); i++) {
        const nbi_tensor *t = nbi_checkpoint_at(c, i);
        ASSERT_NB_OK(nbi_st_declare(w, t->name, t->dtype, t->n_dims, t->shape));
    }
    for (size_t i = 0; i < nbi_checkpoint_count(c); i++) {
        const nbi_tensor *t = nbi_checkpoint_at(c, i);
        const std::string name = t->name;
        const bool norm = ends_with(name, "_layernorm.weight");
        bool reader = false;
        for (const char *p : {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"})
            reader = reader || ends_with(name, std::string(p) + ".weight");
        std::vector<float> x(t->n_elements);
        std::vector<unsigned char> raw(t->bytes);
        nbi_to_f32(x.data(), t->data, t->dtype, x.size());
        for (size_t row = 0; (norm || reader) && row < x.size() / kHidden; row++)
            for (size_t j : kPlanted)
                x[row * kHidden + j] *= norm ? 64.0f : 1.0f / 64;
        nbi_from_f32(raw.data(), t->dtype, x.data(), x.size());
        ASSERT_NB_OK(nbi_st_write(w, t->name, raw.data(), raw.size()));
    }
    ASSERT_NB_OK(nbi_st_finish(w));
    nbi_st_writer_free(w);
    nbi_checkpoint_close(c);
}

void quantize(const std::string &src, const std::string &dst, const char *recipe)
{
    const std::string text = repo_file("configs/demo/val.txt"), path = repo_file("configs/recipes/") + recipe + ".json";
    nb_quantize_options o;
    nb_quantize_options_init(&o);
    o.recipe = path.c_str();
    o.calib = text.c_str();
    o.calib_tokens = 1024;
    o.calib_ctx = 256;
    o.threads = 2;
    ASSERT_NB_OK(nb_quantize(src.c_str(), dst.c_str(), &o, nullptr));
}

double perplexity(const std::string &path)
{
    nb_model *m = nullptr;
    nb_model_options mo;
    nb_eval_options eo;
    nb_eval_result r = {};
    const std::string text = repo_file("configs/demo/val.txt");
    nb_model_options_init(&mo);
    nb_eval_options_init(&eo);
    mo.threads = 2;
    mo.device = "cpu";
    eo.text = text.c_str();
    eo.ctx = 256;
    eo.max_windows = 12;
    r.struct_size = sizeof r;
    EXPECT_NB_OK(nb_model_load(&m, path.c_str(), &mo));
    if (m) {
        EXPECT_NB_OK(nb_eval(m, nullptr, &eo, &r));
    }
    nb_model_free(m);
    return r.perplexity;
}

} // namespace

TEST(Outliers, break_plain_int8_and_not_the_methods_made_for_them)
{
    TempDir dir;
    const std::string demo = repo_file("configs/demo/model"), fp = dir / "fp";
    plant(demo, fp);
    const double before = perplexity(demo), same = perplexity(fp);
    EXPECT_EQ(before, same);
    for (const char *recipe : {"w8a8-dynamic", "w8a8-smoothquant", "llm-int8", "w4a8kv4-rotated"}) {
        quantize(fp, dir / recipe, recipe);
        const double loss = perplexity(dir / recipe) / same - 1;
        printf("%s: %+.3f %%\n", recipe, 100 * loss);
        if (std::string(recipe) == "w8a8-dynamic")
            EXPECT_GT(loss, 0.01);
        else if (std::string(recipe) == "w4a8kv4-rotated") /* INT4 weights and KV cache, too */
            EXPECT_LT(loss, 0.02);
        else
            EXPECT_LT(loss, 0.003) << recipe;
    }
}
