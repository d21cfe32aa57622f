/* The shipped model on every device: greedy tokens and perplexity are the CPU's for every scheme and KV cache, and on one device
 * the bytes do not depend on batches, chunks of a prompt or preemption. */
#include "device_model_util.h"

namespace
{

const std::string kDemo = repo_file("configs/demo/model");
const std::vector<std::string> kDemoPrompts = {"Return a copy of the string", "If the optional argument",
                                               "When the file is opened,", "The exception is raised when"};

} // namespace

TEST(DeviceModel, says_what_it_says_on_the_cpu)
{
    for (const Case &c :
         {Case{"", "f16", 0.01f, 0}, Case{"w8a8-dynamic", "f16", 0.2f, 0}, Case{"w8a16", "f16", 0.01f, 0},
          Case{"w4a16", "f16", 0.015f, 0}, Case{"", "int8", 0.05f, 0}, Case{"w4a16", "int4", 0.5f, 0}})
        compare(kDemo, kDemoPrompts, 16, c);
}

TEST(DeviceModel, batches_chunks_and_preemption_give_the_same_bytes)
{
    const char *const both[][2] = {{"", "int8"}, {"w8a8-dynamic", "f16"}};
    for (auto [recipe, kv] : both) {
        Model m(quantized(kDemo, recipe), tested_device());
        ASSERT_TRUE(m.m);
        std::vector<Tokens> first;
        for (Travel t :
             {Travel{8, 64, 32, 0, kv}, Travel{1, 3, 32, 0, kv}, Travel{3, 5, 32, 0, kv}, Travel{4, 64, 32, 5, kv}}) {
            std::vector<Tokens> all = generate(m, kDemoPrompts, 14, t);
            if (first.empty())
                first = all;
            EXPECT_EQ(t.pages > 0, t.preemptions > 0) << t.preemptions << " in " << t.pages << " pages";
            for (size_t p = 0; p < all.size(); p++) {
                ASSERT_EQ(14u, all[p].size());
                ASSERT_EQ(0, memcmp(first[p].data(), all[p].data(), all[p].size() * sizeof(Token)))
                    << recipe << " batch " << t.max_batch << " chunk " << t.chunk << ": " << kDemoPrompts[p];
            }
        }
    }
}

/* The mean of 126 differences as above, most of which cancel. */
TEST(DeviceModel, perplexity_is_that_of_the_cpu)
{
    const std::string text = repo_file("configs/demo/val.txt");
    for (const Case &c :
         {Case{"", "f16", 0.001f, 0}, Case{"w8a8-dynamic", "int8", 0.01f, 0}, Case{"w4a16", "int4", 0.02f, 0}}) {
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
        printf("%-13s kv %-5s perplexity %.4f and %.4f (%+.4f %%)\n", c.recipe, c.kv, ppl[0], ppl[1],
               100 * (ppl[1] / ppl[0] - 1));
        EXPECT_NEAR(std::log(ppl[0]), std::log(ppl[1]), on_cpu() ? 0 : (double)c.apart);
    }
}
