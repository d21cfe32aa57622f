/* Whole models on every device: greedy tokens and perplexity are the CPU's for every scheme and KV cache, and on one device the
 * bytes do not depend on batches, chunks of a prompt or preemption.
 *
 * Two devices round differently, so equal tokens are a matter of how far the best token leads: each case says how far the log
 * probabilities of the devices may be apart, and where tokens differ the message shows the lead. */
#include <cmath>
#include <map>

#include "testutil.h"

namespace
{

/* NB_TEST_DEVICE, see device_util.h; on the CPU the best instruction set is compared with the scalar one. */
const char *tested_device()
{
    const char *name = getenv("NB_TEST_DEVICE");
    return name ? name : "cpu";
}

bool on_cpu()
{
    return strcmp(tested_device(), "cpu") == 0;
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
    uint32_t max_batch = 8, chunk = 64, pages = 0;
    const char *kv = "f16";
    uint64_t preemptions = 0; /* out */
};

std::vector<int32_t> encode(const nb_model *m, const std::string &text)
{
    int32_t *ids = nullptr;
    size_t n = 0;
    EXPECT_NB_OK(nb_tokenize(nb_model_tokenizer(m), text.data(), text.size(), NB_TOKENIZE_SPECIAL, &ids, &n));
    std::vector<int32_t> v(ids, ids + n);
    nb_free(ids);
    return v;
}

std::vector<Tokens> generate(const Model &model, const std::vector<std::string> &prompts, uint32_t n, Travel &t)
{
    std::vector<Tokens> out(prompts.size());
    nb_engine *e = nullptr;
    nb_engine_options o;
    nb_engine_options_init(&o);
    o.max_batch = t.max_batch;
    o.prefill_chunk = t.chunk;
    o.max_context = 128;
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
const std::string &quantized(const std::string &source, const std::string &recipe)
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
        path = dir / std::to_string(made.size());
        EXPECT_NB_OK(nb_quantize(source.c_str(), path.c_str(), &o, nullptr));
    }
    return path;
}

struct Case {
    const char *recipe, *kv;
    float apart; /* log probabilities of the two devices */
};

const Case kCases[] = {
    {"", "f16", 0.03f},      {"w8a8-dynamic", "f16", 0.1f}, {"w8a16", "f16", 0.03f},
    {"w4a16", "f16", 0.03f}, {"", "int8", 0.03f},           {"w4a16", "int4", 0.1f},
};

void compare(const std::string &source, const std::vector<std::string> &prompts, uint32_t n, const Case &c)
{
    const std::string &path = quantized(source, c.recipe);
    Model cpu(path, "cpu", "scalar"), dev(path, tested_device());
    ASSERT_TRUE(cpu.m && dev.m);
    Travel t, u;
    t.kv = u.kv = c.kv;
    std::vector<Tokens> want = generate(cpu, prompts, n, t), got = generate(dev, prompts, n, u);
    float apart = 0, lead = INFINITY;
    for (size_t p = 0; p < prompts.size(); p++) {
        ASSERT_EQ(n, want[p].size());
        ASSERT_EQ(n, got[p].size());
        for (size_t i = 0; i < n; i++) {
            ASSERT_EQ(want[p][i].id, got[p][i].id)
                << "token " << i << " of \"" << prompts[p] << "\", " << c.recipe << " " << c.kv
                << ": the CPU's leads by " << want[p][i].lead << ", the device's by " << got[p][i].lead << "; so far "
                << apart << " apart";
            apart = std::max(apart, std::fabs(want[p][i].logprob - got[p][i].logprob));
            lead = std::min(lead, want[p][i].lead);
        }
    }
    printf("%-14s kv %-5s log probabilities at most %.5f apart, smallest lead %.5f\n", c.recipe, c.kv, (double)apart,
           (double)lead);
    EXPECT_LE(apart, on_cpu() ? 0 : c.apart);
}

const std::string kDemo = repo_file("configs/demo/model");
const std::vector<std::string> kDemoPrompts = {"Return a copy of the string", "If the optional argument",
                                               "When the file is opened,", "The exception is raised when"};
const std::vector<std::string> kProsePrompts = {"And the king said", "It was a dark night and", "The old man"};

} // namespace

TEST(DeviceModel, the_demo_model_says_what_it_says_on_the_cpu)
{
    for (const Case &c : kCases)
        compare(kDemo, kDemoPrompts, 16, c);
}

TEST(DeviceModel, the_prose_model_says_what_it_says_on_the_cpu)
{
    NEEDS_SHARED(prose, "models/prose-llama");
    for (const Case &c : kCases)
        compare(prose, kProsePrompts, 16, c);
}

TEST(DeviceModel, batches_chunks_and_preemption_give_the_same_bytes)
{
    for (const char *recipe : {"", "w8a8-dynamic"}) {
        Model m(quantized(kDemo, recipe), tested_device());
        ASSERT_TRUE(m.m);
        std::vector<Tokens> first;
        for (Travel t :
             {Travel{8, 64, 0, "int8"}, Travel{1, 3, 0, "int8"}, Travel{3, 5, 0, "int8"}, Travel{4, 64, 8, "int8"}}) {
            std::vector<Tokens> all = generate(m, kDemoPrompts, 28, t);
            if (first.empty())
                first = all;
            EXPECT_EQ(t.pages > 0, t.preemptions > 0) << t.preemptions << " in " << t.pages << " pages";
            for (size_t p = 0; p < all.size(); p++) {
                ASSERT_EQ(first[p].size(), all[p].size());
                ASSERT_EQ(0, memcmp(first[p].data(), all[p].data(), all[p].size() * sizeof(Token)))
                    << recipe << " batch " << t.max_batch << " chunk " << t.chunk << ": " << kDemoPrompts[p];
            }
        }
    }
}

TEST(DeviceModel, perplexity_is_that_of_the_cpu)
{
    const std::string text = repo_file("configs/demo/val.txt");
    for (const Case &c : kCases) {
        const std::string &path = quantized(kDemo, c.recipe);
        double ppl[2];
        for (int i = 0; i < 2; i++) {
            Model m(path, i ? tested_device() : "cpu", i ? nullptr : "scalar");
            nb_eval_options o;
            nb_eval_options_init(&o);
            o.text = text.c_str();
            o.ctx = 64;
            o.max_windows = 2;
            o.kv_dtype = c.kv;
            nb_eval_result r = {};
            r.struct_size = sizeof r;
            ASSERT_NB_OK(nb_eval(m.m, nullptr, &o, &r));
            ppl[i] = r.perplexity;
        }
        printf("%-14s kv %-5s perplexity %.4f and %.4f (%+.4f %%)\n", c.recipe, c.kv, ppl[0], ppl[1],
               100 * (ppl[1] / ppl[0] - 1));
        EXPECT_NEAR(std::log(ppl[0]), std::log(ppl[1]), on_cpu() ? 0 : c.apart / 4);
    }
}
