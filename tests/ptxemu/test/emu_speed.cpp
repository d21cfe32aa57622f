/* How fast the emulator is: thread instructions a second of one host thread, with the checks on and off.
 *
 * Three kernels: integer arithmetic in registers; a sum over global memory; a tree reduction in shared memory with barriers. */
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "test/harness.h"

using namespace inside;

namespace
{
struct Case {
    const char *name, *body;
};

const char *head = R"(
.visible .entry k(.param .u64 p_out, .param .u32 p_n)
{
    .reg .pred %p;
    .reg .b64 %o, %a, %base;
    .reg .b32 %t, %x, %cta, %nt, %n, %k, %s, %v, %w, %sh;
    .shared .align 4 .b32 tile[256];
    mov.u32 %x, %tid.x;
    mov.u32 %cta, %ctaid.x;
    mov.u32 %nt, %ntid.x;
    mad.lo.u32 %t, %cta, %nt, %x;
    ld.param.u32 %n, [p_n];
    ld.param.u64 %base, [p_out];
    mul.wide.u32 %o, %t, 4;
    add.u64 %o, %base, %o;
    mov.u32 %k, 0;
    mov.u32 %s, %t;
    mov.u32 %v, 1;
)";
const char *tail = R"(
    st.global.u32 [%o], %s;
    ret;
}
)";

const Case cases[] = {
    {"registers", R"(
LOOP:
    mad.lo.u32 %s, %s, 1664525, 1013904223;
    shr.u32 %w, %s, 7;
    xor.b32 %s, %s, %w;
    add.u32 %v, %v, %s;
    min.u32 %w, %v, %s;
    lop3.b32 %s, %s, %v, %w, 0x96;
    shf.l.wrap.b32 %v, %v, %s, 5;
    sub.u32 %w, %w, %v;
    prmt.b32 %w, %w, %s, 0x5410;
    add.u32 %s, %s, %w;
    add.u32 %k, %k, 1;
    setp.lt.u32 %p, %k, %n;
    @%p bra LOOP;
)"},
    {"global loads", R"(
LOOP:
    add.u32 %w, %k, %x;
    and.b32 %w, %w, 16383;
    mul.wide.u32 %a, %w, 4;
    add.u64 %a, %base, %a;
    ld.global.u32 %v, [%a+1048576];
    xor.b32 %s, %s, %v;
    add.u32 %k, %k, 1;
    setp.lt.u32 %p, %k, %n;
    @%p bra LOOP;
)"},
    {"shared, barriers", R"(
    mov.u32 %sh, tile;
    mad.lo.u32 %sh, %x, 4, %sh;
LOOP:
    st.shared.u32 [%sh], %s;
    bar.sync 0;
    xor.b32 %w, %x, %k;
    and.b32 %w, %w, 255;
    mov.u32 %v, tile;
    mad.lo.u32 %w, %w, 4, %v;
    ld.shared.u32 %v, [%w];
    add.u32 %s, %s, %v;
    bar.sync 0;
    add.u32 %k, %k, 1;
    setp.lt.u32 %p, %k, %n;
    @%p bra LOOP;
)"},
};

/* Of a grid of `blocks` blocks of 256 threads; *seconds: how long it took. */
double rate(const Case &c, bool check, uint32_t loops, uint32_t blocks, double *seconds)
{
    Device d;
    d.options.check = check;
    Buffer<uint32_t> out(d, 1 << 20);
    Program p(d, std::string(head) + c.body + tail);
    const auto start = std::chrono::steady_clock::now();
    const Result r = p.launch({blocks, 1, 1}, {256, 1, 1}, out.p, loops);
    const std::chrono::duration<double> t = std::chrono::steady_clock::now() - start;
    if (r.fault) {
        fprintf(stderr, "%s", r.report().c_str());
        exit(1);
    }
    *seconds = t.count();
    uint64_t n = 0;
    for (uint64_t k : r.counters.thread_instructions)
        n += k;
    return double(n) / t.count() / 1e6;
}
} // namespace

int main(int argc, char **argv)
{
    const uint32_t loops = argc > 1 ? uint32_t(atoi(argv[1])) : 2000;
    printf("million thread instructions a second of one host thread\n%-18s %10s %10s\n", "", "checked", "unchecked");
    double seconds[2];
    for (const Case &c : cases)
        printf("%-18s %10.0f %10.0f\n", c.name, rate(c, true, loops, 16, seconds), rate(c, false, loops, 16, seconds));
    constexpr uint32_t BLOCKS = 4096;
    rate(cases[2], true, 1, BLOCKS, seconds);
    rate(cases[2], false, 1, BLOCKS, seconds + 1);
    printf("%-18s %10.1f %10.1f\n", "us a small block", seconds[0] / BLOCKS * 1e6, seconds[1] / BLOCKS * 1e6);
    return 0;
}
