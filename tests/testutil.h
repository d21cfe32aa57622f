/* What every test file shares: where the data lies, temporary folders, reading errors. */
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "nibble.h"

/* With AddressSanitizer (./dev sanitize) a program takes five times as long; whoever calls the same code again and again finds the
 * same there.  Tests that run whole programs do less of it. */
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

/* On an emulated CPU (./dev test-arm) a test takes fewer sizes of the same kinds. */
inline bool emulated_cpu()
{
    return getenv("NB_TEST_EMULATED_CPU") != nullptr;
}

/* ../shared/data holds real models and tokenizers; it is not part of the repository. */
inline std::string shared_data(const std::string &name)
{
    const char *env = getenv("NIBBLE_SHARED_DATA");
    std::string root = env ? env : std::string(NIBBLE_SOURCE_DIR) + "/../shared/data";
    std::string p = root + "/" + name;
    return std::filesystem::exists(p) ? p : std::string();
}
#define NEEDS_SHARED(var, name)                                                                                        \
    std::string var = shared_data(name);                                                                               \
    if (var.empty())                                                                                                   \
    GTEST_SKIP() << "shared data not present: " << name

inline std::string repo_file(const std::string &name)
{
    return std::string(NIBBLE_SOURCE_DIR) + "/" + name;
}

/* A folder that goes away with the object. */
class TempDir
{
  public:
    TempDir()
    {
        char t[] = "/tmp/nibble-test-XXXXXX";
        path_ = mkdtemp(t);
    }
    ~TempDir() { std::filesystem::remove_all(path_); }
    TempDir(const TempDir &) = delete;
    TempDir &operator=(const TempDir &) = delete;
    std::string operator/(const std::string &name) const { return path_ + "/" + name; }
    const std::string &path() const { return path_; }

  private:
    std::string path_;
};

inline std::string read_text(const std::string &path)
{
    std::ifstream f(path, std::ios::binary);
    std::stringstream s;
    s << f.rdbuf();
    return s.str();
}
inline void write_text(const std::string &path, const std::string &text)
{
    std::ofstream f(path, std::ios::binary);
    f << text;
}

/* The call fails with this status and its sentence mentions `part`. */
#define EXPECT_FAILS(expected, part, call)                                                                             \
    do {                                                                                                               \
        EXPECT_EQ(expected, (call));                                                                                   \
        EXPECT_NE(std::string(nb_last_error()).find(part), std::string::npos) << "error text: " << nb_last_error();    \
    } while (0)
#define ASSERT_NB_OK(call) ASSERT_EQ(NB_OK, (call)) << nb_last_error()
#define EXPECT_NB_OK(call) EXPECT_EQ(NB_OK, (call)) << nb_last_error()
