#include "ct_testutil.h"

/* ---- config ---------------------------------------------------------------------------------------------------- */

namespace
{
struct Config {
    nbi_ct_config *c = nullptr;
    nb_status st;
    explicit Config(const std::string &text)
    {
        json_t *j = nullptr;
        EXPECT_NB_OK(nbi_json_parse(&j, text.data(), text.size(), "test"));
        st = nbi_ct_config_parse(&c, j, "config.json");
        json_decref(j);
    }
    explicit Config(const json_t *j) { st = nbi_ct_config_parse(&c, j, "config.json"); }
    ~Config() { nbi_ct_config_free(c); }
    Config(const Config &) = delete;
    Config &operator=(const Config &) = delete;
    std::string of(const std::string &module, const char *cls = "Linear") const
    {
        nbi_scheme s;
        EXPECT_NB_OK(nbi_ct_scheme(c, module.c_str(), cls, &s));
        return name_of(s);
    }
};

std::string with_group(const std::string &group, const std::string &more = "")
{
    return R"({"quant_method":"compressed-tensors","format":"pack-quantized","quantization_status":"compressed",)" +
           more + R"("config_groups":{"group_0":{"targets":["Linear"],)" + group + "}}}";
}
std::string weights(const std::string &args)
{
    return with_group("\"weights\":{" + args + "}");
}
std::string inputs(const std::string &args)
{
    return with_group("\"weights\":{\"strategy\":\"channel\"},\"input_activations\":{" + args + "}");
}
} // namespace

TEST(ConfigParse, documented_examples)
{
    Config w8a8(R"({"quant_method":"compressed-tensors","format":"int-quantized","quantization_status":"compressed",
        "ignore":["lm_head"],"config_groups":{"group_0":{"targets":["Linear"],
        "weights":{"num_bits":8,"type":"int","symmetric":true,"strategy":"channel","dynamic":false},
        "input_activations":{"num_bits":8,"type":"int","symmetric":true,"strategy":"token","dynamic":true}}}})");
    ASSERT_NB_OK(w8a8.st);
    EXPECT_EQ("W8A8 channel", w8a8.of("model.layers.0.mlp.up_proj"));
    EXPECT_EQ("dense", w8a8.of("lm_head"));
    EXPECT_EQ("dense", w8a8.of("model.embed_tokens", "Embedding"));
    Config w4a16(R"({"quant_method":"compressed-tensors","format":"pack-quantized","quantization_status":"compressed",
        "config_groups":{"group_0":{"targets":["Linear"],"input_activations":null,"output_activations":null,
        "weights":{"num_bits":4,"type":"int","symmetric":true,"strategy":"group","group_size":128,
        "actorder":"weight","block_structure":null,"dynamic":false,"observer":"minmax","observer_kwargs":{},
        "scale_dtype":null,"zp_dtype":"torch.int8"}}},"ignore":["lm_head"],"kv_cache_scheme":null,
        "sparsity_config":{},"transform_config":{},"global_compression_ratio":1.24,"version":"0.12.2"})");
    ASSERT_NB_OK(w4a16.st);
    EXPECT_EQ("W4A16 g128", w4a16.of("model.layers.0.mlp.down_proj"));
}

TEST(ConfigParse, a_missing_strategy_follows_from_the_group_size)
{
    EXPECT_EQ("W8A16 tensor", Config(weights("")).of("m"));
    EXPECT_EQ("W4A16 tensor asym", Config(weights("\"num_bits\":4,\"symmetric\":false,\"group_size\":null")).of("m"));
    EXPECT_EQ("W4A16 channel", Config(weights("\"num_bits\":4,\"group_size\":-1")).of("m"));
    EXPECT_EQ("W4A16 channel", Config(weights("\"num_bits\":4,\"group_size\":-1,\"strategy\":\"channel\"")).of("m"));
    EXPECT_EQ("W4A16 g32", Config(weights("\"num_bits\":4,\"group_size\":32")).of("m"));
    EXPECT_EQ("W4A16 g32", Config(weights("\"num_bits\":4,\"group_size\":32,\"strategy\":\"GROUP\"")).of("m"));
    EXPECT_FAILS(NB_EFORMAT, "no positive group_size", Config(weights("\"strategy\":\"group\"")).st);
    EXPECT_FAILS(NB_EFORMAT, "no positive group_size", Config(weights("\"strategy\":\"group\",\"group_size\":-1")).st);
    EXPECT_FAILS(NB_EFORMAT, "group_size of 32", Config(weights("\"strategy\":\"channel\",\"group_size\":32")).st);
    EXPECT_FAILS(NB_EFORMAT, "\"group_size\" is 0", Config(weights("\"group_size\":0")).st);
    EXPECT_FAILS(NB_EFORMAT, "\"group_size\" is -2", Config(weights("\"group_size\":-2")).st);
    EXPECT_FAILS(NB_EFORMAT, "\"group_size\" is 4294967296", Config(weights("\"group_size\":4294967296")).st);
}

TEST(ConfigParse, activations)
{
    EXPECT_EQ("W8A8 channel", Config(inputs("\"strategy\":\"token\",\"dynamic\":true")).of("m"));
    EXPECT_EQ("W8A8-static channel", Config(inputs("\"strategy\":\"tensor\"")).of("m"));
    EXPECT_EQ("W8A8-static channel", Config(inputs("")).of("m"));
    EXPECT_EQ("W8A8-static-asym channel", Config(inputs("\"strategy\":\"tensor\",\"symmetric\":false")).of("m"));
    EXPECT_FAILS(NB_EUNSUPPORTED, "asymmetric dynamic",
                 Config(inputs("\"strategy\":\"token\",\"dynamic\":true,\"symmetric\":false")).st);
    EXPECT_FAILS(NB_EFORMAT, "needs \"dynamic\": true", Config(inputs("\"strategy\":\"token\"")).st);
    EXPECT_FAILS(NB_EUNSUPPORTED, "one scale for all tokens", Config(inputs("\"dynamic\":true")).st);
    EXPECT_FAILS(NB_EUNSUPPORTED, "dynamic \"local\"", Config(inputs("\"dynamic\":\"local\"")).st);
    EXPECT_FAILS(NB_EUNSUPPORTED, "\"group\" is not supported for activations",
                 Config(inputs("\"group_size\":128,\"dynamic\":true")).st);
    EXPECT_FAILS(NB_EUNSUPPORTED, "4-bit activations", Config(inputs("\"num_bits\":4")).st);
    EXPECT_FAILS(NB_EUNSUPPORTED, "group_0.input_activations: the type \"float\"",
                 Config(inputs("\"type\":\"float\"")).st);
    EXPECT_FAILS(NB_EUNSUPPORTED, "dense weights",
                 Config(with_group("\"input_activations\":{\"strategy\":\"tensor\"}")).st);
    EXPECT_FAILS(NB_EUNSUPPORTED, "output_activations",
                 Config(with_group("\"weights\":{},\"output_activations\":{}")).st);
}

TEST(ConfigParse, what_is_not_supported_is_refused_by_name)
{
    for (std::string f : {"float-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp6-pack-quantized",
                          "mxfp8-quantized", "marlin-24", "sparse-24-bitmask", "sparse-bitmask", "dense", "new-one"}) {
        EXPECT_FAILS(NB_EUNSUPPORTED, f, Config("{\"format\":\"" + f + "\",\"config_groups\":{}}").st);
        EXPECT_FAILS(NB_EUNSUPPORTED, f, Config(with_group("\"weights\":{},\"format\":\"" + f + "\"")).st);
    }
    for (std::string a : {"\"group\"", "\"dynamic\"", "\"GROUP\"", "true"})
        EXPECT_FAILS(NB_EUNSUPPORTED, "actorder", Config(weights("\"actorder\":" + a)).st);
    for (std::string a : {"\"weight\"", "\"static\"", "null", "false"})
        EXPECT_NB_OK(Config(weights("\"actorder\":" + a)).st);
    EXPECT_FAILS(NB_EFORMAT, "actorder", Config(weights("\"actorder\":\"sometimes\"")).st);
    for (std::string b : {"1", "5", "6", "7", "16"})
        EXPECT_FAILS(NB_EUNSUPPORTED, b + "-bit weights", Config(weights("\"num_bits\":" + b)).st);
    EXPECT_FAILS(NB_EFORMAT, "\"num_bits\" is 0", Config(weights("\"num_bits\":0")).st);
    EXPECT_FAILS(NB_EFORMAT, "num_bits", Config(weights("\"num_bits\":\"4\"")).st);
    EXPECT_FAILS(NB_EUNSUPPORTED, "weights: the type \"float\"", Config(weights("\"type\":\"float\"")).st);
    EXPECT_FAILS(NB_EUNSUPPORTED, "dynamic weights", Config(weights("\"dynamic\":true")).st);
    for (std::string s : {"block", "token", "attn_head"})
        EXPECT_FAILS(NB_EUNSUPPORTED, s, Config(weights("\"strategy\":\"" + s + "\"")).st);
    EXPECT_FAILS(NB_EUNSUPPORTED, "tensor_group",
                 Config(weights("\"strategy\":\"tensor_group\",\"group_size\":16")).st);
    EXPECT_FAILS(NB_EUNSUPPORTED, "\"cluster\" is unknown", Config(weights("\"strategy\":\"cluster\"")).st);
    EXPECT_FAILS(NB_EUNSUPPORTED, "group_0.weights: has the unknown key \"codebook\"",
                 Config(weights("\"codebook\":[]")).st);
    EXPECT_FAILS(NB_EUNSUPPORTED, "unknown key \"rotation\"", Config(with_group("\"weights\":{},\"rotation\":1")).st);
    EXPECT_FAILS(NB_EUNSUPPORTED, "preset", Config(R"({"config_groups":{"W4A16":["Linear"]}})").st);
    EXPECT_FAILS(NB_EUNSUPPORTED, "quant_method \"gptq\"", Config(R"({"quant_method":"gptq"})").st);
    EXPECT_FAILS(NB_EUNSUPPORTED, "quantization_status \"calibration\"",
                 Config(R"({"quantization_status":"calibration"})").st);
    for (std::string key : {"kv_cache_scheme", "moe_sparsity_config", "transform_config"})
        EXPECT_FAILS(NB_EUNSUPPORTED, key, Config(with_group("\"weights\":{}", "\"" + key + "\":{\"a\":1},")).st);
    EXPECT_FAILS(NB_EUNSUPPORTED, "sparse-24-bitmask",
                 Config(with_group("\"weights\":{}", R"("sparsity_config":{"format":"sparse-24-bitmask"},)")).st);
    for (std::string ok : {R"("sparsity_config":{"format":"dense","global_sparsity":0.14},)", "\"sparsity_config\":{},",
                           "\"transform_config\":{},", "\"transform_config\":{\"config_groups\":{}},",
                           "\"kv_cache_scheme\":null,", "\"something_new\":{\"a\":1},"})
        EXPECT_NB_OK(Config(with_group("\"weights\":{}", ok)).st);
}

TEST(ConfigParse, malformed_configs_are_errors)
{
    for (std::string bad :
         {"[]", "3", "{}", R"({"config_groups":[]})", R"({"config_groups":{"g":3}})", R"({"config_groups":{"g":{}}})",
          R"({"config_groups":{"g":{"targets":"Linear"}}})", R"({"config_groups":{"g":{"targets":[3]}}})",
          R"({"config_groups":{"g":{"targets":["a\u0000b"]}}})", R"({"config_groups":{"g":{"targets":["re:("]}}})",
          R"({"config_groups":{"g":{"targets":[],"weights":[]}}})", R"({"config_groups":{},"ignore":"lm_head"})",
          R"({"config_groups":{},"ignore":["re:["]})", R"({"config_groups":{},"format":3})",
          R"({"config_groups":{"g":{"targets":[],"weights":{"symmetric":1}}}})"}) {
        Config c(bad);
        EXPECT_EQ(NB_EFORMAT, c.st) << bad;
        EXPECT_EQ(nullptr, c.c);
        EXPECT_NE(std::string(nb_last_error()).find("config.json"), std::string::npos) << nb_last_error();
    }
    Config longest(R"({"config_groups":{"g":{"targets":["re:)" + std::string(5000, 'a') + "\"]}}}");
    EXPECT_EQ(NB_ELIMIT, longest.st);
}

TEST(ConfigParse, exact_names_win_over_patterns_over_classes_and_ignore_over_all)
{
    const std::string g = R"({"config_groups":{
        "a":{"targets":["Linear"],"weights":{"num_bits":8,"strategy":"channel"}},
        "b":{"targets":["re:.*down_proj$","re:model\\.layers\\.[01]\\."],"weights":{"num_bits":4,"group_size":32}},
        "c":{"targets":["model.layers.0.mlp.down_proj","model.norm"],"weights":{"num_bits":4,"group_size":64}},
        "d":{"targets":["re:layers","re:model\\.layers\\.2$"],"weights":{"num_bits":4,"group_size":128}},
        "e":{"targets":["Conv1D","same"],"weights":null},
        "f":{"targets":["same"],"weights":{"num_bits":4,"group_size":16}}},
        "ignore":["lm_head","re:.*gate$","model.layers.1.mlp.down_proj","Embedding"]})";
    Config c(g);
    ASSERT_NB_OK(c.st);
    EXPECT_EQ("W8A16 channel", c.of("model.layers.7.mlp.up_proj"));
    EXPECT_EQ("W4A16 g32", c.of("model.layers.7.mlp.down_proj"));
    EXPECT_EQ("W8A16 channel", c.of("model.layers.7.mlp.down_proj_extra")); /* $ */
    EXPECT_EQ("W4A16 g32", c.of("model.layers.1.mlp.up_proj"));
    EXPECT_EQ("W4A16 g64", c.of("model.layers.0.mlp.down_proj"));
    EXPECT_EQ("dense", c.of("model.layers.1.mlp.down_proj"));
    EXPECT_EQ("dense", c.of("model.layers.1.mlp.gate"));
    EXPECT_EQ("W4A16 g32", c.of("model.layers.1.mlp.gate_proj"));
    EXPECT_EQ("W8A16 channel", c.of("model.layers.20.up_proj")); /* "re:layers" is anchored at the start */
    EXPECT_EQ("W4A16 g128", c.of("layers.20.up_proj"));          /* but not at the end */
    EXPECT_EQ("W4A16 g128", c.of("model.layers.2"));
    EXPECT_EQ("dense", c.of("lm_head"));
    EXPECT_EQ("W8A16 channel", c.of("lm_head.x"));
    EXPECT_EQ("dense", c.of("model.embed_tokens", "Embedding"));
    EXPECT_EQ("dense", c.of("model.thing", "LlamaRMSNorm"));
    EXPECT_EQ("W4A16 g64", c.of("model.norm", "LlamaRMSNorm"));
    EXPECT_EQ("dense", c.of("model.conv", "Conv1D"));
    EXPECT_EQ("W4A16 g16", c.of("same")); /* the later group of two equal targets */
}

TEST(ConfigParse, of_two_patterns_the_first_in_byte_order_wins)
{
    Config c(R"({"config_groups":{
        "a":{"targets":["re:m.*"],"weights":{"num_bits":4,"group_size":32}},
        "b":{"targets":["re:m"],"weights":{"num_bits":4,"group_size":64}},
        "c":{"targets":["re:.*"],"weights":{"num_bits":4,"group_size":128}}}})");
    ASSERT_NB_OK(c.st);
    EXPECT_EQ("W4A16 g128", c.of("m")); /* '.' < 'm', as the reference sorts them */
    Config d(R"({"config_groups":{
        "a":{"targets":["re:m.*"],"weights":{"num_bits":4,"group_size":32}},
        "b":{"targets":["re:m"],"weights":{"num_bits":4,"group_size":64}}}})");
    EXPECT_EQ("W4A16 g64", d.of("m"));
}

TEST(ConfigParse, a_pattern_that_explodes_is_an_error_and_not_a_hang)
{
    Config c(R"({"config_groups":{"g":{"targets":["re:(a+)+b"],"weights":{}}}})");
    ASSERT_NB_OK(c.st);
    nbi_scheme s;
    EXPECT_FAILS(NB_ELIMIT, "(a+)+b",
                 nbi_ct_scheme(c.c, std::string(60, 'a').append("!b").insert(30, "c").c_str(), "Linear", &s));
}

TEST(ConfigParse, the_fp8_config_of_a_real_model_is_refused)
{
    NEEDS_SHARED(path, "configs/ct_nm-testing--Meta-Llama-3.1-8B-Instruct-FP8-hf.quantization_config.json");
    Config c(read_text(path));
    EXPECT_EQ(NB_EUNSUPPORTED, c.st);
    EXPECT_NE(std::string(nb_last_error()).find("\"float\""), std::string::npos) << nb_last_error();
}

/* ---- building -------------------------------------------------------------------------------------------------- */

TEST(ConfigBuild, parse_gives_the_same_schemes)
{
    std::vector<nbi_scheme> all = all_schemes();
    std::vector<std::string> names;
    for (size_t i = 0; i < 3 * all.size() + 2; i++)
        names.push_back("model.layers." + std::to_string(i) + ".proj");
    std::vector<nbi_quant_entry> e;
    for (size_t i = 0; i < names.size(); i++)
        e.push_back({names[i].c_str(), i % 5 == 4 ? nbi_scheme{} : all[i * 7 % all.size()], 0, 0});
    json_t *j = nullptr;
    ASSERT_NB_OK(nbi_ct_config_build(&j, e.data(), e.size()));
    Config c(j);
    ASSERT_NB_OK(c.st);
    EXPECT_STREQ("mixed-precision", json_string_value(json_object_get(j, "format")));
    for (auto &x : e) {
        nbi_scheme s;
        ASSERT_NB_OK(nbi_ct_scheme(c.c, x.module, "Linear", &s));
        EXPECT_TRUE(same_scheme(s, x.scheme)) << x.module << ": " << name_of(x.scheme) << " became " << name_of(s);
    }
    json_decref(j);
}

TEST(ConfigBuild, the_most_common_scheme_targets_the_class)
{
    const nbi_scheme w4 = scheme(4, true, NBI_PER_GROUP, 128), w8 = scheme(8, true, NBI_PER_CHANNEL, 0);
    const nbi_quant_entry e[] = {{"a", w8, 0, 0}, {"b", w4, 0, 0}, {"c", w4, 0, 0}, {"lm_head", {}, 0, 0}};
    json_t *j = nullptr;
    ASSERT_NB_OK(nbi_ct_config_build(&j, e, 4));
    char *text = json_dumps(j, JSON_COMPACT | JSON_SORT_KEYS);
    EXPECT_STREQ(R"({"config_groups":{"group_0":{"input_activations":null,"output_activations":null,"targets":["a"],)"
                 R"("weights":{"dynamic":false,"group_size":null,"num_bits":8,"strategy":"channel","symmetric":true,)"
                 R"("type":"int"}},"group_1":{"input_activations":null,"output_activations":null,)"
                 R"("targets":["Linear"],"weights":{"dynamic":false,"group_size":128,"num_bits":4,)"
                 R"("strategy":"group","symmetric":true,"type":"int"}}},"format":"pack-quantized",)"
                 R"("global_compression_ratio":null,"ignore":["lm_head"],"kv_cache_scheme":null,)"
                 R"("quant_method":"compressed-tensors","quantization_status":"compressed","version":"0.20.0"})",
                 text);
    free(text);
    json_decref(j);
}

/* "Linear" does not match the class of an embedding, whatever its scheme. */
TEST(ConfigBuild, an_embedding_is_a_target_by_name)
{
    const nbi_scheme w4 = scheme(4, true, NBI_PER_GROUP, 128), w8 = scheme(8, true, NBI_PER_CHANNEL, 0);
    for (const nbi_scheme &common : {w8, w4}) {
        const nbi_quant_entry e[] = {{"a", common, 0, 0}, {"b", common, 0, 0}, {"model.embed_tokens", w8, 0, 0}};
        json_t *j = nullptr;
        ASSERT_NB_OK(nbi_ct_config_build(&j, e, 3));
        Config c(j);
        ASSERT_NB_OK(c.st);
        EXPECT_EQ(name_of(w8), c.of("model.embed_tokens", "Embedding"));
        EXPECT_EQ(name_of(common), c.of("a", "Linear"));
        json_decref(j);
    }
}

TEST(ConfigBuild, formats_are_named_by_group_only_when_they_are_mixed)
{
    const nbi_scheme w4 = scheme(4, true, NBI_PER_GROUP, 128), a8 = scheme(8, true, NBI_PER_CHANNEL, 0, NBI_ACT_TOKEN);
    const nbi_quant_entry mixed[] = {{"a", w4, 0, 0}, {"b", a8, 0, 0}}, plain[] = {{"a", a8, 0, 0}};
    json_t *j = nullptr;
    const char *top, *first, *second;
    ASSERT_NB_OK(nbi_ct_config_build(&j, mixed, 2));
    ASSERT_EQ(0, json_unpack(j, "{s:s, s:{s:{s:s}, s:{s:s}}}", "format", &top, "config_groups", "group_0", "format",
                             &first, "group_1", "format", &second));
    EXPECT_STREQ("mixed-precision", top);
    EXPECT_STREQ("pack-quantized", first);
    EXPECT_STREQ("int-quantized", second);
    json_decref(j);
    ASSERT_NB_OK(nbi_ct_config_build(&j, plain, 1));
    ASSERT_EQ(0, json_unpack(j, "{s:s}", "format", &top));
    EXPECT_STREQ("int-quantized", top);
    EXPECT_EQ(nullptr, json_object_get(json_object_get(json_object_get(j, "config_groups"), "group_0"), "format"));
    json_decref(j);
}

TEST(ConfigBuild, a_dense_model_has_no_config)
{
    const nbi_quant_entry e[] = {{"a", {}, 0, 0}};
    json_t *j = nullptr;
    ASSERT_NB_OK(nbi_ct_config_build(&j, e, 1));
    EXPECT_EQ(nullptr, j);
    const nbi_quant_entry bad[] = {{"a", scheme(5, true, NBI_PER_CHANNEL, 0), 0, 0}};
    EXPECT_FAILS(NB_EINVAL, "a: 5 bits", nbi_ct_config_build(&j, bad, 1));
    EXPECT_EQ(nullptr, j);
}
