/* Wavefronts of shared memory, as the banks make them: 32 banks of 4 bytes. */
#include <gtest/gtest.h>

#include "profile/counters.h"

using namespace ptxemu;

namespace
{
struct Counted {
    unsigned wavefronts, ideal;
    bool operator==(const Counted &o) const { return wavefronts == o.wavefronts && ideal == o.ideal; }
};
std::ostream &operator<<(std::ostream &s, const Counted &c)
{
    return s << c.wavefronts << " wavefronts, at best " << c.ideal;
}

template <class F>
Counted of(uint32_t bytes, F offset_of_lane, Lanes lanes = ALL_LANES)
{
    uint32_t offset[WARP_SIZE];
    for (unsigned l = 0; l < WARP_SIZE; l++)
        offset[l] = offset_of_lane(l);
    Counted c;
    c.wavefronts = wavefronts(offset, lanes, bytes, &c.ideal);
    return c;
}
Counted of_stride(uint32_t bytes, uint32_t words, Lanes lanes = ALL_LANES)
{
    return of(
        bytes, [=](unsigned l) { return l * words * 4; }, lanes);
}
} // namespace

TEST(Wavefronts, AStrideOfAPowerOfTwoWordsMeetsItsBanksAgain)
{
    EXPECT_EQ((Counted{1, 1}), of_stride(4, 1));
    EXPECT_EQ((Counted{2, 1}), of_stride(4, 2));
    EXPECT_EQ((Counted{4, 1}), of_stride(4, 4));
    EXPECT_EQ((Counted{8, 1}), of_stride(4, 8));
    EXPECT_EQ((Counted{16, 1}), of_stride(4, 16));
    EXPECT_EQ((Counted{32, 1}), of_stride(4, 32));
    EXPECT_EQ((Counted{32, 1}), of_stride(4, 64));
}

TEST(Wavefronts, AnOddStrideMeetsEveryBankOnce)
{
    for (uint32_t words : {3u, 5u, 31u, 33u, 35u})
        EXPECT_EQ((Counted{1, 1}), of_stride(4, words)) << words;
}

TEST(Wavefronts, TheSameWordIsGivenToAllAtOnce)
{
    EXPECT_EQ((Counted{1, 1}), of_stride(4, 0));
    EXPECT_EQ((Counted{1, 1}), of(4, [](unsigned l) { return l / 8 * 4; }));
    EXPECT_EQ((Counted{2, 1}), of(4, [](unsigned l) { return l % 2 * 128; })) << "two words of one bank";
    EXPECT_EQ((Counted{1, 1}), of(1, [](unsigned l) { return l; })) << "bytes of a word";
    EXPECT_EQ((Counted{1, 1}), of(2, [](unsigned l) { return l * 2; }));
    EXPECT_EQ((Counted{2, 1}), of(2, [](unsigned l) { return l * 8; })) << "halves, 16 words apart";
}

TEST(Wavefronts, EightBytesGoByHalfWarps)
{
    EXPECT_EQ((Counted{2, 2}), of_stride(8, 2));
    EXPECT_EQ((Counted{4, 2}), of_stride(8, 4));
    EXPECT_EQ((Counted{32, 2}), of_stride(8, 32));
    EXPECT_EQ((Counted{2, 2}), of_stride(8, 0));
    EXPECT_EQ((Counted{1, 1}), of_stride(8, 2, 0x0000ffff));
    EXPECT_EQ((Counted{1, 1}), of_stride(8, 2, 0xffff0000));
}

TEST(Wavefronts, SixteenBytesGoByQuarterWarps)
{
    EXPECT_EQ((Counted{4, 4}), of_stride(16, 4));
    EXPECT_EQ((Counted{8, 4}), of_stride(16, 8));
    EXPECT_EQ((Counted{32, 4}), of_stride(16, 32));
    EXPECT_EQ((Counted{4, 4}), of_stride(16, 36)) << "rows of 128 bytes, padded by 16";
    EXPECT_EQ((Counted{2, 2}), of_stride(16, 4, 0x00ff00ff));
}

TEST(Wavefronts, LanesThatDoNotTakePartNeedNothing)
{
    EXPECT_EQ((Counted{1, 1}), of_stride(4, 32, 1));
    EXPECT_EQ((Counted{2, 1}), of_stride(4, 32, 0x80000001));
    EXPECT_EQ((Counted{16, 1}), of_stride(4, 32, 0x55555555));
}

TEST(Wavefronts, ATransposedTileConflictsUnlessItIsPadded)
{
    for (unsigned column = 0; column < 32; column++) {
        EXPECT_EQ((Counted{32, 1}), of(4, [=](unsigned l) { return (l * 32 + column) * 4; }));
        EXPECT_EQ((Counted{1, 1}), of(4, [=](unsigned l) { return (l * 33 + column) * 4; }));
        EXPECT_EQ((Counted{1, 1}), of(4, [=](unsigned l) { return (l * 32 + (column ^ l)) * 4; })) << "swizzled";
    }
}

TEST(Counters, AddingUpKeepsSumsMaximaAndSets)
{
    Counters a, b;
    a.warp_instructions[0] = 1;
    b.warp_instructions[0] = 2;
    a.tensor_ops = 5;
    b.tensor_ops = 6;
    a.max_bytes_in_flight = 100;
    b.max_bytes_in_flight = 70;
    a.sectors = {1, 2};
    b.sectors = {2, 3};
    a.lines[7].global_sectors = 1;
    b.lines[7].global_sectors = 2;
    b.lines[8].instructions = 4;
    a.add(b);
    EXPECT_EQ(3u, a.warp_instructions[0]);
    EXPECT_EQ(11u, a.tensor_ops);
    EXPECT_EQ(100u, a.max_bytes_in_flight);
    EXPECT_EQ(3u, a.sectors.size());
    EXPECT_EQ(3u, a.lines[7].global_sectors);
    EXPECT_EQ(4u, a.lines[8].instructions);
}
