// sm: 80 90a
// cp.async pipelines and mbarriers, and for every mistake with them a pair: NAME_right and NAME_wrong.
#include <cstdint>

__device__ static uint32_t shared_address(const void *p)
{
    return uint32_t(__cvta_generic_to_shared(p));
}
__device__ static void copy4(void *to, const void *from)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ static void copy16(void *to, const void *from, int bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
}
__device__ static void commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N>
__device__ static void wait_group()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
__device__ static void init(uint64_t *bar, int count)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
}
__device__ static uint64_t arrive(uint64_t *bar)
{
    uint64_t state;
    asm volatile("mbarrier.arrive.shared.b64 %0, [%1];" : "=l"(state) : "r"(shared_address(bar)) : "memory");
    return state;
}
__device__ static bool test_wait(uint64_t *bar, uint64_t state)
{
    int done;
    asm volatile("{ .reg .pred p; mbarrier.test_wait.shared.b64 p, [%1], %2; selp.s32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(shared_address(bar)), "l"(state)
                 : "memory");
    return done;
}
__device__ static bool test_parity(uint64_t *bar, uint32_t parity)
{
    int done;
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.s32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(shared_address(bar)), "r"(parity)
                 : "memory");
    return done;
}

// ---- copies ----

// Every thread copies `size` bytes (4, 8, 16), of which `from` gives the first `n`; the rest has to become zero.
extern "C" __global__ void zero_fill(const int4 *from, int4 *to, int n)
{
    __shared__ int4 s[64];
    copy16(&s[threadIdx.x], from + threadIdx.x, n);
    commit();
    wait_group<0>();
    to[threadIdx.x] = s[threadIdx.x];
}

extern "C" __global__ void ignore_source(const int *from, int *to, int keep)
{
    __shared__ int s[64];
    asm volatile("{ .reg .pred p; setp.ge.s32 p, %2, %3; cp.async.ca.shared.global [%0], [%1], 4, p; }" ::"r"(
                     shared_address(&s[threadIdx.x])),
                 "l"(from + threadIdx.x), "r"(threadIdx.x), "r"(keep)
                 : "memory");
    asm volatile("cp.async.wait_all;" ::: "memory");
    to[threadIdx.x] = s[threadIdx.x];
}

// Tiles of 128 numbers through STAGES buffers; out = 3 * the number at the mirrored place of the tile.
template <int STAGES>
__device__ static void pipeline(const int *in, int *out, int tiles)
{
    __shared__ int s[STAGES][128];
    const int t = threadIdx.x;
    for (int k = 0; k < STAGES - 1; k++) {
        if (k < tiles)
            copy4(&s[k][t], in + k * 128 + t);
        commit();
    }
    for (int k = 0; k < tiles; k++) {
        wait_group<STAGES - 2>();
        __syncthreads();
        const int next = k + STAGES - 1;
        if (next < tiles)
            copy4(&s[next % STAGES][t], in + next * 128 + t);
        commit();
        out[k * 128 + t] = 3 * s[k % STAGES][127 - t];
    }
}
extern "C" __global__ void pipeline2(const int *in, int *out, int tiles)
{
    pipeline<2>(in, out, tiles);
}
extern "C" __global__ void pipeline4(const int *in, int *out, int tiles)
{
    pipeline<4>(in, out, tiles);
}

// Copies that a mbarrier announces: the arrival takes place when they are complete.
extern "C" __global__ void copies_arrive(const int *in, int *out)
{
    __shared__ int s[128];
    __shared__ uint64_t bar;
    if (threadIdx.x == 0)
        init(&bar, 128);
    __syncthreads();
    copy4(&s[threadIdx.x], in + threadIdx.x);
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(&bar)) : "memory");
    while (!test_parity(&bar, 0))
        ;
    out[threadIdx.x] = s[127 - threadIdx.x];
}
extern "C" __global__ void copies_arrive_besides(const int *in, int *out)
{
    __shared__ int s[128];
    __shared__ uint64_t bar;
    if (threadIdx.x == 0)
        init(&bar, 128);
    __syncthreads();
    copy4(&s[threadIdx.x], in + threadIdx.x);
    asm volatile("cp.async.mbarrier.arrive.shared.b64 [%0];" ::"r"(shared_address(&bar)) : "memory");
    arrive(&bar);
    while (!test_parity(&bar, 0))
        ;
    out[threadIdx.x] = s[127 - threadIdx.x];
}

// ---- races: twins ----

#define TWINS(name)                                                                                                    \
    extern "C" __global__ void name##_right(const int *in, int *out)                                                   \
    {                                                                                                                  \
        name<true>(in, out);                                                                                           \
    }                                                                                                                  \
    extern "C" __global__ void name##_wrong(const int *in, int *out)                                                   \
    {                                                                                                                  \
        name<false>(in, out);                                                                                          \
    }

template <bool RIGHT>
__device__ static void read_after_write(const int *in, int *out)
{
    __shared__ int s[128];
    s[threadIdx.x] = 0; // so that what is read too early was written at least
    __syncthreads();
    s[threadIdx.x] = in[threadIdx.x];
    if (RIGHT)
        __syncthreads();
    out[threadIdx.x] = s[(threadIdx.x + 96) % 128];
}
TWINS(read_after_write)

template <bool RIGHT>
__device__ static void write_after_read(const int *in, int *out)
{
    __shared__ int s[128];
    s[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = s[(threadIdx.x + 32) % 128];
    if (RIGHT)
        __syncthreads();
    s[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] += s[(threadIdx.x + 32) % 128];
}
TWINS(write_after_read)

template <bool RIGHT>
__device__ static void write_after_write(const int *in, int *out)
{
    __shared__ int s[128];
    s[threadIdx.x] = in[threadIdx.x];
    if (RIGHT)
        __syncthreads();
    s[127 - threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x];
}
TWINS(write_after_write)

template <bool RIGHT>
__device__ static void lanes_of_a_warp(const int *in, int *out)
{
    __shared__ volatile int unused;
    __shared__ int s[128];
    s[threadIdx.x] = in[threadIdx.x];
    if (RIGHT)
        __syncwarp();
    else
        unused = 0; // keeps the compiler from seeing through
    out[threadIdx.x] = s[threadIdx.x ^ 1];
}
TWINS(lanes_of_a_warp)

// Two groups of warps, each with a barrier of its own.
template <bool RIGHT>
__device__ static void named_barrier(const int *in, int *out)
{
    __shared__ int s[128];
    s[threadIdx.x] = 0;
    __syncthreads();
    s[threadIdx.x] = in[threadIdx.x];
    const int half = threadIdx.x / 64;
    asm volatile("bar.sync %0, 64;" ::"r"(half + 1) : "memory");
    out[threadIdx.x] = s[RIGHT ? threadIdx.x ^ 63 : threadIdx.x ^ 127];
}
TWINS(named_barrier)

template <bool RIGHT>
__device__ static void copy_without_wait(const int *in, int *out)
{
    __shared__ int s[128];
    copy4(&s[threadIdx.x], in + threadIdx.x);
    commit();
    if (RIGHT)
        wait_group<0>();
    __syncthreads();
    out[threadIdx.x] = s[127 - threadIdx.x];
}
TWINS(copy_without_wait)

template <bool RIGHT>
__device__ static void copy_without_barrier(const int *in, int *out)
{
    __shared__ int s[128];
    s[threadIdx.x] = 0;
    __syncthreads();
    copy4(&s[threadIdx.x], in + threadIdx.x);
    commit();
    wait_group<0>();
    if (RIGHT)
        __syncthreads();
    out[threadIdx.x] = s[127 - threadIdx.x];
}
TWINS(copy_without_barrier)

// The last group but one is waited for, but the last one is read.
template <bool RIGHT>
__device__ static void copy_wrong_group(const int *in, int *out)
{
    __shared__ int s[2][128];
    copy4(&s[0][threadIdx.x], in + threadIdx.x);
    commit();
    copy4(&s[1][threadIdx.x], in + threadIdx.x);
    commit();
    wait_group<1>();
    out[threadIdx.x] = s[RIGHT ? 0 : 1][threadIdx.x];
    wait_group<0>();
}
TWINS(copy_wrong_group)

// Warp 0 produces, the others consume; they tell each other by mbarriers.
template <bool RIGHT>
__device__ static void produce_and_consume(const int *in, int *out)
{
    __shared__ int s[2][32];
    __shared__ uint64_t full[2], empty[2];
    if (threadIdx.x < 2) {
        init(&full[threadIdx.x], 32);
        init(&empty[threadIdx.x], 96);
    }
    __syncthreads();
    int sum = 0;
    for (int k = 0; k < 8; k++) {
        const int stage = k % 2, parity = k / 2 % 2;
        if (threadIdx.x < 32) {
            while (!test_parity(&empty[stage], parity ^ 1))
                ;
            s[stage][threadIdx.x] = in[k * 32 + threadIdx.x];
            arrive(&full[stage]);
        } else {
            while (!test_parity(&full[stage], parity))
                ;
            if (!RIGHT)
                arrive(&empty[stage]); // too early: it has not read yet
            sum += s[stage][(threadIdx.x + k) % 32];
            if (RIGHT)
                arrive(&empty[stage]);
        }
    }
    out[threadIdx.x] = sum;
}
TWINS(produce_and_consume)

// ---- mbarriers ----

extern "C" __global__ void mbarrier_phases(uint32_t *out)
{
    __shared__ uint64_t bar;
    __shared__ int s[128];
    if (threadIdx.x == 0)
        init(&bar, 128);
    __syncthreads();
    int sum = 0;
    for (int k = 0; k < 5; k++) {
        s[threadIdx.x] = k + threadIdx.x;
        uint64_t state = arrive(&bar);
        while (!test_wait(&bar, state))
            ;
        sum += s[(threadIdx.x + 37) % 128];
        state = arrive(&bar);
        while (!test_wait(&bar, state))
            ;
    }
    out[threadIdx.x] = sum;
}

// One thread goes through arrivals and drops; out gets the pending counts that the states tell, and whether phases are complete.
extern "C" __global__ void mbarrier_counts(uint32_t *out)
{
    __shared__ uint64_t bar;
    uint64_t state;
    uint32_t a = shared_address(&bar), n = 0;
    auto note = [&] {
        uint32_t pending;
        asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(pending) : "l"(state));
        out[n++] = pending;
        out[n++] = test_wait(&bar, state);
    };
    init(&bar, 3);
    state = arrive(&bar); // of 3
    note();
    asm volatile("mbarrier.arrive.noComplete.shared.b64 %0, [%1], 1;" : "=l"(state) : "r"(a) : "memory");
    note();
    state = arrive(&bar); // completes
    note();
    asm volatile("mbarrier.arrive_drop.shared.b64 %0, [%1];" : "=l"(state) : "r"(a) : "memory");
    note();
    state = arrive(&bar);
    state = arrive(&bar); // completes; the next phase is for 2
    note();
    state = arrive(&bar);
    note();
    state = arrive(&bar);
    note();
    asm volatile("mbarrier.inval.shared.b64 [%0];" ::"r"(a) : "memory");
}

extern "C" __global__ void mbarrier_never_made(uint64_t *out)
{
    __shared__ uint64_t bar;
    out[0] = arrive(&bar);
}
extern "C" __global__ void mbarrier_invalid_again(uint64_t *out)
{
    __shared__ uint64_t bar;
    init(&bar, 1);
    asm volatile("mbarrier.inval.shared.b64 [%0];" ::"r"(shared_address(&bar)) : "memory");
    out[0] = arrive(&bar);
}
extern "C" __global__ void mbarrier_too_many(uint64_t *out)
{
    __shared__ uint64_t bar;
    init(&bar, 2);
    asm volatile("mbarrier.arrive.noComplete.shared.b64 %0, [%1], 3;"
                 : "=l"(out[0])
                 : "r"(shared_address(&bar))
                 : "memory");
}
extern "C" __global__ void mbarrier_count_range(uint64_t *out, int count)
{
    __shared__ uint64_t bar;
    init(&bar, count);
    out[0] = arrive(&bar);
}
extern "C" __global__ void mbarrier_misaligned(uint64_t *out)
{
    __shared__ uint32_t words[4];
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(&words[0]) + 4) : "memory");
    out[0] = words[0];
}
