/* What the profile says of kernels whose traffic is known. */
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <unistd.h>
#include <vector>

#include "test/ptx_text.h"

namespace
{
/* Kernels are launched with the profiler on; then the profile file is looked into. */
class Profile : public ::testing::Test
{
  protected:
    void SetUp() override
    {
        if (!emu::Driver::get().emulated())
            GTEST_SKIP() << "only the emulator counts";
    }
    void TearDown() override { unlink(path_.c_str()); }

    static constexpr size_t N = 1 << 16;

    void run(const emu::Text &t, unsigned threads = 32, unsigned blocks = 1, unsigned launches = 1)
    {
        emu::Device device("9.0", {{"NB_EMU_PROFILE", path_.c_str()}});
        {
            emu::Buffer<uint8_t> a(N), b(N);
            a.zero();
            b.zero();
            for (unsigned k = 0; k < launches; k++)
                ASSERT_CU(emu::run(t, threads, a.p, b.p, 0, 0, blocks));
        }
        write();
    }
    void write()
    {
        auto write_profile =
            reinterpret_cast<int (*)(const char *)>(dlsym(emu::Driver::get().so, "ptxemu_write_profile"));
        ASSERT_EQ(0, write_profile(path_.c_str()));
        json_ = emu::read_file(path_);
    }
    /* The number behind the last key, which is looked for behind the one before, and so on. */
    double at(const std::vector<std::string> &keys) const
    {
        size_t p = 0;
        for (const std::string &key : keys) {
            p = json_.find("\"" + key + "\": ", p);
            if (p == std::string::npos) {
                ADD_FAILURE() << key << " is not in " << json_;
                return -1;
            }
            p += key.size() + 4;
        }
        return strtod(json_.c_str() + p, nullptr);
    }
    void expect_global(const char *what, double sectors, double ideal)
    {
        EXPECT_EQ(sectors, at({"global", std::string(what) + "_sectors"}));
        EXPECT_EQ(ideal, at({"global", std::string(what) + "_ideal_sectors"}));
    }

    std::string path_ = std::string(NIBBLE_BUILD_DIR) + "/emu_profile_test." + std::to_string(getpid()) + ".json";
    std::string json_;
};

std::string words_apart(unsigned n, const std::string &load = "ld.global.u32 %r0, [%d0];")
{
    return "mad.lo.u64 %d0, %t, " + std::to_string(n * 4) + ", %a;\n" + load;
}
} // namespace

TEST_F(Profile, SectorsOfStridedLoads)
{
    struct Case {
        unsigned words;
        double sectors, ideal;
    };
    for (const Case &c : {Case{0, 1, 1}, Case{1, 4, 4}, Case{2, 8, 4}, Case{3, 12, 4}, Case{4, 16, 4}, Case{8, 32, 4},
                          Case{9, 32, 4}, Case{32, 32, 4}}) {
        SCOPED_TRACE(c.words);
        run({words_apart(c.words)});
        expect_global("load", c.sectors, c.ideal);
        EXPECT_EQ(128, at({"global", "load_bytes"}));
        EXPECT_EQ(c.sectors * 32, at({"global", "l2_distinct_bytes"}));
    }
}

TEST_F(Profile, SectorsOfVectorsAndOfShiftedAccesses)
{
    run({words_apart(4, "ld.global.v4.u32 {%r0,%r1,%r2,%r3}, [%d0];")});
    expect_global("load", 16, 16);
    run({words_apart(1, "ld.global.u32 %r0, [%d0+4];")});
    expect_global("load", 5, 4);
    run({"add.u64 %d0, %t, %a;\nld.global.u8 %r0, [%d0];"});
    expect_global("load", 1, 1);
    run({"xor.b64 %d0, %t, 21;\nmad.lo.u64 %d0, %d0, 4, %a;\nld.u32 %r0, [%d0];"});
    expect_global("load", 4, 4);
    run({"setp.lt.u32 %p0, %i, 8;\nmad.lo.u64 %d0, %t, 4, %a;\n@%p0 ld.global.u32 %r0, [%d0];"});
    expect_global("load", 1, 1);
}

TEST_F(Profile, StoresAndLoadsAreApart)
{
    run({words_apart(2, "st.global.u32 [%d0], 1;\nst.global.u32 [%d0], 2;")});
    expect_global("load", 0, 0);
    expect_global("store", 16, 8);
    EXPECT_EQ(256, at({"global", "store_bytes"}));
    EXPECT_EQ(256, at({"global", "l2_distinct_bytes"})) << "the second store meets the same sectors";
    EXPECT_EQ(0.5, at({"global", "store_efficiency"}));
}

TEST_F(Profile, BankConflictsOfStridedAccesses)
{
    struct Case {
        unsigned words;
        double wavefronts;
    };
    for (const Case &c :
         {Case{0, 1}, Case{1, 1}, Case{2, 2}, Case{4, 4}, Case{8, 8}, Case{16, 16}, Case{32, 32}, Case{33, 1}}) {
        SCOPED_TRACE(c.words);
        run({"mul.lo.u32 %r1, %i, " + std::to_string(c.words * 4) +
                 ";\nmov.u32 %r2, tile;\nadd.u32 %r1, %r1, %r2;\nst.shared.u32 [%r1], 1;",
             "", ".shared .align 16 .b8 tile[8192];\n"});
        EXPECT_EQ(c.wavefronts, at({"shared", "wavefronts"}));
        EXPECT_EQ(1, at({"shared", "ideal_wavefronts"}));
        EXPECT_EQ(c.wavefronts - 1, at({"shared", "conflicts"}));
    }
}

TEST_F(Profile, BankConflictsOfVectorsAndGenericAddresses)
{
    const std::string locals = ".shared .align 16 .b8 tile[8192];\n";
    run({"mul.lo.u32 %r1, %i, 16;\nmov.u32 %r2, tile;\nadd.u32 %r1, %r1, %r2;\nst.shared.v4.u32 [%r1], {1,2,3,4};\n"
         "ld.shared.v4.u32 {%r3,%r4,%r5,%r6}, [%r1];",
         "", locals});
    EXPECT_EQ(8, at({"shared", "wavefronts"}));
    EXPECT_EQ(8, at({"shared", "ideal_wavefronts"}));
    run({"mov.u64 %d0, tile;\ncvta.shared.u64 %d0, %d0;\nmad.lo.u64 %d0, %t, 128, %d0;\nst.u32 [%d0], 1;", "", locals});
    EXPECT_EQ(32, at({"shared", "wavefronts"}));
    EXPECT_EQ(0, at({"global", "store_sectors"}));
}

TEST_F(Profile, InstructionsByClassAndLanes)
{
    run({"add.u32 %r0, %i, 1;\nsetp.lt.u32 %p0, %i, 8;\n@%p0 add.u32 %r0, %r0, 1;\n@%p0 bra END;\n"
         "add.u32 %r0, %r0, 2;\nEND:\nadd.u32 %r0, %r0, 3;"},
        64);
    EXPECT_EQ(1, at({"divergent_branches"})) << "in the second warp no lane jumps";
    const double warp = at({"warp_instructions"}), thread = at({"thread_instructions"});
    EXPECT_NEAR(thread / warp, at({"lanes_per_instruction"}), 1e-3);
    EXPECT_LT(at({"lanes_per_instruction"}), 32);
    EXPECT_GT(at({"instructions", "integer", "warp"}), 0);
}

TEST_F(Profile, LinesOfTheSourceWithTheWorstFirst)
{
    run({".loc 1 10 0\nmad.lo.u64 %d0, %t, 4, %a;\n.loc 1 11 0\nld.global.u32 %r0, [%d0];\n"
         ".loc 1 12 0\nmad.lo.u64 %d0, %t, 32, %a;\nld.global.u32 %r0, [%d0];\n"
         ".loc 1 13 0\nmul.lo.u32 %r1, %i, 16;\nmov.u32 %r2, tile;\nadd.u32 %r1, %r1, %r2;\nst.shared.u32 [%r1], 1;",
         ".file 1 \"somewhere/kernel.cu\"\n", ".shared .align 16 .b8 tile[2048];\n"});
    EXPECT_EQ(12, at({"lines", "line"}));
    EXPECT_EQ(32, at({"lines", "global_sectors"}));
    EXPECT_EQ(4, at({"lines", "global_ideal_sectors"}));
    EXPECT_EQ(13, at({"lines", "line", "line"}));
    EXPECT_EQ(4, at({"lines", "line", "line", "shared_wavefronts"}));
    EXPECT_EQ(1, at({"lines", "line", "line", "shared_ideal_wavefronts"}));
    EXPECT_NE(std::string::npos, json_.find("\"somewhere/kernel.cu\""));
}

TEST_F(Profile, LaunchesOfOneShapeAreAddedUp)
{
    run({words_apart(1)}, 32, 3, 5);
    EXPECT_EQ(5, at({"launches"}));
    expect_global("load", 5 * 3 * 4, 5 * 3 * 4);
    EXPECT_EQ(5 * 128, at({"global", "l2_distinct_bytes"})) << "what the blocks of a launch share is counted once";
    EXPECT_NE(std::string::npos, json_.find("\"grid\": [3, 1, 1], \"block\": [32, 1, 1]"));
    EXPECT_EQ(std::string::npos, json_.find("\"kernel\"", json_.find("\"kernel\"") + 1));
}

TEST_F(Profile, TensorOperationsBarriersAndCopiesInFlight)
{
    run({"mov.b32 %r0, 0;\nmov.b32 %f0, 0f00000000;\n"
         "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4}, {%r0,%r0,%r0,%r0}, {%r0,%r0}, "
         "{%f0,%f0,%f0,%f0};\n"
         "bar.sync 0;\nbar.sync 0;\nmul.lo.u32 %r1, %i, 16;\nmov.u32 %r2, tile;\nadd.u32 %r1, %r1, %r2;\n"
         "mad.lo.u64 %d0, %t, 16, %a;\ncp.async.cg.shared.global [%r1], [%d0], 16;\ncp.async.commit_group;\n"
         "cp.async.wait_group 0;\ncp.async.cg.shared.global [%r1], [%d0], 16;\ncp.async.commit_group;\n"
         "cp.async.wait_group 0;",
         "", ".shared .align 16 .b8 tile[2048];\n"},
        64);
    EXPECT_EQ(2 * 2 * 16 * 8 * 16, at({"tensor_ops"}));
    EXPECT_EQ(4, at({"barriers"})) << "each warp arrives twice";
    EXPECT_EQ(2 * 1024, at({"async", "bytes"}));
    EXPECT_LE(512, at({"async", "max_bytes_in_flight"}));
    EXPECT_GE(1024, at({"async", "max_bytes_in_flight"}));
}

TEST_F(Profile, TheReportIsATableForPeople)
{
    run({".loc 1 12 0\n" + words_apart(8), ".file 1 \"somewhere/kernel.cu\"\n"}, 32, 2);
    const std::string command = "python3 " NIBBLE_SOURCE_DIR "/benchmarks/emu_report.py " + path_ + " --lines 3 2>&1";
    FILE *f = popen(command.c_str(), "r");
    ASSERT_NE(nullptr, f);
    std::string out;
    char line[512];
    while (fgets(line, sizeof line, f))
        out += line;
    EXPECT_EQ(0, pclose(f)) << out;
    for (const char *part : {"== k, 2 / 32", "load global", "global loads", "2.0 KiB", "256 B", "12%", "kernel.cu:12"})
        EXPECT_NE(std::string::npos, out.find(part)) << part << " is not in\n" << out;
}

TEST_F(Profile, AFileThatCannotBeWrittenIsReported)
{
    auto write_profile = reinterpret_cast<int (*)(const char *)>(dlsym(emu::Driver::get().so, "ptxemu_write_profile"));
    EXPECT_NE(0, write_profile("/nowhere/at/all.json"));
    EXPECT_NE(0, write_profile(""));
}

TEST_F(Profile, NothingIsCountedWithoutTheProfiler)
{
    {
        emu::Device device;
        emu::Buffer<uint8_t> a(N);
        a.zero();
        ASSERT_CU(emu::run({words_apart(1)}, 32, a.p));
    }
    write();
    EXPECT_EQ(std::string::npos, json_.find("\"kernel\""));
}
