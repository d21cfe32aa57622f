/* What can be known of the kernels without running them: build/kernels/NAME.ptxas holds what the assembler said of each one
 * for each architecture.  A spilled register in a GEMM or in attention costs more than most bugs and shows in no test of
 * results, so it fails here; so does a kernel that could never be launched. */
#include <map>
#include <set>
#include <stdexcept>

#include "testutil.h"

#include "../cuda/kernels.h"

namespace
{

/* What ptxas says of one kernel on one architecture. */
struct Usage {
    std::string file, arch;
    bool complete = false; /* the "Used N registers" line was there */
    unsigned registers = 0, shared = 0, stack = 0, spill_stores = 0, spill_loads = 0;
};

using Report = std::map<std::pair<std::string, std::string>, Usage>; /* (kernel, "sm_80") */

/* Adds what `text` (ptxas -v, of cuda/FILE.cu) tells.  Lines of device functions that were not inlined count towards nothing:
 * a kernel's own line has the stack of all its calls. */
void read_report(Report *report, const std::string &file, const std::string &text)
{
    std::istringstream lines(text);
    Usage *now = nullptr;
    std::string line, kernel, function;
    while (std::getline(lines, line)) {
        char a[512], b[64];
        unsigned x, y, z;
        const char *p = line.c_str();
        if (const char *at = strstr(p, "Compiling entry function '");
            at && sscanf(at, "Compiling entry function '%511[^']' for '%63[^']'", a, b) == 2) {
            kernel = a;
            now = &(*report)[{a, b}];
            *now = Usage();
            now->file = file;
            now->arch = b;
        } else if (const char *of = strstr(p, "Function properties for "))
            function = of + strlen("Function properties for ");
        else if (now && function == kernel &&
                 sscanf(p, " %u bytes stack frame, %u bytes spill stores, %u bytes spill loads", &x, &y, &z) == 3) {
            now->stack = x;
            now->spill_stores = y;
            now->spill_loads = z;
        } else if (const char *used = strstr(p, "Used "); now && used && sscanf(used, "Used %u registers", &x) == 1) {
            now->registers = x;
            now->complete = true;
            if (const char *s = strstr(used, " bytes smem")) {
                while (s > used && isdigit((unsigned char)s[-1]))
                    s--;
                now->shared = (unsigned)strtoul(s, nullptr, 10);
            }
            if (const char *s = strstr(used, " bytes cumulative stack size")) {
                while (s > used && isdigit((unsigned char)s[-1]))
                    s--;
                now->stack = (unsigned)strtoul(s, nullptr, 10);
            }
        }
    }
}

struct Kernel {
    const char *name, *file;
    unsigned threads, dynamic, oldest;
};
const Kernel kernels[] = {
#define X(name, file, threads, shared, sm, args) {#name, #file, threads, shared, sm},
    NB_CUDA_KERNEL_LIST(X)
#undef X
};

struct Arch {
    const char *name;
    unsigned sm, shared; /* most shared memory of a block, static and dynamic */
};
const Arch archs[] = {{"sm_75", 75, 64 << 10},
                      {"sm_80", 80, 163 << 10},
                      {"sm_86", 86, 99 << 10},
                      {"sm_89", 89, 99 << 10},
                      {"sm_90a", 90, 227 << 10}};
constexpr unsigned REGISTERS = 65536,
                   STATIC_SHARED = 48 << 10; /* of a multiprocessor; of a block, on every architecture */

/* Kernels whose inner loop is what a token waits for. */
bool hot(const Kernel &k)
{
    for (const char *prefix : {"nb_gemm_", "nb_gemv_", "nb_attend_", "nb_moe_gemm_", "nb_moe_gemv_"})
        if (strncmp(k.name, prefix, strlen(prefix)) == 0)
            return true;
    return false;
}

/* Everything that is wrong, one sentence each; what is only worth knowing goes to `notes`. */
std::vector<std::string> judge(const Report &report, std::vector<std::string> *notes)
{
    std::vector<std::string> wrong;
    std::set<std::string> known;
    for (const Kernel &k : kernels) {
        known.insert(k.name);
        for (const Arch &a : archs) {
            const std::string who = std::string(k.name) + " on " + a.name + ": ";
            auto it = report.find({k.name, a.name});
            if (a.sm < k.oldest)
                continue;
            if (it == report.end()) {
                wrong.push_back(who + "kernels.h promises it, cuda/" + k.file + ".cu does not have it");
                continue;
            }
            const Usage &u = it->second;
            if (u.file != k.file)
                wrong.push_back(who + "lies in " + u.file + ".cu, kernels.h says " + k.file + ".cu");
            if (!u.complete)
                wrong.push_back(who + "ptxas did not say how many registers it uses");
            const unsigned each = (u.registers + 7) / 8 * 8; /* they are given out by eights */
            if (each * k.threads > REGISTERS)
                wrong.push_back(who + std::to_string(u.registers) + " registers x " + std::to_string(k.threads) +
                                " threads are more than " + std::to_string(REGISTERS));
            /* a kernel may ask for more dynamic memory than an old card has; the host gives it what there is */
            const unsigned dynamic = std::min(k.dynamic, a.shared);
            if (u.shared > STATIC_SHARED || u.shared + dynamic > a.shared)
                wrong.push_back(who + std::to_string(u.shared) + " bytes of static and " + std::to_string(dynamic) +
                                " of dynamic shared memory are more than " + std::to_string(a.shared));
            if (u.spill_stores || u.spill_loads || u.stack) {
                std::string says = who + std::to_string(u.spill_stores) + " bytes of spill stores, " +
                                   std::to_string(u.spill_loads) + " of loads, " + std::to_string(u.stack) +
                                   " of stack (" + std::to_string(u.registers) + " registers)";
                (hot(k) ? &wrong : notes)->push_back(says);
            }
        }
    }
    for (const auto &[key, u] : report)
        if (!known.count(key.first))
            wrong.push_back(key.first + " of cuda/" + u.file + ".cu has no line in kernels.h");
    return wrong;
}

Report report_of_the_build()
{
    Report r;
    const std::string dir = std::string(NIBBLE_BUILD_DIR) + "/kernels";
    if (std::filesystem::exists(dir))
        for (const auto &e : std::filesystem::directory_iterator(dir))
            if (e.path().extension() == ".ptxas")
                read_report(&r, e.path().stem(), read_text(e.path()));
    return r;
}

std::string joined(const std::vector<std::string> &lines)
{
    std::string s;
    for (const std::string &l : lines)
        s += "\n  " + l;
    return s;
}

TEST(KernelsStatic, nothing_spills_and_everything_can_be_launched)
{
    Report r = report_of_the_build();
    if (r.empty())
        GTEST_SKIP() << "this build has no kernels (NIBBLE_CUDA=OFF)";
    std::vector<std::string> notes, wrong = judge(r, &notes);
    EXPECT_TRUE(wrong.empty()) << joined(wrong);
    for (const std::string &n : notes)
        printf("[     note ] %s\n", n.c_str());
    RecordProperty("entries", (int)r.size());
}

/* ---- that it can fail ---- */

/* What ptxas prints for every kernel of the list on every architecture, as it should be. */
std::string entry(const char *name, const char *arch, const char *body)
{
    return std::string("ptxas info    : Compiling entry function '") + name + "' for '" + arch +
           "'\nptxas info    : Function properties for " + name + "\n" + body +
           "ptxas info    : Compile time = 1.712 ms\n";
}
const char *const fine = "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
                         "ptxas info    : Used 40 registers, used 1 barriers, 360 bytes cmem[0]\n";

Report good()
{
    Report r;
    for (const Kernel &k : kernels)
        for (const Arch &a : archs)
            if (a.sm >= k.oldest)
                read_report(&r, k.file, "ptxas info    : 0 bytes gmem\n" + entry(k.name, a.name, fine));
    return r;
}

/* The only complaint about a good report in which one entry is replaced; "" if there is none, or more. */
std::string complaint(const char *file, const char *name, const char *arch, const char *body,
                      std::vector<std::string> *notes)
{
    Report r = good();
    read_report(&r, file, entry(name, arch, body));
    std::vector<std::string> wrong = judge(r, notes);
    return wrong.size() == 1 ? wrong[0] : "";
}

TEST(KernelsStaticParser, a_good_report_is_good)
{
    std::vector<std::string> notes, wrong = judge(good(), &notes);
    EXPECT_TRUE(wrong.empty()) << joined(wrong);
    EXPECT_TRUE(notes.empty());
}

TEST(KernelsStaticParser, reads_what_ptxas_prints)
{
    Report r;
    read_report(
        &r, "attend",
        "ptxas warning : Value of threads per SM for entry nb_b is out of range. .minnctapersm will be ignored\n"
        "ptxas info    : 0 bytes gmem\n"
        "ptxas info    : Compiling entry function 'nb_b' for 'sm_86'\n"
        "ptxas info    : Function properties for nb_b\n"
        "    48 bytes stack frame, 96 bytes spill stores, 92 bytes spill loads\n"
        "ptxas info    : Used 64 registers, used 2 barriers, 64 bytes cumulative stack size, 1024 bytes smem, "
        "364 bytes cmem[0]\n"
        "ptxas info    : Compile time = 13.162 ms\n"
        "ptxas info    : Function properties for _Z3fooILi3EEff\n"
        "    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n");
    ASSERT_EQ(1u, r.size());
    const Usage &u = r.begin()->second;
    EXPECT_EQ("nb_b", r.begin()->first.first);
    EXPECT_EQ("sm_86", u.arch);
    EXPECT_EQ(64u, u.registers);
    EXPECT_EQ(1024u, u.shared);
    EXPECT_EQ(96u, u.spill_stores);
    EXPECT_EQ(92u, u.spill_loads);
    EXPECT_EQ(64u, u.stack);
    EXPECT_TRUE(u.complete);
}

/* The first kernel of the list whose name begins so. */
const Kernel &first(const char *prefix)
{
    for (const Kernel &k : kernels)
        if (strncmp(k.name, prefix, strlen(prefix)) == 0)
            return k;
    throw std::runtime_error(std::string("no kernel begins with ") + prefix);
}

TEST(KernelsStaticParser, a_spill_in_a_hot_kernel_is_an_error_and_elsewhere_a_note)
{
    const char *spills = "    16 bytes stack frame, 24 bytes spill stores, 20 bytes spill loads\n"
                         "ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size\n";
    std::vector<std::string> notes;
    for (const char *prefix : {"nb_gemm_", "nb_gemv_", "nb_attend_"}) {
        const Kernel &k = first(prefix);
        EXPECT_NE(std::string::npos,
                  complaint(k.file, k.name, "sm_86", spills, &notes).find(std::string(k.name) + " on sm_86: 24 bytes"))
            << k.name;
    }
    EXPECT_TRUE(notes.empty());
    const Kernel &cold = first("nb_rmsnorm_");
    EXPECT_EQ("", complaint(cold.file, cold.name, "sm_86", spills, &notes));
    EXPECT_EQ(1u, notes.size());
}

TEST(KernelsStaticParser, what_cannot_be_launched_is_an_error)
{
    std::vector<std::string> notes;
    const Kernel &k = first("nb_gemm_");
    char body[256];
    const unsigned many = REGISTERS / k.threads + 1;
    snprintf(body, sizeof body,
             "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
             "ptxas info    : Used %u registers, used 1 barriers, 360 bytes cmem[0]\n",
             many);
    EXPECT_NE(std::string::npos, complaint(k.file, k.name, "sm_80", body, &notes).find(" registers x "));
    /* a kernel that may ask for all the dynamic memory there is has no byte left for an array of its own */
    ASSERT_EQ(99u << 10, k.dynamic);
    EXPECT_NE(std::string::npos, complaint(k.file, k.name, "sm_89",
                                           "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
                                           "ptxas info    : Used 65 registers, used 1 barriers, 16 bytes smem\n",
                                           &notes)
                                     .find("16 bytes of static and 101376 of dynamic"));
    EXPECT_NE(std::string::npos, complaint(k.file, k.name, "sm_75", "", &notes).find("did not say"));
}

TEST(KernelsStaticParser, a_missing_and_an_unknown_kernel_are_errors)
{
    std::vector<std::string> notes;
    const Kernel &k = first("nb_gemm_");
    Report r = good();
    r.erase({k.name, "sm_90a"});
    std::vector<std::string> wrong = judge(r, &notes);
    ASSERT_EQ(1u, wrong.size());
    EXPECT_EQ(0u, wrong[0].find(std::string(k.name) + " on sm_90a: kernels.h promises it"));
    EXPECT_NE(std::string::npos, complaint(k.file, "nb_gemm_unheard_of", "sm_80", fine, &notes).find("has no line"));
    EXPECT_NE(std::string::npos, complaint("elsewhere", k.name, "sm_80", fine, &notes).find("lies in elsewhere.cu"));
}

} // namespace
