/* The other side of tests/oracle/test_formats.py: skipped unless that runs it. */
#include "ct_testutil.h"

extern "C" {
#include "format/quantized.h"
}

namespace
{
const nbi_quant_model NO_MODEL = {};

/* Folder `dir`: config.json, model.safetensors with a module a scheme, expected/ with what each weight means. */
void write_case(const std::string &dir, const std::vector<nbi_scheme> &schemes, nbi_dtype t)
{
    std::filesystem::create_directories(dir + "/expected");
    nbi_st_writer *out = nullptr;
    ASSERT_NB_OK(nbi_st_writer_create(&out, dir.c_str(), 20000));
    std::vector<Raw> expected;
    std::vector<std::string> names;
    std::vector<nbi_quant_entry> entries;
    const nbi_quant_format *format;
    for (size_t i = 0; i <= schemes.size(); i++)
        names.push_back("layers." + std::to_string(i) + ".proj");
    for (size_t i = 0; i < schemes.size(); i++) {
        entries.push_back({names[i].c_str(), schemes[i], 9 + i % 11, k_of(schemes[i])});
    }
    format = nbi_quant_choose(entries.data(), entries.size(), &NO_MODEL);
    for (auto &e : entries)
        ASSERT_NB_OK(nbi_quant_declare(format, out, e.module, e.n, e.k, &e.scheme, t));
    const size_t dense[] = {2, 3};
    ASSERT_NB_OK(nbi_st_declare(out, (names.back() + ".weight").c_str(), NBI_F32, 2, dense));
    entries.push_back({names.back().c_str(), {}, 0, 0});
    for (size_t i = 0; i < schemes.size(); i++) {
        Weight w;
        randomize(w, 9 + i % 11, k_of(schemes[i]), schemes[i], t, unsigned(i));
        std::vector<float> rows(w.n * w.k);
        for (size_t r = 0; r < w.n; r++)
            nbi_weight_row(&w, r, &rows[r * w.k]);
        ASSERT_NB_OK(nbi_quant_write(format, out, names[i].c_str(), &w, t));
        expected.push_back({names[i], NBI_F32, {w.n, w.k}, bytes_of(rows)});
    }
    const std::string six = bytes_of<float>({1, 2, 3, 4, 5, 6});
    ASSERT_NB_OK(nbi_st_write(out, (names.back() + ".weight").c_str(), six.data(), six.size()));
    expected.push_back({names.back(), NBI_F32, {2, 3}, six});
    ASSERT_NB_OK(nbi_st_finish(out));
    nbi_st_writer_free(out);
    write_raw(dir + "/expected", expected);
    json_t *j = nullptr;
    ASSERT_NB_OK(nbi_quant_config_build(&j, format, entries.data(), entries.size(), &NO_MODEL));
    j = json_pack("{s:o}", "quantization_config", j);
    json_dump_file(j, (dir + "/config.json").c_str(), JSON_INDENT(1));
    json_decref(j);
}

/* The reverse: expected/ holds F32 [N,K] a module, and "<module>#input": F32 [2], scale and zero point. */
void read_case(const std::string &dir)
{
    json_t *j = nullptr;
    nbi_checkpoint *c = nullptr, *expected = nullptr;
    ASSERT_NB_OK(nbi_json_load(&j, (dir + "/config.json").c_str()));
    nbi_quant_config *config = nullptr;
    ASSERT_NB_OK(nbi_quant_config_parse(&config, json_object_get(j, "quantization_config"), "config.json"));
    json_decref(j);
    ASSERT_NB_OK(nbi_checkpoint_open(&c, dir.c_str()));
    ASSERT_NB_OK(nbi_checkpoint_open(&expected, (dir + "/expected").c_str()));
    for (size_t i = 0; i < nbi_checkpoint_count(expected); i++) {
        const nbi_tensor *t = nbi_checkpoint_at(expected, i);
        std::string module = t->name;
        if (module.find('#') != std::string::npos)
            continue;
        Weight w;
        ASSERT_NB_OK(nbi_quant_read(&w, config, c, module.c_str(), "Linear", t->shape[0], t->shape[1])) << dir;
        const nbi_scheme s = w.scheme;
        std::vector<float> got(w.n * w.k), want(w.n * w.k);
        for (size_t r = 0; r < w.n; r++)
            nbi_weight_row(&w, r, &got[r * w.k]);
        nbi_to_f32(want.data(), t->data, t->dtype, want.size());
        if (module.find("int8") != std::string::npos) /* w = q * SCB / 127: one rounding here, two there */
            for (size_t k = 0; k < got.size(); k++)
                EXPECT_NEAR(want[k], got[k], 2e-7 * std::fabs(want[k])) << dir << " " << module;
        else
            EXPECT_EQ(want, got) << dir << " " << module << " " << name_of(s);
        if (const nbi_tensor *in = nbi_checkpoint_find(expected, (module + "#input").c_str())) {
            float v[2];
            nbi_to_f32(v, in->data, in->dtype, 2);
            EXPECT_EQ(v[0], w.act_scale);
            EXPECT_EQ(v[1], float(w.act_zero));
        } else {
            EXPECT_NE(NBI_ACT_TENSOR, s.act) << module;
        }
    }
    nbi_checkpoint_close(c);
    nbi_checkpoint_close(expected);
    nbi_quant_config_free(config);
}
} // namespace

TEST(Oracle, writes_cases)
{
    const char *dir = getenv("NIBBLE_ORACLE_OUT");
    if (!dir)
        GTEST_SKIP() << "run by tests/oracle/test_formats.py";
    std::vector<nbi_scheme> all = all_schemes(), packed, plain;
    for (auto &s : all)
        (s.act == NBI_ACT_NONE ? packed : plain).push_back(s);
    write_case(std::string(dir) + "/mixed", all, NBI_F32);
    write_case(std::string(dir) + "/packed", packed, NBI_BF16);
    write_case(std::string(dir) + "/plain", plain, NBI_F16);
    nbi_scheme nf4 = scheme(4, true, NBI_PER_GROUP, 64);
    nf4.kind = NBI_KIND_NF4;
    write_case(std::string(dir) + "/nf4", {nf4, nf4}, NBI_BF16);
}

TEST(Oracle, reads_cases)
{
    const char *dir = getenv("NIBBLE_ORACLE_IN");
    if (!dir)
        GTEST_SKIP() << "run by tests/oracle/test_formats.py";
    size_t n = 0;
    for (auto &e : std::filesystem::directory_iterator(dir)) {
        read_case(e.path());
        n++;
    }
    EXPECT_GT(n, 0u);
}
