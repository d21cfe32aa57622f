/* The walk through the layers and what it gathers: against the whole model observed at once and sums in double, with statistics on
 * disk, with activations on disk, and with inputs that are not what a calibration text should be. */
#include "ct_testutil.h"
#include "values.h"

#include <algorithm>
#include <functional>
#include <list>
#include <memory>

extern "C" {
#include "engine/calibrate.h"
#include "engine/calibrated.h"
#include "engine/residual.h"
#include "engine/stats.h"
#include "model/checkpoint.h"
#include "model/sequence.h"
#include "quant/gptq.h"
#include "quant/gram.h"
#include "quant/recipe.h"
}

namespace
{

namespace fs = std::filesystem;

const std::string MODEL = repo_file("configs/demo/model"), TEXT = repo_file("configs/demo/val.txt");

struct Inputs : nbi_inputs {
    explicit Inputs(size_t k_, unsigned needs) : nbi_inputs{} { EXPECT_NB_OK(nbi_inputs_init(this, k_, needs)); }
    ~Inputs() { nbi_inputs_free(this); }
    Inputs(const Inputs &) = delete;
};

constexpr unsigned ALL = NBI_NEEDS_SIZES | NBI_NEEDS_GRAM | NBI_NEEDS_RANGE;

::testing::AssertionResult same(const nbi_inputs &a, const nbi_inputs &b, bool gram = true)
{
    if (a.k != b.k || a.rows != b.rows)
        return ::testing::AssertionFailure() << a.rows << " x " << a.k << " and " << b.rows << " x " << b.k;
    for (auto m : {&nbi_inputs::lo, &nbi_inputs::hi, &nbi_inputs::abs_max})
        if (memcmp(a.*m, b.*m, a.k * 4))
            return ::testing::AssertionFailure() << "extremes differ";
    if (memcmp(a.abs_sum, b.abs_sum, a.k * 8))
        return ::testing::AssertionFailure() << "sums differ";
    if (gram && memcmp(a.gram, b.gram, a.k * a.k * 4))
        return ::testing::AssertionFailure() << "X^T X differs";
    for (auto m : {&nbi_inputs::all, &nbi_inputs::tokens}) {
        const nbi_observer *x = a.*m, *y = b.*m;
        if (x->lo != y->lo || x->hi != y->hi || x->half_range != y->half_range || x->count != y->count ||
            memcmp(x->bins, y->bins, sizeof x->bins))
            return ::testing::AssertionFailure() << "histograms differ";
    }
    return ::testing::AssertionSuccess();
}

/* A run of the walk as nb_quantize() sets it up. */
struct Walk {
    std::string dir;
    json_t *config = nullptr;
    nbi_config cfg = {};
    nbi_checkpoint *ckpt = nullptr;
    nbi_recipe *recipe = nullptr;
    std::vector<nbi_scheme> schemes;
    std::vector<const nbi_scheme *> pointers;
    nbi_calibrated_options o = {};
    nbi_calibrated *c = nullptr;
    Walk(const std::string &model, const char *json) : dir(model)
    {
        char where[1100];
        EXPECT_NB_OK(nbi_model_json(&config, dir.c_str(), where));
        EXPECT_NB_OK(nbi_config_parse(&cfg, config, where));
        EXPECT_NB_OK(nbi_checkpoint_open(&ckpt, dir.c_str()));
        json_t *j = json_loads(json, 0, nullptr);
        EXPECT_NB_OK(nbi_recipe_parse(&recipe, j, "recipe"));
        json_decref(j);
        schemes.resize(cfg.n_layers * NBI_N_PROJ);
        for (uint32_t i = 0; i < cfg.n_layers; i++)
            for (int p = 0; p < NBI_N_PROJ; p++) {
                char name[96];
                size_t n, k;
                nbi_module_name(name, i, (nbi_proj)p);
                nbi_proj_shape(&cfg, (nbi_proj)p, &n, &k);
                EXPECT_NB_OK(nbi_recipe_scheme(recipe, name, k, &schemes[i * NBI_N_PROJ + p]));
            }
        for (auto &s : schemes)
            pointers.push_back(&s);
        o.path = dir.c_str();
        o.cfg = &cfg;
        o.ckpt = ckpt;
        o.scheme = pointers.data();
        o.method = nbi_recipe_method(recipe, &o.options);
        o.scale_dtype = cfg.dtype;
        o.text = TEXT.c_str();
        o.tokens = 150;
        o.ctx = 64;
        o.device = "cpu";
        o.threads = 2;
        o.observer = NBI_OBS_MSE;
        o.percentile = 99.99;
        o.model = nbi_model_fingerprint(ckpt, config);
    }
    ~Walk()
    {
        nbi_calibrated_free(c);
        nbi_recipe_free(recipe);
        nbi_checkpoint_close(ckpt);
        json_decref(config);
    }
    nb_status open() { return nbi_calibrated_create(&c, &o); }
    /* in: what each projection of the next layer saw, a view until the one after it */
    void next(std::vector<const nbi_inputs *> &in)
    {
        nbi_host_layer dense, quantized;
        in.clear();
        ASSERT_NB_OK(nbi_calibrated_next(c, &dense, &quantized));
        for (int p = 0; p < NBI_N_PROJ; p++)
            in.push_back(nbi_calibrated_inputs(c, (nbi_proj)p));
        nbi_host_layer_free(&dense);
        nbi_host_layer_free(&quantized);
    }
};

const char GPTQ[] = R"({"weights": {"bits": 4, "group_size": 128}, "method": "gptq"})";
const char STATIC[] =
    R"({"weights": {"bits": 8}, "activations": {"bits": 8, "strategy": "tensor"}, "calibration": {"method": "mse"}})";

/* The whole model, all layers in one pass, observed by nbi_inputs at every projection. */
struct Observed {
    std::vector<std::unique_ptr<Inputs>> in; /* [layer][projection] */
    Observed(const std::string &dir, size_t tokens, size_t ctx) { observe(dir, tokens, ctx); }
    void observe(const std::string &dir, size_t tokens, size_t ctx)
    {
        nb_model *m = nullptr;
        nb_model_options mo;
        nb_model_options_init(&mo);
        mo.device = "cpu";
        ASSERT_NB_OK(nb_model_load(&m, dir.c_str(), &mo));
        for (uint32_t i = 0; i < m->cfg.n_layers; i++)
            for (int p = 0; p < NBI_N_PROJ; p++) {
                size_t n, k;
                nbi_proj_shape(&m->cfg, (nbi_proj)p, &n, &k);
                in.push_back(std::make_unique<Inputs>(k, ALL));
            }
        int32_t *ids;
        size_t n;
        ASSERT_NB_OK(nbi_calib_tokens(&ids, &n, TEXT.c_str(), dir.c_str(), m->cfg.vocab, tokens));
        nbi_sequence *s;
        ASSERT_NB_OK(nbi_sequence_create(&s, m, ctx, ctx, NBI_KV_F32));
        for (size_t at = 0; at < n; at += ctx)
            EXPECT_NB_OK(nbi_sequence_run(s, ids + at, std::min(ctx, n - at), nullptr, nullptr, tap, this));
        nbi_sequence_free(s);
        nb_free(ids);
        nb_model_free(m);
    }
    static nb_status tap(void *user, uint32_t layer, size_t p, const void *x, size_t rows, size_t)
    {
        return nbi_inputs_add(((Observed *)user)->in[layer * NBI_N_PROJ + p].get(), (const float *)x, rows, 1);
    }
};

struct Said {
    std::vector<std::pair<nb_log_level, std::string>> lines;
    std::vector<nb_progress> ticks;
    std::vector<std::string> units;
    nb_callbacks callbacks()
    {
        nb_callbacks cb = {};
        cb.user = this;
        cb.log = [](void *u, nb_log_level l, const char *t) { ((Said *)u)->lines.emplace_back(l, t); };
        cb.progress = [](void *u, const nb_progress *p) {
            ((Said *)u)->ticks.push_back(*p);
            ((Said *)u)->units.push_back(p->unit);
            return 0;
        };
        return cb;
    }
    size_t count(const std::string &part, nb_log_level level) const
    {
        return (size_t)std::count_if(lines.begin(), lines.end(), [&](auto &l) {
            return l.first == level && l.second.find(part) != std::string::npos;
        });
    }
};

nb_quantize_options options(const std::string &recipe)
{
    static std::list<std::string> kept; /* what options point to */
    nb_quantize_options o;
    nb_quantize_options_init(&o);
    kept.push_back(recipe);
    o.recipe = kept.back().c_str();
    o.calib = TEXT.c_str();
    o.calib_tokens = 300;
    o.calib_ctx = 64;
    o.device = "cpu";
    o.threads = 2;
    return o;
}

nb_status quantize(const std::string &from, const std::string &to, const nb_quantize_options &o)
{
    return nb_quantize(from.c_str(), to.c_str(), &o, nullptr);
}

/* A copy of the demo model in which a function may change each tensor, as floats. */
void copy_model(const std::string &to, const std::function<void(const std::string &, std::vector<float> &)> &change)
{
    nbi_checkpoint *c = nullptr;
    std::vector<Raw> raw;
    fs::create_directories(to);
    for (const char *f : {"config.json", "tokenizer.json"})
        fs::copy_file(MODEL + "/" + f, to + "/" + f);
    ASSERT_NB_OK(nbi_checkpoint_open(&c, MODEL.c_str()));
    for (size_t i = 0; i < nbi_checkpoint_count(c); i++) {
        const nbi_tensor *t = nbi_checkpoint_at(c, i);
        std::vector<float> v(t->n_elements);
        nbi_to_f32(v.data(), t->data, t->dtype, v.size());
        change(t->name, v);
        std::string data(t->bytes, 0);
        nbi_from_f32(data.data(), t->dtype, v.data(), v.size());
        raw.push_back({t->name, t->dtype, std::vector<size_t>(t->shape, t->shape + t->n_dims), data});
    }
    write_raw(to, raw);
    nbi_checkpoint_close(c);
}

} // namespace

/* ---- statistics ---- */

TEST(Inputs, are_what_loops_in_double_say)
{
    for (size_t k : {(size_t)1, (size_t)5, (size_t)300}) {
        const size_t rows = 37;
        const std::vector<float> x = noise(rows * k, k);
        Inputs in(k, ALL);
        ASSERT_NB_OK(nbi_inputs_add(&in, x.data(), rows, 2));
        EXPECT_EQ(rows, in.rows);
        EXPECT_EQ(rows * k, in.all->count);
        EXPECT_EQ(rows, in.tokens->count);
        float most = 0;
        for (size_t j = 0; j < k; j++) {
            float lo = x[j], hi = x[j], a = 0;
            double sum = 0;
            for (size_t r = 0; r < rows; r++) {
                lo = std::min(lo, x[r * k + j]);
                hi = std::max(hi, x[r * k + j]);
                a = std::max(a, std::fabs(x[r * k + j]));
                sum += (double)std::fabs(x[r * k + j]);
            }
            EXPECT_EQ(lo, in.lo[j]);
            EXPECT_EQ(hi, in.hi[j]);
            EXPECT_EQ(a, in.abs_max[j]);
            EXPECT_EQ(sum, in.abs_sum[j]);
            most = std::max(most, a);
            for (size_t i = 0; i < k; i++) {
                double dot = 0, size = 0;
                for (size_t r = 0; r < rows; r++) {
                    dot += (double)x[r * k + i] * (double)x[r * k + j];
                    size += std::fabs((double)x[r * k + i] * (double)x[r * k + j]);
                }
                EXPECT_NEAR(dot, in.gram[i * k + j], (double)(rows + 1) * U * size);
            }
        }
        EXPECT_EQ(most, in.tokens->hi);
    }
}

/* But for X^T X, whose order of sums depends on cuts that are not multiples of 128 rows. */
TEST(Inputs, do_not_depend_on_how_a_text_is_cut_or_on_threads)
{
    const size_t k = 70, rows = 300;
    const std::vector<float> x = noise(rows * k, 3);
    Inputs a(k, ALL), b(k, ALL), c(k, ALL);
    ASSERT_NB_OK(nbi_inputs_add(&a, x.data(), rows, 1));
    for (size_t at = 0; at < rows; at += 7)
        ASSERT_NB_OK(nbi_inputs_add(&b, x.data() + at * k, std::min<size_t>(7, rows - at), 2));
    for (size_t at = 0; at < rows; at += NBI_GRAM_ROWS)
        ASSERT_NB_OK(nbi_inputs_add(&c, x.data() + at * k, std::min<size_t>(NBI_GRAM_ROWS, rows - at), 3));
    EXPECT_TRUE(same(a, b, false));
    EXPECT_TRUE(same(a, c));
}

TEST(Inputs, name_the_channel_that_is_not_finite)
{
    for (float bad : {NAN, INFINITY, -INFINITY}) {
        std::vector<float> x = noise(4 * 9, 1);
        x[2 * 9 + 7] = bad;
        Inputs in(9, ALL);
        EXPECT_FAILS(NB_EFORMAT, "channel 7", nbi_inputs_add(&in, x.data(), 4, 1));
    }
}

TEST(Inputs, after_a_balance_are_those_of_the_divided_channels)
{
    const size_t k = 12, rows = 50;
    std::vector<float> x = noise(rows * k, 3), s(k);
    Inputs a(k, NBI_NEEDS_GRAM), b(k, NBI_NEEDS_GRAM);
    ASSERT_NB_OK(nbi_inputs_add(&a, x.data(), rows, 1));
    for (size_t j = 0; j < k; j++)
        s[j] = std::ldexp(1.0f, (int)j - 6); /* exact */
    for (size_t i = 0; i < rows * k; i++)
        x[i] /= s[i % k];
    ASSERT_NB_OK(nbi_inputs_add(&b, x.data(), rows, 1));
    nbi_inputs_divide(&a, s.data());
    EXPECT_EQ(0, memcmp(a.gram, b.gram, k * k * 4));
    EXPECT_EQ(0, memcmp(a.abs_sum, b.abs_sum, k * 8));
    for (auto m : {&nbi_inputs::lo, &nbi_inputs::hi, &nbi_inputs::abs_max})
        EXPECT_EQ(0, memcmp(a.*m, b.*m, k * 4));
}

/* The definition of gram.h, as it stands there. */
TEST(Gram, has_the_bits_of_its_definition_with_every_instruction_set)
{
    struct Code {
        const char *name;
        void (*triangle)(float *, const float *, size_t, size_t, size_t, size_t);
        bool usable;
    };
    const Code codes[] = {
        {"plain", nbi_gram_triangle, true},
#if defined(__x86_64__)
        {"avx2", nbi_gram_triangle_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
        {"avx512", nbi_gram_triangle_avx512,
         __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")},
#endif
    };
    const size_t P = NBI_GRAM_PANEL;
    for (size_t k : {(size_t)1, (size_t)31, (size_t)32, (size_t)77, (size_t)130}) {
        const size_t rows = 200, panels = (k + P - 1) / P;
        const std::vector<float> x = noise(rows * k, k);
        std::vector<float> want(k * k, 0.5f), whole(want);
        for (size_t i = 0; i < k; i++)
            for (size_t j = 0; j < k; j++)
                for (size_t at = 0; at < rows; at += NBI_GRAM_ROWS) {
                    float part = 0;
                    for (size_t r = at; r < std::min<size_t>(rows, at + NBI_GRAM_ROWS); r++)
                        part = std::fma(x[r * k + i], x[r * k + j], part);
                    want[i * k + j] += part;
                }
        ASSERT_NB_OK(nbi_gram_add(whole.data(), x.data(), rows, k, 2));
        EXPECT_TRUE(same_bits(want.data(), whole.data(), k * k)) << k;
        for (const Code &c : codes) {
            if (!c.usable)
                continue;
            std::vector<float> h(k * k, 0.5f);
            for (size_t at = 0; at < rows; at += NBI_GRAM_ROWS) {
                const size_t n = std::min<size_t>(NBI_GRAM_ROWS, rows - at);
                std::vector<float> packed(panels * n * P, 0.0f);
                for (size_t r = 0; r < n; r++)
                    for (size_t j = 0; j < k; j++)
                        packed[j / P * n * P + r * P + j % P] = x[(at + r) * k + j];
                for (size_t p = 0; p < panels; p++)
                    c.triangle(h.data(), packed.data(), n, k, p * P, std::min(k, p * P + P));
            }
            for (size_t i = 0; i < k; i++)
                EXPECT_TRUE(same_bits(&want[i * k], &h[i * k], i + 1)) << c.name << ", row " << i << " of " << k;
        }
    }
}

/* ---- the walk ---- */

TEST(Walk, with_dense_layers_sees_what_the_whole_model_sees)
{
    const Observed want(MODEL, 150, 64);
    Walk w(MODEL, R"({"weights": {"bits": 4, "group_size": 128}, "method": "gptq",
                      "activations": {"bits": 8, "strategy": "tensor"}})");
    w.o.dense_feed = true;
    ASSERT_NB_OK(w.open());
    EXPECT_EQ(150u, nbi_calibrated_tokens(w.c));
    std::vector<const nbi_inputs *> in;
    for (uint32_t i = 0; i < w.cfg.n_layers; i++) {
        ASSERT_NO_FATAL_FAILURE(w.next(in));
        for (int p = 0; p < NBI_N_PROJ; p++)
            EXPECT_TRUE(same(*want.in[i * NBI_N_PROJ + p], *in[p]))
                << "layer " << i << ", " << nbi_proj_name((nbi_proj)p);
    }
}

/* What a layer's first port sees depends on the layers before it alone: the quantized model sees the same there. */
TEST(Walk, with_quantized_layers_sees_what_the_quantized_model_sees)
{
    TempDir d;
    write_text(d / "r.json", GPTQ);
    nb_quantize_options o = options(d / "r.json");
    o.calib_tokens = 150;
    ASSERT_NB_OK(quantize(MODEL, d / "q", o));
    const Observed want(d / "q", 150, 64), dense(MODEL, 150, 64);
    Walk w(MODEL, GPTQ);
    ASSERT_NB_OK(w.open());
    std::vector<const nbi_inputs *> in;
    for (uint32_t i = 0; i < w.cfg.n_layers; i++) {
        ASSERT_NO_FATAL_FAILURE(w.next(in));
        const Inputs &there = *want.in[i * NBI_N_PROJ], &plain = *dense.in[i * NBI_N_PROJ];
        EXPECT_EQ(0, memcmp(there.gram, in[0]->gram, there.k * there.k * 4)) << "layer " << i;
        EXPECT_EQ(i == 0, memcmp(plain.gram, in[0]->gram, plain.k * plain.k * 4) == 0) << "layer " << i;
    }
}

/* Within a layer, too: each product was rounded for the inputs that it has in the quantized model. */
TEST(Walk, true_sequential_sees_what_the_quantized_model_sees_everywhere)
{
    const char *json =
        R"({"weights": {"bits": 3, "group_size": 128}, "method": {"name": "gptq", "true_sequential": true}})";
    TempDir d;
    Said said;
    write_text(d / "r.json", json);
    nb_quantize_options o = options(d / "r.json");
    o.calib_tokens = 150;
    ASSERT_NB_OK(quantize(MODEL, d / "q", o));
    const Observed want(d / "q", 150, 64);
    Walk w(MODEL, json);
    const nb_callbacks cb = said.callbacks();
    w.o.callbacks = &cb;
    ASSERT_NB_OK(w.open());
    std::vector<const nbi_inputs *> in;
    for (uint32_t i = 0; i < w.cfg.n_layers; i++) {
        ASSERT_NO_FATAL_FAILURE(w.next(in));
        for (size_t p = 0; p < NBI_N_PROJ; p++) {
            const Inputs &there = *want.in[i * NBI_N_PROJ + p];
            EXPECT_EQ(0, memcmp(there.gram, in[p]->gram, there.k * there.k * 4)) << "layer " << i << ", " << p;
        }
    }
    EXPECT_EQ(19u * 150, said.ticks.back().total); /* each layer looked at four times, three passed */
    EXPECT_EQ(19u * 150, said.ticks.back().done);
}

TEST(Walk, static_ranges_are_those_of_the_whole_model)
{
    const Observed want(MODEL, 150, 64);
    Walk w(MODEL, STATIC);
    w.o.dense_feed = true;
    ASSERT_NB_OK(w.open());
    for (uint32_t i = 0; i < w.cfg.n_layers; i++) {
        nbi_host_layer dense, quantized;
        ASSERT_NB_OK(nbi_calibrated_next(w.c, &dense, &quantized));
        for (int p = 0; p < NBI_N_PROJ; p++) {
            nbi_grid g;
            ASSERT_NB_OK(nbi_observer_grid(want.in[i * NBI_N_PROJ + p]->all, NBI_OBS_MSE, 99.99, 8, true, &g));
            EXPECT_EQ(g.scale, quantized.w[p].act_scale);
            EXPECT_EQ(g.zero, quantized.w[p].act_zero);
        }
        nbi_host_layer_free(&dense);
        nbi_host_layer_free(&quantized);
    }
}

TEST(Walk, tells_its_plan_and_its_progress)
{
    Said said;
    Walk w(MODEL, GPTQ);
    const nb_callbacks cb = said.callbacks();
    w.o.callbacks = &cb;
    ASSERT_NB_OK(w.open());
    std::vector<const nbi_inputs *> in;
    for (uint32_t i = 0; i < w.cfg.n_layers; i++)
        ASSERT_NO_FATAL_FAILURE(w.next(in));
    EXPECT_EQ(1u, said.count("150 tokens in windows of 64 through 4 layers", NB_LOG_INFO));
    EXPECT_EQ(1u, said.count("fewer than the 256 inputs", NB_LOG_WARN));
    ASSERT_FALSE(said.ticks.empty());
    uint64_t before = 0;
    for (const nb_progress &p : said.ticks) {
        EXPECT_STREQ("calibrate", p.stage);
        EXPECT_GE(p.done, before);
        EXPECT_EQ(7u * 150, p.total); /* four layers looked at, three passed */
        before = p.done;
    }
    EXPECT_EQ(7u * 150, before);
    EXPECT_EQ("tokens, layer 4 of 4", said.units.back());
}

/* ---- memory ---- */

TEST(Residual, is_the_same_in_memory_and_in_a_file_that_has_no_name)
{
    TempDir d;
    for (const char *folder : {(const char *)nullptr, d.path().c_str()}) {
        nbi_residual *s;
        ASSERT_NB_OK(nbi_residual_create(&s, 100, 7, folder));
        std::vector<float> x = noise(100 * 7, 1), y(100 * 7);
        ASSERT_NB_OK(nbi_residual_write(s, 40, 60, x.data() + 40 * 7));
        ASSERT_NB_OK(nbi_residual_write(s, 0, 40, x.data()));
        ASSERT_NB_OK(nbi_residual_read(s, 0, 13, y.data()));
        ASSERT_NB_OK(nbi_residual_read(s, 13, 87, y.data() + 13 * 7));
        EXPECT_EQ(x, y);
        EXPECT_TRUE(fs::is_empty(d.path()));
        nbi_residual_free(s);
    }
    nbi_residual *s;
    EXPECT_FAILS(NB_EIO, "cannot create a temporary file", nbi_residual_create(&s, 100, 7, (d / "none").c_str()));
    EXPECT_FAILS(NB_ELIMIT, "too large", nbi_residual_create(&s, SIZE_MAX / 8, 7, nullptr));
}

TEST(Memory, does_not_change_a_byte)
{
    TempDir d;
    Said said;
    write_text(d / "r.json", GPTQ);
    nb_quantize_options o = options(d / "r.json");
    o.calib_tokens = 2000;
    o.callbacks = said.callbacks();
    ASSERT_NB_OK(quantize(MODEL, d / "a", o));
    EXPECT_EQ(1u, said.count("in memory", NB_LOG_INFO));
    o.calib_memory = 1;
    EXPECT_FAILS(NB_ELIMIT, "allow at least that", quantize(MODEL, d / "b", o));
    /* the sentence says what is enough for all but the activations */
    const std::string error = nb_last_error();
    const double least = atof(error.c_str() + error.find(" take ") + 6);
    o.calib_memory = (uint64_t)((least + 0.1) * 0x1p20);
    ASSERT_NB_OK(quantize(MODEL, d / "b", o));
    EXPECT_EQ(1u, said.count("in a file", NB_LOG_INFO));
    EXPECT_EQ(read_text(d / "a/model.safetensors"), read_text(d / "b/model.safetensors"));
    for (const auto &e : fs::directory_iterator(d.path()))
        EXPECT_EQ(std::string::npos, e.path().string().find("/b.")) << e.path();
}

/* The search for a mixture holds the whole model, and the logits of some windows: it says what that takes, and leaves the rest to a
 * file. */
TEST(Memory, of_a_search_is_limited_and_does_not_change_a_byte)
{
    TempDir d;
    Said said;
    write_text(d / "r.json", R"({"weights": {"bits": 4, "group_size": 64}, "method": "rtn", "overrides": [
        {"match": "re:model.layers.[0-2]", "weights": {"bits": 4}}],
        "search": {"target_bits": 4.5, "windows": 1, "tokens": 500, "choices": [{"bits": 3}, {"bits": 8}]}})");
    nb_quantize_options o = options(d / "r.json");
    o.calib_tokens = 2000;
    o.callbacks = said.callbacks();
    ASSERT_NB_OK(quantize(MODEL, d / "a", o));
    EXPECT_EQ(1u, said.count("in memory", NB_LOG_INFO));
    o.calib_memory = 1;
    EXPECT_FAILS(NB_ELIMIT, "measuring layers takes", quantize(MODEL, d / "b", o));
    const std::string error = nb_last_error();
    const double least = atof(error.c_str() + error.find(" takes ") + 7);
    EXPECT_GT(least, 6) << "the model alone has 6 MiB";
    o.calib_memory = (uint64_t)((least - 0.1) * 0x1p20);
    EXPECT_FAILS(NB_ELIMIT, "allow at least that", quantize(MODEL, d / "b", o));
    o.calib_memory = (uint64_t)((least + 0.1) * 0x1p20);
    ASSERT_NB_OK(quantize(MODEL, d / "b", o));
    EXPECT_EQ(1u, said.count("in a file", NB_LOG_INFO));
    for (const char *name : {"model.safetensors", "recipe.json", "quant_report.json"})
        EXPECT_EQ(read_text(d / ("a/" + std::string(name))), read_text(d / ("b/" + std::string(name)))) << name;
}

/* ---- saved statistics ---- */

TEST(Stats, come_back_as_they_were)
{
    TempDir d;
    const std::string file = d / "s.safetensors";
    Walk first(MODEL, GPTQ), second(MODEL, GPTQ);
    for (Walk *w : {&first, &second}) {
        w->o.dense_feed = true;
        w->o.stats = file.c_str();
    }
    ASSERT_NB_OK(first.open());
    EXPECT_FALSE(fs::exists(file));
    std::vector<std::vector<std::unique_ptr<Inputs>>> want;
    const Observed all(MODEL, 150, 64);
    std::vector<const nbi_inputs *> in;
    for (uint32_t i = 0; i < first.cfg.n_layers; i++)
        ASSERT_NO_FATAL_FAILURE(first.next(in));
    ASSERT_TRUE(fs::exists(file));
    ASSERT_NB_OK(second.open());
    for (uint32_t i = 0; i < first.cfg.n_layers; i++) {
        ASSERT_NO_FATAL_FAILURE(second.next(in));
        for (int p = 0; p < NBI_N_PROJ; p++)
            EXPECT_TRUE(same(*all.in[i * NBI_N_PROJ + p], *in[p])) << i << " " << p;
    }
}

TEST(Stats, serve_the_runs_that_they_fit_and_say_why_not_others)
{
    TempDir d;
    const std::string file = d / "s.safetensors";
    write_text(d / "gptq.json", GPTQ);
    write_text(d / "static.json", STATIC);
    nb_quantize_options o = options(d / "static.json");
    ASSERT_NB_OK(quantize(MODEL, d / "plain", o));
    o.stats = file.c_str();
    ASSERT_NB_OK(quantize(MODEL, d / "a", o));
    ASSERT_NB_OK(quantize(MODEL, d / "b", o));
    for (const char *q : {"a", "b"})
        EXPECT_EQ(read_text(d / "plain/model.safetensors"), read_text(d / (std::string(q) + "/model.safetensors")));

    o.calib_tokens = 299;
    EXPECT_FAILS(NB_EINVAL, "another calibration text", quantize(MODEL, d / "c", o));
    o.calib_tokens = 300;
    o.calib_ctx = 32;
    EXPECT_FAILS(NB_EINVAL, "another window", quantize(MODEL, d / "c", o));
    o.calib_ctx = 64;
    write_text(d / "other.txt", "It was the worst of times. " + read_text(TEXT));
    const std::string other = d / "other.txt";
    o.calib = other.c_str();
    EXPECT_FAILS(NB_EINVAL, "another calibration text", quantize(MODEL, d / "c", o));
    o.calib = TEXT.c_str();
    copy_model(d / "model", [](const std::string &name, std::vector<float> &v) {
        if (name == "model.norm.weight")
            v[0] += 1;
    });
    EXPECT_FAILS(NB_EINVAL, "another model", quantize(d / "model", d / "c", o));

    const std::string gptq = d / "gptq.json";
    o.recipe = gptq.c_str();
    EXPECT_FAILS(NB_EINVAL, "--no-sequential", quantize(MODEL, d / "c", o)); /* they are the dense model's */
    o.sequential = -1;
    EXPECT_FAILS(NB_EINVAL, "without X^T X", quantize(MODEL, d / "c", o));
    write_text(file, "not a safetensors file");
    EXPECT_EQ(NB_EFORMAT, quantize(MODEL, d / "c", o));
    EXPECT_FALSE(fs::exists(d / "c"));
    EXPECT_FALSE(fs::exists(d / "c.resume"));
}

TEST(Stats, of_a_run_that_fails_are_not_left)
{
    TempDir d;
    Walk w(MODEL, GPTQ);
    const std::string file = d / "s.safetensors";
    w.o.dense_feed = true;
    w.o.stats = file.c_str();
    ASSERT_NB_OK(w.open());
    std::vector<const nbi_inputs *> in;
    ASSERT_NO_FATAL_FAILURE(w.next(in));
    nbi_calibrated_free(w.c);
    w.c = nullptr;
    EXPECT_TRUE(fs::is_empty(d.path()));
}

/* ---- bad input ---- */

TEST(BadText, is_refused_with_the_reason)
{
    TempDir d;
    write_text(d / "r.json", GPTQ);
    nb_quantize_options o = options(d / "r.json");
    o.calib = nullptr;
    EXPECT_FAILS(NB_EINVAL, "--calib FILE", quantize(MODEL, d / "q", o));
    const std::pair<std::string, const char *> texts[] = {{"", "tokens, expected text"},
                                                          {std::string(4000, '\n'), "again and again"},
                                                          {[] {
                                                               std::string s;
                                                               for (int i = 0; i < 500; i++)
                                                                   s += " the";
                                                               return s;
                                                           }(),
                                                           "again and again"}};
    for (const auto &t : texts) {
        const std::string file = d / "t.txt";
        write_text(file, t.first);
        o.calib = file.c_str();
        EXPECT_FAILS(NB_EFORMAT, t.second, quantize(MODEL, d / "q", o));
    }
    o.calib = "/nonexistent";
    EXPECT_FAILS(NB_EIO, "/nonexistent", quantize(MODEL, d / "q", o));
    EXPECT_FALSE(fs::exists(d / "q"));
    EXPECT_FALSE(fs::exists(d / "q.resume"));
}

TEST(BadText, that_leaves_the_vocabulary_is_refused)
{
    int32_t *ids = nullptr;
    size_t n;
    EXPECT_FAILS(NB_EFORMAT, "ids below 100", nbi_calib_tokens(&ids, &n, TEXT.c_str(), MODEL.c_str(), 100, 50));
    EXPECT_EQ(nullptr, ids);
}

TEST(BadText, shorter_than_asked_for_is_told)
{
    TempDir d;
    Said said;
    write_text(d / "r.json", STATIC);
    write_text(d / "t.txt", read_text(TEXT).substr(0, 400));
    nb_quantize_options o = options(d / "r.json");
    const std::string file = d / "t.txt";
    o.calib = file.c_str();
    o.callbacks = said.callbacks();
    ASSERT_NB_OK(quantize(MODEL, d / "q", o));
    EXPECT_EQ(1u, said.count("and 300 were asked for", NB_LOG_WARN));
}

TEST(BadText, jsonl_is_read_line_by_line)
{
    TempDir d;
    write_text(d / "t.jsonl", "{\"text\": \"one\"}\n\n{\"prompt\": \"two\"}\r\n{\"text\": \"three\"}");
    char *text;
    size_t n;
    ASSERT_NB_OK(nbi_load_text(&text, &n, (d / "t.jsonl").c_str()));
    EXPECT_EQ("one\n\ntwo\n\nthree\n\n", std::string(text, n));
    free(text);
    write_text(d / "t.jsonl", "{\"text\": \"one\"}\n{\"txt\": \"two\"}\n");
    EXPECT_FAILS(NB_EFORMAT, "line 2", nbi_load_text(&text, &n, (d / "t.jsonl").c_str()));
}

/* gate * up overflows for a channel of the second layer: finite weights, infinite activations. */
TEST(BadActivations, are_named_with_layer_projection_and_channel)
{
    TempDir d;
    copy_model(d / "model", [](const std::string &name, std::vector<float> &v) {
        if (name == "model.layers.1.mlp.up_proj.weight" || name == "model.layers.1.mlp.gate_proj.weight")
            for (size_t i = 0; i < 256; i++)
                v[3 * 256 + i] *= 1e22f;
    });
    for (const char *json : {GPTQ, STATIC}) {
        write_text(d / "r.json", json);
        EXPECT_FAILS(NB_EFORMAT, "model.layers.1.mlp.down_proj: input channel 3 is NaN or infinite",
                     quantize(d / "model", d / "q", options(d / "r.json")));
    }
}

TEST(DeadChannels, give_weights_that_are_finite_with_every_method)
{
    TempDir d;
    copy_model(d / "model", [](const std::string &name, std::vector<float> &v) {
        if (name.find("layernorm") != std::string::npos)
            v[5] = v[17] = v[255] = 0; /* inputs that are always 0 */
        if (name.find("up_proj") != std::string::npos)
            std::fill(v.begin() + 7 * 256, v.begin() + 8 * 256, 0.0f);
    });
    const char *recipes[] = {
        GPTQ,
        R"({"weights": {"bits": 4, "group_size": 128}, "method": "awq"})",
        R"({"weights": {"bits": 4, "group_size": 128}, "method": "clip"})",
        R"({"weights": {"bits": 8}, "activations": {"bits": 8, "strategy": "token"}, "method": "smoothquant"})",
        STATIC,
    };
    for (const char *json : recipes) {
        write_text(d / "r.json", json);
        nb_quantize_options o = options(d / "r.json");
        o.overwrite = 1;
        ASSERT_NB_OK(quantize(d / "model", d / "q", o)) << json;
        nbi_checkpoint *c = nullptr;
        ASSERT_NB_OK(nbi_checkpoint_open(&c, (d / "q").c_str()));
        for (size_t i = 0; i < nbi_checkpoint_count(c); i++) {
            const nbi_tensor *t = nbi_checkpoint_at(c, i);
            if (!nbi_dtype_is_float(t->dtype))
                continue;
            std::vector<float> v(t->n_elements);
            nbi_to_f32(v.data(), t->data, t->dtype, v.size());
            for (float f : v)
                ASSERT_TRUE(std::isfinite(f)) << json << " " << t->name;
        }
        nbi_checkpoint_close(c);
        const Observed runs(d / "q", 100, 50); /* which refuses NaN */
    }
}

/* X^T X of one token again and again has rank one. */
TEST(SingularHessian, raises_the_damping_and_gives_numbers)
{
    const size_t k = 64, n = 8;
    std::vector<float> x = noise(k, 1), h(k * k), w = noise(n * k, 2, 0.1f);
    for (size_t i = 0; i < k; i++)
        for (size_t j = 0; j < k; j++)
            h[i * k + j] = 1000 * x[i] * x[j];
    nbi_weight src = {};
    src.n = n;
    src.k = k;
    src.dense_dtype = NBI_F32;
    src.dense = w.data();
    const nbi_scheme s = scheme(4, true, NBI_PER_GROUP, 32);
    for (float damp : {0.0f, 0.01f}) {
        nbi_gptq_options o = nbi_gptq_defaults();
        o.damp = damp;
        Weight q;
        float used = -1;
        ASSERT_NB_OK(nbi_gptq(&q, &src, &s, NBI_F32, h.data(), &o, 2, &used));
        EXPECT_GE(used, damp);
        EXPECT_GT(used, 0);
        for (size_t i = 0; i < n * q.groups(); i++)
            EXPECT_TRUE(std::isfinite(q.scales[i]));
    }
}

TEST(SingularHessian, is_told_for_each_layer)
{
    TempDir d;
    Said said;
    write_text(d / "r.json", R"({"weights": {"bits": 4, "group_size": 128}, "method": {"name": "gptq", "damp": 0}})");
    nb_quantize_options o = options(d / "r.json");
    o.calib_tokens = 20; /* of 256 and 512 inputs */
    o.callbacks = said.callbacks();
    ASSERT_NB_OK(quantize(MODEL, d / "q", o));
    for (int i = 0; i < 4; i++)
        EXPECT_EQ(1u,
                  said.count("model.layers." + std::to_string(i) + ".mlp.down_proj: its inputs depend on each other",
                             NB_LOG_WARN));
    const Observed runs(d / "q", 100, 50);
}

TEST(Flags, that_would_do_nothing_are_refused)
{
    TempDir d;
    write_text(d / "r.json", R"({"weights": {"bits": 4, "group_size": 128}})");
    for (int i = 0; i < 4; i++) {
        nb_quantize_options o = options(d / "r.json");
        o.calib_memory = i == 0;
        o.sequential = i == 1;
        o.stats = i == 2 ? "x" : nullptr;
        o.resume = i == 3;
        EXPECT_FAILS(NB_EINVAL, "needs no calibration text", quantize(MODEL, d / "q", o));
    }
}
