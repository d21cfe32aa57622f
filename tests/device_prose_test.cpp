/* A model of six layers that is not part of the repository: its greedy tokens on every device are the CPU's. */
#include "device_model_util.h"

TEST(DeviceProse, says_what_it_says_on_the_cpu)
{
    NEEDS_SHARED(prose, "models/prose-llama");
    const std::vector<std::string> prompts = {"And the king said", "It was a dark night and", "The old man"};
    for (const Case &c :
         {Case{"", "f16", 0.01f, 0}, Case{"w8a8-dynamic", "f16", 0.1f, 0}, Case{"w8a16", "f16", 0.01f, 0},
          Case{"w4a16", "f16", 0.01f, 0}, Case{"", "int8", 0.02f, 0}, Case{"w4a16", "int4", 0.5f, 1}})
        compare(prose, prompts, kTokens, c);
}
