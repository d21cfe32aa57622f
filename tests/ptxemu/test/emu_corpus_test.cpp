/* The corpus: what CUDA projects use (CUB, cooperative groups, libcu++, half precision, the whole language), in kernels that check
 * themselves.  A new kernel in kernels/corpus_NAME.cu needs nothing here; a new file needs a line in `files`. */
#include <random>
#include <regex>

#include "emu.h"

namespace
{
struct File {
    const char *name, *arch, *cc;
};
void PrintTo(const File &f, std::ostream *o)
{
    *o << f.name << " sm_" << f.arch << " on " << f.cc;
}

constexpr File files[] = {
    {"corpus_cub", "75", "7.5"},       {"corpus_groups", "90a", "9.0"}, {"corpus_library", "90a", "9.0"},
    {"corpus_half", "80", "8.0"},      {"corpus_half", "80", "9.0"},    {"corpus_language", "75", "8.6"},
    {"corpus_language", "90a", "9.0"}, {"corpus_math", "80", "8.9"},    {"corpus_llm", "80", "8.0"},
    {"corpus_llm", "80", "9.0"},
};

/* A kernel's name says how to launch it: t_NAME[_gGRID][_bBLOCK][_coop]. */
struct Kernel {
    std::string name;
    unsigned number(const char *letter, unsigned otherwise) const
    {
        std::smatch m;
        return std::regex_search(name, m, std::regex(std::string("_") + letter + "([0-9]+)(_|$)")) ? std::stoi(m[1])
                                                                                                   : otherwise;
    }
    bool cooperative() const { return name.find("_coop") != std::string::npos; }
};

std::vector<Kernel> kernels_of(const std::string &ptx)
{
    static const std::regex entry("\\.entry\\s+(t_\\w+)");
    std::vector<Kernel> v;
    for (std::sregex_iterator it(ptx.begin(), ptx.end(), entry), end; it != end; ++it)
        v.push_back({(*it)[1]});
    return v;
}

CUresult launch(CUfunction f, const Kernel &k, CUdeviceptr out, CUdeviceptr in)
{
    const unsigned grid = k.number("g", 1), block = k.number("b", 128);
    if (!k.cooperative())
        return emu::launch(f, grid, block, 0, out, in);
    void *arguments[] = {&out, &in};
    const CUresult r = CU(cuLaunchCooperativeKernel)(f, grid, 1, 1, block, 1, 1, 0, nullptr, arguments);
    return r == CUDA_SUCCESS ? CU(cuCtxSynchronize)() : r;
}

class Corpus : public testing::TestWithParam<File>
{
};

TEST_P(Corpus, RunsWithoutAFaultAndChecksItself)
{
    const File file = GetParam();
    const std::string ptx = emu::kernel_ptx(file.name, file.arch);
    const std::vector<Kernel> kernels = kernels_of(ptx);
    if (kernels.empty())
        GTEST_SKIP() << "the toolkit has no headers for it";
    std::mt19937 random(5);
    std::vector<unsigned> words(65536);
    for (unsigned &w : words)
        w = unsigned(random());
    emu::Device device(file.cc);
    emu::Module module(ptx);
    emu::Buffer<unsigned> in(words), out(1024);
    for (const Kernel &k : kernels) {
        SCOPED_TRACE(k.name);
        out.zero();
        ASSERT_CU(launch(module.get(k.name.c_str()), k, out.p, in.p));
        const std::vector<unsigned> o = out.get();
        EXPECT_EQ(0u, o[0]) << "of " << o[2] << " comparisons; the first at line " << o[1] << ": got 0x" << std::hex
                            << o[3] << ", expected 0x" << o[4];
        EXPECT_GT(o[2], 0u);
    }
}
INSTANTIATE_TEST_SUITE_P(, Corpus, testing::ValuesIn(files), [](const testing::TestParamInfo<File> &f) {
    std::string cc = f.param.cc;
    cc.erase(1, 1);
    return std::string(f.param.name + strlen("corpus_")) + "_sm" + f.param.arch + "_on_" + cc;
});
} // namespace
