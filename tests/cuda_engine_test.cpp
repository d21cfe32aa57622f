/* The engine on a GPU: a request gets the same tokens and the same log-probabilities, bit for bit, whatever travels with it,
 * however its prompt is cut, and whether steps are recorded or not.  Threads share a model. */
#include "testutil.h"

#include <algorithm>
#include <thread>

extern "C" {
#include "base/rng.h"
}

namespace
{

constexpr const char *SHAPE =
    R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 500, "hidden_size": 128, "intermediate_size": 256,
"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
"rms_norm_eps": 1e-05, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false, "torch_dtype": "float16"})";

struct Model {
    nb_model *m = nullptr;
    explicit Model(const char *recipe)
    {
        TempDir dir;
        write_text(dir / "shape.json", SHAPE);
        nb_model_options o;
        nb_model_options_init(&o);
        o.device = "cuda:0";
        EXPECT_EQ(NB_OK, nb_model_random(&m, (dir / "shape.json").c_str(), recipe, &o)) << nb_last_error();
    }
    ~Model() { nb_model_free(m); }
};

std::vector<int32_t> prompt(size_t n, uint64_t seed)
{
    std::vector<int32_t> ids;
    for (size_t i = 0; i < n; i++)
        ids.push_back((int32_t)(nbi_rng(seed, i) % 500));
    return ids;
}

struct Answer {
    std::vector<int32_t> tokens;
    std::vector<float> logprobs;
    bool operator==(const Answer &o) const
    {
        return tokens == o.tokens && logprobs.size() == o.logprobs.size() &&
               memcmp(logprobs.data(), o.logprobs.data(), logprobs.size() * sizeof(float)) == 0;
    }
};

/* The prompts: one token, less than a page, more than a chunk of keys; the last request draws its tokens. */
constexpr size_t LENGTHS[] = {1, 7, 140, 16, 33};
constexpr size_t N = sizeof LENGTHS / sizeof *LENGTHS;

void submit(nb_engine *e, size_t i, Answer *answer)
{
    nb_request r;
    nb_request_init(&r);
    std::vector<int32_t> ids = prompt(LENGTHS[i], i);
    r.prompt = ids.data();
    r.n_prompt = ids.size();
    r.max_tokens = 6;
    r.ignore_eos = 1;
    r.logprobs = 0;
    if (i == N - 1) {
        r.sampling.temperature = 0.9f;
        r.sampling.top_p = 0.95f;
        r.sampling.seed = 11;
    }
    ASSERT_NB_OK(nb_engine_submit(e, &r, answer, nullptr));
}

void finish(nb_engine *e, size_t expected)
{
    for (size_t done = 0, steps = 0; done < expected; steps++) {
        const nb_event *ev;
        size_t n;
        ASSERT_NB_OK(nb_engine_step(e, &ev, &n));
        ASSERT_LT(steps, 2000u);
        for (size_t i = 0; i < n; i++) {
            Answer *a = (Answer *)ev[i].user;
            ASSERT_NE(NB_EVENT_FAILED, ev[i].type) << ev[i].error;
            if (ev[i].type == NB_EVENT_FINISHED)
                done++;
            else {
                a->tokens.push_back(ev[i].token);
                a->logprobs.push_back(ev[i].logprob);
            }
        }
    }
}

std::vector<Answer> together(const nb_model *m, uint32_t batch, uint32_t chunk, const char *kv)
{
    std::vector<Answer> a(N);
    nb_engine *e = nullptr;
    nb_engine_options o;
    nb_engine_options_init(&o);
    o.max_batch = batch;
    o.prefill_chunk = chunk;
    o.max_context = 256;
    o.kv_dtype = kv;
    EXPECT_EQ(NB_OK, nb_engine_create(&e, m, &o)) << nb_last_error();
    for (size_t i = 0; i < N; i++)
        submit(e, i, &a[i]);
    finish(e, N);
    nb_engine_free(e);
    return a;
}

class CudaEngine : public ::testing::TestWithParam<std::pair<const char *, const char *>>
{
};

TEST_P(CudaEngine, a_request_gets_the_same_bits_whatever_travels_with_it)
{
    const auto [recipe, kv] = GetParam();
    Model m(recipe);
    ASSERT_NE(nullptr, m.m);
    setenv("NB_CUDA_GRAPHS", "0", 1);
    const std::vector<Answer> alone = together(m.m, 1, 256, kv);
    const std::vector<Answer> cut = together(m.m, 2, 5, kv);
    unsetenv("NB_CUDA_GRAPHS");
    const std::vector<Answer> recorded = together(m.m, 1, 256, kv), all = together(m.m, 8, 64, kv);
    for (size_t i = 0; i < N; i++) {
        EXPECT_EQ(6u, alone[i].tokens.size());
        EXPECT_TRUE(alone[i] == cut[i]) << "request " << i << ": prefill in pieces of 5";
        EXPECT_TRUE(alone[i] == recorded[i]) << "request " << i << ": recorded steps";
        EXPECT_TRUE(alone[i] == all[i]) << "request " << i << ": all together";
    }
    bool differ = false; /* the prompts are not all answered alike */
    for (size_t i = 1; i < N; i++)
        differ = differ || !(alone[i] == alone[0]);
    EXPECT_TRUE(differ);
}

std::string name_of(const ::testing::TestParamInfo<std::pair<const char *, const char *>> &p)
{
    std::string s = std::string(p.param.first ? p.param.first : "dense") + "_kv_" + p.param.second;
    std::replace(s.begin(), s.end(), '-', '_');
    return s;
}

INSTANTIATE_TEST_SUITE_P(Schemes, CudaEngine,
                         ::testing::Values(std::make_pair((const char *)nullptr, "f16"),
                                           std::make_pair("w8a8-dynamic", "int8"),
                                           std::make_pair("w4a16-g32-asym", "int4"), std::make_pair("w8a16", "f16"),
                                           std::make_pair("w4a8", "int8"), std::make_pair("w2a16-g64-gptq", "f16")),
                         name_of);

/* nb_model_logits may be called from any thread, also beside an engine. */
TEST(CudaThreads, share_a_model)
{
    Model m(nullptr);
    ASSERT_NE(nullptr, m.m);
    const std::vector<Answer> want = together(m.m, 4, 64, "f16");
    const std::vector<int32_t> ids = prompt(20, 3);
    std::vector<float> logits(ids.size() * 500);
    ASSERT_NB_OK(nb_model_logits(m.m, ids.data(), ids.size(), logits.data()));
    std::vector<std::vector<float>> got(2, std::vector<float>(logits.size()));
    std::vector<std::thread> threads;
    for (auto &g : got)
        threads.emplace_back([&] {
            for (int i = 0; i < 4; i++)
                EXPECT_EQ(NB_OK, nb_model_logits(m.m, ids.data(), ids.size(), g.data())) << nb_last_error();
        });
    const std::vector<Answer> beside = together(m.m, 4, 64, "f16");
    for (auto &t : threads)
        t.join();
    for (auto &g : got)
        EXPECT_EQ(0, memcmp(g.data(), logits.data(), logits.size() * sizeof(float)));
    for (size_t i = 0; i < N; i++)
        EXPECT_TRUE(want[i] == beside[i]);
}

} // namespace
