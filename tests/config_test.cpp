/* config.json: both spellings, real models, and numbers that must not be believed. */
#include "testutil.h"

#include <jansson.h>

#include <cmath>

extern "C" {
#include "model/config.h"
}

namespace
{

const char *const BASE = R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
 "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 768,
 "vocab_size": 4096, "max_position_embeddings": 1024, "rms_norm_eps": 1e-05, "hidden_act": "silu"})";

nb_status parse(nbi_config *c, const std::string &text)
{
    json_error_t e;
    json_t *j = json_loads(text.c_str(), 0, &e);
    EXPECT_NE(nullptr, j) << e.text;
    nb_status st = nbi_config_parse(c, j, "config.json");
    json_decref(j);
    return st;
}

/* BASE with some keys set ("key": value JSON; null removes what is there as far as reading goes). */
std::string with(const std::string &patch)
{
    json_t *j = json_loads(BASE, 0, nullptr), *p = json_loads(("{" + patch + "}").c_str(), 0, nullptr);
    EXPECT_NE(nullptr, p) << patch;
    json_object_update(j, p);
    char *s = json_dumps(j, 0);
    std::string out = s;
    free(s);
    json_decref(j);
    json_decref(p);
    return out;
}

} // namespace

TEST(Config, old_and_new_spelling_mean_the_same)
{
    nbi_config a, b;
    ASSERT_NB_OK(parse(
        &a,
        with(
            R"("torch_dtype": "float16", "rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 4.0})")));
    ASSERT_NB_OK(parse(
        &b,
        with(
            R"("dtype": "float16", "rope_parameters": {"rope_type": "linear", "rope_theta": 500000.0, "factor": 4.0})")));
    EXPECT_EQ(0, memcmp(&a, &b, sizeof a));
    EXPECT_EQ(NBI_F16, a.dtype);
    EXPECT_EQ(NBI_ROPE_LINEAR, a.rope_type);
    EXPECT_EQ(32u, a.head_dim);
    EXPECT_EQ(4u, a.n_kv_heads);
    EXPECT_FALSE(a.tied);
}

TEST(Config, explicit_head_dim_wins_over_the_quotient)
{
    nbi_config c;
    ASSERT_NB_OK(parse(&c, with(R"("head_dim": 64, "num_key_value_heads": null)")));
    size_t n, k;
    EXPECT_EQ(64u, c.head_dim);
    EXPECT_EQ(8u, c.n_kv_heads);
    nbi_proj_shape(&c, NBI_O, &n, &k);
    EXPECT_EQ(256u, n);
    EXPECT_EQ(512u, k);
}

TEST(Config, qwen2_has_biases_on_q_k_and_v_only)
{
    nbi_config c;
    ASSERT_NB_OK(parse(&c, with(R"("architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
                                   "use_sliding_window": false, "sliding_window": 512)")));
    EXPECT_TRUE(nbi_proj_has_bias(&c, NBI_V));
    EXPECT_FALSE(nbi_proj_has_bias(&c, NBI_O));
    EXPECT_FALSE(nbi_proj_has_bias(&c, NBI_DOWN));
}

/* Figures of transformers 5.23's LlamaRotaryEmbedding for Llama 3.1 and for a linear factor of 4. */
TEST(Rope, llama3_scaling_equals_the_reference)
{
    nbi_config c;
    ASSERT_NB_OK(parse(&c, with(R"("hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192})")));
    std::vector<float> f(64);
    nbi_rope_inv_freq(&c, f.data());
    const std::pair<int, double> want[] = {{0, 1.0},
                                           {1, 0.8146172165870667},
                                           {20, 0.016560440883040428},
                                           {28, 0.0032114461064338684},
                                           {29, 0.0021665706299245358},
                                           {30, 0.0013718936825171113},
                                           {31, 0.0008567514596506953},
                                           {32, 0.0005248460220173001},
                                           {33, 0.0003126936499029398},
                                           {35, 9.556212171446532e-05},
                                           {36, 7.784655463183299e-05},
                                           {63, 3.068925877869333e-07}};
    for (auto [i, v] : want)
        EXPECT_NEAR(v, f[size_t(i)], v * 1e-5) << i; /* the reference works in fp32, with cancellation in the blend */
}

TEST(Rope, linear_scaling_divides_all_frequencies)
{
    nbi_config c;
    ASSERT_NB_OK(
        parse(&c, with(R"("rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0})")));
    std::vector<float> f(16);
    nbi_rope_inv_freq(&c, f.data());
    EXPECT_FLOAT_EQ(0.25f, f[0]);
    EXPECT_NEAR(0.14058533310890198, f[1], 1e-8);
    EXPECT_NEAR(0.04445698484778404, f[3], 1e-8);
}

TEST(Config, parameters_are_counted_as_published)
{
    nbi_config c;
    std::string text = read_text(repo_file("configs/shapes/llama-2-7b.json"));
    ASSERT_NB_OK(parse(&c, text));
    EXPECT_EQ(6738415616ull, nbi_config_params(&c));
    ASSERT_NB_OK(parse(&c, read_text(repo_file("configs/shapes/llama-3-8b.json"))));
    EXPECT_EQ(8030261248ull, nbi_config_params(&c));
}

TEST(Config, experts_are_counted_and_named_as_published)
{
    nbi_config c;
    ASSERT_NB_OK(parse(&c, read_text(repo_file("configs/shapes/mixtral-8x7b.json"))));
    EXPECT_EQ(46702792704ull, nbi_config_params(&c));
    EXPECT_EQ(12879925248ull, nbi_config_active_params(&c));
    std::vector<std::string> names;
    uint64_t sum = 0;
    for (size_t i = 0; i < nbi_layer_modules(&c); i++) {
        nbi_module m;
        nbi_module_at(&c, 3, i, &m);
        names.push_back(m.name);
        sum += m.n * m.k;
        EXPECT_FALSE(m.bias);
    }
    ASSERT_EQ(4u + 1 + 3 * 8, names.size());
    EXPECT_EQ("model.layers.3.self_attn.o_proj", names[3]);
    EXPECT_EQ("model.layers.3.block_sparse_moe.gate", names[4]);
    EXPECT_EQ("model.layers.3.block_sparse_moe.experts.0.w1", names[5]);
    EXPECT_EQ("model.layers.3.block_sparse_moe.experts.0.w3", names[6]);
    EXPECT_EQ("model.layers.3.block_sparse_moe.experts.7.w2", names[28]);
    EXPECT_EQ(nbi_config_params(&c), 32 * (sum + 2 * 4096) + 4096 + 2 * 32000 * 4096ull);
}

TEST(Config, real_mixtral_configs_are_what_the_shape_says)
{
    NEEDS_SHARED(dir, "configs");
    nbi_config c, shape;
    ASSERT_NB_OK(parse(&c, read_text(dir + "/mistralai--Mixtral-8x7B-v0.1_config.json")));
    ASSERT_NB_OK(parse(&shape, read_text(repo_file("configs/shapes/mixtral-8x7b.json"))));
    EXPECT_EQ(nbi_config_params(&shape), nbi_config_params(&c));
    EXPECT_EQ(shape.top_k, c.top_k);
    EXPECT_EQ(shape.rope_theta, c.rope_theta);
    EXPECT_EQ(shape.max_context, c.max_context);
    ASSERT_NB_OK(parse(&c, read_text(dir + "/mistralai--Mixtral-8x22B-v0.1_config.json")));
    EXPECT_EQ(140620634112ull, nbi_config_params(&c)); /* 141 B, as published */
}

TEST(Config, real_qwen3_configs_with_and_without_experts)
{
    NEEDS_SHARED(dir, "configs");
    nbi_config c;
    nbi_module m;
    ASSERT_NB_OK(parse(&c, read_text(dir + "/Qwen--Qwen3-30B-A3B_config.json")));
    EXPECT_EQ(30532122624ull, nbi_config_params(&c)); /* 30.5 B, of which 3.3 B a token, as published */
    EXPECT_EQ(3353032704ull, nbi_config_active_params(&c));
    EXPECT_EQ(768u, c.ffn);
    EXPECT_TRUE(c.norm_top_k && c.head_norms);
    nbi_module_at(&c, 1, nbi_layer_modules(&c) - 1, &m);
    EXPECT_STREQ("model.layers.1.mlp.experts.127.down_proj", m.name);
    nbi_module_at(&c, 1, 4, &m);
    EXPECT_STREQ("model.layers.1.mlp.gate", m.name);
    ASSERT_NB_OK(parse(&c, read_text(dir + "/Qwen--Qwen3-0.6B_config.json")));
    EXPECT_EQ(596049920ull, nbi_config_params(&c));
    EXPECT_EQ(0u, c.n_experts);
    EXPECT_TRUE(c.head_norms);
}

TEST(Config, real_llama_configs_parse_and_other_families_are_named)
{
    NEEDS_SHARED(dir, "configs");
    nbi_config c;
    ASSERT_NB_OK(parse(&c, read_text(dir + "/meta-llama--Meta-Llama-3.1-8B_config.json")));
    EXPECT_EQ(NBI_ROPE_LLAMA3, c.rope_type);
    EXPECT_EQ(8192u, c.rope_original_context);
    EXPECT_EQ(NBI_BF16, c.dtype);
    EXPECT_FAILS(NB_EUNSUPPORTED, "GptOssForCausalLM", parse(&c, read_text(dir + "/openai--gpt-oss-120b_config.json")));
    EXPECT_FAILS(NB_EUNSUPPORTED, "DeepseekV3ForCausalLM",
                 parse(&c, read_text(dir + "/deepseek-ai--DeepSeek-V3_config.json")));
}

TEST(BadConfig, absurd_or_contradictory_values_are_refused_by_name)
{
    nbi_config c;
    auto expect = [&](nb_status st, const std::string &part, const std::string &patch) {
        EXPECT_FAILS(st, part, parse(&c, with(patch)));
        EXPECT_FAILS(st, "config.json", parse(&c, with(patch)));
    };
    expect(NB_EUNSUPPORTED, "MambaForCausalLM", R"("architectures": ["MambaForCausalLM"])");
    expect(NB_EFORMAT, "\"architectures\"", R"("architectures": null)");
    expect(NB_EFORMAT, "\"hidden_size\" is missing", R"("hidden_size": null)");
    expect(NB_EFORMAT, "\"hidden_size\" is 99999999999", R"("hidden_size": 99999999999)");
    expect(NB_EFORMAT, "\"hidden_size\" is -256", R"("hidden_size": -256)");
    expect(NB_EFORMAT, "\"hidden_size\" is a string", R"("hidden_size": "256")");
    expect(NB_EFORMAT, "\"num_hidden_layers\" is 0", R"("num_hidden_layers": 0)");
    expect(NB_EFORMAT, "\"num_hidden_layers\" is 1000000", R"("num_hidden_layers": 1000000)");
    expect(NB_EFORMAT, "\"vocab_size\" is 4611686018427387904", R"("vocab_size": 4611686018427387904)");
    expect(NB_EFORMAT, "\"num_key_value_heads\"", R"("num_key_value_heads": 3)");
    expect(NB_EFORMAT, "\"num_key_value_heads\"", R"("num_key_value_heads": 16)");
    expect(NB_EFORMAT, "not a multiple", R"("hidden_size": 250)");
    expect(NB_EUNSUPPORTED, "even number", R"("head_dim": 31)");
    expect(NB_EFORMAT, "\"head_dim\"", R"("head_dim": 512)");
    expect(NB_EUNSUPPORTED, "\"yarn\"", R"("rope_scaling": {"type": "yarn", "factor": 4.0})");
    expect(NB_EUNSUPPORTED, "partial_rotary_factor", R"("partial_rotary_factor": 0.5)");
    expect(NB_EUNSUPPORTED, "\"gelu\"", R"("hidden_act": "gelu")");
    expect(NB_EUNSUPPORTED, "sliding_window", R"("sliding_window": 512)");
    expect(NB_EUNSUPPORTED, "\"float8\"", R"("dtype": "float8")");
    const std::string moe = R"("architectures": ["MixtralForCausalLM"], "num_experts_per_tok": 2, )";
    expect(NB_EFORMAT, "\"num_local_experts\" is missing", R"("architectures": ["MixtralForCausalLM"])");
    expect(NB_EFORMAT, "\"num_local_experts\" is 0", moe + R"("num_local_experts": 0)");
    expect(NB_EFORMAT, "\"num_local_experts\" is 1000000", moe + R"("num_local_experts": 1000000)");
    expect(NB_EFORMAT, "\"num_experts_per_tok\" is 2, but \"num_local_experts\" only 1",
           moe + R"("num_local_experts": 1)");
    expect(NB_EFORMAT, "\"num_experts_per_tok\" is 0", moe + R"("num_experts_per_tok": 0, "num_local_experts": 8)");
    const std::string qwen =
        R"("architectures": ["Qwen3MoeForCausalLM"], "num_experts_per_tok": 2, "num_experts": 8, )";
    expect(NB_EFORMAT, "\"moe_intermediate_size\" is missing", qwen + R"("norm_topk_prob": true)");
    expect(NB_EUNSUPPORTED, "decoder_sparse_step", qwen + R"("moe_intermediate_size": 64, "decoder_sparse_step": 2)");
    expect(NB_EUNSUPPORTED, "mlp_only_layers", qwen + R"("moe_intermediate_size": 64, "mlp_only_layers": [0])");
    expect(NB_EFORMAT, "eos_token_id", R"("eos_token_id": 4096)");
    expect(NB_EFORMAT, "eos_token_id", R"("eos_token_id": [1, -3])");
}
