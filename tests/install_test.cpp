/* What `make install` leaves can be used from C and C++, through pkg-config and through CMake. */
#include "testutil.h"

#include <unistd.h>

namespace
{

/* One a process: two test runs may share the machine. */
std::string log_path()
{
    return testing::TempDir() + "nibble-install-" + std::to_string(getpid()) + ".log";
}

int sh(const std::string &command)
{
    return std::system((command + " >" + log_path() + " 2>&1").c_str());
}

const char *const PROGRAM = R"(
#include <nibble.h>
#include <stdio.h>
#include <string.h>
int main(void)
{
    nb_tokenizer *t = NULL;
    nb_status st = nb_tokenizer_load(&t, "no/such/folder");
    puts(nb_last_error());
    return st == NB_OK || !strstr(nb_last_error(), "no/such/folder") || strcmp(nb_version(), NIBBLE_VERSION) != 0;
}
)";

class Install : public testing::Test
{
  protected:
    static void SetUpTestSuite()
    {
        dir = new TempDir;
        ASSERT_EQ(0, sh(std::string("cmake --install ") + NIBBLE_BUILD_DIR + " --prefix " + (*dir / "usr")));
        write_text(*dir / "p.c", PROGRAM);
        write_text(*dir / "p.cpp", PROGRAM);
    }
    static void TearDownTestSuite()
    {
        delete dir;
        std::filesystem::remove(log_path());
    }
    static std::string lib()
    {
        for (auto &e : std::filesystem::recursive_directory_iterator(*dir / "usr"))
            if (e.path().filename() == "nibble.pc")
                return e.path().parent_path().parent_path().string();
        return "";
    }
    static TempDir *dir;
};
TempDir *Install::dir;

bool sanitized()
{
#if defined(__SANITIZE_ADDRESS__)
    return true; /* programs of others are not linked with the sanitizer's runtime */
#else
    return false;
#endif
}

} // namespace

TEST_F(Install, pkg_config_builds_c_and_cpp_programs)
{
    if (sanitized())
        GTEST_SKIP() << "a sanitizer build is not for installing";
    std::string env = "PKG_CONFIG_PATH=" + lib() + "/pkgconfig ";
    for (std::string cc :
         {"cc -std=c11 -Wall -Wextra -Werror -pedantic", "c++ -std=c++11 -Wall -Wextra -Werror -pedantic"}) {
        std::string src = *dir / (cc[1] == 'c' ? "p.c" : "p.cpp");
        ASSERT_EQ(0, sh(cc + " " + src + " -o " + (*dir / "p") + " $(" + env + "pkg-config --cflags --libs nibble)"))
            << read_text(log_path());
        EXPECT_EQ(0, sh("LD_LIBRARY_PATH=" + lib() + " " + (*dir / "p")));
    }
    ASSERT_EQ(0, sh("cc " + (*dir / "p.c") + " -o " + (*dir / "ps") + " $(" + env + "pkg-config --cflags nibble) " +
                    lib() + "/libnibble.a $(" + env +
                    "pkg-config --static --libs jansson libpcre2-8 libutf8proc) -lgomp -lpthread -lm"))
        << read_text(log_path());
    EXPECT_EQ(0, sh(*dir / "ps"));
}

TEST_F(Install, cmake_finds_the_package)
{
    if (sanitized())
        GTEST_SKIP() << "a sanitizer build is not for installing";
    write_text(*dir / "CMakeLists.txt",
               "cmake_minimum_required(VERSION 3.18)\nproject(p C)\nfind_package(nibble 0.1 REQUIRED)\n"
               "add_executable(a p.c)\ntarget_link_libraries(a nibble::nibble)\n"
               "add_executable(b p.c)\ntarget_link_libraries(b nibble::nibble_static)\n");
    ASSERT_EQ(0, sh("cmake -S " + dir->path() + " -B " + (*dir / "b") + " -DCMAKE_PREFIX_PATH=" + (*dir / "usr") +
                    " && cmake --build " + (*dir / "b")))
        << read_text(log_path());
    EXPECT_EQ(0, sh(*dir / "b/a"));
    EXPECT_EQ(0, sh(*dir / "b/b"));
}

TEST_F(Install, the_command_runs_and_finds_its_recipes)
{
    std::string out = *dir / "q";
    EXPECT_EQ(0, sh("cd / && " + (*dir / "usr/bin/nibble") + " --version"));
    EXPECT_EQ(0, sh("cd / && NIBBLE_RECIPES=" + (*dir / "usr/share/nibble/recipes") + " " + (*dir / "usr/bin/nibble") +
                    " quantize " + repo_file("configs/demo/model") + " -o " + out + " --recipe w4a16-g128"))
        << read_text(log_path());
}

TEST(Symbols, the_library_exports_nb_names_only)
{
    std::string list = std::string(NIBBLE_BUILD_DIR) + "/symbols.txt";
    ASSERT_EQ(
        0, std::system(("nm -D --defined-only " + std::string(NIBBLE_BUILD_DIR) + "/libnibble.so > " + list).c_str()));
    std::stringstream s(read_text(list));
    std::string line, header = read_text(repo_file("include/nibble.h"));
    int n = 0;
    while (std::getline(s, line)) {
        std::string name = line.substr(line.rfind(' ') + 1);
        if (sanitized() && name.rfind("nb_", 0) != 0)
            continue; /* the sanitizer's own */
        EXPECT_EQ(0u, name.rfind("nb_", 0)) << name;
        EXPECT_NE(header.find(" " + name + "(") == std::string::npos ? header.find("*" + name + "(") : 0,
                  std::string::npos)
            << name << " is exported but not in nibble.h";
        n++;
    }
    EXPECT_GT(n, 30);
}
