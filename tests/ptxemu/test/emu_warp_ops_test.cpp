/* shfl, vote, match, redux, activemask, elect: one warp, a value a lane. */
#include "test/emu.h"

#include <algorithm>
#include <random>

namespace
{

using Values = std::vector<uint32_t>;
constexpr unsigned WARP = 32;

Values lanes(uint32_t (*f)(unsigned lane))
{
    Values v(WARP);
    for (unsigned l = 0; l < WARP; l++)
        v[l] = f(l);
    return v;
}

Values random_lanes(uint32_t seed, uint32_t limit = 0)
{
    std::mt19937 r(seed);
    Values v(WARP);
    for (uint32_t &x : v)
        x = limit ? r() % limit : r();
    return v;
}

/* The statement in 32 threads: %a, %b, %c, %e in, %d out, all .b32. */
template <class... In>
Values run(const std::string &statement, const std::string &target, const In &...in)
{
    return emu::apply<uint32_t>(statement, "b32", std::vector<std::string>(sizeof...(in), "b32"), target, in...);
}

/* The same where the launch has to fail. */
template <class... In>
CUresult result_of(const std::string &statement, const std::string &target, const In &...in)
{
    emu::Module m(emu::op_module(statement, "b32", std::vector<std::string>(sizeof...(in), "b32"), target));
    emu::Buffer<uint32_t> d(WARP);
    auto go = [&](const auto &...b) { return emu::launch(m.get("k"), 1, WARP, 0, d.p, b.p..., WARP); };
    return go(emu::Buffer<uint32_t>(in)...);
}

CUresult load_result(const std::string &statement, const std::string &target)
{
    return emu::Module(emu::op_module(statement, "b32", {"b32"}, target), false).result;
}

/* ---- shfl ---- */

struct ShuffleCase {
    const char *mode;
    uint32_t clamp;                                               /* lower five bits of c */
    int (*source)(unsigned position, unsigned b, unsigned width); /* within the segment */
};
const ShuffleCase shuffles[] = {
    {"up", 0, [](unsigned p, unsigned b, unsigned) { return int(p) - int(b); }},
    {"down", 31, [](unsigned p, unsigned b, unsigned) { return int(p + b); }},
    {"bfly", 31, [](unsigned p, unsigned b, unsigned) { return int(p ^ b); }},
    {"idx", 31, [](unsigned, unsigned b, unsigned width) { return int(b % width); }},
};

class Shuffle : public testing::TestWithParam<ShuffleCase>
{
};

TEST_P(Shuffle, ReadsTheLaneOfItsSegmentOrKeepsItsOwnValue)
{
    emu::Device device;
    const ShuffleCase &t = GetParam();
    Values a = random_lanes(1);
    for (unsigned width : {1u, 2u, 4u, 8u, 16u, 32u})
        for (unsigned b = 0; b < 32; b++) {
            /* bits of b above 31 and of c outside its two fields do not count */
            Values bs(WARP, b | 0xabcd00e0u), cs(WARP, (WARP - width) << 8 | t.clamp | 0xffffe0e0u);
            std::string shfl = std::string("{ .reg .pred q; shfl.sync.") + t.mode + ".b32 %d|q, %a, %b, %c, -1; ";
            Values value = run(shfl + "}", "sm_75", a, bs, cs);
            Values valid = run(shfl + "selp.b32 %d, 1, 0, q; }", "sm_75", a, bs, cs);
            ASSERT_EQ(WARP, value.size());
            for (unsigned l = 0; l < WARP; l++) {
                unsigned segment = l / width * width;
                int j = t.source(l - segment, b, width);
                /* .bfly only looks at the upper end, and may therefore read from a lower segment */
                bool in = std::string(t.mode) == "bfly" ? (l ^ b) <= segment + width - 1 : j >= 0 && j < int(width);
                unsigned from = std::string(t.mode) == "bfly" ? l ^ b : segment + unsigned(j);
                EXPECT_EQ(in ? a[from] : a[l], value[l]) << t.mode << " width " << width << " b " << b << " lane " << l;
                EXPECT_EQ(in, valid[l]) << t.mode << " width " << width << " b " << b << " lane " << l;
            }
        }
}

INSTANTIATE_TEST_SUITE_P(Modes, Shuffle, testing::ValuesIn(shuffles),
                         [](const auto &info) { return std::string(info.param.mode); });

TEST(WarpOps, ShuffleByIndexMayReadAnotherLaneInEveryLane)
{
    emu::Device device;
    Values a = random_lanes(2), b = random_lanes(3, 32);
    Values d = run("shfl.sync.idx.b32 %d, %a, %b, 31, 0xffffffff;", "sm_75", a, b);
    for (unsigned l = 0; l < WARP; l++)
        EXPECT_EQ(a[b[l]], d[l]) << l;
}

TEST(WarpOps, TilesOfAWarpShuffleEachWithItsOwnMask)
{
    emu::Device device;
    Values a = random_lanes(4), mask = lanes([](unsigned l) { return 0xffu << l / 8 * 8; });
    Values d = run("shfl.sync.bfly.b32 %d, %a, 7, 0x181f, %b;", "sm_75", a, mask);
    for (unsigned l = 0; l < WARP; l++)
        EXPECT_EQ(a[l ^ 7], d[l]) << l;
}

TEST(WarpOps, ShuffleOverwritesItsSource)
{
    emu::Device device;
    Values a = random_lanes(5);
    Values d = run("mov.b32 %d, %a; shfl.sync.down.b32 %d, %d, 1, 31, -1;", "sm_75", a);
    for (unsigned l = 0; l < WARP; l++)
        EXPECT_EQ(a[std::min(l + 1, 31u)], d[l]) << l;
}

TEST(WarpOps, LanesOutsideOfAGuardKeepTheirRegister)
{
    emu::Device device;
    Values a = random_lanes(6);
    Values d = run("{ .reg .pred q; mov.b32 %d, 7; setp.lt.u32 q, %tx, 16;\n"
                   "@q shfl.sync.idx.b32 %d, %a, 3, 31, 0xffff; }",
                   "sm_75", a);
    for (unsigned l = 0; l < WARP; l++)
        EXPECT_EQ(l < 16 ? a[3] : 7, d[l]) << l;
}

/* ---- vote ---- */

TEST(WarpOps, VotesCombineThePredicatesOfTheMask)
{
    emu::Device device;
    Values half_mask = lanes([](unsigned l) { return l < 16 ? 0xffffu : 0xffff0000u; });
    Values full_mask(WARP, ~0u);
    for (uint32_t bits : {0u, ~0u, 1u, 0x80000000u, 0xffff0000u, 0x0000ffffu, 0x0001ffffu, 0xfffeffffu, 0x12345678u})
        for (const Values &mask : {full_mask, half_mask}) {
            Values a(WARP);
            for (unsigned l = 0; l < WARP; l++)
                a[l] = bits >> l & 1;
            auto vote = [&](const std::string &mode, const char *not_) {
                return run("{ .reg .pred p, q; setp.ne.u32 p, %a, 0; vote.sync." + mode + ".pred q, " + not_ +
                               "p, %b; selp.b32 %d, 1, 0, q; }",
                           "sm_75", a, mask);
            };
            Values all = vote("all", ""), any = vote("any", ""), uni = vote("uni", ""), none = vote("all", "!");
            Values ballot =
                run("{ .reg .pred p; setp.ne.u32 p, %a, 0; vote.sync.ballot.b32 %d, p, %b; }", "sm_75", a, mask);
            for (unsigned l = 0; l < WARP; l++) {
                uint32_t in = bits & mask[l];
                EXPECT_EQ(in == mask[l], all[l]);
                EXPECT_EQ(in != 0, any[l]);
                EXPECT_EQ(in == mask[l] || in == 0, uni[l]);
                EXPECT_EQ(in == 0, none[l]);
                EXPECT_EQ(in, ballot[l]);
            }
        }
}

/* ---- match ---- */

TEST(WarpOps, MatchAnyNamesTheLanesOfEqualValue)
{
    emu::Device device;
    Values a = random_lanes(7, 5), mask = lanes([](unsigned l) { return l % 2 ? 0xaaaaaaaau : 0x55555555u; });
    Values d = run("match.any.sync.b32 %d, %a, %b;", "sm_75", a, mask);
    /* values that differ in their upper half only */
    Values wide =
        run("{ .reg .b64 x; mov.b64 x, {%b, %a}; match.any.sync.b64 %d, x, 0xffffffff; }", "sm_75", a, Values(WARP, 9));
    for (unsigned l = 0; l < WARP; l++) {
        uint32_t same = 0;
        for (unsigned j = 0; j < WARP; j++)
            same |= uint32_t(a[j] == a[l]) << j;
        EXPECT_EQ(same & mask[l], d[l]) << l;
        EXPECT_EQ(same, wide[l]) << l;
    }
}

TEST(WarpOps, MatchAllIsTheMaskOrNothing)
{
    emu::Device device;
    Values mask = lanes([](unsigned l) { return l < 16 ? 0xffffu : 0xffff0000u; });
    Values a = lanes([](unsigned l) { return l < 16 ? 42u : l; });
    const std::string match = "{ .reg .pred p; match.all.sync.b32 %d|p, %a, %b; ";
    Values d = run(match + "}", "sm_75", a, mask), p = run(match + "selp.b32 %d, 1, 0, p; }", "sm_75", a, mask);
    Values wide = run("{ .reg .b64 x; mov.b64 x, {%a, %b}; match.all.sync.b64 %d, x, %b; }", "sm_75", a, mask);
    for (unsigned l = 0; l < WARP; l++) {
        EXPECT_EQ(l < 16 ? 0xffffu : 0, d[l]) << l;
        EXPECT_EQ(l < 16 ? 0xffffu : 0, wide[l]) << l;
        EXPECT_EQ(l < 16, p[l]) << l;
    }
}

/* ---- redux ---- */

template <class T, class F>
void reduces(const std::string &op, F f)
{
    std::vector<Values> inputs = {random_lanes(8), Values(WARP, 0x80000000u), Values(WARP, ~0u), Values(WARP, 0),
                                  lanes([](unsigned l) { return l == 17 ? 0x7fffffffu : 0x80000001u; })};
    for (const Values &a : inputs)
        for (uint32_t m : {~0u, 0x00ff00ffu, 1u, 0x80000000u}) {
            /* lanes of the mask and the others reduce apart */
            Values mask(WARP);
            for (unsigned l = 0; l < WARP; l++)
                mask[l] = m >> l & 1 ? m : ~m;
            Values d = run("redux.sync." + op + " %d, %a, %b;", "sm_80", a, mask);
            for (unsigned l = 0; l < WARP; l++) {
                bool first = true;
                T want = 0;
                for (unsigned j = 0; j < WARP; j++)
                    if (mask[l] >> j & 1) {
                        want = first ? T(a[j]) : T(f(want, T(a[j])));
                        first = false;
                    }
                EXPECT_EQ(uint32_t(want), d[l]) << op << " mask " << mask[l] << " lane " << l;
            }
        }
}

TEST(WarpOps, ReduxReducesTheLanesOfTheMask)
{
    emu::Device device;
    reduces<uint32_t>("add.u32", [](uint32_t a, uint32_t b) { return a + b; });
    reduces<int32_t>("add.s32", [](int32_t a, int32_t b) { return int64_t(a) + b; });
    reduces<uint32_t>("min.u32", [](uint32_t a, uint32_t b) { return a < b ? a : b; });
    reduces<uint32_t>("max.u32", [](uint32_t a, uint32_t b) { return a > b ? a : b; });
    reduces<int32_t>("min.s32", [](int32_t a, int32_t b) { return a < b ? a : b; });
    reduces<int32_t>("max.s32", [](int32_t a, int32_t b) { return a > b ? a : b; });
    reduces<uint32_t>("and.b32", [](uint32_t a, uint32_t b) { return a & b; });
    reduces<uint32_t>("or.b32", [](uint32_t a, uint32_t b) { return a | b; });
    reduces<uint32_t>("xor.b32", [](uint32_t a, uint32_t b) { return a ^ b; });
}

/* ---- activemask, elect ---- */

TEST(WarpOps, ActivemaskNamesTheLanesThatExecuteTogether)
{
    emu::Device device;
    Values a = lanes([](unsigned l) { return uint32_t(l % 3 == 0); });
    Values d = run("{ .reg .pred p; setp.ne.u32 p, %a, 0; mov.b32 %d, 0; @p activemask.b32 %d; }", "sm_75", a);
    uint32_t third = 0;
    for (unsigned l = 0; l < WARP; l += 3)
        third |= 1u << l;
    for (unsigned l = 0; l < WARP; l++)
        EXPECT_EQ(l % 3 == 0 ? third : 0, d[l]) << l;
}

TEST(WarpOps, ElectChoosesOneLaneOfEveryMask)
{
    emu::Device device;
    if (device.sm < 90)
        GTEST_SKIP() << "elect needs sm_90";
    Values mask = lanes([](unsigned l) { return l < 8 ? 0xffu : 0xffffff00u; });
    const std::string elect = "{ .reg .pred p; elect.sync %d|p, %a; ";
    Values leader = run(elect + "}", "sm_90", mask), p = run(elect + "selp.b32 %d, 1, 0, p; }", "sm_90", mask);
    for (unsigned l = 0; l < WARP; l++) {
        unsigned begin = l < 8 ? 0 : 8, end = l < 8 ? 8 : 32;
        ASSERT_LT(leader[l], WARP);
        EXPECT_TRUE(leader[l] >= begin && leader[l] < end) << l;
        EXPECT_EQ(leader[begin], leader[l]) << l;
        EXPECT_EQ(leader[l] == l, p[l]) << l;
    }
}

/* ---- what is refused ---- */

TEST(WarpOps, OlderAndNewerFormsAreErrorsAtLoad)
{
    emu::Device device;
    if (!emu::Driver::get().emulated())
        GTEST_SKIP() << "a GPU's driver has rules of its own";
    for (const char *statement :
         {"shfl.up.b32 %d, %a, 1, 0;", "{ .reg .pred p; setp.ne.u32 p, %a, 0; vote.ballot.b32 %d, p; }",
          "{ .reg .f32 f, g; mov.b32 f, %a; redux.sync.min.f32 g, f, -1; mov.b32 %d, g; }",
          "redux.sync.add.b32 %d, %a, -1;", "redux.sync.and.u32 %d, %a, -1;", "shfl.sync.left.b32 %d, %a, 1, 0, -1;",
          "match.some.sync.b32 %d, %a, -1;", "vote.sync.none.pred %d, %a, -1;"})
        EXPECT_EQ(CUDA_ERROR_INVALID_PTX, load_result(statement, "sm_80")) << statement;
    emu::Device turing("7.5");
    EXPECT_EQ(CUDA_ERROR_INVALID_PTX, load_result("redux.sync.add.u32 %d, %a, -1;", "sm_75"));
}

class WarpFault : public testing::Test
{
  protected:
    void SetUp() override
    {
        if (!emu::Driver::get().emulated())
            GTEST_SKIP() << "undefined on hardware";
    }
    void expect_missing(const std::string &statement, const char *words, const Values &a)
    {
        emu::Device device;
        EXPECT_EQ(CUDA_ERROR_LAUNCH_FAILED, result_of(statement, "sm_80", a)) << statement;
        EXPECT_NE(std::string::npos, emu::report().find("lanes missing")) << emu::report();
        EXPECT_NE(std::string::npos, emu::report().find(words)) << emu::report();
    }
};

TEST_F(WarpFault, ReadingALaneOutsideOfTheMask)
{
    Values half = lanes([](unsigned l) { return l < 16 ? 0xffffu : 0xffff0000u; });
    expect_missing("shfl.sync.idx.b32 %d, %a, 20, 31, %a;", "lane 0 reads the value of lane 20", half);
    emu::Device device; /* the same with a lane of the own mask */
    EXPECT_EQ(CUDA_SUCCESS, result_of("shfl.sync.idx.b32 %d, %a, 4, 0x101f, %a;", "sm_80", half));
}

TEST_F(WarpFault, AMaskWithoutTheExecutingLane)
{
    Values wrong = lanes([](unsigned l) { return l == 5 ? 0xffffffdfu : 0xffffffffu; });
    Values right(WARP, ~0u);
    for (const char *statement : {"shfl.sync.idx.b32 %d, %a, 0, 31, 0xffffffdf;",
                                  "match.any.sync.b32 %d, %a, 0xffffffdf;", "redux.sync.or.b32 %d, %a, 0xffffffdf;"})
        expect_missing(statement, "", right);
}

TEST_F(WarpFault, LanesOfTheMaskThatWaitElsewhere)
{
    Values a = lanes([](unsigned l) { return uint32_t(l < 16); });
    const std::string half = "{ .reg .pred p; mov.b32 %d, 0; setp.ne.u32 p, %a, 0;\n";
    auto shuffles = [&](const std::string &lower, const std::string &upper) {
        return half + "@p shfl.sync.idx.b32 %d, %a, 0, 31, " + lower + ";\n@!p shfl.sync.idx.b32 %d, %a, 16, 31, " +
               upper + "; }";
    };
    expect_missing(shuffles("-1", "-1"), "which do not come", a);
    emu::Device device;
    EXPECT_EQ(CUDA_SUCCESS, result_of(shuffles("0xffff", "0xffff0000"), "sm_80", a));
}

TEST_F(WarpFault, ANeverWrittenValueIsOnlyAFaultWhereItIsUsed)
{
    emu::Device device;
    Values a(WARP, 1);
    const std::string shuffle = "{ .reg .b32 x, y; .reg .pred p; setp.lt.u32 p, %tx, 16; @p mov.b32 x, %a;\n"
                                "shfl.sync.idx.b32 y, x, ";
    EXPECT_EQ(CUDA_SUCCESS, result_of(shuffle + "3, 31, -1; add.u32 %d, y, 1; }", "sm_80", a));
    EXPECT_EQ(CUDA_ERROR_LAUNCH_FAILED, result_of(shuffle + "20, 31, -1; add.u32 %d, y, 1; }", "sm_80", a));
    EXPECT_NE(std::string::npos, emu::report().find("never-written register")) << emu::report();
}

} // namespace
