/* --pin cores: each thread of the team has one processor, no two the same; the caller's may stay as they are. */
#include <omp.h>
#include <sched.h>

#include <set>
#include <thread>

#include "backend_util.h"

namespace
{

std::vector<cpu_set_t> team(int threads)
{
    std::vector<cpu_set_t> sets((size_t)threads);
#pragma omp parallel num_threads(threads)
    sched_getaffinity(0, sizeof(cpu_set_t), &sets[(size_t)omp_get_thread_num()]);
    return sets;
}

TEST(Pin, EachThreadHasOneCore)
{
    const int cores = nbi_cpu_available_cores();
    for (int threads = 1; threads <= std::min(cores, 8); threads++)
        std::thread([&] {
            Backend b("scalar", threads);
            ASSERT_NB_OK(nbi_backend_set_pin(b.be, "cores"));
            const std::vector<cpu_set_t> before = team(threads);
            EXPECT_EQ(cores, CPU_COUNT(&before[0]));
            Step s(b, 1);
            s.begin(nbi_batch{});
            std::set<int> seen;
            for (const cpu_set_t &set : team(threads)) {
                EXPECT_EQ(1, CPU_COUNT(&set));
                for (int i = 0; i < CPU_SETSIZE; i++)
                    if (CPU_ISSET(i, &set))
                        seen.insert(i);
            }
            EXPECT_EQ((size_t)threads, seen.size());
            EXPECT_EQ(cores, nbi_cpu_available_cores()) << "a second model would think that it has one core";
        }).join();
}

TEST(Pin, NoneAndMistakes)
{
    const int cores = nbi_cpu_available_cores();
    Backend b("scalar", 1), many("scalar", cores + 1);
    EXPECT_NB_OK(nbi_backend_set_pin(b.be, nullptr));
    EXPECT_NB_OK(nbi_backend_set_pin(b.be, "none"));
    EXPECT_FAILS(NB_EINVAL, "expected none or cores", nbi_backend_set_pin(b.be, "core"));
    EXPECT_FAILS(NB_EINVAL, "cannot each have one", nbi_backend_set_pin(many.be, "cores"));
}

} // namespace
