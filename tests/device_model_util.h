/* What the tests of whole models share: loading one, generating from it, comparing two devices token by token. */
#pragma once

#include <cmath>
#include <map>

#include "testutil.h"

namespace
{

/* NB_TEST_DEVICE, see device_util.h; on the CPU the best instruction set is compared with the scalar one. */
inline const char *tested_device()
{
    const char *name = getenv("NB_TEST_DEVICE");
    return name ? name : "cpu";
}

inline bool on_cpu()
{
    return strcmp(tested_device(), "cpu") == 0;
}

/* Is the device the stand-in of the tests?  It computes the same bits everywhere. */
inline bool emulated()
{
    const char *driver = getenv("NB_CUDA_DRIVER");
    return driver && strstr(driver, "ptxemu");
}

struct Model {
    nb_model *m = nullptr;
    Model(const std::string &path, const char *device, const char *isa = nullptr)
    {
        nb_model_options o;
        nb_model_options_init(&o);
        o.device = device;
        o.threads = 1;
        if (isa)
            setenv("NB_CPU_ISA", isa, 1);
        EXPECT_NB_OK(nb_model_load(&m, path.c_str(), &o));
        unsetenv("NB_CPU_ISA");
    }
    ~Model() { nb_model_free(m); }
    Model(const Model &) = delete;
    Model &operator=(const Model &) = delete;
};

struct Token {
    int32_t id;
    float logprob, lead; /* over the second */
};
typedef std::vector<Token> Tokens;

/* How requests travel: nothing of it may show in the tokens. */
struct Travel {
    uint32_t max_batch = 8, chunk = 64, context = 128, pages = 0;
    const char *kv = "f16";
    uint64_t preemptions = 0; /* out */
};

inline std::vector<int32_t> encode(const nb_model *m, const std::string &text)
{
    int32_t *ids = nullptr;
    size_t n = 0;
    EXPECT_NB_OK(nb_tokenize(nb_model_tokenizer(m), text.data(), text.size(), NB_TOKENIZE_SPECIAL, &ids, &n));
    std::vector<int32_t> v(ids, ids + n);
    nb_free(ids);
    return v;
}

inline std::vector<Tokens> generate(const Model &model, const std::vector<std::string> &prompts, uint32_t n, Travel &t)
{
    std::vector<Tokens> out(prompts.size());
    nb_engine *e = nullptr;
    nb_engine_options o;
    nb_engine_options_init(&o);
    o.max_batch = t.max_batch;
    o.prefill_chunk = t.chunk;
    o.max_context = t.context;
    o.kv_pages = t.pages;
    o.kv_dtype = t.kv;
    EXPECT_NB_OK(nb_engine_create(&e, model.m, &o));
    if (!e)
        return out;
    for (size_t i = 0; i < prompts.size(); i++) {
        std::vector<int32_t> ids = encode(model.m, prompts[i]);
        nb_request r;
        nb_request_init(&r);
        r.prompt = ids.data();
        r.n_prompt = ids.size();
        r.max_tokens = n;
        r.ignore_eos = 1;
        r.logprobs = 2;
        uint64_t id;
        EXPECT_NB_OK(nb_engine_submit(e, &r, &out[i], &id));
    }
    for (size_t left = prompts.size(); left;) {
        const nb_event *ev = nullptr;
        size_t k = 0;
        nb_status st = nb_engine_step(e, &ev, &k);
        EXPECT_NB_OK(st);
        if (st != NB_OK)
            break;
        for (size_t i = 0; i < k; i++) {
            if (ev[i].type == NB_EVENT_TOKEN)
                ((Tokens *)ev[i].user)
                    ->push_back({ev[i].token, ev[i].logprob, ev[i].top[0].logprob - ev[i].top[1].logprob});
            else
                left--;
            EXPECT_NE(NB_EVENT_FAILED, ev[i].type) << (ev[i].error ? ev[i].error : "");
        }
    }
    nb_engine_stats s = {};
    s.struct_size = sizeof s;
    EXPECT_NB_OK(nb_engine_get_stats(e, &s));
    t.preemptions = s.preemptions;
    nb_engine_free(e);
    return out;
}

/* The shipped model, or a quantized copy of one; each is made once in a run of the program. */
inline const std::string &quantized(const std::string &source, const std::string &recipe)
{
    static TempDir dir;
    static std::map<std::string, std::string> made;
    std::string &path = made[source + " " + recipe];
    if (path.empty() && recipe.empty())
        path = source;
    if (path.empty()) {
        nb_quantize_options o;
        nb_quantize_options_init(&o);
        o.recipe = recipe.c_str();
        o.device = "cpu";
        const std::string text = repo_file("configs/demo/val.txt");
        if (recipe == "w4-spqr" || recipe == "llm-int8") { /* the others look at weights alone */
            o.calib = text.c_str();
            o.calib_tokens = 512;
            o.calib_ctx = 128;
        }
        path = dir / std::to_string(made.size());
        EXPECT_NB_OK(nb_quantize(source.c_str(), path.c_str(), &o, nullptr));
    }
    return path;
}

/* A scheme and a KV cache, and how far apart the log probabilities of two devices may be.
 *
 * A GPU keeps activations in half precision: about 2^-11 of an activation here and there moves a logit of these models
 * by some thousandths.  Where numbers become codes at run time, such a difference turns now and then into another code,
 * a whole step of 1/127 of the largest activation (or key, or value) and for INT4 of 1/15 of a range.  The limits are
 * three to five times what was measured on the emulated sm_80. */
struct Case {
    const char *recipe, *kv;
    float apart;
    size_t ties; /* on the emulator: prompts that end at a tie */
};

/* Tokens that a prompt is continued by. */
constexpr uint32_t kTokens = kSanitized ? 3 : 16;

/* Greedy tokens of both devices are equal, up to a tie: a token may differ where the CPU's leads by less than the
 * devices are apart, and the prompt ends there.  The lines it prints say what was found. */
inline void compare(const std::string &source, const std::vector<std::string> &prompts, uint32_t n, const Case &c)
{
    const std::string &path = quantized(source, c.recipe);
    Model cpu(path, "cpu", "scalar"), dev(path, tested_device());
    ASSERT_TRUE(cpu.m && dev.m);
    Travel t, u;
    t.kv = u.kv = c.kv;
    std::vector<Tokens> want = generate(cpu, prompts, n, t), got = generate(dev, prompts, n, u);
    float apart = 0, lead = INFINITY;
    size_t ties = 0, compared = 0;
    for (size_t p = 0; p < prompts.size(); p++) {
        ASSERT_EQ(n, want[p].size());
        ASSERT_EQ(n, got[p].size());
        for (size_t i = 0; i < n; i++) {
            if (want[p][i].id != got[p][i].id) {
                printf("token %zu of \"%s\": the CPU's leads by %.5f, the device's by %.5f\n", i, prompts[p].c_str(),
                       (double)want[p][i].lead, (double)got[p][i].lead);
                EXPECT_LE(want[p][i].lead, c.apart) << c.recipe << " kv " << c.kv << ": that is no tie";
                ties++;
                break;
            }
            apart = std::max(apart, std::fabs(want[p][i].logprob - got[p][i].logprob));
            lead = std::min(lead, want[p][i].lead);
            compared++;
        }
    }
    printf("%-13s kv %-5s %zu tokens equal, log probabilities at most %.5f apart, smallest lead %.5f, %zu ties\n",
           c.recipe, c.kv, compared, (double)apart, (double)lead, ties);
    EXPECT_LE(apart, on_cpu() ? 0 : c.apart);
    EXPECT_LE(ties, on_cpu() ? 0 : emulated() ? c.ties : prompts.size() / 2);
}

/* The shipped model and text for it. */
inline const std::string kDemo = repo_file("configs/demo/model");
inline const std::vector<std::string> kDemoPrompts = {"Return a copy of the string", "If the optional argument",
                                                      "When the file is opened,", "The exception is raised when"};

} // namespace
