/* The shipped model on every device: greedy tokens and perplexity are the CPU's for every scheme and KV cache. */
#include "device_model_util.h"

TEST(DeviceModel, says_what_it_says_on_the_cpu)
{
    for (const Case &c :
         {Case{"", "f16", 0.01f, 0}, Case{"w8a8-dynamic", "f16", 0.2f, 0}, Case{"w8a16", "f16", 0.01f, 0},
          Case{"w4a16", "f16", 0.015f, 0}, Case{"", "int8", 0.05f, 0}, Case{"w4a16", "int4", 0.5f, 0},
          Case{"w4-spqr", "f16", 0.015f, 0}, Case{"llm-int8", "f16", 0.2f, 0}})
        compare(kDemo, kDemoPrompts, kTokens, c);
}

/* The mean of 126 differences as above, most of which cancel. */
TEST(DeviceModel, perplexity_is_that_of_the_cpu)
{
    const std::string text = repo_file("configs/demo/val.txt");
    for (const Case &c :
         {Case{"", "f16", 0.0003f, 0}, Case{"w8a8-dynamic", "int8", 0.005f, 0}, Case{"w4a16", "int4", 0.006f, 0}}) {
        if (kSanitized && strcmp(c.kv, "int4") != 0)
            continue;
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
