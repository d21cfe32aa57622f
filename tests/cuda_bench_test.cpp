/* The micro-benchmarks as a rehearsal: every operation of the CUDA backend runs, each line is what report.py reads, and every
 * checked product is near the one in double.  The times mean nothing here. */
#include <jansson.h>

#include <cmath>
#include <map>
#include <set>

#include "testutil.h"

namespace
{

std::vector<json_t *> run(const std::string &flags, int *status)
{
    const std::string bench = std::string(NIBBLE_BUILD_DIR) + "/nibble_gpu_bench " + flags;
    std::vector<json_t *> lines;
    char line[4096];
    FILE *f = popen(bench.c_str(), "r");
    while (f && fgets(line, sizeof line, f)) {
        json_t *j = json_loads(line, 0, nullptr);
        EXPECT_TRUE(j) << line;
        if (j)
            lines.push_back(j);
    }
    *status = f ? pclose(f) : -1;
    return lines;
}

std::string text(const json_t *line, const char *key)
{
    const char *s = json_string_value(json_object_get(line, key));
    return s ? s : "";
}

TEST(GpuBench, a_rehearsal_measures_everything)
{
    const char *driver = getenv("NB_CUDA_DRIVER");
    const bool emulated = driver && strstr(driver, "ptxemu");
    if (emulated)
        setenv("NB_CUBLASLT", NIBBLE_DRIVER_DIR "/libptxemu_cublaslt.so", 1);
    int status;
    std::vector<json_t *> lines = run("--quick", &status);
    EXPECT_EQ(0, status);
    std::map<std::string, int> sections;
    std::set<std::string> kinds, caches, names;
    for (json_t *j : lines) {
        const std::string section = text(j, "section");
        sections[section]++;
        kinds.insert(text(j, "kind"));
        caches.insert(text(j, "kv"));
        names.insert(text(j, "name"));
        if (section == "note") { /* a GPU without the library */
            EXPECT_TRUE(!emulated && text(j, "text").find("cuBLASLt") != std::string::npos) << text(j, "text");
        } else if (section != "device") {
            EXPECT_GT(json_number_value(json_object_get(j, "us")), 0) << section;
        }
        if (json_t *off = json_object_get(j, "max_error")) {
            /* an fp16 result: 2^-11, and sums of at most 192 terms on tensor cores that may truncate */
            EXPECT_LT(json_number_value(off), 0.004) << text(j, "layer") << " " << text(j, "kind");
            EXPECT_TRUE(!emulated || (json_object_get(j, "vs_cublaslt_f16") && json_object_get(j, "vs_cublaslt_int8")));
        }
        json_decref(j);
    }
    EXPECT_EQ(1, sections["device"]);
    EXPECT_TRUE(!emulated || (kinds.count("cublaslt-f16") && kinds.count("cublaslt-int8")));
    for (const char *kind : {"dense", "w8a16", "w4a16-g128", "w8a8", "w4a8-g128"})
        EXPECT_TRUE(kinds.count(kind)) << kind;
    for (const char *kv : {"f16", "int8", "int4"})
        EXPECT_TRUE(caches.count(kv)) << kv;
    for (const char *name : {"rmsnorm", "swiglu + quantize", "sample greedy"})
        EXPECT_TRUE(names.count(name)) << name;
}

TEST(GpuBench, no_time_means_few_lines_and_a_note)
{
    int status;
    std::vector<json_t *> lines = run("--quick --seconds 0", &status);
    EXPECT_EQ(0, status);
    ASSERT_FALSE(lines.empty());
    EXPECT_NE(std::string::npos, text(lines.back(), "text").find("time was up"));
    for (json_t *j : lines) {
        EXPECT_NE("linear", text(j, "section"));
        json_decref(j);
    }
}

TEST(GpuBench, a_missing_library_is_a_note)
{
    setenv("NB_CUBLASLT", "/nowhere/libcublasLt.so", 1);
    int status;
    std::vector<json_t *> lines = run("--quick --only linear", &status);
    EXPECT_EQ(0, status);
    int notes = 0;
    for (json_t *j : lines) {
        notes += text(j, "text").find("/nowhere/libcublasLt.so") != std::string::npos;
        json_decref(j);
    }
    EXPECT_EQ(1, notes);
    unsetenv("NB_CUBLASLT");
}

} // namespace
