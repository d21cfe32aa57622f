/* The machine from inside: paths of a warp, barriers, blocks that wait for each other, calls, and what goes wrong with them. */
#include "test/harness.h"

#include <numeric>

using namespace inside;

namespace
{
/* A kernel k(p_out, p_n): %o points at out[global thread index], %t is that index, %x is tid.x. */
std::string kernel(const std::string &registers, const std::string &body, const std::string &before = "")
{
    return before +
           ".visible .entry k(.param .u64 p_out, .param .u32 p_n)\n{\n"
           ".reg .b64 %o, %base;\n.reg .b32 %t, %x, %cta, %nt, %n, %lane;\n" +
           registers +
           "mov.u32 %x, %tid.x;\nmov.u32 %cta, %ctaid.x;\nmov.u32 %nt, %ntid.x;\nmov.u32 %lane, %laneid;\n"
           "mad.lo.u32 %t, %cta, %nt, %x;\nld.param.u32 %n, [p_n];\nld.param.u64 %base, [p_out];\n"
           "mul.wide.u32 %o, %t, 4;\nadd.u64 %o, %base, %o;\n" +
           body + "\n}\n";
}

struct Machine : testing::Test {
    Device d;
    Buffer<uint32_t> out{d, 4096};

    Result run(const std::string &text, unsigned blocks = 1, unsigned threads = 32, uint32_t n = 0)
    {
        Program p(d, text);
        return p.launch({blocks, 1, 1}, {threads, 1, 1}, out.p, n);
    }
    void expect_each(unsigned count, uint32_t (*f)(uint32_t))
    {
        for (uint32_t t = 0; t < count; t++)
            ASSERT_EQ(f(t), out.data()[t]) << "thread " << t;
    }
};

/* ---- divergence ---- */

const char *nested = R"(
    and.b32 %b0, %x, 1;
    setp.ne.u32 %p, %b0, 0;
    and.b32 %b1, %x, 2;
    setp.ne.u32 %q, %b1, 0;
    mov.u32 %r, 0;
    @!%p bra EVEN;
    @!%q bra ODD_LOW;
    add.u32 %r, %r, 30;
    bra ODD_JOIN;
ODD_LOW:
    add.u32 %r, %r, 10;
ODD_JOIN:
    add.u32 %r, %r, 100;
    bra JOIN;
EVEN:
    @%q add.u32 %r, %r, 20;
JOIN:
    add.u32 %r, %r, %x;
    activemask.b32 %m;
    st.global.u32 [%o], %r;
    st.global.u32 [%o+128], %m;
    ret;
)";

TEST_F(Machine, NestedBranchesTakeEveryLaneItsOwnWayAndMeetAgain)
{
    auto r = run(kernel(".reg .pred %p, %q;\n.reg .b32 %b0, %b1, %r, %m;\n", nested));
    expect_ok(r);
    expect_each(32, [](uint32_t t) { return t + (t & 1 ? (t & 2 ? 130 : 110) : t & 2 ? 20 : 0); });
    EXPECT_EQ(ALL_LANES, out.data()[32]) << "all lanes are together at the join";
    EXPECT_EQ(2u, r.counters.divergent_branches);
}

TEST_F(Machine, LoopsWithDifferentTripCountsMeetAtTheirEnd)
{
    auto r = run(kernel(".reg .pred %p;\n.reg .b32 %s, %k, %m;\n", R"(
    mov.u32 %s, 0;
    mov.u32 %k, 0;
LOOP:
    add.u32 %s, %s, %k;
    add.u32 %k, %k, 1;
    setp.le.u32 %p, %k, %x;
    @%p bra LOOP;
    activemask.b32 %m;
    st.global.u32 [%o], %s;
    st.global.u32 [%o+256], %m;
    ret;
)"),
                 1, 64);
    expect_ok(r);
    expect_each(64, [](uint32_t t) { return t * (t + 1) / 2; });
    EXPECT_EQ(ALL_LANES, out.data()[64]);
    EXPECT_EQ(ALL_LANES, out.data()[127]);
}

TEST_F(Machine, LanesThatReturnEarlyAreGoneAndOthersGoOn)
{
    auto r = run(kernel(".reg .pred %p;\n.reg .b32 %m;\n", R"(
    setp.ge.u32 %p, %x, 20;
    @%p ret;
    activemask.b32 %m;
    st.global.u32 [%o], %m;
    exit;
)"));
    expect_ok(r);
    EXPECT_EQ((1u << 20) - 1, out.data()[19]);
    EXPECT_EQ(0u, out.data()[20]);
}

TEST_F(Machine, SwitchTableSendsEachLaneToItsTarget)
{
    auto r = run(kernel(".reg .b32 %i, %r;\n", R"(
    rem.u32 %i, %x, 3;
    mov.u32 %r, 7;
TABLE: .branchtargets ZERO, ONE, TWO;
    brx.idx %i, TABLE;
ZERO:
    add.u32 %r, %r, 1;
    bra END;
ONE:
    add.u32 %r, %r, 10;
    bra END;
TWO:
    add.u32 %r, %r, 100;
END:
    st.global.u32 [%o], %r;
    ret;
)"));
    expect_ok(r);
    expect_each(32, [](uint32_t t) { return 7u + (t % 3 == 0 ? 1 : t % 3 == 1 ? 10 : 100); });
    EXPECT_EQ(1u, r.counters.divergent_branches);
}

TEST_F(Machine, SwitchIndexBeyondTheTableIsReported)
{
    expect_fault(run(kernel("", "T: .branchtargets A;\nbrx.idx %x, T;\nA: ret;")), FaultKind::invalid_pc,
                 "entry 1 of a table of 1");
}

/* ---- waiting within a warp and between blocks ---- */

const char *locked_increment = R"(
SPIN:
    atom.global.cas.b32 %r, [%base], 0, 1;
    setp.ne.u32 %p, %r, 0;
    @%p bra SPIN;
    ld.volatile.global.u32 %r, [%base+4];
    add.u32 %r, %r, 1;
    st.volatile.global.u32 [%base+4], %r;
    membar.gl;
    atom.global.exch.b32 %r, [%base], 0;
    ret;
)";
const char *lock_registers = ".reg .pred %p;\n.reg .b32 %r;\n";

TEST_F(Machine, SpinLockBetweenLanesOfOneWarpEnds)
{
    expect_ok(run(kernel(lock_registers, locked_increment)));
    EXPECT_EQ(32u, out.data()[1]);
}

TEST_F(Machine, LanesThatSpinOnAFlagLetTheLaneOfTheirWarpSetIt)
{
    expect_ok(run(kernel(".reg .pred %p;\n.reg .b32 %r;\n", R"(
    setp.eq.u32 %p, %x, 5;
    @%p bra SET;
SPIN:
    ld.global.u32 %r, [%base];
    setp.eq.u32 %p, %r, 0;
    @%p bra SPIN;
    st.global.u32 [%o+128], %r;
    ret;
SET:
    mov.u32 %r, 9;
    st.volatile.global.u32 [%base], %r;
    ret;
)")));
    EXPECT_EQ(9u, out.data()[32 + 31]);
}

TEST_F(Machine, SpinLockBetweenBlocksEnds)
{
    for (unsigned threads : {1u, 2u}) {
        out.data()[1] = 0;
        d.options.threads = threads;
        expect_ok(run(kernel(lock_registers, locked_increment), 40, 1));
        EXPECT_EQ(40u, out.data()[1]);
    }
}

/* Block b waits until block b + 1 has said that it is done. */
const char *waits_for_the_next = R"(
    mov.u32 %c, %nctaid.x;
    add.u32 %r, %cta, 1;
    setp.eq.u32 %p, %r, %c;
    @%p bra DONE;
WAIT:
    ld.acquire.gpu.global.u32 %r, [%o+4];
    setp.eq.u32 %p, %r, 0;
    @%p bra WAIT;
DONE:
    mov.u32 %r, 1;
    st.release.gpu.global.u32 [%o], %r;
    ret;
)";

TEST_F(Machine, BlocksThatFitOnTheDeviceMayWaitForLaterOnes)
{
    expect_ok(run(kernel(".reg .pred %p;\n.reg .b32 %r, %c;\n", waits_for_the_next), 64, 1));
}

TEST_F(Machine, BlocksThatDoNotFitOnTheDeviceDeadlockAsThere)
{
    d.options.patience = 200000;
    const std::string text = kernel(".reg .pred %p;\n.reg .b32 %r, %c;\n", waits_for_the_next);
    for (unsigned threads : {1u, 2u}) {
        d.options.threads = threads;
        expect_fault(run(text, 200, 1), FaultKind::deadlock, "128 of 200 blocks have begun");
    }
}

TEST_F(Machine, CooperativeLaunchHasAllBlocksResident)
{
    Program p(d, kernel(".reg .pred %p;\n.reg .b32 %r, %c;\n", waits_for_the_next));
    Launch l = p.prepare({200, 1, 1}, {1, 1, 1});
    const uint32_t n = 0;
    Program::put(l, 0, &out.p, 8);
    Program::put(l, 1, &n, 4);
    l.cooperative = true;
    expect_ok(p.run(l));
}

/* ---- barriers ---- */

TEST_F(Machine, BarrierMakesWritesOfOtherWarpsVisible)
{
    auto r = run(kernel(".shared .align 4 .b32 s[128];\n.reg .b32 %a, %v;\n", R"(
    mov.u32 %a, s;
    mad.lo.u32 %a, %x, 4, %a;
    st.shared.u32 [%a], %x;
    bar.sync 0;
    xor.b32 %v, %x, 96;
    mov.u32 %a, s;
    mad.lo.u32 %a, %v, 4, %a;
    ld.shared.u32 %v, [%a];
    st.global.u32 [%o], %v;
    ret;
)"),
                 1, 128);
    expect_ok(r);
    expect_each(128, [](uint32_t t) { return t ^ 96; });
    EXPECT_EQ(4u, r.counters.barriers);
}

TEST_F(Machine, BarrierOfAPartialWarpCountsItWhole)
{
    expect_ok(run(kernel("", "bar.sync 0, 64;\nbar.sync 0;\nst.global.u32 [%o], %x;\nret;"), 1, 40));
    expect_each(40, [](uint32_t t) { return t; });
}

TEST_F(Machine, BarrierDoesNotWaitForWarpsThatHaveExited)
{
    expect_ok(run(kernel(".reg .pred %p;\n", R"(
    setp.ge.u32 %p, %x, 64;
    @%p exit;
    bar.sync 0;
    st.global.u32 [%o], %x;
    ret;
)"),
                  1, 128));
    expect_each(64, [](uint32_t t) { return t; });
}

/* Warps 0 and 1 produce, 2 and 3 consume, through two named barriers, eight rounds. */
const char *producer_consumer = R"(
    mov.u32 %a, s;
    and.b32 %v, %x, 63;
    mad.lo.u32 %a, %v, 4, %a;
    mov.u32 %k, 0;
    mov.u32 %s, 0;
    setp.ge.u32 %p, %x, 64;
    @%p bra CONSUME;
PRODUCE:
    mad.lo.u32 %v, %k, 1000, %x;
    st.shared.u32 [%a], %v;
    bar.arrive 1, 128;
    bar.sync 2, 128;
    add.u32 %k, %k, 1;
    setp.lt.u32 %p, %k, 8;
    @%p bra PRODUCE;
    ret;
CONSUME:
    bar.sync 1, 128;
    ld.shared.u32 %v, [%a];
    add.u32 %s, %s, %v;
    bar.arrive 2, 128;
    add.u32 %k, %k, 1;
    setp.lt.u32 %p, %k, 8;
    @%p bra CONSUME;
    st.global.u32 [%o+-256], %s;
    ret;
)";

TEST_F(Machine, NamedBarriersConnectProducersAndConsumers)
{
    auto r = run(kernel(".shared .align 4 .b32 s[64];\n.reg .pred %p;\n.reg .b32 %a, %v, %k, %s;\n", producer_consumer),
                 1, 128);
    expect_ok(r);
    expect_each(64, [](uint32_t t) { return 28000 + 8 * t; });
}

TEST_F(Machine, BarrierReductionsGiveTheSameToAll)
{
    auto r = run(kernel(".reg .pred %p, %q, %r;\n.reg .b32 %v, %w, %u;\n", R"(
    setp.lt.u32 %p, %x, 37;
    barrier.red.popc.aligned.u32 %v, 0, %p;
    bar.red.or.pred %q, 0, %p;
    bar.red.and.pred %r, 0, !%p;
    selp.u32 %w, 1000, 0, %q;
    selp.u32 %u, 5000, 0, %r;
    add.u32 %v, %v, %w;
    add.u32 %v, %v, %u;
    st.global.u32 [%o], %v;
    ret;
)"),
                 1, 96);
    expect_ok(r);
    expect_each(96, [](uint32_t) { return 1037u; });
}

TEST_F(Machine, BarrierWithoutAlignedIsMetFromBothSidesOfABranch)
{
    expect_ok(run(kernel(".reg .pred %p;\n", R"(
    setp.lt.u32 %p, %x, 16;
    @%p bra A;
    barrier.sync 0;
    bra END;
A:
    barrier.sync 0;
END:
    st.global.u32 [%o], %x;
    ret;
)"),
                  1, 64));
    expect_each(64, [](uint32_t t) { return t; });
}

TEST_F(Machine, DivergentBarrierIsReportedWithWhoIsMissing)
{
    auto r = run(kernel(".reg .pred %p;\n", R"(
    setp.ge.u32 %p, %x, 16;
    @%p bra SKIP;
    bar.sync 0;
SKIP:
    bar.sync 1;
    ret;
)"));
    expect_fault(r, FaultKind::divergent_barrier, "lanes 0-15 of warp 0 wait here for lanes 16-31");
    EXPECT_NE(std::string::npos, r.report().find("lanes 16-31 wait at `bar.sync 1`")) << r.report();
}

TEST_F(Machine, WarpsAtDifferentBarriersAreReported)
{
    auto r = run(kernel(".reg .pred %p;\n", R"(
    setp.ge.u32 %p, %x, 32;
    @%p bra B;
    bar.sync 1;
    ret;
B:
    bar.sync 2;
    ret;
)"),
                 1, 64);
    expect_fault(r, FaultKind::mismatched_barrier, "at barrier 1");
    EXPECT_NE(std::string::npos, r.report().find("at barrier 2")) << r.report();
}

TEST_F(Machine, WarpsWithDifferentCountsAreReported)
{
    expect_fault(
        run(kernel(".reg .b32 %c;\n", "and.b32 %c, %x, 32;\nadd.u32 %c, %c, 64;\nbar.sync 1, %c;\nret;"), 1, 96),
        FaultKind::mismatched_barrier, "this warp says 96 threads, others who have come said 64");
    expect_fault(run(kernel("", "bar.sync 1, 96;\nret;"), 1, 64), FaultKind::mismatched_barrier,
                 "waits for 96 threads");
}

TEST_F(Machine, BarrierWithTooFewComingIsReported)
{
    expect_fault(run(kernel(".reg .pred %p;\n", "setp.ge.u32 %p, %x, 32;\n@%p exit;\nbar.sync 1, 64;\nret;"), 1, 64),
                 FaultKind::mismatched_barrier, "at barrier 1, which is for 64 threads, 32 have come (warps 0)");
}

TEST_F(Machine, ArrivingTwiceAtOneBarrierIsReported)
{
    expect_fault(run(kernel("", "bar.arrive 1, 96;\nbar.arrive 1, 96;\nret;"), 1, 96), FaultKind::mismatched_barrier,
                 "arrive at barrier 1 a second time");
}

TEST_F(Machine, BarrierMetWithDifferentReductionsIsReported)
{
    expect_fault(run(kernel(".reg .pred %p, %q;\n", R"(
    setp.lt.u32 %p, %x, 32;
    @%p bra AND;
    bar.red.or.pred %q, 0, %p;
    ret;
AND:
    bar.red.and.pred %q, 0, %p;
    ret;
)"),
                     1, 64),
                 FaultKind::mismatched_barrier, "comes with bar.red.or, another one waits with bar.red.and");
}

/* ---- clusters, and what sm_90 has for registers and dependent launches ---- */

struct Hopper : testing::Test {
    Device d{90, 'a'};
    Buffer<uint32_t> out{d, 4096};

    Result run(const std::string &body, const std::string &registers = ".reg .pred %p;\n.reg .b32 %r;\n")
    {
        Program p(d, kernel(registers, body));
        Launch l = p.prepare({4, 1, 1}, {40, 1, 1});
        const uint32_t n = 0;
        Program::put(l, 0, &out.p, 8);
        Program::put(l, 1, &n, 4);
        l.cluster = {2, 1, 1};
        return p.run(l);
    }
};

TEST_F(Hopper, ClusterBarrierMakesSharedMemoryOfTheOtherBlockVisible)
{
    expect_ok(run(R"(
    setp.eq.u32 %p, %x, 0;
    @%p st.shared.u32 [s], %cta;
    barrier.cluster.arrive.release.aligned;
    mov.u32 %r, %cluster_ctarank;
    xor.b32 %r, %r, 1;
    mov.u32 %a, s;
    mapa.shared::cluster.u32 %a, %a, %r;
    barrier.cluster.wait.acquire.aligned;
    ld.shared::cluster.u32 %r, [%a];
    st.global.u32 [%o], %r;
    barrier.cluster.arrive;
    barrier.cluster.wait;
    ret;
)",
                  ".shared .align 4 .b32 s;\n.reg .pred %p;\n.reg .b32 %r, %a;\n"));
    for (uint32_t t = 0; t < 160; t++)
        ASSERT_EQ((t / 40) ^ 1, out.data()[t]) << t;
}

TEST_F(Hopper, ClusterBarrierDoesNotWaitForThreadsThatHaveExited)
{
    expect_ok(run(R"(
    and.b32 %r, %cta, 1;
    setp.eq.u32 %p, %r, 1;
    @%p exit;
    barrier.cluster.arrive;
    barrier.cluster.wait;
    st.global.u32 [%o], 7;
    ret;
)"));
    EXPECT_EQ(7u, out.data()[0]);
    EXPECT_EQ(0u, out.data()[40]);
}

TEST_F(Hopper, ClusterBarrierOutOfOrderIsReported)
{
    expect_fault(run("barrier.cluster.wait;\nret;"), FaultKind::mismatched_barrier, "without having arrived");
    expect_fault(run("barrier.cluster.arrive;\nbarrier.cluster.arrive;\nret;"), FaultKind::mismatched_barrier,
                 "again without having waited");
}

TEST_F(Hopper, BlockThatWaitsElsewhereStopsTheClusterWithAReport)
{
    expect_fault(run(R"(
    setp.lt.u32 %p, %x, 32;
    @%p bra A;
    bar.sync 3, 64;
A:
    barrier.cluster.arrive;
    barrier.cluster.wait;
    ret;
)"),
                 FaultKind::mismatched_barrier, "at the cluster's barrier: warps 0");
}

TEST_F(Hopper, HintsChangeNothing)
{
    expect_ok(run("setmaxnreg.dec.sync.aligned.u32 40;\ngriddepcontrol.wait;\ngriddepcontrol.launch_dependents;\n"
                  "nanosleep.u32 100;\npmevent 3;\nst.global.u32 [%o], %t;\nret;"));
    for (uint32_t t = 0; t < 160; t++)
        ASSERT_EQ(t, out.data()[t]);
}

TEST_F(Hopper, WhatTheArchitectureDoesNotHaveIsAnErrorAtLoad)
{
    auto message = [](Device &device, const std::string &body) -> std::string {
        try {
            Program p(device, kernel("", body));
        } catch (const ptx::Error &e) {
            return e.what();
        }
        return "";
    };
    EXPECT_NE(std::string::npos, message(d, "setmaxnreg.inc.sync.aligned.u32 41;\nret;").find("multiple of 8"));
    Device ampere;
    EXPECT_NE(std::string::npos, message(ampere, "griddepcontrol.wait;\nret;").find("sm_90"));
    EXPECT_NE(std::string::npos, message(ampere, "barrier.cluster.arrive;\nret;").find("sm_90"));
    EXPECT_NE(std::string::npos, message(ampere, "bar.arrive 1;\nret;").find("number of threads"));
    EXPECT_EQ("", message(d, "griddepcontrol.wait;\nret;"));
}

/* ---- lanes that have to come together ---- */

TEST_F(Machine, WarpSyncIsMetFromBothSidesOfABranch)
{
    expect_ok(run(kernel(".shared .align 4 .b32 s[32];\n.reg .pred %p;\n.reg .b32 %a, %b, %v;\n", R"(
    mov.u32 %a, s;
    xor.b32 %v, %x, 16;
    mad.lo.u32 %b, %v, 4, %a;
    mad.lo.u32 %a, %x, 4, %a;
    setp.lt.u32 %p, %x, 16;
    @%p bra LOW;
    st.shared.u32 [%a], 5;
    bar.warp.sync 0xffffffff;
    ld.shared.u32 %v, [%b];
    bra END;
LOW:
    st.shared.u32 [%a], 6;
    bar.warp.sync 0xffffffff;
    ld.shared.u32 %v, [%b];
END:
    st.global.u32 [%o], %v;
    ret;
)")));
    expect_each(32, [](uint32_t t) { return t < 16 ? 5u : 6u; });
}

TEST_F(Machine, LanesMissingAtWarpSyncAreReported)
{
    expect_fault(run(kernel(".reg .pred %p;\n", R"(
    setp.lt.u32 %p, %x, 8;
    @%p bra LOW;
    bar.warp.sync 0xffffffff;
    ret;
LOW:
    bar.warp.sync 0x000000ff;
    bar.warp.sync 0x00000fff;
    ret;
)")),
                 FaultKind::missing_lanes, "wait here for lanes");
}

TEST_F(Machine, MaskThatDoesNotNameTheLaneIsReported)
{
    expect_fault(run(kernel("", "bar.warp.sync 0x7fffffff;\nret;")), FaultKind::missing_lanes,
                 "lane 31 executes the instruction with the mask 0x7fffffff");
}

/* ---- never-written registers ---- */

TEST_F(Machine, NeverWrittenRegisterIsReportedByName)
{
    const std::string text = kernel(".reg .pred %p;\n.reg .b32 %v;\n", R"(
    setp.lt.u32 %p, %x, 30;
    @%p mov.u32 %v, 3;
    add.u32 %v, %v, 1;
    st.global.u32 [%o], %v;
    ret;
)");
    expect_fault(run(text), FaultKind::uninitialized_register, "%v was never written in lanes 30-31 of warp 0");
    d.options.check = false;
    expect_ok(run(text));
}

TEST_F(Machine, NeverWrittenGuardIsReported)
{
    expect_fault(run(kernel(".reg .pred %p;\n", "@%p bra E;\nE: ret;")), FaultKind::uninitialized_register,
                 "the guard %p was never written");
}

TEST_F(Machine, CopyOfANeverWrittenRegisterIsFineUntilItIsUsed)
{
    const char *regs = ".reg .pred %p;\n.reg .b32 %v, %u, %w;\n";
    expect_ok(run(kernel(regs, "mov.u32 %u, %v;\nsetp.lt.u32 %p, %x, 99;\nselp.u32 %w, %x, %u, %p;\n"
                               "add.u32 %w, %w, 1;\nst.global.u32 [%o], %w;\nret;")));
    expect_each(32, [](uint32_t t) { return t + 1; });
    expect_fault(run(kernel(regs, "mov.u32 %u, %v;\nadd.u32 %w, %u, 1;\nret;")), FaultKind::uninitialized_register,
                 "%u");
}

/* ---- calls ---- */

const char *factorial = R"(
.func (.param .b32 r) factorial(.param .b32 a)
{
    .reg .pred %p;
    .reg .b32 %n, %m, %v;
    ld.param.u32 %n, [a];
    setp.gt.u32 %p, %n, 1;
    @%p bra MORE;
    st.param.b32 [r], 1;
    ret;
MORE:
    sub.u32 %m, %n, 1;
    {
    .param .b32 arg;
    .param .b32 res;
    st.param.b32 [arg], %m;
    call.uni (res), factorial, (arg);
    ld.param.b32 %v, [res];
    }
    mul.lo.u32 %v, %v, %n;
    st.param.b32 [r], %v;
    ret;
}
)";

TEST_F(Machine, RecursionToDifferentDepthsGivesEveryLaneItsResult)
{
    expect_ok(run(kernel(".reg .b32 %v;\n", R"(
    and.b32 %v, %x, 7;
    {
    .param .b32 arg;
    .param .b32 res;
    st.param.b32 [arg], %v;
    call.uni (res), factorial, (arg);
    ld.param.b32 %v, [res];
    }
    st.global.u32 [%o], %v;
    ret;
)",
                         factorial)));
    expect_each(32, [](uint32_t t) {
        uint32_t f = 1;
        for (uint32_t k = 2; k <= (t & 7); k++)
            f *= k;
        return f;
    });
}

TEST_F(Machine, EndlessRecursionIsReported)
{
    expect_fault(run(kernel("", "call deeper;\nret;",
                            ".func deeper()\n{\n.local .b64 big[64];\n.reg .b64 %a;\n"
                            "mov.u64 %a, big;\nst.local.u64 [%a], 1;\ncall deeper;\nret;\n}\n")),
                 FaultKind::stack_overflow, "deeper");
}

const char *two_functions = R"(
.func (.param .b32 r) twice(.param .b32 a)
{
    .reg .b32 %v;
    ld.param.u32 %v, [a];
    add.u32 %v, %v, %v;
    st.param.b32 [r], %v;
    ret;
}
.func (.param .b32 r) square(.param .b32 a)
{
    .reg .b32 %v;
    ld.param.u32 %v, [a];
    mul.lo.u32 %v, %v, %v;
    st.param.b32 [r], %v;
    ret;
}
)";

std::string indirect(const std::string &choose)
{
    return kernel(".reg .pred %p;\n.reg .b32 %v;\n.reg .b64 %f, %g;\n", choose + R"(
    {
    .param .b32 arg;
    .param .b32 res;
    st.param.b32 [arg], %x;
    proto: .callprototype (.param .b32 _) _ (.param .b32 _);
    call (res), %f, (arg), proto;
    ld.param.b32 %v, [res];
    }
    st.global.u32 [%o], %v;
    ret;
)",
                  two_functions);
}

TEST_F(Machine, CallThroughAPointerGoesWhereEachLaneSays)
{
    expect_ok(run(indirect("mov.u64 %f, twice;\nmov.u64 %g, square;\nsetp.lt.u32 %p, %x, 10;\n"
                           "selp.b64 %f, %f, %g, %p;\n")));
    expect_each(32, [](uint32_t t) { return t < 10 ? 2 * t : t * t; });
}

TEST_F(Machine, CallThroughAWrongPointerIsReported)
{
    expect_fault(run(indirect("mov.u64 %f, 4096;\n")), FaultKind::invalid_pc, "call of 0x1000, which is no function");
}

TEST_F(Machine, GuardedCallLeavesTheOtherLanesAlone)
{
    expect_ok(run(kernel(".reg .pred %p;\n.reg .b32 %v;\n", R"(
    setp.lt.u32 %p, %x, 5;
    .param .b32 arg;
    .param .b32 res;
    st.param.b32 [arg], %x;
    st.param.b32 [res], 99;
    @%p call (res), square, (arg);
    ld.param.b32 %v, [res];
    st.global.u32 [%o], %v;
    ret;
)",
                         two_functions)));
    expect_each(32, [](uint32_t t) { return t < 5 ? t * t : 99; });
}

TEST_F(Machine, ArgumentsAndResultsMayBeRegisters)
{
    expect_ok(run(kernel(".reg .b32 %v;\n", "call (%v), square, (%x);\nst.global.u32 [%o], %v;\nret;", two_functions)));
    expect_each(32, [](uint32_t t) { return t * t; });
}

/* Lane 3 takes a way round and calls when the others wait inside of the function already: each has locals, predicates and
 * wide registers of its own, there and in the caller. */
TEST_F(Machine, LanesThatCallOneAfterAnotherMeetAtAWarpInstructionOfTheFunction)
{
    for (const char *instruction :
         {"vote.sync.ballot.b32 %v, %p, 0xffffffff;", "shfl.sync.bfly.b32 %v, %y, 0, 31, 0xffffffff;"})
        expect_ok(run(kernel(
            ".reg .b32 %v, %m;\n.reg .b64 %w;\n.reg .pred %p, %q;\n",
            "setp.eq.u32 %q, %x, 3;\n@%q bra FAR;\nmov.u64 %w, 5;\n"
            "HERE: call (%v), meets, (%x);\nactivemask.b32 %m;\n"
            "setp.ne.u32 %p, %m, -1;\n@%p trap;\ncvt.u32.u64 %m, %w;\nmad.lo.u32 %v, %m, 100, %v;\n"
            "st.global.u32 [%o], %v;\nret;\nFAR: mov.u64 %w, 7;\nbra HERE;",
            ".func (.param .b32 r) meets(.param .b32 a)\n{\n.reg .b32 %v, %y;\n.reg .b64 %w;\n.reg .pred %p, %odd;\n"
            "ld.param.u32 %y, [a];\ncvt.u64.u32 %w, %y;\nand.b32 %v, %y, 1;\nsetp.eq.u32 %odd, %v, 1;\n"
            "setp.lt.u32 %p, %y, 8;\n" +
                std::string(instruction) +
                "\ncvt.u32.u64 %v, %w;\n@%odd add.u32 %v, %v, 10;\nst.param.b32 [r], %v;\nret;\n}\n")));
    expect_each(32, [](uint32_t t) { return t + (t & 1 ? 10 : 0) + (t == 3 ? 700 : 500); });
}

TEST_F(Machine, LanesReturnFromAFunctionAtDifferentPlacesAndMeetBehindTheCall)
{
    expect_ok(run(kernel(".reg .b32 %v, %m;\n",
                         "call (%v), three_ways, (%x);\nactivemask.b32 %m;\nst.global.u32 [%o], %v;\n"
                         "st.global.u32 [%o+128], %m;\nret;",
                         R"(
.func (.param .b32 r) three_ways(.param .b32 a)
{
    .reg .pred %p;
    .reg .b32 %v;
    ld.param.u32 %v, [a];
    st.param.b32 [r], 1;
    setp.lt.u32 %p, %v, 10;
    @%p ret;
    st.param.b32 [r], 2;
    setp.lt.u32 %p, %v, 20;
    @%p bra OUT;
    st.param.b32 [r], 3;
    ret;
OUT:
    ret;
}
)")));
    expect_each(32, [](uint32_t t) { return t < 10 ? 1u : t < 20 ? 2u : 3u; });
    EXPECT_EQ(ALL_LANES, out.data()[32]);
}

TEST_F(Machine, UnwrittenArgumentIsReportedWhereItIsUsed)
{
    expect_fault(run(kernel(".reg .b32 %v, %u;\n", "call (%v), square, (%u);\nret;", two_functions)),
                 FaultKind::uninitialized_register, "mul.lo.u32");
}

/* 256 bytes, 512 and so on of local memory, until it is exhausted. */
TEST_F(Machine, AllocaBeyondLocalMemoryIsReported)
{
    auto r = run(kernel(".reg .pred %p;\n.reg .b64 %v, %k;\n", "mov.u64 %k, 256;\nL:\nalloca.u64 %v, %k, 16;\n"
                                                               "add.u64 %k, %k, %k;\nbra L;\nret;"));
    expect_fault(r, FaultKind::stack_overflow, "alloca of");
}

TEST_F(Machine, StackrestoreTakesOnlyWhatStacksaveGave)
{
    auto r = run(kernel(".reg .b64 %v;\n", "stacksave.u64 %v;\nadd.u64 %v, %v, 64;\nstackrestore.u64 %v;\nret;"));
    expect_fault(r, FaultKind::stack_overflow, "stackrestore");
}

TEST_F(Machine, TrapIsReportedWithItsThread)
{
    auto r = run(kernel(".reg .pred %p;\n", "setp.eq.u32 %p, %x, 37;\n@%p trap;\nret;"), 2, 64);
    expect_fault(r, FaultKind::trap, "block (0,0,0) thread (37,0,0) lane 5");
}

TEST_F(Machine, TheFaultOfTheLowestBlockIsReported)
{
    for (unsigned threads : {1u, 2u}) {
        d.options.threads = threads;
        auto r = run(kernel(".reg .pred %p;\n", "setp.ge.u32 %p, %cta, 7;\n@%p trap;\nret;"), 64, 32);
        expect_fault(r, FaultKind::trap, "block (7,0,0)");
    }
}

TEST_F(Machine, OneAndTwoHostThreadsGiveTheSame)
{
    const std::string text = kernel(".reg .pred %p;\n.reg .b32 %s, %k;\n", R"(
    mov.u32 %s, %t;
    mov.u32 %k, 0;
LOOP:
    mad.lo.u32 %s, %s, 1664525, 1013904223;
    add.u32 %k, %k, 1;
    and.b32 %n, %s, 63;
    setp.ne.u32 %p, %n, 0;
    @%p bra LOOP;
    st.global.u32 [%o], %s;
    ret;
)");
    std::vector<uint32_t> results[2];
    Counters counters[2];
    for (unsigned k = 0; k < 2; k++) {
        std::fill_n(out.data(), out.n, 0);
        d.options.threads = k + 1;
        auto r = run(text, 32, 128);
        expect_ok(r);
        results[k] = out.get();
        counters[k] = r.counters;
    }
    EXPECT_EQ(results[0], results[1]);
    for (size_t c = 0; c < size_t(Class::count); c++)
        EXPECT_EQ(counters[0].warp_instructions[c], counters[1].warp_instructions[c]);
}

/* ---- special registers, occupancy ---- */

TEST_F(Machine, SpecialRegistersOfAThreeDimensionalLaunch)
{
    Program p(d, kernel(".reg .b32 %a, %b, %c;\n", R"(
    mov.u32 %a, %tid.y;
    mov.u32 %b, %tid.z;
    mov.u32 %c, %ctaid.y;
    mad.lo.u32 %a, %b, 10, %a;
    mad.lo.u32 %a, %a, 10, %x;
    mad.lo.u32 %a, %c, 1000, %a;
    mov.u32 %b, %tid.z;
    mad.lo.u32 %b, %b, 2, 0;
    mov.u32 %c, %tid.y;
    add.u32 %b, %b, %c;
    mad.lo.u32 %b, %b, 5, %x;
    mov.u32 %c, %ctaid.y;
    mad.lo.u32 %b, %c, 40, %b;
    mul.wide.u32 %o, %b, 4;
    add.u64 %o, %base, %o;
    st.global.u32 [%o], %a;
    ret;
)"));
    expect_ok(p.launch({1, 3, 1}, {5, 2, 4}, out.p, 0u));
    for (uint32_t c = 0; c < 3; c++)
        for (uint32_t t = 0; t < 40; t++)
            ASSERT_EQ(1000 * c + 100 * (t / 10) + 10 * (t / 5 % 2) + t % 5, out.data()[40 * c + t]);
}

TEST_F(Machine, OccupancyFollowsTheTightestLimit)
{
    Function f;
    f.regs_for_occupancy = 32;
    EXPECT_EQ(8u, occupancy(f, 256, 0, d.limits));
    f.regs_for_occupancy = 128; /* 4096 registers a warp: 16 warps */
    EXPECT_EQ(2u, occupancy(f, 256, 0, d.limits));
    EXPECT_EQ(1u, occupancy(f, 512, 0, d.limits));
    f.regs_for_occupancy = 33; /* 1056 rounded up to 1280: 51 warps, by fours 48 */
    EXPECT_EQ(6u, occupancy(f, 256, 0, d.limits));
    f.regs_for_occupancy = 32;
    EXPECT_EQ(3u, occupancy(f, 32, 48 << 10, d.limits));
    EXPECT_EQ(1u, occupancy(f, 32, 163 << 10, d.limits));
    EXPECT_EQ(0u, occupancy(f, 32, 164 << 10, d.limits));
    EXPECT_EQ(32u, occupancy(f, 32, 0, d.limits));
    EXPECT_EQ(0u, occupancy(f, 1025, 0, d.limits));
    f.max_threads = 128;
    EXPECT_EQ(0u, occupancy(f, 256, 0, d.limits));
}
} // namespace
