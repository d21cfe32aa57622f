/* The race check by itself: what is a race, what is not, and what the sentence says. */
#include <gtest/gtest.h>

#include <array>

#include "check/race.h"
#include "memory/access.h"

using namespace ptxemu;

namespace
{

constexpr uint32_t WARPS = 4;

/* A block's warps without a block: the check needs their index, lanes, present instruction and meetings only. */
struct Race : testing::Test {
    RaceShadow shadow{1024, WARPS};
    std::array<Warp, WARPS> warp;
    std::array<Inst, 8> inst;
    Race()
    {
        for (uint32_t k = 0; k < WARPS; k++) {
            warp[k].index = k;
            warp[k].active = 1;
        }
        for (uint32_t k = 0; k < inst.size(); k++)
            inst[k].loc.ptx_line = 100 + k;
    }
    Warp &at(uint32_t w, uint32_t instruction)
    {
        warp[w].at = &inst[instruction];
        warp[w].instructions++;
        return warp[w];
    }
    /* instruction 0 writes, 1 reads, unless said otherwise */
    void write(uint32_t thread, uint32_t offset, uint32_t bytes = 4)
    {
        shadow.write(at(thread / 32, 0), thread % 32, offset, bytes, false);
    }
    void read(uint32_t thread, uint32_t offset, uint32_t bytes = 4)
    {
        shadow.read(at(thread / 32, 1), thread % 32, offset, bytes, false);
    }
    void syncwarp(uint32_t w) { warp[w].sync_epoch++; }
    void barrier(uint32_t id = 0, std::initializer_list<uint32_t> sync = {0, 1, 2, 3},
                 std::initializer_list<uint32_t> arrive = {})
    {
        for (uint32_t w : arrive)
            shadow.barrier_release(id, w);
        for (uint32_t w : sync)
            shadow.barrier_release(id, w);
        for (uint32_t w : sync)
            shadow.barrier_acquire(id, w);
        for (uint32_t w : sync)
            warp[w].sync_epoch++;
    }
    template <class F>
    std::string fault_of(F f, FaultKind kind = FaultKind::race)
    {
        try {
            f();
        } catch (const Fault &x) {
            EXPECT_EQ(kind, x.kind) << x.what;
            return x.what;
        }
        return "";
    }
};
#define EXPECT_RACE(statement)    EXPECT_NE("", fault_of([&] { statement; }))
#define EXPECT_EARLY(statement)   EXPECT_NE("", fault_of([&] { statement; }, FaultKind::early_async_read))
#define EXPECT_NO_RACE(statement) EXPECT_EQ("", fault_of([&] { statement; }))

TEST_F(Race, WarpsRaceInAllThreeOrders)
{
    write(0, 0);
    EXPECT_RACE(read(32, 0));
    write(0, 4);
    EXPECT_RACE(write(32, 4));
    read(0, 8);
    EXPECT_RACE(write(32, 8));
}

TEST_F(Race, ReadersDoNotRace)
{
    for (uint32_t t = 0; t < 128; t++)
        EXPECT_NO_RACE(read(t, 0));
}

TEST_F(Race, ABarrierOrders)
{
    for (int k = 0; k < 3; k++) {
        for (uint32_t t = 0; t < 128; t++)
            EXPECT_NO_RACE(write(t, 4 * t));
        barrier();
        for (uint32_t t = 0; t < 128; t++)
            EXPECT_NO_RACE(read(t, 4 * (127 - t)));
        barrier();
    }
}

TEST_F(Race, EveryReaderIsKept)
{
    for (uint32_t w = 0; w < 3; w++)
        read(32 * w, 0);
    barrier(1, {0, 2, 3}); /* warp 1 has not come */
    EXPECT_RACE(write(96, 0));
    for (uint32_t w = 0; w < 3; w++)
        read(32 * w, 4);
    barrier(1, {0, 1, 2, 3});
    EXPECT_NO_RACE(write(96, 4));
}

TEST_F(Race, ALaneOfTheSameWarpThatReadBeforeIsKept)
{
    read(5, 0);
    read(6, 0);
    EXPECT_RACE(write(5, 0));
    read(5, 4);
    EXPECT_NO_RACE(write(5, 4));
}

TEST_F(Race, LanesOfAWarpNeedSyncwarp)
{
    write(0, 0);
    EXPECT_RACE(read(1, 0));
    write(0, 4);
    syncwarp(0);
    EXPECT_NO_RACE(read(1, 4));
    syncwarp(0);
    EXPECT_NO_RACE(write(2, 4));
}

TEST_F(Race, ALaneNeedsNothingToSeeItsOwn)
{
    write(7, 0);
    EXPECT_NO_RACE(read(7, 0));
    EXPECT_NO_RACE(write(7, 0));
}

TEST_F(Race, ALaneThatReadsItsOwnDoesNotHideTheOthers)
{
    write(7, 0);
    EXPECT_NO_RACE(read(7, 0));
    EXPECT_RACE(read(8, 0));
}

TEST_F(Race, LanesThatWriteAWordInOneInstructionDoNotRace)
{
    uint32_t same[32] = {};
    EXPECT_NO_RACE(shadow.access(at(0, 0), Use::write, 0xffff, same, 4));
    EXPECT_NO_RACE(read(3, 0));
    EXPECT_RACE(read(20, 0));
    EXPECT_RACE(shadow.access(at(0, 0), Use::write, 0xffff0000, same, 4)); /* another time is another instruction */
}

TEST_F(Race, SyncwarpDoesNotOrderOtherWarps)
{
    write(0, 0);
    syncwarp(0);
    syncwarp(1);
    EXPECT_RACE(read(32, 0));
}

TEST_F(Race, NeighbouringBytesAreApart)
{
    for (uint32_t t = 0; t < 128; t++)
        EXPECT_NO_RACE(write(t * 33 % 128, t * 33 % 128, 1)); /* one byte a thread, across warps within a word */
    EXPECT_RACE(read(0, 0, 4));
    EXPECT_NO_RACE(read(0, 0, 1));
    EXPECT_RACE(write(32, 31, 2)); /* bytes 31 and 32: the first is another warp's */
    barrier();
    EXPECT_NO_RACE(read(77, 0, 16));
    barrier();
    EXPECT_NO_RACE(write(40, 0, 16));
    EXPECT_NO_RACE(read(40, 3, 1));
    EXPECT_RACE(read(3, 3, 1));
}

TEST_F(Race, AWordThatWasSplitRemembersItsReaders)
{
    for (uint32_t w = 0; w < 3; w++)
        read(32 * w, 0, 4);
    EXPECT_RACE(write(96, 2, 1));
    barrier();
    EXPECT_NO_RACE(write(96, 2, 1));
    EXPECT_RACE(write(0, 0, 4));
    EXPECT_NO_RACE(write(0, 0, 2));
}

TEST_F(Race, WideAccessesCoverAllTheirWords)
{
    write(0, 12);
    EXPECT_RACE(read(32, 0, 16));
    EXPECT_NO_RACE(read(32, 16, 16));
}

TEST_F(Race, AtomicsDoNotRaceAmongThemselvesButWithPlainAccesses)
{
    for (uint32_t t = 0; t < 128; t++)
        EXPECT_NO_RACE(shadow.atomic(at(t / 32, 2), t % 32, 0, 4));
    EXPECT_RACE(read(64, 0));
    write(0, 4);
    EXPECT_RACE(shadow.atomic(at(1, 2), 0, 4, 4));
}

TEST_F(Race, AFlagOrders)
{
    write(0, 0);
    EXPECT_NO_RACE(shadow.write(at(0, 2), 0, 512, 4, true));
    EXPECT_NO_RACE(shadow.read(at(1, 3), 0, 512, 4, true));
    EXPECT_NO_RACE(read(32, 0));
    EXPECT_RACE(read(64, 0)); /* has not looked at the flag */
    write(0, 4);              /* after the flag was set */
    EXPECT_RACE(read(32, 4));
}

TEST_F(Race, ALockOrders)
{
    for (uint32_t t : {0u, 40u, 80u, 5u, 120u}) {
        shadow.atomic(at(t / 32, 2), t % 32, 512, 4); /* compare and swap */
        EXPECT_NO_RACE(read(t, 0));
        EXPECT_NO_RACE(write(t, 0));
        shadow.atomic(at(t / 32, 3), t % 32, 512, 4); /* exchange */
        syncwarp(t / 32);
    }
}

TEST_F(Race, AnArrivalOrdersForThoseWhoWaitOnly)
{
    write(0, 0);
    write(64, 4);
    barrier(1, {1}, {0}); /* 0 arrives, 1 waits */
    EXPECT_NO_RACE(read(32, 0));
    EXPECT_RACE(read(32, 4)); /* warp 2 was not there */
    EXPECT_RACE(read(64, 0));
    write(32, 8);
    EXPECT_RACE(read(0, 8)); /* who only arrives has waited for nobody */
}

TEST_F(Race, ProducersAndConsumersWithNamedBarriers)
{
    for (int round = 0; round < 4; round++) {
        const uint32_t stage = uint32_t(round % 2), full = 1 + stage, empty = 3 + stage;
        EXPECT_NO_RACE(write(0, 64 * stage)); /* warp 0 produces */
        shadow.barrier_release(full, 0);
        shadow.barrier_release(full, 1);
        shadow.barrier_acquire(full, 1);
        syncwarp(1);
        EXPECT_NO_RACE(read(33, 64 * stage));
        shadow.barrier_release(empty, 1);
        shadow.barrier_release(empty, 0);
        shadow.barrier_acquire(empty, 0);
        syncwarp(0);
    }
}

TEST_F(Race, PhasesOfABarrierAreApart)
{
    write(0, 0);
    barrier(1, {0, 1});
    write(64, 4);
    barrier(1, {2, 3}); /* other warps use the same barrier later */
    EXPECT_NO_RACE(read(96, 4));
    EXPECT_RACE(read(96, 0));
}

TEST_F(Race, LeavingABarrierLateTellsNothingOfTheNextPhase)
{
    shadow.barrier_release(1, 0);
    shadow.barrier_release(1, 1);
    shadow.barrier_acquire(1, 0);
    write(0, 0);
    shadow.barrier_release(1, 0); /* of the next phase */
    shadow.barrier_acquire(1, 1);
    EXPECT_RACE(read(32, 0));
}

TEST_F(Race, MbarriersOrderByPhase)
{
    const uint64_t even = 1ull << 62, odd = even + 1;
    write(0, 0);
    shadow.release(even, 0);
    write(0, 4);
    shadow.release(odd, 0);
    shadow.acquire(even, 1);
    EXPECT_NO_RACE(read(32, 0));
    EXPECT_RACE(read(32, 4));
    shadow.acquire(odd, 1);
    EXPECT_NO_RACE(read(32, 4));
}

TEST_F(Race, LanesOfAWarpMeetAtAnMbarrier)
{
    for (uint32_t t = 0; t < 32; t++)
        write(t, 4 * t);
    shadow.release(1ull << 62, 0);
    write(3, 200);
    shadow.acquire(1ull << 62, 0);
    EXPECT_NO_RACE(read(9, 0));
    EXPECT_RACE(read(9, 200)); /* written after the arrival */
}

TEST_F(Race, OperationsOnAnMbarrierOrderNothingByThemselves)
{
    write(0, 0);
    EXPECT_NO_RACE(shadow.touch(at(0, 2), 0, 512, 8));
    EXPECT_NO_RACE(shadow.touch(at(1, 2), 0, 512, 8));
    EXPECT_RACE(read(32, 0));
}

TEST_F(Race, ACopyIsPendingUntilItsLaneHasWaited)
{
    for (uint32_t k = 0; k < 3; k++)
        EXPECT_NO_RACE(shadow.pending(at(0, 2), 1, 16 * k, 16));
    EXPECT_EARLY(read(1, 0));     /* the copying lane itself */
    EXPECT_EARLY(read(33, 4));    /* another warp */
    EXPECT_EARLY(write(1, 8));    /* a write */
    EXPECT_EARLY(read(1, 14, 1)); /* a byte */
    barrier();                    /* does not wait for copies */
    EXPECT_EARLY(read(33, 16));
    shadow.landed(at(0, 3), 1, 32, 16);
    EXPECT_NO_RACE(read(1, 32, 16));
    EXPECT_RACE(read(2, 32));  /* waited for, but not by this lane */
    EXPECT_RACE(read(40, 36)); /* nor by this warp */
    barrier();
    EXPECT_NO_RACE(read(40, 36));
}

TEST_F(Race, ACopyRacesWithEarlierReaders)
{
    read(40, 0);
    EXPECT_RACE(shadow.pending(at(0, 2), 1, 0, 16));
    barrier();
    EXPECT_NO_RACE(shadow.pending(at(0, 2), 1, 0, 16));
}

TEST_F(Race, BulkCopiesAreKnownOneByOne)
{
    const uint64_t full[] = {1ull << 62, (1ull << 62) + 2};
    for (uint32_t k = 0; k < 2; k++)
        shadow.engine_release(full[k], shadow.engine_write(at(0, 2), 256 * k, 256));
    shadow.acquire(full[1], 1);
    EXPECT_NO_RACE(read(32, 256, 16));
    EXPECT_EARLY(read(33, 0));  /* the other one was issued earlier, but nobody has waited for it */
    EXPECT_EARLY(read(0, 256)); /* warp 1 has, and warp 0 has not heard of it */
    barrier();
    EXPECT_NO_RACE(read(64, 256)); /* now all have */
    EXPECT_EARLY(read(64, 0));
}

TEST_F(Race, TheNextBulkCopyNeedsItsOwnWait)
{
    const uint64_t even = 1ull << 62, odd = even + 1;
    for (int k = 0; k < 4; k++) {
        const uint64_t phase = k % 2 ? odd : even;
        uint32_t copy = 0;
        EXPECT_NO_RACE(copy = shadow.engine_write(at(0, 2), 0, 64));
        shadow.engine_release(phase, copy);
        EXPECT_EARLY(read(32, 0));
        shadow.acquire(phase, 1);
        shadow.acquire(phase, 0);
        EXPECT_NO_RACE(read(32, 0));
        EXPECT_RACE(shadow.engine_write(at(0, 2), 0, 64)); /* warp 1 still reads */
        barrier();
    }
}

TEST_F(Race, TheSourceOfABulkStoreIsBusyUntilTheGroupWasWaitedFor)
{
    write(0, 0, 16);
    shadow.proxy_fence(0);
    uint32_t copy = 0;
    EXPECT_NO_RACE(copy = shadow.engine_read(at(0, 2), 0, 16));
    EXPECT_NO_RACE(read(0, 0, 16));
    EXPECT_RACE(write(0, 0, 16));
    shadow.acquire_engine(0, copy);
    EXPECT_NO_RACE(write(0, 0, 16));
    write(33, 32, 16);
    EXPECT_RACE(shadow.engine_read(at(0, 2), 32, 16));
}

TEST_F(Race, ABulkStoreNeedsAFenceOfProxiesAfterTheWrites)
{
    write(33, 0, 16);
    barrier();
    EXPECT_RACE(shadow.engine_read(at(0, 2), 0, 16));
    shadow.proxy_fence(1);
    EXPECT_RACE(shadow.engine_read(at(0, 2), 0, 16)); /* warp 0 does not know of the fence */
    barrier();
    EXPECT_NO_RACE(shadow.engine_read(at(0, 2), 0, 16));
    write(33, 32, 16);
    barrier();
    shadow.proxy_fence(0); /* by the thread that issues the copy */
    EXPECT_NO_RACE(shadow.engine_read(at(0, 2), 32, 16));
    write(33, 64, 16); /* after the fences */
    barrier();
    EXPECT_RACE(shadow.engine_read(at(0, 2), 64, 16));
}

TEST_F(Race, AnotherBlocksArrivalMayKnowEverything)
{
    write(0, 0);
    shadow.release_foreign(1ull << 62);
    write(0, 4);
    shadow.acquire(1ull << 62, 1);
    EXPECT_NO_RACE(read(32, 0));
    EXPECT_RACE(read(32, 4));
}

TEST_F(Race, TheReportNamesBothThreadsAndThePlace)
{
    write(5, 128);
    EXPECT_EQ(
        "thread 37 (warp 1) reads 4 bytes at shared offset 128 that thread 5 (warp 0) wrote at PTX line 100 with no "
        "barrier between",
        fault_of([&] { read(37, 128); }));
    EXPECT_EQ(
        "thread 6 (warp 0) writes 1 byte at shared offset 129 that thread 5 (warp 0) wrote at PTX line 100 with no "
        "__syncwarp or barrier between",
        fault_of([&] { write(6, 129, 1); }));
}

TEST_F(Race, ManySplitAndTabledCellsAreReused)
{
    for (int round = 0; round < 200; round++) {
        for (uint32_t at = 0; at < 1024; at++)
            EXPECT_NO_RACE(write((at * 7 + uint32_t(round)) % 128, at, 1));
        barrier();
        for (uint32_t t = 0; t < 128; t++)
            for (uint32_t at = 0; at < 64; at += 4)
                EXPECT_NO_RACE(read(t, at));
        barrier();
        for (uint32_t t = 0; t < 128; t++)
            EXPECT_NO_RACE(write(t, t * 8, 8));
        barrier();
    }
}

} // namespace
