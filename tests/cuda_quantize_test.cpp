/* `nibble quantize` on the device: the folder has the bytes of the CPU's.  Only what is calibrated may differ, since the
 * activations that it is calibrated on do. */
#include "testutil.h"
#include "values.h"

#include <map>
#include <memory>
#include <set>

extern "C" {
#include "backend/quant_ops.h"
#include "base/json.h"
#include "engine/calibrate.h"
#include "format/safetensors.h"
#include "quant/recipe.h"
}

namespace
{

namespace fs = std::filesystem;

struct Quantized {
    TempDir dir;
    std::string report;
    std::string path() const { return dir / "q"; }
    std::string file(const std::string &name) const { return read_text(path() + "/" + name); }
};

void quantize(Quantized &q, const std::string &recipe, const char *device, const char *calib = nullptr)
{
    nb_quantize_options o;
    char *report = nullptr;
    nb_quantize_options_init(&o);
    o.recipe = recipe.c_str();
    o.device = device;
    o.calib = calib;
    o.calib_tokens = 48;
    o.calib_ctx = 32;
    o.threads = 2;
    ASSERT_NB_OK(nb_quantize(repo_file("configs/demo/model").c_str(), q.path().c_str(), &o, &report));
    q.report = report;
    nb_free(report);
}

/* The recipes that ship, by whether they ask for calibration. */
std::vector<std::string> recipes(bool calibrated)
{
    std::vector<std::string> v;
    for (const auto &e : fs::directory_iterator(repo_file("configs/recipes"))) {
        nbi_recipe *r = nullptr;
        if (nbi_recipe_load(&r, e.path().c_str()) != NB_OK)
            ADD_FAILURE() << nb_last_error();
        else if (nbi_recipe_needs_calibration(r) == calibrated)
            v.push_back(e.path().string());
        nbi_recipe_free(r);
    }
    std::sort(v.begin(), v.end());
    return v;
}

std::set<std::string> files(const std::string &dir)
{
    std::set<std::string> s;
    for (const auto &e : fs::directory_iterator(dir))
        s.insert(e.path().filename().string());
    return s;
}

std::string field(const std::string &report, const char *name)
{
    json_t *r = json_loads(report.c_str(), 0, nullptr);
    const char *s = json_string_value(json_object_get(r, name));
    const std::string value = s ? s : "";
    json_decref(r);
    return value;
}

class Recipe : public ::testing::TestWithParam<std::string>
{
};
class CalibratedRecipe : public ::testing::TestWithParam<std::string>
{
};

std::string name_of(const ::testing::TestParamInfo<std::string> &info)
{
    std::string s = fs::path(info.param).stem().string();
    for (char &c : s)
        c = isalnum((unsigned char)c) ? c : '_';
    return s;
}

} // namespace

TEST_P(Recipe, the_folder_has_the_bytes_of_the_cpu)
{
    Quantized gpu, cpu;
    ASSERT_NO_FATAL_FAILURE(quantize(gpu, GetParam(), "cuda:0"));
    ASSERT_NO_FATAL_FAILURE(quantize(cpu, GetParam(), "cpu"));
    EXPECT_EQ(files(cpu.path()), files(gpu.path()));
    for (const std::string &f : files(cpu.path()))
        EXPECT_TRUE(cpu.file(f) == gpu.file(f)) << f;
    EXPECT_EQ(0u, field(gpu.report, "device").find("cuda:0 ")) << field(gpu.report, "device");
    EXPECT_EQ(0u, field(cpu.report, "device").find("cpu")) << field(cpu.report, "device");
}
INSTANTIATE_TEST_SUITE_P(Shipped, Recipe, ::testing::ValuesIn(recipes(false)), name_of);

/* Activations are half on the device and fp32 on the CPU, so that each element that an observer sees differs by some 2^-11, and more
 * in later layers.  The least error over the clips is a flat one: the search, whose steps are 4.4 % and then 0.27 %, may
 * end some small steps away, or in a neighbouring large one.  Weights do not notice. */
TEST_P(CalibratedRecipe, only_the_scales_of_inputs_differ_and_by_little)
{
    const std::string text = repo_file("configs/demo/val.txt");
    Quantized gpu, cpu;
    ASSERT_NO_FATAL_FAILURE(quantize(gpu, GetParam(), "cuda:0", text.c_str()));
    ASSERT_NO_FATAL_FAILURE(quantize(cpu, GetParam(), "cpu", text.c_str()));
    EXPECT_EQ(files(cpu.path()), files(gpu.path()));
    for (const std::string &f : files(cpu.path()))
        EXPECT_TRUE(f == "model.safetensors" || f == "quant_report.json" || cpu.file(f) == gpu.file(f)) << f;
    EXPECT_EQ("cuda", field(gpu.file("quant_report.json"), "calibration_device"));
    EXPECT_EQ("cpu", field(cpu.file("quant_report.json"), "calibration_device"));
    nbi_checkpoint *a = nullptr, *b = nullptr;
    ASSERT_NB_OK(nbi_checkpoint_open(&a, gpu.path().c_str()));
    ASSERT_NB_OK(nbi_checkpoint_open(&b, cpu.path().c_str()));
    ASSERT_EQ(nbi_checkpoint_count(b), nbi_checkpoint_count(a));
    double worst = 0;
    int worst_zero = 0;
    for (size_t i = 0; i < nbi_checkpoint_count(a); i++) {
        const nbi_tensor *x = nbi_checkpoint_at(a, i), *y = nbi_checkpoint_find(b, x->name);
        ASSERT_NE(nullptr, y) << x->name;
        ASSERT_EQ(y->bytes, x->bytes) << x->name;
        if (strstr(x->name, ".input_scale")) {
            float s, t;
            nbi_to_f32(&s, x->data, x->dtype, 1);
            nbi_to_f32(&t, y->data, y->dtype, 1);
            worst = std::max(worst, std::fabs(double(s) / t - 1));
        } else if (strstr(x->name, ".input_zero_point")) {
            worst_zero = std::max(worst_zero, std::abs(*(const int8_t *)x->data - *(const int8_t *)y->data));
        } else {
            EXPECT_EQ(0, memcmp(x->data, y->data, x->bytes)) << x->name;
        }
    }
    nbi_checkpoint_close(a);
    nbi_checkpoint_close(b);
    EXPECT_LE(worst, 0.05);   /* a large step and a small one */
    EXPECT_LE(worst_zero, 8); /* 5 % of half of the codes */
    printf("input scales differ by up to %.3f %%, zero points by %d\n", 100 * worst, worst_zero);
}
INSTANTIATE_TEST_SUITE_P(Shipped, CalibratedRecipe, ::testing::ValuesIn(recipes(true)), name_of);

/* The same forward pass observed by the device, and by the host, which downloads the same activations. */
TEST(Calibration, the_device_observes_what_the_host_would)
{
    nb_model *m = nullptr;
    nb_model_options o;
    nb_model_options_init(&o);
    o.device = "cuda:0";
    ASSERT_NB_OK(nb_model_load(&m, repo_file("configs/demo/model").c_str(), &o));
    const std::string text = repo_file("configs/demo/val.txt");
    nbi_calibration *there = nullptr, *here = nullptr;
    const nb_callbacks silent = {};
    ASSERT_NE(nullptr, m->be->quant);
    ASSERT_NB_OK(nbi_calibrate(&there, m, text.c_str(), 40, 24, &silent));
    m->be->quant = nullptr;
    ASSERT_NB_OK(nbi_calibrate(&here, m, text.c_str(), 40, 24, &silent));
    for (uint32_t layer = 0; layer < m->cfg.n_layers; layer++)
        for (nbi_proj p : {NBI_Q, NBI_O, NBI_GATE, NBI_DOWN}) {
            const nbi_observer *a = nbi_calibration_of(there, layer, p), *b = nbi_calibration_of(here, layer, p);
            EXPECT_GT(a->count, 0u);
            EXPECT_EQ(b->count, a->count);
            EXPECT_EQ(b->lo, a->lo);
            EXPECT_EQ(b->hi, a->hi);
            EXPECT_EQ(b->half_range, a->half_range);
            EXPECT_EQ(0, memcmp(a->bins, b->bins, sizeof a->bins)) << "layer " << layer << " projection " << p;
        }
    nbi_calibration_free(there);
    nbi_calibration_free(here);
    nb_model_free(m);
}
