/* Formats of quantized checkpoints through quantized.h: what a weight means survives a folder, and what a file may not say. */
#include "ct_testutil.h"

#include <functional>

extern "C" {
#include "base/e8p.h"
#include "format/nibble.h"
#include "format/quantized.h"
}

namespace
{
const nbi_quant_model NO_MODEL = {};

nbi_scheme with(nbi_scheme s, const std::function<void(nbi_scheme &)> &change)
{
    change(s);
    return s;
}

nbi_scheme of_kind(nbi_kind kind, int bits, nbi_strategy strategy, uint32_t group, nbi_act act = NBI_ACT_NONE)
{
    nbi_scheme s = scheme(bits, true, strategy, group, act);
    s.kind = kind;
    s.act_symmetric = act == NBI_ACT_TOKEN;
    return s;
}

/* Schemes that compressed-tensors has no words for. */
std::vector<nbi_scheme> own_schemes()
{
    const nbi_scheme w4 = scheme(4, true, NBI_PER_GROUP, 16), w3 = scheme(3, false, NBI_PER_GROUP, 16),
                     w8 = scheme(8, true, NBI_PER_CHANNEL, 0, NBI_ACT_TOKEN),
                     e8p = with(of_kind(NBI_KIND_E8P, 2, NBI_PER_TENSOR, 0),
                                [](nbi_scheme &s) { s.rotate_in = s.rotate_out = true; });
    std::vector<nbi_scheme> v = {
        with(w4, [](nbi_scheme &s) { s.act_order = true; }),
        with(w4, [](nbi_scheme &s) { s.rotate_in = true; }),
        with(w4, [](nbi_scheme &s) { s.rotate_out = true; }),
        with(w3, [](nbi_scheme &s) { s.sparse = true; }),
        with(w3, [](nbi_scheme &s) { s.sparse = s.act_order = true; }),
        with(w3, [](nbi_scheme &s) { s.nested = true; }),
        with(w3, [](nbi_scheme &s) { s.nested = s.sparse = s.act_order = true; }),
        with(w3, [](nbi_scheme &s) { s.nested = s.rotate_in = true; }),
        with(w8, [](nbi_scheme &s) { s.outliers = s.sparse = true; }),
        with(w8, [](nbi_scheme &s) { s.rotate_in = true; }),
        with(scheme(8, false, NBI_PER_TENSOR, 0, NBI_ACT_TENSOR, false), [](nbi_scheme &s) { s.rotate_in = true; }),
        with(scheme(2, false, NBI_PER_CHANNEL, 0, NBI_ACT_TENSOR, true),
             [](nbi_scheme &s) { s.outliers = s.sparse = true; }),
        e8p,
        with(e8p, [](nbi_scheme &s) { s.bits = 4; }),
        with(e8p, [](nbi_scheme &s) { s.rotate_out = false; }),
        of_kind(NBI_KIND_NF4, 4, NBI_PER_GROUP, 16),
        with(of_kind(NBI_KIND_NF4, 4, NBI_PER_GROUP, 16), [](nbi_scheme &s) { s.rotate_in = s.rotate_out = true; }),
        with(of_kind(NBI_KIND_NF4, 4, NBI_PER_GROUP, 16), [](nbi_scheme &s) { s.sparse = true; }),
        of_kind(NBI_KIND_BINARY, 1, NBI_PER_CHANNEL, 0),
        of_kind(NBI_KIND_BINARY, 1, NBI_PER_CHANNEL, 0, NBI_ACT_SIGN),
        of_kind(NBI_KIND_BINARY, 1, NBI_PER_CHANNEL, 0, NBI_ACT_TOKEN),
        scheme(2, true, NBI_PER_TENSOR, 0, NBI_ACT_SIGN),
    };
    return v;
}

float half(float f)
{
    return rounded(f, NBI_F16);
}

template <class T>
T *room(size_t n)
{
    return static_cast<T *>(malloc((n + 1) * sizeof(T)));
}

void add_sparse(Weight &w, std::mt19937 &rng)
{
    std::vector<uint32_t> col;
    w.sparse.row = room<uint32_t>(w.n + 1);
    w.sparse.row[0] = 0;
    for (size_t n = 0; n < w.n; n++) {
        for (size_t k = 0; k < w.k; k++)
            if (w.scheme.outliers ? k % 11 == 3 : n != 2 && rng() % 9 == 0)
                col.push_back(uint32_t(k));
        w.sparse.row[n + 1] = uint32_t(col.size());
    }
    w.sparse.nnz = col.size();
    w.sparse.col = room<uint32_t>(col.size());
    w.sparse.value = room<float>(col.size());
    for (size_t i = 0; i < col.size(); i++) {
        w.sparse.col[i] = col[i];
        w.sparse.value[i] = half(float(rng() % 2000) / 1000 - 1);
    }
    if (!w.scheme.outliers)
        return;
    w.outlier = room<uint32_t>(w.k);
    for (size_t k = 3; k < w.k; k += 11) {
        w.outlier[w.n_outliers++] = uint32_t(k);
        for (size_t n = 0; n < w.n; n++)
            w.codes[n * w.k + k] = w.zeros ? w.zeros[n * w.groups() + k / (w.k / w.groups())] : 0;
    }
}

void add_nested(Weight &w, std::mt19937 &rng)
{
    w.nested.bits = NBI_NESTED_BITS;
    w.nested.rows = NBI_NESTED_ROWS;
    ASSERT_NB_OK(nbi_weight_alloc_nested(&w));
    const size_t runs = (w.n + NBI_NESTED_ROWS - 1) / NBI_NESTED_ROWS * w.groups();
    for (size_t i = 0; i < w.n * w.groups(); i++) {
        w.nested.scale_code[i] = uint8_t(rng() % 8);
        w.nested.zero_code[i] = uint8_t(rng() % 8);
    }
    for (size_t i = 0; i < runs; i++) {
        w.nested.scale_grid[2 * i] = half(0.01f + float(rng() % 100) / 1000);
        w.nested.scale_grid[2 * i + 1] = half(float(rng() % 100) / 5000);
        w.nested.zero_grid[2 * i] = half(-4 + float(rng() % 100) / 50);
        w.nested.zero_grid[2 * i + 1] = half(float(rng() % 100) / 100);
    }
    nbi_weight_unnest(&w);
}

/* Any weight of the scheme. */
void make(Weight &w, size_t n, size_t k, const nbi_scheme &s, unsigned seed, nbi_dtype t = NBI_F32)
{
    std::mt19937 rng(seed);
    randomize(w, n, k, s, t, seed);
    if (s.kind == NBI_KIND_BINARY)
        for (size_t i = 0; i < n * k; i++)
            w.codes[i] = rng() % 2 ? 1 : -1;
    if (s.kind == NBI_KIND_E8P) {
        for (size_t i = 0; i < n * k / 8 * (s.bits / 2u); i++)
            w.words[i] = uint16_t(rng());
        nbi_e8p_decode(w.codes, w.words, n * k / 8, s.bits);
    }
    if (s.nested)
        add_nested(w, rng);
    if (s.sparse)
        add_sparse(w, rng);
    if (s.act_order) {
        w.perm = room<uint32_t>(k);
        for (size_t j = 0; j < k; j++)
            w.perm[j] = uint32_t(j);
        std::shuffle(w.perm, w.perm + k, rng);
    }
    for (int side = 0; side < 2; side++) {
        if (!(side ? s.rotate_out : s.rotate_in))
            continue;
        int8_t *signs = (side ? w.out_signs : w.in_signs) = room<int8_t>(side ? n : k);
        for (size_t i = 0; i < (side ? n : k); i++)
            signs[i] = rng() % 2 ? 1 : -1;
    }
}

size_t inputs_of(const nbi_scheme &s)
{
    return s.strategy == NBI_PER_GROUP ? 3 * s.group : s.kind == NBI_KIND_E8P ? 40 : 45;
}

std::vector<float> dense_of(const nbi_weight &w)
{
    std::vector<float> v(w.n * w.k);
    EXPECT_NB_OK(nbi_weight_dense(&w, v.data(), 1));
    return v;
}

template <class T>
void expect_equal(const T *want, const T *got, size_t n, const char *what)
{
    ASSERT_EQ(want == nullptr, got == nullptr) << what;
    EXPECT_TRUE(!want || memcmp(want, got, n * sizeof(T)) == 0) << what;
}

void expect_same(const nbi_weight &a, const nbi_weight &b)
{
    const size_t groups = a.n * nbi_scheme_groups(&a.scheme, a.k);
    ASSERT_EQ(a.n, b.n);
    ASSERT_EQ(a.k, b.k);
    expect_equal(a.codes, b.codes, a.n * a.k, "codes");
    expect_equal(a.scales, b.scales, groups, "scales");
    expect_equal(a.zeros, b.zeros, groups, "zeros");
    expect_equal(a.words, b.words, a.n * a.k / 8 * (a.scheme.bits / 2u), "words");
    expect_equal(a.perm, b.perm, a.k, "perm");
    expect_equal(a.in_signs, b.in_signs, a.k, "in_signs");
    expect_equal(a.out_signs, b.out_signs, a.n, "out_signs");
    ASSERT_EQ(a.n_outliers, b.n_outliers);
    expect_equal(a.outlier, b.outlier, a.n_outliers, "outlier");
    ASSERT_EQ(a.sparse.nnz, b.sparse.nnz);
    expect_equal(a.sparse.row, b.sparse.row, a.n + 1, "sparse.row");
    expect_equal(a.sparse.col, b.sparse.col, a.sparse.nnz, "sparse.col");
    expect_equal(a.sparse.value, b.sparse.value, a.sparse.nnz, "sparse.value");
    expect_equal(a.nested.scale_code, b.nested.scale_code, groups, "scale_code");
    expect_equal(a.nested.zero_code, b.nested.zero_code, groups, "zero_code");
    EXPECT_EQ(a.act_scale, b.act_scale);
    EXPECT_EQ(a.act_zero, b.act_zero);
    const std::vector<float> want = dense_of(a), got = dense_of(b);
    EXPECT_EQ(0, memcmp(want.data(), got.data(), want.size() * sizeof(float)));
}

/* A folder of several modules "m0", "m1" ..., and the config that goes with it. */
struct Model {
    TempDir d;
    nbi_checkpoint *c = nullptr;
    nbi_quant_config *q = nullptr;
    const nbi_quant_format *format = nullptr;
    json_t *config = nullptr;
    ~Model()
    {
        nbi_quant_config_free(q);
        nbi_checkpoint_close(c);
        json_decref(config);
    }
    void write(const std::vector<const Weight *> &w, nbi_dtype t, size_t shard = 0)
    {
        std::vector<std::string> names;
        std::vector<nbi_quant_entry> e;
        for (size_t i = 0; i < w.size(); i++)
            names.push_back("m" + std::to_string(i));
        for (size_t i = 0; i < w.size(); i++)
            e.push_back({names[i].c_str(), w[i]->scheme, w[i]->n, w[i]->k});
        e.push_back({"lm_head", {}, 0, 0});
        format = nbi_quant_choose(e.data(), e.size(), &NO_MODEL);
        ASSERT_NE(nullptr, format);
        nbi_st_writer *out = nullptr;
        ASSERT_NB_OK(nbi_st_writer_create(&out, d.path().c_str(), shard));
        for (size_t i = 0; i < w.size(); i++)
            ASSERT_NB_OK(nbi_quant_declare(format, out, names[i].c_str(), w[i]->n, w[i]->k, &w[i]->scheme, t));
        for (size_t i = 0; i < w.size(); i++)
            ASSERT_NB_OK(nbi_quant_write(format, out, names[i].c_str(), w[i], t));
        ASSERT_NB_OK(nbi_st_finish(out));
        nbi_st_writer_free(out);
        ASSERT_NB_OK(nbi_quant_config_build(&config, format, e.data(), e.size(), &NO_MODEL));
        ASSERT_NB_OK(nbi_quant_config_parse(&q, config, "config.json"));
        ASSERT_NB_OK(nbi_checkpoint_open(&c, d.path().c_str()));
    }
    size_t bytes(const std::string &module) const
    {
        size_t sum = 0;
        for (size_t i = 0; i < nbi_checkpoint_count(c); i++) {
            const nbi_tensor *t = nbi_checkpoint_at(c, i);
            sum += std::string(t->name).rfind(module + ".", 0) == 0 ? t->bytes : 0;
        }
        return sum;
    }
};

void round_trip(const std::vector<nbi_scheme> &schemes, nbi_dtype t, const char *format, size_t shard = 0)
{
    std::vector<std::unique_ptr<Weight>> w;
    std::vector<const Weight *> p;
    for (size_t i = 0; i < schemes.size(); i++) {
        w.emplace_back(new Weight);
        make(*w.back(), 19, inputs_of(schemes[i]), schemes[i], unsigned(i + 1), t);
        p.push_back(w.back().get());
    }
    Model m;
    m.write(p, t, shard);
    EXPECT_STREQ(format, m.format->name);
    EXPECT_STREQ(format, nbi_quant_format_of(m.q)->name);
    for (size_t i = 0; i < p.size(); i++) {
        const std::string name = "m" + std::to_string(i);
        SCOPED_TRACE(name_of(schemes[i]));
        nbi_scheme s;
        ASSERT_NB_OK(nbi_quant_scheme(m.q, m.c, name.c_str(), "Linear", &s));
        EXPECT_EQ(p[i]->sparse.nnz, s.nnz);
        EXPECT_EQ(schemes[i].act, s.act);
        EXPECT_TRUE(schemes[i].act != NBI_ACT_TENSOR || schemes[i].act_symmetric == s.act_symmetric);
        EXPECT_EQ(name_of(schemes[i]), name_of(s));
        Weight back;
        ASSERT_NB_OK(nbi_quant_read(&back, m.q, m.c, name.c_str(), "Linear", p[i]->n, p[i]->k));
        expect_same(*p[i], back);
        EXPECT_EQ(m.bytes(name), nbi_quant_bytes(m.format, p[i]->n, p[i]->k, &p[i]->scheme, t, p[i]));
    }
}

} // namespace

TEST(Formats, what_a_weight_means_survives_a_folder)
{
    for (nbi_dtype t : FLOATS)
        round_trip(own_schemes(), t, "nibble");
    round_trip(own_schemes(), NBI_BF16, "nibble", 2000);
    for (const nbi_scheme &s : own_schemes())
        if (s.kind != NBI_KIND_NF4 || s.rotate_in || s.sparse)
            round_trip({s}, NBI_F16, "nibble");
}

TEST(Formats, compressed_tensors_is_chosen_whenever_it_can_say_everything)
{
    round_trip(all_schemes(), NBI_BF16, "compressed-tensors");
    std::vector<nbi_scheme> mixed = all_schemes();
    mixed.push_back(own_schemes()[0]);
    round_trip(mixed, NBI_F32, "nibble");
    const nbi_quant_entry e[] = {{"a", scheme(4, true, NBI_PER_CHANNEL, 0), 8, 8}, {"b", {}, 8, 8}};
    const nbi_quant_model rotated = {true};
    EXPECT_STREQ("compressed-tensors", nbi_quant_choose(e, 2, &NO_MODEL)->name);
    EXPECT_STREQ("nibble", nbi_quant_choose(e, 2, &rotated)->name);
    EXPECT_STREQ("compressed-tensors", nbi_quant_choose(e + 1, 1, &NO_MODEL)->name);
    const nbi_quant_entry bad[] = {{"a", with(own_schemes()[0], [](nbi_scheme &s) { s.rotate_in = true; }), 8, 16}};
    EXPECT_EQ(nullptr, nbi_quant_choose(bad, 1, &NO_MODEL));
}

TEST(Formats, keys_of_the_whole_model)
{
    const nbi_quant_entry e[] = {{"a", scheme(4, true, NBI_PER_CHANNEL, 0), 8, 8}, {"b", {}, 8, 8}};
    const nbi_quant_model rotated = {true};
    for (size_t first = 0; first < 2; first++) {
        json_t *j = nullptr;
        nbi_quant_config *q = nullptr;
        ASSERT_NB_OK(nbi_quant_config_build(&j, nbi_quant_choose(e, 2, &rotated), e + first, 2 - first, &rotated));
        ASSERT_NB_OK(nbi_quant_config_parse(&q, j, "config.json"));
        EXPECT_TRUE(nbi_quant_model_of(q).rotate_keys);
        nbi_scheme s;
        ASSERT_NB_OK(nbi_quant_scheme(q, nullptr, "b", "Linear", &s));
        EXPECT_EQ(0, s.bits);
        nbi_quant_config_free(q);
        json_decref(j);
    }
    EXPECT_FALSE(nbi_quant_model_of(nullptr).rotate_keys);
}

/* Other engines must not take the folder for something they know. */
TEST(Formats, compressed_tensors_refuses_what_it_cannot_say)
{
    for (const nbi_scheme &s : own_schemes()) {
        SCOPED_TRACE(name_of(s));
        nbi_st_writer *out = nullptr;
        TempDir d;
        ASSERT_NB_OK(nbi_st_writer_create(&out, d.path().c_str(), 0));
        EXPECT_NE(NB_OK, nbi_ct_declare(out, "m", 16, 48, &s, NBI_F32));
        nbi_st_writer_free(out);
        const nbi_quant_entry e[] = {{"m", s, 16, 48}};
        json_t *j = nullptr;
        EXPECT_NE(NB_OK, nbi_ct_config_build(&j, e, 1));
        EXPECT_EQ(nullptr, j);
    }
}

namespace
{
/* The nibble config with one group; `group` is JSON behind "targets". */
nb_status parse(const std::string &group, const std::string &top = "")
{
    json_error_t error;
    const std::string text = R"({"quant_method":"nibble","version":1,"config_groups":{"g":{"targets":["Linear"],)" +
                             group + "}}" + top + "}";
    json_t *j = json_loads(text.c_str(), JSON_REJECT_DUPLICATES, &error);
    EXPECT_NE(nullptr, j) << text << error.text;
    nbi_quant_config *q = nullptr;
    nb_status st = nbi_quant_config_parse(&q, j, "config.json");
    EXPECT_EQ(st == NB_OK, q != nullptr);
    nbi_quant_config_free(q);
    json_decref(j);
    return st;
}

const std::string W4 = R"("weights":{"kind":"int","num_bits":4,"symmetric":true,"strategy":"channel"})",
                  W3 = R"("weights":{"kind":"int","num_bits":3,"symmetric":false,"strategy":"group","group_size":16})",
                  A8 = R"(,"input_activations":{"num_bits":8,"symmetric":true,"strategy":"token"})";
} // namespace

TEST(Config, nonsense_is_refused_by_name)
{
    EXPECT_NB_OK(parse(W4));
    EXPECT_NB_OK(parse(W3 + R"(,"nested":{"num_bits":3,"rows":16},"sparse":true,"act_order":true)"));
    EXPECT_NB_OK(
        parse(W4 + A8 + R"(,"sparse":true,"outliers":true)", R"(,"kv_cache":{"rotate_keys":true},"ignore":[])"));
    EXPECT_FAILS(NB_EUNSUPPORTED, "\"colour\"", parse(W4 + R"(,"colour":1)"));
    EXPECT_FAILS(NB_EUNSUPPORTED, "\"colour\"", parse(W4, R"(,"colour":1)"));
    EXPECT_FAILS(NB_EUNSUPPORTED, "kv_cache: has the unknown key \"dtype\"", parse(W4, R"(,"kv_cache":{"dtype":8})"));
    EXPECT_FAILS(NB_EFORMAT, "rotate_keys", parse(W4, R"(,"kv_cache":{"rotate_keys":8})"));
    EXPECT_FAILS(NB_EUNSUPPORTED, "outliers go with INT8", parse(W4 + R"(,"sparse":true,"outliers":true)"));
    EXPECT_FAILS(NB_EUNSUPPORTED, "outliers go with INT8", parse(W4 + A8 + R"(,"outliers":true)"));
    EXPECT_FAILS(NB_EUNSUPPORTED, "rotation goes neither", parse(W4 + R"(,"sparse":true,"rotate_inputs":true)"));
    EXPECT_FAILS(NB_EUNSUPPORTED, "rotation goes neither", parse(W4 + R"(,"act_order":true,"rotate_outputs":true)"));
    EXPECT_FAILS(NB_EUNSUPPORTED, "nested scales need", parse(W4 + R"(,"nested":{"num_bits":3,"rows":16})"));
    EXPECT_FAILS(NB_EUNSUPPORTED, "4 bits for 16 rows", parse(W3 + R"(,"nested":{"num_bits":4,"rows":16})"));
}
