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
        with(w3, [](nbi_scheme &s) { s.zero_frac = 4; }),
        with(w3, [](nbi_scheme &s) { s.zero_frac = 4, s.act_order = true; }),
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
    if (a.n_outliers)
        expect_equal(a.outlier, b.outlier, a.n_outliers, "outlier");
    ASSERT_EQ(a.sparse.nnz, b.sparse.nnz);
    expect_equal(a.sparse.row, b.sparse.row, a.n + 1, "sparse.row");
    if (a.sparse.nnz) {
        expect_equal(a.sparse.col, b.sparse.col, a.sparse.nnz, "sparse.col");
        expect_equal(a.sparse.value, b.sparse.value, a.sparse.nnz, "sparse.value");
    }
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

/* Numbers below K take 1, 2 or 4 bytes; counts of more than 255 take a second plane. */
TEST(Formats, wide_matrices)
{
    const nbi_scheme s =
        with(scheme(3, false, NBI_PER_GROUP, 16), [](nbi_scheme &x) { x.sparse = x.act_order = true; });
    for (size_t k : {256, 272, 3008, 65536, 65552}) {
        Weight w, back;
        Model m;
        make(w, 3, k, s, unsigned(k));
        m.write({&w}, NBI_F32);
        ASSERT_NB_OK(nbi_quant_read(&back, m.q, m.c, "m0", "Linear", 3, k));
        expect_same(w, back);
        const size_t width = k <= 256 ? 1 : k <= 65536 ? 2 : 4, planes = k < 1000 ? 1 : 2;
        EXPECT_EQ(width * k, nbi_checkpoint_find(m.c, "m0.input_order")->bytes);
        EXPECT_EQ((width + 2) * w.sparse.nnz, nbi_checkpoint_find(m.c, "m0.sparse_entries")->bytes);
        EXPECT_EQ(planes * 3, nbi_checkpoint_find(m.c, "m0.sparse_counts")->bytes);
    }
}

/* No number at all. */
TEST(Formats, empty_sparse_parts)
{
    for (bool outliers : {false, true}) {
        Weight w, back;
        Model m;
        randomize(w, 5, 24,
                  with(scheme(8, true, NBI_PER_CHANNEL, 0, NBI_ACT_TOKEN),
                       [=](nbi_scheme &s) {
                           s.sparse = true;
                           s.outliers = outliers;
                       }),
                  NBI_F32, 1);
        w.sparse.row = static_cast<uint32_t *>(calloc(6, sizeof(uint32_t)));
        m.write({&w}, NBI_F32);
        ASSERT_NB_OK(nbi_quant_read(&back, m.q, m.c, "m0", "Linear", 5, 24));
        expect_same(w, back);
        EXPECT_EQ(outliers, back.scheme.outliers);
        EXPECT_NE(nullptr, back.sparse.row);
    }
}

TEST(Formats, compressed_tensors_is_chosen_whenever_it_can_say_everything)
{
    round_trip(all_schemes(), NBI_BF16, "compressed-tensors");
    std::vector<nbi_scheme> mixed = all_schemes();
    mixed.push_back(own_schemes()[0]);
    round_trip(mixed, NBI_F32, "nibble");
    const nbi_quant_entry e[] = {{"a", scheme(4, true, NBI_PER_CHANNEL, 0), 8, 8}, {"b", {}, 8, 8}};
    const nbi_quant_model rotated = {true, true, "int4"};
    EXPECT_STREQ("compressed-tensors", nbi_quant_choose(e, 2, &NO_MODEL)->name);
    EXPECT_STREQ("nibble", nbi_quant_choose(e, 2, &rotated)->name);
    EXPECT_STREQ("compressed-tensors", nbi_quant_choose(e + 1, 1, &NO_MODEL)->name);
    const nbi_quant_entry bad[] = {{"a", with(own_schemes()[0], [](nbi_scheme &s) { s.rotate_in = true; }), 8, 16}};
    EXPECT_EQ(nullptr, nbi_quant_choose(bad, 1, &NO_MODEL));
}

TEST(Formats, keys_of_the_whole_model)
{
    const nbi_quant_entry e[] = {{"a", scheme(4, true, NBI_PER_CHANNEL, 0), 8, 8}, {"b", {}, 8, 8}};
    const nbi_quant_model rotated = {true, true, "int4"};
    for (size_t first = 0; first < 2; first++) {
        json_t *j = nullptr;
        nbi_quant_config *q = nullptr;
        ASSERT_NB_OK(nbi_quant_config_build(&j, nbi_quant_choose(e, 2, &rotated), e + first, 2 - first, &rotated));
        ASSERT_NB_OK(nbi_quant_config_parse(&q, j, "config.json"));
        EXPECT_TRUE(nbi_quant_model_of(q).rotate_keys);
        EXPECT_TRUE(nbi_quant_model_of(q).channel_keys);
        EXPECT_STREQ("int4", nbi_quant_model_of(q).kv_dtype);
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
    EXPECT_FAILS(NB_EUNSUPPORTED, "kv_cache: has the unknown key \"type\"", parse(W4, R"(,"kv_cache":{"type":8})"));
    EXPECT_FAILS(NB_EFORMAT, "kv_cache: \"dtype\"", parse(W4, R"(,"kv_cache":{"dtype":8})"));
    EXPECT_NB_OK(parse(W4, R"(,"kv_cache":{"keys":"channel"})"));
    EXPECT_FAILS(NB_EUNSUPPORTED, "\"keys\" is \"row\", expected token or channel",
                 parse(W4, R"(,"kv_cache":{"keys":"row"})"));
    EXPECT_FAILS(NB_EFORMAT, "rotate_keys", parse(W4, R"(,"kv_cache":{"rotate_keys":8})"));
    EXPECT_FAILS(NB_EUNSUPPORTED, "outliers go with INT8", parse(W4 + R"(,"sparse":true,"outliers":true)"));
    EXPECT_FAILS(NB_EUNSUPPORTED, "outliers go with INT8", parse(W4 + A8 + R"(,"outliers":true)"));
    EXPECT_FAILS(NB_EUNSUPPORTED, "rotation goes neither", parse(W4 + R"(,"sparse":true,"rotate_inputs":true)"));
    EXPECT_FAILS(NB_EUNSUPPORTED, "rotation goes neither", parse(W4 + R"(,"act_order":true,"rotate_outputs":true)"));
    EXPECT_FAILS(NB_EUNSUPPORTED, "nested scales need", parse(W4 + R"(,"nested":{"num_bits":3,"rows":16})"));
    const std::string w3 = W3.substr(0, W3.size() - 1);
    EXPECT_NB_OK(parse(w3 + R"(,"zero_point_fraction":4})"));
    EXPECT_FAILS(NB_EUNSUPPORTED, "sixteenths", parse(w3 + R"(,"zero_point_fraction":3})"));
    EXPECT_FAILS(NB_EUNSUPPORTED, "sixteenths", parse(w3 + R"(,"zero_point_fraction":4})" + A8));
    EXPECT_FAILS(NB_EUNSUPPORTED, "4 bits for 16 rows", parse(W3 + R"(,"nested":{"num_bits":4,"rows":16})"));
}

/* ---- damaged files ------------------------------------------------------------------------------------------------ */

namespace
{
std::vector<Raw> tensors_of(const nbi_checkpoint *c)
{
    std::vector<Raw> v;
    for (size_t i = 0; i < nbi_checkpoint_count(c); i++) {
        const nbi_tensor *t = nbi_checkpoint_at(c, i);
        v.push_back({t->name,
                     t->dtype,
                     {t->shape, t->shape + t->n_dims},
                     std::string(static_cast<const char *>(t->data), t->bytes)});
    }
    return v;
}

/* Reads module m0 of a good file after a change of its tensors. */
nb_status read_changed(const nbi_scheme &s, const std::function<void(Raw &)> &change, const std::string &suffix)
{
    Weight w, back;
    Model m;
    TempDir d;
    make(w, 19, inputs_of(s), s, 7);
    m.write({&w}, NBI_F32);
    std::vector<Raw> t = tensors_of(m.c), kept;
    bool found = false;
    for (Raw &r : t) {
        if (r.name == "m0." + suffix) {
            change(r);
            found = true;
        }
        if (!r.shape.empty() || r.name != "m0." + suffix)
            kept.push_back(r);
    }
    EXPECT_TRUE(found) << suffix;
    write_raw(d.path(), kept);
    nbi_checkpoint *c = nullptr;
    EXPECT_NB_OK(nbi_checkpoint_open(&c, d.path().c_str()));
    nb_status st = nbi_quant_read(&back, m.q, c, "m0", "Linear", w.n, w.k);
    EXPECT_EQ(st == NB_OK, back.codes != nullptr);
    nbi_checkpoint_close(c);
    return st;
}

std::function<void(Raw &)> put(size_t at, const std::string &bytes)
{
    return [=](Raw &r) { r.data.replace(at, bytes.size(), bytes); };
}

const auto GONE = [](Raw &r) { r.shape.clear(); }; /* left out by read_changed() */
const auto SHORTER = [](Raw &r) {
    r.data.resize(r.data.size() / r.shape[0] * (r.shape[0] - 1));
    r.shape[0]--;
};
const std::string F16_INF("\x00\x7c", 2), F16_NAN("\x01\x7e", 2), F16_ZERO("\0\0", 2);
} // namespace

TEST(Damage, every_number_is_checked)
{
    const nbi_scheme w4 = scheme(4, true, NBI_PER_GROUP, 16), w3 = scheme(3, false, NBI_PER_GROUP, 16),
                     sparse = with(w3, [](nbi_scheme &s) { s.sparse = true; }),
                     order = with(w4, [](nbi_scheme &s) { s.act_order = true; }),
                     rotated = with(scheme(8, true, NBI_PER_CHANNEL, 0), [](nbi_scheme &s) { s.rotate_in = true; }),
                     nested = with(w3, [](nbi_scheme &s) { s.nested = true; }),
                     outliers = with(scheme(8, true, NBI_PER_CHANNEL, 0, NBI_ACT_TOKEN),
                                     [](nbi_scheme &s) { s.outliers = s.sparse = true; }),
                     binary = of_kind(NBI_KIND_BINARY, 1, NBI_PER_CHANNEL, 0),
                     e8p = with(of_kind(NBI_KIND_E8P, 2, NBI_PER_TENSOR, 0), [](nbi_scheme &s) { s.rotate_in = true; });
    const struct {
        nbi_scheme s;
        const char *tensor;
        std::function<void(Raw &)> change;
        const char *sentence;
    } cases[] = {
        {sparse, "sparse_counts", put(0, "\xff"), "row 0 has 255 numbers"},
        {sparse, "sparse_counts", put(18, std::string(1, 0)), "row 18 has 0 numbers, but"},
        {sparse, "sparse_counts", SHORTER, "row 18 has 0 numbers, but"},
        {sparse, "sparse_counts", GONE, "no tensor m0.sparse_counts"},
        {sparse, "sparse_entries", put(0, "\x30"), "has column 48, expected ascending ones below 48"},
        {sparse, "sparse_entries", put(3, std::string(1, 0)), "has column 0, expected ascending"},
        {sparse, "sparse_entries", put(1, F16_INF), "number 0 is not finite"},
        {sparse, "sparse_entries", SHORTER, "are left"},
        {sparse, "sparse_entries", GONE, "no tensor m0.sparse_entries"},
        {order, "input_order", put(0, "\x30"), "column 0 belongs to input 48"},
        {order, "input_order", [](Raw &r) { r.data[0] = r.data[1]; }, "column 1 belongs to"},
        {order, "input_order", SHORTER, "[47], expected [48]"},
        {rotated, "input_signs", put(5, "\xff"), "bits behind its 45 signs"},
        {rotated, "input_signs", GONE, "no tensor m0.input_signs"},
        {rotated, "input_signs", [](Raw &r) { r.dtype = NBI_I8; }, "the dtype I8, expected U8"},
        {nested, "scale_grid", put(0, F16_NAN), "number 0 is not finite"},
        {nested, "scale_grid", put(0, std::string("\0\xc0\0\0", 4)), "the nested scale of row 0 group 0 is -2"},
        {nested, "zero_grid", put(2, F16_INF), "number 1 is not finite"},
        {nested, "zero_grid", SHORTER, "[1, 3, 2], expected [2, 3, 2]"},
        {nested, "zero_codes", SHORTER, "has the shape"},
        {outliers, "outlier_columns", put(0, std::string("\x2d\0\0\0", 4)), "number 0 is column 45"},
        {outliers, "outlier_columns", put(4, std::string(4, '\0')), "number 1 is column 0, expected ascending"},
        {outliers, "outlier_columns", put(0, std::string("\x02\0\0\0", 4)), "column 2, which is an outlier"},
        {outliers, "outlier_columns", SHORTER, "m0.outlier_values has the shape [4, 38], expected [3, 38]"},
        {outliers, "outlier_values", put(6, F16_INF), "number 3 is not finite"},
        {binary, "weight_packed", put(7, "\x80"), "row 0 has bits behind its 45 columns"},
        {binary, "weight_scale", put(0, std::string(4, '\0')), "the scale 0, expected a positive"},
        {binary, "weight_shape", put(0, "\x14"), "20 x 45, expected 19 x 45"},
        {e8p, "weight_words", SHORTER, "[18, 5], expected [19, 5]"},
        {e8p, "weight_scale", put(0, std::string("\0\0\x80\x7f", 4)), "the scale inf, expected a positive"},
    };
    for (auto &c : cases) {
        SCOPED_TRACE(std::string(c.tensor) + ": " + c.sentence);
        EXPECT_FAILS(NB_EFORMAT, c.sentence, read_changed(c.s, c.change, c.tensor));
    }
}

namespace
{
/* Whatever the bytes are: a sentence, or a weight that means finite numbers. */
void read_anything(const std::string &dir, const Model &m, size_t n, size_t k)
{
    nbi_checkpoint *c = nullptr;
    Weight w;
    nbi_scheme s;
    nb_status st = nbi_checkpoint_open(&c, dir.c_str());
    if (st == NB_OK)
        st = nbi_quant_scheme(m.q, c, "m0", "Linear", &s);
    if (st == NB_OK)
        st = nbi_quant_read(&w, m.q, c, "m0", "Linear", n, k);
    if (st == NB_OK && w.scheme.bits) {
        EXPECT_NB_OK(nbi_weight_check_sparse(&w));
        EXPECT_NB_OK(nbi_weight_check_order(&w));
        (void)dense_of(w); /* nothing outside of its arrays: the sanitizers watch */
    } else {
        EXPECT_NE(std::string(), nb_last_error());
    }
    nbi_checkpoint_close(c);
}
} // namespace

TEST(Damage, flipped_and_missing_bytes_give_a_sentence_or_a_weight)
{
    std::mt19937 rng(11);
    std::vector<nbi_scheme> all = own_schemes();
    all.push_back(of_kind(NBI_KIND_NF4, 4, NBI_PER_GROUP, 64)); /* bitsandbytes */
    for (const nbi_scheme &s : all) {
        SCOPED_TRACE(name_of(s));
        Weight w;
        Model m;
        make(w, 19, inputs_of(s), s, 5, NBI_F16);
        m.write({&w}, NBI_F16);
        const std::string good = read_text(m.d / "model.safetensors");
        uint64_t header;
        memcpy(&header, good.data(), 8);
        TempDir d;
        for (int i = 0; i < 40; i++) {
            std::string bad = good;
            if (i % 6 == 5)
                bad.resize(rng() % bad.size());
            else /* half in the header, half in the data */
                for (unsigned flips = 1 + rng() % 3; flips--;)
                    bad[i % 2 ? 8 + rng() % header : 8 + header + rng() % (bad.size() - 8 - header)] ^=
                        char(1 << rng() % 8);
            write_text(d / "model.safetensors", bad);
            read_anything(d.path(), m, w.n, w.k);
        }
    }
}

/* ---- what cannot be written --------------------------------------------------------------------------------------- */

TEST(Write, what_could_not_be_read_back_is_refused)
{
    const std::vector<nbi_scheme> all = own_schemes();
    const struct {
        size_t scheme;
        std::function<void(Weight &)> change;
        const char *sentence;
    } cases[] = {
        {1, [](Weight &w) { w.in_signs[3] = 0; }, "sign 3 of its inputs is 0"},
        {2, [](Weight &w) { w.out_signs[18] = 2; }, "sign 18 of its outputs is 2"},
        {0, [](Weight &w) { w.perm[5] = 48; }, "column 5 of a weight belongs to input 48"},
        {3, [](Weight &w) { w.sparse.value[2] = 1.0001f; }, "number 2 of its sparse part is 1.0001"},
        {3, [](Weight &w) { w.sparse.col[w.sparse.row[1] - 1] = 99; }, "column 99"},
        {5, [](Weight &w) { w.nested.scale_code[1] = 8; }, "number 1 of its scale_codes is 8"},
        {5, [](Weight &w) { w.nested.rows = 8; }, "grids of 3 bits for 8 rows"},
        {5, [](Weight &w) { w.nested.zero_grid[0] = 1e9f; }, "number 0 of its zero_grid is 1e+09"},
        {8, [](Weight &w) { w.codes[3] = 1; }, "column 3, which is an outlier"},
        {8, [](Weight &w) { w.sparse.col[0] = 2; }, "row 0 of a sparse part does not hold the columns"},
        {12, [](Weight &w) { w.scales[7] *= 2; }, "row 7 has another scale"},
        {18, [](Weight &w) { w.codes[1] = 0; }, "column 1 has the code 0, expected -1 or 1"},
    };
    for (auto &c : cases) {
        Weight w;
        TempDir d;
        make(w, 19, inputs_of(all[c.scheme]), all[c.scheme], 3);
        c.change(w);
        nbi_st_writer *out = nullptr;
        ASSERT_NB_OK(nbi_st_writer_create(&out, d.path().c_str(), 0));
        ASSERT_NB_OK(nbi_nibble_declare(out, "m", w.n, w.k, &w.scheme, NBI_F32));
        nb_status st = nbi_nibble_write(out, "m", &w, NBI_F32);
        EXPECT_NE(NB_OK, st) << c.sentence;
        EXPECT_NE(std::string(nb_last_error()).find(c.sentence), std::string::npos) << nb_last_error();
        nbi_st_writer_free(out);
        EXPECT_TRUE(std::filesystem::is_empty(d.path()));
    }
}

/* ---- bitsandbytes, BitNet ----------------------------------------------------------------------------------------- */

namespace
{
struct Checkpoint {
    TempDir d;
    nbi_checkpoint *c = nullptr;
    nbi_quant_config *q = nullptr;
    Checkpoint(const std::string &config, const std::vector<Raw> &tensors)
    {
        json_t *j = json_loads(config.c_str(), 0, nullptr);
        EXPECT_NB_OK(nbi_quant_config_parse(&q, j, "config.json"));
        json_decref(j);
        write_raw(d.path(), tensors);
        EXPECT_NB_OK(nbi_checkpoint_open(&c, d.path().c_str()));
    }
    ~Checkpoint()
    {
        nbi_checkpoint_close(c);
        nbi_quant_config_free(q);
    }
    nb_status read(Weight &w, size_t n, size_t k) const { return nbi_quant_read(&w, q, c, "m", "Linear", n, k); }
};

const std::string BNB4 = R"({"quant_method":"bitsandbytes","load_in_4bit":true})",
                  BNB8 = R"({"quant_method":"bitsandbytes","load_in_8bit":true})";

/* The table of QLoRA's appendix, typed again. */
const std::vector<float> NF4 = {-1.0f,        -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f,
                                -0.09105004f, 0.0f,        0.0795803f,   0.1609302f,  0.2461123f,   0.33791524f,
                                0.44070983f,  0.562617f,   0.72295684f,  1.0f};

std::vector<Raw> nf4_tensors(const std::string &codes, size_t n, size_t k, size_t block,
                             const std::vector<float> &absmax, const std::string &more = "")
{
    const std::string state = "{\"quant_type\":\"nf4\",\"blocksize\":" + std::to_string(block) +
                              ",\"dtype\":\"float16\",\"shape\":[" + std::to_string(n) + "," + std::to_string(k) + "]" +
                              more + "}";
    return {{"m.weight", NBI_U8, {codes.size(), 1}, codes},
            {"m.weight.absmax", NBI_F32, {absmax.size()}, bytes_of(absmax)},
            {"m.weight.quant_map", NBI_F32, {16}, bytes_of(NF4)},
            {"m.weight.quant_state.bitsandbytes__nf4", NBI_U8, {state.size()}, state}};
}

std::string random_bytes(size_t n, unsigned seed)
{
    std::mt19937 rng(seed);
    std::string s(n, 0);
    for (char &c : s)
        c = char(rng());
    return s;
}

/* w[i] = map[nibble i] * absmax[i / block], the high nibble first: A5 of the description. */
void expect_nf4(const Weight &w, const std::string &codes, size_t block, const std::vector<float> &absmax)
{
    const std::vector<float> got = dense_of(w);
    for (size_t i = 0; i < got.size(); i++) {
        const unsigned byte = (unsigned char)codes[i / 2], q = i % 2 ? byte & 15 : byte >> 4;
        ASSERT_NEAR(NF4[q] * absmax[i / block], got[i], 1e-6 * std::fabs(absmax[i / block])) << i;
    }
}
} // namespace

/* x = -1, 1, 0, 0.5, then 60 times 0.1: the bytes that the package makes of it. */
TEST(Bitsandbytes, the_bytes_are_those_of_the_package)
{
    const nbi_scheme s = of_kind(NBI_KIND_NF4, 4, NBI_PER_GROUP, 64);
    Weight w;
    make(w, 1, 64, s, 1, NBI_BF16);
    w.scales[0] = 1;
    for (int i = 0; i < 64; i++)
        w.codes[i] = int8_t((i == 0 ? 0 : i == 1 ? 15 : i == 2 ? 7 : i == 3 ? 12 : 8) - 8);
    Model m;
    m.write({&w}, NBI_BF16);
    EXPECT_STREQ("bitsandbytes", m.format->name);
    const nbi_tensor *t = nbi_checkpoint_find(m.c, "m0.weight"), *a = nbi_checkpoint_find(m.c, "m0.weight.absmax"),
                     *map = nbi_checkpoint_find(m.c, "m0.weight.quant_map"),
                     *state = nbi_checkpoint_find(m.c, "m0.weight.quant_state.bitsandbytes__nf4");
    ASSERT_TRUE(t && a && map && state);
    EXPECT_EQ(NBI_U8, t->dtype);
    EXPECT_EQ(std::vector<size_t>({32, 1}), std::vector<size_t>(t->shape, t->shape + t->n_dims));
    EXPECT_EQ("\x0f\x7c" + std::string(30, '\x88'), std::string(static_cast<const char *>(t->data), t->bytes));
    EXPECT_EQ(bytes_of<float>({1}), std::string(static_cast<const char *>(a->data), a->bytes));
    ASSERT_EQ(64u, map->bytes);
    for (size_t i = 0; i < 16; i++) {
        float f;
        memcpy(&f, static_cast<const char *>(map->data) + 4 * i, 4);
        EXPECT_NEAR(NF4[i], f, 1e-7);
    }
    EXPECT_EQ(R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [1, 64]})",
              std::string(static_cast<const char *>(state->data), state->bytes));
    char *text = json_dumps(m.config, JSON_SORT_KEYS | JSON_COMPACT);
    EXPECT_STREQ(R"({"bnb_4bit_compute_dtype":"bfloat16","bnb_4bit_quant_storage":"uint8","bnb_4bit_quant_type":"nf4",)"
                 R"("bnb_4bit_use_double_quant":false,"llm_int8_enable_fp32_cpu_offload":false,)"
                 R"("llm_int8_has_fp16_weight":false,"llm_int8_skip_modules":["lm_head"],"llm_int8_threshold":6.0,)"
                 R"("load_in_4bit":true,"load_in_8bit":false,"quant_method":"bitsandbytes"})",
                 text);
    free(text);
}

TEST(Bitsandbytes, nf4_alone_is_written_and_read)
{
    for (nbi_dtype t : FLOATS)
        round_trip({of_kind(NBI_KIND_NF4, 4, NBI_PER_GROUP, 64), of_kind(NBI_KIND_NF4, 4, NBI_PER_GROUP, 128)}, t,
                   "bitsandbytes");
    round_trip({of_kind(NBI_KIND_NF4, 4, NBI_PER_GROUP, 64), scheme(4, true, NBI_PER_GROUP, 64)}, NBI_F16, "nibble");
    round_trip({of_kind(NBI_KIND_NF4, 4, NBI_PER_GROUP, 16)}, NBI_F16, "nibble");
}

TEST(Bitsandbytes, blocks_run_over_the_ends_of_rows)
{
    const std::vector<float> absmax = {1, 2, 0.5f, 0, 3}; /* 3 x 96 in blocks of 64: the last one is half full */
    const std::string codes = random_bytes(144, 3);
    Checkpoint c(BNB4, nf4_tensors(codes, 3, 96, 64, absmax));
    Weight w;
    ASSERT_NB_OK(c.read(w, 3, 96));
    EXPECT_EQ(32u, w.scheme.group);
    expect_nf4(w, codes, 64, absmax);
    /* the same bytes as numbers of another type */
    std::vector<Raw> t = nf4_tensors(codes, 3, 96, 64, absmax);
    t[0] = {"m.weight", NBI_BF16, {72, 1}, codes};
    Checkpoint other(BNB4, t);
    Weight v;
    ASSERT_NB_OK(other.read(v, 3, 96));
    expect_same(w, v);
}

TEST(Bitsandbytes, nested_statistics)
{
    const size_t blocks = 2 * 256 + 10, n = 6, k = blocks * 64 / 6;
    const std::string codes = random_bytes(n * k / 2, 4), inner = random_bytes(blocks, 5);
    std::vector<float> map(256), outer = {0.5f, 2, 0.125f}, absmax(blocks);
    for (size_t i = 0; i < 256; i++)
        map[i] = (float(i) - 127.5f) / 128;
    for (size_t i = 0; i < blocks; i++)
        absmax[i] = map[(unsigned char)inner[i]] * outer[i / 256] + 1.75f;
    std::vector<Raw> t = nf4_tensors(codes, n, k, 64, {},
                                     R"(,"nested_blocksize":256,"nested_dtype":"float32",)"
                                     R"("nested_offset":1.75)");
    t[1] = {"m.weight.absmax", NBI_U8, {blocks}, inner};
    t.push_back({"m.weight.nested_absmax", NBI_F32, {3}, bytes_of(outer)});
    t.push_back({"m.weight.nested_quant_map", NBI_F32, {256}, bytes_of(map)});
    Checkpoint c(BNB4, t);
    Weight w;
    ASSERT_NB_OK(c.read(w, n, k));
    expect_nf4(w, codes, 64, absmax);
    t[4].data.resize(8);
    t[4].shape[0] = 2;
    Weight bad;
    EXPECT_FAILS(NB_EFORMAT, "[2], expected [3]", Checkpoint(BNB4, t).read(bad, n, k));
}

TEST(Bitsandbytes, eight_bits)
{
    const std::vector<int8_t> q = {127, -127, 0, 5, -128, 1, 0, 0, 0};
    const std::vector<float> scb = {1.5f, 0.3f, 0};
    const std::vector<Raw> t = {{"m.weight", NBI_I8, {3, 3}, bytes_of(q)},
                                {"m.SCB", NBI_F32, {3}, bytes_of(scb)},
                                {"m.weight_format", NBI_U8, {}, std::string(1, 0)}};
    Checkpoint c(BNB8, t);
    Weight w;
    ASSERT_NB_OK(c.read(w, 3, 3));
    EXPECT_EQ("W8A16 channel", name_of(w.scheme));
    const std::vector<float> got = dense_of(w);
    for (size_t i = 0; i < 9; i++)
        EXPECT_NEAR(double(q[i]) * scb[i / 3] / 127, got[i], 1e-6);
    std::vector<Raw> bad = t;
    bad[2].data = "\x02";
    Weight unused;
    EXPECT_FAILS(NB_EUNSUPPORTED, "m.weight_format is 2, expected 0", Checkpoint(BNB8, bad).read(unused, 3, 3));
    bad = t;
    bad[1].data = bytes_of<float>({1, -1, 0});
    EXPECT_FAILS(NB_EFORMAT, "row 1 has the largest magnitude -1", Checkpoint(BNB8, bad).read(unused, 3, 3));
}

TEST(Bitsandbytes, damaged_or_foreign_files_are_refused)
{
    const std::string codes = random_bytes(64, 6);
    const std::vector<Raw> good = nf4_tensors(codes, 2, 64, 64, {1, 2});
    const auto refused = [&](nb_status st, const char *sentence,
                             const std::function<void(std::vector<Raw> &)> &change) {
        std::vector<Raw> t = good;
        change(t);
        Weight w;
        EXPECT_FAILS(st, sentence, Checkpoint(BNB4, t).read(w, 2, 64));
    };
    const auto state = [](const std::string &text) {
        return [=](std::vector<Raw> &t) {
            t[3].data = text;
            t[3].shape[0] = text.size();
        };
    };
    refused(NB_EFORMAT, "has 63 bytes, expected 64", [](std::vector<Raw> &t) {
        t[0].data.pop_back();
        t[0].shape[0]--;
    });
    refused(NB_EFORMAT, "block 1 has the scale inf", [](std::vector<Raw> &t) {
        t[1].data = bytes_of<float>({1, INFINITY});
    });
    refused(NB_EUNSUPPORTED, "code 2 stands for", [](std::vector<Raw> &t) { t[2].data[8]++, t[2].data[10]++; });
    refused(NB_EUNSUPPORTED, "is FP4 of bitsandbytes",
            [](std::vector<Raw> &t) { t[3].name = "m.weight.quant_state.bitsandbytes__fp4"; });
    refused(NB_EFORMAT, "nf4", state("{"));
    refused(NB_EFORMAT, "not a JSON object", state("[]"));
    refused(NB_EUNSUPPORTED, "quant_type is \"fp4\"", state(R"({"quant_type":"fp4"})"));
    refused(NB_EFORMAT, "no \"blocksize\"", state(R"({"quant_type":"nf4"})"));
    refused(NB_EFORMAT, "\"shape\" is not a pair", state(R"({"quant_type":"nf4","blocksize":64,"shape":[2]})"));
    refused(NB_EFORMAT, "2 x 32, expected 2 x 64", state(R"({"quant_type":"nf4","blocksize":64,"shape":[2,32]})"));
    json_t *j = json_loads(R"({"quant_method":"bitsandbytes"})", 0, nullptr);
    nbi_quant_config *q = nullptr;
    EXPECT_FAILS(NB_EFORMAT, "expected one of them", nbi_quant_config_parse(&q, j, "config.json"));
    json_decref(j);
}

TEST(Bitnet, four_rows_share_a_byte)
{
    const size_t n = 8, k = 5;
    std::vector<int> want(n * k);
    std::string packed(n / 4 * k, 0);
    for (size_t i = 0; i < n * k; i++) {
        want[i] = int(i * 7 % 3) - 1;
        const size_t row = i / k;
        packed[row % (n / 4) * k + i % k] |= char((want[i] + 1) << 2 * (row / (n / 4)));
    }
    const std::vector<Raw> t = {{"m.weight", NBI_U8, {n / 4, k}, packed},
                                {"m.weight_scale", NBI_F32, {1}, bytes_of<float>({4})}};
    for (bool divisor : {true, false}) {
        Checkpoint c(divisor
                         ? R"({"quant_method":"bitnet"})"
                         : R"({"quant_method":"bitnet","linear_class":"autobitlinear","quantization_mode":"offline"})",
                     t);
        Weight w;
        ASSERT_NB_OK(c.read(w, n, k));
        EXPECT_EQ(NBI_ACT_TOKEN, w.scheme.act);
        const std::vector<float> got = dense_of(w);
        for (size_t i = 0; i < n * k; i++)
            EXPECT_EQ(float(want[i]) * (divisor ? 0.25f : 4), got[i]);
    }
    std::vector<Raw> bad = t;
    bad[0].data[0] |= 3;
    Weight w;
    EXPECT_FAILS(NB_EFORMAT, "row 0 column 0 has the code 2",
                 Checkpoint(R"({"quant_method":"bitnet"})", bad).read(w, n, k));
    bad = t;
    bad[1].data = bytes_of<float>({0});
    EXPECT_FAILS(NB_EFORMAT, "m.weight_scale is 0", Checkpoint(R"({"quant_method":"bitnet"})", bad).read(w, n, k));
    EXPECT_FAILS(NB_EUNSUPPORTED, "has 6 rows", Checkpoint(R"({"quant_method":"bitnet"})", t).read(w, 6, k));
    for (const char *q :
         {R"({"quant_method":"bitnet","use_rms_norm":true})", R"({"quant_method":"bitnet","linear_class":"x"})",
          R"({"quant_method":"bitnet","linear_class":"autobitlinear","quantization_mode":"online"})",
          R"({"quant_method":"exl2"})"}) {
        json_t *j = json_loads(q, 0, nullptr);
        nbi_quant_config *c = nullptr;
        EXPECT_EQ(NB_EUNSUPPORTED, nbi_quant_config_parse(&c, j, "config.json")) << q;
        json_decref(j);
    }
}
