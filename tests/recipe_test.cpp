/* Recipes: what they say, what they refuse, and that those which ship are what their names promise. */
#include "testutil.h"

#include <algorithm>

extern "C" {
#include "base/json.h"
#include "quant/recipe.h"
}

namespace
{

class Recipe
{
  public:
    Recipe() = default;
    explicit Recipe(const std::string &text, const char *where = "r.json") { status = parse(text, where); }
    ~Recipe() { nbi_recipe_free(r); }
    Recipe(const Recipe &) = delete;

    nb_status parse(const std::string &text, const char *where)
    {
        json_t *j = nullptr;
        nb_status st = nbi_json_parse(&j, text.data(), text.size(), where);
        if (st == NB_OK)
            st = nbi_recipe_parse(&r, j, where);
        json_decref(j);
        return st;
    }
    nbi_scheme scheme(const std::string &module, size_t k = 1024) const
    {
        nbi_scheme s;
        EXPECT_NB_OK(nbi_recipe_scheme(r, module.c_str(), k, &s));
        return s;
    }
    std::string name_of(const std::string &module, size_t k = 1024) const
    {
        char name[48];
        nbi_scheme s = scheme(module, k);
        nbi_scheme_name(&s, name);
        return name;
    }

    nbi_recipe *r = nullptr;
    nb_status status = NB_OK;
};

#define EXPECT_REFUSED(text, part)                                                                                     \
    do {                                                                                                               \
        Recipe refused;                                                                                                \
        EXPECT_FAILS(NB_EFORMAT, part, refused.parse(text, "r.json"));                                                 \
        EXPECT_NE(std::string(nb_last_error()).find("r.json"), std::string::npos) << nb_last_error();                  \
        EXPECT_EQ(refused.r, nullptr);                                                                                 \
    } while (0)

const char *const kQ = "model.layers.3.self_attn.q_proj", *const kDown = "model.layers.3.mlp.down_proj";

/* Sets an environment variable for the life of the object. */
class Env
{
  public:
    Env(const char *name, const char *value) : name_(name)
    {
        const char *old = getenv(name);
        had_ = old != nullptr;
        old_ = old ? old : "";
        value ? setenv(name, value, 1) : unsetenv(name);
    }
    ~Env() { had_ ? setenv(name_, old_.c_str(), 1) : unsetenv(name_); }

  private:
    const char *name_;
    bool had_;
    std::string old_;
};

} // namespace

/* ---- what a recipe means ------------------------------------------------------------------------------------------ */

TEST(Recipe, the_shortest_one_has_stated_defaults)
{
    Recipe r(R"({"weights": {"bits": 8}})", "some/folder/mine.json");
    ASSERT_NB_OK(r.status);
    EXPECT_STREQ(nbi_recipe_name(r.r), "mine");
    nbi_scheme s = r.scheme(kQ);
    EXPECT_EQ(s.bits, 8);
    EXPECT_TRUE(s.symmetric);
    EXPECT_EQ(s.strategy, NBI_PER_CHANNEL);
    EXPECT_EQ(s.group, 0u);
    EXPECT_EQ(s.act, NBI_ACT_NONE);
    EXPECT_EQ(r.scheme("lm_head").bits, 0);
    EXPECT_FALSE(nbi_recipe_needs_calibration(r.r));
    nbi_observer_method m;
    double p;
    uint32_t tokens, ctx;
    nbi_recipe_calibration(r.r, &m, &p, &tokens, &ctx);
    EXPECT_EQ(m, NBI_OBS_MSE);
    EXPECT_EQ(p, 99.99);
    EXPECT_EQ(tokens, 8192u);
    EXPECT_EQ(ctx, 512u);
}

TEST(Recipe, every_key_arrives)
{
    Recipe r(R"({"name": "n", "description": "d",
                 "weights": {"bits": 4, "symmetric": false, "strategy": "group", "group_size": 64},
                 "activations": {"bits": 8, "symmetric": false, "strategy": "tensor"},
                 "calibration": {"method": "percentile", "percentile": 99.5, "tokens": 100, "ctx": 50},
                 "ignore": [], "overrides": []})");
    ASSERT_NB_OK(r.status);
    EXPECT_STREQ(nbi_recipe_name(r.r), "n");
    nbi_scheme s = r.scheme("lm_head"); /* an empty list ignores nothing */
    EXPECT_EQ(s.bits, 4);
    EXPECT_FALSE(s.symmetric);
    EXPECT_EQ(s.strategy, NBI_PER_GROUP);
    EXPECT_EQ(s.group, 64u);
    EXPECT_EQ(s.act, NBI_ACT_TENSOR);
    EXPECT_FALSE(s.act_symmetric);
    EXPECT_TRUE(nbi_recipe_needs_calibration(r.r));
    nbi_observer_method m;
    double p;
    uint32_t tokens, ctx;
    nbi_recipe_calibration(r.r, &m, &p, &tokens, &ctx);
    EXPECT_EQ(m, NBI_OBS_PERCENTILE);
    EXPECT_EQ(p, 99.5);
    EXPECT_EQ(tokens, 100u);
    EXPECT_EQ(ctx, 50u);
}

TEST(Recipe, a_group_size_alone_means_groups)
{
    Recipe r(R"({"weights": {"bits": 4, "group_size": 24}})");
    ASSERT_NB_OK(r.status);
    EXPECT_EQ(r.scheme(kQ, 48).strategy, NBI_PER_GROUP);
    EXPECT_EQ(r.scheme(kQ, 48).group, 24u);
}

TEST(Recipe, embeddings_and_norms_are_never_quantized)
{
    Recipe r(R"({"weights": {"bits": 4, "group_size": 128}, "ignore": [],
                 "overrides": [{"match": "re:.*", "weights": {"bits": 8}}]})");
    ASSERT_NB_OK(r.status);
    for (const char *m : {"model.embed_tokens", "model.norm", "model.layers.0.input_layernorm", "transformer.wte",
                          "model.layers.0.self_attn.q_norm"})
        EXPECT_EQ(r.scheme(m, 7).bits, 0) << m;
    EXPECT_EQ(r.scheme("model.normal.q_proj").bits, 8); /* only the last part of the name counts */
    EXPECT_EQ(r.scheme("lm_head").bits, 8);
}

TEST(Recipe, an_embedding_is_quantized_where_an_override_names_it)
{
    const std::string a8 = R"({"weights": {"bits": 8}, "activations": {"bits": 8}, "overrides": [)",
                      named = R"({"match": "model.embed_tokens", )";
    Recipe r(a8 + named + R"("weights": {"bits": 4, "group_size": 64}, "activations": null}]})");
    ASSERT_NB_OK(r.status);
    EXPECT_EQ(r.name_of("model.embed_tokens"), "W4A16 g64");
    EXPECT_EQ(r.name_of("model.embed_tokens2"), "dense");
    EXPECT_EQ(r.name_of("transformer.embed_tokens"), "dense");
    Recipe ignored(R"({"weights": {"bits": 8}, "ignore": ["re:model.embed"], "overrides": [)" + named +
                   R"("weights": {"bits": 4, "group_size": 64}}]})");
    ASSERT_NB_OK(ignored.status);
    EXPECT_EQ(ignored.name_of("model.embed_tokens"), "dense");
    for (const char *bad : {R"("weights": {"bits": 4}}]})", R"("weights": {"bits": 2}, "activations": null}]})"}) {
        Recipe b(a8 + named + bad);
        EXPECT_EQ(b.status, NB_EFORMAT) << bad;
        EXPECT_NE(std::string(nb_last_error()).find("looked up"), std::string::npos) << nb_last_error();
    }
    Recipe own(R"({"weights": {"bits": 4}, "method": "nf4", "overrides": [)" + named + R"("weights": {"bits": 4}}]})");
    EXPECT_EQ(own.status, NB_EFORMAT);
}

TEST(Recipe, ignore_takes_names_and_expressions_from_the_start)
{
    Recipe r(
        R"({"weights": {"bits": 8}, "ignore": ["model.layers.0.mlp.up_proj", "re:model\\.layers\\.[12]\\.", "re:v_proj"]})");
    ASSERT_NB_OK(r.status);
    EXPECT_EQ(r.scheme("model.layers.0.mlp.up_proj").bits, 0);
    EXPECT_EQ(r.scheme("model.layers.0.mlp.up_proj2").bits, 8);
    EXPECT_EQ(r.scheme("model.layers.1.mlp.up_proj").bits, 0);
    EXPECT_EQ(r.scheme("model.layers.2.mlp.up_proj").bits, 0);
    EXPECT_EQ(r.scheme("model.layers.12.mlp.up_proj").bits, 8);
    EXPECT_EQ(r.scheme("model.layers.5.self_attn.v_proj").bits, 8); /* not at the start */
    EXPECT_EQ(r.scheme("lm_head").bits, 8);                         /* the list replaces the default */
}

TEST(Recipe, the_last_override_that_matches_decides)
{
    Recipe r(R"({"weights": {"bits": 4, "group_size": 128, "symmetric": false},
                 "activations": {},
                 "overrides": [
                   {"match": "re:.*_proj", "weights": {"bits": 8}},
                   {"match": "re:.*down_proj$", "weights": {"bits": 8, "strategy": "channel"}},
                   {"match": "model.layers.3.mlp.down_proj", "activations": null},
                   {"match": "model.layers.4.mlp.down_proj", "weights": null},
                   {"match": "lm_head", "weights": {"bits": 8}}]})");
    ASSERT_NB_OK(r.status);
    EXPECT_EQ(r.name_of("other"), "W4A8 g128 asym");
    EXPECT_EQ(r.name_of(kQ), "W8A8 g128 asym"); /* what an override does not name comes from the top */
    EXPECT_EQ(r.name_of("model.layers.2.mlp.down_proj"), "W8A8 channel asym");
    EXPECT_EQ(r.name_of(kDown), "W4A16 g128 asym"); /* from the top, not from the override before */
    EXPECT_EQ(r.name_of("model.layers.4.mlp.down_proj"), "dense");
    EXPECT_EQ(r.name_of("lm_head"), "dense"); /* ignore is stronger */
}

TEST(Recipe, an_override_can_quantize_what_the_top_leaves_dense)
{
    Recipe r(
        R"({"weights": null, "overrides": [{"match": "re:.*mlp", "weights": {"bits": 4}, "activations": {"strategy": "tensor"}}]})");
    ASSERT_NB_OK(r.status);
    EXPECT_EQ(r.name_of(kQ), "dense");
    EXPECT_EQ(r.name_of(kDown), "W4A8-static channel");
    EXPECT_TRUE(nbi_recipe_needs_calibration(r.r));
}

TEST(Recipe, inputs_that_do_not_divide_into_groups_are_named)
{
    Recipe r(R"({"name": "w4", "weights": {"bits": 4, "group_size": 128}})");
    ASSERT_NB_OK(r.status);
    nbi_scheme s;
    EXPECT_FAILS(NB_EINVAL, "module model.layers.3.mlp.down_proj has 200 inputs",
                 nbi_recipe_scheme(r.r, kDown, 200, &s));
    EXPECT_NE(std::string(nb_last_error()).find("groups of 128"), std::string::npos);
    EXPECT_EQ(s.bits, 0);
    EXPECT_NB_OK(nbi_recipe_scheme(r.r, "lm_head", 200, &s)); /* ignored: not asked */
}

/* ---- what is refused ---------------------------------------------------------------------------------------------- */

TEST(Recipe, unknown_keys_are_named_with_the_known_ones)
{
    EXPECT_REFUSED(R"({"wieghts": {"bits": 8}})", "unknown key \"wieghts\"");
    EXPECT_REFUSED(R"({"wieghts": {"bits": 8}})",
                   "name, description, weights, activations, method, calibration, rotate, kv_dtype");
    EXPECT_REFUSED(R"({"weights": {"bits": 8, "groupsize": 128}})",
                   "weights: unknown key \"groupsize\", the known ones are bits, symmetric, strategy, group_size");
    EXPECT_REFUSED(R"({"weights": {"bits": 8}, "activations": {"dynamic": true}})",
                   "activations: unknown key \"dynamic\"");
    EXPECT_REFUSED(R"({"weights": {"bits": 8}, "activations": {"strategy": "tensor"}, "calibration": {"samples": 3}})",
                   "calibration: unknown key \"samples\"");
    EXPECT_REFUSED(
        R"({"weights": {"bits": 8}, "overrides": [{"match": "a", "weights": null}, {"match": "a", "bits": 3}]})",
        "overrides[1]: unknown key \"bits\"");
    EXPECT_REFUSED(R"({"weights": {"bits": 8}, "overrides": [{"match": "a", "weights": {"bit": 3}}]})",
                   "overrides[0]: weights: unknown key \"bit\"");
}

TEST(Recipe, wrong_values_are_named)
{
    EXPECT_REFUSED("[]", "a JSON object");
    EXPECT_REFUSED("{}", "\"weights\" is missing");
    EXPECT_REFUSED(R"({"name": "", "weights": {"bits": 8}})", "\"name\" is empty");
    EXPECT_REFUSED(R"({"name": 3, "weights": {"bits": 8}})", "\"name\" is an integer");
    EXPECT_REFUSED(R"({"weights": 8})", "\"weights\" is not an object");
    EXPECT_REFUSED(R"({"weights": {}})", "\"bits\" is missing");
    for (const char *bits : {"5", "0", "-8", "16", "4294967300", "9223372036854775807"})
        EXPECT_REFUSED(std::string("{\"weights\": {\"bits\": ") + bits + "}}",
                       std::string("\"bits\" is ") + bits + ", expected ");
    EXPECT_REFUSED(R"({"weights": {"bits": "8"}})", "\"bits\" is a string");
    EXPECT_REFUSED(R"({"weights": {"bits": 8, "symmetric": 1}})", "\"symmetric\" is an integer");
    EXPECT_REFUSED(R"({"weights": {"bits": 8, "strategy": "token"}})",
                   "\"strategy\" is \"token\", expected one of tensor, channel, group");
    for (const char *group : {"0", "-1", "7", "12", "1048584", "4294967304"})
        EXPECT_REFUSED(std::string("{\"weights\": {\"bits\": 4, \"group_size\": ") + group + "}}",
                       std::string("\"group_size\" is ") + group);
    EXPECT_REFUSED(R"({"weights": {"bits": 4, "strategy": "group"}})", "expected a \"group_size\"");
    EXPECT_REFUSED(R"({"weights": {"bits": 4, "strategy": "channel", "group_size": 64}})",
                   "\"strategy\" is not \"group\"");
    EXPECT_REFUSED(R"({"weights": {"bits": 8}, "activations": 8})", "\"activations\" is not an object");
    EXPECT_REFUSED(R"({"weights": {"bits": 8}, "activations": {"bits": 4}})", "activations: \"bits\" is 4, expected 8");
    EXPECT_REFUSED(R"({"weights": {"bits": 8}, "activations": {"strategy": "channel"}})",
                   "expected one of token, tensor");
    EXPECT_REFUSED(R"({"weights": {"bits": 8}, "activations": {"symmetric": false}})", "symmetric");
    EXPECT_REFUSED(R"({"weights": null, "activations": {}})", "\"weights\" are not");
    EXPECT_REFUSED(
        R"({"weights": {"bits": 8}, "activations": {}, "overrides": [{"match": "x", "weights": null, "activations": {}}]})",
        "overrides[0]: \"activations\" are quantized");
    EXPECT_REFUSED(R"({"weights": {"bits": 8}, "ignore": "lm_head"})", "\"ignore\" is not an array");
    EXPECT_REFUSED(R"({"weights": {"bits": 8}, "ignore": ["a", 3]})", "ignore[1] is not a string");
    EXPECT_REFUSED(R"({"weights": {"bits": 8}, "ignore": [""]})", "ignore[0]: an empty string");
    EXPECT_REFUSED(R"({"weights": {"bits": 8}, "ignore": ["re:(a"]})",
                   "ignore[0]: the regular expression \"(a\" does not compile at 2");
    EXPECT_REFUSED(R"({"weights": {"bits": 8}, "overrides": {}})", "\"overrides\" is not an array");
    EXPECT_REFUSED(R"({"weights": {"bits": 8}, "overrides": [3]})", "overrides[0] is not an object");
    EXPECT_REFUSED(R"({"weights": {"bits": 8}, "overrides": [{"weights": {"bits": 4}}]})", "\"match\" is missing");
    EXPECT_REFUSED(R"({"weights": {"bits": 8}, "overrides": [{"match": "a"}]})", "changes nothing");
    EXPECT_REFUSED(R"({"weights": {"bits": 8}, "overrides": [{"match": "re:*", "weights": {"bits": 4}}]})",
                   "overrides[0]: the regular expression");
}

/* Options of one name that two methods have go where the method looks. */
TEST(Recipe, options_reach_their_method_and_no_other)
{
    const nbi_method *m = nullptr;
    nbi_method_options o, d;
    auto parse = [&](const std::string &text) {
        json_t *j = json_loads(text.c_str(), JSON_DECODE_ANY, nullptr);
        nb_status st = nbi_method_parse(&m, &o, j, "here");
        json_decref(j);
        return st;
    };
    ASSERT_NB_OK(nbi_method_parse(&m, &d, nullptr, "here"));
    ASSERT_NB_OK(parse(R"({"name": "gptq", "act_order": false, "static_groups": false, "clip": true, "damp": 0.5,
                           "block": 7, "descent": 3, "true_sequential": true})"));
    EXPECT_STREQ("gptq", m->name);
    EXPECT_FALSE(o.gptq.act_order || o.gptq.static_groups);
    EXPECT_TRUE(o.gptq.clip && o.in_order);
    EXPECT_EQ(0.5f, o.gptq.damp);
    EXPECT_TRUE(o.gptq.block == 7 && o.gptq.descent == 3);
    EXPECT_TRUE(o.spqr.damp == d.spqr.damp && o.spqr.block == d.spqr.block && o.spqr.act_order);
    ASSERT_NB_OK(parse(R"({"name": "spqr", "act_order": false, "damp": 0.25, "threshold": 0.75, "block": 9})"));
    EXPECT_FALSE(o.spqr.act_order);
    EXPECT_TRUE(o.spqr.damp == 0.25f && o.spqr.threshold == 0.75f && o.spqr.block == 9);
    EXPECT_TRUE(o.gptq.damp == d.gptq.damp && o.gptq.block == d.gptq.block && o.outliers == d.outliers);
    ASSERT_NB_OK(parse(R"({"name": "llm-int8", "threshold": 4.5})"));
    EXPECT_TRUE(o.outliers == 4.5f && o.spqr.threshold == d.spqr.threshold);
    ASSERT_NB_OK(parse(R"({"name": "smoothquant", "alpha": null})"));
    EXPECT_EQ(0.5f, o.alpha);
    ASSERT_NB_OK(parse(R"({"name": "smoothquant", "alpha": 0.85})"));
    EXPECT_EQ(0.85f, o.alpha);
    ASSERT_NB_OK(parse(R"({"name": "twn", "refine": true})"));
    EXPECT_TRUE(o.refine);

    EXPECT_FAILS(NB_EFORMAT,
                 "here: method gptq has no option \"alpha\", its options are act_order, static_groups, clip, damp, "
                 "block, descent, "
                 "true_sequential",
                 parse(R"({"name": "gptq", "alpha": 0.5})"));
    EXPECT_FAILS(NB_EFORMAT, "method llm-int8 has no option \"damp\", its options are threshold",
                 parse(R"({"name": "llm-int8", "damp": 0.5})"));
    EXPECT_FAILS(NB_EFORMAT, "method rtn has no option \"clip\", it has none",
                 parse(R"({"name": "rtn", "clip": true})"));
    EXPECT_FAILS(NB_EFORMAT, "here: \"damp\" is 2, expected 0 to 1", parse(R"({"name": "spqr", "damp": 2})"));
    EXPECT_FAILS(NB_EFORMAT, "\"block\" is 0, expected", parse(R"({"name": "gptq", "block": 0})"));
    EXPECT_FAILS(NB_EFORMAT, "\"refine\" is an integer", parse(R"({"name": "twn", "refine": 1})"));
}

TEST(Recipe, calibration_is_checked)
{
    const std::string head = R"({"weights": {"bits": 8}, "activations": {"strategy": "tensor"}, "calibration": )";
    EXPECT_REFUSED(head + R"({"method": "max"}})", "expected one of minmax, percentile, mse, kl");
    EXPECT_REFUSED(head + R"({"percentile": 50}})", "\"percentile\" is 50, expected more than 50");
    EXPECT_REFUSED(head + R"({"percentile": 101}})", "\"percentile\" is 101");
    EXPECT_REFUSED(head + R"({"tokens": 0}})", "\"tokens\" is 0");
    EXPECT_REFUSED(head + R"({"ctx": 1.5}})", "\"ctx\" is a real number");
    EXPECT_REFUSED(R"({"weights": {"bits": 8}, "calibration": {}})", "no scheme has static activations");
    Recipe only_an_override(R"({"weights": {"bits": 8}, "calibration": {"method": "kl"},
                               "overrides": [{"match": "a", "activations": {"strategy": "tensor"}}]})");
    EXPECT_NB_OK(only_an_override.status);
}

TEST(Recipe, an_expression_that_runs_away_is_an_error)
{
    Recipe r(R"({"weights": {"bits": 8}, "ignore": ["re:(a+)+$"]})");
    ASSERT_NB_OK(r.status);
    nbi_scheme s;
    std::string name(40, 'a');
    EXPECT_FAILS(NB_ELIMIT, "match limit", nbi_recipe_scheme(r.r, (name + "!").c_str(), 8, &s));
}

TEST(Recipe, every_truncation_of_a_recipe_is_an_error)
{
    std::string text = read_text(repo_file("configs/recipes/w4-mixed.json"));
    while (!text.empty() && isspace(static_cast<unsigned char>(text.back())))
        text.pop_back();
    ASSERT_FALSE(text.empty());
    for (size_t n = 0; n < text.size(); n++) {
        Recipe r;
        ASSERT_EQ(NB_EFORMAT, r.parse(text.substr(0, n), "r.json")) << n;
    }
    Recipe whole(text);
    EXPECT_NB_OK(whole.status);
}

/* ---- finding recipes ---------------------------------------------------------------------------------------------- */

TEST(RecipeSearch, the_environment_comes_before_the_folder_of_the_repository)
{
    TempDir dir;
    write_text(dir / "w8a16.json", R"({"weights": {"bits": 4}})");
    write_text(dir / "zebra.json", R"({"weights": {"bits": 4}})");
    Env env("NIBBLE_RECIPES", dir.path().c_str());
    Recipe a, b, c;
    ASSERT_NB_OK(nbi_recipe_load(&a.r, "w8a16"));
    EXPECT_EQ(a.scheme(kQ).bits, 4);
    ASSERT_NB_OK(nbi_recipe_load(&b.r, "zebra"));
    EXPECT_STREQ(nbi_recipe_name(b.r), "zebra");
    ASSERT_NB_OK(nbi_recipe_load(&c.r, (dir / "zebra.json").c_str()));
}

TEST(RecipeSearch, an_unknown_name_lists_the_places_and_the_names)
{
    TempDir dir;
    write_text(dir / "zebra.json", "{}");
    write_text(dir / "readme.txt", "");
    nbi_recipe *r = nullptr;
    {
        Env env("NIBBLE_RECIPES", dir.path().c_str());
        EXPECT_FAILS(NB_EINVAL, "there is no recipe \"w5a5\"", nbi_recipe_load(&r, "w5a5"));
        std::string e = nb_last_error();
        for (const std::string &part : {dir.path(), std::string("configs/recipes"), std::string("zebra")})
            EXPECT_NE(e.find(part), std::string::npos) << e;
        EXPECT_EQ(e.find("readme"), std::string::npos) << e;
    }
    Env env("NIBBLE_RECIPES", nullptr);
    EXPECT_FAILS(NB_EINVAL, "$NIBBLE_RECIPES (not set)", nbi_recipe_load(&r, "w5a5"));
    EXPECT_FAILS(NB_EINVAL, "there is no recipe \"\"", nbi_recipe_load(&r, ""));
    EXPECT_EQ(r, nullptr);
}

TEST(RecipeSearch, a_path_that_is_not_there_is_not_searched_for)
{
    nbi_recipe *r = nullptr;
    EXPECT_FAILS(NB_EIO, "nowhere/x.json", nbi_recipe_load(&r, "nowhere/x.json"));
    EXPECT_FAILS(NB_EIO, "w8a16x.json", nbi_recipe_load(&r, "w8a16x.json"));
    TempDir dir;
    write_text(dir / "broken.json", "{\"weights\": ");
    EXPECT_FAILS(NB_EFORMAT, "broken.json", nbi_recipe_load(&r, (dir / "broken.json").c_str()));
}

/* ---- the recipes that ship ---------------------------------------------------------------------------------------- */

struct Shipped {
    const char *name, *scheme, *down_proj, *head = nullptr;
};
const Shipped kShipped[] = {
    {"w8a8-dynamic", "W8A8 channel", nullptr},
    {"w8a8", "W8A8 channel", nullptr, "W8A8 channel"},
    {"w8a8-static", "W8A8-static channel", nullptr},
    {"w8a8-static-asym", "W8A8-static-asym channel", nullptr},
    {"w8a16", "W8A16 channel", nullptr},
    {"w8a16-g128", "W8A16 g128", nullptr},
    {"w8-tensor", "W8A16 tensor", nullptr},
    {"w4a16", "W4A16 g128", nullptr},
    {"w4a16-g128", "W4A16 g128", nullptr},
    {"w4a16-g64", "W4A16 g64", nullptr},
    {"w4a16-g32-asym", "W4A16 g32 asym", nullptr},
    {"w4a16-channel", "W4A16 channel", nullptr},
    {"w4a8", "W4A8 g128", nullptr, "W8A8 channel"},
    {"w4-mixed", "W4A16 g128", "W8A16 channel"},
    {"w4a16-g128-gptq", "W4A16 g128", nullptr},
    {"w4a16-g128-awq", "W4A16 g128 asym", nullptr},
    {"w4a16-g128-clip", "W4A16 g128", nullptr},
    {"w3a16-g128-gptq", "W3A16 g128", nullptr},
    {"w2a16-g64-gptq", "W2A16 g64 asym", nullptr},
    {"w4-hqq", "W4A16 g64 asym16", nullptr},
    {"w8a8-smoothquant", "W8A8 channel", nullptr},
    {"nf4", "NF4 W4A16 g64", nullptr},
    {"w4a8kv4-rotated", "W4A8 g128", nullptr},
    {"mixed", "W4A16 g64 asym", nullptr},
    {"ternary", "W2A16 channel", nullptr},
    {"ternary-a8", "W2A8 channel", nullptr, "W8A8 channel"},
    {"binary", "binary W1A1 channel", nullptr},
    {"kv4", "dense", nullptr},
    {"w4-quip", "E8P W4A16 tensor rot", nullptr},
    {"w2-quip", "E8P W2A16 tensor rot", nullptr},
    {"w4-spqr", "W4A16 g16 asym sparse", "W4A16 g16 asym sparse"},
    {"llm-int8", "W8A8 channel outliers", "W8A8 channel outliers"},
};

TEST(ShippedRecipes, are_what_their_names_say)
{
    for (auto &s : kShipped) {
        Recipe r;
        ASSERT_NB_OK(nbi_recipe_load(&r.r, repo_file(std::string("configs/recipes/") + s.name + ".json").c_str()));
        EXPECT_STREQ(nbi_recipe_name(r.r), s.name);
        EXPECT_EQ(r.name_of(kQ), s.scheme) << s.name;
        EXPECT_EQ(r.name_of(kDown), s.down_proj ? s.down_proj : s.scheme) << s.name;
        EXPECT_EQ(r.name_of("lm_head"), s.head ? s.head : "dense") << s.name;
        EXPECT_EQ(nbi_recipe_needs_calibration(r.r), std::string(s.name).find("static") != std::string::npos);
    }
}

TEST(ShippedRecipes, are_all_tested_described_and_documented)
{
    std::string docs = read_text(repo_file("docs/recipes.md"));
    size_t n = 0;
    for (auto &e : std::filesystem::directory_iterator(repo_file("configs/recipes"))) {
        std::string name = e.path().stem().string();
        n++;
        EXPECT_TRUE(std::any_of(std::begin(kShipped), std::end(kShipped), [&](auto &s) { return name == s.name; }))
            << name;
        EXPECT_NE(read_text(e.path().string()).find("\"description\": \""), std::string::npos) << name;
        EXPECT_NE(docs.find("`" + name + "`"), std::string::npos) << name << " is missing in docs/recipes.md";
    }
    EXPECT_EQ(n, std::size(kShipped));
}
