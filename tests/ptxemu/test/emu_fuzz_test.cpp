/* Random programs of fuzz.py: what the emulator makes of nvcc's PTX, against the same text compiled for the host, bit for bit. */
#include <random>

#include "emu.h"

#include <fuzz_host.h> /* which fuzz.py writes */

namespace
{
std::vector<uint32_t> inputs(unsigned seed)
{
    static const uint32_t edges[] = {0,          1,          2,          31,         32,         255,
                                     0x7fffffff, 0x80000000, 0xffffffff, 0x3f800000, 0x00800000, 0x7f7fffff};
    std::mt19937 random(seed);
    std::vector<uint32_t> v(FUZZ_BLOCK * FUZZ_INPUTS);
    for (uint32_t &x : v)
        x = random() % 3 ? uint32_t(random()) >> (random() % 32) : edges[random() % (sizeof edges / sizeof edges[0])];
    return v;
}

void compare(const FuzzCase &c, CUfunction f, unsigned seed)
{
    const std::vector<uint32_t> in = inputs(seed);
    std::vector<uint32_t> expected(size_t(c.words) * FUZZ_BLOCK);
    c.run(expected.data(), in.data());
    emu::Buffer<uint32_t> out(expected.size()), device_in(in);
    ASSERT_CU(emu::launch(f, 1, FUZZ_BLOCK, 0, out.p, device_in.p));
    const std::vector<uint32_t> got = out.get();
    size_t wrong = 0;
    for (size_t i = 0; i < got.size(); i++)
        if (got[i] != expected[i] && wrong++ < 3)
            ADD_FAILURE() << "input " << seed << ", thread " << i % FUZZ_BLOCK << ", word " << i / FUZZ_BLOCK
                          << std::hex << ": got 0x" << got[i] << ", the host says 0x" << expected[i];
}

void compare_all(const std::string &ptx)
{
    emu::Device device("9.0");
    emu::Module module(emu::read_file(ptx));
    for (const FuzzCase &c : fuzz_cases)
        for (unsigned seed = 1; seed <= 3; seed++) {
            SCOPED_TRACE(c.name);
            compare(c, module.get(c.name), seed);
        }
}

/* PTXEMU_FUZZ_PTX: of `fuzz.py run`, which compiles this file again for each batch of programs. */
TEST(Fuzz, OptimisedProgramsDoWhatTheHostDoes)
{
    const char *path = getenv("PTXEMU_FUZZ_PTX");
    compare_all(path ? path : NIBBLE_BUILD_DIR "/ptx/fuzz_sm80.ptx");
}

TEST(Fuzz, HardlyOptimisedProgramsDoWhatTheHostDoes)
{
    if (getenv("PTXEMU_FUZZ_PTX"))
        GTEST_SKIP();
    compare_all(NIBBLE_BUILD_DIR "/ptx/fuzz_sm80_O1.ptx");
}
} // namespace
