/* The shipped model on every device: the bytes do not depend on batches, chunks of a prompt or preemption. */
#include "device_model_util.h"

TEST(DeviceBatch, batches_chunks_and_preemption_give_the_same_bytes)
{
    const uint32_t n = 11; /* with their prompts: two pages each */
    const char *const both[][2] = {{"", "int8"}, {"w8a8-dynamic", "f16"}};
    for (auto [recipe, kv] : both) {
        Model m(quantized(kDemo, recipe), tested_device());
        ASSERT_TRUE(m.m);
        std::vector<Tokens> first;
        for (Travel t :
             {Travel{8, 64, 32, 0, kv}, Travel{1, 3, 32, 0, kv}, Travel{3, 5, 32, 0, kv}, Travel{4, 64, 32, 5, kv}}) {
            std::vector<Tokens> all = generate(m, kDemoPrompts, n, t);
            if (first.empty())
                first = all;
            EXPECT_EQ(t.pages > 0, t.preemptions > 0) << t.preemptions << " in " << t.pages << " pages";
            for (size_t p = 0; p < all.size(); p++) {
                ASSERT_EQ(n, all[p].size());
                ASSERT_EQ(0, memcmp(first[p].data(), all[p].data(), all[p].size() * sizeof(Token)))
                    << recipe << " batch " << t.max_batch << " chunk " << t.chunk << ": " << kDemoPrompts[p];
            }
        }
    }
}
