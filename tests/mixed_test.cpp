/* Mixed precision and its reports on the shipped model: sensitivities against models that were quantized for the purpose and
 * compared from outside, errors against sums in double, reports against what they describe. */
#include "cpu_model.h"

#include <jansson.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>

extern "C" {
#include "engine/report.h"
#include "engine/sensitivity.h"
#include "model/sequence.h"
#include "quant/gram.h"
#include "quant/output_error.h"
#include "quant/recipe.h"
#include "quant/rtn.h"
}

namespace
{

using Model = CpuModel;

const std::string MODEL = repo_file("configs/demo/model"), VAL = repo_file("configs/demo/val.txt");
const size_t CTX = 64, TOKENS = 4 * CTX;

std::vector<int32_t> text_ids(const nb_model *m)
{
    const std::string text = read_text(VAL);
    int32_t *ids = nullptr;
    size_t n = 0;
    EXPECT_NB_OK(nb_tokenize(nb_model_tokenizer(m), text.data(), text.size(), NB_TOKENIZE_SPECIAL, &ids, &n));
    EXPECT_GE(n, TOKENS);
    std::vector<int32_t> v(ids, ids + TOKENS);
    nb_free(ids);
    return v;
}

/* Mean KL(a || b) over the tokens of the windows, all in double. */
double divergence(const nb_model *a, const nb_model *b, const std::vector<int32_t> &ids,
                  const std::vector<size_t> &windows)
{
    const size_t vocab = a->cfg.vocab;
    std::vector<float> x(CTX * vocab), y(CTX * vocab);
    double sum = 0;
    auto log_z = [&](const float *row) {
        double z = 0;
        for (size_t i = 0; i < vocab; i++)
            z += std::exp((double)row[i]);
        return std::log(z);
    };
    for (size_t w : windows) {
        EXPECT_NB_OK(nb_model_logits(a, ids.data() + w * CTX, CTX, x.data()));
        EXPECT_NB_OK(nb_model_logits(b, ids.data() + w * CTX, CTX, y.data()));
        for (size_t t = 0; t < CTX; t++) {
            const float *p = &x[t * vocab], *q = &y[t * vocab];
            const double zp = log_z(p), zq = log_z(q);
            for (size_t i = 0; i < vocab; i++)
                sum += std::exp((double)p[i] - zp) * ((double)p[i] - zp - (double)q[i] + zq);
        }
    }
    return sum / (double)(CTX * windows.size());
}

/* The shipped model with one layer quantized, through nb_quantize(), a file and back. */
std::string with_one_layer(const TempDir &d, const std::string &name, const std::string &module,
                           const std::string &weights, const std::string &method)
{
    write_text(d / "r.json", "{\"weights\": null, \"method\": \"" + method + "\", \"overrides\": [{\"match\": \"" +
                                 module + "\", \"weights\": " + weights + "}]}");
    nb_quantize_options o;
    nb_quantize_options_init(&o);
    const std::string recipe = d / "r.json";
    o.recipe = recipe.c_str();
    o.calib = VAL.c_str();
    o.calib_tokens = TOKENS;
    o.calib_ctx = CTX;
    o.device = "cpu";
    o.threads = 2;
    EXPECT_NB_OK(nb_quantize(MODEL.c_str(), (d / name).c_str(), &o, nullptr));
    return d / name;
}

struct Case {
    uint32_t layer;
    nbi_proj proj;
    size_t scheme;
    const char *weights;
};

/* x of one projection on all windows, and what the layer does with it. */
struct Seen {
    uint32_t layer;
    nbi_proj proj;
    nb_model *m;
    std::vector<float> x;
    static nb_status tap(void *self, uint32_t layer, size_t p, const void *x, size_t rows, size_t k)
    {
        auto *s = static_cast<Seen *>(self);
        if (layer != s->layer || p != s->proj)
            return NB_OK;
        const size_t at = s->x.size();
        s->x.resize(at + rows * k);
        return s->m->be->ops->download_act(s->m->be, &s->x[at], x, rows * k);
    }
};

/* |X (W - Q)^T|^2 / |X W^T|^2 in double, from tapped inputs and the two matrices. */
double output_error(Model &dense, const std::vector<int32_t> &ids, const Case &c)
{
    Seen seen{c.layer, c.proj, dense.m, {}};
    nbi_sequence *s = nullptr;
    EXPECT_NB_OK(nbi_sequence_create(&s, dense.m, CTX, CTX, NBI_KV_F32));
    for (size_t at = 0; at < TOKENS; at += CTX)
        EXPECT_NB_OK(nbi_sequence_run(s, ids.data() + at, CTX, nullptr, nullptr, Seen::tap, &seen));
    nbi_sequence_free(s);
    char name[96];
    nbi_module_name(name, c.layer, c.proj);
    size_t n, k;
    nbi_proj_shape(&dense.m->cfg, c.proj, &n, &k);
    nbi_checkpoint *ck = nullptr;
    nbi_weight w = {}, q = {};
    nbi_recipe *r = nullptr;
    nbi_scheme scheme;
    json_t *j = json_loads((std::string("{\"weights\": ") + c.weights + "}").c_str(), 0, nullptr);
    EXPECT_NB_OK(nbi_recipe_parse(&r, j, "r.json"));
    EXPECT_NB_OK(nbi_recipe_scheme(r, name, k, &scheme));
    EXPECT_NB_OK(nbi_checkpoint_open(&ck, MODEL.c_str()));
    const nbi_tensor *t = nbi_checkpoint_find(ck, (std::string(name) + ".weight").c_str());
    w.n = n;
    w.k = k;
    w.dense_dtype = t->dtype;
    w.dense = t->data;
    EXPECT_NB_OK(nbi_rtn(&q, &w, &scheme, dense.m->cfg.dtype, 1));
    double signal = 0, noise = 0;
    std::vector<float> a(k), b(k);
    for (size_t row = 0; row < n; row++) {
        nbi_weight_row(&w, row, a.data());
        nbi_weight_row(&q, row, b.data());
        for (size_t i = 0; i < TOKENS; i++) {
            double y = 0, e = 0;
            for (size_t z = 0; z < k; z++) {
                y += (double)seen.x[i * k + z] * (double)a[z];
                e += (double)seen.x[i * k + z] * ((double)a[z] - (double)b[z]);
            }
            signal += y * y;
            noise += e * e;
        }
    }
    nbi_weight_free(&q);
    nbi_recipe_free(r);
    json_decref(j);
    nbi_checkpoint_close(ck);
    return noise / signal;
}

const char *const W3 = "{\"bits\": 3, \"group_size\": 128}",
                  *const W2 = "{\"bits\": 2, \"symmetric\": false, \"group_size\": 64}",
                  *const W8 = "{\"bits\": 8, \"strategy\": \"channel\"}";
const Case cases[] = {{1, NBI_DOWN, 0, W3}, {3, NBI_Q, 1, W2}, {0, NBI_O, 0, W3}, {2, NBI_UP, 2, W8}};

/* Runs nbi_sensitivity() on the cases with a method. */
std::vector<nbi_cost> measure(Model &dense, const std::vector<int32_t> &ids, const char *method)
{
    std::vector<nbi_scheme> schemes;
    nbi_recipe *r = nullptr;
    for (const char *weights : {W3, W2, W8}) {
        json_t *j = json_pack("{s:o, s:s}", "weights", json_loads(weights, 0, nullptr), "method", method);
        nbi_recipe_free(r);
        EXPECT_NB_OK(nbi_recipe_parse(&r, j, "r.json"));
        nbi_scheme s;
        EXPECT_NB_OK(nbi_recipe_scheme(r, "model.layers.0.mlp.up_proj", 256, &s));
        schemes.push_back(s);
        json_decref(j);
    }
    nbi_checkpoint *ck = nullptr;
    EXPECT_NB_OK(nbi_checkpoint_open(&ck, MODEL.c_str()));
    const size_t modules = nbi_sensitivity_modules(&dense.m->cfg);
    EXPECT_EQ(28u, modules); /* 4 layers, lm_head is tied */
    std::vector<nbi_cost> cost(modules * 3, nbi_cost{-1, -1});
    bool wanted[28 * 3] = {};
    for (const Case &c : cases)
        wanted[(c.layer * NBI_N_PROJ + c.proj) * 3 + c.scheme] = true;
    nbi_sensitivity_options o = {};
    o.m = dense.m;
    o.ckpt = ck;
    o.scheme = schemes.data();
    o.n_schemes = 3;
    o.wanted = wanted;
    o.method = nbi_recipe_method(r, &o.options);
    o.scale_dtype = dense.m->cfg.dtype;
    o.ids = ids.data();
    o.n = TOKENS;
    o.ctx = CTX;
    o.windows = 2;
    o.threads = 2;
    size_t tokens = 0;
    EXPECT_NB_OK(nbi_sensitivity(cost.data(), &tokens, &o));
    EXPECT_EQ(2 * CTX, tokens);
    for (size_t i = 0; i < modules * 3; i++)
        EXPECT_EQ(wanted[i], cost[i].kl != -1) << "only what was asked for is measured";
    nbi_checkpoint_close(ck);
    nbi_recipe_free(r);
    return cost;
}

TEST(Sensitivity, is_the_divergence_of_a_model_with_that_layer_quantized)
{
    Model dense(MODEL);
    const std::vector<int32_t> ids = text_ids(dense.m);
    const std::vector<nbi_cost> cost = measure(dense, ids, "rtn");
    TempDir d;
    for (const Case &c : cases) {
        char name[96];
        nbi_module_name(name, c.layer, c.proj);
        Model q(with_one_layer(d, name, name, c.weights, "rtn"));
        const nbi_cost &got = cost[(c.layer * NBI_N_PROJ + c.proj) * 3 + c.scheme];
        const double want = divergence(dense.m, q.m, ids, {0, 2});
        EXPECT_GT(want, 1e-9) << name;
        EXPECT_NEAR(want, got.kl, 1e-3 * want + 1e-9) << name;
        const double error = output_error(dense, ids, c);
        EXPECT_NEAR(error, got.error, 1e-3 * error) << name;
    }
    /* the dense model is what it was */
    Model again(MODEL);
    EXPECT_NEAR(0, divergence(dense.m, again.m, ids, {1}), 1e-12);
}

/* GPTQ's second moments come from another pass over the same text: codes may differ where a rounding is close. */
TEST(Sensitivity, of_a_calibrated_method_is_that_of_its_own_result)
{
    Model dense(MODEL);
    const std::vector<int32_t> ids = text_ids(dense.m);
    const std::vector<nbi_cost> cost = measure(dense, ids, "gptq");
    TempDir d;
    const Case &c = cases[0];
    char name[96];
    nbi_module_name(name, c.layer, c.proj);
    Model q(with_one_layer(d, "q", name, c.weights, "gptq"));
    const nbi_cost &got = cost[(c.layer * NBI_N_PROJ + c.proj) * 3 + c.scheme];
    const double want = divergence(dense.m, q.m, ids, {0, 2});
    EXPECT_NEAR(want, got.kl, 0.05 * want);
    const std::vector<nbi_cost> rtn = measure(dense, ids, "rtn");
    EXPECT_LT(got.error, rtn[(c.layer * NBI_N_PROJ + c.proj) * 3 + c.scheme].error);
}

/* Only layer 2 differs: exchanged alone it is the whole difference, and streams part behind it. */
TEST(EvalLayers, name_the_layer_that_differs)
{
    TempDir d;
    Model base(MODEL), m(with_one_layer(d, "q", "re:model.layers.2.*", W3, "rtn"));
    const std::vector<int32_t> ids = text_ids(base.m);
    nb_eval_options o;
    nb_eval_options_init(&o);
    write_text(d / "text", read_text(VAL).substr(0, 2000));
    const std::string text = d / "text";
    o.text = text.c_str();
    o.ctx = CTX;
    o.max_windows = 1;
    char *json = nullptr;
    ASSERT_NB_OK(nb_eval_layers(m.m, base.m, &o, &json));
    json_t *r = json_loads(json, 0, nullptr), *rows = json_object_get(r, "layers"), *row;
    ASSERT_EQ(6u, json_array_size(rows)) << json;
    EXPECT_EQ((json_int_t)CTX, json_integer_value(json_object_get(r, "tokens")));
    size_t i;
    json_array_foreach(rows, i, row)
    {
        const double kl = json_number_value(json_object_get(row, "kl_alone"));
        const json_t *stream = json_object_get(row, "stream_error");
        if (i == 3) { /* model.layers.2 */
            const double want = divergence(base.m, m.m, ids, {0});
            EXPECT_STREQ("model.layers.2", json_string_value(json_object_get(row, "layer")));
            EXPECT_NEAR(want, kl, 1e-3 * want);
        } else
            EXPECT_NEAR(0, kl, 1e-9) << i;
        if (i < 3)
            EXPECT_EQ(0, json_number_value(stream)) << i;
        else if (i < 5)
            EXPECT_GT(json_number_value(stream), 1e-3) << i;
        else
            EXPECT_TRUE(json_is_null(stream));
    }
    json_decref(r);
    nb_free(json);
}

/* ---- the report ---- */

struct Weights {
    size_t n, k;
    std::vector<float> w;
    nbi_weight src = {}, q = {};
    Weights(size_t n_, size_t k_, unsigned bits, uint32_t group) : n(n_), k(k_), w(n_ * k_)
    {
        std::mt19937 rng(7);
        std::normal_distribution<float> u(0, 0.1f);
        for (float &x : w)
            x = u(rng);
        src.n = n;
        src.k = k;
        src.dense_dtype = NBI_F32;
        src.dense = w.data();
        nbi_scheme s = {};
        s.bits = (uint8_t)bits;
        s.symmetric = true;
        s.strategy = NBI_PER_GROUP;
        s.group = group;
        make = [this, s] { EXPECT_NB_OK(nbi_rtn(&q, &src, &s, NBI_F32, 1)); };
    }
    std::function<void()> make;
    ~Weights() { nbi_weight_free(&q); }
    Weights(const Weights &) = delete;
    Weights &operator=(const Weights &) = delete;
};

TEST(WeightError, is_what_its_formula_says)
{
    for (size_t n : {(size_t)1, (size_t)37, (size_t)2500}) { /* of 2500 rows every third is multiplied with H */
        Weights a(n, 48, 3, 16);
        a.w[5] = 2.5f; /* 6 standard deviations and more */
        a.make();
        std::mt19937 rng(3);
        std::normal_distribution<float> u(0, 1);
        const size_t k = 48, rows = 200, step = n > 1024 ? 3 : 1;
        std::vector<float> x(rows * k), h(k * k);
        for (float &v : x)
            v = u(rng);
        nbi_gram_add(h.data(), x.data(), rows, k, 1);
        double w2 = 0, d2 = 0, top = 0, signal = 0, noise = 0, beyond = 0;
        std::vector<float> q(k);
        for (size_t r = 0; r < n; r++) {
            const float *w = &a.w[r * k];
            double mean = 0, var = 0;
            nbi_weight_row(&a.q, r, q.data());
            for (size_t j = 0; j < k; j++)
                mean += (double)w[j] / (double)k;
            for (size_t j = 0; j < k; j++)
                var += ((double)w[j] - mean) * ((double)w[j] - mean) / (double)k;
            for (size_t j = 0; j < k; j++) {
                const double d = (double)w[j] - (double)q[j];
                w2 += (double)w[j] * (double)w[j];
                d2 += d * d;
                top = std::max(top, std::fabs(d));
                beyond += std::fabs((double)w[j] - mean) > 6 * std::sqrt(var);
            }
            for (size_t t = 0; t < rows && r % step == 0; t++) {
                double y = 0, e = 0;
                for (size_t j = 0; j < k; j++) {
                    y += (double)x[t * k + j] * (double)w[j];
                    e += (double)x[t * k + j] * ((double)w[j] - (double)q[j]);
                }
                signal += y * y;
                noise += e * e;
            }
        }
        EXPECT_GE(beyond, 1);
        for (int threads : {1, 3}) {
            nbi_weight_error e;
            ASSERT_NB_OK(nbi_weight_error_of(&e, &a.q, &a.src, h.data(), threads));
            EXPECT_NEAR(w2, e.w2, 1e-9 * w2);
            EXPECT_NEAR(d2, e.d2, 1e-6 * d2);
            EXPECT_NEAR(top, e.max_abs, 1e-6 * top);
            EXPECT_NEAR(beyond / (double)(n * k), e.outliers, 1e-12);
            EXPECT_NEAR(signal, e.signal, 1e-4 * signal) << n;
            EXPECT_NEAR(noise, e.noise, 1e-4 * noise) << n;
        }
    }
}

TEST(Report, a_row_tells_scales_and_outliers)
{
    Weights a(8, 64, 4, 16);
    for (size_t j = 0; j < 16; j++)
        a.w[j] *= 1000; /* one large scale */
    a.make();
    nbi_inputs in;
    ASSERT_NB_OK(nbi_inputs_init(&in, 64, NBI_NEEDS_SIZES));
    std::vector<float> x(64, 1.0f);
    x[3] = 6.5f;
    x[4] = 5.5f;
    ASSERT_NB_OK(nbi_inputs_add(&in, x.data(), 1, 1));
    json_t *rows = json_array();
    nbi_report_item it = {};
    it.module = "model.layers.0.mlp.up_proj";
    it.scheme = &a.q.scheme;
    it.n = 8;
    it.k = 64;
    it.bytes = 320;
    it.q = &a.q;
    it.src = &a.src;
    it.in = &in;
    it.threads = 1;
    ASSERT_NB_OK(nbi_report_add(rows, &it));
    const json_t *row = json_array_get(rows, 0), *s = json_object_get(row, "scales");
    auto num = [](const json_t *o, const char *key) { return json_number_value(json_object_get(o, key)); };
    std::vector<float> sorted(a.q.scales, a.q.scales + 32);
    std::sort(sorted.begin(), sorted.end());
    EXPECT_EQ((double)sorted[0], num(s, "min"));
    EXPECT_EQ((double)sorted[31], num(s, "max"));
    EXPECT_EQ((double)sorted[16], num(s, "median"));
    EXPECT_EQ((double)sorted[8], num(s, "q1"));
    EXPECT_EQ((double)sorted[23], num(s, "q3"));
    double count = 0;
    size_t i;
    json_t *v;
    json_array_foreach(json_object_get(s, "histogram"), i, v) count += json_number_value(v);
    EXPECT_EQ(32, count);
    EXPECT_EQ(1, json_number_value(json_array_get(json_object_get(s, "histogram"),
                                                  json_array_size(json_object_get(s, "histogram")) - 1)));
    EXPECT_EQ(std::floor(2 * std::log2((double)sorted[0])), num(s, "first_half_log2"));
    EXPECT_EQ(1.0 / 64, num(row, "outlier_inputs")); /* 6.5 is beyond 6 medians, 5.5 is not */
    EXPECT_EQ(5.0, num(row, "bits_per_weight"));
    EXPECT_EQ(4, num(row, "bits"));
    EXPECT_EQ(nullptr, json_object_get(row, "output_sqnr_db")) << "nothing is known of X^T X";
    json_decref(rows);
    nbi_inputs_free(&in);
}

TEST(Report, a_page_stands_alone_and_its_names_are_escaped)
{
    json_t *r =
        json_loads("{\"recipe\": \"<b>&'\\\"\", \"method\": \"rtn\", \"bytes_before\": 100, \"bytes_after\": 50, "
                   "\"ratio\": 2, \"modules\": [{\"module\": \"a<script>alert(1)</script>\", \"scheme\": \"W4\", "
                   "\"bits_per_weight\": 4.1, \"sqnr_db\": 20.5, \"output_sqnr_db\": null, \"scales\": "
                   "{\"min\": 0.1, \"histogram\": [3, 0, 5], \"first_half_log2\": -7}}]}",
                   0, nullptr);
    ASSERT_NE(nullptr, r);
    char *html = nullptr;
    ASSERT_NB_OK(nbi_report_html(&html, r));
    const std::string s = html;
    EXPECT_EQ(std::string::npos, s.find("<script"));
    EXPECT_EQ(std::string::npos, s.find("http"));
    EXPECT_EQ(std::string::npos, s.find("nan"));
    EXPECT_NE(std::string::npos, s.find("&lt;b&gt;&amp;&#39;&quot;"));
    EXPECT_NE(std::string::npos, s.find("a&lt;script&gt;"));
    auto count = [&](const std::string &what) {
        size_t n = 0;
        for (size_t at = s.find(what); at != std::string::npos; at = s.find(what, at + 1))
            n++;
        return n;
    };
    EXPECT_EQ(3u, count("<svg ")); /* bits, SQNR, scales */
    EXPECT_EQ(3u, count("</svg>"));
    EXPECT_EQ(count("<table>"), count("</table>"));
    EXPECT_EQ(count("<tr>"), count("</tr>"));
    EXPECT_EQ(4u, count("<rect ")) << "a bar for the layer, three for the scales";
    free(html);
    /* nothing quantized: still a page */
    json_t *empty = json_loads("{\"modules\": []}", 0, nullptr);
    ASSERT_NB_OK(nbi_report_html(&html, empty));
    free(html);
    json_decref(empty);
    json_decref(r);
}

} // namespace
