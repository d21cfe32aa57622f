/* QuaRot on every device: a rotated model computes what the model computed, and runs in any batch. */
#include "device_model_util.h"
#include "values.h"

extern "C" {
#include "engine/rotate.h"
#include "model/build.h"
#include "model/checkpoint.h"
#include "model/sequence.h"
}

namespace
{

/* A checkpoint as a source of rotated, dense weights. */
struct Rotated {
    nbi_config cfg = {};
    nbi_checkpoint *ckpt = nullptr;
    nbi_rotation *r = nullptr;
    explicit Rotated(const std::string &path)
    {
        json_t *j = nullptr;
        char where[1100];
        EXPECT_NB_OK(nbi_model_json(&j, path.c_str(), where));
        EXPECT_NB_OK(nbi_config_parse(&cfg, j, where));
        json_decref(j);
        EXPECT_NB_OK(nbi_checkpoint_open(&ckpt, path.c_str()));
        EXPECT_NB_OK(nbi_rotation_create(&r, &cfg, ckpt, nullptr, 2));
    }
    ~Rotated()
    {
        nbi_rotation_free(r);
        nbi_checkpoint_close(ckpt);
    }
    Rotated(const Rotated &) = delete;

    static nb_status scheme(void *, const char *module, size_t, size_t, nbi_scheme *s, nbi_dtype *dense)
    {
        *s = {};
        s->rotate_in = strstr(module, "down_proj") != nullptr;
        *dense = NBI_F32;
        return NB_OK;
    }
    static nb_status linear(void *self, const char *module, size_t n, size_t k, bool bias, nbi_weight *out)
    {
        Rotated *f = (Rotated *)self;
        const char *from = f->cfg.tied && strcmp(module, "lm_head") == 0 ? "model.embed_tokens" : module;
        nb_status st = nbi_read_linear(out, f->ckpt, nullptr, from, n, k, bias);
        return st == NB_OK ? nbi_rotation_linear(f->r, module, out) : st;
    }
    static nb_status vector(void *self, const char *name, size_t, float *out)
    {
        Rotated *f = (Rotated *)self;
        float *x = nullptr;
        const nbi_tensor *t = nbi_checkpoint_find(f->ckpt, name);
        nb_status st = nbi_rotation_tensor(f->r, t, &x);
        if (st == NB_OK)
            memcpy(out, x, t->n_elements * sizeof *x);
        free(x);
        return st;
    }
    nb_model *model(const char *device)
    {
        nb_model *m = nullptr;
        nb_model_options o;
        nb_callbacks cb;
        nb_model_options_init(&o);
        o.device = device;
        o.threads = 2;
        EXPECT_NB_OK(nbi_model_new(&m, &o, &cb));
        m->cfg = cfg;
        m->cfg.tied = false;
        m->cfg.rotate_keys = true;
        const nbi_source source = {scheme, linear, vector, this};
        EXPECT_NB_OK(nbi_model_build(m, &source, &cb));
        return m;
    }
};

/* Biases everywhere, and orders with odd parts: hidden 3 * 32, heads 3 * 8, feed-forward 7 * 16. */
void random_model(const std::string &dir)
{
    struct Tensor {
        std::string name;
        std::vector<size_t> shape;
    };
    const size_t hidden = 96, q = 96, kv = 48, ffn = 112, vocab = 80;
    std::vector<Tensor> all = {{"lm_head.weight", {vocab, hidden}},
                               {"model.embed_tokens.weight", {vocab, hidden}},
                               {"model.norm.weight", {hidden}}};
    write_text(dir + "/config.json",
               R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":96,"intermediate_size":112,)"
               R"("num_attention_heads":4,"num_key_value_heads":2,"num_hidden_layers":2,"vocab_size":80,"head_dim":24,)"
               R"("rms_norm_eps":1e-5,"max_position_embeddings":256,"rope_theta":10000.0,"attention_bias":true,)"
               R"("mlp_bias":true,"tie_word_embeddings":false,"torch_dtype":"float32","hidden_act":"silu",)"
               R"("bos_token_id":0,"eos_token_id":1})");
    for (int i = 0; i < 2; i++) {
        const std::string layer = "model.layers." + std::to_string(i) + ".";
        for (const char *norm : {"input_layernorm.weight", "post_attention_layernorm.weight"})
            all.push_back({layer + norm, {hidden}});
        for (const Tensor &t : std::vector<Tensor>{{"self_attn.q_proj", {q, hidden}},
                                                   {"self_attn.k_proj", {kv, hidden}},
                                                   {"self_attn.v_proj", {kv, hidden}},
                                                   {"self_attn.o_proj", {hidden, q}},
                                                   {"mlp.gate_proj", {ffn, hidden}},
                                                   {"mlp.up_proj", {ffn, hidden}},
                                                   {"mlp.down_proj", {hidden, ffn}}}) {
            all.push_back({layer + t.name + ".weight", t.shape});
            all.push_back({layer + t.name + ".bias", {t.shape[0]}});
        }
    }
    nbi_st_writer *w = nullptr;
    ASSERT_NB_OK(nbi_st_writer_create(&w, dir.c_str(), 0));
    for (const Tensor &t : all)
        ASSERT_NB_OK(nbi_st_declare(w, t.name.c_str(), NBI_F32, (uint32_t)t.shape.size(), t.shape.data()));
    for (size_t i = 0; i < all.size(); i++) {
        const bool norm = all[i].name.find("norm") != std::string::npos;
        size_t n = 1;
        for (size_t d : all[i].shape)
            n *= d;
        std::vector<float> x = noise(n, i, norm ? 0.2f : 0.15f);
        for (float &f : x)
            f += norm ? 1 : 0;
        ASSERT_NB_OK(nbi_st_write(w, all[i].name.c_str(), x.data(), n * 4));
    }
    ASSERT_NB_OK(nbi_st_finish(w));
    nbi_st_writer_free(w);
}

struct Seen {
    nbi_backend *be;
    std::vector<float> down; /* inputs of down_proj, all layers */
};

nb_status tap(void *user, uint32_t, size_t p, const void *x, size_t rows, size_t k)
{
    Seen *s = (Seen *)user;
    const size_t at = s->down.size();
    if (p != NBI_DOWN)
        return NB_OK;
    s->down.resize(at + rows * k);
    return s->be->ops->download_act(s->be, s->down.data() + at, x, rows * k);
}

nb_status keep(void *user, size_t, size_t rows, const float *logits)
{
    auto *v = (std::pair<std::vector<float>, size_t> *)user;
    v->first.insert(v->first.end(), logits, logits + rows * v->second);
    return NB_OK;
}

std::vector<float> run(const nb_model *m, const std::vector<int32_t> &ids, Seen *seen)
{
    nbi_sequence *s = nullptr;
    std::pair<std::vector<float>, size_t> got{{}, m->cfg.vocab};
    seen->be = m->be;
    EXPECT_NB_OK(nbi_sequence_create(&s, m, ids.size(), 16, m->be->default_kv));
    EXPECT_NB_OK(nbi_sequence_run(s, ids.data(), ids.size(), keep, &got, tap, seen));
    nbi_sequence_free(s);
    return got.first;
}

double distance(const std::vector<float> &a, const std::vector<float> &b)
{
    double d = 0, most = 0;
    EXPECT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); i++) {
        d = std::max(d, (double)std::fabs(a[i] - b[i]));
        most = std::max(most, (double)std::fabs(a[i]));
    }
    return d / most;
}

const char *const kRecipe = R"({"weights": {"bits": 4, "group_size": 32}, "activations": {"strategy": "token"},
                                "rotate": true, "kv_dtype": "int4"})";

} // namespace

/* The rotation alone changes nothing but the rounding: of fp32 on the CPU, some 2^-24 times the square root of the operations on a
 * term's way; of halves on a GPU. */
TEST(DeviceRotated, the_function_of_a_model_stays)
{
    TempDir dir;
    random_model(dir.path());
    for (const std::string &path : {kDemo, dir.path()}) {
        Model plain(path, tested_device());
        Rotated rotated(path);
        nb_model *m = rotated.model(tested_device());
        std::vector<int32_t> ids;
        for (int i = 0; i < 18; i++)
            ids.push_back((int32_t)(nbi_rng(3, (uint64_t)i) % rotated.cfg.vocab));
        Seen a, b;
        const std::vector<float> want = run(plain.m, ids, &a), got = run(m, ids, &b);
        const double logits = distance(want, got), down = distance(a.down, b.down);
        printf("%s: logits %.2e apart, inputs of down_proj %.2e\n", path.c_str(), logits, down);
        EXPECT_LT(logits, on_cpu() ? 2e-5 : 2e-2);
        EXPECT_LT(down, on_cpu() ? 2e-5 : 2e-2); /* calibration sees them as they were before their own rotation */
        nb_model_free(m);
    }
}

/* Quantized, saved and loaded: the folder says which type of KV cache it was made for, and embeddings that were tied have come
 * apart.  Batches, chunks and recorded steps change no token. */
TEST(DeviceRotated, a_quantized_model_says_the_same_in_any_batch)
{
    TempDir dir;
    write_text(dir / "r.json", kRecipe);
    const std::string path = quantized(kDemo, dir / "r.json");
    Model m(path, tested_device());
    ASSERT_TRUE(m.m);
    EXPECT_TRUE(m.m->cfg.rotate_keys);
    EXPECT_FALSE(m.m->cfg.tied);
    EXPECT_EQ(NBI_KV_INT4, m.m->be->default_kv);
    Travel all, one;
    all.kv = one.kv = nullptr;
    one.max_batch = 1;
    one.chunk = 7;
    const std::vector<std::string> prompts(kDemoPrompts.begin(), kDemoPrompts.begin() + 2);
    const std::vector<Tokens> want = generate(m, prompts, 4, all), got = generate(m, prompts, 4, one);
    for (size_t p = 0; p < want.size(); p++)
        for (size_t i = 0; i < want[p].size(); i++) {
            EXPECT_EQ(want[p][i].id, got[p][i].id) << p << " " << i;
            EXPECT_EQ(want[p][i].logprob, got[p][i].logprob) << p << " " << i;
        }
    compare(kDemo, {prompts[0]}, 4, {(dir / "r.json").c_str(), "int4", 0.5f, 1});
}
