/* The heap of the emulated devices, without a driver around it. */
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

#include "memory/heap.h"
#include "types.h"

using namespace ptxemu;

namespace
{
constexpr size_t GIB = size_t(1) << 30, TIB = size_t(1) << 40;

uint64_t device_memory(Heap &h, size_t bytes, unsigned device = 0)
{
    return h.allocate(device, bytes, 1, AllocKind::device, "cuMemAlloc");
}
uint8_t *host(uint64_t address)
{
    return reinterpret_cast<uint8_t *>(address);
}
} // namespace

TEST(Heap, AllocationsAreAlignedAndKeepTheirDistance)
{
    Heap h;
    std::vector<std::pair<uint64_t, size_t>> all;
    for (size_t n : {1, 3, 255, 256, 257, 4095, 4096, 100000, 1, 1})
        all.push_back({device_memory(h, n), n});
    uint64_t aligned = h.allocate(0, 10, 1 << 20, AllocKind::device, "");
    EXPECT_EQ(0u, aligned % (1 << 20));
    std::sort(all.begin(), all.end());
    for (size_t k = 0; k < all.size(); k++) {
        EXPECT_EQ(0u, all[k].first % 256);
        if (k) {
            EXPECT_GE(all[k].first, all[k - 1].first + all[k - 1].second + 4096);
        }
    }
}

TEST(Heap, FindKnowsTheBytesOfAnAllocationAndNoOthers)
{
    Heap h;
    uint64_t a = device_memory(h, 1000), b = device_memory(h, 16);
    for (uint64_t at : {a, a + 1, a + 999})
        ASSERT_TRUE(h.find(at) && h.find(at)->address == a) << at - a;
    EXPECT_EQ(nullptr, h.find(a - 1));
    EXPECT_EQ(nullptr, h.find(a + 1000));
    EXPECT_EQ(nullptr, h.find(b - 1));
    EXPECT_EQ(nullptr, h.find(0));
    EXPECT_EQ(nullptr, h.find(~0ull));
    EXPECT_EQ(b, h.find(b + 15)->address);
    EXPECT_EQ(16u, h.find(b)->bytes);
    EXPECT_EQ(2u, h.find(b)->serial);
}

TEST(Heap, FreedMemoryIsRememberedAndItsAddressNotReused)
{
    Heap h;
    uint64_t a = device_memory(h, 1000);
    EXPECT_FALSE(h.release(a + 1)) << "not the start";
    EXPECT_TRUE(h.release(a));
    EXPECT_FALSE(h.release(a)) << "twice";
    ASSERT_NE(nullptr, h.find(a + 999));
    EXPECT_TRUE(h.find(a + 999)->freed);
    for (int k = 0; k < 100; k++) {
        uint64_t b = device_memory(h, 1000);
        EXPECT_NE(a, b);
        h.release(b);
    }
    EXPECT_TRUE(h.find(a)->freed);
}

TEST(Heap, AddressesComeBackOnlyWhenAllAreUsedUp)
{
    Heap h;
    uint64_t a = device_memory(h, 3 * TIB), small = device_memory(h, 100);
    ASSERT_NE(0u, a);
    ASSERT_NE(0u, small);
    EXPECT_EQ(0u, device_memory(h, 3 * TIB)) << "the address space is full";
    h.release(a);
    uint64_t b = device_memory(h, 2 * TIB);
    ASSERT_NE(0u, b);
    EXPECT_FALSE(h.find(b)->freed);
    EXPECT_EQ(b, h.find(b + 2 * TIB - 1)->address);
    EXPECT_EQ(small, h.find(small)->address) << "live memory stays where it is";
}

TEST(Heap, HugeMemoryCostsNothingUntilItIsTouched)
{
    Heap h;
    h.set_limit(0, 80 * GIB);
    uint64_t a = device_memory(h, 80 * GIB);
    ASSERT_NE(0u, a);
    host(a)[79 * GIB] = 5;
    h.mark_written(a + 79 * GIB, 1);
    EXPECT_EQ(1, h.find(a)->written[79 * GIB]);
    EXPECT_EQ(0, h.find(a)->written[79 * GIB + 1]);
}

TEST(Heap, ADeviceHasNoMoreThanItsLimit)
{
    Heap h;
    h.set_limit(0, 1000);
    h.set_limit(1, 500);
    EXPECT_EQ(1000u, h.total_bytes(0));
    uint64_t a = device_memory(h, 600);
    EXPECT_EQ(400u, h.free_bytes(0));
    EXPECT_EQ(500u, h.free_bytes(1));
    EXPECT_EQ(0u, device_memory(h, 401));
    EXPECT_EQ(0u, device_memory(h, 501, 1));
    EXPECT_NE(0u, device_memory(h, 400));
    EXPECT_NE(0u, h.allocate(0, 5000, 1, AllocKind::pinned, "host memory is not the device's"));
    EXPECT_TRUE(h.release(a));
    EXPECT_EQ(600u, h.free_bytes(0));
    EXPECT_NE(0u, device_memory(h, 600));
}

TEST(Heap, NewMemoryIsFilledWithAPatternAndCountsAsNeverWritten)
{
    Heap h;
    uint64_t a = device_memory(h, 1000);
    EXPECT_EQ(0xcb, host(a)[0]);
    EXPECT_EQ(0xcb, host(a)[999]);
    const uint8_t *written = h.find(a)->written;
    EXPECT_EQ(0, written[0]);
    h.mark_written(a + 10, 5);
    EXPECT_EQ(0, written[9]);
    EXPECT_EQ(1, written[10]);
    EXPECT_EQ(1, written[14]);
    EXPECT_EQ(0, written[15]);
    h.mark_written(a + 990, 1 << 20); /* no further than the allocation */
    EXPECT_EQ(1, written[999]);
    EXPECT_EQ(0, written[1000]);
}

TEST(Heap, ZeroedAndHostMemoryCountsAsWritten)
{
    Heap h;
    uint64_t a = h.allocate(0, 1000, 1, AllocKind::module_global, "table", true);
    EXPECT_EQ(0, host(a)[0]);
    EXPECT_EQ(0, host(a)[999]);
    EXPECT_EQ(nullptr, h.find(a)->written);
    EXPECT_EQ(nullptr, h.find(h.allocate(0, 10, 1, AllocKind::pinned, ""))->written);
    EXPECT_EQ(nullptr, h.find(h.allocate(0, 10, 1, AllocKind::managed, ""))->written);
}

TEST(Heap, MemoryOfAReusedAddressIsNewMemory)
{
    Heap h;
    uint64_t a = device_memory(h, 3 * TIB);
    memset(host(a), 7, 1 << 20);
    h.mark_written(a, 1 << 20);
    h.release(a);
    uint64_t b = device_memory(h, 3 * TIB);
    ASSERT_EQ(a, b);
    EXPECT_EQ(0xcb, host(b)[100]);
    EXPECT_EQ(0, h.find(b)->written[100]);
}

TEST(Heap, HostMemoryCanBeRegisteredOnce)
{
    Heap h;
    std::vector<uint8_t> mine(1000);
    uint64_t at = reinterpret_cast<uint64_t>(mine.data());
    EXPECT_TRUE(h.add_host(at, 1000, AllocKind::registered));
    EXPECT_FALSE(h.add_host(at + 500, 1000, AllocKind::registered)) << "overlaps";
    EXPECT_FALSE(h.add_host(0, 1000, AllocKind::registered));
    EXPECT_EQ(at, h.find(at + 999)->address);
    EXPECT_EQ(~0u, h.find(at)->peers);
    EXPECT_TRUE(h.release(at));
    EXPECT_TRUE(h.add_host(at + 500, 500, AllocKind::registered));
    EXPECT_EQ(nullptr, h.find(at)) << "what was there before is forgotten";
    mine[999] = 1; /* still ours */
}

TEST(Heap, NothingLiesInTheWindowsOfSharedAndLocalMemory)
{
    Heap h;
    for (uint64_t window : {SHARED_WINDOW, LOCAL_WINDOW}) {
        EXPECT_FALSE(h.add_host(window, 4096, AllocKind::registered));
        EXPECT_FALSE(h.add_host(window - 10, 11, AllocKind::registered));
        EXPECT_FALSE(h.add_host(window + WINDOW_BYTES - 1, 10, AllocKind::registered));
    }
}

TEST(Heap, PeersAreAllowedForOldAndNewMemory)
{
    Heap h;
    uint64_t before = device_memory(h, 10, 1);
    h.allow_peer(1, 0, true);
    uint64_t after = device_memory(h, 10, 1), other = device_memory(h, 10, 2);
    EXPECT_EQ(1u, h.find(before)->peers);
    EXPECT_EQ(1u, h.find(after)->peers);
    EXPECT_EQ(0u, h.find(other)->peers);
    h.allow_peer(1, 0, false);
    EXPECT_EQ(0u, h.find(before)->peers);
}

TEST(Heap, DescriptionsNameTheNearestAllocation)
{
    Heap h;
    uint64_t a = device_memory(h, 1024), b = h.allocate(0, 16, 1, AllocKind::module_global, "table", true);
    EXPECT_EQ("12 bytes into the 1024-byte allocation #1 (cuMemAlloc)", h.describe(a + 12));
    EXPECT_EQ("8 bytes past the end of the 1024-byte allocation #1 (cuMemAlloc)", h.describe(a + 1032));
    EXPECT_EQ("right past the end of the 1024-byte allocation #1 (cuMemAlloc)", h.describe(a + 1024));
    EXPECT_EQ("1 byte past the end of the 1024-byte allocation #1 (cuMemAlloc)", h.describe(a + 1025));
    EXPECT_EQ("4 bytes before the start of the 16-byte variable #2 (table)", h.describe(b - 4));
    EXPECT_EQ("a null pointer", h.describe(0));
    EXPECT_EQ("with no allocation near it", h.describe(1ull << 46));
    h.release(a);
    EXPECT_EQ("12 bytes into the 1024-byte allocation #1 (cuMemAlloc), which was freed", h.describe(a + 12));
}

TEST(Heap, TheVersionChangesWithEveryAllocationAndRelease)
{
    Heap h;
    uint64_t v = h.version(), a = device_memory(h, 10);
    EXPECT_NE(v, h.version());
    v = h.version();
    h.release(a);
    EXPECT_NE(v, h.version());
}

TEST(Heap, LeaksAreListedByDevice)
{
    Heap h;
    uint64_t a = device_memory(h, 10), b = device_memory(h, 20, 1);
    h.release(a);
    EXPECT_TRUE(h.live(0).empty());
    ASSERT_EQ(1u, h.live(1).size());
    EXPECT_EQ(b, h.live(1)[0].address);
    h.reset();
    EXPECT_TRUE(h.live(1).empty());
    EXPECT_EQ(nullptr, h.find(b));
}

TEST(Heap, ManyAllocationsComeAndGo)
{
    Heap h;
    uint64_t first = device_memory(h, 100);
    for (int k = 0; k < 40000; k++)
        ASSERT_TRUE(h.release(device_memory(h, 3000)));
    std::vector<uint64_t> all;
    for (int k = 0; k < 5000; k++)
        all.push_back(device_memory(h, 3000));
    EXPECT_EQ(first, h.find(first + 99)->address);
    for (uint64_t a : all)
        ASSERT_EQ(a, h.find(a + 2999)->address);
}

TEST(Heap, ThreadsMayAllocateFindAndReleaseAtOnce)
{
    Heap h;
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < 4; t++)
        threads.emplace_back([&h, t] {
            for (int k = 0; k < 1000; k++) {
                uint64_t a = device_memory(h, 64 + size_t(k), t);
                memset(host(a), int(t), 64);
                h.mark_written(a, 64);
                const Allocation *found = h.find(a + 63);
                ASSERT_TRUE(found && found->address == a && found->device == t && host(a)[63] == t);
                ASSERT_TRUE(h.release(a));
            }
        });
    for (std::thread &t : threads)
        t.join();
    for (unsigned t = 0; t < 4; t++)
        EXPECT_TRUE(h.live(t).empty());
}
