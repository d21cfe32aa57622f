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
#include "format/safetensors.h"
#include "model/sequence.h"
#include "quant/inputs_device.h"
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

enum Kind { NO_TEXT, RANGES, METHOD }; /* of METHOD some are tested */

/* The recipes that ship, by what they ask a text for. */
std::vector<std::string> recipes(Kind kind)
{
    std::vector<std::string> v;
    for (const auto &e : fs::directory_iterator(repo_file("configs/recipes"))) {
        nbi_recipe *r = nullptr;
        if (nbi_recipe_load(&r, e.path().c_str()) != NB_OK)
            ADD_FAILURE() << nb_last_error();
        else if ((!nbi_recipe_needs_text(r)                   ? NO_TEXT
                  : nbi_recipe_method(r, nullptr)->needs != 0 ? METHOD
                                                              : RANGES) == kind)
            v.push_back(e.path().string());
        nbi_recipe_free(r);
    }
    std::sort(v.begin(), v.end());
    return v;
}

/* The SQNR of each layer. */
std::vector<double> errors(const std::string &report)
{
    std::vector<double> v;
    json_t *r = json_loads(report.c_str(), 0, nullptr), *row;
    size_t i;
    json_array_foreach(json_object_get(r, "modules"), i, row)
        v.push_back(json_number_value(json_object_get(row, "sqnr_db")));
    json_decref(r);
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
class MethodRecipe : public ::testing::TestWithParam<std::string>
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
INSTANTIATE_TEST_SUITE_P(Shipped, Recipe, ::testing::ValuesIn(recipes(NO_TEXT)), name_of);

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
INSTANTIATE_TEST_SUITE_P(Shipped, CalibratedRecipe, ::testing::ValuesIn(recipes(RANGES)), name_of);

/* What methods round with comes from activations in half, and each rounding that falls the other way moves the ones after it: codes
 * may differ, but not what they are worth. */
TEST_P(MethodRecipe, is_as_good_as_on_the_cpu)
{
    const std::string text = repo_file("configs/demo/val.txt");
    Quantized gpu, cpu;
    ASSERT_NO_FATAL_FAILURE(quantize(gpu, GetParam(), "cuda:0", text.c_str()));
    ASSERT_NO_FATAL_FAILURE(quantize(cpu, GetParam(), "cpu", text.c_str()));
    EXPECT_EQ(files(cpu.path()), files(gpu.path()));
    EXPECT_EQ("cuda", field(gpu.file("quant_report.json"), "calibration_device"));
    const std::vector<double> a = errors(gpu.report), b = errors(cpu.report);
    ASSERT_EQ(b.size(), a.size());
    double worst = 0;
    for (size_t i = 0; i < a.size(); i++)
        worst = std::max(worst, std::fabs(a[i] - b[i]));
    EXPECT_LE(worst, 1); /* dB */
    printf("SQNR of layers differs by up to %.3f dB\n", worst);
}
/* One for each kind of statistics: X^T X, sizes, both.  (AWQ's search on the host takes a minute under a sanitizer.) */
static std::vector<std::string> methods()
{
    std::vector<std::string> v = {repo_file("configs/recipes/w4a16-g128-gptq.json"),
                                  repo_file("configs/recipes/w8a8-smoothquant.json")};
    if (!kSanitized)
        v.push_back(repo_file("configs/recipes/w4a16-g128-awq.json"));
    return v;
}
INSTANTIATE_TEST_SUITE_P(Shipped, MethodRecipe, ::testing::ValuesIn(methods()), name_of);

namespace
{

/* Every linear layer's inputs, gathered by the device and, from the same activations, by the host. */
struct Both {
    nb_model *m = nullptr;
    std::vector<nbi_inputs> there, here;
    std::vector<nbi_inputs_device *> device;
    std::vector<float> x;
    static nb_status tap(void *user, uint32_t layer, size_t p, const void *x, size_t rows, size_t k)
    {
        Both *b = (Both *)user;
        const size_t i = layer * NBI_N_PROJ + p;
        b->x.resize(rows * k);
        nb_status st = nbi_inputs_device_add(b->device[i], x, rows);
        if (st == NB_OK)
            st = b->m->be->ops->download_act(b->m->be, b->x.data(), x, rows * k);
        return st == NB_OK ? nbi_inputs_add(&b->here[i], b->x.data(), rows, 1) : st;
    }
};

} // namespace

TEST(Statistics, of_the_device_have_the_bits_of_the_host)
{
    Both b;
    nb_model_options o;
    nb_model_options_init(&o);
    o.device = "cuda:0";
    ASSERT_NB_OK(nb_model_load(&b.m, repo_file("configs/demo/model").c_str(), &o));
    const size_t n = b.m->cfg.n_layers * NBI_N_PROJ;
    b.there.resize(n);
    b.here.resize(n);
    b.device.resize(n);
    ASSERT_NE(nullptr, b.m->be->quant);
    for (size_t i = 0; i < n; i++) {
        size_t rows, k;
        nbi_proj_shape(&b.m->cfg, (nbi_proj)(i % NBI_N_PROJ), &rows, &k);
        ASSERT_NB_OK(nbi_inputs_init(&b.here[i], k, NBI_NEEDS_GRAM | NBI_NEEDS_RANGE));
        ASSERT_NB_OK(nbi_inputs_init(&b.there[i], k, NBI_NEEDS_GRAM | NBI_NEEDS_RANGE));
        ASSERT_NB_OK(nbi_inputs_device_create(&b.device[i], b.m->be, &b.there[i], 24));
    }
    std::vector<int32_t> ids;
    for (int i = 0; i < 40; i++)
        ids.push_back(100 + i * 37 % 2000);
    nbi_sequence *s;
    ASSERT_NB_OK(nbi_sequence_create(&s, b.m, 24, 24, b.m->be->default_kv));
    ASSERT_NB_OK(nbi_sequence_run(s, ids.data(), 24, nullptr, nullptr, Both::tap, &b));
    ASSERT_NB_OK(nbi_sequence_run(s, ids.data() + 24, 16, nullptr, nullptr, Both::tap, &b));
    nbi_sequence_free(s);
    for (size_t i = 0; i < n; i++) {
        const nbi_inputs &x = b.there[i], &y = b.here[i];
        ASSERT_NB_OK(nbi_inputs_device_finish(b.device[i]));
        EXPECT_EQ(40u, x.rows);
        EXPECT_EQ(y.rows, x.rows);
        EXPECT_EQ(0, memcmp(x.lo, y.lo, x.k * 4)) << i;
        EXPECT_EQ(0, memcmp(x.hi, y.hi, x.k * 4)) << i;
        EXPECT_EQ(0, memcmp(x.abs_max, y.abs_max, x.k * 4)) << i;
        EXPECT_EQ(0, memcmp(x.abs_sum, y.abs_sum, x.k * 8)) << i;
        EXPECT_EQ(0, memcmp(x.gram, y.gram, x.k * x.k * 4)) << i;
        for (auto m : {&nbi_inputs::all, &nbi_inputs::tokens}) {
            const nbi_observer *p = x.*m, *q = y.*m;
            EXPECT_EQ(q->count, p->count);
            EXPECT_EQ(q->lo, p->lo);
            EXPECT_EQ(q->hi, p->hi);
            EXPECT_EQ(q->half_range, p->half_range);
            EXPECT_EQ(0, memcmp(p->bins, q->bins, sizeof p->bins)) << i;
        }
        nbi_inputs_device_free(b.device[i]);
        nbi_inputs_free(&b.there[i]);
        nbi_inputs_free(&b.here[i]);
    }
    nb_model_free(b.m);
}
